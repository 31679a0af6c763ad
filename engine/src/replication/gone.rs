//! Blocks that are gone: damaged on the only replica in sync (docs/replication.md, "Damage on the last replica").
//!
//! Invariants:
//! - only the primary of a set in which nobody else is in sync gives blocks up, when a copy for another replica needs them,
//!   and the metadata service has agreed, at this epoch: no replica may come back that has them;
//! - it does so by a write like any other, of blocks with [`BlockCrc::GONE`]: it has a sequence, is stored here and by
//!   whoever it was copied for, and is levelled and caught up like others. So all replicas know the same blocks as gone;
//! - nothing is given up for a learner that missed nothing: what it holds itself stays.

use super::fill::{Fill, FillKind};
use super::flights::Flight;
use super::primary::Primary;
use super::{Action, Purpose, Replication};
use crate::store::{Store, StoreError, WriteOp};
use shards::{Io, Timestamp};
use std::time::Duration;
use wire::cs_api::CsRequest;
use wire::{BlockCrc, ChunkId, Epoch};

/// The metadata service that refused is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GivingUp {
    AskedAt(Timestamp),
    Allowed,
}

impl Replication {
    pub(super) fn may_give_up(&self, chunk: ChunkId) -> bool {
        self.giving_up.get(&chunk) == Some(&GivingUp::Allowed)
    }

    /// A copy for others can't be made.
    pub(super) fn copy_met_damage(
        &mut self,
        chunk: ChunkId,
        activation: u64,
        sequence: u64,
        error: &StoreError,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        self.give_up_own_copy(chunk, error, store);
        let primary = self.chunks.get_mut(&chunk).and_then(|k| k.primary.as_mut());
        let Some(primary) = primary.filter(|p| p.is_of(activation)) else { return };
        if primary.leave_to_learner(sequence) {
            return self.pump(chunk, store, io);
        }
        primary.copy_failed = true;
        self.ask_to_give_up(chunk, io.now());
    }

    /// Asks whether blocks may be given up, if a copy needs it and nobody else can lead.
    pub(super) fn ask_to_give_up(&mut self, chunk: ChunkId, now: Timestamp) {
        let nobody_else = self.damaged.get(&chunk) == Some(&true);
        let Some(known) = self.chunks.get(&chunk).filter(|_| nobody_else && !self.may_give_up(chunk)) else {
            return;
        };
        if known.primary.as_ref().is_some_and(|p| p.copy_failed) {
            let epoch = known.epoch;
            self.giving_up.insert(chunk, GivingUp::AskedAt(now));
            self.actions.push(Action::ToMds(CsRequest::MayGiveUp { chunk, epoch }));
        }
    }

    pub(super) fn ask_again_to_give_up(&mut self, now: Timestamp) {
        let is_due = |(chunk, state): (&ChunkId, &GivingUp)| match state {
            GivingUp::AskedAt(at) if now.since(*at) >= ASK_AGAIN => Some(*chunk),
            _ => None,
        };
        let due: Vec<ChunkId> = self.giving_up.iter().filter_map(is_due).collect();
        due.into_iter().for_each(|chunk| self.ask_to_give_up(chunk, now));
    }

    /// The metadata service agrees: the copies that met damage are made again, of what can be read.
    pub fn give_up(&mut self, chunk: ChunkId, epoch: Epoch, store: &mut Store, io: &mut dyn Io) {
        let asked = matches!(self.giving_up.get(&chunk), Some(GivingUp::AskedAt(_)));
        if asked && self.chunks.get(&chunk).is_some_and(|k| k.epoch == epoch) {
            self.giving_up.insert(chunk, GivingUp::Allowed);
            self.activate(chunk, store, io);
            self.after(store, io);
        }
    }

    /// Blocks that could not be read are gone: our own copy says so too, and the administrator hears of it.
    pub(super) fn store_as_gone(&mut self, activation: u64, op: WriteOp, store: &mut Store, io: &mut dyn Io) {
        let chunk = op.chunk;
        let first = op.offset_bytes / wire::BLOCK_BYTES as u32;
        let gone = (first..).zip(&op.crcs).filter(|(_, crc)| **crc == BlockCrc::GONE).map(|(block, _)| block);
        for (first_block, blocks) in rows(gone) {
            tracing::error!(name: "blocks_gone", chunk = chunk.0, first_block, blocks);
            self.written.note(chunk, op.stamp.epoch, &(first_block..first_block + blocks));
            self.actions.push(Action::ToMds(CsRequest::Gone { chunk, first_block, blocks }));
        }
        let sequence = op.stamp.sequence.0;
        let ticket = self.ticket(Purpose::Flight { chunk, activation, sequence });
        store.write(io, ticket, op);
    }
}

impl Primary {
    /// A learner that missed nothing keeps what it has of blocks that can't be read here: that is as good, as nothing newer
    /// was acknowledged. Whether a copy was one for such a learner; it is made again in smaller pieces, down to the blocks.
    fn leave_to_learner(&mut self, sequence: u64) -> bool {
        let Some(Flight { blocks, targets, fill: Some(_), .. }) = self.flights.get(sequence) else {
            return false;
        };
        let &[to] = &targets[..] else { return false };
        if self.learners.get(&to) != Some(&FillKind::Reinstate) {
            return false;
        }
        let (start, end) = (blocks.start, blocks.end);
        let middle = start.midpoint(end);
        if middle > start {
            self.to_fill.extend([start..middle, middle..end].map(|blocks| Fill { blocks, to }));
        }
        self.flights.remove(sequence);
        true
    }
}

/// Numbers in a row, as first and count.
fn rows(numbers: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut rows: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match rows.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => rows.push((number, 1)),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    #[test]
    fn blocks_are_told_in_rows() {
        assert_eq!(super::rows([3, 4, 5, 9, 11, 12].into_iter()), [(3, 3), (9, 1), (11, 2)]);
        assert!(super::rows([].into_iter()).is_empty());
    }
}
