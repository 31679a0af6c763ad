//! Why a command did not do what it was to do: sense data (SPC-4, section 4.5).

/// Sense keys.
const NO_SENSE: u8 = 0;
const NOT_READY: u8 = 2;
const MEDIUM_ERROR: u8 = 3;
const HARDWARE_ERROR: u8 = 4;
const ILLEGAL_REQUEST: u8 = 5;
const UNIT_ATTENTION: u8 = 6;
const DATA_PROTECT: u8 = 7;
const ABORTED_COMMAND: u8 = 0xb;
const MISCOMPARE: u8 = 0xe;

/// What happened to the unit that an initiator is told with its next command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attention {
    PowerOn = 0x2900,
    Reset = 0x2903,
    ModeChanged = 0x2a01,
    ReservationsPreempted = 0x2a03,
    ReservationsReleased = 0x2a04,
    RegistrationsPreempted = 0x2a05,
    CapacityChanged = 0x2a09,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sense {
    key: u8,
    /// Additional sense code and its qualifier.
    code: u16,
    /// A number that says more: where bytes differ.
    information: Option<u64>,
}

impl Sense {
    const fn new(key: u8, code: u16) -> Sense {
        Sense { key, code, information: None }
    }

    pub const NONE: Sense = Sense::new(NO_SENSE, 0);
    pub const INVALID_OPCODE: Sense = Sense::new(ILLEGAL_REQUEST, 0x2000);
    pub const OUT_OF_RANGE: Sense = Sense::new(ILLEGAL_REQUEST, 0x2100);
    pub const INVALID_FIELD: Sense = Sense::new(ILLEGAL_REQUEST, 0x2400);
    pub const NO_SUCH_UNIT: Sense = Sense::new(ILLEGAL_REQUEST, 0x2500);
    pub const INVALID_PARAMETER: Sense = Sense::new(ILLEGAL_REQUEST, 0x2600);
    pub const INVALID_RELEASE: Sense = Sense::new(ILLEGAL_REQUEST, 0x2604);
    pub const LIST_LENGTH: Sense = Sense::new(ILLEGAL_REQUEST, 0x1a00);
    pub const SAVING_UNSUPPORTED: Sense = Sense::new(ILLEGAL_REQUEST, 0x3900);
    pub const WRITE_PROTECTED: Sense = Sense::new(DATA_PROTECT, 0x2700);
    pub const NO_SPACE: Sense = Sense::new(DATA_PROTECT, 0x2707);
    pub const READ_FAILED: Sense = Sense::new(MEDIUM_ERROR, 0x1100);
    pub const WRITE_FAILED: Sense = Sense::new(MEDIUM_ERROR, 0x0c00);
    /// This port is no way to the unit any more.
    pub const PORT_UNAVAILABLE: Sense = Sense::new(NOT_READY, 0x040c);
    /// Data did not come as it was asked for.
    pub const DATA_PHASE: Sense = Sense::new(ABORTED_COMMAND, 0x4b00);
    pub const INTERNAL: Sense = Sense::new(HARDWARE_ERROR, 0x4400);

    pub fn attention(what: Attention) -> Sense {
        Sense::new(UNIT_ATTENTION, what as u16)
    }

    pub fn miscompare(at_byte: u64) -> Sense {
        Sense { information: Some(at_byte), ..Sense::new(MISCOMPARE, 0x1d00) }
    }

    /// As it is sent, in the format that the initiator has chosen.
    pub fn encode(&self, descriptors: bool) -> Vec<u8> {
        let [code, qualifier] = self.code.to_be_bytes();
        if descriptors {
            let mut out = vec![0x72, self.key, code, qualifier, 0, 0, 0, 0];
            if let Some(information) = self.information {
                out[7] = 12;
                out.extend([0, 10, 0x80, 0]);
                out.extend(information.to_be_bytes());
            }
            return out;
        }
        let mut out = vec![0; 18];
        (out[0], out[2], out[7], out[12], out[13]) = (0x70, self.key, 10, code, qualifier);
        if let Some(information) = self.information.and_then(|i| u32::try_from(i).ok()) {
            out[0] |= 0x80;
            out[3..7].copy_from_slice(&information.to_be_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_sense() {
        assert_eq!(
            Sense::INVALID_FIELD.encode(false),
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Sense::miscompare(0x201).encode(false),
            [0xf0, 0, 14, 0, 0, 2, 1, 10, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Sense::miscompare(1).encode(true),
            [0x72, 14, 0x1d, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        );
    }
}
