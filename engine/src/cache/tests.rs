//! The cache over a virtual disk.

use super::*;
use shards::sim::{CrashKind, FaultEffect, FaultOn, FaultRule, TestIo};

const FILE: &str = "ssd/cache";
const CHUNK: ChunkId = ChunkId(5);

fn config() -> CacheConfig {
    CacheConfig { path: FILE.into(), bytes: 4 << 20, id: [3; 16] }
}

struct Bench {
    io: TestIo,
    cache: Cache,
}

fn version(round: u64) -> Version {
    Version { chunk: CHUNK, round }
}

fn piece(unit: u32) -> Piece {
    Piece { unit, blocks: 0..16 }
}

impl Bench {
    fn new() -> Bench {
        let mut io = TestIo::new(1);
        io.disk().touch(FILE);
        Bench::open(io, &config())
    }

    fn open(mut io: TestIo, config: &CacheConfig) -> Bench {
        let cache = Cache::open(&mut io, config).unwrap();
        let mut b = Bench { io, cache };
        b.settle();
        b
    }

    fn settle(&mut self) {
        while let Some((op, result)) = self.io.complete_next() {
            assert!(Cache::owns(op));
            self.cache.on_disk(&mut self.io, op, result);
        }
    }

    /// Two reads of a unit, which is then in the cache.
    fn fill(&mut self, unit: u32, version: Version) {
        let data = Buf::from_slice(&[unit as u8; SLOT_BYTES as usize]);
        for _ in 0..3 {
            self.cache.offer(&mut self.io, &piece(unit), version, data.clone());
            self.settle();
        }
    }

    fn holds(&mut self, unit: u32, version: Version) -> bool {
        let Some(hit) = self.cache.find(&piece(unit), Some(version)) else { return false };
        let bytes = self.io.disk().peek(FILE, hit.offset_bytes, SLOT_BYTES as usize).unwrap();
        assert!(bytes.iter().all(|&b| b == unit as u8), "unit {unit} is another's");
        self.cache.read_done(hit, Ok(true));
        true
    }

    fn save(&mut self) {
        while !self.cache.save(&mut self.io) {
            self.settle();
        }
    }

    fn restart(self, kind: CrashKind) -> Bench {
        let disk = self.io.crash(kind, 7);
        Bench::open(TestIo::with_disk(disk, 2), &config())
    }
}

#[test]
fn what_is_read_twice_is_kept_over_a_restart_and_old_versions_are_not() {
    let mut b = Bench::new();
    b.fill(7, version(1));
    b.fill(8, version(1));
    assert!(b.holds(7, version(1)));
    assert!(b.cache.find(&piece(9), Some(version(1))).is_none());
    assert_eq!(b.cache.stat().cached_bytes, 2 * SLOT_BYTES);
    b.save();
    let mut b = b.restart(CrashKind::Power);
    assert_eq!(b.cache.stat().cached_bytes, 2 * SLOT_BYTES);
    assert!(b.holds(7, version(1)));
    assert!(!b.holds(8, version(2)), "its page was written since");
    assert!(!b.holds(8, version(1)), "it was dropped when it was met");
    assert!(!b.holds(7, Version { chunk: ChunkId(6), round: 1 }), "another chunk's");
}

#[test]
fn known_slots_move_along_with_their_page_and_unknown_ones_do_not() {
    let mut b = Bench::new();
    b.fill(7, version(1));
    b.fill(8, version(1));
    b.save();
    let mut b = b.restart(CrashKind::Process);
    assert!(b.holds(7, version(1)));
    b.cache.page_written(7, version(1), 2);
    b.cache.page_written(8, version(1), 2);
    assert!(b.holds(7, version(2)) && !b.holds(8, version(2)));
}

#[test]
fn what_is_forgotten_is_gone_also_when_its_write_is_under_way() {
    let mut b = Bench::new();
    b.fill(7, version(1));
    b.cache.forget_block(7, 3);
    assert!(!b.holds(7, version(1)));
    let front = Piece { unit: 7, blocks: 0..3 };
    let hit = b.cache.find(&front, Some(version(1))).expect("the other blocks stay");
    b.cache.read_done(hit, Ok(true));
    b.cache.offer(&mut b.io, &piece(7), version(1), Buf::from_slice(&[7; SLOT_BYTES as usize]));
    b.cache.forget_block(7, 4);
    b.settle();
    assert!(b.cache.find(&front, Some(version(1))).is_none());
    b.fill(9, version(1));
    b.cache.forget_unit(9);
    assert!(!b.holds(9, version(1)));
}

#[test]
fn a_full_cache_takes_new_units_for_unused_ones_and_never_mixes_them_up() {
    let mut b = Bench::new();
    let slots = table::slots_in(4 << 20) as u32;
    for unit in 0..4 * slots {
        b.fill(unit, version(1));
        // The first ones are read all the time.
        assert!(b.holds(3, version(1)) || unit < 3);
        if unit % 16 == 0 {
            let copy = b.io.crash_copy(CrashKind::Power, u64::from(unit));
            let mut after = Bench::open(TestIo::with_disk(copy, 3), &config());
            // What a table names is there, at every moment.
            let held = (0..=unit).filter(|u| after.holds(*u, version(1))).count() as u64;
            assert_eq!(after.cache.stat().cached_bytes, held * SLOT_BYTES);
        }
    }
    let held = (0..4 * slots).filter(|u| b.holds(*u, version(1))).count();
    assert!(held as u32 > slots / 2, "{held} of {slots}");
}

#[test]
fn a_file_of_another_cache_or_size_is_empty() {
    let mut b = Bench::new();
    b.fill(7, version(1));
    b.save();
    let disk = b.io.crash(CrashKind::Process, 1);
    for other in [CacheConfig { id: [4; 16], ..config() }, CacheConfig { bytes: 8 << 20, ..config() }] {
        let mut b = Bench::open(TestIo::with_disk(disk.clone(), 2), &other);
        assert_eq!(b.cache.stat().cached_bytes, 0);
        b.fill(7, version(1));
        assert!(b.holds(7, version(1)));
    }
}

#[test]
fn any_error_turns_it_off_once_and_for_good() {
    for (on, effect) in [
        (FaultOn::Write, FaultEffect::NoSpace),
        (FaultOn::Write, FaultEffect::Eio),
        (FaultOn::Sync, FaultEffect::Eio),
    ] {
        let mut b = Bench::new();
        b.fill(7, version(1));
        b.io.fault(FaultRule::next(on, FILE, effect));
        b.fill(8, version(1));
        while !b.cache.save(&mut b.io) {
            b.settle();
        }
        let why = b.cache.take_lost().expect("it says so");
        assert!(why.contains(FILE) && why.contains("nothing is lost"), "{why}");
        assert_eq!(b.cache.take_lost(), None);
        b.fill(9, version(1));
        assert!(!b.holds(7, version(1)) && !b.holds(9, version(1)));
        assert_eq!(b.cache.stat().total_bytes, 0);
    }
    let mut io = TestIo::new(1);
    assert!(Cache::open(&mut io, &config()).err().expect("it is not made here").contains("--no-cache"));
}

#[test]
fn few_writes_are_under_way_at_once() {
    let mut b = Bench::new();
    let data = Buf::from_slice(&[1; SLOT_BYTES as usize]);
    for unit in [0..40, 0..40].into_iter().flatten() {
        b.cache.offer(&mut b.io, &piece(unit), version(1), data.clone());
    }
    assert_eq!(b.io.pending().len(), MOST_FILLS);
    b.settle();
    assert_eq!(b.cache.stat().cached_bytes, MOST_FILLS as u64 * SLOT_BYTES);
}
