//! Names, leases, sets, exactly-once, snapshots.

use super::*;
use wire::license::License;
use wire::mds_api::{AttrChange, ChangedDirectory, ClientNote, FileKind, ReleasedLease};
use wire::{Epoch, Role};

fn restored(state: &State) -> State {
    let mut reader = StateReader::default();
    state.snapshot().for_each(|block| reader.take(&block).unwrap());
    reader.finish().unwrap()
}

struct Bench {
    state: State,
    index: u64,
    request: u64,
}

impl Bench {
    /// Three CS and one session, client 1.
    fn new() -> Bench {
        let mut b = Bench { state: State::new(), index: 0, request: 0 };
        for _ in 0..3 {
            b.ask(ClientId(0), Op::NewCs { host_id: [1; 16], host: "h".into() });
        }
        for nonce in 0..2 {
            b.ask(ClientId(0), Op::OpenSession { host: "h".into(), mount_point: "/m".into(), nonce });
        }
        b
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let bytes = command.encode();
        self.state.apply(self.index, &Command::decode(&bytes).unwrap())
    }

    fn ask(&mut self, client: ClientId, op: Op) -> Reply {
        self.request += 1;
        self.apply(Command::Client { client, request: self.request, time_ms: 5, op }).reply
    }

    fn create(&mut self, parent: FileId, name: &str, kind: FileKind) -> Reply {
        let op = Op::Create {
            parent,
            name: name.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            symlink_target: String::new(),
            exclusive: true,
            open: kind == FileKind::File,
            first: Vec::new(),
        };
        self.ask(ClientId(1), op)
    }

    fn file(&mut self, name: &str) -> (FileId, LeaseId) {
        match self.create(ROOT, name, FileKind::File) {
            Reply::Wire(MdsReply::Created { attr, lease, .. }) => (attr.file, lease.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn set(&mut self, chunk: ChunkId, epoch: u32, action: SetAction) -> SetResult {
        let change = SetChange { chunk, epoch: Epoch(epoch), action };
        match self.apply(Command::change_sets(1, vec![change])).reply {
            Reply::Sets(mut results) => results.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn chunk(&mut self) -> (FileId, ChunkId) {
        self.ask(
            ClientId(0),
            Op::SetPolicy { file: ROOT, name: "replicas".into(), value: "3:2".into(), recursive: false },
        );
        let (file, lease) = self.file("disk");
        let placements = vec![Placement { index: 0, replicas: vec![CsId(1), CsId(2), CsId(3)] }];
        match self.ask(ClientId(1), Op::Allocate { file, lease, first: 0, count: 1, placements }) {
            Reply::Maps(views) => (file, views[0].chunk),
            other => panic!("{other:?}"),
        }
    }
}

impl Bench {
    fn clone_file(&mut self, file: FileId, name: &str) -> Reply {
        self.ask(ClientId(0), Op::Clone { file, parent: ROOT, name: name.into() })
    }

    /// Opens a file and asks for its first chunk, to write to it: the lease, and the map.
    fn open_to_write(&mut self, file: FileId) -> (LeaseId, ChunkView) {
        let open = Op::Open { file, mode: LeaseMode::Write, reclaim: LeaseId(0) };
        let Reply::Wire(MdsReply::Opened { lease, .. }) = self.ask(ClientId(1), open) else { panic!() };
        let placements = Vec::new();
        match self.ask(ClientId(1), Op::Allocate { file, lease, first: 0, count: 1, placements }) {
            Reply::Maps(views) => (lease, views[0].clone()),
            other => panic!("{other:?}"),
        }
    }

    /// A chunk server has made its part of a fork.
    fn forked(&mut self, cs: u32, to: ChunkId, sequence: Option<u64>) {
        let sequence = sequence.map(wire::Sequence);
        self.apply(Command::internal(1, Internal::Forked { cs: CsId(cs), to, sequence }));
    }

    fn chunk_of(&self, file: FileId) -> ChunkView {
        self.state.chunks_of(file).next().expect("it has one")
    }

    fn only_fork(&self) -> ChunkId {
        let forks: Vec<ChunkId> = self.state.forks().collect();
        assert_eq!(forks.len(), 1);
        forks[0]
    }
}

fn status(reply: &Reply) -> Status {
    match reply {
        Reply::Wire(MdsReply::Failed { status, .. }) => *status,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn names_follow_posix() {
    let mut b = Bench::new();
    let Reply::Wire(MdsReply::Created { attr: dir, .. }) = b.create(ROOT, "d", FileKind::Directory) else {
        panic!()
    };
    let (file, _) = b.file("f");
    assert_eq!(status(&b.create(ROOT, "f", FileKind::File)), Status::Exists);
    assert_eq!(status(&b.create(file, "x", FileKind::File)), Status::NotDirectory);
    assert_eq!(b.state.attr(ROOT).unwrap().links, 3);
    let unlink = |name: &str, directory| Op::Unlink { parent: ROOT, name: name.into(), directory };
    assert_eq!(status(&b.ask(ClientId(1), unlink("d", false))), Status::IsDirectory);
    assert_eq!(status(&b.ask(ClientId(1), unlink("f", true))), Status::NotDirectory);
    let rename = |from: (FileId, &str), to: (FileId, &str)| Op::Rename {
        from_parent: from.0,
        from_name: from.1.into(),
        to_parent: to.0,
        to_name: to.1.into(),
        no_replace: false,
        exchange: false,
    };
    let moved = b.ask(ClientId(1), rename((ROOT, "f"), (dir.file, "g")));
    assert!(matches!(moved, Reply::Wire(MdsReply::Renamed { .. })), "{moved:?}");
    assert_eq!(b.state.path_of(file), "/d/g");
    assert_eq!(status(&b.ask(ClientId(1), unlink("d", true))), Status::NotEmptyDirectory);
    assert_eq!(status(&b.ask(ClientId(1), rename((ROOT, "d"), (dir.file, "in")))), Status::InvalidArgument);
    assert_eq!(b.state.resolve("/d/g").unwrap().file, file);
    assert_eq!(status(&b.create(ROOT, "a/b", FileKind::File)), Status::InvalidArgument);
}

#[test]
fn times_are_those_of_who_writes_and_special_files_have_a_name_and_a_kind() {
    use wire::mds_api::Special;
    let mut b = Bench::new();
    let (file, lease) = b.file("f");
    let times = |b: &Bench| {
        let attr = b.state.attr(file).unwrap();
        (attr.atime_ns, attr.mtime_ns)
    };
    let release = |lease, size_bytes, mtime_ns| Op::Release {
        leases: vec![ReleasedLease { file, lease, size_bytes, mtime_ns }],
    };
    b.ask(ClientId(1), Op::Extend { file, lease, size_bytes: 10, mtime_ns: 77 });
    assert_eq!(times(&b).1, 77);
    let change =
        AttrChange { atime_ns: Some(-5), mtime_ns: Some(9_000_000_000_000_000_001), ..Default::default() };
    b.ask(ClientId(1), Op::SetAttr { file, change });
    assert_eq!(times(&b), (-5, 9_000_000_000_000_000_001));
    b.ask(ClientId(1), release(lease, Some(12), None));
    assert_eq!(times(&b), (-5, 9_000_000_000_000_000_001), "as it was set");
    let open = Op::Open { file, mode: LeaseMode::Write, reclaim: LeaseId(0) };
    let Reply::Wire(MdsReply::Opened { lease, .. }) = b.ask(ClientId(1), open) else { panic!() };
    b.ask(ClientId(1), release(lease, None, Some(78)));
    let attr = b.state.attr(file).unwrap();
    assert_eq!((times(&b).1, attr.size_bytes), (78, 12), "written, and no longer than before");

    // Privileges go when the file changes.
    let mode = |b: &Bench| b.state.attr(file).unwrap().mode;
    let set = |mode| AttrChange { mode: Some(mode), ..AttrChange::default() };
    let drops = AttrChange { drops_privileges: true, ..AttrChange::default() };
    for (before, after) in [(0o6755, 0o755), (0o6745, 0o2745), (0o4000, 0)] {
        b.ask(ClientId(1), Op::SetAttr { file, change: set(before) });
        b.ask(ClientId(1), Op::SetAttr { file, change: drops.clone() });
        assert_eq!(mode(&b), after, "{before:o}");
    }
    b.ask(ClientId(1), Op::SetAttr { file, change: AttrChange { mode: Some(0o4755), ..drops } });
    assert_eq!(mode(&b), 0o4755);

    let device = FileKind::Special(Special::CharacterDevice { device: 0x103 });
    for (name, kind) in [("fifo", FileKind::Special(Special::Fifo)), ("null", device)] {
        let Reply::Wire(MdsReply::Created { attr, lease: None, .. }) = b.create(ROOT, name, kind) else {
            panic!()
        };
        assert_eq!((attr.kind, attr.links, attr.size_bytes), (kind, 1, 0));
        let open = Op::Open { file: attr.file, mode: LeaseMode::Read, reclaim: LeaseId(0) };
        assert_eq!(status(&b.ask(ClientId(1), open)), Status::InvalidArgument);
        assert_eq!(restored(&b.state).attr(attr.file).unwrap(), attr);
        b.ask(ClientId(1), Op::Unlink { parent: ROOT, name: name.into(), directory: false });
        assert!(b.state.attr(attr.file).is_err());
    }
}

#[test]
fn an_open_file_outlives_its_name_and_its_chunks_are_deleted_with_it() {
    let mut b = Bench::new();
    let (file, chunk) = b.chunk();
    b.ask(ClientId(1), Op::Unlink { parent: ROOT, name: "disk".into(), directory: false });
    assert_eq!(b.state.attr(file).unwrap().links, 0);
    assert!(b.state.chunk(chunk).is_some());
    let lease = b.state.leases_of_file(file)[0].id;
    b.ask(
        ClientId(1),
        Op::Release { leases: vec![ReleasedLease { file, lease, size_bytes: None, mtime_ns: None }] },
    );
    assert!(b.state.chunk(chunk).is_none() && b.state.attr(file).is_err());
    assert_eq!(b.state.pending_deletes(CsId(2)).collect::<Vec<_>>(), [chunk]);
    b.apply(Command::internal(1, Internal::Deleted { cs: CsId(2), chunks: vec![chunk] }));
    assert_eq!(b.state.pending_deletes(CsId(2)).count(), 0);
    assert_eq!(b.state.strays(CsId(2), &[wire::cs_api::ChunkReport { chunk, epoch: Epoch(1) }]), [chunk]);
}

#[test]
fn a_file_is_created_with_its_first_chunk_and_does_not_keep_one_that_stays_empty() {
    let mut b = Bench::new();
    let create = |b: &mut Bench, name: &str| {
        let op = Op::Create {
            parent: ROOT,
            name: name.into(),
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            symlink_target: String::new(),
            exclusive: false,
            open: true,
            first: vec![CsId(2)],
        };
        match b.ask(ClientId(1), op) {
            Reply::Wire(MdsReply::Created { attr, lease, .. }) => (attr.file, lease.unwrap()),
            other => panic!("{other:?}"),
        }
    };
    for (size, chunks) in [(Some(0), 0), (None, 0), (Some(5), 1)] {
        let (file, lease) = create(&mut b, &format!("{size:?}"));
        assert_eq!(b.state.map(file, 0, 9).unwrap().len(), 1);
        b.ask(
            ClientId(1),
            Op::Release { leases: vec![ReleasedLease { file, lease, size_bytes: size, mtime_ns: None }] },
        );
        assert_eq!(b.state.map(file, 0, 9).unwrap().len(), chunks, "{size:?}");
    }
    assert_eq!(b.state.pending_deletes(CsId(2)).count(), 2);
    // One that is there is opened as it is.
    let (file, _) = create(&mut b, "Some(5)");
    assert_eq!(b.state.map(file, 0, 9).unwrap().len(), 1);
}

#[test]
fn one_writer_or_many_readers() {
    let mut b = Bench::new();
    let (file, lease) = b.file("f");
    let open = |mode| Op::Open { file, mode, reclaim: LeaseId(0) };
    let busy = b.ask(ClientId(2), open(LeaseMode::Read));
    assert_eq!(status(&busy), Status::FileBusy);
    b.ask(
        ClientId(1),
        Op::Release { leases: vec![ReleasedLease { file, lease, size_bytes: Some(10), mtime_ns: None }] },
    );
    assert_eq!(b.state.attr(file).unwrap().size_bytes, 10);
    for client in [1, 2] {
        assert!(matches!(
            b.ask(ClientId(client), open(LeaseMode::Read)),
            Reply::Wire(MdsReply::Opened { .. })
        ));
    }
    assert_eq!(status(&b.ask(ClientId(1), open(LeaseMode::Write))), Status::FileBusy);
    let outcome = b.apply(Command::internal(1, Internal::ExpireClients { clients: vec![ClientId(2)] }));
    assert!(outcome.effects.iter().any(|e| matches!(e, Effect::RevokeLeases { .. })));
    let Reply::Wire(MdsReply::Opened { lease: newer, .. }) = b.ask(ClientId(1), open(LeaseMode::Write))
    else {
        panic!()
    };
    assert!(newer > lease);
    assert_eq!(status(&b.ask(ClientId(2), open(LeaseMode::Read))), Status::StaleHandle);
}

#[test]
fn a_new_session_goes_on_only_where_nobody_wrote_since() {
    let mut b = Bench::new();
    let (file, lease) = b.file("f");
    b.apply(Command::internal(1, Internal::ExpireClients { clients: vec![ClientId(1)] }));
    let open = |mode, reclaim| Op::Open { file, mode, reclaim };
    let Reply::Wire(MdsReply::Opened { lease: reading, .. }) =
        b.ask(ClientId(2), open(LeaseMode::Read, LeaseId(0)))
    else {
        panic!()
    };
    let release = Op::Release {
        leases: vec![ReleasedLease { file, lease: reading, size_bytes: None, mtime_ns: None }],
    };
    b.ask(ClientId(2), release);
    // A reader between does no harm.
    let Reply::Wire(MdsReply::Opened { lease: again, .. }) =
        b.ask(ClientId(2), open(LeaseMode::Write, lease))
    else {
        panic!()
    };
    assert!(again > lease);
    b.ask(
        ClientId(2),
        Op::Release { leases: vec![ReleasedLease { file, lease: again, size_bytes: None, mtime_ns: None }] },
    );
    assert_eq!(status(&b.ask(ClientId(2), open(LeaseMode::Write, lease))), Status::LeaseLost);
    assert!(matches!(
        b.ask(ClientId(2), open(LeaseMode::Write, again)),
        Reply::Wire(MdsReply::Opened { .. })
    ));
}

#[test]
fn each_change_of_a_directory_follows_the_one_before() {
    let mut b = Bench::new();
    let mut last = b.state.attr(ROOT).unwrap().ctime_ns;
    let mut follows = |b: &Bench, directory: Option<Box<ChangedDirectory>>, names: u64| {
        let ChangedDirectory { attr, ctime_was_ns } = *directory.expect("it has changed");
        assert_eq!((ctime_was_ns, attr.size_bytes), (last, names));
        assert!(attr.ctime_ns > last, "within the same millisecond too");
        last = b.state.attr(ROOT).unwrap().ctime_ns;
        assert_eq!(last, attr.ctime_ns);
    };
    for (name, kind, names) in [("a", FileKind::File, 1), ("b", FileKind::Directory, 2)] {
        let Reply::Wire(MdsReply::Created { directory, .. }) = b.create(ROOT, name, kind) else { panic!() };
        follows(&b, directory, names);
    }
    let op = Op::Unlink { parent: ROOT, name: "a".into(), directory: false };
    let Reply::Wire(MdsReply::Removed(directory)) = b.ask(ClientId(1), op) else { panic!() };
    follows(&b, Some(directory), 1);

    // What changes the directory otherwise does not take it back.
    let change = AttrChange { mtime_ns: Some(1), ..AttrChange::default() };
    b.ask(ClientId(1), Op::SetAttr { file: ROOT, change });
    assert!(b.state.attr(ROOT).unwrap().ctime_ns > last);
    let named = b.state.attr(ROOT).unwrap().ctime_ns;
    let op = Op::Rename {
        from_parent: ROOT,
        from_name: "b".into(),
        to_parent: ROOT,
        to_name: "c".into(),
        no_replace: false,
        exchange: false,
    };
    let Reply::Wire(MdsReply::Renamed { from, to: None }) = b.ask(ClientId(1), op) else { panic!() };
    assert_eq!((from.ctime_was_ns, from.attr), (named, b.state.attr(ROOT).unwrap()));
    assert!(b.state.attr(ROOT).unwrap().ctime_ns > named);

    // From one directory to another: both say so.
    let Reply::Wire(MdsReply::Created { attr: to, .. }) = b.create(ROOT, "to", FileKind::Directory) else {
        panic!()
    };
    let was_ns = (b.state.attr(ROOT).unwrap().ctime_ns, to.ctime_ns);
    let op = Op::Rename {
        from_parent: ROOT,
        from_name: "c".into(),
        to_parent: to.file,
        to_name: "d".into(),
        no_replace: false,
        exchange: false,
    };
    let reply = b.ask(ClientId(1), op);
    let Reply::Wire(MdsReply::Renamed { from, to: Some(into) }) = reply else { panic!("{reply:?}") };
    assert_eq!((from.ctime_was_ns, into.ctime_was_ns), was_ns);
    assert_eq!((from.attr.file, into.attr.file), (ROOT, to.file));
    assert_eq!((from.attr.size_bytes, into.attr.size_bytes), (1, 1));
}

#[test]
fn several_leases_are_given_back_at_once() {
    let mut b = Bench::new();
    let (first, first_lease) = b.file("first");
    let (second, second_lease) = b.file("second");
    let leases = vec![
        ReleasedLease { file: first, lease: first_lease, size_bytes: Some(7), mtime_ns: Some(70) },
        ReleasedLease { file: first, lease: LeaseId(999), size_bytes: Some(99), mtime_ns: None },
        ReleasedLease::unchanged(FileId(999), LeaseId(1)),
        ReleasedLease::unchanged(second, second_lease),
    ];
    let before = b.state.attr(second).unwrap();
    assert_eq!(b.ask(ClientId(1), Op::Release { leases }), Reply::Wire(MdsReply::Done));
    assert!(b.state.leases_of_file(first).is_empty() && b.state.leases_of_file(second).is_empty());
    let attr = b.state.attr(first).unwrap();
    assert_eq!((attr.size_bytes, attr.mtime_ns), (7, 70), "only its holder's word counts");
    assert_eq!(b.state.attr(second).unwrap(), before);
}

#[test]
fn repeated_requests_get_the_first_answer() {
    let mut b = Bench::new();
    let op = Op::Unlink { parent: ROOT, name: "f".into(), directory: false };
    b.file("f");
    let command = Command::Client { client: ClientId(1), request: 900, time_ms: 1, op };
    let first = b.apply(command.clone()).reply;
    let Reply::Wire(MdsReply::Removed(directory)) = &first else { panic!("{first:?}") };
    assert_eq!((directory.attr.file, directory.attr.size_bytes), (ROOT, 0), "as it is without the name");
    b.file("f");
    assert_eq!(b.apply(command).reply, first, "not executed again");
    assert!(b.state.lookup(ROOT, "f").is_ok());
}

#[test]
fn replica_sets_change_by_the_rules() {
    let mut b = Bench::new();
    let (_, chunk) = b.chunk();
    let drop = |cs: u32| SetAction::Drop { cs: vec![CsId(cs)], force: false };
    let lost_primary = b.set(chunk, 1, drop(1));
    assert_eq!(lost_primary.outcome, SetOutcome::Changed);
    assert_eq!(lost_primary.set.as_ref().unwrap().primary(), Some(CsId(2)));
    assert_eq!(b.set(chunk, 1, drop(2)).outcome, SetOutcome::OtherEpoch);
    assert_eq!(b.set(chunk, 2, drop(3)).outcome, SetOutcome::BelowMinimum);
    assert_eq!(b.set(chunk, 2, drop(2)).outcome, SetOutcome::Changed, "a lost primary must be replaced");
    assert_eq!(b.set(chunk, 3, drop(3)).outcome, SetOutcome::NoneWouldRemain);
    let live = |_| Liveness::Active;
    assert!(
        matches!(b.state.repair_step(chunk, &live), Some(RepairStep::Change(c)) if c.action == SetAction::AddLearner { cs: CsId(2) } || c.action == SetAction::AddLearner { cs: CsId(1) })
    );
    assert_eq!(b.set(chunk, 3, SetAction::AddLearner { cs: CsId(1) }).outcome, SetOutcome::Changed);
    assert!(matches!(b.state.repair_step(chunk, &live), Some(RepairStep::Filling { .. })));
    assert_eq!(b.set(chunk, 4, SetAction::Joined { cs: CsId(1) }).outcome, SetOutcome::Changed);
    let view = b.state.chunk(chunk).unwrap();
    assert_eq!(
        (view.primary(), view.role_of(CsId(1)), view.role_of(CsId(2))),
        (Some(CsId(3)), Some(Role::InSync), Some(Role::Stale))
    );
}

#[test]
fn the_last_epoch_in_sync_is_remembered_while_a_replica_may_return() {
    let mut b = Bench::new();
    let (_, chunk) = b.chunk();
    let drop = |cs: u32| SetAction::Drop { cs: vec![CsId(cs)], force: true };
    let learn = |cs: u32| SetAction::AddLearner { cs: CsId(cs) };
    let damaged = |cs: u32| SetAction::Damaged { cs: CsId(cs), force: false };
    let mut until = |epoch, action| b.set(chunk, epoch, action).set.unwrap().in_sync_until;
    assert_eq!(until(1, drop(1)), [(CsId(1), Epoch(1))]);
    assert_eq!(until(2, drop(2)), [(CsId(1), Epoch(1)), (CsId(2), Epoch(2))]);
    assert_eq!(until(3, learn(1)), [(CsId(1), Epoch(1)), (CsId(2), Epoch(2))]);
    assert_eq!(
        until(4, drop(1)),
        [(CsId(1), Epoch(1)), (CsId(2), Epoch(2))],
        "as a learner it was not in sync"
    );
    assert_eq!(until(5, learn(1)).len(), 2);
    assert_eq!(until(6, SetAction::Joined { cs: CsId(1) }), [(CsId(2), Epoch(2))]);
    assert_eq!(until(7, damaged(2)), [], "a stale copy found damaged");
    assert_eq!(until(7, damaged(1)), [], "the minimum is two: refused");
    assert_eq!(until(7, learn(2)), []);
    assert_eq!(until(8, SetAction::Joined { cs: CsId(2) }), []);
    assert_eq!(until(9, damaged(2)), [], "a damaged copy is as good as none");
    assert_eq!(until(10, drop(3)), [(CsId(3), Epoch(10))]);
    assert_eq!(until(11, SetAction::Remove { cs: CsId(3), force: true }), []);
    assert_eq!(restored(&b.state).digest(), b.state.digest());
}

#[test]
fn who_left_a_set_below_its_minimum_missed_nothing() {
    let mut b = Bench::new();
    let (file, chunk) = b.chunk();
    let drop = |cs: u32| SetAction::Drop { cs: vec![CsId(cs)], force: true };
    let learn = |cs: u32| SetAction::AddLearner { cs: CsId(cs) };
    let joined = |cs: u32| SetAction::Joined { cs: CsId(cs) };
    let whole =
        |b: &Bench| (1u32..=4).filter(|cs| b.state.missed_nothing(chunk, CsId(*cs))).collect::<Vec<_>>();
    let give_up =
        |b: &Bench, epoch, liveness| b.state.may_give_up(CsId(3), chunk, Epoch(epoch), &|_| liveness);
    b.set(chunk, 1, drop(1));
    assert_eq!((whole(&b), b.state.below_minimum_since(chunk)), (vec![], None), "two of 3:2 are left");
    b.set(chunk, 2, drop(2));
    assert_eq!((whole(&b), b.state.below_minimum_since(chunk)), (vec![2], Some(Epoch(3))));
    assert!(give_up(&b, 3, Liveness::Offline).unwrap_err().starts_with("CS#2 has all"));
    assert!(give_up(&b, 2, Liveness::Offline).unwrap_err().contains("another epoch"));
    b.set(chunk, 3, learn(1));
    b.set(chunk, 4, drop(1));
    assert_eq!((whole(&b), b.state.below_minimum_since(chunk)), (vec![2], Some(Epoch(3))), "still");
    let again = restored(&b.state);
    assert!(again.missed_nothing(chunk, CsId(2)) && again.digest() == b.state.digest());

    // The minimum becomes another one, and back: writes may have gone on in between.
    let policy = |value: &str| {
        let (name, value) = ("replicas".to_string(), value.to_string());
        Command::Client {
            client: ClientId(0),
            request: 0,
            time_ms: 1,
            op: Op::SetPolicy { file, name, value, recursive: false },
        }
    };
    b.apply(policy("3:1"));
    b.apply(policy("3:2"));
    assert_eq!(whole(&b), [0; 0], "{:?}", b.state.chunk(chunk));
    assert_eq!(give_up(&b, 5, Liveness::Offline), Ok(()));
    assert!(give_up(&b, 5, Liveness::Inactive).unwrap_err().contains("may come back"));

    // Whoever comes in ends it.
    b.set(chunk, 5, learn(2));
    b.set(chunk, 6, joined(2));
    assert_eq!(b.state.below_minimum_since(chunk), None);
    b.set(chunk, 7, drop(2));
    assert_eq!(whole(&b), [2]);
    b.set(chunk, 8, SetAction::Damaged { cs: CsId(2), force: true });
    assert_eq!(whole(&b), [0; 0], "a damaged copy is no help");
}

#[test]
fn a_revoked_lease_keeps_others_away_until_its_holder_has_stopped() {
    let open = |file, mode| Op::Open { file, mode, reclaim: LeaseId(0) };
    let revoking = |leases: &[LeaseId]| Reply::Wire(MdsReply::Revoking { leases: leases.to_vec() });
    // The three ways it ends: the holder releases it, its session ends, its time is over.
    for way in 0..3 {
        let mut b = Bench::new();
        let (file, lease) = b.file("f");
        assert_eq!(b.ask(ClientId(0), Op::Revoke { file }), revoking(&[lease]));
        assert_eq!(b.state.revoked(), [lease]);
        assert_eq!(b.ask(ClientId(0), Op::Revoke { file }), revoking(&[lease]), "once is enough");
        assert_eq!(b.state.revoked().len(), 1);
        assert_eq!(status(&b.ask(ClientId(2), open(file, LeaseMode::Read))), Status::HolderAway);
        let extend = Op::Extend { file, lease, size_bytes: 9, mtime_ns: 1 };
        assert_eq!(status(&b.ask(ClientId(1), extend)), Status::LeaseLost);
        assert_eq!(restored(&b.state).revoking().collect::<Vec<_>>(), [lease]);
        match way {
            0 => {
                b.ask(
                    ClientId(1),
                    Op::Release {
                        leases: vec![ReleasedLease { file, lease, size_bytes: Some(7), mtime_ns: None }],
                    },
                );
                assert_eq!(b.state.attr(file).unwrap().size_bytes, 0, "it has no say any more");
            }
            1 => {
                b.apply(Command::internal(1, Internal::ExpireClients { clients: vec![ClientId(1)] }));
            }
            _ => {
                b.apply(Command::internal(1, Internal::EndRevoked { leases: vec![lease] }));
            }
        }
        assert_eq!(b.state.revoking().count(), 0);
        assert_eq!(b.state.revoke_stat(file, &[lease]), MdsReply::Done);
        let next = b.ask(ClientId(2), open(file, LeaseMode::Write));
        assert!(matches!(next, Reply::Wire(MdsReply::Opened { lease: newer, .. }) if newer > lease));
        b.apply(Command::internal(1, Internal::EndRevoked { leases: vec![lease] }));
        assert_eq!(b.state.leases_of_file(file).len(), 1, "the new one stays");
    }
}

#[test]
fn who_was_deprived_of_a_lease_may_open_the_file_again() {
    let mut b = Bench::new();
    let (file, lease) = b.file("f");
    b.ask(ClientId(0), Op::Revoke { file });
    let again = b.ask(ClientId(1), Op::Open { file, mode: LeaseMode::Write, reclaim: LeaseId(0) });
    assert!(matches!(again, Reply::Wire(MdsReply::Opened { lease: newer, .. }) if newer > lease));
    assert_eq!((b.state.revoking().count(), b.state.leases_of_file(file).len()), (0, 1));
}

#[test]
fn gone_blocks_are_told_once_and_forgotten_with_the_chunk() {
    let mut b = Bench::new();
    let (file, chunk) = b.chunk();
    let mut told = |first_block, blocks| {
        let op = Internal::BlocksGone { cs: CsId(1), chunk, first_block, blocks };
        b.apply(Command::internal(1, op)).effects.len()
    };
    assert_eq!((told(5, 2), told(5, 2), told(6, 1), told(5, 3), told(100, 1)), (1, 0, 0, 1, 1));
    assert_eq!(b.state.gone_blocks(chunk).collect::<Vec<_>>(), [(5, 3), (100, 1)]);
    let (events, _) = b.state.events(0, 100);
    let first = events.iter().find(|e| e.message.contains("gone")).expect("an event");
    assert!(first.message.contains("(/disk, bytes 20480 to 28672)"), "{}", first.message);
    let change = AttrChange { size_bytes: Some(0), ..AttrChange::default() };
    b.ask(ClientId(1), Op::SetAttr { file, change });
    assert_eq!(b.state.gone_blocks(chunk).count(), 0);
}

#[test]
fn truncating_drops_chunks_and_settings_are_checked() {
    let mut b = Bench::new();
    let (file, chunk) = b.chunk();
    let change = AttrChange { size_bytes: Some(0), ..AttrChange::default() };
    b.ask(ClientId(1), Op::SetAttr { file, change });
    assert!(b.state.chunk(chunk).is_none());
    let wrong = b.ask(ClientId(0), Op::SetConfig { key: "mds.wd.offline_timeout".into(), value: "1".into() });
    assert!(
        matches!(wrong, Reply::Wire(MdsReply::Failed { detail, .. }) if detail.contains("mds.wd.offline_tout"))
    );
    for (name, value) in
        [("replicas", "0"), ("replicas", "2:3"), ("tier", "4"), ("chunk-size", "3M"), ("x", "1")]
    {
        let op = Op::SetPolicy { file: ROOT, name: name.into(), value: value.into(), recursive: false };
        assert_eq!(status(&b.ask(ClientId(0), op)), Status::InvalidArgument, "{name}={value}");
    }
}

#[test]
fn a_snapshot_is_the_whole_state() {
    let mut b = Bench::new();
    b.chunk();
    b.create(ROOT, "d", FileKind::Directory);
    let mut again = restored(&b.state);
    assert_eq!(again.digest(), b.state.digest());
    let next = Command::Client {
        client: ClientId(1),
        request: 7000,
        time_ms: 9,
        op: Op::Unlink { parent: ROOT, name: "disk".into(), directory: false },
    };
    b.state.apply(100, &next);
    again.apply(100, &next);
    assert_eq!(again.digest(), b.state.digest());
    assert_eq!(again.digest(), b.state.digest());

    // Blocks missing, twice, in another order.
    let blocks: Vec<Vec<u8>> = b.state.snapshot().collect();
    let read = |order: &[usize]| {
        let mut reader = StateReader::default();
        order.iter().try_for_each(|at| reader.take(&blocks[*at]))?;
        reader.finish().map(|state| state.digest())
    };
    let all: Vec<usize> = (0..blocks.len()).collect();
    assert_eq!(read(&all), Ok(b.state.digest()));
    assert!(read(&all[1..]).is_err() && read(&all[..all.len() - 1]).is_err() && read(&[]).is_err());
    assert!(read(&[&all[..], &all[..1]].concat()).is_err() && read(&[&all[..1], &all[..]].concat()).is_err());
}

#[test]
fn a_snapshot_is_of_the_moment_it_was_begun() {
    let mut b = Bench::new();
    let (_, chunk) = b.chunk();
    let dir = match b.create(ROOT, "d", FileKind::Directory) {
        Reply::Wire(MdsReply::Created { attr, .. }) => attr.file,
        other => panic!("{other:?}"),
    };
    (0..100)
        .for_each(|i| drop(b.create(dir, &format!("a name longer than fits in place {i}"), FileKind::File)));
    let (digest, writer) = (b.state.digest(), b.state.snapshot());
    // Everything changes while it is written.
    b.set(chunk, 1, SetAction::Drop { cs: vec![CsId(1)], force: true });
    for i in 0..100 {
        let name = format!("a name longer than fits in place {i}");
        b.ask(ClientId(1), Op::Unlink { parent: dir, name, directory: false });
    }
    b.ask(ClientId(2), Op::CloseSession);
    assert_ne!(b.state.digest(), digest);
    let mut reader = StateReader::default();
    writer.for_each(|block| reader.take(&block).unwrap());
    assert_eq!(reader.finish().unwrap().digest(), digest);
}

#[test]
fn a_lease_says_who_could_write_before_it() {
    let mut b = Bench::new();
    let (file, first) = b.file("shared");
    let mut open = |client, mode, release| {
        let Reply::Wire(MdsReply::Opened { lease, written_by, .. }) =
            b.ask(ClientId(client), Op::Open { file, mode, reclaim: LeaseId(0) })
        else {
            panic!("refused")
        };
        if release {
            b.ask(
                ClientId(client),
                Op::Release { leases: vec![ReleasedLease { file, lease, size_bytes: None, mtime_ns: None }] },
            );
        }
        (lease, written_by)
    };
    assert_eq!(open(1, LeaseMode::Write, true), (first, first), "held already: the same lease");
    assert_eq!(open(2, LeaseMode::Read, true).1, first);
    assert_eq!(open(1, LeaseMode::Read, false).1, first, "readers change nothing");
    let (second, before) = open(1, LeaseMode::Write, true);
    assert!(before == first && second > first, "the reader became a writer");
    assert_eq!(open(2, LeaseMode::Read, true).1, second);
    let (third, before) = open(2, LeaseMode::Write, true);
    assert_eq!(before, second);
    assert_eq!(open(1, LeaseMode::Read, true).1, third);
}

fn admitted(reply: Reply) -> wire::auth::Certificate {
    match reply {
        Reply::Wire(MdsReply::Admitted(admission)) => *admission,
        other => panic!("{other:?}"),
    }
}

fn refused(reply: &Reply, status: Status) -> bool {
    matches!(reply, Reply::Wire(MdsReply::Failed { status: found, .. }) if *found == status)
}

#[test]
fn the_authority_changes_in_steps_and_members_alone_get_certificates() {
    use wire::NodeId;
    use wire::auth::{Authority, Credentials, Foundation, PasswordDigest, PasswordSalt, public_key};
    use wire::mds_api::{KeyStep, NewNode};
    let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
    let (old, new) = (Authority::new([9; 32]), Authority::new([10; 32]));
    let mut b = Bench::new();
    let step = |b: &mut Bench, step| b.ask(ClientId(0), Op::ChangeKey(step));
    let begin = |authority: &Authority| KeyStep::Begin(Box::new(authority.clone()));
    assert!(refused(&step(&mut b, begin(&new)), Status::NotSupported), "a cluster without a password");
    b.apply(Command::internal(
        7,
        Internal::Found(Box::new(Foundation {
            cluster: "pcs1".into(),
            authority: old.clone(),
            password: PasswordDigest::new("secret", salt).unwrap(),
            founder: old.certify("pcs1", NodeId(1), "first", public_key(&[1; 32])),
        })),
    ));
    let second = NewNode { name: "second".into(), public_key: public_key(&[2; 32]) };
    let second = admitted(b.ask(ClientId(0), Op::AddNode(Box::new(second))));
    let mut node = Credentials::node("pcs1", second, [2; 32]);

    let finish = KeyStep::Finish { force: false };
    for early in [KeyStep::Cancel, finish.clone(), begin(&old)] {
        assert!(refused(&step(&mut b, early.clone()), Status::InvalidArgument), "{early:?}");
    }
    assert_eq!((b.state.key_generation(), b.state.is_renewed(NodeId(2))), (1, true));
    let by = |b: &Bench, node: u32| {
        let given = b.state.certificate_of(NodeId(node), &public_key(&[node as u8; 32]))?;
        Some(given.vouchers.iter().map(|v| v.authority).collect::<Vec<_>>())
    };
    let (old_key, new_key) = (old.public_key(), new.public_key());
    for (todo, generation, expected) in [
        (begin(&new), 2, vec![old_key, new_key]),
        (KeyStep::Cancel, 3, vec![old_key]),
        (begin(&new), 4, vec![old_key, new_key]),
        (finish, 5, vec![new_key]),
    ] {
        assert_eq!(step(&mut b, todo.clone()), Reply::Wire(MdsReply::Done), "{todo:?}");
        assert_eq!((b.state.key_generation(), b.state.is_renewed(NodeId(2))), (generation, false));
        let is_between = expected.len() == 2;
        assert_eq!(by(&b, 2), Some(expected));
        if is_between {
            assert!(refused(&step(&mut b, begin(&Authority::new([11; 32]))), Status::Busy));
        }
        assert_eq!(node.renew(&b.state.certificate_of(NodeId(2), &public_key(&[2; 32])).unwrap()), Ok(true));
        let renewed = |generation| Internal::Renewed { generation, nodes: vec![NodeId(2)] };
        b.apply(Command::internal(7, renewed(generation - 1)));
        assert!(!b.state.is_renewed(NodeId(2)), "of the generation before");
        b.apply(Command::internal(7, renewed(generation)));
        assert!(b.state.is_renewed(NodeId(2)));
    }
    // Numbers and keys that don't belong together, as whoever has the old authority can make them, get nothing.
    assert_eq!(by(&b, 3), None);
    assert_eq!(b.state.certificate_of(NodeId(2), &public_key(&[7; 32])), None);
    b.ask(ClientId(0), Op::TakeOut { node: NodeId(2) });
    assert_eq!(by(&b, 2), None);
    let again = restored(&b.state);
    assert_eq!((again.digest(), again.key_generation()), (b.state.digest(), 5));
}

#[test]
fn nodes_come_in_once_go_and_get_another_number() {
    use wire::NodeId;
    use wire::auth::{Authority, Credentials, Foundation, PasswordDigest, PasswordSalt, public_key};
    use wire::mds_api::NewNode;
    let salt = PasswordSalt { salt: [3; 16], memory_kib: 8 << 10, passes: 1, lanes: 1 };
    let digest = |password: &str| PasswordDigest::new(password, salt).unwrap();
    let new = |name: &str, secret: u8| {
        Op::AddNode(Box::new(NewNode { name: name.into(), public_key: public_key(&[secret; 32]) }))
    };
    let nobody = ClientId(0);
    let mut b = Bench::new();
    assert!(refused(&b.ask(nobody, new("a", 1)), Status::NotSupported), "a cluster without a password");
    let authority = Authority::new([9; 32]);
    let found = |b: &mut Bench, password: &str| {
        let founder = authority.certify("pcs1", NodeId(1), "first", public_key(&[1; 32]));
        let (cluster, password) = ("pcs1".to_string(), digest(password));
        let foundation = Foundation { cluster, authority: authority.clone(), password, founder };
        b.apply(Command::internal(7, Internal::Found(Box::new(foundation))));
    };
    found(&mut b, "secret");
    found(&mut b, "another");
    assert_eq!(b.state.password(), Some(&digest("secret")), "a cluster is founded once");

    let second = admitted(b.ask(nobody, new("second", 2)));
    assert_eq!(second.node, NodeId(2));
    assert_eq!(admitted(b.ask(nobody, new("second", 2))), second, "asked again: the same");
    // What it got makes a key file that others believe.
    let credentials = Credentials::node("pcs1", second, [2; 32]);
    let proof = credentials.prove("x", &[]);
    assert_eq!(credentials.believe("x", &[], proof.as_ref()).unwrap().map(|m| m.node), Some(NodeId(2)));
    for bad in ["", " ", "a\nsecret=", &"x".repeat(256)] {
        assert!(refused(&b.ask(nobody, new(bad, 4)), Status::InvalidArgument), "{bad:?}");
    }

    assert!(refused(&b.ask(nobody, Op::TakeOut { node: NodeId(9) }), Status::NotFound));
    for _ in 0..2 {
        assert_eq!(b.ask(nobody, Op::TakeOut { node: NodeId(2) }), Reply::Wire(MdsReply::Done));
    }
    assert_eq!(b.state.taken_out(), [NodeId(2)].into());
    assert_eq!(admitted(b.ask(nobody, new("second", 2))).node, NodeId(3), "not the old number");
    b.ask(nobody, Op::SetPassword(Box::new(digest("new"))));
    let again = restored(&b.state);
    assert_eq!((again.digest(), again.password()), (b.state.digest(), Some(&digest("new"))));
    let names: Vec<_> = again.nodes().map(|(node, record)| (node.0, record.name.clone())).collect();
    assert_eq!(names, [(1, "first".to_string()), (2, "second".into()), (3, "second".into())]);
    let told: Vec<String> = again.events(0, 100).0.into_iter().map(|e| e.message).collect();
    let expected = [
        "Node 2 (second) joined the cluster",
        "Node 2 (second) was taken out of the cluster",
        "Node 3 (second) joined the cluster",
        "The cluster's password was changed",
    ];
    assert_eq!(told, expected);
}

#[test]
fn golden_command() {
    let bytes = Command::internal(1, Internal::Noop).encode();
    assert_eq!(bytes[0], COMMAND_VERSION);
    // All entries are as long as the longest variant: a longer one would make those of before unreadable.
    assert_eq!(bytes.len(), 1 + 80);
    assert!(Command::decode(&[9, 1, 2]).unwrap_err().contains("version 9"));
    assert!(Command::decode(&[]).is_err());
}

/// Commands as release 0.1 writes them to its log, and blocks of its snapshots: a later release must read them. As
/// `wire/tests/golden.rs`.
#[test]
fn commands_and_snapshots_are_those_of_the_release() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/state/golden-0.1.txt");
    let client = |op| Command::Client { client: ClientId(1), request: 2, time_ms: 3, op };
    let internal = |op| Command::internal(3, op);
    let text = |text: &str| text.to_string();
    let addr = "10.1.2.3:2510".parse().unwrap();
    let change = SetChange {
        chunk: ChunkId(4),
        epoch: Epoch(5),
        action: SetAction::Drop { cs: vec![CsId(6)], force: true },
    };
    let samples = [
        ("first", client(Op::OpenSession { host: text("h"), mount_point: text("/m"), nonce: 4 })),
        ("set-attr", client(Op::SetAttr { file: ROOT, change: AttrChange::default() })),
        ("unlink", client(Op::Unlink { parent: ROOT, name: text("n"), directory: true })),
        (
            "allocate",
            client(Op::Allocate {
                file: FileId(2),
                lease: LeaseId(3),
                first: 4,
                count: 1,
                placements: vec![Placement { index: 4, replicas: vec![CsId(5), CsId(6)] }],
            }),
        ),
        ("add-mds", client(Op::AddMds { addr, raft_addr: addr })),
        ("take-out", client(Op::TakeOut { node: wire::NodeId(7) })),
        (
            "last",
            client(Op::LoadLicense { license: Box::new(license().sign(&[7; 32]).unwrap()), renew: true }),
        ),
        ("internal first", internal(Internal::Noop)),
        ("internal sets", Command::change_sets(3, vec![change])),
        ("internal deleted", internal(Internal::Deleted { cs: CsId(1), chunks: vec![ChunkId(2)] })),
        ("internal revoked", internal(Internal::EndRevoked { leases: vec![LeaseId(1)] })),
        ("internal mds", internal(Internal::SetMds { id: MdsId(1), addr, raft_addr: addr })),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let line = |(name, command): &(&str, Command)| {
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(command), "{name}");
        format!("{name}: {}\n", hex(&command.encode()))
    };
    let mut now: String = samples.iter().map(line).collect();
    let state = state_with_all();
    now.extend(state.snapshot().enumerate().map(|(n, block)| format!("snapshot {n}: {}\n", hex(&block))));
    if std::env::var_os("PSTORAGE_WRITE_GOLDEN").is_some() {
        std::fs::write(FILE, &now).unwrap();
    }
    let golden = std::fs::read_to_string(FILE).unwrap();
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(now, golden, "what the release before this one wrote could not be read");
    }
    assert_eq!(now.lines().count(), golden.lines().count());
}

/// Something of each kind.
fn state_with_all() -> State {
    let mut b = Bench::new();
    let (file, chunk) = b.chunk();
    b.create(ROOT, "d", FileKind::Directory);
    b.create(ROOT, "l", FileKind::Symlink);
    let (name, value) = ("user.a".to_string(), vec![1, 2]);
    b.ask(ClientId(1), Op::SetXattr { file, name, value, create_only: false, replace_only: false });
    b.ask(ClientId(0), Op::SetConfig { key: "net.encrypt".into(), value: "off".into() });
    b.ask(ClientId(0), Op::Revoke { file });
    b.set(chunk, 1, SetAction::Drop { cs: vec![CsId(1), CsId(2)], force: true });
    b.set(chunk, 2, SetAction::Remove { cs: CsId(1), force: true });
    b.apply(Command::internal(9, Internal::BlocksGone { cs: CsId(3), chunk, first_block: 4, blocks: 5 }));
    let license = Box::new(license().sign(&[7; 32]).unwrap());
    b.ask(ClientId(0), Op::LoadLicense { license, renew: false });
    let (original, lease) = b.file("original");
    let placements = vec![Placement { index: 0, replicas: vec![CsId(1)] }];
    b.ask(ClientId(1), Op::Allocate { file: original, lease, first: 0, count: 1, placements });
    b.ask(
        ClientId(1),
        Op::Release {
            leases: vec![ReleasedLease { file: original, lease, size_bytes: Some(5), mtime_ns: None }],
        },
    );
    b.clone_file(original, "clone");
    b.open_to_write(original);
    let kinds = b.state.snapshot().count();
    assert_eq!(kinds, 14, "a block of each kind");
    b.state
}

fn license() -> License {
    License {
        key_number: "PS.1".into(),
        product: "pstorage".into(),
        owner: "Example Hosting".into(),
        cluster: String::new(),
        capacity_bytes: 0,
        grace_capacity_bytes: 0,
        issued_s: 10,
        expires_s: 0,
        grace_s: 0,
    }
}

#[test]
fn a_licence_is_renewed_by_a_newer_one_of_its_number() {
    let mut b = Bench::new();
    let mut load = |number: &str, issued_s, renew| {
        let license = License { key_number: number.into(), issued_s, ..license() };
        let license = Box::new(license.sign(&[7; 32]).unwrap());
        match b.ask(ClientId(0), Op::LoadLicense { license, renew }) {
            Reply::Wire(MdsReply::Done) => Ok(b.state.license().unwrap().license.issued_s),
            Reply::Wire(MdsReply::Failed { status, .. }) => Err(status),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(load("A", 10, true), Err(Status::NotFound));
    assert_eq!(load("A", 10, false), Ok(10));
    assert_eq!(load("A", 10, true), Err(Status::InvalidArgument));
    assert_eq!(load("B", 11, true), Err(Status::InvalidArgument));
    assert_eq!(load("A", 11, true), Ok(11));
    assert_eq!(load("A", 5, false), Ok(5), "whoever says so may go back");
    let again = restored(&b.state);
    assert_eq!((again.license(), again.digest()), (b.state.license(), b.state.digest()));
}

/// A file with one chunk that nobody has open, and a clone of it.
fn cloned() -> (Bench, FileId, FileId, ChunkId) {
    let mut b = Bench::new();
    let (file, chunk) = b.chunk();
    assert_eq!(status(&b.clone_file(file, "early")), Status::FileBusy);
    let lease = b.state.leases_of_file(file)[0].id;
    b.ask(
        ClientId(1),
        Op::Release { leases: vec![ReleasedLease { file, lease, size_bytes: Some(9), mtime_ns: None }] },
    );
    let Reply::Wire(MdsReply::Attr(clone)) = b.clone_file(file, "clone") else { panic!() };
    assert_eq!((clone.size_bytes, clone.replicas.normal), (9, 3));
    assert_eq!(status(&b.clone_file(file, "clone")), Status::Exists);
    assert_eq!(status(&b.clone_file(ROOT, "root")), Status::InvalidArgument);
    (b, file, clone.file, chunk)
}

#[test]
fn a_clone_shares_chunks_until_one_is_written_to() {
    let (mut b, file, clone, chunk) = cloned();
    assert_eq!((b.chunk_of(clone).chunk, b.chunk_of(file).is_shared), (chunk, true));
    let (lease, now) = b.open_to_write(clone);
    assert_eq!((now.chunk, now.is_shared), (chunk, true), "until the fork is there");
    let to = b.only_fork();
    b.ask(ClientId(1), Op::Allocate { file: clone, lease, first: 0, count: 1, placements: Vec::new() });
    assert_eq!(b.only_fork(), to, "it is begun once");
    assert_eq!(b.state.fork(to), Some((chunk, vec![CsId(1), CsId(2), CsId(3)])));
    b.forked(1, to, Some(7));
    b.forked(3, to, Some(7));
    assert_eq!(b.state.fork(to), Some((chunk, vec![CsId(2)])));
    assert!(b.state.strays(CsId(1), &[wire::cs_api::ChunkReport { chunk: to, epoch: Epoch(1) }]).is_empty());
    b.forked(2, to, Some(7));
    let own = b.chunk_of(clone);
    assert_eq!((own.chunk, own.epoch, own.is_shared), (to, Epoch(2), false));
    assert_eq!(own.in_sync().collect::<Vec<_>>(), [CsId(1), CsId(2), CsId(3)]);
    let original = b.chunk_of(file);
    assert_eq!((original.chunk, original.is_shared), (chunk, false));
    assert_eq!((b.state.forks().count(), b.state.replica_count(CsId(1))), (0, 2));
    assert_eq!(restored(&b.state).digest(), b.state.digest());
}

#[test]
fn a_file_that_is_written_to_is_cloned_once_its_writer_has_settled() {
    let mut b = Bench::new();
    let (file, lease) = b.file("f");
    let clone = |b: &mut Bench, name: &str| {
        let op = Op::Clone { file, parent: ROOT, name: name.into() };
        b.request += 1;
        b.apply(Command::Client { client: ClientId(0), request: b.request, time_ms: 5, op })
    };
    let told = |note| [Effect::TellClient { client: ClientId(1), note }];
    let open = |mode| Op::Open { file, mode, reclaim: LeaseId(0) };
    let settle =
        |lease| Op::Settle { lease: ReleasedLease { file, lease, size_bytes: Some(7), mtime_ns: Some(70) } };

    let refused = clone(&mut b, "early");
    assert_eq!(status(&refused.reply), Status::FileBusy);
    assert_eq!(refused.effects, told(ClientNote::Settle { file }));
    let Reply::Wire(MdsReply::Failed { detail, .. }) = &refused.reply else { panic!() };
    assert!(
        ["/f is open for writing on h", "see whether that host is well"]
            .iter()
            .all(|part| detail.contains(part))
    );
    assert_eq!(status(&b.ask(ClientId(2), settle(lease))), Status::LeaseLost, "of another client");
    assert_eq!(b.ask(ClientId(1), settle(lease)), Reply::Wire(MdsReply::Done));
    for mode in [LeaseMode::Read, LeaseMode::Write] {
        assert_eq!(status(&b.ask(ClientId(2), open(mode))), Status::FileBusy, "it stays its writer's");
    }
    assert_eq!(restored(&b.state).digest(), b.state.digest());
    let made = clone(&mut b, "one");
    let Reply::Wire(MdsReply::Attr(attr)) = made.reply else { panic!("{:?}", made.reply) };
    assert_eq!((attr.size_bytes, made.effects.as_slice()), (7, told(ClientNote::GoOn { file }).as_slice()));

    // Under its new lease it has to settle anew, and the old one is good for nothing.
    let Reply::Wire(MdsReply::Opened { lease: next, .. }) = b.ask(ClientId(1), open(LeaseMode::Write)) else {
        panic!()
    };
    assert!(next > lease && b.state.leases_of_file(file).len() == 1);
    assert_eq!(status(&clone(&mut b, "two").reply), Status::FileBusy);
    assert_eq!(status(&b.ask(ClientId(1), settle(lease))), Status::LeaseLost);
    assert_eq!(status(&clone(&mut b, "two").reply), Status::FileBusy);
}

#[test]
fn a_shared_chunk_lives_as_long_as_any_of_its_files() {
    let (mut b, file, clone, chunk) = cloned();
    b.ask(
        ClientId(0),
        Op::SetPolicy { file: clone, name: "replicas".into(), value: "4:3".into(), recursive: false },
    );
    let policy = b.state.policy_of(&b.chunk_of(file));
    assert_eq!((policy.normal, policy.minimum), (4, 3), "that of the most careful");
    let Reply::Wire(MdsReply::Attr(second)) = b.clone_file(clone, "second") else { panic!() };
    assert_eq!(b.state.files_of(chunk), [file, clone, second.file]);
    for (name, left) in [("disk", vec![clone, second.file]), ("second", vec![clone])] {
        b.ask(ClientId(1), Op::Unlink { parent: ROOT, name: name.into(), directory: false });
        assert_eq!(b.state.files_of(chunk), left);
        assert_eq!(b.state.pending_deletes(CsId(1)).count(), 0);
    }
    assert!(!b.chunk_of(clone).is_shared);
    let change = AttrChange { size_bytes: Some(0), ..AttrChange::default() };
    b.ask(ClientId(1), Op::SetAttr { file: clone, change });
    assert!(b.state.chunk(chunk).is_none());
    assert_eq!(b.state.pending_deletes(CsId(1)).collect::<Vec<_>>(), [chunk]);
}

#[test]
fn who_has_a_chunk_alone_again_writes_to_it_and_gets_no_fork() {
    let (mut b, _, clone, chunk) = cloned();
    b.open_to_write(clone);
    let to = b.only_fork();
    b.forked(1, to, Some(7));
    b.ask(ClientId(1), Op::Unlink { parent: ROOT, name: "disk".into(), directory: false });
    assert_eq!(b.state.forks().count(), 0, "what is written now would be missing in it");
    let own = b.chunk_of(clone);
    assert_eq!((own.chunk, own.file, own.is_shared), (chunk, clone, false));
    b.forked(2, to, Some(7));
    assert!(b.state.pending_deletes(CsId(2)).any(|deleted| deleted == to));
}

#[test]
fn a_fork_waits_for_no_server_that_left_and_begins_anew_when_replicas_differ() {
    let (mut b, file, clone, chunk) = cloned();
    b.open_to_write(clone);
    let first = b.only_fork();
    b.forked(1, first, Some(7));
    b.forked(2, first, Some(7));
    b.forked(3, first, Some(8));
    assert_eq!((b.state.forks().count(), b.chunk_of(clone).chunk), (0, chunk));
    assert_eq!(b.state.pending_deletes(CsId(2)).collect::<Vec<_>>(), [first]);
    // What comes late, or twice, changes nothing.
    b.forked(2, first, Some(7));
    b.open_to_write(clone);
    let second = b.only_fork();
    b.forked(2, second, Some(8));
    b.forked(3, second, Some(8));
    b.set(chunk, 1, SetAction::Drop { cs: vec![CsId(1)], force: true });
    let own = b.chunk_of(clone);
    assert_eq!((own.chunk, own.epoch), (second, Epoch(3)));
    assert_eq!(own.replicas, [(CsId(2), Role::InSync), (CsId(3), Role::InSync)]);
    assert_eq!(b.state.pending_deletes(CsId(1)).collect::<Vec<_>>(), [first, second]);
    b.forked(1, second, Some(8));
    assert_eq!(b.chunk_of(clone).replicas.len(), 2);

    // One that can't be made, and one whose file goes.
    let Reply::Wire(MdsReply::Attr(third)) = b.clone_file(file, "third") else { panic!() };
    b.open_to_write(third.file);
    let to = b.only_fork();
    b.forked(2, to, None);
    assert_eq!(b.state.forks().count(), 0);
    let (lease, _) = b.open_to_write(third.file);
    let to = b.only_fork();
    b.ask(ClientId(1), Op::Unlink { parent: ROOT, name: "third".into(), directory: false });
    b.ask(
        ClientId(1),
        Op::Release {
            leases: vec![ReleasedLease { file: third.file, lease, size_bytes: None, mtime_ns: None }],
        },
    );
    assert_eq!(b.state.forks().count(), 0);
    assert!(b.state.pending_deletes(CsId(3)).any(|chunk| chunk == to));
    assert!(b.state.chunk(chunk).is_some(), "the original has it");
}
