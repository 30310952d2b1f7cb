//! Telling the owner what happens inside: [`EventListener`].
//!
//! Events are told by whoever caused them, a job or a writer, after it has let go of all locks, so a listener may call the engine. It must not
//! wait, though: a job that waits in a listener does no work. Counting, logging and sending to a channel without waiting are fine; calls such
//! as [`Engine::flush`](crate::Engine::flush) belong on another thread.
//!
//! Events of one job come in their order; those of different jobs and writers may come at the same time and in any order. A panic in a
//! listener counts as a panic of the job.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::Version;

use super::Core;
use crate::compaction::CompactionPlan;
use crate::compaction::plan::Reason;
use crate::error::Error;
use crate::manifest::{FileNumber, TableMeta};

/// Told what happens inside an engine; see [`Options::event_listener`](crate::Options::event_listener).
pub trait EventListener: Send + Sync {
    /// Called for each event. It must not wait.
    fn on_event(&self, event: &Event<'_>);
}

/// An [`EventListener`] as options hold it.
#[derive(Clone)]
pub struct Listener(pub Arc<dyn EventListener>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

// Options only carry it; what a panic leaves of a listener's own state is the listener's to know.
impl UnwindSafe for Listener {}
impl RefUnwindSafe for Listener {}

/// Something that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A flush begins to write a memtable.
    FlushBegun {
        /// The memory that it took, in bytes.
        memtable_bytes: u64,
    },
    /// A memtable is in L0.
    FlushDone {
        /// The bytes of the new table; zero if no reader could see anything of the memtable.
        bytes: u64,
        /// Everything up to this version is durable in tables.
        flushed: Version,
        /// From begin to end.
        took: Duration,
    },
    /// A compaction begins.
    CompactionBegun {
        /// What it will do.
        compaction: Compaction,
    },
    /// A compaction is part of the engine. One that fails is not told of here, but as an error.
    CompactionDone {
        /// What it did.
        compaction: Compaction,
        /// The bytes of the tables written; zero if tables were only moved or dropped.
        written_bytes: u64,
        /// From begin to end.
        took: Duration,
    },
    /// An ingestion is part of the engine.
    IngestionDone {
        /// Its version.
        version: Version,
        /// The bytes of its tables.
        bytes: u64,
    },
    /// A writer begins to wait until there is room.
    StallBegun,
    /// The writer goes on.
    StallEnded {
        /// How long it waited.
        took: Duration,
    },
    /// A job failed. For want of space it tries again; after any other error the engine is poisoned.
    BackgroundError {
        /// What failed.
        error: &'a Error,
        /// True if the job tries again.
        is_retried: bool,
    },
    /// No write is accepted any more. Told by a job, soon after it happened, unless the engine is closed first.
    Poisoned {
        /// Why.
        reason: &'a str,
    },
    /// A table is part of the engine. One that only changes its level is not told of.
    TableCreated {
        /// Its file.
        number: FileNumber,
        /// Its level.
        level: u8,
        /// Its length.
        bytes: u64,
    },
    /// A file that nothing names any more is gone.
    FileRemoved {
        /// The file.
        path: &'a Path,
    },
}

/// A compaction, for [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// Why it was picked.
    pub reason: Reason,
    /// The tables that it takes, with their levels.
    pub inputs: Vec<(u8, Vec<FileNumber>)>,
    /// Their bytes.
    pub input_bytes: u64,
    /// Where its outputs go.
    pub output_level: u8,
}

impl Compaction {
    pub(super) fn of(plan: &CompactionPlan) -> Compaction {
        Compaction {
            reason: plan.reason,
            inputs: plan.inputs.clone(),
            input_bytes: plan.input_bytes,
            output_level: plan.output_level,
        }
    }
}

impl Core {
    /// Tells the listener, if there is one. Never with a lock held.
    #[inline]
    pub(super) fn tell<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if let Some(listener) = &self.options.event_listener {
            listener.0.on_event(&event());
        }
    }

    pub(super) fn tell_created(&self, added: &[(u8, TableMeta)], is_moved: impl Fn(FileNumber) -> bool) {
        if self.options.event_listener.is_some() {
            for (level, meta) in added.iter().filter(|(_, meta)| !is_moved(meta.number)) {
                self.tell(|| Event::TableCreated { number: meta.number, level: *level, bytes: meta.file_bytes });
            }
        }
    }
}
