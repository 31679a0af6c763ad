//! What the shards of chunk servers ask and tell.

use super::master::{Patience, Request, Waiter};
use super::server::Server;
use crate::cs_registry::{HEARTBEAT_MS, Registration, SlowVerdict};
use crate::placement::CsView;
use crate::state::config;
use crate::state::{ChunkView, Command, Internal, Liveness, SetAction, SetChange};
use shards::sabotage::{Sabotage, on};
use shards::service::REMOVED;
use shards::{ConnId, Io, Timestamp};
use std::cell::LazyCell;
use std::time::Duration;
use wire::cs_api::{ChunkReport, CsCommand, CsReply, CsRequest};
use wire::mds_api::Severity;
use wire::{ChunkId, CsId, Frame, Head, Role, ShardIndex, Status, shard_of};

/// Longest text of a CS in the event log, bytes.
const MAX_EVENT_BYTES: usize = 1024;

impl Server {
    /// `cs` and `shard` are who the handshake says is talking.
    pub(super) fn on_cs_frame(
        &mut self,
        conn: ConnId,
        cs: CsId,
        shard: ShardIndex,
        frame: Frame,
        io: &mut dyn Io,
    ) -> Result<(), String> {
        let request = wire::decode!(CsRequest, &frame.meta)?;
        if let CsRequest::Register { cs: named, shard: at, shards, .. } = &request {
            if (*named, *at) != (cs, shard) {
                return Err(format!("registration of shard {at} of CS#{named} by shard {shard} of CS#{cs}"));
            }
            if at.0 >= *shards {
                return Err(format!("shard {at} of a chunk server with {shards} shards"));
            }
        }
        self.request(conn, frame.head, Request::Cs(request), io);
        Ok(())
    }

    pub(super) fn on_cs_request(&mut self, conn: ConnId, head: Head, request: CsRequest, io: &mut dyn Io) {
        if matches!(request, CsRequest::Register { .. }) {
            return self.register(conn, head, request, io);
        }
        let Some((cs, _)) = self.master.as_ref().and_then(|m| m.registry.shard_at(conn)) else {
            let detail = "this shard is not registered here: register first".to_string();
            return self.refuse(conn, head, true, Status::StaleHandle, detail, None, io);
        };
        match request {
            CsRequest::Register { .. } => {}
            CsRequest::Heartbeat { space, load, generation } => {
                self.net.shows(conn, generation);
                if let Some(master) = &mut self.master {
                    master.registry.heartbeat(conn, space, load, io.now());
                }
                let scrub_period_s = self.state.config_number(config::SCRUB_PERIOD_HOURS) * 3600;
                let copy_bytes_per_s = self.state.config_number(config::COPY_RATE_MB) << 20;
                let settings = CsReply::Settings {
                    scrub_period_s,
                    copy_bytes_per_s,
                    encrypt: self.encrypts(),
                    taken_out: self.state.taken_out().into_iter().collect(),
                    certificate: self.newer_certificate(conn),
                    mds: self.mds_addrs(),
                    lease_timeout_ms: self.state.config_number(config::LEASE_TIMEOUT_MS) as u32,
                };
                self.reply_cs(conn, head, &settings, io);
            }
            CsRequest::Report { chunks, .. } => self.report(conn, head, cs, &chunks, io),
            CsRequest::Suspect { chunks, cs: suspects, reason } => {
                self.suspect(conn, head, cs, &chunks, &suspects, &reason, io);
            }
            CsRequest::Slow { chunks, cs: slow, takes_us, others_us } => {
                let text = format!("its writes took {takes_us} us where others took {others_us} us");
                self.slow(conn, head, cs, &chunks, slow, &text, io);
            }
            CsRequest::Damaged { chunks, reason } => self.damaged(conn, head, cs, &chunks, &reason, io),
            CsRequest::Joined { chunk, epoch, cs: learner } => {
                self.joined(conn, head, cs, ChunkReport { chunk, epoch }, learner, io);
            }
            CsRequest::AskSet { .. } | CsRequest::MayGiveUp { .. } => {
                self.read(conn, head, Request::Cs(request), Patience::Fresh, io)
            }
            CsRequest::Deleted { chunks } => self.tell_log(conn, head, Internal::Deleted { cs, chunks }, io),
            CsRequest::Forked { to, sequence } => {
                self.tell_log(conn, head, Internal::Forked { cs, to, sequence }, io);
            }
            CsRequest::Gone { chunk, first_block, blocks } => {
                tracing::error!(name: "blocks_gone", cs = cs.0, chunk = chunk.0, first_block, blocks);
                self.tell_log(conn, head, Internal::BlocksGone { cs, chunk, first_block, blocks }, io);
            }
            CsRequest::Event { severity, message } => {
                let mut message = format!("CS#{cs} {message}");
                let end =
                    (0..=message.len().min(MAX_EVENT_BYTES)).rev().find(|i| message.is_char_boundary(*i));
                message.truncate(end.unwrap_or(0));
                self.tell_log(conn, head, Internal::Event { system: "CS".into(), severity, message }, io);
            }
        }
    }

    fn tell_log(&mut self, conn: ConnId, head: Head, op: Internal, io: &mut dyn Io) {
        let command = Command::internal(io.wall_ms(), op);
        if let Err(waiter) = self.propose(&command, Waiter::Cs { conn, head }) {
            self.refuse_waiter(waiter, io);
        }
    }

    fn register(&mut self, conn: ConnId, head: Head, request: CsRequest, io: &mut dyn Io) {
        let CsRequest::Register {
            cs,
            shard,
            shards,
            addr,
            incarnation,
            host_id,
            host,
            location,
            tier,
            space,
            flags,
        } = request
        else {
            return;
        };
        let Some(record) = self.state.cs(cs) else {
            let why = format!("CS#{cs} is not known to this cluster: make it anew with make-cs");
            return self.refuse(conn, head, true, Status::NotFound, why, None, io);
        };
        if record.dropped {
            self.command_cs(conn, &CsCommand::Expelled { why: format!("CS#{cs} {REMOVED}") }, io);
            let why = format!("CS#{cs} {REMOVED}: make it anew with make-cs");
            return self.refuse(conn, head, true, Status::NotFound, why, None, io);
        }
        if record.shards != 0 && record.shards != shards {
            let why = format!(
                "CS#{cs} has {} shards and not {shards}: the number is fixed at make-cs",
                record.shards
            );
            return self.refuse(conn, head, true, Status::InvalidArgument, why, None, io);
        }
        let same = record.host_id == host_id
            && record.host == host
            && record.location == location
            && record.tier == tier
            && record.shards == shards;
        let registration = Registration { cs, shard, shards, addr, incarnation, space, flags };
        if same {
            return self.finish_register(conn, head, &registration, io);
        }
        let op = Internal::RegisterCs { cs, host_id, host, location, tier, shards };
        let command = Command::internal(io.wall_ms(), op);
        let waiter = Waiter::Register { conn, head, registration: Box::new(registration) };
        if let Err(waiter) = self.propose(&command, waiter) {
            self.refuse_waiter(waiter, io);
        }
    }

    pub(super) fn finish_register(&mut self, conn: ConnId, head: Head, r: &Registration, io: &mut dyn Io) {
        if self.net.addr_of(conn).is_none() {
            return; // it went away while the log was written
        }
        let now = io.now();
        let Some(master) = &mut self.master else { return };
        let replaced = match master.registry.register(conn, r, now) {
            Ok(replaced) => replaced,
            Err(why) => {
                self.command_cs(conn, &CsCommand::Expelled { why: why.clone() }, io);
                return self.refuse(conn, head, true, Status::Exists, why, None, io);
            }
        };
        if let Some(old) = replaced {
            self.command_cs(old, &CsCommand::Expelled { why: "a newer session took over".into() }, io);
            let events = self.net.drop_conn(old, "replaced by a newer session", io);
            self.on_net(events, io);
        }
        tracing::info!(name: "cs_shard_registered", cs = r.cs.0, shard = r.shard.0, addr = %r.addr);
        let revoked = self.state.revoked();
        self.reply_cs(conn, head, &CsReply::Registered { heartbeat_ms: HEARTBEAT_MS, revoked }, io);
        let owned = |c: &ChunkId| shard_of(*c, r.shards) == r.shard;
        let deletes: Vec<ChunkId> = self.state.pending_deletes(r.cs).filter(owned).collect();
        self.delete_chunks(r.cs, deletes, io);
        if self.liveness(r.cs, now) == Liveness::Active
            && let Some(master) = &mut self.master
        {
            master.repair.look_at_server(r.cs, &self.state);
        }
        self.retry_parked(io);
    }

    /// A shard's connection is gone: its CS is inactive from this moment.
    pub(super) fn cs_disconnected(&mut self, conn: ConnId, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        if master.registry.disconnected(conn, io.now()).is_some() {
            self.retry_parked(io);
        }
    }

    /// Chunks a shard holds. Those it should not hold are to be deleted.
    fn report(&mut self, conn: ConnId, head: Head, cs: CsId, chunks: &[ChunkReport], io: &mut dyn Io) {
        if let Some(master) = &mut self.master {
            let known = |r: &&ChunkReport| self.state.chunk(r.chunk).is_some();
            chunks.iter().filter(known).for_each(|r| master.reported.add(r.chunk));
        }
        let strays = self.state.strays(cs, chunks);
        if strays.is_empty() {
            return self.reply_cs(conn, head, &CsReply::Done, io);
        }
        tracing::info!(name: "cs_has_strays", cs = cs.0, chunks = strays.len());
        self.tell_log(conn, head, Internal::DeleteStrays { cs, chunks: strays }, io);
    }

    /// A primary can't reach some of its replicas.
    fn suspect(
        &mut self,
        conn: ConnId,
        head: Head,
        primary: CsId,
        chunks: &[ChunkReport],
        suspects: &[CsId],
        reason: &str,
        io: &mut dyn Io,
    ) {
        tracing::warn!(name: "replicas_suspected", by = primary.0, ?suspects, chunks = chunks.len(), reason);
        let now = io.now();
        // Primaries that don't reach a server say so several times a second: only if it is gone do the others matter.
        let candidates = LazyCell::new(|| self.candidates(now));
        let mut changes = Vec::new();
        for report in chunks {
            let Some(view) = self.state.chunk(report.chunk) else { continue };
            let cs: Vec<CsId> =
                suspects.iter().copied().filter(|cs| *cs != primary && view.role_of(*cs).is_some()).collect();
            // Only the primary of this very epoch has a say; others learn the set that holds now.
            if view.epoch == report.epoch && view.primary() == Some(primary) && !cs.is_empty() {
                let force = self.may_be_replaced(&view, &cs, || &candidates, now);
                let action = SetAction::Drop { cs, force };
                changes.push(SetChange { chunk: report.chunk, epoch: report.epoch, action });
            }
        }
        drop(candidates);
        if !changes.is_empty()
            && let Some(master) = &mut self.master
        {
            suspects.iter().for_each(|cs| master.registry.suspect(*cs, now));
        }
        let asked = chunks.iter().map(|r| r.chunk).collect();
        self.change_or_answer(conn, head, asked, changes, io);
    }

    /// Whether a set need not wait for replicas though fewer than its minimum remain: their servers are gone for this one
    /// too, and another can take a copy. Until it has it writes wait, as they would anyway; then they go on.
    pub(super) fn may_be_replaced<'a>(
        &self,
        view: &ChunkView,
        lost: &[CsId],
        candidates: impl FnOnce() -> &'a [CsView],
        now: Timestamp,
    ) -> bool {
        let Some(master) = &self.master else { return false };
        let is_gone = |cs: &CsId| master.registry.is_gone(*cs, view.chunk, now);
        // One that holds a stale copy needs even less.
        let has_none = |c: &CsView| matches!(view.role_of(c.cs), None | Some(Role::Stale));
        lost.iter().all(is_gone) && candidates().iter().any(has_none)
    }

    /// A primary finds a replica, or itself, much slower than the others. It is left out for a while where it can be spared.
    fn slow(
        &mut self,
        conn: ConnId,
        head: Head,
        primary: CsId,
        chunks: &[ChunkReport],
        slow: CsId,
        text: &str,
        io: &mut dyn Io,
    ) {
        let change = |report: &ChunkReport| {
            let view = self.state.chunk(report.chunk)?;
            let left = view.in_sync().filter(|cs| *cs != slow).count();
            let spared = left >= usize::from(view.min_replicas.max(1)) && view.role_of(slow).is_some();
            let told = view.epoch == report.epoch && view.primary() == Some(primary);
            let action = SetAction::Drop { cs: vec![slow], force: false };
            (spared && told).then_some(SetChange { chunk: report.chunk, epoch: report.epoch, action })
        };
        let mut changes: Vec<SetChange> = chunks.iter().filter_map(change).collect();
        let rest = Duration::from_millis(self.state.config_number(config::SLOW_TIMEOUT_MS));
        if !changes.is_empty()
            && let Some(master) = &mut self.master
        {
            match master.registry.found_slow(slow, rest, io.now()) {
                SlowVerdict::RestsAlready => {}
                SlowVerdict::Needed => changes.clear(),
                SlowVerdict::Rests(rest) => {
                    // What it leads is slow too, and nobody sees that by comparison.
                    master.repair.look_at_server(slow, &self.state);
                    let message = format!(
                        "CS#{slow} is slow: {text}, as CS#{primary} sees it; it is left out where it can be spared, and \
                         tried again in {} sec",
                        rest.as_secs()
                    );
                    self.log_event("MDS", Severity::Warn, message, io);
                }
            }
        }
        let asked = chunks.iter().map(|r| r.chunk).collect();
        self.change_or_answer(conn, head, asked, changes, io);
    }

    /// A chunk server has found its own copy of these chunks damaged.
    fn damaged(
        &mut self,
        conn: ConnId,
        head: Head,
        cs: CsId,
        chunks: &[ChunkReport],
        reason: &str,
        io: &mut dyn Io,
    ) {
        tracing::warn!(name: "replicas_damaged", cs = cs.0, chunks = chunks.len(), reason);
        // A stale copy is the same at whatever epoch it was found damaged; any other may have been filled since.
        let change = |report: &ChunkReport| {
            let view = self.state.chunk(report.chunk)?;
            let concerned = view.epoch == report.epoch || view.role_of(cs) == Some(Role::Stale);
            let change = SetChange {
                chunk: report.chunk,
                epoch: view.epoch,
                action: SetAction::Damaged { cs, force: true },
            };
            (concerned && view.role_of(cs).is_some()).then_some(change)
        };
        let changes: Vec<SetChange> = chunks.iter().filter_map(change).collect();
        let asked = chunks.iter().map(|r| r.chunk).collect();
        self.change_or_answer(conn, head, asked, changes, io);
    }

    fn joined(
        &mut self,
        conn: ConnId,
        head: Head,
        primary: CsId,
        report: ChunkReport,
        learner: CsId,
        io: &mut dyn Io,
    ) {
        let ChunkReport { chunk, epoch } = report;
        let is_of_now = |v: &ChunkView| v.epoch == epoch && v.primary() == Some(primary);
        let view = self.state.chunk(chunk).filter(|v| is_of_now(v) || on(Sabotage::StaleSetChanges));
        let change = view.map(|_| SetChange { chunk, epoch, action: SetAction::Joined { cs: learner } });
        self.change_or_answer(conn, head, vec![chunk], change.into_iter().collect(), io);
    }

    /// Changes sets for a CS; without any change it is told the sets as they are.
    fn change_or_answer(
        &mut self,
        conn: ConnId,
        head: Head,
        chunks: Vec<ChunkId>,
        changes: Vec<SetChange>,
        io: &mut dyn Io,
    ) {
        if !changes.is_empty() {
            return self.change_sets(conn, head, true, chunks, changes);
        }
        let Some(master) = &self.master else { return };
        let views = chunks.iter().filter_map(|c| self.state.chunk(*c));
        let sets = views.map(|v| master.chunk_set(&v, &self.state)).collect();
        self.reply_cs(conn, head, &CsReply::Sets { sets }, io);
    }
}
