//! What the edits of a manifest add up to: [`ManifestState`].
//!
//! # Invariants ([`ManifestState::check`])
//! - The tables hold the invariants of [`Levels`].
//! - Every file number in use lies below `next_file_number`.
//! - Every blob file that a table refers to is live.
//! - `flushed <= last_version`; numbers and versions never go back.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferrisdb_core::Version;

use super::edit::{BlobMeta, EngineId, FileNumber, ManifestEdit, TableMeta};
use crate::levels::Levels;

/// A live blob file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveBlob {
    /// The file.
    pub meta: BlobMeta,
    /// Bytes in it that nothing refers to any more.
    pub garbage_bytes: u64,
}

/// Everything that a manifest says. Cheap enough to clone at each edit: a pointer per file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestState {
    /// Which engine this is.
    pub engine_id: EngineId,
    /// The live tables with their levels.
    pub tables: BTreeMap<FileNumber, (u8, Arc<TableMeta>)>,
    /// The live blob files.
    pub blobs: BTreeMap<FileNumber, LiveBlob>,
    /// Every file number below this one may have been used; none at or above it has ever been named by an edit.
    pub next_file_number: FileNumber,
    /// Everything up to this version is durable in tables.
    pub flushed: Version,
    /// Where WAL replay starts, if a WAL was ever needed.
    pub wal_start: Option<u64>,
    /// Up to here the WAL was synced when the engine was last closed with records in it.
    pub wal_synced: Option<u64>,
    /// No write at or below this version will come any more.
    pub last_version: Version,
    /// The owner's bytes, as of `flushed`.
    pub owner: Box<[u8]>,
    /// Versions from this one on are readable.
    pub oldest_readable: Version,
}

impl ManifestState {
    /// Of an engine that was created just now.
    pub fn new(engine_id: EngineId) -> ManifestState {
        ManifestState {
            engine_id,
            tables: BTreeMap::new(),
            blobs: BTreeMap::new(),
            next_file_number: FileNumber(1),
            flushed: Version::ZERO,
            wal_start: None,
            wal_synced: None,
            last_version: Version::ZERO,
            owner: Box::default(),
            oldest_readable: Version::ZERO,
        }
    }

    /// True while nothing has happened since the engine was created.
    pub fn is_new(&self) -> bool {
        *self == ManifestState::new(self.engine_id)
    }

    /// The live tables by level.
    pub fn levels(&self) -> Levels<TableMeta> {
        Levels::new(self.tables.values().cloned())
    }

    /// Applies an edit. On an error `self` is of no use any more: the edit, or what was read before it, is wrong.
    pub fn apply(&mut self, edit: &ManifestEdit) -> Result<(), &'static str> {
        if edit.engine_id.is_some_and(|id| id != self.engine_id) {
            return Err("manifest edit: of another engine");
        }
        advance(&mut self.next_file_number, edit.next_file_number, "manifest edit: the next file number goes back")?;
        advance(&mut self.last_version, edit.last_version, "manifest edit: the last version goes back")?;
        advance(&mut self.flushed, edit.flushed, "manifest edit: the flushed version goes back")?;
        advance(
            &mut self.oldest_readable,
            edit.oldest_readable,
            "manifest edit: the oldest readable version goes back",
        )?;
        // What is flushed was written, so an edit need not say both.
        self.last_version = self.last_version.max(self.flushed);
        self.wal_start = edit.wal_start.or(self.wal_start);
        self.wal_synced = edit.wal_synced.or(self.wal_synced);
        if let Some(owner) = &edit.owner {
            self.owner.clone_from(owner);
        }
        for (level, number) in &edit.removed {
            match self.tables.remove(number) {
                Some((at, _)) if at == *level => {}
                _ => return Err("manifest edit: removes a table that is not in its level"),
            }
        }
        for (level, meta) in &edit.added {
            if meta.number >= self.next_file_number {
                return Err("manifest edit: adds a table whose number is not below the next file number");
            }
            if self.tables.insert(meta.number, (*level, Arc::new(meta.clone()))).is_some() {
                return Err("manifest edit: adds a table that is already there");
            }
        }
        for blob in &edit.added_blobs {
            if blob.number >= self.next_file_number {
                return Err("manifest edit: adds a blob file whose number is not below the next file number");
            }
            if self.blobs.insert(blob.number, LiveBlob { meta: *blob, garbage_bytes: 0 }).is_some() {
                return Err("manifest edit: adds a blob file that is already there");
            }
        }
        for (number, bytes) in &edit.blob_garbage {
            let blob = self.blobs.get_mut(number).ok_or("manifest edit: garbage in a blob file that is not there")?;
            blob.garbage_bytes = blob.garbage_bytes.saturating_add(*bytes);
        }
        for number in &edit.removed_blobs {
            self.blobs.remove(number).ok_or("manifest edit: removes a blob file that is not there")?;
        }
        Ok(())
    }

    /// The edit that makes this state from a new one.
    pub fn snapshot(&self) -> ManifestEdit {
        ManifestEdit {
            added: self.tables.values().map(|(level, meta)| (*level, TableMeta::clone(meta))).collect(),
            removed: Vec::new(),
            next_file_number: Some(self.next_file_number),
            flushed: Some(self.flushed),
            wal_start: self.wal_start,
            wal_synced: self.wal_synced,
            last_version: Some(self.last_version),
            owner: (!self.owner.is_empty()).then(|| self.owner.clone()),
            oldest_readable: Some(self.oldest_readable),
            engine_id: Some(self.engine_id),
            added_blobs: self.blobs.values().map(|blob| blob.meta).collect(),
            removed_blobs: Vec::new(),
            blob_garbage: self
                .blobs
                .values()
                .filter(|blob| blob.garbage_bytes > 0)
                .map(|blob| (blob.meta.number, blob.garbage_bytes))
                .collect(),
        }
    }

    /// What does not hold, if anything.
    pub fn problem(&self) -> Option<String> {
        let numbers = self.tables.keys().chain(self.blobs.keys());
        if let Some(number) = numbers.max().filter(|&&number| number >= self.next_file_number) {
            return Some(format!("file {number} is not below the next file number {}", self.next_file_number));
        }
        if let Some(number) = self.tables.keys().find(|number| self.blobs.contains_key(number)) {
            return Some(format!("file {number} is both a table and a blob file"));
        }
        for (_, meta) in self.tables.values() {
            if let Some((blob, _)) = meta.blob_references.iter().find(|(blob, _)| !self.blobs.contains_key(blob)) {
                return Some(format!("table {} refers to blob file {blob}, which is not there", meta.number));
            }
        }
        if self.flushed > self.last_version {
            return Some("the flushed version is above the last version".to_owned());
        }
        self.levels().problem()
    }

    /// Panics if an invariant does not hold.
    pub fn check(&self) {
        if let Some(problem) = self.problem() {
            panic!("the manifest's state holds its invariants: {problem}");
        }
    }
}

fn advance<N: PartialOrd>(field: &mut N, to: Option<N>, backwards: &'static str) -> Result<(), &'static str> {
    if let Some(to) = to {
        if to < *field {
            return Err(backwards);
        }
        *field = to;
    }
    Ok(())
}
