//! FerrisDB: an ordered key-value database with strictly serializable transactions.
//!
//! [`open`] takes a directory and [`open_in_memory`] nothing at all; both give a whole database in this process, without a server or a
//! port, as the [`Endpoint`] that the client library works on.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

pub use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeyValue, Limits, Mutation, Result, Version, Versionstamp};
pub use ferrisdb_rpc::{Answer, Endpoint, api};
pub use ferrisdb_server::{Node, NodeOptions};

use ferrisdb_storage::Env;
use ferrisdb_storage::fs::sim::SimFileSystem;

/// Opens the database in a directory, founding it if there is none. What is committed is durable.
///
/// # Errors
/// What the disk says, naming the file; `file_not_writable` if the directory is open elsewhere.
pub fn open(dir: impl AsRef<Path>) -> Result<Arc<Node>> {
    open_with(Env::real(), dir, NodeOptions::default())
}

/// A new database in memory: gone when the last handle is. For tests, caches and tools.
///
/// # Errors
/// None that are expected: memory is never full before the process is.
pub fn open_in_memory() -> Result<Arc<Node>> {
    let env = Env { fs: Arc::new(SimFileSystem::new()), ..Env::real() };
    open_with(env, "/ferrisdb", NodeOptions::default())
}

/// Opens a database with a disk, clock, threads and options of the caller's.
///
/// # Errors
/// As [`open`].
pub fn open_with(env: Env, dir: impl AsRef<Path>, options: NodeOptions) -> Result<Arc<Node>> {
    Node::open(env, dir, options).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written through one handle is there after a clean close and an open, and a second open meanwhile is refused.
    #[test]
    fn a_directory_opens_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = open(dir.path()).expect("it opens");
        let id = first.description().cluster_id;
        let refused = open(dir.path()).expect_err("it is open already");
        assert_eq!(refused.code(), Code::FileNotWritable, "{refused}");
        first.close_blocking().expect("it closes");
        let second = open(dir.path()).expect("it opens again");
        assert_eq!(second.description().cluster_id, id);
        second.close_blocking().expect("it closes");
    }

    #[test]
    fn memory_is_enough() {
        let first = open_in_memory().expect("it opens");
        let second = open_in_memory().expect("another one");
        assert_ne!(first.description().cluster_id, second.description().cluster_id);
    }
}
