//! Ingestion: adding sorted data that was not written key by key.
//!
//! An [`Ingestion`] writes its entries straight into tables, all at one version, and then adds the tables to L0 in one manifest edit. It goes
//! past the WAL and the memtable, so a gigabyte costs writing a gigabyte. The version may lie below the newest: a storage server
//! takes over a shard in pieces, each as of its version, while it goes on writing everything else.
//!
//! # Why the order of places stays right
//! A read stops at the first place that has an answer, so for each key newer places must hold newer versions (see [`crate::levels`]). The
//! tables of an ingestion go to the newest place of all tables. So when they get there
//! - nothing in the range, in memtables or tables, point or range tombstone, may be newer than they are; that is checked, and
//! - no memtable may hold anything for the range, since memtables are read before tables; one that does is flushed first.
//!
//! Both must still be so when the manifest edit is done. Therefore the *gate* is closed from the check to the end: writers find the engine stalled,
//! for as long as a sync of the WAL and one of the manifest take, as a rule. What takes longer (a flush, looking through tables) is done before
//! the gate is closed, and again after it only for what has come meanwhile.
//!
//! The rank in L0 is taken behind the closed gate. A flush that is under way may get a lower one, and hold nothing for the range; whatever is written
//! later is flushed later, at a higher one.
//!
//! # What a reader sees
//! The view with the new tables gets an active memtable of its own. Otherwise a reader that still holds the view before could see a write made
//! after the ingestion, because the two views would share that memtable, and not the ingestion.
//!
//! # What a crash leaves
//! Before the edit: files that nothing names. After it: everything, and everything older too, since the WAL was synced (or, without one, all was
//! flushed) before the edit. Replay puts records above the flushed version into memtables, which is above the ingested tables; those that are
//! older than the ingestion are for other keys, as those of the range were flushed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferrisdb_core::Version;

use super::Core;
use super::Engine;
use super::events::Event;
use super::jobs::Hold;
use super::merge_run::{Output, meta_of, open_output};
use super::view::LiveMemtable;
use super::visibility::Turn;
use crate::batch::BatchRecord;
use crate::error::{Error, Result};
use crate::iter::PointIterator;
use crate::key::{InternalKey, KEY_BYTES_MAX, Trailer, VALUE_BYTES_MAX, ValueKind};
use crate::manifest::{FileNumber, ManifestEdit, TableMeta};
use crate::options::Retention;
use crate::table::{ReadMode, TableIterator, TableSummary, filter};
use crate::wal::Space;

/// How data is ingested. The default: at the next version, into a range that may hold anything older.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngestOptions {
    /// The version of all entries.
    ///
    /// A version at or below the newest must not lie below [`Engine::oldest_readable_version`]: what was deleted between the two may be gone
    /// without a trace. From the end of the ingestion on, every reader at this version or above sees the entries, also one that has read there
    /// before, such as a snapshot: only the owner knows that nobody reads the range yet. Hence with
    /// [`Retention::Newest`] only a version above all others makes sense.
    ///
    /// `None` takes the next one when the ingestion ends. If there have been writes meanwhile that a reader could tell from it (to the range, or
    /// any if old versions are kept for somebody), the tables are written again, while writers wait.
    pub version: Option<Version>,
    /// The keys, from the first up to but without the second, that must hold nothing newer than the ingestion, beside those between its first
    /// and its last entry. All entries must lie in it.
    pub range: Option<(Vec<u8>, Vec<u8>)>,
}

/// Sorted entries on their way into an engine: see [`Engine::ingestion`]. Dropping it undoes everything.
#[derive(Debug)]
pub struct Ingestion {
    engine: Engine,
    /// Of the entries in the tables; a guess if none was given.
    version: Version,
    is_given: bool,
    range: Option<(Vec<u8>, Vec<u8>)>,
    output: Option<Output>,
    /// Complete tables, in key order.
    tables: Vec<(TableSummary, FileNumber)>,
    /// Every file, for removal unless it is installed.
    written: Vec<PathBuf>,
    first_key: Option<Vec<u8>>,
    last_key: Vec<u8>,
    /// Why it cannot go on.
    failed: Option<Error>,
}

/// Keys from `start` up to but without `end`.
struct Span {
    start: Vec<u8>,
    end: Vec<u8>,
}

impl Span {
    fn holds(&self, key: &[u8]) -> bool {
        *self.start <= *key && *key < *self.end
    }

    fn overlaps_table(&self, meta: &TableMeta) -> bool {
        *meta.smallest < *self.end && !meta.ends_before(&self.start)
    }

    /// The newest range tombstone that covers some of it: where, and when.
    fn newest_range_tombstone(&self, list: &crate::tombstone::FragmentList) -> Option<(Vec<u8>, Version)> {
        let clipped = list.clipped(Some(&self.start), Some(&self.end));
        let newest = clipped.fragments().iter().max_by_key(|fragment| fragment.versions[0])?;
        Some((newest.start.to_vec(), newest.versions[0]))
    }

    /// True if the memtable says anything about a key in it.
    fn overlaps_memtable(&self, memtable: &LiveMemtable) -> Result<bool> {
        let entries = &memtable.entries;
        if entries.range_tombstones().is_some_and(|list| self.newest_range_tombstone(&list).is_some()) {
            return Ok(true);
        }
        let mut iter = entries.iter_owned();
        iter.seek(InternalKey::seek(&self.start, Version::MAX))?;
        Ok(iter.valid() && self.holds(iter.key().user_key))
    }
}

/// What stands against an ingestion.
struct Newer {
    what: &'static str,
    key: Vec<u8>,
    version: Version,
}

impl Newer {
    fn error(&self, ingested: Version) -> Error {
        let Newer { what, key, version } = self;
        let reason = format!("{what} of key {} has version {version}", key.escape_ascii());
        let relation = if *version == ingested { "the ingestion's own" } else { "above the ingestion's" };
        Error::InvalidIngestion { reason: format!("{reason}, {relation} {ingested}") }
    }
}

impl Engine {
    /// Begins an ingestion. Entries are added in ascending order of their keys; nothing is visible before [`Ingestion::finish`].
    ///
    /// # Errors
    /// [`Error::InvertedRange`]; [`Error::InvalidIngestion`] for a version below the oldest readable one; [`Error::ReadOnly`], [`Error::Closed`],
    /// [`Error::Poisoned`].
    pub fn ingestion(&self, options: IngestOptions) -> Result<Ingestion> {
        let core = self.core();
        core.check_writable()?;
        if let Some((start, end)) = &options.range
            && start > end
        {
            return Err(Error::InvertedRange { start: start.clone(), end: end.clone() });
        }
        let next = core.write_state().last_version.next();
        if let Some(version) = options.version {
            core.check_ingestible(version)?;
        }
        Ok(Ingestion {
            engine: self.clone(),
            version: options.version.unwrap_or(next),
            is_given: options.version.is_some(),
            range: options.range,
            output: None,
            tables: Vec::new(),
            written: Vec::new(),
            first_key: None,
            last_key: Vec::new(),
            failed: None,
        })
    }

    /// Ingests entries that come in ascending order of their keys: [`Engine::ingestion`], [`Ingestion::add`] for each, [`Ingestion::finish`].
    ///
    /// # Errors
    /// Those of the three; then nothing was added.
    pub fn ingest<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        options: IngestOptions,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Version> {
        let mut ingestion = self.ingestion(options)?;
        for (key, value) in entries {
            ingestion.add(key.as_ref(), value.as_ref())?;
        }
        ingestion.finish()
    }
}

impl Ingestion {
    /// Adds an entry, whose key lies after all before it.
    ///
    /// # Errors
    /// [`Error::InvalidIngestion`] for a key that is not above the last one or lies outside the range, [`Error::KeyTooLarge`],
    /// [`Error::ValueTooLarge`]: then the entry is not added, and others may be. [`Error::Io`], [`Error::NoSpace`], [`Error::Closed`]: the ingestion is
    /// of no use any more.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.check_entry(key, value)?;
        let added = self.write(key, value);
        if let Err(error) = &added {
            self.failed = Some(error.clone());
        }
        added
    }

    fn check_entry(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let refuse = |reason: String| Err(Error::InvalidIngestion { reason });
        if key.len() > KEY_BYTES_MAX {
            return Err(Error::KeyTooLarge { len: key.len(), max: KEY_BYTES_MAX });
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::ValueTooLarge { len: value.len(), max: VALUE_BYTES_MAX });
        }
        if self.first_key.is_some() {
            let last = self.last_key.escape_ascii();
            match key.cmp(&self.last_key) {
                std::cmp::Ordering::Less => {
                    return refuse(format!("keys must ascend, but {} comes after {last}", key.escape_ascii()));
                }
                std::cmp::Ordering::Equal => return refuse(format!("key {last} comes twice")),
                std::cmp::Ordering::Greater => {}
            }
        }
        match &self.range {
            Some((start, end)) if key < &start[..] || key >= &end[..] => refuse(format!(
                "key {} lies outside of the range from {} to {}",
                key.escape_ascii(),
                start.escape_ascii(),
                end.escape_ascii()
            )),
            _ => Ok(()),
        }
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let core = Arc::clone(self.engine.core());
        if self.output.as_ref().is_some_and(|output| output.builder.estimated_bytes() >= core.options.table_bytes) {
            self.end_table()?;
        }
        if self.output.is_none() {
            // The directory must be ours while a file is created in it.
            let _hold = Hold::new(&core)?;
            self.output = Some(open_output(&core, 0, &mut self.written)?);
        }
        let output = self.output.as_mut().expect("opened above");
        output.builder.add(InternalKey::new(key, Trailer::new(self.version, ValueKind::Value)), value)?;
        self.first_key.get_or_insert_with(|| key.to_vec());
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        Ok(())
    }

    fn end_table(&mut self) -> Result<()> {
        if let Some(Output { builder, number }) = self.output.take() {
            self.tables.push((builder.finish()?, number));
        }
        Ok(())
    }

    /// Adds everything to the engine, at once and durably, and returns the version from which on readers see it. Without entries it still
    /// checks, and a given version counts as used; without either it does nothing.
    ///
    /// Waits for a flush if a memtable holds something for the range, or if there is no WAL. Writers wait while the manifest is written.
    ///
    /// # Errors
    /// [`Error::InvalidIngestion`] naming the key and version of something newer than the ingestion; those of [`Engine::flush`];
    /// [`Error::NoSpace`] and [`Error::Io`]: nothing was added. [`Error::Poisoned`]: whether it was is unknown until the engine is reopened.
    pub fn finish(mut self) -> Result<Version> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let core = Arc::clone(self.engine.core());
        let _hold = Hold::new(&core)?;
        self.end_table()?;
        if self.tables.is_empty() && !self.is_given {
            return Ok(core.visibility.visible());
        }
        self.sync_directory(&core)?;
        let span = self.span();
        let own = self.own_span();

        // What takes long, while writers go on.
        let mut seen = BTreeSet::new();
        if core.must_flush_for(own.as_ref())? {
            core.flush()?;
        }
        let newer = self.find_newer(&core, span.as_ref(), &mut seen)?;
        if let (Some(newer), true) = (newer, self.is_given) {
            return Err(newer.error(self.version));
        }

        let gate = Gate::close(&core)?;
        let last = core.write_state().last_version;
        core.wait_visible(last)?;
        if core.must_flush_for(own.as_ref())? {
            core.flush()?;
        }
        let newer = self.find_newer(&core, span.as_ref(), &mut seen)?;
        if self.is_given {
            if self.version <= last {
                core.check_ingestible(self.version)?;
            }
            if let Some(newer) = newer {
                return Err(newer.error(self.version));
            }
        } else if newer.is_some() || (self.version <= last && core.can_tell(self.version)) {
            self.rewrite(&core, last.next())?;
        }
        let version = self.version;
        self.install(&core, last)?;
        drop(gate);
        core.levels_changed();
        let bytes = self.tables.iter().map(|(summary, _)| summary.file_bytes).sum();
        core.tell(|| Event::IngestionDone { version, bytes });
        Ok(version)
    }

    /// The keys that must hold nothing newer.
    fn span(&self) -> Option<Span> {
        match &self.range {
            Some((start, end)) => Some(Span { start: start.clone(), end: end.clone() }),
            None => self.own_span(),
        }
    }

    /// From the first entry to the last.
    fn own_span(&self) -> Option<Span> {
        let start = self.first_key.clone()?;
        // The next key after the last.
        let end = [&self.last_key[..], &[0]].concat();
        Some(Span { start, end })
    }

    fn sync_directory(&self, core: &Core) -> Result<()> {
        if self.tables.is_empty() {
            return Ok(());
        }
        core.env.fs.sync_dir(&core.dir).map_err(|error| Error::io("sync", &core.dir, error))
    }

    /// Looks for something in `span` that is newer than the ingestion, or as new and of the same key. `seen` are tables without.
    fn find_newer(&self, core: &Core, span: Option<&Span>, seen: &mut BTreeSet<FileNumber>) -> Result<Option<Newer>> {
        let Some(span) = span else { return Ok(None) };
        // Not `read`: looking takes long, and a reader must not.
        let view = core.view.load();
        for memtable in &view.memtables {
            let entries = &memtable.entries;
            if let Some((key, version)) = entries.range_tombstones().and_then(|list| span.newest_range_tombstone(&list))
                && version > self.version
            {
                return Ok(Some(Newer { what: "a range tombstone in memory", key, version }));
            }
            let mut iter = entries.iter_owned();
            if let Some(newer) = self.find_newer_entry(core, &mut iter, span)? {
                return Ok(Some(newer));
            }
        }
        for (_, table) in view.levels.tables() {
            if table.meta.largest_version < self.version
                || !span.overlaps_table(&table.meta)
                || seen.contains(&table.meta.number)
            {
                continue;
            }
            let reader = table.reader()?;
            if let Some((key, version)) = span.newest_range_tombstone(reader.range_tombstones())
                && version > self.version
            {
                return Ok(Some(Newer { what: "a range tombstone", key, version }));
            }
            let mut iter = TableIterator::new(reader, ReadMode::Blocking);
            if let Some(newer) = self.find_newer_entry(core, &mut iter, span)? {
                return Ok(Some(newer));
            }
            seen.insert(table.meta.number);
        }
        Ok(None)
    }

    fn find_newer_entry(&self, core: &Core, iter: &mut dyn PointIterator, span: &Span) -> Result<Option<Newer>> {
        iter.seek(InternalKey::seek(&span.start, Version::MAX))?;
        while iter.valid() && iter.key().user_key < &span.end[..] {
            let InternalKey { user_key, trailer } = iter.key();
            let version = trailer.version();
            if version > self.version || (version == self.version && self.contains(core, user_key)?) {
                return Ok(Some(Newer { what: "an entry", key: user_key.to_vec(), version }));
            }
            iter.next()?;
        }
        Ok(None)
    }

    /// True if the ingestion has an entry of this key.
    fn contains(&self, core: &Core, key: &[u8]) -> Result<bool> {
        let index = self.tables.partition_point(|(summary, _)| summary.largest[..] < *key);
        let Some((summary, number)) = self.tables.get(index).filter(|(summary, _)| summary.smallest[..] <= *key) else {
            return Ok(false);
        };
        let table = core.table_handle(&meta_of(summary.clone(), *number, 0, Vec::new()));
        let found = table.reader()?.get(key, filter::hash(key), self.version, ReadMode::Compaction)?;
        Ok(found.is_some())
    }

    /// Writes the tables again with another version.
    fn rewrite(&mut self, core: &Arc<Core>, version: Version) -> Result<()> {
        self.version = version;
        let old = std::mem::take(&mut self.tables);
        let old_files = std::mem::take(&mut self.written);
        self.first_key = None;
        let copied = old.into_iter().try_for_each(|(summary, number)| {
            let table = core.table_handle(&meta_of(summary, number, 0, Vec::new()));
            let mut iter = TableIterator::new(table.reader()?, ReadMode::Compaction);
            iter.seek_to_first()?;
            while iter.valid() {
                self.write(iter.key().user_key, iter.value())?;
                iter.next()?;
            }
            Ok(())
        });
        old_files.into_iter().for_each(|path| core.obsolete.push(path));
        copied?;
        self.end_table()?;
        self.sync_directory(core)
    }

    /// Makes the tables part of the engine. Behind the gate, and all that was written is visible and not newer in the range.
    fn install(&mut self, core: &Arc<Core>, last: Version) -> Result<()> {
        core.empty_active_memtable()?;
        // Visible when it is dropped at the end, if it is a new version.
        let _taken = if self.version > last { Some(Taken::new(core, self.version)?) } else { None };
        if let Some(wal) = &core.wal {
            // What is durable must be a prefix: everything before the ingestion becomes so first.
            let position = core.write_state().last_record;
            core.sync_wal(wal, position).inspect_err(|error| core.note_wal_error(error))?;
        }
        let last = last.max(self.version);
        let all_flushed = core.view.read().memtables.iter().all(|memtable| memtable.is_idle());
        // One run: the tables are disjoint.
        let rank = core.allocate_file_number().0;
        let metas = self.tables.iter().map(|(summary, number)| meta_of(summary.clone(), *number, rank, Vec::new()));
        let added: Vec<(u8, TableMeta)> = metas.map(|meta| (0, meta)).collect();
        let bytes = added.iter().map(|(_, meta)| meta.file_bytes).sum();
        let edit = ManifestEdit {
            added,
            last_version: Some(last),
            flushed: all_flushed.then_some(last),
            ..ManifestEdit::default()
        };
        match core.install_above(edit) {
            Ok(()) => {
                self.written.clear();
                core.counters.ingested(bytes);
                Ok(())
            }
            Err(error) => {
                if let Error::Poisoned { reason } = &error {
                    // The edit may be there after all, and then the next open needs the files.
                    self.written.clear();
                    core.poison(reason);
                }
                Err(error)
            }
        }
    }
}

impl Drop for Ingestion {
    fn drop(&mut self) {
        let core = self.engine.core();
        if !self.written.is_empty() {
            self.output = None;
            self.written.drain(..).for_each(|path| core.obsolete.push(path));
            core.jobs.wake_keeper();
        }
    }
}

/// While there is one, no write takes a version.
struct Gate<'a> {
    core: &'a Core,
}

impl<'a> Gate<'a> {
    fn close(core: &'a Core) -> Result<Gate<'a>> {
        loop {
            let state = core.write_state();
            core.check_writable()?;
            // Under the writer lock, so whoever has a version has it from before.
            if !core.gate_closed.swap(true, Ordering::AcqRel) {
                drop(state);
                return Ok(Gate { core });
            }
            drop(state);
            core.progress.wait(&*core.env.spawner, || {
                let go = !core.gate_closed.load(Ordering::Acquire) || core.check_writable().is_err();
                go.then_some(())
            });
        }
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.core.gate_closed.store(false, Ordering::Release);
        self.core.progress.notify();
    }
}

/// A new version of an ingestion. It becomes visible when this is dropped: with the tables in the view, or, if they could not be installed, with
/// nothing in it, which versions may be.
struct Taken<'a> {
    core: &'a Core,
    turn: Turn,
}

impl<'a> Taken<'a> {
    /// Takes the version. The WAL gets a record of it without operations, because the versions in the WAL must reach as far as the manifest
    /// says that versions were used: otherwise the next open takes the WAL for cut.
    fn new(core: &'a Core, version: Version) -> Result<Taken<'a>> {
        let mut state = core.write_state();
        if let Some(wal) = &core.wal {
            let mut header = Vec::new();
            BatchRecord::encode_header(version, &mut header);
            let position = wal.append_from(&[&header], Space::Ordinary);
            state.last_record = position.inspect_err(|error| core.note_wal_error(error))?;
        }
        state.last_version = version;
        let turn = core.visibility.enter(version).expect("no writer is under way behind the gate");
        Ok(Taken { core, turn })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.core.visibility.finish(self.turn);
    }
}

impl Core {
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly { directory: self.dir.clone() });
        }
        self.check_open()?;
        self.check_poison()
    }

    /// Fails for a version below which something may have been collected.
    fn check_ingestible(&self, version: Version) -> Result<()> {
        let floor = self.versions.floor();
        if version < floor {
            let reason = format!("version {version} lies below {floor}, the oldest readable one");
            return Err(Error::InvalidIngestion { reason });
        }
        Ok(())
    }

    /// True if a reader could tell whether something appears now at `version`, which is at or below the newest, or came when it was the newest.
    fn can_tell(&self, version: Version) -> bool {
        self.options.retention != Retention::Newest || self.versions.pinned().last().is_some_and(|pin| *pin >= version)
    }

    /// True if memtables must be flushed before an ingestion into `own` may be installed.
    fn must_flush_for(&self, own: Option<&Span>) -> Result<bool> {
        if self.wal.is_none() {
            return Ok(true);
        }
        let Some(own) = own else { return Ok(false) };
        let view = self.view.load();
        for memtable in &view.memtables {
            if own.overlaps_memtable(memtable)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sees to it that the active memtable is empty; behind the gate it stays so.
    fn empty_active_memtable(&self) -> Result<()> {
        let failed_before = self.failed_flushes();
        loop {
            let mut state = self.write_state();
            let view = self.view.read();
            if view.active().is_idle() {
                return Ok(());
            }
            let room = view.memtables.len() < self.options.write_buffers_max;
            drop(view);
            if room {
                self.seal(&mut state, 0);
                return Ok(());
            }
            drop(state);
            self.wait_for_flush(failed_before, |core| {
                core.view.read().memtables.len() < core.options.write_buffers_max
            })?;
        }
    }
}
