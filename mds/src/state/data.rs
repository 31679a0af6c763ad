//! What the state consists of: plain owned data, so that a snapshot is this and nothing else.
//!
//! Everything that is iterated stands in B-trees: the order is the same on every server.

use super::answer::ChunkView;
use super::nodes::Membership;
use super::{CsRecord, MdsRecord};
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use wire::mds_api::{Event, FileAttr, FileKind, LeaseMode, MdsReply, ReplicaPolicy};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, LeaseId, MdsId, Role};

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Data {
    pub applied: u64,
    pub next_file: u64,
    pub next_chunk: u64,
    pub next_client: u64,
    pub next_lease: u64,
    pub next_cs: u32,
    pub next_mds: u64,
    pub next_event: u64,
    pub inodes: BTreeMap<FileId, Inode>,
    pub chunks: BTreeMap<ChunkId, ChunkRecord>,
    /// Of replicas that left the in-sync set and may return: the last epoch at which they were in sync.
    pub in_sync_until: BTreeMap<ChunkId, BTreeMap<CsId, Epoch>>,
    pub pending_deletes: BTreeMap<CsId, BTreeSet<ChunkId>>,
    /// Blocks that no replica held any more when they were to be copied: first block and number. They may have been written
    /// since.
    pub gone: BTreeMap<ChunkId, BTreeMap<u32, u32>>,
    pub sessions: BTreeMap<ClientId, Session>,
    /// The newest revoked leases, oldest first.
    pub revoked: Vec<(LeaseId, ClientId)>,
    /// Revoked leases that their holders may still believe in: they keep others away as if they held.
    pub revoking: BTreeMap<LeaseId, FileId>,
    pub cs: BTreeMap<CsId, CsRecord>,
    pub mds: BTreeMap<MdsId, MdsRecord>,
    pub events: BTreeMap<u64, Event>,
    pub config: BTreeMap<String, String>,
}

/// What came to the state after the layout of [`Data`] was fixed: absent in older snapshots.
#[derive(Clone, Default, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Later {
    /// Of chunks with fewer replicas in sync than their minimum: the first of the epochs up to now at which that was so,
    /// and nobody came in. Nothing was acknowledged at any of them (docs/replication.md, "Nothing was missed").
    pub below_minimum_since: BTreeMap<ChunkId, Epoch>,
    /// Of clusters with a password.
    pub membership: Option<Membership>,
}

/// [`Later`] as `PSMDSTA4` had it.
#[derive(Clone, Default, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Later4 {
    pub below_minimum_since: BTreeMap<ChunkId, Epoch>,
}

impl From<Later4> for Later {
    fn from(old: Later4) -> Later {
        Later { below_minimum_since: old.below_minimum_since, membership: None }
    }
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Inode {
    pub body: Body,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ms: u64,
    pub ctime_ms: u64,
    pub policy: ReplicaPolicy,
    pub chunk_bytes: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Where it hangs; 0 once unlinked.
    pub parent: FileId,
    pub leases: Vec<LeaseRecord>,
    /// The newest write lease ever granted.
    pub last_writer: LeaseId,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) enum Body {
    File { size_bytes: u64, chunks: BTreeMap<u32, ChunkId> },
    Directory { entries: BTreeMap<String, FileId>, subdirectories: u32 },
    Symlink { target: String },
}

#[derive(Clone, Copy, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub id: LeaseId,
    pub client: ClientId,
    pub mode: LeaseMode,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct ChunkRecord {
    pub file: FileId,
    pub index: u32,
    pub epoch: Epoch,
    /// In-sync ones first, then learners, then stale ones.
    pub replicas: Vec<(CsId, Role)>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Session {
    pub host: String,
    pub mount_point: String,
    pub nonce: u64,
    /// Files this client has leases on.
    pub files: BTreeSet<FileId>,
    /// Answers to its last mutations, by request.
    pub answers: BTreeMap<u64, Answer>,
}

/// A remembered answer.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) enum Answer {
    Wire(MdsReply),
    Maps(Vec<ChunkView>),
}

impl LeaseRecord {
    /// Whether another client can't open the file in this mode beside it.
    pub fn excludes(&self, client: ClientId, mode: LeaseMode) -> bool {
        self.client != client && (mode == LeaseMode::Write || self.mode == LeaseMode::Write)
    }
}

impl Inode {
    pub fn kind(&self) -> FileKind {
        match self.body {
            Body::File { .. } => FileKind::File,
            Body::Directory { .. } => FileKind::Directory,
            Body::Symlink { .. } => FileKind::Symlink,
        }
    }

    pub fn attr(&self, file: FileId) -> FileAttr {
        let (size_bytes, allocated_bytes) = match &self.body {
            Body::File { size_bytes, chunks } => (
                *size_bytes,
                (chunks.len() as u64 * u64::from(self.chunk_bytes)).min(size_bytes.next_multiple_of(4096)),
            ),
            Body::Directory { entries, .. } => (entries.len() as u64, 0),
            Body::Symlink { target } => (target.len() as u64, 0),
        };
        let links = match &self.body {
            Body::Directory { subdirectories, .. } => 2 + subdirectories,
            _ => u32::from(self.parent != FileId(0)),
        };
        FileAttr {
            file,
            kind: self.kind(),
            mode: self.mode,
            size_bytes,
            allocated_bytes,
            mtime_ms: self.mtime_ms,
            ctime_ms: self.ctime_ms,
            links,
            chunk_bytes: self.chunk_bytes,
            replicas: self.policy,
            uid: self.uid,
            gid: self.gid,
        }
    }
}
