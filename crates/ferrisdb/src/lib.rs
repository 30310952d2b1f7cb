//! FerrisDB: an ordered key-value database with strictly serializable transactions.
//!
//! [`Database::open`] takes a directory and gives a whole database in this process, without a server or a port;
//! [`Database::connect`] takes the address of a server. Both are the same [`Client`], with the same transactions.
//!
//! ```
//! # fn main() -> ferrisdb::Result<()> { futures_executor::block_on(async {
//! let db = ferrisdb::Database::open_in_memory()?;
//! db.run(async |tx| { tx.set(b"hello", b"world"); Ok(()) }).await?;
//! let value = db.run(async |tx| tx.get(b"hello").await).await?;
//! assert_eq!(value.as_deref(), Some(&b"world"[..]));
//! # Ok(()) }) }
//! ```
//!
//! The futures need no particular runtime: they may be awaited under tokio, smol, or a `block_on`.

#![forbid(unsafe_code)]

mod database;

pub use ferrisdb_client::{
    Commit, ConflictRangeType, Database as Client, DatabaseOption, DatabaseOptions, LockId, Mapped, MappedChunk,
    MappedRow, RangeChunk, RangeOptions, RangeStream, ReadFuture, Snapshot, SnapshotOptions, SnapshotReads,
    StreamingMode, Transaction, TransactionOption, WatchFuture, layers,
};
pub use ferrisdb_core::{
    Bytes, Code, Error, KeyRange, KeySelector, KeyValue, Limits, Mutation, MutationKind, Result, Version, Versionstamp,
    key,
};
pub use ferrisdb_rpc::{Answer, ClientOptions, Endpoint, api};
pub use ferrisdb_server::log::LogReport;
pub use ferrisdb_server::node::BROKEN_REMEDY;
pub use ferrisdb_server::{Node, NodeOptions};
pub use ferrisdb_server::{alone, cluster};

pub use database::Database;

/// The code on the pages of the book runs.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/first-steps.md")]
    struct FirstSteps;
    #[doc = include_str!("../../../docs/data-model.md")]
    struct DataModel;
    #[doc = include_str!("../../../docs/transactions.md")]
    struct Transactions;
}
