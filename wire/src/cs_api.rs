//! Talk between a chunk server's shards and the MDS (rkyv, validated before use).
//!
//! Each shard keeps its own session with the master MDS: shards share nothing, not even this.

use crate::auth::Certificate;
use crate::{ChunkId, CsId, Epoch, Grant, LeaseId, NodeId, Sequence, ShardIndex, Status};
use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ChunkReport {
    pub chunk: ChunkId,
    pub epoch: Epoch,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum CsRequest {
    /// First message of a shard after the handshake. `incarnation` grows with every start of the process.
    Register {
        cs: CsId,
        shard: ShardIndex,
        shards: u16,
        /// Where clients and other CS reach this shard.
        addr: SocketAddr,
        incarnation: u64,
        host_id: [u8; 16],
        host: String,
        /// room.row.rack, or empty.
        location: String,
        tier: u8,
        space: Space,
        flags: String,
    },
    /// The chunks this shard holds, in pages; `last` ends the list. The MDS answers each page with Deleted
    /// commands for chunks that no longer exist.
    Report { chunks: Vec<ChunkReport>, last: bool },
    /// At least once a second. Answered by Done.
    /// `generation`: of the cluster's keys, as far as this shard knows them.
    Heartbeat { space: Space, load: Load, generation: u32 },
    /// As primary: these replicas can't be reached or failed; write on without them. Answered by Sets.
    Suspect { chunks: Vec<ChunkReport>, cs: Vec<CsId>, reason: String },
    /// Our own copy of these chunks is damaged: others must lead, and it must be copied anew. Answered by Sets, unchanged
    /// where no other replica could take over.
    Damaged { chunks: Vec<ChunkReport>, reason: String },
    /// As primary: the learner has everything. Answered by Sets with it in sync.
    Joined { chunk: ChunkId, epoch: Epoch, cs: CsId },
    /// As primary of a chunk at this epoch: is this still the set? Answered by Sets.
    AskSet { chunk: ChunkId },
    /// Commands to delete were carried out.
    Deleted { chunks: Vec<ChunkId> },
    /// As primary of these chunks: writes on this replica (which may be our own) have taken so many microseconds, on average,
    /// where the others took so many, for a while. Answered by Sets, without it where it can be spared.
    Slow { chunks: Vec<ChunkReport>, cs: CsId, takes_us: u64, others_us: u64 },
    /// Something an administrator should see in the event log.
    Event { severity: crate::mds_api::Severity, message: String },
    /// As primary and the only replica in sync: these blocks can't be read here, so they are gone. From now on all replicas
    /// know them as such, until they are written anew.
    Gone { chunk: ChunkId, first_block: u32, blocks: u32 },
    /// The part of a fork that was asked for is there, made of a replica of which everything up to this sequence, and nothing
    /// else, is known to be on all of them; or it can't be made (`None`).
    Forked { to: ChunkId, sequence: Option<Sequence> },
    /// As the only replica in sync: a copy is needed of blocks that can't be read here. May they be given up? Answered by Done, or Failed while
    /// a replica may come back that has them.
    MayGiveUp { chunk: ChunkId, epoch: Epoch },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub chunks: u64,
}

/// How long something took within the last 20 s; zeros when nothing ended in that time.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct LatencyStat {
    pub operations: u32,
    pub mean_us: u32,
    pub max_us: u32,
}

impl LatencyStat {
    /// Of both together.
    pub fn with(self, other: LatencyStat) -> LatencyStat {
        let sum = |s: LatencyStat| u64::from(s.mean_us) * u64::from(s.operations);
        let operations = self.operations.saturating_add(other.operations);
        let mean_us = (sum(self) + sum(other)).checked_div(operations.into()).unwrap_or(0) as u32;
        LatencyStat { operations, mean_us, max_us: self.max_us.max(other.max_us) }
    }
}

/// Counters since the start of the shard.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Load {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Reads and writes of the store for clients and primaries, from their begin until they are on stable storage here.
    pub io_latency: LatencyStat,
    /// Requests of clients, from their arrival to the answer: with what secondaries take.
    pub request_latency: LatencyStat,
    /// Percent of the last 20 s in which the disk was waited for.
    pub io_wait_percent: u32,
    pub queue_depth: u32,
    pub journal_used_bytes: u64,
    pub journal_total_bytes: u64,
    pub cpu_us: u64,
    /// Scrub: bytes verified in this pass and bytes there are, passes ended, damaged places found since the start of the
    /// process.
    pub scrubbed_bytes: u64,
    pub scrub_total_bytes: u64,
    pub scrub_passes: u64,
    pub scrub_damaged: u64,
    /// Read cache: reads of a unit of 64 KiB (or part of one) it answered and did not, what it holds, its size.
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cached_bytes: u64,
    pub cache_total_bytes: u64,
    /// As primary: returned replicas that were sent what they lacked, replicas that were sent everything (both counted when
    /// they are begun), and the bytes.
    pub catch_ups: u64,
    pub catch_up_bytes: u64,
    pub full_copies: u64,
    pub full_copy_bytes: u64,
}

/// Answer to the ShardStat frame.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct ShardStat {
    pub cs: CsId,
    pub shard: ShardIndex,
    pub load: Load,
    pub chunks: u64,
    pub active_primaries: u64,
    pub reconciliations: u64,
    pub catch_ups: u64,
    pub full_copies: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ChunkSet {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub grant: Grant,
    /// Of learners and stale replicas that may have all that was acknowledged then: the last epoch at which they were in
    /// sync. Those that are missing here may hold anything.
    pub in_sync_until: Vec<(CsId, Epoch)>,
    /// Set while fewer are in sync than the minimum: at this epoch and later nothing was acknowledged. Those above that were
    /// in sync until the epoch before, or longer, have all that ever was.
    pub below_minimum_since: Option<Epoch>,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum CsReply {
    Done,
    /// To a heartbeat: settings of the cluster that concern chunk servers.
    Settings {
        /// Length of a scrub pass; 0 = off.
        scrub_period_s: u64,
        /// What all shards of a chunk server together may copy to learners; 0 = no limit.
        copy_bytes_per_s: u64,
        /// Connections are to be encrypted.
        encrypt: bool,
        /// All metadata servers of the cluster.
        mds: Vec<SocketAddr>,
        /// A client that is silent for so long loses its leases.
        lease_timeout_ms: u32,
        /// Nodes that belong to the cluster no more: they are refused.
        taken_out: Vec<NodeId>,
        /// The node's own of a newer generation than it knows.
        certificate: Option<Box<Certificate>>,
    },
    Failed {
        status: Status,
        detail: String,
        master: Option<SocketAddr>,
    },
    /// Registered; leases with these ids are dead and their writes must be refused.
    Registered {
        heartbeat_ms: u32,
        revoked: Vec<LeaseId>,
    },
    /// Replica sets that hold now. A chunk that is missing here does not exist any more.
    Sets {
        sets: Vec<ChunkSet>,
    },
}

/// MDS to CS shard, unasked.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum CsCommand {
    /// To the primary: fill the learners of this set, then report Joined for each.
    Repair {
        set: ChunkSet,
    },
    /// Drop these chunks, whatever their epoch.
    Delete {
        chunks: Vec<ChunkId>,
    },
    Revoke {
        leases: Vec<LeaseId>,
    },
    /// Make chunk `to` of your replica of this one, in sync with the others, as soon as nothing is under way there. Answered
    /// by Forked.
    Fork {
        set: ChunkSet,
        to: ChunkId,
    },
    /// The session is over (this CS was dropped, or another process with its id has registered).
    Expelled {
        why: String,
    },
}
