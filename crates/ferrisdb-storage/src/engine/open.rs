//! Opening: locking the directory, reading the manifest, replaying the WAL, starting the jobs.
//!
//! Order matters. The options are validated before anything is touched; the lock is taken before anything is read; everything is read before anything is
//! changed; the manifest is created before the WAL (so that a WAL is always some engine's); what is unknown to the manifest is removed only once its state is durable beyond doubt.
//!
//! Replay puts every record above the flushed version into memtables, as many as it takes, and opens for writing only then. A replayed
//! batch keeps its version, so recovery may crash and run again as often as it likes.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use ferrisdb_core::Version;

use super::blobs::Blobs;
use super::files::{self, FileKind, LOCK, OPTIONS, ObsoleteFiles, WAL_DIR};
use super::jobs::Jobs;
use super::pace::Pace;
use super::signal::Signal;
use super::stall::Stall;
use super::stats::Counters;
use super::table_cache::TableCache;
use super::versions::ReadableVersions;
use super::view::{LiveMemtable, Table, TableContext, View};
use super::visibility::Visibility;
use super::write::{WriteState, insert_operations};
use super::{Core, Engine, Handle};
use crate::batch::{BatchRecord, Operation};
use crate::cache::BlockCache;
use crate::env::Env;
use crate::epoch::{Epoch, EpochCell};
use crate::error::{Error, Result};
use crate::fs::{FileLock, FileSystem, OpenMode, write_all_at};
use crate::levels::Levels;
use crate::manifest::log::Found;
use crate::manifest::{EngineId, Manifest, ManifestState};
use crate::memtable::{Inserter, MemoryPool, Memtable};
use crate::options::{Options, Retention};
use crate::wal::{Wal, WalOptions, WalPosition, WalReader};

pub(super) fn open(env: Env, dir: &Path, options: Options, read_only: bool) -> Result<Engine> {
    options.validate()?;
    let fs = Arc::clone(&env.fs);
    prepare_directory(&*fs, dir, &options, read_only)?;
    let lock = lock_directory(&*fs, dir, read_only)?;
    let mut manifest = match find_engine(&*fs, dir, &options, read_only)? {
        Found::Nothing => {
            sync_parents(&*fs, dir)?;
            Manifest::create(Arc::clone(&fs), dir, EngineId(env.entropy.unique_bytes()))?
        }
        Found::Engine => Manifest::open_read_only(Arc::clone(&fs), dir)?,
    };
    let state = manifest.state().clone();

    let cache = Arc::new(BlockCache::new(options.block_cache_bytes as u64));
    let epoch = Arc::new(Epoch::new());
    let obsolete = Arc::new(ObsoleteFiles::default());
    let tables = Arc::new(TableContext {
        dir: dir.to_path_buf(),
        engine_id: state.engine_id,
        fs: Arc::clone(&fs),
        cache: Arc::clone(&cache),
        obsolete: Arc::clone(&obsolete),
        open_files: TableCache::new(options.max_open_files),
        epoch: Arc::clone(&epoch),
    });
    let levels = live_tables(dir, &state, &tables)?;
    let blobs = Arc::new(Blobs::open(&state, &tables)?);
    let leftovers = check_directory(&*fs, dir, &state)?;

    let memtable_memory = Arc::<MemoryPool>::default();
    let last_version = state.flushed.max(state.last_version);
    let mut replay = Replay::new(&options, &memtable_memory, shared_prefix(&levels), last_version, state.flushed);
    let wal_options = wal_options(&state, &options);
    replay_wal(&fs, dir, (&state, manifest.number()), &wal_options, &mut replay)?;
    let last_version = replay.last_version;

    // All has been read, and nothing was changed yet: what fails above finds the directory as it was when the damage is undone.
    if !read_only && manifest.poisoned().is_some() {
        manifest = Manifest::open(Arc::clone(&fs), dir)?;
    }
    manifest.set_log_bytes_max(options.manifest_bytes_max);
    let wal = match options.wal && !read_only {
        true => Some(Wal::open(Arc::clone(&fs), &dir.join(WAL_DIR), wal_options)?.0),
        false => None,
    };

    let floor = match options.retention {
        // What is older than the newest may have been collected.
        Retention::Newest => last_version,
        // What is in tables is at or below the flushed version, and of that the newest of each key is always kept: a reader at the flushed
        // version or above finds all it needs, even if the floor was higher before a crash took back what was not flushed.
        Retention::FromFloor => state.oldest_readable.min(state.flushed),
    };
    let mut write = WriteState::new(last_version);
    if let Some(position) = replay.last_record {
        write.last_record = position;
    }
    let core = Arc::new(Core {
        view: EpochCell::with_epoch(Arc::new(View::new(replay.into_memtables(), levels, blobs)), epoch),
        view_lock: Mutex::new(()),
        visibility: Visibility::new(last_version),
        versions: ReadableVersions::new(options.retention, floor, &options.pinned_versions),
        write: Mutex::new(write),
        wal,
        gate_closed: AtomicBool::new(false),
        next_file_number: AtomicU64::new(state.next_file_number.0.max(leftovers.next_number)),
        manifest: Mutex::new(manifest),
        tables,
        obsolete,
        cache,
        memtable_memory,
        jobs: Jobs::default(),
        stall: Stall::default(),
        pace: Pace::new(options.background_bytes_per_second),
        progress: Signal::default(),
        poison: OnceLock::new(),
        closed: AtomicBool::new(false),
        counters: Counters::default(),
        lock: Mutex::new(lock),
        env,
        dir: dir.to_path_buf(),
        options,
        read_only,
    });
    if !read_only {
        leftovers.paths.into_iter().for_each(|path| core.obsolete.push(path));
        write_options(&core)?;
        core.levels_changed();
        Core::start_jobs(&core);
    }
    Ok(Engine { handle: Arc::new(Handle { core }) })
}

fn prepare_directory(fs: &dyn FileSystem, dir: &Path, options: &Options, read_only: bool) -> Result<()> {
    if fs.exists(dir).map_err(|error| Error::io("open", dir, error))? {
        let lock = dir.join(LOCK);
        // A directory that is not ours does not even get a lock file.
        return match fs.exists(&lock).map_err(|error| Error::io("open", &lock, error))? {
            true => Ok(()),
            false => find_engine(fs, dir, options, read_only).map(drop),
        };
    }
    if read_only || !options.create_if_missing {
        return Err(not_an_engine(dir, "it does not exist"));
    }
    fs.create_dir_all(dir).map_err(|error| Error::io("create", dir, error))
}

/// Makes the directory's own name durable, and the names of those above it, before an engine is created in it: whatever is then acknowledged
/// cannot be lost with them. Not only those that this open has made: one before it may have failed between making and syncing them.
fn sync_parents(fs: &dyn FileSystem, dir: &Path) -> Result<()> {
    for parent in dir.ancestors().skip(1) {
        match fs.sync_dir(parent) {
            // Nobody of ours has made a directory that we may not open.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            result => result.map_err(|error| Error::io("sync", parent, error))?,
        }
    }
    Ok(())
}

fn lock_directory(fs: &dyn FileSystem, dir: &Path, read_only: bool) -> Result<Option<Box<dyn FileLock>>> {
    let path = dir.join(LOCK);
    match fs.lock(&path, &format!("process {}", rustix::process::getpid().as_raw_nonzero())) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Locked {
            directory: dir.to_path_buf(),
            holder: fs.lock_holder(&path).unwrap_or_else(|_| "another process".to_owned()),
        }),
        // Nobody can write there, so nobody needs to be kept out.
        Err(error)
            if read_only
                && matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::io("lock", &path, error)),
    }
}

fn not_an_engine(dir: &Path, reason: &str) -> Error {
    Error::NotAnEngine { directory: dir.to_path_buf(), reason: reason.to_owned(), has_remains: false }
}

/// What is in the directory, if that can be opened or may be created.
fn find_engine(fs: &dyn FileSystem, dir: &Path, options: &Options, read_only: bool) -> Result<Found> {
    let not_an_engine = |reason: &str| not_an_engine(dir, reason);
    match Manifest::find(fs, dir, &[LOCK, OPTIONS]) {
        Ok(Found::Nothing) if read_only => Err(not_an_engine("it is empty")),
        Ok(Found::Nothing) if !options.create_if_missing => {
            Err(not_an_engine("it is empty, and create_if_missing is off"))
        }
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
            Err(not_an_engine("it is a file"))
        }
        found => found.map_err(|error| files::noting_remains(fs, error)),
    }
}

fn live_tables(dir: &Path, state: &ManifestState, context: &Arc<TableContext>) -> Result<Levels<Table>> {
    let mut live = Vec::with_capacity(state.tables.len());
    for (number, (level, meta)) in &state.tables {
        let path = files::table_path(dir, *number);
        let found = context.fs.len(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::MissingFile { file: path.clone() },
            _ => Error::io("open", &path, error),
        })?;
        if found != meta.file_bytes {
            let what = format!("the file has {found} bytes, but the manifest says {}", meta.file_bytes);
            return Err(Error::corruption(path, found, what));
        }
        live.push((*level, Table::new((**meta).clone(), path, Arc::clone(context))));
    }
    Ok(Levels::new(live))
}

/// Files that no manifest names: left by a crash, or not yet removed when the engine was closed.
struct Leftovers {
    paths: Vec<std::path::PathBuf>,
    /// Above the number of every file there, so that none is overwritten while it waits to be removed.
    next_number: u64,
}

fn check_directory(fs: &dyn FileSystem, dir: &Path, state: &ManifestState) -> Result<Leftovers> {
    let mut leftovers = Leftovers { paths: Vec::new(), next_number: 0 };
    for path in fs.list(dir).map_err(|error| Error::io("list", dir, error))? {
        let path = dir.join(path);
        let (number, live) = match files::file_kind(&path) {
            FileKind::Table(number) => (number.0, state.tables.contains_key(&number)),
            FileKind::Blob(number) => (number.0, state.blobs.contains_key(&number)),
            FileKind::Temporary | FileKind::Other => continue,
        };
        leftovers.next_number = leftovers.next_number.max(number + 1);
        if !live {
            leftovers.paths.push(path);
        }
    }
    Ok(leftovers)
}

fn wal_options(state: &ManifestState, options: &Options) -> WalOptions {
    let segment_bytes = u32::try_from(options.wal_segment_bytes).expect("validated to be at most 1 GiB");
    WalOptions {
        segment_bytes,
        reserve_bytes: (segment_bytes / 16).min(1 << 20),
        // Three quarters of a segment are time enough to create the next, and an engine that writes little holds one only.
        prepare_from: segment_bytes / 4,
        // All that a full set of memtables needs: a steady load then never creates a segment. An idle engine trims them.
        recycle_max: options.write_buffers_max * options.write_buffer_bytes / options.wal_segment_bytes + 2,
        identity: state.engine_id.wal_identity(),
        required_from: state.wal_start.map_or(WalPosition::ZERO, WalPosition::from_u64),
        ..WalOptions::default()
    }
}

/// Reads the WAL, also where the engine will have none of its own: an earlier open may have left one. Changes nothing.
fn replay_wal(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    (state, manifest): (&ManifestState, u64),
    options: &WalOptions,
    replay: &mut Replay,
) -> Result<()> {
    let path = dir.join(WAL_DIR);
    let synced = state.wal_synced.map_or(WalPosition::ZERO, WalPosition::from_u64);
    if fs.exists(&path).map_err(|error| Error::io("open", &path, error))? {
        let (mut reader, recovery) = Wal::read_only(Arc::clone(fs), &path, options)?;
        if recovery.purged && options.required_from == WalPosition::ZERO {
            // Segments are purged only after an edit that says so: that edit is gone, and with it the tables.
            let what = format!("the WAL begins at {}, but no flush is known: the manifest is cut", recovery.first);
            return Err(Error::corruption(dir.join(crate::manifest::log::manifest_file_name(manifest)), 0, what));
        }
        if recovery.end < synced {
            // The WAL alone cannot tell that its last segments are gone, with the marks in them. What a close left in the manifest can.
            let what =
                format!("the WAL ends at {}, but it was synced up to {synced}: its end is missing", recovery.end);
            return Err(Error::corruption(segment_of(&path, synced), u64::from(synced.offset()), what));
        }
        replay.run(&path, &mut reader)?;
    } else if options.required_from.max(synced) > WalPosition::ZERO {
        return Err(Error::MissingFile { file: path });
    }
    Ok(())
}

/// What all keys in tables begin with: the guess for the first memtable of an engine.
pub(super) fn shared_prefix(levels: &Levels<Table>) -> Vec<u8> {
    let smallest = levels.tables().map(|(_, table)| &*table.meta.smallest).min().unwrap_or_default();
    let largest = levels.tables().map(|(_, table)| &*table.meta.largest).max().unwrap_or_default();
    smallest.iter().zip(largest).take_while(|(a, b)| a == b).map(|(byte, _)| *byte).collect()
}

/// Bytes of the first memtable. Without a prefix to guess from, every comparison of an insert is a cache miss, for as long as that memtable lasts; so it is
/// a small one, and the next knows what its keys begin with. (Not worth a table where memtables are small anyhow.)
fn first_capacity(options: &Options, prefix: &[u8]) -> usize {
    const LARGE_BYTES: usize = 16 << 20;
    match prefix {
        [] if options.write_buffer_bytes >= LARGE_BYTES => options.write_buffer_bytes / 64,
        _ => options.write_buffer_bytes,
    }
}

/// The file in which a position of the WAL lies.
fn segment_of(wal_dir: &Path, position: WalPosition) -> std::path::PathBuf {
    wal_dir.join(crate::wal::segment_file_name(position.segment()))
}

/// Memtables that are filled from the WAL.
struct Replay {
    flushed: Version,
    last_version: Version,
    last_record: Option<WalPosition>,
    capacity: usize,
    memory: Arc<MemoryPool>,
    /// What most keys begin with, as far as the tables tell.
    prefix: Vec<u8>,
    /// Newest last, unlike in a view.
    memtables: Vec<LiveMemtable>,
    inserter: Inserter,
}

impl Replay {
    fn new(
        options: &Options,
        memory: &Arc<MemoryPool>,
        prefix: Vec<u8>,
        last_version: Version,
        flushed: Version,
    ) -> Replay {
        let first = LiveMemtable::new(Memtable::in_pool(first_capacity(options, &prefix), &prefix, memory));
        Replay {
            flushed,
            last_version,
            last_record: None,
            capacity: options.write_buffer_bytes,
            memory: Arc::clone(memory),
            prefix,
            memtables: vec![first],
            inserter: Inserter::new(),
        }
    }

    fn run(&mut self, wal_dir: &Path, reader: &mut WalReader) -> Result<()> {
        let mut previous = Version::ZERO;
        while reader.advance()? {
            let record = reader.record();
            let offset = u64::from(record.position.offset());
            let file = reader.segment_path().unwrap_or(wal_dir);
            let batch = BatchRecord::decode(record.payload, file, offset)?;
            if batch.version <= previous {
                let what = format!("WAL record of version {} behind one of version {previous}", batch.version);
                return Err(Error::corruption(file, offset, what));
            }
            previous = batch.version;
            self.last_record = Some(record.position);
            if batch.version > self.flushed {
                self.insert(&batch, record.position);
            }
        }
        Ok(())
    }

    fn insert(&mut self, batch: &BatchRecord<'_>, position: WalPosition) {
        let needed = batch
            .operations()
            .map(|operation| match operation {
                Operation::Put { key, value } => Memtable::bytes_needed(key.len(), value.len()),
                Operation::Delete { key } => Memtable::bytes_needed(key.len(), 0),
                Operation::DeleteRange { .. } | Operation::OwnerState { .. } => 0,
            })
            .sum();
        let active = self.memtables.last().expect("there is always one");
        if !active.entries.try_reserve(needed, &mut self.inserter) {
            let capacity = self.capacity.max(Memtable::capacity_for(needed));
            if self.prefix.is_empty() {
                self.prefix = active.entries.common_prefix().to_vec();
            }
            let fresh = LiveMemtable::new(Memtable::in_pool(capacity, &self.prefix, &self.memory));
            if active.is_idle() {
                self.memtables.pop();
            } else {
                active.sealed_at.set(self.last_version).expect("a memtable is sealed once");
                // The record at hand goes to the next memtable: replay begins with it once this one is flushed.
                active.wal_end.set(Some(position)).expect("a memtable is sealed once");
            }
            self.memtables.push(fresh);
            let active = self.memtables.last().expect("just pushed");
            let reserved = active.entries.try_reserve(needed, &mut self.inserter);
            assert!(reserved, "a fresh memtable has room for the batch that it was made for");
        }
        let active = self.memtables.last().expect("there is always one");
        insert_operations(active, batch.operations(), batch.version, &mut self.inserter);
        self.last_version = self.last_version.max(batch.version);
    }

    fn into_memtables(self) -> Vec<Arc<LiveMemtable>> {
        self.memtables.into_iter().rev().map(Arc::new).collect()
    }
}

/// Leaves the resolved options next to the data, for people. Not synced, and a failure for want of space is no reason not to open.
fn write_options(core: &Core) -> Result<()> {
    let path = core.dir.join(OPTIONS);
    let text = core.options.to_text();
    let write = || -> io::Result<()> {
        let file = match core.env.fs.open(&path, OpenMode::CreateNew) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                core.env.fs.open(&path, OpenMode::ReadWrite)?
            }
            opened => opened?,
        };
        file.set_len(0)?;
        write_all_at(&*file, text.as_bytes(), 0)
    };
    match write() {
        Err(error) if !Error::io("write", &path, io::Error::from(error.kind())).is_no_space() => {
            Err(Error::io("write", &path, error))
        }
        _ => Ok(()),
    }
}
