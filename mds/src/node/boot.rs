//! From the files on disk to a running server.
//!
//! Order: ports, snapshot files, journal, start counter. The counter (`starts`) is written after the journal is ready
//! and before anything is promised, so its absence means that the journal was never used and may be made anew, even if
//! a crash left half of one. It also numbers this server's connections.

use super::MdsConfig;
use super::server::Server;
use crate::consensus::Consensus;
use crate::log_file::{self, JOURNAL, LogFile};
use crate::raft_log::{Base, Replay, decode_record};
use crate::snapshot_file::{FileReader, HEAD_BYTES, SnapshotHead, SnapshotMeta};
use crate::snapshot_store::{self, FILES, SNAPSHOT_OP, SnapshotStore, Stored};
use crate::state::State;
use shards::journal::{Journal, Outcome, Position};
use shards::{Buf, Event, FileHandle, Io, OpId};
use std::collections::VecDeque;

const STARTS: &str = "starts";
const STARTS_OP: OpId = OpId(0x04 << 56 | 1);
const READ_OP: OpId = OpId(SNAPSHOT_OP | 1);
/// Read of a snapshot in one go.
const READ_BYTES: u64 = 1 << 20;

pub struct Boot {
    config: MdsConfig,
    files: [FileHandle; 2],
    phase: Phase,
    snapshot: Option<(Stored, State)>,
    replay: Replay,
    records: VecDeque<(Position, u64)>,
    starts: u64,
}

enum Phase {
    /// The heads of the snapshot files are read: the newest whole one so far.
    Heads {
        slot: usize,
        newest: Option<(usize, SnapshotHead)>,
    },
    /// The newest snapshot is read, up to here.
    Snapshot {
        slot: usize,
        head: SnapshotHead,
        reader: FileReader,
        at: u64,
    },
    Journal(Journal),
}

impl Boot {
    pub fn start(config: MdsConfig, io: &mut dyn Io) -> Result<Boot, String> {
        for addr in [config.control.addr, config.control.raft_addr] {
            io.listen(addr).map_err(|e| {
                format!(
                    "{e}. Stop the program that uses the port ('ss -ltnp' shows which); {addr} is the address in \
                     control.json"
                )
            })?;
        }
        let starts = match io.get_blob(STARTS).map_err(|e| format!("reading {STARTS}: {e}"))? {
            None => 0,
            Some(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .ok_or_else(|| format!("file {STARTS} is corrupt: a number is expected"))?,
        };
        let files =
            snapshot_store::open(io).map_err(|e| format!("opening {} and {}: {e}", FILES[0], FILES[1]))?;
        io.read(files[0], 0, HEAD_BYTES, READ_OP);
        let phase = Phase::Heads { slot: 0, newest: None };
        let (replay, records) = (Replay::default(), VecDeque::new());
        Ok(Boot { config, files, phase, snapshot: None, replay, records, starts })
    }

    /// True when the server can run.
    pub fn handle(&mut self, event: Event<super::Look>, io: &mut dyn Io) -> Result<bool, String> {
        match event {
            Event::Disk { op: STARTS_OP, result } => {
                result.map_err(|e| format!("writing {STARTS}: {e}"))?;
                return Ok(true);
            }
            Event::Disk { op, result } => match &mut self.phase {
                Phase::Journal(journal) => {
                    journal.on_disk(io, op, result);
                    self.take_outcomes(io)?;
                }
                Phase::Heads { slot, .. } | Phase::Snapshot { slot, .. } => {
                    let bytes = result.map_err(|e| format!("reading {}: {e}", FILES[*slot]))?;
                    self.read(bytes, io)?;
                }
            },
            // Nobody is answered before the log is known; who asks for figures sees that.
            Event::Accepted { conn, .. } => io.close(conn),
            Event::Shutdown => io.stop(Ok(())),
            _ => {}
        }
        Ok(false)
    }

    /// A part of a snapshot file has been read.
    fn read(&mut self, bytes: Buf, io: &mut dyn Io) -> Result<(), String> {
        match &mut self.phase {
            Phase::Heads { slot, newest } => {
                // One that a crash tore is of a snapshot that never came to be: the other one is the newest.
                let head = SnapshotHead::decode(&bytes).unwrap_or_else(|why| {
                    tracing::warn!(name: "snapshot_head_bad", file = FILES[*slot], why);
                    None
                });
                let best = newest.map_or(0, |(_, head)| head.index);
                if let Some(head) = head.filter(|head| head.index > best) {
                    *newest = Some((*slot, head));
                }
                match (*slot, *newest) {
                    (0, _) => {
                        *slot = 1;
                        io.read(self.files[1], 0, HEAD_BYTES, READ_OP);
                    }
                    (_, None) => self.open_journal(io)?,
                    (_, Some((slot, head))) => {
                        let reader = FileReader::default();
                        self.phase = Phase::Snapshot { slot, head, reader, at: 0 };
                        self.read_on(io);
                    }
                }
            }
            Phase::Snapshot { slot, reader, at, .. } => {
                let slot = *slot;
                reader.take(&bytes).map_err(|why| corrupt(slot, &why))?;
                *at += bytes.len() as u64;
                if !self.read_on(io) {
                    self.restore()?;
                    self.open_journal(io)?;
                }
            }
            Phase::Journal(_) => {}
        }
        Ok(())
    }

    /// Reads the next part of the snapshot; false when there is none.
    fn read_on(&mut self, io: &mut dyn Io) -> bool {
        let Phase::Snapshot { slot, head, at, .. } = &self.phase else { return false };
        let left = head.file_bytes.saturating_sub(*at);
        if left > 0 {
            io.read(self.files[*slot], *at, left.min(READ_BYTES) as usize, READ_OP);
        }
        left > 0
    }

    fn restore(&mut self) -> Result<(), String> {
        let Phase::Snapshot { slot, head, reader, .. } = &mut self.phase else { return Ok(()) };
        let (slot, file_bytes) = (*slot, head.file_bytes);
        let (meta, state) = std::mem::take(reader).finish().map_err(|why| corrupt(slot, &why))?;
        self.snapshot = Some((Stored { slot, meta, file_bytes }, state));
        Ok(())
    }

    fn open_journal(&mut self, io: &mut dyn Io) -> Result<(), String> {
        let journal = if self.starts == 0 {
            Journal::create(io, JOURNAL, self.config.journal_bytes)
        } else {
            Journal::open(io, JOURNAL, |_, _| true)
        };
        self.phase = Phase::Journal(journal.map_err(|e| e.to_string())?);
        Ok(())
    }

    fn take_outcomes(&mut self, io: &mut dyn Io) -> Result<(), String> {
        let mut ready = false;
        let Phase::Journal(journal) = &mut self.phase else { return Ok(()) };
        for outcome in journal.outcomes() {
            match outcome {
                Outcome::Replayed { position, meta, payload, .. } => {
                    let bytes = log_file::join(meta.into_vec(), &payload);
                    let at = |why| format!("{JOURNAL}: record at position {}: {why}", position.0);
                    let (_, entries) = decode_record(&bytes).map_err(at)?;
                    self.replay.record(&bytes).map_err(at)?;
                    self.records.push_back((position, entries.last().map_or(0, |e| e.index)));
                }
                Outcome::Ready => ready = true,
                Outcome::Broken(error) => return Err(error.to_string()),
                Outcome::Durable { .. } | Outcome::Trimmed => {}
            }
        }
        if ready {
            self.starts += 1;
            io.put_blob(STARTS, format!("{}\n", self.starts).into_bytes(), STARTS_OP);
        }
        Ok(())
    }

    pub fn finish(self, io: &mut dyn Io) -> Result<Server, String> {
        let control = &self.config.control;
        let (stored, state) =
            self.snapshot.map_or((None, State::new()), |(stored, state)| (Some(stored), state));
        let base = match &stored {
            Some(Stored { meta: SnapshotMeta { index, term, conf, .. }, .. }) => {
                Base { index: *index, term: *term, conf: conf.clone() }
            }
            None if control.bootstrap => Base::first_quorum(control.peers.iter().map(|p| p.id.0).collect()),
            None => Base::default(),
        };
        let store = self.replay.finish(&base).map_err(|why| format!("{JOURNAL}: {why}"))?;
        let consensus = Consensus::new(control.id, store, base.index, io.random())?;
        let removed = stored.as_ref().map(|s| s.meta.removed.clone()).unwrap_or_default();
        let Phase::Journal(journal) = self.phase else { return Err(format!("{JOURNAL} is not open")) };
        let log = LogFile::new(journal, self.records, SnapshotStore::new(self.files, stored), base.index);
        tracing::info!(
            name: "mds_started", mds = control.id.0, cluster = control.cluster, start = self.starts,
            snapshot = base.index, last = consensus.last_index(), term = consensus.term(),
        );
        // Room for four thousand million connections per start.
        let generation = self.starts << 32;
        Ok(Server::new(self.config, consensus, log, state, base.index, removed, generation, io))
    }
}

fn corrupt(slot: usize, why: &str) -> String {
    format!("file {} is corrupt: {why}; remove this MDS from the cluster and add a new one", FILES[slot])
}
