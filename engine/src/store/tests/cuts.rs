//! Crash cuts: one random workload, cut at every write to the disk in turn.
//!
//! At each cut, power goes while that write (and whatever else is in flight) is under way: what was synced is there, what
//! was not is lost or torn by sectors. The store opens on what is left, and every block must hold what was acknowledged
//! last, or what an unacknowledged operation wanted of it. The recovery is itself cut, at a write of its own, and the
//! store opens once more on what that leaves.
//!
//! More by hand: `STORE_CUT_RUNS=40 cargo test --release -p engine --lib crash_cuts` runs 40 workloads;
//! `STORE_CUT_ALL=1` cuts each recovery at all of its writes, not at one.

use super::*;
use shards::sim::VirtualDisk;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const CHUNKS: u64 = 4;
/// Operations of a workload.
const OPERATIONS: u32 = 480;
/// Places in a chunk: blocks around the ends of three map pages.
const SPOTS: u64 = 3;

/// Little room, so that the workload runs into its end, and the smallest journal, so that it wraps often.
fn tight() -> StoreConfig {
    StoreConfig { journal_bytes: 1 << 20, capacity_bytes: 14 << 20, ..config() }
}

enum Op {
    /// Values of blocks; 0 is a discard.
    Blocks {
        first: u32,
        values: Vec<u8>,
        sequence: u64,
    },
    Epoch(u32),
    Delete,
}

/// What a chunk may hold.
#[derive(Default)]
struct Known {
    blocks: BTreeMap<u32, BTreeSet<u8>>,
    /// Sequence and blocks of acknowledged writes since the chunk was deleted last.
    acked: Vec<(u64, Range<u32>)>,
    /// The first write that failed after it had begun: what it left is undecided, so nothing from it on is committed.
    failed: Option<u64>,
    acked_epoch: u32,
    asked_epoch: u32,
}

#[derive(Default, Debug)]
struct Counts {
    cuts: u64,
    second_cuts: u64,
    acked: u64,
    refused: u64,
    deletes: u64,
    room_faults: u64,
}

impl Counts {
    fn plus(self, other: Counts) -> Counts {
        Counts {
            cuts: self.cuts + other.cuts,
            second_cuts: self.second_cuts + other.second_cuts,
            acked: self.acked + other.acked,
            refused: self.refused + other.refused,
            deletes: self.deletes + other.deletes,
            room_faults: self.room_faults + other.room_faults,
        }
    }
}

struct Work {
    b: Bench,
    random: Random,
    chunks: BTreeMap<u64, Known>,
    under_way: BTreeMap<u64, (u64, Op)>,
    sequence: u64,
    all_second_cuts: bool,
    /// Cut at every write; else the disk has errors.
    cuts: bool,
    counts: Counts,
    seed: u64,
}

#[test]
fn crash_cuts_at_every_disk_write_keep_every_acknowledged_block() {
    let runs = std::env::var("STORE_CUT_RUNS").map_or(4, |n| n.parse().expect("STORE_CUT_RUNS is a number"));
    let next = AtomicU64::new(1);
    let work = || {
        let seeds = std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|&seed| seed <= runs));
        seeds.map(|seed| Work::new(seed).run()).fold(Counts::default(), Counts::plus)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let all = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|t| t.join().expect("no run fails")).fold(Counts::default(), Counts::plus)
    });
    println!("{all:?}");
    assert!(all.cuts > 600 * runs && all.second_cuts > all.cuts / 2, "{all:?}");
    assert!(
        all.acked > 150 * runs && all.deletes > runs && all.refused > runs && all.room_faults > 0,
        "{all:?}"
    );
}

#[test]
fn one_error_of_the_disk_loses_nothing_acknowledged() {
    let runs = std::env::var("STORE_ERROR_RUNS").map_or(150, |n| n.parse().expect("a number"));
    let broken = (0..runs).filter(|seed| Work::new(1000 + seed).run_with_an_error()).count() as u64;
    println!("{broken} of {runs} runs ended with a broken store");
    assert!(broken > runs / 10 && broken < runs, "{broken} of {runs}");
}

#[test]
fn chunks_that_come_in_while_a_round_is_written_need_no_page_that_it_did_not_write() {
    for steps in 0..40 {
        let mut b = Bench::new();
        for chunk in 0..u64::from(page::INDEX_ENTRIES) {
            b.write(chunk, 0, &[1], 1);
        }
        b.settle();
        for timer in b.io.advance(APPLY_AFTER * 2) {
            b.store.on_timer(&mut b.io, timer);
        }
        for _ in 0..steps {
            b.step(false);
        }
        b.write(99, 0, &[2], 1);
        loop {
            let disk = b.io.crash_copy(CrashKind::Power, steps);
            let again = Bench::open(TestIo::with_disk(disk, steps), &config());
            assert_eq!(again.broken, None, "{steps} steps into the round");
            if !b.step(false) {
                break;
            }
        }
    }
}

impl Work {
    fn new(seed: u64) -> Work {
        Work {
            b: Bench::open(TestIo::new(seed), &tight()),
            random: Random::new(seed),
            chunks: (0..CHUNKS).map(|c| (c, Known::default())).collect(),
            under_way: BTreeMap::new(),
            sequence: 0,
            all_second_cuts: std::env::var_os("STORE_CUT_ALL").is_some(),
            cuts: true,
            counts: Counts::default(),
            seed,
        }
    }

    fn run(mut self) -> Counts {
        self.work();
        self.b.io.disk().clear_faults();
        for _ in 0..10 {
            self.wait();
            while self.step() {}
        }
        assert!(self.under_way.is_empty(), "seed {}: operations never ended", self.seed);
        self.b.apply();
        self.b.check_units(self.seed);
        let (end, ring) = (self.b.store.journal.end().0, self.b.store.journal.total_bytes());
        let rounds = self.b.store.committed_round.0;
        println!(
            "seed {}: {:?}, {rounds} rounds, {:.1} laps",
            self.seed,
            self.counts,
            end as f64 / ring as f64
        );
        // What a run must have met, else it shows nothing.
        assert!(rounds > 10 && end > 3 * ring, "{rounds} rounds, {end} bytes of journal");
        self.counts
    }

    /// A run whose disk fails once, somewhere; true if that broke the store.
    fn run_with_an_error(mut self) -> bool {
        self.cuts = false;
        let on = [FaultOn::Read, FaultOn::Write, FaultOn::Sync][self.random.below(3) as usize];
        let file = ["data", "index", "maps", "units", "journal"][self.random.below(5) as usize];
        let rule = FaultRule::next(on, &format!("shard-000/{file}"), FaultEffect::Eio);
        let most = if file == "data" || file == "journal" { 200 } else { 12 };
        let rule = rule.skipping(self.random.below(most) as u32);
        self.b.io.fault(rule);
        self.work();
        let broke = self.b.broken.is_some();
        let mut disk = self.b.io.crash_copy(CrashKind::Power, self.seed);
        disk.clear_faults();
        self.recover_and_check(disk, self.seed);
        broke
    }

    fn work(&mut self) {
        for _ in 0..OPERATIONS {
            if self.b.broken.is_some() {
                return;
            }
            match self.random.below(24) {
                0..13 => self.start_write(),
                13 | 14 => self.start_discard(),
                15 => self.start_epoch(),
                16 if self.random.below(3) == 0 => self.start_delete(),
                17 => self.note_committed(),
                18 if self.random.below(4) == 0 => self.run_out_of_room(),
                19 | 20 => self.wait(),
                _ => {}
            }
            for _ in 0..self.random.below(5) {
                self.step();
            }
        }
    }

    // ---- the workload ----

    fn spot(&mut self) -> (u64, u32) {
        let first = self.random.below(SPOTS) as u32 * (PAGE_BLOCKS - 30) + self.random.below(60) as u32;
        (self.random.below(CHUNKS), first)
    }

    fn start_write(&mut self) {
        let (chunk, first) = self.spot();
        let count = match self.random.below(3) {
            0 => 16 + self.random.below(80),
            _ => 1 + self.random.below(5),
        };
        let values: Vec<u8> = (0..count).map(|_| 1 + self.random.below(250) as u8).collect();
        self.sequence += 1;
        let ticket = self.b.write(chunk, first, &values, self.sequence);
        self.began(ticket, chunk, Op::Blocks { first, values, sequence: self.sequence });
    }

    fn start_discard(&mut self) {
        let (chunk, first) = self.spot();
        let count = 1 + self.random.below(120) as u32;
        self.sequence += 1;
        let ticket = self.b.discard(chunk, first, count, self.sequence);
        self.began(
            ticket,
            chunk,
            Op::Blocks { first, values: vec![0; count as usize], sequence: self.sequence },
        );
    }

    fn start_epoch(&mut self) {
        let chunk = self.random.below(CHUNKS);
        let known = self.chunks.get_mut(&chunk).expect("all are known");
        known.asked_epoch = known.asked_epoch.max(1) + 1;
        let epoch = known.asked_epoch;
        self.b.next += 1;
        let ticket = self.b.next;
        self.b.store.set_epoch(&mut self.b.io, Ticket(ticket), ChunkId(chunk), Epoch(epoch));
        self.b.gather();
        self.began(ticket, chunk, Op::Epoch(epoch));
    }

    fn start_delete(&mut self) {
        let chunk = self.random.below(CHUNKS);
        self.b.next += 1;
        let ticket = self.b.next;
        self.b.store.delete(&mut self.b.io, Ticket(ticket), ChunkId(chunk));
        self.b.gather();
        self.began(ticket, chunk, Op::Delete);
    }

    /// What is acknowledged up to some sequence is committed everywhere; a failed write and all behind it never are.
    fn note_committed(&mut self) {
        let chunk = self.random.below(CHUNKS);
        let open = self.under_way.values().filter_map(|(c, op)| match op {
            Op::Blocks { sequence, .. } if *c == chunk => Some(*sequence),
            _ => None,
        });
        let known = &self.chunks[&chunk];
        let below = open.chain(known.failed).min().unwrap_or(u64::MAX);
        if let Some(&(sequence, _)) = known.acked.iter().rev().find(|(s, _)| *s < below) {
            self.b.store.note_committed(ChunkId(chunk), Sequence(sequence));
        }
    }

    fn run_out_of_room(&mut self) {
        let times = 1 + self.random.below(3) as u32;
        self.b.io.fault(FaultRule::next(FaultOn::Write, "shard-000/data", FaultEffect::NoSpace).times(times));
        self.counts.room_faults += 1;
    }

    fn wait(&mut self) {
        for timer in self.b.io.advance(Duration::from_millis(700)) {
            self.b.store.on_timer(&mut self.b.io, timer);
        }
    }

    fn began(&mut self, ticket: u64, chunk: u64, op: Op) {
        let refused = |f: &(u64, Result<Done, StoreError>)| f.0 == ticket && f.1.is_err();
        if let Some(at) = self.b.finished.iter().position(refused) {
            // Refused at once: nothing of it may ever be seen.
            assert!(matches!(self.b.finished.remove(at).1, Err(StoreError::NoSpace | StoreError::Io { .. })));
            self.counts.refused += 1;
            return;
        }
        let known = self.chunks.get_mut(&chunk).expect("all are known");
        match &op {
            Op::Blocks { first, values, .. } => {
                for (block, &v) in (*first..).zip(values) {
                    known.blocks.entry(block).or_insert([0].into()).insert(v);
                }
            }
            Op::Delete => known.blocks.values_mut().for_each(|v| {
                v.insert(0);
            }),
            Op::Epoch(_) => {}
        }
        self.under_way.insert(ticket, (chunk, op));
        self.acknowledge();
    }

    /// Cuts, and then completes one disk operation.
    fn step(&mut self) -> bool {
        self.cut_if_new();
        let stepped = self.b.step(true);
        self.acknowledge();
        stepped
    }

    fn acknowledge(&mut self) {
        assert!(self.b.broken.is_none() || !self.cuts, "seed {}: {:?}", self.seed, self.b.broken);
        for (ticket, result) in std::mem::take(&mut self.b.finished) {
            let (chunk, op) = self.under_way.remove(&ticket).expect("asked for");
            match result {
                Ok(_) => self.acked(chunk, op),
                Err(StoreError::NoSpace) => self.failed(chunk, op),
                Err(StoreError::Io { .. }) if !self.cuts => self.failed(chunk, op),
                Err(other) => panic!("seed {}: {other}", self.seed),
            }
        }
    }

    /// Its blocks stay old or new.
    fn failed(&mut self, chunk: u64, op: Op) {
        self.counts.refused += 1;
        let Op::Blocks { sequence, .. } = op else {
            return assert!(!self.cuts, "only writes need room");
        };
        let known = self.chunks.get_mut(&chunk).expect("all are known");
        known.failed = Some(known.failed.map_or(sequence, |f| f.min(sequence)));
    }

    fn acked(&mut self, chunk: u64, op: Op) {
        self.counts.acked += 1;
        let under_way = &self.under_way;
        // Values that operations behind this one, not yet acknowledged, may have given the block.
        let later = move |block: u32| {
            under_way.values().filter(move |(c, _)| *c == chunk).filter_map(move |(_, op)| match op {
                Op::Blocks { first, values, .. } => {
                    block.checked_sub(*first).and_then(|i| values.get(i as usize).copied())
                }
                Op::Delete => Some(0),
                Op::Epoch(_) => None,
            })
        };
        let known = self.chunks.get_mut(&chunk).expect("all are known");
        match op {
            Op::Blocks { first, values, sequence } => {
                for (block, &v) in (first..).zip(&values) {
                    let possible = std::iter::once(v).chain(later(block)).collect();
                    known.blocks.insert(block, possible);
                }
                known.acked.push((sequence, first..first + values.len() as u32));
            }
            Op::Epoch(epoch) => known.acked_epoch = known.acked_epoch.max(epoch),
            Op::Delete => {
                self.counts.deletes += 1;
                for (&block, possible) in &mut known.blocks {
                    *possible = std::iter::once(0).chain(later(block)).collect();
                }
                known.acked.clear();
                known.failed = None;
                known.acked_epoch = 0;
            }
        }
    }

    // ---- the cuts ----

    /// Cuts once for every write that begins or ends, and every sync.
    fn cut_if_new(&mut self) {
        if self.cuts && self.b.io.disk().take_changed() {
            self.counts.cuts += 1;
            let seed = self.seed << 32 | self.counts.cuts;
            let mut disk = self.b.io.crash_copy(CrashKind::Power, seed);
            disk.clear_faults();
            self.recover_and_check(disk, seed);
        }
    }

    fn recover_and_check(&mut self, disk: VirtualDisk, seed: u64) {
        let at = self.random.below(12);
        let (mut recovered, again) = recover(disk, seed, |n| self.all_second_cuts || n == at);
        self.check(&mut recovered, "a cut");
        for (n, disk) in again.into_iter().enumerate() {
            self.counts.second_cuts += 1;
            let (mut recovered, _) = recover(disk, seed + n as u64, |_| false);
            self.check(&mut recovered, "a cut in the recovery");
        }
    }

    fn check(&self, b: &mut Bench, after: &str) {
        let name = format!("seed {} after {after} at {:?}", self.seed, self.counts);
        assert_eq!(b.broken, None, "{name}");
        b.check_units(self.seed);
        for (&chunk, known) in &self.chunks {
            self.check_blocks(b, chunk, known, &name);
            self.check_info(b, chunk, known, &name);
        }
    }

    fn check_blocks(&self, b: &mut Bench, chunk: u64, known: &Known, name: &str) {
        let here = b.store.chunk(ChunkId(chunk)).is_some();
        for spot in 0..SPOTS as u32 {
            let first = spot * (PAGE_BLOCKS - 30);
            let got = if here { b.read(chunk, first, 180).expect(name) } else { vec![0; 180] };
            for (block, value) in (first..).zip(got) {
                let possible = known.blocks.get(&block);
                let fits = possible.map_or(value == 0, |p| p.contains(&value));
                assert!(fits, "{name}: chunk {chunk} block {block} has {value}, not one of {possible:?}");
            }
        }
    }

    /// Replication relies on it: nothing acknowledged is missing from the tail, no epoch is forgotten.
    fn check_info(&self, b: &mut Bench, chunk: u64, known: &Known, name: &str) {
        let deleting = self.under_way.values().any(|(c, op)| *c == chunk && matches!(op, Op::Delete));
        let Some(info) = b.store.chunk(ChunkId(chunk)) else {
            assert!(known.acked.is_empty() || deleting, "{name}: chunk {chunk} is gone");
            return;
        };
        if deleting {
            return;
        }
        assert!(info.epoch.0 >= known.acked_epoch, "{name}: chunk {chunk} has forgotten its epoch");
        for (sequence, blocks) in known.acked.iter().filter(|(s, _)| *s > info.committed.0) {
            let newer = |t: &&TailEntry| t.sequence.0 >= *sequence;
            let covered = |block: u32| {
                info.tail
                    .iter()
                    .filter(newer)
                    .any(|t| (t.first_block..t.first_block + t.block_count).contains(&block))
            };
            assert!(info.last_sequence.0 >= *sequence, "{name}: chunk {chunk} {info:?} lacks {sequence}");
            assert!(
                blocks.clone().all(covered),
                "{name}: chunk {chunk} {info:?} lacks {sequence} {blocks:?}"
            );
        }
    }
}

/// Opens the store on what a crash left, cutting the recovery itself where `cut` says; returns what those cuts left.
fn recover(disk: VirtualDisk, seed: u64, cut: impl Fn(u64) -> bool) -> (Bench, Vec<VirtualDisk>) {
    let mut io = TestIo::with_disk(disk, seed);
    io.disk().take_changed();
    let store = Store::open(&mut io, &tight()).unwrap_or_else(|e| panic!("{e}"));
    let mut b = Bench {
        io,
        config: tight(),
        cache_lost: Vec::new(),
        store,
        finished: Vec::new(),
        broken: None,
        next: 1 << 40,
        committed: Sequence(0),
    };
    let (mut changes, mut again) = (0, Vec::new());
    while !b.store.is_ready() && b.broken.is_none() {
        if b.io.disk().take_changed() {
            if cut(changes) {
                again.push(b.io.crash_copy(CrashKind::Power, seed ^ changes));
            }
            changes += 1;
        }
        if !b.step(true) {
            break;
        }
    }
    (b, again)
}
