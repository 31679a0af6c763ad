//! Which chunk of a file lies where: a cache that is exact while the file's lease is held, since only the holder of
//! a write lease can add chunks, and replica sets fence themselves by their epoch.
//!
//! Invariants: one question per chunk is under way at a time (`busy`); parts that need its answer wait in the slot.

use super::leases::{File, unexpected};
use super::parts::Place;
use super::{ClientCore, Then};
use crate::call::FileMap;
use crate::error::{ClientError, Result};
use shards::Io;
use std::time::Duration;
use wire::mds_api::{ChunkMap, MdsReply, MdsRequest};
use wire::{CsId, FileId, Status};

/// Maps fetched at once.
const WINDOW: u32 = 64;
/// A sequential writer gets chunks for this many bytes at once.
const ALLOCATE_AHEAD_BYTES: u64 = 8 << 20;
/// How long a write waits for chunk servers when there are too few for its replicas.
const TOO_FEW_WAIT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Slot {
    /// The MDS was asked; `map` is its answer (`None`: a hole).
    pub known: bool,
    pub map: Option<ChunkMap>,
    pub busy: bool,
    pub waiting: Vec<u64>,
    /// Refreshes in a row that did not help.
    pub failures: u32,
}

impl File {
    /// The metadata server has said with the lease where the first chunk lies.
    pub(super) fn learn_first(&mut self, map: Option<Box<ChunkMap>>) {
        let Some(map) = map else { return };
        let slot = self.slots.entry(0).or_default();
        if !slot.busy && !slot.known {
            (slot.known, slot.map) = (true, Some(*map));
        }
    }

    /// Whether a chunk is known to be there.
    pub(super) fn has_chunk(&self, index: u32) -> bool {
        self.slots.get(&index).is_some_and(|slot| slot.map.is_some())
    }

    /// Drops what is cached for chunks from `first` on.
    pub(super) fn forget_maps(&mut self, first: u32) {
        self.maps_version += 1;
        for slot in self.slots.range_mut(first..).map(|(_, s)| s) {
            slot.known = false;
            slot.map = None;
        }
        self.slots.retain(|index, s| *index < first || s.busy || !s.waiting.is_empty());
    }
}

/// Waits 5 ms after the first failure, at most half a second.
pub(super) fn back_off(failures: u32) -> Duration {
    Duration::from_millis((5u64 << failures.min(7)).min(500))
}

/// A fork takes a few milliseconds.
fn fork_wait(questions: u32) -> Duration {
    Duration::from_millis((2u64 << questions.min(6)).min(100))
}

impl ClientCore {
    fn wake_slot(&mut self, io: &mut dyn Io, file: FileId, index: u32) {
        let Some(slot) = self.files.get_mut(&file).and_then(|f| f.slots.get_mut(&index)) else { return };
        slot.busy = false;
        for part in std::mem::take(&mut slot.waiting) {
            self.part_run(io, part);
        }
    }

    fn fail_slot(&mut self, io: &mut dyn Io, file: FileId, index: u32, why: &ClientError) {
        let Some(slot) = self.files.get_mut(&file).and_then(|f| f.slots.get_mut(&index)) else { return };
        slot.busy = false;
        for part in std::mem::take(&mut slot.waiting) {
            self.part_end(io, part, Err(why.clone()));
        }
    }

    /// Marks `first .. first + count` as asked for, up to the first one that needs no question. Who is `to_write` asks about
    /// holes too, and about a shared chunk if that is what it writes to.
    fn claim_slots(&mut self, file: FileId, first: u32, count: u32, to_write: bool) -> (u64, u32) {
        let Some(f) = self.files.get_mut(&file) else { return (0, 0) };
        let mut claimed = 0;
        while claimed < count {
            let Some(index) = first.checked_add(claimed) else { break };
            let slot = f.slots.entry(index).or_default();
            let lacks = slot.map.as_ref().is_none_or(|map| !map.belongs_to(file) && claimed == 0);
            if slot.busy || (slot.known && !(to_write && lacks)) {
                break;
            }
            slot.busy = true;
            claimed += 1;
        }
        (f.maps_version, claimed)
    }

    fn learn(
        &mut self,
        file: FileId,
        version: u64,
        first: u32,
        count: u32,
        holes: bool,
        maps: Vec<ChunkMap>,
    ) {
        let Some(f) = self.files.get_mut(&file).filter(|f| f.maps_version == version) else { return };
        for index in first..first + count {
            if let Some(slot) = f.slots.get_mut(&index) {
                (slot.known, slot.map) = (holes, None);
            }
        }
        for map in maps.into_iter().filter(|map| !map.is_of_another_than(file)) {
            if let Some(slot) =
                f.slots.get_mut(&map.index).filter(|_| (first..first + count).contains(&map.index))
            {
                slot.known = true;
                slot.map = Some(map);
            }
        }
    }

    /// Asks for the maps of unknown chunks around `index`.
    pub(super) fn fetch_maps(&mut self, io: &mut dyn Io, file: FileId, index: u32) {
        let (version, count) = self.claim_slots(file, index, WINDOW, false);
        if count == 0 {
            return;
        }
        self.mds_call(
            io,
            MdsRequest::Map { file, first: index, count },
            Box::new(move |core, io, reply| {
                let result = match reply {
                    Ok(MdsReply::Maps { chunks }) => {
                        Ok(core.learn(file, version, index, count, true, chunks))
                    }
                    Ok(other) => Err(unexpected(&other)),
                    Err(e) => Err(e),
                };
                for i in index..index + count {
                    match &result {
                        Ok(()) => core.wake_slot(io, file, i),
                        Err(why) => core.fail_slot(io, file, i, why),
                    }
                }
            }),
        );
    }

    /// Has missing chunks made, from `first` on.
    pub(super) fn allocate(&mut self, io: &mut dyn Io, file: FileId, first: u32) {
        let Some(f) = self.files.get(&file) else { return };
        let Some((lease, _)) = f.lease else { return };
        let ahead = (ALLOCATE_AHEAD_BYTES / f.chunk_bytes()).clamp(1, 8) as u32;
        let sequential = f.last_write_end / f.chunk_bytes() >= u64::from(first.saturating_sub(1));
        let (version, count) = self.claim_slots(file, first, if sequential { ahead } else { 1 }, true);
        if count == 0 {
            return;
        }
        let client = self.mds.client().unwrap_or_default();
        self.mds_call(
            io,
            MdsRequest::Allocate { client, file, lease, first, count },
            Box::new(move |core, io, reply| {
                core.allocated(io, Asked { file, version, lease, first, count }, reply)
            }),
        );
    }

    fn allocated(&mut self, io: &mut dyn Io, asked: Asked, reply: Result<MdsReply>) {
        let Asked { file, version, lease, first, count } = asked;
        let again = |f: &File| f.lost.is_none() && f.lease.is_none_or(|(now, _)| now != lease);
        let why = match reply {
            Ok(MdsReply::Maps { chunks }) => {
                let waits = chunks.iter().any(|map| map.index == first && !map.belongs_to(file));
                self.learn(file, version, first, count, false, chunks);
                if waits {
                    return self.fork_awaited(io, file, first, count);
                }
                None
            }
            Ok(other) => Some(unexpected(&other)),
            Err(e) => match e.status() {
                Some(Status::LeaseLost | Status::StaleHandle) if self.files.get(&file).is_some_and(again) => {
                    None
                }
                Some(Status::LeaseLost | Status::StaleHandle) => {
                    self.file_lost(io, file, "the metadata server no longer knows it");
                    Some(e)
                }
                Some(Status::TooFewServers) => return self.too_few(io, asked, e),
                _ => Some(e),
            },
        };
        for index in first..first + count {
            match &why {
                None => self.wake_slot(io, file, index),
                Some(why) => self.fail_slot(io, file, index, why),
            }
        }
    }

    /// The chunk servers are making a chunk that belongs to the file alone.
    fn fork_awaited(&mut self, io: &mut dyn Io, file: FileId, first: u32, count: u32) {
        for index in first + 1..first + count {
            self.wake_slot(io, file, index);
        }
        let Some(slot) = self.files.get_mut(&file).and_then(|f| f.slots.get_mut(&first)) else { return };
        let wait = fork_wait(slot.failures);
        slot.failures += 1;
        self.after(io, wait, Box::new(move |core, io| core.wake_slot(io, file, first)));
    }

    /// Chunk servers may just be restarting: asks again for a while, then the writers fail.
    fn too_few(&mut self, io: &mut dyn Io, asked: Asked, why: ClientError) {
        tracing::warn!(file = %asked.file, %why, "allocation_waits");
        let (now, patience) = (io.now(), TOO_FEW_WAIT.min(self.config.io_timeout));
        for index in asked.first..asked.first + asked.count {
            let waiting = self.files.get_mut(&asked.file).and_then(|f| f.slots.get_mut(&index));
            let late: Vec<u64> = waiting.map_or_else(Vec::new, |slot| {
                let parts = &self.parts;
                let is_late = |id: &u64| parts.get(id).is_none_or(|p| p.began.after(patience) <= now);
                let (late, early) = std::mem::take(&mut slot.waiting).into_iter().partition(is_late);
                slot.waiting = early;
                late
            });
            for part in late {
                self.part_end(io, part, Err(why.clone()));
            }
        }
        self.after(
            io,
            Duration::from_millis(500),
            Box::new(move |core, io| {
                for index in asked.first..asked.first + asked.count {
                    core.wake_slot(io, asked.file, index);
                }
            }),
        );
    }

    /// Gets the next chunk ready while a sequential writer is in the second half of this one.
    pub(super) fn allocate_ahead(&mut self, io: &mut dyn Io, file: FileId, index: u32, end_in_chunk: u64) {
        let Some(f) = self.files.get(&file) else { return };
        let Some(next) = index.checked_add(1) else { return };
        let missing = f.slots.get(&next).is_none_or(|s| !s.busy && s.map.is_none());
        if missing && end_in_chunk > f.chunk_bytes() / 2 && f.lease.is_some() {
            self.allocate(io, file, next);
        }
    }

    /// The chunk could not be used as mapped: asks for the map that holds now, then runs the waiting parts.
    pub(super) fn refresh(&mut self, io: &mut dyn Io, file: FileId, index: u32, unreachable: Vec<CsId>) {
        let Some(f) = self.files.get_mut(&file) else { return };
        let version = f.maps_version;
        let Some(slot) = f.slots.get_mut(&index).filter(|s| !s.busy) else { return };
        let Some(map) = slot.map.clone() else { return self.wake_slot(io, file, index) };
        slot.busy = true;
        self.stats.refreshes += 1;
        tracing::debug!(%file, index, chunk = %map.chunk, epoch = %map.epoch, ?unreachable, "map_refresh");
        self.mds_call(
            io,
            MdsRequest::Refresh { chunk: map.chunk, epoch: map.epoch, unreachable },
            Box::new(move |core, io, reply| core.refreshed(io, file, index, version, map, reply)),
        );
    }

    fn refreshed(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        index: u32,
        version: u64,
        old: ChunkMap,
        reply: Result<MdsReply>,
    ) {
        let now = match reply {
            Ok(MdsReply::Maps { chunks }) => {
                chunks.into_iter().find(|m| m.chunk == old.chunk && !m.is_of_another_than(file))
            }
            Ok(other) => return self.fail_slot(io, file, index, &unexpected(&other)),
            Err(e) if e.status().is_some_and(|s| matches!(s, Status::UnknownChunk | Status::NotFound)) => {
                None
            }
            Err(e) => return self.fail_slot(io, file, index, &e),
        };
        let Some(f) = self.files.get_mut(&file) else { return };
        let current = f.maps_version == version;
        let Some(slot) = f.slots.get_mut(&index) else { return };
        let Some(mut map) = now.filter(|_| current) else {
            // The chunk is gone, or the file was cut meanwhile: ask from the beginning.
            (slot.known, slot.map) = (false, None);
            return self.wake_slot(io, file, index);
        };
        map.index = index;
        let helped = map.epoch != old.epoch || map.grant.primary() != old.grant.primary();
        slot.known = true;
        slot.map = Some(map);
        slot.failures = if helped { 0 } else { slot.failures + 1 };
        if helped {
            return self.wake_slot(io, file, index);
        }
        let wait = back_off(slot.failures);
        self.after(io, wait, Box::new(move |core, io| core.wake_slot(io, file, index)));
    }

    /// A part can't go on with the map of its chunk: waits for a better one.
    pub(super) fn part_refresh(&mut self, io: &mut dyn Io, part: u64, unreachable: Vec<CsId>) {
        let Some(p) = self.parts.get_mut(&part) else { return };
        p.place = Place::Waiting;
        let (file, index, epoch) = (p.file, p.index, p.epoch);
        let Some(slot) = self.files.get_mut(&file).and_then(|f| f.slots.get_mut(&index)) else {
            return self.part_run(io, part);
        };
        if !slot.busy && slot.map.as_ref().is_none_or(|m| m.epoch > epoch) {
            return self.part_run(io, part); // Somebody else has refreshed it already.
        }
        slot.waiting.push(part);
        self.refresh(io, file, index, unreachable);
    }

    /// Asks for all maps of `first..=last` that are not known, window by window.
    pub(super) fn know_maps(&mut self, io: &mut dyn Io, file: FileId, first: u32, last: u32, then: Then<()>) {
        let f = match self.open_file(file) {
            Ok(f) => f,
            Err(e) => return then(self, io, Err(e)),
        };
        let unknown = (first..=last).find(|i| f.slots.get(i).is_none_or(|s| !s.known));
        let Some(index) = unknown else { return then(self, io, Ok(())) };
        let version = f.maps_version;
        let count = WINDOW.min(last - index + 1);
        self.mds_call(
            io,
            MdsRequest::Map { file, first: index, count },
            Box::new(move |core, io, reply| {
                let chunks = match reply {
                    Ok(MdsReply::Maps { chunks }) => chunks,
                    Ok(other) => return then(core, io, Err(unexpected(&other))),
                    Err(e) => return then(core, io, Err(e)),
                };
                if let Some(f) = core.files.get_mut(&file).filter(|f| f.maps_version == version) {
                    for i in index..index + count {
                        let slot = f.slots.entry(i).or_default();
                        if !slot.known && !slot.busy {
                            slot.known = true;
                            slot.map = chunks.iter().find(|m| m.index == i).cloned();
                        } else if slot.busy && !slot.known {
                            // Another question is under way; its answer is as good, this one will do for now.
                            slot.known = true;
                            slot.map = chunks.iter().find(|m| m.index == i).cloned();
                        }
                    }
                }
                core.know_maps(io, file, index + count - 1, last, then);
            }),
        );
    }

    pub(super) fn file_map(&mut self, io: &mut dyn Io, file: FileId, then: Then<FileMap>) {
        self.get_attr(
            io,
            file,
            Box::new(move |core, io, attr| match attr {
                Err(e) => then(core, io, Err(e)),
                Ok(attr) => {
                    let chunk_bytes = u64::from(attr.chunk_bytes.max(1));
                    let count = attr.size_bytes.div_ceil(chunk_bytes).min(u64::from(u32::MAX)) as u32;
                    core.map_page(io, file, 0, count, FileMap { attr, chunks: Vec::new() }, then);
                }
            }),
        );
    }

    fn map_page(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        first: u32,
        end: u32,
        mut map: FileMap,
        then: Then<FileMap>,
    ) {
        if first >= end {
            return then(self, io, Ok(map));
        }
        let count = (end - first).min(1024);
        self.mds_call(
            io,
            MdsRequest::Map { file, first, count },
            Box::new(move |core, io, reply| match reply {
                Ok(MdsReply::Maps { chunks }) => {
                    map.chunks.extend(chunks);
                    core.map_page(io, file, first + count, end, map, then);
                }
                Ok(other) => then(core, io, Err(unexpected(&other))),
                Err(e) => then(core, io, Err(e)),
            }),
        );
    }
}

/// What an Allocate in flight was about.
#[derive(Clone, Copy)]
struct Asked {
    file: FileId,
    version: u64,
    lease: wire::LeaseId,
    first: u32,
    count: u32,
}
