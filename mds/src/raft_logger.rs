//! Hands the raft crate's log (slog) to `tracing`.
//!
//! The raft crate tells about each vote and message; only its warnings matter to an administrator, the rest is kept
//! at the level where a developer looks for it.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record};

struct ToTracing {
    mds: u64,
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let mds = self.mds;
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(name: "raft", mds, "{}", record.msg()),
            Level::Warning => tracing::warn!(name: "raft", mds, "{}", record.msg()),
            Level::Info => tracing::debug!(name: "raft", mds, "{}", record.msg()),
            Level::Debug | Level::Trace => tracing::trace!(name: "raft", mds, "{}", record.msg()),
        }
        Ok(())
    }
}

/// A logger for the raft node of one server.
pub fn logger(mds: u64) -> Logger {
    Logger::root(ToTracing { mds }, slog::o!())
}
