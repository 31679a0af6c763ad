//! `pcs-bench cluster`: what a virtual machine would get, through the mount or through the client library, and what
//! it costs each server in CPU time.

use crate::cpu::{Meter, Watched};
use crate::drive::{Driver, Target, noise_blocks, whole_blocks};
use crate::measure::{Case, Figures, Measurement, Operation, Pattern, Run};
use crate::progress::Progress;
use crate::report::{Finding, Report};
use crate::scratch::ScratchFile;
use crate::text::{bytes, cpu_by_role, number, time_us};
use client::{Cluster, File};
use shards::{BLOCK_BYTES, Buf, Timestamp};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub enum Way {
    /// O_DIRECT on a file in a mount (or in any other directory, for comparison).
    Mount(PathBuf),
    /// The client library in this process, no FUSE.
    Library { cluster: String, etc: PathBuf },
}

pub struct Settings {
    /// Measured one after the other, and compared.
    pub ways: Vec<Way>,
    pub size_bytes: u64,
    pub seconds: f64,
    pub watched: Vec<Watched>,
}

const LARGE_BYTES: usize = 1 << 20;
const FILL_DEPTH: usize = 8;

pub fn cases() -> Vec<Case> {
    let case = |operation, pattern, block_bytes, depth| Case {
        operation,
        pattern,
        block_bytes,
        depth,
        flushed: false,
    };
    let mut cases = Vec::new();
    for operation in [Operation::Write, Operation::Read] {
        cases.extend([1, 32].map(|depth| case(operation, Pattern::Random, BLOCK_BYTES, depth)));
    }
    for operation in [Operation::Write, Operation::Read] {
        cases.extend([1, 8].map(|depth| case(operation, Pattern::Sequential, LARGE_BYTES, depth)));
    }
    cases
}

/// What the positional argument of `pcs-bench cluster` means: a directory, or the name of a cluster.
pub fn way_of(target: &str, etc: &Path) -> Result<Way, String> {
    if target.contains('/') || Path::new(target).is_dir() {
        return Ok(Way::Mount(target.into()));
    }
    client::setup::check_name(target).map_err(|why| format!("'{target}' is no directory, and {why}"))?;
    Ok(Way::Library { cluster: target.into(), etc: etc.into() })
}

pub fn run(settings: &Settings, progress: &mut Progress) -> Result<Report, String> {
    let target: Vec<String> = settings.ways.iter().map(Way::target).collect();
    let mut report = Report::new("cluster", target.join(" and "));
    report.fact("file size", bytes(settings.size_bytes));
    let mut first = true;
    for way in &settings.ways {
        let label = if settings.ways.len() > 1 { way.label() } else { "" };
        let mut part = Part { report: &mut report, settings, label, first };
        match way {
            Way::Mount(dir) => part.mount(dir, progress)?,
            Way::Library { cluster, etc } => part.library(cluster, etc, progress)?,
        }
        first = false;
    }
    report.findings.extend(price_of_fuse(&report.measurements));
    report.findings.extend(findings(&report.measurements));
    Ok(report)
}

impl Way {
    fn target(&self) -> String {
        match self {
            Way::Mount(dir) => dir.display().to_string(),
            Way::Library { cluster, .. } => cluster.clone(),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Way::Mount(_) => THROUGH_FUSE,
            Way::Library { .. } => "through the library",
        }
    }
}

const THROUGH_FUSE: &str = "through the mount";

/// One way's share of a report.
struct Part<'a> {
    report: &'a mut Report,
    settings: &'a Settings,
    /// Goes into the headings when there are several ways.
    label: &'static str,
    first: bool,
}

impl Part<'_> {
    fn fact(&mut self, name: &str, value: impl Into<String>) {
        let name = if self.label.is_empty() { name.to_string() } else { format!("{name} {}", self.label) };
        self.report.fact(&name, value);
    }

    fn header(&mut self, progress: &mut Progress) {
        if self.first {
            progress.header(self.report);
        }
    }

    fn mount(&mut self, dir: &Path, progress: &mut Progress) -> Result<(), String> {
        let size = whole_blocks(self.settings.size_bytes);
        let (source, kind) = crate::device::mounted(dir).unwrap_or_default();
        let is_ours = source.starts_with("pstorage://");
        self.fact("way", format!("a file with O_DIRECT in {} ({source}, {kind})", dir.display()));
        self.header(progress);
        if !is_ours {
            self.report.findings.push(Finding::warning(format!(
                "{} is no mount of a cluster: writes there count as done without being flushed.",
                dir.display()
            )));
        }
        crate::disk::enough_space(dir, size)?;
        let file = ScratchFile::create(dir, "data")?;
        let target = Target { path: file.path().into(), bytes: size, writable: true, journal: None };
        let mut driver = Driver::start(target)?;
        let bar = progress.bytes("writing test data", size);
        driver.fill(|done| bar.set_position(done))?;
        bar.finish_and_clear();
        self.measure(false, progress, |case, time, waiting| driver.run(case, time, waiting))
    }

    /// `counts_us`: this process is the client and is charged as such.
    fn measure(
        &mut self,
        counts_us: bool,
        progress: &mut Progress,
        mut run: impl FnMut(Case, Duration, &mut dyn FnMut()) -> Result<Figures, String>,
    ) -> Result<(), String> {
        let cases = cases();
        progress.begin(cases.len(), self.settings.seconds);
        for case in cases {
            progress.case(case);
            let meter = Meter::start(&self.settings.watched);
            let time = Duration::from_secs_f64(self.settings.seconds);
            let figures = run(case, time, &mut || progress.tick())?;
            let mut used = meter.stop();
            if counts_us {
                used.watched.push(("client".into(), used.own));
            }
            let mut measurement = Measurement::new(case, figures, &used);
            if !self.label.is_empty() {
                measurement = measurement.on(self.label);
            }
            progress.measured(&measurement);
            self.report.measurements.push(measurement);
        }
        progress.end();
        Ok(())
    }

    fn library(&mut self, name: &str, etc: &Path, progress: &mut Progress) -> Result<(), String> {
        let file = LibraryFile::create(name, etc, self.settings.size_bytes)?;
        let outcome = self.library_file(name, &file, progress);
        let removed = file.remove(); // Also after a failure: nothing stays behind.
        outcome.and(removed)
    }

    fn library_file(
        &mut self,
        name: &str,
        file: &LibraryFile,
        progress: &mut Progress,
    ) -> Result<(), String> {
        self.fact("way", "the client library, without FUSE");
        self.fact("replicas", file.replicas()?);
        self.header(progress);
        let bar = progress.bytes("writing test data", self.settings.size_bytes);
        file.fill(|done| bar.set_position(done))?;
        bar.finish_and_clear();
        self.measure(true, progress, |case, time, waiting| file.run(case, time, waiting))?;
        let stats = file.cluster.stats().map_err(|e| e.to_string())?;
        if stats.retries > 0 {
            self.report.findings.push(Finding::warning(format!(
                "{} requests had to be sent again: a server failed or was slow; see 'pstorage -c {name} stat'.",
                stats.retries
            )));
        }
        if stats.checksum_errors > 0 {
            self.report.findings.push(Finding::warning(format!(
                "{} answers had wrong checksums: look for a bad disk with 'pstorage -c {name} check'.",
                stats.checksum_errors
            )));
        }
        Ok(())
    }
}

/// With both ways measured: what FUSE costs.
fn price_of_fuse(all: &[Measurement]) -> Option<Finding> {
    let small = |through_fuse: bool, operation: Operation| {
        all.iter().find(|m| {
            m.group.contains(THROUGH_FUSE) == through_fuse
                && m.operation == operation
                && m.block_bytes == BLOCK_BYTES
                && m.depth == 1
        })
    };
    all.iter().find(|m| m.group.contains(THROUGH_FUSE))?;
    let p50 = |m: &Measurement| m.figures.latency_us.p50;
    let (write, fuse_write) = (small(false, Operation::Write)?, small(true, Operation::Write)?);
    let (read, fuse_read) = (small(false, Operation::Read)?, small(true, Operation::Read)?);
    if [write, fuse_write, read, fuse_read].iter().any(|m| m.is_disturbed()) {
        return Some(Finding::note("Too disturbed by other programs to say what FUSE costs."));
    }
    Some(Finding::note(format!(
        "FUSE adds to a 4 KiB write {} ({} without), to a read {} ({} without).",
        time_us((p50(fuse_write) - p50(write)).max(0.0)),
        time_us(p50(write)),
        time_us((p50(fuse_read) - p50(read)).max(0.0)),
        time_us(p50(read)),
    )))
}

fn findings(all: &[Measurement]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let small_write =
        |m: &&Measurement| m.operation == Operation::Write && m.block_bytes == BLOCK_BYTES && m.depth > 1;
    if let Some(m) = all.iter().find(small_write) {
        let roles = cpu_by_role(m);
        let total: f64 = roles.values().sum();
        if total > 0.0 {
            let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
            findings.push(Finding::note(format!(
                "A 4 KiB write at depth {} costs {} us of CPU over all watched processes: with all of them on this \
                 machine, its {cores} cores can't do more than {} a second.",
                m.depth,
                number(total),
                number(cores * 1e6 / total)
            )));
        }
    }
    let disturbed = all.iter().filter(|m| m.is_disturbed()).count();
    // Servers that were not named count as strangers: say so.
    if disturbed > 0 {
        findings.push(Finding::warning(format!(
            "During {disturbed} of {} measurements programs that are not watched used more than 10 % of this \
             machine's CPU. If servers of the cluster run here, name them with --local or --pids; otherwise repeat \
             on a quiet machine.",
            all.len()
        )));
    }
    findings
}

/// A new file in a cluster, used through the client library. [`LibraryFile::remove`] takes it away.
pub struct LibraryFile {
    cluster: Cluster,
    path: String,
    load: Arc<Load>,
}

impl LibraryFile {
    pub fn create(name: &str, etc: &Path, size_bytes: u64) -> Result<LibraryFile, String> {
        let mut config = client::setup::load(etc, name)?;
        config.mount_point = "pcs-bench".into();
        let cluster = Cluster::connect(config).map_err(|e| format!("cluster {name}: {e}"))?;
        let free = cluster.statfs().map_err(|e| format!("cluster {name}: {e}"))?.available_bytes;
        if free < size_bytes {
            return Err(format!(
                "cluster {name} has room for {}, the measurement needs {}: choose a smaller --size, or add chunk servers",
                bytes(free),
                bytes(size_bytes)
            ));
        }
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = format!("pcs-bench-{}-{}-{number}.tmp", shards::host::host_name(), std::process::id());
        let file = cluster.create(&path, 0o600, true).map_err(|e| format!("creating /{path}: {e}"))?;
        let load = Load { file, noise: noise_blocks(8, LARGE_BYTES), bytes: whole_blocks(size_bytes) };
        Ok(LibraryFile { cluster, path, load: Arc::new(load) })
    }

    pub fn replicas(&self) -> Result<String, String> {
        let attr = self.load.file.attr().map_err(|e| e.to_string())?;
        Ok(format!("{}:{}", attr.replicas.normal, attr.replicas.minimum))
    }

    pub fn fill(&self, progress: impl FnMut(u64)) -> Result<(), String> {
        self.load.fill(progress)
    }

    pub fn run(&self, case: Case, time: Duration, waiting: &mut dyn FnMut()) -> Result<Figures, String> {
        self.load.run(case, time, waiting)
    }

    pub fn remove(self) -> Result<(), String> {
        drop(self.load); // Closes the file.
        self.cluster.unlink(&self.path).map_err(|e| format!("removing /{}: {e}", self.path))?;
        self.cluster.close().map_err(|e| format!("ending the session: {e}"))
    }
}

/// Load on a file of the cluster: each completion starts the next operation, on the client's thread.
struct Load {
    file: File,
    noise: Vec<Buf>,
    bytes: u64,
}

struct Job {
    load: Arc<Load>,
    began: Instant,
    state: Mutex<State>,
    done: Sender<Result<Figures, String>>,
}

struct State {
    run: Run,
    next: u64,
    random: u64,
    failed: Option<String>,
}

impl Load {
    fn fill(&self, mut progress: impl FnMut(u64)) -> Result<(), String> {
        let (tell, hear) = channel();
        let (mut sent, mut done) = (0, 0);
        let mut under_way = 0;
        while done < self.bytes {
            while sent < self.bytes && under_way < FILL_DEPTH {
                let len = (self.bytes - sent).min(LARGE_BYTES as u64);
                let data = self.noise[under_way % self.noise.len()].slice(0..len as usize);
                let tell = tell.clone();
                let told = Box::new(move |result| drop(tell.send((result, len))));
                self.file.submit_write(sent, data, told);
                sent += len;
                under_way += 1;
            }
            let (result, len): (client::Result<()>, u64) = hear.recv().map_err(|e| e.to_string())?;
            result.map_err(|e| format!("writing test data: {e}"))?;
            under_way -= 1;
            done += len;
            progress(done);
        }
        self.file.fsync().map_err(|e| format!("writing test data: {e}"))
    }

    fn run(
        self: &Arc<Self>,
        case: Case,
        time: Duration,
        waiting: &mut dyn FnMut(),
    ) -> Result<Figures, String> {
        let (done, ended) = channel();
        let state = State {
            run: Run::new(case, Timestamp(0), time),
            next: 0,
            random: u64::from_le_bytes(shards::host::random_bytes()),
            failed: None,
        };
        let job = Arc::new(Job { load: self.clone(), began: Instant::now(), state: Mutex::new(state), done });
        (0..case.depth).for_each(|slot| job.start(slot));
        loop {
            match ended.recv_timeout(Duration::from_millis(100)) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Timeout) => waiting(),
                Err(RecvTimeoutError::Disconnected) => return Err("the client has stopped".into()),
            }
        }
    }
}

impl State {
    fn place(&mut self, bytes: u64) -> u64 {
        let block = self.run.case.block_bytes as u64;
        match self.run.case.pattern {
            Pattern::Random => {
                // A full-period generator; its high bits are random enough for places.
                self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (self.random >> 20) % (bytes / block) * block
            }
            Pattern::Sequential => {
                let at = self.next;
                self.next = if at + 2 * block > bytes { 0 } else { at + block };
                at
            }
        }
    }
}

impl Job {
    fn now(&self) -> Timestamp {
        Timestamp(self.began.elapsed().as_nanos() as u64)
    }

    fn start(self: &Arc<Self>, slot: usize) {
        let mut state = self.state.lock().expect("no panic under this lock");
        if state.failed.is_some() || !state.run.start(slot, self.now()) {
            if state.run.is_over() {
                let outcome = state.failed.take().map_or_else(|| Ok(state.run.figures()), Err);
                let _ = self.done.send(outcome); // Nobody waits: the program ends.
            }
            return;
        }
        let (case, at) = (state.run.case, state.place(self.load.bytes));
        drop(state);
        let job = self.clone();
        match case.operation {
            Operation::Write => {
                let data = self.load.noise[slot % self.load.noise.len()].slice(0..case.block_bytes);
                let done = Box::new(move |result: client::Result<()>| job.complete(slot, result.err()));
                self.load.file.submit_write(at, data, done);
            }
            _ => {
                let done = Box::new(move |result: client::Result<Buf>| job.complete(slot, result.err()));
                self.load.file.submit_read(at, case.block_bytes, done);
            }
        }
    }

    fn complete(self: Arc<Self>, slot: usize, error: Option<client::ClientError>) {
        let mut state = self.state.lock().expect("no panic under this lock");
        if let Some(error) = error {
            let case = state.run.case;
            state.failed.get_or_insert_with(|| format!("{case}: {error}"));
        }
        state.run.complete(slot, self.now());
        drop(state);
        self.start(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_directory_or_the_name_of_a_cluster() {
        let etc = Path::new("/etc/pstorage");
        assert!(matches!(way_of("/mnt/pcs1", etc), Ok(Way::Mount(_))));
        assert!(matches!(way_of("./pcs1", etc), Ok(Way::Mount(_))));
        assert!(matches!(way_of("pcs1", etc), Ok(Way::Library { .. })));
        assert!(way_of("a b", etc).is_err_and(|why| why.contains("is no directory")));
    }
}
