//! The read cache of a client, on a local SSD: which blocks of which files stand in which slots of the cache file. Pure
//! state; the driver ([`super::cached`]) moves the bytes.
//!
//! Invariants, in the order in which they keep stale data out:
//! - what is cached of a file is what the file held under its *version*: the newest write lease ever granted for it. The
//!   metadata service names it with every lease ([`ReadCache::granted`]); a file whose version has moved on without this
//!   client loses all its blocks;
//! - only the holder of a write lease can change the file. Its own changes take the blocks they touch out when they begin
//!   ([`ReadCache::change_begins`]), and nothing read while a change of the same blocks was under way comes in;
//! - a change whose outcome is unknown may still happen later: nothing of the file comes in until a newer lease, which
//!   chunk servers put before the old one, has been granted;
//! - nothing is looked up or comes in while no lease is held (the driver asks the core);
//! - the table of slots is written when the client ends in good order, and struck out on disk before the file is used
//!   again: after a crash the cache is empty. So the table never has to be durable ahead of the data;
//! - every 4 KiB is checked against its CRC when it is read back: whatever the device does is a miss at worst.

mod admission;
pub mod format;

use admission::Admission;
pub use admission::{ADMIT_AT_USES, BLOCK_BYTES};
use format::Entry;
use shards::sabotage::{Sabotage, on};
use std::collections::BTreeMap;
use std::ops::Range;
use wire::{BlockCrc, FileId, LeaseId};

/// Blocks being read in to be kept, at once: filling must not crowd out what programs wait for.
const MOST_FILLS: usize = 16;

pub struct ReadCache {
    slots: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
    files: BTreeMap<FileId, CachedFile>,
    admission: Admission,
    fills: BTreeMap<u64, Fill>,
    last_id: u64,
    pub counts: Counts,
}

/// What is shown of a cache, since the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Reads answered from the cache, and those of blocks that were not there.
    pub hits: u64,
    pub misses: u64,
    pub hit_bytes: u64,
    pub admitted: u64,
    pub evicted: u64,
    /// Blocks thrown out because their file changed.
    pub invalidated: u64,
    /// Blocks whose checksum was wrong when they were read back: lost, and read from the cluster.
    pub checksum_errors: u64,
}

#[derive(Default)]
struct Slot {
    holder: Option<(FileId, u64)>,
    /// Of 4 KiB each; their number tells how much of the block is there (the end of a file).
    sums: Vec<BlockCrc>,
    /// The bytes are on their way to the device.
    writing: bool,
    /// Since the hand came by.
    used: bool,
    /// Grows when the slot gets other contents.
    generation: u64,
}

#[derive(Default)]
struct CachedFile {
    version: LeaseId,
    /// 0 while none is held.
    lease: LeaseId,
    blocks: BTreeMap<u64, u32>,
    /// Bytes that are being changed, by change.
    changing: BTreeMap<u64, Range<u64>>,
    /// Under this lease something was written that may still happen.
    doubted: Option<LeaseId>,
}

struct Fill {
    file: FileId,
    block: u64,
    spoilt: bool,
}

/// A part of a read that one slot answers.
#[derive(Clone, PartialEq, Debug)]
pub struct Piece {
    pub slot: u32,
    generation: u64,
    /// Within the block, whole 4 KiB.
    pub from: usize,
    pub len: usize,
    pub sums: Vec<BlockCrc>,
}

fn blocks_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl ReadCache {
    pub fn new(slots: u32, admit_at: u8) -> ReadCache {
        ReadCache {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            free: (0..slots).rev().collect(),
            hand: 0,
            files: BTreeMap::new(),
            admission: Admission::new(slots, admit_at),
            fills: BTreeMap::new(),
            last_id: 0,
            counts: Counts::default(),
        }
    }

    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn used_slots(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    // Leases.

    /// A lease was granted: `before` is the newest write lease granted earlier, `now` the newest one with it.
    pub fn granted(&mut self, file: FileId, before: LeaseId, now: LeaseId, lease: LeaseId) {
        let cached = self.files.entry(file).or_default();
        let same = cached.version == before || on(Sabotage::KeepStaleCache);
        if cached.doubted.is_some_and(|doubted| doubted != lease) {
            cached.doubted = None;
        }
        (cached.version, cached.lease) = (now, lease);
        if !same {
            self.forget(file);
        }
    }

    /// Nothing is known of the file's contents any more.
    pub fn lost(&mut self, file: FileId) {
        self.forget(file);
        // Keeps doubts: the lease they are about may still be at work.
        if let Some(cached) = self.files.get_mut(&file) {
            (cached.version, cached.lease) = (LeaseId(0), LeaseId(0));
        }
        self.drop_if_empty(file);
    }

    /// The lease goes back: what is cached stays for the next one.
    pub fn closed(&mut self, file: FileId) {
        self.spoil_fills(file, &(0..u64::MAX));
        self.admission.closed(file);
        if let Some(cached) = self.files.get_mut(&file) {
            cached.lease = LeaseId(0);
        }
        self.drop_if_empty(file);
    }

    fn drop_if_empty(&mut self, file: FileId) {
        let empty = |f: &CachedFile| {
            f.lease == LeaseId(0) && f.blocks.is_empty() && f.changing.is_empty() && f.doubted.is_none()
        };
        if self.files.get(&file).is_some_and(empty) {
            self.files.remove(&file);
        }
    }

    fn forget(&mut self, file: FileId) {
        self.spoil_fills(file, &(0..u64::MAX));
        self.drop_blocks(file, 0..u64::MAX);
    }

    fn spoil_fills(&mut self, file: FileId, bytes: &Range<u64>) {
        for fill in self.fills.values_mut().filter(|f| f.file == file) {
            let own = fill.block * BLOCK_BYTES..(fill.block + 1) * BLOCK_BYTES;
            fill.spoilt |= overlap(&own, bytes);
        }
    }

    fn drop_blocks(&mut self, file: FileId, blocks: Range<u64>) {
        let Some(cached) = self.files.get_mut(&file) else { return };
        let gone: Vec<(u64, u32)> = cached.blocks.range(blocks).map(|(b, s)| (*b, *s)).collect();
        for (block, slot) in gone {
            cached.blocks.remove(&block);
            self.counts.invalidated += 1;
            release(&mut self.slots, &mut self.free, slot);
        }
    }

    // Changes by this client.

    /// Bytes of the file are about to change; until [`ReadCache::change_ended`] none of their blocks comes in.
    pub fn change_begins(&mut self, file: FileId, bytes: Range<u64>) -> u64 {
        self.last_id += 1;
        if !on(Sabotage::CacheIgnoresWrites) {
            self.spoil_fills(file, &bytes);
            self.drop_blocks(file, blocks_of(&bytes));
        }
        self.files.entry(file).or_default().changing.insert(self.last_id, bytes);
        self.last_id
    }

    pub fn change_ended(&mut self, file: FileId, change: u64, certain: bool) {
        let Some(cached) = self.files.get_mut(&file) else { return };
        cached.changing.remove(&change);
        if !certain {
            cached.doubted = Some(cached.lease);
            self.forget(file);
        }
        self.drop_if_empty(file);
    }

    // Reading.

    /// The slots that hold all of `bytes` (whole 4 KiB), or nothing.
    pub fn look_up(&mut self, file: FileId, bytes: Range<u64>) -> Option<Vec<Piece>> {
        let found = self.find(file, &bytes);
        match &found {
            Some(pieces) => {
                self.counts.hits += 1;
                self.counts.hit_bytes += bytes.end - bytes.start;
                pieces.iter().for_each(|p| self.slots[p.slot as usize].used = true);
            }
            None => {
                self.counts.misses += 1;
                self.drop_short(file, &bytes);
            }
        }
        found
    }

    /// Blocks that came in when the file ended in them, and do not reach as far as is read now.
    fn drop_short(&mut self, file: FileId, bytes: &Range<u64>) {
        let Some(cached) = self.files.get(&file) else { return };
        let reach = |slot: u32| (self.slots[slot as usize].sums.len() * shards::BLOCK_BYTES) as u64;
        let held = cached.blocks.range(blocks_of(bytes));
        let short = held.filter(|(block, slot)| {
            let end = bytes.end.min((**block + 1) * BLOCK_BYTES);
            **block * BLOCK_BYTES + reach(**slot) < end
        });
        let short: Vec<u64> = short.map(|(block, _)| *block).collect();
        for block in short {
            self.drop_blocks(file, block..block + 1);
        }
    }

    fn find(&self, file: FileId, bytes: &Range<u64>) -> Option<Vec<Piece>> {
        let cached = self.files.get(&file)?;
        let mut pieces = Vec::new();
        for block in blocks_of(bytes) {
            let slot = *cached.blocks.get(&block)?;
            let at = block * BLOCK_BYTES;
            let (from, to) = (bytes.start.max(at) - at, bytes.end.min(at + BLOCK_BYTES) - at);
            let small = shards::BLOCK_BYTES as u64;
            let sums =
                self.slots[slot as usize].sums.get((from / small) as usize..to.div_ceil(small) as usize)?;
            let held = &self.slots[slot as usize];
            if held.writing {
                return None;
            }
            pieces.push(Piece {
                slot,
                generation: held.generation,
                from: from as usize,
                len: (to - from) as usize,
                sums: sums.to_vec(),
            });
        }
        Some(pieces)
    }

    /// Whether what was found is still what the cache holds: asked when the bytes have come.
    pub fn still_holds(&self, pieces: &[Piece]) -> bool {
        pieces.iter().all(|p| {
            let slot = &self.slots[p.slot as usize];
            slot.holder.is_some() && slot.generation == p.generation
        })
    }

    /// A hit that was none after all: the bytes did not come, or were wrong.
    pub fn failed(&mut self, pieces: &[Piece], damaged: Option<&Piece>) {
        self.counts.hits -= 1;
        self.counts.hit_bytes -= pieces.iter().map(|p| p.len as u64).sum::<u64>();
        self.counts.misses += 1;
        let Some(piece) = damaged else { return };
        if self.slots[piece.slot as usize].generation == piece.generation
            && let Some((file, block)) = self.slots[piece.slot as usize].holder
        {
            self.counts.checksum_errors += 1;
            self.drop_blocks(file, block..block + 1);
        }
    }

    // Coming in.

    /// Notes a read; names the blocks that have earned a place by it.
    pub fn note_use(&mut self, file: FileId, bytes: Range<u64>) -> Vec<u64> {
        let mut wanted = self.admission.note(file, bytes);
        let held = self.files.get(&file).map(|f| &f.blocks);
        wanted.retain(|block| held.is_none_or(|h| !h.contains_key(block)));
        wanted
    }

    /// Begins to read a block in, unless it can't come in now.
    pub fn fill_begins(&mut self, file: FileId, block: u64) -> Option<u64> {
        let cached = self.files.get(&file)?;
        let own = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
        let refused = self.fills.len() >= MOST_FILLS
            || cached.lease == LeaseId(0)
            || cached.doubted.is_some()
            || cached.blocks.contains_key(&block)
            || cached.changing.values().any(|range| overlap(range, &own))
            || self.fills.values().any(|f| f.file == file && f.block == block);
        if refused {
            return None;
        }
        self.last_id += 1;
        self.fills.insert(self.last_id, Fill { file, block, spoilt: false });
        Some(self.last_id)
    }

    /// The block was read, with these CRCs (none: it could not be). Says where to write it, if it may come in.
    pub fn fill_ended(&mut self, fill: u64, sums: Option<Vec<BlockCrc>>) -> Option<u32> {
        let Fill { file, block, spoilt } = self.fills.remove(&fill)?;
        let sums = sums.filter(|s| !spoilt && !s.is_empty())?;
        let slot = self.take_slot()?;
        let taken = &mut self.slots[slot as usize];
        *taken = Slot {
            holder: Some((file, block)),
            sums,
            writing: true,
            used: false,
            generation: taken.generation + 1,
        };
        self.files.entry(file).or_default().blocks.insert(block, slot);
        self.counts.admitted += 1;
        Some(slot)
    }

    /// The bytes of a slot are on the device, or could not be written.
    pub fn written(&mut self, slot: u32, ok: bool) {
        let held = &mut self.slots[slot as usize];
        held.writing = false;
        match held.holder {
            None => self.free.push(slot), // Thrown out meanwhile.
            Some((file, block)) if !ok => self.drop_blocks(file, block..block + 1),
            Some(_) => {}
        }
    }

    /// A free slot, or the next one that was not used since the hand came by last.
    fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.writing || std::mem::take(&mut slot.used) {
                continue;
            }
            let (file, block) = slot.holder?;
            if let Some(cached) = self.files.get_mut(&file) {
                cached.blocks.remove(&block);
            }
            self.counts.evicted += 1;
            return Some(self.hand as u32);
        }
        None
    }

    // Over a restart.

    /// What each slot holds: for the table.
    pub fn entries(&self) -> Vec<Option<Entry>> {
        let entry = |slot: &Slot| {
            let (file, block) = slot.holder?;
            let cached = self.files.get(&file)?;
            let settled = !slot.writing && cached.changing.is_empty() && cached.doubted.is_none();
            settled.then(|| Entry { file, version: cached.version, block, sums: slot.sums.clone() })
        };
        self.slots.iter().map(entry).collect()
    }

    /// Takes over a table, leaving out files that were used since.
    pub fn restore(&mut self, entries: Vec<Option<Entry>>) {
        for (slot, entry) in entries.into_iter().enumerate().take(self.slots.len()) {
            let Some(entry) = entry.filter(|e| !e.sums.is_empty()) else { continue };
            let cached = self.files.entry(entry.file).or_default();
            let usable = cached.lease == LeaseId(0)
                && (cached.blocks.is_empty() || cached.version == entry.version)
                && !cached.blocks.contains_key(&entry.block);
            if usable {
                cached.version = entry.version;
                cached.blocks.insert(entry.block, slot as u32);
                let held = &mut self.slots[slot];
                held.holder = Some((entry.file, entry.block));
                held.sums = entry.sums;
            }
        }
        self.free.retain(|slot| self.slots[*slot as usize].holder.is_none());
    }
}

/// The slot's contents count no more. One that is being written is free when that has ended.
fn release(slots: &mut [Slot], free: &mut Vec<u32>, slot: u32) {
    let held = &mut slots[slot as usize];
    held.holder = None;
    held.sums.clear();
    held.generation += 1;
    if !held.writing {
        free.push(slot);
    }
}

#[cfg(test)]
mod tests;
