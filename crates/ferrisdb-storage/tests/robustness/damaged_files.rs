//! Files that are missing, cut, emptied, exchanged, or from the future.

use std::path::{Path, PathBuf};

use ferrisdb_storage::fs::sim::SimFileSystem;
use ferrisdb_storage::{Engine, Error, Result};

use crate::support::{DIR, History, Machine, closed_engine, file_of, small};

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    Remove,
    Truncate(u64),
    SwapWith(PathBuf),
}

fn apply(disk: &SimFileSystem, file: &Path, damage: &Damage) {
    match damage {
        Damage::Remove => disk.remove_raw(file),
        Damage::Truncate(len) => disk.truncate_raw(file, *len),
        Damage::SwapWith(other) => disk.swap_raw(file, other),
    }
}

fn read_all(opened: Result<Engine>, history: &History) -> Result<()> {
    let engine = opened?;
    let read = history.check_every(&engine, 10);
    // The verification finds what a reader finds.
    match (&read, engine.verify()) {
        (Err(error), Ok(report)) => assert!(!report.is_ok(), "verify() does not see {error}"),
        (Ok(()), Ok(report)) => assert!(report.is_ok(), "{report:?}"),
        (_, Err(error)) => assert!(file_of(&error).is_some(), "{error}"),
    }
    read
}

/// Damages the file in a copy of the disk and reads everything, read-only and writable; then undoes the damage and finds all as before.
fn survive(original: &Machine, history: &History, file: &Path, damage: &Damage) -> Result<()> {
    let mut answers = Vec::new();
    for read_only in [true, false] {
        let machine = Machine::new(original.disk.fork(), 3);
        let bytes = machine.disk.read_raw(file).unwrap();
        apply(&machine.disk, file, damage);
        let opened = if read_only { machine.open_read_only(small()) } else { machine.open(small()) };
        let answer = read_all(opened, history);
        if let Err(error) = &answer {
            assert!(file_of(error).is_some_and(|named| named.starts_with(DIR)), "{file:?} {damage:?}: {error}");
            match damage {
                Damage::SwapWith(_) => apply(&machine.disk, file, damage),
                _ => machine.disk.write_raw(file, &bytes),
            }
            let engine = machine.open(small()).unwrap_or_else(|error| panic!("{file:?} {damage:?}, undone: {error}"));
            history.check_every(&engine, 10).unwrap();
            assert!(engine.verify().unwrap().is_ok());
        }
        answers.push(answer);
    }
    assert_eq!(answers[0].is_ok(), answers[1].is_ok(), "{file:?} {damage:?}: readers and writers must agree");
    answers.remove(0)
}

fn len_of(machine: &Machine, file: &Path) -> u64 {
    machine.disk.read_raw(file).unwrap().len() as u64
}

/// A missing table is named, a cut or emptied or exchanged one is corruption of that file.
#[test]
fn tables() {
    let (machine, history) = closed_engine(25, 8, 100);
    let tables = machine.files(".sst");
    assert!(tables.len() >= 3, "{tables:?}");
    for (index, file) in tables.iter().enumerate() {
        let error = survive(&machine, &history, file, &Damage::Remove).unwrap_err();
        assert!(matches!(&error, Error::MissingFile { file: named } if named == file), "{error}");
        for len in [0, 1, len_of(&machine, file) / 2, len_of(&machine, file) - 1] {
            let error = survive(&machine, &history, file, &Damage::Truncate(len)).unwrap_err();
            assert!(matches!(&error, Error::Corruption { file: named, .. } if named == file), "{len}: {error}");
        }
        let other = tables[(index + 1) % tables.len()].clone();
        let error = survive(&machine, &history, file, &Damage::SwapWith(other.clone())).unwrap_err();
        assert!(matches!(&error, Error::Corruption { file: named, .. } if named == file || *named == other), "{error}");
        for other in machine.files("MANIFEST").iter().chain(&machine.files("CURRENT")).chain(&machine.files(".wal")) {
            survive(&machine, &history, file, &Damage::SwapWith(other.clone())).unwrap_err();
        }
    }
}

/// Without CURRENT or the manifest that it names, nothing is guessed and nothing new is begun over the old.
#[test]
fn current_and_manifest() {
    let (machine, history) = closed_engine(25, 8, 100);
    let current = Path::new(DIR).join("CURRENT");
    let manifests = machine.files("MANIFEST");
    assert_eq!(manifests.len(), 1, "{manifests:?}");
    let error = survive(&machine, &history, &current, &Damage::Remove).unwrap_err();
    assert!(matches!(&error, Error::NotAnEngine { reason, .. } if reason.contains("CURRENT")), "{error}");
    let error = survive(&machine, &history, &manifests[0], &Damage::Remove).unwrap_err();
    assert!(matches!(&error, Error::MissingFile { file } if *file == manifests[0]), "{error}");
    for file in [&current, &manifests[0]] {
        let len = len_of(&machine, file);
        // Between the sectors of a manifest a cut looks like a record never written: only its end can be lost so, and what it named
        // is then missed or superfluous elsewhere. Cuts within a sector are always seen.
        let step = if file == &current { 1 } else { 100 };
        for cut in (0..len).step_by(step).filter(|cut| cut % 512 != 0 || *cut == 0) {
            if let Ok(()) = survive(&machine, &history, file, &Damage::Truncate(cut)) {
                assert!(file != &current, "CURRENT cut to {cut} bytes is accepted");
            }
        }
        let error = survive(&machine, &history, file, &Damage::Truncate(0)).unwrap_err();
        assert!(matches!(&error, Error::Corruption { file: named, .. } if named == file), "{error}");
    }
    for other in [Path::new(DIR).join("OPTIONS"), manifests[0].clone()] {
        let error = survive(&machine, &history, &current, &Damage::SwapWith(other)).unwrap_err();
        assert!(matches!(error, Error::Corruption { .. }), "{error}");
    }
}

/// WAL segments at the beginning, in the middle and at the end. After a clean close all of it is known to be synced: nothing may be
/// taken for a torn tail.
#[test]
fn wal_segments() {
    let (machine, history) = closed_engine(25, 60, 150);
    let segments = machine.files(".wal");
    let holds_records = |file: &PathBuf| machine.disk.read_raw(file).unwrap()[64..].iter().any(|&byte| byte != 0);
    let used: Vec<PathBuf> = segments.iter().filter(|file| holds_records(file)).cloned().collect();
    assert!(used.len() >= 3, "{segments:?}");
    let mut noticed = 0;
    for (index, file) in used.iter().enumerate() {
        let bytes = machine.disk.read_raw(file).unwrap();
        let data_end = bytes.iter().rposition(|&byte| byte != 0).unwrap() as u64;
        let mut damages = vec![Damage::Remove];
        damages.extend([0, 10, 64, 100, data_end / 2].map(Damage::Truncate));
        damages.push(Damage::SwapWith(used[(index + 1) % used.len()].clone()));
        damages.extend(machine.files(".sst").first().map(|table| Damage::SwapWith(table.clone())));
        damages.push(Damage::SwapWith(Path::new(DIR).join("CURRENT")));
        for damage in damages {
            // Right contents or an error: `survive` panics at anything else. A segment below the flushed version may be missed by nobody.
            match survive(&machine, &history, file, &damage) {
                Ok(()) => {}
                Err(Error::Corruption { .. } | Error::MissingFile { .. } | Error::NotAnEngine { .. }) => noticed += 1,
                Err(error) => panic!("{file:?} {damage:?}: {error}"),
            }
        }
    }
    assert!(noticed > 3 * used.len(), "{noticed}");
}

/// The whole directory of the WAL gone, or all its segments.
#[test]
fn the_whole_wal() {
    let (original, history) = closed_engine(25, 30, 100);
    let machine = Machine::new(original.disk.fork(), 0);
    for file in machine.files(".wal") {
        machine.disk.remove_raw(&file);
    }
    for result in [machine.open_read_only(small()), machine.open(small())] {
        let error = read_all(result, &history).unwrap_err();
        assert!(file_of(&error).is_some_and(|file| file.starts_with("/db/wal")), "{error}");
    }
}

/// Files that say nothing about the data may be lost or damaged without a word.
#[test]
fn lock_and_options_do_not_matter() {
    let (machine, history) = closed_engine(20, 8, 100);
    for name in ["LOCK", "OPTIONS"] {
        let file = Path::new(DIR).join(name);
        for damage in [Damage::Remove, Damage::Truncate(0), Damage::Truncate(3)] {
            survive(&machine, &history, &file, &damage).unwrap();
        }
    }
}

/// An intact file of a newer format is told from a damaged one, and named.
#[test]
fn newer_formats() {
    let (machine, history) = closed_engine(25, 30, 100);
    let too_new = |file: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = machine.disk.read_raw(file).unwrap();
        change(&mut bytes);
        for read_only in [true, false] {
            let machine = Machine::new(machine.disk.fork(), 0);
            machine.disk.write_raw(file, &bytes);
            let opened = if read_only { machine.open_read_only(small()) } else { machine.open(small()) };
            let error = opened.and_then(|engine| history.check(&engine)).unwrap_err();
            assert!(
                matches!(&error, Error::FormatTooNew { file: named, found: 2, supported: 1 } if named == file),
                "{error}"
            );
            assert_eq!(machine.disk.read_raw(file).unwrap(), bytes, "the file is left as it is");
        }
    };
    let version_2 = 2_u32.to_le_bytes();
    for table in machine.files(".sst") {
        too_new(&table, &|bytes| {
            let end = bytes.len();
            bytes[end - 20..end - 16].copy_from_slice(&version_2);
            let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[end - 112..end - 16]);
            bytes[end - 16..end - 8].copy_from_slice(&checksum.to_le_bytes());
        });
    }
    too_new(&machine.files("MANIFEST")[0], &|bytes| {
        bytes[8..12].copy_from_slice(&version_2);
        let checksum = crc_fast::crc32_iscsi(&bytes[..507]);
        bytes[507..511].copy_from_slice(&checksum.to_le_bytes());
    });
    too_new(&Path::new(DIR).join("CURRENT"), &|bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap().replacen("CURRENT 1", "CURRENT 2", 1);
        let body = &text[..text.rfind("crc32c").unwrap()];
        *bytes = format!("{body}crc32c {:08x}\n", crc_fast::crc32_iscsi(body.as_bytes())).into_bytes();
    });
    let has_header = |file: &&PathBuf| machine.disk.read_raw(file).unwrap().starts_with(b"FERRISW");
    for segment in machine.files(".wal").iter().filter(has_header) {
        too_new(segment, &|bytes| {
            bytes[8..12].copy_from_slice(&version_2);
            let checksum = crc_fast::crc32_iscsi(&bytes[..60]);
            bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        });
    }
}
