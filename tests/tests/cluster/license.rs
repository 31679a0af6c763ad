//! Licences: made by a maker, loaded, renewed, shown; and what stops when one has ended, and what does not.

use crate::common::{self, Cluster, pattern, run, wait_until};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn an_ended_licence_stops_new_data_and_nothing_else() {
    let c = Cluster::new("license");
    let dir = common::Dir::new("license-maker");
    let (key, other_key) = (dir.path("maker.key"), dir.path("other.key"));
    let public = run("pstorage-license", &["new-key", &key]).ok().lines().next().unwrap().to_string();
    run("pstorage-license", &["new-key", &key]).refused(&["maker.key exists"]);
    run("pstorage-license", &["new-key", &other_key]).ok();
    c.up_with(&["--mds", "1", "--cs", "3", "--capacity", "1G"]);
    fs::write(c.dir.path("etc/license-makers"), format!("# ours\n{public} # since 2026\n")).unwrap();
    c.down();
    c.up();
    c.wait_healthy();

    // Without one there are no limits.
    assert!(c.admin(&["view-license"]).contains("needs none"));
    assert!(c.admin(&["stat-license"]).contains("ACTIVE: the software is free"));
    assert!(c.admin(&["stat"]).contains("License: ACTIVE (free, without limits)"));
    let stored = pattern(7, 256);
    fs::write(c.mnt("stored"), &stored).unwrap();

    let sign = |key: &str, name: &str, terms: &[&str]| {
        let file = dir.path(name);
        let all = [&["sign", "--key", key, "--owner", "Example Hosting", "-o", &file], terms].concat();
        (file.clone(), run("pstorage-license", &all).ok().trim().to_string())
    };
    let etc = c.dir.path("etc");
    let refused = |args: &[&str], parts: &[&str]| {
        run("pstorage", &[&["-c", "local", "--etc", &etc], args].concat()).refused(parts);
    };

    // What is refused changes nothing.
    let (_, stranger) = sign(&other_key, "stranger", &["--number", "X.1"]);
    refused(&["load-license", "-p", &stranger], &["somebody unknown", "license-makers"]);
    let (_, elsewhere) = sign(&key, "elsewhere", &["--number", "X.2", "--cluster", "pcs1"]);
    refused(&["load-license", "-p", &elsewhere], &["for cluster 'pcs1'"]);
    let (good, word) = sign(
        &key,
        "good",
        &["--number", "PS.1", "--cluster", "local", "--capacity", "10T", "--expires", "2099-12-31"],
    );
    let forged = dir.path("forged");
    fs::write(&forged, fs::read_to_string(&good).unwrap().replace("Example", "Exempel")).unwrap();
    refused(&["load-license", "-f", &forged], &["no valid licence", "changed"]);
    refused(&["load-license", "-p", "nonsense"], &["no valid licence"]);
    refused(&["load-license"], &["--key", "--file"]);
    refused(&["update-license", "-f", &good], &["no licence to be updated"]);
    assert!(c.admin(&["view-license"]).contains("needs none"));

    // A good one, as a word and as a file.
    assert!(c.admin(&["load-license", "-p", &word]).contains("License PS.1 was loaded"));
    let seen = c.admin(&["view-license"]);
    for part in ["PS.1", "Example Hosting", "2099-12-31", "10TB", "14 days"] {
        assert!(seen.contains(part), "{seen}");
    }
    wait_until("it is in stat", PATIENCE, || {
        c.admin(&["stat"]).contains("License: ACTIVE (expiration: 2099-12-31, capacity: 10TB, used: ")
    });
    assert_eq!(c.json(&["view-license"])["status"], "Active");
    refused(&["update-license", "-f", &good], &["no later"]);
    let (older, _) = sign(&key, "other", &["--number", "PS.2"]);
    refused(&["update-license", "-f", &older], &["not a newer one of PS.1"]);

    // One that ended long ago: reads, changes in place and removals go on.
    std::thread::sleep(Duration::from_millis(1100));
    let (ended, _) = sign(&key, "ended", &["--number", "PS.1", "--expires", "2020-01-01"]);
    c.admin(&["update-license", "-f", &ended]);
    wait_until("it has ended", PATIENCE, || c.admin(&["stat"]).contains("License: EXPIRED"));
    assert!(c.admin(&["stat-license"]).contains("nothing new can be stored"));
    assert!(c.admin(&["get-event"]).contains("The license is EXPIRED"));
    assert_eq!(fs::read(c.mnt("stored")).unwrap(), stored);
    let file = fs::File::options().read(true).write(true).open(c.mnt("stored")).unwrap();
    file.write_all_at(&pattern(8, 1), 4096).unwrap();
    file.sync_all().unwrap();
    let new = fs::File::create(c.mnt("new")).unwrap();
    let error = new.write_all_at(&stored, 0).and_then(|()| new.sync_all()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    drop(new);
    fs::remove_file(c.mnt("new")).unwrap();
    // A server that is lost is still replaced.
    c.kill("cs3");
    c.admin(&["rm-cs", "-f", "3"]);
    c.down();
    c.up();
    assert!(c.admin(&["stat-license"]).contains("EXPIRED"), "it survives a restart");
    assert_eq!(fs::read(c.mnt("stored")).unwrap()[..4096], stored[..4096]);

    // In its grace, and more than the capacity.
    std::thread::sleep(Duration::from_millis(1100));
    let (graced, _) =
        sign(&key, "graced", &["--number", "PS.1", "--expires", "2020-01-01", "--grace-days", "99999"]);
    c.admin(&["update-license", "-f", &graced]);
    wait_until("grace", PATIENCE, || c.admin(&["stat"]).contains("License: GRACED"));
    fs::write(c.mnt("new"), &stored).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let (small, _) = sign(&key, "small", &["--number", "PS.1", "--capacity", "1K"]);
    c.admin(&["update-license", "-f", &small]);
    wait_until("too much", PATIENCE, || c.admin(&["stat"]).contains("License: EXCEEDED"));

    // Renewed: all goes on.
    std::thread::sleep(Duration::from_millis(1100));
    let (renewed, _) = sign(&key, "renewed", &["--number", "PS.1", "--expires", "2099-12-31"]);
    c.admin(&["update-license", "-f", &renewed]);
    wait_until("it is well again", PATIENCE, || c.admin(&["stat"]).contains("License: ACTIVE (expiration"));
    fs::write(c.mnt("more"), &stored).unwrap();
    assert_eq!(fs::read(c.mnt("more")).unwrap(), stored);
}
