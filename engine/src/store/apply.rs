//! Applying: small writes go from memory to their places in `data`, changed pages to `meta`, then the journal is
//! trimmed. One round at a time; requests go on meanwhile.
//!
//! Order within a round, each step after the one before is durable: data blocks, sync of `data`, pages, sync of
//! `meta`, trim. A crash between two steps costs nothing: the journal still holds everything the round wrote.

use super::page::{self, Header};
use super::{Store, StoreError, UNIT_BLOCKS, UNIT_BYTES, Waiting};
use shards::journal::Position;
use shards::{Buf, BufMut, Durability, Io, OpId};
use std::io;
use wire::{BLOCK_BYTES, BlockCrc, ChunkId};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Data,
    DataSync,
    Meta,
    MetaSync,
}

pub(super) struct Apply {
    step: Step,
    left: u32,
    /// Blocks being written: chunk, block, checksum, generation.
    blocks: Vec<(ChunkId, u32, BlockCrc, u64)>,
    /// Everything in front of it is in memory, and in `data` and `meta` when the round ends.
    cut: Position,
    cleared_slots: Vec<u32>,
    /// Map pages that this round writes for the first time: chunk, slot, page.
    new_pages: Vec<(ChunkId, u32, u32)>,
}

/// A write to `data`: offset and the blocks, neighbours joined.
type Run = (u64, Vec<Buf>);

impl Store {
    /// Starts a round when the journal or the overlay has filled up.
    pub(super) fn consider_apply(&mut self, io: &mut dyn Io) {
        let (used, total) = self.journal_fill();
        let pressed = used > total / 2
            || self.overlay_blocks * BLOCK_BYTES > super::OVERLAY_BYTES
            || !self.stalled.is_empty();
        if pressed && self.is_ready() && self.apply.is_none() {
            self.start_apply(io);
        }
    }

    pub(super) fn start_apply(&mut self, io: &mut dyn Io) {
        if self.apply.is_some() {
            return;
        }
        let unfinished = self.writes.values().filter_map(|w| w.first_position).min();
        let cut =
            unfinished.unwrap_or(Position(self.last_durable.0 + 1)).min(Position(self.last_durable.0 + 1));
        self.dirty = false;
        let (runs, blocks) = match self.collect_blocks() {
            Ok(collected) => collected,
            Err(error) => return self.break_down(error),
        };
        self.apply = Some(Apply {
            step: Step::Data,
            left: runs.len() as u32,
            blocks,
            cut,
            cleared_slots: Vec::new(),
            new_pages: Vec::new(),
        });
        for (offset, parts) in runs {
            let wait = self.expect(Waiting::ApplyData);
            io.write(self.data, offset, parts, Durability::Buffered, wait);
        }
        if self.apply.as_ref().is_some_and(|a| a.left == 0) {
            self.write_pages(io);
        }
    }

    /// The overlay as writes in the order of the disk. Blocks without a unit get one.
    fn collect_blocks(&mut self) -> Result<(Vec<Run>, Vec<(ChunkId, u32, BlockCrc, u64)>), StoreError> {
        let mut placed = Vec::with_capacity(self.overlay_blocks);
        let mut blocks = Vec::with_capacity(self.overlay_blocks);
        for (&id, chunk) in &mut self.chunks {
            let waiting: Vec<u32> = chunk.overlay.keys().copied().collect();
            for block in waiting {
                let newer = chunk.overlay[&block].clone();
                let unit = match chunk.unit(block / UNIT_BLOCKS) {
                    Some(unit) => unit,
                    None => {
                        let unit = self.units.take().ok_or(StoreError::NoSpace)?;
                        chunk
                            .page(block / UNIT_BLOCKS)
                            .set_unit(block / UNIT_BLOCKS % super::PAGE_UNITS, Some(unit));
                        unit
                    }
                };
                let offset =
                    u64::from(unit) * UNIT_BYTES + u64::from(block % UNIT_BLOCKS) * BLOCK_BYTES as u64;
                placed.push((offset, newer.data));
                blocks.push((id, block, newer.crc, newer.generation));
            }
        }
        placed.sort_unstable_by_key(|(offset, _)| *offset);
        let mut runs: Vec<Run> = Vec::new();
        for (offset, data) in placed {
            match runs.last_mut() {
                Some((start, parts))
                    if *start + (parts.len() * BLOCK_BYTES) as u64 == offset && parts.len() < 256 =>
                {
                    parts.push(data);
                }
                _ => runs.push((offset, vec![data])),
            }
        }
        Ok((runs, blocks))
    }

    pub(super) fn apply_step(&mut self, io: &mut dyn Io, result: io::Result<Buf>) {
        if let Err(source) = result {
            let file = format!("{}/data or meta", self.config.dir);
            return self.break_down(StoreError::Io { file, source });
        }
        let Some(apply) = &mut self.apply else { return };
        apply.left -= 1;
        if apply.left > 0 {
            return;
        }
        match apply.step {
            Step::Data => {
                apply.step = Step::DataSync;
                apply.left = 1;
                let wait = self.expect(Waiting::ApplySync);
                io.sync(self.data, wait);
            }
            Step::DataSync => self.write_pages(io),
            Step::Meta => {
                apply.step = Step::MetaSync;
                apply.left = 1;
                let wait = self.expect(Waiting::MetaSync);
                io.sync(self.meta, wait);
            }
            Step::MetaSync => self.end_apply(io),
        }
    }

    /// The blocks are on disk: pages take their checksums, and all changed pages are written.
    fn write_pages(&mut self, io: &mut dyn Io) {
        let apply = self.apply.as_mut().expect("a round is under way");
        apply.step = Step::Meta;
        for (id, block, crc, generation) in std::mem::take(&mut apply.blocks) {
            let Some(chunk) = self.chunks.get_mut(&id) else { continue };
            // Replaced or dropped meanwhile: what is newer has its own record or round.
            if chunk.overlay.get(&block).is_some_and(|o| o.generation == generation) {
                assert!(chunk.unit(block / UNIT_BLOCKS).is_some(), "applied block without a place");
                chunk.overlay.remove(&block);
                self.overlay_blocks -= 1;
                chunk.page(block / UNIT_BLOCKS).set_crc(block % super::PAGE_BLOCKS, crc);
            }
        }
        let mut writes: Vec<(u64, Buf)> = Vec::new();
        let mut new_pages = Vec::new();
        for (&id, chunk) in &mut self.chunks {
            for (&number, page) in &mut chunk.pages {
                if std::mem::take(&mut page.dirty) {
                    page.version += 1;
                    if page.version == 1 {
                        chunk.header_dirty = true;
                        new_pages.push((id, chunk.slot, number));
                    }
                    writes.push((page::place(chunk.slot, 1 + number, page.version), page.encode(id, number)));
                }
            }
            if std::mem::take(&mut chunk.header_dirty) {
                chunk.header_version += 1;
                let pages = chunk.pages.keys().fold(0u128, |bits, n| bits | 1 << n);
                let header = Header {
                    chunk: id,
                    version: chunk.header_version,
                    info: chunk.info.clone(),
                    pages,
                    sure_pages: chunk.sure_pages,
                };
                writes.push((page::place(chunk.slot, 0, chunk.header_version), header.encode()));
            }
        }
        let cleared = std::mem::take(&mut self.dead_slots);
        for &slot in &cleared {
            for version in [0, 1] {
                writes.push((page::place(slot, 0, version), BufMut::zeroed(BLOCK_BYTES).freeze()));
            }
        }
        let apply = self.apply.as_mut().expect("a round is under way");
        apply.cleared_slots = cleared;
        apply.new_pages = new_pages;
        apply.left = writes.len() as u32;
        for (offset, bytes) in writes {
            let wait: OpId = self.expect(Waiting::MetaWrite);
            io.write(self.meta, offset, vec![bytes], Durability::Buffered, wait);
        }
        if self.apply.as_ref().is_some_and(|a| a.left == 0) {
            self.end_apply(io);
        }
    }

    fn end_apply(&mut self, io: &mut dyn Io) {
        let apply = self.apply.take().expect("a round is under way");
        self.free_slots.extend(apply.cleared_slots);
        for (id, slot, number) in apply.new_pages {
            // A chunk of the same id in another slot was deleted and made anew meanwhile.
            if let Some(chunk) = self.chunks.get_mut(&id).filter(|c| c.slot == slot) {
                chunk.sure_pages |= 1 << number;
                chunk.header_dirty = true; // The next header says so.
                self.dirty = true;
            }
        }
        for unit in std::mem::take(&mut self.free_later) {
            self.units.release(unit);
        }
        self.journal.trim(io, apply.cut.min(self.journal.end()));
        if self.dirty {
            self.mark_dirty(io);
        }
    }
}
