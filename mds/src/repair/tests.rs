//! Repair on synthetic clusters: real state and registry; chunk servers that fill a learner within a few turns.

use super::*;
use crate::cs_registry::Registration;
use crate::state::{ChunkView, Command, Internal, Op, Outcome, Placement, Reply};
use std::net::SocketAddr;
use wire::cs_api::{Load, Space};
use wire::mds_api::{FileKind, MdsReply, ReplicaPolicy};
use wire::{ClientId, FileId, ROOT, ShardIndex};

const TURN: Duration = Duration::from_millis(20);
const OFFLINE_AFTER: Duration = Duration::from_secs(10);
const GB: u64 = 1 << 30;

/// A cluster of servers with one shard each.
pub(super) struct Bench {
    pub state: State,
    pub registry: CsRegistry,
    pub repair: Repair,
    pub now: Timestamp,
    /// Fills that were ordered, with the turns they still take.
    fills: BTreeMap<ChunkId, (Epoch, u32)>,
    /// Turns a fill takes.
    pub fill_turns: u32,
    pub limits: Limits,
    pub balance_margin: f64,
    /// What a replica takes of the 100 GB of a server; none: half of them is used whatever it holds.
    pub replica_bytes: Option<u64>,
    /// Learners made, by server.
    pub copies_to: BTreeMap<CsId, u64>,
    /// Most fills under way at a time, by primary and by learner.
    pub most_from: BTreeMap<CsId, usize>,
    pub most_to: BTreeMap<CsId, usize>,
    request: u64,
    random: u64,
}

impl Bench {
    pub fn new() -> Bench {
        let mut b = Bench {
            state: State::new(),
            registry: CsRegistry::new(Timestamp(0)),
            repair: Repair::default(),
            now: Timestamp(0),
            fills: BTreeMap::new(),
            fill_turns: 3,
            limits: Limits { from_shard: 8, to_server: 16, moves: 4 },
            balance_margin: 0.05,
            replica_bytes: None,
            copies_to: BTreeMap::new(),
            most_from: BTreeMap::new(),
            most_to: BTreeMap::new(),
            request: 0,
            random: 7,
        };
        b.ask(Op::OpenSession { host: "h".into(), mount_point: "/m".into(), nonce: 1 });
        b
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.request += 1;
        let outcome = self.state.apply(self.request, &command);
        for effect in &outcome.effects {
            match effect {
                crate::state::Effect::SetChanged { view } => self.repair.look_at(view.chunk, &self.state),
                crate::state::Effect::PolicyChanged => self.repair.scan_anew(),
                _ => {}
            }
        }
        outcome
    }

    fn ask(&mut self, op: Op) -> Reply {
        let request = self.request + 1;
        // Files belong to the one session; the rest is the administrator's.
        let client = ClientId(u64::from(matches!(op, Op::Create { .. } | Op::Allocate { .. })));
        self.apply(Command::Client { client, request, time_ms: 1, op }).reply
    }

    /// A server of 100 GB, active.
    pub fn server(&mut self, host: u8, location: &str) -> CsId {
        let host_id = [host; 16];
        let Reply::Wire(MdsReply::NewCs { cs }) = self.ask(Op::NewCs { host_id, host: "h".into() }) else {
            panic!("no server")
        };
        let (host, location) = (format!("h{host}"), location.to_string());
        let op = Internal::RegisterCs { cs, host_id, host, location, tier: 0, shards: 1 };
        self.apply(Command::internal(1, op));
        self.connect(cs);
        cs
    }

    pub fn connect(&mut self, cs: CsId) {
        let registration = Registration {
            cs,
            shard: ShardIndex(0),
            shards: 1,
            addr: SocketAddr::from(([10, 0, 0, 1], 4000 + cs.0 as u16)),
            incarnation: self.now.0,
            space: self.space(cs),
            flags: String::new(),
        };
        self.registry.register(ConnId(cs.0.into()), &registration, self.now).unwrap();
        self.repair.look_at_server(cs, &self.state);
        self.repair.scan_anew();
    }

    pub fn disconnect(&mut self, cs: CsId) {
        self.registry.disconnected(ConnId(cs.0.into()), self.now).unwrap();
        self.repair.look_at_server(cs, &self.state);
    }

    pub fn set(&mut self, file: FileId, name: &str, value: &str) {
        let (name, value) = (name.into(), value.into());
        let reply = self.ask(Op::SetPolicy { file, name, value, recursive: true });
        assert_eq!(reply, Reply::Wire(MdsReply::Done));
    }

    pub fn drain(&mut self, cs: CsId, draining: bool) {
        self.apply(Command::internal(1, Internal::DrainCs { cs, draining }));
    }

    pub fn drop_cs(&mut self, cs: CsId, force: bool) -> Reply {
        self.apply(Command::internal(1, Internal::DropCs { cs, force })).reply
    }

    /// A file with chunks in these places.
    pub fn file(&mut self, name: &str, places: &[Vec<CsId>]) -> FileId {
        let op = Op::Create {
            parent: ROOT,
            name: name.into(),
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            symlink_target: String::new(),
            exclusive: true,
            open: true,
            first: Vec::new(),
        };
        let Reply::Wire(MdsReply::Created { attr, lease, .. }) = self.ask(op) else { panic!("no file") };
        let (file, lease) = (attr.file, lease.unwrap());
        for (part, places) in places.chunks(1000).enumerate() {
            let (first, count) = ((part * 1000) as u32, places.len() as u32);
            let place = |(n, replicas): (usize, &Vec<CsId>)| Placement {
                index: first + n as u32,
                replicas: replicas.clone(),
            };
            let placements = places.iter().enumerate().map(place).collect();
            let reply = self.ask(Op::Allocate { file, lease, first, count, placements });
            assert!(matches!(reply, Reply::Maps(_)), "{reply:?}");
        }
        file
    }

    pub fn views(&self) -> Vec<ChunkView> {
        self.state.list_chunks(ChunkId(0), u32::MAX)
    }

    fn servers(&self) -> BTreeMap<CsId, CsView> {
        let there = self.state.cs_list().filter(|(_, record)| !record.dropped);
        there.map(|(cs, record)| (cs, self.registry.view(cs, record))).collect()
    }

    pub fn misplaced(&self) -> usize {
        let servers = self.servers();
        let deviates = |view: &&ChunkView| {
            let set: Vec<&CsView> = view.in_sync().map(|cs| &servers[&cs]).collect();
            Deviation::of(&set, &self.policy(view)) != Deviation::default()
        };
        self.views().iter().filter(deviates).count()
    }

    fn policy(&self, view: &ChunkView) -> ReplicaPolicy {
        self.state.policy(view.file).unwrap()
    }

    fn space(&self, cs: CsId) -> Space {
        let chunks = self.state.replica_count(cs);
        let used_bytes = self.replica_bytes.map_or(50 * GB, |bytes| chunks * bytes);
        Space { total_bytes: 100 * GB, free_bytes: (100 * GB).saturating_sub(used_bytes), chunks }
    }

    /// Each server reports once a second.
    fn heartbeats(&mut self) {
        if self.now.0 % 1_000_000_000 != 0 {
            return;
        }
        let all: Vec<CsId> = self.state.cs_list().map(|(cs, _)| cs).collect();
        for cs in all {
            self.registry.heartbeat(ConnId(cs.0.into()), self.space(cs), Load::default(), self.now);
        }
    }

    /// Used parts of the space: of the emptiest and of the fullest server.
    pub fn levels(&self) -> (f64, f64) {
        let share = |v: &CsView| 1.0 - v.free_bytes as f64 / v.total_bytes as f64;
        let servers = self.servers();
        let shares = || servers.values().map(share);
        (shares().fold(1.0, f64::min), shares().fold(0.0, f64::max))
    }

    /// One step of repair and of the servers. Returns what was proposed or ordered.
    pub fn turn(&mut self) -> usize {
        self.now = self.now.after(TURN);
        self.heartbeats();
        let servers = self.servers();
        let is_active = |cs: CsId| self.registry.liveness(cs, self.now, OFFLINE_AFTER) == Liveness::Active;
        let candidates: Vec<CsView> =
            servers.values().filter(|v| is_active(v.cs) && !v.leaving).cloned().collect();
        let world = World {
            state: &self.state,
            registry: &self.registry,
            servers: &servers,
            candidates: &candidates,
            now: self.now,
            offline_after: OFFLINE_AFTER,
            limits: self.limits,
            balance_margin: self.balance_margin,
            may_place: true,
        };
        let random = &mut self.random;
        let actions = self.repair.step(&world, &mut || {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *random >> 9
        });
        let count = actions.len();
        let mut changes = Vec::new();
        for action in actions {
            match action {
                Action::Propose(change) => changes.push(change),
                Action::Fill { view, .. } => {
                    self.fills.insert(view.chunk, (view.epoch, self.fill_turns));
                }
            }
        }
        self.note_fills();
        let repairs: Vec<ChunkId> = changes.iter().map(|c| c.chunk).collect();
        changes.extend(self.joins());
        if !changes.is_empty() {
            self.change(changes);
        }
        for chunk in repairs {
            self.repair.change_done(chunk, &self.state);
        }
        count
    }

    fn note_fills(&mut self) {
        let (mut from, mut to): (BTreeMap<CsId, usize>, BTreeMap<CsId, usize>) = Default::default();
        for (chunk, (epoch, _)) in &self.fills {
            let Some(view) = self.state.chunk(*chunk).filter(|v| v.epoch == *epoch) else { continue };
            *from.entry(view.primary().unwrap()).or_default() += 1;
            view.with_role(Role::Learner).for_each(|cs| *to.entry(cs).or_default() += 1);
        }
        for (now, most) in [(from, &mut self.most_from), (to, &mut self.most_to)] {
            for (cs, count) in now {
                let most = most.entry(cs).or_default();
                *most = (*most).max(count);
            }
        }
    }

    /// Learners that have everything now.
    fn joins(&mut self) -> Vec<SetChange> {
        let mut joins = Vec::new();
        let state = &self.state;
        self.fills.retain(|chunk, (epoch, left)| {
            let Some(view) = state.chunk(*chunk).filter(|v| v.epoch == *epoch) else { return false };
            *left -= 1;
            if *left == 0 {
                let cs = view.with_role(Role::Learner).next().expect("a fill has a learner");
                joins.push(SetChange { chunk: *chunk, epoch: *epoch, action: SetAction::Joined { cs } });
            }
            *left > 0
        });
        joins
    }

    pub fn change(&mut self, changes: Vec<SetChange>) {
        for change in &changes {
            if let SetAction::AddLearner { cs } = &change.action {
                *self.copies_to.entry(*cs).or_default() += 1;
            }
        }
        self.apply(Command::change_sets(1, changes));
    }

    /// Turns until `done`; panics after `most` turns.
    pub fn run_until(&mut self, most: u32, done: impl Fn(&Bench) -> bool) {
        for _ in 0..most {
            self.turn();
            if done(self) {
                return;
            }
        }
        panic!("not within {most} turns: {:?}", self.views());
    }

    pub fn is_whole(&self) -> bool {
        let active = |cs| self.registry.liveness(cs, self.now, OFFLINE_AFTER) == Liveness::Active;
        self.views().iter().all(|v| {
            v.replicas.len() == usize::from(v.normal_replicas)
                && v.in_sync().filter(|cs| active(*cs)).count() == v.replicas.len()
        })
    }

    pub fn copies(&self) -> u64 {
        self.copies_to.values().sum()
    }
}

#[test]
fn another_failure_domain_moves_what_it_must_and_no_more() {
    let mut b = Bench::new();
    let racks = ["a.1.r1", "a.1.r1", "a.1.r2", "a.1.r3"];
    let cs: Vec<CsId> = racks.iter().enumerate().map(|(n, rack)| b.server(n as u8, rack)).collect();
    b.set(ROOT, "replicas", "3:2");
    // Half of the chunks have two replicas in rack 1.
    let places: Vec<Vec<CsId>> = (0..100)
        .map(|n| if n % 2 == 0 { vec![cs[0], cs[1], cs[2]] } else { vec![cs[3], cs[1], cs[2]] })
        .collect();
    let file = b.file("disk", &places);
    for _ in 0..50 {
        b.turn();
    }
    assert_eq!((b.misplaced(), b.copies()), (0, 0), "hosts are distinct");
    b.set(file, "failure-domain", "rack");
    assert_eq!(b.misplaced(), 50);
    b.run_until(3000, |b| {
        // Never fewer in sync than there were.
        assert!(b.views().iter().all(|v| v.in_sync().count() >= 3));
        b.misplaced() == 0 && b.is_whole()
    });
    assert_eq!(b.copies(), 50);
    for _ in 0..1000 {
        assert_eq!(b.turn(), 0, "there is nothing more to do");
    }
}

#[test]
fn a_shared_domain_is_mended_when_a_choice_appears() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = [1, 2, 2].iter().map(|host| b.server(*host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &vec![cs.clone(); 20]);
    for _ in 0..1000 {
        assert_eq!(b.turn(), 0, "there is no better place");
    }
    assert_eq!(b.misplaced(), 20);
    let new = b.server(3, "");
    b.run_until(2000, |b| b.misplaced() == 0 && b.is_whole());
    assert_eq!(b.copies_to, BTreeMap::from([(new, 20)]));
}

/// `count` chunks with replicas on the servers in turn.
fn in_turn(cs: &[CsId], replicas: usize, count: usize) -> Vec<Vec<CsId>> {
    (0..count).map(|n| (0..replicas).map(|r| cs[(n + r) % cs.len()]).collect()).collect()
}

#[test]
fn a_drained_server_is_left_by_copies_first_and_then_dropped() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &in_turn(&cs, 3, 100));
    let held = b.state.replica_count(cs[1]);
    assert!(matches!(b.drop_cs(cs[1], false), Reply::Wire(MdsReply::Failed { .. })), "it holds replicas");
    b.drain(cs[1], true);
    b.run_until(3000, |b| {
        assert!(b.views().iter().all(|v| v.in_sync().count() >= 3), "never fewer in sync than before");
        b.state.replica_count(cs[1]) == 0
    });
    assert_eq!((b.copies(), b.copies_to.get(&cs[1])), (held, None));
    assert!(b.is_whole() && b.misplaced() == 0);
    assert_eq!(b.drop_cs(cs[1], false), Reply::Wire(MdsReply::Done));
    assert!(b.state.cs(cs[1]).is_some_and(|r| r.dropped && !r.draining));
}

#[test]
fn a_cancelled_removal_moves_nothing_more() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &in_turn(&cs, 3, 100));
    b.drain(cs[0], true);
    b.run_until(1000, |b| b.copies() > 20);
    b.drain(cs[0], false);
    b.run_until(100, Bench::is_whole);
    let (copies, left) = (b.copies(), b.state.replica_count(cs[0]));
    for _ in 0..1000 {
        b.turn();
    }
    assert_eq!((b.copies(), b.state.replica_count(cs[0])), (copies, left));
    assert!(left > 0 && b.misplaced() == 0);
}

#[test]
fn a_dead_server_that_is_removed_is_not_waited_for() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &in_turn(&cs, 3, 50));
    b.disconnect(cs[0]);
    for _ in 0..50 {
        b.turn();
    }
    assert_eq!(b.copies(), 0, "inactive for a short time");
    b.drain(cs[0], true);
    b.run_until(400, |b| b.state.replica_count(cs[0]) == 0);
    assert!(b.now.since(Timestamp(0)) < OFFLINE_AFTER);
    assert_eq!(b.drop_cs(cs[0], false), Reply::Wire(MdsReply::Done));
}

#[test]
fn a_server_stays_where_its_domain_is_needed() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = [1, 2, 3, 3].iter().map(|host| b.server(*host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &vec![cs[..3].to_vec(); 10]);
    b.drain(cs[0], true);
    for _ in 0..500 {
        b.turn();
    }
    assert_eq!((b.copies(), b.repair.without_place(cs[0], &b.state)), (0, 10));
    let new = b.server(7, "");
    b.run_until(500, |b| b.state.replica_count(cs[0]) == 0);
    assert_eq!(b.copies_to, BTreeMap::from([(new, 10)]));
}

#[test]
fn dropping_by_force_keeps_the_last_good_replica() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=3).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "2:1");
    b.file("disk", &[vec![cs[0], cs[1]], vec![cs[2]]]);
    let Reply::Wire(MdsReply::Failed { detail, .. }) = b.drop_cs(cs[2], true) else { panic!("lost data") };
    assert!(detail.contains("only good replica of 1 chunks"), "{detail}");
    assert_eq!(b.drop_cs(cs[0], true), Reply::Wire(MdsReply::Done));
    assert_eq!(b.views()[0].replicas, [(cs[1], Role::InSync)]);
    b.run_until(500, Bench::is_whole);
}

#[test]
fn lost_learners_free_their_slots() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=4).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    // Two replicas of three; one server more, to which everything is copied, slowly.
    b.file("disk", &vec![vec![cs[0], cs[1]]; 30]);
    b.disconnect(cs[3]);
    b.limits = Limits { from_shard: 4, to_server: 16, moves: 1 };
    b.fill_turns = 1000;
    b.run_until(100, |b| b.repair.stat(b.now).copying == 4);
    // It dies with all slots taken; another one comes.
    b.disconnect(cs[2]);
    b.fill_turns = 2;
    for _ in 0..20 {
        b.turn();
    }
    assert_eq!(b.repair.stat(b.now).copying, 0);
    b.connect(cs[3]);
    b.run_until(1000, Bench::is_whole);
    assert_eq!(b.copies_to[&cs[3]], 30);
}

#[test]
fn a_lost_server_is_copied_by_many_to_many_within_the_limits() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=20).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &in_turn(&cs, 3, 2000));
    b.limits = Limits { from_shard: 3, to_server: 5, moves: 1 };
    let held = b.state.replica_count(cs[7]);
    b.disconnect(cs[7]);
    b.run_until(100_000, |b| b.copies() > 0); // offline
    b.repair.look_at_server(cs[7], &b.state);
    b.run_until(2000, Bench::is_whole);
    assert_eq!(b.copies(), held);
    assert_eq!(b.most_from.values().max(), Some(&3));
    assert!(b.most_to.values().all(|most| *most <= 5), "{:?}", b.most_to);
    // Every server that leads some of them sent, and nearly all others received.
    assert!(b.most_from.len() >= 2 && b.copies_to.len() >= 15, "{:?} {:?}", b.most_from, b.copies_to);
}

#[test]
fn the_most_endangered_chunks_go_first() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=6).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    // One of them has a single replica; all are led by the same server.
    let mut places = vec![vec![cs[0], cs[1]]; 40];
    places[33] = vec![cs[0]];
    b.file("disk", &places);
    b.limits = Limits { from_shard: 1, to_server: 1, moves: 1 };
    let endangered = b.views()[33].chunk;
    b.run_until(200, |b| b.state.chunk(endangered).unwrap().in_sync().count() == 2);
    let whole = b.views().iter().filter(|v| v.in_sync().count() == 3).count();
    assert!(whole <= 1, "{whole} others went first");
    b.run_until(3000, Bench::is_whole);
}

#[test]
fn a_server_that_returns_cancels_the_copies_in_its_place() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &vec![cs[..3].to_vec(); 100]);
    b.limits = Limits { from_shard: 2, to_server: 2, moves: 1 };
    b.fill_turns = 10;
    b.disconnect(cs[2]);
    b.run_until(10_000, |b| b.copies() >= 10 && b.repair.stat(b.now).copying > 0);
    let elsewhere = b.copies();
    assert!(elsewhere < 50);
    b.connect(cs[2]);
    b.run_until(5000, Bench::is_whole);
    assert_eq!(b.copies() - b.copies_to[&cs[2]], elsewhere, "nothing more was copied elsewhere");
    assert!(b.state.replica_count(cs[2]) > 100 - elsewhere, "none of those under way was ended");
}

#[test]
fn a_chunk_below_its_minimum_waits_for_nobody_to_return() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &[cs[..3].to_vec()]);
    let lose = |b: &mut Bench, lost: CsId| {
        b.disconnect(lost);
        let view = b.views()[0].clone();
        let action = SetAction::Drop { cs: vec![lost], force: true };
        b.change(vec![SetChange { chunk: view.chunk, epoch: view.epoch, action }]);
        for _ in 0..50 {
            b.turn(); // a second; one that is away for ten is lost
        }
    };
    lose(&mut b, cs[0]);
    assert_eq!(b.copies(), 0, "two are left: it may come back");
    lose(&mut b, cs[1]);
    assert_eq!((b.copies(), b.views()[0].in_sync().count()), (1, 2), "writes go on");
    b.connect(cs[0]);
    b.run_until(50, Bench::is_whole);
    assert_eq!((b.copies(), b.copies_to[&cs[0]]), (2, 1), "{:?}", b.views());

    // If it comes back before the copy has ended, it is the one to go on with.
    lose(&mut b, cs[0]);
    b.fill_turns = 1000;
    let other = b.views()[0].in_sync().last().unwrap();
    lose(&mut b, other);
    assert_eq!(b.repair.stat(b.now).copying, 1);
    b.fill_turns = 3;
    b.connect(other);
    b.run_until(50, |b| b.views()[0].in_sync().count() == 2);
    assert!(b.views()[0].in_sync().any(|cs| cs == other), "{:?}", b.views());
}

#[test]
fn of_stale_replicas_the_one_that_stays_is_brought_back() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &[cs[..3].to_vec()]);
    b.drain(cs[1], true);
    // Two are lost while one moves away.
    let steps = [
        SetAction::AddLearner { cs: cs[3] },
        SetAction::Joined { cs: cs[3] },
        SetAction::Drop { cs: cs[1..3].to_vec(), force: false },
    ];
    for action in steps {
        let view = b.views()[0].clone();
        b.change(vec![SetChange { chunk: view.chunk, epoch: view.epoch, action }]);
    }
    let stale: Vec<CsId> = b.views()[0].with_role(Role::Stale).collect();
    assert_eq!(stale, cs[1..3], "the one that leaves comes first");
    // A copy in place of the one that returns would be ended in its favour, and begun again, for ever.
    b.run_until(50, Bench::is_whole);
    let mut set: Vec<CsId> = b.views()[0].in_sync().collect();
    set.sort();
    assert_eq!(set, [cs[0], cs[2], cs[3]]);
    assert_eq!(
        (b.copies(), b.copies_to[&cs[2]]),
        (2, 1),
        "that of the move, and that of the one that returns"
    );
}

#[test]
fn a_slow_server_leads_nothing_that_can_do_without_it() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=4).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &in_turn(&cs[..3], 3, 6));
    b.registry.found_slow(cs[0], Duration::from_secs(60), b.now);
    b.repair.look_at_server(cs[0], &b.state);
    b.run_until(50, |b| b.views().iter().all(|v| v.primary() != Some(cs[0])));
    let stale = |b: &Bench| b.views().iter().filter(|v| v.role_of(cs[0]) == Some(Role::Stale)).count();
    assert_eq!(stale(&b), 2, "where others lead, the primary says whether it is in the way");
    // With a second one away the minimum forbids it.
    b.set(ROOT, "replicas", "3:3");
    b.registry.found_slow(cs[0], Duration::ZERO, b.now);
    let led = b.views().iter().filter(|v| v.primary() == Some(cs[1])).count();
    b.registry.found_slow(cs[1], Duration::from_secs(60), b.now);
    b.repair.look_at_server(cs[1], &b.state);
    b.run_until(50, |b| b.repair.is_idle());
    assert_eq!(b.views().iter().filter(|v| v.primary() == Some(cs[1])).count(), led);
}

#[test]
fn one_that_missed_nothing_goes_before_all_others_even_if_it_is_to_leave() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=5).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    b.file("disk", &[cs[..3].to_vec()]);
    let change = |b: &mut Bench, action| {
        let view = b.views()[0].clone();
        b.change(vec![SetChange { chunk: view.chunk, epoch: view.epoch, action }]);
    };
    // The second leaves a set of two, the first one of three.
    for lost in [cs[0], cs[1]] {
        b.disconnect(lost);
        change(&mut b, SetAction::Drop { cs: vec![lost], force: true });
    }
    // The primary may be damaged: copies do not come to their end.
    b.fill_turns = 1000;
    b.connect(cs[0]);
    b.run_until(50, |b| b.repair.stat(b.now).copying == 1);
    b.turn();
    assert_eq!(b.views()[0].role_of(cs[0]), Some(Role::Learner));
    b.drain(cs[1], true);
    b.connect(cs[1]);
    b.run_until(50, |b| b.views()[0].role_of(cs[1]) == Some(Role::Learner));
    b.fill_turns = 3;
    b.run_until(50, |b| b.views()[0].role_of(cs[1]) == Some(Role::InSync));
    assert_eq!(b.copies_to[&cs[1]], 1);
    b.run_until(500, |b| b.is_whole() && b.state.replica_count(cs[1]) == 0);
}

#[test]
fn what_is_in_danger_goes_before_what_only_moves() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=6).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "3:2");
    let mut places = vec![vec![cs[0], cs[1], cs[2]]; 60];
    places.extend(vec![vec![cs[0], cs[3]]; 20]);
    b.file("disk", &places);
    b.drain(cs[1], true);
    b.limits = Limits { from_shard: 2, to_server: 4, moves: 1 };
    b.run_until(1000, |b| b.views().iter().all(|v| v.in_sync().count() >= 3));
    let left = b.state.replica_count(cs[1]);
    assert!(left >= 50, "{left} of 60 are still there");
    assert!(b.repair.stat(b.now).chunks_per_s > 0.0);
    b.run_until(3000, |b| b.state.replica_count(cs[1]) == 0);
    assert!(b.is_whole());
}

#[test]
fn new_servers_are_filled_with_no_more_than_is_needed() {
    let mut b = Bench::new();
    let old: Vec<CsId> = (0..200).map(|n| b.server(n as u8, &format!("a.1.r{}", n % 10))).collect();
    b.set(ROOT, "replicas", "3:2");
    b.set(ROOT, "failure-domain", "rack");
    // 80 % of the space: 8,000 replicas of 2 GB.
    let places = (0..8000 / 3).map(|n| (0..3).map(|r| old[(n * 3 + r) % 200]).collect::<Vec<_>>());
    b.file("disks", &places.collect::<Vec<_>>());
    b.replica_bytes = Some(2 * GB);
    b.heartbeats();
    for _ in 0..600 {
        b.turn();
    }
    assert_eq!((b.copies(), b.misplaced()), (0, 0), "there is nothing to do");
    let new: Vec<CsId> = (0..20).map(|n| b.server(200 + n as u8, &format!("a.1.r{}", n % 10))).collect();
    let mean = 7998.0 * 2.0 / (220.0 * 100.0);
    let needed = 20.0 * mean * 100.0 / 2.0;
    for turn in 0..20_000 {
        b.turn();
        if turn % 50 == 0 {
            assert!(b.views().iter().all(|v| v.in_sync().count() >= 3));
        }
    }
    let (least, most) = b.levels();
    println!("levels {least:.3} to {most:.3}, mean {mean:.3}; {} moves, {needed:.0} needed", b.copies());
    assert!(most - least <= 0.03, "{least} to {most}");
    assert!(b.copies() as f64 <= 1.1 * needed, "{} moves, {needed} are needed", b.copies());
    assert!(b.copies_to.keys().all(|cs| new.contains(cs)), "{:?}", b.copies_to);
    assert!(b.is_whole() && b.misplaced() == 0);
    let before = b.copies();
    for _ in 0..5000 {
        b.turn();
    }
    assert_eq!(b.copies(), before, "it has come to rest");
}

#[test]
fn small_differences_are_left_alone_and_repair_goes_first() {
    let mut b = Bench::new();
    let cs: Vec<CsId> = (1..=6).map(|host| b.server(host, "")).collect();
    b.set(ROOT, "replicas", "2:1");
    // 40 GB on four servers, 37 on two.
    let mut places = in_turn(&cs[..4], 2, 80);
    places.extend(in_turn(&cs[4..], 2, 37));
    let file = b.file("disk", &places);
    b.replica_bytes = Some(GB);
    b.heartbeats();
    for _ in 0..1000 {
        b.turn();
    }
    assert_eq!(b.copies(), 0, "{:?}", b.levels());
    // Now two new servers; but first one that is away for a moment.
    let new = [b.server(7, ""), b.server(8, "")];
    b.disconnect(cs[0]);
    for _ in 0..300 {
        b.turn();
    }
    assert_eq!(b.copies(), 0, "not while a server is missing");
    b.connect(cs[0]);
    b.run_until(5000, |b| b.levels().0 > 0.2);
    assert!(b.copies_to.keys().all(|cs| new.contains(cs)));
    // Missing replicas stop it.
    b.set(file, "replicas", "3:1");
    b.run_until(20_000, |b| b.views().iter().all(|v| v.in_sync().count() == 3) && b.is_whole());
    for _ in 0..10_000 {
        b.turn();
    }
    let before = b.copies();
    for _ in 0..10_000 {
        b.turn();
    }
    assert_eq!(b.copies(), before, "it has come to rest at {:?}", b.levels());
}
