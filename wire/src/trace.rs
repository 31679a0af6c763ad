//! A request followed from the client to the disk: its name in the logs of all processes, and what a chunk server remembers
//! of one that was to be traced, or took long.

use crate::{ChunkId, ClientId, CsId, Status};
use rkyv::{Archive, Deserialize, Serialize};
use shards::Timestamp;
use std::fmt;
use std::time::Duration;

/// Bits of a [`TraceId`] below the client's.
const NUMBER_BITS: u32 = 40;

/// What one program asked for, by the client's session and a number in it; shown as `CLIENT.NUMBER`. The requests that it
/// takes carry it to chunk servers, and from these to others. 0: not a client's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct TraceId(pub u64);

impl TraceId {
    /// Unique among clients whose ids differ in the lower 24 bits, and among 2^40 requests of each.
    pub fn new(client: ClientId, number: u64) -> TraceId {
        TraceId(client.0 << NUMBER_BITS | number & ((1 << NUMBER_BITS) - 1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> NUMBER_BITS, self.0 & ((1 << NUMBER_BITS) - 1))
    }
}

impl serde::Serialize for TraceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a chunk server did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Read,
    Write,
    Discard,
    /// As secondary: what the primary sent on.
    Store,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Work::Read => "read",
            Work::Write => "write",
            Work::Discard => "discard",
            Work::Store => "store",
        })
    }
}

/// Where the time of one request went at one shard of a chunk server. Times in microseconds.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize)]
pub struct RequestTrace {
    pub trace: TraceId,
    pub work: Work,
    pub chunk: ChunkId,
    pub offset_bytes: u32,
    pub length_bytes: u32,
    pub status: Status,
    /// From the arrival until the work began: for the chunk's servers to agree, for overlapping changes.
    pub waited_us: u32,
    /// From the begin until it was read, or on stable storage (the journal; large writes: their place): here.
    pub store_us: u32,
    /// From the begin until each secondary said to have it: the network both ways and its storage.
    pub replicas_us: Vec<(CsId, u32)>,
    /// From the arrival to the answer.
    pub total_us: u32,
    /// When it was answered, milliseconds since 1970 by this server's clock.
    pub ended_ms: u64,
    /// It took longer than this server takes for normal.
    pub slow: bool,
}

/// A disk that is slow is slow for many: so many lines in so long at most.
const MOST_LINES: u32 = 10;
const LINES_WITHIN: Duration = Duration::from_secs(10);

/// Keeps the log of slow requests short.
#[derive(Default)]
pub struct SlowLog {
    since: Timestamp,
    requests: u32,
}

impl SlowLog {
    /// One more: `None` if it is to be left out, or how many were left out before it.
    pub fn admit(&mut self, now: Timestamp) -> Option<u32> {
        let mut left_out = 0;
        if now.since(self.since) > LINES_WITHIN {
            left_out = self.requests.saturating_sub(MOST_LINES);
            (self.since, self.requests) = (now, 0);
        }
        self.requests += 1;
        (self.requests <= MOST_LINES).then_some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_slow_requests_is_limited_by_time() {
        let mut log = SlowLog::default();
        let mut said = |s: u64| -> Vec<u32> {
            (0..25).filter_map(|_| log.admit(Timestamp(s * 1_000_000_000))).collect()
        };
        assert_eq!(said(20), [0; 10]);
        assert!(said(25).is_empty());
        assert_eq!(said(31), [40, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_trace_is_shown_as_its_client_and_a_number() {
        assert_eq!(TraceId::new(ClientId(17), 42).to_string(), "17.42");
        assert_eq!(TraceId::new(ClientId(1 << 24 | 3), 1 << 40 | 5).to_string(), "3.5");
    }
}
