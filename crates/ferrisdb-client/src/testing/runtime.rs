//! [`TestRuntime`]: futures on one thread, in an order that is always the same, on a clock that moves only when nothing else can.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Clock, ManualClock, Random, Runtime, SplitMix64};

pub(crate) struct TestRuntime {
    clock: ManualClock,
    state: Arc<Mutex<State>>,
}

struct State {
    random: SplitMix64,
    next: u64,
    tasks: BTreeMap<u64, (String, BoxFuture<()>)>,
    timers: BTreeMap<(Duration, u64), Waker>,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl TestRuntime {
    pub(crate) fn new(seed: u64) -> TestRuntime {
        let state = State { random: SplitMix64::new(seed), next: 0, tasks: BTreeMap::new(), timers: BTreeMap::new() };
        TestRuntime { clock: ManualClock::new(), state: Arc::new(Mutex::new(state)) }
    }

    /// Runs `future` and all tasks until it is done. When nothing can go on the clock moves to the next timer.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&flag));
            if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return result;
            }
            self.run_tasks(&waker);
            if flag.0.load(Ordering::SeqCst) {
                continue;
            }
            assert!(self.advance_to_timer(), "nothing can go on, and the future is not ready");
        }
    }

    /// Runs all tasks until none can go on without time passing.
    pub(crate) fn run_until_idle(&self) {
        loop {
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            self.run_tasks(&Waker::from(Arc::clone(&flag)));
            if !flag.0.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Lets so much time pass, with everything that happens in it.
    pub(crate) fn run_for(&self, duration: Duration) {
        let end = self.clock.now() + duration;
        loop {
            self.run_until_idle();
            let next = self.lock().timers.keys().next().map(|(deadline, _)| *deadline);
            match next {
                Some(deadline) if deadline <= end => assert!(self.advance_to_timer()),
                _ => break,
            }
        }
        self.clock.advance(end.saturating_sub(self.clock.now()));
        self.run_until_idle();
    }

    /// Names of the tasks that are not done.
    pub(crate) fn tasks(&self) -> Vec<String> {
        self.lock().tasks.values().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn timer_count(&self) -> usize {
        self.lock().timers.len()
    }

    fn run_tasks(&self, waker: &Waker) {
        let numbers: Vec<u64> = self.lock().tasks.keys().copied().collect();
        for number in numbers {
            // Tasks are few: each is polled in every round.
            let Some((name, mut task)) = self.lock().tasks.remove(&number) else { continue };
            match task.as_mut().poll(&mut Context::from_waker(waker)) {
                Poll::Ready(()) => waker.wake_by_ref(),
                Poll::Pending => {
                    self.lock().tasks.insert(number, (name, task));
                }
            }
        }
    }

    fn advance_to_timer(&self) -> bool {
        let due = {
            let mut state = self.lock();
            let Some((&(deadline, _), _)) = state.timers.first_key_value() else { return false };
            self.clock.advance(deadline.saturating_sub(self.clock.now()));
            let later = state.timers.split_off(&(self.clock.now(), u64::MAX));
            std::mem::replace(&mut state.timers, later)
        };
        due.into_values().for_each(Waker::wake);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }
}

impl Clock for TestRuntime {
    fn now(&self) -> Duration {
        self.clock.now()
    }
}

impl Runtime for TestRuntime {
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let mut state = self.lock();
        state.next += 1;
        let slot = (self.clock.now() + duration, state.next);
        state.timers.insert(slot, Waker::noop().clone());
        Box::pin(Sleep { state: Arc::clone(&self.state), slot })
    }

    fn spawn(&self, name: &str, task: BoxFuture<()>) {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        state.tasks.insert(number, (name.to_owned(), task));
    }

    fn random(&self) -> u64 {
        self.lock().random.next_u64()
    }
}

struct Sleep {
    state: Arc<Mutex<State>>,
    slot: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().expect("no test panics with it");
        match state.timers.get_mut(&self.slot) {
            // It was taken out when it was due.
            None => Poll::Ready(()),
            Some(waker) => {
                waker.clone_from(context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock() {
            state.timers.remove(&self.slot);
        }
    }
}
