//! Journals and read caches on SSDs, with real processes: moved, resized, killed on the way, lost.

use crate::common::{Cluster, Load, Running, pattern, run, wait_until, write_synced};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A cluster of one chunk server without replicas: what it loses is lost.
fn alone(name: &str) -> Cluster {
    let c = Cluster::new(name);
    start(&c);
    c
}

fn start(c: &Cluster) {
    c.up_with(&["--mds", "1", "--cs", "1", "--replicas", "1:1", "--capacity", "512M"]);
}

/// Kills the chunk server, as it is, and ends the rest, so that no cache of the kernel answers later.
fn kill_cs_and_end(c: &Cluster, load: &mut Load) {
    load.close();
    c.kill("cs1");
    c.down();
}

fn configure(c: &Cluster, options: &[&str]) -> String {
    c.admin(&[&["configure-cs", "-r", &c.dir.path("cs1")], options].concat())
}

fn names(dir: &str, with: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| n.contains(with)).collect();
    names.sort();
    names
}

/// Journals in the two shards' directories.
fn journals_at_home(c: &Cluster) -> usize {
    ["cs1/shard-000", "cs1/shard-001"].iter().map(|d| names(&c.dir.path(d), "journal").len()).sum()
}

#[test]
fn a_journal_moves_to_an_ssd_grows_and_comes_back_with_all_that_was_acknowledged() {
    let c = alone("journal-moves");
    let (file, ssd, cs) = (c.mnt("f"), c.dir.path("ssd"), c.dir.path("cs1"));
    let etc = c.dir.path("etc");
    let mut load = Load::new(&file);
    run("pstorage", &["-c", "local", "--etc", &etc, "configure-cs", "-r", &cs, "--journal", &ssd])
        .refused(&["runs in", "cs1", "stop it first"]);
    let steps: [&[&str]; 4] = [
        &["--journal", &ssd, "--journal-size", "16M"],
        &["-s", "24"],
        &["--no-journal"],
        &["-j", &ssd, "-s", "8M", "-t", "2"],
    ];
    for (step, options) in steps.into_iter().enumerate() {
        load.run_for(Duration::from_millis(300));
        kill_cs_and_end(&c, &mut load);
        let said = configure(&c, options);
        assert!(said.contains(["16.0MB", "24.0MB", "24.0MB", "8.0MB"][step]), "{said}");
        let on_ssd = names(&ssd, "local-cs1-shard-");
        let expected = if options == ["--no-journal"] { (0, 2) } else { (2, 0) };
        assert_eq!((on_ssd.len(), journals_at_home(&c)), expected, "{options:?}");
        start(&c);
        load.verify(&file);
        load.reopen(&file);
        let flags = c.json(&["stat"])["cs"][0]["flags"].as_str().unwrap().to_string();
        assert_eq!(flags.contains('J'), expected.0 == 2, "{flags}");
    }
    assert_eq!(c.json(&["stat"])["cs"][0]["tier"], 2);
    // An SSD that is not there is no reason to start with an empty journal.
    kill_cs_and_end(&c, &mut load);
    fs::rename(&ssd, c.dir.path("away")).unwrap();
    fs::create_dir(&ssd).unwrap();
    run("pstorage-csd", &["-r", &cs, "--etc", &etc]).refused(&["journal", "is missing", "mounted"]);
    run("pstorage", &["-c", "local", "--etc", &etc, "configure-cs", "-r", &cs, "--no-journal"]).refused(&[
        "journal",
        "is missing",
        "The server is as it was",
    ]);
    fs::remove_dir(&ssd).unwrap();
    fs::rename(c.dir.path("away"), &ssd).unwrap();
    start(&c);
    load.verify(&file);
}

#[test]
fn configure_cs_killed_at_any_moment_loses_nothing_and_leaves_nothing() {
    let c = alone("configure-killed");
    let file = c.mnt("f");
    let (cs, etc) = (c.dir.path("cs1"), c.dir.path("etc"));
    let ssds = [c.dir.path("ssd-a"), c.dir.path("ssd-b")];
    let mut load = Load::new(&file);
    let mut kills = 0;
    for round in 0..4u64 {
        load.run_for(Duration::from_millis(200));
        kill_cs_and_end(&c, &mut load);
        // A whole run, to know how long one takes.
        let place = |n: u64| ssds[(n % 2) as usize].clone();
        let args = |place: &str| {
            let args = ["-c", "local", "--etc", &etc, "configure-cs", "-r", &cs, "-j", place, "-s", "16M"];
            args.map(String::from)
        };
        let whole = run("pstorage", &args(&place(round)).each_ref().map(String::as_str));
        whole.ok();
        let mut took = whole.took;
        for n in 0..8u64 {
            let mut running =
                Running::start("pstorage", &args(&place(round + n + 1)).each_ref().map(String::as_str));
            let waited = took * ((n * 37 + round * 11) % 100) as u32 / 100;
            std::thread::sleep(waited);
            running.signal("-9");
            if running.0.wait().expect("it ends").success() {
                // It was done before: a machine that was busy during the whole run misleads about the rest.
                took = waited;
            } else {
                kills += 1;
            }
        }
        start(&c);
        load.verify(&file);
        load.reopen(&file);
    }
    assert!(kills > 10, "only {kills} of 32 were killed on the way");
    kill_cs_and_end(&c, &mut load);
    configure(&c, &["-j", &ssds[0], "-s", "8M"]);
    let left: Vec<usize> = ssds.iter().map(|d| names(d, "").len()).collect();
    assert_eq!((&left[..], journals_at_home(&c)), (&[2, 0][..], 0), "files are left over");
    assert!(!Path::new(&cs).join("leftovers").exists());
    start(&c);
    load.verify(&file);
}

/// Reads `blocks` of 64 KiB past the kernel's cache, in an order that is no stream.
fn read_around(path: &Path, blocks: u64, image: &[u8]) {
    let file = fs::OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path).expect("opens");
    let mut place = Aligned::new();
    for n in 0..blocks {
        let at = (n * 37 % blocks) as usize * PIECE;
        let buf = place.bytes();
        file.read_exact_at(buf, at as u64).expect("reads");
        assert!(*buf == image[at..at + PIECE], "piece at {at} is not what was written");
    }
}

const O_DIRECT: i32 = 0o40000;
const PIECE: usize = 64 << 10;

/// Memory for direct reads.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Aligned {
        Aligned(vec![0; PIECE + 4096])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let from = self.0.as_ptr().align_offset(4096);
        &mut self.0[from..from + PIECE]
    }
}

/// A figure of the chunk server's cache.
fn cache(c: &Cluster, name: &str) -> u64 {
    c.json(&["stat"])["cs"][0][name].as_u64().unwrap()
}

#[test]
fn a_read_cache_answers_what_is_read_again_also_after_a_kill_and_may_vanish() {
    let c = alone("read-cache");
    let (file, ssd) = (c.mnt("image"), c.dir.path("ssd"));
    c.admin(&["set-attr", "/", "chunk-size=1M"]); // Chunks on both shards.
    let image = pattern(9, 2048); // 8 MiB
    write_synced(&file, &image);
    c.down();
    let said = configure(&c, &["--cache", &ssd, "--cache-size", "64M"]);
    assert!(said.contains("read cache: 64.0MB"), "{said}");
    start(&c);
    for _ in 0..3 {
        read_around(&file, 128, &image);
    }
    // The figures come with the heartbeats.
    wait_until("the hits to be seen", Duration::from_secs(10), || cache(&c, "cache_hits") > 60);
    let cached = cache(&c, "cached_bytes");
    assert!(cached > 4 << 20, "{cached} bytes are cached");
    let stat = c.admin(&["stat"]);
    assert!(stat.contains("HIT RATE") && stat.contains("CDR"), "{stat}");

    // The table is written every ten seconds: then what it names outlives a kill.
    wait_until("the table to be written", Duration::from_secs(30), || {
        names(&ssd, "local-cs1-shard-").iter().all(|n| has_table(&Path::new(&ssd).join(n)))
    });
    c.kill("cs1");
    c.down();
    start(&c);
    wait_until("the cache to be read", Duration::from_secs(10), || cache(&c, "cached_bytes") > 0);
    let kept = cache(&c, "cached_bytes");
    assert!(kept > cached / 2, "{kept} of {cached} bytes are left after a kill");
    read_around(&file, 128, &image);
    wait_until("hits after a kill", Duration::from_secs(10), || cache(&c, "cache_hits") > 60);

    // What is written meanwhile is not taken from the cache.
    let newer = pattern(10, 2048);
    write_synced(&file, &newer);
    read_around(&file, 128, &newer);

    // Damaged, every byte of it; then gone.
    for damage in ["damaged", "gone"] {
        c.down();
        for name in names(&ssd, ".cache") {
            let path = Path::new(&ssd).join(name);
            let damaged = vec![0x77; 32 << 20];
            if damage == "gone" { fs::remove_file(path).unwrap() } else { fs::write(path, damaged).unwrap() }
        }
        start(&c);
        (0..2).for_each(|_| read_around(&file, 128, &newer));
        c.check();
    }
    let log = c.admin(&["get-event"]);
    assert!(log.contains("read cache") && log.contains("nothing is lost"), "{log}");
    c.down();
    let said = configure(&c, &["--no-cache"]);
    assert!(said.contains("read cache: none") && names(&ssd, "").is_empty(), "{said}");
}

/// Whether the first table page of a cache file was written.
fn has_table(path: &Path) -> bool {
    let mut magic = [0; 8];
    File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"PSRCACHE"
}

/// A file system of its own on a loop device, that a test can break.
struct Breakable {
    dir: String,
}

impl Breakable {
    /// `None` where this is not allowed.
    fn new(image: &str, dir: &str) -> Option<Breakable> {
        fs::create_dir_all(dir).unwrap();
        File::create(image).unwrap().set_len(96 << 20).unwrap();
        let done = |program: &str, args: &[&str]| {
            Command::new(program).args(args).status().is_ok_and(|s| s.success())
        };
        let mounted = done("mkfs.ext4", &["-q", "-F", image]) && done("mount", &["-o", "loop", image, dir]);
        mounted.then(|| Breakable { dir: dir.into() })
    }

    /// Every write fails from now on.
    fn fail(&self) {
        let aborted = Command::new("mount").args(["-o", "remount,abort", &self.dir]).status();
        assert!(aborted.expect("mount runs").success());
    }
}

impl Drop for Breakable {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.dir]).status();
    }
}

#[test]
fn a_server_whose_journal_device_fails_stops_and_the_others_go_on() {
    let c = Cluster::new("journal-lost");
    c.up_with(&["--capacity", "512M"]);
    let Some(ssd) = Breakable::new(&c.dir.path("ssd.img"), &c.dir.path("ssd")) else {
        println!("not tested: no loop device can be mounted here");
        return;
    };
    c.down();
    configure(&c, &["--journal", &ssd.dir, "--journal-size", "16M"]);
    c.up_with(&[]);
    c.wait_healthy();
    let mut load = Load::new(&c.mnt("f"));
    load.run_for(Duration::from_millis(300));
    ssd.fail();
    load.run_for(Duration::from_secs(2));
    wait_until("the server to be missed", Duration::from_secs(20), || {
        let stat = c.json(&["stat"]);
        stat["cs"].as_array().unwrap().iter().any(|cs| cs["cs"] == 1 && cs["status"] != "active")
    });
    let log = fs::read_to_string(c.dir.path("cs1/logs/csd.log")).unwrap();
    assert!(log.contains("chunk store broken") && log.contains(".journal"), "{log}");
    let events = c.admin(&["get-event"]);
    assert!(events.contains("CS#1 has failed and stops: journal"), "{events}");
    load.run_for(Duration::from_millis(300));
    load.verify(&c.mnt("f"));
    assert!(load.longest < Duration::from_secs(5), "stalled for {:?}", load.longest);
    // It says so again instead of starting.
    let etc = c.dir.path("etc");
    run("pstorage-csd", &["-r", &c.dir.path("cs1"), "--etc", &etc]).refused(&["journal"]);
    load.close();
    c.down();
}

#[test]
fn servers_share_an_ssd_and_what_can_not_be_is_refused() {
    let c = Cluster::new("shared-ssd");
    c.up_with(&["--capacity", "512M"]);
    c.down();
    let (ssd, etc) = (c.dir.path("ssd"), c.dir.path("etc"));
    let configure = |n: u32, options: &[&str]| {
        let dir = c.dir.path(&format!("cs{n}"));
        run("pstorage", &[&["-c", "local", "--etc", &etc, "configure-cs", "-r", &dir], options].concat())
    };
    configure(1, &["--cache", &ssd]).refused(&["--cache-size"]);
    configure(1, &["--cache-size", "1G"]).refused(&["--cache DIR"]);
    configure(1, &["--cache", &ssd, "--cache-size", "1M"]).refused(&["too small", "at least 8M"]);
    configure(1, &["-s", "1M"]).refused(&["too small", "at least 8M"]);
    configure(1, &["-j", &ssd, "-s", "900T"]).refused(&["are free, too few", "--journal-size"]);
    configure(1, &["--cache", &ssd, "--cache-size", "900T"]).refused(&["are free, too few", "--cache-size"]);
    configure(1, &["-j", "/proc/here"]).refused(&["/proc/here"]);
    configure(1, &["-a", "0.0.0.0"]).refused(&["-a 0.0.0.0: name the address"]);
    configure(7, &[]).refused(&["no control.json"]);
    assert!(configure(1, &[]).ok().contains("read cache: none"), "nothing was changed");

    for n in 1..=3 {
        configure(n, &["-j", &ssd, "-s", "16M", "--cache", &ssd, "--cache-size", "16M"]).ok();
    }
    assert_eq!((names(&ssd, ".journal").len(), names(&ssd, ".cache").len()), (6, 6));
    c.up_with(&[]);
    c.wait_healthy();
    let mut load = Load::new(&c.mnt("f"));
    load.run_for(Duration::from_millis(300));
    load.close();
    ["cs1", "cs2", "cs3"].iter().for_each(|cs| c.kill(cs));
    c.down();
    configure(2, &["--no-journal", "--no-cache"]).ok();
    assert_eq!((names(&ssd, ".journal").len(), names(&ssd, ".cache").len()), (4, 4));
    c.up_with(&[]);
    c.wait_healthy();
    load.verify(&c.mnt("f"));
    c.check();
}

#[test]
fn make_cs_takes_a_journal_and_a_cache() {
    let c = Cluster::new("make-with-ssd");
    c.up_with(&["--capacity", "512M"]);
    let (dir, ssd, etc) = (c.dir.path("extra"), c.dir.path("ssd"), c.dir.path("etc"));
    let sizes = ["--journal-size", "16M", "--cache-size", "16M", "--shards", "2", "--capacity", "256M"];
    c.admin(&[&["make-cs", "-r", &dir, "--journal", &ssd, "--cache", &ssd], &sizes[..]].concat());
    let _running = Running::start("pstorage-csd", &["-r", &dir, "--etc", &etc]);
    wait_until("the new server with its flags", Duration::from_secs(20), || {
        let stat = c.json(&["stat"]);
        let cs = stat["cs"].as_array().unwrap().iter().find(|cs| cs["cs"] == 4).cloned();
        cs.is_some_and(|cs| cs["flags"] == "JCcR" && cs["cache_total_bytes"].as_u64() > Some(12 << 20))
    });
    assert_eq!((names(&ssd, "local-cs4-").len(), names(&dir, "journal").len()), (4, 0));
    let advice = c.admin(&["advise-configuration", "--ssd", &ssd, "--cs", &dir]);
    assert!(advice.contains("nothing to win"), "{advice}");
}
