//! A disk for these tests: files in memory that count what is done to them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::fs::{File, FileLock, FileSystem, OpenMode};

#[derive(Debug, Default)]
pub(super) struct MemoryFs {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
}

#[derive(Debug, Default)]
pub(super) struct MemoryFile {
    pub(super) bytes: Mutex<Vec<u8>>,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    /// The length of the file when it was last synced.
    pub(super) synced: AtomicU64,
    /// Reads that reach past this place fail; zero means that none do.
    pub(super) unreadable_from: AtomicU64,
    /// Was advice given?
    pub(super) expects_random_reads: AtomicBool,
}

impl MemoryFs {
    pub(super) fn put(&self, path: &Path, bytes: Vec<u8>) -> Arc<MemoryFile> {
        let file = Arc::new(MemoryFile { bytes: Mutex::new(bytes), ..MemoryFile::default() });
        self.files.lock().unwrap().insert(path.to_path_buf(), Arc::clone(&file));
        file
    }

    pub(super) fn file(&self, path: &Path) -> Arc<MemoryFile> {
        Arc::clone(&self.files.lock().unwrap()[path])
    }
}

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl FileSystem for MemoryFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        if mode == OpenMode::CreateNew {
            return Ok(self.put(path, Vec::new()));
        }
        let file = self.files.lock().unwrap().get(path).cloned();
        file.map(|file| file as Arc<dyn File>).ok_or(io::ErrorKind::NotFound.into())
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        unsupported()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        unsupported()
    }

    fn hard_link(&self, _: &Path, _: &Path) -> io::Result<()> {
        unsupported()
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        unsupported()
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        unsupported()
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.file(path).len()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.files.lock().unwrap().contains_key(path))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        unsupported()
    }

    fn lock(&self, _: &Path, _: &str) -> io::Result<Box<dyn FileLock>> {
        unsupported()
    }

    fn available_space(&self, _: &Path) -> io::Result<u64> {
        unsupported()
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let unreadable_from = self.unreadable_from.load(Ordering::Relaxed);
        if unreadable_from > 0 && offset + buffer.len() as u64 > unreadable_from {
            return Err(io::Error::other("a bad sector"));
        }
        let bytes = self.bytes.lock().unwrap();
        let rest = bytes.get(offset as usize..).unwrap_or(b"");
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.bytes.lock().unwrap();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(data.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.synced.store(self.len()?, Ordering::Relaxed);
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        unsupported()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn expect_random_reads(&self) {
        self.expects_random_reads.store(true, Ordering::Relaxed);
    }
}
