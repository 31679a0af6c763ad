//! Which chunks a file has: by runs, as a file that grows gets chunks with consecutive ids.

use rkyv::{Archive, Deserialize, Serialize};
use wire::ChunkId;

/// Chunks `chunk`, `chunk` + 1, … at `first`, `first` + 1, … of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Run {
    first: u32,
    count: u32,
    chunk: ChunkId,
}

impl Run {
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    fn chunk_at(&self, index: u32) -> ChunkId {
        ChunkId(self.chunk.0 + u64::from(index - self.first))
    }

    fn iter(self, from: u64, to: u64) -> impl Iterator<Item = (u32, ChunkId)> {
        let from = from.max(u64::from(self.first));
        (from..to.min(self.end())).map(move |index| (index as u32, self.chunk_at(index as u32)))
    }
}

/// The chunks of a file by their place in it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub enum Runs {
    #[default]
    None,
    One(Run),
    /// In order, none touching the next with consecutive ids.
    Many(Vec<Run>),
}

impl Runs {
    fn all(&self) -> &[Run] {
        match self {
            Runs::None => &[],
            Runs::One(run) => std::slice::from_ref(run),
            Runs::Many(runs) => runs,
        }
    }

    fn set(&mut self, runs: Vec<Run>) {
        *self = match runs[..] {
            [] => Runs::None,
            [run] => Runs::One(run),
            _ => Runs::Many(runs),
        };
    }

    /// The first run that does not end in front of `index`.
    fn at(&self, index: u32) -> usize {
        self.all().partition_point(|run| run.end() <= u64::from(index))
    }

    pub fn len(&self) -> u64 {
        self.all().iter().map(|run| u64::from(run.count)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    pub fn contains(&self, index: u32) -> bool {
        self.all().get(self.at(index)).is_some_and(|run| run.first <= index)
    }

    /// Chunks at `first` to `first + count - 1`.
    pub fn range(&self, first: u32, count: u32) -> impl Iterator<Item = (u32, ChunkId)> + '_ {
        let (from, to) = (u64::from(first), u64::from(first) + u64::from(count));
        let runs = self.all()[self.at(first)..].iter();
        runs.take_while(move |run| u64::from(run.first) < to).flat_map(move |run| run.iter(from, to))
    }

    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.all().iter().flat_map(|run| run.iter(0, u64::MAX)).map(|(_, chunk)| chunk)
    }

    /// Puts a chunk where none is.
    pub fn insert(&mut self, index: u32, chunk: ChunkId) {
        assert!(!self.contains(index), "a chunk replaces the one at {index}");
        let at = self.at(index);
        let new = Run { first: index, count: 1, chunk };
        let follows =
            |run: &Run| run.end() == u64::from(index) && run.chunk.0 + u64::from(run.count) == chunk.0;
        match self {
            Runs::None => *self = Runs::One(new),
            Runs::One(run) if at == 1 && follows(run) => run.count += 1,
            Runs::One(run) => *self = Runs::Many(if at == 0 { vec![new, *run] } else { vec![*run, new] }),
            Runs::Many(runs) => match at.checked_sub(1).map(|before| &mut runs[before]) {
                Some(before) if follows(before) => before.count += 1,
                _ => {
                    // To double would leave a quarter of all memory for runs empty.
                    if runs.len() == runs.capacity() {
                        runs.reserve_exact((runs.len() / 4).max(1));
                    }
                    runs.insert(at, new);
                }
            },
        }
    }

    /// Puts a chunk where another one is.
    pub fn replace(&mut self, index: u32, chunk: ChunkId) {
        let at = self.at(index);
        let Some(old) = self.all().get(at).copied().filter(|run| run.first <= index) else {
            return self.insert(index, chunk);
        };
        let before = Run { count: index - old.first, ..old };
        let behind = Run {
            first: index + 1,
            count: (old.end() - u64::from(index) - 1) as u32,
            chunk: ChunkId(old.chunk_at(index).0 + 1),
        };
        let parts = [before, Run { first: index, count: 1, chunk }, behind];
        let mut runs: Vec<Run> = self.all()[..at].to_vec();
        runs.extend(parts.into_iter().filter(|run| run.count > 0));
        runs.extend_from_slice(&self.all()[at + 1..]);
        runs.dedup_by(|next, run| {
            let follows =
                run.end() == u64::from(next.first) && run.chunk.0 + u64::from(run.count) == next.chunk.0;
            if follows {
                run.count += next.count;
            }
            follows
        });
        self.set(runs);
    }

    /// Takes out the chunks from `index` on.
    pub fn split_off(&mut self, index: u32) -> Vec<ChunkId> {
        let at = self.at(index);
        let gone = self.all()[at..].iter().flat_map(|run| run.iter(u64::from(index), u64::MAX));
        let gone: Vec<ChunkId> = gone.map(|(_, chunk)| chunk).collect();
        if gone.is_empty() {
            return gone;
        }
        let mut kept = self.all()[..at].to_vec();
        let cut = self.all()[at];
        if cut.first < index {
            kept.push(Run { count: index - cut.first, ..cut });
        }
        self.set(kept);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn runs_are_a_map(
            steps in proptest::collection::vec((0..60u32, 0..5u8, 1..20u32), 1..80),
        ) {
            let (mut runs, mut model, mut next) = (Runs::default(), BTreeMap::new(), 1);
            for (index, kind, count) in steps {
                if kind == 0 {
                    let gone: Vec<ChunkId> = model.split_off(&index).into_values().collect();
                    prop_assert_eq!(runs.split_off(index), gone);
                }
                for index in (index..index + count).filter(|_| kind > 0) {
                    if kind == 4 {
                        runs.replace(index, ChunkId(next));
                        model.insert(index, ChunkId(next));
                        next += 1;
                    }
                    if runs.contains(index) {
                        continue;
                    }
                    runs.insert(index, ChunkId(next));
                    model.insert(index, ChunkId(next));
                    next += 1;
                }
                prop_assert_eq!(runs.len(), model.len() as u64);
                prop_assert_eq!(runs.is_empty(), model.is_empty());
                prop_assert!(runs.chunks().eq(model.values().copied()));
                for first in [0, index, index + 1, 70] {
                    let held: Vec<_> = model.range(first..first + count).map(|(i, c)| (*i, *c)).collect();
                    prop_assert_eq!(runs.range(first, count).collect::<Vec<_>>(), held);
                    prop_assert_eq!(runs.contains(first), model.contains_key(&first));
                }
            }
        }
    }

    #[test]
    fn what_grows_in_order_is_one_run() {
        let mut runs = Runs::default();
        (0..1000).for_each(|index| runs.insert(index, ChunkId(7 + u64::from(index))));
        assert_eq!(runs, Runs::One(Run { first: 0, count: 1000, chunk: ChunkId(7) }));
        runs.insert(u32::MAX, ChunkId(2000));
        assert_eq!(runs.range(999, u32::MAX).count(), 2);
    }
}
