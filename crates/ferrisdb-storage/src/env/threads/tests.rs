use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

/// Long enough for any thread on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Call<F>(F);

impl<F: FnMut() -> Step + Send + 'static> Job for Call<F> {
    fn step(&mut self) -> Step {
        self.0()
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

/// A job runs on a thread that has its name, without any wake, until it is done; then the thread is gone.
#[test]
fn a_job_has_a_named_thread_until_it_is_done() {
    let spawner = ThreadSpawner::new();
    let (sender, receiver) = mpsc::channel();
    let mut left = 3;
    spawner.spawn(
        "flush",
        Box::new(Call(move || {
            sender.send(thread::current().name().map(str::to_owned)).unwrap();
            left -= 1;
            if left == 0 { Step::Done } else { Step::Again }
        })),
    );
    let names: Vec<_> = std::iter::from_fn(|| receiver.recv_timeout(PATIENCE).ok()).collect();
    assert_eq!(names, vec![Some("flush".to_owned()); 3]);
    wait_until("the thread ends", || spawner.live_jobs() == 0);
}

/// No wake is lost: each of many, sent at moments of every kind, is followed by a step that sees what came before it.
#[test]
fn no_wake_is_lost() {
    let spawner = ThreadSpawner::new();
    let (asked, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (input, output) = (Arc::clone(&asked), Arc::clone(&answered));
    let waker = spawner.spawn(
        "echo",
        Box::new(Call(move || {
            output.store(input.load(Ordering::Relaxed), Ordering::Relaxed);
            Step::Wait
        })),
    );
    for number in 1..=20_000 {
        asked.store(number, Ordering::Relaxed);
        waker.wake_by_ref();
        wait_until("the job steps after the wake", || answered.load(Ordering::Relaxed) == number);
    }
}

/// A wake during a step counts even if the step uses up the thread's park token.
#[test]
fn a_wake_survives_a_step_that_parks() {
    let spawner = ThreadSpawner::new();
    let (sender, receiver) = mpsc::channel();
    let (in_step, go_on) = (mpsc::channel(), mpsc::channel::<()>());
    let mut steps = 0;
    let waker = spawner.spawn(
        "a",
        Box::new(Call(move || {
            steps += 1;
            if steps == 1 {
                in_step.0.send(()).unwrap();
                go_on.1.recv().unwrap();
                thread::park_timeout(Duration::ZERO);
            }
            sender.send(steps).unwrap();
            Step::Wait
        })),
    );
    in_step.1.recv_timeout(PATIENCE).unwrap();
    waker.wake();
    go_on.0.send(()).unwrap();
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok(1));
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok(2), "the wake during the first step was lost");
}

/// A timed wait ends by itself, and earlier by a wake.
#[test]
fn a_timed_wait_ends_by_time_or_wake() {
    let spawner = ThreadSpawner::new();
    let (sender, receiver) = mpsc::channel();
    let mut waits = vec![Duration::from_secs(3600), Duration::from_millis(5)];
    let waker = spawner.spawn(
        "pacer",
        Box::new(Call(move || {
            sender.send(()).unwrap();
            waits.pop().map_or(Step::Done, Step::WaitFor)
        })),
    );
    receiver.recv_timeout(PATIENCE).unwrap();
    receiver.recv_timeout(PATIENCE).expect("five milliseconds pass");
    waker.wake();
    receiver.recv_timeout(PATIENCE).expect("the wake ends the hour");
}

/// A panic in a step ends that job, with its drop, and nothing hangs: not its wakers, not other jobs, not the spawner's
/// drop.
#[test]
fn a_panicking_job_is_dropped() {
    struct Dropped(mpsc::Sender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _gone_is_fine = self.0.send(());
        }
    }
    let spawner = ThreadSpawner::new();
    let (sender, receiver) = mpsc::channel();
    let dropped = Dropped(sender);
    let waker = spawner.spawn(
        "bad",
        Box::new(Call(move || {
            let _part_of_the_job = &dropped;
            panic!("planted: this message in the test's output is expected")
        })),
    );
    receiver.recv_timeout(PATIENCE).expect("the job is dropped");
    wait_until("the thread ends", || spawner.live_jobs() == 0);
    waker.wake();
    let (sender, receiver) = mpsc::channel();
    spawner.spawn(
        "good",
        Box::new(Call(move || {
            sender.send(()).unwrap();
            Step::Done
        })),
    );
    receiver.recv_timeout(PATIENCE).expect("other jobs run");
    drop(spawner);
}

/// Dropping the spawner ends waiting jobs and waits for their threads: none is left behind.
#[test]
fn dropping_the_spawner_joins_all_threads() {
    let spawner = ThreadSpawner::new();
    let alive = Arc::new(());
    for step in [Step::Wait, Step::WaitFor(Duration::from_secs(3600)), Step::Again] {
        let part = Arc::clone(&alive);
        spawner.spawn(
            "idle",
            Box::new(Call(move || {
                let _part_of_the_job = &part;
                step
            })),
        );
    }
    assert_eq!(spawner.live_jobs(), 3);
    drop(spawner);
    assert_eq!(Arc::strong_count(&alive), 1);
}

/// The last handle may go inside a job: its thread does not wait for itself.
#[test]
fn a_job_may_drop_the_spawner() {
    let spawner = Arc::new(ThreadSpawner::new());
    let (sender, receiver) = mpsc::channel();
    let (give, take) = mpsc::channel::<Arc<ThreadSpawner>>();
    spawner.spawn(
        "last",
        Box::new(Call(move || {
            drop(take.recv().unwrap());
            sender.send(()).unwrap();
            Step::Done
        })),
    );
    give.send(spawner).unwrap();
    receiver.recv_timeout(PATIENCE).expect("the drop returns");
}

/// A blocked caller sleeps until a job wakes it.
#[test]
fn block_on_waits_for_a_job() {
    let spawner = ThreadSpawner::new();
    for _ in 0..200 {
        let shared: Arc<Mutex<(bool, Option<Waker>)>> = Arc::default();
        let state = Arc::clone(&shared);
        spawner.spawn(
            "opener",
            Box::new(Call(move || {
                let mut state = state.lock().unwrap();
                state.0 = true;
                if let Some(waker) = state.1.take() {
                    waker.wake();
                }
                Step::Done
            })),
        );
        let future = std::future::poll_fn(|context| {
            let mut state = shared.lock().unwrap();
            state.1 = Some(context.waker().clone());
            if state.0 { Poll::Ready(()) } else { Poll::Pending }
        });
        spawner.block_on(std::pin::pin!(future));
    }
}
