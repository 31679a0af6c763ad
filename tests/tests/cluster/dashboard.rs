//! The dashboard of a real cluster: the page, its figures against those of `stat`, who may see it, and what it says when servers are away.

use crate::common::{Cluster, Running, free_ports, programs, run, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A dashboard that is ended with the value.
struct Dashboard {
    addr: SocketAddr,
    _process: Running,
}

impl Dashboard {
    fn start(c: &Cluster, options: &[&str]) -> Dashboard {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_ports()));
        let mut child = Command::new(programs().join("pstorage"))
            .args(["-c", "local", "--etc", &c.dir.path("etc"), "dashboard", "--listen", &addr.to_string()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("pstorage runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        let process = Running(child);
        BufReader::new(stdout).read_line(&mut line).expect("it says where it is");
        assert!(line.contains(&format!("http://{addr}/")), "{line}");
        Dashboard { addr, _process: process }
    }

    fn say(&self, bytes: &[u8]) -> std::io::Result<(String, String)> {
        let mut stream = TcpStream::connect(self.addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(bytes)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Ok((head.into(), body.into()))
    }

    fn get(&self, path: &str, headers: &str) -> (String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.addr);
        self.say(request.as_bytes()).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// The word of three digits.
    fn status_of(&self, path: &str, headers: &str) -> String {
        self.get(path, headers).0.split(' ').nth(1).unwrap_or_default().into()
    }

    fn api(&self, path: &str) -> Value {
        let (head, body) = self.get(path, "");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}\n{body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e} in {body}"))
    }

    /// The states of all servers in the tree.
    fn servers(&self) -> Vec<(u64, String)> {
        fn collect(node: &Value, all: &mut Vec<(u64, String)>) {
            let list = |name: &str| node[name].as_array().cloned().unwrap_or_default();
            list("places").iter().for_each(|place| collect(place, all));
            all.extend(list("cs").iter().map(|cs| {
                (cs["cs"].as_u64().expect("a number"), cs["state"].as_str().expect("a word").into())
            }));
        }
        let mut all = Vec::new();
        collect(&self.api("/api/servers?all=1"), &mut all);
        all.sort();
        all
    }
}

#[test]
fn a_browser_sees_the_cluster_as_stat_does_and_what_is_wrong_with_it() {
    let c = Cluster::new("dashboard");
    c.up_with(&["--mds", "1", "--cs", "3", "--replicas", "3:2", "--capacity", "512M"]);
    fs::write(c.mnt("f"), vec![7; 3 << 20]).unwrap();
    c.wait_healthy();
    let d = Dashboard::start(&c, &["-T", "500"]);
    wait_until("the first figures", PATIENCE, || d.api("/api/status")["current"] == true);

    // The page, all of its own and guarded against what might be slipped into it.
    let (head, page) = d.get("/", "");
    assert!(head.contains("Content-Security-Policy: default-src 'none'; script-src 'self';"), "{head}");
    assert!(head.contains("X-Frame-Options: DENY") && head.contains("Cache-Control: no-store"), "{head}");
    assert!(
        page.contains("<script src=\"app.js\" defer></script>") && page.contains("id=\"servers\""),
        "{page}"
    );
    assert!(d.get("/app.js", "").0.contains("Content-Type: text/javascript"));
    assert!(d.get("/style.css", "").0.contains("Content-Type: text/css"));
    assert_eq!(d.status_of("/etc/passwd", ""), "404");
    let asked = format!("HEAD / HTTP/1.1\r\nHost: {}\r\n\r\n", d.addr);
    let (head, body) = d.say(asked.as_bytes()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
    let asked = format!("POST / HTTP/1.1\r\nHost: {}\r\n\r\n", d.addr);
    assert!(d.say(asked.as_bytes()).unwrap().0.starts_with("HTTP/1.1 405"));
    let (head, _) = d.say(b"GET /api/status HTTP/1.1\r\nHost: pcs.evil.example\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 421"), "names of others must not lead here: {head}");

    // The figures of stat, once they rest.
    let same = ["cluster", "status", "fs", "chunks", "license", "default_policy"];
    wait_until("the figures of stat", PATIENCE, || {
        let (told, stat) = (d.api("/api/status"), c.json(&["stat"]));
        same.iter().all(|name| told[name] == stat[name])
    });
    assert_eq!(d.servers(), [1, 2, 3].map(|n| (n, "active".to_string())));
    let client = &d.api("/api/clients")["clients"][0];
    assert_eq!(client["mount_point"], c.json(&["stat"])["clients"][0]["mount_point"]);
    wait_until("the newest event", PATIENCE, || {
        let newest = c.admin(&["get-event"]).lines().last().expect("there are events").to_string();
        let told = d.api("/api/events?limit=1")["events"][0]["message"].clone();
        told.as_str().is_some_and(|message| newest.ends_with(message))
    });
    let samples = |after: u64| d.api(&format!("/api/samples?after={after}"));
    wait_until("two samples", PATIENCE, || samples(0)["number"].as_array().is_some_and(|n| n.len() >= 2));
    let first = samples(0)["number"][0].as_u64().expect("a number");
    assert_eq!(samples(first)["number"][0], first + 1);

    // Clients that say nothing hold nobody up, however many they are.
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(d.addr).unwrap()).collect();
    let began = Instant::now();
    d.api("/api/status");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?} beside silent clients", began.elapsed());
    drop(silent);

    // A server that is away.
    c.kill("cs2");
    wait_until("cs2 to be missed", PATIENCE, || d.servers()[1].1 == "inactive");
    // A master that has just begun does not judge yet.
    wait_until("a degraded cluster", PATIENCE, || d.api("/api/status")["status"] == "degraded");
    let told = d.api("/api/status");
    assert_eq!(told["cs"]["by_status"]["inactive"], 1);
    let findings = told["findings"].as_array().expect("a list").clone();
    let finding = findings.iter().find(|f| f["check"] == "chunk servers").expect("it is told");
    assert!(finding["found"].as_str().unwrap().contains("CS#2") && finding["todo"] != "", "{finding}");
    let story = d.api("/api/explain?cs=2");
    assert_eq!(story["server"]["status"], "inactive");
    assert!(!story["wrong"].as_array().expect("a list").is_empty(), "{story}");

    // Nobody left who knows.
    c.kill("mds1");
    wait_until("the silence to be told", PATIENCE, || d.api("/api/status")["current"] == false);
    let told = d.api("/api/status");
    assert!(told["trouble"].as_str().is_some_and(|why| why.contains("no metadata server")), "{told}");
    assert!(told["age_ms"].as_u64().is_some_and(|age| age >= 2000), "{told}");
    assert!(told["fs"]["total_bytes"].as_u64().is_some_and(|total| total > 0), "{told}");
    assert_eq!(d.servers()[1].1, "inactive", "the last figures stay");
    assert_eq!(d.status_of("/api/explain?cs=2", ""), "503");
    c.up();
    wait_until("the figures to be new again", PATIENCE, || d.api("/api/status")["current"] == true);
}

#[test]
fn others_than_this_host_need_the_password() {
    let c = Cluster::new("dashboard-password");
    c.up_with(&["--mds", "1", "--cs", "1", "--replicas", "1", "--capacity", "512M"]);
    let etc = c.dir.path("etc");
    let dashboard =
        |options: &[&str]| run("pstorage", &[&["-c", "local", "--etc", &etc, "dashboard"], options].concat());
    dashboard(&["--listen", "0.0.0.0:9530"]).refused(&["0.0.0.0:9530", "--password-file"]);
    let file = c.dir.path("password");
    fs::write(&file, "open sesame\n").unwrap();
    dashboard(&["--listen", "0.0.0.0:9530", "--password-file", &file])
        .refused(&["--tls-cert", "--plain-http"]);
    dashboard(&["--password-file", &c.dir.path("none")]).refused(&["none"]);
    dashboard(&["--tls-cert", &file, "--tls-key", &file]).refused(&[&file]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _held = std::net::TcpListener::bind(taken).unwrap();
    dashboard(&["--listen", &taken.to_string()]).refused(&[&taken.to_string(), "free port"]);

    let d = Dashboard::start(&c, &["--password-file", &file]);
    // echo -n anybody:open sesame | base64
    let (right, wrong) =
        ("Authorization: Basic YW55Ym9keTpvcGVuIHNlc2FtZQ==\r\n", "Authorization: Basic YTpi\r\n");
    for path in ["/", "/app.js", "/api/status", "/none"] {
        assert_eq!(d.status_of(path, ""), "401", "{path}");
    }
    assert!(d.get("/", "").0.contains("WWW-Authenticate: Basic realm="));
    assert_eq!((d.status_of("/", wrong), d.status_of("/", right)), ("401".into(), "200".into()));
    wait_until("figures", PATIENCE, || {
        let told: Value = serde_json::from_str(&d.get("/api/status", right).1).unwrap_or_default();
        told["current"] == true
    });
    (0..4).for_each(|_| assert_eq!(d.status_of("/", wrong), "401"));
    assert_eq!(d.status_of("/", right), "429", "after five wrong ones in a minute");
}
