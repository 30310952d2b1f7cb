//! Random tables under every combination of options, against a `BTreeMap`.

use super::*;
use std::cmp::Reverse;
use std::ops::Bound;

/// Keys that share prefixes, hold zero and 0xFF bytes, repeat with many versions, and are sometimes long or empty.
fn random_model(random: &mut SplitMix64) -> Model {
    let mut model = Model::new();
    let style = random.below(4);
    let mut version = 1;
    for _ in 0..random.below(400) + 1 {
        let key = match style {
            0 => format!("user{:08}", random.below(200)).into_bytes(),
            1 => (0..random.below(6)).map(|_| [0, 1, 254, 255][random.below(4) as usize]).collect(),
            2 => vec![b'k'; random.below(40) as usize],
            _ => (0..random.below(20)).map(|_| random.next_u64() as u8).collect(),
        };
        version += random.below(3);
        let versions = if random.one_in(20) { 40 } else { 1 };
        for n in 0..versions {
            let kind = [ValueKind::Value, ValueKind::Value, ValueKind::Tombstone, ValueKind::BlobPointer];
            let kind = kind[random.below(4) as usize];
            let len = if random.one_in(100) { 3000 } else { random.below(60) };
            let value = (0..len).map(|_| b"abc"[random.below(3) as usize]).collect();
            let stored = if style == 0 && random.one_in(2) { 0 } else { version + n };
            model.insert((key.clone(), Reverse(stored)), (kind, value));
        }
        version += versions;
    }
    model
}

fn check(reader: &Arc<TableReader>, model: &Model, random: &mut SplitMix64) {
    let entries: Vec<Entry> = model.iter().map(|(place, content)| (place.clone(), content.clone())).collect();
    for mode in [ReadMode::Blocking, ReadMode::Compaction] {
        let mut iterator = TableIterator::new(Arc::clone(reader), mode);
        let mut seen = Vec::new();
        iterator.seek_to_first().unwrap();
        while let Some(at) = entry(&iterator) {
            seen.push(at);
            iterator.next().unwrap();
        }
        assert!(seen == entries, "forward");
        seen.clear();
        iterator.seek_to_last().unwrap();
        while let Some(at) = entry(&iterator) {
            seen.push(at);
            iterator.prev().unwrap();
        }
        seen.reverse();
        assert!(seen == entries, "backward");
    }
    let mut iterator = TableIterator::new(Arc::clone(reader), ReadMode::Blocking);
    for _ in 0..300 {
        // A key of the table, one close to it, or any.
        let mut key = entries[random.below(entries.len() as u64) as usize].0.0.clone();
        match random.below(5) {
            0 => key.push(random.next_u64() as u8),
            1 => drop(key.pop()),
            2 => key.iter_mut().rev().take(1).for_each(|byte| *byte = byte.wrapping_add(1)),
            _ => {}
        }
        let version = if random.one_in(3) { (1 << 56) - 1 } else { random.below(600) };
        let at = (key.clone(), Reverse(version));

        let expected = model.range(at.clone()..).next().filter(|((found, _), _)| *found == key);
        let found = reader.get(&key, filter::hash(&key), v(version), ReadMode::Blocking).unwrap();
        let found = found.map(|found| (found.version.get(), found.kind, found.value.to_vec()));
        let expected = expected.map(|((_, version), (kind, value))| (version.0, *kind, value.clone()));
        assert_eq!(found, expected, "get {key:?} at {version}");

        let own = |(place, content): (&Place, &Content)| (place.clone(), content.clone());
        iterator.seek(InternalKey::seek(&key, v(version))).unwrap();
        let mut after = model.range(at.clone()..).map(own);
        assert_eq!(entry(&iterator), after.next(), "seek {key:?} at {version}");
        for _ in 0..random.below(4) {
            if iterator.valid() {
                iterator.next().unwrap();
                assert_eq!(entry(&iterator), after.next(), "next after {key:?}");
            }
        }
        iterator.seek_before(InternalKey::seek(&key, v(version))).unwrap();
        let mut before = model.range((Bound::Unbounded, Bound::Excluded(at))).rev().map(own);
        assert_eq!(entry(&iterator), before.next(), "seek_before {key:?} at {version}");
        for _ in 0..random.below(4) {
            if iterator.valid() {
                iterator.prev().unwrap();
                assert_eq!(entry(&iterator), before.next(), "prev before {key:?}");
            }
        }
    }
}

fn run(seed: u64, options: &TableOptions) {
    let mut random = SplitMix64::new(seed);
    let model = random_model(&mut random);
    let fs = MemoryFs::default();
    let summary = build(&fs, seed, options, &model, &FragmentList::default());
    let reader = open(&fs, &summary);
    assert_eq!(reader.summary(), summary);
    assert_eq!(reader.verify().unwrap().entries, model.len() as u64);
    check(&reader, &model, &mut random);
}

/// Every combination of compression, block size, restart interval, index shape and filter answers like the model. To replay
/// one case, call `run` with the seed and options that the failure prints.
#[test]
fn tables_answer_like_the_model() {
    let mut seed = 0;
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd { level: 1 }] {
        for block_bytes in [512, 4096, 128 << 10] {
            for restart_interval in [1, 3, 16] {
                for (index_flat_bytes_max, filter_bits_per_key) in [(usize::MAX, 10), (0, 10), (0, 0)] {
                    let options = TableOptions {
                        block_bytes,
                        restart_interval,
                        compression,
                        filter_bits_per_key,
                        index_flat_bytes_max,
                        index_partition_bytes: 256,
                    };
                    for _ in 0..3 {
                        seed += 1;
                        let result = std::panic::catch_unwind(|| run(seed, &options));
                        assert!(result.is_ok(), "failed: run({seed}, &{options:?})");
                    }
                }
            }
        }
    }
}

/// One key with a thousand versions fills many blocks; every version is found, forward and backward, in a large index, too.
#[test]
fn one_key_over_many_blocks() {
    for index_flat_bytes_max in [usize::MAX, 0] {
        let mut model: Model =
            (1..=1000).map(|n| ((b"hot".to_vec(), Reverse(n)), (ValueKind::Value, vec![n as u8; 30]))).collect();
        model.insert((b"cold".to_vec(), Reverse(7)), (ValueKind::Value, Vec::new()));
        model.insert((b"hotter".to_vec(), Reverse(3)), (ValueKind::Value, Vec::new()));
        let options = TableOptions { index_flat_bytes_max, index_partition_bytes: 256, ..small_options() };
        let fs = MemoryFs::default();
        let reader = open(&fs, &build(&fs, 1, &options, &model, &FragmentList::default()));
        assert!(reader.properties().data_blocks > 50);
        for at in 0..=1001 {
            let found = reader.get(b"hot", filter::hash(b"hot"), v(at), ReadMode::Blocking).unwrap();
            assert_eq!(found.map_or(0, |found| found.version.get()), at.min(1000));
        }
        check(&reader, &model, &mut SplitMix64::new(1));
        reader.verify().unwrap();
    }
}

/// The largest key and a value of a megabyte: offsets no longer fit two bytes, lengths no longer fit their nibbles.
#[test]
fn long_keys_and_values() {
    let mut model = Model::new();
    for n in 0..40u8 {
        let mut key = vec![b'x'; 65_535 - usize::from(n % 3)];
        key[60_000] = n;
        model.insert((key, Reverse(u64::from(n) << 40)), (ValueKind::Value, vec![n; if n == 5 { 1 << 20 } else { 9 }]));
    }
    for block_bytes in [4096, 1 << 20] {
        let fs = MemoryFs::default();
        let options = TableOptions { block_bytes, ..TableOptions::DEFAULT };
        let reader = open(&fs, &build(&fs, 1, &options, &model, &FragmentList::default()));
        check(&reader, &model, &mut SplitMix64::new(1));
        reader.verify().unwrap();
    }
}
