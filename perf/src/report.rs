//! The report of one command: figures, and what they mean. [`crate::progress`] shows it to people as it grows,
//! [`Report::json`] is for programs, [`crate::html`] makes a page of it.

use crate::measure::Measurement;
use serde::Serialize;
use shards::text::Civil;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Good,
    Note,
    Warning,
}

/// What the figures mean.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    pub text: String,
}

impl Finding {
    pub fn good(text: impl Into<String>) -> Finding {
        Finding { level: Level::Good, text: text.into() }
    }

    pub fn note(text: impl Into<String>) -> Finding {
        Finding { level: Level::Note, text: text.into() }
    }

    pub fn warning(text: impl Into<String>) -> Finding {
        Finding { level: Level::Warning, text: text.into() }
    }

    /// Whether other programs spoilt the figures.
    pub fn of_disturbance(all: &[Measurement]) -> Option<Finding> {
        let disturbed = all.iter().filter(|m| m.is_disturbed()).count();
        (disturbed > 0).then(|| {
            Finding::warning(format!(
                "Other programs used more than 10 % of the CPU during {disturbed} of {} measurements: repeat on a \
                 quiet machine before you rely on the figures.",
                all.len()
            ))
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Machine {
    pub host: String,
    pub kernel: String,
    pub cores: usize,
    pub cpu: String,
}

impl Machine {
    pub fn this() -> Machine {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|l| l.starts_with("model name"));
        Machine {
            host: shards::host::host_name(),
            kernel: shards::host::kernel_version(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: model.and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown").to_string(),
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// `disk`, `journal`, `cluster`, `net`.
    pub command: String,
    pub target: String,
    pub version: String,
    /// Seconds since 1970.
    pub made_at_s: u64,
    pub machine: Machine,
    /// Facts about the target: name, value.
    pub facts: Vec<(String, String)>,
    pub measurements: Vec<Measurement>,
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(command: &str, target: impl Into<String>) -> Report {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Report {
            command: command.into(),
            target: target.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            made_at_s: since_1970.map_or(0, |d| d.as_secs()),
            machine: Machine::this(),
            facts: Vec::new(),
            measurements: Vec::new(),
            findings: Vec::new(),
        }
    }

    pub fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.into(), value.into()));
    }

    /// Measurements by group, in the order they were made.
    pub fn groups(&self) -> Vec<&[Measurement]> {
        self.measurements.chunk_by(|a, b| a.group == b.group).collect()
    }

    pub fn header(&self) -> String {
        let m = &self.machine;
        let mut out = format!(
            "pcs-bench {} {} on {} (Linux {}, {} cores, {})\n",
            self.command, self.target, m.host, m.kernel, m.cores, m.cpu
        );
        for (name, value) in &self.facts {
            out.push_str(&format!("{name}: {value}\n"));
        }
        out
    }

    pub fn findings_text(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let mark = match finding.level {
                Level::Good => '+',
                Level::Note => '-',
                Level::Warning => '!',
            };
            out.push_str(&wrapped(&finding.text, mark, 100));
        }
        out
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings only")
    }
}

/// Lines of at most `width` behind a mark.
fn wrapped(text: &str, mark: char, width: usize) -> String {
    let mut out = format!("{mark}");
    let mut column = 1;
    for word in text.split_whitespace() {
        if column + 1 + word.chars().count() > width {
            out.push_str("\n ");
            column = 1;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.chars().count();
    }
    out + "\n"
}

/// Seconds since 1970 as `2026-11-24 22:13 UTC`.
pub fn utc(seconds: u64) -> String {
    let c = Civil::from_unix_s(seconds);
    format!("{}-{:02}-{:02} {:02}:{:02} UTC", c.year, c.month, c.day, c.hour, c.minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_well() {
        assert_eq!(utc(1_795_558_380), "2026-11-24 22:13 UTC");
    }

    #[test]
    fn findings_are_wrapped_behind_their_marks() {
        let mut report = Report::new("disk", "/x");
        report.findings = vec![Finding::good("one two"), Finding::warning("word ".repeat(30))];
        let text = report.findings_text();
        assert!(text.starts_with("+ one two\n! word"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100) && text.lines().count() == 3, "{text}");
    }
}
