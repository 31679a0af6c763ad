//! Faults that a test orders for a virtual disk. A rule waits for a matching operation, lets `skip` of them
//! pass, and spoils the next `times`.

use std::io;
use std::ops::Range;
use std::time::Duration;

/// Which operations a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOn {
    Read,
    Write,
    Sync,
    PutBlob,
    Any,
}

/// What happens to the operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultEffect {
    /// Input/output error. Of a write, the first half of the sectors is on disk all the same.
    Eio,
    /// No space left; nothing is written.
    NoSpace,
    /// The write says it is done and never reaches the disk.
    Lost,
    /// The read returns data with one bit turned; the disk holds the right bytes.
    ReadFlip,
    /// The write lands this many bytes behind its place.
    Misdirected(u64),
    /// One bit of the write is turned on its way.
    WriteFlip,
    /// The operation takes this much longer.
    Stall(Duration),
}

#[derive(Clone, Debug)]
pub struct FaultRule {
    pub on: FaultOn,
    /// Only files whose path contains this; empty matches all.
    pub path_contains: String,
    /// Only operations that touch this range of the file.
    pub range: Option<Range<u64>>,
    pub skip: u32,
    pub times: u32,
    pub effect: FaultEffect,
}

impl FaultRule {
    /// The next operation of this kind on any file whose path contains `path`.
    pub fn next(on: FaultOn, path: &str, effect: FaultEffect) -> Self {
        FaultRule { on, path_contains: path.into(), range: None, skip: 0, times: 1, effect }
    }

    pub fn times(self, times: u32) -> Self {
        FaultRule { times, ..self }
    }

    pub fn skipping(self, skip: u32) -> Self {
        FaultRule { skip, ..self }
    }

    pub fn at(self, range: Range<u64>) -> Self {
        FaultRule { range: Some(range), ..self }
    }

    fn matches(&self, on: FaultOn, path: &str, range: &Range<u64>) -> bool {
        (self.on == FaultOn::Any || self.on == on)
            && path.contains(&self.path_contains)
            && self.range.as_ref().is_none_or(|r| r.start < range.end && range.start < r.end)
    }
}

/// The rules waiting on one disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    rules: Vec<FaultRule>,
}

impl Faults {
    pub fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// The effect on this operation, if a rule is due.
    pub fn due(&mut self, on: FaultOn, path: &str, range: Range<u64>) -> Option<FaultEffect> {
        let at = self.rules.iter().position(|r| r.times > 0 && r.matches(on, path, &range))?;
        let rule = &mut self.rules[at];
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        let effect = rule.effect;
        self.rules.retain(|r| r.times > 0);
        Some(effect)
    }
}

pub(super) fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
pub(super) fn enospc() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}
pub(super) fn einval(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
