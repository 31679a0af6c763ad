//! Multicast DNS with service discovery, as avahi-daemon speaks it: metadata servers publish themselves, others browse.
//!
//! Each server is an instance of `_pstorage._tcp.local` with TXT `cluster=NAME` and `mds=NUMBER`; these count, the
//! instance's name is for people. Its host name is its own and not the machine's, which avahi-daemon may hold with
//! other addresses: so neither has to give its name up.

use crate::SERVICE;
use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long browsing waits for answers. Responders wait up to half a second so as not to answer all at once.
pub const WITHIN: Duration = Duration::from_secs(2);
/// Once a server of the cluster looked for has answered: how long the others are waited for.
const OTHERS_WITHIN: Duration = Duration::from_millis(500);
/// Polite leaving is not worth more.
const GOODBYE: Duration = Duration::from_millis(500);
/// Longest name of an instance, bytes.
const INSTANCE_BYTES: usize = 63;

/// A metadata server as the network shows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Server {
    pub cluster: String,
    pub addr: SocketAddr,
}

/// What a metadata server tells the network of itself.
#[derive(Clone, Debug)]
pub struct Card<'a> {
    pub cluster: &'a str,
    pub mds: u64,
    /// Of the server, hexadecimal, so that its host name is unique.
    pub uuid: &'a str,
    pub addr: SocketAddr,
}

/// Published until dropped.
pub struct Published {
    daemon: ServiceDaemon,
    name: String,
}

impl Published {
    /// Publishes a server on the network that its address belongs to, and on no other.
    pub fn new(card: &Card) -> Result<Published, String> {
        let fail = |e: mdns_sd::Error| format!("multicast DNS: {e}");
        let id: String = card.uuid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let suffix = format!(" MDS#{}", card.mds);
        let room = INSTANCE_BYTES - suffix.len();
        let instance = format!("{}{suffix}", &card.cluster[..card.cluster.len().min(room)]);
        let properties = [("cluster", card.cluster.to_string()), ("mds", card.mds.to_string())];
        let host = format!("pstorage-{id}.local.");
        let service = ServiceInfo::new(
            &service_type(),
            &instance,
            &host,
            card.addr.ip(),
            card.addr.port(),
            &properties[..],
        )
        .map_err(fail)?;
        let name = service.get_fullname().to_string();
        let daemon = ServiceDaemon::new().map_err(fail)?;
        daemon.disable_interface(IfKind::All).map_err(fail)?;
        daemon.enable_interface(IfKind::Addr(card.addr.ip())).map_err(fail)?;
        daemon.register(service).map_err(fail)?;
        Ok(Published { daemon, name })
    }
}

impl Drop for Published {
    /// Others forget the server at once, instead of after minutes.
    fn drop(&mut self) {
        if let Ok(done) = self.daemon.unregister(&self.name) {
            let _ = done.recv_timeout(GOODBYE);
        }
        end(&self.daemon);
    }
}

/// The servers of all clusters, or of one, on all networks of this machine.
pub fn browse(cluster: Option<&str>) -> Result<Vec<Server>, String> {
    let fail = |e: mdns_sd::Error| format!("multicast DNS: {e}");
    let daemon = ServiceDaemon::new().map_err(fail)?;
    let events = daemon.browse(&service_type()).map_err(fail)?;
    let mut until = Instant::now() + WITHIN;
    let mut found = Vec::new();
    while let Ok(event) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let ServiceEvent::ServiceResolved(service) = event else { continue };
        let servers = servers_of(&service);
        if cluster.is_some() && servers.iter().any(|s| Some(&*s.cluster) == cluster) {
            until = until.min(Instant::now() + OTHERS_WITHIN);
        }
        found.extend(servers.into_iter().filter(|s| cluster.is_none_or(|name| s.cluster == name)));
    }
    end(&daemon);
    found.sort();
    found.dedup();
    Ok(found)
}

fn servers_of(service: &ResolvedService) -> Vec<Server> {
    let cluster = service.txt_properties.get_property_val_str("cluster").unwrap_or_default();
    if wire::check_cluster_name(cluster).is_err() || service.port == 0 {
        return Vec::new();
    }
    let ips = service.addresses.iter().map(|ip| ip.to_ip_addr()).filter(is_usable);
    ips.map(|ip| Server { cluster: cluster.into(), addr: SocketAddr::new(ip, service.port) }).collect()
}

/// Addresses that only mean something on one link need the link's number, which is not kept.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    }
}

fn service_type() -> String {
    format!("{SERVICE}.local.")
}

fn end(daemon: &ServiceDaemon) {
    if let Ok(done) = daemon.shutdown() {
        let _ = done.recv_timeout(GOODBYE);
    }
}
