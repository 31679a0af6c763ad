//! The store over a virtual disk: round trips, random work with crashes, corruption, space.

mod clones;
mod cuts;
mod flips;

use super::*;
use shards::sim::{CrashKind, FaultEffect, FaultOn, FaultRule, TestIo, VirtualDisk};
use std::collections::BTreeSet;
use wire::data::block_crcs;

fn config() -> StoreConfig {
    StoreConfig {
        dir: "shard-000".into(),
        journal_path: "shard-000/journal".into(),
        journal_bytes: 4 << 20,
        capacity_bytes: 64 << 20,
        map_cache_bytes: 4 * MAP_PAGE_MEMORY,
        overlay_bytes: 256 << 10,
        cache: None,
    }
}

/// Number of the file `data` on the virtual disk: the first that is opened.
const DATA: usize = 0;
const CACHE: &str = "ssd/shard-000.cache";

/// Little room, so that units soon go from one chunk to another.
fn config_with_cache() -> StoreConfig {
    let cache = CacheConfig { path: CACHE.into(), bytes: 4 << 20, id: [1; 16] };
    StoreConfig { cache: Some(cache), capacity_bytes: 16 << 20, ..config() }
}

struct Bench {
    io: TestIo,
    config: StoreConfig,
    cache_lost: Vec<String>,
    store: Store,
    finished: Vec<(u64, Result<Done, StoreError>)>,
    broken: Option<String>,
    next: u64,
    /// What writes say is committed.
    committed: Sequence,
}

impl Bench {
    fn new() -> Bench {
        Bench::open(TestIo::new(1), &config())
    }

    fn with_cache() -> Bench {
        let mut io = TestIo::new(1);
        io.disk().touch(CACHE);
        Bench::open(io, &config_with_cache())
    }

    fn open(mut io: TestIo, config: &StoreConfig) -> Bench {
        let store = Store::open(&mut io, config).unwrap();
        let (config, cache_lost) = (config.clone(), Vec::new());
        let mut bench = Bench {
            io,
            config,
            cache_lost,
            store,
            finished: Vec::new(),
            broken: None,
            next: 1,
            committed: Sequence(0),
        };
        while !bench.store.is_ready() && bench.broken.is_none() && bench.step(false) {}
        bench
    }

    fn gather(&mut self) {
        for outcome in self.store.outcomes() {
            match outcome {
                Outcome::Ready => {}
                Outcome::CacheLost(why) => self.cache_lost.push(why),
                Outcome::Broken(error) => self.broken = Some(error.to_string()),
                Outcome::Finished { ticket, result } => self.finished.push((ticket.0, result)),
            }
        }
    }

    /// Completes one operation, the oldest or any.
    fn step(&mut self, any: bool) -> bool {
        let done = if any { self.io.complete_any() } else { self.io.complete_next() };
        let Some((op, result)) = done else { return false };
        assert!(self.store.on_disk(&mut self.io, op, result));
        self.gather();
        true
    }

    fn settle(&mut self) {
        self.gather();
        while self.step(false) {}
    }

    /// Lets the periodic apply run to its end.
    fn apply(&mut self) {
        self.settle();
        for timer in self.io.advance(APPLY_AFTER * 2) {
            self.store.on_timer(&mut self.io, timer);
        }
        self.settle();
    }

    fn space(&mut self) -> (u64, u64) {
        self.store.space(&mut self.io, 1)
    }

    fn crash(self, seed: u64) -> Bench {
        let disk = self.io.crash(CrashKind::Power, seed);
        Bench::open(TestIo::with_disk(disk, seed), &self.config)
    }

    fn write(&mut self, chunk: u64, first: u32, values: &[u8], sequence: u64) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|&v| vec![v; BLOCK_BYTES]).collect();
        let op = WriteOp {
            chunk: ChunkId(chunk),
            stamp: Stamp {
                epoch: Epoch(1),
                sequence: Sequence(sequence),
                committed: self.committed,
                ..Stamp::default()
            },
            offset_bytes: first * BLOCK_BYTES as u32,
            crcs: block_crcs(&bytes).collect(),
            payload: Buf::from_slice(&bytes),
        };
        self.next += 1;
        self.store.write(&mut self.io, Ticket(self.next), op);
        self.gather();
        self.next
    }

    fn discard(&mut self, chunk: u64, first: u32, count: u32, sequence: u64) -> u64 {
        let op = DiscardOp {
            chunk: ChunkId(chunk),
            stamp: Stamp { epoch: Epoch(1), sequence: Sequence(sequence), ..Stamp::default() },
            offset_bytes: first * BLOCK_BYTES as u32,
            length_bytes: count * BLOCK_BYTES as u32,
        };
        self.next += 1;
        self.store.discard(&mut self.io, Ticket(self.next), op);
        self.gather();
        self.next
    }

    /// First byte of each block; panics if a block is not uniform.
    fn read(&mut self, chunk: u64, first: u32, count: u32) -> Result<Vec<u8>, StoreError> {
        self.next += 1;
        let ticket = self.next;
        let block = BLOCK_BYTES as u32;
        self.store.read(&mut self.io, Ticket(ticket), ChunkId(chunk), first * block, count * block);
        self.result_of(ticket)
    }

    /// Of a read, as [`Bench::read`] returns it.
    fn result_of(&mut self, ticket: u64) -> Result<Vec<u8>, StoreError> {
        self.settle();
        self.result_so_far(ticket)
    }

    fn result_so_far(&mut self, ticket: u64) -> Result<Vec<u8>, StoreError> {
        let at = self.finished.iter().position(|f| f.0 == ticket).expect("the read ended");
        match self.finished.remove(at).1? {
            Done::Read { data, crcs } => {
                assert!(wire::data::first_mismatch(&data, &crcs).is_none());
                Ok(data
                    .chunks(BLOCK_BYTES)
                    .map(|b| {
                        assert!(b[1..] == b[..BLOCK_BYTES - 1], "a torn block");
                        b[0]
                    })
                    .collect())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Makes chunk `to` of chunk `from`.
    fn clone_chunk(&mut self, from: u64, to: u64) -> u64 {
        self.next += 1;
        self.store.clone_chunk(&mut self.io, Ticket(self.next), ChunkId(from), ChunkId(to));
        self.gather();
        self.next
    }

    /// Every unit that is taken is named by as many map pages as share it, and the other way round. (Nothing is under way.)
    fn check_units(&mut self, seed: u64) {
        let mut named: BTreeMap<u32, u16> = BTreeMap::new();
        for (id, chunk) in &self.store.chunks {
            for number in bits(chunk.exists) {
                let in_file = page::map_number(chunk.slot, number);
                let at = page::offset(in_file, (chunk.places >> number & 1) as u8);
                let bytes =
                    self.io.disk().peek("shard-000/maps", at, BLOCK_BYTES).expect("the file is there");
                let found = page::check(&bytes, PageKind::Map, in_file, *id, self.store.committed_round);
                assert!(found.is_ok(), "seed {seed}: {found:?}");
                for unit in MapPage::decode(&bytes).units() {
                    *named.entry(unit).or_default() += 1;
                    assert!(self.store.units.is_referenced(unit), "seed {seed}: unit {unit} counts as free");
                }
            }
        }
        for (unit, names) in &named {
            assert_eq!(*names, 1 + self.store.shares.of(*unit), "seed {seed}: shares of unit {unit}");
        }
        let taken = self.store.units.total() - self.store.units.free();
        assert_eq!(taken, named.len() as u32, "seed {seed}: units leak");
    }

    fn ok(&mut self, ticket: u64) {
        self.settle();
        self.ok_now(ticket);
    }

    fn ok_now(&mut self, ticket: u64) {
        let at = self
            .finished
            .iter()
            .position(|f| f.0 == ticket)
            .unwrap_or_else(|| panic!("{ticket} did not end"));
        self.finished.remove(at).1.unwrap();
    }
}

#[test]
fn small_large_and_mixed_writes_read_back_before_and_after_apply_and_crash() {
    let mut b = Bench::new();
    let ticket = b.write(7, 3, &[1, 2, 3], 1);
    b.ok(ticket);
    let large: Vec<u8> = (0..300).map(|i| (i % 200) as u8 + 1).collect();
    let ticket = b.write(7, 10, &large, 2);
    b.ok(ticket);
    let ticket = b.write(7, 40, &[250], 3);
    b.ok(ticket);
    let mut expected = vec![0u8; 400];
    expected[3..6].copy_from_slice(&[1, 2, 3]);
    expected[10..310].copy_from_slice(&large);
    expected[40] = 250;
    assert_eq!(b.read(7, 0, 400).unwrap(), expected);
    b.apply();
    assert_eq!(b.read(7, 0, 400).unwrap(), expected);
    assert_eq!(b.store.journal_fill().0, 0, "everything is applied");
    let ticket = b.write(7, 41, &[251], 4);
    b.ok(ticket);
    expected[41] = 251;
    let mut b = b.crash(5);
    assert_eq!(b.broken, None);
    assert_eq!(b.read(7, 0, 400).unwrap(), expected);
    let info = b.store.chunk(ChunkId(7)).unwrap();
    assert_eq!((info.epoch, info.last_sequence), (Epoch(1), Sequence(4)));
    assert!(info.tail.iter().any(|t| t.sequence == Sequence(4) && t.first_block == 41));
}

#[test]
fn room_of_units_that_stay_free_goes_back_to_the_file_system() {
    let mut b = Bench::new();
    let rest = |b: &mut Bench| {
        for _ in 0..40 {
            for timer in b.io.advance(Duration::from_secs(1)) {
                b.store.on_timer(&mut b.io, timer);
            }
            b.settle();
        }
    };
    let (gone, kept) = (b.write(1, 0, &[1; 1024], 1), b.write(2, 0, &[2; 32], 1));
    b.ok(gone);
    b.ok(kept);
    rest(&mut b);
    let (before, free_before) = (b.io.disk().allocated(DATA), b.space().1);
    let discarded = b.discard(1, 0, 1024, 2);
    b.ok(discarded);
    for timer in b.io.advance(Duration::from_secs(6)) {
        b.store.on_timer(&mut b.io, timer);
    }
    // Where some of it is used again at once, that keeps its room.
    let again = b.write(3, 0, &[3; 64], 1);
    b.ok(again);
    rest(&mut b);
    let given_back = before - b.io.disk().allocated(DATA);
    assert_eq!(given_back, 960 * BLOCK_BYTES as u64);
    assert_eq!(b.space().1 - free_before, 960 * BLOCK_BYTES as u64, "all of it is free, none is lost");
    // The room is there again for whoever comes, and what stood there before never shows.
    let (small, large) = (b.write(4, 7, &[4], 1), b.write(4, 16, &[5; 896], 2));
    b.ok(small);
    b.ok(large);
    let expected = |b: &mut Bench| {
        assert_eq!(b.read(2, 0, 32).unwrap(), [2; 32]);
        assert_eq!(b.read(3, 0, 64).unwrap(), [3; 64]);
        assert_eq!(b.read(4, 6, 3).unwrap(), [0, 4, 0]);
        assert_eq!(b.read(4, 16, 896).unwrap(), [5; 896]);
        assert_eq!(b.read(1, 0, 1024).unwrap(), [0; 1024]);
    };
    expected(&mut b);
    rest(&mut b);
    let mut b = b.crash(9);
    assert_eq!(b.broken, None);
    expected(&mut b);
}

#[test]
fn a_file_system_that_takes_no_holes_is_asked_once() {
    let mut b = Bench::new();
    let ticket = b.write(1, 0, &[1; 512], 1);
    b.ok(ticket);
    let ticket = b.discard(1, 0, 512, 2);
    b.ok(ticket);
    b.apply();
    b.io.fault(FaultRule::next(FaultOn::Write, "shard-000/data", FaultEffect::Eio));
    let before = b.io.disk().allocated(DATA);
    for _ in 0..30 {
        for timer in b.io.advance(Duration::from_secs(1)) {
            b.store.on_timer(&mut b.io, timer);
        }
        b.settle();
    }
    assert_eq!((b.broken.as_ref(), b.io.disk().allocated(DATA)), (None, before));
    let ticket = b.write(2, 0, &[2; 512], 1);
    b.ok(ticket);
    assert_eq!(b.read(2, 0, 512).unwrap(), [2; 512]);
}

#[test]
fn overlapping_operations_take_effect_in_order() {
    let mut b = Bench::new();
    let tickets = [
        b.write(1, 0, &[1; 20], 1),
        b.write(1, 10, &[2; 20], 2),
        b.discard(1, 15, 2, 3),
        b.write(1, 16, &[4], 4),
    ];
    while b.step(true) {}
    for ticket in tickets {
        b.ok(ticket);
    }
    let got = b.read(1, 0, 32).unwrap();
    let expected: Vec<u8> = (0..32)
        .map(|i| match i {
            16 => 4,
            15 => 0,
            0..10 => 1,
            10..30 => 2,
            _ => 0,
        })
        .collect();
    assert_eq!(got, expected);
}

impl Bench {
    /// Reads while a round begins and ends.
    fn read_across_a_round(&mut self, chunk: u64, first: u32, count: u32) -> Result<Vec<u8>, StoreError> {
        let (ticket, reads) = self.begin_read(chunk, first, count);
        self.apply_without(&reads);
        self.result_of(ticket)
    }

    /// A read, and what it waits for.
    fn begin_read(&mut self, chunk: u64, first: u32, count: u32) -> (u64, Vec<OpId>) {
        let block = BLOCK_BYTES as u32;
        self.next += 1;
        let before = self.io.pending();
        self.store.read(&mut self.io, Ticket(self.next), ChunkId(chunk), first * block, count * block);
        let reads: Vec<OpId> = self.io.pending().into_iter().filter(|op| !before.contains(op)).collect();
        assert!(!reads.is_empty());
        (self.next, reads)
    }

    /// Rounds until the journal is empty, while these operations don't end.
    fn apply_without(&mut self, held: &[OpId]) {
        while self.store.journal_fill().0 > 0 {
            for timer in self.io.advance(APPLY_AFTER * 2) {
                self.store.on_timer(&mut self.io, timer);
            }
            while let Some(op) = self.io.pending().into_iter().find(|op| !held.contains(op)) {
                let result = self.io.complete(op).expect("pending");
                assert!(self.store.on_disk(&mut self.io, op, result));
                self.gather();
            }
        }
    }
}

#[test]
fn a_read_that_began_before_a_round_and_ends_behind_it_is_whole() {
    let mut b = Bench::new();
    let t = b.write(1, 0, &[1, 2, 3], 1);
    b.ok(t);
    b.apply();
    let t = b.write(1, 1, &[9], 2);
    b.ok(t);
    assert_eq!(b.read_across_a_round(1, 0, 3).unwrap(), [1, 9, 3]);
}

/// More small writes than may be in memory, in rows of 8 blocks; the first byte of each block.
fn fill_the_overlay(b: &mut Bench, chunk: u64) -> Vec<u8> {
    let rows = 2 * b.config.most_blocks_in_memory() as u32 / 8;
    let mut expected = Vec::new();
    for row in 0..rows {
        let values = [row as u8 + 1; 8];
        let t = b.write(chunk, row * 8, &values, u64::from(row) + 1);
        while !b.finished.iter().any(|f| f.0 == t) {
            // Rounds stand still: only the journal's operations go on.
            let mine = |op: &OpId| op.0 >> 56 != NAMESPACE >> 56;
            let op = b.io.pending().into_iter().find(mine).expect("the write goes on");
            let result = b.io.complete(op).expect("pending");
            assert!(b.store.on_disk(&mut b.io, op, result));
            b.gather();
        }
        b.ok_now(t);
        expected.extend(values);
    }
    assert!(b.store.overlay.in_memory <= b.config.most_blocks_in_memory());
    assert_eq!(b.store.overlay.blocks, expected.len(), "nothing was written back");
    expected
}

#[test]
fn small_writes_beyond_memory_wait_in_the_journal_alone_and_are_read_from_there() {
    let mut b = Bench::new();
    let expected = fill_the_overlay(&mut b, 1);
    let all = expected.len() as u32;
    assert_eq!(b.read(1, 0, all).unwrap(), expected);
    let copy = b.io.crash_copy(CrashKind::Power, 1);
    let mut crashed = Bench::open(TestIo::with_disk(copy, 1), &config());
    assert_eq!(crashed.read(1, 0, all).unwrap(), expected, "replayed");
    b.apply();
    assert_eq!(b.read(1, 0, all).unwrap(), expected, "written back");
    assert_eq!(b.store.overlay, Waits::default());
    b.check_units(0);
}

#[test]
fn a_read_from_the_journal_finds_blocks_that_were_written_back_meanwhile() {
    let mut b = Bench::new();
    let expected = fill_the_overlay(&mut b, 1);
    let last = expected.len() as u32 - 4;
    assert_eq!(b.read_across_a_round(1, last, 4).unwrap(), expected[last as usize..]);
}

#[test]
fn a_block_damaged_in_the_journal_is_never_returned() {
    let mut b = Bench::new();
    let expected = fill_the_overlay(&mut b, 1);
    let last = expected.len() as u32 - 1;
    let overlay::Held::Journal(at) = b.store.chunks[&ChunkId(1)].overlay[&last].held else {
        panic!("it is in memory")
    };
    b.io.disk().flip_bit("shard-000/journal", at + 100, 2);
    assert!(matches!(b.read(1, last, 1), Err(StoreError::Checksum { block, .. }) if block == last));
    b.apply();
    assert!(matches!(b.read(1, last, 1), Err(StoreError::Checksum { block, .. }) if block == last));
    assert_eq!(b.read(1, 0, last).unwrap(), expected[..last as usize]);
}

#[test]
fn writes_beyond_what_may_wait_are_done_when_a_round_has_ended() {
    let config = StoreConfig { overlay_bytes: 64 << 10, ..config() };
    let mut b = Bench::open(TestIo::new(1), &config);
    let most = config.most_waiting_blocks() as u32;
    let tickets: Vec<u64> = (0..2 * most).map(|n| b.write(1, n, &[n as u8 | 1], u64::from(n) + 1)).collect();
    tickets.into_iter().for_each(|t| b.ok(t));
    let expected: Vec<u8> = (0..2 * most).map(|n| n as u8 | 1).collect();
    assert_eq!(b.read(1, 0, 2 * most).unwrap(), expected);
}

#[test]
fn discard_and_delete_give_space_back() {
    let mut b = Bench::new();
    let before = b.space().1;
    let t = b.write(1, 0, &[9; 256], 1);
    b.ok(t);
    assert_eq!(before - b.space().1, 1 << 20);
    let t = b.discard(1, 0, 128, 2);
    b.ok(t);
    b.apply();
    assert_eq!(before - b.space().1, 1 << 19);
    b.store.delete(&mut b.io, Ticket(5000), ChunkId(1));
    b.ok(5000);
    b.apply();
    assert_eq!(b.space().1, before);
    assert!(matches!(b.read(1, 0, 1), Err(StoreError::UnknownChunk(_))));
    let b = b.crash(1);
    assert_eq!((b.broken, b.store.chunk_count(), b.store.units.free()), (None, 0, 1024));
}

#[test]
fn no_space_is_refused_before_anything_changes() {
    let mut b = Bench::new();
    let mut sequence = 0;
    loop {
        sequence += 1;
        let t = b.write(sequence, 0, &[1; 256], 1);
        b.settle();
        let at = b.finished.iter().position(|f| f.0 == t).unwrap();
        match b.finished.remove(at).1 {
            Ok(_) => assert!(sequence <= 64),
            Err(StoreError::NoSpace) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(sequence, 65);
    assert!(b.store.chunk(ChunkId(65)).is_none());
    assert_eq!(b.read(64, 0, 256).unwrap(), [1; 256]);
    b.apply();
    let mut b = b.crash(3);
    assert_eq!(b.broken, None);
    assert_eq!(b.read(64, 0, 256).unwrap(), [1; 256]);
}

#[test]
fn flipped_bits_are_reported_and_never_returned() {
    let mut b = Bench::new();
    let t = b.write(1, 0, &[7; 16], 1);
    b.ok(t);
    b.apply();
    b.io.disk().flip_bit("shard-000/data", 5 * 4096 + 100, 2);
    assert!(matches!(b.read(1, 0, 16), Err(StoreError::Checksum { block: 5, .. })));
    assert_eq!(b.read(1, 6, 10).unwrap(), [7; 10]);
    b.apply();
    // Both places of the header damaged: the chunk can't be opened as if it had never been.
    let mut disk = b.io.crash(CrashKind::Power, 1);
    disk.flip_bit("shard-000/index", 300, 1);
    disk.flip_bit("shard-000/index", 4096 + 300, 1);
    let b = Bench::open(TestIo::with_disk(disk, 1), &config());
    assert!(b.broken.unwrap().contains("index is corrupt at offset 0: expected page 0"));
}

#[test]
fn units_of_a_map_page_that_was_given_up_are_found_and_freed() {
    let mut b = Bench::new();
    for chunk in 1..=6 {
        let t = b.write(chunk, 0, &[chunk as u8; 160], 1);
        b.ok(t);
        let t = b.write(chunk, PAGE_BLOCKS, &[chunk as u8; 32], 2);
        b.ok(t);
    }
    b.apply();
    let mut b = b.crash(1);
    let free = b.store.units.free();
    let slot = b.store.chunks[&ChunkId(2)].slot;
    damage_map(b.io.disk(), slot);
    assert!(b.read(2, 0, 1).unwrap_err().is_damage());
    let emptied = b.discard(2, 0, PAGE_BLOCKS, 3);
    // Others change meanwhile.
    b.write(3, 16, &[9; 48], 3);
    b.write(7, 0, &[7; 16], 1);
    b.ok(emptied);
    b.apply();
    b.apply();
    b.check_units(0);
    assert_eq!(b.store.units.free(), free + 10 - 1);
    let mut b = b.crash(2);
    assert_eq!((b.broken.clone(), b.read(2, 0, 1).unwrap()), (None, vec![0]));
    assert_eq!(b.read(3, 0, 160).unwrap()[16..65], [[9; 48].as_slice(), &[3]].concat());
    assert_eq!((b.read(6, 0, 160).unwrap(), b.read(7, 0, 16).unwrap()), (vec![6; 160], vec![7; 16]));
    b.check_units(0);
}

/// Damages both versions of the first map page of a chunk.
fn damage_map(disk: &mut VirtualDisk, slot: u32) {
    let at = page::map_number(slot, 0);
    for place in [0, 1] {
        assert!(disk.flip_bit("shard-000/maps", page::offset(at, place) + 300, 1));
    }
}

#[test]
fn what_a_census_found_is_not_given_away_before_a_round_has_recorded_it() {
    let mut b = Bench::new();
    for chunk in 1..=2 {
        let t = b.write(chunk, 0, &[chunk as u8; 160], 1);
        b.ok(t);
    }
    b.apply();
    let mut b = b.crash(1);
    let (free, slot) = (b.store.units.free(), b.store.chunks[&ChunkId(1)].slot);
    damage_map(b.io.disk(), slot);
    assert!(b.read(1, 0, 1).unwrap_err().is_damage());
    b.settle();
    assert!(b.store.census.is_none());
    let t = b.write(3, 0, &[3; 160], 1);
    b.ok(t);
    let mut b = b.crash(2);
    assert_eq!(b.broken, None);
    assert_eq!((b.read(2, 0, 160).unwrap(), b.read(3, 0, 160).unwrap()), (vec![2; 160], vec![3; 160]));
    assert!(b.read(1, 0, 1).unwrap_err().is_damage());
    b.apply();
    b.apply();
    b.check_units(0);
    assert_eq!(b.store.units.free(), free, "ten were lost, and ten are taken");
}

#[test]
fn what_a_lost_map_page_named_may_be_named_by_another_since() {
    let mut b = Bench::new();
    let t = b.write(1, 0, &[1; 160], 1);
    b.ok(t);
    b.apply();
    let slot = b.store.chunks[&ChunkId(1)].slot;
    // The first write's units are free when the second is durable, and the third gets them.
    for (chunk, value, sequence) in [(1, 2, 2), (2, 3, 1)] {
        let t = b.write(chunk, 0, &[value; 160], sequence);
        b.ok(t);
    }
    let mut disk = b.io.crash(CrashKind::Power, 1);
    damage_map(&mut disk, slot);
    let mut b = Bench::open(TestIo::with_disk(disk, 1), &config());
    assert_eq!(b.broken, None);
    assert_eq!((b.read(1, 0, 160).unwrap(), b.read(2, 0, 160).unwrap()), (vec![2; 160], vec![3; 160]));
    b.apply();
    b.apply();
    b.check_units(0);
}

#[test]
fn what_waits_behind_a_request_that_ends_with_its_map_page_goes_on() {
    let mut b = Bench::new();
    let written = b.write(1, 0, &[1], 1);
    b.ok(written);
    b.apply();
    let mut b = b.crash(1);
    assert!(b.store.chunks[&ChunkId(1)].pages.is_empty(), "its map page is on the disk only");
    b.next += 1;
    let sums = b.next;
    b.store.sums(&mut b.io, Ticket(sums), ChunkId(1), 0, 1, false);
    let behind = b.write(1, 0, &[2], 2);
    b.ok(sums);
    b.ok(behind);
    assert_eq!(b.read(1, 0, 1).unwrap(), [2]);
}

#[test]
fn records_are_replayed_over_a_damaged_map_page_whose_other_blocks_are_lost() {
    let mut b = Bench::new();
    for chunk in 1..=3 {
        let t = b.write(chunk, 0, &[chunk as u8; 160], 1);
        b.ok(t);
    }
    b.apply();
    // In the journal alone, over the page that will be damaged: a small write, whole units anew, and a discard.
    for (sequence, first, values) in [(2, 3, &[20; 2][..]), (3, 32, &[21; 32]), (4, 66, &[22; 1])] {
        let t = b.write(2, first, values, sequence);
        b.ok(t);
    }
    let t = b.discard(2, 80, 4, 5);
    b.ok(t);
    let slot = b.store.chunks[&ChunkId(2)].slot;
    let mut disk = b.io.crash(CrashKind::Power, 1);
    damage_map(&mut disk, slot);
    let mut b = Bench::open(TestIo::with_disk(disk, 1), &config());
    assert_eq!(b.broken, None);
    for _ in 0..2 {
        b.apply();
        assert_eq!((b.read(1, 0, 160).unwrap(), b.read(3, 0, 160).unwrap()), (vec![1; 160], vec![3; 160]));
        assert_eq!((b.read(2, 3, 2).unwrap(), b.read(2, 32, 32).unwrap()), (vec![20; 2], vec![21; 32]));
        assert_eq!((b.read(2, 66, 1).unwrap(), b.read(2, 80, 4).unwrap()), (vec![22], vec![0; 4]));
        for lost in [0, 2, 5, 31, 64, 65, 67, 79, 84, 159, 300, PAGE_BLOCKS - 1] {
            assert!(b.read(2, lost, 1).unwrap_err().is_damage(), "block {lost}");
        }
        assert!(b.read(2, 0, 160).unwrap_err().is_damage());
        assert_eq!(b.store.allocated_ranges(ChunkId(2)), vec![0..PAGE_BLOCKS], "lost blocks are no holes");
        assert_eq!(b.store.allocated_from(ChunkId(2), 300), Some(300..PAGE_BLOCKS));
        b.check_units(0);
        b = b.crash(2);
        assert_eq!(b.broken, None);
    }
    // Another replica's bytes make it whole; what was a hole becomes one again.
    let t = b.write(2, 0, &[9; 160], 6);
    b.ok(t);
    let t = b.discard(2, 160, PAGE_BLOCKS - 160, 7);
    b.ok(t);
    b.apply();
    let mut b = b.crash(3);
    assert_eq!((b.read(2, 0, 160).unwrap(), b.read(2, 300, 1).unwrap()), (vec![9; 160], vec![0]));
    b.check_units(0);
}

/// What a block may hold: the last acknowledged value, or any unacknowledged one since.
#[derive(Clone, Default)]
struct Model(BTreeMap<(u64, u32), BTreeSet<u8>>);

#[test]
fn random_work_with_crashes_keeps_every_acknowledged_block() {
    for seed in 0..seeds() {
        random_run(seed, Bench::new());
    }
}

#[test]
fn random_work_with_crashes_and_a_cache_returns_nothing_stale() {
    // Nothing damages the cache here: its versions alone must tell old from new, the checksums never have to.
    let stats: Vec<CacheStat> = (0..seeds()).map(|seed| random_run(seed, Bench::with_cache())).collect();
    assert!(stats.iter().all(|s| s.damaged == 0), "stale blocks were met");
    let hits = |s: &CacheStat| s.hits > 0;
    assert!(stats.iter().filter(|s| hits(s)).count() > stats.len() / 4, "the cache was hardly used");
}

/// Tickets under way: chunk, first block, values (0 = discard).
type UnderWay = BTreeMap<u64, (u64, u32, Vec<u8>)>;

/// Runs of random work. More by hand: STORE_SEEDS=5000 cargo test -p engine --lib random_work
fn seeds() -> u64 {
    std::env::var("STORE_SEEDS").map_or(150, |n| n.parse().expect("STORE_SEEDS is a number"))
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

fn randomness(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = Random::new(seed);
    move |end| random.below(end)
}

/// Begins a write or a discard, small or large, at one of the places where they meet.
fn change_something(
    b: &mut Bench,
    random: &mut impl FnMut(u64) -> u64,
    chunk: u64,
    sequence: u64,
    under_way: &mut UnderWay,
    model: &mut Model,
) {
    let first = random(3) as u32 * (PAGE_BLOCKS - 30) + random(60) as u32;
    let count = if random(3) == 0 { 1 + random(80) } else { 1 + random(4) };
    let values: Vec<u8> = (0..count).map(|_| 1 + random(250) as u8).collect();
    let (ticket, values) = if random(6) == 0 {
        (b.discard(chunk, first, count as u32, sequence), vec![0; count as usize])
    } else {
        (b.write(chunk, first, &values, sequence), values)
    };
    for (i, &v) in values.iter().enumerate() {
        model.0.entry((chunk, first + i as u32)).or_insert([0].into()).insert(v);
    }
    under_way.insert(ticket, (chunk, first, values));
}

fn random_run(seed: u64, b: Bench) -> CacheStat {
    let mut totals = CacheStat::default();
    let mut random = randomness(seed);
    let mut b = b;
    let mut model = Model::default();
    let mut sequence = 0;
    for life in 0..4 {
        let mut under_way = UnderWay::new();
        for _ in 0..random(120) {
            match random(10) {
                0..5 => {
                    sequence += 1;
                    let chunk = random(5);
                    change_something(&mut b, &mut random, chunk, sequence, &mut under_way, &mut model);
                }
                5 if random(8) == 0 && under_way.is_empty() => {
                    let chunk = random(5);
                    b.next += 1;
                    b.store.delete(&mut b.io, Ticket(b.next), ChunkId(chunk));
                    b.settle();
                    let at = b.finished.iter().position(|f| f.0 == b.next).expect("a delete ends");
                    b.finished.remove(at).1.unwrap();
                    model.0.retain(|(c, _), _| *c != chunk);
                }
                6 if b.store.cache.is_some() => {
                    read_often(
                        &mut b,
                        random(5),
                        random(3) as u32 * (PAGE_BLOCKS - 30),
                        &mut under_way,
                        &mut model,
                        seed,
                    );
                }
                5 => {
                    for timer in b.io.advance(Duration::from_millis(700)) {
                        b.store.on_timer(&mut b.io, timer);
                    }
                }
                _ => {
                    for _ in 0..random(6) {
                        b.step(true);
                    }
                }
            }
            acknowledge(&mut b, &mut under_way, &mut model, seed);
        }
        if life == 3 {
            b.settle();
            acknowledge(&mut b, &mut under_way, &mut model, seed);
            assert!(under_way.is_empty(), "seed {seed}: {} operations never ended", under_way.len());
        }
        let stat = b.store.cache_stat();
        totals.hits += stat.hits;
        totals.damaged += stat.damaged;
        b = b.crash(seed * 7 + life);
        assert_eq!(b.broken, None, "seed {seed}");
        b.check_units(seed);
        check(&mut b, &mut model, seed);
    }
    totals
}

/// Reads the blocks that writes go to, until they are in the cache and come from there.
fn read_often(b: &mut Bench, chunk: u64, first: u32, under_way: &mut UnderWay, model: &mut Model, seed: u64) {
    b.settle();
    acknowledge(b, under_way, model, seed);
    for part in [0..16, 0..48, 4..5, 0..64] {
        let got = match b.read(chunk, first + part.start, part.end - part.start) {
            Ok(got) => got,
            Err(StoreError::UnknownChunk(_)) => return,
            Err(other) => panic!("seed {seed} chunk {chunk}: {other}"),
        };
        for (block, value) in (first + part.start..).zip(got) {
            let possible = model.0.get(&(chunk, block));
            assert!(
                possible.map_or(value == 0, |p| p.contains(&value)),
                "seed {seed} chunk {chunk} block {block}: {value} is none of {possible:?}"
            );
        }
    }
}

fn acknowledge(b: &mut Bench, under_way: &mut UnderWay, model: &mut Model, seed: u64) {
    assert_eq!(b.broken, None, "seed {seed}");
    for (ticket, result) in b.finished.drain(..) {
        let (chunk, first, values) = under_way.remove(&ticket).expect("asked for");
        match result {
            // Refused: the blocks are what they were, which is among the possible values.
            Err(StoreError::NoSpace) if b.config.cache.is_some() => continue,
            result => result.unwrap_or_else(|e| panic!("seed {seed}: {e}")),
        };
        for (i, &v) in values.iter().enumerate() {
            let block = first + i as u32;
            // Overlapping later operations are still possible values; earlier ones are not.
            let mut possible = BTreeSet::from([v]);
            for (c, f, vs) in under_way.values() {
                if *c == chunk && (*f..*f + vs.len() as u32).contains(&block) {
                    possible.insert(vs[(block - f) as usize]);
                }
            }
            model.0.insert((chunk, block), possible);
        }
    }
}

fn check(b: &mut Bench, model: &mut Model, seed: u64) {
    for ((chunk, block), possible) in &mut model.0 {
        let got = match b.read(*chunk, *block, 1) {
            Ok(values) => values[0],
            Err(StoreError::UnknownChunk(_)) => 0,
            Err(other) => panic!("seed {seed} chunk {chunk} block {block}: {other}"),
        };
        assert!(
            possible.contains(&got),
            "seed {seed} chunk {chunk} block {block}: {got} is none of {possible:?}"
        );
        *possible = [got].into();
    }
}

fn full(on: FaultOn, file: &str) -> FaultRule {
    FaultRule::next(on, file, FaultEffect::NoSpace).times(u32::MAX)
}

#[test]
fn a_full_file_system_loses_nothing_and_new_data_is_refused_in_time() {
    // Room runs out behind our back: for data, or for any of the page files.
    for file in ["data", "index", "maps", "units"] {
        let mut b = Bench::new();
        b.write(1, 0, &[1; 40], 1);
        b.settle();
        b.io.fault(full(FaultOn::Write, &format!("shard-000/{file}")));
        b.write(1, 3, &[2; 5], 2);
        b.apply();
        b.apply();
        assert_eq!(b.broken, None, "{file}");
        assert_eq!(b.read(1, 0, 40).unwrap()[..9], [1, 1, 1, 2, 2, 2, 2, 2, 1]);
        assert_eq!(b.space().1, 0, "{file}: others must not count on room here");
        let refused = b.write(1, 100, &[3], 3);
        b.settle();
        assert!(matches!(b.finished.iter().find(|f| f.0 == refused), Some((_, Err(StoreError::NoSpace)))));
        // A crash in this state costs nothing, but the store opens only when there is room.
        let disk = b.io.crash_copy(CrashKind::Power, 3);
        let closed = Bench::open(TestIo::with_disk(disk.clone(), 3), &config()).broken.expect(file);
        assert!(closed.contains("no space left") && closed.contains("Nothing is lost"), "{closed}");
        let mut disk = disk;
        disk.clear_faults();
        b.io.disk().clear_faults();
        b.apply();
        assert!(b.space().1 > 0, "{file}");
        for mut b in [Bench::open(TestIo::with_disk(disk, 3), &config()), b] {
            assert_eq!(b.broken, None, "{file}");
            let after = b.write(1, 20, &[4; 2], 4);
            b.ok(after);
            b.apply();
            let mut b = b.crash(5);
            assert_eq!(b.read(1, 0, 40).unwrap()[..4], [1, 1, 1, 2]);
            assert_eq!(b.read(1, 19, 4).unwrap(), [1, 4, 4, 1]);
        }
    }
}

#[test]
fn a_file_system_that_is_nearly_full_takes_no_new_data_but_overwrites() {
    let mut b = Bench::new();
    b.write(1, 0, &[1; 3], 1);
    b.apply();
    b.io.disk().set_capacity(DISK_RESERVE_BYTES);
    b.io.advance(LOOK_AT_DISK_EVERY);
    let (over, new) = (b.write(1, 1, &[2], 2), b.write(1, 3, &[2], 3));
    b.settle();
    let result = |ticket| &b.finished.iter().find(|f| f.0 == ticket).expect("it ended").1;
    assert!(matches!(result(over), Ok(Done::Stored)));
    assert!(matches!(result(new), Err(StoreError::NoSpace)));
}

#[test]
fn a_store_whose_files_are_gone_does_not_open_as_an_empty_one() {
    for file in ["data", "index", "maps", "units", "journal", "store"] {
        let mut b = Bench::new();
        b.write(1, 0, &[1; 3], 1);
        b.apply();
        let mut io = TestIo::with_disk(b.io.crash(CrashKind::Power, 1), 2);
        io.remove(&format!("shard-000/{file}")).unwrap();
        let error = Store::open(&mut io, &config()).err().expect(file).to_string();
        assert!(error.contains(&format!("shard-000/{file} is missing")), "{file}: {error}");
    }
}

#[test]
fn another_format_is_not_called_corrupt() {
    let mut b = Bench::new();
    b.settle();
    let mut io = TestIo::with_disk(b.io.crash(CrashKind::Power, 1), 2);
    io.put_blob("shard-000/store", b"pstorage chunk store 1\n".to_vec(), OpId(1));
    io.complete_next();
    let error = Store::open(&mut io, &config()).err().expect("refused").to_string();
    assert!(error.contains("says 'pstorage chunk store 1'") && !error.contains("corrupt"), "{error}");
}

/// A store with a cache, and 32 units of it in there.
fn with_cached_data() -> Bench {
    let mut b = Bench::with_cache();
    b.write(1, 0, &[5; 512], 1);
    b.apply();
    for _ in 0..3 {
        for unit in (0..32).rev() {
            assert_eq!(b.read(1, unit * UNIT_BLOCKS, UNIT_BLOCKS).unwrap(), [5; 16]);
        }
    }
    assert_eq!(b.store.cache_stat().cached_bytes, 2 << 20);
    b
}

#[test]
fn what_is_read_again_comes_from_the_cache_also_after_a_restart() {
    let mut b = with_cached_data();
    assert_eq!((b.store.cache_stat().hits, b.store.cache_stat().misses), (32, 64));
    // Nothing but the cache can answer.
    b.io.fault(FaultRule::next(FaultOn::Read, "shard-000/data", FaultEffect::Eio).times(u32::MAX));
    assert_eq!(b.read(1, 100, 20).unwrap(), [5; 20]);
    while !b.store.save_cache(&mut b.io) {
        b.settle();
    }
    let mut b = b.crash(4);
    assert_eq!(b.read(1, 40, 3).unwrap(), [5; 3]);
    assert_eq!(b.store.cache_stat().hits, 1);
}

#[test]
fn a_cache_that_stalls_is_by_passed_until_it_answers() {
    let mut b = with_cached_data();
    let start = |b: &mut Bench| {
        b.next += 1;
        b.store.read(&mut b.io, Ticket(b.next), ChunkId(1), 40 * BLOCK_BYTES as u32, 3 * BLOCK_BYTES as u32);
        b.next
    };
    let ticket = start(&mut b);
    let stuck = b.io.pending();
    assert_eq!((stuck.len(), b.store.cache_stat().hits), (1, 33), "it is read from the cache");
    let wait = |b: &mut Bench, ms: u64| {
        for timer in b.io.advance(Duration::from_millis(ms)) {
            b.store.on_timer(&mut b.io, timer);
        }
    };
    wait(&mut b, 40);
    assert_eq!(b.io.pending(), stuck, "it has its time");
    wait(&mut b, 20);
    let answer = |b: &mut Bench| {
        let op = *b.io.pending().iter().find(|op| !stuck.contains(op)).expect("the disk is asked");
        let result = b.io.complete(op).unwrap();
        b.store.on_disk(&mut b.io, op, result);
        b.gather();
    };
    answer(&mut b);
    assert!(b.finished.iter().any(|f| f.0 == ticket), "the disk has answered for it");
    assert_eq!(b.result_so_far(ticket).unwrap(), [5; 3]);
    // The next ones do not even try.
    let ticket = start(&mut b);
    answer(&mut b);
    assert_eq!(b.result_so_far(ticket).unwrap(), [5; 3]);
    assert_eq!(b.store.cache_stat().hits, 33);
    b.settle();
    assert_eq!(b.read(1, 40, 3).unwrap(), [5; 3]);
    assert_eq!((b.store.cache_stat().hits, b.cache_lost.len()), (34, 0), "it serves again");
}

#[test]
fn a_unit_that_gets_another_place_takes_nothing_along() {
    let mut io = TestIo::new(1);
    io.disk().touch(CACHE);
    let mut b = Bench::open(io, &StoreConfig { capacity_bytes: 4 * UNIT_BYTES, ..config_with_cache() });
    for unit in 0..4u8 {
        b.write(1, u32::from(unit) * UNIT_BLOCKS, &[unit + 1; 16], u64::from(unit) + 1);
        b.settle();
    }
    b.apply();
    (0..3).for_each(|_| assert_eq!(b.read(1, 0, 16).unwrap(), [1; 16]));
    assert_eq!(b.store.cache_stat().hits, 1);
    // The only unit to be free is the one that is cached; the same map page names it again, for other blocks.
    b.discard(1, 0, 16, 5);
    b.settle();
    b.write(1, 7 * UNIT_BLOCKS, &[9; 16], 6);
    b.apply();
    (0..3).for_each(|_| assert_eq!(b.read(1, 7 * UNIT_BLOCKS, 16).unwrap(), [9; 16]));
    assert_eq!((b.store.cache_stat().hits, b.store.cache_stat().damaged), (3, 0));
}

#[test]
fn streams_and_who_verifies_the_disk_do_not_use_it() {
    let mut b = Bench::with_cache();
    b.write(1, 0, &[5; 1024], 1);
    b.apply();
    for _ in 0..3 {
        for at in (0..1024).step_by(256) {
            b.read(1, at, 256).unwrap();
        }
    }
    assert_eq!(b.store.cache_stat().cached_bytes, 0);
    let mut b = with_cached_data();
    b.io.disk().flip_bit("shard-000/data", 5 * 4096, 1);
    assert_eq!(b.read(1, 5, 1).unwrap(), [5], "the cache has it whole");
    b.store.sums(&mut b.io, Ticket(900), ChunkId(1), 0, 16, true);
    b.settle();
    let sums = b.finished.iter().find(|f| f.0 == 900).expect("it ended");
    assert!(matches!(sums.1, Err(StoreError::Checksum { block: 5, .. })), "the scrub looks at the disk");
}

#[test]
fn a_damaged_or_lost_cache_costs_nothing_but_its_hits() {
    // Each cached byte damaged.
    let mut b = with_cached_data();
    for block in 0..1024 {
        b.io.disk().flip_bit(CACHE, block * 4096 + 77, 3);
    }
    for unit in 0..32 {
        assert_eq!(b.read(1, unit * UNIT_BLOCKS, UNIT_BLOCKS).unwrap(), [5; 16]);
    }
    assert_eq!((b.store.cache_stat().damaged, b.cache_lost.len()), (32, 0));
    // Damaged over a restart, table and all.
    let mut disk = with_cached_data().io.crash(CrashKind::Power, 1);
    disk.poke(CACHE, 0, &[0x5a; 1 << 20]);
    let mut b = Bench::open(TestIo::with_disk(disk, 2), &config_with_cache());
    assert_eq!(b.read(1, 0, 512).unwrap(), [5; 512]);
    // Its device fails while it is read, written or synced.
    for on in [FaultOn::Read, FaultOn::Write, FaultOn::Sync] {
        let mut b = with_cached_data();
        b.io.fault(FaultRule::next(on, CACHE, FaultEffect::Eio).times(u32::MAX));
        for _ in 0..2 {
            for unit in (0..32).rev() {
                b.write(1, unit * UNIT_BLOCKS + 1, &[7], 2);
                assert_eq!(b.read(1, unit * UNIT_BLOCKS, 3).unwrap(), [5, 7, 5]);
            }
            b.apply();
            for timer in b.io.advance(SAVE_CACHE_EVERY) {
                b.store.on_timer(&mut b.io, timer);
            }
            b.settle();
        }
        assert_eq!((b.cache_lost.len(), b.broken), (1, None), "{on:?}");
    }
    // The file has gone.
    let mut io = TestIo::with_disk(with_cached_data().io.crash(CrashKind::Power, 1), 2);
    io.remove(CACHE).unwrap();
    let mut b = Bench::open(io, &config_with_cache());
    assert_eq!(b.read(1, 0, 512).unwrap(), [5; 512]);
    assert!(b.cache_lost[0].contains(CACHE));
}

#[test]
fn a_journal_whose_device_fails_ends_the_store_and_acknowledges_nothing() {
    for effect in [FaultEffect::Eio, FaultEffect::NoSpace] {
        let mut b = Bench::new();
        b.write(1, 0, &[1; 3], 1);
        b.settle();
        b.finished.clear();
        b.io.fault(FaultRule::next(FaultOn::Write, "shard-000/journal", effect));
        b.write(1, 0, &[2; 3], 2);
        b.settle();
        assert!(b.finished.is_empty(), "what is not durable was acknowledged");
        assert!(b.broken.expect("the store says so").contains("shard-000/journal"));
    }
}

/// Runs a move of the journal to its end, or to the operation `cut`; says whether it ended.
fn move_journal(io: &mut TestIo, cut: usize) -> bool {
    let mut node = crate::journal_move::JournalMove::new(config(), NEW_JOURNAL.into(), 1 << 20);
    shards::Node::handle(&mut node, shards::Event::Start, io);
    for _ in 0..cut {
        let Some((op, result)) = io.complete_any() else { break };
        shards::Node::handle(&mut node, shards::Event::Disk { op, result }, io);
    }
    assert!(!matches!(io.stopped, Some(Err(_))), "{:?}", io.stopped);
    io.stopped.is_some()
}

const NEW_JOURNAL: &str = "ssd/journal-2";

#[test]
fn a_journal_is_moved_without_loss_wherever_the_move_is_cut() {
    let mut b = Bench::new();
    b.write(1, 0, &[1; 100], 1);
    b.apply();
    b.write(1, 5, &[2; 30], 2);
    b.write(2, 0, &[3; 3], 1);
    b.settle();
    let disk = b.io.crash(CrashKind::Process, 1);
    let whole = |b: &mut Bench, cut: usize| {
        assert_eq!(b.broken, None, "cut at {cut}");
        assert_eq!(b.read(1, 0, 40).unwrap(), [&[1; 5][..], &[2; 30], &[1; 5]].concat(), "cut at {cut}");
        assert_eq!(b.read(2, 0, 4).unwrap(), [3, 3, 3, 0], "cut at {cut}");
    };
    let moved = StoreConfig { journal_path: NEW_JOURNAL.into(), journal_bytes: 1 << 20, ..config() };
    let mut ends = 0;
    for cut in 0..200 {
        let mut io = TestIo::with_disk(disk.clone(), cut as u64);
        let ended = move_journal(&mut io, cut);
        let disk = io.crash(CrashKind::Power, cut as u64);
        // Until the card names the new one the old one counts.
        whole(&mut Bench::open(TestIo::with_disk(disk.clone(), 1), &config()), cut);
        if !ended {
            continue;
        }
        ends += 1;
        let mut b = Bench::open(TestIo::with_disk(disk, 1), &moved);
        whole(&mut b, cut);
        assert_eq!(b.store.journal_fill().1 + 8192, 1 << 20);
        b.write(2, 3, &[4], 2);
        b.settle();
        let mut b = b.crash(9);
        assert_eq!(b.read(2, 0, 4).unwrap(), [3, 3, 3, 4]);
    }
    assert!(ends > 20, "the move ended {ends} times");
}

#[test]
fn pages_that_a_round_left_behind_in_a_crash_are_not_taken_for_valid_ones_later() {
    let config = StoreConfig { capacity_bytes: 8 << 30, ..config() };
    let mut b = Bench::open(TestIo::new(1), &config);
    let ticket = b.write(1, 0, &[1], 1);
    b.ok(ticket);
    b.apply();
    // The next small write gets a unit that stands in another page of `units` than the first one after a start does.
    let (first, count) = b.store.units.take_run(70_000).unwrap();
    (first..first + count).for_each(|unit| b.store.units.release(unit));
    let singles: Vec<u32> = (0..40_000).map(|_| b.store.units.take().unwrap()).collect();
    singles.into_iter().for_each(|unit| b.store.units.release(unit));
    let ticket = b.write(1, 100, &[2], 2);
    b.ok(ticket);
    for timer in b.io.advance(APPLY_AFTER * 2) {
        b.store.on_timer(&mut b.io, timer);
    }
    // All pages of the round are on disk, and it is not valid.
    while b.store.apply.as_ref().is_some_and(|apply| !apply.is_committing()) {
        assert!(b.step(false));
    }
    for seed in 0..3 {
        b = b.crash(seed);
        assert_eq!(b.broken, None, "start {seed}");
        assert_eq!(b.read(1, 100, 1).unwrap(), [2]);
        b.check_units(seed);
    }
}
