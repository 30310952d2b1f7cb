//! Proves a table against itself: [`TableReader::verify`]; and shows what is in its blocks, for `ferrisdb inspect`.

use std::path::Path;

use super::block::{Block, BlockCursor};
use super::filter;
use super::footer::{FOOTER_BYTES, Footer};
use super::frame::{BlockHandle, compression_name};
use super::index::Index;
use super::reader::{TableReader, read_range};
use super::{Properties, ReadMode, TableId};
use crate::error::{Error, Result};
use crate::fs::{FileSystem, OpenMode};
use crate::key::{InternalKey, Trailer, ValueKind};

/// What [`TableReader::verify`] read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verified {
    /// Data blocks read.
    pub blocks: u64,
    /// Point entries read.
    pub entries: u64,
}

/// A table's footer, for inspection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FooterSummary {
    /// The table that the file says it is.
    pub id: TableId,
    /// 1: the index is one block. 2: it has partitions.
    pub index_levels: u32,
    /// The parts of the file in their order. A part of length zero is not there.
    pub parts: [(&'static str, BlockHandle); 5],
}

/// A data block, for inspection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSummary {
    /// Where it lies in the file, and its length there.
    pub handle: BlockHandle,
    /// "none", "lz4" or "zstd".
    pub compression: &'static str,
    /// Its length in memory.
    pub raw_bytes: u64,
    /// Point entries.
    pub entries: u32,
    /// Restart points.
    pub restarts: u32,
    /// The index's separator: its user key and its trailer.
    pub separator: (Vec<u8>, Trailer),
}

/// An entry of a data block, for inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry<'a> {
    /// The block that it lies in.
    pub handle: BlockHandle,
    /// The key.
    pub key: InternalKey<'a>,
    /// The value.
    pub value: &'a [u8],
}

impl TableReader {
    /// Reads a file's footer alone: which table it is, and where its parts lie.
    ///
    /// # Errors
    /// [`Error::Corruption`], [`Error::FormatTooNew`], [`Error::Io`].
    pub fn footer(fs: &dyn FileSystem, path: &Path) -> Result<FooterSummary> {
        let file = fs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
        let file_bytes = file.len().map_err(|error| Error::io("stat", path, error))?;
        let tail_bytes = file_bytes.min(FOOTER_BYTES as u64);
        let tail = read_range(&*file, path, file_bytes - tail_bytes, tail_bytes)?;
        let footer = Footer::decode(&tail, path, file_bytes)?;
        let parts = [
            ("data blocks", BlockHandle { offset: 0, len: footer.data_end }),
            ("index", footer.index),
            ("filter", footer.filter),
            ("range tombstones", footer.tombstones),
            ("properties", footer.properties),
        ];
        Ok(FooterSummary { id: footer.id, index_levels: footer.index_levels, parts })
    }

    /// Calls `block` for every data block in order and `entry` for each of its entries, reading past the cache. Every checksum on the
    /// way is checked; for order and agreement see [`TableReader::verify`]. A damaged block is passed over, so that everything
    /// readable is shown, and the first damage is returned at the end.
    ///
    /// # Errors
    /// The first error of a callback ends the walk; [`Error::Corruption`], [`Error::Io`].
    pub fn inspect(
        &self,
        mut block: impl FnMut(&BlockSummary) -> Result<()>,
        mut entry: impl FnMut(BlockEntry<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut cursor = BlockCursor::default();
        let mut damage = None;
        self.for_each_block(|handle, separator, read| {
            let (frame, data) = match read {
                Ok(read) => read,
                Err(error) if error.is_corruption() => {
                    damage.get_or_insert(error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            block(&BlockSummary {
                handle,
                compression: compression_name(frame),
                raw_bytes: data.bytes().len() as u64,
                entries: data.entries(),
                restarts: data.restarts(),
                separator: (separator.user_key.to_vec(), separator.trailer),
            })?;
            cursor.seek_to_first(data).map_err(|error| self.bad_block(handle, error))?;
            while cursor.valid() {
                entry(BlockEntry { handle, key: cursor.key(), value: cursor.value(data) })?;
                cursor.next(data).map_err(|error| self.bad_block(handle, error))?;
            }
            Ok(())
        })?;
        damage.map_or(Ok(()), Err)
    }

    /// Reads everything and checks it: checksums, the order of entries, that each lies between its separators, that the
    /// filter knows each key, and that the properties count right. Does not touch the cache.
    ///
    /// # Errors
    /// [`Error::Corruption`] for the first thing that does not hold.
    pub fn verify(&self) -> Result<Verified> {
        self.reload_rear()?;
        let mut counted = Properties { smallest_version: ferrisdb_core::Version::MAX, ..Properties::default() };
        let mut last: Option<(Vec<u8>, Trailer)> = None;
        let mut last_separator: Option<(Vec<u8>, Trailer)> = None;
        let mut cursor = BlockCursor::default();
        self.for_each_block(|handle, separator, read| {
            let (_, block) = read?;
            counted.data_blocks += 1;
            counted.data_bytes += handle.len;
            let bad = |what: &str| Err(self.corruption(handle, what));
            let mut in_block = 0;
            let mut value_bytes = 0;
            cursor.seek_to_first(block).map_err(|error| self.bad_block(handle, error))?;
            while cursor.valid() {
                let (key, value) = (cursor.key(), cursor.value(block));
                let before = last.as_ref().map(|(user_key, trailer)| InternalKey::new(user_key, *trailer));
                if before.is_some_and(|before| before >= key) {
                    return bad("data block: entries out of order");
                }
                let new_user_key = before.is_none_or(|before| before.user_key != key.user_key);
                if key > separator || last_separator.as_ref().is_some_and(|(k, t)| InternalKey::new(k, *t) >= key) {
                    return bad("index: an entry lies outside its block's separators");
                }
                if self.filter().is_some_and(|filter| !filter.may_contain(filter::hash(key.user_key))) {
                    return bad("filter: a key of the table is denied");
                }
                let found = block.seek(key).map_err(|error| self.bad_block(handle, error))?;
                if found.is_none_or(|found| found.trailer != key.trailer || !found.same_user_key) {
                    return bad("data block: an entry cannot be found by its key");
                }
                counted.add(key, value, new_user_key);
                in_block += 1;
                value_bytes += value.len();
                match &mut last {
                    Some((user_key, trailer)) => {
                        user_key.clear();
                        user_key.extend_from_slice(key.user_key);
                        *trailer = key.trailer;
                    }
                    None => last = Some((key.user_key.to_vec(), key.trailer)),
                }
                cursor.next(block).map_err(|error| self.bad_block(handle, error))?;
            }
            if in_block != block.entries() || value_bytes != block.value_section_bytes() {
                return bad("data block: entry count or value bytes");
            }
            last_separator = Some((separator.user_key.to_vec(), separator.trailer));
            Ok(())
        })?;
        for fragment in self.range_tombstones().fragments() {
            for &version in &fragment.versions {
                counted.smallest_version = counted.smallest_version.min(version);
                counted.largest_version = counted.largest_version.max(version);
            }
        }
        counted.range_tombstones = self.range_tombstones().fragments().len() as u64;
        counted.last_user_key = last.map(|(user_key, _)| user_key).unwrap_or_default();
        counted.created_by.clone_from(&self.properties().created_by);
        if counted != *self.properties() {
            let end = BlockHandle { offset: self.data_end(), len: 0 };
            return Err(self.corruption(end, "properties: they do not agree with the table's content"));
        }
        Ok(Verified { blocks: counted.data_blocks, entries: counted.entries })
    }

    /// Reads every data block, past the cache, and tells `each` its frame and content, or why it has none.
    fn for_each_block(
        &self,
        mut each: impl FnMut(BlockHandle, InternalKey<'_>, Result<(&[u8], &Block)>) -> Result<()>,
    ) -> Result<()> {
        let (mut key, mut frame) = (Vec::new(), Vec::new());
        let mut end = 0;
        let mut walk = |index: &Index| {
            for at in 0..index.len() {
                let handle = index.handle(at);
                if handle.offset != end {
                    return Err(self.corruption(handle, "index: the data blocks are not back to back"));
                }
                end = handle.offset + handle.len;
                let trailer = index.separator(at, &mut key);
                let read = self.read(handle.offset, handle.len, &mut frame);
                let read = read.and_then(|len| Ok((self.decode_data_block(&frame[..len], handle.offset)?, len)));
                let read = read.as_ref().map(|(block, len)| (&frame[..*len], block)).map_err(Error::clone);
                each(handle, InternalKey::new(&key, trailer), read)?;
            }
            Ok(())
        };
        if self.is_partitioned() {
            for at in 0..self.index().len() {
                walk(&*self.partition(at, ReadMode::Compaction)?)?;
            }
        } else {
            walk(self.index())?;
        }
        if end != self.data_end() {
            let handle = BlockHandle { offset: end, len: 0 };
            return Err(self.corruption(handle, "index: the data blocks end early"));
        }
        Ok(())
    }
}

impl Properties {
    /// Counts an entry, as the builder does.
    fn add(&mut self, key: InternalKey<'_>, value: &[u8], new_user_key: bool) {
        if self.entries == 0 {
            self.first_user_key = key.user_key.to_vec();
        }
        self.entries += 1;
        self.user_keys += u64::from(new_user_key);
        self.tombstones += u64::from(key.trailer.kind() == Some(ValueKind::Tombstone));
        self.blob_pointers += u64::from(key.trailer.kind() == Some(ValueKind::BlobPointer));
        self.raw_key_bytes += key.user_key.len() as u64;
        self.raw_value_bytes += value.len() as u64;
        self.smallest_version = self.smallest_version.min(key.trailer.version());
        self.largest_version = self.largest_version.max(key.trailer.version());
    }
}
