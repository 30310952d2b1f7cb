//! Which key an operation touches: the key space, and the order of random loads.
//!
//! # The key space
//! Keys are 16 decimal digits. Position `p` of `count` positions has room for three keys, in this order:
//!
//! ```text
//! 4p      the base key, written by every load                      slot p
//! 4p + 1  an inserted key, written by YCSB D and E                 slot count + p
//! 4p + 2  a key that nobody writes, for reads of what is missing   no slot
//! ```
//!
//! So inserted and missing keys lie between the loaded ones, as hashed keys would, and a scan can tell from a key
//! alone which key must come next. A *slot* numbers the keys that may exist.

use ferrisdb_core::{Random, SplitMix64};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;

/// A key as the engines see it.
pub(crate) type Key = [u8; KEY_BYTES];

/// The key with number `number`: its decimal digits, so that numeric and byte order agree.
#[inline]
pub(crate) fn key_of_number(number: u64) -> Key {
    let mut key = [b'0'; KEY_BYTES];
    let mut rest = number;
    let mut at = KEY_BYTES;
    while rest > 0 && at > 0 {
        at -= 1;
        key[at] = b'0' + u8::try_from(rest % 10).expect("a decimal digit fits a byte");
        rest /= 10;
    }
    key
}

/// The number of a key, or `None` if it is not one of ours.
#[inline]
pub(crate) fn number_of_key(key: &[u8]) -> Option<u64> {
    if key.len() != KEY_BYTES {
        return None;
    }
    let mut number = 0_u64;
    for &byte in key {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    Some(number)
}

/// What a key of the key space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Base { position: u64 },
    Inserted { position: u64 },
}

/// The key space of one data set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeySpace {
    count: u64,
    order: Permutation,
}

impl KeySpace {
    /// A key space of `count` base keys, which `seed` puts into a random order of insertion.
    pub(crate) fn new(count: u64, seed: u64) -> KeySpace {
        KeySpace { count, order: Permutation::new(count, seed) }
    }

    /// How many base keys there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// How many slots there are: one for each base key and each key that may be inserted.
    pub(crate) fn slot_count(&self) -> u64 {
        2 * self.count
    }

    /// The `index`-th item in order of insertion: first all base keys, then all inserted ones, each in random order.
    #[inline]
    pub(crate) fn slot_of_item(&self, index: u64) -> u64 {
        if index < self.count { self.order.apply(index) } else { self.count + self.order.apply(index - self.count) }
    }

    /// The key of a slot.
    #[inline]
    pub(crate) fn key(&self, slot: u64) -> Key {
        key_of_number(if slot < self.count { 4 * slot } else { 4 * (slot - self.count) + 1 })
    }

    /// A key that is never written, next to position `position`.
    #[inline]
    pub(crate) fn missing_key(&self, position: u64) -> Key {
        key_of_number(4 * position + 2)
    }

    /// What `key` is; `None` if no workload ever writes it.
    #[inline]
    pub(crate) fn kind(&self, key: &[u8]) -> Option<KeyKind> {
        let number = number_of_key(key)?;
        let position = number / 4;
        match number % 4 {
            _ if position >= self.count => None,
            0 => Some(KeyKind::Base { position }),
            1 => Some(KeyKind::Inserted { position }),
            _ => None,
        }
    }

    /// The slot of a key of that kind.
    #[inline]
    pub(crate) fn slot(&self, kind: KeyKind) -> u64 {
        match kind {
            KeyKind::Base { position } => position,
            KeyKind::Inserted { position } => self.count + position,
        }
    }
}

/// A bijection on `0..count` that looks random and needs no memory: a four-round Feistel network over the next even
/// number of bits, walked until it lands inside the range (fewer than four steps on average).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    count: u64,
    half_bits: u32,
    round_keys: [u64; 4],
}

impl Permutation {
    pub(crate) fn new(count: u64, seed: u64) -> Permutation {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        let mut random = SplitMix64::new(seed);
        Permutation { count, half_bits: bits.div_ceil(2).max(1), round_keys: [(); 4].map(|()| random.next_u64()) }
    }

    #[inline]
    pub(crate) fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.count, "{index} is outside of 0..{}", self.count);
        let mask = (1_u64 << self.half_bits) - 1;
        let mut x = index;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for round_key in self.round_keys {
                let mixed = (right ^ round_key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                (left, right) = (right, left ^ (mixed >> 40 & mask));
            }
            x = left << self.half_bits | right;
            if x < self.count {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load in random order writes every key, and writes it once.
    #[test]
    fn the_permutation_is_a_bijection() {
        for count in [1, 2, 3, 64, 1000, 4097] {
            let permutation = Permutation::new(count, 7);
            let mut seen = vec![false; usize::try_from(count).unwrap()];
            for index in 0..count {
                let slot = usize::try_from(permutation.apply(index)).unwrap();
                assert!(!std::mem::replace(&mut seen[slot], true), "{slot} came twice of {count}");
            }
        }
    }

    /// A "random" load whose neighbours stay neighbours would flatter every log-structured engine.
    #[test]
    fn the_permutation_scatters_neighbours() {
        let count = 100_000;
        let permutation = Permutation::new(count, 1);
        let close = (1..count).filter(|&i| permutation.apply(i).abs_diff(permutation.apply(i - 1)) < 1000).count();
        // Two random positions lie that close with probability 2 %.
        assert!((1000..3500).contains(&close), "{close} of {count} neighbours stayed close");
    }

    /// Keys sort as their numbers do, and what is missing lies between what is there.
    #[test]
    fn keys_sort_like_numbers() {
        let space = KeySpace::new(1000, 3);
        assert_eq!(&space.key(5), b"0000000000000020");
        for position in 0..999 {
            let ordered =
                [space.key(position), space.key(1000 + position), space.missing_key(position), space.key(position + 1)];
            assert!(ordered.is_sorted());
            assert_eq!(space.kind(&ordered[0]), Some(KeyKind::Base { position }));
            assert_eq!(space.kind(&ordered[1]), Some(KeyKind::Inserted { position }));
            assert_eq!(space.kind(&ordered[2]), None);
            for key in &ordered[..2] {
                assert_eq!(&space.key(space.slot(space.kind(key).unwrap())), key);
            }
        }
        assert_eq!(space.kind(b"000000000000002x"), None);
        assert_eq!(space.kind(b"20"), None);
    }
}
