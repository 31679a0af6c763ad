//! Reading a journal back: from the superblock's start to the first batch that is not whole.

use super::format::{BadSuperblock, BatchHeader, JournalError, RING_START, Superblock};
use super::{Outcome, PayloadCheck, Position, Verify};
use crate::buf::{BLOCK_BYTES, Buf};
use crate::sabotage::{Sabotage, on};

const WINDOW_BYTES: usize = 1 << 20;
/// How far behind the end to look for batches that prove the end wrong. Batches under way together lie close.
const SCAN_BYTES: u64 = 64 << 20;

enum Stage {
    Superblocks,
    /// Reading what should be the next batch; `lap_start` when it was looked for at the ring's start.
    Batch {
        at: u64,
        lap_start: bool,
    },
    /// The end is found; looking behind it. `at` and `left` are ring places.
    Scan {
        at: u64,
        left: u64,
    },
    Done,
}

pub(super) struct Replay {
    path: String,
    verify: Verify,
    stage: Stage,
    superblock: Option<Superblock>,
    position: u64,
    sequence: u64,
    previous_crc: u32,
    batches: Vec<(u64, u64, u32)>,
    /// Why the batch at the end was not taken, for the error message.
    end_found: String,
}

/// Where appending goes on.
pub(super) struct End<'a> {
    pub superblock: &'a Superblock,
    pub position: u64,
    pub sequence: u64,
    pub previous_crc: u32,
    /// Position, sequence, checksum of the one before, of each batch replayed.
    pub batches: &'a [(u64, u64, u32)],
}

type Read = Option<(u64, usize)>;

impl Replay {
    pub fn new(path: &str, verify: Verify) -> Replay {
        Replay {
            path: path.into(),
            verify,
            stage: Stage::Superblocks,
            superblock: None,
            position: 0,
            sequence: 0,
            previous_crc: 0,
            batches: Vec::new(),
            end_found: String::new(),
        }
    }

    pub fn end(&self) -> End<'_> {
        End {
            superblock: self.superblock.as_ref().expect("replayed"),
            position: self.position,
            sequence: self.sequence,
            previous_crc: self.previous_crc,
            batches: &self.batches,
        }
    }

    /// Takes what was read; returns what to read next, `None` when finished.
    pub fn take(&mut self, data: Buf, out: &mut Vec<Outcome>) -> Result<Read, JournalError> {
        match self.stage {
            Stage::Superblocks => self.superblocks(&data),
            Stage::Batch { at, lap_start } => self.batches(at, lap_start, data, out),
            Stage::Scan { at, left } => self.scan(at, left, &data),
            Stage::Done => Ok(None),
        }
    }

    fn ring_bytes(&self) -> u64 {
        self.superblock.as_ref().map_or(0, |s| s.ring_bytes)
    }

    fn corrupt(&self, offset: u64, expected: impl Into<String>, found: impl Into<String>) -> JournalError {
        JournalError::Corrupt {
            path: self.path.clone(),
            offset,
            expected: expected.into(),
            found: found.into(),
        }
    }

    fn superblocks(&mut self, data: &Buf) -> Result<Read, JournalError> {
        let copies = [Superblock::decode(&data[..BLOCK_BYTES]), Superblock::decode(&data[BLOCK_BYTES..])];
        // One copy of another version is enough: that version may have written batches we can't read.
        for copy in &copies {
            if let Err(BadSuperblock::Format(found)) = copy {
                return Err(JournalError::Format { path: self.path.clone(), found: *found });
            }
        }
        let newest = copies.iter().flatten().max_by_key(|s| s.generation);
        let Some(newest) = newest.cloned() else {
            let found: Vec<&str> = copies
                .iter()
                .filter_map(|c| match c {
                    Err(BadSuperblock::Damaged(what)) => Some(what.as_str()),
                    _ => None,
                })
                .collect();
            return Err(self.corrupt(0, "a journal superblock in one of two places", found.join("; ")));
        };
        self.position = newest.position;
        self.sequence = newest.sequence;
        self.previous_crc = newest.previous_crc;
        self.superblock = Some(newest);
        Ok(self.look_at(self.position, false))
    }

    /// Reads a window at a ring place.
    fn look_at(&mut self, position: u64, lap_start: bool) -> Read {
        let ring = self.ring_bytes();
        let at = position % ring;
        self.stage = Stage::Batch { at: position, lap_start };
        Some((RING_START + at, WINDOW_BYTES.min((ring - at) as usize)))
    }

    fn batches(
        &mut self,
        start: u64,
        lap_start: bool,
        data: Buf,
        out: &mut Vec<Outcome>,
    ) -> Result<Read, JournalError> {
        let mut used = 0usize;
        loop {
            let rest = data.len() - used;
            let at = start + used as u64;
            if rest == 0 {
                return Ok(self.look_at(at, lap_start && used == 0));
            }
            let peeked = BatchHeader::peek(&data[used..used + BLOCK_BYTES], &self.uuid(), self.ring_bytes());
            let expected = peeked.filter(|p| p.sequence == self.sequence && p.position == at);
            let Some(found) = expected else {
                return Ok(self.no_batch(
                    at,
                    lap_start && used == 0,
                    "no batch header with the next sequence",
                ));
            };
            let header_bytes = found.header_blocks * BLOCK_BYTES;
            let bytes = header_bytes + found.payload_bytes as usize;
            if bytes as u64 > self.ring_bytes() - at % self.ring_bytes() {
                return Ok(self.no_batch(at, lap_start, "a batch that would wrap"));
            }
            if bytes > rest {
                if used == 0 && data.len() >= bytes {
                    unreachable!("rest is all there is");
                }
                // Read exactly from here, enough for the whole batch.
                self.stage = Stage::Batch { at, lap_start };
                let len = bytes.max(WINDOW_BYTES).min((self.ring_bytes() - at % self.ring_bytes()) as usize);
                return Ok(Some((RING_START + at % self.ring_bytes(), len)));
            }
            match self.batch(at, &data.slice(used..used + bytes), header_bytes, out) {
                Ok(()) => used += bytes,
                Err(why) => return Ok(self.no_batch(at, lap_start && used == 0, &why)),
            }
        }
    }

    fn uuid(&self) -> [u8; 16] {
        self.superblock.as_ref().map_or([0; 16], |s| s.uuid)
    }

    /// Checks and emits one batch.
    fn batch(
        &mut self,
        at: u64,
        data: &Buf,
        header_bytes: usize,
        out: &mut Vec<Outcome>,
    ) -> Result<(), String> {
        let (header, crc) = BatchHeader::decode(&data[..header_bytes])?;
        if header.previous_crc != self.previous_crc {
            return Err(format!(
                "link {:08x} to the batch before, which has {:08x}",
                header.previous_crc, self.previous_crc
            ));
        }
        let mut records = Vec::with_capacity(header.descriptors.len());
        let mut offset = header_bytes;
        for (number, d) in header.descriptors.into_iter().enumerate() {
            let payload = data.slice(offset..offset + d.payload_bytes as usize);
            let good = match d.check {
                PayloadCheck::Journal => crc32fast::hash(&payload) == d.payload_crc,
                PayloadCheck::Caller => (self.verify)(&d.meta, &payload),
            };
            if !good && !on(Sabotage::ReplayTornRecords) {
                return Err(format!("payload of record {number} does not match its checksum"));
            }
            let payload_at = RING_START + at % self.ring_bytes() + offset as u64;
            offset += payload.len().next_multiple_of(BLOCK_BYTES);
            records.push(Outcome::Replayed { position: Position(at), meta: d.meta, payload, payload_at });
        }
        out.append(&mut records);
        self.batches.push((at, self.sequence, self.previous_crc));
        self.position = at + data.len() as u64;
        self.sequence += 1;
        self.previous_crc = crc;
        Ok(())
    }

    /// Nothing usable at `at`: the batch may stand at the start of the ring instead, or the log ends here.
    fn no_batch(&mut self, at: u64, was_lap_start: bool, why: &str) -> Read {
        let ring = self.ring_bytes();
        if !was_lap_start && at % ring != 0 {
            self.end_found = why.to_string();
            return self.look_at(at + ring - at % ring, true);
        }
        if !was_lap_start {
            self.end_found = why.to_string();
        }
        self.stage = Stage::Scan { at: self.position % ring, left: ring.min(SCAN_BYTES) };
        self.next_scan()
    }

    fn next_scan(&mut self) -> Read {
        let ring = self.ring_bytes();
        let Stage::Scan { at, left } = &mut self.stage else { return None };
        if *left == 0 {
            self.stage = Stage::Done;
            return None;
        }
        if *at >= ring {
            *at = 0;
        }
        Some((RING_START + *at, WINDOW_BYTES.min((ring - *at) as usize).min(*left as usize)))
    }

    /// A later batch that was written when the missing one was durable proves corruption.
    fn scan(&mut self, at: u64, left: u64, data: &Buf) -> Result<Read, JournalError> {
        for (number, block) in data.chunks_exact(BLOCK_BYTES).enumerate() {
            let Some(start) = BatchHeader::peek(block, &self.uuid(), self.ring_bytes()) else { continue };
            let here = number * BLOCK_BYTES;
            let Some(header) = data.get(here..here + start.header_blocks * BLOCK_BYTES) else { continue };
            let Ok((header, _)) = BatchHeader::decode(header) else { continue };
            if header.sequence > self.sequence && header.durable >= self.sequence {
                let place = RING_START + self.position % self.ring_bytes();
                let expected =
                    format!("batch {} (batch {} says it was durable)", self.sequence, header.sequence);
                return Err(self.corrupt(place, expected, self.end_found.clone()));
            }
        }
        self.stage = Stage::Scan { at: at + data.len() as u64, left: left - data.len() as u64 };
        Ok(self.next_scan())
    }
}
