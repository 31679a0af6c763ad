//! Requests of clients and tools to the MDS, and its replies (rkyv, validated before use).
//!
//! Mutating requests are executed exactly once: the frame's request id, unique and growing within a client
//! session, names the operation; the replicated state remembers the last replies of each session, so a request
//! repeated after a fail-over gets the first answer again.

use crate::auth::{Authority, Certificate, PasswordDigest};
use crate::cs_api::LatencyStat;
use crate::license::{LicenseStatus, SignedLicense};
use crate::{ChunkId, ClientId, CsId, Epoch, FileId, Grant, LeaseId, MdsId, NodeId, Status};
use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Special(Special),
}

/// What the cluster keeps the name and attributes of, and each host's kernel makes something of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Special {
    Fifo,
    Socket,
    /// `device`: major and minor number as the kernel packs them into 32 bits.
    CharacterDevice {
        device: u32,
    },
    BlockDevice {
        device: u32,
    },
}

/// Attributes as `stat` shows them. Times are nanoseconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct FileAttr {
    pub file: FileId,
    pub kind: FileKind,
    pub mode: u32,
    pub size_bytes: u64,
    /// Chunks that exist times chunk size is an upper bound; thin space is known to the CS only.
    pub allocated_bytes: u64,
    /// When it was made, or as it was set since: reading does not change it.
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Directories: number of subdirectories + 2; else 1 (0 once unlinked and still open).
    pub links: u32,
    pub chunk_bytes: u32,
    pub replicas: ReplicaPolicy,
    pub uid: u32,
    pub gid: u32,
}

impl FileAttr {
    /// Of a file of which no more is known.
    pub fn unknown(file: FileId, kind: FileKind) -> FileAttr {
        FileAttr {
            file,
            kind,
            mode: 0,
            size_bytes: 0,
            allocated_bytes: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            links: 1,
            chunk_bytes: crate::DEFAULT_CHUNK_BYTES,
            replicas: ReplicaPolicy { normal: 1, minimum: 1, tier: 0, domain: FailureDomain::Host },
            uid: 0,
            gid: 0,
        }
    }
}

#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct ReplicaPolicy {
    pub normal: u8,
    pub minimum: u8,
    pub tier: u8,
    pub domain: FailureDomain,
}

#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum FailureDomain {
    Disk,
    Host,
    Rack,
    Row,
    Room,
}

/// Fields to change; `None` stays. A smaller `size_bytes` drops the chunks behind it; the client has zeroed
/// the rest of the last block before.
#[derive(Clone, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct AttrChange {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    /// Set-uid and set-gid bits, unless `mode` gives them, and capabilities go. (Not those of directories.)
    pub drops_privileges: bool,
    pub atime_ns: Option<i64>,
    pub mtime_ns: Option<i64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct DirEntry {
    pub name: String,
    pub attr: FileAttr,
}

/// Where one chunk of a file lies.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ChunkMap {
    /// Position of the chunk in the file, in chunks.
    pub index: u32,
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub grant: Grant,
    /// The file that is made of it.
    pub file: FileId,
    /// Other files are made of it too: who is to write asks for one of its own (Allocate).
    pub is_shared: bool,
}

impl ChunkMap {
    /// Whether the holder of a file's lease may write to the chunk: no other file is made of it.
    pub fn belongs_to(&self, file: FileId) -> bool {
        self.file == file && !self.is_shared
    }

    /// Whether the chunk has become another file's: the answer is about one that this file was made of before.
    pub fn is_of_another_than(&self, file: FileId) -> bool {
        self.file != file && !self.is_shared
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum LeaseMode {
    Read,
    Write,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum MdsRequest {
    /// Starts a client session. Repeated by the same `nonce` it returns the same session.
    OpenSession {
        host: String,
        mount_point: String,
        nonce: u64,
    },
    /// Keeps the session and all its leases alive.
    KeepAlive {
        client: ClientId,
        /// Of the cluster's keys, as far as the client knows them ([`crate::auth::Credentials::generation`]).
        generation: u32,
    },
    /// Ends the session and its leases.
    CloseSession {
        client: ClientId,
    },

    Lookup {
        parent: FileId,
        name: String,
    },
    GetAttr {
        file: FileId,
    },
    SetAttr {
        client: ClientId,
        file: FileId,
        change: AttrChange,
    },
    /// Creates and, with `open`, grants a write lease in the same round trip.
    Create {
        client: ClientId,
        parent: FileId,
        name: String,
        kind: FileKind,
        mode: u32,
        uid: u32,
        gid: u32,
        symlink_target: String,
        exclusive: bool,
        open: bool,
    },
    Unlink {
        client: ClientId,
        parent: FileId,
        name: String,
        directory: bool,
    },
    /// `no_replace`: fails with Exists; `exchange`: swaps the two names.
    Rename {
        client: ClientId,
        from_parent: FileId,
        from_name: String,
        to_parent: FileId,
        to_name: String,
        no_replace: bool,
        exchange: bool,
    },
    ReadDir {
        directory: FileId,
        after: String,
        limit: u32,
    },
    ReadLink {
        file: FileId,
    },
    GetXattr {
        file: FileId,
        name: String,
    },
    SetXattr {
        client: ClientId,
        file: FileId,
        name: String,
        value: Vec<u8>,
        create_only: bool,
        replace_only: bool,
    },
    ListXattr {
        file: FileId,
    },
    RemoveXattr {
        client: ClientId,
        file: FileId,
        name: String,
    },

    Open {
        client: ClientId,
        file: FileId,
        mode: LeaseMode,
        /// A lease of an earlier session, to be gone on with: refused with LeaseLost if anybody could write
        /// since. 0: nothing depends on an earlier lease.
        reclaim: LeaseId,
    },
    /// Ends leases, each of another file.
    Release {
        client: ClientId,
        leases: Vec<ReleasedLease>,
    },
    /// Records the size a writer has reached (never shrinks).
    Extend {
        client: ClientId,
        file: FileId,
        lease: LeaseId,
        size_bytes: u64,
        mtime_ns: i64,
    },

    /// Maps of the chunks `first .. first + count`; absent chunks are left out (holes).
    Map {
        file: FileId,
        first: u32,
        count: u32,
    },
    /// Makes sure the chunks exist (placing replicas) and returns their maps. Those that are shared are replaced by such that
    /// belong to the file alone; until these are there, the maps are those of the shared ones.
    Allocate {
        client: ClientId,
        file: FileId,
        lease: LeaseId,
        first: u32,
        count: u32,
    },
    /// The asker could not use the chunk at this epoch. `unreachable` names CS it failed to reach.
    /// The MDS changes the replica set if it must, and returns the map that holds now.
    Refresh {
        chunk: ChunkId,
        epoch: Epoch,
        unreachable: Vec<CsId>,
    },
    StatFs,

    // Administration.
    /// Gives a new chunk server its id.
    NewCs {
        host_id: [u8; 16],
        host: String,
    },
    /// An attribute by the name the guide gives it: replicas, tier, failure-domain, chunk-size.
    SetPolicy {
        file: FileId,
        name: String,
        value: String,
        recursive: bool,
    },
    /// Path of a file in the cluster to its attributes.
    Resolve {
        path: String,
    },
    ClusterStat,
    Events {
        after: u64,
        limit: u32,
    },
    /// All chunks with an id above `after`, for checks; at most `limit`.
    ListChunks {
        after: ChunkId,
        limit: u32,
    },
    /// Says that the replica of a chunk on `cs` holds wrong data; the MDS has it filled again from the others.
    ReportBadReplica {
        chunk: ChunkId,
        epoch: Epoch,
        cs: CsId,
    },
    /// Adds a metadata server to the quorum.
    AddMds {
        addr: SocketAddr,
        raft_addr: SocketAddr,
    },
    RemoveMds {
        id: MdsId,
    },
    /// Takes away all leases of a file. Nobody else gets one before the holders have said that they stopped, or can't
    /// believe in theirs any more. Answered by Revoking with those that are waited for, or Done.
    Revoke {
        file: FileId,
    },
    /// Which chunk servers and metadata servers exist.
    ListServices,
    GetConfig,
    SetConfig {
        key: String,
        value: String,
    },
    /// Removes a chunk server: what it holds is copied elsewhere first, and it is dropped when it holds nothing. With
    /// `force` it is dropped at once, if every chunk has a good replica elsewhere. Refused when that can't be.
    RemoveCs {
        cs: CsId,
        force: bool,
    },
    /// Ends a removal that goes on: the server keeps what it has.
    CancelRemoval {
        cs: CsId,
    },
    /// How far the removal of a chunk server is.
    RemovalStat {
        cs: CsId,
    },
    /// In which states the chunks of a file are.
    FileChunks {
        file: FileId,
    },
    /// Where something is, why it is there, what is wrong and what happens next.
    Explain {
        target: ExplainTarget,
    },
    /// Which of these revoked leases of a file still keep others from opening it. Answered by Revoking, or Done.
    RevokeStat {
        file: FileId,
        leases: Vec<LeaseId>,
    },
    /// A node that has just shown that it knows the password ([`crate::join`]) asks for its certificate; nobody else may.
    AddNode(Box<NewNode>),
    /// The password that gets nodes into the cluster is another one from now on. Nodes that are in it stay.
    SetPassword(Box<PasswordDigest>),
    /// The cluster's authority changes, in steps.
    ChangeKey(KeyStep),
    /// This node's certificate of the newest generation. Answered by Admitted.
    Renew,
    ListNodes,
    /// The node does not belong to the cluster any more: its connections end, and nobody talks to it.
    TakeOut {
        node: NodeId,
    },
    /// The cluster's licence from now on is this one ([`SignedLicense::parse`]). With `renew` only one of the same number that
    /// was issued later than that there is.
    LoadLicense {
        text: String,
        renew: bool,
    },
    GetLicense,
    /// Makes a file that is as another one is now, without a copy: they share their chunks until one of them is written to.
    /// Refused while the file is open for writing, and its writer is asked to settle ([`ClientNote::Settle`]): ask again. Answered by Attr.
    Clone {
        client: ClientId,
        file: FileId,
        parent: FileId,
        name: String,
    },
    /// Whether RemoveCs would be refused. Changes nothing.
    MayRemoveCs {
        cs: CsId,
        force: bool,
    },
    /// Whether RemoveMds would be refused. Changes nothing.
    MayRemoveMds {
        id: MdsId,
    },
    /// The holder of a write lease has nothing under way and begins nothing until it has opened the file again: a clone may be
    /// made. Nobody else may write meanwhile.
    Settle {
        client: ClientId,
        lease: ReleasedLease,
    },
}

/// A lease that its holder gives back, for good or for a moment, with the last size and mtime of the file where the MDS has yet to hear them.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ReleasedLease {
    pub file: FileId,
    pub lease: LeaseId,
    pub size_bytes: Option<u64>,
    pub mtime_ns: Option<i64>,
}

impl ReleasedLease {
    /// Of a file of which nothing is to be told.
    pub fn unchanged(file: FileId, lease: LeaseId) -> ReleasedLease {
        ReleasedLease { file, lease, size_bytes: None, mtime_ns: None }
    }
}

/// A directory as one change of its names has left it.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ChangedDirectory {
    pub attr: FileAttr,
    /// Its ctime before. Each change of its names makes that later: who knows all names of then knows those of now.
    pub ctime_was_ns: i64,
}

/// A node that wants to belong to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct NewNode {
    /// Of the host, for people.
    pub name: String,
    pub public_key: [u8; 32],
}

/// A step in the change of a cluster's authority.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum KeyStep {
    /// From now on this one signs certificates as well.
    Begin(Box<Authority>),
    /// The old one is given up. Unless `force`, refused while nodes have not got their new certificates.
    Finish { force: bool },
    /// The new one is given up.
    Cancel,
}

/// A node with a key of its own.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct NodeInfo {
    pub node: NodeId,
    pub name: String,
    pub added_ms: u64,
    #[serde(rename = "taken-out")]
    pub taken_out: bool,
    /// It knows the newest keys of the cluster.
    pub renewed: bool,
    /// To the master, at the moment; on the master's own node it counts itself.
    pub connections: u32,
}

/// What `explain` is asked about.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum ExplainTarget {
    /// A regular file and its chunks from number `first` on, [`EXPLAINED_CHUNKS`] at most.
    File {
        path: String,
        first: u32,
    },
    Chunk(ChunkId),
    Cs(CsId),
}

/// Chunks in one answer about a file.
pub const EXPLAINED_CHUNKS: usize = 256;

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub enum MdsReply {
    Done,
    /// The request failed. `detail` says what and what to do; for NotMaster `master` is where to ask.
    Failed {
        status: Status,
        detail: String,
        master: Option<SocketAddr>,
    },
    Session {
        client: ClientId,
        lease_timeout_ms: u32,
    },
    /// Answer to KeepAlive.
    Alive {
        /// Leases of the session that were revoked since.
        revoked: Vec<LeaseId>,
        /// All metadata servers of the cluster.
        mds: Vec<SocketAddr>,
        /// The node's own of a newer generation than it knows.
        certificate: Option<Box<Certificate>>,
    },
    Attr(FileAttr),
    Created {
        attr: FileAttr,
        lease: Option<LeaseId>,
        /// As of Opened.
        first: Option<Box<ChunkMap>>,
        /// The directory with the new name; `None` if the name was there.
        directory: Option<Box<ChangedDirectory>>,
    },
    Opened {
        attr: FileAttr,
        lease: LeaseId,
        /// The newest write lease granted for the file before this request: whenever its contents may have changed, so
        /// has this.
        written_by: LeaseId,
        /// Where the file's first chunk lies, if it is there: few files have more.
        first: Option<Box<ChunkMap>>,
    },
    Entries {
        entries: Vec<DirEntry>,
        more: bool,
    },
    Link {
        target: String,
    },
    Xattr {
        value: Vec<u8>,
    },
    XattrNames {
        names: Vec<String>,
    },
    Maps {
        chunks: Vec<ChunkMap>,
    },
    Fs(FsStat),
    NewCs {
        cs: CsId,
    },
    Stat(Box<ClusterStat>),
    Events {
        events: Vec<Event>,
        last: u64,
    },
    Mds {
        id: MdsId,
    },
    Config {
        settings: Vec<Setting>,
    },
    Removal(RemovalStat),
    Chunks(ChunkCounts),
    Explained(Box<Explanation>),
    Revoking {
        leases: Vec<LeaseId>,
    },
    /// To AddNode and Renew: the node's certificate.
    Admitted(Box<Certificate>),
    Nodes {
        nodes: Vec<NodeInfo>,
    },
    License(Box<LicenseInfo>),
    /// Answer to Unlink: the directory without the name.
    Removed(Box<ChangedDirectory>),
    /// Answer to Rename, unless it changed nothing (`Done`).
    Renamed {
        from: Box<ChangedDirectory>,
        /// `None`: within one directory.
        to: Option<Box<ChangedDirectory>>,
    },
}

/// How it stands with the cluster's licence.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct LicenseInfo {
    pub status: LicenseStatus,
    /// `None`: the cluster has none and needs none.
    pub license: Option<SignedLicense>,
    /// Of users' data.
    pub used_bytes: u64,
}

/// Where the removal of a chunk server stands.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct RemovalStat {
    pub cs: CsId,
    pub draining: bool,
    /// It was removed.
    pub dropped: bool,
    /// Replicas it still holds.
    pub replicas_left: u64,
    /// Those among them for which there is no other place now.
    pub without_place: u64,
}

/// MDS to client, unasked.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum ClientNote {
    Revoked {
        leases: Vec<LeaseId>,
    },
    /// A clone of the file is wanted: its writer ends what it has begun and sends [`MdsRequest::Settle`].
    Settle {
        file: FileId,
    },
    /// The clone is made.
    GoOn {
        file: FileId,
    },
}

/// A setting of the cluster.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct Setting {
    pub key: String,
    pub value: u64,
    pub default: u64,
    pub least: u64,
    pub most: u64,
    pub unit: String,
    pub meaning: String,
}

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
pub struct FsStat {
    /// Physical, summed over all CS.
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// What the used space holds if all of it has the root directory's replicas.
    pub used_bytes: u64,
    /// What files with the attributes of the root directory can still take: in different failure domains, and without
    /// the margins (`mds.alloc.*`).
    pub available_bytes: u64,
    pub files: u64,
    pub chunks: u64,
}

#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CsStatus {
    /// All shards are registered.
    Active,
    /// Silent for less than `mds.wd.offline_tout`.
    Inactive,
    /// Silent for longer: its chunks are copied elsewhere.
    Offline,
    Dropped,
    Failed,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct CsInfo {
    pub cs: CsId,
    pub status: CsStatus,
    pub host: String,
    /// room.row.rack, or empty.
    pub location: String,
    /// It is being removed: its replicas go elsewhere.
    pub draining: bool,
    pub tier: u8,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub replicas: u64,
    pub shard_addrs: Vec<SocketAddr>,
    /// Of its disk, and of clients' requests; see [`crate::cs_api::Load`].
    pub io_latency: LatencyStat,
    pub request_latency: LatencyStat,
    pub io_wait_percent: u32,
    pub queue_depth: u32,
    pub flags: String,
    /// Read cache, all shards together: reads of a unit of 64 KiB (or part of one) it answered and did not since the
    /// start, what it holds, its size.
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cached_bytes: u64,
    pub cache_total_bytes: u64,
    pub read_bytes_per_s: u64,
    pub write_bytes_per_s: u64,
    pub read_ops_per_s: u64,
    pub write_ops_per_s: u64,
    /// Scrub: bytes verified in this pass and bytes there are, passes that all shards have ended, damaged places found
    /// since the start of the process.
    pub scrubbed_bytes: u64,
    pub scrub_total_bytes: u64,
    pub scrub_passes: u64,
    pub scrub_damaged: u64,
    /// Replicas that this server, as primary, brought up to date since its start: by what they lacked, and by everything
    /// (both counted when they are begun), and bytes sent so.
    pub catch_ups: u64,
    pub catch_up_bytes: u64,
    pub full_copies: u64,
    pub full_copy_bytes: u64,
}

impl CsInfo {
    /// How much of the running pass of the scrub is done.
    pub fn scrub_percent(&self) -> f64 {
        match self.scrub_total_bytes {
            0 => 0.0,
            // What changes during a pass may be read twice.
            total => (100.0 * self.scrubbed_bytes as f64 / total as f64).min(100.0),
        }
    }
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct MdsInfo {
    pub mds: MdsId,
    pub addr: SocketAddr,
    pub master: bool,
    pub available: bool,
    /// Counts for the quorum. One that was just added does so once it has caught up.
    pub voter: bool,
    pub commits: u64,
    pub uptime_ms: u64,
    pub memory_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct ClientInfo {
    pub client: ClientId,
    pub host: String,
    pub mount_point: String,
    pub leases: u32,
}

/// The state of a chunk; docs/admin-guide/chunk-states.md says what each means.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ChunkState {
    /// As many replicas as wished for are in sync and there, in as many failure domains as can be.
    Healthy,
    /// A server is away for less than `mds.wd.offline_tout`: it is waited for.
    Standby,
    /// Fewer replicas than wished for, at least the minimum; or several in one failure domain.
    Degraded,
    /// Degraded, and a replica that is not used differs from the others.
    Urgent,
    /// Fewer than the minimum are in sync and there: writes wait, reads go on.
    Blocked,
    /// None is in sync and there: reads and writes wait.
    Offline,
}

impl ChunkState {
    /// The word in `stat` and `explain`.
    pub fn name(self) -> &'static str {
        match self {
            ChunkState::Healthy => "healthy",
            ChunkState::Standby => "standby",
            ChunkState::Degraded => "degraded",
            ChunkState::Urgent => "urgent",
            ChunkState::Blocked => "blocked",
            ChunkState::Offline => "offline",
        }
    }
}

/// How many chunks are in which state (the guide's words): each is in one of the states of [`ChunkState`]; what stands
/// behind these is counted beside.
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
pub struct ChunkCounts {
    pub total: u64,
    pub healthy: u64,
    pub standby: u64,
    pub degraded: u64,
    pub urgent: u64,
    pub blocked: u64,
    pub offline: u64,
    /// Blocked, and a copy that ends this waits or is made.
    pub pending: u64,
    /// A replica is being filled.
    pub replicating: u64,
    /// More replicas than wished for.
    pub overcommitted: u64,
    /// Replicas that servers have yet to delete.
    pub deleting: u64,
    /// Placed and never written, as far as the servers have told.
    pub void: u64,
    /// Only one replica is in sync.
    pub unique: u64,
    /// Some of its blocks were gone from all replicas when they were to be copied.
    pub lossy: u64,
    /// Not as their policy wishes: several replicas in one failure domain (these count as degraded), or on another tier.
    pub misplaced: u64,
}

impl ChunkCounts {
    /// Those of other chunks.
    pub fn add(&mut self, other: &ChunkCounts) {
        let ChunkCounts {
            total,
            healthy,
            standby,
            degraded,
            urgent,
            blocked,
            offline,
            pending,
            replicating,
            overcommitted,
            deleting,
            void,
            unique,
            lossy,
            misplaced,
        } = other;
        for (sum, more) in [
            (&mut self.total, total),
            (&mut self.healthy, healthy),
            (&mut self.standby, standby),
            (&mut self.degraded, degraded),
            (&mut self.urgent, urgent),
            (&mut self.blocked, blocked),
            (&mut self.offline, offline),
            (&mut self.pending, pending),
            (&mut self.replicating, replicating),
            (&mut self.overcommitted, overcommitted),
            (&mut self.deleting, deleting),
            (&mut self.void, void),
            (&mut self.unique, unique),
            (&mut self.lossy, lossy),
            (&mut self.misplaced, misplaced),
        ] {
            *sum += more;
        }
    }
}

/// One replica, as `explain` shows it.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct ReplicaStory {
    pub cs: CsId,
    /// Of the shard that holds it; unspecified while unknown.
    pub addr: SocketAddr,
    /// insync, learner, stale.
    pub role: String,
    pub server: CsStatus,
    pub host: String,
    /// In plain words.
    pub says: String,
}

/// One chunk, as `explain` shows it; sentences in plain words.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct ChunkStory {
    pub chunk: ChunkId,
    /// Of its file; empty for one in the answer about a file.
    pub path: String,
    /// Position in the file, in chunks.
    pub index: u32,
    pub epoch: Epoch,
    pub state: ChunkState,
    /// pending, replicating, overcommitted, void, unique, lossy, misplaced.
    pub also: Vec<String>,
    pub primary: Option<CsId>,
    pub replicas: Vec<ReplicaStory>,
    /// Why it is where it is; empty for one in the answer about a file.
    pub why: Vec<String>,
    /// Empty when nothing is wrong.
    pub wrong: Vec<String>,
    pub next: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct FileStory {
    pub path: String,
    pub size: u64,
    #[serde(rename = "chunk-size")]
    pub chunk_bytes: u32,
    pub policy: ReplicaPolicy,
    /// Of the whole file.
    pub states: ChunkCounts,
    pub chunks: Vec<ChunkStory>,
    /// Where to ask for the rest.
    #[serde(skip)]
    pub next_first: Option<u32>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct CsStory {
    pub server: CsInfo,
    /// Of the chunks with a replica there.
    pub states: ChunkCounts,
    pub why: Vec<String>,
    pub wrong: Vec<String>,
    pub next: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Explanation {
    File(FileStory),
    Chunk(ChunkStory),
    Cs(CsStory),
}

/// Copies of chunks that are made, to mend or to move them.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Debug,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct RepairStat {
    /// Chunks that wait for their copy.
    pub waiting: u64,
    pub copying: u64,
    /// Chunks for which there is no server, or no better one.
    pub without_place: u64,
    /// Copies made since this work began.
    pub done: u64,
    /// Copies made since the master became so, also those that only moved a replica.
    pub copies_total: u64,
    /// In the last half minute.
    pub chunks_per_s: f64,
    /// At that rate, for what waits and is copied; none when nothing does, or nothing is known yet.
    pub seconds_left: Option<u64>,
}

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct ClusterStat {
    pub cluster: String,
    /// healthy, degraded, failure, unknown.
    pub status: String,
    pub fs: FsStat,
    pub default_policy: ReplicaPolicy,
    pub mds: Vec<MdsInfo>,
    pub cs: Vec<CsInfo>,
    pub clients: Vec<ClientInfo>,
    pub chunks: ChunkCounts,
    pub repair: RepairStat,
    pub epoch_uptime_ms: u64,
    pub license: String,
}

#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warn,
    Err,
}

#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct Event {
    pub number: u64,
    pub time_ms: u64,
    /// JRN, MDS, CS, CLN …
    pub system: String,
    pub severity: Severity,
    pub message: String,
}

/// Which metadata servers to try: those of the cluster as it now is, then those that were configured, each once.
pub fn mds_to_try(told: &[SocketAddr], configured: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::with_capacity(told.len() + configured.len());
    for addr in told.iter().chain(configured) {
        if !all.contains(addr) {
            all.push(*addr);
        }
    }
    all
}
