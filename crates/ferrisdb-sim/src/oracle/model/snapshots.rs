//! Snapshots of the database: what was there at their version, whatever is committed later and however much time passes, for as long as they are held.

use std::collections::BTreeMap;

use ferrisdb_core::{Bytes, Code};

use super::{Checked, Model, Transaction, equal, unexpected};
use crate::oracle::program::{Observed, Step};

/// A snapshot that is held.
#[derive(Debug)]
pub(super) struct Held {
    version: u64,
    state: BTreeMap<Bytes, Bytes>,
    reads_system: bool,
}

impl Model {
    /// True if a snapshot is held there.
    pub fn holds_snapshot(&self, held: usize) -> bool {
        self.snapshots[held].is_some()
    }

    /// True if the snapshot held there reads system keys.
    pub fn snapshot_reads_system(&self, held: usize) -> bool {
        self.snapshots[held].as_ref().is_some_and(|held| held.reads_system)
    }

    pub(super) fn take_snapshot(
        &mut self,
        held: usize,
        wanted: Option<i64>,
        reads_system: bool,
        lock_aware: bool,
        observed: &Observed,
    ) -> Checked {
        self.snapshots[held] = None;
        if self.is_locked && !lock_aware {
            return equal("a snapshot of a locked database", observed, &Observed::Failed(Code::DatabaseLocked));
        }
        let Observed::Version(version) = observed else { return unexpected(observed) };
        let found = u64::try_from(*version).map_err(|_| format!("a snapshot at {version}"))?;
        let state = match wanted {
            Some(wanted) => {
                equal("the version of a snapshot", version, &wanted)?;
                let recent = self.recent.iter().find(|(at, ..)| *at == found);
                recent.map(|(_, state, _)| state.clone()).expect("programs ask for versions that the model has named")
            }
            None if found < self.newest => {
                return Err(format!("a snapshot at {found}, below the last commit's version, {}", self.newest));
            }
            None => self.state.clone(),
        };
        self.snapshots[held] = Some(Held { version: found, state, reads_system });
        Ok(())
    }

    /// As a transaction reads that has written nothing, and whose version is never too old.
    pub(super) fn snapshot_read(&mut self, held: usize, read: &Step, observed: &Observed) -> Checked {
        let held = self.snapshots[held].as_ref().expect("programs read snapshots that they hold");
        let mut reader = Transaction::new(&self.defaults);
        reader.reads_at = Some((held.version, held.state.clone(), 0));
        reader.reads_system = held.reads_system;
        match read {
            Step::Get { key, .. } => reader.get(key, false, observed),
            Step::GetKey { selector, .. } => reader.get_key(selector, false, observed),
            Step::GetRange { question, .. } => reader.get_range(question, false, observed),
            Step::Stream { question, .. } => reader.stream(question, false, observed),
            Step::EstimatedSize { .. } if matches!(observed, Observed::Size(_)) => Ok(()),
            _ => unexpected(observed),
        }
        .map_err(|wrong| format!("a snapshot at {}: {wrong}", held.version))
    }
}
