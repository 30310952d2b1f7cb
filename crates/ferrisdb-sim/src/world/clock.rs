//! The clock of a simulated machine, as its processes see it: [`HostClock`].
//!
//! Below it lies the machine's *raw time*, which is the simulation's, except that a process which waits without giving way (opening a
//! database does) pushes it ahead: the simulation cannot go on meanwhile. Raw time then stands still until the simulation has caught up.
//! What processes see is raw time times a rate, with an offset that may jump forward, and it can stand still. It never goes back. The time of day has an offset of its own on top, which may jump
//! both ways.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrisdb_core::Clock;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A million parts: the rate of a clock that goes right.
pub const RATE_RIGHT: u64 = 1_000_000;

/// 2020-01-01T00:00:00Z, since 1970.
const WALL_ORIGIN: Duration = Duration::from_secs(1_577_836_800);

/// The clock of one machine. It goes on while its process is down.
#[derive(Debug)]
pub struct HostClock {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The process's runtime, its tokio time at the start, and the simulation's then.
    boot: Option<(Handle, Instant, Duration)>,
    /// Raw time is not before this.
    floor: Duration,
    /// Parts of a million.
    rate: u64,
    /// Where the present rate, offset and freeze began: raw time, and what was seen then.
    since: (Duration, Duration),
    /// Until this raw time it stands still.
    frozen_until: Duration,
    /// What the time of day is when the clock shows nothing, since 1970.
    wall_origin: Duration,
}

impl HostClock {
    /// A clock that shows `offset` at the beginning of the simulation and goes at `rate`.
    pub fn new(offset: Duration, rate: u64) -> HostClock {
        let state = State {
            boot: None,
            floor: Duration::ZERO,
            rate,
            since: (Duration::ZERO, offset),
            frozen_until: Duration::ZERO,
            wall_origin: WALL_ORIGIN,
        };
        HostClock { state: Mutex::new(state) }
    }

    /// A process begins, within the runtime of `handle`, at this time of the simulation.
    pub(super) fn boot(&self, handle: Handle, now: Duration) {
        let origin = {
            let _inside = handle.enter();
            Instant::now()
        };
        self.lock().boot = Some((handle, origin, now));
    }

    /// The machine's raw time.
    pub(super) fn raw(&self) -> Duration {
        self.lock().raw()
    }

    /// By how much raw time is ahead of the simulation's.
    pub(super) fn ahead(&self) -> Duration {
        let mut state = self.lock();
        let simulated = state.simulated();
        state.raw().saturating_sub(simulated)
    }

    /// Pushes raw time ahead.
    pub(super) fn push_to(&self, raw: Duration) {
        let mut state = self.lock();
        state.floor = state.floor.max(raw);
    }

    /// A time of raw time after which at least `seen` has passed on this clock, if it does not stand still.
    pub(super) fn raw_after(&self, seen: Duration) -> Duration {
        let mut state = self.lock();
        let nanos = u64::try_from(seen.as_nanos()).unwrap_or(u64::MAX);
        let raw = Duration::from_nanos(nanos).saturating_mul(1000) / u32::try_from(state.rate / 1000).unwrap_or(1000);
        state.raw().saturating_add(raw).max(state.frozen_until)
    }

    /// Jumps forward.
    pub fn jump(&self, by: Duration) {
        let mut state = self.lock();
        state.rebase();
        state.since.1 += by;
    }

    /// The time of day jumps by so much, ahead or back; not before 1970.
    pub fn jump_wall(&self, by: Duration, is_back: bool) {
        let state = &mut *self.lock();
        state.wall_origin =
            if is_back { state.wall_origin.saturating_sub(by) } else { state.wall_origin.saturating_add(by) };
    }

    /// Stands still for so long.
    pub fn freeze(&self, duration: Duration) {
        let mut state = self.lock();
        state.rebase();
        state.frozen_until = state.raw() + duration;
    }

    /// Goes at another rate from now on, in parts of a million.
    pub fn set_rate(&self, rate: u64) {
        let mut state = self.lock();
        state.rebase();
        state.rate = rate;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn simulated(&self) -> Duration {
        let Some((handle, origin, began)) = &self.boot else { return Duration::ZERO };
        let _inside = handle.enter();
        *began + origin.elapsed()
    }

    fn raw(&mut self) -> Duration {
        self.floor = self.floor.max(self.simulated());
        self.floor
    }

    fn seen(&mut self) -> Duration {
        let raw = self.raw();
        let (from, shown) = self.since;
        if raw < self.frozen_until {
            return shown;
        }
        let passed = u64::try_from(raw.saturating_sub(from).as_nanos()).unwrap_or(u64::MAX);
        let nanos = u128::from(passed) * u128::from(self.rate) / u128::from(RATE_RIGHT);
        shown + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What was so far is summed up in `since`.
    fn rebase(&mut self) {
        let seen = self.seen();
        self.since = (self.raw(), seen);
        self.frozen_until = Duration::ZERO;
    }
}

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.lock().seen()
    }

    fn unix_time(&self) -> Duration {
        let mut state = self.lock();
        state.wall_origin.saturating_add(state.seen())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Rate, jump and freeze, by raw time that is pushed ahead.
    #[test]
    fn it_shows_what_it_was_told_to() {
        let clock = HostClock::new(seconds(100), RATE_RIGHT * 2);
        assert_eq!(clock.now(), seconds(100));
        clock.push_to(seconds(10));
        assert_eq!(clock.now(), seconds(120));
        clock.push_to(seconds(5));
        assert_eq!(clock.now(), seconds(120), "it does not go back");
        clock.jump(seconds(7));
        assert_eq!(clock.now(), seconds(127));
        clock.freeze(seconds(3));
        clock.push_to(seconds(12));
        assert_eq!(clock.now(), seconds(127));
        // What it missed while it stood still is there afterwards, as after a machine that slept.
        clock.push_to(seconds(14));
        assert_eq!(clock.now(), seconds(135));
        clock.set_rate(RATE_RIGHT / 2);
        assert_eq!(clock.raw_after(seconds(1)), seconds(16));
        clock.push_to(seconds(16));
        assert_eq!(clock.now(), seconds(136));
        let day = clock.unix_time();
        clock.jump_wall(seconds(1_000), true);
        assert_eq!((clock.unix_time(), clock.now()), (day - seconds(1_000), seconds(136)));
        clock.jump_wall(seconds(3_000), false);
        assert_eq!((clock.unix_time(), clock.now()), (day + seconds(2_000), seconds(136)));
    }
}
