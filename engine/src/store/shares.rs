//! Which units of `data` several map pages name, and how many: what a clone of a chunk costs instead of a copy
//! (clone.rs).
//!
//! Invariant: no record of the journal names a unit that is shared: a replay can't give one back to a map page that has
//! left it (clone.rs says why).

use super::page::{self, BODY_AT, PageKind, Round, Written, mark};
use shards::Buf;
use std::collections::BTreeSet;
use wire::BLOCK_BYTES;

/// Units in one page of `shares`.
const PER_PAGE: u32 = ((BLOCK_BYTES - BODY_AT) / 2) as u32;

#[derive(Default)]
pub(super) struct Shares {
    /// Map pages that name a unit, beyond the first; `None` where no unit is shared.
    pages: Vec<Option<Box<[u16; PER_PAGE as usize]>>>,
    /// Units with more than one.
    shared: u64,
    written: Vec<Written>,
    dirty: BTreeSet<u32>,
    /// Of [`mark`] over all pages.
    sum: u64,
}

impl Shares {
    /// Whether any unit is shared.
    pub fn any(&self) -> bool {
        self.shared > 0
    }

    /// How many map pages name a unit, beyond the first.
    pub fn of(&self, unit: u32) -> u16 {
        let page = self.pages.get((unit / PER_PAGE) as usize);
        page.and_then(Option::as_ref).map_or(0, |page| page[(unit % PER_PAGE) as usize])
    }

    /// Whether one more map page may name the unit.
    pub fn has_room(&self, unit: u32) -> bool {
        self.of(unit) < u16::MAX
    }

    /// One more map page names the unit.
    pub fn add(&mut self, unit: u32) {
        let count = self.count(unit);
        *count = count.checked_add(1).expect("looked at before");
        self.shared += u64::from(*self.count(unit) == 1);
    }

    /// A map page does not name the unit any more. False if it was the last that did.
    pub fn remove(&mut self, unit: u32) -> bool {
        if self.of(unit) == 0 {
            return false;
        }
        *self.count(unit) -= 1;
        self.shared -= u64::from(self.of(unit) == 0);
        true
    }

    /// Nobody names the unit, whatever was said.
    pub fn forget(&mut self, unit: u32) {
        while self.remove(unit) {}
    }

    fn count(&mut self, unit: u32) -> &mut u16 {
        let page = unit / PER_PAGE;
        self.dirty.insert(page);
        self.reach(page);
        let counts = self.pages[page as usize].get_or_insert_with(|| Box::new([0; PER_PAGE as usize]));
        &mut counts[(unit % PER_PAGE) as usize]
    }

    fn reach(&mut self, page: u32) {
        if self.pages.len() <= page as usize {
            self.pages.resize(page as usize + 1, None);
            self.written.resize(page as usize + 1, Written::NEVER);
        }
    }

    /// Takes over a page read from disk.
    pub fn load(&mut self, page: u32, written: Written, body: &[u8]) {
        self.reach(page);
        let mut counts = Box::new([0; PER_PAGE as usize]);
        for (count, bytes) in counts.iter_mut().zip(body[BODY_AT..].chunks_exact(2)) {
            *count = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        self.shared += counts.iter().filter(|&&count| count > 0).count() as u64;
        self.pages[page as usize] = Some(counts);
        self.written[page as usize] = written;
        self.sum ^= mark(PageKind::Shares, page.into(), written.round);
    }

    /// The next round writes this page.
    pub fn write_anew(&mut self, page: u32) {
        self.reach(page);
        self.pages[page as usize].get_or_insert_with(|| Box::new([0; PER_PAGE as usize]));
        self.dirty.insert(page);
    }

    /// What the pages add to the checkpoint's sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The pages that changed, for write-back: number, place to write, bytes.
    pub fn changed_pages(&mut self, round: Round) -> Vec<(u64, u8, Buf)> {
        let encode = |page: u32| {
            let counts = self.pages[page as usize].as_ref().expect("it changed");
            let written = &mut self.written[page as usize];
            let number = u64::from(page);
            self.sum ^= mark(PageKind::Shares, number, written.round) ^ mark(PageKind::Shares, number, round);
            *written = written.next(round);
            (number, written.place, page::encode_shares(number, round, &counts[..]))
        };
        std::mem::take(&mut self.dirty).into_iter().map(encode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_on_their_pages() {
        let mut shares = Shares::default();
        let far = 3 * PER_PAGE + 5;
        shares.add(7);
        shares.add(7);
        shares.add(far);
        assert_eq!((shares.of(7), shares.of(8), shares.of(far), shares.of(u32::MAX)), (2, 0, 1, 0));
        let pages = shares.changed_pages(Round(4));
        assert_eq!(pages.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(0, 0), (3, 0)]);
        assert_eq!(&pages[0].2[..8], b"PSSHARE1");
        assert_eq!(pages[0].2[64 + 14..][..2], [2, 0]);
        let mut back = Shares::default();
        for (number, place, bytes) in pages {
            back.load(number as u32, Written { place, round: Round(4) }, &bytes);
        }
        assert_eq!((back.sum(), back.any()), (shares.sum(), true));
        assert!(back.remove(far) && !back.remove(far));
        assert!(back.remove(7) && back.remove(7) && !back.remove(7) && !back.any());
        assert_eq!(
            back.changed_pages(Round(5)).iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(),
            [(0, 1), (3, 1)]
        );
    }
}
