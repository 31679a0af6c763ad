//! What the master does when a command was applied: answers to those who wait, effects on others.

use super::master::Waiter;
use super::server::Server;
use crate::sets::Group;
use crate::state::{ChunkView, Command, Effect, Internal, Outcome, Reply, SetAction, SetChange, SetResult};
use shards::service::REMOVED;
use shards::{Buf, ConnId, Io};
use std::collections::BTreeMap;
use wire::cs_api::{CsCommand, CsReply};
use wire::mds_api::{ClientNote, MdsReply, Severity};
use wire::{ChunkId, ClientId, CsId, Frame, Kind, LeaseId, Status};

/// Chunks named in one command to a CS.
pub(super) const CHUNKS_PER_COMMAND: usize = 4096;

impl Server {
    /// Proposes what is queued and asks the quorum for the reads that wait.
    pub(super) fn launch(&mut self, io: &mut dyn Io) {
        let Some(master) = self.master.as_mut().filter(|m| m.ready) else { return };
        if let Some(number) = master.reads.launch(io.now()) {
            self.consensus.read_index(number);
        }
        if let Some(changes) = master.sets.launch() {
            let command = Command::change_sets(io.wall_ms(), changes);
            if self.propose(&command, Waiter::Sets).is_err() {
                self.sets_refused(io);
            }
        }
    }

    /// The quorum can't take more: the askers try again.
    fn sets_refused(&mut self, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        master.repair.changes_lost(&self.state);
        for group in master.sets.drain() {
            self.refuse(
                group.conn,
                group.head,
                group.from_cs,
                Status::NotReady,
                "the metadata servers are overloaded: ask again".into(),
                None,
                io,
            );
        }
    }

    /// A command of the log was applied. Only the master has anything to do then.
    pub(super) fn master_applied(&mut self, index: u64, term: u64, outcome: Outcome, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        let waiter = master.proposals.remove(&index).filter(|(t, _)| *t == term).map(|(_, w)| w);
        if let Reply::Wire(MdsReply::Session { client, .. }) = &outcome.reply {
            let conn = match &waiter {
                Some(Waiter::Client { conn, .. }) => Some(*conn),
                _ => None,
            };
            master.sessions.opened(*client, conn, io.now());
        }
        self.answer(waiter.unwrap_or(Waiter::Nobody), outcome.reply, io);
        for effect in outcome.effects {
            self.carry_out_effect(effect, io);
        }
    }

    fn answer(&mut self, waiter: Waiter, reply: Reply, io: &mut dyn Io) {
        match waiter {
            Waiter::Nobody => {}
            Waiter::Client { conn, head } => {
                let Some(master) = &self.master else { return };
                let mut reply = reply.into_wire(&|cs, chunk| master.addr_of(cs, chunk));
                self.add_first_chunk(&mut reply, io);
                self.reply(conn, head, &reply, io);
            }
            Waiter::Cs { conn, head } => {
                let reply = match reply {
                    Reply::Wire(MdsReply::Failed { status, detail, master }) => {
                        CsReply::Failed { status, detail, master }
                    }
                    _ => CsReply::Done,
                };
                self.reply_cs(conn, head, &reply, io);
            }
            Waiter::Register { conn, head, registration } => match reply {
                Reply::Wire(MdsReply::Failed { status, detail, .. }) => {
                    self.refuse(conn, head, true, status, detail, None, io);
                }
                _ => self.finish_register(conn, head, &registration, io),
            },
            Waiter::Sets => {
                if let Reply::Sets(results) = reply {
                    self.sets_applied(&results, io);
                }
            }
        }
    }

    fn sets_applied(&mut self, results: &[SetResult], io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        let (groups, own) = master.sets.applied(results);
        for (chunk, outcome) in own {
            tracing::debug!(name: "repair_change", chunk = chunk.0, ?outcome);
            master.repair.change_done(chunk, &self.state);
        }
        for group in groups {
            self.answer_group(&group, io);
        }
    }

    /// The sets that hold now of all chunks somebody asked about.
    pub(super) fn answer_group(&mut self, group: &Group, io: &mut dyn Io) {
        let Some(master) = &self.master else { return };
        let views: Vec<ChunkView> = group.chunks.iter().filter_map(|c| self.state.chunk(*c)).collect();
        if group.from_cs {
            let sets = views.iter().map(|v| master.chunk_set(v, &self.state)).collect();
            self.reply_cs(group.conn, group.head, &CsReply::Sets { sets }, io);
        } else {
            let reply = Reply::Maps(views).into_wire(&|cs, chunk| master.addr_of(cs, chunk));
            self.reply(group.conn, group.head, &reply, io);
        }
    }

    fn carry_out_effect(&mut self, effect: Effect, io: &mut dyn Io) {
        match effect {
            Effect::RevokeLeases { leases, .. } => self.revoke(&leases, io),
            Effect::TellClient { client, note } => self.tell_client(client, &note, io),
            Effect::DeleteChunks { cs, chunks } => self.delete_chunks(cs, chunks, io),
            Effect::SetChanged { view } => self.set_changed(&view, io),
            Effect::ForkBegun { to } => self.ask_for_fork(to, io),
            Effect::SessionEnded { client } => {
                if let Some(master) = &mut self.master {
                    master.sessions.ended(client);
                }
            }
            Effect::CsDropped { cs } => {
                if let Some(master) = &mut self.master {
                    master.dropped_at.insert(cs, io.now());
                }
                self.expel(cs, &format!("the chunk server {REMOVED}"), io);
            }
            Effect::PolicyChanged => {
                if let Some(master) = &mut self.master {
                    master.repair.scan_anew();
                }
            }
            Effect::Logged { event } => {
                if let Some(event) = self.state.event(event) {
                    tracing::info!(name: "event", system = event.system, severity = ?event.severity, event.message);
                }
            }
            Effect::ConfigChanged { .. } | Effect::MdsChanged { .. } => {}
        }
    }

    /// A set changed: the primary hears at once, so that it need not find out by being refused.
    fn set_changed(&mut self, view: &ChunkView, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        master.repair.look_at(view.chunk, &self.state);
        let has_learner = view.with_role(wire::Role::Learner).next().is_some();
        let conn = view.primary().and_then(|p| master.registry.conn_for(p, view.chunk));
        if let Some(conn) = conn.filter(|_| !has_learner) {
            let command = CsCommand::Repair { set: master.chunk_set(view, &self.state) };
            self.command_cs(conn, &command, io);
        }
    }

    fn revoke(&mut self, leases: &[(LeaseId, ClientId)], io: &mut dyn Io) {
        let Some(master) = &self.master else { return };
        let ids: Vec<LeaseId> = leases.iter().map(|(lease, _)| *lease).collect();
        let shards: Vec<ConnId> = master.registry.conns().collect();
        for conn in shards {
            self.command_cs(conn, &CsCommand::Revoke { leases: ids.clone() }, io);
        }
        let mut by_client: BTreeMap<ClientId, Vec<LeaseId>> = BTreeMap::new();
        for (lease, client) in leases {
            by_client.entry(*client).or_default().push(*lease);
        }
        for (client, leases) in by_client {
            self.tell_client(client, &ClientNote::Revoked { leases }, io);
        }
    }

    fn tell_client(&mut self, client: ClientId, note: &ClientNote, io: &mut dyn Io) {
        if let Some(conn) = self.master.as_ref().and_then(|master| master.sessions.conn_of(client)) {
            let head = self.net.unasked(Kind::ClientNote);
            self.net.send(conn, &Frame::new(head, &wire::encode!(note), Buf::empty()), io);
        }
    }

    /// Sends deletions to the shards that own the chunks; those without a session get them when they register.
    pub(super) fn delete_chunks(&mut self, cs: CsId, chunks: Vec<ChunkId>, io: &mut dyn Io) {
        let Some(master) = &self.master else { return };
        let mut by_conn: BTreeMap<ConnId, Vec<ChunkId>> = BTreeMap::new();
        for chunk in chunks {
            if let Some(conn) = master.registry.conn_for(cs, chunk) {
                by_conn.entry(conn).or_default().push(chunk);
            }
        }
        for (conn, chunks) in by_conn {
            for part in chunks.chunks(CHUNKS_PER_COMMAND) {
                self.command_cs(conn, &CsCommand::Delete { chunks: part.to_vec() }, io);
            }
        }
    }

    /// Asks the servers that have yet to make their parts of a fork, and who leads the original: they wait to hear from it.
    pub(super) fn ask_for_fork(&mut self, to: ChunkId, io: &mut dyn Io) {
        let Some(master) = &self.master else { return };
        let Some((from, missing)) = self.state.fork(to) else { return };
        let Some(view) = self.state.chunk(from) else { return };
        let command = CsCommand::Fork { set: master.chunk_set(&view, &self.state), to };
        let asked = missing.iter().copied().chain(view.primary().filter(|cs| !missing.contains(cs)));
        let conns: Vec<ConnId> = asked.filter_map(|cs| master.registry.conn_for(cs, from)).collect();
        conns.into_iter().for_each(|conn| self.command_cs(conn, &command, io));
        self.leave_out_who_is_gone(&view, &missing, io);
    }

    /// A fork waits for no server that is gone, as a write does not: it leaves the set of the original, where it can be spared.
    fn leave_out_who_is_gone(&mut self, view: &ChunkView, awaited: &[CsId], io: &mut dyn Io) {
        let (Some(master), now) = (&self.master, io.now()) else { return };
        let is_gone = |cs: &CsId| awaited.contains(cs) && master.registry.is_gone(*cs, view.chunk, now);
        let cs: Vec<CsId> = view.in_sync().filter(is_gone).collect();
        if cs.is_empty() {
            return;
        }
        let candidates = self.candidates(now);
        let force = self.may_be_replaced(view, &cs, || &candidates, now);
        let (chunk, epoch, action) = (view.chunk, view.epoch, SetAction::Drop { cs, force });
        self.propose_own(Internal::ChangeSets { changes: vec![SetChange { chunk, epoch, action }] }, io);
    }

    pub(super) fn expel(&mut self, cs: CsId, why: &str, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        let conns = master.registry.conns_of(cs);
        master.registry.forget(cs);
        for conn in conns {
            self.command_cs(conn, &CsCommand::Expelled { why: why.to_string() }, io);
            let events = self.net.drop_conn(conn, why, io);
            self.on_net(events, io);
        }
    }

    /// Proposes an entry of the event log.
    pub(super) fn log_event(&mut self, system: &str, severity: Severity, message: String, io: &mut dyn Io) {
        let event = Internal::Event { system: system.into(), severity, message };
        self.propose_own(event, io);
    }

    /// Proposes a command nobody waits for. If it is lost, the next look at the same thing proposes it again.
    pub(super) fn propose_own(&mut self, op: Internal, io: &mut dyn Io) {
        let _ = self.propose(&Command::internal(io.wall_ms(), op), Waiter::Nobody);
    }
}
