//! [`ReadableVersions`]: which old versions readers may still ask for.
//!
//! Readable is everything from a floor up to the visible version, and a set of pinned versions below the floor. Flushes and compactions take the floor
//! and the pins as their boundaries and keep, per key, all above the floor and the newest at or below each boundary.
//!
//! # Invariants
//! - The floor never goes down. A version is collected only by a job that took its boundaries here, so a version that is at or above
//!   the floor, or pinned, *after* a view was loaded is wholly in that view.
//! - A version is pinned only while it is readable.
//!
//! # Concurrency
//! The floor is an atomic for readers' checks; pins are behind a mutex. With [`Retention::Newest`] the floor is the visible version, taken
//! under the mutex that snapshots take too: a snapshot is pinned either before a job takes its boundaries or at or above them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ferrisdb_core::Version;

use crate::error::{Error, Result};
use crate::options::Retention;
use crate::planted::{Bug, planted};

pub(crate) struct ReadableVersions {
    retention: Retention,
    floor: AtomicU64,
    pins: Mutex<BTreeMap<Version, usize>>,
}

impl ReadableVersions {
    pub(crate) fn new(retention: Retention, floor: Version, pinned: &[Version]) -> ReadableVersions {
        let mut pins = BTreeMap::new();
        for &version in pinned {
            *pins.entry(version).or_insert(0) += 1;
        }
        ReadableVersions { retention, floor: AtomicU64::new(floor.get()), pins: Mutex::new(pins) }
    }

    pub(crate) fn floor(&self) -> Version {
        Version::from_u64(self.floor.load(Ordering::Acquire))
    }

    /// Moves the floor up; a lower one changes nothing. Only with [`Retention::FromFloor`].
    pub(crate) fn raise_floor(&self, floor: Version) {
        self.floor.fetch_max(floor.get(), Ordering::AcqRel);
    }

    /// The floor and the pins below it, ascending: what a flush or a compaction that starts now must keep.
    pub(crate) fn boundaries(&self, visible: impl FnOnce() -> Version) -> (Version, Vec<Version>) {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if self.retention == Retention::Newest {
            self.raise_floor(visible());
        } else if planted(Bug::CompactionIgnoresFloor) {
            let visible = visible();
            return (visible, pins.range(..visible).map(|(&version, _)| version).collect());
        }
        let floor = self.floor();
        (floor, pins.range(..floor).map(|(&version, _)| version).collect())
    }

    /// Fails unless every entry that a reader at `version` needs is kept. Call it after loading the view.
    pub(crate) fn check(&self, version: Version, visible: Version) -> Result<()> {
        let floor = self.floor();
        if version <= visible
            && (version >= floor || self.pins.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&version))
        {
            return Ok(());
        }
        Err(Error::VersionNotReadable { version, oldest: floor, newest: visible })
    }

    /// Pins a readable version until [`ReadableVersions::unpin`]; pins of one version are counted.
    pub(crate) fn pin(&self, version: Version, visible: Version) -> Result<()> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the mutex: no job takes its boundaries between this look and the pin.
        let floor = self.floor();
        if version > visible || (version < floor && !pins.contains_key(&version)) {
            return Err(Error::VersionNotReadable { version, oldest: floor, newest: visible });
        }
        *pins.entry(version).or_insert(0) += 1;
        Ok(())
    }

    /// Pins the visible version.
    pub(crate) fn pin_visible(&self, visible: impl FnOnce() -> Version) -> Version {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let version = visible();
        *pins.entry(version).or_insert(0) += 1;
        version
    }

    /// Takes one pin back; false if there was none.
    pub(crate) fn unpin(&self, version: Version) -> bool {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = pins.get_mut(&version) else { return false };
        *count -= 1;
        if *count == 0 {
            pins.remove(&version);
        }
        true
    }

    pub(crate) fn pinned(&self) -> Vec<Version> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(number: u64) -> Version {
        Version::from_u64(number)
    }

    /// Below the floor only pins are readable, and a collected version cannot be pinned again.
    #[test]
    fn pins_hold_versions_below_the_floor() {
        let versions = ReadableVersions::new(Retention::FromFloor, v(0), &[]);
        versions.pin(v(3), v(10)).unwrap();
        versions.raise_floor(v(6));
        assert!(versions.check(v(3), v(10)).is_ok() && versions.check(v(6), v(10)).is_ok());
        assert!(versions.check(v(4), v(10)).is_err() && versions.check(v(11), v(10)).is_err());
        versions.pin(v(3), v(10)).unwrap();
        assert!(versions.unpin(v(3)) && versions.check(v(3), v(10)).is_ok());
        assert!(versions.unpin(v(3)) && versions.check(v(3), v(10)).is_err());
        assert!(versions.pin(v(3), v(10)).is_err() && !versions.unpin(v(3)));
        versions.raise_floor(v(2));
        assert_eq!(versions.boundaries(|| v(10)), (v(6), vec![]));
    }

    /// With `Newest`, a job's boundaries raise the floor to what is visible, and snapshots stay below it.
    #[test]
    fn newest_follows_the_visible_version() {
        let versions = ReadableVersions::new(Retention::Newest, v(0), &[]);
        assert_eq!(versions.pin_visible(|| v(4)), v(4));
        assert_eq!(versions.boundaries(|| v(9)), (v(9), vec![v(4)]));
        assert!(versions.check(v(4), v(9)).is_ok() && versions.check(v(5), v(9)).is_err());
    }
}
