//! The operating system's clock: [`RealClock`], the only module that reads it.

#![expect(clippy::disallowed_methods, reason = "this is the one door to the real clock")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ferrisdb_core::Clock;

/// A monotonic clock that begins at zero when it is made. It may stand still while the machine is suspended.
#[derive(Debug, Clone)]
pub struct RealClock {
    origin: Instant,
}

impl RealClock {
    /// A clock whose origin is now.
    pub fn new() -> RealClock {
        RealClock { origin: Instant::now() }
    }
}

impl Default for RealClock {
    fn default() -> RealClock {
        RealClock::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn unix_time(&self) -> Duration {
        // A machine that believes it is before 1970 has no better time to tell.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
