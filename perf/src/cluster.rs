//! `pcs-bench cluster`: what a virtual machine would get, through the mount or through the client library, and what
//! it costs each server in CPU time.

use crate::cpu::{Meter, Watched};
use crate::drive::{Driver, Target, noise_blocks, whole_blocks};
use crate::measure::{Case, Figures, Measurement, Operation, Pattern, Run};
use crate::progress::Progress;
use crate::report::{Finding, Report};
use crate::scratch::ScratchFile;
use crate::text::{bytes, cpu_by_role, number};
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
    pub way: Way,
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

pub fn run(settings: &Settings, progress: &mut Progress) -> Result<Report, String> {
    match &settings.way {
        Way::Mount(dir) => run_mount(settings, dir, progress),
        Way::Library { cluster, etc } => run_library(settings, cluster, etc, progress),
    }
}

fn run_mount(settings: &Settings, dir: &Path, progress: &mut Progress) -> Result<Report, String> {
    let mut report = Report::new("cluster", dir.display().to_string());
    report.fact("way", "a file with O_DIRECT in this directory");
    report.fact("file size", bytes(settings.size_bytes));
    progress.header(&report);
    let file = ScratchFile::create(dir, "data")?;
    let target = Target {
        path: file.path().into(),
        bytes: whole_blocks(settings.size_bytes),
        writable: true,
        journal: None,
    };
    let mut driver = Driver::start(target)?;
    let bar = progress.bytes("writing test data", settings.size_bytes);
    driver.fill(|done| bar.set_position(done))?;
    bar.finish_and_clear();
    measure(&mut report, settings, false, progress, |case, time, waiting| driver.run(case, time, waiting))?;
    Ok(report)
}

/// `counts_us`: this process is the client and is charged as such.
fn measure(
    report: &mut Report,
    settings: &Settings,
    counts_us: bool,
    progress: &mut Progress,
    mut run: impl FnMut(Case, Duration, &mut dyn FnMut()) -> Result<Figures, String>,
) -> Result<(), String> {
    let cases = cases();
    progress.begin(cases.len(), settings.seconds);
    for case in cases {
        progress.case(case);
        let meter = Meter::start(&settings.watched);
        let figures = run(case, Duration::from_secs_f64(settings.seconds), &mut || progress.tick())?;
        let mut used = meter.stop();
        if counts_us {
            used.watched.push(("client".into(), used.own));
        }
        let measurement = Measurement::new(case, figures, &used);
        progress.measured(&measurement);
        report.measurements.push(measurement);
    }
    progress.end();
    report.findings.extend(findings(&report.measurements));
    Ok(())
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

fn run_library(
    settings: &Settings,
    name: &str,
    etc: &Path,
    progress: &mut Progress,
) -> Result<Report, String> {
    let file = LibraryFile::create(name, etc, settings.size_bytes)?;
    let outcome = measure_library(settings, name, &file, progress);
    let removed = file.remove(); // Also after a failure: nothing stays behind.
    outcome.and_then(|report| removed.map(|()| report))
}

fn measure_library(
    settings: &Settings,
    name: &str,
    file: &LibraryFile,
    progress: &mut Progress,
) -> Result<Report, String> {
    let mut report = Report::new("cluster", name);
    report.fact("way", "the client library, without FUSE");
    report.fact("replicas", file.replicas()?);
    report.fact("file size", bytes(settings.size_bytes));
    progress.header(&report);
    let bar = progress.bytes("writing test data", settings.size_bytes);
    file.fill(|done| bar.set_position(done))?;
    bar.finish_and_clear();
    measure(&mut report, settings, true, progress, |case, time, waiting| file.run(case, time, waiting))?;
    let stats = file.cluster.stats().map_err(|e| e.to_string())?;
    if stats.retries > 0 {
        report.findings.push(Finding::warning(format!(
            "{} requests had to be sent again: a server failed or was slow; see 'pstorage -c {name} stat'.",
            stats.retries
        )));
    }
    if stats.checksum_errors > 0 {
        report.findings.push(Finding::warning(format!(
            "{} answers had wrong checksums: look for a bad disk with 'pstorage -c {name} check'.",
            stats.checksum_errors
        )));
    }
    Ok(report)
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
