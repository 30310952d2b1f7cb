//! Tests of the storage server on a simulated disk, with all jobs on one thread in an order that a seed decides.

mod faults;
mod model;
mod threads;
mod waits;
mod watches;

use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ferrisdb_core::{Bytes, Code, Mutation, Result, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{GetRequest, WatchRequest};
use ferrisdb_storage::env::steps::StepSpawner;
use ferrisdb_storage::env::wait;
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};
use ferrisdb_storage::{Env, Options};

use super::{ApplyBatch, StorageOptions, StorageRecovery, StorageServer};
use crate::JobRuntime;

const DIR: &str = "/storage";

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A process: it dies when it is dropped.
struct Machine {
    disk: SimFileSystem,
    spawner: Arc<StepSpawner>,
    runtime: JobRuntime,
}

impl Machine {
    fn new(disk: SimFileSystem, seed: u64) -> Machine {
        let (env, spawner, _) = Env::sim_with_seed(disk.clone(), seed);
        Machine { disk, spawner, runtime: JobRuntime::new(env) }
    }

    fn open(&self, options: StorageOptions) -> Result<(StorageServer, StorageRecovery)> {
        Ok(StorageServer::open(self.runtime.clone(), Path::new(DIR), options)?)
    }

    /// Runs jobs until the future is ready.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        wait(&*self.spawner, future)
    }

    /// What a power loss leaves, as a new machine.
    fn crash(self, seed: u64) -> Machine {
        Machine::new(self.disk.fork_crashed(CrashMode::UnsyncedLost), seed)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.spawner.drop_jobs();
    }
}

/// Small buffers, so that a few kilobytes reach flushes, compactions and reads from disk.
fn tiny() -> StorageOptions {
    StorageOptions { engine: Options::tiny(), value_bytes: 100, read_jobs: 2, ..StorageOptions::default() }
}

fn batch(version: u64, mutations: Vec<Mutation>) -> ApplyBatch {
    ApplyBatch { version: v(version), mutations, ..ApplyBatch::default() }
}

fn set(key: &str, value: &str) -> Mutation {
    Mutation::set(bytes(key), bytes(value))
}

fn get(storage: &StorageServer, key: &str, version: u64) -> Answer<Option<Bytes>> {
    storage.get(GetRequest { key: bytes(key), version: v(version) })
}

fn watch(storage: &StorageServer, key: &str, value: Option<&str>, version: u64) -> Answer<Version> {
    storage.watch(WatchRequest { key: bytes(key), value: value.map(bytes), version: v(version) })
}

/// Polls once, with a waker that nobody hears.
fn poll<T: Unpin>(answer: &mut Answer<T>) -> Poll<Result<T>> {
    std::pin::Pin::new(answer).poll(&mut Context::from_waker(Waker::noop()))
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    result.expect_err("it fails").code()
}
