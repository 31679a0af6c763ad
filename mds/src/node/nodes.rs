//! Nodes of a cluster with a password: who comes in, who is taken out, what administrators see.

use super::master::Request;
use super::server::Server;
use crate::state::Internal;
use shards::{ConnId, Io};
use std::net::SocketAddr;
use std::time::Duration;
use wire::auth::Certificate;
use wire::mds_api::{MdsReply, MdsRequest, NodeInfo, Severity};
use wire::{Frame, Head, Kind, NodeId, Status};

/// Wait after a certificate that could not be kept.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// Nodes named in a refusal.
const NAMED_NODES: usize = 10;

impl Server {
    /// A frame of a node that knew the password: it may ask for its certificate and for nothing else.
    pub(super) fn on_newcomer(&mut self, conn: ConnId, frame: Frame, io: &mut dyn Io) {
        let request = match frame.head.kind {
            Kind::MdsRequest => wire::decode!(MdsRequest, &frame.meta),
            kind => Err(format!("{kind:?}")),
        };
        match request {
            Ok(request @ MdsRequest::AddNode(_)) => {
                self.request(conn, frame.head, Request::Mds(request), io);
            }
            other => {
                tracing::warn!(name: "bad_request", from = ?self.net.addr_of(conn), ?other);
                let events = self.net.drop_conn(conn, "a newcomer asked for something else", io);
                self.on_net(events, io);
            }
        }
    }

    /// Into the event log, where this server can write it; one a second says enough.
    pub(super) fn wrong_password(&mut self, from: SocketAddr, last: bool, io: &mut dyn Io) {
        let ip = from.ip();
        tracing::warn!(name: "wrong_password", %ip, last);
        let now = io.now();
        if self.master.as_mut().is_some_and(|m| m.ready && (last || m.may_warn_of_passwords(now))) {
            let more = if last { "; no more are heard from there for a minute" } else { "" };
            self.log_event("MDS", Severity::Warn, format!("Wrong password from {ip} (auth-node){more}"), io);
        }
    }

    /// The first master of a cluster with a password enters what it begins with.
    pub(super) fn complete_foundation(&mut self, io: &mut dyn Io) {
        if let Some(foundation) = self.config.foundation.clone()
            && self.state.password().is_none()
        {
            self.propose_own(Internal::Found(foundation), io);
        }
    }

    fn nodes(&self) -> impl Iterator<Item = NodeInfo> {
        let (taken_out, mut connections) = (self.state.taken_out(), self.net.connections());
        let newest = self.state.key_generation();
        if let Some(mine) = self.config.credentials.certificate() {
            let (count, generation) = connections.entry(mine.node).or_insert((0, mine.generation));
            (*count, *generation) = (*count + 1, mine.generation.min(*generation));
        }
        self.state.nodes().map(move |(node, record)| {
            let (connections, generation) = connections.get(&node).copied().unwrap_or((0, newest));
            NodeInfo {
                node,
                name: record.name.clone(),
                added_ms: record.added_ms,
                taken_out: taken_out.contains(&node),
                renewed: self.state.is_renewed(node) && generation >= newest,
                connections,
            }
        })
    }

    pub(super) fn list_nodes(&self) -> MdsReply {
        MdsReply::Nodes { nodes: self.nodes().collect() }
    }

    /// This server's node has a certificate of the newest generation, too.
    pub(super) fn renew_own(&mut self, io: &mut dyn Io) {
        let Some(mine) = self.config.credentials.certificate() else { return };
        if self.state.key_generation() <= mine.generation || io.now() < self.renew_at {
            return;
        }
        let Some(next) = self.state.certificate_of(mine.node, &mine.public_key) else { return };
        match self.config.credentials.renew(&next) {
            Ok(_) => {
                tracing::info!(name: "certificate_renewed", generation = next.generation);
                let events = self.net.set_credentials(self.config.credentials.clone(), io);
                self.on_net(events, io);
            }
            Err(why) => {
                tracing::error!(name: "certificate_not_renewed", why);
                self.renew_at = io.now().after(RENEW_AGAIN);
            }
        }
    }

    /// What the node at the other end of a connection is to be certified with, if it does not know it.
    pub(super) fn newer_certificate(&self, conn: ConnId) -> Option<Box<Certificate>> {
        let member = self.net.member_of(conn).filter(|m| m.generation < self.state.key_generation())?;
        self.state.certificate_of(member.node, &member.public_key).map(Box::new)
    }

    pub(super) fn renew(&self, conn: ConnId) -> MdsReply {
        let member = self.net.member_of(conn);
        match member.and_then(|m| self.state.certificate_of(m.node, &m.public_key)) {
            Some(certificate) => MdsReply::Admitted(Box::new(certificate)),
            None => MdsReply::Failed {
                status: Status::NotFound,
                detail: "this node is not in the list of the cluster's nodes".into(),
                master: None,
            },
        }
    }

    /// Keeps in the state who has shown that it has its newest certificate.
    pub(super) fn note_renewals(&mut self, io: &mut dyn Io) {
        let generation = self.state.key_generation();
        let mine = self.config.credentials.certificate().map(|c| (c.node, c.public_key, c.generation));
        let shown = self.net.take_shown().into_iter().map(|m| (m.node, m.public_key, m.generation));
        let is_new = |(node, public_key, theirs): &(NodeId, [u8; 32], u32)| {
            *theirs >= generation
                && !self.state.is_renewed(*node)
                && self.state.nodes().any(|(n, record)| n == *node && record.public_key == *public_key)
        };
        let nodes: Vec<NodeId> = shown.chain(mine).filter(is_new).map(|(node, ..)| node).collect();
        if !nodes.is_empty() {
            self.propose_own(Internal::Renewed { generation, nodes }, io);
        }
    }

    /// Whether somebody would be shut out if the old key were given up now.
    pub(super) fn refuse_early_finish(&mut self, conn: ConnId, head: Head, io: &mut dyn Io) -> bool {
        if !self.state.key_changes() {
            return false; // Refused for that, whoever has which certificate.
        }
        let left: Vec<NodeInfo> = self.nodes().filter(|n| !n.taken_out && !n.renewed).collect();
        if left.is_empty() {
            return false;
        }
        let name = |n: &NodeInfo| format!("node {} ({})", n.node, n.name);
        let named: Vec<String> = left.iter().take(NAMED_NODES).map(name).collect();
        let more = left.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let detail = format!(
            "{}{more} would be shut out: no certificate by the new key is there yet. Services and mounts get theirs \
             within seconds while they run; on a host without any, 'pstorage list-nodes' fetches it. With --force they must be \
             authenticated anew (auth-node)",
            named.join(", ")
        );
        self.refuse(conn, head, false, Status::Busy, detail, None, io);
        true
    }

    /// What must not be taken out: who asks, and who is needed to go on.
    pub(super) fn refuse_taking_out(
        &mut self,
        conn: ConnId,
        head: Head,
        node: NodeId,
        io: &mut dyn Io,
    ) -> bool {
        let detail = if self.net.member_of(conn).is_some_and(|m| m.node == node) {
            format!("node {node} is the one you ask from: do it from another one")
        } else if let Some((mds, _)) = self.net.mds_nodes().find(|(_, at)| *at == node) {
            format!("MDS#{mds} runs on node {node}: remove it from the quorum first (rm-mds {mds})")
        } else {
            return false;
        };
        self.refuse(conn, head, false, Status::InvalidArgument, detail, None, io);
        true
    }
}
