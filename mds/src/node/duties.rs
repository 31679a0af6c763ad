//! What the master does from time to time: sessions that fell silent, chunk servers that came or went, repair, the
//! event log, deletions that were not confirmed.

use super::outcomes::CHUNKS_PER_COMMAND;
use super::server::Server;
use crate::placement::CsView;
use crate::repair::{Action, Limits, World};
use crate::space;
use crate::state::config;
use crate::state::{Internal, Liveness, SetChange};
use shards::{ConnId, Io, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::cs_api::CsCommand;
use wire::mds_api::Severity;
use wire::{ChunkId, CsId, Head, LeaseId};

/// Slow work (sessions, events, pending deletions) is done this often.
const SLOW_TICK: Duration = Duration::from_millis(500);
const REPEAT_DELETES: Duration = Duration::from_secs(30);
/// A server this many entries behind is mentioned in the event log.
const LAG_ENTRIES: u64 = 1000;

impl Server {
    pub(super) fn master_tick(&mut self, io: &mut dyn Io) {
        if !self.is_ready_master() {
            return;
        }
        self.retry_parked(io);
        self.repair(io);
        let now = io.now();
        self.count_on(now);
        let Some(master) = &mut self.master else { return };
        if now < master.slow_at {
            return;
        }
        master.slow_at = now.after(SLOW_TICK);
        let timeout = Duration::from_millis(self.state.config_number(config::LEASE_TIMEOUT_MS));
        let expired = master.sessions.take_expired(now, timeout);
        let silent = master.registry.silent(now);
        if !expired.is_empty() {
            self.propose_own(Internal::ExpireClients { clients: expired }, io);
        }
        for conn in silent {
            let events = self.net.drop_conn(conn, "no heartbeat for too long", io);
            self.on_net(events, io);
        }
        self.end_revoked(timeout, io);
        self.tell_changes(io);
        self.tell_rested(io);
        self.tell_lagging(io);
        self.reconcile_members(io);
        self.repeat_deletes(io);
        self.repeat_forks(io);
        self.drop_drained(io);
        self.watch_license(io);
        self.note_renewals(io);
    }

    /// Revoked leases in which nobody believes any more: who has not heard of it has had no answer to a KeepAlive since,
    /// and trusts its session less long than this (client/src/core/mds.rs, `session_is_sure`).
    fn end_revoked(&mut self, timeout: Duration, io: &mut dyn Io) {
        let now = io.now();
        let Some(master) = &mut self.master else { return };
        let mut since = std::mem::take(&mut master.revoking_since);
        master.revoking_since =
            self.state.revoking().map(|lease| (lease, since.remove(&lease).unwrap_or(now))).collect();
        let over = master.revoking_since.iter().filter(|(_, since)| now.since(**since) > timeout);
        let leases: Vec<LeaseId> = over.map(|(lease, _)| *lease).collect();
        if !leases.is_empty() {
            self.propose_own(Internal::EndRevoked { leases }, io);
        }
    }

    pub(super) fn offline_after(&self) -> Duration {
        Duration::from_millis(self.state.config_number(config::OFFLINE_TIMEOUT_MS))
    }

    pub(super) fn liveness(&self, cs: CsId, now: Timestamp) -> Liveness {
        match &self.master {
            Some(master) => master.registry.liveness(cs, now, self.offline_after()),
            None => Liveness::Inactive,
        }
    }

    /// Chunk servers that may take new replicas.
    pub(super) fn candidates(&self, now: Timestamp) -> Vec<CsView> {
        self.cs_views().into_values().filter(|v| self.may_take_more(v, now)).collect()
    }

    fn may_take_more(&self, v: &CsView, now: Timestamp) -> bool {
        let is_slow = self.master.as_ref().is_some_and(|m| m.registry.is_slow(v.cs, now));
        let is_well = !v.leaving && !is_slow && self.liveness(v.cs, now) == Liveness::Active;
        is_well && self.room_bytes(v) > 0
    }

    /// What new replicas may take of a chunk server.
    pub(super) fn room_bytes(&self, v: &CsView) -> u64 {
        let margin_percent = self.state.config_number(config::FILL_MARGIN_PERCENT);
        let margin_bytes = self.state.config_number(config::FREE_SPACE_MARGIN_MB) << 20;
        // The fixed margin is for large disks: it must not leave a small server without any use.
        let margin_bytes = margin_bytes.min(v.total_bytes / 4).max(v.total_bytes / 100 * margin_percent);
        v.free_bytes.saturating_sub(margin_bytes)
    }

    /// All chunk servers that were not dropped.
    pub(super) fn cs_views(&self) -> BTreeMap<CsId, CsView> {
        let Some(master) = &self.master else { return BTreeMap::new() };
        let there = self.state.cs_list().filter(|(_, record)| !record.dropped);
        there.map(|(cs, record)| (cs, master.registry.view(cs, record))).collect()
    }

    fn repair(&mut self, io: &mut dyn Io) {
        let now = io.now();
        if self.master.as_ref().is_some_and(|m| m.registry.in_grace(now)) {
            return;
        }
        let servers = self.cs_views();
        let candidates: Vec<CsView> =
            servers.values().filter(|v| self.may_take_more(v, now)).cloned().collect();
        let offline_after = self.offline_after();
        let limits = Limits {
            from_shard: self.state.config_number(config::COPIES_FROM_SHARD) as usize,
            to_server: self.state.config_number(config::COPIES_TO_SERVER) as usize,
            moves: self.state.config_number(config::MOVES) as usize,
        };
        let may_place = self.cluster_health(now).0 != "failure";
        let Some(master) = &mut self.master else { return };
        let world = World {
            state: &self.state,
            registry: &master.registry,
            servers: &servers,
            candidates: &candidates,
            now,
            offline_after,
            limits,
            balance_margin: self.state.config_number(config::BALANCE_MARGIN_PERCENT) as f64 / 100.0,
            may_place,
        };
        let actions = master.repair.step(&world, &mut || io.random());
        let queued = master.repair.mending();
        let began = master.repair.is_mending() && !master.replicating;
        let ended = master.replicating && queued == 0 && master.repair.has_settled();
        master.replicating = (master.replicating || began) && !ended;
        for action in actions {
            self.carry_out_repair(action, io);
        }
        if began {
            let message = format!("Replication started, {queued} chunks are queued");
            self.log_event("MDS", Severity::Info, message, io);
        } else if ended {
            self.log_event("MDS", Severity::Info, "Replication completed".into(), io);
        }
    }

    fn carry_out_repair(&mut self, action: Action, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        match action {
            Action::Propose(change) => master.sets.push(change),
            Action::Fill { conn, view } => {
                let command = CsCommand::Repair { set: master.chunk_set(&view, &self.state) };
                self.command_cs(conn, &command, io);
            }
        }
    }

    /// Puts what happened to chunk servers, and to the cluster thereby, into the event log.
    fn tell_changes(&mut self, io: &mut dyn Io) {
        let (now, offline_after) = (io.now(), self.offline_after());
        let known: Vec<CsId> =
            self.state.cs_list().filter(|(_, r)| !r.dropped && r.shards > 0).map(|(cs, _)| cs).collect();
        let Some(master) = &mut self.master else { return };
        let changes = master.registry.take_changes(known.into_iter(), now, offline_after);
        for change in changes {
            let cs = change.cs;
            let (severity, message) = match change.now {
                Liveness::Active => (Severity::Info, format!("CS#{cs} is active")),
                Liveness::Inactive => (Severity::Warn, silent_text(cs, change.silent_s, "inactive")),
                Liveness::Offline => (Severity::Warn, silent_text(cs, change.silent_s, "offline")),
            };
            self.log_event("MDS", severity, message, io);
            if let Some(master) = &mut self.master {
                master.repair.look_at_server(cs, &self.state);
                if change.now == Liveness::Active {
                    master.repair.scan_anew(); // what had no good place may have one there
                }
            }
        }
        let (status, text) = self.cluster_health(now);
        if status != "unknown" {
            self.tell_filling(io);
        }
        let Some(master) = &mut self.master else { return };
        if status != "unknown" && master.told_health.as_ref() != Some(&text) {
            master.told_health = Some(text.clone());
            let severity = match status {
                "healthy" => Severity::Info,
                "degraded" => Severity::Warn,
                _ => Severity::Err,
            };
            self.log_event("MDS", severity, text, io);
        }
    }

    /// Each ten percent more in use.
    fn tell_filling(&mut self, io: &mut dyn Io) {
        let (total, free) = self.physical_bytes();
        let percent = (total.saturating_sub(free) * 100).checked_div(total).unwrap_or(0);
        let Some(master) = &mut self.master else { return };
        if let Some(step) = master.filling.step(percent) {
            let severity = if step >= space::FULL_PERCENT { Severity::Warn } else { Severity::Info };
            self.log_event("MDS", severity, format!("The cluster is filled up to {step}%"), io);
        }
    }

    /// Servers that were slow are tried again.
    fn tell_rested(&mut self, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        let rested = master.registry.take_rested(io.now());
        for &cs in &rested {
            master.repair.look_at_server(cs, &self.state);
        }
        for cs in rested {
            self.log_event("MDS", Severity::Info, format!("CS#{cs} was slow and is tried again"), io);
        }
    }

    fn tell_lagging(&mut self, io: &mut dyn Io) {
        let commit = self.consensus.commit();
        let mut members = self.consensus.members();
        members.retain(|(id, _)| *id != self.me);
        for (id, progress) in members {
            let behind = progress.matched + LAG_ENTRIES < commit;
            let Some(master) = &mut self.master else { return };
            if !behind {
                master.lagging.remove(&id);
            } else if master.lagging.insert(id) {
                let addr = self.client_addr_of(id).map_or_else(String::new, |a| format!(" ({a})"));
                let message = format!("MDS#{id}{addr} lags behind for more than {LAG_ENTRIES} rounds");
                self.log_event("JRN", Severity::Err, message, io);
            }
        }
    }

    fn repeat_deletes(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let Some(master) = self.master.as_mut().filter(|m| m.deletes_at <= now) else { return };
        master.deletes_at = now.after(REPEAT_DELETES);
        let servers: Vec<CsId> = self.state.cs_list().map(|(cs, _)| cs).collect();
        for cs in servers {
            let chunks: Vec<ChunkId> = self.state.pending_deletes(cs).take(CHUNKS_PER_COMMAND).collect();
            self.delete_chunks(cs, chunks, io);
        }
    }

    /// Servers that were away, or came to another master, hear again what they have to make.
    fn repeat_forks(&mut self, io: &mut dyn Io) {
        let forks: Vec<ChunkId> = self.state.forks().collect();
        forks.into_iter().for_each(|to| self.ask_for_fork(to, io));
    }

    /// Queues a change of a set asked for by somebody, or answers at once if there is none.
    pub(super) fn change_sets(
        &mut self,
        conn: ConnId,
        head: Head,
        from_cs: bool,
        chunks: Vec<ChunkId>,
        changes: Vec<SetChange>,
    ) {
        if let Some(master) = &mut self.master {
            master.sets.ask(conn, head, from_cs, chunks, changes);
        }
    }
}

fn silent_text(cs: CsId, seconds: u64, state: &str) -> String {
    format!("CS#{cs} has not registered during the last {seconds} sec and is marked as {state}")
}
