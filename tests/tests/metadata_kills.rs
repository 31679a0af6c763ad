//! Metadata servers killed again and again under metadata load: no acknowledged operation is lost or done twice, and what all
//! saw has one order.

mod common;

use client::config::ClientConfig;
use common::{Cluster, wait_until};
use pstorage_tests::names::{Entry, NAMES, Op, Outcome, check};
use pstorage_tests::real::is_running;
use shards::sim::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wire::mds_api::{FileKind, MdsReply, MdsRequest};
use wire::{ClientId, FileId, ROOT, Status};

const CLIENTS: u64 = 3;
const THREADS_OF_CLIENT: u64 = 2;
const DIRECTORIES: usize = 3;
/// Nothing may wait longer: an election takes about a second, and there are many.
const LONGEST: Duration = Duration::from_secs(30);

/// What one thread did, by directory.
type Done = Vec<(usize, Entry)>;

/// A client of the cluster below the directory of the test, through the library.
fn connect(c: &Cluster) -> client::Cluster {
    let etc = c.dir.path("etc");
    let config = client::setup::load(etc.as_ref(), "local").expect("the cluster is known");
    let config = ClientConfig { io_timeout: LONGEST, mount_point: "test".into(), ..config };
    client::Cluster::connect(config).expect("connected")
}

fn name(n: usize) -> String {
    format!("name-{n}")
}

fn make(parent: FileId, name: String) -> MdsRequest {
    MdsRequest::Create {
        client: ClientId(0),
        parent,
        name,
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        symlink_target: String::new(),
        exclusive: true,
        open: false,
    }
}

fn request(parent: FileId, op: Op) -> MdsRequest {
    let client = ClientId(0);
    match op {
        Op::Make(n) => make(parent, name(n)),
        Op::Remove(n) => MdsRequest::Unlink { client, parent, name: name(n), directory: true },
        Op::Look(n) => MdsRequest::Lookup { parent, name: name(n) },
        Op::Move { from, to } => MdsRequest::Rename {
            client,
            from_parent: parent,
            from_name: name(from),
            to_parent: parent,
            to_name: name(to),
            no_replace: true,
            exchange: false,
        },
    }
}

fn outcome(op: Op, reply: client::Result<MdsReply>) -> Outcome {
    match reply {
        Ok(MdsReply::Created { attr, .. }) => Outcome::Made(attr.file.0),
        Ok(MdsReply::Attr(attr)) if matches!(op, Op::Look(_)) => Outcome::Found(attr.file.0),
        Ok(_) => Outcome::Done,
        Err(e) if e.status() == Some(Status::Exists) => Outcome::Exists,
        Err(e) if e.status() == Some(Status::NotFound) => Outcome::Missing,
        Err(e) => panic!("{op:?}: {e}"),
    }
}

fn any_op(rng: &mut Rng) -> Op {
    let n = rng.below(NAMES as u64) as usize;
    match rng.below(4) {
        0 => Op::Make(n),
        1 => Op::Remove(n),
        2 => Op::Look(n),
        _ => Op::Move { from: n, to: (n + 1 + rng.below(NAMES as u64 - 1) as usize) % NAMES },
    }
}

fn kills(test: &str, seed: u64, for_so_long: Duration) {
    let c = Cluster::new(test);
    c.up_with(&["--cs", "1", "--shards", "1", "--capacity", "1G"]);
    let mut rng = Rng::new(seed);
    let first = connect(&c);
    let directories: Vec<FileId> = (0..DIRECTORIES)
        .map(|n| match first.mds(make(ROOT, format!("directory-{n}"))) {
            Ok(MdsReply::Created { attr, .. }) => attr.file,
            other => panic!("{other:?}"),
        })
        .collect();
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let ns = move || began.elapsed().as_nanos() as u64;
    let one = move |cluster: &client::Cluster, thread: u32, directory: usize, parent: FileId, op: Op| {
        let start_ns = ns();
        let outcome = outcome(op, cluster.mds(request(parent, op)));
        (directory, Entry { thread, op, outcome, start_ns, end_ns: ns() })
    };
    let mut threads = Vec::new();
    for client in 0..CLIENTS {
        let cluster = connect(&c);
        for thread in 0..THREADS_OF_CLIENT {
            let (cluster, directories, mut rng) = (cluster.clone(), directories.clone(), rng.fork());
            let (stop, count) = (stop.clone(), count.clone());
            threads.push(std::thread::spawn(move || {
                let mut done: Done = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let at = rng.below(DIRECTORIES as u64) as usize;
                    let thread = (client * THREADS_OF_CLIENT + thread) as u32;
                    done.push(one(&cluster, thread, at, directories[at], any_op(&mut rng)));
                    count.fetch_add(1, Ordering::Relaxed);
                }
                done
            }));
        }
    }

    let (mut killed, mut all_at_once) = (0, 0);
    while began.elapsed() < for_so_long {
        std::thread::sleep(Duration::from_millis(200 + rng.below(1500)));
        // Mostly one, now and then all.
        let all = rng.below(8) == 0;
        let victims: Vec<u64> = if all { (1..=3).collect() } else { vec![1 + rng.below(3)] };
        let pids: Vec<i32> = victims.iter().map(|n| c.pid(&format!("mds{n}")) as i32).collect();
        victims.iter().for_each(|n| c.kill(&format!("mds{n}")));
        wait_until("the killed to end", LONGEST, || !pids.iter().any(|pid| is_running(*pid)));
        c.up_with(&[]);
        killed += victims.len();
        all_at_once += usize::from(all);
        let before = count.load(Ordering::Relaxed);
        wait_until("work to go on", LONGEST, || count.load(Ordering::Relaxed) > before + 20);
        assert!(!threads.iter().any(|t| t.is_finished()), "a thread ended early");
    }
    stop.store(true, Ordering::Relaxed);
    let mut done: Done = threads.into_iter().flat_map(|t| t.join().expect("no operation fails")).collect();
    // Once more, by one who was not there.
    let last = connect(&c);
    for (at, parent) in directories.iter().enumerate() {
        (0..NAMES).for_each(|n| done.push(one(&last, 31, at, *parent, Op::Look(n))));
    }
    let longest = done.iter().map(|(_, e)| e.end_ns - e.start_ns).max().unwrap_or(0);
    println!(
        "{} operations, {killed} metadata servers killed ({all_at_once} times all three at once) in {:?}, the longest took {:?}",
        done.len(),
        began.elapsed(),
        Duration::from_nanos(longest)
    );
    for at in 0..DIRECTORIES {
        let history: Vec<Entry> = done.iter().filter(|(d, _)| *d == at).map(|(_, entry)| *entry).collect();
        assert!(history.iter().any(|e| e.outcome == Outcome::Done), "nothing was done in directory {at}");
        check(&history).unwrap_or_else(|why| panic!("directory {at}: {why}{}", c.logs()));
    }
    c.down();
}

#[test]
fn names_have_one_order_though_metadata_servers_are_killed() {
    kills("kills", 1, Duration::from_secs(15));
}

#[test]
#[ignore = "takes ten minutes: cargo test --release -p pstorage-tests --test metadata_kills -- --ignored --nocapture"]
fn the_same_for_ten_minutes() {
    kills("kills-long", 2, Duration::from_secs(600));
}
