//! Chunk servers lost one after another under writes, with real processes and the default settings: nothing fails, nothing
//! acknowledged is lost, and those that return are sent what they lack and no more.

mod common;

use common::{Cluster, Load, pattern, read, write_synced};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const BLOCK_BYTES: u64 = 4096;
/// Longest that a write may take.
const STALL: Duration = Duration::from_secs(5);

/// Sum over all chunk servers. Those of a server that was started again begin at zero.
fn sum(stat: &serde_json::Value, counter: &str) -> u64 {
    let servers = stat["cs"].as_array().expect("a list");
    servers.iter().map(|cs| cs[counter].as_u64().unwrap_or_else(|| panic!("no {counter} in {cs}"))).sum()
}

/// A file of several chunks, of which one block each is overwritten now and then.
struct Image {
    bytes: Vec<u8>,
    chunk_bytes: u64,
    longest: Duration,
}

impl Image {
    fn new(c: &Cluster, chunks: u64, chunk_bytes: u64) -> Image {
        let bytes = pattern(1, (chunks * chunk_bytes / BLOCK_BYTES) as usize);
        write_synced(&c.mnt("image"), &bytes);
        Image { bytes, chunk_bytes, longest: Duration::ZERO }
    }

    /// Writes and syncs one block of each chunk.
    fn touch(&mut self, c: &Cluster, seed: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(c.mnt("image")).expect("opens");
        for at in (0..self.bytes.len() as u64).step_by(self.chunk_bytes as usize) {
            let block = pattern(seed * 1000 + at / self.chunk_bytes, 1);
            let at = at + seed * 17 % 1000 * BLOCK_BYTES;
            let began = Instant::now();
            file.write_all_at(&block, at).expect("writes go on");
            file.sync_data().expect("syncs go on");
            self.longest = self.longest.max(began.elapsed());
            self.bytes[at as usize..at as usize + block.len()].copy_from_slice(&block);
        }
    }
}

/// Chunks of the image that have replicas on both of these chunk servers. With two of three gone they are below their minimum,
/// and must be copied whole before writes go on.
fn on_both(c: &Cluster, lost: [u64; 2]) -> u64 {
    let chunks = c.json(&["explain", "/image"])["chunks"].as_array().expect("a list").clone();
    let is_on = |chunk: &&serde_json::Value, cs: u64| {
        chunk["replicas"].as_array().is_some_and(|all| all.iter().any(|r| r["cs"] == cs))
    };
    chunks.iter().filter(|chunk| lost.iter().all(|cs| is_on(chunk, *cs))).count() as u64
}

/// Two of five chunk servers are killed one after the other, each time `alone` passes, then all are away for `away`.
fn two_lost(name: &str, chunks: u64, chunk_bytes: u64, alone: Duration, away: Duration) {
    let c = Cluster::new(name);
    let capacity = format!("{}M", ((3 * chunks * chunk_bytes) >> 20).max(1024));
    c.up_with(&["--cs", "5", "--shards", "1", "--capacity", &capacity]);
    c.admin(&["set-attr", "/", &format!("chunk-size={chunk_bytes}")]);
    let mut image = Image::new(&c, chunks, chunk_bytes);
    let mut load = Load::new(&c.mnt("load"));
    // Long enough for watermarks to reach the disks: what a replica does not know to be committed is sent again.
    load.run_for(Duration::from_secs(4));
    c.wait_healthy();
    let before = c.json(&["stat"]);
    let whole = on_both(&c, [1, 2]) + 1; // the load's chunk may be one of them

    for (seed, lost) in [(1, "cs1"), (2, "cs2")] {
        c.kill(lost);
        image.touch(&c, seed);
        load.run_for(alone);
    }
    load.run_for(away);
    image.touch(&c, 3);
    let stall = image.longest.max(load.longest);
    println!("two chunk servers killed: longest synced write {stall:?}");
    assert!(stall < STALL, "a write stalled for {stall:?}{}", c.logs());

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
    println!(
        "{catch_ups} catch-ups of {} KiB, {full} full copies of {} KiB; {whole} chunks were on both",
        bytes >> 10,
        full_bytes >> 10
    );
    assert!(catch_ups >= chunks / 4, "{catch_ups} were caught up: {after:#}");
    // The load writes the whole of its chunk again and again: for that one a catch-up would be no less.
    assert!(
        full <= whole + 2,
        "those that held data when they left and came back whole are caught up: {after:#}"
    );
    assert!(bytes < catch_ups * chunk_bytes / 4, "{bytes} bytes of {catch_ups} chunks");

    assert!(read(&c.mnt("image")) == image.bytes, "what was acknowledged is there");
    load.verify(&c.mnt("load"));
    load.close();
    c.check(); // compares all replicas
}

#[test]
fn two_chunk_servers_lost_one_after_another_cost_a_short_stall_and_return_by_catch_up() {
    two_lost("two-lost", 12, 4 << 20, Duration::from_secs(3), Duration::from_secs(2));
}

/// The same with chunks of the default size, away for a minute. Takes two minutes and 4 GB.
#[test]
#[ignore = "takes two minutes: cargo test --release -p pstorage-tests --test catch_up -- --ignored"]
fn two_chunk_servers_lost_for_a_minute_return_by_catch_up() {
    two_lost("two-lost-long", 12, 64 << 20, Duration::from_secs(10), Duration::from_secs(60));
}
