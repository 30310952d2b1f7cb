//! The door to the disk: [`FileSystem`] and [`File`].
//!
//! All I/O of the engine goes through these traits, so that a simulated disk can lose, tear, reorder and refuse
//! whatever a real one may. The real one is [`RealFileSystem`](real::RealFileSystem), the simulated one
//! [`SimFileSystem`](sim::SimFileSystem).
//!
//! # What a crash may do
//! Until [`File::sync_data`] or [`File::sync_all`] returns, any subset of the writes to that file may be lost, in any
//! order, torn at 512 bytes; until [`FileSystem::sync_dir`] returns, a new, renamed or removed name in that directory
//! may be as before. A failed sync says nothing about what is durable, and a second try that succeeds says nothing
//! either.
//!
//! # Concurrency
//! Everything is callable from any thread at once. Positional reads and writes of one file may overlap in time; the
//! engine never writes the same bytes from two threads.

pub mod real;
pub mod sim;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; must exist.
    Read,
    /// For reading and writing; must exist.
    ReadWrite,
    /// For reading and writing; must not exist yet. Durable as a name only after [`FileSystem::sync_dir`].
    CreateNew,
}

/// As much of a lock file as is read: a holder is a few words.
const LOCK_HOLDER_BYTES_MAX: usize = 1024;

/// A directory tree of files.
pub trait FileSystem: fmt::Debug + Send + Sync + 'static {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Removes a file's name. Open handles stay usable.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a new name in the same file system, replacing what had that name, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Creates a directory and its parents; no error if it exists. The name of each new directory is in its parent, and
    /// durable only after a [`FileSystem::sync_dir`] of that.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, without the directory's own path in front, sorted (so that a run does not depend on
    /// the file system's order).
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// A file's length in bytes, by its name.
    fn len(&self, path: &Path) -> io::Result<u64>;

    /// True if the name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes an exclusive lock on a file, creating it if needed, and writes `holder` into it. Fails with
    /// [`io::ErrorKind::WouldBlock`] if it is held, whoever holds it. Released when the returned guard is dropped or
    /// the process ends.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn FileLock>>;

    /// What the holder of a lock wrote into its file, or what a past one left there.
    fn lock_holder(&self, path: &Path) -> io::Result<String> {
        let file = self.open(path, OpenMode::Read)?;
        let mut text = [0; LOCK_HOLDER_BYTES_MAX];
        let mut len = 0;
        while len < text.len() {
            match file.read_at(&mut text[len..], len as u64) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(String::from_utf8_lossy(&text[..len]).trim().to_owned())
    }

    /// Bytes that may still be written to the file system holding `path`.
    fn available_space(&self, path: &Path) -> io::Result<u64>;

    /// Bytes that the file system holding `path` has in all, used or not. [`u64::MAX`]: it has no end that is known.
    fn total_space(&self, path: &Path) -> io::Result<u64> {
        self.available_space(path).map(|_| u64::MAX)
    }
}

/// An open file. Reads and writes are positional: a handle has no cursor.
pub trait File: fmt::Debug + Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file or after an interruption.
    /// Zero means the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes up to `data.len()` bytes at `offset` and returns how many; a gap below `offset` reads as zeros. In the
    /// operating system's hands when it returns: the process may die, the machine may not.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes the file's data durable, and its length if that changed (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Makes the file's data and metadata durable (`fsync`).
    fn sync_all(&self) -> io::Result<()>;

    /// Reserves space for `0..len` and extends the length to `len` if it is shorter; new bytes read as zeros.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts or extends (with zeros) to `len`.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Says that the file will be read here and there: what lies behind a piece that is read is not worth reading with it. Advice about speed, which cannot
    /// fail; by default it is ignored.
    fn expect_random_reads(&self) {}

    /// True for a file of length zero.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Holds a lock taken by [`FileSystem::lock`] until dropped.
pub trait FileLock: fmt::Debug + Send + Sync {}

/// Reads exactly `buffer.len()` bytes at `offset`, going on after short reads and interruptions.
/// The end of the file before that is [`io::ErrorKind::UnexpectedEof`].
pub fn read_exact_at(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before the data does")),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `data` at `offset`, going on after short writes and interruptions.
/// On an error an unknown part of it may have been written.
pub fn write_all_at(file: &dyn File, data: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::WriteZero, "the file took no more bytes")),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
