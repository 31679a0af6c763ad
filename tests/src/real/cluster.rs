//! Servers and mounts on hosts of their own, made with the administrator's commands.

use super::host::is_running;
use super::{Disk, Host, Line, Port, Switch, parent_dir, sweep, unmount_below};
use crate::processes::{Dir, Ended, log_tail, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Of the cluster.
pub const NAME: &str = "real";
/// Of every cluster made here.
pub const PASSWORD: &str = "the cluster's password";
const MDS_PORT: u16 = 2510;
const JOURNAL: &str = "32M";
/// Of the first chunk server, if it has a disk of its own.
const SMALL_DISK_BYTES: u64 = 768 << 20;
const SMALL_CAPACITY: &str = "512M";
const CAPACITY: &str = "1G";
/// Starting one process, on a machine that has much else to do.
const START: Duration = Duration::from_secs(60);

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub mds: usize,
    pub cs: usize,
    pub clients: usize,
    /// The first chunk server has a small disk of its own, which can be filled.
    pub small_disk: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { mds: 3, cs: 4, clients: 2, small_disk: false }
    }
}

/// A running cluster; replicas 3:2, chunks of 1 MiB. All of it is gone with its value. Services are called `mds1`, `cs1`,
/// `client1` and so on, and so are their hosts; commands are given on the host `admin`.
pub struct Cluster {
    // In the order in which they must go.
    running: Mutex<BTreeMap<String, i32>>,
    /// The disk of `cs1`.
    pub disk: Option<Disk>,
    hosts: BTreeMap<String, Host>,
    pub switch: Switch,
    pub shape: Shape,
    dir: Dir,
}

impl Cluster {
    pub fn new(name: &str, shape: Shape) -> Cluster {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = Dir::new(&format!("real-{name}-{number}"));
        let mut switch = Switch::new(1);
        let mut hosts = BTreeMap::new();
        for name in ["admin".to_string()].into_iter().chain(service_names(&shape)) {
            hosts.insert(name.clone(), Host::new(dir.0.join(&name), &mut switch));
        }
        let mut cluster = Cluster { running: Mutex::default(), disk: None, hosts, switch, shape, dir };
        cluster.make_mds();
        cluster.make_cs();
        for n in 1..=shape.clients {
            fs::create_dir(cluster.mnt(n)).expect("a directory can be made");
            cluster.start(&format!("client{n}"));
        }
        cluster
    }

    fn make_mds(&self) {
        let password = self.password_file();
        fs::write(&password, format!("{PASSWORD}\n")).expect("written");
        let first = self.host("mds1");
        let (ip, dir) = (first.ip.to_string(), first.path("mds"));
        let file = password.to_str().expect("a path of plain characters");
        self.command("mds1", &["make-mds", "-I", "-a", &ip, "-r", &dir, "--password-file", file]).ok();
        self.start("mds1");
        // Each is added as soon as the one before was told to start.
        for n in 2..=self.shape.mds {
            let name = format!("mds{n}");
            self.acquaint(&name);
            let (ip, dir) = (self.host(&name).ip.to_string(), self.host(&name).path("mds"));
            self.command(&name, &["add-mds", "-a", &ip, "-r", &dir]).ok();
            self.start(&name);
        }
        let all: String = (1..=self.shape.mds).map(|n| self.mds_addr(n)).collect();
        let list = self.cluster_file("mds1", "bs.list");
        fs::write(list, all).expect("written");
        // Metadata servers don't need the list, and may be reading their files now.
        for name in self.hosts.keys().filter(|name| !name.starts_with("mds")) {
            self.acquaint(name);
        }
        wait_until("all metadata servers to have joined", START, || {
            self.assert_all_running();
            let stat = self.stat();
            let mds = stat["mds"].as_array().cloned().unwrap_or_default();
            mds.len() == self.shape.mds && mds.iter().all(|m| m["available"] == true && m["voter"] == true)
        });
        self.admin(&["set-attr", "/", "replicas=3:2", "chunk-size=1M"]).ok();
    }

    pub fn password_file(&self) -> PathBuf {
        self.dir.0.join("password")
    }

    fn make_cs(&mut self) {
        if self.shape.small_disk {
            let host = self.host("cs1");
            self.disk = Some(Disk::new(&host.dir.join("image"), &host.dir.join("disk"), SMALL_DISK_BYTES));
        }
        for n in 1..=self.shape.cs {
            let name = format!("cs{n}");
            let (ip, dir) = (self.host(&name).ip.to_string(), self.cs_dir(n));
            let capacity = if n == 1 && self.shape.small_disk { SMALL_CAPACITY } else { CAPACITY };
            let dir = dir.to_str().expect("a path of plain characters");
            let shape = ["--shards", "1", "-s", JOURNAL, "--capacity", capacity];
            self.command(&name, &[&["make-cs", "-a", &ip, "-r", dir], &shape[..]].concat()).ok();
            self.start(&name);
        }
        self.wait_healthy(START);
    }

    fn mds_addr(&self, n: usize) -> String {
        format!("{}:{MDS_PORT}\n", self.host(&format!("mds{n}")).ip)
    }

    fn cluster_file(&self, host: &str, name: &str) -> PathBuf {
        self.host(host).dir.join("etc/clusters").join(NAME).join(name)
    }

    /// Tells a host of the cluster where the metadata servers are, and the cluster of the host.
    fn acquaint(&self, host: &str) {
        let list = "bs.list";
        self.host(host).copy_in(&self.cluster_file("mds1", list), &format!("etc/clusters/{NAME}/{list}"));
        let file = self.password_file();
        let file = file.to_str().expect("a path of plain characters");
        self.command(host, &["auth-node", "--password-file", file]).ok();
    }

    pub fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("there is no host {name}"))
    }

    pub fn service_names(&self) -> Vec<String> {
        service_names(&self.shape)
    }

    pub fn cs_dir(&self, n: usize) -> PathBuf {
        let host = &self.host(&format!("cs{n}")).dir;
        if n == 1 && self.shape.small_disk { host.join("disk/cs") } else { host.join("cs") }
    }

    pub fn mnt(&self, client: usize) -> PathBuf {
        self.host(&format!("client{client}")).dir.join("mnt")
    }

    // Commands.

    /// A command of the administrator, given on a host.
    /// Runs `pstorage` on a host.
    pub fn command(&self, host: &str, args: &[&str]) -> Ended {
        let host = self.host(host);
        host.run("pstorage", &[&["-c", NAME, "--etc", &host.etc()], args].concat())
    }

    pub fn admin(&self, args: &[&str]) -> Ended {
        self.command("admin", args)
    }

    /// The answer of `stat`; null while no master answers.
    pub fn stat(&self) -> serde_json::Value {
        self.json(&["stat"])
    }

    /// What a command says with `--json`; null if it failed.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let ended = self.admin(&[&["--json"], args].concat());
        if ended.code != 0 {
            return serde_json::Value::Null;
        }
        serde_json::from_str(&ended.text).unwrap_or_else(|e| panic!("{args:?}: {e} in {}", ended.text))
    }

    /// Waits until all servers are there and all chunks have all their replicas.
    pub fn wait_healthy(&self, within: Duration) {
        let began = Instant::now();
        loop {
            let stat = self.stat();
            let all = |list: &str, count: usize, good: &dyn Fn(&serde_json::Value) -> bool| {
                stat[list].as_array().is_some_and(|l| l.len() == count && l.iter().all(good))
            };
            let servers = all("mds", self.shape.mds, &|m| m["available"] == true)
                && all("cs", self.shape.cs, &|c| c["status"] == "active");
            if servers && stat["chunks"]["healthy"] == stat["chunks"]["total"] {
                return;
            }
            assert!(began.elapsed() < within, "not healthy within {within:?}: {stat:#}{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Compares all replicas of all chunks, on their disks.
    pub fn check(&self) {
        let ended = self.admin(&["check"]);
        assert!(ended.code == 0, "check: {}{}", ended.text, self.logs());
    }

    /// Number of the master among the metadata servers.
    pub fn master(&self) -> usize {
        let mut master = None;
        wait_until("a master", START, || {
            let stat = self.stat();
            let mds = stat["mds"].as_array().cloned().unwrap_or_default();
            master = mds.iter().find(|m| m["master"] == true).and_then(|m| m["mds"].as_u64());
            master.is_some()
        });
        master.expect("seen above") as usize
    }

    // Processes.

    /// Starts a service; a mount is waited for.
    pub fn start(&self, name: &str) {
        let host = self.host(name);
        let (etc, kind) = (host.etc(), name.trim_end_matches(|c: char| c.is_ascii_digit()));
        let number: usize = name[kind.len()..].parse().expect("services have a number");
        let pid = match kind {
            "mds" => host.start("pstorage-mdsd", &["-r", &host.path("mds"), "--etc", &etc]),
            "cs" => {
                let dir = self.cs_dir(number);
                host.start("pstorage-csd", &["-r", dir.to_str().expect("plain"), "--etc", &etc])
            }
            _ => {
                let (mnt, log) = (host.path("mnt"), host.path("mount.log"));
                host.start("pstorage-mount", &["-c", NAME, &mnt, "--etc", &etc, "-l", &log, "-f"])
            }
        };
        let before = self.running.lock().expect("no panic under this lock").insert(name.into(), pid);
        assert!(before.is_none(), "{name} was started twice");
        if kind == "client" {
            let mnt = self.mnt(number);
            wait_until(&format!("{name} to mount"), START, || {
                let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
                let text = mnt.to_str().expect("plain");
                self.assert_running(name);
                mounts.lines().any(|l| l.split(' ').nth(1) == Some(text))
            });
        }
    }

    fn pid(&self, name: &str) -> Pid {
        let running = self.running.lock().expect("no panic under this lock");
        Pid::from_raw(*running.get(name).unwrap_or_else(|| panic!("{name} was not started")))
    }

    pub fn signal(&self, name: &str, signal: Signal) {
        kill(self.pid(name), signal).unwrap_or_else(|e| panic!("{signal} to {name}: {e}"));
    }

    /// kill -9. The mount point of a client is detached, so that another may mount there.
    pub fn kill(&self, name: &str) {
        self.signal(name, Signal::SIGKILL);
        self.wait_ended(name, START);
        if name.starts_with("client") {
            unmount_below(&self.host(name).dir);
        }
    }

    /// A service is to end by itself.
    pub fn wait_ended(&self, name: &str, within: Duration) {
        let pid = self.pid(name).as_raw();
        wait_until(&format!("{name} to end"), within, || !is_running(pid));
        self.running.lock().expect("no panic under this lock").remove(name);
    }

    fn assert_running(&self, name: &str) {
        let pid = self.pid(name).as_raw();
        assert!(is_running(pid), "{name} ended by itself{}", self.logs());
    }

    /// No service ended by itself.
    pub fn assert_all_running(&self) {
        let names: Vec<String> =
            self.running.lock().expect("no panic under this lock").keys().cloned().collect();
        names.iter().for_each(|name| self.assert_running(name));
    }

    // The network.

    pub fn port(&self, name: &str) -> Port {
        self.host(name).port
    }

    /// What happens from now on to all frames of `from` to `to`; one direction only.
    pub fn line(&self, from: &str, to: &str, line: Line) {
        self.switch.set(self.port(from), self.port(to), line);
    }

    /// Cuts a host off from all others.
    pub fn isolate(&self, name: &str) {
        for other in self.others(name) {
            self.line(name, &other, CUT);
            self.line(&other, name, CUT);
        }
    }

    /// All hosts but `name`.
    pub fn others(&self, name: &str) -> Vec<String> {
        self.hosts.keys().filter(|other| *other != name).cloned().collect()
    }

    pub fn addr(&self, name: &str) -> Ipv4Addr {
        self.host(name).ip
    }

    fn log_of(&self, name: &str) -> PathBuf {
        let host = &self.host(name).dir;
        match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
            "mds" => host.join("mds/logs/mdsd.log"),
            "cs" => self.cs_dir(name[2..].parse().expect("a number")).join("logs/csd.log"),
            _ => host.join("mount.log"),
        }
    }

    /// The last lines of every log, for the message of a failed run.
    pub fn logs(&self) -> String {
        self.service_names().iter().map(|name| log_tail(&self.log_of(name), 15)).collect()
    }

    /// Keeps a copy of all logs beside the cluster's directory, and says where.
    pub fn keep_logs(&self) -> PathBuf {
        let to = parent_dir().join(format!("logs-{}", std::process::id()));
        let _ = fs::create_dir_all(&to);
        for name in self.service_names() {
            let _ = fs::copy(self.log_of(&name), to.join(format!("{name}.log")));
        }
        let _ = fs::write(to.join("events"), self.admin(&["get-event"]).text);
        let _ = fs::write(to.join("stat"), self.admin(&["stat"]).text);
        to
    }
}

/// Nothing passes.
pub const CUT: Line = Line { cut: true, delay: Duration::ZERO, loss_permille: 0, bytes_per_s: None };

fn service_names(shape: &Shape) -> Vec<String> {
    let named = |kind: &'static str, count| (1..=count).map(move |n| format!("{kind}{n}"));
    named("mds", shape.mds).chain(named("cs", shape.cs)).chain(named("client", shape.clients)).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.switch.heal();
        if std::thread::panicking() {
            eprintln!("the logs are kept in {}", self.keep_logs().display());
        }
        let running = self.running.lock().unwrap_or_else(|e| e.into_inner());
        for pid in running.values() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let began = Instant::now();
        while running.values().any(|pid| is_running(*pid)) && began.elapsed() < START {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.disk = None;
        unmount_below(&self.dir.0);
    }
}
