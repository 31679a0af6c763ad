//! In which state a chunk is. What each state means to an administrator: docs/admin-guide/chunk-states.md.
//!
//! Invariants:
//! - every chunk is in exactly one [`ChunkState`], so their counts add up to the total;
//! - a replica counts only if it is in sync and its server is there.

use crate::placement::{CsView, Deviation};
use crate::repair::Stage;
use crate::state::{ChunkView, Liveness};
use std::collections::BTreeMap;
use wire::mds_api::{ChunkCounts, ChunkState, ReplicaPolicy};
use wire::{ChunkId, CsId, Role};

/// What the master knows of the servers and of repair.
pub struct Surroundings<'a> {
    /// All servers that were not dropped, there or not.
    pub servers: &'a BTreeMap<CsId, CsView>,
    pub live: &'a dyn Fn(CsId) -> Liveness,
    pub stage: &'a dyn Fn(ChunkId) -> Stage,
    /// Whether a server has told that it holds something of the chunk.
    pub was_reported: &'a dyn Fn(ChunkId) -> bool,
    /// Whether blocks of the chunk were gone from all replicas.
    pub has_gone: &'a dyn Fn(ChunkId) -> bool,
}

/// A chunk's state, and what is counted beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition {
    pub state: ChunkState,
    /// In-sync replicas that are there.
    pub usable: usize,
    pub deviation: Deviation,
    pub pending: bool,
    pub replicating: bool,
    pub overcommitted: bool,
    pub void: bool,
    pub unique: bool,
    pub lossy: bool,
    pub misplaced: bool,
}

impl Condition {
    pub fn of(view: &ChunkView, policy: &ReplicaPolicy, around: &Surroundings<'_>) -> Condition {
        let is_there = |cs: &CsId| (around.live)(*cs) == Liveness::Active;
        let (normal, minimum) = (usize::from(policy.normal), usize::from(policy.minimum));
        let in_sync = view.in_sync().count();
        let usable = view.in_sync().filter(is_there).count();
        let stale = view.with_role(Role::Stale).count();
        let awaited = view.in_sync().all(|cs| (around.live)(cs) != Liveness::Offline);
        let set: Vec<&CsView> = view.in_sync().filter_map(|cs| around.servers.get(&cs)).collect();
        let deviation = Deviation::of(&set, policy);
        let state = match () {
            () if usable == 0 => ChunkState::Offline,
            () if usable < minimum => ChunkState::Blocked,
            // One failure may take several replicas of one domain.
            () if usable >= normal && deviation.shared > 0 => ChunkState::Degraded,
            () if usable >= normal => ChunkState::Healthy,
            () if in_sync >= normal && awaited => ChunkState::Standby,
            () if stale > 0 => ChunkState::Urgent,
            () => ChunkState::Degraded,
        };
        let is_mended = || matches!((around.stage)(view.chunk), Stage::Waiting | Stage::Copying);
        Condition {
            state,
            usable,
            deviation,
            pending: state == ChunkState::Blocked && is_mended(),
            replicating: view.with_role(Role::Learner).next().is_some(),
            overcommitted: in_sync > normal,
            // A server that is away may hold something and can't tell.
            void: usable == in_sync && !(around.was_reported)(view.chunk),
            unique: in_sync == 1,
            lossy: (around.has_gone)(view.chunk),
            misplaced: deviation.breaks_policy(),
        }
    }

    pub fn count_in(&self, counts: &mut ChunkCounts) {
        counts.total += 1;
        *match self.state {
            ChunkState::Healthy => &mut counts.healthy,
            ChunkState::Standby => &mut counts.standby,
            ChunkState::Degraded => &mut counts.degraded,
            ChunkState::Urgent => &mut counts.urgent,
            ChunkState::Blocked => &mut counts.blocked,
            ChunkState::Offline => &mut counts.offline,
        } += 1;
        for (is_so, count) in [
            (self.pending, &mut counts.pending),
            (self.replicating, &mut counts.replicating),
            (self.overcommitted, &mut counts.overcommitted),
            (self.void, &mut counts.void),
            (self.unique, &mut counts.unique),
            (self.lossy, &mut counts.lossy),
            (self.misplaced, &mut counts.misplaced),
        ] {
            *count += u64::from(is_so);
        }
    }

    /// What it is beside its state.
    pub fn also(&self) -> Vec<String> {
        let words = [
            (self.pending, "pending"),
            (self.replicating, "replicating"),
            (self.overcommitted, "overcommitted"),
            (self.void, "void"),
            (self.unique, "unique"),
            (self.lossy, "lossy"),
            (self.misplaced, "misplaced"),
        ];
        words.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word.to_string()).collect()
    }
}

/// Chunks of which a server has said that it holds something: a bit each, as ids are given in rows and never again.
#[derive(Default)]
pub struct Reported {
    bits: Vec<u64>,
}

impl Reported {
    pub fn add(&mut self, chunk: ChunkId) {
        let word = (chunk.0 / 64) as usize;
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (chunk.0 % 64);
    }

    pub fn contains(&self, chunk: ChunkId) -> bool {
        self.bits.get((chunk.0 / 64) as usize).is_some_and(|word| word & 1 << (chunk.0 % 64) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::mds_api::FailureDomain;
    use wire::{Epoch, FileId};

    const POLICY: ReplicaPolicy =
        ReplicaPolicy { normal: 3, minimum: 2, tier: 0, domain: FailureDomain::Disk };

    /// A letter for each replica, on CS 1, 2, …: capital in sync, `l` learner, `s` stale; then its server: `+` there,
    /// `-` inactive, `!` offline.
    fn condition(replicas: &str, policy: ReplicaPolicy, stage: Stage) -> Condition {
        let letters: Vec<char> = replicas.chars().collect();
        let set: Vec<(CsId, Role, Liveness)> = letters
            .chunks(2)
            .zip(1..)
            .map(|(pair, id)| {
                let role = match pair[0] {
                    'l' => Role::Learner,
                    's' => Role::Stale,
                    _ => Role::InSync,
                };
                let live = match pair[1] {
                    '+' => Liveness::Active,
                    '-' => Liveness::Inactive,
                    _ => Liveness::Offline,
                };
                (CsId(id), role, live)
            })
            .collect();
        let view = ChunkView {
            chunk: ChunkId(1),
            file: FileId(2),
            index: 0,
            epoch: Epoch(1),
            replicas: set.iter().map(|r| (r.0, r.1)).collect(),
            in_sync_until: Vec::new(),
            min_replicas: policy.minimum,
            normal_replicas: policy.normal,
            is_shared: false,
        };
        let server = |id: CsId| CsView {
            cs: id,
            host_id: [id.0 as u8 % 2; 16],
            location: String::new(),
            tier: 0,
            free_bytes: 1,
            total_bytes: 1,
            load: 0,
            leaving: false,
        };
        let around = Surroundings {
            servers: &set.iter().map(|r| (r.0, server(r.0))).collect(),
            live: &|cs| set.iter().find(|r| r.0 == cs).expect("one of the set").2,
            stage: &|_| stage,
            was_reported: &|_| true,
            has_gone: &|_| false,
        };
        Condition::of(&view, &policy, &around)
    }

    #[test]
    fn every_chunk_is_in_one_state() {
        use ChunkState::*;
        for (replicas, state) in [
            ("I+I+I+", Healthy),
            ("I+I+I+I+", Healthy),
            ("I+I+I+s-", Healthy),
            ("I+I+I-", Standby),
            ("I+I+I!", Degraded),
            ("I+I+", Degraded),
            ("I+I+l+", Degraded),
            ("I+I+s-", Urgent),
            ("I+I+l+s!", Urgent),
            ("I+I-I-", Blocked),
            ("I+", Blocked),
            ("I+s+s+", Blocked),
            ("I-I-I-", Offline),
            ("I!s+s+", Offline),
        ] {
            assert_eq!(condition(replicas, POLICY, Stage::Idle).state, state, "{replicas}");
        }
        let hosts = ReplicaPolicy { domain: FailureDomain::Host, ..POLICY };
        let shared = condition("I+I+I+", hosts, Stage::Idle);
        assert_eq!((shared.state, shared.misplaced), (Degraded, true), "two on one host");
    }

    #[test]
    fn what_is_counted_beside_the_state() {
        let mut counts = ChunkCounts::default();
        for (replicas, stage, also) in [
            ("I+I+I+", Stage::Idle, &[][..]),
            ("I+", Stage::Waiting, &["pending", "unique"]),
            ("I+", Stage::WithoutPlace, &["unique"]),
            ("I+l+", Stage::Copying, &["pending", "replicating", "unique"]),
            ("I+I+I+I+", Stage::Idle, &["overcommitted"]),
            ("I+I+", Stage::Waiting, &[]),
        ] {
            let condition = condition(replicas, POLICY, stage);
            assert_eq!(condition.also(), also, "{replicas}");
            condition.count_in(&mut counts);
        }
        assert_eq!((counts.total, counts.healthy, counts.blocked, counts.degraded), (6, 2, 3, 1));
        assert_eq!((counts.pending, counts.unique, counts.overcommitted, counts.replicating), (2, 3, 1, 1));
    }

    #[test]
    fn a_chunk_nobody_reported_is_void() {
        let mut reported = Reported::default();
        assert!(!reported.contains(ChunkId(700)));
        reported.add(ChunkId(700));
        reported.add(ChunkId(3));
        assert!(reported.contains(ChunkId(700)) && reported.contains(ChunkId(3)));
        assert!(!reported.contains(ChunkId(701)) && !reported.contains(ChunkId(4)));
    }
}
