//! A chunk server's shard on the production runtime, with real sockets and a real disk: how often it allocates memory
//! for a request in steady state.

use engine::store::StoreConfig;
use engine::{CsShard, CsShardConfig};
use shards::blocking::BlockingConn;
use shards::count::{CountingAllocator, allocations, count_this_thread};
use shards::ring::{self, RingConfig};
use shards::{BLOCK_BYTES, Buf, BufMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use wire::auth::Credentials;
use wire::data::block_crcs;
use wire::hello::{Initiator, Peer, Step};
use wire::{
    ChunkId, ClientId, CsId, DataMeta, Epoch, Frame, Grant, Head, Kind, LeaseId, Replica, Role, ShardIndex,
    Status, flags,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PATIENCE: Duration = Duration::from_secs(20);
const CHUNK: ChunkId = ChunkId(7);
const CHUNK_BLOCKS: u32 = 4096;

fn config() -> CsShardConfig {
    CsShardConfig {
        cluster: "alloc".into(),
        credentials: Credentials::Open,
        cs: CsId(1),
        shard: ShardIndex(0),
        shards: 1,
        ip: Ipv4Addr::LOCALHOST.into(),
        mds: Vec::new(),
        incarnation: 1,
        host_id: [0; 16],
        host: "here".into(),
        location: String::new(),
        tier: 0,
        flags: String::new(),
        store: StoreConfig {
            dir: "shard-000".into(),
            journal_path: "shard-000/journal".into(),
            journal_bytes: 64 << 20,
            capacity_bytes: 1 << 30,
            map_cache_bytes: 64 << 20,
            overlay_bytes: 64 << 20,
            cache: None,
        },
        detect: Duration::from_secs(2),
        slow_after: Duration::from_secs(10),
        slow_request: Duration::from_secs(1),
    }
}

/// A client of one chunk that waits for each answer.
struct Client {
    conn: BlockingConn,
    addr: SocketAddr,
    next_request: u64,
}

impl Client {
    /// Connects once the shard has chosen its port.
    fn connect(dir: &Path) -> Client {
        let began = Instant::now();
        let port_file = dir.join("shard-000/port");
        let addr = loop {
            assert!(began.elapsed() < PATIENCE, "the shard does not listen");
            if let Ok(Ok(port)) = std::fs::read_to_string(&port_file).map(|t| t.trim().parse::<u16>()) {
                break SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut conn = BlockingConn::connect(addr, wire::framing, PATIENCE).unwrap();
        let me = Peer::Client { client: ClientId(1), generation: 1 };
        let (mut greeting, hello) = Initiator::new(Credentials::Open, "alloc", me, [7; 32]);
        conn.send(&hello.encode()).unwrap();
        loop {
            let frame = Frame::decode(conn.receive(PATIENCE).unwrap()).unwrap();
            match greeting.on_frame(&frame, conn.channel()).unwrap() {
                Step::Send(proof) => conn.send(&proof.encode()).unwrap(),
                Step::Finished { .. } => return Client { conn, addr, next_request: 0 },
            }
        }
    }

    fn ask(&mut self, mut head: Head, meta: &DataMeta, payload: Buf) -> Frame {
        self.next_request += 1;
        head.request = self.next_request;
        head.chunk = CHUNK;
        head.epoch = Epoch(1);
        self.conn.send(&Frame::data(head, meta, payload).encode()).unwrap();
        let answer = Frame::decode(self.conn.receive(PATIENCE).unwrap()).unwrap();
        assert_eq!((answer.head.status, answer.head.request), (Status::Ok, self.next_request));
        answer
    }

    fn write(&mut self, block: u32, payload: &Buf, first: bool) {
        let mut head = Head::new(Kind::Write, 0);
        head.offset_bytes = block * BLOCK_BYTES as u32;
        let replica = Replica { cs: CsId(1), addr: self.addr, role: Role::InSync };
        let grant = first.then(|| Grant { replicas: vec![replica], min_replicas: 1 });
        head.flags = if first { flags::GRANT } else { 0 };
        let crcs = block_crcs(payload).collect();
        self.ask(head, &DataMeta { lease: LeaseId(1), grant, crcs, ..DataMeta::default() }, payload.clone());
    }

    fn read(&mut self, block: u32, blocks: u32) -> Frame {
        let mut head = Head::new(Kind::Read, 0);
        head.offset_bytes = block * BLOCK_BYTES as u32;
        head.length_bytes = blocks * BLOCK_BYTES as u32;
        self.ask(head, &DataMeta { lease: LeaseId(1), ..DataMeta::default() }, Buf::empty())
    }
}

/// Allocations per operation, after a warm-up of the same.
fn per_operation(what: &str, count: u32, mut operation: impl FnMut(u32)) -> f64 {
    (0..count).for_each(&mut operation);
    let before = allocations();
    (0..count).for_each(&mut operation);
    let each = (allocations() - before) as f64 / f64::from(count);
    println!("{what}: {each:.2} allocations each");
    each
}

#[test]
fn requests_in_steady_state_allocate_nothing() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let shard = ring::spawn(RingConfig::new("cs", dir.path(), wire::framing), || {
        count_this_thread();
        CsShard::new(config())
    })
    .unwrap();
    let mut client = Client::connect(dir.path());
    let block = |fill: u8| {
        let mut buf = BufMut::zeroed(BLOCK_BYTES);
        buf.fill(fill);
        buf.freeze()
    };
    let mut large = BufMut::zeroed(1 << 20);
    large.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 4096 + 1) as u8);
    let large = large.freeze();
    for at in (0..CHUNK_BLOCKS).step_by(256) {
        client.write(at, &large, at == 0);
    }
    let scattered = |i: u32| i * 769 % CHUNK_BLOCKS;
    let idle = {
        let before = allocations();
        std::thread::sleep(Duration::from_secs(1));
        allocations() - before
    };
    println!("idle: {idle} allocations a second");
    let reads = per_operation("read of 4 KiB", 2000, |i| {
        let answer = client.read(scattered(i), 1);
        assert_eq!(answer.payload[0], (scattered(i) % 256 + 1) as u8);
    });
    let large_writes = per_operation("write of 1 MiB", 64, |i| client.write(i % 16 * 256, &large, false));
    let writes =
        per_operation("write of 4 KiB", 1000, |i| client.write(scattered(i), &block(i as u8), false));
    shard.shutdown();
    shard.join().unwrap();
    assert!(reads < 0.2, "reads");
    // What a write leaves in memory until it is applied is kept in trees whose nodes are allocated, one for many writes:
    // 0.36 on a quiet machine. On a slow one more writes wait at once, and the lists for them grow during the test.
    assert!(writes < 2.0, "writes of one block");
    assert!(large_writes < 16.0, "writes of 1 MiB, whose 256 checksums take memory of their own");
}
