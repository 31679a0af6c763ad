//! A world of many nodes under virtual time: the deterministic driver of the seam in [`crate::node`].
//!
//! Everything that will happen stands in one queue ordered by time; [`World::step`] takes the first, hands it to
//! its node, and queues what the node asked for with a delay drawn from the seed. Nothing else moves time. The
//! trace is a hash over everything delivered: two runs of one seed must have the same one.

use super::disk::{CrashKind, DiskOp, VirtualDisk};
use super::files::{Asked, OpenFiles, pool_buffer, submit};
use super::net::{Connection, End, Net, Packet, Side, Weather, Wire};
use super::rng::Rng;
use crate::{
    Buf, BufMut, Channel, ConnId, Durability, Event, FileHandle, Io, Node, OpId, OpenHow, RawFrame, TimerId,
    Timestamp,
};
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A place a node can run: an address and a disk, kept while nodes come and go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub usize);

/// The n-th node that ran on a host; what was meant for an earlier one is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Life(u64);

/// How fast the world is.
#[derive(Clone, Debug)]
pub struct Speeds {
    pub net_delay: (Duration, Duration),
    /// One frame in this many is late by up to [`Speeds::net_spike`].
    pub net_spike_one_in: u64,
    pub net_spike: Duration,
    pub net_bytes_per_us: u64,
    pub disk_delay: (Duration, Duration),
    pub disk_spike_one_in: u64,
    pub disk_spike: Duration,
    pub disk_bytes_per_us: u64,
    /// How long TCP waits for a silent peer.
    pub tcp_patience: (Duration, Duration),
    /// How long a connection attempt into the void takes to fail.
    pub connect_timeout: Duration,
}

impl Default for Speeds {
    fn default() -> Self {
        let us = Duration::from_micros;
        Speeds {
            net_delay: (us(20), us(200)),
            net_spike_one_in: 200,
            net_spike: us(20_000),
            net_bytes_per_us: 1000,
            disk_delay: (us(20), us(150)),
            disk_spike_one_in: 200,
            disk_spike: us(30_000),
            disk_bytes_per_us: 500,
            tcp_patience: (Duration::from_secs(8), Duration::from_secs(12)),
            connect_timeout: Duration::from_secs(3),
        }
    }
}

/// A node whose message type is forgotten.
trait AnyNode: Any {
    fn handle_any(&mut self, event: AnyEvent, io: &mut dyn Io);
}

/// An event whose message, if any, has lost its type.
type AnyEvent = Event<Box<dyn Any>>;

impl<N: Node + 'static> AnyNode for N {
    fn handle_any(&mut self, event: AnyEvent, io: &mut dyn Io) {
        let event = match event {
            Event::Start => Event::Start,
            Event::Accepted { conn, peer } => Event::Accepted { conn, peer },
            Event::Connected { conn } => Event::Connected { conn },
            Event::Frame { conn, frame } => Event::Frame { conn, frame },
            Event::Closed { conn, why } => Event::Closed { conn, why },
            Event::Disk { op, result } => Event::Disk { op, result },
            Event::Timer { id } => Event::Timer { id },
            Event::Shutdown => Event::Shutdown,
            Event::Message(m) => Event::Message(*m.downcast().expect("a message of this node's type")),
        };
        self.handle(event, io);
    }
}

enum Due {
    Event(HostId, Life, AnyEvent),
    Disk(HostId, Life, OpId, u64),
    /// A call reaches the host that listens.
    Call(Wire),
    /// The caller learns that its call was answered.
    Answer(Wire),
    /// The next packet on its way to this end, if the link stands.
    Packet(Wire, Side),
    /// This end learns that the connection is gone.
    Gone(Wire, Side, &'static str),
    /// As `Gone`, if the link is still cut by the same cut.
    GoneIfCut(Wire, Side, u64),
}

struct Host {
    name: String,
    ip: IpAddr,
    disk: VirtualDisk,
    files: OpenFiles,
    node: Option<Box<dyn AnyNode>>,
    life: Life,
    /// What its node said last ([`Io::encrypt`]).
    encrypts: bool,
    next_conn: u64,
    paused_until: Timestamp,
    /// Disk operations take this many times as long.
    slowness: u32,
    stopped: Option<Result<(), String>>,
    wall_offset_ms: i64,
    clock: Clock,
}

/// A monotonic clock that does not show the world's time.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// Parts per million that it is too fast.
    fast_ppm: i64,
    /// What it showed when the world began.
    begin_ns: u64,
}

impl Clock {
    fn shows(self, world: Timestamp) -> Timestamp {
        let gained = i128::from(world.0) * i128::from(self.fast_ppm) / 1_000_000;
        Timestamp((i128::from(world.0) + gained) as u64 + self.begin_ns)
    }

    /// The world's time at which it shows no less than `at`.
    fn world_time_of(self, at: Timestamp) -> Timestamp {
        let elapsed = i128::from(at.0.saturating_sub(self.begin_ns));
        Timestamp((elapsed * 1_000_000 / i128::from(1_000_000 + self.fast_ppm)) as u64 + 1)
    }
}

/// See the module's page.
pub struct World {
    now: Timestamp,
    rng: Rng,
    queue: BTreeMap<(Timestamp, u64), Due>,
    next_seq: u64,
    hosts: Vec<Host>,
    net: Net,
    pub speeds: Speeds,
    trace: u64,
    events: u64,
    /// Nodes that stopped by themselves, not asked about yet.
    new_stops: Vec<HostId>,
    /// Notes and events go to the standard output; this says what is in a frame.
    describe: Option<fn(&RawFrame) -> String>,
}

/// TCP sends a packet again after this time, then after twice, four times … as long.
const RETRANSMIT_AFTER: Duration = Duration::from_millis(200);
const RETRANSMIT_MOST: Duration = Duration::from_secs(2);

impl World {
    pub fn new(seed: u64) -> Self {
        World {
            now: Timestamp(1_000_000_000),
            rng: Rng::new(seed),
            queue: BTreeMap::new(),
            next_seq: 0,
            hosts: Vec::new(),
            net: Net::new(),
            speeds: Speeds::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            events: 0,
            new_stops: Vec::new(),
            describe: None,
        }
    }

    /// A host without a node. Several may share an address (the shards of one server): links are cut by address.
    pub fn add_host(&mut self, name: &str, ip: IpAddr) -> HostId {
        self.hosts.push(Host {
            name: name.to_string(),
            ip,
            disk: VirtualDisk::default(),
            files: OpenFiles::default(),
            node: None,
            life: Life(0),
            encrypts: false,
            next_conn: 1,
            paused_until: Timestamp(0),
            slowness: 1,
            stopped: None,
            wall_offset_ms: 0,
            clock: Clock::default(),
        });
        HostId(self.hosts.len() - 1)
    }

    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.hosts.len()).map(HostId)
    }

    /// Starts a node on a host where none runs.
    pub fn start<N: Node + 'static>(&mut self, host: HostId, node: N) {
        let h = &mut self.hosts[host.0];
        assert!(h.node.is_none(), "{} runs already", h.name);
        h.life.0 += 1;
        h.encrypts = false;
        h.node = Some(Box::new(node));
        h.files = OpenFiles::default();
        h.stopped = None;
        let life = h.life;
        self.push(Duration::ZERO, Due::Event(host, life, Event::Start));
    }

    /// Ends the node at once, as kill -9 or a pulled plug would. Its disk stays as such an end leaves it.
    pub fn crash(&mut self, host: HostId, kind: CrashKind) {
        if self.hosts[host.0].node.take().is_none() {
            return;
        }
        self.note(|w| format!("{} crashes ({kind:?})", w.hosts[host.0].name));
        self.leave(host, kind);
        let mut rng = self.rng.fork();
        self.hosts[host.0].disk.crash(kind, &mut rng);
    }

    fn leave(&mut self, host: HostId, kind: CrashKind) {
        let h = &mut self.hosts[host.0];
        // A new life: whatever was queued for the old one is dropped.
        h.life.0 += 1;
        h.paused_until = Timestamp(0);
        self.net.listeners.retain(|_, (at, _)| *at != host);
        for (wire, side) in self.net.wires_of(host) {
            let wait = match kind {
                CrashKind::Process => self.net_delay(0),
                CrashKind::Power => self.rng_between(self.speeds.tcp_patience),
            };
            let Some(connection) = self.net.connections.get_mut(&wire) else { continue };
            let Some(end) = connection.end(side) else { continue };
            end.open = false;
            end.coming.clear();
            if let Some(other) = connection.end(side.other())
                && kind == CrashKind::Power
            {
                // What had left the host arrives, the rest never does.
                let keep = self.rng.below(other.coming.len() as u64 + 1) as usize;
                other.coming.truncate(keep);
            }
            match kind {
                CrashKind::Process if connection.listener.is_some() => {
                    if let Some(other) = connection.end(side.other()) {
                        other.coming.push_back(Packet::Fin);
                    }
                    self.push(wait, Due::Packet(wire, side.other()));
                }
                _ => self.push(wait, Due::Gone(wire, side.other(), "timed out")),
            }
        }
        self.net.ends.retain(|(at, _), _| *at != host);
    }

    /// Sends a message to the node, as another thread of its process would.
    pub fn message<N: Node + 'static>(&mut self, host: HostId, message: N::Message) {
        let life = self.hosts[host.0].life;
        self.push(Duration::ZERO, Due::Event(host, life, Event::Message(Box::new(message))));
    }

    /// Asks the node to end, as SIGTERM would.
    pub fn shutdown(&mut self, host: HostId) {
        let life = self.hosts[host.0].life;
        self.push(Duration::ZERO, Due::Event(host, life, Event::Shutdown));
    }

    /// Nothing reaches the node until then, as if its process were stopped; what comes waits.
    pub fn pause(&mut self, host: HostId, wait: Duration) {
        self.hosts[host.0].paused_until = self.now.after(wait);
    }

    /// Makes the disk of a host this many times slower.
    pub fn set_slowness(&mut self, host: HostId, factor: u32) {
        self.hosts[host.0].slowness = factor.max(1);
    }

    /// Moves the wall clock of a host.
    pub fn set_wall_offset_ms(&mut self, host: HostId, offset_ms: i64) {
        self.hosts[host.0].wall_offset_ms = offset_ms;
    }

    /// Gives a host a monotonic clock that runs too fast by so many parts per million, and begins somewhere else. Before
    /// the first node starts there.
    pub fn set_clock(&mut self, host: HostId, fast_ppm: i64, begin: Duration) {
        self.hosts[host.0].clock = Clock { fast_ppm, begin_ns: begin.as_nanos() as u64 };
    }

    /// Cuts the link between two addresses, both ways.
    pub fn cut(&mut self, a: IpAddr, b: IpAddr) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Nothing goes from one address to the other; the other way stays open.
    pub fn cut_one_way(&mut self, from: IpAddr, to: IpAddr) {
        if from == to || !self.net.cut(from, to) {
            return;
        }
        self.note(|_| format!("link {from} -> {to} is cut"));
        let generation = self.net.generation;
        for wire in self.net.wires_between(from, to) {
            for side in [Side::Caller, Side::Listener] {
                let wait = self.rng_between(self.speeds.tcp_patience);
                self.push(wait, Due::GoneIfCut(wire, side, generation));
            }
        }
    }

    /// Ends all connections between two addresses at once, as a restarted firewall does. What was on its way is lost.
    pub fn reset_links(&mut self, a: IpAddr, b: IpAddr) {
        for wire in self.net.wires_between(a, b) {
            for side in [Side::Caller, Side::Listener] {
                self.push(Duration::ZERO, Due::Gone(wire, side, "reset by the peer"));
            }
        }
    }

    /// What is wrong with the network of a host from now on.
    pub fn set_weather(&mut self, ip: IpAddr, weather: Weather) {
        self.net.weather.insert(ip, weather);
        self.net.card_free_at.remove(&ip);
    }

    pub fn heal(&mut self, a: IpAddr, b: IpAddr) {
        if !self.net.heal(a, b) {
            return;
        }
        self.note(|_| format!("link {a} - {b} is whole"));
        for wire in self.net.wires_between(a, b) {
            for side in [Side::Caller, Side::Listener] {
                let Some(connection) = self.net.connections.get_mut(&wire) else { continue };
                let waiting = connection.end(side).map_or(0, |e| e.coming.len());
                let other_gone = connection.end(side.other()).is_some_and(|e| !e.open);
                for _ in 0..waiting {
                    let wait = self.net_delay(0);
                    self.push(wait, Due::Packet(wire, side));
                }
                if other_gone && waiting == 0 {
                    let wait = self.net_delay(0);
                    self.push(wait, Due::Gone(wire, side, "reset by the peer"));
                }
            }
        }
    }

    pub fn heal_all(&mut self) {
        for (a, b) in self.net.cut_pairs() {
            self.heal(a, b);
        }
    }

    pub fn is_up(&self, host: HostId) -> bool {
        self.hosts[host.0].node.is_some()
    }

    /// How the node of a host ended by itself, if it did.
    pub fn stopped(&self, host: HostId) -> Option<&Result<(), String>> {
        self.hosts[host.0].stopped.as_ref()
    }

    /// Hosts whose nodes have stopped by themselves since the last call.
    pub fn take_stops(&mut self) -> Vec<HostId> {
        std::mem::take(&mut self.new_stops)
    }

    pub fn name(&self, host: HostId) -> &str {
        &self.hosts[host.0].name
    }

    pub fn disk(&mut self, host: HostId) -> &mut VirtualDisk {
        &mut self.hosts[host.0].disk
    }

    /// The running node of a host, if one runs and is an `N`.
    pub fn node<N: Node + 'static>(&self, host: HostId) -> Option<&N> {
        let node: &dyn Any = self.hosts[host.0].node.as_deref()?;
        node.downcast_ref()
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Hash over everything that happened.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    /// Connections that stand or are being made.
    pub fn connections(&self) -> usize {
        self.net.connections.len()
    }

    /// Things that will happen.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Numbers for the scenario, from the same seed.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// From now on every note and every event is printed. `describe` says what is in a frame.
    pub fn print_events(&mut self, describe: fn(&RawFrame) -> String) {
        self.describe = Some(describe);
    }

    /// Prints a line, if events are printed.
    pub fn note(&mut self, line: impl FnOnce(&World) -> String) {
        if self.describe.is_some() {
            println!("{:>12.6} {}", (self.now.0 - 1_000_000_000) as f64 / 1e9, line(self));
        }
    }

    fn print_event(&mut self, host: HostId, event: &AnyEvent) {
        let Some(describe) = self.describe else { return };
        let text = match event {
            Event::Start => "start".into(),
            Event::Accepted { conn, peer } => format!("accepted {peer} as connection {}", conn.0),
            Event::Connected { conn } => format!("connection {} stands", conn.0),
            Event::Frame { conn, frame } => format!("connection {}: {}", conn.0, describe(frame)),
            Event::Closed { conn, why } => format!("connection {} is gone: {why}", conn.0),
            Event::Disk { op, result: Ok(data) } => format!("disk {:x} done, {} bytes", op.0, data.len()),
            Event::Disk { op, result: Err(error) } => format!("disk {:x} failed: {error}", op.0),
            Event::Timer { .. } => return,
            Event::Message(_) => "message".into(),
            Event::Shutdown => "shutdown".into(),
        };
        self.note(|w| format!("{}: {text}", w.name(host)));
    }

    /// Lets everything happen until `wait` from now.
    pub fn run_for(&mut self, wait: Duration) {
        let until = self.now.after(wait);
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.step();
        }
        self.now = until;
    }

    /// When the next thing happens.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Moves the clock of a world in which nothing happens before `to`.
    pub fn wait_until(&mut self, to: Timestamp) {
        assert!(self.next_at().is_none_or(|at| at >= to), "something happens before");
        self.now = self.now.max(to);
    }

    /// Lets the next thing happen. `false` when nothing ever will.
    pub fn step(&mut self) -> bool {
        let Some(((at, seq), due)) = self.queue.pop_first() else { return false };
        self.now = self.now.max(at);
        match due {
            Due::Event(host, life, event) => {
                if self.awake(host, life) {
                    self.deliver(host, event);
                } else if self.hosts[host.0].life == life {
                    let until = self.hosts[host.0].paused_until;
                    self.queue.insert((until, seq), Due::Event(host, life, event));
                }
            }
            Due::Disk(host, life, op, ticket) => {
                if self.hosts[host.0].life == life {
                    let result = self.hosts[host.0].disk.complete(ticket);
                    self.deliver_or_wait(host, life, Event::Disk { op, result });
                }
            }
            Due::Call(wire) => self.call_arrives(wire),
            Due::Answer(wire) => self.call_answered(wire),
            Due::Packet(wire, side) => self.packet_arrives(wire, side),
            Due::Gone(wire, side, why) => self.end_gone(wire, side, why),
            Due::GoneIfCut(wire, side, generation) => {
                let connection = self.net.connections.get(&wire);
                if connection.is_some_and(|c| self.net.is_cut_by(c.ips, generation)) {
                    self.end_gone(wire, side, "timed out");
                }
            }
        }
        true
    }

    fn awake(&self, host: HostId, life: Life) -> bool {
        let h = &self.hosts[host.0];
        h.life == life && h.paused_until <= self.now
    }

    fn deliver_or_wait(&mut self, host: HostId, life: Life, event: AnyEvent) {
        if self.awake(host, life) {
            self.deliver(host, event);
        } else if self.hosts[host.0].life == life {
            let wait = self.hosts[host.0].paused_until.since(self.now);
            self.push(wait, Due::Event(host, life, event));
        }
    }

    fn deliver(&mut self, host: HostId, event: AnyEvent) {
        let Some(mut node) = self.hosts[host.0].node.take() else { return };
        self.events += 1;
        self.print_event(host, &event);
        let mark = mark_of(&event);
        for word in [self.now.0, host.0 as u64, mark.0, mark.1] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        node.handle_any(event, &mut NodeIo { world: self, host });
        if self.hosts[host.0].stopped.is_some() {
            self.note(|w| format!("{} stops: {:?}", w.hosts[host.0].name, w.hosts[host.0].stopped));
            self.new_stops.push(host);
            self.leave(host, CrashKind::Process);
            let mut rng = self.rng.fork();
            self.hosts[host.0].disk.crash(CrashKind::Process, &mut rng);
        } else {
            self.hosts[host.0].node = Some(node);
        }
    }

    fn push(&mut self, wait: Duration, due: Due) {
        self.next_seq += 1;
        self.queue.insert((self.now.after(wait), self.next_seq), due);
    }

    fn rng_between(&mut self, (low, high): (Duration, Duration)) -> Duration {
        Duration::from_nanos(self.rng.between(low.as_nanos() as u64, high.as_nanos() as u64))
    }

    fn net_delay(&mut self, bytes: usize) -> Duration {
        let mut wait = self.rng_between(self.speeds.net_delay);
        if self.rng.one_in(self.speeds.net_spike_one_in) {
            wait += self.rng_between((Duration::ZERO, self.speeds.net_spike));
        }
        wait + Duration::from_micros(bytes as u64 / self.speeds.net_bytes_per_us)
    }

    /// How much longer a packet takes because of the weather at both ends of its way.
    fn weather_delay(&mut self, (from, to): (IpAddr, IpAddr), bytes: usize) -> Duration {
        let mut wait = Duration::ZERO;
        for ip in [from, to] {
            let Some(&weather) = self.net.weather.get(&ip) else { continue };
            wait += weather.delay;
            let mut again = RETRANSMIT_AFTER;
            while weather.loses_one_in > 0 && self.rng.one_in(weather.loses_one_in) && again < RETRANSMIT_MOST
            {
                wait += again;
                again *= 2;
            }
            if let Some(send_us) = (bytes as u64).checked_div(weather.bytes_per_us) {
                let begin = self.net.card_free_at.get(&ip).map_or(self.now, |at| self.now.max(*at));
                let end = begin.after(Duration::from_micros(send_us));
                self.net.card_free_at.insert(ip, end);
                wait += end.since(self.now);
            }
        }
        wait
    }

    fn disk_delay(&mut self, host: HostId, bytes: u64) -> Duration {
        let mut wait = self.rng_between(self.speeds.disk_delay);
        if self.rng.one_in(self.speeds.disk_spike_one_in) {
            wait += self.rng_between((Duration::ZERO, self.speeds.disk_spike));
        }
        (wait + Duration::from_micros(bytes / self.speeds.disk_bytes_per_us)) * self.hosts[host.0].slowness
    }

    // Calls and packets.

    fn call_arrives(&mut self, wire: Wire) {
        let Some(connection) = self.net.connections.get(&wire) else { return };
        let (to, ips, from_port) = (connection.to, connection.ips, (30_000 + wire.0 % 30_000) as u16);
        if self.net.is_cut_either_way(ips) {
            return self.push(self.speeds.connect_timeout, Due::Gone(wire, Side::Caller, "timed out"));
        }
        let wait = self.net_delay(0);
        let Some(&(host, life)) = self.net.listeners.get(&to) else {
            // A host that lost power answers nothing, but which it is does not matter to a caller that retries.
            return self.push(wait, Due::Gone(wire, Side::Caller, "connection refused"));
        };
        let conn = self.new_conn(host);
        let connection = self.net.connections.get_mut(&wire).expect("looked at above");
        let end = End {
            host,
            life,
            conn,
            open: true,
            closing: false,
            coming: VecDeque::new(),
            last_due: Timestamp(0),
        };
        connection.listener = Some(end);
        self.net.ends.insert((host, conn), (wire, Side::Listener));
        self.push(wait, Due::Answer(wire));
        self.deliver_or_wait(host, life, Event::Accepted { conn, peer: SocketAddr::new(ips.0, from_port) });
    }

    fn call_answered(&mut self, wire: Wire) {
        let Some(connection) = self.net.connections.get_mut(&wire) else { return };
        let early = std::mem::take(&mut connection.early);
        let caller = &connection.caller;
        if !caller.open {
            return;
        }
        let (host, life, conn, closing) = (caller.host, caller.life, caller.conn, caller.closing);
        for packet in early {
            self.send_packet(wire, Side::Listener, packet);
        }
        if !closing {
            self.deliver_or_wait(host, life, Event::Connected { conn });
        }
    }

    fn send_packet(&mut self, wire: Wire, to: Side, packet: Packet) {
        let bytes = match &packet {
            Packet::Frame(frame) => frame.head.len() + frame.meta.len() + frame.payload.len(),
            Packet::Fin => 0,
        };
        let Some(way) = self.net.connections.get(&wire).map(|c| c.way_to(to)) else { return };
        let wait = self.net_delay(bytes) + self.weather_delay(way, bytes);
        let at = self.now.after(wait);
        let Some(connection) = self.net.connections.get_mut(&wire) else { return };
        let Some(end) = connection.end(to) else {
            connection.early.push(packet);
            return;
        };
        if !end.open {
            // The host is there, the process is not: the kernel answers with a reset.
            let (host, life) = (end.host, end.life);
            if self.hosts[host.0].node.is_some() && self.hosts[host.0].life != life {
                self.push(wait, Due::Gone(wire, to.other(), "reset by the peer"));
            }
            return;
        }
        end.last_due = end.last_due.max(at);
        let wait = end.last_due.since(self.now);
        end.coming.push_back(packet);
        self.push(wait, Due::Packet(wire, to));
    }

    fn packet_arrives(&mut self, wire: Wire, to: Side) {
        let Some((from, here)) = self.net.connections.get(&wire).map(|c| c.way_to(to)) else { return };
        if self.net.is_cut(from, here) {
            return;
        }
        let connection = self.net.connections.get_mut(&wire).expect("looked at above");
        let Some(end) = connection.end(to) else { return };
        if !end.open {
            return;
        }
        let (host, life, conn, closing) = (end.host, end.life, end.conn, end.closing);
        match end.coming.pop_front() {
            None => {}
            Some(Packet::Frame(_)) if closing => {}
            Some(Packet::Frame(frame)) => self.deliver_or_wait(host, life, Event::Frame { conn, frame }),
            Some(Packet::Fin) => {
                let why = if closing { "closed by this side" } else { "closed by the peer" };
                self.end_gone(wire, to, why);
                self.send_packet(wire, to.other(), Packet::Fin);
            }
        }
    }

    fn end_gone(&mut self, wire: Wire, side: Side, why: &'static str) {
        let Some(connection) = self.net.connections.get_mut(&wire) else { return };
        if let Some(end) = connection.end(side)
            && end.open
        {
            end.open = false;
            end.coming.clear();
            let (host, life, conn) = (end.host, end.life, end.conn);
            self.net.ends.remove(&(host, conn));
            if connection.listener.is_none() {
                self.net.connections.remove(&wire);
            }
            self.deliver_or_wait(host, life, Event::Closed { conn, why: why.to_string() });
        }
        self.net.sweep(wire);
    }

    fn new_conn(&mut self, host: HostId) -> ConnId {
        let h = &mut self.hosts[host.0];
        h.next_conn += 1;
        ConnId(h.next_conn)
    }

    fn disk_asked(&mut self, host: HostId, op: OpId, asked: Asked) {
        let life = self.hosts[host.0].life;
        match asked {
            Asked::Ticket { ticket, extra, bytes } => {
                let wait = self.disk_delay(host, bytes) + extra;
                self.push(wait, Due::Disk(host, life, op, ticket));
            }
            Asked::Refused(e) => {
                self.push(Duration::ZERO, Due::Event(host, life, Event::Disk { op, result: Err(e) }));
            }
        }
    }
}

/// What of an event goes into the trace: kind with number, and content.
fn mark_of(event: &AnyEvent) -> (u64, u64) {
    match event {
        Event::Start => (1, 0),
        Event::Accepted { conn, .. } => (2, conn.0),
        Event::Connected { conn } => (3, conn.0),
        Event::Frame { conn, frame } => {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&frame.head);
            crc.update(&frame.meta);
            (4 | (conn.0 << 8), u64::from(crc.finalize()) << 32 | frame.payload.len() as u64)
        }
        Event::Closed { conn, why } => (5 | (conn.0 << 8), why.len() as u64),
        Event::Disk { op, result } => (6 | u64::from(result.is_ok()) << 8, op.0),
        Event::Timer { id } => (7, id.0),
        Event::Message(_) => (8, 0),
        Event::Shutdown => (9, 0),
    }
}

/// What stands for the certificate of a server; nobody is in between here.
fn certificate_of(server: SocketAddr) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&server.port().to_le_bytes());
    bytes
}

/// What one node sees of the world.
struct NodeIo<'a> {
    world: &'a mut World,
    host: HostId,
}

impl NodeIo<'_> {
    fn host(&mut self) -> &mut Host {
        &mut self.world.hosts[self.host.0]
    }
}

impl Io for NodeIo<'_> {
    fn now(&self) -> Timestamp {
        self.world.hosts[self.host.0].clock.shows(self.world.now)
    }
    fn wall_ms(&self) -> u64 {
        let offset = self.world.hosts[self.host.0].wall_offset_ms;
        (1_700_000_000_000 + self.world.now.0 / 1_000_000).saturating_add_signed(offset)
    }
    fn random(&mut self) -> u64 {
        self.world.rng.next_u64()
    }
    fn listen(&mut self, at: SocketAddr) -> io::Result<SocketAddr> {
        let mut at = at;
        let net = &mut self.world.net;
        if at.port() == 0 {
            net.next_port += 1;
            at.set_port(net.next_port);
        }
        if net.listeners.contains_key(&at) {
            let text = format!("cannot listen on {at}: Address already in use");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        let life = self.world.hosts[self.host.0].life;
        self.world.net.listeners.insert(at, (self.host, life));
        Ok(at)
    }
    fn connect(&mut self, to: SocketAddr) -> ConnId {
        let host = self.host;
        let conn = self.world.new_conn(host);
        let (ip, life) = (self.host().ip, self.host().life);
        self.world.net.next_wire += 1;
        let wire = Wire(self.world.net.next_wire);
        let channel = match self.host().encrypts {
            true => Channel::Encrypted { certificate: certificate_of(to) },
            false => Channel::Plain,
        };
        let caller = End {
            host,
            life,
            conn,
            open: true,
            closing: false,
            coming: VecDeque::new(),
            last_due: Timestamp(0),
        };
        let connection =
            Connection { to, channel, ips: (ip, to.ip()), caller, listener: None, early: Vec::new() };
        self.world.net.connections.insert(wire, connection);
        self.world.net.ends.insert((host, conn), (wire, Side::Caller));
        let wait = self.world.net_delay(0);
        self.world.push(wait, Due::Call(wire));
        conn
    }
    fn send(&mut self, conn: ConnId, frame: RawFrame) {
        let Some(&(wire, side)) = self.world.net.ends.get(&(self.host, conn)) else { return };
        let connection = self.world.net.connections.get_mut(&wire).expect("an end of a connection");
        if connection.end(side).is_none_or(|e| !e.open || e.closing) {
            return;
        }
        if side == Side::Caller && (connection.listener.is_none() || !connection.early.is_empty()) {
            connection.early.push(Packet::Frame(frame));
            return;
        }
        self.world.send_packet(wire, side.other(), Packet::Frame(frame));
    }
    fn unsent_bytes(&self, conn: ConnId) -> usize {
        let net = &self.world.net;
        let Some(&(wire, side)) = net.ends.get(&(self.host, conn)) else { return 0 };
        let connection = &net.connections[&wire];
        let waiting = |packets: &mut dyn Iterator<Item = &Packet>| {
            packets
                .map(|p| if let Packet::Frame(f) = p { 64 + f.meta.len() + f.payload.len() } else { 0 })
                .sum()
        };
        match (side, &connection.listener) {
            (Side::Caller, None) => waiting(&mut connection.early.iter()),
            // Of a link that stands, nothing waits in the sender for long.
            _ if !net.is_cut_either_way(connection.ips) => 0,
            (Side::Caller, Some(listener)) => waiting(&mut listener.coming.iter()),
            (Side::Listener, _) => waiting(&mut connection.caller.coming.iter()),
        }
    }
    fn close(&mut self, conn: ConnId) {
        let Some(&(wire, side)) = self.world.net.ends.get(&(self.host, conn)) else { return };
        let connection = self.world.net.connections.get_mut(&wire).expect("an end of a connection");
        let Some(end) = connection.end(side) else { return };
        if !end.open || std::mem::replace(&mut end.closing, true) {
            return;
        }
        if connection.end(side.other()).is_some_and(|e| !e.open) {
            return self.world.push(Duration::ZERO, Due::Gone(wire, side, "closed by this side"));
        }
        if side == Side::Caller && (connection.listener.is_none() || !connection.early.is_empty()) {
            connection.early.push(Packet::Fin);
            return;
        }
        self.world.send_packet(wire, side.other(), Packet::Fin);
    }
    fn encrypt(&mut self, on: bool) {
        self.host().encrypts = on;
    }
    fn channel(&self, conn: ConnId) -> Channel {
        let net = &self.world.net;
        net.ends.get(&(self.host, conn)).map_or(Channel::Plain, |(wire, _)| net.connections[wire].channel)
    }
    fn open(&mut self, path: &str, how: OpenHow) -> io::Result<FileHandle> {
        let host = self.host();
        host.files.open(&mut host.disk, path, how)
    }
    fn file_len(&mut self, file: FileHandle) -> io::Result<u64> {
        let host = self.host();
        Ok(host.files.len(&host.disk, file))
    }
    fn read(&mut self, file: FileHandle, offset: u64, len: usize, op: OpId) {
        let host = self.host();
        let asked = host.files.read(&mut host.disk, file, offset, len);
        self.world.disk_asked(self.host, op, asked);
    }
    fn write(&mut self, file: FileHandle, offset: u64, parts: Vec<Buf>, durability: Durability, op: OpId) {
        let host = self.host();
        let asked = host.files.write(&mut host.disk, file, offset, parts, durability);
        self.world.disk_asked(self.host, op, asked);
    }
    fn sync(&mut self, file: FileHandle, op: OpId) {
        let host = self.host();
        let asked = host.files.sync(&mut host.disk, file);
        self.world.disk_asked(self.host, op, asked);
    }
    fn punch(&mut self, file: FileHandle, offset: u64, len: u64, op: OpId) {
        let host = self.host();
        let asked = host.files.punch(&mut host.disk, file, offset, len);
        self.world.disk_asked(self.host, op, asked);
    }
    fn allocate(&mut self, file: FileHandle, len: u64, op: OpId) {
        let host = self.host();
        let asked = host.files.allocate(&mut host.disk, file, len);
        self.world.disk_asked(self.host, op, asked);
    }
    fn put_blob(&mut self, path: &str, bytes: Vec<u8>, op: OpId) {
        let len = bytes.len() as u64;
        let asked = submit(&mut self.host().disk, DiskOp::PutBlob { path: path.into(), bytes }, len);
        self.world.disk_asked(self.host, op, asked);
    }
    fn get_blob(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.host().disk.get_blob(path))
    }
    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.host().disk.remove(path);
        Ok(())
    }
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        Ok(self.host().disk.list(dir))
    }
    fn disk_space(&mut self) -> io::Result<(u64, u64)> {
        Ok(self.host().disk.space())
    }
    fn set_timer(&mut self, at: Timestamp, id: TimerId) {
        let (host, life) = (self.host, self.host().life);
        let wait = self.host().clock.world_time_of(at).since(self.world.now);
        self.world.push(wait, Due::Event(host, life, Event::Timer { id }));
    }
    fn buffer(&mut self, len: usize) -> BufMut {
        pool_buffer(len)
    }
    fn stop(&mut self, outcome: Result<(), String>) {
        self.host().stopped = Some(outcome);
    }
}

#[cfg(test)]
mod tests;
