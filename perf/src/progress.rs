//! What a person sees while measurements run: bars on standard error, tables on standard output as they are ready.

use crate::measure::{Case, Measurement};
use crate::report::Report;
use crate::text;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

pub struct Progress {
    /// Tables go to standard output (not with --json).
    shows_tables: bool,
    bar: ProgressBar,
    group: Vec<Measurement>,
}

impl Progress {
    pub fn new(shows_tables: bool) -> Progress {
        Progress { shows_tables, bar: ProgressBar::hidden(), group: Vec::new() }
    }

    pub fn header(&self, report: &Report) {
        if self.shows_tables {
            println!("{}", report.header().trim_end());
        }
    }

    /// A bar for data that has to be moved before anything is measured.
    pub fn bytes(&self, what: &str, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let template = format!("{what} {{bar:30}} {{bytes}}/{{total_bytes}} {{bytes_per_sec}}");
        bar.set_style(ProgressStyle::with_template(&template).expect("a valid template"));
        bar
    }

    pub fn begin(&mut self, cases: usize, seconds: f64) {
        self.bar = ProgressBar::with_draw_target(Some(cases as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {prefix} to go");
        self.bar.set_style(style.expect("a valid template"));
        self.say_rest(cases as u64, seconds);
        self.bar.set_message("starting");
        self.seconds_each(seconds);
    }

    fn seconds_each(&self, seconds: f64) {
        self.bar.enable_steady_tick(Duration::from_millis((seconds * 1e3 / 4.0).clamp(50.0, 500.0) as u64));
    }

    fn say_rest(&self, cases: u64, seconds: f64) {
        let rest = cases as f64 * (seconds * 1.1).min(seconds + 0.5);
        let text = if rest < 90.0 { format!("{rest:.0} s") } else { format!("{:.0} min", rest / 60.0) };
        self.bar.set_prefix(text);
    }

    pub fn case(&self, case: Case) {
        self.bar.set_message(case.to_string());
    }

    pub fn tick(&self) {
        self.bar.tick();
    }

    pub fn measured(&mut self, measurement: &Measurement) {
        self.bar.inc(1);
        let rest = self.bar.length().unwrap_or(0).saturating_sub(self.bar.position());
        self.say_rest(rest, measurement.figures.seconds);
        if self.group.last().is_some_and(|last| last.group != measurement.group) {
            self.print_group();
        }
        self.group.push(measurement.clone());
    }

    pub fn end(&mut self) {
        self.print_group();
        self.bar.finish_and_clear();
    }

    fn print_group(&mut self) {
        let group = std::mem::take(&mut self.group);
        if let (Some(first), true) = (group.first(), self.shows_tables) {
            self.bar.suspend(|| print!("\n{}\n{}", first.group, text::table(&group)));
        }
    }
}
