//! What the state answers: replies, views of chunks, and effects for the master to carry out.

use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;
use wire::mds_api::{ChunkMap, ClientNote, MdsReply};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, Grant, LeaseId, MdsId, Replica, Role, Status};

/// Result of one command.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    pub reply: Reply,
    /// To be carried out by the master only; all of it can be derived again from the state after a fail-over
    /// (pending deletions, revoked leases, learners), so a lost effect loses nothing.
    pub effects: Vec<Effect>,
}

/// An answer; maps still lack addresses, which only the master knows.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// Ready to send. `Session` has its timeout already filled in from the configuration.
    Wire(MdsReply),
    /// Chunk maps: becomes `MdsReply::Maps`.
    Maps(Vec<ChunkView>),
    /// One result for each change asked for, in order.
    Sets(Vec<SetResult>),
}

/// Something the master has to tell others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// These leases are dead: tell all CS (`CsCommand::Revoke`) and their clients (`ClientNote::Revoked`).
    RevokeLeases {
        file: FileId,
        leases: Vec<(LeaseId, ClientId)>,
    },
    TellClient {
        client: ClientId,
        note: ClientNote,
    },
    /// New pending deletions of one CS.
    DeleteChunks {
        cs: CsId,
        chunks: Vec<ChunkId>,
    },
    /// Chunk servers have to make their parts of a chunk (`CsCommand::Fork`).
    ForkBegun {
        to: ChunkId,
    },
    /// The chunk's set changed; its primary must hear it (`CsCommand::Repair` when it has learners).
    SetChanged {
        view: ChunkView,
    },
    SessionEnded {
        client: ClientId,
    },
    /// The CS was dropped by the administrator: expel its shards.
    CsDropped {
        cs: CsId,
    },
    /// Files have another policy: chunks may have to move.
    PolicyChanged,
    /// A configuration key has a new value.
    ConfigChanged {
        key: String,
    },
    /// The list of MDS changed: adapt the raft membership.
    MdsChanged {
        id: MdsId,
        removed: bool,
    },
    /// The event log has a new entry with this number.
    Logged {
        event: u64,
    },
}

/// A chunk and its replica set, without addresses.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ChunkView {
    pub chunk: ChunkId,
    pub file: FileId,
    pub index: u32,
    pub epoch: Epoch,
    /// In-sync ones first, the primary in front; then learners, then stale ones.
    pub replicas: Vec<(CsId, Role)>,
    /// Of those that are not in sync and were once: the last epoch at which they were. Those missing here may hold
    /// anything.
    pub in_sync_until: Vec<(CsId, Epoch)>,
    pub min_replicas: u8,
    /// How many in-sync replicas there should be.
    pub normal_replicas: u8,
    /// Several files are made of it: none of them writes to it.
    pub is_shared: bool,
}

impl ChunkView {
    pub fn primary(&self) -> Option<CsId> {
        self.in_sync().next()
    }

    pub fn in_sync(&self) -> impl Iterator<Item = CsId> + '_ {
        self.with_role(Role::InSync)
    }

    pub fn with_role(&self, role: Role) -> impl Iterator<Item = CsId> + '_ {
        self.replicas.iter().filter(move |r| r.1 == role).map(|r| r.0)
    }

    pub fn role_of(&self, cs: CsId) -> Option<Role> {
        self.replicas.iter().find(|r| r.0 == cs).map(|r| r.1)
    }

    /// With the addresses of the shards that own the chunk on each CS.
    pub fn to_grant(&self, addr_of: &dyn Fn(CsId, ChunkId) -> SocketAddr) -> Grant {
        let replica = |&(cs, role): &(CsId, Role)| Replica { cs, addr: addr_of(cs, self.chunk), role };
        Grant { replicas: self.replicas.iter().map(replica).collect(), min_replicas: self.min_replicas }
    }

    pub fn to_map(&self, addr_of: &dyn Fn(CsId, ChunkId) -> SocketAddr) -> ChunkMap {
        ChunkMap {
            index: self.index,
            chunk: self.chunk,
            epoch: self.epoch,
            grant: self.to_grant(addr_of),
            file: self.file,
            is_shared: self.is_shared,
        }
    }
}

/// What became of a [`super::SetChange`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetOutcome {
    /// Done; the epoch grew by one.
    Changed,
    /// It was so already; the epoch stays.
    Unchanged,
    /// The chunk had another epoch than the asker thought.
    OtherEpoch,
    /// No in-sync replica would remain: wait for one of them.
    NoneWouldRemain,
    /// Fewer than the minimum of in-sync replicas would remain: wait for the replica, or force.
    BelowMinimum,
    /// The CS is unknown or dropped, is not a replica, or holds another role.
    WrongReplica,
    /// The CS has yet to delete an older copy of this chunk: try again when it has.
    DeletePending,
    /// The set is full (15).
    Full,
    /// The chunk does not exist (any more).
    Gone,
}

/// `set` is what holds now, whatever the outcome; `None` when the chunk is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetResult {
    pub chunk: ChunkId,
    pub outcome: SetOutcome,
    pub set: Option<ChunkView>,
}

/// A request that can't be done: why, for programs and for people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{status}: {detail}")]
pub struct Refusal {
    pub status: Status,
    pub detail: String,
}

pub(super) fn refuse<T>(status: Status, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, detail: detail.into() })
}

/// A refusal that is about a name in a directory.
pub(super) fn name_refusal(status: Status, name: &str) -> Refusal {
    Refusal { status, detail: format!("{status}: '{name}'") }
}

pub(super) fn refuse_name<T>(status: Status, name: &str) -> Result<T, Refusal> {
    Err(name_refusal(status, name))
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        Reply::Wire(MdsReply::Failed { status: refusal.status, detail: refusal.detail, master: None })
    }
}

impl Reply {
    /// The reply with addresses. `Sets` (never an answer to a client by itself) becomes the maps of the sets.
    pub fn into_wire(self, addr_of: &dyn Fn(CsId, ChunkId) -> SocketAddr) -> MdsReply {
        let maps = |views: Vec<ChunkView>| MdsReply::Maps {
            chunks: views.iter().map(|v| v.to_map(addr_of)).collect(),
        };
        match self {
            Reply::Wire(reply) => reply,
            Reply::Maps(views) => maps(views),
            Reply::Sets(results) => maps(results.into_iter().filter_map(|r| r.set).collect()),
        }
    }
}
