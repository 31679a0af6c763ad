//! Bits that turn on disks: found when read and by the scrub, never returned, repaired from other replicas.

mod common;
use common::{Cluster, pattern, read, wait_until, write_synced};
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SHARDS: [&str; 2] = ["shard-000", "shard-001"];

/// A stopped cluster whose servers have written back `image` of 16 MiB, in chunks on all shards.
fn cluster_with(name: &str, image: &[u8]) -> Cluster {
    let c = Cluster::new(name);
    c.up();
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    c.admin(&["set-config", "cs.scrub.period=0"]);
    write_synced(&c.mnt("image"), image);
    c.check();
    c.down();
    c.up_with(&[]); // Starting applies all that stood in the journals.
    c.wait_healthy();
    c.down();
    c
}

/// Turns one bit in each of up to `most` different blocks that hold something; returns how many.
fn flip_bits(c: &Cluster, cs: &str, file: &str, most: usize) -> usize {
    let mut flipped = 0;
    for shard in SHARDS {
        let path = c.dir.path(&format!("{cs}/{shard}/{file}"));
        let mut data = fs::read(&path).unwrap();
        for (at, block) in data.chunks_mut(4096).enumerate() {
            if flipped < most && block.iter().any(|&b| b != 0) {
                // Any place will do, but not always the same.
                block[at * 1031 % 4096] ^= 1 << (at % 8);
                flipped += 1;
            }
        }
        fs::write(&path, data).unwrap();
    }
    flipped
}

fn events(c: &Cluster, text: &str) -> usize {
    c.admin(&["get-event"]).lines().filter(|l| l.contains(text)).count()
}

#[test]
fn a_thousand_flipped_bits_are_found_by_the_scrub_and_repaired() {
    let image = pattern(5, 4096);
    let c = cluster_with("scrub", &image);
    assert_eq!(flip_bits(&c, "cs2", "data", 1000), 1000);
    c.up_with(&[]);
    c.wait_healthy();
    assert_eq!(events(&c, "hard error"), 0, "nobody has looked yet");
    let stat = c.json(&["stat"]);
    assert!(
        stat["cs"][1]["scrub_damaged"] == 0 && stat["cs"][1]["scrub_total_bytes"].as_u64() >= Some(16 << 20)
    );
    c.admin(&["set-config", "cs.scrub.period=1"]);
    wait_until("the damage to be found", Duration::from_secs(60), || {
        events(&c, "CS#2 has reported hard error") > 3
    });
    let progress = || {
        let cs = &c.json(&["stat"])["cs"][1];
        let number = |field: &str| cs[field].as_u64().expect("a number");
        (number("scrubbed_bytes") + number("scrub_passes"), number("scrub_damaged"))
    };
    wait_until("the scrub's progress in stat", Duration::from_secs(10), || {
        progress().0 > 0 && progress().1 > 0
    });
    let text = c.admin(&["stat"]);
    assert!(text.contains("SCRUB") && text.contains("% of pass "), "{text}");
    c.admin(&["set-config", "cs.scrub.period=0"]);
    // Whatever the scrub has not come to yet, the deep comparison finds.
    let etc = c.dir.path("etc");
    common::run("pstorage", &["-c", "local", "--etc", &etc, "check", "--repair"]);
    c.wait_healthy();
    c.check();
    assert!(read(&c.mnt("image")) == image, "what was read is not what was written");
    // What was repaired is whole on the disk too: read it from there, after a restart.
    c.down();
    c.up_with(&[]);
    c.wait_healthy();
    c.check();
    assert!(read(&c.mnt("image")) == image);
}

#[test]
fn damaged_blocks_and_map_pages_are_answered_from_other_replicas_and_repaired() {
    let image = pattern(6, 4096);
    let c = cluster_with("flips", &image);
    flip_bits(&c, "cs1", "data", usize::MAX);
    flip_bits(&c, "cs2", "maps", usize::MAX);
    c.up_with(&[]);
    assert!(read(&c.mnt("image")) == image, "damage was returned");
    assert!(events(&c, "has reported hard error on chunk") > 0);
    let etc = c.dir.path("etc");
    wait_until("every replica to be whole", Duration::from_secs(60), || {
        common::run("pstorage", &["-c", "local", "--etc", &etc, "check", "--repair"]).code == 0
    });
    c.wait_healthy();
    assert!(read(&c.mnt("image")) == image);
}

#[test]
fn what_no_replica_has_whole_is_an_error_and_not_other_bytes() {
    let image = pattern(7, 256);
    let c = cluster_with("lost", &image);
    for cs in ["cs1", "cs2", "cs3"] {
        flip_bits(&c, cs, "data", usize::MAX);
    }
    c.up_with(&[]);
    let error = fs::read(c.mnt("image")).expect_err("all replicas are damaged");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
}

#[test]
fn what_the_last_replica_has_lost_stays_lost_and_all_else_goes_on() {
    let image = pattern(8, 512);
    let c = cluster_with("last", &image);
    assert_eq!(flip_bits(&c, "cs1", "data", 3), 3);
    c.up_with(&[]);
    c.wait_healthy();
    // Two of three servers are lost for good, before anybody has looked.
    c.admin(&["set-config", "mds.wd.offline_tout=1000", "mds.wd.max_offline_cs_hosts=0"]);
    let dead = ["cs2", "cs3"];
    dead.iter().for_each(|cs| c.kill(cs));
    for cs in dead {
        fs::remove_dir_all(c.dir.path(cs)).unwrap();
    }
    let state = |word: &str| c.json(&["stat"])["chunks"][word].as_u64().unwrap();
    let total = state("total");
    wait_until("one replica to be left", Duration::from_secs(60), || state("blocked") == total);
    let bad_blocks = || {
        let file = fs::File::open(c.mnt("image")).unwrap();
        let is_bad = |block: &usize| {
            let mut bytes = vec![0; 4096];
            match file.read_exact_at(&mut bytes, *block as u64 * 4096) {
                Ok(()) => {
                    assert!(bytes == image[block * 4096..][..4096], "block {block} has other bytes");
                    false
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(5), "{error}");
                    true
                }
            }
        };
        (0..512).filter(is_bad).collect::<Vec<usize>>()
    };
    let lost = bad_blocks();
    assert_eq!(lost.len(), 3, "all else can be read");

    // New servers take over. The one that was lost last has all that was acknowledged: what only it may have is not given up
    // before it is said that it will not come back.
    c.up_with(&["--cs", "5", "--capacity", "1G"]);
    wait_until("copies to be begun", Duration::from_secs(60), || {
        let told = c.admin(&["explain", "/image"]);
        told.contains("with all that was ever acknowledged")
            && told.contains("is being filled with everything")
    });
    std::thread::sleep(Duration::from_secs(4)); // The primary asks every two seconds whether it may give them up.
    assert!(state("healthy") < total && state("lossy") == 0);
    assert_eq!(bad_blocks(), lost);
    // Then all but these blocks is copied, and what is lost stays known as lost.
    dead.iter().for_each(|cs| drop(c.admin(&["rm-cs", "-f", &cs[2..]])));
    wait_until("three replicas", Duration::from_secs(60), || state("healthy") == total);
    assert!((1..=2).contains(&state("lossy")));
    assert_eq!(bad_blocks(), lost);
    assert!(events(&c, "are gone: they are damaged on CS#1") > 0);
    let told = c.admin(&["explain", "/image"]);
    assert!(told.contains("lossy") && told.contains("reading them is an error"), "{told}");

    // Another leads: the same. Then they are written anew.
    c.kill("cs1");
    assert_eq!(bad_blocks(), lost);
    let file = fs::OpenOptions::new().write(true).open(c.mnt("image")).unwrap();
    for block in lost {
        file.write_all_at(&image[block * 4096..][..4096], block as u64 * 4096).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    assert!(read(&c.mnt("image")) == image);
}
