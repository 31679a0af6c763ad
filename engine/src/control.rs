//! The identity card of a chunk server: `DIR/control.json`, written once by `make-cs`.

use serde::{Deserialize, Serialize};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use wire::CsId;

pub const FILE: &str = "control.json";
pub const FORMAT: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CsControl {
    pub format: u32,
    /// Says "cs", so that a person or a program sees what the directory is.
    pub service: String,
    pub cluster: String,
    pub id: CsId,
    pub host_id: [u8; 16],
    pub host: String,
    pub tier: u8,
    /// Fixed for the life of the chunk server: chunks are spread by it.
    pub shards: u16,
    /// Address to listen on.
    pub ip: IpAddr,
    /// Space for chunks of all shards together.
    pub capacity_bytes: u64,
    /// Directory of the journals; the chunk server's own when none was given.
    pub journal_dir: Option<PathBuf>,
    /// Of each shard.
    pub journal_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{dir} already belongs to {service} {id} of cluster '{cluster}': choose an empty directory")]
    Taken { dir: PathBuf, service: String, id: String, cluster: String },
    #[error("{dir} is not empty (it holds '{entry}'): choose an empty directory")]
    NotEmpty { dir: PathBuf, entry: String },
    #[error(
        "{dir}: its file system does not support direct I/O (O_DIRECT), which chunk servers need; use ext4 or XFS on a \
         disk"
    )]
    NoDirectIo { dir: PathBuf },
    #[error(
        "{dir} has no {FILE}: it is not the directory of a chunk server (make one with 'pstorage -c CLUSTER make-cs')"
    )]
    Missing { dir: PathBuf },
    #[error("{path}: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error(
        "{path} has format {found}; this program understands {FORMAT}: start the version of pstorage-csd that made it, \
         or a newer one"
    )]
    Format { path: PathBuf, found: u64 },
    #[error(
        "{dir} belongs to {service} {id} of cluster '{cluster}', not to a chunk server: start pstorage-{service}d"
    )]
    OtherService { dir: PathBuf, service: String, id: String, cluster: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ControlError + '_ {
    move |source| ControlError::Io { path: path.into(), source }
}

/// Whether `dir` can become a chunk server's. Makes it if it isn't there.
pub fn check_new(dir: &Path) -> Result<(), ControlError> {
    std::fs::create_dir_all(dir).map_err(io_error(dir))?;
    if let Ok(text) = std::fs::read_to_string(dir.join(FILE))
        && let Ok(card) = serde_json::from_str::<serde_json::Value>(&text)
    {
        let (service, id, cluster) = owner(&card);
        return Err(ControlError::Taken { dir: dir.into(), service, id, cluster });
    }
    for entry in std::fs::read_dir(dir).map_err(io_error(dir))? {
        let name = entry.map_err(io_error(dir))?.file_name().to_string_lossy().into_owned();
        // A fresh file system and the service's log directory don't count.
        if name != "lost+found" && name != "logs" {
            return Err(ControlError::NotEmpty { dir: dir.into(), entry: name });
        }
    }
    if shards::host::supports_direct_io(dir).map_err(io_error(dir))? {
        Ok(())
    } else {
        Err(ControlError::NoDirectIo { dir: dir.into() })
    }
}

/// Service, id and cluster that a card names.
fn owner(card: &serde_json::Value) -> (String, String, String) {
    let field = |name: &str| card[name].as_str().map_or_else(|| card[name].to_string(), str::to_string);
    (field("service"), field("id"), field("cluster"))
}

/// Makes the directory of a new chunk server.
pub fn create(dir: &Path, control: &CsControl) -> Result<(), ControlError> {
    check_new(dir)?;
    let text = serde_json::to_string_pretty(control).expect("a card always serialises");
    let path = dir.join(FILE);
    shards::ring::replace_file(&path, text.as_bytes()).map_err(io_error(&path))
}

pub fn read(dir: &Path) -> Result<CsControl, ControlError> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ControlError::Missing { dir: dir.into() });
        }
        Err(e) => return Err(io_error(&path)(e)),
    };
    let malformed = |why: String| ControlError::Malformed { path: path.clone(), why };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
    if value["service"] != "cs" {
        let (service, id, cluster) = owner(&value);
        return Err(ControlError::OtherService { dir: dir.into(), service, id, cluster });
    }
    match value["format"].as_u64() {
        Some(found) if found == u64::from(FORMAT) => {}
        Some(found) => return Err(ControlError::Format { path, found }),
        None => return Err(malformed("no format number".into())),
    }
    serde_json::from_value(value).map_err(|e| malformed(e.to_string()))
}
