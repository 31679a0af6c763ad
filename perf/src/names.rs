//! Many small files in a directory: how many a program makes, looks at, lists and deletes in a second, one after the other.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

/// Files per second through each kind of work.
pub struct NameRates {
    pub per_s: [f64; 4],
}

impl NameRates {
    /// What is measured, in the order of `per_s`.
    pub const WORK: [&'static str; 4] =
        ["made, written, closed", "looked at", "listed with attributes", "deleted"];
}

/// Makes `count` files of 4 KiB in a new directory in `dir`, which is removed in the end. What the kernel knows of names and attributes is
/// dropped before each kind of work (as root; else it stays).
pub fn measure(dir: &Path, count: usize) -> Result<NameRates, String> {
    let place = dir.join(format!("names.{}", std::process::id()));
    let at = shards::text::at(&place);
    fs::create_dir(&place).map_err(at)?;
    let result = run(&place, count).map_err(at);
    fs::remove_dir_all(&place).map_err(at)?;
    result
}

fn run(place: &Path, count: usize) -> io::Result<NameRates> {
    let names: Vec<_> = (0..count).map(|n| place.join(format!("file{n:06}"))).collect();
    let data = [7; 4096];
    let made = timed(count, || {
        names.iter().try_for_each(|name| {
            let mut file = File::create_new(name)?;
            file.write_all(&data)?;
            // What closing says counts: file systems tell there that data could not be written.
            nix::unistd::close(file).map_err(io::Error::from)
        })
    })?;
    let looked = timed(count, || names.iter().try_for_each(|name| fs::symlink_metadata(name).map(drop)))?;
    let listed = timed(count, || {
        let found = fs::read_dir(place)?.try_fold(0, |n, entry| entry?.metadata().map(|_| n + 1))?;
        if found == count {
            Ok(())
        } else {
            Err(io::Error::other(format!("{found} of {count} files listed")))
        }
    })?;
    let deleted = timed(count, || names.iter().try_for_each(fs::remove_file))?;
    Ok(NameRates { per_s: [made, looked, listed, deleted] })
}

fn timed(count: usize, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let _ = fs::write("/proc/sys/vm/drop_caches", "2");
    let start = Instant::now();
    work()?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_there_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let rates = measure(dir.path(), 20).expect("measured");
        assert!(rates.per_s.iter().all(|rate| *rate > 0.0));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        assert!(measure(&dir.path().join("away"), 1).err().is_some_and(|why| why.contains("away")));
    }
}
