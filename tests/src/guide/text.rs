//! The guide's blocks of commands, with what is said beside them for the test (docs/testing.md, "The guide").

use std::fs;
use std::path::{Path, PathBuf};

/// Something to be done, in the guide's order.
#[derive(Debug)]
pub struct Block {
    /// `FILE:LINE`, for messages.
    pub place: String,
    pub kind: Kind,
    pub options: Options,
}

#[derive(Debug)]
pub enum Kind {
    /// A session: commands behind `# `, each with what it prints.
    Session(Vec<Step>),
    /// Commands that are run together; what they print is not told.
    Script(String),
    /// What the last command has printed, or what a file holds.
    Text(Vec<String>),
    /// Commands of the test alone, which no reader sees.
    Hidden(String),
}

#[derive(Debug, PartialEq)]
pub struct Step {
    pub command: String,
    pub prints: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// Where it is run, one after the other.
    pub hosts: Vec<usize>,
    /// Typed on a terminal: words, each at a prompt, or `TEXT=>WORD`, when this text is there.
    pub input: Vec<String>,
    /// What is printed draws on the terminal: what counts is how it looks.
    pub screen: bool,
    /// The last command is left running.
    pub background: bool,
    /// It is done again until it succeeds and prints what it should.
    pub wait: bool,
    /// It is done when all other blocks have been.
    pub last: bool,
    /// A text that the last command has printed.
    pub output: bool,
    /// A text that is written into this file.
    pub file: Option<String>,
    /// Words added to each command, so that it takes less time or room.
    pub add: String,
    /// What stands for something else.
    pub with: Vec<(String, String)>,
    /// A program of the hosts without which it can't be done.
    pub needs: Option<String>,
    /// How commands may end.
    pub exit: Vec<i32>,
    pub skip: Option<String>,
}

impl Options {
    fn read(text: &str) -> Result<Options, String> {
        let mut options = Options { hosts: vec![1], exit: vec![0], ..Options::default() };
        if let Some(why) = text.trim().strip_prefix("skip:") {
            options.skip = Some(why.trim().into());
            return if why.trim().is_empty() { Err("a reason is missing".into()) } else { Ok(options) };
        }
        for word in words(text) {
            let (name, value) = word.split_once('=').unwrap_or((&word, ""));
            let numbers =
                || value.split(',').map(|n| n.parse::<usize>().map_err(|_| format!("{word}: no number")));
            match name {
                "host" => options.hosts = numbers().collect::<Result<_, _>>()?,
                "exit" => options.exit = numbers().map(|n| Ok(n? as i32)).collect::<Result<_, String>>()?,
                "input" => options.input.push(value.into()),
                "background" => options.background = true,
                "screen" => options.screen = true,
                "wait" => options.wait = true,
                "last" => options.last = true,
                "output" => options.output = true,
                "file" => options.file = Some(value.into()),
                "needs" => options.needs = Some(value.into()),
                "add" => options.add = value.into(),
                "with" => {
                    let (from, to) =
                        value.split_once("=>").ok_or_else(|| format!("{word}: FROM=>TO is meant"))?;
                    options.with.push((from.into(), to.into()));
                }
                _ => return Err(format!("'{name}' is not known")),
            }
        }
        Ok(options)
    }
}

/// Words between spaces; what stands in double quotes may have spaces in it.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

/// The chapters in the order of the table in `README.md`.
pub fn chapters(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string(dir.join("README.md")).expect("the guide has a README.md");
    let links =
        table.lines().filter_map(|line| line.strip_prefix("| [")?.split_once("](")?.1.split_once(')'));
    links.map(|(file, _)| dir.join(file)).collect()
}

/// The blocks of a chapter. Every fenced block must be one that can be run or have something said about it.
pub fn read(path: &Path) -> Result<Vec<Block>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    parse(&path.file_name().unwrap_or_default().to_string_lossy(), &text)
}

fn parse(file: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut said: Option<Options> = None;
    let mut before = "";
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let place = format!("{file}:{number}");
        let wrong = |why: String| format!("{place}: {why}");
        if let Some(comment) = line.strip_prefix("<!-- test:") {
            let first = comment.trim_end_matches("-->");
            let options = Options::read(first).map_err(wrong)?;
            if first.len() < comment.len() {
                said = Some(options);
                continue;
            }
            let hidden: Vec<&str> =
                lines.by_ref().map(|(_, l)| l).take_while(|l| !l.ends_with("-->")).collect();
            blocks.push(Block { place, kind: Kind::Hidden(hidden.join("\n")), options });
        } else if let Some(language) = line.strip_prefix("```") {
            let inside: Vec<&str> = lines.by_ref().map(|(_, l)| l).take_while(|l| *l != "```").collect();
            let described = said.is_some();
            let options = said.take().unwrap_or_else(|| Options::read("").expect("nothing is well"));
            let kind = kind(language, &inside);
            if matches!(kind, Kind::Text(_)) && !described {
                return Err(wrong(
                    "neither commands (```sh, or behind '# ') nor a comment `<!-- test: … -->` before it"
                        .into(),
                ));
            }
            blocks.push(Block { place, kind, options });
        } else if line.starts_with("    ") && (before.is_empty() || before.starts_with('#')) {
            return Err(wrong("commands belong between ```".into()));
        } else if said.is_some() {
            return Err(wrong("a comment for the test stands right before its block".into()));
        }
        before = line;
    }
    Ok(blocks)
}

fn kind(language: &str, lines: &[&str]) -> Kind {
    if language == "sh" {
        return Kind::Script(lines.join("\n"));
    }
    if !lines.first().is_some_and(|l| l.starts_with("# ")) || !language.is_empty() {
        return Kind::Text(lines.iter().map(|l| l.to_string()).collect());
    }
    let mut steps: Vec<Step> = Vec::new();
    let mut goes_on = false;
    for line in lines {
        let command = line.strip_prefix("# ").or(goes_on.then_some(*line));
        match (command, steps.last_mut()) {
            (Some(more), Some(step)) if goes_on => step.command += &format!("\n{more}"),
            (Some(command), _) => steps.push(Step { command: command.into(), prints: vec![] }),
            (None, Some(step)) => step.prints.push(line.to_string()),
            (None, None) => {}
        }
        goes_on = command.is_some_and(|c| c.ends_with('\\'));
    }
    Kind::Session(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_commands_outputs_and_what_is_said_for_the_test() {
        let text = "<!-- test: host=2,3 input=\"a b\" background -->\n```\n# one \\\n  more\nprinted\n# two\n```\n\
                    <!-- test: wait\nhidden\n-->\n```sh\na\nb\n```\n<!-- test: skip: no such thing -->\n```\ntext\n```\n";
        let blocks = parse("x.md", text).unwrap();
        let Kind::Session(steps) = &blocks[0].kind else { panic!("{blocks:?}") };
        assert_eq!(steps[0], Step { command: "one \\\n  more".into(), prints: vec!["printed".into()] });
        assert_eq!(steps[1].command, "two");
        assert_eq!(
            (blocks[0].options.hosts.clone(), blocks[0].options.input[0].as_str()),
            (vec![2, 3], "a b")
        );
        assert!(blocks[0].options.background && blocks[1].options.wait);
        assert!(matches!(&blocks[1].kind, Kind::Hidden(h) if h == "hidden"));
        assert!(matches!(&blocks[2].kind, Kind::Script(s) if s == "a\nb"));
        assert_eq!(blocks[3].options.skip.as_deref(), Some("no such thing"));
    }

    #[test]
    fn nothing_in_the_guide_escapes() {
        for (text, why) in [
            ("```\nwhat is this\n```\n", "neither commands"),
            ("text\n\n    ls\n", "between ```"),
            ("<!-- test: hots=1 -->\n```sh\nls\n```\n", "'hots' is not known"),
            ("<!-- test: skip: -->\n```sh\nls\n```\n", "reason is missing"),
            ("<!-- test: host=1 -->\ntext\n", "right before"),
        ] {
            let error = parse("x.md", text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
