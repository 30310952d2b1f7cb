//! A crash at every operation of the manifest, and at every operation of the opening after it.

use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::Version;

use super::disk::{Disk, Fault, Loss};
use super::log::{Found, Manifest, read};
use super::*;

const DIR: &str = "/db";
const ID: EngineId = EngineId([7; 16]);

/// An edit whose bytes depend on `step`: most fit a sector, every third takes several.
fn edit(step: u64) -> ManifestEdit {
    let pad = if step % 3 == 2 { 1200 } else { 10 };
    let key = |n: u64| -> Box<[u8]> { format!("key{n:06}").into_bytes().into() };
    let meta = TableMeta {
        number: FileNumber(step + 1),
        file_bytes: 1000 + step,
        smallest: key(step),
        largest: [&*key(step), &vec![b'x'; pad]].concat().into(),
        smallest_version: Version::from_u64(step * 10),
        largest_version: Version::from_u64(step * 10 + 9),
        entries: 5,
        l0_rank: step + 1,
        ..TableMeta::default()
    };
    let mut edit = ManifestEdit {
        added: vec![(0, meta)],
        next_file_number: Some(FileNumber(step + 2)),
        flushed: Some(Version::from_u64(step * 10 + 9)),
        wal_start: Some(step * 4096),
        owner: Some(format!("owner {step}").into_bytes().into()),
        ..ManifestEdit::default()
    };
    if step >= 4 {
        edit.removed.push((0, FileNumber(step - 3)));
    }
    edit
}

/// What the state is after `count` edits.
fn state_after(count: u64) -> ManifestState {
    let mut state = ManifestState::new(ID);
    for step in 0..count {
        state.apply(&edit(step)).unwrap();
    }
    state
}

fn steps_done(state: &ManifestState) -> u64 {
    if state.flushed == Version::ZERO { 0 } else { (state.flushed.get() - 9) / 10 + 1 }
}

/// Creates or opens, then applies edits up to `until`; the number of acknowledged edits, and whether creation was.
fn script(disk: &Disk, until: u64) -> (u64, bool) {
    let fs: Arc<dyn crate::fs::FileSystem> = Arc::new(disk.clone());
    let opened = match Manifest::find(&*fs, Path::new(DIR), &[]) {
        Ok(Found::Nothing) => Manifest::create(fs, Path::new(DIR), ID),
        Ok(Found::Engine) => Manifest::open(fs, Path::new(DIR)),
        Err(error) => Err(error),
    };
    let Ok(mut manifest) = opened else { return (0, false) };
    manifest.set_log_bytes_max(4096);
    let mut done = steps_done(manifest.state());
    while done < until {
        if manifest.apply(&edit(done)).is_err() {
            return (done, true);
        }
        done += 1;
    }
    (done, true)
}

const LOSSES: [Loss; 5] = [Loss::Nothing, Loss::Everything, Loss::Random(1), Loss::Random(2), Loss::Random(3)];

fn seeded(loss: Loss, seed: u64) -> Loss {
    match loss {
        Loss::Random(which) => Loss::Random(seed.wrapping_mul(0x9E37_79B9).wrapping_add(which)),
        other => other,
    }
}

/// What is there after a crash: everything acknowledged, and at most the one edit in flight besides.
#[track_caller]
fn assert_recovers(disk: &Disk, acked: u64, created: bool, context: &str) -> u64 {
    match Manifest::find(disk, Path::new(DIR), &[]) {
        Ok(Found::Nothing) => {
            assert!(!created, "{context}: an acknowledged engine is gone");
            0
        }
        Ok(Found::Engine) => {
            let recovered = read(disk, Path::new(DIR)).unwrap_or_else(|error| panic!("{context}: {error}"));
            let done = steps_done(&recovered.state);
            assert!(done == acked || done == acked + 1, "{context}: {acked} edits acknowledged, {done} recovered");
            assert_eq!(recovered.state, state_after(done), "{context}");
            done
        }
        Err(error) => panic!("{context}: {error}"),
    }
}

/// Every acknowledged edit survives a crash at any operation, and at any operation of the opening and writing after it,
/// with nothing, everything or a random part of the unsynced bytes and names lost. Opening never fails.
#[test]
#[expect(clippy::print_stdout, reason = "the count of crash points is part of the test's output")]
fn every_crash_point_recovers() {
    const EDITS: u64 = 14;
    let whole = Disk::new();
    script(&whole, EDITS);
    assert!(whole.log().iter().filter(|op| op.starts_with("rename")).count() >= 3, "the script switches manifests");
    let mut points = 0u64;
    for crash in 0..whole.ops() {
        let disk = Disk::new();
        disk.fault_at(crash, Fault::Crash);
        let (acked, created) = script(&disk, EDITS);
        for loss in LOSSES {
            let first = disk.after_crash(seeded(loss, crash));
            let context = format!("crash at {crash} ({:?}), {loss:?}", disk.log().last());
            let done = assert_recovers(&first, acked, created, &context);
            points += 1;
            // Again, during the recovery and the next two edits.
            let until = (done + 2).min(EDITS + 2);
            let again = first.after_crash(Loss::Nothing);
            script(&again, until);
            for second in 0..again.ops() {
                let disk = first.after_crash(Loss::Nothing);
                disk.fault_at(second, Fault::Crash);
                let (acked_again, created_again) = script(&disk, until);
                for loss in [Loss::Nothing, Loss::Everything, Loss::Random(1), Loss::Random(2)] {
                    let last = disk.after_crash(seeded(loss, crash << 16 | second));
                    let context = format!("{context}, then at {second} ({:?}), {loss:?}", disk.log().last());
                    assert_recovers(&last, acked_again.max(done), created || created_again, &context);
                    points += 1;
                }
            }
            let (end, _) = script(&first, until);
            assert_eq!(end, until, "{context}: work goes on");
        }
    }
    println!("distinct crash points: {points}");
    assert!(points > 10_000, "{points} crash points");
}

/// Every failing operation, once or from then on: an edit that failed without poisoning did not happen and does not come back;
/// one that was acknowledged stays; after poisoning one of both outcomes is found. Space that comes back is enough to go on.
#[test]
fn every_failing_operation_is_survived() {
    const EDITS: u64 = 8;
    let whole = Disk::new();
    script(&whole, EDITS);
    let mut poisoned = 0;
    let mut failed = 0;
    for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other, std::io::ErrorKind::PermissionDenied] {
        // A write may fail after it has taken everything.
        for taken in [0, 100, 512, usize::MAX] {
            for op in 0..whole.ops() {
                let disk = Disk::new();
                disk.fault_at(op, Fault::Fail(kind, taken));
                let fs: Arc<dyn crate::fs::FileSystem> = Arc::new(disk.clone());
                let Ok(Found::Nothing) = Manifest::find(&*fs, Path::new(DIR), &[]) else { continue };
                let Ok(mut manifest) = Manifest::create(fs, Path::new(DIR), ID) else { continue };
                manifest.set_log_bytes_max(4096);
                let context = format!("{kind:?} with {taken} bytes taken at {op}");
                let mut done = 0;
                let mut tries = 0;
                while done < EDITS && manifest.poisoned().is_none() {
                    match manifest.apply(&edit(done)) {
                        Ok(()) => done += 1,
                        Err(error) => {
                            failed += 1;
                            assert_eq!(matches!(error, crate::Error::Poisoned { .. }), manifest.poisoned().is_some());
                            if manifest.poisoned().is_none() {
                                for loss in LOSSES {
                                    let after = disk.after_crash(seeded(loss, op));
                                    let found =
                                        read(&after, Path::new(DIR)).unwrap_or_else(|e| panic!("{context}: {e}"));
                                    assert_eq!(found.state, state_after(done), "{context}: a failed edit came back");
                                }
                            }
                        }
                    }
                    assert_eq!(*manifest.state(), state_after(done), "{context}");
                    tries += 1;
                    assert!(tries < 2 * EDITS, "{context}: work goes on");
                }
                poisoned += u64::from(manifest.poisoned().is_some());
                assert!(
                    manifest.poisoned().is_none() || kind != std::io::ErrorKind::StorageFull || {
                        let op = &disk.log()[usize::try_from(op).unwrap()];
                        ["sync", "rename", "sync_dir"].iter().any(|kind| op.starts_with(kind))
                    },
                    "{context}: running out of space in a write is survivable"
                );
                for loss in LOSSES {
                    let after = disk.after_crash(seeded(loss, op));
                    assert_recovers(&after, done, true, &context);
                }
            }
        }
    }
    assert!(failed > 20 && poisoned > 20);
}

/// Nothing is written behind or over a failed append: what is left of a long record would stand after a short one and look like
/// corruption.
#[test]
fn a_failed_append_ends_the_file() {
    let disk = Disk::new();
    let mut manifest = Manifest::create(Arc::new(disk.clone()), Path::new(DIR), ID).unwrap();
    manifest.apply(&edit(0)).unwrap();
    manifest.apply(&edit(1)).unwrap();
    let number = manifest.number();
    // Two of the three sectors of the third edit get into the file.
    disk.fault_at(disk.ops(), Fault::Fail(std::io::ErrorKind::StorageFull, 1024));
    assert!(manifest.apply(&edit(2)).unwrap_err().is_no_space());
    let small = ManifestEdit { last_version: Some(Version::from_u64(500)), ..ManifestEdit::default() };
    manifest.apply(&small).unwrap();
    assert!(manifest.number() > number, "the next edit goes into a new manifest");
    for loss in LOSSES {
        assert_eq!(read(&disk.after_crash(loss), Path::new(DIR)).unwrap().state, *manifest.state());
    }
}

/// A full disk at open: the engine opens, knows that it is not settled, and settles when there is space.
#[test]
fn opening_on_a_full_disk_is_not_settled() {
    let disk = Disk::new();
    script(&disk, 3);
    let disk = disk.after_crash(Loss::Nothing);
    // The first write of the opening fails, and no other operation.
    let dry = disk.after_crash(Loss::Nothing);
    Manifest::open(Arc::new(dry.clone()), Path::new(DIR)).unwrap();
    let write = dry.log().iter().position(|op| op.starts_with("write")).unwrap() as u64;
    disk.fault_at(write, Fault::Fail(std::io::ErrorKind::StorageFull, 100));
    let mut manifest = Manifest::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    assert!(!manifest.is_settled());
    assert_eq!(*manifest.state(), state_after(3));
    manifest.settle_if_space().unwrap();
    assert!(manifest.is_settled());
    manifest.apply(&edit(3)).unwrap();
    assert_recovers(&disk.after_crash(Loss::Everything), 4, true, "after settling");
}
