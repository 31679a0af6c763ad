//! What a check found, and what is to be done about it.

use std::fmt;

/// How it stands with something. The worst is the largest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Nothing here tells.
    Unknown,
    /// It works; something should be done before it does not, or does so badly.
    Warning,
    /// It does not work, or data is in danger.
    Error,
}

#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Finding {
    /// The name of the check: scripts may rely on it.
    pub check: &'static str,
    /// Which one was looked at, if there are several.
    pub subject: String,
    pub verdict: Verdict,
    pub found: String,
    /// What to do; empty when nothing is to be done.
    pub todo: String,
}

impl Finding {
    pub fn ok(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding::new(Verdict::Ok, check, subject, found, "")
    }

    pub fn unknown(
        check: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        todo: impl Into<String>,
    ) -> Finding {
        Finding::new(Verdict::Unknown, check, subject, found, todo)
    }

    pub fn warning(
        check: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        todo: impl Into<String>,
    ) -> Finding {
        Finding::new(Verdict::Warning, check, subject, found, todo)
    }

    pub fn error(
        check: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        todo: impl Into<String>,
    ) -> Finding {
        Finding::new(Verdict::Error, check, subject, found, todo)
    }

    pub fn new(
        verdict: Verdict,
        check: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        todo: impl Into<String>,
    ) -> Finding {
        Finding { check, subject: subject.into(), verdict, found: found.into(), todo: todo.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Ok => "[ OK ]",
            Verdict::Unknown => "[ ?? ]",
            Verdict::Warning => "[WARN]",
            Verdict::Error => "[ERR ]",
        };
        write!(f, "  {mark} {}", self.check)?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        write!(f, ": {}", self.found)?;
        if !self.todo.is_empty() {
            write!(f, "\n         {}", self.todo)?;
        }
        Ok(())
    }
}
