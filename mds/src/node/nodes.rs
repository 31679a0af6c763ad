//! Nodes of a cluster with a password: who comes in, who is taken out, what administrators see.

use super::master::Request;
use super::server::Server;
use shards::{ConnId, Io};
use std::net::SocketAddr;
use wire::mds_api::{MdsReply, MdsRequest, NodeInfo, Severity};
use wire::{Frame, Head, Kind, NodeId, Status};

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
            self.propose_own(crate::state::Internal::Found(foundation), io);
        }
    }

    pub(super) fn list_nodes(&self) -> MdsReply {
        let (taken_out, mut connections) = (self.state.taken_out(), self.net.connections());
        if let Some(mine) = self.config.credentials.node_id() {
            *connections.entry(mine).or_default() += 1;
        }
        let info = |(node, record): (NodeId, &crate::state::NodeRecord)| NodeInfo {
            node,
            name: record.name.clone(),
            added_ms: record.added_ms,
            taken_out: taken_out.contains(&node),
            connections: connections.get(&node).copied().unwrap_or(0),
        };
        MdsReply::Nodes { nodes: self.state.nodes().map(info).collect() }
    }

    /// What must not be taken out: who asks, and who is needed to go on.
    pub(super) fn refuse_taking_out(
        &mut self,
        conn: ConnId,
        head: Head,
        node: NodeId,
        io: &mut dyn Io,
    ) -> bool {
        let detail = if self.net.node_of(conn) == Some(node) {
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
