//! How soon a read is asked of another replica as well, and which replica is asked first: [`Pace`] ([decision 0022](../../../docs/decisions/0022-hedged-reads.md)).
//!
//! A read that has no answer after the time within which nineteen of twenty have one is **hedged**: asked of another replica too, and the first answer wins. They are
//! equal, whoever gives them: a replica answers at one version or not at all. Only reads are hedged; what is decided is decided once.
//!
//! - The time is that of replicas that have answered, each from when *it* was asked: if some are slow it stays what the others take, and if all are, it grows, so that an overload is
//!   not doubled. It is never below [`SOONEST`], so that where reads are fast none is asked twice.
//! - At most [`HEDGES_MAX`] are under way.
//! - Of those who can answer the better ones have fewer reads under way from here, and answer faster; what is known about one that was not asked for a while counts for less and less, so that
//!   it is tried again.
//!
//! Used where replicas are chosen: in a client that knows who holds what ([`Router`](crate::Router)), and in a process of a cluster that was asked for what it does not hold.
//!
//! Deterministic: time is a parameter, of one process's monotonic clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// No read is hedged sooner: some times what a read from a disk takes, and below what a person notices.
pub const SOONEST: Duration = Duration::from_millis(10);
/// Nor later, however slow all are.
pub const LATEST: Duration = Duration::from_secs(1);
/// Hedges under way at once, in a process.
pub const HEDGES_MAX: usize = 64;
/// Of so many answers that are remembered the older half counts half: what was slow an hour ago does not matter.
const REMEMBERED: u32 = 1024;
/// Classes of answer times: each twice as long as the one before, the first up to a microsecond, the last over eight seconds.
const CLASSES: usize = 24;

/// What is known of how fast reads are answered, and of each replica by its name `R`.
#[derive(Debug)]
pub struct Pace<R> {
    state: Mutex<State<R>>,
    /// Under way.
    hedges: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct State<R> {
    answers: [u32; CLASSES],
    replicas: BTreeMap<R, Replica>,
}

impl<R> Default for Pace<R> {
    fn default() -> Pace<R> {
        Pace { state: Mutex::new(State { answers: [0; CLASSES], replicas: BTreeMap::new() }), hedges: Arc::default() }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Replica {
    under_way: u32,
    /// A moving average of what it took, and when that was last so.
    micros: u64,
    at: Duration,
}

impl Replica {
    fn cost(&self, now: Duration) -> u64 {
        (u64::from(self.under_way) + 1).saturating_mul(self.micros(now) + 1)
    }

    /// What it took, as far as that still tells something: half for each second since.
    fn micros(&self, now: Duration) -> u64 {
        self.micros.checked_shr(u32::try_from(now.saturating_sub(self.at).as_secs()).unwrap_or(u32::MAX)).unwrap_or(0)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl<R: Ord + Copy> Pace<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read was answered so long after it was asked.
    pub fn answered(&self, took: Duration) {
        let class = (u64::BITS - micros(took).leading_zeros()) as usize;
        let mut state = self.lock();
        state.answers[class.min(CLASSES - 1)] += 1;
        if state.answers.iter().sum::<u32>() >= REMEMBERED {
            state.answers.iter_mut().for_each(|count| *count /= 2);
        }
    }

    /// How long a read waits for its answer before it is asked of another replica.
    pub fn patience(&self) -> Duration {
        let state = self.lock();
        let total: u32 = state.answers.iter().sum();
        // The class in which the answer is that nineteen of twenty are not slower than.
        let rank = total - total / 20;
        let mut seen = 0;
        let class = state.answers.iter().position(|&count| {
            seen += count;
            seen >= rank && rank > 0
        });
        Duration::from_micros(1 << class.unwrap_or(0)).clamp(SOONEST, LATEST)
    }

    /// The right to hedge a read, until it is dropped; `None` if enough are.
    pub fn hedge(&self) -> Option<Hedge> {
        let hedge = Hedge(Arc::clone(&self.hedges));
        // It counts itself out when it is dropped.
        (self.hedges.fetch_add(1, Ordering::Relaxed) < HEDGES_MAX).then_some(hedge)
    }

    /// Which of these is asked best; it counts as asked.
    pub fn choose(&self, now: Duration, replicas: impl Iterator<Item = R>) -> Option<R> {
        let mut state = self.lock();
        let cost = |replica: &R| state.replicas.get(replica).map_or(1, |known| known.cost(now));
        let chosen = replicas.min_by_key(cost)?;
        state.replicas.entry(chosen).or_default().under_way += 1;
        Some(chosen)
    }

    /// How much there is against asking this replica.
    pub fn cost(&self, now: Duration, replica: R) -> u64 {
        self.lock().replicas.get(&replica).copied().unwrap_or_default().cost(now)
    }

    /// Forgets a replica that there is no more.
    pub fn forget(&self, replica: R) {
        self.lock().replicas.remove(&replica);
    }

    /// A read is asked of a replica.
    pub fn begin(&self, replica: R) {
        self.lock().replicas.entry(replica).or_default().under_way += 1;
    }

    /// It was answered after so long, or nobody waits for it any more.
    pub fn end(&self, now: Duration, replica: R, took: Duration, is_answered: bool) {
        {
            let mut state = self.lock();
            let Some(known) = state.replicas.get_mut(&replica) else { return };
            known.under_way = known.under_way.saturating_sub(1);
            let (before, took) = (known.micros(now), micros(took));
            // Without an answer it would have taken longer yet.
            if is_answered || took > before {
                known.micros = if is_answered { (before * 7 + took) / 8 } else { took };
                known.at = now;
            }
        }
        if is_answered {
            self.answered(took);
        }
    }
}

/// The right to hedge one read.
#[derive(Debug)]
pub struct Hedge(Arc<AtomicUsize>);

impl Drop for Hedge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Nineteen of twenty decide, within a factor of two; a few slow ones do not, and there are bounds.
    #[test]
    fn patience_is_what_nearly_all_take() {
        let pace = Pace::<u64>::default();
        assert_eq!(pace.patience(), SOONEST);
        for _ in 0..95 {
            pace.answered(ms(40));
        }
        for _ in 0..5 {
            pace.answered(ms(5000));
        }
        assert_eq!(pace.patience(), Duration::from_micros(1 << 16), "65 ms");
        (0..200).for_each(|_| pace.answered(ms(3)));
        assert_eq!(pace.patience(), Duration::from_micros(1 << 16), "a third is still slow");
        (0..4000).for_each(|_| pace.answered(ms(3)));
        assert_eq!(pace.patience(), SOONEST, "that was long ago");
        (0..4000).for_each(|_| pace.answered(ms(9000)));
        assert_eq!(pace.patience(), LATEST);
    }

    /// Who has more to do, or took longer, comes later; who never answers comes last, and is tried again after a while.
    #[test]
    fn the_better_replica_is_asked_first() {
        let (pace, a, b) = (Pace::default(), 1, 2);
        let first = |now| if pace.cost(now, a) <= pace.cost(now, b) { a } else { b };
        assert_eq!(first(ms(0)), a, "nothing is known");
        pace.begin(a);
        assert_eq!(first(ms(0)), b);
        pace.begin(b);
        pace.end(ms(1), a, ms(1), true);
        pace.end(ms(8), b, ms(8), true);
        assert_eq!(first(ms(8)), a);
        // a stands still: nobody waits for it for longer than this.
        pace.begin(a);
        pace.end(ms(500), a, ms(490), false);
        assert_eq!(first(ms(500)), b);
        pace.begin(b);
        pace.end(ms(501), b, ms(1), true);
        assert_eq!(first(ms(2000)), b);
        assert_eq!(first(ms(60_000)), a, "who knows how it is now");
    }

    #[test]
    fn hedges_have_a_bound() {
        let pace = Pace::<u64>::default();
        let hedges: Vec<_> = (0..HEDGES_MAX).filter_map(|_| pace.hedge()).collect();
        assert!(hedges.len() == HEDGES_MAX && pace.hedge().is_none());
        drop(hedges);
        assert!(pace.hedge().is_some());
    }
}
