//! [`Heard`]: the newest version that the database told this client, for commits that need one and do not need the newest.
//!
//! Every commit carries a read version, so that a message that arrives very late is refused: one below the window of conflicts cannot commit. A
//! transaction that has read nothing, adds no read conflicts and was not asked for its read version needs it for nothing else. Any version that was
//! ever told does for that, and the younger it is the more time the commit has. So such a transaction, a *blind write*, takes what this client heard
//! within the last second, and asks only if that is nothing. It saves a question and its answer, which take as long as the commit itself without the
//! sync.
//!
//! # Invariants
//! - What is remembered was told by this database: as a read version, or as the version of a commit.
//! - Whoever reads asks. What is remembered may be older than what others were acknowledged meanwhile.
//! - If the database refuses a commit because of a remembered version (it restarted: a new epoch takes no older version; or this process slept for
//!   longer than its clock knows), it did not happen, and the client commits again with a version that it asks for. Nobody hears of that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::Version;

/// A version is of use for so long after it was told. The window is five seconds wide: four are left for the message's way.
pub(crate) const HEARD_FOR: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// And when it was told.
    newest: Mutex<Option<(Version, Duration)>>,
}

impl Heard {
    /// The database has told `version`.
    pub(crate) fn note(&self, version: Version, now: Duration) {
        let mut newest = self.lock();
        if newest.is_none_or(|(known, _)| known <= version) {
            *newest = Some((version, now));
        }
    }

    /// The newest version, if it was told a short time ago.
    pub(crate) fn recent(&self, now: Duration) -> Option<Version> {
        let (version, at) = (*self.lock())?;
        (now.saturating_sub(at) < HEARD_FOR).then_some(version)
    }

    /// The database does not take `version` any more.
    pub(crate) fn forget(&self, version: Version) {
        let mut newest = self.lock();
        if newest.is_some_and(|(known, _)| known <= version) {
            *newest = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Version, Duration)>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_of_use_for_a_second() {
        let (heard, at, v) = (Heard::default(), Duration::from_millis, Version::from_u64);
        assert_eq!(heard.recent(at(0)), None);
        heard.note(v(10), at(100));
        heard.note(v(9), at(900));
        assert_eq!(heard.recent(at(1099)), Some(v(10)));
        assert_eq!(heard.recent(at(1100)), None, "an older one, told later, makes it no younger");
        heard.note(v(10), at(1100));
        assert_eq!(heard.recent(at(1200)), Some(v(10)));
        heard.forget(v(9));
        assert_eq!(heard.recent(at(1200)), Some(v(10)), "somebody has heard of a newer one meanwhile");
        heard.forget(v(10));
        assert_eq!(heard.recent(at(1200)), None);
    }
}
