//! Which method is asked when, and what is said when none knows anything. No I/O: [`Sources`] does it.

use serde::Serialize;
use std::fmt;
use std::net::SocketAddr;

/// A way to find clusters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The file that the administrator wrote for one cluster.
    BsList,
    /// SRV records of a cluster: addresses.
    DnsSrv,
    /// TXT records: names.
    DnsTxt,
    /// All SRV records of a zone: names.
    ZoneTransfer,
    /// Multicast DNS: names and addresses.
    Avahi,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Method::BsList => "bs.list",
            Method::DnsSrv => "DNS SRV records",
            Method::DnsTxt => "DNS TXT records",
            Method::ZoneTransfer => "DNS zone transfer",
            Method::Avahi => "Avahi",
        })
    }
}

/// For names, in the order of the guide; all are asked. bs.list, of this machine alone, comes last.
pub const NAME_METHODS: [Method; 4] = [Method::DnsTxt, Method::ZoneTransfer, Method::Avahi, Method::BsList];
/// For addresses; the first that knows any is believed. What an administrator wrote on this machine comes first,
/// multicast, which anybody in the network can answer, last.
pub const ADDRESS_METHODS: [Method; 3] = [Method::BsList, Method::DnsSrv, Method::Avahi];

/// What a method found, or why it found nothing.
pub type Outcome<T> = Result<Vec<T>, String>;

/// Where names and addresses come from.
pub trait Sources {
    /// Names of clusters. Never empty when `Ok`.
    fn names(&mut self, method: Method) -> Outcome<String>;
    /// Addresses of the cluster's metadata servers, best first. Never empty when `Ok`.
    fn addrs(&mut self, method: Method, cluster: &str) -> Outcome<SocketAddr>;
    /// Whether something listens at an address.
    fn answers(&mut self, addr: SocketAddr) -> bool;
    /// The file in which the administrator may write the cluster's addresses.
    fn bs_list(&self, cluster: &str) -> String;
}

/// Where the metadata servers of a cluster are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub by: Method,
    /// Without repetitions, best first; at least one.
    pub addrs: Vec<SocketAddr>,
}

/// No method knows the cluster.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "don't know any metadata server of cluster '{cluster}':{}\nCheck the name ('pstorage discover' shows the clusters of \
     this network), or write the IP:PORT of a running metadata server into {bs_list}, or name the right directory with \
     --etc",
    lines(.tried)
)]
pub struct NotFound {
    pub cluster: String,
    pub tried: Vec<(Method, String)>,
    pub bs_list: String,
}

fn lines(tried: &[(Method, String)]) -> String {
    tried.iter().map(|(method, why)| format!("\n  {method}: {why}")).collect()
}

/// Asks one method after the other for the addresses of `cluster`, until one knows any. bs.list may be old: if none of its
/// servers answers, those that the next method knows are added.
pub fn mds_of(sources: &mut dyn Sources, cluster: &str) -> Result<Found, NotFound> {
    let mut tried = Vec::new();
    let mut silent: Option<Found> = None;
    for by in ADDRESS_METHODS {
        match sources.addrs(by, cluster) {
            Ok(addrs) => {
                let mut found = silent.take().unwrap_or(Found { by, addrs: Vec::new() });
                for addr in addrs {
                    if !found.addrs.contains(&addr) {
                        found.addrs.push(addr);
                    }
                }
                if by != Method::BsList || is_here(&found) || found.addrs.iter().any(|a| sources.answers(*a))
                {
                    return Ok(found);
                }
                silent = Some(found);
            }
            Err(why) => tried.push((by, why)),
        }
    }
    silent.ok_or_else(|| NotFound { cluster: cluster.into(), tried, bs_list: sources.bs_list(cluster) })
}

/// A cluster of this machine alone is nowhere else.
fn is_here(found: &Found) -> bool {
    found.addrs.iter().all(|a| a.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows what it was given, and remembers what it was asked.
    struct Known {
        addrs: Vec<(Method, Vec<&'static str>)>,
        asked: Vec<Method>,
        listening: Vec<&'static str>,
    }

    impl Sources for Known {
        fn names(&mut self, _: Method) -> Outcome<String> {
            Err("not asked here".into())
        }

        fn addrs(&mut self, method: Method, _: &str) -> Outcome<SocketAddr> {
            self.asked.push(method);
            let found = self.addrs.iter().find(|(m, _)| *m == method).ok_or("knows nothing")?;
            Ok(found.1.iter().map(|a| a.parse().unwrap()).collect())
        }

        fn answers(&mut self, addr: SocketAddr) -> bool {
            self.listening.iter().any(|a| a.parse() == Ok(addr))
        }

        fn bs_list(&self, cluster: &str) -> String {
            format!("/etc/pstorage/clusters/{cluster}/bs.list")
        }
    }

    /// What is found, and by asking whom.
    fn ask(
        addrs: &[(Method, Vec<&'static str>)],
        listening: &[&'static str],
    ) -> (Result<Found, NotFound>, Vec<Method>) {
        let mut known = Known { addrs: addrs.to_vec(), asked: vec![], listening: listening.to_vec() };
        (mds_of(&mut known, "pcs1"), known.asked)
    }

    const A: &str = "10.0.0.1:2510";
    const B: &str = "10.0.0.2:2510";

    #[test]
    fn the_first_that_knows_is_believed_and_no_other_asked() {
        let (found, asked) = ask(&[(Method::DnsSrv, vec![A, B, A]), (Method::Avahi, vec![B])], &[]);
        assert_eq!(found.map(|f| (f.by, f.addrs.len())), Ok((Method::DnsSrv, 2)));
        assert_eq!(asked, [Method::BsList, Method::DnsSrv]);
    }

    #[test]
    fn a_list_of_servers_that_are_gone_is_completed() {
        let known = [(Method::BsList, vec![A]), (Method::Avahi, vec![A, B])];
        let (found, asked) = ask(&known, &[B]);
        assert_eq!(found.map(|f| (f.by, f.addrs.len())), Ok((Method::BsList, 2)));
        assert_eq!(asked, ADDRESS_METHODS);
        let (found, asked) = ask(&known, &[A]);
        assert_eq!((found.map(|f| f.addrs.len()), asked), (Ok(1), vec![Method::BsList]));
        // The list alone is better than nothing: its servers may come back.
        assert_eq!(ask(&known[..1], &[]).0.map(|f| f.addrs.len()), Ok(1));
        let local = [(Method::BsList, vec!["127.0.0.1:2510"]), (Method::Avahi, vec![B])];
        assert_eq!(ask(&local, &[]).1, [Method::BsList]);
    }

    #[test]
    fn when_none_knows_all_are_named_with_what_to_do() {
        let error = ask(&[], &[]).0.unwrap_err().to_string();
        for part in [
            "'pcs1'",
            "bs.list: knows",
            "DNS SRV records: knows",
            "Avahi: knows",
            "pstorage discover",
            "--etc",
        ] {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
    }
}
