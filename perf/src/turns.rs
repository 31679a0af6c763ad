//! How long and how often what is compared is measured, one after the other in turns: options that such programs share.

use crate::cpu;
use clap::Args;
use std::time::Duration;

#[derive(Args, Clone, Copy, Debug)]
pub struct Turns {
    /// Length of each measurement.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// How often each is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Wait at most this long before each measurement for other programs to be quiet.
    #[arg(long, default_value_t = 10.0)]
    wait_s: f64,
}

impl Turns {
    /// Of each measurement.
    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    pub fn wait_until_quiet(&self) {
        cpu::wait_until_quiet(5.0, Duration::from_secs_f64(self.wait_s));
    }
}
