//! Writes a table: [`TableBuilder`].
//!
//! Entries come in internal-key order. Blocks are cut where they are nearest to their size, framed into an output buffer, and
//! written in long pieces; what is known only at the end (index, filter, range tombstones, properties, footer) follows the data.
//! Adding an entry allocates nothing, except where a buffer grows.
//!
//! # Durability
//! [`TableBuilder::finish`] syncs the file; the caller syncs the directory. A builder that is dropped, or that returned an error,
//! leaves an unfinished file, which the caller removes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrisdb_core::Version;

use super::block::common_prefix_len;
use super::block_builder::BlockBuilder;
use super::filter::{self, Filter};
use super::footer::Footer;
use super::frame::{BlockHandle, Compressor};
use super::index::{IndexBuilder, shortest_separator};
use super::{Properties, TableId, TableOptions, tombstone_block};
use crate::error::{Error, Result};
use crate::fs::{File, write_all_at};
use crate::key::{InternalKey, KEY_BYTES_MAX, Trailer, VALUE_BYTES_MAX, ValueKind};
use crate::planted::{Bug, planted};
use crate::tombstone::FragmentList;

/// Output is written in pieces of at least this: long enough that a system call costs nothing beside the copy.
const WRITE_BYTES: usize = 256 << 10;

/// What was written: what the manifest keeps of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSummary {
    /// The table.
    pub id: TableId,
    /// The length of the file.
    pub file_bytes: u64,
    /// The first user key that the table says anything about: a point entry's, or a range tombstone's start.
    pub smallest: Vec<u8>,
    /// The last one, or where the last range tombstone ends.
    pub largest: Vec<u8>,
    /// True if `largest` is the end of a range tombstone, which it does not cover itself.
    pub largest_is_exclusive: bool,
    /// Counts, sizes, versions.
    pub properties: Properties,
}

/// Writes one table.
#[derive(Debug)]
pub struct TableBuilder {
    file: Arc<dyn File>,
    path: PathBuf,
    id: TableId,
    options: TableOptions,
    block: BlockBuilder,
    compressor: Compressor,
    index: IndexBuilder,
    /// Hashes of the distinct user keys, for the filter.
    hashes: Vec<u64>,
    tombstones: FragmentList,
    properties: Properties,
    /// The last internal key of the last finished block.
    last_user_key: Vec<u8>,
    last_trailer: Trailer,
    /// Framed blocks that are not written yet.
    out: Vec<u8>,
    /// Bytes written to the file.
    written: u64,
    /// Kept for their memory: a block before it is framed, and a separator.
    raw: Vec<u8>,
    separator: Vec<u8>,
}

impl TableBuilder {
    /// A builder for a new, empty file.
    ///
    /// # Panics
    /// If the options are not valid; see [`TableOptions::validate`].
    pub fn new(file: Arc<dyn File>, path: &Path, id: TableId, options: TableOptions) -> TableBuilder {
        options.validate().expect("the engine validates its options when it is opened");
        TableBuilder {
            file,
            path: path.to_path_buf(),
            id,
            block: BlockBuilder::new(options.restart_interval),
            compressor: Compressor::new(options.compression),
            index: IndexBuilder::new(options.index_partition_bytes),
            options,
            hashes: Vec::new(),
            tombstones: FragmentList::default(),
            properties: Properties {
                smallest_version: Version::MAX,
                created_by: concat!("ferrisdb ", env!("CARGO_PKG_VERSION")).to_owned(),
                ..Properties::default()
            },
            last_user_key: Vec::new(),
            last_trailer: Trailer(0),
            out: Vec::with_capacity(WRITE_BYTES + (64 << 10)),
            written: 0,
            raw: Vec::new(),
            separator: Vec::new(),
        }
    }

    /// Golden tables must not change with every release.
    #[cfg(test)]
    pub(super) fn set_created_by(&mut self, created_by: &str) {
        created_by.clone_into(&mut self.properties.created_by);
    }

    /// True while nothing was added: such a builder is dropped, not finished.
    pub fn is_empty(&self) -> bool {
        self.properties.entries == 0 && self.tombstones.is_empty()
    }

    /// Point entries added.
    pub fn entries(&self) -> u64 {
        self.properties.entries
    }

    /// Adds a point entry. An error comes from writing earlier blocks; the builder is of no use afterwards.
    ///
    /// # Panics
    /// If the entry does not follow the last one in order, is a range tombstone, or is longer than the format allows: the
    /// engine checks what it is given, and its iterators are sorted.
    #[inline]
    pub fn add(&mut self, key: InternalKey<'_>, value: &[u8]) -> Result<()> {
        let kind = key.trailer.kind().expect("a key of ours has a kind");
        assert!(kind != ValueKind::RangeTombstone, "range tombstones are added by add_range_tombstones");
        assert!(key.user_key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX, "lengths were checked before");
        let (last_key, last_trailer) = match self.block.is_empty() {
            false => (self.block.last_user_key(), self.block.last_trailer()),
            true => (&self.last_user_key[..], self.last_trailer),
        };
        let shared = common_prefix_len(last_key, key.user_key);
        let same_user_key = shared == key.user_key.len() && shared == last_key.len();
        if self.properties.entries == 0 {
            self.properties.first_user_key.extend_from_slice(key.user_key);
        } else {
            let in_order =
                if same_user_key { last_trailer > key.trailer } else { last_key[shared..] < key.user_key[shared..] };
            assert!(in_order, "entries are added in internal-key order, each once: {key:?} after {last_key:?}");
        }
        let new_user_key = !same_user_key || self.properties.entries == 0;

        if !self.block.is_empty() && self.is_block_full(key.user_key.len() - shared, value) {
            self.finish_block(Some(key.user_key))?;
        }
        self.block.add(key, shared, value);
        if new_user_key {
            self.properties.user_keys += 1;
            if self.options.filter_bits_per_key > 0 {
                self.hashes.push(filter::hash(key.user_key));
            }
        }
        self.properties.entries += 1;
        self.properties.tombstones += u64::from(kind == ValueKind::Tombstone);
        self.properties.blob_pointers += u64::from(kind == ValueKind::BlobPointer);
        self.properties.raw_key_bytes += key.user_key.len() as u64;
        self.properties.raw_value_bytes += value.len() as u64;
        self.count_version(key.trailer.version());
        Ok(())
    }

    /// True if the block is nearer to its size without the entry to come than with it. So four values of a kilobyte share a block of 4 KiB
    /// although they are a little more, and a long value does not join short ones, whose reads would pay for it.
    #[inline]
    fn is_block_full(&self, unshared: usize, value: &[u8]) -> bool {
        let (without, with) = (self.block.estimated_bytes(), self.block.estimated_bytes_with(unshared, value));
        let wanted = self.options.block_bytes;
        with > wanted && with - wanted > wanted.saturating_sub(without)
    }

    /// Gives the table its range tombstones. At any time before the end.
    ///
    /// # Panics
    /// If it was called before with a list that is not empty.
    pub fn add_range_tombstones(&mut self, list: &FragmentList) {
        assert!(self.tombstones.is_empty(), "a table's range tombstones are added at once");
        for fragment in list.fragments() {
            fragment.versions.iter().for_each(|&version| self.count_version(version));
        }
        self.properties.range_tombstones = list.fragments().len() as u64;
        self.tombstones = list.clone();
    }

    #[inline]
    fn count_version(&mut self, version: Version) {
        let properties = &mut self.properties;
        properties.smallest_version = properties.smallest_version.min(version);
        properties.largest_version = properties.largest_version.max(version);
    }

    /// About how long the file would be if it were finished now.
    pub fn estimated_bytes(&self) -> u64 {
        let filter = self.hashes.len() as u64 * u64::from(self.options.filter_bits_per_key) / 8;
        let buffered = self.out.len() + self.block.estimated_bytes() + self.index.estimated_bytes();
        self.written + buffered as u64 + filter + self.tombstones.memory_bytes() as u64
    }

    /// Where the next framed block will lie.
    fn offset(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    /// Ends the data block. `next` is the user key of the entry that will begin the next one.
    fn finish_block(&mut self, next: Option<&[u8]>) -> Result<()> {
        self.last_user_key.clear();
        self.last_user_key.extend_from_slice(self.block.last_user_key());
        self.last_trailer = self.block.last_trailer();
        self.raw.clear();
        self.block.finish(&mut self.raw);
        let handle = self.compressor.frame(&self.raw, self.id, self.offset(), &mut self.out);
        self.properties.data_blocks += 1;

        let separator = match next {
            Some(next) if next == self.last_user_key => InternalKey::new(&self.last_user_key, self.last_trailer),
            Some(next) => {
                shortest_separator(&self.last_user_key, next, &mut self.separator);
                InternalKey::new(&self.separator, Trailer(0))
            }
            None => InternalKey::new(&self.last_user_key, Trailer(0)),
        };
        self.index.add(separator, handle);
        self.write_if_full()
    }

    fn write_if_full(&mut self) -> Result<()> {
        if self.out.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        write_all_at(&*self.file, &self.out, self.written).map_err(|error| Error::io("write", &self.path, error))?;
        self.written += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    /// Frames `self.raw` as a block of the rear part.
    fn frame_raw(&mut self, compress: bool) -> Result<BlockHandle> {
        let offset = self.offset();
        let handle = if compress {
            self.compressor.frame(&self.raw, self.id, offset, &mut self.out)
        } else {
            Compressor::new(super::Compression::None).frame(&self.raw, self.id, offset, &mut self.out)
        };
        self.write_if_full()?;
        Ok(handle)
    }

    /// Writes the rest, syncs the file and says what is in it. The caller syncs the directory.
    ///
    /// # Panics
    /// If nothing was added; see [`TableBuilder::is_empty`].
    pub fn finish(mut self) -> Result<TableSummary> {
        assert!(!self.is_empty(), "a table with nothing in it is not written");
        if !self.block.is_empty() {
            self.finish_block(None)?;
        }
        self.properties.last_user_key.extend_from_slice(&self.last_user_key);
        self.properties.data_bytes = self.offset();
        let data_end = self.offset();

        let index = std::mem::replace(&mut self.index, IndexBuilder::new(0));
        let mut top = Vec::new();
        let index_levels = index.finish(self.options.index_flat_bytes_max, &mut top, |partition| {
            self.raw.clear();
            self.raw.extend_from_slice(partition);
            self.frame_raw(true)
        })?;
        self.raw = top;
        let index = self.frame_raw(true)?;
        let mut filter = BlockHandle::default();
        if !self.hashes.is_empty() {
            self.raw.clear();
            Filter::build(&self.hashes, self.options.filter_bits_per_key).encode(&mut self.raw);
            // Half of its bits are set, at random: there is nothing to compress.
            filter = self.frame_raw(false)?;
        }
        let mut tombstones = BlockHandle::default();
        if !self.tombstones.is_empty() {
            self.raw.clear();
            tombstone_block::encode(&self.tombstones, &mut self.raw);
            tombstones = self.frame_raw(true)?;
        }
        self.raw.clear();
        self.properties.encode(&mut self.raw);
        let properties = self.frame_raw(true)?;
        Footer { id: self.id, data_end, index, filter, tombstones, properties, index_levels }.encode(&mut self.out);
        self.write()?;
        if !planted(Bug::ForgetToSyncTable) {
            self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))?;
        }
        Ok(self.summary())
    }

    fn summary(self) -> TableSummary {
        let bounds = bounds(&self.properties, &self.tombstones).expect("the table is not empty");
        let (smallest, largest, largest_is_exclusive) = bounds;
        TableSummary {
            id: self.id,
            file_bytes: self.written,
            smallest: smallest.to_vec(),
            largest: largest.to_vec(),
            largest_is_exclusive,
            properties: self.properties,
        }
    }
}

/// The first and the last user key that a table says anything about, and whether the last is exclusive.
pub(super) fn bounds<'a>(
    properties: &'a Properties,
    tombstones: &'a FragmentList,
) -> Option<(&'a [u8], &'a [u8], bool)> {
    let (first, last) = (&properties.first_user_key[..], &properties.last_user_key[..]);
    let fragments = tombstones.fragments();
    let Some((head, tail)) = fragments.first().zip(fragments.last()) else {
        return (properties.entries > 0).then_some((first, last, false));
    };
    if properties.entries == 0 {
        return Some((&head.start, &tail.end, true));
    }
    let smallest = first.min(&head.start);
    Some(if *tail.end > *last { (smallest, &tail.end, true) } else { (smallest, last, false) })
}
