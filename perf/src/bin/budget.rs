//! `budget DIR`: what a 4 KiB read and a durable 4 KiB write cost, from the client library to the disk: CPU time of each process, system calls,
//! switches and wakes, and where the CPU time of all of them goes, by layer and by function. `perf/budget.sh` makes the cluster.

use clap::Parser;
use perf::cluster::LibraryFile;
use perf::cpu::{Meter, Watched, role};
use perf::engine::{etc, median, whole_run};
use perf::layers::{self, COUNTED, Shares};
use perf::measure::{Case, Figures, Operation, Pattern};
use perf::scratch::{self, ScratchFile};
use perf::text::number;
use perf::turns::Turns;
use std::path::PathBuf;

/// Shows what small requests cost.
#[derive(Parser)]
struct Args {
    /// Directory of a 'pstorage local' cluster.
    dir: PathBuf,
    /// Directory for the samples of perf.
    #[arg(long)]
    samples: PathBuf,
    #[command(flatten)]
    turns: Turns,
    /// How many of the largest functions are shown.
    #[arg(long, default_value_t = 12)]
    functions: usize,
}

/// One chunk: one chunk server leads it, and the others only follow.
const FILE_BYTES: u64 = 64 << 20;

/// CPU us and counts for an operation, of a process.
struct Cost {
    name: String,
    cpu_us: f64,
    counts: [f64; 4],
}

struct Budget {
    figures: Figures,
    costs: Vec<Cost>,
    shares: Shares,
}

impl Budget {
    fn cpu_us(&self) -> f64 {
        self.costs.iter().map(|cost| cost.cpu_us).sum()
    }
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    let mut watched = Watched::of_local_cluster(&args.dir)?;
    watched.retain(|w| role(&w.name) != "mount");
    watched.push(Watched::parse(&format!("client={}", std::process::id()))?);
    let file = LibraryFile::create("local", &etc(&args.dir), FILE_BYTES)?;
    file.fill(|_| {})?;
    let mut budgets = Vec::new();
    for operation in [Operation::Read, Operation::Write] {
        for depth in [1, 32] {
            let case = Case { operation, pattern: Pattern::Random, block_bytes: 4096, depth, flushed: false };
            budgets.push((case, budget(&args, &watched, &file, case)?));
        }
    }
    println!("Replicas {}; {} s for each figure.\n", file.replicas()?, args.turns.seconds);
    file.remove()?;
    processes(&budgets);
    for (title, count, pick) in [
        ("layer", usize::MAX, (|b| &b.shares.layers) as fn(&Budget) -> &Vec<(String, f64)>),
        ("function", args.functions, |b| &b.shares.functions),
    ] {
        println!("\n| CPU us of all processes, by {title} | total | |\n|---|---|---|");
        for (case, budget) in &budgets {
            let cost =
                |(name, share): &(String, f64)| format!("`{name}` {}", number(share * budget.cpu_us()));
            let all: Vec<String> = pick(budget).iter().take(count).map(cost).collect();
            println!("| {case} | {} | {} |", number(budget.cpu_us()), all.join(", "));
        }
    }
    Ok(())
}

/// The same load three times: undisturbed, counted, sampled.
fn budget(args: &Args, watched: &[Watched], file: &LibraryFile, case: Case) -> Result<Budget, String> {
    let time = args.turns.time();
    let run = || file.run(case, time, &mut || {});
    let mut rounds = Vec::new();
    for _ in 0..args.turns.rounds {
        args.turns.wait_until_quiet();
        let meter = Meter::start(watched);
        rounds.push((run()?, meter.stop()));
    }
    let (figures, used) = median(rounds, |(figures, _)| figures.ops_per_s);
    let counters = watched.iter().map(|w| layers::count(w.pid)).collect::<Result<Vec<_>, _>>()?;
    let ops = |figures: &Figures| figures.ops as f64 * whole_run(time);
    let counted = ops(&run()?);
    let counts = counters.into_iter().map(layers::counts).collect::<Result<Vec<_>, _>>()?;
    let samples = ScratchFile::create(&args.samples, "perf")?;
    let sampler = layers::record(&watched.iter().map(|w| w.pid).collect::<Vec<_>>(), samples.path())?;
    run()?;
    layers::end(sampler)?;
    let mut costs: Vec<Cost> = used
        .watched
        .into_iter()
        .zip(counts)
        .map(|((name, time), counts)| Cost {
            name,
            cpu_us: time.as_secs_f64() * 1e6 / ops(&figures),
            counts: counts.map(|count| count / counted),
        })
        .collect();
    costs.sort_by(|a, b| b.cpu_us.total_cmp(&a.cpu_us));
    Ok(Budget { figures, costs, shares: layers::shares(samples.path())? })
}

fn processes(budgets: &[(Case, Budget)]) {
    println!("| | per s | p50 us | p99 us | process | CPU us | {} |", COUNTED.join(" | "));
    println!("|---|---|---|---|---|---|{}", "---|".repeat(COUNTED.len()));
    for (case, budget) in budgets {
        let figures = &budget.figures;
        let mut head = [
            case.to_string(),
            number(figures.ops_per_s),
            number(figures.latency_us.p50),
            number(figures.latency_us.p99),
        ];
        for cost in &budget.costs {
            let counts = cost.counts.map(number).join(" | ");
            println!("| {} | {} | {} | {counts} |", head.join(" | "), cost.name, number(cost.cpu_us));
            head.iter_mut().for_each(String::clear);
        }
    }
}
