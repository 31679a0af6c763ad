//! `doctor` on a host without a cluster, and on a cluster that loses servers.

use crate::common::{Cluster, Dir, Ended, run, wait_until};
use serde_json::Value;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.text).unwrap_or_else(|e| panic!("{e} in {}", ended.text))
}

/// Verdicts of a check, of the host or of the cluster.
fn verdicts(found: &Value, of: &str, check: &str) -> Vec<String> {
    let parts = found["parts"].as_array().expect("parts").iter().filter(|part| part["of"] == of);
    let findings = parts.flat_map(|part| part["findings"].as_array().expect("findings"));
    let named = findings.filter(|finding| finding["check"] == check);
    named.map(|finding| finding["verdict"].as_str().expect("a word").to_string()).collect()
}

#[test]
fn a_host_without_a_cluster_is_looked_at() {
    let dir = Dir::new("doctor-host");
    let (etc, disk) = (dir.path("etc"), dir.path(""));
    let ended = run("pstorage", &["--etc", &etc, "--json", "doctor", &disk]);
    // What kind of machine this is the test does not know: but servers run on it.
    let found = json(&ended);
    for (check, verdict) in [("kernel", "ok"), ("io_uring", "ok"), ("file system", "ok")] {
        assert_eq!(verdicts(&found, "host", check), [verdict], "{check}: {found:#}");
    }
    for check in ["time service", "flush", "free space", "memory"] {
        assert_eq!(verdicts(&found, "host", check).len(), 1, "{check}: {found:#}");
    }
    assert_eq!(found["parts"].as_array().map(Vec::len), Some(1), "nobody asked for a cluster");
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "nothing is left on the disk");

    let shown = run("pstorage", &["--etc", &etc, "doctor", &disk]);
    assert_eq!(shown.code, ended.code);
    assert!(shown.text.contains("[ OK ] kernel: ") && shown.text.contains(" checks: "), "{}", shown.text);
    // A place that is not there, a cluster that is not there.
    let nowhere = run("pstorage", &["--etc", &etc, "doctor", &dir.path("nowhere")]);
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.text.contains("[ERR ] disk") && nowhere.text.contains("nowhere"), "{}", nowhere.text);
    let unknown = run("pstorage", &["-c", "x", "--etc", &etc, "doctor"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.text.contains("don't know any metadata server"), "{}", unknown.text);
}

#[test]
fn what_a_cluster_loses_is_found_and_what_it_has_is_not_blamed() {
    let c = Cluster::new("doctor");
    c.up();
    c.wait_healthy();
    let etc = c.dir.path("etc");
    let look = || run("pstorage", &["-c", "local", "--etc", &etc, "--json", "doctor"]);
    let whole = look();
    let found = json(&whole);
    // All on one machine and one disk: that is no error, but not how it should be.
    assert_eq!((whole.code, &found["verdict"]), (1, &Value::from("warning")), "{found:#}");
    for check in
        ["master", "metadata servers", "chunk servers", "chunks", "replicas", "reach", "clocks", "versions"]
    {
        assert_eq!(verdicts(&found, "cluster", check), ["ok"], "{check}: {found:#}");
    }
    assert!(
        verdicts(&found, "cluster", "single point of failure").len() >= 2,
        "MDS and CS are on one host: {found:#}"
    );
    assert_eq!(verdicts(&found, "host", "service"), ["ok"; 6], "{found:#}");
    assert_eq!(verdicts(&found, "host", "address"), ["warning"; 6], "127.0.0.1: {found:#}");
    assert_eq!(verdicts(&found, "host", "shared disk"), ["warning"], "{found:#}");

    c.kill("cs2");
    wait_until("it is missed", PATIENCE, || {
        verdicts(&json(&look()), "cluster", "chunk servers") == ["warning"]
    });
    assert!(verdicts(&json(&look()), "host", "service").contains(&"warning".to_string()));
    c.kill("mds3");
    wait_until("it is missed", PATIENCE, || {
        verdicts(&json(&look()), "cluster", "metadata servers") == ["error"]
    });
    assert_eq!(look().code, 2);
    // With the majority gone there is no master to ask; the host is looked at all the same.
    c.kill("mds2");
    let found = json(&look());
    assert_eq!(verdicts(&found, "cluster", "master"), ["error"], "{found:#}");
    assert_eq!(verdicts(&found, "host", "service").len(), 6);
}
