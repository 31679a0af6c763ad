//! Pages of the `meta` file: a header per chunk and map pages, each with two places on disk.
//!
//! A page is written to the place its version's parity names, so a torn write leaves the version before. Layouts are
//! in docs/formats.md.

use super::{ChunkInfo, MOST_PAGES, MOST_TAIL, PAGE_BLOCKS, PAGE_UNITS};
use shards::{Buf, BufMut};
use wire::{BLOCK_BYTES, BlockCrc, ChunkId, Epoch, LeaseId, Sequence, TailEntry};

pub(super) const HEADER_MAGIC: [u8; 8] = *b"PSCHUNK1";
pub(super) const PAGE_MAGIC: [u8; 8] = *b"PSCMAP_1";
/// Bytes of `meta` that belong to one chunk: header and all pages, two places each.
pub(super) const SLOT_BYTES: u64 = (1 + MOST_PAGES as u64) * 2 * BLOCK_BYTES as u64;
const UNITS_AT: usize = 64;
const CRCS_AT: usize = UNITS_AT + 4 * PAGE_UNITS as usize;
const TAIL_AT: usize = 128;

const _: () = assert!(CRCS_AT + 4 * PAGE_BLOCKS as usize <= BLOCK_BYTES);
const _: () = assert!(TAIL_AT + 16 * MOST_TAIL <= BLOCK_BYTES);

/// Offset in `meta` of a page's place; page 0 is the header, map page n is 1 + n.
pub(super) fn place(slot: u32, page: u32, version: u64) -> u64 {
    u64::from(slot) * SLOT_BYTES + (u64::from(page) * 2 + version % 2) * BLOCK_BYTES as u64
}

/// Where 2 MiB of a chunk lie, and the checksums of their blocks.
pub(super) struct Page {
    /// 0: none; else unit + 1.
    units: [u32; PAGE_UNITS as usize],
    crcs: Box<[BlockCrc; PAGE_BLOCKS as usize]>,
    pub version: u64,
    pub dirty: bool,
}

impl Default for Page {
    fn default() -> Self {
        Page {
            units: [0; PAGE_UNITS as usize],
            crcs: Box::new([BlockCrc::HOLE; PAGE_BLOCKS as usize]),
            version: 0,
            dirty: true,
        }
    }
}

impl Page {
    pub fn unit(&self, unit: u32) -> Option<u32> {
        self.units[unit as usize].checked_sub(1)
    }

    /// Sets the place of a unit and returns the one before.
    pub fn set_unit(&mut self, unit: u32, place: Option<u32>) -> Option<u32> {
        self.dirty = true;
        std::mem::replace(&mut self.units[unit as usize], place.map_or(0, |p| p + 1)).checked_sub(1)
    }

    pub fn units(&self) -> impl Iterator<Item = u32> + '_ {
        self.units.iter().filter_map(|u| u.checked_sub(1))
    }

    pub fn crc(&self, block: u32) -> BlockCrc {
        self.crcs[block as usize]
    }

    pub fn set_crc(&mut self, block: u32, crc: BlockCrc) {
        self.dirty = true;
        self.crcs[block as usize] = crc;
    }

    pub fn encode(&self, chunk: ChunkId, number: u32) -> Buf {
        let mut b = BufMut::zeroed(BLOCK_BYTES);
        b[0..8].copy_from_slice(&PAGE_MAGIC);
        b[16..24].copy_from_slice(&chunk.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.version.to_le_bytes());
        b[32..36].copy_from_slice(&number.to_le_bytes());
        for (i, unit) in self.units.iter().enumerate() {
            b[UNITS_AT + 4 * i..][..4].copy_from_slice(&unit.to_le_bytes());
        }
        for (i, crc) in self.crcs.iter().enumerate() {
            b[CRCS_AT + 4 * i..][..4].copy_from_slice(&crc.0.to_le_bytes());
        }
        seal(b)
    }

    pub fn decode(b: &[u8], chunk: ChunkId, number: u32) -> Option<Page> {
        if !is_whole(b, &PAGE_MAGIC) || u64_at(b, 16) != chunk.0 || u32_at(b, 32) != number {
            return None;
        }
        let mut page = Page { version: u64_at(b, 24), dirty: false, ..Page::default() };
        for (i, unit) in page.units.iter_mut().enumerate() {
            *unit = u32_at(b, UNITS_AT + 4 * i);
        }
        for (i, crc) in page.crcs.iter_mut().enumerate() {
            *crc = BlockCrc(u32_at(b, CRCS_AT + 4 * i));
        }
        Some(page)
    }
}

/// The header page of a chunk.
pub(super) struct Header {
    pub chunk: ChunkId,
    pub version: u64,
    pub info: ChunkInfo,
    /// Which map pages may be there: all that existed when the header was written.
    pub pages: u128,
    /// Which of them were durable before: they must be there. The others were written together with this header, so
    /// a crash may have taken them, and then the journal still has what they say.
    pub sure_pages: u128,
}

impl Header {
    pub fn encode(&self) -> Buf {
        let mut b = BufMut::zeroed(BLOCK_BYTES);
        let info = &self.info;
        assert!(info.tail.len() <= MOST_TAIL, "tail of {} entries", info.tail.len());
        b[0..8].copy_from_slice(&HEADER_MAGIC);
        b[16..24].copy_from_slice(&self.chunk.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.version.to_le_bytes());
        b[32..36].copy_from_slice(&info.epoch.0.to_le_bytes());
        b[36..40].copy_from_slice(&(info.tail.len() as u32).to_le_bytes());
        b[40..48].copy_from_slice(&info.last_sequence.0.to_le_bytes());
        b[48..56].copy_from_slice(&info.committed.0.to_le_bytes());
        b[56..64].copy_from_slice(&info.largest_lease.0.to_le_bytes());
        b[64..80].copy_from_slice(&self.pages.to_le_bytes());
        b[80..96].copy_from_slice(&self.sure_pages.to_le_bytes());
        for (i, t) in info.tail.iter().enumerate() {
            let at = TAIL_AT + 16 * i;
            b[at..at + 8].copy_from_slice(&t.sequence.0.to_le_bytes());
            b[at + 8..at + 12].copy_from_slice(&t.first_block.to_le_bytes());
            b[at + 12..at + 16].copy_from_slice(&t.block_count.to_le_bytes());
        }
        seal(b)
    }

    /// `None` for anything that is not a whole header, also for places never used.
    pub fn decode(b: &[u8]) -> Option<Header> {
        if !is_whole(b, &HEADER_MAGIC) {
            return None;
        }
        let count = u32_at(b, 36) as usize;
        if count > MOST_TAIL {
            return None;
        }
        let tail = (0..count).map(|i| TAIL_AT + 16 * i).map(|at| TailEntry {
            sequence: Sequence(u64_at(b, at)),
            first_block: u32_at(b, at + 8),
            block_count: u32_at(b, at + 12),
        });
        Some(Header {
            chunk: ChunkId(u64_at(b, 16)),
            version: u64_at(b, 24),
            info: ChunkInfo {
                epoch: Epoch(u32_at(b, 32)),
                last_sequence: Sequence(u64_at(b, 40)),
                committed: Sequence(u64_at(b, 48)),
                tail: tail.collect(),
                largest_lease: LeaseId(u64_at(b, 56)),
            },
            pages: u128::from_le_bytes(b[64..80].try_into().expect("16 bytes")),
            sure_pages: u128::from_le_bytes(b[80..96].try_into().expect("16 bytes")),
        })
    }
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"))
}

/// Puts the checksum (bytes 8..12, over the page with these taken as zero) and freezes.
fn seal(mut b: BufMut) -> Buf {
    let crc = wire::crc(&b);
    b[8..12].copy_from_slice(&crc.to_le_bytes());
    b.freeze()
}

fn is_whole(b: &[u8], magic: &[u8; 8]) -> bool {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&b[..8]);
    hasher.update(&[0; 4]);
    hasher.update(&b[12..]);
    b[..8] == magic[..] && u32_at(b, 8) == hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_headers_round_trip_and_are_pinned() {
        let mut page = Page { version: 7, ..Page::default() };
        page.set_unit(31, Some(5));
        page.set_crc(511, BlockCrc(0xdead_beef));
        let bytes = page.encode(ChunkId(9), 3);
        assert_eq!(bytes[..8], PAGE_MAGIC);
        assert_eq!(bytes[64 + 4 * 31..][..4], [6, 0, 0, 0]);
        assert_eq!(bytes[192 + 4 * 511..][..4], [0xef, 0xbe, 0xad, 0xde]);
        let back = Page::decode(&bytes, ChunkId(9), 3).unwrap();
        assert_eq!((back.unit(31), back.crc(511), back.version), (Some(5), BlockCrc(0xdead_beef), 7));
        assert!(Page::decode(&bytes, ChunkId(8), 3).is_none(), "another chunk's page");
        assert!(Page::decode(&bytes, ChunkId(9), 2).is_none(), "in another place");

        let tail = vec![TailEntry { sequence: Sequence(5), first_block: 1, block_count: 2 }];
        let info = ChunkInfo { epoch: Epoch(2), tail, last_sequence: Sequence(5), ..ChunkInfo::default() };
        let bytes =
            Header { chunk: ChunkId(1), version: 4, info: info.clone(), pages: 5, sure_pages: 4 }.encode();
        let back = Header::decode(&bytes).unwrap();
        assert_eq!((back.chunk, back.version, back.info), (ChunkId(1), 4, info));
        assert_eq!((back.pages, back.sure_pages), (5, 4));
        let mut torn = bytes.to_vec();
        torn[200] ^= 1;
        assert!(Header::decode(&torn).is_none());
    }
}
