//! Connections of a metadata server: handshakes, who is at the other end, and the lines to the other servers.
//!
//! Invariants:
//! - nothing but a handshake is looked at before the peer has proved which node it is; who has proved to know the password
//!   instead may ask for a certificate and for nothing else;
//! - a node that was taken out of the cluster has no connection;
//! - a peer has one connection: a newer generation of it ends the older ones before its first frame is handled;
//! - each server sends raft messages on connections it opened itself and receives on those it accepted, so two servers
//!   that connect to each other at the same time don't fight over one line. Except to a server that it does not know: one
//!   that was added while this one was away, and may be the master by now, is answered where it spoke. Else this one would
//!   never take the entries that tell where the new one is;
//! - while the cluster encrypts, no frame but a refusal is sent or heeded on a plain connection; in a cluster with a password
//!   lines between metadata servers always go through TLS, as the log holds the cluster's secrets;
//! - passwords can be tried [`MOST_TRIES`] times a minute from one address.

use shards::{Channel, ConnId, Io, RawFrame, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use wire::auth::{Credentials, Member, PasswordDigest};
use wire::hello::{Acceptor, GREETING_TIMEOUT, HandshakeFailed, Initiator, MAX_GREETING, Peer, Rules, Step};
use wire::join::{Gate, GateStep};
use wire::{Frame, Head, Kind, MdsId, NodeId, Status};

/// Wait between two attempts to reach another server.
const RECONNECT: Duration = Duration::from_millis(200);
/// Bytes queued to another server beyond which the line counts as stuck.
const MAX_UNSENT_BYTES: usize = 64 << 20;
/// A line is asked for a sign of life so often, and given up after [`LINE_DEAD`] without one: after a partition TCP
/// alone could stay silent for minutes.
const LINE_PING: Duration = Duration::from_secs(1);
const LINE_DEAD: Duration = Duration::from_secs(3);
/// A client or tool that said nothing for so long has gone without a farewell.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Tries of passwords that one address has in [`TRIES_WITHIN`]; those that were right don't count.
const MOST_TRIES: usize = 5;
const TRIES_WITHIN: Duration = Duration::from_secs(60);
/// Addresses whose tries are remembered. While there are so many, others must wait.
const MOST_ADDRESSES: usize = 10_000;

enum Role {
    Greeting(Box<Acceptor>),
    /// It wants to get into the cluster by the password.
    AtTheGate(Box<Gate>),
    /// It knew the password.
    CameIn,
    Peer(Peer),
    /// Our own line to another server.
    Line(MdsId, Box<Initiator>),
}

struct Conn {
    role: Role,
    /// Who has proved to be at the other end.
    member: Option<Member>,
    addr: Option<SocketAddr>,
    since: Timestamp,
    heard: Timestamp,
}

struct Line {
    addr: SocketAddr,
    conn: Option<ConnId>,
    /// Who answered, once the handshake is over.
    peer: Option<Peer>,
    retry_at: Timestamp,
    pinged_at: Timestamp,
    /// Why the last attempt failed, so that it is logged once and not five times a second.
    failed: Option<String>,
}

/// What the node has to know about.
#[derive(Debug)]
pub enum NetEvent {
    Frame {
        conn: ConnId,
        peer: Peer,
        frame: Frame,
    },
    /// From a node that knew the password.
    Newcomer {
        conn: ConnId,
        frame: Frame,
    },
    /// A password was tried that is not the cluster's. `last`: no more are heard from there for a while.
    WrongPassword {
        from: SocketAddr,
        last: bool,
    },
    /// An authenticated connection is gone.
    Gone {
        conn: ConnId,
        peer: Peer,
        why: String,
    },
    /// Our line to this server is lost.
    LineDown {
        mds: MdsId,
    },
}

pub struct Net {
    cluster: String,
    credentials: Credentials,
    me: MdsId,
    generation: u64,
    conns: BTreeMap<ConnId, Conn>,
    lines: BTreeMap<MdsId, Line>,
    /// When an attempt to reach another server, or a line to one, failed last.
    line_lost_at: Timestamp,
    rules: Rules,
    /// Nodes that have come or shown newer keys, since it was asked for last.
    shown: BTreeMap<NodeId, Member>,
    /// Another server encrypts already: its log is ahead of this one's.
    others_encrypt: bool,
    /// What gets a node into the cluster.
    password: Option<PasswordDigest>,
    /// Where the master is, for those who want to get in.
    master: Option<SocketAddr>,
    is_master: bool,
    /// When passwords were tried, by address.
    tries: BTreeMap<IpAddr, Vec<Timestamp>>,
    next_request: u64,
}

impl Net {
    /// `generation` must grow with each start of the server.
    pub fn new(cluster: &str, credentials: Credentials, me: MdsId, generation: u64) -> Net {
        Net {
            cluster: cluster.to_string(),
            credentials,
            me,
            generation,
            conns: BTreeMap::new(),
            lines: BTreeMap::new(),
            line_lost_at: Timestamp(0),
            rules: Rules::default(),
            shown: BTreeMap::new(),
            others_encrypt: false,
            password: None,
            master: None,
            is_master: false,
            tries: BTreeMap::new(),
            next_request: 1,
        }
    }

    fn identity(&self) -> Peer {
        Peer::Mds { mds: self.me, generation: self.generation }
    }

    pub fn accepted(&mut self, conn: ConnId, addr: SocketAddr, io: &mut dyn Io) {
        let greeting = self.conns.values().filter(|c| c.is_stranger()).count();
        if greeting >= MAX_GREETING {
            io.close(conn);
            return;
        }
        let acceptor = Acceptor::new(self.credentials.clone(), &self.cluster, self.identity(), nonce(io));
        let now = io.now();
        let role = Role::Greeting(Box::new(acceptor));
        self.conns.insert(conn, Conn { role, member: None, addr: Some(addr), since: now, heard: now });
    }

    /// The other servers and where they are; lines to servers that are no longer listed are closed, but for those that
    /// are `leaving`.
    pub fn set_members(
        &mut self,
        members: &BTreeMap<MdsId, SocketAddr>,
        leaving: &BTreeSet<MdsId>,
        io: &mut dyn Io,
    ) {
        let wanted = |id: &MdsId, line: &Line| members.get(id) == Some(&line.addr) || leaving.contains(id);
        let gone: Vec<MdsId> =
            self.lines.iter().filter(|(id, l)| !wanted(id, l)).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some(conn) = self.lines.remove(&id).and_then(|l| l.conn) {
                self.conns.remove(&conn);
                io.close(conn);
            }
        }
        for (&id, &addr) in members.iter().filter(|(id, _)| **id != self.me) {
            let now = io.now();
            let new = || Line { addr, conn: None, peer: None, retry_at: now, pinged_at: now, failed: None };
            self.lines.entry(id).or_insert_with(new);
        }
    }

    /// From now on these rules hold: connections that break them are closed.
    pub fn set_rules(&mut self, rules: Rules, io: &mut dyn Io) -> Vec<NetEvent> {
        if self.rules == rules {
            return Vec::new();
        }
        if self.rules.encrypts != rules.encrypts {
            tracing::info!(name: "encryption", on = rules.encrypts);
            self.others_encrypt = false;
        }
        self.rules = rules;
        let mut broken = Vec::new();
        for (&conn, entry) in &self.conns {
            if self.rules.encrypts && io.channel(conn) == Channel::Plain {
                broken.push((conn, "the cluster encrypts from now on".to_string()));
            } else if let Err(refused) = self.rules.admit(entry.member.as_ref()) {
                broken.push((conn, refused.reason));
            }
        }
        broken.into_iter().flat_map(|(conn, why)| self.drop_conn(conn, &why, io)).collect()
    }

    /// Other keys from now on: who was believed for the sake of an authority that was given up must come anew, and other
    /// servers are shown the new certificate.
    pub fn set_credentials(&mut self, credentials: Credentials, io: &mut dyn Io) -> Vec<NetEvent> {
        self.credentials = credentials;
        let is_over = |entry: &Conn| {
            matches!(entry.role, Role::Line(..))
                || entry.member.as_ref().is_some_and(|m| !self.credentials.trusts(m))
        };
        let over: Vec<ConnId> =
            self.conns.iter().filter(|(_, c)| is_over(c)).map(|(conn, _)| *conn).collect();
        over.into_iter()
            .flat_map(|conn| self.drop_conn(conn, "the cluster's keys have changed", io))
            .collect()
    }

    /// What nodes that want to get in need to know, and to meet: the master, which may be this server.
    pub fn set_gate(
        &mut self,
        password: Option<&PasswordDigest>,
        master: Option<SocketAddr>,
        is_master: bool,
    ) {
        (self.master, self.is_master) = (master, is_master);
        if self.password.as_ref() != password {
            self.password = password.cloned();
        }
    }

    /// Connects what should be connected and closes what hangs.
    pub fn tick(&mut self, io: &mut dyn Io) -> Vec<NetEvent> {
        let now = io.now();
        let mut events = Vec::new();
        self.tries.retain(|_, tries| {
            tries.retain(|at| now.since(*at) < TRIES_WITHIN);
            !tries.is_empty()
        });
        let overdue = |c: &Conn| match c.role {
            Role::Greeting(_) | Role::AtTheGate(_) | Role::CameIn => now.since(c.since) > GREETING_TIMEOUT,
            Role::Line(..) => now.since(c.heard) > LINE_DEAD,
            Role::Peer(Peer::Client { .. } | Peer::Tool) => now.since(c.heard) > IDLE_TIMEOUT,
            Role::Peer(_) => false,
        };
        let late: Vec<ConnId> = self.conns.iter().filter(|(_, c)| overdue(c)).map(|(id, _)| *id).collect();
        for conn in late {
            events.extend(self.drop_conn(conn, "silent for too long", io));
        }
        let due: Vec<MdsId> = self
            .lines
            .iter()
            .filter(|(_, l)| l.conn.is_none() && l.retry_at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.connect(id, io);
        }
        self.ping_lines(io);
        events
    }

    fn ping_lines(&mut self, io: &mut dyn Io) {
        let now = io.now();
        for line in
            self.lines.values_mut().filter(|l| l.peer.is_some() && now.since(l.pinged_at) >= LINE_PING)
        {
            line.pinged_at = now;
            if let Some(conn) = line.conn {
                io.send(conn, Frame::bare(Head::new(Kind::Ping, 0)).encode());
            }
        }
    }

    fn connect(&mut self, id: MdsId, io: &mut dyn Io) {
        self.generation += 1;
        let (initiator, hello) =
            Initiator::new(self.credentials.clone(), &self.cluster, self.identity(), nonce(io));
        let line = self.lines.get_mut(&id).expect("only known servers are connected to");
        io.encrypt(self.rules.encrypts || self.others_encrypt || !self.credentials.is_open());
        let conn = io.connect(line.addr);
        line.conn = Some(conn);
        line.peer = None;
        let now = io.now();
        let role = Role::Line(id, Box::new(initiator));
        self.conns.insert(conn, Conn { role, member: None, addr: Some(line.addr), since: now, heard: now });
        io.send(conn, hello.encode());
    }

    /// Takes a frame; returns what the node must know.
    pub fn on_frame(&mut self, conn: ConnId, raw: RawFrame, io: &mut dyn Io) -> Vec<NetEvent> {
        let Some(entry) = self.conns.get_mut(&conn) else { return Vec::new() };
        entry.heard = io.now();
        let frame = match Frame::decode(raw) {
            Ok(frame) => frame,
            Err(error) => return self.drop_conn(conn, &format!("bad frame: {error}"), io),
        };
        match &mut entry.role {
            Role::Greeting(_) if frame.head.kind == Kind::PasswordSalt => {
                match gate(&self.cluster, &self.credentials, self.password.as_ref()) {
                    Ok(gate) => entry.role = Role::AtTheGate(Box::new(gate)),
                    Err(failed) => return self.refused(conn, failed, io),
                }
                self.at_the_gate(conn, &frame, io)
            }
            // Else it would take everybody for a node of a cluster without a password.
            Role::Greeting(_) if self.password.is_some() && self.credentials.is_open() => {
                let detail = "this server has lost its key: run auth-node on its host and start it anew";
                let failed = HandshakeFailed::new(Status::WrongPassword, detail.into());
                self.refused(conn, failed, io)
            }
            Role::Greeting(acceptor) => {
                let step = acceptor.on_frame(&frame, io.channel(conn), &self.rules);
                self.greeted(conn, step, io)
            }
            Role::AtTheGate(_) => self.at_the_gate(conn, &frame, io),
            Role::CameIn => vec![NetEvent::Newcomer { conn, frame }],
            Role::Line(..) if frame.head.kind == Kind::Pong => Vec::new(),
            Role::Line(id, initiator) => match self.lines.get(id).and_then(|line| line.peer) {
                // The other end does not know where this server is.
                Some(peer) if matches!(frame.head.kind, Kind::Raft | Kind::RaftSnapshotTaken) => {
                    vec![NetEvent::Frame { conn, peer, frame }]
                }
                _ => {
                    let id = *id;
                    let step = initiator.on_frame(&frame, io.channel(conn));
                    if step.as_ref().is_err_and(|failed| failed.status == Status::NotEncrypted) {
                        self.others_encrypt = true;
                    }
                    self.line_frame(conn, id, step, io)
                }
            },
            Role::Peer(peer) => match frame.head.kind {
                Kind::Ping => {
                    io.send(conn, Frame::bare(frame.head.reply(Kind::Pong, Status::Ok)).encode());
                    Vec::new()
                }
                Kind::Pong => Vec::new(),
                Kind::Identify => {
                    io.send(conn, wire::identity::answer(&frame, io.wall_ms()).encode());
                    Vec::new()
                }
                _ => vec![NetEvent::Frame { conn, peer: *peer, frame }],
            },
        }
    }

    fn greeted(
        &mut self,
        conn: ConnId,
        step: Result<Step, HandshakeFailed>,
        io: &mut dyn Io,
    ) -> Vec<NetEvent> {
        match step {
            Ok(Step::Send(frame)) => {
                io.send(conn, frame.encode());
                Vec::new()
            }
            Ok(Step::Finished { peer: Peer::Mds { .. }, .. })
                if !self.credentials.is_open() && io.channel(conn) == Channel::Plain =>
            {
                let detail = "metadata servers of a cluster with a password connect through TLS";
                self.refused(conn, HandshakeFailed::new(Status::NotEncrypted, detail.into()), io)
            }
            Ok(Step::Finished { send, peer, member, .. }) => {
                let events = self.end_older(conn, &peer, io);
                if let Some(frame) = send {
                    io.send(conn, frame.encode());
                }
                if let Some(entry) = self.conns.get_mut(&conn) {
                    (entry.role, entry.member) = (Role::Peer(peer), member);
                }
                self.shown.extend(member.map(|m| (m.node, m)));
                tracing::debug!(name: "peer_authenticated", ?peer, node = ?member.map(|m| m.node));
                events
            }
            Err(failed) => self.refused(conn, failed, io),
        }
    }

    fn line_frame(
        &mut self,
        conn: ConnId,
        id: MdsId,
        step: Result<Step, HandshakeFailed>,
        io: &mut dyn Io,
    ) -> Vec<NetEvent> {
        match step {
            Ok(Step::Send(frame)) => {
                io.send(conn, frame.encode());
                Vec::new()
            }
            Ok(Step::Finished { peer: peer @ Peer::Mds { mds, .. }, member, .. }) if mds == id => {
                if let Err(failed) = self.rules.admit(member.as_ref()) {
                    return self.refused(conn, failed, io);
                }
                if let Some(entry) = self.conns.get_mut(&conn) {
                    entry.member = member;
                }
                self.shown.extend(member.map(|m| (m.node, m)));
                let Some(line) = self.lines.get_mut(&id).filter(|l| l.conn == Some(conn)) else {
                    return Vec::new();
                };
                line.peer = Some(peer);
                line.failed = None;
                tracing::info!(name: "mds_reached", mds = id.0, addr = %line.addr);
                Vec::new()
            }
            Ok(Step::Finished { peer, .. }) => {
                self.drop_conn(conn, &format!("{peer:?} answered in the place of MDS#{id}"), io)
            }
            Err(failed) => self.refused(conn, failed, io),
        }
    }

    /// A frame of a node that wants to get in.
    fn at_the_gate(&mut self, conn: ConnId, frame: &Frame, io: &mut dyn Io) -> Vec<NetEvent> {
        let Some((Role::AtTheGate(gate), Some(addr))) =
            self.conns.get_mut(&conn).map(|entry| (&mut entry.role, entry.addr))
        else {
            return Vec::new();
        };
        let (now, channel) = (io.now(), io.channel(conn));
        let house = house_of(addr.ip());
        // One server counts the tries, and it knows the password of now.
        if frame.head.kind == Kind::Try && !self.is_master {
            let detail = "this server is not the master";
            return self.refused(conn, HandshakeFailed::new(Status::NotMaster, detail.into()), io);
        }
        if frame.head.kind == Kind::Try && !may_try(&mut self.tries, house, now) {
            let detail = format!(
                "{MOST_TRIES} wrong passwords within {} s from {}: wait that long",
                TRIES_WITHIN.as_secs(),
                addr.ip()
            );
            return self.refused(conn, HandshakeFailed::new(Status::TooManyTries, detail), io);
        }
        match gate.on_frame(frame, channel, self.master, &mut || io.random()) {
            Ok(GateStep::Send(reply)) => {
                io.send(conn, reply.encode());
                Vec::new()
            }
            Ok(GateStep::Open(reply)) => {
                if let Some(tries) = self.tries.get_mut(&house) {
                    tries.pop();
                }
                if let Some(entry) = self.conns.get_mut(&conn) {
                    entry.role = Role::CameIn;
                }
                io.send(conn, reply.encode());
                Vec::new()
            }
            Err(failed) => {
                let is_wrong = failed.status == Status::WrongPassword;
                let last = self.tries.get(&house).is_some_and(|tries| tries.len() >= MOST_TRIES);
                let mut events = self.refused(conn, failed, io);
                if is_wrong {
                    events.push(NetEvent::WrongPassword { from: addr, last });
                }
                events
            }
        }
    }

    fn refused(&mut self, conn: ConnId, failed: HandshakeFailed, io: &mut dyn Io) -> Vec<NetEvent> {
        if let Some(reply) = &failed.reply {
            io.send(conn, reply.encode());
        }
        self.drop_conn(conn, &failed.reason, io)
    }

    /// Ends older connections of the same peer.
    fn end_older(&mut self, conn: ConnId, peer: &Peer, io: &mut dyn Io) -> Vec<NetEvent> {
        let is_older = |c: &Conn| matches!(&c.role, Role::Peer(old) if peer.replaces(old));
        let older: Vec<ConnId> =
            self.conns.iter().filter(|(id, c)| **id != conn && is_older(c)).map(|(id, _)| *id).collect();
        older.into_iter().flat_map(|id| self.drop_conn(id, "replaced by a newer connection", io)).collect()
    }

    /// Closes a connection and forgets it.
    pub fn drop_conn(&mut self, conn: ConnId, why: &str, io: &mut dyn Io) -> Vec<NetEvent> {
        io.close(conn);
        self.forget(conn, why, io.now())
    }

    /// The driver says that the connection is gone.
    pub fn on_closed(&mut self, conn: ConnId, why: &str, now: Timestamp) -> Vec<NetEvent> {
        self.forget(conn, why, now)
    }

    fn forget(&mut self, conn: ConnId, why: &str, now: Timestamp) -> Vec<NetEvent> {
        let Some(entry) = self.conns.remove(&conn) else { return Vec::new() };
        match entry.role {
            Role::Greeting(_) | Role::AtTheGate(_) | Role::CameIn => {
                tracing::debug!(name: "handshake_ended", from = ?entry.addr, why);
                Vec::new()
            }
            Role::Peer(peer) => vec![NetEvent::Gone { conn, peer, why: why.to_string() }],
            Role::Line(mds, _) => self.line_lost(mds, conn, why, now),
        }
    }

    fn line_lost(&mut self, mds: MdsId, conn: ConnId, why: &str, now: Timestamp) -> Vec<NetEvent> {
        let Some(line) = self.lines.get_mut(&mds).filter(|l| l.conn == Some(conn)) else { return Vec::new() };
        if line.failed.as_deref() != Some(why) {
            tracing::info!(name: "mds_unreachable", mds = mds.0, addr = %line.addr, why);
            line.failed = Some(why.to_string());
        }
        line.conn = None;
        self.line_lost_at = now;
        line.retry_at = now.after(RECONNECT);
        let was_ready = line.peer.take().is_some();
        if was_ready { vec![NetEvent::LineDown { mds }] } else { Vec::new() }
    }

    pub fn send(&self, conn: ConnId, frame: &Frame, io: &mut dyn Io) {
        io.send(conn, frame.encode());
    }

    /// Sends to another server; false when there is no way to it.
    pub fn send_to(&mut self, mds: MdsId, frame: &Frame, io: &mut dyn Io) -> bool {
        // One that has just learnt where the other is, from its snapshot, has yet to connect to it.
        let Some(conn) = self.line(mds).or_else(|| self.opened_by(mds)) else { return false };
        if io.unsent_bytes(conn) > MAX_UNSENT_BYTES {
            return false;
        }
        io.send(conn, frame.encode());
        true
    }

    /// The connection to another server, if it stands.
    pub fn line(&self, mds: MdsId) -> Option<ConnId> {
        self.lines.get(&mds).filter(|l| l.peer.is_some()).and_then(|l| l.conn)
    }

    /// The connection that another server opened to this one.
    fn opened_by(&self, mds: MdsId) -> Option<ConnId> {
        let is_his = |c: &Conn| matches!(c.role, Role::Peer(Peer::Mds { mds: peer, .. }) if peer == mds);
        self.conns.iter().find(|(_, c)| is_his(c)).map(|(conn, _)| *conn)
    }

    pub fn line_lost_at(&self) -> Timestamp {
        self.line_lost_at
    }

    pub fn addr_of(&self, conn: ConnId) -> Option<SocketAddr> {
        self.conns.get(&conn).and_then(|c| c.addr)
    }

    /// Who is at the other end of a connection.
    pub fn member_of(&self, conn: ConnId) -> Option<&Member> {
        self.conns.get(&conn).and_then(|c| c.member.as_ref())
    }

    /// The peer says that it knows this generation of the cluster's keys.
    pub fn shows(&mut self, conn: ConnId, generation: u32) {
        let member = self.conns.get_mut(&conn).and_then(|c| c.member.as_mut());
        if let Some(member) = member.filter(|m| m.generation < generation) {
            member.generation = generation;
            self.shown.insert(member.node, *member);
        }
    }

    /// Nodes that have come, or shown newer keys, since the last call.
    pub fn take_shown(&mut self) -> Vec<Member> {
        std::mem::take(&mut self.shown).into_values().collect()
    }

    /// Nodes that metadata servers run on, this one's first, as far as there are lines to them.
    pub fn mds_nodes(&self) -> impl Iterator<Item = (MdsId, NodeId)> {
        let others =
            self.lines.iter().filter_map(|(mds, line)| Some((*mds, self.member_of(line.conn?)?.node)));
        self.credentials.node_id().map(|node| (self.me, node)).into_iter().chain(others)
    }

    /// How many connections each node has, and the oldest generation of keys that one of them knows.
    pub fn connections(&self) -> BTreeMap<NodeId, (u32, u32)> {
        let mut nodes = BTreeMap::new();
        for member in self.conns.values().filter_map(|c| c.member) {
            let (count, oldest) = nodes.entry(member.node).or_insert((0, member.generation));
            (*count, *oldest) = (*count + 1, member.generation.min(*oldest));
        }
        nodes
    }

    /// Authenticated connections of chunk servers' shards.
    pub fn cs_conns(&self) -> Vec<ConnId> {
        let is_cs = |c: &Conn| matches!(c.role, Role::Peer(Peer::CsShard { .. }));
        self.conns.iter().filter(|(_, c)| is_cs(c)).map(|(id, _)| *id).collect()
    }

    /// Header of a message that nobody asked for.
    pub fn unasked(&mut self, kind: Kind) -> Head {
        let mut head = Head::new(kind, self.next_request);
        head.flags = wire::flags::ONE_WAY;
        self.next_request += 1;
        head
    }
}

fn gate(
    cluster: &str,
    credentials: &Credentials,
    password: Option<&PasswordDigest>,
) -> Result<Gate, HandshakeFailed> {
    match password {
        Some(digest) => Ok(Gate::new(cluster, digest.clone())),
        None if credentials.is_open() => Err(HandshakeFailed::new(
            Status::NotSupported,
            format!("cluster '{cluster}' has no password: its nodes need no authentication"),
        )),
        None => Err(HandshakeFailed::new(
            Status::NotReady,
            "this server does not know the password yet: ask again soon".into(),
        )),
    }
}

impl Conn {
    /// Whether it still has to show that it belongs here.
    fn is_stranger(&self) -> bool {
        matches!(self.role, Role::Greeting(_) | Role::AtTheGate(_) | Role::CameIn)
    }
}

/// Whose tries count together: an address; of IPv6, where one host has many, its network of 64 bits.
fn house_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        },
    }
}

/// Counts a try of a password, if it may be made. It counts from its beginning: many at once are many.
fn may_try(tries: &mut BTreeMap<IpAddr, Vec<Timestamp>>, house: IpAddr, now: Timestamp) -> bool {
    if tries.len() >= MOST_ADDRESSES && !tries.contains_key(&house) {
        return false;
    }
    let tries = tries.entry(house).or_default();
    tries.retain(|at| now.since(*at) < TRIES_WITHIN);
    let may = tries.len() < MOST_TRIES;
    if may {
        tries.push(now);
    }
    may
}

fn nonce(io: &mut dyn Io) -> [u8; 32] {
    let mut nonce = [0; 32];
    for part in nonce.chunks_exact_mut(8) {
        part.copy_from_slice(&io.random().to_le_bytes());
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_tried_a_few_times_a_minute_from_one_place() {
        let ip = |text: &str| house_of(text.parse().unwrap());
        let mut tries = BTreeMap::new();
        let mut may =
            |from: &str, second: u64| may_try(&mut tries, ip(from), Timestamp(second * 1_000_000_000));
        assert!((0..5).all(|second| may("10.0.0.1", second)));
        assert!(!may("10.0.0.1", 5) && !may("::ffff:10.0.0.1", 5), "the same address");
        assert!(may("10.0.0.2", 5), "another one");
        assert!(may("10.0.0.1", 60), "the first try is a minute old");
        assert!(!may("10.0.0.1", 60));
        assert!((0..5).all(|host| may(&format!("2001:db8::{host}"), 9)));
        assert!(!may("2001:db8::99", 9), "one network of IPv6");
        assert!(may("2001:db8:0:1::99", 9));
    }
}
