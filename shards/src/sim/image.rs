//! Bytes of one virtual file: sparse, in 4 KiB pages. A page is a view of the buffer it was written from, so that
//! writing, keeping two states of a file and copying a disk cost references, not bytes.

use crate::{Buf, BufMut};
use std::collections::BTreeMap;

pub(super) const PAGE_BYTES: u64 = 4096;

#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: BTreeMap<u64, Buf>,
    pub len: u64,
}

/// The parts of `offset..offset + len` by page: (page, first byte in the page, bytes, position in the range).
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let (page, inside) = ((offset + at) / PAGE_BYTES, (offset + at) % PAGE_BYTES);
        let count = (PAGE_BYTES - inside).min(len - at);
        let piece = (page, inside as usize, count as usize, at as usize);
        at += count;
        Some(piece)
    })
}

/// The pages a range touches.
pub(super) fn pages_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    if len == 0 { 0..0 } else { offset / PAGE_BYTES..(offset + len - 1) / PAGE_BYTES + 1 }
}

impl Image {
    /// Fills `to`; what was never written, or lies behind the end, reads as zeros.
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        for (page, inside, count, at) in pieces(offset, to.len() as u64) {
            match self.pages.get(&page) {
                Some(bytes) => to[at..at + count].copy_from_slice(&bytes[inside..inside + count]),
                None => to[at..at + count].fill(0),
            }
        }
    }

    /// Writes a buffer; whole pages share its memory.
    pub fn write(&mut self, offset: u64, from: &Buf) {
        for (page, inside, count, at) in pieces(offset, from.len() as u64) {
            if count == PAGE_BYTES as usize {
                self.pages.insert(page, from.slice(at..at + count));
            } else {
                self.change_page(page, |bytes| {
                    bytes[inside..inside + count].copy_from_slice(&from[at..at + count])
                });
            }
        }
        self.len = self.len.max(offset + from.len() as u64);
    }

    fn change_page(&mut self, page: u64, change: impl FnOnce(&mut [u8])) {
        let mut bytes = match self.pages.get(&page) {
            Some(old) => BufMut::from_slice(old),
            None => BufMut::zeroed(PAGE_BYTES as usize),
        };
        change(&mut bytes);
        self.pages.insert(page, bytes.freeze());
    }

    /// Numbers of the pages that hold something.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// A page's contents; `None` is zeros.
    pub fn page(&self, page: u64) -> Option<Buf> {
        self.pages.get(&page).cloned()
    }

    /// Puts a page's contents in place. The length stays.
    pub fn set_page(&mut self, page: u64, bytes: Option<Buf>) {
        match bytes {
            Some(bytes) => self.pages.insert(page, bytes),
            None => self.pages.remove(&page),
        };
    }

    /// Zeroes a range and frees whole pages in it. The length stays.
    pub fn zero(&mut self, offset: u64, len: u64) {
        for (page, inside, count, _) in pieces(offset, len) {
            if count == PAGE_BYTES as usize {
                self.pages.remove(&page);
            } else if self.pages.contains_key(&page) {
                self.change_page(page, |bytes| bytes[inside..inside + count].fill(0));
            }
        }
    }

    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        let inside = (offset % PAGE_BYTES) as usize;
        self.change_page(offset / PAGE_BYTES, |bytes| bytes[inside] ^= 1 << (bit % 8));
        self.len = self.len.max(offset + 1);
    }

    pub fn used_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_reads_writes_and_holes() {
        let mut image = Image::default();
        image.write(4090, &Buf::from_slice(b"0123456789"));
        let mut back = [9; 20];
        image.read(4085, &mut back);
        assert_eq!(&back, b"\0\0\0\0\x000123456789\0\0\0\0\0");
        assert_eq!((image.len, image.used_bytes()), (4100, 8192));
        let before = image.clone();
        image.zero(0, 4096);
        assert_eq!(image.used_bytes(), 4096);
        image.flip_bit(4096, 0);
        let mut one = [0];
        image.read(4096, &mut one);
        assert_eq!(one[0], b'6' ^ 1);
        before.read(4096, &mut one);
        assert_eq!(one[0], b'6', "copies share pages only until written");
    }
}
