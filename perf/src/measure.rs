//! One measurement: what is asked ([`Case`]), how it is timed ([`Run`]), what came out ([`Measurement`]).
//!
//! Time comes from outside as [`Timestamp`]s, so the same code times operations on a ring and on client threads.

use hdrhistogram::Histogram;
use serde::Serialize;
use shards::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Read,
    Write,
    /// A record in a group-committed journal, as the chunk server writes small requests.
    Journal,
    /// Network: a block there, a header back.
    Send,
    /// Network: a header there, a block back.
    Receive,
    /// Network: a header there, a header back.
    Ping,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    Random,
    Sequential,
}

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    pub operation: Operation,
    pub pattern: Pattern,
    pub block_bytes: usize,
    pub depth: usize,
    /// Writes complete when the device says that the data is on stable storage (O_DSYNC).
    pub flushed: bool,
}

impl Case {
    /// Cases that differ in depth only share it: the heading in reports.
    pub fn group(&self) -> String {
        let size = crate::text::bytes(self.block_bytes as u64);
        let flushed = if self.flushed { ", flushed" } else { "" };
        let pattern = match self.pattern {
            Pattern::Random => "random",
            Pattern::Sequential => "sequential",
        };
        match self.operation {
            Operation::Read => format!("{pattern} read, {size}"),
            Operation::Write => format!("{pattern} write, {size}{flushed}"),
            Operation::Journal => format!("journal records, {size}, flushed"),
            Operation::Send => format!("network send, {size}"),
            Operation::Receive => format!("network receive, {size}"),
            Operation::Ping => "network round trip".to_string(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, depth {}", self.group(), self.depth)
    }
}

/// Latencies in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What came out of a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Figures {
    pub ops: u64,
    pub seconds: f64,
    pub ops_per_s: f64,
    pub bytes_per_s: f64,
    pub latency_us: Latency,
    /// How many operations took how long, by [`latency_bucket_us`].
    pub latency_counts: Vec<u64>,
    /// Operations per second in equal pieces of the run, first to last.
    pub rate: Vec<f64>,
}

/// Figures with what they are figures of.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Measurement {
    pub group: String,
    pub operation: Operation,
    pub pattern: Pattern,
    pub block_bytes: usize,
    pub depth: usize,
    pub flushed: bool,
    #[serde(flatten)]
    pub figures: Figures,
    /// Percent of the machine's CPU that other programs took meanwhile: much of it, and the figures tell little.
    pub strangers_percent: f64,
    /// CPU time of each watched process.
    pub cpu_us_per_op: BTreeMap<String, f64>,
}

impl Measurement {
    pub fn new(case: Case, figures: Figures, used: &crate::cpu::Used) -> Measurement {
        let per_op = |time: Duration| time.as_secs_f64() * 1e6 / figures.ops.max(1) as f64;
        let cpu_us_per_op = used.watched.iter().map(|(name, time)| (name.clone(), per_op(*time))).collect();
        Measurement {
            group: case.group(),
            operation: case.operation,
            pattern: case.pattern,
            block_bytes: case.block_bytes,
            depth: case.depth,
            flushed: case.flushed,
            figures,
            strangers_percent: used.strangers_percent,
            cpu_us_per_op,
        }
    }

    /// Says where it was measured, in reports that compare several places.
    pub fn on(mut self, place: &str) -> Measurement {
        self.group = format!("{}, {place}", self.group);
        self
    }

    /// Other programs took so much CPU that the figures tell little.
    pub fn is_disturbed(&self) -> bool {
        self.strangers_percent > 10.0
    }
}

/// Four buckets of latencies for each power of ten, from 1 us to 10 s. The first and the last take what lies outside.
const LATENCY_BUCKETS: usize = 28;

/// Where a bucket of [`Figures::latency_counts`] begins.
pub fn latency_bucket_us(bucket: usize) -> f64 {
    10f64.powf(bucket as f64 / 4.0)
}

/// The buckets in which any of these have something.
pub fn used_buckets<'a>(all: impl Iterator<Item = &'a Figures>) -> std::ops::Range<usize> {
    let (mut first, mut end) = (usize::MAX, 0);
    for figures in all {
        let used = |(_, count): &(usize, &u64)| **count > 0;
        let mut used = figures.latency_counts.iter().enumerate().filter(used).map(|(at, _)| at);
        if let Some(at) = used.next() {
            first = first.min(at);
            end = end.max(used.next_back().unwrap_or(at) + 1);
        }
    }
    first.min(end)..end
}

/// Pieces that a run is cut into to show its rate over time.
const PIECES: usize = 40;

/// A run under way. Slots are the `depth` places for operations under way; each is free or timed.
pub struct Run {
    pub case: Case,
    sent_at: Vec<Timestamp>,
    under_way: usize,
    /// What completes earlier warms up and is not counted.
    from: Timestamp,
    until: Timestamp,
    last: Timestamp,
    latency_ns: Histogram<u64>,
    pieces: Vec<u64>,
}

impl Run {
    pub fn new(case: Case, now: Timestamp, time: Duration) -> Run {
        let from = now.after((time / 10).min(Duration::from_millis(500)));
        Run {
            case,
            sent_at: vec![Timestamp(0); case.depth],
            under_way: 0,
            from,
            until: from.after(time),
            last: from,
            latency_ns: Histogram::new(3).expect("three digits are allowed"),
            pieces: vec![0; PIECES],
        }
    }

    /// Whether one more operation is to be started; if so it is timed from now on in `slot`.
    pub fn start(&mut self, slot: usize, now: Timestamp) -> bool {
        if now >= self.until {
            return false;
        }
        self.sent_at[slot] = now;
        self.under_way += 1;
        true
    }

    /// The operation in `slot` has ended well.
    pub fn complete(&mut self, slot: usize, now: Timestamp) {
        self.under_way -= 1;
        if now < self.from {
            return;
        }
        let taken_ns = now.since(self.sent_at[slot]).as_nanos() as u64;
        self.latency_ns.record(taken_ns).expect("the histogram grows");
        self.last = self.last.max(now);
        let length = self.until.since(self.from).as_nanos().max(1);
        let piece = now.since(self.from).as_nanos() * PIECES as u128 / length;
        if let Some(count) = self.pieces.get_mut(piece as usize) {
            *count += 1;
        }
    }

    /// Nothing is under way any more (ask after [`Run::start`] has said no).
    pub fn is_over(&self) -> bool {
        self.under_way == 0
    }

    fn latency_counts(&self) -> Vec<u64> {
        let edge_ns = |bucket: usize| (latency_bucket_us(bucket) * 1e3) as u64;
        let bucket_of = |ns: u64| (1..LATENCY_BUCKETS).take_while(|&b| edge_ns(b) <= ns).count();
        let mut counts = vec![0; LATENCY_BUCKETS];
        for value in self.latency_ns.iter_recorded() {
            counts[bucket_of(value.value_iterated_to())] += value.count_at_value();
        }
        counts
    }

    pub fn figures(&self) -> Figures {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile: f64| us(self.latency_ns.value_at_quantile(quantile));
        // Stragglers count, and so does the time they took.
        let seconds = self.last.max(self.until).since(self.from).as_secs_f64();
        let ops = self.latency_ns.len();
        let ops_per_s = ops as f64 / seconds;
        let piece_seconds = self.until.since(self.from).as_secs_f64() / PIECES as f64;
        Figures {
            ops,
            seconds,
            ops_per_s,
            bytes_per_s: ops_per_s * self.case.block_bytes as f64,
            latency_us: Latency {
                mean: self.latency_ns.mean() / 1e3,
                p50: at(0.5),
                p99: at(0.99),
                p999: at(0.999),
                max: us(self.latency_ns.max()),
            },
            latency_counts: self.latency_counts(),
            rate: self.pieces.iter().map(|&n| n as f64 / piece_seconds).collect(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn case(operation: Operation, depth: usize) -> Case {
        Case { operation, pattern: Pattern::Random, block_bytes: 4096, depth, flushed: true }
    }

    #[test]
    fn a_run_times_each_slot_and_leaves_the_warm_up_out() {
        let ms = |n: u64| Timestamp(n * 1_000_000);
        let mut run = Run::new(case(Operation::Write, 2), ms(0), Duration::from_millis(1000));
        assert!(run.start(0, ms(0)) && run.start(1, ms(50)));
        run.complete(0, ms(60)); // Warm-up lasts for 100 ms.
        let mut now = 100;
        while run.start(0, ms(now)) {
            now += 10;
            run.complete(0, ms(now));
        }
        assert!(!run.is_over());
        run.complete(1, ms(1200)); // A straggler, 100 ms late.
        assert!(run.is_over());
        let figures = run.figures();
        assert_eq!(figures.ops, 101);
        assert!((figures.seconds - 1.1).abs() < 1e-9);
        assert!((figures.ops_per_s - 101.0 / 1.1).abs() < 1e-6);
        assert!((figures.bytes_per_s - 4096.0 * 101.0 / 1.1).abs() < 1e-3);
        let latency = figures.latency_us;
        assert!((latency.p50 / 10_000.0 - 1.0).abs() < 0.002 && (latency.max / 1.15e6 - 1.0).abs() < 0.002);
        // 100 of 10 ms, and one of 1.15 s.
        assert_eq!(figures.latency_counts.iter().sum::<u64>(), 101);
        assert_eq!((figures.latency_counts[16], figures.latency_counts[24]), (100, 1));
        assert_eq!(used_buckets([&figures, &Figures::default()].into_iter()), 16..25);
        assert_eq!(used_buckets(std::iter::empty()), 0..0);
        assert_eq!(figures.rate.len(), PIECES);
        let counted: f64 = figures.rate.iter().sum::<f64>() * 0.025;
        assert!((counted - 99.0).abs() < 1e-6, "those at the end and behind it are in no piece: {counted}");
    }

    #[test]
    fn groups_name_everything_but_the_depth() {
        let mut c = case(Operation::Write, 32);
        assert_eq!(c.to_string(), "random write, 4 KiB, flushed, depth 32");
        c.flushed = false;
        c.pattern = Pattern::Sequential;
        c.block_bytes = 1 << 20;
        assert_eq!(c.group(), "sequential write, 1 MiB");
    }
}
