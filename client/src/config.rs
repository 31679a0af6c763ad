//! What a client must know to join a cluster, and its time limits.

use std::net::SocketAddr;
use std::time::Duration;
use wire::auth::Credentials;

#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub cluster: String,
    pub credentials: Credentials,
    /// Metadata servers to ask, as discovered; the master they name is followed.
    pub mds: Vec<SocketAddr>,
    /// This machine's name, shown by `pstorage stat`.
    pub host: String,
    /// Where the client is mounted, or what program uses the library; shown by `pstorage stat`.
    pub mount_point: String,
    /// How long a request waits through failures before it ends with an error.
    pub io_timeout: Duration,
    /// How long the first contact with the cluster may take.
    pub start_timeout: Duration,
    /// A chunk server that owes answers and is silent this long counts as unreachable.
    pub cs_silence: Duration,
    /// A metadata server that owes answers and is silent this long is left for another.
    pub mds_silence: Duration,
    /// How long an open waits for another client to give the file up.
    pub busy_wait: Duration,
    /// A request that takes longer is logged.
    pub slow_request: Duration,
    /// A read cache on a local SSD.
    pub cache: Option<CacheConfig>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheConfig {
    /// The cache file. Only this client may use it.
    pub path: String,
    pub bytes: u64,
    /// At which use within the window a block comes in.
    pub admit_at_uses: u8,
}

impl CacheConfig {
    pub fn new(path: impl Into<String>, bytes: u64) -> Self {
        CacheConfig { path: path.into(), bytes, admit_at_uses: crate::core::ADMIT_AT_USES }
    }
}

impl ClientConfig {
    pub fn new(cluster: &str, credentials: Credentials, mds: Vec<SocketAddr>) -> Self {
        ClientConfig {
            cluster: cluster.to_string(),
            credentials,
            mds,
            host: String::new(),
            mount_point: String::new(),
            io_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(15),
            cs_silence: Duration::from_secs(2),
            mds_silence: Duration::from_secs(3),
            busy_wait: Duration::from_secs(1),
            slow_request: Duration::from_secs(1),
            cache: None,
        }
    }
}

/// Time between KeepAlive messages.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The pulse at which silence, deadlines and unsent sizes are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Longest time a size reached by writes stays unrecorded at the MDS.
pub(crate) const EXTEND_AFTER: Duration = Duration::from_secs(1);
