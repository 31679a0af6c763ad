//! Opening: pages from `meta`, then the journal's records on top, then which units are taken.
//!
//! Extents need a look at the data: their record and their units are written at the same time, so a crash can leave
//! the record without the data. A unit is taken over if each of its blocks matches the record, or is covered by a
//! later record, or the write is known to have been acknowledged (its sequence is committed): then a mismatch is
//! damage, which the checksum will report, and not a torn write. Otherwise the chunk keeps what it had before.

use super::page::{self, Header, Page, SLOT_BYTES};
use super::record::{Kind, Record};
use super::write::{discard, forget_overlay};
use super::{Chunk, OverlayBlock, Store, StoreConfig, StoreError, UNIT_BLOCKS, UNIT_BYTES, Waiting};
use shards::{Buf, Io};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use wire::{BLOCK_BYTES, BlockCrc, ChunkId, Sequence};

const MARK: &[u8] = b"pstorage chunk store 1\n";

/// The file that says the store was made completely.
pub(super) fn mark_path(config: &StoreConfig) -> String {
    format!("{}/store", config.dir)
}

pub(super) fn check_mark(path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    if bytes == MARK {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        file: path.into(),
        offset: 0,
        expected: String::from_utf8_lossy(MARK).trim().into(),
        found: String::from_utf8_lossy(bytes).trim().into(),
    })
}

enum Step {
    Journal,
    Mark,
    Headers { slot: u32, slots: u32 },
    Pages,
    Extents,
}

pub(super) struct Opening {
    step: Step,
    records: Vec<(Record, Buf)>,
    bad_record: Option<String>,
    /// Map pages to read: chunk, page number.
    pages: VecDeque<(ChunkId, u32)>,
    /// Extent units to check: index of the record, unit within it.
    checks: VecDeque<(usize, u32)>,
    /// Units whose data is there.
    good: Vec<(usize, u32)>,
}

impl Opening {
    pub fn new() -> Opening {
        Opening {
            step: Step::Journal,
            records: Vec::new(),
            bad_record: None,
            pages: VecDeque::new(),
            checks: VecDeque::new(),
            good: Vec::new(),
        }
    }
}

impl Store {
    pub(super) fn replayed(&mut self, meta: &[u8], payload: Buf) {
        let Some(opening) = &mut self.opening else { return };
        match Record::decode(meta) {
            Ok(record) => opening.records.push((record, payload)),
            Err(why) => opening.bad_record = Some(why),
        }
    }

    pub(super) fn journal_ready(&mut self, io: &mut dyn Io) {
        if let Some(found) = self.opening.as_mut().and_then(|o| o.bad_record.take()) {
            let file = self.config.journal_path.clone();
            let expected = "a chunk store record".into();
            return self.break_down(StoreError::Corrupt { file, offset: 0, expected, found });
        }
        self.last_durable = shards::journal::Position(self.journal.end().0.saturating_sub(1));
        // Rewriting the mark on every start is harmless and keeps one path.
        self.set_step(Step::Mark);
        let wait = self.expect(Waiting::Open);
        io.put_blob(&mark_path(&self.config), MARK.to_vec(), wait);
    }

    fn set_step(&mut self, step: Step) {
        if let Some(opening) = &mut self.opening {
            opening.step = step;
        }
    }

    pub(super) fn open_step(&mut self, io: &mut dyn Io, result: io::Result<Buf>) {
        let data = match result {
            Ok(data) => data,
            Err(source) => {
                return self.break_down(StoreError::Io { file: self.config.dir.clone(), source });
            }
        };
        let Some(opening) = &mut self.opening else { return };
        match opening.step {
            Step::Journal => {}
            Step::Mark => match io.file_len(self.meta) {
                Ok(len) => self.read_header(io, 0, len.div_ceil(SLOT_BYTES) as u32),
                Err(source) => self.break_down(StoreError::Io { file: "meta".into(), source }),
            },
            Step::Headers { slot, slots } => {
                self.take_header(slot, &data);
                self.read_header(io, slot + 1, slots);
            }
            Step::Pages => {
                let (id, number) = opening.pages.pop_front().expect("its read was started");
                match newest(&data, |b| Page::decode(b, id, number), |p| p.version) {
                    Some(page) => {
                        self.chunks.get_mut(&id).expect("its header was read").pages.insert(number, page);
                        self.read_page(io);
                    }
                    None if self.chunks[&id].sure_pages >> number & 1 == 0 => self.read_page(io),
                    None => self.corrupt_page(id, number),
                }
            }
            Step::Extents => self.take_extent_unit(io, &data),
        }
    }

    fn read_header(&mut self, io: &mut dyn Io, slot: u32, slots: u32) {
        if slot == slots {
            self.next_slot = slots;
            self.set_step(Step::Pages);
            return self.read_page(io);
        }
        self.set_step(Step::Headers { slot, slots });
        let wait = self.expect(Waiting::Open);
        io.read(self.meta, page::place(slot, 0, 0), 2 * BLOCK_BYTES, wait);
    }

    fn take_header(&mut self, slot: u32, data: &Buf) {
        let Some(header) = newest(data, Header::decode, |h| h.version) else {
            return self.free_slots.push(slot);
        };
        let opening = self.opening.as_mut().expect("opening");
        opening
            .pages
            .extend((0..super::MOST_PAGES).filter(|n| header.pages >> n & 1 == 1).map(|n| (header.chunk, n)));
        let mut chunk = Chunk::new(slot);
        chunk.info = header.info;
        chunk.sure_pages = header.sure_pages;
        chunk.header_version = header.version;
        chunk.header_dirty = false;
        self.chunks.insert(header.chunk, chunk);
    }

    fn read_page(&mut self, io: &mut dyn Io) {
        let next = self.opening.as_ref().and_then(|o| o.pages.front().copied());
        let Some((id, number)) = next else { return self.plan_extents(io) };
        let slot = self.chunks[&id].slot;
        let wait = self.expect(Waiting::Open);
        io.read(self.meta, page::place(slot, 1 + number, 0), 2 * BLOCK_BYTES, wait);
    }

    fn corrupt_page(&mut self, id: ChunkId, number: u32) {
        let slot = self.chunks[&id].slot;
        self.break_down(StoreError::Corrupt {
            file: format!("{}/meta", self.config.dir),
            offset: page::place(slot, 1 + number, 0),
            expected: format!("map page {number} of chunk {id}"),
            found: "no whole page in either place".into(),
        });
    }

    /// Lists the extent units whose data must be looked at.
    fn plan_extents(&mut self, io: &mut dyn Io) {
        let opening = self.opening.as_mut().expect("opening");
        opening.step = Step::Extents;
        for (index, (record, _)) in opening.records.iter().enumerate() {
            if let Kind::Extent { places, .. } = &record.kind {
                opening.checks.extend((0..places.len() as u32).map(|unit| (index, unit)));
            }
        }
        self.check_extent(io);
    }

    fn check_extent(&mut self, io: &mut dyn Io) {
        let opening = self.opening.as_ref().expect("opening");
        let Some(&(index, unit)) = opening.checks.front() else { return self.redo(io) };
        let Kind::Extent { places, .. } = &opening.records[index].0.kind else {
            unreachable!("only extents are listed")
        };
        let offset = u64::from(places[unit as usize]) * UNIT_BYTES;
        let wait = self.expect(Waiting::Open);
        io.read(self.data, offset, UNIT_BYTES as usize, wait);
    }

    fn take_extent_unit(&mut self, io: &mut dyn Io, data: &Buf) {
        let opening = self.opening.as_mut().expect("opening");
        let (index, unit) = opening.checks.pop_front().expect("its read was started");
        let (record, _) = &opening.records[index];
        let Kind::Extent { crcs, .. } = &record.kind else { unreachable!("only extents are listed") };
        let first = record.blocks.start + unit * UNIT_BLOCKS;
        let later = &opening.records[index + 1..];
        let covered = |block: u32| {
            later.iter().any(|(r, _)| {
                r.chunk == record.chunk && (r.blocks.contains(&block) || matches!(r.kind, Kind::Delete))
            })
        };
        let committed = later
            .iter()
            .filter(|(r, _)| r.chunk == record.chunk)
            .map(|(r, _)| r.stamp.committed)
            .chain(self.chunks.get(&record.chunk).map(|c| c.info.committed))
            .max()
            .unwrap_or(Sequence(0));
        let whole = (0..UNIT_BLOCKS).all(|i| {
            let bytes = &data[i as usize * BLOCK_BYTES..(i as usize + 1) * BLOCK_BYTES];
            crcs[(unit * UNIT_BLOCKS + i) as usize].matches(bytes) || covered(first + i)
        });
        if whole || record.stamp.sequence <= committed {
            opening.good.push((index, unit));
        }
        self.check_extent(io);
    }

    /// Runs the records over the pages.
    fn redo(&mut self, io: &mut dyn Io) {
        let opening = self.opening.take().expect("opening");
        let mut good: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (index, unit) in opening.good {
            good.entry(index).or_default().push(unit);
        }
        for (index, (record, payload)) in opening.records.into_iter().enumerate() {
            let units = good.remove(&index).unwrap_or_default();
            self.redo_record(record, payload, &units);
        }
        if let Err(error) = self.mark_units() {
            return self.break_down(error);
        }
        self.overlay_blocks = self.chunks.values().map(|c| c.overlay.len()).sum();
        // What was decided here about torn extents must not be decided again after their units got new owners:
        // apply everything and empty the journal before any request comes. `Ready` follows when the journal is empty.
        self.finishing_open = true;
        self.start_apply(io);
    }

    fn redo_record(&mut self, record: Record, payload: Buf, good_units: &[u32]) {
        if record.kind == Kind::Delete {
            if let Some(chunk) = self.chunks.remove(&record.chunk) {
                self.dead_slots.push(chunk.slot);
            }
            return;
        }
        if !self.chunks.contains_key(&record.chunk) {
            let slot = self.take_slot();
            self.chunks.insert(record.chunk, Chunk::new(slot));
        }
        let chunk = self.chunks.get_mut(&record.chunk).expect("just made");
        chunk.stamp(&record.stamp);
        let mut freed = Vec::new();
        match record.kind {
            Kind::Write { crcs } => {
                for (i, (block, crc)) in record.blocks.clone().zip(crcs).enumerate() {
                    self.generation += 1;
                    let data = payload.slice(i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES);
                    chunk.overlay.insert(block, OverlayBlock { data, crc, generation: self.generation });
                }
            }
            Kind::Extent { crcs, places } => {
                for &unit in good_units {
                    let first = record.blocks.start + unit * UNIT_BLOCKS;
                    forget_overlay(chunk, &(first..first + UNIT_BLOCKS));
                    let page = chunk.page(first / UNIT_BLOCKS);
                    page.set_unit(first / UNIT_BLOCKS % super::PAGE_UNITS, Some(places[unit as usize]));
                    for i in 0..UNIT_BLOCKS {
                        let crc: BlockCrc = crcs[(unit * UNIT_BLOCKS + i) as usize];
                        page.set_crc((first + i) % super::PAGE_BLOCKS, crc);
                    }
                }
            }
            Kind::Discard => {
                discard(chunk, &record.blocks, &mut freed);
            }
            Kind::Epoch | Kind::Delete => {}
        }
        if !record.blocks.is_empty() {
            chunk.add_to_tail(record.stamp.sequence, &record.blocks);
        }
    }

    /// Which units are taken follows from the pages.
    fn mark_units(&mut self) -> Result<(), StoreError> {
        for (id, chunk) in &self.chunks {
            for unit in chunk.pages.values().flat_map(|p| p.units()) {
                if !self.units.mark(unit) {
                    return Err(StoreError::Corrupt {
                        file: format!("{}/meta", self.config.dir),
                        offset: page::place(chunk.slot, 1, 0),
                        expected: format!(
                            "units of chunk {id} that belong to it alone and lie within the capacity"
                        ),
                        found: format!("unit {unit} of {}", self.units.total()),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The newer of the two places of a page that is whole.
fn newest<T>(two: &Buf, decode: impl Fn(&[u8]) -> Option<T>, version: impl Fn(&T) -> u64) -> Option<T> {
    let (first, second) = (decode(&two[..BLOCK_BYTES]), decode(&two[BLOCK_BYTES..2 * BLOCK_BYTES]));
    match (first, second) {
        (Some(a), Some(b)) => Some(if version(&a) > version(&b) { a } else { b }),
        (a, b) => a.or(b),
    }
}
