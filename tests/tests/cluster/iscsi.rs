//! iSCSI gateways as real processes, and an initiator that is a few lines of its own: what was acknowledged is there on the next
//! gateway, whatever becomes of the one before.

use crate::common::{Cluster, Ended, Running, free_ports, pattern, run, run_command, wait_until};
use iscsi::chap::Algorithm;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// A disk that is lost for longer has its guests see errors.
const FAIL_OVER: Duration = Duration::from_secs(20);

struct Gateway<'a> {
    c: &'a Cluster,
    host: &'static str,
    process: Running,
}

impl<'a> Gateway<'a> {
    fn start(c: &'a Cluster, host: &'static str) -> Gateway<'a> {
        let (etc, socket) = (c.dir.path("etc"), c.dir.path(host));
        let args = ["-c", "local", "--etc", &etc, "--socket", &socket, "--host", host];
        let process = Running::start("pstorage-iscsid", &args);
        let gateway = Gateway { c, host, process };
        wait_until("the gateway", PATIENCE, || gateway.try_admin(&["state"]).code == 0);
        gateway
    }

    fn command(&self, args: &[&str]) -> Command {
        let (etc, socket) = (self.c.dir.path("etc"), self.c.dir.path(self.host));
        let mut command = Command::new(pstorage_tests::processes::programs().join("pstorage-iscsi"));
        command.args(["-c", "local", "--etc", &etc, "--socket", &socket]).args(args);
        command
    }

    fn try_admin(&self, args: &[&str]) -> Ended {
        run_command(&mut self.command(args))
    }

    fn admin(&self, args: &[&str]) -> String {
        let ended = self.try_admin(args);
        assert_eq!(ended.code, 0, "{args:?}: {}{}", ended.text, self.c.logs());
        ended.text
    }

    fn refused(&self, args: &[&str], parts: &[&str]) {
        self.try_admin(args).refused(parts);
    }

    /// Stops all its threads, and returns when they have stopped.
    fn stand_still(&self) {
        self.process.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.process.0.id());
        wait_until("all threads stand still", PATIENCE, || {
            let mut all = std::fs::read_dir(&tasks).expect("its threads").flatten();
            all.all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // 4711 (name) T …
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        });
    }

    fn account(&self, user: &str, secret: &str) {
        let mut command = self.command(&["account-create", "-u", user, "--secret-stdin"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
        writeln!(child.stdin.take().expect("a pipe"), "{secret}").expect("it reads");
        assert!(child.wait().expect("it ends").success());
    }
}

/// One session.
struct Initiator {
    stream: TcpStream,
    cmd_sn: u32,
    task: u32,
}

/// Status, sense key, data.
#[derive(Debug)]
struct Ending {
    status: u8,
    sense_key: u8,
    data: Vec<u8>,
}

impl Ending {
    fn ok(self) -> Vec<u8> {
        assert_eq!(self.status, 0, "{self:?}");
        self.data
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

impl Initiator {
    /// Logs in; the status of a login that is refused.
    fn login(port: u16, name: &str, target: &str, account: Option<(&str, &str)>) -> Result<Initiator, u16> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|_| 0u16)?;
        stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        stream.set_nodelay(true).expect("it can be set");
        let mut i = Initiator { stream, cmd_sn: 1, task: 1 };
        let names = format!("InitiatorName={name}\0TargetName={target}\0");
        let keys = "ImmediateData=Yes\0InitialR2T=Yes\0MaxRecvDataSegmentLength=262144\0";
        match account {
            None => drop(i.login_step(0x87, &format!("{names}{keys}"))?),
            Some((user, secret)) => {
                i.login_step(0x01, &format!("{names}AuthMethod=CHAP,None\0"))?;
                let text = i.login_step(0x01, "CHAP_A=7,5\0")?;
                let value = |key: &str| {
                    let pair = text.split('\0').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
                    pair.unwrap_or_else(|| panic!("{key} in {text}")).to_string()
                };
                assert_eq!(value("CHAP_A"), "7");
                let challenge = iscsi::text::binary(&value("CHAP_C")).expect("bytes");
                let id = value("CHAP_I").parse().expect("a number");
                let proof = iscsi::text::hex(&Algorithm::Sha256.proof(id, secret.as_bytes(), &challenge));
                i.login_step(0x81, &format!("CHAP_N={user}\0CHAP_R={proof}\0"))?;
                i.login_step(0x87, keys)?;
            }
        }
        // The first command after a login hears that the device is new.
        i.command(&[0x00], &[], 0);
        Ok(i)
    }

    fn login_step(&mut self, flags: u8, text: &str) -> Result<String, u16> {
        let mut head = self.head(0x43, flags);
        head[8] = 0x80;
        self.send(head, text.as_bytes());
        let (head, data) = self.receive();
        assert_eq!(head[0], 0x23);
        match u16::from_be_bytes([head[36], head[37]]) {
            0 => Ok(String::from_utf8(data).expect("text")),
            refused => Err(refused),
        }
    }

    fn head(&self, opcode: u8, flags: u8) -> [u8; 48] {
        let mut head = [0; 48];
        (head[0], head[1]) = (opcode, flags);
        head[16..20].copy_from_slice(&self.task.to_be_bytes());
        head[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        head
    }

    fn send(&mut self, mut head: [u8; 48], data: &[u8]) {
        head[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let padding = data.len().next_multiple_of(4) - data.len();
        // A gateway that has died is noticed when an answer is awaited.
        let _ = self.stream.write_all(&[&head[..], data, &[0; 3][..padding]].concat());
    }

    fn try_receive(&mut self) -> std::io::Result<([u8; 48], Vec<u8>)> {
        let mut head = [0; 48];
        self.stream.read_exact(&mut head)?;
        if head[0] == 0x20 {
            // A gateway that has heard nothing for a while asks whether we are there: it waits some more.
            return self.try_receive();
        }
        let length = (word(&head, 4) & 0xff_ffff) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(length);
        Ok((head, data))
    }

    fn receive(&mut self) -> ([u8; 48], Vec<u8>) {
        self.try_receive().expect("the gateway answers")
    }

    fn begin(&mut self, cdb: &[u8], out: &[u8], room: usize) {
        self.task += 1;
        let flags = 0x80 | if room > 0 { 0x40 } else { 0 } | if out.is_empty() { 0 } else { 0x20 };
        let mut head = self.head(0x01, flags);
        self.cmd_sn += 1;
        head[20..24].copy_from_slice(&(room.max(out.len()) as u32).to_be_bytes());
        head[32..32 + cdb.len()].copy_from_slice(cdb);
        // Half of what may come at once, so that the rest is asked for.
        let first = out.len().min(32 << 10);
        self.send(head, &out[..first]);
    }

    /// One command to its end. Error: the connection broke, and nobody knows.
    fn try_command(&mut self, cdb: &[u8], out: &[u8], room: usize) -> std::io::Result<Ending> {
        self.begin(cdb, out, room);
        let mut data = vec![0; room];
        let mut got = 0;
        loop {
            let (head, part) = self.try_receive()?;
            match head[0] {
                0x31 => {
                    let (from, length) = (word(&head, 40) as usize, word(&head, 44) as usize);
                    let mut answer = self.head(0x05, 0x80);
                    answer[20..24].copy_from_slice(&head[20..24]);
                    answer[40..44].copy_from_slice(&head[40..44]);
                    // One PDU for each burst: they are no longer than a PDU may be.
                    self.send(answer, &out[from..from + length]);
                }
                0x25 => {
                    let at = word(&head, 40) as usize;
                    data[at..at + part.len()].copy_from_slice(&part);
                    got += part.len();
                    if head[1] & 1 != 0 {
                        data.truncate(got);
                        return Ok(Ending { status: head[3], sense_key: 0, data });
                    }
                }
                0x21 => {
                    let sense_key = part.get(4).map_or(0, |key| key & 0x0f);
                    data.truncate(got);
                    return Ok(Ending { status: head[3], sense_key, data });
                }
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn command(&mut self, cdb: &[u8], out: &[u8], room: usize) -> Ending {
        self.try_command(cdb, out, room).expect("the gateway answers")
    }

    fn write(&mut self, lba: u32, data: &[u8]) -> std::io::Result<Ending> {
        self.try_command(&blocks(0x2a, lba, data.len()), data, 0)
    }

    fn read(&mut self, lba: u32, bytes: usize) -> Vec<u8> {
        self.command(&blocks(0x28, lba, bytes), &[], bytes).ok()
    }
}

/// READ (10) or WRITE (10) of blocks of 512 bytes.
fn blocks(opcode: u8, lba: u32, bytes: usize) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&((bytes / 512) as u16).to_be_bytes());
    cdb
}

fn reserve_out(action: u8, kind: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

fn keys(key: u64, action_key: u64) -> Vec<u8> {
    [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat()
}

const PIECE_BYTES: usize = 64 << 10;
const PIECE_BLOCKS: u32 = (PIECE_BYTES / 512) as u32;

fn piece(value: u64) -> Vec<u8> {
    pattern(value, PIECE_BYTES / 4096)
}

fn cluster(name: &str) -> Cluster {
    let c = Cluster::new(name);
    c.up_with(&["--mds", "1", "--cs", "3", "--replicas", "3:2", "--capacity", "1G"]);
    c.wait_healthy();
    c
}

#[test]
fn another_gateway_takes_over_when_one_is_killed() {
    let c = cluster("iscsi-kill");
    let (port_a, port_b) = (free_ports(), free_ports());
    let mut a = Gateway::start(&c, "a");
    let portal = format!("127.0.0.1:{port_a}");
    let iqn = a.admin(&["create", "-n", "vm1", "-s", "64M", "-a", &portal]).trim().to_string();
    assert!(iqn.starts_with("iqn.") && iqn.ends_with(":vm1"), "{iqn}");
    a.refused(&["create", "-n", "vm1", "-s", "64M", "-a", &portal], &["already"]);
    assert_eq!(Initiator::login(port_a, "iqn.x", &iqn, None).err(), Some(0), "not started");
    a.admin(&["start", "-t", "vm1"]);
    assert!(a.admin(&["list"]).contains("started"));
    let mut i = Initiator::login(port_a, "iqn.2026-11.test:i", &iqn, None).expect("let in");
    assert_eq!(i.command(&[0x25], &[], 8).ok(), [0, 1, 0xff, 0xff, 0, 0, 2, 0]);
    // Reserved by this initiator: that holds on every gateway.
    i.command(&reserve_out(6, 0), &keys(0, 77), 0).ok();
    i.command(&reserve_out(1, 5), &keys(77, 0), 0).ok();

    // Written until the gateway is killed in the middle of it.
    let mut acknowledged = vec![0u64; 256];
    let mut maybe = None;
    let began = Instant::now();
    for value in 1.. {
        let at = value as usize % acknowledged.len();
        if began.elapsed() > Duration::from_secs(2) && maybe.is_none() {
            maybe = Some((at, value));
            i.begin(&blocks(0x2a, at as u32 * PIECE_BLOCKS, PIECE_BYTES), &piece(value), 0);
            a.process.signal("-9");
            a.process.0.wait().expect("it has ended");
            break;
        }
        i.write(at as u32 * PIECE_BLOCKS, &piece(value)).expect("acknowledged").ok();
        acknowledged[at] = value;
    }
    let killed = Instant::now();

    let b = Gateway::start(&c, "b");
    b.refused(&["register", "-t", &iqn], &["started on host a", "register -f"]);
    b.refused(&["start", "-t", &iqn], &["registered on host a"]);
    b.admin(&["register", "-f", "-t", &iqn, "-a", &format!("127.0.0.1:{port_b}")]);
    b.admin(&["start", "-t", &iqn]);
    let mut i = Initiator::login(port_b, "iqn.2026-11.test:i", &iqn, None).expect("let in");
    assert_eq!(i.write(131_000, &[1; 512]).expect("answered").status, 0);
    let took = killed.elapsed();
    println!("fail-over took {took:?}");
    assert!(took < FAIL_OVER, "{took:?}");
    for (at, value) in acknowledged.iter().enumerate().filter(|(_, value)| **value != 0) {
        let got = i.read(at as u32 * PIECE_BLOCKS, PIECE_BYTES);
        let newer = maybe.filter(|(maybe_at, _)| *maybe_at == at);
        let good = got == piece(*value)
            || newer.is_some_and(|(_, newer)| {
                got == piece(newer)
                    || got.chunks(4096).enumerate().all(|(n, block)| {
                        let range = n * 4096..(n + 1) * 4096;
                        block == &piece(*value)[range.clone()] || block == &piece(newer)[range]
                    })
            });
        assert!(good, "piece {at} does not hold value {value}");
    }
    // The reservation holds, for its owner and against others.
    let status = i.command(&[0x5e, 1, 0, 0, 0, 0, 0, 0, 64, 0], &[], 64).ok();
    assert_eq!((status.len(), status[15], status[21]), (24, 77, 5));
    let mut other = Initiator::login(port_b, "iqn.2026-11.test:other", &iqn, None).expect("let in");
    assert_eq!(other.write(0, &[1; 512]).expect("answered").status, 0x18, "a reservation conflict");
    drop((i, other));

    // A restart of the gateway serves what it served.
    b.process.signal("-TERM");
    let mut process = b.process;
    wait_until("the end", PATIENCE, || process.0.try_wait().expect("it can be waited for").is_some());
    let b = Gateway::start(&c, "b");
    wait_until("the target", PATIENCE, || b.admin(&["state"]).contains(&iqn));
    drop(Initiator::login(port_b, "iqn.2026-11.test:i", &iqn, None).expect("let in"));
    b.refused(&["delete", "-t", &iqn], &["stop"]);
    b.admin(&["stop", "-t", &iqn]);
    assert!(Initiator::login(port_b, "iqn.2026-11.test:i", &iqn, None).is_err());
    b.admin(&["delete", "-t", &iqn]);
    assert!(b.admin(&["list"]).contains("no targets"));
    c.check();
}

#[test]
fn a_gateway_that_was_cut_off_writes_nothing_any_more() {
    let c = cluster("iscsi-fence");
    let (port_a, port_b) = (free_ports(), free_ports());
    let a = Gateway::start(&c, "a");
    let iqn = a
        .admin(&["create", "-n", "vm1", "-s", "16M", "-a", &format!("127.0.0.1:{port_a}")])
        .trim()
        .to_string();
    a.admin(&["start", "-t", &iqn]);
    let mut old = Initiator::login(port_a, "iqn.2026-11.test:i", &iqn, None).expect("let in");
    old.write(0, &piece(1)).expect("acknowledged").ok();
    // It stands still, with writes that it has not read yet.
    a.stand_still();
    old.begin(&blocks(0x2a, 0, 4096), &pattern(666, 1), 0);
    old.begin(&blocks(0x2a, 8, 4096), &pattern(666, 1), 0);

    let b = Gateway::start(&c, "b");
    b.admin(&["register", "-f", "-t", &iqn, "-a", &format!("127.0.0.1:{port_b}")]);
    b.admin(&["start", "-t", &iqn]);
    let mut new = Initiator::login(port_b, "iqn.2026-11.test:i", &iqn, None).expect("let in");
    assert!(new.read(0, PIECE_BYTES) == piece(1), "what the first gateway acknowledged is not there");
    new.write(0, &piece(2)).expect("acknowledged").ok();
    a.process.signal("-CONT");
    let end = old.try_receive();
    assert!(end.as_ref().map_or(true, |(head, _)| head[0] == 0x21 && head[3] != 0), "{end:?}");
    wait_until("the old gateway gives up", PATIENCE, || !a.admin(&["state"]).contains(&iqn));
    assert!(new.read(0, PIECE_BYTES) == piece(2), "something of the old gateway came through");
    c.check();
}

#[test]
fn who_may_log_in_and_what_can_be_changed() {
    let c = cluster("iscsi-accounts");
    let port = free_ports();
    let gateway = Gateway::start(&c, "a");
    let portal = format!("127.0.0.1:{port}");
    gateway.account("alice", "secret of alice");
    gateway.refused(&["account-create", "-u", "alice", "--secret-stdin"], &["already"]);
    let iqn = gateway.admin(&["create", "-n", "vm1", "-s", "16M", "-a", &portal, "--serial", "4711"]);
    let iqn = iqn.trim();
    gateway.refused(&["set", "-t", iqn, "-u", "bob"], &["no account 'bob'"]);
    gateway.admin(&["set", "-t", iqn, "-u", "alice"]);
    gateway.refused(&["account-delete", "-u", "alice"], &[iqn, "alice"]);
    gateway.admin(&["lun-add", "-t", iqn, "-s", "32M", "--block-size", "4096"]);
    gateway.admin(&["start", "-t", iqn]);
    gateway.refused(&["lun-add", "-t", iqn, "-s", "32M"], &["started", "stop"]);
    let login = |account| Initiator::login(port, "iqn.2026-11.test:i", iqn, account);
    assert_eq!(login(None).err(), Some(0x0201));
    assert_eq!(login(Some(("alice", "another secret"))).err(), Some(0x0201));
    assert_eq!(login(Some(("bob", "secret of alice"))).err(), Some(0x0201));
    let mut i = login(Some(("alice", "secret of alice"))).expect("let in");
    assert_eq!(i.command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64).ok().len(), 8 + 16);
    assert_eq!(&i.command(&[0x12, 1, 0x80, 0, 64, 0], &[], 64).ok()[4..], b"4711");
    let state = gateway.admin(&["--json", "state"]);
    assert!(state.contains("alice") && state.contains("iqn.2026-11.test:i"), "{state}");

    // A LUN grows while it is used; discarded blocks read as zeros.
    i.write(32_760, &[7; 4096]).expect("acknowledged").ok();
    assert_eq!(i.write(32_768, &[7; 4096]).expect("answered").sense_key, 5);
    gateway.refused(&["lun-grow", "-t", iqn, "-l", "0", "-s", "8M"], &["larger"]);
    gateway.admin(&["lun-grow", "-t", iqn, "-l", "0", "-s", "24M"]);
    assert_eq!(i.command(&[0x00], &[], 0).sense_key, 6, "it is told");
    i.write(32_768, &[7; 4096]).expect("acknowledged").ok();
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(32_760u64.to_be_bytes());
    list.extend([0, 0, 0, 8, 0, 0, 0, 0]);
    i.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0).ok();
    assert_eq!(i.read(32_760, 8192), [vec![0; 4096], vec![7; 4096]].concat());

    // A new session of the same initiator takes the place of the old one.
    let mut again = login(Some(("alice", "secret of alice"))).expect("let in");
    assert!(i.try_receive().is_err(), "the old one has ended");
    assert_eq!(again.read(32_768, 4096), [7; 4096]);
    gateway.admin(&["set", "-t", iqn, "--no-users", "--initiator", "iqn.2026-11.test:friend"]);
    assert_eq!(login(None).err(), Some(0x0202));
    assert!(Initiator::login(port, "iqn.2026-11.test:friend", iqn, None).is_ok());
    let none = run("pstorage-iscsi", &["-c", "local", "--socket", "/nonexistent", "state"]);
    none.refused(&["no gateway runs", "pstorage-iscsid"]);
    c.check();
}
