//! `pcs-bench`: measures disks, networks and clusters with the same runtime as the servers.

use clap::{Args, Parser, Subcommand};
use perf::cpu::Watched;
use perf::progress::Progress;
use perf::report::Report;
use perf::{cluster, disk, html, journal, net, scratch};
use shards::text::parse_size;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures what disks, networks and clusters can do, with the same I/O code as the servers.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  Before a disk becomes a chunk server:   pcs-bench disk /pstorage/disk1
  The same as a page with plots:          pcs-bench disk /pstorage/disk1 --html disk1.html
  An empty device, destroying its data:   pcs-bench disk /dev/sdx --destroy-data-on /dev/sdx
  What a journal on an SSD would give:    pcs-bench journal /pstorage/disk1 --journal /ssd
  The network between two hosts:          pcs-bench net --listen 10.30.100.101:2600   (there)
                                          pcs-bench net 10.30.100.101:2600            (here)
  What a virtual machine would get:       pcs-bench cluster /mnt/pcs1
  The same without FUSE:                  pcs-bench cluster pcs1
  Both, compared:                         pcs-bench cluster /mnt/pcs1 pcs1
  With the CPU cost of every server:      pcs-bench cluster -c local --local /var/tmp/demo"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Output {
    /// Print a report for programs.
    #[arg(long)]
    json: bool,
    /// Also write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Measures a disk: random and sequential, small and large, with and without flushes, and a journal on it.
    ///
    /// In a directory it writes only to files that it makes and removes. Of a block device it only reads, unless
    /// --destroy-data-on names the same device.
    Disk {
        /// Directory on the disk, or a block device.
        #[arg(value_name = "DIR|DEV")]
        target: PathBuf,
        /// Size of the test file, or of the part of the device that is used.
        #[arg(long, default_value = "1G", value_parser = size_in_bytes)]
        size: u64,
        /// Length of each measurement.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Operations under way at once.
        #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
        depths: Vec<usize>,
        /// Sizes of operations.
        #[arg(long, value_delimiter = ',', default_value = "4K,1M", value_parser = size_in_bytes)]
        blocks: Vec<u64>,
        /// Confirms that all data on this block device may be overwritten.
        #[arg(long, value_name = "DEV")]
        destroy_data_on: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Measures the write journal of a chunk server on a disk, and on an SSD beside it.
    ///
    /// It is the product's own journal: records of 4 KiB, group commit, durable when counted. Writes only to files that
    /// it makes and removes.
    Journal {
        /// Directory on the disk that holds (or is to hold) the chunks.
        dir: PathBuf,
        /// Directory on an SSD that could hold the journal: compares.
        #[arg(short = 'j', long, value_name = "DIR")]
        journal: Option<PathBuf>,
        /// Size of the journal.
        #[arg(long, default_value = "256M", value_parser = size_in_bytes)]
        size: u64,
        /// Length of each measurement.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Operations under way at once.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64")]
        depths: Vec<usize>,
        #[command(flatten)]
        output: Output,
    },
    /// Measures a cluster: 4 KiB random and 1 MiB sequential, writes and reads.
    Cluster {
        /// Directory in a mount of the cluster, or the cluster's name (measured through the client library, without
        /// a mount). Both are measured one after the other, and compared.
        #[arg(required_unless_present = "cluster", value_name = "MOUNT|NAME")]
        targets: Vec<String>,
        /// Name of the cluster, as with the other commands.
        #[arg(short = 'c', long)]
        cluster: Option<String>,
        /// Directory of keys and settings. [default with --local DIR: DIR/etc]
        #[arg(long, value_name = "DIR", env = "PSTORAGE_ETC")]
        etc: Option<PathBuf>,
        /// Size of the test file.
        #[arg(long, default_value = "256M", value_parser = size_in_bytes)]
        size: u64,
        /// Length of each measurement.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Show the CPU time of these processes per operation.
        #[arg(long, value_delimiter = ',', value_name = "NAME=PID")]
        pids: Vec<String>,
        /// Show the CPU time of all daemons of the cluster that 'pstorage local up DIR' made.
        #[arg(long, value_name = "DIR")]
        local: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Measures the network to another host, where the listening half must run. Anybody who reaches its port can load it.
    Net {
        /// Address of the listening half.
        #[arg(required_unless_present = "listen", conflicts_with = "listen", value_name = "IP:PORT", value_parser = address)]
        to: Option<SocketAddr>,
        /// Be the listening half, until Ctrl-C.
        #[arg(long, value_name = "ADDR", value_parser = address)]
        listen: Option<SocketAddr>,
        /// Length of each measurement.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Connections at once.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        #[command(flatten)]
        output: Output,
    },
}

/// Of `pcs-bench net` when none is named.
const DEFAULT_NET_PORT: u16 = 2600;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("pcs-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    scratch::remove_on_interrupt()?;
    match command {
        Command::Disk { target, size, seconds, depths, blocks, destroy_data_on, output } => {
            check_time(seconds)?;
            let blocks = blocks.into_iter().map(block).collect::<Result<_, _>>()?;
            check_depths(&depths)?;
            let settings = disk::Settings {
                target,
                size_bytes: at_least_a_block(size)?,
                seconds,
                depths,
                blocks,
                destroy: destroy_data_on,
            };
            show(&output, |progress| disk::run(&settings, progress))
        }
        Command::Journal { dir, journal, size, seconds, depths, output } => {
            check_time(seconds)?;
            check_depths(&depths)?;
            if size < 16 << 20 {
                return Err("--size must be at least 16M: the smallest journal".into());
            }
            let settings = journal::Settings { dir, journal, size_bytes: size, seconds, depths };
            show(&output, |progress| journal::run(&settings, progress))
        }
        Command::Cluster { targets, cluster, etc, size, seconds, pids, local, output } => {
            check_time(seconds)?;
            let mut watched = pids.iter().map(|p| Watched::parse(p)).collect::<Result<Vec<_>, _>>()?;
            if let Some(dir) = &local {
                watched.extend(Watched::of_local_cluster(dir)?);
            }
            let etc =
                etc.or_else(|| local.map(|dir| dir.join("etc"))).unwrap_or_else(client::setup::default_etc);
            let named = targets.iter().map(|target| cluster::way_of(target, &etc));
            let by_option = cluster.map(|cluster| Ok(cluster::Way::Library { cluster, etc: etc.clone() }));
            let ways = named.chain(by_option).collect::<Result<Vec<_>, String>>()?;
            let size_bytes = at_least_a_block(size)?.max(1 << 20);
            let settings = cluster::Settings { ways, size_bytes, seconds, watched };
            show(&output, |progress| cluster::run(&settings, progress))
        }
        Command::Net { listen: Some(at), .. } => {
            net::listen(at, |addr| println!("Listening on {addr}; there run: pcs-bench net {addr}"))
        }
        Command::Net { to, seconds, connections, output, .. } => {
            check_time(seconds)?;
            let to = to.ok_or("name the address of the listening half")?;
            let settings = net::Settings { to, seconds, connections: connections.clamp(1, 64) };
            show(&output, |progress| net::run(&settings, progress))
        }
    }
}

fn show(output: &Output, make: impl FnOnce(&mut Progress) -> Result<Report, String>) -> Result<(), String> {
    // Not after minutes of measuring.
    if let Some(path) = &output.html {
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|e| format!("--html {}", shards::text::at(path)(e)))?;
    }
    let report = make(&mut Progress::new(!output.json))?;
    if output.json {
        println!("{}", report.json());
    } else if !report.findings.is_empty() {
        print!("\n{}", report.findings_text());
    }
    if let Some(path) = &output.html {
        std::fs::write(path, html::page(&report)).map_err(shards::text::at(&path))?;
        eprintln!("Page written to {}", path.display());
    }
    Ok(())
}

/// `IP`, `IP:PORT` or `HOST:PORT`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let with_port = match text.parse::<std::net::IpAddr>() {
        Ok(ip) => return Ok(SocketAddr::new(ip, DEFAULT_NET_PORT)),
        Err(_) if text.contains(':') => text.to_string(),
        Err(_) => format!("{text}:{DEFAULT_NET_PORT}"),
    };
    let found = with_port.to_socket_addrs().map_err(|e| format!("{e}: write it as IP:PORT or HOST:PORT"))?;
    found.into_iter().next().ok_or("the name has no address".into())
}

fn size_in_bytes(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}

fn check_time(seconds: f64) -> Result<(), String> {
    if (0.01..=3600.0).contains(&seconds) {
        Ok(())
    } else {
        Err("--seconds lies between 0.01 and 3600".into())
    }
}

fn check_depths(depths: &[usize]) -> Result<(), String> {
    if depths.is_empty() {
        return Err("--depths names none".into());
    }
    match depths.iter().find(|d| !(1..=1024).contains(*d)) {
        Some(bad) => Err(format!("depth {bad}: depths lie between 1 and 1024")),
        None => Ok(()),
    }
}

/// Direct I/O goes by whole blocks.
fn block(bytes: u64) -> Result<usize, String> {
    if bytes > 0 && bytes <= 1 << 20 && bytes % shards::BLOCK_BYTES as u64 == 0 {
        Ok(bytes as usize)
    } else {
        Err(format!("a block of {bytes} bytes: block sizes are multiples of 4 KiB up to 1 MiB"))
    }
}

fn at_least_a_block(size: u64) -> Result<u64, String> {
    if size >= 1 << 20 { Ok(size) } else { Err("--size must be at least 1M".into()) }
}
