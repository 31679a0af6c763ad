//! How fast this shard copies chunks to learners: so many bytes a second at most, whatever the disks and the network give.

use shards::Timestamp;
use std::time::Duration;

/// What was not used so long ago may be made up for.
const MOST_SAVED: Duration = Duration::from_millis(100);

/// A budget that fills with time. What is copied may overdraw it by one piece.
#[derive(Default)]
pub struct Pace {
    /// 0: no limit.
    bytes_per_s: u64,
    left: i64,
    filled_at: Option<Timestamp>,
}

impl Pace {
    pub fn set(&mut self, bytes_per_s: u64) {
        if bytes_per_s != self.bytes_per_s {
            *self = Pace { bytes_per_s, left: 0, filled_at: None };
        }
    }

    pub fn fill(&mut self, now: Timestamp) {
        let time = self.filled_at.map_or(Duration::ZERO, |at| now.since(at));
        self.filled_at = Some(now);
        let bytes = |time: Duration| (time.as_secs_f64() * self.bytes_per_s as f64) as i64;
        self.left = (self.left + bytes(time)).min(bytes(MOST_SAVED).max(1));
    }

    pub fn may_copy(&self) -> bool {
        self.bytes_per_s == 0 || self.left > 0
    }

    pub fn copied(&mut self, bytes: u64) {
        if self.bytes_per_s > 0 {
            self.left -= bytes as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes copied in pieces of 256 KiB within `seconds`, with a tick every 20 ms.
    fn copied(pace: &mut Pace, seconds: u64) -> u64 {
        let mut bytes = 0;
        for tick in 0..seconds * 50 {
            pace.fill(Timestamp((tick + 1) * 20_000_000));
            let mut pieces = 0;
            while pace.may_copy() && pieces < 1000 {
                pace.copied(256 << 10);
                (bytes, pieces) = (bytes + (256 << 10), pieces + 1);
            }
        }
        bytes
    }

    #[test]
    fn the_rate_is_kept_whatever_the_size_of_pieces() {
        for mb in [1, 10, 100] {
            let mut pace = Pace::default();
            pace.set(mb << 20);
            let (got, wanted) = (copied(&mut pace, 10) as f64, ((10 * mb) << 20) as f64);
            assert!((0.95..1.05).contains(&(got / wanted)), "{mb} MB/s: {} of it", got / wanted);
        }
        assert_eq!(copied(&mut Pace::default(), 1), 50 * 1000 * (256 << 10), "no limit");
    }
}
