//! The journal over a virtual disk: replay, laps, crashes at every step, corruption.

use super::*;
use crate::sim::{CrashKind, TestIo};

const PATH: &str = "journal";
const BYTES: u64 = 1 << 20;

fn any(_: &[u8], _: &[u8]) -> bool {
    true
}

#[derive(Default, Debug)]
struct Seen {
    ready: bool,
    replayed: Vec<(Position, Vec<u8>, Vec<u8>)>,
    durable: Vec<(u64, Position)>,
    broken: Option<String>,
}

fn gather(journal: &mut Journal, seen: &mut Seen) {
    for outcome in journal.outcomes() {
        match outcome {
            Outcome::Ready => seen.ready = true,
            Outcome::Replayed { position, meta, payload, .. } => {
                seen.replayed.push((position, meta.to_vec(), payload.to_vec()))
            }
            Outcome::Durable { token, position, .. } => seen.durable.push((token, position)),
            Outcome::Trimmed => {}
            Outcome::Broken(error) => seen.broken = Some(error.to_string()),
        }
    }
}

/// Completes everything there is.
fn settle(io: &mut TestIo, journal: &mut Journal, seen: &mut Seen) {
    while let Some((op, result)) = io.complete_next() {
        assert!(journal.on_disk(io, op, result));
        gather(journal, seen);
    }
    gather(journal, seen);
}

fn created() -> (TestIo, Journal) {
    let mut io = TestIo::new(1);
    let mut journal = Journal::create(&mut io, PATH, BYTES).unwrap();
    let mut seen = Seen::default();
    settle(&mut io, &mut journal, &mut seen);
    assert!(seen.ready);
    (io, journal)
}

fn reopened(io: &mut TestIo) -> (Option<Journal>, Seen) {
    let mut seen = Seen::default();
    let mut journal = Journal::open(io, PATH, any).unwrap();
    settle(io, &mut journal, &mut seen);
    (seen.ready.then_some(journal), seen)
}

fn append(io: &mut TestIo, journal: &mut Journal, token: u64, payload_bytes: usize) -> Result<(), Full> {
    let payload = Buf::from_slice(&vec![token as u8; payload_bytes]);
    journal.append(io, &token.to_le_bytes(), payload, PayloadCheck::Journal, token, false)
}

#[test]
fn records_come_back_in_order_with_their_payloads() {
    let (mut io, mut journal) = created();
    let sizes = [0, 4096, 100, 65536, 8192, 0, 1];
    for (token, &size) in sizes.iter().enumerate() {
        append(&mut io, &mut journal, token as u64, size).unwrap();
    }
    let mut seen = Seen::default();
    settle(&mut io, &mut journal, &mut seen);
    assert_eq!(seen.durable.iter().map(|d| d.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
    let mut io = TestIo::with_disk(io.crash(CrashKind::Power, 3), 2);
    let (journal, again) = reopened(&mut io);
    assert!(journal.is_some());
    assert_eq!(again.replayed.len(), sizes.len());
    for (token, (record, &size)) in again.replayed.iter().zip(&sizes).enumerate() {
        assert_eq!(record.1, (token as u64).to_le_bytes());
        assert_eq!(record.2, vec![token as u8; size]);
    }
}

#[test]
fn many_laps_with_trimming_and_reopening() {
    let (mut io, mut journal) = created();
    let mut seen = Seen::default();
    let mut kept = VecDeque::new();
    for token in 0..2000u64 {
        while append(&mut io, &mut journal, token, (token as usize % 9) * 4096).is_err() {
            settle(&mut io, &mut journal, &mut seen);
            kept.extend(seen.durable.drain(..));
            assert!(kept.len() > 4, "full although nearly empty");
            kept.drain(..kept.len() / 2);
            let (_, first) = kept[0];
            journal.trim(&mut io, first);
            settle(&mut io, &mut journal, &mut seen);
        }
        if token % 97 == 0 {
            settle(&mut io, &mut journal, &mut seen);
            kept.extend(seen.durable.drain(..));
            let mut next = TestIo::with_disk(io.crash(CrashKind::Power, token), token);
            let (again, replayed) = reopened(&mut next);
            journal = again.unwrap_or_else(|| panic!("{replayed:?}"));
            io = next;
            let tokens: Vec<u64> =
                replayed.replayed.iter().map(|r| u64::from_le_bytes(r.1[..].try_into().unwrap())).collect();
            assert!(tokens.windows(2).all(|w| w[1] == w[0] + 1), "a gap in {tokens:?}");
            assert_eq!(*tokens.last().unwrap(), token);
            assert!(kept.iter().all(|(token, _)| tokens.contains(token)), "an untrimmed record is gone");
        }
    }
}

#[test]
fn a_crash_at_any_step_keeps_what_was_durable_and_goes_on() {
    for seed in 0..300u64 {
        let (mut io, mut journal) = created();
        let mut seen = Seen::default();
        let mut appended = 0u64;
        let mut durable = 0u64;
        for life in 0..4u64 {
            for step in 0..(seed * 7 + life * 13) % 23 {
                for _ in 0..(seed + step) % 4 {
                    if append(&mut io, &mut journal, appended, ((seed + appended) as usize % 5) * 4096)
                        .is_ok()
                    {
                        appended += 1;
                    }
                }
                if let Some((op, result)) = io.complete_any() {
                    journal.on_disk(&mut io, op, result);
                    gather(&mut journal, &mut seen);
                }
            }
            durable += seen.durable.len() as u64;
            seen.durable.clear();
            io = TestIo::with_disk(io.crash(CrashKind::Power, seed * 10 + life), seed + life);
            let (again, replayed) = reopened(&mut io);
            journal = again.unwrap_or_else(|| panic!("seed {seed}: {replayed:?}"));
            let count = replayed.replayed.len() as u64;
            assert!(count >= durable, "seed {seed}: {durable} durable, {count} replayed");
            for (token, record) in replayed.replayed.iter().enumerate() {
                assert_eq!(record.1, (token as u64).to_le_bytes(), "seed {seed}");
                assert!(record.2.iter().all(|&b| b == token as u8), "seed {seed}");
            }
            appended = count;
            durable = count;
        }
    }
}

#[test]
fn corruption_of_durable_data_is_an_error_that_names_the_place() {
    let (mut io, mut journal) = created();
    let mut seen = Seen::default();
    for token in 0..6 {
        append(&mut io, &mut journal, token, 4096).unwrap();
        settle(&mut io, &mut journal, &mut seen);
    }
    // Batches 1.. are of 8 KiB each; the payload of the third lies at 8192 + 2 * 8192 + 4096.
    let mut disk = io.crash(CrashKind::Power, 1);
    disk.flip_bit(PATH, 8192 + 2 * 8192 + 4096 + 17, 3);
    let mut io = TestIo::with_disk(disk, 1);
    let (journal, seen) = reopened(&mut io);
    assert!(journal.is_none());
    let error = seen.broken.unwrap();
    assert!(error.contains("journal is corrupt at offset 24576") && error.contains("batch 3"), "{error}");
}

#[test]
fn a_torn_last_batch_ends_replay_quietly() {
    let (mut io, mut journal) = created();
    let mut seen = Seen::default();
    for token in 0..3 {
        append(&mut io, &mut journal, token, 4096).unwrap();
        settle(&mut io, &mut journal, &mut seen);
    }
    let mut disk = io.crash(CrashKind::Power, 1);
    disk.flip_bit(PATH, 8192 + 2 * 8192 + 4096 + 17, 3);
    let mut io = TestIo::with_disk(disk, 1);
    let (journal, seen) = reopened(&mut io);
    assert!(journal.is_some(), "{seen:?}");
    assert_eq!(seen.replayed.len(), 2);
}

#[test]
fn a_full_journal_refuses_and_recovers() {
    let (mut io, mut journal) = created();
    let mut seen = Seen::default();
    let mut token = 0;
    while append(&mut io, &mut journal, token, 16384).is_ok() {
        token += 1;
        settle(&mut io, &mut journal, &mut seen);
    }
    assert!(token > 20, "only {token} records of 20 KiB fit in 1 MiB");
    journal.append(&mut io, b"urgent", Buf::empty(), PayloadCheck::Journal, 999, true).unwrap();
    settle(&mut io, &mut journal, &mut seen);
    let end = journal.end();
    journal.trim(&mut io, end);
    settle(&mut io, &mut journal, &mut seen);
    assert_eq!(journal.used_bytes(), 0);
    append(&mut io, &mut journal, token, 16384).unwrap();
}

#[test]
fn golden_batch_header_and_superblock() {
    let header = BatchHeader {
        uuid: *b"0123456789abcdef",
        sequence: 5,
        position: 8192,
        previous_crc: 0x0102_0304,
        durable: 3,
        payload_bytes: 4096,
        life: 9,
        descriptors: vec![Descriptor {
            meta: RecordMeta::from_slice(b"hi"),
            payload_bytes: 4096,
            payload_crc: 7,
            check: PayloadCheck::Caller,
        }],
    };
    let (bytes, crc) = header.encode();
    assert_eq!(bytes.len(), BLOCK_BYTES);
    assert_eq!(&bytes[0..12], b"PSJBATCH\x01\0\0\0");
    assert_eq!(bytes[12..16], crc.to_le_bytes());
    let mut expected = vec![];
    expected.extend(b"0123456789abcdef");
    expected.extend(5u64.to_le_bytes());
    expected.extend(8192u64.to_le_bytes());
    expected.extend([4, 3, 2, 1, 1, 0, 0, 0]);
    expected.extend(3u64.to_le_bytes());
    expected.extend(4096u64.to_le_bytes());
    expected.extend([1, 0, 0, 0, 9, 0, 0, 0]);
    expected.extend([2, 0, 1, 0, 0, 0x10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend(b"hi\0\0\0\0\0\0");
    assert_eq!(&bytes[16..16 + expected.len()], &expected[..]);
    assert!(bytes[16 + expected.len()..].iter().all(|&b| b == 0));
    assert_eq!(BatchHeader::decode(&bytes).unwrap(), (header, crc));

    let block = Superblock {
        uuid: [1; 16],
        generation: 2,
        ring_bytes: 4096,
        position: 3,
        sequence: 4,
        previous_crc: 5,
        checkpoint: Checkpoint([6, 0, 0, 9, 0]),
    };
    let bytes = block.encode();
    assert_eq!(&bytes[0..12], b"PSJSUPER\x01\0\0\0");
    assert_eq!((bytes[64], bytes[72], bytes[96]), (5, 6, 9));
    assert_eq!(u64::from_le_bytes(bytes[32..40].try_into().unwrap()), 2);
    assert_eq!(Superblock::decode(&bytes).unwrap(), block);
}
