//! What is remembered of requests that were to be traced, and of slow ones, which are logged as well.

use super::Replication;
use super::slow::Times;
use shards::{Io, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;
use wire::trace::SlowLog;
use wire::{CsId, Head, Kind, RequestTrace, Status, TraceId, Work, flags};

const KEPT: usize = 256;

/// A request whose time is to be told.
struct Ended<'a> {
    head: &'a Head,
    status: Status,
    arrived: Timestamp,
    /// When the store was asked; `None`: it never was.
    began: Option<Timestamp>,
    /// From then on.
    store: Duration,
    replicas: &'a [(CsId, Duration)],
}

pub(super) struct Traces {
    slow_over: Duration,
    kept: VecDeque<RequestTrace>,
    slow_log: SlowLog,
}

impl Traces {
    pub fn new(slow_over: Duration) -> Traces {
        Traces { slow_over, kept: VecDeque::new(), slow_log: SlowLog::default() }
    }

    /// All that is kept, or of one request, oldest first.
    pub fn of(&self, trace: TraceId) -> Vec<RequestTrace> {
        self.kept.iter().filter(|t| trace == TraceId(0) || t.trace == trace).cloned().collect()
    }

    /// Nobody waits for a fill.
    fn is_slow(&self, head: &Head, total: Duration) -> bool {
        total > self.slow_over && !head.has(flags::FILL)
    }

    fn wants(&self, head: &Head, total: Duration) -> bool {
        head.has(flags::TRACE) || self.is_slow(head, total)
    }

    fn note(&mut self, ended: &Ended, io: &dyn Io) {
        let now = io.now();
        let total = now.since(ended.arrived);
        let trace =
            RequestTrace { slow: self.is_slow(ended.head, total), ..ended.trace(total, io.wall_ms()) };
        if trace.slow {
            self.log(&trace, now);
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(trace);
    }

    fn log(&mut self, trace: &RequestTrace, now: Timestamp) {
        if let Some(left_out) = self.slow_log.admit(now) {
            let RequestTrace { work, chunk, status, total_us, waited_us, store_us, replicas_us, .. } = trace;
            let replicas: Vec<String> =
                replicas_us.iter().map(|(cs, us)| format!("CS#{cs} {} ms", us / 1000)).collect();
            tracing::warn!(
                trace = %trace.trace, %work, %chunk, offset = trace.offset_bytes, bytes = trace.length_bytes, ?status,
                total_ms = total_us / 1000, waited_ms = waited_us / 1000, store_ms = store_us / 1000,
                replicas = replicas.join(", "), left_out, "slow_request"
            );
        }
    }
}

impl Ended<'_> {
    fn trace(&self, total: Duration, ended_ms: u64) -> RequestTrace {
        let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let waited = self.began.map_or(total, |began| began.since(self.arrived));
        RequestTrace {
            trace: self.head.trace,
            work: match self.head.kind {
                Kind::Read => Work::Read,
                Kind::Write => Work::Write,
                Kind::Discard => Work::Discard,
                _ => Work::Store,
            },
            chunk: self.head.chunk,
            offset_bytes: self.head.offset_bytes,
            length_bytes: self.head.length_bytes,
            status: self.status,
            waited_us: us(waited),
            store_us: us(self.store),
            replicas_us: self.replicas.iter().map(|(cs, time)| (*cs, us(*time))).collect(),
            total_us: us(total),
            ended_ms,
            slow: false,
        }
    }
}

impl Replication {
    /// What this shard remembers of one request, or of all it remembers.
    pub fn traces(&self, trace: TraceId) -> Vec<RequestTrace> {
        self.traces.of(trace)
    }

    /// The store has read something, or stored what a primary sent.
    pub(super) fn note_work(
        &mut self,
        head: &Head,
        status: Status,
        arrived: Timestamp,
        began: Timestamp,
        io: &dyn Io,
    ) {
        let now = io.now();
        if self.traces.wants(head, now.since(arrived)) {
            let ended =
                Ended { head, status, arrived, began: Some(began), store: now.since(began), replicas: &[] };
            self.traces.note(&ended, io);
        }
    }

    /// A change has been answered: `times` are those of its last flight, if it had one.
    pub(super) fn note_change(
        &mut self,
        head: &Head,
        status: Status,
        arrived: Timestamp,
        times: Option<&(Timestamp, Times)>,
        io: &dyn Io,
    ) {
        if !self.traces.wants(head, io.now().since(arrived)) {
            return;
        }
        let of_all = times.map_or(&[][..], |(_, times)| times);
        let (own, replicas): (Times, Times) = of_all.iter().copied().partition(|(cs, _)| *cs == self.me);
        let store = own.first().map_or(Duration::ZERO, |(_, time)| *time);
        let began = times.map(|(began, _)| *began);
        self.traces.note(&Ended { head, status, arrived, began, store, replicas: &replicas }, io);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::sim::TestIo;
    use wire::ClientId;

    /// A request that ends now, and how it is taken by who keeps those of more than a second.
    fn end(replication: &mut Replication, io: &TestIo, number: u64, took: Duration, flags: u16) {
        let mut head = Head::new(Kind::Write, 0);
        (head.trace, head.flags) = (TraceId::new(ClientId(1), number), flags);
        let arrived = Timestamp(io.now().0 - took.as_nanos() as u64);
        let began = Timestamp(arrived.0 + 1_000_000);
        let times = (began, Times::from_iter([(CsId(2), took / 2), (CsId(1), took / 4)]));
        replication.note_change(&head, Status::Ok, arrived, Some(&times), io);
    }

    #[test]
    fn slow_and_traced_requests_are_kept_up_to_a_number_and_others_are_not() {
        let mut io = TestIo::new(1);
        io.advance(Duration::from_secs(10));
        let mut replication = Replication::new(CsId(1), Duration::from_secs(10), Duration::from_secs(1));
        end(&mut replication, &io, 1, Duration::from_secs(1), 0);
        end(&mut replication, &io, 2, Duration::from_millis(4), flags::TRACE);
        end(&mut replication, &io, 3, Duration::from_secs(5), flags::FILL);
        end(&mut replication, &io, 4, Duration::from_secs(4), 0);
        let kept = replication.traces(TraceId(0));
        let trace = |n| TraceId::new(ClientId(1), n);
        assert_eq!(kept.iter().map(|t| t.trace).collect::<Vec<_>>(), [trace(2), trace(4)]);
        let RequestTrace { waited_us, store_us, replicas_us, total_us, .. } = &kept[0];
        assert_eq!((*waited_us, *store_us, *total_us), (1000, 1000, 4000));
        assert_eq!(replicas_us[..], [(CsId(2), 2000)]);
        assert_eq!(replication.traces(trace(4)), kept[1..]);
        for n in 0..2 * KEPT as u64 {
            end(&mut replication, &io, 10 + n, Duration::from_millis(4), flags::TRACE);
        }
        let kept = replication.traces(TraceId(0));
        assert_eq!((kept.len(), kept[KEPT - 1].trace), (KEPT, trace(9 + 2 * KEPT as u64)));
    }
}
