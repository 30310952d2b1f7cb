//! What a node counts while it runs, for the status document.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferrisdb_core::{Code, Result};
use ferrisdb_rpc::api::Committed;
use serde_json::{Value, json};

use crate::coordinator::batcher::Response;

/// Counters since the node was opened. Only statistics rest on them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Transactions that asked for a read version.
    pub begins: AtomicU64,
    /// Values asked for.
    pub gets: AtomicU64,
    /// Keys asked for by their places.
    pub get_keys: AtomicU64,
    /// Ranges asked for.
    pub get_ranges: AtomicU64,
    /// Watches set.
    pub watches: AtomicU64,
    /// Commits asked for.
    pub commits: AtomicU64,
    /// Outcomes asked for.
    pub resolves: AtomicU64,
    /// Leases asked for, renewed or ended.
    pub leases: AtomicU64,
    /// Reads that were asked of a second replica because the first one was slow, and those in which that one was the sooner.
    pub hedges: AtomicU64,
    /// See `hedges`.
    pub hedges_won: AtomicU64,
    /// Transactions that committed.
    pub committed: AtomicU64,
    /// Transactions that did not because of a conflict.
    pub conflicts: AtomicU64,
    /// Transactions that were too old to commit.
    pub too_old: AtomicU64,
    /// Transactions refused for another reason.
    pub refused: AtomicU64,
    /// How long commits took.
    pub commit_latency: Latency,
}

impl Counters {
    /// As `workload` in the status document, of a database in one process and of a process of a cluster.
    pub(crate) fn document(&self) -> Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let latency = |share| self.commit_latency.quantile(share).as_secs_f64();
        json!({
            "begins": count(&self.begins),
            "gets": count(&self.gets),
            "get_keys": count(&self.get_keys),
            "get_ranges": count(&self.get_ranges),
            "watches": count(&self.watches),
            "commits": count(&self.commits),
            "resolves": count(&self.resolves),
            "leases": count(&self.leases),
            "hedged_reads": count(&self.hedges),
            "hedged_reads_won": count(&self.hedges_won),
            "committed": count(&self.committed),
            "conflicts": count(&self.conflicts),
            "too_old": count(&self.too_old),
            "refused": count(&self.refused),
            "commit_seconds": { "median": latency(0.5), "p99": latency(0.99), "max": latency(1.0) },
        })
    }

    /// Counts an answer that was given without a wait for the disk.
    pub(crate) fn count_decision(&self, result: &Result<Response>) {
        let counter = match result {
            Ok(Response::Commit(Committed::Conflict { .. })) => &self.conflicts,
            Ok(_) => return,
            Err(error) if error.code() == Code::TransactionTooOld => &self.too_old,
            Err(_) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Buckets of a histogram: four for each doubling, from a microsecond to over an hour.
const BUCKETS: usize = 128;

/// A histogram of durations: exact to a fifth, and without a lock.
#[derive(Debug)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Latency {
    fn default() -> Latency {
        Latency { buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Latency {
    /// Counts one.
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// The duration that `share` (0 to 1) of those counted did not exceed, to a fifth; zero if there are none.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among the counted need not be exact"
    )]
    pub fn quantile(&self, share: f64) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let mut left = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        for (index, count) in counts.into_iter().enumerate() {
            if count > 0 && count >= left {
                return Duration::from_micros(bucket_end(index));
            }
            left -= count;
        }
        Duration::ZERO
    }
}

/// The bucket of a number of microseconds.
fn bucket(micros: u64) -> usize {
    if micros < 4 {
        return usize::try_from(micros).expect("below four");
    }
    let doublings = micros.ilog2();
    let quarter = (micros >> (doublings - 2)) & 3;
    let index = 4 * (doublings as usize - 1) + usize::try_from(quarter).expect("below four");
    index.min(BUCKETS - 1)
}

/// The greatest number of microseconds in a bucket.
fn bucket_end(index: usize) -> u64 {
    if index < 4 {
        return index as u64;
    }
    let (doublings, quarter) = (index / 4 + 1, index as u64 % 4);
    ((4 + quarter + 1) << (doublings - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_a_fifth() {
        let latency = Latency::default();
        assert_eq!(latency.quantile(0.5), Duration::ZERO);
        for micros in 1..=1000 {
            latency.record(Duration::from_micros(micros));
        }
        for (share, exact) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latency.quantile(share).as_secs_f64() * 1e6;
            assert!(found >= exact && found <= exact * 1.25, "{share}: {found}");
        }
        latency.record(Duration::from_secs(1 << 40));
        for micros in [0, 1, 3, 4, 5, 7, 8, 1000, 123_456_789] {
            let index = bucket(micros);
            assert!(micros <= bucket_end(index) && (index == 0 || micros > bucket_end(index - 1)), "{micros}");
        }
    }
}
