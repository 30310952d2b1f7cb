//! The event listener: what is told, in which order, and that it may call the engine.

use std::sync::{Arc, Mutex, OnceLock};

use super::{Machine, put};
use crate::fs::sim::{DiskError, Injection, OpKind, SimFileSystem, Verdict};
use crate::{Durability, Engine, Error, Event, EventListener, IngestOptions, Listener, Options, WriteBatch};

#[derive(Default)]
struct Notes {
    lines: Mutex<Vec<String>>,
    engine: OnceLock<Engine>,
}

impl EventListener for Notes {
    fn on_event(&self, event: &Event<'_>) {
        // No lock is held: statistics take the manifest's and the view's.
        if let Some(engine) = self.engine.get() {
            engine.statistics();
        }
        let debug = format!("{event:?}");
        let name = debug.split([' ', '{']).next().unwrap().to_owned();
        self.lines.lock().unwrap().push(match event {
            Event::TableCreated { level, .. } => format!("{name} L{level}"),
            Event::BackgroundError { is_retried, .. } => format!("{name} {is_retried}"),
            _ => name,
        });
    }
}

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

fn with_notes() -> (Arc<Notes>, Options) {
    let notes = Arc::new(Notes::default());
    let options = Options { event_listener: Some(Listener(Arc::clone(&notes) as _)), ..Options::tiny() };
    (notes, options)
}

/// A flush, an ingestion, a compaction, and the end of its inputs.
#[test]
fn jobs_tell_what_they_do() {
    let machine = Machine::new(SimFileSystem::new(), 1);
    let (notes, options) = with_notes();
    let engine = machine.open(options).unwrap();
    assert!(notes.engine.set(engine.clone()).is_ok());
    put(&engine, "a", "1");
    engine.flush().unwrap();
    machine.spawner.run_until_idle();
    assert_eq!(notes.take(), ["FlushBegun", "TableCreated L0", "FlushDone"]);
    engine.ingest(IngestOptions::default(), [("a", "2")]).unwrap();
    assert_eq!(notes.take(), ["TableCreated L0", "IngestionDone"]);
    engine.compact_range(None, None).unwrap();
    machine.spawner.run_until_idle();
    machine.spawner.run_for(std::time::Duration::from_secs(1));
    let told = notes.take();
    let rewritten = ["CompactionBegun", "TableCreated L6", "CompactionDone"];
    assert_eq!(told.iter().filter(|line| !line.starts_with("FileRemoved")).collect::<Vec<_>>(), rewritten, "{told:?}");
    assert_eq!(told.iter().filter(|line| line.starts_with("FileRemoved")).count(), 2);
}

/// No space is told as such and tried again; another error poisons, which is told too, once.
#[test]
fn errors_are_told() {
    let machine = Machine::new(SimFileSystem::new(), 2);
    let (notes, options) = with_notes();
    let engine = machine.open(options).unwrap();
    assert!(notes.engine.set(engine.clone()).is_ok());
    put(&engine, "a", "1");
    machine.disk.inject(Injection::new(&[OpKind::Create], Verdict::Fail(DiskError::NoSpace)).path(".sst").once());
    assert!(engine.flush().is_err());
    assert_eq!(notes.take(), ["FlushBegun", "BackgroundError true"]);
    machine.disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path(".sst").once());
    machine.spawner.run_for(std::time::Duration::from_secs(1));
    machine.spawner.run_until_idle();
    let told: Vec<String> = notes.take().into_iter().filter(|line| line != "FileRemoved").collect();
    assert_eq!(told, ["FlushBegun", "BackgroundError false", "Poisoned"]);
}

/// The keeper, which tells that the engine is poisoned, tells it too where it is the one that fails; and reads go on.
#[test]
fn a_keeper_that_fails_tells_that_it_poisons() {
    let machine = Machine::new(SimFileSystem::new(), 4);
    let (notes, options) = with_notes();
    let engine = machine.open(options.clone()).unwrap();
    put(&engine, "a", "1");
    machine.spawner.run_until_idle();
    // The keeper makes the next WAL segment ready: nobody else fails when it cannot.
    let making = [OpKind::Create, OpKind::Rename, OpKind::Allocate];
    machine.disk.inject(Injection::new(&making, Verdict::Fail(DiskError::Io)).path("/wal/"));
    let mut written = 0;
    while engine.statistics().poisoned.is_none() {
        assert!(written < 100, "the keeper has nothing to do");
        let mut batch = WriteBatch::new();
        batch.put(format!("key{written}").as_bytes(), &[7; 500]);
        // The write that needs the segment fails itself.
        if engine.write(batch, Durability::Buffered).is_ok() {
            written += 1;
        }
        machine.spawner.run_until_idle();
    }
    assert!(written > 5, "{written}");
    // A flush may come first: then it is the purge of the WAL that fails.
    let told: Vec<String> = notes.take().into_iter().filter(|line| line != "FileRemoved").collect();
    assert!(told.ends_with(&["BackgroundError false".into(), "Poisoned".into()]), "{told:?}");
    machine.spawner.run_for(std::time::Duration::from_secs(1));
    assert_eq!(notes.take(), [""; 0], "it is told once");
    assert_eq!(engine.get(b"key0").unwrap().unwrap(), [7; 500]);
    let mut batch = WriteBatch::new();
    batch.put(b"late", b"");
    let refused = engine.write(batch, Durability::Buffered).unwrap_err();
    assert!(matches!(&refused, Error::Poisoned { reason } if reason.contains("/db/wal/")), "{refused}");
    assert!(matches!(engine.close(), Err(Error::Poisoned { .. })));
    machine.disk.clear_injections();
    let engine = machine.open(options).unwrap();
    assert_eq!(super::contents(&engine).len(), written + 1);
}

/// Writers that wait for a flush say so.
#[test]
fn stalls_are_told() {
    let machine = Machine::new(SimFileSystem::new(), 3);
    let (notes, options) = with_notes();
    let engine = machine.open(Options { write_buffers_max: 2, ..options }).unwrap();
    for n in 0..2000 {
        put(&engine, &format!("key{n}"), "a value that takes some space in the memtable, and more, and more");
    }
    let told = notes.take();
    let stalls: Vec<&String> = told.iter().filter(|line| line.starts_with("Stall")).collect();
    assert!(!stalls.is_empty() && stalls.chunks(2).all(|pair| pair == ["StallBegun", "StallEnded"]), "{stalls:?}");
}
