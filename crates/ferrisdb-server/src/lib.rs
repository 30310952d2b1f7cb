//! FerrisDB's roles: the transaction coordinator, the transaction log, the storage server.
//!
//! Each role is a deterministic core, which knows no clock, disk or network, and a driver around it, written as plain futures. The drivers
//! run on a [`Runtime`](ferrisdb_core::Runtime); [`JobRuntime`] is the one over the storage engine's spawner: threads in a real process, one
//! thread in a simulation.

pub mod resolver;
pub mod runtime;
pub mod storage;

pub use runtime::JobRuntime;
