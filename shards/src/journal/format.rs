//! Bytes of the journal: superblock and batch header. Little endian; described in docs/formats.md.

use super::PayloadCheck;
use crate::buf::{BLOCK_BYTES, Buf, BufMut};
use smallvec::SmallVec;
use std::io;

pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"PSJSUPER";
pub const BATCH_MAGIC: [u8; 8] = *b"PSJBATCH";
pub const VERSION: u32 = 1;
/// The ring begins behind the two superblocks.
pub const RING_START: u64 = 2 * BLOCK_BYTES as u64;
pub const BATCH_HEAD_BYTES: usize = 80;
pub const DESCRIPTOR_HEAD_BYTES: usize = 16;
/// Most metadata of one record, bytes.
pub const MAX_META_BYTES: usize = 2048;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal {path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("journal {path} of {bytes} bytes is too small; give it at least 1 MiB")]
    TooSmall { path: String, bytes: u64 },
    #[error(
        "journal {path} is missing, although this server has been in use. Nothing was changed. Check that the disk it \
         lies on is mounted; if the journal is lost, replace this server by a new one"
    )]
    Missing { path: String },
    #[error(
        "journal {path} is corrupt at offset {offset}: expected {expected}, found {found}. Acknowledged data is \
         damaged, so this server does not start; nothing was changed. Keep its directory, and replace it by a new \
         server: the cluster fills that one from the others"
    )]
    Corrupt { path: String, offset: u64, expected: String, found: String },
    #[error(
        "journal {path} has format version {found}; this program understands {VERSION}. Nothing was changed: start \
         the version of pstorage that wrote it"
    )]
    Format { path: String, found: u32 },
}

/// Why a block is no superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum BadSuperblock {
    /// Whole, and written by another version of the program.
    Format(u32),
    Damaged(String),
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Superblock {
    pub uuid: [u8; 16],
    pub generation: u64,
    pub ring_bytes: u64,
    /// Where replay starts: position, sequence of the batch there, checksum of the one before.
    pub position: u64,
    pub sequence: u64,
    pub previous_crc: u32,
    pub checkpoint: Checkpoint,
}

/// What the journal's owner keeps with the start of replay, changed together with it in one atomic write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint(pub [u64; CHECKPOINT_WORDS]);

pub const CHECKPOINT_WORDS: usize = 5;
const CHECKPOINT_AT: usize = 72;

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"))
}

/// CRC-32 with the four bytes at `hole` taken as zero.
fn crc_without(bytes: &[u8], hole: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..hole]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[hole + 4..]);
    hasher.finalize()
}

impl Superblock {
    pub fn encode(&self) -> Buf {
        let mut b = BufMut::zeroed(BLOCK_BYTES);
        b[0..8].copy_from_slice(&SUPERBLOCK_MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[16..32].copy_from_slice(&self.uuid);
        b[32..40].copy_from_slice(&self.generation.to_le_bytes());
        b[40..48].copy_from_slice(&self.ring_bytes.to_le_bytes());
        b[48..56].copy_from_slice(&self.position.to_le_bytes());
        b[56..64].copy_from_slice(&self.sequence.to_le_bytes());
        b[64..68].copy_from_slice(&self.previous_crc.to_le_bytes());
        for (i, word) in self.checkpoint.0.iter().enumerate() {
            b[CHECKPOINT_AT + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc_without(&b, 12);
        b[12..16].copy_from_slice(&crc.to_le_bytes());
        b.freeze()
    }

    pub fn decode(b: &[u8]) -> Result<Superblock, BadSuperblock> {
        let damaged = |what: String| Err(BadSuperblock::Damaged(what));
        if b[0..8] != SUPERBLOCK_MAGIC {
            return damaged(format!("magic {:02x?}", &b[0..8]));
        }
        let (found, computed) = (u32_at(b, 12), crc_without(b, 12));
        if found != computed {
            return damaged(format!("checksum {found:08x} over bytes that sum to {computed:08x}"));
        }
        if u32_at(b, 8) != VERSION {
            return Err(BadSuperblock::Format(u32_at(b, 8)));
        }
        let block = Superblock {
            uuid: b[16..32].try_into().expect("16 bytes"),
            generation: u64_at(b, 32),
            ring_bytes: u64_at(b, 40),
            position: u64_at(b, 48),
            sequence: u64_at(b, 56),
            previous_crc: u32_at(b, 64),
            checkpoint: Checkpoint(std::array::from_fn(|i| u64_at(b, CHECKPOINT_AT + 8 * i))),
        };
        if block.ring_bytes == 0 || block.ring_bytes % BLOCK_BYTES as u64 != 0 {
            return damaged(format!("ring of {} bytes", block.ring_bytes));
        }
        Ok(block)
    }
}

/// A record's metadata: that of small writes takes no memory of its own.
pub type RecordMeta = SmallVec<[u8; 72]>;

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Descriptor {
    pub meta: RecordMeta,
    pub payload_bytes: u32,
    pub payload_crc: u32,
    pub check: PayloadCheck,
}

impl Descriptor {
    pub fn new(meta: &[u8], payload: &[u8], check: PayloadCheck) -> Descriptor {
        let payload_crc = match check {
            PayloadCheck::Journal => crc32fast::hash(payload),
            PayloadCheck::Caller => 0,
        };
        Descriptor {
            meta: RecordMeta::from_slice(meta),
            payload_bytes: payload.len() as u32,
            payload_crc,
            check,
        }
    }

    fn encoded_bytes(&self) -> usize {
        DESCRIPTOR_HEAD_BYTES + self.meta.len().next_multiple_of(8)
    }
}

/// Blocks that the header of a batch with these records takes.
pub(super) fn header_blocks<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> usize {
    (BATCH_HEAD_BYTES + descriptors.map(Descriptor::encoded_bytes).sum::<usize>()).div_ceil(BLOCK_BYTES)
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct BatchHeader {
    pub uuid: [u8; 16],
    pub sequence: u64,
    pub position: u64,
    pub previous_crc: u32,
    /// All batches up to this sequence were durable when this one was written.
    pub durable: u64,
    pub payload_bytes: u64,
    /// Random number of the process's life: a batch left over from before a crash can't link to a new one that
    /// happens to hold the same records.
    pub life: u32,
    pub descriptors: Vec<Descriptor>,
}

/// What the first block of a batch tells before the rest is read.
pub(super) struct BatchStart {
    pub header_blocks: usize,
    pub payload_bytes: u64,
    pub sequence: u64,
    pub position: u64,
}

impl BatchHeader {
    /// The header blocks and their checksum.
    pub fn encode(&self) -> (Buf, u32) {
        let blocks = header_blocks(self.descriptors.iter());
        let mut b = BufMut::zeroed(blocks * BLOCK_BYTES);
        b[0..8].copy_from_slice(&BATCH_MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[16..32].copy_from_slice(&self.uuid);
        b[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        b[40..48].copy_from_slice(&self.position.to_le_bytes());
        b[48..52].copy_from_slice(&self.previous_crc.to_le_bytes());
        b[52..56].copy_from_slice(&(blocks as u32).to_le_bytes());
        b[56..64].copy_from_slice(&self.durable.to_le_bytes());
        b[64..72].copy_from_slice(&self.payload_bytes.to_le_bytes());
        b[72..76].copy_from_slice(&(self.descriptors.len() as u32).to_le_bytes());
        b[76..80].copy_from_slice(&self.life.to_le_bytes());
        let mut at = BATCH_HEAD_BYTES;
        for d in &self.descriptors {
            b[at..at + 2].copy_from_slice(&(d.meta.len() as u16).to_le_bytes());
            b[at + 2] = u8::from(d.check == PayloadCheck::Caller);
            b[at + 4..at + 8].copy_from_slice(&d.payload_bytes.to_le_bytes());
            b[at + 8..at + 12].copy_from_slice(&d.payload_crc.to_le_bytes());
            let meta_at = at + DESCRIPTOR_HEAD_BYTES;
            b[meta_at..meta_at + d.meta.len()].copy_from_slice(&d.meta);
            at += d.encoded_bytes();
        }
        let crc = crc_without(&b, 12);
        b[12..16].copy_from_slice(&crc.to_le_bytes());
        (b.freeze(), crc)
    }

    /// Looks at the first block of what may be a batch of this journal.
    pub fn peek(block: &[u8], uuid: &[u8; 16], ring_bytes: u64) -> Option<BatchStart> {
        if block[0..8] != BATCH_MAGIC || u32_at(block, 8) != VERSION || block[16..32] != uuid[..] {
            return None;
        }
        let start = BatchStart {
            header_blocks: u32_at(block, 52) as usize,
            payload_bytes: u64_at(block, 64),
            sequence: u64_at(block, 32),
            position: u64_at(block, 40),
        };
        let header_bytes = start.header_blocks as u64 * BLOCK_BYTES as u64;
        let sane = start.header_blocks > 0
            && start.payload_bytes % BLOCK_BYTES as u64 == 0
            && header_bytes.saturating_add(start.payload_bytes) <= ring_bytes;
        sane.then_some(start)
    }

    /// Decodes the header blocks; the second value is their checksum.
    pub fn decode(b: &[u8]) -> Result<(BatchHeader, u32), String> {
        let (found, computed) = (u32_at(b, 12), crc_without(b, 12));
        if found != computed {
            return Err(format!("header checksum {found:08x} over bytes that sum to {computed:08x}"));
        }
        let mut descriptors = Vec::new();
        let mut at = BATCH_HEAD_BYTES;
        for number in 0..u32_at(b, 72) {
            let short = || format!("descriptor {number} lies beyond the header");
            let head = b.get(at..at + DESCRIPTOR_HEAD_BYTES).ok_or_else(short)?;
            let meta_len = u16::from_le_bytes([head[0], head[1]]) as usize;
            let meta_at = at + DESCRIPTOR_HEAD_BYTES;
            let descriptor = Descriptor {
                meta: RecordMeta::from_slice(b.get(meta_at..meta_at + meta_len).ok_or_else(short)?),
                payload_bytes: u32_at(head, 4),
                payload_crc: u32_at(head, 8),
                check: if head[2] == 1 { PayloadCheck::Caller } else { PayloadCheck::Journal },
            };
            at += descriptor.encoded_bytes();
            descriptors.push(descriptor);
        }
        let header = BatchHeader {
            uuid: b[16..32].try_into().expect("16 bytes"),
            sequence: u64_at(b, 32),
            position: u64_at(b, 40),
            previous_crc: u32_at(b, 48),
            durable: u64_at(b, 56),
            payload_bytes: u64_at(b, 64),
            life: u32_at(b, 76),
            descriptors,
        };
        let sum: u64 = header
            .descriptors
            .iter()
            .map(|d| (d.payload_bytes as usize).next_multiple_of(BLOCK_BYTES) as u64)
            .sum();
        if sum != header.payload_bytes {
            return Err(format!("payloads of {sum} bytes in a batch of {}", header.payload_bytes));
        }
        Ok((header, computed))
    }
}
