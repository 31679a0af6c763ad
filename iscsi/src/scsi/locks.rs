//! Which changes of a unit must not meet: COMPARE AND WRITE has its blocks for itself, and what drains waits for all before it.
//! First come, first served, so that nobody waits for ever.

use std::ops::Range;

/// A command that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct JobId(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    pub blocks: Range<u64>,
    /// With nobody else at the same time.
    pub exclusive: bool,
}

impl Claim {
    fn conflicts(&self, other: &Claim) -> bool {
        (self.exclusive || other.exclusive)
            && self.blocks.start < other.blocks.end
            && other.blocks.start < self.blocks.end
    }
}

#[derive(Debug, Default)]
pub struct Locks {
    /// In the order in which they came; those that hold what they claim, and those that wait.
    all: Vec<(JobId, Claim, bool)>,
    exclusive_count: usize,
}

impl Locks {
    /// Whether the job may go on at once.
    pub fn claim(&mut self, job: JobId, claim: Claim) -> bool {
        self.exclusive_count += usize::from(claim.exclusive);
        let holds = self.exclusive_count == 0 || !self.all.iter().any(|(_, other, _)| claim.conflicts(other));
        self.all.push((job, claim, holds));
        holds
    }

    /// Ends a claim; those that waited for it and may go on now.
    pub fn release(&mut self, job: JobId) -> Vec<JobId> {
        let Some(at) = self.all.iter().position(|(id, ..)| *id == job) else { return Vec::new() };
        let (_, gone, _) = self.all.remove(at);
        if self.exclusive_count == 0 {
            return Vec::new();
        }
        self.exclusive_count -= usize::from(gone.exclusive);
        let mut freed = Vec::new();
        for n in at..self.all.len() {
            let (before, rest) = self.all.split_at_mut(n);
            let (id, claim, holds) = &mut rest[0];
            if !*holds && gone.conflicts(claim) && !before.iter().any(|(_, other, _)| claim.conflicts(other))
            {
                *holds = true;
                freed.push(*id);
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(blocks: Range<u64>, exclusive: bool) -> Claim {
        Claim { blocks, exclusive }
    }

    #[test]
    fn only_exclusive_claims_keep_others_away() {
        let mut locks = Locks::default();
        assert!(locks.claim(JobId(1), claim(0..10, false)));
        assert!(locks.claim(JobId(2), claim(5..15, false)));
        assert!(!locks.claim(JobId(3), claim(9..10, true)));
        assert!(locks.claim(JobId(4), claim(20..30, true)));
        assert!(!locks.claim(JobId(5), claim(9..12, false)), "behind one that waits");
        assert!(locks.claim(JobId(6), claim(12..13, false)));
        assert_eq!(locks.release(JobId(1)), []);
        assert_eq!(locks.release(JobId(2)), [JobId(3)]);
        assert_eq!(locks.release(JobId(3)), [JobId(5)]);
        for job in [4, 5, 6, 7] {
            assert_eq!(locks.release(JobId(job)), []);
        }
        assert!(locks.all.is_empty() && locks.exclusive_count == 0);
    }
}
