//! Repair: which chunk gets its missing replicas next. Run by the master; volatile, found again from the state.
//!
//! Chunks come here when something about them changed (their set, one of their servers) and by a slow scan over all of
//! them, which finds what no event told. The state says what a chunk needs ([`RepairStep`]); here is when, in which
//! order and how many at a time.
//!
//! Invariants:
//! - the chunk with the fewest in-sync replicas goes first;
//! - a primary shard fills at most `limit` chunks at a time;
//! - at most one change per chunk is in flight;
//! - the primary hears of a fill again when it, its connection or the epoch changed, and every [`REMIND`].

use crate::cs_registry::CsRegistry;
use crate::placement::{self, CsView, Deviation};
use crate::state::{ChunkView, Liveness, RepairStep, SetAction, SetChange, State};
use shards::{ConnId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::{ChunkId, CsId, Epoch, Role, ShardIndex};

/// Chunks looked at in one step.
const LOOKS_PER_STEP: usize = 256;
/// Chunks the scan reads in one step.
const SCAN_PER_STEP: u32 = 128;
/// Pause between the end of a scan and the next one.
const SCAN_PAUSE: Duration = Duration::from_secs(10);
/// A fill that goes on is mentioned to its primary again after this time.
const REMIND: Duration = Duration::from_secs(10);

/// What the repair loop needs to know of the world.
pub struct World<'a> {
    pub state: &'a State,
    pub registry: &'a CsRegistry,
    /// All servers, there or not.
    pub servers: &'a BTreeMap<CsId, CsView>,
    /// Those that may take new replicas.
    pub candidates: &'a [CsView],
    pub now: Timestamp,
    pub offline_after: Duration,
    /// Fills at a time per primary shard.
    pub limit: usize,
    /// False when too many servers are offline: then a person decides, and only returning replicas are filled.
    pub may_place: bool,
}

impl World<'_> {
    fn views(&self, of: impl Iterator<Item = CsId>) -> Vec<&CsView> {
        of.filter_map(|cs| self.servers.get(&cs)).collect()
    }

    /// Liveness for repairs. A server that is to leave is not waited for.
    fn live(&self, cs: CsId) -> Liveness {
        let live = self.registry.repair_liveness(cs, self.now, self.offline_after);
        let is_away = self.registry.liveness(cs, self.now, self.offline_after) != Liveness::Active;
        if self.is_leaving(cs) && is_away { Liveness::Offline } else { live }
    }

    fn is_leaving(&self, cs: CsId) -> bool {
        self.servers.get(&cs).is_some_and(|v| v.leaving)
    }

    /// Whether a chunk with all its replicas has them in other places than its policy wishes.
    fn is_misplaced(&self, view: &ChunkView) -> bool {
        let set = self.views(view.in_sync());
        set.len() == view.replicas.len()
            && set.len() == usize::from(view.normal_replicas)
            && self.state.policy(view.file).is_ok_and(|p| Deviation::of(&set, &p) != Deviation::default())
    }

    /// Takes the replica out that the set can best do without. The primary goes in two steps, as one that failed would:
    /// first another one leads, then the copy is deleted.
    fn dismiss(&self, view: &ChunkView) -> Option<SetAction> {
        let policy = self.state.policy(view.file).ok()?;
        let cs = placement::surplus(&self.views(view.in_sync()), &policy)?;
        Some(if view.primary() == Some(cs) {
            SetAction::Drop { cs: vec![cs], force: false }
        } else {
            SetAction::Remove { cs, force: false }
        })
    }
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Propose(SetChange),
    /// Tell the primary at this connection to fill the learners of the set.
    Fill {
        conn: ConnId,
        view: ChunkView,
    },
}

struct Fill {
    primary: CsId,
    shard: ShardIndex,
    epoch: Epoch,
    conn: ConnId,
    told_at: Timestamp,
}

#[derive(Default)]
pub struct Repair {
    /// To be looked at; smallest number of in-sync replicas first.
    queue: BTreeSet<(usize, ChunkId)>,
    urgency: BTreeMap<ChunkId, usize>,
    fills: BTreeMap<ChunkId, Fill>,
    proposed: BTreeSet<ChunkId>,
    /// Chunks for which no (better) place was found.
    homeless: BTreeSet<ChunkId>,
    scan_after: ChunkId,
    scan_at: Timestamp,
}

impl Repair {
    /// Has a chunk looked at soon.
    pub fn look_at(&mut self, chunk: ChunkId, state: &State) {
        if let Some(view) = state.chunk(chunk) {
            self.enqueue(chunk, view.in_sync().count());
        } else {
            self.forget(chunk);
        }
    }

    /// Has all chunks of a server looked at.
    pub fn look_at_server(&mut self, cs: CsId, state: &State) {
        let chunks: Vec<ChunkId> = state.chunks_on(cs, ChunkId(0)).collect();
        for chunk in chunks {
            self.look_at(chunk, state);
        }
    }

    /// Has all chunks looked at, now.
    pub fn scan_anew(&mut self) {
        (self.scan_after, self.scan_at) = (ChunkId(0), Timestamp(0));
    }

    fn enqueue(&mut self, chunk: ChunkId, in_sync: usize) {
        if let Some(old) = self.urgency.insert(chunk, in_sync) {
            self.queue.remove(&(old, chunk));
        }
        self.queue.insert((in_sync, chunk));
    }

    fn forget(&mut self, chunk: ChunkId) {
        if let Some(old) = self.urgency.remove(&chunk) {
            self.queue.remove(&(old, chunk));
        }
        self.fills.remove(&chunk);
        self.homeless.remove(&chunk);
    }

    /// A change proposed from here was applied or refused.
    pub fn change_done(&mut self, chunk: ChunkId, state: &State) {
        self.proposed.remove(&chunk);
        self.look_at(chunk, state);
    }

    /// Changes proposed from here will not be applied.
    pub fn changes_lost(&mut self) {
        self.proposed.clear();
    }

    /// Chunks being filled now.
    pub fn filling(&self) -> usize {
        self.fills.len()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Replicas on a server for which there is no other place.
    pub fn without_place(&self, cs: CsId, state: &State) -> u64 {
        let is_there = |chunk: &&ChunkId| state.chunk(**chunk).is_some_and(|v| v.role_of(cs).is_some());
        self.homeless.iter().filter(is_there).count() as u64
    }

    /// What to do now.
    pub fn step(&mut self, world: &World<'_>, random: &mut dyn FnMut() -> u64) -> Vec<Action> {
        self.scan(world);
        self.end_orphans(world);
        let mut busy: BTreeMap<(CsId, ShardIndex), usize> = BTreeMap::new();
        for fill in self.fills.values() {
            *busy.entry((fill.primary, fill.shard)).or_default() += 1;
        }
        let mut actions = Vec::new();
        let mut later = Vec::new();
        for _ in 0..LOOKS_PER_STEP {
            let Some((in_sync, chunk)) = self.queue.pop_first() else { break };
            self.urgency.remove(&chunk);
            if self.proposed.contains(&chunk) {
                continue; // looked at again when the change is done
            }
            match self.plan(chunk, world, &busy, random) {
                Plan::Nothing => {
                    self.fills.remove(&chunk);
                    self.homeless.remove(&chunk);
                }
                Plan::Homeless => {
                    self.fills.remove(&chunk);
                    self.homeless.insert(chunk);
                }
                Plan::Later => later.push((in_sync, chunk)),
                Plan::Change(change) => {
                    if let (SetAction::AddLearner { .. }, Some(key)) =
                        (&change.action, primary_shard(chunk, world))
                    {
                        *busy.entry(key).or_default() += 1;
                    }
                    self.homeless.remove(&chunk);
                    self.proposed.insert(chunk);
                    actions.push(Action::Propose(change));
                }
                Plan::Fill(view) => actions.extend(self.tell(view, world)),
            }
        }
        for (in_sync, chunk) in later {
            self.enqueue(chunk, in_sync);
        }
        actions
    }

    /// Reads on through all chunks and queues those that need something.
    fn scan(&mut self, world: &World<'_>) {
        if world.now < self.scan_at {
            return;
        }
        let live = |cs| world.live(cs);
        let views = world.state.list_chunks(self.scan_after, SCAN_PER_STEP);
        for view in &views {
            let wants = || {
                has_lost_learner(view, world)
                    || world.state.repair_step(view.chunk, &live).is_some()
                    || world.is_misplaced(view)
            };
            if !self.urgency.contains_key(&view.chunk) && wants() {
                self.enqueue(view.chunk, view.in_sync().count());
            }
        }
        match views.last() {
            Some(last) if views.len() == SCAN_PER_STEP as usize => self.scan_after = last.chunk,
            _ => {
                self.scan_after = ChunkId(0);
                self.scan_at = world.now.after(SCAN_PAUSE);
            }
        }
    }

    /// Fills whose primary is gone or that nobody mentioned for long are looked at again.
    fn end_orphans(&mut self, world: &World<'_>) {
        let stale = |(chunk, fill): (&ChunkId, &Fill)| {
            let conn = world.registry.conn_for(fill.primary, *chunk);
            (conn != Some(fill.conn) || world.now.since(fill.told_at) >= REMIND).then_some(*chunk)
        };
        let again: Vec<ChunkId> = self.fills.iter().filter_map(stale).collect();
        for chunk in again {
            if world.state.chunk(chunk).is_none() {
                self.forget(chunk);
            } else if !self.urgency.contains_key(&chunk) {
                self.look_at(chunk, world.state);
            }
        }
    }

    fn plan(
        &mut self,
        chunk: ChunkId,
        world: &World<'_>,
        busy: &BTreeMap<(CsId, ShardIndex), usize>,
        random: &mut dyn FnMut() -> u64,
    ) -> Plan {
        let Some(view) = world.state.chunk(chunk) else { return Plan::Nothing };
        let change = |action| Plan::Change(SetChange { chunk, epoch: view.epoch, action });
        let lost = lost_learners(&view, world);
        if !lost.is_empty() {
            return change(SetAction::Drop { cs: lost, force: false });
        }
        let live = |cs| world.live(cs);
        let full =
            || primary_shard(chunk, world).is_some_and(|k| busy.get(&k).is_some_and(|n| *n >= world.limit));
        match world.state.repair_step(chunk, &live) {
            None if world.is_misplaced(&view) && full() => Plan::Later,
            None if world.is_misplaced(&view) => self.move_closer(&view, world, random),
            None => Plan::Nothing,
            Some(RepairStep::Filling { view }) => Plan::Fill(view),
            Some(RepairStep::Change(c)) if matches!(c.action, SetAction::AddLearner { .. }) && full() => {
                Plan::Later
            }
            // A stale replica there would only have to leave again.
            Some(RepairStep::Change(SetChange { action: SetAction::AddLearner { cs }, .. }))
                if world.is_leaving(cs) && world.may_place =>
            {
                let taken = world.views(view.replicas.iter().map(|r| r.0));
                let Ok(policy) = world.state.policy(view.file) else { return Plan::Nothing };
                let elsewhere = placement::choose(world.candidates, &policy, 1, 1, &taken, 0, random);
                change(SetAction::AddLearner { cs: elsewhere.map_or(cs, |chosen| chosen[0]) })
            }
            Some(RepairStep::Change(c)) => Plan::Change(c),
            Some(RepairStep::Surplus { view }) => world.dismiss(&view).map_or(Plan::Nothing, change),
            Some(RepairStep::Place { .. }) if !world.may_place => Plan::Nothing,
            Some(RepairStep::Place { .. }) if full() => Plan::Later,
            Some(RepairStep::Place { exclude, policy }) => {
                let taken = world.views(exclude.into_iter());
                match placement::choose(world.candidates, &policy, 1, 1, &taken, 0, random) {
                    Ok(chosen) => change(SetAction::AddLearner { cs: chosen[0] }),
                    Err(_) => Plan::Homeless,
                }
            }
        }
    }

    /// A chunk that lacks nothing is brought closer to its policy: first one replica more, then the surplus one leaves.
    fn move_closer(&self, view: &ChunkView, world: &World<'_>, random: &mut dyn FnMut() -> u64) -> Plan {
        let (true, Ok(policy)) = (world.may_place, world.state.policy(view.file)) else {
            return Plan::Nothing;
        };
        let set = world.views(view.in_sync());
        let better = placement::improve(&set, world.candidates, &policy, random);
        better.map_or(Plan::Homeless, |(_, to)| {
            let (chunk, epoch) = (view.chunk, view.epoch);
            Plan::Change(SetChange { chunk, epoch, action: SetAction::AddLearner { cs: to } })
        })
    }

    /// Has the primary told, unless it knows.
    fn tell(&mut self, view: ChunkView, world: &World<'_>) -> Option<Action> {
        let chunk = view.chunk;
        let primary = view.primary()?;
        let (conn, shard) =
            (world.registry.conn_for(primary, chunk)?, world.registry.shard_for(primary, chunk)?);
        let knows = |f: &Fill| {
            f.conn == conn
                && f.epoch == view.epoch
                && world.now.since(f.told_at) < REMIND
                && f.primary == primary
        };
        if self.fills.get(&chunk).is_some_and(knows) {
            return None;
        }
        self.fills.insert(chunk, Fill { primary, shard, epoch: view.epoch, conn, told_at: world.now });
        Some(Action::Fill { conn, view })
    }
}

enum Plan {
    Nothing,
    /// There is no (better) place: the scan, or a server that comes, brings it back.
    Homeless,
    Later,
    Change(SetChange),
    Fill(ChunkView),
}

fn primary_shard(chunk: ChunkId, world: &World<'_>) -> Option<(CsId, ShardIndex)> {
    let primary = world.state.chunk(chunk)?.primary()?;
    Some((primary, world.registry.shard_for(primary, chunk)?))
}

/// Learners whose server went away.
fn lost_learners(view: &ChunkView, world: &World<'_>) -> Vec<CsId> {
    let gone = |cs: &CsId| world.live(*cs) != Liveness::Active;
    view.with_role(Role::Learner).filter(gone).collect()
}

fn has_lost_learner(view: &ChunkView, world: &World<'_>) -> bool {
    !lost_learners(view, world).is_empty()
}

#[cfg(test)]
mod tests;
