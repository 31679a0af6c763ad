//! The metadata servers of a running cluster, all replaced: nothing stops, what was removed can't disturb, and chunk servers and
//! mounts follow, though they were started with the addresses of the old ones.

use crate::common::{self, Cluster, Load, Running, free_ports, wait_until};
use std::fs;
use std::time::Duration;

/// Far longer than it takes on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// Numbers of the servers that count for the quorum and are there.
fn voters(c: &Cluster) -> Vec<u64> {
    let stat = c.json(&["stat"]);
    let mds = stat["mds"].as_array().expect("a list").clone();
    let counts = |m: &&serde_json::Value| m["voter"] == true && m["available"] == true;
    mds.iter().filter(counts).map(|m| m["mds"].as_u64().expect("a number")).collect()
}

/// Makes one more metadata server, which `local up` then starts.
fn add(c: &Cluster, number: u64) {
    let dir = c.dir.path(&format!("mds{number}"));
    c.admin(&["add-mds", "-a", &format!("127.0.0.1:{}", free_ports()), "-r", &dir]);
    c.up();
    wait_until("the new server to count", SOON, || voters(c).contains(&number));
}

fn remove(c: &Cluster, number: u64, load: &mut Load) {
    let pid = c.pid(&format!("mds{number}"));
    c.admin(&["rm-mds", &number.to_string()]);
    wait_until("the removed server to end", SOON, || {
        load.step();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    let dir = c.dir.0.join(format!("mds{number}"));
    let log = fs::read_to_string(dir.join("logs/mdsd.log")).unwrap_or_default();
    assert!(log.contains("was removed from the cluster"), "{log}");
    fs::rename(&dir, c.dir.0.join(format!("removed{number}"))).expect("renamed");
}

#[test]
fn all_metadata_servers_are_replaced_while_everything_goes_on() {
    let c = Cluster::new("membership");
    c.up();
    let file = c.mnt("file");
    let mut load = Load::new(&file);
    load.run_for(Duration::from_millis(300));
    for (new, old) in [(4, 1), (5, 2), (6, 3)] {
        add(&c, new);
        remove(&c, old, &mut load);
    }
    wait_until("the new servers alone to count", SOON, || voters(&c) == [4, 5, 6]);

    // One that was removed and is started again changes nothing.
    let before = c.master();
    let removed = c.dir.path("removed1");
    let ghost = Running::start("pstorage-mdsd", &["-r", &removed, "--etc", &c.dir.path("etc")]);
    load.run_for(Duration::from_secs(5));
    assert_eq!((c.master(), voters(&c)), (before, vec![4, 5, 6]));
    drop(ghost);

    // Chunk servers and the mount have never been told of these by an administrator.
    c.kill(&format!("mds{before}"));
    load.run_for(Duration::from_secs(2));
    wait_until("the chunk servers to be with the new master", SOON, || {
        let ended = common::run("pstorage", &["-c", "local", "--etc", &c.dir.path("etc"), "--json", "stat"]);
        let stat = serde_json::from_str::<serde_json::Value>(&ended.text).unwrap_or_default();
        stat["cs"]
            .as_array()
            .is_some_and(|all| all.len() == 3 && all.iter().all(|cs| cs["status"] == "active"))
    });
    load.step();

    fs::write(c.mnt("new"), "made after all of it").expect("the mount works");

    // Another one must not go while this one is away; this one may.
    let other = [4, 5, 6].into_iter().find(|n| *n != before && *n != c.master()).expect("one of three");
    let refused =
        common::run("pstorage", &["-c", "local", "--etc", &c.dir.path("etc"), "rm-mds", &other.to_string()]);
    refused.refused(&["would stop the cluster", &format!("MDS#{before}"), &format!("rm-mds {before}")]);
    c.admin(&["rm-mds", &before.to_string()]);
    fs::rename(c.dir.0.join(format!("mds{before}")), c.dir.0.join("lost")).expect("renamed");
    wait_until("two to count", SOON, || voters(&c).len() == 2);
    load.step();
    load.close();
    load.verify(&file);
    c.wait_healthy();
    c.check();
}
