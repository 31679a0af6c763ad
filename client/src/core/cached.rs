//! Reading through the cache: moves bytes between programs, the cache file and the cluster, as [`ReadCache`] says.
//!
//! Life: the table is loaded, the cluster's identity asked for, the table struck out on the device, and only then is the
//! cache used; when the client ends in good order, the table is written and made valid. Whatever goes wrong with the cache
//! file turns hits into misses, or the cache off; never into an error of a program.

use super::cache::format::{ClusterIdentity, Geometry, Superblock, decode_table, encode_table};
use super::cache::{BLOCK_BYTES, Piece, ReadCache};
use super::parts::{Job, join};
use super::{ClientCore, Then};
use crate::call::{CacheState, CacheStats};
use crate::config::CacheConfig;
use crate::error::{ClientError, Result};
use shards::{Buf, Durability, FileHandle, Io, OpId, OpenHow};
use std::collections::BTreeMap;
use std::ops::Range;
use wire::data::{block_crcs, first_mismatch};
use wire::mds_api::{MdsReply, MdsRequest};
use wire::{ClientId, FileId, LeaseId, ROOT, Status};

/// Disk operations of the cache carry this in their top byte.
const OP_SPACE: u64 = 0x07 << 56;
const LARGEST_IO_BYTES: usize = 1 << 20;
/// After so many errors the device is left alone.
const MOST_IO_ERRORS: u64 = 8;
/// Where a cluster's identity stands: an attribute of its root that no mount lists, shows or changes. A cache file of
/// another cluster of the same name must not be believed: its files have the same numbers.
const IDENTITY: &str = "pstorage.cluster-identity";

enum Phase {
    Loading { head: Vec<u8> },
    Identifying { found: Option<(Superblock, Vec<u8>)> },
    Striking,
    Active,
    Saving { writes_left: usize },
    Saved,
    Off,
}

enum Op {
    Load,
    Strike,
    Read { read: u64, piece: usize },
    Fill { slot: u32 },
    SaveTable,
    SaveSync,
    SaveHead,
}

/// A read that the cache answers.
struct CachedRead {
    file: FileId,
    offset: u64,
    len: usize,
    pieces: Vec<Piece>,
    bytes: Vec<Option<Buf>>,
    left: usize,
    then: Then<Buf>,
}

pub(super) struct Cached {
    config: CacheConfig,
    geometry: Geometry,
    handle: FileHandle,
    phase: Phase,
    cache: ReadCache,
    cluster: ClusterIdentity,
    generation: u64,
    ops: BTreeMap<u64, Op>,
    reads: BTreeMap<u64, CachedRead>,
    /// Told when the cache is in use, or off.
    waiting: Vec<Then<()>>,
    io_errors: u64,
}

impl Cached {
    pub fn new(config: CacheConfig) -> Option<Box<Cached>> {
        let geometry = Geometry::of(config.bytes)?;
        Some(Box::new(Cached {
            geometry,
            handle: FileHandle(0),
            phase: Phase::Loading { head: Vec::new() },
            cache: ReadCache::new(geometry.slots, config.admit_at_uses),
            config,
            cluster: [0; 16],
            generation: 0,
            ops: BTreeMap::new(),
            reads: BTreeMap::new(),
            waiting: Vec::new(),
            io_errors: 0,
        }))
    }

    fn op(&mut self, id: u64, op: Op) -> OpId {
        self.ops.insert(id, op);
        OpId(OP_SPACE | id)
    }

    fn stats(&self) -> CacheStats {
        CacheStats {
            state: match self.phase {
                Phase::Active => CacheState::Active,
                Phase::Off => CacheState::Off,
                Phase::Saving { .. } | Phase::Saved => CacheState::Ending,
                _ => CacheState::Starting,
            },
            file_bytes: self.config.bytes,
            block_bytes: BLOCK_BYTES,
            blocks: self.cache.slots().into(),
            used_blocks: self.cache.used_slots().into(),
            counts: self.cache.counts,
            io_errors: self.io_errors,
        }
    }
}

impl ClientCore {
    pub(super) fn cache_stats(&self) -> Option<CacheStats> {
        self.cached.as_ref().map(|c| c.stats())
    }

    // Beginning.

    pub(super) fn cache_start(&mut self, io: &mut dyn Io) {
        let Some(cached) = &mut self.cached else { return };
        let how = OpenHow { create: true, direct: true, read_only: false };
        match io.open(&cached.config.path, how) {
            Ok(handle) => {
                cached.handle = handle;
                self.cache_load(io);
            }
            Err(e) => self.cache_off(io, &e.to_string()),
        }
    }

    fn cache_load(&mut self, io: &mut dyn Io) {
        let id = self.next_id();
        let Some(cached) = &mut self.cached else { return };
        let Phase::Loading { head } = &cached.phase else { return };
        let at = head.len();
        let len = (cached.geometry.head_bytes() - at).min(LARGEST_IO_BYTES);
        let op = cached.op(id, Op::Load);
        io.read(cached.handle, at as u64, len, op);
    }

    fn cache_loaded(&mut self, io: &mut dyn Io, data: &Buf) {
        let Some(cached) = &mut self.cached else { return };
        let Phase::Loading { head } = &mut cached.phase else { return };
        head.extend_from_slice(data);
        if head.len() < cached.geometry.head_bytes() {
            return self.cache_load(io);
        }
        let head = std::mem::take(head);
        let table = head.get(super::cache::format::PAGE_BYTES..).unwrap_or_default().to_vec();
        let found = Superblock::decode(&head).map(|superblock| (superblock, table));
        cached.phase = Phase::Identifying { found };
        self.when_ready(
            io,
            Box::new(|core, io, ready| match ready {
                Ok(_) => core.cache_identify(io, true),
                Err(e) => core.cache_off(io, &e.to_string()),
            }),
        );
    }

    /// Asks for the cluster's identity; the first client that needs one gives it.
    fn cache_identify(&mut self, io: &mut dyn Io, may_make: bool) {
        let request = MdsRequest::GetXattr { file: ROOT, name: IDENTITY.into() };
        self.mds_call(
            io,
            request,
            Box::new(move |core, io, reply| match reply {
                Ok(MdsReply::Xattr { value }) => match ClusterIdentity::try_from(value) {
                    Ok(identity) => core.cache_strike(io, identity),
                    Err(_) => core.cache_off(io, "the cluster's identity is malformed"),
                },
                Err(e) if e.status() == Some(Status::NoAttribute) && may_make => core.cache_make_identity(io),
                Err(e) => core.cache_off(io, &e.to_string()),
                Ok(_) => core.cache_off(io, "the metadata server sent an unexpected answer"),
            }),
        );
    }

    fn cache_make_identity(&mut self, io: &mut dyn Io) {
        let value = [io.random().to_le_bytes(), io.random().to_le_bytes()].concat();
        let request = MdsRequest::SetXattr {
            client: ClientId(0),
            file: ROOT,
            name: IDENTITY.into(),
            value,
            create_only: true,
            replace_only: false,
        };
        // Another client may have been faster: what stands there counts.
        self.mds_call(io, request, Box::new(|core, io, _| core.cache_identify(io, false)));
    }

    /// Takes over what the file holds, and strikes it out there before anything changes.
    fn cache_strike(&mut self, io: &mut dyn Io, identity: ClusterIdentity) {
        let id = self.next_id();
        let Some(cached) = &mut self.cached else { return };
        let Phase::Identifying { found } = &mut cached.phase else { return };
        let slots = cached.geometry.slots;
        cached.cluster = identity;
        if let Some((superblock, table)) = found.take() {
            cached.generation = superblock.generation;
            if superblock.table_is_valid && superblock.cluster == identity && superblock.slots == slots {
                cached.cache.restore(decode_table(&table, superblock.generation, slots));
            }
        }
        cached.generation += 1;
        cached.phase = Phase::Striking;
        let superblock =
            Superblock { cluster: identity, generation: cached.generation, table_is_valid: false, slots };
        let op = cached.op(id, Op::Strike);
        io.write(cached.handle, 0, vec![superblock.encode()], Durability::Durable, op);
    }

    fn cache_active(&mut self, io: &mut dyn Io) {
        let Some(cached) = &mut self.cached else { return };
        cached.phase = Phase::Active;
        tracing::info!(
            path = cached.config.path,
            blocks = cached.cache.slots(),
            used = cached.cache.used_slots(),
            "read_cache_active"
        );
        for then in std::mem::take(&mut cached.waiting) {
            then(self, io, Ok(()));
        }
    }

    fn cache_off(&mut self, io: &mut dyn Io, why: &str) {
        let Some(cached) = &mut self.cached else { return };
        if matches!(cached.phase, Phase::Off | Phase::Saved) {
            return;
        }
        tracing::error!(path = cached.config.path, why, "read_cache_off");
        let saving = matches!(cached.phase, Phase::Saving { .. });
        cached.phase = Phase::Off;
        for then in std::mem::take(&mut cached.waiting) {
            then(self, io, Ok(()));
        }
        if saving {
            self.stop_if_done(io);
        }
    }

    /// Goes on when the cache is in use or off.
    pub(super) fn when_cache_settled(&mut self, io: &mut dyn Io, then: Then<()>) {
        match &mut self.cached {
            Some(cached) if !matches!(cached.phase, Phase::Active | Phase::Off) => cached.waiting.push(then),
            _ => then(self, io, Ok(())),
        }
    }

    // What the rest of the core tells.

    pub(super) fn cache_granted(&mut self, file: FileId, before: LeaseId, now: LeaseId, lease: LeaseId) {
        if let Some(cached) = &mut self.cached {
            cached.cache.granted(file, before, now, lease);
        }
    }

    pub(super) fn cache_lost(&mut self, file: FileId) {
        if let Some(cached) = &mut self.cached {
            cached.cache.lost(file);
        }
    }

    pub(super) fn cache_closed(&mut self, file: FileId) {
        if let Some(cached) = &mut self.cached {
            cached.cache.closed(file);
        }
    }

    /// Guards a change of `bytes`: `then` is to be called with its outcome.
    pub(super) fn cache_guards<T: Send + 'static>(
        &mut self,
        file: FileId,
        bytes: Range<u64>,
        then: Then<T>,
    ) -> Then<T> {
        let Some(cached) = &mut self.cached else { return then };
        let change = cached.cache.change_begins(file, bytes);
        Box::new(move |core, io, result: Result<T>| {
            if let Some(cached) = &mut core.cached {
                cached.cache.change_ended(file, change, result.is_ok());
            }
            then(core, io, result);
        })
    }

    // Reading.

    fn cache_may_answer(&self, io: &dyn Io, file: FileId) -> bool {
        self.cached.as_ref().is_some_and(|c| matches!(c.phase, Phase::Active))
            && self.mds.session_is_sure(io.now())
            && self.files.get(&file).is_some_and(|f| f.lease.is_some() && f.lost.is_none())
    }

    /// Reads whole blocks of 4 KiB, from the cache if it has them all.
    pub(super) fn read_blocks(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        len: u64,
        then: Then<Buf>,
    ) {
        let bytes = offset..offset + len;
        if len == 0 || !self.cache_may_answer(io, file) {
            return self.transfer(io, file, offset, len, Job::Read, then);
        }
        let Some(cached) = &mut self.cached else { return };
        if let Some(pieces) = cached.cache.look_up(file, bytes.clone()) {
            return self.read_cached(io, file, offset, len as usize, pieces, then);
        }
        let wanted = cached.cache.note_use(file, bytes);
        self.transfer(io, file, offset, len, Job::Read, then);
        for block in wanted {
            self.cache_fill(io, file, block);
        }
    }

    fn read_cached(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        len: usize,
        pieces: Vec<Piece>,
        then: Then<Buf>,
    ) {
        let ids: Vec<u64> = (0..=pieces.len()).map(|_| self.next_id()).collect();
        let Some(cached) = &mut self.cached else { return };
        let read = ids[pieces.len()];
        for (piece, (at, id)) in pieces.iter().zip(ids).enumerate() {
            let place = cached.geometry.slot_at(at.slot) + at.from as u64;
            let op = cached.op(id, Op::Read { read, piece });
            io.read(cached.handle, place, at.len, op);
        }
        let (left, bytes) = (pieces.len(), vec![None; pieces.len()]);
        cached.reads.insert(read, CachedRead { file, offset, len, pieces, bytes, left, then });
    }

    fn cache_piece_read(&mut self, io: &mut dyn Io, read: u64, piece: usize, data: Option<Buf>) {
        let Some(cached) = &mut self.cached else { return };
        let Some(under_way) = cached.reads.get_mut(&read) else { return };
        under_way.bytes[piece] = data;
        under_way.left -= 1;
        if under_way.left > 0 {
            return;
        }
        let read = cached.reads.remove(&read).expect("looked up above");
        self.cached_read_ends(io, read);
    }

    /// All has come: answers, if it is whole and still what the file holds; else asks the cluster.
    fn cached_read_ends(&mut self, io: &mut dyn Io, read: CachedRead) {
        let still_ours = self.cache_may_answer(io, read.file);
        let Some(cached) = &mut self.cached else { return };
        let is_whole = |(piece, bytes): (&Piece, &Option<Buf>)| {
            bytes.as_ref().is_some_and(|b| first_mismatch(b, &piece.sums).is_none())
        };
        let damaged =
            read.pieces.iter().zip(&read.bytes).find(|pair| !is_whole(*pair)).map(|(piece, _)| piece);
        if still_ours && damaged.is_none() && cached.cache.still_holds(&read.pieces) {
            let mut at = 0;
            let mut placed = Vec::with_capacity(read.bytes.len());
            for bytes in read.bytes.into_iter().flatten() {
                let len = bytes.len();
                placed.push((at, bytes));
                at += len;
            }
            let data = join(io, read.len, placed);
            return (read.then)(self, io, Ok(data));
        }
        cached.cache.failed(&read.pieces, damaged);
        self.transfer(io, read.file, read.offset, read.len as u64, Job::Read, read.then);
    }

    // Coming in.

    fn cache_fill(&mut self, io: &mut dyn Io, file: FileId, block: u64) {
        if !self.cache_may_answer(io, file) || self.stopping.is_some() {
            return;
        }
        let Some(f) = self.files.get(&file) else { return };
        let (size, from) = (f.size, block * BLOCK_BYTES);
        let chunk = u32::try_from(from / f.chunk_bytes()).unwrap_or(u32::MAX);
        if f.slots.get(&chunk).is_some_and(|s| s.known && s.map.is_none()) {
            return; // A hole: no server is asked for it anyway.
        }
        let end = size.next_multiple_of(shards::BLOCK_BYTES as u64).min(from + BLOCK_BYTES);
        let Some(cached) = &mut self.cached else { return };
        if end <= from {
            return;
        }
        let Some(fill) = cached.cache.fill_begins(file, block) else { return };
        let filled: Then<Buf> = Box::new(move |core, io, data| core.cache_filled(io, fill, data));
        self.transfer(io, file, from, end - from, Job::Read, filled);
    }

    fn cache_filled(&mut self, io: &mut dyn Io, fill: u64, data: Result<Buf>) {
        let id = self.next_id();
        let Some(cached) = &mut self.cached else { return };
        let data = data.ok().filter(|_| matches!(cached.phase, Phase::Active));
        let sums = data.as_ref().map(|d| block_crcs(d).collect());
        let (Some(slot), Some(data)) = (cached.cache.fill_ended(fill, sums), data) else { return };
        let data = if data.is_aligned() {
            data
        } else {
            let mut own = io.buffer(data.len());
            own.copy_from_slice(&data);
            own.freeze()
        };
        let op = cached.op(id, Op::Fill { slot });
        io.write(cached.handle, cached.geometry.slot_at(slot), vec![data], Durability::Buffered, op);
    }

    // Ending.

    /// Whether nothing is left to save; begins to save if it wasn't.
    pub(super) fn cache_is_saved(&mut self, io: &mut dyn Io) -> bool {
        match self.cached.as_ref().map(|c| &c.phase) {
            Some(Phase::Active) => self.cache_save(io),
            Some(Phase::Saving { .. }) => return false,
            _ => return true,
        }
        false
    }

    fn cache_save(&mut self, io: &mut dyn Io) {
        let Some(cached) = &mut self.cached else { return };
        let table = encode_table(&cached.cache.entries(), cached.generation);
        let page = super::cache::format::PAGE_BYTES;
        let pieces: Vec<Range<usize>> = (0..table.len())
            .step_by(LARGEST_IO_BYTES)
            .map(|at| at..(at + LARGEST_IO_BYTES).min(table.len()))
            .collect();
        cached.phase = Phase::Saving { writes_left: pieces.len() };
        for piece in pieces {
            let id = self.next_id();
            let Some(cached) = &mut self.cached else { return };
            let op = cached.op(id, Op::SaveTable);
            let at = (page + piece.start) as u64;
            io.write(cached.handle, at, vec![table.slice(piece)], Durability::Buffered, op);
        }
    }

    fn cache_save_on(&mut self, io: &mut dyn Io, done: &Op) {
        let id = self.next_id();
        let Some(cached) = &mut self.cached else { return };
        let Phase::Saving { writes_left } = &mut cached.phase else { return };
        match done {
            Op::SaveTable => {
                *writes_left -= 1;
                if *writes_left == 0 {
                    // The blocks too: what the table names is there.
                    let op = cached.op(id, Op::SaveSync);
                    io.sync(cached.handle, op);
                }
            }
            Op::SaveSync => {
                let superblock = Superblock {
                    cluster: cached.cluster,
                    generation: cached.generation,
                    table_is_valid: true,
                    slots: cached.geometry.slots,
                };
                let op = cached.op(id, Op::SaveHead);
                io.write(cached.handle, 0, vec![superblock.encode()], Durability::Durable, op);
            }
            _ => {
                cached.phase = Phase::Saved;
                self.stop_if_done(io);
            }
        }
    }

    // Completions.

    /// Whether the completion was the cache's.
    pub(super) fn cache_disk(&mut self, io: &mut dyn Io, op: OpId, result: std::io::Result<Buf>) -> bool {
        let Some(cached) = &mut self.cached else { return false };
        let Some(done) = cached.ops.remove(&(op.0 & !OP_SPACE)).filter(|_| op.0 & OP_SPACE == OP_SPACE)
        else {
            return false;
        };
        let result = result.map_err(|error| {
            cached.io_errors += 1;
            tracing::warn!(path = cached.config.path, %error, "read_cache_io_error");
            error.to_string()
        });
        let too_many = cached.io_errors >= MOST_IO_ERRORS;
        match (done, result) {
            (Op::Read { read, piece }, result) => self.cache_piece_read(io, read, piece, result.ok()),
            (Op::Fill { slot }, result) => cached.cache.written(slot, result.is_ok()),
            (_, Err(why)) => self.cache_off(io, &why),
            (Op::Load, Ok(data)) => self.cache_loaded(io, &data),
            (Op::Strike, Ok(_)) => self.cache_active(io),
            (done, Ok(_)) => self.cache_save_on(io, &done),
        }
        if too_many {
            self.cache_off(io, "too many errors of the device");
        }
        true
    }
}

/// Says why a cache of this size can't be.
pub fn check_cache_size(bytes: u64) -> Result<()> {
    match Geometry::of(bytes) {
        Some(_) => Ok(()),
        None => Err(ClientError::Invalid("a read cache has at least 1 MB")),
    }
}
