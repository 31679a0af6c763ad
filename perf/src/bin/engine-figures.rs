//! `engine-figures DIR`: one chunk server against the disk it stands on: fio on a raw file and client threads on a
//! cluster of one server, in turns, and the ratios that the engine has to reach. `perf/engine.sh` makes the cluster.

use clap::Parser;
use perf::cpu::Cpu;
use perf::drive::{Driver, Target};
use perf::engine::{Clients, Outcome, median, whole_run};
use perf::measure::{Case, Figures, Operation, Pattern};
use perf::scratch::{self, ScratchFile};
use perf::text::number;
use perf::turns::Turns;
use perf::{fio, layers};
use shards::text::parse_size;
use std::path::PathBuf;

/// Compares a chunk server with the disk below it.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up --mds 1 --cs 1 --replicas 1'.
    dir: PathBuf,
    /// Directory for the raw file; on the same disk as the cluster.
    #[arg(long)]
    raw: PathBuf,
    /// Of the raw file, and of the files in the cluster together.
    #[arg(long, default_value = "512M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[command(flatten)]
    turns: Turns,
    /// Client threads, each with a file and a share of the depth.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// Also show where the server's CPU time goes, by samples of perf.
    #[arg(long)]
    layers: bool,
    /// Measure only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Measure only cases of this depth.
    #[arg(long)]
    depth: Option<usize>,
}

impl Args {
    fn wants(&self, case: Case) -> bool {
        case.to_string().contains(&self.only) && self.depth.is_none_or(|depth| depth == case.depth)
    }
}

/// A case and what the chunk server has to reach of fio's figure.
struct Goal {
    case: Case,
    /// Least share of the rate, or most of the latency at depth 1.
    ratio: f64,
}

const LARGE_BYTES: usize = 1 << 20;
/// Most CPU time of the server per 4 KiB operation, as a multiple of fio's.
const CPU_RATIO: f64 = 2.5;

fn goals() -> Vec<Goal> {
    let goal = |operation, pattern, block_bytes, depth, ratio| {
        let flushed = operation == Operation::Write;
        Goal { case: Case { operation, pattern, block_bytes, depth, flushed }, ratio }
    };
    use Operation::{Read, Write};
    use Pattern::{Random, Sequential};
    vec![
        goal(Write, Random, 4096, 32, 0.5),
        goal(Read, Random, 4096, 32, 0.8),
        goal(Write, Sequential, LARGE_BYTES, 8, 0.85),
        goal(Read, Sequential, LARGE_BYTES, 8, 0.9),
        goal(Write, Random, 4096, 1, 1.8),
    ]
}

struct Pair {
    fio: Figures,
    fio_cpu_us: f64,
    cs: Outcome,
}

impl Pair {
    fn ratio(&self, case: Case) -> f64 {
        let (ours, theirs) = (&self.cs.figures, &self.fio);
        if case.depth == 1 {
            ours.latency_us.p50 / theirs.latency_us.p50
        } else {
            ours.ops_per_s / theirs.ops_per_s
        }
    }
}

struct Bench {
    args: Args,
    raw: ScratchFile,
    clients: Clients,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    if !fio::is_installed() {
        return Err("fio is needed for comparison: apt-get install fio".into());
    }
    let bench = Bench::prepare(args)?;
    let missed = bench.table();
    if bench.args.layers {
        bench.layers()?;
    }
    bench.clients.remove()?;
    match missed? {
        0 => Ok(()),
        missed => Err(format!("{missed} targets missed")),
    }
}

impl Bench {
    fn prepare(args: Args) -> Result<Bench, String> {
        let raw = ScratchFile::create(&args.raw, "data")?;
        let target = Target { path: raw.path().into(), bytes: args.size, writable: true, journal: None };
        Driver::start(target)?.fill(|_| {})?;
        let clients = Clients::start(&args.dir, args.clients, args.size)?;
        Ok(Bench { args, raw, clients })
    }

    /// Prints a line per goal; how many targets were missed.
    fn table(&self) -> Result<usize, String> {
        println!(
            "| operation | depth | fio per s | CS per s | fio p50 us | CS p50 us | ratio | target | CPU us/op: fio | CS | \
             client | CS/fio |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        let mut missed = 0;
        for goal in goals().into_iter().filter(|g| self.args.wants(g.case)) {
            let pairs: Result<Vec<Pair>, String> =
                (0..self.args.turns.rounds).map(|_| self.pair(goal.case)).collect();
            missed += row(&goal, &median(pairs?, |pair| pair.ratio(goal.case)));
        }
        Ok(missed)
    }

    /// CPU time of the server per operation, by layer.
    fn layers(&self) -> Result<(), String> {
        println!("\n| CPU us of the server for | total | by layer |\n|---|---|---|");
        let time = self.args.turns.time();
        for goal in goals().iter().filter(|g| g.case.depth > 1) {
            let file = self.raw.path().with_extension("perf");
            let pids: Vec<i32> = self.clients.server_pids().collect();
            let sampler = layers::record(&pids, &file)?;
            let outcome = self.clients.run(goal.case, time);
            layers::end(sampler)?;
            let (outcome, shares) = (outcome?, layers::shares(&file)?);
            let _ = std::fs::remove_file(&file);
            let each = shares
                .layers
                .iter()
                .map(|(name, share)| format!("{name} {}", number(share * outcome.server_cpu_us)));
            println!(
                "| {}, depth {} | {} | {} |",
                goal.case.group(),
                goal.case.depth,
                number(outcome.server_cpu_us),
                each.collect::<Vec<_>>().join(", ")
            );
        }
        Ok(())
    }

    fn pair(&self, case: Case) -> Result<Pair, String> {
        let time = self.args.turns.time();
        self.args.turns.wait_until_quiet();
        let before = Cpu::of_children();
        let fio = fio::run(self.raw.path(), case, time)?;
        let used_ns = Cpu::of_children().total_ns - before.total_ns;
        let fio_cpu_us = used_ns as f64 / 1e3 / (fio.ops as f64 * whole_run(time));
        self.args.turns.wait_until_quiet();
        let cs = self.clients.run(case, time)?;
        Ok(Pair { fio, fio_cpu_us, cs })
    }
}

/// Prints a line; how many of its targets were missed.
fn row(goal: &Goal, pair: &Pair) -> usize {
    let (case, ratio) = (goal.case, pair.ratio(goal.case));
    let (kept, sign) =
        if case.depth == 1 { (ratio <= goal.ratio, "at most") } else { (ratio >= goal.ratio, "at least") };
    let cpu_ratio = pair.cs.server_cpu_us / pair.fio_cpu_us;
    let cpu_kept = case.block_bytes != 4096 || case.depth == 1 || cpu_ratio <= CPU_RATIO;
    let mark = |kept: bool| if kept { "" } else { " MISSED" };
    println!(
        "| {} | {} | {} | {} | {} | {} | {ratio:.2} | {sign} {}{} | {} | {} | {} | {cpu_ratio:.1}{} |",
        case.group(),
        case.depth,
        number(pair.fio.ops_per_s),
        number(pair.cs.figures.ops_per_s),
        number(pair.fio.latency_us.p50),
        number(pair.cs.figures.latency_us.p50),
        goal.ratio,
        mark(kept),
        number(pair.fio_cpu_us),
        number(pair.cs.server_cpu_us),
        number(pair.cs.client_cpu_us),
        mark(cpu_kept),
    );
    usize::from(!kept) + usize::from(!cpu_kept)
}
