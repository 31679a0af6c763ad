//! Bytes of one virtual file: sparse, copy-on-write in 4 KiB pages, so that two states of a large file cost
//! only what differs.

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const PAGE_BYTES: u64 = 4096;
type Page = [u8; PAGE_BYTES as usize];

#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: BTreeMap<u64, Arc<Page>>,
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

    pub fn write(&mut self, offset: u64, from: &[u8]) {
        for (page, inside, count, at) in pieces(offset, from.len() as u64) {
            let bytes = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(bytes)[inside..inside + count].copy_from_slice(&from[at..at + count]);
        }
        self.len = self.len.max(offset + from.len() as u64);
    }

    /// Zeroes a range and frees whole pages in it. The length stays.
    pub fn zero(&mut self, offset: u64, len: u64) {
        for (page, inside, count, _) in pieces(offset, len) {
            if count == PAGE_BYTES as usize {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[inside..inside + count].fill(0);
            }
        }
    }

    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        self.read(offset, &mut byte);
        self.write(offset, &[byte[0] ^ (1 << (bit % 8))]);
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
        image.write(4090, b"0123456789");
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
