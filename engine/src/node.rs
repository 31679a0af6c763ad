//! One shard of a chunk server as a node: connections, the session with the metadata service, and the wiring between
//! them, [`Replication`] and [`Store`].
//!
//! Invariants:
//! - nothing of a connection is handled before its handshake, and nothing of an older connection of a peer after a
//!   newer one was accepted;
//! - a request to the metadata service that must not be lost (Suspect, Joined, Deleted …) is repeated to every new
//!   master until it is answered.

use crate::latency::Waits;
use crate::metrics::ShardFigures;
use crate::replication::{Action, Latencies, Replication, Stats, done_kind};
use crate::scrub::Scrub;
use crate::store::{Outcome, Store, StoreConfig};
use shards::{Channel, ConnId, Event, Io, Node, OpId, TimerId, Timestamp};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use wire::auth::{Certificate, Credentials, Member};
use wire::cs_api::{ChunkReport, CsCommand, CsReply, CsRequest, Load, ShardStat, Space};
use wire::hello::{Acceptor, GREETING_TIMEOUT, Initiator, MAX_GREETING, Peer, Rules, Step};
use wire::mds_api::{Severity, mds_to_try};
use wire::{ChunkId, CsId, Frame, Head, Kind, ShardIndex, Status, decode, encode};

const TICK: TimerId = TimerId(0x04 << 56);
const TICK_EVERY: Duration = Duration::from_millis(20);
const PORT_OP: OpId = OpId(0x04 << 56 | 1);
const SCRUB_OP: OpId = OpId(0x04 << 56 | 2);
/// How often the place of the scrub is written down.
const SAVE_SCRUB_EVERY: Duration = Duration::from_secs(30);
/// Where a shard's port is chosen from at its first start.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_TRIES: u32 = 50;
/// Wait after a certificate that could not be kept.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);
/// Between attempts to reach a peer or a metadata server.
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// A metadata server that is silent for longer is given up for the next one.
const REGISTER_PATIENCE: Duration = Duration::from_secs(3);
/// The same while we look for the master. Shorter than the grace of a new one (mds/src/cs_registry.rs): it is still found in
/// time after one silent server was tried. Else it would take all chunk servers for gone, and their replicas out of the sets.
const FIND_PATIENCE: Duration = Duration::from_millis(1500);
/// An end waits so long for requests of clients under way, some of which may wait for servers that are gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// And so long for the read cache to write down what it holds.
const SAVE_CACHE_WITHIN: Duration = Duration::from_secs(3);
const REPORT_PAGE: usize = 10_000;
/// How often chunks that have appeared are reported. A message of a primary that was long on its way may bring back a
/// chunk that this shard was told to delete.
const REPORT_NEW_EVERY: Duration = Duration::from_secs(10);

/// Somebody asks for the figures of the shard; dropped while it has none.
pub type Look = Box<dyn FnOnce(ShardFigures) + Send>;

/// What a shard must be told.
#[derive(Clone, Debug)]
pub struct CsShardConfig {
    pub cluster: String,
    pub credentials: Credentials,
    pub cs: CsId,
    pub shard: ShardIndex,
    pub shards: u16,
    /// Address to listen on; the port is chosen at the first start and kept.
    pub ip: IpAddr,
    pub mds: Vec<SocketAddr>,
    /// Grows with every start of the process.
    pub incarnation: u64,
    pub host_id: [u8; 16],
    pub host: String,
    /// room.row.rack, or empty.
    pub location: String,
    pub tier: u8,
    /// Shown in stat.
    pub flags: String,
    pub store: StoreConfig,
    /// A peer with outstanding work that is silent for longer has failed.
    pub detect: Duration,
    /// A replica that is much slower than the others for so long is to be taken out for a while.
    pub slow_after: Duration,
    /// A request that takes longer is logged.
    pub slow_request: Duration,
}

/// How much a shard has to remember because of work that has not ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Backlog {
    /// Requests of clients under way or waiting, and fills.
    pub requests: usize,
    /// Operations of the store, frames for peers that are not connected, requests to the metadata service.
    pub remembered: usize,
}

/// An accepted connection.
enum Guest {
    Greeting { acceptor: Box<Acceptor>, since: Timestamp },
    Known { peer: Peer, member: Option<Member> },
}

/// A connection to another shard.
struct Link {
    conn: Option<ConnId>,
    /// Who has proved to be at the other end.
    member: Option<Member>,
    greeting: Option<Initiator>,
    ready: bool,
    waiting: Vec<Frame>,
    last_heard: Timestamp,
    last_ping: Timestamp,
    retry_at: Timestamp,
    was_down: bool,
}

/// The session with the master.
#[derive(Default)]
struct Session {
    conn: Option<ConnId>,
    greeting: Option<Initiator>,
    registered: bool,
    /// Metadata servers as the master last named them; empty before it did.
    servers: Vec<SocketAddr>,
    /// Which of the known servers to try next, or the one we were sent to.
    next: usize,
    redirect: Option<SocketAddr>,
    retry_at: Timestamp,
    began: Timestamp,
    last_heartbeat: Timestamp,
    last_heard: Timestamp,
    next_request: u64,
    /// Unanswered, by request id.
    pending: BTreeMap<u64, CsRequest>,
    /// When registrations and heartbeats were sent that have no answer yet.
    asked_at: VecDeque<Timestamp>,
    /// When chunks that have appeared are told next.
    report_at: Timestamp,
    /// When to try again to keep this node's certificate.
    renew_at: Timestamp,
}

pub struct CsShard {
    config: CsShardConfig,
    store: Option<Store>,
    replication: Replication,
    guests: HashMap<ConnId, Guest>,
    rules: Rules,
    links: BTreeMap<SocketAddr, Link>,
    link_of: HashMap<ConnId, SocketAddr>,
    session: Session,
    addr: Option<SocketAddr>,
    scrub: Scrub,
    scrub_saved: (Timestamp, Vec<u8>),
    /// For connections we make: grows.
    generation: u64,
    stopping_since: Option<Timestamp>,
    /// Empty; kept for their memory.
    spare_actions: Vec<Action>,
    spare_outcomes: Vec<Outcome>,
    disk_waits: Waits,
}

impl CsShard {
    pub fn new(config: CsShardConfig) -> CsShard {
        let replication = Replication::new(config.cs, config.slow_after, config.slow_request);
        // Connections of a later process must win over those of an earlier one.
        let generation = config.incarnation << 24;
        CsShard {
            config,
            store: None,
            replication,
            guests: HashMap::new(),
            rules: Rules::default(),
            links: BTreeMap::new(),
            link_of: HashMap::new(),
            session: Session::default(),
            addr: None,
            // Off until the metadata service says how often.
            scrub: Scrub::new(Duration::ZERO, None),
            scrub_saved: (Timestamp(0), Vec::new()),
            generation,
            stopping_since: None,
            spare_actions: Vec::new(),
            spare_outcomes: Vec::new(),
            disk_waits: Waits::default(),
        }
    }

    /// The store, for checkers in tests.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Chunks served here as primary, and at which epoch; for checkers in tests.
    pub fn active_chunks(&self) -> impl Iterator<Item = (ChunkId, wire::Epoch)> {
        self.replication.active_chunks()
    }

    /// Replicas that are being filled from here, for tests that choose the moment.
    pub fn learners(&self) -> impl Iterator<Item = SocketAddr> {
        self.replication.learners()
    }

    /// Counters, for checkers in tests.
    pub fn stats(&self) -> Stats {
        self.replication.stats
    }

    /// For checkers in tests: nothing piles up, and nothing is left when all is quiet.
    pub fn backlog(&self) -> Backlog {
        let frames: usize = self.links.values().map(|l| l.waiting.len()).sum();
        Backlog {
            requests: self.replication.queue_depth(),
            remembered: self.replication.remembered() + frames + self.session.pending.len(),
        }
    }

    /// What this shard knows of a chunk, for people who look for the reason of a failed test.
    pub fn explain(&self, chunk: ChunkId) -> String {
        let stored = self.store.as_ref().and_then(|s| s.chunk(chunk));
        format!("{} stored {stored:?}", self.replication.explain(chunk))
    }

    fn port_path(&self) -> String {
        format!("{}/port", self.config.store.dir)
    }

    fn start(&mut self, io: &mut dyn Io) {
        match Store::open(io, &self.config.store) {
            Ok(store) => self.store = Some(store),
            Err(error) => return io.stop(Err(error.to_string())),
        }
        io.set_timer(io.now().after(TICK_EVERY), TICK);
    }

    fn scrub_path(&self) -> String {
        format!("{}/scrub", self.config.store.dir)
    }

    /// Verifies a little of what is stored, when it is time and nobody waits.
    fn scrub_on(&mut self, io: &mut dyn Io) {
        let Some(store) = self.store.as_mut() else { return };
        for (piece, damaged) in self.replication.take_scrubbed() {
            self.scrub.done(piece, damaged);
        }
        let busy = self.replication.queue_depth() > 0;
        if let Some(piece) = self.scrub.next(io.now(), store, busy) {
            self.replication.scrub(piece, store, io);
        }
        if io.now().since(self.scrub_saved.0) >= SAVE_SCRUB_EVERY {
            let place = self.scrub.save();
            self.scrub_saved.0 = io.now();
            if place != self.scrub_saved.1 {
                io.put_blob(&self.scrub_path(), place.clone(), SCRUB_OP);
                self.scrub_saved.1 = place;
            }
        }
    }

    /// The store is open: listen, then register.
    fn listen(&mut self, io: &mut dyn Io) {
        let saved = io.get_blob(&self.scrub_path()).ok().flatten();
        self.scrub = Scrub::new(Duration::ZERO, saved.as_deref());
        let kept = io.get_blob(&self.port_path()).ok().flatten();
        let kept = kept.and_then(|b| String::from_utf8(b).ok()).and_then(|t| t.trim().parse::<u16>().ok());
        let bound = match kept {
            Some(port) => io.listen(SocketAddr::new(self.config.ip, port)),
            None => self.listen_anywhere(io),
        };
        match bound {
            Ok(addr) => {
                self.addr = Some(addr);
                if kept != Some(addr.port()) {
                    let path = self.port_path();
                    io.put_blob(&path, addr.port().to_string().into_bytes(), PORT_OP);
                }
            }
            Err(error) => io.stop(Err(format!(
                "{error}. Stop the program that uses it ('ss -ltnp' shows which), or delete {} to have another port \
                 chosen",
                self.port_path()
            ))),
        }
    }

    /// Takes a free port below those the kernel gives to outgoing connections, so that none of these can hold it when
    /// this server starts again.
    fn listen_anywhere(&self, io: &mut dyn Io) -> std::io::Result<SocketAddr> {
        for _ in 0..PORT_TRIES {
            let port = PORTS.start + (io.random() % PORTS.len() as u64) as u16;
            if let Ok(addr) = io.listen(SocketAddr::new(self.config.ip, port)) {
                return Ok(addr);
            }
        }
        io.listen(SocketAddr::new(self.config.ip, 0))
    }

    fn me(&mut self) -> Peer {
        self.generation += 1;
        Peer::CsShard { cs: self.config.cs, shard: self.config.shard, generation: self.generation }
    }

    fn greet(&mut self, io: &mut dyn Io, conn: ConnId) -> Initiator {
        let me = self.me();
        let (greeting, hello) =
            Initiator::new(self.config.credentials.clone(), &self.config.cluster, me, nonce(io));
        io.send(conn, hello.encode());
        greeting
    }

    /// From now on these rules hold.
    fn set_rules(&mut self, io: &mut dyn Io, rules: Rules) {
        if self.rules == rules {
            return;
        }
        if self.rules.encrypts != rules.encrypts {
            tracing::info!(on = rules.encrypts, "encryption");
            io.encrypt(rules.encrypts);
        }
        let plain_ends = rules.encrypts && !self.rules.encrypts;
        self.rules = rules;
        self.part(io, plain_ends);
    }

    /// Takes this node's certificate of newer keys.
    fn renew(&mut self, io: &mut dyn Io, certificate: &Certificate) {
        if io.now() < self.session.renew_at {
            return;
        }
        match self.config.credentials.renew(certificate) {
            Ok(true) => {
                tracing::info!(generation = certificate.generation, "certificate_renewed");
                self.part(io, false);
            }
            Ok(false) => {}
            Err(why) => {
                tracing::error!(why, "certificate_not_renewed");
                self.session.renew_at = io.now().after(RENEW_AGAIN);
            }
        }
    }

    fn is_admitted(&self, member: Option<&Member>) -> bool {
        self.rules.admit(member).is_ok() && member.is_none_or(|m| self.config.credentials.trusts(m))
    }

    /// Closes accepted connections that break the rules (who may makes them anew), and those to nodes that are not admitted.
    fn part(&mut self, io: &mut dyn Io, plain_ends: bool) {
        let breaks_them = |conn: &ConnId, guest: &Guest| {
            let member = if let Guest::Known { member, .. } = guest { member.as_ref() } else { None };
            !self.is_admitted(member) || plain_ends && io.channel(*conn) == Channel::Plain
        };
        let guests: Vec<ConnId> =
            self.guests.iter().filter(|(conn, g)| breaks_them(conn, g)).map(|(conn, _)| *conn).collect();
        for conn in guests {
            self.guests.remove(&conn);
            io.close(conn);
        }
        let outside: Vec<(SocketAddr, ConnId)> = self
            .links
            .iter()
            .filter(|(_, link)| !self.is_admitted(link.member.as_ref()))
            .filter_map(|(addr, link)| Some((*addr, link.conn?)))
            .collect();
        for (addr, conn) in outside {
            io.close(conn);
            self.link_lost(
                io,
                addr,
                "its node was taken out of the cluster, or the cluster's keys have changed",
            );
        }
    }

    /// Closes accepted connections that don't say who they are.
    fn watch_guests(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let overdue = |guest: &Guest| match guest {
            Guest::Greeting { since, .. } => now.since(*since) > GREETING_TIMEOUT,
            Guest::Known { .. } => false,
        };
        let late: Vec<ConnId> =
            self.guests.iter().filter(|(_, guest)| overdue(guest)).map(|(conn, _)| *conn).collect();
        for conn in late {
            self.guests.remove(&conn);
            io.close(conn);
        }
    }

    fn accepted(&mut self, io: &mut dyn Io, conn: ConnId) {
        let greeting = self.guests.values().filter(|g| matches!(g, Guest::Greeting { .. })).count();
        if greeting >= MAX_GREETING {
            return io.close(conn);
        }
        let me = self.me();
        let acceptor = Acceptor::new(self.config.credentials.clone(), &self.config.cluster, me, nonce(io));
        self.guests.insert(conn, Guest::Greeting { acceptor: Box::new(acceptor), since: io.now() });
    }

    // ---- accepted connections ----

    fn guest_frame(&mut self, io: &mut dyn Io, conn: ConnId, frame: Frame) {
        match self.guests.get_mut(&conn) {
            Some(Guest::Greeting { acceptor, .. }) => {
                match acceptor.on_frame(&frame, io.channel(conn), &self.rules) {
                    Ok(Step::Send(reply)) => io.send(conn, reply.encode()),
                    Ok(Step::Finished { send, peer, member, .. }) => {
                        let older: Vec<ConnId> = self
                            .guests
                            .iter()
                            .filter(
                                |(_, g)| matches!(g, Guest::Known { peer: old, .. } if peer.replaces(old)),
                            )
                            .map(|(c, _)| *c)
                            .collect();
                        for old in older {
                            self.guests.remove(&old);
                            io.close(old);
                        }
                        self.guests.insert(conn, Guest::Known { peer, member });
                        if let Some(welcome) = send {
                            io.send(conn, welcome.encode());
                        }
                    }
                    Err(failed) => {
                        tracing::warn!(reason = %failed.reason, "refused a connection");
                        if let Some(reply) = failed.reply {
                            io.send(conn, reply.encode());
                        }
                        self.guests.remove(&conn);
                        io.close(conn);
                    }
                }
            }
            Some(Guest::Known { .. }) => self.request(io, conn, frame),
            None => {}
        }
    }

    fn request(&mut self, io: &mut dyn Io, conn: ConnId, frame: Frame) {
        if frame.head.kind == Kind::Identify {
            return io.send(conn, wire::identity::answer(&frame, io.wall_ms()).encode());
        }
        let Some(store) = self.store.as_mut().filter(|s| s.is_ready()) else { return };
        match frame.head.kind {
            Kind::Ping => io.send(conn, Frame::bare(frame.head.reply(Kind::Pong, Status::Ok)).encode()),
            Kind::ShardStat => {
                let Some(stat) = self.stat(io.now()) else { return };
                let head = frame.head.reply(Kind::ShardStatDone, Status::Ok);
                io.send(conn, Frame::new(head, &encode!(&stat), shards::Buf::empty()).encode());
            }
            Kind::Traces => {
                let traces = self.replication.traces(frame.head.trace);
                let head = frame.head.reply(Kind::TracesDone, Status::Ok);
                io.send(conn, Frame::new(head, &encode!(&traces), shards::Buf::empty()).encode());
            }
            // Asked again, it is another server that leads.
            Kind::Write | Kind::Read | Kind::Discard if self.stopping_since.is_some() => {
                let busy = frame.head.reply(done_kind(frame.head.kind), Status::Busy);
                io.send(conn, Frame::bare(busy).encode());
            }
            _ => {
                self.replication.on_request(conn, frame, store, io);
                self.act(io);
            }
        }
    }

    /// `None` until the store is open.
    fn stat(&mut self, now: Timestamp) -> Option<ShardStat> {
        let store = self.store.as_ref().filter(|s| s.is_ready())?;
        let stats = self.replication.stats;
        Some(ShardStat {
            cs: self.config.cs,
            shard: self.config.shard,
            load: load(&self.replication, &self.scrub, store, &mut self.disk_waits, now),
            chunks: store.chunk_count() as u64,
            active_primaries: self.replication.active_primaries() as u64,
            reconciliations: stats.reconciliations,
            catch_ups: stats.catch_ups,
            full_copies: stats.full_copies,
        })
    }

    fn tell(&mut self, look: Look, io: &mut dyn Io) {
        if let (Some(stat), Some(store)) = (self.stat(io.now()), self.store.as_mut()) {
            let Latencies { io_times, read_times, write_times, .. } = self.replication.latency;
            let space = space(store, io, self.config.shards);
            look(ShardFigures { stat, space, io_times, read_times, write_times });
        }
    }

    // ---- connections to other shards ----

    fn send_peer(&mut self, io: &mut dyn Io, addr: SocketAddr, frame: Frame) {
        let now = io.now();
        let link = self.links.entry(addr).or_insert_with(|| Link::new(now));
        match link.conn {
            Some(conn) if link.ready => io.send(conn, frame.encode()),
            // Watermarks are worth no connection.
            _ if frame.head.kind == Kind::CommitNote => {}
            Some(_) => link.waiting.push(frame),
            None => {
                link.waiting.push(frame);
                if now >= link.retry_at {
                    self.dial(io, addr);
                } else {
                    // It was refused a moment ago: the same answer, without asking.
                    self.link_lost(io, addr, "not reachable");
                }
            }
        }
    }

    fn dial(&mut self, io: &mut dyn Io, addr: SocketAddr) {
        let conn = io.connect(addr);
        let greeting = self.greet(io, conn);
        let now = io.now();
        let link = self.links.entry(addr).or_insert_with(|| Link::new(now));
        link.conn = Some(conn);
        link.member = None;
        link.greeting = Some(greeting);
        link.ready = false;
        link.last_heard = now;
        self.link_of.insert(conn, addr);
    }

    fn link_frame(&mut self, io: &mut dyn Io, addr: SocketAddr, frame: Frame) {
        let Some(link) = self.links.get_mut(&addr) else { return };
        let Some(conn) = link.conn else { return };
        link.last_heard = io.now();
        if let Some(greeting) = link.greeting.as_mut() {
            match greeting.on_frame(&frame, io.channel(conn)) {
                Ok(Step::Send(proof)) => io.send(conn, proof.encode()),
                Ok(Step::Finished { member, .. }) if self.rules.admit(member.as_ref()).is_err() => {
                    tracing::warn!(%addr, ?member, "a chunk server on a node that was taken out of the cluster");
                    io.close(conn);
                }
                Ok(Step::Finished { member, .. }) => {
                    link.member = member;
                    link.greeting = None;
                    link.ready = true;
                    link.was_down = false;
                    for frame in std::mem::take(&mut link.waiting) {
                        io.send(conn, frame.encode());
                    }
                    if let Some(store) = self.store.as_mut() {
                        self.replication.peer_up(addr, store, io);
                    }
                    self.act(io);
                }
                Err(failed) if failed.status == Status::NotEncrypted => {
                    // It has heard of it first.
                    io.encrypt(true);
                    io.close(conn);
                    self.link_of.remove(&conn);
                    self.dial(io, addr);
                }
                Err(failed) => {
                    tracing::warn!(%addr, reason = %failed.reason, "a chunk server refused us");
                    io.close(conn);
                }
            }
            return;
        }
        match (frame.head.kind, self.store.as_mut()) {
            (Kind::Pong, _) | (_, None) => {}
            (_, Some(store)) => {
                self.replication.on_peer(addr, frame, store, io);
                self.act(io);
            }
        }
    }

    fn link_lost(&mut self, io: &mut dyn Io, addr: SocketAddr, why: &str) {
        let Some(link) = self.links.get_mut(&addr) else { return };
        if let Some(conn) = link.conn.take() {
            self.link_of.remove(&conn);
            link.retry_at = io.now().after(RETRY_EVERY);
        }
        link.ready = false;
        link.greeting = None;
        link.waiting.clear();
        link.was_down = true;
        if let Some(store) = self.store.as_mut() {
            self.replication.peer_down(addr, why, store, io);
        }
        self.act(io);
    }

    fn watch_links(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let mut silent = Vec::new();
        for (&addr, link) in &mut self.links {
            let Some(conn) = link.conn else { continue };
            if !self.replication.waits_for(addr) && link.ready {
                link.last_heard = now;
                continue;
            }
            if now.since(link.last_heard) > self.config.detect {
                silent.push((addr, conn));
            } else if link.ready && now.since(link.last_heard.max(link.last_ping)) > self.config.detect / 4 {
                link.last_ping = now;
                io.send(conn, Frame::bare(Head::new(Kind::Ping, 0)).encode());
            }
        }
        for (addr, conn) in silent {
            io.close(conn);
            self.link_lost(io, addr, "silent for too long");
        }
        for addr in self.replication.wanted_peers() {
            let idle =
                self.links.get(&addr).is_some_and(|l| l.conn.is_none() && now >= l.retry_at && l.was_down);
            if idle {
                self.dial(io, addr);
            }
        }
    }

    // ---- the metadata service ----

    fn watch_session(&mut self, io: &mut dyn Io) {
        let now = io.now();
        if let Some(conn) = self.session.conn {
            let patience = if self.session.registered { REGISTER_PATIENCE } else { FIND_PATIENCE };
            let silent = now.since(self.session.last_heard) > patience;
            if silent {
                io.close(conn);
                self.session_lost(io, "no answer");
            } else if self.session.registered && now.since(self.session.last_heartbeat) >= HEARTBEAT_EVERY {
                self.heartbeat(io);
            }
        } else if now >= self.session.retry_at && self.addr.is_some() && self.stopping_since.is_none() {
            let told = &self.session.servers;
            let known = if told.is_empty() { &self.config.mds } else { told };
            if known.is_empty() {
                return;
            }
            let to = self.session.redirect.take().unwrap_or(known[self.session.next % known.len()]);
            let conn = io.connect(to);
            let greeting = self.greet(io, conn);
            self.session.conn = Some(conn);
            self.session.greeting = Some(greeting);
            self.session.began = now;
            self.session.last_heard = now;
        }
    }

    fn heartbeat(&mut self, io: &mut dyn Io) {
        let Some(store) = self.store.as_mut() else { return };
        self.session.last_heartbeat = io.now();
        self.session.asked_at.push_back(io.now());
        let space = space(store, io, self.config.shards);
        let load = load(&self.replication, &self.scrub, store, &mut self.disk_waits, io.now());
        let generation = self.config.credentials.generation();
        let request = CsRequest::Heartbeat { space, load, generation };
        self.send_mds(io, 0, &request);
    }

    fn send_mds(&mut self, io: &mut dyn Io, id: u64, request: &CsRequest) {
        if let Some(conn) = self.session.conn {
            let frame = Frame::new(Head::new(Kind::CsRequest, id), &encode!(request), shards::Buf::empty());
            io.send(conn, frame.encode());
        }
    }

    /// Asks until answered.
    fn ask_mds(&mut self, io: &mut dyn Io, request: CsRequest) {
        let same = self.session.pending.values().any(|p| match (p, &request) {
            (CsRequest::Slow { cs: told, .. }, CsRequest::Slow { cs, .. }) => told == cs,
            _ => *p == request,
        });
        if same {
            return;
        }
        self.session.next_request += 1;
        let id = self.session.next_request;
        if self.session.registered {
            self.send_mds(io, id, &request);
        }
        self.session.pending.insert(id, request);
    }

    fn session_lost(&mut self, io: &mut dyn Io, why: &str) {
        if self.session.registered {
            tracing::info!(why, "lost the metadata server");
        }
        self.session.conn = None;
        self.session.greeting = None;
        self.session.registered = false;
        self.session.asked_at.clear();
        self.session.next += 1;
        let wait = if self.session.redirect.is_some() { Duration::ZERO } else { RETRY_EVERY };
        self.session.retry_at = io.now().after(wait);
    }

    fn session_frame(&mut self, io: &mut dyn Io, conn: ConnId, frame: Frame) {
        self.session.last_heard = io.now();
        if let Some(greeting) = self.session.greeting.as_mut() {
            match greeting.on_frame(&frame, io.channel(conn)) {
                Ok(Step::Send(proof)) => io.send(conn, proof.encode()),
                Ok(Step::Finished { member, .. }) if self.rules.admit(member.as_ref()).is_err() => {
                    tracing::error!(?member, "a metadata server on a node that was taken out of the cluster");
                    io.close(conn);
                }
                Ok(Step::Finished { .. }) => {
                    self.session.greeting = None;
                    self.register(io);
                }
                Err(failed) if failed.status == Status::NotEncrypted => {
                    io.encrypt(true);
                    io.close(conn);
                }
                // The server has proved to be one of the cluster's before it said so.
                Err(failed) if failed.status == Status::TakenOut && greeting.may_send() => {
                    io.stop(Err(failed.reason));
                }
                Err(failed) => {
                    tracing::error!(reason = %failed.reason, "the metadata server refused us");
                    io.close(conn);
                }
            }
            return;
        }
        match frame.head.kind {
            Kind::CsReply => match decode!(CsReply, &frame.meta) {
                Ok(reply) => self.mds_reply(io, conn, frame.head.request, reply),
                Err(why) => tracing::error!(%why, "unreadable answer of the metadata server"),
            },
            Kind::CsCommand => match decode!(CsCommand, &frame.meta) {
                Ok(CsCommand::Expelled { why }) => {
                    tracing::error!(%why, "expelled by the metadata service");
                    io.stop(Err(format!("the cluster no longer knows this chunk server: {why}")));
                }
                Ok(command) => {
                    if let Some(store) = self.store.as_mut() {
                        self.replication.on_command(command, store, io);
                    }
                    self.act(io);
                }
                Err(why) => tracing::error!(%why, "unreadable command of the metadata server"),
            },
            Kind::Ping => io.send(conn, Frame::bare(frame.head.reply(Kind::Pong, Status::Ok)).encode()),
            _ => {}
        }
    }

    fn register(&mut self, io: &mut dyn Io) {
        let (Some(store), Some(addr)) = (self.store.as_mut(), self.addr) else { return };
        self.session.asked_at.push_back(io.now());
        let c = &self.config;
        let request = CsRequest::Register {
            cs: c.cs,
            shard: c.shard,
            shards: c.shards,
            addr,
            incarnation: c.incarnation,
            host_id: c.host_id,
            host: c.host.clone(),
            location: c.location.clone(),
            tier: c.tier,
            space: space(store, io, c.shards),
            flags: c.flags.clone(),
        };
        self.send_mds(io, 0, &request);
    }

    fn mds_reply(&mut self, io: &mut dyn Io, conn: ConnId, id: u64, reply: CsReply) {
        match reply {
            CsReply::Registered { revoked, .. } => {
                self.session.registered = true;
                self.replication.revoke(&revoked);
                self.leases_known();
                self.report(io);
                self.heartbeat(io);
                for (id, request) in self.session.pending.clone() {
                    self.send_mds(io, id, &request);
                }
            }
            CsReply::Failed { status: Status::NotMaster | Status::NotReady, master, .. } => {
                self.session.redirect = master;
                io.close(conn);
                self.session_lost(io, "not the master");
            }
            CsReply::Failed { status, detail, .. } => {
                tracing::warn!(%status, %detail, "the metadata server refused a request");
                if !self.session.registered {
                    self.session.retry_at = io.now().after(RETRY_EVERY * 5);
                    io.close(conn);
                    return;
                }
                match self.session.pending.remove(&id) {
                    // Nothing changed: the sets stay as they are, and what is still wrong is told again.
                    Some(CsRequest::Suspect { chunks, .. } | CsRequest::Damaged { chunks, .. }) => {
                        self.replication.complaint_refused(&chunks);
                    }
                    Some(request) => tracing::debug!(?request, "refused"),
                    None => {}
                }
            }
            CsReply::Done => {
                if let Some(CsRequest::MayGiveUp { chunk, epoch }) = self.session.pending.remove(&id)
                    && let Some(store) = self.store.as_mut()
                {
                    self.replication.give_up(chunk, epoch, store, io);
                    self.act(io);
                }
            }
            CsReply::Settings {
                scrub_period_s,
                copy_bytes_per_s,
                encrypt,
                mds,
                lease_timeout_ms,
                taken_out,
                certificate,
            } => {
                if let Some(certificate) = certificate {
                    self.renew(io, &certificate);
                }
                self.set_rules(io, Rules { encrypts: encrypt, taken_out: taken_out.into_iter().collect() });
                self.replication.set_lease_timeout(Duration::from_millis(lease_timeout_ms.into()));
                self.leases_known();
                self.session.servers = mds_to_try(&mds, &self.config.mds);
                let share = copy_bytes_per_s.div_ceil(u64::from(self.config.shards));
                self.replication.set_copy_rate(share);
                self.scrub.set_period(Duration::from_secs(scrub_period_s));
            }
            CsReply::Sets { sets } => {
                let asked: Vec<ChunkId> = match self.session.pending.remove(&id) {
                    Some(
                        CsRequest::Suspect { chunks, .. }
                        | CsRequest::Damaged { chunks, .. }
                        | CsRequest::Slow { chunks, .. },
                    ) => chunks.iter().map(|c| c.chunk).collect(),
                    Some(CsRequest::Joined { chunk, .. } | CsRequest::AskSet { chunk }) => vec![chunk],
                    _ => Vec::new(),
                };
                self.told(io, sets, &asked);
            }
        }
    }

    /// The metadata service has answered: what it had revoked when it was asked is known here.
    fn leases_known(&mut self) {
        if let Some(asked) = self.session.asked_at.pop_front() {
            self.replication.leases_known_at(asked);
        }
    }

    fn told(&mut self, io: &mut dyn Io, sets: Vec<wire::cs_api::ChunkSet>, asked: &[ChunkId]) {
        if let Some(store) = self.store.as_mut() {
            self.replication.on_sets(sets, asked, store, io);
        }
        self.act(io);
    }

    /// Tells a new master all chunks.
    fn report(&mut self, io: &mut dyn Io) {
        let Some(store) = self.store.as_mut() else { return };
        store.take_appeared();
        let all = store.chunks().collect();
        self.send_report(io, all, true);
    }

    fn report_new(&mut self, io: &mut dyn Io) {
        if !self.session.registered || io.now() < self.session.report_at {
            return;
        }
        let Some(store) = self.store.as_mut() else { return };
        let appeared = store.take_appeared();
        self.send_report(io, appeared, false);
    }

    fn send_report(&mut self, io: &mut dyn Io, chunks: Vec<ChunkId>, even_none: bool) {
        self.session.report_at = io.now().after(REPORT_NEW_EVERY);
        let Some(store) = self.store.as_ref() else { return };
        let epoch = |chunk| store.chunk(chunk).map_or_else(Default::default, |i| i.epoch);
        let report = |&chunk: &ChunkId| ChunkReport { chunk, epoch: epoch(chunk) };
        let mut pages: Vec<Vec<ChunkReport>> =
            chunks.chunks(REPORT_PAGE).map(|page| page.iter().map(report).collect()).collect();
        if pages.is_empty() && even_none {
            pages.push(Vec::new());
        }
        let last = pages.len().saturating_sub(1);
        for (number, chunks) in pages.into_iter().enumerate() {
            self.send_mds(io, 0, &CsRequest::Report { chunks, last: number == last });
        }
    }

    // ---- wiring ----

    /// Carries out what replication wants, until it wants nothing more.
    fn act(&mut self, io: &mut dyn Io) {
        loop {
            let empty = std::mem::take(&mut self.spare_actions);
            let mut actions = self.replication.take_actions(empty);
            if actions.is_empty() {
                self.spare_actions = actions;
                return;
            }
            for action in actions.drain(..) {
                match action {
                    Action::Reply(conn, frame) => io.send(conn, frame.encode()),
                    Action::ToPeer(addr, frame) => self.send_peer(io, addr, frame),
                    Action::ToMds(request) => self.ask_mds(io, request),
                }
            }
            self.spare_actions = actions;
        }
    }

    fn take_outcomes(&mut self, io: &mut dyn Io) {
        let Some(store) = self.store.as_mut() else { return };
        let mut outcomes = std::mem::take(&mut self.spare_outcomes);
        outcomes.extend(store.outcomes());
        if outcomes.is_empty() {
            self.spare_outcomes = outcomes;
            return;
        }
        let (mut ready, mut lost_cache) = (false, None);
        for outcome in &outcomes {
            match outcome {
                Outcome::Broken(error) => {
                    tracing::error!(%error, "chunk store broken");
                    // The master hears why, if it can: what is queued leaves before the node ends.
                    let message = format!("has failed and stops: {error}");
                    self.ask_mds(io, CsRequest::Event { severity: Severity::Err, message });
                    return io.stop(Err(error.to_string()));
                }
                Outcome::Ready => ready = true,
                Outcome::CacheLost(why) => {
                    tracing::warn!(name: "cache_lost", why);
                    let message = format!("shard {}: {why}", self.config.shard);
                    lost_cache = Some(CsRequest::Event { severity: Severity::Warn, message });
                }
                Outcome::Finished { .. } => {}
            }
        }
        if let Some(event) = lost_cache {
            self.ask_mds(io, event);
        }
        if ready {
            return self.listen(io);
        }
        let Some(store) = self.store.as_mut() else { return };
        self.replication.on_store(&mut outcomes, store, io);
        self.spare_outcomes = outcomes;
        self.act(io);
        // Starting new operations may have ended some at once.
        self.take_outcomes(io);
    }

    fn closed(&mut self, io: &mut dyn Io, conn: ConnId, why: &str) {
        self.guests.remove(&conn);
        if self.session.conn == Some(conn) {
            self.session_lost(io, why);
        } else if let Some(addr) = self.link_of.get(&conn).copied() {
            self.link_lost(io, addr, why);
        }
    }

    fn tick(&mut self, io: &mut dyn Io) {
        io.set_timer(io.now().after(TICK_EVERY), TICK);
        if let Some(store) = self.store.as_mut().filter(|s| s.is_ready()) {
            self.replication.on_tick(io.now(), store, io);
            self.act(io);
            self.watch_links(io);
            self.watch_session(io);
            self.scrub_on(io);
            self.report_new(io);
        }
        self.watch_guests(io);
        self.stop_when_quiet(io);
    }

    /// Copies to learners are not waited for: they may take hours, and another server goes on with them.
    fn stop_when_quiet(&mut self, io: &mut dyn Io) {
        let Some(since) = self.stopping_since else { return };
        let stopping = io.now().since(since);
        if self.replication.clients_wait() && stopping < ANSWER_WITHIN {
            return;
        }
        let saved = self.store.as_mut().is_none_or(|s| s.save_cache(io));
        if saved || stopping > ANSWER_WITHIN + SAVE_CACHE_WITHIN {
            io.stop(Ok(()));
        }
    }
}

impl Link {
    fn new(now: Timestamp) -> Link {
        Link {
            conn: None,
            member: None,
            greeting: None,
            ready: false,
            waiting: Vec::new(),
            last_heard: now,
            last_ping: now,
            retry_at: Timestamp(0),
            was_down: false,
        }
    }
}

impl Node for CsShard {
    type Message = Look;

    fn handle(&mut self, event: Event<Look>, io: &mut dyn Io) {
        match event {
            Event::Start => self.start(io),
            Event::Accepted { conn, .. } => self.accepted(io, conn),
            Event::Connected { conn } => {
                if self.session.conn == Some(conn) {
                    self.session.last_heard = io.now();
                }
            }
            Event::Message(look) => self.tell(look, io),
            Event::Frame { conn, frame } => match Frame::decode(frame) {
                Ok(frame) if self.session.conn == Some(conn) => self.session_frame(io, conn, frame),
                Ok(frame) => match self.link_of.get(&conn).copied() {
                    Some(addr) => self.link_frame(io, addr, frame),
                    None => self.guest_frame(io, conn, frame),
                },
                Err(error) => {
                    tracing::warn!(conn = conn.0, %error, "closing connection: bad frame");
                    io.close(conn);
                }
            },
            Event::Closed { conn, why } => self.closed(io, conn, &why),
            Event::Disk { op, result } if op == PORT_OP => {
                if let Err(error) = result {
                    io.stop(Err(format!("{}: {error}", self.port_path())));
                }
            }
            Event::Disk { op, result } if op == SCRUB_OP => {
                if let Err(error) = result {
                    tracing::warn!(%error, "scrub_place_not_saved");
                }
            }
            Event::Disk { op, result } => {
                if let Some(store) = self.store.as_mut() {
                    store.on_disk(io, op, result);
                }
            }
            Event::Timer { id } if id == TICK => self.tick(io),
            Event::Timer { id } => {
                if let Some(store) = self.store.as_mut() {
                    store.on_timer(io, id);
                }
            }
            Event::Shutdown => self.stopping_since = Some(io.now()),
        }
        self.take_outcomes(io);
        if let Some(store) = &self.store {
            self.disk_waits.set(store.waits_for_disk(), io.now());
        }
    }
}

fn nonce(io: &mut dyn Io) -> [u8; 32] {
    let mut nonce = [0; 32];
    nonce.chunks_mut(8).for_each(|part| part.copy_from_slice(&io.random().to_le_bytes()));
    nonce
}

fn space(store: &mut Store, io: &mut dyn Io, sharers: u16) -> Space {
    let (total_bytes, free_bytes) = store.space(io, sharers);
    Space { total_bytes, free_bytes, chunks: store.chunk_count() as u64 }
}

fn load(
    replication: &Replication,
    scrub: &Scrub,
    store: &Store,
    disk_waits: &mut Waits,
    now: Timestamp,
) -> Load {
    let progress = scrub.progress();
    let stats = replication.stats;
    let (journal_used_bytes, journal_total_bytes) = store.journal_fill();
    let cache = store.cache_stat();
    Load {
        reads: stats.reads,
        writes: stats.writes,
        read_bytes: stats.read_bytes,
        write_bytes: stats.write_bytes,
        io_latency: replication.latency.io.of_late(now),
        request_latency: replication.latency.requests.of_late(now),
        io_wait_percent: disk_waits.percent(now),
        queue_depth: replication.queue_depth() as u32,
        journal_used_bytes,
        journal_total_bytes,
        cpu_us: 0,
        scrubbed_bytes: progress.done_bytes,
        scrub_total_bytes: progress.total_bytes,
        scrub_passes: progress.passes,
        scrub_damaged: progress.damaged,
        cache_hits: cache.hits,
        cache_misses: cache.misses,
        cached_bytes: cache.cached_bytes,
        cache_total_bytes: cache.total_bytes,
        catch_ups: stats.catch_ups,
        catch_up_bytes: stats.catch_up_bytes,
        full_copies: stats.full_copies,
        full_copy_bytes: stats.full_copy_bytes,
    }
}
