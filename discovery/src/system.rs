//! The sources of this machine.

use crate::dns::Resolver;
use crate::find::{Method, Outcome, Sources};
use crate::{bs_list, mdns};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long a server in bs.list has to accept a connection, so that no other method is asked.
const ANSWERS_WITHIN: Duration = Duration::from_millis(700);

/// Files below `etc`, the servers of /etc/resolv.conf, and the networks of this machine.
pub struct System {
    etc: PathBuf,
}

impl System {
    pub fn new(etc: &Path) -> System {
        System { etc: etc.into() }
    }
}

impl Sources for System {
    fn names(&mut self, method: Method) -> Outcome<String> {
        let mut found = match method {
            Method::DnsTxt => resolver()?.clusters_by_txt().map_err(|e| e.to_string())?,
            Method::ZoneTransfer => resolver()?.clusters_by_transfer().map_err(|e| e.to_string())?,
            Method::Avahi => mdns::browse(None)?.into_iter().map(|server| server.cluster).collect(),
            Method::BsList => bs_list::clusters(&self.etc)?,
            Method::DnsSrv => return Err("SRV records tell addresses, not names".into()),
        };
        found.sort();
        found.dedup();
        if found.is_empty() {
            return Err(match method {
                Method::Avahi => format!("nobody answered within {} s", mdns::WITHIN.as_secs()),
                _ => format!("no cluster below {}", self.etc.join("clusters").display()),
            });
        }
        Ok(found)
    }

    fn addrs(&mut self, method: Method, cluster: &str) -> Outcome<SocketAddr> {
        wire::check_cluster_name(cluster)?;
        let nothing = match method {
            Method::BsList => format!("no address in {}", self.bs_list(cluster)),
            _ => format!("no metadata server of '{cluster}' answered within {} s", mdns::WITHIN.as_secs()),
        };
        let found = match method {
            Method::BsList => bs_list::read(&self.etc, cluster)?,
            Method::DnsSrv => resolver()?.mds_of(cluster).map_err(|e| e.to_string())?,
            Method::Avahi => mdns::browse(Some(cluster))?.into_iter().map(|server| server.addr).collect(),
            Method::DnsTxt | Method::ZoneTransfer => return Err("tells names, not addresses".into()),
        };
        if found.is_empty() { Err(nothing) } else { Ok(found) }
    }

    fn answers(&mut self, addr: SocketAddr) -> bool {
        TcpStream::connect_timeout(&addr, ANSWERS_WITHIN).is_ok()
    }

    fn bs_list(&self, cluster: &str) -> String {
        bs_list::path(&self.etc, cluster).display().to_string()
    }
}

fn resolver() -> Result<Resolver, String> {
    Resolver::from_file(Path::new(RESOLV_CONF)).map_err(|e| e.to_string())
}
