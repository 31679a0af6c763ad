//! Real sockets on loopback and real files.

use super::*;
use crate::blocking::BlockingConn;
use crate::{
    BodyLength, Buf, Channel, ConnId, Durability, Event, FileHandle, HEAD_BYTES, Io, Node, OpId, OpenHow,
    RawFrame, TimerId,
};
use std::net::SocketAddr;
use std::sync::mpsc;

/// Test framing: byte 0 must be 0x5a, lengths at 4..8 and 8..12.
fn framing(head: &[u8; HEAD_BYTES]) -> Result<BodyLength, String> {
    if head[0] != 0x5a {
        return Err(format!("bad first byte {:02x}", head[0]));
    }
    let at = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().unwrap()) as usize;
    Ok(BodyLength { meta_bytes: at(4), payload_bytes: at(8) })
}

fn frame(tag: u64, meta: usize, payload: usize) -> RawFrame {
    let mut head = [0u8; HEAD_BYTES];
    head[0] = 0x5a;
    head[4..8].copy_from_slice(&(meta as u32).to_le_bytes());
    head[8..12].copy_from_slice(&(payload as u32).to_le_bytes());
    head[16..24].copy_from_slice(&tag.to_le_bytes());
    let fill = |n: usize| (0..n).map(|i| (i as u64 * 31 + tag) as u8).collect::<Vec<u8>>();
    RawFrame { head, meta: Buf::from_slice(&fill(meta)), payload: Buf::from_slice(&fill(payload)) }
}

fn directory(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../target/ring-tests")
        .join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

type Script = Box<dyn FnMut(Event<u32>, &mut dyn Io) + Send>;

/// A node made of a closure.
struct Scripted(Script);

impl Node for Scripted {
    type Message = u32;
    fn handle(&mut self, event: Event<u32>, io: &mut dyn Io) {
        (self.0)(event, io)
    }
}

fn start(name: &str, script: impl FnMut(Event<u32>, &mut dyn Io) + Send + 'static) -> RunningShard<u32> {
    start_with(RingConfig::new(name, directory(name), framing), script)
}

fn start_with(
    config: RingConfig,
    script: impl FnMut(Event<u32>, &mut dyn Io) + Send + 'static,
) -> RunningShard<u32> {
    spawn(config, move || Scripted(Box::new(script))).unwrap()
}

fn echo_server() -> (RunningShard<u32>, SocketAddr, mpsc::Receiver<String>) {
    let (sender, address) = mpsc::channel();
    let (closed, closings) = mpsc::channel();
    let shard = start("echo", move |event, io| match event {
        Event::Start => sender.send(io.listen(([127, 0, 0, 1], 0).into()).unwrap()).unwrap(),
        Event::Frame { conn, frame } => io.send(conn, frame),
        Event::Closed { why, .. } => closed.send(why).unwrap_or(()),
        Event::Shutdown => io.stop(Ok(())),
        _ => {}
    });
    let addr = address.recv().unwrap();
    (shard, addr, closings)
}

const WAIT: Duration = Duration::from_secs(10);

#[test]
fn frames_of_all_sizes_come_back_in_order_under_pipelining() {
    let (shard, addr, _) = echo_server();
    all_sizes_come_back(BlockingConn::connect(addr, framing, WAIT).unwrap());
    shard.shutdown();
    shard.join().unwrap();
}

#[test]
fn frames_of_all_sizes_come_back_encrypted() {
    let (shard, addr, _) = echo_server();
    let conn = BlockingConn::connect_encrypted(addr, framing, WAIT).unwrap();
    assert_ne!(conn.channel(), Channel::Plain);
    all_sizes_come_back(conn);
    shard.shutdown();
    shard.join().unwrap();
}

/// One node calls another, encrypted or not: both see the same channel, and everything arrives.
#[test]
fn nodes_call_each_other_encrypted_when_told_to() {
    for encrypts in [false, true] {
        let (sender, address) = mpsc::channel();
        let (channel_there, seen_there) = mpsc::channel();
        let server = start("sealed-echo", move |event, io| match event {
            Event::Start => sender.send(io.listen(([127, 0, 0, 1], 0).into()).unwrap()).unwrap(),
            Event::Frame { conn, frame } => {
                channel_there.send(io.channel(conn)).unwrap();
                io.send(conn, frame);
            }
            Event::Shutdown => io.stop(Ok(())),
            _ => {}
        });
        let addr = address.recv().unwrap();
        let (channel_here, seen_here) = mpsc::channel();
        let (mut call, mut came, mut stands) = (None, 0, false);
        const FRAMES: u64 = 40;
        let size = |tag: u64| (tag as usize * 50, tag as usize * 20_000);
        let client = start("sealed-call", move |event, io| match event {
            Event::Start => {
                io.encrypt(encrypts);
                let conn = io.connect(addr);
                call = Some(conn);
                // Before the connection stands, and more than one send takes.
                for tag in 0..FRAMES {
                    io.send(conn, frame(tag, size(tag).0, size(tag).1));
                }
            }
            Event::Connected { conn } => stands = Some(conn) == call,
            Event::Frame { conn, frame: got } => {
                assert!(stands, "a frame before the connection stood");
                assert!(got == frame(came, size(came).0, size(came).1), "frame {came}");
                came += 1;
                if came == FRAMES {
                    assert_eq!(io.unsent_bytes(conn), 0);
                    channel_here.send(io.channel(conn)).unwrap();
                    io.stop(Ok(()));
                }
            }
            Event::Closed { why, .. } => io.stop(Err(why)),
            _ => {}
        });
        client.join().unwrap();
        let here = seen_here.recv_timeout(WAIT).unwrap();
        assert_eq!(here != Channel::Plain, encrypts);
        assert!(seen_there.try_iter().all(|there| there == here));
        server.shutdown();
        server.join().unwrap();
    }
}

#[test]
fn garbage_that_begins_like_tls_closes_the_connection() {
    use std::io::{Read, Write};
    let (shard, addr, closings) = echo_server();
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(&[crate::tls::FIRST_BYTE; 5000]).unwrap();
    let why = closings.recv_timeout(WAIT).unwrap();
    assert!(why.contains("TLS"), "{why}");
    let _ = stream.read_to_end(&mut Vec::new());
    shard.shutdown();
    shard.join().unwrap();
}

fn all_sizes_come_back(mut conn: BlockingConn) {
    let sizes = [
        (0, 0),
        (1, 0),
        (0, 1),
        (36, 4096),
        (200, 65536),
        (0, 1 << 20),
        (70_000, 5),
        (100, 4 << 20),
        (3, 4096),
    ];
    for round in 0..3u64 {
        for (i, &(meta, payload)) in sizes.iter().enumerate() {
            conn.send(&frame(round * 100 + i as u64, meta, payload)).unwrap();
            // Small ones are pipelined; large ones are answered in between or both sides' buffers fill up.
            if payload >= 1 << 20 {
                for (j, &(meta, payload)) in
                    sizes[..=i].iter().enumerate().skip(if payload == 1 << 20 { 0 } else { 6 })
                {
                    assert_eq!(conn.receive(WAIT).unwrap(), frame(round * 100 + j as u64, meta, payload));
                }
            }
        }
        assert_eq!(conn.receive(WAIT).unwrap(), frame(round * 100 + 8, 3, 4096));
    }
}

#[test]
fn a_bad_header_closes_the_connection_with_its_reason() {
    let (shard, addr, closings) = echo_server();
    let mut conn = BlockingConn::connect(addr, framing, WAIT).unwrap();
    let mut bad = frame(1, 0, 0);
    bad.head[0] = 0x77;
    conn.send(&bad).unwrap();
    assert!(closings.recv_timeout(WAIT).unwrap().contains("bad first byte 77"));
    assert!(conn.receive(WAIT).is_err());
    shard.shutdown();
    shard.join().unwrap();
}

#[test]
fn a_peer_that_vanishes_mid_frame_closes_once() {
    let (shard, addr, closings) = echo_server();
    let mut conn = BlockingConn::connect(addr, framing, WAIT).unwrap();
    let mut cut = frame(1, 0, 0);
    cut.head[8..12].copy_from_slice(&(1u32 << 20).to_le_bytes());
    conn.send(&cut).unwrap();
    drop(conn);
    closings.recv_timeout(WAIT).unwrap();
    assert!(closings.recv_timeout(Duration::from_millis(100)).is_err(), "closed twice");
    shard.shutdown();
    shard.join().unwrap();
}

#[test]
fn a_refused_connection_says_so() {
    let (sender, reason) = mpsc::channel();
    let shard = start("refused", move |event, io| match event {
        Event::Start => {
            // Port 1 on loopback: nobody listens there.
            io.connect(([127, 0, 0, 1], 1).into());
        }
        Event::Closed { why, .. } => {
            sender.send(why).unwrap();
            io.stop(Ok(()));
        }
        _ => {}
    });
    assert!(reason.recv_timeout(WAIT).unwrap().contains("refused"));
    shard.join().unwrap();
}

#[test]
fn disk_operations_round_trip() {
    round_trip(RingConfig::new("disk", directory("disk"), framing));
}

#[test]
fn disk_operations_round_trip_in_registered_memory() {
    let config = RingConfig::new("disk-arena", directory("disk-arena"), framing);
    round_trip(RingConfig { arena_bytes: 4 << 20, ..config });
}

fn round_trip(config: RingConfig) {
    let (sender, seen) = mpsc::channel();
    let mut file = FileHandle(0);
    let shard = start_with(config, move |event, io| match event {
        Event::Start => {
            let how = OpenHow { create: true, direct: true, read_only: false };
            file = io.open("sub/data", how).unwrap();
            let parts = vec![Buf::from_slice(&[1; 4096]), Buf::from_slice(&[2; 8192])];
            io.write(file, 4096, parts, Durability::Durable, OpId(1));
        }
        Event::Disk { op, result } => {
            let data = result.unwrap();
            match op.0 {
                1 => {
                    let mut one = io.buffer(4096);
                    one.fill(9);
                    io.write(file, 16384, vec![one.freeze()], Durability::Durable, OpId(7));
                }
                7 => io.read(file, 0, 32768, OpId(2)),
                2 => {
                    sender.send(data).unwrap();
                    io.punch(file, 4096, 4096, OpId(3));
                }
                3 => io.sync(file, OpId(4)),
                4 => io.read(file, 4096, 8192, OpId(5)),
                5 => {
                    sender.send(data).unwrap();
                    io.put_blob("port", b"4711".to_vec(), OpId(6));
                }
                6 => {
                    assert_eq!(io.get_blob("port").unwrap().unwrap(), b"4711");
                    assert_eq!(io.get_blob("none").unwrap(), None);
                    assert_eq!(io.list("sub").unwrap(), ["data"]);
                    assert_eq!(io.file_len(file).unwrap(), 20480);
                    assert!(io.disk_space().unwrap().0 > 0);
                    io.stop(Ok(()));
                }
                _ => unreachable!(),
            }
        }
        _ => {}
    });
    let first = seen.recv_timeout(WAIT).unwrap();
    assert!(first[..4096].iter().all(|&b| b == 0) && first[4096..8192].iter().all(|&b| b == 1));
    assert!(first[8192..16384].iter().all(|&b| b == 2) && first[16384..20480].iter().all(|&b| b == 9));
    assert!(first[20480..].iter().all(|&b| b == 0));
    let second = seen.recv_timeout(WAIT).unwrap();
    assert!(second[..4096].iter().all(|&b| b == 0) && second[4096..].iter().all(|&b| b == 2));
    shard.join().unwrap();
}

#[test]
fn timers_fire_in_order_and_messages_wake_a_sleeping_loop() {
    let (sender, seen) = mpsc::channel();
    let shard = start("timers", move |event, io| match event {
        Event::Start => {
            for ms in [30, 10, 20] {
                io.set_timer(io.now().after(Duration::from_millis(ms)), TimerId(ms));
            }
        }
        Event::Timer { id } => sender.send(id.0).unwrap(),
        Event::Message(m) => {
            sender.send(u64::from(m)).unwrap();
            io.stop(Err("told to".into()));
        }
        _ => {}
    });
    let got: Vec<u64> = (0..3).map(|_| seen.recv_timeout(WAIT).unwrap()).collect();
    assert_eq!(got, [10, 20, 30]);
    std::thread::sleep(Duration::from_millis(50));
    let sent = Instant::now();
    shard.mailbox().send(77);
    assert_eq!(seen.recv_timeout(WAIT).unwrap(), 77);
    assert!(sent.elapsed() < Duration::from_millis(500), "woken by the message, not by the idle wait");
    assert!(matches!(shard.join(), Err(RunError::Node(reason)) if reason == "told to"));
}

#[test]
fn stopping_sends_what_is_queued() {
    let (sender, address) = mpsc::channel();
    let mut greeted: Option<ConnId> = None;
    let shard = start("flush", move |event, io| match event {
        Event::Start => sender.send(io.listen(([127, 0, 0, 1], 0).into()).unwrap()).unwrap(),
        Event::Accepted { conn, .. } => greeted = Some(conn),
        Event::Frame { conn, .. } => {
            assert_eq!(greeted, Some(conn));
            for tag in 0..50 {
                io.send(conn, frame(tag, 10, 100_000));
            }
            io.stop(Ok(()));
        }
        _ => {}
    });
    let mut conn = BlockingConn::connect(address.recv().unwrap(), framing, WAIT).unwrap();
    conn.send(&frame(0, 0, 0)).unwrap();
    for tag in 0..50 {
        assert_eq!(conn.receive(WAIT).unwrap(), frame(tag, 10, 100_000));
    }
    shard.join().unwrap();
}

/// Makes io_uring_setup fail with EPERM in this thread and those it starts, as container runtimes do.
fn forbid_io_uring() {
    let filter = [
        // Load the system call's number; skip one if it is not io_uring_setup; refuse; allow.
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::EPERM as u32 },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain system calls; the program and its filter live until they return.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    assert!(installed, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_kernel_that_refuses_io_uring_is_explained() {
    let error = std::thread::spawn(|| {
        forbid_io_uring();
        let config = RingConfig::new("refused", std::env::temp_dir(), framing);
        spawn(config, || Scripted(Box::new(|_, _| {})))
            .expect("a thread starts")
            .join()
            .expect_err("io_uring is forbidden")
            .to_string()
    })
    .join()
    .unwrap();
    for part in ["refuses io_uring", "kernel.io_uring_disabled", "seccomp", &crate::host::kernel_version()] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_peer_that_does_not_read_does_not_hold_up_the_end() {
    let (shard, addr, _) = echo_server();
    let mut conn = BlockingConn::connect(addr, framing, WAIT).unwrap();
    // More than the sockets on both sides hold; the echoes have nowhere to go.
    for tag in 0..64 {
        if conn.send(&frame(tag, 0, 1 << 20)).is_err() {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    shard.shutdown();
    let began = Instant::now();
    shard.join().unwrap();
    assert!(began.elapsed() < LAST_WORDS * 3, "{:?}", began.elapsed());
}

#[test]
fn a_port_that_comes_free_is_waited_for_and_a_taken_one_is_refused() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let (sender, results) = mpsc::channel();
    let listen = move |event, io: &mut dyn Io| {
        if matches!(event, Event::Start) {
            sender.send(io.listen(at).map_err(|e| e.to_string())).unwrap();
            io.stop(Ok(()));
        }
    };
    let shard = start("waits", listen.clone());
    std::thread::sleep(Duration::from_millis(300));
    drop(taken);
    assert_eq!(results.recv().unwrap(), Ok(at));
    shard.join().unwrap();
    let taken = std::net::TcpListener::bind(at).unwrap();
    let shard = start("refused", listen);
    assert!(results.recv().unwrap().is_err_and(|e| e.contains("in use") && e.contains(&at.to_string())));
    shard.join().unwrap();
    drop(taken);
}
