//! What only the master knows and does: proposals and who waits for them, reads, sessions, chunk servers, repair.
//!
//! It exists while this server leads a raft term, and is built anew for each: nothing volatile outlives a mastership.
//! It is *ready* once the state holds everything that earlier masters had committed; until then requests wait.
//!
//! When the mastership ends, everybody who waits is sent to the next master. What was proposed may still be committed;
//! a client repeats its request under the same id and gets the first answer.

use super::server::Server;
use super::stat::Counting;
use crate::chunk_state::Reported;
use crate::cs_registry::{CsRegistry, Registration};
use crate::reads::Reads;
use crate::repair::Repair;
use crate::sessions::Sessions;
use crate::sets::SetQueue;
use crate::space::Filling;
use crate::state::{ChunkView, State};
use shards::{Buf, ConnId, Io, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use wire::cs_api::{ChunkSet, CsCommand, CsReply, CsRequest};
use wire::frame::MAX_META_BYTES;
use wire::license::LicenseStatus;
use wire::mds_api::{MdsReply, MdsRequest, Severity};
use wire::{ChunkId, ClientId, CsId, Frame, Head, Kind, LeaseId, MdsId, Status};

/// Requests that wait for a new master to be ready; more are refused.
const MAX_EARLY: usize = 10_000;

/// Who hears of the outcome of a proposal.
pub enum Waiter {
    Nobody,
    Client {
        conn: ConnId,
        head: Head,
    },
    /// A chunk server that is told Done.
    Cs {
        conn: ConnId,
        head: Head,
    },
    Register {
        conn: ConnId,
        head: Head,
        registration: Box<Registration>,
    },
    /// The changes in flight of [`SetQueue`].
    Sets,
}

/// A request in the form it came, for later.
#[derive(Clone)]
pub enum Request {
    Mds(MdsRequest),
    Cs(CsRequest),
}

/// A read that waits for the quorum to confirm the master.
pub struct Read {
    pub conn: ConnId,
    pub head: Head,
    pub request: Request,
    pub patience: Patience,
}

/// How long a request may wait for chunk servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// It has not waited yet.
    Fresh,
    /// It waits, until then at most.
    Until(Timestamp),
}

impl Patience {
    /// Whether it must be answered now, whatever is missing.
    pub fn is_over(self, now: Timestamp) -> bool {
        matches!(self, Patience::Until(end) if end <= now)
    }
}

/// A request that waits for a chunk server to come, or to be seen as gone.
pub struct Parked {
    pub until: Timestamp,
    pub conn: ConnId,
    pub head: Head,
    pub request: MdsRequest,
}

pub struct Master {
    pub term: u64,
    pub ready: bool,
    pub proposals: BTreeMap<u64, (u64, Waiter)>,
    pub reads: Reads<Read>,
    pub sessions: Sessions,
    pub registry: CsRegistry,
    pub sets: SetQueue,
    pub repair: Repair,
    pub reported: Reported,
    pub counting: Counting,
    pub license: LicenseStatus,
    /// Servers that were dropped since this mastership began.
    pub dropped_at: BTreeMap<CsId, Timestamp>,
    pub parked: Vec<Parked>,
    /// Since when this master knows leases to be revoked.
    pub revoking_since: BTreeMap<LeaseId, Timestamp>,
    early: Vec<(ConnId, Head, Request)>,
    pub slow_at: Timestamp,
    pub deletes_at: Timestamp,
    pub told_health: Option<String>,
    pub filling: Filling,
    pub lagging: BTreeSet<MdsId>,
    pub replicating: bool,
    complain_at: Timestamp,
    passwords_at: Timestamp,
}

impl Master {
    fn new(term: u64, now: Timestamp) -> Master {
        Master {
            term,
            ready: false,
            proposals: BTreeMap::new(),
            reads: Reads::new(),
            sessions: Sessions::default(),
            registry: CsRegistry::new(now),
            sets: SetQueue::default(),
            repair: Repair::default(),
            reported: Reported::default(),
            counting: Counting::default(),
            license: LicenseStatus::Free,
            dropped_at: BTreeMap::new(),
            parked: Vec::new(),
            revoking_since: BTreeMap::new(),
            early: Vec::new(),
            slow_at: now,
            deletes_at: now,
            told_health: None,
            filling: Filling::default(),
            lagging: BTreeSet::new(),
            replicating: false,
            complain_at: now,
            passwords_at: now,
        }
    }

    /// Whether a failed allocation goes into the event log now: one a second says enough.
    pub fn may_complain(&mut self, now: Timestamp) -> bool {
        once_a_second(&mut self.complain_at, now)
    }

    /// The same for a wrong password.
    pub fn may_warn_of_passwords(&mut self, now: Timestamp) -> bool {
        once_a_second(&mut self.passwords_at, now)
    }

    /// The address of the shard that owns the chunk, as far as it is known.
    pub fn addr_of(&self, cs: CsId, chunk: ChunkId) -> SocketAddr {
        self.registry.addr_for(cs, chunk).unwrap_or(crate::cs_registry::UNKNOWN_ADDR)
    }

    pub fn chunk_set(&self, view: &ChunkView, state: &State) -> ChunkSet {
        ChunkSet {
            chunk: view.chunk,
            epoch: view.epoch,
            grant: view.to_grant(&|cs, chunk| self.addr_of(cs, chunk)),
            in_sync_until: view.in_sync_until.clone(),
            below_minimum_since: state.below_minimum_since(view.chunk),
        }
    }
}

fn once_a_second(next: &mut Timestamp, now: Timestamp) -> bool {
    let may = now >= *next;
    if may {
        *next = now.after(Duration::from_secs(1));
    }
    may
}

// Becoming and ceasing to be the master.
impl Server {
    /// Takes note of what raft decided about this server's role.
    pub(super) fn check_role(&mut self, io: &mut dyn Io) {
        let (leads, term) = (self.consensus.is_leader(), self.consensus.term());
        if self.master.as_ref().is_some_and(|m| !leads || m.term != term) {
            self.step_down(io);
        }
        if leads && self.master.is_none() {
            tracing::info!(name: "mds_leads", mds = self.me.0, term);
            self.master = Some(Master::new(term, io.now()));
        }
        if self.master.as_ref().is_some_and(|m| !m.ready) && self.consensus.caught_up() {
            self.become_ready(io);
        }
    }

    fn become_ready(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let clients: Vec<ClientId> = self.state.clients().iter().map(|c| c.client).collect();
        let Some(master) = &mut self.master else { return };
        master.ready = true;
        master.sessions = Sessions::new(clients.into_iter(), now);
        master.registry = CsRegistry::new(now);
        let early = std::mem::take(&mut master.early);
        tracing::info!(name: "mds_is_master", mds = self.me.0, term = self.consensus.term());
        self.complete_first_quorum(io);
        self.complete_foundation(io);
        let message = format!("MDS#{} at {} became master", self.me, self.config.control.addr);
        self.log_event("JRN", Severity::Info, message, io);
        for (conn, head, request) in early {
            self.dispatch(conn, head, request, io);
        }
    }

    fn step_down(&mut self, io: &mut dyn Io) {
        let Some(mut master) = self.master.take() else { return };
        tracing::info!(name: "mds_is_master_no_more", mds = self.me.0, term = master.term);
        for (_, waiter) in std::mem::take(&mut master.proposals).into_values() {
            self.refuse_waiter(waiter, io);
        }
        for group in master.sets.drain() {
            self.not_master(group.conn, group.head, group.from_cs, io);
        }
        for read in master.reads.drain() {
            self.not_master(read.conn, read.head, matches!(read.request, Request::Cs(_)), io);
        }
        for parked in master.parked {
            self.not_master(parked.conn, parked.head, false, io);
        }
        for (conn, head, request) in master.early {
            self.not_master(conn, head, matches!(request, Request::Cs(_)), io);
        }
        // Chunk servers look for the new master when their connection ends.
        for conn in self.net.cs_conns() {
            let events = self.net.drop_conn(conn, "not the master any more", io);
            self.on_net(events, io);
        }
    }

    /// Tells an asker where the master is.
    pub(super) fn not_master(&mut self, conn: ConnId, head: Head, cs: bool, io: &mut dyn Io) {
        let leader = self.consensus.leader().filter(|id| *id != self.me);
        let master = leader.and_then(|id| self.client_addr_of(id));
        let (status, detail) = match (leader, master) {
            (Some(id), Some(addr)) => (Status::NotMaster, format!("the master is MDS#{id} at {addr}")),
            _ => (Status::NotMaster, "no master is known at the moment: ask again soon".to_string()),
        };
        self.refuse(conn, head, cs, status, detail, master, io);
    }

    /// A proposal was not taken: another master, or this one has too much under way.
    pub(super) fn refuse_waiter(&mut self, waiter: Waiter, io: &mut dyn Io) {
        let (conn, head, cs) = match waiter {
            Waiter::Client { conn, head } => (conn, head, false),
            Waiter::Cs { conn, head } | Waiter::Register { conn, head, .. } => (conn, head, true),
            Waiter::Nobody | Waiter::Sets => return,
        };
        if self.consensus.is_leader() {
            let detail =
                "the metadata servers have too much to do or change their master: ask again".to_string();
            self.refuse(conn, head, cs, Status::NotReady, detail, None, io);
        } else {
            self.not_master(conn, head, cs, io);
        }
    }

    pub(super) fn refuse(
        &mut self,
        conn: ConnId,
        head: Head,
        cs: bool,
        status: Status,
        detail: String,
        master: Option<SocketAddr>,
        io: &mut dyn Io,
    ) {
        if cs {
            self.reply_cs(conn, head, &CsReply::Failed { status, detail, master }, io);
        } else {
            self.reply(conn, head, &MdsReply::Failed { status, detail, master }, io);
        }
    }

    pub(super) fn reply(&mut self, conn: ConnId, head: Head, reply: &MdsReply, io: &mut dyn Io) {
        let status = match reply {
            MdsReply::Failed { status, .. } => *status,
            _ => Status::Ok,
        };
        let meta = wire::encode!(reply);
        if meta.len() > MAX_META_BYTES {
            let detail = format!("the answer of {} bytes is too long: ask for less at a time", meta.len());
            return self.refuse(conn, head, false, Status::InvalidArgument, detail, None, io);
        }
        self.times.ended(conn, &head, status, io.now());
        self.net.send(conn, &Frame::new(head.reply(Kind::MdsReply, status), &meta, Buf::empty()), io);
    }

    pub(super) fn reply_cs(&mut self, conn: ConnId, head: Head, reply: &CsReply, io: &mut dyn Io) {
        let status = match reply {
            CsReply::Failed { status, .. } => *status,
            _ => Status::Ok,
        };
        let meta = wire::encode!(reply);
        if meta.len() > MAX_META_BYTES {
            let detail = format!("the answer of {} bytes is too long: ask about fewer chunks", meta.len());
            return self.refuse(conn, head, true, Status::InvalidArgument, detail, None, io);
        }
        self.net.send(conn, &Frame::new(head.reply(Kind::CsReply, status), &meta, Buf::empty()), io);
    }

    pub(super) fn command_cs(&mut self, conn: ConnId, command: &CsCommand, io: &mut dyn Io) {
        let head = self.net.unasked(Kind::CsCommand);
        self.net.send(conn, &Frame::new(head, &wire::encode!(command), Buf::empty()), io);
    }

    /// A request of an authenticated peer: refused, kept for later, or carried out.
    pub(super) fn request(&mut self, conn: ConnId, head: Head, request: Request, io: &mut dyn Io) {
        let cs = matches!(request, Request::Cs(_));
        if let (Request::Mds(request), Some(_)) = (&request, &self.master) {
            self.times.begins(conn, &head, request, io.now());
        }
        match &mut self.master {
            None => self.not_master(conn, head, cs, io),
            Some(master) if master.ready => self.dispatch(conn, head, request, io),
            Some(master) if master.early.len() < MAX_EARLY => master.early.push((conn, head, request)),
            Some(_) => {
                let detail = "the new master is not ready yet: ask again".to_string();
                self.refuse(conn, head, cs, Status::NotReady, detail, None, io);
            }
        }
    }

    fn dispatch(&mut self, conn: ConnId, head: Head, request: Request, io: &mut dyn Io) {
        match request {
            Request::Mds(request) => {
                self.requests.of_clients += 1;
                self.on_mds_request(conn, head, request, Patience::Fresh, io);
            }
            Request::Cs(request) => {
                self.requests.of_cs += 1;
                self.on_cs_request(conn, head, request, io);
            }
        }
    }
}
