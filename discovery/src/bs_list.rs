//! `ETC/clusters/NAME/bs.list`: addresses of metadata servers, written by the administrator or by make-mds and auth-node.

use crate::DEFAULT_MDS_PORT;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

pub fn path(etc: &Path, cluster: &str) -> PathBuf {
    etc.join("clusters").join(cluster).join("bs.list")
}

/// What bs.list of `cluster` says; nothing if there is none.
pub fn read(etc: &Path, cluster: &str) -> Result<Vec<SocketAddr>, String> {
    let path = path(etc, cluster);
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map_err(|e| format!("{}: {e}", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(shards::text::at(&path)(e)),
    }
}

/// Lines of `HOST[:PORT]`, comments with #.
pub fn parse(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut addrs = Vec::new();
    for line in text.lines().map(|l| l.split('#').next().unwrap_or("")) {
        for word in line.split_whitespace() {
            for addr in resolve(word)? {
                if !addrs.contains(&addr) {
                    addrs.push(addr);
                }
            }
        }
    }
    Ok(addrs)
}

fn resolve(word: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(addr) = word.parse::<SocketAddr>() {
        return Ok(vec![addr]);
    }
    if let Ok(ip) = word.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_MDS_PORT)]);
    }
    let with_port = if word.contains(':') { word.to_string() } else { format!("{word}:{DEFAULT_MDS_PORT}") };
    let found = with_port.to_socket_addrs().map_err(|e| format!("'{word}' is not HOST or IP:PORT: {e}"))?;
    Ok(found.collect())
}

/// Clusters below `etc` that have a bs.list with an address in it.
pub fn clusters(etc: &Path) -> Result<Vec<String>, String> {
    let dir = etc.join("clusters");
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(shards::text::at(&dir))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let known = |name: &String| {
        wire::check_cluster_name(name).is_ok() && read(etc, name).is_ok_and(|addrs| !addrs.is_empty())
    };
    Ok(names.filter(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_ports_are_understood_and_mistakes_named() {
        let list = parse("# mds\n127.0.0.1:2600\n10.0.0.2  # no port\n[::1]:7\n\n10.0.0.2:2510").unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list[1], SocketAddr::from(([10, 0, 0, 2], 2510)));
        assert!(parse("no host here!:x").unwrap_err().contains("'no' is not"));
    }

    #[test]
    fn clusters_with_addresses_are_listed() {
        let etc = tempfile::tempdir().unwrap();
        assert!(clusters(etc.path()).unwrap().is_empty());
        for (name, list) in [("pcs1", "10.0.0.1\n"), ("empty", "# nothing\n"), ("a b", "10.0.0.1\n")] {
            std::fs::create_dir_all(etc.path().join("clusters").join(name)).unwrap();
            std::fs::write(path(etc.path(), name), list).unwrap();
        }
        assert_eq!(clusters(etc.path()).unwrap(), ["pcs1"]);
        assert!(read(etc.path(), "none").unwrap().is_empty());
    }
}
