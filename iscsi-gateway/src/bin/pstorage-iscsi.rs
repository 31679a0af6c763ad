//! `pstorage-iscsi`: targets of the cluster, for administrators.

use clap::Parser;
use client::Cluster;
use iscsi_gateway::command::{self, Command, Context};
use iscsi_gateway::store::Store;
use iscsi_gateway::{Error, Result, control, settings};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a record that somebody else changes is waited for.
const BUSY_WAIT: Duration = Duration::from_secs(15);

/// Makes and shows iSCSI targets of a cluster.
#[derive(Parser)]
#[command(name = "pstorage-iscsi", version)]
struct Arguments {
    /// Name of the cluster.
    #[arg(short = 'c', long = "cluster", env = "PSTORAGE_NAME")]
    cluster: String,
    /// Directory of the configuration.
    #[arg(long, env = "PSTORAGE_ETC", default_value = "/etc/pstorage")]
    etc: PathBuf,
    /// Socket of the gateway of this host. [default: /run/pstorage-iscsi-CLUSTER.sock]
    #[arg(long, env = "PSTORAGE_ISCSI_SOCKET")]
    socket: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    shards::host::end_with_readers();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pstorage-iscsi: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result {
    let Arguments { cluster: name, etc, socket, json, command } = arguments;
    let settings = settings::load(&etc)?;
    let socket = socket.unwrap_or_else(|| control::default_socket(&name));
    let context = Context { socket, iqn_prefix: settings.iqn_prefix, json };
    if let Some(done) = command::run_alone(&context, &command) {
        return done;
    }
    let mut config = client::setup::load(&etc, &name).map_err(Error::Refused)?;
    config.mount_point = "pstorage-iscsi".into();
    config.busy_wait = BUSY_WAIT;
    let cluster = Cluster::connect(config).map_err(Error::cluster(&format!("cluster '{name}'")))?;
    let done = command::run(&context, &Store::new(&cluster, &settings.root), command);
    done.and(cluster.close().map_err(Error::cluster(&format!("cluster '{name}'"))))
}
