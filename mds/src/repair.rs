//! Repair: which chunk gets its missing replicas next, and which ones move. Run by the master; volatile, found again from
//! the state.
//!
//! Chunks come here when something about them changed (their set, one of their servers) and by a slow scan over all of
//! them, which finds what no event told. The state says what a chunk needs ([`RepairStep`]), [`crate::placement`] where; here
//! is when, in which order ([`queue`]) and how many at a time ([`slots`]).
//!
//! Invariants:
//! - of the chunks that a shard leads, the one with the fewest in-sync replicas is copied first; those in no danger last;
//! - no more copies at a time, from a shard and to a server, than the limits say;
//! - a slot is taken while a change that makes a learner is in flight and while a learner is being filled, and no longer;
//! - at most one change per chunk is in flight;
//! - the primary hears of a fill again when it, its connection or the epoch changed, and every [`REMIND`].

mod balance;
mod progress;
mod queue;
mod slots;

pub use slots::Limits;

use crate::cs_registry::CsRegistry;
use crate::placement::{self, CsView, Deviation};
use crate::state::{ChunkView, Liveness, RepairStep, SetAction, SetChange, State};
use balance::Balance;
use progress::Progress;
use queue::{Queue, Source, Urgency};
use shards::{ConnId, Timestamp};
use slots::Slots;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::mds_api::RepairStat;
use wire::{ChunkId, CsId, Epoch, Role};

/// Chunks looked at in one step.
const LOOKS_PER_STEP: usize = 256;
/// Chunks the scan reads in one step.
const SCAN_PER_STEP: u32 = 128;
/// Pause between the end of a scan and the next one.
const SCAN_PAUSE: Duration = Duration::from_secs(10);
/// A fill that goes on is mentioned to its primary again after this time.
const REMIND: Duration = Duration::from_secs(10);
/// Chunks tried for a free slot of a shard in one step: the servers they would be copied to may be busy.
const TRIES_PER_SOURCE: usize = 16;

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
    pub limits: Limits,
    /// By how much the used shares of the space of two servers differ when balance begins; 0: never.
    pub balance_margin: f64,
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

    /// Why a chunk that lacks nothing should move, if it should: it is not where its policy wishes.
    fn reason_to_move(&self, view: &ChunkView) -> Option<Urgency> {
        let set = self.views(view.in_sync());
        let lacks_nothing =
            set.len() == view.replicas.len() && set.len() == usize::from(view.normal_replicas);
        let policy = self.state.policy(view.file).ok().filter(|_| lacks_nothing)?;
        let deviation = Deviation::of(&set, &policy);
        let is_whole = || set.iter().all(|v| self.live(v.cs) == Liveness::Active);
        match deviation {
            Deviation { shared: 1.., .. } if is_whole() => Some(Urgency::Shared),
            Deviation { leaving: 1.., .. } if is_whole() => Some(Urgency::Leaving),
            Deviation { other_tier: 1.., .. } if is_whole() => Some(Urgency::OtherTier),
            _ => None,
        }
    }

    /// A learner in whose place a replica has come back that needs less: what was written since, or nothing at all.
    fn needless_learner(&self, view: &ChunkView) -> Option<SetAction> {
        let was_in_sync = |cs: &CsId| view.in_sync_until.iter().any(|(known, _)| known == cs);
        let missed_nothing = |cs: &CsId| self.state.missed_nothing(view.chunk, *cs);
        let back: Vec<CsId> =
            view.with_role(Role::Stale).filter(|cs| self.live(*cs) == Liveness::Active).collect();
        let mut learners = view.with_role(Role::Learner);
        if back.iter().any(missed_nothing) {
            // Even if it is to leave: the primary may lack what it has.
            let other = learners.find(|cs| !missed_nothing(cs))?;
            return Some(if was_in_sync(&other) {
                SetAction::Drop { cs: vec![other], force: true }
            } else {
                SetAction::Remove { cs: other, force: true }
            });
        }
        let back = back.iter().any(|cs| was_in_sync(cs) && !self.is_leaving(*cs));
        let in_sync = view.in_sync().count();
        // Writes that wait go on sooner with the one that is back.
        let blocked = in_sync < usize::from(view.min_replicas);
        let one_will_do = blocked || in_sync + 1 == usize::from(view.normal_replicas);
        let needless = learners.find(|cs| !was_in_sync(cs)).filter(|_| back && one_will_do)?;
        Some(SetAction::Remove { cs: needless, force: true })
    }

    /// A primary that rests because it is slow makes every write and every read slow: another one leads, where the set
    /// can spare it.
    fn slow_primary(&self, view: &ChunkView) -> Option<SetAction> {
        let slow = view.primary().filter(|cs| self.registry.is_slow(*cs, self.now))?;
        let is_well = |cs: &CsId| {
            *cs != slow && self.live(*cs) == Liveness::Active && !self.registry.is_slow(*cs, self.now)
        };
        let remain = view.in_sync().filter(is_well).count();
        let is_spared = remain >= usize::from(view.min_replicas.max(1));
        is_spared.then(|| SetAction::Drop { cs: vec![slow], force: false })
    }

    /// The shard that leads the chunk.
    fn source(&self, view: &ChunkView) -> Option<Source> {
        let primary = view.primary()?;
        Some((primary, self.registry.shard_for(primary, view.chunk)?))
    }

    /// Takes the replica out that the set can best do without, or the one wished if that is as good. The primary goes in
    /// two steps, as one that failed would: first another one leads, then the copy is deleted.
    fn dismiss(&self, view: &ChunkView, wished: Option<CsId>) -> Option<SetAction> {
        if view.in_sync().any(|cs| self.live(cs) != Liveness::Active) {
            return None; // one that is away for a moment may be missed soon
        }
        let policy = self.state.policy(view.file).ok()?;
        let set = self.views(view.in_sync());
        let after = |cs: CsId| {
            let rest: Vec<&CsView> = set.iter().copied().filter(|v| v.cs != cs).collect();
            Deviation::of(&rest, &policy)
        };
        let best = placement::surplus(&set, &policy)?;
        let wished = wished.filter(|cs| view.role_of(*cs) == Some(Role::InSync) && after(*cs) <= after(best));
        let cs = wished.unwrap_or(best);
        Some(if view.primary() == Some(cs) {
            SetAction::Drop { cs: vec![cs], force: false }
        } else {
            SetAction::Remove { cs, force: false }
        })
    }
}

/// How far the help for a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing is to be done, nothing can be done now, or it is looked at next.
    Idle,
    /// It waits for its turn to be copied.
    Waiting,
    /// A copy is being made or begun.
    Copying,
    /// No server can take the replica it lacks, or none better.
    WithoutPlace,
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

/// A chunk whose learners are being filled.
struct Fill {
    source: Source,
    learners: Vec<CsId>,
    epoch: Epoch,
    conn: ConnId,
    told_at: Timestamp,
}

#[derive(Default)]
pub struct Repair {
    queue: Queue,
    fills: BTreeMap<ChunkId, Fill>,
    /// Changes in flight; those that make a learner with the slots they take.
    proposed: BTreeMap<ChunkId, Option<(Source, CsId)>>,
    /// Chunks for which no (better) place was found.
    homeless: BTreeSet<ChunkId>,
    progress: Progress,
    balance: Balance,
    /// All chunks have been looked at since this mastership began.
    scanned: bool,
    scan_after: ChunkId,
    scan_at: Timestamp,
}

enum Plan {
    Nothing,
    /// There is no (better) place: the scan, or a server that comes, brings it back.
    Homeless,
    /// Needs no slot.
    Change(SetChange),
    /// A learner more, for which the source and the target need a slot.
    Copy {
        change: SetChange,
        source: Source,
        target: CsId,
        urgency: Urgency,
    },
    Fill(ChunkView),
}

impl Repair {
    /// Has a chunk looked at soon.
    pub fn look_at(&mut self, chunk: ChunkId, state: &State) {
        match state.chunk(chunk) {
            Some(view) => self.queue.look(chunk, first_guess(&view)),
            None => self.forget(chunk),
        }
    }

    /// Has all chunks of a server looked at.
    pub fn look_at_server(&mut self, cs: CsId, state: &State) {
        let chunks: Vec<ChunkId> = state.chunks_on(cs, ChunkId(0)).collect();
        for chunk in chunks {
            self.look_at(chunk, state);
        }
    }

    /// Has all chunks looked at, now. Those without a place are found anew: one that needs none any more is not looked at.
    pub fn scan_anew(&mut self) {
        self.homeless.clear();
        (self.scan_after, self.scan_at) = (ChunkId(0), Timestamp(0));
    }

    fn forget(&mut self, chunk: ChunkId) {
        self.queue.remove(chunk);
        self.fills.remove(&chunk);
        self.homeless.remove(&chunk);
        self.balance.forget(chunk);
    }

    /// A change proposed from here was applied or refused.
    pub fn change_done(&mut self, chunk: ChunkId, state: &State) {
        self.proposed.remove(&chunk);
        self.look_at(chunk, state);
    }

    /// Changes proposed from here will not be applied.
    pub fn changes_lost(&mut self, state: &State) {
        for chunk in std::mem::take(&mut self.proposed).into_keys() {
            self.look_at(chunk, state);
        }
    }

    /// How far the help for a chunk is.
    pub fn stage(&self, chunk: ChunkId) -> Stage {
        match () {
            () if self.fills.contains_key(&chunk) || self.proposed.contains_key(&chunk) => Stage::Copying,
            () if self.queue.is_waiting(chunk) => Stage::Waiting,
            () if self.homeless.contains(&chunk) => Stage::WithoutPlace,
            () => Stage::Idle,
        }
    }

    /// Chunks that wait for their copy or are copied, those left out that only move for balance.
    pub fn mending(&self) -> usize {
        self.queue.waiting() + self.fills.keys().filter(|c| !self.balance.is_move(**c)).count()
    }

    pub fn is_mending(&self) -> bool {
        self.fills.keys().any(|c| !self.balance.is_move(*c))
    }

    /// Nothing is to be looked at or decided, as far as is known.
    pub fn has_settled(&self) -> bool {
        self.queue.is_empty() && self.proposed.keys().all(|c| self.balance.is_move(*c))
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.fills.is_empty() && self.proposed.is_empty()
    }

    pub fn stat(&self, now: Timestamp) -> RepairStat {
        let left = (self.queue.waiting() + self.fills.len()) as u64;
        RepairStat {
            waiting: self.queue.waiting() as u64,
            copying: self.fills.len() as u64,
            without_place: self.homeless.len() as u64,
            done: self.progress.done(),
            copies_total: self.progress.total(),
            chunks_per_s: self.progress.per_s(now),
            seconds_left: self.progress.seconds_left(left, now).filter(|_| left > 0),
        }
    }

    /// Replicas on a server for which there is no other place.
    pub fn without_place(&self, cs: CsId, state: &State) -> u64 {
        let is_there = |chunk: &&ChunkId| state.chunk(**chunk).is_some_and(|v| v.role_of(cs).is_some());
        self.homeless.iter().filter(is_there).count() as u64
    }

    /// What to do now.
    pub fn step(&mut self, world: &World<'_>, random: &mut dyn FnMut() -> u64) -> Vec<Action> {
        self.scan(world);
        self.review_fills(world);
        let mut actions = Vec::new();
        for _ in 0..LOOKS_PER_STEP {
            let Some(chunk) = self.queue.next_look() else { break };
            if self.proposed.contains_key(&chunk) {
                continue; // looked at again when the change is done
            }
            self.balance.review(chunk, world.state.chunk(chunk).as_ref(), world.now);
            let plan = self.plan(chunk, world, random);
            actions.extend(self.begin(chunk, plan, world));
        }
        self.hand_out_slots(world, random, &mut actions);
        self.balance(world, random, &mut actions);
        self.progress.set_busy(!self.is_idle(), world.now);
        actions
    }

    /// Moves replicas from full servers to empty ones, while everything is as it should be.
    fn balance(&mut self, world: &World<'_>, random: &mut dyn FnMut() -> u64, actions: &mut Vec<Action>) {
        let all_there = || world.servers.values().all(|v| !v.leaving && world.live(v.cs) == Liveness::Active);
        let calm = self.scanned && self.mending() == 0 && self.has_settled();
        if world.balance_margin <= 0.0 || !calm || !world.may_place || !all_there() {
            return;
        }
        let mut slots = self.slots();
        let (fills, proposed) = (&self.fills, &self.proposed);
        let is_free = |chunk: ChunkId| !fills.contains_key(&chunk) && !proposed.contains_key(&chunk);
        let moves = self.balance.step(world, &mut slots, &is_free, random);
        for (chunk, to) in moves {
            let Some(view) = world.state.chunk(chunk) else { continue };
            if let Plan::Copy { change, source, target, .. } = copy_to(to, &view, Urgency::Balance, world) {
                self.proposed.insert(chunk, Some((source, target)));
                actions.push(Action::Propose(change));
            }
        }
    }

    /// The slots that are taken.
    fn slots(&self) -> Slots {
        let mut slots = Slots::default();
        self.fills.values().for_each(|f| slots.take(f.source, &f.learners));
        self.proposed.values().flatten().for_each(|(source, target)| slots.take(*source, &[*target]));
        slots
    }

    /// Carries out what needs no slot; the rest waits for one.
    fn begin(&mut self, chunk: ChunkId, plan: Plan, world: &World<'_>) -> Option<Action> {
        if !matches!(plan, Plan::Fill(_)) {
            self.end_fill(chunk, world);
        }
        if !matches!(plan, Plan::Homeless) {
            self.homeless.remove(&chunk);
        }
        match plan {
            Plan::Nothing => None,
            Plan::Homeless => {
                self.homeless.insert(chunk);
                None
            }
            Plan::Change(change) => {
                self.proposed.insert(chunk, None);
                Some(Action::Propose(change))
            }
            Plan::Copy { source, urgency, .. } => {
                self.queue.wait(chunk, source, urgency);
                None
            }
            Plan::Fill(view) => self.tell(view, world),
        }
    }

    /// A chunk has no learner any more, or another need: its slots are free.
    fn end_fill(&mut self, chunk: ChunkId, world: &World<'_>) {
        let Some(fill) = self.fills.remove(&chunk) else { return };
        let joined =
            |cs: &CsId| world.state.chunk(chunk).is_some_and(|v| v.role_of(*cs) == Some(Role::InSync));
        for _ in fill.learners.iter().filter(|cs| joined(cs)) {
            self.progress.copied(world.now);
        }
    }

    /// Starts copies as far as the limits allow, the most urgent of each source first.
    fn hand_out_slots(
        &mut self,
        world: &World<'_>,
        random: &mut dyn FnMut() -> u64,
        actions: &mut Vec<Action>,
    ) {
        let mut slots = self.slots();
        for source in self.queue.sources() {
            for (urgency, chunk) in self.queue.first_waiting(source, TRIES_PER_SOURCE) {
                if !slots.may_send(source, urgency, &world.limits) {
                    break; // and none that is less urgent
                }
                match self.plan(chunk, world, random) {
                    Plan::Copy { change, source: from, target, urgency: now }
                        if (from, now) == (source, urgency) =>
                    {
                        if slots.may_receive(target, urgency, &world.limits) {
                            slots.take(source, &[target]);
                            self.queue.remove(chunk);
                            self.proposed.insert(chunk, Some((source, target)));
                            actions.push(Action::Propose(change));
                        }
                    }
                    _ => self.look_at(chunk, world.state), // it has changed
                }
            }
        }
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
                    || world.slow_primary(view).is_some()
                    || world.state.repair_step(view.chunk, &live).is_some()
                    || world.reason_to_move(view).is_some()
            };
            if !self.queue.contains(view.chunk) && !self.proposed.contains_key(&view.chunk) && wants() {
                self.queue.look(view.chunk, first_guess(view));
            }
        }
        match views.last() {
            Some(last) if views.len() == SCAN_PER_STEP as usize => self.scan_after = last.chunk,
            _ => {
                self.scan_after = ChunkId(0);
                self.scan_at = world.now.after(SCAN_PAUSE);
                self.scanned = true;
            }
        }
    }

    /// Fills whose primary is gone or that nobody mentioned for long are looked at again.
    fn review_fills(&mut self, world: &World<'_>) {
        let stale = |(chunk, fill): (&ChunkId, &Fill)| {
            let conn = world.registry.conn_for(fill.source.0, *chunk);
            (conn != Some(fill.conn) || world.now.since(fill.told_at) >= REMIND).then_some(*chunk)
        };
        let again: Vec<ChunkId> = self.fills.iter().filter_map(stale).collect();
        for chunk in again {
            if !self.queue.contains(chunk) {
                self.look_at(chunk, world.state);
            }
        }
    }

    fn plan(&self, chunk: ChunkId, world: &World<'_>, random: &mut dyn FnMut() -> u64) -> Plan {
        let Some(view) = world.state.chunk(chunk) else { return Plan::Nothing };
        let change = |action| Plan::Change(SetChange { chunk, epoch: view.epoch, action });
        let lost = lost_learners(&view, world);
        if !lost.is_empty() {
            return change(SetAction::Drop { cs: lost, force: false });
        }
        if let Some(action) = world.needless_learner(&view).or_else(|| world.slow_primary(&view)) {
            return change(action);
        }
        match world.state.repair_step(chunk, &|cs| world.live(cs)) {
            None => move_closer(&view, world, random),
            Some(RepairStep::Filling { view }) => Plan::Fill(view),
            Some(RepairStep::Surplus { view }) => {
                world.dismiss(&view, self.balance.leaver(chunk)).map_or(Plan::Nothing, change)
            }
            // Looked at again when its rest is over.
            Some(RepairStep::Change(SetChange { action: SetAction::AddLearner { cs }, .. }))
                if world.registry.is_slow(cs, world.now)
                    && !world.is_leaving(cs)
                    && !world.state.missed_nothing(chunk, cs) =>
            {
                Plan::Nothing
            }
            Some(RepairStep::Change(SetChange { action: SetAction::AddLearner { cs }, .. })) => {
                // A stale replica on a server that is to leave would only have to leave again.
                let is_needed = world.state.missed_nothing(chunk, cs);
                let elsewhere = (world.is_leaving(cs) && world.may_place && !is_needed)
                    .then(|| new_place(&view, world, random))
                    .flatten();
                copy_to(elsewhere.unwrap_or(cs), &view, missing(&view), world)
            }
            Some(RepairStep::Change(c)) => Plan::Change(c),
            Some(RepairStep::Place { .. }) if !world.may_place => Plan::Nothing,
            Some(RepairStep::Place { .. }) => match new_place(&view, world, random) {
                Some(cs) => copy_to(cs, &view, missing(&view), world),
                None => Plan::Homeless,
            },
        }
    }

    /// Has the primary told, unless it knows.
    fn tell(&mut self, view: ChunkView, world: &World<'_>) -> Option<Action> {
        let chunk = view.chunk;
        let source = world.source(&view)?;
        let conn = world.registry.conn_for(source.0, chunk)?;
        let knows = |f: &Fill| {
            f.conn == conn
                && f.epoch == view.epoch
                && world.now.since(f.told_at) < REMIND
                && f.source == source
        };
        if self.fills.get(&chunk).is_some_and(knows) {
            return None;
        }
        let learners = view.with_role(Role::Learner).collect();
        self.fills.insert(chunk, Fill { source, learners, epoch: view.epoch, conn, told_at: world.now });
        Some(Action::Fill { conn, view })
    }
}

fn missing(view: &ChunkView) -> Urgency {
    Urgency::Missing { in_sync: view.in_sync().count() as u8 }
}

/// The urgency of a look, before anything is known of the servers.
fn first_guess(view: &ChunkView) -> Urgency {
    let lacks = view.in_sync().count() < usize::from(view.normal_replicas);
    if lacks { missing(view) } else { Urgency::OtherTier }
}

/// A server for one replica more.
fn new_place(view: &ChunkView, world: &World<'_>, random: &mut dyn FnMut() -> u64) -> Option<CsId> {
    let policy = world.state.policy(view.file).ok()?;
    // A replica whose server may not come back keeps nobody out of its failure domain.
    let remains = |&&(cs, role): &&(CsId, Role)| role != Role::Stale || world.live(cs) != Liveness::Offline;
    let beside = world.views(view.replicas.iter().filter(remains).map(|r| r.0));
    let candidates: Vec<&CsView> = world.candidates.iter().filter(|c| view.role_of(c.cs).is_none()).collect();
    let chosen = placement::choose(&candidates, &policy, 1, 1, &beside, 0, random).ok()?;
    chosen.first().copied()
}

/// A chunk that lacks nothing is brought closer to its policy: first one replica more, then the surplus one leaves.
fn move_closer(view: &ChunkView, world: &World<'_>, random: &mut dyn FnMut() -> u64) -> Plan {
    let (Some(urgency), Ok(policy)) = (world.reason_to_move(view), world.state.policy(view.file)) else {
        return Plan::Nothing;
    };
    if !world.may_place {
        return Plan::Nothing;
    }
    let set = world.views(view.in_sync());
    match placement::improve(&set, &world.candidates.iter().collect::<Vec<_>>(), &policy, random) {
        Some((_, to)) => copy_to(to, view, urgency, world),
        None => Plan::Homeless,
    }
}

fn copy_to(target: CsId, view: &ChunkView, urgency: Urgency, world: &World<'_>) -> Plan {
    let Some(source) = world.source(view) else { return Plan::Nothing };
    let action = SetAction::AddLearner { cs: target };
    let change = SetChange { chunk: view.chunk, epoch: view.epoch, action };
    Plan::Copy { change, source, target, urgency }
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
