//! Changes of replica sets on their way through the log, and who waits for them.
//!
//! Changes asked for while others are in flight go together in the next proposal: a dead CS with a thousand chunks in
//! use costs two rounds of the quorum, not a thousand. The first change of all waits for nothing.

use crate::state::{SetChange, SetOutcome, SetResult};
use shards::ConnId;
use std::collections::BTreeMap;
use wire::{ChunkId, Head};

/// Changes in one proposal.
const MAX_BATCH: usize = 4096;

/// Who gets an answer, and about which chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub conn: ConnId,
    pub head: Head,
    /// A chunk server asked, and not a client.
    pub from_cs: bool,
    /// All chunks it asked about, changed or not.
    pub chunks: Vec<ChunkId>,
    waiting: usize,
}

#[derive(Default)]
pub struct SetQueue {
    queued: Vec<(SetChange, Option<u64>)>,
    /// Groups behind the changes in flight, in their order.
    in_flight: Option<Vec<(ChunkId, Option<u64>)>>,
    groups: BTreeMap<u64, Group>,
    next_group: u64,
}

impl SetQueue {
    /// Queues changes for an asker, who is answered when all are done. `changes` must not be empty.
    pub fn ask(
        &mut self,
        conn: ConnId,
        head: Head,
        from_cs: bool,
        chunks: Vec<ChunkId>,
        changes: Vec<SetChange>,
    ) {
        assert!(!changes.is_empty(), "an asker without changes is answered at once");
        self.next_group += 1;
        let group = Group { conn, head, from_cs, chunks, waiting: changes.len() };
        self.groups.insert(self.next_group, group);
        self.queued.extend(changes.into_iter().map(|c| (c, Some(self.next_group))));
    }

    /// Queues a change that nobody waits for.
    pub fn push(&mut self, change: SetChange) {
        self.queued.push((change, None));
    }

    /// The changes to propose now.
    pub fn launch(&mut self) -> Option<Vec<SetChange>> {
        if self.in_flight.is_some() || self.queued.is_empty() {
            return None;
        }
        let rest = self.queued.split_off(self.queued.len().min(MAX_BATCH));
        let batch = std::mem::replace(&mut self.queued, rest);
        self.in_flight = Some(batch.iter().map(|(change, group)| (change.chunk, *group)).collect());
        Some(batch.into_iter().map(|(change, _)| change).collect())
    }

    /// The changes in flight were applied. Returns groups to answer, and the outcomes nobody waits for.
    pub fn applied(&mut self, results: &[SetResult]) -> (Vec<Group>, Vec<(ChunkId, SetOutcome)>) {
        let sent = self.in_flight.take().unwrap_or_default();
        let mut own = Vec::new();
        let mut done = Vec::new();
        for ((chunk, group), result) in sent.into_iter().zip(results) {
            let Some(number) = group else {
                own.push((chunk, result.outcome));
                continue;
            };
            let group =
                self.groups.get_mut(&number).expect("a change belongs to its group until it is applied");
            group.waiting -= 1;
            if group.waiting == 0 {
                done.extend(self.groups.remove(&number));
            }
        }
        (done, own)
    }

    /// Everybody who waits, for a master that is none any more.
    pub fn drain(&mut self) -> Vec<Group> {
        self.queued.clear();
        self.in_flight = None;
        std::mem::take(&mut self.groups).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SetAction;
    use wire::{CsId, Epoch, Kind};

    fn change(chunk: u64) -> SetChange {
        SetChange {
            chunk: ChunkId(chunk),
            epoch: Epoch(1),
            action: SetAction::Drop { cs: vec![CsId(1)], force: false },
        }
    }

    fn result(chunk: u64) -> SetResult {
        SetResult { chunk: ChunkId(chunk), outcome: SetOutcome::Changed, set: None }
    }

    #[test]
    fn changes_gather_while_others_are_in_flight() {
        let mut q = SetQueue::default();
        let head = Head::new(Kind::MdsRequest, 5);
        q.ask(ConnId(1), head, false, vec![ChunkId(1)], vec![change(1)]);
        assert_eq!(q.launch().unwrap().len(), 1);
        q.ask(ConnId(2), head, true, vec![ChunkId(2), ChunkId(3)], vec![change(2), change(3)]);
        q.push(change(4));
        assert!(q.launch().is_none());
        let (done, own) = q.applied(&[result(1)]);
        assert_eq!((done.len(), own.len()), (1, 0));
        assert_eq!(q.launch().unwrap(), [change(2), change(3), change(4)]);
        let (done, own) = q.applied(&[result(2), result(3), result(4)]);
        assert_eq!(done.iter().map(|g| g.conn).collect::<Vec<_>>(), [ConnId(2)]);
        assert_eq!(own, [(ChunkId(4), SetOutcome::Changed)]);
    }
}
