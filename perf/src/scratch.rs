//! Files that a measurement makes for itself and that never stay behind: removed when it ends, fails or is interrupted.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

static LIVING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new file of this program's own.
pub struct ScratchFile {
    path: PathBuf,
}

impl ScratchFile {
    /// An empty file in `dir`, under a name that no file has yet.
    pub fn create(dir: &Path, what: &str) -> Result<ScratchFile, String> {
        let dir = dir.canonicalize().map_err(shards::text::at(&dir))?;
        let path = dir.join(format!("pcs-bench-{}-{what}.tmp", std::process::id()));
        File::options().write(true).create_new(true).open(&path).map_err(|e| {
            let dir = dir.display();
            match e.kind() {
                std::io::ErrorKind::ReadOnlyFilesystem => {
                    format!("{dir} is on a file system mounted read-only: nothing can be measured there")
                }
                std::io::ErrorKind::PermissionDenied => {
                    format!("you may not make files in {dir}: name a directory of your own, or run as root")
                }
                _ => shards::text::at(&path)(e),
            }
        })?;
        LIVING.lock().expect("no panic under this lock").push(path.clone());
        Ok(ScratchFile { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        LIVING.lock().expect("no panic under this lock").retain(|p| *p != self.path);
        if let Err(e) = std::fs::remove_file(&self.path) {
            eprintln!("pcs-bench: {} can't be removed ({e}): remove it by hand", self.path.display());
        }
    }
}

/// On Ctrl-C: removes all and ends the program.
pub fn remove_on_interrupt() -> Result<(), String> {
    let end = || {
        for path in LIVING.lock().expect("no panic under this lock").drain(..) {
            let _ = std::fs::remove_file(path);
        }
        std::process::exit(130);
    };
    ctrlc::set_handler(end).map_err(|e| format!("catching Ctrl-C: {e}"))
}
