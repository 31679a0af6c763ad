//! The administrator's command: pstorage.
//!
//! One file per command below [`commands`]; [`mds_link`] talks to the master metadata server.

pub mod commands;
pub mod mds_link;

use std::net::SocketAddr;
use std::path::PathBuf;

/// What every command needs to know.
#[derive(Clone, Debug)]
pub struct Context {
    pub cluster: Option<String>,
    pub etc: PathBuf,
    pub json: bool,
}

/// Errors of commands are sentences for the administrator.
pub type Outcome<T = ()> = Result<T, String>;

impl Context {
    pub fn cluster(&self) -> Outcome<&str> {
        let name = self
            .cluster
            .as_deref()
            .ok_or("name the cluster: pstorage -c CLUSTER … (or set PSTORAGE_NAME)")?;
        wire::check_cluster_name(name)?;
        Ok(name)
    }

    pub fn cluster_dir(&self) -> Outcome<PathBuf> {
        Ok(self.etc.join("clusters").join(self.cluster()?))
    }

    /// Metadata servers named in bs.list; none when there is no such file.
    pub fn bs_list(&self) -> Outcome<Vec<SocketAddr>> {
        let path = self.cluster_dir()?.join("bs.list");
        match std::fs::read_to_string(&path) {
            Ok(text) => client::setup::parse_bs_list(&text).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    pub fn key(&self) -> Outcome<wire::auth::ClusterKey> {
        mds::control::read_key(&self.etc, self.cluster()?).map_err(|e| e.to_string())
    }

    pub fn link(&self) -> Outcome<mds_link::MdsLink> {
        mds_link::MdsLink::open(self.cluster()?, self.key()?, &self.bs_list()?)
    }

    /// Adds addresses to bs.list that are not there.
    pub fn add_to_bs_list(&self, addrs: &[SocketAddr]) -> Outcome {
        let dir = self.cluster_dir()?;
        let path = dir.join("bs.list");
        let mut known = self.bs_list()?;
        let before = known.len();
        addrs.iter().for_each(|a| {
            if !known.contains(a) {
                known.push(*a);
            }
        });
        if known.len() == before {
            return Ok(());
        }
        let text: String = known.iter().map(|a| format!("{a}\n")).collect();
        shards::ring::replace_file(&path, text.as_bytes()).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Random bytes as hexadecimal digits.
pub fn random_hex<const N: usize>() -> String {
    shards::host::random_bytes::<N>().iter().map(|b| format!("{b:02x}")).collect()
}
