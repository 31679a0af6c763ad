//! `pstorage-iscsid`: the gateway of a host. Serves the targets that are started here until SIGTERM or SIGINT.

use clap::Parser;
use iscsi_gateway::cluster::Options;
use iscsi_gateway::control::Listener;
use iscsi_gateway::gateway::Gateway;
use iscsi_gateway::store::Store;
use iscsi_gateway::{Error, Result};
use std::process::ExitCode;
use std::time::Duration;

/// How long a file is waited for that another gateway had: the leases of one that died run on for `mds.lease.timeout`.
const BUSY_WAIT: Duration = Duration::from_secs(60);

/// Serves iSCSI targets of a cluster.
///
/// Example: pstorage-iscsid -c pcs1
#[derive(Parser)]
#[command(name = "pstorage-iscsid", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Name of this host, as targets are registered on it. [default: its host name]
    #[arg(long)]
    host: Option<String>,
    /// Threads that serve connections. [default: cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

fn main() -> ExitCode {
    // First of all, so that every thread inherits it.
    shards::host::block_termination_signals();
    let filter = tracing_subscriber::EnvFilter::try_from_env("PSTORAGE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pstorage-iscsid: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result {
    let Arguments { options, host, threads } = arguments;
    let settings = options.settings()?;
    let listener = Listener::bind(&options.socket())?;
    let cluster = options.connect("pstorage-iscsid", BUSY_WAIT)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = threads.map_or(cores, usize::from);
    let host = host.unwrap_or_else(shards::host::host_name);
    let started = Gateway::start(Store::new(&cluster, &settings.root), host, threads)
        .map_err(|e| Error::Refused(format!("starting threads: {e}")))?;
    listener.serve(&started.gateway)?;
    // Targets wait for files that an earlier gateway had: that must not hold up the signal.
    let gateway = std::sync::Arc::downgrade(&started.gateway);
    std::thread::spawn(move || {
        if let Some(gateway) = gateway.upgrade()
            && let Err(error) = gateway.start_all()
        {
            tracing::error!(name: "iscsi_targets_not_started", %error);
        }
    });
    shards::host::wait_for_termination();
    drop(listener);
    let ended = started.end();
    ended.and(options.close(cluster))
}
