//! Four replicas on virtual disks, without a metadata service: the test says which set holds.

use super::*;
use crate::store::{StoreConfig, UNIT_BLOCKS};
use shards::sim::{CrashKind, TestIo, VirtualDisk};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Range;
use wire::data::block_crcs;
use wire::{BLOCK_BYTES, Replica, Sequence, flags};

const CHUNK: ChunkId = ChunkId(7);
const UNIT_BYTES: u64 = UNIT_BLOCKS as u64 * BLOCK_BYTES as u64;
/// Units the chunk has at first.
const UNITS: u32 = 40;
const CLIENT: ConnId = ConnId(1000);

fn addr(n: usize) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, n as u16 + 1).into()
}

fn cs(n: usize) -> CsId {
    CsId(n as u32 + 1)
}

struct Side {
    replication: Replication,
    store: Store,
    io: TestIo,
}

impl Side {
    fn open(n: usize, mut io: TestIo) -> Side {
        let config = StoreConfig {
            dir: "shard-000".into(),
            journal_path: "shard-000/journal".into(),
            journal_bytes: 8 << 20,
            capacity_bytes: 64 << 20,
            map_cache_bytes: 1 << 20,
            overlay_bytes: 1 << 20,
            cache: None,
        };
        let mut store = Store::open(&mut io, &config).unwrap();
        while !store.is_ready() {
            let (op, result) = io.complete_next().expect("the store opens");
            store.on_disk(&mut io, op, result);
            store.outcomes();
        }
        Side {
            replication: Replication::new(cs(n), Duration::from_secs(10), Duration::from_secs(1)),
            store,
            io,
        }
    }

    /// Lets the disk and what follows from it go on.
    fn settle(&mut self) {
        loop {
            let mut outcomes: Vec<Outcome> = self.store.outcomes().collect();
            let idle = outcomes.is_empty();
            self.replication.on_store(&mut outcomes, &mut self.store, &mut self.io);
            match self.io.complete_next() {
                Some((op, result)) => {
                    self.store.on_disk(&mut self.io, op, result);
                }
                None if idle => return,
                None => {}
            }
        }
    }

    fn contents(&mut self) -> Vec<u8> {
        let blocks = (UNITS + 8) * UNIT_BLOCKS;
        self.store.read(&mut self.io, Ticket(1), CHUNK, 0, blocks * BLOCK_BYTES as u32);
        loop {
            for outcome in self.store.outcomes() {
                if let Outcome::Finished { ticket: Ticket(1), result } = outcome {
                    let Ok(Done::Read { data, .. }) = result else { panic!("{result:?}") };
                    return data.chunks(BLOCK_BYTES).map(|block| block[0]).collect();
                }
            }
            let (op, result) = self.io.complete_next().expect("the read ends");
            self.store.on_disk(&mut self.io, op, result);
        }
    }
}

struct Bench {
    sides: Vec<Side>,
    epoch: Epoch,
    grant: Grant,
    /// The last epoch at which a replica that is not in sync was.
    until: Vec<(CsId, Epoch)>,
    min_replicas: u8,
    below_since: Option<Epoch>,
    /// Nothing reaches these.
    away: BTreeSet<usize>,
    /// Frames that may still be delivered.
    frames_left: usize,
    replies: Vec<Frame>,
    joined: Vec<CsId>,
    found_slow: Vec<CsId>,
    suspected: Vec<CsId>,
    /// Complaints of a replica about its own copy.
    damaged: usize,
    gone: Vec<(u32, u32)>,
    requests: u64,
}

use Role::{InSync, Learner, Stale};

impl Bench {
    /// A chunk with `UNITS` units, all replicas in sync.
    fn new(replicas: usize) -> Bench {
        let mut bench = Bench {
            sides: (0..replicas).map(|n| Side::open(n, TestIo::new(n as u64))).collect(),
            epoch: Epoch(0),
            grant: Grant::default(),
            until: Vec::new(),
            min_replicas: 1,
            below_since: None,
            away: BTreeSet::new(),
            frames_left: usize::MAX,
            replies: Vec::new(),
            joined: Vec::new(),
            found_slow: Vec::new(),
            suspected: Vec::new(),
            damaged: 0,
            gone: Vec::new(),
            requests: 0,
        };
        let all: Vec<(usize, Role)> = (0..replicas).map(|n| (n, InSync)).collect();
        bench.set(&all);
        bench.write(0..UNITS * UNIT_BLOCKS, 1);
        // Brings the watermark of the first to the disks.
        bench.write(0..1, 1);
        bench.tick();
        bench
    }

    /// The set from now on, as the MDS would make it.
    fn set(&mut self, roles: &[(usize, Role)]) {
        for old in self.grant.in_sync() {
            let stays = roles.iter().any(|(n, role)| cs(*n) == old.cs && *role == InSync);
            if !stays {
                self.until.push((old.cs, self.epoch));
            }
        }
        self.until.retain(|(c, _)| !roles.iter().any(|(n, role)| cs(*n) == *c && *role == InSync));
        self.epoch = Epoch(self.epoch.0 + 1);
        let replica = |&(n, role): &(usize, Role)| Replica { cs: cs(n), addr: addr(n), role };
        self.grant = Grant { replicas: roles.iter().map(replica).collect(), min_replicas: self.min_replicas };
        let is_below = self.grant.in_sync().count() < usize::from(self.min_replicas);
        self.below_since = is_below.then(|| self.below_since.unwrap_or(self.epoch));
        self.tell();
    }

    fn primary(&self) -> usize {
        self.grant.primary().unwrap().cs.0 as usize - 1
    }

    /// As the MDS tells it.
    fn set_now(&self) -> ChunkSet {
        ChunkSet {
            chunk: CHUNK,
            epoch: self.epoch,
            grant: self.grant.clone(),
            in_sync_until: self.until.clone(),
            below_minimum_since: self.below_since,
        }
    }

    fn tell(&mut self) {
        let set = self.set_now();
        let primary = self.primary();
        let side = &mut self.sides[primary];
        side.replication.on_command(CsCommand::Repair { set }, &mut side.store, &mut side.io);
        self.run();
    }

    /// Everything goes on until nothing does.
    fn run(&mut self) {
        loop {
            let mut idle = true;
            for n in 0..self.sides.len() {
                self.sides[n].settle();
                for action in self.sides[n].replication.take_actions(Vec::new()) {
                    idle = false;
                    self.deliver(n, action);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn deliver(&mut self, from: usize, action: Action) {
        let (to, frame, answer) = match action {
            Action::Reply(CLIENT, frame) => return self.replies.push(frame),
            Action::ToMds(CsRequest::Joined { cs, epoch, .. }) if epoch == self.epoch => {
                return self.joined.push(cs);
            }
            Action::ToMds(CsRequest::Slow { cs, chunks, .. }) => {
                assert_eq!(chunks, [ChunkReport { chunk: CHUNK, epoch: self.epoch }]);
                return self.found_slow.push(cs);
            }
            Action::ToMds(CsRequest::Suspect { cs, chunks, .. }) => {
                assert_eq!(chunks, [ChunkReport { chunk: CHUNK, epoch: self.epoch }]);
                return self.suspected.extend(cs);
            }
            Action::ToMds(CsRequest::Damaged { .. }) => {
                self.damaged += 1;
                return;
            }
            Action::ToMds(CsRequest::Gone { first_block, blocks, .. }) => {
                return self.gone.push((first_block, blocks));
            }
            Action::ToMds(_) => return,
            Action::Reply(conn, frame) => (conn.0 as usize, frame, true),
            Action::ToPeer(addr, frame) => (addr.port() as usize - 1, frame, false),
        };
        if self.frames_left == 0 || self.away.contains(&from) || self.away.contains(&to) {
            return;
        }
        self.frames_left -= 1;
        let Side { replication, store, io } = &mut self.sides[to];
        match answer {
            true => replication.on_peer(addr(from), frame, store, io),
            false => replication.on_request(ConnId(from as u64), frame, store, io),
        }
    }

    fn tick(&mut self) {
        for n in 0..self.sides.len() {
            let Side { replication, store, io } = &mut self.sides[n];
            let now = io.now();
            replication.on_tick(now, store, io);
        }
        self.run();
    }

    /// A client's write or, with `None`, discard. True when it was acknowledged.
    fn change(&mut self, blocks: Range<u32>, value: Option<u8>) -> bool {
        self.requests += 1;
        let mut head = Head::new(if value.is_some() { Kind::Write } else { Kind::Discard }, self.requests);
        (head.chunk, head.epoch, head.flags) = (CHUNK, self.epoch, flags::GRANT);
        head.offset_bytes = blocks.start * BLOCK_BYTES as u32;
        let bytes = (blocks.end - blocks.start) as usize * BLOCK_BYTES;
        let data = value.map_or_else(Vec::new, |v| vec![v; bytes]);
        let meta = DataMeta {
            lease: LeaseId(1),
            grant: Some(self.grant.clone()),
            crcs: block_crcs(&data).collect(),
            ..DataMeta::default()
        };
        let mut frame = Frame::data(head, &meta, Buf::from_slice(&data));
        frame.head.length_bytes = bytes as u32;
        let primary = self.primary();
        let Side { replication, store, io } = &mut self.sides[primary];
        replication.on_request(CLIENT, frame, store, io);
        self.run();
        let answered =
            self.replies.iter().any(|r| r.head.request == self.requests && r.head.status == Status::Ok);
        self.replies.clear();
        answered
    }

    /// What a client reads from the primary: the first byte of the block, or why not.
    fn read(&mut self, block: u32) -> Result<u8, Status> {
        self.requests += 1;
        let mut head = Head::new(Kind::Read, self.requests);
        (head.chunk, head.epoch, head.flags) = (CHUNK, self.epoch, flags::GRANT);
        (head.offset_bytes, head.length_bytes) = (block * BLOCK_BYTES as u32, BLOCK_BYTES as u32);
        let meta = DataMeta { lease: LeaseId(1), grant: Some(self.grant.clone()), ..DataMeta::default() };
        let primary = self.primary();
        let Side { replication, store, io } = &mut self.sides[primary];
        replication.on_request(CLIENT, Frame::data(head, &meta, Buf::empty()), store, io);
        self.run();
        let reply = self.replies.pop().expect("an answer");
        if reply.head.status == Status::Ok { Ok(reply.payload[0]) } else { Err(reply.head.status) }
    }

    /// Turns a bit in the first `count` blocks with this value in a replica's file.
    fn damage(&mut self, n: usize, value: u8, count: usize) {
        let disk = self.sides[n].io.disk();
        let blocks = disk.len_of("shard-000/data").expect("a data file") / BLOCK_BYTES as u64;
        let holds = |disk: &VirtualDisk, block: u64| {
            let bytes = disk.peek("shard-000/data", block * BLOCK_BYTES as u64, BLOCK_BYTES);
            bytes.is_some_and(|b| b.iter().all(|&byte| byte == value))
        };
        let there: Vec<u64> = (0..blocks).filter(|b| holds(disk, *b)).take(count).collect();
        assert_eq!(there.len(), count);
        for block in there {
            assert!(disk.flip_bit("shard-000/data", block * BLOCK_BYTES as u64 + 100, 3));
        }
    }

    /// The MDS agrees that what can't be read is given up.
    fn give_up(&mut self) {
        let (epoch, primary) = (self.epoch, self.primary());
        let Side { replication, store, io } = &mut self.sides[primary];
        replication.give_up(CHUNK, epoch, store, io);
        self.run();
    }

    /// The MDS answers a complaint of the primary: the set stays as it is.
    fn nobody_else_can_lead(&mut self) {
        let set = self.set_now();
        let primary = self.primary();
        let Side { replication, store, io } = &mut self.sides[primary];
        replication.on_sets(vec![set], &[CHUNK], store, io);
        self.run();
    }

    fn write(&mut self, blocks: Range<u32>, value: u8) {
        assert!(self.change(blocks, Some(value)), "acknowledged");
    }

    /// A replica stores a write that nobody acknowledged, as from a primary that died of it.
    fn store_alone(&mut self, n: usize, blocks: Range<u32>, value: u8) {
        let data = vec![value; (blocks.end - blocks.start) as usize * BLOCK_BYTES];
        let mut head = Head::new(Kind::Forward, 1);
        (head.chunk, head.epoch) = (CHUNK, self.epoch);
        head.offset_bytes = blocks.start * BLOCK_BYTES as u32;
        let crcs = block_crcs(&data).collect();
        let meta = DataMeta { sequence: Sequence(500), crcs, ..DataMeta::default() };
        let frame = Frame::data(head, &meta, Buf::from_slice(&data));
        let Side { replication, store, io } = &mut self.sides[n];
        replication.on_request(ConnId(900), frame, store, io);
        self.sides[n].settle();
        self.sides[n].replication.take_actions(Vec::new());
    }

    /// The process ends and starts again.
    fn restart(&mut self, n: usize) {
        let placeholder = Side::open(n, TestIo::new(0));
        let old = std::mem::replace(&mut self.sides[n], placeholder);
        let disk = old.io.crash(CrashKind::Process, 5);
        self.sides[n] = Side::open(n, TestIo::with_disk(disk, 6));
    }

    /// The replica comes back and is filled; returns what that took.
    fn bring_back(&mut self, n: usize, roles: &[(usize, Role)]) -> Stats {
        self.away.remove(&n);
        let before = self.sides[roles[0].0].replication.stats;
        self.joined.clear();
        self.set(roles);
        assert_eq!(self.joined, [cs(n)], "it is to be put in sync");
        let after = self.sides[roles[0].0].replication.stats;
        Stats {
            catch_ups: after.catch_ups - before.catch_ups,
            catch_up_bytes: after.catch_up_bytes - before.catch_up_bytes,
            full_copies: after.full_copies - before.full_copies,
            full_copy_bytes: after.full_copy_bytes - before.full_copy_bytes,
            ..Stats::default()
        }
    }

    fn assert_equal(&mut self) {
        let in_set: Vec<usize> =
            self.grant.replicas.iter().filter(|r| r.role != Stale).map(|r| r.cs.0 as usize - 1).collect();
        let contents: Vec<Vec<u8>> = in_set.iter().map(|n| self.sides[*n].contents()).collect();
        for (n, other) in in_set.iter().zip(&contents) {
            let differs = contents[0].iter().zip(other).position(|(a, b)| a != b);
            assert_eq!(differs, None, "replica {n} differs from {} at this block", in_set[0]);
        }
    }
}

fn caught_up(stats: Stats) -> u64 {
    assert_eq!((stats.catch_ups, stats.full_copies, stats.full_copy_bytes), (1, 0, 0));
    stats.catch_up_bytes / UNIT_BYTES
}

fn copied_whole(stats: Stats) {
    assert_eq!((stats.catch_ups, stats.catch_up_bytes, stats.full_copies), (0, 0, 1));
    assert!(stats.full_copy_bytes >= u64::from(UNITS) * UNIT_BYTES - 2 * UNIT_BYTES, "{stats:?}");
}

#[test]
fn a_returned_replica_gets_the_units_written_while_it_was_away() {
    let mut b = Bench::new(3);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.write(3..4, 2);
    b.write(160..200, 3);
    assert!(b.change(320..336, None), "a whole unit is discarded");
    let stats = b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]);
    assert_eq!(caught_up(stats), 1 + 3, "the discarded unit is only cleared");
    b.assert_equal();
    b.set(&[(0, InSync), (1, InSync), (2, InSync)]);
    b.write(0..1, 9);
    b.assert_equal();
    assert_eq!(b.sides[0].replication.written.after(CHUNK, b.epoch), None, "nobody is missing");
}

#[test]
fn what_a_returned_replica_stored_and_nobody_acknowledged_goes() {
    let mut b = Bench::new(3);
    b.store_alone(2, 100..104, 66);
    b.store_alone(2, UNITS * UNIT_BLOCKS + 3..UNITS * UNIT_BLOCKS + 5, 67);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.write(0..1, 2);
    let stats = b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]);
    assert_eq!(stats.catch_up_bytes, UNIT_BYTES + 4 * BLOCK_BYTES as u64, "a unit, and its tail");
    b.assert_equal();
}

#[test]
fn a_catch_up_that_ends_half_way_is_made_good_by_the_next() {
    for frames in [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15] {
        let mut b = Bench::new(3);
        b.store_alone(2, 100..104, 66);
        b.away.insert(2);
        b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
        b.write(16..80, 2);
        b.write(300..301, 2);
        // It comes, gets some of it, and a write that nobody acknowledges.
        (b.frames_left, b.until) = (frames, b.until.clone());
        b.away.remove(&2);
        b.set(&[(0, InSync), (1, InSync), (2, Learner)]);
        b.change(200..204, Some(5));
        b.store_alone(2, 400..404, 68);
        b.frames_left = usize::MAX;
        b.away.insert(2);
        b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
        b.write(17..18, 4);
        b.restart(2);
        let stats = b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]);
        assert!(caught_up(stats) < u64::from(UNITS) / 2, "after {frames} frames: {stats:?}");
        b.assert_equal();
    }
}

#[test]
fn who_leads_next_knows_it_too() {
    let mut b = Bench::new(4);
    b.away.insert(3);
    b.set(&[(0, InSync), (1, InSync), (2, InSync), (3, Stale)]);
    b.write(16..32, 2);
    b.tick();
    b.away.insert(0);
    b.set(&[(1, InSync), (2, InSync), (0, Stale), (3, Stale)]);
    b.write(64..80, 3);
    let stats = b.bring_back(3, &[(1, InSync), (2, InSync), (3, Learner), (0, Stale)]);
    assert_eq!(caught_up(stats), 2);
    b.set(&[(1, InSync), (2, InSync), (3, InSync), (0, Stale)]);
    b.write(96..112, 4);
    b.tick();
    let stats = b.bring_back(0, &[(1, InSync), (2, InSync), (3, InSync), (0, Learner)]);
    assert_eq!(caught_up(stats), 2, "it was there for the first write");
    b.assert_equal();
}

#[test]
fn writes_of_unknown_outcome_are_sent_too() {
    let mut b = Bench::new(4);
    // Stored by a secondary and by nobody else: the next primary may level it into all, or away.
    b.store_alone(1, 100..104, 66);
    b.away.extend([0, 3]);
    b.set(&[(1, InSync), (2, InSync), (0, Stale), (3, Stale)]);
    let stats = b.bring_back(3, &[(1, InSync), (2, InSync), (3, Learner), (0, Stale)]);
    assert_eq!(caught_up(stats), 1);
    assert_eq!(b.sides[3].contents()[100], 66);
    b.assert_equal();
}

#[test]
fn a_primary_that_does_not_know_what_was_written_copies_everything() {
    let mut b = Bench::new(3);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.write(16..32, 2);
    b.restart(0);
    copied_whole(b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]));
    b.assert_equal();
}

#[test]
fn a_primary_that_started_again_before_the_replica_left_knows_enough() {
    let mut b = Bench::new(3);
    b.restart(0);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.write(16..32, 2);
    // Its watermark is older than before: the last write but one is sent again.
    assert_eq!(caught_up(b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)])), 2);
    b.assert_equal();
}

#[test]
fn a_replica_that_lost_what_it_had_is_copied_whole() {
    let mut b = Bench::new(3);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.sides[2] = Side::open(2, TestIo::new(77));
    copied_whole(b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]));
    b.assert_equal();
    // Cut off in the middle: what it was just given is no proof of more.
    let mut b = Bench::new(3);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.sides[2] = Side::open(2, TestIo::new(77));
    b.away.remove(&2);
    b.frames_left = 9;
    b.set(&[(0, InSync), (1, InSync), (2, Learner)]);
    b.frames_left = usize::MAX;
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    copied_whole(b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]));
    b.assert_equal();
}

#[test]
fn a_learner_that_has_everything_is_not_emptied_again() {
    let mut b = Bench::new(3);
    b.away.insert(2);
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.restart(0);
    copied_whole(b.bring_back(2, &[(0, InSync), (1, InSync), (2, Learner)]));
    // The word is on its way to the MDS when the connection breaks. The set may have it in sync at any moment.
    let side = &mut b.sides[0];
    side.replication.peer_down(addr(2), "test", &mut side.store, &mut side.io);
    side.replication.peer_up(addr(2), &mut side.store, &mut side.io);
    b.frames_left = 8;
    b.change(0..1, Some(9));
    assert_eq!(b.sides[2].contents()[16..600], b.sides[0].contents()[16..600]);
    assert_eq!(b.sides[0].replication.stats.full_copies, 1);
    b.joined.clear();
    b.frames_left = usize::MAX;
    b.tell();
    assert_eq!(b.joined, [cs(2)], "told again when the MDS asks for the fill again");
}

#[test]
fn a_server_that_stays_away_does_not_disturb_the_filling_of_another() {
    let mut b = Bench::new(4);
    b.set(&[(0, InSync), (1, InSync), (2, Stale), (3, Stale)]);
    b.write(0..UNITS * UNIT_BLOCKS, 2);
    // Nothing is under way between two pieces.
    b.sides[0].replication.set_copy_rate(1);
    b.set(&[(0, InSync), (1, InSync), (2, Learner), (3, Stale)]);
    let Side { replication, store, io } = &mut b.sides[0];
    assert!(replication.queue_depth() > 0, "it is being filled");
    assert!(!replication.wanted_peers().contains(&addr(3)));
    replication.peer_down(addr(3), "not reachable", store, io);
    b.tick();
    assert_eq!(b.sides[0].replication.stats.full_copies, 1, "it did not begin again");
    b.sides[0].replication.set_copy_rate(0);
    b.tick();
    assert_eq!(b.joined, [cs(2)]);
}

#[test]
fn a_replica_that_goes_between_two_pieces_of_a_copy_is_told() {
    let mut b = Bench::new(4);
    b.set(&[(0, InSync), (1, InSync), (2, InSync), (3, Stale)]);
    b.write(0..UNITS * UNIT_BLOCKS, 2);
    b.sides[0].replication.set_copy_rate(1);
    b.set(&[(0, InSync), (1, InSync), (2, InSync), (3, Learner)]);
    let Side { replication, store, io } = &mut b.sides[0];
    replication.peer_down(addr(2), "not reachable", store, io);
    b.tick();
    assert_eq!(b.suspected, [cs(2)]);
    b.sides[0].replication.set_copy_rate(0);
    b.set(&[(0, InSync), (1, InSync), (2, Stale), (3, Learner)]);
    b.tick();
    assert_eq!(b.joined, [cs(3)]);
}

#[test]
fn a_replica_that_hangs_is_told_once_it_has_for_long() {
    let mut b = Bench::new(3);
    // Its process answers pings, so that nobody thinks it dead; its disk does not answer.
    b.away.insert(2);
    assert!(!b.change(0..1, Some(2)));
    let mut windows = 0;
    while b.found_slow.is_empty() && windows < 10 {
        windows += 1;
        b.sides[0].io.advance(Duration::from_millis(2001));
        b.tick();
    }
    assert_eq!((b.found_slow.clone(), windows), (vec![cs(2)], 5));
    b.set(&[(0, InSync), (1, InSync), (2, Stale)]);
    b.found_slow.clear();
    for _ in 0..10 {
        b.write(0..1, 3);
        b.sides[0].io.advance(Duration::from_millis(2001));
        b.tick();
    }
    assert!(b.found_slow.is_empty(), "all that remain are well");
}

#[test]
fn what_the_last_replica_can_not_read_is_gone_on_all_and_the_rest_is_copied() {
    let mut b = Bench::new(2);
    b.write(32..48, 77);
    b.damage(0, 77, 2);
    assert_eq!(b.sides.len(), 2);
    b.sides.push(Side::open(2, TestIo::new(9)));
    b.away.insert(1);
    b.set(&[(0, InSync), (1, Stale), (2, Learner)]);
    assert_eq!((b.damaged, b.joined.len()), (1, 0), "it met the damage, and tells");
    assert!(b.gone.is_empty(), "another replica might have the blocks");
    assert_eq!((b.read(34), b.read(0)), (Ok(77), Ok(1)), "what is whole can be read");
    assert_eq!(b.read(32), Err(Status::Busy), "another might lead");

    b.nobody_else_can_lead();
    assert!(b.joined.is_empty() && b.gone.is_empty(), "the one that is away may have them, and come back");
    assert_eq!((b.read(34), b.read(32)), (Ok(77), Err(Status::Damaged)));
    b.give_up();
    assert_eq!((&b.joined[..], &b.gone[..]), (&[cs(2)][..], &[(32, 2)][..]));
    b.set(&[(0, InSync), (1, Stale), (2, InSync)]);
    for _ in 0..2 {
        assert_eq!((b.read(32), b.read(33)), (Err(Status::Damaged), Err(Status::Damaged)));
        assert_eq!((b.read(34), b.read(31), b.read(600)), (Ok(77), Ok(1), Ok(1)));
        // The other leads, after a restart.
        b.set(&[(2, InSync), (0, InSync)]);
        b.restart(2);
        b.set(&[(2, InSync), (0, InSync)]);
    }
    assert_eq!(b.damaged, 1, "what is known to be gone is no reason to complain");

    // One that returns learns it too; what is written anew is whole again, everywhere.
    b.away.remove(&1);
    b.joined.clear();
    b.set(&[(2, InSync), (0, InSync), (1, Learner)]);
    assert_eq!(b.joined, [cs(1)]);
    b.set(&[(1, InSync), (2, InSync), (0, InSync)]);
    assert_eq!((b.read(32), b.read(34)), (Err(Status::Damaged), Ok(77)));
    b.write(32..34, 5);
    assert_eq!((b.read(32), b.read(33)), (Ok(5), Ok(5)));
    b.assert_equal();
}

/// Two replicas with a minimum of two, of which the second left in the middle of a write that it never got, and clients have
/// read it from the first since.
fn left_below_the_minimum() -> Bench {
    let mut b = Bench::new(2);
    b.min_replicas = 2;
    b.set(&[(0, InSync), (1, InSync)]);
    b.write(32..48, 77);
    b.tick();
    b.away.insert(1);
    assert!(!b.change(64..65, Some(9)), "the other does not answer");
    b.restart(0); // The client's request is forgotten; what it wrote is not.
    b.set(&[(0, InSync), (1, Stale)]);
    assert!(!b.change(66..67, Some(9)), "writes wait below the minimum");
    assert_eq!(b.read(64), Ok(9));
    b
}

#[test]
fn what_a_replica_missed_below_the_minimum_is_remembered_by_a_restarted_primary() {
    for restarts in 0..3 {
        let mut b = left_below_the_minimum();
        for _ in 0..restarts {
            b.restart(0);
            b.tell();
            assert_eq!(b.read(64), Ok(9));
        }
        let took = b.bring_back(1, &[(0, InSync), (1, Learner)]);
        assert_eq!((took.catch_ups, took.full_copies), (1, 0));
        assert!(took.catch_up_bytes <= UNIT_BYTES, "{} bytes", took.catch_up_bytes);
        b.set(&[(1, InSync), (0, InSync)]);
        assert_eq!((b.read(64), b.read(32)), (Ok(9), Ok(77)));
        b.assert_equal();
    }
}

#[test]
fn one_that_missed_nothing_gives_back_what_the_last_one_has_lost() {
    // The block that was written last, of which the other never heard, and one that both have.
    for (value, block, was) in [(77, 32, 77), (9, 64, 1)] {
        let mut b = left_below_the_minimum();
        b.damage(0, value, 1);
        b.restart(0);
        b.tell();
        assert!(b.read(block).is_err());
        b.nobody_else_can_lead();
        let took = b.bring_back(1, &[(0, InSync), (1, Learner)]);
        assert_eq!((took.full_copies, b.gone.len()), (0, 0));
        // The damaged one complains again, leaves, and is filled.
        b.set(&[(1, InSync), (0, Stale)]);
        b.until.clear();
        assert_eq!(b.read(block), Ok(was));
        let took = b.bring_back(0, &[(1, InSync), (0, Learner)]);
        assert_eq!(took.full_copies, 1);
        b.set(&[(1, InSync), (0, InSync)]);
        b.assert_equal();
    }
}

#[test]
fn a_learner_is_not_emptied_on_the_word_of_a_client() {
    let mut b = left_below_the_minimum();
    b.set(&[(0, InSync), (1, Learner)]);
    b.restart(0);
    b.away.remove(&1);
    assert_eq!(b.read(64), Ok(9), "it leads as the client's map says");
    let stats = b.sides[0].replication.stats;
    assert_eq!(
        (stats.catch_ups, stats.full_copies),
        (0, 0),
        "the metadata service has not told what the other has"
    );
    b.tell();
    let stats = b.sides[0].replication.stats;
    assert_eq!((stats.catch_ups, stats.full_copies), (1, 0));
    assert_eq!(b.joined, [cs(1)]);
}

#[test]
fn a_client_can_not_write_blocks_as_gone() {
    let mut b = Bench::new(1);
    let mut head = Head::new(Kind::Write, 77);
    (head.chunk, head.epoch, head.flags) = (CHUNK, b.epoch, flags::GRANT);
    let crcs = [wire::BlockCrc::GONE].into_iter().collect();
    let meta = DataMeta { lease: LeaseId(1), grant: Some(b.grant.clone()), crcs, ..DataMeta::default() };
    let frame = Frame::data(head, &meta, Buf::from_slice(&[0; BLOCK_BYTES]));
    let Side { replication, store, io } = &mut b.sides[0];
    replication.on_request(CLIENT, frame, store, io);
    b.run();
    assert_eq!(b.replies.pop().expect("an answer").head.status, Status::BadRequest);
    assert_eq!(b.read(0), Ok(1));
}

#[test]
fn who_may_have_missed_a_revocation_takes_no_writes() {
    let mut b = Bench::new(1);
    let unsure_after = Duration::from_secs(30);
    b.sides[0].replication.set_lease_timeout(2 * unsure_after);
    let asked = b.sides[0].io.now();
    b.sides[0].replication.leases_known_at(asked);
    b.write(0..1, 2);
    b.sides[0].io.advance(unsure_after + Duration::from_millis(1));
    assert!(!b.change(0..1, Some(3)), "not even if the client's lease is new");
    assert_eq!(b.read(0), Ok(2), "reads go on");
    let asked = b.sides[0].io.now();
    b.sides[0].replication.leases_known_at(asked);
    b.write(0..1, 4);
}
