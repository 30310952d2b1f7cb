//! [`Stall`]: slowing writes down before they would have to stop.
//!
//! Writes stop only when there is no memtable left (or L0 is at its limit, so that none may be flushed). Long before that, as L0 or the bytes
//! waiting for compaction pass a first mark, each write is delayed a little, so that writers and background work meet at a common
//! rate. The allowed rate falls geometrically from [`RATE_MAX`] at the first mark to [`RATE_MIN`] at the limit: every step
//! towards the limit slows by the same factor, so there is no cliff (RocksDB's slowdown trigger sets one rate at once, which its users see as stalls).
//!
//! The decision is a pure function of numbers; the sleep is the caller's.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::options::Options;

/// Bytes per second allowed when the first mark is passed: about what one core compacts.
const RATE_MAX: f64 = 256.0 * 1024.0 * 1024.0;
/// Bytes per second allowed at the limit: writers crawl, but a writer is never told to wait for long.
const RATE_MIN: f64 = 1024.0 * 1024.0;
/// The longest delay of one write. A larger debt is carried over to the next ones.
const DELAY_MAX: Duration = Duration::from_millis(100);
/// Shorter delays are saved up: a sleep costs tens of microseconds by itself.
const DELAY_MIN: Duration = Duration::from_micros(500);

#[derive(Debug, Default)]
pub(super) struct Stall {
    /// Allowed bytes per second; zero means no limit.
    rate: AtomicU64,
    /// The time up to which what was written so far has used up the rate.
    used_until: Mutex<Duration>,
}

/// How far behind the background work is, from 0 (first mark) to 1 (limit); `None` below the first mark.
pub(super) fn pressure(options: &Options, l0_tables: usize, pending_bytes: u64) -> Option<f64> {
    let share = |value: f64, from: f64, to: f64| (value >= from).then(|| ((value - from) / (to - from)).min(1.0));
    let tables = share(l0_tables as f64, options.l0_slowdown_tables as f64, options.l0_stop_tables as f64);
    let slow = options.pending_compaction_slowdown_bytes as f64;
    let bytes = share(pending_bytes as f64, slow, 4.0 * slow);
    match (tables, bytes) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// The allowed rate at a pressure, in bytes per second.
fn rate_at(pressure: f64) -> f64 {
    RATE_MAX * (RATE_MIN / RATE_MAX).powf(pressure)
}

impl Stall {
    /// To be called when L0 or the debt changed.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive and below 2^53")]
    pub(super) fn update(&self, options: &Options, l0_tables: usize, pending_bytes: u64) {
        let rate = pressure(options, l0_tables, pending_bytes).map_or(0, |pressure| rate_at(pressure) as u64);
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// How long a write of so many bytes should wait first.
    #[inline]
    pub(super) fn delay(&self, bytes: usize, now: impl FnOnce() -> Duration) -> Option<Duration> {
        match self.rate.load(Ordering::Relaxed) {
            0 => None,
            rate => self.delay_at(rate, bytes, now()),
        }
    }

    #[cold]
    fn delay_at(&self, rate: u64, bytes: usize, now: Duration) -> Option<Duration> {
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        *used_until = (*used_until).max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        let behind = *used_until - now;
        if behind < DELAY_MIN {
            return None;
        }
        if behind > DELAY_MAX {
            // The rest is forgiven: other writers have been delayed meanwhile, and one call must not wait for their debt.
            *used_until = now + DELAY_MAX;
        }
        Some(behind.min(DELAY_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No mark passed: no delay. Between mark and limit the rate falls without a cliff: a table more halves it at most.
    #[test]
    fn the_rate_falls_smoothly() {
        let options = Options { l0_slowdown_tables: 12, l0_stop_tables: 24, ..Options::default() };
        assert_eq!(pressure(&options, 11, 0), None);
        let rates: Vec<f64> = (12..=24).map(|tables| rate_at(pressure(&options, tables, 0).unwrap())).collect();
        assert!((rates[0] - RATE_MAX).abs() < 1.0 && (rates[12] - RATE_MIN).abs() < 1.0);
        assert!(rates.windows(2).all(|pair| pair[1] < pair[0] && pair[1] > pair[0] / 2.0));
    }

    /// Writers together get the rate, each delay is bounded, and an idle time is not saved up.
    #[test]
    fn delays_add_up_to_the_rate() {
        let options =
            Options { l0_slowdown_tables: 1, l0_compaction_tables: 1, l0_stop_tables: 2, ..Options::default() };
        let stall = Stall::default();
        stall.update(&options, 2, 0);
        let mut now = Duration::from_secs(100);
        for _ in 0..1000 {
            if let Some(delay) = stall.delay(10_000, || now) {
                assert!(delay <= DELAY_MAX);
                now += delay;
            }
        }
        let took = (now - Duration::from_secs(100)).as_secs_f64();
        let expected = 1000.0 * 10_000.0 / RATE_MIN;
        assert!((took - expected).abs() < 0.2, "{took} {expected}");
        stall.update(&options, 0, 0);
        assert_eq!(stall.delay(1 << 30, || now), None);
    }
}
