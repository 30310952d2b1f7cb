//! The write-ahead log: opaque records, appended in order, durable once synced.
//!
//! A module of its own because three stand on it: the engine alone, the local transaction log, and the Raft log store.
//! It knows nothing of batches, versions or entries, and it starts no thread.
//!
//! ```text
//! append ──▶ current segment ──(full)──▶ ready segment ◀── prepare_step ◀── recycled file ◀── purge
//!               │ sync: one fdatasync for all that was appended before it began
//!               ▼
//!            readers: replay at open, subscriptions, inspect
//! ```
//!
//! # Format
//! See the head of `format.rs`. A log is a chain of segment files `0000000001.wal`, …; a record lies in one segment, one that is larger
//! than a segment gets a segment of its own size.
//!
//! # Invariants
//! - A record is durable once a sync that began after its append has returned; nothing else makes it so.
//! - The first failed sync poisons the log for good. It is never retried: the kernel may have dropped the pages and call them clean.
//! - Each record and segment header says up to where the WAL was known synced when it was written. A bad record below the
//!   highest such mark is corruption; at or above it, a torn tail, cut there, with all behind it discarded.
//! - A discarded record never comes back: its checksum binds it to WAL, segment number and offset; segment numbers only grow, a file that is
//!   used again gets a higher number first; and where a segment is overwritten in place, after a failed write or at
//!   open, the generation in the record headers grows, and a record of a lower one does not follow one of a higher.
//! - A segment's name and length are durable before its first record, so that an append's `fdatasync` changes no metadata, and
//!   so that a missing name is a lost file and not a crash.
//! - Segments leave from the front, oldest first, and only when the owner says so: with [`Wal::purge`] each durably before the next;
//!   with [`Wal::purge_stored`] in any order, because an open needs nothing before the position that the owner has stored.
//! - `synced <= appended` and `first <= appended`; each of them only grows, but for `appended` in [`Wal::truncate_from`], which moves the
//!   end to a new, higher segment. `first` passes `synced` only in [`Wal::purge_stored`].
//!
//! # Concurrency
//! Everything is callable from any thread. Locks, in the order in which they may be taken: `maintenance` (held across I/O; taken
//! by preparing, purging and truncating, and by an append only when no segment is ready), `file_sync` (held for the sync of one file),
//! `writer` (held for one write), `chain`, `sync` (held for a few instructions). None of the last three is ever held across a sync.
//! There is no condition variable: who waits holds a future, see the head of `sync.rs`. Wakers must not call back into the WAL: after a
//! failure they may be woken with a lock held.

mod format;
mod inspect;
mod maintain;
mod reader;
mod recover;
mod scan;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod survive;
mod sync;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod testfs;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::Waker;

pub(crate) use format::segment_file_name;
pub use format::{RECORD_PAYLOAD_MAX, RecordKind, SegmentHeader, WalPosition};
pub use inspect::{RecordInfo, SegmentInspection, inspect_segment, synced_records};
pub use maintain::PrepareStep;
pub use reader::{ReadUpTo, WalReader, WalRecord};
pub use recover::{Recovery, TornTail};
pub use sync::{SyncClaim, SyncTicket, SyncTurn, Turn};

use crate::error::{Error, Result};
use crate::fs::{File, FileSystem};
use format::{Place, RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN, framed_len};
use maintain::Maintenance;
use sync::Waiters;

/// A buffer that grew for one large batch is given back when it is larger than this.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

/// The offset that stands for "still being appended to".
const OPEN_END: u32 = u32::MAX;

/// How a WAL is laid out. Every number has one default, in [`WalOptions::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalOptions {
    /// Bytes of a segment file, preallocated: 1 KiB to 1 GiB. Larger: fewer switches and syncs of metadata, but space
    /// comes back in larger steps.
    pub segment_bytes: u32,
    /// How many purged segments wait to be used again. More: fewer files are created when purging comes in bursts.
    pub recycle_max: usize,
    /// The last bytes of the last segment that has no successor yet, kept for records appended with [`Space::Reserve`]
    /// when the disk is full. At most half a segment.
    pub reserve_bytes: u32,
    /// How far into the current segment, in bytes, the next one is prepared by [`Wal::prepare_step`]. Later: an idle log holds less disk;
    /// earlier: appends never wait for a file.
    pub prepare_from: u32,
    /// Write zeros over a fresh segment while it is prepared, so that syncs need not convert unwritten extents. Costs one
    /// more write of each fresh (not recycled) segment, in the background only.
    pub fill: bool,
    /// Mixed into every checksum, so that segments of another WAL are told apart. Best a random number that the owner stores:
    /// then no payload can pass for a record either.
    pub identity: u64,
    /// From here on the owner needs records: a position that [`Wal::last_position`] or an append gave, synced or not.
    /// A WAL that begins later than this has lost a file, and opening fails; one that ends before it, because a crash took records
    /// that the owner no longer needs, goes on above it. [`WalPosition::ZERO`] if the owner keeps no account of it.
    pub required_from: WalPosition,
}

impl Default for WalOptions {
    fn default() -> WalOptions {
        WalOptions {
            segment_bytes: 64 << 20,
            recycle_max: 4,
            reserve_bytes: 1 << 20,
            prepare_from: 0,
            fill: false,
            identity: 0,
            required_from: WalPosition::ZERO,
        }
    }
}

impl WalOptions {
    fn check(&self) -> Result<()> {
        let invalid = |option, value: u32, reason: &str| {
            Err(Error::InvalidOption { option, value: value.to_string(), reason: reason.to_owned() })
        };
        if !(1 << 10..=1 << 30).contains(&self.segment_bytes) {
            return invalid("wal segment_bytes", self.segment_bytes, "a segment has 1 KiB to 1 GiB");
        }
        if self.reserve_bytes > self.segment_bytes / 2 {
            return invalid("wal reserve_bytes", self.reserve_bytes, "the reserve is at most half a segment");
        }
        Ok(())
    }
}

/// Which space a record may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// All but the reserve.
    Ordinary,
    /// The reserve too: for small records that free space, such as deletes.
    Reserve,
}

/// A WAL's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalState {
    /// The position of the first record.
    pub first: WalPosition,
    /// Just behind the last synced record.
    pub synced: WalPosition,
    /// Just behind the last record.
    pub appended: WalPosition,
    /// True while a sync is claimed or runs.
    pub syncing: bool,
    /// Futures that wait for a sync.
    pub waiters: usize,
    /// Segments of the log.
    pub segments: usize,
    /// Segments prepared ahead.
    pub ready: usize,
    /// Bytes of records, with their headers.
    pub log_bytes: u64,
    /// Bytes of all segment files, preallocated and recycled ones included, but for those in preparation at this moment.
    pub disk_bytes: u64,
    /// Why the WAL takes no more writes.
    pub poisoned: Option<Arc<str>>,
}

/// A handle to an open WAL; clones share it. Dropping the last one syncs nothing.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    options: WalOptions,
    maintenance: Mutex<Maintenance>,
    writer: Mutex<Writer>,
    /// The segments of the log, oldest first, the last one being the writer's. Never empty.
    chain: Mutex<VecDeque<Arc<Segment>>>,
    sync: Mutex<Waiters>,
    /// Held while a segment is synced and until a failure of that is known to all, see [`Inner::sync_file_of`].
    file_sync: Mutex<()>,
    /// Just behind the last record. Stored by the writer after its write.
    appended: AtomicU64,
    /// Just behind the last synced record. Invariant: `synced <= appended`, and everything before it is durable.
    synced: AtomicU64,
    poisoned: OnceLock<Arc<str>>,
    /// Readers at the end of the log. The flag is true if there may be any: an append looks at nothing else.
    readers: Mutex<Vec<Waker>>,
    readers_wait: AtomicBool,
    prepare_waker: Mutex<Option<Waker>>,
}

/// A file of the log.
struct Segment {
    number: u32,
    path: PathBuf,
    file: Arc<dyn File>,
    /// Bytes that may be written without growing the file.
    capacity: u32,
    /// Where the log leaves the segment before this one.
    previous_end: WalPosition,
    /// Where the log leaves this segment, or [`OPEN_END`].
    end: AtomicU32,
    /// The header has been synced. Until then the segment before it is needed to know where the log ends.
    header_durable: AtomicBool,
    /// Purged or cut off: readers must leave.
    retired: AtomicBool,
}

impl Segment {
    fn start(&self) -> WalPosition {
        WalPosition::new(self.number, SEGMENT_HEADER_LEN)
    }
}

/// A prepared file: named, allocated and durable, but without a header of its number.
struct Ready {
    number: u32,
    path: PathBuf,
    file: Arc<dyn File>,
    capacity: u32,
}

struct Writer {
    current: Arc<Segment>,
    /// Where the next record goes. Invariant: nothing intact of generation `generation` or above lies at or behind it.
    offset: u32,
    /// False between a switch and the first successful write to the new segment.
    header_written: bool,
    generation: u16,
    /// The next record opens a new segment: generations are used up, or the owner replays from above this place.
    must_switch: bool,
    /// The current segment is so full, and has been written to since the last [`Wal::trim`], that the next one is wanted.
    prepare_asked: bool,
    /// Frames of the append at hand; kept so that appends do not allocate.
    buffer: Vec<u8>,
    /// Segments to go on with, numbers increasing and above the current one's.
    ready: VecDeque<Ready>,
    /// Ready segments that were too small for a large record: to be numbered anew.
    passed_over: Vec<Ready>,
    /// Segments written to since the last sync began, oldest first.
    unsynced: Vec<Arc<Segment>>,
}

impl Writer {
    fn check(&self) {
        debug_assert!(self.offset >= SEGMENT_HEADER_LEN && self.offset.is_multiple_of(format::ALIGNMENT));
        debug_assert!(self.header_written || self.offset == SEGMENT_HEADER_LEN);
        let mut last = self.current.number;
        for ready in &self.ready {
            debug_assert!(ready.number > last, "ready segments are numbered in the order of their use");
            last = ready.number;
        }
    }
}

impl Wal {
    /// Opens the WAL in `dir`, creating the directory and the log if there is none; cuts a torn tail, makes what is left durable, and
    /// says what it found. Replay with [`subscribe`](Self::subscribe) from [`Recovery::replay_from`].
    ///
    /// The caller makes sure that nobody else has the directory open.
    ///
    /// # Errors
    /// [`Error::Corruption`], [`Error::MissingFile`] and [`Error::FormatTooNew`] leave everything as it was.
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path, options: WalOptions) -> Result<(Wal, Recovery)> {
        options.check()?;
        maintain::open(fs, dir, options)
    }

    /// Reads the log in `dir` without changing anything: what [`open`](Self::open) would recover, as it is now, from the first segment on
    /// that holds anything at or above [`required_from`](WalOptions::required_from).
    pub fn read_only(fs: Arc<dyn FileSystem>, dir: &Path, options: &WalOptions) -> Result<(WalReader, Recovery)> {
        let survey = recover::survey(fs.as_ref(), dir, options.identity, options.required_from)?;
        let mut chain = survey.chain;
        // What is before may have been let go without ever being synced.
        let unneeded =
            chain.iter().skip(1).take_while(|next| next.header.previous_end <= options.required_from).count();
        drop(chain.drain(..unneeded));
        Ok((WalReader::detached(chain, options.identity), survey.recovery))
    }

    /// Appends one record, whose payload is `parts` one after another, and returns its position. Not synced.
    ///
    /// # Errors
    /// The record did not happen, and nothing of it will be taken for a record. [`Error::NoSpace`]: try again once there is
    /// space. [`Error::Poisoned`]: never again. [`Error::BatchTooLarge`] above [`RECORD_PAYLOAD_MAX`].
    #[inline]
    pub fn append(&self, parts: &[&[u8]]) -> Result<WalPosition> {
        self.inner.append(&[parts], Space::Ordinary)
    }

    /// [`append`](Self::append), perhaps from the reserve.
    #[inline]
    pub fn append_from(&self, parts: &[&[u8]], space: Space) -> Result<WalPosition> {
        self.inner.append(&[parts], space)
    }

    /// Appends several records in one write and adds their positions to `positions`. On an error none of them happened; after
    /// a crash any number of the first may be there. All together may have [`RECORD_PAYLOAD_MAX`] bytes.
    pub fn append_many(&self, records: &[&[&[u8]]], space: Space, positions: &mut Vec<WalPosition>) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut position = self.inner.append(records, space)?;
        for parts in records {
            positions.push(position);
            let len = u32::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).expect("append checked it");
            position = WalPosition::new(position.segment(), position.offset() + framed_len(len));
        }
        Ok(())
    }

    /// The position of the first record, if there is one.
    pub fn first_position(&self) -> WalPosition {
        self.inner.chain().front().expect("the chain is never empty").start()
    }

    /// Just behind the last record: all records lie below, and the next one lies here or above.
    pub fn last_position(&self) -> WalPosition {
        self.inner.appended()
    }

    /// Just behind the last synced record.
    pub fn synced_position(&self) -> WalPosition {
        self.inner.synced()
    }

    /// True if the record at `position` is durable.
    #[inline]
    pub fn is_synced(&self, position: WalPosition) -> bool {
        self.inner.synced() > position
    }

    /// Where everything stands, for statistics and tests. Takes the short locks one after another.
    pub fn state(&self) -> WalState {
        let inner = &self.inner;
        // While a file is being prepared or purged, those that wait are left out: statistics do not wait for a sync.
        let spare_bytes = inner.maintenance.try_lock().map_or(0, |maintenance| maintenance.spare_bytes());
        let (ready, ready_bytes) = {
            let writer = inner.writer();
            let files = writer.ready.iter().chain(&writer.passed_over);
            (writer.ready.len(), files.map(|ready| u64::from(ready.capacity)).sum::<u64>())
        };
        let appended = inner.appended();
        let (first, segments, log_bytes, chain_bytes) = {
            let chain = inner.chain();
            let used = |segment: &Arc<Segment>| match segment.end.load(SeqCst) {
                OPEN_END if appended.segment() == segment.number => appended.offset() - SEGMENT_HEADER_LEN,
                OPEN_END => 0,
                end => end - SEGMENT_HEADER_LEN,
            };
            let log_bytes = chain.iter().map(|segment| u64::from(used(segment))).sum();
            let chain_bytes: u64 = chain.iter().map(|segment| u64::from(segment.capacity)).sum();
            (chain.front().expect("the chain is never empty").start(), chain.len(), log_bytes, chain_bytes)
        };
        let (syncing, waiters) = inner.waiters().summary();
        WalState {
            first,
            synced: inner.synced(),
            appended,
            syncing,
            waiters,
            segments,
            ready,
            log_bytes,
            disk_bytes: chain_bytes + ready_bytes + spare_bytes,
            poisoned: inner.poisoned.get().cloned(),
        }
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (appended, synced) = (self.inner.appended(), self.inner.synced());
        f.debug_struct("Wal")
            .field("dir", &self.inner.dir)
            .field("appended", &appended)
            .field("synced", &synced)
            .finish()
    }
}

impl Inner {
    fn maintenance(&self) -> MutexGuard<'_, Maintenance> {
        self.maintenance.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// A panic while the writer lock is held may have left a half-made record: such a WAL is poisoned, see [`Inner::append`].
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|poison| {
            self.poison("a thread panicked while it appended");
            poison.into_inner()
        })
    }

    fn chain(&self) -> MutexGuard<'_, VecDeque<Arc<Segment>>> {
        self.chain.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.sync.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn appended(&self) -> WalPosition {
        WalPosition::from_u64(self.appended.load(SeqCst))
    }

    fn synced(&self) -> WalPosition {
        WalPosition::from_u64(self.synced.load(SeqCst))
    }

    fn place(&self, segment: u32) -> Place {
        Place { identity: self.options.identity, segment }
    }

    fn check_poisoned(&self) -> Result<()> {
        match self.poisoned.get() {
            Some(reason) => Err(Error::Poisoned { reason: Arc::clone(reason) }),
            None => Ok(()),
        }
    }

    fn append(&self, records: &[&[&[u8]]], space: Space) -> Result<WalPosition> {
        let mut payload_bytes = 0;
        let mut framed_bytes = 0;
        for parts in records {
            let len: usize = parts.iter().map(|part| part.len()).sum();
            payload_bytes += len;
            // Each term is at most 1 GiB and 32 bytes, and the sum is checked each time: it cannot overflow.
            if payload_bytes > RECORD_PAYLOAD_MAX || framed_bytes > RECORD_PAYLOAD_MAX {
                return Err(Error::BatchTooLarge { len: payload_bytes, max: RECORD_PAYLOAD_MAX });
            }
            framed_bytes += framed_len(u32::try_from(len).expect("at most 1 GiB")) as usize;
        }
        let framed_bytes = u32::try_from(framed_bytes).expect("at most 2 GiB and a header");
        self.append_framed(framed_bytes, space, |writer, place, offset, synced| {
            let mut offset = offset;
            for parts in records {
                offset += frame(writer, place, offset, synced, RecordKind::Record, parts);
            }
        })
    }

    /// Finds room for `len` bytes of frames and writes them, in one write. `frames` adds them to the writer's buffer.
    fn append_framed(
        &self,
        len: u32,
        space: Space,
        mut frames: impl FnMut(&mut Writer, Place, u32, WalPosition),
    ) -> Result<WalPosition> {
        loop {
            let mut writer = self.writer();
            self.check_poisoned()?;
            if !self.make_room(&mut writer, len, space)? {
                drop(writer);
                self.make_ready(SEGMENT_HEADER_LEN + len)?;
                continue;
            }
            let synced = self.synced();
            let offset = writer.offset;
            let place = self.place(writer.current.number);
            writer.buffer.clear();
            if !writer.header_written {
                let header = self.header(&writer.current, synced);
                writer.buffer.extend_from_slice(&header);
            }
            frames(&mut writer, place, offset, synced);
            self.write_buffer(&mut writer)?;
            writer.offset = offset + len;
            writer.check();
            let from = self.options.prepare_from;
            let prepare = from > 0 && writer.offset >= from && !writer.prepare_asked;
            writer.prepare_asked |= prepare;
            if writer.buffer.capacity() > BUFFER_KEEP_BYTES {
                writer.buffer = Vec::new();
            }
            let end = WalPosition::new(place.segment, writer.offset);
            self.appended.store(end.to_u64(), SeqCst);
            drop(writer);
            if prepare {
                self.wake_preparer();
            }
            self.wake_readers();
            return Ok(WalPosition::new(place.segment, offset));
        }
    }

    fn header(&self, segment: &Segment, synced: WalPosition) -> [u8; SEGMENT_HEADER_LEN as usize] {
        let previous_end = segment.previous_end;
        SegmentHeader { identity: self.options.identity, number: segment.number, previous_end, synced }.encode()
    }

    /// Sees to it that `len` bytes fit into the current segment, switching to a ready one if need be. False: one has to be
    /// prepared first, without the writer lock.
    fn make_room(&self, writer: &mut Writer, len: u32, space: Space) -> Result<bool> {
        let rest = writer.current.capacity - writer.offset;
        if len <= rest && !writer.must_switch {
            // The reserve is at the end of the last segment: with another one ready behind it, this one's may be used up.
            let spared =
                space == Space::Reserve || rest - len >= self.options.reserve_bytes || !writer.ready.is_empty();
            return Ok(spared);
        }
        let fits = |ready: &Ready| ready.capacity - SEGMENT_HEADER_LEN >= len;
        let Some(index) = writer.ready.iter().position(fits) else { return Ok(false) };
        let passed_over: Vec<Ready> = writer.ready.drain(..index).collect();
        writer.passed_over.extend(passed_over);
        let ready = writer.ready.pop_front().expect("position found it");
        let end = writer.offset;
        self.switch(writer, ready, end);
        Ok(true)
    }

    /// Goes on in `ready`; the log leaves the segments before at `end` of the current one.
    ///
    /// From here on nothing is appended to the old segment, even if the first write to the new one fails: the new header
    /// may have reached the disk, and it says where the old one ends.
    fn switch(&self, writer: &mut Writer, ready: Ready, end: u32) {
        let mut chain = self.chain();
        let old = Arc::clone(&writer.current);
        let previous_end = if writer.header_written {
            old.end.store(end, SeqCst);
            WalPosition::new(old.number, end)
        } else {
            // The old one has no header on disk, so the chain must not lead through it.
            chain.pop_back();
            old.retired.store(true, SeqCst);
            let Segment { number, path, file, capacity, .. } = old.as_ref();
            let (path, file) = (path.clone(), Arc::clone(file));
            writer.passed_over.push(Ready { number: *number, path, file, capacity: *capacity });
            old.previous_end
        };
        let segment = Arc::new(ready.into_segment(previous_end, OPEN_END));
        chain.push_back(Arc::clone(&segment));
        drop(chain);
        writer.current = segment;
        writer.offset = SEGMENT_HEADER_LEN;
        writer.header_written = false;
        writer.generation = 0;
        writer.must_switch = false;
        writer.prepare_asked = false;
        writer.check();
        self.wake_preparer();
    }

    /// Writes the buffer at the writer's place. On an error the place is as if nothing had been written.
    fn write_buffer(&self, writer: &mut Writer) -> Result<()> {
        let start = if writer.header_written { writer.offset } else { 0 };
        let segment = Arc::clone(&writer.current);
        match write_counted(segment.file.as_ref(), &writer.buffer, u64::from(start)) {
            Ok(()) => {
                writer.header_written = true;
                if writer.unsynced.last().is_none_or(|last| last.number != segment.number) {
                    writer.unsynced.push(segment);
                }
                Ok(())
            }
            Err((written, error)) => {
                let error = Error::io("append to", &segment.path, error);
                self.undo_write(writer, start, written, &error)?;
                Err(error)
            }
        }
    }

    /// After a failed write: what it left behind must neither be read as a record nor join on to a later one.
    fn undo_write(&self, writer: &mut Writer, start: u32, written: usize, error: &Error) -> Result<()> {
        // Intact records behind the first would follow a shorter one written over it: the generation says that they do not.
        match writer.generation.checked_add(1) {
            Some(generation) => writer.generation = generation,
            None => writer.must_switch = true,
        }
        let left_behind = SEGMENT_HEADER_LEN * u32::from(!writer.header_written) + RECORD_HEADER_LEN;
        let zeros = [0; (SEGMENT_HEADER_LEN + RECORD_HEADER_LEN) as usize];
        match write_counted(writer.current.file.as_ref(), &zeros[..left_behind as usize], u64::from(start)) {
            // Even a sync that comes before the next append may not make a record of it.
            Ok(()) => Ok(()),
            // A full disk that took no byte has left nothing behind.
            Err(_) if written == 0 && error.is_no_space() => Ok(()),
            Err((_, second)) => {
                let path = writer.current.path.display();
                Err(self.poison(&format!("{error}, and what that left in {path} could not be erased: {second}")))
            }
        }
    }

    /// Refuses writes from now on and tells everyone who waits. Returns the error to give to the caller.
    fn poison(&self, reason: &str) -> Error {
        let reason = Arc::clone(self.poisoned.get_or_init(|| Arc::from(reason)));
        // Set before the lists are emptied: who registers later looks again under the lock and finds it.
        self.wake_all_waiters();
        self.wake_readers();
        self.wake_preparer();
        Error::Poisoned { reason }
    }

    /// Wakes the readers that wait for more. The flag is read after `appended` was stored, and a reader looks at
    /// `appended` again after it set the flag: one of them sees the other.
    fn wake_readers(&self) {
        if self.readers_wait.load(SeqCst) {
            let wakers = {
                let mut readers = self.readers.lock().unwrap_or_else(|poison| poison.into_inner());
                self.readers_wait.store(false, SeqCst);
                std::mem::take(&mut *readers)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    fn wake_preparer(&self) {
        let waker = self.prepare_waker.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some(waker) = waker.as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Ready {
    fn into_segment(self, previous_end: WalPosition, end: u32) -> Segment {
        let Ready { number, path, file, capacity } = self;
        let end = AtomicU32::new(end);
        let (header_durable, retired) = (AtomicBool::new(false), AtomicBool::new(false));
        Segment { number, path, file, capacity, previous_end, end, header_durable, retired }
    }
}

/// Adds the frame of one record to the writer's buffer, and returns its length.
fn frame(
    writer: &mut Writer,
    place: Place,
    offset: u32,
    synced: WalPosition,
    kind: RecordKind,
    parts: &[&[u8]],
) -> u32 {
    let buffer = &mut writer.buffer;
    let header_at = buffer.len();
    let payload_at = header_at + RECORD_HEADER_LEN as usize;
    buffer.extend_from_slice(&[0; RECORD_HEADER_LEN as usize]);
    for part in parts {
        buffer.extend_from_slice(part);
    }
    let payload_len = u32::try_from(buffer.len() - payload_at).expect("append checked the length");
    let payload_crc = crc_fast::crc32_iscsi(&buffer[payload_at..]);
    let header = RecordHeader { kind, generation: writer.generation, payload_len, payload_crc, synced };
    buffer[header_at..payload_at].copy_from_slice(&header.encode(place, offset));
    let len = framed_len(payload_len);
    buffer.resize(header_at + len as usize, 0);
    len
}

/// Writes all of `data`; on an error, how many bytes were written before it.
fn write_counted(file: &dyn File, data: &[u8], offset: u64) -> std::result::Result<(), (usize, io::Error)> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => return Err((done, io::Error::new(io::ErrorKind::WriteZero, "the file took no more bytes"))),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}
