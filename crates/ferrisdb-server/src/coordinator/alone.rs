//! Commits on the caller's own thread.
//!
//! A commit with nothing else under way goes from its caller's thread to the driver's and back: two hand-overs between threads, about 50 µs, where the sync itself takes 100. A
//! caller that has nothing else to do, and may block for as long as a sync takes, takes the driver's place instead.
//!
//! # Invariants
//! - Whoever holds the driver does its work as its task would: there is one order of groups.
//! - The task is not rung for while somebody else holds the driver; it is afterwards, if anything is left for it, whatever became of the caller.
//! - A driver that panicked on another's thread panics on its own too: it is dropped, and everybody who waits is told.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{Afterwards, CommitRequest, Committed};

use super::{Coordinator, Shared};
use crate::signal::lock;

impl Coordinator {
    /// The same for a caller whose thread has nothing else to do until the answer comes, and may block for a while ([`alone_at_most`](super::CoordinatorOptions::alone_at_most), as far as can be told
    /// from the syncs before): if nothing else is under way, the caller's thread does the driver's work, and the answer is there when this returns. The
    /// log's subscribers, who are in less of a hurry, are left in `afterwards`.
    pub fn commit_alone(&self, request: CommitRequest, afterwards: &mut Afterwards) -> Answer<Committed> {
        let shared = &self.shared;
        let driver = shared.is_quick.load(Ordering::Relaxed).then(|| shared.driver.get().and_then(Weak::upgrade));
        let Some(driver) = driver.flatten() else { return self.commit(request) };
        let Ok(mut driving) = driver.try_lock() else { return self.commit(request) };
        if !driving.is_idle() {
            drop(driving);
            return self.commit(request);
        }
        // The driver's task is woken afterwards, if anything is left for it to do; also if this panics.
        let _left = RingIfLeft(shared);
        lock(&shared.queue).rings_from = usize::MAX;
        let answer = self.commit(request);
        driving.work_once(afterwards);
        drop(driving);
        match answer {
            Answer::Now(result) => Answer::Now(result),
            Answer::Later(mut answer) => match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => Answer::now(result),
                Poll::Pending => Answer::Later(answer),
            },
        }
    }
}

/// Wakes the driver's task, when dropped, if there is anything left to do.
struct RingIfLeft<'a>(&'a Shared);

impl Drop for RingIfLeft<'_> {
    fn drop(&mut self) {
        let is_left = {
            let mut queue = lock(&self.0.queue);
            queue.rings_from = 0;
            // Also what is in flight counts as a request.
            queue.requests > 0 || queue.wants_batch || queue.is_closed || queue.failed.is_some()
        };
        if is_left || std::thread::panicking() {
            self.0.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use ferrisdb_core::ManualClock;
    use ferrisdb_rpc::Endpoint;
    use ferrisdb_rpc::api::LeaseRequest;
    use ferrisdb_storage::Env;
    use ferrisdb_storage::env::SeededEntropy;
    use ferrisdb_storage::env::steps::StepSpawner;
    use ferrisdb_storage::fs::sim::SimFileSystem;

    use super::*;
    use crate::{Node, NodeOptions};

    /// Who came while the driver's task was not rung for, and was left over, is not forgotten.
    #[test]
    fn the_task_is_rung_for_what_is_left() {
        let clock = Arc::new(ManualClock::new());
        let spawner = Arc::new(StepSpawner::new(Arc::clone(&clock)));
        let env = Env {
            fs: Arc::new(SimFileSystem::new()),
            clock,
            spawner: Arc::<StepSpawner>::clone(&spawner),
            entropy: Arc::new(SeededEntropy::new(1)),
        };
        let node = Node::open(env, Path::new("/db"), NodeOptions::tiny()).expect("it opens");
        spawner.run_until_idle();
        let shared = &node.coordinator().shared;
        let left = RingIfLeft(shared);
        lock(&shared.queue).rings_from = usize::MAX;
        let mut answer = node.lease(LeaseRequest::Grant(None));
        let mut poll = || std::pin::Pin::new(&mut answer).poll(&mut Context::from_waker(Waker::noop()));
        spawner.run_until_idle();
        assert!(poll().is_pending());
        drop(left);
        spawner.run_until_idle();
        assert!(poll().is_ready());
        drop(node);
        spawner.drop_jobs();
    }
}
