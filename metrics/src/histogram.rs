//! How long things take, by how often: what a monitoring system makes percentiles of, also over many servers.

use std::time::Duration;

/// Upper bounds in microseconds: a cached read of 50 us to a request that waited for a server that died.
const BOUNDS_US: [u64; 18] = [
    50, 100, 200, 350, 500, 750, 1_000, 1_500, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// Times in buckets, since the start of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// The last one: longer than every bound.
    counts: [u64; BOUNDS_US.len() + 1],
    sum_us: u64,
}

impl Histogram {
    pub fn took(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counts[BOUNDS_US.partition_point(|bound| *bound < us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// Upper bounds in seconds and what lies between each and the one before. [`f64::MAX`] stands for no bound.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        bounds.zip(self.counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_below_their_bounds() {
        let mut h = Histogram::default();
        for us in [0, 50, 51, 1_000, 30_000_000, 30_000_001, u64::MAX / 2] {
            h.took(Duration::from_micros(us));
        }
        let filled: Vec<(f64, u64)> = h.buckets().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(5e-5, 2), (1e-4, 1), (1e-3, 1), (30.0, 1), (f64::MAX, 2)]);
        assert_eq!(h.count(), 7);
        h.took(Duration::MAX);
        assert_eq!((h.count(), h.sum_us), (8, u64::MAX));
    }
}
