//! Real processes for tests: our programs, run and watched, directories that are removed, and known contents.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The directory with all programs, built in the profile of this test.
pub fn programs() -> PathBuf {
    static BUILD: Once = Once::new();
    BUILD.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // With a test among the targets, libraries have the same features as in `cargo test --workspace`, and are not built anew.
        cargo
            .args(["build", "--workspace", "--bins", "--test", "golden"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        // What cargo says of this test's package would have crates built anew that look at it (ring).
        let of_this_test = |name: &std::ffi::OsStr| {
            let name = name.to_string_lossy();
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"]
                .iter()
                .any(|p| name.starts_with(p))
        };
        std::env::vars_os().map(|(name, _)| name).filter(|name| of_this_test(name)).for_each(|name| {
            cargo.env_remove(name);
        });
        assert!(cargo.status().expect("cargo runs").success(), "the programs do not build");
    });
    // target/PROFILE/deps/TEST or target/PROFILE/PROGRAM.
    let own = std::env::current_exe().expect("this program is a file");
    let dir = own.parent().expect("a file is in a directory");
    if dir.ends_with("deps") { dir.parent().expect("target/PROFILE").into() } else { dir.into() }
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

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
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
    // Read while it runs: a pipe that is full would stop it.
    let stdout = read_all(child.stdout.take().expect("a pipe"));
    let stderr = read_all(child.stderr.take().expect("a pipe"));
    while child.try_wait().expect("it can be waited for").is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{shown} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = child.wait().expect("it has ended");
    let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().expect("its output can be read"));
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

pub fn send(signal: &str, pid: u32) {
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

/// Command lines of processes that name `text`, zombies left out.
pub fn processes_naming(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|e| fs::read(e.path().join("cmdline")).ok());
    lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " ")).filter(|l| l.contains(text)).collect()
}

/// The last lines of a log, for the message of a failed test.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    format!("\n--- {}\n{}", path.display(), all[all.len().saturating_sub(lines)..].join("\n"))
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
