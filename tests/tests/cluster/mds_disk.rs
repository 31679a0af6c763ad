//! A metadata server whose disk is full takes itself out before it forgets anything, says why, and comes back when there is
//! room; the others go on.

use crate::common::{Cluster, run_command, wait_until};
use pstorage_tests::real::{Disk, is_running};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

/// Far longer than it takes on an idle machine.
const SOON: Duration = Duration::from_secs(120);
/// Room for the journal of a metadata server (64 MiB) and its snapshots of what is made here.
const DISK_BYTES: u64 = 256 << 20;

#[test]
fn a_metadata_server_with_a_full_disk_says_so_and_leaves() {
    let c = Cluster::new("mdsfull");
    c.up();
    c.down();
    // The third server moves to a small disk.
    let (dir, aside) = (c.dir.0.join("mds3"), c.dir.0.join("aside"));
    std::fs::rename(&dir, &aside).expect("renamed");
    let disk = Disk::new(&c.dir.0.join("image"), &dir, DISK_BYTES);
    run_command(Command::new("cp").arg("-a").arg(aside.join(".")).arg(&dir)).ok();
    c.up_with(&[]);
    c.wait_healthy();
    disk.fill();

    // Long entries, until its journal is full.
    let target = "x".repeat(4000);
    let pid = c.pid("mds3") as i32;
    let began = Instant::now();
    let mut made = 0;
    while is_running(pid) {
        assert!(began.elapsed() < SOON, "{made} links were made, and it goes on{}", c.logs());
        symlink(&target, c.mnt(&format!("link{made}"))).expect("the others go on");
        made += 1;
    }
    println!("{made} links until it ended");
    let said = std::fs::read_to_string(c.dir.0.join("logs/mds3.out")).expect("readable");
    assert!(said.contains("No space left") && said.contains("Free some space"), "{said}");
    std::fs::create_dir(c.mnt("goes-on")).expect("the others go on");
    let there = |n: u64| {
        let stat = c.json(&["stat"]);
        let mds = stat["mds"].as_array().cloned().unwrap_or_default();
        mds.iter().any(|m| m["mds"] == n && m["available"] == true)
    };
    wait_until("the server to be seen as away", SOON, || !there(3));

    disk.free_up();
    c.up_with(&[]);
    wait_until("the server to be back", SOON, || there(3));
    // With all that was made meanwhile: it alone with another one is a majority.
    let pid = c.pid("mds1") as i32;
    c.kill("mds1");
    wait_until("the other one to end", SOON, || !is_running(pid));
    std::fs::create_dir(c.mnt("with-the-third")).expect("two of three go on");
    assert!(c.mnt(&format!("link{}", made - 1)).is_symlink());
    c.up_with(&[]);
    c.wait_healthy();
    c.down();
}
