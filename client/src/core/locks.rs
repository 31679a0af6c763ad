//! Order between changes of one file: a change holds the blocks it touches until it has ended.
//!
//! Invariants: no two holders overlap; a waiter is granted before any later one that overlaps it, so nobody
//! starves. Reads take no lock: the primary orders them against writes.

use std::collections::VecDeque;
use std::ops::Range;

/// Blocks of a file.
pub(super) type Blocks = Range<u64>;

pub(super) struct RangeLocks<W> {
    held: Vec<(u64, Blocks)>,
    waiting: VecDeque<(u64, Blocks, W)>,
}

impl<W> Default for RangeLocks<W> {
    fn default() -> Self {
        RangeLocks { held: Vec::new(), waiting: VecDeque::new() }
    }
}

fn overlap(a: &Blocks, b: &Blocks) -> bool {
    a.start < b.end && b.start < a.end
}

impl<W> RangeLocks<W> {
    /// Gives `waiter` back when `blocks` are held from now on under `id`; else keeps it for `unlock`.
    pub fn lock(&mut self, id: u64, blocks: Blocks, waiter: W) -> Option<W> {
        let taken = self.held.iter().map(|(_, b)| b).chain(self.waiting.iter().map(|(_, b, _)| b));
        if taken.into_iter().any(|b| overlap(b, &blocks)) {
            self.waiting.push_back((id, blocks, waiter));
            return None;
        }
        self.held.push((id, blocks));
        Some(waiter)
    }

    /// Ends `id`; returns the waiters that hold their blocks from now on, in order.
    pub fn unlock(&mut self, id: u64) -> Vec<W> {
        if let Some(at) = self.held.iter().position(|(h, _)| *h == id) {
            self.held.swap_remove(at);
        }
        let mut granted = Vec::new();
        let mut still: VecDeque<(u64, Blocks, W)> = VecDeque::new();
        for (id, blocks, waiter) in self.waiting.drain(..) {
            let free = !self
                .held
                .iter()
                .map(|(_, b)| b)
                .chain(still.iter().map(|(_, b, _)| b))
                .any(|b| overlap(b, &blocks));
            if free {
                self.held.push((id, blocks));
                granted.push(waiter);
            } else {
                still.push_back((id, blocks, waiter));
            }
        }
        self.waiting = still;
        granted
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_changes_take_turns_in_order() {
        let mut locks = RangeLocks::default();
        assert_eq!(locks.lock(1, 0..4, 'a'), Some('a'));
        assert_eq!(locks.lock(2, 4..8, 'b'), Some('b'));
        assert_eq!(locks.lock(3, 3..5, 'c'), None);
        assert_eq!(locks.lock(4, 4..5, 'd'), None, "waits behind c though only b holds it");
        assert_eq!(locks.lock(5, 9..10, 'e'), Some('e'));
        assert!(locks.unlock(1).is_empty());
        assert_eq!(locks.unlock(2), vec!['c']);
        assert_eq!(locks.unlock(3), vec!['d']);
        assert!(locks.unlock(4).is_empty() && locks.unlock(5).is_empty() && locks.is_idle());
    }
}
