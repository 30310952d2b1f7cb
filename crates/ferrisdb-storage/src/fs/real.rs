//! The operating system's files: [`RealFileSystem`], the only module that touches `std::fs`.
//!
//! Every call is one system call, or a few. What a signal interrupted is tried again (some network and user-space file systems let signals
//! through): calls by name here, opening by the standard library; [`read_exact_at`](super::read_exact_at) and [`write_all_at`] go on after short
//! transfers and interruptions. A name may have been changed by the interrupted call all the same: then the second says that there is nothing left
//! to remove or rename, or that the name is taken, and that is what the caller gets. Nothing else is retried, and no sync that failed: after a failed one Linux marks the lost pages clean, and the next sync of the same
//! descriptor succeeds without them. The descriptor stays open after a failed sync; who closes and reopens it loses the
//! error.

#![expect(clippy::disallowed_methods, reason = "this is the one door to the real disk")]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::{File, FileLock, FileSystem, OpenMode, write_all_at};

/// How much is written at a time where space cannot be reserved otherwise.
const ZEROS_BYTES: usize = 64 << 10;

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFileSystem;

impl RealFileSystem {
    /// The operating system's file system.
    pub fn new() -> RealFileSystem {
        RealFileSystem
    }
}

impl FileSystem for RealFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew);
        let file = options.open(path)?;
        // A directory can be opened for reading, and fails only later and elsewhere.
        if mode == OpenMode::Read && uninterrupted(|| file.metadata())?.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        Ok(Arc::new(RealFile { file, path: path.to_path_buf() }))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        uninterrupted(|| fs::remove_file(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        uninterrupted(|| fs::rename(from, to))
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        uninterrupted(|| fs::hard_link(from, to))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        // Directories that the interrupted call has made are found to exist.
        uninterrupted(|| fs::create_dir_all(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = uninterrupted(|| {
            let entries = fs::read_dir(directory(path))?;
            entries.map(|entry| Ok(entry?.file_name().into())).collect::<io::Result<Vec<PathBuf>>>()
        })?;
        names.sort_unstable();
        Ok(names)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let metadata = uninterrupted(|| fs::metadata(path))?;
        if metadata.is_dir() { Err(Errno::ISDIR.into()) } else { Ok(metadata.len()) }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match uninterrupted(|| path.try_exists()) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
            result => result,
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let directory = fs::File::open(directory(path))?;
        if !uninterrupted(|| directory.metadata())?.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        directory.sync_all()
    }

    /// An advisory `flock`: it belongs to the open file, so that a second lock fails in the same process too.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn FileLock>> {
        // Not truncated at opening: until the lock is ours the text is another's.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        uninterrupted(|| Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?))?;
        let lock = RealFile { file, path: path.to_path_buf() };
        lock.set_len(0)?;
        write_all_at(&lock, holder.as_bytes(), 0)?;
        Ok(Box::new(RealLock { locked: lock }))
    }

    fn available_space(&self, path: &Path) -> io::Result<u64> {
        let stat = uninterrupted(|| Ok(rustix::fs::statvfs(directory(path))?))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn total_space(&self, path: &Path) -> io::Result<u64> {
        let stat = uninterrupted(|| Ok(rustix::fs::statvfs(directory(path))?))?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

/// Makes a call until no signal interrupts it. Not for a sync.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The parent of a relative name is the empty path, which the operating system does not know.
fn directory(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// An open file, with the name it was opened under.
#[derive(Debug)]
struct RealFile {
    file: fs::File,
    #[expect(dead_code, reason = "shown by Debug")]
    path: PathBuf,
}

impl RealFile {
    /// Reserves space by writing zeros after the end, for file systems that cannot do it otherwise.
    fn allocate_by_writing(&self, len: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES];
        let mut end = self.file.metadata()?.len();
        while end < len {
            let part = usize::try_from(len - end).map_or(ZEROS_BYTES, |rest| rest.min(ZEROS_BYTES));
            write_all_at(self, &zeros[..part], end)?;
            end += part as u64;
        }
        Ok(())
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        loop {
            // The system call knows no range of length zero; there is nothing to reserve.
            let result =
                if len == 0 { Ok(()) } else { rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) };
            match result {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.allocate_by_writing(len),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(uninterrupted(|| self.file.metadata())?.len())
    }

    fn expect_random_reads(&self) {
        #[cfg(target_os = "linux")]
        #[expect(clippy::let_underscore_must_use, reason = "a file system that knows no advice does as it always does")]
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random);
    }
}

/// The lock lives as long as the descriptor. The file stays: to remove it would let a third process lock a new file of
/// that name while a second still holds the old one.
#[derive(Debug)]
struct RealLock {
    locked: RealFile,
}

impl FileLock for RealLock {}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Not by closing alone: a child process that another thread is just starting holds a copy of the descriptor until it has become
        // its own program, and the lock would outlive us by that. If this fails, closing still does it.
        let _closing_does_it = rustix::fs::flock(&self.locked.file, FlockOperation::Unlock).is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::read_exact_at;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// An interruption is no error; any other failure is told at once.
    #[test]
    fn an_interrupted_call_is_made_again() {
        let run = |failures: &[Errno]| {
            let mut calls = 0;
            let result = uninterrupted(|| {
                calls += 1;
                failures.get(calls - 1).map_or(Ok(()), |errno| Err((*errno).into()))
            });
            (calls, result.map_err(|error| error.raw_os_error()))
        };
        assert_eq!(run(&[Errno::INTR, Errno::INTR]), (3, Ok(())));
        assert_eq!(run(&[Errno::INTR, Errno::IO]), (2, Err(Some(Errno::IO.raw_os_error()))));
    }

    /// A second lock on the same file fails while the first is held, though the process is the same, and the loser can
    /// say who holds it. Dropping the guard frees it.
    #[test]
    fn a_lock_excludes_and_names_its_holder() {
        let (fs, dir) = (RealFileSystem::new(), directory());
        let path = dir.path().join("LOCK");
        let held = fs.lock(&path, "process 4711, started long ago").unwrap();
        assert_eq!(fs.lock(&path, "another").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(fs.lock_holder(&path).unwrap(), "process 4711, started long ago");
        drop(held);
        let _held = fs.lock(&path, "another").unwrap();
        assert_eq!(fs.lock_holder(&path).unwrap(), "another", "the longer text is gone");
    }

    /// A lock that was given up is free at once, also while a copy of its descriptor lives on, as one does in a child process
    /// between fork and exec.
    #[test]
    fn a_copied_descriptor_does_not_keep_the_lock() {
        let directory = directory();
        let path = directory.path().join("LOCK");
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let _copy = file.try_clone().unwrap();
        drop(RealLock { locked: RealFile { file, path: path.clone() } });
        assert!(RealFileSystem::new().lock(&path, "the next").is_ok());
    }

    /// Preallocation takes real blocks, so that a later write into it cannot run out of space, and keeps what is there.
    #[test]
    fn allocate_takes_real_space() {
        use std::os::unix::fs::MetadataExt;
        let (fs, dir) = (RealFileSystem::new(), directory());
        let path = dir.path().join("wal");
        let file = fs.open(&path, OpenMode::CreateNew).unwrap();
        write_all_at(&*file, b"kept", 0).unwrap();
        file.allocate(1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20);
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 >= 1 << 20, "only {blocks} blocks of 512 bytes are taken");
        let mut bytes = [1; 6];
        read_exact_at(&*file, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"kept\0\0");
        file.allocate(10).unwrap();
        file.allocate(0).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20, "allocating less cuts nothing");
    }

    /// Where the system call is missing, zeros are written after the end and nothing before it is touched.
    #[test]
    fn allocate_by_writing_extends_with_zeros() {
        let dir = directory();
        let path = dir.path().join("wal");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let file = RealFile { file, path: path.clone() };
        write_all_at(&file, b"kept", 0).unwrap();
        let len = 3 * ZEROS_BYTES + 7;
        file.allocate_by_writing(len as u64).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), len);
        assert!(bytes.starts_with(b"kept") && bytes[4..].iter().all(|&byte| byte == 0));
    }

    /// The parent of a relative path is the empty path; it means the current directory.
    #[test]
    fn the_empty_path_is_the_current_directory() {
        let fs = RealFileSystem::new();
        fs.sync_dir(Path::new("")).unwrap();
        assert!(!fs.list(Path::new("")).unwrap().is_empty());
        assert!(fs.available_space(Path::new("")).unwrap() > 0);
        assert!(fs.total_space(Path::new("")).unwrap() >= fs.available_space(Path::new("")).unwrap());
    }
}
