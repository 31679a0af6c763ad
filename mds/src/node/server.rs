//! The running server: one event after another, raft's batches carried out, the state applied.
//!
//! After every event [`Server::pump`] runs until raft has nothing more to do. A reply to a mutation is sent where its
//! entry is applied, which is behind its being durable on a majority.

use super::master::{Master, Waiter};
use super::metrics::Requests;
use super::times::Times;
use super::{HAND_OVER, MdsConfig};
use crate::consensus::{Batch, Consensus, TICK};
use crate::log_file::{LogEvent, LogFile};
use crate::net::{Net, NetEvent};
use crate::snapshot_file::SnapshotMeta;
use crate::state::{Command, Effect, Outcome, State, config};
use crate::transfer::{Inbox, Outbox, TRANSFER_OP};
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use shards::service::REMOVED;
use shards::{Buf, ConnId, Event, Io, TimerId, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;
use wire::hello::{Peer, Rules};
use wire::{Frame, Head, Kind, MdsId};

const TICK_TIMER: TimerId = TimerId(0x04 << 56 | 1);

/// So many files and chunks put off the next snapshot by one log entry.
const ROWS_PER_ENTRY: u64 = 4;
/// Pause after a snapshot file could not be written.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);

pub struct Server {
    pub(super) config: MdsConfig,
    pub(super) me: MdsId,
    pub(super) consensus: Consensus,
    pub(super) state: State,
    /// Last log entry applied (the state itself does not see entries of raft's own).
    pub(super) applied: u64,
    /// Servers taken out of the cluster, replicated like the state.
    pub(super) removed: BTreeSet<MdsId>,
    pub(super) net: Net,
    pub(super) master: Option<Master>,
    pub(super) requests: Requests,
    pub(super) times: Times,
    pub(super) started_at: Timestamp,
    /// When another server last sent a message of raft.
    pub(super) raft_heard: Timestamp,
    log: LogFile,
    outbox: Outbox,
    inbox: Inbox,
    /// Raft asked for a newer snapshot than there is.
    wants_newer: bool,
    stopping: Option<Timestamp>,
    snapshot_not_before: Timestamp,
    /// When to try again to keep this node's certificate.
    pub(super) renew_at: Timestamp,
}

impl Server {
    pub fn new(
        config: MdsConfig,
        consensus: Consensus,
        log: LogFile,
        state: State,
        applied: u64,
        removed: Vec<MdsId>,
        generation: u64,
        io: &mut dyn Io,
    ) -> Server {
        let me = config.control.id;
        let net = Net::new(&config.control.cluster, config.credentials.clone(), me, generation);
        let times = Times::new(config.slow_request);
        let mut server = Server {
            config,
            me,
            consensus,
            state,
            applied,
            removed: removed.into_iter().collect(),
            net,
            master: None,
            requests: Requests::default(),
            times,
            started_at: io.now(),
            raft_heard: io.now(),
            log,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            wants_newer: false,
            stopping: None,
            snapshot_not_before: Timestamp(0),
            renew_at: Timestamp(0),
        };
        server.update_members(io);
        server.watch_rules(io);
        io.set_timer(io.now().after(TICK), TICK_TIMER);
        server
    }

    pub fn is_ready_master(&self) -> bool {
        self.master.as_ref().is_some_and(|m| m.ready)
    }

    pub fn applied_digest(&self) -> (u64, u64) {
        (self.applied, self.state.digest())
    }

    /// Bytes of the journal in use, and its size.
    pub(super) fn journal_fill(&self) -> (u64, u64) {
        self.log.fill()
    }

    pub fn log_range(&self) -> (u64, u64) {
        (self.consensus.first_index(), self.log.snapshot_index())
    }

    /// An error means that the server can't go on.
    pub fn handle(&mut self, event: Event<super::Look>, io: &mut dyn Io) -> Result<(), String> {
        match event {
            Event::Accepted { conn, peer } => self.net.accepted(conn, peer, io),
            Event::Frame { conn, frame } => {
                let events = self.net.on_frame(conn, frame, io);
                self.on_net(events, io);
            }
            Event::Closed { conn, why } => {
                let events = self.net.on_closed(conn, &why, io.now());
                self.on_net(events, io);
            }
            Event::Disk { op, result } if op.0 >> 56 == TRANSFER_OP >> 56 => {
                if let Some(broken) = self.outbox.on_disk(op, result, io) {
                    self.consensus.snapshot_failed(broken);
                }
            }
            Event::Disk { op, result } => {
                let events = self.log.on_disk(op, result, io);
                self.inbox.tell(&self.log.snapshots, io);
                self.on_log(events, io)?;
            }
            Event::Timer { id: TICK_TIMER } => {
                if self.may_leave(io.now()) {
                    let me = self.me;
                    return Err(format!("MDS#{me} {REMOVED}: delete its directory"));
                }
                self.tick(io);
            }
            Event::Shutdown => self.shutdown(io),
            Event::Start | Event::Connected { .. } | Event::Timer { .. } => {}
            Event::Message(done) => done(self.figures(io.now())),
        }
        self.pump(io)
    }

    fn tick(&mut self, io: &mut dyn Io) {
        io.set_timer(io.now().after(TICK), TICK_TIMER);
        if let Some(since) = self.stopping
            && (!self.consensus.is_leader() || io.now().since(since) > HAND_OVER)
        {
            io.stop(Ok(()));
        }
        self.consensus.tick();
        self.watch_rules(io);
        let events = self.net.tick(io);
        self.on_net(events, io);
        let consensus = &self.consensus;
        for late in self.outbox.sweep(io.now(), &|id| consensus.awaits_snapshot(id)) {
            self.consensus.snapshot_failed(late);
        }
        self.master_tick(io);
    }

    pub(super) fn encrypts(&self) -> bool {
        self.state.config_number(config::ENCRYPT) != 0
    }

    /// Does as the state says whom to talk to and how, once that has changed.
    fn watch_rules(&mut self, io: &mut dyn Io) {
        let master = self.consensus.leader().and_then(|id| self.client_addr_of(id));
        // Until the first master has entered it, the password is what this server was made with.
        let foundation = self.config.foundation.as_ref().map(|f| &f.password);
        self.net.set_gate(self.state.password().or(foundation), master, self.consensus.is_leader());
        let rules = Rules { encrypts: self.encrypts(), taken_out: self.state.taken_out() };
        let events = self.net.set_rules(rules, io);
        self.on_net(events, io);
        self.renew_own(io);
    }

    fn shutdown(&mut self, io: &mut dyn Io) {
        let handing_over = self.consensus.is_leader() && self.consensus.hand_over(self.me);
        tracing::info!(name: "mds_stopping", mds = self.me.0, handing_over);
        if handing_over {
            self.stopping = Some(io.now());
        } else {
            io.stop(Ok(()));
        }
    }

    /// Works until raft has nothing more to do.
    pub(super) fn pump(&mut self, io: &mut dyn Io) -> Result<(), String> {
        loop {
            self.check_role(io);
            self.launch(io);
            let Some(batch) = self.consensus.next_batch() else { break };
            self.carry_out(batch, io)?;
        }
        self.serve_reads(io);
        // What raft wanted of it, it has taken.
        self.inbox.settle(&mut self.log.snapshots, io);
        self.snapshots(io);
        Ok(())
    }

    fn carry_out(&mut self, batch: Batch, io: &mut dyn Io) -> Result<(), String> {
        self.send_raft(batch.messages, io);
        if let Some(snapshot) = batch.snapshot {
            self.install(&snapshot, io)?;
        }
        if let Some(persist) = batch.persist {
            self.log.append(persist, io);
        }
        if let Some(last) = batch.committed.last().map(|e| e.index) {
            for entry in batch.committed {
                self.apply(entry, io)?;
            }
            self.consensus.applied(last);
        }
        if let Some(master) = &mut self.master {
            for (number, index) in batch.reads {
                master.reads.proved(number, index);
            }
        }
        Ok(())
    }

    fn on_log(&mut self, events: Vec<LogEvent>, io: &mut dyn Io) -> Result<(), String> {
        for event in events {
            match event {
                LogEvent::Durable(number) => {
                    let messages = self.consensus.durable(number);
                    self.send_raft(messages, io);
                }
                LogEvent::SnapshotStored { installed } => {
                    let index = self.log.snapshot_index();
                    tracing::info!(name: "snapshot_stored", index, installed);
                    self.offer();
                    if installed {
                        let messages = self.consensus.installed();
                        self.send_raft(messages, io);
                    }
                    let needed = self.outbox.oldest_index().map_or(index, |oldest| oldest.min(index));
                    self.consensus.compact(needed.saturating_sub(self.config.keep_entries));
                }
                // It would only gather in memory what it can't record.
                LogEvent::SnapshotFailed(why) if self.log.is_full() => {
                    return Err(format!(
                        "{why}, and the journal is full: nothing can be recorded any more. Free some space in this server's \
                         directory and start it anew; the other metadata servers go on while they are a majority"
                    ));
                }
                LogEvent::SnapshotFailed(why) => {
                    tracing::error!(name: "snapshot_failed", why, "free some space: the raft log can't be cut");
                    if let Some(conn) = self.inbox.give_up() {
                        let events = self.net.drop_conn(conn, &why, io);
                        self.on_net(events, io);
                    }
                    self.snapshot_not_before = io.now().after(SNAPSHOT_RETRY);
                }
                LogEvent::Broken(why) => return Err(why),
            }
        }
        Ok(())
    }

    fn send_raft(&mut self, messages: Vec<Message>, io: &mut dyn Io) {
        for message in messages {
            let to = MdsId(message.to);
            let sent = if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(to, message, io)
            } else {
                let meta = message.write_to_bytes().expect("a raft message always serialises");
                self.net.send_to(to, &Frame::new(Head::new(Kind::Raft, 0), &meta, Buf::empty()), io)
            };
            if !sent {
                self.consensus.report_unreachable(to);
            }
        }
    }

    fn send_snapshot(&mut self, to: MdsId, message: Message, io: &mut dyn Io) -> bool {
        let index = message.get_snapshot().get_metadata().index;
        match (self.log.snapshots.newest(), self.net.line(to)) {
            (Some(newest), Some(conn)) if newest.meta.index == index => {
                self.outbox.begin(to, conn, newest, self.log.snapshots.file(newest.slot), message, io);
                true
            }
            _ => {
                self.consensus.snapshot_failed(to);
                false
            }
        }
    }

    /// Makes snapshots: for the journal's sake, and for servers that lag behind the log in memory.
    fn snapshots(&mut self, io: &mut dyn Io) {
        let is_leader = self.consensus.is_leader();
        if self.consensus.wants_snapshot() && is_leader {
            self.wants_newer = !self.offer();
        }
        if !is_leader {
            self.outbox.clear();
            self.consensus.offer_snapshot(None);
        }
        let since = self.applied.saturating_sub(self.log.snapshot_index());
        let due = self.log.wants_snapshot() || since >= self.snapshot_entries() || self.wants_newer;
        let store = &self.log.snapshots;
        if !due || since == 0 || store.is_writing() || io.now() < self.snapshot_not_before {
            return;
        }
        if self.outbox.uses(store.next_slot()) {
            // The file that is being sent stays as it is, unless nothing can be recorded otherwise.
            if !self.log.is_full() {
                return;
            }
            for cut_off in self.outbox.clear() {
                self.consensus.snapshot_failed(cut_off);
            }
        }
        self.wants_newer = false;
        let meta = self.snapshot_meta();
        tracing::info!(name: "snapshot_begun", index = meta.index);
        self.log.snapshots.begin(meta, self.state.snapshot(), io);
    }

    /// A large state is not written anew for few changes.
    fn snapshot_entries(&self) -> u64 {
        let rows = self.state.file_count() + self.state.chunk_count();
        self.config.snapshot_entries.max(rows / ROWS_PER_ENTRY)
    }

    /// Lets raft send the newest snapshot. False if it could before.
    fn offer(&mut self) -> bool {
        let newest = self.log.snapshots.newest().filter(|_| self.consensus.is_leader());
        let Some(meta) = newest.map(|newest| newest.meta.for_raft()) else { return false };
        self.consensus.offer_snapshot(Some(meta))
    }

    fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            index: self.applied,
            term: self.consensus.term_of(self.applied).expect("the term of an applied entry is kept"),
            conf: self.consensus.conf(),
            removed: self.removed.iter().copied().collect(),
        }
    }

    /// Replaces the state by the master's.
    fn install(&mut self, snapshot: &Snapshot, io: &mut dyn Io) -> Result<(), String> {
        let index = snapshot.get_metadata().index;
        let arrived = self.inbox.accept(index).ok_or_else(|| format!("no snapshot {index} has arrived"))?;
        let (meta, state) = arrived;
        self.state = state;
        tracing::info!(name: "snapshot_installed", mds = self.me.0, index);
        self.applied = index;
        self.removed = meta.removed.iter().copied().collect();
        self.log.snapshots.seal(meta, io);
        self.update_members(io);
        Ok(())
    }

    fn apply(&mut self, entry: Entry, io: &mut dyn Io) -> Result<(), String> {
        assert!(entry.index > self.applied, "entry {} applied after {}", entry.index, self.applied);
        self.applied = entry.index;
        if entry.get_entry_type() != EntryType::EntryNormal {
            self.consensus.apply_conf_change(&entry);
            self.update_members(io);
            return Ok(());
        }
        if entry.get_data().is_empty() {
            return Ok(()); // raft's own: the first entry of a term
        }
        let command =
            Command::decode(entry.get_data()).map_err(|why| format!("log entry {}: {why}", entry.index))?;
        let outcome = self.state.apply(entry.index, &command);
        self.note_members(&outcome, io);
        self.master_applied(entry.index, entry.term, outcome, io);
        Ok(())
    }

    /// What every server, master or not, must know of a command's effects.
    fn note_members(&mut self, outcome: &Outcome, io: &mut dyn Io) {
        let mut changed = false;
        for effect in &outcome.effects {
            match effect {
                Effect::MdsChanged { id, removed: true } => changed |= self.removed.insert(*id),
                Effect::MdsChanged { .. } => changed = true,
                _ => {}
            }
        }
        if changed {
            self.update_members(io);
        }
    }

    pub(super) fn on_net(&mut self, events: Vec<NetEvent>, io: &mut dyn Io) {
        for event in events {
            match event {
                NetEvent::LineDown { mds } => {
                    self.consensus.report_unreachable(mds);
                    if self.outbox.line_down(mds) {
                        self.consensus.snapshot_failed(mds);
                    }
                }
                NetEvent::Newcomer { conn, frame } => self.on_newcomer(conn, frame, io),
                NetEvent::WrongPassword { from, last } => self.wrong_password(from, last, io),
                NetEvent::Gone { conn, peer, why } => self.gone(conn, peer, &why, io),
                NetEvent::Frame { conn, peer, frame } => self.on_frame(conn, peer, frame, io),
            }
        }
    }

    fn gone(&mut self, conn: ConnId, peer: Peer, why: &str, io: &mut dyn Io) {
        self.inbox.forget(conn, &mut self.log.snapshots, io);
        self.times.gone(conn);
        if let Some(master) = &mut self.master {
            master.sessions.disconnected(conn);
        }
        if let Peer::CsShard { cs, shard, .. } = peer {
            tracing::info!(name: "cs_shard_disconnected", cs = cs.0, shard = shard.0, why);
            self.cs_disconnected(conn, io);
        }
    }

    fn on_frame(&mut self, conn: ConnId, peer: Peer, frame: Frame, io: &mut dyn Io) {
        let outcome = match (frame.head.kind, peer) {
            (Kind::Raft, Peer::Mds { mds, .. }) => self.on_raft(mds, &frame, io),
            (Kind::RaftSnapshot, Peer::Mds { .. }) => {
                self.raft_heard = io.now();
                self.inbox.piece(conn, &frame, &mut self.log.snapshots, io)
            }
            (Kind::RaftSnapshotTaken, Peer::Mds { mds, .. }) => {
                self.outbox.taken(mds, &frame, io);
                Ok(())
            }
            (Kind::RaftSnapshotDone, Peer::Mds { mds, .. }) => {
                self.inbox.done(conn, &frame).map(|message| self.step(mds, message))
            }
            (Kind::MdsRequest, Peer::Client { .. } | Peer::Tool) => self.on_mds_frame(conn, frame, io),
            (Kind::CsRequest, Peer::CsShard { cs, shard, .. }) => {
                self.on_cs_frame(conn, cs, shard, frame, io)
            }
            (kind, _) => Err(format!("{kind:?} from {peer:?}")),
        };
        if let Err(why) = outcome {
            tracing::warn!(name: "bad_request", ?peer, why);
            let events = self.net.drop_conn(conn, &why, io);
            self.on_net(events, io);
        }
    }

    fn on_raft(&mut self, from: MdsId, frame: &Frame, io: &mut dyn Io) -> Result<(), String> {
        let message = Message::parse_from_bytes(&frame.meta).map_err(|e| format!("raft message: {e}"))?;
        self.raft_heard = io.now();
        self.step(from, message);
        Ok(())
    }

    fn step(&mut self, from: MdsId, message: Message) {
        // A server that has left the cluster has no say any more.
        let gone = self.removed.contains(&from) && !self.votes(from);
        if message.from == from.0 && message.to == self.me.0 && !gone {
            self.consensus.step(message);
        }
    }

    /// Proposes a command; `waiter` hears of its outcome. On failure the waiter comes back.
    pub(super) fn propose(&mut self, command: &Command, waiter: Waiter) -> Result<(), Waiter> {
        let (Some(master), bytes) = (&mut self.master, command.encode()) else { return Err(waiter) };
        match self.consensus.propose(bytes) {
            Some(at) => {
                master.proposals.insert(at.index, (at.term, waiter));
                Ok(())
            }
            None => Err(waiter),
        }
    }
}
