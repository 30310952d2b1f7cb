//! [`TokioRuntime`]: tokio as a [`Runtime`], and where a client's connection runs.
//!
//! Time is tokio's and randomness follows from a seed, so that inside a simulator that controls tokio's time the same seed gives the same run.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, Code, Error, Random, Result, Runtime, SplitMix64};
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A [`Runtime`] over a tokio runtime. Its futures may be awaited anywhere.
pub struct TokioRuntime {
    handle: Handle,
    origin: Instant,
    random: Mutex<SplitMix64>,
}

impl TokioRuntime {
    /// Tasks and timers on `handle`'s runtime; all random numbers follow from `seed`.
    pub fn new(handle: Handle, seed: u64) -> TokioRuntime {
        let origin = {
            // Which clock is read depends on the runtime: a paused one has its own.
            let _inside = handle.enter();
            Instant::now()
        };
        TokioRuntime { handle, origin, random: Mutex::new(SplitMix64::new(seed)) }
    }

    /// The runtime within which the caller is, if it is within one, with a seed of its own.
    pub fn current() -> Option<TokioRuntime> {
        Handle::try_current().ok().map(|handle| TokioRuntime::new(handle, any_seed()))
    }
}

impl fmt::Debug for TokioRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokioRuntime").finish_non_exhaustive()
    }
}

impl Clock for TokioRuntime {
    fn now(&self) -> Duration {
        let _inside = self.handle.enter();
        self.origin.elapsed()
    }
}

impl Runtime for TokioRuntime {
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let _inside = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, _name: &str, task: BoxFuture<()>) {
        // The task runs on; nobody waits for it through its handle. (Tokio's names of tasks want its tracing feature.)
        drop(self.handle.spawn(task));
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

/// A seed that differs between processes. The standard library asks the system for its hash maps' keys; that is random enough to
/// spread clients over time.
pub(crate) fn any_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Runs `task` on the caller's tokio runtime or, where there is none, on a thread of its own, which ends with the task.
pub(crate) fn run_somewhere(name: &str, task: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    if let Ok(handle) = Handle::try_current() {
        drop(handle.spawn(task));
        return Ok(());
    }
    let failed = |what: &str, error: std::io::Error| {
        Error::with(Code::PlatformError, format!("cannot start {what} for the connection: {error}"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| failed("a runtime", error))?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || runtime.block_on(task))
        .map_err(|error| failed("a thread", error))?;
    Ok(())
}
