//! Where the time of requests went, as this client sees it: told of every one to who traces, and logged of slow ones.

use super::ClientCore;
use super::mds::Pending;
use super::parts::{Job, Part};
use shards::Io;
use std::time::Duration;
use wire::trace::SlowLog;
use wire::{ChunkId, ClientId, Grant, TraceId, Work};

/// One request to a chunk server, which is over.
#[derive(Clone, Debug)]
pub struct PartTrace {
    pub trace: TraceId,
    pub work: Work,
    pub chunk: ChunkId,
    pub offset_bytes: u32,
    pub length_bytes: u32,
    /// The servers it was last sent to; the first in sync is the primary.
    pub grant: Grant,
    /// From its begin until it was last sent: for the lease, the chunk map, a connection, failed attempts.
    pub waited: Duration,
    /// From then until the answer.
    pub answered: Duration,
    /// How often it was sent.
    pub tries: u32,
    /// Why the attempt before the last failed.
    pub last_error: String,
}

/// Called with every request to a chunk server that is over, on the client's thread.
pub type OnTraced = Box<dyn FnMut(PartTrace) + Send>;

#[derive(Default)]
pub(super) struct Traces {
    on_traced: Option<OnTraced>,
    slow_log: SlowLog,
}

impl ClientCore {
    /// All requests to chunk servers are traced there as well, and `notify` hears of each.
    pub fn on_traced(mut self, notify: OnTraced) -> Self {
        self.traces.on_traced = Some(notify);
        self
    }

    pub(super) fn is_tracing(&self) -> bool {
        self.traces.on_traced.is_some()
    }

    pub(super) fn trace_id(&self, transfer: u64) -> TraceId {
        TraceId::new(self.mds.client().unwrap_or(ClientId(0)), transfer)
    }

    pub(super) fn note_part(&mut self, part: &Part, io: &dyn Io) {
        let now = io.now();
        let total = now.since(part.began);
        let slow = total > self.config.slow_request;
        if !slow && !self.is_tracing() {
            return;
        }
        let trace = PartTrace {
            trace: self.trace_id(part.transfer),
            work: match part.job {
                Job::Read | Job::Find => Work::Read,
                Job::Write(_) => Work::Write,
                Job::Zero => Work::Discard,
            },
            chunk: part.chunk,
            offset_bytes: part.offset,
            length_bytes: part.len,
            grant: part.grant.clone(),
            waited: part.sent.unwrap_or(now).since(part.began),
            answered: now.since(part.sent.unwrap_or(now)),
            tries: part.tries,
            last_error: part.last_error.clone(),
        };
        if let Some(left_out) = slow.then(|| self.traces.slow_log.admit(now)).flatten() {
            let PartTrace { work, chunk, tries, last_error, .. } = &trace;
            tracing::warn!(
                trace = %trace.trace, %work, file = %part.file, %chunk, offset = part.offset, bytes = part.len,
                cs = %part.primary, total_ms = total.as_millis() as u64, waited_ms = trace.waited.as_millis() as u64,
                answered_ms = trace.answered.as_millis() as u64, tries, last_error, left_out, "slow_request"
            );
        }
        if let Some(notify) = &mut self.traces.on_traced {
            notify(trace);
        }
    }

    /// The request of this number was answered.
    pub(super) fn note_metadata(&mut self, number: u64, pending: &Pending, io: &dyn Io) {
        let now = io.now();
        let total = now.since(pending.began);
        self.stats.mds_times.took(total);
        if total > self.config.slow_request
            && let Some(left_out) = self.traces.slow_log.admit(now)
        {
            let waited = pending.sent.unwrap_or(now).since(pending.began);
            let request: &'static str = (&pending.request).into();
            tracing::warn!(
                request,
                number,
                total_ms = total.as_millis() as u64,
                waited_ms = waited.as_millis() as u64,
                left_out,
                "slow_metadata_request"
            );
        }
    }
}
