//! `pstorage check-flush` as an administrator runs it: a server, a client that is cut off, and drives that lose data.

use crate::common::{Dir, Ended, Running, free_ports, run, wait_until};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const LOST: i32 = 3;

struct Bench {
    dir: Dir,
    addr: String,
    server: Option<Running>,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let dir = Dir::new(name);
        fs::create_dir(dir.0.join("disk")).unwrap();
        let mut bench = Bench { dir, addr: format!("127.0.0.1:{}", free_ports()), server: None };
        bench.start_server();
        bench
    }

    fn start_server(&mut self) {
        let records = self.dir.path("records");
        let args = ["check-flush", "-l", &self.addr, "--records", &records];
        self.server = Some(Running::start("pstorage", &args));
        wait_until("the server listens", Duration::from_secs(10), || {
            std::net::TcpStream::connect(&self.addr).is_ok()
        });
    }

    fn args<'a>(&'a self, disk: &'a str) -> Vec<&'a str> {
        vec!["check-flush", "-s", &self.addr, "-d", disk, "-t", "2", "--size", "64K"]
    }

    fn client(&self, more: &[&str]) -> Ended {
        run("pstorage", &[&self.args(&self.dir.path("disk"))[..], more].concat())
    }

    /// Writes until enough is acknowledged, then is cut off with kill -9.
    fn write_and_die(&self) -> u64 {
        let disk = self.dir.path("disk");
        let client = Running::start("pstorage", &self.args(&disk));
        wait_until("blocks are acknowledged", Duration::from_secs(30), || {
            self.recorded().iter().all(|c| *c > 40)
        });
        drop(client);
        std::thread::sleep(Duration::from_millis(300)); // What it has sent is recorded.
        self.recorded().iter().sum()
    }

    /// By thread, of the run that is not compared yet.
    fn recorded(&self) -> Vec<u64> {
        let text = fs::read(self.dir.0.join("records")).unwrap_or_default();
        let Ok(records) = serde_json::from_slice::<serde_json::Value>(&text) else { return vec![0] };
        let mut runs = records["runs"].as_object().unwrap().values();
        let open = runs.rfind(|r| r["done"] == false);
        open.map_or(vec![0], |r| {
            r["acknowledged"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
        })
    }

    fn file(&self, thread: u32) -> std::path::PathBuf {
        self.dir.0.join(format!("disk/check-flush.{thread:03}"))
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.0.join("disk")).unwrap().count()
    }
}

#[test]
fn a_drive_that_keeps_its_word_passes_after_the_client_was_killed() {
    let mut b = Bench::new("flush-kept");
    let acknowledged = b.write_and_die();
    assert!(acknowledged > 80);
    assert_eq!(b.files(), 3);
    // The server may be started anew in between: its record is a file.
    b.server = None;
    b.start_server();
    let ended = b.client(&[]);
    assert!(
        ended.ok().contains(&format!("all of {acknowledged} acknowledged blocks are there")),
        "{}",
        ended.text
    );
    assert_eq!(b.files(), 0, "a test that passed cleans up");
    let again = b.client(&["--seconds", "0.3"]);
    assert!(again.ok().contains("Start again to compare"), "{}", again.text);
    assert!(b.client(&[]).ok().contains("OK: all of"));
}

#[test]
fn blocks_that_a_drive_has_lost_are_named() {
    let b = Bench::new("flush-lost");
    b.write_and_die();
    // A cache that forgot the last 5 writes of thread 1: its blocks hold what was there a round before.
    let last = b.recorded()[1];
    let file = OpenOptions::new().write(true).read(true).open(b.file(1)).unwrap();
    let on_disk = |counter: u64| (counter - 1) % 16 * 4096;
    let counter_at = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset + 32).unwrap();
        u64::from_le_bytes(bytes)
    };
    let newest = (0..16).map(|b| counter_at(b * 4096)).max().unwrap();
    assert!(newest >= last);
    let old = fs::read(b.file(1)).unwrap();
    let lost: Vec<u64> = (newest - 4..=newest).filter(|n| *n <= last).collect();
    assert!(!lost.is_empty());
    for counter in &lost {
        // Any whole but older block of the same place would do; garbage stands for "nothing of ours".
        file.write_all_at(&vec![0x5a; 4096], on_disk(*counter)).unwrap();
    }
    let ended = b.client(&[]);
    assert_eq!(ended.code, LOST, "{}", ended.text);
    for counter in &lost {
        let words = format!("thread 1, block {} (offset {}", (counter - 1) % 16, on_disk(*counter));
        assert!(ended.text.contains(&words), "{words} in {}", ended.text);
        assert!(
            ended.text.contains(&format!("counter {counter} was acknowledged, found garbage")),
            "{}",
            ended.text
        );
    }
    assert!(ended.text.contains("LOST") && !ended.text.contains("thread 0, block"), "{}", ended.text);
    // Nothing is cleaned up, and the verdict stands until it is put right or forgotten.
    assert_eq!(b.files(), 3);
    let json = run("pstorage", &[&["--json"], &b.args(&b.dir.path("disk"))[..]].concat());
    assert_eq!(json.code, LOST);
    let verdict: serde_json::Value = serde_json::from_str(&json.text).unwrap();
    assert_eq!(verdict["lost"].as_u64().unwrap(), lost.len() as u64);
    assert_eq!(verdict["threads"][1]["lost"][0]["thread"], 1);
    file.write_all_at(&old, 0).unwrap();
    assert!(b.client(&[]).ok().contains("OK"));
}

#[test]
fn a_file_rolled_back_or_cut_and_a_directory_emptied_are_losses() {
    let b = Bench::new("flush-rolled");
    let disk = b.dir.path("disk");
    // Rolled back: the whole file as it was a while before.
    let client = Running::start("pstorage", &b.args(&disk));
    wait_until("some blocks", Duration::from_secs(30), || b.recorded()[0] > 20);
    let before = fs::read(b.file(0)).unwrap();
    let then = b.recorded()[0];
    wait_until("more blocks", Duration::from_secs(30), || b.recorded()[0] > then + 100);
    drop(client);
    fs::write(b.file(0), before).unwrap();
    let ended = b.client(&[]);
    assert!(ended.code == LOST && ended.text.contains("thread 0, block"), "{}", ended.text);
    assert!(ended.text.contains(", found counter ") && ended.text.contains("thread 0: "), "{}", ended.text);
    // Cut.
    let file = OpenOptions::new().write(true).open(b.file(1)).unwrap();
    file.set_len(8 * 4096).unwrap();
    assert!(b.client(&[]).text.contains("thread 1, block"));
    // Gone altogether, the name of the test as well.
    for entry in fs::read_dir(b.dir.0.join("disk")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let ended = b.client(&[]);
    assert!(ended.code == LOST && ended.text.contains("nothing of the test is here"), "{}", ended.text);
    assert!(b.client(&["--fresh", "--seconds", "0.2"]).ok().contains("Start again"));
    let by_old_name = run("pstorage-hwflush-check", &b.args(&disk)[1..]);
    assert!(by_old_name.ok().contains("OK: all of"), "{}", by_old_name.text);
}

#[test]
fn what_cannot_be_tested_is_explained() {
    let mut b = Bench::new("flush-errors");
    let disk = b.dir.path("disk");
    run("pstorage", &["check-flush"]).refused(&["--server"]);
    run("pstorage", &["check-flush", "-s", &b.addr, "-d", "/nowhere"]).refused(&["/nowhere"]);
    run("pstorage", &["check-flush", "-s", &b.addr, "-d", &disk, "-t", "0"]).refused(&["0"]);
    run("pstorage", &["check-flush", "-s", &b.addr, "-d", &disk, "--size", "1"]).refused(&["8K"]);
    run("pstorage", &["check-flush", "-l", &b.addr]).refused(&["can't listen", &b.addr]);
    // The server dies while the client writes.
    let writing = b.args(&disk);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| run("pstorage", &[&writing[..], &["--seconds", "30"]].concat()));
        wait_until("some blocks", Duration::from_secs(30), || b.recorded().iter().all(|c| *c > 5));
        b.server.as_ref().unwrap().signal("-9");
        client.join().unwrap().refused(&["the server is gone"]);
    });
    b.server = None;
    b.client(&[]).refused(&["check-flush -l"]);
    // Another server knows nothing of the test.
    fs::remove_file(b.dir.0.join("records")).unwrap();
    b.start_server();
    b.client(&[]).refused(&["knows nothing of the test", "--fresh"]);
    fs::write(b.dir.0.join("disk/check-flush.run"), "{").unwrap();
    b.client(&[]).refused(&["damaged", "--fresh"]);
    assert!(b.client(&["--fresh", "--seconds", "0.1", "--fdatasync"]).ok().contains("Start again"));
}
