//! `pcs-bench disk`: what a disk can do, whether its flushes look honoured, and what a journal on it would give.

use crate::cpu::Meter;
use crate::device::Device;
use crate::drive::{Driver, Target, whole_blocks};
use crate::measure::{Case, Measurement, Operation, Pattern};
use crate::progress::Progress;
use crate::report::{Finding, Report};
use crate::scratch::ScratchFile;
use crate::text::{bytes, number, time_us};
use shards::BLOCK_BYTES;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub struct Settings {
    pub target: PathBuf,
    pub size_bytes: u64,
    pub seconds: f64,
    pub depths: Vec<usize>,
    pub blocks: Vec<usize>,
    /// The block device that may be overwritten, named once more.
    pub destroy: Option<PathBuf>,
}

/// What will be worked on, and what keeps it ours meanwhile.
struct Place {
    target: Target,
    /// Removed when this goes.
    _file: Option<ScratchFile>,
    _journal: Option<ScratchFile>,
    /// Held with O_EXCL: nobody mounts it meanwhile.
    _exclusive: Option<File>,
    is_device: bool,
}

/// The largest journal file made for its measurement.
const JOURNAL_BYTES: u64 = 256 << 20;

pub fn run(settings: &Settings, progress: &mut Progress) -> Result<Report, String> {
    let place = place(settings)?;
    let device = Device::below(&settings.target);
    let mut report = Report::new("disk", settings.target.display().to_string());
    device.facts().into_iter().for_each(|(name, value)| report.fact(&name, value));
    report.fact("measured part", bytes(place.target.bytes));
    progress.header(&report);
    let mut driver = Driver::start(place.target.clone())?;
    if place.target.writable {
        let bar = progress.bytes("writing test data", place.target.bytes);
        driver.fill(|done| bar.set_position(done))?;
        bar.finish_and_clear();
    }
    let cases = cases(settings, &place);
    progress.begin(cases.len(), settings.seconds);
    for case in cases {
        progress.case(case);
        let meter = Meter::start(&[]);
        let figures = driver.run(case, Duration::from_secs_f64(settings.seconds), || progress.tick())?;
        let measurement = Measurement::new(case, figures, &meter.stop());
        progress.measured(&measurement);
        report.measurements.push(measurement);
    }
    progress.end();
    if place.is_device && !place.target.writable {
        report.findings.push(Finding::note(
            "Only reads were measured. Parts of a flash disk that were never written are read faster than data. \
             Writes need --destroy-data-on with the same device.",
        ));
    }
    report.findings.extend(findings(&report.measurements, &device));
    Ok(report)
}

fn place(settings: &Settings) -> Result<Place, String> {
    let path = &settings.target;
    let kind = std::fs::metadata(path).map_err(shards::text::at(&path))?.file_type();
    if kind.is_block_device() {
        return device_place(settings);
    }
    if !kind.is_dir() {
        return Err(format!(
            "{} is neither a directory nor a block device: name the directory on the disk to measure \
             (existing files are never touched)",
            path.display()
        ));
    }
    if settings.destroy.is_some() {
        return Err(
            "--destroy-data-on is for block devices; in a directory only an own file is written".into()
        );
    }
    let size = whole_blocks(settings.size_bytes);
    let journal_bytes = JOURNAL_BYTES.min(size / 2).max(16 << 20);
    enough_space(path, size + journal_bytes)?;
    let file = ScratchFile::create(path, "data")?;
    let journal = ScratchFile::create(path, "journal")?;
    let target = Target {
        path: file.path().into(),
        bytes: size,
        writable: true,
        journal: Some((journal.path().into(), journal_bytes)),
    };
    Ok(Place { target, _file: Some(file), _journal: Some(journal), _exclusive: None, is_device: false })
}

pub fn enough_space(dir: &Path, needed: u64) -> Result<(), String> {
    let (_, free) = shards::host::space(dir).map_err(shards::text::at(&dir))?;
    if free < needed + needed / 10 {
        return Err(format!(
            "{} has {} free, the measurement needs {}: free some, or choose a smaller --size",
            dir.display(),
            bytes(free),
            bytes(needed + needed / 10)
        ));
    }
    Ok(())
}

fn device_place(settings: &Settings) -> Result<Place, String> {
    let path = &settings.target;
    let same = |a: &Path| a.canonicalize().ok() == path.canonicalize().ok();
    let writable = match &settings.destroy {
        Some(named) if same(named) => true,
        Some(named) => {
            return Err(format!(
                "--destroy-data-on names {}, but {} is to be measured: nothing was done",
                named.display(),
                path.display()
            ));
        }
        None => false,
    };
    let fail = |e: std::io::Error| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            format!("{} is in use (mounted, or part of a RAID or LVM): nothing was done", path.display())
        }
        _ => shards::text::at(path)(e),
    };
    let exclusive = if writable {
        Some(File::options().write(true).custom_flags(libc::O_EXCL).open(path).map_err(fail)?)
    } else {
        None
    };
    let mut device = File::open(path).map_err(fail)?;
    let bytes = std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0)).map_err(fail)?;
    let bytes = whole_blocks(bytes.min(settings.size_bytes));
    let target = Target { path: path.clone(), bytes, writable, journal: None };
    Ok(Place { target, _file: None, _journal: None, _exclusive: exclusive, is_device: true })
}

fn cases(settings: &Settings, place: &Place) -> Vec<Case> {
    let mut groups = Vec::new();
    for &block_bytes in settings.blocks.iter().filter(|&&b| b as u64 <= place.target.bytes) {
        for pattern in [Pattern::Random, Pattern::Sequential] {
            groups.push((Operation::Read, pattern, block_bytes, false));
            if place.target.writable {
                groups.push((Operation::Write, pattern, block_bytes, false));
                groups.push((Operation::Write, pattern, block_bytes, true));
            }
        }
    }
    if place.target.journal.is_some() {
        groups.push((Operation::Journal, Pattern::Sequential, BLOCK_BYTES, true));
    }
    let with_depths = |(operation, pattern, block_bytes, flushed)| {
        settings.depths.iter().map(move |&depth| Case { operation, pattern, block_bytes, depth, flushed })
    };
    groups.into_iter().flat_map(with_depths).collect()
}

/// The first measurement (smallest depth first) that fits.
fn find(all: &[Measurement], fits: impl Fn(&Measurement) -> bool, deepest: bool) -> Option<&Measurement> {
    let mut fitting: Vec<&Measurement> = all.iter().filter(|m| fits(m)).collect();
    fitting.sort_by_key(|m| m.depth);
    if deepest { fitting.pop() } else { fitting.first().copied() }
}

fn is_write(m: &Measurement, pattern: Pattern, small: bool, flushed: bool) -> bool {
    let is_small = m.block_bytes == BLOCK_BYTES;
    m.operation == Operation::Write && m.pattern == pattern && is_small == small && m.flushed == flushed
}

/// What the figures say about flushes and about a journal here.
pub fn findings(all: &[Measurement], device: &Device) -> Vec<Finding> {
    let mut findings = Vec::new();
    let unflushed = find(all, |m| is_write(m, Pattern::Random, true, false), false);
    let flushed = find(all, |m| is_write(m, Pattern::Random, true, true), false);
    if let (Some(unflushed), Some(flushed)) = (unflushed, flushed) {
        let p50 = |m: &Measurement| m.figures.latency_us.p50;
        let mut about_flushes = flush_findings(p50(unflushed), p50(flushed), device);
        if unflushed.is_disturbed() || flushed.is_disturbed() {
            about_flushes[0].text += " (Disturbed by other programs: the comparison says little.)";
        }
        findings.extend(about_flushes);
    }
    if !device.in_memory {
        findings.extend(journal_finding(all, flushed));
    }
    if !device.in_memory {
        findings.extend(cache_finding(all, device));
    }
    findings.extend(Finding::of_disturbance(all));
    findings
}

/// A platter of 7200 turns a minute needs 4.2 ms on average until the place comes by; of 15000, 2 ms.
const FASTEST_PLATTER_US: f64 = 1500.0;

fn flush_findings(unflushed_us: f64, flushed_us: f64, device: &Device) -> Vec<Finding> {
    let (slow, fast) = (time_us(flushed_us), time_us(unflushed_us));
    let cost_us = flushed_us - unflushed_us;
    let is_free = cost_us < (unflushed_us * 0.1).max(3.0);
    let mut findings = Vec::new();
    if device.in_memory {
        findings.push(Finding::warning(
            "This directory lies in memory: nothing here is on stable storage, and the figures are not a disk's.",
        ));
    } else if device.rotational == Some(true) && !device.is_virtual && flushed_us < FASTEST_PLATTER_US {
        findings.push(Finding::warning(format!(
            "Flushed 4 KiB writes take {slow}, faster than a platter turns: a controller with a battery-backed \
             cache answers for the disk, or flushes are ignored. Without a battery, acknowledged data will be \
             lost with the power: switch the write cache off or mend the controller's setting."
        )));
    } else if device.write_cache.as_deref() == Some("write through") {
        findings.push(Finding::note(format!(
            "The device says that it has no volatile cache ('write through'), so the kernel sends it no flushes \
             (flushed writes {slow}, unflushed {fast}). Right for disks with power-loss protection; if this one \
             has none, it lies."
        )));
    } else if is_free {
        findings.push(Finding::warning(format!(
            "Flushes cost nothing (4 KiB writes: {slow} flushed, {fast} unflushed). That is plausible only with \
             power-loss protection (server SSD, battery-backed controller). A consumer SSD that shows this \
             ignores flushes and will lose acknowledged data. Only cutting the power while something writes can tell."
        )));
    } else {
        findings.push(Finding::good(format!(
            "Flushes do something: a 4 KiB write takes {slow} flushed and {fast} unflushed. This makes it likely, \
             not certain, that they are honoured; only cutting the power while something writes is proof."
        )));
    }
    if device.is_virtual && !device.in_memory {
        findings.push(Finding::note(
            "This is a virtual disk: whether a flush reaches stable storage is decided by the host below, and \
             can't be seen from here.",
        ));
    }
    findings
}

fn journal_finding(all: &[Measurement], direct: Option<&Measurement>) -> Option<Finding> {
    let is_journal = |m: &Measurement| m.operation == Operation::Journal;
    let (one, many) = (find(all, is_journal, false)?, find(all, is_journal, true)?);
    let stream = find(all, |m| is_write(m, Pattern::Sequential, false, true), true);
    let p50_us = one.figures.latency_us.p50;
    let mut text = format!(
        "A journal here acknowledges a 4 KiB write in {} (99 % within {}), {} a second at depth {}",
        time_us(p50_us),
        time_us(one.figures.latency_us.p99),
        number(many.figures.ops_per_s),
        many.depth,
    );
    if let Some(direct) = direct {
        text += &format!(
            "; the same write straight to its place takes {}",
            time_us(direct.figures.latency_us.p50)
        );
    }
    if let Some(stream) = stream {
        let mb_per_s = stream.figures.bytes_per_s / 1e6;
        text += &format!(". Large flushed writes reach {} MB/s", number(mb_per_s));
        let served = (mb_per_s / 100.0).floor();
        if p50_us < 2000.0 && served >= 2.0 {
            text +=
                &format!(": as a journal device it keeps up with {served:.0} hard disks of 100 MB/s each");
        }
    }
    if one.is_disturbed() || many.is_disturbed() {
        return Some(Finding::note(text + ". Too disturbed by other programs for advice."));
    }
    Some(if p50_us < 500.0 {
        Finding::good(text + ". Keep the journals of its own chunk servers on it (the default).")
    } else if p50_us < 2000.0 {
        Finding::note(text + ". A journal on a faster SSD would lower the latency of small writes.")
    } else {
        Finding::warning(
            text + ". Too slow for journals: put them on an SSD with power-loss protection \
                    (pstorage -c CLUSTER make-cs -r DIR --journal SSD_DIR).",
        )
    })
}

/// A read from a hard disk: half a turn of the platter and a seek.
const HARD_DISK_READ_US: f64 = 8000.0;
/// A read of a cluster on SSDs over 10 Gbit/s, for comparison.
const SSD_CLUSTER_READ_US: f64 = 250.0;

/// What the disk gives as a read cache in front of slower ones, or what a cache would give it.
fn cache_finding(all: &[Measurement], device: &Device) -> Option<Finding> {
    let is_read = |m: &Measurement| {
        m.operation == Operation::Read && m.pattern == Pattern::Random && m.block_bytes == BLOCK_BYTES
    };
    let (one, many) = (find(all, is_read, false)?, find(all, is_read, true)?);
    let p50_us = one.figures.latency_us.p50;
    let text = format!(
        "Random 4 KiB reads take {}, {} a second at depth {}",
        time_us(p50_us),
        number(many.figures.ops_per_s),
        many.depth
    );
    if one.is_disturbed() || many.is_disturbed() {
        return Some(Finding::note(text + ". Too disturbed by other programs for advice about read caches."));
    }
    let rotates = device.rotational == Some(true) && !device.is_virtual;
    Some(if rotates || p50_us > HARD_DISK_READ_US / 4.0 {
        Finding::note(
            text + ": a read cache on an SSD pays for data that is read again (pstorage-mount -C FILE -R SIZE_MB).",
        )
    } else if p50_us < SSD_CLUSTER_READ_US / 2.0 {
        Finding::good(format!(
            "{text}: as a read cache of a mount it answers about {} times faster than a cluster on hard disks ({}), \
             {} times faster than one on SSDs (about {} over the network). One that is filled and never read again \
             gains nothing.",
            number(HARD_DISK_READ_US / p50_us),
            time_us(HARD_DISK_READ_US),
            number(SSD_CLUSTER_READ_US / p50_us),
            time_us(SSD_CLUSTER_READ_US),
        ))
    } else {
        Finding::note(format!(
            "{text}: as a read cache of a mount it helps in front of hard disks only ({} times faster).",
            number(HARD_DISK_READ_US / p50_us)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Used;
    use crate::measure::Figures;
    use crate::report::Level;

    fn disk(rotational: bool, is_virtual: bool, cache: &str) -> Device {
        Device {
            rotational: Some(rotational),
            write_cache: Some(cache.into()),
            is_virtual,
            in_memory: false,
            ..Device::default()
        }
    }

    fn verdict(unflushed: f64, flushed: f64, device: &Device) -> (Level, String) {
        let first = flush_findings(unflushed, flushed, device).remove(0);
        (first.level, first.text)
    }

    #[test]
    fn flushes_are_judged_by_what_they_cost_and_by_what_the_disk_is() {
        let ssd = disk(false, false, "write back");
        assert_eq!(verdict(20.0, 120.0, &ssd).0, Level::Good);
        let (level, text) = verdict(20.0, 21.0, &ssd);
        assert!(level == Level::Warning && text.contains("cost nothing"), "{text}");
        let platter = disk(true, false, "write back");
        let (level, text) = verdict(100.0, 400.0, &platter);
        assert!(level == Level::Warning && text.contains("platter"), "{text}");
        assert_eq!(verdict(4000.0, 9000.0, &platter).0, Level::Good);
        assert_eq!(verdict(20.0, 20.0, &disk(false, false, "write through")).0, Level::Note);
        let guest = flush_findings(30.0, 90.0, &disk(true, true, "write back"));
        assert!(guest[0].level == Level::Good && guest[1].text.contains("virtual"), "{guest:?}");
        let memory = Device { in_memory: true, ..Device::default() };
        assert!(verdict(1.0, 1.0, &memory).1.contains("memory"));
    }

    fn measured(
        operation: Operation,
        depth: usize,
        block_bytes: usize,
        p50: f64,
        ops_per_s: f64,
    ) -> Measurement {
        let case = Case { operation, pattern: Pattern::Sequential, block_bytes, depth, flushed: true };
        let mut figures =
            Figures { ops_per_s, bytes_per_s: ops_per_s * block_bytes as f64, ..Figures::default() };
        figures.latency_us.p50 = p50;
        Measurement::new(
            case,
            figures,
            &Used { strangers_percent: 0.0, own: Duration::ZERO, watched: vec![] },
        )
    }

    #[test]
    fn a_journal_is_recommended_by_its_latency() {
        let of = |p50: f64| {
            let all = [
                measured(Operation::Journal, 1, 4096, p50, 5000.0),
                measured(Operation::Journal, 32, 4096, 2.0 * p50, 30_000.0),
                measured(Operation::Write, 8, 1 << 20, 1000.0, 500.0),
            ];
            journal_finding(&all, None).unwrap()
        };
        let good = of(100.0);
        assert!(good.level == Level::Good && good.text.contains("with 5 hard disks"), "{}", good.text);
        assert_eq!(of(900.0).level, Level::Note);
        assert!(of(8000.0).text.contains("--journal SSD_DIR"));
        assert_eq!(journal_finding(&[], None), None);
    }

    #[test]
    fn a_cache_is_recommended_by_what_it_would_replace() {
        let of = |p50: f64, device: &Device| {
            let mut read = measured(Operation::Read, 1, 4096, p50, 9000.0);
            read.pattern = Pattern::Random;
            cache_finding(&[read], device).unwrap()
        };
        let good = of(100.0, &disk(false, false, "write back"));
        assert!(good.level == Level::Good && good.text.contains("80.0 times faster"), "{}", good.text);
        assert!(of(200.0, &disk(false, false, "write back")).text.contains("hard disks only"));
        assert!(of(5000.0, &disk(true, false, "write back")).text.contains("pstorage-mount -C"));
        assert_eq!(cache_finding(&[], &Device::default()), None);
    }
}
