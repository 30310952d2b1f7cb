//! What stands in for raw atomics, and watches plain accesses, when the memtable runs under a model checker.
//!
//! A model checker must see every access, so a link cannot be an atomic conjured from a pointer: each word of the arena has an
//! atomic of the checker beside it. Plain bytes stay in the arena's memory, and each word has a loom cell beside it that is
//! marked on every access: loom then reports a read that does not happen after the write ("Causality violation"), which is what a
//! missing Acquire or Release on a link would cause. shuttle knows no such cells and checks the outcome only.

use crate::sync::atomic::AtomicU64;

/// One of each per eight bytes of the arena.
#[derive(Debug)]
pub(super) struct Model {
    links: Vec<AtomicU64>,
    #[cfg(loom)]
    plain: Vec<loom::cell::UnsafeCell<()>>,
}

const WORD: usize = 8;

impl Model {
    pub(super) fn new(capacity: usize) -> Model {
        let words = capacity.div_ceil(WORD);
        Model {
            links: (0..words).map(|_| AtomicU64::new(0)).collect(),
            #[cfg(loom)]
            plain: (0..words).map(|_| loom::cell::UnsafeCell::new(())).collect(),
        }
    }

    pub(super) fn link(&self, offset: u32) -> &AtomicU64 {
        assert!((offset as usize).is_multiple_of(WORD), "links are aligned");
        &self.links[offset as usize / WORD]
    }

    #[cfg(loom)]
    pub(super) fn plain_write(&self, offset: u32, len: usize) {
        for cell in &self.plain[offset as usize / WORD..(offset as usize + len).div_ceil(WORD)] {
            cell.with_mut(|_| ());
        }
    }

    #[cfg(loom)]
    pub(super) fn plain_read(&self, offset: u32, len: usize) {
        for cell in &self.plain[offset as usize / WORD..(offset as usize + len).div_ceil(WORD)] {
            cell.with(|_| ());
        }
    }

    #[cfg(shuttle)]
    pub(super) fn plain_write(&self, _offset: u32, _len: usize) {}

    #[cfg(shuttle)]
    pub(super) fn plain_read(&self, _offset: u32, _len: usize) {}
}
