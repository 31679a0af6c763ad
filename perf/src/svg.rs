//! Plots as SVG, in a page or as files of their own.

use crate::text::number;
use std::fmt::Write;

/// Readable on light and dark.
const COLOURS: [&str; 6] = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b"];

pub const WIDTH: f64 = 420.0;
pub const HEIGHT: f64 = 150.0;
pub const LEFT: f64 = 60.0;
pub const TOP: f64 = 20.0;
pub const BOTTOM: f64 = 25.0;

/// A line across a plot with a label at its left end.
pub fn axis(out: &mut String, y: f64, label: &str) {
    let _ = write!(
        out,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
        LEFT - 6.0,
        y + 4.0,
    );
}

/// The beginning of a plot; `</svg>` ends it.
pub fn frame(title: &str, height: f64) -> String {
    format!(
        "<svg width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\
         <text x=\"{LEFT}\" y=\"12\">{title}</text>"
    )
}

pub fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Values side by side, each with the name of what has it, on a scale of their own.
pub struct Bars {
    pub title: String,
    pub values: Vec<(String, f64)>,
}

const BAR: f64 = 18.0;
/// Between the bars of one title and the next title.
const GAP: f64 = 14.0;

/// A file: a heading and bars below one another; the same place among its neighbours has the same colour everywhere.
pub fn file_of_bars(heading: &str, all: &[Bars]) -> String {
    let (left, width) = (140.0, 640.0);
    let height: f64 = 30.0 + all.iter().map(|bars| BAR * (bars.values.len() + 1) as f64 + GAP).sum::<f64>();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\"><style>text{{font:12px system-ui,sans-serif}}.heading{{font-weight:bold}}</style>\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/><text class=\"heading\" x=\"8\" y=\"18\">{}</text>",
        escaped(heading)
    );
    let mut y = 30.0;
    for bars in all {
        let most = bars.values.iter().map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9);
        let _ = write!(out, "<text x=\"8\" y=\"{:.0}\">{}</text>", y + 13.0, escaped(&bars.title));
        for (i, (name, value)) in bars.values.iter().enumerate() {
            y += BAR;
            // Room for the figure behind the longest bar.
            let long = (width - left - 80.0) * value / most;
            let _ = write!(
                out,
                "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{left}\" y=\"{:.0}\" width=\"{long:.1}\" height=\"12\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{base:.0}\">{}</text>",
                left - 6.0,
                escaped(name),
                y + 3.0,
                colour(i),
                left + long + 5.0,
                number(*value),
                base = y + 13.0,
            );
        }
        y += BAR + GAP;
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let values = vec![("a<b".to_string(), 10.0), ("c".into(), 5.0), ("none".into(), 0.0)];
        let file = file_of_bars("rates", &[Bars { title: "per s".into(), values }]);
        assert!(file.starts_with("<svg xmlns") && file.ends_with("</svg>\n"));
        assert!(
            file.contains("a&lt;b") && file.contains("width=\"420.0\"") && file.contains("width=\"210.0\""),
            "{file}"
        );
        let nothing = file_of_bars("", &[Bars { title: String::new(), values: vec![("x".into(), 0.0)] }]);
        assert!(!nothing.contains("NaN") && !nothing.contains("inf"), "{nothing}");
    }
}
