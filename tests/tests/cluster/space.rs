//! Space comes back: holes punched into files, ranges zeroed, files cut short, and what a file system inside an image
//! discards. Seen as physical space in `stat`.

use crate::common::{Cluster, pattern, read, wait_until, write_synced};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MB: u64 = 1 << 20;

fn free_bytes(c: &Cluster) -> u64 {
    c.json(&["stat"])["cs"].as_array().unwrap().iter().map(|cs| cs["free_bytes"].as_u64().unwrap()).sum()
}

/// Waits until about this many bytes are taken on all servers together, compared with `empty`.
fn wait_taken(c: &Cluster, empty: u64, wanted: u64, what: &str) {
    let mut taken = 0;
    let near = |taken: u64| taken.abs_diff(wanted) <= MB;
    let began = std::time::Instant::now();
    while !near(taken) {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {taken} bytes are taken, not {wanted}");
        std::thread::sleep(Duration::from_millis(100));
        taken = empty.saturating_sub(free_bytes(c));
    }
}

/// Bytes that the servers' data files take on their file systems.
fn data_on_disk(c: &Cluster) -> u64 {
    let below = |dir: &Path, prefix: &str| -> Vec<std::path::PathBuf> {
        let named = |p: &std::path::PathBuf| p.file_name().unwrap().to_string_lossy().starts_with(prefix);
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(named).collect()
    };
    let servers = below(&c.dir.0, "cs").into_iter().filter(|p| p.is_dir());
    let shards = servers.flat_map(|cs| below(&cs, "shard-")).filter(|p| p.is_dir());
    shards.map(|shard| fs::metadata(shard.join("data")).unwrap().blocks() * 512).sum()
}

fn ran(program: &str, args: &[&str]) -> Result<String, String> {
    let ended = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    match ended.status.success() {
        true => Ok(text(&ended.stdout)),
        false => Err(format!("{program} {args:?}: {}", text(&ended.stderr))),
    }
}

fn fallocate(file: &Path, how: &str, offset: u64, length: u64) {
    let (offset, length) = (offset.to_string(), length.to_string());
    ran("fallocate", &[how, "-o", &offset, "-l", &length, file.to_str().unwrap()]).unwrap();
}

#[test]
fn holes_zeroed_ranges_and_truncation_give_space_back() {
    let c = Cluster::new("space");
    c.up();
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let empty = free_bytes(&c);
    let file = c.mnt("image");
    let mut image = pattern(3, 24 << 8);
    write_synced(&file, &image);
    wait_taken(&c, empty, 3 * 24 * MB, "written");

    let zero = |image: &mut Vec<u8>, offset: u64, length: u64| {
        image[offset as usize..(offset + length) as usize].fill(0);
    };
    fallocate(&file, "-p", 4 * MB, 8 * MB);
    zero(&mut image, 4 * MB, 8 * MB);
    wait_taken(&c, empty, 3 * 16 * MB, "punched");
    fallocate(&file, "-z", 15 * MB + MB / 2, 4 * MB);
    zero(&mut image, 15 * MB + MB / 2, 4 * MB);
    wait_taken(&c, empty, 3 * 12 * MB, "zeroed");
    // Edges within a block, within one block, and over the end of a chunk.
    for (offset, length) in [(1000, 5000), (20_481, 7), (MB - 100, 200), (2 * MB + 4095, 4098)] {
        fallocate(&file, "-p", offset, length);
        zero(&mut image, offset, length);
    }
    assert!(read(&file) == image, "only what was asked for is zero");

    image.truncate(2 * MB as usize);
    OpenOptions::new().write(true).open(&file).unwrap().set_len(2 * MB).unwrap();
    wait_taken(&c, empty, 3 * 2 * MB, "cut short");
    // And the file systems below the servers have it back, but for what is written around the data.
    let on_disk = 3 * 2 * MB;
    wait_until("the file systems to have the room", Duration::from_secs(90), || {
        data_on_disk(&c) <= on_disk + MB
    });
    assert!(read(&file) == image);
    fs::remove_file(&file).unwrap();
    wait_taken(&c, empty, 0, "removed");
    c.check();
}

/// Undoes a mount and its loop device, also of a failed test.
struct Loop {
    device: String,
    dir: String,
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = ran("umount", &["-l", &self.dir]);
        let _ = ran("losetup", &["-d", &self.device]);
    }
}

#[test]
fn fstrim_of_a_file_system_in_an_image_gives_space_back() {
    let c = Cluster::new("trim");
    c.up();
    c.admin(&["set-attr", "/", "chunk-size=1M"]);
    let empty = free_bytes(&c);
    let image = c.mnt("disk.img");
    fs::File::create(&image).unwrap().set_len(128 * MB).unwrap();
    let device = match ran("losetup", &["-f", "--show", image.to_str().unwrap()]) {
        Ok(device) => device,
        Err(why) => return eprintln!("SKIPPED, no loop device here: {why}"),
    };
    let inner = Loop { device, dir: c.dir.path("inner") };
    fs::create_dir(&inner.dir).unwrap();
    ran("mkfs.ext4", &["-q", "-F", &inner.device]).unwrap();
    if let Err(why) = ran("mount", &["-t", "ext4", &inner.device, &inner.dir]) {
        return eprintln!("SKIPPED, ext4 can't be mounted here: {why}");
    }
    let (keep, goes) = (Path::new(&inner.dir).join("keep"), Path::new(&inner.dir).join("goes"));
    let kept = pattern(8, 2 << 8);
    write_synced(&keep, &kept);
    write_synced(&goes, &pattern(9, 40 << 8));
    ran("sync", &["-f", &inner.dir]).unwrap();
    wait_until("the data to be there", Duration::from_secs(20), || empty - free_bytes(&c) > 3 * 40 * MB);
    fs::remove_file(&goes).unwrap();
    ran("sync", &["-f", &inner.dir]).unwrap();
    let before = free_bytes(&c);
    let said = ran("fstrim", &["-v", &inner.dir]).unwrap();
    wait_until("what was trimmed to be free", Duration::from_secs(20), || {
        free_bytes(&c) > before + 3 * 36 * MB
    });
    println!("{said}; {} MiB came back", (free_bytes(&c) - before) >> 20);
    ran("umount", &[&inner.dir]).unwrap();
    ran("mount", &["-t", "ext4", &inner.device, &inner.dir]).unwrap();
    assert!(read(&keep) == kept);
    drop(inner);
    c.check();
}
