//! Bad arguments, bad options, foreign directories, and an operating system that refuses.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferrisdb_storage::batch::{BATCH_BYTES_MAX, OWNER_STATE_BYTES_MAX};
use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, SimFileSystem, Verdict};
use ferrisdb_storage::key::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use ferrisdb_storage::{Durability, Engine, Env, Error, IterOptions, Options, Version, WriteBatch, WriteOptions};

use crate::support::{DIR, History, Machine, closed_engine, file_of, put, put_batch, scan, small, v};

fn at(version: u64) -> WriteOptions {
    WriteOptions { durability: Durability::Buffered, version: Some(v(version)) }
}

/// Keys, values, batches and owner's bytes at their limits are taken, one byte more is refused, and a refused batch leaves nothing.
#[test]
fn limits_of_keys_values_and_batches() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    let mut fits = WriteBatch::new();
    fits.put(&vec![b'k'; KEY_BYTES_MAX], b"long key").set_owner_state(&vec![1; OWNER_STATE_BYTES_MAX]);
    engine.write(fits, Durability::Buffered).unwrap();
    let before = scan(&engine, IterOptions::default()).unwrap();
    assert_eq!(before.len(), 1);

    let mut bad = WriteBatch::new();
    bad.put(b"beside", b"it").put(&vec![b'k'; KEY_BYTES_MAX + 1], b"");
    let error = engine.write(bad, Durability::Buffered).unwrap_err();
    assert!(matches!(error, Error::KeyTooLarge { len: 65_536, max: KEY_BYTES_MAX }), "{error}");
    for batch in [
        WriteBatch::new().delete(&vec![b'k'; KEY_BYTES_MAX + 1]),
        WriteBatch::new().delete_range(b"a", &vec![b'k'; KEY_BYTES_MAX + 1]),
        WriteBatch::new().delete_range(&vec![b'k'; KEY_BYTES_MAX + 1], b"l"),
    ] {
        let error = engine.write(batch.clone(), Durability::Sync).unwrap_err();
        assert!(matches!(error, Error::KeyTooLarge { .. }), "{error}");
    }
    let mut bad = WriteBatch::new();
    bad.put(b"beside", b"it").set_owner_state(&vec![1; OWNER_STATE_BYTES_MAX + 1]);
    let error = engine.write(bad, Durability::Buffered).unwrap_err();
    assert!(matches!(error, Error::ValueTooLarge { max: OWNER_STATE_BYTES_MAX, .. }), "{error}");
    {
        let value = vec![0; VALUE_BYTES_MAX + 1];
        let mut bad = WriteBatch::with_capacity(BATCH_BYTES_MAX + 4096);
        bad.put(b"beside", b"it").put(b"key", &value);
        let error = engine.submit(bad.clone(), Durability::Buffered).unwrap_err();
        assert!(matches!(error, Error::ValueTooLarge { max: VALUE_BYTES_MAX, .. }), "{error}");
        bad.clear();
        bad.put(b"a", &value[1..]).put(b"b", &value[1..]);
        let error = engine.write(bad, Durability::Buffered).unwrap_err();
        assert!(matches!(error, Error::BatchTooLarge { max: BATCH_BYTES_MAX, .. }), "{error}");
    }
    assert_eq!(scan(&engine, IterOptions::default()).unwrap(), before);
    assert_eq!(engine.visible_version(), v(1));
    put(&engine, "next", "works");
}

/// An inverted range is refused wherever a range is taken; an empty one is no error.
#[test]
fn inverted_ranges() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    put(&engine, "b", "1");
    let is_inverted =
        |error: Error| matches!(error, Error::InvertedRange { start, end } if start == b"c" && end == b"a");
    let mut bad = WriteBatch::new();
    bad.put(b"x", b"y").delete_range(b"c", b"a");
    assert!(is_inverted(engine.write(bad.clone(), Durability::Buffered).unwrap_err()));
    assert!(is_inverted(engine.submit(bad, Durability::Buffered).unwrap_err()));
    assert!(is_inverted(engine.iter(IterOptions::range(b"c", b"a")).err().unwrap()));
    assert!(is_inverted(engine.try_iter(IterOptions::range(b"c", b"a")).err().unwrap()));
    assert!(is_inverted(engine.compact_range(Some(b"c"), Some(b"a")).unwrap_err()));
    assert_eq!(engine.visible_version(), v(1), "nothing was written");
    engine.write(WriteBatch::new().delete_range(b"b", b"b").clone(), Durability::Buffered).unwrap();
    assert_eq!(scan(&engine, IterOptions::range(b"b", b"b")).unwrap().len(), 0);
    engine.compact_range(Some(b"b"), Some(b"b")).unwrap();
    assert_eq!(engine.get(b"b").unwrap().unwrap(), b"1");
}

/// Versions that repeat or go back are refused, also after a reopen; the last possible version is the last.
#[test]
fn versions_must_increase() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let mut engine = machine.open(small()).unwrap();
    engine.write(put_batch("a", "5"), at(5)).unwrap();
    for _ in 0..2 {
        for given in [0, 4, 5] {
            let error = engine.write(put_batch("a", "bad"), at(given)).unwrap_err();
            assert!(
                matches!(error, Error::VersionNotIncreasing { given: g, last } if g == v(given) && last == v(5)),
                "{error}"
            );
            assert!(engine.submit(put_batch("a", "bad"), at(given)).is_err());
        }
        engine.close().unwrap();
        engine = machine.open(small()).unwrap();
        assert_eq!(engine.get(b"a").unwrap().unwrap(), b"5");
    }
    assert_eq!(Version::new(1 << 56), None, "a greater version cannot even be named");
    engine.write(put_batch("a", "last"), at((1 << 56) - 1)).unwrap();
    for options in [at((1 << 56) - 1), WriteOptions::default()] {
        let error = engine.write(put_batch("a", "too late"), options).unwrap_err();
        assert!(matches!(error, Error::VersionNotIncreasing { .. }), "{error}");
    }
    engine.flush().unwrap();
    engine.close().unwrap();
    let engine = machine.open(small()).unwrap();
    assert_eq!(engine.get(b"a").unwrap().unwrap(), b"last");
    assert_eq!(engine.visible_version(), Version::MAX);
}

/// Versions that never were, or are no longer, are refused by every reader, with the range that can be read.
#[test]
fn versions_that_are_not_readable() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(small()).unwrap();
    for version in [10, 20, 30] {
        engine.write(put_batch("a", &version.to_string()), at(version)).unwrap();
    }
    engine.set_oldest_readable_version(v(20)).unwrap();
    for version in [15, 31] {
        let refused = |error: Error| {
            assert!(
                matches!(error, Error::VersionNotReadable { version: asked, oldest, newest }
                    if asked == v(version) && oldest == v(20) && newest == v(30)),
                "{error}"
            );
        };
        refused(engine.get_at(b"a", v(version)).unwrap_err());
        refused(engine.try_get(b"a", Some(v(version))).unwrap_err());
        refused(engine.multi_get(&[b"a"], Some(v(version))).unwrap_err());
        refused(engine.pin(v(version)).unwrap_err());
        refused(engine.iter(IterOptions { version: Some(v(version)), ..IterOptions::default() }).err().unwrap());
    }
    assert!(!engine.unpin(v(25)));
    engine.set_oldest_readable_version(v(1000)).unwrap();
    assert_eq!(engine.oldest_readable_version(), v(30), "the future cannot be collected");
    engine.set_oldest_readable_version(v(3)).unwrap();
    assert_eq!(engine.oldest_readable_version(), v(30), "nor the past brought back");
}

/// Each option out of its range is refused by name before anything is touched.
#[test]
fn invalid_options_one_by_one() {
    type Spoil = fn(&mut Options);
    let cases: &[(&str, Spoil)] = &[
        ("write_buffer_bytes", |o| o.write_buffer_bytes = (16 << 10) - 1),
        ("write_buffer_bytes", |o| o.write_buffer_bytes = (2 << 30) + 1),
        ("write_buffers_max", |o| o.write_buffers_max = 1),
        ("write_buffers_max", |o| o.write_buffers_max = 65),
        ("block_cache_bytes", |o| o.block_cache_bytes = (1 << 46) + 1),
        ("wal_segment_bytes", |o| o.wal_segment_bytes = (4 << 10) - 1),
        ("wal_segment_bytes", |o| o.wal_segment_bytes = (1 << 30) + 1),
        ("block_bytes", |o| o.block_bytes = 511),
        ("block_bytes", |o| o.block_bytes = (1 << 20) + 1),
        ("filter_bits_per_key", |o| o.filter_bits_per_key = 33),
        ("table_bytes", |o| o.table_bytes = 4095),
        ("table_bytes", |o| o.table_bytes = (4 << 30) + 1),
        ("l0_compaction_tables", |o| o.l0_compaction_tables = 0),
        ("l0_compaction_tables", |o| o.l0_compaction_tables = 101),
        ("l0_slowdown_tables", |o| o.l0_slowdown_tables = o.l0_compaction_tables - 1),
        ("l0_slowdown_tables", |o| o.l0_slowdown_tables = 1001),
        ("l0_stop_tables", |o| o.l0_stop_tables = o.l0_slowdown_tables),
        ("l0_stop_tables", |o| o.l0_stop_tables = 10_001),
        ("base_level_bytes", |o| o.base_level_bytes = 4095),
        ("level_multiplier", |o| o.level_multiplier = 1),
        ("level_multiplier", |o| o.level_multiplier = 101),
        ("compaction_jobs", |o| o.compaction_jobs = 65),
        ("pending_compaction_slowdown_bytes", |o| o.pending_compaction_slowdown_bytes = 0),
        ("job_step_entries", |o| o.job_step_entries = 0),
    ];
    let disk = SimFileSystem::new();
    let machine = Machine::new(disk.clone(), 0);
    let untouched = disk.state_hash();
    for (name, spoil) in cases {
        let mut options = small();
        spoil(&mut options);
        for result in [machine.open(options.clone()), machine.open_read_only(options.clone())] {
            let error = result.unwrap_err();
            assert!(matches!(&error, Error::InvalidOption { option, .. } if option == name), "{name}: {error}");
            assert!(error.to_string().contains(name));
        }
        assert_eq!(disk.state_hash(), untouched, "{name}");
    }
}

/// Calls that the options do not allow say which option.
#[test]
fn calls_that_need_another_option() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    let engine = machine.open(Options { compaction_jobs: 0, ..Options::tiny() }).unwrap();
    let error = engine.set_oldest_readable_version(v(1)).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "retention", .. }), "{error}");
    let error = engine.compact_range(None, None).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "compaction_jobs", .. }), "{error}");
}

/// A directory with other things in it is left exactly as it is: not even a lock file appears.
#[test]
fn a_directory_that_is_not_ours() {
    for (name, bytes) in [("holiday.jpg", &b"\xff\xd8"[..]), ("000001.sst", b"a table?"), ("wal", b"not a directory")] {
        let machine = Machine::new(SimFileSystem::new(), 0);
        machine.env.fs.create_dir_all(Path::new(DIR)).unwrap();
        machine.disk.write_raw(Path::new(DIR).join(name), bytes);
        let before = machine.disk.state_hash();
        for result in [machine.open(small()), machine.open_read_only(small())] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::NotAnEngine { directory, reason, has_remains }
                    if directory == Path::new(DIR) && reason.contains(name) && *has_remains == (name == "000001.sst")),
                "{error}"
            );
            assert_eq!(machine.disk.state_hash(), before, "{name}: {:?}", machine.disk.files());
        }
    }
}

/// Nothing is created where creating was not asked for, nor by a reader.
#[test]
fn nothing_is_created_unasked() {
    let asked_not_to = Options { create_if_missing: false, ..small() };
    for exists in [false, true] {
        let machine = Machine::new(SimFileSystem::new(), 0);
        if exists {
            machine.env.fs.create_dir_all(Path::new(DIR)).unwrap();
        }
        let before = machine.disk.state_hash();
        for result in [machine.open(asked_not_to.clone()), machine.open_read_only(small())] {
            let error = result.unwrap_err();
            assert!(matches!(&error, Error::NotAnEngine { directory, .. } if directory == Path::new(DIR)), "{error}");
            assert_eq!(machine.disk.state_hash(), before, "{:?}", machine.disk.files());
        }
    }
}

/// A file where the directory should be, simulated and real.
#[test]
fn a_file_instead_of_a_directory() {
    let machine = Machine::new(SimFileSystem::new(), 0);
    machine.disk.write_raw(DIR, b"a file");
    let before = machine.disk.state_hash();
    for result in [machine.open(small()), machine.open_read_only(small())] {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::NotAnEngine { directory, .. } if directory == Path::new(DIR)), "{error}");
    }
    assert_eq!(machine.disk.state_hash(), before);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, b"a file").unwrap();
    for result in [Engine::open(&path, small()), Engine::open_read_only(Env::real(), &path, small())] {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::NotAnEngine { directory, .. } if *directory == path), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}

/// The directory is closed, and everything in it is as the history says.
fn is_as_before(machine: &Machine, history: &History) {
    machine.disk.clear_injections();
    let engine = machine.open(small()).unwrap();
    history.check(&engine).unwrap();
    assert!(engine.verify().unwrap().is_ok());
    engine.close().unwrap();
}

/// Each operation that an open does may be refused, whatever the reason: the open fails with a typed error that names a file, or does
/// without, and the next one finds everything.
#[test]
fn open_survives_every_refusal() {
    let (original, history) = closed_engine(20, 25, 100);
    let reasons = [DiskError::NoSpace, DiskError::Access, DiskError::TooManyFiles, DiskError::ReadOnly, DiskError::Io];
    // How many operations an open takes.
    let undisturbed = Machine::new(original.disk.fork(), 0);
    let operations = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&operations);
    undisturbed.disk.set_hook(move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        Verdict::Pass
    });
    let engine = undisturbed.open(small()).unwrap();
    let operations = operations.load(Ordering::SeqCst);
    assert!((30..300).contains(&operations), "{operations}");
    drop(engine);
    let mut refused = 0;
    for (turn, reason) in reasons.into_iter().enumerate() {
        for for_ever in [false, true] {
            // Each reason at other operations, and together at all of them twice.
            for number in (turn as u64 % 2..operations).step_by(2) {
                let machine = Machine::new(original.disk.fork(), number);
                let all: Vec<OpKind> = [OpKind::MUTATING, OpKind::READING].concat();
                let injection = Injection::new(&all, Verdict::Fail(reason)).after(number);
                machine.disk.inject(if for_ever { injection } else { injection.once() });
                match machine.open(small()) {
                    Ok(engine) => {
                        // What was in the way may strike later: reads are right or say why.
                        if let Err(error) = history.check_every(&engine, 20) {
                            assert!(file_of(&error).is_some(), "{error}");
                        }
                    }
                    Err(error) => {
                        refused += 1;
                        // A switch of manifests that was cut short poisons, and names the file in its words.
                        let named = file_of(&error).is_some_and(|file| file.starts_with("/"))
                            || matches!(&error, Error::Poisoned { reason } if reason.contains(DIR));
                        assert!(named, "{error}");
                        assert!(
                            !matches!(error, Error::Corruption { .. } | Error::MissingFile { .. }),
                            "{reason:?} at operation {number} is taken for damage: {error}"
                        );
                    }
                }
                machine.disk.clear_injections();
                history.check_every(&machine.open(small()).unwrap(), 40).unwrap();
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// On a full disk a new engine cannot be created, and can be once there is space.
#[test]
fn no_space_at_the_first_open() {
    for pages in 0..20 {
        let machine = Machine::new(SimFileSystem::new(), 0);
        machine.disk.set_capacity(pages * 4096);
        match machine.open(small()) {
            Ok(engine) => drop(engine),
            Err(error) => assert!(error.is_no_space() && file_of(&error).is_some(), "{error}"),
        }
        machine.disk.set_capacity(1 << 30);
        let engine = machine.open(small()).unwrap();
        put(&engine, "a", "b");
        engine.close().unwrap();
    }
}

/// A read-only disk can be read, with everything in the WAL, and says so to writers.
#[test]
fn a_read_only_disk() {
    let (machine, history) = closed_engine(20, 25, 100);
    let before = machine.disk.state_hash();
    for reason in [DiskError::ReadOnly, DiskError::Access] {
        machine.disk.inject(Injection::new(OpKind::MUTATING, Verdict::Fail(reason)));
        let error = machine.open(small()).unwrap_err();
        assert!(matches!(&error, Error::Io { file, .. } if file.starts_with(DIR)), "{error}");
        let engine = machine.open_read_only(small()).unwrap();
        history.check(&engine).unwrap();
        assert!(engine.verify().unwrap().is_ok());
        let is_read_only = |error: Error| matches!(error, Error::ReadOnly { directory } if directory == Path::new(DIR));
        assert!(is_read_only(engine.write(put_batch("a", "b"), Durability::Buffered).unwrap_err()));
        assert!(is_read_only(engine.submit(put_batch("a", "b"), Durability::Sync).unwrap_err()));
        assert!(is_read_only(engine.flush().unwrap_err()));
        assert!(is_read_only(engine.compact_range(None, None).unwrap_err()));
        engine.wait_for_compactions().unwrap();
        engine.close().unwrap();
        machine.disk.clear_injections();
        assert_eq!(machine.disk.state_hash(), before);
    }
    is_as_before(&machine, &history);
}

/// Where the process has too many files open, or a read fails, only the read that needed the file fails, and a later one finds its answer.
#[test]
fn a_table_that_cannot_be_opened_now() {
    let (machine, history) = closed_engine(30, 5, 100);
    let in_tables = machine.files(".sst").len();
    assert!(in_tables >= 3);
    let cases =
        [(OpKind::Open, DiskError::TooManyFiles), (OpKind::Open, DiskError::Access), (OpKind::Read, DiskError::Io)];
    for (kind, reason) in cases {
        let engine = machine.open(Options { block_cache_bytes: 0, ..small() }).unwrap();
        machine.disk.inject(Injection::new(&[kind], Verdict::Fail(reason)).path(".sst").times(2));
        let mut failed = 0;
        for _ in 0..3 {
            match history.check(&engine) {
                Ok(()) => {}
                Err(Error::Io { file, .. }) if file.extension().is_some_and(|kind| kind == "sst") => failed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(failed, 2, "{kind:?} {reason:?}");
        machine.disk.clear_injections();
        history.check(&engine).unwrap();
        engine.close().unwrap();
    }
    put(&machine.open(small()).unwrap(), "still", "writable");
}

/// A second open in the same process is refused and told who holds the directory, by readers and writers alike; after the close it works.
#[test]
fn opening_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let engine = Engine::open(&path, small()).unwrap();
    put(&engine, "a", "1");
    let me = format!("process {}", std::process::id());
    for _ in 0..2 {
        for result in [Engine::open(&path, small()), Engine::open_read_only(Env::real(), &path, small())] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Locked { directory, holder } if *directory == path && *holder == me),
                "{error}"
            );
        }
    }
    put(&engine, "b", "2");
    engine.close().unwrap();
    let reader = Engine::open_read_only(Env::real(), &path, small()).unwrap();
    assert_eq!(scan(&reader, IterOptions::default()).unwrap().len(), 2);
    assert!(matches!(Engine::open(&path, small()).unwrap_err(), Error::Locked { .. }));
    drop(reader);
    assert_eq!(scan(&Engine::open(&path, small()).unwrap(), IterOptions::default()).unwrap().len(), 2);
}
