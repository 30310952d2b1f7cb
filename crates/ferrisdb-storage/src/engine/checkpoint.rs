//! Checkpoints: a second engine made of hard links.
//!
//! Tables never change, so a copy of an engine is its live tables under second names and a manifest of its own: it takes the time
//! of a flush and a few links, and space only as the original lets go of what the two share. Where the file system cannot link (another
//! device), files are copied.
//!
//! The tables are those of one manifest state, in which everything up to the flushed version is there and nothing beyond it. The view that belongs to
//! the state is held while its files are linked, so compactions go on meanwhile and their inputs stay. There is no WAL to copy.
//!
//! # What a crash leaves
//! CURRENT comes last, when the names of all files are durable. Before that the directory is not an engine, and opening it says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrisdb_core::Version;

use super::jobs::Hold;
use super::view::View;
use super::{Core, Engine, files};
use crate::error::{Error, Result};
use crate::fs::{FileSystem, OpenMode, read_exact_at, write_all_at};
use crate::manifest::log::is_manifest_name;
use crate::manifest::{EngineId, Manifest, ManifestState};
use crate::planted::{Bug, planted};

/// Copied at once where a file cannot be linked.
const COPY_BYTES: usize = 1 << 20;

impl Engine {
    /// Makes a copy of everything visible now in `dir`, which must be empty or missing, and returns the version as of which it is.
    /// It is an engine of its own with an [id](EngineId) of its own: both may be opened and written, and neither sees the other.
    /// Versions that are readable here are readable there, except that pins are not copied: pass them as
    /// [`Options::pinned_versions`](crate::Options::pinned_versions).
    ///
    /// Writes and compactions go on meanwhile. On an error whatever was created in the directory is removed as far as possible.
    ///
    /// # Errors
    /// Those of [`Engine::flush`]; [`Error::Io`] for the directory, with [`io::ErrorKind::AlreadyExists`] if something is in it;
    /// [`Error::NoSpace`].
    pub fn checkpoint(&self, dir: impl AsRef<Path>) -> Result<Version> {
        let core = self.core();
        let dir = dir.as_ref();
        let _hold = Hold::new(core)?;
        core.check_writable()?;
        let missing = prepare_directory(&*core.env.fs, dir)?;
        let (mut state, view) = core.flushed_state()?;
        let version = state.flushed;
        state.engine_id = EngineId(core.env.entropy.unique_bytes());
        // Positions of another WAL.
        state.wal_start = None;
        state.wal_synced = None;
        let mut created = Vec::new();
        let done = copy(core, dir, state, &missing, &mut created);
        drop(view);
        if done.is_err() {
            remove(&*core.env.fs, dir, &created);
        }
        done.map(|()| version)
    }
}

impl Core {
    /// A state of the manifest that holds everything up to its flushed version and nothing beyond, and the view whose tables it names.
    fn flushed_state(&self) -> Result<(ManifestState, Arc<View>)> {
        loop {
            self.flush()?;
            let manifest = self.manifest();
            let state = manifest.state();
            // An ingestion may have gone ahead of what memtables held.
            if state.flushed >= state.last_version || planted(Bug::CheckpointAheadOfFlush) {
                // Views change under the manifest's lock wherever tables change, so this one has the same.
                return Ok((state.clone(), self.view.load()));
            }
        }
    }
}

/// Creates the directory; the directories above it that were not there, outermost last.
fn prepare_directory(fs: &dyn FileSystem, dir: &Path) -> Result<Vec<PathBuf>> {
    let wrap = |op: &'static str| move |error| Error::io(op, dir, error);
    let mut missing = Vec::new();
    for above in dir.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        if fs.exists(above).map_err(wrap("look for"))? {
            break;
        }
        missing.push(above.to_path_buf());
    }
    if missing.is_empty() && !fs.list(dir).map_err(wrap("list"))?.is_empty() {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, "a checkpoint needs an empty directory");
        return Err(Error::io("create a checkpoint in", dir, error));
    }
    fs.create_dir_all(dir).map_err(wrap("create"))?;
    Ok(missing)
}

fn copy(core: &Core, dir: &Path, state: ManifestState, missing: &[PathBuf], created: &mut Vec<PathBuf>) -> Result<()> {
    let fs = &core.env.fs;
    let tables =
        state.tables.keys().map(|number| (files::table_path(&core.dir, *number), files::table_path(dir, *number)));
    let blobs = state.blobs.keys().map(|number| (files::blob_path(&core.dir, *number), files::blob_path(dir, *number)));
    for (from, to) in tables.chain(blobs) {
        created.push(to.clone());
        match fs.hard_link(&from, &to) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::Unsupported) => {
                copy_file(&**fs, &from, &to)?;
            }
            Err(error) => return Err(Error::io("link", from, error)),
        }
    }
    // Syncs the directory, and so the names of the tables, before CURRENT gets its name.
    Manifest::create_with(Arc::clone(fs), dir, state)?;
    for above in missing.iter().filter_map(|path| path.parent()).filter(|path| !path.as_os_str().is_empty()) {
        fs.sync_dir(above).map_err(|error| Error::io("sync directory", above, error))?;
    }
    Ok(())
}

pub(super) fn copy_file(fs: &dyn FileSystem, from: &Path, to: &Path) -> Result<()> {
    let source = fs.open(from, OpenMode::Read).map_err(|error| Error::io("open", from, error))?;
    let target = fs.open(to, OpenMode::CreateNew).map_err(|error| Error::io("create", to, error))?;
    let len = source.len().map_err(|error| Error::io("stat", from, error))?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let piece = usize::try_from(len - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        read_exact_at(&*source, &mut buffer[..piece], at).map_err(|error| Error::io("read", from, error))?;
        write_all_at(&*target, &buffer[..piece], at).map_err(|error| Error::io("write", to, error))?;
        at += piece as u64;
    }
    target.sync_all().map_err(|error| Error::io("sync", to, error))
}

/// Takes back a checkpoint that failed: CURRENT first, so that no crash leaves one that names files that are gone.
fn remove(fs: &dyn FileSystem, dir: &Path, created: &[PathBuf]) {
    let names = fs.list(dir).unwrap_or_default();
    let mut ours: Vec<PathBuf> =
        names.iter().filter(|name| name.to_str().is_some_and(is_manifest_name)).map(|name| dir.join(name)).collect();
    // "CURRENT" sorts before "MANIFEST-".
    ours.sort();
    for path in ours {
        // Best effort: what stays is not an engine, and the caller has the error that led here.
        drop(fs.remove_file(&path).and_then(|()| fs.sync_dir(dir)));
    }
    created.iter().for_each(|path| drop(fs.remove_file(path)));
}
