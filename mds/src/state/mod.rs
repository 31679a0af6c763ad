//! The deterministic metadata state machine: the same commands in the same order give the same state on every server.
//!
//! Invariants:
//! - nothing here reads a clock or draws a random number; both come inside commands;
//! - whatever is iterated stands in B-trees;
//! - a request of a session that was executed is answered from memory when it comes again;
//! - a chunk keeps at least one in-sync replica as long as it exists;
//! - a chunk's epoch grows by one with every change of its set.

mod admin;
mod answer;
mod chunks;
mod clones;
mod command;
pub mod config;
mod data;
mod files;
mod nodes;
mod runs;
mod sessions;
mod snapshot;
mod table;

#[cfg(test)]
mod tests;

pub use admin::no_such_mds;
pub use answer::{ChunkView, Effect, Outcome, Refusal, Reply, SetOutcome, SetResult};
pub use command::{COMMAND_VERSION, Command, Internal, Op, Placement, SetAction, SetChange};
pub use nodes::NodeRecord;
pub use snapshot::{StateReader, StateWriter};

use answer::{refuse, refuse_name};
use data::{Answer, Body, Data};
use rkyv::{Archive, Deserialize, Serialize};
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use wire::license::SignedLicense;
use wire::mds_api::{
    DirEntry, Event, FailureDomain, FileAttr, LeaseMode, MdsReply, MdsRequest, ReplicaPolicy,
};
use wire::{ChunkId, ClientId, CsId, FileId, LeaseId, MdsId, ROOT, Status};

/// What the guide says a new cluster has.
pub const DEFAULT_POLICY: ReplicaPolicy =
    ReplicaPolicy { normal: 1, minimum: 1, tier: 0, domain: FailureDomain::Host };
/// Answers remembered for each session.
const MOST_ANSWERS: usize = 512;

/// What the master knows about a CS being there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    Active,
    Inactive,
    Offline,
}

/// A chunk server in the registry.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct CsRecord {
    pub host_id: [u8; 16],
    pub host: String,
    /// room.row.rack, or empty.
    pub location: String,
    pub tier: u8,
    /// 0 until it registers for the first time.
    pub shards: u16,
    pub dropped: bool,
    /// It is to be dropped once it holds nothing.
    pub draining: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct MdsRecord {
    pub addr: SocketAddr,
    pub raft_addr: SocketAddr,
}

/// A lease and its holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    pub id: LeaseId,
    pub client: ClientId,
    pub mode: LeaseMode,
}

/// What the repair loop should do next for a chunk, in order of danger (smallest first).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RepairStep {
    /// Propose this change (drop of an offline replica, return of a stale one, removal of a surplus one).
    Change(SetChange),
    /// Choose a new CS (placement, excluding these) and propose AddLearner.
    Place { exclude: Vec<CsId>, policy: ReplicaPolicy },
    /// More in sync than wished for: choose the one that leaves and propose its removal.
    Surplus { view: ChunkView },
    /// A learner is being filled: make sure its primary knows (`CsCommand::Repair`).
    Filling { view: ChunkView },
}

pub struct State {
    data: Data,
    /// Derived: which chunks have a replica on a CS.
    on_cs: BTreeMap<CsId, RoaringTreemap>,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        self.data.counters.applied = index;
        let mut effects = Vec::new();
        let reply = match command {
            Command::Client { client, request, time_ms, op } => {
                self.client_command(*client, *request, *time_ms, op, &mut effects)
            }
            Command::Internal { time_ms, op } => self.internal(*time_ms, op, &mut effects),
        };
        Outcome { reply, effects }
    }

    /// Runs a request once; a repetition gets the first answer.
    fn client_command(
        &mut self,
        client: ClientId,
        request: u64,
        now: u64,
        op: &Op,
        effects: &mut Vec<Effect>,
    ) -> Reply {
        if client == ClientId(0) || request == 0 {
            return self.run(client, now, op, effects);
        }
        let Some(session) = self.data.sessions.get(&client) else {
            return Refusal { status: Status::StaleHandle, detail: format!("session {client} has ended") }
                .into();
        };
        match session.answers.get(&request) {
            Some(Answer::Wire(reply)) => return Reply::Wire(reply.clone()),
            Some(Answer::Maps(chunks)) => {
                // The sets may have moved on since; what holds now is as good an answer.
                return Reply::Maps(chunks.iter().filter_map(|chunk| self.chunk(*chunk)).collect());
            }
            None => {}
        }
        let reply = self.run(client, now, op, effects);
        if let Some(session) = self.data.sessions.get_mut(&client) {
            let answer = match &reply {
                Reply::Wire(reply) => Answer::Wire(reply.clone()),
                Reply::Maps(views) => Answer::Maps(views.iter().map(|view| view.chunk).collect()),
                Reply::Sets(_) => return reply,
            };
            session.answers.insert(request, answer);
            if session.answers.len() > MOST_ANSWERS {
                pop_first(&mut session.answers);
            }
        }
        reply
    }

    fn run(&mut self, client: ClientId, now: u64, op: &Op, effects: &mut Vec<Effect>) -> Reply {
        let result = match op {
            Op::OpenSession { host, mount_point, nonce } => {
                let client = self.open_session(host, mount_point, *nonce);
                let lease_timeout_ms = self.config_number(config::LEASE_TIMEOUT_MS) as u32;
                Ok(MdsReply::Session { client, lease_timeout_ms })
            }
            Op::CloseSession => {
                self.end_session(client, false, effects);
                Ok(MdsReply::Done)
            }
            Op::Allocate { file, lease, first, count, placements } => {
                match self.allocate(client, *file, *lease, *first, *count, placements, effects) {
                    Ok(views) => return Reply::Maps(views),
                    Err(refusal) => Err(refusal),
                }
            }
            Op::Revoke { file } => self.revoke(*file, effects),
            Op::NewCs { .. }
            | Op::SetPolicy { .. }
            | Op::AddMds { .. }
            | Op::RemoveMds { .. }
            | Op::SetConfig { .. }
            | Op::LoadLicense { .. } => self.admin_op(now, op, effects),
            Op::AddNode(_) | Op::SetPassword(_) | Op::ChangeKey(_) | Op::TakeOut { .. } => {
                self.node_op(now, op, effects)
            }
            _ => self.file_op(client, now, op, effects),
        };
        match result {
            Ok(reply) => Reply::Wire(reply),
            Err(refusal) => refusal.into(),
        }
    }

    /// Answers requests that only read the state (Lookup, GetAttr, ReadDir, ReadLink, GetXattr, ListXattr, Map,
    /// Resolve, Events, ListChunks, GetConfig). `None` for all others.
    pub fn query(&self, request: &MdsRequest) -> Option<Reply> {
        let result = match request {
            MdsRequest::Lookup { parent, name } => self.lookup(*parent, name).map(MdsReply::Attr),
            MdsRequest::GetAttr { file } => self.attr(*file).map(MdsReply::Attr),
            MdsRequest::Resolve { path } => self.resolve(path).map(MdsReply::Attr),
            MdsRequest::ReadDir { directory, after, limit } => self
                .read_dir(*directory, after, *limit)
                .map(|(entries, more)| MdsReply::Entries { entries, more }),
            MdsRequest::ReadLink { file } => self.inode(*file).and_then(|inode| match &inode.body {
                Body::Symlink { target } => Ok(MdsReply::Link { target: target.to_string() }),
                _ => refuse(Status::InvalidArgument, "not a symbolic link"),
            }),
            MdsRequest::GetXattr { file, name } => {
                self.inode(*file).and_then(|inode| match inode.xattr(name) {
                    Some(value) => Ok(MdsReply::Xattr { value: value.clone() }),
                    None => refuse(Status::NoAttribute, name.clone()),
                })
            }
            MdsRequest::ListXattr { file } => self
                .inode(*file)
                .map(|inode| MdsReply::XattrNames { names: inode.xattr_names().cloned().collect() }),
            MdsRequest::Map { file, first, count } => match self.map(*file, *first, *count) {
                Ok(views) => return Some(Reply::Maps(views)),
                Err(refusal) => Err(refusal),
            },
            MdsRequest::ListChunks { after, limit } => {
                return Some(Reply::Maps(self.list_chunks(*after, (*limit).min(10_000))));
            }
            MdsRequest::Events { after, limit } => {
                let (events, last) = self.events(*after, *limit);
                Ok(MdsReply::Events { events, last })
            }
            MdsRequest::RevokeStat { file, leases } => Ok(self.revoke_stat(*file, leases)),
            MdsRequest::GetConfig => Ok(MdsReply::Config { settings: self.settings() }),
            _ => return None,
        };
        Some(match result {
            Ok(reply) => Reply::Wire(reply),
            Err(refusal) => refusal.into(),
        })
    }

    /// Index of the last applied command.
    pub fn applied(&self) -> u64 {
        self.data.counters.applied
    }

    pub fn lookup(&self, parent: FileId, name: &str) -> Result<FileAttr, Refusal> {
        if name == ".." {
            let above = self.inode(parent)?.parent;
            return self.attr(if parent == ROOT { ROOT } else { above });
        }
        match self.entry(parent, name)? {
            Some(file) => self.attr(file),
            None => refuse_name(Status::NotFound, name),
        }
    }

    pub fn resolve(&self, path: &str) -> Result<FileAttr, Refusal> {
        let mut at = ROOT;
        for name in path.split('/').filter(|n| !n.is_empty() && *n != ".") {
            at = self.lookup(at, name)?.file;
        }
        self.attr(at)
    }

    pub fn read_dir(
        &self,
        directory: FileId,
        after: &str,
        limit: u32,
    ) -> Result<(Vec<DirEntry>, bool), Refusal> {
        self.directory(directory)?;
        let mut rest = self.entries(directory, after);
        let mut entries = Vec::new();
        for (name, file) in rest.by_ref().take(limit.clamp(1, 10_000) as usize) {
            entries.push(DirEntry { name: name.to_string(), attr: self.attr(file)? });
        }
        Ok((entries, rest.next().is_some()))
    }

    /// Absolute path for messages.
    pub fn path_of(&self, file: FileId) -> String {
        let mut names = Vec::new();
        let mut at = file;
        while at != ROOT {
            let Some(parent) = self.data.inodes.get(at).map(|i| i.parent) else {
                return format!("file {file}");
            };
            if !self.data.inodes.contains(parent) {
                return format!("file {file} (unlinked)");
            }
            let name = self.entries(parent, "").find(|(_, child)| *child == at).map_or("?", |(name, _)| name);
            names.push(name.to_string());
            at = parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }

    /// Policy of a file or directory (for placement of its chunks).
    pub fn policy(&self, file: FileId) -> Result<ReplicaPolicy, Refusal> {
        Ok(self.inode(file)?.policy)
    }

    pub fn root_policy(&self) -> ReplicaPolicy {
        self.policy(ROOT).unwrap_or(DEFAULT_POLICY)
    }

    pub fn file_count(&self) -> u64 {
        self.data.inodes.len()
    }

    pub fn chunk_count(&self) -> u64 {
        self.data.chunks.len()
    }

    /// The largest id of a chunk that was ever given, 0 when there was none.
    pub fn newest_chunk(&self) -> ChunkId {
        ChunkId(self.data.counters.next_chunk - 1)
    }

    pub fn cs(&self, cs: CsId) -> Option<&CsRecord> {
        self.data.small.cs.get(&cs)
    }

    pub fn cs_list(&self) -> Box<dyn Iterator<Item = (CsId, &CsRecord)> + '_> {
        Box::new(self.data.small.cs.iter().map(|(cs, record)| (*cs, record)))
    }

    pub fn mds_list(&self) -> Box<dyn Iterator<Item = (MdsId, &MdsRecord)> + '_> {
        Box::new(self.data.small.mds.iter().map(|(id, record)| (*id, record)))
    }

    pub fn events(&self, after: u64, limit: u32) -> (Vec<Event>, u64) {
        let found = self.data.events.range(after.saturating_add(1)..).take(limit.min(10_000) as usize);
        (found.map(|(_, e)| e.clone()).collect(), self.data.counters.next_event - 1)
    }

    pub fn license(&self) -> Option<&SignedLicense> {
        self.data.small.license.as_ref()
    }

    pub fn event(&self, number: u64) -> Option<&Event> {
        self.data.events.get(&number)
    }
}

/// Takes out what has the smallest key.
fn pop_first<K: Ord + Copy, V: Clone>(map: &mut imbl::OrdMap<K, V>) {
    if let Some(first) = map.get_min().map(|(key, _)| *key) {
        map.remove(&first);
    }
}
