//! `compare --system NAME=DIR...`: the same work on this product, on other file systems and on the raw disk, in turns: fio on a file of
//! each, and many small files; what each costs of CPU, memory and writes to the disk; how long a request waits when a server is killed.
//! Prints a page of tables with the goals of the product, and draws plots; `perf/compare.sh` starts all that is compared.

use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perf::cpu::{Meter, Watched};
use perf::device::Device;
use perf::drive::{self, Driver, Target};
use perf::engine::whole_run;
use perf::fio;
use perf::measure::{Case, Operation, Pattern};
use perf::names::{self, NameRates};
use perf::report::Machine;
use perf::scratch::{self, ScratchFile};
use perf::svg::{self, Bars};
use perf::text::number;
use perf::turns::Turns;
use serde::Serialize;
use shards::text::parse_size;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const OURS: &str = "pstorage";
const RAW: &str = "raw disk";

/// Compares file systems by the same work in turns.
#[derive(Parser)]
struct Args {
    /// A directory to work in, of the product ("pstorage"), of the disk below all ("raw disk"), of any other. Beside it may lie, as a
    /// peer's script writes them, "processes" (their ids), "victim" (the id of a server that may be killed), "version" and "durability"
    /// (what an acknowledged write means there).
    #[arg(long = "system", value_name = "NAME=DIR", required = true)]
    systems: Vec<String>,
    /// Of the file that fio works on.
    #[arg(long, default_value = "512M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    #[command(flatten)]
    turns: Turns,
    /// Small files made, looked at, listed and deleted in each round by one program.
    #[arg(long, default_value_t = 1000)]
    files: usize,
    /// In the end a server of each system is killed with -9 during reads and writes of this length; 0: none is.
    #[arg(long, default_value_t = 15.0)]
    kill_seconds: f64,
    /// Also write every single figure to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw plots (SVG) into this directory, and show them in the page.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Longest that a system may take to bring what was written to the disk, once the load has ended.
const SETTLE: Duration = Duration::from_secs(15);

struct System {
    name: String,
    dir: PathBuf,
    file: ScratchFile,
    processes: Vec<Watched>,
    victim: Option<i32>,
    /// Below all systems.
    disk: Device,
    version: String,
    durability: String,
}

/// What one measurement found.
#[derive(Serialize, Clone)]
struct Found {
    per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<f64>,
    /// Of all processes of the system, without the load and the kernel's own threads.
    cpu_us_per_op: f64,
    /// Of all processes of the system, right after it.
    memory_mib: f64,
    /// Bytes that reached the disk until all was quiet, by whoever, for each byte that the load wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_per_byte: Option<f64>,
    strangers_percent: f64,
}

/// The longest of single 4 KiB requests while a server was killed.
#[derive(Serialize)]
struct Stall {
    system: String,
    operation: Operation,
    longest_ms: Option<f64>,
    error: Option<String>,
}

/// A line of the tables: the rounds of each system, in the order of the systems.
#[derive(Serialize)]
struct Row {
    work: String,
    rounds: Vec<Vec<Found>>,
    #[serde(skip)]
    goals: Goals,
}

/// What the product has to reach; 0 stands for no goal.
#[derive(Default, Clone, Copy)]
struct Goals {
    /// Times the rate of the raw disk, of GlusterFS, and of the best of the other peers.
    raw: f64,
    glusterfs: f64,
    others: f64,
    /// The same of the time a request takes, at most.
    raw_latency: f64,
    peer_latency: f64,
    /// CPU time of the best peer, at most.
    cpu: f64,
}

fn cases() -> Vec<(Case, Goals)> {
    let case = |operation, pattern, block_bytes, depth| Case {
        operation,
        pattern,
        block_bytes,
        depth,
        flushed: operation == Operation::Write,
    };
    let small = |operation, depth| case(operation, Pattern::Random, 4096, depth);
    let large = |operation| case(operation, Pattern::Sequential, 1 << 20, 8);
    let cpu = 0.3;
    let read = Goals { raw: 0.6, glusterfs: 2.0, others: 2.0, cpu, ..Goals::default() };
    vec![
        (small(Operation::Write, 1), Goals { raw_latency: 2.5, peer_latency: 0.5, cpu, ..Goals::default() }),
        (
            small(Operation::Write, 32),
            Goals { raw: 0.25, glusterfs: 6.0, others: 3.0, cpu, ..Goals::default() },
        ),
        (small(Operation::Read, 1), read),
        (small(Operation::Read, 32), read),
        (large(Operation::Write), Goals { raw: 0.28, ..Goals::default() }),
        (large(Operation::Read), Goals { raw: 0.9, ..Goals::default() }),
    ]
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    if !fio::is_installed() {
        return Err("fio is needed to put load on mounts: apt-get install fio".into());
    }
    let systems: Vec<System> =
        args.systems.iter().map(|text| prepare(text, args.size)).collect::<Result<_, _>>()?;
    let mut rows = Vec::new();
    for (case, goals) in cases() {
        let work = format!("{}, depth {}", case.group(), case.depth);
        let rounds = in_turns(&args, &systems, |system| measure_file(&args, system, case).map(|f| vec![f]))?;
        rows.push(Row { work, rounds: by_system(&rounds, 0), goals });
    }
    let rounds = in_turns(&args, &systems, |system| measure_names(&args, system))?;
    let goals = Goals { glusterfs: 10.0, others: 5.0, ..Goals::default() };
    for (i, work) in NameRates::WORK.iter().enumerate() {
        rows.push(Row { work: format!("4 KiB files, {work}"), rounds: by_system(&rounds, i), goals });
    }
    let victims = systems.iter().filter(|_| args.kill_seconds > 0.0);
    let stalls: Vec<Stall> = victims.flat_map(|system| stalls_of(&args, system)).collect();
    let missed = print_page(&args, &systems, &rows, &stalls);
    if let Some(dir) = &args.plots {
        draw(dir, &systems, &rows, &stalls)?;
    }
    if let Some(path) = &args.json {
        write_json(path, &systems, &rows, &stalls)?;
    }
    if missed == 0 { Ok(()) } else { Err(format!("{missed} goals missed")) }
}

fn prepare(text: &str, size: u64) -> Result<System, String> {
    let (name, dir) = text.split_once('=').ok_or(format!("'{text}' is not NAME=DIR"))?;
    let dir = PathBuf::from(dir);
    let beside = |file: &str| std::fs::read_to_string(dir.with_file_name(file)).unwrap_or_default();
    let processes = match name {
        RAW => Vec::new(),
        _ => beside("processes").lines().map(Watched::parse).collect::<Result<_, _>>()?,
    };
    let victim = beside("victim").trim().parse().ok().filter(|_| name != RAW);
    let told = |file: &str| if name == RAW { String::new() } else { beside(file).trim().to_string() };
    Ok(System {
        name: name.into(),
        file: drive::filled(&dir, "large", size)?,
        processes,
        victim,
        disk: Device::below(dir.parent().unwrap_or(&dir)),
        version: told("version"),
        durability: told("durability"),
        dir,
    })
}

/// Measures all systems one after the other, again and again: `[round][system][figure]`.
fn in_turns(
    args: &Args,
    systems: &[System],
    measure: impl Fn(&System) -> Result<Vec<Found>, String>,
) -> Result<Vec<Vec<Vec<Found>>>, String> {
    let round = |_| {
        let one = |system: &System| {
            args.turns.wait_until_quiet();
            measure(system).map_err(|why| format!("{}: {why}", system.name))
        };
        systems.iter().map(one).collect()
    };
    (0..args.turns.rounds).map(round).collect()
}

fn by_system(rounds: &[Vec<Vec<Found>>], figure: usize) -> Vec<Vec<Found>> {
    let count = rounds.first().map_or(0, Vec::len);
    (0..count).map(|system| rounds.iter().map(|round| round[system][figure].clone()).collect()).collect()
}

fn measure_file(args: &Args, system: &System, case: Case) -> Result<Found, String> {
    let time = args.turns.time();
    let writes = case.operation == Operation::Write;
    let written = || writes.then(|| system.disk.settled_bytes(SETTLE)).flatten();
    let before = written();
    let meter = Meter::start(&system.processes);
    let figures = fio::run(system.file.path(), case, time)?;
    let used = meter.stop();
    let bytes = figures.ops as f64 * whole_run(time) * case.block_bytes as f64;
    Ok(Found {
        memory_mib: system.memory_mib(),
        disk_bytes_per_byte: before.zip(written()).map(|(before, after)| (after - before) as f64 / bytes),
        per_s: figures.ops_per_s,
        p50_us: Some(figures.latency_us.p50),
        p99_us: Some(figures.latency_us.p99),
        cpu_us_per_op: used.of_watched().as_secs_f64() * 1e6 / (figures.ops as f64 * whole_run(time)),
        strangers_percent: used.strangers_percent,
    })
}

fn measure_names(args: &Args, system: &System) -> Result<Vec<Found>, String> {
    let meter = Meter::start(&system.processes);
    let rates = names::measure(&system.dir, args.files)?;
    let used = meter.stop();
    let memory_mib = system.memory_mib();
    let all = rates.per_s.iter().map(|per_s| Found {
        per_s: *per_s,
        p50_us: None,
        p99_us: None,
        // Of one file through all four.
        cpu_us_per_op: used.of_watched().as_secs_f64() * 1e6 / args.files as f64,
        memory_mib,
        disk_bytes_per_byte: None,
        strangers_percent: used.strangers_percent,
    });
    Ok(all.collect())
}

impl System {
    fn memory_mib(&self) -> f64 {
        self.processes.iter().filter_map(Watched::memory_bytes).sum::<u64>() as f64 / f64::from(1 << 20)
    }
}

/// Kills a server of the system under two programs that read and write one block after the other.
fn stalls_of(args: &Args, system: &System) -> Vec<Stall> {
    let Some(victim) = system.victim else { return Vec::new() };
    args.turns.wait_until_quiet();
    let time = Duration::from_secs_f64(args.kill_seconds);
    let longest_ms = |operation, waiting: &mut dyn FnMut()| {
        let target =
            Target { path: system.file.path().into(), bytes: args.size, writable: true, journal: None };
        let (pattern, flushed) = (Pattern::Random, operation == Operation::Write);
        let case = Case { operation, pattern, block_bytes: 4096, depth: 1, flushed };
        let figures = Driver::start(target)?.run(case, time, waiting)?;
        Ok(figures.latency_us.max / 1e3)
    };
    let (began, mut killed) = (Instant::now(), false);
    let mut kill_once = || {
        if !killed && began.elapsed() > time / 3 {
            killed = true;
            // It was there when the systems were started; had it ended since, the figure shows no stall.
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        }
    };
    let found: [(Operation, Result<f64, String>); 2] = std::thread::scope(|scope| {
        let reader = scope.spawn(|| longest_ms(Operation::Read, &mut || {}));
        let written = longest_ms(Operation::Write, &mut kill_once);
        [(Operation::Write, written), (Operation::Read, reader.join().expect("no panic"))]
    });
    let stall = |(operation, found): (Operation, Result<f64, String>)| Stall {
        system: system.name.clone(),
        operation,
        longest_ms: found.as_ref().ok().copied(),
        error: found.err(),
    };
    found.map(stall).into()
}

fn median(rounds: &[Found], key: impl Fn(&Found) -> f64) -> f64 {
    perf::engine::median(rounds.iter().map(key).collect(), |value| *value)
}

/// Prints the page; how many goals are missed.
fn print_page(args: &Args, systems: &[System], rows: &[Row], stalls: &[Stall]) -> usize {
    let machine = Machine::this();
    println!(
        "Linux {}, {} cores; one file of {} MiB each, direct I/O, {} rounds of {} s in turns, the median counts; three replicas on the one disk.\n",
        machine.kernel,
        machine.cores,
        args.size >> 20,
        args.turns.rounds,
        args.turns.seconds
    );
    for system in systems.iter().filter(|system| system.name != RAW) {
        println!("- {}: {}; {}", system.name, system.version, system.durability);
    }
    let names: Vec<&str> = systems.iter().map(|system| &*system.name).collect();
    println!("\n| per s (p50 / p99 us) | {} | of raw | of the best peer | goals |", names.join(" | "));
    println!("|---|{}---|---|---|", "---|".repeat(names.len()));
    let mut missed = 0;
    for row in rows {
        let verdicts = verdicts(systems, row);
        missed += verdicts.iter().filter(|verdict| !verdict.reached).count();
        let cells: Vec<String> = row.rounds.iter().map(|rounds| rate_cell(rounds)).collect();
        let told: Vec<String> = verdicts.iter().map(Verdict::to_string).collect();
        println!(
            "| {} | {} | {} | {} | {} |",
            row.work,
            cells.join(" | "),
            ratio_cell(rate_of(systems, row, OURS), rate_of(systems, row, RAW)),
            ratio_cell(rate_of(systems, row, OURS), best_peer_rate(systems, row, |_| true)),
            told.join("; ")
        );
    }
    let table = |head: &str, rows: &[(&str, Vec<String>)]| {
        println!("\n| {head} | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
        rows.iter().for_each(|(work, cells)| println!("| {work} | {} |", cells.join(" | ")));
    };
    let by_work = |key: fn(&Found) -> Option<f64>| -> Vec<(&str, Vec<String>)> {
        let told = rows.iter().filter(|row| row.rounds.iter().flatten().any(|f| key(f).is_some()));
        let cell = |rounds: &Vec<Found>| number(median(rounds, |f| key(f).unwrap_or(f64::NAN)));
        told.map(|row| (&*row.work, row.rounds.iter().map(cell).collect())).collect()
    };
    // Of files of 4 KiB it is the same figure in each line: of a file through all that is done with it.
    table("CPU us of all processes of the system, per operation", &by_work(|f| Some(f.cpu_us_per_op)));
    table("Memory of all processes of the system after it, MiB", &by_work(|f| Some(f.memory_mib)));
    // The disk counts for all: little is written at depth 1, and the figure is the first to show that others were busy.
    table(
        "Bytes written to the disk (by any program, until it was quiet) for each byte written",
        &by_work(|f| f.disk_bytes_per_byte),
    );
    if !stalls.is_empty() {
        let longest = [Operation::Write, Operation::Read].map(|operation| {
            let cell = |name: &&str| {
                let stall = stalls.iter().find(|s| s.system == **name && s.operation == operation)?;
                Some(stall.longest_ms.map_or_else(|| stall.error.clone().unwrap_or_default(), number))
            };
            let work = if operation == Operation::Write { "write" } else { "read" };
            (work, names.iter().map(|name| cell(name).unwrap_or("-".into())).collect())
        });
        table("Longest 4 KiB request when a server of data was killed with -9, ms", &longest);
    }
    if let Some(dir) = &args.plots {
        println!();
        plots(systems, rows, stalls)
            .iter()
            .for_each(|(file, heading, _)| println!("![{heading}]({}/{file}.svg)", dir.display()));
    }
    let busiest = rows.iter().flat_map(|row| row.rounds.iter().flatten()).map(|f| f.strangers_percent);
    println!(
        "\nAt most {:.0} % of the machine was taken by other programs during a measurement.",
        busiest.fold(0.0, f64::max)
    );
    missed
}

fn rate_cell(rounds: &[Found]) -> String {
    let rate = number(median(rounds, |f| f.per_s));
    let latency = |key: fn(&Found) -> Option<f64>| number(median(rounds, |f| key(f).unwrap_or(0.0)));
    match rounds.first().and_then(|f| f.p50_us) {
        Some(_) => format!("{rate} ({} / {})", latency(|f| f.p50_us), latency(|f| f.p99_us)),
        None => rate,
    }
}

fn ratio_cell(ours: Option<f64>, theirs: Option<f64>) -> String {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}", ours / theirs),
        _ => "-".into(),
    }
}

fn value_of(systems: &[System], row: &Row, name: &str, key: impl Fn(&Found) -> f64) -> Option<f64> {
    let at = systems.iter().position(|system| system.name == name)?;
    Some(median(&row.rounds[at], key))
}

fn rate_of(systems: &[System], row: &Row, name: &str) -> Option<f64> {
    value_of(systems, row, name, |f| f.per_s)
}

fn peers<'a>(systems: &'a [System], which: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> {
    let names = systems.iter().map(|system| &*system.name);
    names.filter(move |name| *name != OURS && *name != RAW && which(name))
}

fn best_peer_rate(systems: &[System], row: &Row, which: impl Fn(&str) -> bool) -> Option<f64> {
    peers(systems, which).filter_map(|name| rate_of(systems, row, name)).reduce(f64::max)
}

fn least_of_peers(systems: &[System], row: &Row, key: impl Fn(&Found) -> f64 + Copy) -> Option<f64> {
    peers(systems, |_| true).filter_map(|name| value_of(systems, row, name, key)).reduce(f64::min)
}

/// What became of a goal.
struct Verdict {
    of: String,
    is: f64,
    wanted: f64,
    reached: bool,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let missed = if self.reached { "" } else { " MISSED" };
        write!(f, "{} {:.2} ({}){missed}", self.of, self.is, self.wanted)
    }
}

fn verdicts(systems: &[System], row: &Row) -> Vec<Verdict> {
    let goals = row.goals;
    let mut all = Vec::new();
    let mut judge = |of: &str, wanted: f64, ours: Option<f64>, theirs: Option<f64>, at_most: bool| {
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return };
        if wanted > 0.0 && theirs > 0.0 {
            let is = ours / theirs;
            let reached = if at_most { is <= wanted } else { is >= wanted };
            all.push(Verdict { of: of.into(), is, wanted, reached });
        }
    };
    let rate = rate_of(systems, row, OURS);
    judge("raw", goals.raw, rate, rate_of(systems, row, RAW), false);
    judge("glusterfs", goals.glusterfs, rate, rate_of(systems, row, "glusterfs"), false);
    judge("others", goals.others, rate, best_peer_rate(systems, row, |name| name != "glusterfs"), false);
    let p50 = |f: &Found| f.p50_us.unwrap_or(0.0);
    let latency = value_of(systems, row, OURS, p50);
    judge("raw latency", goals.raw_latency, latency, value_of(systems, row, RAW, p50), true);
    judge("peers' latency", goals.peer_latency, latency, least_of_peers(systems, row, p50), true);
    let cpu = |f: &Found| f.cpu_us_per_op;
    judge(
        "peers' CPU",
        goals.cpu,
        value_of(systems, row, OURS, cpu),
        least_of_peers(systems, row, cpu),
        true,
    );
    all
}

/// Name of the file, heading, and what is in it.
fn plots(systems: &[System], rows: &[Row], stalls: &[Stall]) -> Vec<(&'static str, &'static str, Vec<Bars>)> {
    let by_work = |key: fn(&Found) -> Option<f64>| -> Vec<Bars> {
        let told = rows.iter().filter(|row| row.rounds.iter().flatten().any(|f| key(f).is_some()));
        let bars = |row: &Row| {
            let value = |rounds: &Vec<Found>| median(rounds, |f| key(f).unwrap_or_default());
            let named = systems.iter().zip(&row.rounds);
            let values = named.map(|(system, rounds)| (system.name.clone(), value(rounds))).collect();
            Bars { title: row.work.clone(), values }
        };
        told.map(bars).collect()
    };
    let of_stalls = |(operation, title): (Operation, &str)| {
        let longest_ms = |system: &System| {
            let stall = stalls.iter().find(|s| s.system == system.name && s.operation == operation);
            stall.and_then(|s| s.longest_ms).unwrap_or_default()
        };
        let values = systems.iter().map(|system| (system.name.clone(), longest_ms(system))).collect();
        Bars { title: title.into(), values }
    };
    let stalls = [(Operation::Write, "write"), (Operation::Read, "read")].map(of_stalls).into();
    vec![
        ("rates", "Per second", by_work(|f| Some(f.per_s))),
        ("latency", "Median time of a request, us", by_work(|f| f.p50_us)),
        ("cpu", "CPU us of all processes, per operation", by_work(|f| Some(f.cpu_us_per_op))),
        ("memory", "Memory of all processes, MiB", by_work(|f| Some(f.memory_mib))),
        (
            "disk-writes",
            "Bytes written to the disk for each byte written",
            by_work(|f| f.disk_bytes_per_byte),
        ),
        ("stall", "Longest 4 KiB request when a server was killed, ms", stalls),
    ]
}

fn draw(dir: &Path, systems: &[System], rows: &[Row], stalls: &[Stall]) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(shards::text::at(&dir))?;
    plots(systems, rows, stalls).into_iter().try_for_each(|(file, heading, bars)| {
        let path = dir.join(file).with_extension("svg");
        std::fs::write(&path, svg::file_of_bars(heading, &bars)).map_err(shards::text::at(&path))
    })
}

fn write_json(path: &Path, systems: &[System], rows: &[Row], stalls: &[Stall]) -> Result<(), String> {
    let told: Vec<serde_json::Value> = systems
        .iter()
        .map(|s| serde_json::json!({ "name": s.name, "version": s.version, "durability": s.durability }))
        .collect();
    let page = serde_json::json!({ "systems": told, "rows": rows, "stalls": stalls });
    let text = serde_json::to_string_pretty(&page).map_err(|e| e.to_string())?;
    std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
}
