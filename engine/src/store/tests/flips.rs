//! Bits that turn in any file of a store: each is detected or harmless, and none is ever returned as data.
//!
//! The store has been through several rounds, so that every page has an older whole version in its other place, and its
//! journal holds records that were acknowledged and not yet applied. A turned bit counts as
//! - *refused*: the store says at the start what is damaged, and does not open;
//! - *found*: reading the block, or the map page that describes it, is an error that names the place;
//! - *harmless*: everything reads as it was written, no unit has leaked, and the same after more work and a restart;
//! - *cut off*: it lies in the last batch of the journal, or in the units of a large write whose record is still there,
//!   and nothing behind confirms that these were ever whole. That can't be told from a write that a crash tore: it is not
//!   replayed, and the state before it is whole. (Such a write is of the last two seconds before the crash, and the
//!   chunk's other replicas hold it.)

use super::*;
use shards::sim::VirtualDisk;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const FILES: [&str; 5] = ["data", "index", "maps", "units", "journal"];
const RING_START: u64 = 2 * BLOCK_BYTES as u64;

fn small() -> StoreConfig {
    StoreConfig { journal_bytes: 1 << 20, capacity_bytes: 16 << 20, ..config() }
}

/// A crashed store and what it must hold.
struct Base {
    disk: VirtualDisk,
    blocks: BTreeMap<(u64, u32), u8>,
    unconfirmed: Vec<Unconfirmed>,
    /// Blocks of each file that hold anything, and its length.
    used: BTreeMap<&'static str, (Vec<u64>, u64)>,
}

/// A write that may be taken for torn: where it lies, and what its blocks held before.
struct Unconfirmed {
    file: &'static str,
    at: Range<u64>,
    before: BTreeMap<(u64, u32), u8>,
}

impl Base {
    fn new() -> Base {
        let mut b = Bench::open(TestIo::new(3), &small());
        let mut blocks = BTreeMap::new();
        let mut sequence = 0;
        let mut write = |b: &mut Bench, chunk: u64, first: u32, values: &[u8]| {
            sequence += 1;
            let ticket = b.write(chunk, first, values, sequence);
            b.ok(ticket);
            blocks.extend((first..).zip(values).map(|(block, &v)| ((chunk, block), v)));
            sequence
        };
        for round in 1..=4u8 {
            for chunk in 1..=5u64 {
                write(&mut b, chunk, 16, &[round * 40 + chunk as u8; 48]);
                write(&mut b, chunk, PAGE_BLOCKS + 3, &[round * 40 + 10 + chunk as u8; 5]);
            }
            b.apply();
        }
        // From here on nothing is applied. A large write that a later one of its chunk says is committed:
        let large = write(&mut b, 2, 10, &[7; 40]);
        b.committed = Sequence(large);
        write(&mut b, 2, 5, &[6]);
        b.committed = Sequence(0);
        write(&mut b, 6, 3, &[8; 3]);
        // One that nothing confirms:
        write(&mut b, 4, 32, &[10; 16]);
        let unit = u64::from(b.store.chunks[&ChunkId(4)].unit(2).expect("just written")) * UNIT_BYTES;
        write(&mut b, 3, PAGE_BLOCKS + 4, &[9; 2]);
        // And the last batch of the journal:
        write(&mut b, 1, 20, &[11]);
        let place = |position: u64| RING_START + position % b.store.journal.total_bytes();
        let last = place(b.store.last_durable.0)..place(b.store.journal.end().0);
        let older = |chunk: u64, blocks: Range<u32>| {
            blocks.map(|block| ((chunk, block), 160 + chunk as u8)).collect::<BTreeMap<_, _>>()
        };
        let unconfirmed = vec![
            Unconfirmed { file: "data", at: unit..unit + UNIT_BYTES, before: older(4, 32..48) },
            Unconfirmed { file: "journal", at: last, before: older(1, 20..21) },
        ];
        let disk = b.io.crash(CrashKind::Power, 9);
        let used = FILES.map(|file| (file, used_blocks(&disk, file))).into();
        Base { disk, blocks, unconfirmed, used }
    }
}

fn path(file: &str) -> String {
    format!("shard-000/{file}")
}

fn used_blocks(disk: &VirtualDisk, file: &str) -> (Vec<u64>, u64) {
    let len = disk.len_of(&path(file)).expect("it is there");
    let holds = |block: &u64| {
        let bytes = disk.peek(&path(file), block * BLOCK_BYTES as u64, BLOCK_BYTES).expect("it is there");
        bytes.iter().any(|&b| b != 0)
    };
    ((0..len / BLOCK_BYTES as u64).filter(holds).collect(), len)
}

#[derive(Default, Debug, Clone, Copy)]
struct Seen {
    refused: u64,
    found: u64,
    harmless: u64,
    cut_off: u64,
}

#[test]
fn ten_thousand_flipped_bits_in_every_file_are_found_or_harmless() {
    let most: u64 =
        std::env::var("STORE_FLIPS").map_or(10_000, |n| n.parse().expect("STORE_FLIPS is a number"));
    let (base, next) = (Base::new(), AtomicU64::new(0));
    let work = || {
        let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
        while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|&n| n < most) {
            let file = FILES[(seed % FILES.len() as u64) as usize];
            flip(&base, file, seed, seen.entry(file).or_default());
        }
        seen
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: BTreeMap<&str, Seen> = BTreeMap::new();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for (file, seen) in running.into_iter().flat_map(|t| t.join().expect("no flip is returned")) {
            let sum = all.entry(file).or_default();
            sum.refused += seen.refused;
            sum.found += seen.found;
            sum.harmless += seen.harmless;
            sum.cut_off += seen.cut_off;
        }
    });
    for (file, seen) in &all {
        println!("{file}: {seen:?}");
    }
    let total: u64 = all.values().map(|s| s.refused + s.found + s.harmless + s.cut_off).sum();
    assert_eq!(total, most);
    assert!(all["data"].found > 0 && all["maps"].found > 0, "{all:?}");
    assert!(["index", "units", "journal"].iter().all(|f| all[f].refused > 0), "{all:?}");
    assert!(all.iter().all(|(f, seen)| seen.cut_off == 0 || ["data", "journal"].contains(f)), "{all:?}");
}

fn flip(base: &Base, file: &str, seed: u64, seen: &mut Seen) {
    let mut random = shards::sim::Rng::new(seed);
    let (used, len) = &base.used[file];
    let block = if random.one_in(20) {
        random.below(len / BLOCK_BYTES as u64)
    } else {
        used[random.below(used.len() as u64) as usize]
    };
    let offset = block * BLOCK_BYTES as u64 + random.below(BLOCK_BYTES as u64);
    let mut disk = base.disk.clone();
    assert!(disk.flip_bit(&path(file), offset, random.below(8) as u8));
    let name = format!("{file} offset {offset} (seed {seed})");
    let unconfirmed = base.unconfirmed.iter().find(|u| u.file == file && u.at.contains(&offset));
    let before = unconfirmed.map(|u| &u.before);

    let mut b = Bench::open(TestIo::with_disk(disk, seed), &small());
    if let Some(why) = &b.broken {
        assert!(why.contains("shard-000/") && why.contains("corrupt"), "{name}: {why}");
        seen.refused += 1;
        return;
    }
    let mut found = read_all(&mut b, base, before, &name);
    if found == 0 {
        // Nobody noticed: then it must stay without a consequence.
        b.check_units(seed);
        for chunk in 1..=6 {
            let ticket = b.write(chunk, 400, &[1; 20], 1000);
            b.ok(ticket);
        }
        b.apply();
        b = Bench::open(TestIo::with_disk(b.io.crash(CrashKind::Power, seed), seed), &small());
        assert_eq!(b.broken, None, "{name}: after more work");
        found = read_all(&mut b, base, before, &name);
        b.check_units(seed);
    }
    match (found, before.is_some()) {
        (0, false) => seen.harmless += 1,
        (0, true) => seen.cut_off += 1,
        _ => seen.found += 1,
    }
}

/// Reads everything: the right bytes, of an unconfirmed write those before it, or an error; returns how many errors.
fn read_all(b: &mut Bench, base: &Base, before: Option<&BTreeMap<(u64, u32), u8>>, name: &str) -> u32 {
    let mut found = 0;
    for (at, &value) in &base.blocks {
        let older = before.and_then(|b| b.get(at));
        match b.read(at.0, at.1, 1) {
            Ok(got) => assert!(got[0] == value || Some(&got[0]) == older, "{name}: {at:?} has {got:?}"),
            Err(error) => {
                assert!(error.is_damage(), "{name}: {error}");
                found += 1;
            }
        }
    }
    found
}
