//! Gray failures: a replica that answers, but much later than the others, and for long.
//!
//! A primary sees how long each member of its sets, itself included, takes to make a write durable. Members are compared
//! over the same writes only, so that neither large writes nor a busy moment make one of them look slow. One that has been
//! slow in [`WINDOWS`] windows in a row is named; the metadata service decides. A member that never answers is compared
//! by how long it has not.

use shards::Timestamp;
use smallvec::SmallVec;
use std::time::Duration;
use wire::CsId;

/// In so many windows in a row a member must be slow.
const WINDOWS: u32 = 5;
/// Writes in a window that say something. A single one that has taken the whole window does too.
const FEWEST: u32 = 3;
/// Faster than this, on average, is never slow.
pub(super) const FLOOR: Duration = Duration::from_millis(50);
/// So many times the median of the others is slow.
const FACTOR: u64 = 8;

/// How long each member took for a write, or has been taking.
pub(super) type Times = SmallVec<[(CsId, Duration); 3]>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slow {
    pub cs: CsId,
    /// Mean of its writes, and of what the others took for the same.
    pub takes: Duration,
    pub others: Duration,
}

struct Member {
    cs: CsId,
    writes: u32,
    took: Duration,
    /// Medians of the others, for the same writes.
    others_took: Duration,
    slow_windows: u32,
}

pub(super) struct SlowWatch {
    window: Duration,
    ends_at: Option<Timestamp>,
    members: Vec<Member>,
}

impl SlowWatch {
    /// A member must be slow for this long.
    pub fn new(sustained: Duration) -> SlowWatch {
        SlowWatch { window: sustained / WINDOWS, ends_at: None, members: Vec::new() }
    }

    /// One write of two or more members.
    pub fn took(&mut self, times: &Times) {
        for (n, &(cs, took)) in times.iter().enumerate() {
            let others =
                times.iter().enumerate().filter(|(other, _)| *other != n).map(|(_, (_, time))| *time);
            let mut others: SmallVec<[Duration; 3]> = others.collect();
            if others.is_empty() {
                return;
            }
            others.sort_unstable();
            let median = others[others.len() / 2];
            let at = self.members.iter().position(|m| m.cs == cs).unwrap_or_else(|| {
                self.members.push(Member {
                    cs,
                    writes: 0,
                    took: Duration::ZERO,
                    others_took: Duration::ZERO,
                    slow_windows: 0,
                });
                self.members.len() - 1
            });
            let member = &mut self.members[at];
            let weight = if took >= self.window { FEWEST } else { 1 };
            member.writes += weight;
            member.took += took * weight;
            member.others_took += median * weight;
        }
    }

    /// Whether a window ends now; what is still under way should then be told before [`SlowWatch::end_window`].
    pub fn is_due(&mut self, now: Timestamp) -> bool {
        let window = self.window;
        now >= *self.ends_at.get_or_insert_with(|| now.after(window))
    }

    /// Members that have been slow for long.
    pub fn end_window(&mut self, now: Timestamp) -> Vec<Slow> {
        self.ends_at = Some(now.after(self.window));
        let mut slow = Vec::new();
        for member in &mut self.members {
            let enough = member.writes >= FEWEST;
            let writes = member.writes.max(1);
            let (takes, others) = (member.took / writes, member.others_took / writes);
            // Nothing to see is no sign of health, nor of the contrary.
            if enough && takes >= FLOOR && takes.as_micros() as u64 >= FACTOR * others.as_micros() as u64 {
                member.slow_windows += 1;
            } else if enough || member.slow_windows >= WINDOWS {
                member.slow_windows = 0; // it is well again, or was taken out of the sets
            }
            if enough && member.slow_windows >= WINDOWS {
                slow.push(Slow { cs: member.cs, takes, others });
            }
            (member.writes, member.took, member.others_took) = (0, Duration::ZERO, Duration::ZERO);
        }
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSTAINED: Duration = Duration::from_secs(10);

    /// Windows until somebody is named, of at most 20, with `writes` of these milliseconds in each.
    fn named_after(writes: usize, ms: impl Fn(u64) -> [u64; 3]) -> Option<(u64, Slow)> {
        let mut watch = SlowWatch::new(SUSTAINED);
        let mut now = Timestamp(1);
        watch.is_due(now);
        for window in 1..=20 {
            for _ in 0..writes {
                let times = (1..).map(CsId).zip(ms(window).map(Duration::from_millis));
                watch.took(&times.collect());
            }
            now = now.after(SUSTAINED / WINDOWS);
            assert!(watch.is_due(now));
            let slow = watch.end_window(now);
            assert!(slow.len() <= 1);
            if let Some(slow) = slow.first() {
                return Some((window, *slow));
            }
        }
        None
    }

    #[test]
    fn one_that_is_slow_for_long_is_named() {
        let (window, slow) = named_after(10, |_| [2, 3, 400]).unwrap();
        assert_eq!((window, slow.cs, slow.takes), (5, CsId(3), Duration::from_millis(400)));
        assert_eq!(named_after(3, |_| [500, 2, 3]).unwrap().1.cs, CsId(1), "also the primary itself");
        assert_eq!(named_after(1, |_| [2, 3, 2500]).unwrap().1.cs, CsId(3), "one that hangs");
    }

    #[test]
    fn nobody_is_named_for_a_moment_or_when_all_are_slow() {
        assert_eq!(named_after(10, |_| [2, 3, 40]), None, "below the floor");
        assert_eq!(named_after(10, |_| [300, 400, 900]), None, "a busy cluster");
        assert_eq!(named_after(10, |_| [2, 400, 400]), None, "two of three: the network of the primary");
        assert_eq!(
            named_after(10, |window| [2, 3, if window % 5 == 0 { 4 } else { 900 }]),
            None,
            "now and then"
        );
        assert_eq!(named_after(2, |_| [2, 3, 400]), None, "too few writes to say");
    }

    #[test]
    fn windows_without_writes_neither_count_nor_clear() {
        let mut watch = SlowWatch::new(SUSTAINED);
        let times: Times =
            [(CsId(1), Duration::from_millis(1)), (CsId(2), Duration::from_secs(1))][..].into();
        for window in 0..10 {
            let written = window % 2 == 0;
            for _ in 0..3 * usize::from(written) {
                watch.took(&times);
            }
            let named = !watch.end_window(Timestamp(window)).is_empty();
            assert_eq!(named, window == 8);
        }
        (0..3).for_each(|_| watch.took(&times));
        assert!(watch.end_window(Timestamp(11)).is_empty(), "taken out and back: it begins anew");
    }
}
