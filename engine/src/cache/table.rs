//! Table pages of a cache file: which unit each slot holds. Little endian; docs/formats.md, "Read cache".
//!
//! | page bytes | field |
//! |---|---|
//! | 0..8 | `PSRCACHE` |
//! | 8..12, 12..16 | version 1; CRC-32 of the page with these four bytes zero |
//! | 16..32 | id of the cache |
//! | 32..40, 40..48 | number of the page; slots of the file |
//! | 64.. | 168 entries of 24 bytes |
//!
//! | entry bytes | field |
//! |---|---|
//! | 0..4 | unit of `data` + 1; 0: empty |
//! | 4..6, 6..8 | blocks that are there, a bit each; 0 |
//! | 8..16, 16..24 | chunk; round of the map page that described the unit |

use super::{SLOT_BYTES, Version};
use shards::{Buf, BufMut};
use wire::{BLOCK_BYTES, ChunkId};

const MAGIC: [u8; 8] = *b"PSRCACHE";
const VERSION: u32 = 1;
const ENTRIES_AT: usize = 64;
const ENTRY_BYTES: usize = 24;
/// Slots that one page describes.
pub(super) const PAGE_SLOTS: u64 = 168;
const _: () = assert!(ENTRIES_AT + ENTRY_BYTES * PAGE_SLOTS as usize == BLOCK_BYTES);

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// Within the page.
    pub slot: u64,
    pub unit: u32,
    pub have: u16,
    pub version: Version,
}

/// Slots of a file of `bytes`, table included.
pub(super) fn slots_in(bytes: u64) -> usize {
    let per_page = PAGE_SLOTS * SLOT_BYTES + BLOCK_BYTES as u64;
    let (pages, rest) = (bytes / per_page, bytes % per_page);
    let more = rest.saturating_sub(BLOCK_BYTES as u64) / SLOT_BYTES;
    (pages * PAGE_SLOTS + more).min(u64::from(u32::MAX)) as usize
}

pub(super) fn encode(id: &[u8; 16], page: u64, slots: u64, entries: impl Iterator<Item = Entry>) -> Buf {
    let mut b = BufMut::zeroed(BLOCK_BYTES);
    b[0..8].copy_from_slice(&MAGIC);
    b[8..12].copy_from_slice(&VERSION.to_le_bytes());
    b[16..32].copy_from_slice(id);
    b[32..40].copy_from_slice(&page.to_le_bytes());
    b[40..48].copy_from_slice(&slots.to_le_bytes());
    for entry in entries {
        let e = &mut b[ENTRIES_AT + entry.slot as usize * ENTRY_BYTES..][..ENTRY_BYTES];
        e[0..4].copy_from_slice(&(entry.unit + 1).to_le_bytes());
        e[4..6].copy_from_slice(&entry.have.to_le_bytes());
        e[8..16].copy_from_slice(&entry.version.chunk.0.to_le_bytes());
        e[16..24].copy_from_slice(&entry.version.round.to_le_bytes());
    }
    let crc = wire::crc(&b);
    b[12..16].copy_from_slice(&crc.to_le_bytes());
    b.freeze()
}

/// The entries of a page; `None` for anything but a whole page of this cache in this place.
pub(super) fn decode(b: &[u8], id: &[u8; 16], page: u64, slots: u64) -> Option<Vec<Entry>> {
    let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"));
    let ours = b[0..8] == MAGIC && u32_at(8) == VERSION && b[16..32] == id[..];
    if !ours || (u64_at(32), u64_at(40)) != (page, slots) || u32_at(12) != crc_without_itself(b) {
        return None;
    }
    let entry = |slot: u64| {
        let at = ENTRIES_AT + slot as usize * ENTRY_BYTES;
        let unit = u32_at(at).checked_sub(1)?;
        let have = u16::from_le_bytes([b[at + 4], b[at + 5]]);
        let version = Version { chunk: ChunkId(u64_at(at + 8)), round: u64_at(at + 16) };
        Some(Entry { slot, unit, have, version })
    };
    Some((0..PAGE_SLOTS).filter_map(entry).collect())
}

fn crc_without_itself(b: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&b[..12]);
    hasher.update(&[0; 4]);
    hasher.update(&b[16..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_round_trip_are_pinned_and_damage_is_seen() {
        let version = Version { chunk: ChunkId(0x1122), round: 77 };
        let entries = [0, 167].map(|slot| Entry { slot, unit: slot as u32 + 4, have: 0x8001, version });
        let id = [9; 16];
        let page = encode(&id, 3, 1000, entries.into_iter());
        assert_eq!(decode(&page, &id, 3, 1000).unwrap(), entries);
        assert_eq!(&page[..12], b"PSRCACHE\x01\0\0\0");
        assert_eq!((page[16], page[32], page[40], page[41]), (9, 3, 0xe8, 3));
        let golden = [5, 0, 0, 0, 1, 0x80, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(page[64..88], golden);
        let others = [(&[8; 16], 3, 1000), (&id, 4, 1000), (&id, 3, 999)];
        assert!(
            others.iter().all(|(id, page_number, slots)| decode(&page, id, *page_number, *slots).is_none())
        );
        for at in [0, 9, 13, 20, 50, 70, 4095] {
            let mut bad = page.to_vec();
            bad[at] ^= 4;
            assert_eq!(decode(&bad, &id, 3, 1000), None, "byte {at}");
        }
        assert_eq!(decode(&[0; 4096], &id, 3, 1000), None);
    }

    #[test]
    fn table_and_slots_fit_the_file() {
        for bytes in [4 << 20, 5_000_000, 10 << 30, 100_000_000_000] {
            let slots = slots_in(bytes) as u64;
            let needed = |slots: u64| slots.div_ceil(PAGE_SLOTS) * BLOCK_BYTES as u64 + slots * SLOT_BYTES;
            assert!(needed(slots) <= bytes && needed(slots + 1) > bytes, "{bytes}");
        }
    }
}
