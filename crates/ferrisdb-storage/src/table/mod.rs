//! SSTables: sorted immutable files.
//!
//! [`TableBuilder`] writes one, [`TableReader`] answers from one, [`TableIterator`] walks through one. What a table holds lies
//! in one file:
//!
//! ```text
//!   data blocks | index partitions (large tables) | index | filter | range tombstones | properties | footer
//! ```
//!
//! Every part before the footer is a framed block (`frame.rs`): compressed or not, with a checksum over its bytes and its place.
//! The data blocks are back to back from offset 0, so that the index needs lengths only.
//!
//! | part | format | in memory |
//! | --- | --- | --- |
//! | data block | `block.rs` | in the block cache, searched in place |
//! | index, its partitions | `index.rs` | top pinned; partitions in the block cache |
//! | filter | `filter.rs` | pinned |
//! | range tombstones | `tombstone_block.rs` | pinned, as a [`FragmentList`](crate::tombstone::FragmentList) |
//! | properties | `properties.rs` | pinned |
//! | footer | `footer.rs` | checked and dropped |
//!
//! # Invariants
//! - Point entries are in strictly rising internal-key order. All versions of a user key are in one table of a sorted run; in
//!   the table they may span blocks.
//! - A table never changes once [`TableBuilder::finish`] has returned.
//!
//! # Concurrency
//! A builder belongs to one thread. A reader is shared by any number; it has no lock of its own. An iterator belongs to one
//! thread at a time.

mod block;
mod block_builder;
mod builder;
pub mod filter;
mod footer;
mod frame;
mod index;
mod iterator;
mod lz4;
mod properties;
mod reader;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod survive;
mod tombstone_block;
mod verify;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use builder::{TableBuilder, TableSummary};
pub use footer::FORMAT_VERSION;
pub use frame::BlockHandle;
pub(crate) use frame::{Compressor, FRAME_TRAILER_BYTES, compression_name, open_frame_shared};
pub use index::Index;
pub use iterator::TableIterator;
pub use properties::Properties;
pub(crate) use reader::LastBlock;
pub use reader::{Found, TableReader, TableValue};
#[cfg(any(test, feature = "testing"))]
pub(crate) use survive::{Parts, put_together, sealed_frame, take_apart};
pub use verify::{BlockEntry, BlockSummary, FooterSummary, Verified};

use crate::error::{Error, Result};

/// What tells a table from every other one of its engine: its file number. It is part of every checksum of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u64);

/// How the blocks of a table are compressed on disk. A block that does not shrink by an eighth is stored as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4: fast in both directions.
    Lz4,
    /// Zstandard: about a quarter smaller than LZ4, several times slower to write and to read. For levels that are rewritten and read
    /// rarely.
    Zstd {
        /// 1 to 19; higher is smaller and slower to write.
        level: i32,
    },
}

/// May a read wait for the disk, and does it use the block cache?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// Reads what the cache does not hold, and caches it.
    Blocking,
    /// Returns [`Error::WouldRead`] where the cache does not hold the answer.
    MemoryOnly,
    /// For compaction and verification: reads past the cache, which neither answers nor is filled, and reads
    /// ahead in long pieces.
    Compaction,
}

/// How a table is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// Data blocks are cut where they are nearest to this, uncompressed, in bytes. Larger blocks compress better and need a smaller
    /// index; smaller ones waste less memory and less decompression on a point read. 512 to 1 MiB.
    pub block_bytes: usize,
    /// Entries from one restart point to the next. More save some space; fewer make a search shorter. 1 to 1,024.
    pub restart_interval: usize,
    /// Of data blocks, index and properties.
    pub compression: Compression,
    /// Size of the Bloom filter; 0 for none. At 10 about 1 % of the questions for absent keys get past it. Up to 32.
    pub filter_bits_per_key: u32,
    /// An index up to this size, in bytes, is one pinned block; a larger one is cut into partitions. Higher spends memory,
    /// lower makes every read of a large table look up one more block in the cache.
    pub index_flat_bytes_max: usize,
    /// Size of an index partition, in bytes. 16 to 1 MiB.
    pub index_partition_bytes: usize,
}

impl TableOptions {
    /// See `docs/decisions/0004-sstable.md` for the measurements behind these.
    pub const DEFAULT: TableOptions = TableOptions {
        block_bytes: 4 << 10,
        restart_interval: 8,
        compression: Compression::Lz4,
        filter_bits_per_key: 10,
        // A block of 4 KiB costs about 16 index bytes, so this covers tables up to about 128 MiB.
        index_flat_bytes_max: 512 << 10,
        index_partition_bytes: 16 << 10,
    };

    /// Says which option is out of range, if one is.
    pub fn validate(&self) -> Result<()> {
        let check = |option, value: usize, range: std::ops::RangeInclusive<usize>| {
            if range.contains(&value) {
                return Ok(());
            }
            let reason = format!("it must lie between {} and {}", range.start(), range.end());
            Err(Error::InvalidOption { option, value: value.to_string(), reason })
        };
        check("block_bytes", self.block_bytes, 512..=1 << 20)?;
        check("restart_interval", self.restart_interval, 1..=1024)?;
        check("filter_bits_per_key", self.filter_bits_per_key as usize, 0..=filter::FILTER_BITS_PER_KEY_MAX as usize)?;
        check("index_partition_bytes", self.index_partition_bytes, 16..=1 << 20)?;
        match self.compression {
            Compression::Zstd { level } if !(1..=19).contains(&level) => Err(Error::InvalidOption {
                option: "compression.level",
                value: level.to_string(),
                reason: "it must lie between 1 and 19".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        TableOptions::DEFAULT
    }
}
