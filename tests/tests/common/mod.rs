//! What tests with real processes share: the programs, clusters made by `pstorage local`, and loads with known content.
#![allow(dead_code)] // Each test file uses a part of it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// The directory with all programs, built in the profile of this test.
pub fn programs() -> PathBuf {
    static BUILD: Once = Once::new();
    BUILD.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "--workspace", "--bins"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo runs").success(), "the programs do not build");
    });
    let test = std::env::current_exe().expect("this test is a file");
    test.ancestors().nth(2).expect("target/PROFILE/deps/test").to_path_buf()
}

/// A directory of its own below `target/`, on the same file system as the sources; removed at the end.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let dir = programs().join("cluster-tests").join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory can be made");
        Dir(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path of plain characters").into()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a program ended, and all it said.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub text: String,
    pub took: Duration,
}

/// Runs a program of ours to its end. One that does not end within a minute has failed.
pub fn run(program: &str, args: &[&str]) -> Ended {
    run_command(Command::new(programs().join(program)).args(args))
}

pub fn run_command(command: &mut Command) -> Ended {
    let began = Instant::now();
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("PSTORAGE_NAME")
        .env_remove("PSTORAGE_ETC")
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    while child.try_wait().expect("it can be waited for").is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{shown} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its output can be read");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Ended { code: status.code().unwrap_or(-1), text, took: began.elapsed() }
}

impl Ended {
    /// It failed as programs for people fail: with a message that holds all `parts`, and no trace of its inside.
    pub fn refused(&self, parts: &[&str]) -> &Ended {
        assert!(self.code > 0, "should have failed: {}", self.text);
        assert!(!self.text.contains("panicked") && !self.text.contains("RUST_BACKTRACE"), "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "'{part}' is not in:\n{}", self.text);
        }
        self
    }

    pub fn ok(&self) -> &str {
        assert!(self.code == 0, "exit code {}:\n{}", self.code, self.text);
        &self.text
    }
}

/// A free port with a free one above it. Nobody holds them: somebody may take them before you do.
pub fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = first.local_addr().expect("bound").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

/// A process that is killed with the value that owns it.
pub struct Running(pub Child);

impl Running {
    pub fn start(program: &str, args: &[&str]) -> Running {
        let child = Command::new(programs().join(program))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        Running(child)
    }

    pub fn signal(&self, signal: &str) {
        send(signal, self.0.id());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "kill {signal} {pid}");
}

pub fn wait_until(what: &str, within: Duration, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A cluster below a directory of its own; stopped and removed at the end, also of a failed test.
pub struct Cluster {
    pub dir: Dir,
}

impl Cluster {
    pub fn new(name: &str) -> Cluster {
        Cluster { dir: Dir::new(name) }
    }

    pub fn root(&self) -> &str {
        self.dir.0.to_str().expect("a path of plain characters")
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let ended = run("pstorage", args);
        assert!(ended.code == 0, "pstorage {args:?}:\n{}{}", ended.text, self.logs());
        ended.text
    }

    /// A command of the cluster's administrator.
    pub fn admin(&self, args: &[&str]) -> String {
        let etc = self.dir.path("etc");
        self.ok(&[&["-c", "local", "--etc", &etc], args].concat())
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.admin(&[&["--json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text}"))
    }

    /// Starts it, making it of small parts if it isn't there.
    pub fn up(&self) {
        self.up_with(&["--capacity", "1G"]);
    }

    pub fn up_with(&self, args: &[&str]) {
        self.ok(&[&["local", "up", self.root()], args].concat());
    }

    pub fn down(&self) {
        self.ok(&["local", "down", self.root()]);
    }

    pub fn check(&self) {
        self.admin(&["check"]);
    }

    pub fn mnt(&self, name: &str) -> PathBuf {
        self.dir.0.join("mnt").join(name)
    }

    pub fn pid(&self, name: &str) -> u32 {
        let file = self.dir.0.join("run").join(format!("{name}.pid"));
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.trim().parse().expect("a process number")
    }

    /// Sends a service started by `local up` a signal such as `-9`.
    pub fn signal(&self, name: &str, signal: &str) {
        send(signal, self.pid(name));
    }

    pub fn kill(&self, name: &str) {
        self.signal(name, "-9");
    }

    /// Waits until every chunk has all its replicas, and all servers are there.
    pub fn wait_healthy(&self) {
        let mut last = serde_json::Value::Null;
        let began = Instant::now();
        loop {
            let stat = self.json(&["stat"]);
            let all = |list: &str, good: &dyn Fn(&serde_json::Value) -> bool| {
                stat[list].as_array().is_some_and(|l| l.iter().all(good))
            };
            let servers = all("mds", &|m| m["available"] == true)
                && all("cs", &|c| c["status"] == "active" || c["status"] == "dropped");
            if servers && stat["chunks"]["healthy"] == stat["chunks"]["total"] {
                return;
            }
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(60), "not healthy again: {last:#}{}", self.logs());
            last = stat;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The number of the master among the metadata servers.
    pub fn master(&self) -> u64 {
        let stat = self.json(&["stat"]);
        let mds = stat["mds"].as_array().expect("a list").clone();
        mds.iter().find(|m| m["master"] == true).and_then(|m| m["mds"].as_u64()).expect("there is a master")
    }

    /// The last lines of every log, for the message of a failed test.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for n in 1..=3 {
            all += &self.log(&format!("cs{n}/logs/csd.log"));
            all += &self.log(&format!("mds{n}/logs/mdsd.log"));
        }
        all + &self.log("logs/mount.log")
    }

    fn log(&self, file: &str) -> String {
        let text = fs::read_to_string(self.dir.0.join(file)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("\n--- {file}\n{}", lines[lines.len().saturating_sub(12)..].join("\n"))
    }

    /// Nothing of the cluster runs or is mounted.
    pub fn assert_gone(&self) {
        let left = processes_naming(self.root());
        assert!(left.is_empty(), "processes are left: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(self.root()), "a mount is left");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let etc = self.dir.path("etc");
            for command in ["stat", "get-event"] {
                let ended = run("pstorage", &["-c", "local", "--etc", &etc, command]);
                eprintln!("--- {command}\n{}", ended.text);
            }
            eprintln!("{}", self.logs());
        }
        run("pstorage", &["local", "down", self.root()]);
    }
}

/// Command lines of processes that name `text`, zombies left out.
fn processes_naming(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|e| fs::read(e.path().join("cmdline")).ok());
    lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " ")).filter(|l| l.contains(text)).collect()
}

/// Bytes that differ in every block and with every seed.
pub fn pattern(seed: u64, blocks: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks * 4096);
    for block in 0..blocks as u64 {
        let mut x = (seed << 32 | block).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..512 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            out.extend(x.to_le_bytes());
        }
    }
    out
}

pub fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(bytes).expect("written");
    file.sync_all().expect("synced");
}

pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

/// A file that is written piece by piece, each piece synced, while something happens to the cluster.
pub struct Load {
    file: Option<File>,
    /// The value each piece was last acknowledged with; 0: none.
    pieces: Vec<u64>,
    next: u64,
    pub longest: Duration,
}

/// Pieces of a load, and blocks of a piece.
const PIECES: u64 = 64;
const PIECE_BLOCKS: usize = 4;

impl Load {
    pub fn new(path: &Path) -> Load {
        let file = File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Load { file: Some(file), pieces: vec![0; PIECES as usize], next: 1, longest: Duration::ZERO }
    }

    /// Writes and syncs the next piece; it must succeed.
    pub fn step(&mut self) {
        use std::os::unix::fs::FileExt;
        let (value, at) = (self.next, self.next % PIECES);
        let began = Instant::now();
        let offset = at * (PIECE_BLOCKS * 4096) as u64;
        let file = self.file.as_ref().expect("the load was not closed");
        file.write_all_at(&pattern(value, PIECE_BLOCKS), offset).expect("writes go on");
        file.sync_data().expect("syncs go on");
        self.longest = self.longest.max(began.elapsed());
        self.pieces[at as usize] = value;
        self.next += 1;
    }

    pub fn run_for(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.step();
        }
    }

    /// Gives the file's lease back: that of a client that is killed runs on for a while.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// Goes on with a file that was closed.
    pub fn reopen(&mut self, path: &Path) {
        let file = fs::OpenOptions::new().write(true).open(path);
        self.file = Some(file.unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }

    /// Reads everything back: what was acknowledged is there.
    pub fn verify(&self, path: &Path) {
        let got = read(path);
        for (at, value) in self.pieces.iter().enumerate().filter(|(_, value)| **value != 0) {
            let from = at * PIECE_BLOCKS * 4096;
            let piece = &got[from..from + PIECE_BLOCKS * 4096];
            assert!(piece == pattern(*value, PIECE_BLOCKS), "piece {at} does not hold value {value}");
        }
    }
}
