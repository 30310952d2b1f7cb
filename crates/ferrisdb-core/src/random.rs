//! Randomness comes in through a door: [`Random`]. With it, skewed choices: [`Zipf`].

/// A source of random numbers. Whoever needs one is given one, so that one seed decides a whole simulation.
pub trait Random: Send {
    /// 64 random bits.
    fn next_u64(&mut self) -> u64;

    /// A number in `0..bound`, with a bias below `bound / 2^64` (Lemire's multiplication without the rejection step).
    ///
    /// # Panics
    /// If `bound` is zero.
    fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a random number below zero was asked for");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): eight bytes of state, passes BigCrush, and every seed is as good as any other.
/// Not for secrets.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64 { state: seed }
    }
}

impl Random for SplitMix64 {
    #[inline]
    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Ranks in `0..count` with probability proportional to `1 / (rank + 1)^theta`: the generator of Gray et al., "Quickly
/// generating billion-record synthetic databases" (1994), which YCSB uses too. Rank 0 is the most popular.
#[derive(Debug, Clone)]
pub struct Zipf {
    count: f64,
    count_max: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
    second: f64,
}

impl Zipf {
    /// The skew of YCSB.
    pub const YCSB_THETA: f64 = 0.99;

    /// Ranks below `count`, more skewed the nearer `theta` is to one. Takes time linear in `count`: about 20 ns each.
    ///
    /// # Panics
    /// If `count` is below two.
    pub fn new(count: u64, theta: f64) -> Zipf {
        assert!(count >= 2, "a Zipf distribution needs two ranks or more");
        let zeta: f64 = (1..=count).map(|rank| 1.0 / (rank as f64).powf(theta)).sum();
        let second = 1.0 + 0.5_f64.powf(theta);
        Zipf {
            count: count as f64,
            count_max: count - 1,
            alpha: 1.0 / (1.0 - theta),
            zeta,
            eta: (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - second / zeta),
            second,
        }
    }

    /// A rank.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the product is positive and cut to the count below")]
    pub fn sample(&self, random: &mut impl Random) -> u64 {
        // 53 random bits make every f64 in [0, 1) of that spacing equally likely.
        let u = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            0
        } else if scaled < self.second {
            1
        } else {
            ((self.count * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64).min(self.count_max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published first outputs for seed 1234567: a seed written down today replays in any later build.
    #[test]
    fn the_sequence_is_the_published_one() {
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    /// Each rank comes as often as the definition says, at the head and in the tail.
    #[test]
    fn zipf_follows_its_definition() {
        let count = 10_000_u64;
        let zipf = Zipf::new(count, Zipf::YCSB_THETA);
        let mut random = SplitMix64::new(42);
        let samples = 1_000_000;
        let mut hits = vec![0_u64; usize::try_from(count).unwrap()];
        for _ in 0..samples {
            hits[usize::try_from(zipf.sample(&mut random)).unwrap()] += 1;
        }
        let weight = |rank: usize| 1.0 / (rank as f64 + 1.0).powf(Zipf::YCSB_THETA);
        let zeta: f64 = (0..hits.len()).map(weight).sum();
        for ranks in [0..1, 1..2, 2..10, 10..100, 100..1000, 1000..10_000] {
            let expected: f64 = ranks.clone().map(weight).sum::<f64>() / zeta;
            let measured = hits[ranks.clone()].iter().sum::<u64>() as f64 / f64::from(samples);
            // The method approximates ranks 2 and up by an integral, which is up to a tenth off at the head.
            assert!((measured / expected - 1.0).abs() < 0.12, "ranks {ranks:?}: {measured:.4}, not {expected:.4}");
        }
    }
}
