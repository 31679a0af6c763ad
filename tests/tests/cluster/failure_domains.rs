//! Chunk servers in made-up racks, with real processes: replicas keep apart, and move when the policy or the racks change.

use crate::common::{self, Cluster, pattern, read, wait_until, write_synced};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// The servers of each chunk of a file.
fn places(c: &Cluster, path: &str) -> Vec<Vec<u64>> {
    let explained = c.json(&["explain", path]);
    let of = |chunk: &serde_json::Value| {
        let replicas = chunk["replicas"].as_array().expect("a list");
        replicas.iter().map(|r| r["cs"].as_u64().expect("a number")).collect()
    };
    explained["chunks"].as_array().expect("a list").iter().map(of).collect()
}

fn misplaced(c: &Cluster) -> u64 {
    c.json(&["stat"])["chunks"]["misplaced"].as_u64().expect("a number")
}

#[test]
fn replicas_stand_in_different_racks() {
    let c = Cluster::new("racks");
    c.up_with(&["--mds", "1", "--cs", "4", "--shards", "1", "--capacity", "512M"]);
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let image = pattern(3, 20 << 8);
    write_synced(&c.mnt("image"), &image);
    c.wait_healthy();
    assert_eq!(misplaced(&c), 0, "disks are distinct");

    // Two servers in the first rack, one each in two others.
    c.down();
    let racks: BTreeMap<u64, &str> =
        BTreeMap::from([(1, "cellar.1.a"), (2, "cellar.1.a"), (3, "cellar.1.b"), (4, "cellar.2.a")]);
    for (cs, rack) in &racks {
        c.ok(&["configure-cs", "-r", &c.dir.path(&format!("cs{cs}")), "--location", rack]);
    }
    c.up();
    let located =
        c.json(&["stat"])["cs"].as_array().unwrap().iter().all(|cs| {
            Some(cs["location"].as_str().unwrap()) == racks.get(&cs["cs"].as_u64().unwrap()).copied()
        });
    assert!(located, "{}", c.admin(&["stat"]));

    // The policy of what is there changes: chunks with two replicas in rack a move one away.
    let racks_of = |chunk: &Vec<u64>| chunk.iter().map(|cs| racks[cs]).collect::<BTreeSet<_>>().len();
    let apart = |c: &Cluster, path: &str| places(c, path).iter().all(|chunk| racks_of(chunk) == 3);
    assert!(!apart(&c, "/image"), "by chance every chunk of {} was spread well", places(&c, "/image").len());
    c.admin(&["set-attr", "-R", "/", "failure-domain=rack"]);
    let is_spread = |chunk: &Vec<u64>| chunk.len() == 3 && racks_of(chunk) == 3;
    wait_until("all chunks spread over racks", LONG, || places(&c, "/image").iter().all(is_spread));
    assert_eq!(misplaced(&c), 0);
    c.wait_healthy();
    assert!(read(&c.mnt("image")) == image);
    c.check();

    // New chunks too.
    write_synced(&c.mnt("second"), &pattern(4, 20 << 8));
    assert!(apart(&c, "/second"), "{:?}", places(&c, "/second"));

    // A rack goes away for good: its replicas get other places, two in a rack for lack of a third one, and it shows.
    c.admin(&["set-config", "mds.wd.offline_tout=2000"]);
    c.kill("cs4");
    wait_until("replicas beside others, and seen so", LONG, || {
        let stat = c.json(&["stat"]);
        let chunks = &stat["chunks"];
        chunks["misplaced"] == chunks["total"] && chunks["degraded"] == chunks["total"]
    });
    assert!(c.admin(&["stat"]).contains("misplaced (policy not met)"));
    // It comes back, and they spread again.
    c.up();
    wait_until("all chunks spread over racks again", LONG, || misplaced(&c) == 0);
    c.wait_healthy();
    assert!(apart(&c, "/image") && apart(&c, "/second"));
    assert!(read(&c.mnt("image")) == image);
    c.check();
}

#[test]
fn tiers_and_bad_locations_are_checked() {
    let c = Cluster::new("tiers");
    c.up_with(&["--mds", "1", "--cs", "3", "--shards", "1", "--capacity", "512M", "--replicas", "1:1"]);
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    c.down();
    let dir = c.dir.path("cs3");
    common::run("pstorage", &["configure-cs", "-r", &dir, "--location", "a.b"]).refused(&["ROOM.ROW.RACK"]);
    c.ok(&["configure-cs", "-r", &dir, "-t", "2"]);
    // The location of the host, for servers that have none of their own.
    std::fs::write(c.dir.0.join("etc/location"), "hall.3.r7\n").unwrap();
    c.up();
    let stat = c.json(&["stat"]);
    for cs in stat["cs"].as_array().unwrap() {
        assert_eq!(
            (&cs["location"], &cs["tier"]),
            (&"hall.3.r7".into(), &(u64::from(cs["cs"] == 3) * 2).into())
        );
    }
    write_synced(&c.mnt("fast"), &pattern(5, 12 << 8));
    assert!(places(&c, "/fast").iter().all(|chunk| chunk[0] != 3), "{:?}", places(&c, "/fast"));
    c.admin(&["set-attr", "/fast", "tier=2"]);
    wait_until("the file on its tier", LONG, || places(&c, "/fast").iter().all(|chunk| chunk == &[3]));
    assert_eq!(misplaced(&c), 0);
    assert!(read(&c.mnt("fast")) == pattern(5, 12 << 8));
    c.check();
}
