//! How many files are open, and what reads say of a file that was closed.

use super::{Machine, contents, put};
use crate::fs::sim::SimFileSystem;
use crate::{Engine, Error, IterOptions, Options};

const KEYS: usize = 3000;

fn key(n: usize) -> String {
    format!("key{n:05}")
}

/// Many small tables in one level, and as many blob files; every value at even numbers is in a blob file.
fn filled(machine: &Machine, options: Options) -> Engine {
    let engine = machine.open(Options { table_bytes: 4096, blob_value_bytes: Some(100), ..options }).unwrap();
    for n in 0..KEYS {
        put(&engine, &key(n), &n.to_string().repeat(if n % 2 == 0 { 50 } else { 10 }));
    }
    engine.compact_range(None, None).unwrap();
    engine.wait_for_compactions().unwrap();
    engine
}

/// Random reads over many tables and blob files keep no more of them open than the option says, however long they go on; so does
/// a scan, which holds one table at a time.
#[test]
fn no_more_files_are_open_than_allowed() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let options = Options { max_open_files: 4, block_cache_bytes: 0, ..Options::tiny() };
    let engine = filled(&machine, options);
    let statistics = engine.statistics();
    let files = statistics.blob_files + statistics.levels.iter().map(|level| level.tables).sum::<usize>();
    assert!(files > 40, "{files}");
    // The manifest's handle and the WAL's.
    let others = machine.disk.open_handles() - statistics.open_files;
    assert!(others < 8, "{others}");
    for n in (0..KEYS).map(|n| n * 7 % KEYS) {
        assert!(engine.get(key(n).as_bytes()).unwrap().is_some());
        let (open, handles) = (engine.statistics().open_files, machine.disk.open_handles());
        // What the read closed while it was under way is closed by the next.
        assert!(open <= 4 && handles <= others + 4 + 2, "{open} {handles}");
    }
    assert_eq!(contents(&engine).len(), KEYS);
    let (open, handles) = (engine.statistics().open_files, machine.disk.open_handles());
    assert!(open <= 4 && handles <= others + 4, "{open} {handles}");
    drop(engine);
    machine.spawner.drop_jobs();
    assert_eq!(machine.disk.open_handles(), 0, "nothing keeps a file open");
}

/// An iterator goes on with the table that it is in, whatever is closed meanwhile.
#[test]
fn a_table_in_use_stays_open() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let engine = filled(&machine, Options { max_open_files: 1, block_cache_bytes: 0, ..Options::tiny() });
    let mut iter = engine.iter(IterOptions::default()).unwrap();
    iter.seek(key(1).as_bytes()).unwrap();
    let before = machine.disk.open_handles();
    for n in 1..KEYS {
        assert_eq!(iter.key(), key(n).as_bytes());
        assert!(engine.get(key(KEYS - n).as_bytes()).unwrap().is_some());
        iter.next().unwrap();
    }
    assert!(!iter.valid());
    assert!(machine.disk.open_handles() <= before + 2);
}

/// A table that was closed has to be opened again, which is I/O: the non-blocking calls say so, and after a blocking one they have the
/// answer. Its blocks are still in the cache: opening it is all that the blocking read does. A cached blob value needs no open file.
#[test]
fn a_closed_file_is_not_in_memory() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let engine = filled(&machine, Options { max_open_files: 1, block_cache_bytes: 8 << 20, ..Options::tiny() });
    let read = |n: usize| engine.get(key(n).as_bytes()).unwrap().unwrap();
    let would_read = |n: usize| matches!(engine.try_get(key(n).as_bytes(), None), Err(Error::WouldRead));
    let (near, far) = (1, KEYS - 1);
    read(near);
    assert!(!would_read(near));
    read(far);
    assert!(would_read(near), "its table was closed");
    assert!(matches!(engine.try_iter(IterOptions::default()).unwrap().try_seek_to_first(), Err(Error::WouldRead)));
    let misses = engine.statistics().cache.misses;
    read(near);
    assert_eq!(engine.statistics().cache.misses, misses, "the block was cached under the same id");
    assert!(!would_read(near));
    // An even number's value lies in a blob file, which closes the table: only the pointer's table has to be opened again.
    read(0);
    read(near);
    assert!(!would_read(0));
}

/// What an open table pins is counted as cache, and given back when it is closed.
#[test]
fn closed_tables_pin_nothing() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    let pinned = |max_open_files: usize| {
        let engine = machine.open(Options { max_open_files, ..Options::tiny() }).unwrap();
        for n in 0..KEYS {
            engine.get(key(n).as_bytes()).unwrap();
        }
        let pinned = engine.statistics().cache.pinned_bytes;
        engine.close().unwrap();
        pinned
    };
    filled(&machine, Options::tiny()).close().unwrap();
    let (few, all) = (pinned(2), pinned(1000));
    assert!(few > 0 && few * 5 < all, "{few} {all}");
}
