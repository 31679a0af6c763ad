//! The figures of a metadata server for Prometheus; of the cluster only the master tells. docs/admin-guide/metrics.md
//! names each.

use super::server::Server;
use ::metrics::Figures;
use shards::Timestamp;
use std::collections::BTreeMap;
use wire::license::LicenseStatus;
use wire::mds_api::{ChunkCounts, ClusterStat, CsStatus};

const HEALTH: [&str; 4] = ["healthy", "degraded", "failure", "unknown"];
const LICENSE: [&str; 4] = ["active", "graced", "expired", "exceeded"];
const CS: [&str; 5] = ["active", "inactive", "offline", "dropped", "failed"];

/// Requests taken as master since the start of the process.
#[derive(Default)]
pub struct Requests {
    pub of_clients: u64,
    pub of_cs: u64,
}

impl Server {
    pub(super) fn figures(&self, now: Timestamp) -> Figures {
        let mut f = Figures::default();
        let is_master = self.is_ready_master();
        f.gauge("mds_is_master", "Whether this server is the master", &[], is_master.into());
        f.seconds(
            "mds_uptime_seconds",
            "Time since the start of the server",
            &[],
            now.since(self.started_at),
        );
        f.gauge("mds_memory_bytes", "Memory of the process", &[], (self.config.memory_bytes)());
        let raft = &self.consensus;
        f.gauge("mds_raft_term", "Term of raft", &[], raft.term());
        f.gauge("mds_raft_last_index", "Last entry of the log", &[], raft.last_index());
        f.gauge("mds_raft_commit_index", "Last entry known to be on a majority", &[], raft.commit());
        f.gauge("mds_raft_applied_index", "Last entry applied here", &[], self.applied);
        let (used, size) = self.journal_fill();
        f.gauge("mds_journal_used_bytes", "Journal of the log in use", &[], used);
        f.gauge("mds_journal_size_bytes", "Size of the journal", &[], size);
        for (from, n) in [("client", self.requests.of_clients), ("cs", self.requests.of_cs)] {
            f.counter("mds_requests", "Requests taken as master", &[("from", from)], n);
        }
        for (request, took) in &self.times.took {
            f.times(
                "mds_request_seconds",
                "Requests of clients, to the answer",
                &[("request", request)],
                took,
            );
        }
        if is_master {
            self.cluster_figures(&self.cluster_stat(false, now), &mut f);
        }
        f
    }

    fn cluster_figures(&self, stat: &ClusterStat, f: &mut Figures) {
        f.state("cluster_health", "1 for the state of the cluster", "state", &HEALTH, &stat.status);
        let answering = stat.mds.iter().filter(|mds| mds.available).count();
        for (state, n) in [("available", answering), ("offline", stat.mds.len() - answering)] {
            f.gauge("cluster_mds", "Metadata servers", &[("state", state)], n as u64);
        }
        let mut servers: BTreeMap<(&str, u8), u64> = BTreeMap::new();
        stat.cs.iter().for_each(|cs| *servers.entry((state_of(cs.status), cs.tier)).or_default() += 1);
        let tiers: std::collections::BTreeSet<u8> = stat.cs.iter().map(|cs| cs.tier).collect();
        for tier in tiers {
            for state in CS {
                let n = servers.get(&(state, tier)).copied().unwrap_or(0);
                f.gauge("cluster_cs", "Chunk servers", &[("state", state), ("tier", &tier.to_string())], n);
            }
        }
        f.gauge("cluster_clients", "Sessions of clients", &[], stat.clients.len() as u64);
        f.gauge("cluster_files", "Files and directories", &[], stat.fs.files);
        f.gauge("cluster_chunks", "Chunks", &[], stat.chunks.total);
        for (state, n) in chunk_states(&stat.chunks) {
            f.gauge("cluster_chunk_states", "Chunks in a state", &[("state", state)], n);
        }
        for (state, n) in [
            ("waiting", stat.repair.waiting),
            ("copying", stat.repair.copying),
            ("without_place", stat.repair.without_place),
        ] {
            f.gauge("cluster_repair_chunks", "Chunks to be copied", &[("state", state)], n);
        }
        f.counter("cluster_repair_copies", "Copies made under this master", &[], stat.repair.copies_total);
        f.gauge("cluster_physical_size_bytes", "Room of all chunk servers", &[], stat.fs.total_bytes);
        f.gauge("cluster_physical_free_bytes", "Free room of all chunk servers", &[], stat.fs.free_bytes);
        f.gauge(
            "cluster_logical_used_bytes",
            "Users' data, as replicated as the root",
            &[],
            stat.fs.used_bytes,
        );
        f.gauge(
            "cluster_available_bytes",
            "What files like the root can still take",
            &[],
            stat.fs.available_bytes,
        );
        let status = self.master.as_ref().map_or(LicenseStatus::Free, |m| m.license);
        let status = status.name().to_ascii_lowercase();
        f.state("license_status", "1 for the status of the licence", "status", &LICENSE, &status);
        let capacity = self.state.license().map_or(0, |signed| signed.license.capacity_bytes);
        f.gauge("license_capacity_bytes", "Licensed users' data; 0: unlimited", &[], capacity);
    }
}

fn state_of(status: CsStatus) -> &'static str {
    match status {
        CsStatus::Active => "active",
        CsStatus::Inactive => "inactive",
        CsStatus::Offline => "offline",
        CsStatus::Dropped => "dropped",
        CsStatus::Failed => "failed",
    }
}

fn chunk_states(c: &ChunkCounts) -> [(&'static str, u64); 14] {
    [
        ("healthy", c.healthy),
        ("standby", c.standby),
        ("degraded", c.degraded),
        ("urgent", c.urgent),
        ("blocked", c.blocked),
        ("offline", c.offline),
        ("pending", c.pending),
        ("replicating", c.replicating),
        ("overcommitted", c.overcommitted),
        ("deleting", c.deleting),
        ("void", c.void),
        ("unique", c.unique),
        ("lossy", c.lossy),
        ("misplaced", c.misplaced),
    ]
}
