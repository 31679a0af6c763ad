//! `engine-figures DIR`: one chunk server against the disk it stands on: fio on a raw file and client threads on a
//! cluster of one server, in turns, and the ratios that the engine has to reach. `perf/engine.sh` makes the cluster.

use clap::Parser;
use perf::cluster::LibraryFile;
use perf::cpu::{self, Cpu, Meter, Watched};
use perf::drive::{Driver, Target};
use perf::fio;
use perf::measure::{Case, Figures, Operation, Pattern};
use perf::scratch::{self, ScratchFile};
use perf::text::{number, parse_size};
use std::path::PathBuf;
use std::time::Duration;

/// Compares a chunk server with the disk below it.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up --mds 1 --cs 1 --replicas 1'.
    dir: PathBuf,
    /// Directory for the raw file; on the same disk as the cluster.
    #[arg(long)]
    raw: PathBuf,
    /// Of the raw file, and of the files in the cluster together.
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    size: u64,
    /// Length of each measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How often each pair is measured; the median ratio counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Client threads, each with a file and a share of the depth.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// Wait at most this long before each measurement for other programs to be quiet.
    #[arg(long, default_value_t = 10.0)]
    wait_s: f64,
    /// Measure only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
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

/// Figures and the CPU time of one operation.
struct Side {
    figures: Figures,
    cpu_us: f64,
}

struct Pair {
    fio: Side,
    cs: Side,
    client_cpu_us: f64,
}

impl Pair {
    fn ratio(&self, case: Case) -> f64 {
        let (ours, theirs) = (&self.cs.figures, &self.fio.figures);
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
    files: Vec<LibraryFile>,
    watched: Vec<Watched>,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    if !fio::is_installed() {
        return Err("fio is needed for comparison: apt-get install fio".into());
    }
    let bench = Bench::prepare(args)?;
    let missed = bench.table();
    let removed: Result<Vec<()>, String> = bench.files.into_iter().map(LibraryFile::remove).collect();
    removed?;
    match missed? {
        0 => Ok(()),
        missed => Err(format!("{missed} targets missed")),
    }
}

impl Bench {
    fn prepare(args: Args) -> Result<Bench, String> {
        let mut watched = Watched::of_local_cluster(&args.dir)?;
        watched.retain(|w| cpu::role(&w.name) == "cs");
        let raw = ScratchFile::create(&args.raw, "data")?;
        let target = Target { path: raw.path().into(), bytes: args.size, writable: true, journal: None };
        Driver::start(target)?.fill(|_| {})?;
        let mut files = Vec::new();
        for _ in 0..args.clients {
            let file = LibraryFile::create("local", &args.dir.join("etc"), args.size / args.clients as u64)?;
            file.fill(|_| {})?;
            files.push(file);
        }
        Ok(Bench { args, raw, files, watched })
    }

    /// Prints a line per goal; how many targets were missed.
    fn table(&self) -> Result<usize, String> {
        println!(
            "| operation | depth | fio per s | CS per s | fio p50 us | CS p50 us | ratio | target | CPU us/op: fio | CS | \
             client | CS/fio |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        let mut missed = 0;
        for goal in goals().into_iter().filter(|g| g.case.to_string().contains(&self.args.only)) {
            let mut pairs = Vec::new();
            for _ in 0..self.args.rounds {
                pairs.push(self.pair(goal.case)?);
            }
            pairs.sort_by(|a, b| a.ratio(goal.case).total_cmp(&b.ratio(goal.case)));
            missed += row(&goal, &pairs[pairs.len() / 2]);
        }
        Ok(missed)
    }

    fn pair(&self, case: Case) -> Result<Pair, String> {
        let time = Duration::from_secs_f64(self.args.seconds);
        self.wait();
        let before = Cpu::of_children();
        let figures = fio::run(self.raw.path(), case, time)?;
        let used_ns = Cpu::of_children().total_ns - before.total_ns;
        // fio's warm-up uses CPU as well: a tenth of the time, at most 0.5 s.
        let whole = 1.0 + (0.1f64).min(0.5 / self.args.seconds);
        let cpu_us = used_ns as f64 / 1e3 / (figures.ops as f64 * whole);
        let fio = Side { figures, cpu_us };

        self.wait();
        let meter = Meter::start(&self.watched);
        let figures = self.clients(case, time)?;
        let used = meter.stop();
        let per_op = |time: Duration| time.as_secs_f64() * 1e6 / (figures.ops as f64 * whole);
        let cpu_us = used.watched.iter().map(|(_, time)| per_op(*time)).sum();
        let client_cpu_us = per_op(used.own);
        Ok(Pair { fio, cs: Side { figures, cpu_us }, client_cpu_us })
    }

    fn wait(&self) {
        cpu::wait_until_quiet(5.0, Duration::from_secs_f64(self.args.wait_s));
    }

    /// All clients at once; the depth is shared out among them.
    fn clients(&self, case: Case, time: Duration) -> Result<Figures, String> {
        let clients = self.files.len().min(case.depth);
        let case = Case { depth: case.depth / clients, flushed: false, ..case };
        let runs: Vec<Result<Figures, String>> = std::thread::scope(|scope| {
            let started: Vec<_> = self.files[..clients]
                .iter()
                .map(|file| scope.spawn(move || file.run(case, time, &mut || {})))
                .collect();
            started.into_iter().map(|run| run.join().expect("a client panicked")).collect()
        });
        Ok(together(runs.into_iter().collect::<Result<Vec<_>, _>>()?))
    }
}

/// Rates add up; of latencies the mean over the clients is taken, which do the same work.
fn together(runs: Vec<Figures>) -> Figures {
    let count = runs.len() as f64;
    let mut all = Figures::default();
    for run in &runs {
        all.ops += run.ops;
        all.ops_per_s += run.ops_per_s;
        all.bytes_per_s += run.bytes_per_s;
        all.seconds = all.seconds.max(run.seconds);
        all.latency_us.p50 += run.latency_us.p50 / count;
        all.latency_us.p99 += run.latency_us.p99 / count;
    }
    all
}

/// Prints a line; how many of its targets were missed.
fn row(goal: &Goal, pair: &Pair) -> usize {
    let (case, ratio) = (goal.case, pair.ratio(goal.case));
    let (kept, sign) =
        if case.depth == 1 { (ratio <= goal.ratio, "at most") } else { (ratio >= goal.ratio, "at least") };
    let cpu_ratio = pair.cs.cpu_us / pair.fio.cpu_us;
    let cpu_kept = case.block_bytes != 4096 || case.depth == 1 || cpu_ratio <= CPU_RATIO;
    let mark = |kept: bool| if kept { "" } else { " MISSED" };
    println!(
        "| {} | {} | {} | {} | {} | {} | {ratio:.2} | {sign} {}{} | {} | {} | {} | {cpu_ratio:.1}{} |",
        case.group(),
        case.depth,
        number(pair.fio.figures.ops_per_s),
        number(pair.cs.figures.ops_per_s),
        number(pair.fio.figures.latency_us.p50),
        number(pair.cs.figures.latency_us.p50),
        goal.ratio,
        mark(kept),
        number(pair.fio.cpu_us),
        number(pair.cs.cpu_us),
        number(pair.client_cpu_us),
        mark(cpu_kept),
    );
    usize::from(!kept) + usize::from(!cpu_kept)
}
