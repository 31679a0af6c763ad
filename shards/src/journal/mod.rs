//! A ring journal over the seam: group-committed batches of records, for the chunk store and for the raft log.
//!
//! The file (docs/formats.md, "Journal"): two superblocks, then a ring, written with zeros when it is made so that a
//! durable write never has to commit file system metadata. A batch is one gather write: header blocks with the
//! records' descriptors, then the payloads straight from the callers' buffers.
//!
//! Invariants:
//! - a record is reported durable only when its batch and all batches before it are on stable storage;
//! - positions grow for ever (position modulo ring length is the place), and every batch names its journal, its
//!   sequence, its position and the checksum of the batch before it: a batch of an earlier lap, of another journal or
//!   in a wrong place is never taken for the next one;
//! - space is used again only after a superblock on stable storage says that replay starts behind it;
//! - replay ends at the first batch that is not whole. If any later batch says that this one had been durable, that is
//!   corruption of acknowledged data and an error, never a quiet end.

mod format;
mod replay;

use format::{BatchHeader, Descriptor, RING_START, Superblock, header_blocks};
pub use format::{Checkpoint, JournalError, MAX_META_BYTES, RecordMeta};
use replay::Replay;

use crate::buf::{BLOCK_BYTES, Buf, BufMut};
use crate::node::{Durability, FileHandle, Io, OpId, OpenHow};
use crate::sabotage::{Sabotage, on};
use std::collections::VecDeque;
use std::io;

/// Top byte of this component's operation ids.
const NAMESPACE: u64 = 0x01 << 56;
const SUPERBLOCK_OP: u64 = NAMESPACE | 1 << 48;
const FILL_OP: u64 = NAMESPACE | 2 << 48;
const REPLAY_OP: u64 = NAMESPACE | 3 << 48;
const BATCH_OP: u64 = NAMESPACE | 4 << 48;

/// Batches under way at once: the next one gathers while the device works on these.
const MOST_IN_FLIGHT: usize = 2;
const MOST_BATCH_BYTES: u64 = 4 << 20;
const MOST_BATCH_RECORDS: usize = 512;
pub const SMALLEST_JOURNAL_BYTES: u64 = 1 << 20;

/// Place of a record's batch in the endless log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Position(pub u64);

/// Who checks a record's payload at replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadCheck {
    /// The journal sums it.
    Journal,
    /// The record's metadata holds its checksums already; the function given to [`Journal::open`] verifies it.
    /// Saves a pass over the payload.
    Caller,
}

/// Verifies a payload against its record's metadata ([`PayloadCheck::Caller`]).
pub type Verify = fn(meta: &[u8], payload: &[u8]) -> bool;

/// No room: records must be trimmed first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

#[derive(Debug)]
pub enum Outcome {
    /// While opening: a record, in the order of appending.
    Replayed { position: Position, meta: RecordMeta, payload: Buf, payload_at: u64 },
    /// Created or replayed: appends are taken.
    Ready,
    /// The payload stands at `payload_at` in the journal's file (see [`Journal::file`]) until the record is trimmed.
    Durable { token: u64, position: Position, payload_at: u64 },
    /// The start of replay and the checkpoint last asked for are on stable storage.
    Trimmed,
    /// The journal can't go on: the file is corrupt or its device failed. Nothing after this is durable.
    Broken(JournalError),
}

struct Record {
    descriptor: Descriptor,
    payload: Buf,
    token: u64,
}

struct Batch {
    sequence: u64,
    /// Of each record: its token, and where its payload stands behind the header.
    records: Vec<(u64, u32)>,
    position: u64,
    payloads_at: u64,
    done: bool,
}

/// Where a batch stands; kept until trimmed.
#[derive(Clone, Copy)]
struct Place {
    position: u64,
    sequence: u64,
    previous_crc: u32,
}

enum Phase {
    Filling { next: u64 },
    FirstSuperblock,
    Replaying(Box<Replay>),
    Running,
    Broken,
}

pub struct Journal {
    path: String,
    file: FileHandle,
    uuid: [u8; 16],
    ring_bytes: u64,
    phase: Phase,
    pending: VecDeque<Record>,
    pending_bytes: u64,
    in_flight: VecDeque<Batch>,
    /// Lists that earlier batches used, for their memory.
    spare_records: Vec<Vec<(u64, u32)>>,
    spare_descriptors: Vec<Descriptor>,
    places: VecDeque<Place>,
    /// Where the next batch goes.
    next_position: u64,
    next_sequence: u64,
    previous_crc: u32,
    /// All batches up to this sequence are durable.
    durable: u64,
    /// Start of replay as asked for, and as on stable storage.
    trim: u64,
    trim_on_disk: u64,
    superblock_generation: u64,
    superblock_in_flight: Option<(u64, Checkpoint)>,
    checkpoint: Checkpoint,
    checkpoint_on_disk: Checkpoint,
    life: u32,
    outcomes: Vec<Outcome>,
}

impl Journal {
    /// Makes a journal file of `bytes` (rounded down to blocks) and fills it; `Ready` follows.
    pub fn create(io: &mut dyn Io, path: &str, bytes: u64) -> Result<Journal, JournalError> {
        Journal::create_with(io, path, bytes, Checkpoint::default())
    }

    /// As [`Journal::create`], with what the owner kept in a journal that this one takes over from.
    pub fn create_with(
        io: &mut dyn Io,
        path: &str,
        bytes: u64,
        checkpoint: Checkpoint,
    ) -> Result<Journal, JournalError> {
        if bytes < SMALLEST_JOURNAL_BYTES {
            return Err(JournalError::TooSmall { path: path.into(), bytes });
        }
        let file = open_file(io, path, true)?;
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&io.random().to_le_bytes());
        uuid[8..].copy_from_slice(&io.random().to_le_bytes());
        let ring_bytes = bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64 - RING_START;
        let mut journal = Journal::new(io, path, file, uuid, ring_bytes, Phase::Filling { next: 0 });
        journal.checkpoint = checkpoint;
        journal.fill(io);
        Ok(journal)
    }

    /// Opens an existing journal; `Replayed` for each record, then `Ready`, or `Broken`.
    pub fn open(io: &mut dyn Io, path: &str, verify: Verify) -> Result<Journal, JournalError> {
        let file = open_file(io, path, false)?;
        io.read(file, 0, RING_START as usize, OpId(REPLAY_OP));
        let replay = Box::new(Replay::new(path, verify));
        Ok(Journal::new(io, path, file, [0; 16], 0, Phase::Replaying(replay)))
    }

    fn new(
        io: &mut dyn Io,
        path: &str,
        file: FileHandle,
        uuid: [u8; 16],
        ring_bytes: u64,
        phase: Phase,
    ) -> Journal {
        Journal {
            path: path.into(),
            file,
            uuid,
            ring_bytes,
            phase,
            pending: VecDeque::new(),
            pending_bytes: 0,
            in_flight: VecDeque::new(),
            spare_records: Vec::new(),
            spare_descriptors: Vec::new(),
            places: VecDeque::new(),
            next_position: 0,
            next_sequence: 1,
            previous_crc: 0,
            durable: 0,
            trim: 0,
            trim_on_disk: 0,
            superblock_generation: 0,
            superblock_in_flight: None,
            checkpoint: Checkpoint::default(),
            checkpoint_on_disk: Checkpoint::default(),
            life: io.random() as u32,
            outcomes: Vec::new(),
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// To read payloads back that are durable and not trimmed.
    pub fn file(&self) -> FileHandle {
        self.file
    }

    /// Bytes that can't be used again yet, those waiting to be written included.
    pub fn used_bytes(&self) -> u64 {
        self.next_position - self.trim_on_disk + self.pending_bytes
    }

    pub fn total_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Whether everything appended is durable.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_empty()
    }

    /// Position behind everything appended so far: what [`Journal::trim`] takes to forget all of it.
    pub fn end(&self) -> Position {
        Position(self.next_position)
    }

    /// Appends a record: `meta` (at most [`MAX_META_BYTES`]) and a payload that starts at a block boundary. `Durable`
    /// with `token` follows. Refused when the ring would have less than an eighth left, so that what empties it
    /// (the caller's records about applied data) always finds room: pass `urgent` for those.
    pub fn append(
        &mut self,
        io: &mut dyn Io,
        meta: &[u8],
        payload: Buf,
        check: PayloadCheck,
        token: u64,
        urgent: bool,
    ) -> Result<(), Full> {
        assert!(meta.len() <= MAX_META_BYTES, "journal metadata of {} bytes", meta.len());
        let descriptor = Descriptor::new(meta, &payload, check);
        let payload = whole_blocks(payload);
        // Each record is counted with a header block of its own: an upper bound.
        let bytes = (payload.len() + BLOCK_BYTES) as u64;
        let reserve = if urgent { self.ring_bytes / 32 } else { self.ring_bytes / 8 };
        // A batch never wraps; skipping the end of the ring may cost as much as the largest batch.
        let most_skipped = MOST_BATCH_BYTES.min(self.ring_bytes / 8).max(bytes);
        if self.used_bytes() + bytes + most_skipped + reserve > self.ring_bytes {
            return Err(Full);
        }
        self.pending_bytes += bytes;
        self.pending.push_back(Record { descriptor, payload, token });
        self.pump(io);
        Ok(())
    }

    /// Forgets all batches that start before `position` (of a record that is still needed, or [`Journal::end`]).
    pub fn trim(&mut self, io: &mut dyn Io, position: Position) {
        self.trim_with(io, position, self.checkpoint);
    }

    /// As [`Journal::trim`], and keeps `checkpoint`: both change in one atomic write. `Trimmed` follows.
    pub fn trim_with(&mut self, io: &mut dyn Io, position: Position, checkpoint: Checkpoint) {
        assert!(position.0 <= self.next_position, "trim beyond the end of the journal");
        self.trim = self.trim.max(position.0);
        self.checkpoint = checkpoint;
        self.write_superblock(io);
    }

    /// The checkpoint on stable storage.
    pub fn durable_checkpoint(&self) -> Checkpoint {
        self.checkpoint_on_disk
    }

    /// Takes a completion; false when it is not the journal's.
    pub fn on_disk(&mut self, io: &mut dyn Io, op: OpId, result: io::Result<Buf>) -> bool {
        if op.0 >> 56 != NAMESPACE >> 56 {
            return false;
        }
        if matches!(self.phase, Phase::Broken) {
            return true;
        }
        match result {
            Err(source) => self.break_down(JournalError::Io { path: self.path.clone(), source }),
            Ok(data) => match op.0 & (0xff << 48) | NAMESPACE {
                SUPERBLOCK_OP => self.superblock_done(io),
                FILL_OP => self.filled(io),
                REPLAY_OP => self.replay(io, data),
                _ => self.batch_done(io, op.0 & 0xffff_ffff_ffff),
            },
        }
        true
    }

    pub fn outcomes(&mut self) -> std::vec::Drain<'_, Outcome> {
        self.outcomes.drain(..)
    }

    fn break_down(&mut self, error: JournalError) {
        self.phase = Phase::Broken;
        self.pending.clear();
        self.in_flight.clear();
        self.outcomes.push(Outcome::Broken(error));
    }

    fn fill(&mut self, io: &mut dyn Io) {
        let Phase::Filling { next } = &mut self.phase else { return };
        let total = RING_START + self.ring_bytes;
        if *next == total {
            *next += 1; // The sync is the last step.
            return io.sync(self.file, OpId(FILL_OP));
        }
        let len = (total - *next).min(1 << 20);
        let (offset, zeros) = (*next, BufMut::zeroed(len as usize).freeze());
        *next += len;
        io.write(self.file, offset, vec![zeros], Durability::Buffered, OpId(FILL_OP));
    }

    fn filled(&mut self, io: &mut dyn Io) {
        match self.phase {
            Phase::Filling { next } if next <= RING_START + self.ring_bytes => self.fill(io),
            _ => {
                self.phase = Phase::FirstSuperblock;
                self.trim = 0;
                self.start_superblock(io);
            }
        }
    }

    /// Writes the start of replay if it has moved and no such write is under way.
    fn write_superblock(&mut self, io: &mut dyn Io) {
        let moved = self.trim > self.trim_on_disk || self.checkpoint != self.checkpoint_on_disk;
        if self.superblock_in_flight.is_none() && moved {
            self.start_superblock(io);
        }
    }

    fn start_superblock(&mut self, io: &mut dyn Io) {
        while self.places.front().is_some_and(|p| p.position < self.trim) {
            self.places.pop_front();
        }
        let next = Place {
            position: self.next_position,
            sequence: self.next_sequence,
            previous_crc: self.previous_crc,
        };
        let start = self.places.front().copied().unwrap_or(next);
        self.superblock_generation += 1;
        let block = Superblock {
            uuid: self.uuid,
            generation: self.superblock_generation,
            ring_bytes: self.ring_bytes,
            position: start.position,
            sequence: start.sequence,
            previous_crc: start.previous_crc,
            checkpoint: self.checkpoint,
        };
        self.superblock_in_flight = Some((start.position, self.checkpoint));
        let offset = self.superblock_generation % 2 * BLOCK_BYTES as u64;
        io.write(self.file, offset, vec![block.encode()], Durability::Durable, OpId(SUPERBLOCK_OP));
    }

    fn superblock_done(&mut self, io: &mut dyn Io) {
        if let Some((position, checkpoint)) = self.superblock_in_flight.take() {
            self.trim_on_disk = position;
            self.trim = self.trim.max(position);
            self.checkpoint_on_disk = checkpoint;
        }
        if matches!(self.phase, Phase::FirstSuperblock) {
            self.phase = Phase::Running;
            return self.outcomes.push(Outcome::Ready);
        }
        let first_needed = self.places.iter().map(|p| p.position).find(|&p| p >= self.trim);
        let behind = first_needed.unwrap_or(self.next_position) > self.trim_on_disk;
        if behind || self.checkpoint != self.checkpoint_on_disk {
            self.write_superblock(io);
        }
        if self.superblock_in_flight.is_none() {
            self.outcomes.push(Outcome::Trimmed);
        }
    }

    fn pump(&mut self, io: &mut dyn Io) {
        while self.is_ready() && self.in_flight.len() < MOST_IN_FLIGHT && !self.pending.is_empty() {
            self.start_batch(io);
        }
    }

    fn start_batch(&mut self, io: &mut dyn Io) {
        let mut batch = Batch {
            sequence: self.next_sequence,
            records: self.spare_records.pop().unwrap_or_default(),
            position: 0,
            payloads_at: 0,
            done: false,
        };
        let mut descriptors = std::mem::take(&mut self.spare_descriptors);
        let mut parts = io.parts();
        parts.push(Buf::empty()); // For the header.
        let mut payload_bytes = 0u64;
        while let Some(next) = self.pending.front() {
            let more = next.payload.len() as u64;
            if !descriptors.is_empty()
                && (payload_bytes + more > MOST_BATCH_BYTES.min(self.ring_bytes / 8)
                    || descriptors.len() == MOST_BATCH_RECORDS)
            {
                break;
            }
            let payload_at = payload_bytes as u32;
            payload_bytes += more;
            self.pending_bytes -= more + BLOCK_BYTES as u64;
            let record = self.pending.pop_front().expect("looked at above");
            batch.records.push((record.token, payload_at));
            descriptors.push(record.descriptor);
            parts.extend(Some(record.payload).filter(|p| !p.is_empty()));
        }
        let header_bytes = (header_blocks(descriptors.iter()) * BLOCK_BYTES) as u64;
        let bytes = header_bytes + payload_bytes;
        let in_ring = self.next_position % self.ring_bytes;
        if in_ring + bytes > self.ring_bytes {
            self.next_position += self.ring_bytes - in_ring;
        }
        assert!(
            self.next_position + bytes - self.trim_on_disk <= self.ring_bytes,
            "journal overwrites itself"
        );
        let header = BatchHeader {
            uuid: self.uuid,
            sequence: self.next_sequence,
            position: self.next_position,
            previous_crc: self.previous_crc,
            durable: self.durable,
            payload_bytes,
            life: self.life,
            descriptors,
        };
        let crc;
        (parts[0], crc) = header.encode();
        self.spare_descriptors = header.descriptors;
        self.spare_descriptors.clear();
        self.places.push_back(Place {
            position: self.next_position,
            sequence: self.next_sequence,
            previous_crc: self.previous_crc,
        });
        let offset = RING_START + self.next_position % self.ring_bytes;
        batch.position = self.next_position;
        batch.payloads_at = offset + header_bytes;
        self.in_flight.push_back(batch);
        io.write(
            self.file,
            offset,
            parts,
            if on(Sabotage::AckBeforeDurable) { Durability::Buffered } else { Durability::Durable },
            OpId(BATCH_OP | self.next_sequence & 0xffff_ffff_ffff),
        );
        self.next_position += bytes;
        self.next_sequence += 1;
        self.previous_crc = crc;
    }

    fn batch_done(&mut self, io: &mut dyn Io, sequence: u64) {
        if let Some(batch) = self.in_flight.iter_mut().find(|b| b.sequence & 0xffff_ffff_ffff == sequence) {
            batch.done = true;
        }
        while self.in_flight.front().is_some_and(|b| b.done) {
            let mut batch = self.in_flight.pop_front().expect("looked at above");
            self.durable = batch.sequence;
            let position = Position(batch.position);
            let durable = |(token, at)| {
                let payload_at = batch.payloads_at + u64::from(at);
                Outcome::Durable { token, position, payload_at }
            };
            self.outcomes.extend(batch.records.drain(..).map(durable));
            self.spare_records.push(batch.records);
        }
        self.pump(io);
    }

    fn replay(&mut self, io: &mut dyn Io, data: Buf) {
        let Phase::Replaying(replay) = &mut self.phase else { return };
        match replay.take(data, &mut self.outcomes) {
            Ok(Some((offset, len))) => io.read(self.file, offset, len, OpId(REPLAY_OP)),
            Ok(None) => {
                let end = replay.end();
                self.uuid = end.superblock.uuid;
                self.ring_bytes = end.superblock.ring_bytes;
                self.superblock_generation = end.superblock.generation;
                self.trim = end.superblock.position;
                self.trim_on_disk = end.superblock.position;
                self.checkpoint = end.superblock.checkpoint;
                self.checkpoint_on_disk = end.superblock.checkpoint;
                self.next_position = end.position;
                self.next_sequence = end.sequence;
                self.previous_crc = end.previous_crc;
                self.durable = end.sequence - 1;
                self.places = end
                    .batches
                    .iter()
                    .map(|&(position, sequence, previous_crc)| Place { position, sequence, previous_crc })
                    .collect();
                self.phase = Phase::Running;
                self.outcomes.push(Outcome::Ready);
            }
            Err(error) => self.break_down(error),
        }
    }
}

fn open_file(io: &mut dyn Io, path: &str, create: bool) -> Result<FileHandle, JournalError> {
    io.open(path, OpenHow { create, direct: true, read_only: false }).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if !create => JournalError::Missing { path: path.into() },
        _ => JournalError::Io { path: path.into(), source },
    })
}

/// Pads a payload to whole blocks. Chunk data comes in whole blocks and is not copied.
fn whole_blocks(payload: Buf) -> Buf {
    if payload.len().is_multiple_of(BLOCK_BYTES) && payload.is_aligned() {
        return payload;
    }
    let mut padded = BufMut::zeroed(payload.len().next_multiple_of(BLOCK_BYTES));
    padded[..payload.len()].copy_from_slice(&payload);
    padded.freeze()
}

#[cfg(test)]
mod tests;
