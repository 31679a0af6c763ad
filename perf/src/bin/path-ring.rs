//! `path-ring DIR`: the request path of decision 001 on the product's own runtime, through the seam that the chunk
//! server uses. Prints the address it listens on; ends when its one client goes.

use perf::cpu::Cpu;
use perf::path::{self, Places};
use shards::ring::{self, RingConfig};
use shards::{Buf, ConnId, Durability, Event, FileHandle, Io, Node, OpId, OpenHow, RawFrame};
use std::collections::HashMap;

struct Server {
    file: FileHandle,
    places: Places,
    /// Who waits for the write with this number, and the client's number for it.
    waiting: HashMap<u64, (ConnId, u64)>,
    last_op: u64,
}

impl Server {
    fn start(&mut self, io: &mut dyn Io) -> std::io::Result<()> {
        self.file = io.open(path::FILE, OpenHow { create: false, direct: true, read_only: false })?;
        self.places = Places::new(io.file_len(self.file)?);
        let addr = io.listen(([127, 0, 0, 1], 0).into())?;
        println!("{addr}");
        Ok(())
    }

    fn request(&mut self, conn: ConnId, frame: RawFrame, io: &mut dyn Io) {
        let id = path::id(&frame.head);
        if path::kind(&frame.head) == path::REPORT {
            return answer(conn, path::head(path::REPORT, 0, id, Cpu::of_this_process()), io);
        }
        self.last_op += 1;
        self.waiting.insert(self.last_op, (conn, id));
        let at = self.places.next_offset();
        io.write(self.file, at, vec![frame.payload], Durability::Durable, OpId(self.last_op));
    }
}

fn answer(conn: ConnId, head: path::Head, io: &mut dyn Io) {
    io.send(conn, RawFrame { head, meta: Buf::empty(), payload: Buf::empty() });
}

impl Node for Server {
    type Message = ();

    fn handle(&mut self, event: Event<()>, io: &mut dyn Io) {
        match event {
            Event::Start => {
                if let Err(e) = self.start(io) {
                    io.stop(Err(e.to_string()));
                }
            }
            Event::Frame { conn, frame } => self.request(conn, frame, io),
            Event::Disk { op, result } => {
                let Some((conn, id)) = self.waiting.remove(&op.0) else { return };
                match result {
                    Ok(_) => answer(conn, path::head(path::WRITE, 0, id, Cpu::default()), io),
                    Err(e) => io.stop(Err(format!("writing: {e}"))),
                }
            }
            Event::Closed { .. } => io.stop(Ok(())),
            _ => {}
        }
    }
}

fn main() -> Result<(), String> {
    let dir = std::env::args().nth(1).ok_or("usage: path-ring DIR")?;
    let node = || Server { file: FileHandle(0), places: Places::new(0), waiting: HashMap::new(), last_op: 0 };
    let config = RingConfig::new("path-ring", dir, path::framing);
    let shard = ring::spawn(config, node).map_err(|e| e.to_string())?;
    shard.join().map_err(|e| e.to_string())
}
