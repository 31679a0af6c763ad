//! Reads that wait for proof that this server is still the master.
//!
//! One question to the quorum (ReadIndex) is under way at a time and covers all reads that came before it; those that
//! come meanwhile are the next batch. So the cost per read falls as the load grows, and a deposed master never answers
//! with old data.

use shards::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// A question without an answer for so long is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

struct Flying<T> {
    number: u64,
    asked_at: Timestamp,
    reads: Vec<T>,
}

pub struct Reads<T> {
    queued: Vec<T>,
    flying: Option<Flying<T>>,
    /// Proved; may be answered once the state has applied the index.
    proved: VecDeque<(u64, Vec<T>)>,
    next_number: u64,
}

impl<T> Reads<T> {
    pub fn new() -> Reads<T> {
        Reads { queued: Vec::new(), flying: None, proved: VecDeque::new(), next_number: 1 }
    }

    pub fn push(&mut self, read: T) {
        self.queued.push(read);
    }

    /// The number of a question to ask now, if any.
    pub fn launch(&mut self, now: Timestamp) -> Option<u64> {
        if let Some(flying) = self.flying.take_if(|f| now.since(f.asked_at) > ASK_AGAIN) {
            let later = std::mem::replace(&mut self.queued, flying.reads);
            self.queued.extend(later);
        }
        if self.flying.is_some() || self.queued.is_empty() {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.flying = Some(Flying { number, asked_at: now, reads: std::mem::take(&mut self.queued) });
        Some(number)
    }

    /// The quorum answered: everything up to `index` was committed before the question.
    pub fn proved(&mut self, number: u64, index: u64) {
        if let Some(flying) = self.flying.take_if(|f| f.number == number) {
            self.proved.push_back((index, flying.reads));
        }
    }

    /// Reads that may be answered from a state that has applied `applied`.
    pub fn take_ready(&mut self, applied: u64) -> Vec<T> {
        let mut ready = Vec::new();
        while self.proved.front().is_some_and(|(index, _)| *index <= applied) {
            ready.extend(self.proved.pop_front().expect("the front was looked at").1);
        }
        ready
    }

    /// Everything that still waits, for a master that is none any more.
    pub fn drain(&mut self) -> Vec<T> {
        let flying = self.flying.take().map_or_else(Vec::new, |f| f.reads);
        let proved = std::mem::take(&mut self.proved).into_iter().flat_map(|(_, reads)| reads);
        proved.chain(flying).chain(std::mem::take(&mut self.queued)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_in_batches_and_wait_for_the_state() {
        let at = |ms: u64| Timestamp(ms * 1_000_000);
        let mut r = Reads::new();
        r.push('a');
        assert_eq!(r.launch(at(0)), Some(1));
        r.push('b');
        r.push('c');
        assert_eq!(r.launch(at(0)), None, "one question at a time");
        r.proved(1, 10);
        assert!(r.take_ready(9).is_empty());
        assert_eq!(r.launch(at(0)), Some(2));
        assert_eq!(r.take_ready(10), ['a']);
        assert_eq!(r.launch(at(1000)), Some(3), "asked again");
        r.proved(2, 10);
        assert!(r.take_ready(10).is_empty(), "the answer to a question given up");
        r.push('d');
        r.proved(3, 10);
        assert_eq!(r.drain(), ['b', 'c', 'd']);
    }
}
