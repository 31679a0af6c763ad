//! How long things took within the last 20 seconds, in buckets of a second each, as administrators want to see it.

use shards::Timestamp;
use std::time::Duration;
use wire::cs_api::LatencyStat;

const BUCKETS: usize = 20;

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Counted from the start.
    second: u64,
    operations: u32,
    sum_us: u64,
    max_us: u32,
}

fn second_of(at: Timestamp) -> u64 {
    at.0 / 1_000_000_000
}

/// Average and maximum.
#[derive(Default)]
pub struct Latency {
    buckets: [Bucket; BUCKETS],
}

impl Latency {
    /// Something ended that took so long.
    pub fn took(&mut self, time: Duration, now: Timestamp) {
        let second = second_of(now);
        let bucket = &mut self.buckets[second as usize % BUCKETS];
        if bucket.second != second {
            *bucket = Bucket { second, ..Bucket::default() };
        }
        let us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        bucket.operations = bucket.operations.saturating_add(1);
        bucket.sum_us += u64::from(us);
        bucket.max_us = bucket.max_us.max(us);
    }

    pub fn of_late(&self, now: Timestamp) -> LatencyStat {
        let (mut operations, mut sum_us, mut max_us) = (0u32, 0, 0);
        for bucket in self.buckets.iter().filter(|b| b.second + BUCKETS as u64 > second_of(now)) {
            operations = operations.saturating_add(bucket.operations);
            sum_us += bucket.sum_us;
            max_us = max_us.max(bucket.max_us);
        }
        let mean_us = sum_us.checked_div(operations.into()).unwrap_or(0) as u32;
        LatencyStat { operations, mean_us, max_us }
    }
}

/// The share of the time in which something was waited for.
#[derive(Default)]
pub struct Waits {
    /// Nanoseconds of waiting in each of the last seconds.
    buckets: [(u64, u64); BUCKETS],
    /// While something is waited for: up to when it was counted.
    counted_to: Option<Timestamp>,
}

impl Waits {
    /// Whether something is waited for from now on.
    pub fn set(&mut self, waits: bool, now: Timestamp) {
        if let Some(from) = self.counted_to {
            self.count(from, now);
        }
        self.counted_to = waits.then_some(now);
    }

    fn count(&mut self, from: Timestamp, to: Timestamp) {
        // Of a longer wait only the end matters.
        let last = second_of(to);
        for second in second_of(from).max(last.saturating_sub(BUCKETS as u64))..=last {
            let begins = second * 1_000_000_000;
            let part = to.0.min(begins + 1_000_000_000).saturating_sub(from.0.max(begins));
            let bucket = &mut self.buckets[second as usize % BUCKETS];
            if bucket.0 != second {
                *bucket = (second, 0);
            }
            bucket.1 += part;
        }
    }

    /// Percent of the last 20 seconds; of less after the start.
    pub fn percent(&mut self, now: Timestamp) -> u32 {
        self.set(self.counted_to.is_some(), now);
        let oldest = (second_of(now) + 1).saturating_sub(BUCKETS as u64);
        let waited: u64 = self.buckets.iter().filter(|b| b.0 >= oldest).map(|b| b.1).sum();
        let time = now.0 - oldest * 1_000_000_000;
        (100 * waited).checked_div(time).unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp(ms * 1_000_000)
    }

    #[test]
    fn what_is_older_than_20_s_does_not_count() {
        let mut latency = Latency::default();
        assert_eq!(latency.of_late(at(0)), LatencyStat::default());
        latency.took(Duration::from_millis(9), at(500));
        latency.took(Duration::from_millis(1), at(19_900));
        assert_eq!(latency.of_late(at(19_999)), LatencyStat { operations: 2, mean_us: 5000, max_us: 9000 });
        assert_eq!(latency.of_late(at(20_000)), LatencyStat { operations: 1, mean_us: 1000, max_us: 1000 });
        latency.took(Duration::from_millis(3), at(20_500));
        assert_eq!(latency.of_late(at(20_500)), LatencyStat { operations: 2, mean_us: 2000, max_us: 3000 });
        assert_eq!(latency.of_late(at(60_000)), LatencyStat::default());
    }

    #[test]
    fn waiting_is_a_share_of_the_time() {
        let mut waits = Waits::default();
        assert_eq!(waits.percent(at(0)), 0);
        waits.set(true, at(0));
        waits.set(false, at(500));
        assert_eq!(waits.percent(at(1000)), 50);
        // Half of each second.
        for second in 1..60 {
            waits.set(true, at(second * 1000));
            waits.set(true, at(second * 1000 + 100));
            waits.set(false, at(second * 1000 + 500));
        }
        assert!((49..=51).contains(&waits.percent(at(60_000))));
        waits.set(true, at(60_000));
        assert!((99..=100).contains(&waits.percent(at(200_000))), "it still waits");
    }
}
