//! `pstorage-hwflush-check`: the name under which administrators know `pstorage check-flush`.

use clap::Parser;
use pstorage_tools::commands::check_flush;
use std::process::ExitCode;

/// Tests whether a drive or RAID controller loses flushed data when its power is cut.
#[derive(Parser)]
#[command(name = "pstorage-hwflush-check", version)]
struct Cli {
    #[command(flatten)]
    arguments: check_flush::Arguments,
    /// Output for programs.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match check_flush::check_flush(&cli.arguments, cli.json) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("pstorage-hwflush-check: {why}");
            ExitCode::FAILURE
        }
    }
}
