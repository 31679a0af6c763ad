//! A node that asks shards for the block checksums of a replica, as `pstorage check` does.

use shards::{ConnId, Event, Io, Node};
use std::collections::HashMap;
use std::net::SocketAddr;
use wire::auth::Credentials;
use wire::hello::{Initiator, Peer, Step};
use wire::{BlockCrc, ChunkId, DataMeta, Epoch, Frame, Head, Kind, Status, flags};

/// Called with the checksums, or with what went wrong.
pub type Done = Box<dyn FnOnce(Result<Vec<BlockCrc>, String>) + Send>;

pub struct Probe {
    pub addr: SocketAddr,
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub blocks: u32,
    pub done: Done,
}

pub struct Prober {
    cluster: String,
    asked: HashMap<ConnId, (Probe, Initiator)>,
}

impl Prober {
    pub fn new(cluster: &str) -> Prober {
        Prober { cluster: cluster.into(), asked: HashMap::new() }
    }

    fn answer(probe: Probe, frame: &Frame) {
        (probe.done)(match frame.head.status {
            Status::Ok => DataMeta::decode(&frame.meta)
                .map_err(|e| e.to_string())
                .map(|meta| meta.crcs.into_iter().map(zero_is_hole).collect()),
            Status::UnknownChunk => Ok(vec![BlockCrc::HOLE; probe.blocks as usize]),
            other => Err(format!("{}: chunk {}: {other}", probe.addr, probe.chunk)),
        });
    }
}

/// Written zeros and a hole read alike.
fn zero_is_hole(crc: BlockCrc) -> BlockCrc {
    if crc == BlockCrc::of(&[0; wire::BLOCK_BYTES]) { BlockCrc::HOLE } else { crc }
}

impl Node for Prober {
    type Message = Probe;

    fn handle(&mut self, event: Event<Probe>, io: &mut dyn Io) {
        match event {
            Event::Message(probe) => {
                let conn = io.connect(probe.addr);
                let mut nonce = [0; 32];
                nonce.chunks_mut(8).for_each(|part| part.copy_from_slice(&io.random().to_le_bytes()));
                let (greeting, hello) = Initiator::new(Credentials::Open, &self.cluster, Peer::Tool, nonce);
                io.send(conn, hello.encode());
                self.asked.insert(conn, (probe, greeting));
            }
            Event::Frame { conn, frame } => {
                let Some((probe, greeting)) = self.asked.get_mut(&conn) else { return };
                let frame = Frame::decode(frame).expect("a whole frame");
                if greeting.may_send() && frame.head.kind == Kind::SumsDone {
                    let (probe, _) = self.asked.remove(&conn).expect("looked at above");
                    io.close(conn);
                    return Self::answer(probe, &frame);
                }
                match greeting.on_frame(&frame, io.channel(conn)) {
                    Ok(Step::Send(next)) => {
                        io.send(conn, next.encode());
                        if greeting.may_send() {
                            let mut head = Head::new(Kind::Sums, 1);
                            head.chunk = probe.chunk;
                            head.epoch = probe.epoch;
                            head.length_bytes = probe.blocks * wire::BLOCK_BYTES as u32;
                            head.flags = flags::DEEP;
                            io.send(conn, Frame::bare(head).encode());
                        }
                    }
                    Ok(Step::Finished { .. }) => {}
                    Err(failed) if failed.status == Status::NotEncrypted => {
                        let (probe, _) = self.asked.remove(&conn).expect("looked at above");
                        io.close(conn);
                        io.encrypt(true);
                        self.handle(Event::Message(probe), io);
                    }
                    Err(failed) => {
                        let (probe, _) = self.asked.remove(&conn).expect("looked at above");
                        (probe.done)(Err(failed.reason));
                    }
                }
            }
            Event::Closed { conn, why } => {
                if let Some((probe, _)) = self.asked.remove(&conn) {
                    (probe.done)(Err(format!("{}: {why}", probe.addr)));
                }
            }
            _ => {}
        }
    }
}
