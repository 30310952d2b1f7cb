//! A flipped bit in any byte of any file: the right answer, or an error that names the file. Never a panic, never a wrong answer.

use std::path::Path;

use ferrisdb_storage::{Engine, Error, Options};

use crate::support::{History, Machine, closed_engine, closed_engine_with, file_of, small};

/// What became of a flip.
#[derive(Debug, Default)]
struct Tally {
    flips: u64,
    reads_failed: u64,
    only_verify_saw: u64,
    harmless: u64,
}

/// Opens and reads everything. `Ok(false)` if only the verification found something.
fn read(engine: &Engine, history: &History) -> Result<bool, Error> {
    history.check_every(engine, 30)?;
    let report = engine.verify()?;
    Ok(report.is_ok())
}

fn flip_all(original: &Machine, history: &History, part: &str, writable: bool) -> Tally {
    let mut tally = Tally::default();
    for file in original.files(part) {
        let bytes = original.disk.read_raw(&file).unwrap();
        let data_end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1);
        // Every byte that was written, and one in sixteen of the zeros that a WAL segment is preallocated with.
        let zeros = (data_end..bytes.len() as u64).filter(|offset| offset - data_end < 40 || offset % 16 == 0);
        for offset in (0..data_end).chain(zeros) {
            // Another bit at each byte; over the file every bit of a byte has its turns.
            let bit = ((offset * 5 + offset / 8) % 8) as u8;
            let machine = Machine::new(original.disk.fork(), offset);
            machine.disk.flip_bit(&file, offset, bit);
            let opened = if writable { machine.open(small()) } else { machine.open_read_only(small()) };
            tally.flips += 1;
            match opened.and_then(|engine| read(&engine, history)) {
                Ok(true) => tally.harmless += 1,
                Ok(false) => tally.only_verify_saw += 1,
                Err(error) => {
                    tally.reads_failed += 1;
                    let typed = matches!(
                        error,
                        Error::Corruption { .. } | Error::MissingFile { .. } | Error::NotAnEngine { .. }
                    );
                    let named = file_of(&error).expect("an error about a file names it");
                    // A damaged name of a file may be reported as the file that is not there.
                    let at_it = named == file || file.starts_with(named) || matches!(error, Error::MissingFile { .. });
                    assert!(typed && at_it, "{} offset {offset} bit {bit}: {error}", file.display());
                }
            }
        }
    }
    tally
}

/// Every byte of every table is under a checksum, and the verification reads all of them: no flip is harmless.
#[test]
fn any_bit_of_a_table() {
    let (machine, history) = closed_engine(14, 2, 40);
    let tally = flip_all(&machine, &history, ".sst", false);
    assert!(tally.flips > 2000 && tally.harmless == 0, "{tally:?}");
}

/// Every byte of every blob file too, and of the tables that point into them.
#[test]
fn any_bit_of_a_blob_file() {
    let (machine, history) = closed_engine_with(Options { blob_value_bytes: Some(64), ..small() }, 8, 2, 70);
    let tally = flip_all(&machine, &history, ".blob", false);
    assert!(tally.flips > 1500 && tally.harmless == 0, "{tally:?}");
    let tally = flip_all(&machine, &history, ".sst", false);
    assert!(tally.flips > 1000 && tally.harmless == 0, "{tally:?}");
}

/// CURRENT and the manifest are under checksums from the first byte to the last, and no flip in them looks like a torn tail.
#[test]
fn any_bit_of_the_manifest() {
    let (machine, history) = closed_engine(14, 2, 40);
    for part in ["MANIFEST", "CURRENT"] {
        for writable in [false, true] {
            let tally = flip_all(&machine, &history, part, writable);
            assert_eq!(tally.reads_failed, tally.flips, "{part}: {tally:?}");
        }
    }
}

/// A flip in the WAL is never taken for a torn tail: after a clean close everything is below the known-synced mark.
#[test]
fn any_bit_of_the_wal() {
    let (machine, history) = closed_engine(8, 20, 150);
    let used = |file: &Path| machine.disk.read_raw(file).unwrap()[64..].iter().filter(|&&byte| byte != 0).count();
    let written: usize = machine.files(".wal").iter().map(|file| used(file)).sum();
    for writable in [false, true] {
        let tally = flip_all(&machine, &history, ".wal", writable);
        // Zeros behind the end, and segments that were recycled or flushed, are nobody's data.
        assert!(tally.reads_failed as usize * 3 > written, "{tally:?}, {written} bytes written");
    }
}

/// Files that hold no data.
#[test]
fn any_bit_of_the_rest() {
    let (machine, history) = closed_engine(10, 2, 40);
    for part in ["OPTIONS", "LOCK"] {
        let tally = flip_all(&machine, &history, part, true);
        assert_eq!(tally.harmless, tally.flips, "{part}: {tally:?}");
    }
}
