//! [`together`]: wakes that one thread owes to others are held back until it is done with all of something.
//!
//! **Answers** are written by the thread that gives them, with one write for each connection. Otherwise an answer that comes later wakes its connection's
//! task, which runs on another thread: that thread has to be woken, and starts writing when the first of many answers is there. Within [`together`] the
//! connections concerned are remembered; at the end each is asked to deliver its answers on the thread that gave them ([`Deliver`]), and its task is woken only if
//! something is left for it to do.
//!
//! **Questions** of one read are all put before the role that they are for is woken ([`wake`]): it finds all of them, and does not fight with the asking
//! thread for the locks of its queue and of the memory allocator meanwhile.
//!
//! # Concurrency
//! What is held back belongs to the thread. A connection that its task is using at the moment is not waited for: its task is told.

use std::cell::RefCell;
use std::sync::Weak;
use std::task::Waker;

/// Answers to more connections than this are left to the connections' tasks: a write takes about 10 µs, a hand-over to another thread 25 to 40 µs, and
/// whoever gives the answers has other things to do.
const DELIVERED_MAX: usize = 4;

/// Writes the answers that have come.
pub(crate) trait Deliver: Send + Sync {
    /// Writes what it can. `task` is the connection's: it is woken if anything is left to do.
    fn deliver(&self, task: Waker);
}

#[derive(Default)]
struct Held {
    /// To be woken.
    tasks: Vec<Waker>,
    /// Connections whose answers have come, and the task of each.
    connections: Vec<(Weak<dyn Deliver>, Waker)>,
}

thread_local! {
    /// `Some` within [`together`].
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Runs `act`, and then wakes whom it owes a wake and writes the answers that it gave. For whoever gives several answers at once, or asks several questions. The
/// caller holds no lock that asking an endpoint or dropping an answer would take.
pub fn together<R>(act: impl FnOnce() -> R) -> R {
    let is_outermost = HELD.with_borrow_mut(|held| {
        let is_outermost = held.is_none();
        held.get_or_insert_default();
        is_outermost
    });
    let _end = is_outermost.then(|| End);
    act()
}

/// Wakes a task: at once, or at the end of what the thread does [`together`].
pub fn wake(task: Waker) {
    hold(task, |held, task| held.tasks.push(task));
}

/// Wakes the tasks that are held back so far.
pub(crate) fn wake_held() {
    let tasks = HELD.with_borrow_mut(|held| held.as_mut().map(|held| std::mem::take(&mut held.tasks)));
    tasks.into_iter().flatten().for_each(Waker::wake);
}

/// As [`wake`], for the task of a connection whose answers have come.
pub(crate) fn wake_connection(connection: &Weak<dyn Deliver>, task: Waker) {
    hold(task, |held, task| held.connections.push((Weak::clone(connection), task)));
}

fn hold(task: Waker, keep: impl FnOnce(&mut Held, Waker)) {
    let at_once = HELD.with_borrow_mut(|held| match held {
        None => Some(task),
        Some(held) => {
            keep(held, task);
            None
        }
    });
    if let Some(task) = at_once {
        task.wake();
    }
}

/// Ends holding back, also if the act panics.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        let Held { tasks, connections } = HELD.take().unwrap_or_default();
        tasks.into_iter().for_each(Waker::wake);
        let delivers = connections.len() <= DELIVERED_MAX && !std::thread::panicking();
        for (connection, task) in connections {
            match connection.upgrade() {
                Some(connection) if delivers => connection.deliver(task),
                _ => task.wake(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn new() -> (Arc<Count>, Waker) {
            let count = Arc::new(Count::default());
            (Arc::clone(&count), Waker::from(count))
        }

        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// A connection that does not need its task.
    #[derive(Default)]
    struct Delivering(Mutex<usize>);

    impl Deliver for Delivering {
        fn deliver(&self, _task: Waker) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn wakes_come_at_the_end_and_elsewhere_at_once() {
        let (count, task) = Count::new();
        wake(task.clone());
        assert_eq!(count.get(), 1);
        together(|| {
            wake(task.clone());
            together(|| wake(task.clone()));
            assert_eq!(count.get(), 1, "the inner end is not the end");
            wake_held();
            assert_eq!(count.get(), 3);
            wake(task.clone());
        });
        assert_eq!(count.get(), 4);
        wake(task);
        assert_eq!(count.get(), 5, "it has ended");
    }

    /// Whatever becomes of the act, nobody is left asleep.
    #[test]
    fn a_panic_wakes_everybody() {
        let (count, task) = Count::new();
        let connection = Arc::new(Delivering::default());
        let weak: Weak<dyn Deliver> = Arc::downgrade(&(Arc::clone(&connection) as Arc<dyn Deliver>));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            together(|| {
                wake(task.clone());
                wake_connection(&weak, task.clone());
                panic!("on purpose");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!((count.get(), *connection.0.lock().unwrap()), (2, 0));
        wake(task);
        assert_eq!(count.get(), 3, "it has ended");
    }

    #[test]
    fn few_connections_deliver_many_are_woken_and_those_that_are_gone_too() {
        let (count, task) = Count::new();
        let connection = Arc::new(Delivering::default());
        let weak: Weak<dyn Deliver> = Arc::downgrade(&(Arc::clone(&connection) as Arc<dyn Deliver>));
        let mut expected = (0, 0);
        for connections in [1, DELIVERED_MAX, DELIVERED_MAX + 1] {
            together(|| (0..connections).for_each(|_| wake_connection(&weak, task.clone())));
            let (woken, delivered) = if connections > DELIVERED_MAX { (connections, 0) } else { (0, connections) };
            expected = (expected.0 + woken, expected.1 + delivered);
            assert_eq!((count.get(), *connection.0.lock().unwrap()), expected);
        }
        drop(connection);
        together(|| wake_connection(&weak, task.clone()));
        assert_eq!(count.get(), expected.0 + 1);
    }
}
