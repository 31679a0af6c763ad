//! `pcs-bench journal`: what the write journal of a chunk server gives on a disk, and what it would give on an SSD beside
//! it. The journal is the product's own, on the ring driver: records of 4 KiB, group commit, durable when counted.

use crate::cpu::Meter;
use crate::device::Device;
use crate::disk::enough_space;
use crate::drive::{Driver, Target, whole_blocks};
use crate::measure::{Case, Measurement, Operation, Pattern};
use crate::progress::Progress;
use crate::report::{Finding, Report};
use crate::scratch::ScratchFile;
use crate::text::{bytes, number, time_us};
use shards::BLOCK_BYTES;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub struct Settings {
    /// Where the chunks lie.
    pub dir: PathBuf,
    /// Where the journal could lie instead.
    pub journal: Option<PathBuf>,
    /// Of the journal, and of the data that direct writes go to.
    pub size_bytes: u64,
    pub seconds: f64,
    pub depths: Vec<usize>,
}

/// Below this ratio another place for the journal is not worth a device.
const WORTH_IT: f64 = 1.5;

/// A journal (and data) in a directory, removed when this goes.
struct Place {
    driver: Driver,
    _files: [ScratchFile; 2],
}

impl Place {
    fn new(dir: &Path, data_bytes: u64, journal_bytes: u64) -> Result<Place, String> {
        if !dir.is_dir() {
            return Err(format!(
                "{} is not a directory: name a directory on the disk to measure",
                dir.display()
            ));
        }
        enough_space(dir, data_bytes + journal_bytes)?;
        let (data, journal) = (ScratchFile::create(dir, "data")?, ScratchFile::create(dir, "journal")?);
        let target = Target {
            path: data.path().into(),
            bytes: data_bytes,
            writable: true,
            journal: Some((journal.path().into(), journal_bytes)),
        };
        Ok(Place { driver: Driver::start(target)?, _files: [data, journal] })
    }
}

pub fn run(settings: &Settings, progress: &mut Progress) -> Result<Report, String> {
    let size = whole_blocks(settings.size_bytes);
    let mut disk = Place::new(&settings.dir, size, size)?;
    let mut ssd = match &settings.journal {
        Some(dir) => Some(Place::new(dir, BLOCK_BYTES as u64, size)?),
        None => None,
    };
    let mut report = Report::new("journal", settings.dir.display().to_string());
    let devices: Vec<Device> = [Some(&settings.dir), settings.journal.as_ref()]
        .into_iter()
        .flatten()
        .map(|d| Device::below(d))
        .collect();
    for (device, name) in devices.iter().zip(["chunks", "journal"]) {
        device.facts().into_iter().for_each(|(fact, value)| report.fact(&format!("{name}: {fact}"), value));
    }
    report.fact("journal size", bytes(size));
    progress.header(&report);
    let bar = progress.bytes("writing test data", size);
    disk.driver.fill(|done| bar.set_position(done))?;
    bar.finish_and_clear();
    let depths = settings.depths.len();
    progress.begin(depths * (2 + usize::from(ssd.is_some())), settings.seconds);
    let mut measure = |place: &mut Place, operation, on: &Path| {
        measure(place, operation, on, settings, progress, &mut report.measurements)
    };
    measure(&mut disk, Operation::Write, &settings.dir)?;
    measure(&mut disk, Operation::Journal, &settings.dir)?;
    if let (Some(ssd), Some(dir)) = (&mut ssd, &settings.journal) {
        measure(ssd, Operation::Journal, dir)?;
    }
    progress.end();
    let of = |n: usize| report.measurements.get(n * depths..(n + 1) * depths).unwrap_or_default();
    report.findings = findings(of(0), of(1), of(2), &devices);
    for (device, dir) in
        devices.iter().zip([Some(&settings.dir), settings.journal.as_ref()].into_iter().flatten())
    {
        if device.in_memory {
            report.findings.push(Finding::warning(format!(
                "{} lies in memory: nothing there survives a loss of power. Never put a journal on it.",
                dir.display()
            )));
        }
    }
    report.findings.extend(Finding::of_disturbance(&report.measurements));
    Ok(report)
}

fn measure(
    place: &mut Place,
    operation: Operation,
    on: &Path,
    settings: &Settings,
    progress: &mut Progress,
    all: &mut Vec<Measurement>,
) -> Result<(), String> {
    let pattern = if operation == Operation::Write { Pattern::Random } else { Pattern::Sequential };
    for &depth in &settings.depths {
        let case = Case { operation, pattern, block_bytes: BLOCK_BYTES, depth, flushed: true };
        progress.case(case);
        let meter = Meter::start(&[]);
        let time = Duration::from_secs_f64(settings.seconds);
        let figures = place.driver.run(case, time, || progress.tick())?;
        let measurement = Measurement::new(case, figures, &meter.stop()).on(&format!("on {}", on.display()));
        progress.measured(&measurement);
        all.push(measurement);
    }
    Ok(())
}

/// Of each list the shallowest and the deepest, as (p50 at the one, operations per second at the other).
fn ends(all: &[Measurement]) -> Option<(f64, f64, usize)> {
    let one = all.iter().min_by_key(|m| m.depth)?;
    let many = all.iter().max_by_key(|m| m.depth)?;
    Some((one.figures.latency_us.p50, many.figures.ops_per_s, many.depth))
}

fn findings(
    direct: &[Measurement],
    here: &[Measurement],
    there: &[Measurement],
    devices: &[Device],
) -> Vec<Finding> {
    let (Some(direct), Some(here)) = (ends(direct), ends(here)) else { return Vec::new() };
    let mut findings = vec![Finding::note(format!(
        "On the disk of the chunks, a journal acknowledges a small write in {} (straight to its place: {}), and {} a \
         second at depth {} (straight: {}): {}.",
        time_us(here.0),
        time_us(direct.0),
        number(here.1),
        here.2,
        number(direct.1),
        compared(here.1 / direct.1),
    ))];
    if let Some(there) = ends(there) {
        findings.push(advice(here, there));
        if let [a, b] = devices
            && a.name.is_some()
            && a.name == b.name
        {
            findings.push(Finding::warning(
                "Both directories lie on the same device: a journal there costs the chunks the same bandwidth and \
                 protects nothing more.",
            ));
        }
        findings.push(Finding::note(
            "A journal device must keep what it has acknowledged when the power fails: test it with \
             'pstorage check-flush' before you trust it.",
        ));
    }
    findings
}

fn compared(ratio: f64) -> String {
    match ratio {
        r if r >= 1.1 => format!("{} times as many", number(r)),
        r if r > 0.9 => "about the same".into(),
        r => format!("{} % of it", number(r * 100.0)),
    }
}

fn advice(here: (f64, f64, usize), there: (f64, f64, usize)) -> Finding {
    let (faster, more) = (here.0 / there.0, there.1 / here.1);
    let text = format!(
        "With the journal in the other directory a small write is acknowledged in {} rather than {}, and {} a second \
         at depth {} rather than {}",
        time_us(there.0),
        time_us(here.0),
        number(there.1),
        there.2,
        number(here.1),
    );
    if faster >= WORTH_IT || more >= WORTH_IT {
        Finding::good(format!(
            "{text}: {} times faster alone, {} times as many together. Worth it (make-cs -r DIR --journal SSD_DIR).",
            number(faster),
            number(more)
        ))
    } else {
        Finding::note(format!(
            "{text}: too little to be worth a device. Leave the journal where the chunks are."
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_elsewhere_is_advised_when_it_is_much_faster() {
        let hdd = (9000.0, 400.0, 64);
        let ssd = (80.0, 60_000.0, 64);
        let good = advice(hdd, ssd);
        assert!(good.text.contains("Worth it") && good.text.contains("112 times"), "{}", good.text);
        assert!(advice(ssd, (75.0, 61_000.0, 64)).text.contains("Leave the journal"));
    }
}
