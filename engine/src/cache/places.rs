//! The slots of a cache in memory: what each holds, which to give up next, and which pages of the table changed.
//!
//! A slot is *empty* (the table on disk says so: it can be filled), *held* (by a unit), or *given up* (the table on disk
//! may still name its old unit: it becomes empty with the next write of its page). Slots that are being read or written
//! are never given to another unit.

use super::Version;
use super::table::{Entry, PAGE_SLOTS};
use std::collections::{BTreeSet, HashMap};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotIndex(pub u32);

const NO_UNIT: u32 = u32::MAX;
/// Slots looked at for one that can go, at most, before something is not admitted instead.
const SWEEP: usize = 64;

#[derive(Clone, Copy)]
struct Slot {
    version: Version,
    unit: u32,
    /// Blocks that are there.
    have: u16,
    /// Reads and writes under way.
    busy: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Slot>() == 24);

/// Read since the hand of the clock came by.
const USED: u8 = 1;
/// Filled or found in this life.
const KNOWN: u8 = 2;
/// The table on disk does not name anything here.
const EMPTY: u8 = 4;

impl Slot {
    fn new() -> Slot {
        Slot { version: Version::default(), unit: NO_UNIT, have: 0, busy: 0, flags: EMPTY }
    }

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn is_given_up(&self) -> bool {
        self.unit == NO_UNIT && !self.is(EMPTY)
    }
}

pub(super) struct Places {
    slots: Vec<Slot>,
    by_unit: HashMap<u32, u32>,
    empty: Vec<u32>,
    given_up: usize,
    dirty: BTreeSet<u64>,
    /// The clock's.
    hand: usize,
    blocks: u64,
}

impl Places {
    pub fn new(slots: usize) -> Places {
        Places {
            slots: vec![Slot::new(); slots],
            by_unit: HashMap::new(),
            empty: (0..slots as u32).rev().collect(),
            given_up: 0,
            dirty: BTreeSet::new(),
            hand: 0,
            blocks: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Blocks that are cached.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Takes over what a page of the table says, before anything else happens.
    pub fn load(&mut self, page: u64, entries: impl Iterator<Item = Entry>) {
        for entry in entries {
            let index = (page * PAGE_SLOTS + entry.slot) as u32;
            let Some(slot) = self.slots.get_mut(index as usize) else { continue };
            slot.flags = 0;
            if self.by_unit.contains_key(&entry.unit) {
                // A page that was not written in time: neither is sure.
                self.given_up += 1;
                self.dirty.insert(page);
                continue;
            }
            (slot.unit, slot.have, slot.version) = (entry.unit, entry.have, entry.version);
            self.blocks += u64::from(entry.have.count_ones());
            self.by_unit.insert(entry.unit, index);
        }
        let slots = &self.slots;
        self.empty.retain(|s| u64::from(*s) / PAGE_SLOTS != page || slots[*s as usize].is(EMPTY));
    }

    /// The slot of a unit, if it holds these blocks of this version. One of another version is given up.
    pub fn find(&mut self, unit: u32, version: Version, mask: u16) -> Option<SlotIndex> {
        let index = *self.by_unit.get(&unit)?;
        let slot = &mut self.slots[index as usize];
        if slot.version != version {
            self.drop_slot(SlotIndex(index));
            return None;
        }
        slot.flags |= USED | KNOWN;
        (slot.have & mask == mask && slot.busy < u8::MAX).then_some(SlotIndex(index))
    }

    /// The slot for a unit of this version: its own, or an empty one. `None` when there is none right now.
    pub fn place_for(&mut self, unit: u32, version: Version) -> Option<SlotIndex> {
        if let Some(&index) = self.by_unit.get(&unit) {
            let slot = &self.slots[index as usize];
            if slot.version == version && slot.busy < u8::MAX {
                return Some(SlotIndex(index));
            }
            self.drop_slot(SlotIndex(index));
        }
        self.keep_some_empty();
        let index = self.empty.pop()?;
        self.slots[index as usize] = Slot { version, unit, have: 0, busy: 0, flags: KNOWN };
        self.by_unit.insert(unit, index);
        Some(SlotIndex(index))
    }

    /// Gives up slots so that there are always some to fill: they have to pass through the table first.
    fn keep_some_empty(&mut self) {
        let wanted = (self.slots.len() / 32).max(8).min(self.slots.len() / 2);
        for _ in 0..SWEEP {
            if self.empty.len() + self.given_up >= wanted {
                return;
            }
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.unit == NO_UNIT || slot.busy > 0 {
                continue;
            }
            if slot.is(USED) {
                slot.flags &= !USED;
            } else {
                self.drop_slot(SlotIndex(self.hand as u32));
            }
        }
    }

    pub fn hold(&mut self, index: SlotIndex) {
        self.slots[index.0 as usize].busy += 1;
    }

    pub fn let_go(&mut self, index: SlotIndex) {
        self.slots[index.0 as usize].busy -= 1;
    }

    /// Blocks were written into a slot. If it was given up meanwhile, they are of no use.
    pub fn filled(&mut self, index: SlotIndex, mask: u16) {
        self.let_go(index);
        let slot = &mut self.slots[index.0 as usize];
        if slot.unit == NO_UNIT {
            return;
        }
        self.blocks += u64::from((mask & !slot.have).count_ones());
        slot.have |= mask;
        self.dirty.insert(u64::from(index.0) / PAGE_SLOTS);
    }

    pub fn drop_slot(&mut self, index: SlotIndex) {
        let slot = &mut self.slots[index.0 as usize];
        if slot.unit == NO_UNIT {
            return;
        }
        self.by_unit.remove(&slot.unit);
        self.blocks -= u64::from(slot.have.count_ones());
        (slot.unit, slot.have, slot.flags) = (NO_UNIT, 0, 0);
        self.given_up += 1;
        self.dirty.insert(u64::from(index.0) / PAGE_SLOTS);
    }

    pub fn forget(&mut self, unit: u32, mask: u16) {
        let Some(&index) = self.by_unit.get(&unit) else { return };
        let slot = &mut self.slots[index as usize];
        let left = slot.have & !mask;
        // A write that is under way may bring back what is forgotten here.
        if slot.busy > 0 || left == 0 {
            return self.drop_slot(SlotIndex(index));
        }
        self.blocks -= u64::from((slot.have & mask).count_ones());
        slot.have = left;
        self.dirty.insert(u64::from(index) / PAGE_SLOTS);
    }

    pub fn move_along(&mut self, unit: u32, before: Version, round: u64) {
        let Some(&index) = self.by_unit.get(&unit) else { return };
        let slot = &mut self.slots[index as usize];
        if slot.is(KNOWN) && slot.version == before {
            slot.version.round = round;
            self.dirty.insert(u64::from(index) / PAGE_SLOTS);
        }
    }

    /// Pages of the table that differ from disk; they count as written.
    pub fn take_dirty(&mut self, most: usize) -> Vec<u64> {
        let pages: Vec<u64> = self.dirty.iter().copied().take(most).collect();
        pages.iter().for_each(|p| {
            self.dirty.remove(p);
        });
        pages
    }

    fn slots_of(&self, page: u64) -> impl Iterator<Item = (u32, &Slot)> {
        let first = (page * PAGE_SLOTS) as usize;
        let end = (first + PAGE_SLOTS as usize).min(self.slots.len());
        (first as u32..).zip(&self.slots[first..end])
    }

    pub fn entries(&self, page: u64) -> impl Iterator<Item = Entry> + '_ {
        let held = self.slots_of(page).filter(|(_, s)| s.unit != NO_UNIT && s.have != 0);
        held.map(move |(index, s)| Entry {
            slot: u64::from(index) - page * PAGE_SLOTS,
            unit: s.unit,
            have: s.have,
            version: s.version,
        })
    }

    /// Slots of these pages that were given up and that nothing touches any more.
    pub fn given_up(&mut self, pages: &[u64]) -> Vec<SlotIndex> {
        let mut free = Vec::new();
        for &page in pages {
            let mut waits = false;
            for (index, slot) in self.slots_of(page).filter(|(_, s)| s.is_given_up()) {
                waits |= slot.busy > 0;
                if slot.busy == 0 {
                    free.push(SlotIndex(index));
                }
            }
            if waits {
                self.dirty.insert(page);
            }
        }
        free
    }

    /// The table on disk no longer names what these slots held.
    pub fn emptied(&mut self, slots: &[SlotIndex]) {
        for index in slots {
            self.slots[index.0 as usize].flags = EMPTY;
            self.empty.push(index.0);
        }
        self.given_up -= slots.len();
    }
}
