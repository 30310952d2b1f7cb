//! [`Load`]: how much a storage server has to do for which keys lately, from a part of what it does.
//!
//! # The unit
//! Load is bytes a second: those of each key and value that is read or written, and [`KEY_COST_BYTES`] for each key. A small read and a small write of one replica cost about the
//! same, 8 and 10 µs of a processor, and so they count the same; 1 MB of load a second is about 5,000 of either, or a twentieth of a processor.
//!
//! # The sample
//! Every so many bytes of load, with a little chance in it so that no rhythm of the clients' is met, the key that is just read or written gets those bytes as its weight. Each second
//! all weights lose a sixteenth: what happened eleven seconds ago counts half. In the long run the weights add up to sixteen seconds' load; at the
//! beginning to less, so that nothing is taken for hot that has not been for a while. A weight that has decayed to a sixteenth of a new one is dropped: sums are up to a sixteenth
//! too low.
//!
//! The sample has at most [`KEYS_MAX`] keys: with more, the step between two doubles, and of the weights that are smaller than that a part is kept, which then counts for the others.
//!
//! # Cost
//! A key that is read or written costs a subtraction; one of some twenty, or on a busy storage server of some hundreds, a lock and a place in a map of 2,000.
//!
//! # Concurrency
//! Any number of readers, and one who applies. Deterministic: the chance is a generator of its own, and the time comes from the clock that it was given.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::{Bytes, Clock, KeyRange, Mutation, Random, SplitMix64};

use crate::signal::lock;

/// What a key counts beside its bytes.
const KEY_COST_BYTES: usize = 100;
/// Keys that a sample has at the most.
const KEYS_MAX: usize = 2_000;
/// The smallest step between two sampled keys.
const STEP_MIN: u64 = 4 << 10;
/// Each second weights lose one part in so many.
const DECAY: u64 = 16;
/// Seconds after which nothing is left of any weight.
const FORGOTTEN_AFTER: u64 = 1_000;
/// A cut is of use if the smaller part has at least one part in so many of the load.
const CUT_SHARE: u64 = 5;
/// The least sampled keys from which a cut can be told.
const CUT_STEPS: u64 = 16;

/// What is read, and what is written.
pub(crate) struct Load {
    clock: Arc<dyn Clock>,
    written: Sampler,
    read: Sampler,
}

/// The load of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeLoad {
    /// Bytes a second that are written.
    pub(crate) written: u64,
    /// Bytes a second that are read, at this storage server.
    pub(crate) read: u64,
    /// A key inside the range that cuts the load in two parts as equal as can be.
    pub(crate) cut: Option<Bytes>,
    /// The key with the most load, and its bytes a second.
    pub(crate) hottest: Option<(Bytes, u64)>,
}

/// Counts down to the next key that is sampled.
struct Sampler {
    left: AtomicI64,
    sample: Mutex<Sample>,
}

#[derive(Debug)]
struct Sample {
    weights: BTreeMap<Bytes, u64>,
    step: u64,
    /// Up to this second weights have lost what they lose.
    decayed: u64,
    random: SplitMix64,
}

impl Load {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Load {
        let sampler =
            |seed| Sampler { left: AtomicI64::new(STEP_MIN.cast_signed()), sample: Mutex::new(Sample::new(seed)) };
        Load { clock, written: sampler(1), read: sampler(2) }
    }

    /// A key was read, with so many bytes of it or behind it.
    pub(crate) fn read(&self, key: &[u8], bytes: usize) {
        self.read.count(key, bytes + KEY_COST_BYTES, self.clock.as_ref());
    }

    /// These are written.
    pub(crate) fn written(&self, mutations: &[Mutation]) {
        for mutation in mutations {
            self.written.count(&mutation.key, mutation.bytes() + KEY_COST_BYTES, self.clock.as_ref());
        }
    }

    /// The load of a range.
    pub(crate) fn of(&self, range: &KeyRange) -> RangeLoad {
        let now = self.clock.now();
        let mut weights = BTreeMap::new();
        let mut sum = |sampler: &Sampler| {
            let mut sample = lock(&sampler.sample);
            sample.decay(now);
            let mut sum = 0;
            for (key, weight) in sample.within(range) {
                *weights.entry(key.clone()).or_default() += weight;
                sum += weight;
            }
            (sum, sample.step)
        };
        let ((written, step), (read, other_step)) = (sum(&self.written), sum(&self.read));
        let hottest = weights.iter().max_by_key(|(_, weight)| **weight);
        let hottest = hottest.map(|(key, weight)| (key.clone(), weight / DECAY));
        let is_known = written + read >= CUT_STEPS * step.max(other_step);
        let cut = is_known.then(|| cut(range, &weights)).flatten();
        RangeLoad { written: written / DECAY, read: read / DECAY, cut, hottest }
    }
}

impl Sampler {
    #[inline]
    fn count(&self, key: &[u8], bytes: usize, clock: &dyn Clock) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Whoever takes it below zero samples, and is the only one to: each step that was passed is counted once.
        let before = self.left.fetch_sub(bytes, Ordering::Relaxed);
        if before > 0 && before <= bytes {
            self.sample(key, clock);
        }
    }

    #[cold]
    fn sample(&self, key: &[u8], clock: &dyn Clock) {
        let mut sample = lock(&self.sample);
        sample.decay(clock.now());
        let mut weight = 0;
        // A large value may be several steps at once.
        while self.left.load(Ordering::Relaxed) <= 0 {
            let step = sample.step;
            weight += step;
            let next = step / 2 + sample.random.below(step);
            self.left.fetch_add(next.cast_signed(), Ordering::Relaxed);
        }
        sample.add(key, weight);
    }
}

impl Sample {
    fn new(seed: u64) -> Sample {
        Sample { weights: BTreeMap::new(), step: STEP_MIN, decayed: 0, random: SplitMix64::new(seed) }
    }

    fn within(&self, range: &KeyRange) -> impl Iterator<Item = (&Bytes, &u64)> {
        let is_empty = range.is_empty();
        self.weights.range(range.begin.clone()..).take_while(move |(key, _)| !is_empty && **key < range.end)
    }

    fn add(&mut self, key: &[u8], weight: u64) {
        match self.weights.get_mut(key) {
            Some(known) => *known += weight,
            None => drop(self.weights.insert(Bytes::copy_from_slice(key), weight)),
        }
        if self.weights.len() > KEYS_MAX {
            self.step *= 2;
            let (step, random) = (self.step, &mut self.random);
            self.weights.retain(|_, weight| {
                // Those that stay count for those that go.
                let stays = *weight >= step || random.below(step) < *weight;
                *weight = (*weight).max(step);
                stays
            });
        }
    }

    fn decay(&mut self, now: Duration) {
        let seconds = now.as_secs().saturating_sub(self.decayed);
        self.decayed += seconds;
        for _ in 0..seconds.min(FORGOTTEN_AFTER) {
            if self.weights.is_empty() {
                self.step = STEP_MIN;
                return;
            }
            let least = self.step / DECAY;
            self.weights.retain(|_, weight| {
                *weight -= weight.div_ceil(DECAY);
                *weight > least
            });
        }
        if self.weights.len() < KEYS_MAX / 8 {
            self.step = (self.step / 2).max(STEP_MIN);
        }
    }
}

/// The key at which the parts before and from it on are as equal as can be, if that is of use.
fn cut(range: &KeyRange, weights: &BTreeMap<Bytes, u64>) -> Option<Bytes> {
    let all: u64 = weights.values().sum();
    let mut before = 0;
    let mut best: Option<(u64, &Bytes)> = None;
    for (key, weight) in weights {
        let smaller = before.min(all - before);
        if *key > range.begin && best.is_none_or(|(least, _)| smaller > least) {
            best = Some((smaller, key));
        }
        before += weight;
    }
    best.filter(|(smaller, _)| smaller * CUT_SHARE >= all && all > 0).map(|(_, key)| key.clone())
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::ManualClock;

    use super::*;

    struct World {
        clock: Arc<ManualClock>,
        load: Load,
    }

    fn key(number: u64) -> Bytes {
        format!("k{number:06}").into()
    }

    fn between(begin: u64, end: u64) -> KeyRange {
        KeyRange { begin: key(begin), end: key(end) }
    }

    impl World {
        fn new() -> World {
            let clock = Arc::new(ManualClock::new());
            World { load: Load::new(Arc::<ManualClock>::clone(&clock)), clock }
        }

        /// For so many seconds each of these keys is written a thousand times a second, with 193 bytes: load of 300 kB/s.
        fn write(&self, seconds: u64, keys: impl Fn(u64) -> u64) {
            for second in 0..seconds {
                for write in 0..1_000 {
                    let key = key(keys(second * 1_000 + write));
                    self.load.written(&[Mutation::set(key, vec![0; 193])]);
                }
                self.clock.advance(Duration::from_secs(1));
            }
        }

        fn has_bounds(&self) {
            for sampler in [&self.load.written, &self.load.read] {
                assert!(lock(&sampler.sample).weights.len() <= KEYS_MAX);
            }
        }
    }

    fn is_about(found: u64, expected: u64) {
        assert!(found * 10 > expected * 8 && found * 10 < expected * 12, "{found}, expected {expected}");
    }

    /// Rates are about what they were, wherever, and go away with time.
    #[test]
    fn rates_are_about_right_and_decay() {
        let world = World::new();
        world.write(60, |write| write % 5_000);
        is_about(world.load.of(&between(0, 5_000)).written, 300_000);
        is_about(world.load.of(&between(0, 1_000)).written, 60_000);
        assert_eq!(world.load.of(&between(5_000, 6_000)), RangeLoad::default());
        world.clock.advance(Duration::from_secs(11));
        is_about(world.load.of(&between(0, 5_000)).written, 150_000);
        world.clock.advance(Duration::from_secs(200));
        assert_eq!(world.load.of(&between(0, 5_000)), RangeLoad::default());
        world.clock.advance(Duration::from_secs(u64::from(u32::MAX)));
        world.write(1, |_| 0);
        assert!(world.load.of(&between(0, 5_000)).written > 0);
    }

    /// A busy storage server's sample stays small and right, and is fine again when it is calm.
    #[test]
    fn a_sample_has_a_bound() {
        let world = World::new();
        for _ in 0..40 {
            for read in 0..100_000 {
                world.load.read(&key(read), 900);
            }
            world.clock.advance(Duration::from_secs(1));
            world.has_bounds();
        }
        is_about(world.load.of(&between(0, 100_000)).read, 100_000_000);
        is_about(world.load.of(&between(0, 10_000)).read, 10_000_000);
        world.clock.advance(Duration::from_secs(300));
        world.write(60, |write| write % 5_000);
        is_about(world.load.of(&between(0, 5_000)).written, 300_000);
    }

    /// The cut halves the load, not the keys; large values count for what they are.
    #[test]
    fn a_cut_halves_the_load() {
        let world = World::new();
        // Nine of ten writes go to the last tenth of the keys.
        world.write(60, |write| if write % 10 == 0 { write % 9_000 } else { 9_000 + write * 7 % 1_000 });
        let range = between(0, 10_000);
        let load = world.load.of(&range);
        let cut = load.cut.clone().expect("it can be cut");
        assert!(cut > key(9_300) && cut < key(9_600), "{cut:?}");
        let part =
            |begin: &Bytes, end: &Bytes| world.load.of(&KeyRange { begin: begin.clone(), end: end.clone() }).written;
        is_about(part(&range.begin, &cut), part(&cut, &range.end));
        let world = World::new();
        for second in 0..30 {
            world.load.written(&[Mutation::set(key(second), vec![0; 1_000_000])]);
            world.clock.advance(Duration::from_secs(1));
        }
        is_about(world.load.of(&range).written, 1_000_000 * 86 / 100);
    }

    /// One key that has nearly all of it is told, and cannot be cut; one that has most of it can be cut off from what the others have.
    #[test]
    fn a_hot_key_is_told() {
        let world = World::new();
        world.write(60, |write| if write % 10 == 0 { write % 5_000 } else { 2_500 });
        let load = world.load.of(&between(0, 5_000));
        assert_eq!(load.cut, None, "{load:?}");
        let (hottest, share) = load.hottest.expect("there is one");
        assert_eq!(hottest, key(2_500));
        is_about(share, 270_000);
        let world = World::new();
        world.write(60, |write| if write % 2 == 0 { write * 13 % 5_000 } else { 2_500 });
        let cut = world.load.of(&between(0, 5_000)).cut.expect("it can be cut");
        assert!(cut >= key(2_500) && cut < key(2_600), "before or right behind the hot one: {cut:?}");
        // What begins with the hot key is cut behind it, not before it.
        let cut = world.load.of(&between(2_500, 5_000)).cut.expect("it can be cut");
        assert!(cut > key(2_500) && cut < key(2_600), "{cut:?}");
    }
}
