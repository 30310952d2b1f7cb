//! The figures of `docs/decisions/0004-sstable.md`:
//! `cargo test --release -p ferrisdb-storage --lib table::tests::bench -- --ignored --nocapture`
//!
//! Everything is in memory: this measures the processor, not a disk.

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures time and prints it")]

use super::*;
use std::hint::black_box;
use std::time::Instant;

const ENTRIES: u64 = 500_000;

fn entries(random_keys: bool) -> Vec<([u8; 16], [u8; 100])> {
    let mut random = SplitMix64::new(4);
    let mut entries: Vec<_> = (0..ENTRIES)
        .map(|n| {
            let mut key: [u8; 16] = format!("{:016}", n * 7).into_bytes().try_into().unwrap();
            if random_keys {
                key[..8].copy_from_slice(&random.next_u64().to_le_bytes());
                key[8..].copy_from_slice(&random.next_u64().to_le_bytes());
            }
            // Half compressible: fifty random bytes, twice.
            let mut value = [0; 100];
            value[..50].iter_mut().for_each(|byte| *byte = random.next_u64() as u8);
            value.copy_within(..50, 50);
            (key, value)
        })
        .collect();
    entries.sort_unstable();
    entries
}

fn nanos(count: u64, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Bytes an entry takes in a table laid out as RocksDB does: rows with an eight-byte trailer (zeroed, as at the bottom
/// level), a restart every 16, blocks of 4 KiB, five bytes after each, the same LZ4, index and filter.
fn rocksdb_like_bytes(entries: &[([u8; 16], [u8; 100])]) -> f64 {
    let (mut total, mut block, mut last, mut in_block) = (0, Vec::new(), [0u8; 16], 0);
    let mut flush = |block: &mut Vec<u8>, in_block: &mut usize| {
        block.extend(vec![0; in_block.div_ceil(16) * 4 + 4]);
        total += lz4_flex::block::compress(block).len() + 2 + 5 + 8 + 10;
        block.clear();
        *in_block = 0;
    };
    for (key, value) in entries {
        if block.len() + 120 > 4096 {
            flush(&mut block, &mut in_block);
        }
        let shared = if in_block % 16 == 0 { 0 } else { block::common_prefix_len(&last, key) };
        block.extend([shared as u8, (24 - shared) as u8, 100]);
        block.extend(&key[shared..]);
        block.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        block.extend(value);
        last = *key;
        in_block += 1;
    }
    flush(&mut block, &mut in_block);
    total as f64 / entries.len() as f64 + 1.25
}

#[test]
#[ignore = "a benchmark"]
fn figures() {
    for random_keys in [false, true] {
        let entries = entries(random_keys);
        println!(
            "\n{} keys; a table like RocksDB's: {:.1} B/entry",
            if random_keys { "random" } else { "decimal" },
            rocksdb_like_bytes(&entries)
        );
        println!(
            "block KiB, restart, compression | B/entry | build ns | get ns | miss ns | seek+10 ns | next ns | cold get ns"
        );
        for (block_kib, restart_interval, compression) in [
            (4, 4, Compression::Lz4),
            (4, 8, Compression::Lz4),
            (4, 16, Compression::Lz4),
            (8, 8, Compression::Lz4),
            (16, 8, Compression::Lz4),
            (16, 16, Compression::Lz4),
            (4, 8, Compression::None),
            (4, 8, Compression::Zstd { level: 1 }),
            (16, 16, Compression::Zstd { level: 3 }),
        ] {
            let options =
                TableOptions { block_bytes: block_kib << 10, restart_interval, compression, ..TableOptions::DEFAULT };
            measure(&entries, &options);
        }
    }
}

fn measure(entries: &[([u8; 16], [u8; 100])], options: &TableOptions) {
    let fs = MemoryFs::default();
    let mut summary = None;
    let build = nanos(ENTRIES, || {
        let file = fs.open(&path(1), OpenMode::CreateNew).unwrap();
        let mut builder = TableBuilder::new(file, &path(1), TableId(1), options.clone());
        for (key, value) in entries {
            builder.add(internal(key, 0, ValueKind::Value), value).unwrap();
        }
        summary = Some(builder.finish().unwrap());
    });
    let summary = summary.unwrap();
    let cache = Arc::new(BlockCache::new(1 << 30));
    let reader = open_with(&fs, &summary, &cache).unwrap();
    let mut random = SplitMix64::new(5);
    let order: Vec<usize> = (0..1_000_000).map(|_| random.below(ENTRIES) as usize).collect();
    let get_all = |order: &[usize]| {
        for &at in order {
            let (key, value) = &entries[at];
            let found = reader.get(key, filter::hash(key), Version::MAX, ReadMode::Blocking).unwrap().unwrap();
            assert!(found.value[..8] == value[..8]);
        }
    };
    let cold_order: Vec<usize> = (0..ENTRIES as usize).step_by(301).collect();
    let cold = nanos(cold_order.len() as u64, || get_all(&cold_order));
    get_all(&order);
    let get = nanos(order.len() as u64, || get_all(&order));
    let absent: Vec<[u8; 16]> = order
        .iter()
        .map(|&at| {
            let mut key = entries[at].0;
            key[15] ^= 0x80;
            key
        })
        .collect();
    let miss = nanos(absent.len() as u64, || {
        for key in &absent {
            black_box(reader.get(key, filter::hash(key), Version::MAX, ReadMode::Blocking).unwrap());
        }
    });
    let mut iterator = TableIterator::new(Arc::clone(&reader), ReadMode::Blocking);
    let seek = nanos(200_000, || {
        for &at in &order[..200_000] {
            iterator.seek(InternalKey::seek(&entries[at].0, Version::MAX)).unwrap();
            for _ in 0..10 {
                if iterator.valid() {
                    black_box((iterator.key(), iterator.value()));
                    iterator.next().unwrap();
                }
            }
        }
    });
    iterator.seek_to_first().unwrap();
    let next = nanos(ENTRIES, || {
        while iterator.valid() {
            black_box((iterator.key(), iterator.value()));
            iterator.next().unwrap();
        }
    });
    println!(
        "{:2}, {:2}, {:?} | {:.1} | {build:.0} | {get:.0} | {miss:.0} | {seek:.0} | {next:.1} | {cold:.0}",
        options.block_bytes >> 10,
        options.restart_interval,
        options.compression,
        summary.file_bytes as f64 / ENTRIES as f64,
    );
}

/// The parts, alone: checksums over a block, the search in a block with heads and without, the filter, the index.
#[test]
#[ignore = "a benchmark"]
fn parts() {
    let bytes: Vec<u8> = (0..4096u32).map(|n| (n * 31 % 251) as u8).collect();
    for len in [2400, 4096] {
        let rounds = 200_000;
        let xxh3 = nanos(rounds, || {
            for _ in 0..rounds {
                black_box(xxhash_rust::xxh3::xxh3_64(black_box(&bytes[..len])));
            }
        });
        let crc = nanos(rounds, || {
            for _ in 0..rounds {
                black_box(crc_fast::crc32_iscsi(black_box(&bytes[..len])));
            }
        });
        println!("checksum of {len} bytes: xxh3 {xxh3:.0} ns, crc32c {crc:.0} ns");
    }
    for random_keys in [false, true] {
        let entries = entries(random_keys);
        for restart_interval in [2, 4, 8, 16] {
            let mut builder = block_builder::BlockBuilder::new(restart_interval);
            let mut last = &b""[..];
            for (key, value) in &entries[1000..1036] {
                builder.add(internal(key, 0, ValueKind::Value), block::common_prefix_len(last, key), value);
                last = key;
            }
            let mut raw = Vec::new();
            builder.finish(&mut raw);
            let block = Block::parse(raw.into_boxed_slice()).unwrap();
            let mut random = SplitMix64::new(5);
            let order: Vec<usize> = (0..100_000).map(|_| 1000 + random.below(36) as usize).collect();
            let search = nanos(order.len() as u64, || {
                for &at in &order {
                    black_box(block.seek(InternalKey::seek(&entries[at].0, Version::MAX)).unwrap());
                }
            });
            let without = nanos(order.len() as u64, || {
                for &at in &order {
                    black_box(block.seek_without_heads(InternalKey::seek(&entries[at].0, Version::MAX)).unwrap());
                }
            });
            println!(
                "random keys {random_keys}, restart every {restart_interval:2}: search with heads {search:.1} ns, without {without:.1} ns"
            );
        }
    }
}
