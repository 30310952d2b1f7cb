//! The network of a simulated world of a test: what becomes of each message, [`Links`].
//!
//! A message takes its time, is lost, comes late, or comes twice.
//!
//! What is under way gets there, whatever becomes of the asker meanwhile, who may have given it up or died: between real processes it lies in a buffer of a connection that
//! nobody waits for any more. So a message also comes **late**, after a newer one on another connection, and by then to whoever listens at that address. And it comes **twice**: the
//! asker has given it up and asks again, and then the first one arrives after all. Within one connection neither happens, bytes come once and in order; and a commit is
//! never sent twice (the client asks for its outcome instead), only late. Both happen only while there are faults, and are counted.

use std::collections::BTreeSet;
use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};

/// While there are faults, one in so many messages comes twice.
const TWICE_ONE_IN: u64 = 30;
/// And one in so many late.
const LATE_ONE_IN: u64 = 60;
/// So late at most: longer than an asker waits.
const LATE_MICROS_MAX: u64 = 4_000_000;

/// What the links between hosts are like.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Directions in which nothing goes through.
    cut: BTreeSet<(u64, u64)>,
    /// Of a thousand messages, so many are lost.
    loss: u64,
    /// There are faults.
    pub(crate) is_disturbed: bool,
    counts: Counts,
}

/// What has happened to messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// So many came twice.
    pub(crate) twice: u64,
    /// So many came late.
    pub(crate) late: u64,
}

impl Links {
    /// Nothing goes from one host to another.
    pub(crate) fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    /// Nothing goes between a host and others, in either direction.
    pub(crate) fn cut_off(&mut self, host: u64, others: impl IntoIterator<Item = u64>) {
        for other in others.into_iter().filter(|&other| other != host) {
            self.cut.extend([(host, other), (other, host)]);
        }
    }

    /// Everything goes between two hosts again.
    pub(crate) fn mend(&mut self, one: u64, other: u64) {
        self.cut.remove(&(one, other));
        self.cut.remove(&(other, one));
    }

    /// Of a thousand messages so many are lost from now on.
    pub(crate) fn lose(&mut self, loss: u64) {
        self.loss = loss;
    }

    /// Everything goes through again.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0;
    }

    /// True if everything goes through.
    pub(crate) fn is_whole(&self) -> bool {
        self.cut.is_empty() && self.loss == 0
    }

    /// What has happened to messages.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// How long a message from one host to another takes; `None` if it is lost.
    pub(crate) fn passes(&self, random: &mut SplitMix64, from: u64, to: u64) -> Option<Duration> {
        if self.cut.contains(&(from, to)) || random.below(1000) < self.loss {
            return None;
        }
        let most = if random.one_in(100) { 100_000 } else { 2_000 };
        Some(Duration::from_micros(100 + random.below(most)))
    }

    /// If a message comes a second time: how long after the first.
    pub(crate) fn comes_twice(&mut self, random: &mut SplitMix64) -> Option<Duration> {
        if !self.is_disturbed || !random.one_in(TWICE_ONE_IN) {
            return None;
        }
        self.counts.twice += 1;
        let most = if random.one_in(2) { 2_000 } else { LATE_MICROS_MAX };
        Some(Duration::from_micros(random.below(most)))
    }

    /// How late a message is.
    pub(crate) fn comes_late(&mut self, random: &mut SplitMix64) -> Duration {
        if !self.is_disturbed || !random.one_in(LATE_ONE_IN) {
            return Duration::ZERO;
        }
        self.counts.late += 1;
        Duration::from_micros(random.below(LATE_MICROS_MAX))
    }
}
