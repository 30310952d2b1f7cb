//! A replica of the log that nobody has open, checked: [`verify`].
//!
//! Every record is read, which checks the segments' chain and each record's CRC, and decoded; the entries have to be consecutive, a snapshot has to stand for what is no longer there, and
//! what is called committed has to be there. A tail that a crash tore is no damage: nobody was told of it.

use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::{Bytes, Result};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::FileSystem;
use ferrisdb_storage::wal::{Wal, WalOptions};

use super::memory::Memory;
use super::wal_identity;
use crate::failure::from_storage;

/// What was found in a replica of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaReport {
    /// Records that were read: entries, votes, and what else it must not forget.
    pub records: u64,
    /// Index of the last entry.
    pub last: Option<u64>,
    /// Index of the last entry that it knows to be committed.
    pub committed: Option<u64>,
    /// Index of the last entry that the newest snapshot stands for.
    pub snapshot: Option<u64>,
    /// The newest term in which it voted.
    pub voted: Option<u64>,
    /// Where a crash tore the end, if it did.
    pub torn: Option<String>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Checks the replica in `dir`.
///
/// # Errors
/// What the disk says. Damage is no error but a problem in the report.
pub(crate) fn verify(fs: &Arc<dyn FileSystem>, dir: &Path, cluster_id: [u8; 16]) -> Result<ReplicaReport> {
    let mut report = ReplicaReport::default();
    let options = WalOptions { identity: wal_identity(cluster_id), ..WalOptions::default() };
    let (mut reader, recovery) = match Wal::read_only(Arc::clone(fs), dir, &options) {
        Ok(opened) => opened,
        Err(error) => return report.damaged(&error),
    };
    report.torn =
        recovery.torn.as_ref().map(|torn| format!("{} at {}: {}", torn.file.display(), torn.offset, torn.what));
    let mut memory = Memory::new();
    loop {
        let record = match reader.next() {
            Ok(None) => break,
            Err(error) => return report.damaged(&error),
            Ok(Some(record)) => record,
        };
        report.records += 1;
        let position = record.position;
        if let Err(error) = memory.replay(&Bytes::copy_from_slice(record.payload), position, 0) {
            // What comes behind it may mean something else without it.
            report.problems.push(format!("the record at {position} cannot be read: {}", error.what));
            return Ok(report);
        }
    }
    report.voted = memory.vote.map(|vote| vote.leader_id.term);
    report.committed = memory.committed.map(|committed| committed.index);
    report.snapshot = memory.snapshot.as_ref().and_then(|snapshot| snapshot.last).map(|last| last.index);
    if let Err(what) = memory.begin(recovery.purged) {
        report.problems.push(what.to_owned());
    }
    report.last = memory.last().map(|last| last.index);
    Ok(report)
}

impl ReplicaReport {
    fn damaged(mut self, error: &StorageError) -> Result<ReplicaReport> {
        match error.damage() {
            Some(damage) => {
                self.problems.push(damage);
                Ok(self)
            }
            None => Err(from_storage("cannot read the log of the cluster", error)),
        }
    }
}
