//! Which units of the data file are taken, one bit each, and cursors so that large writes lie in a row.
//!
//! Free units below the *frontier*, the end of what was ever taken, are used again before it moves: the file stays as
//! small as its content, and an overwrite in place needs no new metadata of the file system. Single units and runs have
//! cursors of their own, so that small writes do not cut up the room of large ones.
//!
//! Two bitmaps: *taken* units must not be given out; *referenced* ones stand in a map page. A unit is taken before it is
//! referenced (its data is being written) and stays taken for a while after (a write-back may still be under way).
//! Only references are kept on disk: whatever else was taken is free after a start.
//!
//! Two more serve `give_back.rs`: *rested* units have been free since the last look, *holes* have no room in the file.

use super::page::{PageKind, Round, UNITS_PER_PAGE, Written, encode_units, mark};
use shards::Buf;
use std::collections::BTreeSet;

pub(super) struct Units {
    taken: Vec<u64>,
    referenced: Vec<u64>,
    total: u32,
    free: u32,
    /// No unit from here on was ever taken.
    frontier: u32,
    run_cursor: u32,
    single_cursor: u32,
    /// Pages of `units` that differ from disk.
    dirty: BTreeSet<u32>,
    written: Vec<Written>,
    /// Referenced units that a census has not met (census.rs); empty when none is under way.
    suspects: Vec<u64>,
    /// Free and no holes since the last look, and where the next of them is looked for.
    rested: Vec<u64>,
    rested_cursor: u32,
    /// Taken only while holes are made of them.
    under_punch: u32,
    /// Units became free since that look.
    released: bool,
    /// The file system has their room. (Of what lay below the frontier at the start this is not known.)
    holes: Vec<u64>,
    /// Of [`mark`] over all pages.
    sum: u64,
}

const WORDS_PER_PAGE: usize = UNITS_PER_PAGE as usize / 64;
/// Stretches of free units looked at for a long enough one, before the file grows instead.
const MOST_STRETCHES: usize = 64;

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
            frontier: 0,
            run_cursor: 0,
            single_cursor: 0,
            dirty: (0..pages).collect(),
            written: vec![Written::NEVER; pages as usize],
            suspects: Vec::new(),
            rested: Vec::new(),
            rested_cursor: 0,
            under_punch: 0,
            released: true,
            holes: vec![0; words],
            sum: 0,
        }
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    pub fn free(&self) -> u32 {
        self.free
    }

    /// Units that hold something, or are about to.
    pub fn in_use(&self) -> u32 {
        self.total - self.free - self.under_punch
    }

    pub fn pages(&self) -> u32 {
        self.written.len() as u32
    }

    /// Takes over a page read from disk. Units beyond the capacity must not be referenced.
    pub fn load(
        &mut self,
        page: u32,
        written: Written,
        words: impl Iterator<Item = u64>,
    ) -> Result<(), String> {
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
                if word != 0 {
                    self.frontier = self.frontier.max(first as u32 + 64 - word.leading_zeros());
                }
            }
        }
        self.dirty.remove(&page);
        self.written[page as usize] = written;
        self.sum ^= mark(PageKind::Units, page.into(), written.round);
        Ok(())
    }

    /// The next round writes this page, if there is one.
    pub fn write_anew(&mut self, page: u32) {
        if page < self.pages() {
            self.dirty.insert(page);
        }
    }

    fn is_taken(&self, unit: u32) -> bool {
        self.taken[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    pub fn is_referenced(&self, unit: u32) -> bool {
        self.referenced[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    pub fn frontier(&self) -> u32 {
        self.frontier
    }

    /// Takes a free unit.
    pub fn take(&mut self) -> Option<u32> {
        let cursor = self.single_cursor;
        let again = self.free_below_frontier() > 0;
        let first = again
            .then(|| {
                self.next_free(cursor, self.frontier).or_else(|| self.next_free(0, cursor.min(self.frontier)))
            })
            .flatten()
            .or_else(|| (self.frontier < self.total).then_some(self.frontier))?;
        self.single_cursor = first + 1;
        self.mark(first, 1);
        Some(first)
    }

    /// Takes `wanted` free units in a row, or fewer if the room is cut up: first and number.
    pub fn take_run(&mut self, wanted: u32) -> Option<(u32, u32)> {
        let cursor = self.run_cursor;
        let mut found = None;
        if self.free_below_frontier() >= wanted {
            found = self.find_run(cursor, self.frontier, wanted);
            found = found.or_else(|| self.find_run(0, cursor.min(self.frontier), wanted));
        }
        if found.is_none() && self.frontier < self.total {
            found = Some((self.frontier, wanted.min(self.total - self.frontier)));
        }
        let Some((first, count)) = found else { return self.take().map(|unit| (unit, 1)) };
        self.run_cursor = first + count;
        self.mark(first, count);
        Some((first, count))
    }

    fn free_below_frontier(&self) -> u32 {
        self.frontier - (self.total - self.free)
    }

    fn mark(&mut self, first: u32, count: u32) {
        for unit in first..first + count {
            self.taken[unit as usize / 64] |= 1 << (unit % 64);
            clear_bit(&mut self.rested, unit);
        }
        self.free -= count;
        self.frontier = self.frontier.max(first + count);
    }

    fn find_run(&self, from: u32, to: u32, wanted: u32) -> Option<(u32, u32)> {
        let mut from = from;
        for _ in 0..MOST_STRETCHES {
            let first = self.next_free(from, to)?;
            let end = self.next_taken(first, to.min(first + wanted));
            if end - first == wanted {
                return Some((first, wanted));
            }
            from = end;
        }
        None
    }

    fn next_free(&self, from: u32, to: u32) -> Option<u32> {
        next_bit(from, to, |word| !self.taken[word])
    }

    fn next_taken(&self, from: u32, to: u32) -> u32 {
        next_bit(from, to, |word| self.taken[word]).unwrap_or(to)
    }

    /// A map page names the unit from now on.
    pub fn refer(&mut self, unit: u32) {
        debug_assert!(self.is_taken(unit), "a free unit {unit} is named by a map");
        self.referenced[unit as usize / 64] |= 1 << (unit % 64);
        clear_bit(&mut self.holes, unit);
        self.clear(unit);
        self.dirty.insert(unit / UNITS_PER_PAGE);
    }

    /// No map page names it any more; it stays taken until [`Units::release`].
    pub fn unrefer(&mut self, unit: u32) {
        self.referenced[unit as usize / 64] &= !(1 << (unit % 64));
        self.clear(unit);
        self.dirty.insert(unit / UNITS_PER_PAGE);
    }

    pub fn release(&mut self, unit: u32) {
        assert!(self.is_taken(unit), "unit {unit} freed twice");
        assert!(!self.is_referenced(unit), "unit {unit} freed while a map names it");
        self.taken[unit as usize / 64] &= !(1 << (unit % 64));
        // Perhaps something was written to it that failed.
        clear_bit(&mut self.holes, unit);
        self.free += 1;
        self.released = true;
    }

    /// Whether the unit has no room in the file: writing to it takes new room of the file system.
    pub fn is_hole(&self, unit: u32) -> bool {
        self.holes[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    /// From now on those free units rest that may have room in the file. Few words change when nothing became free.
    pub fn look_for_rest(&mut self) {
        self.rested_cursor = 0;
        if !std::mem::take(&mut self.released) {
            return;
        }
        let words = self.frontier.div_ceil(64) as usize;
        self.rested.clear();
        self.rested.extend((0..words).map(|at| !self.taken[at] & !self.holes[at]));
    }

    /// Takes at most `most` units in a row that have rested since the last look. [`Units::punched`] gives them back.
    pub fn take_rested(&mut self, most: u32) -> Option<(u32, u32)> {
        let end = self.frontier.min(self.rested.len() as u32 * 64);
        let first = next_bit(self.rested_cursor, end, |word| self.rested[word])?;
        let to = end.min(first.saturating_add(most));
        let behind = next_bit(first, to, |word| !self.rested[word]).unwrap_or(to);
        if behind == first {
            return None;
        }
        self.rested_cursor = behind;
        self.mark(first, behind - first);
        self.under_punch += behind - first;
        Some((first, behind - first))
    }

    /// Frees the units of [`Units::take_rested`]; `ok`: they are holes now.
    pub fn punched(&mut self, first: u32, count: u32, ok: bool) {
        self.under_punch -= count;
        for unit in first..first + count {
            self.release(unit);
            if ok {
                self.holes[unit as usize / 64] |= 1 << (unit % 64);
            }
        }
    }

    /// For a start, when the journal says that a unit is named which the bitmap has as free. False if it is taken, or
    /// lies outside.
    pub fn claim(&mut self, unit: u32) -> bool {
        if unit >= self.total || self.is_taken(unit) {
            return false;
        }
        self.mark(unit, 1);
        self.refer(unit);
        true
    }

    /// Suspects every referenced unit of having no owner.
    pub fn suspect_all(&mut self) {
        self.suspects = self.referenced.clone();
    }

    /// It has one, or is no longer what it was.
    pub fn clear(&mut self, unit: u32) {
        clear_bit(&mut self.suspects, unit);
    }

    /// Ends the suspicion; returns who was left.
    pub fn clear_all(&mut self) -> Vec<u32> {
        let suspects = std::mem::take(&mut self.suspects);
        let left = |(at, &word): (usize, &u64)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 64 + bit)
        };
        suspects.iter().enumerate().flat_map(left).collect()
    }

    /// What the pages add to the checkpoint's sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The pages that changed, for write-back: number, place to write, bytes.
    pub fn changed_pages(&mut self, round: Round) -> Vec<(u64, u8, Buf)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|page| {
                let at = page as usize * WORDS_PER_PAGE;
                let words = &self.referenced[at..(at + WORDS_PER_PAGE).min(self.referenced.len())];
                let written = &mut self.written[page as usize];
                let number = u64::from(page);
                self.sum ^=
                    mark(PageKind::Units, number, written.round) ^ mark(PageKind::Units, number, round);
                *written = written.next(round);
                (number, written.place, encode_units(number, round, words))
            })
            .collect()
    }
}

/// A list that is too short has the bit clear.
fn clear_bit(words: &mut [u64], bit: u32) {
    if let Some(word) = words.get_mut(bit as usize / 64) {
        *word &= !(1 << (bit % 64));
    }
}

/// The first bit set in `from..to` of the words.
fn next_bit(from: u32, to: u32, words: impl Fn(usize) -> u64) -> Option<u32> {
    let mut at = from;
    while at < to {
        let word = words(at as usize / 64) >> (at % 64);
        if word != 0 {
            return Some(at + word.trailing_zeros()).filter(|&bit| bit < to);
        }
        at = (at / 64 + 1) * 64;
    }
    None
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
    fn runs_reuse_what_is_free_before_the_file_grows() {
        let mut units = Units::new(300);
        assert_eq!((units.take_run(16), units.take_run(100)), (Some((0, 16)), Some((16, 100))));
        (40..60).chain([5]).for_each(|unit| units.release(unit));
        assert_eq!(units.take_run(16), Some((40, 16)), "room in the middle");
        assert_eq!(units.take_run(16), Some((116, 16)), "what is left is too short: the end grows");
        assert_eq!(units.take(), Some(5));
        assert_eq!((units.take(), units.frontier()), (Some(56), 132));
        assert_eq!(units.take_run(200), Some((132, 168)), "all that is left in a row");
        assert_eq!((units.take_run(16), units.take_run(16)), (Some((57, 1)), Some((58, 1))), "cut up");
        assert_eq!((units.take_run(2), units.take_run(1), units.free()), (Some((59, 1)), None, 0));
    }

    #[test]
    fn units_that_stay_free_are_given_back_and_those_taken_meanwhile_are_not() {
        let mut units = Units::new(200);
        units.take_run(150);
        (20..100).for_each(|unit| units.release(unit));
        units.look_for_rest();
        assert_eq!(units.take_run(10), Some((20, 10)), "no rest for these");
        units.release(120);
        assert_eq!(units.take_rested(0), None);
        let used = units.in_use();
        assert_eq!((units.take_rested(64), units.free(), units.in_use()), (Some((30, 64)), 57, used));
        assert_eq!((units.take_rested(64), units.take_rested(64)), (Some((94, 6)), None));
        assert_eq!(units.take_run(50), Some((150, 50)), "what is being given back is nobody's");
        units.punched(30, 64, true);
        units.punched(94, 6, false);
        assert_eq!((units.is_hole(30), units.is_hole(94)), (true, false));
        assert_eq!((units.free(), units.in_use()), (71, used + 50));
        units.look_for_rest();
        assert_eq!((units.take_rested(64), units.take_rested(64)), (Some((94, 6)), Some((120, 1))));
        assert_eq!(units.take_run(64), Some((30, 64)));
        units.refer(30);
        assert!(!units.is_hole(30) && units.is_hole(31));
        units.release(31);
        assert!(!units.is_hole(31), "who knows what was tried");
    }

    #[test]
    fn the_frontier_lies_behind_what_a_start_finds() {
        let mut units = Units::new(UNITS_PER_PAGE);
        units.load(0, Written::NEVER, [0, 0b1000].into_iter()).unwrap();
        assert_eq!(
            (units.frontier(), units.take_run(64), units.take_run(64)),
            (68, Some((0, 64)), Some((68, 64)))
        );
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
            back.load(number as u32, Written { place, round: Round(1) }, decode_units(&bytes)).unwrap();
        }
        assert_eq!(back.free(), UNITS_PER_PAGE + 9);
        assert!(back.claim(first) && !back.claim(second));
        assert_eq!(back.changed_pages(Round(3)).iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(0, 1)]);
        let mut small = Units::new(1);
        assert!(small.load(0, Written::NEVER, [2].into_iter()).is_err());
    }
}
