//! Snapshots on their way from the master to a server that lags too far behind the log: from file to file.
//!
//! The file goes in pieces of [`PIECE_BYTES`] as `RaftSnapshot` frames (request: index of the snapshot; offset: number of
//! the piece; length: number of pieces), then the raft message that belongs to it as `RaftSnapshotDone`. The receiver tells
//! by `RaftSnapshotTaken` frames (request: index; offset: number of pieces) what it has written; a few pieces are under way
//! at a time, so neither side holds more of it in memory, and heartbeats are not stuck behind it.
//!
//! Invariants: the receiver takes pieces only in order from one connection; what it hands to raft has passed the CRCs
//! of the file. A transfer that breaks is reported to raft, which asks for another.

use crate::snapshot_file::{FileReader, HEAD_BYTES, SnapshotMeta};
use crate::snapshot_store::{SnapshotStore, Stored};
use crate::state::State;
use protobuf::Message as _;
use raft::eraftpb::Message;
use shards::{Buf, ConnId, FileHandle, Io, OpId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::{Frame, Head, Kind, MdsId};

pub const PIECE_BYTES: u64 = 512 << 10;
/// Pieces sent beyond those the receiver has written: heartbeats wait behind them.
const WINDOW_PIECES: u32 = 4;
/// Bytes of a snapshot that the receiver has not written when it takes no more.
const WINDOW_BYTES: usize = (WINDOW_PIECES as u64 * PIECE_BYTES) as usize;
/// A transfer in which nothing moves for so long, or whose end the receiver has not taken by then, is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Top byte of this component's operation ids.
pub const TRANSFER_OP: u64 = 0x05 << 56;

struct Outgoing {
    conn: ConnId,
    slot: usize,
    file: FileHandle,
    file_bytes: u64,
    index: u64,
    message: Message,
    next_piece: u32,
    taken_pieces: u32,
    reading: Option<OpId>,
    moved_at: Timestamp,
    all_sent: bool,
}

#[derive(Default)]
pub struct Outbox {
    transfers: BTreeMap<MdsId, Outgoing>,
    next_op: u64,
}

impl Outbox {
    /// Begins to send the file that `message` announces.
    pub fn begin(
        &mut self,
        to: MdsId,
        conn: ConnId,
        stored: &Stored,
        file: FileHandle,
        message: Message,
        io: &mut dyn Io,
    ) {
        let index = stored.meta.index;
        tracing::info!(name: "snapshot_send", mds = to.0, index, bytes = stored.file_bytes);
        let transfer = Outgoing {
            conn,
            slot: stored.slot,
            file,
            file_bytes: stored.file_bytes,
            index,
            message,
            next_piece: 0,
            taken_pieces: 0,
            reading: None,
            moved_at: io.now(),
            all_sent: false,
        };
        self.transfers.insert(to, transfer);
        self.pump(to, io);
    }

    /// Reads on, or ends.
    fn pump(&mut self, to: MdsId, io: &mut dyn Io) {
        let Some(transfer) = self.transfers.get_mut(&to) else { return };
        if transfer.reading.is_some() || transfer.all_sent {
            return;
        }
        if transfer.next_piece == transfer.pieces() {
            let head = Head::new(Kind::RaftSnapshotDone, transfer.index);
            let meta = transfer.message.write_to_bytes().expect("a message always serialises");
            io.send(transfer.conn, Frame::new(head, &meta, Buf::empty()).encode());
            (transfer.all_sent, transfer.moved_at) = (true, io.now());
        } else if transfer.next_piece < transfer.taken_pieces.saturating_add(WINDOW_PIECES) {
            self.next_op += 1;
            let op = OpId(TRANSFER_OP | self.next_op);
            let from = u64::from(transfer.next_piece) * PIECE_BYTES;
            let length = PIECE_BYTES.min(transfer.file_bytes - from);
            transfer.reading = Some(op);
            io.read(transfer.file, from, length as usize, op);
        }
    }

    /// Takes a completion. Whose transfer failed, if one did.
    pub fn on_disk(&mut self, op: OpId, result: std::io::Result<Buf>, io: &mut dyn Io) -> Option<MdsId> {
        // One that has ended meanwhile is not found.
        let (to, transfer) = self.transfers.iter_mut().find(|(_, t)| t.reading == Some(op))?;
        let to = *to;
        match result {
            Ok(bytes) => {
                let mut head = Head::new(Kind::RaftSnapshot, transfer.index);
                (head.offset_bytes, head.length_bytes) = (transfer.next_piece, transfer.pieces());
                io.send(transfer.conn, Frame { head, meta: bytes, payload: Buf::empty() }.encode());
                transfer.next_piece += 1;
                transfer.reading = None;
                self.pump(to, io);
                None
            }
            Err(error) => {
                tracing::error!(name: "snapshot_unreadable", mds = to.0, %error);
                self.transfers.remove(&to);
                Some(to)
            }
        }
    }

    /// The receiver has written so many pieces.
    pub fn taken(&mut self, from: MdsId, frame: &Frame, io: &mut dyn Io) {
        if let Some(transfer) = self.transfers.get_mut(&from).filter(|t| t.index == frame.head.request) {
            transfer.taken_pieces = transfer.taken_pieces.max(frame.head.offset_bytes);
            transfer.moved_at = io.now();
        }
        self.pump(from, io);
    }

    /// The oldest snapshot on its way: its receiver needs the entries behind it.
    pub fn oldest_index(&self) -> Option<u64> {
        self.transfers.values().map(|t| t.index).min()
    }

    /// Whether a file is being sent.
    pub fn uses(&self, slot: usize) -> bool {
        self.transfers.values().any(|t| t.slot == slot)
    }

    /// The line is gone; true if a transfer broke with it.
    pub fn line_down(&mut self, mds: MdsId) -> bool {
        self.transfers.remove(&mds).is_some()
    }

    /// Ends transfers that are over (`still_wanted` is false) and returns those that took too long.
    pub fn sweep(&mut self, now: Timestamp, still_wanted: &dyn Fn(MdsId) -> bool) -> Vec<MdsId> {
        self.transfers.retain(|id, t| !t.all_sent || still_wanted(*id));
        let slow = |t: &Outgoing| now.since(t.moved_at) > STALL_TIMEOUT;
        let late: Vec<MdsId> = self.transfers.iter().filter(|(_, t)| slow(t)).map(|(id, _)| *id).collect();
        for id in &late {
            self.transfers.remove(id);
        }
        late
    }

    /// Ends all; their receivers.
    pub fn clear(&mut self) -> Vec<MdsId> {
        std::mem::take(&mut self.transfers).into_keys().collect()
    }
}

impl Outgoing {
    fn pieces(&self) -> u32 {
        self.file_bytes.div_ceil(PIECE_BYTES) as u32
    }
}

/// The snapshot that arrives, if one does.
#[derive(Default)]
pub struct Inbox {
    arriving: Option<Arriving>,
    /// It is whole, and raft has yet to say whether it is of use.
    arrived: Option<(SnapshotMeta, State)>,
}

struct Arriving {
    conn: ConnId,
    index: u64,
    pieces: u32,
    next_piece: u32,
    told_pieces: u32,
    reader: FileReader,
}

impl Inbox {
    /// Takes a piece, for the state and for the file.
    pub fn piece(
        &mut self,
        conn: ConnId,
        frame: &Frame,
        store: &mut SnapshotStore,
        io: &mut dyn Io,
    ) -> Result<(), String> {
        let (number, pieces, index) = (frame.head.offset_bytes, frame.head.length_bytes, frame.head.request);
        if number == 0 {
            let reader = FileReader::default();
            self.arriving = Some(Arriving { conn, index, pieces, next_piece: 0, told_pieces: 0, reader });
            self.arrived = None;
            store.begin_master(io);
        }
        let taken = self.take(conn, frame, store, io);
        if taken.is_err() {
            self.arriving = None;
            store.discard_master(io);
        }
        taken
    }

    fn take(
        &mut self,
        conn: ConnId,
        frame: &Frame,
        store: &mut SnapshotStore,
        io: &mut dyn Io,
    ) -> Result<(), String> {
        let (number, pieces) = (frame.head.offset_bytes, frame.head.length_bytes);
        let arriving = self.arriving.as_mut().ok_or("a snapshot without a beginning")?;
        let expected = (arriving.conn, arriving.index, arriving.pieces, arriving.next_piece);
        let is_cut = frame.meta.len() % HEAD_BYTES > 0 || frame.meta.is_empty();
        if (conn, frame.head.request, pieces, number) != expected || number >= pieces || is_cut {
            return Err(format!("piece {number} of {pieces} of a snapshot out of order"));
        }
        arriving.next_piece += 1;
        arriving.reader.take(&frame.meta).map_err(|why| format!("snapshot: {why}"))?;
        // The head is written when all is.
        let body = if number == 0 { HEAD_BYTES } else { 0 };
        store.piece(&frame.meta[body..], io);
        self.tell(store, io);
        Ok(())
    }

    /// Tells the sender to go on, when enough is written.
    pub fn tell(&mut self, store: &SnapshotStore, io: &mut dyn Io) {
        let Some(arriving) = &mut self.arriving else { return };
        if arriving.told_pieces < arriving.next_piece && store.waiting_bytes() < WINDOW_BYTES {
            let mut head = Head::new(Kind::RaftSnapshotTaken, arriving.index);
            head.offset_bytes = arriving.next_piece;
            io.send(arriving.conn, Frame::new(head, &[], Buf::empty()).encode());
            arriving.told_pieces = arriving.next_piece;
        }
    }

    /// The raft message of a whole snapshot; if raft wants it, [`Inbox::accept`].
    pub fn done(&mut self, conn: ConnId, frame: &Frame) -> Result<Message, String> {
        let arriving = self.arriving.take().filter(|a| a.conn == conn);
        let arriving = arriving.ok_or("the end of a snapshot that did not begin")?;
        if arriving.next_piece != arriving.pieces || frame.head.request != arriving.index {
            return Err(format!("snapshot ends after {} of {} pieces", arriving.next_piece, arriving.pieces));
        }
        let message =
            Message::parse_from_bytes(&frame.meta).map_err(|e| format!("message of a snapshot: {e}"))?;
        let (meta, state) = arriving.reader.finish().map_err(|why| format!("snapshot: {why}"))?;
        if message.get_snapshot().get_metadata() != &meta.for_raft() {
            return Err("the snapshot is not the one that its message announces".into());
        }
        self.arrived = Some((meta, state));
        Ok(message)
    }

    /// What raft wants, if it is that which has arrived.
    pub fn accept(&mut self, index: u64) -> Option<(SnapshotMeta, State)> {
        self.arrived.take_if(|(meta, _)| meta.index == index)
    }

    /// Raft had no use for it, or its connection is gone.
    pub fn settle(&mut self, store: &mut SnapshotStore, io: &mut dyn Io) {
        if self.arrived.take().is_some() {
            store.discard_master(io);
        }
    }

    pub fn forget(&mut self, conn: ConnId, store: &mut SnapshotStore, io: &mut dyn Io) {
        if self.arriving.take_if(|a| a.conn == conn).is_some() {
            store.discard_master(io);
        }
    }

    /// The file could not be written.
    pub fn give_up(&mut self) -> Option<ConnId> {
        self.arrived = None;
        self.arriving.take().map(|a| a.conn)
    }
}
