//! `network-figures --gbit N`: 1 MiB sequential writes and reads of one client on a network whose ports carry N Gb/s, as shares of the line
//! rate, and what each port carried meanwhile. `perf/network.sh` makes the network and the cluster.

use clap::Parser;
use client::Cluster;
use perf::cpu::{Watched, role};
use perf::engine::{Clients, Outcome, median};
use perf::measure::{Case, Operation, Pattern};
use perf::text::number;
use perf::turns::Turns;
use shards::text::parse_size;
use std::path::{Path, PathBuf};
use wire::ROOT;
use wire::mds_api::MdsRequest;

/// Measures one client on a network of known rate.
#[derive(Parser)]
struct Args {
    /// What each port carries in each direction, in Gb/s.
    #[arg(long)]
    gbit: f64,
    /// /sys/class/net of the bridge: a port "p-HOST" for each host.
    #[arg(long)]
    ports: PathBuf,
    #[arg(long, env = "PSTORAGE_ETC")]
    etc: PathBuf,
    #[arg(long, env = "PSTORAGE_NAME")]
    cluster: String,
    /// A chunk server, as NAME=PID: its CPU time is shown.
    #[arg(long = "server", value_parser = Watched::parse)]
    servers: Vec<Watched>,
    /// Of all files together.
    #[arg(long, default_value = "256M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[command(flatten)]
    turns: Turns,
}

/// Under way at once, over all files.
const DEPTH: usize = 16;
/// Least share of the line rate.
const GOAL: f64 = 0.9;

/// Files and how they are kept.
struct Kind {
    files: usize,
    replicas: &'static str,
    chunk_size: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind { files: 1, replicas: "3:2", chunk_size: "64M" },
    Kind { files: 4, replicas: "3:2", chunk_size: "64M" },
    Kind { files: 1, replicas: "3:2", chunk_size: "1M" },
    Kind { files: 1, replicas: "1:1", chunk_size: "64M" },
];

/// Bytes for each byte of payload: out of the client or into it, and out of and into the busiest chunk server.
struct Run {
    outcome: Outcome,
    client: f64,
    cs_out: f64,
    cs_in: f64,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let line_bytes_per_s = args.gbit * 1e9 / 8.0;
    println!(
        "\nPorts of {} Gb/s in each direction ({} MB/s), one client, {DEPTH} x 1 MiB under way, {} rounds of {} s; bytes are those of \
         whole frames.\n",
        args.gbit,
        number(line_bytes_per_s / 1e6),
        args.turns.rounds,
        args.turns.seconds
    );
    println!(
        "| sequential 1 MiB | files | replicas | chunks | MB/s | share of line rate | bytes for each byte: client's port | busiest CS, out | \
         in | CPU us/MiB: all CS | client |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let admin =
        Cluster::connect(client::setup::load(&args.etc, &args.cluster)?).map_err(|e| e.to_string())?;
    let mut best_write: f64 = 0.0;
    for kind in KINDS {
        for (name, value) in [("replicas", kind.replicas), ("chunk-size", kind.chunk_size)] {
            let request = MdsRequest::SetPolicy {
                file: ROOT,
                name: name.into(),
                value: value.into(),
                recursive: false,
            };
            admin.mds(request).map_err(|e| format!("{name}={value}: {e}"))?;
        }
        let clients =
            Clients::connect(&args.cluster, &args.etc, args.servers.clone(), kind.files, args.size)?;
        for operation in [Operation::Write, Operation::Read] {
            let runs: Result<Vec<Run>, String> =
                (0..args.turns.rounds).map(|_| run(&args, &clients, operation)).collect();
            let middle = median(runs?, |run| run.outcome.figures.bytes_per_s);
            let share = middle.outcome.figures.bytes_per_s / line_bytes_per_s;
            if operation == Operation::Write && kind.replicas == "3:2" {
                best_write = best_write.max(share);
            }
            println!(
                "| {} | {} | {} | {} | {} | {share:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
                if operation == Operation::Write { "write" } else { "read" },
                kind.files,
                kind.replicas,
                kind.chunk_size,
                number(middle.outcome.figures.bytes_per_s / 1e6),
                middle.client,
                middle.cs_out,
                middle.cs_in,
                number(middle.outcome.server_cpu_us),
                number(middle.outcome.client_cpu_us),
            );
        }
        clients.remove()?;
    }
    admin.close().map_err(|e| e.to_string())?;
    println!("\nBest write with three replicas: {best_write:.2} of the line rate (goal: {GOAL}).");
    Ok(())
}

fn run(args: &Args, clients: &Clients, operation: Operation) -> Result<Run, String> {
    let (pattern, block_bytes) = (Pattern::Sequential, 1 << 20);
    let case = Case { operation, pattern, block_bytes, depth: DEPTH, flushed: false };
    args.turns.wait_until_quiet();
    let before = ports(&args.ports)?;
    let outcome = clients.run(case, args.turns.time())?;
    let carried: Vec<(String, [f64; 2])> = ports(&args.ports)?
        .into_iter()
        .zip(before)
        .map(|((name, after), (_, before))| (name, [0, 1].map(|way| (after[way] - before[way]) as f64)))
        .collect();
    // The warm-up is carried as well: all that the client sent or got is its payload.
    let payload =
        outcome.figures.ops as f64 * perf::engine::whole_run(args.turns.time()) * block_bytes as f64;
    let most = |wanted: &str, way: usize| {
        let of_role = carried.iter().filter(|(name, _)| role(name) == wanted);
        of_role.map(|(_, bytes)| bytes[way] / payload).fold(0.0, f64::max)
    };
    let (client_out, client_in) = (most("client", 0), most("client", 1));
    Ok(Run { outcome, client: client_out.max(client_in), cs_out: most("cs", 0), cs_in: most("cs", 1) })
}

/// Bytes out of each host and into it, so far.
fn ports(net: &Path) -> Result<Vec<(String, [u64; 2])>, String> {
    let entries = std::fs::read_dir(net).map_err(shards::text::at(&net))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    let hosts = names.iter().filter_map(|name| name.strip_prefix("p-"));
    let count = |host: &str, counter: &str| {
        let path = net.join(format!("p-{host}/statistics/{counter}"));
        let text = std::fs::read_to_string(&path).map_err(shards::text::at(&path))?;
        text.trim().parse::<u64>().map_err(|e| format!("{}: {e}", path.display()))
    };
    // What the bridge's end receives its host has sent.
    hosts.map(|h| Ok((h.to_string(), [count(h, "rx_bytes")?, count(h, "tx_bytes")?]))).collect()
}
