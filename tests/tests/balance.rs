//! A chunk server is added to a full cluster of real processes: data moves to it, and no more than must.

mod common;

use common::{Cluster, pattern, read, wait_until, write_synced};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
/// Longer than the balancer waits for reports.
const REST: Duration = Duration::from_secs(8);

/// Replicas on each server, copies made since the start, used shares of the space.
fn look(c: &Cluster) -> (Vec<u64>, u64, Vec<f64>) {
    let stat = c.json(&["stat"]);
    let cs = stat["cs"].as_array().expect("a list");
    let number = |v: &serde_json::Value| v.as_u64().expect("a number");
    let share = |s: &serde_json::Value| {
        1.0 - number(&s["free_bytes"]) as f64 / (number(&s["total_bytes"]) as f64).max(1.0)
    };
    (
        cs.iter().map(|s| number(&s["replicas"])).collect(),
        number(&stat["repair"]["copies_total"]),
        cs.iter().map(share).collect(),
    )
}

#[test]
fn an_added_server_gets_its_share_and_nothing_moves_twice() {
    let c = Cluster::new("balance");
    c.up_with(&["--mds", "1", "--cs", "3", "--shards", "1", "--capacity", "256M"]);
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let image = pattern(6, 100 << 8);
    write_synced(&c.mnt("image"), &image);
    let (before, copies, _) = look(&c);
    assert_eq!(copies, 0);
    let total: u64 = before.iter().sum();
    c.up_with(&["--cs", "4", "--capacity", "256M"]);
    wait_until("the fourth server to hold its share", LONG, || {
        let (replicas, _, shares) = look(&c);
        let (least, most) =
            (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
        replicas.len() == 4 && most - least < 0.03
    });
    c.wait_healthy();
    // The last moves wait until the reports show those before: on a busy machine that takes its time.
    let mut last = (0, Instant::now());
    wait_until("the moves to end", LONG, || {
        let copies = look(&c).1;
        if copies != last.0 {
            last = (copies, Instant::now());
        }
        last.1.elapsed() > REST
    });
    let (replicas, copies, shares) = look(&c);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(look(&c).1, copies, "something still moves");
    let needed = total as f64 / 4.0;
    println!("replicas {before:?}, then {replicas:?}; levels {shares:.3?}; {copies} copies, {needed} needed");
    assert!(copies as f64 <= 1.1 * needed, "{copies} copies where {needed} are needed");
    assert_eq!(replicas[3], copies, "a replica was moved on");
    assert!(read(&c.mnt("image")) == image);
    c.check();
}
