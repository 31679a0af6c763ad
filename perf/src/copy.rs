//! What this machine gives for copies, as the repair makes them: read from one file, sent over loopback, written to another,
//! durable once for each batch. Nothing else is done with the bytes: the ceiling of a repair within one machine.

use crate::scratch::ScratchFile;
use shards::BufMut;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const PIECE_BYTES: usize = 1 << 20;
const FILE_BYTES: u64 = 256 << 20;
/// Pieces between two syncs: what a shard copies at a time (8 chunks, 4 pieces of 256 KiB each).
const BATCH_PIECES: u64 = 8;

/// Bytes per second of `streams` copies at a time, on new files in `dir`, which are removed.
pub fn rate(dir: &Path, streams: usize, time: Duration) -> Result<f64, String> {
    let files = |what: &str| -> Result<Vec<ScratchFile>, String> {
        (0..streams).map(|n| ScratchFile::create(dir, &format!("{what}-{n}"))).collect()
    };
    let (sources, targets) = (files("source")?, files("copy")?);
    sources.iter().try_for_each(|source| fill(source.path()))?;
    let ends = Instant::now() + time;
    let began = Instant::now();
    let copied = std::thread::scope(|threads| {
        let pairs = sources.iter().map(ScratchFile::path).zip(targets.iter().map(ScratchFile::path));
        let copies = pairs
            .map(|(from, to)| threads.spawn(move || copy(from, to, ends).map_err(shards::text::at(&from))));
        let all: Vec<_> = copies.collect();
        let results = all.into_iter().map(|thread| thread.join().expect("no panic in a copy"));
        results.sum::<Result<u64, String>>()
    })?;
    Ok(copied as f64 / began.elapsed().as_secs_f64())
}

fn piece() -> BufMut {
    let mut piece = BufMut::scratch(PIECE_BYTES);
    piece.fill(0x5a);
    piece
}

fn direct() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_DIRECT);
    options
}

fn fill(path: &Path) -> Result<(), String> {
    let write = || {
        let file = direct().write(true).open(path)?;
        let mut piece = piece();
        for at in (0..FILE_BYTES).step_by(PIECE_BYTES) {
            piece[..8].copy_from_slice(&at.to_le_bytes());
            file.write_all_at(&piece, at)?;
        }
        file.sync_all()
    };
    write().map_err(shards::text::at(&path))
}

/// Copies the file over and over until `ends`, into new room each time. Returns the bytes that are durable.
fn copy(from: &Path, to: &Path, ends: Instant) -> std::io::Result<u64> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let source = direct().read(true).open(from)?;
    std::thread::scope(|threads| {
        let sending = threads.spawn(move || -> std::io::Result<()> {
            let mut piece = piece();
            for at in (0..FILE_BYTES).step_by(PIECE_BYTES).cycle() {
                if Instant::now() >= ends {
                    break;
                }
                source.read_exact_at(&mut piece, at)?;
                sender.write_all(&piece)?;
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
    let target = direct().write(true).open(to)?;
    let (mut piece, mut copied) = (piece(), 0);
    loop {
        match from.read_exact(&mut piece) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
        let at = copied % FILE_BYTES;
        if at == 0 && copied > 0 {
            // New room, as chunks that are copied get; the old one is not kept, or the disk would fill.
            target.sync_data()?;
            target.set_len(0)?;
        }
        target.write_all_at(&piece, at)?;
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
