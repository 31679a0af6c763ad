//! How many chunks are copied at a time: from each shard, and to each server.

use super::queue::{Source, Urgency};
use std::collections::BTreeMap;
use wire::CsId;

/// Copies at a time, from the settings of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From one primary shard.
    pub from_shard: usize,
    /// To one chunk server.
    pub to_server: usize,
    /// Of chunks that are in no danger, from one shard and to one server.
    pub moves: usize,
}

impl Limits {
    fn most_from(&self, urgency: Urgency) -> usize {
        if urgency.is_move() { self.moves.min(self.from_shard) } else { self.from_shard }
    }

    fn most_to(&self, urgency: Urgency) -> usize {
        if urgency.is_move() { self.moves.min(self.to_server) } else { self.to_server }
    }
}

/// What is being copied now.
#[derive(Default)]
pub struct Slots {
    from: BTreeMap<Source, usize>,
    to: BTreeMap<CsId, usize>,
}

impl Slots {
    pub fn take(&mut self, source: Source, targets: &[CsId]) {
        *self.from.entry(source).or_default() += 1;
        for target in targets {
            *self.to.entry(*target).or_default() += 1;
        }
    }

    pub fn may_send(&self, source: Source, urgency: Urgency, limits: &Limits) -> bool {
        self.from.get(&source).copied().unwrap_or(0) < limits.most_from(urgency)
    }

    pub fn may_receive(&self, target: CsId, urgency: Urgency, limits: &Limits) -> bool {
        self.to.get(&target).copied().unwrap_or(0) < limits.most_to(urgency)
    }
}
