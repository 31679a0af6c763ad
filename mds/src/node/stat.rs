//! What administrators see: space, services, chunks, the health of the cluster.

use super::server::Server;
use crate::chunk_state::{Condition, Surroundings};
use crate::placement::CsView;
use crate::repair::Stage;
use crate::space::allocatable_bytes;
use crate::state::config;
use crate::state::{ChunkView, Liveness};
use shards::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;
use wire::license::{LicenseStatus, size_text};
use wire::mds_api::{ChunkCounts, ClusterStat, CsInfo, FsStat, MdsInfo};
use wire::{ChunkId, CsId};

/// So many chunks are counted when somebody asks: 5 ms. Of more the counts are made by and by, as many at each tick, and are a
/// pass old: 40 s with 8 million.
const COUNTED_AT_ONCE: u32 = 10_000;
const COUNTING_PAUSE: Duration = Duration::from_secs(10);
/// A server that was dropped is listed for so long (by one master).
const SHOW_DROPPED: Duration = Duration::from_secs(600);

/// Counts of chunks that are made by and by.
#[derive(Default)]
pub struct Counting {
    /// Of the last whole pass.
    counts: Option<ChunkCounts>,
    /// Of this one so far, up to this chunk.
    pass: ChunkCounts,
    after: ChunkId,
    not_before: Timestamp,
}

impl Counting {
    /// `last`: the last chunk counted, `None` at the end.
    fn add(&mut self, counts: ChunkCounts, last: Option<ChunkId>, now: Timestamp) {
        self.pass.add(&counts);
        self.after = last.unwrap_or_default();
        if last.is_none() {
            self.counts = Some(std::mem::take(&mut self.pass));
            self.not_before = now.after(COUNTING_PAUSE);
        }
    }
}

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
        if active + inactive + offline == 0 {
            ("unknown", "The cluster has no chunk servers yet".to_string())
        } else if self.master.as_ref().is_none_or(|m| m.registry.in_grace(now) && inactive > 0) {
            ("unknown", format!("The cluster's health is not known yet: {counts}"))
        } else if limit > 0 && offline_hosts.len() as u64 > limit {
            ("failure", format!("The cluster failed with {counts} (mds.wd.max_offline_cs_hosts={limit})"))
        } else if inactive + offline > 0 {
            ("degraded", format!("The cluster is degraded with {counts}"))
        } else {
            ("healthy", format!("The cluster is healthy with {active} active CS"))
        }
    }

    /// Chunk servers: all that were ever made, or without those dropped long ago.
    pub(super) fn servers(&self, all: bool, now: Timestamp) -> Vec<CsInfo> {
        let Some(master) = &self.master else { return Vec::new() };
        let is_news = |cs: &CsId| master.dropped_at.get(cs).is_some_and(|at| now.since(*at) < SHOW_DROPPED);
        let shown = self.state.cs_list().filter(|(cs, r)| all || !r.dropped || is_news(cs));
        shown.filter_map(|(cs, _)| self.server_info(cs, now)).collect()
    }

    pub(super) fn server_info(&self, cs: CsId, now: Timestamp) -> Option<CsInfo> {
        let (master, record) = (self.master.as_ref()?, self.state.cs(cs)?);
        Some(master.registry.info(cs, record, self.liveness(cs, now), self.state.replica_count(cs)))
    }

    /// The space of all servers that were not dropped: total and free.
    pub(super) fn physical_bytes(&self) -> (u64, u64) {
        let Some(master) = &self.master else { return (0, 0) };
        let there = self.state.cs_list().filter(|(_, record)| !record.dropped);
        there
            .map(|(cs, _)| master.registry.space(cs))
            .fold((0, 0), |(total, free), s| (total + s.total_bytes, free + s.free_bytes))
    }

    pub(super) fn fs_stat(&self, now: Timestamp) -> FsStat {
        let views = self.cs_views();
        let (total_bytes, free_bytes) = self.physical_bytes();
        let policy = self.state.root_policy();
        // What is away for a moment takes data again soon.
        let takes_data = |v: &&CsView| !v.leaving && self.liveness(v.cs, now) != Liveness::Offline;
        let room = |v| (v, self.room_bytes(v));
        let rooms: Vec<(&CsView, u64)> = views.values().filter(takes_data).map(room).collect();
        FsStat {
            total_bytes,
            free_bytes,
            used_bytes: total_bytes.saturating_sub(free_bytes) / u64::from(policy.normal.max(1)),
            available_bytes: allocatable_bytes(&rooms, &policy),
            files: self.state.file_count(),
            chunks: self.state.chunk_count(),
        }
    }

    /// Runs `of` with what is known of the servers and of repair now.
    pub(super) fn with_surroundings<T>(&self, now: Timestamp, of: impl FnOnce(&Surroundings<'_>) -> T) -> T {
        let master = self.master.as_ref();
        of(&Surroundings {
            servers: &self.cs_views(),
            live: &|cs| self.liveness(cs, now),
            stage: &|chunk| master.map_or(Stage::Idle, |m| m.repair.stage(chunk)),
            has_gone: &|chunk| self.state.gone_blocks(chunk).next().is_some(),
            was_reported: &|chunk| master.is_some_and(|m| m.reported.contains(chunk)),
        })
    }

    fn chunk_counts(&self, now: Timestamp) -> ChunkCounts {
        let counts = match self.master.as_ref().map(|m| &m.counting) {
            Some(counting) if self.counts_by_and_by() => counting.counts.unwrap_or(counting.pass),
            _ => self.count(self.state.all_chunks(), now),
        };
        ChunkCounts { deleting: self.state.deleting(), ..counts }
    }

    fn counts_by_and_by(&self) -> bool {
        self.state.chunk_count() > u64::from(COUNTED_AT_ONCE)
    }

    /// Counts on, in a cluster of many chunks.
    pub(super) fn count_on(&mut self, now: Timestamp) {
        let is_due = |counting: &&Counting| now >= counting.not_before && self.counts_by_and_by();
        let Some(counting) = self.master.as_ref().map(|m| &m.counting).filter(is_due) else { return };
        let after = counting.after;
        let next = self.state.list_chunks(after, COUNTED_AT_ONCE);
        let last = next.last().map(|view| view.chunk).filter(|_| next.len() == COUNTED_AT_ONCE as usize);
        let counts = self.count(next.into_iter(), now);
        if let Some(master) = &mut self.master {
            master.counting.add(counts, last, now);
        }
    }

    /// In which states chunks are.
    pub(super) fn count(&self, chunks: impl Iterator<Item = ChunkView>, now: Timestamp) -> ChunkCounts {
        let mut counts = ChunkCounts::default();
        self.with_surroundings(now, |around| {
            for view in chunks {
                Condition::of(&view, &self.state.policy_of(&view), around).count_in(&mut counts);
            }
        });
        counts
    }

    /// With `all_servers` those dropped long ago are listed too.
    pub(super) fn cluster_stat(&self, all_servers: bool, now: Timestamp) -> ClusterStat {
        let fs = self.fs_stat(now);
        ClusterStat {
            cluster: self.config.control.cluster.clone(),
            status: self.cluster_health(now).0.to_string(),
            license: self.license_line(fs.used_bytes),
            fs,
            default_policy: self.state.root_policy(),
            mds: self.mds_infos(now),
            cs: self.servers(all_servers, now),
            clients: self.state.clients(),
            chunks: self.chunk_counts(now),
            repair: self.master.as_ref().map(|m| m.repair.stat(now)).unwrap_or_default(),
            epoch_uptime_ms: now.since(self.started_at).as_millis() as u64,
        }
    }

    /// The status, and what limits there are.
    fn license_line(&self, used_bytes: u64) -> String {
        let status = self.master.as_ref().map_or(LicenseStatus::Free, |m| m.license);
        match self.state.license() {
            None => format!("{} (free, without limits)", status.name()),
            Some(signed) => {
                format!("{} ({}, used: {})", status.name(), signed.license.limits(), size_text(used_bytes))
            }
        }
    }

    fn mds_infos(&self, now: Timestamp) -> Vec<MdsInfo> {
        let members = self.consensus.members();
        let info = |(id, record): (wire::MdsId, &crate::state::MdsRecord)| {
            let me = id == self.me;
            let progress = members.iter().find(|(m, _)| *m == id).map(|(_, p)| *p);
            MdsInfo {
                mds: id,
                addr: record.addr,
                master: me,
                available: self.hears(id),
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
