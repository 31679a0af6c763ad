//! Clients of a cluster of one chunk server: load through the client library, with the CPU time it costs each side.

use crate::cluster::LibraryFile;
use crate::cpu::{self, Meter, Watched};
use crate::measure::{Case, Figures};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What came out of one run.
pub struct Outcome {
    pub figures: Figures,
    /// CPU time of the chunk server, and of the clients, for one operation.
    pub server_cpu_us: f64,
    pub client_cpu_us: f64,
}

/// Client threads, each with a file of its own.
pub struct Clients {
    files: Vec<LibraryFile>,
    server: Vec<Watched>,
}

impl Clients {
    /// `dir` was made by `pstorage local up`; `size_bytes` is shared out among the files.
    pub fn start(dir: &Path, count: usize, size_bytes: u64) -> Result<Clients, String> {
        let mut server = Watched::of_local_cluster(dir)?;
        server.retain(|w| cpu::role(&w.name) == "cs");
        Clients::connect("local", &etc(dir), server, count, size_bytes)
    }

    /// Of any cluster; `server`: those whose CPU time is shown.
    pub fn connect(
        cluster: &str,
        etc: &Path,
        server: Vec<Watched>,
        count: usize,
        size_bytes: u64,
    ) -> Result<Clients, String> {
        let mut files = Vec::new();
        for _ in 0..count {
            let file = LibraryFile::create(cluster, etc, size_bytes / count as u64)?;
            file.fill(|_| {})?;
            files.push(file);
        }
        Ok(Clients { files, server })
    }

    pub fn server_pids(&self) -> impl Iterator<Item = i32> {
        self.server.iter().map(|w| w.pid)
    }

    /// All clients at once; the depth is shared out among them. What the cluster acknowledges is durable.
    pub fn run(&self, case: Case, time: Duration) -> Result<Outcome, String> {
        let count = self.files.len().min(case.depth);
        let case = Case { depth: case.depth / count, flushed: false, ..case };
        let meter = Meter::start(&self.server);
        let runs: Vec<Result<Figures, String>> = std::thread::scope(|scope| {
            let started: Vec<_> = self.files[..count]
                .iter()
                .map(|file| scope.spawn(move || file.run(case, time, &mut || {})))
                .collect();
            started.into_iter().map(|run| run.join().expect("a client panicked")).collect()
        });
        let used = meter.stop();
        let figures = together(runs.into_iter().collect::<Result<Vec<_>, _>>()?);
        let ops = figures.ops as f64 * whole_run(time);
        let per_op = |time: Duration| time.as_secs_f64() * 1e6 / ops;
        Ok(Outcome {
            server_cpu_us: used.watched.iter().map(|(_, time)| per_op(*time)).sum(),
            client_cpu_us: per_op(used.own),
            figures,
        })
    }

    pub fn remove(self) -> Result<(), String> {
        self.files.into_iter().try_for_each(LibraryFile::remove)
    }
}

pub fn etc(dir: &Path) -> PathBuf {
    dir.join("etc")
}

/// The warm-up uses CPU as well: how much longer a run is than what is counted.
pub fn whole_run(time: Duration) -> f64 {
    1.0 + 0.1f64.min(0.5 / time.as_secs_f64())
}

/// Rates add up; of latencies the mean over the clients is taken, which do the same work.
fn together(runs: Vec<Figures>) -> Figures {
    let count = runs.len() as f64;
    let mut all = Figures::default();
    for run in &runs {
        all.ops += run.ops;
        all.ops_per_s += run.ops_per_s;
        all.bytes_per_s += run.bytes_per_s;
        all.seconds = all.seconds.max(run.seconds);
        all.latency_us.p50 += run.latency_us.p50 / count;
        all.latency_us.p99 += run.latency_us.p99 / count;
    }
    all
}

/// The middle one, by `key`.
pub fn median<T>(mut all: Vec<T>, key: impl Fn(&T) -> f64) -> T {
    all.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let middle = all.len() / 2;
    all.swap_remove(middle)
}
