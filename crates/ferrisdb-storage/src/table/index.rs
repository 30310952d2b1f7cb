//! The index of a table: which block holds a key.
//!
//! For every data block, in order, a separator: an internal key at or after the block's last entry and before the next block's
//! first. Where user keys differ the separator is the shortest user key that separates them, with trailer 0 (after every version of
//! that key); where one key's versions go on in the next block it is the block's last internal key.
//!
//! An index that stays below [`index_flat_bytes_max`](super::TableOptions::index_flat_bytes_max) is one block, pinned while
//! the table is open. A larger one is cut into partitions, which are read through the cache, under a pinned top index of the same
//! format, whose blocks are the partitions.
//!
//! # Format of an index block
//!   varint  entries
//!   varint  offset of the first block
//!   then, per entry:
//!   varint  bytes shared with the separator before (0 in the first)
//!   bytes   the others, with their length
//!   varint  the separator's trailer
//!   varint  the block's length in the file; it begins where the one before ended
//!
//! # In memory
//! Decoded once per load into arrays: heads (eight key bytes after the prefix that all separators share, as big-endian
//! numbers), which are searched without following a pointer; and the separators, which are compared only where heads are equal.
//!
//! The heads of a 64 MiB table are 200 KiB, and those of all open tables fit no processor's cache: a binary search over them
//! misses it at nearly every step. So every sixteenth head is repeated in an array of its own, every sixteenth of these
//! again, and so on: a search reads sixteen neighbours per array, and only those of the last lie somewhere cold.

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};

use super::block::common_prefix_len;
use super::frame::{BlockHandle, FRAME_TRAILER_BYTES};
use crate::key::{InternalKey, KEY_BYTES_MAX, Trailer, key_head};

/// A decoded index block.
#[derive(Debug)]
pub struct Index {
    prefix: Box<[u8]>,
    blocks: Box<[Place]>,
    /// Coarsest first. Invariant: entry `i` of one is entry `16 i + 15` of the next (in the last one: the head of that block), as far as
    /// there is one; the first has at most 16.
    samples: Box<[Box<[u64]>]>,
    /// Where the last block ends, or the first would begin. Invariant: above every block's start.
    end: u64,
    /// Where each separator ends in `keys`.
    key_ends: Box<[u32]>,
    /// The separators without the prefix.
    keys: Box<[u8]>,
    /// Empty if all are zero, as in most tables.
    trailers: Box<[u64]>,
}

/// A block's head and where it begins, side by side: who has found the one has the other at hand.
///
/// Invariant: both rise from block to block; starts strictly.
#[derive(Debug, Clone, Copy)]
struct Place {
    head: u64,
    start: u64,
}

/// Heads that stand for one in the array above: two cache lines, or four with their blocks' starts, which are read side by side.
const GROUP: usize = 16;

/// Group `number`: shorter, or empty, at the end.
#[inline]
fn group_at<T>(array: &[T], number: usize) -> &[T] {
    let rest = &array[(number * GROUP).min(array.len())..];
    &rest[..rest.len().min(GROUP)]
}

/// See [`Index::samples`].
fn sample(blocks: &[Place]) -> Box<[Box<[u64]>]> {
    let mut samples: Vec<Box<[u64]>> = Vec::new();
    if blocks.len() > GROUP {
        samples.push(blocks.chunks_exact(GROUP).map(|group| group[GROUP - 1].head).collect());
    }
    while let Some(finer) = samples.last().filter(|finer| finer.len() > GROUP) {
        samples.push(finer.chunks_exact(GROUP).map(|group| group[GROUP - 1]).collect());
    }
    samples.reverse();
    samples.into()
}

impl Index {
    /// Decodes an index whose blocks must lie within `0..limit`.
    pub(crate) fn decode(bytes: &[u8], limit: u64) -> Result<Index, DecodeError> {
        let bad = |what| DecodeError { what };
        let mut decoder = Decoder::new(bytes);
        let count = decoder.varint_usize("index: entry count")?;
        let mut offset = decoder.varint("index: first offset")?;
        // An entry takes at least four bytes.
        if count > decoder.rest().len() / 4 {
            return Err(bad("index: entry count"));
        }
        let mut full = Vec::new();
        let (mut keys, mut ends) = (Vec::with_capacity(bytes.len()), Vec::with_capacity(count));
        let (mut offsets, mut trailers) = (Vec::with_capacity(count + 1), Vec::with_capacity(count));
        offsets.push(offset);
        for entry in 0..count {
            let shared = decoder.varint_usize("index: shared length")?;
            let suffix = decoder.bytes("index: separator")?;
            let trailer = decoder.varint("index: separator trailer")?;
            let len = decoder.varint("index: block length")?;
            if shared > full.len() || shared + suffix.len() > KEY_BYTES_MAX {
                return Err(bad("index: separator length"));
            }
            let start = keys.len();
            full.truncate(shared);
            full.extend_from_slice(suffix);
            keys.extend_from_slice(&full);
            let before = |end: u32| start - (end as usize);
            debug_assert_eq!(ends.last().copied().map_or(0, before), 0, "separators follow each other");
            if let (Some(&last_trailer), Some(&last_end)) = (trailers.last(), ends.last()) {
                let last_start = if entry >= 2 { ends[entry - 2] as usize } else { 0 };
                let last = InternalKey::new(&keys[last_start..last_end as usize], Trailer(last_trailer));
                if last >= InternalKey::new(&keys[start..], Trailer(trailer)) {
                    return Err(bad("index: separators out of order"));
                }
            }
            offset = offset.checked_add(len).filter(|&end| end <= limit).ok_or(bad("index: block past its region"))?;
            if len <= FRAME_TRAILER_BYTES as u64 {
                return Err(bad("index: block length"));
            }
            ends.push(u32::try_from(keys.len()).map_err(|_| bad("index: too large"))?);
            trailers.push(trailer);
            offsets.push(offset);
        }
        decoder.finish("index: trailing bytes")?;
        Ok(Index::with_prefix_stripped(&keys, &ends, &offsets, trailers))
    }

    fn with_prefix_stripped(keys: &[u8], ends: &[u32], offsets: &[u64], trailers: Vec<u64>) -> Index {
        let separator = |at: usize| {
            let start = if at == 0 { 0 } else { ends[at - 1] as usize };
            &keys[start..ends[at] as usize]
        };
        let prefix_len = match ends.len() {
            0 => 0,
            count => common_prefix_len(separator(0), separator(count - 1)),
        };
        let rests = || (0..ends.len()).map(|at| &separator(at)[prefix_len..]);
        let mut end = 0;
        let stripped_end = |rest: &[u8]| {
            end += u32::try_from(rest.len()).expect("shorter than what it was cut from");
            end
        };
        let all_zero = trailers.iter().all(|&trailer| trailer == 0);
        let blocks: Box<[Place]> =
            rests().zip(offsets).map(|(rest, &start)| Place { head: key_head(rest), start }).collect();
        Index {
            prefix: if ends.is_empty() { Box::default() } else { separator(0)[..prefix_len].into() },
            samples: sample(&blocks),
            blocks,
            end: *offsets.last().expect("there is one more offset than blocks"),
            key_ends: rests().map(stripped_end).collect(),
            keys: rests().flatten().copied().collect(),
            trailers: if all_zero { Box::default() } else { trailers.into_boxed_slice() },
        }
    }

    /// Blocks in the index.
    #[inline]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// True without a block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Where block `at` lies.
    #[inline]
    pub fn handle(&self, at: usize) -> BlockHandle {
        let offset = self.blocks[at].start;
        BlockHandle { offset, len: self.blocks.get(at + 1).map_or(self.end, |next| next.start) - offset }
    }

    /// Where the last block ends (or where the first would begin).
    pub(super) fn end_offset(&self) -> u64 {
        self.end
    }

    /// Where the first block begins.
    pub(super) fn start_offset(&self) -> u64 {
        self.blocks.first().map_or(self.end, |first| first.start)
    }

    #[inline]
    fn rest(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.key_ends[at - 1] as usize };
        &self.keys[start..self.key_ends[at] as usize]
    }

    #[inline]
    fn trailer(&self, at: usize) -> Trailer {
        Trailer(self.trailers.get(at).copied().unwrap_or(0))
    }

    /// Appends separator `at`'s user key to `out` and returns its trailer.
    pub(super) fn separator(&self, at: usize, out: &mut Vec<u8>) -> Trailer {
        out.clear();
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(self.rest(at));
        self.trailer(at)
    }

    /// The first block whose separator is at or after `target`: if any block holds it, this one does. [`Index::len`] if all
    /// separators lie before it.
    #[inline]
    pub fn find(&self, target: InternalKey<'_>) -> usize {
        let Some(rest) = target.user_key.strip_prefix(&*self.prefix) else {
            return if *target.user_key < *self.prefix { 0 } else { self.len() };
        };
        let head = key_head(rest);
        let low = self.first_head_not_below(head);
        if self.blocks.get(low).is_none_or(|block| block.head != head) {
            return low;
        }
        self.find_among_equal_heads(low, rest, target.trailer)
    }

    /// The number of heads below `head`.
    #[inline]
    fn first_head_not_below(&self, head: u64) -> usize {
        // Counting in a whole group has no branch to mispredict, and its reads don't wait for each other. Of the last entries of
        // groups, as many are below `head` as there are groups that are so as a whole.
        let mut at = 0;
        for array in &self.samples {
            let group = group_at(array, at);
            at = at * GROUP + group.iter().map(|&other| usize::from(other < head)).sum::<usize>();
        }
        at * GROUP + group_at(&self.blocks, at).iter().map(|block| usize::from(block.head < head)).sum::<usize>()
    }

    fn find_among_equal_heads(&self, low: usize, rest: &[u8], trailer: Trailer) -> usize {
        let head = self.blocks[low].head;
        let mut low = low;
        let mut high = low + self.blocks[low..].partition_point(|other| other.head == head);
        let target = InternalKey::new(rest, trailer);
        while low < high {
            let middle = low + (high - low) / 2;
            let separator = InternalKey::new(self.rest(middle), self.trailer(middle));
            if separator < target { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Bytes of memory held.
    pub fn memory_bytes(&self) -> usize {
        let samples: usize = self.samples.iter().map(|array| array.len() * 8 + size_of::<Box<[u64]>>()).sum();
        let arrays =
            samples + self.blocks.len() * size_of::<Place>() + self.key_ends.len() * 4 + self.trailers.len() * 8;
        arrays + self.keys.len() + self.prefix.len() + size_of::<Index>()
    }
}

/// Encodes the entries of an index, cut into partitions.
#[derive(Debug)]
pub(super) struct IndexBuilder {
    partition_bytes: usize,
    /// The finished partitions and the one being filled.
    partitions: Vec<Partition>,
    last: Vec<u8>,
}

#[derive(Debug, Default)]
struct Partition {
    entries: u64,
    first_offset: u64,
    body: Vec<u8>,
    last_user_key: Vec<u8>,
    last_trailer: u64,
}

impl Partition {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.entries);
        put_varint(out, self.first_offset);
        out.extend_from_slice(&self.body);
    }
}

impl IndexBuilder {
    pub(super) fn new(partition_bytes: usize) -> IndexBuilder {
        IndexBuilder { partition_bytes, partitions: Vec::new(), last: Vec::new() }
    }

    /// Adds the block that follows the last one.
    pub(super) fn add(&mut self, separator: InternalKey<'_>, block: BlockHandle) {
        let full = |partition: &Partition| partition.body.len() >= self.partition_bytes;
        if self.partitions.last().is_none_or(full) {
            self.partitions.push(Partition { first_offset: block.offset, ..Partition::default() });
            self.last.clear();
        }
        let partition = self.partitions.last_mut().expect("there is one, or it was just made");
        let shared = common_prefix_len(&self.last, separator.user_key);
        put_varint(&mut partition.body, shared as u64);
        put_bytes(&mut partition.body, &separator.user_key[shared..]);
        put_varint(&mut partition.body, separator.trailer.0);
        put_varint(&mut partition.body, block.len);
        partition.entries += 1;
        self.last.truncate(shared);
        self.last.extend_from_slice(&separator.user_key[shared..]);
        partition.last_user_key.clone_from(&self.last);
        partition.last_trailer = separator.trailer.0;
    }

    /// Bytes so far.
    pub(super) fn estimated_bytes(&self) -> usize {
        self.partitions.iter().map(|partition| partition.body.len() + 16).sum()
    }

    /// Encodes the index. If it is larger than `flat_bytes_max`, `write` is first called for every partition; the top index
    /// is appended to `out` in either case. Returns the number of levels: 1 or 2.
    pub(super) fn finish<E>(
        &self,
        flat_bytes_max: usize,
        out: &mut Vec<u8>,
        mut write: impl FnMut(&[u8]) -> Result<BlockHandle, E>,
    ) -> Result<u32, E> {
        if self.partitions.len() <= 1 || self.estimated_bytes() <= flat_bytes_max {
            // The first separator of a partition shares nothing, so bodies can be joined as they are.
            put_varint(out, self.partitions.iter().map(|partition| partition.entries).sum());
            put_varint(out, self.partitions.first().map_or(0, |partition| partition.first_offset));
            self.partitions.iter().for_each(|partition| out.extend_from_slice(&partition.body));
            return Ok(1);
        }
        let mut top = IndexBuilder::new(usize::MAX);
        let mut encoded = Vec::new();
        for partition in &self.partitions {
            encoded.clear();
            partition.encode(&mut encoded);
            let handle = write(&encoded)?;
            let separator = InternalKey::new(&partition.last_user_key, Trailer(partition.last_trailer));
            top.add(separator, handle);
        }
        top.partitions[0].encode(out);
        Ok(2)
    }
}

/// Writes into `out` the shortest key that is at or after `last` and before `next`; `last < next`.
pub(super) fn shortest_separator(last: &[u8], next: &[u8], out: &mut Vec<u8>) {
    debug_assert!(last < next, "the separator lies between two different keys");
    out.clear();
    let shared = common_prefix_len(last, next);
    // `last` is the shortest itself if `next` begins with it, or if it ends with the byte that differs.
    if shared + 1 < last.len() {
        if next.len() > shared + 1 {
            // A proper prefix of `next` that is already greater than `last`.
            out.extend_from_slice(&next[..=shared]);
            return;
        }
        if last[shared] + 1 < next[shared] {
            out.extend_from_slice(&last[..shared]);
            out.push(last[shared] + 1);
            return;
        }
        // Raise the first byte after the difference that can be raised.
        if let Some(at) = (shared + 1..last.len() - 1).find(|&at| last[at] != u8::MAX) {
            out.extend_from_slice(&last[..at]);
            out.push(last[at] + 1);
            return;
        }
    }
    out.extend_from_slice(last);
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};

    /// Every separator lies where it must and is never longer than the key it stands for.
    #[test]
    fn separators_separate() {
        let separate = |last: &[u8], next: &[u8]| {
            let mut out = Vec::new();
            shortest_separator(last, next, &mut out);
            assert!(*last <= *out && *out < *next && out.len() <= last.len(), "{last:?} {out:?} {next:?}");
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(separate(b"apple", b"cherry"), "c");
        assert_eq!(separate(b"apple", b"c"), "b");
        assert_eq!(separate(b"apple", b"b"), "aq");
        assert_eq!(separate(b"app", b"apple"), "app");
        assert_eq!(separate(b"user0001", b"user0002"), "user0001");
        let mut random = SplitMix64::new(3);
        for _ in 0..20_000 {
            let mut key =
                || (0..random.below(6)).map(|_| [0, 1, 2, 254, 255][random.below(5) as usize]).collect::<Vec<u8>>();
            let (a, b) = (key(), key());
            if a != b {
                separate(a.as_slice().min(&b), a.as_slice().max(&b));
            }
        }
    }

    /// Separators that do not rise are refused: a binary search over them would miss blocks.
    #[test]
    fn separators_must_rise() {
        let decode = |separators: [(&[u8], u64); 2]| {
            let mut builder = IndexBuilder::new(usize::MAX);
            for (n, (key, trailer)) in (0..).zip(separators) {
                builder.add(InternalKey::new(key, Trailer(trailer)), BlockHandle { offset: n * 100, len: 100 });
            }
            let mut bytes = Vec::new();
            builder.finish(usize::MAX, &mut bytes, |_| Ok::<_, ()>(BlockHandle::default())).unwrap();
            Index::decode(&bytes, 200).map(|index| index.len())
        };
        assert_eq!(decode([(b"a", 0), (b"b", 0)]), Ok(2));
        assert_eq!(decode([(b"a", 9), (b"a", 8)]), Ok(2));
        for bad in [[(&b"b"[..], 0), (&b"a"[..], 0)], [(b"a", 0), (b"a", 0)], [(b"a", 8), (b"a", 9)]] {
            assert_eq!(decode(bad).unwrap_err().what, "index: separators out of order");
        }
    }

    /// The search through the samples finds what one through all heads does, whatever their number, with ties and at both ends.
    #[test]
    fn samples_lead_to_the_head() {
        let mut random = SplitMix64::new(7);
        for count in (0..600).chain([4095, 4096, 4097, 4351, 4352, 5000, 70_000]) {
            let mut separators: Vec<[u8; 8]> = (0..count).map(|_| (random.below(1 << 40) << 3).to_be_bytes()).collect();
            separators.sort_unstable();
            let ends: Vec<u32> = (1..=count).map(|n| n * 8).collect();
            let offsets: Vec<u64> = (0..=u64::from(count)).collect();
            let index =
                Index::with_prefix_stripped(separators.as_flattened(), &ends, &offsets, vec![0; count as usize]);
            let probes = if count < 600 { 50 } else { 5_000 };
            for _ in 0..probes {
                let near = separators.get(random.below(u64::from(count.max(1))) as usize).copied().unwrap_or_default();
                let key = u64::from_be_bytes(near).saturating_add(random.below(3)).saturating_sub(1).to_be_bytes();
                let target = InternalKey::new(&key, Trailer(0));
                assert_eq!(index.find(target), separators.partition_point(|other| *other < key), "{count} {key:?}");
            }
        }
    }

    /// Random bytes are refused or give an index whose every block lies within its region.
    #[test]
    fn random_bytes_never_panic() {
        let mut builder = IndexBuilder::new(usize::MAX);
        for n in 0..20u64 {
            let key = format!("key{n:03}");
            builder.add(InternalKey::new(key.as_bytes(), Trailer(n % 3)), BlockHandle { offset: n * 100, len: 100 });
        }
        let mut good = Vec::new();
        builder.finish(usize::MAX, &mut good, |_| Ok::<_, ()>(BlockHandle::default())).unwrap();
        assert_eq!(Index::decode(&good, 2000).unwrap().len(), 20);
        let mut random = SplitMix64::new(5);
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
            if let Ok(index) = Index::decode(&bytes, 2000) {
                let target = InternalKey::new(&bytes[..5], Trailer(0));
                let found = index.find(target);
                assert!(found <= index.len());
                assert!((0..index.len()).all(|at| index.handle(at).end().unwrap() <= 2000));
            }
        }
    }
}
