//! Which blocks deserve a place in the cache: those read several times while not much else was, and not by streams.

use std::ops::Range;
use wire::ChunkId;

/// Reads of a unit, of which the last finds it admitted. Two keep out what is read once; more make the cache slower to
/// learn.
const ADMIT_AT: u8 = 2;
/// Blocks read in a row from which on it is a stream: 1 MiB. Disks are good at these, and they would push out everything.
const STREAM_BLOCKS: u32 = 256;
/// Streams told apart, a power of two.
const STREAMS: usize = 256;

#[derive(Clone, Copy, Default)]
struct Seen {
    unit: u32,
    times: u8,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    chunk: ChunkId,
    end: u32,
    blocks: u32,
}

pub(super) struct Admission {
    /// By hash of the unit; a newer unit takes the place of an older one. So the window in which reads count is about as
    /// many misses long as the cache has slots.
    seen: Vec<Seen>,
    streams: Vec<Stream>,
}

fn hash(number: u64) -> usize {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

impl Admission {
    pub fn new(slots: usize) -> Admission {
        Admission {
            seen: vec![Seen::default(); slots.next_power_of_two()],
            streams: vec![Stream::default(); STREAMS],
        }
    }

    /// Notes a miss on a unit; says whether it has been read often enough.
    pub fn admits(&mut self, unit: u32) -> bool {
        let at = hash(u64::from(unit)) & (self.seen.len() - 1);
        let seen = &mut self.seen[at];
        if seen.unit != unit || seen.times == 0 {
            *seen = Seen { unit, times: 0 };
        }
        seen.times = seen.times.saturating_add(1);
        seen.times >= ADMIT_AT
    }

    /// Notes a read; says whether it goes on where the last one of its chunk ended, and has done so for long.
    pub fn is_stream(&mut self, chunk: ChunkId, blocks: &Range<u32>) -> bool {
        let stream = &mut self.streams[hash(chunk.0) & (STREAMS - 1)];
        let goes_on = stream.chunk == chunk && stream.end == blocks.start;
        let before = if goes_on { stream.blocks } else { 0 };
        *stream = Stream { chunk, end: blocks.end, blocks: before.saturating_add(blocks.end - blocks.start) };
        stream.blocks >= STREAM_BLOCKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_admitted_at_its_second_read_within_the_window() {
        let mut a = Admission::new(64);
        assert!(!a.admits(0) && a.admits(0), "unit 0 is a unit like others");
        assert!(!a.admits(7));
        (1000..2000).for_each(|unit| assert!(!a.admits(unit)));
        assert!(!a.admits(7), "too much was read since");
        assert!(a.admits(7));
    }

    #[test]
    fn long_runs_are_streams_and_jumps_are_not() {
        let mut a = Admission::new(64);
        let read =
            |a: &mut Admission, chunk, start: u32, len| a.is_stream(ChunkId(chunk), &(start..start + len));
        for n in 0..3 {
            assert!(!read(&mut a, 5, n * 64, 64));
        }
        assert!(read(&mut a, 5, 192, 64), "a MiB in a row");
        assert!(!read(&mut a, 5, 0, 64), "it starts over");
        assert!(read(&mut a, 6, 0, 256), "a MiB at once");
    }
}
