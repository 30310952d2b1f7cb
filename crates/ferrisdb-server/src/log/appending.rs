//! What the local and the replicated log have in common when they append to a write-ahead log.

use std::sync::Weak;
use std::task::Wake;

use ferrisdb_storage::wal::{Space, Wal, WalPosition};

use super::Entry;
use crate::signal::Bell;

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

/// Rings for the task that prepares segments, as long as there is one: the WAL must not keep alive what keeps it alive.
pub(super) struct RingMaintenance<T>(pub(super) Weak<T>);

/// Who has a task that looks after the files of a WAL.
pub(super) trait Maintained: Send + Sync + 'static {
    /// Wakes that task.
    fn maintain_bell(&self) -> &Bell;
}

impl<T: Maintained> Wake for RingMaintenance<T> {
    fn wake(self: std::sync::Arc<Self>) {
        if let Some(shared) = self.0.upgrade() {
            shared.maintain_bell().ring();
        }
    }
}
