//! Clones of files: at once, without room of their own, and nobody's writes are seen in the other.

use crate::common::{Cluster, run, wait_until};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
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
    refused(&["/vm/one", "/two"], &["/vm/one is open for writing", "stop what uses it"]);

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
