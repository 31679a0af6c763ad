//! Figures for people: units, bars, sparklines, tables.

use crate::cpu::role;
use crate::measure::{Measurement, latency_bucket_us, used_buckets};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Three significant digits, with groups of thousands.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 && !out.ends_with('-') {
            out.push(' ');
        }
        out.push(c);
    }
    if fraction.is_empty() { out } else { out + "." + fraction }
}

/// Exact powers of 1024 as people say them: `4 KiB`, `1 MiB`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.fract() == 0.0 { format!("{value} {unit}") } else { format!("{} {unit}", number(value)) }
}

/// A time given in microseconds.
pub fn time_us(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{} us", number(us)),
        us if us < 999_500.0 => format!("{} ms", number(us / 1e3)),
        us => format!("{} s", number(us / 1e6)),
    }
}

/// A bar of at most `width` cells for `value` out of `most`.
pub fn bar(value: f64, most: f64, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * width as f64 * 8.0).round() as usize;
    let mut out = "█".repeat(eighths / 8);
    if eighths % 8 > 0 {
        out.push(EIGHTHS[eighths % 8]);
    }
    let missing = width - out.chars().count();
    out + &" ".repeat(missing)
}

/// Values over time in one line of at most `width` cells; zero is the lowest step.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let merged = merge(values, width);
    let most = merged.iter().copied().fold(0.0, f64::max);
    let step = |v: &f64| if most > 0.0 { (v / most * 7.0).round() as usize } else { 0 };
    merged.iter().map(|v| STEPS[step(v)]).collect()
}

/// Means of neighbours, so that at most `most` values are left.
pub fn merge(values: &[f64], most: usize) -> Vec<f64> {
    let each = values.len().div_ceil(most.max(1)).max(1);
    values.chunks(each).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect()
}

/// A distribution in one line: a cell per bucket. Rare values stay visible: the root of the share, and never nothing.
pub fn histogram(counts: &[u64]) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.iter().copied().max().unwrap_or(0) as f64;
    let cell = |&count: &u64| match count {
        0 => '·',
        count => STEPS[((count as f64 / most).sqrt() * 7.0).round() as usize],
    };
    counts.iter().map(cell).collect()
}

/// CPU time per operation by role (`cs`, `mds`, …): the processes of a role added up.
pub fn cpu_by_role(measurement: &Measurement) -> BTreeMap<&str, f64> {
    let mut sums = BTreeMap::new();
    for (name, us) in &measurement.cpu_us_per_op {
        *sums.entry(role(name)).or_insert(0.0) += us;
    }
    sums
}

/// A table of measurements of one group.
pub fn table(group: &[Measurement]) -> String {
    let most = group.iter().map(|m| m.figures.ops_per_s).fold(0.0, f64::max);
    let buckets = used_buckets(group.iter().map(|m| &m.figures));
    let span = format!(
        "{} to {}",
        time_us(latency_bucket_us(buckets.start)),
        time_us(latency_bucket_us(buckets.end))
    );
    let wide = span.len().max(buckets.len());
    let mut out = format!(
        "{:>5} {:>9} {:<10} {:>7} {:>8} {:>8} {:>8} {:>8}  {:<20}  {span}\n",
        "depth", "per s", "", "MB/s", "p50", "p99", "p99.9", "max", "rate over time"
    );
    for m in group {
        let (f, l) = (&m.figures, &m.figures.latency_us);
        let times = [l.p50, l.p99, l.p999, l.max].map(|us| format!("{:>8}", time_us(us))).join(" ");
        let _ = write!(
            out,
            "{:>5} {:>9} {} {:>7} {times}  {:<20}  {:<wide$}",
            m.depth,
            number(f.ops_per_s),
            bar(f.ops_per_s, most, 10),
            number(f.bytes_per_s / 1e6),
            sparkline(&f.rate, 20),
            histogram(f.latency_counts.get(buckets.clone()).unwrap_or_default()),
        );
        if m.is_disturbed() {
            let _ = write!(out, "  disturbed: others used {:.0} % of the CPU", m.strangers_percent);
        }
        out.push('\n');
        let roles: Vec<String> =
            cpu_by_role(m).iter().map(|(role, us)| format!("{role} {}", number(*us))).collect();
        if !roles.is_empty() {
            let _ = writeln!(out, "      CPU us per operation: {}", roles.join(", "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Used;
    use crate::measure::{Figures, Operation, tests::case};
    use std::time::Duration;

    #[test]
    fn units_are_chosen_for_reading() {
        assert_eq!((number(0.1234), number(0.0)), ("0.12".into(), "0".into()));
        assert_eq!(number(99.96), "100");
        assert_eq!(number(1_234_567.8), "1 234 568");
        assert_eq!(number(-123.0), "-123");
        assert_eq!(number(f64::NAN), "-");
        assert_eq!(time_us(12.34), "12.3 us");
        assert_eq!(time_us(999.7), "1.00 ms");
        assert_eq!(time_us(2_500_000.0), "2.50 s");
        assert_eq!(
            (bytes(4096), bytes(1 << 20), bytes(3 << 29)),
            ("4 KiB".into(), "1 MiB".into(), "1.50 GiB".into())
        );
    }

    #[test]
    fn graphs_keep_their_width() {
        assert_eq!(bar(5.0, 10.0, 10), "█████     ");
        assert_eq!(bar(10.0, 10.0, 4), "████");
        assert_eq!(bar(1.0, 16.0, 2), "▏ ");
        assert_eq!(bar(1.0, 0.0, 3), "   ");
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 7.0], 4), "▁▂▃█");
        assert_eq!(sparkline(&[0.0; 3], 4), "▁▁▁");
        assert_eq!(merge(&[1.0, 3.0, 5.0], 2), [2.0, 5.0]);
        assert_eq!(sparkline(&vec![1.0; 40], 20).chars().count(), 20);
        assert_eq!(histogram(&[0, 1, 10_000, 2500]), "·▁█▅");
        assert_eq!(histogram(&[0, 0]), "··");
    }

    #[test]
    fn a_table_adds_up_roles_and_marks_disturbed_lines() {
        let figures = Figures { ops: 100, ops_per_s: 5000.0, bytes_per_s: 2e7, ..Figures::default() };
        let ms = Duration::from_millis;
        let watched = vec![("cs1".to_string(), ms(1)), ("cs2".into(), ms(2)), ("mds1".into(), ms(0))];
        let used = Used { strangers_percent: 42.0, own: ms(0), watched };
        let table = table(&[Measurement::new(case(Operation::Write, 32), figures, &used)]);
        assert!(table.contains("5 000") && table.contains("20.0"), "{table}");
        assert!(table.contains("cs 30.0, mds 0"), "{table}");
        assert!(table.contains("others used 42 %"), "{table}");
    }
}
