//! Journal records of the chunk store. Little endian; docs/formats.md, "Chunk store".
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind: 1 write, 2 extent, 3 discard, 4 epoch, 5 delete |
//! | 1..4 | 0 |
//! | 4..8 | epoch |
//! | 8..16 | chunk |
//! | 16..24, 24..32, 32..40 | sequence, committed, lease |
//! | 40..44, 44..48 | first block, number of blocks |
//! | then | write: a CRC per block (the payload holds the blocks); extent: a CRC per block, then the place of each unit |

use super::{Stamp, UNIT_BLOCKS};
use shards::journal::RecordMeta;
use smallvec::SmallVec;
use std::ops::Range;
use wire::{BLOCK_BYTES, BlockCrc, BlockCrcs, ChunkId, Epoch, LeaseId, Sequence, data::first_mismatch};

const HEAD_BYTES: usize = 48;

/// Units of one extent record.
pub(super) type Places = SmallVec<[u32; 16]>;

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kind {
    /// The payload holds the blocks.
    Write {
        crcs: BlockCrcs,
    },
    /// Whole units that lie in `data` at these places.
    Extent {
        crcs: BlockCrcs,
        places: Places,
    },
    Discard,
    Epoch,
    Delete,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Record {
    pub chunk: ChunkId,
    pub stamp: Stamp,
    pub blocks: Range<u32>,
    pub kind: Kind,
}

impl Record {
    pub fn encode(&self) -> RecordMeta {
        let number = match self.kind {
            Kind::Write { .. } => 1,
            Kind::Extent { .. } => 2,
            Kind::Discard => 3,
            Kind::Epoch => 4,
            Kind::Delete => 5,
        };
        let mut out = RecordMeta::new();
        out.extend([number, 0, 0, 0]);
        out.extend_from_slice(&self.stamp.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.chunk.0.to_le_bytes());
        out.extend_from_slice(&self.stamp.sequence.0.to_le_bytes());
        out.extend_from_slice(&self.stamp.committed.0.to_le_bytes());
        out.extend_from_slice(&self.stamp.lease.0.to_le_bytes());
        out.extend_from_slice(&self.blocks.start.to_le_bytes());
        out.extend_from_slice(&(self.blocks.end - self.blocks.start).to_le_bytes());
        if let Kind::Write { crcs } | Kind::Extent { crcs, .. } = &self.kind {
            crcs.iter().for_each(|c| out.extend_from_slice(&c.0.to_le_bytes()));
        }
        if let Kind::Extent { places, .. } = &self.kind {
            places.iter().for_each(|p| out.extend_from_slice(&p.to_le_bytes()));
        }
        out
    }

    pub fn decode(b: &[u8]) -> Result<Record, String> {
        let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"));
        if b.len() < HEAD_BYTES {
            return Err(format!("record of {} bytes", b.len()));
        }
        let (first, count) = (u32_at(40), u32_at(44));
        let crc_words = if b[0] <= 2 { count as usize } else { 0 };
        let place_words = if b[0] == 2 { (count / UNIT_BLOCKS) as usize } else { 0 };
        let words = crc_words.saturating_add(place_words);
        if b.len() != HEAD_BYTES + words.saturating_mul(4) {
            return Err(format!("record of kind {} with {count} blocks in {} bytes", b[0], b.len()));
        }
        let crcs = || (0..crc_words).map(|i| BlockCrc(u32_at(HEAD_BYTES + 4 * i))).collect();
        let kind = match b[0] {
            1 => Kind::Write { crcs: crcs() },
            2 => Kind::Extent {
                crcs: crcs(),
                places: (0..place_words).map(|i| u32_at(HEAD_BYTES + 4 * (crc_words + i))).collect(),
            },
            3 => Kind::Discard,
            4 => Kind::Epoch,
            5 => Kind::Delete,
            other => return Err(format!("record of kind {other}")),
        };
        let end = first.checked_add(count).ok_or("blocks beyond the end of any chunk")?;
        Ok(Record {
            chunk: ChunkId(u64_at(8)),
            stamp: Stamp {
                epoch: Epoch(u32_at(4)),
                sequence: Sequence(u64_at(16)),
                committed: Sequence(u64_at(24)),
                lease: LeaseId(u64_at(32)),
            },
            blocks: first..end,
            kind,
        })
    }
}

/// Whether a record's payload is what its checksums say ([`shards::journal::Verify`]).
pub(super) fn verify(meta: &[u8], payload: &[u8]) -> bool {
    match Record::decode(meta) {
        Ok(Record { kind: Kind::Write { crcs }, .. }) => {
            payload.len() == crcs.len() * BLOCK_BYTES && first_mismatch(payload, &crcs).is_none()
        }
        // Only their own fields, which the journal's header checksum covers.
        Ok(_) => payload.is_empty(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn records_round_trip_and_are_pinned() {
        let stamp =
            Stamp { epoch: Epoch(2), sequence: Sequence(3), committed: Sequence(1), lease: LeaseId(9) };
        let kinds = [
            (Kind::Write { crcs: smallvec![BlockCrc(7)] }, 1),
            (Kind::Extent { crcs: smallvec![BlockCrc(1); 16], places: smallvec![4] }, 16),
            (Kind::Discard, 5),
            (Kind::Epoch, 0),
            (Kind::Delete, 0),
        ];
        for (kind, count) in kinds {
            let record = Record { chunk: ChunkId(8), stamp, blocks: 16..16 + count, kind };
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes).unwrap(), record);
            for cut in 0..bytes.len() {
                assert!(Record::decode(&bytes[..cut]).is_err());
            }
        }
        let record = Record {
            chunk: ChunkId(8),
            stamp,
            blocks: 16..17,
            kind: Kind::Write { crcs: smallvec![BlockCrc(7)] },
        };
        let golden: Vec<u8> = [
            &[1u8, 0, 0, 0, 2, 0, 0, 0][..],
            &8u64.to_le_bytes(),
            &3u64.to_le_bytes(),
            &1u64.to_le_bytes(),
            &9u64.to_le_bytes(),
            &[16, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
        ]
        .concat();
        assert_eq!(record.encode()[..], golden[..]);
    }
}
