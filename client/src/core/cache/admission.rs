//! Which blocks earn a place in the cache: those used several times within a window, and not by a stream.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use wire::FileId;

/// Unit of the cache. Large enough that the table stays small (4 MB of memory for 1 GB of cache), small enough that a hot
/// 4 KiB does not drag megabytes in.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// A block comes in at this use within the window. The first use of most data is its last, and the second is often the
/// same program looking again a moment later; what three asked for, more will. The guide's product does the same.
pub const ADMIT_AT_USES: u8 = 3;

/// A stream that has gone this far is by-passed: it is read once (backups, copies), disks and read-ahead are good at it,
/// and it would push everything else out. What a booting system reads in one go is shorter.
const STREAM_BYTES: u64 = 1 << 20;

/// Streams known per file: several programs, and requests of one stream that overtake one another.
const MOST_STREAMS: usize = 8;

/// The window is as many uses as there are slots (what is used again only after that would not have stayed), but no fewer.
const LEAST_WINDOW: usize = 4096;

type Key = (FileId, u64);

pub struct Admission {
    admit_at: u8,
    window: usize,
    /// Uses in order, the oldest first.
    order: VecDeque<Key>,
    uses: BTreeMap<Key, u8>,
    /// Per file, the last used first.
    streams: BTreeMap<FileId, Vec<Stream>>,
}

#[derive(Clone, Copy)]
struct Stream {
    /// Where it goes on.
    end: u64,
    bytes: u64,
}

impl Admission {
    pub fn new(slots: u32, admit_at: u8) -> Admission {
        Admission {
            admit_at: admit_at.max(1),
            window: (slots as usize).max(LEAST_WINDOW),
            order: VecDeque::new(),
            uses: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    pub fn closed(&mut self, file: FileId) {
        self.streams.remove(&file);
    }

    /// Notes a read and names the blocks that have been used often enough.
    pub fn note(&mut self, file: FileId, bytes: Range<u64>) -> Vec<u64> {
        let (stream, goes_on) = self.stream(file, &bytes);
        if stream.bytes > STREAM_BYTES {
            return Vec::new();
        }
        // A stream that goes on within a block uses it once.
        let counted = if goes_on { (bytes.start - 1) / BLOCK_BYTES + 1 } else { 0 };
        let blocks = bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES);
        blocks.filter(|block| *block >= counted && self.count((file, *block))).collect()
    }

    fn stream(&mut self, file: FileId, bytes: &Range<u64>) -> (Stream, bool) {
        let streams = self.streams.entry(file).or_default();
        let known = streams.iter().position(|s| s.end == bytes.start && s.end > 0);
        let before = known.map_or(0, |at| streams.remove(at).bytes);
        let stream = Stream { end: bytes.end, bytes: before + (bytes.end - bytes.start) };
        streams.insert(0, stream);
        streams.truncate(MOST_STREAMS);
        (stream, known.is_some())
    }

    fn count(&mut self, key: Key) -> bool {
        if self.order.len() >= self.window
            && let Some(oldest) = self.order.pop_front()
            && let Some(uses) = self.uses.get_mut(&oldest)
        {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&oldest);
            }
        }
        let uses = self.uses.entry(key).or_default();
        if *uses < u8::MAX {
            *uses += 1;
            self.order.push_back(key);
        }
        *uses >= self.admit_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(5);

    fn at(block: u64) -> Range<u64> {
        block * BLOCK_BYTES + 8192..block * BLOCK_BYTES + 12288
    }

    #[test]
    fn a_block_comes_in_at_its_third_use_within_the_window() {
        let mut a = Admission::new(0, ADMIT_AT_USES);
        assert!(a.note(FILE, at(7)).is_empty());
        assert!(a.note(FILE, at(7)).is_empty());
        assert!(a.note(FileId(6), at(7)).is_empty(), "another file");
        assert_eq!(a.note(FILE, at(7)), [7]);
        // Two uses, then a window full of others: forgotten.
        a.note(FILE, at(9));
        a.note(FILE, at(9));
        (0..LEAST_WINDOW as u64).for_each(|n| assert!(a.note(FILE, at(100 + 2 * n)).is_empty()));
        assert!(a.note(FILE, at(9)).is_empty());
        assert!(a.uses.len() <= LEAST_WINDOW && a.order.len() <= LEAST_WINDOW);
    }

    #[test]
    fn a_stream_uses_each_block_once_and_is_by_passed_when_it_is_long() {
        let mut a = Admission::new(0, 2);
        let steps = |from: u64| (0..16).map(move |n| from + n * 4096..from + (n + 1) * 4096);
        let wanted: Vec<u64> = steps(0).flat_map(|r| a.note(FILE, r)).collect();
        assert!(wanted.is_empty(), "sixteen steps through one block are one use: {wanted:?}");
        assert_eq!(a.note(FILE, 0..4096), [0]);
        // Three passes of a long stream: only what comes before the limit is noticed at all.
        let mut a = Admission::new(0, 2);
        let step = 256 << 10;
        let pass = |a: &mut Admission| -> Vec<u64> {
            (0..64u64).flat_map(|n| a.note(FILE, n * step..(n + 1) * step)).collect()
        };
        pass(&mut a);
        assert!(pass(&mut a).iter().all(|block| block * BLOCK_BYTES < STREAM_BYTES));
    }
}
