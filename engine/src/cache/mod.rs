//! The read cache of one shard: a file on an SSD that holds blocks of `data` which are read again and again. Sans-io;
//! the store asks it before it reads `data` (store/read.rs) and tells it what changes.
//!
//! The file (docs/formats.md, "Read cache"): table pages, then slots of 64 KiB, one for each cached unit of `data`, whole
//! or in part.
//!
//! Why nothing stale is ever returned:
//! - a slot names the *version* of what it holds: the chunk, and the write-back round of the map page that describes the
//!   unit (store/apply.rs). Any change of the page, of a block's content or of who owns the unit, is written by a later
//!   round, and round numbers are never used twice. So a slot whose version is that of the page as it is now, and unchanged
//!   since its round, holds what the page describes; every other slot is dropped when it is met. This needs nothing to be
//!   written when data changes, and holds over every crash.
//! - a change of *other* units in the same page gives it a new round; slots that were used in this life move along to it.
//!   (Those of an earlier life, not met yet, don't: what happened to them before they were read from the table is unknown.)
//! - changes within this life are told at once: [`Cache::forget_block`], [`Cache::forget_unit`].
//! - a slot is used for something else only after a table that no longer names its old content is on stable storage, and
//!   named only after its data is: what a table says of a slot is true, or the version says that it is old.
//! - on top of all this the store compares every block with its checksum, so that damage of the cache device is a miss.
//!
//! Losing the cache loses nothing: any error turns it off until the next start, with one message, and reads go to `data`.
//! Writes to the cache are few at once and skipped when there are more: they never hold up a request.
//!
//! Memory: 24 bytes a slot, some 20 in the map from units to slots, and 8 to 16 for what was read lately (admission.rs):
//! less than 64 bytes for 64 KiB, a thousandth of the cache's size.

mod admission;
mod places;
mod table;

#[cfg(test)]
mod tests;

use admission::Admission;
use places::{Places, SlotIndex};
use shards::{Buf, Durability, FileHandle, Io, OpId, OpenHow};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use table::PAGE_SLOTS;
use wire::{BLOCK_BYTES, ChunkId};

/// Bytes of a slot: a unit of `data`.
pub const SLOT_BYTES: u64 = crate::store::UNIT_BYTES;
const SLOT_BLOCKS: u32 = crate::store::UNIT_BLOCKS;
const _: () = assert!(SLOT_BLOCKS == 16, "a bit for each block in 16 bits");
/// Below this a cache is not worth its name.
pub const SMALLEST_CACHE_BYTES: u64 = 4 << 20;

const NAMESPACE: u64 = 0x05 << 56;
/// Writes of data under way at once; more are skipped.
const MOST_FILLS: usize = 16;
/// Table pages read at once, and written in one go.
const PAGES_AT_ONCE: u64 = 256;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheConfig {
    /// The file, made by make-cs or configure-cs: were it made at a start, an SSD that is not mounted would have its
    /// cache on the system's disk.
    pub path: String,
    pub bytes: u64,
    /// A file with another id is taken for empty.
    pub id: [u8; 16],
}

/// What a map page said: its chunk, and the round that wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Version {
    pub chunk: ChunkId,
    pub round: u64,
}

/// Blocks in a row within a unit of `data`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    pub unit: u32,
    /// Within the unit.
    pub blocks: Range<u32>,
}

impl Piece {
    fn mask(&self) -> u16 {
        let below = |n: u32| ((1u32 << n) - 1) as u16;
        below(self.blocks.end) & !below(self.blocks.start)
    }
}

/// Where a cached piece stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hit {
    slot: SlotIndex,
    pub file: FileHandle,
    pub offset_bytes: u64,
}

/// Counters since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStat {
    /// Reads of a unit, or a part of one, that the cache answered, and those it did not.
    pub hits: u64,
    pub misses: u64,
    /// Hits whose bytes were not what their checksums say. Not zero: the cache's device is damaged.
    pub damaged: u64,
    pub cached_bytes: u64,
    pub total_bytes: u64,
}

/// Whose completion a disk operation is.
enum Pending {
    LoadTable { first_page: u64 },
    Fill { slot: SlotIndex, mask: u16 },
    SyncData,
    WritePage,
    SyncTable,
}

enum State {
    Loading,
    On,
    Off,
}

/// A write of the table: pages as they were when it began, and the slots it empties.
struct Flush {
    pages: Vec<(u64, Buf)>,
    emptied: Vec<SlotIndex>,
    left: usize,
}

pub struct Cache {
    path: String,
    id: [u8; 16],
    file: FileHandle,
    state: State,
    places: Places,
    admission: Admission,
    pending: HashMap<u64, Pending>,
    next_op: u64,
    fills: usize,
    flush: Option<Flush>,
    hits: u64,
    misses: u64,
    damaged: u64,
    /// Reads of hits that took too long and were answered by the disk; while there are any, all is a miss.
    overdue: usize,
    lost: Option<String>,
}

impl Cache {
    /// Opens the file and starts reading its table; until that has ended everything is a miss.
    pub fn open(io: &mut dyn Io, config: &CacheConfig) -> Result<Cache, String> {
        let how = OpenHow { create: false, direct: true, read_only: false };
        let file = io.open(&config.path, how).map_err(|e| message(&config.path, &e))?;
        let slots = table::slots_in(config.bytes);
        let mut cache = Cache {
            path: config.path.clone(),
            id: config.id,
            file,
            state: State::Loading,
            places: Places::new(slots),
            admission: Admission::new(slots),
            pending: HashMap::new(),
            next_op: 0,
            fills: 0,
            flush: None,
            hits: 0,
            misses: 0,
            damaged: 0,
            overdue: 0,
            lost: None,
        };
        cache.load_from(io, 0);
        Ok(cache)
    }

    pub fn stat(&self) -> CacheStat {
        CacheStat {
            hits: self.hits,
            misses: self.misses,
            damaged: self.damaged,
            cached_bytes: self.places.blocks() * BLOCK_BYTES as u64,
            total_bytes: self.places.len() as u64 * SLOT_BYTES,
        }
    }

    /// Why the cache went off; said once.
    pub fn take_lost(&mut self) -> Option<String> {
        self.lost.take()
    }

    fn is_on(&self) -> bool {
        matches!(self.state, State::On)
    }

    /// Whether it answers at present.
    fn serves(&self) -> bool {
        self.is_on() && self.overdue == 0
    }

    /// Looks for a piece as the map page of `version` describes it (`None`: it has changed since its round). Whoever gets
    /// a hit ends it with [`Cache::read_done`].
    pub fn find(&mut self, piece: &Piece, version: Option<Version>) -> Option<Hit> {
        let version = version.filter(|_| self.serves());
        match version.and_then(|version| self.places.find(piece.unit, version, piece.mask())) {
            None => {
                self.misses += 1;
                None
            }
            Some(slot) => {
                self.hits += 1;
                self.places.hold(slot);
                let offset_bytes = self.offset(slot, piece.blocks.start);
                Some(Hit { slot, file: self.file, offset_bytes })
            }
        }
    }

    /// A read of a hit has ended: well, with bytes that are not what the checksums say, or with an error.
    pub fn read_done(&mut self, hit: Hit, outcome: io::Result<bool>) {
        if !self.is_on() {
            return;
        }
        self.places.let_go(hit.slot);
        match outcome {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(file = self.path, "cache_block_damaged: read from the disk instead");
                self.damaged += 1;
                self.places.drop_slot(hit.slot);
            }
            Err(error) => self.turn_off(&error),
        }
    }

    /// A read of a hit takes too long: it will end with [`Cache::overdue_done`].
    pub fn read_is_overdue(&mut self) {
        if self.overdue == 0 && self.is_on() {
            tracing::warn!(file = self.path, "cache_stalls: read from the disk until its SSD has answered");
        }
        self.overdue += 1;
    }

    /// A read that was overdue has ended, and nobody waits for what it brought.
    pub fn overdue_done(&mut self, hit: Hit, outcome: io::Result<()>) {
        self.overdue -= 1;
        self.read_done(hit, outcome.map(|()| true));
    }

    /// Whether a read goes on a stream that is long enough to by-pass the cache.
    pub fn is_stream(&mut self, chunk: ChunkId, blocks: &Range<u32>) -> bool {
        self.admission.is_stream(chunk, blocks)
    }

    /// Takes a piece that was read from `data` and verified, if it was read before and there is room and time.
    pub fn offer(&mut self, io: &mut dyn Io, piece: &Piece, version: Version, data: Buf) {
        if !self.serves() || !self.admission.admits(piece.unit) || self.fills == MOST_FILLS {
            return;
        }
        let Some(slot) = self.places.place_for(piece.unit, version) else {
            return self.flush(io); // Empties the slots that were given up.
        };
        self.places.hold(slot);
        self.fills += 1;
        let offset = self.offset(slot, piece.blocks.start);
        let op = self.expect(Pending::Fill { slot, mask: piece.mask() });
        io.write(self.file, offset, vec![data], Durability::Buffered, op);
    }

    /// A block of a unit gets other content.
    pub fn forget_block(&mut self, unit: u32, block: u32) {
        self.places.forget(unit, 1 << block);
    }

    /// A unit is no longer what it was.
    pub fn forget_unit(&mut self, unit: u32) {
        self.places.forget(unit, u16::MAX);
    }

    /// The map page that names the unit is written anew, and says of the unit what it said before.
    pub fn page_written(&mut self, unit: u32, before: Version, round: u64) {
        self.places.move_along(unit, before, round);
    }

    /// Writes the changed part of the table, if nothing of it is being written. True when there is nothing to write.
    pub fn save(&mut self, io: &mut dyn Io) -> bool {
        self.flush(io);
        !self.is_on() || self.flush.is_none()
    }

    /// Whether a completion is the cache's.
    pub fn owns(op: OpId) -> bool {
        op.0 >> 56 == NAMESPACE >> 56
    }

    pub fn on_disk(&mut self, io: &mut dyn Io, op: OpId, result: io::Result<Buf>) {
        let Some(pending) = self.pending.remove(&op.0) else { return };
        match result {
            Err(error) => self.turn_off(&error),
            Ok(data) => self.completed(io, pending, &data),
        }
    }

    fn completed(&mut self, io: &mut dyn Io, pending: Pending, data: &Buf) {
        match pending {
            Pending::LoadTable { first_page } => self.loaded(io, first_page, data),
            Pending::Fill { slot, mask } => {
                self.fills -= 1;
                self.places.filled(slot, mask);
            }
            Pending::SyncData => self.write_pages(io),
            Pending::WritePage => self.page_done(io),
            Pending::SyncTable => self.flushed(),
        }
    }

    fn expect(&mut self, pending: Pending) -> OpId {
        self.next_op += 1;
        let id = NAMESPACE | self.next_op;
        self.pending.insert(id, pending);
        OpId(id)
    }

    fn offset(&self, slot: SlotIndex, block: u32) -> u64 {
        let table_bytes = self.pages() * BLOCK_BYTES as u64;
        table_bytes + u64::from(slot.0) * SLOT_BYTES + u64::from(block) * BLOCK_BYTES as u64
    }

    fn pages(&self) -> u64 {
        (self.places.len() as u64).div_ceil(PAGE_SLOTS)
    }

    fn turn_off(&mut self, error: &io::Error) {
        if matches!(self.state, State::Off) {
            return;
        }
        self.state = State::Off;
        self.pending.clear();
        self.flush = None;
        self.places = Places::new(0);
        self.lost = Some(message(&self.path, error));
    }

    // ---- the table ----

    fn load_from(&mut self, io: &mut dyn Io, first_page: u64) {
        let count = PAGES_AT_ONCE.min(self.pages().saturating_sub(first_page));
        if count == 0 {
            self.state = State::On;
            return;
        }
        let op = self.expect(Pending::LoadTable { first_page });
        let block = BLOCK_BYTES as u64;
        io.read(self.file, first_page * block, (count * block) as usize, op);
    }

    fn loaded(&mut self, io: &mut dyn Io, first_page: u64, data: &Buf) {
        for (page, bytes) in (first_page..).zip(data.chunks_exact(BLOCK_BYTES)) {
            let entries = table::decode(bytes, &self.id, page, self.places.len() as u64);
            self.places.load(page, entries.into_iter().flatten());
        }
        self.load_from(io, first_page + PAGES_AT_ONCE);
    }

    /// Writes changed pages: data first, so that the table names nothing that is not there; then the pages; then another
    /// sync, after which the slots they empty may be used again.
    fn flush(&mut self, io: &mut dyn Io) {
        if !self.is_on() || self.flush.is_some() {
            return;
        }
        let numbers = self.places.take_dirty(PAGES_AT_ONCE as usize);
        if numbers.is_empty() {
            return;
        }
        let slots = self.places.len() as u64;
        let emptied = self.places.given_up(&numbers);
        let encode = |&page: &u64| (page, table::encode(&self.id, page, slots, self.places.entries(page)));
        let pages: Vec<(u64, Buf)> = numbers.iter().map(encode).collect();
        self.flush = Some(Flush { left: pages.len(), pages, emptied });
        let op = self.expect(Pending::SyncData);
        io.sync(self.file, op);
    }

    fn write_pages(&mut self, io: &mut dyn Io) {
        let Some(flush) = &mut self.flush else { return };
        for (page, bytes) in std::mem::take(&mut flush.pages) {
            let op = self.expect(Pending::WritePage);
            io.write(self.file, page * BLOCK_BYTES as u64, vec![bytes], Durability::Buffered, op);
        }
    }

    fn page_done(&mut self, io: &mut dyn Io) {
        let Some(flush) = &mut self.flush else { return };
        flush.left -= 1;
        if flush.left == 0 {
            let op = self.expect(Pending::SyncTable);
            io.sync(self.file, op);
        }
    }

    fn flushed(&mut self) {
        if let Some(flush) = self.flush.take() {
            self.places.emptied(&flush.emptied);
        }
    }
}

fn message(path: &str, error: &io::Error) -> String {
    format!(
        "read cache {path}: {error}. The cache is off until the next start; nothing is lost. Check its SSD; \
         'pstorage configure-cs --no-cache' takes it away, '--cache DIR' moves it"
    )
}
