//! Clones: a chunk that begins as another one is, by naming the same units. What either writes afterwards goes to units of
//! its own, 64 KiB at a time.
//!
//! A clone comes about in a round of write-back (apply.rs) that has written all there was of the original, and is valid with
//! that round: no record of the journal tells of it. The original is held against writes meanwhile. The round must trim
//! every record of the original, or a replay would give units back to it that are others' by then.
//!
//! Units that are shared are never written into: a small write moves its unit. The round copies the blocks that nobody has
//! written to a fresh unit, beside those that wait, and the map page names that one from then on. Reads that began before may
//! still be on their way to the old unit, so it counts as shared until they have ended.

use super::{Chunk, Done, PAGE_BLOCKS, PAGE_UNITS, Store, StoreError, Ticket, UNIT_BLOCKS};
use shards::Io;
use shards::journal::Position;
use std::collections::BTreeMap;
use wire::{BlockCrc, ChunkId};

/// A clone that waits for its round, or for the end of it.
pub(super) struct Cloning {
    ticket: Ticket,
    from: ChunkId,
    to: ChunkId,
    /// Of the hold on the original.
    hold: u64,
    /// All records of the original lie in front of it.
    behind: Position,
    failed: Option<StoreError>,
}

/// Units that moves of a round have left.
#[derive(Default)]
pub(super) struct Vacated {
    /// Reads with lower numbers may still be on their way there; and whether nobody names the unit.
    units: BTreeMap<u32, (u64, bool)>,
}

impl Vacated {
    pub fn contains(&self, unit: u32) -> bool {
        self.units.contains_key(&unit)
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Takes out those that no read needs any more, and returns those among them that are free.
    fn settle(&mut self, oldest_read: u64) -> Vec<u32> {
        let quiet = self.units.extract_if(.., |_, (until, _)| *until <= oldest_read);
        quiet.filter(|(_, (_, is_free))| *is_free).map(|(unit, _)| unit).collect()
    }
}

impl Store {
    pub(super) fn start_clone(&mut self, io: &mut dyn Io, ticket: Ticket, from: ChunkId, to: ChunkId) {
        if self.chunks.contains_key(&to) {
            return self.finish(ticket, Err(StoreError::BadRequest(format!("chunk {to} is here already"))));
        }
        let hold = self.fresh_id();
        let chunk = self.chunks.get_mut(&from).expect("submit saw it");
        if !chunk.born {
            return self.fail_early(io, ticket, from, StoreError::UnknownChunk(from));
        }
        chunk.active.push((hold, 0..u32::MAX, false));
        let behind = Position(self.last_durable.0 + 1);
        self.clones.push(Cloning { ticket, from, to, hold, behind, failed: None });
        self.mark_dirty(io);
        self.start_apply(io);
    }

    /// The clones that a round which trims the journal up to `cut` can make.
    pub(super) fn clones_for_round(&mut self, cut: Position) -> Vec<Cloning> {
        self.clones.extract_if(.., |clone| clone.behind <= cut).collect()
    }

    /// The blocks of the originals are in their places, and their map pages are in memory: the clones name the same.
    pub(super) fn make_clones(&mut self, clones: &mut [Cloning]) {
        for clone in clones {
            clone.failed = self.make_clone(clone.from, clone.to).err();
        }
    }

    fn make_clone(&mut self, from: ChunkId, to: ChunkId) -> Result<(), StoreError> {
        if self.chunks.contains_key(&to) {
            return Err(StoreError::BadRequest(format!("chunk {to} is here already")));
        }
        let original = &self.chunks[&from];
        assert!(original.overlay.is_empty(), "chunk {from} was written while it was held");
        let units: Vec<u32> = original.pages.values().flat_map(|page| page.units()).collect();
        if let Some(unit) = units.iter().find(|&&unit| !self.shares.has_room(unit)) {
            return Err(StoreError::BadRequest(format!("unit {unit} has too many clones")));
        }
        let (info, exists) = (original.info.clone(), original.exists);
        let pages = original.pages.iter().map(|(number, page)| (*number, page.for_clone())).collect();
        self.add_chunk(to);
        let clone = self.chunks.get_mut(&to).expect("just added");
        (clone.info, clone.born, clone.index_dirty) = (info, true, true);
        (clone.exists, clone.dirty, clone.pages) = (exists, exists, pages);
        self.dirty_chunks.insert(to);
        units.into_iter().for_each(|unit| self.shares.add(unit));
        Ok(())
    }

    /// The round of these clones is valid.
    pub(super) fn end_clones(&mut self, io: &mut dyn Io, clones: Vec<Cloning>) {
        for clone in clones {
            self.finish(clone.ticket, clone.failed.map_or(Ok(Done::Stored), Err));
            self.release(io, clone.from, clone.hold);
        }
    }

    /// A map page does not name a unit any more, as a record that is durable says.
    pub(super) fn drop_unit(&mut self, unit: u32) {
        if !self.leave_unit(unit) {
            return;
        }
        match self.vacated.units.get_mut(&unit) {
            Some((_, is_free)) => *is_free = true,
            None => self.free_unit(unit),
        }
    }

    /// A map page does not name a unit any more: whether it was the last that did.
    fn leave_unit(&mut self, unit: u32) -> bool {
        if self.shares.remove(unit) {
            self.units.clear(unit);
            return false;
        }
        if let Some(cache) = &mut self.cache {
            cache.forget_unit(unit);
        }
        self.units.unrefer(unit);
        true
    }

    /// A unit of a chunk was written anew elsewhere: its map page names the new place, unless something has happened to it
    /// meanwhile.
    pub(super) fn move_unit(&mut self, id: ChunkId, number: u32, from: u32, to: u32) {
        let stayed = |chunk: &&mut Chunk| chunk.unit(number) == Some(from);
        let Some(chunk) = self.chunks.get_mut(&id).filter(stayed) else { return self.units.release(to) };
        chunk.page(number).set_unit(number % PAGE_UNITS, Some(to));
        self.units.refer(to);
        let is_free = self.leave_unit(from);
        let until = self.fresh_id();
        self.vacated.units.insert(from, (until, is_free));
    }

    /// Frees units that were left by moves of rounds that are valid, and that nobody reads any more.
    pub(super) fn free_vacated(&mut self, io: &mut dyn Io) {
        if self.vacated.is_empty() {
            return;
        }
        let oldest_read = self.reads.keys().min().copied().unwrap_or(u64::MAX);
        for unit in self.vacated.settle(oldest_read) {
            self.units.release(unit);
        }
        if !self.vacated.is_empty() {
            self.mark_dirty(io);
        }
    }
}

impl Chunk {
    /// Blocks of a unit that hold something and that no write which waits replaces.
    pub(super) fn blocks_to_move(&self, unit: u32) -> impl Iterator<Item = u32> + '_ {
        let blocks = unit * UNIT_BLOCKS..(unit + 1) * UNIT_BLOCKS;
        let page = &self.pages[&(unit / PAGE_UNITS)];
        blocks.filter(move |block| {
            page.crc(block % PAGE_BLOCKS) != BlockCrc::HOLE && !self.overlay.contains_key(block)
        })
    }
}
