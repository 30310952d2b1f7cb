//! [`Afterwards`]: who is to be woken, but not yet.
//!
//! To wake a task that sleeps is a system call, and where there are few processors the task takes the caller's as soon as it is woken. So a caller that has something
//! more urgent to do, an answer to pass on or a write to hand to the disk, first does that, and wakes afterwards. Who gives many answers one after the other has another
//! reason: the first answer wakes the connection that asked, which writes that one answer and sleeps, and is woken again by the second. With
//! [`hold`](Afterwards::hold) all answers are there when it is woken, and it is woken once.
//!
//! # Invariants
//! - Nobody is forgotten: who is left in it is woken when it is dropped, also by a panic.

use std::cell::RefCell;
use std::task::Waker;

thread_local! {
    /// Of this thread, while it is within [`Afterwards::hold`]: who would have been woken.
    static HELD: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Those who are to be woken once the caller has done what is more urgent: when this is dropped, or told to, so that nobody is forgotten whatever becomes of the caller.
#[derive(Debug, Default)]
pub struct Afterwards(Vec<Waker>);

impl Afterwards {
    /// Nobody.
    pub const fn new() -> Afterwards {
        Afterwards(Vec::new())
    }

    /// One more.
    pub fn push(&mut self, waker: Waker) {
        self.0.push(waker);
    }

    /// Those of another, behind its own.
    pub fn append(&mut self, other: &mut Afterwards) {
        self.0.append(&mut other.0);
    }

    /// Wakes them now, in the order in which they came.
    pub fn wake(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }

    /// Does something that gives answers. The connections of this process whose questions they are see them at once if they run, but those that sleep are woken
    /// [afterwards](Self::wake). Others who wait for an answer are woken as ever.
    pub fn hold<R>(&mut self, gives_answers: impl FnOnce() -> R) -> R {
        // The vectors change places, so that nothing is allocated for it.
        let outer = HELD.replace(Some(std::mem::take(&mut self.0)));
        let _back = Back { into: self, outer };
        gives_answers()
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        self.wake();
    }
}

/// Ends a [`hold`](Afterwards::hold), also when it panics.
struct Back<'a> {
    into: &'a mut Afterwards,
    outer: Option<Vec<Waker>>,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.into.0 = HELD.replace(self.outer.take()).unwrap_or_default();
    }
}

/// Wakes a connection's task, or leaves it to whoever [holds](Afterwards::hold) this thread's wakes.
pub(crate) fn wake_or_hold(task: Waker) {
    let mut task = Some(task);
    let hold = |held: &RefCell<Option<Vec<Waker>>>| {
        if let Some(held) = &mut *held.borrow_mut() {
            held.extend(task.take());
        }
    };
    // A thread that ends, and has given up its thread-locals, holds nothing.
    HELD.try_with(hold).unwrap_or_default();
    // Not within the borrow: whoever is woken may give answers too.
    if let Some(task) = task {
        task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counted() -> (Arc<Counted>, Waker) {
        let counted = Arc::new(Counted::default());
        (Arc::clone(&counted), Waker::from(counted))
    }

    fn times(counted: &Counted) -> u32 {
        counted.0.load(Ordering::SeqCst)
    }

    /// Held wakes come when they are told to, or with the drop, each once; outside of it a wake is a wake.
    #[test]
    fn who_is_held_is_woken_afterwards() {
        let (count, waker) = counted();
        let mut afterwards = Afterwards::new();
        for told in [true, false] {
            let before = times(&count);
            assert_eq!(afterwards.hold(|| (wake_or_hold(waker.clone()), 7).1), 7);
            assert_eq!(times(&count), before);
            if told {
                afterwards.wake();
            } else {
                drop(std::mem::take(&mut afterwards));
            }
            assert_eq!(times(&count), before + 1);
            wake_or_hold(waker.clone());
            assert_eq!(times(&count), before + 2, "nobody holds");
        }
    }

    /// A panic takes no wake with it, and does not hold later ones.
    #[test]
    fn a_panic_forgets_nobody() {
        let (count, waker) = counted();
        let mut afterwards = Afterwards::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            afterwards.hold(|| {
                wake_or_hold(waker.clone());
                panic!("as it happens");
            })
        }));
        assert!(panicked.is_err());
        wake_or_hold(waker.clone());
        assert_eq!(times(&count), 1, "it holds no longer");
        drop(afterwards);
        assert_eq!(times(&count), 2);
    }

    /// One within another: each has its own, and what was in it before.
    #[test]
    fn holds_nest() {
        let (mut outer, mut inner) = (Afterwards::new(), Afterwards::new());
        let [first, second, third] = [(); 3].map(|()| counted());
        inner.push(third.1.clone());
        outer.hold(|| {
            wake_or_hold(first.1.clone());
            inner.hold(|| wake_or_hold(second.1.clone()));
            wake_or_hold(first.1.clone());
        });
        inner.wake();
        assert_eq!([&first, &second, &third].map(|(count, _)| times(count)), [0, 1, 1]);
        inner.append(&mut outer);
        inner.wake();
        assert_eq!(times(&first.0), 2);
    }
}
