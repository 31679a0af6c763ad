//! `pstorage-mount`: mounts a cluster at a directory.
//!
//! Started without `-f`, the program starts itself again as a daemon (a new process with the same words, so that its
//! command line names the mount point), waits until that one has mounted, and passes its verdict on: exit status
//! 0 when the mount is ready, else the reason on standard error. The daemon ends when the mount is unmounted by
//! whatever means, after handing in everything; SIGTERM unmounts.
//!
//! Called `mount.fuse.pstorage` it is the helper of mount(8) for lines of `/etc/fstab`.

use clap::Parser;
use client::fuse::{self, CacheOptions, MountOptions};
use client::mount_helper::{self, Words};
use client::{CacheConfig, Call, ClientConfig, ClientError, Cluster};
use nix::fcntl::Flock;
use nix::mount::{MntFlags, umount2};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{SyncSender, channel};
use std::time::Duration;
use wire::{FileId, Status};

/// Mounts a pstorage cluster.
///
/// It ends when it is unmounted (umount DIR).
#[derive(Parser)]
#[command(
    name = "pstorage-mount",
    version,
    after_help = "Examples:
  pstorage-mount -c pcs1 /pstorage/pcs1
  pstorage-mount -c pcs1 /pstorage/pcs1 -C /ssd/pcs1.cache -R 20G      with a read cache on a local SSD
  pstorage-mount -c pcs1 /pstorage/pcs1 -o ro,log=/var/log/pcs1.log
In /etc/fstab:
  pstorage://pcs1 /pstorage/pcs1 fuse.pstorage rw,nosuid,nodev,_netdev 0 0"
)]
struct Args {
    /// Name of the cluster.
    #[arg(short = 'c', long = "cluster", value_parser = wire::parse_cluster_name)]
    cluster: String,
    /// Where to mount: an empty directory.
    dir: PathBuf,
    /// Directory of the configuration.
    #[arg(long, env = "PSTORAGE_ETC", default_value = "/etc/pstorage")]
    etc: PathBuf,
    /// Log file.
    #[arg(short = 'l', long = "log")]
    log: Option<PathBuf>,
    /// Owner to show for all files instead of the stored one.
    #[arg(short = 'u', long = "user")]
    user: Option<String>,
    /// Group to show for all files instead of the stored one.
    #[arg(short = 'g', long = "group")]
    group: Option<String>,
    /// Permission bits, octal, to show for all files instead of the stored ones.
    #[arg(short = 'm', long = "mode")]
    mode: Option<String>,
    /// Read cache: a file on a local SSD, made if it is not there.
    #[arg(short = 'C', long = "cache", value_name = "FILE", requires = "cache_mb")]
    cache: Option<PathBuf>,
    /// Size of the read cache in MB, or with a unit such as 20G.
    #[arg(short = 'R', long = "cache-size", value_name = "SIZE_MB", value_parser = fuse::cache_mb, requires = "cache")]
    cache_mb: Option<u64>,
    /// A request that takes longer than so many milliseconds is logged, with where its time went; also '-o slow=MS'.
    #[arg(long, value_name = "MS", env = "PSTORAGE_SLOW_REQUEST_MS", default_value_t = 1000)]
    slow_request_ms: u64,
    /// Mount options, separated by commas.
    #[arg(short = 'o')]
    options: Vec<String>,
    /// Stay in the foreground.
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Said by the program to itself: report on standard output, then detach.
    #[arg(long, hide = true)]
    daemon: bool,
}

const READY: &str = "ready";

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    match mount_helper::words(&words) {
        Ok(Words::Own) => {}
        Ok(Words::Mount(told)) => drop(words.splice(1.., told)),
        Ok(Words::Fake) => return ExitCode::SUCCESS,
        Err(why) => return fail(&why),
    }
    let args = Args::parse_from(&words);
    match parse_options(&args) {
        Ok(options) if options.remount => {
            return remount(&args.dir, &options).map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS);
        }
        Ok(_) => {}
        Err(why) => return fail(&why),
    }
    if !args.foreground && !args.daemon {
        return match start_daemon(&args, &words[1..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&why),
        };
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) if args.daemon => {
            // The parent passes it on; if the mount stood already, the log has it.
            let _ = writeln!(std::io::stdout(), "{why}");
            tracing::error!(why, "mount_failed");
            ExitCode::FAILURE
        }
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("pstorage-mount: {why}");
    ExitCode::FAILURE
}

/// `-o remount,…`: what the kernel alone decides is changed; the process goes on with what it was told.
fn remount(dir: &Path, options: &MountOptions) -> Result<(), String> {
    let none = None::<&str>;
    nix::mount::mount(none, dir, none, options.remount_flags(), none).map_err(|e| match e {
        nix::errno::Errno::EINVAL => format!("{} is no mount: nothing was changed", dir.display()),
        _ => format!("can't change the mount at {}: {}", dir.display(), e.desc()),
    })
}

/// Starts the daemon with the same words and waits for its verdict.
fn start_daemon(args: &Args, words: &[OsString]) -> Result<(), String> {
    check_mount_point(&args.dir, &parse_options(args)?)?;
    let program = std::env::current_exe().map_err(|e| format!("can't find my own program file: {e}"))?;
    let mut child = Command::new(program)
        .arg("--daemon")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("can't start the daemon: {e}"))?;
    let output = child.stdout.take().ok_or("no pipe to the daemon")?;
    let mut said = Vec::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if line == READY {
            return Ok(());
        }
        said.push(line);
    }
    let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
    if said.is_empty() {
        Err(format!("the daemon ended without a word ({status}); see its log (-l)"))
    } else {
        Err(said.join("\n"))
    }
}

fn run(args: &Args) -> Result<(), String> {
    // Before any thread: they inherit the mask, and the one that waits gets the signal.
    shards::host::block_termination_signals();
    if args.daemon {
        let _ = nix::unistd::setsid();
    }
    let options = parse_options(args)?;
    start_log(options.log.as_deref())?;
    let dir = check_mount_point(&args.dir, &options)?;
    let door = options.metrics.listen().map_err(|e| e.to_string())?;
    let mut config = client::setup::load(&args.etc, &args.cluster)?;
    config.mount_point = dir.display().to_string();
    if let Some(seconds) = options.timeout_s {
        config.io_timeout = Duration::from_secs(seconds);
    }
    config.slow_request = Duration::from_millis(options.slow_request_ms.unwrap_or(args.slow_request_ms));
    // Held until the end: two mounts with one cache file would ruin it.
    let _cache_file = match &options.cache {
        Some(cache) => {
            config.cache = Some(CacheConfig::new(path_text(&cache.path)?, cache.bytes));
            Some(claim_cache(cache)?)
        }
        None => None,
    };
    let (lost, lost_files) = channel::<FileId>();
    let tell_lost = Box::new(move |file| lost.send(file).unwrap_or_default());
    let cluster = Cluster::connect_with(config.clone(), move |core| core.on_lease_lost(tell_lost))
        .map_err(|e| explain(&config, &e))?;
    let session = fuse::mount(&cluster, &args.cluster, &dir, &options)
        .map_err(|e| fuse::explain_mount_error(&e, &dir))?;
    if let Some(door) = door {
        let labels = vec![("cluster", args.cluster.clone()), ("mount", dir.display().to_string())];
        let client = cluster.clone();
        let ask = move |done: SyncSender<_>| {
            client.submit(Call::Stats { done: Box::new(move |stats| drop(done.send(stats))) });
        };
        door.open(
            labels,
            Box::new(move |patience| Some(client::figures(&metrics::asking(patience, &ask)?.ok()?))),
        );
    }
    let notifier = session.notifier();
    // Not from the client's thread: the kernel may wait for pages that thread is to deliver.
    std::thread::spawn(move || {
        for file in lost_files {
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(file.0), 0, 0) {
                tracing::debug!(%file, %error, "cache_drop_failed");
            }
        }
    });
    let at = dir.clone();
    std::thread::spawn(move || unmount_on_signal(&at));
    tracing::info!(dir = %dir.display(), cluster = args.cluster, "mounted");
    if args.daemon {
        say_ready_and_detach()?;
    }
    let served = session.run();
    tracing::info!(dir = %dir.display(), ?served, "unmounted");
    let closed = cluster.close().map_err(|e| e.to_string());
    served.map_err(|e| format!("FUSE: {e}")).and(closed)
}

/// SIGTERM and SIGINT: unmounts; if files are still open, detaches the mount and lets their programs finish a while.
fn unmount_on_signal(dir: &Path) {
    shards::host::wait_for_termination();
    tracing::info!(dir = %dir.display(), "signal_received");
    if umount2(dir, MntFlags::empty()).is_ok() {
        return;
    }
    if umount2(dir, MntFlags::MNT_DETACH).is_err() {
        // Without root: the helper that mounted.
        let _ = Command::new("fusermount3").arg("-uz").arg("--").arg(dir).status();
    }
    std::thread::sleep(Duration::from_secs(5));
    tracing::warn!(dir = %dir.display(), "still_busy_ending_anyway");
    std::process::exit(1);
}

fn start_log(file: Option<&Path>) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PSTORAGE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match file {
        Some(path) => {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|e| format!("the log {}", shards::text::at(path)(e)))?;
            builder.with_writer(std::sync::Mutex::new(file)).init();
        }
        None => builder.with_writer(std::io::stderr).init(),
    }
    Ok(())
}

fn parse_options(args: &Args) -> Result<MountOptions, String> {
    let mut options = MountOptions::default();
    for words in &args.options {
        options.add(words)?;
    }
    options.log = args.log.clone().or(options.log);
    options.cache_file = args.cache.clone().or(options.cache_file);
    options.cache_mb = args.cache_mb.or(options.cache_mb);
    options.settle_cache()?;
    options.metrics.check().map_err(|e| e.to_string())?;
    let overrides = &mut options.overrides;
    if let Some(user) = &args.user {
        overrides.uid = Some(match user.parse() {
            Ok(uid) => uid,
            Err(_) => match nix::unistd::User::from_name(user) {
                Ok(Some(found)) => found.uid.as_raw(),
                _ => return Err(format!("-u {user}: no such user")),
            },
        });
    }
    if let Some(group) = &args.group {
        overrides.gid = Some(match group.parse() {
            Ok(gid) => gid,
            Err(_) => match nix::unistd::Group::from_name(group) {
                Ok(Some(found)) => found.gid.as_raw(),
                _ => return Err(format!("-g {group}: no such group")),
            },
        });
    }
    if let Some(mode) = &args.mode {
        let bits = u32::from_str_radix(mode, 8).ok().filter(|m| *m <= 0o7777);
        overrides.mode = Some(bits.ok_or(format!("-m {mode}: octal permission bits expected, such as 644"))?);
    }
    Ok(options)
}

fn path_text(path: &Path) -> Result<String, String> {
    let text = path.to_str().ok_or_else(|| format!("{}: the name is not UTF-8", path.display()))?;
    Ok(text.to_string())
}

/// Makes the cache file with all its room, or takes the one that is there; locked against other mounts, and readable by
/// its owner only, as it holds the data of files.
fn claim_cache(cache: &CacheOptions) -> Result<Flock<File>, String> {
    let shown = cache.path.display();
    let fail = |e: std::io::Error| format!("read cache {shown}: {}", shards::text::cause(&e));
    let mut open = std::fs::OpenOptions::new();
    let file = open
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&cache.path)
        .map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(format!(
            "read cache {shown}: not a file; name one on a local SSD, it is made if it is not there"
        ));
    }
    // A mount that has just ended still saves its table.
    let file = shards::host::lock_within(file, Duration::from_secs(5)).ok_or_else(|| {
        format!("read cache {shown}: another mount uses it; give each mount a file of its own")
    })?;
    let mut head = [0; 8];
    let length = file.metadata().map_err(fail)?.len();
    if length > 0
        && (file.read_at(&mut head, 0).map_err(fail)? < 8
            || !matches!(&head, b"PSRCACHE" | b"\0\0\0\0\0\0\0\0"))
    {
        return Err(format!("{shown} exists and is no read cache: name another file, or remove it yourself"));
    }
    let dir = cache.path.parent().unwrap_or(Path::new("/"));
    if !shards::host::supports_direct_io(dir).map_err(fail)? {
        return Err(format!(
            "read cache {shown}: its file system has no direct I/O (O_DIRECT); use ext4 or XFS on an SSD"
        ));
    }
    // Before a byte is taken: what a file system has is given even to who can't have all, and it would be full.
    let (_, free) = shards::host::space(dir).map_err(fail)?;
    let taken = std::os::unix::fs::MetadataExt::blocks(&file.metadata().map_err(fail)?) * 512;
    if cache.bytes > taken + free {
        if length == 0 {
            let _ = std::fs::remove_file(&cache.path); // Made here.
        }
        return Err(format!(
            "read cache {shown}: {} MB are free there, too few for {} MB: ask for less with -R, or make room",
            free >> 20,
            cache.bytes >> 20
        ));
    }
    let room = if length > cache.bytes {
        file.set_len(cache.bytes)
    } else {
        nix::fcntl::posix_fallocate(&*file, 0, cache.bytes as i64).map_err(std::io::Error::from)
    };
    room.map_err(|e| {
        format!("read cache {shown}: can't have {} MB: {}", cache.bytes >> 20, shards::text::cause(&e))
    })?;
    Ok(file)
}

/// The mount point as an absolute path, or what is wrong with it.
fn check_mount_point(dir: &Path, options: &MountOptions) -> Result<PathBuf, String> {
    let shown = dir.display();
    let found = std::fs::metadata(dir).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => {
            format!("the mount point {shown} does not exist: make it with 'mkdir -p {shown}'")
        }
        Some(libc::ENOTCONN) => {
            format!("{shown} is a mount whose process is gone: unmount it with 'umount {shown}' first")
        }
        _ => format!("the mount point {shown}: {}", shards::text::cause(&e)),
    })?;
    if !found.is_dir() {
        return Err(format!("the mount point {shown} is not a directory"));
    }
    let at =
        dir.canonicalize().map_err(|e| format!("the mount point {shown}: {}", shards::text::cause(&e)))?;
    if let Some(source) = mounted_at(&at).filter(|_| !options.nonempty) {
        return Err(format!(
            "{source} is mounted on {shown} already: unmount it first ('umount {shown}'), or take another directory"
        ));
    }
    let mut entries = std::fs::read_dir(dir)
        .map_err(|e| format!("the mount point {shown}: {}", shards::text::cause(&e)))?;
    if entries.next().is_some() && !options.nonempty {
        return Err(format!(
            "the mount point {shown} is not empty; its files would be hidden. Take an empty directory, or say -o nonempty"
        ));
    }
    Ok(at)
}

/// The cluster that is mounted there.
fn mounted_at(dir: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let at = dir.to_string_lossy().replace(' ', "\\040");
    mounts.lines().find_map(|line| {
        let (source, rest) = line.split_once(' ')?;
        (source.starts_with("pstorage://") && rest.split(' ').next() == Some(&*at))
            .then(|| source.to_string())
    })
}

fn explain(config: &ClientConfig, error: &ClientError) -> String {
    let name = &config.cluster;
    match error {
        ClientError::Refused { status: Status::WrongPassword | Status::TakenOut, detail } => format!(
            "cluster '{name}' refuses this node ({detail}). Run 'pstorage -c {name} auth-node' and give the \
             cluster's password"
        ),
        ClientError::MdsUnreachable { detail } => {
            let count = config.mds.len();
            format!(
                "none of the {count} metadata servers of cluster '{name}' serves: {detail}. Check that they run and \
                 that these are the right ones (pstorage discover {name})"
            )
        }
        other => format!("cluster '{name}': {other}"),
    }
}

/// Tells the waiting parent, then lets go of its pipe and of the directory.
fn say_ready_and_detach() -> Result<(), String> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).map_err(|e| format!("can't report: {e}"))?;
    let null =
        std::fs::OpenOptions::new().write(true).open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    nix::unistd::dup2_stdout(&null).map_err(|e| format!("/dev/null: {e}"))?;
    let _ = std::env::set_current_dir("/");
    Ok(())
}
