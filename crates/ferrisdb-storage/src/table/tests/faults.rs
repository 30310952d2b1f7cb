//! A disk that flips bits, cuts files and returns the wrong block; and decoders without a checksum in front of them.

use super::*;
use crate::table::block::BlockCursor;
use crate::table::frame::{Compressor, open_frame, uncompressed_len, unpack};
use crate::table::survive::{self, Walk};

use crate::table::footer::{FOOTER_BYTES, MAGIC};
use xxhash_rust::xxh3::xxh3_64;

/// Everything that the table answers: its entries both ways, gets, tombstones; or the first error.
fn read_all(fs: &MemoryFs, summary: &TableSummary, cache: &Arc<BlockCache>) -> Result<Vec<String>> {
    let reader = open_with(fs, summary, cache)?;
    let mut answers = vec![format!("{:?} {:?}", reader.summary(), reader.range_tombstones())];
    let mut iterator = TableIterator::new(Arc::clone(&reader), ReadMode::Compaction);
    iterator.seek_to_first()?;
    while let Some(at) = entry(&iterator) {
        answers.push(format!("{at:?}"));
        iterator.next()?;
    }
    for n in 0..32 {
        let key = format!("key{n:03}").into_bytes();
        let found = reader.get(&key, filter::hash(&key), Version::MAX, ReadMode::Compaction)?;
        answers.push(format!("{:?}", found.map(|found| (found.version, found.kind, found.value.to_vec()))));
    }
    Ok(answers)
}

/// Flips every bit of a small table, one at a time: every read gives the right answer or says corruption and where.
#[test]
fn every_flipped_bit_is_seen_or_harmless() {
    let cache = Arc::new(BlockCache::new(0));
    for (compression, index_flat_bytes_max) in [(Compression::None, usize::MAX), (Compression::Lz4, 0)] {
        let fs = MemoryFs::default();
        let options = TableOptions { compression, index_flat_bytes_max, index_partition_bytes: 16, ..small_options() };
        let summary = build(&fs, 1, &options, &small_model(), &small_tombstones());
        let good = read_all(&fs, &summary, &cache).unwrap();
        assert_eq!(open_with(&fs, &summary, &cache).unwrap().is_partitioned(), index_flat_bytes_max == 0);
        let file = fs.file(&path(1));
        let mut harmless = 0;
        for byte in 0..summary.file_bytes as usize {
            for bit in 0..8 {
                file.bytes.lock().unwrap()[byte] ^= 1 << bit;
                match read_all(&fs, &summary, &cache) {
                    Ok(answers) => {
                        assert_eq!(answers, good, "byte {byte} bit {bit}");
                        harmless += 1;
                    }
                    Err(Error::Corruption { file, offset, .. }) => {
                        assert_eq!(file, path(1));
                        assert!(offset as usize <= byte, "byte {byte} is blamed on what begins at {offset}");
                    }
                    Err(error) => panic!("byte {byte} bit {bit}: {error:?}"),
                }
                file.bytes.lock().unwrap()[byte] ^= 1 << bit;
            }
        }
        assert_eq!(harmless, 0, "nothing in the file is without a checksum");
    }
}

/// A file cut anywhere, or longer than it should be, is not opened, whether or not the manifest agrees with its length.
#[test]
fn cut_files_are_not_opened() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &small_options(), &small_model(), &small_tombstones());
    let whole = fs.file(&path(1)).bytes.lock().unwrap().clone();
    let cache = Arc::new(BlockCache::new(0));
    for len in 0..whole.len() {
        fs.put(&path(1), whole[..len].to_vec());
        for file_bytes in [summary.file_bytes, len as u64] {
            let result = TableReader::open(&fs, &path(1), summary.id, file_bytes, &cache);
            assert!(matches!(result, Err(Error::Corruption { .. })), "{len}: {result:?}");
        }
    }
    let longer = [&whole[..], &[0]].concat();
    fs.put(&path(1), longer);
    assert!(matches!(open_with(&fs, &summary, &cache), Err(Error::Corruption { .. })));
    let missing = TableReader::open(&fs, &path(9), TableId(9), 1, &cache);
    assert!(matches!(missing, Err(Error::MissingFile { file }) if file == path(9)));
}

/// A block from another place has a valid hash; its place gives it away: a neighbour's block, and the same offset of a
/// table with the same content and another id. A whole file in another's place is named.
#[test]
fn misplaced_blocks_are_seen() {
    let fs = MemoryFs::default();
    // Values of one length, stored as they are: the first blocks are equally long, so only the place tells them apart.
    let model: Model = (0..40u64)
        .map(|n| ((vec![b'A' + n as u8; 6], std::cmp::Reverse(7)), (ValueKind::Value, vec![n as u8; 60])))
        .collect();
    let one = build(&fs, 1, &small_options(), &model, &FragmentList::default());
    let two = build(&fs, 2, &small_options(), &model, &FragmentList::default());
    let cache = Arc::new(BlockCache::new(0));
    let handles = |summary: &TableSummary| {
        let reader = open_with(&fs, summary, &cache).unwrap();
        let handle = |at: usize| {
            let handle = reader.index().handle(at);
            handle.offset as usize..handle.offset as usize + handle.len as usize
        };
        (handle(0), handle(1))
    };
    let (first, second) = handles(&one);
    assert_eq!((first.clone(), second.clone()), handles(&two));
    assert_eq!(first.len(), second.len());
    let whole = fs.file(&path(1)).bytes.lock().unwrap().clone();
    let other = fs.file(&path(2)).bytes.lock().unwrap().clone();
    for (what, from) in [("neighbour", &whole[second]), ("other table", &other[first.clone()])] {
        let mut bytes = whole.clone();
        bytes[first.clone()].copy_from_slice(from);
        fs.put(&path(1), bytes);
        let reader = open_with(&fs, &one, &cache).unwrap();
        let result = reader.get(b"AAAAAA", filter::hash(b"AAAAAA"), Version::MAX, ReadMode::Blocking);
        assert!(matches!(result, Err(Error::Corruption { offset: 0, .. })), "{what}: {result:?}");
        assert!(matches!(reader.verify(), Err(Error::Corruption { offset: 0, .. })));
    }
    fs.put(&path(1), other);
    let error = open_with(&fs, &one, &cache).unwrap_err().to_string();
    assert!(error.contains("this is table 2, not table 1"), "{error}");
}

/// A newer format is told from damage: version and checksum must both say so.
#[test]
fn newer_formats_are_named() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &small_options(), &small_model(), &small_tombstones());
    let cache = Arc::new(BlockCache::new(0));
    let file = fs.file(&path(1));
    let end = summary.file_bytes as usize;
    file.bytes.lock().unwrap()[end - 20] = 2;
    assert!(matches!(open_with(&fs, &summary, &cache), Err(Error::Corruption { .. })));
    let checksum = xxh3_64(&file.bytes.lock().unwrap()[end - FOOTER_BYTES..end - 16]);
    file.bytes.lock().unwrap()[end - 16..end - 8].copy_from_slice(&checksum.to_le_bytes());
    let error = open_with(&fs, &summary, &cache).unwrap_err();
    assert!(matches!(&error, Error::FormatTooNew { found: 2, supported: 1, .. }), "{error:?}");
    assert_eq!(file.bytes.lock().unwrap()[end - 8..], MAGIC);
}

/// `verify` reads all of the file again: any byte that went bad since the table was opened is found.
#[test]
fn verify_reads_everything() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &small_options(), &small_model(), &small_tombstones());
    let reader = open(&fs, &summary);
    reader.verify().unwrap();
    let file = fs.file(&path(1));
    for byte in 0..summary.file_bytes as usize {
        file.bytes.lock().unwrap()[byte] ^= 4;
        assert!(matches!(reader.verify(), Err(Error::Corruption { .. })), "byte {byte}");
        file.bytes.lock().unwrap()[byte] ^= 4;
    }
}

/// `verify` sees what no checksum can: blocks with right checksums and wrong content.
#[test]
fn verify_sees_wrong_content() {
    let fs = MemoryFs::default();
    let summary = build(&fs, 1, &small_options(), &small_model(), &FragmentList::default());
    let cache = Arc::new(BlockCache::new(0));
    let range = {
        let handle = open_with(&fs, &summary, &cache).unwrap().index().handle(1);
        handle.offset as usize..(handle.offset + handle.len) as usize
    };
    let whole = fs.file(&path(1)).bytes.lock().unwrap().clone();
    let raw = open_frame(&whole[range.clone()], summary.id, range.start as u64).unwrap();
    let mut seen = 0;
    for at in 0..raw.len() {
        let mut changed = raw.to_vec();
        changed[at] ^= 1;
        let mut frame = Vec::new();
        Compressor::new(Compression::None).frame(&changed, summary.id, range.start as u64, &mut frame);
        let mut bytes = whole.clone();
        bytes[range.clone()].copy_from_slice(&frame);
        fs.put(&path(1), bytes);
        let reader = open_with(&fs, &summary, &cache).unwrap();
        match reader.verify() {
            Err(Error::Corruption { .. }) => seen += 1,
            // A changed value byte or version in a possible range is content like any other.
            Ok(_) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(seen > raw.len() / 8, "{seen} of {}", raw.len());
}

/// Blocks that passed no checksum: random bytes and mutated blocks never panic and never loop, whatever is asked of them.
#[test]
fn block_decoder_survives_anything() {
    let mut random = SplitMix64::new(99);
    let fs = MemoryFs::default();
    let mut good = Vec::new();
    for options in [small_options(), TableOptions { restart_interval: 1, ..small_options() }] {
        let summary = build(&fs, 1, &options, &small_model(), &FragmentList::default());
        let reader = open(&fs, &summary);
        for at in 0..reader.index().len() {
            let handle = reader.index().handle(at);
            let mut frame = Vec::new();
            let len = reader.read(handle.offset, handle.len, &mut frame).unwrap();
            good.push(open_frame(&frame[..len], summary.id, handle.offset).unwrap().to_vec());
        }
    }
    let (mut parsed, mut failed) = (0, 0);
    for round in 0..60_000 {
        let mut bytes = good[random.below(good.len() as u64) as usize].clone();
        if round % 10 == 0 {
            bytes = (0..random.below(80)).map(|_| random.next_u64() as u8 & 0x9F).collect();
        } else {
            for _ in 0..=random.below(4) {
                // The header, the arrays and the first entries matter most.
                let below = if random.one_in(2) { 60.min(bytes.len()) } else { bytes.len() };
                let at = random.below(below as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
        }
        let walk = survive::block(&bytes);
        parsed += u32::from(walk != Walk::Refused);
        failed += u32::from(walk == Walk::Stopped);
    }
    assert!(parsed > 10_000 && failed > 1_000, "the test reaches the code: {parsed} parsed, {failed} failed");
}

/// An entry that shares more than its predecessor has is an error, not a shorter key.
#[test]
fn sharing_more_than_there_is() {
    let mut builder = block_builder::BlockBuilder::new(16);
    builder.add(internal(b"ab", 1, ValueKind::Value), 0, b"");
    builder.add(internal(b"abc", 1, ValueKind::Value), 2, b"");
    builder.add(internal(b"x", 1, ValueKind::Value), 0, b"");
    let mut raw = Vec::new();
    builder.finish(&mut raw);
    let walk = |raw: &[u8]| {
        let block = Block::parse(raw.into()).unwrap();
        let mut cursor = BlockCursor::default();
        cursor.seek_to_first(&block)?;
        cursor.next(&block).map(|()| cursor.key().user_key.to_vec())
    };
    assert_eq!(walk(&raw).unwrap(), b"abc");
    let token = raw.iter().position(|&byte| byte == 0x21).unwrap();
    raw[token] = 0x31;
    assert_eq!(walk(&raw).unwrap_err().what, "data block: entry");
}

/// Compressed payloads that lie about their length, or are noise: refused, and nothing is allocated by a length that the payload
/// cannot expand to.
#[test]
fn decompression_survives_anything() {
    let mut random = SplitMix64::new(17);
    let mut good = Vec::new();
    for compression in [Compression::Lz4, Compression::Zstd { level: 3 }] {
        let mut frame = Vec::new();
        Compressor::new(compression).frame(&b"ferris the crab ".repeat(40), TableId(1), 0, &mut frame);
        assert!(frame.len() < 200);
        good.push(frame[..frame.len() - 8].to_vec());
    }
    for _ in 0..40_000 {
        let mut bytes = good[random.below(2) as usize].clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next_u64() as u8;
        }
        let (kind, payload) = bytes.split_last().unwrap();
        if let Ok(raw) = unpack(*kind, payload) {
            assert!(raw.len() <= payload.len() * (32 << 10));
        }
    }
    // 256 MiB out of three bytes: refused before the allocation, whatever the kind.
    let huge = [0xFF, 0xFF, 0xFF, 0x7F, 1, 2, 3];
    for kind in [1, 2, 3] {
        assert!(uncompressed_len(kind, &huge).is_err() && unpack(kind, &huge).is_err());
    }
}
