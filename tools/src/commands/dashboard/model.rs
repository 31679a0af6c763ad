//! What the dashboard knows of the cluster: the last figures, ten minutes of throughput, the newest events. No clock inside.

use crate::commands::doctor::cluster::judge;
use crate::commands::doctor::finding::Finding;
use crate::news::News;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use wire::cs_api::LatencyStat;
use wire::mds_api::{ClusterStat, Event};

/// How far back the curves go.
pub const WINDOW: Duration = Duration::from_secs(600);
const MOST_EVENTS: usize = 10_000;
/// An election and a heartbeat or two that are late: no reason to alarm anybody.
const GRACE: Duration = Duration::from_secs(2);

/// This moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Instant,
    pub unix_ms: u64,
}

impl Moment {
    pub fn now() -> Moment {
        Moment { at: Instant::now(), unix_ms: shards::host::unix_ms() }
    }
}

/// A point of the curves: of all chunk servers together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Grows, also from one run of this program to the next.
    pub number: u64,
    pub unix_ms: u64,
    pub read_bytes_per_s: u64,
    pub write_bytes_per_s: u64,
    pub read_ops_per_s: u64,
    pub write_ops_per_s: u64,
    /// What clients wait for, with what replication takes.
    pub requests: LatencyStat,
    /// What the servers' own disks take.
    pub disks: LatencyStat,
}

pub struct Model {
    pub cluster: String,
    pub refresh: Duration,
    pub stat: Option<Box<ClusterStat>>,
    /// What is to be said of these figures, the worst first.
    pub findings: Vec<Finding>,
    pub heard: Option<Moment>,
    /// Why nobody answered the last time.
    pub trouble: Option<String>,
    pub events: VecDeque<Event>,
    pub samples: VecDeque<Sample>,
    next_sample: u64,
}

impl Model {
    pub fn new(cluster: &str, refresh: Duration, began: Moment) -> Model {
        Model {
            cluster: cluster.into(),
            refresh,
            stat: None,
            findings: Vec::new(),
            heard: None,
            trouble: None,
            events: VecDeque::new(),
            samples: VecDeque::new(),
            // Less than a thousand are taken in a second: those of an earlier run are smaller.
            next_sample: began.unix_ms,
        }
    }

    pub fn on_news(&mut self, news: News, now: Moment) {
        self.events.extend(news.events);
        let many = self.events.len().saturating_sub(MOST_EVENTS);
        self.events.drain(..many);
        let stat = match news.stat {
            Ok(stat) => stat,
            Err(why) => return self.trouble = Some(why),
        };
        let window_ms = WINDOW.as_millis() as u64;
        self.samples.push_back(sample(self.next_sample, now.unix_ms, &stat));
        self.samples.retain(|s| s.unix_ms + window_ms > now.unix_ms);
        self.next_sample += 1;
        self.findings = judge(&stat);
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        (self.stat, self.heard, self.trouble) = (Some(stat), Some(now), None);
    }

    /// Of the figures. `None`: there have never been any.
    pub fn age(&self, now: Moment) -> Option<Duration> {
        self.heard.map(|heard| now.at.saturating_duration_since(heard.at))
    }

    pub fn is_current(&self, now: Moment) -> bool {
        self.age(now).is_some_and(|age| age < 3 * self.refresh + GRACE)
    }
}

fn sample(number: u64, unix_ms: u64, stat: &ClusterStat) -> Sample {
    let sum = |of: fn(&wire::mds_api::CsInfo) -> u64| stat.cs.iter().map(of).sum();
    Sample {
        number,
        unix_ms,
        read_bytes_per_s: sum(|cs| cs.read_bytes_per_s),
        write_bytes_per_s: sum(|cs| cs.write_bytes_per_s),
        read_ops_per_s: sum(|cs| cs.read_ops_per_s),
        write_ops_per_s: sum(|cs| cs.write_ops_per_s),
        requests: together(stat.cs.iter().map(|cs| cs.request_latency)),
        disks: together(stat.cs.iter().map(|cs| cs.io_latency)),
    }
}

fn together(all: impl Iterator<Item = LatencyStat>) -> LatencyStat {
    let (mut operations, mut time_us, mut max_us) = (0u64, 0u64, 0);
    for one in all {
        operations += u64::from(one.operations);
        time_us += u64::from(one.operations) * u64::from(one.mean_us);
        max_us = max_us.max(one.max_us);
    }
    let mean_us = time_us.checked_div(operations).unwrap_or(0) as u32;
    LatencyStat { operations: operations.try_into().unwrap_or(u32::MAX), mean_us, max_us }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::commands::top::tests::cluster;
    use wire::mds_api::Severity;

    pub fn later(now: Moment, seconds: u64) -> Moment {
        Moment { at: now.at + Duration::from_secs(seconds), unix_ms: now.unix_ms + seconds * 1000 }
    }

    pub fn event(number: u64, severity: Severity) -> Event {
        Event { number, time_ms: number, system: "MDS".into(), severity, message: format!("event {number}") }
    }

    /// A look a second, for as long as told.
    pub fn watched(servers: u32, seconds: u64) -> (Model, Moment) {
        let began = Moment::now();
        let mut model = Model::new("pcs1", Duration::from_secs(1), began);
        for second in 0..seconds {
            let events = vec![event(second, Severity::Info)];
            model.on_news(News { stat: Ok(cluster(servers)), events }, later(began, second));
        }
        (model, later(began, seconds - 1))
    }

    #[test]
    fn ten_minutes_are_kept() {
        let (model, now) = watched(3, 700);
        assert_eq!((model.samples.len(), model.events.len()), (600, 700));
        let last = model.samples.back().unwrap();
        assert_eq!((last.read_bytes_per_s, last.write_ops_per_s), (3 << 20, 60));
        assert_eq!(last.unix_ms, now.unix_ms);
        assert!(model.samples.iter().zip(model.samples.iter().skip(1)).all(|(a, b)| a.number < b.number));
    }

    #[test]
    fn silence_keeps_the_last_figures_and_is_noticed_after_a_while() {
        let (mut model, now) = watched(3, 2);
        model.on_news(News { stat: Err("nobody".into()), events: Vec::new() }, later(now, 1));
        assert!(model.is_current(later(now, 1)), "an election is no reason for alarm");
        assert!(!model.is_current(later(now, 5)));
        assert!(model.stat.is_some() && model.trouble.as_deref() == Some("nobody"));
        assert_eq!(model.age(later(now, 5)), Some(Duration::from_secs(5)));
        model.on_news(News { stat: Ok(cluster(3)), events: Vec::new() }, later(now, 6));
        assert!(model.is_current(later(now, 6)) && model.trouble.is_none());
    }

    #[test]
    fn latencies_are_weighted_by_the_operations() {
        let of = |operations, mean_us, max_us| LatencyStat { operations, mean_us, max_us };
        assert_eq!(together([of(1, 100, 100), of(3, 500, 900)].into_iter()), of(4, 400, 900));
        assert_eq!(together([].into_iter()), of(0, 0, 0));
    }
}
