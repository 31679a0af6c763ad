//! Figures at one moment, and their text in the format of OpenMetrics.

use crate::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::Duration;

/// Names with values, such as `cluster="pcs1"`.
pub type Labels = Vec<(&'static str, String)>;

const PREFIX: &str = "pstorage";

/// Metrics in the order in which they were first named.
#[derive(Debug, Default)]
pub struct Figures(Vec<Metric>);

#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    series: Vec<(Labels, Value)>,
}

#[derive(Debug)]
enum Value {
    Counter(ConstCounter<u64>),
    Gauge(ConstGauge<f64>),
    Times(Box<Histogram>),
}

impl Figures {
    /// What only grows while the process runs. `name` is without the prefix and without `_total`.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        n: u64,
    ) {
        self.add(name, help, labels, Value::Counter(ConstCounter::new(n)));
    }

    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], n: u64) {
        self.add(name, help, labels, Value::Gauge(ConstGauge::new(n as f64)));
    }

    /// A gauge in seconds.
    pub fn seconds(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        time: Duration,
    ) {
        self.add(name, help, labels, Value::Gauge(ConstGauge::new(time.as_secs_f64())));
    }

    /// How long things took. `name` ends in `_seconds`.
    pub fn times(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        times: &Histogram,
    ) {
        self.add(name, help, labels, Value::Times(Box::new(*times)));
    }

    /// A gauge from 0 to 1.
    pub fn ratio(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        percent: u32,
    ) {
        self.add(name, help, labels, Value::Gauge(ConstGauge::new(f64::from(percent) / 100.0)));
    }

    /// One gauge for each state: 1 for the one that holds, 0 for the others.
    pub fn state(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        states: &[&str],
        now: &str,
    ) {
        for state in states {
            self.gauge(name, help, &[(label, state)], u64::from(*state == now));
        }
    }

    fn add(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().map(|(name, value)| (*name, escaped(value))).collect();
        match self.0.iter_mut().find(|metric| metric.name == name) {
            Some(metric) => metric.series.push((labels, value)),
            None => self.0.push(Metric { name, help, series: vec![(labels, value)] }),
        }
    }

    /// `labels` go with every line.
    pub(crate) fn text(self, labels: &Labels) -> Result<String, fmt::Error> {
        let labels = labels.iter().map(|(name, value)| ((*name).into(), escaped(value).into()));
        let mut registry = Registry::with_prefix_and_labels(PREFIX, labels);
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

/// A value as it stands between quotes, which the encoder leaves to us.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for metric in &self.0 {
            let kind = match metric.series[0].1 {
                Value::Counter(_) => MetricType::Counter,
                Value::Gauge(_) => MetricType::Gauge,
                Value::Times(_) => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (labels, value) in &metric.series {
                let mut line = family.encode_family(labels)?;
                match value {
                    Value::Counter(n) => n.encode(line)?,
                    Value::Gauge(n) => n.encode(line)?,
                    Value::Times(h) => {
                        line.encode_histogram::<NoLabelSet>(h.sum_seconds(), h.count(), &h.buckets(), None)?
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_prefix_the_labels_and_every_series() {
        let mut figures = Figures::default();
        for (shard, n) in [("0", 5), ("1", u64::MAX)] {
            figures.counter("cs_reads", "Reads", &[("shard", shard)], n);
        }
        figures.seconds("uptime_seconds", "Time", &[], Duration::from_millis(1500));
        let mut times = Histogram::default();
        times.took(Duration::from_millis(1500));
        figures.times("took_seconds", "Times", &[("shard", "0")], &times);
        let text = figures.text(&vec![("cluster", "a\"b".into())]).unwrap();
        let expected = [
            "# HELP pstorage_cs_reads Reads",
            "# TYPE pstorage_cs_reads counter",
            r#"pstorage_cs_reads_total{cluster="a\"b",shard="0"} 5"#,
            r#"pstorage_cs_reads_total{cluster="a\"b",shard="1"} 18446744073709551615"#,
            "# HELP pstorage_uptime_seconds Time",
            "# TYPE pstorage_uptime_seconds gauge",
            r#"pstorage_uptime_seconds{cluster="a\"b"} 1.5"#,
            "# HELP pstorage_took_seconds Times",
            "# TYPE pstorage_took_seconds histogram",
            r#"pstorage_took_seconds_sum{cluster="a\"b",shard="0"} 1.5"#,
            r#"pstorage_took_seconds_count{cluster="a\"b",shard="0"} 1"#,
            r#"pstorage_took_seconds_bucket{cluster="a\"b",le="1.0",shard="0"} 0"#,
            r#"pstorage_took_seconds_bucket{cluster="a\"b",le="5.0",shard="0"} 1"#,
            r#"pstorage_took_seconds_bucket{cluster="a\"b",le="+Inf",shard="0"} 1"#,
            "# EOF",
        ];
        let others = |line: &&str| {
            line.contains("_bucket{")
                && !["1.0", "5.0", "+Inf"].iter().any(|le| line.contains(&format!("le=\"{le}\"")))
        };
        assert_eq!(text.lines().filter(|line| !others(line)).collect::<Vec<_>>(), expected);
    }
}
