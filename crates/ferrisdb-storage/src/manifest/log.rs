//! The manifest's files: [`Manifest`].
//!
//! # Invariants
//! - CURRENT names a manifest whose name, header and first record (a snapshot) were durable before CURRENT named it.
//! - An edit is acknowledged only after its record was synced, or after CURRENT was durably switched to a manifest whose
//!   snapshot has it.
//! - Nothing is appended to a manifest after a failed append, or by a process that did not create it: what lies behind the
//!   last good record is not ours to guess. A new manifest is written instead.
//! - Manifest numbers only grow; a new manifest takes a number above every name in the directory.
//!
//! # Switching to a new manifest
//! ```text
//! 1 create MANIFEST-n  2 write header and snapshot  3 sync it  4 sync the directory   (n is durable, nothing names it)
//! 5 write CURRENT.tmp  6 sync it  7 rename it to CURRENT  8 sync the directory        (the switch is durable)
//! 9 remove older manifests
//! ```
//! Until 7 the old manifest is in force, after 8 the new one, in between either, and both hold all that was acknowledged.
//!
//! # When the disk fails
//! | where | what happened | what we do |
//! |---|---|---|
//! | append: write, no space | unknown; cut off durably, it did not happen | fail; switch at the next edit |
//! | append: write, other error; sync or cutting off, any error | unknown | poison |
//! | switch 1, 2, 5: any error; 3, 4, 6: no space | nothing names the new manifest: the edit did not happen | fail; try again with another number at the next edit |
//! | switch 3, 4, 6: other errors | the edit did not happen, but a failed sync is final | poison |
//! | switch 7, 8: any error | unknown which one is in force | poison |
//! | switch 9 | an obsolete file stays | go on; the next open removes it |
//!
//! An append that would make the log longer than its bound switches instead; if there is no space for that, it appends after all.
//!
//! Poisoned means: every later edit is refused with [`Error::Poisoned`], and so the caller must not delete a file that either
//! outcome needs; the next open finds one of the two. Reading after a failed sync may show bytes that are in memory only (the
//! kernel marks the pages clean), so every open for writing first writes what it read into a new manifest, and until that has
//! worked ([`Manifest::is_settled`]) no file may be deleted.
//!
//! # Concurrency
//! One owner. Reading ([`read`]) may run beside it, from another process too.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::current::{CURRENT, CURRENT_TMP, Current};
use super::edit::{EditError, EngineId, ManifestEdit};
use super::frame::{self, FrameError, Header};
use super::state::ManifestState;
use crate::error::{Error, Result};
use crate::fs::{File, FileSystem, OpenMode, read_exact_at, write_all_at};
use crate::planted::{Bug, planted};

/// The bound of a manifest, in bytes, above which it is switched, unless its snapshot alone is a large part of that. An edit of
/// a flush takes one sector, so this is one switch in 2,000 flushes; reading it back takes a few milliseconds.
pub const LOG_BYTES_MAX: u64 = 1 << 20;

/// How many times reading starts again because the manifest that CURRENT named was switched away meanwhile.
const READ_TRIES_MAX: usize = 10;

const NAME_PREFIX: &str = "MANIFEST-";

/// The name of manifest `number`.
pub fn manifest_file_name(number: u64) -> String {
    format!("{NAME_PREFIX}{number:06}")
}

/// The number in a manifest's name.
pub fn parse_manifest_file_name(name: &str) -> Option<u64> {
    let number = name.strip_prefix(NAME_PREFIX)?.parse().ok()?;
    (manifest_file_name(number) == name).then_some(number)
}

/// True for the names that this module gives to files.
pub fn is_manifest_name(name: &str) -> bool {
    name == CURRENT || name == CURRENT_TMP || parse_manifest_file_name(name).is_some()
}

/// What is in a directory, as far as the manifest can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No directory, an empty one, or one in which creating an engine was begun and cut short by a crash.
    Nothing,
    /// An engine.
    Engine,
}

/// What reading a manifest gives.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// What its edits add up to.
    pub state: ManifestState,
    /// The manifest's number.
    pub manifest: u64,
    /// The manifest's file.
    pub file: PathBuf,
    /// Every edit with the offset of its record, in bytes; the first is a snapshot.
    pub edits: Vec<(u64, ManifestEdit)>,
    /// Where the last complete record ends, in bytes.
    pub end: u64,
    /// True if an incomplete record, never acknowledged, follows it.
    pub torn: bool,
}

/// The live manifest of an engine that is open for writing.
pub struct Manifest {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    state: ManifestState,
    /// The bound, in bytes.
    log_bytes_max: u64,
    /// The manifest that CURRENT names.
    number: u64,
    /// The number of the next manifest.
    next_number: u64,
    /// Where edits are appended. None: the next edit switches first.
    log: Option<Log>,
    /// True once `state` is durable beyond doubt.
    settled: bool,
    poisoned: Option<Arc<str>>,
}

/// The manifest that is being appended to.
struct Log {
    file: Arc<dyn File>,
    path: PathBuf,
    number: u64,
    /// Where the next record goes.
    end: u64,
    /// Where the snapshot ended.
    snapshot_end: u64,
}

/// What a failed switch means.
enum SwitchFailure {
    /// The old manifest is in force, and another try may succeed.
    NoEffect(Error),
    /// It is unknown which one is in force, or a sync failed.
    Poison(Error),
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("dir", &self.dir)
            .field("number", &self.number)
            .field("settled", &self.settled)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

impl Manifest {
    /// Looks whether `dir` holds an engine. Modifies nothing. `beside` are the names that the caller itself may have created
    /// before there was a manifest, such as its lock file.
    ///
    /// # Errors
    /// [`Error::NotAnEngine`] for a directory that holds other files but no CURRENT: they may be all that is left of an engine, and
    /// must not be built over.
    pub fn find(fs: &dyn FileSystem, dir: &Path, beside: &[&str]) -> Result<Found> {
        let names = match list(fs, dir) {
            Ok(names) => names,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        if names.iter().any(|name| name == CURRENT) {
            return Ok(Found::Engine);
        }
        let refuse =
            |reason: String, has_remains: bool| Err(Error::NotAnEngine { directory: dir.into(), reason, has_remains });
        for name in &names {
            if let Some(number) = parse_manifest_file_name(name) {
                // Left by a creation that a crash cut short, unless it says that an engine has lived here.
                match read_file(fs, &dir.join(name), Some(number)) {
                    Ok(recovered) if recovered.state.is_new() => {}
                    Err(Error::Corruption { .. }) => {}
                    Ok(_) => {
                        return refuse(format!("{CURRENT} is missing, but {name} describes an engine with data"), true);
                    }
                    Err(error) => return Err(error),
                }
            } else if name != CURRENT_TMP && !beside.contains(&name.as_str()) {
                return refuse(format!("{CURRENT} is missing, but there is {name}"), false);
            }
        }
        Ok(Found::Nothing)
    }

    /// Creates a new engine's manifest in a directory in which [`Manifest::find`] found nothing. Durable on return.
    pub fn create(fs: Arc<dyn FileSystem>, dir: &Path, engine_id: EngineId) -> Result<Manifest> {
        Manifest::create_with(fs, dir, ManifestState::new(engine_id))
    }

    /// Like [`Manifest::create`], with a state to begin with: a checkpoint.
    pub fn create_with(fs: Arc<dyn FileSystem>, dir: &Path, state: ManifestState) -> Result<Manifest> {
        state.check();
        fs.create_dir_all(dir).map_err(|error| Error::io("create directory", dir, error))?;
        let mut manifest = Manifest::unsettled(fs, dir, state, 0)?;
        let state = manifest.state.clone();
        manifest.switch(state)?;
        // The directory's own name must survive too. Its parent may be out of reach (a mount point): then the names inside are
        // what counts, and the sync above has seen to them.
        let parent = dir.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
        if let Some(parent) = parent
            && let Err(error) = manifest.fs.sync_dir(parent)
            && error.kind() != io::ErrorKind::PermissionDenied
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::io("sync directory", parent, error));
        }
        Ok(manifest)
    }

    /// Opens the manifest that CURRENT names and writes what it says into a new one, so that it is durable beyond doubt. Without
    /// space for that it is open all the same, but not [settled](Manifest::is_settled).
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Manifest> {
        let recovered = read(&*fs, dir)?;
        let mut manifest = Manifest::unsettled(fs, dir, recovered.state, recovered.manifest)?;
        manifest.settle_if_space()?;
        Ok(manifest)
    }

    /// What the manifest that CURRENT names says, for an engine that only reads. Every edit is refused.
    pub fn open_read_only(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Manifest> {
        let recovered = read(&*fs, dir)?;
        let mut manifest = Manifest::unsettled(fs, dir, recovered.state, recovered.manifest)?;
        manifest.poisoned = Some("it was opened read-only".into());
        Ok(manifest)
    }

    fn unsettled(fs: Arc<dyn FileSystem>, dir: &Path, state: ManifestState, number: u64) -> Result<Manifest> {
        let numbers = list(&*fs, dir)?.iter().filter_map(|name| parse_manifest_file_name(name)).max();
        Ok(Manifest {
            fs,
            dir: dir.into(),
            state,
            log_bytes_max: LOG_BYTES_MAX,
            number,
            next_number: numbers.unwrap_or(0).max(number) + 1,
            log: None,
            settled: false,
            poisoned: None,
        })
    }

    /// Sets the bound of a manifest, in bytes: smaller means that it is switched more often and read faster.
    pub fn set_log_bytes_max(&mut self, bytes: u64) {
        self.log_bytes_max = bytes;
    }

    /// What all edits so far add up to.
    pub fn state(&self) -> &ManifestState {
        &self.state
    }

    /// The number of the manifest that CURRENT names.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// True once what [`Manifest::state`] says is durable beyond doubt. While it is not, which happens only after an open without
    /// space, no file may be deleted: after a power cut an older state might be what is on disk.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The reason why no edit is accepted any more.
    pub fn poisoned(&self) -> Option<&Arc<str>> {
        self.poisoned.as_ref()
    }

    /// Makes the state durable beyond doubt if it is not yet and there is space. To be called again when space was freed.
    pub fn settle_if_space(&mut self) -> Result<()> {
        if self.settled {
            return Ok(());
        }
        match self.switch(self.state.clone()) {
            Err(error) if error.is_no_space() => Ok(()),
            result => result,
        }
    }

    /// Applies an edit: durable on return.
    ///
    /// # Errors
    /// [`Error::Poisoned`]: the outcome is unknown, or the disk cannot be trusted; every later edit is refused. Any other error:
    /// the edit did not happen and will not come back; the same or another edit may be tried later.
    ///
    /// # Panics
    /// If the edit does not fit the state: that is a bug of the caller.
    pub fn apply(&mut self, edit: &ManifestEdit) -> Result<()> {
        if let Some(reason) = &self.poisoned {
            return Err(Error::Poisoned { reason: reason.clone() });
        }
        let mut next = self.state.clone();
        if let Err(problem) = next.apply(edit) {
            panic!("an edit fits the state that it is made for: {problem}: {edit:?}");
        }
        if cfg!(debug_assertions) {
            next.check();
        }
        let full = self.log.as_ref().is_some_and(|log| log.end >= self.log_bytes_max.max(2 * log.snapshot_end));
        if self.log.is_none() || full {
            match self.switch(next.clone()) {
                // The old log is whole, and one more sector may fit where a snapshot does not.
                Err(error) if error.is_no_space() && self.log.is_some() => {}
                result => return result,
            }
        }
        self.append(edit)?;
        self.state = next;
        Ok(())
    }

    fn append(&mut self, edit: &ManifestEdit) -> Result<()> {
        let log = self.log.as_mut().expect("apply switches to a new log when there is none");
        let record = frame::encode_record(log.number, log.end, &edit.encode());
        if let Err(error) = write_all_at(&*log.file, &record, log.end) {
            let error = Error::io("append to", &log.path, error);
            // What did get into the file may be the whole record, and nothing may be written behind it.
            let log = self.log.take().expect("it is being appended to");
            if !error.is_no_space() {
                return self.poison(&error);
            }
            // The caller will believe that the edit did not happen, and delete the files that it adds.
            let cut = log.file.set_len(log.end).and_then(|()| log.file.sync_data());
            return match cut.map_err(|error| Error::io("cut", &log.path, error)) {
                Ok(()) => Err(error),
                Err(error) => self.poison(&error),
            };
        }
        if !planted(Bug::ManifestNotSynced)
            && let Err(error) = log.file.sync_data()
        {
            let error = Error::io("sync", &log.path, error);
            return self.poison(&error);
        }
        log.end += record.len() as u64;
        Ok(())
    }

    /// Puts a new manifest with a snapshot of `next` into force.
    fn switch(&mut self, next: ManifestState) -> Result<()> {
        if let Some(reason) = &self.poisoned {
            return Err(Error::Poisoned { reason: reason.clone() });
        }
        let number = self.next_number;
        self.next_number += 1;
        match self.switch_files(number, &next) {
            Ok(log) => {
                self.log = Some(log);
                self.number = number;
                self.state = next;
                self.settled = true;
                self.remove_others();
                Ok(())
            }
            Err(failure) => {
                match failure {
                    // Nothing names what was written so far, so a failure to remove it costs space until the next open.
                    SwitchFailure::NoEffect(error) => {
                        for name in [manifest_file_name(number), CURRENT_TMP.to_owned()] {
                            drop(self.fs.remove_file(&self.dir.join(name)));
                        }
                        Err(error)
                    }
                    SwitchFailure::Poison(error) => self.poison(&error),
                }
            }
        }
    }

    fn switch_files(&self, number: u64, next: &ManifestState) -> std::result::Result<Log, SwitchFailure> {
        let fs = &*self.fs;
        let path = self.dir.join(manifest_file_name(number));
        let mut bytes = frame::encode_header(&Header { manifest: number, engine_id: next.engine_id });
        bytes.extend(frame::encode_record(number, bytes.len() as u64, &next.snapshot().encode()));
        let file = write_new_file(fs, &path, &bytes)?;
        let sync_dir = || {
            if planted(Bug::SkipDirectorySync) {
                return Ok(());
            }
            fs.sync_dir(&self.dir).map_err(|error| Error::io("sync directory", &self.dir, error))
        };
        sync_dir().map_err(SwitchFailure::of_sync)?;

        let tmp = self.dir.join(CURRENT_TMP);
        match fs.remove_file(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SwitchFailure::NoEffect(Error::io("remove", &tmp, error)));
            }
            _ => {}
        }
        let current = Current { manifest: number, engine_id: next.engine_id };
        write_new_file(fs, &tmp, &current.encode())?;
        fs.rename(&tmp, &self.dir.join(CURRENT))
            .map_err(|error| SwitchFailure::Poison(Error::io("rename", &tmp, error)))?;
        sync_dir().map_err(SwitchFailure::Poison)?;
        let end = bytes.len() as u64;
        Ok(Log { file, path, number, end, snapshot_end: end })
    }

    /// Removes manifests that are not in force. What cannot be removed now is removed at the next open.
    fn remove_others(&self) {
        for name in list(&*self.fs, &self.dir).unwrap_or_default() {
            if name == CURRENT_TMP || parse_manifest_file_name(&name).is_some_and(|number| number != self.number) {
                drop(self.fs.remove_file(&self.dir.join(name)));
            }
        }
    }

    fn poison<T>(&mut self, error: &Error) -> Result<T> {
        let reason: Arc<str> = format!("the manifest could not be written: {error}").into();
        self.poisoned = Some(reason.clone());
        Err(Error::Poisoned { reason })
    }
}

impl SwitchFailure {
    fn of_sync(error: Error) -> SwitchFailure {
        if error.is_no_space() { SwitchFailure::NoEffect(error) } else { SwitchFailure::Poison(error) }
    }
}

/// Creates a file that nothing names yet, writes and syncs it.
fn write_new_file(fs: &dyn FileSystem, path: &Path, bytes: &[u8]) -> std::result::Result<Arc<dyn File>, SwitchFailure> {
    let file = fs
        .open(path, OpenMode::CreateNew)
        .map_err(|error| SwitchFailure::NoEffect(Error::io("create", path, error)))?;
    write_all_at(&*file, bytes, 0).map_err(|error| SwitchFailure::NoEffect(Error::io("write", path, error)))?;
    if !planted(Bug::SwitchBeforeSync) {
        file.sync_all().map_err(|error| SwitchFailure::of_sync(Error::io("sync", path, error)))?;
    }
    Ok(file)
}

/// Reads the manifest that CURRENT names. Modifies nothing, and may run while another process writes.
pub fn read(fs: &dyn FileSystem, dir: &Path) -> Result<Recovered> {
    let current_path = dir.join(CURRENT);
    let mut last = None;
    for _ in 0..READ_TRIES_MAX {
        let bytes = match read_all(fs, &current_path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let reason = format!("{CURRENT} is missing");
                return Err(Error::NotAnEngine { directory: dir.into(), reason, has_remains: false });
            }
            Err(error) => return Err(Error::io("read", &current_path, error)),
        };
        let current = Current::decode(&current_path, &bytes)?;
        let path = dir.join(manifest_file_name(current.manifest));
        let unchanged = last == Some(current);
        match read_file(fs, &path, Some(current.manifest)) {
            // A process that writes has removed it, after it switched CURRENT. If CURRENT still names it, it is lost.
            Err(Error::MissingFile { .. }) if !unchanged => last = Some(current),
            Ok(recovered) if recovered.state.engine_id != current.engine_id => {
                return Err(Error::corruption(path, 20, "manifest header: of another engine than CURRENT says"));
            }
            result => return result,
        }
    }
    Err(Error::Io { op: "read", file: current_path, source: Arc::new(io::ErrorKind::ResourceBusy.into()) })
}

/// Reads one manifest file; `number` is what its name says, where that is known. Modifies nothing.
pub fn read_file(fs: &dyn FileSystem, path: &Path, number: Option<u64>) -> Result<Recovered> {
    match read_prefix(fs, path, number)? {
        (recovered, None) => Ok(recovered),
        (_, Some(damage)) => Err(damage),
    }
}

/// As [`read_file`], but a damaged file gives the edits before the damage, and the damage beside them: for inspection.
///
/// # Errors
/// [`Error::MissingFile`], [`Error::Io`], [`Error::FormatTooNew`], and [`Error::Corruption`] if there is not even a header.
pub fn read_prefix(fs: &dyn FileSystem, path: &Path, number: Option<u64>) -> Result<(Recovered, Option<Error>)> {
    let bytes = match read_all(fs, path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::MissingFile { file: path.into() }),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let place = |error| match error {
        FrameError::Corrupt(offset, what) => Error::corruption(path, offset, what),
        FrameError::TooNew(found) => Error::FormatTooNew { file: path.into(), found, supported: frame::FORMAT },
    };
    let (frames, damage) = frame::decode_prefix(&bytes).map_err(place)?;
    let mut damage = damage.map(place);
    if number.is_some_and(|number| number != frames.header.manifest) {
        return Err(Error::corruption(path, 12, "manifest header: of another manifest"));
    }
    if frames.records.is_empty() {
        damage.get_or_insert_with(|| Error::corruption(path, frames.end, "manifest: no snapshot"));
    }
    let mut recovered = Recovered {
        state: ManifestState::new(frames.header.engine_id),
        manifest: frames.header.manifest,
        file: path.into(),
        edits: Vec::with_capacity(frames.records.len()),
        end: frames.end,
        torn: frames.torn && damage.is_none(),
    };
    for (offset, payload) in frames.records {
        if let Err(error) = recovered.add(offset, &payload) {
            // What this record did to the state is undone, and so is what later ones would have done.
            recovered.state = ManifestState::new(frames.header.engine_id);
            for (_, edit) in &recovered.edits {
                recovered.state.apply(edit).expect("these edits were applied before");
            }
            recovered.end = offset;
            return Ok((recovered, Some(error)));
        }
    }
    if let Some(problem) = recovered.state.problem() {
        damage.get_or_insert_with(|| Error::corruption(path, 0, problem));
    }
    Ok((recovered, damage))
}

impl Recovered {
    /// Takes in one record.
    fn add(&mut self, offset: u64, payload: &[u8]) -> Result<()> {
        let edit = ManifestEdit::decode(payload).map_err(|error| match error {
            EditError::Corrupt(what) => Error::corruption(&self.file, offset, what),
            EditError::TooNew => {
                Error::FormatTooNew { file: self.file.clone(), found: frame::FORMAT + 1, supported: frame::FORMAT }
            }
        })?;
        if self.edits.is_empty() && edit.engine_id.is_none() {
            return Err(Error::corruption(&self.file, offset, "manifest: the first edit is not a snapshot"));
        }
        self.state.apply(&edit).map_err(|what| Error::corruption(&self.file, offset, what))?;
        self.edits.push((offset, edit));
        Ok(())
    }
}

fn read_all(fs: &dyn FileSystem, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; len];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// The names in a directory that are text; others are not ours.
fn list(fs: &dyn FileSystem, dir: &Path) -> Result<Vec<String>> {
    let paths = fs.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(paths.iter().filter_map(name).collect())
}
