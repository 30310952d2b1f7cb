//! Versions: [`Sequencer`].
//!
//! A version is the one before it and the microseconds since, at least 1 and at most a million: about a million a second while there is
//! work, and an idle hour does not make the next one so great that all read versions are too old to write with.

use std::time::Duration;

use ferrisdb_core::Version;

/// The most by which one version is above the one before it.
pub const STEP_MAX: u64 = 1_000_000;

/// Versions begin so far above the last known one when a coordinator takes over: more than any coordinator that is not yet aware of that could
/// have given away meanwhile. A hundred seconds' worth.
pub const EPOCH_JUMP: u64 = 100_000_000;

/// Gives versions. Deterministic: the time is a parameter.
#[derive(Debug, Clone)]
pub struct Sequencer {
    last: Version,
    at: Duration,
}

impl Sequencer {
    /// One that goes on above `last`, which was given at `at`.
    pub fn new(last: Version, at: Duration) -> Sequencer {
        Sequencer { last, at }
    }

    /// The first version of a new epoch when `last` is the last one known.
    ///
    /// # Panics
    /// When the 2^56 versions are used up, which takes 720 million restarts.
    pub fn first_of_epoch(last: Version) -> Version {
        Version::from_u64(last.get() + EPOCH_JUMP)
    }

    /// The last version given.
    pub fn last(&self) -> Version {
        self.last
    }

    /// The next version. A clock that stands still, or goes back, gives the least step.
    pub fn next(&mut self, now: Duration) -> Version {
        let micros = u64::try_from(now.saturating_sub(self.at).as_micros()).unwrap_or(STEP_MAX);
        self.last = Version::from_u64(self.last.get() + micros.clamp(1, STEP_MAX));
        self.at = now;
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_follow_the_clock_within_bounds() {
        let at = Duration::from_micros;
        let mut sequencer = Sequencer::new(Version::from_u64(1_000), at(50));
        let mut next = |now| sequencer.next(now).get();
        assert_eq!(next(at(50)), 1_001, "a clock that stands still");
        assert_eq!(next(at(350)), 1_301);
        assert_eq!(next(at(10)), 1_302, "a clock that went back");
        assert_eq!(next(Duration::from_secs(3600)), 1_001_302, "an idle hour");
    }
}
