//! Closing, dropping, reopening, in every order, and what a panicking job leaves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferrisdb_storage::env::threads::ThreadSpawner;
use ferrisdb_storage::fs::sim::{OpKind, SimFileSystem, Verdict};
use ferrisdb_storage::{Durability, Engine, Env, Error, IterOptions, Options, Submitted, WriteBatch};

use crate::support::{Change, DIR, History, Machine, noise, put, put_batch, scan, small, v};

/// A drop without a close loses nothing that was written: only the machine's death could.
#[test]
fn drop_then_reopen() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let mut history = History::default();
    for round in 1..20_u64 {
        let engine = machine.open(small()).unwrap();
        history.check(&engine).unwrap();
        for n in 0..10 {
            history.write(&engine, v(round * 10 + n), &[Change::Put(format!("k{n}"), noise(round, 200))]);
        }
    }
    assert!(machine.spawner.jobs().is_empty(), "the jobs of dropped engines have ended");
}

/// After a close every call that can fail says `Closed`, on each clone, each snapshot, and the second close.
#[test]
fn use_after_close() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    for read_only in [false, true] {
        let engine = if read_only { machine.open_read_only(small()) } else { machine.open(small()) }.unwrap();
        if !read_only {
            put(&engine, "a", "1");
        }
        let clone = engine.clone();
        let snapshot = engine.snapshot();
        engine.close().unwrap();
        let calls: Vec<(&str, Option<Error>)> = vec![
            ("get", clone.get(b"a").err()),
            ("get_at", clone.get_at(b"a", v(1)).err()),
            ("try_get", clone.try_get(b"a", None).err()),
            ("multi_get", clone.multi_get(&[b"a"], None).err()),
            ("iter", clone.iter(IterOptions::default()).err()),
            ("try_iter", clone.try_iter(IterOptions::default()).err()),
            ("pin", clone.pin(v(1)).err()),
            ("set_oldest_readable_version", clone.set_oldest_readable_version(v(1)).err()),
            ("wait_for_compactions", clone.wait_for_compactions().err()),
            ("verify", clone.verify().err()),
            ("snapshot.get", snapshot.get(b"a").err()),
            ("snapshot.iter", snapshot.iter(IterOptions::default()).err()),
        ];
        let writing: Vec<(&str, Option<Error>)> = vec![
            ("write", clone.write(put_batch("a", "2"), Durability::Sync).err()),
            ("empty write", clone.write(WriteBatch::new(), Durability::Sync).err()),
            ("submit", clone.submit(put_batch("a", "2"), Durability::Sync).err()),
            ("flush", clone.flush().err()),
            ("compact_range", clone.compact_range(None, None).err()),
        ];
        for (call, error) in calls {
            assert!(matches!(error, Some(Error::Closed)), "{call}: {error:?}");
        }
        for (call, error) in writing {
            assert!(matches!(error, Some(Error::Closed | Error::ReadOnly { .. })), "{call}: {error:?}");
            assert!(read_only || matches!(error, Some(Error::Closed)), "{call}: {error:?}");
        }
        assert!(clone.poll_writable(std::task::Waker::noop()), "nobody waits for ever");
        // What cannot fail still answers.
        assert_eq!(clone.visible_version(), v(1));
        assert_eq!(clone.statistics().visible_version, v(1));
        assert!(clone.unpin(snapshot.version()));
        assert!(matches!(clone.close(), Err(Error::Closed)));
        drop(snapshot);
        let engine = machine.open(small()).unwrap();
        assert_eq!(engine.get(b"a").unwrap().unwrap(), b"1");
    }
}

/// The engine may be dropped between any two steps of its flushes and compactions: nothing is lost, and what was half done is removed.
#[test]
fn drop_during_flush_and_compaction() {
    let mut with_leftovers = 0;
    for steps in 0..150 {
        let machine = Machine::new(SimFileSystem::new(), steps);
        let options = Options { job_step_entries: 8, ..small() };
        let mut history = History::default();
        let engine = machine.open(options.clone()).unwrap();
        let mut version = 0;
        while engine.statistics().memtables < 3 && version < 400 {
            version += 1;
            let key = format!("key{:03}", version * 37 % 100);
            history.write(&engine, v(version), &[Change::Put(key, noise(version, 200))]);
        }
        for _ in 0..steps * 2 {
            machine.spawner.step_one();
        }
        let held = engine.snapshot();
        drop(engine);
        drop(held);
        assert!(machine.spawner.jobs().is_empty());
        let tables_before = machine.files(".sst").len();
        let engine = machine.open(options).unwrap();
        history.check_every(&engine, 40).unwrap();
        machine.spawner.run_until_idle();
        engine.wait_for_compactions().unwrap();
        machine.spawner.run_for(std::time::Duration::from_secs(1));
        assert_eq!(engine.verify().unwrap().leftovers, Vec::<std::path::PathBuf>::new());
        history.check_every(&engine, 40).unwrap();
        with_leftovers += usize::from(tables_before > 0);
        engine.close().unwrap();
    }
    assert!(with_leftovers > 50, "{with_leftovers}");
}

/// A snapshot keeps the engine open when all handles are gone, and the directory free when it is gone too.
#[test]
fn a_snapshot_outlives_the_handles() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(Options { wal_segment_bytes: 4 << 10, ..Options::tiny() }).unwrap();
    for n in 0..100 {
        put(&engine, &format!("k{n:03}"), "old");
    }
    let snapshot = engine.snapshot();
    for n in 0..100 {
        put(&engine, &format!("k{n:03}"), "new");
    }
    engine.compact_range(None, None).unwrap();
    drop(engine);
    assert!(matches!(machine.open(small()).unwrap_err(), Error::Locked { .. }));
    let mut iter = snapshot.iter(IterOptions::default()).unwrap();
    iter.seek_to_first().unwrap();
    for n in 0..100 {
        assert_eq!(snapshot.get(format!("k{n:03}").as_bytes()).unwrap().unwrap(), b"old");
        assert!(iter.valid() && iter.value() == b"old");
        iter.next().unwrap();
    }
    drop(snapshot);
    let engine = machine.open(small()).unwrap();
    assert_eq!(engine.get(b"k000").unwrap().unwrap(), b"new");
}

/// An iterator, and a value, stay what they are while their tables are compacted away and the engine is closed. When another engine has
/// removed the files, the iterator goes on or says which file it misses; never anything else.
#[test]
fn an_iterator_outlives_its_files() {
    for reopen in [false, true] {
        let machine = Machine::new(SimFileSystem::new(), 0);
        let options = Options { wal_segment_bytes: 4 << 10, ..Options::tiny() };
        let engine = machine.open(options.clone()).unwrap();
        for n in 0..400 {
            put(&engine, &format!("k{n:03}"), &format!("old {n} {}", "x".repeat(60)));
        }
        engine.compact_range(None, None).unwrap();
        let expected = scan(&engine, IterOptions::default()).unwrap();
        let mut iter = engine.iter(IterOptions::default()).unwrap();
        iter.seek_to_first().unwrap();
        let value = engine.get(b"k123").unwrap().unwrap();
        // What the compaction replaced goes before the count.
        machine.spawner.run_for(std::time::Duration::from_secs(1));
        let old_tables = machine.files(".sst");
        for n in 0..400 {
            put(&engine, &format!("k{n:03}"), "new");
        }
        engine.compact_range(None, None).unwrap();
        machine.spawner.run_for(std::time::Duration::from_secs(1));
        assert!(old_tables.iter().all(|table| machine.files(".sst").contains(table)), "held by the iterator");
        engine.close().unwrap();
        let second = reopen.then(|| {
            let engine = machine.open(options).unwrap();
            machine.spawner.run_for(std::time::Duration::from_secs(1));
            assert!(!old_tables.iter().any(|table| machine.files(".sst").contains(table)), "removed by the next open");
            engine
        });
        let mut read = 0;
        for (key, value) in &expected {
            assert!(iter.valid() && iter.key() == key && iter.value() == value);
            read += 1;
            match iter.next() {
                Ok(()) => {}
                Err(error) => {
                    assert!(reopen && crate::support::file_of(&error).is_some(), "{error}");
                    break;
                }
            }
        }
        assert!(reopen || (read == expected.len() && !iter.valid()));
        assert_eq!(value, expected[&b"k123"[..]]);
        drop(second);
    }
}

/// A panic in a job, at any write to a table or manifest: the engine is poisoned and says so in every call that writes and in `close`,
/// reads go on, and the next open finds everything.
#[test]
fn a_panicking_job_poisons() {
    for (part, kind) in
        [(".sst", OpKind::Write), (".sst", OpKind::Create), ("MANIFEST", OpKind::Write), (DIR, OpKind::SyncDir)]
    {
        let machine = Machine::new(SimFileSystem::new(), 0);
        let engine = machine.open(small()).unwrap();
        let mut history = History::default();
        for n in 1..40 {
            history.write(&engine, v(n), &[Change::Put(format!("k{}", n % 7), noise(n, 100))]);
        }
        let armed = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&armed);
        machine.disk.set_hook(move |_, op| {
            let hit = op.kind == kind && op.path.to_str().unwrap().contains(part);
            assert!(!(hit && flag.swap(false, Ordering::SeqCst)), "planted panic");
            Verdict::Pass
        });
        let is_poisoned = |error: Error| match error {
            Error::Poisoned { reason } => assert!(reason.contains("planted panic"), "{reason}"),
            error => panic!("{error}"),
        };
        is_poisoned(engine.flush().unwrap_err());
        assert!(!armed.load(Ordering::SeqCst));
        is_poisoned(engine.write(put_batch("a", "b"), Durability::Buffered).unwrap_err());
        is_poisoned(engine.submit(put_batch("a", "b"), Durability::Sync).unwrap_err());
        is_poisoned(engine.flush().unwrap_err());
        is_poisoned(engine.compact_range(None, None).unwrap_err());
        assert!(engine.statistics().poisoned.unwrap().contains("planted panic"));
        history.check(&engine).unwrap();
        is_poisoned(engine.close().unwrap_err());
        let engine = machine.open(small()).unwrap();
        history.check(&engine).unwrap();
        engine.flush().unwrap();
        history.check(&engine).unwrap();
        assert!(engine.verify().unwrap().is_ok());
    }
}

/// A panic in the caller's own sync does not leave the others waiting: they get their sync or an error.
#[test]
fn a_panicking_caller_leaves_nobody_waiting() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    put(&engine, "before", "1");
    let armed = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&armed);
    machine.disk.set_hook(move |_, op| {
        let hit = op.kind == OpKind::Sync && op.path.to_str().unwrap().contains(".wal");
        assert!(!(hit && flag.swap(false, Ordering::SeqCst)), "planted panic");
        Verdict::Pass
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| engine.write(put_batch("a", "2"), Durability::Sync)));
    assert!(panicked.is_err());
    let second = engine.write(put_batch("b", "3"), Durability::Sync);
    assert_eq!(engine.get(b"before").unwrap().unwrap(), b"1");
    if let Err(error) = &second {
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
    }
    let closed = engine.close();
    assert_eq!(closed.is_ok(), second.is_ok());
    let engine = machine.open(small()).unwrap();
    assert_eq!(engine.get(b"before").unwrap().unwrap(), b"1");
    assert_eq!(engine.get(b"b").unwrap().is_some(), second.is_ok());
}

/// File descriptors of this process that lie below a directory.
fn open_files_below(dir: &Path) -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|target| target.starts_with(dir)).count()
}

/// Opening, writing, failing to open and ending in both ways, many times, leaves no thread and no file behind.
#[test]
fn nothing_leaks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("db");
    let spawner = Arc::new(ThreadSpawner::new());
    let env = Env { spawner: Arc::clone(&spawner) as _, ..Env::real() };
    for round in 0..30 {
        let engine = Engine::open_in(env.clone(), &path, small()).unwrap();
        for n in 0..40 {
            put(&engine, &format!("k{round:02}{n:02}"), &"x".repeat(200));
        }
        assert!(spawner.live_jobs() > 0 && open_files_below(&path) > 0);
        assert!(Engine::open_in(env.clone(), &path, small()).is_err());
        if round % 3 == 0 {
            engine.flush().unwrap();
        }
        if let Submitted::Written(ticket) = engine.submit(put_batch("t", "t"), Durability::Sync).unwrap() {
            drop(ticket);
        }
        if round % 2 == 0 {
            engine.close().unwrap()
        } else {
            drop(engine)
        }
        // `live_jobs` sinks when a thread is about to end, shortly after its job was dropped.
        for _ in 0..1000 {
            if spawner.live_jobs() == 0 {
                break;
            }
            std::thread::yield_now();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!((spawner.live_jobs(), open_files_below(&path)), (0, 0), "round {round}");
    }
    let engine = Engine::open_in(env, &path, small()).unwrap();
    assert_eq!(scan(&engine, IterOptions::default()).unwrap().len(), 30 * 40 + 1);
}

/// The options are left next to the data for people, resolved, and rewritten at each open for writing.
#[test]
fn the_options_file() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let text = |machine: &Machine| String::from_utf8(machine.disk.read_raw("/db/OPTIONS").unwrap()).unwrap();
    drop(machine.open(small()).unwrap());
    let first = text(&machine);
    assert!(first.starts_with("# "), "{first}");
    for line in ["write_buffer_bytes = 16384", "wal = true", "retention = FromFloor", "level_multiplier = 4"] {
        assert!(first.lines().any(|other| other == line), "{line} in\n{first}");
    }
    drop(machine.open_read_only(Options { level_multiplier: 7, ..small() }).unwrap());
    assert_eq!(text(&machine), first, "a reader writes nothing");
    drop(machine.open(Options { level_multiplier: 7, ..small() }).unwrap());
    assert_eq!(text(&machine), first.replace("level_multiplier = 4", "level_multiplier = 7"));
}
