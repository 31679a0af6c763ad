//! The file of a problem report, a tar in gzip. There is one way in, for text, and it takes secrets out.

use super::redact::Redactor;
use crate::Outcome;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Of a log the newest part counts.
const MOST_FILE_BYTES: u64 = 8 << 20;

pub struct Archive {
    path: PathBuf,
    tar: tar::Builder<GzEncoder<File>>,
    /// Directory that everything is in.
    top: String,
    redactor: Redactor,
    time_s: u64,
    /// What should be here, and why it is not.
    missing: Vec<String>,
}

impl Archive {
    /// Readable by its owner alone. A file that exists is left as it is.
    pub fn create(path: &Path, top: String, redactor: Redactor) -> Outcome<Archive> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("{} exists: name another file with --out, or remove it", path.display())
            }
            _ => shards::text::at(path)(e),
        })?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let time_s = shards::host::unix_ms() / 1000;
        Ok(Archive { path: path.into(), tar, top, redactor, time_s, missing: Vec::new() })
    }

    pub fn text(&mut self, name: &str, text: &str) -> Outcome {
        let text = self.redactor.redact(text);
        let name = format!("{}/{}", self.top, self.redactor.redact(name));
        let mut head = tar::Header::new_gnu();
        head.set_size(text.len() as u64);
        head.set_mode(0o600);
        head.set_mtime(self.time_s);
        let added = self.tar.append_data(&mut head, &name, text.as_bytes());
        added.map_err(shards::text::at(&self.path))
    }

    /// What a command would print with `--json`.
    pub fn json(&mut self, name: &str, value: &impl serde::Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value).map_err(|e| e.to_string())?;
        self.text(name, &text)
    }

    /// The text, or a note why there is none.
    pub fn text_or_note(&mut self, name: &str, text: Outcome<String>) -> Outcome {
        match text {
            Ok(text) => self.text(name, &text),
            Err(why) => {
                self.note(name, &why);
                Ok(())
            }
        }
    }

    /// A file of this host, or its end.
    pub fn file(&mut self, name: &str, path: &Path) -> Outcome {
        self.text_or_note(name, end_of(path).map_err(shards::text::at(&path)))
    }

    pub fn note(&mut self, name: &str, why: &str) {
        self.missing.push(format!("{name}: {why}"));
    }

    /// Ends it; its size in bytes.
    pub fn finish(mut self) -> Outcome<u64> {
        let missing = std::mem::take(&mut self.missing);
        if !missing.is_empty() {
            self.text("missing.txt", &missing.join("\n"))?;
        }
        let fail = shards::text::at(&self.path);
        let mut file = self.tar.into_inner().and_then(GzEncoder::finish).map_err(fail)?;
        file.flush().and_then(|()| file.sync_all()).map_err(fail)?;
        fs::metadata(&self.path).map(|meta| meta.len()).map_err(fail)
    }
}

/// Text of a file. Files of /proc have no length, and are read whole.
fn end_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let skipped = file.metadata()?.len().saturating_sub(MOST_FILE_BYTES);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(MOST_FILE_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(if skipped > 0 { format!("[{skipped} bytes before this were left out]\n{text}") } else { text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_file_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = File::create(&path).unwrap();
        file.set_len(MOST_FILE_BYTES).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"the end", MOST_FILE_BYTES).unwrap();
        let text = end_of(&path).unwrap();
        assert!(text.starts_with("[7 bytes before") && text.ends_with("the end"));
        assert!(!end_of(Path::new("/proc/version")).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_exists_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.tar.gz");
        fs::write(&path, "mine").unwrap();
        let refused = Archive::create(&path, "top".into(), Redactor::new([])).err().expect("refused");
        assert!(refused.contains("--out"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
