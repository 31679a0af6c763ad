//! Reads the files that make this machine part of a cluster: `ETC/clusters/NAME/{bs.list,auth_digest.key}`.
//!
//! File access happens before a shard starts, on behalf of binaries and programs that use the library.

use crate::config::ClientConfig;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use wire::auth::ClusterKey;

/// Port of a metadata server when bs.list names none.
pub const DEFAULT_MDS_PORT: u16 = 2510;

/// The default of `--etc`: env `PSTORAGE_ETC`, else /etc/pstorage.
pub fn default_etc() -> PathBuf {
    std::env::var_os("PSTORAGE_ETC").map_or_else(|| PathBuf::from("/etc/pstorage"), PathBuf::from)
}

/// Lines of bs.list: `HOST[:PORT]`, comments with #.
pub fn parse_bs_list(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut addrs = Vec::new();
    for line in text.lines().map(|l| l.split('#').next().unwrap_or("").trim()).filter(|l| !l.is_empty()) {
        for word in line.split_whitespace() {
            addrs.extend(resolve(word)?);
        }
    }
    addrs.dedup();
    Ok(addrs)
}

/// Whether `name` can be a cluster's.
pub fn check_name(name: &str) -> Result<(), String> {
    wire::check_cluster_name(name)
}

fn resolve(word: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(addr) = word.parse::<SocketAddr>() {
        return Ok(vec![addr]);
    }
    if let Ok(ip) = word.parse::<std::net::IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_MDS_PORT)]);
    }
    let with_port = if word.contains(':') { word.to_string() } else { format!("{word}:{DEFAULT_MDS_PORT}") };
    let found = with_port.to_socket_addrs().map_err(|e| format!("'{word}': {e}"))?;
    Ok(found.collect())
}

/// Reads the configuration of cluster `name` below `etc`. The error says which file and what to do.
pub fn load(etc: &Path, name: &str) -> Result<ClientConfig, String> {
    wire::check_cluster_name(name)?;
    let dir = etc.join("clusters").join(name);
    let list = dir.join("bs.list");
    let text = std::fs::read_to_string(&list).map_err(|e| {
        format!(
            "can't read {}: {e}. It lists the cluster's metadata servers, one IP:PORT a line; \
             'pstorage -c {name} auth-node' writes it, or name another place with --etc",
            list.display()
        )
    })?;
    let mds = parse_bs_list(&text).map_err(|e| format!("{}: {e}", list.display()))?;
    if mds.is_empty() {
        return Err(format!("{} names no metadata server: add lines of the form IP:PORT", list.display()));
    }
    let key_file = dir.join("auth_digest.key");
    let key = match std::fs::read_to_string(&key_file) {
        Ok(text) => ClusterKey::from_text(&text).map_err(|e| {
            format!("{}: {e}. Run 'pstorage -c {name} auth-node' to make it anew", key_file.display())
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => ClusterKey::open(),
        Err(e) => return Err(format!("can't read {}: {e}", key_file.display())),
    };
    let mut config = ClientConfig::new(name, key, mds);
    config.host = host_name();
    Ok(config)
}

pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bs_list_takes_comments_ports_and_says_what_is_wrong() {
        let list = parse_bs_list("# mds\n127.0.0.1:2600\n10.0.0.2  # no port\n[::1]:7\n\n").unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list[1], SocketAddr::from(([10, 0, 0, 2], 2510)));
        assert!(parse_bs_list("no host here!:x").is_err());
    }

    #[test]
    fn a_missing_cluster_is_explained() {
        let error = load(Path::new("/nonexistent"), "pcs1").unwrap_err();
        assert!(error.contains("bs.list") && error.contains("auth-node"), "{error}");
        assert!(load(Path::new("/nonexistent"), "a b").unwrap_err().contains("allowed"));
    }
}
