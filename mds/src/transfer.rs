//! Snapshots on their way from the master to a server that lags too far behind the log.
//!
//! The file goes in pieces of [`PIECE_BYTES`] as `RaftSnapshot` frames (request: index of the snapshot; offset: number
//! of the piece; length: number of pieces), then the raft message that belongs to it as `RaftSnapshotDone`. Pieces are
//! handed to the network a few at a time, so that heartbeats are not stuck behind a gigabyte.
//!
//! Invariants: the receiver takes pieces only in order from one connection; what it hands to raft has passed the CRCs
//! of the file. A transfer that breaks is reported to raft, which asks for another.

use crate::raft_log::SnapshotFile;
use protobuf::Message as _;
use raft::eraftpb::Message;
use shards::{Buf, ConnId, Io, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::{Frame, Head, Kind, MdsId};

pub const PIECE_BYTES: usize = 512 << 10;
/// Bytes that may wait in a line before more pieces are handed over.
const WINDOW_BYTES: usize = 2 << 20;
/// A receiver that has not taken the snapshot by then is sent another.
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Refuses an announced snapshot beyond this size, bytes.
const MAX_SNAPSHOT_BYTES: usize = 8 << 30;

struct Outgoing {
    conn: ConnId,
    bytes: Buf,
    index: u64,
    next_piece: u32,
    message: Message,
    all_sent_at: Option<Timestamp>,
}

#[derive(Default)]
pub struct Outbox {
    transfers: BTreeMap<MdsId, Outgoing>,
}

impl Outbox {
    /// Begins to send `bytes`, the file that `message` announces.
    pub fn begin(&mut self, to: MdsId, conn: ConnId, bytes: Buf, message: Message, io: &mut dyn Io) {
        let index = message.get_snapshot().get_metadata().index;
        tracing::info!(name: "snapshot_send", mds = to.0, index, bytes = bytes.len());
        let transfer = Outgoing { conn, bytes, index, next_piece: 0, message, all_sent_at: None };
        self.transfers.insert(to, transfer);
        self.pump(io);
    }

    /// Hands over what the lines have room for.
    pub fn pump(&mut self, io: &mut dyn Io) {
        for transfer in self.transfers.values_mut() {
            transfer.pump(io);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    /// The line is gone; true if a transfer broke with it.
    pub fn line_down(&mut self, mds: MdsId) -> bool {
        self.transfers.remove(&mds).is_some()
    }

    /// Ends transfers that are over (`still_wanted` is false) and returns those that took too long.
    pub fn sweep(&mut self, now: Timestamp, still_wanted: &dyn Fn(MdsId) -> bool) -> Vec<MdsId> {
        self.transfers.retain(|id, t| t.all_sent_at.is_none() || still_wanted(*id));
        let slow = |t: &Outgoing| t.all_sent_at.is_some_and(|at| now.since(at) > TAKE_TIMEOUT);
        let late: Vec<MdsId> = self.transfers.iter().filter(|(_, t)| slow(t)).map(|(id, _)| *id).collect();
        for id in &late {
            self.transfers.remove(id);
        }
        late
    }

    pub fn clear(&mut self) {
        self.transfers.clear();
    }
}

impl Outgoing {
    fn pump(&mut self, io: &mut dyn Io) {
        let pieces = self.bytes.len().div_ceil(PIECE_BYTES) as u32;
        while self.all_sent_at.is_none() && io.unsent_bytes(self.conn) < WINDOW_BYTES {
            if self.next_piece == pieces {
                let head = Head::new(Kind::RaftSnapshotDone, self.index);
                let meta = self.message.write_to_bytes().expect("a message always serialises");
                io.send(self.conn, Frame::new(head, &meta, Buf::empty()).encode());
                self.all_sent_at = Some(io.now());
                return;
            }
            let from = self.next_piece as usize * PIECE_BYTES;
            let to = (from + PIECE_BYTES).min(self.bytes.len());
            let mut head = Head::new(Kind::RaftSnapshot, self.index);
            head.offset_bytes = self.next_piece;
            head.length_bytes = pieces;
            io.send(
                self.conn,
                Frame { head, meta: self.bytes.slice(from..to), payload: Buf::empty() }.encode(),
            );
            self.next_piece += 1;
        }
    }
}

/// Snapshots that arrive, by connection.
#[derive(Default)]
pub struct Inbox {
    arriving: BTreeMap<ConnId, Arriving>,
}

struct Arriving {
    index: u64,
    pieces: u32,
    next_piece: u32,
    bytes: Vec<u8>,
}

impl Inbox {
    pub fn piece(&mut self, conn: ConnId, frame: &Frame) -> Result<(), String> {
        let (number, pieces) = (frame.head.offset_bytes, frame.head.length_bytes);
        if number == 0 {
            let index = frame.head.request;
            self.arriving.insert(conn, Arriving { index, pieces, next_piece: 0, bytes: Vec::new() });
        }
        let arriving = self.arriving.get_mut(&conn).ok_or("a snapshot without a beginning")?;
        let expected = (arriving.index, arriving.pieces, arriving.next_piece);
        let too_long = arriving.bytes.len() + frame.meta.len() > MAX_SNAPSHOT_BYTES;
        if (frame.head.request, pieces, number) != expected || number >= pieces || too_long {
            self.arriving.remove(&conn);
            return Err(format!("piece {number} of {pieces} of a snapshot out of order"));
        }
        arriving.bytes.extend_from_slice(&frame.meta);
        arriving.next_piece += 1;
        Ok(())
    }

    /// The raft message of a whole snapshot, with the file as its data.
    pub fn done(&mut self, conn: ConnId, frame: &Frame) -> Result<Message, String> {
        let arriving = self.arriving.remove(&conn).ok_or("the end of a snapshot that did not begin")?;
        if arriving.next_piece != arriving.pieces || frame.head.request != arriving.index {
            return Err(format!("snapshot ends after {} of {} pieces", arriving.next_piece, arriving.pieces));
        }
        let mut message =
            Message::parse_from_bytes(&frame.meta).map_err(|e| format!("message of a snapshot: {e}"))?;
        let file = SnapshotFile::decode(&arriving.bytes).map_err(|e| format!("snapshot: {e}"))?;
        let meta = message.get_snapshot().get_metadata();
        if (meta.index, meta.term) != (file.index, file.term) || meta.get_conf_state() != &file.conf {
            return Err("the snapshot is not the one that its message announces".into());
        }
        message.mut_snapshot().set_data(arriving.bytes.into());
        Ok(message)
    }

    pub fn forget(&mut self, conn: ConnId) {
        self.arriving.remove(&conn);
    }
}
