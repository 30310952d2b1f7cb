//! One change to the set of files that make up the engine: [`ManifestEdit`], and its bytes.
//!
//! # Format
//!   0  u8   layout of what follows: 1
//!   1  …    fields until the end, each: varint tag, varint length, payload
//!
//! Tags and payloads (numbers are varints, "bytes" is a varint length and the bytes):
//!   2   added table      level u8, table meta (below); repeated
//!   4   removed table    level u8, file number; repeated
//!   6   next file number
//!   8   flushed version
//!  10   WAL start
//!  12   last version
//!  14   owner            the payload is the owner's bytes
//!  16   oldest readable version
//!  18   engine id        16 bytes
//!  20   added blob file  file number, file bytes; repeated
//!  22   removed blob file  file number; repeated
//!  24   blob garbage     file number, bytes; repeated
//!  25   WAL synced
//!
//! Table meta: file number, file bytes, smallest key (bytes), largest key (bytes), u8 flags (bit 0: the largest key is
//! exclusive), smallest version, largest version, entries, tombstones, range tombstones, key bytes, value bytes, L0 rank,
//! count of blob references and per reference (file number, bytes), then fields of its own until the end, as above
//! (none yet).
//!
//! **An odd tag may be skipped** by a reader that does not know it: the state is right without it. An even tag that a reader
//! does not know is refused as [`EditError::TooNew`]: ignoring it would give a wrong answer. A field that is present has one
//! encoding, fields come in ascending tag order, and a field that is not marked "repeated" occurs at most once; so equal edits
//! have equal bytes.

use std::fmt;

use ferrisdb_core::Version;
use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_varint};

use crate::key::KEY_BYTES_MAX;
use crate::levels::LEVELS;

/// The layout that this build writes, and the newest that it reads.
const LAYOUT: u8 = 1;

const TAG_ADDED: u64 = 2;
const TAG_REMOVED: u64 = 4;
const TAG_NEXT_FILE_NUMBER: u64 = 6;
const TAG_FLUSHED: u64 = 8;
const TAG_WAL_START: u64 = 10;
const TAG_LAST_VERSION: u64 = 12;
const TAG_OWNER: u64 = 14;
const TAG_OLDEST_READABLE: u64 = 16;
const TAG_ENGINE_ID: u64 = 18;
const TAG_ADDED_BLOB: u64 = 20;
const TAG_REMOVED_BLOB: u64 = 22;
const TAG_BLOB_GARBAGE: u64 = 24;
const TAG_WAL_SYNCED: u64 = 25;

const FLAG_LARGEST_EXCLUSIVE: u8 = 1;

/// The number of a table or blob file. Numbers only grow and are never used twice in the life of an engine, so that a file
/// left behind by a crash can never be taken for a newer one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileNumber(pub u64);

impl FileNumber {
    /// The number after this one.
    ///
    /// # Panics
    /// At 2^64 − 1, which is 584,000 years of a file every microsecond.
    #[must_use]
    pub const fn next(self) -> FileNumber {
        FileNumber(self.0 + 1)
    }
}

impl fmt::Debug for FileNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Six digits or more, as in file names.
impl fmt::Display for FileNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// Sixteen bytes drawn once, when the engine is created. Two directories with different ids are different engines, whatever
/// their file names say.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineId(pub [u8; 16]);

impl EngineId {
    /// The identity of the engine's WAL: half of the id, which is random enough.
    pub fn wal_identity(self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("an engine id has sixteen bytes"))
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What the engine knows about a table without opening it.
///
/// # Invariants
/// - Every point entry and every range tombstone of the table lies within `smallest..=largest` (`smallest..largest` if
///   `largest_exclusive`) and within `smallest_version..=largest_version`.
/// - `tombstones <= entries`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableMeta {
    /// The file.
    pub number: FileNumber,
    /// Its length, in bytes. A file of another length is not this table.
    pub file_bytes: u64,
    /// The smallest user key, inclusive.
    pub smallest: Box<[u8]>,
    /// The largest user key; the table does not reach beyond it.
    pub largest: Box<[u8]>,
    /// True if `largest` itself is outside: the bound is a range tombstone's end.
    pub largest_exclusive: bool,
    /// The oldest version in the table, range tombstones included.
    pub smallest_version: Version,
    /// The newest version in the table, range tombstones included.
    pub largest_version: Version,
    /// Point entries, tombstones included.
    pub entries: u64,
    /// Point entries that are tombstones.
    pub tombstones: u64,
    /// Range tombstones, counted as (fragment, version) pairs.
    pub range_tombstones: u64,
    /// The sum of the lengths of the user keys of all entries, in bytes, before compression.
    pub key_bytes: u64,
    /// The sum of the lengths of the values in the table, in bytes, before compression; values in blob files count with their
    /// pointers only.
    pub value_bytes: u64,
    /// In L0 only: where a key is in two tables, the one with the greater rank is newer. A flushed table takes its own number,
    /// the tables of an ingestion take one number for all when they are installed, an intra-L0 compaction gives its outputs the greatest rank among its inputs. Not the version: a table that is
    /// ingested at an old version is newer than its overlapping neighbours in L0 although their bounds reach above that version.
    pub l0_rank: u64,
    /// The blob files that values of this table lie in, ascending, with the bytes that it refers to in each.
    pub blob_references: Vec<(FileNumber, u64)>,
}

impl TableMeta {
    /// True if the table ends before `key`.
    #[inline]
    pub fn ends_before(&self, key: &[u8]) -> bool {
        if self.largest_exclusive { *self.largest <= *key } else { *self.largest < *key }
    }

    /// True if `key` lies within the table's bounds.
    #[inline]
    pub fn covers(&self, key: &[u8]) -> bool {
        *self.smallest <= *key && !self.ends_before(key)
    }

    /// True if some key may be in both tables.
    pub fn overlaps(&self, other: &TableMeta) -> bool {
        !self.ends_before(&other.smallest) && !other.ends_before(&self.smallest)
    }

    /// What does not hold, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let inverted =
            if self.largest_exclusive { self.smallest >= self.largest } else { self.smallest > self.largest };
        if inverted {
            return Some("table meta: the largest key lies before the smallest");
        }
        if self.smallest.len() > KEY_BYTES_MAX || self.largest.len() > KEY_BYTES_MAX {
            return Some("table meta: a bound longer than a key may be");
        }
        if self.smallest_version > self.largest_version {
            return Some("table meta: the largest version lies before the smallest");
        }
        if self.tombstones > self.entries {
            return Some("table meta: more tombstones than entries");
        }
        if !self.blob_references.is_sorted_by(|a, b| a.0 < b.0) {
            return Some("table meta: blob references out of order");
        }
        None
    }
}

/// What the engine knows about a blob file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobMeta {
    /// The file.
    pub number: FileNumber,
    /// Its length, in bytes.
    pub file_bytes: u64,
}

/// One change, applied as a whole or not at all. Removals come before additions, so that a table can change its level within
/// one edit. What is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManifestEdit {
    /// Tables that are part of the engine from now on, with their levels.
    pub added: Vec<(u8, TableMeta)>,
    /// Tables that no longer are, with the levels that they are in.
    pub removed: Vec<(u8, FileNumber)>,
    /// Every file number below this one may have been used.
    pub next_file_number: Option<FileNumber>,
    /// Everything up to this version is durable in tables.
    pub flushed: Option<Version>,
    /// WAL replay starts here: a position that only the WAL can read.
    pub wal_start: Option<u64>,
    /// The WAL was whole and synced up to this position: a later log that ends below it has lost its end.
    pub wal_synced: Option<u64>,
    /// No write at or below this version will come any more.
    pub last_version: Option<Version>,
    /// A few bytes of the engine's owner, which change together with `flushed`.
    pub owner: Option<Box<[u8]>>,
    /// Versions from this one on are readable, and those that are pinned.
    pub oldest_readable: Option<Version>,
    /// In the first edit of a manifest.
    pub engine_id: Option<EngineId>,
    /// Blob files that are part of the engine from now on.
    pub added_blobs: Vec<BlobMeta>,
    /// Blob files that no longer are.
    pub removed_blobs: Vec<FileNumber>,
    /// Bytes of a blob file that nothing refers to any more, added to those known before.
    pub blob_garbage: Vec<(FileNumber, u64)>,
}

/// Why bytes are not an edit that this build understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditError {
    /// They are not what was written.
    Corrupt(&'static str),
    /// A newer FerrisDB wrote something that must not be ignored.
    TooNew,
}

impl From<DecodeError> for EditError {
    fn from(error: DecodeError) -> EditError {
        EditError::Corrupt(error.what)
    }
}

impl ManifestEdit {
    /// True if it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == ManifestEdit::default()
    }

    /// The edit's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![LAYOUT];
        let mut payload = Vec::new();
        let mut field = |tag: u64, write: &dyn Fn(&mut Vec<u8>)| {
            payload.clear();
            write(&mut payload);
            put_varint(&mut out, tag);
            put_bytes(&mut out, &payload);
        };
        for (level, meta) in &self.added {
            field(TAG_ADDED, &|out| {
                out.push(*level);
                encode_meta(meta, out);
            });
        }
        for (level, number) in &self.removed {
            field(TAG_REMOVED, &|out| {
                out.push(*level);
                put_varint(out, number.0);
            });
        }
        let numbers = [
            (TAG_NEXT_FILE_NUMBER, self.next_file_number.map(|number| number.0)),
            (TAG_FLUSHED, self.flushed.map(Version::get)),
            (TAG_WAL_START, self.wal_start),
            (TAG_LAST_VERSION, self.last_version.map(Version::get)),
        ];
        for (tag, number) in numbers {
            if let Some(number) = number {
                field(tag, &|out| put_varint(out, number));
            }
        }
        if let Some(owner) = &self.owner {
            field(TAG_OWNER, &|out| out.extend_from_slice(owner));
        }
        if let Some(version) = self.oldest_readable {
            field(TAG_OLDEST_READABLE, &|out| put_varint(out, version.get()));
        }
        if let Some(id) = self.engine_id {
            field(TAG_ENGINE_ID, &|out| out.extend_from_slice(&id.0));
        }
        for blob in &self.added_blobs {
            field(TAG_ADDED_BLOB, &|out| {
                put_varint(out, blob.number.0);
                put_varint(out, blob.file_bytes);
            });
        }
        for number in &self.removed_blobs {
            field(TAG_REMOVED_BLOB, &|out| put_varint(out, number.0));
        }
        for (number, bytes) in &self.blob_garbage {
            field(TAG_BLOB_GARBAGE, &|out| {
                put_varint(out, number.0);
                put_varint(out, *bytes);
            });
        }
        if let Some(position) = self.wal_synced {
            field(TAG_WAL_SYNCED, &|out| put_varint(out, position));
        }
        out
    }

    /// Reads an edit from exactly `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<ManifestEdit, EditError> {
        let mut decoder = Decoder::new(bytes);
        match decoder.u8("manifest edit: layout")? {
            LAYOUT => {}
            0 => return Err(EditError::Corrupt("manifest edit: layout")),
            _ => return Err(EditError::TooNew),
        }
        let mut edit = ManifestEdit::default();
        let mut last_tag = 0;
        while !decoder.is_empty() {
            let tag = decoder.varint("manifest edit: tag")?;
            let payload = decoder.bytes("manifest edit: field")?;
            let repeated =
                matches!(tag, TAG_ADDED | TAG_REMOVED | TAG_ADDED_BLOB | TAG_REMOVED_BLOB | TAG_BLOB_GARBAGE);
            // Fields that we do not know may be of either sort.
            let known = tag % 2 == 0 && (TAG_ADDED..=TAG_BLOB_GARBAGE).contains(&tag);
            if tag < last_tag || (tag == last_tag && known && !repeated) {
                return Err(EditError::Corrupt("manifest edit: fields out of order"));
            }
            last_tag = tag;
            edit.decode_field(tag, payload)?;
        }
        Ok(edit)
    }

    fn decode_field(&mut self, tag: u64, payload: &[u8]) -> Result<(), EditError> {
        let mut field = Decoder::new(payload);
        match tag {
            TAG_ADDED => {
                let level = decode_level(&mut field)?;
                self.added.push((level, decode_meta(&mut field)?));
            }
            TAG_REMOVED => {
                let level = decode_level(&mut field)?;
                self.removed.push((level, decode_number(&mut field)?));
            }
            TAG_NEXT_FILE_NUMBER => self.next_file_number = Some(decode_number(&mut field)?),
            TAG_FLUSHED => self.flushed = Some(decode_version(&mut field, "manifest edit: flushed version")?),
            TAG_WAL_START => self.wal_start = Some(field.varint("manifest edit: WAL start")?),
            TAG_WAL_SYNCED => self.wal_synced = Some(field.varint("manifest edit: WAL synced")?),
            TAG_LAST_VERSION => self.last_version = Some(decode_version(&mut field, "manifest edit: last version")?),
            TAG_OWNER => {
                self.owner = Some(payload.into());
                return Ok(());
            }
            TAG_OLDEST_READABLE => {
                self.oldest_readable = Some(decode_version(&mut field, "manifest edit: oldest readable version")?);
            }
            TAG_ENGINE_ID => {
                let id = field.take(16, "manifest edit: engine id")?;
                self.engine_id = Some(EngineId(id.try_into().expect("take returned sixteen bytes")));
            }
            TAG_ADDED_BLOB => {
                let number = decode_number(&mut field)?;
                self.added_blobs.push(BlobMeta { number, file_bytes: field.varint("manifest edit: blob file bytes")? });
            }
            TAG_REMOVED_BLOB => self.removed_blobs.push(decode_number(&mut field)?),
            TAG_BLOB_GARBAGE => {
                let number = decode_number(&mut field)?;
                self.blob_garbage.push((number, field.varint("manifest edit: blob garbage bytes")?));
            }
            _ => return skip_unknown(tag),
        }
        Ok(field.finish("manifest edit: bytes after a field")?)
    }
}

/// What to do about a field that this build does not know.
fn skip_unknown(tag: u64) -> Result<(), EditError> {
    match tag {
        0 => Err(EditError::Corrupt("manifest edit: tag zero")),
        _ if tag % 2 == 1 => Ok(()),
        _ => Err(EditError::TooNew),
    }
}

fn decode_level(field: &mut Decoder<'_>) -> Result<u8, EditError> {
    let level = field.u8("manifest edit: level")?;
    if usize::from(level) < LEVELS { Ok(level) } else { Err(EditError::Corrupt("manifest edit: level out of range")) }
}

fn decode_number(field: &mut Decoder<'_>) -> Result<FileNumber, EditError> {
    Ok(FileNumber(field.varint("manifest edit: file number")?))
}

fn decode_version(field: &mut Decoder<'_>, what: &'static str) -> Result<Version, EditError> {
    Version::new(field.varint(what)?).ok_or(EditError::Corrupt(what))
}

fn encode_meta(meta: &TableMeta, out: &mut Vec<u8>) {
    put_varint(out, meta.number.0);
    put_varint(out, meta.file_bytes);
    put_bytes(out, &meta.smallest);
    put_bytes(out, &meta.largest);
    out.push(if meta.largest_exclusive { FLAG_LARGEST_EXCLUSIVE } else { 0 });
    let numbers = [
        meta.smallest_version.get(),
        meta.largest_version.get(),
        meta.entries,
        meta.tombstones,
        meta.range_tombstones,
        meta.key_bytes,
        meta.value_bytes,
        meta.l0_rank,
        meta.blob_references.len() as u64,
    ];
    for number in numbers {
        put_varint(out, number);
    }
    for (number, bytes) in &meta.blob_references {
        put_varint(out, number.0);
        put_varint(out, *bytes);
    }
}

fn decode_meta(field: &mut Decoder<'_>) -> Result<TableMeta, EditError> {
    let mut meta = TableMeta {
        number: decode_number(field)?,
        file_bytes: field.varint("table meta: file bytes")?,
        smallest: field.bytes("table meta: smallest key")?.into(),
        largest: field.bytes("table meta: largest key")?.into(),
        ..TableMeta::default()
    };
    meta.largest_exclusive = match field.u8("table meta: flags")? {
        0 => false,
        FLAG_LARGEST_EXCLUSIVE => true,
        // A flag changes what the bounds mean, so one that we do not know must not be ignored.
        _ => return Err(EditError::TooNew),
    };
    meta.smallest_version = decode_version(field, "table meta: smallest version")?;
    meta.largest_version = decode_version(field, "table meta: largest version")?;
    meta.entries = field.varint("table meta: entries")?;
    meta.tombstones = field.varint("table meta: tombstones")?;
    meta.range_tombstones = field.varint("table meta: range tombstones")?;
    meta.key_bytes = field.varint("table meta: key bytes")?;
    meta.value_bytes = field.varint("table meta: value bytes")?;
    meta.l0_rank = field.varint("table meta: L0 rank")?;
    // The count is not trusted with an allocation: each reference takes at least two bytes that must be there.
    for _ in 0..field.varint("table meta: blob reference count")? {
        let number = decode_number(field)?;
        meta.blob_references.push((number, field.varint("table meta: blob reference bytes")?));
    }
    let mut last_tag = 0;
    while !field.is_empty() {
        let tag = field.varint("table meta: tag")?;
        field.bytes("table meta: field")?;
        if tag < last_tag {
            return Err(EditError::Corrupt("table meta: fields out of order"));
        }
        last_tag = tag;
        skip_unknown(tag)?;
    }
    meta.problem().map_or(Ok(meta), |what| Err(EditError::Corrupt(what)))
}
