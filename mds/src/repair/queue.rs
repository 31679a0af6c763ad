//! Which chunk comes next.
//!
//! Chunks are first *looked at*, to see what they need; those that need a copy then *wait* for a free slot of the shard
//! that leads them. So a source that is busy holds nobody up but those that need it, and of these the most endangered
//! goes first, whenever it came.

use std::collections::{BTreeMap, BTreeSet};
use wire::{ChunkId, CsId, ShardIndex};

/// The shard that leads a chunk, and therefore copies it.
pub type Source = (CsId, ShardIndex);

/// How soon a chunk must be helped; smaller is sooner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// Replicas are missing; so many are in sync.
    Missing { in_sync: u8 },
    /// Replicas share a failure domain.
    Shared,
    /// A replica is on a server that is being removed.
    Leaving,
    /// A replica is on another tier than wished for.
    OtherTier,
    /// A server is fuller than others.
    Balance,
}

impl Urgency {
    /// Whether nothing is in danger.
    pub fn is_move(self) -> bool {
        !matches!(self, Urgency::Missing { .. })
    }
}

type Ordered = BTreeSet<(Urgency, ChunkId)>;

#[derive(Default)]
pub struct Queue {
    looks: Ordered,
    waiting: BTreeMap<Source, Ordered>,
    /// Where each chunk stands.
    at: BTreeMap<ChunkId, (Option<Source>, Urgency)>,
}

impl Queue {
    /// Has the chunk looked at, wherever it stood.
    pub fn look(&mut self, chunk: ChunkId, urgency: Urgency) {
        self.put(chunk, None, urgency);
    }

    /// Has it wait for a slot.
    pub fn wait(&mut self, chunk: ChunkId, source: Source, urgency: Urgency) {
        self.put(chunk, Some(source), urgency);
    }

    fn put(&mut self, chunk: ChunkId, source: Option<Source>, urgency: Urgency) {
        self.remove(chunk);
        self.at.insert(chunk, (source, urgency));
        match source {
            None => self.looks.insert((urgency, chunk)),
            Some(source) => self.waiting.entry(source).or_default().insert((urgency, chunk)),
        };
    }

    pub fn remove(&mut self, chunk: ChunkId) {
        let Some((source, urgency)) = self.at.remove(&chunk) else { return };
        let Some(source) = source else {
            self.looks.remove(&(urgency, chunk));
            return;
        };
        if let Some(waiting) = self.waiting.get_mut(&source) {
            waiting.remove(&(urgency, chunk));
            if waiting.is_empty() {
                self.waiting.remove(&source);
            }
        }
    }

    pub fn contains(&self, chunk: ChunkId) -> bool {
        self.at.contains_key(&chunk)
    }

    /// Whether it waits for a slot.
    pub fn is_waiting(&self, chunk: ChunkId) -> bool {
        self.at.get(&chunk).is_some_and(|(source, _)| source.is_some())
    }

    pub fn next_look(&mut self) -> Option<ChunkId> {
        let (_, chunk) = *self.looks.first()?;
        self.remove(chunk);
        Some(chunk)
    }

    /// Shards that are waited for.
    pub fn sources(&self) -> Vec<Source> {
        self.waiting.keys().copied().collect()
    }

    /// The first `most` chunks that wait for a shard.
    pub fn first_waiting(&self, source: Source, most: usize) -> Vec<(Urgency, ChunkId)> {
        self.waiting.get(&source).into_iter().flatten().take(most).copied().collect()
    }

    /// Chunks that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.at.len() - self.looks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_endangered_goes_first_for_each_source() {
        let missing = |in_sync| Urgency::Missing { in_sync };
        let (a, b) = ((CsId(1), ShardIndex(0)), (CsId(2), ShardIndex(0)));
        let mut q = Queue::default();
        for chunk in 1..=3 {
            q.look(ChunkId(chunk), missing(2));
        }
        q.look(ChunkId(3), missing(1));
        assert_eq!(q.next_look(), Some(ChunkId(3)), "looked at again, as more urgent");
        q.wait(ChunkId(3), a, missing(1));
        q.wait(ChunkId(1), a, Urgency::Leaving);
        q.wait(ChunkId(4), a, Urgency::Shared);
        q.wait(ChunkId(2), b, missing(2));
        let first = |q: &Queue, source| q.first_waiting(source, 9).iter().map(|w| w.1.0).collect::<Vec<_>>();
        assert_eq!((first(&q, a), first(&q, b)), (vec![3, 4, 1], vec![2]));
        assert_eq!((q.waiting(), q.next_look()), (4, None));
        q.look(ChunkId(4), missing(0));
        assert_eq!((first(&q, a), q.waiting(), q.contains(ChunkId(4))), (vec![3, 1], 3, true));
        assert!(
            !q.is_waiting(ChunkId(4)) && q.is_waiting(ChunkId(3)),
            "one that is looked at does not wait yet"
        );
        q.remove(ChunkId(2));
        assert_eq!(q.sources(), [a]);
    }
}
