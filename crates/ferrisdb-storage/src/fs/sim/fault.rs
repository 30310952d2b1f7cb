//! What the simulated disk can be told to do wrong, and what it tells about the operations that it was asked for.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    /// `open` of an existing file.
    Open,
    /// `open` with `CreateNew`.
    Create,
    /// `remove_file`.
    Remove,
    /// `rename`; the operation's path is the source.
    Rename,
    /// `hard_link`; the operation's path is the source.
    HardLink,
    /// `create_dir_all`.
    CreateDir,
    /// `list`.
    List,
    /// `len` by name or handle, and `exists`.
    Stat,
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `sync_data` and `sync_all`.
    Sync,
    /// `sync_dir`.
    SyncDir,
    /// `allocate`.
    Allocate,
    /// `set_len`.
    SetLen,
    /// `lock`.
    Lock,
    /// `available_space`.
    AvailableSpace,
}

impl OpKind {
    /// The kinds that change what a reader sees or what survives a crash.
    pub const MUTATING: &[OpKind] = &[
        OpKind::Create,
        OpKind::Remove,
        OpKind::Rename,
        OpKind::HardLink,
        OpKind::CreateDir,
        OpKind::Write,
        OpKind::Sync,
        OpKind::SyncDir,
        OpKind::Allocate,
        OpKind::SetLen,
        OpKind::Lock,
    ];

    /// The kinds that only look.
    pub const READING: &[OpKind] = &[OpKind::Open, OpKind::List, OpKind::Stat, OpKind::Read, OpKind::AvailableSpace];

    /// True if the operation is one of [`OpKind::MUTATING`].
    pub fn is_mutating(self) -> bool {
        OpKind::MUTATING.contains(&self)
    }
}

/// An operation that is about to be carried out.
#[derive(Debug, Clone, Copy)]
pub struct OpInfo<'a> {
    /// The running number, from 0. Mutating operations and the others are numbered apart, so that a change of what is
    /// read does not renumber the crash points.
    pub number: u64,
    /// What it is.
    pub kind: OpKind,
    /// The file or directory, absolute. For an operation on a handle, the name under which it was opened.
    pub path: &'a Path,
    /// Where in the file, in bytes; zero where that means nothing.
    pub offset: u64,
    /// How many bytes; for `allocate` and `set_len` the length asked for; zero where that means nothing.
    pub len: u64,
}

/// What becomes of an operation.
///
/// A verdict that does not fit the kind of operation is a mistake in the test and panics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Pass,
    /// It fails and changes nothing.
    Fail(DiskError),
    /// A read or write moves at most this many bytes, and says so.
    Short(usize),
    /// A write writes this many bytes and then fails.
    Torn(usize, DiskError),
    /// A write is acknowledged and forgotten; later reads show the old bytes.
    Lose,
    /// A read gets the bytes that lie elsewhere, a write puts them there.
    Misdirect {
        /// The other file, or the same.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// A read gets the bytes of the last sync.
    Stale,
    /// A sync fails, and what it should have written is forgotten: marked clean, visible to readers, never durable.
    /// Later syncs succeed. That is what Linux does after a failed writeback.
    FailAndDrop(DiskError),
    /// A sync of a file or directory reports success; nothing became durable.
    Lie,
}

impl Verdict {
    /// Panics if the verdict makes no sense for the operation.
    pub(super) fn assert_fits(&self, kind: OpKind) {
        let fits = match self {
            Verdict::Pass | Verdict::Fail(_) => true,
            Verdict::Short(_) | Verdict::Misdirect { .. } => matches!(kind, OpKind::Read | OpKind::Write),
            Verdict::Torn(..) | Verdict::Lose => kind == OpKind::Write,
            Verdict::Stale => kind == OpKind::Read,
            Verdict::FailAndDrop(_) => kind == OpKind::Sync,
            Verdict::Lie => matches!(kind, OpKind::Sync | OpKind::SyncDir),
        };
        assert!(fits, "{self:?} cannot happen to an operation of kind {kind:?}");
    }
}

/// An error that a disk or file system gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskError {
    /// EIO: the device failed.
    Io,
    /// ENOSPC: no space left.
    NoSpace,
    /// EDQUOT: the quota is used up.
    Quota,
    /// EROFS: the file system is read-only.
    ReadOnly,
    /// EMFILE: too many open files.
    TooManyFiles,
    /// EACCES: no permission.
    Access,
    /// EINTR: interrupted before anything was done.
    Interrupted,
    /// EAGAIN: would block.
    WouldBlock,
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> io::Error {
        let errno = match error {
            DiskError::Io => Errno::IO,
            DiskError::NoSpace => Errno::NOSPC,
            DiskError::Quota => Errno::DQUOT,
            DiskError::ReadOnly => Errno::ROFS,
            DiskError::TooManyFiles => Errno::MFILE,
            DiskError::Access => Errno::ACCESS,
            DiskError::Interrupted => Errno::INTR,
            DiskError::WouldBlock => Errno::AGAIN,
        };
        errno.into()
    }
}

/// A fault that befalls some operations: "the third sync of a file whose name contains `.log`, once".
#[derive(Debug, Clone)]
pub struct Injection {
    kinds: Vec<OpKind>,
    path_part: Option<String>,
    offset: Option<u64>,
    skip: u64,
    times: u64,
    verdict: Verdict,
}

impl Injection {
    /// Befalls every operation of these kinds, for ever.
    pub fn new(kinds: &[OpKind], verdict: Verdict) -> Injection {
        kinds.iter().for_each(|&kind| verdict.assert_fits(kind));
        Injection { kinds: kinds.to_vec(), path_part: None, offset: None, skip: 0, times: u64::MAX, verdict }
    }

    /// Only where the path contains `part`.
    pub fn path(mut self, part: &str) -> Injection {
        self.path_part = Some(part.to_owned());
        self
    }

    /// Only at this offset in the file.
    pub fn offset(mut self, offset: u64) -> Injection {
        self.offset = Some(offset);
        self
    }

    /// Lets the first `count` matching operations pass.
    pub fn after(mut self, count: u64) -> Injection {
        self.skip = count;
        self
    }

    /// Befalls `count` matching operations, then no more.
    pub fn times(mut self, count: u64) -> Injection {
        self.times = count;
        self
    }

    /// Befalls one matching operation.
    pub fn once(self) -> Injection {
        self.times(1)
    }

    /// The verdict for this operation, if it is one that this fault befalls. Counts it.
    pub(super) fn strike(&mut self, info: &OpInfo<'_>) -> Option<Verdict> {
        let path_fits = self.path_part.as_ref().is_none_or(|part| info.path.to_string_lossy().contains(part.as_str()));
        let offset_fits = self.offset.is_none_or(|offset| offset == info.offset);
        if !self.kinds.contains(&info.kind) || !path_fits || !offset_fits {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.verdict.clone())
    }
}

/// How many operations were asked for, by kind; those that were made to fail count too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Opens of existing files.
    pub opens: u64,
    /// Files created.
    pub creates: u64,
    /// Names removed.
    pub removes: u64,
    /// Renames.
    pub renames: u64,
    /// Hard links.
    pub hard_links: u64,
    /// Calls of `create_dir_all`.
    pub create_dirs: u64,
    /// Listings.
    pub lists: u64,
    /// Questions for a length or for existence.
    pub stats: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes given to writes.
    pub written_bytes: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// Syncs of directories.
    pub dir_syncs: u64,
    /// Preallocations.
    pub allocates: u64,
    /// Changes of length.
    pub set_lens: u64,
    /// Locks taken or tried.
    pub locks: u64,
    /// Questions for available space.
    pub space_queries: u64,
}

impl OpCounts {
    pub(super) fn add(&mut self, kind: OpKind, len: u64) {
        let count = match kind {
            OpKind::Open => &mut self.opens,
            OpKind::Create => &mut self.creates,
            OpKind::Remove => &mut self.removes,
            OpKind::Rename => &mut self.renames,
            OpKind::HardLink => &mut self.hard_links,
            OpKind::CreateDir => &mut self.create_dirs,
            OpKind::List => &mut self.lists,
            OpKind::Stat => &mut self.stats,
            OpKind::Read => {
                self.read_bytes += len;
                &mut self.reads
            }
            OpKind::Write => {
                self.written_bytes += len;
                &mut self.writes
            }
            OpKind::Sync => &mut self.syncs,
            OpKind::SyncDir => &mut self.dir_syncs,
            OpKind::Allocate => &mut self.allocates,
            OpKind::SetLen => &mut self.set_lens,
            OpKind::Lock => &mut self.locks,
            OpKind::AvailableSpace => &mut self.space_queries,
        };
        *count += 1;
    }
}
