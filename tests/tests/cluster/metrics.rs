//! What daemons tell Prometheus, of a real cluster; and that the guide and the dashboard name just that.

use crate::common::{Cluster, Running, free_ports, pattern, programs, run, wait_until, write_synced};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// No client may hold another one up for longer.
const AT_MOST: Duration = Duration::from_secs(2);
const MIB: usize = 1 << 20;

/// Samples by what stands in front of the value: the name with its labels.
type Samples = BTreeMap<String, f64>;

fn address() -> SocketAddr {
    ([127, 0, 0, 1], free_ports()).into()
}

/// All that the server says to these bytes.
fn say(addr: SocketAddr, bytes: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    say(addr, format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes())
}

fn scrape(addr: SocketAddr) -> Samples {
    let answer = get(addr, "/metrics").unwrap_or_else(|e| panic!("{addr}: {e}"));
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("openmetrics-text"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", text.len())), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        (name.to_string(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    lines.map(sample).collect()
}

/// Of all series of this name that have the label.
fn sum(samples: &Samples, name: &str, label: &str) -> f64 {
    let found: Vec<f64> = samples
        .iter()
        .filter(|(key, _)| key.split('{').next() == Some(name) && key.contains(label))
        .map(|(_, value)| *value)
        .collect();
    assert!(!found.is_empty(), "no {name} with {label} in {samples:#?}");
    found.iter().sum()
}

/// All names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("pstorage_")).map(String::from).collect()
}

/// A server of the cluster that was killed again, at the same place in `local down`'s books, serving metrics.
fn start(c: &Cluster, program: &str, name: &str, more: &[&str], env: &[(&str, &str)]) -> Running {
    let mut command = Command::new(programs().join(program));
    command.args(["-r", &c.dir.path(name), "--etc", &c.dir.path("etc")]).args(more);
    command.envs(env.iter().copied()).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    fs::write(c.dir.0.join("run").join(format!("{name}.pid")), child.id().to_string()).unwrap();
    Running(child)
}

/// Unmounted with the value.
struct Mount(String);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn repository(file: &str) -> String {
    let path = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn daemons_tell_prometheus_what_they_do_and_nobody_can_stop_them() {
    // Dropped behind the cluster, which stops its mounts first.
    let started;
    let c = Cluster::new("metrics");
    c.up_with(&["--mds", "1", "--cs", "2", "--replicas", "2:1", "--capacity", "512M"]);
    ["mds1", "cs1", "cs2"].iter().for_each(|name| c.kill(name));
    let open = ["-r", &c.dir.path("mds1"), "--metrics", "0.0.0.0:9525"];
    run("pstorage-mdsd", &open).refused(&["0.0.0.0:9525", "--metrics-open"]);

    let [mds, cs1, cs2, mount] = [address(), address(), address(), address()];
    started = [
        start(&c, "pstorage-mdsd", "mds1", &["--metrics", &mds.to_string()], &[]),
        start(&c, "pstorage-csd", "cs1", &["--metrics", &cs1.to_string()], &[]),
        // As in a unit of systemd.
        start(&c, "pstorage-csd", "cs2", &[], &[("PSTORAGE_METRICS", &cs2.to_string())]),
    ];
    c.wait_healthy();
    let at = Mount(c.dir.path("watched"));
    fs::create_dir(&at.0).unwrap();
    let options = format!("metrics={mount},cachesize=16,cache={}", c.dir.path("watched.cache"));
    let mounting = ["-c", "local", "--etc", &c.dir.path("etc"), "-l", &c.dir.path("logs/watched.log"), "-o"];
    run("pstorage-mount", &[&mounting[..], &[&options, &at.0]].concat()).ok();
    let all = [mds, cs1, cs2, mount];
    wait_until("all to be well", PATIENCE, || {
        all.iter().all(|addr| get(*addr, "/healthz").is_ok_and(|a| a.starts_with("HTTP/1.1 200 ")))
    });

    let before = all.map(scrape);
    let bytes = pattern(7, 8 * MIB / 4096);
    let file = format!("{}/f", at.0);
    write_synced(file.as_ref(), &bytes);
    // Once through the watched mount, and once past every cache.
    read_direct(&file, &bytes);
    read_direct(c.mnt("f").to_str().unwrap(), &bytes);
    let after = all.map(scrape);
    let moved =
        |n: usize, name: &str, label: &str| sum(&after[n], name, label) - sum(&before[n], name, label);
    let size = bytes.len() as f64;
    assert!(moved(3, "pstorage_client_written_bytes_total", "mount=") >= size, "{after:#?}");
    assert!(moved(3, "pstorage_client_read_bytes_total", "mount=") >= size, "{after:#?}");
    for name in ["pstorage_cs_written_bytes_total", "pstorage_cs_read_bytes_total"] {
        let of_both = moved(1, name, "cs=\"1\"") + moved(2, name, "cs=\"2\"");
        assert!(of_both >= size, "{name}: {after:#?}");
    }
    assert!(moved(0, "pstorage_mds_requests_total", "from=\"client\"") >= 1.0, "{after:#?}");
    // Heartbeats are slower than this test: these are of the four shards' beginning.
    assert!(sum(&after[0], "pstorage_mds_requests_total", "from=\"cs\"") >= 4.0, "{after:#?}");
    assert!(moved(0, "pstorage_mds_raft_commit_index", "mds=\"1\"") >= 1.0, "{after:#?}");
    assert_eq!(sum(&after[0], "pstorage_mds_is_master", "cluster=\"local\""), 1.0);
    assert_eq!(sum(&after[0], "pstorage_cluster_cs", "state=\"active\""), 2.0);
    assert_eq!(sum(&after[0], "pstorage_cluster_health", ""), 1.0, "one state holds: {after:#?}");
    let stat = c.json(&["stat"]);
    let told = scrape(mds);
    assert_eq!(
        sum(&told, "pstorage_cluster_physical_size_bytes", ""),
        stat["fs"]["total_bytes"].as_f64().unwrap()
    );
    assert_eq!(sum(&told, "pstorage_cluster_chunks", ""), stat["chunks"]["total"].as_f64().unwrap());

    for (of, name, label) in [
        (0, "pstorage_mds_request_seconds", "request=\"create\""),
        (3, "pstorage_client_read_seconds", "mount="),
        (3, "pstorage_client_write_seconds", "mount="),
        (3, "pstorage_client_mds_request_seconds", "mount="),
    ] {
        let [count, seconds, all] = [
            sum(&after[of], &format!("{name}_count"), label),
            sum(&after[of], &format!("{name}_sum"), label),
            sum(&after[of], &format!("{name}_bucket"), "le=\"+Inf\""),
        ];
        assert!(
            count >= 1.0 && seconds > 0.0 && seconds < 30.0 * count && all >= count,
            "{name}: {after:#?}"
        );
    }
    for name in ["pstorage_cs_io_seconds", "pstorage_cs_read_seconds", "pstorage_cs_write_seconds"] {
        let count = format!("{name}_count");
        let of_both = moved(1, &count, "cs=\"1\"") + moved(2, &count, "cs=\"2\"");
        assert!(of_both >= 8.0, "{name}: {after:#?}");
    }

    // The guide has each name once, the daemons tell each, and the dashboard uses no other.
    let name_of = |key: &str| {
        let name = key.split('{').next().unwrap();
        let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        parts.filter(|histogram| histogram.ends_with("_seconds")).unwrap_or(name).to_string()
    };
    let told: BTreeSet<String> = after.iter().flatten().map(|(key, _)| name_of(key)).collect();
    let guide = repository("docs/admin-guide/metrics.md");
    let rows: Vec<&str> =
        guide.lines().filter_map(|l| l.strip_prefix("| `pstorage_")?.split('`').next()).collect();
    let listed: BTreeSet<String> = rows.iter().map(|row| format!("pstorage_{row}")).collect();
    assert_eq!(rows.len(), listed.len(), "a metric stands in the guide twice");
    assert_eq!(listed, told, "left: the guide, right: the daemons");
    let dashboard: serde_json::Value =
        serde_json::from_str(&repository("packaging/grafana/pstorage.json")).unwrap();
    let shown: BTreeSet<String> = names_in(&dashboard.to_string()).iter().map(|name| name_of(name)).collect();
    assert!(shown.len() > 20 && shown.is_subset(&told), "{:?}", shown.difference(&told));
    let in_rules: BTreeSet<String> =
        guide.lines().filter(|l| l.contains("expr: ")).flat_map(names_in).collect();
    assert!(in_rules.len() == 3 && in_rules.is_subset(&told), "{in_rules:?}");

    for addr in all {
        bother(addr);
    }
    c.wait_healthy();
    assert!(started.iter().all(|s| std::path::Path::new(&format!("/proc/{}/exe", s.0.id())).exists()));
}

fn read_direct(path: &str, expected: &[u8]) {
    const O_DIRECT: i32 = 0o40000;
    let mut file: File = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path).unwrap();
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert!(found == expected, "{path} holds something else");
}

/// Nonsense, requests without an end and clients that say nothing; others are answered meanwhile.
fn bother(addr: SocketAddr) {
    let bad = |bytes: &[u8], status: &str| {
        let answer = say(addr, bytes).unwrap_or_else(|e| panic!("{addr}: {e}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    };
    bad(b"\xff\x00\xfe nonsense\n\n", "400");
    bad(b"\r\n\r\n", "400");
    bad(b"POST /metrics HTTP/1.1\r\n\r\n", "405");
    bad(b"GET /etc/passwd HTTP/1.1\r\n\r\n", "404");
    bad(&[b'x'; 8 << 10], "431");
    let half_open = |_| {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(b"GET /metr").unwrap();
        stream
    };
    let mut silent: Vec<TcpStream> = (0..8).map(half_open).collect();
    let began = Instant::now();
    scrape(addr);
    assert!(began.elapsed() < AT_MOST, "{:?} beside silent clients", began.elapsed());
    // More than are served at a time: the oldest are sent away.
    silent.extend((0..40).map(half_open));
    wait_until("an answer after too many clients", PATIENCE, || {
        get(addr, "/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    });
    scrape(addr);
}
