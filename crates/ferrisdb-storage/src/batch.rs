//! [`WriteBatch`]: the atomic unit of writing.
//!
//! All operations of a batch get one version, become visible together, and survive a crash together or not at all.
//!
//! # Canonical form
//! Within one version an operation cannot say "after" another, so a batch is made canonical before it is written: per key
//! the last point operation wins, and a range delete drops the point operations that came before it in the batch. (A range
//! tombstone hides only what is *older* than its version, so those after it stay visible.) Canonical order: owner state, range
//! deletes as given, then point operations by key. Equal batches have equal bytes.
//!
//! # Format (also the payload of a WAL record, after its header)
//!   put           0x01, bytes key, bytes value
//!   delete        0x00, bytes key
//!   delete range  0x03, bytes start, bytes end
//!   owner state   0x10, bytes
//! where `bytes` is a varint length and the bytes. Kinds of point operations are those of [`ValueKind`].

use std::path::Path;

use ferrisdb_core::Version;
use ferrisdb_core::codec::{self, DecodeError, Decoder};

use crate::error::{Error, Result};
use crate::key::{KEY_BYTES_MAX, VALUE_BYTES_MAX, ValueKind};

const OWNER_STATE: u8 = 0x10;

/// The largest batch, in encoded bytes: 1 GiB would still fit a WAL record; half of it leaves room for framing.
pub const BATCH_BYTES_MAX: usize = 512 << 20;

/// The most bytes that an owner may keep in the manifest.
pub const OWNER_STATE_BYTES_MAX: usize = 4 << 20;

/// One operation of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// The key has this value from now on.
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// The key has no value from now on.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// No key from `start` up to, not including, `end` has a value from now on.
    DeleteRange {
        /// The first key.
        start: &'a [u8],
        /// The first key after it that stays.
        end: &'a [u8],
    },
    /// Bytes of the owner's own that become durable together with this batch's version.
    OwnerState {
        /// The bytes.
        bytes: &'a [u8],
    },
}

/// Operations that take effect together. Building one does no I/O and cannot fail; limits are checked when it is written.
#[derive(Debug, Clone)]
pub struct WriteBatch {
    data: Vec<u8>,
    count: usize,
    point_count: usize,
    /// Sum over point operations of key and value lengths.
    point_bytes: usize,
    /// True as long as the operations are already in canonical order without a duplicate.
    canonical: bool,
    /// Where in `data` the last point operation's key lies, to notice when the order breaks.
    last_key: Option<(usize, usize)>,
    longest_key: usize,
    longest_value: usize,
    inverted: Option<(Vec<u8>, Vec<u8>)>,
    /// It was given back once with a time to wait: the next attempt is not delayed again, or a large batch would never be written.
    pub(crate) is_delay_served: bool,
}

impl Default for WriteBatch {
    fn default() -> WriteBatch {
        WriteBatch::new()
    }
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch::in_buffer(Vec::new())
    }

    /// An empty batch with room for so many encoded bytes.
    pub fn with_capacity(bytes: usize) -> WriteBatch {
        WriteBatch::in_buffer(Vec::with_capacity(bytes))
    }

    fn in_buffer(data: Vec<u8>) -> WriteBatch {
        WriteBatch {
            data,
            count: 0,
            point_count: 0,
            point_bytes: 0,
            canonical: true,
            last_key: None,
            longest_key: 0,
            longest_value: 0,
            inverted: None,
            is_delay_served: false,
        }
    }

    /// Sets a key's value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> &mut WriteBatch {
        self.push_point(ValueKind::Value, key, value)
    }

    /// Removes a key.
    pub fn delete(&mut self, key: &[u8]) -> &mut WriteBatch {
        self.push_point(ValueKind::Tombstone, key, b"")
    }

    /// Removes every key from `start` up to, not including, `end`, in O(1). An empty range does nothing; an inverted one
    /// makes the write fail.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) -> &mut WriteBatch {
        if start >= end {
            if start > end && self.inverted.is_none() {
                self.inverted = Some((start.to_vec(), end.to_vec()));
            }
            return self;
        }
        // Point operations already in the batch may be hidden by it; before any, order is kept.
        self.canonical &= self.point_count == 0;
        self.longest_key = self.longest_key.max(start.len()).max(end.len());
        self.count += 1;
        self.data.push(ValueKind::RangeTombstone as u8);
        codec::put_bytes(&mut self.data, start);
        codec::put_bytes(&mut self.data, end);
        self
    }

    /// Bytes of the owner's own, durable in the same manifest edit as this batch's version. The last of a batch wins.
    pub fn set_owner_state(&mut self, bytes: &[u8]) -> &mut WriteBatch {
        self.canonical &= self.count == 0;
        self.count += 1;
        self.data.push(OWNER_STATE);
        codec::put_bytes(&mut self.data, bytes);
        self
    }

    /// Removes all operations and keeps the memory.
    pub fn clear(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        data.clear();
        *self = WriteBatch::in_buffer(data);
    }

    /// The number of operations.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True without an operation.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded size in bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.data.len()
    }

    /// The operations, in the order given (or canonical order, once written).
    pub fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        Operations { rest: Decoder::new(&self.data) }
            .map(|operation| operation.expect("a batch encodes itself correctly"))
    }

    fn push_point(&mut self, kind: ValueKind, key: &[u8], value: &[u8]) -> &mut WriteBatch {
        if self.canonical
            && let Some((start, len)) = self.last_key
        {
            self.canonical = self.data[start..start + len] < *key;
        }
        // One allocation for a batch of one operation: two lengths have at most ten bytes each.
        self.data.reserve(1 + 10 + key.len() + 10 + value.len());
        self.data.push(kind as u8);
        codec::put_varint(&mut self.data, key.len() as u64);
        self.last_key = Some((self.data.len(), key.len()));
        self.data.extend_from_slice(key);
        if kind == ValueKind::Value {
            codec::put_bytes(&mut self.data, value);
        }
        self.count += 1;
        self.point_count += 1;
        self.point_bytes += key.len() + value.len();
        self.longest_key = self.longest_key.max(key.len());
        self.longest_value = self.longest_value.max(value.len());
        self
    }

    /// Checks every limit, so that a write refused for its contents is refused before anything is done.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some((start, end)) = &self.inverted {
            return Err(Error::InvertedRange { start: start.clone(), end: end.clone() });
        }
        if self.longest_key > KEY_BYTES_MAX {
            return Err(Error::KeyTooLarge { len: self.longest_key, max: KEY_BYTES_MAX });
        }
        if self.longest_value > VALUE_BYTES_MAX {
            return Err(Error::ValueTooLarge { len: self.longest_value, max: VALUE_BYTES_MAX });
        }
        if self.data.len() > BATCH_BYTES_MAX {
            return Err(Error::BatchTooLarge { len: self.data.len(), max: BATCH_BYTES_MAX });
        }
        for operation in self.operations() {
            match operation {
                Operation::OwnerState { bytes } if bytes.len() > OWNER_STATE_BYTES_MAX => {
                    return Err(Error::ValueTooLarge { len: bytes.len(), max: OWNER_STATE_BYTES_MAX });
                }
                Operation::OwnerState { .. } => {}
                // Owner state comes first in canonical order; the scan ends with the first other operation.
                _ if self.canonical => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts the batch into canonical form. O(1) where the operations came in key order, O(n log n) otherwise.
    pub(crate) fn canonicalize(&mut self) {
        if self.canonical {
            return;
        }
        let data = std::mem::take(&mut self.data);
        let mut owner = None;
        let mut ranges: Vec<(usize, &[u8], &[u8])> = Vec::new();
        let mut points: Vec<Point<'_>> = Vec::with_capacity(self.point_count);
        let operations = Operations { rest: Decoder::new(&data) };
        for (index, operation) in operations.enumerate() {
            match operation.expect("a batch encodes itself correctly") {
                Operation::Put { key, value } => points.push((key, index, Some(value))),
                Operation::Delete { key } => points.push((key, index, None)),
                Operation::DeleteRange { start, end } => ranges.push((index, start, end)),
                Operation::OwnerState { bytes } => owner = Some(bytes),
            }
        }
        // By key, the last of each key first, so that dedup keeps it.
        points.sort_unstable_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
        points.dedup_by(|later, kept| later.0 == kept.0);
        if !ranges.is_empty() {
            points.retain(|&(key, index, _)| {
                !ranges.iter().any(|&(range_index, start, end)| index < range_index && start <= key && key < end)
            });
        }
        let mut batch = WriteBatch::with_capacity(data.len());
        if let Some(bytes) = owner {
            batch.set_owner_state(bytes);
        }
        for (_, start, end) in ranges {
            batch.delete_range(start, end);
        }
        for (key, _, value) in points {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            };
        }
        batch.is_delay_served = self.is_delay_served;
        debug_assert!(batch.canonical, "built in canonical order");
        *self = batch;
    }

    /// True if the batch only removes: it may use the reserve of a full disk.
    pub(crate) fn only_deletes(&self) -> bool {
        self.longest_value == 0 && self.operations().all(|operation| !matches!(operation, Operation::Put { .. }))
    }

    /// The number of point operations.
    pub(crate) fn point_count(&self) -> usize {
        self.point_count
    }

    /// The bytes of all keys and values of point operations.
    pub(crate) fn point_bytes(&self) -> usize {
        self.point_bytes
    }

    pub(crate) fn data(&self) -> &[u8] {
        debug_assert!(self.canonical, "only canonical batches are written");
        &self.data
    }
}

/// A point operation while a batch is made canonical: key, place in the batch, and the value, if it is a put.
type Point<'a> = (&'a [u8], usize, Option<&'a [u8]>);

/// Decodes operations one by one.
struct Operations<'a> {
    rest: Decoder<'a>,
}

impl<'a> Operations<'a> {
    fn decode(rest: &mut Decoder<'a>) -> std::result::Result<Operation<'a>, DecodeError> {
        let tag = rest.u8("batch operation kind")?;
        if tag == OWNER_STATE {
            return Ok(Operation::OwnerState { bytes: rest.bytes("batch owner state")? });
        }
        let key = rest.bytes("batch key")?;
        match ValueKind::from_u8(tag) {
            Some(ValueKind::Value) => Ok(Operation::Put { key, value: rest.bytes("batch value")? }),
            Some(ValueKind::Tombstone) => Ok(Operation::Delete { key }),
            Some(ValueKind::RangeTombstone) => {
                let end = rest.bytes("batch range end")?;
                if key >= end {
                    return Err(DecodeError { what: "batch range: its end is not after its start" });
                }
                Ok(Operation::DeleteRange { start: key, end })
            }
            Some(ValueKind::BlobPointer) | None => Err(DecodeError { what: "batch operation kind" }),
        }
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = std::result::Result<Operation<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| Operations::decode(&mut self.rest))
    }
}

/// A batch as it lies in a WAL record: its version and its operations.
///
/// # Format
///   0  u8      format, 1
///   1  varint  version
///   …          operations as in a batch, up to the end of the record
#[derive(Debug, Clone, Copy)]
pub struct BatchRecord<'a> {
    /// The version of every operation.
    pub version: Version,
    operations: &'a [u8],
}

const RECORD_FORMAT: u8 = 1;

impl<'a> BatchRecord<'a> {
    /// The bytes before the operations.
    pub(crate) fn encode_header(version: Version, out: &mut Vec<u8>) {
        out.push(RECORD_FORMAT);
        codec::put_varint(out, version.get());
    }

    /// Decodes a record and checks every operation in it.
    pub fn decode(record: &'a [u8], file: &Path, offset: u64) -> Result<BatchRecord<'a>> {
        let decode = |error| Error::decode(file, offset, error);
        let mut decoder = Decoder::new(record);
        let format = decoder.u8("batch record format").map_err(decode)?;
        if format != RECORD_FORMAT {
            return Err(Error::FormatTooNew {
                file: file.to_path_buf(),
                found: u32::from(format),
                supported: u32::from(RECORD_FORMAT),
            });
        }
        let version = decoder.varint("batch record version").map_err(decode)?;
        let version = Version::new(version).ok_or(DecodeError { what: "batch record version" }).map_err(decode)?;
        let record = BatchRecord { version, operations: decoder.rest() };
        for operation in (Operations { rest: Decoder::new(record.operations) }) {
            operation.map_err(decode)?;
        }
        Ok(record)
    }

    /// The operations.
    pub fn operations(&self) -> impl Iterator<Item = Operation<'a>> + use<'a> {
        Operations { rest: Decoder::new(self.operations) }.map(|operation| operation.expect("checked when decoded"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_core::{Random, SplitMix64};
    use std::collections::BTreeMap;

    fn show(batch: &WriteBatch) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        batch
            .operations()
            .map(|operation| match operation {
                Operation::Put { key, value } => format!("{}={} ", text(key), text(value)),
                Operation::Delete { key } => format!("-{} ", text(key)),
                Operation::DeleteRange { start, end } => format!("-[{},{}) ", text(start), text(end)),
                Operation::OwnerState { bytes } => format!("owner:{} ", text(bytes)),
            })
            .collect()
    }

    /// The last operation of a key wins, a range delete drops what came before it and only that.
    #[test]
    fn canonical_form() {
        let mut batch = WriteBatch::new();
        batch.put(b"b", b"1").put(b"a", b"1").put(b"b", b"2").delete_range(b"a", b"b").put(b"a", b"3");
        batch.set_owner_state(b"x").delete(b"c").put(b"aa", b"4").delete_range(b"aa", b"ab");
        batch.canonicalize();
        assert_eq!(show(&batch), "owner:x -[a,b) -[aa,ab) a=3 b=2 -c ");
    }

    /// A batch that comes in order is written as it is; one that does not gets the same bytes as if it had.
    #[test]
    fn equal_batches_have_equal_bytes() {
        let mut sorted = WriteBatch::new();
        sorted.put(b"a", b"1").put(b"b", b"2");
        assert!(sorted.canonical);
        let mut shuffled = WriteBatch::new();
        shuffled.put(b"b", b"0").put(b"a", b"1").put(b"b", b"2");
        assert!(!shuffled.canonical);
        shuffled.canonicalize();
        assert_eq!(sorted.data(), shuffled.data());
    }

    /// Applying the canonical batch "at once" equals applying the original operations one after another.
    #[test]
    fn canonical_equals_sequential() {
        let mut random = SplitMix64::new(3);
        for _ in 0..2_000 {
            let mut batch = WriteBatch::new();
            let mut model: BTreeMap<u8, Option<u8>> = BTreeMap::new();
            for step in 0..random.below(12) as u8 {
                let (a, b) = (random.below(6) as u8, random.below(6) as u8);
                match random.below(3) {
                    0 => {
                        batch.put(&[a], &[step]);
                        model.insert(a, Some(step));
                    }
                    1 => {
                        batch.delete(&[a]);
                        model.insert(a, None);
                    }
                    _ => {
                        let (start, end) = (a.min(b), a.max(b));
                        batch.delete_range(&[start], &[end]);
                        model.extend((start..end).map(|key| (key, None)));
                    }
                }
            }
            batch.canonicalize();
            let mut result: BTreeMap<u8, Option<u8>> = BTreeMap::new();
            for operation in batch.operations() {
                match operation {
                    Operation::DeleteRange { start, end } => {
                        result.extend((start[0]..end[0]).map(|key| (key, None)));
                    }
                    Operation::Put { key, value } => drop(result.insert(key[0], Some(value[0]))),
                    Operation::Delete { key } => drop(result.insert(key[0], None)),
                    Operation::OwnerState { .. } => unreachable!(),
                }
            }
            assert_eq!(result, model);
        }
    }

    /// Limits are checked, each with its own error, and at the limit a batch still passes.
    #[test]
    fn limits() {
        let mut batch = WriteBatch::new();
        batch.put(&vec![0; KEY_BYTES_MAX], b"");
        assert!(batch.validate().is_ok());
        batch.delete(&vec![0; KEY_BYTES_MAX + 1]);
        assert!(matches!(batch.validate(), Err(Error::KeyTooLarge { len: 65_536, .. })));
        let mut batch = WriteBatch::new();
        batch.delete_range(b"b", b"a");
        assert!(matches!(batch.validate(), Err(Error::InvertedRange { .. })));
        let mut batch = WriteBatch::new();
        batch.put(b"a", b"b").set_owner_state(&vec![0; OWNER_STATE_BYTES_MAX + 1]);
        assert!(matches!(batch.validate(), Err(Error::ValueTooLarge { .. })));
    }

    /// Random and mutated records are refused or decoded, never a panic.
    #[test]
    fn records_survive_mutation() {
        let mut random = SplitMix64::new(5);
        let mut batch = WriteBatch::new();
        batch.set_owner_state(b"owner").delete_range(b"a", b"c").put(b"key", b"value").delete(b"z");
        let mut record = Vec::new();
        BatchRecord::encode_header(Version::from_u64(1 << 40), &mut record);
        record.extend_from_slice(batch.data());
        let path = Path::new("wal");
        assert_eq!(BatchRecord::decode(&record, path, 0).unwrap().operations().count(), 4);
        for _ in 0..20_000 {
            let mut bytes = record.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            crate::testing::decoders::batch(&bytes);
        }
    }
}
