//! What every decoder of a table must survive: any bytes. The bodies of fuzz targets and of the tests' loops over mutated input.
//!
//! Each function panics if a decoder does, or if what it accepts breaks a promise. A checksum keeps nearly all mutations from the
//! code behind it, so whatever has one is tried as it is and with the checksum set right.

use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::Version;
use ferrisdb_core::codec::DecodeError;
use xxhash_rust::xxh3::xxh3_64;

use super::block::BlockCursor;
use super::filter::{self, Filter};
use super::footer::{FOOTER_BYTES, Footer, MAGIC};
use super::frame::{open_frame, place, unpack};
use super::{Block, BlockHandle, Index, Properties, ReadMode, TableId, TableIterator, TableReader, tombstone_block};
use crate::cache::BlockCache;
use crate::fs::FileSystem;
use crate::fs::sim::SimFileSystem;
use crate::iter::PointIterator;
use crate::key::InternalKey;
use crate::testing::decoders::Input;

const ID: TableId = TableId(1);

/// A frame with these bytes, of which the last one is the kind of compression, and the right checksum.
pub(crate) fn sealed_frame(body: &[u8], id: TableId, offset: u64) -> Vec<u8> {
    let checksum = xxh3_64(body) ^ place(id, offset);
    [body, &checksum.to_le_bytes()].concat()
}

/// A frame as it lies in a file; then sealed, and its payload under every kind of compression.
pub(crate) fn frame(bytes: &[u8]) {
    drop(open_frame(bytes, ID, 0));
    drop(open_frame(&sealed_frame(bytes, ID, 0), ID, 0));
    for kind in 0..4 {
        if let Ok(raw) = unpack(kind, bytes) {
            assert!(raw.len() <= bytes.len().saturating_mul(32 << 10), "no more than the payload can expand to");
        }
    }
}

/// What came of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    Refused,
    /// Its frame of arrays is right, and an entry is not.
    Stopped,
    Whole,
}

/// The payload of a data block, walked and searched in both directions. Never loops: a block has fewer entries than bytes.
pub(crate) fn block(bytes: &[u8]) -> Walk {
    let Ok(block) = Block::parse(bytes.into()) else { return Walk::Refused };
    let mut cursor = BlockCursor::default();
    let mut walk = || {
        let mut steps = 0..=bytes.len();
        cursor.seek_to_first(&block)?;
        while cursor.valid() {
            assert!(cursor.value(&block).len() <= bytes.len() && steps.next().is_some());
            cursor.next(&block)?;
        }
        let mut steps = 0..=bytes.len();
        cursor.seek_to_last(&block)?;
        while cursor.valid() {
            assert!(steps.next().is_some());
            cursor.prev(&block)?;
        }
        Ok::<(), DecodeError>(())
    };
    let mut whole = walk().is_ok();
    let inside = bytes.get(bytes.len() / 2..).unwrap_or_default();
    for key in [&b""[..], b"key010", b"key0", &inside[..inside.len().min(8)], b"\xff"] {
        for version in [Version::ZERO, Version::from_u64(100), Version::MAX] {
            if cursor.seek(&block, InternalKey::seek(key, version)).is_ok() && cursor.valid() {
                assert!(cursor.key().user_key.len() + cursor.value(&block).len() <= 2 * bytes.len());
                whole &= cursor.prev(&block).is_ok();
            }
        }
    }
    if whole { Walk::Whole } else { Walk::Stopped }
}

/// An index: what is accepted can be searched, and its blocks lie back to back within the limit.
pub(crate) fn index(bytes: &[u8]) {
    const LIMIT: u64 = 1 << 20;
    let Ok(index) = Index::decode(bytes, LIMIT) else { return };
    let (mut separator, mut end) = (Vec::new(), index.start_offset());
    for at in 0..index.len() {
        let handle = index.handle(at);
        assert_eq!(handle.offset, end, "blocks lie back to back");
        end = handle.offset + handle.len;
        let trailer = index.separator(at, &mut separator);
        let found = index.find(InternalKey::new(&separator, trailer));
        assert_eq!(found, at, "a separator leads to its own block");
    }
    assert!(end == index.end_offset() && (end <= LIMIT || index.is_empty()));
    assert!(index.find(InternalKey::seek(b"key010", Version::MAX)) <= index.len());
}

/// A filter: what is accepted answers.
pub(crate) fn filter(bytes: &[u8]) {
    if let Ok(filter) = Filter::decode(bytes) {
        for key in [&b""[..], b"key010", bytes] {
            filter.may_contain(filter::hash(key));
        }
        let mut again = Vec::new();
        filter.encode(&mut again);
        assert_eq!(again, bytes, "one encoding");
    }
}

/// Range tombstones: what is accepted is a well-formed list.
pub(crate) fn range_tombstones(bytes: &[u8]) {
    if let Ok(list) = tombstone_block::decode(bytes) {
        list.check();
        list.newest_covering(b"key010", Version::MAX);
    }
}

/// Properties: what is accepted survives being written and read again.
pub(crate) fn properties(bytes: &[u8]) {
    if let Ok(properties) = Properties::decode(bytes) {
        let mut again = Vec::new();
        properties.encode(&mut again);
        let decoded = Properties::decode(&again).expect("properties that were decoded can be encoded");
        let mut third = Vec::new();
        decoded.encode(&mut third);
        assert_eq!(again, third);
    }
}

/// A footer, at the end of a file of any length from its own on; as it is, and sealed.
pub(crate) fn footer(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    if let Some(covered) = bytes.len().checked_sub(16) {
        let checksum = xxh3_64(&bytes[covered.saturating_sub(FOOTER_BYTES - 16)..covered]);
        sealed[covered..covered + 8].copy_from_slice(&checksum.to_le_bytes());
        sealed[covered + 8..].copy_from_slice(&MAGIC);
    }
    for tail in [bytes, &sealed] {
        for file_bytes in [FOOTER_BYTES.max(tail.len()) as u64, 1 << 20] {
            if let Ok(footer) = Footer::decode(tail, Path::new("1.sst"), file_bytes) {
                for handle in [footer.index, footer.filter, footer.tombstones, footer.properties] {
                    assert!(handle.end().is_some_and(|end| end <= file_bytes), "within the file");
                }
            }
        }
    }
}

/// A whole table of which every part has a right checksum and any content. Lengths of the parts come first, two bytes each.
pub(crate) fn table(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let levels = 1 + u32::from(input.byte() & 1);
    let lens: [usize; 5] = std::array::from_fn(|_| input.length());
    let mut file = Vec::new();
    let [data, index, filter, tombstones, properties] = lens.map(|len| {
        let raw = input.take(len);
        if raw.is_empty() {
            return BlockHandle::default();
        }
        let offset = file.len() as u64;
        let body = [raw, &[0]].concat();
        file.extend(sealed_frame(&body, ID, offset));
        BlockHandle { offset, len: file.len() as u64 - offset }
    });
    Footer { id: ID, data_end: data.len, index, filter, tombstones, properties, index_levels: levels }
        .encode(&mut file);
    open_and_read(&file);
}

/// The bytes of a whole table file.
pub(crate) fn file(bytes: &[u8]) {
    open_and_read(bytes);
}

fn open_and_read(bytes: &[u8]) {
    let disk = SimFileSystem::new();
    let path = Path::new("/000001.sst");
    disk.write_raw(path, bytes);
    let fs: &dyn FileSystem = &disk;
    let cache = Arc::new(BlockCache::new(0));
    let Ok(reader) = TableReader::open(fs, path, ID, bytes.len() as u64, &cache) else { return };
    let reader = Arc::new(reader);
    // Blocks that lie about each other end in an error or in odd answers, but never in a panic, and in the end.
    drop(reader.verify());
    for key in [&b""[..], b"key010", b"\xff"] {
        drop(reader.get(key, filter::hash(key), Version::MAX, ReadMode::Compaction));
    }
    let mut iterator = TableIterator::new(Arc::clone(&reader), ReadMode::Compaction);
    let mut steps = 0..bytes.len() * 4;
    if iterator.seek_to_first().is_ok() {
        while iterator.valid() && iterator.next().is_ok() {
            assert!(steps.next().is_some(), "an entry takes bytes");
        }
    }
    let mut steps = 0..bytes.len() * 4;
    if iterator.seek_to_last().is_ok() {
        while iterator.valid() && iterator.prev().is_ok() {
            assert!(steps.next().is_some(), "an entry takes bytes");
        }
    }
}

/// The parts of a well-formed table file.
pub(crate) struct Parts {
    pub(crate) blocks: Vec<Vec<u8>>,
    pub(crate) index: Vec<u8>,
    pub(crate) filter: Vec<u8>,
    pub(crate) tombstones: Vec<u8>,
    pub(crate) properties: Vec<u8>,
    pub(crate) footer: Vec<u8>,
}

/// Takes a well-formed table with a flat index apart.
pub(crate) fn take_apart(file: &[u8], id: TableId) -> Parts {
    const WHOLE: &str = "the table is well formed";
    let footer_bytes = file[file.len() - FOOTER_BYTES..].to_vec();
    let footer = Footer::decode(&footer_bytes, Path::new("1.sst"), file.len() as u64).expect(WHOLE);
    let part = |handle: BlockHandle| {
        let at =
            usize::try_from(handle.offset).expect(WHOLE)..usize::try_from(handle.offset + handle.len).expect(WHOLE);
        if at.is_empty() { Vec::new() } else { open_frame(&file[at], id, handle.offset).expect(WHOLE).into_vec() }
    };
    let index = part(footer.index);
    let decoded = Index::decode(&index, footer.data_end).expect(WHOLE);
    Parts {
        blocks: (0..decoded.len()).map(|at| part(decoded.handle(at))).collect(),
        filter: part(footer.filter),
        tombstones: part(footer.tombstones),
        properties: part(footer.properties),
        index,
        footer: footer_bytes,
    }
}

/// What [`table`] takes for a table of one data block and these parts.
pub(crate) fn put_together(parts: &Parts) -> Vec<u8> {
    let all = [&parts.blocks[0], &parts.index, &parts.filter, &parts.tombstones, &parts.properties];
    let mut out = vec![0];
    for part in all {
        let len = u16::try_from(part.len()).expect("the examples are small");
        out.extend_from_slice(&len.to_le_bytes());
    }
    all.iter().for_each(|part| out.extend_from_slice(part));
    out
}
