//! Removal of chunk servers with real processes, under writes: drained, cancelled, refused, forced.

use crate::common::{Cluster, Load, pattern, read, run, wait_until, write_synced};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

fn replicas_on(c: &Cluster, cs: u64) -> u64 {
    let stat = c.json(&["stat"]);
    let found = stat["cs"].as_array().unwrap().iter().find(|s| s["cs"] == cs).cloned();
    found.and_then(|s| s["replicas"].as_u64()).expect("a chunk server")
}

fn status_of(c: &Cluster, cs: u64) -> String {
    let stat = c.json(&["stat"]);
    let found = stat["cs"].as_array().unwrap().iter().find(|s| s["cs"] == cs).cloned();
    found.expect("a chunk server")["status"].as_str().unwrap().to_string()
}

#[test]
fn a_chunk_server_is_drained_under_writes() {
    let c = Cluster::new("drain");
    c.up_with(&["--cs", "4", "--shards", "1", "--capacity", "512M"]);
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let image = pattern(1, 20 << 8);
    write_synced(&c.mnt("image"), &image);
    assert!(replicas_on(&c, 2) > 0);

    let stop = AtomicBool::new(false);
    let mut load = Load::new(&c.mnt("load"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                load.run_for(Duration::from_millis(100));
            }
        });
        let said = c.admin(&["--json", "rm-cs", "--wait", "2"]);
        stop.store(true, Ordering::Relaxed);
        let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!((&last["dropped"], &last["replicas_left"]), (&true.into(), &0.into()), "{said}");
    });
    println!("longest synced write while a chunk server was drained: {:?}", load.longest);
    assert_eq!(status_of(&c, 2), "dropped");
    for file in ["/image", "/load"] {
        let explained = c.json(&["explain", file]);
        for chunk in explained["chunks"].as_array().unwrap() {
            let replicas = chunk["replicas"].as_array().unwrap();
            assert!(replicas.iter().all(|r| r["cs"] != 2) && replicas.len() == 3, "{chunk}");
        }
    }
    c.wait_healthy();
    load.close();
    load.verify(&c.mnt("load"));
    assert!(read(&c.mnt("image")) == image);
    c.check();
    // Its process has ended, and it does not come back.
    wait_until("the removed server to end", LONG, || {
        let status = run("pstorage", &["--json", "local", "status", c.root()]);
        let status: serde_json::Value = serde_json::from_str(status.ok()).unwrap();
        status["services"].as_array().unwrap().iter().any(|s| s["name"] == "cs2" && s["pid"].is_null())
    });
    run("pstorage-csd", &["-r", &c.dir.path("cs2"), "--etc", &c.dir.path("etc")])
        .refused(&["removed from the cluster"]);
    let admin = |args: &[&str]| {
        let etc = c.dir.path("etc");
        run("pstorage", &[&["-c", "local", "--etc", &etc], args].concat())
    };
    admin(&["rm-cs", "2"]).refused(&["CS#2 has been removed already"]);
    admin(&["rm-cs", "9"]).refused(&["no CS#9"]);
    // Three are left for three replicas.
    admin(&["rm-cs", "1"]).refused(&[
        "replicas=3",
        "2 other chunk servers",
        "add a chunk server",
        "Nothing was changed",
    ]);
    assert_eq!(status_of(&c, 1), "active");
    // The rest starts again without it.
    c.down();
    c.up();
    c.wait_healthy();
    assert!(read(&c.mnt("image")) == image);
}

#[test]
fn removals_are_cancelled_forced_and_refused() {
    let c = Cluster::new("rm-cs");
    c.up_with(&["--mds", "1", "--cs", "5", "--shards", "1", "--capacity", "512M"]);
    let admin = |args: &[&str]| {
        let etc = c.dir.path("etc");
        run("pstorage", &[&["-c", "local", "--etc", &etc], args].concat())
    };
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let image = pattern(2, 60 << 8);
    write_synced(&c.mnt("image"), &image);

    // Slowly, so that it can be cancelled on the way.
    c.admin(&["set-config", "mds.repl.max_rate=1"]);
    std::thread::sleep(Duration::from_millis(2500)); // Chunk servers hear of it within a second.
    let before = replicas_on(&c, 1);
    let began = Instant::now();
    assert!(c.admin(&["rm-cs", "1"]).contains("is being removed"));
    assert!(c.admin(&["stat"]).contains("draining"));
    wait_until("some of it to move", LONG, || replicas_on(&c, 1) + 6 <= before);
    let (moved, seconds) = (before - replicas_on(&c, 1), began.elapsed().as_secs_f64());
    // Each of five servers copies a chunk of 1 MB a second.
    assert!(moved as f64 <= 5.0 * (seconds + 1.0), "{moved} chunks in {seconds} s at 1 MB/s each");
    let said = c.admin(&["stat"]);
    assert!(said.contains("chunks wait") && said.contains(" s left"), "{said}");
    assert!(c.admin(&["rm-cs", "--cancel", "1"]).contains("CS#1 stays"));
    admin(&["rm-cs", "--cancel", "1"]).refused(&["CS#1 is not being removed"]);
    c.admin(&["set-config", "mds.repl.max_rate=0"]);
    wait_until("rest", LONG, || {
        let stat = c.json(&["stat"]);
        stat["chunks"]["overcommitted"] == 0 && stat["repair"]["copying"] == 0
    });
    c.wait_healthy();
    let left = replicas_on(&c, 1);
    assert!(left > 0, "it was drained before it could be cancelled");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((replicas_on(&c, 1), status_of(&c, 1).as_str()), (left, "active"));

    // Only one replica of something: by force it would be lost.
    c.admin(&["set-attr", "/image", "replicas=1:1"]);
    c.wait_healthy();
    wait_until("one replica of each chunk", LONG, || {
        let explained = c.json(&["explain", "/image"]);
        explained["chunks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|chunk| chunk["replicas"].as_array().unwrap().len() == 1)
    });
    let holder = c.json(&["explain", "/image"])["chunks"][0]["primary"].as_u64().unwrap();
    let id = holder.to_string();
    admin(&["rm-cs", "-f", &id]).refused(&[
        "only good replica",
        "/image",
        "would be lost",
        "Nothing was changed",
    ]);
    c.kill(&format!("cs{holder}"));
    wait_until("it to be seen as gone", LONG, || status_of(&c, holder) != "active");
    admin(&["rm-cs", &id]).refused(&["is not there", "/image", "start it first"]);
    c.up();
    c.admin(&["set-attr", "/image", "replicas=3:2"]);
    c.wait_healthy();

    // A dead one: what it had is copied from the others at once.
    c.kill("cs4");
    wait_until("cs4 to be seen as gone", LONG, || status_of(&c, 4) != "active");
    c.admin(&["rm-cs", "--wait", "4"]);
    assert_eq!((status_of(&c, 4).as_str(), replicas_on(&c, 4)), ("dropped", 0));
    c.wait_healthy();
    // By force, alive: its chunks are copied afterwards.
    assert!(c.admin(&["rm-cs", "--force", "5"]).contains("has been removed"));
    assert_eq!(status_of(&c, 5), "dropped");
    c.wait_healthy();
    assert!(read(&c.mnt("image")) == image);
    c.check();
}
