//! `local up|status|down|demo DIR`: a whole cluster on this machine, all of it below DIR, for evaluation and tests.
//!
//! Invariants:
//! - nothing is written outside DIR, and no port is fixed: ports are chosen free when the cluster is made;
//! - a process is only ever signalled after its command line was seen to name its directory below DIR.

use super::{explain, make, services, stat};
use crate::conf::Conf;
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
use wire::mds_api::{CsStatus, MdsReply, MdsRequest};
use wire::{MdsId, ROOT};

pub const CLUSTER: &str = "local";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What the journal of a metadata server takes.
const MDS_BYTES: u64 = 64 << 20;
const END_WITHIN: Duration = Duration::from_secs(15);

/// What was asked for; a cluster that exists keeps what it has.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub mds: Option<u32>,
    pub cs: Option<u32>,
    pub shards: Option<u16>,
    /// Normal and minimum.
    pub replicas: Option<(u8, u8)>,
    /// Of each chunk server.
    pub capacity_bytes: Option<u64>,
}

const MDS: u32 = 3;
const CS: u32 = 3;
const SHARDS: u16 = 2;
const REPLICAS: (u8, u8) = (3, 2);
const CAPACITY_BYTES: u64 = 10 << 30;
const SHARD_JOURNAL_BYTES: u64 = 32 << 20;
/// What `up` makes in an empty directory, beside the directories of the servers.
const PARTS: [&str; 4] = ["etc", "run", "logs", "mnt"];

impl Shape {
    fn shards(&self) -> u16 {
        self.shards.unwrap_or(SHARDS)
    }

    /// Replicas of a new cluster with `cs` chunk servers; an error if they can't have places.
    fn replicas_for(&self, cs: u32) -> Outcome<(u8, u8)> {
        match self.replicas {
            Some((normal, _)) if u32::from(normal) > cs => Err(format!(
                "{normal} replicas need {normal} chunk servers, and there would be {cs}: raise --cs, or ask for fewer \
                 with --replicas"
            )),
            Some(asked) => Ok(asked),
            None if u32::from(REPLICAS.0) > cs => Ok((cs as u8, 1)),
            None => Ok(REPLICAS),
        }
    }

    fn journals_bytes(&self) -> u64 {
        u64::from(self.shards()) * SHARD_JOURNAL_BYTES
    }
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
        let dir = dir.canonicalize().map_err(shards::text::at(&dir))?;
        let context = Context { cluster: Some(CLUSTER.into()), etc: dir.join("etc"), json: false };
        Ok(Cluster { dir, context })
    }

    /// The cluster that was made in `dir`.
    fn existing(dir: &Path) -> Outcome<Cluster> {
        if let Ok(c) = Cluster::at(dir)
            && c.is_made()
        {
            return Ok(c);
        }
        let dir = dir.display();
        Err(format!(
            "there is no local cluster in {dir}: 'pstorage local up {dir}' makes one in an empty directory"
        ))
    }

    /// bs.list is the last thing that making a cluster writes.
    fn is_made(&self) -> bool {
        !self.numbers("mds").is_empty() && self.context.bs_list().is_ok_and(|known| !known.is_empty())
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

    /// Chunk servers without those that were removed from the cluster (rm-cs).
    fn remaining_cs(&self) -> Outcome<Vec<Service>> {
        let stat = self.stat()?;
        let remains = |n: &u32| {
            let card = engine::control::read(&self.dir.join(format!("cs{n}")));
            let dropped = |id| stat.cs.iter().any(|cs| cs.cs == id && cs.status == CsStatus::Dropped);
            !card.is_ok_and(|card| dropped(card.id))
        };
        let numbers = self.numbers("cs").into_iter().filter(remains);
        Ok(numbers.map(|n| self.daemon("pstorage-csd", format!("cs{n}"))).collect())
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

    /// Whether a service that was started is no more. One that is just being started has no command line yet.
    fn has_ended(&self, name: &str) -> bool {
        let pid = fs::read_to_string(self.dir.join("run").join(format!("{name}.pid"))).unwrap_or_default();
        let Ok(pid) = pid.trim().parse::<i32>() else { return true };
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return true };
        is_zombie(pid) || (!command.is_empty() && self.pid(name).is_none())
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
        let log = self.out_file(&service.name);
        let out = File::create(&log).map_err(shards::text::at(&log))?;
        let err = out.try_clone().map_err(|e| e.to_string())?;
        let child = Command::new(&program)
            .args(&service.args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(shards::text::at(&program))?;
        let pid_file = self.dir.join("run").join(format!("{}.pid", service.name));
        fs::write(&pid_file, child.id().to_string()).map_err(shards::text::at(&pid_file))
    }

    /// The state of the cluster now, without waiting for one that does not answer.
    fn stat(&self) -> Outcome<wire::mds_api::ClusterStat> {
        match self.context.link()?.hasty().ask(&MdsRequest::ListServices)? {
            MdsReply::Stat(stat) => Ok(*stat),
            _ => Err("unexpected answer of the metadata server".into()),
        }
    }

    /// Waits for `ready`, watching that the services live.
    fn wait(&self, what: &str, watched: &[Service], mut ready: impl FnMut() -> Outcome<bool>) -> Outcome {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let last = ready();
            if let Ok(true) = last {
                return Ok(());
            }
            if let Some(service) = watched.iter().find(|s| self.has_ended(&s.name)) {
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
        let text = fs::read_to_string(self.out_file(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// What a service says outside its log, since its last start.
    fn out_file(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.out"))
    }

    /// Whether its processes may be stopped by this user.
    fn check_ours(&self) -> Outcome {
        let services = self.services();
        let running = services.iter().filter_map(|s| Some((&s.name, self.pid(&s.name)?)));
        for (name, pid) in running {
            if kill(pid, None) == Err(nix::errno::Errno::EPERM) {
                return Err(format!(
                    "{name} (process {pid}) belongs to another user: run this as root, or as who started the cluster. Nothing was stopped"
                ));
            }
        }
        Ok(())
    }

    /// Whether it ran.
    fn stop(&self, name: &str) -> bool {
        let Some(pid) = self.pid(name) else { return false };
        // One that was stopped (SIGSTOP) could not hear of it.
        let _ = kill(pid, Signal::SIGCONT);
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
        true
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

/// Refuses a directory that holds anything but a local cluster.
fn check_empty(c: &Cluster) -> Outcome {
    if !c.numbers("mds").is_empty() {
        return Err(format!(
            "{} holds a cluster that was only half made: remove it and start again",
            c.dir.display()
        ));
    }
    mds::control::check_free(&c.dir).map_err(|e| e.to_string())
}

/// Makes a cluster in an empty directory, or leaves it empty.
fn make_cluster(c: &Cluster, shape: &Shape) -> Outcome {
    check_empty(c)?;
    let cs = shape.cs.unwrap_or(CS);
    shape.replicas_for(cs)?;
    check_shape_fits(c, shape, cs)?;
    make_parts(c, shape.mds.unwrap_or(MDS)).inspect_err(|_| {
        let servers = (1..=15).map(|n| format!("mds{n}"));
        for part in PARTS.map(String::from).into_iter().chain(servers) {
            let _ = fs::remove_dir_all(c.dir.join(part)); // The directory was empty before.
        }
    })
}

/// Before anything is made: a file system that can hold it.
fn check_shape_fits(c: &Cluster, shape: &Shape, cs: u32) -> Outcome {
    if !shards::host::supports_direct_io(&c.dir).map_err(shards::text::at(&c.dir))? {
        return Err(mds::control::ControlError::NoDirectIo { dir: c.dir.clone() }.to_string());
    }
    let journals = u64::from(cs) * shape.journals_bytes() + u64::from(shape.mds.unwrap_or(MDS)) * MDS_BYTES;
    make::check_room(&c.dir, journals, shape.capacity_bytes).map(|_| ())
}

/// Keys and the directories of the metadata servers.
fn make_parts(c: &Cluster, mds: u32) -> Outcome {
    for sub in PARTS {
        fs::create_dir_all(c.dir.join(sub)).map_err(shards::text::at(&c.path(sub)))?;
    }
    let password = crate::random_hex::<16>();
    let (foundation, credentials) = super::auth::found(CLUSTER, &password, None)?;
    super::auth::store_key(&c.context, &credentials)?;
    let mut taken = Vec::new();
    let mut peers = Vec::new();
    for n in 1..=mds {
        peers.push(MdsPeer::at(MdsId(n.into()), free_pair(&mut taken)?).map_err(|e| e.to_string())?);
    }
    for peer in &peers {
        let dir = c.dir.join(format!("mds{}", peer.id));
        let control = MdsControl::first_quorum(CLUSTER, new_uuid(), peer.id, &peers);
        mds::control::create(&dir, &control, Some(&foundation)).map_err(|e| e.to_string())?;
        services::register(&c.context, &dir)?;
    }
    c.context.add_to_bs_list(&peers.iter().map(|p| p.addr).collect::<Vec<_>>())
}

/// A cluster that exists is not changed by being started again.
fn check_unchanged(c: &Cluster, shape: &Shape) -> Outcome {
    let mds = c.numbers("mds").len() as u32;
    match shape.mds {
        Some(asked) if asked != mds => Err(format!(
            "the cluster in {} has {mds} metadata servers; --mds is for a new one",
            c.dir.display()
        )),
        _ => Ok(()),
    }
}

pub fn up(dir: &Path, shape: &Shape) -> Outcome {
    client::fuse::device_is_there()?;
    fs::create_dir_all(dir).map_err(shards::text::at(dir))?;
    let c = Cluster::at(dir)?;
    if c.is_made() {
        check_unchanged(&c, shape)?;
    } else {
        make_cluster(&c, shape)?;
    }
    start_all(&c, shape).map_err(|why| {
        format!("{why}\nWhat runs goes on; stop it with: pstorage local down {}", c.dir.display())
    })
}

fn start_all(c: &Cluster, shape: &Shape) -> Outcome {
    for sub in PARTS {
        // A mount point whose process was killed can't even be looked at.
        let _ = fs::create_dir(c.dir.join(sub));
    }
    let began = Instant::now();
    // A mount whose process was killed answers nothing but errors.
    if c.is_mounted() && c.pid("mount").is_none() {
        let _ = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::MNT_DETACH);
    }
    let mds = c.mds();
    for service in &mds {
        c.start(service)?;
    }
    c.wait("no master metadata server was elected", &mds, || c.stat().map(|_| true))?;
    println!("{:>6.2}s  {} metadata servers, a master elected", began.elapsed().as_secs_f64(), mds.len());
    let have = c.numbers("cs").len() as u32;
    // Those of a new cluster; of an older one no more than were asked for.
    let wanted = if have == 0 { shape.cs.unwrap_or(CS) } else { shape.cs.unwrap_or(have) };
    if have == 0 {
        let (normal, minimum) = shape.replicas_for(wanted)?;
        // All servers stand on one host: a disk is all that can fail by itself.
        let attributes = [("replicas", format!("{normal}:{minimum}")), ("failure-domain", "disk".into())];
        for (name, value) in attributes {
            let request = MdsRequest::SetPolicy { file: ROOT, name: name.into(), value, recursive: false };
            c.context.link()?.ask(&request)?;
        }
    } else if let Some((normal, minimum)) = shape.replicas {
        let p = c.stat()?.default_policy;
        if (p.normal, p.minimum) != (normal, minimum) {
            return Err(format!(
                "the cluster has replicas {}:{}; --replicas is for a new one. Change them with: pstorage -c {CLUSTER} \
                 --etc {} set-attr / replicas={normal}:{minimum}",
                p.normal,
                p.minimum,
                c.context.etc.display()
            ));
        }
    }
    for n in have + 1..=wanted {
        let left = u64::from(wanted - n) * shape.journals_bytes();
        let room = make::check_room(&c.dir, left + shape.journals_bytes(), shape.capacity_bytes)?;
        let new = make::NewCs {
            dir: c.dir.join(format!("cs{n}")),
            tier: 0,
            location: None,
            journal_dir: None,
            journal_bytes: Some(shape.journals_bytes()),
            cache_dir: None,
            cache_bytes: None,
            ip: Some([127, 0, 0, 1].into()),
            shards: Some(shape.shards()),
            capacity_bytes: Some(shape.capacity_bytes.unwrap_or(CAPACITY_BYTES.min(room))),
        };
        make::make_cs_quietly(&c.context, &new)?;
    }
    let cs = c.remaining_cs()?;
    for service in &cs {
        c.start(service)?;
    }
    c.wait("not all chunk servers registered", &cs, || {
        Ok(c.stat()?.cs.iter().filter(|s| s.status == CsStatus::Active).count() >= cs.len())
    })?;
    println!("{:>6.2}s  {} chunk servers registered", began.elapsed().as_secs_f64(), cs.len());
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

pub fn down(dir: &Path) -> Outcome {
    let c = Cluster::existing(dir)?;
    c.check_ours()?;
    let mut ran = c.is_mounted();
    // Clients first, so that everything is flushed; then chunk servers, then metadata servers.
    if c.is_mounted()
        && let Err(e) = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::empty())
    {
        eprintln!("{}: {e}; detaching it", c.mount_point().display());
        let _ = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::MNT_DETACH);
    }
    ran |= c.stop("mount");
    for service in c.cs().iter().chain(&c.mds()) {
        ran |= c.stop(&service.name);
    }
    if c.is_mounted() {
        let _ = nix::mount::umount2(&c.mount_point(), nix::mount::MntFlags::MNT_DETACH);
    }
    println!(
        "{}. The data stays in {}; start again with: pstorage local up {}",
        if ran { "Stopped" } else { "Nothing was running" },
        c.dir.display(),
        c.dir.display()
    );
    Ok(())
}

pub fn status(dir: &Path, json: bool) -> Outcome {
    let c = Cluster::existing(dir)?;
    let rows: Vec<(String, Option<i32>)> =
        c.services().iter().map(|s| (s.name.clone(), c.pid(&s.name).map(Pid::as_raw))).collect();
    if json {
        let services: Vec<_> = rows.iter().map(|(n, p)| serde_json::json!({"name": n, "pid": p})).collect();
        let all = rows.iter().all(|(_, pid)| pid.is_some()) && c.is_mounted();
        return crate::print_json(&serde_json::json!({
            "running": all, "services": services, "mounted": c.is_mounted(), "mount": c.mount_point(),
        }));
    }
    for (name, pid) in &rows {
        let state = pid.map_or("down".into(), |p| format!("process {p}"));
        let mounted = if c.is_mounted() { "mounted" } else { "not mounted" };
        match name.as_str() {
            "mount" => println!("{name:<8} {state}, {} {mounted}", c.mount_point().display()),
            _ => println!("{name:<8} {state}"),
        }
    }
    if rows.iter().any(|(n, p)| n.starts_with("mds") && p.is_some()) {
        println!();
        stat::stat(&c.context, &Conf::default(), false)?;
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
    let p = c.stat()?.default_policy;
    println!(
        "\nStoring {} as {} with replicas {}:{}",
        source.display(),
        target.display(),
        p.normal,
        p.minimum
    );
    let (stored, write_rate) = store(&source, &target)?;
    println!("  stored and synced at {write_rate:.0} MB/s, SHA-256 {stored}");
    let (read, read_rate) = read_back(&target)?;
    println!("  read back at         {read_rate:.0} MB/s, SHA-256 {read}");
    if stored != read {
        return Err("what was read is not what was stored".into());
    }
    println!("  checksums are equal\n\nWhere its chunks lie:");
    explain::explain(&c.context, &format!("/{name}"))?;
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
    let fail = shards::text::at(&path);
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
    let mut from = File::open(source).map_err(shards::text::at(source))?;
    let total = from.metadata().map_err(shards::text::at(source))?.len();
    let mut to = File::create(target).map_err(shards::text::at(target))?;
    let (bar, mut hash, mut piece, began) = (bar(total), Sha256::new(), vec![0u8; PIECE], Instant::now());
    loop {
        let got = from.read(&mut piece).map_err(shards::text::at(source))?;
        if got == 0 {
            break;
        }
        hash.update(&piece[..got]);
        to.write_all(&piece[..got]).map_err(shards::text::at(target))?;
        bar.inc(got as u64);
    }
    to.sync_all().map_err(shards::text::at(target))?;
    drop(to);
    bar.finish_and_clear();
    Ok((hex(&hash.finalize()), total as f64 / 1e6 / began.elapsed().as_secs_f64()))
}

fn read_back(target: &Path) -> Outcome<(String, f64)> {
    let fail = shards::text::at(&target);
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
