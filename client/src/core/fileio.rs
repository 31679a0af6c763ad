//! Bytes of a file: reads, writes, zeroing and cutting at any offset, on top of transfers of whole blocks.
//!
//! A change holds the locks of its blocks from before it reads an edge until its last part is durable. The steps of
//! a write that does not cover whole blocks: lock, read the edges, write, unlock, answer.

use super::leases::{File, unexpected};
use super::parts::{Job, MAX_FIND_BYTES};
use super::{ClientCore, Then};
use crate::call::SeekFor;
use crate::error::{ClientError, Result};
use shards::{BLOCK_BYTES, Buf, BufMut, Io, Timestamp};
use std::time::Duration;
use wire::FileId;
use wire::mds_api::{AttrChange, FileAttr, LeaseMode, MdsReply, MdsRequest};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn block_start(offset: u64) -> u64 {
    offset / BLOCK * BLOCK
}

fn block_end(offset: u64) -> u64 {
    offset.next_multiple_of(BLOCK)
}

/// One change of a file on its way: what must be undone when it ends.
#[derive(Clone, Copy)]
struct Change {
    file: FileId,
    op: u64,
    started: Timestamp,
}

/// What ends a write: the change, unless it could not be begun, and how it went.
type Finish = Box<dyn FnOnce(&mut ClientCore, &mut dyn Io, Option<Change>, Result<()>) + Send>;

impl File {
    fn max_bytes(&self) -> u64 {
        self.chunk_bytes() * u64::from(u32::MAX)
    }

    /// Blocks a change of `from..to` must hold; also the old tail when the file grows over it uncleaned.
    fn blocks_to_lock(&self, from: u64, to: u64) -> std::ops::Range<u64> {
        if to > self.size && !self.tail_clean {
            from.min(self.size) / BLOCK..u64::MAX
        } else {
            from / BLOCK..to.div_ceil(BLOCK)
        }
    }
}

impl ClientCore {
    // Reading.

    pub(super) fn read(&mut self, io: &mut dyn Io, file: FileId, offset: u64, len: usize, then: Then<Buf>) {
        let op = match self.op_begin(file, false) {
            Ok(op) => op,
            Err(e) => return then(self, io, Err(e)),
        };
        let started = io.now();
        let size = self.files.get(&file).map_or(0, |f| f.size);
        let end = offset.saturating_add(len as u64).min(size);
        if end <= offset {
            self.op_end(io, file, op);
            return then(self, io, Ok(Buf::empty()));
        }
        let from = block_start(offset);
        let cut = (offset - from) as usize..(end - from) as usize;
        let done: Then<Buf> = Box::new(move |core, io, data| {
            core.stats.reads += 1;
            core.stats.read_bytes += cut.len() as u64;
            let took = core.note_time(io, started);
            core.stats.read_times.took(took);
            core.op_end(io, file, op);
            then(core, io, data.map(|d| if cut == (0..d.len()) { d } else { d.slice(cut) }));
        });
        self.behind_writes(
            io,
            file,
            op,
            offset..end,
            Box::new(move |core, io, written| match written {
                Ok(()) => core.read_blocks(io, file, from, block_end(end) - from, done),
                Err(e) => done(core, io, Err(e)),
            }),
        );
    }

    fn note_time(&mut self, io: &mut dyn Io, started: Timestamp) -> Duration {
        let took = io.now().since(started);
        self.stats.longest_us = self.stats.longest_us.max(took.as_micros() as u64);
        took
    }

    // Changing.

    /// Begins a change of `from..to`: lease, limits, locks, and a clean tail if the file grows.
    fn begin_change(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        from: u64,
        to: u64,
        then: Box<dyn FnOnce(&mut ClientCore, &mut dyn Io, Result<Change>) + Send>,
    ) {
        let started = io.now();
        let op = match self.check_change(file, to).and_then(|()| self.op_begin(file, true)) {
            Ok(op) => op,
            Err(e) => return then(self, io, Err(e)),
        };
        let change = Change { file, op, started };
        let blocks = self.files.get(&file).map_or(0..0, |f| f.blocks_to_lock(from, to));
        self.lock(
            io,
            file,
            op,
            blocks.clone(),
            Box::new(move |core, io, locked| {
                if let Err(e) = locked {
                    return core.abandon(io, change, e, then);
                }
                let Some(f) = core.files.get_mut(&file) else {
                    return core.abandon(io, change, ClientError::Closed("the file is not open"), then);
                };
                if to <= f.size || f.tail_clean {
                    return then(core, io, Ok(change));
                }
                if blocks.end != u64::MAX {
                    // The file shrank or was taken anew while this waited: what was locked is not enough.
                    core.unlock(io, file, op);
                    core.op_end(io, file, op);
                    return core.begin_change(io, file, from, to, then);
                }
                core.clean_tail(
                    io,
                    file,
                    Box::new(move |core, io, cleaned| match cleaned {
                        Ok(()) => then(core, io, Ok(change)),
                        Err(e) => core.abandon(io, change, e, then),
                    }),
                );
            }),
        );
    }

    pub(super) fn check_change(&mut self, file: FileId, to: u64) -> Result<()> {
        let f = self.open_file(file)?;
        if f.lease.is_some_and(|(_, mode)| mode == LeaseMode::Read) {
            return Err(ClientError::Closed("the file is not open for writing"));
        }
        if to > f.max_bytes() {
            return Err(ClientError::TooLarge);
        }
        Ok(())
    }

    fn abandon(
        &mut self,
        io: &mut dyn Io,
        change: Change,
        why: ClientError,
        then: Box<dyn FnOnce(&mut ClientCore, &mut dyn Io, Result<Change>) + Send>,
    ) {
        self.end_change(io, change);
        then(self, io, Err(why));
    }

    fn end_change(&mut self, io: &mut dyn Io, change: Change) {
        self.unlock(io, change.file, change.op);
        let took = self.note_time(io, change.started);
        self.stats.write_times.took(took);
        self.op_end(io, change.file, change.op);
    }

    pub(super) fn write(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        data: Buf,
        sync: bool,
        then: Then<()>,
    ) {
        let Some(end) = offset.checked_add(data.len() as u64) else {
            return then(self, io, Err(ClientError::TooLarge));
        };
        if data.is_empty() {
            return then(self, io, Ok(()));
        }
        self.write_gathered(io, file);
        self.stats.writes += 1;
        self.stats.write_bytes += data.len() as u64;
        let finish: Finish = Box::new(move |core, io, change, result| {
            if result.is_ok()
                && let Some(f) = core.files.get_mut(&file)
            {
                f.grown_to(end, io.now(), io.wall_ms());
            }
            change.into_iter().for_each(|change| core.end_change(io, change));
            match result {
                Ok(()) if sync => core.record_size(io, file, then),
                result => then(core, io, result),
            }
        });
        self.write_range(io, file, offset, data, finish);
    }

    /// Writes what a program believes to be written already: size, time and figures have been noted. `then` runs before
    /// whoever waits for the change.
    pub(super) fn write_noted(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        data: Buf,
        then: Then<()>,
    ) {
        let finish: Finish = Box::new(move |core, io, change, result| {
            then(core, io, result);
            change.into_iter().for_each(|change| core.end_change(io, change));
        });
        self.write_range(io, file, offset, data, finish);
    }

    /// Writes bytes when their blocks are free; `finish` ends the change.
    fn write_range(&mut self, io: &mut dyn Io, file: FileId, offset: u64, data: Buf, finish: Finish) {
        let end = offset + data.len() as u64;
        self.begin_change(
            io,
            file,
            offset,
            end,
            Box::new(move |core, io, change| {
                let change = match change {
                    Ok(change) => change,
                    Err(e) => return finish(core, io, None, Err(e)),
                };
                let written: Then<()> = Box::new(move |core, io, result| {
                    if let Some(f) = core.files.get_mut(&file).filter(|_| result.is_ok()) {
                        f.last_write_end = end;
                    }
                    finish(core, io, Some(change), result);
                });
                core.write_locked(io, file, offset, data, written);
            }),
        );
    }

    /// Writes bytes whose blocks are held, completing the edges from what is stored.
    fn write_locked(&mut self, io: &mut dyn Io, file: FileId, offset: u64, data: Buf, then: Then<()>) {
        let Some(f) = self.files.get_mut(&file) else {
            return then(self, io, Err(ClientError::Closed("the file is not open")));
        };
        let end = offset + data.len() as u64;
        let (from, to) = (block_start(offset), block_end(end));
        let edge = f.edge.take_if(|(block, _)| (from / BLOCK..to / BLOCK).contains(block));
        if (from, to) == (offset, end) {
            return self.transfer(io, file, from, to - from, Job::Write(data), unit(then));
        }
        let need_head = from < offset && from < f.size;
        let need_tail = end < to && end < f.size;
        let last = to - BLOCK;
        let mut wanted = Vec::new();
        if need_head {
            wanted.push(from);
        }
        if need_tail && !(need_head && last == from) {
            wanted.push(last);
        }
        let mut known = Vec::new();
        if let Some((block, bytes)) = edge
            && let Some(at) = wanted.iter().position(|w| *w == block * BLOCK)
        {
            known.push((wanted.remove(at), bytes));
        }
        self.read_edges(
            io,
            file,
            wanted,
            known,
            Box::new(move |core, io, edges| {
                let edges = match edges {
                    Ok(edges) => edges,
                    Err(e) => return then(core, io, Err(e)),
                };
                let whole = complete(io, from, to, offset, data, edges);
                let tail = (end < to)
                    .then(|| (last / BLOCK, whole.slice((last - from) as usize..(to - from) as usize)));
                let keep: Then<Buf> = Box::new(move |core, io, result| {
                    if result.is_ok()
                        && let Some(f) = core.files.get_mut(&file)
                    {
                        f.edge = tail; // The next write of a sequential writer begins in this block.
                    }
                    then(core, io, result.map(|_| ()));
                });
                core.transfer(io, file, from, to - from, Job::Write(whole), keep);
            }),
        );
    }

    /// Reads single blocks, one after the other.
    fn read_edges(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        mut wanted: Vec<u64>,
        mut known: Vec<(u64, Buf)>,
        then: Then<Vec<(u64, Buf)>>,
    ) {
        let Some(offset) = wanted.pop() else { return then(self, io, Ok(known)) };
        self.stats.edge_reads += 1;
        self.read_blocks(
            io,
            file,
            offset,
            BLOCK,
            Box::new(move |core, io, data| match data {
                Ok(data) => {
                    known.push((offset, data));
                    core.read_edges(io, file, wanted, known, then);
                }
                Err(e) => then(core, io, Err(e)),
            }),
        );
    }

    /// Zeroes `from..to` within one block, which is held.
    fn zero_edge(&mut self, io: &mut dyn Io, file: FileId, from: u64, to: u64, then: Then<()>) {
        let start = block_start(from);
        if from >= to {
            return then(self, io, Ok(()));
        }
        self.read_edges(
            io,
            file,
            vec![start],
            Vec::new(),
            Box::new(move |core, io, edges| {
                let (_, old) = match edges.map(|mut e| e.pop()) {
                    Ok(Some(edge)) => edge,
                    Ok(None) => return then(core, io, Ok(())),
                    Err(e) => return then(core, io, Err(e)),
                };
                let range = (from - start) as usize..(to - start) as usize;
                if old[range.clone()].iter().all(|b| *b == 0) {
                    return then(core, io, Ok(()));
                }
                let mut block = io.buffer(BLOCK_BYTES);
                block.copy_from_slice(&old);
                block[range].fill(0);
                core.transfer(io, file, start, BLOCK, Job::Write(block.freeze()), unit(then));
            }),
        );
    }

    /// Zeroes `from..to`, whose blocks are held: edges by rewriting them, whole blocks by giving their space back.
    fn zero_locked(&mut self, io: &mut dyn Io, file: FileId, from: u64, to: u64, then: Then<()>) {
        if let Some(f) = self.files.get_mut(&file) {
            f.edge = None;
        }
        let (inner_from, inner_to) = (block_end(from), block_start(to));
        if inner_from > inner_to {
            return self.zero_edge(io, file, from, to, then); // All within one block.
        }
        self.zero_edge(
            io,
            file,
            from,
            inner_from,
            Box::new(move |core, io, result| {
                if result.is_err() {
                    return then(core, io, result);
                }
                core.zero_edge(
                    io,
                    file,
                    inner_to,
                    to,
                    Box::new(move |core, io, result| match result {
                        Err(e) => then(core, io, Err(e)),
                        Ok(()) => {
                            core.transfer(io, file, inner_from, inner_to - inner_from, Job::Zero, unit(then))
                        }
                    }),
                );
            }),
        );
    }

    pub(super) fn zero(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        len: u64,
        keep_size: bool,
        then: Then<()>,
    ) {
        self.write_gathered(io, file);
        let Some(mut end) = offset.checked_add(len) else {
            return then(self, io, Err(ClientError::Invalid("range")));
        };
        if keep_size {
            end = end.min(self.files.get(&file).map_or(0, |f| f.size));
        }
        if end <= offset {
            let open = self.open_file(file).map(|_| ());
            return then(self, io, open);
        }
        self.begin_change(
            io,
            file,
            offset,
            end,
            Box::new(move |core, io, change| {
                let change = match change {
                    Ok(change) => change,
                    Err(e) => return then(core, io, Err(e)),
                };
                // Behind the end of the file all is zero: the last block may be given back whole.
                let size = core.files.get(&file).map_or(0, |f| f.size);
                let to = if end >= size { block_end(end) } else { end };
                core.zero_locked(
                    io,
                    file,
                    offset,
                    to,
                    Box::new(move |core, io, result| {
                        if result.is_ok()
                            && let Some(f) = core.files.get_mut(&file)
                        {
                            let end = if keep_size { 0 } else { end };
                            f.grown_to(end, io.now(), io.wall_ms());
                        }
                        core.end_change(io, change);
                        then(core, io, result);
                    }),
                );
            }),
        );
    }

    pub(super) fn reserve(&mut self, io: &mut dyn Io, file: FileId, offset: u64, len: u64, then: Then<()>) {
        self.write_gathered(io, file);
        let Some(end) = offset.checked_add(len) else {
            return then(self, io, Err(ClientError::Invalid("range")));
        };
        let size = self.files.get(&file).map_or(0, |f| f.size);
        if end <= size {
            let open = self.open_file(file).map(|_| ());
            return then(self, io, open);
        }
        self.begin_change(
            io,
            file,
            size,
            end,
            Box::new(move |core, io, change| {
                let change = match change {
                    Ok(change) => change,
                    Err(e) => return then(core, io, Err(e)),
                };
                if let Some(f) = core.files.get_mut(&file) {
                    f.grown_to(end, io.now(), io.wall_ms());
                }
                core.end_change(io, change);
                core.record_size(io, file, then);
            }),
        );
    }

    // Sizes.

    /// Makes sure that nothing but zeros lies behind the size, where a client that died may have written. The
    /// caller holds all blocks from the size on.
    fn clean_tail(&mut self, io: &mut dyn Io, file: FileId, then: Then<()>) {
        let Some(f) = self.files.get(&file) else {
            return then(self, io, Err(ClientError::Closed("the file is not open")));
        };
        let size = f.size;
        self.cut(
            io,
            file,
            AttrChange { size_bytes: Some(size), ..AttrChange::default() },
            Box::new(move |core, io, result| then(core, io, result.map(|_| ()))),
        );
    }

    /// Zeroes what lies behind the new size in its chunk, then tells the MDS, which drops the chunks behind. The
    /// caller holds all blocks from the smaller of both sizes on.
    fn cut(&mut self, io: &mut dyn Io, file: FileId, change: AttrChange, then: Then<FileAttr>) {
        let Some(f) = self.files.get_mut(&file) else {
            return then(self, io, Err(ClientError::Closed("the file is not open")));
        };
        f.edge = None;
        let new = change.size_bytes.unwrap_or(f.size);
        let chunk_end = new.next_multiple_of(f.chunk_bytes());
        let dirty_to = if f.tail_clean { block_end(f.size).min(chunk_end) } else { chunk_end };
        let record: Then<()> = Box::new(move |core, io, zeroed| match zeroed {
            Err(e) => then(core, io, Err(e)),
            Ok(()) => core.begin_size_change(
                io,
                file,
                Box::new(move |core, io, begun| match begun {
                    Err(e) => then(core, io, Err(e)),
                    Ok(()) => core.set_size(io, file, change, then),
                }),
            ),
        });
        if new < dirty_to {
            self.zero_locked(io, file, new, dirty_to, record);
        } else {
            record(self, io, Ok(()));
        }
    }

    fn set_size(&mut self, io: &mut dyn Io, file: FileId, change: AttrChange, then: Then<FileAttr>) {
        let client = self.mds.client().unwrap_or_default();
        let size = change.size_bytes;
        let then = match size {
            Some(size) => self.cache_guards(file, size..u64::MAX, then),
            None => then,
        };
        self.mds_call(
            io,
            MdsRequest::SetAttr { client, file, change },
            Box::new(move |core, io, reply| {
                let result = match reply {
                    Ok(MdsReply::Attr(attr)) => Ok(attr),
                    Ok(other) => Err(unexpected(&other)),
                    Err(e) => Err(e),
                };
                if let (Ok(attr), Some(f)) = (&result, core.files.get_mut(&file)) {
                    if let Some(size) = size {
                        let first_behind = size.div_ceil(f.chunk_bytes());
                        f.forget_maps(u32::try_from(first_behind).unwrap_or(u32::MAX));
                        f.size_set(size, attr.mtime_ns);
                        f.tail_clean = true;
                    }
                    f.refresh_attr(attr.clone());
                }
                core.end_size_change(io, file);
                let current = core.files.get(&file).map(|f| f.current_attr());
                then(core, io, result.map(|attr| current.unwrap_or(attr)));
            }),
        );
    }

    /// Sets the size (and other attributes with it), opening the file for the purpose if need be.
    pub(super) fn truncate(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        change: AttrChange,
        then: Then<FileAttr>,
    ) {
        self.open(
            io,
            file,
            LeaseMode::Write,
            Box::new(move |core, io, opened| {
                if let Err(e) = opened {
                    return then(core, io, Err(e));
                }
                let finish: Then<FileAttr> = Box::new(move |core, io, result| {
                    core.close(
                        io,
                        file,
                        LeaseMode::Write,
                        Box::new(move |core, io, _| then(core, io, result)),
                    );
                });
                core.truncate_open(io, file, change, finish);
            }),
        );
    }

    fn truncate_open(&mut self, io: &mut dyn Io, file: FileId, change: AttrChange, then: Then<FileAttr>) {
        self.write_gathered(io, file);
        let new = change.size_bytes.unwrap_or(0);
        let op = match self.check_change(file, new).and_then(|()| self.op_begin(file, true)) {
            Ok(op) => op,
            Err(e) => return then(self, io, Err(e)),
        };
        let started = io.now();
        let size = self.files.get(&file).map_or(0, |f| f.size);
        let end: Then<FileAttr> = Box::new(move |core, io, result| {
            core.end_change(io, Change { file, op, started });
            then(core, io, result);
        });
        self.lock(
            io,
            file,
            op,
            // From the first block: the size may change while this waits, and cutting is rare.
            0..u64::MAX,
            Box::new(move |core, io, locked| {
                if let Err(e) = locked {
                    return end(core, io, Err(e));
                }
                let grows_over_old_tail =
                    core.files.get(&file).is_some_and(|f| new > f.size && !f.tail_clean);
                tracing::debug!(%file, size, new, "truncate");
                if !grows_over_old_tail {
                    return core.cut(io, file, change, end);
                }
                core.clean_tail(
                    io,
                    file,
                    Box::new(move |core, io, cleaned| match cleaned {
                        Ok(()) => core.cut(io, file, change, end),
                        Err(e) => end(core, io, Err(e)),
                    }),
                );
            }),
        );
    }

    // Holes.

    pub(super) fn seek(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        what: SeekFor,
        then: Then<Option<u64>>,
    ) {
        // A chunk that is not there yet would look like a hole.
        if self.has_written_behind(file) {
            let again: Then<()> = Box::new(move |core, io, written| match written {
                Ok(()) => core.seek(io, file, offset, what, then),
                Err(e) => then(core, io, Err(e)),
            });
            return self.sync(io, file, again);
        }
        let (size, chunk_bytes) = match self.open_file(file) {
            Ok(f) => (f.size, f.chunk_bytes()),
            Err(e) => return then(self, io, Err(e)),
        };
        if offset >= size {
            return then(self, io, Ok(None));
        }
        let first = (offset / chunk_bytes) as u32;
        let last = (((size - 1) / chunk_bytes) as u32).min(first.saturating_add(255));
        self.know_maps(
            io,
            file,
            first,
            last,
            Box::new(move |core, io, known| {
                let f = match known.and_then(|()| core.open_file(file)) {
                    Ok(f) => f,
                    Err(e) => return then(core, io, Err(e)),
                };
                let has_chunk = |i: &u32| f.slots.get(i).is_some_and(|s| s.map.is_some());
                let start = |index: u32| offset.max(u64::from(index) * chunk_bytes);
                // A hole may begin within a chunk; data is within one in any case.
                let end = u64::from(last) * chunk_bytes + chunk_bytes;
                match ((first..=last).find(has_chunk), what) {
                    (Some(index), SeekFor::Hole) if index > first => then(core, io, Ok(Some(offset))),
                    (None, SeekFor::Hole) => then(core, io, Ok(Some(offset))),
                    (Some(index), _) => core.seek_in_chunk(io, file, start(index), what, then),
                    (None, SeekFor::Data) => core.seek(io, file, end, what, then),
                }
            }),
        );
    }

    /// The same, where a chunk is: asks which of its next blocks hold something.
    fn seek_in_chunk(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        what: SeekFor,
        then: Then<Option<u64>>,
    ) {
        let (size, chunk_bytes) = match self.open_file(file) {
            Ok(f) => (f.size, f.chunk_bytes()),
            Err(e) => return then(self, io, Err(e)),
        };
        let from = offset / BLOCK * BLOCK;
        let chunk_end = (offset / chunk_bytes + 1) * chunk_bytes;
        let end = chunk_end.min(size.next_multiple_of(BLOCK)).min(from + MAX_FIND_BYTES);
        if from >= end {
            return self.seek(io, file, offset, what, then); // It was cut meanwhile.
        }
        let found: Then<Buf> = Box::new(move |core, io, found| {
            let found = match found {
                Ok(found) => found,
                Err(e) => return then(core, io, Err(e)),
            };
            let wanted = |byte: &u8| (*byte != 0) == (what == SeekFor::Data);
            let at = found.iter().position(wanted).map(|n| offset.max(from + n as u64 * BLOCK));
            match at {
                Some(at) => then(core, io, Ok(Some(at.min(size)))),
                None if end < size => core.seek(io, file, end, what, then),
                None if what == SeekFor::Hole => then(core, io, Ok(Some(size))),
                None => then(core, io, Ok(None)),
            }
        });
        self.transfer(io, file, from, end - from, Job::Find, found);
    }
}

fn unit(then: Then<()>) -> Then<Buf> {
    Box::new(move |core, io, result| then(core, io, result.map(|_| ())))
}

/// Whole blocks `from..to` out of `data` at `offset` and the old contents of the edge blocks.
fn complete(io: &mut dyn Io, from: u64, to: u64, offset: u64, data: Buf, edges: Vec<(u64, Buf)>) -> Buf {
    let len = (to - from) as usize;
    let data = match data.try_into_mut() {
        // Only zeros are missing at the end, and the buffer has the room for them.
        Ok(own) if offset == from && edges.is_empty() && own.capacity() >= len => return padded(own, len),
        Ok(own) => own.freeze(),
        Err(data) => data,
    };
    let mut whole = io.buffer(len);
    for (at, bytes) in &edges {
        let at = (at - from) as usize;
        whole[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let at = (offset - from) as usize;
    whole[at..at + data.len()].copy_from_slice(&data);
    whole.freeze()
}

fn padded(mut data: BufMut, len: usize) -> Buf {
    let used = data.len();
    data.set_len(len);
    data[used..].fill(0);
    data.freeze()
}
