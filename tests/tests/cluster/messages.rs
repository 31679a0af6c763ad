//! What administrators are told most often when something can't be done: the command, its exit code (1: it could not be done, 2:
//! it was asked wrongly) and what it must say. `errors.rs` has the mistakes that need more than a command.

use crate::common::{Cluster, run};
use std::fs;

/// A command line, its exit code, and what it must say. `{dir}` is the cluster's directory, `ADMIN` stands for
/// `pstorage -c local --etc {dir}/etc`, `OPTIONS` for the options alone.
type Row = (&'static str, i32, &'static [&'static str]);

const ROWS: &[Row] = &[
    // Which cluster.
    ("pstorage stat", 2, &["name the cluster", "PSTORAGE_NAME"]),
    ("pstorage -c a.b stat", 2, &["contains '.'", "allowed are"]),
    ("pstorage-mount -c a.b {dir}/empty", 2, &["contains '.'"]),
    ("pstorage -c local --etc {dir}/none stat", 1, &["don't know any metadata server", "bs.list", "--etc"]),
    // Servers.
    ("ADMIN rm-cs MDS#1", 2, &["expected a number such as 3 or CS#3", "pstorage stat"]),
    ("ADMIN rm-cs -1", 2, &["expected a number such as 3 or CS#3"]),
    ("ADMIN rm-cs CS#99", 1, &["there is no CS#99", "pstorage stat", "Nothing was changed"]),
    ("ADMIN rm-cs --dry-run 99", 1, &["there is no CS#99", "pstorage stat"]),
    ("ADMIN rm-cs --cancel 1", 1, &["nothing to cancel"]),
    ("ADMIN rm-mds x", 2, &["expected a number such as 3 or MDS#3"]),
    ("ADMIN rm-mds 9", 1, &["there is no MDS#9", "pstorage stat"]),
    ("ADMIN rm-mds --dry-run 9", 1, &["there is no MDS#9", "pstorage stat"]),
    ("ADMIN rm-mds --dry-run 1", 1, &["the last metadata server", "Add another one before"]),
    ("ADMIN add-mds -a host7 -r {dir}/m", 2, &["not IP or IP:PORT"]),
    ("ADMIN add-mds -a 127.0.0.1:7520 -r {dir}/m -b host7", 2, &["not IP or IP:PORT"]),
    ("ADMIN add-mds -a 127.0.0.1:7520 -r /proc/m", 1, &["/proc/m: No such file or directory"]),
    ("ADMIN add-mds -a 127.0.0.1:7520 -r {dir}/file", 1, &["{dir}/file: Not a directory"]),
    (
        "ADMIN make-cs -r {dir}/file",
        1,
        &["{dir}/file: File exists: something else of this name is in the way"],
    ),
    ("ADMIN deauth-node x", 2, &["as list-nodes shows it"]),
    (
        "pstorage-csd -r {dir}/torn --etc {dir}/etc",
        1,
        &["control.json is damaged", "nothing was changed", "rm-cs"],
    ),
    ("pstorage-csd -r {dir}/no-shards --etc {dir}/etc", 1, &["control.json is damaged (no shards)"]),
    ("pstorage configure-cs -r {dir}/torn", 1, &["control.json is damaged", "nothing was changed"]),
    (
        "pstorage-mdsd -r {dir}/torn-mds --etc {dir}/etc",
        1,
        &["control.json is damaged", "nothing was changed", "rm-mds"],
    ),
    // Files and attributes.
    ("ADMIN get-attr /none", 1, &["/none: no such file or directory"]),
    ("ADMIN get-attr /f/x", 1, &["/f is not a directory"]),
    ("ADMIN get-attr {dir}/mnt/f", 1, &["inside the cluster, without the directory of a mount"]),
    (
        "ADMIN set-attr /f replicas=1 colour=red",
        1,
        &["/f: colour=red: attributes are", "Nothing was changed"],
    ),
    ("ADMIN set-attr /f tier=1 replicas", 1, &["not NAME=VALUE, such as", "Nothing was changed"]),
    (
        "ADMIN set-attr -n /f tier=1",
        0,
        &["/f: replicas=1:1\n", "/f: tier=0 -> tier=1", "nothing was changed"],
    ),
    ("ADMIN get-config bogus", 1, &["no setting 'bogus'", "get-config"]),
    (
        "ADMIN set-config cs.scrub.period=24 bogus=1",
        1,
        &["no setting 'bogus'", "Set before it: cs.scrub.period=24"],
    ),
    ("ADMIN revoke /", 1, &["/ is a directory: -R"]),
    ("ADMIN revoke -R /", 0, &["The leases of / are revoked"]),
    ("ADMIN clone /f /f", 1, &["/f from /f: file exists"]),
    ("ADMIN trace /f --offset 1G", 1, &["/f: the file ends before byte 1073741824"]),
    ("ADMIN explain MDS#1", 1, &["expected a file", "CS#3"]),
    // Passwords, keys, licences.
    ("ADMIN auth-node", 1, &["no password on standard input", "--password-file"]),
    ("ADMIN passwd --password-file /dev/null", 1, &["/dev/null: its first line is empty"]),
    ("ADMIN passwd --password-file {dir}/none", 1, &["{dir}/none: No such file or directory"]),
    ("ADMIN rotate-key --finish", 1, &["is not being changed"]),
    ("ADMIN load-license -f {dir}/file", 1, &["{dir}/file: this is no valid licence"]),
    ("ADMIN load-license -f {dir}/binary", 1, &["{dir}/binary: this is not a text file"]),
    ("ADMIN load-license -f {dir}", 1, &["{dir}: Is a directory: name a file"]),
    // Mounts.
    ("pstorage-mount OPTIONS {dir}/mnt", 1, &["pstorage://local is mounted on", "umount"]),
    ("pstorage-mount OPTIONS {dir}/none", 1, &["does not exist", "mkdir -p"]),
    ("pstorage-mount OPTIONS {dir}/file", 1, &["is not a directory"]),
    ("pstorage-mount OPTIONS {dir}/empty -o remount,ro", 1, &["is no mount", "nothing was changed"]),
    ("pstorage-mount OPTIONS {dir}/empty -C {dir}/cache -R 99999G", 1, &["too few", "ask for less with -R"]),
    // Others.
    ("pstorage local up {dir}/file", 1, &["{dir}/file: File exists"]),
    ("ADMIN report -o {dir}/none/r", 1, &["No such file or directory"]),
    ("pstorage-iscsi OPTIONS lun-del -t none -l 0", 1, &["there is no target", "pstorage-iscsi list"]),
    ("pstorage-license sign --key {dir}/file --number 1 --owner o", 1, &["64 hexadecimal digits"]),
];

fn told(c: &Cluster, &(line, code, parts): &Row) {
    let dir = c.dir.path("");
    let options = "-c local --etc {dir}/etc";
    let line = line.replace("ADMIN", &format!("pstorage {options}")).replace("OPTIONS", options);
    let line = line.replace("{dir}", dir.trim_end_matches('/'));
    let words: Vec<&str> = line.split(' ').collect();
    let ended = run(words[0], &words[1..]);
    assert_eq!(ended.code, code, "{line}: {}", ended.text);
    assert!(!ended.text.contains("os error") && !ended.text.contains("panicked"), "{line}: {}", ended.text);
    for part in parts {
        let part = part.replace("{dir}", dir.trim_end_matches('/'));
        assert!(ended.text.contains(&part), "{line}: '{part}' is not in:\n{}", ended.text);
    }
}

#[test]
fn every_mistake_is_told_with_its_object_and_the_next_step() {
    let c = Cluster::new("messages");
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--replicas", "1", "--capacity", "1G"]);
    fs::write(c.mnt("f"), "x").unwrap();
    fs::write(c.dir.path("file"), "no licence, no key").unwrap();
    fs::write(c.dir.path("binary"), [0xff, 0xfe, 0]).unwrap();
    fs::create_dir(c.dir.path("empty")).unwrap();
    let card = |of: &str| fs::read_to_string(c.dir.path(&format!("{of}/control.json"))).unwrap();
    let (cs, mds) = (card("cs1"), card("mds1"));
    let no_shards = cs.replace("\"shards\": 1", "\"shards\": 0");
    for (name, card) in
        [("torn", &cs[..cs.len() / 2]), ("no-shards", &no_shards), ("torn-mds", &mds[..mds.len() / 2])]
    {
        fs::create_dir(c.dir.path(name)).unwrap();
        fs::write(c.dir.path(&format!("{name}/control.json")), card).unwrap();
    }
    ROWS.iter().for_each(|row| told(&c, row));
    // Nothing of all this has left anything behind.
    let stat = c.json(&["stat"]);
    assert_eq!(
        (stat["mds"].as_array().unwrap().len(), stat["cs"].as_array().unwrap().len()),
        (1, 1),
        "{stat:#}"
    );
    assert!(c.admin(&["get-attr", "/f"]).contains("replicas=1:1\nfailure-domain=disk\ntier=0"));
    assert!(!fs::exists(c.dir.path("cache")).unwrap());
}

#[test]
fn what_takes_something_away_can_be_looked_at_before() {
    let c = Cluster::new("dry-runs");
    c.up_with(&["--mds", "1", "--cs", "2", "--shards", "1", "--replicas", "1", "--capacity", "1G"]);
    told(&c, &("pstorage-iscsi OPTIONS create -n vm1 -s 10M -a 127.0.0.1", 0, &[":vm1"]));
    told(
        &c,
        &(
            "pstorage-iscsi OPTIONS lun-del -t vm1 -l 0 --dry-run",
            0,
            &["Would delete LUN 0 (10MB)", "Nothing"],
        ),
    );
    told(
        &c,
        &("pstorage-iscsi OPTIONS delete -t vm1 -n", 0, &["Would delete target", "with 1 LUNs", "Nothing"]),
    );
    told(&c, &("pstorage-iscsi OPTIONS list -t vm1", 0, &[":vm1"]));
    // Scripts are not asked.
    told(&c, &("pstorage-iscsi OPTIONS delete -t vm1", 0, &[]));
    told(&c, &("ADMIN rm-cs --dry-run 2", 0, &["CS#2 would be removed", "Nothing was changed"]));
    told(&c, &("ADMIN list-services -C", 0, &["active"]));
    told(&c, &("ADMIN rm-cs --wait 2", 0, &["CS#2 has been removed"]));
    let etc = c.dir.path("etc");
    let doctor = run("pstorage", &["--etc", &etc, "doctor"]);
    doctor.refused(&[
        "no longer a member of cluster 'local'",
        &format!("remove the line with it from {etc}/services"),
    ]);
}
