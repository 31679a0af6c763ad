//! Filling learners: a returned replica gets what was written since it left and what of its own was never committed, any
//! other learner everything (docs/replication.md, "Catch-up", says why that is enough).

use super::flights::Peers;
use super::primary::{COPIES_AT_ONCE, tail_blocks};
use super::ranges::{count, merged, overlaps, pieces, split_held};
use super::{Action, Replication};
use crate::store::{MOST_CHUNK_BYTES, Store};
use shards::Io;
use shards::sabotage::{Sabotage, on};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use wire::cs_api::CsRequest;
use wire::{BLOCK_BYTES, ChunkId, CsId, Epoch, Prepared, Sequence};

/// How a learner is filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FillKind {
    /// It has what all had when it left.
    CatchUp,
    /// It has all that was ever acknowledged: what it lacks was never more than a tail.
    Reinstate,
    /// It may hold anything.
    Full,
}

/// A piece that a learner lacks.
pub(super) struct Fill {
    pub blocks: Range<u32>,
    pub to: SocketAddr,
}

/// What a learner must be sent.
#[derive(PartialEq, Eq, Debug)]
struct Plan {
    kind: FillKind,
    /// Before anything else.
    clear: Vec<Range<u32>>,
    copy: Vec<Range<u32>>,
}

impl Plan {
    /// `written`: what may have changed since the learner left, if that is known. `allocated`: what is held here.
    fn new(
        written: Option<Vec<Range<u32>>>,
        missed_nothing: bool,
        learner: &Prepared,
        allocated: &[Range<u32>],
    ) -> Plan {
        let everything = 0..(MOST_CHUNK_BYTES / BLOCK_BYTES as u64) as u32;
        // One that was emptied before, and not filled to the end, says so by its tail.
        let was_emptied = tail_blocks(&learner.tail).iter().any(|t| t.start == 0 && t.end >= everything.end);
        let full = Plan { kind: FillKind::Full, clear: vec![everything], copy: allocated.to_vec() };
        // A copy that never stored anything was only just made, perhaps in place of one that is lost.
        let Some(mut lacks) = written.filter(|_| learner.last_sequence > Sequence(0) && !learner.damaged)
        else {
            return full;
        };
        if on(Sabotage::CatchUpForgetsUnit) {
            lacks.pop();
        }
        if !on(Sabotage::CatchUpIgnoresTail) {
            lacks.extend(tail_blocks(&learner.tail));
        }
        let (copy, clear) = split_held(&merged(lacks), allocated);
        if missed_nothing && !was_emptied {
            return Plan { kind: FillKind::Reinstate, clear, copy };
        }
        if count(&copy) == count(allocated) && !copy.is_empty() {
            return full;
        }
        Plan { kind: FillKind::CatchUp, clear, copy }
    }
}

impl Replication {
    /// All have answered Prepare: says what each learner is sent. What it must not hold is cleared before the chunk becomes
    /// active, so that no client's write comes before it. `tails`: of this replica and of those in sync.
    pub(super) fn plan_fills(&mut self, chunk: ChunkId, tails: &[Range<u32>], allocated: &[Range<u32>]) {
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let missed_nothing = |until: Epoch| known.missed_nothing(until);
        let missed: BTreeSet<CsId> = known
            .in_sync_until
            .iter()
            .filter(|(_, until)| missed_nothing(*until))
            .map(|(cs, _)| *cs)
            .collect();
        let Some(primary) = known.primary.as_mut() else { return };
        if !known.told && !primary.learners.is_empty() {
            // Only the metadata service knows what a learner has: it must not be emptied on anybody else's word.
            primary.wait_to_be_told();
            return self.actions.push(Action::ToMds(CsRequest::AskSet { chunk }));
        }
        let (mut to_fill, mut learners) = (Vec::new(), BTreeMap::new());
        for replica in known.grant.replicas.iter().filter(|r| primary.learners.contains_key(&r.addr)) {
            let answer = &primary.prepared[&replica.addr];
            let left =
                known.in_sync_until.iter().find(|(cs, until)| *cs == replica.cs && *until < known.epoch);
            let missed_nothing = left.is_some() && missed.contains(&replica.cs);
            let written = left.and_then(|(_, until)| self.written.after(chunk, *until));
            let written = written.or_else(|| missed_nothing.then(|| tails.to_vec()));
            let Plan { kind, clear, copy } = Plan::new(written, missed_nothing, answer, allocated);
            tracing::debug!(
                chunk = chunk.0,
                cs = replica.cs.0,
                ?kind,
                blocks = count(&copy),
                "filling a learner"
            );
            let targets: Peers = std::iter::once(replica.addr).collect();
            primary.to_clear.extend(clear.into_iter().map(|blocks| (blocks, targets.clone())));
            if !on(Sabotage::JoinUnfilled) {
                to_fill.extend(pieces(copy).into_iter().map(|blocks| Fill { blocks, to: replica.addr }));
            }
            learners.insert(replica.addr, kind);
            match kind {
                FillKind::CatchUp | FillKind::Reinstate => self.stats.catch_ups += 1,
                FillKind::Full => self.stats.full_copies += 1,
            }
        }
        to_fill.reverse();
        (primary.to_fill, primary.learners) = (to_fill, learners);
    }

    pub(super) fn fill_more(&mut self, chunk: ChunkId, store: &mut Store, io: &mut dyn Io) {
        loop {
            let Some(known) = self.chunks.get_mut(&chunk) else { return };
            // Writes wait for a replica more.
            let urgent = known.lacks_minimum();
            let Some(primary) = known.primary.as_mut() else { return };
            if !primary.is_active() || primary.learners.is_empty() || primary.waits_to_be_told() {
                return;
            }
            let filling = primary.flights.values().filter(|f| f.fill.is_some()).count();
            let Some(next) = primary.to_fill.last() else {
                return if filling == 0 {
                    self.filled(chunk)
                };
            };
            let blocked = primary.flights.values().any(|f| overlaps(&f.blocks, &next.blocks));
            if filling >= COPIES_AT_ONCE || (blocked && !on(Sabotage::FillWithoutLock)) {
                return;
            }
            if !self.pace.may_copy(urgent, io.now()) {
                self.held_back.insert(chunk);
                return;
            }
            self.pace.copied(next.blocks.len() as u64 * BLOCK_BYTES as u64, io.now());
            let Fill { blocks, to } = primary.to_fill.pop().expect("just seen");
            self.start_copy(chunk, blocks, std::iter::once(to).collect(), true, store, io);
        }
    }

    /// The learners have everything: their tails need not name it any more, and the MDS may put them in sync.
    fn filled(&mut self, chunk: ChunkId) {
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let lacks_minimum = known.lacks_minimum();
        let Some(primary) = known.primary.as_mut() else { return };
        // Below the minimum the watermark here stands still, but they have all there is.
        let committed = if lacks_minimum { primary.last_sequence() } else { primary.committed };
        let epoch = known.epoch;
        let learners = std::mem::take(&mut primary.learners);
        let done = known.grant.replicas.iter().filter(|r| learners.contains_key(&r.addr));
        let done: Vec<(CsId, SocketAddr)> = done.map(|r| (r.cs, r.addr)).collect();
        known.joined.extend(done.iter().map(|(cs, _)| *cs));
        for (cs, addr) in done {
            self.send_commit_note(chunk, epoch, committed, addr);
            self.actions.push(Action::ToMds(CsRequest::Joined { chunk, epoch, cs }));
        }
    }

    /// The MDS still takes them for learners.
    pub(super) fn repeat_joined(&mut self, chunk: ChunkId) {
        let Some(known) = self.chunks.get(&chunk) else { return };
        let joined = known.joined.iter().map(|&cs| CsRequest::Joined { chunk, epoch: known.epoch, cs });
        self.actions.extend(joined.map(Action::ToMds));
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Lists of ranges are meant.
mod tests {
    use super::*;
    use wire::TailEntry;

    fn learner(tail: &[Range<u32>]) -> Prepared {
        let entry = |r: &Range<u32>| TailEntry {
            sequence: Sequence(9),
            first_block: r.start,
            block_count: r.end - r.start,
        };
        Prepared { last_sequence: Sequence(9), tail: tail.iter().map(entry).collect(), ..Prepared::default() }
    }

    #[test]
    fn a_returned_replica_gets_what_it_lacks() {
        let plan = |written: Option<Vec<_>>, tail: &[_]| {
            Plan::new(written, false, &learner(tail), &[0..64, 128..160])
        };
        let caught_up = plan(Some(vec![16..32, 64..80]), &[30..40, 200..201]);
        assert_eq!(caught_up.kind, FillKind::CatchUp);
        assert_eq!(caught_up.copy, [16..40]);
        assert_eq!(caught_up.clear, [64..80, 200..201], "holes here");
        let nothing = plan(Some(vec![]), &[]);
        assert!(nothing.kind == FillKind::CatchUp && nothing.copy.is_empty() && nothing.clear.is_empty());
    }

    #[test]
    fn what_can_not_be_proven_is_copied_whole() {
        let allocated = [0..64, 128..160];
        let full = |written: Option<Vec<_>>, learner: &Prepared| {
            let plan = Plan::new(written, false, learner, &allocated);
            plan.kind == FillKind::Full && plan.copy == allocated && plan.clear == [0..65536]
        };
        assert!(full(None, &learner(&[])), "nobody knows what was written");
        assert!(full(Some(vec![]), &Prepared::default()), "it held nothing");
        assert!(full(Some(vec![]), &Prepared { damaged: true, ..learner(&[]) }));
        assert!(full(Some(vec![0..64]), &learner(&[100..200])), "all of it anyway");
    }

    #[test]
    fn one_that_missed_nothing_is_not_emptied() {
        let plan = |learner: &Prepared| Plan::new(Some(vec![0..64]), true, learner, &[0..64, 128..160]);
        let whole = plan(&learner(&[100..200]));
        assert_eq!((whole.kind, &whole.copy[..]), (FillKind::Reinstate, &[0..64, 128..160][..]));
        assert_eq!(whole.clear, [100..128, 160..200]);
        assert_eq!(plan(&Prepared::default()).kind, FillKind::Full, "its copy was lost");
        assert_eq!(plan(&learner(&[0..65536])).kind, FillKind::Full, "it was emptied before");
        assert_eq!(plan(&Prepared { damaged: true, ..learner(&[]) }).kind, FillKind::Full);
    }
}
