//! The virtual network: connections that deliver whole frames in order, late, or not at all.
//!
//! A cut link loses nothing by itself: frames wait, as TCP retransmits. If the cut lasts longer than TCP's
//! patience, each end closes at a time of its own. A host that lost power is silent in the same way; a killed
//! process closes its connections at once.

use super::world::{HostId, Life};
use crate::{ConnId, RawFrame, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// A connection, both ends of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Wire(pub u64);

/// Which end: the one that connected, or the one that listened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Side {
    Caller,
    Listener,
}

impl Side {
    pub fn other(self) -> Side {
        if self == Side::Caller { Side::Listener } else { Side::Caller }
    }
}

#[derive(Debug)]
pub(super) enum Packet {
    Frame(RawFrame),
    Fin,
}

#[derive(Debug)]
pub(super) struct End {
    pub host: HostId,
    pub life: Life,
    pub conn: ConnId,
    /// Neither closed nor crashed.
    pub open: bool,
    /// The node asked for the close; it hears only `Closed` from now on.
    pub closing: bool,
    /// On the way to this end.
    pub coming: VecDeque<Packet>,
    pub last_due: Timestamp,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub to: SocketAddr,
    pub ips: (IpAddr, IpAddr),
    pub caller: End,
    /// Stands once the call has arrived.
    pub listener: Option<End>,
    /// What the caller sent before it was connected.
    pub early: Vec<Packet>,
}

impl Connection {
    pub fn end(&mut self, side: Side) -> Option<&mut End> {
        match side {
            Side::Caller => Some(&mut self.caller),
            Side::Listener => self.listener.as_mut(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Net {
    pub connections: BTreeMap<Wire, Connection>,
    pub ends: BTreeMap<(HostId, ConnId), (Wire, Side)>,
    pub listeners: BTreeMap<SocketAddr, (HostId, Life)>,
    cuts: BTreeMap<(IpAddr, IpAddr), u64>,
    pub generation: u64,
    pub next_wire: u64,
    pub next_port: u16,
}

fn pair(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    if a < b { (a, b) } else { (b, a) }
}

impl Net {
    pub fn new() -> Self {
        Net { next_port: 20_000, ..Net::default() }
    }

    /// Cuts the link; says whether it stood.
    pub fn cut(&mut self, a: IpAddr, b: IpAddr) -> bool {
        self.generation += 1;
        let generation = self.generation;
        let before = self.cuts.len();
        self.cuts.entry(pair(a, b)).or_insert(generation);
        self.cuts.len() != before
    }

    pub fn heal(&mut self, a: IpAddr, b: IpAddr) -> bool {
        self.cuts.remove(&pair(a, b)).is_some()
    }

    pub fn cut_pairs(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.cuts.keys().copied().collect()
    }

    /// The cut that lies on this path, if any.
    pub fn cut_between(&self, ips: (IpAddr, IpAddr)) -> Option<u64> {
        self.cuts.get(&pair(ips.0, ips.1)).copied()
    }

    pub fn wires_between(&self, a: IpAddr, b: IpAddr) -> Vec<Wire> {
        let between = |c: &&Wire| pair(self.connections[c].ips.0, self.connections[c].ips.1) == pair(a, b);
        self.connections.keys().filter(between).copied().collect()
    }

    pub fn wires_of(&self, host: HostId) -> Vec<(Wire, Side)> {
        self.ends.range((host, ConnId(0))..=(host, ConnId(u64::MAX))).map(|(_, &at)| at).collect()
    }

    /// Drops a connection both ends of which are closed.
    pub fn sweep(&mut self, wire: Wire) {
        let Some(connection) = self.connections.get(&wire) else { return };
        if !connection.caller.open && connection.listener.as_ref().is_none_or(|l| !l.open) {
            self.connections.remove(&wire);
        }
    }
}
