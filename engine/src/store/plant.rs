//! Chunks out of nothing, to see what a full server costs: `perf/src/bin/store-scale.rs`, and tests.
//!
//! A planted chunk has its entry in `index` and units in `units` as if it had been written, and goes to disk through an
//! ordinary round. Only where asked for does it have its map pages: the others would take 4 KiB each.

use super::{PAGE_UNITS, Store};
use shards::Io;
use wire::{BLOCK_BYTES, BlockCrc, ChunkId, Epoch, Sequence};

impl Store {
    /// Adds a chunk of `map_pages` × 2 MiB. With `whole`, its map pages say that one unit of each holds zeros' checksums;
    /// without, reading it is an error.
    pub fn plant(&mut self, id: ChunkId, map_pages: u32, whole: bool) {
        assert!(self.is_ready() && self.chunk(id).is_none(), "chunk {id} can't be planted");
        self.add_chunk(id);
        let mut places = Vec::with_capacity(map_pages as usize);
        for _ in 0..map_pages {
            let unit = self.units.take().expect("room for what is planted");
            self.units.refer(unit);
            places.push(unit);
        }
        let chunk = self.chunks.get_mut(&id).expect("just added");
        (chunk.born, chunk.index_dirty) = (true, true);
        (chunk.info.epoch, chunk.info.last_sequence) = (Epoch(1), Sequence(1));
        chunk.info.committed = Sequence(1);
        for (number, place) in (0..map_pages).zip(places) {
            if whole {
                let page = chunk.page(number * PAGE_UNITS);
                page.set_unit(0, Some(place));
                page.set_crc(0, BlockCrc::of(&[0; BLOCK_BYTES]));
            } else {
                chunk.exists |= 1 << number;
            }
        }
        self.dirty_chunks.insert(id);
    }

    /// Writes what was planted in a round of its own; over when [`Store::is_planted`].
    pub fn write_planted(&mut self, io: &mut dyn Io) {
        self.start_apply(io);
    }

    pub fn is_planted(&self) -> bool {
        self.apply.is_none() && self.dirty_chunks.is_empty()
    }
}
