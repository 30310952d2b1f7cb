//! [`Database`]: the client library together with what it is a client of.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use ferrisdb_client::DatabaseOptions;
use ferrisdb_core::{Result, Runtime};
use ferrisdb_rpc::{ClientOptions, TokioRuntime};
use ferrisdb_server::{JobRuntime, Node, NodeOptions};
use ferrisdb_storage::Env;
use ferrisdb_storage::fs::sim::SimFileSystem;

use crate::Client;

/// A database: a [`Client`], and, for an embedded one, the database itself. Cheap to clone; all clones are the same database. What it can do
/// is what the client can: `db.run(...)`, `db.create_transaction()`, `db.snapshot(...)`.
///
/// # What is durable when
/// A transaction whose `commit` (or `run`) has returned is on stable storage, whatever happens to the process or the machine; of an in-memory
/// database nothing is.
///
/// # Ending
/// [`close`](Self::close) waits for what is under way and makes the next open quick; when it returns, the directory can be opened again. Dropping the
/// last clone ends the database too, in the background, and loses nothing that was acknowledged. Until its last task has ended the directory is in use,
/// and an open fails with `file_not_writable`: so close a database that the same process will open again.
#[derive(Clone)]
pub struct Database {
    client: Client,
    /// The database itself, if it is in this process.
    node: Option<Arc<Node>>,
}

impl Database {
    /// Opens the database in a directory, founding it if there is none.
    ///
    /// # Errors
    /// `io_error` and others of the disk, naming the file; `file_not_writable` if the directory is open elsewhere.
    pub fn open(dir: impl AsRef<Path>) -> Result<Database> {
        Database::open_with(Env::real(), dir, NodeOptions::default())
    }

    /// A new database in memory: gone when the last clone is. For tests, caches and tools.
    ///
    /// # Errors
    /// None that are expected.
    pub fn open_in_memory() -> Result<Database> {
        let env = Env { fs: Arc::new(SimFileSystem::new()), ..Env::real() };
        let mut options = NodeOptions::default();
        // Zeros would take the memory that is the disk here.
        options.log.fill = false;
        Database::open_with(env, "/ferrisdb", options)
    }

    /// Opens a database with a disk, clock, threads and options of the caller's.
    ///
    /// # Errors
    /// As [`open`](Self::open); `invalid_option_value` naming an option that is out of range.
    pub fn open_with(env: Env, dir: impl AsRef<Path>, options: NodeOptions) -> Result<Database> {
        let node = Arc::new(Node::open(env, dir, options)?);
        let client =
            Client::new(Arc::<Node>::clone(&node), Arc::new(node.runtime().clone()), DatabaseOptions::default());
        Ok(Database { client, node: Some(node) })
    }

    /// Connects to a server, `HOST:PORT`, or to one of several servers of the same database, with commas between them: when one is lost, the next takes its
    /// place. Of a cluster it finds out who has which keys and who decides commits, connects to those too, and asks them directly
    /// ([`asks_holders`](ClientOptions::asks_holders)). May be awaited anywhere; within a tokio runtime, the connection runs on that, otherwise on a thread of its own.
    ///
    /// # Errors
    /// `connection_string_invalid`, `connection_failed`, `incompatible_protocol_version`.
    pub async fn connect(address: &str) -> Result<Database> {
        Database::connect_with(address, ClientOptions::default()).await
    }

    /// Connects to a server, or one of several, with options of the caller's: how long to wait for what, which cluster it has to be, how many questions at once.
    ///
    /// ```no_run
    /// # async fn example() -> ferrisdb::Result<()> {
    /// use std::time::Duration;
    /// let options = ferrisdb::ClientOptions { outage_max: Duration::from_secs(60), ..Default::default() };
    /// let db = ferrisdb::Database::connect_with("localhost:4700", options).await?;
    /// # drop(db); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect); also `connection_failed` if the server is of another cluster than `cluster_id` says.
    pub async fn connect_with(address: &str, options: ClientOptions) -> Result<Database> {
        let endpoint = ferrisdb_rpc::Router::connect(address, options).await?;
        let runtime: Arc<dyn Runtime> = match TokioRuntime::current() {
            Some(runtime) => Arc::new(runtime),
            None => Arc::new(JobRuntime::new(Env::real())),
        };
        let options = DatabaseOptions { cluster_file_path: address.to_owned(), ..DatabaseOptions::default() };
        Ok(Database { client: Client::new(Arc::new(endpoint), runtime, options), node: None })
    }

    /// The client library's part: what code that does not care where its database is takes.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The database's part, of one that is in this process: to serve it to others, or to look into it.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// Of a database in this process: refuses new work, lets commits under way end, makes everything durable in tables, and gives the directory
    /// free. Otherwise it does nothing: the connection ends with the last clone.
    ///
    /// # Errors
    /// What the last flush said: nothing acknowledged is lost by it. `operation_cancelled` if it was closed before.
    pub async fn close(self) -> Result<()> {
        match &self.node {
            Some(node) => node.close().await,
            None => Ok(()),
        }
    }
}

impl Deref for Database {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("description", self.client.description()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::Code;
    use futures_executor::block_on;

    /// Opens a directory whose last database was dropped, not closed: its tasks end in the background, and until then it is in use.
    fn open_soon(dir: &Path) -> Database {
        let timer = JobRuntime::new(Env::real());
        for _ in 0..1000 {
            match Database::open(dir) {
                Ok(db) => return db,
                Err(error) => assert_eq!(error.code(), Code::FileNotWritable, "{error}"),
            }
            block_on(timer.sleep(std::time::Duration::from_millis(10)));
        }
        panic!("ten seconds after the drop it is still in use");
    }

    /// What was committed is there after a drop without a close and after a close; a second open meanwhile is refused.
    #[test]
    fn a_directory_opens_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for round in 0..4u8 {
            // After a close at once; after a drop once the tasks have ended.
            let db = match round % 2 {
                1 => Database::open(dir.path()).expect("it was closed"),
                _ => open_soon(dir.path()),
            };
            let refused = Database::open(dir.path()).expect_err("it is open already");
            assert_eq!(refused.code(), Code::FileNotWritable, "{refused}");
            let before = block_on(db.run(async |tx| {
                let before = tx.get(b"round").await?;
                tx.set(b"round", [round]);
                Ok(before)
            }));
            assert_eq!(before.expect("it commits").as_deref(), round.checked_sub(1).as_ref().map(std::slice::from_ref));
            if round % 2 == 0 {
                block_on(db.close()).expect("it closes");
            } else {
                drop(db);
            }
        }
    }

    #[test]
    fn databases_in_memory_are_apart() {
        let (first, second) =
            (Database::open_in_memory().expect("it opens"), Database::open_in_memory().expect("it opens"));
        block_on(first.run(async |tx| {
            tx.set(b"a", b"1");
            Ok(())
        }))
        .expect("it commits");
        assert_eq!(block_on(second.run(async |tx| tx.get(b"a").await)).expect("it reads"), None);
        assert_ne!(first.description().cluster_id, second.description().cluster_id);
    }
}
