//! What the kernel tells in /proc, /sys, /dev and /run, read below a root: tests show checks a machine that isn't there.

use std::fs;
use std::path::PathBuf;

pub struct Tree {
    root: PathBuf,
}

impl Tree {
    pub fn of_this_host() -> Tree {
        Tree { root: "/".into() }
    }

    /// Paths are given without the leading slash.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The text of a file, without blanks around it; `None` when it can't be read or is empty.
    pub fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_string()).filter(|text| !text.is_empty())
    }

    pub fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// The number in the line of a file that begins with `name:`.
    pub fn number_of(&self, path: &str, name: &str) -> Option<u64> {
        let text = self.text(path)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse().ok()
    }

    /// Names in a directory, in order; none when it can't be read.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    pub fn link(&self, path: &str) -> Option<PathBuf> {
        fs::read_link(self.path(path)).ok()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A machine of a few files.
    pub struct Machine {
        dir: tempfile::TempDir,
        pub tree: Tree,
    }

    impl Machine {
        pub fn with(files: &[(&str, &str)]) -> Machine {
            let dir = tempfile::tempdir().expect("a directory can be made");
            let machine = Machine { tree: Tree { root: dir.path().into() }, dir };
            files.iter().for_each(|(path, text)| machine.set(path, text));
            machine
        }

        pub fn set(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().expect("it is below the root"))
                .expect("a directory can be made");
            fs::write(path, text).expect("a file can be written");
        }

        pub fn remove(&self, path: &str) {
            fs::remove_file(self.dir.path().join(path)).expect("it can be removed");
        }
    }
}
