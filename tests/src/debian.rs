//! Programs from Debian's packages, for tests against the real thing. Nothing is installed on this machine: packages are
//! fetched by apt-get with what they depend on, and unpacked below `target/`, where they stay for the next run.

use crate::processes::programs;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Debian {
    root: PathBuf,
}

impl Debian {
    /// Fetches and unpacks packages; the error says why that is not possible here.
    pub fn with(packages: &[&str]) -> Result<Debian, String> {
        let dir = programs().join("debian-packages").join(packages.join("+"));
        let debian = Debian { root: dir.join("root") };
        let done = dir.join("done");
        if done.exists() {
            return Ok(debian);
        }
        let archives = dir.join("archives");
        fs::create_dir_all(archives.join("partial")).map_err(|e| format!("{}: {e}", archives.display()))?;
        fs::create_dir_all(&debian.root).map_err(|e| format!("{}: {e}", debian.root.display()))?;
        fetch(packages, &archives).or_else(|_| {
            // The lists may be missing or old.
            run(Command::new("timeout").args(["120", "apt-get", "-qq", "update"]))?;
            fetch(packages, &archives)
        })?;
        for entry in fs::read_dir(&archives).map_err(|e| e.to_string())?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&debian.root))?;
            }
        }
        fs::write(&done, "").map_err(|e| format!("{}: {e}", done.display()))?;
        Ok(debian)
    }

    /// The start of a shell command: a program with its libraries. One that this machine has already was not fetched.
    pub fn command(&self, program: &str) -> String {
        let places = ["usr/sbin", "usr/bin"].map(|dir| self.root.join(dir).join(program));
        let found = places.into_iter().find(|path| path.exists());
        let path = found.unwrap_or_else(|| Path::new(program).into());
        let libs = self.root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        format!("env LD_LIBRARY_PATH={} {}", libs.display(), path.display())
    }
}

fn fetch(packages: &[&str], archives: &Path) -> Result<(), String> {
    let mut apt = Command::new("timeout");
    apt.args(["120", "apt-get", "-qq", "install", "--download-only", "-y", "--no-install-recommends", "-o"])
        .arg(format!("Dir::Cache::Archives={}", archives.display()))
        .args(packages);
    run(&mut apt)
}

fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let ended = command.output().map_err(|e| format!("{shown}: {e}"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!("{shown}: {}: {}", ended.status, said.trim()))
}
