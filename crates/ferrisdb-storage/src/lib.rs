//! FerrisDB's storage engine: an embedded, ordered, multi-version key-value store on a log-structured merge tree.
//!
//! ```text
//! write:  batch ──▶ WAL (group commit) ──▶ memtable ──flush──▶ L0 ──compaction──▶ L1 … L6
//! read:   memtable ─▶ immutable memtables ─▶ L0 newest first ─▶ one table per deeper level
//! ```
//!
//! It needs no runtime and starts no thread of its own: disk, time and threads come in through [`env::Env`].

pub mod env;
pub mod error;
pub mod fs;
pub mod iter;
pub mod key;
pub mod tombstone;
pub mod wal;

pub use error::{Error, Result};
