//! What makes this machine part of a cluster: addresses, which [`discovery`] finds, and `ETC/clusters/NAME/auth_digest.key`.
//!
//! File access and discovery happen before a shard starts, on behalf of binaries and programs that use the library.

use crate::config::ClientConfig;
use std::path::{Path, PathBuf};
use wire::auth::Credentials;

/// The default of `--etc`: env `PSTORAGE_ETC`, else /etc/pstorage.
pub fn default_etc() -> PathBuf {
    std::env::var_os("PSTORAGE_ETC").map_or_else(|| PathBuf::from("/etc/pstorage"), PathBuf::from)
}

/// Whether `name` can be a cluster's.
pub fn check_name(name: &str) -> Result<(), String> {
    wire::check_cluster_name(name)
}

/// Finds cluster `name` and reads this node's key below `etc`. The error says what was tried and what to do.
pub fn load(etc: &Path, name: &str) -> Result<ClientConfig, String> {
    wire::check_cluster_name(name)?;
    let mds = discovery::mds_of(etc, name).map_err(|e| e.to_string())?;
    let mut config = ClientConfig::new(name, Credentials::load(etc, name)?, mds);
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
    fn a_missing_cluster_is_explained() {
        let error = load(Path::new("/nonexistent"), "pcs1").unwrap_err();
        assert!(error.contains("bs.list") && error.contains("DNS") && error.contains("Avahi"), "{error}");
        assert!(load(Path::new("/nonexistent"), "a b").unwrap_err().contains("allowed"));
    }
}
