//! Everything that changes which files there are: opening, preparing segments ahead, purging, truncating.
//!
//! All of it happens under the `maintenance` lock, which is held across I/O and which the append path takes only when it
//! has no segment to go on with.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;

use super::format::{RECORD_HEADER_LEN, SEGMENT_HEADER_LEN, SegmentHeader, WalPosition, framed_len, segment_file_name};
use super::recover::{self, Recovery};
use super::scan::{Probe, SegmentScan};
use super::sync::{SyncClaim, Waiters};
use super::{Inner, OPEN_END, Ready, Segment, Wal, WalOptions, Writer};
use crate::error::{Error, Result};
use crate::fs::{File, FileSystem, OpenMode, read_exact_at, write_all_at};
use crate::planted::{Bug, planted};

/// How much one step of filling a fresh segment writes and syncs: little, because the log's own syncs wait behind it on the disk.
const FILL_STEP_BYTES: u32 = 256 << 10;

/// The first segment of a new log has this part of a segment's bytes if segments are filled, for opening waits until it is.
const FILLED_FIRST_PART: u32 = 4;

/// How much of an unsynced tail is written again at once.
const REWRITE_BYTES: u32 = 1 << 20;

/// What [`Wal::prepare_step`] has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrepareStep {
    /// Call again.
    Again,
    /// A segment is ready, or it is early for one ([`WalOptions::prepare_from`]); nothing to do until the waker given to [`Wal::set_prepare_waker`] is woken.
    Idle,
}

#[derive(Default)]
pub(super) struct Maintenance {
    /// The highest number that any file has or had. A file is given a number above it before it is used, or used again.
    highest: u32,
    /// Durable files that wait for a new number.
    spares: Vec<Ready>,
    /// A fresh file that is being filled with zeros, and how far.
    filling: Option<(Ready, u32)>,
    /// Segments behind a truncation. They are gone before anything is purged: purging relies on the files in front being the log's.
    cut_off: Vec<Arc<Segment>>,
}

impl Maintenance {
    pub(super) fn spare_bytes(&self) -> u64 {
        let filling = self.filling.iter().map(|(ready, _)| ready);
        let files: u64 = self.spares.iter().chain(filling).map(|ready| u64::from(ready.capacity)).sum();
        files + self.cut_off.iter().map(|segment| u64::from(segment.capacity)).sum::<u64>()
    }

    fn next_number(&mut self, dir: &Path) -> Result<u32> {
        let number = self.highest.checked_add(1).ok_or_else(|| {
            Error::corruption(dir, 0, "segment numbers are used up, which 2^32 segments cannot have done")
        })?;
        self.highest = number;
        Ok(number)
    }
}

/// [`Wal::open`], with valid options.
///
/// The survey has decided; what follows makes it so, in an order in which a crash at any point leads to the same decision:
/// the kept tail is written again and synced, so that what the page cache showed is what the disk holds even if an
/// earlier process lost a sync; the bad place behind it is zeroed; and no file keeps a number under which discarded
/// records in it would be valid. Only then is anything appended.
pub(super) fn open(fs: Arc<dyn FileSystem>, dir: &Path, options: WalOptions) -> Result<(Wal, Recovery)> {
    if !fs.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
        fs.create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
    }
    let survey = recover::survey(fs.as_ref(), dir, options.identity, options.required_from)?;
    // The names that we see may be all that a process left that died, or failed, before it synced them. What is written from now on
    // must not be lost with them, and no rename may be undone once a file is used for something else.
    if !planted(Bug::NamesFoundNotSynced) {
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs.sync_dir(parent).map_err(|error| Error::io("sync", parent, error))?;
        }
        fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
    }
    let mut recovery = survey.recovery;
    let mut maintenance = Maintenance { highest: survey.highest, ..Maintenance::default() };

    let is_new = survey.chain.is_empty();
    let mut chain = VecDeque::new();
    let last = survey.chain.len().saturating_sub(1);
    for (index, kept) in survey.chain.into_iter().enumerate() {
        let file = fs.open(&kept.path, OpenMode::ReadWrite).map_err(|error| Error::io("open", &kept.path, error))?;
        make_durable(file.as_ref(), &kept.path, kept.header.number, kept.end, recovery.known_synced, index == last)?;
        let len = file.len().map_err(|error| Error::io("read the length of", &kept.path, error))?;
        let capacity = u32::try_from(len).unwrap_or(u32::MAX).min(OPEN_END - 1);
        let ready = Ready { number: kept.header.number, path: kept.path, file, capacity };
        let end = if index == last { OPEN_END } else { kept.end };
        let segment = ready.into_segment(kept.header.previous_end, end);
        segment.header_durable.store(true, SeqCst);
        chain.push_back(Arc::new(segment));
    }

    let mut ready = reuse_spares(fs.as_ref(), dir, &options, &mut maintenance, &survey.spare)?;
    if is_new {
        let first = match ready.pop_front() {
            Some(first) => first,
            None if options.fill => {
                let first = create(
                    fs.as_ref(),
                    dir,
                    (options.segment_bytes / FILLED_FIRST_PART).max(1 << 10),
                    &mut maintenance,
                )?;
                fill(&first, 0, first.capacity)?;
                first
            }
            None => create(fs.as_ref(), dir, options.segment_bytes, &mut maintenance)?,
        };
        let (identity, number) = (options.identity, first.number);
        let header = SegmentHeader { identity, number, previous_end: WalPosition::ZERO, synced: WalPosition::ZERO };
        write_all_at(first.file.as_ref(), &header.encode(), 0)
            .map_err(|error| Error::io("write to", &first.path, error))?;
        first.file.sync_all().map_err(|error| Error::io("sync", &first.path, error))?;
        fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        let segment = first.into_segment(WalPosition::ZERO, OPEN_END);
        segment.header_durable.store(true, SeqCst);
        recovery.first = segment.start();
        recovery.end = segment.start();
        recovery.replay_from = segment.start();
        recovery.segments = 1;
        chain.push_back(Arc::new(segment));
    }

    let current = Arc::clone(chain.back().expect("one was just added if there was none"));
    let generation = if is_new { Some(0) } else { survey.next_generation };
    let writer = Writer {
        current,
        offset: recovery.end.offset(),
        header_written: true,
        generation: generation.unwrap_or(0),
        must_switch: generation.is_none(),
        prepare_asked: false,
        buffer: Vec::new(),
        ready,
        passed_over: Vec::new(),
        unsynced: Vec::new(),
    };
    writer.check();
    let end = recovery.end.to_u64();
    let inner = Inner {
        fs,
        dir: dir.to_path_buf(),
        options,
        maintenance: Mutex::new(maintenance),
        writer: Mutex::new(writer),
        chain: Mutex::new(chain),
        sync: Mutex::new(Waiters::default()),
        file_sync: Mutex::new(()),
        appended: AtomicU64::new(end),
        synced: AtomicU64::new(end),
        poisoned: OnceLock::new(),
        readers: Mutex::new(Vec::new()),
        readers_wait: AtomicBool::new(false),
        prepare_waker: Mutex::new(None),
    };
    Ok((Wal { inner: Arc::new(inner) }, recovery))
}

/// Makes the part of a kept segment durable that is not known to be: from the synced mark to `end`.
///
/// Reading it proves only what the page cache holds. After a failed sync the kernel may have marked pages clean that never
/// reached the disk; a sync now would then do nothing and succeed. Writing the same bytes again makes them dirty.
fn make_durable(file: &dyn File, path: &Path, number: u32, end: u32, synced: WalPosition, is_last: bool) -> Result<()> {
    if number < synced.segment() {
        return Ok(());
    }
    let mut at = if number == synced.segment() { synced.offset().min(end) } else { 0 };
    let mut buffer = Vec::new();
    while at < end {
        buffer.resize((end - at).min(REWRITE_BYTES) as usize, 0);
        read_exact_at(file, &mut buffer, u64::from(at)).map_err(|error| Error::io("read", path, error))?;
        write_all_at(file, &buffer, u64::from(at)).map_err(|error| Error::io("write to", path, error))?;
        at += (end - at).min(REWRITE_BYTES);
    }
    if is_last {
        // What stopped the walk must stop every later one, until it is overwritten.
        let len = file.len().map_err(|error| Error::io("read the length of", path, error))?;
        let room = len.saturating_sub(u64::from(end)).min(u64::from(RECORD_HEADER_LEN));
        let zeros = [0; RECORD_HEADER_LEN as usize];
        write_all_at(file, &zeros[..usize::try_from(room).expect("at most a header")], u64::from(end))
            .map_err(|error| Error::io("write to", path, error))?;
    }
    file.sync_all().map_err(|error| Error::io("sync", path, error))
}

/// Gives the files that are not part of the log numbers that none of their records is valid under, or removes them.
///
/// Highest first, and durably one by one where a header names the segment before: a cut-off segment must not be seen
/// without its predecessor, which would look like a lost file.
fn reuse_spares(
    fs: &dyn FileSystem,
    dir: &Path,
    options: &WalOptions,
    maintenance: &mut Maintenance,
    spares: &[(u32, bool)],
) -> Result<VecDeque<Ready>> {
    let mut ready = VecDeque::new();
    if spares.is_empty() {
        return Ok(ready);
    }
    let second_names = if planted(Bug::SecondNameReused) { BTreeSet::new() } else { second_names(fs, dir, spares)? };
    for &(number, has_header) in spares.iter().rev() {
        let path = dir.join(segment_file_name(number));
        let file = fs.open(&path, OpenMode::ReadWrite).map_err(|error| Error::io("open", &path, error))?;
        let len = file.len().map_err(|error| Error::io("read the length of", &path, error))?;
        let capacity = options.segment_bytes;
        let reusable = len <= u64::from(capacity) && !second_names.contains(&number);
        if ready.len() < options.recycle_max && reusable {
            // It may have been left half prepared.
            match file.allocate(u64::from(capacity)).map_err(|error| Error::io("allocate", &path, error)) {
                Ok(()) => {
                    file.sync_all().map_err(|error| Error::io("sync", &path, error))?;
                    let spare = Ready { number, path, file, capacity };
                    ready.push_back(renumber(fs, dir, maintenance, spare).map_err(|(_, error)| error)?);
                    if has_header {
                        fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
                    }
                    continue;
                }
                Err(error) if error.is_no_space() => {}
                Err(error) => return Err(error),
            }
        }
        fs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        if has_header {
            fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        }
    }
    fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
    Ok(ready)
}

/// The spares that may be another file under a second name: a crash in the middle of a rename may leave both. Written to under
/// one name, they would change under the other, be it a part of the log or another spare.
///
/// The header of an earlier life tells whose second name a spare may be. Among spares without one, each gets its own number
/// written where a header would be, and those that then hold another's are not files of their own. Headers that count are not touched;
/// and names are durable by now, or a mark could turn up in a segment of the log whose renaming a crash undoes.
fn second_names(fs: &dyn FileSystem, dir: &Path, spares: &[(u32, bool)]) -> Result<BTreeSet<u32>> {
    let mut second = BTreeSet::new();
    let mut marked = Vec::new();
    for &(number, _) in spares.iter().filter(|(_, has_header)| !has_header) {
        let path = dir.join(segment_file_name(number));
        let file = fs.open(&path, OpenMode::ReadWrite).map_err(|error| Error::io("open", &path, error))?;
        if let Ok(header) = recover::read_segment_header(file.as_ref(), &path)? {
            let first = dir.join(segment_file_name(header.number));
            if fs.exists(&first).map_err(|error| Error::io("look for", &first, error))? {
                second.insert(number);
                continue;
            }
        }
        marked.push((number, path, file));
    }
    if marked.len() < 2 {
        return Ok(second);
    }
    let mark = |number: u32| u64::from(number).to_le_bytes();
    for (number, path, file) in &marked {
        match write_all_at(file.as_ref(), &mark(*number), 0).map_err(|error| Error::io("write to", path, error)) {
            Ok(()) => {}
            Err(error) if error.is_no_space() => drop(second.insert(*number)),
            Err(error) => return Err(error),
        }
    }
    for (number, path, file) in &marked {
        let mut found = [0; 8];
        let own = match read_exact_at(file.as_ref(), &mut found, 0) {
            Ok(()) => found == mark(*number),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(Error::io("read", path, error)),
        };
        if !own {
            second.insert(*number);
        }
    }
    Ok(second)
}

/// Creates a file of `capacity` bytes under the next number. Neither it nor its name is durable yet.
fn create(fs: &dyn FileSystem, dir: &Path, capacity: u32, maintenance: &mut Maintenance) -> Result<Ready> {
    let number = maintenance.next_number(dir)?;
    let path = dir.join(segment_file_name(number));
    let file = fs.open(&path, OpenMode::CreateNew).map_err(|error| Error::io("create", &path, error))?;
    match file.allocate(u64::from(capacity)) {
        Ok(()) => Ok(Ready { number, path, file, capacity }),
        Err(error) => {
            // If this fails too, the file stays as one that the next open finds useless and removes; the number is not used again.
            let removed = fs.remove_file(&path);
            drop(removed);
            Err(Error::io("allocate", &path, error))
        }
    }
}

/// Writes zeros, so that the file system need not note with a later sync that a block has been written for the first time.
fn fill(ready: &Ready, from: u32, bytes: u32) -> Result<()> {
    let zeros = vec![0; bytes as usize];
    write_all_at(ready.file.as_ref(), &zeros, u64::from(from)).map_err(|error| Error::io("fill", &ready.path, error))
}

/// Renames a file to the next number. Durable with the next sync of the directory. On an error the file is given back as it was.
fn renumber(
    fs: &dyn FileSystem,
    dir: &Path,
    maintenance: &mut Maintenance,
    spare: Ready,
) -> std::result::Result<Ready, (Ready, Error)> {
    let number = match maintenance.next_number(dir) {
        Ok(number) => number,
        Err(error) => return Err((spare, error)),
    };
    let path = dir.join(segment_file_name(number));
    match fs.rename(&spare.path, &path) {
        Ok(()) => Ok(Ready { number, path, ..spare }),
        Err(error) => {
            let error = Error::io("rename", &spare.path, error);
            Err((spare, error))
        }
    }
}

impl Wal {
    /// Does a bounded part of preparing the next segment, so that appends need not. For a background job; an error other than
    /// [`Error::Poisoned`] is worth another try later, and appends prepare for themselves meanwhile.
    pub fn prepare_step(&self) -> Result<PrepareStep> {
        self.inner.prepare_step()
    }

    /// Sets the waker of the job that calls [`prepare_step`](Self::prepare_step): woken when a ready segment has been taken.
    pub fn set_prepare_waker(&self, waker: Waker) {
        *self.inner.prepare_waker.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(waker);
    }

    /// Lets go of all segments that hold no record at or above `below`; the one being appended to stays. Each is gone durably
    /// before the next is touched, oldest first. Returns the new first position.
    pub fn purge(&self, below: WalPosition) -> Result<WalPosition> {
        self.inner.purge(below)?;
        Ok(self.first_position())
    }

    /// [`purge`](Self::purge) for an owner that has durably stored `below`, or a later position, as its
    /// [`required_from`](WalOptions::required_from): then nothing before it matters to any later open, so the segments go whether they
    /// were ever synced or not, all with one sync of the directory. What a buffered load has appended and flushed elsewhere need
    /// so never be written to disk: a recycled segment is overwritten in memory.
    pub fn purge_stored(&self, below: WalPosition) -> Result<WalPosition> {
        self.inner.purge_stored(below)?;
        Ok(self.first_position())
    }

    /// Removes segments that wait to be used, prepared or recycled, down to `keep`: for a log that nobody is writing to, whose space
    /// is better spent on data. They come back as they are needed.
    pub fn trim(&self, keep: usize) -> Result<()> {
        self.inner.trim(keep)
    }

    /// Drops the record at `position` and all behind it, durably. Later records lie at higher positions than any that was dropped.
    /// Takes the sync claim, because no sync may run meanwhile; what is kept is durable too afterwards.
    ///
    /// # Errors
    /// [`Error::PositionNotInWal`] if `position` is neither a position in the log nor its end. [`Error::NoSpace`]: nothing was
    /// dropped. Any failure later than that poisons.
    pub fn truncate_from(&self, claim: SyncClaim, position: WalPosition) -> Result<()> {
        self.inner.truncate(claim, position, false)
    }

    /// [`truncate_from`](Self::truncate_from) the record behind the one at `position`, which is kept.
    pub fn truncate_after(&self, claim: SyncClaim, position: WalPosition) -> Result<()> {
        self.inner.truncate(claim, position, true)
    }
}

impl Inner {
    /// Sees to it that a segment of at least `capacity` bytes is ready.
    pub(super) fn make_ready(&self, capacity: u32) -> Result<()> {
        let mut maintenance = self.maintenance();
        self.make_ready_locked(&mut maintenance, capacity)
    }

    fn make_ready_locked(&self, maintenance: &mut Maintenance, capacity: u32) -> Result<()> {
        self.check_poisoned()?;
        if self.collect_passed_over(maintenance, capacity) {
            return Ok(());
        }
        if let Some((ready, _)) = maintenance.filling.take() {
            // Zeros are a favour to later syncs; an append does not wait for them.
            self.sync_file(&ready)?;
            if ready.capacity >= capacity && ready.number == maintenance.highest {
                self.sync_names()?;
                self.publish(ready);
                return Ok(());
            }
            maintenance.spares.push(ready);
        }
        if self.ready_from_spare(maintenance, capacity)? {
            return Ok(());
        }
        let capacity = capacity.max(self.options.segment_bytes);
        let ready = create(self.fs.as_ref(), &self.dir, capacity, maintenance)?;
        self.sync_file(&ready)?;
        self.sync_names()?;
        self.publish(ready);
        Ok(())
    }

    fn prepare_step(&self) -> Result<PrepareStep> {
        let mut maintenance = self.maintenance();
        self.check_poisoned()?;
        self.discard_cut_off(&mut maintenance)?;
        if let Some((ready, filled)) = maintenance.filling.take() {
            let step = (ready.capacity - filled).min(FILL_STEP_BYTES);
            if step == 0 {
                self.sync_file(&ready)?;
                self.sync_names()?;
                self.publish(ready);
                return Ok(PrepareStep::Idle);
            }
            let written = fill(&ready, filled, step).and_then(|()| self.sync_file(&ready));
            maintenance.filling = Some((ready, filled + if written.is_ok() { step } else { 0 }));
            return written.map(|()| PrepareStep::Again);
        }
        let early = self.options.prepare_from > 0 && !self.writer().prepare_asked;
        if self.collect_passed_over(&mut maintenance, 0) || early {
            return Ok(PrepareStep::Idle);
        }
        if self.ready_from_spare(&mut maintenance, 0)? {
            return Ok(PrepareStep::Idle);
        }
        let ready = create(self.fs.as_ref(), &self.dir, self.options.segment_bytes, &mut maintenance)?;
        let filled = if self.options.fill { 0 } else { ready.capacity };
        maintenance.filling = Some((ready, filled));
        Ok(PrepareStep::Again)
    }

    /// Takes over what appends left behind. True if a segment of at least `capacity` bytes is ready.
    fn collect_passed_over(&self, maintenance: &mut Maintenance, capacity: u32) -> bool {
        let mut writer = self.writer();
        let passed_over = std::mem::take(&mut writer.passed_over);
        maintenance.spares.extend(passed_over);
        writer.ready.iter().any(|ready| ready.capacity >= capacity)
    }

    fn ready_from_spare(&self, maintenance: &mut Maintenance, capacity: u32) -> Result<bool> {
        let Some(index) = maintenance.spares.iter().position(|spare| spare.capacity >= capacity) else {
            return Ok(false);
        };
        let spare = maintenance.spares.remove(index);
        match renumber(self.fs.as_ref(), &self.dir, maintenance, spare) {
            Ok(ready) => {
                self.sync_names()?;
                self.publish(ready);
                Ok(true)
            }
            Err((spare, error)) => {
                maintenance.spares.push(spare);
                Err(error)
            }
        }
    }

    fn publish(&self, ready: Ready) {
        let mut writer = self.writer();
        writer.ready.push_back(ready);
        writer.check();
    }

    fn sync_file(&self, ready: &Ready) -> Result<()> {
        ready.file.sync_all().map_err(|error| self.poison(&Error::io("sync", &ready.path, error).to_string()))
    }

    fn sync_names(&self) -> Result<()> {
        self.fs.sync_dir(&self.dir).map_err(|error| self.poison(&Error::io("sync", &self.dir, error).to_string()))
    }

    fn purge(&self, below: WalPosition) -> Result<()> {
        let mut maintenance = self.maintenance();
        self.check_poisoned()?;
        self.discard_cut_off(&mut maintenance)?;
        loop {
            let segment = {
                let chain = self.chain();
                let (Some(front), Some(next)) = (chain.front(), chain.get(1)) else { return Ok(()) };
                // Until the next header is durable, this segment is what says where the log begins.
                if below < next.previous_end || !next.header_durable.load(SeqCst) {
                    return Ok(());
                }
                Arc::clone(front)
            };
            let ready = self.recycle(&mut maintenance, &segment, 0)?;
            self.sync_names()?;
            self.chain().pop_front();
            segment.retired.store(true, SeqCst);
            // Only now, so that no reader is left in a segment that is written to.
            if let Some(ready) = ready {
                self.publish(ready);
            }
        }
    }

    fn purge_stored(&self, below: WalPosition) -> Result<()> {
        let mut maintenance = self.maintenance();
        self.check_poisoned()?;
        self.discard_cut_off(&mut maintenance)?;
        let (segments, first) = {
            let chain = self.chain();
            let appended = self.appended();
            // A segment that has been switched to has no header before its first record.
            let may_be_first = |segment: &&Arc<Segment>| segment.previous_end <= below && segment.start() < appended;
            let Some(first) = chain.iter().rev().find(may_be_first) else { return Ok(()) };
            let before = chain.iter().take_while(|segment| segment.number < first.number);
            (before.map(Arc::clone).collect::<Vec<_>>(), Arc::clone(first))
        };
        if segments.is_empty() {
            return Ok(());
        }
        if !first.header_durable.load(SeqCst) {
            // Not those before it: whoever opens begins here. Nor does this say anything of what lies behind its header, so the
            // synced position stays.
            self.sync_file_of(&first)?;
        }
        let mut recycled = Vec::new();
        let mut result = Ok(());
        for segment in &segments {
            match self.recycle(&mut maintenance, segment, recycled.len()) {
                Ok(ready) => recycled.push((segment, ready)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // Until the names are durable a file may come back under its old one, so none is used before.
        self.sync_names()?;
        for (segment, ready) in recycled {
            self.chain().pop_front();
            segment.retired.store(true, SeqCst);
            self.writer().unsynced.retain(|unsynced| unsynced.number != segment.number);
            if let Some(ready) = ready {
                self.publish(ready);
            }
        }
        result
    }

    fn trim(&self, keep: usize) -> Result<()> {
        let mut maintenance = self.maintenance();
        self.check_poisoned()?;
        let mut unneeded = std::mem::take(&mut maintenance.spares);
        // From the back: ready segments stay numbered in the order of their use.
        let mut writer = self.writer();
        let at = keep.min(writer.ready.len());
        unneeded.extend(writer.ready.drain(at..));
        writer.prepare_asked = false;
        drop(writer);
        let mut result = Ok(());
        for file in unneeded {
            if let (Err(error), Ok(())) = (self.fs.remove_file(&file.path), &result) {
                result = Err(Error::io("remove", &file.path, error));
            }
        }
        result
    }

    /// Renames a segment that left the log, to be used again, or removes it. Durable with the next sync of the directory. `unpublished`
    /// others have been renamed before it.
    fn recycle(&self, maintenance: &mut Maintenance, segment: &Segment, unpublished: usize) -> Result<Option<Ready>> {
        let Segment { number, path, file, capacity, .. } = segment;
        let waiting = self.writer().ready.len() + unpublished;
        let kept = waiting + maintenance.spares.len() + usize::from(maintenance.filling.is_some());
        // While one is being filled its number is taken, and the queue of ready segments must stay in order.
        let in_order = maintenance.filling.is_none();
        if kept < self.options.recycle_max && *capacity == self.options.segment_bytes && in_order {
            let spare = Ready { number: *number, path: path.clone(), file: Arc::clone(file), capacity: *capacity };
            return renumber(self.fs.as_ref(), &self.dir, maintenance, spare).map(Some).map_err(|(_, error)| error);
        }
        self.fs.remove_file(path).map_err(|error| Error::io("remove", path, error))?;
        Ok(None)
    }

    /// Gets rid of the segments behind a truncation.
    fn discard_cut_off(&self, maintenance: &mut Maintenance) -> Result<()> {
        while let Some(segment) = maintenance.cut_off.last().map(Arc::clone) {
            let ready = self.recycle(maintenance, &segment, 0)?;
            maintenance.cut_off.pop();
            self.sync_names()?;
            if let Some(ready) = ready {
                self.publish(ready);
            }
        }
        Ok(())
    }

    fn truncate(&self, mut claim: SyncClaim, position: WalPosition, keep_record: bool) -> Result<()> {
        assert!(std::ptr::eq(Arc::as_ptr(&claim.wal().inner), self), "the claim is one of this WAL");
        let mut maintenance = self.maintenance();
        self.discard_cut_off(&mut maintenance)?;
        let boundary = self.boundary(position, keep_record)?;
        loop {
            self.make_ready_locked(&mut maintenance, SEGMENT_HEADER_LEN + RECORD_HEADER_LEN)?;
            let mut writer = self.writer();
            self.check_poisoned()?;
            if boundary >= self.appended() {
                drop(writer);
                claim.sync()?;
                break;
            }
            // An append may just have taken the one that was made.
            let Some(ready) = writer.ready.pop_front() else { continue };
            claim.begin();
            let (cut_off, files) = self.cut(&mut writer, ready, boundary);
            maintenance.cut_off = cut_off;
            let segment = Arc::clone(&writer.current);
            let header = self.header(&segment, self.synced());
            if let Err(error) = write_all_at(segment.file.as_ref(), &header, 0) {
                // The header may be on disk or not: nothing can be appended on either side of the cut.
                return Err(self.poison(&Error::io("truncate", &segment.path, error).to_string()));
            }
            writer.header_written = true;
            let end = segment.start();
            self.appended.store(end.to_u64(), SeqCst);
            drop(writer);
            self.sync_files(&files)?;
            self.sync_files(&[segment])?;
            claim.synced_up_to(end);
            break;
        }
        self.discard_cut_off(&mut maintenance)
    }

    /// Switches to `ready` with the log leaving the chain at `boundary`. Returns the segments behind, and what has to be synced.
    fn cut(&self, writer: &mut Writer, ready: Ready, boundary: WalPosition) -> (Vec<Arc<Segment>>, Vec<Arc<Segment>>) {
        let mut chain = self.chain();
        let keep = chain.partition_point(|segment| segment.number <= boundary.segment());
        let cut_off: Vec<Arc<Segment>> = chain.drain(keep..).collect();
        for segment in &cut_off {
            segment.retired.store(true, SeqCst);
        }
        chain.back().expect("the boundary lies in a segment").end.store(boundary.offset(), SeqCst);
        let segment = Arc::new(ready.into_segment(boundary, OPEN_END));
        chain.push_back(Arc::clone(&segment));
        drop(chain);
        let mut files = std::mem::take(&mut writer.unsynced);
        files.retain(|file| file.number <= boundary.segment());
        writer.current = segment;
        writer.offset = SEGMENT_HEADER_LEN;
        writer.header_written = false;
        writer.generation = 0;
        writer.must_switch = false;
        writer.prepare_asked = false;
        (cut_off, files)
    }

    /// Where to cut: at `position`, or behind the record there.
    fn boundary(&self, position: WalPosition, keep_record: bool) -> Result<WalPosition> {
        let (segment, first) = {
            let chain = self.chain();
            let found = chain.iter().find(|segment| segment.number == position.segment()).map(Arc::clone);
            (found, chain.front().expect("the chain is never empty").start())
        };
        let not_in_wal = Error::PositionNotInWal { position, first, end: self.appended() };
        let Some(segment) = segment else { return Err(not_in_wal) };
        let appended = self.appended();
        let end = match segment.end.load(SeqCst) {
            OPEN_END if appended.segment() == segment.number => appended.offset(),
            OPEN_END => SEGMENT_HEADER_LEN,
            end => end,
        };
        if position == WalPosition::new(segment.number, end) && !keep_record {
            return Ok(position);
        }
        if position >= WalPosition::new(segment.number, end) || position < segment.start() {
            return Err(not_in_wal);
        }
        let mut scan = SegmentScan::new(Arc::clone(&segment.file), segment.path.clone(), self.place(segment.number));
        match scan.probe(position.offset(), u64::from(end))? {
            Probe::Record(_) if !keep_record => Ok(position),
            Probe::Record(header) => {
                Ok(WalPosition::new(segment.number, position.offset() + framed_len(header.payload_len)))
            }
            Probe::Bad { .. } => Err(not_in_wal),
        }
    }
}
