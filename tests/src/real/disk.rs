//! A small disk of its own for a server: an ext4 file system in an image, so that it can be filled without harm to others.

use crate::processes::run_command;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted with its value; the loop device goes with the mount.
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Makes `IMAGE` of `bytes` and mounts it on `dir`.
    pub fn new(image: &Path, dir: &Path, bytes: u64) -> Disk {
        fs::create_dir_all(dir).expect("a directory can be made");
        let file = File::create(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        file.set_len(bytes).expect("a sparse file");
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &text(image)]);
        run("mount", &["-o", "loop", &text(image), &text(dir)]);
        let _ = fs::remove_dir(dir.join("lost+found"));
        Disk { dir: dir.into() }
    }

    /// Leaves no free byte on the disk.
    pub fn fill(&self) {
        let path = self.dir.join("filler");
        let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut length = 0;
        // From large pieces to small ones, until nothing fits.
        for piece in (12..=26).rev().map(|bits| 1i64 << bits) {
            while nix::fcntl::posix_fallocate(&file, length, piece).is_ok() {
                length += piece;
            }
        }
    }

    pub fn free_up(&self) {
        let _ = fs::remove_file(self.dir.join("filler"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        super::unmount_below(&self.dir);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of plain characters").into()
}

/// A program of util-linux or e2fsprogs.
fn run(program: &str, args: &[&str]) {
    run_command(Command::new(program).args(args)).ok();
}
