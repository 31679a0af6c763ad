//! The cache file: a superblock, a table with an entry per slot, and the slots.
//!
//! | superblock bytes | field |
//! |---|---|
//! | 0..8, 8..12, 12..16 | `PSRCACHE`; version 1; CRC-32 of the page with these four bytes zero |
//! | 16..32 | identity of the cluster |
//! | 32..40, 40..48 | generation; 1 = the table is valid, 0 = in use (then the cache is empty) |
//! | 48..52 | slots |
//!
//! | table page bytes | field |
//! |---|---|
//! | 0..8, 8..12, 12..16 | `PSRCTABL`; CRC-32 of the page with these four bytes zero; number of the page |
//! | 16..24 | generation: of the superblock it belongs to |
//! | 32.. | 42 entries of 96 bytes |
//!
//! | entry bytes | field |
//! |---|---|
//! | 0..8, 8..16, 16..24 | file (0: nothing here), version (its newest write lease), block (64 KiB each) |
//! | 24..28 | how many 4 KiB of it are there, 1 to 16 |
//! | 32..96 | CRC-32 of each 4 KiB |

use super::BLOCK_BYTES;
use shards::{Buf, BufMut};
use wire::{BlockCrc, FileId, LeaseId};

pub const PAGE_BYTES: usize = shards::BLOCK_BYTES;
const SUPER_MAGIC: &[u8; 8] = b"PSRCACHE";
const TABLE_MAGIC: &[u8; 8] = b"PSRCTABL";
const VERSION: u32 = 1;
const ENTRIES_AT: usize = 32;
const ENTRY_BYTES: usize = 96;
const ENTRIES: usize = (PAGE_BYTES - ENTRIES_AT) / ENTRY_BYTES;
const MOST_SUMS: usize = 16;
const _: () = assert!(ENTRIES == 42 && 32 + 4 * MOST_SUMS == ENTRY_BYTES);
const _: () = assert!(MOST_SUMS * PAGE_BYTES == BLOCK_BYTES as usize);

/// Below this a cache is not worth its file.
pub const LEAST_BYTES: u64 = 1 << 20;

pub type ClusterIdentity = [u8; 16];

/// Where things stand in a file of a given size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub slots: u32,
    pub table_pages: usize,
    data_at: u64,
}

impl Geometry {
    pub fn of(file_bytes: u64) -> Option<Geometry> {
        let most = u32::try_from(file_bytes / BLOCK_BYTES).unwrap_or(u32::MAX / 2);
        // The head takes one slot in 683, and two for rounding.
        let slots = most.checked_sub(most / 600 + 2).filter(|n| *n > 0 && file_bytes >= LEAST_BYTES)?;
        let table_pages = (slots as usize).div_ceil(ENTRIES);
        let data_at = ((1 + table_pages) * PAGE_BYTES) as u64;
        let geometry = Geometry { slots, table_pages, data_at: data_at.next_multiple_of(BLOCK_BYTES) };
        (geometry.slot_at(slots) <= file_bytes).then_some(geometry)
    }

    pub fn slot_at(&self, slot: u32) -> u64 {
        self.data_at + u64::from(slot) * BLOCK_BYTES
    }

    /// Superblock and table together.
    pub fn head_bytes(&self) -> usize {
        (1 + self.table_pages) * PAGE_BYTES
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    pub cluster: ClusterIdentity,
    pub generation: u64,
    pub table_is_valid: bool,
    pub slots: u32,
}

/// What a slot holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    pub file: FileId,
    pub version: LeaseId,
    pub block: u64,
    pub sums: Vec<BlockCrc>,
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

/// The CRC of a page whose own field stands at `at`.
fn crc_without(page: &[u8], at: usize) -> u32 {
    let mut copy = page.to_vec();
    copy[at..at + 4].fill(0);
    wire::crc(&copy)
}

impl Superblock {
    pub fn encode(&self) -> Buf {
        let mut page = BufMut::zeroed(PAGE_BYTES);
        page[..8].copy_from_slice(SUPER_MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&self.cluster);
        page[32..40].copy_from_slice(&self.generation.to_le_bytes());
        page[40..48].copy_from_slice(&u64::from(self.table_is_valid).to_le_bytes());
        page[48..52].copy_from_slice(&self.slots.to_le_bytes());
        let crc = crc_without(&page, 12);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        page.freeze()
    }

    pub fn decode(page: &[u8]) -> Option<Superblock> {
        let whole = page.len() >= PAGE_BYTES
            && &page[..8] == SUPER_MAGIC
            && u32_at(page, 8) == VERSION
            && u32_at(page, 12) == crc_without(&page[..PAGE_BYTES], 12);
        whole.then(|| Superblock {
            cluster: page[16..32].try_into().expect("sixteen bytes"),
            generation: u64_at(page, 32),
            table_is_valid: u64_at(page, 40) == 1,
            slots: u32_at(page, 48),
        })
    }
}

/// All pages of the table.
pub fn encode_table(entries: &[Option<Entry>], generation: u64) -> Buf {
    let pages = entries.len().div_ceil(ENTRIES);
    let mut table = BufMut::zeroed(pages * PAGE_BYTES);
    for (number, (page, entries)) in
        table.chunks_exact_mut(PAGE_BYTES).zip(entries.chunks(ENTRIES)).enumerate()
    {
        page[..8].copy_from_slice(TABLE_MAGIC);
        page[12..16].copy_from_slice(&(number as u32).to_le_bytes());
        page[16..24].copy_from_slice(&generation.to_le_bytes());
        for (at, entry) in entries.iter().enumerate() {
            if let Some(entry) = entry {
                let at = ENTRIES_AT + at * ENTRY_BYTES;
                encode_entry(&mut page[at..at + ENTRY_BYTES], entry);
            }
        }
        let crc = crc_without(page, 8);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    table.freeze()
}

fn encode_entry(out: &mut [u8], entry: &Entry) {
    out[..8].copy_from_slice(&entry.file.0.to_le_bytes());
    out[8..16].copy_from_slice(&entry.version.0.to_le_bytes());
    out[16..24].copy_from_slice(&entry.block.to_le_bytes());
    out[24..28].copy_from_slice(&(entry.sums.len() as u32).to_le_bytes());
    for (sum, out) in entry.sums.iter().zip(out[32..].chunks_exact_mut(4)) {
        out.copy_from_slice(&sum.0.to_le_bytes());
    }
}

/// Entries by slot; those of damaged pages and of other generations are left out.
pub fn decode_table(table: &[u8], generation: u64, slots: u32) -> Vec<Option<Entry>> {
    let mut entries = Vec::with_capacity(slots as usize);
    for (number, page) in table.chunks_exact(PAGE_BYTES).enumerate() {
        let whole = &page[..8] == TABLE_MAGIC
            && u32_at(page, 8) == crc_without(page, 8)
            && u32_at(page, 12) == number as u32
            && u64_at(page, 16) == generation;
        let entry = |at: usize| decode_entry(&page[ENTRIES_AT + at * ENTRY_BYTES..][..ENTRY_BYTES]);
        entries.extend((0..ENTRIES).map(|at| if whole { entry(at) } else { None }));
    }
    entries.truncate(slots as usize);
    entries
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let (file, count) = (u64_at(bytes, 0), u32_at(bytes, 24) as usize);
    let fits = file != 0 && (1..=MOST_SUMS).contains(&count);
    fits.then(|| Entry {
        file: FileId(file),
        version: LeaseId(u64_at(bytes, 8)),
        block: u64_at(bytes, 16),
        sums: (0..count).map(|at| BlockCrc(u32_at(bytes, 32 + 4 * at))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        let sums = (0..1 + n % 16).map(|s| BlockCrc((n * 100 + s) as u32)).collect();
        Entry { file: FileId(n + 2), version: LeaseId(n + 3), block: n * 7, sums }
    }

    #[test]
    fn the_file_holds_what_its_geometry_says() {
        for bytes in [1 << 20, (1 << 20) + 4096, 8 << 20, 1 << 30, 100 << 30] {
            let g = Geometry::of(bytes).unwrap();
            assert!(g.head_bytes() as u64 <= g.slot_at(0) && g.slot_at(g.slots) <= bytes, "{bytes}: {g:?}");
            assert!(u64::from(g.slots) * BLOCK_BYTES > bytes * 8 / 10, "{bytes}: {g:?}");
        }
        assert_eq!((Geometry::of(0), Geometry::of(LEAST_BYTES - 1)), (None, None));
    }

    #[test]
    fn what_is_written_is_read_back_and_damage_is_left_out() {
        let head = Superblock { cluster: [7; 16], generation: 9, table_is_valid: true, slots: 100 };
        let page = head.encode();
        assert_eq!(Superblock::decode(&page), Some(head));
        let entries: Vec<Option<Entry>> = (0..100).map(|n| (n % 3 != 0).then(|| entry(n))).collect();
        let table = encode_table(&entries, 9);
        assert_eq!(table.len(), 3 * PAGE_BYTES);
        assert_eq!(decode_table(&table, 9, 100), entries);
        assert!(decode_table(&table, 8, 100).iter().all(Option::is_none), "a table of an earlier life");
        for at in (0..table.len()).step_by(97) {
            let mut damaged = table.to_vec();
            damaged[at] ^= 0x10;
            let read = decode_table(&damaged, 9, 100);
            let lost = at / PAGE_BYTES * ENTRIES..(at / PAGE_BYTES + 1) * ENTRIES;
            for (slot, (read, entry)) in read.iter().zip(&entries).enumerate() {
                assert!(
                    if lost.contains(&slot) { read.is_none() } else { read == entry },
                    "byte {at}, slot {slot}"
                );
            }
        }
        for at in (0..PAGE_BYTES).step_by(61) {
            let mut damaged = page.to_vec();
            damaged[at] ^= 1;
            assert_eq!(Superblock::decode(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn golden_bytes() {
        let head = Superblock { cluster: [7; 16], generation: 9, table_is_valid: true, slots: 100 };
        let table = encode_table(&[Some(entry(1))], 9);
        assert_eq!((wire::crc(&head.encode()), wire::crc(&table)), (GOLDEN_HEAD, GOLDEN_TABLE));
    }

    const GOLDEN_HEAD: u32 = 4_138_252_852;
    const GOLDEN_TABLE: u32 = 2_760_356_188;
}
