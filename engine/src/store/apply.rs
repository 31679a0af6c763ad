//! Rounds of write-back: small writes go from memory to their places in `data`, changed pages to `index`, `maps`, `units`
//! and `shares`, then the journal is trimmed. One round at a time; requests go on meanwhile.
//!
//! Steps, each begun when the one before has ended: map pages of the blocks are read; blocks are written to `data`; pages
//! are written while `data` is synced; the page files are synced; the journal's superblock is written: it trims the
//! journal and makes the round's pages valid, in one atomic write. A crash before that leaves the state of the round
//! before, on which the journal is replayed; pages the crashed round left behind are never looked at (page.rs, `find`).

use super::clone::Cloning;
use super::overlay::{Held, Waits};
use super::page::{self, INDEX_ENTRIES, IndexEntry, PageKind, Round};
use super::{PAGE_BLOCKS, PAGE_UNITS, Store, StoreError, UNIT_BLOCKS, UNIT_BYTES, Waiting, bits};
use crate::cache::Version;
use crate::store::load::Waiter;
use shards::journal::{Checkpoint, Position};
use shards::sabotage::{Sabotage, on};
use shards::{Buf, BufMut, Durability, FileHandle, Io};
use smallvec::{SmallVec, smallvec};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use wire::{BLOCK_BYTES, BlockCrc, ChunkId};

/// Writes of data, or pages, under way at once, unless the journal is filling up: few, so that its own writes don't queue
/// behind them. And many go to holes of a file: new units, the first pages of new chunks. The kernel gives such a write
/// to a thread of its own, which spins for the file's lock; hundreds of them cost half of a server's CPU time when small
/// files are made.
const CALM_WRITES: u32 = 4;
const PRESSED_WRITES: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Load,
    Data,
    Pages,
    Sync,
    Commit,
}

pub(super) struct Apply {
    step: Step,
    round: Round,
    left: u32,
    runs: VecDeque<Run>,
    /// Not yet written.
    pages: VecDeque<(FileHandle, u64, Buf)>,
    /// Runs with blocks that are being read from the journal.
    gathering: BTreeMap<u64, Gathering>,
    /// Blocks being written: chunk, block, checksum, generation.
    blocks: Vec<(ChunkId, u32, BlockCrc, u64)>,
    /// Units that several chunks share and one of them writes to: chunk, number in it, the shared unit.
    moves: BTreeMap<(ChunkId, u32), Move>,
    clones: Vec<Cloning>,
    /// Everything in front of it was in memory when the round began.
    cut: Position,
    /// Of the pages as this round wrote them; chunks that come in meanwhile may need more pages.
    checkpoint: Checkpoint,
    cleared_slots: Vec<u32>,
    /// Page files written to.
    touched: Vec<FileHandle>,
    /// Writes that found the file system full: counted in `left`, and done again when there may be room.
    no_room: Vec<WriteBack>,
}

#[cfg(test)]
impl Apply {
    /// Everything is written but what makes it valid.
    pub fn is_committing(&self) -> bool {
        self.step == Step::Commit
    }
}

/// A write of the round, kept until it is done.
pub(super) struct WriteBack {
    file: FileHandle,
    offset: u64,
    parts: Parts,
}

/// From where to where a unit moves.
#[derive(Clone, Copy)]
struct Move {
    from: u32,
    to: u32,
}

/// Where a block that is written has its bytes.
enum Source {
    Waiting(Held),
    /// In `data`, at this offset.
    Moved(u64),
}

/// A write to `data`: offset and the blocks, neighbours joined.
type Run = (u64, SmallVec<[Source; 1]>);
type Parts = SmallVec<[Buf; 1]>;

struct Gathering {
    offset: u64,
    parts: Parts,
    missing: usize,
}

impl Store {
    /// Starts a round when the journal or the overlay has filled up.
    pub(super) fn consider_apply(&mut self, io: &mut dyn Io) {
        if self.is_pressed() && self.is_ready() && self.apply.is_none() {
            self.start_apply(io);
        }
    }

    pub(super) fn is_pressed(&self) -> bool {
        let (used, total) = self.journal_fill();
        let many = self.overlay.in_memory > self.config.most_blocks_in_memory() / 2;
        used > total / 2 || many || !self.stalled.is_empty()
    }

    pub(super) fn start_apply(&mut self, io: &mut dyn Io) {
        if self.apply.is_some() {
            return;
        }
        let behind_durable = Position(self.last_durable.0 + 1);
        let unfinished = self.writes.values().filter_map(|w| w.first_position).min();
        let cut = unfinished.unwrap_or(behind_durable).min(behind_durable);
        let clones = self.clones_for_round(cut);
        self.dirty = false;
        self.last_round = Round(self.last_round.0 + 1);
        self.apply = Some(Apply {
            step: Step::Load,
            round: self.last_round,
            left: 1,
            runs: VecDeque::new(),
            pages: VecDeque::new(),
            gathering: BTreeMap::new(),
            blocks: Vec::new(),
            moves: BTreeMap::new(),
            clones,
            cut,
            checkpoint: Checkpoint::default(),
            cleared_slots: Vec::new(),
            touched: Vec::new(),
            no_room: Vec::new(),
        });
        let missing: Vec<(ChunkId, u32)> = self.pages_to_load().collect();
        for (chunk, number) in missing {
            self.round().left += 1;
            self.read_page(io, chunk, number, Waiter::Round);
        }
        self.round_page_done(io);
    }

    fn round(&mut self) -> &mut Apply {
        self.apply.as_mut().expect("a round is under way")
    }

    fn pages_to_load(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        self.dirty_chunks.iter().flat_map(|id| {
            let chunk = &self.chunks[id];
            let wanted = chunk.overlay.keys().fold(0u128, |mask, block| mask | 1 << (block / PAGE_BLOCKS));
            bits(wanted & chunk.exists).filter(|n| !chunk.pages.contains_key(n)).map(|n| (*id, n))
        })
    }

    pub(super) fn round_page_done(&mut self, io: &mut dyn Io) {
        self.round().left -= 1;
        if self.round().left > 0 {
            return;
        }
        match self.collect_blocks() {
            Ok(()) => {
                self.round().step = Step::Data;
                self.write_data(io);
            }
            Err(error) => self.break_down(error),
        }
    }

    /// The overlay as writes in the order of the disk. Blocks without a unit get one. Blocks that came in since the round
    /// began and whose page is not here wait for the next round: their records lie behind the cut.
    fn collect_blocks(&mut self) -> Result<(), StoreError> {
        let mut placed = Vec::with_capacity(self.overlay.blocks);
        let mut blocks = Vec::with_capacity(self.overlay.blocks);
        let mut moves = BTreeMap::new();
        for &id in &self.dirty_chunks {
            let chunk = self.chunks.get_mut(&id).expect("dirty chunks exist");
            let waiting: Vec<u32> = chunk.overlay.keys().copied().collect();
            for block in waiting {
                let number = block / PAGE_BLOCKS;
                if chunk.exists >> number & 1 == 1 && !chunk.pages.contains_key(&number) {
                    continue;
                }
                let newer = chunk.overlay[&block].clone();
                let shared = |unit: u32| self.shares.of(unit) > 0 || self.vacated.contains(unit);
                let unit = match chunk.unit(block / UNIT_BLOCKS) {
                    Some(from) if shared(from) && !on(Sabotage::KeepSharedUnits) => {
                        let key = (id, block / UNIT_BLOCKS);
                        if !moves.contains_key(&key) {
                            let to = self.units.take().ok_or(StoreError::NoSpace)?;
                            moves.insert(key, Move { from, to });
                        }
                        moves[&key].to
                    }
                    Some(unit) => unit,
                    None => {
                        let unit = self.units.take().ok_or(StoreError::NoSpace)?;
                        self.units.refer(unit);
                        chunk
                            .page(block / UNIT_BLOCKS)
                            .set_unit(block / UNIT_BLOCKS % PAGE_UNITS, Some(unit));
                        unit
                    }
                };
                placed.push((place_of(unit, block), Source::Waiting(newer.held)));
                blocks.push((id, block, newer.crc, newer.generation));
            }
        }
        for ((id, unit), Move { from, to }) in &moves {
            let rest = self.chunks[id].blocks_to_move(*unit);
            placed.extend(rest.map(|block| (place_of(*to, block), Source::Moved(place_of(*from, block)))));
        }
        placed.sort_unstable_by_key(|(offset, _)| *offset);
        let mut runs: VecDeque<Run> = VecDeque::new();
        for (offset, data) in placed {
            match runs.back_mut() {
                Some((start, parts))
                    if *start + (parts.len() * BLOCK_BYTES) as u64 == offset && parts.len() < 256 =>
                {
                    parts.push(data);
                }
                _ => runs.push_back((offset, smallvec![data])),
            }
        }
        let apply = self.round();
        (apply.runs, apply.blocks, apply.moves) = (runs, blocks, moves);
        Ok(())
    }

    fn most_writes(&self) -> u32 {
        if self.is_pressed() || self.finishing_open { PRESSED_WRITES } else { CALM_WRITES }
    }

    fn write_data(&mut self, io: &mut dyn Io) {
        let most = self.most_writes();
        while self.round().left < most {
            let Some((offset, parts)) = self.round().runs.pop_front() else { break };
            self.round().left += 1;
            self.write_run(io, offset, &parts);
        }
        if self.round().left == 0 {
            self.write_pages(io);
        }
    }

    /// Writes a run, or reads those of its blocks first that are not in memory. They are not verified here: should one
    /// be damaged, then whoever reads it from its place finds out.
    fn write_run(&mut self, io: &mut dyn Io, offset: u64, blocks: &[Source]) {
        let run = self.fresh_id();
        let mut missing = 0;
        let mut parts = Parts::new();
        for (part, block) in blocks.iter().enumerate() {
            parts.push(match block {
                Source::Waiting(Held::Memory(bytes)) => bytes.clone(),
                Source::Waiting(Held::Journal(at)) => {
                    missing += 1;
                    let wait = self.expect(Waiting::Gather { run, part });
                    io.read(self.journal.file(), *at, BLOCK_BYTES, wait);
                    Buf::empty()
                }
                Source::Moved(at) => {
                    missing += 1;
                    let wait = self.expect(Waiting::GatherMoved { run, part });
                    io.read(self.data, *at, BLOCK_BYTES, wait);
                    Buf::empty()
                }
            });
        }
        if missing == 0 {
            return self.write_back(io, WriteBack { file: self.data, offset, parts });
        }
        self.round().gathering.insert(run, Gathering { offset, parts, missing });
    }

    pub(super) fn gathered(&mut self, io: &mut dyn Io, run: u64, part: usize, result: io::Result<Buf>) {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(source) => {
                let file = self.config.journal_path.clone();
                return self.break_down(StoreError::Io { file, source });
            }
        };
        self.take_gathered(io, run, part, bytes);
    }

    /// What can't be read is not what its checksum says, here or there.
    pub(super) fn gathered_moved(&mut self, io: &mut dyn Io, run: u64, part: usize, result: io::Result<Buf>) {
        let bytes = result.unwrap_or_else(|error| {
            tracing::error!(dir = self.config.dir, %error, "block_lost: it could not be read to be moved");
            BufMut::zeroed(BLOCK_BYTES).freeze()
        });
        self.take_gathered(io, run, part, bytes);
    }

    fn take_gathered(&mut self, io: &mut dyn Io, run: u64, part: usize, bytes: Buf) {
        let gathering = self.round().gathering.get_mut(&run).expect("its blocks are being read");
        gathering.parts[part] = bytes;
        gathering.missing -= 1;
        if gathering.missing == 0 {
            let Gathering { offset, parts, .. } = self.round().gathering.remove(&run).expect("just seen");
            self.write_back(io, WriteBack { file: self.data, offset, parts });
        }
    }

    fn write_back(&mut self, io: &mut dyn Io, write: WriteBack) {
        let (file, offset) = (write.file, write.offset);
        let mut parts = io.parts();
        parts.extend_from_slice(&write.parts);
        let wait = self.expect(Waiting::Apply(Some(write)));
        io.write(file, offset, parts, Durability::Buffered, wait);
    }

    pub(super) fn apply_step(&mut self, io: &mut dyn Io, write: Option<WriteBack>, result: io::Result<Buf>) {
        if let Err(source) = result {
            match write {
                Some(write) if source.kind() == io::ErrorKind::StorageFull => self.wait_for_room(io, write),
                // After a failed sync nobody knows what the disk holds.
                _ => {
                    let file = format!("{}: writing back", self.config.dir);
                    self.break_down(StoreError::Io { file, source });
                }
            }
            return;
        }
        let Some(apply) = &mut self.apply else { return };
        apply.left -= 1;
        match (apply.step, apply.left) {
            (Step::Data, _) => self.write_data(io),
            (Step::Pages, _) => self.write_some_pages(io),
            (Step::Sync, 0) => self.commit(io),
            _ => {}
        }
    }

    /// The file system is full. Nothing is lost: the journal, which has its room, holds everything of the round. The
    /// round waits, and new data is refused until there is room again.
    fn wait_for_room(&mut self, io: &mut dyn Io, write: WriteBack) {
        let dir = self.config.dir.clone();
        if self.finishing_open {
            return self.break_down(StoreError::DiskFull { dir });
        }
        (self.disk_free_bytes, self.disk_looked_at) = (0, Some(io.now()));
        let apply = self.round();
        apply.no_room.push(write);
        if apply.no_room.len() == 1 {
            tracing::warn!(dir, "file_system_full: make room there; writing back waits for it");
            io.set_timer(io.now().after(super::APPLY_AFTER), super::ROOM_TIMER);
        }
    }

    pub(super) fn retry_for_room(&mut self, io: &mut dyn Io) {
        let Some(apply) = &mut self.apply else { return };
        for write in std::mem::take(&mut apply.no_room) {
            self.write_back(io, write);
        }
    }

    /// The blocks are written: pages take their checksums, and everything that changed is written.
    fn write_pages(&mut self, io: &mut dyn Io) {
        let apply = self.round();
        apply.step = Step::Pages;
        let (round, wrote_data) = (apply.round, !apply.blocks.is_empty());
        self.settle_blocks();
        let mut clones = std::mem::take(&mut self.round().clones);
        self.make_clones(&mut clones);
        self.round().clones = clones;
        let mut writes: Vec<(FileHandle, u64, Buf)> = self.changed_maps(round);
        writes.extend(self.changed_index(round));
        for (number, place, bytes) in self.units.changed_pages(round) {
            writes.push((self.units_file, page::offset(number, place), bytes));
        }
        for (number, place, bytes) in self.shares.changed_pages(round) {
            writes.push((self.shares_file, page::offset(number, place), bytes));
        }
        let touched = [self.index, self.maps, self.units_file, self.shares_file];
        let checkpoint = self.checkpoint(round);
        let apply = self.round();
        apply.checkpoint = checkpoint;
        apply.touched = touched.into_iter().filter(|f| writes.iter().any(|w| w.0 == *f)).collect();
        apply.pages = writes.into();
        if wrote_data {
            apply.left += 1;
            let wait = self.expect(Waiting::Apply(None));
            io.sync(self.data, wait);
        }
        self.write_some_pages(io);
    }

    fn write_some_pages(&mut self, io: &mut dyn Io) {
        let most = self.most_writes();
        while self.round().left < most {
            let Some((file, offset, bytes)) = self.round().pages.pop_front() else { break };
            self.round().left += 1;
            self.write_back(io, WriteBack { file, offset, parts: smallvec![bytes] });
        }
        if self.round().left == 0 {
            self.sync_pages(io);
        }
    }

    fn settle_blocks(&mut self) {
        for ((id, number), Move { from, to }) in std::mem::take(&mut self.round().moves) {
            self.move_unit(id, number, from, to);
        }
        for (id, block, crc, generation) in std::mem::take(&mut self.round().blocks) {
            let Some(chunk) = self.chunks.get_mut(&id) else { continue };
            // Replaced or dropped meanwhile: what is newer has its own record or round.
            if chunk.overlay.get(&block).is_some_and(|o| o.generation == generation) {
                assert!(chunk.unit(block / UNIT_BLOCKS).is_some(), "applied block without a place");
                self.overlay -= Waits::sum(chunk.overlay.remove(&block).iter());
                chunk.page(block / UNIT_BLOCKS).set_crc(block % PAGE_BLOCKS, crc);
                if let (Some(cache), Some(unit)) = (&mut self.cache, chunk.unit(block / UNIT_BLOCKS)) {
                    cache.forget_block(unit, block % UNIT_BLOCKS);
                }
            }
        }
    }

    /// Encodes the changed map pages of all chunks, and notes which index pages changed.
    fn changed_maps(&mut self, round: Round) -> Vec<(FileHandle, u64, Buf)> {
        let mut writes = Vec::new();
        for id in std::mem::take(&mut self.dirty_chunks) {
            let chunk = self.chunks.get_mut(&id).expect("dirty chunks exist");
            for number in bits(std::mem::take(&mut chunk.dirty)) {
                chunk.index_dirty = true;
                let page = chunk.pages.get_mut(&number).expect("changed pages are in memory");
                if page.is_empty() {
                    chunk.pages.remove(&number);
                    chunk.exists &= !(1 << number);
                    continue;
                }
                if let Some(cache) = &mut self.cache {
                    let before = Version { chunk: id, round: page.round.0 };
                    page.units().for_each(|unit| cache.page_written(unit, before, round.0));
                }
                page.round = round;
                chunk.places ^= 1 << number;
                let (in_file, place) =
                    (page::map_number(chunk.slot, number), (chunk.places >> number & 1) as u8);
                writes.push((self.maps, page::offset(in_file, place), page.encode(id, in_file, round)));
                if !std::mem::replace(&mut page.listed, true) {
                    self.page_clock.push_back((id, number));
                }
            }
            if std::mem::take(&mut chunk.index_dirty) {
                self.dirty_index.insert(chunk.slot / INDEX_ENTRIES);
            }
            if !chunk.overlay.is_empty() {
                self.dirty_chunks.insert(id);
            }
        }
        writes
    }

    fn changed_index(&mut self, round: Round) -> Vec<(FileHandle, u64, Buf)> {
        let cleared = std::mem::take(&mut self.dead_slots);
        for &slot in &cleared {
            self.slots[slot as usize] = None;
            self.dirty_index.insert(slot / INDEX_ENTRIES);
        }
        self.round().cleared_slots = cleared;
        let mut writes = Vec::new();
        for number in std::mem::take(&mut self.dirty_index) {
            let first = (number * INDEX_ENTRIES) as usize;
            let slots = &self.slots[first..self.slots.len().min(first + INDEX_ENTRIES as usize)];
            let entries: Vec<Option<IndexEntry>> =
                slots.iter().map(|owner| self.index_entry(*owner)).collect();
            let written = &mut self.index_written[number as usize];
            let number = u64::from(number);
            let mark = |round| page::mark(PageKind::Index, number, round);
            self.index_sum ^= mark(written.round) ^ mark(round);
            *written = written.next(round);
            let bytes = page::encode_index(number, round, &entries);
            writes.push((self.index, page::offset(number, written.place), bytes));
        }
        writes
    }

    fn index_entry(&self, owner: Option<ChunkId>) -> Option<IndexEntry> {
        let id = owner?;
        let chunk = self.chunks.get(&id).filter(|c| c.born)?;
        Some(IndexEntry { chunk: id, info: chunk.info.clone(), pages: chunk.exists, places: chunk.places })
    }

    fn sync_pages(&mut self, io: &mut dyn Io) {
        let apply = self.round();
        apply.step = Step::Sync;
        let touched = std::mem::take(&mut apply.touched);
        apply.left = touched.len() as u32;
        if touched.is_empty() {
            return self.commit(io);
        }
        for file in touched {
            let wait = self.expect(Waiting::Apply(None));
            io.sync(file, wait);
        }
    }

    fn commit(&mut self, io: &mut dyn Io) {
        let apply = self.round();
        apply.step = Step::Commit;
        let (cut, checkpoint) = (apply.cut, apply.checkpoint);
        self.journal.trim_with(io, cut.min(self.journal.end()), checkpoint);
    }

    /// The round is valid.
    pub(super) fn committed(&mut self, io: &mut dyn Io) {
        let Some(apply) = self.apply.take_if(|a| a.step == Step::Commit) else { return };
        self.committed_round = apply.round;
        self.free_slots.extend(apply.cleared_slots);
        let forgotten = self.failed_units.extract_if(.., |(at, _)| *at < apply.cut).map(|(_, unit)| unit);
        let unowned = self.unowned.extract_if(.., |(found, _)| *found < apply.round).map(|(_, unit)| unit);
        for unit in std::mem::take(&mut self.free_later).into_iter().chain(forgotten).chain(unowned) {
            self.units.release(unit);
        }
        self.free_vacated(io);
        if self.dirty {
            self.mark_dirty(io);
        }
        self.end_clones(io, apply.clones);
        if !self.clones.is_empty() {
            self.start_apply(io);
        }
    }
}

/// Where a block stands in `data` when its unit is this one.
fn place_of(unit: u32, block: u32) -> u64 {
    u64::from(unit) * UNIT_BYTES + u64::from(block % UNIT_BLOCKS) * BLOCK_BYTES as u64
}
