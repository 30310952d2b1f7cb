//! What the files of an engine directory are called, and when they go.
//!
//! ```text
//! LOCK                 who has the directory open
//! OPTIONS              the options it was last opened with, for people
//! CURRENT, MANIFEST-*  which tables are live (see `manifest`)
//! wal/                 the write-ahead log's segments (see `wal`)
//! 000123.sst           tables; 000124.blob  blob files
//! ```
//!
//! A table file is removed when no reader can reach it any more: the levels no longer name it and the last handle to it is dropped. The
//! handle's drop only queues the file and wakes the keeper; a background step removes it, because removing a large file can take long.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::Waker;

use crate::error::Error;
use crate::fs::FileSystem;
use crate::manifest::FileNumber;
use crate::manifest::log::parse_manifest_file_name;

pub(crate) const LOCK: &str = "LOCK";
pub(crate) const OPTIONS: &str = "OPTIONS";
pub(crate) const WAL_DIR: &str = "wal";
const TABLE_SUFFIX: &str = "sst";
const BLOB_SUFFIX: &str = "blob";

pub(crate) fn table_path(dir: &Path, number: FileNumber) -> PathBuf {
    dir.join(format!("{number}.{TABLE_SUFFIX}"))
}

pub(crate) fn blob_path(dir: &Path, number: FileNumber) -> PathBuf {
    dir.join(format!("{number}.{BLOB_SUFFIX}"))
}

/// What a file in the directory is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Table(FileNumber),
    Blob(FileNumber),
    /// Left by a crash in the middle of writing it.
    Temporary,
    Other,
}

pub(crate) fn file_kind(path: &Path) -> FileKind {
    let (Some(stem), Some(suffix)) = (path.file_stem(), path.extension()) else { return FileKind::Other };
    let number = stem.to_str().filter(|stem| stem.len() >= 6 && stem.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|stem| stem.parse().ok()).map(FileNumber);
    match (suffix.to_str(), number) {
        (Some(TABLE_SUFFIX), Some(number)) => FileKind::Table(number),
        (Some(BLOB_SUFFIX), Some(number)) => FileKind::Blob(number),
        (Some("tmp"), _) => FileKind::Temporary,
        _ => FileKind::Other,
    }
}

/// The same error, with whether an engine's files are there without the one that holds them together. A log alone is what a creation that was cut short
/// may leave; with a manifest beside it there was an engine.
pub(crate) fn noting_remains(fs: &dyn FileSystem, error: Error) -> Error {
    let Error::NotAnEngine { directory, reason, has_remains } = error else { return error };
    let names = fs.list(&directory).unwrap_or_default();
    let has_data = names.iter().any(|name| matches!(file_kind(name), FileKind::Table(_) | FileKind::Blob(_)));
    let is_manifest = |name: &PathBuf| name.to_str().is_some_and(|name| parse_manifest_file_name(name).is_some());
    let has_log = names.iter().any(|name| *name == Path::new(WAL_DIR)) && names.iter().any(is_manifest);
    Error::NotAnEngine { directory, reason, has_remains: has_remains || has_data || has_log }
}

/// Files that nothing names any more, waiting to be removed.
#[derive(Debug, Default)]
pub(crate) struct ObsoleteFiles {
    queue: Mutex<Vec<PathBuf>>,
    /// Of the job that removes them. Whoever holds the last handle may be a reader, who tells nobody else.
    remover: OnceLock<Waker>,
}

impl ObsoleteFiles {
    pub(crate) fn push(&self, path: PathBuf) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        if let Some(remover) = self.remover.get() {
            remover.wake_by_ref();
        }
    }

    /// Sets whom to wake when a file is queued.
    pub(crate) fn set_remover(&self, waker: Waker) {
        self.remover.set(waker).expect("the jobs are started once");
    }

    pub(crate) fn pop(&self) -> Option<PathBuf> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names round-trip, and nothing that merely looks similar is taken for ours (and removed).
    #[test]
    fn names() {
        let dir = Path::new("/d");
        assert_eq!(file_kind(&table_path(dir, FileNumber(7))), FileKind::Table(FileNumber(7)));
        assert_eq!(file_kind(&blob_path(dir, FileNumber(1_234_567))), FileKind::Blob(FileNumber(1_234_567)));
        assert_eq!(file_kind(Path::new("/d/CURRENT.tmp")), FileKind::Temporary);
        for other in ["7.sst", "+00007.sst", "holiday.sst", "000007.sst.bak", "CURRENT", "99999999999999999999999.sst"]
        {
            assert_eq!(file_kind(Path::new(other)), FileKind::Other, "{other}");
        }
    }
}
