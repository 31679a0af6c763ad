//! `engine-cores DIR`: what a second core gives: 4 KiB random reads that a chunk server answers from its read cache, with
//! server and clients on one core, and on two, in turns. `perf/engine-cores.sh` makes the cluster.

use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use perf::engine::{Clients, Outcome, median};
use perf::measure::{Case, Operation, Pattern};
use perf::text::number;
use shards::text::parse_size;
use std::path::PathBuf;
use std::time::Duration;

/// Compares one core with two.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up --mds 1 --cs 1 --replicas 1', whose chunk server has a read cache.
    dir: PathBuf,
    #[arg(long, default_value = "64M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Least gain of the second core.
const GOAL: f64 = 1.8;

fn main() -> Result<(), String> {
    let args = Args::parse();
    let clients = Clients::start(&args.dir, 2, args.size)?;
    let case = Case {
        operation: Operation::Read,
        pattern: Pattern::Random,
        block_bytes: 4096,
        depth: 32,
        flushed: false,
    };
    let time = Duration::from_secs_f64(args.seconds);
    for _ in 0..3 {
        clients.run(case, time)?; // Fills the cache.
    }
    let mut pairs: Vec<(Outcome, Outcome)> = Vec::new();
    for _ in 0..args.rounds {
        pin_all(&clients, &[0])?;
        let one = clients.run(case, time)?;
        pin_all(&clients, &[0, 1])?;
        pairs.push((one, clients.run(case, time)?));
    }
    clients.remove()?;
    let gain = |(one, two): &(Outcome, Outcome)| two.figures.ops_per_s / one.figures.ops_per_s;
    let middle = median(pairs, gain);
    println!("| cores | reads per s | p50 us | CPU us/op: server | client |\n|---|---|---|---|---|");
    for (cores, outcome) in [(1, &middle.0), (2, &middle.1)] {
        println!(
            "| {cores} | {} | {} | {} | {} |",
            number(outcome.figures.ops_per_s),
            number(outcome.figures.latency_us.p50),
            number(outcome.server_cpu_us),
            number(outcome.client_cpu_us)
        );
    }
    println!("\nThe second core gives {:.2} times the reads (goal: {GOAL}).", gain(&middle));
    if gain(&middle) < GOAL { Err("goal missed".into()) } else { Ok(()) }
}

/// Gives all threads of the server and of this program these cores.
fn pin_all(clients: &Clients, cores: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    cores.iter().try_for_each(|&core| set.set(core)).map_err(|e| e.to_string())?;
    for pid in clients.server_pids().chain([std::process::id() as i32]) {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| e.to_string())?;
        for task in tasks.flatten().filter_map(|t| t.file_name().to_str()?.parse().ok()) {
            // A worker of the kernel may have ended meanwhile, or not allow it.
            let _ = sched_setaffinity(Pid::from_raw(task), &set);
        }
    }
    Ok(())
}
