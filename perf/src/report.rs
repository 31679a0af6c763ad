//! The report of one command: figures, and what they mean. [`crate::progress`] shows it to people as it grows,
//! [`Report::json`] is for programs, [`crate::html`] makes a page of it.

use crate::measure::Measurement;
use serde::Serialize;

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
    /// `disk`, `cluster`, `net`.
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
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days (Howard Hinnant's algorithm), with years that begin in March.
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
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
