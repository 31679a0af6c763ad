//! The cluster in the world: where everything runs, how it is started again, how it is asked and checked.

use super::plan::{BadDisk, DiskKind, NetKind, Place, Shape};
use super::prober::Prober;
use super::watch::Watch;
use super::workload::{Answers, FILE_BYTES, Workload};
use super::{Filled, Options};
use client::{Call, ClientConfig, ClientCore, Done};
use engine::store::StoreConfig;
use engine::{CsShard, CsShardConfig};
use mds::control::{MdsControl, MdsPeer};
use mds::{MdsConfig, MdsNode};
use shards::Timestamp;
use shards::sim::{CrashKind, FaultEffect, FaultOn, FaultRule, HostId, Speeds, World};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::auth::Credentials;
use wire::mds_api::{ChunkMap, ClusterStat, LeaseMode, MdsReply, MdsRequest};
use wire::{BLOCK_BYTES, ChunkId, CsId, MdsId, ROOT, ShardIndex};

const CLUSTER: &str = "sim";
pub const REPLICAS: usize = 3;
const LEASE_MS: u64 = 2000;
const SLOW_MS: u64 = 3000;
const OFFLINE_MS: u64 = 6000;
const MOST_EVENTS: u64 = 1_000_000;

pub(super) struct Cs {
    /// One per shard.
    pub(super) hosts: Vec<HostId>,
    pub(super) id: CsId,
    incarnation: u64,
}

pub struct Cluster {
    pub world: World,
    pub shape: Shape,
    pub(super) mds: Vec<HostId>,
    pub(super) peers: Vec<MdsPeer>,
    pub(super) cs: Vec<Cs>,
    pub(super) clients: Vec<HostId>,
    /// An administrator: a client on a host of its own that no fault hits.
    admin: HostId,
    pub(super) prober: HostId,
    pub(super) workload: Option<Workload>,
    /// Chunks of each file, by their place in it.
    chunks: Vec<Vec<ChunkId>>,
    /// What the administrator asked for and has no answer to yet.
    orders: Vec<Order>,
    /// Metadata servers that were to be removed.
    pub(super) leaving: BTreeSet<usize>,
    /// By chunk servers that run no more.
    filled_before: Filled,
    /// Chunk servers that were to be removed.
    leaving_cs: BTreeSet<usize>,
    watch: Watch,
}

/// A request of the administrator whose answer nobody waits for.
struct Order {
    what: String,
    answer: Arc<Mutex<Option<client::Result<MdsReply>>>>,
    then: Then,
}

/// What follows an order that succeeded.
enum Then {
    Nothing,
    /// This metadata server is added.
    Added(usize),
}

fn ip(kind: u8, n: usize) -> IpAddr {
    IpAddr::from([10, (n / 250) as u8, kind, (n % 250) as u8 + 1])
}

fn host_id(n: usize) -> [u8; 16] {
    (n as u128 + 1).to_le_bytes()
}

/// How fast that is what the cluster runs on. Each kind leaves other things under way at the same time.
fn speeds(shape: &Shape) -> Speeds {
    let ms = Duration::from_millis;
    let mut speeds = Speeds::default();
    if shape.disks == DiskKind::Hard {
        speeds.disk_delay = (ms(1), ms(12));
    }
    if shape.net == NetKind::Slow {
        speeds.net_delay = (ms(1), ms(5));
    }
    speeds
}

impl Cluster {
    pub fn new(seed: u64, shape: &Shape, options: &Options) -> Cluster {
        let mut world = World::new(seed);
        world.speeds = speeds(shape);
        if options.trace {
            world.print_events(describe_frame);
        }
        let mds = (0..shape.mds).map(|n| world.add_host(&format!("mds{}", n + 1), ip(1, n))).collect();
        let peers = (0..shape.mds)
            .map(|n| MdsPeer::at(MdsId(n as u64 + 1), SocketAddr::new(ip(1, n), 2510)).expect("a good port"))
            .collect();
        let shard_hosts = |world: &mut World, n: usize| {
            (0..shape.shards).map(|s| world.add_host(&format!("cs{}.{s}", n + 1), ip(2, n))).collect()
        };
        let cs = (0..shape.cs)
            .map(|n| Cs { hosts: shard_hosts(&mut world, n), id: CsId(0), incarnation: 0 })
            .collect();
        let clients =
            (0..shape.clients).map(|n| world.add_host(&format!("client{}", n + 1), ip(3, n))).collect();
        let (admin, prober) = (world.add_host("admin", ip(4, 0)), world.add_host("prober", ip(4, 1)));
        if shape.drift_ppm > 0 {
            let mut rng = world.rng().fork();
            for host in world.hosts() {
                let fast_ppm = rng.between(0, 2 * shape.drift_ppm) as i64 - shape.drift_ppm as i64;
                world.set_clock(host, fast_ppm, Duration::from_secs(rng.below(1_000_000)));
                world.set_wall_offset_ms(host, rng.between(0, 120_000) as i64 - 60_000);
            }
        }
        let shape = shape.clone();
        Cluster {
            world,
            shape,
            mds,
            peers,
            cs,
            clients,
            admin,
            prober,
            workload: None,
            chunks: Vec::new(),
            orders: Vec::new(),
            leaving: BTreeSet::new(),
            filled_before: Filled::default(),
            leaving_cs: BTreeSet::new(),
            watch: Watch::default(),
        }
    }

    pub fn workload(&self) -> &Workload {
        self.workload.as_ref().expect("set up")
    }

    // ---- places ----

    /// Also metadata servers that were added meanwhile.
    pub fn places(&self) -> Vec<Place> {
        let added = (self.shape.mds..self.mds.len()).map(Place::Mds);
        self.shape.places().chain(added).collect()
    }

    pub fn ip(&self, place: Place) -> IpAddr {
        match place {
            Place::Mds(n) => ip(1, n),
            Place::Cs(n) => ip(2, n),
            Place::Client(n) => ip(3, n),
        }
    }

    fn hosts(&self, place: Place) -> Vec<HostId> {
        match place {
            Place::Mds(n) => vec![self.mds[n]],
            Place::Cs(n) => self.cs[n].hosts.clone(),
            Place::Client(n) => vec![self.clients[n]],
        }
    }

    fn filled_by(&self, host: HostId) -> Filled {
        let stats = self.world.node::<CsShard>(host).map(CsShard::stats).unwrap_or_default();
        Filled {
            catch_ups: stats.catch_ups,
            catch_up_bytes: stats.catch_up_bytes,
            full_copies: stats.full_copies,
            full_copy_bytes: stats.full_copy_bytes,
        }
    }

    /// The messages of the event log.
    pub(super) fn events(&mut self) -> Result<Vec<String>, String> {
        match self.ask(MdsRequest::Events { after: 0, limit: 10_000 })? {
            MdsReply::Events { events, .. } => Ok(events.into_iter().map(|e| e.message).collect()),
            other => Err(format!("events: {other:?}")),
        }
    }

    /// As the event log has it.
    pub fn slow_rests(&mut self) -> Result<u64, String> {
        Ok(self.events()?.iter().filter(|message| message.contains("is slow: ")).count() as u64)
    }

    /// How replicas were brought up to date by all chunk servers, those that were killed included.
    pub fn filled(&self) -> Filled {
        let mut all = self.filled_before;
        self.cs.iter().flat_map(|cs| &cs.hosts).for_each(|&host| all += self.filled_by(host));
        all
    }

    /// False when nothing ran there.
    pub fn crash(&mut self, place: Place, kind: CrashKind) -> bool {
        let mut ran = false;
        for host in self.hosts(place) {
            ran |= self.world.is_up(host);
            self.filled_before += self.filled_by(host);
            self.world.crash(host, kind);
        }
        if let (true, Place::Client(n), Some(work)) = (ran, place, &mut self.workload) {
            work.client_crashed(n);
        }
        ran
    }

    pub fn pause(&mut self, place: Place, wait: Duration) {
        for host in self.hosts(place) {
            self.world.pause(host, wait);
        }
    }

    pub fn slow_down(&mut self, place: Place, factor: u32) {
        for host in self.hosts(place) {
            self.world.set_slowness(host, factor);
        }
    }

    pub fn start(&mut self, place: Place) {
        if self.hosts(place).iter().any(|&h| self.world.is_up(h)) {
            return;
        }
        self.world.note(|_| format!("{place:?} starts"));
        match place {
            Place::Mds(n) => {
                let (me, uuid) = (self.peers[n], "00".repeat(16));
                if me.id == MdsId(0) {
                    return; // It has not been told its id.
                }
                let control = match n < self.shape.mds {
                    true => MdsControl::first_quorum(CLUSTER, uuid, me.id, &self.peers[..self.shape.mds]),
                    // It is told of all that are there when it is made, as by add-mds.
                    false => {
                        let others = self.peers.iter().filter(|p| p.id != MdsId(0) && p.id < me.id);
                        MdsControl::joining(CLUSTER, uuid, me, &others.copied().collect::<Vec<_>>())
                    }
                };
                let mut config = MdsConfig::new(control, Credentials::Open);
                (config.journal_bytes, config.snapshot_entries, config.keep_entries) = (1 << 20, 300, 100);
                self.world.start(self.mds[n], MdsNode::new(config));
            }
            Place::Cs(n) => {
                self.cs[n].incarnation += 1;
                for shard in 0..self.shape.shards {
                    let host = self.cs[n].hosts[usize::from(shard)];
                    self.world.disk(host).touch(&format!("ssd/{shard}.cache"));
                    let node = CsShard::new(self.cs_config(n, shard));
                    self.world.start(self.cs[n].hosts[usize::from(shard)], node);
                }
            }
            Place::Client(n) => {
                let core = self.client(&format!("client{}", n + 1));
                self.world.start(self.clients[n], core);
            }
        }
    }

    fn cs_config(&self, n: usize, shard: u16) -> CsShardConfig {
        CsShardConfig {
            cluster: CLUSTER.into(),
            credentials: Credentials::Open,
            cs: self.cs[n].id,
            shard: ShardIndex(shard),
            shards: self.shape.shards,
            ip: ip(2, n),
            mds: self.mds_addrs(),
            incarnation: self.cs[n].incarnation,
            host_id: host_id(n),
            host: format!("host{}", n + 1),
            location: format!("room.row.{}", n % self.shape.racks),
            tier: 0,
            flags: "CD".into(),
            store: StoreConfig {
                dir: format!("shard{shard}"),
                journal_path: format!("shard{shard}/journal"),
                journal_bytes: 4 << 20,
                capacity_bytes: 1 << 30,
                map_cache_bytes: 20 << 10,
                // Little, so that blocks wait in the journal alone.
                overlay_bytes: 256 << 10,
                // On half of the servers, so that both ways are gone.
                cache: (n % 2 == 0).then(|| engine::cache::CacheConfig {
                    path: format!("ssd/{shard}.cache"),
                    bytes: 4 << 20,
                    id: [shard as u8; 16],
                }),
            },
            detect: Duration::from_millis(1000),
            slow_after: Duration::from_millis(1000),
            slow_request: Duration::from_millis(1000),
        }
    }

    fn mds_addrs(&self) -> Vec<SocketAddr> {
        self.peers[..self.shape.mds].iter().map(|p| p.addr).collect()
    }

    fn client(&self, name: &str) -> ClientCore {
        let mut config = ClientConfig::new(CLUSTER, Credentials::Open, self.mds_addrs());
        config.host = name.into();
        // Small, and taking everything: much comes and goes.
        config.cache = Some(client::CacheConfig { path: "cache".into(), bytes: 4 << 20, admit_at_uses: 1 });
        ClientCore::new(config)
    }

    // ---- asking ----

    /// Lets the next thing happen and the clients go on.
    pub fn step(&mut self) -> Result<(), String> {
        self.world.step();
        let most = MOST_EVENTS * self.shape.cs.div_ceil(10) as u64;
        if self.world.events() > most {
            return Err(format!("more than {most} events: something spins"));
        }
        for host in self.world.take_stops() {
            self.stopped(host)?;
        }
        if !self.orders.is_empty() {
            self.take_answers();
        }
        if self.watch.is_due(self.world.now()) {
            self.look_at_servers()?;
        }
        if let Some(work) = &mut self.workload {
            work.turn(&mut self.world);
            if let Some(why) = &work.violation {
                return Err(why.clone());
            }
        }
        Ok(())
    }

    pub(super) fn run_for(&mut self, wait: Duration) -> Result<(), String> {
        let until = self.world.now().after(wait);
        while self.world.next_at().is_some_and(|at| at <= until) {
            self.step()?;
        }
        self.world.wait_until(until);
        Ok(())
    }

    /// Sends `make`'s message to `host` and waits for its answer.
    pub(super) fn wait_for<T: Send + 'static>(
        &mut self,
        what: &str,
        within: Duration,
        send: impl FnOnce(&mut World, Box<dyn FnOnce(T) + Send>),
    ) -> Result<T, String> {
        let slot = Arc::new(Mutex::new(None));
        let into = slot.clone();
        send(&mut self.world, Box::new(move |value| *into.lock().expect("one thread") = Some(value)));
        let until = self.world.now().after(within);
        while self.world.now() <= until {
            if let Some(value) = slot.lock().expect("one thread").take() {
                return Ok(value);
            }
            if self.world.next_at().is_none() {
                break;
            }
            self.step()?;
        }
        Err(format!("{what}: no answer within {within:?}"))
    }

    pub(super) fn admin<T: Send + 'static>(
        &mut self,
        what: &str,
        call: impl FnOnce(Done<T>) -> Call,
    ) -> Result<T, String> {
        let admin = self.admin;
        let answer = self.wait_for(what, Duration::from_secs(90), |world, done| {
            world.message::<ClientCore>(admin, call(done));
        })?;
        answer.map_err(|e: client::ClientError| format!("{what}: {e}"))
    }

    pub(super) fn ask(&mut self, request: MdsRequest) -> Result<MdsReply, String> {
        let what = format!("{request:?}");
        self.admin(&what, |done| Call::Mds { request, done })
    }

    /// As [`Cluster::ask`], but goes on at once.
    pub fn order(&mut self, what: &str, request: MdsRequest) {
        self.send_order(what, request, Then::Nothing);
    }

    fn send_order(&mut self, what: &str, request: MdsRequest, then: Then) {
        let answer = Arc::new(Mutex::new(None));
        let into = answer.clone();
        let done: Done<MdsReply> = Box::new(move |reply| *into.lock().expect("one thread") = Some(reply));
        self.world.message::<ClientCore>(self.admin, Call::Mds { request, done });
        self.orders.push(Order { what: what.into(), answer, then });
    }

    /// What must hold at any moment.
    fn look_at_servers(&mut self) -> Result<(), String> {
        for (n, cs) in self.cs.iter().enumerate() {
            for &host in &cs.hosts {
                if let Some(node) = self.world.node::<CsShard>(host) {
                    self.watch.look_at(n, node)?;
                }
            }
        }
        self.watch.look_at_world(&self.world)
    }

    fn take_answers(&mut self) {
        for order in std::mem::take(&mut self.orders) {
            let Some(answer) = order.answer.lock().expect("one thread").take() else {
                self.orders.push(order);
                continue;
            };
            self.world.note(|_| format!("{}: {answer:?}", order.what));
            if let (Then::Added(n), Ok(MdsReply::Mds { id })) = (order.then, answer) {
                self.peers[n].id = id;
                self.start(Place::Mds(n));
            }
        }
    }

    // ---- faults ----

    /// Adds a metadata server; it starts when it has been given an id.
    pub fn add_mds(&mut self) {
        let n = self.mds.len();
        let me = MdsPeer::at(MdsId(0), SocketAddr::new(ip(1, n), 2510)).expect("a good port");
        self.mds.push(self.world.add_host(&Place::Mds(n).to_string(), ip(1, n)));
        self.peers.push(me);
        let request = MdsRequest::AddMds { addr: me.addr, raft_addr: me.raft_addr };
        self.send_order("add-mds", request, Then::Added(n));
    }

    pub fn remove_mds(&mut self, n: usize) {
        self.leaving.insert(n);
        self.order("rm-mds", MdsRequest::RemoveMds { id: self.peers[n].id });
    }

    pub fn set_failure_domain(&mut self, domain: &str) {
        let (name, value) = ("failure-domain".to_string(), domain.to_string());
        self.order("set-attr", MdsRequest::SetPolicy { file: ROOT, name, value, recursive: true });
    }

    /// Takes the leases of a file away.
    pub fn revoke(&mut self, file: usize) {
        let file = self.workload.as_ref().expect("set up").files[file];
        self.order("revoke", MdsRequest::Revoke { file });
    }

    pub fn remove_cs(&mut self, n: usize, force: bool) {
        self.leaving_cs.insert(n);
        self.order("rm-cs", MdsRequest::RemoveCs { cs: self.cs[n].id, force });
    }

    pub fn keep_cs(&mut self, n: usize) {
        self.order("rm-cs --cancel", MdsRequest::CancelRemoval { cs: self.cs[n].id });
    }

    /// Chunk servers that serve chunks of the file that a client has open.
    pub fn leaders_for(&self, client: usize) -> Vec<Place> {
        let Some(file) = self.workload().held_by(client) else { return Vec::new() };
        let chunks = &self.chunks[file];
        let leads = |host: &HostId| {
            let node = self.world.node::<CsShard>(*host);
            node.is_some_and(|node| node.active_chunks().any(|(chunk, _)| chunks.contains(&chunk)))
        };
        (0..self.cs.len()).filter(|n| self.cs[*n].hosts.iter().any(leads)).map(Place::Cs).collect()
    }

    /// Chunk servers and others that they are filling.
    pub fn fills_under_way(&self) -> impl Iterator<Item = (Place, Place)> {
        let of = |n: usize| {
            let nodes = self.cs[n].hosts.iter().filter_map(|host| self.world.node::<CsShard>(*host));
            nodes.flat_map(CsShard::learners).map(move |learner| (n, learner.ip()))
        };
        let place = |at: IpAddr| (0..self.cs.len()).find(|n| ip(2, *n) == at).map(Place::Cs);
        (0..self.cs.len()).flat_map(of).filter_map(move |(n, to)| Some((Place::Cs(n), place(to)?)))
    }

    pub fn bad_disk(&self) -> Option<Place> {
        self.shape.bad_disk.map(|(n, _)| Place::Cs(n))
    }

    /// A client and those that lead the chunks of its file are cut off from the others.
    pub fn strand(&mut self, client: usize, until: Timestamp) {
        let now = self.world.now();
        self.workload.as_mut().expect("set up").strand(client, now, until);
    }

    fn bad_hosts(&self) -> Vec<HostId> {
        self.shape.bad_disk.map_or_else(Vec::new, |(n, _)| self.cs[n].hosts.clone())
    }

    /// Turns bits of what the bad disk holds of chunks.
    pub fn rot(&mut self, bits: u32) {
        let mut rng = self.world.rng().fork();
        for (shard, host) in self.bad_hosts().into_iter().enumerate() {
            let path = format!("shard{shard}/data");
            let disk = self.world.disk(host);
            let len = disk.len_of(&path).unwrap_or(0);
            for _ in 0..if len > 0 { bits } else { 0 } {
                disk.flip_bit(&path, rng.below(len), rng.below(8) as u8);
            }
        }
    }

    /// Damages about half of the map pages that were ever written on the bad disk.
    pub fn rot_maps(&mut self) {
        let mut rng = self.world.rng().fork();
        for (shard, host) in self.bad_hosts().into_iter().enumerate() {
            let path = format!("shard{shard}/maps");
            let disk = self.world.disk(host);
            for page in disk.pages_of(&path) {
                if rng.one_in(2) {
                    disk.flip_bit(&path, page * BLOCK_BYTES as u64 + rng.below(BLOCK_BYTES as u64), 3);
                }
            }
        }
    }

    /// The next operations on data of the bad disk go wrong.
    pub fn spoil_disk(&mut self, on: FaultOn, effect: FaultEffect) {
        for host in self.bad_hosts() {
            self.world.disk(host).fault(FaultRule::next(on, "/data", effect).times(3));
        }
    }

    pub fn fill_disk(&mut self) {
        for host in self.bad_hosts() {
            let disk = self.world.disk(host);
            disk.set_capacity(disk.used_bytes());
        }
    }

    pub fn mend_disk(&mut self) {
        for host in self.bad_hosts() {
            let disk = self.world.disk(host);
            disk.clear_faults();
            disk.set_capacity(64 << 30);
        }
    }

    /// A node has stopped by itself: some have good reasons.
    fn stopped(&mut self, host: HostId) -> Result<(), String> {
        let why = format!("{:?}", self.world.stopped(host));
        if let Some(n) = self.mds.iter().position(|h| *h == host)
            && self.leaving.contains(&n)
            && why.contains("was removed from the cluster")
        {
            return Ok(());
        }
        if let Some(n) = self.cs.iter().position(|cs| cs.hosts.contains(&host)) {
            let refuses = self.shape.bad_disk == Some((n, BadDisk::Refuses));
            let dropped = self.leaving_cs.contains(&n) && why.contains("no longer knows this chunk server");
            if refuses || dropped {
                // The process ends with any of its shards.
                self.crash(Place::Cs(n), CrashKind::Process);
                return Ok(());
            }
        }
        Err(format!("{} stopped by itself: {why}", self.world.name(host)))
    }

    // ---- life ----

    /// An empty cluster with its files.
    pub fn set_up(&mut self) -> Result<(), String> {
        for n in 0..self.mds.len() {
            self.start(Place::Mds(n));
        }
        let core = self.client("admin");
        self.world.start(self.admin, core);
        self.world.start(self.prober, Prober::new(CLUSTER));
        self.admin("first contact", |done| Call::Ready { done })?;
        for n in 0..self.cs.len() {
            let (host_id, host) = (host_id(n), format!("host{}", n + 1));
            match self.ask(MdsRequest::NewCs { host_id, host })? {
                MdsReply::NewCs { cs } => self.cs[n].id = cs,
                other => return Err(format!("make-cs: {other:?}")),
            }
            self.start(Place::Cs(n));
        }
        for (key, value) in [
            ("mds.lease.timeout", LEASE_MS),
            ("mds.wd.offline_tout", OFFLINE_MS),
            ("mds.wd.slow_tout", SLOW_MS),
        ] {
            self.ask(MdsRequest::SetConfig { key: key.into(), value: value.to_string() })?;
        }
        for (name, value) in [("replicas", "3:2"), ("chunk-size", "1M")] {
            let (name, value) = (name.to_string(), value.to_string());
            self.ask(MdsRequest::SetPolicy { file: ROOT, name, value, recursive: false })?;
        }
        let all = self.cs.len();
        self.until("the chunk servers to register", Duration::from_secs(30), |stat| {
            stat.cs.iter().filter(|cs| cs.status == wire::mds_api::CsStatus::Active).count() == all
        })?;
        let mut files = Vec::new();
        for n in 0..self.shape.files {
            let name = format!("f{n}");
            let open = self.admin("create", |done| Call::Create {
                parent: ROOT,
                name,
                mode: 0o644,
                uid: 0,
                gid: 0,
                exclusive: true,
                done,
            })?;
            let file = open.attr.file;
            self.admin("reserve", |done| Call::Reserve { file, offset: 0, len: FILE_BYTES, done })?;
            self.admin("sync", |done| Call::Sync { file, done })?;
            match self.ask(MdsRequest::Map { file, first: 0, count: 100 })? {
                MdsReply::Maps { chunks } => self.chunks.push(chunks.iter().map(|c| c.chunk).collect()),
                other => return Err(format!("map: {other:?}")),
            }
            self.admin("close", |done| Call::Close { file, mode: LeaseMode::Write, done })?;
            files.push(file);
        }
        for n in 0..self.clients.len() {
            self.start(Place::Client(n));
        }
        let rng = &mut self.world.rng().fork();
        self.workload =
            Some(Workload::new(&self.clients, files, Answers::default(), self.shape.readers, rng));
        Ok(())
    }

    pub(super) fn stat(&mut self) -> Result<ClusterStat, String> {
        match self.ask(MdsRequest::ClusterStat)? {
            MdsReply::Stat(stat) => Ok(*stat),
            other => Err(format!("stat: {other:?}")),
        }
    }

    pub(super) fn maps(&mut self) -> Result<Vec<ChunkMap>, String> {
        match self.ask(MdsRequest::ListChunks { after: ChunkId(0), limit: 10_000 })? {
            MdsReply::Maps { chunks } => Ok(chunks),
            other => Err(format!("list of chunks: {other:?}")),
        }
    }

    pub(super) fn until(
        &mut self,
        what: &str,
        within: Duration,
        reached: impl Fn(&ClusterStat) -> bool,
    ) -> Result<(), String> {
        let until = self.world.now().after(within);
        loop {
            let stat = self.stat()?;
            if reached(&stat) {
                return Ok(());
            }
            if self.world.now() > until {
                let cs: Vec<_> = stat.cs.iter().map(|c| (c.cs.0, c.status, c.replicas)).collect();
                let sick = self.explain_sick()?;
                return Err(format!(
                    "waited {within:?} for {what}; chunks {:?}, CS {cs:?}{sick}",
                    stat.chunks
                ));
            }
            self.run_for(Duration::from_millis(200))?;
        }
    }

    /// All there is to know about chunks that have not all replicas in sync.
    fn explain_sick(&mut self) -> Result<String, String> {
        let mut text = String::new();
        for map in self.maps()? {
            let in_sync = map.grant.replicas.iter().filter(|r| r.role == wire::Role::InSync).count();
            if in_sync == REPLICAS {
                continue;
            }
            text += &format!("\n  chunk {} epoch {} {:?}", map.chunk, map.epoch, map.grant);
            for cs in &self.cs {
                let shard = wire::shard_of(map.chunk, self.shape.shards);
                if let Some(node) = self.world.node::<CsShard>(cs.hosts[usize::from(shard.0)]) {
                    text += &format!("\n    CS#{}: {}", cs.id, node.explain(map.chunk));
                }
            }
        }
        Ok(text)
    }
}

/// A frame in a few words, for traces.
fn describe_frame(frame: &shards::RawFrame) -> String {
    match wire::Frame::decode(frame.clone()) {
        Ok(frame) => {
            let h = &frame.head;
            format!(
                "{:?} #{} {:?} chunk {} epoch {} at {} for {}, {} bytes",
                h.kind,
                h.request,
                h.status,
                h.chunk,
                h.epoch,
                h.offset_bytes,
                h.length_bytes,
                frame.payload.len()
            )
        }
        Err(why) => format!("a bad frame: {why}"),
    }
}
