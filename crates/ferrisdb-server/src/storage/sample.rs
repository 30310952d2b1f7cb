//! [`Sample`]: about how many bytes of which keys are not flushed yet, from a part of them.
//!
//! FoundationDB's byte sample: a key is in the sample with a probability in proportion to its bytes, and then counts for the inverse of
//! it, so that sums over ranges are right on average, and a large value always counts as itself. Whether a key is in is
//! decided by its hash, not by a die: replicas agree, and a run can be repeated.
//!
//! What is flushed leaves the sample: from then on the tables' own sizes count. So nothing of it has to be stored. After a restart the log
//! applies again exactly what was not flushed, and with it the sample comes back.

use std::collections::BTreeMap;

use ferrisdb_core::{Bytes, KeyRange, Version};

/// Bytes for which one key is in the sample, on average: a range of 100 kB is then estimated from some 25 keys (a fifth off), and
/// the sample of 200 MB of small rows has 50,000 keys.
const UNIT_BYTES: u64 = 4096;

/// The sample of what is not flushed.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// By key: the version of its last write, and the bytes that it counts for.
    keys: BTreeMap<Bytes, (Version, u64)>,
}

impl Sample {
    /// The key was written.
    pub(super) fn set(&mut self, key: &Bytes, value_bytes: usize, version: Version) {
        let bytes = (key.len() + value_bytes) as u64;
        // One in so many: `bytes / UNIT_BYTES` of all hashes are below the mark.
        let mark = u64::MAX / UNIT_BYTES * bytes.min(UNIT_BYTES);
        if hash(key) <= mark && bytes > 0 {
            self.keys.insert(key.clone(), (version, bytes.max(UNIT_BYTES)));
        } else {
            self.keys.remove(key);
        }
    }

    /// The key was cleared.
    pub(super) fn clear(&mut self, key: &[u8]) {
        self.keys.remove(key);
    }

    /// The keys of a range were cleared.
    pub(super) fn clear_range(&mut self, begin: &Bytes, end: &Bytes) {
        let gone: Vec<Bytes> = self.keys.range(begin.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.keys.remove(&key);
        }
    }

    /// Everything up to this version is in tables now.
    pub(super) fn forget_flushed(&mut self, flushed: Version) {
        self.keys.retain(|_, (version, _)| *version > flushed);
    }

    /// About how many bytes the range has.
    pub(super) fn bytes(&self, range: &KeyRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        self.keys.range(range.begin.clone()..range.end.clone()).map(|(_, (_, bytes))| bytes).sum()
    }
}

/// The finaliser of MurmurHash3 over eight bytes at a time: even short keys that differ in a bit get unrelated hashes.
fn hash(key: &[u8]) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        z = (z ^ (z >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        z ^ (z >> 33)
    };
    let mut state = mix(key.len() as u64 ^ 0x9E37_79B9_7F4A_7C15);
    for chunk in key.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(word));
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Bytes {
        Bytes::from(format!("key{number:06}"))
    }

    fn v(number: u64) -> Version {
        Version::from_u64(number)
    }

    /// A sum is close to the truth; overwriting does not count twice, clears and flushes take away, a large value is exact.
    #[test]
    fn sums_are_about_right() {
        let mut sample = Sample::default();
        for round in 1..=3 {
            for number in 0..20_000 {
                sample.set(&key(number), 91, v(round));
            }
        }
        let all = KeyRange::new("", "z");
        let total = sample.bytes(&all);
        assert!((1_700_000..2_300_000).contains(&total), "of 2,000,000: {total}");
        let half = sample.bytes(&KeyRange::new(key(0), key(10_000)));
        assert!((800_000..1_200_000).contains(&half), "of 1,000,000: {half}");

        sample.clear_range(&key(0), &key(10_000));
        assert_eq!(sample.bytes(&all), total - half);
        sample.set(&Bytes::from("large"), 99_995, v(4));
        assert_eq!(sample.bytes(&all), total - half + 100_000);
        sample.forget_flushed(v(3));
        assert_eq!(sample.bytes(&all), 100_000);
        sample.clear(b"large");
        assert_eq!(sample.bytes(&all), 0);
    }
}
