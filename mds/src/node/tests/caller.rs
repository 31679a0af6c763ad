//! The other ends of a metadata server's connections, for tests: a client that works through a script, and a chunk
//! server shard without data.

use shards::{Buf, ConnId, Event, Io, Node, TimerId};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::auth::ClusterKey;
use wire::cs_api::{ChunkReport, CsCommand, CsReply, CsRequest, Load, Space};
use wire::hello::{Initiator, Peer, Step};
use wire::mds_api::{MdsReply, MdsRequest};
use wire::{ChunkId, ClientId, CsId, Frame, Head, Kind, ShardIndex, Status};

const TICK: Duration = Duration::from_millis(20);
const TICK_TIMER: TimerId = TimerId(0x06 << 56);
/// Ticks without an answer after which another server is tried.
const PATIENCE_TICKS: u32 = 25;

/// A line to whichever server is the master.
struct Line {
    servers: Vec<SocketAddr>,
    at: usize,
    peer: Peer,
    conn: Option<ConnId>,
    initiator: Option<Initiator>,
    ready: bool,
}

enum LineEvent {
    Ready,
    Frame(Frame),
    Lost,
}

impl Line {
    fn new(servers: Vec<SocketAddr>, peer: Peer) -> Line {
        Line { servers, at: 0, peer, conn: None, initiator: None, ready: false }
    }

    fn connect(&mut self, io: &mut dyn Io) {
        let (initiator, hello) = Initiator::new(ClusterKey::for_test(1), super::CLUSTER, self.peer, [7; 32]);
        let conn = io.connect(self.servers[self.at]);
        io.send(conn, hello.encode());
        (self.conn, self.initiator, self.ready) = (Some(conn), Some(initiator), false);
    }

    /// Goes to the server named, or to the next one.
    fn move_on(&mut self, to: Option<SocketAddr>, io: &mut dyn Io) {
        if let Some(conn) = self.conn.take() {
            io.close(conn);
        }
        self.ready = false;
        let named = to.and_then(|addr| self.servers.iter().position(|a| *a == addr));
        self.at = named.unwrap_or((self.at + 1) % self.servers.len());
    }

    fn on_event(&mut self, event: Event<Infallible>, io: &mut dyn Io) -> Option<LineEvent> {
        match event {
            Event::Frame { conn, frame } if Some(conn) == self.conn => {
                let frame = Frame::decode(frame).expect("servers send good frames");
                if self.ready {
                    return Some(LineEvent::Frame(frame));
                }
                match self.initiator.as_mut().expect("in the handshake").on_frame(&frame) {
                    Ok(Step::Send(proof)) => io.send(conn, proof.encode()),
                    Ok(Step::Finished { .. }) => {
                        self.ready = true;
                        return Some(LineEvent::Ready);
                    }
                    Err(e) => panic!("handshake: {}", e.reason),
                }
                None
            }
            Event::Closed { conn, .. } if Some(conn) == self.conn => {
                self.conn = None;
                self.move_on(None, io);
                Some(LineEvent::Lost)
            }
            _ => None,
        }
    }

    fn send(&self, head: Head, meta: &[u8], io: &mut dyn Io) {
        if let Some(conn) = self.conn.filter(|_| self.ready) {
            io.send(conn, Frame::new(head, meta, Buf::empty()).encode());
        }
    }
}

/// What a script asked and was told, with the time it took in nanoseconds.
#[derive(Default)]
pub struct Transcript {
    pub todo: VecDeque<MdsRequest>,
    pub done: Vec<(MdsRequest, MdsReply, u64)>,
    pub client: Option<ClientId>,
}

pub type Shared<T> = Arc<Mutex<T>>;

/// Sends one request after the other, each until it is answered.
pub struct Script {
    line: Line,
    transcript: Shared<Transcript>,
    next_id: u64,
    asked: Option<(u64, MdsRequest, u64)>,
    ticks: u32,
}

impl Script {
    pub fn new(servers: Vec<SocketAddr>) -> (Script, Shared<Transcript>) {
        let transcript: Shared<Transcript> = Arc::default();
        let line = Line::new(servers, Peer::Tool);
        (Script { line, transcript: transcript.clone(), next_id: 1, asked: None, ticks: 0 }, transcript)
    }

    fn go_on(&mut self, io: &mut dyn Io) {
        if self.asked.is_none() {
            let Some(mut request) = self.transcript.lock().unwrap().todo.pop_front() else { return };
            if let Some(client) = self.transcript.lock().unwrap().client {
                name_client(&mut request, client);
            }
            self.asked = Some((self.next_id, request, io.now().0));
            self.next_id += 1;
            self.send(io);
        }
    }

    fn send(&mut self, io: &mut dyn Io) {
        if let Some((id, request, _)) = &self.asked {
            self.ticks = 0;
            self.line.send(Head::new(Kind::MdsRequest, *id), &wire::encode!(request), io);
        }
    }

    fn answered(&mut self, frame: &Frame, io: &mut dyn Io) {
        let reply = wire::decode!(MdsReply, &frame.meta).expect("servers send good replies");
        if self.asked.as_ref().is_none_or(|(id, ..)| *id != frame.head.request) {
            return;
        }
        if let MdsReply::Failed { status: Status::NotMaster | Status::NotReady, master, .. } = reply {
            self.line.move_on(master, io);
            return;
        }
        let (_, request, since) = self.asked.take().expect("looked at above");
        let mut transcript = self.transcript.lock().unwrap();
        if let MdsReply::Session { client, .. } = reply {
            transcript.client = Some(client);
        }
        transcript.done.push((request, reply, io.now().0 - since));
        drop(transcript);
        self.go_on(io);
    }

    fn tick(&mut self, io: &mut dyn Io) {
        io.set_timer(io.now().after(TICK), TICK_TIMER);
        self.ticks += 1;
        if self.line.conn.is_none() {
            self.line.connect(io);
        } else if self.asked.is_some() && self.ticks > PATIENCE_TICKS {
            self.ticks = 0;
            self.line.move_on(None, io);
        }
        self.go_on(io);
    }
}

/// Scripts are written with client 0.
fn name_client(request: &mut MdsRequest, to: ClientId) {
    use MdsRequest as R;
    match request {
        R::KeepAlive { client }
        | R::CloseSession { client }
        | R::SetAttr { client, .. }
        | R::Create { client, .. }
        | R::Unlink { client, .. }
        | R::Rename { client, .. }
        | R::Open { client, .. }
        | R::Release { client, .. }
        | R::Extend { client, .. }
        | R::Allocate { client, .. } => *client = to,
        _ => {}
    }
}

impl Node for Script {
    type Message = Infallible;
    fn handle(&mut self, event: Event<Infallible>, io: &mut dyn Io) {
        match event {
            Event::Start | Event::Timer { id: TICK_TIMER } => self.tick(io),
            Event::Shutdown => io.stop(Ok(())),
            event => match self.line.on_event(event, io) {
                Some(LineEvent::Ready) => self.send(io),
                Some(LineEvent::Frame(frame)) if frame.head.kind == Kind::MdsReply => self.answered(&frame, io),
                Some(LineEvent::Frame(_) | LineEvent::Lost) | None => {}
            },
        }
    }
}

/// What a test sees of a chunk server shard, and can make it say.
#[derive(Default)]
pub struct ShardLog {
    pub registered: u32,
    pub commands: Vec<CsCommand>,
    pub replies: Vec<CsReply>,
    pub say: VecDeque<CsRequest>,
}

/// A shard that registers, sends heartbeats, confirms deletions and reports every learner as filled.
pub struct FakeShard {
    line: Line,
    cs: CsId,
    shard: ShardIndex,
    shards: u16,
    addr: SocketAddr,
    log: Shared<ShardLog>,
    registered: bool,
    ticks: u32,
    /// Whether learners are reported as joined.
    joins: bool,
}

impl FakeShard {
    pub fn new(
        servers: Vec<SocketAddr>,
        cs: CsId,
        shard: u16,
        shards: u16,
        addr: SocketAddr,
        joins: bool,
    ) -> (FakeShard, Shared<ShardLog>) {
        let log: Shared<ShardLog> = Arc::default();
        let shard = ShardIndex(shard);
        let line = Line::new(servers, Peer::CsShard { cs, shard, generation: 1 });
        let fake =
            FakeShard { line, cs, shard, shards, addr, log: log.clone(), registered: false, ticks: 0, joins };
        (fake, log)
    }

    fn say(&self, request: &CsRequest, io: &mut dyn Io) {
        self.line.send(Head::new(Kind::CsRequest, 1), &wire::encode!(request), io);
    }

    fn space() -> Space {
        Space { total_bytes: 100 << 30, free_bytes: 90 << 30, chunks: 0 }
    }

    fn register(&mut self, io: &mut dyn Io) {
        let request = CsRequest::Register {
            cs: self.cs,
            shard: self.shard,
            shards: self.shards,
            addr: self.addr,
            incarnation: io.now().0,
            host_id: [self.cs.0 as u8; 16],
            host: format!("host{}", self.cs),
            location: String::new(),
            tier: 0,
            space: Self::space(),
            flags: String::new(),
        };
        self.say(&request, io);
    }

    fn told(&mut self, frame: &Frame, io: &mut dyn Io) {
        match frame.head.kind {
            Kind::CsReply => {
                let reply = wire::decode!(CsReply, &frame.meta).expect("servers send good replies");
                match &reply {
                    CsReply::Registered { .. } => {
                        self.registered = true;
                        self.log.lock().unwrap().registered += 1;
                    }
                    CsReply::Failed { status: Status::NotMaster | Status::NotReady, master, .. } => {
                        self.registered = false;
                        self.line.move_on(*master, io);
                    }
                    _ => {}
                }
                self.log.lock().unwrap().replies.push(reply);
            }
            Kind::CsCommand => {
                let command = wire::decode!(CsCommand, &frame.meta).expect("servers send good commands");
                self.log.lock().unwrap().commands.push(command.clone());
                self.obey(command, io);
            }
            _ => {}
        }
    }

    fn obey(&mut self, command: CsCommand, io: &mut dyn Io) {
        match command {
            CsCommand::Delete { chunks } => self.say(&CsRequest::Deleted { chunks }, io),
            CsCommand::Repair { set } if self.joins => {
                for replica in set.grant.replicas.iter().filter(|r| r.role == wire::Role::Learner) {
                    let (chunk, epoch, cs) = (set.chunk, set.epoch, replica.cs);
                    self.say(&CsRequest::Joined { chunk, epoch, cs }, io);
                }
            }
            _ => {}
        }
    }

    fn tick(&mut self, io: &mut dyn Io) {
        io.set_timer(io.now().after(TICK), TICK_TIMER);
        self.ticks += 1;
        if self.line.conn.is_none() {
            self.registered = false;
            self.line.connect(io);
        }
        if self.registered && self.ticks.is_multiple_of(25) {
            self.say(&CsRequest::Heartbeat { space: Self::space(), load: Load::default() }, io);
        }
        let said: Vec<CsRequest> = self.log.lock().unwrap().say.drain(..).collect();
        for request in said {
            self.say(&request, io);
        }
    }
}

impl Node for FakeShard {
    type Message = Infallible;
    fn handle(&mut self, event: Event<Infallible>, io: &mut dyn Io) {
        match event {
            Event::Start | Event::Timer { id: TICK_TIMER } => self.tick(io),
            Event::Shutdown => io.stop(Ok(())),
            event => match self.line.on_event(event, io) {
                Some(LineEvent::Ready) => self.register(io),
                Some(LineEvent::Frame(frame)) => self.told(&frame, io),
                Some(LineEvent::Lost) | None => {}
            },
        }
    }
}

pub fn report(chunk: ChunkId, epoch: wire::Epoch) -> ChunkReport {
    ChunkReport { chunk, epoch }
}
