//! How a cluster is found: which clusters there are, and the addresses of a cluster's metadata servers.
//!
//! - [`find`]: which [`Method`] is asked when, and what is said when none knows anything. No I/O: it asks [`Sources`];
//! - [`names`]: what TXT and SRV records say about clusters. No I/O;
//! - [`bs_list`]: the file that an administrator writes;
//! - [`dns`]: the servers of /etc/resolv.conf, with [`message`] (bytes to records);
//! - [`mdns`]: multicast DNS, as spoken by avahi-daemon: publishing and browsing.
//!
//! All of it blocks, for seconds at most ([`dns::WITHIN`], [`mdns::WITHIN`]), and belongs before the start of a shard.
//! What is found is only an address: whether a cluster's server is there shows the handshake, by the cluster's key.

pub mod bs_list;
pub mod dns;
pub mod find;
pub mod mdns;
pub mod message;
pub mod names;
mod system;

pub use find::{Found, Method, NotFound, Outcome, Sources};
pub use system::System;

use std::net::SocketAddr;
use std::path::Path;

/// Port of a metadata server where none is named.
pub const DEFAULT_MDS_PORT: u16 = 2510;
/// Service name in SRV records and in multicast DNS.
pub const SERVICE: &str = "_pstorage._tcp";

/// Addresses of the metadata servers of `cluster`, best first: from bs.list below `etc`; if that has none, or none of them
/// answers, from DNS; if that knows none by multicast DNS.
pub fn mds_of(etc: &Path, cluster: &str) -> Result<Vec<SocketAddr>, NotFound> {
    find::mds_of(&mut System::new(etc), cluster).map(|found| found.addrs)
}
