//! Scrub: reads everything a shard holds once in a period, so that damage on the disk is found while other replicas are
//! whole. Sans-io: [`Scrub::next`] says what to verify now, [`Scrub::done`] takes the outcome; the node does the rest.
//!
//! Invariants:
//! - one piece is under way at a time, and none while clients wait: background work must not cost latency;
//! - a pass goes through the chunks in the order of their ids, and goes on where it was after a restart;
//! - every block that was there when the pass began and still is when the pass comes by is verified.

use crate::store::Store;
use shards::Timestamp;
use std::time::Duration;
use wire::ChunkId;

/// Blocks verified in one go: 1 MiB.
const PIECE_BLOCKS: u32 = 256;
/// Most bytes that may be caught up at once after a pause.
const MOST_CREDIT_BYTES: u64 = 16 << 20;
/// Least rate, so that a nearly empty server is verified soon and a pass ends.
const LEAST_BYTES_PER_S: u64 = 1 << 20;

/// What to verify: a chunk and a range of its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub chunk: ChunkId,
    pub first_block: u32,
    pub blocks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Passes ended since the shard was made.
    pub passes: u64,
    /// Bytes verified in this pass, and bytes there are.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Damaged pieces found since the start of the process.
    pub damaged: u64,
}

pub struct Scrub {
    /// Length of a pass; zero turns scrubbing off.
    period: Duration,
    chunk: ChunkId,
    next_block: u32,
    under_way: bool,
    credit_bytes: u64,
    looked_at: Timestamp,
    progress: Progress,
}

impl Scrub {
    /// Goes on from what [`Scrub::save`] wrote; anything else starts a pass.
    pub fn new(period: Duration, saved: Option<&[u8]>) -> Scrub {
        let text = saved.and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default();
        let numbers: Vec<u64> = text.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let [chunk, block, done_bytes, passes] = numbers[..].try_into().unwrap_or([0; 4]);
        Scrub {
            period,
            chunk: ChunkId(chunk),
            next_block: block as u32,
            under_way: false,
            credit_bytes: 0,
            looked_at: Timestamp(0),
            progress: Progress { passes, done_bytes, ..Progress::default() },
        }
    }

    /// Where the pass is: "chunk block bytes passes".
    pub fn save(&self) -> Vec<u8> {
        let p = &self.progress;
        format!("{} {} {} {}\n", self.chunk.0, self.next_block, p.done_bytes, p.passes).into_bytes()
    }

    pub fn set_period(&mut self, period: Duration) {
        self.period = period;
    }

    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The next piece to verify, if it is time and the shard has nothing better to do.
    pub fn next(&mut self, now: Timestamp, store: &Store, busy: bool) -> Option<Piece> {
        let waited = now.since(std::mem::replace(&mut self.looked_at, now));
        let used = store.used_bytes();
        self.progress.total_bytes = used;
        if self.period.is_zero() {
            return None;
        }
        let rate = (used / self.period.as_secs().max(1)).max(LEAST_BYTES_PER_S);
        let earned = u128::from(rate) * waited.min(Duration::from_secs(60)).as_millis() / 1000;
        self.credit_bytes = (self.credit_bytes + earned as u64).min(MOST_CREDIT_BYTES);
        let piece_bytes = u64::from(PIECE_BLOCKS) * wire::BLOCK_BYTES as u64;
        if self.under_way || busy || self.credit_bytes < piece_bytes {
            return None;
        }
        let piece = self.find(store)?;
        self.credit_bytes -= piece_bytes;
        self.under_way = true;
        Some(piece)
    }

    /// The next allocated blocks from where the pass is; ends the pass when there are none.
    fn find(&mut self, store: &Store) -> Option<Piece> {
        let mut next = store.chunk_from(self.chunk);
        while let Some(chunk) = next {
            if chunk != self.chunk {
                (self.chunk, self.next_block) = (chunk, 0);
            }
            if let Some(blocks) = store.allocated_from(chunk, self.next_block) {
                let end = blocks.end.min(blocks.start + PIECE_BLOCKS);
                self.next_block = end;
                return Some(Piece { chunk, first_block: blocks.start, blocks: end - blocks.start });
            }
            next = store.chunk_from(ChunkId(chunk.0 + 1));
        }
        if self.progress.done_bytes > 0 {
            self.progress.passes += 1;
        }
        (self.chunk, self.next_block, self.progress.done_bytes) = (ChunkId(0), 0, 0);
        None
    }

    pub fn done(&mut self, piece: Piece, damaged: bool) {
        self.under_way = false;
        self.progress.done_bytes += u64::from(piece.blocks) * wire::BLOCK_BYTES as u64;
        if damaged {
            self.progress.damaged += 1;
            // The rest of the chunk is copied anew with the damaged part.
            self.next_block = u32::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_goes_on_where_it_was_saved() {
        let mut scrub = Scrub::new(Duration::from_secs(60), None);
        scrub.done(Piece { chunk: ChunkId(3), first_block: 0, blocks: 256 }, false);
        (scrub.chunk, scrub.next_block) = (ChunkId(3), 256);
        let again = Scrub::new(Duration::from_secs(60), Some(&scrub.save()));
        assert_eq!((again.chunk, again.next_block, again.progress.done_bytes), (ChunkId(3), 256, 1 << 20));
        for torn in [&b"3 25"[..], b"", b"x y z 1", &[0xff, 0xfe]] {
            assert_eq!(Scrub::new(Duration::ZERO, Some(torn)).chunk, ChunkId(0));
        }
    }
}
