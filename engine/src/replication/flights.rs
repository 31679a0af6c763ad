//! Writes under way on a chunk, in the order of their sequences. Few at a time, and the oldest usually ends first.

use super::primary::ClientRequest;
use super::slow::Times;
use shards::Timestamp;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use wire::Status;

/// Shards that something is sent to, or awaited from.
pub(super) type Peers = SmallVec<[SocketAddr; 3]>;

/// A write under way.
pub(super) struct Flight {
    pub blocks: Range<u32>,
    /// `None`: levelling or filling.
    pub request: Option<ClientRequest>,
    pub local: bool,
    pub waiting: Peers,
    pub failed: Option<Status>,
    /// For copies: to whom, once our bytes are read.
    pub targets: Peers,
    /// Of a copy for a learner: when it began.
    pub fill: Option<Timestamp>,
    /// Of a client's write: when it began, and how long those took that have it.
    pub times: Option<(Timestamp, Times)>,
}

impl Flight {
    pub fn has_stored(&mut self, peer: SocketAddr) {
        self.waiting.retain(|waiting| *waiting != peer);
    }
}

#[derive(Default)]
pub(super) struct Flights {
    in_order: VecDeque<(u64, Flight)>,
}

impl Flights {
    /// Sequences grow from one to the next.
    pub fn insert(&mut self, sequence: u64, flight: Flight) {
        debug_assert!(self.in_order.back().is_none_or(|(last, _)| *last < sequence));
        self.in_order.push_back((sequence, flight));
    }

    fn place(&self, sequence: u64) -> Option<usize> {
        self.in_order.iter().position(|(s, _)| *s == sequence)
    }

    pub fn get(&self, sequence: u64) -> Option<&Flight> {
        self.place(sequence).map(|at| &self.in_order[at].1)
    }

    pub fn get_mut(&mut self, sequence: u64) -> Option<&mut Flight> {
        self.place(sequence).map(|at| &mut self.in_order[at].1)
    }

    pub fn remove(&mut self, sequence: u64) -> Option<Flight> {
        let at = self.place(sequence)?;
        self.in_order.remove(at).map(|(_, flight)| flight)
    }

    pub fn oldest(&self) -> Option<u64> {
        self.in_order.front().map(|(sequence, _)| *sequence)
    }

    pub fn len(&self) -> usize {
        self.in_order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Flight)> {
        self.in_order.iter().map(|(sequence, flight)| (*sequence, flight))
    }

    pub fn values(&self) -> impl Iterator<Item = &Flight> {
        self.in_order.iter().map(|(_, flight)| flight)
    }

    pub fn into_values(self) -> impl Iterator<Item = Flight> {
        self.in_order.into_iter().map(|(_, flight)| flight)
    }
}
