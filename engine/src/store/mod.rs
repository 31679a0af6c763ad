//! The chunk store of one shard: chunks on a data file, behind a journal. Sans-io; a node drives it.
//!
//! Files below the shard's directory (docs/formats.md, "Chunk store"): `journal`, `data` (64 KiB units), and metadata in
//! pages of two places each: `index` (which chunks), `maps` (where their units lie, checksums), `units` (which are used),
//! `shares` (which several maps name). The index, the unit bitmap and the shares are in memory; map pages come and go within
//! a budget.
//!
//! Blocks of `data` that are read again and again may also lie in a cache on SSD (`crate::cache`).
//!
//! Invariants:
//! - an operation is reported done only when it is durable: its journal records, and for large writes also the units
//!   they describe;
//! - memory (pages, overlay, chunk info) shows exactly the operations that were reported done;
//! - data of acknowledged writes is overwritten in place only while the journal holds the new bytes;
//! - metadata on disk changes in rounds, each valid as a whole or not at all (apply.rs); the journal is trimmed in the
//!   same atomic write that makes a round valid;
//! - every block that leaves matches its checksum;
//! - operations on overlapping blocks of a chunk take effect in the order of the calls.
//!
//! Reading order: [`Store::write`] → `write.rs` → journal → `done` → later `apply.rs`.

mod alloc;
mod apply;
mod census;
mod clone;
mod give_back;
mod load;
mod overlay;
mod page;
#[cfg(feature = "plant")]
mod plant;
mod read;
mod record;
mod replay;
mod shares;
mod write;

#[cfg(test)]
mod tests;

use crate::cache::{Cache, CacheConfig, CacheStat};
use alloc::Units;
use apply::Apply;
use clone::{Cloning, Vacated};
use load::Load;
use overlay::{OverlayBlock, Waits};
use page::{MapPage, PageKind, Round, Written};
use replay::Opening;
use shards::journal::{Checkpoint, Journal, JournalError, Outcome as JournalOutcome, Position};
use shards::{Buf, Durability, FileHandle, Io, OpId, OpenHow, TimerId, Timestamp};
use shares::Shares;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::time::Duration;
use wire::{BLOCK_BYTES, BlockCrc, BlockCrcs, ChunkId, Epoch, LeaseId, Sequence, TailEntry};

/// Unit of space: bytes, and blocks of it.
pub const UNIT_BYTES: u64 = 64 << 10;
pub const UNIT_BLOCKS: u32 = (UNIT_BYTES / BLOCK_BYTES as u64) as u32;
/// A map page describes this many units of a chunk (2 MiB).
pub const PAGE_UNITS: u32 = 32;
pub const PAGE_BLOCKS: u32 = PAGE_UNITS * UNIT_BLOCKS;
/// Pages of the largest chunk (256 MiB).
pub const MOST_PAGES: u32 = 128;
pub const MOST_CHUNK_BYTES: u64 = MOST_PAGES as u64 * PAGE_BLOCKS as u64 * BLOCK_BYTES as u64;

const NAMESPACE: u64 = 0x02 << 56;
const APPLY_TIMER: TimerId = TimerId(NAMESPACE | 1);
/// When writes that found the file system full are tried again.
const ROOM_TIMER: TimerId = TimerId(NAMESPACE | 2);
const CACHE_TIMER: TimerId = TimerId(NAMESPACE | 3);
/// How often the table of the read cache is written.
const SAVE_CACHE_EVERY: Duration = Duration::from_secs(10);
/// Dirty state is written back at the latest this long after it came about.
const APPLY_AFTER: Duration = Duration::from_secs(2);
/// Room that must stay free on the file system for writes to be taken: what was acknowledged must always find room in
/// the files, also when other shards (or other programs) fill the same file system meanwhile.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
/// How often the file system is asked for its room.
const LOOK_AT_DISK_EVERY: Duration = Duration::from_millis(100);
/// Entries of a chunk's tail; more are merged into larger ranges.
const MOST_TAIL: usize = 100;

/// Chosen by the caller; comes back with the outcome.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// Directory of the shard, relative to the node's.
    pub dir: String,
    /// Journal file: below `dir`, or an absolute path on an SSD.
    pub journal_path: String,
    pub journal_bytes: u64,
    /// Space the shard may use, bytes.
    pub capacity_bytes: u64,
    /// Memory for map pages that are not being changed, bytes. Each describes 2 MiB of a chunk.
    pub map_cache_bytes: u64,
    /// Memory for small writes that wait to be written to their places, bytes. More of them wait in the journal alone.
    pub overlay_bytes: u64,
    /// Read cache on an SSD.
    pub cache: Option<CacheConfig>,
}

/// Memory of a map page, with what finds it.
const MAP_PAGE_MEMORY: u64 = 2400;

/// Who writes: stored with the chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub committed: Sequence,
    pub lease: LeaseId,
}

/// Whole blocks, already verified against their checksums.
#[derive(Clone, Debug)]
pub struct WriteOp {
    pub chunk: ChunkId,
    pub stamp: Stamp,
    pub offset_bytes: u32,
    pub payload: Buf,
    pub crcs: BlockCrcs,
}

/// Makes whole blocks zero and gives back their space.
#[derive(Clone, Copy, Debug)]
pub struct DiscardOp {
    pub chunk: ChunkId,
    pub stamp: Stamp,
    pub offset_bytes: u32,
    pub length_bytes: u32,
}

/// What the store knows of a chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChunkInfo {
    pub epoch: Epoch,
    pub last_sequence: Sequence,
    pub committed: Sequence,
    /// Stored writes above `committed`; may be larger than true, never smaller.
    pub tail: Vec<TailEntry>,
    pub largest_lease: LeaseId,
}

#[derive(Debug)]
pub enum Done {
    Stored,
    Read { data: Buf, crcs: BlockCrcs },
    Sums { crcs: BlockCrcs },
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no space left on this chunk server")]
    NoSpace,
    #[error(
        "no space left on the file system of {dir}: make room there and start again. Nothing is lost: the journal \
         holds what was acknowledged"
    )]
    DiskFull { dir: String },
    #[error(
        "{file} is missing, although this shard has held data. Nothing was changed. Check that all its disks are \
         mounted; if the file is lost, so is this server: let the cluster copy its chunks to a new one (make-cs)"
    )]
    Missing { file: String },
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    #[error("chunk {chunk} block {block}: data on disk does not match its checksum")]
    Checksum { chunk: ChunkId, block: u32 },
    #[error(
        "chunk {chunk} block {block}: no replica holds it any more; it is whole again when it is written anew"
    )]
    Gone { chunk: ChunkId, block: u32 },
    #[error("chunk {0} is not here")]
    UnknownChunk(ChunkId),
    #[error(
        "{file} is corrupt at offset {offset}: expected {expected}, found {found}. Nothing was changed. Keep the \
         directory until the cluster has copied these chunks from other servers to a new one (make-cs)"
    )]
    Corrupt { file: String, offset: u64, expected: String, found: String },
    #[error(
        "{file} says '{found}'; this program understands '{expected}': start the pstorage-csd that wrote it"
    )]
    Format { file: String, expected: String, found: String },
    #[error("{0}")]
    Journal(#[from] JournalError),
    #[error("bad request: {0}")]
    BadRequest(String),
}

impl StoreError {
    /// Whether the chunk's copy here is not what it should be, so that another replica has to help.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Checksum { .. } | StoreError::Io { .. } | StoreError::Corrupt { .. })
    }
}

#[derive(Debug)]
pub enum Outcome {
    /// The store is open.
    Ready,
    /// The store can't go on.
    Broken(StoreError),
    /// The read cache is off, for this reason; everything else goes on.
    CacheLost(String),
    Finished {
        ticket: Ticket,
        result: Result<Done, StoreError>,
    },
}

/// A chunk in memory.
struct Chunk {
    info: ChunkInfo,
    /// Place in `index` and `maps`.
    slot: u32,
    /// Something was stored: false while its first write is under way.
    born: bool,
    /// Map pages that exist, that differ from disk, and those in memory (all of the second are).
    exists: u128,
    dirty: u128,
    /// In which of its places each map page was written last.
    places: u128,
    pages: BTreeMap<u32, MapPage>,
    overlay: BTreeMap<u32, OverlayBlock>,
    index_dirty: bool,
    /// Operations under way: blocks, and whether they write.
    active: Vec<(u64, Range<u32>, bool)>,
    /// Waiting for overlapping ones, in order.
    queued: VecDeque<(Range<u32>, bool, Request)>,
}

/// An operation that may have to wait.
enum Request {
    Write(Ticket, WriteOp),
    Discard(Ticket, DiscardOp),
    Read(Ticket, ChunkId, Range<u32>, read::Want),
    Sums(Ticket, ChunkId, Range<u32>, bool),
    SetEpoch(Ticket, ChunkId, Epoch),
    Delete(Ticket, ChunkId),
    /// The second chunk is made of the first.
    Clone(Ticket, ChunkId, ChunkId),
}

impl Request {
    fn shape(&self) -> (ChunkId, Range<u32>, bool) {
        let all = 0..u32::MAX;
        match self {
            Request::Write(_, op) => {
                let first = op.offset_bytes / BLOCK_BYTES as u32;
                (op.chunk, first..first + op.crcs.len() as u32, true)
            }
            Request::Discard(_, op) => {
                let first = op.offset_bytes / BLOCK_BYTES as u32;
                (op.chunk, first..first + op.length_bytes / BLOCK_BYTES as u32, true)
            }
            Request::Read(_, chunk, blocks, _) | Request::Sums(_, chunk, blocks, _) => {
                (*chunk, blocks.clone(), false)
            }
            Request::SetEpoch(_, chunk, _) => (*chunk, 0..1, true),
            Request::Delete(_, chunk) => (*chunk, all, true),
            Request::Clone(_, from, _) => (*from, all, false),
        }
    }

    fn ticket(&self) -> Ticket {
        match self {
            Request::Write(ticket, _)
            | Request::Discard(ticket, _)
            | Request::Read(ticket, ..)
            | Request::Sums(ticket, ..)
            | Request::SetEpoch(ticket, ..)
            | Request::Delete(ticket, _)
            | Request::Clone(ticket, ..) => *ticket,
        }
    }
}

/// Whose completion a disk operation is.
enum Waiting {
    ReadRun {
        id: u64,
        run: read::Run,
    },
    CacheRun {
        id: u64,
        run: read::CacheRun,
    },
    /// The same, given up; the disk has been asked instead.
    OverdueCacheRun(read::CacheRun),
    LargeData {
        id: u64,
        durability: Durability,
    },
    LargeSync,
    /// Blocks that only the journal has.
    JournalRun {
        id: u64,
        run: read::Run,
    },
    /// The same, for the running round.
    Gather {
        run: u64,
        part: usize,
    },
    /// A block that moves to another unit of `data`, for the running round.
    GatherMoved {
        run: u64,
        part: usize,
    },
    MapPage {
        chunk: ChunkId,
        page: u32,
        /// The second try.
        again: bool,
    },
    /// A hole in `data` in place of free units.
    GiveBack {
        first: u32,
        count: u32,
    },
    /// A step of the running round: one of its writes, or a sync.
    Apply(Option<apply::WriteBack>),
    Open(replay::Reading),
}

pub struct Store {
    config: StoreConfig,
    data: FileHandle,
    index: FileHandle,
    maps: FileHandle,
    units_file: FileHandle,
    shares_file: FileHandle,
    journal: Journal,
    cache: Option<Cache>,
    opening: Option<Opening>,
    /// Replay is done; its result is being written.
    finishing_open: bool,
    /// Damaged map pages over which the journal's records were replayed: their units are still taken.
    lost_at_start: BTreeSet<(ChunkId, u32)>,
    broken: bool,
    chunks: BTreeMap<ChunkId, Chunk>,
    units: Units,
    shares: Shares,
    /// Clones that wait for a round; units that clones have left.
    clones: Vec<Cloning>,
    vacated: Vacated,
    /// Whose slot it is.
    slots: Vec<Option<ChunkId>>,
    free_slots: Vec<u32>,
    /// Slots of deleted chunks, which a round must clear before they are used again.
    dead_slots: Vec<u32>,
    /// Where each index page was written last, their part of the checkpoint's sum, and which pages differ from disk.
    index_written: Vec<Written>,
    index_sum: u64,
    dirty_index: BTreeSet<u32>,
    /// Chunks with anything for the next round: blocks in memory, changed pages, changed info.
    dirty_chunks: BTreeSet<ChunkId>,
    /// Round that is valid on disk, and the last one begun.
    committed_round: Round,
    last_round: Round,
    /// Map pages in memory that could go, oldest first; requests and rounds waiting for pages.
    page_clock: VecDeque<(ChunkId, u32)>,
    loads: HashMap<u64, Load>,
    page_waiters: HashMap<(ChunkId, u32), Vec<load::Waiter>>,
    /// All chunks' overlays together.
    overlay: Waits,
    generation: u64,
    next_id: u64,
    writes: HashMap<u64, write::Write>,
    reads: HashMap<u64, read::Reading>,
    waiting: HashMap<u64, Waiting>,
    /// Reads of the cache, and when each is given up; also some that have ended.
    cache_limits: VecDeque<(Timestamp, OpId)>,
    /// Writes with records that the journal had no room for.
    stalled: VecDeque<u64>,
    /// Large writes whose data is written and needs the next sync; those that the running sync covers.
    sync_next: Vec<u64>,
    sync_now: Option<Vec<u64>>,
    last_durable: Position,
    apply: Option<Apply>,
    /// Free bytes of the file system when last looked at, less what was taken since.
    disk_free_bytes: u64,
    disk_looked_at: Option<Timestamp>,
    dirty: bool,
    timer_set: bool,
    /// Units to free when the running apply has ended.
    free_later: Vec<u32>,
    /// Found by a census; free once a round is valid that began after the one named.
    unowned: Vec<(Round, u32)>,
    /// Of all chunks ever deleted here.
    highest_deleted: ChunkId,
    /// Units of large writes that failed, with the place of their last record in the journal.
    failed_units: Vec<(Position, u32)>,
    outcomes: Vec<Outcome>,
    /// A walk that looks for units without an owner.
    census: Option<census::Census>,
    /// Chunks that came to be since [`Store::take_appeared`].
    appeared: BTreeSet<ChunkId>,
    /// Empty; kept for its memory.
    journal_outcomes: Vec<JournalOutcome>,
}

impl Store {
    /// Opens the store below `config.dir`, making it if it isn't there. `Ready` or `Broken` follows.
    pub fn open(io: &mut dyn Io, config: &StoreConfig) -> Result<Store, StoreError> {
        let mark = replay::mark_path(config);
        let made = io.get_blob(&mark).map_err(|source| StoreError::Io { file: mark.clone(), source })?;
        if let Some(bytes) = &made {
            replay::check_mark(&mark, bytes)?;
        }
        // A store that was made is never made again: an empty file in place of a lost one would read as holes.
        let how = OpenHow { create: made.is_none(), direct: true, read_only: false };
        let data = open_file(io, config, "data", how)?;
        let [index, maps, units_file, shares_file] =
            [PageKind::Index, PageKind::Map, PageKind::Units, PageKind::Shares]
                .map(|kind| open_file(io, config, kind.file(), how));
        let (index, maps, units_file, shares_file) = (index?, maps?, units_file?, shares_file?);
        let journal = if made.is_some() {
            Journal::open(io, &config.journal_path, record::verify)?
        } else {
            for file in [data, index, maps, units_file, shares_file] {
                if io.file_len(file).map_err(|source| StoreError::Io { file: mark.clone(), source })? > 0 {
                    return Err(StoreError::Missing { file: mark });
                }
            }
            Journal::create(io, &config.journal_path, config.journal_bytes)?
        };
        let mut outcomes = Vec::new();
        let cache = config.cache.as_ref().and_then(|cache| match Cache::open(io, cache) {
            Ok(cache) => Some(cache),
            Err(why) => {
                outcomes.push(Outcome::CacheLost(why));
                None
            }
        });
        if cache.is_some() {
            io.set_timer(io.now().after(SAVE_CACHE_EVERY), CACHE_TIMER);
        }
        let total_units = (config.capacity_bytes / UNIT_BYTES).clamp(1, u64::from(u32::MAX) - 1) as u32;
        Ok(Store {
            config: config.clone(),
            data,
            index,
            maps,
            units_file,
            shares_file,
            journal,
            cache,
            opening: Some(Opening::new()),
            finishing_open: false,
            lost_at_start: BTreeSet::new(),
            broken: false,
            chunks: BTreeMap::new(),
            units: Units::new(total_units),
            shares: Shares::default(),
            clones: Vec::new(),
            vacated: Vacated::default(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            dead_slots: Vec::new(),
            index_written: Vec::new(),
            index_sum: 0,
            dirty_index: BTreeSet::new(),
            dirty_chunks: BTreeSet::new(),
            committed_round: Round(0),
            last_round: Round(0),
            page_clock: VecDeque::new(),
            loads: HashMap::new(),
            page_waiters: HashMap::new(),
            overlay: Waits::default(),
            generation: 0,
            next_id: 1,
            writes: HashMap::new(),
            reads: HashMap::new(),
            waiting: HashMap::new(),
            cache_limits: VecDeque::new(),
            stalled: VecDeque::new(),
            sync_next: Vec::new(),
            sync_now: None,
            last_durable: Position(0),
            apply: None,
            disk_free_bytes: u64::MAX,
            disk_looked_at: None,
            dirty: false,
            timer_set: false,
            free_later: Vec::new(),
            unowned: Vec::new(),
            highest_deleted: ChunkId(0),
            failed_units: Vec::new(),
            outcomes,
            census: None,
            appeared: BTreeSet::new(),
            journal_outcomes: Vec::new(),
        })
    }

    pub fn is_ready(&self) -> bool {
        self.opening.is_none() && !self.finishing_open && !self.broken
    }

    pub fn write(&mut self, io: &mut dyn Io, ticket: Ticket, op: WriteOp) {
        let end = u64::from(op.offset_bytes) + op.payload.len() as u64;
        let aligned =
            op.offset_bytes as usize % BLOCK_BYTES == 0 && op.payload.len() == op.crcs.len() * BLOCK_BYTES;
        if !aligned || op.payload.is_empty() || end > MOST_CHUNK_BYTES {
            return self
                .refuse(ticket, format!("write of {} bytes at {}", op.payload.len(), op.offset_bytes));
        }
        self.submit(io, Request::Write(ticket, op));
    }

    pub fn discard(&mut self, io: &mut dyn Io, ticket: Ticket, op: DiscardOp) {
        let end = u64::from(op.offset_bytes) + u64::from(op.length_bytes);
        let aligned = (op.offset_bytes | op.length_bytes) as usize % BLOCK_BYTES == 0;
        if !aligned || op.length_bytes == 0 || end > MOST_CHUNK_BYTES {
            return self
                .refuse(ticket, format!("discard of {} bytes at {}", op.length_bytes, op.offset_bytes));
        }
        self.submit(io, Request::Discard(ticket, op));
    }

    /// Reads whole blocks: `Done::Read` with one contiguous buffer and its checksums.
    pub fn read(
        &mut self,
        io: &mut dyn Io,
        ticket: Ticket,
        chunk: ChunkId,
        offset_bytes: u32,
        length_bytes: u32,
    ) {
        let end = u64::from(offset_bytes) + u64::from(length_bytes);
        let aligned = (offset_bytes | length_bytes) as usize % BLOCK_BYTES == 0;
        if !aligned || length_bytes == 0 || length_bytes > 16 << 20 || end > MOST_CHUNK_BYTES {
            return self.refuse(ticket, format!("read of {length_bytes} bytes at {offset_bytes}"));
        }
        let first = offset_bytes / BLOCK_BYTES as u32;
        let blocks = first..first + length_bytes / BLOCK_BYTES as u32;
        self.submit(io, Request::Read(ticket, chunk, blocks, read::Want::Data));
    }

    /// Reads blocks for another replica: those that are gone come as zeros with [`BlockCrc::GONE`]. With `give_up`
    /// those that can't be read or don't match their checksums become such.
    pub fn copy(
        &mut self,
        io: &mut dyn Io,
        ticket: Ticket,
        chunk: ChunkId,
        blocks: Range<u32>,
        give_up: bool,
    ) {
        let want = if give_up { read::Want::Rescue } else { read::Want::Copy };
        self.submit(io, Request::Read(ticket, chunk, blocks, want));
    }

    /// Checksums of blocks; with `deep` the data is read and verified. At most 4,096 blocks.
    pub fn sums(
        &mut self,
        io: &mut dyn Io,
        ticket: Ticket,
        chunk: ChunkId,
        first_block: u32,
        count: u32,
        deep: bool,
    ) {
        if count == 0
            || count > 4096
            || u64::from(first_block) + u64::from(count) > MOST_CHUNK_BYTES / BLOCK_BYTES as u64
        {
            return self.refuse(ticket, format!("sums of {count} blocks at {first_block}"));
        }
        self.submit(io, Request::Sums(ticket, chunk, first_block..first_block + count, deep));
    }

    /// Records a chunk's epoch durably; makes an empty chunk if there is none. Never lowers it.
    pub fn set_epoch(&mut self, io: &mut dyn Io, ticket: Ticket, chunk: ChunkId, epoch: Epoch) {
        self.submit(io, Request::SetEpoch(ticket, chunk, epoch));
    }

    /// Forgets a chunk, and remembers that it was deleted.
    pub fn delete(&mut self, io: &mut dyn Io, ticket: Ticket, chunk: ChunkId) {
        self.submit(io, Request::Delete(ticket, chunk));
    }

    /// Makes a chunk that is as another one is, without a copy of its data. Writes to the other wait meanwhile. An error if
    /// there is a chunk of this id, or none to clone.
    pub fn clone_chunk(&mut self, io: &mut dyn Io, ticket: Ticket, from: ChunkId, to: ChunkId) {
        self.submit(io, Request::Clone(ticket, from, to));
    }

    /// All sequences up to `sequence` are on all replicas. Kept in memory, written with the next thing that is.
    pub fn note_committed(&mut self, id: ChunkId, sequence: Sequence) {
        if let Some(chunk) = self.chunks.get_mut(&id)
            && sequence > chunk.info.committed
        {
            chunk.info.committed = sequence;
            chunk.info.tail.retain(|t| t.sequence > sequence);
            if !std::mem::replace(&mut chunk.index_dirty, true) {
                self.dirty_chunks.insert(id);
            }
        }
    }

    pub fn chunk(&self, chunk: ChunkId) -> Option<&ChunkInfo> {
        self.chunks.get(&chunk).map(|c| &c.info)
    }

    /// Whether nothing is under way on the chunk: its tail is then complete.
    pub fn is_quiet(&self, chunk: ChunkId) -> bool {
        self.chunks.get(&chunk).is_none_or(|c| c.active.is_empty() && c.queued.is_empty())
    }

    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.chunks.keys().copied()
    }

    /// Chunks that came to be since the last call and are still here.
    pub fn take_appeared(&mut self) -> Vec<ChunkId> {
        let appeared = std::mem::take(&mut self.appeared);
        appeared.into_iter().filter(|id| self.chunks.contains_key(id)).collect()
    }

    /// Whether a chunk of which nothing is here may have been here and deleted: ids grow and are never used again, so one
    /// above all that were deleted is new. Survives restarts.
    pub fn may_have_been_deleted(&self, id: ChunkId) -> bool {
        id <= self.highest_deleted && self.chunk(id).is_none_or(|info| info.last_sequence == Sequence(0))
    }

    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Block ranges that may hold data: what a copy of the chunk must contain. At unit granularity where the map page is
    /// in memory, whole map pages elsewhere. What is lost counts: whoever copies it meets the damage, and does not take it
    /// for a hole that the others should have too.
    pub fn allocated_ranges(&self, chunk: ChunkId) -> Vec<Range<u32>> {
        let Some(chunk) = self.chunks.get(&chunk) else { return Vec::new() };
        let mut units: Vec<u32> = chunk.overlay.keys().map(|b| b / UNIT_BLOCKS).collect();
        for number in bits(chunk.exists) {
            let first = number * PAGE_UNITS;
            let page = chunk.pages.get(&number);
            let may_hold = |&u: &u32| page.is_none_or(|p| p.may_hold(u));
            units.extend((0..PAGE_UNITS).filter(may_hold).map(|u| first + u));
        }
        units.sort_unstable();
        units.dedup();
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for unit in units {
            let blocks = unit * UNIT_BLOCKS..(unit + 1) * UNIT_BLOCKS;
            match ranges.last_mut() {
                Some(last) if last.end == blocks.start => last.end = blocks.end,
                _ => ranges.push(blocks),
            }
        }
        ranges
    }

    /// The first chunk with this id or a higher one.
    pub fn chunk_from(&self, from: ChunkId) -> Option<ChunkId> {
        self.chunks.range(from..).next().map(|(id, _)| *id)
    }

    /// The first range of blocks at or behind `from` that may hold data, within one map page.
    pub fn allocated_from(&self, chunk: ChunkId, from: u32) -> Option<Range<u32>> {
        let chunk = self.chunks.get(&chunk)?;
        let ahead = chunk.exists & pages_of(&(from..MOST_PAGES * PAGE_BLOCKS));
        for number in bits(ahead) {
            let blocks = (number * PAGE_BLOCKS).max(from)..(number + 1) * PAGE_BLOCKS;
            let Some(page) = chunk.pages.get(&number) else { return Some(blocks) };
            let held = |b: &u32| page.may_hold(b / UNIT_BLOCKS % PAGE_UNITS);
            if let Some(start) = blocks.clone().find(held) {
                let end = (start..blocks.end).find(|b| !held(b)).unwrap_or(blocks.end);
                return Some(start..end);
            }
        }
        None
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        u64::from(self.units.in_use()) * UNIT_BYTES
    }

    /// Total and free bytes: of the capacity, and no more than this shard's part of the file system's room, which it
    /// shares with `sharers - 1` others.
    pub fn space(&mut self, io: &mut dyn Io, sharers: u16) -> (u64, u64) {
        self.look_at_disk(io);
        let units = self.units.total() - self.units.in_use();
        let free = u64::from(units).saturating_sub(self.overlay.blocks as u64) * UNIT_BYTES;
        let on_disk = self.disk_free_bytes.saturating_sub(DISK_RESERVE_BYTES);
        (u64::from(self.units.total()) * UNIT_BYTES, free.min(on_disk / u64::from(sharers.max(1))))
    }

    fn look_at_disk(&mut self, io: &mut dyn Io) {
        let now = io.now();
        if self.disk_looked_at.is_some_and(|at| now.since(at) < LOOK_AT_DISK_EVERY) {
            return;
        }
        self.disk_looked_at = Some(now);
        match io.disk_space() {
            Ok((_, free)) => self.disk_free_bytes = free,
            Err(error) => tracing::warn!(%error, "disk_space_unknown"),
        }
    }

    /// Takes `bytes` of the file system's room, or says that they would leave too little.
    fn take_disk_room(&mut self, io: &mut dyn Io, bytes: u64) -> bool {
        self.look_at_disk(io);
        // A write to a unit that is shared takes room for all of it.
        let each = if self.shares.any() { UNIT_BYTES } else { BLOCK_BYTES as u64 };
        let waiting = self.overlay.blocks as u64 * each;
        let enough = bytes == 0 || self.disk_free_bytes >= bytes + waiting + DISK_RESERVE_BYTES;
        if enough {
            self.disk_free_bytes = self.disk_free_bytes.saturating_sub(bytes);
        }
        enough
    }

    /// Used and total bytes of the journal.
    pub fn journal_fill(&self) -> (u64, u64) {
        (self.journal.used_bytes(), self.journal.total_bytes())
    }

    /// What the read cache has done; all zeros without one.
    pub fn cache_stat(&self) -> CacheStat {
        self.cache.as_ref().map_or_else(CacheStat::default, Cache::stat)
    }

    /// The checkpoint that the journal has on stable storage: a journal that takes its place must begin with it.
    pub fn durable_checkpoint(&self) -> Checkpoint {
        self.journal.durable_checkpoint()
    }

    /// Writes down what the read cache holds, before an end. True when there is nothing left to write.
    pub fn save_cache(&mut self, io: &mut dyn Io) -> bool {
        self.cache.as_mut().is_none_or(|cache| cache.save(io))
    }

    fn cache_done(&mut self, io: &mut dyn Io, op: OpId, result: io::Result<Buf>) {
        if let Some(cache) = &mut self.cache {
            cache.on_disk(io, op, result);
        }
        self.tell_lost_cache();
    }

    fn tell_lost_cache(&mut self) {
        let lost = self.cache.as_mut().and_then(Cache::take_lost);
        self.outcomes.extend(lost.map(Outcome::CacheLost));
    }

    /// Takes a completion; false when it is not the store's.
    pub fn on_disk(&mut self, io: &mut dyn Io, op: OpId, result: io::Result<Buf>) -> bool {
        if op.0 >> 56 == NAMESPACE >> 56 {
            if let Some(waiting) = self.waiting.remove(&op.0)
                && !self.broken
            {
                self.completed(io, waiting, result);
            }
        } else if Cache::owns(op) {
            self.cache_done(io, op, result);
            return true;
        } else if !self.journal.on_disk(io, op, result) {
            return false;
        }
        self.after_journal(io);
        true
    }

    pub fn on_timer(&mut self, io: &mut dyn Io, timer: TimerId) -> bool {
        if timer == ROOM_TIMER {
            self.retry_for_room(io);
            return true;
        }
        if timer == give_back::GIVE_BACK_TIMER {
            self.give_back(io);
            return true;
        }
        if timer == read::CACHE_LIMIT_TIMER {
            self.give_up_cache_reads(io);
            return true;
        }
        if timer == CACHE_TIMER {
            self.save_cache(io);
            io.set_timer(io.now().after(SAVE_CACHE_EVERY), CACHE_TIMER);
            return true;
        }
        if timer != APPLY_TIMER {
            return timer.0 >> 56 == NAMESPACE >> 56;
        }
        self.timer_set = false;
        if self.is_ready() && self.dirty {
            self.start_apply(io);
        }
        true
    }

    /// Something was asked of the disk and has not ended.
    pub fn waits_for_disk(&self) -> bool {
        !self.waiting.is_empty() || !self.journal.is_quiet()
    }

    pub fn outcomes(&mut self) -> std::vec::Drain<'_, Outcome> {
        self.outcomes.drain(..)
    }

    fn refuse(&mut self, ticket: Ticket, why: String) {
        self.finish(ticket, Err(StoreError::BadRequest(why)));
    }

    fn finish(&mut self, ticket: Ticket, result: Result<Done, StoreError>) {
        self.outcomes.push(Outcome::Finished { ticket, result });
    }

    fn break_down(&mut self, error: StoreError) {
        if !self.broken {
            self.broken = true;
            self.outcomes.push(Outcome::Broken(error));
        }
    }

    /// Registers whose completion the next operation is.
    fn expect(&mut self, waiting: Waiting) -> OpId {
        let id = NAMESPACE | self.next_id;
        self.next_id += 1;
        self.waiting.insert(id, waiting);
        OpId(id)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn completed(&mut self, io: &mut dyn Io, waiting: Waiting, result: io::Result<Buf>) {
        match waiting {
            Waiting::ReadRun { id, run } => self.read_run_done(io, id, run, result),
            Waiting::CacheRun { id, run } => self.cache_run_done(io, id, run, result),
            Waiting::OverdueCacheRun(run) => self.overdue_run_done(run, result),
            Waiting::LargeData { id, durability } => self.large_data_done(io, id, durability, result),
            Waiting::LargeSync => self.large_sync_done(io, result),
            Waiting::JournalRun { id, run } => self.journal_run_done(io, id, run, result),
            Waiting::Gather { run, part } => self.gathered(io, run, part, result),
            Waiting::GatherMoved { run, part } => self.gathered_moved(io, run, part, result),
            Waiting::MapPage { chunk, page, again } => self.page_read(io, chunk, page, again, result),
            Waiting::Open(reading) => self.open_step(io, reading, result),
            Waiting::GiveBack { first, count } => self.gave_back(io, first, count, result),
            Waiting::Apply(write) => self.apply_step(io, write, result),
        }
    }

    fn after_journal(&mut self, io: &mut dyn Io) {
        let mut outcomes = std::mem::take(&mut self.journal_outcomes);
        outcomes.extend(self.journal.outcomes());
        for outcome in outcomes.drain(..) {
            match outcome {
                JournalOutcome::Durable { token, position, payload_at } => {
                    self.last_durable = position;
                    self.record_durable(io, token, position, payload_at);
                }
                JournalOutcome::Ready => self.journal_ready(io),
                JournalOutcome::Trimmed => self.trimmed(io),
                JournalOutcome::Replayed { meta, payload, payload_at, .. } => {
                    self.replayed(&meta, payload, payload_at)
                }
                JournalOutcome::Broken(error) => self.break_down(error.into()),
            }
        }
        self.journal_outcomes = outcomes;
        if self.finishing_open && self.apply.is_none() && self.journal.used_bytes() == 0 {
            self.finishing_open = false;
            self.outcomes.push(Outcome::Ready);
            self.start_giving_back(io);
            if !std::mem::take(&mut self.lost_at_start).is_empty() {
                self.start_census(io);
            }
        }
        self.retry_stalled(io);
        self.consider_apply(io);
        self.shrink_page_cache();
    }

    /// The journal's superblock is written: the opening or the running round goes on.
    fn trimmed(&mut self, io: &mut dyn Io) {
        if self.opening.is_some() {
            self.announced(io);
        } else {
            self.committed(io);
        }
    }

    /// What the journal keeps for us (docs/formats.md) of a round whose pages are written: the round, the last one that may
    /// have been begun, pages of `index` and `units` that must exist, and the sum over the rounds of these and of `shares`.
    fn checkpoint(&self, round: Round) -> Checkpoint {
        let pages = self.index_written.len() as u64 | u64::from(self.units.pages()) << 32;
        let sum = self.index_sum ^ self.units.sum() ^ self.shares.sum();
        Checkpoint([round.0, round.0 + 1, pages, sum, self.highest_deleted.0])
    }

    /// Starts a request, or queues it behind overlapping ones of its chunk.
    fn submit(&mut self, io: &mut dyn Io, request: Request) {
        if self.broken {
            return; // Broken was reported; the node is on its way out.
        }
        assert!(self.is_ready(), "the store is not open yet");
        let (id, blocks, writes) = request.shape();
        if !self.chunks.contains_key(&id) {
            match &request {
                Request::Read(ticket, ..) | Request::Sums(ticket, ..) | Request::Clone(ticket, ..) => {
                    return self.finish(*ticket, Err(StoreError::UnknownChunk(id)));
                }
                Request::Delete(ticket, _) if id <= self.highest_deleted => {
                    return self.finish(*ticket, Ok(Done::Stored));
                }
                _ => self.add_chunk(id),
            }
        }
        let chunk = self.chunks.get_mut(&id).expect("made above");
        if chunk.conflicts(&blocks, writes) {
            return chunk.queued.push_back((blocks, writes, request));
        }
        self.start(io, request);
    }

    /// Starts a request once the map pages it needs are in memory.
    fn start(&mut self, io: &mut dyn Io, request: Request) {
        let missing = self.missing_pages(&request);
        if missing == 0 { self.dispatch(io, request) } else { self.load_then(io, request, missing) }
    }

    fn dispatch(&mut self, io: &mut dyn Io, request: Request) {
        match request {
            Request::Write(ticket, op) => self.start_write(io, ticket, op),
            Request::Discard(ticket, op) => self.start_discard(io, ticket, op),
            Request::Read(ticket, chunk, blocks, want) => self.start_read(io, ticket, chunk, blocks, want),
            Request::Sums(ticket, chunk, blocks, true) => {
                self.start_read(io, ticket, chunk, blocks, read::Want::Sums)
            }
            Request::Sums(ticket, chunk, blocks, false) => {
                let crcs = blocks.map(|b| self.chunks[&chunk].crc(b)).collect();
                self.finish(ticket, Ok(Done::Sums { crcs }));
            }
            Request::SetEpoch(ticket, chunk, epoch) => self.start_set_epoch(io, ticket, chunk, epoch),
            Request::Delete(ticket, chunk) => self.start_delete(io, ticket, chunk),
            Request::Clone(ticket, from, to) => self.start_clone(io, ticket, from, to),
        }
    }

    /// Ends an operation's hold on its blocks and starts what waited for it, in order.
    fn release(&mut self, io: &mut dyn Io, chunk_id: ChunkId, id: u64) {
        if let Some(chunk) = self.chunks.get_mut(&chunk_id) {
            chunk.active.retain(|(active, ..)| *active != id);
        }
        // Starting one can end it at once and change everything, so look afresh each time.
        while let Some(request) = self.chunks.get_mut(&chunk_id).and_then(Chunk::next_startable) {
            self.start(io, request);
        }
    }

    /// Makes an empty chunk in a free slot.
    fn add_chunk(&mut self, id: ChunkId) {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            let slot = self.slots.len() as u32 - 1;
            if slot / page::INDEX_ENTRIES == self.index_written.len() as u32 {
                self.dirty_index.insert(self.index_written.len() as u32);
                self.index_written.push(Written::NEVER);
            }
            slot
        });
        self.slots[slot as usize] = Some(id);
        self.chunks.insert(id, Chunk::new(slot));
        self.appeared.insert(id);
    }

    fn free_unit(&mut self, unit: u32) {
        if self.apply.is_some() {
            // The running apply may still write into it.
            self.free_later.push(unit);
        } else {
            self.units.release(unit);
        }
    }

    fn mark_dirty(&mut self, io: &mut dyn Io) {
        self.dirty = true;
        if !self.timer_set {
            self.timer_set = true;
            io.set_timer(io.now().after(APPLY_AFTER), APPLY_TIMER);
        }
    }
}

/// Numbers of the bits that are set.
fn bits(mut mask: u128) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}

/// The map pages of a range of blocks, as bits.
fn pages_of(blocks: &Range<u32>) -> u128 {
    let first = blocks.start / PAGE_BLOCKS;
    let end = blocks.end.div_ceil(PAGE_BLOCKS).min(MOST_PAGES);
    let below = |n: u32| if n >= 128 { u128::MAX } else { (1 << n) - 1 };
    if first >= end { 0 } else { below(end) & !below(first) }
}

fn open_file(
    io: &mut dyn Io,
    config: &StoreConfig,
    name: &str,
    how: OpenHow,
) -> Result<FileHandle, StoreError> {
    let file = format!("{}/{name}", config.dir);
    io.open(&file, how).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if !how.create => StoreError::Missing { file },
        _ => StoreError::Io { file, source },
    })
}

fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Chunk {
    fn new(slot: u32) -> Chunk {
        Chunk {
            info: ChunkInfo::default(),
            slot,
            born: false,
            exists: 0,
            dirty: 0,
            places: 0,
            pages: BTreeMap::new(),
            overlay: BTreeMap::new(),
            index_dirty: false,
            active: Vec::new(),
            queued: VecDeque::new(),
        }
    }

    fn conflicts(&self, blocks: &Range<u32>, writes: bool) -> bool {
        let held = self.active.iter().map(|(_, b, w)| (b, *w));
        let queued = self.queued.iter().map(|(b, w, _)| (b, *w));
        held.chain(queued).any(|(b, w)| (writes || w) && overlap(b, blocks))
    }

    /// Takes the first queued request that nothing under way or in front of it holds back.
    fn next_startable(&mut self) -> Option<Request> {
        let at = (0..self.queued.len()).find(|&at| {
            let (blocks, writes, _) = &self.queued[at];
            let held = self.active.iter().map(|(_, b, w)| (b, *w));
            let ahead = self.queued.range(..at).map(|(b, w, _)| (b, *w));
            !held.chain(ahead).any(|(b, w)| (*writes || w) && overlap(b, blocks))
        })?;
        self.queued.remove(at).map(|(_, _, request)| request)
    }

    /// Checksum of a block as a reader would see it.
    fn crc(&self, block: u32) -> BlockCrc {
        match self.overlay.get(&block) {
            Some(newer) => newer.crc,
            None => {
                self.pages.get(&(block / PAGE_BLOCKS)).map_or(BlockCrc::HOLE, |p| p.crc(block % PAGE_BLOCKS))
            }
        }
    }

    /// Whether a block is known to hold nothing. (Its map page may not be in memory.)
    fn is_hole(&self, block: u32) -> bool {
        let number = block / PAGE_BLOCKS;
        let known = self.exists >> number & 1 == 0 || self.pages.contains_key(&number);
        known && self.crc(block) == BlockCrc::HOLE
    }

    fn unit(&self, unit: u32) -> Option<u32> {
        self.pages.get(&(unit / PAGE_UNITS))?.unit(unit % PAGE_UNITS)
    }

    /// The map page of a unit, to be changed; made if there is none.
    fn page(&mut self, unit: u32) -> &mut MapPage {
        let number = unit / PAGE_UNITS;
        let bit = 1 << number;
        assert!(
            self.exists & bit == 0 || self.pages.contains_key(&number),
            "map page {number} is not loaded"
        );
        self.exists |= bit;
        self.dirty |= bit;
        self.pages.entry(number).or_default()
    }

    /// Takes over what an operation says of the chunk.
    fn stamp(&mut self, stamp: &Stamp) {
        let info = &mut self.info;
        info.epoch = info.epoch.max(stamp.epoch);
        info.last_sequence = info.last_sequence.max(stamp.sequence);
        info.committed = info.committed.max(stamp.committed);
        info.largest_lease = info.largest_lease.max(stamp.lease);
        let committed = info.committed;
        info.tail.retain(|t| t.sequence > committed);
        self.born = true;
        self.index_dirty = true;
    }

    fn add_to_tail(&mut self, sequence: Sequence, blocks: &Range<u32>) {
        if sequence <= self.info.committed {
            return;
        }
        let entry = TailEntry { sequence, first_block: blocks.start, block_count: blocks.end - blocks.start };
        self.info.tail.push(entry);
        if self.info.tail.len() > MOST_TAIL {
            self.info.tail = merged_to(&self.info.tail, MOST_TAIL / 2);
        }
    }
}

/// A tail of at most `most` entries that covers the given one: nearest neighbours become one larger range with the higher
/// sequence of the two.
fn merged_to(tail: &[TailEntry], most: usize) -> Vec<TailEntry> {
    let mut sorted = tail.to_vec();
    sorted.sort_by_key(|t| t.first_block);
    while sorted.len() > most {
        let gap = |at: &usize| {
            sorted[at + 1].first_block.saturating_sub(sorted[*at].first_block + sorted[*at].block_count)
        };
        let at = (0..sorted.len() - 1).min_by_key(gap).expect("two or more");
        let next = sorted.remove(at + 1);
        let end = (sorted[at].first_block + sorted[at].block_count).max(next.first_block + next.block_count);
        sorted[at].block_count = end - sorted[at].first_block;
        sorted[at].sequence = sorted[at].sequence.max(next.sequence);
    }
    sorted
}
