//! Reads: overlay first, then the data file, holes as zeros; every block verified before it leaves.

use super::{Done, Store, StoreError, Ticket, UNIT_BLOCKS, UNIT_BYTES, Waiting};
use shards::{Buf, BufMut, Io};
use smallvec::SmallVec;
use std::io;
use std::ops::Range;
use wire::{BLOCK_BYTES, BlockCrc, BlockCrcs, ChunkId};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Data,
    Sums,
}

pub(super) struct Reading {
    ticket: Ticket,
    chunk: ChunkId,
    blocks: Range<u32>,
    want: Want,
    runs_left: u32,
    /// Data blocks read: first block and bytes.
    parts: SmallVec<[(u32, Buf); 1]>,
    failed: Option<StoreError>,
}

/// First block, number of blocks, offset in `data`.
type Runs = SmallVec<[(u32, u32, u64); 1]>;

impl Store {
    pub(super) fn start_read(
        &mut self,
        io: &mut dyn Io,
        ticket: Ticket,
        id: ChunkId,
        blocks: Range<u32>,
        want: Want,
    ) {
        let runs = self.disk_runs(id, &blocks);
        let read = self.fresh_id();
        let reading = Reading {
            ticket,
            chunk: id,
            blocks: blocks.clone(),
            want,
            runs_left: runs.len() as u32,
            parts: SmallVec::new(),
            failed: None,
        };
        if runs.is_empty() {
            let result = self.assemble(reading);
            return self.finish(ticket, result);
        }
        self.chunks.get_mut(&id).expect("submit saw it").active.push((read, blocks, false));
        self.reads.insert(read, reading);
        for (at_block, count, offset) in runs {
            let wait = self.expect(Waiting::ReadRun { id: read, at_block, blocks: count });
            io.read(self.data, offset, count as usize * BLOCK_BYTES, wait);
        }
    }

    /// What must be read from `data`: first block, number of blocks, offset; neighbours on disk joined.
    fn disk_runs(&self, id: ChunkId, blocks: &Range<u32>) -> Runs {
        let chunk = &self.chunks[&id];
        let mut runs = Runs::new();
        for block in blocks.clone() {
            if chunk.overlay.contains_key(&block) || chunk.crc(block) == BlockCrc::HOLE {
                continue;
            }
            let Some(unit) = chunk.unit(block / UNIT_BLOCKS) else { continue };
            let offset = u64::from(unit) * UNIT_BYTES + u64::from(block % UNIT_BLOCKS) * BLOCK_BYTES as u64;
            match runs.last_mut() {
                Some((first, count, at))
                    if *first + *count == block && *at + u64::from(*count) * BLOCK_BYTES as u64 == offset =>
                {
                    *count += 1;
                }
                _ => runs.push((block, 1, offset)),
            }
        }
        runs
    }

    pub(super) fn read_run_done(
        &mut self,
        io: &mut dyn Io,
        id: u64,
        at_block: u32,
        blocks: u32,
        result: io::Result<Buf>,
    ) {
        let Some(reading) = self.reads.get_mut(&id) else { return };
        reading.runs_left -= 1;
        match result {
            Ok(data) => {
                let chunk = &self.chunks[&reading.chunk];
                let bad = (0..blocks).find(|&i| {
                    let block = &data[i as usize * BLOCK_BYTES..(i as usize + 1) * BLOCK_BYTES];
                    let on_disk = chunk.pages[&((at_block + i) / super::PAGE_BLOCKS)]
                        .crc((at_block + i) % super::PAGE_BLOCKS);
                    !on_disk.matches(block)
                });
                if let Some(i) = bad {
                    reading.failed = Some(StoreError::Checksum { chunk: reading.chunk, block: at_block + i });
                }
                reading.parts.push((at_block, data));
            }
            Err(source) => {
                reading.failed = Some(StoreError::Io { file: format!("{}/data", self.config.dir), source })
            }
        }
        if reading.runs_left == 0 {
            let reading = self.reads.remove(&id).expect("just seen");
            let (ticket, chunk) = (reading.ticket, reading.chunk);
            let result = self.assemble(reading);
            self.finish(ticket, result);
            self.release(io, chunk, id);
        }
    }

    fn assemble(&self, mut reading: Reading) -> Result<Done, StoreError> {
        if let Some(error) = reading.failed {
            return Err(error);
        }
        let chunk = &self.chunks[&reading.chunk];
        let blocks = reading.blocks.clone();
        let crcs: BlockCrcs = blocks.clone().map(|b| chunk.crc(b)).collect();
        if reading.want == Want::Sums {
            return Ok(Done::Sums { crcs });
        }
        let len = crcs.len() * BLOCK_BYTES;
        let no_overlay = chunk.overlay.range(blocks.clone()).next().is_none();
        if no_overlay && reading.parts.len() == 1 && reading.parts[0].1.len() == len {
            let (_, data) = reading.parts.pop().expect("one part");
            return Ok(Done::Read { data, crcs });
        }
        let mut data = BufMut::zeroed(len);
        for (first, part) in &reading.parts {
            let at = (first - blocks.start) as usize * BLOCK_BYTES;
            data[at..at + part.len()].copy_from_slice(part);
        }
        for (block, newer) in chunk.overlay.range(blocks.clone()) {
            let at = (block - blocks.start) as usize * BLOCK_BYTES;
            data[at..at + BLOCK_BYTES].copy_from_slice(&newer.data);
        }
        Ok(Done::Read { data: data.freeze(), crcs })
    }
}
