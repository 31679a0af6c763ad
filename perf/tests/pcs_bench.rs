//! `pcs-bench` as a person or a script runs it.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

/// On a disk: the system's temporary directory may lie in memory.
fn directory(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn pcs_bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pcs-bench")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_disk_is_measured_and_nothing_stays_behind() {
    let dir = directory("disk");
    let (work, page) = (dir.join("work"), dir.join("page.html"));
    std::fs::create_dir(&work).unwrap();
    let (work_text, page_text) = (work.to_str().unwrap(), page.to_str().unwrap());
    let run =
        pcs_bench(&["disk", work_text, "--size", "32M", "--seconds", "0.05", "--json", "--html", page_text]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["command"], "disk");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    let measurements = report["measurements"].as_array().unwrap();
    // 2 patterns x 2 sizes x (read, write, flushed write) x 3 depths, and the journal at 3 depths.
    assert_eq!(measurements.len(), 39);
    for m in measurements {
        assert!(m["ops"].as_u64().unwrap() > 0, "{m}");
        let us = |name: &str| m["latency_us"][name].as_f64().unwrap();
        assert!(us("p50") <= us("p99") && us("p99") <= us("p999") && us("p999") <= us("max"), "{m}");
        let rate = m["ops_per_s"].as_f64().unwrap() * m["block_bytes"].as_f64().unwrap();
        assert!((m["bytes_per_s"].as_f64().unwrap() / rate - 1.0).abs() < 1e-6, "{m}");
        assert_eq!(m["rate"].as_array().unwrap().len(), 40);
        // At depth 1 one operation is always under way: rate times latency is all the time there is.
        if m["depth"] == 1 {
            let busy = m["ops_per_s"].as_f64().unwrap() * us("mean") / 1e6;
            assert!((0.5..1.5).contains(&busy), "the clock ran while nothing was under way: {m}");
        }
    }
    let is =
        |m: &&Value, operation: &str, flushed: bool| m["operation"] == operation && m["flushed"] == flushed;
    assert_eq!(measurements.iter().filter(|m| is(m, "read", false)).count(), 12);
    assert_eq!(measurements.iter().filter(|m| is(m, "write", true)).count(), 12);
    assert_eq!(measurements.iter().filter(|m| is(m, "journal", true)).count(), 3);
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|f| f["text"].as_str().unwrap().contains("A journal here")), "{findings:?}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "files were left");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn tables_for_people_have_graphs_and_findings() {
    let dir = directory("tables");
    let place = dir.to_str().unwrap();
    let run =
        pcs_bench(&["disk", place, "--size", "16M", "--seconds", "0.05", "--depths", "1", "--blocks", "4K"]);
    let shown = text(&run.stdout);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(shown.contains("random write, 4 KiB, flushed\ndepth") && shown.contains('█'), "{shown}");
    assert!(shown.contains("A journal here acknowledges"), "{shown}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn journals_on_two_disks_are_compared() {
    let dir = directory("journal");
    let ssd = dir.join("ssd");
    std::fs::create_dir(&ssd).unwrap();
    let (work, ssd) = (dir.to_str().unwrap(), ssd.to_str().unwrap());
    let run = pcs_bench(&[
        "journal",
        work,
        "--journal",
        ssd,
        "--size",
        "16M",
        "--seconds",
        "0.05",
        "--depths",
        "1,64",
        "--json",
    ]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let measurements = report["measurements"].as_array().unwrap();
    assert_eq!(measurements.len(), 6);
    for m in measurements {
        let counts = m["latency_counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap());
        assert_eq!(counts.sum::<u64>(), m["ops"].as_u64().unwrap(), "{m}");
        assert!(m["ops"].as_u64().unwrap() > 0 && m["flushed"] == true, "{m}");
    }
    let findings: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|f| f["text"].as_str().unwrap()).collect();
    assert!(findings.iter().any(|f| f.contains("With the journal in the other directory")), "{findings:?}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "files were left");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let dir = directory("page");
    let place = dir.to_str().unwrap();
    let run = pcs_bench(&["disk", place, "--seconds", "3600", "--html", "/nowhere/page.html"]);
    assert!(!run.status.success() && text(&run.stderr).contains("--html /nowhere/page.html"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn existing_files_and_unconfirmed_devices_are_never_written() {
    let dir = directory("refusals");
    let file = dir.join("precious");
    std::fs::write(&file, "precious").unwrap();
    let refused = pcs_bench(&["disk", file.to_str().unwrap(), "--seconds", "0.05"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("neither a directory"));
    let place = dir.to_str().unwrap();
    let refused = pcs_bench(&["disk", place, "--destroy-data-on", "/dev/null", "--seconds", "0.05"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("for block devices"));
    let refused = pcs_bench(&["disk", place, "--size", "900T", "--seconds", "0.05"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("smaller --size"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn an_unknown_cluster_is_explained() {
    let dir = directory("cluster");
    let run = pcs_bench(&["cluster", "-c", "nowhere", "--etc", dir.to_str().unwrap()]);
    assert!(!run.status.success() && text(&run.stderr).contains("bs.list"), "{}", text(&run.stderr));
    std::fs::remove_dir_all(&dir).unwrap();
}
