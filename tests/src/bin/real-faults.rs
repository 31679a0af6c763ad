//! `real-faults`: a cluster of real processes under random faults, for any length of time.

use clap::Parser;
use pstorage_tests::real::chaos;
use std::process::ExitCode;
use std::time::Duration;

/// Runs a cluster of real servers and mounts, each in a network namespace of its own, under random faults, and checks
/// that reads and writes were linearizable, that nothing acknowledged was lost, and that all heals. Needs root.
#[derive(Parser)]
struct Args {
    /// What happens, and when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long there are faults.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Print only the outcome.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut tell = |text: String| {
        if !args.quiet {
            println!("{text}");
        }
    };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        chaos::run(args.seed, Duration::from_secs(args.seconds), &mut tell)
    }));
    let why = match ended {
        Ok(Ok(report)) => {
            println!("{report:?}\nreal-faults: seed {}: OK", args.seed);
            return ExitCode::SUCCESS;
        }
        Ok(Err(why)) => why,
        Err(_) => "see above".into(),
    };
    println!("real-faults: seed {}: FAILED: {why}", args.seed);
    ExitCode::FAILURE
}
