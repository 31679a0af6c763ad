//! How fast this shard copies chunks to learners: so many bytes a second at most; and while clients work, here or where a
//! copy goes, one piece at a time with pauses between, so that few requests meet one.

use shards::Timestamp;
use std::time::Duration;

/// What was not used so long ago may be made up for.
const MOST_SAVED: Duration = Duration::from_millis(100);
/// While clients work, one part in so many of the time is for copies.
const SHARE: u32 = 8;
/// Clients that asked for nothing for so long have no work.
const CLIENTS_REST: Duration = Duration::from_millis(200);
/// A piece is begun this often at least: a disk that hangs for a moment does not end a repair.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A budget that fills with time, which what is copied may overdraw by one piece; and the pauses for clients.
#[derive(Default)]
pub struct Pace {
    /// 0: no limit.
    bytes_per_s: u64,
    left: i64,
    filled_at: Option<Timestamp>,
    clients_here_at: Option<Timestamp>,
    clients_there_at: Option<Timestamp>,
    /// How long a piece takes, from its begin until it is stored by the learner; of late.
    piece: Duration,
    /// Before this no piece is begun while clients work.
    pause_until: Timestamp,
}

impl Pace {
    pub fn set(&mut self, bytes_per_s: u64) {
        if bytes_per_s != self.bytes_per_s {
            (self.bytes_per_s, self.left, self.filled_at) = (bytes_per_s, 0, None);
        }
    }

    pub fn fill(&mut self, now: Timestamp) {
        let time = self.filled_at.map_or(Duration::ZERO, |at| now.since(at));
        self.filled_at = Some(now);
        let bytes = |time: Duration| (time.as_secs_f64() * self.bytes_per_s as f64) as i64;
        self.left = (self.left + bytes(time)).min(bytes(MOST_SAVED).max(1));
    }

    /// A client's work came to this shard.
    pub fn client_works_here(&mut self, now: Timestamp) {
        self.clients_here_at = Some(now);
    }

    /// One that is copied to has clients. That is not told further: two that copy to each other would go on for ever.
    pub fn client_works_there(&mut self, now: Timestamp) {
        self.clients_there_at = Some(now);
    }

    pub fn clients_work_here(&self, now: Timestamp) -> bool {
        self.clients_here_at.is_some_and(|at| now.since(at) < CLIENTS_REST)
    }

    fn clients_work(&self, now: Timestamp) -> bool {
        let there = self.clients_there_at.is_some_and(|at| now.since(at) < CLIENTS_REST);
        there || self.clients_work_here(now)
    }

    /// Whether a piece may be begun. `urgent`: clients wait for this copy itself.
    pub fn may_copy(&self, urgent: bool, now: Timestamp) -> bool {
        let within_rate = self.bytes_per_s == 0 || self.left > 0;
        within_rate && (urgent || now >= self.pause_until || !self.clients_work(now))
    }

    /// A piece is begun.
    pub fn copied(&mut self, bytes: u64, now: Timestamp) {
        if self.bytes_per_s > 0 {
            self.left -= bytes as i64;
        }
        self.pause_until = now.after((self.piece * SHARE).min(LONGEST_PAUSE));
    }

    /// A piece is stored.
    pub fn took(&mut self, piece: Duration) {
        self.piece = (self.piece + piece) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes copied in pieces of 256 KiB within `seconds`, with a tick every 20 ms.
    fn copied(pace: &mut Pace, seconds: u64) -> u64 {
        let mut bytes = 0;
        for tick in 0..seconds * 50 {
            let now = Timestamp((tick + 1) * 20_000_000);
            pace.fill(now);
            let mut pieces = 0;
            while pace.may_copy(false, now) && pieces < 1000 {
                pace.copied(256 << 10, now);
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

    #[test]
    fn copies_take_a_share_of_the_time_while_clients_work() {
        let piece = Duration::from_millis(1);
        let begun_within_a_second = |clients: bool, urgent: bool| {
            let (mut pace, mut begun) = (Pace::default(), 0);
            for now in (1..=10_000).map(|n| Timestamp(n * 100_000)) {
                if clients {
                    pace.client_works_here(now);
                }
                if pace.may_copy(urgent, now) {
                    pace.copied(256 << 10, now);
                    pace.took(piece);
                    begun += 1;
                }
            }
            begun
        };
        assert!((120..=140).contains(&begun_within_a_second(true, false)), "1 ms of 8");
        assert_eq!(begun_within_a_second(false, false), 10_000, "nobody is disturbed");
        assert_eq!(begun_within_a_second(true, true), 10_000, "clients wait for it");

        let mut pace = Pace::default();
        let now = Timestamp(1);
        pace.took(Duration::from_secs(60));
        pace.client_works_here(now);
        pace.copied(1, now);
        assert!(!pace.may_copy(false, now.after(LONGEST_PAUSE / 2)));
        assert!(pace.may_copy(false, now.after(LONGEST_PAUSE)), "a disk that hung");
    }

    #[test]
    fn that_clients_work_elsewhere_is_not_told_further() {
        let mut pace = Pace::default();
        pace.took(Duration::from_millis(10));
        pace.client_works_there(Timestamp(1));
        pace.copied(1, Timestamp(1));
        assert!(!pace.may_copy(false, Timestamp(2)) && !pace.clients_work_here(Timestamp(2)));
    }
}
