//! What the state consists of. A copy of [`Data`] costs next to nothing, whatever it holds: that is what a snapshot is written
//! from while the state goes on (`snapshot`).
//!
//! Everything that is iterated has an order of its own, the same on every server. What there may be millions of is packed:
//! 32 bytes for a chunk of up to three replicas, 96 for a file, 40 for a name of up to 23 bytes (perf/mds-figures measures
//! all that is used).

use super::nodes::Membership;
use super::runs::Runs;
use super::table::Table;
use super::{CsRecord, MdsRecord};
use imbl::{OrdMap, OrdSet};
use rkyv::{Archive, Deserialize, Serialize};
use smol_str::SmolStr;
use std::collections::BTreeMap;
use wire::data::MAX_REPLICAS;
use wire::license::SignedLicense;
use wire::mds_api::{Event, FileAttr, FileKind, LeaseMode, MdsReply, ReplicaPolicy, Special};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, LeaseId, MdsId, Role, Sequence};

/// Maps of imbl: B-trees whose copies share their nodes.
#[derive(Clone)]
pub(super) struct Data {
    pub counters: Counters,
    pub inodes: Table<FileId, Inode>,
    /// What is in directories.
    pub names: OrdMap<(FileId, SmolStr), FileId>,
    pub chunks: Table<ChunkId, ChunkRecord>,
    /// Of replicas that left the in-sync set and may return: the last epoch at which they were in sync.
    pub in_sync_until: OrdMap<(ChunkId, CsId), Epoch>,
    /// Of chunks with fewer replicas in sync than their minimum: the first of the epochs up to now at which that was so,
    /// and nobody came in. Nothing was acknowledged at any of them (docs/replication.md, "Nothing was missed").
    pub below_minimum_since: OrdMap<ChunkId, Epoch>,
    pub pending_deletes: OrdSet<(CsId, ChunkId)>,
    /// Chunks of which other files than their own are made too, at the same place (clones.rs).
    pub sharers: OrdSet<(ChunkId, FileId)>,
    /// Chunks that are being made of such, by their ids to be.
    pub forks: OrdMap<ChunkId, Fork>,
    /// Blocks that no replica held any more when they were to be copied: chunk and first block, number of blocks. They may
    /// have been written since.
    pub gone: OrdMap<(ChunkId, u32), u32>,
    pub sessions: OrdMap<ClientId, Session>,
    /// Revoked leases that their holders may still believe in: they keep others away as if they held.
    pub revoking: OrdMap<LeaseId, FileId>,
    pub events: OrdMap<u64, Event>,
    pub small: Small,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Counters {
    pub applied: u64,
    pub next_file: u64,
    pub next_chunk: u64,
    pub next_client: u64,
    pub next_lease: u64,
    pub next_cs: u32,
    pub next_mds: u64,
    pub next_event: u64,
}

/// What there are at most some thousands of.
#[derive(Clone, Default, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Small {
    /// The newest revoked leases, oldest first.
    pub revoked: Vec<(LeaseId, ClientId)>,
    pub cs: BTreeMap<CsId, CsRecord>,
    pub mds: BTreeMap<MdsId, MdsRecord>,
    pub config: BTreeMap<String, String>,
    /// Of clusters with a password.
    pub membership: Option<Membership>,
    pub license: Option<SignedLicense>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Inode {
    pub body: Body,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub policy: ReplicaPolicy,
    pub chunk_bytes: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Where it hangs; 0 once unlinked.
    pub parent: FileId,
    /// The newest write lease ever granted.
    pub last_writer: LeaseId,
    pub extras: Option<Box<Extras>>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) enum Body {
    File { size_bytes: u64, chunks: Runs },
    Directory { entries: u32, subdirectories: u32 },
    Symlink { target: Box<str> },
    Special(Special),
}

/// What few files have.
#[derive(Clone, Default, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Extras {
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub leases: Vec<LeaseRecord>,
}

#[derive(Clone, Copy, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub id: LeaseId,
    pub client: ClientId,
    pub mode: LeaseMode,
    /// Its holder does not write until it has opened the file again ([`super::Op::Settle`]).
    pub settled: bool,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct ChunkRecord {
    pub file: FileId,
    pub index: u32,
    pub epoch: Epoch,
    pub replicas: Replicas,
}

/// A chunk of its own for a file that is made of one that it shares.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Fork {
    pub file: FileId,
    pub index: u32,
    pub from: ChunkId,
    /// Servers that may have made their parts, and those that have: of everything up to this sequence.
    pub asked: Vec<CsId>,
    pub done: Vec<(CsId, Sequence)>,
}

/// Replicas of a chunk: in-sync ones first, then learners, then stale ones. Packed: the role in the upper two bits, the CS
/// below.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) enum Replicas {
    Few { count: u8, packed: [u32; FEW] },
    Many { count: u8, packed: Box<[u32; MAX_REPLICAS]> },
}

/// Extended attribute that Linux keeps a file's capabilities in.
const CAPABILITIES: &str = "security.capability";
const FEW: usize = 3;
const CS_BITS: u32 = 30;
/// Numbers of servers are below this.
pub(super) const MOST_CS: u32 = 1 << CS_BITS;

const _: () = assert!(size_of::<ChunkRecord>() == 32 && size_of::<Inode>() == 104);

impl Replicas {
    pub fn new(replicas: &[(CsId, Role)]) -> Replicas {
        let packed = replicas.iter().map(|(cs, role)| {
            assert!(cs.0 < MOST_CS, "CS#{cs} has too large a number");
            (*role as u32) << CS_BITS | cs.0
        });
        let count = replicas.len() as u8;
        if replicas.len() > FEW {
            assert!(replicas.len() <= MAX_REPLICAS, "{count} replicas");
            let mut many = Box::new([0; MAX_REPLICAS]);
            many.iter_mut().zip(packed).for_each(|(to, from)| *to = from);
            return Replicas::Many { count, packed: many };
        }
        let mut few = [0; FEW];
        few.iter_mut().zip(packed).for_each(|(to, from)| *to = from);
        Replicas::Few { count, packed: few }
    }

    pub fn iter(&self) -> impl Iterator<Item = (CsId, Role)> + '_ {
        let (packed, count) = match self {
            Replicas::Few { count, packed } => (&packed[..], *count),
            Replicas::Many { count, packed } => (&packed[..], *count),
        };
        packed.iter().take(usize::from(count)).map(|one| {
            let role = match one >> CS_BITS {
                0 => Role::InSync,
                1 => Role::Learner,
                _ => Role::Stale,
            };
            (CsId(one & (MOST_CS - 1)), role)
        })
    }
}

#[derive(Clone)]
pub(super) struct Session {
    pub host: String,
    pub mount_point: String,
    pub nonce: u64,
    /// Files this client has leases on.
    pub files: OrdSet<FileId>,
    /// Answers to its last mutations, by request.
    pub answers: OrdMap<u64, Answer>,
}

/// A remembered answer.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) enum Answer {
    Wire(MdsReply),
    /// The maps of these chunks, as they are when they are asked for.
    Maps(Vec<ChunkId>),
}

impl LeaseRecord {
    /// Whether another client can't open the file in this mode beside it.
    pub fn excludes(&self, client: ClientId, mode: LeaseMode) -> bool {
        self.client != client && (mode == LeaseMode::Write || self.mode == LeaseMode::Write)
    }
}

impl Inode {
    pub fn new(body: Body, policy: ReplicaPolicy, chunk_bytes: u32, parent: FileId) -> Inode {
        Inode {
            body,
            mode: 0o755,
            uid: 0,
            gid: 0,
            policy,
            chunk_bytes,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            parent,
            last_writer: LeaseId(0),
            extras: None,
        }
    }

    pub fn leases(&self) -> &[LeaseRecord] {
        self.extras.as_ref().map_or(&[], |extras| &extras.leases)
    }

    pub fn xattr(&self, name: &str) -> Option<&Vec<u8>> {
        self.extras.as_ref().and_then(|extras| extras.xattrs.get(name))
    }

    pub fn xattr_names(&self) -> impl Iterator<Item = &String> {
        self.extras.iter().flat_map(|extras| extras.xattrs.keys())
    }

    pub fn change_extras<T>(&mut self, change: impl FnOnce(&mut Extras) -> T) -> T {
        let mut extras = self.extras.take().unwrap_or_default();
        let result = change(&mut extras);
        self.extras = Some(extras).filter(|e| !e.xattrs.is_empty() || !e.leases.is_empty());
        result
    }

    /// Its ctime is another one, and later, whatever the clock says: clients tell from it whether they know all changes.
    pub fn changed(&mut self, now: i64) {
        self.ctime_ns = now.max(self.ctime_ns.saturating_add(1));
    }

    /// What a file may do beyond its caller's rights ends when somebody changes it: its capabilities and, unless the mode
    /// stays, the set-uid bit, and set-gid where it does not stand for mandatory locks.
    pub fn drop_privileges(&mut self, mode_stays: bool) {
        if self.xattr(CAPABILITIES).is_some() {
            self.change_extras(|extras| extras.xattrs.remove(CAPABILITIES));
        }
        if !mode_stays {
            let group = if self.mode & 0o010 != 0 { 0o2000 } else { 0 };
            self.mode &= !(0o4000 | group);
        }
    }

    pub fn kind(&self) -> FileKind {
        match self.body {
            Body::File { .. } => FileKind::File,
            Body::Directory { .. } => FileKind::Directory,
            Body::Symlink { .. } => FileKind::Symlink,
            Body::Special(special) => FileKind::Special(special),
        }
    }

    pub fn attr(&self, file: FileId) -> FileAttr {
        let (size_bytes, allocated_bytes) = match &self.body {
            Body::File { size_bytes, chunks } => (
                *size_bytes,
                (chunks.len() * u64::from(self.chunk_bytes)).min(size_bytes.next_multiple_of(4096)),
            ),
            Body::Directory { entries, .. } => (u64::from(*entries), 0),
            Body::Symlink { target } => (target.len() as u64, 0),
            Body::Special(_) => (0, 0),
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
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
            links,
            chunk_bytes: self.chunk_bytes,
            replicas: self.policy,
            uid: self.uid,
            gid: self.gid,
        }
    }
}
