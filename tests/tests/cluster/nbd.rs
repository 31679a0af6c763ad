//! `pstorage nbd` with qemu's own tools: a virtual machine's disk without a mount, while chunk servers die.

use crate::common::{Cluster, Ended, Running, pattern, run, run_command, wait_until};
use pstorage_tests::debian::Debian;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    c: Cluster,
    qemu: Debian,
}

impl Bench {
    /// Serves a file and waits until the socket is there.
    fn serve(&self, args: &[&str]) -> Running {
        let (etc, socket) = (self.c.dir.path("etc"), self.c.dir.path("sock"));
        let all = [&["-c", "local", "--etc", &etc, "nbd", "--socket", &socket], args].concat();
        let served = Running::start("pstorage", &all);
        wait_until("the socket", PATIENCE, || UnixStream::connect(&socket).is_ok());
        served
    }

    fn uri(&self, file: &str) -> String {
        format!("nbd+unix:///{file}?socket={}", self.c.dir.path("sock"))
    }

    fn qemu(&self, line: &str) -> Ended {
        let (program, rest) = line.split_once(' ').expect("a program and its arguments");
        let line = format!("{} {rest}", self.qemu.command(program));
        run_command(Command::new("timeout").args(["120", "sh", "-c", &line]))
    }

    /// Runs commands of qemu-io on the device.
    fn io(&self, commands: &[&str]) -> Ended {
        let quoted: Vec<String> = commands.iter().map(|c| format!("-c '{c}'")).collect();
        self.qemu(&format!("qemu-io -f raw -d unmap {} '{}'", quoted.join(" "), self.uri("vm.raw")))
    }

    /// Where qemu finds data: offsets and lengths in bytes.
    fn data(&self, file: &str) -> Vec<(u64, u64)> {
        let ended = self.qemu(&format!("qemu-img map --output=json '{}'", self.uri(file)));
        let map: serde_json::Value = serde_json::from_str(ended.ok()).expect("JSON");
        let extents = map.as_array().expect("a list").iter().filter(|extent| extent["data"] == true);
        let number = |extent: &serde_json::Value, name: &str| extent[name].as_u64().expect("bytes");
        extents.map(|extent| (number(extent, "start"), number(extent, "length"))).collect()
    }

    fn terminate(&self, mut served: Running) {
        served.signal("-TERM");
        let mut code = None;
        wait_until("the end", PATIENCE, || {
            code = served.0.try_wait().expect("it can be waited for");
            code.is_some()
        });
        assert_eq!(code.and_then(|c| c.code()), Some(0));
        assert!(!Path::new(&self.c.dir.path("sock")).exists());
    }
}

#[test]
fn a_machines_disk_is_served_to_qemu() {
    let qemu = match Debian::with(&["qemu-utils"]) {
        Ok(qemu) => qemu,
        Err(why) => return println!("SKIPPED: qemu-utils can't be fetched: {why}"),
    };
    let b = Bench { c: Cluster::new("nbd"), qemu };
    b.c.up_with(&["--mds", "1", "--cs", "3", "--replicas", "3:2", "--capacity", "1G"]);
    b.c.wait_healthy();
    let (etc, socket) = (b.c.dir.path("etc"), b.c.dir.path("sock"));
    let refused = |args: &[&str], parts: &[&str]| {
        run("pstorage", &[&["-c", "local", "--etc", &etc, "nbd"], args].concat()).refused(parts);
    };
    refused(&["/none", "--socket", &socket], &["/none", "no such"]);
    assert!(!Path::new(&socket).exists(), "it is not left behind");
    refused(&["/vm.raw"], &["--socket"]);
    refused(&["/vm.raw", "--listen", "10.0.0.1:10809"], &["loopback", "no passwords"]);

    let served = b.serve(&["/vm.raw", "--create", "128M"]);
    refused(&["/vm.raw", "--socket", &socket], &["somebody listens there already"]);
    let other = b.c.dir.path("other");
    refused(&["/vm.raw", "--socket", &other], &["/vm.raw", "open for writing"]);
    assert!(b.qemu(&format!("qemu-img info '{}'", b.uri("vm.raw"))).ok().contains("128 MiB"));
    assert!(b.qemu(&format!("qemu-img info '{}'", b.uri("other"))).code != 0, "another name");

    // What was never written is zeros; what is written is read; blocks of any size, at any place.
    b.io(&["read -P 0 0 1M", "write -P 7 1M 2M", "write -P 9 1048577 1023", "flush"]).ok();
    b.io(&["read -P 7 1M 1", "read -P 9 1048577 1023", "read -P 7 1049600 2096128", "read -P 0 3M 1M"]).ok();
    b.io(&["write -f -P 3 100M 64k", "read -P 3 100M 64k"]).ok();
    assert!(b.io(&["write -P 1 128M 4k"]).text.contains("rror"), "behind the end");
    assert!(b.io(&["read -P 8 1M 1M"]).text.contains("verification failed"), "the check can fail");

    // A chunk server dies while it is written, and comes back.
    b.c.kill("cs1");
    b.io(&["write -P 5 8M 16M", "write -P 6 16M 1M", "flush", "read -P 5 8M 8M", "read -P 6 16M 1M"]).ok();
    b.c.up();
    b.io(&["read -P 5 17M 7M"]).ok();

    // An image of another format lives in it too.
    let raw = b.c.dir.path("image");
    fs::write(&raw, [pattern(3, 1024), vec![0; 8 << 20], pattern(4, 512)].concat()).expect("written");
    b.terminate(served);
    let served = b.serve(&["/vm.qcow2", "--create", "64M"]);
    let uri = b.uri("vm.qcow2");
    b.qemu(&format!("qemu-img create -q -f qcow2 '{uri}' 48M")).ok();
    b.qemu(&format!("qemu-img convert -n -f raw -O qcow2 '{raw}' '{uri}'")).ok();
    b.qemu(&format!("qemu-img check -q -f qcow2 '{uri}'")).ok();
    b.qemu(&format!("qemu-img compare -q -f raw -F qcow2 '{raw}' '{uri}'")).ok();
    b.terminate(served);

    // Discarded space is given back; many may read.
    let served = b.serve(&["/vm.raw"]);
    b.io(&["discard 8M 4M", "write -z -u 12M 1M", "read -P 0 8M 5M", "read -P 5 13M 3M"]).ok();
    b.terminate(served);
    let served = b.serve(&["/vm.raw", "--read-only"]);
    assert!(
        b.qemu(&format!("qemu-io -r -f raw -c 'read -P 7 2M 1M' '{}'", b.uri("vm.raw")))
            .ok()
            .contains("read")
    );
    assert!(b.io(&["write -P 1 0 4k"]).code != 0, "it is read only");
    assert_eq!(b.data("vm.raw"), [(1 << 20, 2 << 20), (13 << 20, 11 << 20), (100 << 20, 64 << 10)]);
    assert_eq!(fs::read(b.c.mnt("vm.raw")).expect("readers share").len(), 128 << 20);
    b.terminate(served);
    let bytes = fs::read(b.c.mnt("vm.raw")).expect("it is free again");
    assert_eq!(bytes.len(), 128 << 20);
    assert!(bytes[8 << 20..13 << 20].iter().all(|b| *b == 0) && bytes[(100 << 20) + 5] == 3);
    b.c.check();
}
