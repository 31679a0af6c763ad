//! Commands: everything that can change the state, as they stand in the raft log.
//!
//! Invariants:
//! - a command holds all that decides its outcome besides the state itself: the time (for mtimes and the event
//!   log, never for decisions) and random choices (placements) are put in by the master before it proposes;
//! - the encoding is one version byte, then rkyv. Log entries outlive the program that wrote them, so variants and
//!   fields are only ever added at the end, and anything else raises [`COMMAND_VERSION`]; golden bytes in the tests
//!   pin the encoding.
//!
//! The operations mirror the wire's requests but are types of their own, so that a change of protocol does not
//! silently change the log.

use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;
use wire::auth::{Foundation, PasswordDigest};
use wire::license::SignedLicense;
use wire::mds_api::{AttrChange, FileKind, KeyStep, LeaseMode, MdsRequest, NewNode, ReleasedLease, Severity};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, LeaseId, MdsId, NodeId, Sequence};

/// Version of the encoding that this program writes.
pub const COMMAND_VERSION: u8 = 1;

/// One entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Command {
    /// A mutation asked for from outside. With `client` 0 (tools without a session) or `request` 0 nothing is
    /// remembered; otherwise (client, request) is executed exactly once and repeats get the first answer.
    Client { client: ClientId, request: u64, time_ms: u64, op: Op },
    /// The metadata service's own.
    Internal { time_ms: u64, op: Internal },
}

/// Mutations of clients and administrators.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Op {
    OpenSession {
        host: String,
        mount_point: String,
        nonce: u64,
    },
    CloseSession,
    SetAttr {
        file: FileId,
        change: AttrChange,
    },
    Create {
        parent: FileId,
        name: String,
        kind: FileKind,
        mode: u32,
        uid: u32,
        gid: u32,
        symlink_target: String,
        exclusive: bool,
        open: bool,
        /// Where the first chunk of a new file that is opened shall lie; empty: it gets none yet.
        first: Vec<CsId>,
    },
    Unlink {
        parent: FileId,
        name: String,
        directory: bool,
    },
    Rename {
        from_parent: FileId,
        from_name: String,
        to_parent: FileId,
        to_name: String,
        no_replace: bool,
        exchange: bool,
    },
    SetXattr {
        file: FileId,
        name: String,
        value: Vec<u8>,
        create_only: bool,
        replace_only: bool,
    },
    RemoveXattr {
        file: FileId,
        name: String,
    },
    Open {
        file: FileId,
        mode: LeaseMode,
        reclaim: LeaseId,
    },
    Release {
        leases: Vec<ReleasedLease>,
    },
    Extend {
        file: FileId,
        lease: LeaseId,
        size_bytes: u64,
        mtime_ns: i64,
    },
    /// Makes sure that chunks `first .. first + count` exist, and begins forks of those that are shared. `placements` names the replicas of those that were
    /// missing when the master looked ([`super::State::missing_chunks`]), first the primary.
    Allocate {
        file: FileId,
        lease: LeaseId,
        first: u32,
        count: u32,
        placements: Vec<Placement>,
    },
    NewCs {
        host_id: [u8; 16],
        host: String,
    },
    SetPolicy {
        file: FileId,
        name: String,
        value: String,
        recursive: bool,
    },
    AddMds {
        addr: SocketAddr,
        raft_addr: SocketAddr,
    },
    RemoveMds {
        id: MdsId,
    },
    Revoke {
        file: FileId,
    },
    SetConfig {
        key: String,
        value: String,
    },
    // What is long stands in boxes: the length of the longest variant is that of all.
    AddNode(Box<NewNode>),
    SetPassword(Box<PasswordDigest>),
    ChangeKey(KeyStep),
    TakeOut {
        node: NodeId,
    },
    /// The master knows the maker of the licence.
    LoadLicense {
        license: Box<SignedLicense>,
        renew: bool,
    },
    /// Makes a file that shares the chunks of another one.
    Clone {
        file: FileId,
        parent: FileId,
        name: String,
    },
    /// Its holder does not write until it has opened the file again.
    Settle {
        lease: ReleasedLease,
    },
}

/// Where one new chunk shall lie.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Placement {
    pub index: u32,
    pub replicas: Vec<CsId>,
}

/// What the metadata service does of its own accord or for chunk servers.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Internal {
    /// Nothing; a new master proposes it to commit an entry of its own term.
    Noop,
    /// A CS came, with what it says of itself. Propose it only when [`super::State::cs`] differs.
    RegisterCs { cs: CsId, host_id: [u8; 16], host: String, location: String, tier: u8, shards: u16 },
    /// A CS leaves the cluster. Refused while it holds in-sync replicas, or with `force` while it holds the only one of a
    /// chunk.
    DropCs { cs: CsId, force: bool },
    /// Changes of replica sets (client's Refresh, CS's Suspect and Joined, repair), each by itself.
    ChangeSets { changes: Vec<SetChange> },
    /// A CS has carried out deletions.
    Deleted { cs: CsId, chunks: Vec<ChunkId> },
    /// A CS holds chunks it should not (see [`super::State::strays`]): they become pending deletions.
    DeleteStrays { cs: CsId, chunks: Vec<ChunkId> },
    /// Client sessions that were silent too long: their leases are revoked.
    ExpireClients { clients: Vec<ClientId> },
    /// Something for the event log that only the master knows.
    Event { system: String, severity: Severity, message: String },
    /// An MDS and its addresses (the first one at `make-mds -I`, or one that moved).
    SetMds { id: MdsId, addr: SocketAddr, raft_addr: SocketAddr },
    /// The administrator removes a CS that holds data, or thinks better of it.
    DrainCs { cs: CsId, draining: bool },
    /// The last replica in sync of a chunk, on this CS, can't read these blocks: no replica holds them any more.
    BlocksGone { cs: CsId, chunk: ChunkId, first_block: u32, blocks: u32 },
    /// Leases that were revoked so long ago that their holders can't believe in them any more.
    EndRevoked { leases: Vec<LeaseId> },
    /// What a new cluster with a password begins with.
    Found(Box<Foundation>),
    /// Nodes have shown that they have their certificates of this generation of the cluster's keys.
    Renewed { generation: u32, nodes: Vec<NodeId> },
    /// A CS has made its part of a fork, up to this sequence, or can't make it.
    Forked { cs: CsId, to: ChunkId, sequence: Option<Sequence> },
}

/// One change of a replica set, carried out only while the chunk is at `epoch`.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct SetChange {
    pub chunk: ChunkId,
    /// The epoch the asker saw. If the chunk has moved on, nothing changes and the asker gets the set of now.
    pub epoch: Epoch,
    pub action: SetAction,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum SetAction {
    /// These can't be reached: in-sync replicas and learners among them become Stale. Refused when no in-sync
    /// replica would remain, and when fewer than the minimum would, except with `force` (the CS is offline, or gone
    /// while another can take its place) or when the primary is among them (else not even reads or a repair could go on).
    Drop { cs: Vec<CsId>, force: bool },
    /// A stale replica or a new CS is to be filled by the primary.
    AddLearner { cs: CsId },
    /// The primary says that the learner has everything.
    Joined { cs: CsId },
    /// The replica leaves the set and its data is deleted. Refused for the last in-sync one, and below the
    /// minimum without `force`.
    Remove { cs: CsId, force: bool },
    /// The copy is bad: the replica becomes Stale, and nothing it holds is relied on when it returns. Refused when no
    /// in-sync replica would remain, and when fewer than the minimum would, except with `force` (its own server says so:
    /// writes wait, and the others fill it again) or when it is the primary.
    Damaged { cs: CsId, force: bool },
}

impl Command {
    pub fn encode(&self) -> Vec<u8> {
        let body = wire::encode!(self);
        let mut bytes = Vec::with_capacity(1 + body.len());
        bytes.push(COMMAND_VERSION);
        bytes.extend_from_slice(&body);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Command, String> {
        match bytes.split_first() {
            None => Err("empty command".into()),
            Some((&COMMAND_VERSION, body)) => wire::decode!(Command, body),
            Some((&version, _)) => Err(format!(
                "command version {version}; this program understands {COMMAND_VERSION}: start a newer pstorage-mdsd"
            )),
        }
    }

    /// A command of the service itself.
    pub fn internal(time_ms: u64, op: Internal) -> Command {
        Command::Internal { time_ms, op }
    }

    /// Changes of replica sets.
    pub fn change_sets(time_ms: u64, changes: Vec<SetChange>) -> Command {
        Command::internal(time_ms, Internal::ChangeSets { changes })
    }

    /// The command for a request that changes the state; `None` for requests that only read, and for Refresh,
    /// ReportBadReplica ([`SetChange`]) and Allocate (needs placements), which the master builds itself.
    pub fn from_request(request_id: u64, time_ms: u64, request: &MdsRequest) -> Option<Command> {
        let (client, op) = Op::from_request(request)?;
        Some(Command::Client { client, request: request_id, time_ms, op })
    }
}

impl Op {
    /// The session and the operation of a request that changes the state.
    pub fn from_request(request: &MdsRequest) -> Option<(ClientId, Op)> {
        use MdsRequest as R;
        let nobody = ClientId(0);
        Some(match request.clone() {
            R::OpenSession { host, mount_point, nonce } => {
                (nobody, Op::OpenSession { host, mount_point, nonce })
            }
            R::CloseSession { client } => (client, Op::CloseSession),
            R::SetAttr { client, file, change } => (client, Op::SetAttr { file, change }),
            R::Create { client, parent, name, kind, mode, uid, gid, symlink_target, exclusive, open } => {
                let first = Vec::new();
                let op =
                    Op::Create { parent, name, kind, mode, uid, gid, symlink_target, exclusive, open, first };
                (client, op)
            }
            R::Clone { client, file, parent, name } => (client, Op::Clone { file, parent, name }),
            R::Unlink { client, parent, name, directory } => (client, Op::Unlink { parent, name, directory }),
            R::Rename { client, from_parent, from_name, to_parent, to_name, no_replace, exchange } => {
                (client, Op::Rename { from_parent, from_name, to_parent, to_name, no_replace, exchange })
            }
            R::SetXattr { client, file, name, value, create_only, replace_only } => {
                (client, Op::SetXattr { file, name, value, create_only, replace_only })
            }
            R::RemoveXattr { client, file, name } => (client, Op::RemoveXattr { file, name }),
            R::Open { client, file, mode, reclaim } => (client, Op::Open { file, mode, reclaim }),
            R::Settle { client, lease } => (client, Op::Settle { lease }),
            R::Release { client, leases } => (client, Op::Release { leases }),
            R::Extend { client, file, lease, size_bytes, mtime_ns } => {
                (client, Op::Extend { file, lease, size_bytes, mtime_ns })
            }
            R::NewCs { host_id, host } => (nobody, Op::NewCs { host_id, host }),
            R::SetPolicy { file, name, value, recursive } => {
                (nobody, Op::SetPolicy { file, name, value, recursive })
            }
            R::AddMds { addr, raft_addr } => (nobody, Op::AddMds { addr, raft_addr }),
            R::RemoveMds { id } => (nobody, Op::RemoveMds { id }),
            R::Revoke { file } => (nobody, Op::Revoke { file }),
            R::SetConfig { key, value } => (nobody, Op::SetConfig { key, value }),
            R::AddNode(node) => (nobody, Op::AddNode(node)),
            R::SetPassword(digest) => (nobody, Op::SetPassword(digest)),
            R::ChangeKey(step) => (nobody, Op::ChangeKey(step)),
            R::TakeOut { node } => (nobody, Op::TakeOut { node }),
            _ => return None,
        })
    }
}
