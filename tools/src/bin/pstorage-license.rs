//! `pstorage-license`: for those who provide the software under terms: makes keys and licences. Clusters need none.

use clap::{Parser, Subcommand};
use pstorage_tools::commands::license;
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes licences for clusters whose software is provided under terms. Clusters need none.
#[derive(Parser)]
#[command(name = "pstorage-license", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a maker's key: the secret half into FILE, the public half to standard output.
    ///
    /// Example: pstorage-license new-key maker.key
    NewKey { file: PathBuf },
    /// Makes a licence.
    ///
    /// Example: pstorage-license sign --key maker.key --number PS.1 --owner 'Example Hosting' --capacity 10T --expires 2027-12-31
    Sign(license::Terms),
    /// Shows what a licence says, and whether its signature is right.
    ///
    /// Example: pstorage-license show license.txt
    Show { file: PathBuf },
}

fn main() -> ExitCode {
    shards::host::end_with_readers();
    let outcome = match Cli::parse().command {
        Command::NewKey { file } => license::new_key(&file),
        Command::Sign(terms) => license::sign(terms),
        Command::Show { file } => license::show(&file),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("pstorage-license: {why}");
            ExitCode::FAILURE
        }
    }
}
