//! The session with the metadata service: one connection to the master, found among the known addresses.
//!
//! A connection goes Handshake → Probing → Ready. The probe (OpenSession or KeepAlive) tells whether the other
//! side is the master and the session alive; only then are requests sent.
//!
//! Invariants:
//! - a request keeps its id over all repetitions, so a mutation that was executed but not answered gets its
//!   first answer again, never a second execution;
//! - a request is answered, refused for good, or ended at its deadline; which server holds the session is
//!   invisible above this file;
//! - after the session was lost, its leases are asked for anew before requests of the new session are sent.

use super::recent::Known;
use super::{ClientCore, Then};
use crate::config::KEEP_ALIVE;
use crate::error::ClientError;
use shards::sabotage::{Sabotage, on};
use shards::{ConnId, Io, Timestamp};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use wire::auth::Certificate;
use wire::hello::{Initiator, Peer, Step};
use wire::mds_api::{ClientNote, MdsReply, MdsRequest, mds_to_try};
use wire::{ClientId, Frame, Head, Kind, Status, encode};

/// Pause after all servers were asked in vain.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Wait after a certificate that could not be kept.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// How long making a connection may take before the next server is tried.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);
/// A session is trusted for its timeout less one part in so many: two clocks may differ by 3 %.
const DRIFT_PART: u32 = 32;

pub(super) struct Mds {
    addrs: Vec<SocketAddr>,
    /// Why each server was of no use when last tried.
    failures: BTreeMap<SocketAddr, Failure>,
    next: usize,
    /// Where the last asked server said the master is.
    hint: Option<SocketAddr>,
    /// Servers tried since one was of use.
    tried_in_vain: usize,
    link: Link,
    client: Option<ClientId>,
    had_session: bool,
    nonce: u64,
    generation: u64,
    last_request: u64,
    probe: u64,
    pending: BTreeMap<u64, Pending>,
    waiting_ready: Vec<(Timestamp, Then<ClientId>)>,
    last_heard: Timestamp,
    last_alive: Timestamp,
    /// The session's leases end when the service has not heard of it for so long.
    lease_timeout: Duration,
    /// When the newest probe that was answered was sent.
    confirmed: Timestamp,
    /// When to try again to keep this node's certificate.
    renew_at: Timestamp,
}

struct Failure {
    why: String,
    /// Trying again is useless: wrong key, wrong cluster, no common version.
    fatal: Option<Status>,
}

enum Link {
    /// `resume`: an alarm will connect again.
    Down,
    Handshake {
        conn: ConnId,
        addr: SocketAddr,
        machine: Box<Initiator>,
        since: Timestamp,
    },
    Probing {
        conn: ConnId,
        addr: SocketAddr,
    },
    Ready {
        conn: ConnId,
        addr: SocketAddr,
    },
}

pub(super) struct Pending {
    pub request: MdsRequest,
    pub began: Timestamp,
    pub sent: Option<Timestamp>,
    /// The session was doubted because of this request's refusal and found alive: the refusal is meant.
    doubted: bool,
    then: Then<MdsReply>,
}

impl Mds {
    /// Whether the leases of the session certainly stand: nobody can have taken them. After a pause of this process
    /// (or of the network) they may be gone before it hears of it. The clocks here and there need not run alike.
    pub fn session_is_sure(&self, now: Timestamp) -> bool {
        let trusted = self.lease_timeout - self.lease_timeout / DRIFT_PART;
        on(Sabotage::TrustOldLeases) || self.client.is_some() && now < self.confirmed.after(trusted)
    }

    /// How long a session lives without being heard of.
    pub fn lease_timeout(&self) -> Duration {
        self.lease_timeout
    }

    fn keep_alive_every(&self) -> Duration {
        KEEP_ALIVE.min(self.lease_timeout / 4)
    }

    pub fn new(addrs: &[SocketAddr]) -> Self {
        Mds {
            addrs: addrs.to_vec(),
            failures: BTreeMap::new(),
            next: 0,
            hint: None,
            tried_in_vain: 0,
            link: Link::Down,
            client: None,
            had_session: false,
            nonce: 0,
            generation: 0,
            last_request: 0,
            probe: 0,
            pending: BTreeMap::new(),
            waiting_ready: Vec::new(),
            last_heard: Timestamp(0),
            last_alive: Timestamp(0),
            lease_timeout: Duration::ZERO,
            confirmed: Timestamp(0),
            renew_at: Timestamp(0),
        }
    }

    pub fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::Down => None,
            Link::Handshake { conn, .. } | Link::Probing { conn, .. } | Link::Ready { conn, .. } => {
                Some(*conn)
            }
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        match &self.link {
            Link::Down => None,
            Link::Handshake { addr, .. } | Link::Probing { addr, .. } | Link::Ready { addr, .. } => {
                Some(*addr)
            }
        }
    }

    pub fn client(&self) -> Option<ClientId> {
        self.client
    }

    /// Each known server and what came of it, for people.
    pub fn tried(&self) -> String {
        let one = |addr: &SocketAddr| match self.failures.get(addr) {
            Some(f) => format!("{addr}: {}", f.why),
            None => format!("{addr}: no answer"),
        };
        self.addrs.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }
}

/// A name for oneself in handshakes: a session once there is one.
pub(super) fn nonce(io: &mut dyn Io) -> [u8; 32] {
    let mut nonce = [0; 32];
    for part in nonce.chunks_mut(8) {
        part.copy_from_slice(&io.random().to_le_bytes());
    }
    nonce
}

impl ClientCore {
    pub(super) fn mds_start(&mut self, io: &mut dyn Io) {
        self.mds.nonce = io.random();
        self.mds.next =
            if self.mds.addrs.is_empty() { 0 } else { io.random() as usize % self.mds.addrs.len() };
        self.mds_connect(io);
    }

    /// Completes when there is a session.
    pub(super) fn when_ready(&mut self, io: &mut dyn Io, then: Then<ClientId>) {
        match (&self.mds.link, self.mds.client) {
            (Link::Ready { .. }, Some(client)) => then(self, io, Ok(client)),
            _ => {
                let deadline = io.now().after(self.config.start_timeout);
                self.mds.waiting_ready.push((deadline, then));
            }
        }
    }

    /// Answers a request from what is known, or else: sends it when the session stands; repeats it until it is answered or its
    /// time is over.
    pub(super) fn mds_call(&mut self, io: &mut dyn Io, request: MdsRequest, then: Then<MdsReply>) {
        match self.recent.answer(&request, io.now()) {
            Some(Known::Answer(answer)) => then(self, io, answer),
            Some(Known::IfUnchanged(directory)) => self.mds_ask(
                io,
                MdsRequest::GetAttr { file: directory },
                Box::new(move |core, io, _| match core.recent.answer(&request, io.now()) {
                    Some(Known::Answer(answer)) => then(core, io, answer),
                    _ => core.mds_ask(io, request, then),
                }),
            ),
            None => self.mds_ask(io, request, then),
        }
    }

    fn mds_ask(&mut self, io: &mut dyn Io, request: MdsRequest, then: Then<MdsReply>) {
        let id = self.mds.next_request();
        self.stats.mds_requests += 1;
        self.mds.pending.insert(id, Pending { request, sent: None, began: io.now(), doubted: false, then });
        self.mds_send(io, id);
    }

    fn mds_send(&mut self, io: &mut dyn Io, id: u64) {
        let (Link::Ready { conn, .. }, Some(client)) = (&self.mds.link, self.mds.client) else { return };
        let Some(pending) = self.mds.pending.get_mut(&id) else { return };
        set_client(&mut pending.request, client);
        pending.sent = Some(io.now());
        let frame =
            Frame::new(Head::new(Kind::MdsRequest, id), &encode!(&pending.request), shards::Buf::empty());
        io.send(*conn, frame.encode());
    }

    fn mds_connect(&mut self, io: &mut dyn Io) {
        if self.mds.conn().is_some() || self.stop_said || self.mds.addrs.is_empty() {
            return;
        }
        let addr = match self.mds.hint.take() {
            Some(addr) => addr,
            None => {
                self.mds.next = (self.mds.next + 1) % self.mds.addrs.len();
                self.mds.addrs[self.mds.next]
            }
        };
        self.mds.generation += 1;
        let me = match self.mds.client {
            Some(client) => Peer::Client { client, generation: self.mds.generation },
            None => Peer::Tool,
        };
        let (machine, hello) =
            Initiator::new(self.config.credentials.clone(), &self.config.cluster, me, nonce(io));
        let conn = io.connect(addr);
        io.send(conn, hello.encode());
        self.stats.mds_connects += 1;
        self.mds.last_heard = io.now();
        self.mds.link = Link::Handshake { conn, addr, machine: Box::new(machine), since: io.now() };
    }

    /// The connection is of no use: goes on to the server named as master, or to the next, or pauses.
    fn mds_next(&mut self, io: &mut dyn Io, why: String, fatal: Option<Status>, hint: Option<SocketAddr>) {
        if let Some(addr) = self.mds.addr() {
            tracing::info!(%addr, why, "mds_unusable");
            self.mds.failures.insert(addr, Failure { why, fatal });
            if hint.is_none_or(|h| h == addr) {
                self.mds.hint = None;
            } else {
                self.mds.hint = hint;
            }
        }
        if let Some(hint) = self.mds.hint
            && !self.mds.addrs.contains(&hint)
        {
            self.mds.addrs.push(hint);
        }
        if let Some(conn) = self.mds.conn() {
            io.close(conn);
        }
        self.mds.link = Link::Down;
        for pending in self.mds.pending.values_mut() {
            pending.sent = None;
        }
        self.mds_give_up_if_hopeless(io);
        self.mds.tried_in_vain += 1;
        if self.mds.tried_in_vain.is_multiple_of(self.mds.addrs.len().max(1)) {
            self.after(io, ROUND_PAUSE, Box::new(|core, io| core.mds_connect(io)));
        } else {
            self.mds_connect(io);
        }
    }

    /// Every server refused for a reason that trying again can't change.
    fn mds_give_up_if_hopeless(&mut self, io: &mut dyn Io) {
        let fatal = |a: &SocketAddr| self.mds.failures.get(a).and_then(|f| f.fatal);
        if self.mds.had_session || !self.mds.addrs.iter().all(|a| fatal(a).is_some()) {
            return;
        }
        let status = self.mds.addrs.iter().find_map(fatal).unwrap_or(Status::WrongPassword);
        let why = ClientError::refused(status, self.mds.tried());
        for (_, then) in std::mem::take(&mut self.mds.waiting_ready) {
            then(self, io, Err(why.clone()));
        }
    }

    pub(super) fn mds_lost(&mut self, io: &mut dyn Io, why: String) {
        self.mds_next(io, why, None, None);
    }

    pub(super) fn mds_frame(&mut self, io: &mut dyn Io, frame: Frame) {
        self.mds.last_heard = io.now();
        if let Link::Handshake { conn, addr, machine, .. } = &mut self.mds.link {
            let (conn, addr) = (*conn, *addr);
            match machine.on_frame(&frame, io.channel(conn)) {
                Ok(Step::Send(frame)) => io.send(conn, frame.encode()),
                Ok(Step::Finished { send, .. }) => {
                    if let Some(frame) = send {
                        io.send(conn, frame.encode());
                    }
                    self.mds.link = Link::Probing { conn, addr };
                    self.mds_probe(io);
                }
                Err(failed) => {
                    if failed.status == Status::NotEncrypted {
                        io.encrypt(true);
                    }
                    if let Some(reply) = failed.reply {
                        io.send(conn, reply.encode());
                    }
                    let fatal = matches!(
                        failed.status,
                        Status::WrongPassword | Status::TakenOut | Status::WrongCluster | Status::Version
                    );
                    self.mds_next(io, failed.reason, fatal.then_some(failed.status), None);
                }
            }
            return;
        }
        match frame.head.kind {
            Kind::MdsReply => match wire::decode!(MdsReply, &frame.meta) {
                Ok(reply) if frame.head.request == self.mds.probe => self.mds_probed(io, reply),
                Ok(reply) => self.mds_reply(io, frame.head.request, reply),
                Err(why) => self.mds_next(io, format!("sent a malformed reply: {why}"), None, None),
            },
            Kind::ClientNote => match wire::decode!(ClientNote, &frame.meta) {
                Ok(ClientNote::Revoked { leases }) => self.leases_revoked(io, &leases),
                Ok(ClientNote::Settle { file }) => self.settle(io, file),
                Ok(ClientNote::GoOn { file }) => self.go_on(io, file),
                Err(why) => self.mds_next(io, format!("sent a malformed note: {why}"), None, None),
            },
            Kind::Ping => {
                if let Some(conn) = self.mds.conn() {
                    io.send(conn, Frame::bare(frame.head.reply(Kind::Pong, Status::Ok)).encode());
                }
            }
            Kind::Pong => {}
            other => self.mds_next(io, format!("sent an unexpected {other:?}"), None, None),
        }
    }

    /// Asks whether this server is the master and the session alive; opens a session when there is none.
    fn mds_probe(&mut self, io: &mut dyn Io) {
        let Some(conn) = self.mds.conn() else { return };
        self.mds.probe = self.mds.next_request();
        let request = match self.mds.client {
            Some(client) => {
                MdsRequest::KeepAlive { client, generation: self.config.credentials.generation() }
            }
            None => MdsRequest::OpenSession {
                host: self.config.host.clone(),
                mount_point: self.config.mount_point.clone(),
                nonce: self.mds.nonce,
            },
        };
        self.mds.last_alive = io.now();
        let head = Head::new(Kind::MdsRequest, self.mds.probe);
        io.send(conn, Frame::new(head, &encode!(&request), shards::Buf::empty()).encode());
    }

    fn mds_probed(&mut self, io: &mut dyn Io, reply: MdsReply) {
        self.mds.probe = 0;
        match reply {
            MdsReply::Session { client, lease_timeout_ms } => {
                self.mds.lease_timeout = Duration::from_millis(lease_timeout_ms.into());
                tracing::info!(%client, "session_open");
                self.mds.client = Some(client);
                let renewed = self.mds.had_session;
                self.mds.had_session = true;
                self.mds_ready(io);
                if renewed {
                    self.leases_recover(io);
                }
                self.mds_send_unsent(io);
            }
            MdsReply::Alive { revoked, mds, certificate } => {
                if let Some(certificate) = certificate {
                    self.renew(io, &certificate);
                }
                self.mds.addrs = mds_to_try(&mds, &self.config.mds);
                self.mds_ready(io);
                self.leases_revoked(io, &revoked);
                self.mds_send_unsent(io);
            }
            MdsReply::Failed { status: Status::StaleHandle, detail, .. } if self.mds.client.is_some() => {
                tracing::warn!(client = ?self.mds.client, detail, "session_lost");
                self.mds.client = None;
                self.mds.nonce = io.random();
                self.leases_lost_with_session();
                if let Link::Ready { conn, addr } = self.mds.link {
                    self.mds.link = Link::Probing { conn, addr };
                }
                self.mds_probe(io);
            }
            MdsReply::Failed { status, detail, master } => {
                let why = if detail.is_empty() { status.text().to_string() } else { detail };
                self.mds_next(io, why, None, master);
            }
            other => self.mds_next(io, format!("answered a session request with {other:?}"), None, None),
        }
    }

    /// Takes this node's certificate of newer keys.
    fn renew(&mut self, io: &mut dyn Io, certificate: &Certificate) {
        if io.now() < self.mds.renew_at {
            return;
        }
        match self.config.credentials.renew(certificate) {
            Ok(true) => {
                tracing::info!(generation = certificate.generation, "certificate_renewed");
                self.links_part(io);
            }
            Ok(false) => {}
            Err(why) => {
                tracing::error!(why, "certificate_not_renewed");
                self.mds.renew_at = io.now().after(RENEW_AGAIN);
            }
        }
    }

    fn mds_ready(&mut self, io: &mut dyn Io) {
        if let Link::Probing { conn, addr } = self.mds.link {
            self.mds.link = Link::Ready { conn, addr };
            tracing::info!(%addr, "mds_ready");
        }
        self.mds.tried_in_vain = 0;
        self.mds.failures.clear();
        self.mds.confirmed = self.mds.last_alive;
        for part in std::mem::take(&mut self.unsure_reads) {
            self.part_run(io, part);
        }
        if let Some(client) = self.mds.client {
            for (_, then) in std::mem::take(&mut self.mds.waiting_ready) {
                then(self, io, Ok(client));
            }
        }
    }

    fn mds_send_unsent(&mut self, io: &mut dyn Io) {
        let unsent: Vec<u64> =
            self.mds.pending.iter().filter(|(_, p)| p.sent.is_none()).map(|(id, _)| *id).collect();
        for id in unsent {
            self.mds_send(io, id);
        }
    }

    fn mds_reply(&mut self, io: &mut dyn Io, id: u64, reply: MdsReply) {
        if !self.mds.pending.contains_key(&id) {
            return; // The answer to a request that was given up.
        }
        match reply {
            MdsReply::Failed {
                status: Status::NotMaster | Status::NotReady | Status::ShuttingDown,
                detail,
                master,
            } => {
                self.mds_next(
                    io,
                    if detail.is_empty() { "not the master".into() } else { detail },
                    None,
                    master,
                );
            }
            MdsReply::Failed { status: Status::StaleHandle, detail, .. } => {
                let pending = self.mds.pending.get_mut(&id).expect("looked up above");
                if pending.doubted || !names_client(&pending.request) {
                    return self.mds_finish(io, id, Err(ClientError::refused(Status::StaleHandle, detail)));
                }
                // The session may be gone: ask, then repeat the request.
                pending.doubted = true;
                pending.sent = None;
                if let Link::Ready { conn, addr } = self.mds.link {
                    self.mds.link = Link::Probing { conn, addr };
                    self.mds_probe(io);
                }
            }
            MdsReply::Failed { status, detail, .. } => {
                self.mds_finish(io, id, Err(ClientError::refused(status, detail)));
            }
            reply => self.mds_finish(io, id, Ok(reply)),
        }
    }

    fn mds_finish(&mut self, io: &mut dyn Io, id: u64, result: crate::Result<MdsReply>) {
        if let Some(pending) = self.mds.pending.remove(&id) {
            let now = io.now();
            self.recent.learn(&pending.request, &result, pending.sent.unwrap_or(now), now);
            self.note_metadata(id, &pending, io);
            (pending.then)(self, io, result);
        }
    }

    pub(super) fn mds_tick(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let silent = now.since(self.mds.last_heard);
        match &self.mds.link {
            Link::Handshake { since, .. } if now.since(*since) > CONNECT_WITHIN => {
                self.mds_next(io, format!("no answer within {} ms", CONNECT_WITHIN.as_millis()), None, None);
            }
            Link::Probing { .. } if silent > self.config.mds_silence => {
                self.mds_next(io, format!("silent for {} ms", silent.as_millis()), None, None);
            }
            Link::Ready { .. } => {
                let owes = self.mds.probe != 0
                    || self
                        .mds
                        .pending
                        .values()
                        .any(|p| p.sent.is_some_and(|at| now.since(at) > self.config.mds_silence));
                if owes && silent > self.config.mds_silence {
                    self.mds_next(io, format!("silent for {} ms", silent.as_millis()), None, None);
                } else if self.mds.probe == 0 && now.since(self.mds.last_alive) >= self.mds.keep_alive_every()
                {
                    self.mds_probe(io);
                }
            }
            _ => {}
        }
        self.mds_expire(io, now);
    }

    fn mds_expire(&mut self, io: &mut dyn Io, now: Timestamp) {
        let why = ClientError::MdsUnreachable { detail: self.mds.tried() };
        let waiting = std::mem::take(&mut self.mds.waiting_ready);
        let (late, early) = waiting.into_iter().partition(|(deadline, _)| *deadline <= now);
        self.mds.waiting_ready = early;
        let late: Vec<(Timestamp, Then<ClientId>)> = late;
        for (_, then) in late {
            then(self, io, Err(why.clone()));
        }
        let is_over = |p: &Pending| p.began.after(self.config.io_timeout) <= now;
        let expired: Vec<u64> =
            self.mds.pending.iter().filter(|(_, p)| is_over(p)).map(|(id, _)| *id).collect();
        for id in expired {
            tracing::warn!(request = id, tried = self.mds.tried(), "mds_request_timed_out");
            self.mds_finish(io, id, Err(why.clone()));
        }
    }

    /// Last words of a stopping client: ends the session so that its leases are free at once.
    pub(super) fn mds_bye(&mut self, io: &mut dyn Io) {
        if let (Link::Ready { conn, .. }, Some(client)) = (&self.mds.link, self.mds.client) {
            let id = self.mds.last_request + 1;
            let frame = Frame::new(
                Head::new(Kind::MdsRequest, id),
                &encode!(&MdsRequest::CloseSession { client }),
                shards::Buf::empty(),
            );
            io.send(*conn, frame.encode());
        }
    }
}

/// Writes the session into a request that names its client.
fn set_client(request: &mut MdsRequest, to: ClientId) {
    if let Some(client) = client_field(request) {
        *client = to;
    }
}

fn names_client(request: &MdsRequest) -> bool {
    client_field(&mut request.clone()).is_some()
}

fn client_field(request: &mut MdsRequest) -> Option<&mut ClientId> {
    use MdsRequest as R;
    match request {
        R::KeepAlive { client, .. }
        | R::CloseSession { client }
        | R::SetAttr { client, .. }
        | R::Create { client, .. }
        | R::Unlink { client, .. }
        | R::Rename { client, .. }
        | R::SetXattr { client, .. }
        | R::RemoveXattr { client, .. }
        | R::Open { client, .. }
        | R::Release { client, .. }
        | R::Extend { client, .. }
        | R::Settle { client, .. }
        | R::Allocate { client, .. } => Some(client),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_clock_does_not_trust_a_session_that_has_ended() {
        let mut mds = Mds::new(&[]);
        let sent = Timestamp(5_000_000_000);
        (mds.client, mds.confirmed, mds.lease_timeout) = (Some(ClientId(1)), sent, Duration::from_secs(10));
        // What this clock shows when the master's, which is 3 % faster, has counted the whole timeout.
        let ended_there = sent.after(Duration::from_secs(10) * 100 / 103);
        assert!(mds.session_is_sure(sent.after(Duration::from_secs(9))));
        assert!(!mds.session_is_sure(ended_there));
    }
}
