use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;

type Log = Arc<Mutex<Vec<String>>>;

/// A job that logs its name at each step and then does what its script says; at the end it is done.
struct Scripted {
    name: &'static str,
    log: Log,
    script: VecDeque<Step>,
}

impl Job for Scripted {
    fn step(&mut self) -> Step {
        self.log.lock().unwrap().push(self.name.to_owned());
        self.script.pop_front().unwrap_or(Step::Done)
    }
}

fn scripted(log: &Log, name: &'static str, script: &[Step]) -> Box<Scripted> {
    Box::new(Scripted { name, log: Arc::clone(log), script: script.iter().copied().collect() })
}

fn text(log: &Log) -> String {
    log.lock().unwrap().join(" ")
}

fn spawner() -> (StepSpawner, Arc<ManualClock>, Log) {
    let clock = Arc::new(ManualClock::new());
    (StepSpawner::new(Arc::clone(&clock)), clock, Log::default())
}

/// A job made of a closure.
struct Call<F>(F);

impl<F: FnMut() -> Step + Send + 'static> Job for Call<F> {
    fn step(&mut self) -> Step {
        self.0()
    }
}

/// A future that is ready once `ready` is set; whoever sets it wakes `waker`.
#[derive(Default)]
struct Gate {
    ready: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Gate {
    fn open(&self) {
        self.ready.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waker.lock().unwrap().take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        std::future::poll_fn(|context| {
            *self.waker.lock().unwrap() = Some(context.waker().clone());
            if self.ready.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await
    }
}

fn panic_text(run: impl FnOnce()) -> String {
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

/// Jobs take turns in the order in which they became ready, and a job that is done is dropped.
#[test]
fn jobs_take_turns() {
    let (spawner, _, log) = spawner();
    spawner.spawn("a", scripted(&log, "a", &[Step::Again, Step::Again]));
    spawner.spawn("b", scripted(&log, "b", &[Step::Again]));
    assert_eq!(spawner.run_until_idle(), 5);
    assert_eq!(text(&log), "a b a b a");
    assert!(spawner.jobs().is_empty());
}

/// A waiting job is called again only after a wake, once for any number of wakes.
#[test]
fn a_wake_readies_a_waiting_job() {
    let (spawner, _, log) = spawner();
    let waker = spawner.spawn("a", scripted(&log, "a", &[Step::Wait, Step::Wait, Step::Wait]));
    spawner.run_until_idle();
    assert_eq!(text(&log), "a");
    waker.wake_by_ref();
    waker.wake_by_ref();
    spawner.run_until_idle();
    assert_eq!(text(&log), "a a");
}

/// A wake that comes while the step runs is not lost, though the step then says that it has nothing to do.
#[test]
fn a_wake_during_the_step_is_not_lost() {
    for wait in [Step::Wait, Step::WaitFor(Duration::from_secs(9))] {
        let (spawner, _, _) = spawner();
        let own_waker: Arc<Mutex<Option<Waker>>> = Arc::default();
        let steps = Arc::new(AtomicU64::new(0));
        let (waker, count) = (Arc::clone(&own_waker), Arc::clone(&steps));
        let job = Call(move || {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                waker.lock().unwrap().as_ref().unwrap().wake_by_ref();
            }
            wait
        });
        *own_waker.lock().unwrap() = Some(spawner.spawn("a", Box::new(job)));
        spawner.run_until_idle();
        assert_eq!(steps.load(Ordering::SeqCst), 2, "{wait:?}");
    }
}

/// A step may spawn jobs, which run after those that are ready already.
#[test]
fn a_step_may_spawn() {
    let (spawner, _, log) = spawner();
    let spawner = Arc::new(spawner);
    let (inner, inner_log) = (Arc::downgrade(&spawner), Arc::clone(&log));
    let parent = Call(move || {
        inner.upgrade().unwrap().spawn("child", scripted(&inner_log, "child", &[]));
        Step::Done
    });
    spawner.spawn("parent", Box::new(parent));
    spawner.spawn("b", scripted(&log, "b", &[]));
    spawner.run_until_idle();
    assert_eq!(text(&log), "b child");
}

/// Time moves only when nothing else can run, and then exactly to the next timer; equal times go in the order of
/// spawning.
#[test]
fn time_jumps_to_the_earliest_timer() {
    let (spawner, clock, log) = spawner();
    let ms = Duration::from_millis;
    spawner.spawn("slow", scripted(&log, "slow", &[Step::WaitFor(ms(20))]));
    spawner.spawn("fast", scripted(&log, "fast", &[Step::WaitFor(ms(10)), Step::WaitFor(ms(10))]));
    spawner.run_until_idle();
    assert_eq!((clock.now(), text(&log).as_str()), (ms(0), "slow fast"));
    spawner.run_for(ms(15));
    assert_eq!((clock.now(), text(&log).as_str()), (ms(15), "slow fast fast"));

    // The caller waits for the job that runs last.
    let gate = Arc::new(Gate::default());
    let opener = Arc::clone(&gate);
    let mut is_first = true;
    let last = Call(move || {
        if std::mem::take(&mut is_first) {
            return Step::WaitFor(ms(30));
        }
        opener.open();
        Step::Done
    });
    spawner.spawn("last", Box::new(last));
    spawner.block_on(std::pin::pin!(gate.wait()));
    assert_eq!(clock.now(), ms(45));
    assert_eq!(
        text(&log),
        "slow fast fast slow fast",
        "at 20 ms the job spawned first goes first, then at 25 the other"
    );
}

/// A clock that the test moved itself fires timers as well, and a woken job's timer is gone.
#[test]
fn timers_follow_the_shared_clock_and_end_with_a_wake() {
    let (spawner, clock, log) = spawner();
    let long = Step::WaitFor(Duration::from_secs(1));
    spawner.spawn("a", scripted(&log, "a", &[long, Step::Wait]));
    let waker = spawner.spawn("b", scripted(&log, "b", &[long, Step::Wait]));
    spawner.run_until_idle();
    waker.wake();
    spawner.run_until_idle();
    assert_eq!(text(&log), "a b b");
    clock.advance(Duration::from_secs(1));
    spawner.run_until_idle();
    assert_eq!(text(&log), "a b b a", "b was not called a second time by its old timer");
}

/// A caller that waits for something that no job will bring is told so, with the names of those that wait.
#[test]
fn a_deadlock_names_the_waiting_jobs() {
    let (spawner, _, log) = spawner();
    spawner.spawn("flush", scripted(&log, "flush", &[Step::Wait]));
    spawner.spawn("compaction", scripted(&log, "compaction", &[Step::Wait]));
    let gate = Gate::default();
    let message = panic_text(|| spawner.block_on(std::pin::pin!(gate.wait())));
    assert_eq!(message, "deadlock: a caller waits, and no job can go on; waiting jobs: flush, compaction");
}

/// A job that goes on forever on timers does not hide a deadlock: an hour of simulated time is the end.
#[test]
fn an_endless_timer_does_not_hide_a_deadlock() {
    let (spawner, clock, _) = spawner();
    spawner.spawn("ticker", Box::new(Call(|| Step::WaitFor(Duration::from_secs(1)))));
    let gate = Gate::default();
    let message = panic_text(|| spawner.block_on(std::pin::pin!(gate.wait())));
    assert!(message.ends_with("waiting jobs: ticker"), "{message}");
    assert_eq!(clock.now(), BLOCK_ON_TIME_MAX);
}

/// Steps inside steps would be an order that no thread could produce: that is a mistake in a job, and said so.
#[test]
fn a_step_that_blocks_panics() {
    let (spawner, _, _) = spawner();
    let spawner = Arc::new(spawner);
    let inner = Arc::downgrade(&spawner);
    let job = Call(move || {
        inner.upgrade().unwrap().block_on(std::pin::pin!(async {}));
        Step::Done
    });
    spawner.spawn("a", Box::new(job));
    let message = panic_text(|| {
        spawner.run_until_idle();
    });
    assert_eq!(message, "a job's step must not run other steps or block");
}

/// A job that panics is gone; the panic reaches the caller, and the other jobs go on.
#[test]
fn a_panic_ends_only_its_job() {
    let (spawner, _, log) = spawner();
    let waker = spawner.spawn("bad", Box::new(Call(|| panic!("planted"))));
    spawner.spawn("good", scripted(&log, "good", &[]));
    assert_eq!(panic_text(|| assert!(spawner.step_one())), "planted");
    assert_eq!(spawner.jobs(), ["good"]);
    waker.wake();
    spawner.run_until_idle();
    assert_eq!(text(&log), "good");
}

/// Dropping the jobs runs their `Drop` and nothing else, even where that wakes other jobs, and works from inside a
/// step.
#[test]
fn dropped_jobs_never_step_again() {
    struct WakesAtDrop(Waker, Arc<AtomicU64>);
    impl Drop for WakesAtDrop {
        fn drop(&mut self) {
            self.0.wake_by_ref();
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (spawner, _, log) = spawner();
    let drops = Arc::new(AtomicU64::new(0));
    let other = spawner.spawn("other", scripted(&log, "other", &[Step::Wait]));
    let wakes = WakesAtDrop(other.clone(), Arc::clone(&drops));
    spawner
        .spawn("a", Box::new(Call(move || if wakes.1.load(Ordering::SeqCst) == 0 { Step::Wait } else { Step::Done })));
    spawner.run_until_idle();
    spawner.drop_jobs();
    other.wake();
    assert_eq!(spawner.run_until_idle(), 0);
    assert_eq!((drops.load(Ordering::SeqCst), text(&log).as_str()), (1, "other"));

    let spawner = Arc::new(spawner);
    let inner = Arc::downgrade(&spawner);
    spawner.spawn(
        "crash",
        Box::new(Call(move || {
            inner.upgrade().unwrap().drop_jobs();
            Step::Again
        })),
    );
    assert_eq!(spawner.run_until_idle(), 1);
    assert!(spawner.jobs().is_empty());
}

/// A seed is an interleaving: equal seeds give equal ones, and over a few seeds many are seen.
#[test]
fn a_seed_decides_the_order() {
    let run = |seed| {
        let log = Log::default();
        let spawner = StepSpawner::with_seed(Arc::new(ManualClock::new()), seed);
        for name in ["a", "b", "c"] {
            spawner.spawn(name, scripted(&log, name, &[Step::Again]));
        }
        spawner.run_until_idle();
        text(&log)
    };
    let seen: BTreeSet<String> = (0..64).map(run).collect();
    assert!(seen.len() > 20, "only {} of the 90 orders were seen", seen.len());
    for seed in 0..64 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// With a seed, a woken caller sometimes goes before ready jobs and sometimes after: both can happen on threads.
#[test]
fn a_seed_decides_when_the_caller_goes_on() {
    let run = |seed| {
        let log = Log::default();
        let spawner = StepSpawner::with_seed(Arc::new(ManualClock::new()), seed);
        spawner.spawn("a", scripted(&log, "a", &[Step::Again]));
        spawner.block_on(std::pin::pin!(async {}));
        text(&log)
    };
    let seen: BTreeSet<String> = (0..32).map(run).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["", "a", "a a"]);
}
