//! `guard BASE HEAD`: has a change made it slower? BASE and HEAD are directories with the programs of two builds. Each gets a cluster of its
//! own; `pcs-bench cluster` of each build measures it, in turns, and the ratio of each figure is printed with its confidence interval.
//! `perf/guard.sh` builds both.

use clap::Parser;
use perf::scratch;
use perf::text::number;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compares two builds on clusters of their own, in turns.
#[derive(Parser)]
struct Args {
    /// Directory with the programs of the older build.
    base: PathBuf,
    /// Directory with the programs of the newer build.
    head: PathBuf,
    /// Empty directory for the clusters, on a disk.
    #[arg(long)]
    work: PathBuf,
    /// Pairs of measurements.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=100))]
    rounds: u32,
    /// Length of each of the measurements that pcs-bench makes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// It fails if a figure is, for sure, worse by more percent.
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
    /// Replicas in both clusters, which have three chunk servers.
    #[arg(long, default_value_t = 3)]
    replicas: u8,
}

/// One build with its cluster.
struct Side {
    programs: PathBuf,
    cluster: PathBuf,
}

impl Side {
    fn start(programs: &Path, cluster: PathBuf, replicas: u8) -> Result<Side, String> {
        let side = Side { programs: programs.to_path_buf(), cluster };
        let replicas = replicas.to_string();
        side.run("pstorage", &["local", "up", &side.dir(), "--replicas", &replicas, "--capacity", "4G"])?;
        Ok(side)
    }

    fn dir(&self) -> String {
        self.cluster.display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Vec<u8>, String> {
        let path = self.programs.join(program);
        let output =
            Command::new(&path).args(args).output().map_err(|e| format!("{}: {e}", path.display()))?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(format!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    /// Figures by name: rates, and CPU time of all processes for an operation.
    fn measure(&self, seconds: f64) -> Result<BTreeMap<String, Figure>, String> {
        let seconds = seconds.to_string();
        let report = self.run(
            "pcs-bench",
            &["cluster", "local", "--local", &self.dir(), "--seconds", &seconds, "--json"],
        )?;
        let report: Value =
            serde_json::from_slice(&report).map_err(|e| format!("report of pcs-bench: {e}"))?;
        let mut figures = BTreeMap::new();
        for m in report["measurements"].as_array().into_iter().flatten() {
            let name = format!("{}, depth {}", m["group"].as_str().unwrap_or("?"), m["depth"]);
            let rate = m["ops_per_s"].as_f64().ok_or("a measurement without a rate")?;
            figures.insert(format!("{name}: per second"), Figure { value: rate, more_is_better: true });
            let cpu =
                m["cpu_us_per_op"].as_object().map_or(0.0, |o| o.values().filter_map(Value::as_f64).sum());
            figures.insert(format!("{name}: CPU us"), Figure { value: cpu, more_is_better: false });
        }
        if figures.is_empty() { Err("pcs-bench measured nothing".into()) } else { Ok(figures) }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Err(why) = self.run("pstorage", &["local", "down", &self.dir()]) {
            eprintln!("guard: {why}");
        }
    }
}

#[derive(Clone, Copy)]
struct Figure {
    value: f64,
    more_is_better: bool,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    scratch::remove_on_interrupt()?;
    let base = Side::start(&args.base, args.work.join("base"), args.replicas)?;
    let head = Side::start(&args.head, args.work.join("head"), args.replicas)?;
    let mut pairs: BTreeMap<String, Vec<(Figure, Figure)>> = BTreeMap::new();
    for round in 0..args.rounds {
        eprintln!("guard: round {} of {}", round + 1, args.rounds);
        // Who goes first changes, so that what drifts meets both.
        let (of_base, of_head) = if round % 2 == 0 {
            let of_base = base.measure(args.seconds)?;
            (of_base, head.measure(args.seconds)?)
        } else {
            let of_head = head.measure(args.seconds)?;
            (base.measure(args.seconds)?, of_head)
        };
        for (name, before) in of_base {
            if let Some(after) = of_head.get(&name) {
                pairs.entry(name).or_default().push((before, *after));
            }
        }
    }
    let worse = print(&pairs, args.tolerance);
    match worse.is_empty() {
        true => Ok(()),
        false => Err(format!("worse than before: {}", worse.join("; "))),
    }
}

/// The figures that are worse for sure.
fn print(pairs: &BTreeMap<String, Vec<(Figure, Figure)>>, tolerance_percent: f64) -> Vec<String> {
    println!("| figure | base | head | head/base | 95 % between | |");
    println!("|---|---|---|---|---|---|");
    let mut worse = Vec::new();
    for (name, pairs) in pairs {
        let ratios: Vec<f64> = pairs.iter().map(|(before, after)| after.value / before.value).collect();
        let Some(ratio) = Ratio::of(&ratios) else { continue };
        let more_is_better = pairs[0].0.more_is_better;
        let verdict = ratio.verdict(more_is_better, tolerance_percent);
        if verdict == "WORSE" {
            worse.push(name.clone());
        }
        let mean = |value: fn(&(Figure, Figure)) -> f64| {
            number(pairs.iter().map(value).sum::<f64>() / pairs.len() as f64)
        };
        println!(
            "| {name} | {} | {} | {:.3} | {:.3} to {:.3} | {verdict} |",
            mean(|(before, _)| before.value),
            mean(|(_, after)| after.value),
            ratio.mean,
            ratio.low,
            ratio.high,
        );
    }
    worse
}

/// Geometric mean of ratios, and between what it lies with 95 % confidence (Student's t of their logarithms).
#[derive(Debug, PartialEq)]
struct Ratio {
    mean: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    /// `None` of fewer than two ratios, or of such that are no numbers.
    fn of(ratios: &[f64]) -> Option<Ratio> {
        let logs: Vec<f64> = ratios.iter().map(|r| r.ln()).collect();
        if logs.len() < 2 || logs.iter().any(|l| !l.is_finite()) {
            return None;
        }
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        let variance = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = student_t(logs.len() - 1) * (variance / n).sqrt();
        Some(Ratio { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() })
    }

    fn verdict(&self, more_is_better: bool, tolerance_percent: f64) -> &'static str {
        let (best, worst) =
            if more_is_better { (self.high, self.low) } else { (1.0 / self.low, 1.0 / self.high) };
        match () {
            () if best < 1.0 - tolerance_percent / 100.0 => "WORSE",
            () if best < 1.0 => "a little worse",
            () if worst > 1.0 => "better",
            () => "",
        }
    }
}

/// What 95 % lie within, by degrees of freedom.
fn student_t(freedom: usize) -> f64 {
    const TABLE: [f64; 15] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131,
    ];
    match freedom {
        0 => f64::INFINITY,
        1..=15 => TABLE[freedom - 1],
        // Within a hundredth.
        _ => 1.96 + 2.5 / freedom as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_worse_only_where_chance_is_unlikely() {
        let verdict = |ratios: &[f64], more| Ratio::of(ratios).unwrap().verdict(more, 5.0);
        assert_eq!(verdict(&[0.8, 0.81, 0.79, 0.8], true), "WORSE");
        assert_eq!(verdict(&[0.8, 0.81, 0.79, 0.8], false), "better");
        assert_eq!(verdict(&[1.3, 1.29, 1.31, 1.3], false), "WORSE");
        assert_eq!(verdict(&[0.97, 0.971, 0.969], true), "a little worse");
        assert_eq!(verdict(&[0.6, 1.2, 0.7, 1.1], true), "", "noise");
        let same = Ratio::of(&[2.0, 0.5]).unwrap();
        assert!((same.mean - 1.0).abs() < 1e-12 && same.low < 0.01 && same.high > 100.0, "{same:?}");
        assert_eq!(Ratio::of(&[1.0]), None);
        assert_eq!(Ratio::of(&[1.0, f64::NAN]), None);
    }
}
