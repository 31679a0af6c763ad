//! The cluster in the world: where everything runs, how it is started again, how it is asked and checked.

use super::prober::{Probe, Prober};
use super::workload::{Answers, CHUNK_BYTES, FILE_BYTES, Workload};
use super::{HEAL_WITHIN, Options};
use client::{Call, ClientConfig, ClientCore, Done};
use engine::cache::CacheStat;
use engine::store::StoreConfig;
use engine::{CsShard, CsShardConfig};
use mds::control::{MdsControl, MdsPeer};
use mds::{MdsConfig, MdsNode};
use shards::sim::{CrashKind, HostId, Rng, Speeds, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::auth::ClusterKey;
use wire::mds_api::{ChunkMap, ClusterStat, LeaseMode, MdsReply, MdsRequest};
use wire::{ChunkId, CsId, MdsId, ROOT, ShardIndex};

const CLUSTER: &str = "sim";
const REPLICAS: usize = 3;
const LEASE_MS: u64 = 2000;
const OFFLINE_MS: u64 = 6000;
const MOST_EVENTS: u64 = 1_000_000;

/// A server or client, whatever runs there now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Mds(usize),
    Cs(usize),
    Client(usize),
}

struct Cs {
    /// One per shard.
    hosts: Vec<HostId>,
    id: CsId,
    incarnation: u64,
}

pub struct Cluster {
    pub world: World,
    options: Options,
    key: ClusterKey,
    mds: Vec<HostId>,
    peers: Vec<MdsPeer>,
    cs: Vec<Cs>,
    clients: Vec<HostId>,
    /// An administrator: a client on a host of its own that no fault hits.
    admin: HostId,
    prober: HostId,
    workload: Option<Workload>,
}

fn ip(kind: u8, n: usize) -> IpAddr {
    IpAddr::from([10, 0, kind, n as u8 + 1])
}

/// What the cluster runs on: SSDs, hard disks, or SSDs behind a slow network. Each leaves other things under way at the
/// same time.
fn machines(rng: &mut Rng) -> Speeds {
    let ms = Duration::from_millis;
    match rng.below(3) {
        0 => Speeds { disk_delay: (ms(1), ms(12)), ..Speeds::default() },
        1 => Speeds { net_delay: (ms(1), ms(5)), ..Speeds::default() },
        _ => Speeds::default(),
    }
}

impl Cluster {
    pub fn new(seed: u64, options: &Options) -> Cluster {
        let mut world = World::new(seed);
        world.speeds = machines(world.rng());
        if options.log {
            world.keep_log();
        }
        let mds = (0..options.mds).map(|n| world.add_host(&format!("mds{}", n + 1), ip(1, n))).collect();
        let peers = (0..options.mds)
            .map(|n| MdsPeer::at(MdsId(n as u64 + 1), SocketAddr::new(ip(1, n), 2510)).expect("a good port"))
            .collect();
        let shard_hosts = |world: &mut World, n: usize| {
            (0..options.shards).map(|s| world.add_host(&format!("cs{}.{s}", n + 1), ip(2, n))).collect()
        };
        let cs = (0..options.cs)
            .map(|n| Cs { hosts: shard_hosts(&mut world, n), id: CsId(0), incarnation: 0 })
            .collect();
        let clients =
            (0..options.clients).map(|n| world.add_host(&format!("client{}", n + 1), ip(3, n))).collect();
        let (admin, prober) = (world.add_host("admin", ip(4, 0)), world.add_host("prober", ip(4, 1)));
        let (options, key) = (options.clone(), ClusterKey::for_test(7));
        Cluster { world, options, key, mds, peers, cs, clients, admin, prober, workload: None }
    }

    pub fn workload(&self) -> &Workload {
        self.workload.as_ref().expect("set up")
    }

    // ---- places ----

    pub fn places(&self) -> Vec<Place> {
        let mds = (0..self.mds.len()).map(Place::Mds);
        mds.chain((0..self.cs.len()).map(Place::Cs))
            .chain((0..self.clients.len()).map(Place::Client))
            .collect()
    }

    pub fn any_place(&mut self) -> Place {
        let places = self.places();
        *self.world.rng().pick(&places)
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

    /// False when nothing ran there.
    pub fn crash(&mut self, place: Place, kind: CrashKind) -> bool {
        let mut ran = false;
        for host in self.hosts(place) {
            ran |= self.world.is_up(host);
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
                let id = self.peers[n].id;
                let control = MdsControl::first_quorum(CLUSTER, "00".repeat(16), id, &self.peers);
                let mut config = MdsConfig::new(control, self.key.clone());
                (config.journal_bytes, config.snapshot_entries, config.keep_entries) = (1 << 20, 300, 100);
                self.world.start(self.mds[n], MdsNode::new(config));
            }
            Place::Cs(n) => {
                self.cs[n].incarnation += 1;
                for shard in 0..self.options.shards {
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
            key: self.key.clone(),
            cs: self.cs[n].id,
            shard: ShardIndex(shard),
            shards: self.options.shards,
            ip: ip(2, n),
            mds: self.mds_addrs(),
            incarnation: self.cs[n].incarnation,
            host_id: [n as u8 + 1; 16],
            host: format!("host{}", n + 1),
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
        }
    }

    fn mds_addrs(&self) -> Vec<SocketAddr> {
        self.peers.iter().map(|p| p.addr).collect()
    }

    fn client(&self, name: &str) -> ClientCore {
        let mut config = ClientConfig::new(CLUSTER, self.key.clone(), self.mds_addrs());
        config.host = name.into();
        // Small, and taking everything: much comes and goes.
        config.cache = Some(client::CacheConfig { path: "cache".into(), bytes: 4 << 20, admit_at_uses: 1 });
        ClientCore::new(config)
    }

    // ---- asking ----

    /// Lets the next thing happen and the clients go on.
    pub fn step(&mut self) -> Result<(), String> {
        self.world.step();
        if self.world.events() > MOST_EVENTS {
            return Err(format!("more than {MOST_EVENTS} events: something spins"));
        }
        if let Some(work) = &mut self.workload {
            work.turn(&mut self.world);
            if let Some(why) = &work.violation {
                return Err(why.clone());
            }
        }
        Ok(())
    }

    fn run_for(&mut self, wait: Duration) -> Result<(), String> {
        let until = self.world.now().after(wait);
        while self.world.next_at().is_some_and(|at| at <= until) {
            self.step()?;
        }
        self.world.wait_until(until);
        Ok(())
    }

    /// Sends `make`'s message to `host` and waits for its answer.
    fn wait_for<T: Send + 'static>(
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

    fn admin<T: Send + 'static>(
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

    fn ask(&mut self, request: MdsRequest) -> Result<MdsReply, String> {
        let what = format!("{request:?}");
        self.admin(&what, |done| Call::Mds { request, done })
    }

    // ---- life ----

    /// An empty cluster with its files.
    pub fn set_up(&mut self) -> Result<(), String> {
        for n in 0..self.mds.len() {
            self.start(Place::Mds(n));
        }
        let core = self.client("admin");
        self.world.start(self.admin, core);
        self.world.start(self.prober, Prober::new(CLUSTER, self.key.clone()));
        self.admin("first contact", |done| Call::Ready { done })?;
        for n in 0..self.cs.len() {
            let (host_id, host) = ([n as u8 + 1; 16], format!("host{}", n + 1));
            match self.ask(MdsRequest::NewCs { host_id, host })? {
                MdsReply::NewCs { cs } => self.cs[n].id = cs,
                other => return Err(format!("make-cs: {other:?}")),
            }
            self.start(Place::Cs(n));
        }
        for (key, value) in [("mds.lease.timeout", LEASE_MS), ("mds.wd.offline_tout", OFFLINE_MS)] {
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
        for n in 0..self.options.files {
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
            self.admin("close", |done| Call::Close { file, mode: LeaseMode::Write, done })?;
            files.push(file);
        }
        for n in 0..self.clients.len() {
            self.start(Place::Client(n));
        }
        let rng = &mut self.world.rng().fork();
        self.workload =
            Some(Workload::new(&self.clients, files, Answers::default(), self.options.readers, rng));
        Ok(())
    }

    fn stat(&mut self) -> Result<ClusterStat, String> {
        match self.ask(MdsRequest::ClusterStat)? {
            MdsReply::Stat(stat) => Ok(*stat),
            other => Err(format!("stat: {other:?}")),
        }
    }

    fn until(
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
                let shard = wire::shard_of(map.chunk, self.options.shards);
                if let Some(node) = self.world.node::<CsShard>(cs.hosts[usize::from(shard.0)]) {
                    text += &format!("\n    CS#{}: {}", cs.id, node.explain(map.chunk));
                }
            }
        }
        Ok(text)
    }

    fn no_server_stopped(&self) -> Result<(), String> {
        let hosts = self.mds.iter().chain(self.cs.iter().flat_map(|c| &c.hosts)).chain(&self.clients);
        for &host in hosts {
            if let Some(outcome) = self.world.stopped(host) {
                return Err(format!("{} stopped by itself: {outcome:?}", self.world.name(host)));
            }
        }
        Ok(())
    }

    /// Repairs links and disks, starts what is down, and waits until the cluster is whole.
    pub fn heal(&mut self) -> Result<(), String> {
        self.no_server_stopped()?;
        self.world.heal_all();
        for place in self.places() {
            self.pause(place, Duration::ZERO);
            self.slow_down(place, 1);
            self.start(place);
        }
        // A little ordinary work, so that some repairs meet it; then let all operations end.
        let work_ms = self.world.rng().between(2500, 5000);
        self.run_for(Duration::from_millis(work_ms))?;
        self.workload.as_mut().expect("set up").stop();
        let until = self.world.now().after(Duration::from_secs(90));
        while !self.workload().idle() {
            if self.world.now() > until {
                return Err(format!("operations hang: {}", self.workload().waiting()));
            }
            self.run_for(Duration::from_millis(100))?;
        }
        self.until("every replica to be in sync", HEAL_WITHIN, |stat| {
            stat.chunks.healthy == stat.chunks.total
                && stat.chunks.deleting == 0
                && stat.mds.iter().all(|m| m.available)
        })?;
        self.no_server_stopped()
    }

    /// All checks at the end of a run.
    pub fn check(&mut self) -> Result<(), String> {
        for host in self.clients.clone() {
            self.world.crash(host, CrashKind::Process);
        }
        self.read_everything()?;
        self.check_listing()?;
        for history in &self.workload().histories {
            history.check()?;
        }
        self.replicas_are_equal()?;
        self.no_orphans()?;
        self.caches_met_nothing_stale()?;
        self.same_state_everywhere()?;
        self.no_server_stopped()
    }

    fn read_everything(&mut self) -> Result<(), String> {
        for n in 0..self.options.files {
            let file = self.workload().files[n];
            let until = self.world.now().after(Duration::from_secs(30));
            let mode = LeaseMode::Read;
            // The killed clients' leases end in their time.
            while let Err(why) = self.admin("open", |done| Call::Open { file, mode, done }) {
                if self.world.now() > until {
                    return Err(why);
                }
            }
            let now = self.world.now();
            self.workload.as_mut().expect("set up").histories[n].fence(now);
            for first in (0..FILE_BYTES).step_by(1 << 20) {
                let start = self.world.now();
                let read = |done| Call::Read { file, offset: first, len: 1 << 20, done };
                let data = self.admin("last read", read)?;
                if data.len() != 1 << 20 {
                    return Err(format!("file {n}: {} bytes read at {first}, 1 MiB expected", data.len()));
                }
                let end = self.world.now();
                let cell = (first / super::registers::CELL_BYTES as u64) as u32;
                let work = self.workload.as_mut().expect("set up");
                work.saw(n, cell, &data, start, end);
                if let Some(why) = &work.violation {
                    return Err(why.clone());
                }
            }
            self.admin("close", |done| Call::Close { file, mode, done })?;
        }
        Ok(())
    }

    fn check_listing(&mut self) -> Result<(), String> {
        let mut listed = BTreeSet::new();
        let mut after = String::new();
        loop {
            let from = after.clone();
            let (entries, more) =
                self.admin("list", |done| Call::ReadDir { directory: ROOT, after: from, limit: 100, done })?;
            listed.extend(entries.iter().map(|e| e.name.clone()));
            match entries.last() {
                Some(last) if more => after = last.name.clone(),
                _ => break,
            }
        }
        self.workload().check_names(&listed)
    }

    fn maps(&mut self) -> Result<Vec<ChunkMap>, String> {
        match self.ask(MdsRequest::ListChunks { after: ChunkId(0), limit: 10_000 })? {
            MdsReply::Maps { chunks } => Ok(chunks),
            other => Err(format!("list of chunks: {other:?}")),
        }
    }

    fn replicas_are_equal(&mut self) -> Result<(), String> {
        let blocks = (CHUNK_BYTES / wire::BLOCK_BYTES as u64) as u32;
        for map in self.maps()? {
            let mut first: Option<(CsId, Vec<wire::BlockCrc>)> = None;
            for replica in &map.grant.replicas {
                let (prober, chunk, epoch, addr) = (self.prober, map.chunk, map.epoch, replica.addr);
                let answer = self.wait_for("checksums", Duration::from_secs(10), |world, done| {
                    world.message::<Prober>(prober, Probe { addr, chunk, epoch, blocks, done });
                })?;
                let sums =
                    answer.map_err(|e| format!("checksums of chunk {chunk} on CS#{}: {e}", replica.cs))?;
                match &first {
                    None => first = Some((replica.cs, sums)),
                    Some((_, other)) if *other == sums => {}
                    Some((cs, other)) => {
                        let at = other.iter().zip(&sums).position(|(a, b)| a != b);
                        return Err(format!(
                            "chunk {chunk} (index {}) epoch {epoch}: CS#{cs} and CS#{} differ at block {at:?}; {:?}",
                            map.index, replica.cs, map.grant
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// No chunk server keeps a chunk that is not its own for long.
    fn no_orphans(&mut self) -> Result<(), String> {
        let until = self.world.now().after(Duration::from_secs(30));
        loop {
            let mut owned: BTreeMap<CsId, BTreeSet<ChunkId>> = BTreeMap::new();
            for map in self.maps()? {
                for replica in &map.grant.replicas {
                    owned.entry(replica.cs).or_default().insert(map.chunk);
                }
            }
            let mut orphans = Vec::new();
            for cs in &self.cs {
                let none = BTreeSet::new();
                let mine = owned.get(&cs.id).unwrap_or(&none);
                for &host in &cs.hosts {
                    let store = self.world.node::<CsShard>(host).and_then(|n| n.store());
                    orphans.extend(
                        store
                            .into_iter()
                            .flat_map(|s| s.chunks())
                            .filter(|c| !mine.contains(c))
                            .map(|c| (cs.id, c)),
                    );
                }
            }
            if orphans.is_empty() {
                return Ok(());
            }
            if self.world.now() > until {
                return Err(format!("chunks are kept where they do not belong: {orphans:?}"));
            }
            self.run_for(Duration::from_secs(1))?;
        }
    }

    fn cache_stats(&self) -> impl Iterator<Item = CacheStat> + '_ {
        let hosts = self.cs.iter().flat_map(|cs| &cs.hosts);
        let nodes = hosts.filter_map(|&host| self.world.node::<CsShard>(host));
        nodes.filter_map(|node| Some(node.store()?.cache_stat()))
    }

    /// Reads that the chunk servers' caches answered since these servers started last.
    pub fn cache_hits(&self) -> u64 {
        self.cache_stats().map(|s| s.hits).sum()
    }

    /// Nothing damages disks here: a block of a cache that is not what its checksum says is a stale one, which its version
    /// should have told.
    fn caches_met_nothing_stale(&self) -> Result<(), String> {
        match self.cache_stats().map(|s| s.damaged).sum() {
            0 => Ok(()),
            n => Err(format!("{n} stale blocks were met in read caches")),
        }
    }

    fn same_state_everywhere(&mut self) -> Result<(), String> {
        let until = self.world.now().after(Duration::from_secs(30));
        let mut seen = Vec::new();
        while self.world.now() < until {
            seen = self
                .mds
                .iter()
                .map(|&host| self.world.node::<MdsNode>(host).and_then(|n| n.applied_digest()))
                .collect();
            if seen.iter().all(|d| d.is_some() && *d == seen[0]) {
                return Ok(());
            }
            let same_index = seen.iter().all(|d| d.map(|d| d.0) == seen[0].map(|d| d.0));
            if same_index && seen[0].is_some() {
                return Err(format!("the metadata servers' states differ: {seen:?}"));
            }
            self.run_for(Duration::from_millis(50))?;
        }
        Err(format!("the metadata servers do not agree: (index, digest) {seen:?}"))
    }
}
