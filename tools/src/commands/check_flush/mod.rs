//! `check-flush`: does a drive or RAID controller keep what it has acknowledged as flushed when its power is cut?
//!
//! Two halves on two hosts: the [`client`] writes and is cut off; the [`server`] keeps its power and records what was
//! acknowledged. [`block`] knows what blocks look like and judges what is left.

mod block;
mod client;
mod server;

use crate::{Outcome, print_json};
use client::{Comparison, Ended, Settings};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status when acknowledged data is missing (1: the test could not be done; 2: wrong arguments).
pub const LOST: u8 = 3;
const DEFAULT_PORT: u16 = 2515;
const MOST_THREADS: u32 = 64;
/// Losses printed by name for each thread; --json has all.
const SHOWN: usize = 8;

/// How a block is brought to the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// O_DIRECT and O_DSYNC, as chunk servers write.
    Direct,
    /// The page cache, then fdatasync.
    Fdatasync,
}

#[derive(clap::Args)]
#[command(
    after_help = "A test takes two hosts, as the one whose power is cut can't remember what it was told:
  on the other host:     pstorage check-flush -l
  on the host to test:   pstorage check-flush -s OTHER_HOST -d DIR_ON_THE_DRIVE -t 8
  cut the power of the host to test (pull the plug; a shutdown proves nothing), start it again, and once more:
                         pstorage check-flush -s OTHER_HOST -d DIR_ON_THE_DRIVE
Repeat it a few times. Exit status: 0 nothing lost, 3 acknowledged data is lost, 1 the test could not be done."
)]
pub struct Arguments {
    /// Be the server, which records what was acknowledged, until Ctrl-C. [default address: 0.0.0.0:2515]
    #[arg(short = 'l', long = "listen", value_name = "IP[:PORT]", num_args = 0..=1, value_parser = address,
          default_missing_value = "0.0.0.0:2515", conflicts_with_all = ["server", "dir"])]
    listen: Option<SocketAddr>,
    /// The server's file of records.
    #[arg(long, value_name = "FILE", default_value = "check-flush.records")]
    records: PathBuf,
    /// Host of the server.
    #[arg(short = 's', long, value_name = "HOST[:PORT]", required_unless_present = "listen", requires = "dir",
          value_parser = address)]
    server: Option<SocketAddr>,
    /// Directory on the drive to test.
    #[arg(short = 'd', long, required_unless_present = "listen")]
    dir: Option<PathBuf>,
    /// Threads that write at once.
    #[arg(short = 't', long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_THREADS)))]
    threads: u32,
    /// Size of each thread's file.
    #[arg(long, default_value = "4M", value_parser = file_blocks)]
    size: u32,
    /// Write through the page cache with fdatasync, not with O_DIRECT and O_DSYNC.
    #[arg(long)]
    fdatasync: bool,
    /// Forget an earlier test in this directory.
    #[arg(long)]
    fresh: bool,
    /// Stop writing after so many seconds.
    #[arg(long)]
    seconds: Option<f64>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT));
    }
    let with_port = if text.contains(':') { text.to_string() } else { format!("{text}:{DEFAULT_PORT}") };
    let found = with_port.to_socket_addrs().map_err(|e| format!("{e}: write it as HOST or HOST:PORT"))?;
    // IPv4 first: that is where a server listens unless told otherwise.
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(|a| !a.is_ipv4());
    found.into_iter().next().ok_or("the name has no address".into())
}

fn file_blocks(text: &str) -> Result<u32, String> {
    let bytes = shards::text::parse_size(text, 1)?;
    let blocks = bytes / shards::BLOCK_BYTES as u64;
    u32::try_from(blocks)
        .ok()
        .filter(|n| (2..=1 << 18).contains(n))
        .ok_or("sizes lie between 8K and 1G".into())
}

pub fn check_flush(arguments: &Arguments, json: bool) -> Outcome<ExitCode> {
    let (server, dir) = match (&arguments.listen, &arguments.server, &arguments.dir) {
        (Some(at), ..) => return server::serve(*at, &arguments.records).map(|()| ExitCode::SUCCESS),
        (None, Some(server), Some(dir)) => (*server, dir.clone()),
        _ => return Err("say -l to be the server, or -s HOST -d DIR to test a drive".into()),
    };
    if arguments.seconds.is_some_and(|s| !(0.01..=1e7).contains(&s)) {
        return Err("--seconds lies between 0.01 and 10000000".into());
    }
    let settings = Settings {
        server,
        dir,
        threads: arguments.threads,
        blocks: arguments.size,
        method: if arguments.fdatasync { Method::Fdatasync } else { Method::Direct },
        fresh: arguments.fresh,
        seconds: arguments.seconds,
    };
    match client::run(&settings)? {
        Ended::Wrote { acknowledged } => {
            println!("{acknowledged} blocks were acknowledged. Start again to compare.");
            Ok(ExitCode::SUCCESS)
        }
        Ended::Compared(comparison) => {
            if json {
                print_json(&comparison)?;
            } else {
                print!("{}", in_words(&comparison));
            }
            Ok(if comparison.lost == 0 { ExitCode::SUCCESS } else { ExitCode::from(LOST) })
        }
    }
}

fn in_words(c: &Comparison) -> String {
    if c.directory_lost {
        return format!(
            "LOST: the server recorded {} acknowledged blocks for this directory, and nothing of the test is here. The \
             drive has lost flushed data, or the directory was emptied (or another file system is mounted there). Say \
             --fresh to begin anew.\n",
            c.acknowledged
        );
    }
    let mut out = String::new();
    for thread in &c.threads {
        for loss in thread.lost.iter().take(SHOWN) {
            let found = match loss.found {
                Some(0) => "what was laid out before the test".to_string(),
                Some(counter) => format!("counter {counter}"),
                None => "garbage".to_string(),
            };
            out += &format!(
                "thread {}, block {} (offset {} in check-flush.{:03}): counter {} was acknowledged, found {found}\n",
                loss.thread,
                loss.block,
                u64::from(loss.block) * shards::BLOCK_BYTES as u64,
                loss.thread,
                loss.acknowledged,
            );
        }
        if thread.lost.len() > SHOWN {
            out += &format!("thread {}: {} more\n", thread.thread, thread.lost.len() - SHOWN);
        }
    }
    let torn = c.threads.iter().filter(|t| t.torn).count();
    let torn = if torn > 0 {
        format!(" ({torn} writes under way were torn, which is no fault)")
    } else {
        String::new()
    };
    match c.lost {
        0 => out + &format!("OK: all of {} acknowledged blocks are there{torn}.\n", c.acknowledged),
        lost => {
            out + &format!(
                "LOST: {lost} of the blocks acknowledged as flushed are missing{torn}. Don't put chunks, journals or \
                 metadata on this drive unless its write cache is switched off (hdparm -W0, or the controller's \
                 setting), then test again with --fresh. The files stay for you to look at.\n"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_sizes_are_read_or_explained() {
        assert_eq!(address("10.0.0.1"), Ok("10.0.0.1:2515".parse().unwrap()));
        assert_eq!(address("127.0.0.1:9"), Ok("127.0.0.1:9".parse().unwrap()));
        assert!(address("a b").is_err());
        assert_eq!(file_blocks("4M"), Ok(1024));
        assert!(file_blocks("1").is_err() && file_blocks("2G").is_err());
    }
}
