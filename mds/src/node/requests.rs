//! What clients and tools ask.
//!
//! Mutations become proposals. Reads wait until the quorum has confirmed that this server is still the master. Refresh
//! (a client could not use a chunk) is on the path of a fail-over: it waits for nothing but its commit when the master
//! has seen the failure itself, and at most [`SECOND_LOOK`] when only the client has.

use super::master::{Parked, Patience, Read, Request, Waiter};
use super::server::Server;
use crate::cs_registry::GRACE;
use crate::placement::{self, CsView, PlacementError};
use crate::raft_log::MAX_COMMAND_BYTES;
use crate::state::{ChunkView, Command, Op, Placement, Reply, SetAction, SetChange};
use shards::{Channel, ConnId, Io};
use std::time::Duration;
use wire::cs_api::{CsReply, CsRequest};
use wire::license::LicenseStatus;
use wire::mds_api::{FileKind, KeyStep, MdsReply, MdsRequest, Severity};
use wire::{ChunkId, ClientId, CsId, Epoch, FileId, Frame, Head, LeaseId, Status};

/// A client may see the death of a CS a moment before this server: its complaint is looked at again until then.
const SECOND_LOOK: Duration = Duration::from_millis(30);
/// Limits of list requests, so that an answer fits into a frame.
const MAX_ENTRIES: u32 = 4096;
const MAX_EVENTS: u32 = 1000;
/// Chunks in one Map, Allocate or ListChunks.
const MAX_CHUNKS: u32 = 4096;
const SET_GROUP_ID: u32 = 0o2000;
/// Longest unit of a request that goes into the log, bytes; the rest of a command is small.
const MAX_REQUEST_BYTES: usize = MAX_COMMAND_BYTES / 2;

impl Server {
    pub(super) fn on_mds_frame(&mut self, conn: ConnId, frame: Frame, io: &mut dyn Io) -> Result<(), String> {
        let request = wire::decode!(MdsRequest, &frame.meta)?;
        if matches!(request, MdsRequest::AddNode(_)) {
            return Err("a certificate is only for who has just given the password".into());
        }
        let is_secret =
            matches!(request, MdsRequest::SetPassword(_) | MdsRequest::ChangeKey(KeyStep::Begin(_)));
        if is_secret && io.channel(conn) == Channel::Plain {
            let detail = "passwords and keys are changed through TLS only".to_string();
            self.refuse(conn, frame.head, false, Status::NotEncrypted, detail, None, io);
            return Ok(());
        }
        if frame.meta.len() > MAX_REQUEST_BYTES {
            let detail = format!("a request of {} bytes is too long", frame.meta.len());
            self.refuse(conn, frame.head, false, Status::InvalidArgument, detail, None, io);
            return Ok(());
        }
        self.request(conn, frame.head, Request::Mds(request), io);
        Ok(())
    }

    pub(super) fn on_mds_request(
        &mut self,
        conn: ConnId,
        head: Head,
        request: MdsRequest,
        patience: Patience,
        io: &mut dyn Io,
    ) {
        match request {
            MdsRequest::Refresh { chunk, epoch, unreachable } => {
                self.refresh(conn, head, chunk, epoch, unreachable, patience, io);
            }
            MdsRequest::ReportBadReplica { chunk, epoch, cs } => {
                tracing::warn!(name: "bad_replica", chunk = chunk.0, cs = cs.0);
                let action = SetAction::Damaged { cs, force: false };
                self.change_sets(conn, head, false, vec![chunk], vec![SetChange { chunk, epoch, action }]);
            }
            MdsRequest::Allocate { client, file, lease, first, count } => {
                self.heard(client, conn, io);
                self.allocate(conn, head, Asked { client, file, lease, first, count }, patience, io);
            }
            MdsRequest::Create { .. } => self.create(conn, head, &request, io),
            MdsRequest::LoadLicense { text, renew } => self.load_license(conn, head, &text, renew, io),
            MdsRequest::RemoveCs { cs, force } => self.remove_cs(conn, head, cs, force, patience, io),
            MdsRequest::CancelRemoval { cs } => self.cancel_removal(conn, head, cs, io),
            MdsRequest::TakeOut { node } if self.refuse_taking_out(conn, head, node, io) => {}
            MdsRequest::ChangeKey(KeyStep::Finish { force: false })
                if self.refuse_early_finish(conn, head, io) => {}
            MdsRequest::RemoveMds { id } if self.refuse_mds_removal(conn, head, id, io) => {}
            MdsRequest::Open { .. } if self.refuse_while_holders_are_away(conn, head, &request, io) => {}
            request => match Command::from_request(head.request, io.wall_ms(), &request) {
                Some(command) => self.mutate(conn, head, &command, io),
                None => self.read(conn, head, Request::Mds(request), patience, io),
            },
        }
    }

    fn heard(&mut self, client: ClientId, conn: ConnId, io: &mut dyn Io) {
        if let Some(master) = &mut self.master {
            master.sessions.heard(client, conn, io.now());
        }
    }

    /// All who keep a client from opening a file are away: it may wait for the end of their sessions. (Whoever is there
    /// is named by the refusal of the command.)
    fn refuse_while_holders_are_away(
        &mut self,
        conn: ConnId,
        head: Head,
        open: &MdsRequest,
        io: &mut dyn Io,
    ) -> bool {
        let (MdsRequest::Open { client, file, mode, .. }, Some(master)) = (open, &self.master) else {
            return false;
        };
        let holders: Vec<ClientId> = self.state.holders_against(*client, *file, *mode).collect();
        if holders.is_empty() || !holders.iter().all(|holder| master.sessions.is_away(*holder)) {
            return false;
        }
        let detail = "the client that has it open is away; its lease ends soon".to_string();
        self.refuse(conn, head, false, Status::HolderAway, detail, None, io);
        true
    }

    pub(super) fn mutate(&mut self, conn: ConnId, head: Head, command: &Command, io: &mut dyn Io) {
        if let Command::Client { client, .. } = command {
            self.heard(*client, conn, io);
        }
        if let Err(waiter) = self.propose(command, Waiter::Client { conn, head }) {
            self.refuse_waiter(waiter, io);
        }
    }

    pub(super) fn read(
        &mut self,
        conn: ConnId,
        head: Head,
        request: Request,
        patience: Patience,
        io: &mut dyn Io,
    ) {
        if let Request::Mds(MdsRequest::KeepAlive { client, generation }) = &request {
            self.heard(*client, conn, io);
            self.net.shows(conn, *generation);
        }
        if let Some(master) = &mut self.master {
            master.reads.push(Read { conn, head, request: limited(request), patience });
        }
    }

    /// Answers reads whose turn has come.
    pub(super) fn serve_reads(&mut self, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        for read in master.reads.take_ready(self.applied) {
            match &read.request {
                Request::Mds(request) => self.serve_read(&read, request, io),
                Request::Cs(CsRequest::AskSet { chunk }) => {
                    let Some(master) = &self.master else { return };
                    let sets =
                        self.state.chunk(*chunk).iter().map(|v| master.chunk_set(v, &self.state)).collect();
                    self.reply_cs(read.conn, read.head, &CsReply::Sets { sets }, io);
                }
                Request::Cs(CsRequest::MayGiveUp { chunk, epoch }) => {
                    let asker = self.master.as_ref().and_then(|m| m.registry.shard_at(read.conn));
                    let Some((cs, _)) = asker else { continue };
                    let now = io.now();
                    let verdict = self.state.may_give_up(cs, *chunk, *epoch, &|cs| self.liveness(cs, now));
                    let reply = match verdict {
                        Ok(()) => CsReply::Done,
                        Err(detail) => CsReply::Failed { status: Status::Busy, detail, master: None },
                    };
                    self.reply_cs(read.conn, read.head, &reply, io);
                }
                Request::Cs(_) => {}
            }
        }
    }

    fn serve_read(&mut self, read: &Read, request: &MdsRequest, io: &mut dyn Io) {
        let reply = match request {
            MdsRequest::KeepAlive { client, .. } if self.state.session_exists(*client) => MdsReply::Alive {
                revoked: self.state.revoked_of(*client),
                mds: self.mds_addrs(),
                certificate: self.newer_certificate(read.conn),
            },
            MdsRequest::KeepAlive { client, .. } => {
                failed(Status::StaleHandle, format!("session {client} has ended: open a new one"))
            }
            MdsRequest::StatFs => MdsReply::Fs(self.fs_stat(io.now())),
            MdsRequest::ClusterStat => MdsReply::Stat(Box::new(self.cluster_stat(false, io.now()))),
            MdsRequest::ListServices => MdsReply::Stat(Box::new(self.cluster_stat(true, io.now()))),
            MdsRequest::FileChunks { file } => match self.file_chunks(*file, io.now()) {
                Ok(counts) => MdsReply::Chunks(counts),
                Err(refusal) => failed(refusal.status, refusal.detail),
            },
            MdsRequest::Explain { target } => match self.explain(target, io.now()) {
                Ok(story) => MdsReply::Explained(Box::new(story)),
                Err(refusal) => failed(refusal.status, refusal.detail),
            },
            MdsRequest::ListNodes => self.list_nodes(),
            MdsRequest::Renew => self.renew(read.conn),
            MdsRequest::GetLicense => self.get_license(io),
            MdsRequest::RemovalStat { cs } => self.removal_stat(*cs),
            // As for the removal itself: who is there is not known yet.
            MdsRequest::MayRemoveCs { .. } if self.in_grace(io) && !read.patience.is_over(io.now()) => {
                return self.park(read.conn, read.head, request.clone(), read.patience, GRACE, io);
            }
            MdsRequest::MayRemoveCs { cs, force } => match self.may_remove_cs(*cs, *force, io.now()) {
                Ok(()) => MdsReply::Done,
                Err((status, why)) => failed(status, why),
            },
            MdsRequest::MayRemoveMds { id } => match self.why_not_remove(*id) {
                None => MdsReply::Done,
                Some(why) => failed(Status::InvalidArgument, why),
            },
            MdsRequest::Refresh { chunk, .. } => self.map_of(*chunk),
            request => match self.state.query(request) {
                Some(Reply::Maps(views))
                    if !read.patience.is_over(io.now()) && self.awaits_addresses(&views, io) =>
                {
                    return self.park(read.conn, read.head, request.clone(), read.patience, GRACE, io);
                }
                Some(reply) => {
                    let Some(master) = &self.master else { return };
                    reply.into_wire(&|cs, chunk| master.addr_of(cs, chunk))
                }
                None => failed(Status::NotSupported, "this server does not know the request".into()),
            },
        };
        self.reply(read.conn, read.head, &reply, io);
    }

    fn map_of(&self, chunk: ChunkId) -> MdsReply {
        match (self.state.chunk(chunk), &self.master) {
            (Some(view), Some(master)) => {
                MdsReply::Maps { chunks: vec![view.to_map(&|cs, chunk| master.addr_of(cs, chunk))] }
            }
            _ => failed(Status::UnknownChunk, format!("chunk {chunk} does not exist (any more)")),
        }
    }

    pub(super) fn in_grace(&self, io: &mut dyn Io) -> bool {
        self.master.as_ref().is_some_and(|m| m.registry.in_grace(io.now()))
    }

    /// Whether servers of these chunks may still be on their way to this new master.
    fn awaits_addresses(&self, views: &[ChunkView], io: &mut dyn Io) -> bool {
        let Some(master) = self.master.as_ref().filter(|m| m.registry.in_grace(io.now())) else {
            return false;
        };
        views.iter().any(|v| v.in_sync().any(|cs| master.registry.addr_for(cs, v.chunk).is_none()))
    }
}

// Requests that wait for chunk servers.
impl Server {
    /// A request that waits again waits no longer than before.
    pub(super) fn park(
        &mut self,
        conn: ConnId,
        head: Head,
        request: MdsRequest,
        patience: Patience,
        wait: Duration,
        io: &mut dyn Io,
    ) {
        let until = match patience {
            Patience::Fresh => io.now().after(wait),
            Patience::Until(end) => end,
        };
        if let Some(master) = &mut self.master {
            master.parked.push(Parked { until, conn, head, request });
        }
    }

    /// Looks again at requests that wait: after a chunk server came or went, and from time to time.
    pub(super) fn retry_parked(&mut self, io: &mut dyn Io) {
        let Some(master) = &mut self.master else { return };
        for parked in std::mem::take(&mut master.parked) {
            self.on_mds_request(parked.conn, parked.head, parked.request, Patience::Until(parked.until), io);
        }
    }

    /// The asker could not use the chunk.
    fn refresh(
        &mut self,
        conn: ConnId,
        head: Head,
        chunk: ChunkId,
        epoch: Epoch,
        unreachable: Vec<CsId>,
        patience: Patience,
        io: &mut dyn Io,
    ) {
        let (Some(master), now) = (&self.master, io.now()) else { return };
        let view = self.state.chunk(chunk).filter(|v| v.epoch == epoch);
        let Some(view) = view else {
            let request = Request::Mds(MdsRequest::Refresh { chunk, epoch, unreachable });
            return self.read(conn, head, request, patience, io);
        };
        // Complaints are believed when this server can't reach the CS either. A dead primary needs no complaint.
        let primary = view.primary();
        let gone = |cs: &CsId| master.registry.is_gone(*cs, chunk, now);
        let suspects = |cs: &CsId| unreachable.contains(cs) || Some(*cs) == primary;
        let failed: Vec<CsId> = view.in_sync().filter(suspects).filter(gone).collect();
        if !failed.is_empty() {
            let action = SetAction::Drop { cs: failed, force: false };
            return self.change_sets(
                conn,
                head,
                false,
                vec![chunk],
                vec![SetChange { chunk, epoch, action }],
            );
        }
        let request = MdsRequest::Refresh { chunk, epoch, unreachable };
        let MdsRequest::Refresh { unreachable, .. } = &request else { return };
        let complains = view.in_sync().any(|cs| unreachable.contains(&cs));
        if complains && !patience.is_over(now) {
            return self.park(conn, head, request, patience, SECOND_LOOK, io);
        }
        self.read(conn, head, Request::Mds(request), patience, io);
    }

    fn allocate(&mut self, conn: ConnId, head: Head, asked: Asked, patience: Patience, io: &mut dyn Io) {
        let Asked { client, file, lease, first, count } = asked;
        let count = count.min(MAX_CHUNKS);
        let missing = match self.state.missing_chunks(client, file, lease, first, count) {
            Ok(missing) => missing,
            Err(refusal) => return self.refuse(conn, head, false, refusal.status, refusal.detail, None, io),
        };
        if missing.is_empty() && self.state.chunks_to_fork(file, first, count).is_empty() {
            let request = Request::Mds(MdsRequest::Map { file, first, count });
            return self.read(conn, head, request, patience, io);
        }
        let license = self.master.as_ref().map_or(LicenseStatus::Free, |m| m.license);
        if !license.lets_grow() {
            let detail = format!("the license is {}", license.explained());
            return self.refuse(conn, head, false, Status::NoSpace, detail, None, io);
        }
        match self.place(file, &missing, io) {
            Ok(placements) => {
                let op = Op::Allocate { file, lease, first, count, placements };
                let command = Command::Client { client, request: head.request, time_ms: io.wall_ms(), op };
                self.mutate(conn, head, &command, io);
            }
            Err(_) if !patience.is_over(io.now()) && self.in_grace(io) => {
                let request = MdsRequest::Allocate { client, file, lease, first, count };
                self.park(conn, head, request, patience, GRACE, io);
            }
            Err(error) => self.allocation_failed(conn, head, file, &error, io),
        }
    }

    /// A directory with the set-group-ID bit gives its group to what is made in it, and the bit to directories. Whoever
    /// creates a file and opens it will write to it: its first chunk is made with it, if there is a place.
    fn create(&mut self, conn: ConnId, head: Head, request: &MdsRequest, io: &mut dyn Io) {
        let Some(mut command) = Command::from_request(head.request, io.wall_ms(), request) else { return };
        if let Command::Client { op: Op::Create { parent, kind, mode, gid, open, first, .. }, .. } =
            &mut command
        {
            if let Ok(above) = self.state.attr(*parent)
                && above.mode & SET_GROUP_ID != 0
            {
                *gid = above.gid;
                *mode |= if *kind == FileKind::Directory { SET_GROUP_ID } else { 0 };
            }
            if *open
                && *kind == FileKind::File
                && self.master.as_ref().is_some_and(|m| m.license.lets_grow())
                && let Ok(placements) = self.place(*parent, &[0], io)
            {
                *first = placements.into_iter().next().map_or_else(Vec::new, |p| p.replicas);
            }
        }
        self.mutate(conn, head, &command, io);
    }

    /// Completes the answer to who has opened a file: where its first chunk lies.
    pub(super) fn add_first_chunk(&self, reply: &mut MdsReply, io: &mut dyn Io) {
        let (MdsReply::Created { attr, lease: Some(_), first, .. } | MdsReply::Opened { attr, first, .. }) =
            reply
        else {
            return;
        };
        let views = self.state.map(attr.file, 0, 1).unwrap_or_default();
        if let Some(master) = &self.master
            && let [view] = &views[..]
            && !self.awaits_addresses(&views, io)
        {
            *first = Some(Box::new(view.to_map(&|cs, chunk| master.addr_of(cs, chunk))));
        }
    }

    /// Chooses servers for each of the chunks.
    fn place(
        &mut self,
        file: FileId,
        missing: &[u32],
        io: &mut dyn Io,
    ) -> Result<Vec<Placement>, PlacementError> {
        let policy = self.state.policy(file).unwrap_or_else(|_| self.state.root_policy());
        let registered = self.state.cs_list().filter(|(_, r)| !r.dropped && r.shards > 0).count();
        let mut placements = Vec::with_capacity(missing.len());
        let mut candidates = self.candidates(io.now());
        for &index in missing {
            let views: Vec<&CsView> = candidates.iter().collect();
            let (count, least) = (usize::from(policy.normal), usize::from(policy.minimum));
            let chosen =
                placement::choose(&views, &policy, count, least, &[], registered, &mut || io.random())?;
            for view in candidates.iter_mut().filter(|view| chosen.contains(&view.cs)) {
                view.load += 1;
            }
            if let Some(master) = &mut self.master {
                chosen.iter().for_each(|cs| master.registry.given(*cs));
            }
            placements.push(Placement { index, replicas: chosen });
        }
        Ok(placements)
    }

    fn allocation_failed(
        &mut self,
        conn: ConnId,
        head: Head,
        file: FileId,
        error: &PlacementError,
        io: &mut dyn Io,
    ) {
        let now = io.now();
        let active = self
            .state
            .cs_list()
            .filter(|(cs, r)| !r.dropped && self.liveness(*cs, now) == crate::state::Liveness::Active)
            .count();
        let least = self.state.policy(file).map_or(1, |p| usize::from(p.minimum));
        let PlacementError::TooFew { wanted, available, registered } = error;
        let from = self.net.addr_of(conn).map_or_else(|| "?".into(), |a| a.ip().to_string());
        let path = self.state.path_of(file);
        let message = format!(
            "Failed to allocate {wanted} replicas for {path} by request from {from}: {available} out of {registered} \
             chunk servers are available"
        );
        // Servers that are there but full are another matter than servers that are not there.
        let status = if active >= least { Status::NoSpace } else { Status::TooFewServers };
        if self.master.as_mut().is_some_and(|m| m.may_complain(now)) {
            self.log_event("MDS", Severity::Warn, message.clone(), io);
        }
        self.refuse(conn, head, false, status, message, None, io);
    }
}

struct Asked {
    client: ClientId,
    file: FileId,
    lease: LeaseId,
    first: u32,
    count: u32,
}

/// The request with its limits cut to what fits into an answer.
fn limited(request: Request) -> Request {
    let Request::Mds(mut request) = request else { return request };
    match &mut request {
        MdsRequest::ReadDir { limit, .. } => *limit = (*limit).min(MAX_ENTRIES),
        MdsRequest::Events { limit, .. } => *limit = (*limit).min(MAX_EVENTS),
        MdsRequest::Map { count, .. } => *count = (*count).min(MAX_CHUNKS),
        MdsRequest::ListChunks { limit, .. } => *limit = (*limit).min(MAX_CHUNKS),
        _ => {}
    }
    Request::Mds(request)
}

fn failed(status: Status, detail: String) -> MdsReply {
    MdsReply::Failed { status, detail, master: None }
}
