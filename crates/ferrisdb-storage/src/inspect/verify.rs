//! A whole directory, checked with nobody else using it.
//!
//! The engine is opened read-only, which checks the manifest and replays the WAL, and asked to verify its tables. Where it
//! cannot be opened because of damage, the parts are checked one by one instead, so that every damaged file is found at once, not
//! only the first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrisdb_core::Version;

use super::Sink;
use crate::batch::BatchRecord;
use crate::cache::BlockCache;
use crate::engine::files::{FileKind, LOCK, OPTIONS, WAL_DIR, file_kind, noting_remains, table_path};
use crate::engine::{Engine, VerifyReport};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::manifest::log::{self, Found};
use crate::manifest::{Manifest, ManifestState};
use crate::options::Options;
use crate::table::{TableId, TableReader};
use crate::wal::{Wal, WalOptions, WalPosition, inspect_segment, segment_file_name};

/// What was found so far.
#[derive(Default)]
struct Findings {
    tables: VerifyReport,
    wal_records: u64,
    /// Where a crash tore the WAL, if it did: no damage, for nothing acknowledged was lost.
    wal_torn: Option<String>,
    problems: Vec<(Option<PathBuf>, String)>,
}

/// Checks every checksum, the order of keys and versions, the levels, the manifest against the directory, and the WAL, and tells
/// what is wrong, a row for each problem. Returns the number of problems. Changes nothing but the lock file.
///
/// # Errors
/// [`Error::NotAnEngine`], [`Error::Locked`], [`Error::FormatTooNew`], [`Error::Io`], and the sink's. Damage is no error but a row.
pub fn verify(env: &Env, dir: &Path, sink: &mut dyn Sink) -> Result<u64> {
    let fs = &env.fs;
    // Before anything is locked: a directory that is not ours gets no lock file.
    let found = Manifest::find(&**fs, dir, &[LOCK, OPTIONS]).map_err(|error| noting_remains(&**fs, error))?;
    if found == Found::Nothing {
        let reason = "there is no engine in it".to_owned();
        return Err(Error::NotAnEngine { directory: dir.into(), reason, has_remains: false });
    }
    let mut findings = Findings::default();
    match Engine::open_read_only(env.clone(), dir, Options::default()).and_then(|engine| engine.verify()) {
        Ok(report) => {
            findings.problems.extend(report.problems.iter().map(|problem| (None, problem.clone())));
            findings.tables = report;
            let state = log::read(&**fs, dir)?.state;
            findings.check_wal(fs, dir, Some(&state))?;
        }
        Err(error) if error.is_corruption() => findings.check_parts(fs, dir, &error)?,
        Err(error) => return Err(error),
    }
    findings.tell(dir, sink)
}

impl Findings {
    fn tell(&self, dir: &Path, sink: &mut dyn Sink) -> Result<u64> {
        let problems = self.problems.len() as u64;
        sink.field("directory", dir.to_string_lossy().as_ref().into())?;
        sink.field("tables", self.tables.tables.into())?;
        sink.field("table_bytes", self.tables.bytes.into())?;
        sink.field("entries", self.tables.entries.into())?;
        sink.field("wal_records", self.wal_records.into())?;
        sink.field("wal_torn", self.wal_torn.as_deref().into())?;
        sink.field("problems_found", problems.into())?;
        sink.table("problems", &["problem"])?;
        for (_, problem) in &self.problems {
            sink.row(&[problem.as_str().into()])?;
        }
        sink.table("leftovers", &["file"])?;
        for path in &self.tables.leftovers {
            sink.row(&[path.to_string_lossy().as_ref().into()])?;
        }
        Ok(problems)
    }

    /// Takes damage down as a problem; any other error ends the verification.
    fn note<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_corruption() => {
                self.problems.push((file_of(&error), error.to_string()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Checks what there is without an engine that could be opened; `cause` is why it could not.
    fn check_parts(&mut self, fs: &Arc<dyn FileSystem>, dir: &Path, cause: &Error) -> Result<()> {
        let state = self.note(log::read(&**fs, dir))?.map(|recovered| recovered.state);
        let cache = Arc::new(BlockCache::new(1 << 20));
        let mut tables = Vec::new();
        match &state {
            Some(state) => {
                let named = state.tables.iter();
                tables.extend(named.map(|(number, (_, meta))| (*number, table_path(dir, *number), meta.file_bytes)));
            }
            None => {
                // Which of them are live nobody knows.
                for name in fs.list(dir).map_err(|error| Error::io("list", dir, error))? {
                    let path = dir.join(name);
                    if let FileKind::Table(number) = file_kind(&path) {
                        let bytes = fs.len(&path).map_err(|error| Error::io("open", &path, error))?;
                        tables.push((number, path, bytes));
                    }
                }
            }
        }
        for (number, path, bytes) in tables {
            let reader = TableReader::open(&**fs, &path, TableId(number.0), bytes, &cache);
            if let Some(verified) = self.note(reader.and_then(|reader| reader.verify()))? {
                self.tables.entries += verified.entries;
            }
            self.tables.tables += 1;
            self.tables.bytes += bytes;
        }
        self.check_wal(fs, dir, state.as_ref())?;
        // Usually one of the above is why; but if nothing above says so, this does.
        let file = file_of(cause);
        if !self.problems.iter().any(|(known, _)| *known == file) {
            self.problems.push((file, cause.to_string()));
        }
        Ok(())
    }

    /// Reads every record of the WAL.
    fn check_wal(&mut self, fs: &Arc<dyn FileSystem>, dir: &Path, state: Option<&ManifestState>) -> Result<()> {
        let wal_dir = dir.join(WAL_DIR);
        if !fs.exists(&wal_dir).map_err(|error| Error::io("open", &wal_dir, error))? {
            return Ok(());
        }
        let identity = match state {
            Some(state) => Some(state.engine_id.wal_identity()),
            None => identity_in(&**fs, &wal_dir)?,
        };
        // Without a header there is no record either.
        let Some(identity) = identity else { return Ok(()) };
        let required_from = state.and_then(|state| state.wal_start).map_or(WalPosition::ZERO, WalPosition::from_u64);
        let options = WalOptions { identity, required_from, ..WalOptions::default() };
        let opened = Wal::read_only(Arc::clone(fs), &wal_dir, &options);
        let Some((mut reader, recovery)) = self.note(opened)? else { return Ok(()) };
        let synced = state.and_then(|state| state.wal_synced).map_or(WalPosition::ZERO, WalPosition::from_u64);
        if recovery.end < synced {
            let what =
                format!("the WAL ends at {}, but it was synced up to {synced}: its end is missing", recovery.end);
            let segment = wal_dir.join(segment_file_name(synced.segment()));
            self.note(Err::<(), _>(Error::corruption(segment, u64::from(synced.offset()), what)))?;
        }
        self.wal_torn = recovery.torn.map(|torn| format!("{} at {}: {}", torn.file.display(), torn.offset, torn.what));
        let mut previous = Version::ZERO;
        while let Some(true) = self.note(reader.advance())? {
            self.wal_records += 1;
            let record = reader.record();
            let offset = u64::from(record.position.offset());
            let file = reader.segment_path().unwrap_or(&wal_dir);
            let Some(batch) = self.note(BatchRecord::decode(record.payload, file, offset))? else { continue };
            if batch.version <= previous {
                let what = format!("WAL record of version {} behind one of version {previous}", batch.version);
                self.note(Err::<(), _>(Error::corruption(file, offset, what)))?;
            }
            previous = previous.max(batch.version);
        }
        Ok(())
    }
}

/// The identity of a WAL, from the first segment that has an intact header.
fn identity_in(fs: &dyn FileSystem, wal_dir: &Path) -> Result<Option<u64>> {
    for name in fs.list(wal_dir).map_err(|error| Error::io("list", wal_dir, error))? {
        match inspect_segment(fs, &wal_dir.join(name)) {
            Ok(segment) => return Ok(Some(segment.header().identity)),
            Err(error) if error.is_corruption() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn file_of(error: &Error) -> Option<PathBuf> {
    match error {
        Error::Corruption { file, .. } | Error::MissingFile { file } => Some(file.clone()),
        _ => None,
    }
}
