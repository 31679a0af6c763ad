//! A whole cluster of real processes with a real mount: `pstorage local`, kill -9, and what must survive.

use crate::common::{Cluster, Load, pattern, programs, read, run, run_command, wait_until, write_synced};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

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

    // Several chunks of the smallest size, so that they lie on all shards.
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let image = pattern(1, 1500);
    write_synced(&c.mnt("image"), &image);
    assert!(read(&c.mnt("image")) == image, "what was read is not what was written");
    let chunks = c.json(&["explain", "/image"])["chunks"].as_array().map_or(0, Vec::len);
    assert!(chunks >= 6, "{chunks} chunks, the last ones perhaps for what comes next");
    c.check();

    // kill -9 of a chunk server in the middle of writes: they go on, and nothing acknowledged is lost.
    let mut load = Load::new(&c.mnt("under-fire"));
    load.run_for(Duration::from_millis(500));
    c.kill("cs2");
    load.run_for(Duration::from_millis(2500));
    println!("longest write with sync while a chunk server was killed: {:?}", load.longest);
    assert!(load.longest < Duration::from_secs(5), "a write stalled for {:?}{}", load.longest, c.logs());
    load.close();
    load.verify(&c.mnt("under-fire"));

    // It comes back and is caught up.
    c.up();
    c.wait_healthy();
    c.check();

    // Everything at once.
    let synced = pattern(7, 700);
    write_synced(&c.mnt("synced"), &synced);
    let held = fs::File::options().append(true).open(c.mnt("synced")).unwrap();
    for service in ["mount", "cs1", "cs2", "cs3", "mds1", "mds2", "mds3"] {
        c.kill(service);
    }
    let state = run("pstorage", &["local", "status", c.root()]);
    assert_eq!(state.ok().matches("down").count(), 7, "{}", state.text);
    c.up();
    let up_at = Instant::now();
    drop(held);
    // The killed mount still had it open: whoever opens it waits for the end of that session, and is not refused.
    assert!(read(&c.mnt("synced")) == synced, "synced data was lost");
    println!("opened after the killed mount's session had ended, {:?} after the start", up_at.elapsed());
    assert!(up_at.elapsed() < Duration::from_secs(20), "{:?}", up_at.elapsed());
    assert!(read(&c.mnt("image")) == image, "older data was lost");
    assert_eq!(fs::read(c.mnt("d/moved")).unwrap(), b"hello");
    load.verify(&c.mnt("under-fire"));
    c.check();

    c.down();
    c.assert_gone();
}

#[test]
fn two_clusters_live_side_by_side_and_up_and_down_may_be_said_twice() {
    let shape = ["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "512M"];
    let (a, b) = (Cluster::new("side-a"), Cluster::new("side-b"));
    run("pstorage", &["local", "status", a.root()]).refused(&["no local cluster", "local up"]);
    run("pstorage", &["local", "down", a.root()]).refused(&["no local cluster"]);
    a.up_with(&shape);
    b.up_with(&shape);
    fs::write(a.mnt("name"), "a").unwrap();
    fs::write(b.mnt("name"), "b").unwrap();
    assert_eq!(a.json(&["get-attr", "/"])["replicas"], "1:1", "as many replicas as there are servers");

    // Again: nothing changes.
    let before = ["mds1", "cs1", "mount"].map(|s| a.pid(s));
    a.up_with(&[]);
    assert_eq!(before, ["mds1", "cs1", "mount"].map(|s| a.pid(s)));
    let status: serde_json::Value =
        serde_json::from_str(&a.ok(&["--json", "local", "status", a.root()])).unwrap();
    assert_eq!((&status["running"], &status["mounted"]), (&true.into(), &true.into()));

    a.down();
    a.assert_gone();
    assert_eq!(fs::read_to_string(b.mnt("name")).unwrap(), "b", "the other cluster goes on");
    assert!(a.ok(&["local", "down", a.root()]).contains("Nothing was running"));
    let status: serde_json::Value =
        serde_json::from_str(&a.ok(&["--json", "local", "status", a.root()])).unwrap();
    assert_eq!((&status["running"], &status["mounted"]), (&false.into(), &false.into()));

    // Part of it is gone: `up` brings back what is missing.
    b.kill("cs1");
    b.kill("mount");
    b.up_with(&[]);
    assert_eq!(fs::read_to_string(b.mnt("name")).unwrap(), "b");
    a.up_with(&[]);
    assert_eq!(fs::read_to_string(a.mnt("name")).unwrap(), "a");

    // A third server on demand.
    a.up_with(&["--cs", "2", "--shards", "1", "--capacity", "512M"]);
    assert_eq!(a.json(&["stat"])["cs"].as_array().map(Vec::len), Some(2));
    for c in [&a, &b] {
        c.down();
        c.assert_gone();
    }
}

#[test]
fn a_line_of_fstab_mounts_the_cluster() {
    let c = Cluster::new("fstab");
    c.up();
    let image = pattern(7, 256);
    write_synced(&c.mnt("f"), &image);
    let [helpers, line, dir, log] = ["sbin", "fstab", "second", "second.log"].map(|name| c.dir.path(name));
    for made in [&helpers, &dir] {
        fs::create_dir(made).unwrap();
    }
    let helper = c.dir.0.join("sbin/mount.fuse.pstorage");
    std::os::unix::fs::symlink(programs().join("pstorage-mount"), helper).unwrap();
    let mount = |options: &str| {
        fs::write(&line, format!("pstorage://local {dir} fuse.pstorage {options},_netdev 0 0\n")).unwrap();
        // Where nobody else sees it, /sbin holds nothing but the helper.
        let script = "mount --bind \"$1\" /sbin; mount -a -T \"$2\"; code=$?; cat \"$3/f\" | sha256sum
            touch \"$3/f\" && mount -o remount,ro,nosuid pstorage://local \"$3\" || code=1
            grep -F \" $3 \" /proc/self/mounts; umount \"$3\"; exit $code";
        let etc = c.dir.path("etc");
        run_command(
            Command::new("unshare")
                .args(["-m", "env", &format!("PSTORAGE_ETC={etc}"), "sh", "-c", script])
                .args(["sh", &helpers, &line, &dir]),
        )
    };
    fs::write(c.dir.0.join("image"), &image).unwrap();
    let sum = run_command(Command::new("sh").args(["-c", &format!("sha256sum < {}", c.dir.path("image"))]));
    let mounted = mount(&format!("rw,nodiratime,nosuid,log={log}"));
    let (content, mount_line) = mounted.ok().split_once('\n').unwrap();
    assert_eq!(content, sum.ok().trim_end());
    let words: Vec<&str> = mount_line.split([' ', ',']).collect();
    for word in ["pstorage://local", &dir, "ro", "nosuid"] {
        assert!(words.contains(&word), "{word} in {mount_line}");
    }
    wait_until("the mount to end", Duration::from_secs(20), || {
        fs::read_to_string(&log).unwrap().contains("unmounted")
    });
    mount("ro,frozen").refused(&["unknown mount option 'frozen'"]);
}

#[test]
fn what_scripts_read_is_json_and_shells_and_man_get_their_pages() {
    let c = Cluster::new("json");
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "512M"]);
    fs::write(c.mnt("f"), "x").unwrap();
    assert_eq!(c.json(&["stat"])["cluster"], "local");
    assert_eq!(c.json(&["check"])["damaged"], 0);
    assert_eq!(c.json(&["explain", "/f"])["chunks"][0]["primary"], 1);
    assert_eq!(c.json(&["get-attr", "/f"])["chunk-size"], 64 << 20);
    assert!(c.json(&["get-config"])["mds.lease.timeout"].is_string());
    let events = c.admin(&["--json", "get-event"]);
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(event["message"].is_string(), "{line}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run("pstorage", &["completion", shell]).ok().contains("make-cs"), "{shell}");
    }
    let pages = c.dir.path("man");
    run("pstorage", &["man", &pages]).ok();
    for page in ["pstorage.1", "pstorage-make-cs.1", "pstorage-local-up.1"] {
        let text = fs::read_to_string(format!("{pages}/{page}")).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH"), "{page}");
    }
}

/// Turns a bit of `block` in the data files of a chunk server.
fn damage(c: &Cluster, cs: &str, block: &[u8]) {
    for shard in ["shard-000", "shard-001"] {
        let path = c.dir.path(&format!("{cs}/{shard}/data"));
        let Ok(mut data) = fs::read(&path) else { continue };
        if let Some(at) = data.chunks(4096).position(|b| b == block) {
            data[at * 4096 + 1000] ^= 4;
            return fs::write(&path, data).unwrap();
        }
    }
    panic!("{cs} does not hold the block");
}

#[test]
fn check_finds_damage_at_the_end_of_the_largest_chunks_and_has_it_repaired() {
    use std::os::unix::fs::FileExt;
    let c = Cluster::new("check");
    c.up();
    c.admin(&["set-attr", "/", "chunk-size=256M"]);
    c.admin(&["set-config", "cs.scrub.period=0"]); // What the scrub finds, it repairs before we look.
    let (far, block) = (255u64 << 20, pattern(9, 1));
    let file = fs::File::create(c.mnt("f")).unwrap();
    file.write_all_at(&block, far).and_then(|()| file.sync_all()).unwrap();
    drop(file);
    c.check();
    c.down(); // What is in the journal is written back at the latest when it starts again.
    c.up_with(&[]);
    c.wait_healthy();
    c.down();
    damage(&c, "cs2", &block);
    c.up_with(&[]);
    let etc = c.dir.path("etc");
    let check = |args: &[&str]| run("pstorage", &[&["-c", "local", "--etc", &etc], args].concat());
    check(&["check"]).refused(&[
        "does not match its checksums",
        "1 with differing or damaged",
        "check --repair",
    ]);
    check(&["check", "--repair"]).refused(&["CS#2 will be filled again"]);
    c.wait_healthy();
    c.check();
    let mut got = vec![0; 4096];
    fs::File::open(c.mnt("f")).unwrap().read_exact_at(&mut got, far).unwrap();
    assert!(got == block);
}
