//! Disks that servers use, or are to use: do they keep what is flushed, is there room, do servers share one.
//!
//! Whether a drive honours flushes can only be shown by cutting its power (`check-flush`). What is seen here: file systems
//! told not to flush, volatile caches, and flushes that end sooner than a disk can turn.

use super::finding::{Finding, Verdict};
use super::tree::Tree;
use crate::commands::services::Service;
use crate::commands::stat::human;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A metadata server without room ends itself; the guide asks for 10 GB.
const MDS_LOW_BYTES: u64 = 2 << 30;
const MDS_END_BYTES: u64 = 256 << 20;
/// Of any other file system that servers use.
const LOW_PERCENT: u64 = 2;
/// No rotating disk has anything on its platter sooner.
const ROTATION: Duration = Duration::from_micros(500);
const FLUSHES: usize = 15;

/// A directory that a server keeps something in.
struct Use {
    dir: PathBuf,
    /// For people: `CS#3`.
    by: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Mds,
    Cs,
    /// Journals and caches of chunk servers.
    Beside,
    /// A server may be made there.
    Asked,
}

/// What the system tells of a file system and the disk below it.
#[derive(Default, Debug)]
struct Disk {
    name: String,
    kind: String,
    options: Vec<String>,
    rotates: bool,
    /// `None`: not told.
    volatile_cache: Option<bool>,
}

pub fn look(tree: &Tree, services: &[Service], asked: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut by_device: BTreeMap<u64, Vec<Use>> = BTreeMap::new();
    for used in uses(services, asked) {
        match std::fs::metadata(&used.dir) {
            Ok(meta) => by_device.entry(meta.dev()).or_default().push(used),
            Err(e) => {
                let todo = "is its disk mounted?";
                findings.push(Finding::error("disk", used.dir.display().to_string(), e.to_string(), todo));
            }
        }
    }
    for (device, uses) in &by_device {
        let (major, minor) = (nix::sys::stat::major(*device), nix::sys::stat::minor(*device));
        let disk = disk(tree, major, minor);
        findings.push(kept(&disk));
        if !disk.never_keeps() {
            findings.push(flush(&disk, time_of_flush(&uses[0].dir)));
        }
        findings.extend(room(&disk.name, uses));
        findings.extend(shared(&disk, uses));
    }
    findings
}

fn uses(services: &[Service], asked: &[PathBuf]) -> Vec<Use> {
    let mut all = Vec::new();
    // Those whose card can't be read are told by the check of services.
    for service in services.iter().filter(|s| s.status != "unreadable") {
        let by = format!("{}#{}", service.service.to_uppercase(), service.id);
        let kind = if service.service == "mds" { Kind::Mds } else { Kind::Cs };
        all.push(Use { dir: service.path.clone(), by: by.clone(), kind });
        let control = engine::control::read(&service.path).ok();
        let beside =
            control.into_iter().flat_map(|c| [c.journal_dir, c.cache.map(|cache| cache.dir)]).flatten();
        all.extend(beside.map(|dir| Use { dir, by: by.clone(), kind: Kind::Beside }));
    }
    all.extend(asked.iter().map(|dir| Use {
        dir: dir.clone(),
        by: "a new server".into(),
        kind: Kind::Asked,
    }));
    all
}

fn disk(tree: &Tree, major: u64, minor: u64) -> Disk {
    let at = format!("sys/dev/block/{major}:{minor}");
    // A partition has its queue at the disk that it is on.
    let queue = |name: &str| {
        tree.text(&format!("{at}/queue/{name}")).or_else(|| tree.text(&format!("{at}/../queue/{name}")))
    };
    let link = tree.link(&at).and_then(|to| Some(to.file_name()?.to_string_lossy().into_owned()));
    let mut disk = Disk {
        name: link.unwrap_or_else(|| format!("{major}:{minor}")),
        rotates: queue("rotational").as_deref() == Some("1"),
        volatile_cache: queue("write_cache").map(|cache| cache != "write through"),
        ..Disk::default()
    };
    // 36 35 98:0 / /srv rw,noatime shared:1 - ext4 /dev/sda1 rw,barrier=1
    let mounts = tree.text("proc/self/mountinfo").unwrap_or_default();
    let number = format!("{major}:{minor}");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    if let Some((mount, system)) = line.and_then(|line| line.split_once(" - ")) {
        let mut words = system.split(' ');
        disk.kind = words.next().unwrap_or_default().into();
        let options = [mount.split(' ').nth(5), words.nth(1)];
        disk.options = options.into_iter().flatten().flat_map(|o| o.split(',')).map(String::from).collect();
    }
    disk
}

impl Disk {
    fn never_keeps(&self) -> bool {
        matches!(self.kind.as_str(), "tmpfs" | "ramfs" | "devtmpfs")
    }

    /// The host of a virtual machine decides what its disks do.
    fn is_virtual(&self) -> bool {
        ["vd", "xvd"].iter().any(|prefix| self.name.starts_with(prefix))
    }
}

/// Whether the file system keeps what it is told to.
fn kept(disk: &Disk) -> Finding {
    let name = disk.name.as_str();
    let unsafe_option = disk.options.iter().find(|o| matches!(o.as_str(), "nobarrier" | "barrier=0"));
    if let Some(option) = unsafe_option {
        let found = format!("mounted with {option}: what is flushed may be lost when the power is cut");
        return Finding::error(
            "file system",
            name,
            found,
            format!("take {option} out of /etc/fstab, and mount it anew"),
        );
    }
    match disk.kind.as_str() {
        _ if disk.never_keeps() => {
            let found = format!("{} is memory: nothing on it survives a restart", disk.kind);
            Finding::error("file system", name, found, "put servers on ext4 or XFS, on a disk")
        }
        "ext4" | "xfs" => Finding::ok("file system", name, disk.kind.as_str()),
        "" => Finding::unknown(
            "file system",
            name,
            "its kind is not told",
            "ext4 and XFS are known to be right",
        ),
        other => {
            let todo = "ext4 and XFS are what is tested";
            Finding::warning("file system", name, format!("{other} is not known to be right"), todo)
        }
    }
}

/// The middle one of a few flushes of new data.
fn time_of_flush(dir: &Path) -> io::Result<Duration> {
    // Without a name: nothing is left behind, however this ends.
    let file = tempfile::tempfile_in(dir)?;
    let mut times = Vec::with_capacity(FLUSHES);
    for n in 0..FLUSHES {
        file.write_all_at(&[n as u8 + 1; 4096], n as u64 * 4096)?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times[FLUSHES / 2])
}

fn flush(disk: &Disk, measured: io::Result<Duration>) -> Finding {
    let name = disk.name.as_str();
    let took = match measured {
        Ok(took) => took,
        Err(e) => {
            return Finding::unknown(
                "flush",
                name,
                format!("could not be tried: {e}"),
                "repeat this as root",
            );
        }
    };
    let time = format!("a flush takes {:.1} ms", took.as_secs_f64() * 1e3);
    let test = "before production: pstorage check-flush, which cuts the power";
    if disk.is_virtual() {
        let found = format!("{time}; a virtual disk keeps what its host lets it keep");
        return Finding::unknown("flush", name, found, test);
    }
    if disk.rotates && took < ROTATION {
        let found =
            format!("{time}, sooner than a disk turns: a cache with a battery, or flushes are ignored");
        return Finding::warning("flush", name, found, test);
    }
    match disk.volatile_cache {
        Some(false) => Finding::ok("flush", name, format!("{time}, and there is no volatile cache")),
        _ => Finding::unknown(
            "flush",
            name,
            format!("{time}; whether the drive honours it can't be seen from here"),
            test,
        ),
    }
}

fn room(name: &str, uses: &[Use]) -> Vec<Finding> {
    let Ok(space) = nix::sys::statvfs::statvfs(&uses[0].dir) else { return Vec::new() };
    let bytes = |blocks: u64| blocks * space.fragment_size();
    let (total, free) = (bytes(space.blocks()), bytes(space.blocks_available()));
    let promised: Vec<(&str, u64)> =
        uses.iter().filter(|u| u.kind == Kind::Cs).map(|u| (u.by.as_str(), still_promised(&u.dir))).collect();
    judge_room(name, total, free, uses.iter().any(|u| u.kind == Kind::Mds), &promised)
}

/// What a chunk server may still take, by its capacity.
fn still_promised(dir: &Path) -> u64 {
    let Ok(control) = engine::control::read(dir) else { return 0 };
    let data = |shard| dir.join(engine::control::CsControl::shard_dir(shard)).join("data");
    let taken: u64 = (0..control.shards)
        .filter_map(|shard| std::fs::metadata(data(shard)).ok())
        .map(|m| m.blocks() * 512)
        .sum();
    control.capacity_bytes.saturating_sub(taken)
}

/// `promised`: what each chunk server may still take.
fn judge_room(name: &str, total: u64, free: u64, has_mds: bool, promised: &[(&str, u64)]) -> Vec<Finding> {
    let found = format!("{} of {} free", human(free), human(total));
    let mut findings = Vec::new();
    if has_mds && free < MDS_LOW_BYTES {
        let todo = "make room: a metadata server ends itself when its disk is full";
        let verdict = if free < MDS_END_BYTES { Verdict::Error } else { Verdict::Warning };
        findings.push(Finding::new(verdict, "free space", name, found.clone(), todo));
    }
    let sum: u64 = promised.iter().map(|(_, bytes)| bytes).sum();
    if sum > free {
        let names: Vec<&str> = promised.iter().map(|(by, _)| *by).collect();
        let found = format!("{found}, and {} may take {} more", names.join(", "), human(sum));
        let todo = "something else takes their room: move it away. They refuse new data in time, but count as larger than they are";
        findings.push(Finding::warning("free space", name, found, todo));
    } else if promised.is_empty() && !has_mds && free < total / 100 * LOW_PERCENT {
        findings.push(Finding::warning("free space", name, found.clone(), "make room"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("free space", name, found));
    }
    findings
}

/// A disk that takes several servers with it when it fails.
fn shared(disk: &Disk, uses: &[Use]) -> Option<Finding> {
    let servers: Vec<&str> = uses.iter().filter(|u| u.kind == Kind::Cs).map(|u| u.by.as_str()).collect();
    if servers.len() < 2 {
        return None;
    }
    let found =
        format!("{} are on one disk: they fail together, and wait for each other", servers.join(", "));
    let todo = "one chunk server on each disk is enough: remove the others (rm-cs)";
    Some(Finding::warning("shared disk", disk.name.as_str(), found, todo))
}

#[cfg(test)]
mod tests {
    use super::super::tree::tests::Machine;
    use super::*;

    fn disk_with(cache: &str, rotational: &str, mount: &str) -> Disk {
        let m = Machine::with(&[
            ("sys/dev/block/8:1/name", ""),
            ("sys/dev/block/queue/rotational", rotational),
            ("sys/dev/block/queue/write_cache", cache),
            (
                "proc/self/mountinfo",
                &format!("22 1 0:20 / /proc rw - proc proc rw\n36 1 8:1 / /srv {mount}\n"),
            ),
        ]);
        disk(&m.tree, 8, 1)
    }

    #[test]
    fn file_systems_that_lose_flushed_data_are_errors() {
        let verdict = |mount: &str| kept(&disk_with("write back", "1", mount)).verdict;
        assert_eq!(verdict("rw,noatime shared:1 - ext4 /dev/sda1 rw"), Verdict::Ok);
        assert_eq!(verdict("rw - ext4 /dev/sda1 rw,nobarrier"), Verdict::Error);
        assert_eq!(verdict("rw shared:1 - ext4 /dev/sda1 rw,barrier=0"), Verdict::Error);
        assert_eq!(verdict("rw - tmpfs tmpfs rw"), Verdict::Error);
        assert_eq!(verdict("rw - nfs4 host:/srv rw"), Verdict::Warning);
    }

    #[test]
    fn flushes_are_never_called_good_without_a_reason() {
        let mount = "rw - ext4 /dev/sda1 rw";
        let ms = |ms: u64| Ok(Duration::from_millis(ms));
        let quick = || Ok(Duration::from_micros(60));
        assert_eq!(flush(&disk_with("write through", "0", mount), quick()).verdict, Verdict::Ok);
        assert_eq!(flush(&disk_with("write back", "0", mount), ms(2)).verdict, Verdict::Unknown);
        assert_eq!(flush(&disk_with("write back", "1", mount), ms(12)).verdict, Verdict::Unknown);
        assert_eq!(flush(&disk_with("write through", "1", mount), quick()).verdict, Verdict::Warning);
        let refused = Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(flush(&disk_with("write back", "1", mount), refused).verdict, Verdict::Unknown);
        let of_a_guest = Disk { name: "vda1".into(), ..disk_with("write through", "1", mount) };
        assert_eq!(flush(&of_a_guest, quick()).verdict, Verdict::Unknown);
        let dir = tempfile::tempdir().unwrap();
        assert!(time_of_flush(dir.path()).unwrap() > Duration::ZERO);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn room_is_judged_by_who_needs_it() {
        const GB: u64 = 1 << 30;
        let worst = |total, free, mds, promised: &[(&str, u64)]| {
            judge_room("sda1", total, free, mds, promised).iter().map(|f| f.verdict).max().unwrap()
        };
        assert_eq!(worst(100 * GB, 50 * GB, true, &[("CS#1", 40 * GB)]), Verdict::Ok);
        assert_eq!(worst(100 * GB, GB, true, &[]), Verdict::Warning);
        assert_eq!(worst(100 * GB, GB / 8, true, &[]), Verdict::Error);
        assert_eq!(
            worst(100 * GB, GB, false, &[("CS#1", GB / 2)]),
            Verdict::Ok,
            "a full server has little left"
        );
        assert_eq!(
            worst(100 * GB, 50 * GB, false, &[("CS#1", 30 * GB), ("CS#2", 30 * GB)]),
            Verdict::Warning
        );
        assert_eq!(worst(100 * GB, GB, false, &[]), Verdict::Warning);
    }
}
