//! Removal of chunk servers: whether it can be, its start and its end. The replicas move as repair moves others
//! ([`crate::placement::Deviation`]); here is what the administrator is told.

use super::master::{Patience, Waiter};
use super::server::Server;
use crate::cs_registry::GRACE;
use crate::placement::{self, CsView};
use crate::state::{ChunkView, Command, Internal, Liveness};
use shards::{ConnId, Io, Timestamp};
use std::collections::BTreeMap;
use wire::mds_api::{FailureDomain, MdsReply, MdsRequest, RemovalStat};
use wire::{ChunkId, CsId, Head, Status};

impl Server {
    pub(super) fn remove_cs(
        &mut self,
        conn: ConnId,
        head: Head,
        cs: CsId,
        force: bool,
        patience: Patience,
        io: &mut dyn Io,
    ) {
        let now = io.now();
        if self.in_grace(io) && !patience.is_over(now) {
            // Who is there is not known yet.
            return self.park(conn, head, MdsRequest::RemoveCs { cs, force }, patience, GRACE, io);
        }
        if let Err((status, why)) = self.may_remove_cs(cs, force, now) {
            return self.refuse(conn, head, false, status, format!("{why}. Nothing was changed"), None, io);
        }
        let op = match force {
            true => Internal::DropCs { cs, force: true },
            false => Internal::DrainCs { cs, draining: true },
        };
        self.propose_for(conn, head, op, io);
    }

    pub(super) fn may_remove_cs(
        &self,
        cs: CsId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), (Status, String)> {
        match force {
            true => self.can_drop(cs, now),
            false => self.can_drain(cs, now),
        }
    }

    pub(super) fn cancel_removal(&mut self, conn: ConnId, head: Head, cs: CsId, io: &mut dyn Io) {
        let refusal = match self.state.cs(cs) {
            Some(r) if r.draining => {
                return self.propose_for(conn, head, Internal::DrainCs { cs, draining: false }, io);
            }
            Some(r) if r.dropped => format!("CS#{cs} has been removed: make a new one with make-cs"),
            Some(_) => format!("CS#{cs} is not being removed: there is nothing to cancel"),
            None => no_such(cs),
        };
        self.refuse(conn, head, false, Status::InvalidArgument, refusal, None, io);
    }

    fn propose_for(&mut self, conn: ConnId, head: Head, op: Internal, io: &mut dyn Io) {
        let command = Command::internal(io.wall_ms(), op);
        if let Err(waiter) = self.propose(&command, Waiter::Client { conn, head }) {
            self.refuse_waiter(waiter, io);
        }
    }

    pub(super) fn removal_stat(&self, cs: CsId) -> MdsReply {
        let (Some(record), Some(master)) = (self.state.cs(cs), &self.master) else {
            return MdsReply::Failed { status: Status::NotFound, detail: no_such(cs), master: None };
        };
        MdsReply::Removal(RemovalStat {
            cs,
            draining: record.draining,
            dropped: record.dropped,
            replicas_left: self.state.replica_count(cs),
            without_place: master.repair.without_place(cs, &self.state),
        })
    }

    /// Servers that were to leave and hold nothing any more are dropped.
    pub(super) fn drop_drained(&mut self, io: &mut dyn Io) {
        let empty = |(cs, r): (CsId, &crate::state::CsRecord)| {
            (r.draining && !r.dropped && self.state.replica_count(cs) == 0).then_some(cs)
        };
        let drained: Vec<CsId> = self.state.cs_list().filter_map(empty).collect();
        for cs in drained {
            self.propose_own(Internal::DropCs { cs, force: false }, io);
        }
    }

    /// Whether every chunk has a good replica on another server that is there.
    fn can_drop(&self, cs: CsId, now: Timestamp) -> Result<(), (Status, String)> {
        self.is_known(cs)?;
        let is_safe = |view: &ChunkView| {
            let mut others = view.in_sync().filter(|other| *other != cs);
            others.any(|other| self.liveness(other, now) == Liveness::Active)
        };
        let needs_it = |view: &ChunkView| view.in_sync().any(|other| other == cs) && !is_safe(view);
        match self.needed(cs, &needs_it) {
            None => Ok(()),
            Some((count, example)) => Err((
                Status::InvalidArgument,
                format!(
                    "CS#{cs} holds the only good replica of {count} chunks (one is in {example}): their data would be \
                     lost. Remove it without -f, so that they are copied first; if it is down, start it, or delete \
                     these files"
                ),
            )),
        }
    }

    /// Whether all it holds can go elsewhere.
    fn can_drain(&self, cs: CsId, now: Timestamp) -> Result<(), (Status, String)> {
        self.is_known(cs)?;
        let is_there = self.liveness(cs, now) == Liveness::Active;
        let is_last = |view: &ChunkView| view.in_sync().all(|other| other == cs);
        if !is_there && let Some((count, example)) = self.needed(cs, &is_last) {
            let why = format!(
                "CS#{cs} is not there, and holds the only good replica of {count} chunks (one is in {example}): start \
                 it first"
            );
            return Err((Status::InvalidArgument, why));
        }
        let others: Vec<CsView> = self.candidates(now).into_iter().filter(|v| v.cs != cs).collect();
        self.has_room(cs, &others)?;
        self.has_domains(cs, &others)
    }

    fn is_known(&self, cs: CsId) -> Result<(), (Status, String)> {
        match self.state.cs(cs) {
            None => Err((Status::NotFound, no_such(cs))),
            Some(r) if r.dropped => Err((Status::NotFound, format!("CS#{cs} has been removed already"))),
            Some(_) => Ok(()),
        }
    }

    /// How many chunks of the server are so, and the path of one.
    fn needed(&self, cs: CsId, is_so: &dyn Fn(&ChunkView) -> bool) -> Option<(usize, String)> {
        let chunks = self.state.chunks_on(cs, ChunkId(0)).filter_map(|c| self.state.chunk(c));
        let mut such = chunks.filter(is_so);
        let first = such.next()?;
        Some((1 + such.count(), self.state.path_of(first.file)))
    }

    fn has_room(&self, cs: CsId, others: &[CsView]) -> Result<(), (Status, String)> {
        let Some(master) = &self.master else { return Ok(()) };
        let space = master.registry.space(cs);
        let used = space.total_bytes.saturating_sub(space.free_bytes);
        let room: u64 = others.iter().map(|v| self.room_bytes(v)).sum();
        if self.state.replica_count(cs) == 0 || used <= room {
            return Ok(());
        }
        let why = format!(
            "CS#{cs} holds {} MB and the other chunk servers have room for {} MB: add a chunk server, or delete something",
            used >> 20,
            room >> 20
        );
        Err((Status::NoSpace, why))
    }

    /// Whether the others are in as many failure domains as its chunks need, or as there are now.
    fn has_domains(&self, cs: CsId, others: &[CsView]) -> Result<(), (Status, String)> {
        let views = self.cs_views();
        let Some(own) = views.get(&cs) else { return Ok(()) };
        let with_it: Vec<CsView> = others.iter().chain([own]).cloned().collect();
        let mut seen: BTreeMap<(FailureDomain, u8), u64> = BTreeMap::new();
        for view in self.state.chunks_on(cs, ChunkId(0)).filter_map(|c| self.state.chunk(c)) {
            let Ok(policy) = self.state.policy(view.file) else { continue };
            *seen.entry((policy.domain, policy.normal)).or_default() += 1;
        }
        for ((domain, normal), chunks) in seen {
            let needed = usize::from(normal);
            let (without, with) = (placement::domains(others, domain), placement::domains(&with_it, domain));
            let name = domain.to_string();
            let why = if others.len() < needed {
                format!("{} other chunk servers can take replicas", others.len())
            } else if without < needed.min(with) {
                format!("the other chunk servers are in {without} failure domains ({name})")
            } else {
                continue;
            };
            let why = format!(
                "{chunks} chunks of CS#{cs} have replicas={normal} and failure-domain={name}, and {why}: add a chunk \
                 server, or ask for less with set-attr (if every chunk has another good replica, -f removes the \
                 server at once)"
            );
            return Err((Status::TooFewServers, why));
        }
        Ok(())
    }
}

fn no_such(cs: CsId) -> String {
    format!("there is no CS#{cs}: 'pstorage stat' lists the chunk servers")
}
