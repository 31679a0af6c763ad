//! A connection against an initiator made of bytes.

use super::*;
use crate::login::TargetInfo;
use crate::pdu::DIGEST_BYTES;
use proptest::prelude::*;
use std::sync::Arc;

struct Targets;

impl Catalog for Targets {
    fn target(&self, name: &str) -> Option<Arc<TargetInfo>> {
        self.targets().into_iter().find(|t| t.name == name)
    }
    fn targets(&self) -> Vec<Arc<TargetInfo>> {
        let target = |name: &str| TargetInfo {
            name: name.into(),
            portals: vec!["127.0.0.1:3260".into(), "[::1]:3260".into()],
            ..TargetInfo::default()
        };
        vec![Arc::new(target("iqn.t")), Arc::new(target("iqn.u"))]
    }
}

struct Bench {
    connection: Connection,
    digests: Digests,
    cmd_sn: u32,
}

/// A head with some bytes set.
fn head(parts: &[(usize, &[u8])]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    parts.iter().for_each(|(at, bytes)| head[*at..*at + bytes.len()].copy_from_slice(bytes));
    head
}

fn word(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// What came: opcode, flags, the head, the data.
type Got = (u8, u8, Vec<u8>, Vec<u8>);

impl Bench {
    fn new() -> Bench {
        let connection = Connection::new(Challenge { id: 1, bytes: [1; 16] }, 5);
        Bench { connection, digests: Digests::default(), cmd_sn: 1 }
    }

    fn feed(&mut self, head: [u8; HEAD_BYTES], data: &[u8]) -> Result<(), ConnectionError> {
        let mut bytes = head.to_vec();
        bytes[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        if self.digests.head {
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        }
        let mut data = data.to_vec();
        data.resize(data.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(&data);
        if self.digests.data && !data.is_empty() {
            bytes.extend(crc32c::crc32c(&data).to_le_bytes());
        }
        self.raw(&bytes)
    }

    fn raw(&mut self, mut bytes: &[u8]) -> Result<(), ConnectionError> {
        while !bytes.is_empty() {
            let room = self.connection.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.connection.filled(count, &Targets)?;
        }
        Ok(())
    }

    fn login(keys: &str) -> Bench {
        let mut b = Bench::new();
        let text = format!("InitiatorName=iqn.i\0{keys}");
        b.feed(head(&[(0, &[0x43, 0x87]), (8, &[0x40; 6]), (16, &word(9)), (24, &word(1))]), text.as_bytes())
            .unwrap();
        let (opcode, flags, _, _) = b.got();
        assert_eq!((opcode, flags), (0x23, 0x87));
        assert!(matches!(b.connection.next_action(), Some(Action::LoggedIn(_))));
        let on = |key: &str| keys.contains(&format!("{key}=CRC32C"));
        b.digests = Digests { head: on("HeaderDigest"), data: on("DataDigest") };
        b
    }

    fn normal(keys: &str) -> Bench {
        Bench::login(&format!("TargetName=iqn.t\0{keys}"))
    }

    fn action(&mut self) -> Action {
        self.connection.next_action().expect("something is to be done")
    }

    fn got(&mut self) -> Got {
        let Action::Send(out) = self.action() else { panic!("nothing is sent") };
        if self.digests.head {
            let (head, digest) = out.head.split_at(HEAD_BYTES);
            assert_eq!(crc32c::crc32c(head).to_le_bytes(), digest);
        }
        let digest_bytes = if self.digests.data && !out.data.is_empty() { DIGEST_BYTES } else { 0 };
        assert_eq!(out.tail.len(), padding_bytes(out.data.len()) + digest_bytes);
        assert_eq!(out.head[4..8], (out.data.len() as u32).to_be_bytes());
        (out.head[0], out.head[1], out.head, out.data.to_vec())
    }

    fn task(&mut self) -> Task {
        match self.action() {
            Action::Execute(task) => task,
            other => panic!("not executed: {other:?}"),
        }
    }

    fn nothing(&mut self) {
        let next = self.connection.next_action();
        assert!(next.is_none(), "{next:?}");
    }

    /// Sends a command with the next number.
    fn command(
        &mut self,
        flags: u8,
        task: u32,
        expected: u32,
        cdb: &[u8],
        data: &[u8],
    ) -> Result<(), ConnectionError> {
        let sn = self.cmd_sn;
        self.cmd_sn += 1;
        let parts: &[(usize, &[u8])] =
            &[(0, &[0x01, flags]), (16, &word(task)), (20, &word(expected)), (24, &word(sn)), (32, cdb)];
        self.feed(head(parts), data)
    }

    fn data_out(
        &mut self,
        flags: u8,
        task: u32,
        transfer: u32,
        sn: u32,
        offset: u32,
        data: &[u8],
    ) -> Result<(), ConnectionError> {
        let parts: &[(usize, &[u8])] = &[
            (0, &[0x05, flags]),
            (16, &word(task)),
            (20, &word(transfer)),
            (36, &word(sn)),
            (40, &word(offset)),
        ];
        self.feed(head(parts), data)
    }
}

fn number(head: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(head[at..at + 4].try_into().unwrap())
}

const READ: u8 = 0xc1;
const WRITE: u8 = 0xa1;

fn good(data: &[u8]) -> Reply {
    Reply::good(Buf::from_slice(data))
}

fn took(bytes: u64) -> Reply {
    Reply { taken_bytes: bytes, ..good(&[]) }
}

#[test]
fn reads_end_with_their_data() {
    let mut b = Bench::normal("MaxRecvDataSegmentLength=512\0MaxBurstLength=1024\0");
    b.command(READ, 7, 1600, &[0x28], &[]).unwrap();
    let task = b.task();
    assert_eq!((task.task, task.cdb[0]), (7, 0x28));
    let data: Vec<u8> = (0..1500u32).map(|n| n as u8).collect();
    b.connection.complete(7, good(&data));
    let pdus: Vec<Got> = (0..3).map(|_| b.got()).collect();
    let flags: Vec<u8> = pdus.iter().map(|p| p.1).collect();
    assert_eq!(flags, [0x00, 0x80, 0x83], "the burst ends, then all, with less than expected");
    assert_eq!(pdus.iter().map(|p| number(&p.2, 40)).collect::<Vec<_>>(), [0, 512, 1024]);
    assert_eq!(pdus.iter().map(|p| number(&p.2, 36)).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(pdus.iter().flat_map(|p| p.3.clone()).collect::<Vec<u8>>(), data);
    assert_eq!((number(&pdus[2].2, 44), number(&pdus[2].2, 28)), (100, 2));
    b.nothing();
    // More than there is room for; an error.
    b.command(READ, 8, 4, &[0x28], &[]).unwrap();
    b.task();
    b.connection.complete(8, good(&[1; 10]));
    let (_, flags, head, data) = b.got();
    assert_eq!((flags, number(&head, 44), data), (0x85, 6, vec![1; 4]));
    b.command(READ, 9, 4, &[0x28], &[]).unwrap();
    b.task();
    b.connection.complete(9, Reply::check(Sense::OUT_OF_RANGE, false));
    let (opcode, flags, head, data) = b.got();
    assert_eq!((opcode, flags, head[3], data.len(), &data[..2]), (0x21, 0x82, 2, 20, &[0, 18][..]));
    b.nothing();
}

#[test]
fn writes_are_collected() {
    for keys in ["", "HeaderDigest=CRC32C\0DataDigest=CRC32C\0"] {
        let mut b = Bench::normal(&format!("{keys}MaxBurstLength=1024\0FirstBurstLength=512\0"));
        let data: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
        b.command(WRITE, 7, 2000, &[0x2a], &data[..300]).unwrap();
        let (opcode, _, ready, _) = b.got();
        assert_eq!(
            (opcode, number(&ready, 36), number(&ready, 40), number(&ready, 44)),
            (0x31, 0, 300, 1024)
        );
        let tag = number(&ready, 20);
        b.data_out(0, 7, tag, 0, 300, &data[300..800]).unwrap();
        b.nothing();
        b.data_out(0x80, 7, tag, 1, 800, &data[800..1324]).unwrap();
        let (_, _, ready, _) = b.got();
        assert_eq!((number(&ready, 36), number(&ready, 40), number(&ready, 44)), (1, 1324, 676));
        b.data_out(0x80, 7, number(&ready, 20), 0, 1324, &data[1324..]).unwrap();
        assert_eq!(b.task().data.to_vec(), data);
        b.connection.complete(7, took(2000));
        let (opcode, flags, head, _) = b.got();
        assert_eq!((opcode, flags, head[3]), (0x21, 0x80, 0));
        // All at once; less than the command takes; nothing at all.
        b.command(WRITE, 8, 4, &[0x2a], &[1, 2, 3, 4]).unwrap();
        assert_eq!(b.task().data.to_vec(), [1, 2, 3, 4]);
        b.connection.complete(8, took(512));
        let (_, flags, head, _) = b.got();
        assert_eq!((flags, number(&head, 44)), (0x84, 508));
    }
}

#[test]
fn data_out_of_order_ends_the_command() {
    let begun = || {
        let mut b = Bench::normal("");
        b.command(WRITE, 7, 1000, &[0x2a], &[]).unwrap();
        let (_, _, ready, _) = b.got();
        (number(&ready, 20), b)
    };
    for (transfer, sn, offset, length) in [(1, 0, 0, 10), (0, 1, 0, 10), (0, 0, 10, 10), (0, 0, 0, 1001)] {
        let (tag, mut b) = begun();
        b.data_out(0, 7, tag + transfer, sn, offset, &vec![0; length]).unwrap();
        let (opcode, _, head, sense) = b.got();
        assert_eq!((opcode, head[3], sense[4]), (0x21, 2, 0x0b), "{transfer} {sn} {offset} {length}");
        b.data_out(0x80, 7, tag, 0, 0, &[0; 1000]).unwrap();
        b.nothing();
    }
    let (tag, mut b) = begun();
    b.data_out(0x80, 7, tag, 0, 0, &[0; 10]).unwrap();
    assert_eq!(b.got().2[3], 2, "ended too early");
    let (tag, mut b) = begun();
    b.data_out(0x80, 7, tag, 0, 0, &[0; 1000]).unwrap();
    b.task();
    assert!(b.data_out(0x80, 7, tag, 0, 0, &[0; 10]).is_err(), "nobody asked for it");
    let mut b = Bench::normal("ImmediateData=No\0");
    assert!(b.command(WRITE, 7, 8, &[0x2a], &[0; 8]).is_err());
    let mut b = Bench::normal("");
    assert!(b.command(0x21, 7, 8, &[0x2a], &[0; 4]).is_err(), "unsolicited data");
    assert!(Bench::normal("").command(WRITE, 7, 4, &[0x2a], &[0; 8]).is_err());
    // A command too large to be collected is refused.
    let mut b = Bench::normal("");
    b.command(WRITE, 7, (MAX_TRANSFER_BYTES + 1) as u32, &[0x2a], &[0; 8]).unwrap();
    assert_eq!(b.got().2[3], 2);
}

#[test]
fn commands_begin_in_order_and_within_the_window() {
    let mut b = Bench::normal("");
    let nop = |sn: u32, task: u32| {
        head(&[(0, &[0, 0x80]), (16, &word(task)), (20, &word(NO_TAG)), (24, &word(sn))])
    };
    b.feed(nop(3, 3), b"c").unwrap();
    b.feed(nop(2, 2), b"b").unwrap();
    b.feed(nop(0, 4), b"old").unwrap();
    b.feed(nop(1 + WINDOW_COMMANDS, 4), b"far").unwrap();
    b.nothing();
    b.feed(nop(1, 1), b"a").unwrap();
    let all: Vec<Got> = (0..3).map(|_| b.got()).collect();
    assert_eq!(all.iter().map(|g| g.3.clone()).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    // Status numbers grow; the window goes on.
    let last = &all[2].2;
    assert_eq!((number(last, 24), number(last, 28)), (number(&all[0].2, 24) + 2, 4));
    assert_eq!(number(last, 32), 4 + WINDOW_COMMANDS - 1);
    b.nothing();
    // Full: no more are let in than were promised.
    b.cmd_sn = 4;
    for n in 0..WINDOW_COMMANDS {
        b.command(READ, 100 + n, 512, &[0x28], &[]).unwrap();
        b.task();
    }
    b.command(READ, 900, 512, &[0x28], &[]).unwrap();
    b.nothing();
    b.connection.complete(100, good(&[0; 512]));
    let (.., head, _) = b.got();
    assert_eq!(number(&head, 32), number(&head, 28));
}

#[test]
fn ordered_commands_have_nobody_beside_them() {
    let mut b = Bench::normal("");
    b.command(READ, 1, 512, &[0x28], &[]).unwrap();
    b.command(READ + 1, 2, 512, &[0x28], &[]).unwrap();
    b.command(READ, 3, 512, &[0x28], &[]).unwrap();
    b.command(READ + 2, 4, 512, &[0x28], &[]).unwrap();
    assert_eq!([b.task().task, b.task().task], [1, 4], "the head of the queue waits for nobody");
    b.nothing();
    b.connection.complete(1, good(&[]));
    b.got();
    b.connection.complete(4, good(&[]));
    b.got();
    assert_eq!(b.task().task, 2);
    b.nothing();
    b.connection.complete(2, good(&[]));
    b.got();
    assert_eq!(b.task().task, 3);
}

#[test]
fn large_writes_wait_for_room() {
    let mut b = Bench::normal("");
    let most = MAX_TRANSFER_BYTES as u32;
    for task in 0..10 {
        b.command(WRITE, task, most, &[0x2a], &[0; 512]).unwrap();
    }
    let mut asked = 0;
    while let Some(Action::Send(_)) = b.connection.next_action() {
        asked += 1;
    }
    assert_eq!(asked, WINDOW_BYTES / (MAX_TRANSFER_BYTES + COMMAND_COST_BYTES));
}

#[test]
fn what_is_aborted_has_no_answer() {
    let mut b = Bench::normal("");
    let manage = |what: u8, task: u32| {
        head(&[(0, &[0x42, 0x80 | what]), (16, &word(50)), (20, &word(task)), (24, &word(1))])
    };
    b.command(READ, 1, 512, &[0x28], &[]).unwrap();
    b.command(WRITE, 2, 512, &[0x2a], &[]).unwrap();
    b.task();
    b.got();
    // One that runs is waited for; one whose data is missing is not.
    b.feed(manage(1, 1), &[]).unwrap();
    b.nothing();
    b.connection.complete(1, good(&[0; 512]));
    let (opcode, _, head, _) = b.got();
    assert_eq!((opcode, head[2]), (0x22, 0));
    b.feed(manage(1, 2), &[]).unwrap();
    assert_eq!(b.got().2[2], 0);
    b.data_out(0x80, 2, 1, 0, 0, &[0; 512]).unwrap();
    b.feed(manage(1, 2), &[]).unwrap();
    assert_eq!(b.got().2[2], 1, "no such task");
    b.feed(manage(8, 2), &[]).unwrap();
    assert_eq!(b.got().2[2], 5);
    b.nothing();
    b.command(READ, 3, 512, &[0x28], &[]).unwrap();
    b.task();
    b.feed(manage(5, NO_TAG), &[]).unwrap();
    b.nothing();
    b.connection.complete(3, good(&[]));
    assert!(matches!(b.action(), Action::Reset { task: 50, what: Reset::Lun(0) }));
    b.connection.reset_done(50, ManageResult::Done);
    assert_eq!(b.got().2[2], 0);
    assert_eq!(b.connection.tasks(), 0);
}

#[test]
fn a_logout_waits_for_what_runs() {
    let mut b = Bench::normal("");
    b.command(READ, 1, 512, &[0x28], &[]).unwrap();
    b.task();
    b.feed(head(&[(0, &[0x46, 0x80]), (16, &word(9)), (24, &word(2))]), &[]).unwrap();
    b.nothing();
    b.connection.complete(1, good(&[]));
    assert_eq!((b.got().0, matches!(b.action(), Action::End)), (0x26, true));
    b.command(READ, 1, 512, &[0x28], &[]).unwrap();
    b.nothing();
}

#[test]
fn targets_are_told() {
    let ask = |b: &mut Bench, task: u32, transfer: u32, text: &[u8]| {
        let sn = b.cmd_sn;
        b.cmd_sn += 1;
        b.feed(head(&[(0, &[4, 0x80]), (16, &word(task)), (20, &word(transfer)), (24, &word(sn))]), text)
            .unwrap();
        let (opcode, flags, head, data) = b.got();
        assert_eq!(opcode, 0x24);
        (flags, number(&head, 20), String::from_utf8(data).unwrap())
    };
    let mut b = Bench::login("SessionType=Discovery\0");
    let (flags, _, text) = ask(&mut b, 1, NO_TAG, b"SendTargets=All\0");
    assert_eq!(flags, 0x80);
    let all = "TargetName=iqn.t\0TargetAddress=127.0.0.1:3260,1\0TargetAddress=[::1]:3260,1\0\
               TargetName=iqn.u\0TargetAddress=127.0.0.1:3260,1\0TargetAddress=[::1]:3260,1\0";
    assert_eq!(text, all);
    b.command(READ, 7, 512, &[0x28], &[]).unwrap();
    assert_eq!(b.got().0, 0x3f, "no commands in discovery");
    let mut b = Bench::normal("");
    assert_eq!(ask(&mut b, 1, NO_TAG, b"SendTargets=\0").2, all[..all.len() / 2]);
    assert_eq!(ask(&mut b, 1, NO_TAG, b"X=1\0").2, "X=NotUnderstood\0");
    // Longer than a PDU.
    let mut b = Bench::login("SessionType=Discovery\0MaxRecvDataSegmentLength=512\0");
    let Phase::Full(session) = &mut b.connection.phase else { panic!() };
    session.parameters.max_send_bytes = 100;
    let (flags, transfer, first) = ask(&mut b, 1, NO_TAG, b"SendTargets=All\0");
    assert_eq!((flags, transfer, first.len()), (0x40, TEXT_TRANSFER, 100));
    let (flags, transfer, second) = ask(&mut b, 1, transfer, b"");
    assert_eq!((flags, transfer, first + &second), (0x80, NO_TAG, all.to_string()));
}

#[test]
fn initiators_are_asked_whether_they_are_there() {
    let mut b = Bench::new();
    b.connection.ping();
    b.nothing();
    let mut b = Bench::normal("");
    b.connection.ping();
    let (opcode, _, ping, _) = b.got();
    assert_eq!((opcode, number(&ping, 16)), (0x20, NO_TAG));
    let stat_sn = number(&ping, 24);
    b.feed(head(&[(0, &[0x40, 0x80]), (16, &word(NO_TAG)), (20, &ping[20..24]), (24, &word(1))]), &[])
        .unwrap();
    b.nothing();
    b.feed(head(&[(0, &[0x40, 0x80]), (16, &word(3)), (20, &word(NO_TAG)), (24, &word(1))]), &[]).unwrap();
    assert_eq!(number(&b.got().2, 24), stat_sn, "a question has no number of its own");
}

#[test]
fn strangers_are_not_let_in() {
    let mut b = Bench::new();
    assert!(b.feed(head(&[(0, &[0x01, READ])]), &[]).is_err());
    let mut b = Bench::new();
    b.feed(head(&[(0, &[0x43, 0x87])]), b"InitiatorName=iqn.i\0TargetName=iqn.x\0").unwrap();
    let (_, _, head, _) = b.got();
    assert_eq!(head[36..38], [2, 3]);
    assert!(matches!((b.action(), b.action()), (Action::Refused(Refusal::NotFound), Action::End)));
}

proptest! {
    /// Any bytes after a login, cut anyhow: no panic, and the books stay right.
    #[test]
    fn any_requests_are_answered_or_end_the_connection(
        pdus in proptest::collection::vec((0..0x12u8, any::<u8>(), 0..4u32, 0..3000u32, 0..4u32, 0..40usize, any::<[u8; 16]>()), 0..40),
        digests in any::<bool>(),
    ) {
        let mut b = Bench::normal(if digests { "HeaderDigest=CRC32C\0DataDigest=CRC32C\0" } else { "" });
        for (opcode, flags, task, expected, sn, length, cdb) in pdus {
            let mut bytes = head(&[(0, &[opcode, flags]), (16, &word(task)), (20, &word(expected)), (32, &cdb)]);
            bytes[24..28].copy_from_slice(&word(b.cmd_sn.wrapping_add(sn).wrapping_sub(1)));
            if opcode == 5 {
                bytes[36..44].fill(0);
                bytes[20..24].copy_from_slice(&word(expected % 3));
            }
            b.cmd_sn += u32::from(sn == 1);
            if b.feed(bytes, &vec![1; length]).is_err() {
                return Ok(());
            }
            while let Some(action) = b.connection.next_action() {
                match action {
                    Action::Execute(t) if t.cdb[0] % 2 == 0 => b.connection.complete(t.task, good(&[0; 700])),
                    Action::Reset { task, .. } => b.connection.reset_done(task, ManageResult::Done),
                    _ => {}
                }
            }
        }
        if let Phase::Full(session) = &b.connection.phase {
            let cost: usize = session.tasks.values().map(|t| t.cost_bytes).sum();
            prop_assert_eq!(session.used_bytes, cost);
            prop_assert_eq!(session.active + session.waiting.len(), session.tasks.len());
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Bench::new().raw(&bytes);
        let _ = Bench::normal("").raw(&bytes);
    }
}
