//! A Bloom filter over the user keys of a memtable.
//!
//! Most lookups that reach a memtable are for keys that lie in a table below. A search of the list would then cost ten cache misses to
//! learn nothing; the filter costs one.
//!
//! All bits of a key lie in one 64-bit word (Putze, Sanders and Singler 2007, with the word as the block), so that adding a key is one
//! atomic instruction. The filter has one bit for each eight bytes of the memtable's capacity: with entries of 150 bytes 19 bits per key
//! and about 1 % wrong answers, with the smallest entries 6 bits and about 10 %.
//!
//! # Concurrency
//! A key is added before its entry is put in the list. Whoever must see the entry has synchronised with the thread that inserted it,
//! and so sees the bits, whatever the ordering of these accesses: all are Relaxed.

use crate::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub(super) struct Filter {
    words: Box<[AtomicU64]>,
}

impl Filter {
    /// For a memtable of so many bytes.
    pub(super) fn new(capacity: usize) -> Filter {
        Filter { words: (0..(capacity / 64 / size_of::<u64>()).max(1)).map(|_| AtomicU64::new(0)).collect() }
    }

    #[inline]
    pub(super) fn add(&self, user_key: &[u8]) {
        let (word, bits) = self.place(user_key);
        // Most versions of a key find it added: they need not take the cache line from other processors.
        if word.load(Ordering::Relaxed) & bits != bits {
            word.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// False if the key was certainly not added.
    #[inline]
    pub(super) fn may_hold(&self, user_key: &[u8]) -> bool {
        let (word, bits) = self.place(user_key);
        word.load(Ordering::Relaxed) & bits == bits
    }

    #[inline]
    fn place(&self, user_key: &[u8]) -> (&AtomicU64, u64) {
        let hash = xxhash_rust::xxh3::xxh3_64(user_key);
        // The upper half chooses the word (Lemire's multiplication), the lower half four bits in it.
        let index = ((hash >> 32) * self.words.len() as u64) >> 32;
        let bits = 1u64 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63) | 1 << (hash >> 18 & 63);
        (&self.words[usize::try_from(index).expect("below the number of words")], bits)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}
