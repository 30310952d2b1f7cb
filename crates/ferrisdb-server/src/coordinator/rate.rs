//! How many transactions may begin: [`Rate`], so that storage that cannot keep up slows clients down before memory or disk runs out.
//!
//! What is measured is the **backlog**: bytes that are durable in the log and not yet applied by the storage server. Below a low mark nothing is
//! limited and nothing is counted. Above it transactions of batch priority wait; those of default priority begin at a rate that falls from what it
//! was to almost nothing at the high mark. Immediate ones never wait. Deterministic: time and lag are parameters.

use std::time::Duration;

use ferrisdb_rpc::api::Priority;

/// Where limiting begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateOptions {
    /// Bytes of backlog up to which nothing is limited. Default: 64 MiB.
    pub backlog_low_bytes: u64,
    /// Bytes of backlog at which almost nothing begins. Default: 512 MiB.
    pub backlog_high_bytes: u64,
    /// Beginning transactions that may wait; more are refused. Default: 100,000.
    pub waiting: usize,
    /// How long one of batch priority waits before it is refused. Default: 5 s.
    pub batch_wait: Duration,
}

impl Default for RateOptions {
    fn default() -> RateOptions {
        RateOptions {
            backlog_low_bytes: 64 << 20,
            backlog_high_bytes: 512 << 20,
            waiting: 100_000,
            batch_wait: Duration::from_secs(5),
        }
    }
}

/// How far storage is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Bytes durable in the log that are not applied yet.
    pub backlog_bytes: u64,
    /// Storage takes no writes at the moment: its own flushes or compactions are behind.
    pub is_stalled: bool,
    /// The process whose storage it is. 0: the only one.
    pub process: u64,
}

/// Why transactions wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// They do not.
    Nothing,
    /// Storage applies more slowly than commits come.
    StorageLag,
    /// Storage waits for its flushes or compactions.
    StorageStalled,
}

impl Reason {
    /// Its name in the status document.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Nothing => "workload",
            Reason::StorageLag => "storage_lag",
            Reason::StorageStalled => "storage_write_stall",
        }
    }

    /// What it means, in a sentence.
    pub fn message(self) -> &'static str {
        match self {
            Reason::Nothing => "Nothing limits how many transactions begin.",
            Reason::StorageLag => "Storage applies changes more slowly than they are committed.",
            Reason::StorageStalled => {
                "Storage waits for flushes or compactions; the disk is too slow for the load, or full."
            }
        }
    }
}

/// The least rate of default priority: so that whoever waits learns that the database lives.
const RATE_MIN: f64 = 10.0;
/// The rate from which limiting starts if fewer were seen.
const RATE_START_MIN: f64 = 1_000.0;

/// The rate control's core.
#[derive(Debug)]
pub struct Rate {
    options: RateOptions,
    reason: Reason,
    /// Transactions a second that begin now; only while limited.
    limit: f64,
    /// What `limit` was when limiting began.
    start: f64,
    /// Transactions that may begin at once.
    tokens: f64,
    at: Duration,
    begun: u64,
    begun_before: u64,
    seen: f64,
}

impl Rate {
    /// One that limits nothing.
    pub fn new(options: RateOptions, now: Duration) -> Rate {
        Rate {
            options,
            reason: Reason::Nothing,
            limit: f64::INFINITY,
            start: 0.0,
            tokens: 0.0,
            at: now,
            begun: 0,
            begun_before: 0,
            seen: 0.0,
        }
    }

    /// Why transactions wait.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Transactions a second that may begin, if that is limited.
    pub fn limit(&self) -> Option<f64> {
        (self.reason != Reason::Nothing).then_some(self.limit)
    }

    /// Takes note of the lag, and of `begun`, the transactions that have begun in all.
    pub fn update(&mut self, now: Duration, lag: Lag, begun: u64) {
        let seconds = now.saturating_sub(self.at).as_secs_f64();
        // Counted before the lock was taken: somebody else may have told a greater number meanwhile.
        self.begun = begun;
        if seconds >= 0.1 {
            #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
            let rate = begun.saturating_sub(self.begun_before) as f64 / seconds;
            self.seen += (rate - self.seen) * 0.5;
            self.begun_before = begun;
            if self.reason != Reason::Nothing {
                // At most a tenth of a second's worth in one go.
                self.tokens = (self.tokens + self.limit * seconds).min((self.limit / 10.0).max(1.0));
            }
            self.at = now;
        }
        let (low, high) = (self.options.backlog_low_bytes, self.options.backlog_high_bytes);
        // Once limiting, it goes on until half of the low mark: no flutter.
        let from = if self.reason == Reason::Nothing { low } else { low / 2 };
        if lag.backlog_bytes <= from {
            self.reason = Reason::Nothing;
            self.limit = f64::INFINITY;
            return;
        }
        if self.reason == Reason::Nothing {
            self.start = self.seen.max(RATE_START_MIN);
            self.tokens = 0.0;
        }
        self.reason = if lag.is_stalled { Reason::StorageStalled } else { Reason::StorageLag };
        #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let room = high.saturating_sub(lag.backlog_bytes) as f64 / high.saturating_sub(low).max(1) as f64;
        self.limit = (self.start * room.min(1.0)).max(RATE_MIN);
    }

    /// Whether so many transactions may begin now; counts them if so.
    pub fn admit(&mut self, transactions: u32, priority: Priority) -> bool {
        match (self.reason, priority) {
            (Reason::Nothing, _) | (_, Priority::Immediate) => true,
            (_, Priority::Batch) => false,
            (_, Priority::Default) => {
                // A debt is allowed: a request for many is not starved by requests for one.
                let may = self.tokens >= 1.0;
                if may {
                    self.tokens -= f64::from(transactions);
                }
                may
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn lag(backlog_bytes: u64) -> Lag {
        Lag { backlog_bytes, is_stalled: false, process: 0 }
    }

    fn rate() -> Rate {
        let options = RateOptions { backlog_low_bytes: 100, backlog_high_bytes: 1100, ..RateOptions::default() };
        Rate::new(options, Duration::ZERO)
    }

    #[test]
    fn a_small_backlog_limits_nothing() {
        let mut rate = rate();
        rate.update(Duration::from_secs(1), lag(100), 5);
        assert!(rate.admit(1_000_000, Priority::Batch));
        assert_eq!((rate.reason(), rate.limit()), (Reason::Nothing, None));
    }

    /// The rate falls with the backlog and comes back; batch priority waits first, immediate never.
    #[test]
    fn the_rate_falls_as_the_backlog_grows() {
        let mut rate = rate();
        let mut limits = Vec::new();
        for (second, backlog) in [(1, 200), (2, 600), (3, 1100), (4, 5000), (5, 60), (6, 49)] {
            rate.update(Duration::from_secs(second), lag(backlog), 0);
            limits.push(rate.limit().map(|limit| limit as u64));
            assert!(rate.admit(1, Priority::Immediate));
            assert_eq!(rate.admit(1, Priority::Batch), backlog < 50);
        }
        assert_eq!(limits, [Some(900), Some(500), Some(10), Some(10), Some(1000), None]);
    }

    /// In ten seconds at ten a second, about a hundred begin, however many ask.
    #[test]
    fn no_more_begin_than_the_limit_says() {
        let mut rate = rate();
        let mut begun = 0;
        for tenth in 1..=100 {
            rate.update(Duration::from_millis(tenth * 100), lag(1100), begun);
            for _ in 0..50 {
                begun += u64::from(rate.admit(1, Priority::Default));
            }
        }
        assert!((90..=110).contains(&begun), "{begun}");
    }
}
