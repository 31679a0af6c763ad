//! `simulator`: runs seeds of the whole cluster under faults, in virtual time.

use clap::Parser;
use pstorage_tests::simulator::{Options, run};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Runs a whole cluster in virtual time under random faults. One seed is one run.
#[derive(Parser)]
struct Args {
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// First seed of many.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Stop starting new seeds after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Virtual seconds of faults per seed.
    #[arg(long, default_value_t = 20)]
    chaos_s: u64,
    /// Threads. [default: all cores]
    #[arg(long)]
    jobs: Option<usize>,
    /// Show what happened last before a failure.
    #[arg(long)]
    log: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options { log: args.log, chaos: Duration::from_secs(args.chaos_s), ..Options::default() };
    if let Some(seed) = args.seed {
        return match run(seed, &options) {
            Ok(report) => {
                println!("{report:#?}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                println!("{failure}");
                ExitCode::FAILURE
            }
        };
    }
    let begun = Instant::now();
    let (next, failed) = (AtomicU64::new(args.from), Mutex::new(Vec::new()));
    let (ran, ops, virtual_ms) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = args.seconds.is_some_and(|s| begun.elapsed().as_secs() >= s);
                    let stop = !args.keep_going && !failed.lock().expect("not poisoned").is_empty();
                    if seed >= args.from + args.seeds || late || stop {
                        return;
                    }
                    let outcome = std::panic::catch_unwind(|| run(seed, &options));
                    ran.fetch_add(1, Ordering::Relaxed);
                    match outcome {
                        Ok(Ok(report)) => {
                            ops.fetch_add(report.done_ops, Ordering::Relaxed);
                            virtual_ms.fetch_add(report.virtual_ms, Ordering::Relaxed);
                        }
                        Ok(Err(failure)) => {
                            println!("{failure}\n");
                            failed.lock().expect("not poisoned").push(seed);
                        }
                        Err(_) => {
                            println!("seed {seed}: panicked\n");
                            failed.lock().expect("not poisoned").push(seed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("not poisoned");
    println!(
        "{} seeds, {} failed {failed:?}; {} operations, {} virtual seconds, in {:.1} s",
        ran.load(Ordering::Relaxed),
        failed.len(),
        ops.load(Ordering::Relaxed),
        virtual_ms.load(Ordering::Relaxed) / 1000,
        begun.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
