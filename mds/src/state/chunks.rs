//! Chunks: placement of new ones, changes of replica sets, deletion, what repair should do next.

use super::answer::{ChunkView, Effect, Refusal, SetOutcome, SetResult, refuse};
use super::data::{Body, ChunkRecord, Replicas};
use super::{Liveness, Placement, RepairStep, SetAction, SetChange, State};
use roaring::RoaringTreemap;
use shards::sabotage::{Sabotage, on};
use std::collections::BTreeMap;
use wire::data::MAX_REPLICAS;
use wire::mds_api::ReplicaPolicy;
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, LeaseId, Role, Status};

/// Ranges of gone blocks remembered for a chunk.
const MOST_GONE: usize = 100;
const ORDER: [Role; 3] = [Role::InSync, Role::Learner, Role::Stale];

impl State {
    pub(super) fn view(&self, chunk: ChunkId, record: &ChunkRecord) -> ChunkView {
        let policy = self.chunk_policy(chunk, record.file);
        ChunkView {
            chunk,
            file: record.file,
            index: record.index,
            epoch: record.epoch,
            replicas: record.replicas.iter().collect(),
            in_sync_until: self.in_sync_until(chunk),
            min_replicas: policy.minimum,
            normal_replicas: policy.normal,
            is_shared: self.is_shared(chunk),
        }
    }

    fn in_sync_until(&self, chunk: ChunkId) -> Vec<(CsId, Epoch)> {
        let from = self.data.in_sync_until.range((chunk, CsId(0))..);
        from.take_while(|((of, _), _)| *of == chunk).map(|((_, cs), epoch)| (*cs, *epoch)).collect()
    }

    /// Since when fewer replicas of a chunk have been in sync than its minimum, and nobody came in: nothing was
    /// acknowledged at this epoch and later.
    pub fn below_minimum_since(&self, chunk: ChunkId) -> Option<Epoch> {
        self.data.below_minimum_since.get(&chunk).copied()
    }

    /// Whether a replica that is not in sync has all that was ever acknowledged, as far as is known here: it left with the
    /// epoch after which nothing was (docs/replication.md, "Nothing was missed").
    pub fn missed_nothing(&self, chunk: ChunkId, cs: CsId) -> bool {
        let until = self.data.in_sync_until.get(&(chunk, cs));
        until.zip(self.below_minimum_since(chunk)).is_some_and(|(until, since)| until.0 + 1 >= since.0)
    }

    /// The last replica in sync can't read some blocks, and a copy is needed: why they may not be given up. A replica that has
    /// all that was acknowledged is waited for, be it here or away for however long; so is one that may come back and lacks
    /// only what was written since it left. One that is being filled is not in the way: the primary asks only if it must be
    /// emptied.
    pub fn may_give_up(
        &self,
        primary: CsId,
        chunk: ChunkId,
        epoch: Epoch,
        live: &dyn Fn(CsId) -> Liveness,
    ) -> Result<(), String> {
        let Some(view) = self.chunk(chunk).filter(|v| v.epoch == epoch) else {
            return Err(format!("chunk {chunk} has another epoch than {epoch}"));
        };
        if !view.in_sync().eq([primary]) {
            return Err(format!("others have chunk {chunk} than CS#{primary}"));
        }
        let mut stale = view.with_role(Role::Stale);
        if let Some(whole) = stale.find(|cs| self.missed_nothing(chunk, *cs)) {
            return Err(format!(
                "CS#{whole} has all that was acknowledged of chunk {chunk}, and is waited for"
            ));
        }
        let was_in_sync = |cs: &CsId| view.in_sync_until.iter().any(|(known, _)| known == cs);
        let mut stale = view.with_role(Role::Stale).filter(was_in_sync);
        match stale.find(|cs| live(*cs) != Liveness::Offline) {
            Some(other) => Err(format!("CS#{other} may come back, with all blocks of chunk {chunk}")),
            None => Ok(()),
        }
    }

    /// A set has changed.
    fn note_minimum(&mut self, chunk: ChunkId, epoch: Epoch, is_below: bool, came_in: bool) {
        let below = &mut self.data.below_minimum_since;
        if !is_below || came_in {
            below.remove(&chunk);
        }
        if is_below {
            below.entry(chunk).or_insert(epoch);
        }
    }

    /// The minimum may have been another one.
    pub(super) fn forget_minimum(&mut self, chunk: ChunkId) {
        self.data.below_minimum_since.remove(&chunk);
    }

    /// From now on a replica may hold anything, or is in sync, or gone.
    fn forget_in_sync_until(&mut self, chunk: ChunkId, cs: CsId) {
        self.data.in_sync_until.remove(&(chunk, cs));
    }

    pub fn chunk(&self, chunk: ChunkId) -> Option<ChunkView> {
        self.data.chunks.get(chunk).map(|record| self.view(chunk, record))
    }

    pub fn map(&self, file: FileId, first: u32, count: u32) -> Result<Vec<ChunkView>, Refusal> {
        let Body::File { chunks, .. } = &self.inode(file)?.body else {
            return refuse(Status::IsDirectory, format!("file {file} has no chunks"));
        };
        Ok(chunks.range(first, count).filter_map(|(_, chunk)| self.chunk(chunk)).collect())
    }

    pub fn missing_chunks(
        &self,
        client: ClientId,
        file: FileId,
        lease: LeaseId,
        first: u32,
        count: u32,
    ) -> Result<Vec<u32>, Refusal> {
        let Body::File { chunks, .. } = &self.inode(file)?.body else {
            return refuse(Status::IsDirectory, format!("file {file} has no chunks"));
        };
        if !self.holds(client, file, lease) {
            return refuse(Status::LeaseLost, format!("lease {lease} of file {file}"));
        }
        if count > 1024 {
            return refuse(Status::InvalidArgument, "at most 1,024 chunks at once");
        }
        Ok((first..first.saturating_add(count)).filter(|index| !chunks.contains(*index)).collect())
    }

    pub(super) fn allocate(
        &mut self,
        client: ClientId,
        file: FileId,
        lease: LeaseId,
        first: u32,
        count: u32,
        placements: &[Placement],
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<ChunkView>, Refusal> {
        let missing = self.missing_chunks(client, file, lease, first, count)?;
        let placed: BTreeMap<u32, &Vec<CsId>> = placements.iter().map(|p| (p.index, &p.replicas)).collect();
        if let Some(index) = missing.iter().find(|index| placed.get(index).is_none_or(|r| r.is_empty())) {
            // A truncate came between: the client asks again.
            return refuse(Status::Busy, format!("chunk {index} of file {file} vanished meanwhile"));
        }
        for index in missing {
            let chunk = ChunkId(self.data.counters.next_chunk);
            self.data.counters.next_chunk += 1;
            let replicas: Vec<(CsId, Role)> = placed[&index].iter().map(|&cs| (cs, Role::InSync)).collect();
            for (cs, _) in &replicas {
                self.on_cs.entry(*cs).or_default().insert(chunk.0);
            }
            let replicas = Replicas::new(&replicas);
            self.data.chunks.insert(chunk, ChunkRecord { file, index, epoch: Epoch(1), replicas });
            if let Body::File { chunks, .. } = &mut self.inode_mut(file)?.body {
                chunks.insert(index, chunk);
            }
        }
        self.begin_forks(file, first, count, effects);
        self.map(file, first, count)
    }

    /// Takes chunks out of the map; every CS with a replica has to delete it.
    pub(super) fn delete_chunks(&mut self, chunks: &[ChunkId], effects: &mut Vec<Effect>) {
        let mut by_cs: BTreeMap<CsId, Vec<ChunkId>> = BTreeMap::new();
        for chunk in chunks {
            let Some(record) = self.data.chunks.remove(*chunk) else { continue };
            for (cs, _) in self.in_sync_until(*chunk) {
                self.forget_in_sync_until(*chunk, cs);
            }
            self.forget_minimum(*chunk);
            let gone: Vec<u32> = self.gone_blocks(*chunk).map(|(first, _)| first).collect();
            gone.into_iter().for_each(|first| {
                self.data.gone.remove(&(*chunk, first));
            });
            for (cs, _) in record.replicas.iter() {
                self.forget_on(cs, *chunk);
                by_cs.entry(cs).or_default().push(*chunk);
            }
        }
        for (cs, chunks) in by_cs {
            self.must_delete(cs, chunks, effects);
        }
    }

    fn forget_on(&mut self, cs: CsId, chunk: ChunkId) {
        if let Some(there) = self.on_cs.get_mut(&cs) {
            there.remove(chunk.0);
        }
    }

    pub(super) fn must_delete(&mut self, cs: CsId, chunks: Vec<ChunkId>, effects: &mut Vec<Effect>) {
        if chunks.is_empty() || self.data.small.cs.get(&cs).is_none_or(|r| r.dropped) {
            return;
        }
        self.data.pending_deletes.extend(chunks.iter().map(|chunk| (cs, *chunk)));
        effects.push(Effect::DeleteChunks { cs, chunks });
    }

    pub(super) fn change_set(&mut self, change: &SetChange, effects: &mut Vec<Effect>) -> SetResult {
        let outcome = self.try_change(change, effects);
        let set = self.chunk(change.chunk);
        if let (SetOutcome::Changed, Some(view)) = (outcome, &set) {
            effects.push(Effect::SetChanged { view: view.clone() });
            self.look_at_forks_of(change.chunk, effects);
        }
        SetResult { chunk: change.chunk, outcome, set }
    }

    fn try_change(&mut self, change: &SetChange, effects: &mut Vec<Effect>) -> SetOutcome {
        let Some(view) = self.chunk(change.chunk) else { return SetOutcome::Gone };
        if view.epoch != change.epoch && !on(Sabotage::StaleSetChanges) {
            return SetOutcome::OtherEpoch;
        }
        let mut replicas = view.replicas.clone();
        let mut left = Vec::new();
        let in_sync = |replicas: &[(CsId, Role)]| replicas.iter().filter(|r| r.1 == Role::InSync).count();
        match &change.action {
            SetAction::Drop { cs, force } => {
                let primary_lost = view.primary().is_some_and(|p| cs.contains(&p));
                let mut changed = false;
                for replica in replicas.iter_mut().filter(|r| cs.contains(&r.0) && r.1 != Role::Stale) {
                    if replica.1 == Role::InSync {
                        left.push(replica.0);
                    }
                    replica.1 = Role::Stale;
                    changed = true;
                }
                if !changed {
                    return SetOutcome::Unchanged;
                }
                let in_sync_lost = in_sync(&view.replicas) > in_sync(&replicas);
                if in_sync(&replicas) == 0 {
                    return SetOutcome::NoneWouldRemain;
                }
                let too_few = in_sync(&replicas) < usize::from(view.min_replicas);
                if in_sync_lost && too_few && !force && !primary_lost {
                    return SetOutcome::BelowMinimum;
                }
            }
            SetAction::Damaged { cs, force } => {
                let Some(role) = view.role_of(*cs) else { return SetOutcome::WrongReplica };
                let left = in_sync(&view.replicas) - usize::from(role == Role::InSync);
                let too_few = left < usize::from(view.min_replicas);
                if left == 0 {
                    return SetOutcome::NoneWouldRemain;
                }
                if role == Role::InSync && too_few && !force && view.primary() != Some(*cs) {
                    return SetOutcome::BelowMinimum;
                }
                self.forget_in_sync_until(change.chunk, *cs);
                if role == Role::Stale {
                    return SetOutcome::Unchanged;
                }
                replicas.iter_mut().filter(|r| r.0 == *cs).for_each(|r| r.1 = Role::Stale);
            }
            SetAction::AddLearner { cs } => {
                let pending = self.data.pending_deletes.contains(&(*cs, change.chunk));
                let known = self.data.small.cs.get(cs).is_some_and(|r| !r.dropped);
                match view.role_of(*cs) {
                    _ if !known => return SetOutcome::WrongReplica,
                    _ if pending => return SetOutcome::DeletePending,
                    Some(Role::Learner) => return SetOutcome::Unchanged,
                    Some(Role::InSync) => return SetOutcome::WrongReplica,
                    Some(Role::Stale) => {
                        replicas.iter_mut().filter(|r| r.0 == *cs).for_each(|r| r.1 = Role::Learner)
                    }
                    None if replicas.len() >= MAX_REPLICAS => return SetOutcome::Full,
                    None => replicas.push((*cs, Role::Learner)),
                }
            }
            SetAction::Joined { cs } => match view.role_of(*cs) {
                Some(Role::Learner) => {
                    self.forget_in_sync_until(change.chunk, *cs);
                    replicas.iter_mut().filter(|r| r.0 == *cs).for_each(|r| r.1 = Role::InSync)
                }
                Some(Role::InSync) => return SetOutcome::Unchanged,
                _ => return SetOutcome::WrongReplica,
            },
            SetAction::Remove { cs, force } => {
                let Some(role) = view.role_of(*cs) else { return SetOutcome::WrongReplica };
                replicas.retain(|r| r.0 != *cs);
                if role == Role::InSync && in_sync(&replicas) == 0 {
                    return SetOutcome::NoneWouldRemain;
                }
                if role == Role::InSync && in_sync(&replicas) < usize::from(view.min_replicas) && !force {
                    return SetOutcome::BelowMinimum;
                }
                self.forget_in_sync_until(change.chunk, *cs);
                self.forget_on(*cs, change.chunk);
                self.must_delete(*cs, vec![change.chunk], effects);
            }
        }
        for cs in left {
            self.data.in_sync_until.insert((change.chunk, cs), view.epoch);
        }
        // A stable sort: the primary stays in front while it is in sync.
        replicas.sort_by_key(|r| ORDER.iter().position(|o| *o == r.1));
        for (cs, _) in &replicas {
            self.on_cs.entry(*cs).or_default().insert(change.chunk.0);
        }
        let (is_below, epoch) =
            (in_sync(&replicas) < usize::from(view.min_replicas), Epoch(view.epoch.0 + 1));
        let came_in = matches!(change.action, SetAction::Joined { .. });
        self.note_minimum(change.chunk, epoch, is_below, came_in);
        let record = self.data.chunks.get_mut(change.chunk).expect("seen above");
        (record.replicas, record.epoch) = (Replicas::new(&replicas), epoch);
        SetOutcome::Changed
    }

    pub fn list_chunks(&self, after: ChunkId, limit: u32) -> Vec<ChunkView> {
        let behind = self.data.chunks.range(ChunkId(after.0.saturating_add(1)));
        behind.take(limit as usize).map(|(chunk, record)| self.view(chunk, record)).collect()
    }

    /// Chunks with a replica (of any role) on the CS, in order of id, above `after`.
    pub fn chunks_on(&self, cs: CsId, after: ChunkId) -> Box<dyn Iterator<Item = ChunkId> + '_> {
        let mut chunks = self.on_cs.get(&cs).map(RoaringTreemap::iter);
        if let Some(chunks) = &mut chunks {
            chunks.advance_to(after.0.saturating_add(1));
        }
        Box::new(chunks.into_iter().flatten().map(ChunkId))
    }

    pub fn replica_count(&self, cs: CsId) -> u64 {
        self.on_cs.get(&cs).map_or(0, RoaringTreemap::len)
    }

    /// What repair should do next for a chunk.
    pub fn repair_step(&self, chunk: ChunkId, live: &dyn Fn(CsId) -> Liveness) -> Option<RepairStep> {
        let view = self.chunk(chunk)?;
        let change = |action| Some(RepairStep::Change(SetChange { chunk, epoch: view.epoch, action }));
        let in_sync: Vec<CsId> = view.in_sync().collect();
        let normal = usize::from(view.normal_replicas);
        // Without a living primary nobody can fill anything.
        let primary = view.primary()?;
        if live(primary) != Liveness::Active {
            let others = in_sync.iter().any(|cs| live(*cs) == Liveness::Active);
            let offline = live(primary) == Liveness::Offline && others;
            return if offline { change(SetAction::Drop { cs: vec![primary], force: true }) } else { None };
        }
        let learner = view.with_role(Role::Learner).next();
        if let Some(learner) = learner {
            return match live(learner) {
                Liveness::Active => Some(RepairStep::Filling { view }),
                _ => change(SetAction::Drop { cs: vec![learner], force: true }),
            };
        }
        if let Some(gone) = in_sync.iter().find(|cs| live(**cs) == Liveness::Offline) {
            return change(SetAction::Drop { cs: vec![*gone], force: true });
        }
        let stale: Vec<CsId> = view.with_role(Role::Stale).collect();
        // Rather one that needs only what was written since, and stays: the copy of another would be ended in its favour
        // (repair.rs, `needless_learner`), and begun again.
        let is_leaving = |cs: &CsId| self.data.small.cs.get(cs).is_some_and(|record| record.draining);
        let needs_all = |cs: &CsId| view.in_sync_until.iter().all(|(known, _)| known != cs);
        let back = stale.iter().filter(|cs| live(**cs) == Liveness::Active);
        let missed_nothing = |cs: &CsId| self.missed_nothing(chunk, *cs);
        let best = |cs: &&CsId| (!missed_nothing(cs), is_leaving(cs) || needs_all(cs));
        if in_sync.len() < normal
            && let Some(back) = back.min_by_key(best)
        {
            return change(SetAction::AddLearner { cs: *back });
        }
        // A stale replica whose server is offline stays until the set is whole without it: should the server come back
        // first, it need not be copied anew.
        let (lost, awaited): (Vec<CsId>, Vec<CsId>) =
            stale.iter().partition(|cs| live(**cs) == Liveness::Offline);
        let in_the_way = lost.iter().find(|cs| !missed_nothing(cs)).or(lost.first());
        let in_the_way = in_the_way.filter(|_| view.replicas.len() >= MAX_REPLICAS);
        if let Some(gone) = stale.first().filter(|_| in_sync.len() >= normal).or(in_the_way) {
            return change(SetAction::Remove { cs: *gone, force: true });
        }
        if in_sync.len() > normal {
            return Some(RepairStep::Surplus { view });
        }
        // Writes wait below the minimum: such a chunk does not wait for anybody to return.
        if in_sync.len() + awaited.len() < normal || in_sync.len() < usize::from(view.min_replicas) {
            let policy = self.chunk_policy(chunk, view.file);
            return Some(RepairStep::Place { exclude: view.replicas.iter().map(|r| r.0).collect(), policy });
        }
        None
    }

    /// Notes blocks that no replica holds any more. Whether that is news.
    pub(super) fn note_gone(&mut self, chunk: ChunkId, first_block: u32, blocks: u32) -> bool {
        if !self.data.chunks.contains(chunk) {
            return false;
        }
        let before = self.gone_blocks(chunk).take_while(|(first, _)| *first <= first_block).last();
        let known = before
            .is_some_and(|(first, count)| first.saturating_add(count) >= first_block.saturating_add(blocks));
        if !known && self.gone_blocks(chunk).count() < MOST_GONE {
            let here = (chunk, first_block);
            let longest = self.data.gone.get(&here).map_or(blocks, |count| blocks.max(*count));
            self.data.gone.insert(here, longest);
        }
        !known
    }

    /// Ranges of blocks of a chunk that no replica held any more when they were to be copied: first block and number.
    pub fn gone_blocks(&self, chunk: ChunkId) -> impl Iterator<Item = (u32, u32)> + '_ {
        let from = self.data.gone.range((chunk, 0)..);
        from.take_while(move |((of, _), _)| *of == chunk).map(|((_, first), count)| (*first, *count))
    }

    /// Chunks of a file, in its order.
    pub fn chunks_of(&self, file: FileId) -> Box<dyn Iterator<Item = ChunkView> + '_> {
        let chunks = self.data.inodes.get(file).and_then(|inode| match &inode.body {
            Body::File { chunks, .. } => Some(chunks),
            _ => None,
        });
        Box::new(chunks.into_iter().flat_map(|c| c.chunks()).filter_map(|c| self.chunk(c)))
    }

    pub fn all_chunks(&self) -> impl Iterator<Item = ChunkView> + '_ {
        self.data.chunks.iter().map(|(chunk, record)| self.view(chunk, record))
    }

    /// Policy of the file of a chunk, or of the files that share it.
    pub fn policy_of(&self, view: &ChunkView) -> ReplicaPolicy {
        self.chunk_policy(view.chunk, view.file)
    }

    /// Replicas that servers have yet to delete.
    pub fn deleting(&self) -> u64 {
        self.data.pending_deletes.len() as u64
    }
}
