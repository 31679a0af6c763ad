//! Whatever an initiator sends, before and after its login: answered, or the connection ends; never a panic. Commands go to a unit whose
//! medium answers anything, so that replies of all kinds come back.
#![no_main]

use iscsi::login::{Account, Catalog, Challenge, TargetInfo};
use iscsi::scsi::inquiry::Identity;
use iscsi::scsi::reservation::Reservations;
use iscsi::scsi::{Answer, Begun, BlockSize, LogicalUnit, Medium, Step, UnitConfig};
use iscsi::pdu::ManageResult;
use iscsi::{Action, Connection, Nexus};
use libfuzzer_sys::fuzz_target;
use shards::BufMut;
use std::sync::Arc;

struct Targets;

impl Catalog for Targets {
    fn target(&self, name: &str) -> Option<Arc<TargetInfo>> {
        self.targets().into_iter().find(|target| target.name == name)
    }
    fn targets(&self) -> Vec<Arc<TargetInfo>> {
        let account = Account { user: "u".into(), secret: "secret of 12".into() };
        let target = |name: &str, accounts| TargetInfo { name: name.into(), accounts, ..TargetInfo::default() };
        vec![Arc::new(target("t", vec![])), Arc::new(target("s", vec![account]))]
    }
}

fn unit() -> LogicalUnit {
    let word = |text: &str| text.to_string();
    let identity = Identity {
        vendor: word("v"),
        product: word("p"),
        revision: word("1"),
        serial: word("s"),
        target: word("t"),
    };
    let config = UnitConfig { identity, block: BlockSize::B512, size_bytes: 1 << 20, read_only: false };
    LogicalUnit::new(config, Reservations::default())
}

fn medium(medium: &Medium) -> Answer {
    match medium {
        Medium::Read { offset_bytes, length_bytes } => {
            assert!(offset_bytes + *length_bytes as u64 <= 1 << 20, "outside the unit");
            Answer::Data(BufMut::zeroed(*length_bytes).freeze())
        }
        Medium::Write { offset_bytes, data } => {
            assert!(offset_bytes + data.len() as u64 <= 1 << 20, "outside the unit");
            Answer::Done
        }
        Medium::Zero { offset_bytes, length_bytes } => {
            assert!(offset_bytes + length_bytes <= 1 << 20, "outside the unit");
            Answer::Done
        }
        Medium::Seek { offset_bytes, hole } => Answer::Position((!hole).then_some(offset_bytes + 512)),
        Medium::Flush | Medium::Keep(_) => Answer::Done,
    }
}

/// Feeds bytes and does what follows; false when the connection has ended.
fn feed(connection: &mut Connection, unit: &mut LogicalUnit, nexus: &Nexus, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let room = connection.room();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        if connection.filled(count, &Targets).is_err() {
            return false;
        }
        while let Some(action) = connection.next_action() {
            match action {
                Action::Execute(task) => {
                    // One that waits for nobody: a command is ended before the next begins.
                    let reply = match unit.begin(nexus, &task.cdb, task.data) {
                        Begun::Done(reply) => reply,
                        Begun::Wait(_) => panic!("nothing is in its way"),
                        Begun::Run(mut job) => {
                            let mut step = job.start();
                            let reply = loop {
                                match step {
                                    Step::Do(what) => step = job.answered(Ok(medium(&what))),
                                    Step::Done(reply) => break reply,
                                }
                            };
                            assert!(unit.end(job.id).is_empty());
                            reply
                        }
                    };
                    connection.complete(task.task, reply);
                }
                Action::Reset { task, .. } => {
                    unit.reset();
                    connection.reset_done(task, ManageResult::Done);
                }
                Action::End => return false,
                Action::Send(_) | Action::Refused(_) | Action::LoggedIn(_) => {}
            }
        }
    }
    true
}

/// A login that succeeds.
fn login(keys: &[u8]) -> Vec<u8> {
    let text = [b"InitiatorName=i\0", keys].concat();
    let mut out = vec![0; 48];
    (out[0], out[1]) = (0x43, 0x87);
    out[4..8].copy_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(&text);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, rest)) = bytes.split_first() else { return };
    let mut connection = Connection::new(Challenge { id: 1, bytes: [1; 16] }, 1);
    let (mut unit, nexus) = (unit(), Nexus { initiator: "i".into(), isid: [0; 6] });
    let begun = match how % 4 {
        0 => true,
        1 => feed(&mut connection, &mut unit, &nexus, &login(b"SessionType=Discovery\0")),
        2 => feed(&mut connection, &mut unit, &nexus, &login(b"TargetName=t\0MaxRecvDataSegmentLength=512\0")),
        _ => feed(&mut connection, &mut unit, &nexus, &login(b"TargetName=t\0ImmediateData=Yes\0")),
    };
    assert!(begun, "a good login");
    feed(&mut connection, &mut unit, &nexus, rest);
});
