//! What was written of chunks while one of their replicas is missing, so that a replica that returns is sent that and
//! no more (docs/replication.md, "Catch-up").
//!
//! Every in-sync replica of such a chunk keeps a record of its own, as each may have to lead next. A record is a bitmap
//! of units for each epoch. It is in memory only: it says from which epoch on it is complete, and a primary whose record
//! begins too late makes a full copy.
//!
//! Invariants:
//! - a record contains every unit that this replica was asked to change at an epoch of `complete_since` or later;
//! - it may contain more: merging epochs moves units to the later one of two;
//! - memory is bounded: by epochs per chunk, and by chunks.

use crate::store::UNIT_BLOCKS;
use std::collections::HashMap;
use std::ops::Range;
use wire::{ChunkId, CsId, Epoch, Grant, Role};

/// Epochs told apart per chunk. A replica that was missing since an epoch in the middle of merged ones is sent what was
/// written at the earlier ones too.
const MOST_EPOCHS: usize = 4;
/// Chunks with a record. One of the default size takes 128 bytes per epoch.
const MOST_CHUNKS: usize = 32 << 10;

/// Units of a chunk, a bit each.
#[derive(Default)]
struct Units(Vec<u64>);

impl Units {
    fn add(&mut self, blocks: &Range<u32>) {
        let units = blocks.start / UNIT_BLOCKS..blocks.end.div_ceil(UNIT_BLOCKS);
        let words = units.end.div_ceil(64) as usize;
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        for unit in units {
            self.0[unit as usize / 64] |= 1 << (unit % 64);
        }
    }

    fn add_all(&mut self, other: &Units) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// As ranges of blocks, sorted and disjoint.
    fn blocks(&self) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        let held = |unit: &u32| self.0[*unit as usize / 64] >> (unit % 64) & 1 == 1;
        for unit in (0..self.0.len() as u32 * 64).filter(held) {
            let blocks = unit * UNIT_BLOCKS..(unit + 1) * UNIT_BLOCKS;
            match ranges.last_mut() {
                Some(last) if last.end == blocks.start => last.end = blocks.end,
                _ => ranges.push(blocks),
            }
        }
        ranges
    }
}

struct Record {
    complete_since: Epoch,
    /// Oldest first.
    by_epoch: Vec<(Epoch, Units)>,
}

impl Record {
    fn add(&mut self, epoch: Epoch, blocks: &Range<u32>) {
        if self.by_epoch.last().is_none_or(|(last, _)| *last < epoch) {
            self.by_epoch.push((epoch, Units::default()));
        }
        if self.by_epoch.len() > MOST_EPOCHS {
            let (_, oldest) = self.by_epoch.remove(0);
            self.by_epoch[0].1.add_all(&oldest);
        }
        // An older epoch than the last one would be written down too late, which is safe.
        let (_, units) = self.by_epoch.last_mut().expect("just pushed");
        units.add(blocks);
    }
}

/// The records of a shard.
#[derive(Default)]
pub(super) struct Written {
    records: HashMap<ChunkId, Record>,
}

impl Written {
    /// A replica set was taken over; `known` is the highest epoch of the chunk known here before. Nothing was stored here
    /// at any epoch above that one.
    pub fn set_adopted(&mut self, chunk: ChunkId, known: Epoch, grant: &Grant, me: CsId) {
        let in_sync = grant.in_sync().any(|r| r.cs == me);
        let some_missing = grant.replicas.iter().any(|r| r.role != Role::InSync);
        if !in_sync || !some_missing {
            self.forget(chunk);
        } else if self.records.len() < MOST_CHUNKS || self.records.contains_key(&chunk) {
            let begun = || Record { complete_since: Epoch(known.0 + 1), by_epoch: Vec::new() };
            self.records.entry(chunk).or_insert_with(begun);
        }
    }

    /// These blocks are about to be changed here, or may have been by a write of unknown outcome.
    pub fn note(&mut self, chunk: ChunkId, epoch: Epoch, blocks: &Range<u32>) {
        if !self.records.is_empty()
            && let Some(record) = self.records.get_mut(&chunk)
        {
            record.add(epoch, blocks);
        }
    }

    pub fn forget(&mut self, chunk: ChunkId) {
        self.records.remove(&chunk);
    }

    /// The blocks, in whole units, that may have been changed at an epoch above `epoch`. `None`: not known.
    pub fn after(&self, chunk: ChunkId, epoch: Epoch) -> Option<Vec<Range<u32>>> {
        let record = self.records.get(&chunk).filter(|r| r.complete_since.0 <= epoch.0 + 1)?;
        let mut all = Units::default();
        record.by_epoch.iter().filter(|(at, _)| *at > epoch).for_each(|(_, units)| all.add_all(units));
        Some(all.blocks())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Lists of ranges are meant.
mod tests {
    use super::*;
    use wire::Replica;

    const CHUNK: ChunkId = ChunkId(9);

    fn grant(roles: [Role; 3]) -> Grant {
        let replica = |(n, role): (usize, Role)| Replica {
            cs: CsId(n as u32 + 1),
            addr: ([127, 0, 0, 1], n as u16 + 1).into(),
            role,
        };
        Grant { replicas: roles.into_iter().enumerate().map(replica).collect(), min_replicas: 2 }
    }

    fn one_missing() -> Grant {
        grant([Role::InSync, Role::InSync, Role::Stale])
    }

    #[test]
    fn units_written_since_an_epoch_are_found_again() {
        let mut written = Written::default();
        written.set_adopted(CHUNK, Epoch(3), &one_missing(), CsId(1));
        assert_eq!(written.after(CHUNK, Epoch(3)), Some(vec![]));
        written.note(CHUNK, Epoch(4), &(5..17));
        written.note(CHUNK, Epoch(5), &(1600..1601));
        assert_eq!(written.after(CHUNK, Epoch(3)), Some(vec![0..32, 1600..1616]));
        assert_eq!(written.after(CHUNK, Epoch(4)), Some(vec![1600..1616]));
        assert_eq!(written.after(CHUNK, Epoch(5)), Some(vec![]));
        assert_eq!(written.after(CHUNK, Epoch(2)), None, "it began at epoch 4");
        assert_eq!(written.after(ChunkId(10), Epoch(3)), None);
    }

    #[test]
    fn merged_epochs_hold_more_and_never_less() {
        let mut written = Written::default();
        written.set_adopted(CHUNK, Epoch(0), &one_missing(), CsId(1));
        for epoch in 1..=20 {
            written.note(CHUNK, Epoch(epoch), &((epoch - 1) * UNIT_BLOCKS..epoch * UNIT_BLOCKS));
        }
        assert_eq!(written.records[&CHUNK].by_epoch.len(), MOST_EPOCHS);
        for since in 0..20 {
            let found = written.after(CHUNK, Epoch(since)).unwrap();
            let first = found[0].start / UNIT_BLOCKS;
            assert_eq!((found.len(), found[0].end), (1, 20 * UNIT_BLOCKS));
            assert!(first <= since, "after epoch {since}: units from {first} on");
        }
        assert_eq!(written.after(CHUNK, Epoch(18)).unwrap(), vec![18 * UNIT_BLOCKS..20 * UNIT_BLOCKS]);
    }

    #[test]
    fn a_record_lives_while_a_replica_is_missing_and_this_one_is_in_sync() {
        let mut written = Written::default();
        let adopt = |written: &mut Written, known, roles| {
            written.set_adopted(CHUNK, Epoch(known), &grant(roles), CsId(1));
            written.after(CHUNK, Epoch(known)).is_some()
        };
        use Role::{InSync, Learner, Stale};
        assert!(!adopt(&mut written, 1, [InSync, InSync, InSync]));
        assert!(adopt(&mut written, 2, [InSync, InSync, Stale]));
        written.note(CHUNK, Epoch(3), &(0..1));
        assert!(adopt(&mut written, 3, [InSync, InSync, Learner]));
        assert_eq!(written.after(CHUNK, Epoch(2)), Some(vec![0..16]), "the same record goes on");
        assert!(!adopt(&mut written, 4, [InSync, InSync, InSync]));
        assert!(!adopt(&mut written, 5, [Stale, InSync, InSync]));
        assert!(
            !adopt(&mut written, 6, [Learner, InSync, InSync]),
            "filled by others, it does not know by what"
        );
        for chunk in 100..100 + MOST_CHUNKS as u64 + 5 {
            written.set_adopted(ChunkId(chunk), Epoch(1), &one_missing(), CsId(1));
        }
        assert_eq!(written.records.len(), MOST_CHUNKS);
    }
}
