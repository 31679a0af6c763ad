//! Many seeds on all cores.

use super::shrink::shrink;
use super::{Failure, Filled, Options, Report, run};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the seeds of a campaign did together.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub seeds: u64,
    pub done_ops: u64,
    pub failed_ops: u64,
    pub events: u64,
    pub cache_hits: u64,
    pub filled: Filled,
    pub slow_rests: u64,
    pub virtual_ms: u64,
    pub longest_heal_ms: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub failures: Vec<Failure>,
}

impl Totals {
    fn add(&mut self, outcome: Result<Report, Failure>) {
        self.seeds += 1;
        match outcome {
            Err(failure) => self.failures.push(failure),
            Ok(report) => {
                self.done_ops += report.done_ops;
                self.failed_ops += report.failed_ops;
                self.events += report.events;
                self.cache_hits += report.cache_hits;
                self.filled += report.filled;
                self.slow_rests += report.slow_rests;
                self.virtual_ms += report.virtual_ms;
                self.longest_heal_ms = self.longest_heal_ms.max(report.heal_ms);
                for (name, count) in report.faults {
                    *self.faults.entry(name).or_default() += count;
                }
            }
        }
    }

    pub fn failed_seeds(&self) -> Vec<u64> {
        self.failures.iter().map(|f| f.seed).collect()
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} seeds, {} failed {:?}; {} operations ({} refused), {} faults {:?}, {} virtual seconds, {} events, \
             {} cache hits, {} catch-ups of {} KiB, {} full copies of {} KiB, {} rests of slow servers",
            self.seeds,
            self.failures.len(),
            self.failed_seeds(),
            self.done_ops,
            self.failed_ops,
            self.faults.values().sum::<u64>(),
            self.faults,
            self.virtual_ms / 1000,
            self.events,
            self.cache_hits,
            self.filled.catch_ups,
            self.filled.catch_up_bytes >> 10,
            self.filled.full_copies,
            self.filled.full_copy_bytes >> 10,
            self.slow_rests
        )
    }
}

/// Runs the seeds on `jobs` threads. `go_on` is asked before each seed.
pub fn campaign(
    seeds: Range<u64>,
    options: &Options,
    jobs: usize,
    go_on: impl Fn(&Totals) -> bool + Sync,
) -> Totals {
    let next = AtomicU64::new(seeds.start);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while go_on(&totals.lock().expect("not poisoned")) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run_caught(seed, options);
                    totals.lock().expect("not poisoned").add(outcome);
                }
            });
        }
    });
    totals.into_inner().expect("not poisoned")
}

/// Runs a seed; a panic of the product is a failure like others. A failure is shrunk if the options say so.
pub fn run_caught(seed: u64, options: &Options) -> Result<Report, Failure> {
    let failure = match run_once(seed, options) {
        Err(failure) if options.shrink_runs > 0 && !failure.faults.is_empty() => failure,
        outcome => return outcome,
    };
    let all: Vec<usize> = failure.faults.iter().map(|(n, _)| *n).collect();
    let mut smallest = failure;
    shrink(&all, options.shrink_runs, |faults| {
        let fewer = Options { faults: Some(faults.to_vec()), trace: false, ..options.clone() };
        match run_once(seed, &fewer) {
            Ok(_) => false,
            Err(failure) => {
                smallest = failure;
                true
            }
        }
    });
    Err(smallest)
}

fn run_once(seed: u64, options: &Options) -> Result<Report, Failure> {
    std::panic::catch_unwind(|| run(seed, options)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        let faults = options.plan(seed).chosen(options);
        let (harsh, servers) = (options.harsh, options.servers);
        Err(Failure { seed, harsh, servers, why: format!("panicked: {text}"), faults })
    })
}

/// As many threads as the machine has cores.
pub fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
