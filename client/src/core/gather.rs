//! Writes that need not be durable yet: small ones that follow one another are gathered and written as one, large ones are
//! written while the program goes on.
//!
//! A program that writes through the kernel's cache is answered when its bytes are here. They are written when they are many
//! ([`MOST_BYTES`]), when they do not follow one another, when they have waited for [`LONGEST_WAIT`], and before anything
//! that depends on them: `fsync`, `close`, a read, a change of the size, a direct write.
//!
//! Invariants:
//! - what is gathered or under way is covered by the file's write lease; its blocks are locked ([`super::locks`]) from the
//!   moment when it is written, so later changes and reads of these blocks come behind it;
//! - its chunks are there: a program that finds no space for a new one is told so by its write;
//! - the size a program sees includes it; a file grows by gathered bytes only over a clean tail;
//! - no more than [`MOST_WAITING_BYTES`] wait in all: beyond that programs wait for their own writes;
//! - once a write has failed, every `fsync` and `close` of the file fails until its last `close`, and nothing is gathered.

use super::{ClientCore, Then};
use crate::error::Result;
use shards::{Buf, BufMut, Io, Timestamp};
use std::ops::Range;
use std::time::Duration;
use wire::FileId;
use wire::mds_api::LeaseMode;

/// Written as one.
const MOST_BYTES: usize = 1 << 20;
const LONGEST_WAIT: Duration = Duration::from_millis(500);
const MOST_WAITING_BYTES: usize = 64 << 20;

/// Bytes that follow one another and are not yet written.
pub(super) struct Gathered {
    start: u64,
    bytes: Vec<u8>,
    since: Timestamp,
}

impl Gathered {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Adds bytes that follow, or lie within: by how many it grows. `None` if they do neither.
    fn add(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let end = offset + data.len() as u64;
        if offset == self.end() && self.bytes.len() + data.len() <= MOST_BYTES {
            self.bytes.extend_from_slice(data);
            Some(data.len())
        } else if self.start <= offset && end <= self.end() {
            let at = (offset - self.start) as usize;
            self.bytes[at..at + data.len()].copy_from_slice(data);
            Some(0)
        } else {
            None
        }
    }
}

impl ClientCore {
    /// A write that a program does not need to be durable before its next `fsync` or `close`.
    pub(super) fn write_soon(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        data: Buf,
        then: Then<()>,
    ) {
        let Some(end) = self.may_gather(file, offset, data.len()) else {
            return self.write(io, file, offset, data, false, then);
        };
        let added = self
            .files
            .get_mut(&file)
            .and_then(|f| f.gathered.as_mut())
            .and_then(|gathered| gathered.add(offset, &data));
        if added.is_none() {
            self.write_gathered(io, file);
        }
        self.stats.writes += 1;
        self.stats.write_bytes += data.len() as u64;
        let Some(f) = self.files.get_mut(&file) else { return };
        f.grown_to(end, io.now(), io.wall_ms());
        match added {
            Some(grown) => {
                self.waiting_bytes += grown;
                if f.gathered.as_ref().is_some_and(|g| g.bytes.len() >= MOST_BYTES) {
                    self.write_gathered(io, file);
                }
            }
            None if data.len() >= MOST_BYTES => self.write_behind(io, file, offset, data),
            None => {
                self.waiting_bytes += data.len();
                f.gathered = Some(Gathered { start: offset, bytes: data.to_vec(), since: io.now() });
            }
        }
        then(self, io, Ok(()));
    }

    /// The end of the write if it may be answered before it is durable.
    fn may_gather(&mut self, file: FileId, offset: u64, len: usize) -> Option<u64> {
        let end = offset.checked_add(len as u64)?;
        self.check_change(file, end).ok()?;
        let f = self.files.get(&file)?;
        let is_held = f.lease.is_some_and(|(_, mode)| mode == LeaseMode::Write);
        let may = len > 0
            && is_held
            && f.write_failed.is_none()
            && !f.is_settling()
            && (end <= f.size || f.tail_clean)
            && [offset, end - 1].iter().all(|at| f.has_chunk((*at / f.chunk_bytes()) as u32))
            && self.waiting_bytes + len <= MOST_WAITING_BYTES;
        may.then_some(end)
    }

    /// Writes what was gathered for a file. It counts as begun from now on: whoever locks its blocks, or waits for changes
    /// under way, comes behind it.
    pub(super) fn write_gathered(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(gathered) = self.files.get_mut(&file).and_then(|f| f.gathered.take()) else { return };
        self.waiting_bytes -= gathered.bytes.len();
        let mut data = BufMut::scratch(gathered.bytes.len());
        data.copy_from_slice(&gathered.bytes);
        self.write_behind(io, file, gathered.start, data.freeze());
    }

    fn write_behind(&mut self, io: &mut dyn Io, file: FileId, offset: u64, data: Buf) {
        let len = data.len();
        self.waiting_bytes += len;
        if let Some(f) = self.files.get_mut(&file) {
            f.behind += 1;
        }
        let done: Then<()> = Box::new(move |core, _, result| {
            core.waiting_bytes -= len;
            let Some(f) = core.files.get_mut(&file) else { return };
            f.behind -= 1;
            if let Err(error) = result {
                tracing::error!(%file, offset, len, %error, "write_failed");
                f.write_failed.get_or_insert(error);
            }
        });
        self.write_noted(io, file, offset, data, done);
    }

    /// A read of `range` must see what was written before: `then` runs when that is so.
    pub(super) fn behind_writes(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        op: u64,
        range: Range<u64>,
        then: Then<()>,
    ) {
        let overlaps = |g: &Gathered| g.start < range.end && range.start < g.end();
        if self.files.get(&file).and_then(|f| f.gathered.as_ref()).is_some_and(overlaps) {
            self.write_gathered(io, file);
        }
        if self.files.get(&file).is_none_or(|f| f.behind == 0) {
            return then(self, io, Ok(()));
        }
        let blocks = range.start / shards::BLOCK_BYTES as u64..range.end.div_ceil(shards::BLOCK_BYTES as u64);
        let unlock: Then<()> = Box::new(move |core, io, locked: Result<()>| {
            core.unlock(io, file, op);
            then(core, io, locked);
        });
        self.lock(io, file, op, blocks, unlock);
    }

    /// Whether programs were answered whose bytes are not durable yet.
    pub(super) fn has_written_behind(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|f| f.gathered.is_some() || f.behind > 0)
    }

    /// Writes what has waited long enough.
    pub(super) fn gather_tick(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let is_due = |g: &Gathered| now.since(g.since) >= LONGEST_WAIT;
        let due: Vec<FileId> = self
            .files
            .iter()
            .filter(|(_, f)| f.gathered.as_ref().is_some_and(is_due))
            .map(|(file, _)| *file)
            .collect();
        for file in due {
            self.write_gathered(io, file);
        }
    }

    /// The lease is lost: what was gathered can't be written any more.
    pub(super) fn drop_gathered(&mut self, file: FileId) {
        if let Some(gathered) = self.files.get_mut(&file).and_then(|f| f.gathered.take()) {
            self.waiting_bytes -= gathered.bytes.len();
            tracing::error!(%file, bytes = gathered.bytes.len(), "writes_lost_with_lease");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_follow_or_lie_within_are_gathered() {
        let mut g = Gathered { start: 100, bytes: vec![1; 10], since: Timestamp(0) };
        let grown = [g.add(110, &[2; 5]), g.add(104, &[3; 2]), g.add(114, &[4])];
        assert_eq!(grown, [Some(5), Some(0), Some(0)]);
        assert_eq!(g.bytes, [1, 1, 1, 1, 3, 3, 1, 1, 1, 1, 2, 2, 2, 2, 4]);
        for (offset, len) in [(116, 1), (99, 1), (114, 2), (90, 50)] {
            assert_eq!(g.add(offset, &vec![5; len]), None, "{len} at {offset}");
        }
        assert_eq!(g.add(115, &vec![6; MOST_BYTES]), None, "more than one write takes");
        assert_eq!(g.start..g.end(), 100..115);
    }
}
