//! Clones of files: at once, without room of their own, and nobody's writes are seen in the other.

use crate::common::{Cluster, run, wait_until};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn contents(c: &Cluster, name: &str) -> Vec<u8> {
    let mut all = Vec::new();
    File::open(c.mnt(name)).expect("opened").read_to_end(&mut all).expect("read");
    all
}

/// Writes to a file, in the cluster and here.
fn write(file: &File, model: &mut [u8], offset: usize, byte: u8, len: usize) {
    let data = vec![byte; len];
    file.write_all_at(&data, offset as u64).expect("written");
    model[offset..offset + len].copy_from_slice(&data);
}

fn used_bytes(c: &Cluster) -> u64 {
    let stat = c.json(&["stat"]);
    let servers = stat["cs"].as_array().expect("a list").iter();
    servers
        .map(|cs| cs["total_bytes"].as_u64().expect("bytes") - cs["free_bytes"].as_u64().expect("bytes"))
        .sum()
}

#[test]
fn a_clone_is_made_at_once_and_goes_its_own_way_while_servers_die() {
    let c = Cluster::new("clones");
    c.up_with(&["--mds", "3", "--cs", "3", "--shards", "2", "--replicas", "3:2", "--capacity", "2G"]);
    c.wait_healthy();
    let mut original: Vec<u8> = (0..150 * MIB).map(|i| (i / 4096 * 7 + i % 251) as u8).collect();
    fs::write(c.mnt("template"), &original).expect("written");
    fs::create_dir(c.mnt("vm")).expect("made");
    wait_until("the room to be told", Duration::from_secs(20), || used_bytes(&c) > 440 * MIB as u64);

    let began = Instant::now();
    assert!(c.admin(&["clone", "/template", "/vm/one"]).contains("/vm/one is a clone of /template"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let mut clone = original.clone();
    assert!(contents(&c, "vm/one") == clone, "the clone is another");
    let etc = c.dir.path("etc");
    let refused = |args: &[&str], parts: &[&str]| {
        run("pstorage", &[&["-c", "local", "--etc", &etc, "clone"], args].concat()).refused(parts);
    };
    refused(&["/template", "/vm/one"], &["exists"]);
    refused(&["/none", "/vm/two"], &["/none", "no such"]);
    refused(&["/template", "/none/two"], &["/none", "no such"]);
    refused(&["/vm", "/two"], &["/vm is not a regular file"]);
    let one = OpenOptions::new().write(true).open(c.mnt("vm/one")).expect("opened");

    // Both sides are written to, in small pieces and large ones, over the borders of blocks and chunks, and a server dies
    // while forks are made.
    let template = OpenOptions::new().write(true).open(c.mnt("template")).expect("opened");
    write(&one, &mut clone, 5_000, 1, 10);
    write(&template, &mut original, 70 * MIB + 123, 2, 100_000);
    c.kill("cs2");
    write(&one, &mut clone, 64 * MIB - 1_000, 3, 2_000);
    write(&one, &mut clone, 140 * MIB, 4, 3 * MIB);
    write(&template, &mut original, 1, 5, 4096);
    fallocate(
        &one,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        10 * MIB as i64,
        MIB as i64,
    )
    .expect("punched");
    clone[10 * MIB..11 * MIB].fill(0);
    one.sync_all().expect("durable");
    template.sync_all().expect("durable");
    let told = |name: &str, expected: &[u8]| {
        let found = contents(&c, name);
        let at = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((found.len(), at), (expected.len(), None), "{name}");
    };
    drop((one, template));
    told("vm/one", &clone);
    told("template", &original);
    c.up();
    c.wait_healthy();
    c.admin(&["check"]);
    // What the server that was away got copied of the forks is not shared there; copies of all would take 900 MiB.
    assert!(used_bytes(&c) < (3 * 150 + 2 * 64 + 60) * MIB as u64, "{} bytes in use", used_bytes(&c));

    // A clone of the clone outlives both.
    c.admin(&["clone", "/vm/one", "/two"]);
    fs::remove_file(c.mnt("template")).expect("removed");
    fs::remove_file(c.mnt("vm/one")).expect("removed");
    told("two", &clone);
    assert!(c.admin(&["explain", "/two"]).contains("3 healthy"));
    fs::remove_file(c.mnt("two")).expect("removed");
    wait_until("the room to be free", Duration::from_secs(60), || used_bytes(&c) < 20 * MIB as u64);
}

/// Block `n % BLOCKS` holds the newest number that was written to it, or 0.
fn numbers(contents: &[u8]) -> Vec<u64> {
    contents.chunks(4096).map(|block| u64::from_le_bytes(block[..8].try_into().expect("8 bytes"))).collect()
}

#[test]
fn a_clone_of_a_file_that_is_written_to_is_as_the_file_was_at_one_moment() {
    const BLOCKS: u64 = 48;
    let c = Cluster::new("running");
    c.up_with(&["--mds", "3", "--cs", "3", "--shards", "1", "--replicas", "3:2", "--capacity", "2G"]);
    c.wait_healthy();
    fs::write(c.mnt("vm"), vec![0; BLOCKS as usize * 4096]).expect("written");
    let file = OpenOptions::new().read(true).write(true).open(c.mnt("vm")).expect("opened");
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    // The writer ends with a failure too.
    struct AtEnd<'a>(&'a AtomicBool);
    impl Drop for AtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let after = |clone: usize| format!("clone{clone}");
    let mut between = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut n, mut longest) = (0u64, Duration::ZERO);
            while !stop.load(Ordering::SeqCst) {
                n += 1;
                let mut block = [n as u8; 4096];
                block[..8].copy_from_slice(&n.to_le_bytes());
                let began = Instant::now();
                file.write_all_at(&block, n % BLOCKS * 4096).expect("written");
                file.sync_data().expect("durable");
                longest = longest.max(began.elapsed());
                acknowledged.store(n, Ordering::SeqCst);
            }
            (n, longest)
        });
        let at_end = AtEnd(&stop);
        for clone in 0..8 {
            wait_until("some more to be written", Duration::from_secs(60), || {
                acknowledged.load(Ordering::SeqCst) > 20 * (clone as u64 + 1)
            });
            let before = acknowledged.load(Ordering::SeqCst);
            c.admin(&["clone", "/vm", &format!("/{}", after(clone))]);
            between.push((before, acknowledged.load(Ordering::SeqCst)));
        }
        drop(at_end);
        let (last, longest) = writer.join().expect("no panic");
        assert!(longest < Duration::from_secs(8), "the writer stood still for {longest:?}");
        let expected = |upto: u64| -> Vec<u64> {
            (0..BLOCKS).map(|at| (1..=upto).rev().find(|n| n % BLOCKS == at).unwrap_or(0)).collect()
        };
        for (clone, (before, later)) in between.iter().enumerate() {
            let found = numbers(&contents(&c, &after(clone)));
            let upto = found.iter().copied().max().unwrap_or(0);
            assert!((*before..=*later + 1).contains(&upto), "{clone}: {upto} of {before} to {later}");
            assert_eq!(found, expected(upto), "clone {clone}, of a moment when {upto} was the newest");
        }
        assert_eq!(numbers(&contents(&c, "vm")), expected(last));
    });

    drop(file);
    c.admin(&["check"]);
}
