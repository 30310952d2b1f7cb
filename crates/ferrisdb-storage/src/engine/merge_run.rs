//! [`MergeRun`]: from sorted sources to new tables. Flushes and compactions are this loop with different sources.
//!
//! Entries come in internal-key order. Per user key, [`Retention`] decides which versions some reader may still ask for; the rest is not
//! written. Range tombstones of all inputs are cut into one fragment list and written, each output table with the part that lies within its
//! own range of keys. Large values go to blob files ([`LargeValues`]). Outputs are cut between user keys only, so that no key's versions are spread over two tables of a level.
//!
//! A run does a bounded number of entries a step, and nothing that it does is visible before its outputs are installed. Dropping it
//! leaves files that no manifest names; they are queued for removal.

use std::path::PathBuf;
use std::sync::Arc;

use ferrisdb_core::Version;

use super::Core;
use super::files;
use super::large_values::LargeValues;
use super::sources::Source;
use crate::compaction::plan::Grandparent;
use crate::compaction::{Decision, KeySpan, Retention};
use crate::error::{Error, Result};
use crate::fs::OpenMode;
use crate::iter::merging::MergingIterator;
use crate::key::{InternalKey, Trailer};
use crate::manifest::{BlobMeta, FileNumber, TableMeta};
use crate::planted::{Bug, planted};
use crate::table::{TableBuilder, TableId, TableSummary};
use crate::tombstone::{Fragment, FragmentList};

/// What a run makes and where it goes.
pub(super) struct Target {
    /// The level of the outputs.
    pub(super) level: usize,
    /// An output is finished before it gets larger; `u64::MAX` for one output.
    pub(super) table_bytes: u64,
    /// Keys to write, `[start, end)`; `None` means no bound.
    pub(super) start: Option<Box<[u8]>>,
    pub(super) end: Option<Box<[u8]>>,
    /// Where older data lies outside the inputs, sorted and disjoint: what makes a key's place "not the bottom".
    pub(super) older: Vec<KeySpan>,
    /// The tables of the level below the outputs', and how many bytes of them one output may overlap.
    pub(super) grandparents: Vec<Grandparent>,
    pub(super) grandparent_bytes_max: u64,
    /// The rank of the outputs in L0; `None` takes the output's own number.
    pub(super) l0_rank: Option<u64>,
    /// Blob files to empty: values in them are written anew.
    pub(super) relocate: Vec<FileNumber>,
}

pub(super) struct MergeRun {
    core: Arc<Core>,
    input: MergingIterator<Source>,
    tombstones: FragmentList,
    retention: Retention,
    target: Target,
    /// Place in `target.older`; it only moves forward, because keys do.
    older: usize,
    builder: Option<Output>,
    large_values: LargeValues,
    outputs: Vec<TableMeta>,
    /// Everything written, for removal should the run fail.
    written: Vec<PathBuf>,
    /// Where the next output's range begins.
    cut: Option<Box<[u8]>>,
    /// Place in `target.grandparents`, and bytes of them that the current output has passed.
    grandparent: usize,
    grandparent_bytes: u64,
    key: Vec<u8>,
    fragment: usize,
    started: bool,
    installed: bool,
    /// What [`MergeRun::take_progress`] has said in all.
    told_bytes: u64,
}

/// A table that is being written.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) builder: TableBuilder,
    pub(super) number: FileNumber,
}

impl MergeRun {
    pub(super) fn new(
        core: &Arc<Core>,
        sources: Vec<Source>,
        tombstones: FragmentList,
        retention: Retention,
        target: Target,
    ) -> MergeRun {
        let tombstones = if target.start.is_some() || target.end.is_some() {
            tombstones.clipped(target.start.as_deref(), target.end.as_deref())
        } else {
            tombstones
        };
        MergeRun {
            core: Arc::clone(core),
            input: MergingIterator::new(sources),
            tombstones,
            retention,
            older: 0,
            builder: None,
            large_values: LargeValues::new(core, target.level, target.relocate.clone()),
            outputs: Vec::new(),
            written: Vec::new(),
            cut: target.start.clone(),
            grandparent: 0,
            grandparent_bytes: 0,
            key: Vec::new(),
            fragment: 0,
            started: false,
            installed: false,
            told_bytes: 0,
            target,
        }
    }

    /// Handles about `budget` entries; true when everything is written and synced.
    pub(super) fn step(&mut self, budget: usize) -> Result<bool> {
        if !self.started {
            self.started = true;
            match &self.target.start {
                Some(start) => self.input.seek(InternalKey::seek(start, Version::MAX))?,
                None => self.input.seek_to_first()?,
            }
        }
        let mut left = budget;
        while left > 0 {
            if !self.input.valid() || self.target.end.as_deref().is_some_and(|end| self.input.key().user_key >= end) {
                return self.finish().map(|()| true);
            }
            left = left.saturating_sub(self.write_key()?);
        }
        Ok(false)
    }

    /// The tables written, once [`MergeRun::step`] said that it is done.
    pub(super) fn outputs(&self) -> &[TableMeta] {
        &self.outputs
    }

    /// The blob files written, once [`MergeRun::step`] said that it is done.
    pub(super) fn blob_outputs(&self) -> &[BlobMeta] {
        self.large_values.outputs()
    }

    /// Bytes of all files written.
    pub(super) fn written_bytes(&self) -> u64 {
        let tables: u64 = self.outputs.iter().map(|meta| meta.file_bytes).sum();
        tables + self.large_values.outputs().iter().map(|blob| blob.file_bytes).sum::<u64>()
    }

    /// About how many bytes were written since this was last asked.
    pub(super) fn take_progress(&mut self) -> u64 {
        let current = self.builder.as_ref().map_or(0, |output| output.builder.estimated_bytes());
        let all = self.written_bytes() + current + self.large_values.unfinished_bytes();
        // An estimate may shrink when the table is finished.
        let more = all.saturating_sub(self.told_bytes);
        self.told_bytes += more;
        more
    }

    /// Bytes of records that were moved from one blob file to another.
    pub(super) fn relocated_bytes(&self) -> u64 {
        self.large_values.relocated_bytes()
    }

    /// Every version from here on is readable after this run, beside pins.
    pub(super) fn floor(&self) -> Version {
        self.retention.floor()
    }

    /// The outputs are in the manifest: they stay.
    pub(super) fn set_installed(&mut self) {
        self.installed = true;
    }

    /// Handles every version of the current user key; returns what that cost, in entries.
    fn write_key(&mut self) -> Result<usize> {
        self.key.clear();
        self.key.extend_from_slice(self.input.key().user_key);
        if self.is_full_before_key() {
            let cut: Box<[u8]> = self.key.as_slice().into();
            self.finish_output(Some(cut))?;
        }
        let key = &self.key;
        let covering: &[Version] = {
            let fragments = self.tombstones.fragments();
            while fragments.get(self.fragment).is_some_and(|fragment| *fragment.end <= **key) {
                self.fragment += 1;
            }
            match fragments.get(self.fragment) {
                Some(fragment) if *fragment.start <= **key => &fragment.versions,
                _ => &[],
            }
        };
        while self.target.older.get(self.older).is_some_and(|span| span.ends_before(key)) {
            self.older += 1;
        }
        let bottom = self.target.older.get(self.older).is_none_or(|span| **key < *span.smallest);
        let mut filter = self.retention.key(covering, bottom);
        let mut count = 0;
        loop {
            let entry = self.input.key();
            let trailer = entry.trailer;
            let kind = trailer.kind().expect("sources check the kinds of their entries");
            let keep = match filter.decide(trailer.version(), kind) {
                Decision::Keep => Some(trailer.version()),
                Decision::KeepAtZero => Some(Version::ZERO),
                Decision::Drop => None,
            };
            if let Some(version) = keep {
                let (kind, value) = self.large_values.place(&self.core, &mut self.written, kind, self.input.value())?;
                if self.builder.is_none() {
                    self.builder = Some(open_output(&self.core, self.target.level, &mut self.written)?);
                }
                let output = self.builder.as_mut().expect("opened above");
                output.builder.add(InternalKey::new(&self.key, Trailer::new(version, kind)), value)?;
            }
            count += 1 + self.large_values.take_cost();
            self.input.next()?;
            if !self.input.valid() || self.input.key().user_key != self.key {
                return Ok(count);
            }
        }
    }

    /// True if the current output should end before `self.key`.
    fn is_full_before_key(&mut self) -> bool {
        while let Some(table) = self.target.grandparents.get(self.grandparent)
            && *table.largest < *self.key
        {
            self.grandparent += 1;
            self.grandparent_bytes += table.bytes;
        }
        let Some(output) = &self.builder else {
            // What lies before the first key of an output is not overlapped by it.
            self.grandparent_bytes = 0;
            return false;
        };
        output.builder.estimated_bytes() >= self.target.table_bytes
            || self.grandparent_bytes > self.target.grandparent_bytes_max
    }

    fn finish(&mut self) -> Result<()> {
        let end = self.target.end.clone();
        self.finish_output(end)?;
        self.large_values.finish()?;
        if !self.outputs.is_empty() && !planted(Bug::SkipDirectorySync) {
            let dir = &self.core.dir;
            self.core.env.fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        }
        Ok(())
    }

    /// Ends the current output before `end`, with the range tombstones of its range.
    fn finish_output(&mut self, end: Option<Box<[u8]>>) -> Result<()> {
        let tombstones = self.tombstones_of_output(end.as_deref());
        self.cut = end;
        self.grandparent_bytes = 0;
        let output = match self.builder.take() {
            Some(output) => Some(output),
            None if tombstones.is_empty() => None,
            None => Some(open_output(&self.core, self.target.level, &mut self.written)?),
        };
        let Some(Output { mut builder, number }) = output else { return Ok(()) };
        if !tombstones.is_empty() {
            builder.add_range_tombstones(&tombstones);
        }
        let summary = builder.finish()?;
        let references = self.large_values.take_references();
        self.outputs.push(meta_of(summary, number, self.target.l0_rank.unwrap_or(number.0), references));
        Ok(())
    }

    fn tombstones_of_output(&self, end: Option<&[u8]>) -> FragmentList {
        if self.tombstones.is_empty() {
            return FragmentList::default();
        }
        let mut kept = Vec::new();
        for fragment in self.tombstones.clipped(self.cut.as_deref(), end).fragments() {
            let first = self.target.older.partition_point(|span| span.ends_before(&fragment.start));
            let bottom = self.target.older.get(first).is_none_or(|span| fragment.end <= span.smallest);
            let mut versions = Vec::new();
            self.retention.fragment(&fragment.versions, bottom, &mut versions);
            if !versions.is_empty() {
                kept.push(Fragment {
                    start: fragment.start.clone(),
                    end: fragment.end.clone(),
                    versions: versions.into(),
                });
            }
        }
        FragmentList::from_fragments(kept).expect("parts of a well-formed list, in order, are well formed")
    }
}

impl Drop for MergeRun {
    fn drop(&mut self) {
        if !self.installed {
            self.written.drain(..).for_each(|path| self.core.obsolete.push(path));
        }
    }
}

/// Begins a table of `level`; its file is noted in `written`.
pub(super) fn open_output(core: &Core, level: usize, written: &mut Vec<PathBuf>) -> Result<Output> {
    let number = core.allocate_file_number();
    let path = files::table_path(&core.dir, number);
    let file = core.env.fs.open(&path, OpenMode::CreateNew).map_err(|error| Error::io("create", &path, error))?;
    written.push(path.clone());
    let builder = TableBuilder::new(file, &path, TableId(number.0), core.options.table_options(level));
    Ok(Output { builder, number })
}

/// What the manifest says about a table that was just written.
pub(super) fn meta_of(
    summary: TableSummary,
    number: FileNumber,
    l0_rank: u64,
    blob_references: Vec<(FileNumber, u64)>,
) -> TableMeta {
    let properties = summary.properties;
    TableMeta {
        number,
        file_bytes: summary.file_bytes,
        smallest: summary.smallest.into(),
        largest: summary.largest.into(),
        largest_exclusive: summary.largest_is_exclusive,
        smallest_version: properties.smallest_version,
        largest_version: properties.largest_version,
        entries: properties.entries,
        tombstones: properties.tombstones,
        range_tombstones: properties.range_tombstones,
        key_bytes: properties.raw_key_bytes,
        value_bytes: properties.raw_value_bytes,
        l0_rank,
        blob_references,
    }
}
