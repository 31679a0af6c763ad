//! Connections of a metadata server: handshakes, who is at the other end, and the lines to the other servers.
//!
//! Invariants:
//! - nothing but a handshake (and a question for the password's salt) is looked at before the peer has proved that it
//!   holds the cluster's key;
//! - a peer has one connection: a newer generation of it ends the older ones before its first frame is handled;
//! - each server sends raft messages on connections it opened itself and receives on those it accepted, so two servers
//!   that connect to each other at the same time don't fight over one line. Except to a server that it does not know: one
//!   that was added while this one was away, and may be the master by now, is answered where it spoke. Else this one would
//!   never take the entries that tell where the new one is;
//! - while the cluster encrypts, no frame but a refusal is sent or heeded on a plain connection.

use shards::{Channel, ConnId, Io, RawFrame, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use wire::auth::ClusterKey;
use wire::hello::{Acceptor, HandshakeFailed, Initiator, Peer, Step};
use wire::{Frame, Head, Kind, MdsId, Status};

/// A connection that has not authenticated itself by then is closed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections still in the handshake; more are refused, so that strangers can't exhaust memory.
const MAX_GREETING: usize = 512;
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

enum Role {
    Greeting(Box<Acceptor>),
    Peer(Peer),
    /// Our own line to another server.
    Line(MdsId, Box<Initiator>),
}

struct Conn {
    role: Role,
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
    key: ClusterKey,
    me: MdsId,
    generation: u64,
    conns: BTreeMap<ConnId, Conn>,
    lines: BTreeMap<MdsId, Line>,
    /// When an attempt to reach another server, or a line to one, failed last.
    line_lost_at: Timestamp,
    /// Plain connections are refused.
    encrypts: bool,
    next_request: u64,
}

impl Net {
    /// `generation` must grow with each start of the server.
    pub fn new(cluster: &str, key: ClusterKey, me: MdsId, generation: u64) -> Net {
        Net {
            cluster: cluster.to_string(),
            key,
            me,
            generation,
            conns: BTreeMap::new(),
            lines: BTreeMap::new(),
            line_lost_at: Timestamp(0),
            encrypts: false,
            next_request: 1,
        }
    }

    fn identity(&self) -> Peer {
        Peer::Mds { mds: self.me, generation: self.generation }
    }

    pub fn accepted(&mut self, conn: ConnId, addr: SocketAddr, io: &mut dyn Io) {
        let greeting = self.conns.values().filter(|c| matches!(c.role, Role::Greeting(_))).count();
        if greeting >= MAX_GREETING {
            io.close(conn);
            return;
        }
        let acceptor = Acceptor::new(self.key.clone(), &self.cluster, self.identity(), nonce(io));
        let now = io.now();
        let role = Role::Greeting(Box::new(acceptor));
        self.conns.insert(conn, Conn { role, addr: Some(addr), since: now, heard: now });
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

    /// From now on connections are encrypted, or need not be. Plain ones that stand are closed when they have to be.
    pub fn set_encryption(&mut self, on: bool, io: &mut dyn Io) -> Vec<NetEvent> {
        if std::mem::replace(&mut self.encrypts, on) == on {
            return Vec::new();
        }
        tracing::info!(name: "encryption", on);
        io.encrypt(on);
        if !on {
            return Vec::new();
        }
        let is_plain = |conn: &ConnId| io.channel(*conn) == Channel::Plain;
        let plain: Vec<ConnId> = self.conns.keys().copied().filter(is_plain).collect();
        plain
            .into_iter()
            .flat_map(|conn| self.drop_conn(conn, "the cluster encrypts from now on", io))
            .collect()
    }

    /// Connects what should be connected and closes what hangs.
    pub fn tick(&mut self, io: &mut dyn Io) -> Vec<NetEvent> {
        let now = io.now();
        let mut events = Vec::new();
        let overdue = |c: &Conn| match c.role {
            Role::Greeting(_) => now.since(c.since) > GREETING_TIMEOUT,
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
        let (initiator, hello) = Initiator::new(self.key.clone(), &self.cluster, self.identity(), nonce(io));
        let line = self.lines.get_mut(&id).expect("only known servers are connected to");
        let conn = io.connect(line.addr);
        line.conn = Some(conn);
        line.peer = None;
        let now = io.now();
        let role = Role::Line(id, Box::new(initiator));
        self.conns.insert(conn, Conn { role, addr: Some(line.addr), since: now, heard: now });
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
            Role::Greeting(acceptor) => {
                let step = acceptor.on_frame(&frame, io.channel(conn), self.encrypts);
                self.greeted(conn, step, io)
            }
            Role::Line(..) if frame.head.kind == Kind::Pong => Vec::new(),
            Role::Line(id, initiator) => match self.lines.get(id).and_then(|line| line.peer) {
                // The other end does not know where this server is.
                Some(peer) if frame.head.kind == Kind::Raft => vec![NetEvent::Frame { conn, peer, frame }],
                _ => {
                    let id = *id;
                    let step = initiator.on_frame(&frame, io.channel(conn));
                    if step.as_ref().is_err_and(|failed| failed.status == Status::NotEncrypted) {
                        io.encrypt(true); // Its log is ahead of this one's.
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
            Ok(Step::Finished { send, peer, .. }) => {
                let events = self.end_older(conn, &peer, io);
                if let Some(frame) = send {
                    io.send(conn, frame.encode());
                }
                if let Some(entry) = self.conns.get_mut(&conn) {
                    entry.role = Role::Peer(peer);
                }
                tracing::debug!(name: "peer_authenticated", ?peer);
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
            Ok(Step::Finished { peer: peer @ Peer::Mds { mds, .. }, .. }) if mds == id => {
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
            Role::Greeting(_) => {
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
        let way = if self.lines.contains_key(&mds) { self.line(mds) } else { self.opened_by(mds) };
        let Some(conn) = way else { return false };
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

    /// Authenticated connections of clients.
    pub fn clients(&self) -> impl Iterator<Item = (ConnId, wire::ClientId)> + '_ {
        self.conns.iter().filter_map(|(conn, c)| match c.role {
            Role::Peer(Peer::Client { client, .. }) => Some((*conn, client)),
            _ => None,
        })
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

fn nonce(io: &mut dyn Io) -> [u8; 32] {
    let mut nonce = [0; 32];
    for part in nonce.chunks_exact_mut(8) {
        part.copy_from_slice(&io.random().to_le_bytes());
    }
    nonce
}
