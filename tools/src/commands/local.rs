//! `local up|status|down|demo DIR`: a whole cluster on this machine, all of it below DIR, for evaluation and tests.
//!
//! Invariants:
//! - nothing is written outside DIR, and no port is fixed: ports are chosen free when the cluster is made;
//! - a process is only ever signalled after its command line was seen to name its directory below DIR.

use super::{make, stat};
use crate::{Context, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use mds::control::{MdsControl, MdsPeer, new_uuid};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wire::auth::{ClusterKey, PasswordSalt};
use wire::mds_api::{CsStatus, MdsReply, MdsRequest};
use wire::{MdsId, ROOT};

pub const CLUSTER: &str = "local";
const READY_WITHIN: Duration = Duration::from_secs(60);
const END_WITHIN: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub struct Shape {
    pub mds: u32,
    pub cs: u32,
    pub shards: u16,
    /// `N:M`.
    pub replicas: String,
    /// Of each chunk server.
    pub capacity_bytes: u64,
}

/// One process of the cluster.
struct Service {
    name: String,
    binary: &'static str,
    args: Vec<String>,
}

struct Cluster {
    dir: PathBuf,
    context: Context,
}

impl Cluster {
    fn at(dir: &Path) -> Outcome<Cluster> {
        fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let dir = dir.canonicalize().map_err(|e| format!("{}: {e}", dir.display()))?;
        let context = Context { cluster: Some(CLUSTER.into()), etc: dir.join("etc"), json: false };
        Ok(Cluster { dir, context })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Numbers of the directories `PREFIX1`, `PREFIX2`, … that were made.
    fn numbers(&self, prefix: &str) -> Vec<u32> {
        let made = |n: &u32| self.dir.join(format!("{prefix}{n}")).join("control.json").exists();
        (1..=64).filter(made).collect()
    }

    fn daemon(&self, binary: &'static str, name: String) -> Service {
        let args = vec!["-r".into(), self.path(&name), "--etc".into(), self.path("etc")];
        Service { name, binary, args }
    }

    fn mds(&self) -> Vec<Service> {
        self.numbers("mds").into_iter().map(|n| self.daemon("pstorage-mdsd", format!("mds{n}"))).collect()
    }

    fn cs(&self) -> Vec<Service> {
        self.numbers("cs").into_iter().map(|n| self.daemon("pstorage-csd", format!("cs{n}"))).collect()
    }

    fn mount(&self) -> Service {
        let log = self.path("logs/mount.log");
        let args = ["-c", CLUSTER, &self.path("mnt"), "--etc", &self.path("etc"), "-l", &log, "-f"];
        Service { name: "mount".into(), binary: "pstorage-mount", args: args.map(String::from).to_vec() }
    }

    fn services(&self) -> Vec<Service> {
        self.mds().into_iter().chain(self.cs()).chain([self.mount()]).collect()
    }

    /// The running process of a service, if its command line says it is ours.
    fn pid(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.join("run").join(format!("{name}.pid"))).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = String::from_utf8_lossy(&command).contains(&*self.dir.to_string_lossy());
        (ours && !is_zombie(pid)).then_some(Pid::from_raw(pid))
    }

    fn start(&self, service: &Service) -> Outcome {
        if self.pid(&service.name).is_some() {
            return Ok(());
        }
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let program = own.with_file_name(service.binary);
        if !program.exists() {
            return Err(format!(
                "{} is not there: build all programs (cargo build --release --workspace)",
                program.display()
            ));
        }
        let log = self.dir.join("logs").join(format!("{}.out", service.name));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|e| format!("{}: {e}", log.display()))?;
        let err = out.try_clone().map_err(|e| e.to_string())?;
        let child = Command::new(&program)
            .args(&service.args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let pid_file = self.dir.join("run").join(format!("{}.pid", service.name));
        fs::write(&pid_file, child.id().to_string()).map_err(|e| format!("{}: {e}", pid_file.display()))
    }

    /// Waits for `ready`, watching that the services live.
    fn wait(&self, what: &str, watched: &[Service], mut ready: impl FnMut() -> Outcome<bool>) -> Outcome {
        let deadline = Instant::now() + READY_WITHIN;
        // A process that is just being started has no command line yet: look more than once.
        let mut misses = 0;
        loop {
            let last = ready();
            if let Ok(true) = last {
                return Ok(());
            }
            let gone = watched.iter().find(|s| self.pid(&s.name).is_none());
            misses = if gone.is_some() { misses + 1 } else { 0 };
            if let Some(service) = gone.filter(|_| misses >= 5) {
                return Err(format!("{} ended. It said:\n{}", service.name, self.last_words(&service.name)));
            }
            if Instant::now() > deadline {
                let why = last.err().unwrap_or_default();
                return Err(format!(
                    "{what} within {} s. {why}\nLogs are in {}",
                    READY_WITHIN.as_secs(),
                    self.path("logs")
                ));
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    fn last_words(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join("logs").join(format!("{name}.out"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    fn stop(&self, name: &str) -> Outcome {
        let Some(pid) = self.pid(name) else { return Ok(()) };
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + END_WITHIN;
        while self.pid(name).is_some() {
            if Instant::now() > deadline {
                eprintln!("{name} (process {pid}) does not end; killing it");
                let _ = kill(pid, Signal::SIGKILL);
                std::thread::sleep(Duration::from_millis(200));
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_file(self.dir.join("run").join(format!("{name}.pid")));
        Ok(())
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let at = self.mount_point().to_string_lossy().replace(' ', "\\040");
        mounts.lines().any(|l| l.split(' ').nth(1) == Some(&*at))
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// An address with two free ports in a row, below those the kernel gives to outgoing connections: one of these could hold
/// the port when the cluster starts again.
fn free_pair(taken: &mut Vec<u16>) -> Outcome<SocketAddr> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..200 {
        let port = 10_000 + u16::from_le_bytes(shards::host::random_bytes()) % 10_000;
        if !taken.contains(&port) && !taken.contains(&(port + 1)) && free(port) && free(port + 1) {
            taken.extend([port, port + 1]);
            return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
        }
    }
    Err("no two free ports in a row on 127.0.0.1 between 10000 and 20000".into())
}

/// Makes what is not there yet: keys and the directories of the metadata servers.
fn make_cluster(c: &Cluster, shape: &Shape) -> Outcome {
    for sub in ["etc", "run", "logs", "mnt"] {
        fs::create_dir_all(c.dir.join(sub)).map_err(|e| format!("{}: {e}", c.path(sub)))?;
    }
    if !c.numbers("mds").is_empty() {
        return Ok(());
    }
    let foreign: Vec<String> = fs::read_dir(&c.dir)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !["etc", "run", "logs", "mnt"].contains(&n.as_str()))
        .collect();
    if let Some(entry) = foreign.first() {
        return Err(format!(
            "{} is not empty (it holds '{entry}'): choose an empty directory",
            c.dir.display()
        ));
    }
    let password = crate::random_hex::<16>();
    let key = ClusterKey::from_password(&password, PasswordSalt::with_salt(shards::host::random_bytes()))?;
    super::auth::store_key(&c.context, &key)?;
    let mut taken = Vec::new();
    let mut peers = Vec::new();
    for n in 1..=shape.mds {
        peers.push(MdsPeer::at(MdsId(n.into()), free_pair(&mut taken)?).map_err(|e| e.to_string())?);
    }
    for peer in &peers {
        let dir = c.dir.join(format!("mds{}", peer.id));
        let control = MdsControl::first_quorum(CLUSTER, new_uuid(), peer.id, &peers);
        mds::control::create(&dir, &control).map_err(|e| e.to_string())?;
    }
    c.context.add_to_bs_list(&peers.iter().map(|p| p.addr).collect::<Vec<_>>())
}

pub fn up(dir: &Path, shape: &Shape) -> Outcome {
    if !Path::new("/dev/fuse").exists() {
        return Err(
            "/dev/fuse is not there: load the fuse module (modprobe fuse), or start the container with it"
                .into(),
        );
    }
    let c = Cluster::at(dir)?;
    let began = Instant::now();
    // A mount whose process was killed answers nothing but errors.
    if c.is_mounted() && c.pid("mount").is_none() {
        let _ = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::MNT_DETACH);
    }
    make_cluster(&c, shape)?;
    let mds = c.mds();
    for service in &mds {
        c.start(service)?;
    }
    c.wait("no master metadata server was elected", &mds, || cluster_stat(&c).map(|_| true))?;
    println!("{:>6.2}s  {} metadata servers, a master elected", began.elapsed().as_secs_f64(), mds.len());
    if c.numbers("cs").is_empty() {
        let value = shape.replicas.clone();
        let request = MdsRequest::SetPolicy { file: ROOT, name: "replicas".into(), value, recursive: false };
        c.context.link()?.ask(&request)?;
    }
    for n in c.numbers("cs").len() as u32 + 1..=shape.cs {
        let new = make::NewCs {
            dir: c.dir.join(format!("cs{n}")),
            tier: 0,
            journal_dir: None,
            journal_bytes: Some(u64::from(shape.shards) * (32 << 20)),
            ip: Some([127, 0, 0, 1].into()),
            shards: Some(shape.shards),
            capacity_bytes: Some(shape.capacity_bytes),
        };
        make::make_cs_quietly(&c.context, &new)?;
    }
    let cs = c.cs();
    for service in &cs {
        c.start(service)?;
    }
    c.wait("not all chunk servers registered", &cs, || {
        Ok(cluster_stat(&c)?.cs.iter().filter(|s| s.status == CsStatus::Active).count() >= cs.len())
    })?;
    println!(
        "{:>6.2}s  {} chunk servers of {} shards registered",
        began.elapsed().as_secs_f64(),
        cs.len(),
        shape.shards
    );
    let mount = [c.mount()];
    c.start(&mount[0])?;
    c.wait(
        "the mount was not ready",
        &mount,
        || Ok(c.is_mounted() && fs::read_dir(c.mount_point()).is_ok()),
    )?;
    println!("{:>6.2}s  mounted on {}", began.elapsed().as_secs_f64(), c.mount_point().display());
    Ok(())
}

fn cluster_stat(c: &Cluster) -> Outcome<wire::mds_api::ClusterStat> {
    match c.context.link()?.ask(&MdsRequest::ClusterStat)? {
        MdsReply::Stat(stat) => Ok(*stat),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

pub fn down(dir: &Path) -> Outcome {
    let c = Cluster::at(dir)?;
    // Clients first, so that everything is flushed; then chunk servers, then metadata servers.
    if c.is_mounted()
        && let Err(e) = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::empty())
    {
        eprintln!("{}: {e}; detaching it", c.mount_point().display());
        let _ = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::MNT_DETACH);
    }
    c.stop("mount")?;
    for service in c.cs().iter().chain(&c.mds()) {
        c.stop(&service.name)?;
    }
    if c.is_mounted() {
        let _ = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::MNT_DETACH);
    }
    println!(
        "Stopped. The data stays in {}; start again with: pstorage local up {}",
        c.dir.display(),
        c.dir.display()
    );
    Ok(())
}

pub fn status(dir: &Path, json: bool) -> Outcome {
    let c = Cluster::at(dir)?;
    let rows: Vec<(String, Option<i32>)> =
        c.services().iter().map(|s| (s.name.clone(), c.pid(&s.name).map(Pid::as_raw))).collect();
    if json {
        let services: Vec<_> = rows.iter().map(|(n, p)| serde_json::json!({"name": n, "pid": p})).collect();
        println!(
            "{}",
            serde_json::json!({"services": services, "mounted": c.is_mounted(), "mount": c.mount_point()})
        );
        return Ok(());
    }
    for (name, pid) in &rows {
        println!("{name:<8} {}", pid.map_or("down".into(), |p| format!("process {p}")));
    }
    println!(
        "mount    {} {}",
        c.mount_point().display(),
        if c.is_mounted() { "mounted" } else { "not mounted" }
    );
    if rows.iter().any(|(n, p)| n.starts_with("mds") && p.is_some()) {
        println!();
        stat::stat(&c.context)?;
    }
    Ok(())
}

const DEMO_BYTES: u64 = 256 << 20;
const PIECE: usize = 1 << 20;

pub fn demo(dir: &Path, shape: &Shape, image: Option<&Path>) -> Outcome {
    up(dir, shape)?;
    let c = Cluster::at(dir)?;
    let source = match image {
        Some(path) => path.to_path_buf(),
        None => make_image(&c)?,
    };
    let name = "demo.img";
    let target = c.mount_point().join(name);
    println!("\nStoring {} as {} with replicas {}", source.display(), target.display(), shape.replicas);
    let (stored, write_rate) = store(&source, &target)?;
    println!("  stored and synced at {write_rate:.0} MB/s, SHA-256 {stored}");
    let (read, read_rate) = read_back(&target)?;
    println!("  read back at         {read_rate:.0} MB/s, SHA-256 {read}");
    if stored != read {
        return Err("what was read is not what was stored".into());
    }
    println!("  checksums are equal\n\nWhere its chunks lie:");
    stat::explain(&c.context, &format!("/{name}"))?;
    let d = c.dir.display();
    println!(
        "\nGo on:    use {}; look with\n          pstorage -c {CLUSTER} --etc {d}/etc stat\n          pstorage -c {CLUSTER} --etc {d}/etc check\nStop:     pstorage local down {d}      (start again: pstorage local up {d})",
        c.mount_point().display()
    );
    Ok(())
}

/// A disk image with a real file system if this machine can make one, else with data that doesn't compress.
fn make_image(c: &Cluster) -> Outcome<PathBuf> {
    let path = c.dir.join("logs").join("demo-source.img");
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    if path.exists() {
        return Ok(path);
    }
    let mut file = File::create(&path).map_err(fail)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut piece = vec![0u8; PIECE];
    for _ in 0..DEMO_BYTES / PIECE as u64 {
        for word in piece.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&piece).map_err(fail)?;
    }
    drop(file);
    // mke2fs lies in every Debian's e2fsprogs; its free blocks keep the data above.
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-E", "nodiscard"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match made {
        Ok(status) if status.success() => println!("Made an ext4 disk image of {} MiB", DEMO_BYTES >> 20),
        _ => println!("Made a raw disk image of {} MiB (no mke2fs here)", DEMO_BYTES >> 20),
    }
    Ok(path)
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("  {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.expect("a valid template"));
    bar
}

/// Copies with a progress bar and syncs; checksum and MB/s.
fn store(source: &Path, target: &Path) -> Outcome<(String, f64)> {
    let fail = |p: &Path| {
        let p = p.display().to_string();
        move |e: std::io::Error| format!("{p}: {e}")
    };
    let mut from = File::open(source).map_err(fail(source))?;
    let total = from.metadata().map_err(fail(source))?.len();
    let mut to = File::create(target).map_err(fail(target))?;
    let (bar, mut hash, mut piece, began) = (bar(total), Sha256::new(), vec![0u8; PIECE], Instant::now());
    loop {
        let got = from.read(&mut piece).map_err(fail(source))?;
        if got == 0 {
            break;
        }
        hash.update(&piece[..got]);
        to.write_all(&piece[..got]).map_err(fail(target))?;
        bar.inc(got as u64);
    }
    to.sync_all().map_err(fail(target))?;
    drop(to);
    bar.finish_and_clear();
    Ok((hex(&hash.finalize()), total as f64 / 1e6 / began.elapsed().as_secs_f64()))
}

fn read_back(target: &Path) -> Outcome<(String, f64)> {
    let fail = |e: std::io::Error| format!("{}: {e}", target.display());
    let mut file = File::open(target).map_err(fail)?;
    // Out of the page cache, so that the chunk servers are asked.
    let _ = nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let total = file.metadata().map_err(fail)?.len();
    let (bar, mut hash, mut piece, began) = (bar(total), Sha256::new(), vec![0u8; PIECE], Instant::now());
    loop {
        let got = file.read(&mut piece).map_err(fail)?;
        if got == 0 {
            break;
        }
        hash.update(&piece[..got]);
        bar.inc(got as u64);
    }
    bar.finish_and_clear();
    Ok((hex(&hash.finalize()), total as f64 / 1e6 / began.elapsed().as_secs_f64()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
