//! What the local and the replicated log have in common when they append to a write-ahead log and look after its files.

use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::Duration;

use ferrisdb_core::Runtime as _;
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::wal::{PrepareStep, Space, Wal, WalPosition};

use super::Entry;
use crate::runtime::JobRuntime;
use crate::signal::Bell;

/// How long the preparation of a segment that failed waits before it is tried again.
const PREPARE_RETRY: Duration = Duration::from_secs(1);

/// Appends records whose payloads lie one behind the other in `buffer`, each up to its end in `ends`, in one write; adds their positions.
pub(super) fn append_records(
    wal: &Wal,
    buffer: &[u8],
    ends: &[usize],
    space: Space,
    positions: &mut Vec<WalPosition>,
) -> ferrisdb_storage::Result<()> {
    let mut begin = 0;
    let parts: Vec<[&[u8]; 1]> = ends.iter().map(|&end| [&buffer[std::mem::replace(&mut begin, end)..end]]).collect();
    let records: Vec<&[&[u8]]> = parts.iter().map(|part| &part[..]).collect();
    wal.append_many(&records, space, positions)
}

/// Entries without mutations may use the reserve: they free space, or start an epoch.
pub(super) fn space_for<'a>(mut entries: impl Iterator<Item = &'a Entry>) -> Space {
    let is_small = entries.all(|entry| match entry {
        Entry::Batch(batch) => batch.mutation_bytes() == 0,
        _ => true,
    });
    if is_small { Space::Reserve } else { Space::Ordinary }
}

/// Who has a WAL, and a task that looks after its files: [`maintain_until_closed`].
pub(super) trait Maintained: Send + Sync + 'static {
    fn wal(&self) -> &Wal;
    fn runtime(&self) -> &JobRuntime;
    /// Wakes the task: a segment is wanted, more may be purged, or it is closed.
    fn maintain_bell(&self) -> &Bell;
    fn is_closed(&self) -> bool;
    /// Up to where the WAL may be purged.
    fn purge_position(&self) -> WalPosition;
    /// The WAL takes nothing more, since a sync failed: whoever waits is told.
    fn broken(&self, error: &StorageError);
}

/// Prepares segments before they are wanted, and purges what nobody needs any more.
pub(super) async fn maintain_until_closed<T: Maintained>(maintained: Arc<T>) {
    maintained.wal().set_prepare_waker(Waker::from(Arc::new(RingMaintenance(Arc::downgrade(&maintained)))));
    let mut purged = WalPosition::ZERO;
    while !maintained.is_closed() {
        let purge_to = maintained.purge_position();
        let is_idle = match maintained.wal().prepare_step() {
            Ok(PrepareStep::Again) => false,
            Ok(PrepareStep::Idle) => true,
            Err(error @ StorageError::Poisoned { .. }) => {
                // Said now, not by the next append: that may be long to come.
                maintained.broken(&error);
                true
            }
            Err(_) => {
                // A full disk, most likely. Appends prepare for themselves meanwhile, and say what is wrong.
                maintained.runtime().sleep(PREPARE_RETRY).await;
                true
            }
        };
        if purge_to > purged && maintained.wal().purge(purge_to).is_ok() {
            purged = purge_to;
        }
        if is_idle {
            maintained.maintain_bell().rung().await;
        }
    }
}

/// Rings for the task that prepares segments, as long as there is one: the WAL must not keep alive what keeps it alive.
struct RingMaintenance<T>(Weak<T>);

impl<T: Maintained> Wake for RingMaintenance<T> {
    fn wake(self: Arc<Self>) {
        if let Some(maintained) = self.0.upgrade() {
            maintained.maintain_bell().ring();
        }
    }
}
