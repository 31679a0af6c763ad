//! A chunk server as primary: activation, ordering, fan-out, acknowledgement. Learners are filled in `fill.rs`.
//!
//! Activation (docs/architecture.md, "Becoming active"): Prepare to all others of the set, own epoch durable, then the
//! union of all tails is sent again from our own bytes, then what learners must not hold is cleared; client requests wait.

use super::fill::{Fill, FillKind};
use super::flights::{Flight, Flights, Peers};
use super::ranges::{merged, overlaps, pieces, split_held};
use super::slow::{self, Slow, Times};
use super::{Action, Known, Purpose, Queue, Replication, done_kind, secondaries, status_of};
use crate::store::{DiscardOp, Done, Stamp, Store, StoreError, WriteOp};
use shards::sabotage::{Sabotage, on};
use shards::{Buf, ConnId, Io, Timestamp};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;
use wire::cs_api::{ChunkReport, CsRequest};
use wire::data::first_mismatch;
use wire::{
    BLOCK_BYTES, BlockCrc, BlockCrcs, ChunkId, DataMeta, Epoch, Frame, Head, Kind, LeaseId, Prepared, Role,
    Sequence, Status, TailEntry, decode, flags,
};

/// A request that waits this long is answered Busy, so that the client can tell its user why it waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Chunks named in one complaint about a slow replica; the next window names others.
const MOST_REPORTED: usize = 1000;
pub(super) const COPIES_AT_ONCE: usize = 4;
pub(super) const BLOCK: u32 = BLOCK_BYTES as u32;

/// A client's request, waiting.
pub(super) struct ClientRequest {
    conn: ConnId,
    head: Head,
    blocks: Range<u32>,
    lease: LeaseId,
    body: Body,
    since: Timestamp,
}

#[derive(Clone)]
enum Body {
    Read,
    Discard,
    Write { payload: Buf, crcs: BlockCrcs },
}

impl ClientRequest {
    pub fn origin(&self) -> (ConnId, Head) {
        (self.conn, self.head)
    }

    fn writes(&self) -> bool {
        !matches!(self.body, Body::Read)
    }
}

#[derive(PartialEq, Eq, Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Nothing asked of it since the set or a connection changed.
    Idle,
    /// Waiting for `Prepared` of these and for our own epoch to be durable.
    Preparing,
    /// Re-sending the tails.
    Levelling,
    Active,
}

pub(super) struct Primary {
    activation: u64,
    pub(super) phase: Phase,
    own_epoch_durable: bool,
    pub(super) prepared: BTreeMap<SocketAddr, Prepared>,
    awaited: BTreeSet<SocketAddr>,
    next_sequence: u64,
    pub(super) committed: u64,
    pub(super) flights: Flights,
    /// Reads under way: a write over them waits.
    queue: Queue<ClientRequest>,
    /// Ranges to send again before becoming active.
    to_level: Vec<Range<u32>>,
    /// Ranges where this replica has holes and these peers may hold something: cleared before becoming active.
    pub(super) to_clear: Vec<(Range<u32>, Peers)>,
    /// What learners lack, last first.
    pub(super) to_fill: Vec<Fill>,
    /// Those that do not have everything yet. They hear of no watermark: their tail must go on naming all they may have to
    /// be sent again, should this fill not come to its end.
    pub(super) learners: BTreeMap<SocketAddr, FillKind>,
    /// Secondaries that must be sent EXPECT_EMPTY with their first write.
    expect_empty: BTreeSet<SocketAddr>,
    /// The chunk is taken for new, and no write has yet been stored by all: they may know better.
    unproven: bool,
    pub suspected: bool,
    /// Learners are not filled before the metadata service has told what they have.
    waits_to_be_told: bool,
    /// A copy for others met damage here.
    pub(super) copy_failed: bool,
    largest_lease: LeaseId,
}

impl Primary {
    pub fn new(activation: u64, requests: Vec<ClientRequest>) -> Self {
        Primary {
            activation,
            phase: Phase::Idle,
            own_epoch_durable: false,
            prepared: BTreeMap::new(),
            awaited: BTreeSet::new(),
            next_sequence: 1,
            committed: 0,
            flights: Flights::default(),
            queue: requests.into(),
            to_level: Vec::new(),
            to_clear: Vec::new(),
            to_fill: Vec::new(),
            learners: BTreeMap::new(),
            expect_empty: BTreeSet::new(),
            unproven: false,
            suspected: false,
            waits_to_be_told: false,
            copy_failed: false,
            largest_lease: LeaseId(0),
        }
    }

    /// What a peer is told to be committed: learners hear of nothing (docs/replication.md, invariant 6).
    fn watermark_for(&self, peer: &SocketAddr, committed: Sequence) -> Sequence {
        if self.learners.contains_key(peer) { Sequence(0) } else { committed }
    }

    pub fn wait_to_be_told(&mut self) {
        self.waits_to_be_told = true;
    }

    pub fn waits_to_be_told(&self) -> bool {
        self.waits_to_be_told
    }

    /// The highest sequence given so far.
    pub fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    pub fn is_of(&self, activation: u64) -> bool {
        self.activation == activation
    }

    pub fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    pub fn explain(&self) -> String {
        let waiting: Vec<_> = self.flights.iter().map(|(n, f)| (n, f.local, &f.waiting)).collect();
        format!(
            "primary {:?} suspected {} awaits {:?} flights {waiting:?} queued {} learners {:?} to fill {}",
            self.phase,
            self.suspected,
            self.awaited,
            self.queue.len(),
            self.learners,
            self.to_fill.len()
        )
    }

    pub fn load(&self) -> usize {
        self.flights.len() + self.queue.len() + usize::from(!self.learners.is_empty())
    }

    pub fn clients_wait(&self) -> bool {
        !self.queue.is_empty() || self.flights.values().any(|f| f.request.is_some())
    }

    /// Whether something is under way or waiting.
    pub fn is_busy(&self) -> bool {
        self.load() > 0 || matches!(self.phase, Phase::Preparing | Phase::Levelling)
    }

    pub fn waits_for(&self, peer: SocketAddr) -> bool {
        self.awaited.contains(&peer) || self.flights.values().any(|f| f.waiting.contains(&peer))
    }

    pub fn is_preparing(&self) -> bool {
        self.phase == Phase::Preparing
    }

    fn waits_for_quiet(&self) -> bool {
        self.phase == Phase::Preparing && self.own_epoch_durable && self.awaited.is_empty()
    }

    /// Client requests not answered yet, in order: flights first.
    pub fn unanswered(self) -> Vec<ClientRequest> {
        self.flights.into_values().filter_map(|f| f.request).chain(self.queue).collect()
    }

    /// A member's connection broke: what it holds must be asked again before the next request.
    pub fn needs_activation(&mut self) {
        if self.phase == Phase::Active && self.flights.is_empty() {
            self.phase = Phase::Idle;
        }
    }
}

impl Replication {
    pub(super) fn on_client(&mut self, conn: ConnId, frame: Frame, store: &mut Store, io: &mut dyn Io) {
        let head = frame.head;
        self.pace.client_works_here(io.now());
        let done = done_kind(head.kind);
        let meta = match DataMeta::decode(&frame.meta) {
            Ok(meta) => meta,
            Err(why) => {
                tracing::warn!(%why, "malformed request");
                return self.reply(conn, &head, done, Status::BadRequest);
            }
        };
        if store.may_have_been_deleted(head.chunk) && !self.chunks.get(&head.chunk).is_some_and(|k| k.told) {
            // The client's map may be from the time before we were replaced: leading on its word would put our holes in
            // the place of what the others hold.
            self.actions.push(Action::ToMds(CsRequest::AskSet { chunk: head.chunk }));
            return self.reply(conn, &head, done, Status::Busy);
        }
        if let Some(grant) = &meta.grant {
            self.adopt(head.chunk, head.epoch, grant, store, io);
        }
        if head.epoch < self.epoch_of(head.chunk, store) {
            return self.reply(conn, &head, done, Status::OldEpoch);
        }
        let leases_are_unsure = self.leases_are_unsure(io.now());
        let Some(known) = self.chunks.get_mut(&head.chunk).filter(|k| k.epoch == head.epoch) else {
            return self.reply(conn, &head, done, Status::UnknownChunk);
        };
        let Some(primary) = &mut known.primary else {
            return self.reply(conn, &head, done, Status::NotPrimary);
        };
        if head.kind != Kind::Read && leases_are_unsure {
            return self.reply(conn, &head, done, Status::Busy);
        }
        let length = if head.kind == Kind::Write { frame.payload.len() as u32 } else { head.length_bytes };
        if length == 0
            || (head.offset_bytes | length) % BLOCK != 0
            || u64::from(head.offset_bytes) + u64::from(length) > crate::store::MOST_CHUNK_BYTES
        {
            return self.reply(conn, &head, done, Status::BadRequest);
        }
        let stored_lease = store.chunk(head.chunk).map_or(LeaseId(0), |c| c.largest_lease);
        primary.largest_lease = primary.largest_lease.max(stored_lease);
        if head.kind != Kind::Read
            && !on(Sabotage::IgnoreRevocation)
            && (meta.lease < primary.largest_lease || self.revoked.contains(&meta.lease))
        {
            return self.reply(conn, &head, done, Status::LeaseLost);
        }
        let body = match head.kind {
            Kind::Read => Body::Read,
            Kind::Discard => Body::Discard,
            _ if meta.crcs.contains(&BlockCrc::GONE) => {
                return self.reply(conn, &head, done, Status::BadRequest);
            }
            _ if first_mismatch(&frame.payload, &meta.crcs).is_some() => {
                return self.reply(conn, &head, done, Status::Checksum);
            }
            _ => Body::Write { payload: frame.payload, crcs: meta.crcs },
        };
        if head.kind != Kind::Read {
            primary.largest_lease = primary.largest_lease.max(meta.lease);
        }
        let first = head.offset_bytes / BLOCK;
        let blocks = first..first + length / BLOCK;
        primary.queue.push_back(ClientRequest {
            conn,
            head,
            blocks,
            lease: meta.lease,
            body,
            since: io.now(),
        });
        let idle = primary.phase == Phase::Idle;
        self.mark_busy(head.chunk);
        if idle {
            self.activate(head.chunk, store, io);
        }
        self.pump(head.chunk, store, io);
    }

    /// Starts (again) on the way to Active.
    pub(super) fn activate(&mut self, chunk: ChunkId, store: &mut Store, io: &mut dyn Io) {
        let me = self.me;
        self.next_activation += 1;
        let activation = self.next_activation;
        self.mark_busy(chunk);
        let held = store.chunk(chunk).is_some();
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let (epoch, grant) = (known.epoch, known.grant.clone());
        let Some(old) = known.primary.take() else { return };
        let suspected = old.suspected;
        let mut primary = Primary::new(activation, old.unanswered());
        primary.suspected = suspected;
        let members: Vec<SocketAddr> = secondaries(&grant, me).map(|r| r.addr).collect();
        let lacking = |r: &&wire::Replica| r.role == Role::Learner && !known.joined.contains(&r.cs);
        primary.learners = grant.replicas.iter().filter(lacking).map(|r| (r.addr, FillKind::Full)).collect();
        if epoch == Epoch(1) && !held && primary.learners.is_empty() {
            // Never written: nothing to reconcile, unless a secondary says otherwise.
            primary.phase = Phase::Active;
            primary.expect_empty = members.iter().copied().collect();
            primary.unproven = !members.is_empty();
            known.primary = Some(primary);
            return self.pump(chunk, store, io);
        }
        primary.phase = Phase::Preparing;
        primary.awaited = members.iter().copied().collect();
        known.primary = Some(primary);
        self.stats.reconciliations += 1;
        self.preparing.insert(chunk);
        let meta = DataMeta { grant: Some(grant), ..DataMeta::default() }.encode();
        for addr in members {
            let mut head = Head::new(Kind::Prepare, activation);
            head.chunk = chunk;
            head.epoch = epoch;
            head.flags = flags::GRANT;
            self.actions.push(Action::ToPeer(addr, Frame::new(head, &meta, Buf::empty())));
        }
        let ticket = self.ticket(Purpose::Adopt { chunk, activation });
        store.set_epoch(io, ticket, chunk, epoch);
    }

    fn current(&mut self, chunk: ChunkId, activation: u64) -> Option<&mut Primary> {
        self.chunks.get_mut(&chunk)?.primary.as_mut().filter(|p| p.activation == activation)
    }

    pub(super) fn adopted(
        &mut self,
        chunk: ChunkId,
        activation: u64,
        result: Result<Done, StoreError>,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        if let Err(error) = result {
            return self.give_up_own_copy(chunk, &error, store);
        }
        if let Some(primary) = self.current(chunk, activation) {
            primary.own_epoch_durable = true;
            self.maybe_level(chunk, store, io);
        }
    }

    pub(super) fn on_prepared(
        &mut self,
        from: SocketAddr,
        frame: &Frame,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        let head = frame.head;
        let Some(primary) = self.current(head.chunk, head.request) else { return };
        if primary.phase != Phase::Preparing {
            return;
        }
        match (head.status, decode!(Prepared, &frame.meta)) {
            (Status::Ok, Ok(prepared)) => {
                primary.awaited.remove(&from);
                primary.prepared.insert(from, prepared);
                self.maybe_level(head.chunk, store, io);
            }
            // It knows a newer set than we do.
            (Status::OldEpoch, _) => {
                self.actions.push(Action::ToMds(CsRequest::AskSet { chunk: head.chunk }))
            }
            (status, _) => self.lost_member(head.chunk, from, status.text()),
        }
    }

    /// All have answered and nothing is under way locally: level the tails.
    pub(super) fn maybe_level(&mut self, chunk: ChunkId, store: &mut Store, io: &mut dyn Io) {
        let me = self.me;
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let grant = known.grant.clone();
        let Some(primary) = known.primary.as_mut() else { return };
        if !primary.waits_for_quiet() || !store.is_quiet(chunk) {
            return;
        }
        let own = store.chunk(chunk).cloned().unwrap_or_default();
        let others: Peers = secondaries(&grant, me).map(|r| r.addr).collect();
        let complete: BTreeSet<SocketAddr> =
            others.iter().copied().filter(|addr| !primary.learners.contains_key(addr)).collect();
        // Copies for learners take sequences too, so that a watermark may be above all that a replica stored.
        let mut last = own.last_sequence.max(own.committed);
        let mut tails = tail_blocks(&own.tail);
        for (addr, prepared) in &primary.prepared {
            last = last.max(prepared.last_sequence).max(prepared.committed);
            if complete.contains(addr) && !on(Sabotage::ForgetOthersTails) {
                tails.extend(tail_blocks(&prepared.tail));
            }
        }
        let tails = merged(tails);
        primary.largest_lease = primary.largest_lease.max(own.largest_lease);
        primary.next_sequence = last.0 + 1;
        primary.committed = own.committed.0;
        let allocated = store.allocated_ranges(chunk);
        if !complete.is_empty() && !on(Sabotage::ForgetReconciliation) {
            let (held, holes) = split_held(&tails, &allocated);
            primary.to_level = pieces(held);
            primary.to_clear = holes.into_iter().map(|blocks| (blocks, others.clone())).collect();
        }
        primary.phase = Phase::Levelling;
        // Decided now, at this epoch: a replica that is missing may lack it.
        let epoch = known.epoch;
        tails.iter().for_each(|blocks| self.written.note(chunk, epoch, blocks));
        self.plan_fills(chunk, &tails, &allocated);
        self.pump(chunk, store, io);
    }

    /// Makes holes of blocks that are holes here.
    fn send_discard(&mut self, chunk: ChunkId, blocks: Range<u32>, targets: Peers) {
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let Some(primary) = known.primary.as_mut() else { return };
        let sequence = primary.next_sequence;
        primary.next_sequence += 1;
        let flight = Flight {
            blocks: blocks.clone(),
            request: None,
            local: true,
            waiting: targets.iter().copied().collect(),
            failed: None,
            targets: Peers::new(),
            fill: None,
            times: None,
        };
        primary.flights.insert(sequence, flight);
        let mut head = Head::new(Kind::ForwardDiscard, sequence);
        head.chunk = chunk;
        head.epoch = known.epoch;
        head.offset_bytes = blocks.start * BLOCK;
        head.length_bytes = (blocks.end - blocks.start) * BLOCK;
        let meta = DataMeta { sequence: Sequence(sequence), ..DataMeta::default() }.encode();
        for addr in targets {
            self.actions.push(Action::ToPeer(addr, Frame::new(head, &meta, Buf::empty())));
        }
    }

    /// Starts whatever can start: levelling, then client requests in order, then filling.
    pub(super) fn pump(&mut self, chunk: ChunkId, store: &mut Store, io: &mut dyn Io) {
        self.level_more(chunk, store, io);
        while let Some(request) = self.next_request(chunk) {
            match request.body {
                Body::Read => self.start_read(chunk, request, store, io),
                _ => self.start_write(chunk, request, store, io),
            }
        }
        self.fill_more(chunk, store, io);
    }

    fn level_more(&mut self, chunk: ChunkId, store: &mut Store, io: &mut dyn Io) {
        let me = self.me;
        loop {
            let Some(known) = self.chunks.get_mut(&chunk) else { return };
            let targets: Peers = secondaries(&known.grant, me).map(|r| r.addr).collect();
            let lacks_minimum = known.lacks_minimum();
            let Some(primary) = known.primary.as_mut().filter(|p| p.phase == Phase::Levelling) else {
                return;
            };
            if primary.flights.len() >= COPIES_AT_ONCE {
                return;
            }
            let next = match primary.to_clear.pop() {
                Some((blocks, peers)) => Some((blocks, peers, true)),
                None => primary.to_level.pop().map(|blocks| (blocks, targets, false)),
            };
            let Some((range, targets, hole)) = next else {
                if primary.flights.is_empty() {
                    primary.phase = Phase::Active;
                    if lacks_minimum {
                        return; // docs/replication.md, invariant 8
                    }
                    primary.committed = primary.last_sequence();
                    let committed = Sequence(primary.committed);
                    store.note_committed(chunk, committed);
                    self.uncommitted_notes.insert(chunk);
                }
                return;
            };
            let blocked = primary.flights.values().any(|f| overlaps(&f.blocks, &range));
            match hole {
                true if blocked => return primary.to_clear.push((range, targets)),
                false if blocked => return primary.to_level.push(range),
                true => self.send_discard(chunk, range, targets),
                false => self.start_copy(chunk, range, targets, false, store, io),
            }
        }
    }

    /// Reads our own bytes of a range, to send them on.
    pub(super) fn start_copy(
        &mut self,
        chunk: ChunkId,
        blocks: Range<u32>,
        targets: Peers,
        fill: bool,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        let Some(primary) = self.chunks.get_mut(&chunk).and_then(|k| k.primary.as_mut()) else { return };
        let sequence = primary.next_sequence;
        primary.next_sequence += 1;
        let activation = primary.activation;
        let flight = Flight {
            blocks: blocks.clone(),
            request: None,
            local: false,
            waiting: Peers::new(),
            failed: None,
            targets,
            fill: fill.then(|| io.now()),
            times: None,
        };
        primary.flights.insert(sequence, flight);
        let give_up = self.may_give_up(chunk);
        let ticket = self.ticket(Purpose::Copy { chunk, activation, sequence, give_up });
        store.copy(io, ticket, chunk, blocks, give_up);
    }

    pub(super) fn copy_read(
        &mut self,
        chunk: ChunkId,
        activation: u64,
        sequence: u64,
        give_up: bool,
        result: Result<Done, StoreError>,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        let (data, crcs) = match result {
            Ok(Done::Read { data, crcs }) => (data, crcs),
            Ok(_) => return,
            Err(error) => {
                return self.copy_met_damage(chunk, activation, sequence, &error, store, io);
            }
        };
        let epoch = self.chunks.get(&chunk).map_or(Epoch(0), |k| k.epoch);
        let Some(primary) = self.current(chunk, activation) else { return };
        let committed = Sequence(primary.committed);
        let Some(flight) = primary.flights.get_mut(sequence) else { return };
        let gone = give_up && crcs.contains(&BlockCrc::GONE);
        flight.local = !gone;
        flight.waiting = flight.targets.iter().copied().collect();
        let targets = std::mem::take(&mut flight.targets);
        let mut head = Head::new(Kind::Forward, sequence);
        head.chunk = chunk;
        head.epoch = epoch;
        head.offset_bytes = flight.blocks.start * BLOCK;
        let (fill, blocks) = (flight.fill.is_some(), flight.blocks.clone());
        head.flags = if fill { flags::FILL } else { 0 };
        let told =
            |addr| (addr, primary.watermark_for(&addr, committed), primary.learners.get(&addr).copied());
        let told: SmallVec<[_; 4]> = targets.into_iter().map(told).collect();
        let mut meta = DataMeta { sequence: Sequence(sequence), crcs, ..DataMeta::default() };
        for (addr, watermark, learner) in told {
            meta.committed = watermark;
            self.actions.push(Action::ToPeer(addr, Frame::data(head, &meta, data.clone())));
            if let Some(kind) = learner.filter(|_| fill) {
                self.stats.count_filled(kind, data.len() as u64);
            }
        }
        if gone {
            let stamp = Stamp { epoch, sequence: Sequence(sequence), committed, lease: LeaseId::default() };
            let op =
                WriteOp { chunk, stamp, offset_bytes: blocks.start * BLOCK, payload: data, crcs: meta.crcs };
            return self.store_as_gone(activation, op, store, io);
        }
        self.settle(chunk, sequence, store, io);
    }

    /// The first queued request that nothing in front of it or under way holds back.
    fn next_request(&mut self, chunk: ChunkId) -> Option<ClientRequest> {
        let known = self.chunks.get_mut(&chunk)?;
        let enough = !known.lacks_minimum();
        let primary = known.primary.as_mut().filter(|p| p.is_active())?;
        // The others may refuse a first write because the chunk is not new: until then no zeros are read from it.
        let may_read = !primary.unproven || primary.flights.is_empty();
        let at = (0..primary.queue.len()).find(|&at| {
            let request = &primary.queue[at];
            let held = primary.flights.values().any(|f| {
                // A copy only reads our bytes: reads may pass it.
                !(f.fill.is_some() && on(Sabotage::FillWithoutLock))
                    && (request.writes() || (f.request.is_some() && !on(Sabotage::DirtyReads)))
                    && overlaps(&f.blocks, &request.blocks)
            });
            let ahead = primary
                .queue
                .range(..at)
                .any(|q| (q.writes() || request.writes()) && overlaps(&q.blocks, &request.blocks));
            !held && !ahead && if request.writes() { enough } else { may_read }
        })?;
        primary.queue.remove(at)
    }

    fn start_read(&mut self, chunk: ChunkId, request: ClientRequest, store: &mut Store, io: &mut dyn Io) {
        let unproven = |k: &Known| k.primary.as_ref().is_some_and(|p| p.unproven);
        if store.chunk(chunk).is_none() || self.chunks.get(&chunk).is_some_and(unproven) {
            // Placed and never written, or moved elsewhere and deleted here while the client kept its old map: the
            // others know.
            if let Some(primary) = self.chunks.get_mut(&chunk).and_then(|k| k.primary.as_mut()) {
                primary.queue.push_front(request);
            }
            return self.reprepare(chunk, store, io);
        }
        let ClientRequest { conn, head, blocks, since, .. } = request;
        let ticket = self.ticket(Purpose::Read { conn, head, chunk, since, began: io.now() });
        // The store runs overlapping operations in the order of the calls: a later write waits for this read.
        let count = blocks.end - blocks.start;
        if head.has(flags::NO_DATA) {
            store.sums(io, ticket, chunk, blocks.start, count, false);
        } else {
            store.read(io, ticket, chunk, blocks.start * BLOCK, count * BLOCK);
        }
    }

    fn start_write(&mut self, chunk: ChunkId, request: ClientRequest, store: &mut Store, io: &mut dyn Io) {
        let me = self.me;
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let epoch = known.epoch;
        let members: Peers = secondaries(&known.grant, me).map(|r| r.addr).collect();
        let Some(primary) = known.primary.as_mut() else { return };
        let sequence = primary.next_sequence;
        primary.next_sequence += 1;
        let stamp = Stamp {
            epoch,
            sequence: Sequence(sequence),
            committed: Sequence(if on(Sabotage::EarlyWatermark) { sequence } else { primary.committed }),
            lease: request.lease,
        };
        self.written.note(chunk, epoch, &request.blocks);
        let activation = primary.activation;
        let (blocks, body) = (request.blocks.clone(), request.body.clone());
        let mut head = Head::new(
            if matches!(body, Body::Discard) { Kind::ForwardDiscard } else { Kind::Forward },
            sequence,
        );
        head.chunk = chunk;
        head.epoch = epoch;
        head.offset_bytes = blocks.start * BLOCK;
        head.length_bytes = (blocks.end - blocks.start) * BLOCK;
        head.trace = request.head.trace;
        head.flags |= request.head.flags & flags::TRACE;
        let flight = Flight {
            blocks: blocks.clone(),
            request: Some(request),
            local: false,
            waiting: members.clone(),
            failed: None,
            targets: Peers::new(),
            fill: None,
            times: Some((io.now(), Times::new())),
        };
        primary.flights.insert(sequence, flight);
        let (payload, crcs) = match body {
            Body::Write { payload, crcs } => (payload, crcs),
            _ => (Buf::empty(), BlockCrcs::new()),
        };
        let mut meta = DataMeta {
            lease: stamp.lease,
            sequence: stamp.sequence,
            committed: stamp.committed,
            grant: None,
            crcs,
        };
        for addr in members {
            let mut head = head;
            meta.committed = primary.watermark_for(&addr, stamp.committed);
            if primary.expect_empty.remove(&addr) {
                head.flags |= flags::EXPECT_EMPTY | flags::GRANT;
                meta.grant = Some(known.grant.clone());
            }
            self.actions.push(Action::ToPeer(addr, Frame::data(head, &meta, payload.clone())));
            meta.grant = None;
        }
        let ticket = self.ticket(Purpose::Flight { chunk, activation, sequence });
        let offset_bytes = blocks.start * BLOCK;
        if head.kind == Kind::ForwardDiscard {
            store.discard(
                io,
                ticket,
                DiscardOp { chunk, stamp, offset_bytes, length_bytes: head.length_bytes },
            );
        } else {
            store.write(io, ticket, WriteOp { chunk, stamp, offset_bytes, payload, crcs: meta.crcs });
        }
    }

    pub(super) fn local_done(
        &mut self,
        chunk: ChunkId,
        activation: u64,
        sequence: u64,
        result: Result<Done, StoreError>,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        let me = self.me;
        let Some(primary) = self.current(chunk, activation) else { return };
        let Some(flight) = primary.flights.get_mut(sequence) else { return };
        flight.local = true;
        let took = flight.times.as_mut().map(|(began, times)| {
            let took = io.now().since(*began);
            times.push((me, took));
            took
        });
        if let Err(error) = result {
            flight.failed = Some(status_of(&error));
            if !matches!(error, StoreError::NoSpace | StoreError::BadRequest(_)) {
                return self.give_up_own_copy(chunk, &error, store);
            }
        }
        if let Some(took) = took {
            self.latency.io_took(took, io.now());
        }
        self.settle(chunk, sequence, store, io);
    }

    pub(super) fn on_stored(&mut self, from: SocketAddr, head: &Head, store: &mut Store, io: &mut dyn Io) {
        if head.has(flags::CLIENTS_WORK) {
            self.pace.client_works_there(io.now());
        }
        let known = self.chunks.get_mut(&head.chunk).filter(|k| k.epoch == head.epoch);
        let Some(Known { grant, primary: Some(primary), .. }) = known else { return };
        let Some(flight) = primary.flights.get_mut(head.request) else { return };
        match head.status {
            Status::Ok => {
                flight.has_stored(from);
                if let Some((began, times)) = &mut flight.times
                    && let Some(replica) = grant.replicas.iter().find(|r| r.addr == from)
                {
                    times.push((replica.cs, io.now().since(*began)));
                }
                self.settle(head.chunk, head.request, store, io);
            }
            Status::OldEpoch => self.actions.push(Action::ToMds(CsRequest::AskSet { chunk: head.chunk })),
            // It holds something, or has lost what it held: ask it, then send again.
            Status::NotEmpty | Status::UnknownChunk => self.reprepare(head.chunk, store, io),
            Status::NoSpace => {
                flight.has_stored(from);
                flight.failed = Some(Status::NoSpace);
                self.settle(head.chunk, head.request, store, io);
            }
            status => self.lost_member(head.chunk, from, status.text()),
        }
    }

    /// A chunk that is not here and may be elsewhere: make it exist here, then reconcile.
    fn reprepare(&mut self, chunk: ChunkId, store: &mut Store, io: &mut dyn Io) {
        let Some(known) = self.chunks.get(&chunk) else { return };
        let epoch = known.epoch;
        if store.chunk(chunk).is_none() {
            let ticket = self.ticket(Purpose::Adopt { chunk, activation: 0 });
            store.set_epoch(io, ticket, chunk, epoch);
        }
        self.activate(chunk, store, io);
    }

    /// Ends a flight if everybody has it.
    fn settle(&mut self, chunk: ChunkId, sequence: u64, store: &mut Store, io: &mut dyn Io) {
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let lacks_minimum = known.lacks_minimum();
        let Some(primary) = known.primary.as_mut() else { return };
        let all_have = |f: &Flight| f.waiting.is_empty() || on(Sabotage::AckBeforeSecondaries);
        let done = primary.flights.get(sequence).is_some_and(|f| f.local && all_have(f));
        if !done {
            return;
        }
        let flight = primary.flights.remove(sequence).expect("just seen");
        let oldest = primary.flights.oldest().unwrap_or(primary.next_sequence);
        if let (Some((_, times)), None) = (&flight.times, flight.failed) {
            self.slow.took(times);
        }
        if let Some(began) = flight.fill {
            self.pace.took(io.now().since(began));
        }
        // A failed write is somewhere and not everywhere: its tail must stay until it is levelled.
        if flight.failed.is_none() && primary.phase == Phase::Active {
            primary.unproven = false;
            if !lacks_minimum {
                primary.committed = primary.committed.max(oldest - 1);
                let committed = Sequence(primary.committed);
                store.note_committed(chunk, committed);
                self.uncommitted_notes.insert(chunk);
            }
        }
        if let Some(request) = flight.request {
            let (conn, head) = request.origin();
            let now = io.now();
            self.latency.write_took(now.since(request.since), now);
            let status = flight.failed.unwrap_or(Status::Ok);
            let times = flight.times.as_ref().map(|(began, times)| (*began, &times[..]));
            self.note_trace(&head, status, request.since, times, io);
            self.stats.writes += 1;
            self.stats.write_bytes += u64::from(request.blocks.end - request.blocks.start) * u64::from(BLOCK);
            self.reply(conn, &head, done_kind(head.kind), status);
        }
        if flight.failed.is_some() {
            return self.activate(chunk, store, io);
        }
        self.pump(chunk, store, io);
    }

    /// A member of the set can't be reached or has failed for this chunk.
    pub(super) fn lost_member(&mut self, chunk: ChunkId, peer: SocketAddr, why: &str) {
        let Some(known) = self.chunks.get_mut(&chunk) else { return };
        let Some(primary) = known.primary.as_mut() else { return };
        let Some(replica) = known.grant.replicas.iter().find(|r| r.addr == peer) else { return };
        if std::mem::replace(&mut primary.suspected, true) {
            return;
        }
        // Flights stay: a new set carries their requests over; the same set starts over when the peer is back.
        primary.phase = Phase::Idle;
        tracing::info!(chunk = chunk.0, cs = replica.cs.0, why, "suspecting a replica");
        self.actions.push(Action::ToMds(CsRequest::Suspect {
            chunks: vec![ChunkReport { chunk, epoch: known.epoch }],
            cs: vec![replica.cs],
            reason: why.to_string(),
        }));
    }

    pub(super) fn send_commit_notes(&mut self) {
        let me = self.me;
        for chunk in std::mem::take(&mut self.uncommitted_notes) {
            let Some(known) = self.chunks.get(&chunk) else { continue };
            let Some(primary) = known.primary.as_ref().filter(|p| p.is_active()) else { continue };
            if !primary.flights.is_empty() {
                self.uncommitted_notes.insert(chunk);
                continue;
            }
            let (epoch, committed) = (known.epoch, primary.committed);
            let informed = |r: &&wire::Replica| !primary.learners.contains_key(&r.addr);
            let peers: Peers = secondaries(&known.grant, me).filter(informed).map(|r| r.addr).collect();
            peers.into_iter().for_each(|peer| self.send_commit_note(chunk, epoch, committed, peer));
        }
    }

    pub(super) fn send_commit_note(&mut self, chunk: ChunkId, epoch: Epoch, committed: u64, to: SocketAddr) {
        let mut head = Head::new(Kind::CommitNote, 0);
        (head.chunk, head.epoch, head.flags) = (chunk, epoch, flags::ONE_WAY);
        let meta = DataMeta { committed: Sequence(committed), ..DataMeta::default() }.encode();
        self.actions.push(Action::ToPeer(to, Frame::new(head, &meta, Buf::empty())));
    }

    /// From time to time: has replicas taken out that have been slow for long.
    pub(super) fn watch_slow(&mut self, now: Timestamp) {
        if !self.slow.is_due(now) {
            return;
        }
        // Writes that some have and others don't.
        let mut under_way: Vec<Times> = Vec::new();
        for (_, known, primary) in self.busy_primaries() {
            for flight in primary.flights.values() {
                let Some((began, times)) = &flight.times else { continue };
                let age = now.since(*began);
                if times.is_empty() || age < slow::FLOOR {
                    continue;
                }
                let waiting = known.grant.replicas.iter().filter(|r| flight.waiting.contains(&r.addr));
                let late = waiting.map(|r| r.cs).chain((!flight.local).then_some(self.me));
                under_way.push(times.iter().copied().chain(late.map(|cs| (cs, age))).collect());
            }
        }
        under_way.iter().for_each(|times| self.slow.took(times));
        for Slow { cs, takes, others } in self.slow.end_window(now) {
            // Never below the minimum: the MDS would refuse it.
            let can_spare = |known: &Known| {
                let left = known.grant.in_sync().filter(|r| r.cs != cs).count();
                let has = known.grant.replicas.iter().any(|r| r.cs == cs && r.role != Role::Stale);
                has && left >= usize::from(known.grant.min_replicas.max(1))
            };
            let chunks = self.busy_primaries().filter(|(_, known, _)| can_spare(known));
            let chunks = chunks.map(|(chunk, known, _)| ChunkReport { chunk, epoch: known.epoch });
            let chunks: Vec<ChunkReport> = chunks.take(MOST_REPORTED).collect();
            if !chunks.is_empty() {
                let (takes_us, others_us) = (takes.as_micros() as u64, others.as_micros() as u64);
                self.actions.push(Action::ToMds(CsRequest::Slow { chunks, cs, takes_us, others_us }));
            }
        }
    }

    /// Chunks with waiting work that are not getting anywhere: try again, and tell clients after a while.
    pub(super) fn review_stuck(&mut self, now: Timestamp, store: &mut Store, io: &mut dyn Io) {
        let mut again = Vec::new();
        let mut busy = Vec::new();
        for &chunk in &self.busy {
            let Some(known) = self.chunks.get_mut(&chunk) else { continue };
            let Some(primary) = known.primary.as_mut() else { continue };
            while primary.queue.front().is_some_and(|q| now.since(q.since) > PATIENCE) {
                busy.extend(primary.queue.pop_front());
            }
            let reachable = secondaries(&known.grant, self.me).all(|r| !self.down.contains(&r.addr));
            if primary.phase == Phase::Idle && !primary.suspected && primary.load() > 0 && reachable {
                again.push(chunk);
            }
        }
        for request in busy {
            let (conn, head) = request.origin();
            self.note_trace(&head, Status::Busy, request.since, None, io);
            self.reply(conn, &head, done_kind(head.kind), Status::Busy);
        }
        for chunk in again {
            self.activate(chunk, store, io);
        }
    }
}

pub(super) fn tail_blocks(tail: &[TailEntry]) -> Vec<Range<u32>> {
    tail.iter().map(|t| t.first_block..t.first_block + t.block_count).collect()
}
