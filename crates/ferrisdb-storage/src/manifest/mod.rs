//! The manifest: which files are the engine, written as a log of edits.
//!
//! A table file means nothing by itself. It is part of the engine from the moment the [`ManifestEdit`] that adds it is
//! durable until the one that removes it is. Everything that must change together (the tables that a compaction removes and
//! adds; a flushed table, the version up to which all is in tables, the place where WAL replay starts, and the owner's own
//! bytes) is in one edit, so that a crash leaves all of it or nothing.
//!
//! ```text
//! CURRENT ──names──▶ MANIFEST-000007:  snapshot of everything │ edit │ edit │ …
//! ```
//!
//! - [`edit`]: what an edit says, and its bytes.
//! - [`state`]: what the edits of a log add up to.
//! - `frame`: how edits become checksummed sectors, and how a torn tail is told from corruption.
//! - `current`: the bytes of CURRENT.
//! - [`log`]: the files, their switch, and what happens when the disk fails.
//!
//! The reasons for this design are in `docs/decisions/0005-manifest-and-compaction.md`.

pub(crate) mod current;
pub mod edit;
mod frame;
pub mod log;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod survive;

pub use edit::{BlobMeta, EngineId, FileNumber, ManifestEdit, TableMeta};
pub use log::{Manifest, Recovered};
pub use state::{LiveBlob, ManifestState};

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod tests;
