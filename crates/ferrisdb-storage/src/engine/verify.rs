//! Checking everything that is on disk.
//!
//! Reads every live table whole, past the cache: block checksums and places, order, bounds, filter, properties against contents. Then what
//! no table knows alone: that the manifest's words are the table's, that levels do not overlap, that for every user key newer places
//! hold newer versions, and that the directory holds nothing that the manifest does not name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use ferrisdb_core::Version;

use super::Core;
use super::files::{self, FileKind};
use super::merge_run::meta_of;
use super::sources::{LevelIterator, Source};
use super::view::Table;
use crate::error::{Error, Result};
use crate::iter::merging::MergingIterator;
use crate::levels::{LEVELS, Levels};
use crate::table::{ReadMode, TableIterator};

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Tables read.
    pub tables: usize,
    /// Point entries read.
    pub entries: u64,
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
        match verify_table(table) {
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
    drop(view);
    verify_directory(core, &mut report)?;
    Ok(report)
}

fn verify_table(table: &Table) -> Result<u64> {
    let reader = table.reader()?;
    let verified = reader.verify()?;
    let meta = meta_of(reader.summary(), table.meta.number, table.meta.l0_rank);
    let expected = crate::manifest::TableMeta { blob_references: Vec::new(), ..table.meta.clone() };
    if meta != expected {
        let what = format!("the table says {meta:?}, but the manifest {expected:?}");
        return Err(Error::corruption(&table.path, 0, what));
    }
    Ok(verified.entries)
}

/// For each user key, newer places hold newer versions: what every read relies on when it stops at the first answer.
fn verify_version_order(levels: &Levels<Table>, report: &mut VerifyReport) -> Result<()> {
    let mut sources = Vec::new();
    let mut names = Vec::new();
    for table in levels.level(0).tables() {
        sources.push(Source::Table(TableIterator::new(Arc::clone(table.reader()?), ReadMode::Compaction)));
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
        (manifest.state().tables.keys().copied().collect(), manifest.state().next_file_number)
    };
    for path in core.env.fs.list(&core.dir).map_err(|error| Error::io("list", &core.dir, error))? {
        let path = core.dir.join(path);
        // Numbers not named by any edit may belong to a flush or compaction that is running.
        if let FileKind::Table(number) = files::file_kind(&path)
            && !live.contains(&number)
            && number < from
        {
            report.leftovers.push(path);
        }
    }
    Ok(())
}
