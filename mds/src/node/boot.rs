//! From the files on disk to a running server.
//!
//! Order: ports, snapshot file, journal, start counter. The counter (`starts`) is written after the journal is ready
//! and before anything is promised, so its absence means that the journal was never used and may be made anew, even if
//! a crash left half of one. It also numbers this server's connections.

use super::MdsConfig;
use super::server::Server;
use crate::consensus::Consensus;
use crate::log_file::{self, JOURNAL, LogFile, SNAPSHOT};
use crate::raft_log::{Base, Replay, SnapshotFile, decode_record};
use crate::state::State;
use shards::journal::{Journal, Outcome, Position};
use shards::{Event, Io, OpId};
use std::collections::VecDeque;
use std::convert::Infallible;

const STARTS: &str = "starts";
const STARTS_OP: OpId = OpId(0x04 << 56 | 1);

pub struct Boot {
    config: MdsConfig,
    journal: Journal,
    replay: Replay,
    records: VecDeque<(Position, u64)>,
    snapshot: Option<SnapshotFile>,
    starts: u64,
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
        let snapshot = match io.get_blob(SNAPSHOT).map_err(|e| format!("reading {SNAPSHOT}: {e}"))? {
            None => None,
            Some(bytes) => Some(SnapshotFile::decode(&bytes).map_err(|why| {
                format!(
                    "file {SNAPSHOT} is corrupt: {why}; remove this MDS from the cluster and add a new one"
                )
            })?),
        };
        let starts = match io.get_blob(STARTS).map_err(|e| format!("reading {STARTS}: {e}"))? {
            None => 0,
            Some(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .ok_or_else(|| format!("file {STARTS} is corrupt: a number is expected"))?,
        };
        let journal = if starts == 0 {
            Journal::create(io, JOURNAL, config.journal_bytes)
        } else {
            Journal::open(io, JOURNAL, |_, _| true)
        };
        let journal = journal.map_err(|e| e.to_string())?;
        let (replay, records) = (Replay::default(), VecDeque::new());
        Ok(Boot { config, journal, replay, records, snapshot, starts })
    }

    /// True when the server can run.
    pub fn handle(&mut self, event: Event<Infallible>, io: &mut dyn Io) -> Result<bool, String> {
        match event {
            Event::Disk { op: STARTS_OP, result } => {
                result.map_err(|e| format!("writing {STARTS}: {e}"))?;
                return Ok(true);
            }
            Event::Disk { op, result } => {
                self.journal.on_disk(io, op, result);
                self.take_outcomes(io)?;
            }
            // Nobody is answered before the log is known.
            Event::Accepted { conn, .. } => io.close(conn),
            Event::Shutdown => io.stop(Ok(())),
            _ => {}
        }
        Ok(false)
    }

    fn take_outcomes(&mut self, io: &mut dyn Io) -> Result<(), String> {
        let mut ready = false;
        for outcome in self.journal.outcomes() {
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
        let base = match &self.snapshot {
            Some(s) => Base { index: s.index, term: s.term, conf: s.conf.clone() },
            None if control.bootstrap => Base::first_quorum(control.peers.iter().map(|p| p.id.0).collect()),
            None => Base::default(),
        };
        let store = self.replay.finish(&base).map_err(|why| format!("{JOURNAL}: {why}"))?;
        let state = match &self.snapshot {
            Some(s) => State::restore(&s.state).map_err(|why| format!("file {SNAPSHOT}: {why}"))?,
            None => State::new(),
        };
        let consensus = Consensus::new(control.id, store, base.index, io.random())?;
        let removed = self.snapshot.map(|s| s.removed).unwrap_or_default();
        let log = LogFile::new(self.journal, self.records, base.index);
        tracing::info!(
            name: "mds_started", mds = control.id.0, cluster = control.cluster, start = self.starts,
            snapshot = base.index, last = consensus.last_index(), term = consensus.term(),
        );
        // Room for four thousand million connections per start.
        let generation = self.starts << 32;
        Ok(Server::new(self.config, consensus, log, state, base.index, removed, generation, io))
    }
}
