//! `simulator`: runs seeds of a whole cluster under faults, in virtual time. The last line and the exit status say the
//! outcome.

use clap::Parser;
use pstorage_tests::simulator::{Options, Totals, all_cores, campaign, run_caught};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Runs a whole cluster in virtual time under random faults. One seed is one run.
#[derive(Parser)]
struct Args {
    /// Run this seed only, and show its plan.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: only these faults of its plan, as "0,3,7"; "none" runs it without any.
    #[arg(long, requires = "seed")]
    faults: Option<String>,
    /// With --seed: print everything that happens. RUST_LOG chooses what the servers say ("info").
    #[arg(long, requires = "seed")]
    trace: bool,
    /// First seed of many.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Stop starting new seeds after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Virtual seconds during which faults begin. Another number is another plan.
    #[arg(long, default_value_t = 10)]
    chaos_s: u64,
    /// So many chunk servers instead of those of the plan, if these are fewer.
    #[arg(long, value_parser = clap::value_parser!(u16).range(..=10_000))]
    servers: Option<u16>,
    /// Plans with more kinds of faults.
    #[arg(long)]
    harsh: bool,
    /// Threads. [default: all cores]
    #[arg(long)]
    jobs: Option<usize>,
    /// Do not look for the faults that a failure needs.
    #[arg(long)]
    no_shrink: bool,
    /// Run with this deliberate defect; finding it is success. Needs `--features sabotage`. "list" shows all.
    #[cfg(feature = "sabotage")]
    #[arg(long)]
    sabotage: Option<String>,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

/// Runs spent on shrinking one failure.
const SHRINK_RUNS: usize = 60;

fn main() -> ExitCode {
    shards::host::end_with_readers();
    let args = Args::parse();
    #[cfg(feature = "sabotage")]
    if let Some(name) = args.sabotage.as_deref().filter(|_| args.seed.is_none()) {
        return sabotage(name, &args);
    }
    let outcome = match options(&args) {
        Err(why) => Err(why),
        Ok(options) => match args.seed {
            Some(seed) => one(seed, &options),
            None => many(&args, &options),
        },
    };
    match outcome {
        Ok(text) => {
            println!("OK: {text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("FAILED: {text}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: &Args) -> Result<Options, String> {
    let faults = match args.faults.as_deref() {
        None => None,
        Some("none") => Some(Vec::new()),
        Some(list) => Some(
            list.split(',')
                .map(|n| n.trim().parse().map_err(|_| format!("--faults {list}: '{n}' is not a number")))
                .collect::<Result<_, _>>()?,
        ),
    };
    // Who asks for certain faults or for a trace knows which run to see.
    let as_it_is = args.no_shrink || args.trace || faults.is_some();
    Ok(Options {
        harsh: args.harsh,
        chaos: Duration::from_secs(args.chaos_s),
        faults,
        shrink_runs: if as_it_is { 0 } else { SHRINK_RUNS },
        #[cfg(feature = "sabotage")]
        sabotage: args.sabotage.as_deref().and_then(shards::sabotage::Sabotage::by_name),
        servers: args.servers.map(usize::from),
        trace: args.trace,
    })
}

fn one(seed: u64, options: &Options) -> Result<String, String> {
    if options.trace {
        // A second call is refused; the first one holds.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
            )
            .without_time()
            .with_ansi(false)
            .try_init();
    }
    let plan = options.plan(seed);
    println!("{:?}", plan.shape);
    for (n, fault) in plan.chosen(options) {
        println!("fault {n}: {fault}");
    }
    match run_caught(seed, options) {
        Ok(report) => {
            println!("{report:#?}");
            Ok(format!("seed {seed}, {} operations", report.done_ops))
        }
        Err(failure) => {
            println!("{failure}");
            Err(format!("seed {seed}: {}", failure.why.lines().next().unwrap_or("")))
        }
    }
}

fn many(args: &Args, options: &Options) -> Result<String, String> {
    let begun = Instant::now();
    let shown = AtomicUsize::new(0);
    let go_on = |totals: &Totals| {
        let before = shown.swap(totals.failures.len(), Ordering::Relaxed);
        totals.failures.iter().skip(before).for_each(|failure| println!("{failure}\n"));
        let late = args.seconds.is_some_and(|s| begun.elapsed().as_secs() >= s);
        !late && (args.keep_going || totals.failures.is_empty())
    };
    let jobs = args.jobs.unwrap_or_else(all_cores);
    let totals = campaign(args.from..args.from + args.seeds, options, jobs, go_on);
    go_on(&totals);
    let text = format!("{totals}, in {:.1} s", begun.elapsed().as_secs_f64());
    if totals.failures.is_empty() { Ok(text) } else { Err(text) }
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
    let mut missed = Vec::new();
    for (name, defect) in wanted {
        let options = Options {
            harsh: args.harsh,
            sabotage: Some(defect),
            chaos: Duration::from_secs(args.chaos_s),
            ..Options::default()
        };
        let begun = Instant::now();
        let seeds = args.from..args.from + args.seeds;
        let totals =
            campaign(seeds, &options, args.jobs.unwrap_or_else(all_cores), |t| t.failures.is_empty());
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
        if totals.failures.is_empty() {
            missed.push(name);
        }
    }
    match missed.is_empty() {
        true => {
            println!("OK: all defects were found");
            ExitCode::SUCCESS
        }
        false => {
            println!("FAILED: not found: {}", missed.join(", "));
            ExitCode::FAILURE
        }
    }
}
