//! What the WAL promises, one scenario at a time; `crash_tests` has the exhaustive loops.

#![expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]

mod appending;
mod format;
mod reading;
mod real_disk;
mod recovery;
mod syncing;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};

use expect_test::expect;
use ferrisdb_core::{Random, SplitMix64};

use super::format::{Place, RecordHeader, SEGMENT_HEADER_LEN};
use super::testfs::{Crash, TestFs};
use super::*;
use crate::error::{Error, Result};

const DIR: &str = "/wal";
const FIRST: &str = "0000000001.wal";

fn options() -> WalOptions {
    WalOptions { segment_bytes: 4096, recycle_max: 2, reserve_bytes: 512, fill: false, ..WalOptions::default() }
}

fn open(fs: &TestFs) -> Wal {
    open_with(fs, options()).unwrap().0
}

fn open_with(fs: &TestFs, options: WalOptions) -> Result<(Wal, Recovery)> {
    Wal::open(fs.arc(), Path::new(DIR), options)
}

fn append(wal: &Wal, text: &str) -> WalPosition {
    wal.append(&[text.as_bytes()]).unwrap()
}

/// Records until the reader has no more, as text.
fn drain(reader: &mut WalReader) -> Result<Vec<String>> {
    let mut records = Vec::new();
    while let Some(record) = reader.next()? {
        records.push(String::from_utf8(record.payload.to_vec()).unwrap());
    }
    Ok(records)
}

fn contents(wal: &Wal) -> Result<Vec<String>> {
    drain(&mut wal.subscribe(wal.first_position(), ReadUpTo::Appended)?)
}

/// A waker that counts.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn counter() -> (Arc<Counter>, Waker) {
    let counter = Arc::new(Counter::default());
    (Arc::clone(&counter), Waker::from(counter))
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") + "\n";
    bytes.chunks(16).map(line).collect()
}
