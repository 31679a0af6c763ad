//! `pstorage-mdsd`: one metadata server, in the directory that `make-mds` or `add-mds` made.
//!
//! Here are the process's own matters: arguments, the lock on the directory, logs, signals. The server itself is
//! [`mds::MdsNode`] on one io_uring thread.

use clap::Parser;
use discovery::mdns::{Card, Published};
use mds::control::{self, MdsControl};
use mds::{MdsConfig, MdsNode};
use nix::fcntl::Flock;
use shards::ring::{self, RingConfig};
use shards::service::{self, ServiceManager};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use wire::auth::Credentials;

/// Metadata server of a pstorage cluster. Ends cleanly on SIGTERM.
///
/// Example: pstorage-mdsd -r /pstorage/pcs1-mds
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Directory of the server, made by 'pstorage -c CLUSTER make-mds' or 'add-mds'.
    #[arg(short = 'r', long = "repository", value_name = "DIR")]
    dir: PathBuf,
    /// Directory of keys and settings.
    #[arg(long, value_name = "DIR", env = "PSTORAGE_ETC", default_value = "/etc/pstorage")]
    etc: PathBuf,
    /// Log file; '-' is standard error. [default: DIR/logs/mdsd.log]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Core to pin the server's thread to.
    #[arg(long)]
    core: Option<usize>,
    /// Don't publish the server by multicast DNS (Avahi). One with a loopback address never is.
    #[arg(long)]
    no_mdns: bool,
    /// A request of a client that takes longer than so many milliseconds is logged.
    #[arg(long, value_name = "MS", env = "PSTORAGE_SLOW_REQUEST_MS", default_value_t = 1000)]
    slow_request_ms: u64,
    #[command(flatten)]
    metrics: metrics::Options,
}

fn main() -> ExitCode {
    // First of all, so that every thread inherits it and SIGTERM waits for the one that listens.
    shards::host::block_termination_signals();
    // The log and the snapshots hold the cluster's secrets.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!(name: "mdsd_ends", why);
            service::ended("pstorage-mdsd", &args.dir, &why)
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let control = MdsControl::load(&args.dir).map_err(|e| e.to_string())?;
    let _lock = lock(&args.dir)?;
    let door = args.metrics.listen().map_err(|e| e.to_string())?;
    start_log(args)?;
    let credentials = Credentials::load(&args.etc, &control.cluster)?;
    tracing::info!(
        name: "mdsd_begins", mds = control.id.0, cluster = control.cluster, addr = %control.addr,
        raft_addr = %control.raft_addr, password = !credentials.is_open(), version = env!("CARGO_PKG_VERSION"),
    );
    let mut ring = RingConfig::new(format!("mds-{}", control.id), &args.dir, wire::framing);
    ring.core = args.core;
    let mut config = MdsConfig::new(control.clone(), credentials);
    config.foundation = control::read_foundation(&args.dir).map_err(|e| e.to_string())?;
    config.license_makers = license_makers(&args.etc)?;
    config.slow_request = Duration::from_millis(args.slow_request_ms);
    config.memory_bytes = shards::host::resident_bytes;
    let shard =
        ring::spawn(ring, move || MdsNode::new(config)).map_err(|e| format!("starting a thread: {e}"))?;
    let _published = if args.no_mdns { None } else { publish(&control) };
    if let Some(door) = door {
        let labels = vec![("cluster", control.cluster.clone()), ("mds", control.id.to_string())];
        let mailbox = shard.mailbox();
        let ask = move |done: SyncSender<_>| mailbox.send(Box::new(move |figures| drop(done.send(figures))));
        door.open(labels, Box::new(move |patience| metrics::asking(patience, &ask)));
    }
    let mailbox = shard.mailbox();
    std::thread::spawn(move || {
        shards::host::wait_for_termination();
        ServiceManager::hears_of_the_end();
        mailbox.shutdown();
    });
    let mut manager = ServiceManager::of_this_process();
    while !shard.is_finished() {
        manager.look(&[shard.pulse()]);
        std::thread::sleep(Duration::from_millis(50));
    }
    shard.join().map_err(|e| e.to_string())
}

/// Those whose licences are believed: one public key of 64 hexadecimal digits on each line of ETC/license-makers; what stands behind
/// `#` is for people. Without the file nobody's are.
fn license_makers(etc: &Path) -> Result<Vec<[u8; 32]>, String> {
    let path = etc.join("license-makers");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(shards::text::at(&path)(error)),
    };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let keys = lines.filter(|line| !line.is_empty()).map(|line| {
        wire::license::parse_key(line)
            .ok_or_else(|| format!("{}: '{line}' is not a maker's key", path.display()))
    });
    keys.collect()
}

/// Shows the server to the network of its address, until dropped. Without it the cluster works, but is found by other ways only.
fn publish(control: &MdsControl) -> Option<Published> {
    if control.addr.ip().is_loopback() {
        return None;
    }
    let (cluster, uuid) = (&control.cluster, &control.uuid);
    let published = Published::new(&Card { cluster, mds: control.id.0, uuid, addr: control.addr });
    published.inspect_err(|why| tracing::warn!(name: "not_published", why)).ok()
}

/// One server per directory. The lock ends with the process, however it ends.
fn lock(dir: &Path) -> Result<Flock<File>, String> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(shards::text::at(&path))?;
    shards::host::lock_within(file, shards::host::LOCK_WITHIN).ok_or_else(|| {
        format!(
            "another pstorage-mdsd runs in this directory (it holds {}): stop that one first",
            path.display()
        )
    })
}

fn start_log(args: &Args) -> Result<(), String> {
    let filter = EnvFilter::try_from_env("PSTORAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let path = args.log.clone().unwrap_or_else(|| args.dir.join("logs").join("mdsd.log"));
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
