//! The members of the quorum: the state says who belongs to the cluster, raft's configuration follows.
//!
//! A server that is added first becomes a learner, and a voter once it has caught up: until it runs it can't cost the
//! cluster its quorum. A server that is removed leaves raft's configuration; if it is the master it hands over first.
//! One change at a time, each derived from the state, so a new master goes on where the old one stopped.
//!
//! Until raft's configuration lets a removed server go, its vote may be needed (always, if one of two is removed): it goes
//! on, and the others keep their lines to it. Raft does not tell it of its own removal; it notices that those it can
//! reach have nothing to say to it any more.

use super::server::Server;
use crate::state::{Internal, no_such_mds};
use raft::eraftpb::ConfChangeType;
use shards::sabotage::{Sabotage, on};
use shards::{ConnId, Io, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use wire::mds_api::MdsReply;
use wire::{Head, MdsId, Status};

/// A learner this close to the end of the log may vote.
const CAUGHT_UP_ENTRIES: u64 = 200;
/// Several elections long.
const NOT_NEEDED_AFTER: Duration = Duration::from_secs(5);

impl Server {
    /// Where the other servers are: what the state says, and until it says anything what this server was told when it
    /// was made.
    pub(super) fn update_members(&mut self, io: &mut dyn Io) {
        let mut members: BTreeMap<MdsId, SocketAddr> =
            self.config.control.peers.iter().map(|p| (p.id, p.raft_addr)).collect();
        members.extend(self.state.mds_list().map(|(id, record)| (id, record.raft_addr)));
        members.retain(|id, _| !self.removed.contains(id));
        let leaving: BTreeSet<MdsId> = self.removed.iter().copied().filter(|id| self.votes(*id)).collect();
        self.net.set_members(&members, &leaving, io);
    }

    /// Whether a server has a vote as far as this one knows.
    pub(super) fn votes(&self, id: MdsId) -> bool {
        self.consensus.conf().voters.contains(&id.0)
    }

    /// Whether this server was removed and nobody needs its vote any more.
    pub(super) fn may_leave(&self, now: Timestamp) -> bool {
        if !self.removed.contains(&self.me) || self.consensus.is_leader() {
            return false;
        }
        let voters = self.consensus.conf().voters;
        if !voters.contains(&self.me.0) || on(Sabotage::LeaveAtOnce) {
            return true;
        }
        // Somebody who needs it says so: the master by heartbeats, a candidate by asking for its vote.
        let others: Vec<u64> = voters.iter().copied().filter(|id| *id != self.me.0).collect();
        let reached = others.iter().filter(|id| self.net.line(MdsId(**id)).is_some()).count();
        let majority = (voters.len() / 2 + 1).min(others.len());
        reached >= majority && now.since(self.raft_heard.max(self.net.line_lost_at())) > NOT_NEEDED_AFTER
    }

    /// The address of a server for clients.
    pub(super) fn client_addr_of(&self, id: MdsId) -> Option<SocketAddr> {
        let known = self.state.mds_list().find(|(known, _)| *known == id).map(|(_, record)| record.addr);
        known.or_else(|| self.config.control.peers.iter().find(|p| p.id == id).map(|p| p.addr))
    }

    /// Enters the servers of the first quorum into the state, and this server's address if it has changed.
    pub(super) fn complete_first_quorum(&mut self, io: &mut dyn Io) {
        let control = self.config.control.clone();
        let known: BTreeMap<MdsId, (SocketAddr, SocketAddr)> =
            self.state.mds_list().map(|(id, r)| (id, (r.addr, r.raft_addr))).collect();
        let mine = (control.addr, control.raft_addr);
        let mut missing: BTreeMap<MdsId, (SocketAddr, SocketAddr)> = control
            .peers
            .iter()
            .filter(|p| control.bootstrap && !known.contains_key(&p.id) && !self.removed.contains(&p.id))
            .map(|p| (p.id, (p.addr, p.raft_addr)))
            .collect();
        if known.get(&self.me).is_none_or(|at| *at != mine) && !self.removed.contains(&self.me) {
            missing.insert(self.me, mine);
        }
        for (id, (addr, raft_addr)) in missing {
            self.propose_own(Internal::SetMds { id, addr, raft_addr }, io);
        }
    }

    /// Takes one step towards the members that the state lists.
    pub(super) fn reconcile_members(&mut self, _io: &mut dyn Io) {
        let members = self.consensus.members();
        let commit = self.consensus.commit();
        if let Some((gone, _)) = members.iter().find(|(id, _)| self.removed.contains(id)) {
            if *gone == self.me {
                self.consensus.hand_over(self.me);
            } else {
                self.consensus.propose_member(*gone, ConfChangeType::RemoveNode);
            }
            return;
        }
        let new = self.state.mds_list().map(|(id, _)| id).find(|id| !members.iter().any(|(m, _)| m == id));
        if let Some(id) = new.filter(|id| !self.removed.contains(id)) {
            self.consensus.propose_member(id, ConfChangeType::AddLearnerNode);
            return;
        }
        let caught_up = members.iter().find(|(_, p)| {
            !p.voter && p.recently_heard && p.matched > 0 && p.matched + CAUGHT_UP_ENTRIES >= commit
        });
        if let Some((id, _)) = caught_up {
            self.consensus.propose_member(*id, ConfChangeType::AddNode);
        }
    }

    /// Addresses of all servers for clients and chunk servers, which learn them from the master: those they were started
    /// with may have been removed since.
    pub(super) fn mds_addrs(&self) -> Vec<SocketAddr> {
        self.state.mds_list().map(|(_, record)| record.addr).collect()
    }

    /// Whether the master hears from a server.
    pub(super) fn hears(&self, id: MdsId) -> bool {
        let members = self.consensus.members();
        let heard = members.iter().any(|(member, p)| *member == id && p.recently_heard);
        id == self.me || heard && self.net.line(id).is_some()
    }

    /// A server can't be removed if those that remain are not enough to go on.
    pub(super) fn refuse_mds_removal(
        &mut self,
        conn: ConnId,
        head: Head,
        id: MdsId,
        io: &mut dyn Io,
    ) -> bool {
        let Some(detail) = self.why_not_remove(id) else { return false };
        let refused = MdsReply::Failed { status: Status::InvalidArgument, detail, master: None };
        self.reply(conn, head, &refused, io);
        true
    }

    pub(super) fn why_not_remove(&self, id: MdsId) -> Option<String> {
        let others: Vec<MdsId> = self.state.mds_list().map(|(other, _)| other).filter(|o| *o != id).collect();
        let known = self.state.mds_list().any(|(known, _)| known == id);
        if !known {
            return Some(no_such_mds(id));
        }
        if others.is_empty() {
            return Some(format!(
                "MDS#{id} is the last metadata server of the cluster: it can't be removed. Add another one before"
            ));
        }
        let voters: Vec<MdsId> = others.into_iter().filter(|o| self.votes(*o)).collect();
        let away: Vec<MdsId> = voters.iter().copied().filter(|o| !self.hears(*o)).collect();
        let majority = voters.len() / 2 + 1;
        if voters.len() - away.len() >= majority {
            return None;
        }
        let why = match away.first() {
            None => {
                "the others have not joined yet: 'stat' shows them as joining. Start them and wait".into()
            }
            Some(first) => {
                let names: Vec<String> = away.iter().map(|id| format!("MDS#{id}")).collect();
                format!(
                    "of the {} that would remain, {majority} must be there to go on, and {} does not answer. Start it, or if \
                     it is lost remove it first (rm-mds {first})",
                    voters.len(),
                    names.join(", "),
                )
            }
        };
        Some(format!("removing MDS#{id} would stop the cluster: {why}"))
    }
}
