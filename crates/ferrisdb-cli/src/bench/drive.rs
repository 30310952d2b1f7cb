//! Clients that run transactions, closed or open loop, and what is counted of it.
//!
//! Clients are tasks on one current-thread runtime and share one connection, as those of a program do.
//!
//! - Closed loop: a client begins the next transaction when the last one has ended. Latency counts from its beginning.
//! - Open loop: transactions are due at a fixed rate, and the next free client takes the next one. Latency counts from when it was
//!   *due*, so that a database that stalls is not excused from what it would have been asked meanwhile.
//!
//! Latency covers all attempts of a transaction. What ends during the warm-up is not counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb::{Code, Database};
use ferrisdb_core::SplitMix64;
use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::data::Inserts;
use super::workload::{Ended, Plan, Work};

/// The longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(120);
/// Tokio's timers may come so late; an idle client's latency does not count that.
const TIMER_SLACK: Duration = Duration::from_millis(2);
/// In an embedded database a transaction may end without a wait; a client lets the others go on after so many.
const TRANSACTIONS_PER_TURN: u32 = 16;

/// How clients are driven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Transactions in flight at most.
    pub(crate) clients: u32,
    /// Transactions a second of an open loop; `None`: a closed one.
    pub(crate) rate: Option<u64>,
    pub(crate) warm_up: Duration,
    /// After the warm-up.
    pub(crate) measured: Duration,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Transactions that ended well while it was measured; so are the next three.
    pub(crate) transactions: u64,
    pub(crate) reads: u64,
    /// Attempts that failed because of what another transaction wrote.
    pub(crate) conflicts: u64,
    /// Attempts that were made again, for whatever reason.
    pub(crate) retries: u64,
    /// Microseconds.
    pub(crate) latencies: Histogram<u64>,
    /// All that committed, the warm-up included.
    pub(crate) commits: u64,
    /// Those of which nobody knows, the warm-up included.
    pub(crate) unknown: u64,
    /// Of an open loop: transactions that were due before the end and never began.
    pub(crate) not_begun: u64,
}

impl Counts {
    fn new() -> Counts {
        let max = u64::try_from(LATENCY_MAX.as_micros()).expect("two minutes of microseconds fit");
        Counts {
            transactions: 0,
            reads: 0,
            conflicts: 0,
            retries: 0,
            latencies: Histogram::new_with_bounds(1, max, 3).expect("these bounds are valid"),
            commits: 0,
            unknown: 0,
            not_begun: 0,
        }
    }
}

/// What the clients share.
struct Shared {
    work: Work,
    database: Database,
    load: Load,
    begin: Instant,
    state: Mutex<State>,
}

struct State {
    inserts: Inserts,
    counts: Counts,
    /// The next transaction of an open loop.
    ticket: u64,
    /// The first failure; everyone stops at it.
    failed: Option<Ended>,
}

/// Runs the clients to the end.
pub(crate) async fn drive(work: Work, database: &Database, load: Load) -> Result<(Work, Counts), Ended> {
    let state = Mutex::new(State { inserts: Inserts::new(work.count), counts: Counts::new(), ticket: 0, failed: None });
    let shared = Arc::new(Shared { work, database: database.clone(), load, begin: Instant::now(), state });
    let clients: Vec<_> =
        (0..load.clients).map(|number| tokio::spawn(Arc::clone(&shared).client(u64::from(number)))).collect();
    for client in clients {
        if let Err(error) = client.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    let Ok(shared) = Arc::try_unwrap(shared) else { unreachable!("the clients have ended") };
    let mut state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failed) = state.failed {
        return Err(failed);
    }
    if let Some(rate) = load.rate {
        state.counts.not_begun = due_by(rate, load.warm_up + load.measured).saturating_sub(state.ticket);
    }
    Ok((shared.work, state.counts))
}

/// How many transactions are due within `time`.
fn due_by(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// When transaction `ticket` is due, from the beginning.
fn due_at(rate: u64, ticket: u64) -> Duration {
    Duration::from_nanos(u64::try_from(u128::from(ticket) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> Instant {
        self.begin + self.load.warm_up + self.load.measured
    }

    async fn client(self: Arc<Self>, number: u64) {
        let mut random = SplitMix64::new(self.load.seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut turn = 0;
        while let Some(begin) = self.next_begin().await {
            let plan = {
                let mut state = self.lock();
                self.work.plan(&mut random, &mut state.inserts)
            };
            if let Err(ended) = self.transact(begin, &plan).await {
                self.lock().failed.get_or_insert(ended);
                return;
            }
            turn += 1;
            if turn % TRANSACTIONS_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// When the next transaction begins to count; `None` at the end.
    async fn next_begin(&self) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.end() {
            return None;
        }
        let ticket = {
            let mut state = self.lock();
            if state.failed.is_some() {
                return None;
            }
            let Some(rate) = self.load.rate else { return Some(now) };
            let due = self.begin + due_at(rate, state.ticket);
            if due >= self.end() {
                return None;
            }
            state.ticket += 1;
            due
        };
        if ticket <= now {
            return Some(ticket);
        }
        tokio::time::sleep_until(ticket).await;
        Some(Instant::now().min(ticket + TIMER_SLACK))
    }

    /// One transaction, with all its attempts.
    async fn transact(&self, begin: Instant, plan: &Plan) -> Result<(), Ended> {
        let transaction = self.database.create_transaction();
        let (mut conflicts, mut retries) = (0, 0);
        let reads = loop {
            let error = match self.work.attempt(&transaction, plan).await {
                Ok(reads) => match transaction.commit().await {
                    Ok(()) => break Some(reads),
                    Err(error) => error,
                },
                Err(Ended::Error(error)) => error,
                Err(wrong @ Ended::Wrong(_)) => return Err(wrong),
            };
            if error.is_maybe_committed() && !plan.is_idempotent() {
                break None;
            }
            conflicts += u64::from(error.code() == Code::NotCommitted);
            retries += 1;
            transaction.on_error(error).await?;
        };
        let now = Instant::now();
        let mut state = self.lock();
        if let (Plan::Write { number, is_insert: true, .. }, Some(_)) = (plan, reads) {
            state.inserts.acknowledge(*number);
        }
        let counts = &mut state.counts;
        match reads {
            Some(_) => counts.commits += 1,
            None => counts.unknown += 1,
        }
        if now >= self.begin + self.load.warm_up && now <= self.end() {
            counts.conflicts += conflicts;
            counts.retries += retries;
            if let Some(reads) = reads {
                counts.transactions += 1;
                counts.reads += reads;
                counts.latencies.saturating_record(u64::try_from((now - begin).as_micros()).unwrap_or(u64::MAX));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::Zipf;

    use super::super::data::Rows;
    use super::super::workload::Workload;
    use super::*;

    fn run(load: Load) -> Counts {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let database = Database::open_in_memory().unwrap();
            let rows = Rows::new(b"p/", 100, 1);
            let work =
                Work { workload: Workload::CommitOnly, rows, count: 100, zipf: Zipf::new(100, Zipf::YCSB_THETA) };
            drive(work, &database, load).await.expect("it runs").1
        })
    }

    const LOAD: Load = Load {
        clients: 8,
        rate: None,
        warm_up: Duration::from_millis(100),
        measured: Duration::from_millis(300),
        seed: 1,
    };

    /// Runs for as long as it takes that something ends in the warm-up, and something after it: on a busy machine a thread may not run for long.
    fn run_until_both(load: Load) -> Counts {
        for factor in 1..=16 {
            let counts = run(Load { warm_up: factor * load.warm_up, measured: factor * load.measured, ..load });
            // What ends too late does not count either, and that is one of each client at most.
            if counts.transactions > 0 && counts.commits > counts.transactions + u64::from(load.clients) {
                return counts;
            }
        }
        panic!("nothing was done in the warm-up, or nothing after it");
    }

    /// What ends during the warm-up is done and not counted.
    #[test]
    fn the_warm_up_does_not_count() {
        let counts = run_until_both(Load { warm_up: Duration::from_millis(400), ..LOAD });
        assert_eq!(counts.latencies.len(), counts.transactions);
    }

    /// An open loop begins as many transactions as are due, however fast the database is.
    #[test]
    fn an_open_loop_keeps_its_rate() {
        let counts = run(Load { rate: Some(500), ..LOAD });
        assert_eq!(counts.commits + counts.not_begun, 200, "500 a second for 0.4 s: {counts:?}");
        assert_eq!(due_by(500, due_at(500, 200)), 200);
    }

    /// A transaction that waited for a free client is as late as it is, though it took no time itself.
    #[test]
    fn an_open_loop_counts_from_when_it_was_due() {
        let counts = run_until_both(Load { rate: Some(10_000_000), clients: 1, ..LOAD });
        assert!(counts.not_begun > 0, "{counts:?}");
        // By the time the measurement begins, everything is at least so late.
        assert!(counts.latencies.min() > 50_000, "{} us", counts.latencies.min());
    }
}
