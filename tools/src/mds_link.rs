//! A blocking connection to the master metadata server, and to any shard of a chunk server.

use crate::Outcome;
use shards::blocking::BlockingConn;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::auth::ClusterKey;
use wire::hello::{Initiator, Peer, Step};
use wire::mds_api::{MdsReply, MdsRequest};
use wire::{Frame, Head, Kind, Status, decode, encode};

const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);
/// How long to look for a master: an election takes about a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects and authenticates.
pub fn connect(cluster: &str, key: &ClusterKey, to: SocketAddr) -> Outcome<BlockingConn> {
    let mut conn = BlockingConn::connect(to, wire::framing, CONNECT).map_err(|e| e.to_string())?;
    let (mut greeting, hello) =
        Initiator::new(key.clone(), cluster, Peer::Tool, shards::host::random_bytes());
    conn.send(&hello.encode()).map_err(|e| e.to_string())?;
    loop {
        let frame = receive(&mut conn)?;
        match greeting.on_frame(&frame).map_err(|failed| failed.reason)? {
            Step::Send(proof) => conn.send(&proof.encode()).map_err(|e| e.to_string())?,
            Step::Finished { .. } => return Ok(conn),
        }
    }
}

/// The next frame, decoded.
pub fn receive(conn: &mut BlockingConn) -> Outcome<Frame> {
    let raw = conn.receive(ANSWER).map_err(|e| format!("no answer: {e}"))?;
    Frame::decode(raw).map_err(|e| e.to_string())
}

pub struct MdsLink {
    cluster: String,
    key: ClusterKey,
    known: Vec<SocketAddr>,
    master: Option<(SocketAddr, BlockingConn)>,
    next_request: u64,
}

impl MdsLink {
    /// `known` may be any of the cluster's metadata servers.
    pub fn open(cluster: &str, key: ClusterKey, known: &[SocketAddr]) -> Outcome<MdsLink> {
        if known.is_empty() {
            return Err(format!(
                "don't know any metadata server of cluster '{cluster}': write IP:PORT of one into \
                 clusters/{cluster}/bs.list below /etc/pstorage (or --etc), or name one with -b"
            ));
        }
        // Request ids only need to be unique per session; tools have none.
        let next_request = u64::from_le_bytes(shards::host::random_bytes()) >> 16;
        Ok(MdsLink { cluster: cluster.into(), key, known: known.to_vec(), master: None, next_request })
    }

    /// Asks the master; follows redirections and waits out an election.
    pub fn ask(&mut self, request: &MdsRequest) -> Outcome<MdsReply> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut tried = Vec::new();
            let mut candidates: Vec<SocketAddr> =
                self.master.iter().map(|m| m.0).chain(self.known.clone()).collect();
            let mut at = 0;
            while at < candidates.len() && at < 12 {
                let addr = candidates[at];
                at += 1;
                match self.ask_one(addr, request) {
                    Ok(MdsReply::Failed { status: Status::NotMaster | Status::NotReady, detail, master }) => {
                        tried.push(format!("{addr}: {detail}"));
                        if let Some(master) = master.filter(|m| !candidates[at..].contains(m)) {
                            candidates.insert(at, master);
                        }
                    }
                    Ok(MdsReply::Failed { status, detail, .. }) => {
                        return Err(if detail.is_empty() { status.to_string() } else { detail });
                    }
                    Ok(reply) => return Ok(reply),
                    Err(why) => tried.push(format!("{addr}: {why}")),
                }
                self.master = None;
            }
            // Wrong keys don't get better by waiting.
            let hopeless = tried.iter().all(|t| {
                t.contains("password") || t.contains("belongs to cluster") || t.contains("does not hold")
            });
            if hopeless || Instant::now() > deadline {
                tried.sort();
                tried.dedup();
                return Err(format!(
                    "no metadata server of cluster '{}' answers as master. Tried:\n  {}",
                    self.cluster,
                    tried.join("\n  ")
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask_one(&mut self, addr: SocketAddr, request: &MdsRequest) -> Outcome<MdsReply> {
        let mut conn = match self.master.take() {
            Some((at, conn)) if at == addr => conn,
            _ => connect(&self.cluster, &self.key, addr)?,
        };
        self.next_request += 1;
        let head = Head::new(Kind::MdsRequest, self.next_request);
        conn.send(&Frame::new(head, &encode!(request), shards::Buf::empty()).encode())
            .map_err(|e| e.to_string())?;
        loop {
            let frame = receive(&mut conn)?;
            match frame.head.kind {
                Kind::MdsReply if frame.head.request == head.request => {
                    let reply = decode!(MdsReply, &frame.meta)?;
                    self.master = Some((addr, conn));
                    return Ok(reply);
                }
                Kind::Ping => {
                    let pong = Frame::bare(frame.head.reply(Kind::Pong, Status::Ok));
                    conn.send(&pong.encode()).map_err(|e| e.to_string())?;
                }
                _ => {}
            }
        }
    }

    /// Asks a shard of a chunk server.
    pub fn ask_shard(&self, addr: SocketAddr, frame: &Frame) -> Outcome<Frame> {
        let mut conn = connect(&self.cluster, &self.key, addr).map_err(|e| format!("{addr}: {e}"))?;
        conn.send(&frame.encode()).map_err(|e| format!("{addr}: {e}"))?;
        receive(&mut conn).map_err(|e| format!("{addr}: {e}"))
    }
}
