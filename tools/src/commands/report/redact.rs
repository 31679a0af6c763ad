//! Takes secrets out of text: those that are known, and what looks like one.
//!
//! Rather too much is taken out than too little: after a word such as `password` and a `=` or `:` all the rest of the line goes,
//! unless it is quoted.

use regex::{Captures, Regex, RegexSet};

pub const REMOVED: &str = "[removed]";
/// What is shorter is found in innocent text as well.
const LEAST_KNOWN_CHARS: usize = 6;
/// Words that announce a secret.
const WORDS: &str = "pass(?:word|wd|phrase|code)|secret|token|credential|api[-_ ]?key|access[-_ ]?key|private[-_ ]?key|authorization";

pub struct Redactor {
    /// The longest first: one may be part of another.
    known: Vec<String>,
    whole: Vec<Regex>,
    quoted: Regex,
    unquoted: Regex,
    address: Regex,
    names: RegexSet,
}

impl Redactor {
    pub fn new(known: impl IntoIterator<Item = String>) -> Redactor {
        let regex = |pattern: &str| Regex::new(pattern).expect("a valid pattern");
        let mut known: Vec<String> =
            known.into_iter().filter(|secret| secret.chars().count() >= LEAST_KNOWN_CHARS).collect();
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        known.dedup();
        Redactor {
            known,
            whole: vec![
                // Keys in PEM, whole, begun or ended only.
                regex(
                    r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
                ),
                // A line of base64 and nothing else, and keys in hexadecimal digits.
                regex(r"(?m)^[ \t]*[A-Za-z0-9+/]{40,}={0,2}[ \t]*$"),
                regex(r"\b[0-9a-fA-F]{64,}\b"),
                regex(r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9+/_.=-]{8,}"),
                // Words of a command line.
                regex(&format!(r"(?i)--?(?:{WORDS})[\w-]*[ \t]+[^\s=:]\S*")),
            ],
            // "password": "x", password = 'x'
            quoted: regex(&format!(
                r#"(?i)((?:{WORDS})[^=:\n]{{0,40}}[=:][ \t]*\\?)("(?:[^"\\\n]|\\.)*"|'[^'\n]*')"#
            )),
            unquoted: regex(&format!(r#"(?i)((?:{WORDS})[^=:\n]{{0,40}}[=:][ \t]*)([^"'\s\\][^\n]*)"#)),
            // scheme://user:password@host
            address: regex(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@]+@"),
            names: RegexSet::new([format!("(?i){WORDS}"), "(?i)(?:^|_)(?:key|pw|pass)(?:$|_)".into()])
                .expect("valid patterns"),
        }
    }

    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_string();
        for secret in &self.known {
            if text.contains(secret) {
                text = text.replace(secret, REMOVED);
            }
        }
        for pattern in &self.whole {
            text = pattern.replace_all(&text, REMOVED).into_owned();
        }
        let quote = |found: &Captures| format!("{}\"{REMOVED}\"", &found[1]);
        text = self.quoted.replace_all(&text, quote).into_owned();
        text = self.unquoted(&text);
        self.address.replace_all(&text, format!("${{1}}{REMOVED}@")).into_owned()
    }

    /// Whether there is a secret is no secret itself: such words stay, and what follows them is looked at by itself.
    fn unquoted(&self, text: &str) -> String {
        let rest = |found: &Captures| {
            let said = &found[2];
            let word = said.split([' ', ',', '}', ']']).next().unwrap_or_default();
            match word {
                "true" | "false" | "none" | "null" | REMOVED => {
                    format!("{}{word}{}", &found[1], self.unquoted(&said[word.len()..]))
                }
                _ => format!("{}{REMOVED}", &found[1]),
            }
        };
        self.unquoted.replace_all(text, rest).into_owned()
    }

    /// Whether a variable of this name holds a secret.
    pub fn names_a_secret(&self, name: &str) -> bool {
        self.names.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_looks_like_a_secret_goes() {
        let r = Redactor::new(["known-to-us".to_string(), "short".into()]);
        for text in [
            "password=S3CRET",
            "Password : S3CRET and S3CRET more",
            "the password for the cluster is: S3CRET",
            r#"{"auth_token": "S3CRET", "n": 1}"#,
            r#"{"password": "a \" S3CRET"}"#,
            r#"log="{\"api_key\": \"S3CRET\"}""#,
            "secret='S3CRET S3CRET'",
            "passwd=true, password=S3CRET",
            "password=true token=S3CRET",
            "curl -u x --password S3CRET",
            "started with --api-key S3CRET",
            "PSTORAGE_PASSWORD=S3CRET",
            "GET https://user:S3CRET@host/path",
            "Authorization: Basic S3CRETS3CRET==",
            "sent bearer S3CRETS3CRET.x-y",
            "-----BEGIN PRIVATE KEY-----\nS3CRET\n-----END PRIVATE KEY-----",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nS3CRET and cut off",
            "cut off:\nS3CRETS3CRETS3CRETS3CRETS3CRETS3CRETS3CRET\n-----END PRIVATE KEY-----",
            "passphrase:S3CRET\r\nnext",
        ] {
            let said = r.redact(text);
            assert!(!said.contains("S3CRET"), "{text}\n-> {said}");
            assert!(said.contains(REMOVED), "{said}");
        }
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(r.redact(&format!("key {hex}.")), format!("key {REMOVED}."));
        assert_eq!(
            r.redact("it said known-to-us, twice: known-to-us"),
            "it said [removed], twice: [removed]"
        );
        assert_eq!(r.redact("a short one"), "a short one", "too short to be taken out everywhere");
    }

    #[test]
    fn what_helps_stays() {
        let r = Redactor::new([]);
        for text in [
            "2026-11-26T19:00:33Z INFO mdsd_begins: mds=1 addr=10.0.0.1:2510 password=true version=\"0.1.0\"",
            "passwords are asked for by auth-node",
            "CS#3 reported a hard error on /pstorage/cs3/shard-000/data",
            "sha 0123456789abcdef0123456789abcdef",
            "mds=10.0.0.1:2510,10.0.0.2:2510 epoch=7",
            "{\"key\": \"mds.repl.max_rate\", \"value\": \"100\"}",
            "/dev/sda1 /srv ext4 rw,noatime 0 0",
        ] {
            assert_eq!(r.redact(text), text);
        }
        let two = "password: x\nnext line";
        assert_eq!(r.redact(two), "password: [removed]\nnext line");
        assert!(r.names_a_secret("API_TOKEN") && r.names_a_secret("SSH_KEY") && r.names_a_secret("DB_PASS"));
        assert!(!r.names_a_secret("PSTORAGE_LOG") && !r.names_a_secret("KEYBOARD"));
    }
}
