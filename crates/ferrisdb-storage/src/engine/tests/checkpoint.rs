//! Checkpoints: what they hold, that they stand alone, and what a crash or an error in the middle leaves.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use super::{DIR, Machine, contents, put};
use crate::fs::sim::{CrashMode, DiskError, Injection, OpKind, SimFileSystem, Verdict};
use crate::{Engine, Env, Error, Event, EventListener, IngestOptions, Listener, Options};

const COPY: &str = "/backups/today";

fn fill(engine: &Engine, count: u32) {
    for n in 0..count {
        put(engine, &format!("key{n:05}"), &format!("value {n}"));
    }
}

fn open_copy(machine: &Machine) -> crate::Result<Engine> {
    Engine::open_in(machine.env.clone(), COPY, Options { create_if_missing: false, ..Options::tiny() })
}

/// A copy holds what was visible, has a life of its own, and survives the end of the original's files.
#[test]
fn a_checkpoint_stands_alone() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let engine = machine.open(Options::tiny()).unwrap();
    fill(&engine, 2000);
    engine.ingest(IngestOptions::default(), [("ingested", "")]).unwrap();
    put(&engine, "unflushed", "");
    let expected = contents(&engine);
    assert_eq!(engine.checkpoint(COPY).unwrap(), engine.visible_version());

    let copy = open_copy(&machine).unwrap();
    assert_eq!((contents(&copy), copy.visible_version()), (expected.clone(), engine.visible_version()));
    put(&copy, "only here", "");
    put(&engine, "only there", "");
    fill(&engine, 1000);
    engine.compact_range(None, None).unwrap();
    copy.compact_range(None, None).unwrap();
    assert!(engine.get(b"only here").unwrap().is_none() && copy.get(b"only there").unwrap().is_none());
    let report = copy.verify().unwrap();
    assert!(report.is_ok() && report.leftovers.is_empty(), "{report:?}");
    copy.close().unwrap();
    engine.close().unwrap();
    for (path, _) in machine.disk.files() {
        if path.starts_with(DIR) {
            machine.env.fs.remove_file(&path).unwrap();
        }
    }
    assert_eq!(contents(&open_copy(&machine).unwrap()).len(), expected.len() + 1);
}

/// Compactions and writes that come between the links do not take files away or add to the copy.
#[test]
fn compactions_go_on_meanwhile() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let engine = machine.open(Options::tiny()).unwrap();
    fill(&engine, 1500);
    engine.flush().unwrap();
    let expected = contents(&engine);
    let (other, once) = (Mutex::new(Some(engine.clone())), Arc::clone(&machine.spawner));
    machine.disk.set_hook(move |_, op| {
        if op.kind == OpKind::HardLink
            && let Some(engine) = other.lock().unwrap().take()
        {
            put(&engine, "meanwhile", "");
            engine.compact_range(None, None).unwrap();
            once.run_until_idle();
        }
        Verdict::Pass
    });
    engine.checkpoint(COPY).unwrap();
    machine.disk.clear_hook();
    assert!(engine.get(b"meanwhile").unwrap().is_some());
    assert_eq!(contents(&open_copy(&machine).unwrap()), expected);
}

/// Writes, and ingests, when the first flush is done: the ingestion is in the manifest, the write before it only in memory.
#[derive(Default)]
struct Overtaking {
    engine: OnceLock<Engine>,
    done: OnceLock<()>,
}

impl EventListener for Overtaking {
    fn on_event(&self, event: &Event<'_>) {
        if let (Event::FlushDone { .. }, Some(engine)) = (event, self.engine.get())
            && self.done.set(()).is_ok()
        {
            put(engine, "written first", "");
            engine.ingest(IngestOptions::default(), [("ingested second", "")]).unwrap();
        }
    }
}

/// A copy is of one version: an ingestion that overtakes the memtables between the flush and the links does not come without the
/// writes before it.
#[test]
fn an_ingestion_does_not_overtake_writes() {
    let machine = Machine::new(SimFileSystem::new(), 6);
    let overtaking = Arc::new(Overtaking::default());
    let options = Options { event_listener: Some(Listener(Arc::clone(&overtaking) as _)), ..Options::tiny() };
    let engine = machine.open(options).unwrap();
    fill(&engine, 10);
    assert!(overtaking.engine.set(engine.clone()).is_ok());
    let version = engine.checkpoint(COPY).unwrap();
    assert!(overtaking.done.get().is_some(), "the test reaches the race");
    let copy = open_copy(&machine).unwrap();
    assert_eq!((contents(&copy), copy.visible_version()), (contents(&engine), version));
    assert_eq!(contents(&copy).len(), 12);
}

/// Closing waits for a checkpoint that is under way, and holds the directory until then: nobody else can open it and take away the files
/// that are being linked.
#[test]
fn closing_waits_for_a_checkpoint() {
    let disk = SimFileSystem::new();
    let env = Env { fs: Arc::new(disk.clone()), ..Env::real() };
    let open = || Engine::open_in(env.clone(), Path::new(DIR), Options::tiny());
    let engine = open().unwrap();
    fill(&engine, 500);
    let expected = contents(&engine);
    let (reached, is_reached) = mpsc::sync_channel(1);
    let (go_on, may_go_on) = mpsc::sync_channel::<()>(0);
    let (reached, may_go_on) = (Mutex::new(reached), Mutex::new(may_go_on));
    disk.set_hook(move |_, op| {
        if op.kind == OpKind::HardLink && reached.lock().unwrap().try_send(()).is_ok() {
            // Fails once the test is over.
            assert!(may_go_on.lock().unwrap().recv().is_err());
        }
        Verdict::Pass
    });
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| engine.checkpoint(COPY));
        is_reached.recv().unwrap();
        let closing = scope.spawn(|| engine.clone().close());
        // From here on `close` waits for nothing but the checkpoint.
        while !matches!(engine.wait_for_compactions(), Err(Error::Closed)) {
            std::thread::yield_now();
        }
        let held = (0..2000).all(|_| {
            std::thread::yield_now();
            matches!(open(), Err(Error::Locked { .. })) && !closing.is_finished()
        });
        drop(go_on);
        let checkpoint = checkpoint.join().unwrap();
        closing.join().unwrap().unwrap();
        assert!(held, "the directory was free while a checkpoint was under way");
        checkpoint.unwrap();
    });
    disk.clear_hook();
    let copy = Engine::open_in(env.clone(), COPY, Options::tiny()).unwrap();
    assert_eq!(contents(&copy), expected);
    assert!(matches!(engine.checkpoint("/late"), Err(Error::Closed)));
}

/// Only into an empty or missing directory; and not from an engine that cannot flush.
#[test]
fn refusals() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let engine = machine.open(Options::tiny()).unwrap();
    put(&engine, "a", "");
    let refused = |result: crate::Result<_>| matches!(result, Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists);
    assert!(refused(engine.checkpoint(DIR)));
    engine.checkpoint(COPY).unwrap();
    assert!(refused(engine.checkpoint(COPY)));
    assert_eq!(contents(&open_copy(&machine).unwrap()).len(), 1);
    machine.env.fs.create_dir_all(Path::new("/empty")).unwrap();
    engine.checkpoint("/empty").unwrap();
    engine.clone().close().unwrap();
    assert!(matches!(engine.checkpoint("/other"), Err(Error::Closed)));
}

/// On a file system that cannot link, files are copied.
#[test]
fn without_links_it_copies() {
    let from = tempfile::tempdir().unwrap();
    let engine = Engine::open(from.path().join("db"), Options::tiny()).unwrap();
    fill(&engine, 500);
    engine.flush().unwrap();
    let fs = Env::real().fs;
    let table: PathBuf = fs
        .list(engine.directory())
        .unwrap()
        .into_iter()
        .find(|name| name.extension().is_some_and(|e| e == "sst"))
        .unwrap();
    let (source, target) = (engine.directory().join(table), from.path().join("copy.sst"));
    crate::engine::checkpoint::copy_file(&*fs, &source, &target).unwrap();
    assert_eq!(fs.len(&source).unwrap(), fs.len(&target).unwrap());
    engine.checkpoint(from.path().join("a/b/c")).unwrap();
    let copy = Engine::open(from.path().join("a/b/c"), Options::tiny()).unwrap();
    assert!(copy.verify().unwrap().is_ok());
    assert_eq!(contents(&copy), contents(&engine));
}

/// After a crash at any operation, the copy is whole or not an engine, and once acknowledged it is whole.
#[test]
fn a_crash_at_every_operation() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    let engine = machine.open(Options::tiny()).unwrap();
    fill(&engine, 600);
    let expected = contents(&engine);
    let forks = machine.forks_during(|| {
        engine.checkpoint(COPY).unwrap();
    });
    let acknowledged = forks.len() - 1;
    let (mut whole, mut none) = (0, 0);
    for (index, (fork, _)) in forks.iter().enumerate() {
        let seed = index as u64;
        for mode in [
            CrashMode::NothingLost,
            CrashMode::UnsyncedLost,
            CrashMode::RandomSubset { seed },
            CrashMode::OldestFirst { seed },
        ] {
            let machine = Machine::new(fork.fork_crashed(mode), seed);
            match open_copy(&machine) {
                Ok(copy) => {
                    assert_eq!(contents(&copy), expected, "{index} {mode:?}");
                    assert!(copy.verify().unwrap().is_ok());
                    whole += 1;
                }
                Err(Error::NotAnEngine { .. }) => {
                    assert!(index < acknowledged, "{mode:?}");
                    none += 1;
                }
                Err(error) => panic!("{index} {mode:?}: {error}"),
            }
            drop(machine.open(Options::tiny()).unwrap());
        }
    }
    eprintln!("{} crash points: {whole} whole, {none} nothing", whole + none);
    assert!(whole > 4 && none > 20);
}

/// An operation that fails leaves a directory that a second try may use, and the engine as it was.
#[test]
fn every_operation_fails_once() {
    for after in 0.. {
        let machine = Machine::new(SimFileSystem::new(), 5);
        let engine = machine.open(Options::tiny()).unwrap();
        fill(&engine, 100);
        engine.flush().unwrap();
        let kinds = [
            OpKind::CreateDir,
            OpKind::HardLink,
            OpKind::Create,
            OpKind::Write,
            OpKind::Sync,
            OpKind::SyncDir,
            OpKind::Rename,
        ];
        machine.disk.inject(Injection::new(&kinds, Verdict::Fail(DiskError::Io)).path("backups").after(after).once());
        let result = engine.checkpoint(COPY);
        machine.disk.clear_injections();
        let failed = result.is_err();
        if failed {
            assert!(
                !machine.disk.files().iter().any(|(path, _)| path.starts_with(COPY)),
                "{after}: {:?}",
                machine.disk.files()
            );
            engine.checkpoint(COPY).unwrap();
        }
        assert_eq!(contents(&open_copy(&machine).unwrap()).len(), 100);
        put(&engine, "a", "");
        engine.flush().unwrap();
        if !failed {
            assert!(after > 5);
            break;
        }
    }
}
