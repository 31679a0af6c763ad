//! Finds units that no map page names. When a damaged map page is given up (its chunk is emptied), nobody knows any more
//! which units it named: they stay taken until a walk over all map pages has not met them.
//!
//! The walk suspects every unit that is referenced when it begins. A unit is cleared when a page that names it is met, and
//! when anything about it changes meanwhile ([`Units::refer`], [`Units::unrefer`]). What is still suspected at the end, after
//! every page was met, is named by none. A page that can't be read ends the walk without a result.
//!
//! What was found is given to others only when a round has recorded that it is free: a unit that a record of the journal
//! frees may be named by a later record, but no record says what a census has found, and a start would meet a record that
//! names a unit which the bitmap says is another's.

use super::load::Waiter;
use super::{Store, StoreError, bits};
use shards::Io;
use wire::ChunkId;

/// Where the walk is: pages before this one were met.
pub(super) struct Census {
    next: (ChunkId, u32),
    /// Another page was given up meanwhile.
    again: bool,
}

impl Store {
    pub(super) fn start_census(&mut self, io: &mut dyn Io) {
        if let Some(census) = &mut self.census {
            census.again = true;
            return;
        }
        self.units.suspect_all();
        self.census = Some(Census { next: (ChunkId(0), 0), again: false });
        self.walk(io);
    }

    /// Meets pages until one has to be read.
    fn walk(&mut self, io: &mut dyn Io) {
        while let Some(census) = &mut self.census {
            let (from, first) = census.next;
            let pages =
                self.chunks.range(from..).flat_map(|(id, chunk)| bits(chunk.exists).map(move |n| (*id, n)));
            let Some((id, number)) = pages.into_iter().find(|&page| page >= (from, first)) else {
                return self.finish_census(io);
            };
            let Some(page) = self.chunks[&id].pages.get(&number) else {
                census.next = (id, number);
                return self.read_page(io, id, number, Waiter::Census);
            };
            census.next = (id, number + 1);
            page.units().for_each(|unit| self.units.clear(unit));
        }
    }

    pub(super) fn census_page_done(&mut self, io: &mut dyn Io, failed: Option<StoreError>) {
        if let Some(error) = failed {
            tracing::warn!(%error, "units_not_counted: another map page is damaged");
            self.census = None;
            self.units.clear_all();
            return;
        }
        self.walk(io);
    }

    fn finish_census(&mut self, io: &mut dyn Io) {
        let again = self.census.take().is_some_and(|c| c.again);
        let lost = self.units.clear_all();
        tracing::info!(units = lost.len(), "units_without_an_owner_are_free");
        for unit in lost {
            self.shares.forget(unit);
            self.units.unrefer(unit);
            self.unowned.push((self.last_round, unit));
        }
        self.mark_dirty(io);
        if again {
            self.start_census(io);
        }
    }
}
