//! What is remembered of requests that were to be traced, and of slow ones, which are logged as well.

use super::Replication;
use shards::{Io, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;
use wire::trace::SlowLog;
use wire::{CsId, Head, Kind, RequestTrace, Status, TraceId, Work, flags};

const KEPT: usize = 256;

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

    fn keep(&mut self, trace: RequestTrace, now: Timestamp) {
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

impl Replication {
    /// What this shard remembers of one request, or of all it remembers.
    pub fn traces(&self, trace: TraceId) -> Vec<RequestTrace> {
        self.traces.of(trace)
    }

    /// A request is answered now. `times`: when its work began, and how long each replica, this one too, took from then on;
    /// `None`: it never began.
    pub(super) fn note_trace(
        &mut self,
        head: &Head,
        status: Status,
        arrived: Timestamp,
        times: Option<(Timestamp, &[(CsId, Duration)])>,
        io: &dyn Io,
    ) {
        let now = io.now();
        let total = now.since(arrived);
        let slow = self.traces.is_slow(head, total);
        if !slow && !head.has(flags::TRACE) {
            return;
        }
        let (began, of_all) = times.unwrap_or((now, &[]));
        let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let own = of_all.iter().find(|(cs, _)| *cs == self.me);
        let others = of_all.iter().filter(|(cs, _)| *cs != self.me);
        let trace = RequestTrace {
            trace: head.trace,
            work: match head.kind {
                Kind::Read => Work::Read,
                Kind::Write => Work::Write,
                Kind::Discard => Work::Discard,
                _ => Work::Store,
            },
            chunk: head.chunk,
            offset_bytes: head.offset_bytes,
            length_bytes: head.length_bytes,
            status,
            waited_us: us(began.since(arrived)),
            store_us: own.map_or(0, |(_, time)| us(*time)),
            replicas_us: others.map(|(cs, time)| (*cs, us(*time))).collect(),
            total_us: us(total),
            ended_ms: io.wall_ms(),
            slow,
        };
        self.traces.keep(trace, now);
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
        let times = [(CsId(2), took / 2), (CsId(1), took / 4)];
        replication.note_trace(&head, Status::Ok, arrived, Some((began, &times)), io);
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
