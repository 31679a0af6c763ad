//! Errors as a user meets them, with the real programs: each must say what happened, to what, and what to do next, end
//! with a failure, and lose nothing.

use crate::common::{
    self, Cluster, Dir, Ended, Running, free_ports, pattern, read, run, run_command, wait_until, write_synced,
};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A cluster of one metadata server made by hand, without a mount.
struct Bare {
    dir: Dir,
    port: u16,
    mds: Option<Running>,
}

impl Bare {
    fn new(name: &str) -> Bare {
        let (dir, port) = (Dir::new(name), free_ports());
        fs::write(dir.path("password"), "secret\n").unwrap();
        let bare = Bare { dir, port, mds: None };
        let (addr, mds, password) =
            (format!("127.0.0.1:{port}"), bare.dir.path("mds"), bare.dir.path("password"));
        bare.admin(&["make-mds", "-I", "-a", &addr, "-r", &mds, "--password-file", &password]).ok();
        bare
    }

    fn start(mut self) -> Bare {
        let (mds, etc) = (self.dir.path("mds"), self.dir.path("etc"));
        self.mds = Some(Running::start("pstorage-mdsd", &["-r", &mds, "--etc", &etc]));
        wait_until("a master", Duration::from_secs(20), || self.admin(&["stat"]).code == 0);
        self
    }

    fn admin(&self, args: &[&str]) -> Ended {
        let etc = self.dir.path("etc");
        run("pstorage", &[&["-c", "bare", "--etc", &etc], args].concat())
    }

    fn daemon(&self, program: &str, dir: &str) -> Ended {
        run(program, &["-r", &self.dir.path(dir), "--etc", &self.dir.path("etc")])
    }

    /// A chunk server that has run once, so that all its files are there.
    fn used_cs(&self) -> String {
        let cs = self.dir.path("cs");
        let shape = ["--shards", "1", "--capacity", "256M", "--journal-size", "4M"];
        self.admin(&[&["make-cs", "-r", &cs], &shape[..]].concat()).ok();
        let running = Running::start("pstorage-csd", &["-r", &cs, "--etc", &self.dir.path("etc")]);
        wait_until("the chunk server is active", Duration::from_secs(20), || {
            self.admin(&["--json", "stat"]).text.contains("\"active\"")
                && Path::new(&cs).join("shards-made").exists()
        });
        drop(running);
        cs
    }
}

/// All files below a directory with their content.
fn content(dir: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut dirs = vec![Path::new(dir).to_path_buf()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => dirs.push(path),
                path => files.push((path.display().to_string(), fs::read(&path).unwrap())),
            }
        }
    }
    files.retain(|(name, _)| !name.contains("/logs/") && !name.ends_with("incarnation"));
    files.sort();
    files
}

#[test]
fn output_that_nobody_reads_on_ends_without_a_word() {
    let program = common::programs().join("pstorage");
    let line = format!("(sleep 0.3; {} completion bash) | true", program.display());
    let ended = run_command(Command::new("sh").args(["-c", &line]));
    assert_eq!(ended.ok(), "", "{}", ended.text);
}

#[test]
fn absurd_arguments_are_refused_before_anything_is_made() {
    let dir = Dir::new("arguments");
    run("pstorage", &[]).refused(&["Usage: pstorage"]);
    let (cs, etc) = (dir.path("cs"), dir.path("etc"));
    let make_cs =
        |args: &[&str]| run("pstorage", &[&["-c", "x", "--etc", &etc, "make-cs", "-r", &cs], args].concat());
    for (args, said) in [
        (["-t", "9"], "not in 0..=3"),
        (["-t", "-1"], "not in 0..=3"),
        (["--journal-size", "1K"], "too small"),
        (["--journal-size", "-5"], "is not a size"),
        (["--journal-size", "99999999T"], "too large"),
        (["--shards", "0"], "not in 1..=256"),
        (["--capacity", "0"], "at least 256 MB"),
        (["--capacity", "99999T"], "too few for journals"),
        (["-a", "0.0.0.0"], "name the address"),
    ] {
        make_cs(&args).refused(&[said]);
    }
    make_cs(&[]).refused(&["don't know any metadata server", "etc/clusters/x/bs.list"]);
    let local = dir.path("local");
    for (args, said) in [
        (&["--replicas", "0"][..], "1 to 15"),
        (&["--replicas", "2:3"], "at least 3 of 2"),
        (&["--replicas", "16"], "1 to 15"),
        (&["--replicas", "-1"], "1 to 15"),
        (&["--cs", "0"], "not in 1..=64"),
        (&["--mds", "-1"], "not in 1..=15"),
        (&["--cs", "2", "--replicas", "3:2"], "need 3 chunk servers"),
        (&["--capacity", "99999T"], "too few for journals"),
    ] {
        run("pstorage", &[&["local", "up", &local], args].concat()).refused(&[said]);
    }
    assert!(fs::read_dir(&local).map_or(0, Iterator::count) == 0, "something was left in {local}");
}

#[test]
fn cluster_names_addresses_and_taken_directories_are_refused() {
    let b = Bare::new("taken");
    let etc = b.dir.path("etc");
    for (name, said) in [("b a", "contains ' '"), ("../x", "contains '.'"), ("", "1 to 63 characters")] {
        let make = ["-c", name, "--etc", &etc, "make-mds", "-I", "-a", "127.0.0.1", "-r", "/nonexistent"];
        run("pstorage", &make).refused(&[said]);
    }
    for (address, said) in
        [("127.0.0.1:0", "between 1 and 65534"), ("0.0.0.0", "can't reach"), ("foo", "not IP")]
    {
        let make = ["-c", "y", "--etc", &etc, "make-mds", "-I", "-a", address, "-r", &b.dir.path("y")];
        run("pstorage", &make).refused(&[said]);
    }
    let (mds, full) = (b.dir.path("mds"), b.dir.path("full"));
    fs::create_dir(&full).unwrap();
    fs::write(format!("{full}/precious"), "x").unwrap();
    let key = fs::read(format!("{etc}/clusters/bare/auth_digest.key")).unwrap();
    let before = content(&b.dir.0.display().to_string());
    b.admin(&["make-cs", "-r", &mds]).refused(&["already belongs to mds 1 of cluster 'bare'"]);
    b.admin(&["make-cs", "-r", &full]).refused(&["holds 'precious'", "empty directory"]);
    let second = ["make-mds", "-I", "-a", "127.0.0.1:9", "-p", "--password-file", &b.dir.path("password")];
    for (dir, said) in [(&mds, "already belongs to mds 1"), (&full, "holds 'precious'")] {
        b.admin(&[&second[..], &["-r", dir]].concat()).refused(&[said]);
    }
    // A second cluster of the same name would overwrite the key of the first.
    b.admin(&[&second[..], &["-r", &b.dir.path("new")]].concat())
        .refused(&["belongs to a cluster 'bare' already"]);
    assert_eq!(fs::read(format!("{etc}/clusters/bare/auth_digest.key")).unwrap(), key);
    run("pstorage", &["local", "up", &full]).refused(&["holds 'precious'"]);
    run("pstorage", &["local", "up", &mds]).refused(&["already belongs to mds 1 of cluster 'bare'"]);
    run("pstorage", &["local", "down", &full]).refused(&["no local cluster"]);
    assert!(content(&b.dir.0.display().to_string()) == before, "a refused command changed something");
    b.daemon("pstorage-csd", "mds").refused(&["belongs to mds 1", "pstorage-mdsd"]);
    b.daemon("pstorage-mdsd", "nowhere").refused(&["not the directory of a metadata server", "make-mds"]);
    b.daemon("pstorage-csd", "nowhere").refused(&["not the directory of a chunk server", "make-cs"]);
}

#[test]
fn taken_ports_are_named_with_what_to_do() {
    let b = Bare::new("ports");
    let taken = TcpListener::bind(("127.0.0.1", b.port)).unwrap();
    b.daemon("pstorage-mdsd", "mds").refused(&[&format!("127.0.0.1:{}", b.port), "in use", "ss -ltnp"]);
    drop(taken);
    let b = b.start();
    b.daemon("pstorage-mdsd", "mds").refused(&["another pstorage-mdsd runs in this directory"]);
    let cs = b.used_cs();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    fs::write(format!("{cs}/shard-000/port"), port.to_string()).unwrap();
    b.daemon("pstorage-csd", "cs").refused(&[&format!("127.0.0.1:{port}"), "in use", "shard-000/port"]);
}

#[test]
fn wrong_passwords_keys_and_clusters_are_told_apart() {
    let b = Bare::new("password").start();
    let (addr, wrong, etc) = (format!("127.0.0.1:{}", b.port), b.dir.path("wrong"), b.dir.path("etc2"));
    fs::write(&wrong, "guess").unwrap();
    let auth = |cluster: &str, file: &str| {
        let args = ["-c", cluster, "--etc", &etc, "auth-node", "--password-file", file, "-b", &addr];
        run("pstorage", &args)
    };
    auth("bare", &wrong).refused(&["wrong password", &addr, "Nothing was stored"]);
    auth("other", &wrong).refused(&["belongs to cluster 'bare', not 'other'"]);
    assert!(!Path::new(&etc).exists(), "a refused node stored something");
    auth("bare", &b.dir.path("password")).ok();
    run("pstorage", &["-c", "bare", "--etc", &etc, "stat"]).ok();
    // Who guesses is not heard for long, not even with the right password.
    let guess = || auth("bare", &wrong);
    let last = (0..5).map(|_| guess()).find(|tried| tried.text.contains("wrong passwords within 60 s"));
    last.expect("the sixth try at the latest is refused").refused(&[
        "5 wrong passwords",
        "127.0.0.1",
        "wait",
    ]);
    auth("bare", &b.dir.path("password")).refused(&["5 wrong passwords"]);
    let events = b.admin(&["get-event"]);
    assert!(events.text.contains("Wrong password from 127.0.0.1 (auth-node)"), "{}", events.text);
    // A node without the key.
    fs::remove_file(format!("{etc}/clusters/bare/auth_digest.key")).unwrap();
    let stat = run("pstorage", &["-c", "bare", "--etc", &etc, "stat"]);
    stat.refused(&["this side is not authenticated", "auth-node"]);
    assert!(stat.took < Duration::from_secs(5), "a wrong key does not get better by waiting");
    let mnt = b.dir.path("mnt");
    fs::create_dir(&mnt).unwrap();
    run("pstorage-mount", &["-c", "bare", "--etc", &etc, &mnt]).refused(&["refuses this node", "auth-node"]);
    fs::write(format!("{etc}/clusters/bare/auth_digest.key"), "junk").unwrap();
    run("pstorage", &["-c", "bare", "--etc", &etc, "stat"]).refused(&["auth_digest.key", "first line"]);
}

#[test]
fn unreachable_metadata_servers_are_listed_with_the_reason_of_each() {
    let b = Bare::new("unreachable").start();
    // One that refuses, one that accepts and says nothing, and one that is stopped.
    let (refuses, silent) = (free_ports(), TcpListener::bind("127.0.0.1:0").unwrap());
    let silent_port = silent.local_addr().unwrap().port();
    b.mds.as_ref().unwrap().signal("-STOP");
    let list = format!("127.0.0.1:{refuses}\n127.0.0.1:{silent_port}\n127.0.0.1:{}\n", b.port);
    fs::write(b.dir.path("etc/clusters/bare/bs.list"), list).unwrap();
    let mnt = b.dir.path("mnt");
    fs::create_dir(&mnt).unwrap();
    let parts = [
        format!("127.0.0.1:{refuses}: Connection refused"),
        format!("127.0.0.1:{silent_port}: "),
        format!("127.0.0.1:{}: ", b.port),
        "no answer within".into(),
    ];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let ended = std::thread::scope(|scope| {
        let stat = scope.spawn(|| b.admin(&["stat"]));
        let mount = scope.spawn(|| run("pstorage-mount", &["-c", "bare", "--etc", &b.dir.path("etc"), &mnt]));
        [stat.join().unwrap(), mount.join().unwrap()]
    });
    for ended in ended {
        ended.refused(&parts);
        assert!(ended.took < Duration::from_secs(25), "took {:?}", ended.took);
    }
    b.mds.as_ref().unwrap().signal("-CONT");
    b.admin(&["stat"]).ok();
}

#[test]
fn too_few_chunk_servers_are_told_to_programs_and_to_the_administrator() {
    let c = Cluster::new("few");
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "1G"]);
    c.admin(&["set-attr", "/", "replicas=3:2"]);
    let refused = fs::write(c.mnt("f"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(28), "{refused}");
    let said = c.admin(&["get-event"]);
    assert!(said.contains("Failed to allocate 3 replicas for /f") && said.contains("1 out of 1"), "{said}");
    for (assignment, part) in [
        ("replicas=0", "1 to 15"),
        ("replicas=2:3", "the minimum not above"),
        ("replicas=16", "1 to 15"),
        ("replicas=-1:-1", "expected N or N:M"),
        ("colour=red", "attributes are replicas"),
        ("replicas", "not NAME=VALUE"),
    ] {
        let etc = c.dir.path("etc");
        run("pstorage", &["-c", "local", "--etc", &etc, "set-attr", "/", assignment]).refused(&[part]);
    }
    c.admin(&["set-attr", "-R", "/", "replicas=1"]);
    fs::write(c.mnt("f"), "x").expect("one replica has its place");
}

/// A file system in a file; `None`, with a message, where this machine can't.
struct Loop {
    at: String,
    file: String,
}

impl Loop {
    fn new(dir: &Dir, megabytes: u64) -> Option<Loop> {
        let (file, at) = (dir.path("image"), dir.path("fs"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&file).unwrap().set_len(megabytes << 20).unwrap();
        let made = run_command(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", &file]));
        let mounted = run_command(Command::new("mount").args(["-o", "loop", &file, &at]));
        if made.code != 0 || mounted.code != 0 {
            eprintln!("SKIPPED: no loop device here: {}{}", made.text, mounted.text);
            return None;
        }
        Some(Loop { at, file })
    }

    fn fill(&self, name: &str, leave_mb: u64) {
        let df = run_command(Command::new("df").args(["--output=avail", "-m", &self.at]));
        let free: u64 = df.ok().lines().last().unwrap().trim().parse().unwrap();
        let size = format!("{}M", free - leave_mb);
        run_command(Command::new("fallocate").args(["-l", &size, &format!("{}/{name}", self.at)])).ok();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run_command(Command::new("umount").args(["-l", &self.at]));
        let _ = fs::remove_file(&self.file);
    }
}

#[test]
fn a_full_file_system_refuses_new_data_in_time_and_loses_nothing() {
    let dir = Dir::new("full");
    let Some(image) = Loop::new(&dir, 1200) else { return };
    let root = format!("{}/c", image.at);
    let shape = ["--mds", "1", "--cs", "1", "--shards", "1"];
    run("pstorage", &[&["local", "up", &root, "--capacity", "2G"], &shape[..]].concat())
        .refused(&["MB are free, too few for journals", "make room"]);
    let c = Cluster { dir: Dir(root.clone().into()) };
    c.up_with(&[&shape[..], &["--capacity", "800M"]].concat());
    let kept = pattern(1, 2000);
    write_synced(&c.mnt("kept"), &kept);
    image.fill("filler", 70);
    // Small writes until they are refused: in time, so that all that were taken find their place.
    let file = fs::File::create(c.mnt("more")).unwrap();
    let mut taken = 0;
    let refused = loop {
        let wrote =
            file.write_all_at(&pattern(100 + taken, 16), taken * 65536).and_then(|()| file.sync_data());
        match wrote {
            Ok(()) => taken += 1,
            Err(e) => break e,
        }
        assert!(taken < 20_000, "a full file system takes everything");
    };
    assert_eq!(refused.raw_os_error(), Some(28), "{refused}");
    println!("{taken} writes of 64 KiB were taken");
    assert!(read(&c.mnt("kept")) == kept, "older data can't be read{}", c.logs());
    std::thread::sleep(Duration::from_secs(3)); // It is written back meanwhile.
    image.fill("filler2", 2);
    assert!(run("pstorage", &["--json", "local", "status", &root]).ok().contains("\"running\": true"));
    // Over blocks that have their place, writing goes on.
    let over = fs::File::options().write(true).open(c.mnt("kept")).unwrap();
    over.write_all_at(&kept[..4096], 0).and_then(|()| over.sync_all()).expect("an overwrite needs no room");
    drop((file, over));
    c.down();
    fs::remove_file(format!("{}/filler", image.at)).unwrap();
    c.up_with(&[]);
    assert!(read(&c.mnt("kept")) == kept, "older data was lost");
    let got = read(&c.mnt("more"));
    for n in 0..taken {
        let at = n as usize * 65536;
        assert!(got[at..at + 65536] == pattern(100 + n, 16), "write {n} was acknowledged and lost");
    }
    fs::write(c.mnt("again"), "there is room").unwrap();
    c.check();
}

#[test]
fn file_systems_without_direct_io_are_refused() {
    let b = Bare::new("direct").start();
    let at = b.dir.path("ram");
    fs::create_dir(&at).unwrap();
    if run_command(Command::new("mount").args(["-t", "ramfs", "none", &at])).code != 0 {
        return eprintln!("SKIPPED: may not mount here");
    }
    let cs = b.admin(&["make-cs", "-r", &format!("{at}/cs")]);
    let journal = b.admin(&["make-cs", "-r", &b.dir.path("cs"), "-j", &format!("{at}/journal")]);
    let mds = b.admin(&["add-mds", "-a", "127.0.0.1:9", "-r", &format!("{at}/mds")]);
    let local = run("pstorage", &["local", "up", &format!("{at}/local")]);
    run_command(Command::new("umount").args(["-l", &at])).ok();
    for ended in [cs, journal, mds, local] {
        ended.refused(&[&at, "O_DIRECT", "ext4 or XFS"]);
    }
}

#[test]
fn a_missing_dev_fuse_is_explained() {
    let (b, mnt) = (Bare::new("fuse").start(), "mnt");
    let (etc, mnt) = (b.dir.path("etc"), b.dir.path(mnt));
    fs::create_dir(&mnt).unwrap();
    let programs = common::programs();
    let hidden = |program: &str, args: &str| {
        let program = programs.join(program);
        let script = format!("mount --bind /dev/null /dev/fuse && exec {} {args}", program.display());
        run_command(Command::new("unshare").args(["-m", "sh", "-c", &script]))
    };
    let up = hidden("pstorage", &format!("local up {}", b.dir.path("local")));
    if up.text.starts_with("unshare:") || up.text.starts_with("mount:") {
        return eprintln!("SKIPPED: no mount namespaces here: {}", up.text);
    }
    up.refused(&["/dev/fuse", "modprobe fuse"]);
    hidden("pstorage-mount", &format!("-c bare --etc {etc} {mnt}")).refused(&["/dev/fuse", "modprobe fuse"]);
}

/// Batches of a journal from where replay starts: offset in the file and length (docs/formats.md).
fn batches(journal: &[u8]) -> Vec<(usize, usize)> {
    let u64_at = |at: usize| u64::from_le_bytes(journal[at..at + 8].try_into().unwrap());
    let superblock = [0, 4096].into_iter().max_by_key(|at| u64_at(at + 32)).unwrap();
    let (ring, mut position) = (u64_at(superblock + 40), u64_at(superblock + 48));
    let mut found = Vec::new();
    loop {
        let at = (8192 + position % ring) as usize;
        let ours = journal.get(at..at + 8) == Some(b"PSJBATCH") && u64_at(at + 40) == position;
        if !ours {
            return found;
        }
        let headers = u32::from_le_bytes(journal[at + 52..at + 56].try_into().unwrap());
        let bytes = headers as usize * 4096 + u64_at(at + 64) as usize;
        found.push((at, bytes));
        position += bytes as u64;
    }
}

fn flip(path: &str, offset: usize) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset as u64)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(offset as u64)).unwrap();
    file.write_all(&[byte[0] ^ 0x5a]).unwrap();
}

#[test]
fn a_corrupt_journal_record_stops_the_server_and_a_torn_tail_does_not() {
    let c = Cluster::new("corrupt");
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "1G"]);
    let file = fs::File::create(c.mnt("f")).unwrap();
    // Written back every 2 s: a burst leaves many records in the journal.
    let pieces = 60;
    for n in 0..pieces {
        file.write_all_at(&pattern(n, 1), n * 4096).unwrap();
        file.sync_data().unwrap();
    }
    c.kill("cs1");
    let (cs, etc, journal) = (c.dir.path("cs1"), c.dir.path("etc"), c.dir.path("cs1/shard-000/journal"));
    let csd = || run("pstorage-csd", &["-r", &cs, "--etc", &etc]);
    let whole = fs::read(&journal).unwrap();
    let live = batches(&whole);
    assert!(live.len() > 8, "only {} records to damage", live.len());
    // In the middle, in the header and in the payload.
    for offset in [100, 4096 + 700] {
        let at = live[live.len() / 2].0;
        flip(&journal, at + offset);
        let before = content(&cs);
        csd().refused(&[
            "shard-000/journal is corrupt",
            &format!("at offset {at}"),
            "expected batch",
            "nothing was changed",
        ]);
        assert!(content(&cs) == before, "a server that refuses to start changed its files");
        fs::write(&journal, &whole).unwrap();
    }
    // Formats of another version are not called corrupt.
    let mut newer = whole.clone();
    for at in [0, 4096] {
        newer[at + 8] = 9;
        newer[at + 12..at + 16].fill(0);
        let crc = crc(&newer[at..at + 4096]);
        newer[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&journal, &newer).unwrap();
    let other = csd();
    other.refused(&["shard-000/journal has format version 9", "understands"]);
    assert!(!other.text.contains("is corrupt"), "{}", other.text);
    fs::write(&journal, &whole).unwrap();
    let card = fs::read_to_string(c.dir.path("cs1/control.json")).unwrap();
    fs::write(c.dir.path("cs1/control.json"), card.replace("\"format\": 2", "\"format\": 3")).unwrap();
    csd().refused(&["control.json has format 3", "understands 1 to 2"]);
    fs::write(c.dir.path("cs1/control.json"), card).unwrap();
    // Files that have gone are not made anew: the server would answer with zeros.
    for gone in ["shard-000", "shard-000/data", "shard-000/journal", "shard-000/index"] {
        let (here, away) = (c.dir.path(&format!("cs1/{gone}")), c.dir.path("away"));
        fs::rename(&here, &away).unwrap();
        csd().refused(&[gone, "is missing", "Nothing was changed"]);
        assert!(!Path::new(&here).exists());
        fs::rename(&away, &here).unwrap();
    }
    // What a crash in the middle of a write leaves: half a batch at the end, which nobody was told of.
    let (mut torn, (at, bytes)) = (whole.clone(), *live.last().unwrap());
    let end = at + bytes;
    let (head, payload) = (torn[at..at + 4096].to_vec(), torn[at + 4096..end].to_vec());
    torn[end..end + 4096].copy_from_slice(&head);
    torn[end + 4096..end + 4096 + payload.len() / 2].copy_from_slice(&payload[..payload.len() / 2]);
    fs::write(&journal, &torn).unwrap();
    c.up_with(&[]);
    let got = read(&c.mnt("f"));
    for n in 0..pieces as usize {
        assert!(got[n * 4096..(n + 1) * 4096] == pattern(n as u64, 1), "piece {n} was lost");
    }
    c.check();
}

fn crc(bytes: &[u8]) -> u32 {
    wire::crc(bytes)
}

#[test]
fn a_corrupt_journal_of_a_metadata_server_stops_it() {
    let c = Cluster::new("mdscorrupt");
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--capacity", "1G"]);
    for n in 0..20 {
        fs::create_dir(c.mnt(&format!("d{n}"))).unwrap();
    }
    for service in ["mount", "mds1"] {
        c.kill(service);
    }
    let (mds, etc, journal) = (c.dir.path("mds1"), c.dir.path("etc"), c.dir.path("mds1/raft-journal"));
    let whole = fs::read(&journal).unwrap();
    let live = batches(&whole);
    flip(&journal, live[live.len() / 2].0 + 100);
    run("pstorage-mdsd", &["-r", &mds, "--etc", &etc])
        .refused(&["raft-journal is corrupt at offset", "expected batch"]);
    fs::write(&journal, &whole).unwrap();
    c.up_with(&[]);
    assert!(c.mnt("d19").is_dir());
}

#[test]
fn a_peer_of_another_protocol_version_is_told_so() {
    let b = Bare::new("version").start();
    // A Hello as a later release would send it.
    let hello = wire::hello::Hello {
        version_oldest: wire::frame::VERSION + 1,
        version_newest: wire::frame::VERSION + 2,
        cluster: "bare".into(),
        peer: wire::hello::Peer::Tool,
        nonce: [7; 32],
    };
    let meta = wire::rkyv::to_bytes::<wire::rkyv::rancor::Error>(&hello).unwrap();
    let frame = wire::Frame::new(wire::Head::new(wire::Kind::Hello, 0), &meta, shards::Buf::empty()).encode();
    let mut stream = TcpStream::connect(("127.0.0.1", b.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(&frame.head).unwrap();
    stream.write_all(&frame.meta).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // It closes after its words.
    let text = String::from_utf8_lossy(&answer);
    assert!(
        text.contains("peer speaks protocol versions") && text.contains("upgrade the older side"),
        "{text}"
    );
    b.admin(&["stat"]).ok();
}
