//! [`Signal`]: "something changed, look again".
//!
//! Whoever waits registers a waker **before** looking at the condition, so that a change in between is not missed. A signal carries no
//! state: after waking, look.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::env::Spawner;

#[derive(Debug, Default)]
pub(crate) struct Signal {
    wakers: Mutex<Vec<Waker>>,
}

impl Signal {
    /// Asks to be woken at the next change. Register first, then look.
    pub(crate) fn register(&self, waker: &Waker) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|other| other.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Wakes everyone who registered.
    pub(crate) fn notify(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Lets the caller wait until `look` has something.
    pub(crate) fn wait<T>(&self, spawner: &dyn Spawner, mut look: impl FnMut() -> Option<T>) -> T {
        let mut found = look();
        if found.is_none() {
            let waiting = std::future::poll_fn(|context| {
                self.register(context.waker());
                found = look();
                if found.is_some() { Poll::Ready(()) } else { Poll::Pending }
            });
            spawner.block_on(pin!(waiting));
        }
        found.expect("the wait ends when something was found")
    }
}
