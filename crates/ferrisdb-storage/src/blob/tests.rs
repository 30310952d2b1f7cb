//! The bytes of blob files and pointers: golden, damaged, misplaced, random.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use expect_test::expect;
use ferrisdb_core::{Random, SplitMix64};

use super::format::{HEADER_BYTES, append_record, check_header, encode_header, open_record};
use super::{BlobPointer, BlobReader, BlobWriter};
use crate::cache::BlockCache;
use crate::error::Error;
use crate::fs::sim::SimFileSystem;
use crate::fs::{FileSystem, OpenMode};
use crate::manifest::{BlobMeta, EngineId, FileNumber};
use crate::table::{Compression, Compressor, ReadMode};

const ENGINE: EngineId = EngineId(*b"sixteen bytes id");
const NUMBER: FileNumber = FileNumber(300);

fn path() -> &'static Path {
    Path::new("/000300.blob")
}

fn write(disk: &SimFileSystem, compression: Compression, values: &[Vec<u8>]) -> (BlobMeta, Vec<BlobPointer>) {
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    let mut writer = BlobWriter::new(file, path(), ENGINE, NUMBER, compression);
    let pointers = values.iter().map(|value| writer.append(value).unwrap()).collect();
    (writer.finish().unwrap(), pointers)
}

fn open(disk: &SimFileSystem, meta: BlobMeta, cache_bytes: u64) -> crate::Result<BlobReader> {
    BlobReader::open(disk, path(), meta, ENGINE, &Arc::new(BlockCache::new(cache_bytes)))
}

fn compressions() -> [Compression; 3] {
    [Compression::None, Compression::Lz4, Compression::Zstd { level: 1 }]
}

/// A whole file and the pointer to its second value, byte by byte: a change here is a change of the format.
#[test]
fn golden_bytes() {
    let disk = SimFileSystem::new();
    let values = [b"a crab walks sideways".to_vec(), vec![b'x'; 300]];
    let (meta, pointers) = write(&disk, Compression::Lz4, &values);
    let bytes = disk.read_raw(path()).unwrap();
    assert_eq!(meta.file_bytes, bytes.len() as u64);
    let mut encoded = Vec::new();
    pointers[1].encode(&mut encoded);
    let mut shown = String::new();
    for line in bytes.chunks(16).chain([&[][..], &encoded[..]]) {
        let codes: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(shown, "{}", codes.join(" ")).unwrap();
    }
    expect![[r#"
        89 46 45 52 52 49 53 42 01 00 00 00 00 00 00 00
        73 69 78 74 65 65 6e 20 62 79 74 65 73 20 69 64
        2c 01 00 00 00 00 00 00 64 b9 b5 57 3b 9c a3 f8
        61 20 63 72 61 62 20 77 61 6c 6b 73 20 73 69 64
        65 77 61 79 73 00 65 b8 0c e7 95 37 04 2e ac 02
        1f 78 01 00 ff 14 50 78 78 78 78 78 01 67 05 fd
        83 00 c9 67 23

        ac 02 4e 17 ac 02
    "#]]
    .assert_eq(&shown);
}

/// What is written is read, compressed or not, past the cache and through it; a value that is too large for the cache is read each time.
#[test]
fn values_round_trip() {
    for compression in compressions() {
        let disk = SimFileSystem::new();
        let mut random = SplitMix64::new(3);
        let lens = [64, 100, 4096, 70_000, 300_000];
        let values: Vec<Vec<u8>> =
            lens.map(|len| (0..len).map(|_| b'a' + random.below(4) as u8).collect()).into_iter().collect();
        let (meta, pointers) = write(&disk, compression, &values);
        let reader = open(&disk, meta, 1 << 20).unwrap();
        for (value, pointer) in values.iter().zip(&pointers) {
            assert!(matches!(reader.read(pointer, ReadMode::MemoryOnly), Err(Error::WouldRead)));
            assert_eq!(&reader.read(pointer, ReadMode::Compaction).unwrap()[..], value);
            assert!(matches!(reader.read(pointer, ReadMode::MemoryOnly), Err(Error::WouldRead)), "not cached");
            assert_eq!(&reader.read(pointer, ReadMode::Blocking).unwrap()[..], value);
            let again = reader.read(pointer, ReadMode::MemoryOnly);
            assert_eq!(again.is_ok(), value.len() < 300_000, "{again:?}");
        }
    }
}

/// Whatever bit flips, the answer is the right one or `Corruption` that names the file.
#[test]
fn every_flipped_bit_is_found() {
    for compression in compressions() {
        let disk = SimFileSystem::new();
        let values = [vec![b'v'; 64], (0..90).collect()];
        let (meta, pointers) = write(&disk, compression, &values);
        for offset in 0..meta.file_bytes {
            for bit in 0..8 {
                let disk = disk.fork();
                disk.flip_bit(path(), offset, bit);
                let outcome = open(&disk, meta, 0);
                if offset < HEADER_BYTES {
                    assert!(matches!(outcome, Err(Error::Corruption { file, offset: 0, .. }) if file == path()));
                    continue;
                }
                let reader = outcome.unwrap();
                for (value, pointer) in values.iter().zip(&pointers) {
                    let hit = (pointer.offset..pointer.end()).contains(&offset);
                    match reader.read(pointer, ReadMode::Blocking) {
                        Ok(read) => assert!(!hit && read[..] == value[..]),
                        Err(Error::Corruption { file, offset: at, .. }) => {
                            assert!(hit && file == path() && at == pointer.offset);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }
}

/// A record that is right but lies elsewhere, in the file or in another one, is not taken.
#[test]
fn a_misplaced_record_is_found() {
    let mut compressor = Compressor::new(Compression::None);
    let mut record = Vec::new();
    let pointer = append_record(&mut compressor, &[b'v'; 100], NUMBER, 4096, &mut record);
    assert_eq!(&open_record(&record, &pointer).unwrap()[..], [b'v'; 100]);
    for wrong in [
        BlobPointer { offset: 4097, ..pointer },
        BlobPointer { number: FileNumber(301), ..pointer },
        BlobPointer { value_bytes: 99, ..pointer },
    ] {
        open_record(&record, &wrong).unwrap_err();
    }
}

/// A file of another engine, of another number, of another length, of a newer format, or none at all: each is told apart.
#[test]
fn wrong_files_are_refused() {
    let disk = SimFileSystem::new();
    let (meta, _) = write(&disk, Compression::None, &[vec![1; 100]]);
    let header = disk.read_raw(path()).unwrap()[..HEADER_BYTES as usize].to_vec();
    let check = |header: &[u8]| check_header(header, path(), ENGINE, NUMBER);
    check(&header).unwrap();
    let what = |error: crate::Result<()>| error.unwrap_err().to_string();
    let mut other = Vec::new();
    encode_header(EngineId([0; 16]), NUMBER, &mut other);
    assert!(what(check(&other)).contains("another engine"));
    other.clear();
    encode_header(ENGINE, FileNumber(299), &mut other);
    assert!(what(check(&other)).contains("blob file 299, not 300"));
    let mut newer = header.clone();
    newer[8] = 2;
    assert!(what(check(&newer)).contains("checksum"), "a flipped bit is not the future");
    let checksum = xxhash_rust::xxh3::xxh3_64(&newer[..40]);
    newer[40..].copy_from_slice(&checksum.to_le_bytes());
    assert!(matches!(check(&newer), Err(Error::FormatTooNew { found: 2, supported: 1, .. })));
    for len in 0..header.len() {
        check(&header[..len]).unwrap_err();
    }
    let longer = BlobMeta { file_bytes: meta.file_bytes + 1, ..meta };
    assert!(matches!(open(&disk, longer, 0), Err(Error::Corruption { .. })));
    disk.remove_raw(path());
    assert!(matches!(open(&disk, meta, 0), Err(Error::MissingFile { file }) if file == path()));
}

/// Pointers survive the round trip in one encoding; random and mutated bytes give a pointer that can be followed, or an error.
#[test]
fn pointers_are_checked() {
    let seed = std::env::var("FERRISDB_TEST_SEED").ok().map_or(11, |seed| seed.parse().unwrap());
    let mut random = SplitMix64::new(seed);
    let disk = SimFileSystem::new();
    let (meta, pointers) = write(&disk, Compression::None, &[vec![7; 100], vec![8; 200]]);
    let reader = open(&disk, meta, 1 << 20).unwrap();
    for bad in [
        BlobPointer { offset: HEADER_BYTES - 1, ..pointers[0] },
        BlobPointer { offset: u64::MAX - 50, ..pointers[0] },
        BlobPointer { record_bytes: 8, ..pointers[0] },
        BlobPointer { record_bytes: 100 + 10, ..pointers[0] },
        BlobPointer { value_bytes: (256 << 20) + 1, record_bytes: 300 << 20, ..pointers[0] },
    ] {
        let mut bytes = Vec::new();
        bad.encode(&mut bytes);
        assert!(BlobPointer::decode(&bytes).is_err(), "{bad:?}");
    }
    let mut accepted = 0;
    for round in 0..200_000 {
        let mut bytes = Vec::new();
        pointers[round % 2].encode(&mut bytes);
        if random.one_in(3) {
            bytes = (0..random.below(14)).map(|_| random.next_u64() as u8).collect();
        } else {
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len() as u64) as usize;
                match random.below(3) {
                    0 => bytes[at] = random.next_u64() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.next_u64() as u8),
                }
            }
        }
        let Ok(pointer) = BlobPointer::decode(&bytes) else { continue };
        let mut again = Vec::new();
        pointer.encode(&mut again);
        assert_eq!(again, bytes, "replay with FERRISDB_TEST_SEED={seed}");
        accepted += 1;
        if pointer.number == NUMBER {
            let read = reader.read(&pointer, ReadMode::Compaction);
            assert_eq!(read.is_ok(), pointers.contains(&pointer), "{pointer:?}; replay with FERRISDB_TEST_SEED={seed}");
        }
    }
    assert!(accepted > 10_000, "{accepted}");
}

/// Random bytes are no header and no record, and never a panic; with a right checksum neither.
#[test]
fn decoders_survive_random_bytes() {
    let seed = std::env::var("FERRISDB_TEST_SEED").ok().map_or(12, |seed| seed.parse().unwrap());
    let mut random = SplitMix64::new(seed);
    let mut valid = Vec::new();
    let pointer = append_record(&mut Compressor::new(Compression::Lz4), &[5; 500], NUMBER, 48, &mut valid);
    for _ in 0..50_000 {
        let mut bytes = valid.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(3) {
                0 => bytes[at] = random.next_u64() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.next_u64() as u8),
            }
        }
        if let Ok(value) = open_record(&bytes, &pointer) {
            assert_eq!(&value[..], [5; 500], "replay with FERRISDB_TEST_SEED={seed}");
        }
        let header: Vec<u8> = (0..random.below(60)).map(|_| random.next_u64() as u8).collect();
        check_header(&header, path(), ENGINE, NUMBER).unwrap_err();
    }
}
