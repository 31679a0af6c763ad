//! What tests with real processes on one machine share: clusters made by `pstorage local`, and loads with known content.
#![allow(dead_code)] // Each test file uses a part of it.

pub use pstorage_tests::processes::*;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
        log_tail(&self.dir.0.join(file), 12)
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
