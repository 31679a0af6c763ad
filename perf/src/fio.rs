//! The `fio` program as a second opinion: the same cases, measured by a tool that is not ours.

use crate::measure::{Case, Figures, Latency, Operation, Pattern};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub fn is_installed() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Measures on an existing file with direct I/O through io_uring.
pub fn run(file: &Path, case: Case, time: Duration) -> Result<Figures, String> {
    let pattern = match (case.pattern, case.operation) {
        (Pattern::Random, Operation::Write) => "randwrite",
        (Pattern::Random, _) => "randread",
        (Pattern::Sequential, Operation::Write) => "write",
        (Pattern::Sequential, _) => "read",
    };
    let mut run = Command::new("fio");
    run.args(["--name=pcs", "--ioengine=io_uring", "--direct=1", "--time_based", "--output-format=json"])
        // Every buffer anew: the same data again and again flatters clever disks.
        .args(["--refill_buffers", "--allow_file_create=0"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--sync={}", if case.flushed { "dsync" } else { "none" }))
        .args([
            format!("--rw={pattern}"),
            format!("--bs={}", case.block_bytes),
            format!("--iodepth={}", case.depth),
        ])
        .arg(format!("--runtime={}ms", time.as_millis()))
        .arg(format!("--ramp_time={}ms", (time / 10).min(Duration::from_millis(500)).as_millis()));
    let run = run.output().map_err(|e| format!("fio: {e} (apt-get install fio)"))?;
    if !run.status.success() {
        return Err(format!("fio failed: {}", String::from_utf8_lossy(&run.stderr).trim()));
    }
    figures(&run.stdout, case).ok_or_else(|| "fio's report is not understood: is it version 3?".to_string())
}

fn figures(json: &[u8], case: Case) -> Option<Figures> {
    let report: Value = serde_json::from_slice(json).ok()?;
    let side = if case.operation == Operation::Write { "write" } else { "read" };
    let side = report.get("jobs")?.get(0)?.get(side)?;
    let latency_us = |name: &str| Some(side.get("clat_ns")?.get(name)?.as_f64()? / 1e3);
    let percentile_us = |p: &str| Some(side.get("clat_ns")?.get("percentile")?.get(p)?.as_f64()? / 1e3);
    let ops_per_s = side.get("iops")?.as_f64()?;
    Some(Figures {
        ops: side.get("total_ios")?.as_u64()?,
        seconds: side.get("runtime")?.as_f64()? / 1e3,
        ops_per_s,
        bytes_per_s: ops_per_s * case.block_bytes as f64,
        latency_us: Latency {
            mean: latency_us("mean")?,
            p50: percentile_us("50.000000")?,
            p99: percentile_us("99.000000")?,
            p999: percentile_us("99.900000")?,
            max: latency_us("max")?,
        },
        latency_counts: Vec::new(),
        rate: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tests::case;

    #[test]
    fn a_report_of_fio_is_read() {
        let json = br#"{"jobs": [{"write": {"iops": 500.5, "total_ios": 1001, "runtime": 2000, "clat_ns":
            {"mean": 1500.0, "max": 90000, "percentile": {"50.000000": 1000, "99.000000": 5000, "99.900000": 7000}}}}]}"#;
        let figures = figures(json, case(Operation::Write, 1)).unwrap();
        assert_eq!((figures.ops, figures.seconds, figures.latency_us.p99), (1001, 2.0, 5.0));
        assert!(super::figures(json, case(Operation::Read, 1)).is_none());
    }
}
