//! Which nodes belong to a cluster with a password: numbers, certificates, the password's digest.
//!
//! Certificates are signed while the command is applied: Ed25519 gives the same signature on every server.

use super::answer::{Effect, Refusal, refuse};
use super::{Op, State};
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use wire::auth::{Authority, Foundation, PasswordDigest};
use wire::mds_api::{Admission, MdsReply, NewNode, Severity};
use wire::{NodeId, Status};

const LONGEST_NAME_BYTES: usize = 255;

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Membership {
    cluster: String,
    authority: Authority,
    password: PasswordDigest,
    nodes: BTreeMap<NodeId, NodeRecord>,
    taken_out: BTreeSet<NodeId>,
    next_node: u32,
}

/// A node that was ever in the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: String,
    pub public_key: [u8; 32],
    pub added_ms: u64,
}

impl State {
    /// The digest of the password; `None` in a cluster without one, and before the first master has entered it.
    pub fn password(&self) -> Option<&PasswordDigest> {
        self.data.small.membership.as_ref().map(|m| &m.password)
    }

    /// Nodes that belong to the cluster no more.
    pub fn taken_out(&self) -> BTreeSet<NodeId> {
        self.data.small.membership.as_ref().map_or_else(BTreeSet::new, |m| m.taken_out.clone())
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        self.data.small.membership.iter().flat_map(|m| m.nodes.iter().map(|(node, record)| (*node, record)))
    }

    /// The first master's doing; a repetition changes nothing.
    pub(super) fn found(&mut self, now: u64, foundation: &Foundation) {
        if self.data.small.membership.is_some() {
            return;
        }
        let Foundation { cluster, authority, password, founder } = foundation.clone();
        let record = NodeRecord { name: founder.name, public_key: founder.public_key, added_ms: now };
        self.data.small.membership = Some(Membership {
            cluster,
            authority,
            password,
            nodes: BTreeMap::from([(founder.node, record)]),
            taken_out: BTreeSet::new(),
            next_node: founder.node.0 + 1,
        });
    }

    pub(super) fn node_op(
        &mut self,
        now: u64,
        op: &Op,
        effects: &mut Vec<Effect>,
    ) -> Result<MdsReply, Refusal> {
        let Some(membership) = &mut self.data.small.membership else {
            return refuse(Status::NotSupported, "this cluster has no password: every node belongs to it");
        };
        let (reply, severity, message) = match op {
            Op::AddNode(new) => {
                let (admission, is_new) = membership.add(now, new)?;
                let node = admission.certificate.node;
                let reply = MdsReply::Admitted(Box::new(admission));
                if !is_new {
                    return Ok(reply);
                }
                (reply, Severity::Info, format!("Node {node} ({}) joined the cluster", new.name))
            }
            Op::SetPassword(digest) => {
                digest.salt.check().or_else(|why| refuse(Status::InvalidArgument, why))?;
                membership.password = (**digest).clone();
                (MdsReply::Done, Severity::Info, "The cluster's password was changed".to_string())
            }
            Op::TakeOut { node } => {
                let Some(record) = membership.nodes.get(node) else {
                    return refuse(
                        Status::NotFound,
                        format!("there is no node {node}: list-nodes shows all"),
                    );
                };
                if !membership.taken_out.insert(*node) {
                    return Ok(MdsReply::Done);
                }
                let message = format!("Node {node} ({}) was taken out of the cluster", record.name);
                (MdsReply::Done, Severity::Warn, message)
            }
            other => return refuse(Status::BadRequest, format!("{other:?} is not about nodes")),
        };
        self.log(now, "MDS", severity, message, effects);
        Ok(reply)
    }
}

impl Membership {
    /// The node's certificate, and whether it is a new node: one that asks again with the same key is the same node.
    fn add(&mut self, now: u64, new: &NewNode) -> Result<(Admission, bool), Refusal> {
        // The name stands on a line of the key file, and on terminals.
        let is_fit = !new.name.trim().is_empty() && !new.name.contains(char::is_control);
        if !is_fit || new.name.len() > LONGEST_NAME_BYTES {
            return refuse(Status::InvalidArgument, "a host name of 1 to 255 printable characters is needed");
        }
        let known = self.nodes.iter().find(|(node, record)| {
            record.public_key == new.public_key && record.name == new.name && !self.taken_out.contains(node)
        });
        let (node, is_new) = known.map_or((NodeId(self.next_node), true), |(node, _)| (*node, false));
        if is_new {
            let record = NodeRecord { name: new.name.clone(), public_key: new.public_key, added_ms: now };
            self.nodes.insert(node, record);
            self.next_node += 1;
        }
        let certificate = self.authority.certify(&self.cluster, node, &new.name, new.public_key);
        Ok((Admission { authority: self.authority.public_key(), certificate }, is_new))
    }
}
