//! The Debian package: built by its one command from the programs of this test, looked at, installed into an empty directory, and a
//! cluster started from there; its services with the rights that their units give them, heard as systemd hears them.

mod common;

use common::{Dir, free_ports, programs, run_command, wait_until};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn packaging() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging")).canonicalize().expect("it is there")
}

/// Packing takes longer than other programs may.
fn said(command: &mut Command) -> String {
    let ended = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&ended.stderr));
    text
}

fn is_there(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().expect("sh runs");
    if !found.status.success() {
        eprintln!("SKIPPED what needs {program}: it is not on this machine");
    }
    found.status.success()
}

#[test]
fn the_package_is_whole_and_a_cluster_runs_from_where_it_is_installed() {
    if !is_there("dpkg-deb") {
        return;
    }
    let dir = Dir::new("package");
    let mut build = Command::new(packaging().join("deb.sh"));
    let deb = said(build.arg("-f").args(["-o", &dir.path("out"), "-p"]).arg(programs())).trim().to_string();

    // What it says of itself, and what is in it.
    let field = |name: &str| said(Command::new("dpkg-deb").args(["-f", &deb, name])).trim().to_string();
    assert_eq!(field("Package"), "pstorage");
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
    let listed = said(Command::new("dpkg-deb").args(["-c", &deb]));
    for (mode, path) in [
        ("drwxr-xr-x", ""),
        ("-rwxr-xr-x", "usr/bin/pstorage"),
        ("-rwxr-xr-x", "usr/bin/pstorage-mdsd"),
        ("-rwxr-xr-x", "usr/bin/pstorage-csd"),
        ("-rwxr-xr-x", "usr/bin/pstorage-mount"),
        ("-rwxr-xr-x", "usr/bin/pstorage-iscsid"),
        ("-rwxr-xr-x", "usr/bin/pcs-bench"),
        ("-rwxr-xr-x", "usr/lib/pstorage/restart-servers"),
        ("-rwxr-xr-x", "usr/lib/pstorage/first-start"),
        ("lrwxrwxrwx", "usr/sbin/mount.fuse.pstorage"),
        ("drwxr-x---", "etc/pstorage/"),
        ("-rw-r--r--", "usr/lib/systemd/system/pstorage-mds@.service"),
        ("-rw-r--r--", "usr/lib/systemd/system/pstorage-cs@.service"),
        ("-rw-r--r--", "usr/lib/systemd/system/pstorage-iscsi@.service"),
        ("-rw-r--r--", "usr/lib/sysusers.d/pstorage.conf"),
        ("-rw-r--r--", "usr/share/man/man1/pstorage.1.gz"),
        ("-rw-r--r--", "usr/share/man/man1/pstorage-doctor.1.gz"),
        ("-rw-r--r--", "usr/share/man/man1/pstorage-csd.1.gz"),
        ("-rw-r--r--", "usr/share/bash-completion/completions/pstorage"),
        ("-rw-r--r--", "usr/share/zsh/vendor-completions/_pstorage"),
        ("-rw-r--r--", "usr/share/fish/vendor_completions.d/pstorage.fish"),
        ("-rw-r--r--", "usr/share/doc/pstorage/copyright"),
        ("-rw-r--r--", "usr/share/doc/pstorage/admin-guide/README.md"),
    ] {
        let line = listed
            .lines()
            .find(|line| line.split_whitespace().nth(5).is_some_and(|p| p == format!("./{path}")));
        let line = line.unwrap_or_else(|| panic!("no {path} in\n{listed}"));
        assert!(line.starts_with(mode) && line.contains(" root/root "), "{line}");
    }

    // Installed as those who build images do, without running anything in the empty directory.
    let root = dir.path("root");
    for needed in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc"] {
        fs::create_dir_all(Path::new(&root).join(needed)).unwrap();
    }
    fs::write(Path::new(&root).join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |args: &[&str]| {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={root}")).args(["--force-script-chrootless", "--force-depends"]).args(args);
        said(&mut dpkg)
    };
    dpkg(&["-i", &deb]);
    assert!(dpkg(&["-s", "pstorage"]).contains("Status: install ok installed"));
    if is_there("systemd-sysusers") {
        let users = fs::read_to_string(Path::new(&root).join("etc/passwd")).unwrap();
        assert!(users.lines().any(|line| line.starts_with("pstorage:")), "{users}");
    }
    for page in ["pstorage.1.gz", "pstorage-csd.1.gz"] {
        let text = said(Command::new("gzip").arg("-dc").arg(format!("{root}/usr/share/man/man1/{page}")));
        let name = text.lines().skip_while(|line| !line.starts_with(".SH NAME")).nth(1).unwrap_or_default();
        assert!(
            text.contains(".TH ") && name.split("\\- ").nth(1).is_some_and(|what| !what.is_empty()),
            "{page}: {text}"
        );
    }

    // A cluster of the programs that were installed, and of no others.
    let program = format!("{root}/usr/bin/pstorage");
    let cluster = dir.path("cluster");
    let local = |verb: &str, more: &[&str]| {
        said(Command::new(&program).args(["local", verb, &cluster]).args(more).env_remove("PSTORAGE_ETC"))
    };
    local("up", &["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "512M"]);
    let down = scopeguard(|| drop(Command::new(&program).args(["local", "down", &cluster]).output()));
    let pid = fs::read_to_string(format!("{cluster}/run/cs1.pid")).unwrap();
    let exe = fs::read_link(format!("/proc/{}/exe", pid.trim())).unwrap();
    assert_eq!(exe, Path::new(&root).join("usr/bin/pstorage-csd"));
    fs::write(format!("{cluster}/mnt/file"), "stored").unwrap();
    assert_eq!(fs::read_to_string(format!("{cluster}/mnt/file")).unwrap(), "stored");
    drop(down);

    // Removed: programs are gone, keys and settings stay.
    fs::write(Path::new(&root).join("etc/pstorage/location"), "a.b.c\n").unwrap();
    dpkg(&["-r", "pstorage"]);
    dpkg(&["-P", "pstorage"]);
    assert!(!Path::new(&program).exists());
    assert!(Path::new(&root).join("etc/pstorage/location").exists());
}

#[test]
fn the_rpm_has_what_the_debian_package_has() {
    if !is_there("rpmbuild") {
        return;
    }
    let dir = Dir::new("package_rpm");
    let mut build = Command::new(packaging().join("rpm.sh"));
    let rpm = said(build.arg("-f").args(["-o", &dir.path("out"), "-p"]).arg(programs())).trim().to_string();
    let ask = |args: &[&str]| said(Command::new("rpm").arg("-qp").args(args).arg(&rpm));
    assert_eq!(ask(&["--qf", "%{NAME} %{VERSION}"]), format!("pstorage {}", env!("CARGO_PKG_VERSION")));
    assert!(ask(&["--requires"]).contains("libc.so.6(GLIBC_"));
    assert!(ask(&["--scripts"]).contains("/usr/lib/pstorage/restart-servers"));
    let listed = ask(&["-l"]);
    for path in [
        "/etc/pstorage",
        "/usr/bin/pstorage-csd",
        "/usr/lib/systemd/system/pstorage-mds@.service",
        "/usr/sbin/mount.fuse.pstorage",
        "/usr/share/man/man1/pstorage-doctor.1.gz",
        "/usr/share/zsh/site-functions/_pstorage",
    ] {
        assert!(listed.lines().any(|line| line == path), "no {path} in\n{listed}");
    }

    let root = dir.path("root");
    let mut install = Command::new("rpm");
    said(install.arg(format!("--root={root}")).args(["--nodeps", "--noscripts", "-i", &rpm]));
    let version = said(Command::new(format!("{root}/usr/bin/pstorage-csd")).arg("--version"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

/// Does something at the end, however it comes.
fn scopeguard<F: FnMut()>(f: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(f)
}

#[test]
fn units_are_right_as_far_as_systemd_can_tell() {
    if !is_there("systemd-analyze") {
        return;
    }
    let dir = Dir::new("units");
    for kind in ["mds", "cs"] {
        // Its program need not be installed here.
        let text = fs::read_to_string(packaging().join(format!("systemd/pstorage-{kind}@.service"))).unwrap();
        let name = dir.path(&format!("pstorage-{kind}@srv-disk1.service"));
        fs::write(&name, text.replace("/usr/bin/pstorage-", &format!("{}/pstorage-", programs().display())))
            .unwrap();
        let ended = run_command(Command::new("systemd-analyze").args(["verify", "--man=no", &name]));
        let about_us: Vec<&str> = ended.text.lines().filter(|line| line.contains("pstorage")).collect();
        assert!(about_us.is_empty(), "{about_us:#?}");
    }
}

/// A server as its unit starts it: another user, no rights but these two, and somebody who listens.
struct Service {
    child: Child,
    hears: UnixDatagram,
}

impl Service {
    fn start(program: &str, dir: &Dir, name: &str) -> Service {
        let socket = dir.path(&format!("{name}.notify"));
        let hears = UnixDatagram::bind(&socket).unwrap();
        hears.set_read_timeout(Some(PATIENCE)).unwrap();
        let rights = "-all,+dac_override,+ipc_lock";
        let child = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"])
            .args(["--bounding-set", rights, "--inh-caps", rights, "--ambient-caps", rights])
            .arg(programs().join(program))
            .args(["-r", &dir.path(name), "--etc", &dir.path("etc"), "--log", "-"])
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "2000000")
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.path(&format!("{name}.log"))).unwrap())
            .spawn()
            .expect("setpriv, of Debian's util-linux, runs");
        Service { child, hears }
    }

    fn says(&self, word: &str) {
        let (began, mut bytes) = (Instant::now(), [0; 256]);
        loop {
            let n = self.hears.recv(&mut bytes).unwrap_or_else(|e| panic!("'{word}' is not said: {e}"));
            if String::from_utf8_lossy(&bytes[..n]).lines().any(|line| line == word) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "'{word}' is not said");
        }
    }

    /// Ends as systemd ends it.
    fn stop(mut self) {
        common::send("-TERM", self.child.id());
        self.says("STOPPING=1");
        wait_until("its end", PATIENCE, || self.child.try_wait().unwrap().is_some());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn services_have_all_the_rights_they_need_and_tell_systemd_how_they_are() {
    if !is_there("setpriv") {
        return;
    }
    let (dir, port) = (Dir::new("services"), free_ports());
    // The directories above are not for everybody.
    fs::write(dir.path("password"), "secret\n").unwrap();
    let etc = dir.path("etc");
    let admin = |args: &[&str]| common::run("pstorage", &[&["-c", "packaged", "--etc", &etc], args].concat());
    let addr = format!("127.0.0.1:{port}");
    admin(&["make-mds", "-I", "-a", &addr, "-r", &dir.path("mds"), "--password-file", &dir.path("password")])
        .ok();
    let mds = Service::start("pstorage-mdsd", &dir, "mds");
    mds.says("READY=1");
    wait_until("a master", PATIENCE, || admin(&["stat"]).code == 0);
    let shape = ["--shards", "2", "--capacity", "512M", "--journal-size", "8M"];
    admin(&[&["make-cs", "-r", &dir.path("cs")], &shape[..]].concat()).ok();
    let cs = Service::start("pstorage-csd", &dir, "cs");
    cs.says("READY=1");
    wait_until("it is active", PATIENCE, || admin(&["--json", "stat"]).text.contains("\"active\""));
    for service in [&mds, &cs] {
        for _ in 0..3 {
            service.says("WATCHDOG=1");
        }
    }
    let log = fs::read_to_string(dir.path("cs.log")).unwrap();
    assert!(!log.contains("buffers_not_registered"), "it may not lock memory: {log}");
    cs.stop();
    mds.stop();
}
