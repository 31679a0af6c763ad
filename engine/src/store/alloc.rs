//! Which units of the data file are taken, one bit each, and a cursor so that large writes lie in a row.
//!
//! Two bitmaps: *taken* units must not be given out; *referenced* ones stand in a map page. A unit is taken before it is
//! referenced (its data is being written) and stays taken for a while after (a write-back may still be under way).
//! Only references are kept on disk: whatever else was taken is free after a start.

use super::page::{Round, UNITS_PER_PAGE, encode_units};
use shards::Buf;
use std::collections::BTreeSet;

pub(super) struct Units {
    taken: Vec<u64>,
    referenced: Vec<u64>,
    total: u32,
    free: u32,
    cursor: u32,
    /// Pages of `units` that differ from disk.
    dirty: BTreeSet<u32>,
    /// Which place of each page was written last.
    places: Vec<u8>,
}

const WORDS_PER_PAGE: usize = UNITS_PER_PAGE as usize / 64;

impl Units {
    /// All free; every page has to be written.
    pub fn new(total: u32) -> Units {
        let pages = total.div_ceil(UNITS_PER_PAGE);
        let words = total.div_ceil(64) as usize;
        Units {
            taken: vec![0; words],
            referenced: vec![0; words],
            total,
            free: total,
            cursor: 0,
            dirty: (0..pages).collect(),
            places: vec![1; pages as usize],
        }
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    pub fn free(&self) -> u32 {
        self.free
    }

    pub fn pages(&self) -> u32 {
        self.places.len() as u32
    }

    /// Takes over a page read from disk. Units beyond the capacity must not be referenced.
    pub fn load(&mut self, page: u32, place: u8, words: impl Iterator<Item = u64>) -> Result<(), String> {
        let at = page as usize * WORDS_PER_PAGE;
        for (i, word) in words.enumerate() {
            let first = (at + i) as u64 * 64;
            let valid = match u64::from(self.total).saturating_sub(first) {
                0 => 0,
                left if left >= 64 => u64::MAX,
                left => (1 << left) - 1,
            };
            if word & !valid != 0 {
                return Err(format!("a unit beyond the {} of the capacity", self.total));
            }
            if let Some(referenced) = self.referenced.get_mut(at + i) {
                *referenced = word;
                self.taken[at + i] = word;
                self.free -= word.count_ones();
            }
        }
        self.dirty.remove(&page);
        self.places[page as usize] = place;
        Ok(())
    }

    fn is_taken(&self, unit: u32) -> bool {
        self.taken[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    pub fn is_referenced(&self, unit: u32) -> bool {
        self.referenced[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    /// Takes the next free unit behind the last one taken.
    pub fn take(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let mut unit = self.cursor;
        loop {
            if unit >= self.total {
                unit = 0;
            }
            if unit % 64 == 0 && self.taken[unit as usize / 64] == u64::MAX {
                unit += 64;
                continue;
            }
            if !self.is_taken(unit) {
                break;
            }
            unit += 1;
        }
        self.taken[unit as usize / 64] |= 1 << (unit % 64);
        self.free -= 1;
        self.cursor = unit + 1;
        Some(unit)
    }

    /// A map page names the unit from now on.
    pub fn refer(&mut self, unit: u32) {
        debug_assert!(self.is_taken(unit), "a free unit {unit} is named by a map");
        self.referenced[unit as usize / 64] |= 1 << (unit % 64);
        self.dirty.insert(unit / UNITS_PER_PAGE);
    }

    /// No map page names it any more; it stays taken until [`Units::release`].
    pub fn unrefer(&mut self, unit: u32) {
        self.referenced[unit as usize / 64] &= !(1 << (unit % 64));
        self.dirty.insert(unit / UNITS_PER_PAGE);
    }

    pub fn release(&mut self, unit: u32) {
        assert!(self.is_taken(unit), "unit {unit} freed twice");
        assert!(!self.is_referenced(unit), "unit {unit} freed while a map names it");
        self.taken[unit as usize / 64] &= !(1 << (unit % 64));
        self.free += 1;
    }

    /// For a start, when the journal says that a unit is named which the bitmap has as free. False if it is taken, or
    /// lies outside.
    pub fn claim(&mut self, unit: u32) -> bool {
        if unit >= self.total || self.is_taken(unit) {
            return false;
        }
        self.taken[unit as usize / 64] |= 1 << (unit % 64);
        self.free -= 1;
        self.refer(unit);
        true
    }

    /// The pages that changed, for write-back: number, place to write, bytes.
    pub fn changed_pages(&mut self, round: Round) -> Vec<(u64, u8, Buf)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|page| {
                let at = page as usize * WORDS_PER_PAGE;
                let words = &self.referenced[at..(at + WORDS_PER_PAGE).min(self.referenced.len())];
                let place = &mut self.places[page as usize];
                *place = 1 - *place;
                (u64::from(page), *place, encode_units(u64::from(page), round, words))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::page::decode_units;

    #[test]
    fn units_are_given_once_until_all_are_taken() {
        let mut units = Units::new(130);
        let mut taken: Vec<u32> = std::iter::from_fn(|| units.take()).collect();
        assert_eq!(taken, (0..130).collect::<Vec<_>>());
        assert_eq!(units.free(), 0);
        for unit in [129, 3, 64] {
            units.release(unit);
        }
        taken = std::iter::from_fn(|| units.take()).collect();
        assert_eq!(taken, [3, 64, 129]);
        assert!(!units.claim(5) && !units.claim(500));
    }

    #[test]
    fn only_references_reach_the_disk() {
        let mut units = Units::new(UNITS_PER_PAGE + 10);
        let (first, second) = (units.take().unwrap(), units.take().unwrap());
        units.refer(second);
        let pages = units.changed_pages(Round(1));
        assert_eq!(pages.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
        assert!(units.changed_pages(Round(2)).is_empty());
        let mut back = Units::new(UNITS_PER_PAGE + 10);
        for (number, place, bytes) in pages {
            back.load(number as u32, place, decode_units(&bytes)).unwrap();
        }
        assert_eq!(back.free(), UNITS_PER_PAGE + 9);
        assert!(back.claim(first) && !back.claim(second));
        assert_eq!(back.changed_pages(Round(3)).iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(0, 1)]);
        let mut small = Units::new(1);
        assert!(small.load(0, 0, [2].into_iter()).is_err());
    }
}
