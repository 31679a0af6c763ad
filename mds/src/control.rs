//! The identity card of a metadata server: `DIR/control.json`.
//!
//! It is written once, by `make-mds` or `add-mds`, before the server runs for the first time, and never changed by the
//! server. What changes (the members of the quorum, their addresses) stands in the raft log and its snapshots.
//!
//! Invariants:
//! - `id` is never given to two directories: the first servers are numbered by `make-mds -I`, later ones by the
//!   running quorum (`MdsRequest::AddMds`). A lost directory is replaced by a server with a new id, because a server
//!   that forgot its vote could elect a second master;
//! - `bootstrap` is true exactly for the servers that make up the first quorum; all of them were given the same
//!   `peers`. Every other server starts with an empty log and learns everything from the master.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use wire::MdsId;
use wire::auth::Foundation;

/// Name of the file below the server's directory.
pub const FILE: &str = "control.json";
/// What a new cluster with a password begins with; see [`write_foundation`].
pub const FOUNDATION: &str = "foundation";
const FOUNDATION_MAGIC: [u8; 8] = *b"PSFOUND1";
/// Format that this program writes.
pub const FORMAT: u32 = 1;
/// Default port for clients and chunk servers; the port between metadata servers is one above.
pub const DEFAULT_PORT: u16 = discovery::DEFAULT_MDS_PORT;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MdsControl {
    pub format: u32,
    /// Says "mds", so that a person or a program sees what the directory is.
    pub service: String,
    pub cluster: String,
    pub id: MdsId,
    /// 32 hexadecimal digits, random: tells two directories with one id apart in reports.
    pub uuid: String,
    /// Where clients and chunk servers reach this server.
    pub addr: SocketAddr,
    /// Where the other metadata servers reach it.
    pub raft_addr: SocketAddr,
    /// Whether this server is part of the first quorum, namely of `peers`.
    pub bootstrap: bool,
    /// The servers known when this one was made, itself included if it is part of the first quorum.
    pub peers: Vec<MdsPeer>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MdsPeer {
    pub id: MdsId,
    pub addr: SocketAddr,
    pub raft_addr: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{0}")]
    ClusterName(String),
    #[error(
        "{dir} already belongs to {service} {id} of cluster '{cluster}': choose an empty directory, or remove that \
         service first"
    )]
    Taken { dir: PathBuf, service: String, id: String, cluster: String },
    #[error("{dir} is not empty (it holds '{entry}'): choose an empty directory")]
    NotEmpty { dir: PathBuf, entry: String },
    #[error(
        "{path} does not exist: {dir} is not the directory of a metadata server (make one with 'pstorage -c CLUSTER make-mds')"
    )]
    Missing { path: PathBuf, dir: PathBuf },
    #[error(
        "{path} is damaged ({why}); nothing was changed. Put back a copy of it; without one this server is lost: take it out \
         (rm-mds) and make another in a new directory (add-mds)"
    )]
    Malformed { path: PathBuf, why: String },
    #[error(
        "{path} has format {found}; this program understands {FORMAT}: start the version of pstorage-mdsd that made \
         it, or a newer one"
    )]
    Format { path: PathBuf, found: u64 },
    #[error(
        "{dir} belongs to {service} {id} of cluster '{cluster}', not to a metadata server: start pstorage-{service}d"
    )]
    OtherService { dir: PathBuf, service: String, id: String, cluster: String },
    #[error(
        "{dir}: its file system does not support direct I/O (O_DIRECT), which metadata servers need; use ext4 or XFS \
         on a disk"
    )]
    NoDirectIo { dir: PathBuf },
    #[error("{addr}: other machines can't reach this address; name the one they use")]
    Unspecified { addr: SocketAddr },
    #[error(
        "{addr}: the port must be between 1 and 65534, since the port above is used between metadata servers"
    )]
    Port { addr: SocketAddr },
    #[error("{what} {}: {}", path.display(), shards::text::cause(error))]
    Io { what: &'static str, path: PathBuf, error: std::io::Error },
}

/// A random id for a new card.
pub fn new_uuid() -> String {
    shards::host::random_bytes::<16>().iter().map(|b| format!("{b:02x}")).collect()
}

/// The address between metadata servers that goes with `addr`: the same host, one port above.
pub fn raft_addr_of(addr: SocketAddr) -> Result<SocketAddr, ControlError> {
    if addr.ip().is_unspecified() || addr.ip().is_multicast() {
        return Err(ControlError::Unspecified { addr });
    }
    match addr.port() {
        0 | u16::MAX => Err(ControlError::Port { addr }),
        port => Ok(SocketAddr::new(addr.ip(), port + 1)),
    }
}

impl MdsPeer {
    /// A server at `addr` with the usual second port.
    pub fn at(id: MdsId, addr: SocketAddr) -> Result<MdsPeer, ControlError> {
        Ok(MdsPeer { id, addr, raft_addr: raft_addr_of(addr)? })
    }
}

impl MdsControl {
    /// The card of one server of a new cluster, whose first quorum is `peers`. `make-mds -I` gives one peer.
    /// Panics when `id` is not among the peers.
    pub fn first_quorum(cluster: &str, uuid: String, id: MdsId, peers: &[MdsPeer]) -> MdsControl {
        let me = *peers.iter().find(|p| p.id == id).expect("a server of the first quorum is among its peers");
        MdsControl { bootstrap: true, ..Self::new(cluster, uuid, me, peers) }
    }

    /// The card of a server that joins a running quorum, which gave it its id. `peers` are servers to start with.
    pub fn joining(cluster: &str, uuid: String, me: MdsPeer, peers: &[MdsPeer]) -> MdsControl {
        Self::new(cluster, uuid, me, peers)
    }

    fn new(cluster: &str, uuid: String, me: MdsPeer, peers: &[MdsPeer]) -> MdsControl {
        MdsControl {
            format: FORMAT,
            service: "mds".into(),
            cluster: cluster.into(),
            id: me.id,
            uuid,
            addr: me.addr,
            raft_addr: me.raft_addr,
            bootstrap: false,
            peers: peers.to_vec(),
        }
    }

    /// Reads and checks `dir/control.json`.
    pub fn load(dir: &Path) -> Result<MdsControl, ControlError> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ControlError::Missing { path, dir: dir.into() });
            }
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                return Err(ControlError::Malformed { path, why: "not a text file".into() });
            }
            Err(error) => return Err(ControlError::Io { what: "reading", path, error }),
        };
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| ControlError::Malformed { path: path.clone(), why: e.to_string() })?;
        if value["service"] != "mds" {
            let (service, id, cluster) = owner(&value);
            return Err(ControlError::OtherService { dir: dir.into(), service, id, cluster });
        }
        let format = value["format"].as_u64().unwrap_or(0);
        if format != u64::from(FORMAT) {
            return Err(ControlError::Format { path, found: format });
        }
        let control: MdsControl = serde_json::from_value(value)
            .map_err(|e| ControlError::Malformed { path: path.clone(), why: e.to_string() })?;
        control.check().map_err(|why| ControlError::Malformed { path, why })?;
        Ok(control)
    }

    fn check(&self) -> Result<(), String> {
        wire::check_cluster_name(&self.cluster)?;
        if self.id.0 == 0 {
            return Err("id 0 is not a metadata server's".into());
        }
        if self.bootstrap && !self.peers.iter().any(|p| p.id == self.id) {
            return Err(format!("MDS#{} is not among the peers of its first quorum", self.id));
        }
        Ok(())
    }
}

/// Makes the directory of a new metadata server, with a foundation if it is of the first quorum of a cluster with a password.
/// Refuses one that holds anything, and says what.
pub fn create(dir: &Path, control: &MdsControl, foundation: Option<&Foundation>) -> Result<(), ControlError> {
    wire::check_cluster_name(&control.cluster).map_err(ControlError::ClusterName)?;
    control.check().map_err(|why| ControlError::Malformed { path: dir.join(FILE), why })?;
    make_ready(dir)?;
    let io = |what, path: PathBuf| move |error| ControlError::Io { what, path, error };
    std::fs::create_dir_all(dir.join("logs")).map_err(io("making", dir.join("logs")))?;
    foundation.map_or(Ok(()), |foundation| write_foundation(dir, foundation))?;
    let path = dir.join(FILE);
    let aside = dir.join("control.json.new");
    let text = serde_json::to_string_pretty(control).expect("a control file always serialises") + "\n";
    // Written aside, synced and renamed: a crash leaves either no server or a whole one.
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&aside)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(io("writing", path.clone()))
}

/// Makes the directory of a new server, if it is not there; refuses one in which none can run.
pub fn make_ready(dir: &Path) -> Result<(), ControlError> {
    check_free(dir)?;
    let io = |what| move |error| ControlError::Io { what, path: dir.into(), error };
    std::fs::create_dir_all(dir).map_err(io("making"))?;
    if shards::host::supports_direct_io(dir).map_err(io("writing to"))? {
        Ok(())
    } else {
        Err(ControlError::NoDirectIo { dir: dir.into() })
    }
}

/// Whether a service may be made in `dir`: it does not exist, or is empty (`lost+found` does not count).
pub fn check_free(dir: &Path) -> Result<(), ControlError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ControlError::Io { what: "listing", path: dir.into(), error }),
    };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| n != "lost+found");
    names.sort();
    if names.iter().any(|n| n == FILE) {
        return Err(taken(dir));
    }
    match names.into_iter().next() {
        Some(entry) => Err(ControlError::NotEmpty { dir: dir.into(), entry }),
        None => Ok(()),
    }
}

/// Says whose directory it is, as far as its control file tells.
fn taken(dir: &Path) -> ControlError {
    let value: serde_json::Value = std::fs::read_to_string(dir.join(FILE))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let (service, id, cluster) = owner(&value);
    ControlError::Taken { dir: dir.into(), service, id, cluster }
}

/// Service, id and cluster that a control file names.
fn owner(value: &serde_json::Value) -> (String, String, String) {
    let field = |name: &str| match value.get(name) {
        Some(serde_json::Value::String(s)) => s.clone(),
        Some(v) if v.is_number() => v.to_string(),
        _ => "?".into(),
    };
    (field("service"), field("id"), field("cluster"))
}

/// Writes what a new cluster with a password begins with, beside the control file of a server of its first quorum: magic,
/// CRC-32 of the rest, rkyv. It holds the cluster's secrets: readable by root only.
fn write_foundation(dir: &Path, foundation: &Foundation) -> Result<(), ControlError> {
    let path = dir.join(FOUNDATION);
    let body = wire::encode!(foundation);
    let bytes = [FOUNDATION_MAGIC.as_slice(), &wire::crc(&body).to_le_bytes(), &[0; 4], &body].concat();
    shards::ring::replace_secret(&path, &bytes).map_err(|error| ControlError::Io {
        what: "writing",
        path,
        error,
    })
}

/// `None` where there is none: in clusters without a password, and in servers that were added later.
pub fn read_foundation(dir: &Path) -> Result<Option<Box<Foundation>>, ControlError> {
    let path = dir.join(FOUNDATION);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ControlError::Io { what: "reading", path, error }),
    };
    let body = bytes.strip_prefix(&FOUNDATION_MAGIC).and_then(|rest| rest.split_at_checked(8));
    let decoded = match body {
        Some((head, body)) if head[..4] == wire::crc(body).to_le_bytes() => wire::decode!(Foundation, body),
        Some(_) => Err("its checksum is wrong".into()),
        None => Err("not a foundation of this version".into()),
    };
    decoded.map(|f| Some(Box::new(f))).map_err(|why| ControlError::Malformed { path, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(cluster: &str) -> MdsControl {
        let peer = MdsPeer::at(MdsId(1), "127.0.0.1:2510".parse().unwrap()).unwrap();
        MdsControl::first_quorum(cluster, "00".repeat(16), MdsId(1), &[peer])
    }

    #[test]
    fn a_directory_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mds");
        create(&at, &card("pcs1"), None).unwrap();
        assert_eq!(MdsControl::load(&at).unwrap(), card("pcs1"));
        let again = create(&at, &card("pcs2"), None).unwrap_err().to_string();
        assert!(again.contains("already belongs to mds 1 of cluster 'pcs1'"), "{again}");
    }

    #[test]
    fn refusals_name_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("stuff"), "x").unwrap();
        assert!(create(dir.path(), &card("pcs1"), None).unwrap_err().to_string().contains("'stuff'"));
        assert!(create(&dir.path().join("a"), &card("p c"), None).unwrap_err().to_string().contains("' '"));
        let missing = MdsControl::load(&dir.path().join("b")).unwrap_err().to_string();
        assert!(missing.contains("not the directory of a metadata server"), "{missing}");
        let at = dir.path().join("c");
        create(&at, &card("pcs1"), None).unwrap();
        let newer = std::fs::read_to_string(at.join(FILE)).unwrap().replace("\"format\": 1", "\"format\": 9");
        std::fs::write(at.join(FILE), newer).unwrap();
        assert!(MdsControl::load(&at).unwrap_err().to_string().contains("format 9"));
        std::fs::write(at.join(FILE), "{").unwrap();
        assert!(MdsControl::load(&at).is_err());
    }

    #[test]
    fn a_foundation_comes_back_or_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        use wire::auth::{Authority, PasswordDigest, PasswordSalt, public_key};
        let dir = tempfile::tempdir().unwrap();
        assert!(read_foundation(dir.path()).unwrap().is_none());
        let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
        let authority = Authority::new([1; 32]);
        let founder = authority.certify("pcs1", wire::NodeId(1), "host", public_key(&[2; 32]));
        let password = PasswordDigest::new("secret", salt).unwrap();
        let foundation = Foundation { cluster: "pcs1".into(), authority, password, founder };
        write_foundation(dir.path(), &foundation).unwrap();
        assert_eq!(*read_foundation(dir.path()).unwrap().unwrap(), foundation);
        let path = dir.path().join(FOUNDATION);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(read_foundation(dir.path()).unwrap_err().to_string().contains("checksum"));
        std::fs::write(&path, "junk").unwrap();
        assert!(read_foundation(dir.path()).is_err());
    }
}
