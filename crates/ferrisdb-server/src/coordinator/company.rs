//! How long a group waits for company: [`Company`], a deterministic core of the driver.
//!
//! What a group of commits costs a cluster, in messages, wakes and syncs, hardly depends on how many commits are in it. Clients that commit again as soon as they are
//! answered fall into two halves by themselves: while one half's group is under way, the other half queues up, and goes the moment that the first is
//! done, whose clients have just been answered and are on their way back. So a group waits for those, for a part of the time that a group takes,
//! which is what it may cost; then all go together, at half the price.
//!
//! FoundationDB's proxies wait for a tenth of what a batch takes, always. Here only as many are waited for as were there a moment ago, a client alone never
//! waits, and who did not come is not waited for again so soon (PostgreSQL's `commit_siblings` guards its `commit_delay` in the same spirit).
//!
//! # Invariants
//! - A wait is at most the configured part of what groups took lately, and at most [`WAIT_MAX`].
//! - Waits in vain become rare: after the n-th in a row the next 2ⁿ groups, at most [`REST_MAX`], go at once.

use std::time::Duration;

/// Below this a timer costs more than company is worth.
const WAIT_MIN: Duration = Duration::from_micros(50);
/// A group that took seconds, because something was broken, is no reason to wait for long.
const WAIT_MAX: Duration = Duration::from_millis(5);
/// Groups without a wait after many that were in vain.
const REST_MAX: u32 = 64;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Company {
    /// How much of what a group takes may be waited.
    part: f64,
    /// What groups take, smoothed.
    took: Duration,
    /// Requests that were there when the last group was answered: its own, and those in flight and queued.
    expected: usize,
    /// The wait that is under way began with so many.
    began_with: Option<usize>,
    in_vain: u32,
    /// Groups that go at once.
    rest: u32,
}

impl Company {
    /// Waits for at most `part` of what a group takes; 0: never.
    pub(super) fn new(part: f64) -> Company {
        Company { part, took: Duration::ZERO, expected: 0, began_with: None, in_vain: 0, rest: 0 }
    }

    /// A group of `answered` requests took so long, and so many are there beside them.
    pub(super) fn answered(&mut self, took: Duration, answered: usize, others: usize) {
        self.took = if self.took.is_zero() { took } else { (self.took * 7 + took) / 8 };
        self.expected = answered + others;
    }

    /// How long the group that has `present` requests by now may wait from its beginning on, `in_flight` others being under way; `None`: it goes now.
    pub(super) fn wait(&mut self, present: usize, in_flight: usize) -> Option<Duration> {
        let wait = self.took.mul_f64(self.part).min(WAIT_MAX);
        let is_worth_it = present > 0 && present + in_flight < self.expected && wait >= WAIT_MIN && self.rest == 0;
        if is_worth_it {
            self.began_with.get_or_insert(present);
        }
        is_worth_it.then_some(wait)
    }

    /// With how many requests a group that waits is complete.
    pub(super) fn complete(&self, in_flight: usize) -> usize {
        self.expected.saturating_sub(in_flight)
    }

    /// A group goes, with `present` requests.
    pub(super) fn goes(&mut self, present: usize, in_flight: usize) {
        self.rest = self.rest.saturating_sub(1);
        let Some(began_with) = self.began_with.take() else { return };
        let missed = self.complete(in_flight).saturating_sub(began_with);
        if present.saturating_sub(began_with) * 2 >= missed {
            self.in_vain = 0;
            return;
        }
        self.in_vain += 1;
        self.rest = 1u32.checked_shl(self.in_vain).map_or(REST_MAX, |rest| rest.min(REST_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Duration = Duration::from_millis(1);

    fn company() -> Company {
        let mut company = Company::new(0.2);
        company.answered(GROUP, 31, 33);
        company
    }

    /// Half of the clients wait for the other half, which has just been answered, and all go together from then on.
    #[test]
    fn halves_find_each_other() {
        let mut company = company();
        assert_eq!(company.wait(33, 0), Some(GROUP / 5));
        assert_eq!(company.wait(50, 0), Some(GROUP / 5), "some have come");
        assert_eq!(company.complete(0), 64);
        assert_eq!(company.wait(64, 0), None, "all are there");
        company.goes(64, 0);
        company.answered(GROUP, 64, 0);
        assert!(company.wait(1, 0).is_some(), "the first of them is back, and waits for the others");
    }

    /// A client alone, and clients of which none is missing, never wait; nor does a log whose groups take no time, nor one that is not to.
    #[test]
    fn nobody_waits_for_nobody() {
        let mut alone = company();
        alone.answered(GROUP, 1, 0);
        assert_eq!(alone.wait(1, 0), None);
        assert_eq!(alone.wait(0, 0), None, "there is nothing to send");
        assert_eq!(company().wait(33, 31), None, "the others are under way");
        let mut quick = Company::new(0.2);
        quick.answered(Duration::from_micros(200), 31, 33);
        assert_eq!(quick.wait(33, 0), None, "40 µs are less than a timer costs");
        let mut never = Company::new(0.0);
        never.answered(GROUP, 31, 33);
        assert_eq!(never.wait(33, 0), None);
    }

    /// Clients that think before they come again are waited for ever more rarely, and again once they come.
    #[test]
    fn waits_in_vain_become_rare() {
        let mut company = company();
        let mut waits = 0;
        for _ in 0..1000 {
            waits += usize::from(company.wait(33, 0).is_some());
            company.goes(34, 0);
            company.answered(GROUP, 31, 33);
        }
        assert!((10..30).contains(&waits), "{waits} waits in vain of 1000 groups");
        while company.wait(33, 0).is_none() {
            company.goes(33, 0);
        }
        company.goes(60, 0);
        assert!(company.wait(33, 0).is_some(), "they came");
    }

    /// What took long because something was broken has no long waits follow.
    #[test]
    fn waits_are_bounded() {
        let mut company = company();
        company.answered(Duration::from_secs(60), 31, 33);
        assert_eq!(company.wait(33, 0), Some(WAIT_MAX));
    }
}
