//! How many transactions may begin: [`Rate`], so that what cannot keep up slows clients down before memory or disk runs out.
//!
//! Three things are measured. The **backlog**: bytes that are durable in the log and not yet applied by the storage server. The **log's queue**: bytes that its replicas keep,
//! because some storage server does not have them in its tables yet; that one may be silent, full or just begun, and have no backlog that anybody knows. And the **free space** for
//! the log. Below a low mark nothing is limited and nothing is counted. Above it transactions of batch priority wait; those of default priority begin at a rate that falls
//! from what it was to almost nothing at the high mark. Immediate ones never wait. What is nearest to its high mark decides, and is the reason that is told. Deterministic: time and
//! queues are parameters.

use std::time::Duration;

use ferrisdb_rpc::api::Priority;

/// Where limiting begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateOptions {
    /// Bytes of backlog up to which nothing is limited. Default: 64 MiB.
    pub backlog_low_bytes: u64,
    /// Bytes of backlog at which almost nothing begins. Default: 512 MiB.
    pub backlog_high_bytes: u64,
    /// Bytes of its log that a cluster keeps up to which nothing is limited. Default: 4 GiB, what 60 MB/s write in the minute after which a silent process is gone.
    pub log_low_bytes: u64,
    /// Bytes of the log at which almost nothing begins. Default: 8 GiB.
    pub log_high_bytes: u64,
    /// Bytes that are free for the log down to which nothing is limited. On a small disk an eighth of it, if that is less. Default: 512 MiB, five seconds of 100 MB/s.
    pub free_low_bytes: u64,
    /// Free bytes at which almost nothing begins. On a small disk a thirty-second of it. Default: 128 MiB, eight segments of the log.
    pub free_least_bytes: u64,
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
            log_low_bytes: 4 << 30,
            log_high_bytes: 8 << 30,
            free_low_bytes: 512 << 20,
            free_least_bytes: 128 << 20,
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

/// What the log keeps, and what it has room for. Of the voters those count that make the majority that is best off: the log goes on with them, whatever becomes of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQueue {
    /// Bytes of the log that a voter has, at most, in that majority.
    pub bytes: u64,
    /// Bytes that are free for the log, at least, in that majority.
    pub free_bytes: u64,
    /// Bytes that the disk has in all that has the fewest free.
    pub disk_bytes: u64,
    /// The process with so few.
    pub fullest: u64,
}

impl Default for LogQueue {
    /// Nothing to limit anybody for.
    fn default() -> LogQueue {
        LogQueue { bytes: 0, free_bytes: u64::MAX, disk_bytes: u64::MAX, fullest: 0 }
    }
}

/// All that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queues {
    /// How far storage is behind.
    pub storage: Lag,
    /// How the log is.
    pub log: LogQueue,
}

impl From<Lag> for Queues {
    /// Where the log cannot be longer than what storage has not taken.
    fn from(storage: Lag) -> Queues {
        Queues { storage, log: LogQueue::default() }
    }
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
    /// The log has to keep more and more, because a storage server does not make durable what it is sent.
    LogQueue,
    /// The disks of the log have little space left.
    LogSpace,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 5] =
        [Reason::Nothing, Reason::StorageLag, Reason::StorageStalled, Reason::LogQueue, Reason::LogSpace];

    fn is_about_storage(self) -> bool {
        matches!(self, Reason::StorageLag | Reason::StorageStalled)
    }

    /// Its name in the status document.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Nothing => "workload",
            Reason::StorageLag => "storage_lag",
            Reason::StorageStalled => "storage_write_stall",
            Reason::LogQueue => "log_queue",
            Reason::LogSpace => "log_free_space",
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
            Reason::LogQueue => "The log keeps much that a storage server has not made durable.",
            Reason::LogSpace => {
                "The disks of so many of the log's voters have little space left that no majority is without them."
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

    /// Takes note of the queues, and of `begun`, the transactions that have begun in all.
    pub fn update(&mut self, now: Duration, queues: &Queues, begun: u64) {
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
        let Some((reason, room)) = self.tightest(queues) else {
            self.reason = Reason::Nothing;
            self.limit = f64::INFINITY;
            return;
        };
        if self.reason == Reason::Nothing {
            self.start = self.seen.max(RATE_START_MIN);
            self.tokens = 0.0;
        }
        self.reason = reason;
        self.limit = (self.start * room.min(1.0)).max(RATE_MIN);
    }

    /// What limits most, and which part is left between its marks; `None` if all is well.
    fn tightest(&self, queues: &Queues) -> Option<(Reason, f64)> {
        let RateOptions { backlog_low_bytes, backlog_high_bytes, log_low_bytes, log_high_bytes, .. } = self.options;
        let Queues { storage, log } = queues;
        // Once limiting, each goes on until half of its low mark: no flutter.
        let from = |low: u64, goes_on: bool| if goes_on { low / 2 } else { low };
        let reason = if storage.is_stalled { Reason::StorageStalled } else { Reason::StorageLag };
        let by_storage = (storage.backlog_bytes > from(backlog_low_bytes, self.reason.is_about_storage()))
            .then(|| (reason, room(storage.backlog_bytes, backlog_low_bytes, backlog_high_bytes)));
        let by_log = (log.bytes > from(log_low_bytes, self.reason == Reason::LogQueue))
            .then(|| (Reason::LogQueue, room(log.bytes, log_low_bytes, log_high_bytes)));
        let low = self.options.free_low_bytes.min(log.disk_bytes / 8);
        let least = self.options.free_least_bytes.min(log.disk_bytes / 32);
        let spare = if self.reason == Reason::LogSpace { low + low / 4 } else { low };
        // From the other side: what is missing.
        let by_space = (log.free_bytes < spare)
            .then(|| (Reason::LogSpace, room(low.saturating_sub(log.free_bytes), 0, low.saturating_sub(least))));
        [by_storage, by_log, by_space].into_iter().flatten().min_by(|(_, one), (_, other)| one.total_cmp(other))
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

/// Which part of the way from the high mark to the low one is left; more than one below that, none above.
#[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
fn room(bytes: u64, low: u64, high: u64) -> f64 {
    high.saturating_sub(bytes) as f64 / high.saturating_sub(low).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(backlog_bytes: u64) -> Queues {
        Lag { backlog_bytes, is_stalled: false, process: 0 }.into()
    }

    fn rate() -> Rate {
        let options = RateOptions {
            backlog_low_bytes: 100,
            backlog_high_bytes: 1100,
            log_low_bytes: 1000,
            log_high_bytes: 2000,
            free_low_bytes: 600,
            free_least_bytes: 100,
            ..RateOptions::default()
        };
        Rate::new(options, Duration::ZERO)
    }

    #[test]
    fn a_small_backlog_limits_nothing() {
        let mut rate = rate();
        rate.update(Duration::from_secs(1), &lag(100), 5);
        assert!(rate.admit(1_000_000, Priority::Batch));
        assert_eq!((rate.reason(), rate.limit()), (Reason::Nothing, None));
    }

    /// The rate falls with the backlog and comes back; batch priority waits first, immediate never.
    #[test]
    fn the_rate_falls_as_the_backlog_grows() {
        let mut rate = rate();
        let mut limits = Vec::new();
        for (second, backlog) in [(1, 200), (2, 600), (3, 1100), (4, 5000), (5, 60), (6, 49)] {
            rate.update(Duration::from_secs(second), &lag(backlog), 0);
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
            rate.update(Duration::from_millis(tenth * 100), &lag(1100), begun);
            for _ in 0..50 {
                begun += u64::from(rate.admit(1, Priority::Default));
            }
        }
        assert!((90..=110).contains(&begun), "{begun}");
    }

    /// The log limits as storage does, each by marks of its own; what has the least room is the reason.
    #[test]
    fn what_is_nearest_to_its_mark_is_the_reason() {
        let (mut rate, mut told) = (rate(), Vec::new());
        let log = |bytes, free_bytes| LogQueue { bytes, free_bytes, ..LogQueue::default() };
        for (backlog, log) in [
            (0, log(1000, 600)),
            (0, log(1500, 600)),
            // Storage has less room.
            (900, log(1500, 600)),
            // Storage is well again; the log still has more than it began with.
            (40, log(1500, 600)),
            (40, log(501, 600)),
            (40, log(500, 600)),
            // Space: down to the least, and some above where it began.
            (0, log(0, 350)),
            (0, log(0, 50)),
            (0, log(0, 749)),
            (0, log(0, 750)),
        ] {
            let queues = Queues { log, ..lag(backlog) };
            rate.update(Duration::from_secs(told.len() as u64 + 1), &queues, 0);
            told.push((rate.reason().name(), rate.limit().map(|limit| limit as u64)));
            assert_eq!(rate.admit(1, Priority::Batch), rate.reason() == Reason::Nothing);
        }
        assert_eq!(
            told,
            [
                ("workload", None),
                ("log_queue", Some(500)),
                ("storage_lag", Some(200)),
                ("log_queue", Some(500)),
                ("log_queue", Some(1000)),
                ("workload", None),
                ("log_free_space", Some(500)),
                ("log_free_space", Some(10)),
                ("log_free_space", Some(1000)),
                ("workload", None),
            ]
        );
    }

    /// A small disk is not full from the beginning: its marks are parts of it.
    #[test]
    fn marks_of_a_small_disk_are_smaller() {
        let mut rate = rate();
        let told = |rate: &mut Rate, free_bytes, disk_bytes| {
            let log = LogQueue { free_bytes, disk_bytes, ..LogQueue::default() };
            rate.update(Duration::from_secs(1), &Queues { log, ..Queues::default() }, 0);
            rate.limit().map(|limit| limit as u64)
        };
        assert_eq!(told(&mut rate, 60, 480), None);
        assert_eq!(told(&mut rate, 59, 480), Some(977));
        assert_eq!(told(&mut rate, 15, 480), Some(10));
        assert_eq!(told(&mut rate, 59, 472), Some(1000), "not before there is a quarter more");
        assert_eq!(told(&mut rate, 73, 472), None);
    }

    #[test]
    fn each_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
