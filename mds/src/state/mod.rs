//! The deterministic metadata state machine (skeleton: signatures first, bodies follow).
mod answer;
mod command;

pub use answer::{ChunkView, Effect, Outcome, Refusal, Reply, SetOutcome, SetResult};
pub use command::{COMMAND_VERSION, Command, Internal, Op, Placement, SetAction, SetChange};

use std::net::SocketAddr;
use wire::mds_api::{ChunkCounts, ClientInfo, DirEntry, Event, FileAttr, LeaseMode, MdsRequest, ReplicaPolicy, Severity};
use wire::cs_api::ChunkReport;
use wire::{ChunkId, ClientId, CsId, FileId, LeaseId, MdsId};

/// What the master knows about a CS being there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness { Active, Inactive, Offline }

/// A chunk server in the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CsRecord {
    pub host_id: [u8; 16],
    pub host: String,
    /// room.row.rack, or empty.
    pub location: String,
    pub tier: u8,
    /// 0 until it registers for the first time.
    pub shards: u16,
    pub dropped: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MdsRecord { pub addr: SocketAddr, pub raft_addr: SocketAddr }

/// A lease and its holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease { pub id: LeaseId, pub client: ClientId, pub mode: LeaseMode }

/// What the repair loop should do next for a chunk, in order of danger (smallest first).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RepairStep {
    /// Propose this change (drop of an offline replica, return of a stale one, removal of a surplus one).
    Change(SetChange),
    /// Choose a new CS (placement, excluding these) and propose AddLearner.
    Place { exclude: Vec<CsId>, policy: ReplicaPolicy },
    /// A learner is being filled: make sure its primary knows (`CsCommand::Repair`).
    Filling { view: ChunkView },
}

pub struct State {}
impl Default for State { fn default() -> Self { Self::new() } }

#[rustfmt::skip]
impl State {
    pub fn new() -> State { State {} }
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome { let _ = (index, command); todo!() }
    /// Index of the last applied command.
    pub fn applied(&self) -> u64 { todo!() }
    pub fn digest(&self) -> u64 { todo!() }
    pub fn snapshot(&self) -> Vec<u8> { todo!() }
    pub fn restore(bytes: &[u8]) -> Result<State, String> { let _ = bytes; todo!() }

    /// Answers requests that only read the state (Lookup, GetAttr, ReadDir, ReadLink, GetXattr, ListXattr, Map,
    /// Resolve, Events, ListChunks, GetConfig). `None` for all others.
    pub fn query(&self, request: &MdsRequest) -> Option<Reply> { let _ = request; todo!() }
    pub fn lookup(&self, parent: FileId, name: &str) -> Result<FileAttr, Refusal> { let _ = (parent, name); todo!() }
    pub fn attr(&self, file: FileId) -> Result<FileAttr, Refusal> { let _ = file; todo!() }
    pub fn resolve(&self, path: &str) -> Result<FileAttr, Refusal> { let _ = path; todo!() }
    pub fn read_dir(&self, directory: FileId, after: &str, limit: u32) -> Result<(Vec<DirEntry>, bool), Refusal> { let _ = (directory, after, limit); todo!() }
    /// Absolute path for messages.
    pub fn path_of(&self, file: FileId) -> String { let _ = file; todo!() }
    /// Policy of a file or directory (for placement of its chunks).
    pub fn policy(&self, file: FileId) -> Result<ReplicaPolicy, Refusal> { let _ = file; todo!() }
    pub fn root_policy(&self) -> ReplicaPolicy { todo!() }

    /// Maps of existing chunks `first .. first+count`.
    pub fn map(&self, file: FileId, first: u32, count: u32) -> Result<Vec<ChunkView>, Refusal> { let _ = (file, first, count); todo!() }
    /// Indexes that Allocate would have to place; empty when all exist. Err when Allocate would be refused.
    pub fn missing_chunks(&self, client: ClientId, file: FileId, lease: LeaseId, first: u32, count: u32) -> Result<Vec<u32>, Refusal> { let _ = (client, file, lease, first, count); todo!() }
    pub fn chunk(&self, chunk: ChunkId) -> Option<ChunkView> { let _ = chunk; todo!() }
    pub fn list_chunks(&self, after: ChunkId, limit: u32) -> Vec<ChunkView> { let _ = (after, limit); todo!() }
    /// Chunks with a replica (of any role) on the CS, in order of id, above `after`.
    pub fn chunks_on(&self, cs: CsId, after: ChunkId) -> Box<dyn Iterator<Item = ChunkId> + '_> { let _ = (cs, after); todo!() }
    pub fn replica_count(&self, cs: CsId) -> u64 { let _ = cs; todo!() }
    /// Reported chunks that the CS must not hold; propose `Internal::DeleteStrays` for them.
    pub fn strays(&self, cs: CsId, report: &[ChunkReport]) -> Vec<ChunkId> { let _ = (cs, report); todo!() }
    /// What the CS has still to delete: send at registration (those of the shard) and again from time to time.
    pub fn pending_deletes(&self, cs: CsId) -> Box<dyn Iterator<Item = ChunkId> + '_> { let _ = cs; todo!() }
    pub fn chunk_counts(&self, live: &dyn Fn(CsId) -> Liveness) -> ChunkCounts { let _ = live; todo!() }
    pub fn repair_step(&self, chunk: ChunkId, live: &dyn Fn(CsId) -> Liveness) -> Option<RepairStep> { let _ = (chunk, live); todo!() }
    pub fn file_count(&self) -> u64 { todo!() }
    pub fn chunk_count(&self) -> u64 { todo!() }

    pub fn session_exists(&self, client: ClientId) -> bool { let _ = client; todo!() }
    pub fn clients(&self) -> Vec<ClientInfo> { todo!() }
    pub fn leases_of_file(&self, file: FileId) -> Vec<Lease> { let _ = file; todo!() }
    /// Recently revoked leases of a session, for KeepAlive.
    pub fn revoked_of(&self, client: ClientId) -> Vec<LeaseId> { let _ = client; todo!() }
    /// All recently revoked leases, for CsReply::Registered.
    pub fn revoked(&self) -> Vec<LeaseId> { todo!() }

    pub fn cs(&self, cs: CsId) -> Option<&CsRecord> { let _ = cs; todo!() }
    pub fn cs_list(&self) -> Box<dyn Iterator<Item = (CsId, &CsRecord)> + '_> { todo!() }
    pub fn mds_list(&self) -> Box<dyn Iterator<Item = (MdsId, &MdsRecord)> + '_> { todo!() }
    pub fn events(&self, after: u64, limit: u32) -> (Vec<Event>, u64) { let _ = (after, limit); todo!() }
    pub fn event(&self, number: u64) -> Option<&Event> { let _ = number; todo!() }
    /// Value of a configuration key in its own unit; see `state::config` for the keys.
    pub fn config_number(&self, key: &str) -> u64 { let _ = key; todo!() }
    pub fn config_entries(&self) -> Vec<(String, String)> { todo!() }
}
const _: Option<Severity> = None;
