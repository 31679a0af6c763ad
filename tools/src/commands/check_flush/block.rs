//! The blocks that `check-flush` writes, and the judgement of what is left of them. Pure: bytes in, verdict out.
//!
//! A thread writes block after block with a growing counter, one at a time, round and round over its file: counter `n`
//! goes to block `(n - 1) mod blocks`. So at most one block per thread can be torn by a loss of power without fault of
//! the drive: the one behind the newest whole block. Everything else must be whole and at least as new as the last
//! counter that was acknowledged for its place.
//!
//! | block bytes | field |
//! |---|---|
//! | 0..8, 8..12 | `PSFLUSH1`; CRC-32 of the block with these four bytes zero |
//! | 12..16, 16..32 | thread, run |
//! | 32..40, 40..44 | counter (0: laid out, never written), place in the file in blocks |
//! | 48..4096 | noise made from the counter: no two blocks are alike in any sector |

use serde::Serialize;
use shards::BLOCK_BYTES;

const MAGIC: &[u8; 8] = b"PSFLUSH1";
const HEAD_BYTES: usize = 48;

pub type RunId = [u8; 16];

/// What is told apart by blocks of different runs, threads and places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label {
    pub run: RunId,
    pub thread: u32,
    pub place: u32,
}

/// Where a counter is written.
pub fn place_of(counter: u64, blocks: u32) -> u32 {
    ((counter - 1) % u64::from(blocks)) as u32
}

/// Fills `block` (zeroed or used before) for `counter`.
pub fn encode(block: &mut [u8], label: Label, counter: u64) {
    assert_eq!(block.len(), BLOCK_BYTES);
    block[..8].copy_from_slice(MAGIC);
    block[8..12].fill(0);
    block[12..16].copy_from_slice(&label.thread.to_le_bytes());
    block[16..32].copy_from_slice(&label.run);
    block[32..40].copy_from_slice(&counter.to_le_bytes());
    block[40..44].copy_from_slice(&label.place.to_le_bytes());
    block[44..48].fill(0);
    let mut x = (counter << 8 | u64::from(label.thread)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in block[HEAD_BYTES..].chunks_exact_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes());
    }
    let crc = wire::crc(block);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// The counter of a whole block of this label; `None` for anything else.
pub fn decode(block: &[u8], label: Label) -> Option<u64> {
    let mut copy = block.to_vec();
    let found = u32::from_le_bytes(block.get(8..12)?.try_into().ok()?);
    copy[8..12].fill(0);
    let fits = &block[..8] == MAGIC
        && block[12..16] == label.thread.to_le_bytes()
        && block[16..32] == label.run
        && block[40..44] == label.place.to_le_bytes();
    (fits && wire::crc(&copy) == found)
        .then(|| u64::from_le_bytes(block[32..40].try_into().expect("eight bytes")))
}

/// A block that does not hold what the drive had acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Loss {
    pub thread: u32,
    pub block: u32,
    /// The counter that was acknowledged last for this place.
    pub acknowledged: u64,
    /// What stands there; none: neither this nor an older one, but garbage.
    pub found: Option<u64>,
}

/// What is left of one thread's file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verdict {
    pub thread: u32,
    pub acknowledged: u64,
    /// The newest whole block on the disk. It may be newer than the last one acknowledged.
    pub newest: u64,
    /// The write that was under way was torn: no fault.
    pub torn: bool,
    pub lost: Vec<Loss>,
}

/// Compares the counters found at all places of a thread's file with the last one acknowledged.
pub fn judge(thread: u32, found: &[Option<u64>], acknowledged: u64) -> Verdict {
    let blocks = found.len() as u32;
    let newest = found.iter().flatten().copied().max().unwrap_or(0);
    let under_way = place_of(newest + 1, blocks);
    let mut verdict = Verdict { thread, acknowledged, newest, torn: false, lost: Vec::new() };
    for (place, &found) in (0..).zip(found) {
        let wanted = newest_up_to(acknowledged, place, blocks);
        match found {
            Some(counter) if counter >= wanted => {}
            // Unless the torn write itself was acknowledged.
            None if place == under_way && wanted <= newest => verdict.torn = true,
            found => verdict.lost.push(Loss { thread, block: place, acknowledged: wanted, found }),
        }
    }
    verdict
}

/// The largest counter up to `last` that goes to `place`; 0 if there is none.
fn newest_up_to(last: u64, place: u32, blocks: u32) -> u64 {
    let first = u64::from(place) + 1;
    if last < first { 0 } else { first + (last - first) / u64::from(blocks) * u64::from(blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { run: [7; 16], thread: 3, place: 9 };

    #[test]
    fn a_block_is_known_again_and_no_damage_or_stranger_passes() {
        let mut block = vec![0; BLOCK_BYTES];
        encode(&mut block, LABEL, 1234);
        assert_eq!(decode(&block, LABEL), Some(1234));
        assert_eq!(wire::crc(&block), 0xa3444914, "the format has changed: raise its version");
        for other in
            [Label { run: [8; 16], ..LABEL }, Label { thread: 4, ..LABEL }, Label { place: 8, ..LABEL }]
        {
            assert_eq!(decode(&block, other), None);
        }
        let mut newer = block.clone();
        encode(&mut newer, LABEL, 1235);
        for sector in 1..8 {
            let torn = [&newer[..sector * 512], &block[sector * 512..]].concat();
            assert_eq!(decode(&torn, LABEL), None, "torn after sector {sector}");
        }
        block[4000] ^= 1;
        assert_eq!(decode(&block, LABEL), None);
    }

    /// The disk after counters 1..=last with 4 blocks.
    fn disk(last: u64) -> Vec<Option<u64>> {
        (0..4).map(|place| Some(newest_up_to(last, place, 4))).collect()
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        assert_eq!(disk(6), [Some(5), Some(6), Some(3), Some(4)]);
        assert!(judge(0, &disk(6), 6).lost.is_empty());
        assert!(judge(0, &disk(7), 6).lost.is_empty(), "the acknowledgement was on its way");
        assert!(judge(0, &disk(0), 0).lost.is_empty());
        let lost = judge(0, &disk(5), 6).lost;
        assert_eq!(lost, [Loss { thread: 0, block: 1, acknowledged: 6, found: Some(2) }]);
        // An older write is missing though a newer one is there.
        let mut reordered = disk(6);
        reordered[0] = Some(1);
        assert_eq!(
            judge(0, &reordered, 6).lost,
            [Loss { thread: 0, block: 0, acknowledged: 5, found: Some(1) }]
        );
    }

    #[test]
    fn one_torn_block_is_forgiven_and_only_where_a_write_was_under_way() {
        let mut torn = disk(6);
        torn[2] = None; // 7 was under way over 3.
        let verdict = judge(0, &torn, 6);
        assert!(verdict.torn && verdict.lost.is_empty(), "{verdict:?}");
        torn[3] = None;
        let verdict = judge(0, &torn, 6);
        assert_eq!(verdict.lost, [Loss { thread: 0, block: 3, acknowledged: 4, found: None }]);
        // The newest write itself is torn, though it was acknowledged.
        let mut newest = disk(6);
        newest[1] = None;
        let verdict = judge(0, &newest, 6);
        assert_eq!((verdict.newest, verdict.torn), (5, false));
        assert_eq!(verdict.lost.len(), 1, "it was acknowledged: {verdict:?}");
    }
}
