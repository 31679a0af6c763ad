//! The raft crate, wrapped: what goes in (ticks, messages, proposals), what comes out ([`Batch`]). No I/O.
//!
//! Invariants:
//! - a message that promises something (a vote, an acknowledged entry) leaves only after what it promises is durable:
//!   such messages wait here until [`Consensus::durable`] is told;
//! - batches are made durable in order; a later one may be written earlier but is reported only behind its forerunners;
//! - nothing here depends on chance beyond the seed. The raft crate draws election timeouts from the thread's random
//!   numbers; [`Consensus::tick`] replaces each drawn value by one computed from seed, term and role before it is
//!   compared, so one seed gives one run.
//!
//! Figures: a tick of 50 ms, heartbeats every 100 ms, an election after 0.5 to 1 s of silence, so a dead master is
//! replaced in about 1 s. The timer is re-armed after each tick, so a server that was stopped for a while sees one
//! tick, not many, and does not depose a healthy master.

use crate::raft_log::{MAX_COMMAND_BYTES, RaftStore, encode_record};
use crate::raft_logger;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message, Snapshot,
    SnapshotMetadata,
};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, StateRole};
use std::collections::VecDeque;
use std::time::Duration;
use wire::MdsId;

pub const TICK: Duration = Duration::from_millis(50);
const HEARTBEAT_TICKS: usize = 2;
const ELECTION_TICKS: usize = 10;
const MAX_ELECTION_TICKS: usize = 20;
/// Bytes of entries in one message.
const MESSAGE_BYTES: u64 = 1 << 20;
const MESSAGES_IN_FLIGHT: usize = 64;
/// Entries applied in one go: bounds the time between two looks at the network.
const APPLY_BYTES: u64 = 8 << 20;
/// Proposed and not yet committed; beyond it proposals are refused until the quorum catches up.
const UNCOMMITTED_BYTES: u64 = 64 << 20;

/// What is to be done next, in the order of the fields.
#[derive(Default)]
pub struct Batch {
    /// To be sent now.
    pub messages: Vec<Message>,
    /// Replaces the state; to be stored as the snapshot file, then [`Consensus::installed`].
    pub snapshot: Option<Snapshot>,
    /// To be written to the journal, then [`Consensus::durable`].
    pub persist: Option<Persist>,
    /// To be applied to the state, then [`Consensus::applied`].
    pub committed: Vec<Entry>,
    /// Read batches whose answer may be given once the state has applied this index.
    pub reads: Vec<(u64, u64)>,
}

pub struct Persist {
    pub number: u64,
    pub record: Vec<u8>,
    /// Index of the last entry in the record; 0 without entries.
    pub last_entry: u64,
}

/// Something that must become durable before its messages may leave.
struct Waiting {
    number: u64,
    record_durable: bool,
    /// Index of the snapshot to be stored with it, and whether it is.
    snapshot: Option<(u64, bool)>,
    messages: Vec<Message>,
}

pub struct Consensus {
    node: RawNode<RaftStore>,
    seed: u64,
    waiting: VecDeque<Waiting>,
}

/// A place in the log where a proposal of this server will stand, if it is committed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LogPosition {
    pub term: u64,
    pub index: u64,
}

/// Progress of another server, as the master sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberProgress {
    pub matched: u64,
    pub recently_heard: bool,
    pub voter: bool,
}

impl Consensus {
    /// `applied`: index up to which the state was restored.
    pub fn new(me: MdsId, store: RaftStore, applied: u64, seed: u64) -> Result<Consensus, String> {
        let config = Config {
            id: me.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: MAX_ELECTION_TICKS,
            applied,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: MESSAGES_IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            max_committed_size_per_ready: APPLY_BYTES,
            ..Config::default()
        };
        let node = RawNode::new(&config, store, &raft_logger::logger(me.0)).map_err(|e| e.to_string())?;
        Ok(Consensus { node, seed, waiting: VecDeque::new() })
    }

    pub fn tick(&mut self) {
        // A server whose snapshot is not stored yet has not applied it for raft and could not stand for election.
        if self.waiting.iter().any(|w| w.snapshot.is_some()) {
            return;
        }
        let raft = &mut self.node.raft;
        let spread = (MAX_ELECTION_TICKS - ELECTION_TICKS) as u64;
        let drawn = mix(self.seed ^ mix(raft.term.wrapping_mul(4) + raft.state as u64)) % spread;
        raft.set_randomized_election_timeout(ELECTION_TICKS + drawn as usize);
        self.node.tick();
    }

    /// A message from another server. What it means for a server that does not know the sender is raft's matter.
    pub fn step(&mut self, message: Message) {
        if let Err(error) = self.node.step(message) {
            tracing::debug!(name: "raft_step_refused", %error);
        }
    }

    /// Proposes a command. `None` when this server is not the master, or the quorum can't keep up.
    pub fn propose(&mut self, command: Vec<u8>) -> Option<LogPosition> {
        assert!(command.len() <= MAX_COMMAND_BYTES, "command of {} bytes", command.len());
        if !self.is_leader() || self.node.propose(Vec::new(), command).is_err() {
            return None;
        }
        Some(LogPosition { term: self.node.raft.term, index: self.node.raft.raft_log.last_index() })
    }

    /// Asks for proof that this server is still the master; answered by [`Batch::reads`], or never.
    pub fn read_index(&mut self, batch: u64) {
        self.node.read_index(batch.to_le_bytes().to_vec());
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The master as far as this server knows.
    pub fn leader(&self) -> Option<MdsId> {
        Some(self.node.raft.leader_id).filter(|&id| id != 0).map(MdsId)
    }

    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    pub fn first_index(&self) -> u64 {
        self.node.store().first()
    }

    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    pub fn commit(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Whether the state holds everything that earlier masters had committed.
    pub fn caught_up(&self) -> bool {
        self.is_leader() && self.node.raft.apply_to_current_term()
    }

    /// The next things to do; `None` when all is done. After each batch call again.
    pub fn next_batch(&mut self) -> Option<Batch> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let mut batch = Batch { messages: ready.take_messages(), ..Batch::default() };
        let number = ready.number();
        let store = self.node.mut_store();
        if !ready.snapshot().is_empty() {
            store.install(ready.snapshot().get_metadata());
            batch.snapshot = Some(ready.snapshot().clone());
        }
        store.append(ready.entries());
        if let Some(hard) = ready.hs() {
            store.set_hard_state(hard.clone());
        }
        batch.committed = ready.take_committed_entries();
        batch.reads = ready
            .take_read_states()
            .into_iter()
            .filter_map(|r| Some((u64::from_le_bytes(r.request_ctx.try_into().ok()?), r.index)))
            .collect();
        let messages = ready.take_persisted_messages();
        let must_write = ready.must_sync();
        if must_write {
            let record = encode_record(store.hard_state(), ready.entries());
            let last_entry = ready.entries().last().map_or(0, |e| e.index);
            batch.persist = Some(Persist { number, record, last_entry });
        }
        let snapshot = batch.snapshot.as_ref().map(|s| (s.get_metadata().index, false));
        self.node.advance_append_async(ready);
        if must_write || snapshot.is_some() || !self.waiting.is_empty() {
            let record_durable = !must_write;
            self.waiting.push_back(Waiting { number, record_durable, snapshot, messages });
        } else {
            batch.messages.extend(messages);
            self.node.on_persist_ready(number);
        }
        Some(batch)
    }

    /// The record of this number is in the journal. Returns messages that may leave now.
    pub fn durable(&mut self, number: u64) -> Vec<Message> {
        if let Some(w) = self.waiting.iter_mut().find(|w| w.number == number) {
            w.record_durable = true;
        }
        self.release()
    }

    /// The snapshot file up to `index` is stored. Returns messages that may leave now.
    pub fn installed(&mut self) -> Vec<Message> {
        let mut snapshots = self.waiting.iter_mut().filter_map(|w| w.snapshot.as_mut());
        if let Some((_, durable)) = snapshots.find(|(_, durable)| !*durable) {
            *durable = true;
        }
        self.release()
    }

    fn release(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let stored = |w: &Waiting| w.record_durable && w.snapshot.is_none_or(|(_, durable)| durable);
        while self.waiting.front().is_some_and(stored) {
            let done = self.waiting.pop_front().expect("the front was looked at");
            messages.extend(done.messages);
            self.node.on_persist_ready(done.number);
            if let Some((index, _)) = done.snapshot {
                self.node.advance_apply_to(index);
            }
        }
        messages
    }

    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
    }

    /// Applies a committed change of membership. A change that raft refuses changes nothing on any server.
    pub fn apply_conf_change(&mut self, entry: &Entry) {
        let outcome = match entry.get_entry_type() {
            EntryType::EntryConfChange => ConfChange::parse_from_bytes(entry.get_data())
                .map_err(|e| e.to_string())
                .and_then(|cc| self.node.apply_conf_change(&cc).map_err(|e| e.to_string())),
            _ => ConfChangeV2::parse_from_bytes(entry.get_data())
                .map_err(|e| e.to_string())
                .and_then(|cc| self.node.apply_conf_change(&cc).map_err(|e| e.to_string())),
        };
        match outcome {
            Ok(conf) => {
                tracing::info!(name: "quorum_changed", voters = ?conf.voters, learners = ?conf.learners)
            }
            Err(error) => tracing::warn!(name: "quorum_change_refused", index = entry.index, %error),
        }
    }

    /// Proposes that a server becomes a learner, a voter, or leaves. One change at a time: `false` if it must wait.
    pub fn propose_member(&mut self, id: MdsId, kind: ConfChangeType) -> bool {
        if !self.is_leader() || self.node.raft.has_pending_conf() {
            return false;
        }
        let mut change = ConfChange::default();
        change.set_change_type(kind);
        change.set_node_id(id.0);
        self.node.propose_conf_change(Vec::new(), change).is_ok()
    }

    /// Members of the quorum as of what this server has applied.
    pub fn conf(&self) -> ConfState {
        self.node.raft.prs().conf().to_conf_state()
    }

    /// Every member in order of id, with its progress (known to the master only).
    pub fn members(&self) -> Vec<(MdsId, MemberProgress)> {
        let conf = self.conf();
        let tracker = self.node.raft.prs();
        let progress = |&id: &u64| {
            let p = tracker.get(id)?;
            let voter = conf.voters.contains(&id);
            Some((MdsId(id), MemberProgress { matched: p.matched, recently_heard: p.recent_active, voter }))
        };
        let mut ids: Vec<u64> = conf.voters.iter().chain(&conf.learners).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids.iter().filter_map(progress).collect()
    }

    /// Hands the mastership to a voter that has everything, if there is one. False if there is none.
    pub fn hand_over(&mut self, me: MdsId) -> bool {
        let commit = self.commit();
        let to = self
            .members()
            .into_iter()
            .filter(|(id, p)| *id != me && p.voter && p.recently_heard)
            .max_by_key(|(id, p)| (p.matched, id.0));
        match to {
            Some((id, p)) if p.matched + 1000 >= commit => {
                self.node.transfer_leader(id.0);
                true
            }
            _ => false,
        }
    }

    pub fn report_unreachable(&mut self, id: MdsId) {
        self.node.report_unreachable(id.0);
    }

    /// A snapshot that was being sent did not arrive.
    pub fn snapshot_failed(&mut self, id: MdsId) {
        tracing::info!(name: "snapshot_not_taken", mds = id.0);
        self.node.report_snapshot(id.0, raft::SnapshotStatus::Failure);
    }

    /// Whether raft still waits for this server to take the snapshot sent to it.
    pub fn awaits_snapshot(&self, id: MdsId) -> bool {
        self.is_leader() && self.node.raft.prs().get(id.0).is_some_and(|p| p.state == ProgressState::Snapshot)
    }

    /// Whether raft asked for a snapshot to send since the last call.
    pub fn wants_snapshot(&mut self) -> bool {
        self.node.mut_store().take_wanted()
    }

    /// Lets raft send this snapshot; `None` takes it back. False if it could before.
    pub fn offer_snapshot(&mut self, meta: Option<SnapshotMetadata>) -> bool {
        self.node.mut_store().offer(meta)
    }

    pub fn term_of(&self, index: u64) -> Option<u64> {
        self.node.raft.raft_log.term(index).ok()
    }

    /// Forgets entries up to `index`.
    pub fn compact(&mut self, index: u64) {
        self.node.mut_store().compact(index);
    }
}

/// SplitMix64's finaliser.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_log::{Base, Replay};

    fn alone() -> Consensus {
        let base = Base::first_quorum(vec![1]);
        let store = Replay::default().finish(&base).unwrap();
        Consensus::new(MdsId(1), store, base.index, 7).unwrap()
    }

    #[test]
    fn a_single_server_elects_itself_only_after_its_vote_is_durable() {
        let mut c = alone();
        let mut persisted = Vec::new();
        for _ in 0..40 {
            c.tick();
            while let Some(batch) = c.next_batch() {
                assert!(batch.committed.is_empty());
                persisted.extend(batch.persist.map(|p| p.number));
            }
        }
        assert!(!persisted.is_empty(), "the vote and the first entry want to be written");
        assert!(!c.caught_up(), "nothing is committed before it is durable");
        for _ in 0..4 {
            for number in std::mem::take(&mut persisted) {
                assert!(c.durable(number).is_empty());
            }
            while let Some(batch) = c.next_batch() {
                persisted.extend(batch.persist.map(|p| p.number));
                if let Some(last) = batch.committed.last() {
                    c.applied(last.index);
                }
            }
        }
        assert!(c.caught_up());
        let at = c.propose(vec![1, 2, 3]).unwrap();
        let batch = c.next_batch().unwrap();
        assert!(batch.committed.is_empty(), "not durable yet");
        c.durable(batch.persist.unwrap().number);
        let batch = c.next_batch().unwrap();
        assert_eq!(batch.committed.last().unwrap().index, at.index);
    }
}
