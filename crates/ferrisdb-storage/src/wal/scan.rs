//! Reading one segment: a buffered window over the file, single records, and the search for headers behind a bad place.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{
    ALIGNMENT, Place, RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN, WalPosition, framed_len, is_plausible,
};
use crate::error::{Error, Result};
use crate::fs::File;
use crate::planted::{Bug, planted};

/// How much is read at once. Large enough that a system call is noise beside the checksum, small enough for many readers.
const READ_BYTES: usize = 256 << 10;

/// A window that grew for one large record is given back when it is larger than this and no longer needed.
const WINDOW_KEEP_BYTES: usize = 4 << 20;

/// What stands at an offset.
#[derive(Debug)]
pub(super) enum Probe {
    /// An intact record; its payload is at [`SegmentScan::payload`].
    Record(RecordHeader),
    /// No intact record, and what is wrong.
    Bad {
        what: &'static str,
        /// The header, if at least that is intact.
        header: Option<RecordHeader>,
    },
}

/// What [`SegmentScan::search`] found.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Found {
    /// Intact headers.
    pub(super) headers: u64,
    /// The greatest synced position that one of them names.
    pub(super) synced: WalPosition,
    /// The greatest generation.
    pub(super) generation: u16,
}

impl Found {
    pub(super) fn add(&mut self, header: RecordHeader) {
        self.headers += 1;
        self.synced = self.synced.max(header.synced);
        self.generation = self.generation.max(header.generation);
    }
}

/// Reads one segment through a window of its bytes.
#[derive(Debug)]
pub(super) struct SegmentScan {
    file: Arc<dyn File>,
    path: PathBuf,
    place: Place,
    window: Vec<u8>,
    /// File offset of the window's first byte.
    window_start: u64,
    /// Where the payload of the record last probed lies in the window.
    payload: std::ops::Range<usize>,
}

impl SegmentScan {
    pub(super) fn new(file: Arc<dyn File>, path: PathBuf, place: Place) -> SegmentScan {
        SegmentScan { file, path, place, window: Vec::new(), window_start: 0, payload: 0..0 }
    }

    /// The file, for errors.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The payload of the record that the last [`probe`](Self::probe) found.
    pub(super) fn payload(&self) -> &[u8] {
        &self.window[self.payload.clone()]
    }

    /// Forgets what was read: the file may hold something else by now.
    pub(super) fn forget(&mut self) {
        self.window.clear();
        self.payload = 0..0;
    }

    /// Looks at `offset`. Bytes at or above `limit` are not read: a writer may be writing there.
    pub(super) fn probe(&mut self, offset: u32, limit: u64) -> Result<Probe> {
        let start = u64::from(offset);
        let Some(at) = self.fill(start, RECORD_HEADER_LEN as usize, limit)? else {
            return Ok(Probe::Bad { what: "the segment ends inside a record header", header: None });
        };
        let Some(header) = RecordHeader::decode(&self.window[at..], self.place, offset) else {
            return Ok(Probe::Bad { what: "record header checksum", header: None });
        };
        // The header's own checksum has passed, so its length is what was written and at most 1 GiB; `fill` checks it against
        // the file's length before it allocates.
        let len = framed_len(header.payload_len) as usize;
        let Some(at) = self.fill(start, len, limit)? else {
            return Ok(Probe::Bad { what: "the segment ends inside a record", header: Some(header) });
        };
        let payload_start = at + RECORD_HEADER_LEN as usize;
        self.payload = payload_start..payload_start + header.payload_len as usize;
        if crc_fast::crc32_iscsi(&self.window[self.payload.clone()]) != header.payload_crc
            && !planted(Bug::IgnoreWalChecksum)
        {
            return Ok(Probe::Bad { what: "record payload checksum", header: Some(header) });
        }
        Ok(Probe::Record(header))
    }

    /// Makes `len` bytes from `start` available and returns their index in the window; `None` if they pass `limit` or the end.
    fn fill(&mut self, start: u64, len: usize, limit: u64) -> Result<Option<usize>> {
        let end = start + len as u64;
        if end > limit {
            return Ok(None);
        }
        let window_end = self.window_start + self.window.len() as u64;
        if start >= self.window_start && end <= window_end {
            return Ok(Some(usize::try_from(start - self.window_start).expect("an offset in the window")));
        }
        if len > READ_BYTES {
            let file_len = self.file.len().map_err(|error| Error::io("read the length of", &self.path, error))?;
            if end > file_len {
                return Ok(None);
            }
        } else if self.window.capacity() > WINDOW_KEEP_BYTES {
            self.window = Vec::new();
        }
        let room = usize::try_from(limit - start).unwrap_or(usize::MAX);
        let want = len.max(READ_BYTES).min(room);
        self.window.resize(want, 0);
        self.window_start = start;
        let read = self.read(start, len);
        match read {
            Ok(read) => self.window.truncate(read),
            Err(_) => self.window.clear(),
        }
        Ok((read? >= len).then_some(0))
    }

    /// Fills the window from `start`, up to its length or the end of the file; stops early once it has `least` bytes.
    fn read(&mut self, start: u64, least: usize) -> Result<usize> {
        let mut done = 0;
        while done < least {
            match self.file.read_at(&mut self.window[done..], start + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path, error)),
            }
        }
        Ok(done)
    }

    /// Searches everything from `offset` to the end of the file, or to `limit`, for intact headers, payloads unseen, and tells `found` of
    /// each.
    ///
    /// After a bad record the lengths can no longer be followed, so every aligned place is tried: zeros are passed over a word
    /// at a time and nearly all else fails [`is_plausible`] before any checksum is computed.
    pub(super) fn search_each(
        &mut self,
        offset: u32,
        limit: u64,
        mut found: impl FnMut(u32, RecordHeader),
    ) -> Result<()> {
        let header_len = RECORD_HEADER_LEN as usize;
        let mut start = u64::from(offset.max(SEGMENT_HEADER_LEN).next_multiple_of(ALIGNMENT));
        loop {
            self.forget();
            self.window.resize(READ_BYTES, 0);
            self.window_start = start;
            let read = self.read(start, READ_BYTES);
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    self.forget();
                    return Err(error);
                }
            };
            self.window.truncate(read);
            // One header a step of eight bytes; `windows` keeps the bounds checks out of the loop.
            let headers = self.window.windows(header_len).step_by(ALIGNMENT as usize);
            let at = headers.len() * ALIGNMENT as usize;
            for (index, bytes) in headers.enumerate() {
                let bytes = bytes.try_into().expect("as long as a header");
                if is_plausible(bytes)
                    && let Ok(offset) = u32::try_from(start + (index * ALIGNMENT as usize) as u64)
                    && let Some(header) = RecordHeader::decode(bytes, self.place, offset)
                {
                    found(offset, header);
                }
            }
            if read < READ_BYTES || start + at as u64 >= limit {
                return Ok(());
            }
            // The last places of the window had too few bytes behind them for a header.
            start += at as u64;
        }
    }

    /// The first intact header behind `offset`: where a reader would go on that takes a hole for nothing.
    pub(super) fn next_intact(&mut self, offset: u32) -> Result<Option<u32>> {
        let mut next = None;
        self.search_each(offset + ALIGNMENT, u64::MAX, |found, _| next = next.or(Some(found)))?;
        Ok(next)
    }

    /// [`search_each`](Self::search_each), summed up.
    pub(super) fn search(&mut self, offset: u32, limit: u64) -> Result<Found> {
        let mut sum = Found::default();
        self.search_each(offset, limit, |_, header| sum.add(header))?;
        Ok(sum)
    }
}
