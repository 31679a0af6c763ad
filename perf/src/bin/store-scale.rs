//! `store-scale DIR`: what a chunk server with very many chunks costs: time to start, and memory.
//!
//! Makes the files of a chunk server as a full one of that size would have them (`engine::store`, `plant.rs`: real index,
//! bitmap and journal, sparse data and map pages), starts the real `pstorage-csd` on them, and measures until it listens.

use clap::Parser;
use engine::control::{self, CsControl};
use engine::store::{Outcome, Store, StoreConfig};
use shards::ring::{self, RingConfig};
use shards::text::parse_size;
use shards::{Event, Io, Node};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::{ChunkId, CsId, ShardIndex, shard_of};

/// Measures start and memory of a chunk server with very many chunks.
#[derive(Parser)]
struct Args {
    /// An empty directory; the figures need about 1 KiB there for each chunk.
    dir: PathBuf,
    #[arg(long, default_value_t = 1_000_000)]
    chunks: u64,
    /// Data in each chunk.
    #[arg(long, default_value = "16M", value_parser = |text: &str| parse_size(text, 1))]
    chunk_size: u64,
    #[arg(long, default_value = "16T", value_parser = |text: &str| parse_size(text, 1))]
    capacity: u64,
    #[arg(long, default_value_t = 2)]
    shards: u16,
    /// Fail if the start takes longer.
    #[arg(long, default_value_t = 10.0)]
    most_s: f64,
    /// Fail if the server takes more memory, with all that its caches may come to take.
    #[arg(long, default_value = "1G", value_parser = |text: &str| parse_size(text, 1))]
    most_memory: u64,
}

const CLUSTER: &str = "scale";
const JOURNAL_BYTES: u64 = 64 << 20;
const MAP_PAGE_BYTES: u64 = 2 << 20;
/// What a running server may take on top of what it takes when it has just started: its cache of map pages, and 48 MiB for
/// each shard of small writes that wait to be applied (pstorage-csd.rs, store/mod.rs).
const MAP_CACHE_BYTES: u64 = 256 << 20;
const OVERLAY_BYTES: u64 = 48 << 20;

/// Makes the store of one shard and ends.
struct Planter {
    config: StoreConfig,
    chunks: Vec<ChunkId>,
    map_pages: u32,
    store: Option<Store>,
    planted: bool,
}

impl Planter {
    fn look(&mut self, io: &mut dyn Io) {
        let Some(store) = self.store.as_mut() else { return };
        let outcomes: Vec<Outcome> = store.outcomes().collect();
        for outcome in outcomes {
            if let Outcome::Broken(error) = outcome {
                return io.stop(Err(error.to_string()));
            }
        }
        if store.is_ready() && !self.planted {
            self.planted = true;
            for chunk in std::mem::take(&mut self.chunks) {
                store.plant(chunk, self.map_pages, false);
            }
            store.write_planted(io);
        }
        if self.planted && store.is_planted() {
            io.stop(Ok(()));
        }
    }
}

impl Node for Planter {
    type Message = ();

    fn handle(&mut self, event: Event<()>, io: &mut dyn Io) {
        match event {
            Event::Start => match Store::open(io, &self.config) {
                Ok(store) => self.store = Some(store),
                Err(error) => return io.stop(Err(error.to_string())),
            },
            Event::Disk { op, result } => {
                self.store.as_mut().expect("it asked").on_disk(io, op, result);
            }
            Event::Timer { id } => {
                self.store.as_mut().expect("it asked").on_timer(io, id);
            }
            _ => {}
        }
        self.look(io);
    }
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let dir = std::path::absolute(&args.dir).map_err(|e| e.to_string())?;
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let began = Instant::now();
    plant_all(&args, &dir.join("cs"))?;
    let etc = write_etc(&dir)?;
    println!(
        "{} chunks of {} MiB, {} shards, planted in {:.1} s",
        args.chunks,
        args.chunk_size >> 20,
        args.shards,
        began.elapsed().as_secs_f64()
    );
    let mut worst = (0.0f64, 0u64);
    for start in ["first start", "second start"] {
        let (seconds, resident) = measure(&dir.join("cs"), &etc, args.shards)?;
        println!("{start}: listens after {seconds:.2} s, resident {} MiB", resident >> 20);
        worst = (worst.0.max(seconds), worst.1.max(resident));
    }
    let most = worst.1 + MAP_CACHE_BYTES + OVERLAY_BYTES * u64::from(args.shards);
    println!("with full caches at most {} MiB", most >> 20);
    if worst.0 > args.most_s {
        return Err(format!("the start took {:.2} s, more than {} s", worst.0, args.most_s));
    }
    if most > args.most_memory {
        return Err(format!("{} MiB are more than {} MiB", most >> 20, args.most_memory >> 20));
    }
    Ok(())
}

fn plant_all(args: &Args, cs: &Path) -> Result<(), String> {
    std::fs::create_dir_all(cs).map_err(|e| format!("{}: {e}", cs.display()))?;
    let control = CsControl {
        format: control::FORMAT,
        service: "cs".into(),
        cluster: CLUSTER.into(),
        id: CsId(1),
        host_id: [1; 16],
        host: "scale".into(),
        tier: 0,
        location: None,
        shards: args.shards,
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        capacity_bytes: args.capacity,
        journal_dir: None,
        journal_tag: None,
        cache: None,
        journal_bytes: JOURNAL_BYTES,
    };
    control::create(cs, &control).map_err(|e| e.to_string())?;
    for shard in 0..args.shards {
        let dir = format!("shard-{shard:03}");
        let node = Planter {
            config: StoreConfig {
                journal_path: format!("{dir}/journal"),
                dir,
                journal_bytes: JOURNAL_BYTES,
                capacity_bytes: args.capacity / u64::from(args.shards),
                map_cache_bytes: 1 << 20,
                overlay_bytes: 1 << 20,
                cache: None,
            },
            chunks: (1..=args.chunks)
                .map(ChunkId)
                .filter(|&c| shard_of(c, args.shards) == ShardIndex(shard))
                .collect(),
            map_pages: args.chunk_size.div_ceil(MAP_PAGE_BYTES) as u32,
            store: None,
            planted: false,
        };
        let config = RingConfig::new(format!("plant-{shard}"), cs, wire::framing);
        let running = ring::spawn(config, move || node).map_err(|e| e.to_string())?;
        running.join().map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// A cluster whose metadata servers do not answer: the server starts without them.
fn write_etc(dir: &Path) -> Result<PathBuf, String> {
    let etc = dir.join("etc");
    let cluster = etc.join("clusters").join(CLUSTER);
    let written = std::fs::create_dir_all(&cluster)
        .and_then(|()| std::fs::write(cluster.join("bs.list"), "127.0.0.1:9\n"));
    written.map_err(|e| format!("{}: {e}", cluster.display()))?;
    Ok(etc)
}

/// Ends with the value that owns it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server; seconds until all shards listen, and its memory then.
fn measure(cs: &Path, etc: &Path, shards: u16) -> Result<(f64, u64), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("pstorage-csd");
    let ports: Vec<PathBuf> = (0..shards).map(|n| cs.join(format!("shard-{n:03}/port"))).collect();
    while ports.iter().any(|port| listens(port)) {
        std::thread::sleep(Duration::from_millis(10)); // The kernel frees those of a killed process late.
    }
    let began = Instant::now();
    let child = Command::new(&program)
        .arg("-r")
        .arg(cs)
        .arg("--etc")
        .arg(etc)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let mut server = Server(child);
    for port in &ports {
        while !listens(port) {
            if let Ok(Some(status)) = server.0.try_wait() {
                return Err(format!("pstorage-csd ended: {status}; see {}/logs/csd.log", cs.display()));
            }
            if began.elapsed() > Duration::from_secs(120) {
                return Err("pstorage-csd does not listen within 120 s".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok((seconds, resident_bytes(server.0.id())?))
}

fn listens(port_file: &Path) -> bool {
    let port = std::fs::read_to_string(port_file).ok().and_then(|t| t.trim().parse::<u16>().ok());
    port.is_some_and(|port| {
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_millis(200))
            .is_ok()
    })
}

/// The most memory the process had so far.
fn resident_bytes(pid: u32) -> Result<u64, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    let kb: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or("no number in VmHWM")?;
    Ok(kb << 10)
}
