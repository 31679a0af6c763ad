//! What a command printed, and what the guide says that it prints.

use regex::Regex;
use std::sync::LazyLock;

/// The error says which line of the guide, or of the output, has no counterpart. `...` or `…` stands for anything: alone on a line
/// for any number of lines. Numbers, dates, sizes and widths of columns may differ, addresses may not.
pub fn compare(expected: &[String], real: &str) -> Result<(), String> {
    let expected: Vec<String> = trimmed(expected.iter().map(|l| normal(&l.replace('…', "..."))));
    let printed: Vec<String> = trimmed(real.lines().map(normal));
    // How many lines of output the guide's lines so far may stand for.
    let mut from = vec![0];
    for line in &expected {
        let mut next: Vec<usize> = if line == "..." {
            (from[0]..=printed.len()).collect()
        } else {
            from.iter()
                .filter(|&&at| printed.get(at).is_some_and(|p| alike(line, p)))
                .map(|at| at + 1)
                .collect()
        };
        next.dedup();
        if next.is_empty() {
            return Err(format!("nothing printed is as the guide's line\n    {line}"));
        }
        from = next;
    }
    if from.contains(&printed.len()) {
        return Ok(());
    }
    Err(format!("more is printed than the guide says:\n    {}", printed[from[from.len() - 1]]))
}

fn trimmed(lines: impl Iterator<Item = String>) -> Vec<String> {
    let lines: Vec<String> = lines.collect();
    let first = lines.iter().position(|l| !l.is_empty()).unwrap_or(lines.len());
    let last = lines.iter().rposition(|l| !l.is_empty()).map_or(first, |n| n + 1);
    lines[first..last].to_vec()
}

/// A line without what differs from run to run: `#` for numbers with their units, and for figures that are not there (`-`).
fn normal(line: &str) -> String {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let unit = r"(?: ?(?:[KMGT]i?B(?:/s)?|B(?:/s)?|bytes|us|ms|s|min|m|h|d)\b| ?%)?";
        Regex::new(&format!(r"(?P<ip>\b\d+\.\d+\.\d+\.\d+\b)|\d+(?:[.,]\d+)*{unit}")).expect("a pattern")
    });
    let shown = |found: &regex::Captures| found.name("ip").map_or("#".to_string(), |ip| ip.as_str().into());
    let line = NUMBER.replace_all(line, shown);
    let figure = |word| if ["-", "#/#"].contains(&word) { "#" } else { word };
    let mut words: Vec<&str> = line.split_whitespace().map(figure).collect();
    words.dedup_by(|a, b| a == b && *a == "#");
    words.join(" ")
}

/// Whether a normal line of the guide stands for a normal line of output.
fn alike(expected: &str, printed: &str) -> bool {
    let parts: Vec<String> = expected.split("...").map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).expect("a pattern").is_match(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_widths_may_differ_and_words_may_not() {
        let check = |expected: &str, real: &str| {
            let lines: Vec<String> = expected.lines().map(String::from).collect();
            compare(&lines, real)
        };
        check("space 764.0MB of 3.0GB", "space  1.2TB of 17GB\n\n").unwrap();
        check("28-11-26 09:14:02.113 MDS#1 at 10.0.0.1:2510", "01-01-27 10:00:00.000 MDS#2 at 10.0.0.1:99")
            .unwrap();
        check("at 10.0.0.1:2510", "at 10.0.0.2:2510").unwrap_err();
        check("a\n...\nz", "a\nb\nc\nz").unwrap();
        check("a\n...\nz", "a\nb\nc").unwrap_err();
        check("a … z", "a b c z").unwrap();
        check("a … z", "a b c z y").unwrap_err();
        check("a ...", "a b").unwrap();
        check("healthy", "degraded").unwrap_err();
        check("a", "a\nb").unwrap_err();
        check("", "").unwrap();
        check("", "b").unwrap_err();
        check("1 0.2/1.0 host", "1 - host").unwrap();
        check("took 4.15 ms, 3 servers", "took 20 us, 12 servers").unwrap();
    }
}
