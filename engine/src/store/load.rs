//! Map pages on demand: what a request needs is read before it starts, and what nobody used lately is forgotten.
//!
//! A page that is damaged (twice: what was read wrongly once may be right on the disk) is replaced by one whose blocks are
//! all lost: to read them is an error, which another replica mends, until they are written anew. The rest of the chunk,
//! the journal's records for the page, and the other chunks go on as before.

use super::page::{self, MapPage, PageKind};
use super::write::whole_units;
use super::{Chunk, PAGE_BLOCKS, Request, Store, StoreError, Waiting, bits, pages_of};
use shards::{Buf, Io};
use std::io;
use std::ops::Range;
use wire::{BLOCK_BYTES, ChunkId};

/// A request that waits for map pages. It holds its blocks meanwhile.
pub(super) struct Load {
    request: Request,
    chunk: ChunkId,
    left: u32,
    failed: Option<StoreError>,
}

/// Who waits for a page.
pub(super) enum Waiter {
    Request(u64),
    Round,
    Opening,
    Census,
}

/// Pages looked at in one sweep of the cache.
const SWEEP: usize = 64;

impl Store {
    /// The map pages that a request needs and that are not in memory, as bits.
    pub(super) fn missing_pages(&mut self, request: &Request) -> u128 {
        let (id, blocks, _) = request.shape();
        let Some(chunk) = self.chunks.get_mut(&id) else { return 0 };
        let needed = match request {
            // Small writes go to memory only.
            Request::Write(..) => pages_of(&whole_units(&blocks)),
            Request::SetEpoch(..) => 0,
            _ => pages_of(&blocks),
        };
        let mut missing = 0;
        for number in bits(chunk.exists & needed) {
            match chunk.pages.get_mut(&number) {
                Some(page) => page.used = true,
                None => missing |= 1 << number,
            }
        }
        missing
    }

    pub(super) fn load_then(&mut self, io: &mut dyn Io, request: Request, missing: u128) {
        let id = self.fresh_id();
        let (chunk, blocks, writes) = request.shape();
        self.chunks.get_mut(&chunk).expect("submit saw it").active.push((id, blocks, writes));
        self.loads.insert(id, Load { request, chunk, left: missing.count_ones(), failed: None });
        for number in bits(missing) {
            self.read_page(io, chunk, number, Waiter::Request(id));
        }
    }

    pub(super) fn read_page(&mut self, io: &mut dyn Io, chunk: ChunkId, number: u32, waiter: Waiter) {
        let waiters = self.page_waiters.entry((chunk, number)).or_default();
        waiters.push(waiter);
        if waiters.len() == 1 {
            self.fetch_page(io, chunk, number, false);
        }
    }

    fn fetch_page(&mut self, io: &mut dyn Io, chunk: ChunkId, number: u32, again: bool) {
        let at = self.chunks[&chunk].page_offset(number);
        let wait = self.expect(Waiting::MapPage { chunk, page: number, again });
        io.read(self.maps, at, BLOCK_BYTES, wait);
    }

    pub(super) fn page_read(
        &mut self,
        io: &mut dyn Io,
        id: ChunkId,
        number: u32,
        again: bool,
        result: io::Result<Buf>,
    ) {
        let read = match self.take_page(id, number, result) {
            Err(StoreError::Corrupt { .. }) if !again => return self.fetch_page(io, id, number, true),
            Err(error @ StoreError::Corrupt { .. }) => Ok(self.lose_page(io, id, number, &error)),
            read => read,
        };
        for waiter in self.page_waiters.remove(&(id, number)).unwrap_or_default() {
            // Errors can't be cloned: who comes after the first reads the page again and sees for itself.
            let failed = read.as_ref().err().map(copy_of);
            match waiter {
                Waiter::Request(load) => self.request_page_done(io, load, number, failed),
                Waiter::Round => match failed {
                    None => self.round_page_done(io),
                    Some(error) => self.break_down(error),
                },
                Waiter::Opening => self.opening_page_done(io, failed),
                Waiter::Census => self.census_page_done(io, failed),
            }
        }
    }

    fn take_page(&mut self, id: ChunkId, number: u32, result: io::Result<Buf>) -> Result<(), StoreError> {
        let file = || format!("{}/{}", self.config.dir, PageKind::Map.file());
        let Some(chunk) = self.chunks.get_mut(&id) else { return Ok(()) };
        if chunk.exists >> number & 1 == 0 || chunk.pages.contains_key(&number) {
            return Ok(()); // Deleted, and perhaps made anew, meanwhile.
        }
        let bytes = result.map_err(|source| StoreError::Io { file: file(), source })?;
        let in_file = page::map_number(chunk.slot, number);
        page::check(&bytes, PageKind::Map, in_file, id, self.committed_round).map_err(|bad| {
            StoreError::Corrupt {
                file: file(),
                offset: chunk.page_offset(number),
                expected: format!("map page {number} of chunk {id}"),
                found: bad.text().into(),
            }
        })?;
        chunk.pages.insert(number, MapPage::decode(&bytes));
        self.page_clock.push_back((id, number));
        Ok(())
    }

    /// The page can't be read. What it described is lost here; the units it named have to be found (census.rs).
    fn lose_page(&mut self, io: &mut dyn Io, id: ChunkId, number: u32, error: &StoreError) {
        tracing::error!(%error, chunk = id.0, page = number, "map_page_lost: 2 MiB of the chunk are lost on this server");
        let chunk = self.chunks.get_mut(&id).expect("somebody waits for its page");
        chunk.pages.insert(number, MapPage::lost());
        chunk.dirty |= 1 << number;
        self.dirty_chunks.insert(id);
        if self.is_ready() {
            self.start_census(io);
            self.mark_dirty(io);
        } else {
            self.lost_at_start.insert((id, number));
        }
    }

    fn request_page_done(&mut self, io: &mut dyn Io, id: u64, number: u32, failed: Option<StoreError>) {
        let Some(load) = self.loads.get_mut(&id) else { return };
        load.left -= 1;
        let (left, chunk) = (load.left, load.chunk);
        match failed {
            // The chunk can be emptied all the same.
            Some(error) if forgets(&load.request, number) => self.lose_page(io, chunk, number, &error),
            Some(error) => load.failed = Some(error),
            None => {}
        }
        if left > 0 {
            return;
        }
        let load = self.loads.remove(&id).expect("just seen");
        let chunk = self.chunks.get_mut(&load.chunk).expect("a request holds it");
        chunk.active.retain(|(active, ..)| *active != id);
        match load.failed {
            None => self.dispatch(io, load.request),
            Some(error) => self.finish(load.request.ticket(), Err(error)),
        }
        // It may have ended at once: by the error, or because all it needed is in memory.
        self.release(io, load.chunk, id);
    }

    /// Forgets clean pages that were not used since the last look, while there are more than the budget allows.
    pub(super) fn shrink_page_cache(&mut self) {
        if self.opening.is_some() {
            return; // The redo needs every page it touches.
        }
        let most = (self.config.map_cache_bytes / super::MAP_PAGE_MEMORY) as usize;
        for _ in 0..SWEEP {
            if self.page_clock.len() <= most {
                return;
            }
            let Some((id, number)) = self.page_clock.pop_front() else { return };
            let Some(chunk) = self.chunks.get_mut(&id) else { continue };
            let free = !chunk.needs_page(number);
            let Some(page) = chunk.pages.get_mut(&number) else { continue };
            // Until its round is valid, the disk has the page only as it was before.
            if free && !page.used && page.round <= self.committed_round {
                chunk.pages.remove(&number);
            } else {
                page.used = false;
                self.page_clock.push_back((id, number));
            }
        }
    }
}

impl Chunk {
    /// Where the valid version of a map page stands in `maps`.
    fn page_offset(&self, number: u32) -> u64 {
        page::offset(page::map_number(self.slot, number), (self.places >> number & 1) as u8)
    }

    /// Whether something under way relies on the page being in memory, or it is not on disk yet.
    fn needs_page(&self, number: u32) -> bool {
        let blocks: Range<u32> = number * PAGE_BLOCKS..(number + 1) * PAGE_BLOCKS;
        self.dirty >> number & 1 == 1
            || !self.active.is_empty()
            || !self.queued.is_empty()
            || self.overlay.range(blocks).next().is_some()
    }
}

/// Whether a request drops everything a page describes.
fn forgets(request: &Request, number: u32) -> bool {
    let (_, blocks, _) = request.shape();
    let whole = blocks.start <= number * PAGE_BLOCKS && blocks.end >= (number + 1) * PAGE_BLOCKS;
    whole && matches!(request, Request::Discard(..) | Request::Delete(..))
}

fn copy_of(error: &StoreError) -> StoreError {
    match error {
        StoreError::Corrupt { file, offset, expected, found } => StoreError::Corrupt {
            file: file.clone(),
            offset: *offset,
            expected: expected.clone(),
            found: found.clone(),
        },
        StoreError::Io { file, source } => {
            StoreError::Io { file: file.clone(), source: io::Error::new(source.kind(), source.to_string()) }
        }
        other => StoreError::BadRequest(other.to_string()),
    }
}
