//! `fuse-figures DIR`: the mount of a cluster of one chunk server against a mount with nothing behind it and against the raw
//! disk: fio on a file of each, in turns, and the ratios that the mount has to reach. `perf/fuse.sh` makes all three.

use clap::Parser;
use perf::cpu::{self, Meter, Used, Watched};
use perf::drive;
use perf::engine::{median, whole_run};
use perf::fio;
use perf::measure::{Case, Figures, Operation, Pattern};
use perf::scratch::{self, ScratchFile};
use perf::text::number;
use perf::turns::Turns;
use shards::text::parse_size;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Compares the mount with FUSE alone and with the disk.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up --mds 1 --cs 1 --replicas 1', whose chunk server has a read cache.
    dir: PathBuf,
    /// Directory for the raw file; on the same disk as the cluster.
    #[arg(long)]
    raw: PathBuf,
    /// Where null-fuse is mounted, and its process.
    #[arg(long)]
    null: PathBuf,
    #[arg(long)]
    null_pid: String,
    /// Of the file that is read at random: it has to fit into the chunk server's read cache.
    #[arg(long, default_value = "64M", value_parser = |s: &str| parse_size(s, 1))]
    hot_size: u64,
    /// Of the file that is read and written in sequence.
    #[arg(long, default_value = "512M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[command(flatten)]
    turns: Turns,
    /// Measure only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// A case and the least share that the mount has to reach.
struct Goal {
    case: Case,
    share: f64,
    /// Of what FUSE or the raw disk reaches, whichever is less; else of FUSE alone.
    with_disk: bool,
}

fn goals() -> [Goal; 3] {
    let sequential = |operation| Goal {
        case: Case {
            operation,
            pattern: Pattern::Sequential,
            block_bytes: 1 << 20,
            depth: 8,
            flushed: false,
        },
        share: 0.7,
        with_disk: true,
    };
    let random = Case {
        operation: Operation::Read,
        pattern: Pattern::Random,
        block_bytes: 4096,
        depth: 32,
        flushed: false,
    };
    [
        Goal { case: random, share: 0.6, with_disk: false },
        sequential(Operation::Read),
        sequential(Operation::Write),
    ]
}

/// Measured one right after the other.
struct Round {
    null: Figures,
    raw: Option<Figures>,
    mount: Figures,
    null_used: Used,
    mount_used: Used,
}

impl Round {
    fn ratio(&self) -> f64 {
        let raw = self.raw.as_ref().map_or(f64::INFINITY, |raw| raw.ops_per_s);
        self.mount.ops_per_s / self.null.ops_per_s.min(raw)
    }
}

struct Bench {
    args: Args,
    raw: ScratchFile,
    hot: ScratchFile,
    large: ScratchFile,
    null: Vec<Watched>,
    cluster: Vec<Watched>,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    if !fio::is_installed() {
        return Err("fio is needed to put load on mounts: apt-get install fio".into());
    }
    let bench = Bench::prepare(args)?;
    println!(
        "| operation | depth | null FUSE per s | raw disk per s | mount per s | p50 us: null | mount | ratio | goal | \
         CPU us/op: null FUSE | mount | CS | others |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut missed = 0;
    for goal in goals().iter().filter(|goal| goal.case.to_string().contains(&bench.args.only)) {
        missed += usize::from(!bench.row(goal)?);
    }
    if missed == 0 { Ok(()) } else { Err(format!("{missed} goals missed")) }
}

impl Bench {
    fn prepare(args: Args) -> Result<Bench, String> {
        let mount = args.dir.join("mnt");
        let bench = Bench {
            raw: drive::filled(&args.raw, "raw", args.size)?,
            hot: drive::filled(&mount, "hot", args.hot_size)?,
            large: drive::filled(&mount, "large", args.size)?,
            null: vec![Watched::parse(&format!("null={}", args.null_pid))?],
            cluster: Watched::of_local_cluster(&args.dir)?,
            args,
        };
        // The read cache takes in what is read again.
        let hot = &goals()[0];
        if hot.case.to_string().contains(&bench.args.only) {
            (0..3)
                .try_for_each(|_| fio::run(bench.hot.path(), hot.case, bench.args.turns.time()).map(drop))?;
        }
        Ok(bench)
    }

    fn run(&self, file: &Path, case: Case, watched: &[Watched]) -> Result<(Figures, Used), String> {
        self.args.turns.wait_until_quiet();
        let meter = Meter::start(watched);
        let figures = fio::run(file, case, self.args.turns.time())?;
        Ok((figures, meter.stop()))
    }

    fn round(&self, goal: &Goal) -> Result<Round, String> {
        let case = goal.case;
        let (null, null_used) = self.run(&self.args.null.join("data"), case, &self.null)?;
        let raw = if goal.with_disk {
            // What the cluster acknowledges is on stable storage.
            let case = Case { flushed: case.operation == Operation::Write, ..case };
            Some(self.run(self.raw.path(), case, &[])?.0)
        } else {
            None
        };
        let file = if case.pattern == Pattern::Random { &self.hot } else { &self.large };
        let (mount, mount_used) = self.run(file.path(), case, &self.cluster)?;
        Ok(Round { null, raw, mount, null_used, mount_used })
    }

    /// Prints a line; whether the goal is reached.
    fn row(&self, goal: &Goal) -> Result<bool, String> {
        let rounds: Result<Vec<Round>, String> =
            (0..self.args.turns.rounds).map(|_| self.round(goal)).collect();
        let round = median(rounds?, Round::ratio);
        let (case, ratio) = (goal.case, round.ratio());
        let reached = ratio >= goal.share;
        let cpu = |used: &Used, figures: &Figures, role: &str| {
            let of_role = used.watched.iter().filter(|(name, _)| cpu::role(name) == role);
            let time: Duration = of_role.map(|(_, time)| *time).sum();
            number(time.as_secs_f64() * 1e6 / (figures.ops as f64 * whole_run(self.args.turns.time())))
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {ratio:.2} | {}{} | {} | {} | {} | {:.0} % |",
            case.group(),
            case.depth,
            number(round.null.ops_per_s),
            round.raw.as_ref().map_or("-".into(), |raw| number(raw.ops_per_s)),
            number(round.mount.ops_per_s),
            number(round.null.latency_us.p50),
            number(round.mount.latency_us.p50),
            goal.share,
            if reached { "" } else { " MISSED" },
            cpu(&round.null_used, &round.null, "null"),
            cpu(&round.mount_used, &round.mount, "mount"),
            cpu(&round.mount_used, &round.mount, "cs"),
            round.null_used.strangers_percent.max(round.mount_used.strangers_percent),
        );
        Ok(reached)
    }
}
