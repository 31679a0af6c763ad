//! What administrators see: space, services, chunks, the health of the cluster.

use super::server::Server;
use crate::placement::{CsView, Deviation};
use crate::state::config;
use crate::state::{ChunkView, Liveness};
use shards::{Io, Timestamp};
use std::collections::BTreeSet;
use wire::CsId;
use wire::mds_api::{ClusterStat, CsInfo, FsStat, MdsInfo, ReplicaPolicy};

impl Server {
    /// Healthy, degraded, failure or unknown, and the sentence for the event log.
    pub(super) fn cluster_health(&self, now: Timestamp) -> (&'static str, String) {
        let (mut active, mut inactive, mut offline) = (0, 0, 0);
        let mut offline_hosts = BTreeSet::new();
        for (cs, record) in self.state.cs_list().filter(|(_, r)| !r.dropped && r.shards > 0) {
            match self.liveness(cs, now) {
                Liveness::Active => active += 1,
                Liveness::Inactive => inactive += 1,
                Liveness::Offline => {
                    offline += 1;
                    offline_hosts.insert(record.host_id);
                }
            }
        }
        let limit = self.state.config_number(config::MAX_OFFLINE_CS_HOSTS);
        let counts = format!("{active} active, {inactive} inactive, {offline} offline CS");
        if self.master.as_ref().is_none_or(|m| m.registry.in_grace(now) && inactive > 0) {
            ("unknown", format!("The cluster's health is not known yet: {counts}"))
        } else if limit > 0 && offline_hosts.len() as u64 > limit {
            ("failure", format!("The cluster failed with {counts} (mds.wd.max_offline_cs_hosts={limit})"))
        } else if inactive + offline > 0 {
            ("degraded", format!("The cluster is degraded with {counts}"))
        } else {
            ("healthy", format!("The cluster is healthy with {active} active CS"))
        }
    }

    fn servers(&self, now: Timestamp) -> Vec<CsInfo> {
        let Some(master) = &self.master else { return Vec::new() };
        self.state
            .cs_list()
            .map(|(cs, record)| {
                master.registry.info(cs, record, self.liveness(cs, now), self.state.replica_count(cs))
            })
            .collect()
    }

    pub(super) fn fs_stat(&self) -> FsStat {
        let Some(master) = &self.master else { return FsStat::default() };
        let spaces: Vec<_> = self
            .state
            .cs_list()
            .filter(|(_, record)| !record.dropped)
            .map(|(cs, _)| master.registry.space(cs))
            .collect();
        let free_bytes = spaces.iter().map(|s| s.free_bytes).sum::<u64>();
        FsStat {
            total_bytes: spaces.iter().map(|s| s.total_bytes).sum(),
            free_bytes,
            available_bytes: free_bytes / u64::from(self.state.root_policy().normal.max(1)),
            files: self.state.file_count(),
            chunks: self.state.chunk_count(),
        }
    }

    pub(super) fn cluster_stat(&self, io: &mut dyn Io) -> ClusterStat {
        let now = io.now();
        let live = |cs: CsId| self.liveness(cs, now);
        let servers = self.cs_views();
        let deviation = |view: &ChunkView, policy: &ReplicaPolicy| {
            let set: Vec<&CsView> = view.in_sync().filter_map(|cs| servers.get(&cs)).collect();
            Deviation::of(&set, policy)
        };
        let mut chunks = self.state.chunk_counts(&live, &deviation);
        if let Some(master) = &self.master {
            chunks.replicating = master.repair.filling() as u64;
        }
        ClusterStat {
            cluster: self.config.control.cluster.clone(),
            status: self.cluster_health(now).0.to_string(),
            fs: self.fs_stat(),
            default_policy: self.state.root_policy(),
            mds: self.mds_infos(now),
            cs: self.servers(now),
            clients: self.state.clients(),
            chunks,
            repair: self.master.as_ref().map(|m| m.repair.stat(now)).unwrap_or_default(),
            epoch_uptime_ms: now.since(self.started_at).as_millis() as u64,
            license: "none".to_string(),
        }
    }

    fn mds_infos(&self, now: Timestamp) -> Vec<MdsInfo> {
        let members = self.consensus.members();
        let info = |(id, record): (wire::MdsId, &crate::state::MdsRecord)| {
            let me = id == self.me;
            let progress = members.iter().find(|(m, _)| *m == id).map(|(_, p)| *p);
            let heard = progress.is_some_and(|p| p.recently_heard) && self.net.line(id).is_some();
            MdsInfo {
                mds: id,
                addr: record.addr,
                master: me,
                available: me || heard,
                voter: progress.is_some_and(|p| p.voter),
                commits: if me { self.consensus.commit() } else { progress.map_or(0, |p| p.matched) },
                // Of the others the master knows neither.
                uptime_ms: if me { now.since(self.started_at).as_millis() as u64 } else { 0 },
                memory_bytes: if me { (self.config.memory_bytes)() } else { 0 },
            }
        };
        self.state.mds_list().map(info).collect()
    }
}
