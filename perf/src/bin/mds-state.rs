//! `mds-state DIR`: what the metadata of a large cluster costs a metadata server: memory for each chunk and file, how long a
//! change waits while a snapshot is written, how long a start from the snapshot takes.
//!
//! The state is that of the real server, made by its commands; the snapshot is its real file.

use clap::Parser;
use mds::snapshot_file::{FileReader, FileWriter, HEAD_BYTES, SnapshotHead, SnapshotMeta};
use mds::state::{Command, Op, Placement, Reply, SetAction, SetChange, State};
use perf::text::{bytes, number};
use shards::host::resident_bytes;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wire::mds_api::{FileKind, LeaseMode, MdsReply, ReleasedLease};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, LeaseId, ROOT};

/// Measures the state of a metadata server with many files and chunks.
#[derive(Parser)]
struct Args {
    /// A directory on a disk, for the snapshot.
    dir: PathBuf,
    #[arg(long, default_value_t = 10_000_000)]
    files: u64,
    /// In which the files lie.
    #[arg(long, default_value_t = 1_000_000)]
    directories: u64,
    #[arg(long, default_value_t = 100_000_000)]
    chunks: u64,
    #[arg(long, default_value_t = 1000)]
    servers: u32,
    /// Chunks come one by one to a file here and a file there, so that no file has two with consecutive ids.
    #[arg(long)]
    scattered: bool,
    /// Fail if all takes more memory.
    #[arg(long, default_value_t = 8.0)]
    most_memory_gb: f64,
    /// Fail if a chunk takes more.
    #[arg(long, default_value_t = 64.0)]
    most_bytes_per_chunk: f64,
    /// Fail if a change waits longer for the snapshot.
    #[arg(long, default_value_t = 50.0)]
    most_stall_ms: f64,
    /// Fail if the start takes longer.
    #[arg(long, default_value_t = 60.0)]
    most_start_s: f64,
}

struct Maker {
    state: State,
    index: u64,
    random: u64,
    servers: u32,
}

impl Maker {
    fn ask(&mut self, client: ClientId, op: Op) -> Reply {
        self.index += 1;
        self.state.apply(self.index, &Command::Client { client, request: 0, time_ms: 1, op }).reply
    }

    fn make(&mut self, parent: FileId, name: String, kind: FileKind) -> (FileId, Option<LeaseId>) {
        let op = Op::Create {
            parent,
            name,
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            symlink_target: String::new(),
            exclusive: true,
            open: kind == FileKind::File,
            first: Vec::new(),
        };
        match self.ask(ClientId(1), op) {
            Reply::Wire(MdsReply::Created { attr, lease, .. }) => (attr.file, lease),
            other => panic!("{other:?}"),
        }
    }

    fn random(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }

    fn allocate(&mut self, file: FileId, lease: LeaseId, first: u32, count: u32) {
        let servers = u64::from(self.servers);
        let placements = (first..first + count).map(|index| {
            let one = self.random() % servers;
            let replicas = (0..3).map(|i| CsId(1 + ((one + i * (servers / 3)) % servers) as u32)).collect();
            Placement { index, replicas }
        });
        let placements = placements.collect();
        let reply = self.ask(ClientId(1), Op::Allocate { file, lease, first, count, placements });
        assert!(matches!(&reply, Reply::Maps(views) if views.len() == count as usize), "{reply:?}");
    }

    fn open(&mut self, file: FileId) -> LeaseId {
        match self.ask(ClientId(1), Op::Open { file, mode: LeaseMode::Write, reclaim: LeaseId(0) }) {
            Reply::Wire(MdsReply::Opened { lease, .. }) => lease,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self, file: FileId, lease: LeaseId) {
        self.ask(
            ClientId(1),
            Op::Release {
                leases: vec![ReleasedLease { file, lease, size_bytes: Some(1 << 30), mtime_ns: None }],
            },
        );
    }

    /// A change of an old chunk's set, and a new file.
    fn change(&mut self, chunks: u64, name: String) {
        let chunk = ChunkId(1 + self.random() * self.random() % chunks);
        let view = self.state.chunk(chunk).expect("all chunks are there");
        let gone = view.in_sync().last().expect("there is one");
        let action = SetAction::Drop { cs: vec![gone], force: true };
        let change = SetChange { chunk, epoch: Epoch(view.epoch.0), action };
        self.index += 1;
        self.state.apply(self.index, &Command::change_sets(1, vec![change]));
        self.make(ROOT, name, FileKind::Directory);
    }
}

fn per(taken_bytes: u64, count: u64) -> f64 {
    taken_bytes as f64 / count.max(1) as f64
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let mut broken = Vec::new();
    let mut maker = Maker { state: State::new(), index: 0, random: 1, servers: args.servers };
    for _ in 0..args.servers {
        maker.ask(ClientId(0), Op::NewCs { host_id: [1; 16], host: "host".into() });
    }
    maker.ask(ClientId(0), Op::OpenSession { host: "h".into(), mount_point: "/m".into(), nonce: 1 });
    let set_policy =
        Op::SetPolicy { file: ROOT, name: "replicas".into(), value: "3:2".into(), recursive: false };
    maker.ask(ClientId(0), set_policy);

    let (empty, began) = (resident_bytes(), Instant::now());
    let top = args.directories.div_ceil(1000).max(1);
    let tops: Vec<FileId> =
        (0..top).map(|i| maker.make(ROOT, format!("top{i:05}"), FileKind::Directory).0).collect();
    let below = args.directories.saturating_sub(top);
    let directories: Vec<FileId> = (0..below)
        .map(|i| maker.make(tops[(i % top) as usize], format!("directory{i:07}"), FileKind::Directory).0)
        .collect();
    let all = if directories.is_empty() { &tops } else { &directories };
    let mut files = Vec::with_capacity(args.files as usize);
    for i in 0..args.files {
        let parent = all[(i % all.len() as u64) as usize];
        let (file, lease) = maker.make(parent, format!("image-{i:08}.raw"), FileKind::File);
        maker.release(file, lease.expect("opened"));
        files.push(file);
    }
    let named = resident_bytes() - empty;
    // Written by so many hands at a time.
    let hands = if args.scattered { 1000 } else { 1 };
    for (number, group) in files.chunks(hands).enumerate() {
        let before = (number * hands) as u64;
        let share = |i: u64| args.chunks * (i + 1) / args.files - args.chunks * i / args.files;
        let open: Vec<(FileId, LeaseId)> = group.iter().map(|file| (*file, maker.open(*file))).collect();
        let most = if args.scattered { share(before).max(share(before + hands as u64 - 1)) } else { 1 };
        for round in 0..most {
            for (i, (file, lease)) in open.iter().enumerate() {
                let chunks = share(before + i as u64);
                match args.scattered {
                    true if round < chunks => maker.allocate(*file, *lease, round as u32, 1),
                    false if chunks > 0 => maker.allocate(*file, *lease, 0, chunks as u32),
                    _ => {}
                }
            }
        }
        open.into_iter().for_each(|(file, lease)| maker.release(file, lease));
    }
    drop((files, directories, tops));
    let made = began.elapsed();
    let taken = resident_bytes() - empty;
    println!(
        "{} files in {} directories, {} chunks of 3 replicas on {} servers, by {} commands",
        number(args.files as f64),
        number(args.directories as f64),
        number(args.chunks as f64),
        number(f64::from(args.servers)),
        number(maker.index as f64)
    );
    println!(
        "made in                           {:8.1} s ({:.2} us a command)",
        made.as_secs_f64(),
        made.as_secs_f64() * 1e6 / maker.index as f64
    );
    let per_chunk = per(taken - named, args.chunks);
    println!("memory                            {:>8}", bytes(taken));
    println!("for each file and directory       {:8.1} B", per(named, args.files + args.directories));
    println!("for each chunk                    {per_chunk:8.1} B");
    if per_chunk > args.most_bytes_per_chunk {
        broken.push(format!("{per_chunk:.1} B for each chunk"));
    }
    if taken as f64 > args.most_memory_gb * 1e9 {
        broken.push(format!("{} of memory", bytes(taken)));
    }

    // A snapshot, with changes between its pieces, as the server makes it.
    let path = args.dir.join("mds-state.snapshot");
    let mut out = File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let meta = SnapshotMeta { index: maker.index, term: 1, ..SnapshotMeta::default() };
    let began = Instant::now();
    let mut writer = FileWriter::new(&meta, maker.state.snapshot());
    let mut longest_piece = began.elapsed();
    println!("copy of the state                 {:8.3} ms", longest_piece.as_secs_f64() * 1e3);
    let (mut file_bytes, mut longest_change, mut changes) = (HEAD_BYTES as u64, Duration::ZERO, 0u64);
    out.write_all(&[0; HEAD_BYTES]).map_err(|e| e.to_string())?;
    let (mut making, mut changing) = (Duration::ZERO, Duration::ZERO);
    loop {
        let at = Instant::now();
        let piece = writer.next();
        let took = at.elapsed();
        making += took;
        longest_piece = longest_piece.max(took);
        let Some(piece) = piece else { break };
        file_bytes += piece.len() as u64;
        out.write_all(&piece).map_err(|e| e.to_string())?;
        for _ in 0..8 {
            changes += 1;
            let at = Instant::now();
            maker.change(args.chunks, format!("new{changes}"));
            let took = at.elapsed();
            changing += took;
            longest_change = longest_change.max(took);
        }
    }
    let at = Instant::now();
    drop(writer);
    longest_piece = longest_piece.max(at.elapsed());
    println!(
        "snapshot                          {:>8} in {:.1} s of work",
        bytes(file_bytes),
        making.as_secs_f64()
    );
    println!("longest piece of it               {:8.3} ms", longest_piece.as_secs_f64() * 1e3);
    println!(
        "changes meanwhile                 {:8.3} ms the longest of {}, {:.1} us on average",
        longest_change.as_secs_f64() * 1e3,
        number(changes as f64),
        changing.as_secs_f64() * 1e6 / changes.max(1) as f64
    );
    println!("memory with it                    {:>8}", bytes(resident_bytes() - empty));
    let stall = (longest_piece + longest_change).as_secs_f64() * 1e3;
    if stall > args.most_stall_ms {
        broken.push(format!("a stall of {stall:.1} ms"));
    }
    out.sync_all().map_err(|e| e.to_string())?;
    drop(maker);

    let head = SnapshotHead { index: meta.index, term: 1, file_bytes }.encode();
    let mut file = File::open(&path).map_err(|e| e.to_string())?;
    let (began, mut reader) = (Instant::now(), FileReader::default());
    reader.take(&head)?;
    let mut piece = vec![0; 1 << 20];
    file.read_exact(&mut piece[..HEAD_BYTES]).map_err(|e| e.to_string())?;
    let mut longest = Duration::ZERO;
    loop {
        let length = file.read(&mut piece).map_err(|e| e.to_string())?;
        if length == 0 {
            break;
        }
        let at = Instant::now();
        reader.take(&piece[..length])?;
        longest = longest.max(at.elapsed());
    }
    let (_, state) = reader.finish()?;
    let start = began.elapsed().as_secs_f64();
    println!(
        "start from it                     {start:8.1} s, {:.3} ms the longest piece",
        longest.as_secs_f64() * 1e3
    );
    assert_eq!(state.chunk_count(), args.chunks);
    if start > args.most_start_s {
        broken.push(format!("a start of {start:.1} s"));
    }
    std::fs::remove_file(&path).map_err(|e| e.to_string())?;
    if broken.is_empty() { Ok(()) } else { Err(format!("over the limit: {}", broken.join(", "))) }
}
