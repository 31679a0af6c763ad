//! How fast copies are made, for the statistics.

use shards::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of the last so many seconds.
const WINDOW: Duration = Duration::from_secs(30);

/// Copies since work began.
#[derive(Default)]
pub struct Progress {
    began: Option<Timestamp>,
    done: u64,
    total: u64,
    recent: VecDeque<Timestamp>,
}

impl Progress {
    /// There is something to copy, or nothing any more.
    pub fn set_busy(&mut self, busy: bool, now: Timestamp) {
        match (busy, self.began) {
            (true, None) => (self.began, self.done) = (Some(now), 0),
            (false, Some(_)) => self.began = None,
            _ => {}
        }
    }

    /// A replica has everything.
    pub fn copied(&mut self, now: Timestamp) {
        self.done += 1;
        self.total += 1;
        self.recent.push_back(now);
        self.forget(now);
    }

    fn forget(&mut self, now: Timestamp) {
        while self.recent.front().is_some_and(|at| now.since(*at) > WINDOW) {
            self.recent.pop_front();
        }
    }

    /// Copies since it began.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Copies since this mastership began.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn per_s(&self, now: Timestamp) -> f64 {
        let Some(began) = self.began else { return 0.0 };
        let recent = self.recent.iter().filter(|at| **at >= began && now.since(**at) <= WINDOW).count();
        let time = now.since(began).clamp(Duration::from_secs(1), WINDOW);
        recent as f64 / time.as_secs_f64()
    }

    /// Seconds until `left` more copies are made, at the rate of now.
    pub fn seconds_left(&self, left: u64, now: Timestamp) -> Option<u64> {
        let rate = self.per_s(now);
        (rate > 0.0).then(|| (left as f64 / rate).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_half_minute() {
        let at = |s: u64| Timestamp(s * 1_000_000_000);
        let mut p = Progress::default();
        p.set_busy(true, at(100));
        (1..=20).for_each(|n| p.copied(at(100 + n)));
        assert_eq!((p.done(), p.per_s(at(120)), p.seconds_left(30, at(120))), (20, 1.0, Some(30)));
        assert_eq!(p.seconds_left(30, at(1000)), None, "nothing goes on");
        p.set_busy(false, at(1000));
        p.set_busy(true, at(1001));
        assert_eq!((p.done(), p.per_s(at(1002))), (0, 0.0));
    }
}
