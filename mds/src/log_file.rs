//! What a server keeps on disk: the journal with the raft log, and the snapshot files.
//!
//! Invariants:
//! - records reach the journal in the order of their numbers, also when it was full for a while;
//! - the journal is cut only when the snapshot file that makes its beginning needless is durable, and never behind the
//!   newest record, which tells the hard state;
//! - a record behind an installed snapshot is written only when that file is durable: on its own it would be a log
//!   with a hole.

use crate::consensus::Persist;
use crate::snapshot_store::{SNAPSHOT_OP, SnapshotStore, StoreEvent};
use shards::journal::{Journal, MAX_META_BYTES, Outcome, PayloadCheck, Position};
use shards::{Buf, Io, OpId};
use std::collections::{BTreeMap, VecDeque};
use std::io;

pub const JOURNAL: &str = "raft-journal";
/// A snapshot is due when this part of the journal is in use.
const USED_DIVISOR: u64 = 4;

pub enum LogEvent {
    /// The record of this number is durable.
    Durable(u64),
    /// A snapshot file is; `installed` if it came from the master.
    SnapshotStored { installed: bool },
    /// A snapshot could not be stored; the log still holds everything.
    SnapshotFailed(String),
    /// Nothing can be made durable any more.
    Broken(String),
}

pub struct LogFile {
    journal: Journal,
    /// Records that found the journal full.
    backlog: VecDeque<Persist>,
    /// Last entry of each record under way, by number.
    under_way: BTreeMap<u64, u64>,
    /// Durable records: where each stands and its last entry (0: none).
    records: VecDeque<(Position, u64)>,
    pub snapshots: SnapshotStore,
    /// Where the log began when there was no snapshot yet.
    base_index: u64,
}

/// The record as the journal takes it: small ones need no block of their own.
fn split(record: Vec<u8>) -> (Vec<u8>, Buf) {
    if record.len() <= MAX_META_BYTES {
        (record, Buf::empty())
    } else {
        (Vec::new(), Buf::from_slice(&record))
    }
}

/// The record as [`split`] was given it.
pub fn join(meta: Vec<u8>, payload: &Buf) -> Vec<u8> {
    if meta.is_empty() { payload.to_vec() } else { meta }
}

impl LogFile {
    /// Takes a journal that is ready, with the places of the records it holds.
    pub fn new(
        journal: Journal,
        records: VecDeque<(Position, u64)>,
        snapshots: SnapshotStore,
        base_index: u64,
    ) -> LogFile {
        LogFile {
            journal,
            backlog: VecDeque::new(),
            under_way: BTreeMap::new(),
            records,
            snapshots,
            base_index,
        }
    }

    /// Index the newest durable snapshot file covers.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshots.newest().map_or(self.base_index, |newest| newest.meta.index)
    }

    pub fn append(&mut self, record: Persist, io: &mut dyn Io) {
        self.backlog.push_back(record);
        self.pump(io);
    }

    fn pump(&mut self, io: &mut dyn Io) {
        if self.snapshots.is_installing() {
            return;
        }
        while let Some(next) = self.backlog.pop_front() {
            let (meta, payload) = split(next.record.clone());
            if self.journal.append(io, &meta, payload, PayloadCheck::Journal, next.number, false).is_err() {
                self.backlog.push_front(next);
                return;
            }
            self.under_way.insert(next.number, next.last_entry);
        }
    }

    /// Whether a snapshot should be made so that the journal can be cut.
    pub fn wants_snapshot(&self) -> bool {
        !self.backlog.is_empty() || self.journal.used_bytes() > self.journal.total_bytes() / USED_DIVISOR
    }

    /// Bytes in use, and the size.
    pub fn fill(&self) -> (u64, u64) {
        (self.journal.used_bytes(), self.journal.total_bytes())
    }

    /// Whether records wait for room in the journal.
    pub fn is_full(&self) -> bool {
        !self.backlog.is_empty() && !self.snapshots.is_installing()
    }

    /// Takes a completion.
    pub fn on_disk(&mut self, op: OpId, result: io::Result<Buf>, io: &mut dyn Io) -> Vec<LogEvent> {
        if op.0 >> 56 == SNAPSHOT_OP >> 56 {
            let event = self.snapshots.on_disk(op, result, io);
            return event.map(|event| self.on_snapshot(event, io)).into_iter().collect();
        }
        self.journal.on_disk(io, op, result);
        let mut events = Vec::new();
        for outcome in self.journal.outcomes() {
            match outcome {
                Outcome::Durable { token, position, .. } => {
                    let last_entry = self.under_way.remove(&token).unwrap_or(0);
                    self.records.push_back((position, last_entry));
                    events.push(LogEvent::Durable(token));
                }
                Outcome::Broken(error) => events.push(LogEvent::Broken(error.to_string())),
                Outcome::Replayed { .. } | Outcome::Ready | Outcome::Trimmed => {}
            }
        }
        self.pump(io);
        events
    }

    fn on_snapshot(&mut self, event: StoreEvent, io: &mut dyn Io) -> LogEvent {
        match event {
            StoreEvent::Stored { installed } => {
                self.cut(io);
                LogEvent::SnapshotStored { installed }
            }
            StoreEvent::Failed { why, installing: true } => LogEvent::Broken(why),
            StoreEvent::Failed { why, installing: false } => LogEvent::SnapshotFailed(why),
        }
    }

    /// Cuts the journal in front of the first record that the snapshot does not cover.
    fn cut(&mut self, io: &mut dyn Io) {
        let covered = self.snapshot_index();
        while self.records.len() > 1 && self.records[0].1 <= covered {
            self.records.pop_front();
        }
        if let Some((position, _)) = self.records.front() {
            self.journal.trim(io, *position);
        }
        self.pump(io);
    }
}
