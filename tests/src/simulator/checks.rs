//! What is checked when the faults are over: the cluster heals, and nothing is lost or differs.

use super::cluster::{Cluster, REPLICAS};
use super::plan::{BadDisk, Place};
use super::prober::{Probe, Prober};
use super::workload::{CHUNK_BYTES, FILE_BYTES};
use crate::registers::CELL_BYTES;
use client::Call;
use engine::cache::CacheStat;
use engine::{Backlog, CsShard};
use mds::MdsNode;
use shards::Timestamp;
use shards::sim::{CrashKind, Weather};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::mds_api::{ChunkMap, LeaseMode, MdsRequest};
use wire::{BlockCrc, ChunkId, CsId, FileId, ROOT, Replica, Role};

/// How long a healed cluster may take to bring every replica in sync.
const HEAL_WITHIN: Duration = Duration::from_secs(120);
/// Rounds of a repair of damage, at most.
const MOST_REPAIRS: usize = 5;

impl Cluster {
    /// Repairs links and disks, starts what is down, and waits until the cluster is whole.
    pub fn heal(&mut self) -> Result<(), String> {
        self.world.heal_all();
        self.mend_disk();
        for place in self.places() {
            self.pause(place, Duration::ZERO);
            self.slow_down(place, 1);
            self.world.set_weather(self.ip(place), Weather::default());
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
        self.start_added()?;
        // There may be too few racks for it: the cluster would not be healthy for ever.
        let (name, value) = ("failure-domain".to_string(), "host".to_string());
        self.ask(MdsRequest::SetPolicy { file: ROOT, name, value, recursive: true })?;
        // A full disk makes a server one that others relieve, at any time: what is compared must stand still.
        let (key, value) = ("mds.balance.margin".to_string(), "0".to_string());
        self.ask(MdsRequest::SetConfig { key, value })?;
        self.until("removals to end", HEAL_WITHIN, |stat| stat.cs.iter().all(|cs| !cs.draining))?;
        self.become_whole()?;
        if matches!(self.shape.bad_disk, Some((_, BadDisk::Lies | BadDisk::Decays))) {
            self.repair_damage()?;
        }
        Ok(())
    }

    fn become_whole(&mut self) -> Result<(), String> {
        self.until("every metadata server to follow", HEAL_WITHIN, |stat| {
            stat.mds.iter().all(|mds| mds.available)
        })?;
        let until = self.world.now().after(HEAL_WITHIN);
        loop {
            self.until("every replica to be in sync", HEAL_WITHIN, |stat| {
                let at_rest = stat.repair.waiting + stat.repair.copying + stat.chunks.overcommitted == 0;
                stat.chunks.healthy == stat.chunks.total && stat.chunks.deleting == 0 && at_rest
            })?;
            // Chunks that are healthy may have replicas that are on their way out.
            let maps = self.maps()?;
            let settled = |map: &ChunkMap| {
                let replicas = &map.grant.replicas;
                replicas.len() == REPLICAS && replicas.iter().all(|r| r.role == Role::InSync)
            };
            let Some(unsettled) = maps.iter().find(|map| !settled(map)) else { return Ok(()) };
            if self.world.now() > until {
                return Err(format!("chunk {} does not settle: {:?}", unsettled.chunk, unsettled.grant));
            }
            self.run_for(Duration::from_millis(200))?;
        }
    }

    /// Starts metadata servers that were added though nobody was told so, and takes leave of the removed ones.
    fn start_added(&mut self) -> Result<(), String> {
        let members = self.stat()?.mds;
        for n in 0..self.mds.len() {
            match members.iter().find(|m| m.addr == self.peers[n].addr) {
                Some(member) => {
                    self.peers[n].id = member.mds;
                    self.leaving.remove(&n);
                    self.start(Place::Mds(n));
                }
                None => {
                    self.leaving.insert(n);
                }
            }
        }
        Ok(())
    }

    /// Does what `pstorage check --repair` does: reads all replicas, and has the bad ones filled again.
    fn repair_damage(&mut self) -> Result<(), String> {
        for _ in 0..MOST_REPAIRS {
            let mut bad = Vec::new();
            for map in self.maps()? {
                for replica in &map.grant.replicas {
                    if let Err(why) = self.checksums(&map, replica)? {
                        self.world.note(|_| format!("damage: {why}"));
                        bad.push((map.chunk, map.epoch, replica.cs));
                    }
                }
            }
            if bad.is_empty() {
                return Ok(());
            }
            for (chunk, epoch, cs) in bad {
                self.ask(MdsRequest::ReportBadReplica { chunk, epoch, cs })?;
            }
            self.become_whole()?;
        }
        Err(format!("replicas are damaged after {MOST_REPAIRS} repairs of what was found"))
    }

    /// Of all blocks of a replica, as they are on its disk; or what is wrong with them.
    fn checksums(
        &mut self,
        map: &ChunkMap,
        replica: &Replica,
    ) -> Result<Result<Vec<BlockCrc>, String>, String> {
        let blocks = (CHUNK_BYTES / wire::BLOCK_BYTES as u64) as u32;
        let (prober, chunk, epoch, addr) = (self.prober, map.chunk, map.epoch, replica.addr);
        self.wait_for("checksums", Duration::from_secs(10), |world, done| {
            world.message::<Prober>(prober, Probe { addr, chunk, epoch, blocks, done });
        })
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
        self.nothing_left_over()?;
        self.caches_met_nothing_stale()?;
        self.no_damage_of_its_own()?;
        self.same_state_everywhere()
    }

    fn read_everything(&mut self) -> Result<(), String> {
        for n in 0..self.shape.files {
            self.read_file(n, self.workload().files[n], None)?;
        }
        for frozen in self.workload().frozen.clone() {
            let then = Some((frozen.start, frozen.end));
            self.read_file(frozen.of, frozen.file, then).map_err(|why| format!("{frozen:?}: {why}"))?;
        }
        Ok(())
    }

    /// Reads all of a file, which has contents of file `n`: those of now, or of another time.
    fn read_file(
        &mut self,
        n: usize,
        file: FileId,
        then: Option<(Timestamp, Timestamp)>,
    ) -> Result<(), String> {
        let until = self.world.now().after(Duration::from_secs(30));
        let mode = LeaseMode::Read;
        // The killed clients' leases end in their time.
        while let Err(why) = self.admin("open", |done| Call::Open { file, mode, done }) {
            if self.world.now() > until {
                return Err(why);
            }
        }
        if then.is_none() {
            let now = self.world.now();
            self.workload.as_mut().expect("set up").histories[n].fence(now);
        }
        for first in (0..FILE_BYTES).step_by(1 << 20) {
            let start = self.world.now();
            let read = |done| Call::Read { file, offset: first, len: 1 << 20, done };
            let data = self.admin("last read", read)?;
            if data.len() != 1 << 20 {
                return Err(format!("file {n}: {} bytes read at {first}, 1 MiB expected", data.len()));
            }
            let (start, end) = then.unwrap_or((start, self.world.now()));
            let cell = (first / CELL_BYTES as u64) as u32;
            let work = self.workload.as_mut().expect("set up");
            work.saw(n, cell, &data, start, end);
            if let Some(why) = &work.violation {
                return Err(why.clone());
            }
        }
        self.admin("close", |done| Call::Close { file, mode, done })
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

    fn replicas_are_equal(&mut self) -> Result<(), String> {
        for mut map in self.maps()? {
            // Balance goes on meanwhile: it may have taken a chunk elsewhere since its map was read.
            while let Err(why) = self.in_sync_replicas_are_equal(&map)? {
                let now = self.maps()?.into_iter().find(|m| m.chunk == map.chunk);
                match now {
                    Some(now) if now.epoch != map.epoch => map = now,
                    _ => return Err(why),
                }
            }
        }
        Ok(())
    }

    fn in_sync_replicas_are_equal(&mut self, map: &ChunkMap) -> Result<Result<(), String>, String> {
        let (chunk, epoch) = (map.chunk, map.epoch);
        let mut first: Option<(CsId, Vec<BlockCrc>)> = None;
        for replica in map.grant.replicas.iter().filter(|r| r.role == Role::InSync) {
            let sums = match self.checksums(map, replica)? {
                Ok(sums) => sums,
                Err(why) => {
                    return Ok(Err(format!("checksums of chunk {chunk} on CS#{}: {why}", replica.cs)));
                }
            };
            match &first {
                None => first = Some((replica.cs, sums)),
                Some((_, other)) if *other == sums => {}
                Some((cs, other)) => {
                    let at = other.iter().zip(&sums).position(|(a, b)| a != b);
                    return Ok(Err(format!(
                        "chunk {chunk} (index {}) epoch {epoch}: CS#{cs} and CS#{} differ at block {at:?}; {:?}",
                        map.index, replica.cs, map.grant
                    )));
                }
            }
        }
        Ok(Ok(()))
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

    /// Nobody works any more: no server remembers anything of work that has ended.
    fn nothing_left_over(&mut self) -> Result<(), String> {
        let until = self.world.now().after(Duration::from_secs(20));
        loop {
            let hosts = self.cs.iter().flat_map(|cs| &cs.hosts);
            let left: Vec<(&str, Backlog)> = hosts
                .filter_map(|&host| {
                    Some((self.world.name(host), self.world.node::<CsShard>(host)?.backlog()))
                })
                .filter(|(_, backlog)| *backlog != Backlog::default())
                .collect();
            if left.is_empty() {
                break;
            }
            if self.world.now() > until {
                return Err(format!("chunk servers remember work that has ended: {left:?}"));
            }
            self.run_for(Duration::from_millis(100))?;
        }
        self.until("repair to end", Duration::from_secs(30), |stat| stat.chunks.replicating == 0)
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

    /// Disks that do nothing wrong hold no damage: not even after a loss of power does a server trust what it was about to
    /// write.
    fn no_damage_of_its_own(&mut self) -> Result<(), String> {
        if self.shape.bad_disk.is_some() || !self.shape.harsh {
            return Ok(());
        }
        match self.events()?.into_iter().find(|message| message.contains("has reported hard error")) {
            Some(message) => Err(format!("damage on good disks: {message}")),
            None => Ok(()),
        }
    }

    fn same_state_everywhere(&mut self) -> Result<(), String> {
        let until = self.world.now().after(Duration::from_secs(30));
        let mut seen = Vec::new();
        while self.world.now() < until {
            let members = (0..self.mds.len()).filter(|n| !self.leaving.contains(n)).map(|n| self.mds[n]);
            seen = members
                .map(|host| self.world.node::<MdsNode>(host).and_then(|n| n.applied_digest()))
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
