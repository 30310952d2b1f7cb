//! What a simulated file holds: a length and shared 4 KiB pages.
//!
//! Copying a [`Content`] copies a map of pointers, not bytes: pages are immutable while shared and copied when written.
//! That is what makes it cheap to keep the durable and the visible content of each file side by side, and to take a
//! copy of the disk at every I/O of a crash loop.
//!
//! # Invariants
//! - A page that is not in the map reads as zeros.
//! - Bytes of a page at or above the length are zero, so that growing the file shows zeros.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The unit of sharing and of space accounting.
pub(super) const PAGE_BYTES: u64 = PAGE_BYTES_USIZE as u64;
const PAGE_BYTES_USIZE: usize = 4096;

type Page = [u8; PAGE_BYTES_USIZE];

/// A file's bytes at one moment.
#[derive(Clone, Default)]
pub(super) struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<Page>>,
    /// Pages `0..reserved_pages` have space of their own, written or not.
    reserved_pages: u64,
    /// Invariant: the number of pages in the map at or above `reserved_pages`.
    loose_pages: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Space taken, in bytes.
    pub(super) fn used_bytes(&self) -> u64 {
        (self.reserved_pages + self.loose_pages).saturating_mul(PAGE_BYTES)
    }

    /// Reads what lies in `offset..offset + buffer.len()` below the length, and returns how much that is.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let available = self.len.saturating_sub(offset);
        let len = usize::try_from(available).unwrap_or(usize::MAX).min(buffer.len());
        for (page, inside, part) in fragments(offset, len) {
            let target = &mut buffer[part];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[inside]),
                None => target.fill(0),
            }
        }
        len
    }

    /// All bytes.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).expect("tests read only files that fit into memory")];
        self.read(&mut bytes, 0);
        bytes
    }

    /// Writes `data` at `offset`, growing the file if it ends before.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, inside, part) in fragments(offset, data.len()) {
            let bytes = self.pages.entry(page).or_insert_with(|| {
                self.loose_pages += u64::from(page >= self.reserved_pages);
                Arc::new([0; PAGE_BYTES_USIZE])
            });
            Arc::make_mut(bytes)[inside].copy_from_slice(&data[part]);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Space in bytes that writing `len` bytes at `offset` takes beyond what the file has.
    pub(super) fn new_bytes_for_write(&self, offset: u64, len: usize) -> u64 {
        let new = fragments(offset, len)
            .filter(|(page, _, _)| *page >= self.reserved_pages && !self.pages.contains_key(page))
            .count();
        new as u64 * PAGE_BYTES
    }

    /// Space in bytes that reserving `0..len` takes beyond what the file has.
    pub(super) fn new_bytes_for_allocate(&self, len: u64) -> u64 {
        let reserved = len.div_ceil(PAGE_BYTES);
        if reserved <= self.reserved_pages {
            return 0;
        }
        let present = self.pages.range(self.reserved_pages..reserved).count() as u64;
        (reserved - self.reserved_pages - present).saturating_mul(PAGE_BYTES)
    }

    /// Cuts the file, or grows it with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let pages = len.div_ceil(PAGE_BYTES);
            drop(self.pages.split_off(&pages));
            let (last, keep) = (len / PAGE_BYTES, place_in_page(len));
            if let Some(page) = self.pages.get_mut(&last) {
                Arc::make_mut(page)[keep..].fill(0);
            }
            self.reserved_pages = self.reserved_pages.min(pages);
            self.count_loose_pages();
        }
        self.len = len;
    }

    /// Reserves space for `0..len` and grows the file to that length.
    pub(super) fn allocate(&mut self, len: u64) {
        self.reserved_pages = self.reserved_pages.max(len.div_ceil(PAGE_BYTES));
        self.count_loose_pages();
        self.len = self.len.max(len);
    }

    /// Takes over `other`'s pages that hold `bytes`; the length stays.
    pub(super) fn share_pages(&mut self, other: &Content, bytes: Range<u64>) {
        for index in bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES) {
            match other.pages.get(&index) {
                Some(page) => self.pages.insert(index, Arc::clone(page)),
                None => self.pages.remove(&index),
            };
        }
    }

    /// Takes over `other`'s length and reservation, once all pages are the same.
    pub(super) fn share_shape(&mut self, other: &Content) {
        self.len = other.len;
        self.reserved_pages = other.reserved_pages;
        self.loose_pages = other.loose_pages;
    }

    /// Inverts a bit, if the file is that long.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        if self.read(&mut byte, offset) == 1 {
            self.write(offset, &[byte[0] ^ (1 << bit)]);
        }
    }

    /// Feeds length and bytes to `hasher`. A page of zeros and a missing page are the same.
    pub(super) fn hash_into(&self, hasher: &mut xxhash_rust::xxh3::Xxh3) {
        hasher.update(&self.len.to_le_bytes());
        for (index, page) in &self.pages {
            if page.iter().any(|&byte| byte != 0) {
                hasher.update(&index.to_le_bytes());
                hasher.update(&page[..]);
            }
        }
    }

    /// True if a reader could not tell the two apart.
    pub(super) fn same_bytes(&self, other: &Content) -> bool {
        let zero = Arc::new([0; PAGE_BYTES_USIZE]);
        let indexes = self.pages.keys().chain(other.pages.keys());
        let page = |content: &Content, index| Arc::clone(content.pages.get(index).unwrap_or(&zero));
        self.len == other.len && indexes.clone().all(|index| page(self, index) == page(other, index))
    }

    /// Panics if an invariant of this type does not hold.
    pub(super) fn check(&self) {
        assert_eq!(self.loose_pages, self.pages.range(self.reserved_pages..).count() as u64, "loose pages");
        if let Some((&last, page)) = self.pages.last_key_value() {
            let end = (last * PAGE_BYTES).saturating_add(PAGE_BYTES);
            assert!(last * PAGE_BYTES < self.len, "a page lies beyond the length");
            let tail = if end > self.len { &page[place_in_page(self.len)..] } else { &[] };
            assert!(tail.iter().all(|&byte| byte == 0), "bytes beyond the length");
        }
    }

    fn count_loose_pages(&mut self) {
        self.loose_pages = self.pages.range(self.reserved_pages..).count() as u64;
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} pages", self.len, self.pages.len())
    }
}

/// Cuts `offset..offset + len` at page boundaries: page number, range inside the page, range inside the caller's slice.
fn fragments(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let at = offset + done as u64;
            let start = place_in_page(at);
            let take = (PAGE_BYTES_USIZE - start).min(len - done);
            let part = done..done + take;
            done += take;
            (at / PAGE_BYTES, start..start + take, part)
        })
    })
}

fn place_in_page(offset: u64) -> usize {
    (offset % PAGE_BYTES) as usize
}
