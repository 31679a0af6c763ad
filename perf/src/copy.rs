//! What this machine gives for copies, as the repair makes them: read from one file, sent over loopback, written to another,
//! durable once for each batch. Nothing else is done with the bytes: the ceiling of a repair within one machine.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PIECE_BYTES: usize = 1 << 20;
const FILE_BYTES: u64 = 256 << 20;
/// Pieces between two syncs: what a shard copies at a time (8 chunks, 4 pieces of 256 KiB each).
const BATCH_PIECES: u64 = 8;
const ALIGNMENT: usize = 4096;

/// Bytes per second of `streams` copies at a time, on new files in `dir`, which are removed.
pub fn rate(dir: &Path, streams: usize, time: Duration) -> Result<f64, String> {
    let dir = Scratch::create(dir)?;
    let sources: Vec<PathBuf> = (0..streams).map(|n| dir.0.join(format!("source-{n}"))).collect();
    sources.iter().try_for_each(|path| fill(path))?;
    let ends = Instant::now() + time;
    let began = Instant::now();
    let copied = std::thread::scope(|threads| {
        let all: Vec<_> = sources
            .iter()
            .map(|path| {
                let target = path.with_extension("copy");
                threads
                    .spawn(move || copy(path, &target, ends).map_err(|e| format!("{}: {e}", path.display())))
            })
            .collect();
        let results = all.into_iter().map(|thread| thread.join().expect("no panic in a copy"));
        results.sum::<Result<u64, String>>()
    })?;
    Ok(copied as f64 / began.elapsed().as_secs_f64())
}

struct Scratch(PathBuf);

impl Scratch {
    fn create(dir: &Path) -> Result<Scratch, String> {
        let path = dir.join(format!("copy-{}.tmp", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} can't be removed ({e}): remove it by hand", self.0.display());
        }
    }
}

/// A piece of memory as direct I/O needs it.
struct Piece {
    memory: Vec<u8>,
    from: usize,
}

impl Piece {
    fn new() -> Piece {
        let memory = vec![0x5a; PIECE_BYTES + ALIGNMENT];
        let from = memory.as_ptr().align_offset(ALIGNMENT);
        Piece { memory, from }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + PIECE_BYTES]
    }
}

fn direct() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_DIRECT);
    options
}

fn fill(path: &Path) -> Result<(), String> {
    let write = || {
        let file = direct().write(true).create_new(true).open(path)?;
        let mut piece = Piece::new();
        for at in (0..FILE_BYTES).step_by(PIECE_BYTES) {
            piece.bytes()[..8].copy_from_slice(&at.to_le_bytes());
            file.write_all_at(piece.bytes(), at)?;
        }
        file.sync_all()
    };
    write().map_err(|e: std::io::Error| format!("{}: {e}", path.display()))
}

/// Copies the file over and over until `ends`, into new room each time. Returns the bytes that are durable.
fn copy(from: &Path, to: &Path, ends: Instant) -> std::io::Result<u64> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let source = direct().read(true).open(from)?;
    std::thread::scope(|threads| {
        let sending = threads.spawn(move || -> std::io::Result<()> {
            let mut piece = Piece::new();
            for at in (0..FILE_BYTES).step_by(PIECE_BYTES).cycle() {
                if Instant::now() >= ends {
                    break;
                }
                source.read_exact_at(piece.bytes(), at)?;
                sender.write_all(piece.bytes())?;
            }
            Ok(()) // The stream ends with it.
        });
        let copied = receive(&mut receiver, to);
        drop(receiver); // A sender that waits is told.
        let sent = sending.join().expect("no panic while sending");
        let copied = copied?;
        sent.map(|()| copied)
    })
}

fn receive(from: &mut TcpStream, to: &Path) -> std::io::Result<u64> {
    let mut target = direct().write(true).create_new(true).open(to)?;
    let (mut piece, mut copied) = (Piece::new(), 0);
    loop {
        match from.read_exact(piece.bytes()) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
        let at = copied % FILE_BYTES;
        if at == 0 && copied > 0 {
            // New room, as chunks that are copied get; the old one is not kept, or the disk would fill.
            target.sync_data()?;
            std::fs::remove_file(to)?;
            target = direct().write(true).create_new(true).open(to)?;
        }
        target.write_all_at(piece.bytes(), at)?;
        copied += PIECE_BYTES as u64;
        if copied / PIECE_BYTES as u64 % BATCH_PIECES == 0 {
            target.sync_data()?;
        }
    }
    target.sync_data()?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_made_and_nothing_is_left() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let rate = rate(dir.path(), 2, Duration::from_millis(300)).unwrap();
        assert!(rate > 1e5, "{rate} bytes a second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
