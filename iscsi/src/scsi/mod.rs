//! The block device behind a LUN (SPC-4, SBC-3), as all initiators and connections share it.
//!
//! [`LogicalUnit::begin`] answers a command, or gives a [`Job`] that says step by step what to do on the medium. Who drives it calls
//! [`LogicalUnit::end`] when a job has its reply. Nothing here waits, and nothing knows where the blocks lie.
//!
//! - [`cdb`]: commands; [`sense`]: errors; [`inquiry`], [`mode`]: what the unit says of itself;
//! - [`reservation`]: who may use it; [`locks`]: what must not meet; [`job`]: steps on the medium.
//!
//! Writes are durable when they are answered, so there is no write cache, FUA changes nothing, and SYNCHRONIZE CACHE has
//! little to do. Unmapped blocks read as zeros.

pub mod cdb;
pub mod inquiry;
pub mod job;
pub mod locks;
pub mod mode;
pub mod reservation;
pub mod sense;

use crate::Nexus;
use cdb::{Blocks, Command, Compare, PersistentIn, PersistentOut};
use inquiry::Identity;
use job::Then;
use locks::{Claim, Locks};
use mode::Modes;
use reservation::{Access, Refused, Reservations};
use sense::{Attention, Sense};
use shards::{Buf, BufMut};
use std::collections::{HashMap, VecDeque};

pub use job::{Answer, Failure, Job, Medium, Step};
pub use locks::JobId;

/// Longest read, write or comparison.
pub const MAX_TRANSFER_BYTES: usize = 8 << 20;
/// Blocks that COMPARE AND WRITE takes.
const MAX_COMPARE_BLOCKS: u8 = 128;
/// Bytes that one WRITE SAME writes: no more than a write, as initiators compare the two.
const MAX_SAME_BYTES: u64 = MAX_TRANSFER_BYTES as u64;
/// Bytes of one piece of it.
const SAME_PIECE_BYTES: usize = 1 << 20;
/// Bytes and ranges that one UNMAP frees.
const MAX_UNMAP_BYTES: u64 = 512 << 20;
const MAX_UNMAP_RANGES: usize = 256;
/// The medium gives room back in pieces of this size.
const UNMAP_GRAIN_BYTES: u32 = 64 << 10;
/// The medium writes whole blocks of this size; smaller writes read first.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockSize {
    B512,
    B4096,
}

impl BlockSize {
    pub fn from_bytes(bytes: u32) -> Option<BlockSize> {
        match bytes {
            512 => Some(BlockSize::B512),
            4096 => Some(BlockSize::B4096),
            _ => None,
        }
    }

    pub fn bytes(self) -> u32 {
        match self {
            BlockSize::B512 => 512,
            BlockSize::B4096 => 4096,
        }
    }

    pub fn bytes_u64(self) -> u64 {
        self.bytes().into()
    }
}

/// How much one command may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub transfer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { transfer_bytes: MAX_TRANSFER_BYTES }
    }
}

impl Limits {
    /// The page of block limits, without its head.
    fn page(&self, block: BlockSize) -> Vec<u8> {
        let in_blocks = |bytes: u64| (bytes / block.bytes_u64()) as u32;
        // Lengths of 0 are refused in WRITE SAME (WSNZ).
        let mut out = vec![1, MAX_COMPARE_BLOCKS];
        out.extend(((PHYSICAL_BLOCK_BYTES / block.bytes()) as u16).to_be_bytes());
        for number in [
            in_blocks(self.transfer_bytes as u64),
            in_blocks(1 << 20),
            0,
            in_blocks(MAX_UNMAP_BYTES),
            MAX_UNMAP_RANGES as u32,
            in_blocks(UNMAP_GRAIN_BYTES.into()),
            // Aligned to block 0.
            1 << 31,
        ] {
            out.extend(number.to_be_bytes());
        }
        out.extend((MAX_SAME_BYTES / block.bytes_u64()).to_be_bytes());
        out.resize(60, 0);
        out
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Good = 0,
    CheckCondition = 2,
    ReservationConflict = 0x18,
}

/// How a command ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    pub status: Status,
    /// Sense data, encoded.
    pub sense: Vec<u8>,
    pub data: Buf,
    /// Data that the command took from the initiator.
    pub taken_bytes: u64,
}

impl Reply {
    pub fn good(data: Buf) -> Reply {
        Reply { status: Status::Good, sense: Vec::new(), data, taken_bytes: 0 }
    }

    pub fn check(sense: Sense, descriptors: bool) -> Reply {
        Reply {
            status: Status::CheckCondition,
            sense: sense.encode(descriptors),
            data: Buf::empty(),
            taken_bytes: 0,
        }
    }

    fn conflict() -> Reply {
        Reply { status: Status::ReservationConflict, ..Reply::good(Buf::empty()) }
    }
}

/// What a command needs.
pub enum Begun {
    Done(Reply),
    Run(Job),
    /// As `Run`, but not before [`LogicalUnit::end`] of another job names it.
    Wait(Job),
}

/// Why a command is refused at once.
enum Refusal {
    Sense(Sense),
    Conflict,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Refusal::Sense(sense)
    }
}

/// What a command asks of the medium, before it is a job.
#[derive(Default)]
struct Work {
    ops: VecDeque<(Medium, Then)>,
    claim: Option<Claim>,
    is_write: bool,
    taken_bytes: u64,
    room_bytes: usize,
}

impl Work {
    fn op(medium: Medium, then: Then) -> Work {
        Work { ops: VecDeque::from([(medium, then)]), ..Work::default() }
    }
}

enum Outcome {
    Data(Vec<u8>),
    Work(Work),
}

/// What is to be known of a unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitConfig {
    pub identity: Identity,
    pub block: BlockSize,
    pub size_bytes: u64,
    pub read_only: bool,
}

pub struct LogicalUnit {
    config: UnitConfig,
    limits: Limits,
    modes: Modes,
    /// The reservation of old (SPC-2): ends with its session, or a reset.
    reserved_by: Option<Nexus>,
    reservations: Reservations,
    /// Sessions, and what they must be told.
    sessions: HashMap<Nexus, VecDeque<Attention>>,
    locks: Locks,
    next_job: u64,
}

/// Attentions of one session that are kept.
const MAX_ATTENTIONS: usize = 8;

impl LogicalUnit {
    pub fn new(config: UnitConfig, reservations: Reservations) -> LogicalUnit {
        LogicalUnit {
            config,
            limits: Limits::default(),
            modes: Modes::default(),
            reserved_by: None,
            reservations,
            sessions: HashMap::new(),
            locks: Locks::default(),
            next_job: 0,
        }
    }

    pub fn config(&self) -> &UnitConfig {
        &self.config
    }

    pub fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// A session began.
    pub fn connect(&mut self, nexus: &Nexus) {
        self.sessions.insert(nexus.clone(), VecDeque::from([Attention::PowerOn]));
    }

    /// A session ended.
    pub fn disconnect(&mut self, nexus: &Nexus) {
        self.sessions.remove(nexus);
        if self.reserved_by.as_ref() == Some(nexus) {
            self.reserved_by = None;
        }
    }

    /// LUN RESET: settings and the reservation of old go; those of PERSISTENT RESERVE stay.
    pub fn reset(&mut self) {
        self.reserved_by = None;
        self.modes = Modes::default();
        self.tell_all_but(None, Attention::Reset);
    }

    /// The unit has another size now.
    pub fn resize(&mut self, size_bytes: u64) {
        if self.config.size_bytes != size_bytes {
            self.config.size_bytes = size_bytes;
            self.tell_all_but(None, Attention::CapacityChanged);
        }
    }

    fn tell(&mut self, nexus: &Nexus, what: Attention) {
        if let Some(attentions) = self.sessions.get_mut(nexus)
            && !attentions.contains(&what)
            && attentions.len() < MAX_ATTENTIONS
        {
            attentions.push_back(what);
        }
    }

    fn tell_all_but(&mut self, nexus: Option<&Nexus>, what: Attention) {
        let others: Vec<Nexus> = self.sessions.keys().filter(|n| Some(*n) != nexus).cloned().collect();
        others.iter().for_each(|other| self.tell(other, what));
    }

    fn blocks(&self) -> u64 {
        self.config.size_bytes / self.config.block.bytes_u64()
    }

    fn check(&self, sense: Sense) -> Reply {
        Reply::check(sense, self.modes.descriptor_sense)
    }

    /// Begins a command. `data`: what the initiator sent with it.
    pub fn begin(&mut self, nexus: &Nexus, cdb: &[u8; 16], data: Buf) -> Begun {
        let command = match Command::parse(cdb) {
            Ok(command) => command,
            Err(sense) => return Begun::Done(self.check(sense)),
        };
        let told_at_once = matches!(
            command,
            Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. }
        );
        if !told_at_once && let Some(what) = self.sessions.get_mut(nexus).and_then(VecDeque::pop_front) {
            return Begun::Done(self.check(Sense::attention(what)));
        }
        if !self.may(nexus, &command) {
            return Begun::Done(Reply::conflict());
        }
        match self.perform(nexus, &command, data) {
            Ok(Outcome::Data(mut data)) => {
                data.truncate(room_of(&command));
                Begun::Done(Reply::good(Buf::metadata(&data)))
            }
            Ok(Outcome::Work(work)) => self.job(work),
            Err(Refusal::Conflict) => Begun::Done(Reply::conflict()),
            Err(Refusal::Sense(sense)) => Begun::Done(self.check(sense)),
        }
    }

    fn job(&mut self, work: Work) -> Begun {
        let Work { ops, claim, is_write, taken_bytes, room_bytes } = work;
        if ops.is_empty() {
            return Begun::Done(Reply { taken_bytes, ..Reply::good(Buf::empty()) });
        }
        self.next_job += 1;
        let id = JobId(self.next_job);
        let descriptor_sense = self.modes.descriptor_sense;
        let job = Job { id, ops, current: None, is_write, taken_bytes, room_bytes, descriptor_sense };
        match claim.is_none_or(|claim| self.locks.claim(id, claim)) {
            true => Begun::Run(job),
            false => Begun::Wait(job),
        }
    }

    /// Ends a job that was begun; those that may run now.
    pub fn end(&mut self, job: JobId) -> Vec<JobId> {
        self.locks.release(job)
    }

    /// Whether reservations let the initiator do this.
    fn may(&self, nexus: &Nexus, command: &Command) -> bool {
        let access = access_of(command);
        if let Some(holder) = &self.reserved_by
            && holder != nexus
        {
            // What the one who has it not is told that he gave it back.
            return access == Access::Free
                && !matches!(command, Command::PersistentIn { .. } | Command::PersistentOut { .. });
        }
        if matches!(command, Command::Reserve | Command::Release) {
            return self.reservations.registrants.is_empty();
        }
        self.reservations.allows(nexus, access)
    }

    fn perform(&mut self, nexus: &Nexus, command: &Command, data: Buf) -> Result<Outcome, Refusal> {
        let block = self.config.block;
        if changes_medium(command) && (self.config.read_only || self.modes.write_protected) {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        let nothing = || Ok(Outcome::Data(Vec::new()));
        match *command {
            Command::TestUnitReady | Command::StartStop | Command::PreventAllow => nothing(),
            Command::RequestSense { descriptors, .. } => {
                let told = self.sessions.get_mut(nexus).and_then(VecDeque::pop_front);
                Ok(Outcome::Data(told.map_or(Sense::NONE, Sense::attention).encode(descriptors)))
            }
            Command::Inquiry { page: None, .. } => Ok(Outcome::Data(self.config.identity.standard())),
            Command::Inquiry { page: Some(page), .. } => {
                let found = self.config.identity.page(page, block, &self.limits);
                Ok(Outcome::Data(found.ok_or(Sense::INVALID_FIELD)?))
            }
            // The list of all LUNs is the target's to give.
            Command::ReportLuns { .. } => Err(Sense::INTERNAL.into()),
            Command::ReadCapacity10 => {
                let last = u32::try_from(self.blocks() - 1).unwrap_or(u32::MAX);
                Ok(Outcome::Data([last.to_be_bytes(), block.bytes().to_be_bytes()].concat()))
            }
            Command::ReadCapacity16 { .. } => {
                let mut out = (self.blocks() - 1).to_be_bytes().to_vec();
                out.extend(block.bytes().to_be_bytes());
                let per_physical = (PHYSICAL_BLOCK_BYTES / block.bytes()).trailing_zeros() as u8;
                // Thin (LBPME), and what is unmapped reads as zeros (LBPRZ).
                out.extend([0, per_physical, 0xc0, 0]);
                out.resize(32, 0);
                Ok(Outcome::Data(out))
            }
            Command::GetLbaStatus { lba, room_bytes } => {
                let blocks = self.blocks();
                if lba >= blocks {
                    return Err(Sense::OUT_OF_RANGE.into());
                }
                let seek = Medium::Seek { offset_bytes: lba * block.bytes_u64(), hole: false };
                let work = Work::op(seek, Then::Status { lba, block, blocks });
                Ok(Outcome::Work(Work { room_bytes, ..work }))
            }
            Command::ModeSense { header, control, page, subpage, no_blocks, .. } => {
                let blocks = (!no_blocks).then(|| (self.blocks(), block));
                let sense =
                    self.modes.sense(header, control, (page, subpage), blocks, self.config.read_only)?;
                Ok(Outcome::Data(sense))
            }
            Command::ModeSelect { header, list_bytes } => {
                let modes = self.modes.select(header, &data, list_bytes)?;
                if modes != self.modes {
                    self.modes = modes;
                    self.tell_all_but(Some(nexus), Attention::ModeChanged);
                }
                Ok(Outcome::Work(Work { taken_bytes: list_bytes as u64, ..Work::default() }))
            }
            Command::Read { blocks } => {
                let (offset_bytes, length_bytes) = self.transfer(blocks)?;
                if length_bytes == 0 {
                    return nothing();
                }
                Ok(Outcome::Work(Work::op(Medium::Read { offset_bytes, length_bytes }, Then::Return)))
            }
            Command::Prefetch { blocks } | Command::SynchronizeCache { blocks } => {
                self.range(blocks)?;
                let flushes = matches!(command, Command::SynchronizeCache { .. });
                if flushes { Ok(Outcome::Work(Work::op(Medium::Flush, Then::Next))) } else { nothing() }
            }
            Command::Write { blocks, .. } => self.write(blocks, data, Compare::Nothing),
            Command::WriteAndVerify { blocks, compare } => {
                if compare == Compare::OneBlock {
                    return Err(Sense::INVALID_FIELD.into());
                }
                self.write(blocks, data, compare)
            }
            Command::Verify { blocks, compare } => self.verify(blocks, data, compare),
            Command::CompareAndWrite { blocks, .. } => self.compare_and_write(blocks, &data),
            Command::Unmap { list_bytes } => self.unmap(&data, list_bytes),
            Command::WriteSame { blocks, unmap, no_data } => self.write_same(blocks, unmap, no_data, &data),
            Command::PersistentIn { what, .. } => Ok(Outcome::Data(match what {
                PersistentIn::Keys => self.reservations.keys(),
                PersistentIn::Reservation => self.reservations.reservation(),
                PersistentIn::Capabilities => self.reservations.capabilities(),
                PersistentIn::FullStatus => self.reservations.full_status(),
            })),
            Command::PersistentOut { what, scope_and_kind, list_bytes } => {
                self.persist(nexus, what, scope_and_kind, &data, list_bytes)
            }
            Command::Reserve => {
                self.reserved_by = Some(nexus.clone());
                nothing()
            }
            Command::Release => {
                if self.reserved_by.as_ref() == Some(nexus) {
                    self.reserved_by = None;
                }
                nothing()
            }
            Command::ReportCommands { which, timeouts, .. } => {
                Ok(Outcome::Data(cdb::report(which, timeouts)?))
            }
            // Abort task and set, clear set, LUN and target resets.
            Command::ReportManagement { .. } => Ok(Outcome::Data(vec![0xda, 0, 0, 0])),
            Command::ReportPortGroups { extended, .. } => Ok(Outcome::Data(inquiry::port_groups(extended))),
        }
    }

    /// Offset and length in bytes of blocks that are there.
    fn range(&self, Blocks { lba, count }: Blocks) -> Result<(u64, u64), Sense> {
        let end = lba.checked_add(count).filter(|end| *end <= self.blocks());
        if end.is_none() {
            return Err(Sense::OUT_OF_RANGE);
        }
        let block = self.config.block.bytes_u64();
        Ok((lba * block, count * block))
    }

    /// The same of blocks that are moved at once.
    fn transfer(&self, blocks: Blocks) -> Result<(u64, usize), Sense> {
        let (offset_bytes, length_bytes) = self.range(blocks)?;
        let length_bytes = usize::try_from(length_bytes).ok().filter(|l| *l <= self.limits.transfer_bytes);
        Ok((offset_bytes, length_bytes.ok_or(Sense::INVALID_FIELD)?))
    }

    fn claim(blocks: Blocks, exclusive: bool) -> Option<Claim> {
        Some(Claim { blocks: blocks.lba..blocks.lba + blocks.count, exclusive })
    }

    fn write(&self, blocks: Blocks, data: Buf, compare: Compare) -> Result<Outcome, Refusal> {
        let (offset_bytes, length_bytes) = self.transfer(blocks)?;
        let block = self.config.block.bytes() as usize;
        // Of an initiator that sent less than its command says, whole blocks are written.
        let have = data.len().min(length_bytes) / block * block;
        let mut work = Work { taken_bytes: length_bytes as u64, is_write: true, ..Work::default() };
        if have > 0 {
            let data = data.slice(0..have);
            work.ops.push_back((Medium::Write { offset_bytes, data: data.clone() }, Then::Next));
            if compare == Compare::All {
                work.ops.push_back((Medium::Read { offset_bytes, length_bytes: have }, Then::Equals(data)));
            }
            work.claim = Self::claim(blocks, false);
        }
        Ok(Outcome::Work(work))
    }

    fn verify(&self, blocks: Blocks, data: Buf, compare: Compare) -> Result<Outcome, Refusal> {
        let (offset_bytes, length_bytes) = self.transfer(blocks)?;
        let block = self.config.block.bytes() as usize;
        let sent = match compare {
            Compare::Nothing => 0,
            Compare::All => length_bytes,
            Compare::OneBlock => block.min(length_bytes),
        };
        if length_bytes == 0 {
            return Ok(Outcome::Data(Vec::new()));
        }
        if data.len() < sent {
            return Err(Sense::INVALID_FIELD.into());
        }
        let then = match compare {
            Compare::Nothing => Then::Next,
            Compare::All => Then::Equals(data.slice(0..sent)),
            Compare::OneBlock => Then::EachEquals(data.slice(0..sent)),
        };
        let work = Work::op(Medium::Read { offset_bytes, length_bytes }, then);
        Ok(Outcome::Work(Work { taken_bytes: sent as u64, ..work }))
    }

    fn compare_and_write(&self, blocks: Blocks, data: &Buf) -> Result<Outcome, Refusal> {
        let (offset_bytes, length_bytes) = self.transfer(blocks)?;
        if blocks.count > u64::from(MAX_COMPARE_BLOCKS) {
            return Err(Sense::INVALID_FIELD.into());
        }
        if data.len() != 2 * length_bytes {
            return Err(Sense::INVALID_FIELD.into());
        }
        if length_bytes == 0 {
            return Ok(Outcome::Data(Vec::new()));
        }
        let (old, new) = (data.slice(0..length_bytes), data.slice(length_bytes..2 * length_bytes));
        let ops = VecDeque::from([
            (Medium::Read { offset_bytes, length_bytes }, Then::Equals(old)),
            (Medium::Write { offset_bytes, data: new }, Then::Next),
        ]);
        let taken_bytes = 2 * length_bytes as u64;
        let claim = Self::claim(blocks, true);
        Ok(Outcome::Work(Work { ops, claim, is_write: true, taken_bytes, ..Work::default() }))
    }

    fn unmap(&self, list: &[u8], list_bytes: usize) -> Result<Outcome, Refusal> {
        let mut work = Work { taken_bytes: list_bytes as u64, is_write: true, ..Work::default() };
        if list_bytes == 0 {
            return Ok(Outcome::Work(work));
        }
        if list_bytes < 8 || list.len() < list_bytes {
            return Err(Sense::LIST_LENGTH.into());
        }
        let bytes = usize::from(u16::from_be_bytes([list[2], list[3]]));
        let ranges = list[8..list_bytes].chunks_exact(16).take(bytes / 16);
        if ranges.len() > MAX_UNMAP_RANGES {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        let (mut all_bytes, mut first, mut end) = (0, u64::MAX, 0);
        for range in ranges {
            let lba = u64::from_be_bytes(range[..8].try_into().expect("8 bytes"));
            let count = u64::from(u32::from_be_bytes(range[8..12].try_into().expect("4 bytes")));
            let (offset_bytes, length_bytes) = self.range(Blocks { lba, count })?;
            all_bytes += length_bytes;
            if length_bytes > 0 {
                work.ops.push_back((Medium::Zero { offset_bytes, length_bytes }, Then::Next));
                (first, end) = (first.min(lba), end.max(lba + count));
            }
        }
        if all_bytes > MAX_UNMAP_BYTES {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        work.claim = Some(Claim { blocks: first..end, exclusive: false });
        Ok(Outcome::Work(work))
    }

    fn write_same(&self, blocks: Blocks, unmap: bool, no_data: bool, data: &Buf) -> Result<Outcome, Refusal> {
        let (offset_bytes, length_bytes) = self.range(blocks)?;
        let block = self.config.block.bytes() as usize;
        if length_bytes == 0 || length_bytes > MAX_SAME_BYTES || (!no_data && data.len() != block) {
            return Err(Sense::INVALID_FIELD.into());
        }
        let taken_bytes = if no_data { 0 } else { block as u64 };
        let claim = Self::claim(blocks, false);
        let mut work = Work { taken_bytes, claim, is_write: true, ..Work::default() };
        if no_data || data.iter().all(|byte| *byte == 0) {
            // Zeros need no room, whether the initiator asks to unmap or not.
            work.ops.push_back((Medium::Zero { offset_bytes, length_bytes }, Then::Next));
            return Ok(Outcome::Work(work));
        }
        // Other bytes are written, even if they were to be unmapped: reading must give them.
        let _ = unmap;
        let piece_bytes = SAME_PIECE_BYTES.min(length_bytes as usize);
        let mut piece = BufMut::scratch(piece_bytes);
        piece.chunks_exact_mut(block).for_each(|part| part.copy_from_slice(data));
        let piece = piece.freeze();
        let mut done = 0;
        while done < length_bytes {
            let bytes = (length_bytes - done).min(piece_bytes as u64);
            let data = piece.slice(0..bytes as usize);
            work.ops.push_back((Medium::Write { offset_bytes: offset_bytes + done, data }, Then::Next));
            done += bytes;
        }
        Ok(Outcome::Work(work))
    }

    fn persist(
        &mut self,
        nexus: &Nexus,
        what: PersistentOut,
        scope_and_kind: u8,
        list: &[u8],
        list_bytes: usize,
    ) -> Result<Outcome, Refusal> {
        let before = self.reservations.clone();
        let told = self.reservations.change(nexus, what, scope_and_kind, list, list_bytes);
        let told = told.map_err(|refused| match refused {
            Refused::Conflict => Refusal::Conflict,
            Refused::Sense(sense) => Refusal::Sense(sense),
        })?;
        told.iter().for_each(|(nexus, what)| self.tell(nexus, *what));
        let mut work = Work { taken_bytes: list_bytes as u64, is_write: true, ..Work::default() };
        if self.reservations != before {
            // Should storing fail, the initiator hears of it and asks again; the next change stores this one too.
            let keep = Medium::Keep(Box::new(self.reservations.clone()));
            work.ops.push_back((keep, Then::Next));
            // When this is answered, no write of those it shuts out is under way any more.
            work.claim = Some(Claim { blocks: 0..u64::MAX, exclusive: true });
        }
        Ok(Outcome::Work(work))
    }
}

/// The room that an initiator has for what a unit says of itself.
fn room_of(command: &Command) -> usize {
    match *command {
        Command::RequestSense { room_bytes, .. }
        | Command::Inquiry { room_bytes, .. }
        | Command::ReportLuns { room_bytes, .. }
        | Command::ReadCapacity16 { room_bytes }
        | Command::ModeSense { room_bytes, .. }
        | Command::PersistentIn { room_bytes, .. }
        | Command::ReportCommands { room_bytes, .. }
        | Command::ReportManagement { room_bytes }
        | Command::ReportPortGroups { room_bytes, .. } => room_bytes,
        _ => usize::MAX,
    }
}

fn changes_medium(command: &Command) -> bool {
    matches!(
        command,
        Command::Write { .. }
            | Command::WriteAndVerify { .. }
            | Command::WriteSame { .. }
            | Command::Unmap { .. }
            | Command::CompareAndWrite { .. }
    )
}

fn access_of(command: &Command) -> Access {
    match command {
        _ if changes_medium(command) => Access::Write,
        Command::Read { .. }
        | Command::Verify { .. }
        | Command::Prefetch { .. }
        | Command::GetLbaStatus { .. } => Access::Read,
        Command::SynchronizeCache { .. } => Access::Write,
        Command::ModeSense { .. } | Command::ModeSelect { .. } | Command::StartStop => Access::Manage,
        Command::Reserve => Access::Manage,
        _ => Access::Free,
    }
}

/// Answers for a LUN without a unit.
pub fn no_unit(cdb: &[u8; 16]) -> Reply {
    match Command::parse(cdb) {
        Ok(Command::Inquiry { page: None, room_bytes }) => {
            let mut out = vec![inquiry::NO_UNIT, 0, 6, 2, 31];
            out.resize(36, 0);
            out.truncate(room_bytes);
            Reply::good(Buf::metadata(&out))
        }
        Ok(Command::RequestSense { descriptors, room_bytes }) => {
            let mut out = Sense::NO_SUCH_UNIT.encode(descriptors);
            out.truncate(room_bytes);
            Reply::good(Buf::metadata(&out))
        }
        _ => Reply::check(Sense::NO_SUCH_UNIT, false),
    }
}

/// Answers REPORT LUNS; `None`: it is another command.
pub fn report_luns(cdb: &[u8; 16], luns: impl Iterator<Item = u16>) -> Option<Reply> {
    let Ok(Command::ReportLuns { select, room_bytes }) = Command::parse(cdb) else { return None };
    let list: Vec<u8> = match select {
        0 | 2 => luns.flat_map(|lun| lun_field(lun).to_be_bytes()).collect(),
        // Well-known units: there are none.
        1 => Vec::new(),
        _ => return Some(Reply::check(Sense::INVALID_FIELD, false)),
    };
    let mut out = (list.len() as u32).to_be_bytes().to_vec();
    out.resize(8, 0);
    out.extend(list);
    out.truncate(room_bytes);
    Some(Reply::good(Buf::metadata(&out)))
}

/// The number of a LUN as it stands in PDUs: peripheral addressing below 256, flat above.
pub fn lun_field(lun: u16) -> u64 {
    let address = if lun < 256 { lun } else { 0x4000 | lun & 0x3fff };
    u64::from(address) << 48
}

/// Its number again; `None`: no unit can be there.
pub fn lun_number(field: u64) -> Option<u16> {
    let [a, b, rest @ ..] = field.to_be_bytes();
    match (a >> 6, rest) {
        (_, rest) if rest != [0; 6] => None,
        (0, _) if a == 0 => Some(b.into()),
        (1, _) => Some(u16::from_be_bytes([a & 0x3f, b])),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
