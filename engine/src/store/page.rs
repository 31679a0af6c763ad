//! Pages of the metadata files `index`, `maps`, `units` and `shares`: 4 KiB each, with two places on disk.
//!
//! Every page carries the number of the round that wrote it (apply.rs). A round writes each page to the place that does
//! not hold the last committed version, and becomes valid as a whole when the journal's checkpoint names it.
//!
//! The other place holds an older version that is whole as well, so a damaged page must not quietly become what it was.
//! Which place of a map page is valid stands in its chunk's index entry. Of the other files' pages the newest committed
//! version is taken, and the checkpoint has a sum over the rounds of all their pages ([`mark`]) that proves it to be the
//! newest there was. Layouts are in docs/formats.md.

use super::{ChunkInfo, MOST_PAGES, PAGE_BLOCKS, PAGE_UNITS, UNIT_BLOCKS, merged_to};
use shards::sabotage::{Sabotage, on};
use shards::{Buf, BufMut};
use wire::{BLOCK_BYTES, BlockCrc, ChunkId, Epoch, LeaseId, Sequence, TailEntry};

/// Which file a page belongs to: its magic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PageKind {
    Index,
    Map,
    Units,
    Shares,
}

impl PageKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            PageKind::Index => b"PSINDEX3",
            PageKind::Map => b"PSCMAP_2",
            PageKind::Units => b"PSUNITS2",
            PageKind::Shares => b"PSSHARE1",
        }
    }

    pub fn file(self) -> &'static str {
        match self {
            PageKind::Index => "index",
            PageKind::Map => "maps",
            PageKind::Units => "units",
            PageKind::Shares => "shares",
        }
    }
}

/// Number of a write-back round; grows for ever. 0: none yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Round(pub u64);

pub(super) const BODY_AT: usize = 64;
const OWNER_AT: usize = 32;
/// Bytes of a page's two places.
pub(super) const PAIR_BYTES: usize = 2 * BLOCK_BYTES;

/// Chunks in one page of `index`, and bytes of each entry.
pub(super) const INDEX_ENTRIES: u32 = 31;
const ENTRY_BYTES: usize = 128;
const PLACES_AT: usize = 56 + 16 * STORED_TAIL;
/// Entries of a chunk's tail that are kept on disk; more are merged into larger ranges.
const STORED_TAIL: usize = 3;
/// Units in one page of `units`, a bit each.
pub(super) const UNITS_PER_PAGE: u32 = ((BLOCK_BYTES - BODY_AT) * 8) as u32;

/// Stands for the checksum of a block whose real one is lost, in a unit that has no place: nothing matches but by chance.
const LOST: BlockCrc = BlockCrc(u32::MAX);

const CRCS_AT: usize = BODY_AT + 4 * PAGE_UNITS as usize;
const _: () = assert!(CRCS_AT + 4 * PAGE_BLOCKS as usize <= BLOCK_BYTES);
const _: () = assert!(BODY_AT + ENTRY_BYTES * INDEX_ENTRIES as usize <= BLOCK_BYTES);
const _: () = assert!(UNITS_PER_PAGE % 64 == 0);
const _: () = assert!(PLACES_AT + 16 <= ENTRY_BYTES);

/// Offset of a page's place (0 or 1) in its file.
pub(super) fn offset(number: u64, place: u8) -> u64 {
    number * PAIR_BYTES as u64 + u64::from(place) * BLOCK_BYTES as u64
}

/// Number in `maps` of map page `page` of the chunk in `slot`.
pub(super) fn map_number(slot: u32, page: u32) -> u64 {
    u64::from(slot) * u64::from(MOST_PAGES) + u64::from(page)
}

/// The place of a page and the round that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub place: u8,
    pub round: Round,
}

impl Written {
    /// Of a page that is in memory only.
    pub const NEVER: Written = Written { place: 1, round: Round(0) };

    /// Where the next round writes the page.
    pub fn next(self, round: Round) -> Written {
        Written { place: 1 - self.place, round }
    }
}

/// Whether a place was never written, or what stands there is no committed version of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Zeros,
    Damaged,
}

impl Bad {
    pub fn text(self) -> &'static str {
        match self {
            Bad::Zeros => "zeros",
            Bad::Damaged => "no whole page that was committed",
        }
    }
}

/// Looks at one place of a page: the round of the committed version there.
pub(super) fn check(
    b: &[u8],
    kind: PageKind,
    number: u64,
    owner: ChunkId,
    committed: Round,
) -> Result<Round, Bad> {
    let round = Round(u64_at(b, 16));
    let ours = is_whole(b, kind.magic())
        && u64_at(b, 24) == number
        && u64_at(b, OWNER_AT) == owner.0
        && round <= committed;
    match ours {
        true => Ok(round),
        false if b.iter().all(|&b| b == 0) => Err(Bad::Zeros),
        false => Err(Bad::Damaged),
    }
}

/// Looks for the newest committed version of a page of another file than `maps` in its two places.
pub(super) fn find(pair: &[u8], kind: PageKind, number: u64, committed: Round) -> Result<Written, Bad> {
    let look = |place| check(body(pair, place), kind, number, ChunkId(0), committed);
    match (look(0), look(1)) {
        (Ok(first), Ok(second)) if second > first => Ok(Written { place: 1, round: second }),
        (Ok(round), _) => Ok(Written { place: 0, round }),
        (_, Ok(round)) => Ok(Written { place: 1, round }),
        (Err(Bad::Zeros), Err(Bad::Zeros)) => Err(Bad::Zeros),
        _ => Err(Bad::Damaged),
    }
}

/// What such a page adds (by xor) to the checkpoint's sum; nothing before it is written.
pub(super) fn mark(kind: PageKind, number: u64, round: Round) -> u64 {
    if round == Round(0) {
        return 0;
    }
    let mixed = [kind as u64, number, round.0].into_iter().fold(0u64, |sum, word| {
        let x = (sum ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ x >> 31
    });
    mixed.wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// Bytes of a page's place within its pair.
pub(super) fn body(pair: &[u8], place: u8) -> &[u8] {
    &pair[usize::from(place) * BLOCK_BYTES..][..BLOCK_BYTES]
}

fn seal(mut b: BufMut, kind: PageKind, round: Round, number: u64, owner: ChunkId) -> Buf {
    b[0..8].copy_from_slice(kind.magic());
    b[16..24].copy_from_slice(&round.0.to_le_bytes());
    b[24..32].copy_from_slice(&number.to_le_bytes());
    b[OWNER_AT..OWNER_AT + 8].copy_from_slice(&owner.0.to_le_bytes());
    let crc = wire::crc(&b);
    b[8..12].copy_from_slice(&crc.to_le_bytes());
    b.freeze()
}

fn is_whole(b: &[u8], magic: &[u8; 8]) -> bool {
    if b[..8] != magic[..] {
        return false;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&b[..8]);
    hasher.update(&[0; 4]);
    hasher.update(&b[12..]);
    u32_at(b, 8) == hasher.finalize()
}

/// Where 2 MiB of a chunk lie, and the checksums of their blocks.
pub(super) struct MapPage {
    /// 0: none; else unit + 1.
    units: [u32; PAGE_UNITS as usize],
    crcs: Box<[BlockCrc; PAGE_BLOCKS as usize]>,
    /// The round that wrote it last.
    pub round: Round,
    /// Looked at since the last sweep of the page cache; listed in it.
    pub used: bool,
    pub listed: bool,
}

impl Default for MapPage {
    fn default() -> Self {
        MapPage {
            units: [0; PAGE_UNITS as usize],
            crcs: Box::new([BlockCrc::HOLE; PAGE_BLOCKS as usize]),
            round: Round(0),
            used: true,
            listed: false,
        }
    }
}

impl MapPage {
    /// In place of a damaged page: nobody knows where its blocks are. Reading one is an error until it is written anew.
    pub fn lost() -> MapPage {
        MapPage { crcs: Box::new([LOST; PAGE_BLOCKS as usize]), ..MapPage::default() }
    }

    /// The same for another chunk, which is not on disk yet.
    pub fn for_clone(&self) -> MapPage {
        MapPage { units: self.units, crcs: self.crcs.clone(), ..MapPage::default() }
    }

    pub fn unit(&self, unit: u32) -> Option<u32> {
        self.units[unit as usize].checked_sub(1)
    }

    /// Sets the place of a unit and returns the one before.
    pub fn set_unit(&mut self, unit: u32, place: Option<u32>) -> Option<u32> {
        std::mem::replace(&mut self.units[unit as usize], place.map_or(0, |p| p + 1)).checked_sub(1)
    }

    pub fn units(&self) -> impl Iterator<Item = u32> + '_ {
        self.units.iter().filter_map(|u| u.checked_sub(1))
    }

    pub fn is_empty(&self) -> bool {
        (0..PAGE_UNITS).all(|unit| self.is_hole(unit))
    }

    /// Whether a unit has no place, and none of its blocks is lost.
    pub fn is_hole(&self, unit: u32) -> bool {
        let blocks = (unit * UNIT_BLOCKS) as usize..((unit + 1) * UNIT_BLOCKS) as usize;
        self.units[unit as usize] == 0 && self.crcs[blocks].iter().all(|&crc| crc == BlockCrc::HOLE)
    }

    /// Whether a unit may hold data, here or where it was copied from.
    pub fn may_hold(&self, unit: u32) -> bool {
        let lost = || !self.is_hole(unit) && !on(Sabotage::LostBlocksAreHoles);
        self.units[unit as usize] != 0 || lost()
    }

    pub fn crc(&self, block: u32) -> BlockCrc {
        self.crcs[block as usize]
    }

    pub fn set_crc(&mut self, block: u32, crc: BlockCrc) {
        self.crcs[block as usize] = crc;
    }

    pub fn encode(&self, chunk: ChunkId, number: u64, round: Round) -> Buf {
        let mut b = BufMut::zeroed(BLOCK_BYTES);
        for (i, unit) in self.units.iter().enumerate() {
            b[BODY_AT + 4 * i..][..4].copy_from_slice(&unit.to_le_bytes());
        }
        for (i, crc) in self.crcs.iter().enumerate() {
            b[CRCS_AT + 4 * i..][..4].copy_from_slice(&crc.0.to_le_bytes());
        }
        seal(b, PageKind::Map, round, number, chunk)
    }

    /// Decodes a page that [`check`] found good.
    pub fn decode(b: &[u8]) -> MapPage {
        let round = Round(u64_at(b, 16));
        let mut page = MapPage { round, listed: true, ..MapPage::default() };
        for (i, unit) in page.units.iter_mut().enumerate() {
            *unit = u32_at(b, BODY_AT + 4 * i);
        }
        for (i, crc) in page.crcs.iter_mut().enumerate() {
            *crc = BlockCrc(u32_at(b, CRCS_AT + 4 * i));
        }
        page
    }
}

/// What `index` says of a chunk.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct IndexEntry {
    pub chunk: ChunkId,
    pub info: ChunkInfo,
    /// Map pages that exist, a bit each, and in which of their places.
    pub pages: u128,
    pub places: u128,
}

/// Encodes page `number` of `index`; `None` for slots without a chunk.
pub(super) fn encode_index(number: u64, round: Round, entries: &[Option<IndexEntry>]) -> Buf {
    assert!(entries.len() <= INDEX_ENTRIES as usize);
    let mut b = BufMut::zeroed(BLOCK_BYTES);
    for (i, entry) in entries.iter().enumerate() {
        if let Some(entry) = entry {
            put_entry(&mut b[BODY_AT + ENTRY_BYTES * i..][..ENTRY_BYTES], entry);
        }
    }
    seal(b, PageKind::Index, round, number, ChunkId(0))
}

fn put_entry(b: &mut [u8], entry: &IndexEntry) {
    let info = &entry.info;
    let tail = merged_to(&info.tail, STORED_TAIL);
    b[0..8].copy_from_slice(&entry.chunk.0.to_le_bytes());
    b[8..12].copy_from_slice(&info.epoch.0.to_le_bytes());
    b[12] = 1;
    b[13] = tail.len() as u8;
    b[16..24].copy_from_slice(&info.last_sequence.0.to_le_bytes());
    b[24..32].copy_from_slice(&info.committed.0.to_le_bytes());
    b[32..40].copy_from_slice(&info.largest_lease.0.to_le_bytes());
    b[40..56].copy_from_slice(&entry.pages.to_le_bytes());
    b[PLACES_AT..PLACES_AT + 16].copy_from_slice(&entry.places.to_le_bytes());
    for (i, t) in tail.iter().enumerate() {
        let at = 56 + 16 * i;
        b[at..at + 8].copy_from_slice(&t.sequence.0.to_le_bytes());
        b[at + 8..at + 12].copy_from_slice(&t.first_block.to_le_bytes());
        b[at + 12..at + 16].copy_from_slice(&t.block_count.to_le_bytes());
    }
}

/// The entries of an index page that [`find`] found: place within the page and content.
pub(super) fn decode_index(b: &[u8]) -> impl Iterator<Item = (u32, IndexEntry)> + '_ {
    (0..INDEX_ENTRIES).filter_map(|i| {
        let b = &b[BODY_AT + ENTRY_BYTES * i as usize..][..ENTRY_BYTES];
        let count = usize::from(b[13]).min(STORED_TAIL);
        let tail = (0..count).map(|i| 56 + 16 * i).map(|at| TailEntry {
            sequence: Sequence(u64_at(b, at)),
            first_block: u32_at(b, at + 8),
            block_count: u32_at(b, at + 12),
        });
        let entry = || IndexEntry {
            chunk: ChunkId(u64_at(b, 0)),
            info: ChunkInfo {
                epoch: Epoch(u32_at(b, 8)),
                last_sequence: Sequence(u64_at(b, 16)),
                committed: Sequence(u64_at(b, 24)),
                tail: tail.collect(),
                largest_lease: LeaseId(u64_at(b, 32)),
            },
            pages: u128_at(b, 40),
            places: u128_at(b, PLACES_AT),
        };
        (b[12] == 1).then(|| (i, entry()))
    })
}

/// Encodes page `number` of `units` from the words of its part of the bitmap.
pub(super) fn encode_units(number: u64, round: Round, words: &[u64]) -> Buf {
    let mut b = BufMut::zeroed(BLOCK_BYTES);
    for (i, word) in words.iter().enumerate() {
        b[BODY_AT + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
    }
    seal(b, PageKind::Units, round, number, ChunkId(0))
}

/// Encodes page `number` of `shares` from the counts of its units.
pub(super) fn encode_shares(number: u64, round: Round, counts: &[u16]) -> Buf {
    let mut b = BufMut::zeroed(BLOCK_BYTES);
    for (i, count) in counts.iter().enumerate() {
        b[BODY_AT + 2 * i..][..2].copy_from_slice(&count.to_le_bytes());
    }
    seal(b, PageKind::Shares, round, number, ChunkId(0))
}

/// The words of a units page that [`find`] found.
pub(super) fn decode_units(b: &[u8]) -> impl Iterator<Item = u64> + '_ {
    (0..UNITS_PER_PAGE as usize / 64).map(|i| u64_at(b, BODY_AT + 8 * i))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"))
}

fn u128_at(b: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(b[at..at + 16].try_into().expect("16 bytes"))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_round_trip_and_are_pinned() {
        let mut page = MapPage::default();
        page.set_unit(31, Some(5));
        page.set_crc(511, BlockCrc(0xdead_beef));
        let bytes = page.encode(ChunkId(9), 3, Round(7));
        assert_eq!(&bytes[..8], b"PSCMAP_2");
        assert_eq!((bytes[16], bytes[24], bytes[32]), (7, 3, 9));
        assert_eq!(bytes[64 + 4 * 31..][..4], [6, 0, 0, 0]);
        assert_eq!(bytes[192 + 4 * 511..][..4], [0xef, 0xbe, 0xad, 0xde]);
        let back = MapPage::decode(&bytes);
        assert_eq!((back.unit(31), back.crc(511)), (Some(5), BlockCrc(0xdead_beef)));

        let tail = vec![TailEntry { sequence: Sequence(5), first_block: 1, block_count: 2 }];
        let info = ChunkInfo {
            epoch: Epoch(2),
            tail,
            last_sequence: Sequence(5),
            committed: Sequence(4),
            largest_lease: LeaseId(8),
        };
        let entry = IndexEntry { chunk: ChunkId(1), info, pages: 1 << 127 | 1, places: 1 << 126 };
        let bytes = encode_index(0, Round(1), &[None, Some(entry.clone())]);
        assert_eq!(&bytes[..8], b"PSINDEX3");
        let at = 64 + 128;
        assert_eq!((bytes[at], bytes[at + 8], bytes[at + 12], bytes[at + 13]), (1, 2, 1, 1));
        assert_eq!((bytes[at + 16], bytes[at + 24], bytes[at + 32]), (5, 4, 8));
        assert_eq!((bytes[at + 40], bytes[at + 55]), (1, 0x80));
        assert_eq!(bytes[at + 56..at + 72], [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!((bytes[at + 104], bytes[at + 119]), (0, 0x40));
        assert_eq!(decode_index(&bytes).collect::<Vec<_>>(), [(1, entry)]);

        let bytes = encode_units(2, Round(1), &[1, u64::MAX]);
        assert_eq!((&bytes[..8], bytes[64], bytes[72], bytes[79]), (&b"PSUNITS2"[..], 1, 0xff, 0xff));
        assert_eq!(decode_units(&bytes).take(3).collect::<Vec<_>>(), [1, u64::MAX, 0]);
    }

    #[test]
    fn only_committed_whole_pages_of_the_right_place_are_found() {
        let page = |round| encode_units(3, Round(round), &[7]);
        let look = |pair: &[u8], committed| find(pair, PageKind::Units, 3, Round(committed));
        let both = [&page(4)[..], &page(5)[..]].concat();
        assert_eq!(look(&both, 5), Ok(Written { place: 1, round: Round(5) }));
        assert_eq!(look(&both, 4), Ok(Written { place: 0, round: Round(4) }), "round 5 was not committed");
        assert_eq!(look(&both, 3), Err(Bad::Damaged));
        let mut torn = both.clone();
        torn[4096 + 300] ^= 1;
        assert_eq!(look(&torn, 5), Ok(Written { place: 0, round: Round(4) }), "the sum has to tell");
        assert_eq!(find(&both, PageKind::Units, 2, Round(5)), Err(Bad::Damaged), "misdirected");
        assert_eq!(find(&both, PageKind::Index, 3, Round(5)), Err(Bad::Damaged));
        assert_eq!(look(&[0; PAIR_BYTES], 5), Err(Bad::Zeros));
        let map = MapPage::default().encode(ChunkId(9), 3, Round(4));
        let owned = |owner| check(&map, PageKind::Map, 3, ChunkId(owner), Round(4));
        assert_eq!((owned(9), owned(8)), (Ok(Round(4)), Err(Bad::Damaged)), "another chunk's");
    }

    #[test]
    fn the_sum_tells_an_older_version_from_the_newest() {
        let of = |rounds: [u64; 3]| {
            (0..).zip(rounds).fold(0, |sum, (n, round)| sum ^ mark(PageKind::Index, n, Round(round)))
        };
        assert_ne!(of([4, 5, 6]), of([4, 5, 5]));
        assert_ne!(of([4, 5, 6]), of([5, 4, 6]), "two pages that changed their rounds");
        assert_ne!(mark(PageKind::Index, 1, Round(1)), mark(PageKind::Units, 1, Round(1)));
        assert_eq!((mark(PageKind::Index, 9, Round(0)), of([1, 0, 0])), (0, 2_454_314_395_245_205_331));
    }
}
