//! Connections to chunk server shards: one per shard address, made on first use.
//!
//! Invariants:
//! - each connection of this client to a shard has a larger generation than the one before, so the shard drops
//!   what still lies in an older socket before it handles the repetition;
//! - a part is in at most one link: queued before the handshake, or in flight under a request id of its own;
//! - a link that breaks after it worked is made anew at once (the process may just have dropped us); one that can't
//!   be made is *down* for a while, and parts for it ask the MDS for another primary without trying again.

use super::ClientCore;
use super::parts::Place;
use shards::{ConnId, Io, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;
use wire::auth::Member;
use wire::hello::{Initiator, Peer, Step};
use wire::{ChunkId, ClientId, CsId, Epoch, Frame, Head, Kind, Status};

/// How long a shard that could not be reached is not tried again.
const DOWN_FOR: Duration = Duration::from_millis(300);
/// A connection that breaks sooner than this after its handshake counts as one that could not be made.
const STABLE_AFTER: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Links {
    by_addr: BTreeMap<SocketAddr, Link>,
    by_conn: BTreeMap<ConnId, SocketAddr>,
    down: BTreeMap<SocketAddr, (Timestamp, String)>,
    generation: u64,
    last_request: u64,
}

struct Link {
    conn: ConnId,
    cs: CsId,
    machine: Initiator,
    /// Who has proved to be at the other end.
    member: Option<Member>,
    /// Requests may be sent: the other side has proved who it is.
    ready_since: Option<Timestamp>,
    welcomed: bool,
    queued: Vec<u64>,
    in_flight: BTreeMap<u64, u64>,
    /// Chunks whose replica set this shard was told on this connection.
    told: HashMap<ChunkId, Epoch, fixed_hash::Fixed>,
    last_heard: Timestamp,
    pinged: bool,
}

impl Links {
    pub fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }

    /// The part no longer waits for an answer.
    pub fn forget(&mut self, addr: SocketAddr, part: u64) {
        if let Some(link) = self.by_addr.get_mut(&addr) {
            link.queued.retain(|p| *p != part);
            link.in_flight.retain(|_, p| *p != part);
        }
    }
}

impl ClientCore {
    /// Sends the part to a shard, connecting first if need be.
    pub(super) fn link_send(&mut self, io: &mut dyn Io, addr: SocketAddr, cs: CsId, part: u64) {
        let now = io.now();
        if let Some((until, why)) = self.links.down.get(&addr) {
            if now < *until {
                let why = why.clone();
                return self.part_unreachable(io, part, cs, &why);
            }
            self.links.down.remove(&addr);
        }
        if !self.links.by_addr.contains_key(&addr) {
            self.link_connect(io, addr, cs);
        }
        let link = self.links.by_addr.get_mut(&addr).expect("connected above");
        if let Some(p) = self.parts.get_mut(&part) {
            p.place = Place::Link(addr);
        }
        if link.ready_since.is_some() {
            self.link_transmit(io, addr, part);
        } else {
            link.queued.push(part);
        }
    }

    fn link_connect(&mut self, io: &mut dyn Io, addr: SocketAddr, cs: CsId) {
        self.links.generation += 1;
        self.stats.connects += 1;
        let client = self.mds.client().unwrap_or(ClientId(0));
        let me = Peer::Client { client, generation: self.links.generation };
        let (machine, hello) =
            Initiator::new(self.config.credentials.clone(), &self.config.cluster, me, super::mds::nonce(io));
        let conn = io.connect(addr);
        io.send(conn, hello.encode());
        let link = Link {
            conn,
            cs,
            machine,
            member: None,
            ready_since: None,
            welcomed: false,
            queued: Vec::new(),
            in_flight: BTreeMap::new(),
            told: HashMap::default(),
            last_heard: io.now(),
            pinged: false,
        };
        self.links.by_conn.insert(conn, addr);
        self.links.by_addr.insert(addr, link);
    }

    fn link_transmit(&mut self, io: &mut dyn Io, addr: SocketAddr, part: u64) {
        let request = self.links.next_request();
        let Some(link) = self.links.by_addr.get_mut(&addr) else { return };
        let told = self.parts.get_mut(&part).and_then(|p| {
            (p.sent, p.tries) = (Some(io.now()), p.tries + 1);
            link.told.get(&p.chunk).map(|e| *e == p.epoch)
        });
        let Some((frame, chunk, epoch)) = self.part_frame(part, request, told != Some(true)) else { return };
        let link = self.links.by_addr.get_mut(&addr).expect("looked up above");
        if link.in_flight.is_empty() {
            link.last_heard = io.now(); // Silence counts from the first unanswered request.
        }
        link.told.insert(chunk, epoch);
        link.in_flight.insert(request, part);
        io.send(link.conn, frame.encode());
    }

    pub(super) fn link_frame(&mut self, io: &mut dyn Io, conn: ConnId, frame: Frame) {
        let Some(addr) = self.links.by_conn.get(&conn).copied() else { return };
        let now = io.now();
        let Some(link) = self.links.by_addr.get_mut(&addr) else { return };
        link.last_heard = now;
        link.pinged = false;
        if !link.welcomed {
            return self.link_handshake(io, conn, addr, frame);
        }
        match frame.head.kind {
            Kind::WriteDone | Kind::ReadDone | Kind::DiscardDone => {
                if let Some(part) = link.in_flight.remove(&frame.head.request) {
                    self.part_reply(io, part, frame);
                }
            }
            Kind::Ping => io.send(conn, Frame::bare(frame.head.reply(Kind::Pong, Status::Ok)).encode()),
            Kind::Pong => {}
            Kind::Refused => {
                let why = link
                    .machine
                    .on_frame(&frame, io.channel(conn))
                    .err()
                    .map_or_else(String::new, |f| f.reason);
                io.close(conn);
                self.link_closed(io, conn, format!("refused: {why}"));
            }
            other => {
                io.close(conn);
                self.link_closed(io, conn, format!("unexpected {other:?}"));
            }
        }
    }

    fn link_handshake(&mut self, io: &mut dyn Io, conn: ConnId, addr: SocketAddr, frame: Frame) {
        let Some(link) = self.links.by_addr.get_mut(&addr) else { return };
        match link.machine.on_frame(&frame, io.channel(conn)) {
            Ok(Step::Send(reply)) => {
                io.send(conn, reply.encode());
                if link.machine.may_send() {
                    link.ready_since = Some(io.now());
                    for part in std::mem::take(&mut link.queued) {
                        self.link_transmit(io, addr, part);
                    }
                }
            }
            Ok(Step::Finished { send, member, .. }) => {
                link.welcomed = true;
                link.member = member;
                if let Some(reply) = send {
                    io.send(conn, reply.encode());
                }
            }
            Err(failed) if failed.status == Status::NotEncrypted => {
                io.encrypt(true);
                io.close(conn);
                self.links.by_conn.remove(&conn);
                let Some(link) = self.links.by_addr.remove(&addr) else { return };
                for part in link.in_flight.into_values().chain(link.queued) {
                    self.link_send(io, addr, link.cs, part);
                }
            }
            Err(failed) => {
                if let Some(reply) = failed.reply {
                    io.send(conn, reply.encode());
                }
                link.ready_since = None; // Not a connection that worked: no use in making it anew at once.
                io.close(conn);
                self.link_closed(io, conn, failed.reason);
            }
        }
    }

    /// Closes connections to servers that were believed for the sake of an authority that was given up.
    pub(super) fn links_part(&mut self, io: &mut dyn Io) {
        let trusts = |m: &Member| self.config.credentials.trusts(m);
        let is_over = |link: &&Link| link.member.as_ref().is_some_and(|m| !trusts(m));
        let over: Vec<ConnId> = self.links.by_addr.values().filter(is_over).map(|l| l.conn).collect();
        for conn in over {
            io.close(conn);
            self.link_closed(io, conn, "the cluster's keys have changed".into());
        }
    }

    pub(super) fn link_closed(&mut self, io: &mut dyn Io, conn: ConnId, why: String) {
        let Some(addr) = self.links.by_conn.remove(&conn) else { return };
        let Some(link) = self.links.by_addr.remove(&addr) else { return };
        let now = io.now();
        let worked = link.welcomed && link.ready_since.is_some_and(|since| now.since(since) > STABLE_AFTER);
        let parts: Vec<u64> = link.in_flight.into_values().chain(link.queued).collect();
        tracing::info!(%addr, cs = %link.cs, why, parts = parts.len(), worked, "cs_connection_lost");
        if !worked {
            self.links.down.insert(addr, (now.after(DOWN_FOR), why.clone()));
        }
        for part in parts {
            if let Some(p) = self.parts.get_mut(&part) {
                p.place = Place::Waiting;
                p.last_error = format!("{addr}: {why}");
                self.stats.retries += 1;
            }
            if worked {
                self.part_run(io, part);
            } else {
                self.part_unreachable(io, part, link.cs, &why);
            }
        }
    }

    /// Looks for silent shards: asks them to answer, then gives them up.
    pub(super) fn links_tick(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let limit = self.config.cs_silence;
        let mut dead = Vec::new();
        for link in self.links.by_addr.values_mut() {
            let owes = !link.in_flight.is_empty() || !link.welcomed;
            let silent = now.since(link.last_heard);
            if owes && silent >= limit {
                dead.push((link.conn, silent));
            } else if owes && silent >= limit / 3 && link.welcomed && !link.pinged {
                link.pinged = true;
                io.send(link.conn, Frame::bare(Head::new(Kind::Ping, 0)).encode());
            }
        }
        for (conn, silent) in dead {
            io.close(conn);
            if let Some(link) = self.links.by_conn.get(&conn).and_then(|a| self.links.by_addr.get_mut(a)) {
                link.ready_since = None; // Silent is as good as unreachable.
            }
            self.link_closed(io, conn, format!("silent for {} ms", silent.as_millis()));
        }
    }
}

/// A hasher without a random seed: one seed of the simulator is one run.
mod fixed_hash {
    use std::hash::{BuildHasherDefault, Hasher};

    #[derive(Default)]
    pub struct Multiply(u64);

    impl Hasher for Multiply {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.write_u64(u64::from(*byte));
            }
        }
        fn write_u64(&mut self, value: u64) {
            self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }

    pub type Fixed = BuildHasherDefault<Multiply>;
}
