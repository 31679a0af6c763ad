//! Command descriptor blocks -> [`Command`], and the list of those that are understood.

use super::sense::Sense;

/// Blocks of the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocks {
    pub lba: u64,
    pub count: u64,
}

/// What is compared with the data that the initiator sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compare {
    /// Nothing: it is enough that the blocks can be read.
    Nothing,
    All,
    /// Each block with the one that was sent.
    OneBlock,
}

/// Which values of a mode page are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageControl {
    Current,
    Changeable,
    Default,
    Saved,
}

/// Headers of mode parameters have two sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModeHeader {
    Six,
    Ten,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PersistentIn {
    Keys,
    Reservation,
    Capabilities,
    FullStatus,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PersistentOut {
    Register,
    Reserve,
    Release,
    Clear,
    Preempt,
    PreemptAndAbort,
    RegisterAndIgnore,
}

/// What REPORT SUPPORTED OPERATION CODES asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhichCommands {
    All,
    Opcode {
        opcode: u8,
    },
    ServiceAction {
        opcode: u8,
        action: u16,
    },
    /// One command, whether it has service actions or not.
    Either {
        opcode: u8,
        action: u16,
    },
}

/// `room_bytes`: how much data the initiator wants at most (its ALLOCATION LENGTH).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptors: bool,
        room_bytes: usize,
    },
    Inquiry {
        page: Option<u8>,
        room_bytes: usize,
    },
    ReportLuns {
        select: u8,
        room_bytes: usize,
    },
    ReadCapacity10,
    ReadCapacity16 {
        room_bytes: usize,
    },
    GetLbaStatus {
        lba: u64,
        room_bytes: usize,
    },
    ModeSense {
        header: ModeHeader,
        control: PageControl,
        page: u8,
        subpage: u8,
        no_blocks: bool,
        room_bytes: usize,
    },
    ModeSelect {
        header: ModeHeader,
        list_bytes: usize,
    },
    Read {
        blocks: Blocks,
    },
    Write {
        blocks: Blocks,
        fua: bool,
    },
    WriteAndVerify {
        blocks: Blocks,
        compare: Compare,
    },
    Verify {
        blocks: Blocks,
        compare: Compare,
    },
    Prefetch {
        blocks: Blocks,
    },
    SynchronizeCache {
        blocks: Blocks,
    },
    Unmap {
        list_bytes: usize,
    },
    WriteSame {
        blocks: Blocks,
        unmap: bool,
        no_data: bool,
    },
    CompareAndWrite {
        blocks: Blocks,
        fua: bool,
    },
    PersistentIn {
        what: PersistentIn,
        room_bytes: usize,
    },
    PersistentOut {
        what: PersistentOut,
        scope_and_kind: u8,
        list_bytes: usize,
    },
    Reserve,
    Release,
    ReportCommands {
        which: WhichCommands,
        timeouts: bool,
        room_bytes: usize,
    },
    ReportManagement {
        room_bytes: usize,
    },
    ReportPortGroups {
        extended: bool,
        room_bytes: usize,
    },
    StartStop,
    PreventAllow,
}

/// Which bits of a command mean something: of its bytes from the first; the last ones count for the service action too.
pub struct Known {
    pub opcode: u8,
    pub action: Option<u16>,
    pub usage: &'static [u8],
}

const fn known(opcode: u8, action: Option<u16>, usage: &'static [u8]) -> Known {
    Known { opcode, action, usage }
}

/// All that [`Command::parse`] understands.
#[rustfmt::skip]
pub const KNOWN: &[Known] = &[
    known(0x00, None, &[0x00, 0, 0, 0, 0, 0]),
    known(0x03, None, &[0x03, 0x01, 0, 0, 0xff, 0]),
    known(0x08, None, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    known(0x0a, None, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    known(0x12, None, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    known(0x15, None, &[0x15, 0x11, 0, 0, 0xff, 0]),
    known(0x16, None, &[0x16, 0, 0, 0, 0, 0]),
    known(0x17, None, &[0x17, 0, 0, 0, 0, 0]),
    known(0x1a, None, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    known(0x1b, None, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
    known(0x1e, None, &[0x1e, 0, 0, 0, 0x03, 0]),
    known(0x25, None, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    known(0x28, None, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x2a, None, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x2e, None, &[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x2f, None, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x34, None, &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x35, None, &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x41, None, &[0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    known(0x42, None, &[0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x55, None, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x56, None, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    known(0x57, None, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    known(0x5a, None, &[0x5a, 0x08, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x5e, Some(0), &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x5e, Some(1), &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x5e, Some(2), &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x5e, Some(3), &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    known(0x5f, Some(0), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x5f, Some(1), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x5f, Some(2), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x5f, Some(3), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x5f, Some(4), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x5f, Some(5), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x5f, Some(6), &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    known(0x88, None, &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x89, None, &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0]),
    known(0x8a, None, &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x8e, None, &[0x8e, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x8f, None, &[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x90, None, &[0x90, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x91, None, &[0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x93, None, &[0x93, 0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x9e, Some(0x10), &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0x9e, Some(0x12), &[0x9e, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xa0, None, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xa3, Some(0x0a), &[0xa3, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xa3, Some(0x0c), &[0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xa3, Some(0x0d), &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xa8, None, &[0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xaa, None, &[0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xae, None, &[0xae, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    known(0xaf, None, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// A block with names for its parts.
struct Cdb<'a>(&'a [u8; 16]);

impl Cdb<'_> {
    fn short(&self, at: usize) -> usize {
        usize::from(u16::from_be_bytes(self.0[at..at + 2].try_into().expect("2 bytes")))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("4 bytes"))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    fn has(&self, at: usize, bit: u8) -> bool {
        self.0[at] & bit != 0
    }

    fn action(&self) -> u8 {
        self.0[1] & 0x1f
    }

    /// The blocks of a command of 6, 10, 12 or 16 bytes, all of which have them at the same places.
    fn blocks(&self) -> Blocks {
        match self.0[0] >> 5 {
            0 => {
                let count = if self.0[4] == 0 { 256 } else { u64::from(self.0[4]) };
                Blocks { lba: u64::from(self.word(0) & 0x1f_ffff), count }
            }
            1 | 2 => Blocks { lba: self.word(2).into(), count: self.short(7) as u64 },
            5 => Blocks { lba: self.word(2).into(), count: self.word(6).into() },
            _ => Blocks { lba: self.long(2), count: self.word(10).into() },
        }
    }

    fn compare(&self) -> Result<Compare, Sense> {
        match self.0[1] >> 1 & 3 {
            0 => Ok(Compare::Nothing),
            1 => Ok(Compare::All),
            3 => Ok(Compare::OneBlock),
            _ => Err(Sense::INVALID_FIELD),
        }
    }

    /// Blocks have no protection information.
    fn unprotected(&self) -> Result<(), Sense> {
        if self.has(1, 0xe0) { Err(Sense::INVALID_FIELD) } else { Ok(()) }
    }

    fn mode_sense(&self, header: ModeHeader, room_bytes: usize) -> Command {
        let control = match self.0[2] >> 6 {
            0 => PageControl::Current,
            1 => PageControl::Changeable,
            2 => PageControl::Default,
            _ => PageControl::Saved,
        };
        let (page, subpage) = (self.0[2] & 0x3f, self.0[3]);
        Command::ModeSense { header, control, page, subpage, no_blocks: self.has(1, 0x08), room_bytes }
    }

    fn mode_select(&self, header: ModeHeader, list_bytes: usize) -> Result<Command, Sense> {
        // Pages of the standard's format, and none is saved.
        if !self.has(1, 0x10) || self.has(1, 0x01) {
            return Err(Sense::INVALID_FIELD);
        }
        Ok(Command::ModeSelect { header, list_bytes })
    }

    fn report_commands(&self) -> Result<Command, Sense> {
        let (opcode, action) = (self.0[3], self.short(4) as u16);
        let which = match self.0[2] & 7 {
            0 => WhichCommands::All,
            1 => WhichCommands::Opcode { opcode },
            2 => WhichCommands::ServiceAction { opcode, action },
            3 => WhichCommands::Either { opcode, action },
            _ => return Err(Sense::INVALID_FIELD),
        };
        let room_bytes = self.word(6) as usize;
        Ok(Command::ReportCommands { which, timeouts: self.has(2, 0x80), room_bytes })
    }
}

impl Command {
    pub fn parse(cdb: &[u8; 16]) -> Result<Command, Sense> {
        let c = Cdb(cdb);
        let (opcode, blocks) = (cdb[0], c.blocks());
        Ok(match opcode {
            0x00 => Command::TestUnitReady,
            0x03 => Command::RequestSense { descriptors: c.has(1, 1), room_bytes: cdb[4].into() },
            0x12 => {
                let page = c.has(1, 1).then_some(cdb[2]);
                if page.is_none() && cdb[2] != 0 {
                    return Err(Sense::INVALID_FIELD);
                }
                Command::Inquiry { page, room_bytes: c.short(3) }
            }
            0x15 => c.mode_select(ModeHeader::Six, cdb[4].into())?,
            0x55 => c.mode_select(ModeHeader::Ten, c.short(7))?,
            0x16 | 0x56 => Command::Reserve,
            0x17 | 0x57 => Command::Release,
            0x1a => c.mode_sense(ModeHeader::Six, cdb[4].into()),
            0x5a => c.mode_sense(ModeHeader::Ten, c.short(7)),
            0x1b => Command::StartStop,
            0x1e => Command::PreventAllow,
            0x25 => Command::ReadCapacity10,
            0x08 => Command::Read { blocks },
            0x28 | 0xa8 | 0x88 => c.unprotected().map(|()| Command::Read { blocks })?,
            0x0a => Command::Write { blocks, fua: false },
            0x2a | 0xaa | 0x8a => c.unprotected().map(|()| Command::Write { blocks, fua: c.has(1, 8) })?,
            0x2e | 0xae | 0x8e => {
                c.unprotected()?;
                Command::WriteAndVerify { blocks, compare: c.compare()? }
            }
            0x2f | 0xaf | 0x8f => {
                c.unprotected()?;
                Command::Verify { blocks, compare: c.compare()? }
            }
            0x34 | 0x90 => Command::Prefetch { blocks },
            0x35 | 0x91 => Command::SynchronizeCache { blocks },
            0x41 | 0x93 => {
                c.unprotected()?;
                // ANCHOR; and with WRITE SAME (10), LBDATA and PBDATA of old are refused too.
                if c.has(1, 0x16) {
                    return Err(Sense::INVALID_FIELD);
                }
                let no_data = opcode == 0x93 && c.has(1, 1);
                Command::WriteSame { blocks, unmap: c.has(1, 8), no_data }
            }
            // ANCHOR
            0x42 if c.has(1, 1) => return Err(Sense::INVALID_FIELD),
            0x42 => Command::Unmap { list_bytes: c.short(7) },
            0x89 => {
                c.unprotected()?;
                let blocks = Blocks { lba: c.long(2), count: cdb[13].into() };
                Command::CompareAndWrite { blocks, fua: c.has(1, 8) }
            }
            0x5e => {
                let what = match c.action() {
                    0 => PersistentIn::Keys,
                    1 => PersistentIn::Reservation,
                    2 => PersistentIn::Capabilities,
                    3 => PersistentIn::FullStatus,
                    _ => return Err(Sense::INVALID_FIELD),
                };
                Command::PersistentIn { what, room_bytes: c.short(7) }
            }
            0x5f => {
                let what = match c.action() {
                    0 => PersistentOut::Register,
                    1 => PersistentOut::Reserve,
                    2 => PersistentOut::Release,
                    3 => PersistentOut::Clear,
                    4 => PersistentOut::Preempt,
                    5 => PersistentOut::PreemptAndAbort,
                    6 => PersistentOut::RegisterAndIgnore,
                    _ => return Err(Sense::INVALID_FIELD),
                };
                Command::PersistentOut { what, scope_and_kind: cdb[2], list_bytes: c.word(5) as usize }
            }
            0x9e => match c.action() {
                0x10 => Command::ReadCapacity16 { room_bytes: c.word(10) as usize },
                0x12 => Command::GetLbaStatus { lba: c.long(2), room_bytes: c.word(10) as usize },
                _ => return Err(Sense::INVALID_FIELD),
            },
            0xa0 => Command::ReportLuns { select: cdb[2], room_bytes: c.word(6) as usize },
            0xa3 => match c.action() {
                0x0a => {
                    Command::ReportPortGroups { extended: cdb[1] >> 5 == 1, room_bytes: c.word(6) as usize }
                }
                0x0c => c.report_commands()?,
                0x0d => Command::ReportManagement { room_bytes: c.word(6) as usize },
                _ => return Err(Sense::INVALID_FIELD),
            },
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }
}

/// The answer to REPORT SUPPORTED OPERATION CODES.
pub fn report(which: WhichCommands, timeouts: bool) -> Result<Vec<u8>, Sense> {
    // No time limits are known: the descriptor says so with zeros.
    const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let one = |found: Option<&Known>| {
        let (support, usage) = found.map_or((1, &[][..]), |known| (3, known.usage));
        let flags = support | if timeouts && found.is_some() { 0x80 } else { 0 };
        let mut out = vec![0, flags, 0, usage.len() as u8];
        out.extend_from_slice(usage);
        out.extend_from_slice(if flags & 0x80 != 0 { &TIMEOUTS } else { &[] });
        out
    };
    let has_actions = |code: u8| KNOWN.iter().any(|k| k.opcode == code && k.action.is_some());
    match which {
        WhichCommands::All => {
            let mut out = vec![0; 4];
            for known in KNOWN {
                let flags = u8::from(known.action.is_some()) | if timeouts { 2 } else { 0 };
                out.extend([known.opcode, 0]);
                out.extend(known.action.unwrap_or(0).to_be_bytes());
                out.extend([0, flags, 0, known.usage.len() as u8]);
                out.extend_from_slice(if timeouts { &TIMEOUTS } else { &[] });
            }
            let bytes = out.len() as u32 - 4;
            out[..4].copy_from_slice(&bytes.to_be_bytes());
            Ok(out)
        }
        WhichCommands::Opcode { opcode } if has_actions(opcode) => Err(Sense::INVALID_FIELD),
        WhichCommands::Opcode { opcode } => Ok(one(KNOWN.iter().find(|k| k.opcode == opcode))),
        WhichCommands::ServiceAction { opcode, action } => {
            let is_plain = KNOWN.iter().any(|k| k.opcode == opcode && k.action.is_none());
            if is_plain {
                return Err(Sense::INVALID_FIELD);
            }
            Ok(one(KNOWN.iter().find(|k| k.opcode == opcode && k.action == Some(action))))
        }
        WhichCommands::Either { opcode, action } => {
            let is_it = |k: &&Known| k.opcode == opcode && k.action.unwrap_or(action) == action;
            Ok(one(KNOWN.iter().find(is_it)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cdb(bytes: &[u8]) -> [u8; 16] {
        let mut out = [0; 16];
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    #[test]
    fn all_that_is_listed_is_understood_and_nothing_else() {
        for opcode in 0..=255u8 {
            for action in 0..32u8 {
                // UNMAP's lowest bit is ANCHOR, page format must be set to select modes.
                let second = match opcode {
                    0x15 | 0x55 => 0x10,
                    0x5e | 0x5f | 0x9e | 0xa3 => action,
                    _ => 0,
                };
                let parsed = Command::parse(&cdb(&[opcode, second]));
                let listed = KNOWN
                    .iter()
                    .any(|k| k.opcode == opcode && k.action.is_none_or(|a| a == u16::from(action)));
                assert_eq!(parsed.is_ok(), listed, "{opcode:#x} {action:#x}: {parsed:?}");
            }
        }
        assert!(KNOWN.iter().all(|k| k.opcode == k.usage[0]));
    }

    #[test]
    fn blocks_are_found_in_each_size() {
        let read = |bytes: &[u8]| match Command::parse(&cdb(bytes)).unwrap() {
            Command::Read { blocks } => (blocks.lba, blocks.count),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(&[0x08, 0x01, 2, 3, 4, 0]), (0x10203, 4));
        assert_eq!(read(&[0x08, 0, 0, 0, 0, 0]), (0, 256));
        assert_eq!(read(&[0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]), (0x1020304, 0x506));
        assert_eq!(read(&[0xa8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]), (0x1020304, 0x5060708));
        assert_eq!(
            read(&[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0]),
            (0x102030405060708, 0x90a0b0c)
        );
        assert_eq!(Command::parse(&cdb(&[0x28, 0x20])), Err(Sense::INVALID_FIELD));
        assert_eq!(Command::parse(&cdb(&[0x2f, 0x04])), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn commands_are_reported() {
        let all = report(WhichCommands::All, false).unwrap();
        assert_eq!(all.len(), 4 + 8 * KNOWN.len());
        let read = report(WhichCommands::Opcode { opcode: 0x28 }, true).unwrap();
        assert_eq!((read[1], read[3], read.len()), (0x83, 10, 4 + 10 + 12));
        assert_eq!(report(WhichCommands::Opcode { opcode: 0x5e }, false), Err(Sense::INVALID_FIELD));
        assert_eq!(report(WhichCommands::Opcode { opcode: 0xff }, true).unwrap(), [0, 1, 0, 0]);
        let some = report(WhichCommands::ServiceAction { opcode: 0x9e, action: 0x10 }, false).unwrap();
        assert_eq!(some[1], 3);
    }

    proptest! {
        #[test]
        fn any_block_is_a_command_or_refused(bytes in any::<[u8; 16]>()) {
            if let Ok(Command::ReportCommands { which, timeouts, .. }) = Command::parse(&bytes) {
                let _ = report(which, timeouts);
            }
        }
    }
}
