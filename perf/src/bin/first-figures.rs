//! `first-figures DIR`: one table for a cluster made by `pstorage local up DIR`: the file system below it, the mount
//! and the client library, measured in turns; `perf/first-figures.sh` makes the cluster and takes it away.

use clap::Parser;
use perf::cluster::{self, LibraryFile};
use perf::cpu::{self, Meter, Watched};
use perf::drive::{Driver, Target};
use perf::fio;
use perf::measure::{Case, Figures, Measurement, Operation};
use perf::scratch::{self, ScratchFile};
use perf::text::{cpu_by_role, number};
use shards::text::parse_size;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Compares the raw file system, the mount and the client library of a local cluster.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up'.
    dir: PathBuf,
    /// Directory for the raw file; on the same disk as the cluster.
    #[arg(long)]
    raw: PathBuf,
    #[arg(long, default_value = "256M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Wait at most this long before each measurement for other programs to be quiet.
    #[arg(long, default_value_t = 10.0)]
    wait_s: f64,
}

/// A prewritten file for fio or our own driver.
struct Prepared {
    file: ScratchFile,
    driver: Driver,
}

impl Prepared {
    fn in_directory(dir: &Path, size: u64) -> Result<Prepared, String> {
        let file = ScratchFile::create(dir, "data")?;
        let target = Target { path: file.path().into(), bytes: size, writable: true, journal: None };
        let mut driver = Driver::start(target)?;
        driver.fill(|_| {})?;
        Ok(Prepared { file, driver })
    }

    fn run(&mut self, case: Case, time: Duration, with_fio: bool) -> Result<Figures, String> {
        if with_fio { fio::run(self.file.path(), case, time) } else { self.driver.run(case, time, || {}) }
    }
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    let watched = Watched::of_local_cluster(&args.dir)?;
    let with_fio = fio::is_installed();
    let tool = if with_fio { "fio" } else { "pcs-bench" };
    let mut raw = Prepared::in_directory(&args.raw, args.size)?;
    let mut mount = Prepared::in_directory(&args.dir.join("mnt"), args.size)?;
    let library = LibraryFile::create("local", &args.dir.join("etc"), args.size)?;
    library.fill(|_| {})?;
    println!(
        "| operation | depth | through | per s | MB/s | p50 us | p99 us | CPU us/op: CS | MDS | client | others |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let time = Duration::from_secs_f64(args.seconds);
    for case in cluster::cases() {
        // What the cluster acknowledges is on stable storage: the raw file's writes are flushed for comparison.
        let raw_case = Case { flushed: case.operation == Operation::Write, ..case };
        row(&args, &format!("raw file, {tool}"), &[], raw_case, || raw.run(raw_case, time, with_fio))?;
        row(&args, &format!("FUSE, {tool}"), &watched, case, || mount.run(case, time, with_fio))?;
        row(&args, "library", &watched, case, || library.run(case, time, &mut || {}))?;
    }
    library.remove()
}

fn row(
    args: &Args,
    through: &str,
    watched: &[Watched],
    case: Case,
    run: impl FnOnce() -> Result<Figures, String>,
) -> Result<(), String> {
    cpu::wait_until_quiet(5.0, Duration::from_secs_f64(args.wait_s));
    let meter = Meter::start(watched);
    let figures = run()?;
    let mut used = meter.stop();
    // Through the library this process is the client.
    if through == "library" {
        used.watched.retain(|(name, _)| name != "mount");
        used.watched.push(("mount".into(), used.own));
    }
    let m = Measurement::new(case, figures, &used);
    let roles = cpu_by_role(&m);
    let of = |role: &str| roles.get(role).map_or("-".into(), |us| number(*us));
    let f = &m.figures;
    println!(
        "| {} | {} | {through} | {} | {} | {} | {} | {} | {} | {} | {:.0} % |",
        case.group(),
        case.depth,
        number(f.ops_per_s),
        number(f.bytes_per_s / 1e6),
        number(f.latency_us.p50),
        number(f.latency_us.p99),
        of("cs"),
        of("mds"),
        of("mount"),
        m.strangers_percent,
    );
    Ok(())
}
