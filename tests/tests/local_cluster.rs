//! A whole cluster of real processes with a real mount: `pstorage local`, kill -9, and what must survive.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The directory with all programs, built in the profile of this test.
fn programs() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--workspace", "--bins"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the programs do not build");
    let test = std::env::current_exe().expect("this test is a file");
    test.ancestors().nth(2).expect("target/PROFILE/deps/test").to_path_buf()
}

/// A cluster below a directory of its own; stopped and removed at the end, also of a failed test.
struct Cluster {
    programs: PathBuf,
    dir: PathBuf,
}

impl Cluster {
    fn new(name: &str) -> Cluster {
        let programs = programs();
        let dir = programs.join("cluster-tests").join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Cluster { programs, dir }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(self.programs.join("pstorage")).args(args).output().expect("pstorage runs")
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "pstorage {args:?}:\n{text}{errors}{}", self.logs());
        text.into_owned()
    }

    /// The last lines of every log, for the message of a failed test.
    fn logs(&self) -> String {
        let mut all = String::new();
        for file in [
            "cs1/logs/csd.log",
            "cs2/logs/csd.log",
            "cs3/logs/csd.log",
            "mds1/logs/mdsd.log",
            "logs/mount.log",
        ] {
            let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            all += &format!("\n--- {file}\n{}", lines[lines.len().saturating_sub(10)..].join("\n"));
        }
        all
    }

    fn dir(&self) -> &str {
        self.dir.to_str().expect("a path of plain characters")
    }

    fn up(&self) {
        self.ok(&["local", "up", self.dir(), "--capacity-gb", "2"]);
    }

    fn check(&self) {
        let etc = self.dir.join("etc");
        self.ok(&["-c", "local", "--etc", etc.to_str().expect("plain"), "check"]);
    }

    fn mnt(&self, name: &str) -> PathBuf {
        self.dir.join("mnt").join(name)
    }

    /// kill -9 of a service started by `local up`.
    fn kill(&self, name: &str) {
        let pid =
            fs::read_to_string(self.dir.join("run").join(format!("{name}.pid"))).expect("it was started");
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().expect("kill runs").success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run(&["local", "down", self.dir()]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Bytes that differ in every block and with every seed.
fn pattern(seed: u64, blocks: usize) -> Vec<u8> {
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

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(bytes).expect("written");
    file.sync_all().expect("synced");
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

#[test]
fn a_cluster_stores_files_and_survives_kill_9() {
    let c = Cluster::new("kill9");
    c.up();

    // Names and small things.
    fs::create_dir(c.mnt("d")).unwrap();
    fs::write(c.mnt("d/small"), b"hello").unwrap();
    assert_eq!(fs::read(c.mnt("d/small")).unwrap(), b"hello");
    fs::rename(c.mnt("d/small"), c.mnt("d/moved")).unwrap();
    assert!(!c.mnt("d/small").exists());
    std::os::unix::fs::symlink("moved", c.mnt("d/link")).unwrap();
    assert_eq!(fs::read(c.mnt("d/link")).unwrap(), b"hello");
    assert!(fs::remove_dir(c.mnt("d")).is_err(), "not empty");

    let image = pattern(1, 4096);
    write_synced(&c.mnt("image"), &image);
    assert!(read(&c.mnt("image")) == image, "what was read is not what was written");
    c.check();

    // kill -9 of a chunk server in the middle of writes: they go on, and nothing acknowledged is lost.
    let file = File::create(c.mnt("under-fire")).unwrap();
    let killed = AtomicBool::new(false);
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            c.kill("cs2");
            killed.store(true, Ordering::SeqCst);
        });
        let began = Instant::now();
        let mut n = 0u64;
        while began.elapsed() < Duration::from_secs(3) || !killed.load(Ordering::SeqCst) {
            let one = Instant::now();
            file.write_all_at(&pattern(100 + n % 64, 16), n % 64 * 65536).expect("writes go on");
            file.sync_data().expect("syncs go on");
            longest = longest.max(one.elapsed());
            n += 1;
        }
        // A whole last round, so that the content is known.
        for n in 0..64 {
            file.write_all_at(&pattern(100 + n, 16), n * 65536).expect("writes go on");
        }
    });
    file.sync_all().unwrap();
    drop(file);
    println!("longest write with sync while a chunk server was killed: {longest:?}");
    assert!(longest < Duration::from_secs(5), "a write stalled for {longest:?}{}", c.logs());
    let got = read(&c.mnt("under-fire"));
    for n in 0..64 {
        assert!(got[n * 65536..(n + 1) * 65536] == pattern(100 + n as u64, 16), "piece {n} differs");
    }

    // It comes back and is caught up.
    c.up();
    let deadline = Instant::now() + Duration::from_secs(60);
    let etc = c.dir.join("etc");
    loop {
        let stat = c.ok(&["-c", "local", "--etc", etc.to_str().unwrap(), "--json", "stat"]);
        let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
        if stat["chunks"]["healthy"] == stat["chunks"]["total"] {
            break;
        }
        assert!(Instant::now() < deadline, "not healthy again: {}{}", stat["chunks"], c.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
    c.check();

    // Everything at once.
    let synced = pattern(7, 700);
    write_synced(&c.mnt("synced"), &synced);
    for service in ["mount", "cs1", "cs2", "cs3", "mds1", "mds2", "mds3"] {
        c.kill(service);
    }
    c.up();
    assert!(read(&c.mnt("synced")) == synced, "synced data was lost");
    assert!(read(&c.mnt("image")) == image, "older data was lost");
    assert_eq!(fs::read(c.mnt("d/moved")).unwrap(), b"hello");
    c.check();

    c.ok(&["local", "down", c.dir()]);
    let left = Command::new("pgrep").args(["-f", c.dir()]).output();
    if let Ok(left) = left {
        let pids = String::from_utf8_lossy(&left.stdout).into_owned();
        assert_eq!(pids.trim(), "", "processes are left");
    }
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(c.dir()), "a mount is left");
}
