//! Balance: which replicas move from full servers to empty ones, when nothing is to be repaired.
//!
//! The level of a server is the share of its space that is used; each tier is balanced by itself. Work begins when levels
//! differ by more than a margin and goes on until they differ by a fifth of it, so that small differences are left alone.
//!
//! Invariants:
//! - a replica moves from a server above the mean level to one below it, which it does not lift above the mean by more than
//!   half a replica; and the two differ by more than [`WORTH_IT`] replicas. So every move brings the levels closer (the sum of
//!   their squared distances from the mean falls), data is not moved on, and moves end;
//! - reports of space come late: until they must show a move ([`SETTLE`]), its target may hold the replica already and its
//!   source may have lost it. A target is judged by the most it may hold, a source by the least;
//! - a chunk is never farther from its policy after a move than before.

use super::World;
use super::queue::Urgency;
use super::slots::Slots;
use crate::placement::{CsView, Deviation};
use crate::state::ChunkView;
use shards::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::{ChunkId, CsId};

/// A move counts so long after its end, until the reports of both servers show it.
const SETTLE: Duration = Duration::from_secs(5);
/// Chunks looked at in one step.
const LOOKS_PER_STEP: usize = 256;
/// Chunks of one server looked at in a row.
const LOOKS_PER_PAIR: usize = 32;
/// After so many looks in vain at the chunks of a server it is left alone for [`REST`].
const VAIN_LOOKS: usize = 2048;
const REST: Duration = Duration::from_secs(60);
/// Work goes on until the levels differ by this part of the margin.
const STOP_AT: f64 = 0.2;
/// A move pays if the levels differ by so many replicas. At 1 it would only swap the two levels, and the size of a replica is
/// an estimate.
const WORTH_IT: f64 = 1.5;

/// A replica on its way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Move {
    pub from: CsId,
    pub to: CsId,
    bytes: u64,
    ended: Option<Timestamp>,
}

/// A server as the balancer sees it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Level {
    cs: CsId,
    reported: f64,
    /// The least and the most that may be used, bytes.
    least: f64,
    most: f64,
    total: f64,
    /// A replica of middle size there.
    replica: f64,
}

impl Level {
    fn least_share(&self) -> f64 {
        self.least / self.total
    }

    fn most_share(&self) -> f64 {
        self.most / self.total
    }
}

#[derive(Default)]
pub struct Balance {
    moves: BTreeMap<ChunkId, Move>,
    /// Tiers that are being balanced.
    active: BTreeMap<u8, bool>,
    /// Servers without a chunk that could move: looks in vain, and until when they rest.
    vain: BTreeMap<CsId, (usize, Timestamp)>,
}

impl Balance {
    pub fn is_move(&self, chunk: ChunkId) -> bool {
        self.moves.get(&chunk).is_some_and(|m| m.ended.is_none())
    }

    /// The replica that leaves when the new one has everything.
    pub fn leaver(&self, chunk: ChunkId) -> Option<CsId> {
        self.moves.get(&chunk).filter(|m| m.ended.is_none()).map(|m| m.from)
    }

    /// Something happened to a chunk: its move may be over, one way or the other.
    pub fn review(&mut self, chunk: ChunkId, view: Option<&ChunkView>, now: Timestamp) {
        let Some(m) = self.moves.get_mut(&chunk).filter(|m| m.ended.is_none()) else { return };
        let holds = |cs| view.is_some_and(|v| v.role_of(cs).is_some());
        if !holds(m.to) || !holds(m.from) {
            m.ended = Some(now);
        }
    }

    /// The chunk does not exist any more.
    pub fn forget(&mut self, chunk: ChunkId) {
        self.moves.remove(&chunk);
    }

    /// The next moves, as (chunk, target); they count as begun, and have taken their slots. `is_free` says whether nothing
    /// else goes on with a chunk.
    pub fn step(
        &mut self,
        world: &World<'_>,
        slots: &mut Slots,
        is_free: &dyn Fn(ChunkId) -> bool,
        random: &mut dyn FnMut() -> u64,
    ) -> Vec<(ChunkId, CsId)> {
        self.moves.retain(|_, m| m.ended.is_none_or(|at| world.now.since(at) < SETTLE));
        let mut tiers: BTreeMap<u8, Vec<&CsView>> = BTreeMap::new();
        world.servers.values().for_each(|v| tiers.entry(v.tier).or_default().push(v));
        let (mut begun, mut looks) = (Vec::new(), LOOKS_PER_STEP);
        for (tier, views) in tiers {
            let mut levels: Vec<Level> = views.iter().map(|v| self.level(v, world)).collect();
            if !self.is_active(tier, &levels, world.balance_margin) {
                continue;
            }
            while let Some((chunk, m)) = self.next_move(world, &levels, slots, is_free, random, &mut looks) {
                shift(&mut levels, &m);
                self.moves.insert(chunk, m);
                begun.push((chunk, m.to));
            }
        }
        begun
    }

    fn level(&self, view: &CsView, world: &World<'_>) -> Level {
        let reported = view.total_bytes.saturating_sub(view.free_bytes) as f64;
        let replica = reported / world.state.replica_count(view.cs).max(1) as f64;
        let total = view.total_bytes.max(1) as f64;
        let mut level = [Level { cs: view.cs, reported, least: reported, most: reported, total, replica }];
        self.moves.values().for_each(|m| shift(&mut level, m));
        level[0]
    }

    fn is_active(&mut self, tier: u8, levels: &[Level], margin: f64) -> bool {
        let fullest = levels.iter().map(Level::least_share).fold(0.0, f64::max);
        let spread = fullest - levels.iter().map(Level::most_share).fold(f64::INFINITY, f64::min);
        // What is still on its way makes levels look closer than they will be: the end is judged when all has arrived.
        let under_way = !self.moves.is_empty();
        let active = self.active.entry(tier).or_default();
        *active = spread > if *active { margin * STOP_AT } else { margin } || (*active && under_way);
        *active
    }

    fn next_move(
        &mut self,
        world: &World<'_>,
        levels: &[Level],
        slots: &mut Slots,
        is_free: &dyn Fn(ChunkId) -> bool,
        random: &mut dyn FnMut() -> u64,
        looks: &mut usize,
    ) -> Option<(ChunkId, Move)> {
        let total: f64 = levels.iter().map(|l| l.total).sum();
        let mean = levels.iter().map(|l| l.reported).sum::<f64>() / total;
        let rests = |cs| self.vain.get(&cs).is_some_and(|(_, until)| *until > world.now);
        let is_full = |l: &&Level| l.least_share() > mean && !rests(l.cs);
        let mut full: Vec<Level> = levels.iter().filter(is_full).copied().collect();
        full.sort_by(|a, b| b.least_share().total_cmp(&a.least_share()));
        let mut empty: Vec<Level> = levels.iter().filter(|l| l.most_share() < mean).copied().collect();
        empty.sort_by(|a, b| a.most_share().total_cmp(&b.most_share()));
        for to in &empty {
            let Some(target) = world.candidates.iter().find(|v| v.cs == to.cs) else { continue };
            for from in &full {
                if !slots.may_receive(to.cs, Urgency::Balance, &world.limits) {
                    break;
                }
                let fits = to.most + from.replica / 2.0 <= mean * to.total;
                let difference = from.least_share() - to.most_share();
                if !fits || difference <= WORTH_IT * from.replica / from.total.min(to.total) {
                    continue;
                }
                if *looks == 0 {
                    return None;
                }
                let mut vain = 0;
                let found = chunks_around(world, from.cs, random).take(LOOKS_PER_PAIR).find_map(|chunk| {
                    *looks = looks.saturating_sub(1);
                    let view = world.state.chunk(chunk).filter(|v| may_move(v, from.cs, target, world));
                    vain += usize::from(view.is_none());
                    // One that has just moved still counts on the levels.
                    let free = is_free(chunk) && !self.moves.contains_key(&chunk);
                    let source = world.source(&view?).filter(|_| free)?;
                    slots.may_send(source, Urgency::Balance, &world.limits).then_some((chunk, source))
                });
                if let Some((chunk, source)) = found {
                    slots.take(source, &[to.cs]);
                    self.vain.remove(&from.cs);
                    let bytes = from.replica as u64;
                    return Some((chunk, Move { from: from.cs, to: to.cs, bytes, ended: None }));
                }
                let (so_far, until) = self.vain.entry(from.cs).or_insert((0, world.now));
                *so_far += vain;
                if *so_far >= VAIN_LOOKS {
                    (*so_far, *until) = (0, world.now.after(REST));
                }
            }
        }
        None
    }
}

/// Counts a move on the levels of its servers.
fn shift(levels: &mut [Level], m: &Move) {
    for level in levels {
        if level.cs == m.from {
            level.least = (level.least - m.bytes as f64).max(0.0);
        } else if level.cs == m.to {
            level.most += m.bytes as f64;
        }
    }
}

/// The chunks of a server, from a random one on.
fn chunks_around<'a>(
    world: &World<'a>,
    from: CsId,
    random: &mut dyn FnMut() -> u64,
) -> impl Iterator<Item = ChunkId> + use<'a> {
    let start = ChunkId(random() % world.state.newest_chunk().0.max(1));
    let ahead = world.state.chunks_on(from, start);
    ahead.chain(world.state.chunks_on(from, ChunkId(0)).take_while(move |c| *c <= start))
}

/// Whether a chunk lacks nothing, and is as near to its policy after the move as before.
fn may_move(view: &ChunkView, from: CsId, to: &CsView, world: &World<'_>) -> bool {
    let (true, Ok(policy)) = (view.role_of(to.cs).is_none(), world.state.policy(view.file)) else {
        return false;
    };
    let now = world.views(view.in_sync());
    let moved: Vec<&CsView> = now.iter().copied().filter(|v| v.cs != from).chain([to]).collect();
    now.len() == view.replicas.len()
        && now.len() == usize::from(policy.normal)
        && Deviation::of(&moved, &policy) <= Deviation::of(&now, &policy)
}
