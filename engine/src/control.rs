//! The identity card of a chunk server: `DIR/control.json`, written by `make-cs` and replaced by `configure-cs`; and
//! where, according to it, the server's files lie.

use crate::cache::CacheConfig;
use crate::store::StoreConfig;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use wire::CsId;

pub const FILE: &str = "control.json";
/// 2: journals may have a tag, and there may be a cache. Cards of format 1 are read as they are.
pub const FORMAT: u32 = 2;
const OLDEST_FORMAT: u32 = 1;

/// Memory for map pages of all shards together, and for small writes that wait to be written back. With what is in flight
/// a chunk server stays below 1 GB whatever its disk and its journal.
const MAP_CACHE_BYTES: u64 = 192 << 20;
const OVERLAY_BYTES: u64 = 192 << 20;

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
    /// room.row.rack, where it is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
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
    /// Part of the names of the journal files: each place they are moved to has another, so that no step of a move ever
    /// writes over the journal that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheControl>,
}

/// The read cache on SSD.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CacheControl {
    pub dir: PathBuf,
    /// Of each shard.
    pub bytes: u64,
    /// Chosen when the cache is set up: what a file of another cache holds is never taken for this one's.
    pub id: [u8; 16],
}

impl CsControl {
    /// Whether it can be what make-cs wrote.
    fn check(&self) -> Result<(), String> {
        wire::check_cluster_name(&self.cluster)?;
        match self {
            CsControl { shards: 0, .. } => Err("no shards".into()),
            CsControl { tier: 4.., .. } => Err(format!("tier {}", self.tier)),
            _ => Ok(()),
        }
    }

    /// Directory of a shard, in the server's.
    pub fn shard_dir(shard: u16) -> String {
        format!("shard-{shard:03}")
    }

    /// Journal of a shard: in its directory, or an absolute path on an SSD that other servers may share.
    pub fn journal_path(&self, shard: u16) -> String {
        let dir = CsControl::shard_dir(shard);
        let name = match (&self.journal_dir, &self.journal_tag) {
            (None, None) => return format!("{dir}/journal"),
            (None, Some(tag)) => return format!("{dir}/journal-{tag}"),
            (Some(_), None) => format!("cs{}-{dir}.journal", self.id),
            (Some(_), Some(tag)) => format!("{}-cs{}-{dir}-{tag}.journal", self.cluster, self.id),
        };
        let on_ssd = self.journal_dir.as_ref().expect("seen above");
        on_ssd.join(name).to_string_lossy().into_owned()
    }

    /// For the CS table of stat: J, a journal on a device of its own, or D, direct to the disk; C, checksums.
    pub fn flags(&self) -> String {
        if self.journal_dir.is_some() { "JC" } else { "CD" }.into()
    }

    pub fn cache_path(&self, cache: &CacheControl, shard: u16) -> String {
        let tag: String = cache.id[..4].iter().map(|b| format!("{b:02x}")).collect();
        let name = format!("{}-cs{}-{}-{tag}.cache", self.cluster, self.id, CsControl::shard_dir(shard));
        cache.dir.join(name).to_string_lossy().into_owned()
    }

    pub fn store_config(&self, shard: u16) -> StoreConfig {
        let cache = self.cache.as_ref().map(|cache| CacheConfig {
            path: self.cache_path(cache, shard),
            bytes: cache.bytes,
            id: cache.id,
        });
        StoreConfig {
            dir: CsControl::shard_dir(shard),
            journal_path: self.journal_path(shard),
            journal_bytes: self.journal_bytes,
            capacity_bytes: self.capacity_bytes / u64::from(self.shards),
            map_cache_bytes: MAP_CACHE_BYTES / u64::from(self.shards),
            overlay_bytes: OVERLAY_BYTES / u64::from(self.shards),
            cache,
        }
    }
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
    #[error(
        "{path} is damaged ({why}); nothing was changed. Put back a copy of it; without one this server is lost: take it out \
         (rm-cs) and make another in a new directory (make-cs)"
    )]
    Malformed { path: PathBuf, why: String },
    #[error(
        "{path} has format {found}; this program understands {OLDEST_FORMAT} to {FORMAT}: start the version of pstorage-csd that made it, \
         or a newer one"
    )]
    Format { path: PathBuf, found: u64 },
    #[error(
        "{dir} belongs to {service} {id} of cluster '{cluster}', not to a chunk server: start pstorage-{service}d"
    )]
    OtherService { dir: PathBuf, service: String, id: String, cluster: String },
    #[error(
        "a pstorage-csd or configure-cs runs in {dir} (it holds {dir}/lock): stop it first, then repeat this"
    )]
    Locked { dir: PathBuf },
    #[error("{}: {}", path.display(), shards::text::cause(source))]
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
    replace(dir, control)
}

/// Puts another card in place of the one there, in one step. Only the holder of the [`lock`] may.
pub fn replace(dir: &Path, control: &CsControl) -> Result<(), ControlError> {
    let text = serde_json::to_string_pretty(control).expect("a card always serialises");
    let path = dir.join(FILE);
    shards::ring::replace_file(&path, text.as_bytes()).map_err(io_error(&path))
}

/// One process per directory: the server, or what changes it. The lock ends with the process, however it ends.
pub fn lock(dir: &Path) -> Result<Flock<File>, ControlError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(io_error(&path))?;
    let locked = shards::host::lock_within(file, shards::host::LOCK_WITHIN);
    locked.ok_or_else(|| ControlError::Locked { dir: dir.into() })
}

pub fn read(dir: &Path) -> Result<CsControl, ControlError> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ControlError::Missing { dir: dir.into() });
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(ControlError::Malformed { path, why: "not a text file".into() });
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
        Some(found) if (u64::from(OLDEST_FORMAT)..=u64::from(FORMAT)).contains(&found) => {}
        Some(found) => return Err(ControlError::Format { path, found }),
        None => return Err(malformed("no format number".into())),
    }
    let control: CsControl = serde_json::from_value(value).map_err(|e| malformed(e.to_string()))?;
    control.check().map_err(malformed)?;
    Ok(control)
}
