//! A disk in memory for this module's tests: it forgets what was not synced, stops at the n-th operation, and fails on command.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ferrisdb_core::{Random, SplitMix64};

use crate::fs::{File, FileLock, FileSystem, OpenMode};

/// What of the unsynced state a crash loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    Nothing,
    Everything,
    /// Each sector and each name by a coin.
    Random(u64),
}

/// What goes wrong at one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// This and everything after it fails.
    Crash,
    /// This operation fails; a write has put the given number of bytes into the file by then.
    Fail(io::ErrorKind, usize),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    now: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    ops: u64,
    modifications: u64,
    log: Vec<String>,
    faults: BTreeMap<u64, Fault>,
    crashed: bool,
}

/// The disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct Open {
    disk: Disk,
    inode: usize,
}

impl Disk {
    pub(super) fn new() -> Disk {
        Disk::default()
    }

    /// The operations so far, failed ones included.
    pub(super) fn ops(&self) -> u64 {
        self.state.lock().unwrap().ops
    }

    /// The operations so far that change something.
    pub(super) fn modifications(&self) -> u64 {
        self.state.lock().unwrap().modifications
    }

    /// What the operations were.
    pub(super) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    /// Makes the operation with this index (the first is 0) go wrong.
    pub(super) fn fault_at(&self, op: u64, fault: Fault) {
        self.state.lock().unwrap().faults.insert(op, fault);
    }

    /// What is on the disk after a power cut now.
    pub(super) fn after_crash(&self, loss: Loss) -> Disk {
        let state = self.state.lock().unwrap();
        let mut coin = match loss {
            Loss::Random(seed) => SplitMix64::new(seed),
            _ => SplitMix64::new(0),
        };
        let survives = |coin: &mut SplitMix64| match loss {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Random(_) => coin.one_in(2),
        };
        let mut next = State::default();
        for inode in &state.inodes {
            let mut after = inode.synced.clone();
            if inode.now != inode.synced {
                if inode.now.len() != inode.synced.len() && survives(&mut coin) {
                    after.resize(inode.now.len(), 0);
                }
                for (index, sector) in after.chunks_mut(512).enumerate() {
                    if survives(&mut coin) {
                        for (offset, byte) in sector.iter_mut().enumerate() {
                            *byte = inode.now.get(index * 512 + offset).copied().unwrap_or(0);
                        }
                    }
                }
            }
            next.inodes.push(Inode { now: after.clone(), synced: after });
        }
        next.names = state.synced_names.clone();
        let mut names: Vec<&PathBuf> = state.names.keys().chain(state.synced_names.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            if state.names.get(name) != state.synced_names.get(name) && survives(&mut coin) {
                match state.names.get(name) {
                    Some(inode) => drop(next.names.insert(name.clone(), *inode)),
                    None => drop(next.names.remove(name)),
                }
            }
        }
        next.synced_names = next.names.clone();
        Disk { state: Arc::new(Mutex::new(next)) }
    }

    pub(super) fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        Some(state.inodes[*state.names.get(path)?].now.clone())
    }

    /// Puts a file there, durably, without counting operations.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.inodes.push(Inode { now: bytes.to_vec(), synced: bytes.to_vec() });
        let inode = state.inodes.len() - 1;
        state.names.insert(path.into(), inode);
        state.synced_names.insert(path.into(), inode);
    }

    pub(super) fn delete(&self, path: &Path) {
        let mut state = self.state.lock().unwrap();
        state.names.remove(path);
        state.synced_names.remove(path);
    }

    /// Counts an operation; what goes wrong with it.
    fn op(&self, what: &str, path: &Path, modifies: bool) -> io::Result<Option<(io::ErrorKind, usize)>> {
        let mut state = self.state.lock().unwrap();
        if state.crashed {
            return Err(io::Error::other("crashed"));
        }
        let index = state.ops;
        state.ops += 1;
        state.modifications += u64::from(modifies);
        state.log.push(format!("{what} {}", path.file_name().unwrap_or_default().display()));
        match state.faults.get(&index) {
            Some(Fault::Crash) => {
                state.crashed = true;
                // A write in flight may have reached the disk in part, so its bytes count as unsynced.
                if what == "write" {
                    Ok(Some((io::ErrorKind::Other, usize::MAX)))
                } else {
                    Err(io::Error::other("crash"))
                }
            }
            Some(Fault::Fail(kind, bytes)) if what == "write" => Ok(Some((*kind, *bytes))),
            Some(Fault::Fail(kind, _)) => Err((*kind).into()),
            None => Ok(None),
        }
    }
}

impl FileSystem for Disk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.op("open", path, mode == OpenMode::CreateNew)?;
        let mut state = self.state.lock().unwrap();
        let inode = match (mode, state.names.get(path)) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.names.insert(path.into(), inode);
                inode
            }
            (_, Some(inode)) => *inode,
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Open { disk: self.clone(), inode }))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.op("remove", path, true)?;
        let removed = self.state.lock().unwrap().names.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.op("rename", from, true)?;
        let mut state = self.state.lock().unwrap();
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), inode);
        Ok(())
    }

    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.op("list", path, false)?;
        let state = self.state.lock().unwrap();
        Ok(state.names.keys().filter(|name| name.parent() == Some(path)).cloned().collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.bytes(path).map(|bytes| bytes.len() as u64).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.bytes(path).is_some())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.op("sync_dir", path, true)?;
        let mut state = self.state.lock().unwrap();
        let here = |name: &PathBuf| name.parent() == Some(path);
        let current: Vec<(PathBuf, usize)> =
            state.names.iter().filter(|(name, _)| here(name)).map(|(name, inode)| (name.clone(), *inode)).collect();
        state.synced_names.retain(|name, _| !here(name));
        state.synced_names.extend(current);
        Ok(())
    }

    fn lock(&self, _path: &Path, _holder: &str) -> io::Result<Box<dyn FileLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn available_space(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

impl File for Open {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.op("read", Path::new("file"), false)?;
        let state = self.disk.state.lock().unwrap();
        let rest = state.inodes[self.inode].now.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let fault = self.disk.op("write", Path::new("file"), true)?;
        let taken = match fault {
            None => data.len(),
            Some((_, bytes)) => bytes.min(data.len()),
        };
        let from = usize::try_from(offset).unwrap();
        let mut state = self.disk.state.lock().unwrap();
        let now = &mut state.inodes[self.inode].now;
        if taken > 0 {
            now.resize(now.len().max(from + taken), 0);
            now[from..from + taken].copy_from_slice(&data[..taken]);
        }
        fault.map_or(Ok(taken), |(kind, _)| Err(kind.into()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.op("sync", Path::new("file"), true)?;
        let mut state = self.disk.state.lock().unwrap();
        let inode = &mut state.inodes[self.inode];
        inode.synced.clone_from(&inode.now);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.op("set_len", Path::new("file"), true)?;
        self.disk.state.lock().unwrap().inodes[self.inode].now.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().unwrap().inodes[self.inode].now.len() as u64)
    }
}
