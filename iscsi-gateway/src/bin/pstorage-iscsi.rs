//! `pstorage-iscsi`: targets of the cluster, for administrators.

use clap::Parser;
use iscsi_gateway::Result;
use iscsi_gateway::cluster::Options;
use iscsi_gateway::command::{self, Command, Context};
use iscsi_gateway::store::Store;
use std::process::ExitCode;
use std::time::Duration;

/// How long a record that somebody else changes is waited for.
const BUSY_WAIT: Duration = Duration::from_secs(15);

/// Makes and shows iSCSI targets of a cluster.
#[derive(Parser)]
#[command(name = "pstorage-iscsi", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
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
    let Arguments { options, json, command } = arguments;
    let settings = options.settings()?;
    let context = Context { socket: options.socket(), iqn_prefix: settings.iqn_prefix, json };
    if let Some(done) = command::run_alone(&context, &command) {
        return done;
    }
    let cluster = options.connect("pstorage-iscsi", BUSY_WAIT)?;
    let done = command::run(&context, &Store::new(&cluster, &settings.root), command);
    done.and(options.close(cluster))
}
