//! `stat` in its forms, and `top` on a real terminal, of a real cluster.

use crate::common::{self, Cluster, wait_until};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// What `script` runs ends with its terminal.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            common::send("-9", self.0.id());
        }
    }
}

#[test]
fn stat_is_sorted_and_told_as_xml_and_top_follows_the_cluster() {
    let c = Cluster::new("monitoring");
    c.up_with(&["--mds", "1", "--cs", "3", "--capacity", "1G"]);
    c.wait_healthy();

    let text = c.admin(&["stat", "-S", "csid=inv"]);
    let table = text.split("CSID").nth(1).expect("a table of the chunk servers");
    let ids: Vec<&str> =
        table.lines().skip(1).take(3).map(|l| l.split_whitespace().next().unwrap()).collect();
    assert_eq!(ids, ["3", "2", "1"], "{text}");
    let etc = c.dir.path("etc");
    let wrong = common::run("pstorage", &["-c", "local", "--etc", &etc, "stat", "-S", "size"]);
    assert!(wrong.code != 0 && wrong.text.contains("no column 'size'"), "{}", wrong.text);
    let xml = c.admin(&["stat", "-X"]);
    assert!(xml.starts_with("<?xml") && xml.contains("<cluster>local</cluster>"), "{xml}");
    assert_eq!(xml.matches("<status>active</status>").count(), 3, "{xml}");
    let available = c.json(&["stat"])["fs"]["available_bytes"].as_u64().unwrap();
    let mount = c.dir.path("mnt");
    let df = common::run_command(Command::new("df").args(["--output=avail", "-B1", &mount])).text;
    let shown: u64 = df.lines().last().and_then(|l| l.trim().parse().ok()).unwrap_or_else(|| panic!("{df}"));
    assert!(available > 0 && available.abs_diff(shown) <= 1 << 20, "{available} {df}");
    // 3 replicas on 3 servers, of which a quarter is margin.
    assert!(available < 770 << 20, "{available}");

    let services =
        |asked: &[&str]| c.json(&[&["list-services"], asked].concat()).as_array().expect("a list").clone();
    let all = services(&[]);
    assert_eq!(all.len(), 4, "{all:#?}");
    assert!(all.iter().all(|s| s["status"] == "running" && s["cluster"] == "local"), "{all:#?}");
    assert!((1..=3).all(|n| all.iter().any(|s| s["pid"] == c.pid(&format!("cs{n}")))), "{all:#?}");

    let explained = c.admin(&["get-config", "-v", "mds.wd.offline_tout"]);
    assert!(
        explained.contains("mds.wd.offline_tout=300000\n") && explained.contains("default 300000"),
        "{explained}"
    );

    let refused = common::run("pstorage", &["-c", "local", "--etc", &etc, "top"]);
    assert!(refused.code != 0 && refused.text.contains("draws on a terminal"), "{}", refused.text);

    let top = format!(
        "stty cols 100 rows 40; exec {} -c local --etc {etc} top -T 200",
        common::programs().join("pstorage").display()
    );
    let mut script = Ending(
        Command::new("script")
            .args(["-q", "-e", "-c", &top, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script, of Debian's bsdutils, runs"),
    );
    let screen = Arc::new(Mutex::new(vt100::Parser::new(40, 100, 0)));
    let mut output = script.0.stdout.take().expect("its output");
    let reader = std::thread::spawn({
        let screen = Arc::clone(&screen);
        move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut piece) {
                screen.lock().unwrap().process(&piece[..n]);
            }
        }
    });
    let mut keys = script.0.stdin.take().expect("its input");
    let seen = || screen.lock().unwrap().screen().contents();
    let shows = |word: &str| wait_until(word, PATIENCE, || seen().contains(word));
    shows("Cluster 'local'");
    keys.write_all(b"x").unwrap();
    shows("MEANING");
    keys.write_all(b"c").unwrap();
    shows("QDEPTH");
    c.kill("cs2");
    shows("1 inactive");
    let of_cs2 =
        services(&["-C"]).into_iter().find(|s| s["service"] == "cs" && s["id"] == 2).expect("it is listed");
    assert_eq!(
        (&of_cs2["status"], &of_cs2["in_cluster"]),
        (&"stopped".into(), &"inactive".into()),
        "{of_cs2:#}"
    );
    keys.write_all(b"q").unwrap();
    let ended = script.0.wait().expect("it ends");
    assert!(ended.success(), "{ended}: {}", seen());
    reader.join().unwrap();
}
