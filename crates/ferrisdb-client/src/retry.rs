//! When to try again, and after how long: the decisions of `on_error`, without time or chance in them.

use std::time::Duration;

use ferrisdb_core::{Code, Error};

/// The first delay after an error.
const BACKOFF_INITIAL: Duration = Duration::from_millis(10);
/// Each further one is so many times as long.
const BACKOFF_GROWTH: u32 = 2;
/// The longest delay where no option says otherwise.
pub(crate) const MAX_RETRY_DELAY_DEFAULT: Duration = Duration::from_secs(1);
/// The longest delay when the database is short of something.
const BACKOFF_MAX_WHEN_SHORT: Duration = Duration::from_secs(30);
/// The delay after an error that says that a storage server is behind, or that the transaction was too slow.
const LATE_DELAY: Duration = Duration::from_millis(10);

/// What the options say about retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryOptions {
    /// `None`: for ever.
    pub(crate) retry_limit: Option<u32>,
    pub(crate) max_retry_delay: Duration,
}

impl Default for RetryOptions {
    fn default() -> RetryOptions {
        RetryOptions { retry_limit: None, max_retry_delay: MAX_RETRY_DELAY_DEFAULT }
    }
}

/// How often a transaction was tried, and how long the next delay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryState {
    retries: u32,
    backoff: Duration,
}

impl Default for RetryState {
    fn default() -> RetryState {
        RetryState { retries: 0, backoff: BACKOFF_INITIAL }
    }
}

/// What `on_error` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The error goes back to the caller, and the transaction is of no more use.
    GiveUp,
    /// Wait so long, then begin again.
    RetryAfter(Duration),
}

impl RetryState {
    /// What to do about `error`; `random`: 64 random bits, by which the delay is spread.
    pub(crate) fn decide(&mut self, error: &Error, options: &RetryOptions, random: u64) -> Decision {
        let is_limit_reached = options.retry_limit.is_some_and(|limit| self.retries >= limit);
        self.retries = self.retries.saturating_add(1);
        if is_limit_reached {
            return Decision::GiveUp;
        }
        match error.code() {
            Code::TransactionTooOld | Code::FutureVersion => {
                Decision::RetryAfter(LATE_DELAY.min(options.max_retry_delay))
            }
            // Only a client that can load another version of itself may try again.
            Code::ClusterVersionChanged => Decision::GiveUp,
            code if !code.is_retryable() => Decision::GiveUp,
            code => {
                let delay = fraction_of(self.backoff, random);
                let is_short = matches!(
                    code,
                    Code::CommitProxyMemoryLimitExceeded
                        | Code::GrvProxyMemoryLimitExceeded
                        | Code::TransactionThrottledHotShard
                        | Code::TransactionRejectedRangeLocked
                );
                let max = if is_short { BACKOFF_MAX_WHEN_SHORT } else { options.max_retry_delay };
                self.backoff = self.backoff.saturating_mul(BACKOFF_GROWTH).min(max);
                Decision::RetryAfter(delay)
            }
        }
    }

    /// So many errors have been met since the transaction was made or reset.
    pub(crate) fn retries(&self) -> u32 {
        self.retries
    }
}

/// A part of `duration` that 64 random bits choose.
pub(crate) fn fraction_of(duration: Duration, random: u64) -> Duration {
    let nanos = duration.as_nanos().saturating_mul(u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(state: &mut RetryState, code: Code, options: &RetryOptions) -> Decision {
        state.decide(&Error::new(code), options, u64::MAX)
    }

    fn millis(decision: Decision) -> u128 {
        match decision {
            // One nanosecond short of it, because the random number is one short of all of it.
            Decision::RetryAfter(delay) => (delay + Duration::from_nanos(1)).as_millis(),
            Decision::GiveUp => panic!("gave up"),
        }
    }

    /// 10 ms, doubled, up to the option, or up to 30 s if the database is short of something.
    #[test]
    fn delays_double_up_to_their_bound() {
        let options = RetryOptions::default();
        let mut state = RetryState::default();
        let delays: Vec<_> = (0..9).map(|_| millis(decide(&mut state, Code::NotCommitted, &options))).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);

        let mut state = RetryState::default();
        let short = Code::CommitProxyMemoryLimitExceeded;
        let delays: Vec<_> = (0..14).map(|_| millis(decide(&mut state, short, &options))).collect();
        assert_eq!(delays[7..], [1280, 2560, 5120, 10_240, 20_480, 30_000, 30_000]);
        assert_eq!(millis(decide(&mut state, Code::NotCommitted, &options)), 30_000, "the delay so far stays");
        assert_eq!(millis(decide(&mut state, Code::NotCommitted, &options)), 1000);

        let options = RetryOptions { max_retry_delay: Duration::from_millis(5), ..options };
        let mut state = RetryState::default();
        assert_eq!(millis(decide(&mut state, Code::NotCommitted, &options)), 10, "the first is not bounded");
        assert_eq!(millis(decide(&mut state, Code::NotCommitted, &options)), 5);
        assert_eq!(
            RetryState::default().decide(&Code::NotCommitted.into(), &options, 0),
            Decision::RetryAfter(Duration::ZERO)
        );
    }

    /// The classes of section 8, code by code.
    #[test]
    fn every_code_is_retried_or_not_as_the_contract_says() {
        for &code in Code::ALL {
            let decision = decide(&mut RetryState::default(), code, &RetryOptions::default());
            let expected = matches!(
                code.number(),
                1020 | 1021 | 1037 | 1038 | 1042 | 1051 | 1078 | 1213 | 1235 | 1242 | 1007 | 1009
            );
            assert_eq!(decision != Decision::GiveUp, expected, "{code}");
        }
        let options = RetryOptions { max_retry_delay: Duration::from_millis(3), ..RetryOptions::default() };
        let mut state = RetryState::default();
        for _ in 0..3 {
            let decision = decide(&mut state, Code::FutureVersion, &options);
            assert_eq!(decision, Decision::RetryAfter(Duration::from_millis(3)), "late ones do not double");
        }
    }

    #[test]
    fn the_retry_limit_counts_errors() {
        let options = RetryOptions { retry_limit: Some(2), ..RetryOptions::default() };
        let mut state = RetryState::default();
        assert_ne!(decide(&mut state, Code::NotCommitted, &options), Decision::GiveUp);
        assert_ne!(decide(&mut state, Code::NotCommitted, &options), Decision::GiveUp);
        assert_eq!(decide(&mut state, Code::NotCommitted, &options), Decision::GiveUp);
        assert_eq!(state.retries(), 3);
    }
}
