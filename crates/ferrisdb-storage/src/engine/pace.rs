//! [`Pace`]: how fast background jobs may write.
//!
//! Flushes and compactions share [`Options::background_bytes_per_second`]. Before each step a job asks whether it may go on; a job that must wait
//! says so to its spawner and never sleeps, so one thread can run everything, and time is the clock's. After the step it pays for what it has
//! written. Payments move a time forward, up to which the rate has been used up: a step may begin once that time has come, however
//! much it then writes, and the next one waits the longer.
//!
//! A flush waits for what flushes have written, a compaction for what both have: so flushes go first, and compactions get what they leave over.
//! A limit must not be what makes writers wait: where they would be slowed down or stopped for want of a flush or a compaction, neither waits, and
//! what they then write is free.
//!
//! The decision is a pure function of numbers; the wait is the spawner's.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Core;
use super::stall;
use crate::compaction::picker;
use crate::env::Step;

/// Shorter waits are saved up: waking a thread costs tens of microseconds.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// Longer waits are taken in pieces: the limit may have been lifted meanwhile by something that wakes nobody.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    Flush,
    Compaction,
}

#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes per second; `None` is no limit.
    rate: Option<u64>,
    used_until: Mutex<UsedUntil>,
}

/// The times up to which the rate is used up.
#[derive(Debug, Default)]
struct UsedUntil {
    by_flushes: Duration,
    by_all: Duration,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Pace {
        Pace { rate, used_until: Mutex::default() }
    }

    /// How long the next step has to wait.
    fn wait(&self, writer: Writer, now: impl FnOnce() -> Duration) -> Option<Duration> {
        self.rate?;
        let used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = match writer {
            Writer::Flush => used_until.by_flushes,
            Writer::Compaction => used_until.by_all,
        };
        let wait = until.saturating_sub(now());
        (wait >= WAIT_MIN).then(|| wait.min(WAIT_MAX))
    }

    /// A step has written so many bytes.
    fn pay(&self, writer: Writer, bytes: u64, now: impl FnOnce() -> Duration) {
        let Some(rate) = self.rate else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = now();
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        used_until.by_all = used_until.by_all.max(now) + cost;
        if writer == Writer::Flush {
            used_until.by_flushes = used_until.by_flushes.max(now) + cost;
        }
    }
}

impl Core {
    /// What a job has to return in place of its next step, if that must wait.
    pub(super) fn wait_for_pace(&self, writer: Writer) -> Option<Step> {
        let wait = self.pace.wait(writer, || self.env.clock.now())?;
        (!self.is_pace_lifted()).then_some(Step::WaitFor(wait))
    }

    /// A job's step has written so many bytes.
    pub(super) fn pay_for_pace(&self, writer: Writer, bytes: u64) {
        if bytes > 0 && !self.is_pace_lifted() {
            self.pace.pay(writer, bytes, || self.env.clock.now());
        }
    }

    /// True while writers are slowed down, or would be stopped by the next full memtable.
    fn is_pace_lifted(&self) -> bool {
        if self.pace.rate.is_none() {
            return true;
        }
        let view = self.view.read();
        let l0 = usize::try_from(picker::l0_runs(&view.levels)).unwrap_or(usize::MAX);
        view.memtables.len() >= self.options.write_buffers_max
            || stall::pressure(&self.options, l0, self.counters.pending()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A flush goes on while compactions have used up the rate; compactions wait for both.
    #[test]
    fn flushes_go_first() {
        let pace = Pace::new(Some(1000));
        let wait = |writer, now: Duration| pace.wait(writer, || now);
        assert_eq!((wait(Writer::Flush, SECOND), wait(Writer::Compaction, SECOND)), (None, None));
        pace.pay(Writer::Compaction, 50, || SECOND);
        assert_eq!(wait(Writer::Flush, SECOND), None);
        assert_eq!(wait(Writer::Compaction, SECOND), Some(Duration::from_millis(50)));
        pace.pay(Writer::Flush, 30, || SECOND);
        assert_eq!(wait(Writer::Flush, SECOND), Some(Duration::from_millis(30)));
        assert_eq!(wait(Writer::Compaction, SECOND), Some(Duration::from_millis(80)));
        let later = SECOND + Duration::from_millis(80);
        assert_eq!((wait(Writer::Flush, later), wait(Writer::Compaction, later)), (None, None));
        // Idle time is not saved up, and a long wait is taken in pieces.
        pace.pay(Writer::Flush, 5000, || 10 * SECOND);
        assert_eq!(wait(Writer::Flush, 10 * SECOND), Some(WAIT_MAX));
        assert_eq!(wait(Writer::Flush, 15 * SECOND), None);
    }

    /// Without a limit nobody waits.
    #[test]
    fn no_limit() {
        let pace = Pace::new(None);
        pace.pay(Writer::Flush, u64::MAX, || SECOND);
        assert_eq!(pace.wait(Writer::Flush, || SECOND), None);
    }
}
