//! What is checked when the faults are over: the cluster heals, and nothing is lost or differs.

use super::cluster::Cluster;
use super::prober::{Probe, Prober};
use super::registers::CELL_BYTES;
use super::workload::{CHUNK_BYTES, FILE_BYTES};
use client::Call;
use engine::CsShard;
use engine::cache::CacheStat;
use mds::MdsNode;
use shards::sim::CrashKind;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::mds_api::LeaseMode;
use wire::{ChunkId, CsId, ROOT};

/// How long a healed cluster may take to bring every replica in sync.
const HEAL_WITHIN: Duration = Duration::from_secs(120);

impl Cluster {
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
        for n in 0..self.shape.files {
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
                let cell = (first / CELL_BYTES as u64) as u32;
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
