//! `pstorage-csd`: one chunk server, in the directory that `make-cs` made: a thread per shard.

use clap::Parser;
use engine::control::{self, CsControl};
use engine::{CsShard, CsShardConfig, Look};
use metrics::Figures;
use shards::ring::{self, Mailbox, RingConfig, RunningShard};
use shards::service::{self, ServiceManager};
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;
use wire::ShardIndex;
use wire::auth::Credentials;

/// Memory for disk transfers of all shards together.
const ARENA_BYTES: usize = 64 << 20;

/// Chunk server of a pstorage cluster. Ends cleanly on SIGTERM.
///
/// Example: pstorage-csd -r /pstorage/pcs1-cs
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Directory of the server, made by 'pstorage -c CLUSTER make-cs'.
    #[arg(short = 'r', long = "repository", value_name = "DIR")]
    dir: PathBuf,
    /// Directory of keys and settings.
    #[arg(long, value_name = "DIR", env = "PSTORAGE_ETC", default_value = "/etc/pstorage")]
    etc: PathBuf,
    /// Log file; '-' is standard error. [default: DIR/logs/csd.log]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// A silent peer with outstanding work has failed after this many milliseconds.
    #[arg(long, default_value_t = 2000)]
    detect_ms: u64,
    /// A replica that takes many times longer than the others for so many milliseconds is left out for a while.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..))]
    slow_ms: u64,
    /// A request that takes longer than so many milliseconds is logged, with where its time went.
    #[arg(long, value_name = "MS", env = "PSTORAGE_SLOW_REQUEST_MS", default_value_t = 1000)]
    slow_request_ms: u64,
    #[command(flatten)]
    metrics: metrics::Options,
}

fn main() -> ExitCode {
    // First of all, so that every thread inherits it and SIGTERM waits for the one that listens.
    shards::host::block_termination_signals();
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!(name: "csd_ends", why);
            service::ended("pstorage-csd", &args.dir, &why)
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    control::read(&args.dir).map_err(|e| e.to_string())?;
    let _lock = control::lock(&args.dir).map_err(|e| e.to_string())?;
    // Again: configure-cs may have replaced it before we held the lock.
    let control = control::read(&args.dir).map_err(|e| e.to_string())?;
    let door = args.metrics.listen().map_err(|e| e.to_string())?;
    start_log(args)?;
    let mds = discovery::mds_of(&args.etc, &control.cluster).map_err(|e| e.to_string())?;
    let credentials = Credentials::load(&args.etc, &control.cluster)?;
    let location = control.location.clone().map_or_else(|| read_location(&args.etc), Ok)?;
    let mut made = check_made(&args.dir, &control)?;
    let incarnation = next_incarnation(&args.dir)?;
    tracing::info!(name: "csd_begins", cs = control.id.0, cluster = control.cluster, shards = control.shards, incarnation);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut running = Vec::new();
    for shard in 0..control.shards {
        let config = shard_config(args, &control, &mds, &credentials, &location, incarnation, shard);
        let mut ring = RingConfig::new(format!("cs-{}.{shard}", control.id), &args.dir, wire::framing);
        ring.arena_bytes = (ARENA_BYTES / usize::from(control.shards)).clamp(4 << 20, 16 << 20);
        // Several servers may share this machine: pin only where every shard has a core to itself.
        ring.core = (usize::from(control.shards) == cores && cores > 2).then_some(usize::from(shard));
        let thread =
            ring::spawn(ring, move || CsShard::new(config)).map_err(|e| format!("starting a thread: {e}"))?;
        running.push(thread);
    }
    let mailboxes: Vec<_> = running.iter().map(RunningShard::mailbox).collect();
    if let Some(door) = door {
        let labels = vec![("cluster", control.cluster.clone()), ("cs", control.id.to_string())];
        let shards = mailboxes.clone();
        door.open(labels, Box::new(move |patience| look(&shards, patience)));
    }
    std::thread::spawn(move || {
        shards::host::wait_for_termination();
        ServiceManager::hears_of_the_end();
        mailboxes.iter().for_each(|m| m.shutdown());
    });
    // A shard that breaks takes the server down: the cluster then knows, and others have the chunks.
    let mut manager = ServiceManager::of_this_process();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        manager.look(&running.iter().map(RunningShard::pulse).collect::<Vec<_>>());
        if !made && shard_marks(&args.dir, &control).all(|mark| mark.exists()) {
            let path = args.dir.join(MADE);
            ring::replace_file(&path, b"").map_err(shards::text::at(&path))?;
            made = true;
        }
        if let Some(ended) = running.iter().position(RunningShard::is_finished) {
            running.swap_remove(ended).join().map_err(|e| e.to_string())?;
            if running.is_empty() {
                return Ok(());
            }
        }
    }
}

/// The figures of all shards, which together may take so long.
fn look(shards: &[Mailbox<Look>], patience: Duration) -> Option<Figures> {
    let until = Instant::now() + patience;
    let of_one = |shard: &Mailbox<Look>| {
        let ask = |done: SyncSender<_>| shard.send(Box::new(move |figures| drop(done.send(figures))));
        metrics::asking(until.saturating_duration_since(Instant::now()), ask)
    };
    let shards: Option<Vec<_>> = shards.iter().map(of_one).collect();
    Some(engine::figures(&shards?))
}

fn shard_config(
    args: &Args,
    control: &CsControl,
    mds: &[SocketAddr],
    credentials: &Credentials,
    location: &str,
    incarnation: u64,
    shard: u16,
) -> CsShardConfig {
    CsShardConfig {
        cluster: control.cluster.clone(),
        credentials: credentials.clone(),
        cs: control.id,
        shard: ShardIndex(shard),
        shards: control.shards,
        ip: control.ip,
        mds: mds.to_vec(),
        incarnation,
        host_id: control.host_id,
        host: control.host.clone(),
        location: location.to_string(),
        tier: control.tier,
        flags: control.flags(),
        store: control.store_config(shard),
        detect: Duration::from_millis(args.detect_ms),
        slow_after: Duration::from_millis(args.slow_ms),
        slow_request: Duration::from_millis(args.slow_request_ms),
    }
}

/// Says that all shards were made: from then on a missing one is a loss, and never made anew.
const MADE: &str = "shards-made";

/// The file of each shard that says it was made.
fn shard_marks(dir: &Path, control: &CsControl) -> impl Iterator<Item = PathBuf> {
    (0..control.shards).map(move |shard| dir.join(CsControl::shard_dir(shard)).join("store"))
}

/// Whether the shards were made; an error if one of them has gone. A server that forgot its chunks must not start: the
/// cluster counts on them, and an empty shard would answer reads with zeros.
fn check_made(dir: &Path, control: &CsControl) -> Result<bool, String> {
    let made = dir.join(MADE).exists();
    match shard_marks(dir, control).find(|mark| made && !mark.exists()) {
        Some(lost) => Err(format!(
            "{} is missing, although this server has held data. Nothing was changed. Check that all its disks are \
             mounted; if the shard is lost, so is this server: let the cluster copy its chunks to a new one (make-cs)",
            lost.display()
        )),
        None => Ok(made),
    }
}

/// Where this host stands, for failure domains; empty when nobody said so.
fn read_location(etc: &Path) -> Result<String, String> {
    let path = etc.join("location");
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(shards::text::at(&path))?,
    };
    let location = text.trim();
    if !location.is_empty() {
        wire::check_location(location).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(location.to_string())
}

/// Counts the starts of this server: peers let a later one replace an earlier one.
fn next_incarnation(dir: &Path) -> Result<u64, String> {
    let path = dir.join("incarnation");
    let last = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| {
            format!(
                "{} holds no number, but how often this server was started: it is damaged. Write 1000000 into it, a number above all \
                 that were in it before, and start again",
                path.display()
            )
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(shards::text::at(&path)(e)),
    };
    let next = last + 1;
    ring::replace_file(&path, next.to_string().as_bytes()).map_err(shards::text::at(&path))?;
    Ok(next)
}

fn start_log(args: &Args) -> Result<(), String> {
    let filter = EnvFilter::try_from_env("PSTORAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let path = args.log.clone().unwrap_or_else(|| args.dir.join("logs").join("csd.log"));
    if path == Path::new("-") {
        builder.with_writer(std::io::stderr).init();
        return Ok(());
    }
    let open = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        OpenOptions::new().create(true).append(true).open(&path)
    };
    let file = open().map_err(|e| format!("the log {}", shards::text::at(&path)(e)))?;
    builder.with_writer(std::sync::Mutex::new(file)).init();
    Ok(())
}
