//! `simulator`: runs seeds of the whole cluster under faults, in virtual time.

use clap::Parser;
use pstorage_tests::simulator::{Options, Totals, all_cores, campaign, run_caught};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Clients open files also for reading, and share them.
    #[arg(long)]
    readers: bool,
    /// Run with this deliberate defect; finding it is success. Needs `--features sabotage`. "list" shows all.
    #[cfg(feature = "sabotage")]
    #[arg(long)]
    sabotage: Option<String>,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    #[cfg(feature = "sabotage")]
    if let Some(name) = &args.sabotage {
        return sabotage(name, &args);
    }
    let options = Options {
        log: args.log,
        chaos: Duration::from_secs(args.chaos_s),
        readers: args.readers,
        ..Options::default()
    };
    if let Some(seed) = args.seed {
        return match run_caught(seed, &options) {
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
    let jobs = args.jobs.unwrap_or_else(all_cores);
    let shown = AtomicUsize::new(0);
    let go_on = |totals: &Totals| {
        let before = shown.swap(totals.failures.len(), Ordering::Relaxed);
        totals.failures.iter().skip(before).for_each(|failure| println!("{failure}\n"));
        let late = args.seconds.is_some_and(|s| begun.elapsed().as_secs() >= s);
        !late && (args.keep_going || totals.failures.is_empty())
    };
    let totals = campaign(args.from..args.from + args.seeds, &options, jobs, go_on);
    go_on(&totals);
    println!("{totals}, in {:.1} s", begun.elapsed().as_secs_f64());
    if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Success is a failure here: the seed that found the defect is told.
#[cfg(feature = "sabotage")]
fn sabotage(name: &str, args: &Args) -> ExitCode {
    use shards::sabotage::Sabotage;
    let wanted: Vec<_> = Sabotage::ALL.into_iter().filter(|(n, _)| name == "all" || *n == name).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = Sabotage::ALL.iter().map(|(n, _)| *n).collect();
        println!("defects: all, {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let mut missed = false;
    for (name, defect) in wanted {
        let options = Options { sabotage: Some(defect), ..Options::default() };
        let begun = Instant::now();
        let totals =
            campaign(args.from..args.from + args.seeds, &options, args.jobs.unwrap_or_else(all_cores), |t| {
                t.failures.is_empty()
            });
        let time = begun.elapsed().as_secs_f64();
        match totals.failures.iter().min_by_key(|f| f.seed) {
            Some(found) => println!(
                "{name}: found after {} seeds, {time:.0} s, by seed {}: {}",
                totals.seeds,
                found.seed,
                found.why.lines().next().unwrap_or("")
            ),
            None => println!("{name}: NOT found by {} seeds, {time:.0} s", totals.seeds),
        }
        missed |= totals.failures.is_empty();
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
