//! Walks through a table: [`TableIterator`].
//!
//! It holds one data block and, in a large table, one index partition. A seek into the block or the partition that it already
//! holds asks no cache. Its key buffer is kept, so moving allocates nothing unless a block comes from the disk.
//!
//! # Reading ahead
//! The first three blocks in a row that the cache does not hold are read one by one: short scans end in them, copying a block that nobody asks for costs
//! about what a read does, also where the file is in memory, and where it is not, its pages take the place of others. From the fourth on a piece of the file is read that holds the blocks behind it, too; each
//! further piece is twice as long. The cache is asked first for every block, and gets those that are used.

use std::cell::Cell;
use std::sync::Arc;

use super::ReadMode;
use super::block::{Block, BlockCursor};
use super::frame::BlockHandle;
use super::index::Index;
use super::reader::TableReader;
use crate::error::{Error, Result};
use crate::iter::PointIterator;
use crate::key::InternalKey;

/// How far [`ReadMode::Compaction`] reads ahead: long enough that a disk streams.
const READAHEAD_BYTES: u64 = 256 << 10;

/// The first piece that a scan reads ahead: three or four compressed blocks.
const SCAN_READAHEAD_BYTES_MIN: u64 = 8 << 10;

/// Blocks in a row that a scan reads one by one first.
const BLOCKS_READ_ALONE: u32 = 3;

/// The longest: what each iterator may hold beside its blocks.
const SCAN_READAHEAD_BYTES_MAX: u64 = 64 << 10;

thread_local! {
    /// The memory of the last iterator that read ahead, for the next one: allocating and clearing it would cost as much as copying a block.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A cursor over a table's point entries.
#[derive(Debug)]
pub struct TableIterator {
    reader: Arc<TableReader>,
    mode: ReadMode,
    /// Which partition is loaded; means nothing in a table without partitions.
    partition_at: usize,
    partition: Option<Arc<Index>>,
    /// Which block of the partition (or of the table's index) is loaded, and where it lies.
    ordinal: usize,
    block: Option<(u64, Arc<Block>)>,
    /// Invariant: if it is valid, it was placed in `block`.
    cursor: BlockCursor,
    /// A piece of the file that was read ahead, in the first `ahead_len` bytes, and where it begins.
    ahead: Vec<u8>,
    ahead_len: usize,
    ahead_offset: u64,
    /// Where the block ends that came last from the file, or cached ones that follow it: a scan has its next one there. Zero: there was none.
    read_to: u64,
    /// How long the next piece is that a scan reads.
    scan_readahead_bytes: u64,
    /// Blocks in a row that came from the file.
    blocks_in_a_row: u32,
}

impl TableIterator {
    /// A cursor that is not placed yet.
    pub fn new(reader: Arc<TableReader>, mode: ReadMode) -> TableIterator {
        TableIterator {
            reader,
            mode,
            partition_at: 0,
            partition: None,
            ordinal: 0,
            block: None,
            cursor: BlockCursor::default(),
            ahead: Vec::new(),
            ahead_len: 0,
            ahead_offset: 0,
            read_to: 0,
            scan_readahead_bytes: SCAN_READAHEAD_BYTES_MIN,
            blocks_in_a_row: 0,
        }
    }

    /// The table.
    pub fn reader(&self) -> &Arc<TableReader> {
        &self.reader
    }

    /// Takes another mode for the reads to come.
    pub fn set_mode(&mut self, mode: ReadMode) {
        self.mode = mode;
    }

    #[inline]
    fn index(&self) -> &Index {
        self.partition.as_deref().unwrap_or(self.reader.index())
    }

    /// Loads the index partition `at`; nothing to do without partitions.
    fn load_partition(&mut self, at: usize) -> Result<()> {
        if self.reader.is_partitioned() && (self.partition.is_none() || self.partition_at != at) {
            self.partition = Some(self.reader.partition(at, self.mode)?);
            self.partition_at = at;
        }
        Ok(())
    }

    fn partitions(&self) -> usize {
        if self.reader.is_partitioned() { self.reader.index().len() } else { 1 }
    }

    /// Loads block `ordinal` of the current partition.
    fn load_block(&mut self, ordinal: usize) -> Result<()> {
        let handle = self.index().handle(ordinal);
        self.ordinal = ordinal;
        if self.block.as_ref().is_some_and(|(offset, _)| *offset == handle.offset) {
            return Ok(());
        }
        self.block = None;
        let block = match self.mode {
            ReadMode::Compaction => Arc::new(self.block_from_ahead(handle, READAHEAD_BYTES)?),
            ReadMode::Blocking | ReadMode::MemoryOnly => match self.reader.cached_data_block(handle)? {
                Some(block) => {
                    if handle.offset == self.read_to {
                        self.read_to += handle.len;
                    }
                    block
                }
                None => self.uncached_block(handle)?,
            },
        };
        self.block = Some((handle.offset, block));
        Ok(())
    }

    /// A block that the cache does not hold.
    #[cold]
    fn uncached_block(&mut self, handle: BlockHandle) -> Result<Arc<Block>> {
        if handle.offset != self.read_to {
            (self.blocks_in_a_row, self.scan_readahead_bytes) = (0, SCAN_READAHEAD_BYTES_MIN);
        }
        let read_ahead = if self.is_ahead(handle) {
            Some(0)
        } else if self.mode == ReadMode::MemoryOnly {
            return Err(Error::WouldRead);
        } else if self.blocks_in_a_row >= BLOCKS_READ_ALONE {
            let len = self.scan_readahead_bytes;
            self.scan_readahead_bytes = (2 * len).min(SCAN_READAHEAD_BYTES_MAX);
            Some(len)
        } else {
            None
        };
        let block = match read_ahead.map(|len| self.block_from_ahead(handle, len)) {
            Some(Ok(block)) => self.reader.cache_data_block(handle, block),
            failed => {
                // What lies behind the block may be what cannot be read, and nobody has asked for that: the block alone has the last word.
                if failed.is_some() {
                    self.ahead_len = 0;
                }
                if self.mode == ReadMode::MemoryOnly {
                    return Err(Error::WouldRead);
                }
                self.reader.read_data_block(handle)?
            }
        };
        self.read_to = handle.offset + handle.len;
        self.blocks_in_a_row = self.blocks_in_a_row.saturating_add(1);
        Ok(block)
    }

    /// True if the block was read ahead.
    fn is_ahead(&self, handle: BlockHandle) -> bool {
        let ahead_end = self.ahead_offset + self.ahead_len as u64;
        handle.offset >= self.ahead_offset && handle.offset + handle.len <= ahead_end
    }

    /// The block from what was read ahead; if it is not there, `len` bytes are read from it on, or the block alone if that is longer.
    fn block_from_ahead(&mut self, handle: BlockHandle, len: u64) -> Result<Block> {
        if !self.is_ahead(handle) {
            let len = len.min(self.reader.data_end() - handle.offset).max(handle.len);
            if self.ahead.is_empty() && len <= SCAN_READAHEAD_BYTES_MAX {
                self.ahead = SPARE.take();
            }
            (self.ahead_len, self.ahead_offset) = (0, handle.offset);
            self.ahead_len = self.reader.read(handle.offset, len, &mut self.ahead)?;
        }
        let fits = |n: u64| usize::try_from(n).expect("a length in memory");
        let start = fits(handle.offset - self.ahead_offset);
        let frame = &self.ahead[start..start + fits(handle.len)];
        self.reader.decode_data_block(frame, handle.offset)
    }

    /// Runs `place` on the loaded block.
    #[inline]
    fn place(
        &mut self,
        place: impl FnOnce(&mut BlockCursor, &Block) -> std::result::Result<(), ferrisdb_core::codec::DecodeError>,
    ) -> Result<()> {
        let (offset, block) = self.block.as_ref().expect("a block was loaded before the cursor is placed in it");
        place(&mut self.cursor, block)
            .map_err(|error| self.reader.bad_block(BlockHandle { offset: *offset, len: 0 }, error))
    }

    /// To the first entry of the block after the current one, or past the end.
    fn first_of_next_block(&mut self) -> Result<()> {
        self.cursor.invalidate();
        if self.ordinal + 1 < self.index().len() {
            self.load_block(self.ordinal + 1)?;
        } else if self.partition.is_some() && self.partition_at + 1 < self.partitions() {
            self.load_partition(self.partition_at + 1)?;
            if self.index().is_empty() {
                return Err(self.empty_partition());
            }
            self.load_block(0)?;
        } else {
            return Ok(());
        }
        self.place(BlockCursor::seek_to_first)
    }

    /// To the last entry of the block before the current one, or past the front.
    fn last_of_block_before(&mut self) -> Result<()> {
        self.cursor.invalidate();
        if self.ordinal > 0 {
            self.load_block(self.ordinal - 1)?;
        } else if self.partition.is_some() && self.partition_at > 0 {
            self.load_partition(self.partition_at - 1)?;
            let last = self.index().len().checked_sub(1).ok_or_else(|| self.empty_partition())?;
            self.load_block(last)?;
        } else {
            return Ok(());
        }
        self.place(BlockCursor::seek_to_last)
    }

    fn empty_partition(&self) -> Error {
        self.reader.corruption(self.reader.index().handle(self.partition_at), "index: a partition without a block")
    }
}

impl Drop for TableIterator {
    fn drop(&mut self) {
        if !self.ahead.is_empty() && self.ahead.len() as u64 <= SCAN_READAHEAD_BYTES_MAX {
            SPARE.set(std::mem::take(&mut self.ahead));
        }
    }
}

impl PointIterator for TableIterator {
    #[inline]
    fn valid(&self) -> bool {
        self.cursor.valid()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.cursor.invalidate();
        if self.reader.index().is_empty() {
            return Ok(());
        }
        self.load_partition(0)?;
        if self.index().is_empty() {
            return Err(self.empty_partition());
        }
        self.load_block(0)?;
        self.place(BlockCursor::seek_to_first)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.cursor.invalidate();
        if self.reader.index().is_empty() {
            return Ok(());
        }
        self.load_partition(self.partitions() - 1)?;
        let last = self.index().len().checked_sub(1).ok_or_else(|| self.empty_partition())?;
        self.load_block(last)?;
        self.place(BlockCursor::seek_to_last)
    }

    fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.cursor.invalidate();
        let mut at = self.reader.index().find(target);
        if at == self.reader.index().len() {
            return Ok(());
        }
        if self.reader.is_partitioned() {
            self.load_partition(at)?;
            at = self.index().find(target);
            if at == self.index().len() {
                // Cannot be in a table of ours: the partition's last separator is the one in the top index.
                return Err(self
                    .reader
                    .corruption(self.reader.index().handle(self.partition_at), "index: separators disagree"));
            }
        }
        self.load_block(at)?;
        self.place(|cursor, block| cursor.seek(block, target))?;
        if self.cursor.valid() { Ok(()) } else { self.first_of_next_block() }
    }

    fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.seek(target)?;
        if self.cursor.valid() { self.prev() } else { self.seek_to_last() }
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        self.place(BlockCursor::next)?;
        if self.cursor.valid() { Ok(()) } else { self.first_of_next_block() }
    }

    fn prev(&mut self) -> Result<()> {
        self.place(BlockCursor::prev)?;
        if self.cursor.valid() { Ok(()) } else { self.last_of_block_before() }
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        debug_assert!(self.cursor.valid(), "a key is asked for on an entry");
        self.cursor.key()
    }

    #[inline]
    fn value(&self) -> &[u8] {
        let (_, block) = self.block.as_ref().expect("the cursor is on an entry of a block");
        self.cursor.value(block)
    }
}
