//! What the benchmark's rows look like, and which of them an operation touches.
//!
//! A row's key is the prefix and its number, mixed, so that rows that were inserted one after another lie anywhere. Its value begins
//! with its number: a read that gives another row's value, or a cut one, is noticed.

use std::collections::BTreeSet;

use ferrisdb::{KeyRange, key};
use ferrisdb_core::{Random, SplitMix64};

/// Bytes that a value has at least: the row's number.
pub(crate) const VALUE_BYTES_MIN: usize = 8;
/// Values are cut out of so many random bytes.
const FILLER_BYTES: usize = 64 << 10;
/// The skew of YCSB.
const ZIPF_THETA: f64 = 0.99;

/// Keys and values.
#[derive(Debug)]
pub(crate) struct Rows {
    prefix: Vec<u8>,
    value_bytes: usize,
    filler: Vec<u8>,
}

impl Rows {
    pub(crate) fn new(prefix: &[u8], value_bytes: usize, seed: u64) -> Rows {
        let mut random = SplitMix64::new(seed);
        let filler =
            (0..(FILLER_BYTES + value_bytes).div_ceil(8)).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        Rows { prefix: prefix.to_vec(), value_bytes: value_bytes.max(VALUE_BYTES_MIN), filler }
    }

    /// All rows.
    pub(crate) fn range(&self) -> KeyRange {
        KeyRange::prefix(&self.prefix)
    }

    pub(crate) fn key(&self, number: u64) -> Vec<u8> {
        let mut key = self.prefix.clone();
        key.extend_from_slice(&mixed(number).to_be_bytes());
        key
    }

    /// A new value for a row.
    pub(crate) fn value(&self, number: u64, random: &mut SplitMix64) -> Vec<u8> {
        let from = usize::try_from(random.below(FILLER_BYTES as u64)).expect("it is below the filler's length");
        let mut value = self.filler[from..from + self.value_bytes].to_vec();
        value[..VALUE_BYTES_MIN].copy_from_slice(&number.to_le_bytes());
        value
    }

    /// What is wrong with a value that was read, if anything is.
    pub(crate) fn check(&self, number: u64, value: Option<&[u8]>) -> Result<(), String> {
        match value {
            None => Err(format!("row {number} ({}) is missing", key::printable(&self.key(number)))),
            Some(value) if value.len() != self.value_bytes || value[..VALUE_BYTES_MIN] != number.to_le_bytes() => {
                Err(format!("row {number} ({}) has a value that nobody wrote", key::printable(&self.key(number))))
            }
            Some(_) => Ok(()),
        }
    }

    /// The same for a row of a scan, which says itself which row it is.
    pub(crate) fn check_row(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = value.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        match number {
            Some(number) if self.key(number) == key => self.check(number, Some(value)),
            _ => Err(format!("the row at {} has a value that nobody wrote there", key::printable(key))),
        }
    }
}

/// A bijection that scatters neighbours: the end of SplitMix64.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Ranks in `0..count` with probability proportional to `1 / (rank + 1)^0.99`: the generator of Gray et al., "Quickly generating
/// billion-record synthetic databases" (1994), which YCSB uses too. Rank 0 is the most popular.
#[derive(Debug)]
pub(crate) struct Zipf {
    count: f64,
    rank_max: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
    second: f64,
}

impl Zipf {
    /// Takes time linear in `count`, which is at least 2: about 20 ns each.
    pub(crate) fn new(count: u64) -> Zipf {
        let zeta: f64 = (1..=count).map(|rank| 1.0 / (rank as f64).powf(ZIPF_THETA)).sum();
        let second = 1.0 + 0.5_f64.powf(ZIPF_THETA);
        Zipf {
            count: count as f64,
            rank_max: count - 1,
            alpha: 1.0 / (1.0 - ZIPF_THETA),
            zeta,
            eta: (1.0 - (2.0 / count as f64).powf(1.0 - ZIPF_THETA)) / (1.0 - second / zeta),
            second,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the product is positive and cut to the count below")]
    pub(crate) fn sample(&self, random: &mut SplitMix64) -> u64 {
        // 53 random bits make every f64 in [0, 1) of that spacing equally likely.
        let u = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            0
        } else if scaled < self.second {
            1
        } else {
            ((self.count * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64).min(self.rank_max)
        }
    }
}

/// Numbers of rows that are inserted, and how many of them are there: others may only read those whose insertion has been acknowledged.
#[derive(Debug)]
pub(crate) struct Inserts {
    next: u64,
    /// Every row below it is there.
    acknowledged: u64,
    /// Rows that are there, above it.
    early: BTreeSet<u64>,
}

impl Inserts {
    pub(crate) fn new(loaded: u64) -> Inserts {
        Inserts { next: loaded, acknowledged: loaded, early: BTreeSet::new() }
    }

    /// The number of a row that shall be inserted.
    pub(crate) fn begin(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn acknowledge(&mut self, number: u64) {
        self.early.insert(number);
        while self.early.remove(&self.acknowledged) {
            self.acknowledged += 1;
        }
    }

    /// How many rows are there, without a gap.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read is checked: a missing value, a cut one, another row's.
    #[test]
    fn a_wrong_value_is_noticed() {
        let rows = Rows::new(b"p/", 100, 1);
        let mut random = SplitMix64::new(2);
        let value = rows.value(7, &mut random);
        assert_eq!(value.len(), 100);
        assert_eq!(rows.check(7, Some(&value)), Ok(()));
        assert_eq!(rows.check_row(&rows.key(7), &value), Ok(()));
        assert!(rows.check(7, None).is_err());
        assert!(rows.check(7, Some(&value[..99])).is_err());
        assert!(rows.check(8, Some(&value)).is_err());
        assert!(rows.check_row(&rows.key(8), &value).is_err());
        assert!(rows.check_row(&rows.key(7), b"").is_err());
    }

    /// Rank 0 comes as often as the definition says, and so does the tail.
    #[test]
    fn zipf_follows_its_definition() {
        let zipf = Zipf::new(10_000);
        let mut random = SplitMix64::new(42);
        let mut hits = [0_u32; 3];
        for _ in 0..100_000 {
            hits[match zipf.sample(&mut random) {
                0 => 0,
                1..100 => 1,
                100..10_000 => 2,
                rank => panic!("rank {rank} is above the count"),
            }] += 1;
        }
        // 1 / zeta = 9.8 %, and 51 % and 49 % below and above the hundredth rank, within the method's tenth.
        let share = |hits: u32| f64::from(hits) / 100_000.0;
        assert!((0.09..0.11).contains(&share(hits[0])), "{hits:?}");
        assert!((0.37..0.47).contains(&share(hits[1])), "{hits:?}");
    }

    /// A row counts as there when all before it are there too.
    #[test]
    fn inserts_are_acknowledged_in_order() {
        let mut inserts = Inserts::new(10);
        let numbers = [inserts.begin(), inserts.begin(), inserts.begin()];
        assert_eq!(numbers, [10, 11, 12]);
        inserts.acknowledge(11);
        assert_eq!(inserts.acknowledged(), 10);
        inserts.acknowledge(10);
        assert_eq!(inserts.acknowledged(), 12);
    }
}
