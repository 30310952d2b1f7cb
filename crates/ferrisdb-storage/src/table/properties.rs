//! What a table says about itself: counts and bounds, for the picker, for `inspect` and for `verify`.
//!
//! # Format
//! A row of fields, each a varint tag and length-prefixed bytes, tags strictly rising. A number is a varint in its bytes. A reader
//! skips tags that it does not know, so that a later version may add some without a new format version.

use ferrisdb_core::Version;
use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};

use crate::key::KEY_BYTES_MAX;

/// The properties of a table. Byte counts of keys and values are before compression.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// Point entries of all kinds.
    pub entries: u64,
    /// Point entries that are tombstones.
    pub tombstones: u64,
    /// Point entries whose value is in a blob file.
    pub blob_pointers: u64,
    /// Fragments of range tombstones.
    pub range_tombstones: u64,
    /// Distinct user keys among the point entries.
    pub user_keys: u64,
    /// Bytes of user keys, summed over the point entries.
    pub raw_key_bytes: u64,
    /// Bytes of values.
    pub raw_value_bytes: u64,
    /// Data blocks.
    pub data_blocks: u64,
    /// Bytes of the data blocks in the file.
    pub data_bytes: u64,
    /// The smallest version of any point entry or range tombstone.
    pub smallest_version: Version,
    /// The largest.
    pub largest_version: Version,
    /// The first user key among the point entries; empty without any.
    pub first_user_key: Vec<u8>,
    /// The last user key among the point entries; empty without any.
    pub last_user_key: Vec<u8>,
    /// What wrote the table, such as "ferrisdb 0.1.0".
    pub created_by: String,
}

impl Properties {
    fn numbers(&mut self) -> [&mut u64; 9] {
        [
            &mut self.entries,
            &mut self.tombstones,
            &mut self.blob_pointers,
            &mut self.range_tombstones,
            &mut self.user_keys,
            &mut self.raw_key_bytes,
            &mut self.raw_value_bytes,
            &mut self.data_blocks,
            &mut self.data_bytes,
        ]
    }

    /// Appends the encoded properties.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut copy = self.clone();
        let mut number = Vec::new();
        let versions = [self.smallest_version.get(), self.largest_version.get()];
        let numbers = copy.numbers().map(|value| *value);
        for (tag, value) in (1u64..).zip(numbers.into_iter().chain(versions)) {
            number.clear();
            put_varint(&mut number, value);
            put_varint(out, tag);
            put_bytes(out, &number);
        }
        for (tag, bytes) in
            [(12, &self.first_user_key[..]), (13, &self.last_user_key[..]), (14, self.created_by.as_bytes())]
        {
            put_varint(out, tag);
            put_bytes(out, bytes);
        }
    }

    /// Reads encoded properties.
    pub(super) fn decode(bytes: &[u8]) -> Result<Properties, DecodeError> {
        const BAD: DecodeError = DecodeError { what: "properties: value" };
        let mut properties = Properties::default();
        let mut decoder = Decoder::new(bytes);
        let mut last_tag = 0;
        let mut known = 0;
        while !decoder.is_empty() {
            let tag = decoder.varint("properties: tag")?;
            let field = decoder.bytes("properties: field")?;
            if tag <= last_tag {
                return Err(DecodeError { what: "properties: tags out of order" });
            }
            last_tag = tag;
            known += u32::from(tag <= 14);
            let number = || {
                let mut decoder = Decoder::new(field);
                let value = decoder.varint("properties: number")?;
                decoder.finish("properties: number").map(|()| value)
            };
            let version = || Version::new(number()?).ok_or(BAD);
            let key = || if field.len() <= KEY_BYTES_MAX { Ok(field.to_vec()) } else { Err(BAD) };
            match tag {
                1..=9 => *properties.numbers()[usize::try_from(tag).map_err(|_| BAD)? - 1] = number()?,
                10 => properties.smallest_version = version()?,
                11 => properties.largest_version = version()?,
                12 => properties.first_user_key = key()?,
                13 => properties.last_user_key = key()?,
                14 => properties.created_by = str::from_utf8(field).map_err(|_| BAD)?.to_owned(),
                _ => {}
            }
        }
        if known != 14 {
            return Err(DecodeError { what: "properties: a field is missing" });
        }
        if properties.smallest_version > properties.largest_version
            || properties.first_user_key > properties.last_user_key
            || properties.tombstones.saturating_add(properties.blob_pointers) > properties.entries
        {
            return Err(BAD);
        }
        Ok(properties)
    }
}
