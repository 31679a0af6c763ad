//! Aligned buffers: one allocation that a payload keeps from the network card to the disk.
//!
//! Invariants:
//! - the memory starts at a 4 KiB boundary and its capacity is a multiple of 4 KiB, so that any prefix
//!   can be used for O_DIRECT once its length is rounded up;
//! - a [`BufMut`] is the only handle to its memory; a [`Buf`] is read-only and may be shared (cloned,
//!   sliced, sent to other threads) without a copy;
//! - memory is zeroed when it is first allocated, never handed out uninitialised;
//! - freed memory goes to a list of the freeing thread by size, so that a shard in steady state asks the
//!   allocator for none; what that has no room for, to a list of all threads, so that one that only makes buffers
//!   for another to free (an event loop of the mount) does not either.
//!
//! Buffers for transfers to and from a disk come from the thread's arena ([`crate::arena`]) while that has room.
//!
//! Short buffers for metadata are the exception: they are aligned to cache lines only.

use crate::arena::{Arena, Piece};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

/// Alignment and granularity of buffers, bytes: the block size of the whole system.
pub const BLOCK_BYTES: usize = 4096;

struct Slab {
    start: *mut u8,
    capacity_bytes: usize,
    /// Whose part it is, if it is not of the allocator's.
    arena: Option<Arc<Arena>>,
}

// SAFETY: a Slab is plain memory; exclusive access is enforced by BufMut (unique) and Buf (read-only).
unsafe impl Send for Slab {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for Slab {}

/// Capacity of buffers for metadata: headers of messages are many and small, and whole blocks for them would all fall
/// onto the same lines of the processor's cache.
const SMALL_BYTES: usize = 512;
const SMALL_ALIGNMENT: usize = 64;

impl Slab {
    fn layout(capacity_bytes: usize) -> Layout {
        let alignment = if capacity_bytes == SMALL_BYTES { SMALL_ALIGNMENT } else { BLOCK_BYTES };
        Layout::from_size_align(capacity_bytes, alignment).expect("buffer size fits a layout")
    }

    fn new(capacity_bytes: usize) -> Self {
        let layout = Self::layout(capacity_bytes);
        // SAFETY: the layout has a non-zero size (capacity is at least that of a small buffer).
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Slab { start, capacity_bytes, arena: None }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        match self.arena.take() {
            Some(arena) => arena.give_back(Piece { start: self.start, bytes: self.capacity_bytes }),
            // SAFETY: allocated in `new` with this same layout and freed only here.
            None => unsafe { dealloc(self.start, Self::layout(self.capacity_bytes)) },
        }
    }
}

/// Bytes a thread keeps for reuse, and so do all threads together; beyond that memory goes back to the allocator.
const KEEP_BYTES: usize = 64 << 20;
/// Capacities up to so many blocks have lists of their own.
const LISTED_BLOCKS: usize = 16;

/// Memory of a thread for reuse, with old content. Everything in it has one owner: the pool.
#[derive(Default)]
struct Pool {
    free: Free,
    arena: Option<Arc<Arena>>,
    /// Free parts of the arena.
    in_arena: ByCapacity,
}

#[derive(Default)]
struct Free {
    by_capacity: ByCapacity,
    kept_bytes: usize,
}

impl Free {
    fn take(&mut self, capacity_bytes: usize) -> Option<Arc<Slab>> {
        let slab = self.by_capacity.list(capacity_bytes).pop()?;
        self.kept_bytes -= capacity_bytes;
        Some(slab)
    }

    /// Gives it back if there is no room.
    fn keep(&mut self, slab: Arc<Slab>) -> Option<Arc<Slab>> {
        if self.kept_bytes + slab.capacity_bytes > KEEP_BYTES {
            return Some(slab);
        }
        self.kept_bytes += slab.capacity_bytes;
        self.by_capacity.list(slab.capacity_bytes).push(slab);
        None
    }
}

#[derive(Default)]
struct ByCapacity {
    /// Small ones first, then 1, 2, … blocks.
    listed: [Vec<Arc<Slab>>; LISTED_BLOCKS + 1],
    others: HashMap<usize, Vec<Arc<Slab>>>,
}

impl ByCapacity {
    fn list(&mut self, capacity_bytes: usize) -> &mut Vec<Arc<Slab>> {
        let blocks = capacity_bytes / BLOCK_BYTES;
        if blocks <= LISTED_BLOCKS {
            &mut self.listed[blocks]
        } else {
            self.others.entry(capacity_bytes).or_default()
        }
    }
}

impl Pool {
    /// A part of the arena for a buffer of `len` bytes.
    fn take_from_arena(&mut self, len: usize) -> Option<Arc<Slab>> {
        let arena = self.arena.as_ref()?;
        let size = Arena::size_for(len)?;
        if let Some(slab) = self.in_arena.list(size).pop() {
            return Some(slab);
        }
        let slab =
            |p: Piece| Arc::new(Slab { start: p.start, capacity_bytes: p.bytes, arena: Some(arena.clone()) });
        if let Some(piece) = arena.cut(size) {
            return Some(slab(piece));
        }
        for back in arena.take_returned() {
            let bytes = back.bytes;
            self.in_arena.list(bytes).push(slab(back));
        }
        self.in_arena.list(size).pop()
    }

    fn keep(&mut self, slab: Arc<Slab>) {
        match (&slab.arena, &self.arena) {
            (Some(theirs), Some(ours)) if Arc::ptr_eq(theirs, ours) => {
                self.in_arena.list(slab.capacity_bytes).push(slab);
            }
            (Some(_), _) => {} // Goes back to its own thread.
            (None, _) => {
                if let Some(slab) = self.free.keep(slab) {
                    spare().keep(slab);
                }
            }
        }
    }
}

/// Has the buffers of this thread's disk transfers come from an arena, or from ordinary memory again.
pub(crate) fn use_arena(arena: Option<Arc<Arena>>) {
    POOL.with(|pool| {
        let mut pool = pool.borrow_mut();
        pool.arena = arena;
        pool.in_arena = ByCapacity::default();
    });
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// What all threads share.
fn spare() -> MutexGuard<'static, Free> {
    static SPARE: LazyLock<Mutex<Free>> = LazyLock::new(Mutex::default);
    SPARE.lock().expect("no panic under this lock")
}

fn obtain(capacity_bytes: usize) -> Arc<Slab> {
    let own = POOL.try_with(|pool| pool.borrow_mut().free.take(capacity_bytes)).ok().flatten();
    own.or_else(|| spare().take(capacity_bytes)).unwrap_or_else(|| Arc::new(Slab::new(capacity_bytes)))
}

/// Gives up one owner's hold. The last one's memory goes into its thread's pool, unless that is full or the thread is
/// ending. (Two that are the last at the same moment both see the other, and the memory is freed: no harm.)
fn give_back(mut slab: Arc<Slab>) {
    if Arc::strong_count(&slab) > 1 || Arc::get_mut(&mut slab).is_none() {
        return;
    }
    let _ = POOL.try_with(|pool| {
        if let Ok(mut pool) = pool.try_borrow_mut() {
            pool.keep(slab);
        }
    });
}

/// A writable aligned buffer with one owner.
pub struct BufMut {
    /// `None` when empty.
    slab: Option<Arc<Slab>>,
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
        let slab = (len > 0).then(|| obtain(len.next_multiple_of(BLOCK_BYTES)));
        BufMut { slab, len }
    }

    /// As [`BufMut::scratch`], for a transfer to or from a disk.
    pub fn for_disk(len: usize) -> Self {
        let pooled = POOL.try_with(|pool| pool.borrow_mut().take_from_arena(len)).ok().flatten();
        match pooled {
            Some(slab) => BufMut { slab: Some(slab), len },
            None => Self::scratch(len),
        }
    }

    /// As [`BufMut::scratch`], for metadata: short ones are not block-aligned.
    pub fn metadata(len: usize) -> Self {
        if len == 0 || len > SMALL_BYTES {
            return Self::scratch(len);
        }
        BufMut { slab: Some(obtain(SMALL_BYTES)), len }
    }

    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    pub fn capacity(&self) -> usize {
        self.slab.as_ref().map_or(0, |slab| slab.capacity_bytes)
    }

    /// Changes the length within the capacity. Panics beyond it.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} beyond capacity {}", self.capacity());
        self.len = len;
    }

    /// Makes the buffer read-only and shareable. No copy.
    pub fn freeze(mut self) -> Buf {
        Buf { slab: self.slab.take(), offset: 0, len: self.len }
    }
}

impl Drop for BufMut {
    fn drop(&mut self) {
        self.slab.take().into_iter().for_each(give_back);
    }
}

impl Deref for BufMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let Some(slab) = &self.slab else { return &[] };
        // SAFETY: len <= capacity, the memory is initialised, and we are the only owner.
        unsafe { std::slice::from_raw_parts(slab.start, self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(slab) = &self.slab else { return &mut [] };
        // SAFETY: as above; `&mut self` of the unique owner makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(slab.start, self.len) }
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

    /// Copies metadata into a buffer that need not be block-aligned.
    pub fn metadata(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::empty();
        }
        let mut buf = BufMut::metadata(bytes.len());
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    /// The bytes `from..to` of this view, sharing the memory. Panics when out of range.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Buf {
        assert!(range.start <= range.end && range.end <= self.len, "slice {range:?} of {} bytes", self.len);
        Buf { slab: self.slab.clone(), offset: self.offset + range.start, len: range.len() }
    }

    /// Whether the view starts at a block boundary, so that O_DIRECT takes it as it is.
    pub fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(BLOCK_BYTES)
            && self.slab.as_ref().is_none_or(|slab| slab.capacity_bytes != SMALL_BYTES)
    }

    /// Takes the memory back for writing if this is the only view of it.
    pub fn try_into_mut(mut self) -> Result<BufMut, Buf> {
        match self.slab.take() {
            Some(slab) if self.offset == 0 && Arc::strong_count(&slab) == 1 => {
                Ok(BufMut { slab: Some(slab), len: self.len })
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

impl Drop for Buf {
    fn drop(&mut self) {
        self.slab.take().into_iter().for_each(give_back);
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

    #[test]
    fn what_one_thread_frees_beyond_its_own_need_another_gets() {
        let len = (1 << 20) + 3 * BLOCK_BYTES; // Of no other test.
        let made: Vec<BufMut> = (0..KEEP_BYTES / len + 2).map(|_| BufMut::scratch(len)).collect();
        let at: Vec<usize> = made.iter().map(|b| b.as_ptr() as usize).collect();
        std::thread::spawn(move || drop(made)).join().unwrap();
        assert!(at.contains(&(BufMut::scratch(len).as_ptr() as usize)));
    }

    #[test]
    fn an_arena_serves_its_thread_until_it_is_full_and_gets_back_what_ended_elsewhere() {
        let arena = Arc::new(Arena::new(2 << 20).unwrap());
        let range = arena.iovec();
        let inside = move |b: &[u8]| {
            let (start, at) = (range.iov_base as usize, b.as_ptr() as usize);
            (start..start + range.iov_len).contains(&at)
        };
        use_arena(Some(arena.clone()));
        let large = BufMut::for_disk(1 << 20);
        let small = BufMut::for_disk(4096);
        assert!(inside(&large) && inside(&small) && !inside(&BufMut::scratch(4096)));
        assert!(!inside(&BufMut::for_disk(1 << 20)), "it is full");
        assert!(!inside(&BufMut::for_disk(4 << 20)), "too large for it");
        let at = large.as_ptr() as usize;
        std::thread::spawn(move || drop(large.freeze())).join().unwrap();
        assert_eq!(BufMut::for_disk(700_000).as_ptr() as usize, at, "it came back");
        use_arena(None);
        assert!(!inside(&BufMut::for_disk(4096)));
        drop(small);
        assert_eq!(Arc::strong_count(&arena), 1, "nobody else holds it");
    }
}
