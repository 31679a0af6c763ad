//! Servers killed and stopped under load, with real processes: how long requests stall, and what survives.

mod common;

use common::{Cluster, Load, wait_until};
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
