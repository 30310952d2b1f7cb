//! Time comes in through a door: [`Clock`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A monotonic clock, which measures intervals; nothing may be proven with it.
pub trait Clock: Send + Sync + 'static {
    /// Time since an origin that is fixed for the life of this clock. Never goes back.
    fn now(&self) -> Duration;

    /// The time of day, since the beginning of 1970 (Unix time), as this machine believes it is: it may jump, also back. For what is shown to people; nothing is
    /// decided by it. A clock that is not of the real world has its origin at the beginning of 2020.
    fn unix_time(&self) -> Duration {
        SIMULATED_ORIGIN + self.now()
    }
}

/// 2020-01-01T00:00:00Z in Unix time.
const SIMULATED_ORIGIN: Duration = Duration::from_secs(1_577_836_800);

/// A clock that stands still until it is told to move: for tests and for simulation.
#[derive(Debug, Default)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    /// A clock at zero.
    pub fn new() -> ManualClock {
        ManualClock::default()
    }

    /// Moves the clock forward. Saturates after 584 years.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let add = |nanos: u64| Some(nanos.saturating_add(by));
        self.nanos.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).expect("the update is always Some");
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }
}
