//! `engine-scale FEW MANY`: whether the cost of a request grows with the number of chunks on a server: the same load on
//! two clusters of one chunk server, in turns, after one of them was given many chunks. `perf/engine-scale.sh` makes them.

use clap::Parser;
use client::Cluster;
use perf::drive::noise_blocks;
use perf::engine::{Clients, Outcome, etc, median};
use perf::measure::{Case, Operation, Pattern};
use perf::text::number;
use shards::text::parse_size;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Compares two clusters of one chunk server, one with few chunks and one with many.
#[derive(Parser)]
struct Args {
    few: PathBuf,
    many: PathBuf,
    /// Chunks made in the second.
    #[arg(long, default_value_t = 100_000)]
    chunks: u64,
    /// Path of a directory in the cluster whose files have chunks of 1 MiB.
    #[arg(long, default_value = "many")]
    directory: String,
    #[arg(long, default_value = "256M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

const CHUNK_BYTES: u64 = 1 << 20;
const DEPTH: u64 = 64;
/// Most that the median ratio may differ from 1.
const MARGIN: f64 = 0.1;

fn main() -> Result<(), String> {
    let args = Args::parse();
    make_chunks(&args)?;
    let few = Clients::start(&args.few, 1, args.size)?;
    let many = Clients::start(&args.many, 1, args.size)?;
    let worst = compare(&args, &few, &many);
    few.remove()?;
    many.remove()?;
    match worst? {
        within if within <= MARGIN => Ok(()),
        beyond => Err(format!("the cost grows: {:.0} % in the worst case", beyond * 100.0)),
    }
}

/// One block in each of many chunks.
fn make_chunks(args: &Args) -> Result<(), String> {
    let cluster =
        Cluster::connect(client::setup::load(&etc(&args.many), "local")?).map_err(|e| e.to_string())?;
    let path = format!("{}/chunks", args.directory);
    let file = cluster.create(&path, 0o600, true).map_err(|e| format!("creating /{path}: {e}"))?;
    let (data, began) = (noise_blocks(1, 4096).remove(0), Instant::now());
    let (tell, hear) = channel();
    let (mut sent, mut done) = (0, 0);
    while done < args.chunks {
        while sent < args.chunks && sent - done < DEPTH {
            let tell = tell.clone();
            let told = Box::new(move |result: client::Result<()>| drop(tell.send(result)));
            file.submit_write(sent * CHUNK_BYTES, data.clone(), told);
            sent += 1;
        }
        hear.recv().map_err(|e| e.to_string())?.map_err(|e| format!("writing: {e}"))?;
        done += 1;
    }
    file.fsync().map_err(|e| e.to_string())?;
    eprintln!("{done} chunks made in {:.0} s", began.elapsed().as_secs_f64());
    drop(file);
    cluster.close().map_err(|e| e.to_string())
}

fn compare(args: &Args, few: &Clients, many: &Clients) -> Result<f64, String> {
    let case = |operation, depth| Case {
        operation,
        pattern: Pattern::Random,
        block_bytes: 4096,
        depth,
        flushed: false,
    };
    let cases = [case(Operation::Read, 32), case(Operation::Write, 32), case(Operation::Read, 1)];
    println!("| operation | depth | few per s | many per s | ratio | CS CPU us/op: few | many | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut worst = 0.0f64;
    for case in cases {
        let time = Duration::from_secs_f64(args.seconds);
        let mut pairs: Vec<(Outcome, Outcome)> = Vec::new();
        for _ in 0..args.rounds {
            pairs.push((few.run(case, time)?, many.run(case, time)?));
        }
        let rate = |(few, many): &(Outcome, Outcome)| many.figures.ops_per_s / few.figures.ops_per_s;
        let cpu = |(few, many): &(Outcome, Outcome)| many.server_cpu_us / few.server_cpu_us;
        let cpu_ratio = median(pairs.iter().map(cpu).collect(), |ratio| *ratio);
        let middle = median(pairs, rate);
        worst = worst.max(1.0 - rate(&middle)).max(cpu_ratio - 1.0);
        println!(
            "| {} | {} | {} | {} | {:.2} | {} | {} | {cpu_ratio:.2} |",
            case.group(),
            case.depth,
            number(middle.0.figures.ops_per_s),
            number(middle.1.figures.ops_per_s),
            rate(&middle),
            number(middle.0.server_cpu_us),
            number(middle.1.server_cpu_us),
        );
    }
    Ok(worst)
}
