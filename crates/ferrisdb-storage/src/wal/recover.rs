//! Decides what of a WAL directory is the log: a pure function of the directory, which changes nothing.
//!
//! [`survey`] says which segments form the log, where it ends, and what is left over; [`Wal::open`](super::Wal::open) acts on
//! it, and a read-only open only looks.
//!
//! # Which segments
//! The intact segment header with the highest number is the head. Each header names the segment before it and the offset at
//! which the log leaves that segment, so the log is the chain from the head backwards. Whatever is not on the chain was
//! prepared but never used, lost its header before that was synced, or was cut off; none of its records count.
//! A chain that ends at a file that does not exist ends at the purge point, for segments are purged from the front, one durable step
//! after another. Before the position from which the owner needs records everything may be missing or lost in any order
//! ([`Wal::purge_stored`](super::Wal::purge_stored)): there the chain goes back as far as it can, so that an open discards nothing that
//! an owner whose own position is not yet durable could ask for again, and nothing there is looked at.
//!
//! # Where it ends
//! The chain is walked from the segment that holds the head's synced mark (all before that is known to be whole and is checked
//! when it is read), or from the first that holds what the owner needs, if that is later. The first place that holds no intact record, short of where the chain says to go on, is the end, provided that no
//! header anywhere behind it, of a record or a segment, says that the WAL was synced beyond it. If one does, something
//! that was durable is gone, and that is [`Error::Corruption`]: nothing is cut. Otherwise a crash tore the tail, and all behind
//! the place is discarded, intact or not, because a record without the one before it is a hole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{
    FORMAT_VERSION, NoHeader, Place, RecordHeader, SEGMENT_HEADER_LEN, SegmentHeader, WalPosition, framed_len,
    parse_segment_file_name, segment_file_name,
};
use super::scan::{Found, Probe, SegmentScan};
use ferrisdb_core::rare::{Rare, reached};

use crate::error::{Error, Result};
use crate::fs::{File, FileSystem, OpenMode, read_exact_at};
use crate::planted::{Bug, planted};

/// The unfinished end of a log, cut off at open. Nothing in it was ever acknowledged as synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment that holds the cut.
    pub file: PathBuf,
    /// Where it was cut, in bytes.
    pub offset: u32,
    /// What ended the log there.
    pub what: &'static str,
    /// Intact record headers behind the cut, all discarded.
    pub headers_discarded: u64,
}

/// What was found when a WAL was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The position of the first record that is kept.
    pub first: WalPosition,
    /// True if older segments have been purged: `first` is not where the log once began.
    pub purged: bool,
    /// The end of the log: just behind the last record.
    pub end: WalPosition,
    /// Where to replay from: [`required_from`](super::WalOptions::required_from), or the first record if that is later, or the
    /// end if the log does not reach so far.
    pub replay_from: WalPosition,
    /// Up to where the log itself proves that it was synced.
    pub known_synced: WalPosition,
    /// The segments that form the log.
    pub segments: usize,
    /// The tail that was cut off, if a crash tore it.
    pub torn: Option<TornTail>,
}

/// One segment of the log.
#[derive(Debug)]
pub(super) struct ChainSegment {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    /// Where the log leaves it (its end, for the last one).
    pub(super) end: u32,
}

/// What a WAL directory holds.
#[derive(Debug)]
pub(super) struct Survey {
    /// The log, oldest segment first.
    pub(super) chain: Vec<ChainSegment>,
    /// Numbers of the files that are not part of it, and whether they have an intact header.
    pub(super) spare: Vec<(u32, bool)>,
    /// The highest number in use by any file.
    pub(super) highest: u32,
    /// A generation above that of every record header in the last segment, or `None` if there is none left.
    pub(super) next_generation: Option<u16>,
    /// What to tell the owner.
    pub(super) recovery: Recovery,
}

/// How much of a file without a header is searched for records. A segment that was used begins with one, so this finds something in any
/// that lost its header after use, unless it begins with a longer record whose header is lost too.
const UNUSED_SEARCH_BYTES: u64 = 1 << 20;

/// Reads the directory and decides. A file that cannot be read is an error, never a torn tail.
pub(super) fn survey(fs: &dyn FileSystem, dir: &Path, identity: u64, required_from: WalPosition) -> Result<Survey> {
    let files = read_headers(fs, dir, identity)?;
    let chain = files.find_chain(dir, required_from)?;
    files.check_required(dir, &chain, required_from)?;
    let mut survey = files.find_end(chain, required_from)?;
    let end_of = |segment: &ChainSegment| WalPosition::new(segment.header.number, segment.end);
    let recovery = &mut survey.recovery;
    if let Some(segment) = survey.chain.iter().find(|segment| end_of(segment) >= required_from) {
        recovery.replay_from = required_from.max(WalPosition::new(segment.header.number, SEGMENT_HEADER_LEN));
    } else {
        recovery.replay_from = recovery.end;
    }
    if recovery.end < required_from {
        // The owner stored what the records had said before they were synced, and a crash took them. New records must not lie
        // below the position from which it will replay: go on in a segment above it.
        survey.next_generation = None;
    }
    Ok(survey)
}

struct SegmentFile {
    file: Arc<dyn File>,
    path: PathBuf,
    /// `None` for a file without an intact header of its own number.
    header: Option<SegmentHeader>,
}

struct Files {
    identity: u64,
    by_number: BTreeMap<u32, SegmentFile>,
}

fn read_headers(fs: &dyn FileSystem, dir: &Path, identity: u64) -> Result<Files> {
    let mut by_number = BTreeMap::new();
    for path in fs.list(dir).map_err(|error| Error::io("list", dir, error))? {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(number) = name.and_then(parse_segment_file_name) else { continue };
        let path = dir.join(segment_file_name(number));
        let file = fs.open(&path, OpenMode::Read).map_err(|error| Error::io("open", &path, error))?;
        let header = match read_segment_header(file.as_ref(), &path)? {
            // The number of an earlier life: the file was recycled, but not yet used again.
            Ok(header) if header.number != number => None,
            Ok(header) if header.identity != identity => {
                let what = format!("the segment belongs to WAL {:#x}, not {identity:#x}", header.identity);
                return Err(Error::corruption(path, 0, what));
            }
            Ok(header) => Some(header),
            Err(NoHeader::Bad) => None,
            Err(NoHeader::TooNew(found)) => {
                return Err(Error::FormatTooNew { file: path, found, supported: FORMAT_VERSION });
            }
        };
        by_number.insert(number, SegmentFile { file, path, header });
    }
    Ok(Files { identity, by_number })
}

/// A header, or why there is none.
type HeaderRead = std::result::Result<SegmentHeader, NoHeader>;

/// Reads a segment's header. A file too short for one has none.
pub(super) fn read_segment_header(file: &dyn File, path: &Path) -> Result<HeaderRead> {
    let mut bytes = [0; SEGMENT_HEADER_LEN as usize];
    match read_exact_at(file, &mut bytes, 0) {
        Ok(()) => Ok(SegmentHeader::decode(&bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Err(NoHeader::Bad)),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

impl Files {
    fn scan(&self, number: u32) -> SegmentScan {
        let file = &self.by_number[&number];
        let place = Place { identity: self.identity, segment: number };
        SegmentScan::new(Arc::clone(&file.file), file.path.clone(), place)
    }

    fn header(&self, number: u32) -> Option<SegmentHeader> {
        self.by_number.get(&number).and_then(|file| file.header)
    }

    /// The greatest synced mark in the files with numbers above `above`; an error if one of them lost a header that was synced.
    fn synced_in_files_above(&self, above: u32) -> Result<Found> {
        let mut sum = Found::default();
        for (&number, file) in self.by_number.range(above.saturating_add(1)..) {
            let mut scan = self.scan(number);
            let mut found = scan.search(0, UNUSED_SEARCH_BYTES)?;
            if file.header.is_some() || found.headers > 0 {
                found = scan.search(0, u64::MAX)?;
            }
            sum.headers += found.headers;
            sum.synced =
                sum.synced.max(found.synced).max(file.header.map_or(WalPosition::ZERO, |header| header.synced));
        }
        // The mark may stand in another file than the one that it speaks of.
        let witness = sum.synced.segment();
        if let Some(file) = self.by_number.get(&witness)
            && witness > above
            && file.header.is_none()
        {
            return Err(Error::corruption(&file.path, 0, "segment header: it was synced, and is damaged"));
        }
        Ok(sum)
    }

    /// The numbers of the segments that form the log, oldest first; empty if there is no intact header.
    fn find_chain(&self, dir: &Path, required_from: WalPosition) -> Result<Vec<u32>> {
        let intact = || self.by_number.iter().filter(|(_, file)| file.header.is_some()).map(|(&number, _)| number);
        'head: for head in intact().rev() {
            let mut chain = vec![head];
            let mut first = head;
            loop {
                let previous_end = self.header(first).expect("only intact headers are on the chain").previous_end;
                let previous = previous_end.segment();
                if previous == 0 {
                    break;
                }
                if self.header(previous).is_some() {
                    chain.push(previous);
                    first = previous;
                    continue;
                }
                if previous_end <= required_from {
                    // What the owner no longer needs may be purged in any order, and need never have been synced.
                    break;
                }
                if self.by_number.contains_key(&previous) {
                    // Its header was lost: before it was synced, and then all behind it is void; or afterwards.
                    let found = self.synced_in_files_above(previous - 1)?;
                    if found.synced >= WalPosition::new(previous, SEGMENT_HEADER_LEN) {
                        let what = "segment header: it was synced, and is damaged";
                        return Err(Error::corruption(&self.by_number[&previous].path, 0, what));
                    }
                    continue 'head;
                }
                if intact().any(|number| number < first && !chain.contains(&number)) {
                    // Something older is there, so the purge did not get this far.
                    return Err(Error::MissingFile { file: dir.join(segment_file_name(previous)) });
                }
                break;
            }
            chain.reverse();
            return Ok(chain);
        }
        self.synced_in_files_above(0)?;
        Ok(Vec::new())
    }

    /// What the owner still needs must be there.
    fn check_required(&self, dir: &Path, chain: &[u32], required_from: WalPosition) -> Result<()> {
        let needed = required_from.segment();
        let first = chain.first().copied().or_else(|| self.by_number.last_key_value().map(|(&number, _)| number));
        // A position at the end of a segment means the next one, which the chain names.
        let at_end_of_purged = |first| self.header(first).is_some_and(|header| required_from >= header.previous_end);
        let highest = self.by_number.last_key_value().map_or(0, |(&number, _)| number);
        match first {
            _ if needed == 0 => Ok(()),
            Some(first) if needed <= highest && (first <= needed || at_end_of_purged(first)) => Ok(()),
            _ => Err(Error::MissingFile { file: dir.join(segment_file_name(needed)) }),
        }
    }

    fn find_end(self, mut numbers: Vec<u32>, required_from: WalPosition) -> Result<Survey> {
        let headers: Vec<SegmentHeader> = numbers.iter().filter_map(|&number| self.header(number)).collect();
        let known_synced = headers.last().map_or(WalPosition::ZERO, |header| header.synced);
        let ends: Vec<u32> = headers.iter().skip(1).map(|header| header.previous_end.offset()).collect();
        let mut torn = None;
        let mut next_generation = None;
        let mut last_end = 0;
        let synced = numbers.partition_point(|&number| number < known_synced.segment());
        // Segments that the owner no longer needs may have been let go without a sync: a tear there is not the end of the log.
        let unneeded = headers.iter().skip(1).take_while(|next| next.previous_end <= required_from).count();
        let start = synced.max(unneeded);
        for index in start..numbers.len() {
            let walk = walk(&mut self.scan(numbers[index]), ends.get(index).copied())?;
            if walk.bad.is_none() && index + 1 < numbers.len() {
                continue;
            }
            // Here the log ends, if nothing behind says otherwise.
            let end = WalPosition::new(numbers[index], walk.end);
            let mut scan = self.scan(numbers[index]);
            let mut here = Found::default();
            // Headers of an older generation are what an earlier recovery has discarded already.
            let mut live = 0;
            scan.search_each(walk.end, u64::MAX, |_, found| {
                here.add(found);
                live += u64::from(found.generation >= walk.generation);
            })?;
            let later = self.synced_in_files_above(numbers[index])?;
            let (what, header) = walk.bad.unwrap_or(("the end of the segment", None));
            let was_synced = known_synced.max(here.synced).max(later.synced) > end;
            if was_synced && !planted(Bug::CorruptionIsATornTail) {
                let what = format!("{what}, though the WAL was synced beyond it");
                return Err(Error::corruption(scan.path(), u64::from(walk.end), what));
            }
            let headers_discarded = live + later.headers;
            if header.is_some() || headers_discarded > 0 || index + 1 < numbers.len() {
                reached(Rare::TornTail);
                torn = Some(TornTail { file: scan.path().clone(), offset: walk.end, what, headers_discarded });
            }
            next_generation = here.generation.max(walk.generation).checked_add(1);
            last_end = walk.end;
            numbers.truncate(index + 1);
            break;
        }
        Ok(self.finish(&numbers, &ends, last_end, known_synced, next_generation, torn))
    }

    fn finish(
        mut self,
        numbers: &[u32],
        ends: &[u32],
        last_end: u32,
        known_synced: WalPosition,
        next_generation: Option<u16>,
        torn: Option<TornTail>,
    ) -> Survey {
        let highest = self.by_number.last_key_value().map_or(0, |(&number, _)| number);
        let mut chain = Vec::new();
        for (index, &number) in numbers.iter().enumerate() {
            let SegmentFile { file, path, header } = self.by_number.remove(&number).expect("the chain names files");
            let header = header.expect("only intact headers are on the chain");
            let end = if index + 1 < numbers.len() { ends[index] } else { last_end };
            chain.push(ChainSegment { header, path, file, end });
        }
        let first = chain.first().map_or(WalPosition::ZERO, |_| WalPosition::new(numbers[0], SEGMENT_HEADER_LEN));
        let end = chain.last().map_or(WalPosition::ZERO, |last| WalPosition::new(last.header.number, last.end));
        let spare = self.by_number.iter().map(|(&number, file)| (number, file.header.is_some())).collect();
        let purged = chain.first().is_some_and(|first| first.header.previous_end > WalPosition::ZERO);
        let segments = chain.len();
        let recovery = Recovery { first, purged, end, replay_from: first, known_synced, segments, torn };
        Survey { chain, spare, highest, next_generation, recovery }
    }
}

struct Walk {
    /// Behind the last record that is intact and in order.
    end: u32,
    /// The generation of that record.
    generation: u16,
    /// What ends the walk before `expected_end`, with the header found there if that is intact.
    bad: Option<(&'static str, Option<RecordHeader>)>,
}

/// Follows the records of a segment until `expected_end`, or, without one, until something is not a record.
fn walk(scan: &mut SegmentScan, expected_end: Option<u32>) -> Result<Walk> {
    let mut walk = Walk { end: SEGMENT_HEADER_LEN, generation: 0, bad: None };
    while Some(walk.end) != expected_end {
        let header = match scan.probe(walk.end, u64::from(u32::MAX))? {
            Probe::Bad { .. } if planted(Bug::TornTailKeptAfterHole) && scan.next_intact(walk.end)?.is_some() => {
                walk.end = scan.next_intact(walk.end)?.unwrap_or(walk.end);
                continue;
            }
            Probe::Bad { what, header } => {
                walk.bad = Some((what, header));
                break;
            }
            // Left over from before a failed write or a recovery at this place, and overtaken since.
            Probe::Record(header) if header.generation < walk.generation => {
                walk.bad = Some(("a record of an older generation", None));
                break;
            }
            Probe::Record(header) => header,
        };
        let end = walk.end + framed_len(header.payload_len);
        if expected_end.is_some_and(|expected| end > expected) {
            walk.bad = Some(("a record runs past the segment's end as the next segment states it", Some(header)));
            break;
        }
        walk.generation = header.generation;
        walk.end = end;
    }
    Ok(walk)
}
