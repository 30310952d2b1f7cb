//! What belongs to a process as long as it has a directory open: the directory's lock, and the tasks that may write there.
//!
//! # Invariant
//! Each task holds the directory's lock until its future is gone, so that the directory is free when, and not before, nobody can write any more.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Code, Result, Runtime};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::env::wait;
use ferrisdb_storage::fs::{FileLock, FileSystem, OpenMode, write_all_at};

use crate::failure::from_storage;
use crate::runtime::JobRuntime;
use crate::signal::{Replied, Reply, reply};

/// The directory's lock, shared by all that may write there.
pub(crate) type SharedLock = Arc<dyn FileLock>;

/// A task. Whether it ends, is dropped or panics: the future goes first, and the roles that it holds with it, then its share in the lock, and
/// whoever waits for its end finds both done.
struct Task(Option<Running>);

/// The fields go in their order.
struct Running {
    future: BoxFuture<()>,
    _lock: SharedLock,
    /// It answers when it is dropped.
    _end: Reply<()>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let running = self.0.as_mut().expect("a task is not polled after it was ready");
        let polled = running.future.as_mut().poll(context);
        if polled.is_ready() {
            // Here, not when the job goes: what the future holds may still have something to do.
            self.0 = None;
        }
        polled
    }
}

/// Runs a task, and tells when it has ended, whichever way.
pub(crate) fn spawn(runtime: &dyn Runtime, name: &str, future: BoxFuture<()>, lock: SharedLock) -> Replied<()> {
    let (end, ended) = reply(Code::OperationCancelled);
    runtime.spawn(name, Box::pin(Task(Some(Running { future, _lock: lock, _end: end }))));
    ended
}

/// Waits for tasks to end.
pub(crate) async fn ended(tasks: Vec<Replied<()>>) {
    for task in tasks {
        // An error: it says that it was dropped, as every task is in the end.
        drop(task.await);
    }
}

/// Runs a future to its end; not to be called in a task.
pub(crate) fn block_on<T>(runtime: &JobRuntime, future: impl Future<Output = T>) -> T {
    wait(&*runtime.env().spawner, future)
}

/// Makes the directory, and locks it.
pub(crate) fn take_directory(fs: &dyn FileSystem, dir: &Path) -> Result<SharedLock> {
    let failed = |op, path: &Path, error| from_storage("cannot open the database", &StorageError::io(op, path, error));
    fs.create_dir_all(dir).map_err(|error| failed("create", dir, error))?;
    let path = dir.join("LOCK");
    let holder = format!("process {}", std::process::id());
    fs.lock(&path, &holder).map(Arc::from).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            let holder = fs.lock_holder(&path).unwrap_or_else(|_| "another process".to_owned());
            let directory = dir.to_path_buf();
            from_storage("cannot open the database", &StorageError::Locked { directory, holder })
        }
        _ => failed("lock", &path, error),
    })
}

/// Writes a file whole or not at all: `name.tmp` is written, synced and renamed.
pub(crate) fn write_file(fs: &dyn FileSystem, dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let failed = |op, path: &Path, error| from_storage("cannot write", &StorageError::io(op, path, error));
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    if fs.exists(&temporary).map_err(|error| failed("look for", &temporary, error))? {
        fs.remove_file(&temporary).map_err(|error| failed("remove", &temporary, error))?;
    }
    let file = fs.open(&temporary, OpenMode::CreateNew).map_err(|error| failed("create", &temporary, error))?;
    write_all_at(file.as_ref(), bytes, 0).map_err(|error| failed("write to", &temporary, error))?;
    file.sync_all().map_err(|error| failed("sync", &temporary, error))?;
    fs.rename(&temporary, &path).map_err(|error| failed("rename", &temporary, error))?;
    fs.sync_dir(dir).map_err(|error| failed("sync", dir, error))
}
