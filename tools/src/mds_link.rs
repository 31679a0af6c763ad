//! A blocking connection to the master metadata server, and to any shard of a chunk server.

use crate::Outcome;
use shards::blocking::BlockingConn;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::auth::{Credentials, Member};
use wire::hello::{Initiator, Peer, Step};
use wire::mds_api::{MdsReply, MdsRequest};
use wire::{Frame, Head, Kind, Status, decode, encode};

const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);
/// How long to look for a master: an election takes about a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for a file that another client has open, and how often to ask.
const BUSY_WAIT: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// For who writes to a file that is to be cloned: it ends what it has begun first.
const SETTLE_WAIT: Duration = Duration::from_secs(5);
/// For commands that ask again and again by themselves.
const HASTY_ANSWER: Duration = Duration::from_secs(1);

/// Why there is no connection. The status is of a server that refused us.
#[derive(Clone, Debug)]
pub struct ConnectError {
    pub status: Option<Status>,
    pub why: String,
}

impl From<String> for ConnectError {
    fn from(why: String) -> Self {
        ConnectError { status: None, why }
    }
}

/// A connection and who is at its other end; `None` without a password.
type Reached = (BlockingConn, Option<Member>);

/// Connects and authenticates; encrypted where the cluster wants it so.
fn connect(cluster: &str, credentials: &Credentials, to: SocketAddr) -> Result<Reached, ConnectError> {
    let plain = BlockingConn::connect(to, wire::framing, CONNECT).map_err(|e| shards::text::cause(&e))?;
    match authenticate(cluster, credentials, plain) {
        Err(ConnectError { status: Some(Status::NotEncrypted), .. }) => sealed(cluster, credentials, to),
        outcome => outcome,
    }
}

/// The same, encrypted whatever the cluster wants.
fn sealed(cluster: &str, credentials: &Credentials, to: SocketAddr) -> Result<Reached, ConnectError> {
    authenticate(cluster, credentials, connect_encrypted(to, CONNECT)?)
}

pub fn connect_encrypted(to: SocketAddr, within: Duration) -> Outcome<BlockingConn> {
    BlockingConn::connect_encrypted(to, wire::framing, within).map_err(|e| match e.kind() {
        io::ErrorKind::ConnectionRefused => shards::text::cause(&e),
        _ => format!("TLS: {}", shards::text::cause(&e)),
    })
}

fn authenticate(
    cluster: &str,
    credentials: &Credentials,
    mut conn: BlockingConn,
) -> Result<Reached, ConnectError> {
    let (mut greeting, hello) =
        Initiator::new(credentials.clone(), cluster, Peer::Tool, shards::host::random_bytes());
    conn.send(&hello.encode()).map_err(|e| e.to_string())?;
    loop {
        let frame = receive(&mut conn, CONNECT)?;
        let step = greeting.on_frame(&frame, conn.channel());
        match step.map_err(|failed| ConnectError { status: Some(failed.status), why: failed.reason })? {
            Step::Send(proof) => conn.send(&proof.encode()).map_err(|e| e.to_string())?,
            Step::Finished { member, .. } => return Ok((conn, member)),
        }
    }
}

/// The next frame, decoded.
pub fn receive(conn: &mut BlockingConn, within: Duration) -> Outcome<Frame> {
    let raw = conn.receive(within).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("connected, but no answer within {} s", within.as_secs())
        }
        io::ErrorKind::UnexpectedEof => "it closed the connection".into(),
        _ => shards::text::cause(&e),
    })?;
    Frame::decode(raw).map_err(|e| e.to_string())
}

/// A connection is used for so long: a new one hears of newer keys of the cluster, and nobody waits for this program to do so.
const KEEP_LINE: Duration = Duration::from_secs(10);

/// A connection to a metadata server.
struct Line {
    addr: SocketAddr,
    conn: BlockingConn,
    since: Instant,
}

pub struct MdsLink {
    cluster: String,
    credentials: Credentials,
    known: Vec<SocketAddr>,
    master: Option<Line>,
    /// Of the cluster's keys, as far as the servers that were asked know them.
    newest_generation: u32,
    shards: HashMap<SocketAddr, BlockingConn>,
    next_request: u64,
    answer: Duration,
    patience: Duration,
    seals: bool,
}

impl MdsLink {
    /// `known` may be any of the cluster's metadata servers.
    pub fn new(cluster: &str, credentials: Credentials, known: &[SocketAddr]) -> MdsLink {
        // Request ids only need to be unique per session; tools have none.
        let next_request = u64::from_le_bytes(shards::host::random_bytes()) >> 16;
        MdsLink {
            cluster: cluster.into(),
            credentials,
            known: known.to_vec(),
            master: None,
            newest_generation: 0,
            shards: HashMap::new(),
            next_request,
            answer: ANSWER,
            patience: PATIENCE,
            seals: false,
        }
    }

    /// Through TLS, whatever the cluster wants: for secrets.
    pub fn sealed(self) -> MdsLink {
        MdsLink { seals: true, ..self }
    }

    /// Asks every server once and waits for none of them long.
    pub fn hasty(self) -> MdsLink {
        MdsLink { answer: HASTY_ANSWER, patience: Duration::ZERO, ..self }
    }

    /// The metadata servers that are tried.
    pub fn known(&self) -> &[SocketAddr] {
        &self.known
    }

    pub fn know(&mut self, servers: Vec<SocketAddr>) {
        self.known = servers;
    }

    /// Keeps no connection until the next question.
    pub fn hang_up(&mut self) {
        self.master = None;
    }

    /// Asks the master; follows redirections and waits out an election.
    pub fn ask(&mut self, request: &MdsRequest) -> Outcome<MdsReply> {
        let deadline = Instant::now() + self.patience;
        let busy_wait = if matches!(request, MdsRequest::Clone { .. }) { SETTLE_WAIT } else { BUSY_WAIT };
        let free_until = Instant::now() + busy_wait;
        loop {
            let mut tried = Vec::new();
            // Wrong keys and clusters don't get better by waiting.
            let mut refused = None;
            let mut candidates: Vec<SocketAddr> =
                self.master.iter().map(|line| line.addr).chain(self.known.clone()).collect();
            let mut at = 0;
            let mut hopeless = true;
            while at < candidates.len() && at < 12 {
                let addr = candidates[at];
                at += 1;
                match self.ask_one(addr, request) {
                    Ok(MdsReply::Failed { status: Status::NotMaster | Status::NotReady, detail, master }) => {
                        tried.push(format!("{addr}: {detail}"));
                        hopeless = false;
                        if let Some(master) = master.filter(|m| !candidates[at..].contains(m)) {
                            candidates.insert(at, master);
                        }
                    }
                    // Who has just closed a file gives it back a moment later.
                    Ok(MdsReply::Failed { status: Status::FileBusy, .. }) if Instant::now() < free_until => {
                        std::thread::sleep(BUSY_PAUSE);
                        at -= 1;
                    }
                    Ok(MdsReply::Failed { status, detail, .. }) => {
                        return Err(if detail.is_empty() { status.to_string() } else { detail });
                    }
                    Ok(reply) => {
                        if self.credentials.generation() < self.newest_generation {
                            self.renew(addr);
                        }
                        return Ok(reply);
                    }
                    Err(error) => {
                        match error.status {
                            Some(
                                Status::WrongPassword
                                | Status::TakenOut
                                | Status::WrongCluster
                                | Status::Version,
                            ) => refused = error.status,
                            _ => hopeless = false,
                        }
                        tried.push(format!("{addr}: {}", error.why));
                    }
                }
                self.master = None;
            }
            if hopeless || Instant::now() > deadline {
                tried.sort();
                tried.dedup();
                return Err(self.nobody(&tried, refused));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Fetches this node's certificate of newer keys, and shows it. On a host without services nobody else does.
    fn renew(&mut self, master: SocketAddr) {
        let Ok(MdsReply::Admitted(certificate)) = self.ask_one(master, &MdsRequest::Renew) else { return };
        match self.credentials.renew(&certificate) {
            Ok(true) => {
                self.master = None;
                self.ask_one(master, &MdsRequest::Renew).ok();
            }
            Ok(false) => {}
            Err(why) => eprintln!("pstorage: this node's certificate is not renewed: {why}"),
        }
    }

    fn nobody(&self, tried: &[String], refused: Option<Status>) -> String {
        let cluster = &self.cluster;
        let advice = match refused {
            Some(Status::WrongPassword | Status::TakenOut) => {
                format!("Run 'pstorage -c {cluster} auth-node' and give the cluster's password")
            }
            Some(Status::WrongCluster) => {
                format!("Name the right cluster with -c, or correct bs.list of '{cluster}'")
            }
            Some(_) => "Install the same version of pstorage on both sides".into(),
            None => format!(
                "Check that most of them run, and that these are the right ones (pstorage discover {cluster})"
            ),
        };
        format!(
            "no metadata server of cluster '{cluster}' answers as master. Tried:\n  {}\n{advice}.",
            tried.join("\n  ")
        )
    }

    fn ask_one(&mut self, addr: SocketAddr, request: &MdsRequest) -> Result<MdsReply, ConnectError> {
        let kept = self.master.take().filter(|line| line.addr == addr && line.since.elapsed() < KEEP_LINE);
        let mut line = match kept {
            Some(line) => line,
            None => {
                let connect = if self.seals { sealed } else { connect };
                let (conn, member) = connect(&self.cluster, &self.credentials, addr)?;
                self.newest_generation = member.map_or(0, |m| m.generation).max(self.newest_generation);
                Line { addr, conn, since: Instant::now() }
            }
        };
        self.next_request += 1;
        let head = Head::new(Kind::MdsRequest, self.next_request);
        line.conn
            .send(&Frame::new(head, &encode!(request), shards::Buf::empty()).encode())
            .map_err(|e| e.to_string())?;
        loop {
            let frame = receive(&mut line.conn, self.answer)?;
            match frame.head.kind {
                Kind::MdsReply if frame.head.request == head.request => {
                    let reply = decode!(MdsReply, &frame.meta)?;
                    self.master = Some(line);
                    return Ok(reply);
                }
                Kind::Ping => {
                    let pong = Frame::bare(frame.head.reply(Kind::Pong, Status::Ok));
                    line.conn.send(&pong.encode()).map_err(|e| e.to_string())?;
                }
                _ => {}
            }
        }
    }

    /// Asks a shard of a chunk server. The connection is kept for the next question.
    pub fn ask_shard(&mut self, addr: SocketAddr, frame: &Frame) -> Outcome<Frame> {
        let at = |why: String| format!("{addr}: {why}");
        let mut conn = match self.shards.remove(&addr) {
            Some(conn) => conn,
            None => connect(&self.cluster, &self.credentials, addr).map_err(|e| at(e.why))?.0,
        };
        conn.send(&frame.encode()).map_err(|e| at(e.to_string()))?;
        let answer = receive(&mut conn, self.answer).map_err(at)?;
        self.shards.insert(addr, conn);
        Ok(answer)
    }
}
