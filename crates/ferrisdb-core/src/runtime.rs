//! The door to tasks and timers: [`Runtime`].
//!
//! The client library and the roles are written as plain futures. What runs them differs: tokio beside sockets, the storage
//! engine's spawner in an embedded database, a simulator in a test. They take one of these and know no more.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::clock::Clock;

/// A future of someone else's making.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Time, timers, tasks and randomness.
pub trait Runtime: Clock {
    /// Ready once so much time has passed. Dropping it forgets the timer.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;

    /// Runs `task` beside the caller, until it is done or the runtime goes. A short `name` shows in debuggers.
    fn spawn(&self, name: &str, task: BoxFuture<()>);

    /// 64 random bits: for ids, jitter and spreading. Not for secrets.
    fn random(&self) -> u64;
}
