//! How much memory an engine takes: write buffers, cache, and 30 % for all else. What open tables pin (index and filter) counts as cache.
//!
//! Both tests load keys that make indexes large beside the data: long, alike but for their ends, in small blocks. So what is pinned takes most of
//! the cache, and forgetting to count it shows.

use std::ops::Range;

use ferrisdb_core::{Random, SplitMix64};
use ferrisdb_storage::fs::sim::SimFileSystem;
use ferrisdb_storage::{Durability, Engine, Options, Statistics, WriteBatch};

use crate::support::{Machine, noise};

/// 200 bytes that each separator repeats, after a part in which the keys of a table differ, so that they are no prefix of all.
fn key(number: u64) -> Vec<u8> {
    let mut key = format!("{:05}", number / 20).into_bytes();
    key.extend([b'-'; 200]);
    key.extend(format!("{number:08}").into_bytes());
    key
}

/// Writes keys in their order, so that no table is there twice; if `with_reads`, with reads of those that are there between any two batches: they open
/// tables and fill the cache while memtables are full and compactions run.
fn load(engine: &Engine, keys: Range<u64>, value_bytes: usize, with_reads: bool, mut after_each_batch: impl FnMut()) {
    const BATCH: u64 = 50;
    let mut random = SplitMix64::new(9);
    let mut next = keys.start;
    while next < keys.end {
        let mut batch = WriteBatch::new();
        for number in next..next + BATCH {
            batch.put(&key(number), &noise(number, value_bytes));
        }
        engine.write(batch, Durability::Buffered).unwrap();
        next += BATCH;
        for _ in 0..if with_reads { BATCH } else { 0 } {
            engine.get(&key(random.below(next))).unwrap().expect("it was written");
        }
        after_each_batch();
    }
}

/// The engine's own accounting: memtables within the write buffers, blocks and what is pinned within the cache, at every moment of loads, reads and
/// compactions; and what is pinned is no less than what indexes and filters must take.
#[test]
fn accounted_memory_stays_within_its_budgets() {
    const KEYS: u64 = 3000;
    let machine = Machine::new(SimFileSystem::new(), 5);
    let options = Options {
        write_buffer_bytes: 128 << 10,
        block_cache_bytes: 1280 << 10,
        filter_bits_per_key: 20,
        table_bytes: 128 << 10,
        ..Options::tiny()
    };
    let engine = machine.open(options.clone()).unwrap();
    let check = |statistics: &Statistics| {
        let cache = statistics.cache;
        let write_buffers = (options.write_buffers_max * options.write_buffer_bytes) as u64;
        assert!(statistics.memtable_bytes <= write_buffers, "{statistics:?}");
        assert!(cache.cached_bytes + cache.pinned_bytes <= options.block_cache_bytes as u64, "{statistics:?}");
    };
    load(&engine, 0..KEYS, 150, true, || check(&engine.statistics()));
    engine.flush().unwrap();
    engine.wait_for_compactions().unwrap();
    (0..KEYS).for_each(|number| drop(engine.get(&key(number)).unwrap().expect("it was written")));
    let statistics = engine.statistics();
    check(&statistics);
    // Two entries to a block of 512 bytes; each separator repeats the 200 bytes, and a filter has 20 bits a key.
    let at_least = KEYS / 2 * 200 + KEYS * 20 / 8;
    assert!(statistics.cache.pinned_bytes >= at_least, "{} of {at_least}", statistics.cache.pinned_bytes);
    let cache = statistics.cache;
    let full = cache.cached_bytes + cache.pinned_bytes > cache.capacity_bytes / 10 * 9;
    assert!(full, "all blocks were read, and are more than there is room for: {cache:?}");
}

/// The operating system's count of anonymous memory, in a process of its own, with threads and files as they are: after each batch of a load that fills
/// ten memtables it is within the bound; once everything is in tables and the cache is full, what memtables had is back.
#[cfg(target_os = "linux")]
#[test]
fn anonymous_memory_stays_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["memory_bound::child_of_the_test_above", "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIRECTORY, directory.path())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(child.status.success(), "{}\n{}", text(&child.stdout), text(&child.stderr));
    assert!(text(&child.stdout).contains(CHILD_IS_DONE), "the child ran: {}", text(&child.stdout));
}

#[cfg(target_os = "linux")]
const CHILD_DIRECTORY: &str = "FERRISDB_TEST_MEMORY_BOUND";

#[cfg(target_os = "linux")]
const CHILD_IS_DONE: &str = "within all bounds";

/// Bytes of memory that no file backs.
#[cfg(target_os = "linux")]
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel tells it");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes << 10
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the test above runs it in a process of its own"]
#[expect(clippy::print_stdout, reason = "it tells its parent that it ran")]
fn child_of_the_test_above() {
    const MIB: u64 = 1 << 20;
    const KEYS: u64 = 80_000;
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    // Of the process itself: the test harness, and the stacks of threads.
    let before = anonymous_bytes();
    let options = Options {
        write_buffer_bytes: 8 << 20,
        write_buffers_max: 2,
        block_cache_bytes: 32 << 20,
        block_bytes: 512,
        ..Options::default()
    };
    let cache = options.block_cache_bytes as u64;
    let write_buffers = (options.write_buffers_max * options.write_buffer_bytes) as u64;
    let engine = Engine::open(std::path::Path::new(&directory), options).unwrap();
    let mut most = 0;
    let mut check = || {
        let now = anonymous_bytes().saturating_sub(before);
        most = most.max(now);
        assert!(now <= (write_buffers + cache) / 10 * 13, "{} MiB, {:?}", now / MIB, engine.statistics());
    };
    load(&engine, 0..KEYS, 1000, false, &mut check);
    engine.flush().unwrap();
    engine.wait_for_compactions().unwrap();
    // All tables are opened first. Opened one by one while blocks have all of the cache, they have it shrink, and what the blocks had stays with the
    // allocator: decision 0007 has the figures.
    for number in (0..KEYS).step_by(500).chain(0..KEYS) {
        engine.get(&key(number)).unwrap().expect("it was written");
    }
    let statistics = engine.statistics();
    let at_rest = anonymous_bytes().saturating_sub(before);
    let pinned = statistics.cache.pinned_bytes;
    println!("{} MiB at rest, of which {} MiB are pinned; {} flushes", at_rest / MIB, pinned / MIB, statistics.flushes);
    assert!(
        pinned > 14 * MIB && pinned < 24 * MIB,
        "what is pinned matters, and leaves room for blocks: {statistics:?}"
    );
    assert!(statistics.flushes >= 10, "memory of memtables was needed many times over");
    // What the process has beside the cache does not shrink with it. A write buffer has twice as much.
    assert!(at_rest <= cache / 10 * 13 + 4 * MIB, "{} MiB while nothing is in memtables", at_rest / MIB);

    // With the cache full, memtables are filled again.
    load(&engine, KEYS..KEYS + 16_000, 1000, true, &mut check);
    println!("{} MiB at most", most / MIB);
    engine.close().unwrap();
    println!("{CHILD_IS_DONE}");
}
