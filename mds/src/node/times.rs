//! How long the master takes to answer clients: for the metrics, and for the log what took long.

use ::metrics::Histogram;
use shards::{ConnId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::mds_api::MdsRequest;
use wire::trace::SlowLog;
use wire::{Head, Status};

pub struct Times {
    slow_over: Duration,
    /// Requests that wait for their answers: which kind of request, and since when.
    under_way: BTreeMap<(ConnId, u64), (&'static str, Timestamp)>,
    slow_log: SlowLog,
    /// What the others took, by kind.
    pub took: BTreeMap<&'static str, Histogram>,
}

impl Times {
    pub fn new(slow_over: Duration) -> Times {
        Times { slow_over, under_way: BTreeMap::new(), slow_log: SlowLog::default(), took: BTreeMap::new() }
    }

    pub fn begins(&mut self, conn: ConnId, head: &Head, request: &MdsRequest, now: Timestamp) {
        self.under_way.insert((conn, head.request), (request.into(), now));
    }

    pub fn ended(&mut self, conn: ConnId, head: &Head, status: Status, now: Timestamp) {
        let Some((request, since)) = self.under_way.remove(&(conn, head.request)) else { return };
        let total = now.since(since);
        self.took.entry(request).or_default().took(total);
        if total > self.slow_over
            && let Some(left_out) = self.slow_log.admit(now)
        {
            let total_ms = total.as_millis() as u64;
            tracing::warn!(name: "slow_request", request, number = head.request, ?status, total_ms, left_out);
        }
    }

    /// Nobody waits for answers there any more.
    pub fn gone(&mut self, conn: ConnId) {
        self.under_way.retain(|(of, _), _| *of != conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{FileId, Kind};

    #[test]
    fn requests_are_counted_by_their_kind_and_time_and_forgotten_with_their_connections() {
        let at = |ms: u64| Timestamp(ms * 1_000_000);
        let head = |request| Head::new(Kind::MdsRequest, request);
        let request = MdsRequest::GetAttr { file: FileId(1) };
        let mut times = Times::new(Duration::from_millis(100));
        let (one, other) = (ConnId(1), ConnId(2));
        times.begins(one, &head(1), &request, at(0));
        times.begins(one, &head(2), &MdsRequest::StatFs, at(0));
        times.begins(other, &head(1), &request, at(0));
        times.ended(one, &head(1), Status::Ok, at(7));
        times.ended(one, &head(1), Status::Ok, at(9));
        times.gone(one);
        times.ended(one, &head(2), Status::Ok, at(9));
        times.ended(other, &head(1), Status::Ok, at(200));
        let mut expected = Histogram::default();
        expected.took(Duration::from_millis(7));
        expected.took(Duration::from_millis(200));
        assert_eq!(times.took, BTreeMap::from([("get_attr", expected)]));
        assert!(times.under_way.is_empty());
    }
}
