use super::*;

/// Answers every frame with the same frame after writing its first byte durably; counts what it sees.
#[derive(Default)]
struct Echo {
    listen: Option<SocketAddr>,
    call: Option<SocketAddr>,
    conn: Option<ConnId>,
    seen: Vec<u8>,
    closed: Vec<String>,
    file: Option<FileHandle>,
    waiting: Vec<(OpId, ConnId, RawFrame)>,
}

fn frame(byte: u8) -> RawFrame {
    RawFrame { head: [byte; 64], meta: Buf::empty(), payload: Buf::empty() }
}

impl Node for Echo {
    type Message = u8;
    fn handle(&mut self, event: Event<u8>, io: &mut dyn Io) {
        match event {
            Event::Start => {
                self.file = Some(io.open("f", OpenHow { create: true, ..OpenHow::default() }).unwrap());
                if let Some(at) = self.listen {
                    io.listen(at).unwrap();
                }
                self.conn = self.call.map(|to| io.connect(to));
            }
            Event::Message(byte) => io.send(self.conn.unwrap(), frame(byte)),
            Event::Frame { conn, frame } => {
                self.seen.push(frame.head[0]);
                if self.call.is_none() {
                    let (op, at) = (OpId(self.seen.len() as u64), self.seen.len() as u64 - 1);
                    let parts = vec![Buf::from_slice(&frame.head[..1])];
                    io.write(self.file.unwrap(), at, parts, Durability::Durable, op);
                    self.waiting.push((op, conn, frame));
                }
            }
            Event::Disk { op, .. } => {
                let at = self.waiting.iter().position(|w| w.0 == op).unwrap();
                let (_, conn, frame) = self.waiting.remove(at);
                io.send(conn, frame);
            }
            Event::Closed { why, .. } => self.closed.push(why),
            Event::Shutdown => io.stop(Ok(())),
            _ => {}
        }
    }
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn two(seed: u64) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    let (server, client) = (world.add_host("server", ip(1)), world.add_host("client", ip(2)));
    let at = SocketAddr::new(ip(1), 700);
    world.start(server, Echo { listen: Some(at), ..Echo::default() });
    world.run_for(Duration::from_millis(1));
    world.start(client, Echo { call: Some(at), ..Echo::default() });
    for byte in 0..20 {
        world.message::<Echo>(client, byte);
    }
    (world, server, client)
}

#[test]
fn frames_arrive_in_order_and_one_seed_is_one_run() {
    let run = |seed| {
        let (mut world, server, client) = two(seed);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.node::<Echo>(server).unwrap().seen, (0..20).collect::<Vec<u8>>());
        assert_eq!(world.node::<Echo>(client).unwrap().seen.len(), 20);
        world.trace()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn a_short_cut_delays_and_a_long_one_closes_both_ends() {
    let (mut world, server, client) = two(1);
    world.cut(ip(1), ip(2));
    world.run_for(Duration::from_secs(1));
    assert!(world.node::<Echo>(server).unwrap().seen.is_empty());
    let (mut world, server, client2) = two(1);
    world.run_for(Duration::from_millis(20));
    world.cut(ip(1), ip(2));
    world.message::<Echo>(client2, 99);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.node::<Echo>(server).unwrap().seen.len(), 20);
    world.heal(ip(1), ip(2));
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.node::<Echo>(server).unwrap().seen.last(), Some(&99));
    world.cut(ip(1), ip(2));
    world.run_for(Duration::from_secs(13));
    for host in [server, client] {
        assert_eq!(world.node::<Echo>(host).unwrap().closed, ["timed out"]);
    }
}

#[test]
fn a_killed_process_closes_and_keeps_its_disk_and_a_refused_call_says_so() {
    let (mut world, server, client) = two(3);
    world.run_for(Duration::from_secs(1));
    world.crash(server, CrashKind::Process);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.node::<Echo>(client).unwrap().closed, ["closed by the peer"]);
    assert_eq!(world.disk(server).peek("f", 0, 3).unwrap(), [0, 1, 2]);
    let other = world.add_host("other", ip(3));
    world.start(other, Echo { call: Some(SocketAddr::new(ip(1), 700)), ..Echo::default() });
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.node::<Echo>(other).unwrap().closed, ["connection refused"]);
    world.shutdown(other);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.stopped(other), Some(&Ok(())));
    assert!(!world.is_up(other));
}

#[test]
fn a_lost_host_is_silent_and_a_paused_one_goes_on() {
    let (mut world, server, client) = two(4);
    world.run_for(Duration::from_secs(1));
    world.pause(server, Duration::from_secs(5));
    world.message::<Echo>(client, 50);
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.node::<Echo>(server).unwrap().seen.len(), 20);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.node::<Echo>(server).unwrap().seen.last(), Some(&50));
    world.crash(server, CrashKind::Power);
    world.run_for(Duration::from_secs(5));
    assert!(world.node::<Echo>(client).unwrap().closed.is_empty(), "nobody said anything yet");
    world.run_for(Duration::from_secs(8));
    assert_eq!(world.node::<Echo>(client).unwrap().closed, ["timed out"]);
}
