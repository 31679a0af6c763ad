//! Servers killed and stopped, under load and while chunks are repaired, with real processes: how long requests stall, and what survives.

mod common;

use common::{Cluster, Load, pattern, read, send, wait_until, write_synced};
use std::sync::Mutex;
use std::time::Duration;

/// Stalls are measured: one cluster at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn kill_9_of_the_master_mds_stalls_requests_for_less_than_3_s() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let c = Cluster::new("master");
    c.up_with(&["--shards", "1", "--capacity", "1G"]);
    // Small chunks: new ones are allocated, and files made, while there is no master.
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let old = c.master();
    let mut load = Load::new(&c.mnt("f"));
    load.run_for(Duration::from_millis(500));
    c.kill(&format!("mds{old}"));
    let mut names = Duration::ZERO;
    let began = std::time::Instant::now();
    for n in 0.. {
        let one = std::time::Instant::now();
        std::fs::write(c.mnt(&format!("n{n}")), b"made without the old master").expect("names go on");
        names = names.max(one.elapsed());
        load.run_for(Duration::from_millis(100));
        if began.elapsed() > Duration::from_secs(4) {
            break;
        }
    }
    println!("master killed: longest synced write {:?}, longest creation of a file {names:?}", load.longest);
    let worst = load.longest.max(names);
    assert!(worst < Duration::from_secs(3), "stalled for {worst:?}{}", c.logs());
    load.verify(&c.mnt("f"));

    // The killed one comes back, follows, and counts: the quorum holds without one of the others.
    let new = c.master();
    assert_ne!(new, old);
    c.up();
    c.wait_healthy();
    wait_until("the returned MDS follows", Duration::from_secs(10), || {
        let stat = c.json(&["stat"]);
        let commits = |id: u64| {
            stat["mds"]
                .as_array()
                .unwrap()
                .iter()
                .find(|m| m["mds"] == id)
                .and_then(|m| m["commits"].as_u64())
        };
        commits(old).is_some_and(|have| have + 20 >= commits(new).unwrap_or(u64::MAX))
    });
    c.kill(&format!("mds{new}"));
    load.run_for(Duration::from_secs(3));
    let after = std::fs::write(c.mnt("after"), b"two of three are a quorum");
    assert!(after.is_ok(), "{after:?}\n{}{}{}", c.admin(&["stat"]), c.admin(&["get-event"]), c.logs());
    assert_ne!(c.master(), new);
    load.verify(&c.mnt("f"));
    c.up();
    c.wait_healthy();
    c.check();
}

#[test]
fn a_chunk_server_stopped_for_8_s_stalls_writes_for_the_detection_time_and_catches_up() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let c = Cluster::new("stopped");
    c.up_with(&["--shards", "1", "--capacity", "1G"]);
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let mut load = Load::new(&c.mnt("f"));
    load.run_for(Duration::from_millis(500));
    // All store what one of them leads.
    wait_until("all servers tell how long writes take", Duration::from_secs(10), || {
        let stat = c.json(&["stat"]);
        let servers = stat["cs"].as_array().expect("a list");
        let has = |latency: &serde_json::Value| {
            let us = |name: &str| latency[name].as_u64().expect("microseconds");
            assert!(us("mean_us") <= us("max_us"), "{latency}");
            us("operations") > 0 && us("mean_us") > 0
        };
        servers.iter().all(|cs| has(&cs["io_latency"]))
            && servers.iter().any(|cs| has(&cs["request_latency"]))
    });
    // Stopped processes keep their connections: only silence tells.
    c.signal("cs1", "-STOP");
    load.run_for(Duration::from_secs(8));
    println!("chunk server stopped: longest synced write {:?}", load.longest);
    c.signal("cs1", "-CONT");
    assert!(load.longest < Duration::from_secs(5), "a write stalled for {:?}{}", load.longest, c.logs());
    load.run_for(Duration::from_secs(1));
    c.wait_healthy();
    load.verify(&c.mnt("f"));
    c.check();
}

/// At a rate that a repair takes half a minute at: an end does not wait for it, and it goes on afterwards.
#[test]
fn chunk_servers_end_on_request_while_they_fill_others() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let c = Cluster::new("ends");
    c.up_with(&["--mds", "1", "--cs", "4", "--shards", "2", "--capacity", "1G"]);
    for setting in ["mds.wd.offline_tout=1000", "mds.repl.max_rate=1"] {
        c.admin(&["set-config", setting]);
    }
    c.admin(&["set-attr", "/", "chunk-size=4M"]);
    let bytes = pattern(1, 128 << 8);
    write_synced(&c.mnt("f"), &bytes);
    c.wait_healthy();
    c.kill("cs4");
    let replicating = || c.json(&["stat"])["chunks"]["replicating"].as_u64().expect("a number") > 0;
    wait_until("copies are made", Duration::from_secs(30), replicating);
    let pids = ["cs1", "cs2", "cs3"].map(|name| (name, c.pid(name)));
    pids.iter().for_each(|(_, pid)| send("-TERM", *pid));
    for (name, pid) in pids {
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat"));
        let ended = || state().map_or(true, |s| s.contains(") Z "));
        wait_until(&format!("{name} ends"), Duration::from_secs(15), ended);
    }
    c.up();
    c.admin(&["set-config", "mds.repl.max_rate=0"]);
    c.wait_healthy();
    assert!(read(&c.mnt("f")) == bytes, "it reads back");
    c.check();
}
