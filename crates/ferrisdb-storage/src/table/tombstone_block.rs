//! The range tombstones of a table.
//!
//! # Format
//!   varint  fragments
//!   then, per fragment, in key order:
//!   bytes   start, inclusive
//!   bytes   end, exclusive
//!   varint  versions, at least 1
//!   varint  the newest version, then for every other the difference to the one before (at least 1)

use ferrisdb_core::Version;
use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};

use crate::key::KEY_BYTES_MAX;
use crate::tombstone::{Fragment, FragmentList};

pub(super) fn encode(list: &FragmentList, out: &mut Vec<u8>) {
    put_varint(out, list.fragments().len() as u64);
    for fragment in list.fragments() {
        put_bytes(out, &fragment.start);
        put_bytes(out, &fragment.end);
        put_varint(out, fragment.versions.len() as u64);
        let mut last = None::<Version>;
        for version in &fragment.versions {
            put_varint(out, last.map_or(version.get(), |last| last.get() - version.get()));
            last = Some(*version);
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<FragmentList, DecodeError> {
    let bad = |what| DecodeError { what };
    let mut decoder = Decoder::new(bytes);
    let count = decoder.varint_usize("range tombstones: count")?;
    // A fragment takes at least five bytes, so no count makes us reserve more than the block could hold.
    if count > decoder.rest().len() / 5 {
        return Err(bad("range tombstones: count"));
    }
    let mut fragments = Vec::with_capacity(count);
    for _ in 0..count {
        let start = decoder.bytes("range tombstones: start")?;
        let end = decoder.bytes("range tombstones: end")?;
        let versions = decoder.varint_usize("range tombstones: version count")?;
        if versions > decoder.rest().len() || start.len().max(end.len()) > KEY_BYTES_MAX {
            return Err(bad("range tombstones: length"));
        }
        let mut list = Vec::with_capacity(versions);
        for index in 0..versions {
            let number = decoder.varint("range tombstones: version")?;
            let number = match list.last().map(|last: &Version| last.get()) {
                Some(last) if index > 0 => last.checked_sub(number).ok_or(bad("range tombstones: version"))?,
                _ => number,
            };
            list.push(Version::new(number).ok_or(bad("range tombstones: version"))?);
        }
        fragments.push(Fragment { start: start.into(), end: end.into(), versions: list.into_boxed_slice() });
    }
    decoder.finish("range tombstones: trailing bytes")?;
    FragmentList::from_fragments(fragments).ok_or(bad("range tombstones: order"))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    /// A list survives the round trip; random and mutated bytes are refused or give a well-formed list.
    #[test]
    fn lists_survive_and_noise_does_not() {
        let mut random = SplitMix64::new(21);
        for _ in 0..2_000 {
            let tombstones: Vec<(Vec<u8>, Vec<u8>, Version)> = (0..random.below(6))
                .map(|_| {
                    let key =
                        |random: &mut SplitMix64| vec![b'a' + random.below(20) as u8; 1 + random.below(3) as usize];
                    (key(&mut random), key(&mut random), Version::from_u64(random.below(1000)))
                })
                .collect();
            let list =
                FragmentList::new(tombstones.iter().map(|(start, end, version)| (&start[..], &end[..], *version)));
            let mut bytes = Vec::new();
            encode(&list, &mut bytes);
            assert_eq!(decode(&bytes).unwrap(), list);
            for _ in 0..10 {
                let mut bytes = bytes.clone();
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next_u64() as u8;
                if let Ok(list) = decode(&bytes) {
                    list.check();
                }
            }
        }
    }
}
