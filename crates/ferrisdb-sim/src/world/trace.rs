//! [`Trace`]: what happened, in order, line by line, and one number that stands for all of it.
//!
//! Each line begins with the simulated time, in seconds and milliseconds. Equal runs have equal lines; the hash is that of the lines, so two
//! runs with the same hash are the same run, and where the hashes differ the first line that differs says why.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

/// A record of a run. Cheap to clone; clones are the same record.
#[derive(Clone)]
pub struct Trace {
    state: Arc<Mutex<State>>,
}

struct State {
    now: Duration,
    hasher: Xxh3,
    lines: u64,
    is_printed: bool,
    /// Kept for its memory.
    line: String,
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// An empty record. `is_printed`: each line also goes to standard output.
    pub fn new(is_printed: bool) -> Trace {
        let state = State {
            now: Duration::ZERO,
            hasher: Xxh3::new(),
            lines: 0,
            is_printed,
            line: String::new(),
            counts: BTreeMap::new(),
        };
        Trace { state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a line.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let mut state = self.lock();
        let state = &mut *state;
        state.line.clear();
        let (seconds, millis) = (state.now.as_secs(), state.now.subsec_millis());
        writeln!(state.line, "{seconds:>4}.{millis:03} {what}").expect("writing to a String cannot fail");
        state.hasher.update(state.line.as_bytes());
        state.lines += 1;
        if state.is_printed {
            // Whoever reads it may have gone; the run does not depend on it.
            std::io::stdout().write_all(state.line.as_bytes()).ok();
        }
    }

    /// Counts something that belongs into the report of a run.
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts several.
    pub fn add(&self, what: &'static str, many: u64) {
        *self.lock().counts.entry(what).or_default() += many;
    }

    /// What was counted so far.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    /// The count of one thing.
    pub fn counted(&self, what: &str) -> u64 {
        self.lock().counts.get(what).copied().unwrap_or(0)
    }

    /// Stands for all lines so far.
    pub fn hash(&self) -> u64 {
        self.lock().hasher.digest()
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.lock().lines
    }

    /// The simulated time that the next lines begin with.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    pub(super) fn set_now(&self, now: Duration) {
        self.lock().now = now;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("lines", &self.lines()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash stands for the lines, their order and their times.
    #[test]
    fn the_hash_is_that_of_the_lines() {
        let told = |lines: &[(u64, &str)]| {
            let trace = Trace::new(false);
            for (at, line) in lines {
                trace.set_now(Duration::from_millis(*at));
                trace.note(format_args!("{line}"));
            }
            trace.hash()
        };
        let hash = told(&[(1, "a"), (2, "b")]);
        assert_eq!(hash, told(&[(1, "a"), (2, "b")]));
        for other in [&[(1, "a"), (3, "b")][..], &[(1, "b"), (2, "a")], &[(1, "a")]] {
            assert_ne!(hash, told(other));
        }
    }
}
