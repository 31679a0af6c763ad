//! `repair-figures DIR`: how fast a lost chunk server is repaired, against what the disk gives, and what that costs the
//! clients meanwhile. `perf/repair.sh` makes the cluster. Two of its chunk servers are killed for good, one after the
//! other: the first with nothing else going on, the second under load.

use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perf::cluster::LibraryFile;
use perf::cpu::{self, Watched};
use perf::engine::etc;
use perf::measure::{Case, Figures, Operation, Pattern};
use perf::text::number;
use perf::{copy, scratch};
use serde_json::Value;
use shards::text::parse_size;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Measures the repair of lost chunk servers in a local cluster.
#[derive(Parser)]
struct Args {
    /// Directory of 'pstorage local up --cs 5'.
    dir: PathBuf,
    /// Directory for the raw file; on the same disk as the cluster.
    #[arg(long)]
    raw: PathBuf,
    /// Data in the cluster, without its replicas.
    #[arg(long, default_value = "4G", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    /// Of each measurement of the load.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Load: operations at a time.
    #[arg(long, default_value_t = 4)]
    depth: usize,
}

/// Chunk servers that are left, each of which copies.
const COPIES: usize = 4;
/// Least share of what the machine gives for copies.
const SHARE: f64 = 0.7;
/// Most that the load's p99 may grow.
const SLOWDOWN: f64 = 2.0;
/// Away for so long a server is lost.
const OFFLINE_TIMEOUT_MS: u32 = 2000;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Until the last heartbeats have told what was copied.
const HEARTBEATS: Duration = Duration::from_secs(3);

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    let cluster = Local { dir: args.dir.clone() };
    let time = Duration::from_secs_f64(args.seconds);
    cluster.pstorage(&["set-config", &format!("mds.wd.offline_tout={OFFLINE_TIMEOUT_MS}")])?;
    let data = LibraryFile::create("local", &etc(&args.dir), args.size)?;
    data.fill(|_| {})?;
    let load = LibraryFile::create("local", &etc(&args.dir), 256 << 20)?;
    load.fill(|_| {})?;
    cluster.wait_for("healthy", |stat| stat.healthy)?;
    cpu::wait_until_quiet(5.0, Duration::from_secs(20));
    let ceiling = copy::rate(&args.raw, COPIES, time)?;
    println!(
        "ceiling: {} MB/s read, sent over loopback and written, {COPIES} copies at a time, synced every 8 MiB",
        number(ceiling / 1e6)
    );

    let repair = cluster.repair("cs1", |_| Ok(()))?;
    let share = repair.bytes_per_s / ceiling;
    println!(
        "idle: {} GB copied in {:.1} s: {} MB/s, {share:.2} of the ceiling (goal {SHARE})",
        number(repair.bytes / 1e9),
        repair.seconds,
        number(repair.bytes_per_s / 1e6)
    );

    let cases = [Operation::Write, Operation::Read].map(|operation| Case {
        operation,
        pattern: Pattern::Random,
        block_bytes: 4096,
        depth: args.depth,
        flushed: false,
    });
    let run =
        || -> Result<Vec<Figures>, String> { cases.iter().map(|c| load.run(*c, time, &mut || {})).collect() };
    let before = run()?;
    let mut during = Vec::new();
    let repair = cluster.repair("cs2", |goes_on| {
        while goes_on()? {
            for (at, case) in cases.iter().enumerate() {
                let figures = load.run(*case, time / 3, &mut || {})?;
                // Counts only if the repair lasted to its end.
                if goes_on()? {
                    during.push((at, figures));
                }
            }
        }
        Ok(())
    })?;
    println!(
        "under load: {} GB copied in {:.1} s: {} MB/s",
        number(repair.bytes / 1e9),
        repair.seconds,
        number(repair.bytes_per_s / 1e6)
    );
    let mut worst = 0.0f64;
    for (at, (case, before)) in cases.iter().zip(&before).enumerate() {
        let mut all: Vec<&Figures> = during.iter().filter(|(of, _)| *of == at).map(|(_, f)| f).collect();
        all.sort_by(|a, b| a.latency_us.p99.total_cmp(&b.latency_us.p99));
        let middle = *all
            .get(all.len() / 2)
            .ok_or("the repair ended before the load was measured: give more --size")?;
        let slowdown = middle.latency_us.p99 / before.latency_us.p99;
        worst = worst.max(slowdown);
        println!(
            "{}, depth {}: p99 {} us before, {} us during repair (median of {}): {slowdown:.2} x (goal {SLOWDOWN}); {} and {} per s",
            case.group(),
            case.depth,
            number(before.latency_us.p99),
            number(middle.latency_us.p99),
            all.len(),
            number(before.ops_per_s),
            number(middle.ops_per_s),
        );
    }
    data.remove()?;
    load.remove()?;
    match (share >= SHARE, worst <= SLOWDOWN) {
        (true, true) => Ok(()),
        (rate, _) => {
            Err(format!("missed: {}", if rate { "the load's p99" } else { "the rate of the idle repair" }))
        }
    }
}

/// A cluster of 'pstorage local'.
struct Local {
    dir: PathBuf,
}

struct Stat {
    healthy: bool,
    replicating: bool,
    /// By all chunk servers that are there, since they started.
    copied_bytes: u64,
}

struct Repair {
    bytes: f64,
    seconds: f64,
    bytes_per_s: f64,
}

impl Local {
    fn pstorage(&self, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("pstorage");
        let run = Command::new(&program)
            .args(["-c", "local", "--etc"])
            .arg(etc(&self.dir))
            .args(arguments)
            .output()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        if !run.status.success() {
            return Err(format!("pstorage {arguments:?}: {}", String::from_utf8_lossy(&run.stderr).trim()));
        }
        Ok(run.stdout)
    }

    fn stat(&self) -> Result<Stat, String> {
        let json: Value =
            serde_json::from_slice(&self.pstorage(&["stat", "--json"])?).map_err(|e| e.to_string())?;
        let number = |value: &Value, name: &str| value[name].as_u64().ok_or(format!("stat has no {name}"));
        let mut copied_bytes = 0;
        let servers = json["cs"].as_array().ok_or("stat has no cs")?;
        for cs in servers.iter().filter(|cs| cs["status"] == "active") {
            copied_bytes += number(cs, "full_copy_bytes")? + number(cs, "catch_up_bytes")?;
        }
        let chunks = &json["chunks"];
        Ok(Stat {
            healthy: number(chunks, "healthy")? == number(chunks, "total")?,
            replicating: number(chunks, "replicating")? > 0,
            copied_bytes,
        })
    }

    fn wait_for(&self, what: &str, is: impl Fn(&Stat) -> bool) -> Result<Stat, String> {
        let deadline = Instant::now() + Duration::from_secs(300);
        while Instant::now() < deadline {
            let stat = self.stat()?;
            if is(&stat) {
                return Ok(stat);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(format!("the cluster is not {what} after 300 s"))
    }

    /// Kills a server for good and waits until every chunk has all its replicas again; `meanwhile` runs once copies are
    /// being made, and can ask whether they still are.
    fn repair(
        &self,
        server: &str,
        meanwhile: impl FnOnce(&mut dyn FnMut() -> Result<bool, String>) -> Result<(), String>,
    ) -> Result<Repair, String> {
        let lost = Watched::of_local_cluster(&self.dir)?.into_iter().find(|w| w.name == server);
        let lost = lost.ok_or(format!("{server} is not running"))?;
        kill(Pid::from_raw(lost.pid), Signal::SIGKILL).map_err(|e| format!("{server}: {e}"))?;
        let first = self.wait_for("being repaired", |stat| stat.replicating)?;
        let began = Instant::now();
        meanwhile(&mut || Ok(!self.stat()?.healthy))?;
        self.wait_for("healthy", |stat| stat.healthy)?;
        let seconds = began.elapsed().as_secs_f64();
        std::thread::sleep(HEARTBEATS);
        let bytes = (self.stat()?.copied_bytes - first.copied_bytes) as f64;
        Ok(Repair { bytes, seconds, bytes_per_s: bytes / seconds })
    }
}
