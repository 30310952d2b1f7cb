//! FerrisDB's storage engine: an embedded, ordered, multi-version key-value store on a log-structured merge tree.
//!
//! ```text
//! write:  batch ──▶ WAL (group commit) ──▶ memtable ──flush──▶ L0 ──compaction──▶ L1 … L6
//! read:   memtable ─▶ immutable memtables ─▶ L0 newest first ─▶ one table per deeper level
//! ```
//!
//! It needs no runtime and starts no thread of its own: disk, time and threads come in through [`env::Env`].
//!
//! Begin at [`Engine`]. [`WriteBatch`] is the atomic unit of writing, [`IterOptions`] says what a cursor shows, [`Options`] how an engine
//! is opened, and [`Error`] what can go wrong. [`inspect`] looks into the files. The other modules are the engine's parts; of them, [`wal`] and
//! [`fs`] are meant for use by themselves, and the rest is public for tools and tests and changes without notice.

#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]
#![cfg_attr(test, expect(clippy::type_complexity, reason = "a test's model is read where it stands"))]

pub mod batch;
mod blob;
pub mod cache;
pub mod compaction;
pub mod engine;
pub mod env;
mod epoch;
pub mod error;
pub mod fs;
pub mod inspect;
pub mod iter;
pub mod key;
pub mod levels;
pub mod manifest;
pub mod memtable;
pub mod options;
mod planted;
mod sync;
pub mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tombstone;
pub mod wal;

pub use batch::{Operation, WriteBatch};
pub use engine::{
    Compaction, Engine, Event, EventListener, IngestOptions, Ingestion, Iter, IterOptions, LevelStatistics, Listener,
    RangeSize, Snapshot, Statistics, Submitted, Ticket, Value, VerifyReport,
};
pub use env::Env;
pub use error::{DAMAGE_REMEDY, Error, Result};
pub use ferrisdb_core::Version;
pub use options::{Durability, Options, Retention, WriteOptions};
pub use table::Compression;
