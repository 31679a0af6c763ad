//! The virtual network: connections that deliver whole frames in order, late, or not at all.
//!
//! A cut link loses nothing by itself: frames wait, as TCP retransmits. If the cut lasts longer than TCP's
//! patience, each end closes at a time of its own. A host that lost power is silent in the same way; a killed
//! process closes its connections at once. A link may be cut in one direction only: what goes the other way arrives, but
//! as nothing confirms it, the connection does not outlive the patience either, and none can be made.
//!
//! Nodes see whole streams, as TCP gives them. So a lost packet is a late one here, and all behind it wait; a packet
//! that TCP got twice is not seen at all. What applications see of loss, reordering and duplication is made by resets
//! ([`super::World::reset_links`]): nobody knows what had arrived, and it is sent again on another connection, while the
//! old one may still have frames on their way to a node that is paused.

use super::world::{HostId, Life};
use crate::{Channel, ConnId, RawFrame, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
    pub channel: Channel,
    /// Of the caller and the listener.
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

    /// From where and to where a packet to this end goes.
    pub fn way_to(&self, side: Side) -> (IpAddr, IpAddr) {
        match side {
            Side::Listener => self.ips,
            Side::Caller => (self.ips.1, self.ips.0),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Net {
    pub connections: BTreeMap<Wire, Connection>,
    pub ends: BTreeMap<(HostId, ConnId), (Wire, Side)>,
    pub listeners: BTreeMap<SocketAddr, (HostId, Life)>,
    /// From, to; and which cut it was.
    cuts: BTreeMap<(IpAddr, IpAddr), u64>,
    pub weather: BTreeMap<IpAddr, Weather>,
    /// When the card of a host with limited bandwidth has sent what it was given.
    pub card_free_at: BTreeMap<IpAddr, Timestamp>,
    pub generation: u64,
    pub next_wire: u64,
    pub next_port: u16,
}

fn pair(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    if a < b { (a, b) } else { (b, a) }
}

/// What is wrong with the network of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weather {
    /// One packet in so many is lost, and sent again later. 0: none.
    pub loses_one_in: u64,
    /// Everything takes this much longer.
    pub delay: Duration,
    /// Of the host's network card, both ways together. 0: no limit of its own.
    pub bytes_per_us: u64,
}

impl Net {
    pub fn new() -> Self {
        Net { next_port: 20_000, ..Net::default() }
    }

    /// Cuts the way from one address to another; says whether it was open.
    pub fn cut(&mut self, from: IpAddr, to: IpAddr) -> bool {
        self.generation += 1;
        let generation = self.generation;
        let before = self.cuts.len();
        self.cuts.entry((from, to)).or_insert(generation);
        self.cuts.len() != before
    }

    /// Opens the way in both directions; says whether one was cut.
    pub fn heal(&mut self, a: IpAddr, b: IpAddr) -> bool {
        let forth = self.cuts.remove(&(a, b)).is_some();
        self.cuts.remove(&(b, a)).is_some() || forth
    }

    pub fn cut_pairs(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.cuts.keys().map(|&(a, b)| pair(a, b)).collect()
    }

    pub fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    pub fn is_cut_either_way(&self, (a, b): (IpAddr, IpAddr)) -> bool {
        self.is_cut(a, b) || self.is_cut(b, a)
    }

    /// Whether this very cut still lies between the two.
    pub fn is_cut_by(&self, (a, b): (IpAddr, IpAddr), generation: u64) -> bool {
        [(a, b), (b, a)].iter().any(|way| self.cuts.get(way) == Some(&generation))
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
