//! Aligned buffers: one allocation that a payload keeps from the network card to the disk.
//!
//! Invariants:
//! - the memory starts at a 4 KiB boundary and its capacity is a multiple of 4 KiB, so that any prefix
//!   can be used for O_DIRECT once its length is rounded up;
//! - a [`BufMut`] is the only handle to its memory; a [`Buf`] is read-only and may be shared (cloned,
//!   sliced, sent to other threads) without a copy;
//! - memory is zeroed when it is first allocated, never handed out uninitialised;
//! - freed memory goes to a list of the freeing thread by size, so that a shard in steady state asks the
//!   allocator for no payload memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Alignment and granularity of buffers, bytes: the block size of the whole system.
pub const BLOCK_BYTES: usize = 4096;

struct Slab {
    start: *mut u8,
    capacity_bytes: usize,
}

// SAFETY: a Slab is plain memory; exclusive access is enforced by BufMut (unique) and Buf (read-only).
unsafe impl Send for Slab {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for Slab {}

/// Bytes a thread keeps for reuse; beyond that memory goes back to the allocator.
const KEEP_BYTES: usize = 64 << 20;

#[derive(Default)]
struct Pool {
    by_capacity: HashMap<usize, Vec<Slab>>,
    kept_bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Memory of exactly this capacity from the thread's pool, with old content.
fn reuse(capacity_bytes: usize) -> Option<Slab> {
    POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let slab = pool.by_capacity.get_mut(&capacity_bytes)?.pop()?;
        pool.kept_bytes -= capacity_bytes;
        Some(slab)
    })
    .ok()
    .flatten()
}

/// Takes memory into the thread's pool; false when it is full or the thread is ending.
fn keep(start: *mut u8, capacity_bytes: usize) -> bool {
    POOL.try_with(|pool| {
        let Ok(mut pool) = pool.try_borrow_mut() else { return false };
        if pool.kept_bytes + capacity_bytes > KEEP_BYTES {
            return false;
        }
        pool.kept_bytes += capacity_bytes;
        pool.by_capacity.entry(capacity_bytes).or_default().push(Slab { start, capacity_bytes });
        true
    })
    .unwrap_or(false)
}

impl Slab {
    fn layout(capacity_bytes: usize) -> Layout {
        Layout::from_size_align(capacity_bytes, BLOCK_BYTES).expect("buffer size fits a layout")
    }

    fn new(capacity_bytes: usize) -> Self {
        let layout = Self::layout(capacity_bytes);
        // SAFETY: the layout has a non-zero size (capacity is at least one block).
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Slab { start, capacity_bytes }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if keep(self.start, self.capacity_bytes) {
            return;
        }
        // SAFETY: allocated in `new` with this same layout and freed only here.
        unsafe { dealloc(self.start, Self::layout(self.capacity_bytes)) }
    }
}

/// A writable aligned buffer with one owner.
pub struct BufMut {
    slab: Arc<Slab>,
    len: usize,
}

impl BufMut {
    /// A zeroed buffer of `len` bytes; capacity is rounded up to whole blocks.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::scratch(len);
        buf.fill(0);
        buf
    }

    /// A buffer with arbitrary old content, for callers that overwrite all of it before anybody reads it.
    pub fn scratch(len: usize) -> Self {
        let capacity = len.max(1).next_multiple_of(BLOCK_BYTES);
        let slab = reuse(capacity).unwrap_or_else(|| Slab::new(capacity));
        BufMut { slab: Arc::new(slab), len }
    }

    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    pub fn capacity(&self) -> usize {
        self.slab.capacity_bytes
    }

    /// Changes the length within the capacity. Panics beyond it.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.slab.capacity_bytes, "length {len} beyond capacity {}", self.slab.capacity_bytes);
        self.len = len;
    }

    /// Makes the buffer read-only and shareable. No copy.
    pub fn freeze(self) -> Buf {
        let len = self.len;
        Buf { slab: Some(self.slab), offset: 0, len }
    }
}

impl Deref for BufMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: len <= capacity, the memory is initialised, and we are the only owner.
        unsafe { std::slice::from_raw_parts(self.slab.start, self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` of the unique owner makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.slab.start, self.len) }
    }
}

impl std::fmt::Debug for BufMut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

/// A read-only view of an aligned buffer; cloning and slicing share the memory.
#[derive(Clone, Default)]
pub struct Buf {
    slab: Option<Arc<Slab>>,
    offset: usize,
    len: usize,
}

impl Buf {
    pub const fn empty() -> Self {
        Buf { slab: None, offset: 0, len: 0 }
    }

    /// Copies `bytes` into a new aligned buffer (control messages, tests; never payload on the hot path).
    pub fn from_slice(bytes: &[u8]) -> Self {
        if bytes.is_empty() { Self::empty() } else { BufMut::from_slice(bytes).freeze() }
    }

    /// The bytes `from..to` of this view, sharing the memory. Panics when out of range.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Buf {
        assert!(range.start <= range.end && range.end <= self.len, "slice {range:?} of {} bytes", self.len);
        Buf { slab: self.slab.clone(), offset: self.offset + range.start, len: range.len() }
    }

    /// Whether the view starts at a block boundary, so that O_DIRECT takes it as it is.
    pub fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(BLOCK_BYTES)
    }

    /// Takes the memory back for writing if this is the only view of it.
    pub fn try_into_mut(mut self) -> Result<BufMut, Buf> {
        match self.slab.take() {
            Some(slab) if self.offset == 0 && Arc::strong_count(&slab) == 1 => {
                Ok(BufMut { slab, len: self.len })
            }
            slab => {
                self.slab = slab;
                Err(self)
            }
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.slab {
            None => &[],
            // SAFETY: offset + len lies within the initialised capacity (checked by `slice`), and no
            // BufMut to this memory exists while a Buf does.
            Some(slab) => unsafe { std::slice::from_raw_parts(slab.start.add(self.offset), self.len) },
        }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

impl PartialEq for Buf {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_shared() {
        let mut buf = BufMut::zeroed(5000);
        assert_eq!(buf.as_ptr() as usize % BLOCK_BYTES, 0);
        assert_eq!(buf.capacity(), 8192);
        assert!(buf.iter().all(|&b| b == 0));
        buf[4999] = 7;
        let whole = buf.freeze();
        let tail = whole.slice(4096..5000);
        assert!(tail.is_aligned());
        assert_eq!(tail[903], 7);
        assert!(whole.try_into_mut().is_err(), "a second view exists");
        assert!(tail.slice(1..2).len() == 1 && !tail.slice(1..2).is_aligned());
    }
}
