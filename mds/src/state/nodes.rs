//! Which nodes belong to a cluster with a password: numbers, certificates, the password's digest.
//!
//! Certificates are signed while the command is applied: Ed25519 gives the same signature on every server.

use super::answer::{Effect, Refusal, refuse};
use super::{Op, State};
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use wire::auth::{Authority, Certificate, Foundation, PasswordDigest, certify};
use wire::mds_api::{KeyStep, MdsReply, NewNode, Severity};
use wire::{NodeId, Status};

const LONGEST_NAME_BYTES: usize = 255;

#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub(super) struct Membership {
    cluster: String,
    /// Those that sign certificates, the newest last: two while the authority is being changed.
    authorities: Vec<Authority>,
    /// Grows whenever they change.
    generation: u32,
    /// Nodes that are known to have their certificates of it.
    renewed: BTreeSet<NodeId>,
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

    /// Of the cluster's keys; 0 without a password.
    pub fn key_generation(&self) -> u32 {
        self.data.small.membership.as_ref().map_or(0, |m| m.generation)
    }

    /// Whether the key is being changed: there is an old and a new one.
    pub fn key_changes(&self) -> bool {
        self.data.small.membership.as_ref().is_some_and(Membership::changes)
    }

    /// Whether a node is known to have its certificate of the newest generation.
    pub fn is_renewed(&self, node: NodeId) -> bool {
        self.data.small.membership.as_ref().is_some_and(|m| m.renewed.contains(&node))
    }

    /// The newest certificate of a node that holds this key. `None` if no such node was taken in, or was taken out again.
    pub fn certificate_of(&self, node: NodeId, public_key: &[u8; 32]) -> Option<Certificate> {
        let membership = self.data.small.membership.as_ref()?;
        let record = membership.nodes.get(&node).filter(|r| r.public_key == *public_key)?;
        (!membership.taken_out.contains(&node)).then(|| membership.certify(node, record))
    }

    /// Nodes have shown certificates of this generation.
    pub(super) fn note_renewed(&mut self, generation: u32, nodes: &[NodeId]) {
        if let Some(membership) = self.data.small.membership.as_mut().filter(|m| m.generation == generation) {
            membership.renewed.extend(nodes);
        }
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
            authorities: vec![authority],
            generation: founder.generation,
            renewed: BTreeSet::from([founder.node]),
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
                let (certificate, is_new) = membership.add(now, new)?;
                let node = certificate.node;
                let reply = MdsReply::Admitted(Box::new(certificate));
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
            Op::ChangeKey(step) => (MdsReply::Done, Severity::Warn, membership.change_key(step)?.to_string()),
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
    fn add(&mut self, now: u64, new: &NewNode) -> Result<(Certificate, bool), Refusal> {
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
        self.renewed.insert(node);
        Ok((self.certify(node, &self.nodes[&node]), is_new))
    }

    fn certify(&self, node: NodeId, record: &NodeRecord) -> Certificate {
        let (authorities, generation) = (&self.authorities, self.generation);
        certify(authorities, generation, &self.cluster, node, &record.name, record.public_key)
    }

    fn changes(&self) -> bool {
        self.authorities.len() > 1
    }

    /// A step in the change of the authority; what is to be said of it.
    fn change_key(&mut self, step: &KeyStep) -> Result<&'static str, Refusal> {
        let changes = self.changes();
        let message = match step {
            KeyStep::Begin(_) if changes => {
                let why = "the cluster's key is being changed already: 'rotate-key --finish' or '--cancel' comes first";
                return refuse(Status::Busy, why);
            }
            KeyStep::Begin(new) if self.authorities.contains(new) => {
                return refuse(Status::InvalidArgument, "this is the cluster's key already");
            }
            KeyStep::Begin(new) => {
                self.authorities.push((**new).clone());
                "The cluster's key is being changed: certificates are signed with the old and the new one"
            }
            KeyStep::Finish { .. } | KeyStep::Cancel if !changes => {
                return refuse(
                    Status::InvalidArgument,
                    "the cluster's key is not being changed: 'rotate-key' begins, or it is finished already",
                );
            }
            KeyStep::Finish { .. } => {
                self.authorities.remove(0);
                "The cluster's key was changed: the old one is worth nothing any more"
            }
            KeyStep::Cancel => {
                self.authorities.pop();
                "The cluster's key stays: the change was cancelled"
            }
        };
        self.generation += 1;
        self.renewed.clear();
        Ok(message)
    }
}
