//! `pstorage-iscsid`: the gateway of a host. Serves the targets that are started here until SIGTERM or SIGINT.

use clap::Parser;
use client::Cluster;
use iscsi_gateway::control::{self, Listener};
use iscsi_gateway::gateway::Gateway;
use iscsi_gateway::store::Store;
use iscsi_gateway::{Error, Result, settings};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a file is waited for that another gateway had: the leases of one that died run on for `mds.lease.timeout`.
const BUSY_WAIT: Duration = Duration::from_secs(60);

/// Serves iSCSI targets of a cluster.
#[derive(Parser)]
#[command(name = "pstorage-iscsid", version)]
struct Arguments {
    /// Name of the cluster.
    #[arg(short = 'c', long = "cluster", env = "PSTORAGE_NAME")]
    cluster: String,
    /// Directory of the configuration.
    #[arg(long, env = "PSTORAGE_ETC", default_value = "/etc/pstorage")]
    etc: PathBuf,
    /// Socket for pstorage-iscsi. [default: /run/pstorage-iscsi-CLUSTER.sock]
    #[arg(long, env = "PSTORAGE_ISCSI_SOCKET")]
    socket: Option<PathBuf>,
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
    let Arguments { cluster: name, etc, socket, host, threads } = arguments;
    let settings = settings::load(&etc)?;
    let listener = Listener::bind(&socket.unwrap_or_else(|| control::default_socket(&name)))?;
    let mut config = client::setup::load(&etc, &name).map_err(Error::Refused)?;
    config.mount_point = "pstorage-iscsid".into();
    config.busy_wait = BUSY_WAIT;
    let cluster = Cluster::connect(config).map_err(Error::cluster(&format!("cluster '{name}'")))?;
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
    ended.and(cluster.close().map_err(Error::cluster(&format!("cluster '{name}'"))))
}
