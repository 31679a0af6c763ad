//! Where the time of a request went: `trace`, and the logs of slow requests of mounts and chunk servers.

use crate::common::{Cluster, pattern, programs, read, run_command, write_synced};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Lines of a log that tell of slow requests.
fn slow_lines(log: &str) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|l| l.contains("slow_request")).map(str::to_string).collect()
}

fn us(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no time"))
}

#[test]
fn requests_are_followed_from_the_client_to_every_disk() {
    let c = Cluster::new("tracing");
    let up = ["local", "up", c.root(), "--cs", "3", "--replicas", "3:2", "--capacity", "1G"];
    let pstorage = programs().join("pstorage");
    run_command(Command::new(pstorage).args(up).env("PSTORAGE_SLOW_REQUEST_MS", "200")).ok();
    let (image, bytes) = (c.mnt("image"), pattern(5, 512));
    write_synced(&image, &bytes);
    c.wait_healthy();

    // A read: of the primary alone.
    let told = c.json(&["trace", "/image", "--size", "64K", "--count", "5"]);
    assert_eq!(told["requests_us"].as_array().unwrap().len(), 5);
    let part = &told["parts"][0];
    let server = &part["servers"][0]["told"];
    assert_eq!(
        (&part["work"], &part["length_bytes"], &server["work"]),
        (&"read".into(), &65536.into(), &"read".into())
    );
    assert_eq!(part["servers"].as_array().unwrap().len(), 1, "{told:#}");
    assert_eq!(part["trace"], server["trace"]);
    assert!(us(&server["store_us"]) > 0 && us(&server["total_us"]) >= us(&server["store_us"]), "{told:#}");
    assert!(us(&part["answered_us"]) >= us(&server["total_us"]), "{told:#}");
    assert!(us(&told["median_us"]) >= us(&part["answered_us"]), "{told:#}");

    // A write: every replica's disk, and nothing is changed.
    let told = c.json(&["trace", "/image", "--write", "--offset", "1M"]);
    let servers = told["parts"][0]["servers"].as_array().unwrap();
    let works: Vec<&Value> = servers.iter().map(|s| &s["told"]["work"]).collect();
    assert_eq!(works, ["write", "store", "store"], "{told:#}");
    let primary = &servers[0]["told"];
    for secondary in &servers[1..] {
        let replicas = primary["replicas_us"].as_array().unwrap();
        let replica = replicas.iter().find(|r| r[0] == secondary["cs"]).unwrap_or_else(|| panic!("{told:#}"));
        assert!(us(&replica[1]) >= us(&secondary["told"]["store_us"]), "{told:#}");
        assert!(us(&primary["total_us"]) >= us(&replica[1]), "{told:#}");
    }
    let text = c.admin(&["trace", "image", "--write", "--count", "3"]);
    assert!(text.contains("the median of 3 requests") && text.contains("of which its disk"), "{text}");
    assert!(read(&image) == bytes);
    // A secondary that stops for a moment makes writes slow: client and primary say so, by the same number.
    let story = c.json(&["explain", "/image"]);
    let leader = us(&story["chunks"][0]["primary"]);
    let other = format!("cs{}", (1..=3).find(|n| *n != leader).unwrap());
    let other_pid = Pid::from_raw(c.pid(&other) as i32);
    kill(other_pid, Signal::SIGSTOP).unwrap();
    let slow_write = std::thread::spawn({
        let (image, block) = (image.clone(), bytes[..4096].to_vec());
        move || overwrite(&image, &block)
    });
    std::thread::sleep(Duration::from_millis(500));
    // Not by a child of ours: it would have the image open, and wait for the write.
    kill(other_pid, Signal::SIGCONT).unwrap();
    slow_write.join().unwrap();
    let mount = slow_lines(&c.dir.path("logs/mount.log"));
    let line = mount.iter().find(|l| l.contains("work=write")).unwrap_or_else(|| panic!("{mount:?}"));
    let trace = line.split("trace=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let primary = slow_lines(&c.dir.path(&format!("cs{leader}/logs/csd.log")));
    let of_it = primary.iter().find(|l| l.contains(&format!("trace={trace} ")));
    let of_it = of_it.unwrap_or_else(|| panic!("{trace}: {primary:?}"));
    assert!(of_it.contains(&format!("CS#{} ", &other[2..])), "{of_it}");
    let remembered = c.json(&["trace", "--slow"]);
    let requests = remembered["requests"].as_array().unwrap();
    assert!(requests.iter().any(|r| r["told"]["trace"] == trace && r["cs"] == leader), "{remembered:#}");
    assert!(c.admin(&["trace", "--slow"]).contains(trace));
}

fn overwrite(image: &Path, block: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(block, 0).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_can_not_be_traced_is_refused() {
    let c = Cluster::new("tracing_refused");
    c.up_with(&["--mds", "1", "--cs", "1", "--capacity", "1G"]);
    write_synced(&c.mnt("image"), &pattern(5, 3));
    assert!(c.admin(&["trace", "--slow"]).contains("remember no slow requests"));
    let etc = c.dir.path("etc");
    for (args, says) in [
        (vec!["trace", "/none"], "/none"),
        (vec!["trace"], "--slow"),
        (vec!["trace", "/image", "--offset", "1G"], "the file ends before byte"),
        (vec!["trace", "/image", "--size", "0"], "from 1 byte to 16M"),
        (vec!["trace", "/image", "--size", "17M"], "from 1 byte to 16M"),
        (vec!["trace", "/image", "--write", "--offset", "100"], "multiples of 4096"),
    ] {
        let ended = crate::common::run("pstorage", &[&["-c", "local", "--etc", &etc][..], &args].concat());
        assert!(ended.code != 0 && ended.text.contains(says), "{args:?}: {}", ended.text);
    }
    // What is open for writing elsewhere stays with who has it.
    let open = std::fs::OpenOptions::new().write(true).open(c.mnt("image")).unwrap();
    let ended = crate::common::run("pstorage", &["-c", "local", "--etc", &etc, "trace", "/image"]);
    assert!(ended.code != 0 && ended.text.contains("/image"), "{}", ended.text);
    drop(open);
}
