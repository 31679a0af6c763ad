//! Heads of PDUs (RFC 7143, section 11): 48 bytes, big endian. What initiators send is decoded to [`Request`], what a target sends is
//! encoded from [`Response`].

use thiserror::Error;

pub const HEAD_BYTES: usize = 48;
pub const DIGEST_BYTES: usize = 4;
/// Data is filled up to a multiple of this.
pub const PAD_BYTES: usize = 4;
/// No task, or no transfer, is meant.
pub const NO_TAG: u32 = 0xffff_ffff;

/// Bytes behind data of this length that fill it up.
pub fn padding_bytes(data_bytes: usize) -> usize {
    data_bytes.next_multiple_of(PAD_BYTES) - data_bytes
}

/// Whether `a` comes before `b` in a sequence of numbers that wraps (RFC 1982).
pub fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The head of a PDU as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head(pub [u8; HEAD_BYTES]);

impl Head {
    fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn short(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.0[at..at + 2].try_into().expect("2 bytes"))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("4 bytes"))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    fn has(&self, flag: u8) -> bool {
        self.byte(1) & flag != 0
    }

    pub fn opcode(&self) -> u8 {
        self.byte(0) & 0x3f
    }

    /// Length of the additional header segments.
    pub fn more_bytes(&self) -> usize {
        usize::from(self.byte(4)) * 4
    }

    pub fn data_bytes(&self) -> usize {
        (self.word(4) & 0x00ff_ffff) as usize
    }

    pub fn task(&self) -> u32 {
        self.word(16)
    }

    /// The place of a command in the session's order; immediate ones have none of their own.
    fn order(&self) -> Order {
        Order { immediate: self.byte(0) & 0x40 != 0, cmd_sn: self.word(24) }
    }
}

const FINAL: u8 = 0x80;
const CONTINUE: u8 = 0x40;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    pub immediate: bool,
    pub cmd_sn: u32,
}

/// How a command stands to others of the same initiator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskAttribute {
    Simple,
    /// After all that came before, and before all that come after.
    Ordered,
    HeadOfQueue,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    pub order: Order,
    pub task: u32,
    pub lun: u64,
    /// Data goes to the initiator.
    pub reads: bool,
    /// Data comes from the initiator.
    pub writes: bool,
    /// No unsolicited Data-Out follows.
    pub is_final: bool,
    pub attribute: TaskAttribute,
    /// Data that the initiator has, or has room for.
    pub expected_bytes: u32,
    pub cdb: [u8; 16],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manage {
    AbortTask {
        task: u32,
    },
    AbortTaskSet,
    ClearTaskSet,
    ResetLun,
    ResetTarget,
    ResetTargetCold,
    /// What only higher recovery levels have, and what nobody knows.
    Unsupported,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoginHead {
    pub task: u32,
    /// The initiator is ready for the next stage.
    pub transit: bool,
    /// More text follows in another PDU.
    pub more: bool,
    pub stage: u8,
    pub next_stage: u8,
    pub version_min: u8,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub cid: u16,
    pub cmd_sn: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataOut {
    pub task: u32,
    pub transfer: u32,
    pub is_final: bool,
    pub data_sn: u32,
    pub offset_bytes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogoutReason {
    Session,
    Connection,
    Recovery,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// `task` is [`NO_TAG`] when no answer is wanted.
    Nop {
        order: Order,
        task: u32,
        lun: u64,
    },
    Command(Command),
    Manage {
        order: Order,
        task: u32,
        lun: u64,
        what: Manage,
    },
    Login(LoginHead),
    Text {
        order: Order,
        task: u32,
        transfer: u32,
        is_final: bool,
        more: bool,
    },
    DataOut(DataOut),
    Logout {
        order: Order,
        task: u32,
        cid: u16,
        reason: LogoutReason,
    },
}

/// Why a PDU is refused, as the protocol numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RejectReason {
    #[error("SNACK is of a higher error recovery level")]
    SnackReject = 0x03,
    #[error("it breaks the protocol")]
    ProtocolError = 0x04,
    #[error("it is not supported")]
    NotSupported = 0x05,
    #[error("too many immediate commands are under way")]
    ImmediateReject = 0x06,
    #[error("a command of the same tag is under way")]
    TaskInProgress = 0x07,
    #[error("it is malformed")]
    InvalidField = 0x09,
}

impl Request {
    pub fn decode(head: &Head) -> Result<Request, RejectReason> {
        let (task, lun, order) = (head.task(), head.long(8), head.order());
        Ok(match head.opcode() {
            0x00 => Request::Nop { order, task, lun },
            0x01 => {
                let attribute = match head.byte(1) & 7 {
                    0 | 1 => TaskAttribute::Simple,
                    2 => TaskAttribute::Ordered,
                    3 => TaskAttribute::HeadOfQueue,
                    _ => return Err(RejectReason::InvalidField),
                };
                Request::Command(Command {
                    order,
                    task,
                    lun,
                    reads: head.has(0x40),
                    writes: head.has(0x20),
                    is_final: head.has(FINAL),
                    attribute,
                    expected_bytes: head.word(20),
                    cdb: head.0[32..].try_into().expect("16 bytes"),
                })
            }
            0x02 => {
                let what = match head.byte(1) & 0x7f {
                    1 => Manage::AbortTask { task: head.word(20) },
                    2 => Manage::AbortTaskSet,
                    4 => Manage::ClearTaskSet,
                    5 => Manage::ResetLun,
                    6 => Manage::ResetTarget,
                    7 => Manage::ResetTargetCold,
                    _ => Manage::Unsupported,
                };
                Request::Manage { order, task, lun, what }
            }
            0x03 => Request::Login(LoginHead {
                task,
                transit: head.has(FINAL),
                more: head.has(CONTINUE),
                stage: head.byte(1) >> 2 & 3,
                next_stage: head.byte(1) & 3,
                version_min: head.byte(3),
                isid: head.0[8..14].try_into().expect("6 bytes"),
                tsih: head.short(14),
                cid: head.short(20),
                cmd_sn: order.cmd_sn,
            }),
            0x04 => Request::Text {
                order,
                task,
                transfer: head.word(20),
                is_final: head.has(FINAL),
                more: head.has(CONTINUE),
            },
            0x05 => Request::DataOut(DataOut {
                task,
                transfer: head.word(20),
                is_final: head.has(FINAL),
                data_sn: head.word(36),
                offset_bytes: head.word(40),
            }),
            0x06 => {
                let reason = match head.byte(1) & 0x7f {
                    0 => LogoutReason::Session,
                    1 => LogoutReason::Connection,
                    2 => LogoutReason::Recovery,
                    _ => return Err(RejectReason::InvalidField),
                };
                Request::Logout { order, task, cid: head.short(20), reason }
            }
            0x10 => return Err(RejectReason::SnackReject),
            _ => return Err(RejectReason::NotSupported),
        })
    }
}

/// Where the session stands; part of every head that a target sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Numbers {
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
}

/// How much data was less or more than the initiator expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residual {
    None,
    Underflow { bytes: u32 },
    Overflow { bytes: u32 },
}

impl Residual {
    pub fn between(expected_bytes: u32, actual_bytes: u64) -> Residual {
        let expected = u64::from(expected_bytes);
        match actual_bytes {
            actual if actual < expected => Residual::Underflow { bytes: (expected - actual) as u32 },
            actual if actual > expected => {
                Residual::Overflow { bytes: (actual - expected).min(u64::from(u32::MAX)) as u32 }
            }
            _ => Residual::None,
        }
    }

    fn flag_and_bytes(self) -> (u8, u32) {
        match self {
            Residual::None => (0, 0),
            Residual::Underflow { bytes } => (0x02, bytes),
            Residual::Overflow { bytes } => (0x04, bytes),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ManageResult {
    Done = 0,
    NoSuchTask = 1,
    NoSuchLun = 2,
    Unsupported = 5,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Response {
    Nop {
        task: u32,
        lun: u64,
    },
    /// Asks an idle initiator whether it is there.
    Ping {
        transfer: u32,
    },
    Command {
        task: u32,
        status: u8,
        residual: Residual,
        /// Data-In PDUs that were sent.
        data_count: u32,
    },
    Manage {
        task: u32,
        result: ManageResult,
    },
    Login {
        task: u32,
        transit: bool,
        more: bool,
        stage: u8,
        next_stage: u8,
        isid: [u8; 6],
        tsih: u16,
        status: u16,
    },
    Text {
        task: u32,
        is_final: bool,
        more: bool,
        transfer: u32,
    },
    DataIn {
        task: u32,
        is_final: bool,
        /// A good status, with which the command ends.
        ends: Option<Residual>,
        data_sn: u32,
        offset_bytes: u32,
    },
    /// Asks for data of a write.
    Ready {
        task: u32,
        lun: u64,
        transfer: u32,
        r2t_sn: u32,
        offset_bytes: u32,
        wanted_bytes: u32,
    },
    Logout {
        task: u32,
        result: u8,
    },
    Reject {
        reason: RejectReason,
    },
}

impl Response {
    /// Whether it carries a status, and with it a number of its own.
    pub fn has_status(&self) -> bool {
        !matches!(self, Response::DataIn { ends: None, .. } | Response::Ready { .. } | Response::Ping { .. })
    }

    /// The head; the lengths of more headers and data are left 0.
    pub fn encode(&self, numbers: &Numbers) -> Head {
        let mut head = [0u8; HEAD_BYTES];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        let word = u32::to_be_bytes;
        put(24, &word(numbers.stat_sn));
        put(28, &word(numbers.exp_cmd_sn));
        put(32, &word(numbers.max_cmd_sn));
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        match *self {
            Response::Nop { task, lun } => {
                put(0, &[0x20, FINAL]);
                put(8, &lun.to_be_bytes());
                put(16, &word(task));
                put(20, &word(NO_TAG));
            }
            Response::Ping { transfer } => {
                put(0, &[0x20, FINAL]);
                put(16, &word(NO_TAG));
                put(20, &word(transfer));
            }
            Response::Command { task, status, residual, data_count } => {
                let (flags, bytes) = residual.flag_and_bytes();
                put(0, &[0x21, FINAL | flags, 0, status]);
                put(16, &word(task));
                put(36, &word(data_count));
                put(44, &word(bytes));
            }
            Response::Manage { task, result } => {
                put(0, &[0x22, FINAL, result as u8]);
                put(16, &word(task));
            }
            Response::Login { task, transit, more, stage, next_stage, isid, tsih, status } => {
                let stages = stage << 2 | if transit { next_stage } else { 0 };
                put(0, &[0x23, flag(transit, FINAL) | flag(more, CONTINUE) | stages]);
                put(8, &isid);
                put(14, &tsih.to_be_bytes());
                put(16, &word(task));
                put(36, &status.to_be_bytes());
            }
            Response::Text { task, is_final, more, transfer } => {
                put(0, &[0x24, flag(is_final, FINAL) | flag(more, CONTINUE)]);
                put(16, &word(task));
                put(20, &word(transfer));
            }
            Response::DataIn { task, is_final, ends, data_sn, offset_bytes } => {
                let (flags, bytes) = ends.map_or((0, 0), Residual::flag_and_bytes);
                put(0, &[0x25, flag(is_final, FINAL) | flag(ends.is_some(), 0x01) | flags]);
                put(16, &word(task));
                put(20, &word(NO_TAG));
                if ends.is_none() {
                    put(24, &word(0));
                }
                put(36, &word(data_sn));
                put(40, &word(offset_bytes));
                put(44, &word(bytes));
            }
            Response::Ready { task, lun, transfer, r2t_sn, offset_bytes, wanted_bytes } => {
                put(0, &[0x31, FINAL]);
                put(8, &lun.to_be_bytes());
                put(16, &word(task));
                put(20, &word(transfer));
                put(36, &word(r2t_sn));
                put(40, &word(offset_bytes));
                put(44, &word(wanted_bytes));
            }
            Response::Logout { task, result } => {
                put(0, &[0x26, FINAL, result]);
                put(16, &word(task));
            }
            Response::Reject { reason } => {
                put(0, &[0x3f, FINAL, reason as u8]);
                put(16, &word(NO_TAG));
            }
        }
        Head(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes from hexadecimal digits, filled up with zeros.
    fn head(text: &str) -> Head {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).expect("a digit")).collect();
        let mut bytes = [0; HEAD_BYTES];
        digits.chunks(2).zip(&mut bytes).for_each(|(pair, byte)| *byte = pair[0] << 4 | pair[1]);
        Head(bytes)
    }

    #[test]
    fn golden_requests() {
        // READ (10) of 8 blocks at 0x1234, as an initiator sends it.
        let read = head(
            "01c10000 00000000 0001000000000000 00000007 00001000 00000009 00000005 2800000012340000 0800000000000000",
        );
        let Request::Command(command) = Request::decode(&read).unwrap() else { panic!("a command") };
        assert!(command.reads && !command.writes && command.is_final && !command.order.immediate);
        assert_eq!((command.task, command.lun, command.order.cmd_sn), (7, 1 << 48, 9));
        assert_eq!((command.expected_bytes, command.cdb[0], command.cdb[8]), (4096, 0x28, 8));

        let login = head("43870000 0000002c 400000000001 0000 00000001 0000 0000 00000002 00000000");
        let Request::Login(login) = Request::decode(&login).unwrap() else { panic!("a login") };
        assert!(login.transit && !login.more);
        assert_eq!((login.stage, login.next_stage, login.cmd_sn), (1, 3, 2));
        assert_eq!(login.isid, [0x40, 0, 0, 0, 0, 1]);

        let data = head(
            "05800000 00000200 0000000000000000 00000007 00000003 00000000 00000005 00000000 00000001 00000400",
        );
        assert_eq!(
            Request::decode(&data).unwrap(),
            Request::DataOut(DataOut {
                task: 7,
                transfer: 3,
                is_final: true,
                data_sn: 1,
                offset_bytes: 1024
            })
        );
        assert_eq!(data.data_bytes(), 512);

        let abort = head("42810000 00000000 0000000000000000 00000008 00000007 00000009 00000005");
        let Request::Manage { what, order, .. } = Request::decode(&abort).unwrap() else { panic!("a TMF") };
        assert_eq!((what, order.immediate), (Manage::AbortTask { task: 7 }, true));

        assert_eq!(Request::decode(&head("10")), Err(RejectReason::SnackReject));
        assert_eq!(Request::decode(&head("3e")), Err(RejectReason::NotSupported));
    }

    #[test]
    fn golden_responses() {
        let numbers = Numbers { stat_sn: 5, exp_cmd_sn: 10, max_cmd_sn: 137 };
        let encoded = |response: Response| response.encode(&numbers);
        let residual = Residual::between(4096, 36);
        assert_eq!(
            encoded(Response::Command { task: 7, status: 2, residual, data_count: 0 }),
            head(
                "21820002 00000000 0000000000000000 00000007 00000000 00000005 0000000a 00000089 00000000 00000000 00000fdc"
            )
        );
        assert_eq!(
            encoded(Response::DataIn {
                task: 7,
                is_final: true,
                ends: Some(residual),
                data_sn: 1,
                offset_bytes: 512
            }),
            head(
                "25830000 00000000 0000000000000000 00000007 ffffffff 00000005 0000000a 00000089 00000001 00000200 00000fdc"
            )
        );
        assert_eq!(
            encoded(Response::Ready {
                task: 7,
                lun: 1 << 48,
                transfer: 3,
                r2t_sn: 0,
                offset_bytes: 512,
                wanted_bytes: 1024
            }),
            head(
                "31800000 00000000 0001000000000000 00000007 00000003 00000005 0000000a 00000089 00000000 00000200 00000400"
            )
        );
        assert_eq!(
            encoded(Response::Login {
                task: 1,
                transit: true,
                more: false,
                stage: 1,
                next_stage: 3,
                isid: [0x40, 0, 0, 0, 0, 1],
                tsih: 2,
                status: 0
            }),
            head("23870000 00000000 400000000001 0002 00000001 00000000 00000005 0000000a 00000089 00000000")
        );
    }

    #[test]
    fn numbers_wrap() {
        assert!(is_before(u32::MAX, 0) && is_before(1, 2) && !is_before(2, 2) && !is_before(0, u32::MAX));
        assert_eq!(Residual::between(10, 12), Residual::Overflow { bytes: 2 });
        assert_eq!([0, 1, 4, 5].map(padding_bytes), [0, 3, 0, 3]);
    }

    proptest! {
        #[test]
        fn any_head_is_a_request_or_refused(bytes in any::<[u8; 16]>(), more in any::<[u8; 32]>()) {
            let head = Head([&bytes[..], &more[..]].concat().try_into().unwrap());
            let _ = Request::decode(&head);
            prop_assert!(head.data_bytes() < 1 << 24 && head.more_bytes() <= 1020);
        }
    }
}
