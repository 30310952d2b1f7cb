//! What tests of this crate stand on: a database in memory that keeps every version, and a runtime of one thread whose time a test moves.
//!
//! The database answers at once unless told to answer later (each answer then takes a turn or two) or to lose answers to commits, with
//! or without having made them. It is written to be obviously right, not fast.

mod memory;
mod runtime;

use std::sync::Arc;

pub(crate) use memory::{Lost, MemoryEndpoint};
pub(crate) use runtime::TestRuntime;

use crate::{Database, DatabaseOptions};

/// A new database in memory, and what stands behind it.
pub(crate) fn database() -> (Database, Arc<MemoryEndpoint>, Arc<TestRuntime>) {
    database_with(DatabaseOptions::default())
}

pub(crate) fn database_with(options: DatabaseOptions) -> (Database, Arc<MemoryEndpoint>, Arc<TestRuntime>) {
    let endpoint = Arc::new(MemoryEndpoint::new());
    let runtime = Arc::new(TestRuntime::new(1));
    let database = Database::new(Arc::<MemoryEndpoint>::clone(&endpoint), Arc::<TestRuntime>::clone(&runtime), options);
    (database, endpoint, runtime)
}
