//! Blocks of small writes that are not in `data` yet. Their bytes are in memory; when those of too many are, only the
//! journal has the bytes of the next ones, and they are read back from there: by reads and by the round that writes them
//! to their places. So the journal may be larger than memory.
//!
//! Invariant: while an entry says that the journal has a block, the journal is not trimmed beyond it. (A round trims only
//! what it has taken out of the overlay.) A read that was under way when its block left the overlay may find anything
//! there, and reads again.

use super::{Chunk, SmallVec, Store, StoreConfig};
use shards::Buf;
use std::ops::{AddAssign, Range, SubAssign};
use wire::{BLOCK_BYTES, BlockCrc, ChunkId};

/// Memory of a waiting block besides its bytes: its entry, and its part in the lists of the round that writes it back.
const ENTRY_MEMORY: u64 = 150;

#[derive(Clone)]
pub(super) enum Held {
    Memory(Buf),
    /// Offset in the journal's file.
    Journal(u64),
}

impl Held {
    /// One block of several in a row.
    pub fn block(&self, number: usize) -> Held {
        let at = number * BLOCK_BYTES;
        match self {
            Held::Memory(bytes) => Held::Memory(bytes.slice(at..at + BLOCK_BYTES)),
            Held::Journal(offset) => Held::Journal(offset + at as u64),
        }
    }
}

#[derive(Clone)]
pub(super) struct OverlayBlock {
    pub held: Held,
    pub crc: BlockCrc,
    pub generation: u64,
}

/// How much waits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Waits {
    pub blocks: usize,
    pub in_memory: usize,
}

impl Waits {
    pub fn of(block: &OverlayBlock) -> Waits {
        Waits { blocks: 1, in_memory: usize::from(matches!(block.held, Held::Memory(_))) }
    }

    pub fn sum<'a>(blocks: impl Iterator<Item = &'a OverlayBlock>) -> Waits {
        let mut sum = Waits::default();
        blocks.for_each(|b| sum += Waits::of(b));
        sum
    }
}

impl AddAssign for Waits {
    fn add_assign(&mut self, more: Waits) {
        self.blocks += more.blocks;
        self.in_memory += more.in_memory;
    }
}

impl SubAssign for Waits {
    fn sub_assign(&mut self, less: Waits) {
        self.blocks -= less.blocks;
        self.in_memory -= less.in_memory;
    }
}

impl StoreConfig {
    /// Blocks whose bytes may be in memory.
    pub(super) fn most_blocks_in_memory(&self) -> usize {
        self.overlay_bytes as usize / BLOCK_BYTES
    }

    /// Blocks that may wait, their bytes in memory or not: their entries take at most a third as much memory again.
    pub(super) fn most_waiting_blocks(&self) -> usize {
        (self.overlay_bytes / 3 / ENTRY_MEMORY) as usize
    }
}

impl Store {
    /// Whether small writes must wait for a round.
    pub(super) fn overlay_is_full(&self) -> bool {
        self.overlay.blocks >= self.config.most_waiting_blocks()
    }

    /// Blocks of a range whose bytes are in memory.
    pub(super) fn in_memory(&self, id: ChunkId, blocks: &Range<u32>) -> SmallVec<[(u32, Buf); 1]> {
        let overlay = self.chunks[&id].overlay.range(blocks.clone());
        let held = overlay.filter_map(|(block, newer)| match &newer.held {
            Held::Memory(bytes) => Some((*block, bytes.clone())),
            Held::Journal(_) => None,
        });
        held.collect()
    }
}

impl Chunk {
    /// Makes a block wait; returns what that replaces.
    pub(super) fn put_overlay(&mut self, block: u32, newer: OverlayBlock) -> Waits {
        self.overlay.insert(block, newer).map_or_else(Waits::default, |old| Waits::of(&old))
    }

    /// Drops waiting blocks of a range.
    pub(super) fn forget_overlay(&mut self, blocks: &Range<u32>) -> Waits {
        let mut gone = Waits::default();
        while let Some((&block, _)) = self.overlay.range(blocks.clone()).next() {
            gone += Waits::of(&self.overlay.remove(&block).expect("just seen"));
        }
        gone
    }
}
