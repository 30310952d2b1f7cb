//! A small in-memory disk for the WAL's own tests: it keeps what was not synced apart, crashes, and fails operations.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ferrisdb_core::{Random, SplitMix64};

use crate::fs::{File, FileLock, FileSystem, OpenMode};

/// What a crash keeps of what was not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Crash {
    KeepAll,
    LoseAll,
    /// A random subset of sectors and names.
    Subset(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Rename {
    Create(PathBuf, usize),
    Remove(PathBuf),
    Move(PathBuf, PathBuf),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    inodes: Vec<Inode>,
    seen: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    pending: Vec<Rename>,
}

fn apply_name(names: &mut BTreeMap<PathBuf, usize>, change: &Rename) {
    match change {
        Rename::Create(path, inode) => drop(names.insert(path.clone(), *inode)),
        Rename::Remove(path) => drop(names.remove(path)),
        Rename::Move(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

fn apply_bytes(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Disk {
    pub(super) fn crash(&self, how: Crash) -> Disk {
        let mut disk = self.clone();
        let mut random = SplitMix64::new(if let Crash::Subset(seed) = how { seed } else { 0 });
        let mut keeps = |how: Crash| match how {
            Crash::KeepAll => true,
            Crash::LoseAll => false,
            Crash::Subset(_) => random.one_in(2),
        };
        for change in std::mem::take(&mut disk.pending) {
            if keeps(how) {
                apply_name(&mut disk.durable, &change);
            }
        }
        for inode in &mut disk.inodes {
            for change in std::mem::take(&mut inode.pending) {
                match change {
                    Change::Len(len) => {
                        if keeps(how) {
                            inode.durable.resize(len, 0);
                        }
                    }
                    Change::Write(mut at, data) => {
                        let mut data = &data[..];
                        while !data.is_empty() {
                            let sector = (512 - at % 512).min(data.len());
                            if keeps(how) {
                                apply_bytes(&mut inode.durable, at, &data[..sector]);
                            }
                            at += sector;
                            data = &data[sector..];
                        }
                    }
                }
            }
            inode.seen = inode.durable.clone();
        }
        disk.seen = disk.durable.clone();
        disk
    }
}

/// A predicate over (operation, path): true fails it.
type Fault = Box<dyn FnMut(&'static str, &Path) -> Option<io::ErrorKind> + Send>;

#[derive(Default)]
struct State {
    disk: Disk,
    /// The disk before each change, with what the test noted last.
    snapshots: Option<Vec<(Disk, usize)>>,
    note: usize,
    fault: Option<Fault>,
    counts: BTreeMap<&'static str, usize>,
    changes: usize,
    /// Bytes that were written to a file, under whatever names.
    written: BTreeMap<usize, usize>,
    space: Option<usize>,
    /// A failed write leaves all of its bytes behind.
    failed_writes_land: bool,
    before_sync: Option<Box<dyn FnOnce() + Send>>,
}

/// The double.
#[derive(Clone, Default)]
pub(super) struct TestFs {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for TestFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestFs")
    }
}

impl TestFs {
    pub(super) fn new() -> TestFs {
        TestFs::default()
    }

    pub(super) fn on(disk: Disk) -> TestFs {
        let fs = TestFs::new();
        fs.lock().disk = disk;
        fs
    }

    pub(super) fn arc(&self) -> Arc<dyn FileSystem> {
        Arc::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn disk(&self) -> Disk {
        self.lock().disk.clone()
    }

    /// From now on keeps the disk as it is before each change.
    pub(super) fn record(&self) {
        self.lock().snapshots = Some(Vec::new());
    }

    /// What the next snapshots are to be judged by.
    pub(super) fn note(&self, note: usize) {
        self.lock().note = note;
    }

    /// The recorded snapshots, and the disk as it is now.
    pub(super) fn snapshots(&self) -> Vec<(Disk, usize)> {
        let mut state = self.lock();
        let mut snapshots = state.snapshots.take().unwrap_or_default();
        snapshots.push((state.disk.clone(), state.note));
        snapshots
    }

    pub(super) fn fail(&self, fault: impl FnMut(&'static str, &Path) -> Option<io::ErrorKind> + Send + 'static) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// Runs something while the next sync of a file is under way.
    pub(super) fn during_next_sync(&self, hook: impl FnOnce() + Send + 'static) {
        self.lock().before_sync = Some(Box::new(hook));
    }

    pub(super) fn heal(&self) {
        let mut state = self.lock();
        state.fault = None;
        state.space = None;
    }

    pub(super) fn failed_writes_land(&self) {
        self.lock().failed_writes_land = true;
    }

    /// Bytes that all files together may have.
    pub(super) fn limit_space(&self, bytes: usize) {
        self.lock().space = Some(bytes);
    }

    pub(super) fn count(&self, op: &'static str) -> usize {
        self.lock().counts.get(op).copied().unwrap_or(0)
    }

    /// Operations so far that change something.
    pub(super) fn changes(&self) -> usize {
        self.lock().changes
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.lock().disk.seen.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// Changes a file behind everyone's back, durably.
    pub(super) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let path = state.disk.seen.keys().find(|path| path.ends_with(name)).unwrap().clone();
        let inode = state.disk.seen[&path];
        let inode = &mut state.disk.inodes[inode];
        edit(&mut inode.seen);
        inode.durable = inode.seen.clone();
        inode.pending.clear();
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.lock();
        let path = state.disk.seen.keys().find(|path| path.ends_with(name)).unwrap();
        state.disk.inodes[state.disk.seen[path]].seen.clone()
    }

    /// Bytes that were written to a file since it was made.
    pub(super) fn written(&self, name: &str) -> usize {
        let state = self.lock();
        let path = state.disk.seen.keys().find(|path| path.ends_with(name)).unwrap();
        state.written.get(&state.disk.seen[path]).copied().unwrap_or(0)
    }

    pub(super) fn remove_behind_everyones_back(&self, name: &str) {
        let mut state = self.lock();
        let path = state.disk.seen.keys().find(|path| path.ends_with(name)).unwrap().clone();
        state.disk.seen.remove(&path);
        state.disk.durable.remove(&path);
    }

    /// A page cache that disagrees with the disk: all that is pending is lost without a trace, and still read.
    pub(super) fn mark_clean(&self) {
        for inode in &mut self.lock().disk.inodes {
            inode.pending.clear();
        }
    }
}

impl State {
    fn op(&mut self, op: &'static str, path: &Path, changes: bool) -> io::Result<()> {
        *self.counts.entry(op).or_default() += 1;
        if changes {
            self.changes += 1;
            if let Some(snapshots) = &mut self.snapshots {
                snapshots.push((self.disk.clone(), self.note));
            }
        }
        match self.fault.as_mut().and_then(|fault| fault(op, path)) {
            Some(kind) => Err(io::Error::new(kind, "injected")),
            None => Ok(()),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.disk.seen.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> usize {
        self.disk.seen.values().map(|&inode| self.disk.inodes[inode].seen.len()).sum()
    }

    fn change_name(&mut self, change: Rename) {
        apply_name(&mut self.disk.seen, &change);
        self.disk.pending.push(change);
    }
}

impl FileSystem for TestFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut state = self.lock();
        state.op("open", path, mode == OpenMode::CreateNew)?;
        let inode = match mode {
            OpenMode::CreateNew if state.disk.seen.contains_key(path) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            OpenMode::CreateNew => {
                state.disk.inodes.push(Inode::default());
                let inode = state.disk.inodes.len() - 1;
                state.change_name(Rename::Create(path.to_path_buf(), inode));
                inode
            }
            _ => state.inode(path)?,
        };
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(TestFile { fs: self.clone(), path: path.to_path_buf(), inode, writable }))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op("remove", path, true)?;
        state.inode(path)?;
        state.change_name(Rename::Remove(path.to_path_buf()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op("rename", from, true)?;
        state.inode(from)?;
        state.change_name(Rename::Move(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn hard_link(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.lock();
        state.op("list", path, false)?;
        Ok(state.disk.seen.keys().filter(|name| name.parent() == Some(path)).cloned().collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.disk.inodes[state.inode(path)?].seen.len() as u64)
    }

    fn exists(&self, _: &Path) -> io::Result<bool> {
        Ok(true)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op("sync_dir", path, true)?;
        state.disk.pending.clear();
        state.disk.durable = state.disk.seen.clone();
        Ok(())
    }

    fn lock(&self, _: &Path, _: &str) -> io::Result<Box<dyn FileLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn available_space(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug)]
struct TestFile {
    fs: TestFs,
    path: PathBuf,
    inode: usize,
    writable: bool,
}

impl TestFile {
    fn sync(&self, op: &'static str) -> io::Result<()> {
        let hook = self.fs.lock().before_sync.take();
        if let Some(hook) = hook {
            hook();
        }
        let mut state = self.fs.lock();
        let result = state.op(op, &self.path, true);
        let inode = &mut state.disk.inodes[self.inode];
        // A failed sync drops the pages and calls them clean: they are read, but never written.
        let pending = std::mem::take(&mut inode.pending);
        result?;
        for change in pending {
            match change {
                Change::Len(len) => inode.durable.resize(len, 0),
                Change::Write(at, data) => apply_bytes(&mut inode.durable, at, &data),
            }
        }
        Ok(())
    }

    fn resize(&self, state: &mut State, len: usize) -> io::Result<()> {
        let old = state.disk.inodes[self.inode].seen.len();
        if state.space.is_some_and(|space| state.used() - old + len > space) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = &mut state.disk.inodes[self.inode];
        inode.seen.resize(len, 0);
        inode.pending.push(Change::Len(len));
        Ok(())
    }
}

impl File for TestFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.fs.lock();
        state.op("read", &self.path, false)?;
        let seen = &state.disk.inodes[self.inode].seen;
        let start = usize::try_from(offset).unwrap().min(seen.len());
        let len = buffer.len().min(seen.len() - start);
        buffer[..len].copy_from_slice(&seen[start..start + len]);
        Ok(len)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        assert!(self.writable, "write to a file opened for reading");
        let mut state = self.fs.lock();
        let result = state.op("write", &self.path, true);
        if result.is_err() && !state.failed_writes_land {
            result?;
            unreachable!();
        }
        let offset = usize::try_from(offset).unwrap();
        let end = offset + data.len();
        if end > state.disk.inodes[self.inode].seen.len() {
            self.resize(&mut state, end)?;
        }
        let inode = &mut state.disk.inodes[self.inode];
        apply_bytes(&mut inode.seen, offset, data);
        inode.pending.push(Change::Write(offset, data.to_vec()));
        *state.written.entry(self.inode).or_default() += data.len();
        result.map(|()| data.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync("sync_data")
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync("sync_all")
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.fs.lock();
        state.op("allocate", &self.path, true)?;
        let len = usize::try_from(len).unwrap();
        if len > state.disk.inodes[self.inode].seen.len() {
            self.resize(&mut state, len)?;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.fs.lock();
        state.op("set_len", &self.path, true)?;
        self.resize(&mut state, usize::try_from(len).unwrap())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.fs.lock().disk.inodes[self.inode].seen.len() as u64)
    }
}
