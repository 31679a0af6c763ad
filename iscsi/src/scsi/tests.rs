//! Commands against a unit whose medium is an array.

use super::*;
use proptest::prelude::*;

const BLOCKS: u64 = 64;

/// A unit with a medium in memory.
struct Disk {
    unit: LogicalUnit,
    bytes: Vec<u8>,
    kept: Vec<Reservations>,
    broken: Option<Failure>,
}

fn nexus(n: u8) -> Nexus {
    Nexus { initiator: format!("iqn.{n}"), isid: [n; 6] }
}

fn disk() -> Disk {
    let identity = Identity {
        vendor: "V".into(),
        product: "P".into(),
        revision: "1".into(),
        serial: "S".into(),
        target: "iqn.t".into(),
    };
    let config = UnitConfig { identity, block: BlockSize::B512, size_bytes: BLOCKS * 512, read_only: false };
    let mut unit = LogicalUnit::new(config, Reservations::default());
    for n in 1..=3 {
        unit.connect(&nexus(n));
        unit.sessions.get_mut(&nexus(n)).unwrap().clear();
    }
    Disk { unit, bytes: vec![0; BLOCKS as usize * 512], kept: Vec::new(), broken: None }
}

fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..bytes.len()].copy_from_slice(bytes);
    out
}

impl Disk {
    fn medium(&mut self, medium: Medium) -> Result<Answer, Failure> {
        if let Some(failure) = self.broken {
            return Err(failure);
        }
        Ok(match medium {
            Medium::Read { offset_bytes, length_bytes } => {
                let at = offset_bytes as usize;
                Answer::Data(Buf::from_slice(&self.bytes[at..at + length_bytes]))
            }
            Medium::Write { offset_bytes, data } => {
                self.bytes[offset_bytes as usize..][..data.len()].copy_from_slice(&data);
                Answer::Done
            }
            Medium::Zero { offset_bytes, length_bytes } => {
                self.bytes[offset_bytes as usize..][..length_bytes as usize].fill(0);
                Answer::Done
            }
            Medium::Flush => Answer::Done,
            Medium::Seek { offset_bytes, hole } => {
                let at = offset_bytes as usize;
                let found = self.bytes[at..].iter().position(|b| (*b == 0) == hole);
                Answer::Position(found.map(|n| (at + n) as u64))
            }
            Medium::Keep(reservations) => {
                self.kept.push(*reservations);
                Answer::Done
            }
        })
    }

    fn run(&mut self, n: u8, bytes: &[u8], data: &[u8]) -> Reply {
        match self.unit.begin(&nexus(n), &cdb(bytes), Buf::from_slice(data)) {
            Begun::Done(reply) => reply,
            Begun::Wait(_) => panic!("nobody is in its way"),
            Begun::Run(mut job) => {
                let mut step = job.start();
                loop {
                    match step {
                        Step::Do(medium) => {
                            let outcome = self.medium(medium);
                            step = job.answered(outcome);
                        }
                        Step::Done(reply) => {
                            assert_eq!(self.unit.end(job.id), []);
                            return reply;
                        }
                    }
                }
            }
        }
    }

    fn ok(&mut self, bytes: &[u8], data: &[u8]) -> Vec<u8> {
        let reply = self.run(1, bytes, data);
        assert_eq!(reply.status, Status::Good, "{bytes:x?}: {:x?}", reply.sense);
        reply.data.to_vec()
    }

    /// Key and code of the sense data.
    fn sense(&mut self, n: u8, bytes: &[u8], data: &[u8]) -> (u8, u16) {
        let reply = self.run(n, bytes, data);
        assert_eq!(reply.status, Status::CheckCondition, "{bytes:x?}");
        (reply.sense[2], u16::from_be_bytes([reply.sense[12], reply.sense[13]]))
    }
}

const OUT_OF_RANGE: (u8, u16) = (5, 0x2100);
const INVALID_FIELD: (u8, u16) = (5, 0x2400);

#[test]
fn blocks_are_written_and_read() {
    let mut d = disk();
    let data = [[1; 512], [2; 512]].concat();
    let reply = d.run(1, &[0x2a, 8, 0, 0, 0, 10, 0, 0, 2, 0], &data);
    assert_eq!((reply.status, reply.taken_bytes), (Status::Good, 1024));
    assert_eq!(d.ok(&[0x28, 0, 0, 0, 0, 10, 0, 0, 2, 0], &[]), data);
    assert_eq!(d.ok(&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 1, 0, 0], &[]), [2; 512]);
    // Whole blocks of what came.
    let reply = d.run(1, &[0x2a, 0, 0, 0, 0, 10, 0, 0, 2, 0], &[7; 1000]);
    assert_eq!((reply.status, reply.taken_bytes, d.bytes[5120], d.bytes[5632]), (Status::Good, 1024, 7, 2));
    assert_eq!(d.sense(1, &[0x28, 0, 0, 0, 0, 63, 0, 0, 2, 0], &[]), OUT_OF_RANGE);
    assert_eq!(d.sense(1, &[0x2a, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0], &data), OUT_OF_RANGE);
    assert!(d.ok(&[0x28, 0, 0, 0, 0, 64, 0, 0, 0, 0], &[]).is_empty());
    assert_eq!(d.sense(1, &[0x28, 0, 0, 0, 0, 65, 0, 0, 0, 0], &[]), OUT_OF_RANGE);
    assert_eq!(d.sense(1, &[0xff], &[]), (5, 0x2000));
    for (failure, sense) in
        [(Failure::Broken, (3, 0x0c00)), (Failure::NoSpace, (7, 0x2707)), (Failure::Lost, (2, 0x040c))]
    {
        d.broken = Some(failure);
        assert_eq!(d.sense(1, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], &data), sense);
    }
    assert_eq!(d.sense(1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[]).0, 2);
}

#[test]
fn bytes_are_compared() {
    let mut d = disk();
    d.bytes[512..1024].fill(5);
    let miscompare = (0x0e, 0x1d00);
    d.ok(&[0x2f, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[]);
    d.ok(&[0x2f, 2, 0, 0, 0, 1, 0, 0, 1, 0], &[5; 512]);
    assert_eq!(d.sense(1, &[0x2f, 2, 0, 0, 0, 0, 0, 0, 2, 0], &[5; 1024]), miscompare);
    assert_eq!(d.sense(1, &[0x2f, 6, 0, 0, 0, 0, 0, 0, 2, 0], &[0; 512]), miscompare);
    d.ok(&[0x2e, 2, 0, 0, 0, 2, 0, 0, 1, 0], &[5; 512]);
    d.ok(&[0x2f, 6, 0, 0, 0, 1, 0, 0, 2, 0], &[5; 512]);

    let swap = [[5; 512], [6; 512]].concat();
    let caw: &[u8] = &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0];
    d.ok(caw, &swap);
    assert_eq!(d.bytes[512..1024], [6; 512]);
    let reply = d.run(1, caw, &swap);
    assert_eq!((reply.sense[2], &reply.sense[3..7]), (14, &[0; 4][..]), "at the first byte");
    assert_eq!(d.bytes[512..1024], [6; 512]);
    assert_eq!(d.sense(1, caw, &[5; 512]), INVALID_FIELD);
    assert_eq!(d.sense(1, &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 200, 0, 0], &swap), OUT_OF_RANGE);
}

#[test]
fn room_is_given_back() {
    let mut d = disk();
    d.bytes.fill(9);
    let list = |ranges: &[(u64, u32)]| {
        let mut out = ((ranges.len() * 16 + 6) as u16).to_be_bytes().to_vec();
        out.extend(((ranges.len() * 16) as u16).to_be_bytes());
        out.extend([0; 4]);
        for (lba, count) in ranges {
            out.extend(lba.to_be_bytes());
            out.extend(count.to_be_bytes());
            out.extend([0; 4]);
        }
        out
    };
    let two = list(&[(3, 2), (10, 1)]);
    d.ok(&[0x42, 0, 0, 0, 0, 0, 0, 0, two.len() as u8, 0], &two);
    let zeros: Vec<usize> = (0..64).filter(|n| d.bytes[n * 512] == 0).collect();
    assert_eq!(zeros, [3, 4, 10]);
    let far = list(&[(63, 2)]);
    assert_eq!(d.sense(1, &[0x42, 0, 0, 0, 0, 0, 0, 0, far.len() as u8, 0], &far), OUT_OF_RANGE);
    d.ok(&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(d.sense(1, &[0x42, 0, 0, 0, 0, 0, 0, 0, 4, 0], &far), (5, 0x1a00));

    let status = |d: &mut Disk, lba: u8| {
        let out = d.ok(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 24, 0, 0], &[]);
        (out[19], out[20])
    };
    assert_eq!(
        [0, 3, 4, 5, 10, 11].map(|lba| status(&mut d, lba)),
        [(3, 0), (2, 1), (1, 1), (5, 0), (1, 1), (53, 0)]
    );

    d.ok(&[0x41, 8, 0, 0, 0, 20, 0, 0, 3, 0], &[0; 512]);
    d.ok(&[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 1, 0, 0], &[]);
    d.ok(&[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0], &[4; 512]);
    assert!(d.bytes[20 * 512..23 * 512].iter().chain(&d.bytes[30 * 512..31 * 512]).all(|b| *b == 0));
    assert!(d.bytes[40 * 512..42 * 512].iter().all(|b| *b == 4) && d.bytes[42 * 512] == 9);
    assert_eq!(d.sense(1, &[0x41, 0, 0, 0, 0, 20, 0, 0, 0, 0], &[0; 512]), INVALID_FIELD);
    assert_eq!(d.sense(1, &[0x41, 0, 0, 0, 0, 20, 0, 0, 1, 0], &[0; 100]), INVALID_FIELD);
}

#[test]
fn initiators_are_told_what_happened() {
    let mut d = disk();
    d.unit.connect(&nexus(2));
    assert_eq!(d.ok(&[0x12, 0, 0, 0, 36, 0], &[]).len(), 36);
    assert_eq!(d.run(2, &[0x12, 0, 0, 0, 36, 0], &[]).status, Status::Good, "INQUIRY never waits");
    assert_eq!(d.sense(2, &[0x00], &[]), (6, 0x2900));
    assert_eq!(d.run(2, &[0x00], &[]).status, Status::Good);
    d.unit.resize(128 * 512);
    d.unit.resize(128 * 512);
    assert_eq!(d.run(2, &[0x03, 0, 0, 0, 18, 0], &[]).data[12..14], [0x2a, 0x09]);
    assert_eq!(d.run(2, &[0x03, 0, 0, 0, 18, 0], &[]).data[2], 0);
    assert_eq!(d.sense(1, &[0x25], &[]), (6, 0x2a09));
    assert_eq!(d.ok(&[0x25], &[]), [0, 0, 0, 127, 0, 0, 2, 0]);
    let capacity = d.ok(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]);
    assert_eq!((capacity.len(), &capacity[7..15]), (32, &[127, 0, 0, 2, 0, 0, 3, 0xc0][..]));
    d.unit.reset();
    assert_eq!(d.sense(3, &[0x00], &[]), (6, 0x2a09));
    assert_eq!(d.sense(3, &[0x00], &[]), (6, 0x2903));
}

#[test]
fn reservations_keep_others_out() {
    let mut d = disk();
    let write: &[u8] = &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    d.ok(&[0x16], &[]);
    assert_eq!(d.run(2, write, &[1; 512]).status, Status::ReservationConflict);
    assert_eq!(d.run(2, &[0x16], &[]).status, Status::ReservationConflict);
    assert_eq!(d.run(2, &[0x17], &[]).status, Status::Good, "and changes nothing");
    assert_eq!(d.run(2, write, &[1; 512]).status, Status::ReservationConflict);
    d.unit.disconnect(&nexus(1));
    assert_eq!(d.run(2, write, &[1; 512]).status, Status::Good);

    let mut list = [0u8; 24];
    list[15] = 7;
    d.ok(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
    let mut mine = [0u8; 24];
    mine[7] = 7;
    d.ok(&[0x5f, 1, 3, 0, 0, 0, 0, 0, 24, 0], &mine);
    assert_eq!(d.kept.len(), 2);
    assert_eq!(d.kept.last(), Some(d.unit.reservations()));
    assert_eq!(d.run(2, write, &[1; 512]).status, Status::ReservationConflict);
    assert_eq!(d.run(2, &[0x16], &[]).status, Status::ReservationConflict);
    assert_eq!(d.run(1, write, &[1; 512]).status, Status::Good);
    // On another gateway.
    let kept = d.kept.last().unwrap().clone();
    let mut d = disk();
    d.unit = LogicalUnit::new(d.unit.config().clone(), kept);
    assert_eq!(d.run(2, write, &[1; 512]).status, Status::ReservationConflict);
    assert_eq!(d.run(1, write, &[1; 512]).status, Status::Good);
}

#[test]
fn what_must_not_meet_waits() {
    let mut d = disk();
    let write = cdb(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0]);
    let Begun::Run(first) = d.unit.begin(&nexus(1), &write, Buf::from_slice(&[1; 512])) else { panic!() };
    let caw = cdb(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
    let Begun::Wait(second) = d.unit.begin(&nexus(2), &caw, Buf::from_slice(&[1; 1024])) else { panic!() };
    assert_eq!(d.unit.end(first.id), [second.id]);
    // A reservation waits for the writes before it.
    let Begun::Run(third) =
        d.unit.begin(&nexus(1), &cdb(&[0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0]), Buf::from_slice(&[1; 512]))
    else {
        panic!()
    };
    let mut list = [0u8; 24];
    list[15] = 7;
    let register = cdb(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
    let Begun::Wait(fourth) = d.unit.begin(&nexus(3), &register, Buf::from_slice(&list)) else { panic!() };
    assert_eq!(d.unit.end(second.id), []);
    assert_eq!(d.unit.end(third.id), [fourth.id]);
}

#[test]
fn write_protection_is_kept() {
    let mut d = disk();
    let mut list = d.ok(&[0x1a, 8, 0x0a, 0, 255, 0], &[]);
    list[0] = 0;
    list[8] |= 8;
    d.ok(&[0x15, 0x10, 0, 0, list.len() as u8, 0], &list);
    assert_eq!(d.sense(1, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512]), (7, 0x2700));
    assert_eq!(d.sense(2, &[0x00], &[]), (6, 0x2a01));
    d.unit.config.read_only = true;
    d.unit.reset();
    assert_eq!(d.sense(1, &[0x00], &[]), (6, 0x2903));
    assert_eq!(d.sense(1, &[0x0a, 0, 0, 0, 1, 0], &[1; 512]), (7, 0x2700));
}

#[test]
fn luns_have_numbers() {
    for lun in [0, 1, 255, 256, 0x3fff] {
        assert_eq!(lun_number(lun_field(lun)), Some(lun));
    }
    assert_eq!(lun_field(5), 0x0005_0000_0000_0000);
    assert_eq!((lun_number(1), lun_number(0xc1 << 56)), (None, None));
    let list = report_luns(&cdb(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0]), [0, 3].into_iter()).unwrap();
    assert_eq!(list.data.to_vec(), [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(no_unit(&cdb(&[0x12, 0, 0, 0, 36, 0])).data[0], 0x7f);
    assert_eq!(no_unit(&cdb(&[0x00])).status, Status::CheckCondition);
}

proptest! {
    /// Any command and any data: an answer, and nothing outside the unit is touched.
    #[test]
    fn any_command_is_answered(
        opcode in proptest::sample::select(cdb::KNOWN.iter().map(|k| (k.opcode, k.action)).collect::<Vec<_>>()),
        rest in any::<[u8; 15]>(), zeros in any::<u16>(),
        data in proptest::collection::vec(any::<u8>(), 0..1200),
    ) {
        let mut bytes = [0; 16];
        bytes[0] = opcode.0;
        bytes[1..].copy_from_slice(&rest);
        if let Some(action) = opcode.1 {
            bytes[1] = action as u8;
        }
        (2..16).filter(|n| zeros >> n & 1 == 1).for_each(|n| bytes[n] = 0);
        let mut d = disk();
        let reply = d.run(1, &bytes, &data);
        prop_assert_eq!(reply.status == Status::CheckCondition, !reply.sense.is_empty());
        let _ = no_unit(&bytes);
    }
}
