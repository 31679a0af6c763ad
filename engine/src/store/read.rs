//! Reads: overlay first, then the read cache, then the data file, holes as zeros; every block verified before it leaves.

use super::overlay::Held;
use super::{
    Chunk, Done, NAMESPACE, PAGE_BLOCKS, Store, StoreError, Ticket, UNIT_BLOCKS, UNIT_BYTES, Waiting,
};
use crate::cache::{Hit, Piece, Version};
use shards::sabotage::{Sabotage, on};
use shards::{Buf, BufMut, Io, OpId, TimerId};
use smallvec::SmallVec;
use std::io;
use std::ops::Range;
use std::time::Duration;
use wire::{BLOCK_BYTES, BlockCrc, BlockCrcs, ChunkId};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// For a client: blocks that are gone are an error.
    Data,
    /// For another replica: blocks that are gone come as such.
    Copy,
    /// The same, and whatever can't be read is gone from now on.
    Rescue,
    Sums,
}

pub(super) struct Reading {
    ticket: Ticket,
    chunk: ChunkId,
    blocks: Range<u32>,
    want: Want,
    /// What is read from `data` may go to the cache.
    cacheable: bool,
    runs_left: u32,
    /// What has come, from memory or from disk: first block and bytes. Blocks in memory are taken at the start: a round
    /// may write them back before the rest is read.
    parts: Parts,
    /// Blocks that could not be read, where these are given up.
    given_up: Vec<u32>,
    failed: Option<StoreError>,
}

pub(super) const CACHE_LIMIT_TIMER: TimerId = TimerId(NAMESPACE | 5);
/// How long a read of the cache may take before the disk is asked.
const CACHE_PATIENCE: Duration = Duration::from_millis(50);

/// Blocks in a row on disk: first block, number, offset in `data` (or in the journal).
pub(super) type Run = (u32, u32, u64);
type Runs = SmallVec<[Run; 1]>;
type Parts = SmallVec<[(u32, Buf); 1]>;

/// Blocks that are read from the cache, and where they are if that fails.
pub(super) struct CacheRun {
    hit: Hit,
    run: Run,
}
type CacheRuns = SmallVec<[CacheRun; 1]>;

/// Where a read finds its blocks.
#[derive(Default)]
struct Sources {
    data: Runs,
    cache: CacheRuns,
    /// What is read from `data` may go to the cache.
    cacheable: bool,
    /// Blocks that have a checksum and no place (load.rs), where these are given up.
    without_place: Vec<u32>,
}

impl Store {
    pub(super) fn start_read(
        &mut self,
        io: &mut dyn Io,
        ticket: Ticket,
        id: ChunkId,
        blocks: Range<u32>,
        want: Want,
    ) {
        let sources = match self.plan_read(id, &blocks, want) {
            Ok(sources) => sources,
            Err(error) => return self.finish(ticket, Err(error)),
        };
        let Sources { data: runs, cache: cached, cacheable, without_place } = sources;
        let in_journal = self.journal_runs(id, &blocks);
        let read = self.fresh_id();
        let reading = Reading {
            ticket,
            chunk: id,
            blocks: blocks.clone(),
            want,
            cacheable,
            runs_left: (runs.len() + cached.len() + in_journal.len()) as u32,
            parts: if want == Want::Sums { SmallVec::new() } else { self.in_memory(id, &blocks) },
            given_up: without_place,
            failed: None,
        };
        if reading.runs_left == 0 {
            let result = self.assemble(reading);
            return self.finish(ticket, result);
        }
        self.chunks.get_mut(&id).expect("submit saw it").active.push((read, blocks, false));
        self.reads.insert(read, reading);
        for run in cached {
            let (file, offset, len) = (run.hit.file, run.hit.offset_bytes, run.run.1 as usize * BLOCK_BYTES);
            let wait = self.expect(Waiting::CacheRun { id: read, run });
            self.limit_cache_read(io, wait);
            io.read(file, offset, len, wait);
        }
        for run in runs {
            self.read_run(io, read, run);
        }
        for run in in_journal {
            self.read_journal_run(io, read, run);
        }
    }

    fn read_run(&mut self, io: &mut dyn Io, id: u64, run: Run) {
        let wait = self.expect(Waiting::ReadRun { id, run });
        io.read(self.data, run.2, run.1 as usize * BLOCK_BYTES, wait);
    }

    fn read_journal_run(&mut self, io: &mut dyn Io, id: u64, run: Run) {
        let wait = self.expect(Waiting::JournalRun { id, run });
        io.read(self.journal.file(), run.2, run.1 as usize * BLOCK_BYTES, wait);
    }

    /// Who verifies the disk (`Want::Sums`) reads the disk, and a long stream is better off there.
    fn plan_read(&mut self, id: ChunkId, blocks: &Range<u32>, want: Want) -> Result<Sources, StoreError> {
        let mut sources = self.disk_runs(id, blocks, want)?;
        let reads_cache = matches!(want, Want::Data | Want::Copy);
        let Some(cache) = self.cache.as_mut().filter(|_| reads_cache) else {
            return Ok(sources);
        };
        let chunk = &self.chunks[&id];
        for (piece, run) in std::mem::take(&mut sources.data).into_iter().flat_map(pieces_of) {
            match cache.find(&piece, chunk.version(id, run.0)) {
                Some(hit) => sources.cache.push(CacheRun { hit, run }),
                None => join(&mut sources.data, run),
            }
        }
        sources.cacheable = !cache.is_stream(id, blocks);
        Ok(sources)
    }

    /// What must be read from `data`; neighbours on disk joined. An error if one of the blocks can't be had.
    fn disk_runs(&self, id: ChunkId, blocks: &Range<u32>, want: Want) -> Result<Sources, StoreError> {
        let chunk = &self.chunks[&id];
        let mut sources = Sources::default();
        for block in blocks.clone() {
            let crc = chunk.crc(block);
            if crc == BlockCrc::GONE && want == Want::Data {
                return Err(StoreError::Gone { chunk: id, block });
            }
            if crc == BlockCrc::HOLE || chunk.overlay.contains_key(&block) {
                continue;
            }
            match chunk.unit(block / UNIT_BLOCKS) {
                Some(unit) => {
                    let at = u64::from(block % UNIT_BLOCKS) * BLOCK_BYTES as u64;
                    join(&mut sources.data, (block, 1, u64::from(unit) * UNIT_BYTES + at));
                }
                // It has a checksum and no place (load.rs).
                None if want == Want::Rescue => sources.without_place.push(block),
                None => return Err(StoreError::Checksum { chunk: id, block }),
            }
        }
        Ok(sources)
    }

    /// What must be read from the journal.
    fn journal_runs(&self, id: ChunkId, blocks: &Range<u32>) -> Runs {
        let mut runs = Runs::new();
        for (&block, newer) in self.chunks[&id].overlay.range(blocks.clone()) {
            if let Held::Journal(offset) = newer.held {
                join(&mut runs, (block, 1, offset));
            }
        }
        runs
    }

    pub(super) fn journal_run_done(&mut self, io: &mut dyn Io, id: u64, run: Run, result: io::Result<Buf>) {
        let Some(reading) = self.reads.get_mut(&id) else { return };
        let (chunk, blocks) = (reading.chunk, run.0..run.0 + run.1);
        // A round may have written these blocks to their places meanwhile, and others stand in the journal now.
        let in_journal = self.journal_runs(chunk, &blocks);
        if in_journal[..] != [run] {
            let sources = self.disk_runs(chunk, &blocks, Want::Copy);
            let runs = sources.expect("a block that was in the journal has a place").data;
            let reading = self.reads.get_mut(&id).expect("just seen");
            reading.runs_left += (runs.len() + in_journal.len()) as u32 - 1;
            runs.into_iter().for_each(|run| self.read_run(io, id, run));
            return in_journal.into_iter().for_each(|run| self.read_journal_run(io, id, run));
        }
        self.part_came(io, id, run, true, result);
    }

    /// What the cache returned is used if it is right, and read from `data` otherwise.
    pub(super) fn cache_run_done(
        &mut self,
        io: &mut dyn Io,
        id: u64,
        run: CacheRun,
        result: io::Result<Buf>,
    ) {
        let CacheRun { hit, run } = run;
        let right = result.as_ref().is_ok_and(|data| self.bad_blocks(id, run.0, data).is_empty());
        if let Some(cache) = &mut self.cache {
            let outcome = result.as_ref().map(|_| right).map_err(|e| io::Error::new(e.kind(), e.to_string()));
            cache.read_done(hit, outcome);
        }
        self.tell_lost_cache();
        match result {
            Ok(data) if right => self.part_read(io, id, run.0, data),
            _ => self.read_run(io, id, run),
        }
    }

    fn limit_cache_read(&mut self, io: &mut dyn Io, op: OpId) {
        let until = io.now().after(CACHE_PATIENCE);
        if self.cache_limits.is_empty() {
            io.set_timer(until, CACHE_LIMIT_TIMER);
        }
        self.cache_limits.push_back((until, op));
    }

    /// Reads from `data` what the cache has not brought in time: an SSD that stalls must not hold up what the disk can
    /// answer.
    pub(super) fn give_up_cache_reads(&mut self, io: &mut dyn Io) {
        while let Some(&(until, op)) = self.cache_limits.front() {
            if until > io.now() {
                return io.set_timer(until, CACHE_LIMIT_TIMER);
            }
            self.cache_limits.pop_front();
            let Some(waiting) = self.waiting.remove(&op.0) else { continue };
            let Waiting::CacheRun { id, run } = waiting else {
                unreachable!("only reads of the cache have a limit")
            };
            if let Some(cache) = &mut self.cache {
                cache.read_is_overdue();
            }
            let place = run.run;
            self.waiting.insert(op.0, Waiting::OverdueCacheRun(run));
            self.read_run(io, id, place);
        }
    }

    pub(super) fn overdue_run_done(&mut self, run: CacheRun, result: io::Result<Buf>) {
        if let Some(cache) = &mut self.cache {
            cache.overdue_done(run.hit, result.map(|_| ()));
        }
        self.tell_lost_cache();
    }

    /// Blocks of a read part that are not what their checksums say.
    fn bad_blocks(&self, id: u64, at_block: u32, data: &Buf) -> SmallVec<[u32; 1]> {
        let Some(reading) = self.reads.get(&id) else { return SmallVec::new() };
        let chunk = &self.chunks[&reading.chunk];
        let blocks = (at_block..).zip(data.chunks_exact(BLOCK_BYTES));
        let right = |block: u32, bytes: &[u8]| chunk.crc(block).matches(bytes) || on(Sabotage::TrustDisk);
        blocks.filter(|(block, bytes)| !right(*block, bytes)).map(|(block, _)| block).collect()
    }

    pub(super) fn read_run_done(&mut self, io: &mut dyn Io, id: u64, run: Run, result: io::Result<Buf>) {
        self.part_came(io, id, run, false, result);
    }

    /// Blocks came from `data`, or from the journal: they are verified.
    fn part_came(&mut self, io: &mut dyn Io, id: u64, run: Run, in_journal: bool, result: io::Result<Buf>) {
        let (at_block, blocks, _) = run;
        let bad =
            result.as_ref().map_or_else(|_| SmallVec::new(), |data| self.bad_blocks(id, at_block, data));
        let Some(reading) = self.reads.get_mut(&id) else { return };
        match result {
            Ok(data) if bad.is_empty() => {
                debug_assert_eq!(data.len(), blocks as usize * BLOCK_BYTES);
                if reading.cacheable && !in_journal {
                    self.offer_to_cache(io, id, at_block, &data);
                }
                self.part_read(io, id, at_block, data);
            }
            Ok(data) if reading.want == Want::Rescue => {
                let mut rest = BufMut::zeroed(data.len());
                rest[..].copy_from_slice(&data);
                for block in &bad {
                    rest[(block - at_block) as usize * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
                }
                reading.given_up.extend(bad);
                self.part_read(io, id, at_block, rest.freeze());
            }
            Ok(data) => {
                reading.failed = Some(StoreError::Checksum { chunk: reading.chunk, block: bad[0] });
                self.part_read(io, id, at_block, data);
            }
            // One of them can't be read: which?
            Err(_) if reading.want == Want::Rescue && blocks > 1 => {
                reading.runs_left += blocks - 1;
                for number in 0..blocks {
                    let one = (at_block + number, 1, run.2 + u64::from(number) * BLOCK_BYTES as u64);
                    if in_journal { self.read_journal_run(io, id, one) } else { self.read_run(io, id, one) }
                }
            }
            Err(_) if reading.want == Want::Rescue => {
                reading.given_up.push(at_block);
                self.part_read(io, id, at_block, Buf::empty());
            }
            Err(source) => {
                let data = || format!("{}/data", self.config.dir);
                let file = if in_journal { self.config.journal_path.clone() } else { data() };
                reading.failed = Some(StoreError::Io { file, source });
                self.part_read(io, id, at_block, Buf::empty());
            }
        }
    }

    fn offer_to_cache(&mut self, io: &mut dyn Io, id: u64, at_block: u32, data: &Buf) {
        let chunk_id = self.reads[&id].chunk;
        let chunk = &self.chunks[&chunk_id];
        let Some(cache) = &mut self.cache else { return };
        let end = at_block + (data.len() / BLOCK_BYTES) as u32;
        let mut first = at_block;
        while first < end {
            let next = end.min((first / UNIT_BLOCKS + 1) * UNIT_BLOCKS);
            // Each unit where it is now: a round may have moved it since the read began, and not its neighbour.
            if let (Some(unit), Some(version)) =
                (chunk.unit(first / UNIT_BLOCKS), chunk.version(chunk_id, first))
            {
                let within = first % UNIT_BLOCKS;
                let piece = Piece { unit, blocks: within..within + next - first };
                let bytes =
                    (first - at_block) as usize * BLOCK_BYTES..(next - at_block) as usize * BLOCK_BYTES;
                cache.offer(io, &piece, version, data.slice(bytes));
            }
            first = next;
        }
    }

    fn part_read(&mut self, io: &mut dyn Io, id: u64, at_block: u32, data: Buf) {
        let Some(reading) = self.reads.get_mut(&id) else { return };
        reading.runs_left -= 1;
        reading.parts.push((at_block, data));
        if reading.runs_left == 0 {
            let reading = self.reads.remove(&id).expect("just seen");
            let (ticket, chunk) = (reading.ticket, reading.chunk);
            let result = self.assemble(reading);
            self.finish(ticket, result);
            self.release(io, chunk, id);
        }
    }

    fn assemble(&self, mut reading: Reading) -> Result<Done, StoreError> {
        if let Some(error) = reading.failed {
            return Err(error);
        }
        let chunk = &self.chunks[&reading.chunk];
        let blocks = reading.blocks.clone();
        let mut crcs: BlockCrcs = blocks.clone().map(|b| chunk.crc(b)).collect();
        if on(Sabotage::TrustDisk) {
            for (first, part) in &reading.parts {
                let at = (first - blocks.start) as usize;
                let new = part.chunks(BLOCK_BYTES).map(BlockCrc::of);
                crcs.iter_mut().skip(at).zip(new).for_each(|(crc, new)| *crc = new);
            }
        }
        if reading.want == Want::Sums {
            return Ok(Done::Sums { crcs });
        }
        for block in &reading.given_up {
            crcs[(block - blocks.start) as usize] = BlockCrc::GONE;
        }
        let len = crcs.len() * BLOCK_BYTES;
        if reading.parts.len() == 1 && reading.parts[0].1.len() == len {
            let (_, data) = reading.parts.pop().expect("one part");
            return Ok(Done::Read { data, crcs });
        }
        let mut data = BufMut::zeroed(len);
        for (first, part) in &reading.parts {
            let at = (first - blocks.start) as usize * BLOCK_BYTES;
            data[at..at + part.len()].copy_from_slice(part);
        }
        Ok(Done::Read { data: data.freeze(), crcs })
    }
}

impl Chunk {
    /// What the map page of a block says now; `None` if no round has written it so.
    fn version(&self, id: ChunkId, block: u32) -> Option<Version> {
        let number = block / PAGE_BLOCKS;
        let page = self.pages.get(&number).filter(|_| self.dirty >> number & 1 == 0)?;
        Some(Version { chunk: id, round: page.round.0 })
    }
}

/// Adds a run, to the last one if it goes on there.
fn join(runs: &mut Runs, run: Run) {
    match runs.last_mut() {
        Some((first, count, at))
            if *first + *count == run.0 && *at + u64::from(*count) * BLOCK_BYTES as u64 == run.2 =>
        {
            *count += run.1;
        }
        _ => runs.push(run),
    }
}

/// The parts of a run by unit of `data`.
fn pieces_of((mut block, mut left, mut offset): Run) -> impl Iterator<Item = (Piece, Run)> {
    std::iter::from_fn(move || {
        let first = (offset % UNIT_BYTES / BLOCK_BYTES as u64) as u32;
        let count = left.min(UNIT_BLOCKS - first);
        let piece = Piece { unit: (offset / UNIT_BYTES) as u32, blocks: first..first + count };
        let run = (block, count, offset);
        (block, left, offset) = (block + count, left - count, offset + u64::from(count) * BLOCK_BYTES as u64);
        (count > 0).then_some((piece, run))
    })
}
