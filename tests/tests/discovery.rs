//! Clusters found by a real name server and a real avahi-daemon, on hosts of their own: nothing of it reaches this machine's
//! network. Left out, with a message, where there is no root or the packages can't be fetched.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pstorage_tests::debian::Debian;
use pstorage_tests::processes::{Dir, Ended, log_tail, wait_until};
use pstorage_tests::real::{Host, Line, Switch};
use std::fs;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Far longer than it takes on an idle machine.
const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "the cluster's password\n";

/// The hosts of a test; tests go one after the other.
struct Network {
    hosts: Vec<Host>,
    switch: Switch,
    dir: Dir,
    debian: Debian,
    _alone: MutexGuard<'static, ()>,
}

impl Network {
    /// `None` where it can't be: that is said, past the test's captured output.
    fn new(name: &str, hosts: usize, packages: &[&str]) -> Option<Network> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let fetched = if nix::unistd::geteuid().is_root() {
            Debian::with(packages)
        } else {
            Err("needs root, for network namespaces".into())
        };
        let debian = match fetched {
            Ok(debian) => debian,
            Err(why) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: discovery, {name}: {why}");
                return None;
            }
        };
        let dir = Dir::new(&format!("discovery-{name}"));
        let mut switch = Switch::new(1);
        let hosts = (1..=hosts).map(|n| Host::new(dir.0.join(format!("host{n}")), &mut switch)).collect();
        Some(Network { hosts, switch, dir, debian, _alone: alone })
    }

    /// Makes the first metadata server of cluster pcs1 on a host, without starting it.
    fn make_mds(&self, host: &Host) {
        let password = self.dir.path("password");
        fs::write(&password, PASSWORD).unwrap();
        let (ip, dir) = (host.ip.to_string(), host.path("mds"));
        let args = ["make-mds", "-I", "-a", &ip, "-r", &dir, "--password-file", &password];
        host.run("pstorage", &[&["-c", "pcs1", "--etc", &host.etc()][..], &args].concat()).ok();
    }

    fn start_mds(&self, host: &Host, more: &[&str]) -> i32 {
        let dir = host.path("mds");
        let pid = host.start("pstorage-mdsd", &[&["-r", &dir, "--etc", &host.etc()], more].concat());
        wait_until("the metadata server to be master", SOON, || {
            host.run("pstorage", &["-c", "pcs1", "--etc", &host.etc(), "stat"]).code == 0
        });
        pid
    }
}

/// Runs a command of ours on a host, with another /etc/resolv.conf.
fn with_resolver(host: &Host, resolv_conf: &str, program: &str, args: &str) -> Ended {
    let file = host.path("resolv.conf");
    fs::write(&file, resolv_conf).unwrap();
    let program = pstorage_tests::processes::programs().join(program);
    let bind = format!("mount --bind {file} /etc/resolv.conf");
    host.run_line(
        &format!("{bind} && PSTORAGE_ETC={} {} {args}", host.etc(), program.display()).in_own_mounts(),
    )
}

trait InOwnMounts {
    fn in_own_mounts(&self) -> String;
}

impl InOwnMounts for String {
    /// A line whose mounts nobody else sees.
    fn in_own_mounts(&self) -> String {
        format!("unshare -m sh -c '{self}'")
    }
}

fn json(ended: &Ended) -> serde_json::Value {
    serde_json::from_str(ended.ok()).unwrap_or_else(|e| panic!("{e} in {}", ended.text))
}

/// Whether `discover` reports a method so.
fn says(text: &str, method: &str, verdict: &str) -> bool {
    text.lines().any(|line| {
        // DD-MM-YY hh:mm:ss.mmm Discovering using METHOD: VERDICT
        let (time, said) = line.split_at_checked(21).unwrap_or_default();
        let digits = time.chars().filter(char::is_ascii_digit).count();
        digits == 15 && said.trim_start() == format!("Discovering using {method}: {verdict}")
    })
}

fn names(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.contains(' ')).collect()
}

const ZONE_BEGIN: &str = "$TTL 1H\n@ IN SOA ns rname.invalid. (1995032001 5H 10M 1D 3H)\n NS ns\n";

impl Network {
    /// A name server with the zones of the guide (names and addresses), one that is not transferred, and one whose answer
    /// is longer than a datagram.
    fn start_named(&self, host: &Host, mds: &Host, dead: &Host) -> i32 {
        let ns = format!("ns A {}\n", host.ip);
        let txt = "pstorage_clusters 300 IN TXT \"cluster1,cluster2\" \"cluster3,cluster4\"\n\
                   pstorage_clusters 300 IN TXT \"cluster5\"\npstorage_clusters 300 IN TXT \"cluster6\" \"cluster7\"\n";
        // The first by priority does not answer.
        let srv = format!(
            "_pstorage._tcp.pcs1 SRV 20 1 2510 s1\n_pstorage._tcp.pcs1 SRV 10 1 2510 s0\ns0 A {}\ns1 A {}\n\
             _pstorage._tcp.lost SRV 0 1 2510 nowhere\n",
            dead.ip, mds.ip
        );
        let many: String =
            (1..=40).map(|n| format!("pstorage_clusters IN TXT \"a-long-name-of-cluster-{n}\"\n")).collect();
        let zones = [
            ("pcs.test", "any", format!("{ZONE_BEGIN}{ns}{txt}{srv}")),
            ("srv.test", "any", format!("{ZONE_BEGIN}{ns}{srv}")),
            ("closed.test", "none", format!("{ZONE_BEGIN}{ns}{srv}")),
            ("long.test", "none", format!("{ZONE_BEGIN}{ns}{many}")),
        ];
        let mut settings = format!(
            "options {{ directory \"{}\"; pid-file none; session-keyfile none; listen-on {{ any; }}; \
             listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; }};\ncontrols {{}};\n",
            host.dir.display()
        );
        for (zone, transfer, text) in zones {
            fs::write(host.path(zone), text).unwrap();
            settings += &format!(
                "zone \"{zone}\" {{ type master; file \"{zone}\"; allow-transfer {{ {transfer}; }}; }};\n"
            );
        }
        let file = host.path("named.conf");
        fs::write(&file, settings).unwrap();
        let pid =
            host.start_line("named", &format!("exec {} -g -u root -c {file}", self.debian.command("named")));
        wait_until("named to serve", SOON, || {
            let log = fs::read_to_string(host.path("named.out")).unwrap_or_default();
            assert!(!log.contains("exiting (due"), "named does not start:\n{log}");
            log.lines().any(|l| l.ends_with(" running"))
        });
        pid
    }
}

#[test]
fn clusters_and_their_servers_are_found_by_dns() {
    let Some(net) = Network::new("dns", 4, &["bind9"]) else { return };
    let [ns, mds, dead, admin] = &net.hosts[..] else { panic!("four hosts") };
    net.make_mds(mds);
    net.start_mds(mds, &["--no-mdns"]);
    let named = net.start_named(ns, mds, dead);
    let resolver = |domain: &str| format!("nameserver {}\nsearch {domain}\n", ns.ip);
    let discover = |domain: &str, args: &str| {
        with_resolver(admin, &resolver(domain), "pstorage", &format!("discover {args}"))
    };

    let all = discover("pcs.test", "");
    assert!(
        says(all.ok(), "DNS TXT records", "OK") && says(&all.text, "DNS zone transfer", "OK"),
        "{}",
        all.text
    );
    assert!(says(&all.text, "Avahi", "FAIL") && says(&all.text, "bs.list", "FAIL"), "{}", all.text);
    let clusters: Vec<String> =
        (1..=7).map(|n| format!("cluster{n}")).chain(["lost".into(), "pcs1".into()]).collect();
    assert_eq!(names(&all.text), clusters);

    // Names by zone transfer alone; by neither; in an answer that takes TCP.
    let by_transfer = json(&discover("srv.test", "--json"));
    assert_eq!(by_transfer["clusters"], serde_json::json!(["lost", "pcs1"]), "{by_transfer:#}");
    assert_eq!(by_transfer["methods"][0]["method"], "dns-txt");
    assert_eq!(by_transfer["methods"][0]["ok"], false);
    assert_eq!(by_transfer["methods"][1]["ok"], true);
    discover("closed.test", "").refused(&[
        "DNS TXT records: FAIL",
        "no TXT record",
        "refuses",
        "discovery.md",
    ]);
    assert_eq!(names(discover("long.test", "").ok()).len(), 40);

    // Addresses: by priority; wrong ones are explained.
    let servers = json(&discover("pcs.test", "--json pcs1"));
    let addrs = [format!("{}:2510", dead.ip), format!("{}:2510", mds.ip)];
    assert_eq!(servers["addrs"], serde_json::json!(addrs), "{servers:#}");
    discover("pcs.test", "lost").refused(&["nowhere.pcs.test"]);
    let unknown = with_resolver(admin, &resolver("pcs.test"), "pstorage", "-c pcs9 stat");
    unknown.refused(&[
        "'pcs9'",
        "no SRV record _pstorage._tcp.pcs9",
        "bs.list",
        "Avahi",
        "pstorage discover",
    ]);

    // Everything works with no bs.list: authentication, commands, a chunk server and a mount.
    let use_it = |program: &str, args: &str| with_resolver(admin, &resolver("pcs.test"), program, args);
    use_it("pstorage", &format!("-c pcs1 auth-node --password-file {}", net.dir.path("password"))).ok();
    assert!(!admin.dir.join("etc/clusters/pcs1/bs.list").exists());
    assert_eq!(json(&use_it("pstorage", "-c pcs1 --json stat"))["mds"][0]["addr"], addrs[1]);
    let cs = admin.path("cs");
    let shape = "--shards 1 -s 32M --capacity 512M";
    use_it("pstorage", &format!("-c pcs1 make-cs -a {} -r {cs} {shape}", admin.ip)).ok();
    let csd = pstorage_tests::processes::programs().join("pstorage-csd");
    let resolv = admin.path("resolv.conf");
    let line = format!(
        "mount --bind {resolv} /etc/resolv.conf && exec {} -r {cs} --etc {}",
        csd.display(),
        admin.etc()
    );
    admin.start_line("csd", &format!("exec {}", line.in_own_mounts()));
    wait_until("the chunk server to be active", SOON, || {
        json(&use_it("pstorage", "-c pcs1 --json stat"))["cs"][0]["status"] == "active"
    });
    let mnt = admin.path("mnt");
    fs::create_dir(&mnt).unwrap();
    use_it(
        "pstorage-mount",
        &format!("-c pcs1 {mnt} && mkdir {mnt}/made && ls {mnt} | grep made && umount {mnt}"),
    )
    .ok();

    // A list that has grown old does no harm.
    let list = admin.dir.join("etc/clusters/pcs1/bs.list");
    fs::write(&list, format!("{}:2510\n", dead.ip)).unwrap();
    use_it("pstorage", "-c pcs1 stat").ok();
    fs::remove_file(&list).unwrap();

    // Name servers that are gone, and that don't answer.
    let gone = format!("{}no name server there", ns.ip.to_string() + ": ");
    kill(Pid::from_raw(named), Signal::SIGKILL).unwrap();
    wait_until("named to be gone", SOON, || {
        let ended = use_it("pstorage", "-c pcs1 stat");
        ended.code != 0 && ended.text.contains(&gone)
    });
    net.switch.set(ns.port, admin.port, Line { cut: true, ..Line::default() });
    let silent = discover("pcs.test", "--json pcs1");
    let report: serde_json::Value =
        serde_json::from_str(silent.text.split("pstorage: ").next().unwrap()).unwrap();
    assert_eq!(report["methods"][1]["ok"], false);
    assert!(report["methods"][1]["why"].as_str().unwrap().contains("no answer in time"), "{report:#}");
    assert!(report["methods"][1]["took_ms"].as_u64().unwrap() < 20_000, "{report:#}");
}

impl Network {
    /// A system bus and an avahi-daemon on a host, whose own names and sockets nobody else sees.
    fn start_avahi(&self, host: &Host, name: &str) {
        let dir = host.dir.display();
        let bus = "<busconfig><type>system</type><listen>unix:path=DIR/bus</listen><auth>EXTERNAL</auth>\
                   <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
                   <allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>";
        fs::write(host.path("bus.conf"), bus.replace("DIR", &dir.to_string())).unwrap();
        fs::write(host.path("passwd"), "root:x:0:0::/:/bin/sh\navahi:x:998:998::/:/bin/false\n").unwrap();
        fs::write(host.path("group"), "root:x:0:\navahi:x:998:\n").unwrap();
        let settings = format!(
            "[server]\nhost-name={name}\nuse-ipv6=no\nallow-interfaces=eth0\n[publish]\npublish-hinfo=no\n"
        );
        fs::write(host.path("avahi.conf"), settings).unwrap();
        let daemon = self.debian.command("dbus-daemon");
        host.start_line("bus", &format!("exec {daemon} --config-file={dir}/bus.conf --nofork"));
        wait_until("the bus to be there", SOON, || host.dir.join("bus").exists());
        let line = format!(
            "mount -t tmpfs none /run && mount --bind {dir}/passwd /etc/passwd && mount --bind {dir}/group /etc/group && \
             DBUS_SYSTEM_BUS_ADDRESS=unix:path={dir}/bus exec {} -f {dir}/avahi.conf --no-drop-root --no-chroot --debug",
            self.debian.command("avahi-daemon")
        );
        host.start_line("avahi", &format!("exec {}", line.in_own_mounts()));
        let log = host.path("avahi.out");
        wait_until("avahi-daemon to be ready", SOON, || {
            fs::read_to_string(&log).unwrap_or_default().contains("Server startup complete")
        });
    }

    /// A program that speaks with a host's avahi-daemon.
    fn avahi(&self, host: &Host, program: &str) -> String {
        format!(
            "DBUS_SYSTEM_BUS_ADDRESS=unix:path={}/bus {}",
            host.dir.display(),
            self.debian.command(program)
        )
    }

    /// What the avahi-daemon of a host knows of our service, resolved.
    fn browse(&self, host: &Host) -> String {
        host.run_line(&format!("{} -ptr _pstorage._tcp", self.avahi(host, "avahi-browse"))).ok().to_string()
    }
}

impl Network {
    fn wait_browse(&self, host: &Host, good: &dyn Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            let text = self.browse(host);
            if good(&text) {
                return;
            }
            let log = log_tail(&host.dir.join("avahi.out"), 30);
            assert!(began.elapsed() < SOON, "avahi on {} says:\n{text}{log}", host.ip);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn metadata_servers_are_found_by_multicast_dns_and_avahi_understands_it() {
    let packages = ["avahi-daemon", "avahi-utils", "dbus-daemon"];
    let Some(net) = Network::new("avahi", 3, &packages) else { return };
    let [mds, admin, other] = &net.hosts[..] else { panic!("three hosts") };
    // One avahi-daemon beside the metadata server, one elsewhere.
    net.start_avahi(mds, "mds-host");
    net.start_avahi(other, "other-host");
    net.make_mds(mds);
    let running = net.start_mds(mds, &[]);
    let discover =
        |args: &str| with_resolver(admin, "# no name server\n", "pstorage", &format!("discover {args}"));

    wait_until("the metadata server to be found", SOON, || {
        let ended = discover("");
        ended.code == 0 && says(&ended.text, "Avahi", "OK") && names(&ended.text) == ["pcs1"]
    });
    let addr = format!("{}:2510", mds.ip);
    assert_eq!(json(&discover("--json pcs1"))["addrs"], serde_json::json!([addr]));
    let password = net.dir.path("password");
    with_resolver(admin, "", "pstorage", &format!("-c pcs1 auth-node --password-file {password}")).ok();
    assert_eq!(json(&with_resolver(admin, "", "pstorage", "-c pcs1 --json stat"))["mds"][0]["addr"], addr);

    // Avahi sees what we publish, and we see what Avahi publishes.
    let line = format!(";{};2510;", mds.ip);
    for host in [mds, other] {
        net.wait_browse(host, &|text| {
            text.lines()
                .any(|l| l.contains(&line) && l.contains("\"cluster=pcs1\"") && l.contains("\"mds=1\""))
        });
    }
    let publish =
        format!("{} -s by-hand _pstorage._tcp 2610 cluster=pcs2", net.avahi(other, "avahi-publish"));
    let by_hand = other.start_line("publish", &format!("exec env {publish}"));
    wait_until("what avahi publishes to be found", SOON, || {
        let ended = discover("");
        ended.code == 0 && names(&ended.text) == ["pcs1", "pcs2"]
    });
    assert_eq!(json(&discover("--json pcs2"))["addrs"], serde_json::json!([format!("{}:2610", other.ip)]));
    kill(Pid::from_raw(by_hand), Signal::SIGTERM).unwrap();

    // One that ends says so; one that is told not to publish does not.
    kill(Pid::from_raw(running), Signal::SIGTERM).unwrap();
    net.wait_browse(other, &|text| !text.contains("2510"));
    net.start_mds(mds, &["--no-mdns"]);
    discover("").refused(&["Avahi: FAIL", "nobody answered"]);
    for host in [mds, other] {
        let log = fs::read_to_string(host.path("avahi.out")).unwrap();
        assert!(!log.contains("onflict"), "avahi had to give up its name:\n{log}");
    }
}
