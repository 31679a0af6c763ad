//! The guide's commands as they are on a host of the test.

use pstorage_tests::guide::Options;
use std::net::Ipv4Addr;

/// The guide's addresses: this and the number of the host.
const NETWORK: [u8; 3] = [10, 30, 100];

pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], 100 + host as u8)
}

/// The last line in place of the shell, so that signals reach the program.
pub fn in_background(command: &str) -> String {
    match command.trim_end().rsplit_once('\n') {
        Some((before, last)) if !before.ends_with('\\') => format!("{before}\nexec {last}"),
        _ => format!("exec {command}"),
    }
}

/// Each command with more words, which stand before a remark.
pub fn added(commands: &str, more: &str) -> String {
    let with_more = |line: &str| {
        let (command, remark) = line.split_once(" #").unwrap_or((line, ""));
        format!("{} {more} #{remark}", command.trim_end())
    };
    if more.is_empty() {
        commands.into()
    } else {
        commands.lines().map(with_more).collect::<Vec<_>>().join("\n")
    }
}

/// What a line is on this host: with what stands for something else, and its own address where the first of the block's hosts has its own.
pub fn adapted_line(options: &Options, host: usize, line: &str) -> String {
    let line = options.with.iter().fold(line.to_string(), |line, (from, to)| line.replace(from, to));
    line.replace(&address(options.hosts[0]).to_string(), &address(host).to_string())
}

pub fn adapted(options: &Options, host: usize, lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| adapted_line(options, host, line)).collect()
}

/// When a word is typed, and the word.
pub fn typed(input: &str) -> (String, String) {
    // A terminal ends lines with a carriage return too.
    let (text, word) = input.split_once("=>").unwrap_or((r": *.\?$", input));
    (text.into(), word.into())
}
