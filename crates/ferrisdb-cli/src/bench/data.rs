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
        // The first number of each seed is a bijection of the seed that scatters neighbours.
        key.extend_from_slice(&SplitMix64::new(number).next_u64().to_be_bytes());
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
