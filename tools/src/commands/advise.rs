//! `advise-configuration`: proposes journals and read caches on an SSD for chunk servers on other disks.

use super::{make, stat::human, stat::table};
use crate::{Context, Outcome};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Part of the SSD's free room that is given out: full SSDs are slow, and wear out sooner.
const USED_PERCENT: u64 = 80;
/// A journal larger than this gains nothing: small writes that wait take some memory each, even those whose bytes only the
/// journal has, and a chunk server is to take no more than 1 GB in all (store/overlay.rs).
const LARGEST_JOURNAL_BYTES: u64 = 4 << 30;
const LEAST_JOURNAL_BYTES: u64 = 64 << 20;
/// Below this a read cache is not worth its trouble.
const LEAST_CACHE_BYTES: u64 = 1 << 30;
/// More than this part of a disk is hardly ever read again and again.
const MOST_CACHED_PERCENT: u64 = 20;

/// What a chunk server's disk is like.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Disk {
    total_bytes: u64,
    /// `None`: the kernel does not say.
    rotating: Option<bool>,
    /// It is the SSD itself.
    same: bool,
}

/// What is proposed for one server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
struct Advice {
    /// 0: leave the journal with the server.
    journal_bytes: u64,
    /// 0: no cache.
    cache_bytes: u64,
    why: &'static str,
}

pub fn advise(context: &Context, ssd: &Path, servers: &[PathBuf]) -> Outcome {
    let ssd = ssd.canonicalize().map_err(shards::text::at(&ssd))?;
    let free_bytes = make::free_bytes(&ssd)?;
    let ssd_dev = device(&ssd)?;
    let disks: Vec<Disk> = servers.iter().map(|dir| look_at(dir, ssd_dev)).collect::<Outcome<_>>()?;
    let advice = divide(free_bytes, &disks);
    let commands: Vec<Option<String>> =
        servers.iter().zip(&advice).map(|(dir, advice)| command(context, dir, &ssd, advice)).collect();
    if context.json {
        let of =
            |((dir, advice), command)| serde_json::json!({"dir": dir, "advice": advice, "command": command});
        let all: Vec<_> = servers.iter().zip(&advice).zip(&commands).map(of).collect();
        return crate::print_json(&serde_json::json!({"ssd": ssd, "free_bytes": free_bytes, "servers": all}));
    }
    println!("SSD {}: {} free, of which {USED_PERCENT} % are given out", ssd.display(), human(free_bytes));
    if rotating(ssd_dev) == Some(true) {
        println!("Careful: the kernel says that {} is on a rotating disk, not on an SSD.", ssd.display());
    }
    let mut t = table(&["SERVER", "DISK", "JOURNAL", "CACHE", "WHY"]);
    for ((dir, disk), advice) in servers.iter().zip(&disks).zip(&advice) {
        let size = |bytes: u64| if bytes == 0 { "-".into() } else { human(bytes) };
        t.add_row([
            dir.display().to_string(),
            human(disk.total_bytes),
            size(advice.journal_bytes),
            size(advice.cache_bytes),
            advice.why.into(),
        ]);
    }
    println!("{t}\n");
    commands.iter().flatten().for_each(|c| println!("{c}"));
    println!(
        "\nBefore production: 'pcs-bench disk {}' shows whether the SSD honours flushes, and whether it takes the \
         writes of all these journals together.",
        ssd.display()
    );
    Ok(())
}

/// Divides the room of an SSD among servers.
fn divide(free_bytes: u64, disks: &[Disk]) -> Vec<Advice> {
    let room = free_bytes / 100 * USED_PERCENT;
    let fit = |disk: &&Disk| !disk.same && disk.rotating != Some(false);
    let users = disks.iter().filter(fit).count() as u64;
    let share = room / users.max(1);
    disks
        .iter()
        .map(|disk| {
            let nothing = |why| Advice { journal_bytes: 0, cache_bytes: 0, why };
            if disk.same {
                return nothing("it is on this disk: nothing to win");
            }
            if !fit(&disk) {
                return nothing("its disk is an SSD too: nothing to win");
            }
            if share < LEAST_JOURNAL_BYTES {
                return nothing("too little room");
            }
            let journal_bytes = megabytes((share / 2).clamp(LEAST_JOURNAL_BYTES, LARGEST_JOURNAL_BYTES));
            let rest = megabytes((share - journal_bytes).min(disk.total_bytes / 100 * MOST_CACHED_PERCENT));
            match rest {
                0..LEAST_CACHE_BYTES => Advice { journal_bytes, cache_bytes: 0, why: "no room for a cache" },
                cache_bytes => Advice { journal_bytes, cache_bytes, why: "" },
            }
        })
        .collect()
}

fn megabytes(bytes: u64) -> u64 {
    bytes >> 20 << 20
}

fn look_at(dir: &Path, ssd_dev: u64) -> Outcome<Disk> {
    let dev = device(dir)?;
    let space = nix::sys::statvfs::statvfs(dir).map_err(shards::text::at(&dir))?;
    let total_bytes = space.blocks() as u64 * space.fragment_size() as u64;
    Ok(Disk { total_bytes, rotating: rotating(dev), same: dev == ssd_dev })
}

fn device(dir: &Path) -> Outcome<u64> {
    fs::metadata(dir).map(|m| m.dev()).map_err(shards::text::at(&dir))
}

/// Whether a device rotates; of a partition, the disk it is on.
fn rotating(dev: u64) -> Option<bool> {
    let at = format!("/sys/dev/block/{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let said = |below: &str| fs::read_to_string(format!("{at}/{below}queue/rotational")).ok();
    said("").or_else(|| said("../")).map(|text| text.trim() == "1")
}

/// The command that puts an advice into effect.
fn command(context: &Context, dir: &Path, ssd: &Path, advice: &Advice) -> Option<String> {
    if advice.journal_bytes == 0 {
        return None;
    }
    let control = engine::control::read(dir).ok();
    let known = control.as_ref().map(|c| c.cluster.as_str()).or(context.cluster.as_deref());
    let verb = if control.is_some() { "configure-cs" } else { "make-cs" };
    let mut text = format!(
        "pstorage -c {} {verb} -r {} --journal {} --journal-size {}M",
        known.unwrap_or("CLUSTER"),
        dir.display(),
        ssd.display(),
        advice.journal_bytes >> 20
    );
    if advice.cache_bytes > 0 {
        text += &format!(" --cache {} --cache-size {}M", ssd.display(), advice.cache_bytes >> 20);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    #[test]
    fn the_room_is_divided_and_never_exceeded() {
        let hdd = Disk { total_bytes: 4000 * GB, rotating: Some(true), same: false };
        let own = Disk { same: true, ..hdd.clone() };
        let flash = Disk { rotating: Some(false), ..hdd.clone() };
        let disks = [hdd.clone(), own, hdd.clone(), flash, Disk { rotating: None, ..hdd.clone() }];
        for free in [0, GB, 4 * GB, 100 * GB, 5000 * GB] {
            let advice = divide(free, &disks);
            let sum: u64 = advice.iter().map(|a| a.journal_bytes + a.cache_bytes).sum();
            assert!(sum <= free / 100 * USED_PERCENT, "{free}");
            assert_eq!((advice[1].journal_bytes, advice[3].journal_bytes), (0, 0));
            assert_eq!(advice[0], advice[4]);
        }
        let much = divide(100 * GB, &disks);
        assert_eq!(much[0].journal_bytes, 4 * GB);
        assert!(much[0].cache_bytes > 20 * GB);
        assert_eq!(divide(4 * GB, &disks)[0].why, "no room for a cache");
        assert_eq!(divide(GB / 8, &disks)[0].why, "too little room");
        let small = Disk { total_bytes: 10 * GB, ..hdd };
        assert!(divide(1000 * GB, &[small])[0].cache_bytes <= 2 * GB);
    }
}
