//! The read cache of a mount, through FUSE: hits, what goes past it, two mounts of one file, and a damaged cache file.

use crate::common::{Cluster, pattern, run, wait_until, write_synced};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BLOCK: u64 = 64 << 10;

/// A second mount of the cluster, with a cache or without; unmounted with the value.
struct Mount {
    dir: PathBuf,
}

impl Mount {
    fn new(c: &Cluster, name: &str, more: &[&str]) -> Mount {
        let dir = c.dir.0.join(name);
        fs::create_dir_all(&dir).unwrap();
        let mount = Mount { dir };
        let (etc, log) = (c.dir.path("etc"), c.dir.path(&format!("logs/{name}.log")));
        let dir = mount.dir.to_str().unwrap();
        run("pstorage-mount", &[&["-c", "local", "--etc", &etc, "-l", &log, dir], more].concat()).ok();
        mount
    }

    fn cached(c: &Cluster, name: &str) -> Mount {
        Mount::new(c, name, &["-C", &c.dir.path(&format!("{name}.cache")), "-R", "16"])
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits until its process has ended: the table is saved then.
    fn unmount(self) {
        let dir = self.dir.to_str().unwrap().to_string();
        drop(self);
        wait_until("the mount has ended", Duration::from_secs(20), || {
            let found = std::process::Command::new("pgrep")
                .args(["-f", &format!("pstorage-mount .* {dir} ")])
                .output();
            found.is_ok_and(|o| o.stdout.is_empty())
        });
    }

    fn figures(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.dir.join(".pstorage.info/read_cache")).unwrap();
        let pairs = text.lines().filter_map(|l| l.split_once(": "));
        pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn figure(&self, name: &str) -> u64 {
        self.figures()[name].parse().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.dir).status();
    }
}

fn open_direct(path: &Path) -> File {
    OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path).unwrap()
}

const O_DIRECT: i32 = 0o40000;

/// 4 KiB at `offset`, past the kernel's cache.
fn read_4k(file: &File, offset: u64) -> Vec<u8> {
    let mut bytes = shards::BufMut::zeroed(4096);
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes.to_vec()
}

/// Reads one block's beginning until it has come in.
fn warm(mount: &Mount, file: &File, block: u64) {
    let before = mount.figure("hits");
    wait_until("the block comes in", Duration::from_secs(20), || {
        read_4k(file, block * BLOCK);
        mount.figure("hits") > before
    });
}

#[test]
fn what_is_read_again_comes_from_the_cache_also_after_a_remount() {
    let c = Cluster::new("cache-hits");
    c.up();
    let data = pattern(1, 2 << 8); // 2 MiB
    write_synced(&c.mnt("image"), &data);
    let m = Mount::cached(&c, "a");
    assert!(m.figures()["state"] == "active" && m.figures()["block_bytes"] == "65536", "{:?}", m.figures());
    assert_eq!(m.figures()["path"], c.dir.path("a.cache"));
    let image = open_direct(&m.file("image"));
    let at = |block: u64| &data[(block * BLOCK) as usize..(block * BLOCK) as usize + 4096];
    // Comes in at the third use; the fourth is a hit.
    for _ in 0..3 {
        assert_eq!(read_4k(&image, 5 * BLOCK), at(5));
    }
    assert_eq!((m.figure("hits"), m.figure("misses")), (0, 3));
    wait_until("it has come in", Duration::from_secs(10), || m.figure("admitted") == 1);
    wait_until("a hit", Duration::from_secs(10), || {
        assert_eq!(read_4k(&image, 5 * BLOCK), at(5));
        m.figure("hits") == 1
    });
    // Another part of the same 64 KiB.
    let other = 5 * BLOCK + 61440;
    assert_eq!(read_4k(&image, other), &data[other as usize..other as usize + 4096]);
    assert_eq!(m.figure("hits"), 2);
    for block in [1, 9, 20, 31] {
        warm(&m, &image, block);
    }
    assert_eq!(m.figure("used_blocks"), 5);
    // A stream goes past it: three passes over all of it bring in no more than its beginning.
    for _ in 0..4 {
        let mut whole = Vec::new();
        File::open(m.file("image")).unwrap().read_to_end(&mut whole).unwrap();
        assert!(whole == data);
    }
    assert!(m.figure("used_blocks") < 5 + 24, "{:?}", m.figures());
    let used = m.figure("used_blocks");
    drop(image);
    m.unmount();
    // After a remount it is all there, and true.
    let m = Mount::cached(&c, "a");
    assert_eq!((m.figure("used_blocks"), m.figure("hits")), (used, 0));
    let image = open_direct(&m.file("image"));
    for block in [1, 5, 9, 20, 31] {
        assert_eq!(read_4k(&image, block * BLOCK), at(block));
    }
    assert_eq!((m.figure("hits"), m.figure("misses")), (5, 0));
    let mode = fs::metadata(c.dir.0.join("a.cache")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds data of files");
    // A second mount must not take the same file.
    let dir = c.dir.0.join("b");
    fs::create_dir(&dir).unwrap();
    let (etc, cache) = (c.dir.path("etc"), c.dir.path("a.cache"));
    let taken = ["-c", "local", "--etc", &etc, dir.to_str().unwrap(), "-C", &cache, "-R", "16"];
    run("pstorage-mount", &taken).refused(&["another mount uses it"]);
    drop(image);
    m.unmount();
    c.down();
    c.assert_gone();
}

#[test]
fn what_another_mount_has_written_is_seen_and_own_writes_are_too() {
    let c = Cluster::new("cache-two");
    c.up();
    let (old, new) = (pattern(1, 64), pattern(2, 64));
    write_synced(&c.mnt("shared"), &old);
    let a = Mount::cached(&c, "a");
    let shared = open_direct(&a.file("shared"));
    (0..4).for_each(|block| warm(&a, &shared, block));
    drop(shared);
    // The other mount (host B) writes in the middle of a cached block.
    write_synced(&c.mnt("shared"), &new);
    let shared = open_direct(&a.file("shared"));
    for block in 0..4u64 {
        let from = (block * BLOCK) as usize;
        assert!(read_4k(&shared, block * BLOCK) == new[from..from + 4096], "block {block} is stale");
    }
    (0..4).for_each(|block| warm(&a, &shared, block));
    drop(shared);
    // Also when host B wrote while A was unmounted.
    a.unmount();
    let middle = pattern(3, 1);
    let writer = OpenOptions::new().write(true).open(c.mnt("shared")).unwrap();
    writer.write_all_at(&middle, BLOCK + 4096).unwrap();
    writer.sync_all().unwrap();
    drop(writer);
    let a = Mount::cached(&c, "a");
    let shared = open_direct(&a.file("shared"));
    assert!(read_4k(&shared, BLOCK + 4096) == middle, "stale after a remount");
    assert!(read_4k(&shared, 0) == new[..4096]);
    assert_eq!(a.figure("hits"), 0);
    drop(shared);
    // Own writes: whole blocks, parts of blocks, cuts; the rest stays cached under the same lease and after it.
    let own =
        OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(a.file("shared")).unwrap();
    (0..4).for_each(|block| warm(&a, &own, block));
    let before = a.figure("used_blocks");
    let mut block = shards::BufMut::zeroed(4096);
    block.fill(0x77);
    own.write_all_at(&block, 2 * BLOCK).unwrap();
    // Looked at before the block is read again: that may put it back.
    assert_eq!(a.figure("used_blocks"), before - 1);
    assert!(read_4k(&own, 2 * BLOCK).iter().all(|b| *b == 0x77), "its own write is not seen");
    let hits = a.figure("hits");
    assert!(read_4k(&own, 0) == new[..4096]);
    assert_eq!(a.figure("hits"), hits + 1, "blocks that were not written stay");
    drop(own);
    let part = OpenOptions::new().write(true).open(a.file("shared")).unwrap();
    part.write_all_at(b"hello", 100).unwrap();
    part.set_len(3 * BLOCK + 10).unwrap();
    part.set_len(4 * BLOCK).unwrap();
    drop(part);
    let shared = open_direct(&a.file("shared"));
    assert_eq!(&read_4k(&shared, 0)[98..108], [&new[98..100], b"hello", &new[105..108]].concat());
    assert!(read_4k(&shared, 3 * BLOCK)[10..].iter().all(|b| *b == 0), "what was cut off came back");
    let hits = a.figure("hits");
    assert!(read_4k(&shared, BLOCK + 4096) == middle);
    assert_eq!(a.figure("hits"), hits + 1, "what it did not write is still cached under the next lease");
    drop(shared);
    a.unmount();
    c.down();
}

#[test]
fn a_damaged_or_killed_cache_loses_nothing() {
    let c = Cluster::new("cache-damage");
    c.up();
    let data = pattern(7, 128);
    write_synced(&c.mnt("image"), &data);
    let a = Mount::cached(&c, "a");
    let image = open_direct(&a.file("image"));
    (0..8).for_each(|block| warm(&a, &image, block));
    drop(image);
    a.unmount();
    // Flip a byte in every 4 KiB of the slots, and in the second page of the table if there is one.
    let path = c.dir.0.join("a.cache");
    let cache = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for page in bytes.chunks_exact_mut(4096).skip(16) {
        page[1234] ^= 1;
    }
    cache.write_all_at(&bytes, 0).unwrap();
    let a = Mount::cached(&c, "a");
    assert_eq!(a.figure("used_blocks"), 8);
    let image = open_direct(&a.file("image"));
    for block in 0..8u64 {
        let from = (block * BLOCK) as usize;
        assert!(read_4k(&image, block * BLOCK) == data[from..from + 4096], "block {block} is damaged");
    }
    assert_eq!((a.figure("checksum_errors"), a.figure("hits"), a.figure("misses")), (8, 0, 8));
    (0..8).for_each(|block| warm(&a, &image, block));
    // Killed: the table was never saved, the cache begins anew.
    let pid = std::process::Command::new("pgrep")
        .args(["-f", &format!("pstorage-mount .* {} ", a.dir.display())])
        .output();
    let pid: u32 = String::from_utf8(pid.unwrap().stdout).unwrap().trim().parse().unwrap();
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    drop(image);
    drop(a);
    let a = Mount::cached(&c, "a");
    assert_eq!((a.figure("used_blocks"), a.figures()["state"].as_str()), (0, "active"));
    let image = open_direct(&a.file("image"));
    assert!(read_4k(&image, 0) == data[..4096]);
    drop(image);
    a.unmount();
    // The head gone, or the file emptied: begins anew.
    cache.set_len(0).unwrap();
    let a = Mount::cached(&c, "a");
    assert_eq!((a.figure("used_blocks"), a.figures()["state"].as_str()), (0, "active"));
    a.unmount();
    c.down();
}

#[test]
fn what_cannot_be_a_cache_is_refused_and_explained() {
    let c = Cluster::new("cache-refused");
    fs::create_dir_all(c.dir.0.join("m")).unwrap();
    let (dir, etc, precious) = (c.dir.path("m"), c.dir.path("etc"), c.dir.path("precious"));
    fs::write(&precious, "my thesis").unwrap();
    fs::create_dir_all(c.dir.0.join("etc/clusters/local")).unwrap();
    fs::write(c.dir.0.join("etc/clusters/local/bs.list"), "127.0.0.1:1\n").unwrap();
    let mount =
        |more: &[&str]| run("pstorage-mount", &[&["-c", "local", "--etc", &etc, &dir], more].concat());
    mount(&["-C", &precious, "-R", "16"]).refused(&["is no read cache", "name another file"]);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "my thesis");
    mount(&["-C", &precious]).refused(&["cache-size"]);
    mount(&["-o", &format!("cache={precious}")]).refused(&["-R SIZE_MB"]);
    mount(&["-o", "cachesize=16"]).refused(&["-C FILE"]);
    mount(&["-C", "/nowhere/cache", "-R", "16"]).refused(&["/nowhere/cache"]);
    mount(&["-C", &c.dir.path(""), "-R", "16"]).refused(&["directory"]);
    mount(&["-C", "/proc/cache", "-R", "16"]).refused(&["/proc/cache"]);
    mount(&["-C", &c.dir.path("huge"), "-R", "900T"]).refused(&["MB", "huge"]);
    mount(&["-C", &c.dir.path("none"), "-R", "x"]).refused(&["size"]);
}
