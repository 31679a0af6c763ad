//! Chunk servers lost one after another under writes, with real processes: nothing fails, nothing acknowledged is lost, and
//! those that return are sent what they lack and no more.

mod common;

use common::{Cluster, Load, pattern, read, write_synced};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const CHUNKS: u64 = 12;
const CHUNK_BYTES: u64 = 4 << 20;
const BLOCK_BYTES: u64 = 4096;

/// Sum over all chunk servers. Those of a server that was started again begin at zero.
fn sum(stat: &serde_json::Value, counter: &str) -> u64 {
    let servers = stat["cs"].as_array().expect("a list");
    servers.iter().map(|cs| cs[counter].as_u64().unwrap_or_else(|| panic!("no {counter} in {cs}"))).sum()
}

/// A file of several chunks, of which one block each is overwritten now and then.
struct Image {
    bytes: Vec<u8>,
    longest: Duration,
}

impl Image {
    fn new(c: &Cluster) -> Image {
        let bytes = pattern(1, (CHUNKS * CHUNK_BYTES / BLOCK_BYTES) as usize);
        write_synced(&c.mnt("image"), &bytes);
        Image { bytes, longest: Duration::ZERO }
    }

    /// Writes and syncs one block of each chunk.
    fn touch(&mut self, c: &Cluster, seed: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(c.mnt("image")).expect("opens");
        for chunk in 0..CHUNKS {
            let block = pattern(seed * 1000 + chunk, 1);
            let at = chunk * CHUNK_BYTES + seed * 17 % 1000 * BLOCK_BYTES;
            let began = Instant::now();
            file.write_all_at(&block, at).expect("writes go on");
            file.sync_data().expect("syncs go on");
            self.longest = self.longest.max(began.elapsed());
            self.bytes[at as usize..at as usize + block.len()].copy_from_slice(&block);
        }
    }
}

#[test]
fn two_chunk_servers_lost_one_after_another_cost_a_short_stall_and_return_by_catch_up() {
    let c = Cluster::new("two-lost");
    // With a minimum of one the chunks that lose two of their three replicas go on too.
    c.up_with(&["--cs", "5", "--replicas", "3:1", "--shards", "1", "--capacity", "1G"]);
    c.admin(&["set-attr", "/", "chunk-size=4M"]);
    let mut image = Image::new(&c);
    let mut load = Load::new(&c.mnt("load"));
    // Long enough for watermarks to reach the disks: what a replica does not know to be committed is sent again.
    load.run_for(Duration::from_secs(4));
    c.wait_healthy();
    let before = c.json(&["stat"]);

    for (seed, lost) in [(1, "cs1"), (2, "cs2")] {
        c.kill(lost);
        image.touch(&c, seed);
        load.run_for(Duration::from_secs(3));
    }
    let stall = image.longest.max(load.longest);
    println!("two chunk servers killed: longest synced write {stall:?}");
    assert!(stall < Duration::from_secs(5), "a write stalled for {stall:?}{}", c.logs());

    // Both come back. Most of the chunks had a replica on one of them.
    c.up();
    load.run_for(Duration::from_millis(500));
    c.wait_healthy();
    let after = c.json(&["stat"]);
    let grown = |counter| {
        // Those of the killed servers were lost with them: what the others counted is what repaired.
        let others = |stat: &serde_json::Value| {
            let list = stat["cs"].as_array().expect("a list").iter();
            let list: Vec<_> = list.filter(|cs| cs["cs"].as_u64() > Some(2)).cloned().collect();
            sum(&serde_json::json!({ "cs": list }), counter)
        };
        others(&after) - others(&before)
    };
    let (catch_ups, bytes) = (grown("catch_ups"), sum(&after, "catch_up_bytes"));
    let (full, full_bytes) = (grown("full_copies"), sum(&after, "full_copy_bytes"));
    let behind = catch_ups + full;
    println!("{catch_ups} catch-ups of {} KiB, {full} full copies of {} KiB", bytes >> 10, full_bytes >> 10);
    assert!(catch_ups >= 6, "{behind} replicas were behind, {catch_ups} were caught up: {after:#}");
    // The load writes the whole of its chunk again and again: for that one a catch-up would be no less.
    assert!(full <= 2, "those that held data when they left and came back whole are caught up: {after:#}");
    let needed_whole = behind * CHUNK_BYTES;
    assert!(bytes + full_bytes < needed_whole / 4, "{bytes} + {full_bytes} of {needed_whole} bytes");

    assert!(read(&c.mnt("image")) == image.bytes, "what was acknowledged is there");
    load.verify(&c.mnt("load"));
    load.close();
    c.check(); // compares all replicas
}
