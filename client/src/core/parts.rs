//! The data path. A transfer moves one block-aligned range of a file in one direction; its parts are the frames it
//! takes: each within one chunk and at most [`MAX_IO_BYTES`] long.
//!
//! A part is run, fails, and is run again until a primary has done it or its deadline is over. Writes and discards
//! are idempotent and overlapping changes of this client never run at the same time, so repeating one is harmless.

use super::maps::back_off;
use super::{ClientCore, Then};
use crate::error::{ClientError, Result};
use shards::sabotage::{Sabotage, on};
use shards::{BLOCK_BYTES, Buf, Io, Timestamp};
use std::net::SocketAddr;
use wire::data::{block_crcs, first_mismatch};
use wire::mds_api::{ChunkMap, MdsRequest};
use wire::{
    BlockCrc, BlockCrcs, ChunkId, CsId, DataMeta, Epoch, FileId, Frame, Grant, Head, Kind, LeaseId,
    MAX_IO_BYTES, Status, flags,
};

/// Reads that arrive damaged this often from all that was tried end with an error.
const MAX_BAD_SUMS: u32 = 6;
/// A replica that sent damaged data this often in a row is reported.
const REPORT_BAD_SUMS: u32 = 2;
/// A chunk that stays busy is looked up again after this many answers.
const REFRESH_WHEN_BUSY: u32 = 16;

/// What to do with a range.
/// Bytes of which a chunk server says at once which blocks hold something.
pub(super) const MAX_FIND_BYTES: u64 = 16 << 20;

pub(super) enum Job {
    Read,
    /// Which blocks hold something: a byte for each, 0 for a hole.
    Find,
    Write(Buf),
    Zero,
}

impl Job {
    fn is_read(&self) -> bool {
        matches!(self, Job::Read | Job::Find)
    }
}

pub(super) struct Transfer {
    len: usize,
    left: usize,
    error: Option<ClientError>,
    /// Data read, by position in the range.
    pieces: Vec<(usize, Buf)>,
    is_read: bool,
    then: Then<Buf>,
}

/// Where a part is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Place {
    /// In a slot, for a lease, or for an alarm.
    Waiting,
    Link(SocketAddr),
}

pub(super) struct Part {
    pub(super) transfer: u64,
    pub file: FileId,
    pub index: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    /// Position in the transfer's range.
    at: usize,
    pub(super) job: Job,
    crcs: BlockCrcs,
    pub place: Place,
    pub(super) began: Timestamp,
    /// The last time; `None`: never.
    pub(super) sent: Option<Timestamp>,
    pub(super) tries: u32,
    pub last_error: String,
    /// As last sent.
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub(super) grant: Grant,
    pub(super) primary: CsId,
    pub(super) lease: LeaseId,
    busy: u32,
    bad_sums: u32,
}

impl ClientCore {
    /// Moves `len` bytes at `offset` (both whole blocks); `then` gets the data of a read, or what was found.
    pub(super) fn transfer(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        len: u64,
        job: Job,
        then: Then<Buf>,
    ) {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES as u64));
        let chunk_bytes = match self.open_file(file) {
            Ok(f) => f.chunk_bytes(),
            Err(e) => return then(self, io, Err(e)),
        };
        if len == 0 {
            return then(self, io, Ok(Buf::empty()));
        }
        let then = if job.is_read() { then } else { self.cache_guards(file, offset..offset + len, then) };
        // Bytes of the range for each of the result.
        let scale = if matches!(job, Job::Find) { BLOCK_BYTES } else { 1 };
        let id = self.next_id();
        let began = io.now();
        let mut runs = Vec::new();
        let mut at = 0u64;
        while at < len {
            let (index, within) = ((offset + at) / chunk_bytes, (offset + at) % chunk_bytes);
            let limit = match job {
                Job::Zero => u64::MAX,
                Job::Find => MAX_FIND_BYTES,
                Job::Read | Job::Write(_) => MAX_IO_BYTES as u64,
            };
            let part_len = (len - at).min(chunk_bytes - within).min(limit);
            let part_job = match &job {
                Job::Read => Job::Read,
                Job::Find => Job::Find,
                Job::Zero => Job::Zero,
                Job::Write(data) => Job::Write(data.slice(at as usize..(at + part_len) as usize)),
            };
            let crcs = match &part_job {
                Job::Write(data) => block_crcs(data).collect(),
                _ => BlockCrcs::new(),
            };
            let part = Part {
                transfer: id,
                file,
                index: u32::try_from(index).unwrap_or(u32::MAX),
                offset: within as u32,
                len: part_len as u32,
                at: at as usize / scale,
                job: part_job,
                crcs,
                place: Place::Waiting,
                began,
                sent: None,
                tries: 0,
                last_error: String::new(),
                chunk: ChunkId(0),
                epoch: Epoch(0),
                grant: Grant::default(),
                primary: CsId(0),
                lease: LeaseId(0),
                busy: 0,
                bad_sums: 0,
            };
            let part_id = self.next_id();
            self.parts.insert(part_id, part);
            runs.push(part_id);
            at += part_len;
        }
        let is_read = job.is_read();
        let transfer = Transfer {
            len: len as usize / scale,
            left: runs.len(),
            error: None,
            pieces: Vec::new(),
            is_read,
            then,
        };
        self.transfers.insert(id, transfer);
        for part in runs {
            self.part_run(io, part);
        }
    }

    /// Takes the part the next step towards its primary.
    pub(super) fn part_run(&mut self, io: &mut dyn Io, id: u64) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        let (file, index) = (part.file, part.index);
        part.place = Place::Waiting;
        let f = match self.files.get_mut(&file) {
            Some(f) if f.lost.is_none() => f,
            Some(f) => {
                let why = ClientError::LeaseLost { detail: f.lost.clone().unwrap_or_default() };
                return self.part_end(io, id, Err(why));
            }
            None => return self.part_end(io, id, Err(ClientError::Closed("the file is not open"))),
        };
        let Some((lease, _)) = f.lease else { return f.waiting_lease.push(id) };
        let slot = f.slots.entry(index).or_default();
        if slot.busy {
            return slot.waiting.push(id);
        }
        let may_use =
            |map: &&ChunkMap| map.belongs_to(file) || part.job.is_read() || on(Sabotage::WriteToShared);
        if let Some(map) = slot.map.as_ref().filter(may_use) {
            part.chunk = map.chunk;
            part.epoch = map.epoch;
            part.lease = lease;
            match map.grant.primary().map(|p| (p.addr, p.cs)) {
                Some((addr, cs)) => {
                    part.grant = map.grant.clone();
                    part.primary = cs;
                    let end = u64::from(part.offset) + u64::from(part.len);
                    let writes = matches!(part.job, Job::Write(_));
                    self.link_send(io, addr, cs, id);
                    if writes {
                        self.allocate_ahead_if_sequential(io, file, index, end);
                    }
                }
                None => {
                    part.last_error = format!("chunk {} has no replica that is in sync", map.chunk);
                    self.part_refresh(io, id, Vec::new());
                }
            }
            return;
        }
        match (&part.job, slot.known) {
            (Job::Read, true) => {
                let zeros = io.buffer(part.len as usize).freeze();
                self.part_end(io, id, Ok(zeros));
            }
            (Job::Find, true) => {
                let holes = io.buffer(part.len as usize / BLOCK_BYTES).freeze();
                self.part_end(io, id, Ok(holes));
            }
            (Job::Zero, true) if slot.map.is_none() => self.part_end(io, id, Ok(Buf::empty())),
            (Job::Read | Job::Find | Job::Zero, false) => {
                slot.waiting.push(id);
                self.fetch_maps(io, file, index);
            }
            (Job::Write(_) | Job::Zero, _) => {
                slot.waiting.push(id);
                self.allocate(io, file, index);
            }
        }
    }

    fn allocate_ahead_if_sequential(&mut self, io: &mut dyn Io, file: FileId, index: u32, end: u64) {
        let Some(f) = self.files.get(&file) else { return };
        let start_of_next = (u64::from(index) + 1) * f.chunk_bytes();
        // Behind the end of the file nothing has been allocated, unless ahead: only growing files need it.
        let growing = f.size < start_of_next
            && f.last_write_end >= u64::from(index) * f.chunk_bytes() + f.chunk_bytes() / 4;
        if growing {
            self.allocate_ahead(io, file, index, end);
        }
    }

    /// The frame of a part for the primary it was given to.
    pub(super) fn part_frame(
        &mut self,
        id: u64,
        request: u64,
        with_grant: bool,
    ) -> Option<(Frame, ChunkId, Epoch)> {
        let part = self.parts.get(&id)?;
        let (kind, payload) = match &part.job {
            Job::Read | Job::Find => (Kind::Read, Buf::empty()),
            Job::Write(data) => (Kind::Write, data.clone()),
            Job::Zero => (Kind::Discard, Buf::empty()),
        };
        let meta = DataMeta {
            lease: part.lease,
            grant: with_grant.then(|| part.grant.clone()),
            crcs: part.crcs.clone(),
            ..DataMeta::default()
        };
        let head = Head {
            chunk: part.chunk,
            epoch: part.epoch,
            offset_bytes: part.offset,
            length_bytes: part.len,
            flags: if with_grant { flags::GRANT } else { 0 }
                | if matches!(part.job, Job::Find) { flags::NO_DATA } else { 0 }
                | if self.is_tracing() { flags::TRACE } else { 0 },
            trace: self.trace_id(part.transfer),
            ..Head::new(kind, request)
        };
        Some((Frame::data(head, &meta, payload), part.chunk, part.epoch))
    }

    /// The primary can't be reached: the MDS may have another.
    pub(super) fn part_unreachable(&mut self, io: &mut dyn Io, id: u64, cs: CsId, why: &str) {
        if let Some(part) = self.parts.get_mut(&id) {
            part.last_error = format!("chunk server {cs}: {why}");
            self.part_refresh(io, id, vec![cs]);
        }
    }

    pub(super) fn part_reply(&mut self, io: &mut dyn Io, id: u64, frame: Frame) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        part.place = Place::Waiting;
        let status = frame.head.status;
        if status == Status::Ok {
            return self.part_done(io, id, frame);
        }
        self.stats.retries += 1;
        part.last_error = format!("chunk server {}: {status}", part.primary);
        tracing::debug!(file = %part.file, chunk = %part.chunk, epoch = %part.epoch, ?status, "part_refused");
        match status {
            Status::OldEpoch | Status::NotPrimary => self.part_refresh(io, id, Vec::new()),
            Status::Busy => self.part_busy(io, id),
            Status::LeaseLost => self.part_lease_lost(io, id),
            Status::Checksum => self.part_bad_sum(io, id, "the chunk server found a wrong checksum"),
            Status::UnknownChunk => {
                if let Some(slot) = self.files.get_mut(&part.file).and_then(|f| f.slots.get_mut(&part.index))
                {
                    slot.failures += 1;
                }
                self.part_refresh(io, id, Vec::new());
            }
            Status::IoError | Status::ShuttingDown => {
                let cs = part.primary;
                self.part_refresh(io, id, vec![cs]);
            }
            Status::NoSpace => self.part_end(io, id, Err(ClientError::refused(Status::NoSpace, ""))),
            _ => {
                let detail = part.last_error.clone();
                tracing::error!(chunk = %part.chunk, detail, "part_failed");
                self.part_end(io, id, Err(ClientError::Io { detail }));
            }
        }
    }

    fn part_busy(&mut self, io: &mut dyn Io, id: u64) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        part.busy += 1;
        if part.busy.is_multiple_of(REFRESH_WHEN_BUSY) {
            return self.part_refresh(io, id, Vec::new());
        }
        let wait = back_off(part.busy.min(4));
        self.after(io, wait, Box::new(move |core, io| core.part_run(io, id)));
    }

    fn part_lease_lost(&mut self, io: &mut dyn Io, id: u64) {
        let Some(part) = self.parts.get(&id) else { return };
        let (file, sent) = (part.file, part.lease);
        let newer = self
            .files
            .get(&file)
            .is_some_and(|f| f.lost.is_none() && f.lease.is_none_or(|(now, _)| now != sent));
        if !newer {
            self.file_lost(io, file, "a chunk server has seen a newer holder");
        }
        self.part_run(io, id); // With the lease of now, or it fails as all of the file do.
    }

    fn part_done(&mut self, io: &mut dyn Io, id: u64, frame: Frame) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        if let Some(slot) = self.files.get_mut(&part.file).and_then(|f| f.slots.get_mut(&part.index)) {
            slot.failures = 0;
        }
        let data = match &part.job {
            Job::Write(_) | Job::Zero => Ok(Buf::empty()),
            Job::Find => match DataMeta::decode(&frame.meta) {
                Ok(meta) if meta.crcs.len() * BLOCK_BYTES == part.len as usize => {
                    let mut found = io.buffer(meta.crcs.len());
                    for (byte, crc) in found.iter_mut().zip(&meta.crcs) {
                        *byte = u8::from(*crc != BlockCrc::HOLE);
                    }
                    Ok(found.freeze())
                }
                Ok(meta) => Err(format!("{} checksums came for {} bytes", meta.crcs.len(), part.len)),
                Err(why) => Err(why),
            },
            Job::Read if frame.payload.len() != part.len as usize => {
                Err(format!("{} bytes came for {} asked", frame.payload.len(), part.len))
            }
            Job::Read => match DataMeta::decode(&frame.meta) {
                Ok(meta) => match first_mismatch(&frame.payload, &meta.crcs) {
                    None => Ok(frame.payload),
                    Some(block) => Err(format!("wrong checksum of block {block} of the data received")),
                },
                Err(why) => Err(why),
            },
        };
        match data {
            Ok(data) => self.part_end(io, id, Ok(data)),
            Err(why) => self.part_bad_sum(io, id, &why),
        }
    }

    /// Damaged data: asks again, reports the replica when it happens again, gives up in the end.
    fn part_bad_sum(&mut self, io: &mut dyn Io, id: u64, why: &str) {
        self.stats.checksum_errors += 1;
        let Some(part) = self.parts.get_mut(&id) else { return };
        part.bad_sums += 1;
        part.last_error = format!("chunk {} on chunk server {}: {why}", part.chunk, part.primary);
        tracing::warn!(file = %part.file, chunk = %part.chunk, cs = %part.primary, offset = part.offset, why, "checksum_error");
        if part.bad_sums >= MAX_BAD_SUMS {
            let detail = part.last_error.clone();
            return self.part_end(io, id, Err(ClientError::Io { detail }));
        }
        if let Job::Write(data) = &part.job {
            // Damaged on its way, unless this machine's memory is bad: sum it again.
            part.crcs = block_crcs(data).collect();
            return self.part_run(io, id);
        }
        if part.bad_sums < REPORT_BAD_SUMS {
            return self.part_run(io, id);
        }
        let request = MdsRequest::ReportBadReplica { chunk: part.chunk, epoch: part.epoch, cs: part.primary };
        self.mds_call(io, request, Box::new(move |core, io, _| core.part_refresh(io, id, Vec::new())));
    }

    /// The part has ended; the transfer ends with its last part.
    pub(super) fn part_end(&mut self, io: &mut dyn Io, id: u64, result: Result<Buf>) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        if part.job.is_read() && result.is_ok() && !self.mds.session_is_sure(io.now()) {
            // Another may hold the file by now, and the answer may be that of a primary deposed meanwhile.
            part.place = Place::Waiting;
            return self.unsure_reads.push(id);
        }
        let part = self.parts.remove(&id).expect("just seen");
        self.note_part(&part, io);
        if let Place::Link(addr) = part.place {
            self.links.forget(addr, id);
        }
        let Some(transfer) = self.transfers.get_mut(&part.transfer) else { return };
        transfer.left -= 1;
        match result {
            Ok(data) if transfer.is_read => transfer.pieces.push((part.at, data)),
            Ok(_) => {}
            Err(why) => transfer.error = Some(why),
        }
        if transfer.left > 0 {
            return;
        }
        let transfer = self.transfers.remove(&part.transfer).expect("looked up above");
        let result = match transfer.error {
            Some(why) => Err(why),
            None if transfer.is_read => Ok(join(io, transfer.len, transfer.pieces)),
            None => Ok(Buf::empty()),
        };
        (transfer.then)(self, io, result);
    }

    /// Ends parts that have waited through failures long enough.
    pub(super) fn parts_tick(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let is_late = |p: &Part| p.began.after(self.config.io_timeout) <= now;
        let late: Vec<u64> = self.parts.iter().filter(|(_, p)| is_late(p)).map(|(id, _)| *id).collect();
        for id in late {
            let Some(part) = self.parts.get(&id) else { continue };
            let last = if part.last_error.is_empty() { "no answer" } else { &part.last_error };
            let detail = format!(
                "chunk {} of file {} at {} could not be used for {} s; last: {last}",
                part.chunk,
                part.file,
                part.offset,
                self.config.io_timeout.as_secs()
            );
            tracing::error!(detail, place = ?part.place, "part_timed_out");
            self.part_end(io, id, Err(ClientError::Io { detail }));
        }
    }
}

/// The data of a range from the data of its parts; a single part is handed on without a copy.
pub(super) fn join(io: &mut dyn Io, len: usize, mut pieces: Vec<(usize, Buf)>) -> Buf {
    if pieces.len() == 1 {
        return pieces.pop().expect("one piece").1;
    }
    let mut whole = io.buffer(len);
    for (at, piece) in &pieces {
        whole[*at..*at + piece.len()].copy_from_slice(piece);
    }
    whole.freeze()
}
