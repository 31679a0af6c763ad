//! Memory that a ring knows in advance: the kernel need not find and hold the pages of every transfer. It lies in huge
//! pages where the system has them, so that a large transfer is a few segments and not one per page.
//!
//! An arena belongs to the thread that made it. Its slabs go round in that thread's pool (buf.rs); those that end on
//! another thread come back through `returned`. It is cut into sizes that stay: a size that nobody uses any more keeps
//! its part. Transfers beyond the arena's room use ordinary memory.

use crate::buf::BLOCK_BYTES;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Larger transfers don't win anything worth the room.
const LARGEST_BYTES: usize = 2 << 20;

pub struct Arena {
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
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout(bytes)) };
        if start.is_null() {
            return None;
        }
        // SAFETY: the range was allocated above, at a huge page's boundary. Advice only: an error means small pages.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(Arena { start, bytes, cut: AtomicUsize::new(0), returned: Mutex::default() })
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

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, HUGE_PAGE_BYTES).expect("an arena fits a layout")
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; every slab holds the arena, so none is left.
        unsafe { dealloc(self.start, layout(self.bytes)) }
    }
}
