//! Real servers on a disk that loses what was not synced, and that damages, loses, misdirects and refuses writes
//! (`tests/src/lossy_disk.rs`): nothing acknowledged is lost, nothing damaged is returned.

mod common;
use common::{Cluster, Dir, Load, Running, pattern, programs, read, wait_until, write_synced};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A cluster that stands on a lossy disk wholly: journals, data, and the metadata servers' logs and snapshots.
struct Lossy {
    cluster: Option<Cluster>,
    dir: Dir,
    // Ends when it is unmounted.
    _disk: Running,
}

const SERVERS: [&str; 6] = ["cs1", "cs2", "cs3", "mds1", "mds2", "mds3"];

impl Lossy {
    fn new(name: &str) -> Lossy {
        let dir = Dir::new(name);
        let mount = dir.0.join("disk");
        fs::create_dir(&mount).expect("a directory can be made");
        let disk = Command::new(programs().join("lossy-disk")).arg(&mount).stdin(Stdio::null()).spawn();
        let disk = Running(disk.expect("lossy-disk is built"));
        wait_until("the disk to be mounted", Duration::from_secs(10), || mount.join(".control").exists());
        let cluster = Cluster { dir: Dir(mount.join("cluster")) };
        fs::create_dir(&cluster.dir.0).expect("a directory can be made");
        let lossy = Lossy { cluster: Some(cluster), dir, _disk: disk };
        lossy.c().up_with(&["--shards", "1", "--capacity", "1G"]);
        // Nobody syncs the files that say which processes run.
        lossy.command("sync cluster/run/");
        // Small chunks, so that files have several.
        lossy.c().admin(&["set-attr", "/", "chunk-size=1M"]);
        lossy
    }

    fn c(&self) -> &Cluster {
        self.cluster.as_ref().expect("it is there until the end")
    }

    fn command(&self, line: &str) {
        fs::write(self.dir.0.join("disk/.control"), line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        self.cluster = None;
        let _ = Command::new("umount").arg("-l").arg(self.dir.0.join("disk")).status();
    }
}

#[test]
fn all_servers_lose_power_and_nothing_acknowledged_is_lost() {
    let lossy = Lossy::new("power");
    let c = lossy.c();
    let mut load = Load::new(&c.mnt("load"));
    for round in 0..4u64 {
        let image = pattern(100 + round, 700);
        write_synced(&c.mnt(&format!("image{round}")), &image);
        // Writes that are under way when the power goes are another process's.
        let mut noise = Command::new("dd")
            .args(["if=/dev/urandom", "bs=48k", "count=100000", "oflag=dsync", "status=none"])
            .arg(format!("of={}", c.mnt("noise").display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("dd runs");
        load.run_for(Duration::from_millis(600 + 150 * round));
        SERVERS.iter().for_each(|name| c.kill(name));
        lossy.command(&format!("lose {round}"));
        c.up_with(&[]);
        lossy.command("sync cluster/run/");
        let _ = noise.kill();
        noise.wait().expect("it was started");
        c.wait_healthy();
        load.verify(&c.mnt("load"));
        assert!(read(&c.mnt(&format!("image{round}"))) == image, "round {round}");
    }
    for round in 0..4u64 {
        assert!(read(&c.mnt(&format!("image{round}"))) == pattern(100 + round, 700), "round {round}");
    }
    c.check();
}

#[test]
fn a_bad_disk_under_one_server_costs_repairs_and_never_data() {
    let lossy = Lossy::new("baddisk");
    let c = lossy.c();
    c.admin(&["set-config", "cs.scrub.period=0"]);
    let mut images = Vec::new();
    for (n, fault) in [
        "write lost 8 2 cs2/shard-000/data",
        "write misdirect 4 1 cs2/shard-000/data",
        "write flip 6 1 cs2/shard-000/data",
        "any stall-700 5 3 cs2/shard-000/",
        "write eio 1 1 cs2/shard-000/data",
    ]
    .iter()
    .enumerate()
    {
        lossy.command(&format!("fault {fault}"));
        let image = pattern(n as u64 + 1, 1024);
        let path = c.mnt(&format!("image{n}"));
        write_synced(&path, &image);
        images.push((path, image));
    }
    // Small writes too, whose write-back meets what is left of the faults, and a full disk. (A large write would be told.)
    lossy.command("fault write enospc 2 0 cs2/shard-000/data");
    let mut load = Load::new(&c.mnt("load"));
    load.run_for(Duration::from_secs(3));
    lossy.command("mend");
    // A server whose disk failed a write-back has ended itself.
    c.up_with(&[]);
    for (path, image) in &images {
        assert!(read(path) == *image, "{} is not what was written", path.display());
    }
    load.verify(&c.mnt("load"));
    let etc = c.dir.path("etc");
    wait_until("every replica to be whole", Duration::from_secs(60), || {
        common::run("pstorage", &["-c", "local", "--etc", &etc, "check", "--repair"]).code == 0
    });
    c.wait_healthy();
    let events = c.admin(&["get-event"]);
    assert!(events.contains("CS#2 has reported hard error"), "{events}");
    load.close();
    // What was repaired is whole on the disk: the other replicas are not asked for it.
    c.down();
    c.up_with(&[]);
    c.wait_healthy();
    c.check();
    images.iter().for_each(|(path, image)| assert!(read(path) == *image));
    load.verify(&c.mnt("load"));
}
