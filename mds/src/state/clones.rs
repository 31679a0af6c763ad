//! Clones of files: they share the chunks of the original until one of them writes (docs/replication.md, "Clones").
//!
//! A chunk of which several files are made is written by none of them. Who wants to write to it is given a chunk of its own
//! first: a *fork*, which every chunk server that has the original in sync makes of its own copy, without moving data. It takes
//! the place of the original in the file when all of them have said that they have it, of the same sequence. The fork has an
//! id that belongs to the same shard as the original's on each of these servers.

use super::answer::{Effect, Refusal, refuse, refuse_name};
use super::data::{Body, ChunkRecord, Extras, Fork, Inode, Replicas};
use super::{State, files};
use std::collections::BTreeSet;
use wire::mds_api::{ClientNote, LeaseMode, MdsReply, ReleasedLease, ReplicaPolicy};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, ROOT, Role, Sequence, Status, shard_of};

/// Ids looked at for one that belongs to the right shards.
const MOST_IDS: u64 = 1_000_000;

impl State {
    /// Other files than the chunk's own that are made of it.
    fn sharers(&self, chunk: ChunkId) -> impl Iterator<Item = FileId> + '_ {
        // Every look at any chunk comes by here, and most clusters have no clones.
        let some = Some(&self.data.sharers).filter(|sharers| !sharers.is_empty());
        let from = some.into_iter().flat_map(move |sharers| sharers.range((chunk, FileId(0))..));
        from.take_while(move |(of, _)| *of == chunk).map(|(_, file)| *file)
    }

    /// Whether several files are made of the chunk.
    pub fn is_shared(&self, chunk: ChunkId) -> bool {
        self.sharers(chunk).next().is_some()
    }

    /// All files that are made of a chunk, its own first.
    pub fn files_of(&self, chunk: ChunkId) -> Vec<FileId> {
        let own = self.data.chunks.get(chunk).map(|record| record.file);
        own.into_iter().chain(self.sharers(chunk)).collect()
    }

    /// What the chunk's files want of it: the most careful of them.
    pub(super) fn chunk_policy(&self, chunk: ChunkId, file: FileId) -> ReplicaPolicy {
        let policy = |file| self.data.inodes.get(file).map_or(super::DEFAULT_POLICY, |i| i.policy);
        self.sharers(chunk).map(policy).fold(policy(file), |most, other| match other.normal > most.normal {
            true => ReplicaPolicy { minimum: most.minimum.max(other.minimum), ..other },
            false => ReplicaPolicy { minimum: most.minimum.max(other.minimum), ..most },
        })
    }

    /// Makes a file that is as another one is now.
    pub(super) fn clone_file(
        &mut self,
        file: FileId,
        parent: FileId,
        name: &str,
        now: i64,
        effects: &mut Vec<Effect>,
    ) -> Result<MdsReply, Refusal> {
        files::check_name(name)?;
        if self.entry(parent, name)?.is_some() {
            return refuse_name(Status::Exists, name);
        }
        if self.inode(parent)?.parent == FileId(0) && parent != ROOT {
            return refuse(Status::NotFound, "the directory was removed");
        }
        let original = self.inode(file)?;
        let Body::File { chunks, .. } = &original.body else {
            return refuse(Status::InvalidArgument, format!("{} is not a regular file", self.path_of(file)));
        };
        if let Some(lease) = original.leases().iter().find(|l| l.mode == LeaseMode::Write && !l.settled) {
            let holder = self.data.sessions.get(&lease.client).map_or("a host", |s| &s.host);
            effects.push(Effect::TellClient { client: lease.client, note: ClientNote::Settle { file } });
            let detail = format!(
                "{} is open for writing on {holder} (client {}), which has not stopped writing for the moment that a clone takes: \
                 see whether that host is well, or stop what uses the file there",
                self.path_of(file),
                lease.client
            );
            return refuse(Status::FileBusy, detail);
        }
        let settled = original.leases().iter().filter(|l| l.settled);
        effects.extend(
            settled.map(|l| Effect::TellClient { client: l.client, note: ClientNote::GoOn { file } }),
        );
        let all: Vec<ChunkId> = chunks.chunks().collect();
        let xattrs = original.extras.as_ref().map(|extras| extras.xattrs.clone()).unwrap_or_default();
        let extras = (!xattrs.is_empty()).then(|| Box::new(Extras { xattrs, ..Extras::default() }));
        let clone = Inode {
            parent,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            last_writer: Default::default(),
            extras,
            ..original.clone()
        };
        let id = FileId(self.data.counters.next_file);
        self.data.counters.next_file += 1;
        self.data.inodes.insert(id, clone);
        self.enter(parent, name, Some(id), false, now);
        self.data.sharers.extend(all.into_iter().map(|chunk| (chunk, id)));
        Ok(MdsReply::Attr(self.attr(id)?))
    }

    /// The holder of a write lease has ended its writes, so that a clone can be made.
    pub(super) fn settle(
        &mut self,
        client: ClientId,
        settled: &ReleasedLease,
        now: i64,
    ) -> Result<MdsReply, Refusal> {
        let ReleasedLease { file, lease, size_bytes, mtime_ns } = *settled;
        if !self.holds(client, file, lease) {
            return refuse(Status::LeaseLost, format!("lease {lease} of file {file}"));
        }
        if size_bytes.is_some() || mtime_ns.is_some() {
            self.written(file, size_bytes.unwrap_or(0), mtime_ns, now)?;
        }
        self.inode_mut(file)?.change_extras(|extras| {
            let held = extras.leases.iter_mut().find(|l| l.id == lease);
            held.into_iter().for_each(|l| l.settled = true);
        });
        Ok(MdsReply::Done)
    }

    /// A file is not made of these chunks any more. Those that no other file is made of are deleted.
    pub(super) fn give_up_chunks(&mut self, file: FileId, chunks: &[ChunkId], effects: &mut Vec<Effect>) {
        let forks = self.forks_where(|fork| fork.file == file && chunks.contains(&fork.from));
        forks.into_iter().for_each(|to| self.cancel_fork(to, effects));
        if self.data.sharers.is_empty() {
            return self.delete_chunks(chunks, effects);
        }
        let unshared: Vec<ChunkId> =
            chunks.iter().copied().filter(|chunk| !self.leave_chunk(file, *chunk, effects)).collect();
        self.delete_chunks(&unshared, effects);
    }

    /// False if the file is the only one that is made of the chunk. Whoever has it alone afterwards writes to it, and its fork
    /// would lack that.
    fn leave_chunk(&mut self, file: FileId, chunk: ChunkId, effects: &mut Vec<Effect>) -> bool {
        let Some(heir) = self.sharers(chunk).next() else { return false };
        let Some(record) = self.data.chunks.get_mut(chunk) else { return false };
        let leaves = if record.file == file { heir } else { file };
        if record.file == file {
            record.file = heir;
        }
        self.data.sharers.remove(&(chunk, leaves));
        if !self.is_shared(chunk) {
            let forks = self.forks_where(|fork| fork.from == chunk);
            forks.into_iter().for_each(|to| self.cancel_fork(to, effects));
        }
        true
    }

    /// Chunks of a part of a file that it must have for itself before it can write to them, and whose forks have yet to be
    /// begun.
    pub fn chunks_to_fork(&self, file: FileId, first: u32, count: u32) -> Vec<(u32, ChunkId)> {
        if self.data.sharers.is_empty() {
            return Vec::new();
        }
        let Some(Inode { body: Body::File { chunks, .. }, .. }) = self.data.inodes.get(file) else {
            return Vec::new();
        };
        let begun: BTreeSet<u32> =
            self.data.forks.values().filter(|fork| fork.file == file).map(|fork| fork.index).collect();
        let shared = chunks.range(first, count).filter(|(_, chunk)| self.is_shared(*chunk));
        shared.filter(|(index, _)| !begun.contains(index)).collect()
    }

    pub(super) fn begin_forks(&mut self, file: FileId, first: u32, count: u32, effects: &mut Vec<Effect>) {
        for (index, from) in self.chunks_to_fork(file, first, count) {
            let Some(view) = self.chunk(from) else { continue };
            let asked: Vec<CsId> = view.in_sync().collect();
            let Some(to) = self.id_beside(from, &asked) else { continue };
            self.data.counters.next_chunk = to.0 + 1;
            self.data.forks.insert(to, Fork { file, index, from, asked, done: Vec::new() });
            effects.push(Effect::ForkBegun { to });
        }
    }

    /// A new id that belongs to the same shards as a chunk.
    fn id_beside(&self, chunk: ChunkId, servers: &[CsId]) -> Option<ChunkId> {
        let shards: BTreeSet<u16> =
            servers.iter().filter_map(|cs| self.cs(*cs)).map(|cs| cs.shards).collect();
        let first = self.data.counters.next_chunk;
        let mut ids = (first..first + MOST_IDS).map(ChunkId);
        ids.find(|id| shards.iter().all(|shards| shard_of(*id, *shards) == shard_of(chunk, *shards)))
    }

    /// A chunk server has made its part of a fork, or can't (`None`).
    pub(super) fn forked(
        &mut self,
        cs: CsId,
        to: ChunkId,
        sequence: Option<Sequence>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(fork) = self.data.forks.get_mut(&to) else {
            // It came to its end, perhaps without this one.
            if self.is_stray(cs, to) {
                self.must_delete(cs, vec![to], effects);
            }
            return;
        };
        let Some(sequence) = sequence else { return self.cancel_fork(to, effects) };
        fork.done.retain(|(known, _)| *known != cs);
        fork.done.push((cs, sequence));
        self.end_fork(to, effects);
    }

    /// The set of a chunk has changed: its forks may wait for nobody any more.
    pub(super) fn look_at_forks_of(&mut self, chunk: ChunkId, effects: &mut Vec<Effect>) {
        let forks = self.forks_where(|fork| fork.from == chunk);
        forks.into_iter().for_each(|to| self.end_fork(to, effects));
    }

    fn forks_where(&self, is_meant: impl Fn(&Fork) -> bool) -> Vec<ChunkId> {
        self.data.forks.iter().filter(|(_, fork)| is_meant(fork)).map(|(to, _)| *to).collect()
    }

    /// Puts a fork into its file if all servers have it that have the original in sync.
    fn end_fork(&mut self, to: ChunkId, effects: &mut Vec<Effect>) {
        let Some(fork) = self.data.forks.get(&to).cloned() else { return };
        let Some(view) = self.chunk(fork.from) else { return self.cancel_fork(to, effects) };
        let servers: Vec<CsId> = view.in_sync().filter(|cs| fork.asked.contains(cs)).collect();
        let of = |cs: &CsId| fork.done.iter().find(|(known, _)| known == cs).map(|(_, sequence)| *sequence);
        let sequences: BTreeSet<Option<Sequence>> = servers.iter().map(of).collect();
        if servers.is_empty() || sequences.len() > 1 && !sequences.contains(&None) {
            // Something that was sent long ago has reached one of them meanwhile, or nobody is left: it begins anew.
            return self.cancel_fork(to, effects);
        }
        if sequences.contains(&None) {
            return;
        }
        let replicas: Vec<(CsId, Role)> = servers.iter().map(|cs| (*cs, Role::InSync)).collect();
        let (file, index, epoch) = (fork.file, fork.index, Epoch(view.epoch.0 + 1));
        for cs in &servers {
            self.on_cs.entry(*cs).or_default().insert(to.0);
        }
        self.data.chunks.insert(to, ChunkRecord { file, index, epoch, replicas: Replicas::new(&replicas) });
        let gone: Vec<(u32, u32)> = self.gone_blocks(fork.from).collect();
        self.data.gone.extend(gone.into_iter().map(|(first, blocks)| ((to, first), blocks)));
        if let Ok(Inode { body: Body::File { chunks, .. }, .. }) = self.inode_mut(file) {
            chunks.replace(index, to);
        }
        self.data.forks.remove(&to);
        self.leave_chunk(file, fork.from, effects);
        for cs in fork.asked.into_iter().filter(|cs| !servers.contains(cs)) {
            self.must_delete(cs, vec![to], effects);
        }
        effects.extend(self.chunk(to).map(|view| Effect::SetChanged { view }));
    }

    fn cancel_fork(&mut self, to: ChunkId, effects: &mut Vec<Effect>) {
        for cs in self.data.forks.remove(&to).into_iter().flat_map(|fork| fork.asked) {
            self.must_delete(cs, vec![to], effects);
        }
    }

    /// Forks that are not there yet.
    pub fn forks(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.data.forks.keys().copied()
    }

    /// What a fork is made of, and by whom it has yet to be.
    pub fn fork(&self, to: ChunkId) -> Option<(ChunkId, Vec<CsId>)> {
        let fork = self.data.forks.get(&to)?;
        let is_missing = |cs: &&CsId| fork.done.iter().all(|(known, _)| known != *cs);
        Some((fork.from, fork.asked.iter().filter(is_missing).copied().collect()))
    }

    pub(super) fn is_fork_of(&self, cs: CsId, chunk: ChunkId) -> bool {
        self.data.forks.get(&chunk).is_some_and(|fork| fork.asked.contains(&cs))
    }
}
