//! Writes, discards, epochs and deletes: from the call to the outcome.
//!
//! A write is cut into whole units (large path: fresh units of `data`, one extent record per 1 MiB) and the rest
//! (small path: journal records with the payload). All parts run at once; the operation is done when every record is
//! durable in the journal and, for units, the data file is synced.

use super::overlay::{Held, OverlayBlock, Waits};
use super::record::{Kind, Places, Record};
use super::{
    Chunk, DiscardOp, Done, PAGE_BLOCKS, PAGE_UNITS, Stamp, Store, StoreError, Ticket, UNIT_BLOCKS, Waiting,
    WriteOp, bits, pages_of,
};
use shards::journal::{Full, PayloadCheck, Position};
use shards::{Buf, Durability, Io};
use smallvec::{SmallVec, smallvec};
use std::io;
use std::ops::Range;
use wire::{BLOCK_BYTES, BlockCrc, BlockCrcs, ChunkId, Epoch};

/// Blocks of one extent record, and of one small record.
const MOST_EXTENT_BLOCKS: u32 = 256;
const UNIT_LEN: usize = UNIT_BLOCKS as usize * BLOCK_BYTES;

/// Records with their payloads, in order.
type Records = SmallVec<[(Record, Buf); 1]>;

/// A mutation under way.
pub(super) struct Write {
    ticket: Ticket,
    chunk: ChunkId,
    stamp: Stamp,
    blocks: Range<u32>,
    /// Records the journal has not taken yet.
    to_append: Records,
    /// Records not durable, plus data writes and the sync not done.
    parts_left: u32,
    data_writes_left: u32,
    /// Position of the first record in the journal: it must not be trimmed before this is done.
    pub first_position: Option<Position>,
    last_position: Position,
    /// Where the payloads of its records stand in the journal's file, of those that are durable.
    payloads_at: SmallVec<[u64; 2]>,
    change: Change,
    failed: Option<StoreError>,
}

/// What memory becomes when the mutation is durable.
enum Change {
    Data { small: SmallVec<[SmallBlock; 1]>, units: SmallVec<[(u32, u32); 16]>, crcs: BlockCrcs },
    Discard,
    Epoch,
    Delete,
}

/// A block on the small path, and where it is in which of the write's records.
struct SmallBlock {
    block: u32,
    data: Buf,
    crc: BlockCrc,
    record: usize,
    number: usize,
}

impl Write {
    fn small_blocks(&self) -> usize {
        if let Change::Data { small, .. } = &self.change { small.len() } else { 0 }
    }
}

impl Store {
    pub(super) fn start_write(&mut self, io: &mut dyn Io, ticket: Ticket, op: WriteOp) {
        let first = op.offset_bytes / BLOCK_BYTES as u32;
        let blocks = first..first + op.crcs.len() as u32;
        let whole = whole_units(&blocks);
        let wanted = (whole.end - whole.start) / UNIT_BLOCKS;
        // Small blocks may each need a unit when they are applied: count them as if they did.
        let small = blocks.end - blocks.start - (whole.end - whole.start);
        if self.spare_units() < u64::from(wanted + small) {
            return self.fail_early(io, ticket, op.chunk, StoreError::NoSpace);
        }
        // Small blocks over ones that are on disk need no more room there.
        let chunk = self.chunks.get(&op.chunk).expect("submit made it");
        let fresh = blocks.clone().filter(|b| whole.contains(b) || chunk.is_hole(*b)).count();
        if !self.take_disk_room(io, (fresh * BLOCK_BYTES) as u64) {
            return self.fail_early(io, ticket, op.chunk, StoreError::NoSpace);
        }
        let part = |range: &Range<u32>| {
            let from = (range.start - first) as usize;
            let to = (range.end - first) as usize;
            (
                op.payload.slice(from * BLOCK_BYTES..to * BLOCK_BYTES),
                BlockCrcs::from_slice(&op.crcs[from..to]),
            )
        };
        let mut records = Records::new();
        let mut small = SmallVec::new();
        for range in pieces(&blocks, &whole) {
            let (payload, crcs) = part(&range);
            for (number, crc) in crcs.iter().enumerate() {
                let block = range.start + number as u32;
                let data = payload.slice(number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES);
                small.push(SmallBlock { block, data, crc: *crc, record: records.len(), number });
            }
            let kind = Kind::Write { crcs };
            records.push((Record { chunk: op.chunk, stamp: op.stamp, blocks: range, kind }, payload));
        }
        let mut units = SmallVec::new();
        let mut data: SmallVec<[(u32, Buf); 2]> = SmallVec::new();
        // Where the file was written before, the device's own flush makes a write durable at little cost. Where the file
        // grows, the file system has to commit as well: one sync for all writes that wait is better there.
        let written_before = self.units.frontier();
        for range in split(&whole, MOST_EXTENT_BLOCKS) {
            let (payload, crcs) = part(&range);
            let mut places = Places::new();
            for (first, count) in self.take_runs((range.end - range.start) / UNIT_BLOCKS) {
                let from = places.len() * UNIT_LEN;
                data.push((first, payload.slice(from..from + count as usize * UNIT_LEN)));
                places.extend(first..first + count);
            }
            units.extend((range.start / UNIT_BLOCKS..).zip(places.iter().copied()));
            let kind = Kind::Extent { crcs, places };
            records.push((Record { chunk: op.chunk, stamp: op.stamp, blocks: range, kind }, Buf::empty()));
        }
        let in_place = units.iter().all(|(_, place)| *place < written_before && !self.units.is_hole(*place));
        let change = Change::Data { small, units, crcs: op.crcs };
        let durability = if in_place { Durability::Durable } else { Durability::Buffered };
        let id = self.begin(io, ticket, op.chunk, op.stamp, blocks, records, change, data.len() as u32);
        for (place, payload) in data {
            let wait = self.expect(Waiting::LargeData { id, durability });
            let mut parts = io.parts();
            parts.push(payload);
            io.write(self.data, u64::from(place) * super::UNIT_BYTES, parts, durability, wait);
        }
    }

    /// Free units beyond those that small blocks, which wait or are under way, may need when they are applied.
    pub(super) fn spare_units(&self) -> u64 {
        let under_way: usize = self.writes.values().map(Write::small_blocks).sum();
        u64::from(self.units.free()).saturating_sub((self.overlay.blocks + under_way) as u64)
    }

    /// Takes units, counted before, in as few runs as possible.
    fn take_runs(&mut self, count: u32) -> SmallVec<[(u32, u32); 2]> {
        let mut runs = SmallVec::new();
        let mut left = count;
        while left > 0 {
            let (first, count) = self.units.take_run(left).expect("free units were counted");
            runs.push((first, count));
            left -= count;
        }
        runs
    }

    pub(super) fn start_discard(&mut self, io: &mut dyn Io, ticket: Ticket, op: DiscardOp) {
        let first = op.offset_bytes / BLOCK_BYTES as u32;
        let blocks = first..first + op.length_bytes / BLOCK_BYTES as u32;
        let record = Record { chunk: op.chunk, stamp: op.stamp, blocks: blocks.clone(), kind: Kind::Discard };
        self.begin(
            io,
            ticket,
            op.chunk,
            op.stamp,
            blocks,
            smallvec![(record, Buf::empty())],
            Change::Discard,
            0,
        );
    }

    pub(super) fn start_set_epoch(&mut self, io: &mut dyn Io, ticket: Ticket, chunk: ChunkId, epoch: Epoch) {
        let stamp = Stamp { epoch, ..Stamp::default() };
        let record = Record { chunk, stamp, blocks: 0..0, kind: Kind::Epoch };
        self.begin(io, ticket, chunk, stamp, 0..1, smallvec![(record, Buf::empty())], Change::Epoch, 0);
    }

    pub(super) fn start_delete(&mut self, io: &mut dyn Io, ticket: Ticket, chunk: ChunkId) {
        let record = Record { chunk, stamp: Stamp::default(), blocks: 0..0, kind: Kind::Delete };
        let records = smallvec![(record, Buf::empty())];
        self.begin(io, ticket, chunk, Stamp::default(), 0..u32::MAX, records, Change::Delete, 0);
    }

    pub(super) fn fail_early(&mut self, io: &mut dyn Io, ticket: Ticket, chunk: ChunkId, error: StoreError) {
        self.finish(ticket, Err(error));
        self.end_hold(io, chunk, 0);
    }

    /// Ends an operation's hold on its blocks. A chunk made for it and never written stays out of sight.
    fn end_hold(&mut self, io: &mut dyn Io, chunk: ChunkId, id: u64) {
        self.release(io, chunk, id);
        let unused = |c: &Chunk| !c.born && c.active.is_empty() && c.queued.is_empty();
        if self.chunks.get(&chunk).is_some_and(unused) {
            let gone = self.chunks.remove(&chunk).expect("just seen");
            self.dirty_chunks.remove(&chunk);
            self.slots[gone.slot as usize] = None;
            self.free_slots.push(gone.slot);
        }
    }

    fn begin(
        &mut self,
        io: &mut dyn Io,
        ticket: Ticket,
        chunk: ChunkId,
        stamp: Stamp,
        blocks: Range<u32>,
        to_append: Records,
        change: Change,
        data_writes: u32,
    ) -> u64 {
        let id = self.fresh_id();
        let active = self.chunks.get_mut(&chunk).expect("submit made it");
        active.active.push((id, blocks.clone(), true));
        let write = Write {
            ticket,
            chunk,
            stamp,
            blocks,
            parts_left: to_append.len() as u32 + u32::from(data_writes > 0),
            data_writes_left: data_writes,
            to_append,
            first_position: None,
            last_position: Position(0),
            payloads_at: SmallVec::new(),
            change,
            failed: None,
        };
        self.writes.insert(id, write);
        if !self.stalled.is_empty() || self.append(io, id).is_err() {
            self.stalled.push_back(id);
        }
        id
    }

    /// Gives the journal the records of a write; `Full` leaves the rest for later.
    fn append(&mut self, io: &mut dyn Io, id: u64) -> Result<(), Full> {
        let overlay_is_full = self.overlay_is_full();
        let Some(write) = self.writes.get_mut(&id) else { return Ok(()) };
        while let Some((record, payload)) = write.to_append.first() {
            // What frees space must find room even when writes don't.
            let urgent = !matches!(record.kind, Kind::Write { .. });
            if !urgent && overlay_is_full {
                return Err(Full);
            }
            let meta = record.encode();
            self.journal.append(io, &meta, payload.clone(), PayloadCheck::Caller, id, urgent)?;
            write.to_append.remove(0);
        }
        Ok(())
    }

    pub(super) fn retry_stalled(&mut self, io: &mut dyn Io) {
        while let Some(&id) = self.stalled.front() {
            if self.append(io, id).is_err() {
                return;
            }
            self.stalled.pop_front();
        }
    }

    pub(super) fn record_durable(&mut self, io: &mut dyn Io, id: u64, position: Position, payload_at: u64) {
        if let Some(write) = self.writes.get_mut(&id) {
            write.first_position.get_or_insert(position);
            write.last_position = position;
            write.payloads_at.push(payload_at);
        }
        self.part_done(io, id);
    }

    pub(super) fn large_data_done(
        &mut self,
        io: &mut dyn Io,
        id: u64,
        durability: Durability,
        result: io::Result<Buf>,
    ) {
        let Some(write) = self.writes.get_mut(&id) else { return };
        write.data_writes_left -= 1;
        if let Err(source) = result {
            write.failed = Some(match source.kind() {
                io::ErrorKind::StorageFull => StoreError::NoSpace,
                _ => StoreError::Io { file: "data".into(), source },
            });
        }
        if write.data_writes_left > 0 {
            return;
        }
        match durability {
            Durability::Durable => self.part_done(io, id),
            Durability::Buffered => {
                self.sync_next.push(id);
                self.start_large_sync(io);
            }
        }
    }

    /// One sync serves all writes whose data arrived while the one before ran.
    fn start_large_sync(&mut self, io: &mut dyn Io) {
        if self.sync_now.is_none() && !self.sync_next.is_empty() {
            self.sync_now = Some(std::mem::take(&mut self.sync_next));
            let wait = self.expect(Waiting::LargeSync);
            io.sync(self.data, wait);
        }
    }

    pub(super) fn large_sync_done(&mut self, io: &mut dyn Io, result: io::Result<Buf>) {
        if let Err(source) = result {
            // After a failed sync nobody knows what the disk holds: the CS must not go on.
            return self.break_down(StoreError::Io { file: format!("{}/data", self.config.dir), source });
        }
        for id in self.sync_now.take().unwrap_or_default() {
            self.part_done(io, id);
        }
        self.start_large_sync(io);
    }

    fn part_done(&mut self, io: &mut dyn Io, id: u64) {
        let Some(write) = self.writes.get_mut(&id) else { return };
        write.parts_left -= 1;
        if write.parts_left > 0 {
            return;
        }
        let write = self.writes.remove(&id).expect("just seen");
        let (ticket, chunk) = (write.ticket, write.chunk);
        let result = self.take_effect(write);
        self.mark_dirty(io);
        self.finish(ticket, result);
        self.end_hold(io, chunk, id);
    }

    /// The mutation is durable: memory follows.
    fn take_effect(&mut self, write: Write) -> Result<Done, StoreError> {
        let mut freed = Vec::new();
        let chunk = self.chunks.get_mut(&write.chunk).expect("its operation held it");
        if let Some(error) = write.failed {
            // The extent record may be durable while its data is not. Its units stay taken until the journal is trimmed
            // behind the record: were they used again before, a replay could take one for the other.
            if let Change::Data { units, .. } = write.change {
                let places = units.into_iter().map(|(_, place)| place);
                self.failed_units.extend(places.map(|place| (write.last_position, place)));
            }
            return Err(error);
        }
        chunk.stamp(&write.stamp);
        self.dirty_chunks.insert(write.chunk);
        match write.change {
            Change::Data { small, units, crcs } => {
                chunk.add_to_tail(write.stamp.sequence, &write.blocks);
                for (unit, place) in units {
                    let first = unit * UNIT_BLOCKS;
                    self.overlay -= chunk.forget_overlay(&(first..first + UNIT_BLOCKS));
                    let page = chunk.page(unit);
                    freed.extend(page.set_unit(unit % PAGE_UNITS, Some(place)));
                    self.units.refer(place);
                    for block in first..first + UNIT_BLOCKS {
                        page.set_crc(block % PAGE_BLOCKS, crcs[(block - write.blocks.start) as usize]);
                    }
                }
                for small in small {
                    self.generation += 1;
                    let held = if self.overlay.in_memory < self.config.most_blocks_in_memory() {
                        Held::Memory(small.data)
                    } else {
                        Held::Journal(write.payloads_at[small.record]).block(small.number)
                    };
                    let newer = OverlayBlock { held, crc: small.crc, generation: self.generation };
                    self.overlay += Waits::of(&newer);
                    self.overlay -= chunk.put_overlay(small.block, newer);
                }
            }
            Change::Discard => {
                chunk.add_to_tail(write.stamp.sequence, &write.blocks);
                self.overlay -= discard(chunk, &write.blocks, &mut freed);
            }
            Change::Epoch => {}
            Change::Delete => {
                self.highest_deleted = self.highest_deleted.max(write.chunk);
                let mut chunk = self.chunks.remove(&write.chunk).expect("just seen");
                self.dirty_chunks.remove(&write.chunk);
                self.overlay -= Waits::sum(chunk.overlay.values());
                freed.extend(chunk.pages.values().flat_map(|p| p.units().collect::<Vec<_>>()));
                self.dead_slots.push(chunk.slot);
                // What waited behind the delete starts over, on no chunk.
                if !chunk.queued.is_empty() {
                    let queued = std::mem::take(&mut chunk.queued);
                    self.add_chunk(write.chunk);
                    self.chunks.get_mut(&write.chunk).expect("just made").queued = queued;
                }
            }
        }
        freed.into_iter().for_each(|unit| self.drop_unit(unit));
        Ok(Done::Stored)
    }
}

/// Makes blocks holes; units without any data left are freed. Returns what waits no more. The map pages of the range are in
/// memory.
pub(super) fn discard(chunk: &mut Chunk, blocks: &Range<u32>, freed: &mut Vec<u32>) -> Waits {
    let gone = chunk.forget_overlay(blocks);
    for page in bits(chunk.exists & pages_of(blocks)) {
        let units = page * PAGE_UNITS..(page + 1) * PAGE_UNITS;
        let first = units.start.max(blocks.start / UNIT_BLOCKS);
        for unit in first..units.end.min(blocks.end.div_ceil(UNIT_BLOCKS)) {
            discard_in_unit(chunk, unit, blocks, freed);
        }
    }
    gone
}

fn discard_in_unit(chunk: &mut Chunk, unit: u32, blocks: &Range<u32>, freed: &mut Vec<u32>) {
    if chunk.pages.get(&(unit / PAGE_UNITS)).is_none_or(|page| page.is_hole(unit % PAGE_UNITS)) {
        return;
    }
    let first = unit * UNIT_BLOCKS;
    // Blocks in memory will be written into the unit, or are being written: it must stay.
    let awaited = chunk.overlay.range(first..first + UNIT_BLOCKS).next().is_some();
    let page = chunk.page(unit);
    for block in first.max(blocks.start)..(first + UNIT_BLOCKS).min(blocks.end) {
        page.set_crc(block % PAGE_BLOCKS, BlockCrc::HOLE);
    }
    let empty = (first..first + UNIT_BLOCKS).all(|b| page.crc(b % PAGE_BLOCKS) == BlockCrc::HOLE);
    if empty && !awaited {
        freed.extend(page.set_unit(unit % PAGE_UNITS, None));
    }
}

/// The whole units inside a range of blocks, as blocks; empty when there are none.
pub(super) fn whole_units(blocks: &Range<u32>) -> Range<u32> {
    let start = blocks.start.next_multiple_of(UNIT_BLOCKS);
    let end = blocks.end / UNIT_BLOCKS * UNIT_BLOCKS;
    if start < end { start..end } else { blocks.start..blocks.start }
}

/// What lies before and behind the whole units.
fn pieces(blocks: &Range<u32>, whole: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
    [blocks.start..whole.start, whole.end..blocks.end].into_iter().filter(|r| r.start < r.end)
}

fn split(range: &Range<u32>, most: u32) -> impl Iterator<Item = Range<u32>> + use<> {
    let end = range.end;
    (range.start..end).step_by(most as usize).map(move |start| start..(start + most).min(end))
}
