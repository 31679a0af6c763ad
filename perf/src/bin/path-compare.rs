//! `path-compare DIR`: decision 001. Runs `path-ring` and `path-glommio` (beside this program) in turns with the same
//! client and prints one Markdown table; `perf/decision-001.sh` builds all three and adds the raw disk.

use clap::Parser;
use hdrhistogram::Histogram;
use perf::cpu::{self, Cpu, MachineTime};
use perf::fio;
use perf::measure::{Case, Operation, Pattern};
use perf::path::{self, Head};
use shards::{BLOCK_BYTES, HEAD_BYTES};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Compares the request path of a chunk server on our runtime and on glommio.
#[derive(Parser)]
struct Args {
    /// Directory for the file that is written to (prewritten, removed at the end).
    dir: PathBuf,
    #[arg(long, default_value_t = 1024)]
    file_mb: u64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Leave out measurements during which other programs used more than this percent of the machine.
    #[arg(long, default_value_t = 5.0)]
    quiet_percent: f64,
    /// Wait at most this long before each measurement for the machine to be quiet.
    #[arg(long, default_value_t = 20.0)]
    wait_s: f64,
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    depths: Vec<usize>,
    /// What to compare: path-ring, path-glommio, and fio (io_uring, the same writes without a network).
    #[arg(long, value_delimiter = ',', default_value = "path-ring,path-glommio,fio")]
    servers: Vec<String>,
}

type Failure = Box<dyn std::error::Error>;

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Sample {
    ops_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    /// Percent of the machine that others took meanwhile.
    strangers: f64,
}

struct Server {
    child: Child,
    stream: TcpStream,
    next_id: u64,
}

impl Server {
    fn start(name: &str, dir: &std::path::Path) -> Result<Server, Failure> {
        let program = std::env::current_exe()?.with_file_name(name);
        let mut child =
            Command::new(&program).arg(dir).stdout(Stdio::piped()).spawn().map_err(|e| {
                format!("{}: {e}; build it first (perf/decision-001.sh does)", program.display())
            })?;
        let mut addr = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut addr)?;
        let stream = TcpStream::connect(addr.trim()).map_err(|e| format!("{name} at '{addr}': {e}"))?;
        stream.set_nodelay(true)?;
        Ok(Server { child, stream, next_id: 0 })
    }

    fn cpu(&mut self) -> Result<Cpu, Failure> {
        self.stream.write_all(&path::head(path::REPORT, 0, 0, Cpu::default()))?;
        let mut head: Head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head)?;
        Ok(path::cpu(&head))
    }

    /// Keeps `depth` requests under way for `time`; all are answered when it returns.
    fn load(&mut self, depth: usize, time: Duration) -> Result<(Histogram<u64>, Duration), Failure> {
        let mut latency_ns = Histogram::new(3)?;
        let payload = [0x5a; BLOCK_BYTES];
        let mut sent_at = vec![Instant::now(); depth];
        let (mut out, mut input) = (Vec::new(), vec![0; depth * HEAD_BYTES]);
        let mut free: Vec<usize> = (0..depth).collect();
        let (began, mut have) = (Instant::now(), 0);
        loop {
            let more = began.elapsed() < time;
            out.clear();
            while more && let Some(slot) = free.pop() {
                // The slot rides in the low byte of the number; it tells when the request left.
                self.next_id += 256;
                out.extend_from_slice(&path::head(
                    path::WRITE,
                    BLOCK_BYTES,
                    self.next_id | slot as u64,
                    Cpu::default(),
                ));
                out.extend_from_slice(&payload);
                sent_at[slot] = Instant::now();
            }
            self.stream.write_all(&out)?;
            if free.len() == depth {
                return Ok((latency_ns, began.elapsed()));
            }
            have += match self.stream.read(&mut input[have..])? {
                0 => return Err("the server closed the connection".into()),
                bytes => bytes,
            };
            let now = Instant::now();
            for answer in input[..have].chunks_exact(HEAD_BYTES) {
                let slot = (path::id(answer.first_chunk().expect("a whole header")) & 0xff) as usize;
                latency_ns.record((now - sent_at[slot]).as_nanos() as u64)?;
                free.push(slot);
            }
            let whole = have / HEAD_BYTES * HEAD_BYTES;
            input.copy_within(whole..have, 0);
            have -= whole;
        }
    }

    fn measure(&mut self, depth: usize, time: Duration) -> Result<Sample, Failure> {
        self.load(depth, time / 5)?; // Warm up.
        let machine = MachineTime::now().ok_or("/proc/stat can't be read")?;
        let (before, own) = (self.cpu()?, Cpu::of_this_process());
        let (latency_ns, took) = self.load(depth, time)?;
        let (after, own_after) = (self.cpu()?, Cpu::of_this_process());
        let own_user = after.user_ns - before.user_ns + own_after.user_ns - own.user_ns;
        let now = MachineTime::now().ok_or("/proc/stat can't be read")?;
        let ops = latency_ns.len() as f64;
        Ok(Sample {
            ops_per_s: ops / took.as_secs_f64(),
            p50_us: latency_ns.value_at_quantile(0.5) as f64 / 1e3,
            p99_us: latency_ns.value_at_quantile(0.99) as f64 / 1e3,
            cpu_us: (after.total_ns - before.total_ns) as f64 / 1e3 / ops,
            strangers: now.strangers_percent(&machine, Duration::from_nanos(own_user)),
        })
    }

    fn stop(mut self) -> Result<(), Failure> {
        drop(self.stream);
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the server ended badly: {status}").into()) }
    }
}

/// What is measured.
enum Target {
    Server(Server),
    /// The file.
    Fio(PathBuf),
}

impl Target {
    fn start(name: &str, dir: &std::path::Path) -> Result<Target, Failure> {
        Ok(if name == "fio" {
            Target::Fio(dir.join(path::FILE))
        } else {
            Target::Server(Server::start(name, dir)?)
        })
    }

    fn measure(&mut self, depth: usize, time: Duration) -> Result<Sample, Failure> {
        match self {
            Target::Server(server) => server.measure(depth, time),
            Target::Fio(file) => raw(file, depth, time),
        }
    }

    fn stop(self) -> Result<(), Failure> {
        match self {
            Target::Server(server) => server.stop(),
            Target::Fio(_) => Ok(()),
        }
    }
}

fn raw(file: &std::path::Path, depth: usize, time: Duration) -> Result<Sample, Failure> {
    let case = Case {
        operation: Operation::Write,
        pattern: Pattern::Random,
        block_bytes: BLOCK_BYTES,
        depth,
        flushed: true,
    };
    let (before, machine) = (Cpu::of_children(), MachineTime::now().ok_or("/proc/stat can't be read")?);
    let figures = fio::run(file, case, time)?;
    let (after, now) = (Cpu::of_children(), MachineTime::now().ok_or("/proc/stat can't be read")?);
    Ok(Sample {
        ops_per_s: figures.ops_per_s,
        p50_us: figures.latency_us.p50,
        p99_us: figures.latency_us.p99,
        cpu_us: (after.total_ns - before.total_ns) as f64 / 1e3 / figures.ops as f64,
        strangers: now.strangers_percent(&machine, Duration::from_nanos(after.user_ns - before.user_ns)),
    })
}

/// Real blocks, so that no write has to allocate: glommio 0.9 can't open an empty file, and allocation is not asked.
fn prewrite(file: &std::path::Path, bytes: u64) -> std::io::Result<()> {
    let mut to = std::fs::File::create(file)?;
    let piece = vec![0xa5u8; 1 << 20];
    for _ in 0..bytes >> 20 {
        to.write_all(&piece)?;
    }
    to.sync_all()
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn range(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> (f64, f64) {
    samples.iter().map(of).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if args.depths.iter().any(|&d| d == 0 || d > 256) {
        return Err("depths lie between 1 and 256".into());
    }
    let file = args.dir.join(path::FILE);
    prewrite(&file, args.file_mb << 20)?;
    let outcome = compare(&args);
    std::fs::remove_file(&file)?;
    outcome
}

fn compare(args: &Args) -> Result<(), Failure> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = vec![Vec::new(); args.servers.len() * args.depths.len()];
    for round in 0..args.rounds {
        let mut order: Vec<usize> = (0..args.servers.len()).collect();
        order.rotate_left(round % args.servers.len());
        for which in order {
            let mut target = Target::start(&args.servers[which], &args.dir)?;
            for (d, &depth) in args.depths.iter().enumerate() {
                cpu::wait_until_quiet(args.quiet_percent, Duration::from_secs_f64(args.wait_s));
                let sample = target.measure(depth, time)?;
                eprintln!("round {} {} depth {depth}: {sample:?}", round + 1, args.servers[which]);
                if sample.strangers <= args.quiet_percent {
                    rows[d * args.servers.len() + which].push(sample);
                }
            }
            target.stop()?;
        }
    }
    println!(
        "| depth | server | samples | writes/s (lowest-highest) | p50 us | p99 us | server CPU us/write |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (row, samples) in rows.iter().enumerate() {
        if samples.is_empty() {
            return Err("the machine was never quiet enough: raise --quiet-percent or --rounds".into());
        }
        let (depth, server) =
            (args.depths[row / args.servers.len()], &args.servers[row % args.servers.len()]);
        let (low, high) = range(samples, |s| s.ops_per_s);
        println!(
            "| {depth} | {server} | {} | {:.0} ({low:.0}-{high:.0}) | {:.0} | {:.0} | {:.1} |",
            samples.len(),
            median(samples, |s| s.ops_per_s),
            median(samples, |s| s.p50_us),
            median(samples, |s| s.p99_us),
            median(samples, |s| s.cpu_us),
        );
    }
    Ok(())
}
