//! Checking everything that is on disk.
//!
//! Reads every live table whole, past the cache: block checksums and places, order, bounds, filter, properties against contents. Then what
//! no table knows alone: that the manifest's words are the table's, that levels do not overlap, that for every user key newer places
//! hold newer versions, that every blob pointer leads to a value, that garbage and references account for each byte of the blob files, and
//! that the directory holds nothing that the manifest does not name. Garbage in blob files is not read: nobody can ask for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use ferrisdb_core::Version;

use super::Core;
use super::blobs::Blobs;
use super::files::{self, FileKind};
use super::merge_run::meta_of;
use super::sources::{LevelIterator, Source};
use super::view::Table;
use crate::blob::garbage;
use crate::error::{Error, Result};
use crate::iter::PointIterator;
use crate::iter::merging::MergingIterator;
use crate::key::ValueKind;
use crate::levels::{LEVELS, Levels};
use crate::manifest::FileNumber;
use crate::table::{ReadMode, TableIterator, TableReader};

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Tables read.
    pub tables: usize,
    /// Point entries read.
    pub entries: u64,
    /// Blob files that are live.
    pub blob_files: usize,
    /// Values read from them: each that an entry points to.
    pub blob_values: u64,
    /// Bytes of the files read.
    pub bytes: u64,
    /// What does not hold, one sentence each, naming the file. Empty means that everything does.
    pub problems: Vec<String>,
    /// Files that nothing names; the next open for writing removes them.
    pub leftovers: Vec<PathBuf>,
}

impl VerifyReport {
    /// True if nothing is wrong. Leftovers are not.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

pub(super) fn verify(core: &Arc<Core>) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    // The view keeps the files from being removed while they are read.
    let view = core.view.load();
    let levels = &view.levels;
    if let Some(problem) = levels.problem() {
        report.problems.push(problem);
    }
    let mut readable = true;
    for (level, table) in levels.tables() {
        report.tables += 1;
        report.bytes += table.meta.file_bytes;
        match verify_table(table, &view.blobs, &mut report) {
            Ok(entries) => report.entries += entries,
            Err(error) if error.is_corruption() => {
                readable = false;
                report.problems.push(format!("L{level}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    if readable {
        verify_version_order(levels, &mut report)?;
    }
    verify_blob_files(core, &view.blobs, &mut report)?;
    drop(view);
    verify_directory(core, &mut report)?;
    Ok(report)
}

fn verify_table(table: &Table, blobs: &Blobs, report: &mut VerifyReport) -> Result<u64> {
    let reader = table.reader()?;
    let verified = reader.verify()?;
    let references = verify_blob_values(&reader, blobs, report)?;
    let meta = meta_of(reader.summary(), table.meta.number, table.meta.l0_rank, references);
    if meta != table.meta {
        let what = format!("the table says {meta:?}, but the manifest {:?}", table.meta);
        return Err(Error::corruption(&table.path, 0, what));
    }
    Ok(verified.entries)
}

/// Reads every value that the table points to, past the cache; what it refers to in each blob file. A value that cannot be read is
/// reported, and the rest read all the same.
fn verify_blob_values(
    reader: &Arc<TableReader>,
    blobs: &Blobs,
    report: &mut VerifyReport,
) -> Result<Vec<(FileNumber, u64)>> {
    let mut references: BTreeMap<FileNumber, u64> = BTreeMap::new();
    // The table's verification has counted them.
    if reader.properties().blob_pointers == 0 {
        return Ok(Vec::new());
    }
    let mut entries = TableIterator::new(Arc::clone(reader), ReadMode::Compaction);
    entries.seek_to_first()?;
    while entries.valid() {
        let key = entries.key();
        if key.trailer.kind() == Some(ValueKind::BlobPointer) {
            match blobs.read(entries.value(), ReadMode::Compaction) {
                Ok(value) => report.bytes += value.len() as u64,
                Err(error) if error.is_corruption() => {
                    report.problems.push(format!("the value of key {}: {error}", key.user_key.escape_ascii()));
                }
                Err(error) => return Err(error),
            }
            report.blob_values += 1;
            let pointer = blobs.decode(entries.value())?;
            *references.entry(pointer.number).or_default() += pointer.record_bytes;
        }
        entries.next()?;
    }
    Ok(references.into_iter().collect())
}

/// The headers of the blob files, and that garbage and references account for every byte.
fn verify_blob_files(core: &Core, blobs: &Blobs, report: &mut VerifyReport) -> Result<()> {
    for blob in blobs.files() {
        report.blob_files += 1;
        match blob.reader().and_then(|reader| reader.check_header()) {
            Ok(()) => {}
            Err(error) if error.is_corruption() => report.problems.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    report.problems.extend(garbage::problems(core.manifest().state()));
    Ok(())
}

/// For each user key, newer places hold newer versions: what every read relies on when it stops at the first answer.
fn verify_version_order(levels: &Levels<Table>, report: &mut VerifyReport) -> Result<()> {
    let mut sources = Vec::new();
    let mut names = Vec::new();
    for table in levels.level(0).tables() {
        sources.push(Source::Table(TableIterator::new(table.reader()?, ReadMode::Compaction)));
        names.push(format!("L0 {}", table.path.display()));
    }
    for level in 1..LEVELS {
        sources.push(Source::Level(LevelIterator::new(Arc::clone(levels.level_handle(level)), ReadMode::Compaction)));
        names.push(format!("L{level}"));
    }
    let mut merging = MergingIterator::new(sources);
    merging.seek_to_first()?;
    let mut key: Vec<u8> = Vec::new();
    let mut last: Option<(Version, usize)> = None;
    while let Some(rank) = merging.rank() {
        let entry = merging.key();
        let version = entry.trailer.version();
        // Entries come newest version first; their places must not get newer meanwhile.
        match last {
            Some((newer, newer_rank)) if key == entry.user_key => {
                if newer == version || newer_rank > rank {
                    report.problems.push(format!(
                        "key {}: version {newer} in {} is newer than version {version} in {}",
                        entry.user_key.escape_ascii(),
                        names[newer_rank],
                        names[rank]
                    ));
                }
            }
            _ => {
                key.clear();
                key.extend_from_slice(entry.user_key);
            }
        }
        last = Some((version, rank));
        merging.next()?;
    }
    Ok(())
}

fn verify_directory(core: &Core, report: &mut VerifyReport) -> Result<()> {
    let (live, from): (BTreeSet<_>, _) = {
        let manifest = core.manifest();
        let state = manifest.state();
        (state.tables.keys().chain(state.blobs.keys()).copied().collect(), state.next_file_number)
    };
    for path in core.env.fs.list(&core.dir).map_err(|error| Error::io("list", &core.dir, error))? {
        let path = core.dir.join(path);
        // Numbers not named by any edit may belong to a flush or compaction that is running.
        if let FileKind::Table(number) | FileKind::Blob(number) = files::file_kind(&path)
            && !live.contains(&number)
            && number < from
        {
            report.leftovers.push(path);
        }
    }
    Ok(())
}
