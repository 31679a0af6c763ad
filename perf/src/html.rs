//! A report as one page of HTML without scripts or outside files: tables, and plots as inline SVG.

use crate::measure::{Measurement, latency_bucket_us, used_buckets};
use crate::report::{Level, Report, utc};
use crate::svg::{BOTTOM, HEIGHT, LEFT, TOP, WIDTH, axis, colour, escaped, frame};
use crate::text::{cpu_by_role, number, time_us};
use std::fmt::Write;

const STYLE: &str = "
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5rem 0}
th,td{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #8884}
td.text,th.text{text-align:left}
svg{display:inline-block;margin:.3rem 1.5rem .3rem 0}
svg text{font:11px system-ui,sans-serif;fill:currentColor}
.axis{stroke:currentColor;stroke-opacity:.35}
.good{border-left:4px solid #10b981}.note{border-left:4px solid #3b82f6}.warning{border-left:4px solid #ef4444}
.good,.note,.warning{padding:.2rem .8rem;margin:.5rem 0}";

pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let title = escaped(&format!("pcs-bench {} {}", report.command, report.target));
    let m = &report.machine;
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>{} · {} · Linux {} · {} cores ({}) · pcs-bench {}</p>",
        utc(report.made_at_s),
        escaped(&m.host),
        escaped(&m.kernel),
        m.cores,
        escaped(&m.cpu),
        report.version,
    );
    for finding in &report.findings {
        let class = match finding.level {
            Level::Good => "good",
            Level::Note => "note",
            Level::Warning => "warning",
        };
        let _ = write!(out, "<div class=\"{class}\">{}</div>", escaped(&finding.text));
    }
    out.push_str("<table>");
    for (name, value) in &report.facts {
        let (name, value) = (escaped(name), escaped(value));
        let _ = write!(out, "<tr><th class=\"text\">{name}</th><td class=\"text\">{value}</td></tr>");
    }
    out.push_str("</table>");
    for group in report.groups() {
        let _ = write!(out, "<h2>{}</h2>", escaped(&group[0].group));
        out.push_str(&table(group));
        out.push_str(&rate_plot(group));
        out.push_str(&latency_plot(group));
        out.push_str(&distribution_plot(group));
    }
    out + "</html>\n"
}

fn table(group: &[Measurement]) -> String {
    // Of a disk nobody's CPU time is known: it is measured without servers.
    let has_cpu = group.iter().any(|m| !m.cpu_us_per_op.is_empty());
    let cpu_head = if has_cpu { "<th>CPU us per operation</th>" } else { "" };
    let mut out = format!(
        "<table><tr><th>depth</th><th>per second</th><th>MB/s</th><th>mean</th><th>p50</th><th>p99</th>\
         <th>p99.9</th><th>max</th>{cpu_head}<th>others' CPU</th></tr>",
    );
    for (i, m) in group.iter().enumerate() {
        let (f, l) = (&m.figures, &m.figures.latency_us);
        let _ = write!(
            out,
            "<tr><td style=\"color:{}\">● {}</td><td>{}</td><td>{}</td>",
            colour(i),
            m.depth,
            number(f.ops_per_s),
            number(f.bytes_per_s / 1e6)
        );
        for us in [l.mean, l.p50, l.p99, l.p999, l.max] {
            let _ = write!(out, "<td>{}</td>", time_us(us));
        }
        if has_cpu {
            let roles: Vec<String> =
                cpu_by_role(m).iter().map(|(r, us)| format!("{} {}", escaped(r), number(*us))).collect();
            let _ = write!(out, "<td>{}</td>", roles.join(", "));
        }
        let _ = write!(out, "<td>{:.0} %</td></tr>", m.strangers_percent);
    }
    out + "</table>"
}

/// Operations per second over the time of the run, a line per depth.
fn rate_plot(group: &[Measurement]) -> String {
    let most = group.iter().flat_map(|m| &m.figures.rate).copied().fold(0.0, f64::max).max(1e-9);
    let seconds = group.iter().map(|m| m.figures.seconds).fold(0.0, f64::max);
    let (low, high) = (HEIGHT - BOTTOM, TOP);
    let mut out = frame("operations per second over time", HEIGHT);
    for part in [0.0, 0.5, 1.0] {
        axis(&mut out, low - (low - high) * part, &number(most * part));
    }
    for (i, m) in group.iter().enumerate() {
        let points: Vec<String> = m
            .figures
            .rate
            .iter()
            .enumerate()
            .map(|(at, rate)| {
                let x = LEFT + (WIDTH - LEFT) * (at as f64 + 0.5) / m.figures.rate.len() as f64;
                format!("{x:.1},{:.1}", low - (low - high) * rate / most)
            })
            .collect();
        let _ = write!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>",
            colour(i),
            points.join(" ")
        );
    }
    let _ = write!(
        out,
        "<text x=\"{WIDTH}\" y=\"{:.0}\" text-anchor=\"end\">{seconds:.1} s</text></svg>",
        HEIGHT - 8.0
    );
    out
}

/// p50 to max of each depth on a logarithmic axis: a bar from p50 to p99, a line to p99.9, a dot at the longest.
fn latency_plot(group: &[Measurement]) -> String {
    let timed: Vec<(usize, &Measurement)> =
        group.iter().enumerate().filter(|(_, m)| m.figures.latency_us.p50 > 0.0).collect();
    if timed.is_empty() {
        return String::new();
    }
    let least = timed.iter().map(|(_, m)| m.figures.latency_us.p50).fold(f64::MAX, f64::min);
    let most = timed.iter().map(|(_, m)| m.figures.latency_us.max).fold(0.0, f64::max);
    let (first, last) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let x = |us: f64| LEFT + (WIDTH - LEFT - 30.0) * (us.log10() - first) / (last - first);
    let height = TOP + 24.0 * timed.len() as f64 + BOTTOM;
    let mut out = frame("latency: bar p50–p99, line to p99.9, dot at the longest", height);
    for decade in first as i32..=last as i32 {
        let us = 10f64.powi(decade);
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1:.0}\"/>\
             <text x=\"{0:.1}\" y=\"{2:.0}\" text-anchor=\"middle\">{3}</text>",
            x(us),
            height - BOTTOM,
            height - 8.0,
            axis_label(us)
        );
    }
    for (row, (i, m)) in timed.iter().enumerate() {
        let l = &m.figures.latency_us;
        let y = TOP + 24.0 * row as f64 + 12.0;
        let (p50, p99, p999, max) = (x(l.p50), x(l.p99), x(l.p999), x(l.max));
        let (right, base, top, wide) = (LEFT - 6.0, y + 4.0, y - 6.0, (p99 - p50).max(1.5));
        let (depth, ink) = (m.depth, colour(*i));
        let _ = write!(
            out,
            "<text x=\"{right}\" y=\"{base}\" text-anchor=\"end\">depth {depth}</text>\
             <line x1=\"{p50:.1}\" x2=\"{p999:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{ink}\"/>\
             <rect x=\"{p50:.1}\" y=\"{top}\" width=\"{wide:.1}\" height=\"12\" fill=\"{ink}\"/>\
             <circle cx=\"{max:.1}\" cy=\"{y}\" r=\"3\" fill=\"{ink}\"/>",
        );
    }
    out + "</svg>"
}

/// How many operations took how long, a line per depth: shares of all, latencies on a logarithmic axis.
fn distribution_plot(group: &[Measurement]) -> String {
    let buckets = used_buckets(group.iter().map(|m| &m.figures));
    if buckets.is_empty() {
        return String::new();
    }
    let share = |m: &Measurement, bucket: usize| {
        let count = m.figures.latency_counts.get(bucket).copied().unwrap_or(0);
        count as f64 / m.figures.latency_counts.iter().sum::<u64>().max(1) as f64
    };
    let most =
        group.iter().flat_map(|m| buckets.clone().map(move |b| share(m, b))).fold(0.0, f64::max).max(1e-9);
    let (low, high) = (HEIGHT - BOTTOM, TOP);
    let x =
        |bucket: f64| LEFT + (WIDTH - LEFT - 30.0) * (bucket - buckets.start as f64) / buckets.len() as f64;
    let mut out = frame("latencies: share of operations", HEIGHT);
    for part in [0.0, 1.0] {
        axis(&mut out, low - (low - high) * part, &format!("{:.0} %", most * part * 100.0));
    }
    for decade in (buckets.start..=buckets.end).filter(|b| b % 4 == 0) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            x(decade as f64),
            HEIGHT - 8.0,
            axis_label(latency_bucket_us(decade).round())
        );
    }
    for (i, m) in group.iter().enumerate() {
        let point =
            |b: usize| format!("{:.1},{:.1}", x(b as f64 + 0.5), low - (low - high) * share(m, b) / most);
        let points: Vec<String> = buckets.clone().map(point).collect();
        let _ = write!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>",
            colour(i),
            points.join(" ")
        );
    }
    out + "</svg>"
}

fn axis_label(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us} us"),
        us if us < 1e6 => format!("{} ms", us / 1e3),
        us => format!("{} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Used;
    use crate::measure::{Figures, Latency, Operation, tests::case};
    use crate::report::Finding;
    use std::time::Duration;

    #[test]
    fn a_page_holds_tables_plots_and_escaped_text() {
        let mut report = Report::new("disk", "/a<b>");
        report.findings.push(Finding::warning("slow & old"));
        for depth in [1, 32] {
            let latency_us = Latency { mean: 120.0, p50: 100.0, p99: 400.0, p999: 900.0, max: 12_000.0 };
            let figures = Figures {
                ops: 9,
                seconds: 2.0,
                ops_per_s: 4.5,
                latency_us,
                latency_counts: vec![0, 3, 6],
                rate: vec![1.0, 8.0],
                ..Figures::default()
            };
            let used = Used { strangers_percent: 0.0, own: Duration::ZERO, watched: vec![] };
            report.measurements.push(Measurement::new(case(Operation::Write, depth), figures, &used));
        }
        let page = page(&report);
        assert!(page.contains("/a&lt;b&gt;") && page.contains("slow &amp; old"));
        assert_eq!(page.matches("<h2>").count(), 1);
        assert_eq!((page.matches("<polyline").count(), page.matches("<rect").count()), (4, 2));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains(">10 ms<") && page.contains(">100 us<"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
