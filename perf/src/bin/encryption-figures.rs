//! `encryption-figures PLAIN ENCRYPTED`: what `net.encrypt` costs, as ratios of two clusters of `pstorage local up` that
//! differ in nothing else; `perf/encryption.sh` makes both and takes them away.

use clap::Parser;
use perf::cluster::{self, LibraryFile};
use perf::cpu::{self, Meter, Watched};
use perf::engine::{etc, median};
use perf::measure::{Case, Measurement};
use perf::scratch;
use perf::text::{cpu_by_role, number};
use shards::text::parse_size;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Compares two local clusters through the client library, in turns.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up', net.encrypt=off.
    plain: PathBuf,
    /// Directory of 'pstorage local up', net.encrypt=on.
    encrypted: PathBuf,
    #[arg(long, default_value = "256M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    /// Of each measurement.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Turns of each case; the table has their medians.
    #[arg(long, default_value = "5")]
    rounds: NonZeroUsize,
    /// Wait at most this long before each measurement for other programs to be quiet.
    #[arg(long, default_value_t = 10.0)]
    wait_s: f64,
}

/// A cluster and the file in it that is written and read.
struct Side {
    watched: Vec<Watched>,
    file: LibraryFile,
}

/// What one turn of a case cost.
struct Turn {
    ops_per_s: f64,
    p50_us: f64,
    cs_us: f64,
    client_us: f64,
    strangers_percent: f64,
}

impl Side {
    fn of(dir: &Path, size: u64) -> Result<Side, String> {
        let watched = Watched::of_local_cluster(dir)?;
        let file = LibraryFile::create("local", &etc(dir), size)?;
        file.fill(|_| {})?;
        Ok(Side { watched, file })
    }

    fn turn(&self, case: Case, args: &Args) -> Result<Turn, String> {
        cpu::wait_until_quiet(5.0, Duration::from_secs_f64(args.wait_s));
        let meter = Meter::start(&self.watched);
        let figures = self.file.run(case, Duration::from_secs_f64(args.seconds), &mut || {})?;
        let mut used = meter.stop();
        used.watched.push(("client".into(), used.own));
        let measured = Measurement::new(case, figures, &used);
        let roles = cpu_by_role(&measured);
        let of =
            |role: &str| roles.get(role).copied().ok_or(format!("no {role} lived through the measurement"));
        Ok(Turn {
            ops_per_s: measured.figures.ops_per_s,
            p50_us: measured.figures.latency_us.p50,
            cs_us: of("cs")?,
            client_us: of("client")?,
            strangers_percent: measured.strangers_percent,
        })
    }
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    let sides = [Side::of(&args.plain, args.size)?, Side::of(&args.encrypted, args.size)?];
    println!(
        "| operation | depth | per s: plain | encrypted | ratio | p50 us: plain | encrypted | CS us/op: plain | encrypted | ratio | client us/op: plain | encrypted | ratio | others |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for case in cluster::cases() {
        let mut turns = [Vec::new(), Vec::new()];
        for _ in 0..args.rounds.get() {
            for (side, turns) in sides.iter().zip(&mut turns) {
                turns.push(side.turn(case, &args)?);
            }
        }
        row(case, &turns);
    }
    for side in sides {
        side.file.remove()?;
    }
    Ok(())
}

fn row(case: Case, turns: &[Vec<Turn>; 2]) {
    let medians = |of: fn(&Turn) -> f64| {
        [0, 1].map(|side: usize| median(turns[side].iter().map(of).collect(), |value| *value))
    };
    let pair = |[plain, encrypted]: [f64; 2]| format!("{} | {}", number(plain), number(encrypted));
    let compared = |both: [f64; 2]| format!("{} | {:.2}", pair(both), both[1] / both[0]);
    let strangers = turns.iter().flatten().map(|t| t.strangers_percent).fold(0.0, f64::max);
    println!(
        "| {} | {} | {} | {} | {} | {} | {strangers:.0} % |",
        case.group(),
        case.depth,
        compared(medians(|t| t.ops_per_s)),
        pair(medians(|t| t.p50_us)),
        compared(medians(|t| t.cs_us)),
        compared(medians(|t| t.client_us)),
    );
}
