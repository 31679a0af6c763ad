//! packaging/first-start: hosts that make themselves what a file says, without a hand on them.

use crate::common::{Dir, Ended, Running, free_ports, programs, run_command, wait_until};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/first-start");

/// Where the script finds the programs.
fn path() -> String {
    format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default())
}

/// A host with settings of its own.
struct Host {
    dir: Dir,
}

impl Host {
    fn new(name: &str) -> Host {
        let dir = Dir::new(&format!("first_start_{name}"));
        fs::create_dir(dir.path("etc")).unwrap();
        Host { dir }
    }

    fn first_start(&self, conf: &str) -> Ended {
        fs::write(self.dir.path("etc/first-start.conf"), conf).unwrap();
        let own =
            [("PATH", path()), ("PSTORAGE_ETC", self.dir.path("etc")), ("FSTAB", self.dir.path("fstab"))];
        let own = own.map(|(name, value)| format!("{name}={value}"));
        run_command(Command::new("env").args(own).arg(SCRIPT))
    }

    fn is(&self, path: &str) -> bool {
        Path::new(&self.dir.path(path)).exists()
    }

    fn serve(&self, program: &str, dir: &str) -> Running {
        Running::start(program, &["-r", &self.dir.path(dir), "--etc", &self.dir.path("etc")])
    }
}

#[test]
fn hosts_make_themselves_what_a_file_says() {
    if Path::new("/run/systemd/system").exists() {
        return eprintln!("SKIPPED: systemd of this machine would be told to start the servers");
    }
    let (a, b) = (Host::new("a"), Host::new("b"));
    let address = format!("127.0.0.1:{}", free_ports());

    // What is wrong is said, and nothing is made.
    for (conf, says) in [
        ("ROLES=cs", "must say CLUSTER and ROLES"),
        ("CLUSTER=fs1\nROLES=\"cs lamp\"", "unknown role 'lamp'"),
        ("CLUSTER=fs1\nROLES=cs", "say PASSWORD_FILE or PASSWORD_URL"),
    ] {
        a.first_start(conf).refused(&[says]);
    }
    assert!(!a.is("etc/first-start.done") && !a.is("etc/clusters"));

    // The first host: a metadata server.
    let secret = |host: &Host, word: &str| fs::write(host.dir.path("secret"), word).unwrap();
    secret(&a, "swordfish-1\n");
    let conf = format!(
        "CLUSTER=fs1\nROLES=mds\nFIRST_MDS=yes\nMDS_DIR={}\nADDRESS={address}\nPASSWORD_FILE={}\nLOCATION=r.s.t\n",
        a.dir.path("mds"),
        a.dir.path("secret")
    );
    let told = a.first_start(&conf);
    assert!(told.ok().contains("this host is in cluster 'fs1' as mds"), "{}", told.text);
    assert!(a.is("etc/first-start.done") && !a.is("secret"), "the password stays nowhere");
    assert_eq!(fs::read_to_string(a.dir.path("etc/location")).unwrap(), "r.s.t\n");
    let _mds = a.serve("pstorage-mdsd", "mds");

    // The second: two disks and a mount; the wrong password first.
    for disk in ["disk1", "disk2"] {
        fs::create_dir(b.dir.path(disk)).unwrap();
    }
    let conf = format!(
        "CLUSTER=fs1\nROLES='cs'\nBOOTSTRAP={address}\nADDRESS=127.0.0.1\nCS_DIRS=\"{}\"\nCS_OPTIONS='--capacity 512M'\n\
         PASSWORD_FILE={}\n",
        b.dir.path("disk*"),
        b.dir.path("secret")
    );
    secret(&b, "catfish\n");
    let refused = b.first_start(&conf);
    assert!(refused.code != 0 && !b.is("etc/first-start.done") && !b.is("disk1/cs"), "{}", refused.text);
    secret(&b, "swordfish-1\n");
    b.first_start(&conf).ok();
    let _cs = ["disk1/cs", "disk2/cs"].map(|dir| b.serve("pstorage-csd", dir));
    let stat = || {
        let mut stat = Command::new(programs().join("pstorage"));
        run_command(stat.args(["-c", "fs1", "--json", "--etc", &b.dir.path("etc"), "stat"])).text
    };
    wait_until("two chunk servers", PATIENCE, || stat().matches("\"status\": \"active\"").count() == 2);

    // Again, now as a client too: what is there stays.
    let mount = b.dir.path("mnt");
    let conf = conf.replace("ROLES='cs'", "ROLES='cs client'") + &format!("MOUNT={mount}\n");
    b.first_start(&conf).ok();
    let unmount = || run_command(Command::new("umount").arg(&mount));
    let stored = fs::write(format!("{mount}/file"), "stored");
    let lines = fs::read_to_string(b.dir.path("fstab")).unwrap();
    b.first_start(&conf).ok();
    let same = fs::read_to_string(b.dir.path("fstab")).unwrap();
    unmount().ok();
    stored.unwrap();
    assert_eq!((lines.lines().count(), same), (1, lines));
}
