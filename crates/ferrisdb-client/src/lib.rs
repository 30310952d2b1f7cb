//! FerrisDB's client library: databases, transactions, and the layers on them.
//!
//! A [`Database`] stands for a database, embedded or far away; it makes [`Transaction`]s. A server answers plain questions
//! ([`Endpoint`](ferrisdb_rpc::Endpoint)): whatever a client can work out for itself is worked out here.
//!
//! ```text
//! database      Database, the retry loop             transaction   Transaction: the calls
//! state         when a transaction may be used       reads, writes what the calls do
//! overlay       what was written, not committed      view          the snapshot under the overlay, walked
//! range         chunks, their conflicts              conflicts     what was read
//! begin         read versions, many in one question  commit        at most once
//! retry         on_error's decisions                 options, settings
//! watch         keys that change                     snapshot      long reads at one version
//! special       keys that the client answers         lock          who may use the database
//! about         what a client says of itself
//! mapped        an index and what it leads to, at once promise, read futures
//! layers        tuples, subspaces, directories
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]

mod about;
mod begin;
mod commit;
mod conflicts;
mod database;
mod heard;
pub mod layers;
mod lock;
mod mapped;
mod options;
mod overlay;
mod promise;
mod range;
mod read;
mod reads;
mod retry;
mod settings;
mod snapshot;
mod special;
mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transaction;
mod view;
mod watch;
mod writes;

pub use commit::Commit;
pub use database::{Database, DatabaseOptions};
pub use lock::LockId;
pub use mapped::{Mapped, MappedChunk, MappedRow};
pub use options::{DatabaseOption, TransactionOption};
pub use range::{RangeChunk, RangeOptions, RangeStream, StreamingMode};
pub use read::ReadFuture;
pub use snapshot::{Snapshot, SnapshotOptions};
pub use transaction::{ConflictRangeType, SnapshotReads, Transaction};
pub use watch::WatchFuture;
