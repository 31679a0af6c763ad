//! Replication of the chunks of one shard: the protocol of docs/architecture.md, "Replication". Sans-io: events in,
//! [`Action`]s out; local storage is the (sans-io) [`Store`].
//!
//! Invariants:
//! - a client's write is acknowledged only when the local store and every in-sync secondary of the set at that epoch
//!   have it on stable storage, and the set has at least `min_replicas` of them;
//! - writes under way in one chunk never overlap, so the uncommitted tail holds one version of each block at most;
//! - a read never returns bytes of a write that is not committed;
//! - a chunk is served only after every in-sync replica has adopted the epoch and all tails are levelled;
//! - nothing of an epoch older than the one known is accepted, and the known epoch never falls.

mod fill;
mod flights;
mod forks;
mod gone;
mod pace;
mod primary;
mod ranges;
mod secondary;
mod slow;
#[cfg(test)]
mod tests;
mod traces;
mod written;

use crate::latency::Latency;
use crate::scrub::Piece;
use crate::store::{Done, Outcome, Store, StoreError, Ticket};
use ::metrics::Histogram;
use fill::FillKind;
use forks::Fork;
use gone::GivingUp;
use pace::Pace;
use primary::Primary;
use shards::{Buf, ConnId, Io, Timestamp};
use slow::SlowWatch;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use traces::Traces;
use wire::cs_api::{ChunkReport, ChunkSet, CsCommand, CsRequest};
use wire::{ChunkId, CsId, DataMeta, Epoch, Frame, Grant, Head, Kind, LeaseId, Role, Status};
use written::Written;

/// What the state machine wants done.
#[derive(Debug)]
pub enum Action {
    /// To whoever asked on this connection.
    Reply(ConnId, Frame),
    /// To another chunk server's shard.
    ToPeer(SocketAddr, Frame),
    /// To the metadata service, until it is answered.
    ToMds(CsRequest),
}

/// Why a local store operation was started.
enum Purpose {
    /// Local part of a write at this sequence, in this activation.
    Flight {
        chunk: ChunkId,
        activation: u64,
        sequence: u64,
    },
    /// Client's read.
    Read {
        conn: ConnId,
        head: Head,
        chunk: ChunkId,
        /// When the request came, and when the store was asked.
        since: Timestamp,
        began: Timestamp,
    },
    /// Own bytes of a range, to be sent to others as a new write.
    Copy {
        chunk: ChunkId,
        activation: u64,
        sequence: u64,
        /// What can't be read is gone.
        give_up: bool,
    },
    /// Adopting an epoch as primary.
    Adopt {
        chunk: ChunkId,
        activation: u64,
    },
    /// As secondary: a forwarded write.
    Forwarded {
        conn: ConnId,
        head: Head,
        began: Timestamp,
    },
    /// As secondary: adopting an epoch for Prepare.
    Prepare {
        conn: ConnId,
        head: Head,
    },
    Sums {
        conn: ConnId,
        head: Head,
    },
    Delete {
        chunk: ChunkId,
    },
    Fork {
        to: ChunkId,
    },
    Scrub {
        piece: Piece,
    },
}

/// A chunk as this shard knows it, beyond what is stored.
struct Known {
    epoch: Epoch,
    grant: Grant,
    /// Of replicas that are missing, as the metadata service says: the last epoch at which they were in sync.
    in_sync_until: Vec<(CsId, Epoch)>,
    /// Nothing was acknowledged at this epoch and later, as the metadata service says.
    below_minimum_since: Option<Epoch>,
    /// Learners that have everything, as the metadata service was told: members like those in sync from then on.
    joined: Vec<CsId>,
    primary: Option<Primary>,
    /// The metadata service itself has told this set.
    told: bool,
    /// It stands in `Replication::busy`.
    listed: bool,
}

impl Known {
    /// Writes wait.
    fn lacks_minimum(&self) -> bool {
        self.grant.in_sync().count() < usize::from(self.grant.min_replicas)
    }

    /// Whether a replica that was in sync until this epoch has all that was ever acknowledged.
    fn missed_nothing(&self, in_sync_until: Epoch) -> bool {
        let since = self.below_minimum_since.filter(|_| self.lacks_minimum());
        since.is_some_and(|since| in_sync_until.0 + 1 >= since.0)
    }
}

pub struct Replication {
    me: CsId,
    chunks: BTreeMap<ChunkId, Known>,
    /// Every chunk led here with work under way or waiting, and a few whose work has just ended: what happens regularly
    /// looks at these only, so that its cost does not grow with the number of chunks.
    busy: BTreeSet<ChunkId>,
    purposes: HashMap<u64, Purpose>,
    next_ticket: u64,
    next_activation: u64,
    /// Prepares whose epoch is durable, waiting for the chunk to fall quiet.
    prepared: Vec<(ConnId, Head)>,
    written: Written,
    slow: SlowWatch,
    traces: Traces,
    revoked: BTreeSet<LeaseId>,
    /// How long the metadata service lets a client be silent before it takes its leases away; 0: not known yet.
    lease_timeout: Duration,
    /// What had been revoked by then is known here.
    leases_known_at: Timestamp,
    /// Chunks whose watermark the secondaries don't know yet.
    uncommitted_notes: BTreeSet<ChunkId>,
    /// Chunks on their way to Active.
    preparing: BTreeSet<ChunkId>,
    /// Chunks whose own copy is damaged, and whether the MDS has no other replica to lead instead.
    damaged: BTreeMap<ChunkId, bool>,
    /// Chunks whose last copy is damaged, and is needed: what the MDS says about giving up what can't be read.
    giving_up: BTreeMap<ChunkId, GivingUp>,
    /// Forks that were asked for, by their ids to be.
    forks: BTreeMap<ChunkId, Fork>,
    /// Pieces verified: outcome for the scrub.
    scrubbed: Vec<(Piece, bool)>,
    /// Peers that can't be reached now.
    down: BTreeSet<SocketAddr>,
    pace: Pace,
    /// Chunks whose copying waits for the pace.
    held_back: BTreeSet<ChunkId>,
    pub stats: Stats,
    pub latency: Latencies,
    actions: Vec<Action>,
}

/// See `wire::cs_api::Load`.
#[derive(Default)]
pub struct Latencies {
    pub io: Latency,
    pub requests: Latency,
    /// Since the start of the process: `io`, and `requests` by what they do.
    pub io_times: Histogram,
    pub read_times: Histogram,
    pub write_times: Histogram,
}

impl Latencies {
    /// The store has ended a read or write.
    fn io_took(&mut self, time: Duration, now: Timestamp) {
        self.io.took(time, now);
        self.io_times.took(time);
    }

    fn read_took(&mut self, time: Duration, now: Timestamp) {
        self.requests.took(time, now);
        self.read_times.took(time);
    }

    fn write_took(&mut self, time: Duration, now: Timestamp) {
        self.requests.took(time, now);
        self.write_times.took(time);
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reconciliations: u64,
    /// Learners that this shard, as primary, began to send what they lacked, and to send everything; bytes sent so.
    pub catch_ups: u64,
    pub catch_up_bytes: u64,
    pub full_copies: u64,
    pub full_copy_bytes: u64,
}

impl Stats {
    fn count_filled(&mut self, kind: FillKind, bytes: u64) {
        match kind {
            FillKind::CatchUp | FillKind::Reinstate => self.catch_up_bytes += bytes,
            FillKind::Full => self.full_copy_bytes += bytes,
        }
    }
}

impl Replication {
    /// A replica that is much slower than the others for `slow_after` is to be taken out. Requests that take longer than
    /// `slow_request` are logged.
    pub fn new(me: CsId, slow_after: Duration, slow_request: Duration) -> Self {
        Replication {
            me,
            chunks: BTreeMap::new(),
            busy: BTreeSet::new(),
            purposes: HashMap::new(),
            next_ticket: 1,
            next_activation: 1,
            prepared: Vec::new(),
            written: Written::default(),
            slow: SlowWatch::new(slow_after),
            traces: Traces::new(slow_request),
            revoked: BTreeSet::new(),
            lease_timeout: Duration::ZERO,
            leases_known_at: Timestamp(0),
            uncommitted_notes: BTreeSet::new(),
            pace: Pace::default(),
            held_back: BTreeSet::new(),
            preparing: BTreeSet::new(),
            damaged: BTreeMap::new(),
            giving_up: BTreeMap::new(),
            forks: BTreeMap::new(),
            scrubbed: Vec::new(),
            down: BTreeSet::new(),
            stats: Stats::default(),
            latency: Latencies::default(),
            actions: Vec::new(),
        }
    }

    /// What is to be done, in exchange for an empty list.
    pub fn take_actions(&mut self, empty: Vec<Action>) -> Vec<Action> {
        debug_assert!(empty.is_empty());
        std::mem::replace(&mut self.actions, empty)
    }

    /// Chunks served here as primary, and at which epoch.
    pub fn active_chunks(&self) -> impl Iterator<Item = (ChunkId, Epoch)> {
        let active = |k: &Known| k.primary.as_ref().is_some_and(Primary::is_active);
        self.chunks.iter().filter(move |(_, k)| active(k)).map(|(c, k)| (*c, k.epoch))
    }

    /// Replicas that are being filled from here.
    pub fn learners(&self) -> impl Iterator<Item = SocketAddr> {
        let primaries = self.chunks.values().filter_map(|known| known.primary.as_ref());
        primaries.filter(|p| p.is_active()).flat_map(|p| p.learners.keys().copied())
    }

    pub fn active_primaries(&self) -> usize {
        self.active_chunks().count()
    }

    /// Requests under way or waiting.
    pub fn queue_depth(&self) -> usize {
        self.busy_primaries().map(|(_, _, p)| p.load()).sum()
    }

    /// Whether clients have requests under way or waiting; copies to learners don't count.
    pub fn clients_wait(&self) -> bool {
        self.busy_primaries().any(|(_, _, p)| p.clients_wait())
    }

    /// Operations and answers it remembers beyond the requests themselves.
    pub fn remembered(&self) -> usize {
        self.purposes.len() + self.prepared.len() + self.scrubbed.len() + self.actions.len()
    }

    fn busy_primaries(&self) -> impl Iterator<Item = (ChunkId, &Known, &Primary)> {
        self.busy.iter().filter_map(|c| {
            let known = self.chunks.get(c)?;
            Some((*c, known, known.primary.as_ref()?))
        })
    }

    /// There is, or may be, work for this chunk.
    fn mark_busy(&mut self, chunk: ChunkId) {
        if let Some(known) = self.chunks.get_mut(&chunk)
            && !std::mem::replace(&mut known.listed, true)
        {
            self.busy.insert(chunk);
        }
    }

    fn forget_idle(&mut self) {
        let overlooked = |(c, k): (&ChunkId, &Known)| {
            k.primary.as_ref().is_some_and(Primary::is_busy) && !self.busy.contains(c)
        };
        debug_assert!(!self.chunks.iter().any(overlooked), "a chunk with work is not listed as busy");
        let chunks = &mut self.chunks;
        self.busy.retain(|chunk| {
            let Some(known) = chunks.get_mut(chunk) else { return false };
            known.listed = known.primary.as_ref().is_some_and(Primary::is_busy);
            known.listed
        });
    }

    pub fn explain(&self, chunk: ChunkId) -> String {
        match self.chunks.get(&chunk) {
            None => "unknown".into(),
            Some(k) => match &k.primary {
                Some(p) => format!("epoch {} {} down {:?} {:?}", k.epoch, p.explain(), self.down, k.grant),
                None => format!("epoch {} secondary {:?}", k.epoch, k.grant),
            },
        }
    }

    /// Whether some peer owes us an answer (it is then watched more closely).
    pub fn waits_for(&self, peer: SocketAddr) -> bool {
        self.busy_primaries().any(|(_, _, p)| p.waits_for(peer))
    }

    /// Copies to learners take so many bytes a second at most; 0: no limit.
    pub fn set_copy_rate(&mut self, bytes_per_s: u64) {
        self.pace.set(bytes_per_s);
    }

    pub fn revoke(&mut self, leases: &[LeaseId]) {
        self.revoked.extend(leases);
        // Leases grow and are short-lived: the oldest are long dead.
        while self.revoked.len() > 10_000 {
            self.revoked.pop_first();
        }
    }

    pub fn set_lease_timeout(&mut self, timeout: Duration) {
        self.lease_timeout = timeout;
    }

    pub fn leases_known_at(&mut self, at: Timestamp) {
        self.leases_known_at = self.leases_known_at.max(at);
    }

    /// Whether a client's lease may have been revoked without this server having heard of it: what the client sent before
    /// may come when its session is over and others have the file.
    fn leases_are_unsure(&self, now: Timestamp) -> bool {
        self.lease_timeout > Duration::ZERO && now.since(self.leases_known_at) > self.lease_timeout / 2
    }

    fn ticket(&mut self, purpose: Purpose) -> Ticket {
        self.next_ticket += 1;
        self.purposes.insert(self.next_ticket, purpose);
        Ticket(self.next_ticket)
    }

    fn reply(&mut self, conn: ConnId, head: &Head, kind: Kind, status: Status) {
        self.actions.push(Action::Reply(conn, Frame::bare(head.reply(kind, status))));
    }

    /// A request of the data path, from a client or a primary.
    pub fn on_request(&mut self, conn: ConnId, frame: Frame, store: &mut Store, io: &mut dyn Io) {
        let head = frame.head;
        match head.kind {
            Kind::Write | Kind::Read | Kind::Discard => self.on_client(conn, frame, store, io),
            Kind::Forward | Kind::ForwardDiscard => self.on_forward(conn, frame, store, io),
            Kind::Prepare => self.on_prepare(conn, frame, store, io),
            Kind::CommitNote => {
                if let Ok(meta) = DataMeta::decode(&frame.meta)
                    && head.epoch == self.epoch_of(head.chunk, store)
                {
                    store.note_committed(head.chunk, meta.committed);
                }
            }
            Kind::Sums => {
                let ticket = self.ticket(Purpose::Sums { conn, head });
                let block = wire::BLOCK_BYTES as u32;
                let deep = head.has(wire::flags::DEEP);
                store.sums(
                    io,
                    ticket,
                    head.chunk,
                    head.offset_bytes / block,
                    head.length_bytes / block,
                    deep,
                );
            }
            other => tracing::warn!(?other, "unexpected request"),
        }
        self.after(store, io);
    }

    /// Answers of secondaries.
    pub fn on_peer(&mut self, from: SocketAddr, frame: Frame, store: &mut Store, io: &mut dyn Io) {
        match frame.head.kind {
            Kind::Stored => self.on_stored(from, &frame.head, store, io),
            Kind::Prepared => self.on_prepared(from, &frame, store, io),
            other => tracing::warn!(?other, %from, "unexpected answer of a chunk server"),
        }
        self.after(store, io);
    }

    /// The highest epoch known of a chunk.
    fn epoch_of(&self, chunk: ChunkId, store: &Store) -> Epoch {
        let stored = store.chunk(chunk).map_or(Epoch(0), |c| c.epoch);
        self.chunks.get(&chunk).map_or(stored, |k| k.epoch.max(stored))
    }

    /// Takes over a replica set if it is newer than what is known.
    fn adopt(&mut self, chunk: ChunkId, epoch: Epoch, grant: &Grant, store: &mut Store, io: &mut dyn Io) {
        let known = self.epoch_of(chunk, store);
        let have_set = self.chunks.contains_key(&chunk);
        if epoch == known && have_set {
            return self.learn_addresses(chunk, grant, false, store, io);
        }
        if epoch < known {
            return;
        }
        let in_sync = grant.in_sync().any(|r| r.cs == self.me);
        if in_sync {
            self.damaged.remove(&chunk);
        }
        self.giving_up.remove(&chunk);
        self.written.set_adopted(chunk, known, grant, self.me);
        let leads = grant.primary().is_some_and(|p| p.cs == self.me);
        let old = self.chunks.remove(&chunk).and_then(|k| k.primary);
        let carried = old.map(Primary::unanswered).unwrap_or_default();
        let mut next = Known {
            epoch,
            grant: grant.clone(),
            in_sync_until: Vec::new(),
            below_minimum_since: None,
            joined: Vec::new(),
            primary: None,
            told: false,
            listed: false,
        };
        if leads {
            self.next_activation += 1;
            next.primary = Some(Primary::new(self.next_activation, carried));
            self.chunks.insert(chunk, next);
            self.activate(chunk, store, io);
        } else {
            self.chunks.insert(chunk, next);
            for request in carried {
                let (conn, head) = request.origin();
                self.reply(conn, &head, done_kind(head.kind), Status::OldEpoch);
            }
        }
    }

    /// The set is known; but a metadata server that has just become the master gives out sets before all chunk servers
    /// have told it their addresses. Others than the MDS may have old addresses: those only fill gaps.
    fn learn_addresses(
        &mut self,
        chunk: ChunkId,
        grant: &Grant,
        from_mds: bool,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        let me = self.me;
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let mut members_moved = false;
        for replica in &mut known.grant.replicas {
            let Some(told) = grant.replicas.iter().find(|r| r.cs == replica.cs).map(|r| r.addr) else {
                continue;
            };
            if told != replica.addr && told.port() != 0 && (from_mds || replica.addr.port() == 0) {
                replica.addr = told;
                members_moved |= replica.cs != me && replica.role != Role::Stale;
            }
        }
        if members_moved {
            self.activate(chunk, store, io);
        }
    }

    /// A set told by the MDS.
    fn on_set(&mut self, set: &ChunkSet, store: &mut Store, io: &mut dyn Io) {
        self.adopt(set.chunk, set.epoch, &set.grant, store, io);
        if self.epoch_of(set.chunk, store) == set.epoch {
            let mut waits = false;
            if let Some(known) = self.chunks.get_mut(&set.chunk) {
                known.told = true;
                known.in_sync_until.clone_from(&set.in_sync_until);
                known.below_minimum_since = set.below_minimum_since;
                waits = known.primary.as_ref().is_some_and(Primary::waits_to_be_told);
            }
            self.learn_addresses(set.chunk, &set.grant, true, store, io);
            if waits {
                self.activate(set.chunk, store, io);
            }
        }
    }

    /// Sets told by the MDS: answers to Suspect, Joined, AskSet. `asked` that are missing do not exist any more.
    pub fn on_sets(&mut self, sets: Vec<ChunkSet>, asked: &[ChunkId], store: &mut Store, io: &mut dyn Io) {
        let told: BTreeSet<ChunkId> = sets.iter().map(|s| s.chunk).collect();
        for set in sets {
            let before = self.epoch_of(set.chunk, store);
            self.on_set(&set, store, io);
            // As it was: nobody else can lead.
            if set.epoch == before && self.damaged.contains_key(&set.chunk) {
                if set.grant.primary().is_some_and(|p| p.cs == self.me) {
                    self.damaged.insert(set.chunk, true);
                    self.ask_to_give_up(set.chunk, io.now());
                } else if set.grant.in_sync().any(|r| r.cs == self.me) {
                    self.damaged.remove(&set.chunk); // It is told again when it is met again.
                }
            }
            // Unchanged: the suspects are needed. Go on trying to reach them.
            if let Some(primary) = self.chunks.get_mut(&set.chunk).and_then(|k| k.primary.as_mut()) {
                primary.suspected = false;
            }
        }
        let gone: Vec<ChunkId> = asked.iter().copied().filter(|c| !told.contains(c)).collect();
        self.delete(&gone, store, io);
        self.after(store, io);
    }

    /// The MDS would not hear a complaint about these chunks.
    pub fn complaint_refused(&mut self, chunks: &[ChunkReport]) {
        for ChunkReport { chunk, .. } in chunks {
            self.damaged.remove(chunk);
            if let Some(primary) = self.chunks.get_mut(chunk).and_then(|k| k.primary.as_mut()) {
                primary.suspected = false;
            }
        }
    }

    pub fn on_command(&mut self, command: CsCommand, store: &mut Store, io: &mut dyn Io) {
        match command {
            CsCommand::Repair { set } => {
                self.on_set(&set, store, io);
                self.repeat_joined(set.chunk);
            }
            CsCommand::Delete { chunks } => self.delete(&chunks, store, io),
            CsCommand::Revoke { leases } => self.revoke(&leases),
            CsCommand::Fork { set, to } => {
                self.on_set(&set, store, io);
                self.fork(set.chunk, to, store, io);
            }
            CsCommand::Expelled { .. } => {}
        }
        self.after(store, io);
    }

    fn delete(&mut self, chunks: &[ChunkId], store: &mut Store, io: &mut dyn Io) {
        for chunk in self.drop_forks(chunks) {
            self.written.forget(chunk);
            self.damaged.remove(&chunk);
            self.giving_up.remove(&chunk);
            if let Some(primary) = self.chunks.remove(&chunk).and_then(|k| k.primary) {
                for request in primary.unanswered() {
                    let (conn, head) = request.origin();
                    self.reply(conn, &head, done_kind(head.kind), Status::OldEpoch);
                }
            }
            let ticket = self.ticket(Purpose::Delete { chunk });
            store.delete(io, ticket, chunk);
        }
    }

    pub fn on_store(&mut self, outcomes: &mut Vec<Outcome>, store: &mut Store, io: &mut dyn Io) {
        for outcome in outcomes.drain(..) {
            if let Outcome::Finished { ticket, result } = outcome
                && let Some(purpose) = self.purposes.remove(&ticket.0)
            {
                self.store_done(purpose, result, store, io);
            }
        }
        self.after(store, io);
    }

    fn store_done(
        &mut self,
        purpose: Purpose,
        result: Result<Done, StoreError>,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        match purpose {
            Purpose::Flight { chunk, activation, sequence } => {
                self.local_done(chunk, activation, sequence, result, store, io)
            }
            Purpose::Copy { chunk, activation, sequence, give_up } => {
                self.copy_read(chunk, activation, sequence, give_up, result, store, io)
            }
            Purpose::Adopt { chunk, activation } => self.adopted(chunk, activation, result, store, io),
            Purpose::Read { conn, head, chunk, since, began } => {
                let now = io.now();
                self.latency.io_took(now.since(began), now);
                self.latency.read_took(now.since(since), now);
                let status = result.as_ref().map_or_else(status_of, |_| Status::Ok);
                self.note_trace(&head, status, since, Some((began, &[(self.me, now.since(began))])), io);
                self.read_done(conn, head, chunk, result, store);
            }
            Purpose::Forwarded { conn, head, began } => {
                let now = io.now();
                self.latency.io_took(now.since(began), now);
                if let Err(error) = &result
                    && error.is_damage()
                {
                    self.give_up_own_copy(head.chunk, error, store);
                }
                let status = result.map_or_else(|e| status_of(&e), |_| Status::Ok);
                self.note_trace(&head, status, began, Some((began, &[(self.me, now.since(began))])), io);
                let mut reply = head.reply(Kind::Stored, status);
                if head.has(wire::flags::FILL) && self.pace.clients_work_here(io.now()) {
                    reply.flags |= wire::flags::CLIENTS_WORK;
                }
                self.actions.push(Action::Reply(conn, Frame::bare(reply)));
            }
            Purpose::Prepare { conn, head } => match result {
                Ok(_) => self.prepared.push((conn, head)),
                Err(e) => self.reply(conn, &head, Kind::Prepared, status_of(&e)),
            },
            Purpose::Sums { conn, head } => match result {
                Ok(Done::Sums { crcs }) => {
                    let meta = DataMeta { crcs, ..DataMeta::default() };
                    let mut reply = head.reply(Kind::SumsDone, Status::Ok);
                    reply.epoch = self.epoch_of(head.chunk, store);
                    self.actions.push(Action::Reply(conn, Frame::data(reply, &meta, Buf::empty())));
                }
                Ok(_) => self.reply(conn, &head, Kind::SumsDone, Status::BadRequest),
                Err(e) => self.reply(conn, &head, Kind::SumsDone, status_of(&e)),
            },
            Purpose::Scrub { piece } => self.scrub_done(piece, result, store),
            Purpose::Delete { chunk } => {
                self.actions.push(Action::ToMds(CsRequest::Deleted { chunks: vec![chunk] }));
            }
            Purpose::Fork { to } => self.fork_made(to, result, store, io),
        }
    }

    fn read_done(
        &mut self,
        conn: ConnId,
        head: Head,
        chunk: ChunkId,
        result: Result<Done, StoreError>,
        store: &Store,
    ) {
        match result {
            Ok(Done::Read { data, crcs }) => {
                self.stats.reads += 1;
                self.stats.read_bytes += data.len() as u64;
                let mut reply = head.reply(Kind::ReadDone, Status::Ok);
                reply.length_bytes = data.len() as u32;
                let meta = DataMeta { crcs, ..DataMeta::default() };
                self.actions.push(Action::Reply(conn, Frame::data(reply, &meta, data)));
            }
            Ok(Done::Sums { crcs }) => {
                let meta = DataMeta { crcs, ..DataMeta::default() };
                let reply = head.reply(Kind::ReadDone, Status::Ok);
                self.actions.push(Action::Reply(conn, Frame::data(reply, &meta, Buf::empty())));
            }
            Ok(_) => self.reply(conn, &head, Kind::ReadDone, Status::BadRequest),
            Err(error) if error.is_damage() => {
                let helpless = self.damaged.get(&chunk).copied().unwrap_or(false);
                self.give_up_own_copy(chunk, &error, store);
                let status = if helpless { Status::Damaged } else { Status::Busy };
                self.reply(conn, &head, Kind::ReadDone, status);
            }
            Err(error) => self.reply(conn, &head, Kind::ReadDone, status_of(&error)),
        }
    }

    /// Our own copy is bad: another replica must lead, and this one be filled again.
    fn give_up_own_copy(&mut self, chunk: ChunkId, error: &StoreError, store: &Store) {
        if self.damaged.contains_key(&chunk) {
            return;
        }
        self.damaged.insert(chunk, false);
        let message = format!("has reported hard error on chunk {chunk}: {error}");
        let severity = wire::mds_api::Severity::Warn;
        self.actions.push(Action::ToMds(CsRequest::Event { severity, message }));
        let report = ChunkReport { chunk, epoch: self.epoch_of(chunk, store) };
        let reason = error.to_string();
        self.actions.push(Action::ToMds(CsRequest::Damaged { chunks: vec![report], reason }));
    }

    /// Verifies a piece in the background; [`Replication::take_scrubbed`] has the outcome.
    pub fn scrub(&mut self, piece: Piece, store: &mut Store, io: &mut dyn Io) {
        let ticket = self.ticket(Purpose::Scrub { piece });
        store.sums(io, ticket, piece.chunk, piece.first_block, piece.blocks, true);
    }

    pub fn take_scrubbed(&mut self) -> Vec<(Piece, bool)> {
        std::mem::take(&mut self.scrubbed)
    }

    fn scrub_done(&mut self, piece: Piece, result: Result<Done, StoreError>, store: &Store) {
        let damaged = match result {
            Err(error) if error.is_damage() => {
                self.give_up_own_copy(piece.chunk, &error, store);
                true
            }
            // Verified, or deleted meanwhile.
            _ => false,
        };
        self.scrubbed.push((piece, damaged));
    }

    /// A peer's connection is gone, or it was silent too long.
    pub fn peer_down(&mut self, peer: SocketAddr, why: &str, store: &mut Store, io: &mut dyn Io) {
        self.down.insert(peer);
        let me = self.me;
        // Work that goes on needs every member sooner or later, even if it waits for none of them at this moment, as a copy
        // that is held back does: without a word from here the MDS may go on counting on that copy.
        let is_member = |k: &Known| secondaries(&k.grant, me).any(|r| r.addr == peer);
        let needs_it =
            |(_, k, p): &(ChunkId, &Known, &Primary)| p.waits_for(peer) || (p.load() > 0 && is_member(k));
        let needing: Vec<ChunkId> = self.busy_primaries().filter(needs_it).map(|(c, ..)| c).collect();
        for chunk in needing {
            self.lost_member(chunk, peer, why);
        }
        // Chunks without work in flight must not believe the peer has what was sent to it. To stale replicas nothing is.
        for known in self.chunks.values_mut() {
            let member = secondaries(&known.grant, self.me).any(|r| r.addr == peer);
            if let Some(primary) = known.primary.as_mut().filter(|_| member) {
                primary.needs_activation();
            }
        }
        self.after(store, io);
    }

    pub fn peer_up(&mut self, peer: SocketAddr, store: &mut Store, io: &mut dyn Io) {
        self.down.remove(&peer);
        let again: Vec<ChunkId> = self
            .busy_primaries()
            .filter(|(_, k, _)| secondaries(&k.grant, self.me).any(|r| r.addr == peer))
            .filter(|(_, _, p)| p.load() > 0 && !p.is_active())
            .map(|(c, ..)| c)
            .collect();
        for chunk in again {
            self.activate(chunk, store, io);
        }
        self.after(store, io);
    }

    /// Peers that must be connected for work that waits.
    pub fn wanted_peers(&self) -> BTreeSet<SocketAddr> {
        let working = self.busy_primaries().filter(|(_, _, p)| p.load() > 0);
        working.flat_map(|(_, k, _)| secondaries(&k.grant, self.me)).map(|r| r.addr).collect()
    }

    /// About every 20 ms: tells secondaries watermarks, reminds of stuck chunks.
    pub fn on_tick(&mut self, now: Timestamp, store: &mut Store, io: &mut dyn Io) {
        self.pace.fill(now);
        self.send_commit_notes();
        self.review_stuck(now, store, io);
        self.watch_slow(now);
        self.ask_again_to_give_up(now);
        self.forget_idle();
        self.after(store, io);
    }

    /// What may have become possible by any event.
    fn after(&mut self, store: &mut Store, io: &mut dyn Io) {
        self.answer_prepares(store);
        self.begin_forks(store, io);
        while !self.held_back.is_empty() && self.pace.may_copy(false, io.now()) {
            let chunk = self.held_back.pop_first().expect("just seen");
            self.pump(chunk, store, io);
        }
        for chunk in self.preparing.iter().copied().collect::<Vec<_>>() {
            let waits =
                self.chunks.get(&chunk).and_then(|k| k.primary.as_ref()).is_some_and(Primary::is_preparing);
            if waits {
                self.maybe_level(chunk, store, io);
            } else {
                self.preparing.remove(&chunk);
            }
        }
    }
}

/// The reply kind of a client's request.
pub fn done_kind(kind: Kind) -> Kind {
    match kind {
        Kind::Write => Kind::WriteDone,
        Kind::Read => Kind::ReadDone,
        _ => Kind::DiscardDone,
    }
}

fn status_of(error: &StoreError) -> Status {
    match error {
        StoreError::NoSpace | StoreError::DiskFull { .. } => Status::NoSpace,
        StoreError::Checksum { .. } => Status::Checksum,
        StoreError::UnknownChunk(_) => Status::UnknownChunk,
        StoreError::Gone { .. } => Status::Damaged,
        StoreError::BadRequest(_) => Status::BadRequest,
        StoreError::Io { .. }
        | StoreError::Missing { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Format { .. }
        | StoreError::Journal(_) => Status::IoError,
    }
}

/// Secondaries of a set that must have every write: in-sync ones and learners, without `me`.
fn secondaries(grant: &Grant, me: CsId) -> impl Iterator<Item = &wire::Replica> {
    grant.replicas.iter().filter(move |r| r.cs != me && r.role != Role::Stale)
}

type Queue<T> = VecDeque<T>;
