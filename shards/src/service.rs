//! What a service manager such as systemd hears of a server: that it serves, that all its shards turn, that it ends.
//!
//! Without a service manager (NOTIFY_SOCKET) nothing is said to nobody. One shard that stands still is enough to fall silent: the
//! manager then restarts the process (WatchdogSec), and the cluster goes on with other servers meanwhile.

use crate::ring::Pulse;
use sd_notify::NotifyState;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Said by a server as it ends because its cluster has it no more.
pub const REMOVED: &str = "was removed from the cluster";
/// It ends with this status then, which the units know: it has not failed, and is not to be started again.
const REMOVED_STATUS: u8 = 3;

/// Last words of a server that ends for this reason: on standard error, with its directory, and as its status.
pub fn ended(program: &str, dir: &Path, why: &str) -> ExitCode {
    let dir = dir.display().to_string();
    let of = if why.contains(&dir) { String::new() } else { format!("{dir}: ") };
    eprintln!("{program}: {of}{why}");
    if why.contains(REMOVED) { REMOVED_STATUS.into() } else { ExitCode::FAILURE }
}

pub struct ServiceManager {
    /// How often it wants to hear that all is well; `None`: it does not.
    every: Option<Duration>,
    serves: bool,
    told_at: Instant,
    /// Turns of each shard when it was told last.
    turns: Vec<u64>,
}

impl ServiceManager {
    pub fn of_this_process() -> ServiceManager {
        // Twice as often as it must be: an answer may be late.
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        ServiceManager { every, serves: false, told_at: Instant::now(), turns: Vec::new() }
    }

    /// To be called again and again, a few times a second.
    pub fn look(&mut self, shards: &[Pulse]) {
        if !self.serves && shards.iter().all(|shard| shard.serves) {
            self.serves = true;
            tell(NotifyState::Ready);
        }
        if self.every.is_some_and(|every| self.told_at.elapsed() >= every) && self.has_turned(shards) {
            tell(NotifyState::Watchdog);
            self.told_at = Instant::now();
        }
    }

    /// Whether every shard has turned since this was true last.
    fn has_turned(&mut self, shards: &[Pulse]) -> bool {
        let now: Vec<u64> = shards.iter().map(|shard| shard.turns).collect();
        let turned =
            now.len() != self.turns.len() || now.iter().zip(&self.turns).all(|(now, then)| now != then);
        if turned {
            self.turns = now;
        }
        turned
    }

    /// From any thread.
    pub fn hears_of_the_end() {
        tell(NotifyState::Stopping);
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "service_manager_not_told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_that_stands_still_is_enough() {
        let mut manager =
            ServiceManager { every: None, serves: false, told_at: Instant::now(), turns: Vec::new() };
        let pulses = |turns: &[u64]| -> Vec<Pulse> {
            turns.iter().map(|&turns| Pulse { turns, serves: true }).collect()
        };
        assert!(manager.has_turned(&pulses(&[1, 1])));
        assert!(!manager.has_turned(&pulses(&[1, 1])));
        assert!(!manager.has_turned(&pulses(&[9, 1])), "the second stands");
        assert!(manager.has_turned(&pulses(&[9, 2])));
        assert!(manager.has_turned(&pulses(&[9])), "a shard has ended: that is told otherwise");
    }
}
