//! A log that nobody has open, checked: [`verify`].
//!
//! Every record is read, which checks the segments' chain and each record's CRC; every entry is decoded; what the log's owner state says is the start
//! from which the entries are applied, so that versions are seen to increase; and where the log ends is compared with what the storage engine
//! has. A tail that a crash tore is no damage: nothing of it was acknowledged.

use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::{Bytes, Result, Version};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::FileSystem;
use ferrisdb_storage::wal::{Wal, WalOptions, WalPosition};

use super::entry::{Entry, Tag};
use super::local::OwnerState;
use super::state::{Applied, State};
use crate::failure::from_storage;

/// What was found in a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogReport {
    /// Records that were read.
    pub records: u64,
    /// The last version in it.
    pub last: Version,
    /// Entries that do not count, because an epoch had ended before they came.
    pub void: u64,
    /// Where a crash tore the end, if it did.
    pub torn: Option<String>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// What the storage engine kept, as of its last durable flush.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    pub(crate) owner_state: Option<Vec<u8>>,
    pub(crate) flushed: Version,
}

/// Checks the log in `dir`. Without `stored`, because the engine cannot be read, only records and entries are looked at.
///
/// # Errors
/// What the disk says. Damage is no error but a problem in the report.
pub(crate) fn verify(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    cluster_id: [u8; 16],
    stored: Option<&Stored>,
) -> Result<LogReport> {
    let mut report = LogReport::default();
    let kept = stored.and_then(|stored| stored.owner_state.as_deref());
    let mut start = Some((WalPosition::ZERO, State::new(&[Tag::FIRST]))).filter(|_| stored.is_some());
    if let Some(bytes) = kept {
        match OwnerState::decode(bytes, cluster_id) {
            Ok(kept) => start = Some((kept.replay_from, kept.state)),
            Err(error) => {
                report.problems.push(error.to_string());
                start = None;
            }
        }
    }
    let identity = u64::from_le_bytes(cluster_id[..8].try_into().expect("eight of sixteen bytes"));
    let replay_from = start.as_ref().map_or(WalPosition::ZERO, |(position, _)| *position);
    let options = WalOptions { identity, required_from: replay_from, ..WalOptions::default() };
    let (mut reader, recovery) = match Wal::read_only(Arc::clone(fs), dir, &options) {
        Ok(opened) => opened,
        Err(error) => return report.damaged(error),
    };
    report.torn = recovery.torn.map(|torn| format!("{} at {}: {}", torn.file.display(), torn.offset, torn.what));
    if recovery.end < replay_from {
        let what = format!("the log ends at {}, and the storage engine's state begins at {replay_from}", recovery.end);
        report.problems.push(what);
    }
    if kept.is_none() && stored.is_some() && recovery.purged {
        report
            .problems
            .push("the log no longer has its beginning, and the storage engine has not what was in it".to_owned());
    }
    loop {
        match reader.next() {
            Ok(None) => break,
            Err(error) => return report.damaged(error),
            Ok(Some(record)) => {
                report.records += 1;
                let position = record.position;
                let entry = match Entry::decode(&Bytes::copy_from_slice(record.payload)) {
                    Ok(entry) => entry,
                    Err(error) => {
                        report.problems.push(format!("the entry at {position} cannot be read: {}", error.what));
                        continue;
                    }
                };
                let Some((_, state)) = start.as_mut().filter(|_| position >= replay_from) else { continue };
                let before = state.last();
                match &entry {
                    Entry::Batch(batch) if batch.version <= batch.previous => {
                        let (version, previous) = (batch.version, batch.previous);
                        report
                            .problems
                            .push(format!("the batch at {position} has version {version} behind {previous}"));
                    }
                    _ if state.apply(&entry) == Applied::Void => report.void += 1,
                    _ => debug_assert!(state.last() >= before, "the state machine's versions increase"),
                }
            }
        }
    }
    if let (Some((_, state)), Some(stored)) = (&start, stored) {
        report.last = state.last();
        if stored.flushed > state.last() {
            let (flushed, last) = (stored.flushed, state.last());
            report
                .problems
                .push(format!("the log ends at version {last}, and the storage engine has version {flushed}"));
        }
        if let Some(popped) = state.popped(Tag::FIRST).filter(|popped| *popped > stored.flushed) {
            let flushed = stored.flushed;
            report.problems.push(format!(
                "the log has let go what is below version {popped}, and the storage engine has only what is up to {flushed}"
            ));
        }
    }
    Ok(report)
}

impl LogReport {
    fn damaged(mut self, error: StorageError) -> Result<LogReport> {
        if error.is_corruption() {
            self.problems.push(error.to_string());
            Ok(self)
        } else {
            Err(from_storage("cannot read the log", &error))
        }
    }
}
