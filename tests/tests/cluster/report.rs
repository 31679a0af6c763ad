//! `report`: what is in it, and that no secret is, wherever it lay.

use crate::common::{Cluster, Dir, Running, free_ports, programs, run, run_command, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Names below the report's own directory, and contents. By tar: what others see is what counts.
fn unpacked(file: &str, into: &Dir) -> BTreeMap<String, String> {
    let to = into.path("unpacked");
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).unwrap();
    run_command(Command::new("tar").args(["-xzf", file, "-C", &to, "--strip-components=1"])).ok();
    let mut files = BTreeMap::new();
    let mut dirs = vec![Path::new(&to).to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(&to).unwrap().display().to_string();
            files.insert(name, String::from_utf8(fs::read(&path).unwrap()).expect("text"));
        }
    }
    files
}

fn append(path: &str, lines: &str) {
    let file = fs::File::options().create(true).append(true).open(path);
    file.unwrap().write_all(lines.as_bytes()).unwrap();
}

#[test]
fn secrets_planted_everywhere_are_in_no_report() {
    // A cluster with a password: its key files and the state of its metadata server hold real secrets.
    let (dir, port) = (Dir::new("report"), free_ports());
    let (etc, mds, cs) = (dir.path("etc"), dir.path("mds"), dir.path("cs"));
    fs::write(dir.path("password"), "plant-Password-of-the-cluster\n").unwrap();
    let admin = |args: &[&str]| run("pstorage", &[&["-c", "discreet", "--etc", &etc], args].concat());
    let addr = format!("127.0.0.1:{port}");
    admin(&["make-mds", "-I", "-a", &addr, "-r", &mds, "--password-file", &dir.path("password")]).ok();
    // A variable of a service whose name says what it is.
    let service = Command::new(programs().join("pstorage-mdsd"))
        .args(["-r", &mds, "--etc", &etc])
        .envs([("MONITORING_TOKEN", "plant-token-of-a-service"), ("PSTORAGE_LOG", "info")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let master = Running(service.unwrap());
    wait_until("a master", PATIENCE, || admin(&["stat"]).code == 0);
    let shape = ["--shards", "1", "--capacity", "256M", "--journal-size", "4M"];
    admin(&[&["make-cs", "-r", &cs], &shape[..]].concat()).ok();
    let _cs = Running::start("pstorage-csd", &["-r", &cs, "--etc", &etc]);
    wait_until("the chunk server is active", PATIENCE, || {
        admin(&["--json", "stat"]).text.contains("\"active\"")
    });

    // Settings.
    fs::write(
        dir.path("etc/pstorage.conf"),
        "refresh.time = 500\n# password = plant-in-a-comment of the settings\n",
    )
    .unwrap();
    fs::write(dir.path("etc/location"), "room1.row2.rack3\n").unwrap();
    append(
        &dir.path("etc/clusters/discreet/bs.list"),
        "# proxy http://admin:plant-in-an-address@10.0.0.1/\n",
    );
    // Files of people, where nobody expects them.
    for stray in [
        "etc/password.txt",
        "etc/clusters/discreet/password",
        "mds/notes",
        "mds/logs/dump.bin",
        "cs/shard-000/x",
    ] {
        fs::write(dir.path(stray), "plant-in-a-stray-file").unwrap();
    }
    // Logs, of all shapes. The key itself, as it stands in the key file, too.
    let key_file = dir.path("etc/clusters/discreet/auth_digest.key");
    let key = fs::read_to_string(&key_file).unwrap();
    let values: Vec<&str> =
        key.lines().filter_map(|line| line.split_once('=')).map(|(_, v)| v.trim()).collect();
    let mut secrets: Vec<String> = values.iter().filter(|v| v.len() >= 32).map(|v| v.to_string()).collect();
    assert!(!secrets.is_empty(), "a key file without a key: {key}");
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIPLANTplantPLANTplantPLANTplantPLANTplantPL\n-----END PRIVATE KEY-----\n";
    append(
        &dir.path("mds/logs/mdsd.log"),
        &format!(
            "INFO joined with password=plant-in-a-log\nWARN {{\"auth_token\": \"plant-in-json\", \"n\": 1}}\n{pem}\
             GET / Authorization: Bearer plant.in.a.header\nran: pstorage passwd --password plant-of-a-command\n\
             said plant-token-of-a-service without a word before it\nraw key {}\nThe last line stays\n",
            secrets.join(" and ")
        ),
    );
    append(
        &dir.path("cs/logs/csd.log"),
        "secret: \"plant with blanks\" and a rest\nplant-of-the-environment was seen\n",
    );

    let out = dir.path("report.tar.gz");
    let mut command = Command::new(programs().join("pstorage"));
    command
        .args(["-c", "discreet", "--etc", &etc, "report", "--out", &out])
        .env("BACKUP_PASSWORD", "plant-of-the-environment");
    let ended = run_command(&mut command);
    assert!(ended.ok().contains("Wrote ") && ended.text.contains("report.tar.gz"), "{}", ended.text);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);

    let files = unpacked(&out, &dir);
    secrets.extend(["plant", "PLANT"].map(String::from));
    for (name, text) in &files {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "'{secret}' is in {name}:\n{text}");
            assert!(!name.contains(secret.as_str()), "'{secret}' is in the name {name}");
        }
    }

    // What helps is in it.
    let has = |name: &str, text: &str| {
        let found = files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
        assert!(found.contains(text), "no '{text}' in {name}:\n{found}");
    };
    has("README.txt", "cluster 'discreet'");
    has("cluster/stat.json", "\"active\"");
    has("cluster/stat.txt", "Cluster 'discreet': healthy");
    has("cluster/events.txt", "became master");
    has("cluster/config.json", "mds.wd.offline_tout");
    has("cluster/nodes.json", "\"node\": 1");
    has("doctor.txt", "[ OK ] kernel");
    has("doctor.json", "\"verdict\"");
    has("host/uname.txt", "Linux");
    has("host/proc-meminfo", "MemTotal");
    has("host/disks.txt", "queue/write_cache=");
    has("etc/pstorage.conf", "refresh.time = 500");
    has("etc/location", "room1.row2.rack3");
    has("etc/clusters/discreet/bs.list", &addr);
    has("etc/clusters/discreet/auth_digest.key.txt", "mode 600");
    has("services.json", "\"running\"");
    has("services/mds-1/control.json", "\"mds\"");
    has("services/mds-1/logs/mdsd.log", "The last line stays");
    has("services/mds-1/logs/mdsd.log", "said [removed] without a word before it");
    has("services/mds-1/process.txt", "PSTORAGE_LOG=info");
    has("services/cs-1/logs/csd.log", "[removed]");
    has("services/cs-1/process-limits.txt", "Max locked memory");
    serde_json::from_str::<serde_json::Value>(&files["cluster/stat.json"]).expect("still JSON");

    // It is not written over, and comes without a cluster that answers.
    let again = admin(&["report", "--out", &out]);
    again.refused(&["exists", "--out"]);
    drop(master);
    let second = dir.path("second.tar.gz");
    admin(&["report", "--out", &second]).ok();
    let files = unpacked(&second, &dir);
    assert!(files["missing.txt"].contains("cluster/: no metadata server"), "{}", files["missing.txt"]);
    assert!(files.contains_key("services/mds-1/logs/mdsd.log"));
}

#[test]
fn logs_of_mounts_are_in_the_report() {
    let c = Cluster::new("report-mounts");
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "512M"]);
    let dir = Dir::new("report-mounts-out");
    let out = dir.path("report.tar.gz");
    let said = c.json(&["report", "--out", &out]);
    assert_eq!(said["file"], out.as_str());
    let files = unpacked(&out, &dir);
    let log = files.iter().find(|(name, _)| name.starts_with("mounts/") && name.ends_with("/mount.log"));
    assert!(log.is_some_and(|(_, text)| text.contains("mounted")), "{:?}", files.keys());
}
