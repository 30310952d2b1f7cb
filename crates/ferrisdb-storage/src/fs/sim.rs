//! A disk in memory that may crash, lie and fail: [`SimFileSystem`].
//!
//! It keeps what was synced apart from what was not. A sync of a file makes its bytes and length durable, not its name;
//! a sync of a directory makes the names in it durable, a new directory's name being in its parent. [`CrashMode`] says
//! what a crash takes. Nothing is random except by a seed, and there is no clock: latency belongs to the jobs.
//!
//! # Crash loops
//! [`fork`](SimFileSystem::fork) copies the disk in constant time, since all state is shared until changed. So a test
//! runs its script once, with a [hook](SimFileSystem::set_hook) that forks at every mutating operation, and then
//! crashes and reopens each fork:
//!
//! ```
//! use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem, Verdict};
//! use ferrisdb_storage::fs::{FileSystem, OpenMode, write_all_at};
//! use std::path::Path;
//! use std::sync::{Arc, Mutex};
//!
//! let disk = SimFileSystem::new();
//! let forks = Arc::new(Mutex::new(Vec::new()));
//! let seen = Arc::clone(&forks);
//! disk.set_hook(move |disk, op| {
//!     if op.kind.is_mutating() {
//!         seen.lock().unwrap().push(disk.fork());
//!     }
//!     Verdict::Pass
//! });
//! let file = disk.open(Path::new("/a"), OpenMode::CreateNew)?;
//! write_all_at(&*file, b"x", 0)?;
//! file.sync_data()?;
//! disk.sync_dir(Path::new("/"))?;
//! for fork in forks.lock().unwrap().iter() {
//!     let after = fork.fork_crashed(CrashMode::RandomSubset { seed: 1 });
//!     assert!(after.read_raw("/a").is_none_or(|bytes| bytes.is_empty() || bytes == b"x" || bytes == b"\0"));
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Faults
//! Each operation gets a number and a verdict: from the hook, or else from the first [`Injection`] that it matches.
//! Besides, a test can change what is stored behind the engine's back (`flip_bit` and the calls that end in `_raw`),
//! and set a capacity.
//!
//! # Paths
//! Paths are absolute; a relative one counts from the root. `.` and `..` are resolved by name, there are no symbolic
//! links, and only files can be renamed.
//!
//! # Concurrency
//! A [`SimFileSystem`] is a handle: clones share the disk. One lock guards it; it is not held while the hook runs, so
//! the hook may fork. Only a program whose I/O comes from one thread is deterministic.

mod content;
mod disk;
mod fault;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::content::Content;
use self::disk::{Change, Disk, Node};
use super::{File, FileLock, FileSystem, OpenMode};

pub use self::disk::CrashMode;
pub use self::fault::{DiskError, Injection, OpCounts, OpInfo, OpKind, Verdict};

/// The space that a disk without a set capacity has: a tebibyte.
const DEFAULT_CAPACITY_BYTES: u64 = 1 << 40;

/// The greatest file, as on Linux: offsets are signed.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// A simulated disk. See the [module](self).
#[derive(Clone)]
pub struct SimFileSystem {
    state: Arc<Mutex<State>>,
}

type Hook = dyn Fn(&SimFileSystem, &OpInfo<'_>) -> Verdict + Send + Sync;

/// A disk and what is around it. A fork takes only the disk and the capacity.
struct State {
    disk: Arc<Disk>,
    capacity: u64,
    /// Handles that are open, by file.
    open: BTreeMap<u64, u64>,
    /// Held locks and their holders.
    locks: BTreeMap<Arc<Path>, String>,
    /// Counts crashes in place. Handles of an older boot are dead.
    boot: u64,
    is_halted: bool,
    hook: Option<Arc<Hook>>,
    injections: Vec<Injection>,
    counts: OpCounts,
    mutations: u64,
    readings: u64,
}

impl SimFileSystem {
    /// An empty disk: a root directory, no faults, space for a tebibyte.
    pub fn new() -> SimFileSystem {
        SimFileSystem::from_disk(Arc::default(), DEFAULT_CAPACITY_BYTES)
    }

    fn from_disk(disk: Arc<Disk>, capacity: u64) -> SimFileSystem {
        let state = State {
            disk,
            capacity,
            open: BTreeMap::new(),
            locks: BTreeMap::new(),
            boot: 0,
            is_halted: false,
            hook: None,
            injections: Vec::new(),
            counts: OpCounts::default(),
            mutations: 0,
            readings: 0,
        };
        SimFileSystem { state: Arc::new(Mutex::new(state)) }
    }

    /// An independent copy of the disk with all that is not yet synced, as another process would find it if this one
    /// died now: no open file, no lock; also no hook, no injection, counts at zero. Takes constant time.
    pub fn fork(&self) -> SimFileSystem {
        let state = self.state();
        SimFileSystem::from_disk(Arc::clone(&state.disk), state.capacity)
    }

    /// An independent copy of the disk after a crash. Costs what is unsynced, not what is stored.
    pub fn fork_crashed(&self, mode: CrashMode) -> SimFileSystem {
        let (disk, capacity) = {
            let state = self.state();
            (Arc::clone(&state.disk), state.capacity)
        };
        SimFileSystem::from_disk(Arc::new(disk.crashed(mode)), capacity)
    }

    /// Crashes this disk in place: every open handle fails from now on, every lock is free, and a halt is over. Hook,
    /// injections and counts stay.
    pub fn crash(&self, mode: CrashMode) {
        let mut state = self.state();
        state.disk = Arc::new(state.disk.crashed(mode));
        state.open.clear();
        state.locks.clear();
        state.boot += 1;
        state.is_halted = false;
    }

    /// Makes every operation fail from now on, as if the device were gone. What remains of the old process cannot touch
    /// the disk any more.
    pub fn halt(&self) {
        self.state().is_halted = true;
    }

    /// Has `hook` decide about every operation, before it is carried out. The hook may fork the disk and change it by
    /// the calls of this type, but must not do I/O on it: that would call the hook again.
    pub fn set_hook(&self, hook: impl Fn(&SimFileSystem, &OpInfo<'_>) -> Verdict + Send + Sync + 'static) {
        self.state().hook = Some(Arc::new(hook));
    }

    /// Removes the hook.
    pub fn clear_hook(&self) {
        self.state().hook = None;
    }

    /// Adds a fault. Where several match an operation, all count it and the one added first decides.
    pub fn inject(&self, injection: Injection) {
        self.state().injections.push(injection);
    }

    /// Removes all injected faults: the disk has healed.
    pub fn clear_injections(&self) {
        self.state().injections.clear();
    }

    /// Sets the space for files, in bytes, rounded down to pages of 4 KiB at use. Directories take none. It may be set
    /// below what is in use: then nothing more can be written until space is freed.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Space in use, in bytes.
    ///
    /// A removed file frees its space at once, or when its last handle is dropped.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Handles that are open now: what file descriptors are on a real disk. Locks are not counted.
    pub fn open_handles(&self) -> usize {
        self.state().open.values().map(|handles| usize::try_from(*handles).unwrap_or(usize::MAX)).sum()
    }

    /// What was asked of this disk so far. Forks begin at zero.
    pub fn counts(&self) -> OpCounts {
        self.state().counts
    }

    /// The number of mutating operations so far, which is the number that the next one gets.
    pub fn mutations(&self) -> u64 {
        self.state().mutations
    }

    /// The number of changes that a loss of power could take now. At zero all crash modes give the same.
    pub fn unsynced_changes(&self) -> usize {
        self.state().disk.unsynced_changes()
    }

    /// Makes everything durable, as a clean unmount does. What a failed sync dropped stays lost.
    pub fn sync_everything(&self) {
        self.state().disk_mut().sync_all();
    }

    /// Forgets what was only in the page cache and marked clean: after this, readers no longer see the writes that a
    /// failed sync dropped.
    pub fn drop_caches(&self) {
        self.state().disk_mut().drop_caches();
    }

    /// The files by name and length in bytes, sorted.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let names = state.disk.names.visible.iter();
        let file_len = |(name, node): (&Arc<Path>, &Node)| match node {
            Node::File(file) => Some((name.to_path_buf(), state.disk.file(*file).visible.len())),
            Node::Dir => None,
        };
        names.filter_map(file_len).collect()
    }

    /// A file's bytes as a reader sees them, past hook, faults and counts.
    pub fn read_raw(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.state();
        let file = state.disk.file_named(&normal(path.as_ref()))?;
        Some(state.disk.file(file).visible.to_vec())
    }

    /// The bytes that a loss of power now would leave under this name if it took all that is unsynced.
    pub fn read_durable_raw(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.state();
        match state.disk.names.durable.get(&normal(path.as_ref()))? {
            Node::File(file) => Some(state.disk.file(*file).durable.to_vec()),
            Node::Dir => None,
        }
    }

    /// Puts a file with these bytes under the name, durably, behind the back of whoever uses the disk. Handles of a
    /// file that has this name see the new bytes.
    ///
    /// # Panics
    /// If the directory does not exist, or the name is one.
    pub fn write_raw(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let path = normal(path.as_ref());
        let mut state = self.state();
        state.disk.expect_parent(&path).expect("write_raw needs the directory");
        let disk = state.disk_mut();
        let file = match disk.names.visible.get(&path) {
            Some(Node::File(file)) => *file,
            Some(Node::Dir) => panic!("write_raw on the directory {}", path.display()),
            None => disk.create_file(Arc::clone(&path)),
        };
        disk.sync_name(&path);
        let mut content = Content::default();
        content.write(0, bytes);
        disk.replace_content(file, content);
    }

    /// Cuts or extends a file durably.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn truncate_raw(&self, path: impl AsRef<Path>, len: u64) {
        let mut state = self.state();
        let file = state.disk.expect_file(path.as_ref());
        let mut content = state.disk.file(file).visible.clone();
        content.set_len(len);
        state.disk_mut().replace_content(file, content);
    }

    /// Removes a file durably.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn remove_raw(&self, path: impl AsRef<Path>) {
        let path = normal(path.as_ref());
        let mut state = self.state();
        state.disk.expect_file(&path);
        let disk = state.disk_mut();
        disk.change_name(Arc::clone(&path), None, None);
        disk.sync_name(&path);
        state.collect_garbage();
    }

    /// Lets two names stand for each other's file, durably.
    ///
    /// # Panics
    /// If one of the files does not exist.
    pub fn swap_raw(&self, one: impl AsRef<Path>, other: impl AsRef<Path>) {
        let (one, other) = (normal(one.as_ref()), normal(other.as_ref()));
        let mut state = self.state();
        let (one_file, other_file) = (state.disk.expect_file(&one), state.disk.expect_file(&other));
        let disk = state.disk_mut();
        disk.change_name(Arc::clone(&one), Some(Node::File(other_file)), None);
        disk.change_name(Arc::clone(&other), Some(Node::File(one_file)), None);
        disk.sync_name(&one);
        disk.sync_name(&other);
    }

    /// Inverts bit `bit` (0 to 7) of the byte at `offset`, wherever that byte is kept. Beyond the end nothing happens.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) {
        let mut state = self.state();
        let file = state.disk.expect_file(path.as_ref());
        state.disk_mut().flip_bit(file, offset, bit);
    }

    /// A hash of everything stored: names and bytes, durable and not. Equal runs give equal hashes.
    pub fn state_hash(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        self.state().disk.hash_into(&mut hasher);
        hasher.digest()
    }

    /// Panics if an invariant of the simulation does not hold. For tests; costs time proportional to what is stored.
    pub fn check(&self) {
        self.state().disk.check();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No invariant is broken half way: a panic under the lock is an assertion about the caller.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation and decides about it.
    fn begin(&self, kind: OpKind, path: &Path, offset: u64, len: u64) -> io::Result<Verdict> {
        let (number, injected, hook) = {
            let mut state = self.state();
            if state.is_halted {
                return Err(DiskError::Io.into());
            }
            state.counts.add(kind, len);
            let counter = if kind.is_mutating() { &mut state.mutations } else { &mut state.readings };
            let number = *counter;
            *counter += 1;
            let info = OpInfo { number, kind, path, offset, len };
            let mut injected = None;
            for injection in &mut state.injections {
                let struck = injection.strike(&info);
                injected = injected.or(struck);
            }
            (number, injected.unwrap_or(Verdict::Pass), state.hook.clone())
        };
        let mut verdict = Verdict::Pass;
        if let Some(hook) = hook {
            verdict = hook(self, &OpInfo { number, kind, path, offset, len });
        }
        if verdict == Verdict::Pass {
            verdict = injected;
        }
        verdict.assert_fits(kind);
        match verdict {
            Verdict::Fail(error) => Err(error.into()),
            other => Ok(other),
        }
    }

    /// Begins an operation to which nothing but success or failure can happen.
    fn begin_simple(&self, kind: OpKind, path: &Path) -> io::Result<()> {
        self.begin(kind, path, 0, 0).map(|_| ())
    }

    fn handle(&self, state: &mut State, file: u64, path: Arc<Path>, writable: bool) -> Arc<dyn File> {
        *state.open.entry(file).or_default() += 1;
        Arc::new(SimFile { fs: self.clone(), file, path, boot: state.boot, writable })
    }
}

impl Default for SimFileSystem {
    fn default() -> SimFileSystem {
        SimFileSystem::new()
    }
}

impl fmt::Debug for SimFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimFileSystem")
            .field("files", &state.disk.files.len())
            .field("unsynced_changes", &state.disk.unsynced_changes())
            .field("mutations", &state.mutations)
            .finish_non_exhaustive()
    }
}

impl State {
    fn disk_mut(&mut self) -> &mut Disk {
        Arc::make_mut(&mut self.disk)
    }

    fn used_bytes(&self) -> u64 {
        self.disk.used_bytes(|file| self.open.contains_key(&file))
    }

    fn free_bytes(&self) -> u64 {
        self.capacity.saturating_sub(self.used_bytes())
    }

    /// True if there is space for `new` more bytes. Does not count what is in use while the space is endless.
    fn has_space_for(&self, new: u64) -> bool {
        new == 0 || self.capacity == DEFAULT_CAPACITY_BYTES || new <= self.free_bytes()
    }

    fn collect_garbage(&mut self) {
        let open = &self.open;
        Arc::make_mut(&mut self.disk).collect_garbage(|file| open.contains_key(&file));
    }

    /// Writes as much as there is space for, and returns how much that was.
    fn write(&mut self, file: u64, offset: u64, data: &[u8]) -> io::Result<usize> {
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= FILE_BYTES_MAX);
        if end.is_none() {
            return Err(Errno::FBIG.into());
        }
        if data.is_empty() {
            return Ok(0);
        }
        let mut len = data.len();
        let content = &self.disk.file(file).visible;
        while len > 0 && !self.has_space_for(content.new_bytes_for_write(offset, len)) {
            // Gives up the last page, of which the write may cover only a part.
            let in_last_page = (offset + len as u64 - 1) % content::PAGE_BYTES + 1;
            len = len.saturating_sub(usize::try_from(in_last_page).unwrap_or(len));
        }
        if len == 0 {
            return Err(Errno::NOSPC.into());
        }
        self.disk_mut().change_file(file, Change::Write { offset, data: data[..len].into() });
        Ok(len)
    }
}

impl Disk {
    fn file_named(&self, path: &Path) -> Option<u64> {
        match self.names.visible.get(path) {
            Some(Node::File(file)) => Some(*file),
            _ => None,
        }
    }

    /// The file of this name, for a test that says that it is there.
    fn expect_file(&self, path: &Path) -> u64 {
        let path = normal(path);
        self.file_named(&path).unwrap_or_else(|| panic!("the simulated disk has no file {}", path.display()))
    }

    fn is_dir(&self, path: &Path) -> bool {
        path == Path::new("/") || self.names.visible.get(path) == Some(&Node::Dir)
    }

    /// The file of this name, or the error that Linux gives.
    fn find_file(&self, path: &Path) -> io::Result<u64> {
        if self.is_dir(path) {
            return Err(Errno::ISDIR.into());
        }
        self.expect_parent(path)?;
        self.file_named(path).ok_or_else(|| Errno::NOENT.into())
    }

    /// Fails unless the directory that holds this name exists.
    fn expect_parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap_or(path);
        if self.is_dir(parent) {
            return Ok(());
        }
        let through_a_file = parent.ancestors().any(|above| self.file_named(above).is_some());
        Err(if through_a_file { Errno::NOTDIR } else { Errno::NOENT }.into())
    }

    fn expect_dir(&self, path: &Path) -> io::Result<()> {
        if self.is_dir(path) {
            return Ok(());
        }
        self.find_file(path)?;
        Err(Errno::NOTDIR.into())
    }

    /// Fails with `AlreadyExists`, or if the directory for the new name is missing.
    fn expect_free_name(&self, path: &Path) -> io::Result<()> {
        if self.is_dir(path) || self.file_named(path).is_some() {
            return Err(Errno::EXIST.into());
        }
        self.expect_parent(path)
    }
}

impl FileSystem for SimFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let path = normal(path);
        let kind = if mode == OpenMode::CreateNew { OpKind::Create } else { OpKind::Open };
        self.begin_simple(kind, &path)?;
        let mut state = self.state();
        let file = if mode == OpenMode::CreateNew {
            state.disk.expect_free_name(&path)?;
            state.disk_mut().create_file(Arc::clone(&path))
        } else {
            state.disk.find_file(&path)?
        };
        Ok(self.handle(&mut state, file, path, mode != OpenMode::Read))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        self.begin_simple(OpKind::Remove, &path)?;
        let mut state = self.state();
        state.disk.find_file(&path)?;
        state.disk_mut().change_name(path, None, None);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        self.begin_simple(OpKind::Rename, &from)?;
        let mut state = self.state();
        let file = state.disk.find_file(&from)?;
        if state.disk.is_dir(&to) {
            return Err(Errno::ISDIR.into());
        }
        state.disk.expect_parent(&to)?;
        // Two names of one file: rename does nothing, says POSIX.
        if state.disk.file_named(&to) != Some(file) {
            state.disk_mut().change_name(to, Some(Node::File(file)), Some(from));
        }
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        self.begin_simple(OpKind::HardLink, &from)?;
        let mut state = self.state();
        let file = state.disk.find_file(&from)?;
        state.disk.expect_free_name(&to)?;
        state.disk_mut().change_name(to, Some(Node::File(file)), None);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        self.begin_simple(OpKind::CreateDir, &path)?;
        let mut state = self.state();
        if state.disk.file_named(&path).is_some() {
            return Err(Errno::EXIST.into());
        }
        let mut missing: Vec<&Path> = path.ancestors().take_while(|above| !state.disk.is_dir(above)).collect();
        if missing.iter().any(|above| state.disk.file_named(above).is_some()) {
            return Err(Errno::NOTDIR.into());
        }
        while let Some(directory) = missing.pop() {
            state.disk_mut().change_name(directory.into(), Some(Node::Dir), None);
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let path = normal(path);
        self.begin_simple(OpKind::List, &path)?;
        let state = self.state();
        state.disk.expect_dir(&path)?;
        let inside = state.disk.names.visible.keys().filter(|name| name.parent() == Some(&path));
        Ok(inside.filter_map(|name| name.file_name().map(PathBuf::from)).collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let path = normal(path);
        self.begin_simple(OpKind::Stat, &path)?;
        let state = self.state();
        let file = state.disk.find_file(&path)?;
        Ok(state.disk.file(file).visible.len())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let path = normal(path);
        self.begin_simple(OpKind::Stat, &path)?;
        let state = self.state();
        Ok(state.disk.is_dir(&path) || state.disk.names.visible.contains_key(&path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        let verdict = self.begin(OpKind::SyncDir, &path, 0, 0)?;
        let mut state = self.state();
        state.disk.expect_dir(&path)?;
        if verdict != Verdict::Lie {
            state.disk_mut().sync_dir(&path);
            state.collect_garbage();
        }
        Ok(())
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn FileLock>> {
        let path = normal(path);
        self.begin_simple(OpKind::Lock, &path)?;
        let mut state = self.state();
        if state.locks.contains_key(&path) {
            return Err(Errno::WOULDBLOCK.into());
        }
        let file = match state.disk.find_file(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                state.disk.expect_parent(&path)?;
                state.disk_mut().create_file(Arc::clone(&path))
            }
            Err(error) => return Err(error),
        };
        state.disk_mut().change_file(file, Change::SetLen { len: 0 });
        state.write(file, 0, holder.as_bytes())?;
        state.locks.insert(Arc::clone(&path), holder.to_owned());
        Ok(Box::new(SimLock { fs: self.clone(), path, boot: state.boot }))
    }

    fn available_space(&self, path: &Path) -> io::Result<u64> {
        let path = normal(path);
        self.begin_simple(OpKind::AvailableSpace, &path)?;
        Ok(self.state().free_bytes())
    }

    fn total_space(&self, path: &Path) -> io::Result<u64> {
        let path = normal(path);
        self.begin_simple(OpKind::AvailableSpace, &path)?;
        // One that was made smaller than what is on it has no end below that.
        let state = self.state();
        Ok(if state.capacity == DEFAULT_CAPACITY_BYTES {
            state.capacity
        } else {
            state.capacity.max(state.used_bytes())
        })
    }
}

/// A handle of a simulated file.
struct SimFile {
    fs: SimFileSystem,
    file: u64,
    path: Arc<Path>,
    boot: u64,
    writable: bool,
}

impl SimFile {
    /// The disk, unless it crashed since this handle was opened.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.fs.state();
        if state.boot == self.boot { Ok(state) } else { Err(Errno::IO.into()) }
    }

    fn expect_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(Errno::BADF.into()) }
    }

    fn sync(&self) -> io::Result<()> {
        let verdict = self.fs.begin(OpKind::Sync, &self.path, 0, 0)?;
        let mut state = self.state()?;
        match verdict {
            Verdict::Lie => Ok(()),
            Verdict::FailAndDrop(error) => {
                state.disk_mut().drop_unsynced_writes(self.file);
                Err(error.into())
            }
            _ => {
                state.disk_mut().sync_file(self.file);
                Ok(())
            }
        }
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let verdict = self.fs.begin(OpKind::Read, &self.path, offset, buffer.len() as u64)?;
        let state = self.state()?;
        let file = state.disk.file(self.file);
        Ok(match verdict {
            Verdict::Short(len) => {
                let len = len.min(buffer.len());
                file.visible.read(&mut buffer[..len], offset)
            }
            Verdict::Stale => file.durable.read(buffer, offset),
            Verdict::Misdirect { path, offset: elsewhere } => {
                // As long as the right answer: what lies elsewhere, and zeros where that ends.
                let len = file.visible.read(buffer, offset);
                let other = state.disk.file(state.disk.expect_file(&path));
                let found = other.visible.read(&mut buffer[..len], elsewhere);
                buffer[found..len].fill(0);
                len
            }
            _ => file.visible.read(buffer, offset),
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.expect_writable()?;
        let verdict = self.fs.begin(OpKind::Write, &self.path, offset, data.len() as u64)?;
        let mut state = self.state()?;
        match verdict {
            Verdict::Short(len) => state.write(self.file, offset, &data[..len.min(data.len())]),
            Verdict::Torn(len, error) => {
                state.write(self.file, offset, &data[..len.min(data.len())])?;
                Err(error.into())
            }
            Verdict::Lose => Ok(data.len()),
            Verdict::Misdirect { path, offset } => {
                let other = state.disk.expect_file(&path);
                state.write(other, offset, data)
            }
            _ => state.write(self.file, offset, data),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.expect_writable()?;
        self.fs.begin(OpKind::Allocate, &self.path, 0, len)?;
        let mut state = self.state()?;
        if len > FILE_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        let new = state.disk.file(self.file).visible.new_bytes_for_allocate(len);
        if !state.has_space_for(new) {
            return Err(Errno::NOSPC.into());
        }
        state.disk_mut().change_file(self.file, Change::Allocate { len });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.expect_writable()?;
        self.fs.begin(OpKind::SetLen, &self.path, 0, len)?;
        let mut state = self.state()?;
        if len > FILE_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        state.disk_mut().change_file(self.file, Change::SetLen { len });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.fs.begin_simple(OpKind::Stat, &self.path)?;
        Ok(self.state()?.disk.file(self.file).visible.len())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.fs.state();
        if state.boot != self.boot {
            return;
        }
        let handles = state.open.get_mut(&self.file).expect("a handle is counted while it lives");
        *handles -= 1;
        if *handles == 0 {
            state.open.remove(&self.file);
            if !state.disk.names.visible.values().any(|node| *node == Node::File(self.file)) {
                state.collect_garbage();
            }
        }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("path", &self.path).field("writable", &self.writable).finish_non_exhaustive()
    }
}

/// Holds a lock of a simulated disk.
struct SimLock {
    fs: SimFileSystem,
    path: Arc<Path>,
    boot: u64,
}

impl FileLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.fs.state();
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLock").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The absolute form of a path, resolved by name alone.
fn normal(path: &Path) -> Arc<Path> {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal.into()
}
