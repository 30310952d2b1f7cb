//! Tables as a whole: against a model, and against a disk that lies.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]

mod bench;
mod faults;
mod golden;
mod memory;
mod model;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferrisdb_core::{Random, SplitMix64, Version};

use self::memory::MemoryFs;
use super::*;
use crate::cache::BlockCache;
use crate::fs::{FileSystem, OpenMode};
use crate::iter::PointIterator;
use crate::key::{InternalKey, Trailer, ValueKind};
use crate::tombstone::FragmentList;

/// User key, and version reversed, so that the newest comes first.
type Place = (Vec<u8>, std::cmp::Reverse<u64>);
type Content = (ValueKind, Vec<u8>);
type Entry = (Place, Content);
type Model = BTreeMap<Place, Content>;

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

fn path(id: u64) -> PathBuf {
    PathBuf::from(format!("{id:06}.sst"))
}

fn internal(user_key: &[u8], version: u64, kind: ValueKind) -> InternalKey<'_> {
    InternalKey::new(user_key, Trailer::new(v(version), kind))
}

fn build(fs: &MemoryFs, id: u64, options: &TableOptions, model: &Model, tombstones: &FragmentList) -> TableSummary {
    let file = fs.open(&path(id), OpenMode::CreateNew).unwrap();
    let mut builder = TableBuilder::new(file, &path(id), TableId(id), options.clone());
    builder.set_created_by("ferrisdb 0.0.0");
    for ((key, version), (kind, value)) in model {
        builder.add(internal(key, version.0, *kind), value).unwrap();
    }
    builder.add_range_tombstones(tombstones);
    let estimate = builder.estimated_bytes();
    let summary = builder.finish().unwrap();
    if options.compression == Compression::None {
        let real = summary.file_bytes;
        assert!(
            estimate < real + real / 4 + 4096 && real < estimate + estimate / 4 + 4096,
            "{estimate} is about {real}"
        );
    }
    let file = fs.file(&path(id));
    assert_eq!(file.synced.load(Ordering::Relaxed), summary.file_bytes, "everything is synced");
    summary
}

fn open_with(fs: &MemoryFs, summary: &TableSummary, cache: &Arc<BlockCache>) -> Result<Arc<TableReader>> {
    TableReader::open(fs, &path(summary.id.0), summary.id, summary.file_bytes, cache).map(Arc::new)
}

fn open(fs: &MemoryFs, summary: &TableSummary) -> Arc<TableReader> {
    open_with(fs, summary, &Arc::new(BlockCache::new(1 << 20))).unwrap()
}

/// What the iterator stands on.
fn entry(iterator: &TableIterator) -> Option<Entry> {
    iterator.valid().then(|| {
        let key = iterator.key();
        let place = (key.user_key.to_vec(), std::cmp::Reverse(key.trailer.version().get()));
        (place, (key.trailer.kind().unwrap(), iterator.value().to_vec()))
    })
}

fn small_model() -> Model {
    (0..60u64)
        .map(|n| {
            let kind = if n % 7 == 3 { ValueKind::Tombstone } else { ValueKind::Value };
            let value = if kind == ValueKind::Value { format!("value {n}").repeat(3).into_bytes() } else { Vec::new() };
            ((format!("key{:03}", n / 2).into_bytes(), std::cmp::Reverse(100 + n)), (kind, value))
        })
        .collect()
}

fn small_tombstones() -> FragmentList {
    FragmentList::new([(&b"key005"[..], &b"key010"[..], v(130)), (b"key008", b"kez", v(140))])
}

fn small_options() -> TableOptions {
    TableOptions { block_bytes: 512, restart_interval: 4, compression: Compression::None, ..TableOptions::DEFAULT }
}

/// The default options are valid; each one out of range is named.
#[test]
fn options_are_validated() {
    TableOptions::DEFAULT.validate().unwrap();
    let bad = |change: fn(&mut TableOptions)| {
        let mut options = TableOptions::DEFAULT;
        change(&mut options);
        options.validate().unwrap_err().to_string()
    };
    assert!(bad(|options| options.block_bytes = 100).contains("block_bytes = 100"));
    assert!(bad(|options| options.restart_interval = 0).contains("restart_interval = 0"));
    assert!(bad(|options| options.filter_bits_per_key = 33).contains("filter_bits_per_key = 33"));
    assert!(bad(|options| options.compression = Compression::Zstd { level: 40 }).contains("level = 40"));
}

/// Entries out of order, and an entry twice, are a bug of ours and stop the builder.
#[test]
fn disorder_is_a_bug() {
    let attempt = |keys: &[(&[u8], u64)]| {
        let fs = MemoryFs::default();
        let file = fs.open(&path(1), OpenMode::CreateNew).unwrap();
        let mut builder =
            TableBuilder::new(file, &path(1), TableId(1), TableOptions { block_bytes: 512, ..TableOptions::DEFAULT });
        let add =
            |&(key, version): &(&[u8], u64)| builder.add(internal(key, version, ValueKind::Value), &[7; 300]).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| keys.iter().for_each(add))).is_err()
    };
    assert!(!attempt(&[(b"a", 2), (b"a", 1), (b"b", 9)]));
    assert!(attempt(&[(b"b", 1), (b"a", 2)]));
    assert!(attempt(&[(b"a", 1), (b"a", 2)]));
    assert!(attempt(&[(b"a", 1), (b"a", 1)]));
    assert!(attempt(&[(b"a", 9), (b"b", 9), (b"c", 9), (b"c", 10)]), "across a block's end");
}

/// A read that may not wait says so until the block is cached; one that may fills the cache; compaction does neither.
#[test]
fn modes_of_reading() {
    let fs = MemoryFs::default();
    let options = TableOptions { index_flat_bytes_max: 0, index_partition_bytes: 256, ..small_options() };
    let model: Model = (0..400u64)
        .map(|n| ((format!("key{n:05}").into_bytes(), std::cmp::Reverse(n)), (ValueKind::Value, vec![7; 100])))
        .collect();
    let summary = build(&fs, 1, &options, &model, &FragmentList::default());
    let cache = Arc::new(BlockCache::new(1 << 20));
    let reader = open_with(&fs, &summary, &cache).unwrap();
    assert!(reader.is_partitioned());
    let get = |key: &[u8], mode| reader.get(key, filter::hash(key), Version::MAX, mode);
    let would_read = |result: Result<()>| matches!(result, Err(Error::WouldRead));

    assert!(would_read(get(b"key00003", ReadMode::MemoryOnly).map(drop)), "no partition");
    assert!(get(b"no such key", ReadMode::MemoryOnly).unwrap().is_none(), "the filter is enough");
    let mut iterator = TableIterator::new(Arc::clone(&reader), ReadMode::MemoryOnly);
    assert!(would_read(iterator.seek_to_first()) && !iterator.valid());

    let file = fs.file(&path(1));
    let before = file.reads.load(Ordering::Relaxed);
    let mut compaction = TableIterator::new(Arc::clone(&reader), ReadMode::Compaction);
    compaction.seek_to_first().unwrap();
    let mut count = 0;
    while compaction.valid() {
        count += 1;
        compaction.next().unwrap();
    }
    let partitions = reader.index().len() as u64;
    assert_eq!((count, file.reads.load(Ordering::Relaxed) - before), (400, 1 + partitions), "one long read of data");
    assert_eq!(cache.statistics().cached_bytes, 0);

    assert_eq!(&*get(b"key00003", ReadMode::Blocking).unwrap().unwrap().value, &[7; 100]);
    assert_eq!(&*get(b"key00003", ReadMode::MemoryOnly).unwrap().unwrap().value, &[7; 100]);
    let mut key = Vec::new();
    iterator.seek(InternalKey::seek(b"key00003", Version::MAX)).unwrap();
    let error = loop {
        match iterator.next() {
            Ok(()) => key = iterator.key().user_key.to_vec(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::WouldRead) && !iterator.valid());
    iterator.set_mode(ReadMode::Blocking);
    iterator.seek(InternalKey::seek(&key, Version::ZERO)).unwrap();
    assert!(iterator.key().user_key > &key[..], "an iterator that met WouldRead goes on after a seek");
}

/// Values of 1,000 random bytes, four to a block, in a table whose blocks the cache does not hold.
fn table_of_random_values(fs: &MemoryFs, cache: &Arc<BlockCache>, entries: u64) -> Arc<TableReader> {
    let mut random = SplitMix64::new(8);
    let model: Model = (0..entries)
        .map(|n| {
            let value = (0..1000).map(|_| random.next_u64() as u8).collect();
            ((format!("key{n:05}").into_bytes(), std::cmp::Reverse(n)), (ValueKind::Value, value))
        })
        .collect();
    let summary = build(fs, 1, &TableOptions::DEFAULT, &model, &FragmentList::default());
    assert_eq!(summary.properties.data_blocks, entries / 4);
    open_with(fs, &summary, cache).unwrap()
}

/// A seek reads one block; a scan reads three one by one and those behind them in pieces that grow, and each block of them is cached. So a scan over 64 blocks
/// of 4 KiB takes three alone, then two, four, eight, and sixteen at a time. Where the cache answers nothing is read.
#[test]
fn a_scan_reads_ahead() {
    let fs = MemoryFs::default();
    let cache = Arc::new(BlockCache::new(4 << 20));
    let reader = table_of_random_values(&fs, &cache, 256);
    let file = fs.file(&path(1));
    assert!(file.expects_random_reads.load(Ordering::Relaxed), "nobody else is to read ahead as well");
    let reads_of = |run: &mut dyn FnMut()| {
        let before = file.reads.load(Ordering::Relaxed);
        run();
        file.reads.load(Ordering::Relaxed) - before
    };
    let mut iterator = TableIterator::new(Arc::clone(&reader), ReadMode::Blocking);
    let seek = |iterator: &mut TableIterator, key: &[u8]| iterator.seek(InternalKey::seek(key, Version::MAX)).unwrap();
    assert_eq!(reads_of(&mut || seek(&mut iterator, b"key00120")), 1);
    assert_eq!(reads_of(&mut || seek(&mut iterator, b"key00180")), 1, "another seek is no scan");
    assert_eq!(cache.statistics().misses, 2);

    let scan = |from: &[u8]| {
        let mut entries = 0;
        let reads = reads_of(&mut || {
            let mut iterator = TableIterator::new(Arc::clone(&reader), ReadMode::Blocking);
            seek(&mut iterator, from);
            while iterator.valid() {
                entries += 1;
                iterator.next().unwrap();
            }
        });
        (entries, reads)
    };
    // 31 blocks from 33 on, of which one is cached: 1, 1, 1, 2, 4, 8, 16.
    let (entries, reads) = scan(b"key00132");
    assert!(entries == 124 && (5..=8).contains(&reads), "{entries} entries with {reads} reads");
    assert_eq!(scan(b"key00132"), (124, 0), "what was used is cached");
    let (entries, reads) = scan(b"");
    assert!(entries == 256 && (5..=9).contains(&reads), "{entries} entries with {reads} reads");
}

/// What was read ahead is in memory for whoever may not wait.
#[test]
fn what_was_read_ahead_is_in_memory() {
    let fs = MemoryFs::default();
    let reader = table_of_random_values(&fs, &Arc::new(BlockCache::new(4 << 20)), 64);
    let mut iterator = TableIterator::new(reader, ReadMode::Blocking);
    iterator.seek_to_first().unwrap();
    (0..12).for_each(|_| iterator.next().unwrap());
    iterator.set_mode(ReadMode::MemoryOnly);
    let mut more = 0;
    while iterator.next().is_ok() {
        more += 1;
    }
    assert!((4..60).contains(&more), "{more} entries were at hand");
}

/// A sector that cannot be read, or has gone bad, fails only who needs it: not the scan whose read ahead meets it.
#[test]
fn a_bad_sector_fails_only_who_needs_it() {
    for flip in [false, true] {
        let fs = MemoryFs::default();
        let reader = table_of_random_values(&fs, &Arc::new(BlockCache::new(0)), 64);
        let bad = reader.index().handle(5).offset;
        let file = fs.file(&path(1));
        if flip {
            file.bytes.lock().unwrap()[bad as usize + 100] ^= 1;
        } else {
            file.unreadable_from.store(bad + 100, Ordering::Relaxed);
        }
        let mut iterator = TableIterator::new(reader, ReadMode::Blocking);
        iterator.seek_to_first().unwrap();
        for _ in 0..19 {
            iterator.next().unwrap();
        }
        let error = iterator.next().unwrap_err();
        assert!(matches!(error, Error::Io { .. } | Error::Corruption { .. }), "{error}");
        if flip {
            // What a disk gave wrongly once it may give rightly the next time.
            file.bytes.lock().unwrap()[bad as usize + 100] ^= 1;
        } else {
            file.unreadable_from.store(0, Ordering::Relaxed);
        }
        iterator.seek(InternalKey::seek(b"key00020", Version::MAX)).unwrap();
        assert_eq!(iterator.key().user_key, b"key00020");
    }
}

/// A block ends where it is nearest to its size: four values of a kilobyte make one although they are a little longer, and a value as long as a
/// block does not join one that is half full.
#[test]
fn blocks_end_nearest_to_their_size() {
    let blocks = |sizes: &[usize]| {
        let fs = MemoryFs::default();
        let model: Model = (0..)
            .zip(sizes)
            .map(|(n, &size): (u64, _)| {
                ((format!("{n:05}").into_bytes(), std::cmp::Reverse(1)), (ValueKind::Value, vec![0; size]))
            })
            .collect();
        let summary = build(&fs, 1, &TableOptions::DEFAULT, &model, &FragmentList::default());
        let cache = Arc::new(BlockCache::new(0));
        let reader = open_with(&fs, &summary, &cache).unwrap();
        let all = (0..reader.index().len()).map(|at| reader.data_block(reader.index().handle(at), ReadMode::Blocking));
        all.map(|block| block.unwrap().entries()).collect::<Vec<_>>()
    };
    assert_eq!(blocks(&[1024; 12]), [4, 4, 4]);
    assert_eq!(blocks(&[2500; 4]), [2, 2]);
    assert_eq!(blocks(&[3000; 3]), [1, 1, 1]);
    assert_eq!(blocks(&[1000, 1000, 5000, 100, 100_000, 10]), [2, 1, 1, 1, 1]);
}

/// An open table's index and filter are taken from the cache's room, and given back when it is closed.
#[test]
fn pinned_memory_is_accounted() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &small_options(), &small_model(), &small_tombstones());
    let cache = Arc::new(BlockCache::new(1 << 20));
    let reader = open_with(&fs, &summary, &cache).unwrap();
    let filter_bytes = 30 * 10 / 8;
    assert!(cache.statistics().pinned_bytes > filter_bytes);
    drop(reader);
    assert_eq!(cache.statistics().pinned_bytes, 0);
}

/// A value outlives the reader and the cache that it came from.
#[test]
fn a_value_pins_its_block() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &small_options(), &small_model(), &FragmentList::default());
    let reader = open(&fs, &summary);
    let found = reader.get(b"key000", filter::hash(b"key000"), Version::MAX, ReadMode::Blocking).unwrap().unwrap();
    drop(reader);
    assert_eq!(&*found.value, b"value 1value 1value 1");
    assert_eq!((found.version, found.kind), (v(101), ValueKind::Value));
}

/// A table of nothing but range tombstones is a table.
#[test]
fn range_tombstones_alone() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &TableOptions::DEFAULT, &Model::new(), &small_tombstones());
    assert_eq!(
        (&summary.smallest[..], &summary.largest[..], summary.largest_is_exclusive),
        (&b"key005"[..], &b"kez"[..], true)
    );
    assert_eq!((summary.properties.smallest_version, summary.properties.largest_version), (v(130), v(140)));
    let reader = open(&fs, &summary);
    assert_eq!(reader.summary(), summary);
    assert_eq!(reader.verify().unwrap(), Verified { blocks: 0, entries: 0 });
    assert_eq!(reader.newest_covering(b"key009", Version::MAX), Some(v(140)));
    assert!(reader.get(b"key009", filter::hash(b"key009"), Version::MAX, ReadMode::Blocking).unwrap().is_none());
    let mut iterator = TableIterator::new(reader, ReadMode::Blocking);
    iterator.seek_to_first().unwrap();
    assert!(!iterator.valid());
    iterator.seek_to_last().unwrap();
    assert!(!iterator.valid());
    iterator.seek_before(InternalKey::seek(b"x", Version::MAX)).unwrap();
    assert!(!iterator.valid());
}

/// Bounds take the wider of the entries and the range tombstones, and say whether the end is part of it.
#[test]
fn bounds_of_a_table() {
    let bounds = |tombstones: &[(&str, &str)]| {
        let fs = MemoryFs::default();
        let model = Model::from([((b"m".to_vec(), std::cmp::Reverse(1)), (ValueKind::Value, Vec::new()))]);
        let list = FragmentList::new(tombstones.iter().map(|(start, end)| (start.as_bytes(), end.as_bytes(), v(5))));
        let summary = build(&fs, 1, &TableOptions::DEFAULT, &model, &list);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        format!(
            "{}..{}{}",
            text(&summary.smallest),
            if summary.largest_is_exclusive { "" } else { "=" },
            text(&summary.largest)
        )
    };
    assert_eq!(bounds(&[]), "m..=m");
    assert_eq!(bounds(&[("a", "m")]), "a..=m");
    assert_eq!(bounds(&[("n", "z")]), "m..z");
    assert_eq!(bounds(&[("a", "b"), ("c", "z")]), "a..z");
}

/// Offsets of keys rise from zero to the end of the data, and agree with the separators.
#[test]
fn offsets_and_split_points() {
    for index_flat_bytes_max in [usize::MAX, 0] {
        let fs = MemoryFs::default();
        let options = TableOptions { index_flat_bytes_max, index_partition_bytes: 256, ..small_options() };
        let model: Model = (0..2000u64)
            .map(|n| ((format!("key{n:05}").into_bytes(), std::cmp::Reverse(n)), (ValueKind::Value, vec![7; 50])))
            .collect();
        let summary = build(&fs, 1, &options, &model, &FragmentList::default());
        let reader = open(&fs, &summary);
        let offset = |key: &[u8]| reader.approximate_offset_of(key, ReadMode::Blocking).unwrap();
        assert_eq!((offset(b""), offset(b"z")), (0, summary.properties.data_bytes));
        let half = offset(b"key01000") as f64 / summary.properties.data_bytes as f64;
        assert!((0.48..0.52).contains(&half), "{half}");
        let mut end = 0;
        reader
            .for_each_separator(ReadMode::Blocking, |separator, bytes| {
                assert_eq!(offset(separator), end);
                end += bytes;
            })
            .unwrap();
        assert_eq!(end, summary.properties.data_bytes);
    }
}
