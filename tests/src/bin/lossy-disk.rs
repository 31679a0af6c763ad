//! `lossy-disk DIR`: mounts a file system that can lose what was not synced, and fail in other ways. For tests.

use clap::Parser;
use std::path::PathBuf;

/// A file system in memory that loses un-synced writes on command. Write commands to DIR/.control; unmount to end it.
#[derive(Parser)]
struct Args {
    /// Where to mount it.
    dir: PathBuf,
}

fn main() {
    let args = Args::parse();
    if let Err(error) = pstorage_tests::lossy_disk::serve(&args.dir) {
        eprintln!("lossy-disk: {}: {error}", args.dir.display());
        std::process::exit(1);
    }
}
