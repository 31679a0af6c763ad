//! Memory that a ring knows in advance: the kernel need not find and hold the pages of every transfer. It is asked for in
//! huge pages, so that a large transfer is a few segments and not one per page.
//!
//! An arena belongs to the thread that made it. Its slabs go round in that thread's pool (buf.rs); those that end on
//! another thread come back through `returned`. It is cut into sizes that stay: a size that nobody uses any more keeps
//! its part. Transfers beyond the arena's room use ordinary memory.

use crate::buf::BLOCK_BYTES;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Larger transfers don't win anything worth the room.
const LARGEST_BYTES: usize = 2 << 20;

pub struct Arena {
    /// What was mapped, longer by [`HUGE_PAGE_BYTES`].
    mapping: *mut u8,
    /// The first huge page in it.
    start: *mut u8,
    bytes: usize,
    /// Only the owning thread cuts.
    cut: AtomicUsize,
    returned: Mutex<Vec<Piece>>,
}

/// A part of an arena, owned by whoever has it.
pub(crate) struct Piece {
    pub start: *mut u8,
    pub bytes: usize,
}

// SAFETY: a piece is plain memory with one owner.
unsafe impl Send for Piece {}
// SAFETY: the arena's memory is only touched through pieces, each with one owner; the rest of its state is atomic or
// behind a lock.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `None` when none is wanted, or there is no memory for it.
    pub fn new(bytes: usize) -> Option<Arena> {
        if bytes == 0 {
            return None;
        }
        let bytes = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // Mapped, not allocated: nothing has touched the pages when the advice comes, so the first touch (registration)
        // takes huge pages.
        let mapped_bytes = bytes + HUGE_PAGE_BYTES;
        // SAFETY: a new private mapping; its result is checked.
        let mapping = unsafe {
            libc::mmap(
                null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return None;
        }
        let mapping: *mut u8 = mapping.cast();
        let start = mapping.wrapping_add(mapping.align_offset(HUGE_PAGE_BYTES));
        // SAFETY: the aligned range lies within the mapping, which is longer by one huge page. Advice only: an error
        // means small pages.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(Arena { mapping, start, bytes, cut: AtomicUsize::new(0), returned: Mutex::default() })
    }

    /// What the ring registers.
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.start.cast(), iov_len: self.bytes }
    }

    /// Whether memory that starts here, and is one buffer, lies within.
    pub fn contains(&self, start: *const u8) -> bool {
        let first = self.start as usize;
        (first..first + self.bytes).contains(&(start as usize))
    }

    /// The size that a buffer of `bytes` is cut to; `None` for those that don't belong here.
    pub(crate) fn size_for(bytes: usize) -> Option<usize> {
        let size = match bytes {
            0..=0x10000 => bytes.next_multiple_of(BLOCK_BYTES),
            _ => bytes.next_power_of_two(),
        };
        (1..=LARGEST_BYTES).contains(&size).then_some(size)
    }

    /// A new piece of a size of [`Arena::size_for`], while there is room.
    pub(crate) fn cut(&self, bytes: usize) -> Option<Piece> {
        let at = self.cut.load(Relaxed);
        if at + bytes > self.bytes {
            return None;
        }
        self.cut.store(at + bytes, Relaxed);
        // SAFETY: at + bytes lies within the allocation.
        Some(Piece { start: unsafe { self.start.add(at) }, bytes })
    }

    pub(crate) fn give_back(&self, piece: Piece) {
        self.returned.lock().expect("nobody panics here").push(piece);
    }

    pub(crate) fn take_returned(&self) -> Vec<Piece> {
        std::mem::take(&mut *self.returned.lock().expect("nobody panics here"))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every slab holds the arena, so none is left.
        unsafe { libc::munmap(self.mapping.cast(), self.bytes + HUGE_PAGE_BYTES) };
    }
}
