//! The two snapshot files of a server: one holds the newest snapshot, the next one is written to the other.
//!
//! A snapshot is the server's own, made piece by piece from a copy of the state, or the master's, as it arrives.
//!
//! Invariants:
//! - one operation is under way at a time, so what an abandoned snapshot has under way never lands on its successor;
//! - the head is written, durably, when all behind it is: the newest whole file is the one with the largest index;
//! - the file being sent to another server is not written to.

use crate::snapshot_file::{FileWriter, HEAD_BYTES, SnapshotHead, SnapshotMeta};
use crate::state::StateWriter;
use shards::{Buf, Durability, FileHandle, Io, OpId, OpenHow};
use std::collections::VecDeque;
use std::io;

pub const FILES: [&str; 2] = ["snapshot-0", "snapshot-1"];
/// Top byte of this component's operation ids.
pub const SNAPSHOT_OP: u64 = 0x03 << 56;

/// A whole snapshot file.
#[derive(Clone, Debug)]
pub struct Stored {
    pub slot: usize,
    pub meta: SnapshotMeta,
    pub file_bytes: u64,
}

pub enum StoreEvent {
    /// `installed` if it came from the master.
    Stored { installed: bool },
    /// It could not be written; the newest one is as it was. `installing` if the state is already the master's.
    Failed { why: String, installing: bool },
}

enum Source {
    Own(FileWriter),
    Master { queue: VecDeque<Buf>, is_whole: bool },
}

struct Writing {
    /// Known once the source is.
    meta: Option<SnapshotMeta>,
    source: Source,
    /// Where the next piece goes.
    at: u64,
    synced: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Piece,
    Sync,
    Head,
}

pub struct SnapshotStore {
    files: [FileHandle; 2],
    newest: Option<Stored>,
    writing: Option<Writing>,
    /// The operation under way, and whether it is of what is being written now.
    under_way: Option<(OpId, Step, bool)>,
    next_op: u64,
}

/// Opens both files, making those that are not there. Blocking: only while starting.
pub fn open(io: &mut dyn Io) -> io::Result<[FileHandle; 2]> {
    let how = OpenHow { create: true, direct: true, read_only: false };
    Ok([io.open(FILES[0], how)?, io.open(FILES[1], how)?])
}

impl SnapshotStore {
    pub fn new(files: [FileHandle; 2], newest: Option<Stored>) -> SnapshotStore {
        SnapshotStore { files, newest, writing: None, under_way: None, next_op: 0 }
    }

    pub fn newest(&self) -> Option<&Stored> {
        self.newest.as_ref()
    }

    pub fn file(&self, slot: usize) -> FileHandle {
        self.files[slot]
    }

    /// Where the next snapshot goes.
    pub fn next_slot(&self) -> usize {
        self.newest.as_ref().map_or(0, |newest| 1 - newest.slot)
    }

    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether the state is the master's already and its snapshot is not durable yet.
    pub fn is_installing(&self) -> bool {
        let writing = self.writing.as_ref();
        writing.is_some_and(|w| matches!(w.source, Source::Master { is_whole: true, .. }))
    }

    /// Bytes of the master's snapshot that wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        match self.writing.as_ref().map(|w| &w.source) {
            Some(Source::Master { queue, .. }) => queue.iter().map(|piece| piece.len()).sum(),
            _ => 0,
        }
    }

    /// Begins to write the server's own.
    pub fn begin(&mut self, meta: SnapshotMeta, state: StateWriter, io: &mut dyn Io) {
        let source = Source::Own(FileWriter::new(&meta, state));
        self.replace(Some(Writing { meta: Some(meta), source, at: HEAD_BYTES as u64, synced: false }), io);
    }

    /// Begins to write the master's; one of the server's own that is being written is needless.
    pub fn begin_master(&mut self, io: &mut dyn Io) {
        let source = Source::Master { queue: VecDeque::new(), is_whole: false };
        self.replace(Some(Writing { meta: None, source, at: HEAD_BYTES as u64, synced: false }), io);
    }

    /// The master's goes on: bytes behind the head, a multiple of 4,096.
    pub fn piece(&mut self, piece: &[u8], io: &mut dyn Io) {
        if let Some(Writing { source: Source::Master { queue, .. }, .. }) = &mut self.writing {
            queue.push_back(Buf::from_slice(piece));
        }
        self.pump(io);
    }

    /// The master's is whole and in use.
    pub fn seal(&mut self, meta: SnapshotMeta, io: &mut dyn Io) {
        if let Some(Writing { meta: known, source: Source::Master { is_whole, .. }, .. }) = &mut self.writing
        {
            (*known, *is_whole) = (Some(meta), true);
        }
        self.pump(io);
    }

    /// The master's is not to be used.
    pub fn discard_master(&mut self, io: &mut dyn Io) {
        if matches!(&self.writing, Some(Writing { source: Source::Master { is_whole: false, .. }, .. })) {
            self.replace(None, io);
        }
    }

    fn replace(&mut self, writing: Option<Writing>, io: &mut dyn Io) {
        if let Some((_, _, is_ours)) = &mut self.under_way {
            *is_ours = false;
        }
        self.writing = writing;
        self.pump(io);
    }

    fn pump(&mut self, io: &mut dyn Io) {
        let (slot, next) = (self.next_slot(), OpId(SNAPSHOT_OP | (self.next_op + 1)));
        let Some(writing) = self.writing.as_mut().filter(|_| self.under_way.is_none()) else { return };
        let file = self.files[slot];
        let (piece, ended) = match &mut writing.source {
            Source::Own(writer) => {
                let piece = writer.next();
                let ended = piece.is_none();
                (piece, ended)
            }
            Source::Master { queue, is_whole } => (queue.pop_front(), *is_whole),
        };
        let step = match piece {
            Some(piece) => {
                let at = writing.at;
                writing.at += piece.len() as u64;
                io.write(file, at, vec![piece], Durability::Buffered, next);
                Step::Piece
            }
            None if !ended => return,
            None if !writing.synced => {
                io.sync(file, next);
                Step::Sync
            }
            None => {
                let meta = writing.meta.as_ref().expect("known when the source has ended");
                let head = SnapshotHead { index: meta.index, term: meta.term, file_bytes: writing.at };
                io.write(file, 0, vec![head.encode()], Durability::Durable, next);
                Step::Head
            }
        };
        self.next_op += 1;
        self.under_way = Some((next, step, true));
    }

    pub fn on_disk(&mut self, op: OpId, result: io::Result<Buf>, io: &mut dyn Io) -> Option<StoreEvent> {
        let (_, step, is_ours) = self.under_way.take_if(|(under_way, ..)| *under_way == op)?;
        let mut event = None;
        match (is_ours, result) {
            (false, _) => {}
            (true, Err(error)) => {
                let installing = self.is_installing();
                self.writing = None;
                let why = format!("writing {}: {error}", FILES[self.next_slot()]);
                event = Some(StoreEvent::Failed { why, installing });
            }
            (true, Ok(_)) => match (step, &mut self.writing) {
                (Step::Sync, Some(writing)) => writing.synced = true,
                (Step::Head, _) => event = self.stored(),
                _ => {}
            },
        }
        self.pump(io);
        event
    }

    fn stored(&mut self) -> Option<StoreEvent> {
        let installed = self.is_installing();
        let Writing { meta, at, .. } = self.writing.take()?;
        self.newest = Some(Stored { slot: self.next_slot(), meta: meta?, file_bytes: at });
        Some(StoreEvent::Stored { installed })
    }
}
