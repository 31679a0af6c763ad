//! Opening: the state of the last valid round from `index` and `units`, then the journal's records on top.
//!
//! Only the map pages that records touch are read. Extents need a look at the data: their record and their units are
//! written at the same time, so a crash can leave the record without the data. A unit is taken over if each of its blocks
//! matches the record, or is covered by a later small write or discard (which may have reached the unit), or the write is
//! known to have been acknowledged (its sequence is committed): then a mismatch is damage, which the checksum will report,
//! and not a torn write. Otherwise the chunk keeps what it had before.
//!
//! Which units are referenced after the redo, and by how many pages: those of the valid round, without what the touched pages
//! named before, with what they name now. (A record may name a unit that has long passed to another chunk; whatever moved it there is a later
//! record, so no touched page names it in the end. Hence a page's units are counted only when all records are redone.)

use super::load::Waiter;
use super::overlay::{Held, OverlayBlock, Waits};
use super::page::{self, INDEX_ENTRIES, IndexEntry, PAIR_BYTES, PageKind, Round, Written};
use super::record::{Kind, Record};
use super::write::discard;
use super::{
    Chunk, PAGE_BLOCKS, PAGE_UNITS, Store, StoreConfig, StoreError, UNIT_BLOCKS, UNIT_BYTES, Waiting, bits,
    pages_of,
};
use shards::journal::{Checkpoint, Position};
use shards::{Buf, Io};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use wire::{BLOCK_BYTES, BlockCrc, ChunkId, Sequence};

const MARK_NAME: &str = "pstorage chunk store ";
const MARK: &[u8] = b"pstorage chunk store 4\n";
/// Pairs of pages read at once from `index`, `units` and `shares`.
const PAIRS_AT_ONCE: u64 = 128;
/// Map pages, or extent units, read at once.
const READS_AT_ONCE: usize = 32;

/// The file that says the store was made completely.
pub(super) fn mark_path(config: &StoreConfig) -> String {
    format!("{}/store", config.dir)
}

pub(super) fn check_mark(path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    if bytes == MARK {
        return Ok(());
    }
    let (expected, found) = (String::from_utf8_lossy(MARK), String::from_utf8_lossy(bytes));
    let (file, expected, found) = (path.into(), expected.trim().to_string(), found.trim().to_string());
    Err(if found.starts_with(MARK_NAME) {
        StoreError::Format { file, expected, found }
    } else {
        StoreError::Corrupt { file, offset: 0, expected, found }
    })
}

/// Whose completion it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reading {
    Mark,
    /// Pages of `index`, `units` or `shares` from this one on.
    Pages(PageKind, u64),
    /// Unit of an extent: index of the record, unit within it.
    Extent(usize, u32),
}

#[derive(Default)]
pub(super) struct Opening {
    records: Vec<(Record, Held)>,
    /// Bytes of payloads among them that are in memory.
    held_bytes: u64,
    bad_record: Option<String>,
    index_pages: u64,
    units_pages: u64,
    /// Pages that `shares` is long enough for.
    shares_pages: u64,
    /// Over the rounds of those pages: as the checkpoint has it, and as found.
    expected_sum: u64,
    sum: u64,
    /// Places of pages that hold something else: damage, or what a crash left of a round. They are written anew before any
    /// round is valid that is newer than that one.
    odd: Vec<(PageKind, u64)>,
    /// Map pages to read.
    pages: Vec<(ChunkId, u32)>,
    /// Extent units to check.
    checks: Vec<(usize, u32)>,
    reads_left: usize,
    /// Units whose data is there.
    good: BTreeSet<(usize, u32)>,
}

impl Opening {
    pub fn new() -> Opening {
        Opening::default()
    }
}

impl Store {
    pub(super) fn replayed(&mut self, meta: &[u8], payload: Buf, payload_at: u64) {
        let Some(opening) = &mut self.opening else { return };
        let fits = opening.held_bytes + payload.len() as u64 <= self.config.overlay_bytes;
        opening.held_bytes += if fits { payload.len() as u64 } else { 0 };
        let held = if fits { Held::Memory(payload) } else { Held::Journal(payload_at) };
        match Record::decode(meta) {
            Ok(record) => opening.records.push((record, held)),
            Err(why) => opening.bad_record = Some(why),
        }
    }

    fn opening(&mut self) -> &mut Opening {
        self.opening.as_mut().expect("opening")
    }

    pub(super) fn journal_ready(&mut self, io: &mut dyn Io) {
        if let Some(found) = self.opening().bad_record.take() {
            let file = self.config.journal_path.clone();
            let expected = "a chunk store record".into();
            return self.break_down(StoreError::Corrupt { file, offset: 0, expected, found });
        }
        self.last_durable = Position(self.journal.end().0.saturating_sub(1));
        let [committed, begun, pages, sum, deleted] = self.journal.durable_checkpoint().0;
        self.highest_deleted = ChunkId(deleted);
        (self.committed_round, self.last_round) = (Round(committed), Round(begun));
        let (index_pages, units_pages) = (pages & u64::from(u32::MAX), pages >> 32);
        self.index_written = vec![Written::NEVER; index_pages as usize];
        let shares_pages = match io.file_len(self.shares_file) {
            Ok(bytes) => bytes.div_ceil(PAIR_BYTES as u64),
            Err(source) => {
                let file = format!("{}/{}", self.config.dir, PageKind::Shares.file());
                return self.break_down(StoreError::Io { file, source });
            }
        };
        let opening = self.opening();
        (opening.index_pages, opening.units_pages, opening.expected_sum) = (index_pages, units_pages, sum);
        opening.shares_pages = shares_pages;
        // Before this life writes any page, its rounds must be told from those of a life that crashed.
        self.journal.trim_with(io, Position(0), Checkpoint([committed, begun + 1, pages, sum, deleted]));
    }

    pub(super) fn announced(&mut self, io: &mut dyn Io) {
        // Rewriting the mark on every start is harmless and keeps one path.
        let wait = self.expect(Waiting::Open(Reading::Mark));
        io.put_blob(&mark_path(&self.config), MARK.to_vec(), wait);
    }

    pub(super) fn open_step(&mut self, io: &mut dyn Io, reading: Reading, result: io::Result<Buf>) {
        let data = match result {
            Ok(data) => data,
            Err(source) => {
                return self.break_down(StoreError::Io { file: self.config.dir.clone(), source });
            }
        };
        let done = match reading {
            Reading::Mark => {
                self.read_pages(io, PageKind::Index, 0);
                Ok(())
            }
            Reading::Pages(kind, first) => self.take_pages(io, kind, first, &data),
            Reading::Extent(record, unit) => {
                self.take_extent_unit(record, unit, &data);
                self.opening().reads_left -= 1;
                self.check_extents(io);
                Ok(())
            }
        };
        if let Err(error) = done {
            self.break_down(error);
        }
    }

    // ---- the valid round ----

    /// Reads the next pages of `index`, then those of `units` and `shares`, then goes on to the journal's records.
    fn read_pages(&mut self, io: &mut dyn Io, kind: PageKind, first: u64) {
        let (file, pages) = match kind {
            PageKind::Index => (self.index, self.opening().index_pages),
            PageKind::Shares => (self.shares_file, self.opening().shares_pages),
            _ => (self.units_file, self.opening().units_pages),
        };
        if first < pages {
            let count = PAIRS_AT_ONCE.min(pages - first);
            let wait = self.expect(Waiting::Open(Reading::Pages(kind, first)));
            return io.read(file, page::offset(first, 0), count as usize * PAIR_BYTES, wait);
        }
        if kind == PageKind::Index {
            let free = (0..self.slots.len() as u32).filter(|&s| self.slots[s as usize].is_none());
            self.free_slots = free.rev().collect();
            return self.read_pages(io, PageKind::Units, 0);
        }
        if kind == PageKind::Units {
            return self.read_pages(io, PageKind::Shares, 0);
        }
        match self.check_sum() {
            Ok(()) => {
                self.write_odd_pages_anew();
                self.plan_pages(io);
            }
            Err(error) => self.break_down(error),
        }
    }

    fn take_pages(
        &mut self,
        io: &mut dyn Io,
        kind: PageKind,
        first: u64,
        data: &Buf,
    ) -> Result<(), StoreError> {
        for (number, pair) in (first..).zip(data.chunks_exact(PAIR_BYTES)) {
            let written = match self.find_page(kind, number, pair) {
                Ok(written) => written,
                // Few of these pages were ever committed: the sum says if one is missing.
                Err(_) if kind == PageKind::Shares => {
                    if pair.iter().any(|&byte| byte != 0) {
                        self.opening().odd.push((kind, number));
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.opening().sum ^= page::mark(kind, number, written.round);
            let body = page::body(pair, written.place);
            match kind {
                PageKind::Index => self.take_index(number, written, body)?,
                PageKind::Shares => self.shares.load(number as u32, written, body),
                _ => self.take_units(number, written, body)?,
            }
        }
        self.read_pages(io, kind, first + PAIRS_AT_ONCE);
        Ok(())
    }

    /// What a round left behind in a crash would pass for the newest version when later rounds are valid: the first round, which
    /// takes the place of that one, writes these pages too.
    fn write_odd_pages_anew(&mut self) {
        for (kind, number) in std::mem::take(&mut self.opening().odd) {
            match kind {
                PageKind::Index => {
                    self.dirty_index.insert(number as u32);
                }
                PageKind::Shares => self.shares.write_anew(number as u32),
                _ => self.units.write_anew(number as u32),
            }
        }
    }

    /// Every page was found in its newest committed version, not in an older one beside a damaged one.
    fn check_sum(&self) -> Result<(), StoreError> {
        let opening = self.opening.as_ref().expect("opening");
        if opening.sum == opening.expected_sum {
            return Ok(());
        }
        let (kind, number) = opening.odd.first().copied().unwrap_or((PageKind::Index, 0));
        Err(StoreError::Corrupt {
            file: format!("{}/{}", self.config.dir, kind.file()),
            offset: page::offset(number, 0),
            expected: format!("all pages as round {} left them", self.committed_round.0),
            found: "an older version of one, beside a damaged one".into(),
        })
    }

    fn take_index(&mut self, number: u64, written: Written, body: &[u8]) -> Result<(), StoreError> {
        self.index_written[number as usize] = written;
        self.index_sum ^= page::mark(PageKind::Index, number, written.round);
        self.slots.resize(self.slots.len() + INDEX_ENTRIES as usize, None);
        for (at, entry) in page::decode_index(body) {
            self.take_entry(number, number as u32 * INDEX_ENTRIES + at, entry)?;
        }
        Ok(())
    }

    fn take_entry(&mut self, number: u64, slot: u32, entry: IndexEntry) -> Result<(), StoreError> {
        let mut chunk = Chunk::new(slot);
        (chunk.born, chunk.info) = (true, entry.info);
        (chunk.exists, chunk.places) = (entry.pages, entry.places);
        self.slots[slot as usize] = Some(entry.chunk);
        match self.chunks.insert(entry.chunk, chunk) {
            None => Ok(()),
            Some(other) => Err(StoreError::Corrupt {
                file: format!("{}/{}", self.config.dir, PageKind::Index.file()),
                offset: page::offset(number, 0),
                expected: format!("chunk {} in one slot", entry.chunk),
                found: format!("it in slots {} and {slot}", other.slot),
            }),
        }
    }

    fn take_units(&mut self, number: u64, written: Written, body: &[u8]) -> Result<(), StoreError> {
        let words = page::decode_units(body);
        let loaded = if number < u64::from(self.units.pages()) {
            self.units.load(number as u32, written, words)
        } else if words.fold(0, |any, word| any | word) == 0 {
            Ok(())
        } else {
            Err(format!("units beyond the {} of the capacity", self.units.total()))
        };
        loaded.map_err(|found| StoreError::Corrupt {
            file: format!("{}/{}", self.config.dir, PageKind::Units.file()),
            offset: page::offset(number, written.place),
            expected: "only units within the capacity of this chunk server (was it made smaller?)".into(),
            found,
        })
    }

    fn find_page(&mut self, kind: PageKind, number: u64, pair: &[u8]) -> Result<Written, StoreError> {
        let committed = self.committed_round;
        let found = page::find(pair, kind, number, committed).map_err(|bad| StoreError::Corrupt {
            file: format!("{}/{}", self.config.dir, kind.file()),
            offset: page::offset(number, 0),
            expected: format!("page {number} in one of two places"),
            found: bad.text().into(),
        })?;
        let other = page::check(page::body(pair, 1 - found.place), kind, number, ChunkId(0), committed);
        if other == Err(page::Bad::Damaged) {
            self.opening().odd.push((kind, number));
        }
        Ok(found)
    }

    // ---- the journal ----

    /// Lists the map pages that records touch, and starts reading them.
    fn plan_pages(&mut self, io: &mut dyn Io) {
        let opening = self.opening.as_ref().expect("opening");
        let mut touched: BTreeMap<ChunkId, u128> = BTreeMap::new();
        for (record, _) in &opening.records {
            let pages = if record.kind == Kind::Delete { u128::MAX } else { pages_of(&record.blocks) };
            *touched.entry(record.chunk).or_default() |= pages;
        }
        let exist = |(id, pages): (ChunkId, u128)| {
            let exists = self.chunks.get(&id).map_or(0, |c| c.exists);
            bits(exists & pages).map(move |n| (id, n))
        };
        let pages = touched.into_iter().flat_map(exist).collect();
        self.opening().pages = pages;
        self.read_more_pages(io);
    }

    fn read_more_pages(&mut self, io: &mut dyn Io) {
        while self.opening().reads_left < READS_AT_ONCE {
            let Some((id, number)) = self.opening().pages.pop() else { break };
            self.opening().reads_left += 1;
            self.read_page(io, id, number, Waiter::Opening);
        }
        if self.opening().reads_left == 0 {
            self.plan_extents(io);
        }
    }

    pub(super) fn opening_page_done(&mut self, io: &mut dyn Io, failed: Option<StoreError>) {
        if let Some(error) = failed {
            return self.break_down(error);
        }
        self.opening().reads_left -= 1;
        self.read_more_pages(io);
    }

    /// Lists the extent units whose data must be looked at.
    fn plan_extents(&mut self, io: &mut dyn Io) {
        let opening = self.opening();
        for (index, (record, _)) in opening.records.iter().enumerate() {
            if let Kind::Extent { places, .. } = &record.kind {
                opening.checks.extend((0..places.len() as u32).map(|unit| (index, unit)));
            }
        }
        self.check_extents(io);
    }

    fn check_extents(&mut self, io: &mut dyn Io) {
        while self.opening().reads_left < READS_AT_ONCE {
            let Some((index, unit)) = self.opening().checks.pop() else { break };
            let Kind::Extent { places, .. } = &self.opening().records[index].0.kind else {
                unreachable!("only extents are listed")
            };
            let offset = u64::from(places[unit as usize]) * UNIT_BYTES;
            self.opening().reads_left += 1;
            let wait = self.expect(Waiting::Open(Reading::Extent(index, unit)));
            io.read(self.data, offset, UNIT_BYTES as usize, wait);
        }
        if self.opening().reads_left == 0 {
            self.redo(io);
        }
    }

    fn take_extent_unit(&mut self, index: usize, unit: u32, data: &Buf) {
        let opening = self.opening.as_ref().expect("opening");
        let (record, _) = &opening.records[index];
        let Kind::Extent { crcs, .. } = &record.kind else { unreachable!("only extents are listed") };
        let first = record.blocks.start + unit * UNIT_BLOCKS;
        let later = &opening.records[index + 1..];
        // A later extent lies in units of its own: it has changed nothing here, and may itself be torn.
        let covered = |block: u32| {
            later.iter().any(|(r, _)| {
                let overwrites = !matches!(r.kind, Kind::Extent { .. }) && r.blocks.contains(&block);
                r.chunk == record.chunk && (overwrites || r.kind == Kind::Delete)
            })
        };
        let whole = (0..UNIT_BLOCKS).all(|i| {
            let bytes = &data[i as usize * BLOCK_BYTES..(i as usize + 1) * BLOCK_BYTES];
            crcs[(unit * UNIT_BLOCKS + i) as usize].matches(bytes) || covered(first + i)
        });
        let acknowledged = || {
            let said = later.iter().filter(|(r, _)| r.chunk == record.chunk).map(|(r, _)| r.stamp.committed);
            let known = self.chunks.get(&record.chunk).map(|c| c.info.committed);
            record.stamp.sequence <= said.chain(known).max().unwrap_or(Sequence(0))
        };
        if whole || acknowledged() {
            self.opening().good.insert((index, unit));
        }
    }

    /// Runs the records over the pages.
    fn redo(&mut self, io: &mut dyn Io) {
        let before = self.named_units();
        let opening = self.opening.take().expect("opening");
        for (index, (record, payload)) in opening.records.into_iter().enumerate() {
            let good =
                opening.good.range((index, 0)..=(index, u32::MAX)).map(|(_, unit)| *unit).collect::<Vec<_>>();
            self.redo_record(record, payload, &good);
        }
        let settled = before.and_then(|before| self.settle_units(&before));
        if let Err(error) = settled {
            return self.break_down(error);
        }
        self.overlay = Waits::sum(self.chunks.values().flat_map(|c| c.overlay.values()));
        // What was decided here about torn extents must not be decided again after their units got new owners:
        // apply everything and empty the journal before any request comes. `Ready` follows when the journal is empty.
        self.finishing_open = true;
        self.start_apply(io);
    }

    fn redo_record(&mut self, record: Record, payload: Held, good_units: &[u32]) {
        if record.kind == Kind::Delete {
            self.highest_deleted = self.highest_deleted.max(record.chunk);
            self.dirty_chunks.remove(&record.chunk);
            if let Some(chunk) = self.chunks.remove(&record.chunk) {
                self.dead_slots.push(chunk.slot);
            }
            return;
        }
        if !self.chunks.contains_key(&record.chunk) {
            self.add_chunk(record.chunk);
        }
        self.dirty_chunks.insert(record.chunk);
        let chunk = self.chunks.get_mut(&record.chunk).expect("just made");
        chunk.stamp(&record.stamp);
        match record.kind {
            Kind::Write { crcs } => {
                for (i, (block, crc)) in record.blocks.clone().zip(crcs).enumerate() {
                    self.generation += 1;
                    let held = payload.block(i);
                    chunk.put_overlay(block, OverlayBlock { held, crc, generation: self.generation });
                }
            }
            Kind::Extent { crcs, places } => {
                for &unit in good_units {
                    let first = record.blocks.start + unit * UNIT_BLOCKS;
                    chunk.forget_overlay(&(first..first + UNIT_BLOCKS));
                    let page = chunk.page(first / UNIT_BLOCKS);
                    page.set_unit(first / UNIT_BLOCKS % PAGE_UNITS, Some(places[unit as usize]));
                    for i in 0..UNIT_BLOCKS {
                        let crc: BlockCrc = crcs[(unit * UNIT_BLOCKS + i) as usize];
                        page.set_crc((first + i) % PAGE_BLOCKS, crc);
                    }
                }
            }
            Kind::Discard => {
                discard(chunk, &record.blocks, &mut Vec::new());
            }
            Kind::Epoch | Kind::Delete => {}
        }
        if !record.blocks.is_empty() {
            chunk.add_to_tail(record.stamp.sequence, &record.blocks);
        }
    }

    /// Units named by the map pages in memory, and by how many: no more than share them.
    fn named_units(&self) -> Result<BTreeMap<u32, u32>, StoreError> {
        let mut named = BTreeMap::new();
        for (id, chunk) in &self.chunks {
            for unit in chunk.pages.values().flat_map(|p| p.units()) {
                let names = named.entry(unit).or_insert(0);
                *names += 1;
                if *names > 1 + u32::from(self.shares.of(unit)) {
                    return Err(self.two_owners(*id, chunk, unit));
                }
            }
        }
        Ok(named)
    }

    fn settle_units(&mut self, before: &BTreeMap<u32, u32>) -> Result<(), StoreError> {
        let after = self.named_units()?;
        for (&unit, names) in before {
            for _ in after.get(&unit).copied().unwrap_or(0)..*names {
                if !self.shares.remove(unit) {
                    self.units.unrefer(unit);
                    self.units.release(unit);
                }
            }
        }
        // No record names a unit that is shared, so none of these is.
        for &unit in after.keys().filter(|unit| !before.contains_key(unit)) {
            // What a lost page named is taken already. A record may have put it in its place again, or one freed it and
            // another gave it to another page.
            if !self.units.claim(unit) && !self.may_be_of_lost_page(unit) {
                let names = |c: &Chunk| c.pages.values().any(|p| p.units().any(|u| u == unit));
                let (id, chunk) = self.chunks.iter().find(|(_, c)| names(c)).expect("it is named");
                return Err(self.two_owners(*id, chunk, unit));
            }
        }
        Ok(())
    }

    fn may_be_of_lost_page(&self, unit: u32) -> bool {
        !self.lost_at_start.is_empty() && unit < self.units.total() && self.units.is_referenced(unit)
    }

    fn two_owners(&self, id: ChunkId, chunk: &Chunk, unit: u32) -> StoreError {
        StoreError::Corrupt {
            file: format!("{}/{}", self.config.dir, PageKind::Map.file()),
            offset: page::offset(page::map_number(chunk.slot, 0), 0),
            expected: format!(
                "units of chunk {id} that belong to it, and to no more chunks than share them, and lie within the capacity"
            ),
            found: format!("unit {unit} of {}", self.units.total()),
        }
    }
}
