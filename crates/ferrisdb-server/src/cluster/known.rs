//! What this process durably knows of its peers, so that none of them can go back unnoticed: [`Known`], in the file `peers`, kept by [`Recorder`].
//!
//! A disk goes back when an old image is restored, or when it lied about syncs. The process on it does not know; but whoever forgot a vote may vote twice, and whoever
//! forgot entries may have others take them for never committed. So each process keeps the highest of what every peer said about itself, and tells a peer that says less: that one
//! must not take part any more.
//!
//! # What is compared
//! A peer says how often its directory was started (**generation**) and a random number of this start (**life**); in which term it voted last; which committed entry it has durably; and what it
//! **found** on its disk when this life began. A life that is new must have found at least what earlier ones had. Only what never shrinks legitimately is compared: an uncommitted
//! tail may be cut. Within a life nothing is compared: memory does not go back.
//!
//! # Format (version 1; numbers are varints unless said otherwise)
//! ```text
//! magic "FERRISK" and 0xDB, u8 format version
//! addresses: count, each: bytes                 where to look for the cluster if the log cannot say
//! peers: count, each: process, generation, u64 life, voted term, held: term, index
//! u32 CRC-32C of all before
//! ```
//!
//! # Invariants
//! - A new life is durably noted before the peer is answered.
//! - What is noted of a peer never goes down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_u32, put_u64, put_varint};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Code, Result, Runtime};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::{FileSystem, OpenMode, read_exact_at};
use futures_util::future::select;

use crate::failure::from_storage;
use crate::lifetime::write_file;
use crate::log::entry::count;
use crate::log::replicated::{Place, Position, ProcessId};
use crate::runtime::JobRuntime;
use crate::signal::{Bell, Reply, lock, reply};

const MAGIC: [u8; 8] = *b"FERRISK\xDB";
const FORMAT_VERSION: u8 = 1;
const FILE: &str = "peers";
/// Progress within a life is written down this often at most: what is lost with the power in between are seconds of knowledge.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// What a process says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) process: ProcessId,
    pub(super) generation: u64,
    pub(super) life: u64,
    /// What it found when this life began.
    pub(super) found: Position,
    /// What it has now.
    pub(super) now: Position,
}

/// The highest that a peer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Highest {
    generation: u64,
    life: u64,
    voted: u64,
    held: Place,
}

/// What is known of all peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) addresses: Vec<String>,
    peers: BTreeMap<ProcessId, Highest>,
}

/// What noting something came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is a life that was not heard of.
    NewLife,
    /// More of the same life.
    Progress,
    /// It went back: what it lacks.
    WentBack(String),
}

impl Known {
    /// True if this life of the process was noted.
    fn has_life(&self, said: &Said) -> bool {
        let of = self.peers.get(&said.process);
        of.is_some_and(|noted| (noted.generation, noted.life) == (said.generation, said.life))
    }

    /// Takes note of what a peer says.
    pub(super) fn note(&mut self, said: &Said) -> Noted {
        let next = Highest {
            generation: said.generation,
            life: said.life,
            voted: said.now.voted.max(said.found.voted),
            held: said.now.held,
        };
        let Some(before) = self.peers.get_mut(&said.process) else {
            self.peers.insert(said.process, next);
            return Noted::NewLife;
        };
        let is_same = (before.generation, before.life) == (said.generation, said.life);
        if !is_same
            && !planted(Bug::WentBackVotes)
            && let Some(lacks) = before.lacking(said)
        {
            return Noted::WentBack(lacks);
        }
        *before = Highest { voted: next.voted.max(before.voted), held: next.held.max(before.held), ..next };
        if is_same { Noted::Progress } else { Noted::NewLife }
    }

    /// Reads the file in `dir`. A damaged one is set aside, and `notices` is told: what it said of the peers comes again with their next beats.
    pub(super) fn read_or_set_aside(fs: &dyn FileSystem, dir: &Path, notices: &Mutex<Vec<String>>) -> Result<Known> {
        let (path, aside) = (dir.join(FILE), dir.join(format!("{FILE}.damaged")));
        let failed = |op, error| from_storage("cannot open the process", &StorageError::io(op, &path, error));
        let bytes = Known::read_bytes(fs, &path)?;
        if bytes.as_deref().is_none_or(is_intact) {
            return Known::decode_file(&path, bytes.as_deref());
        }
        fs.rename(&path, &aside).map_err(|error| failed("rename", error))?;
        fs.sync_dir(dir).map_err(|error| failed("sync", error))?;
        lock(notices).push(format!(
            "{} is damaged, and was set aside as {}: what this process knew of how far its peers were it learns again from them. Do not restore another process's disk meanwhile, \
             and look at this one",
            path.display(),
            aside.display()
        ));
        Ok(Known::default())
    }

    /// Of how many peers something is known.
    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Reads the file in `dir`; nothing is known if there is none.
    pub(super) fn read(fs: &dyn FileSystem, dir: &Path) -> Result<Known> {
        let path = dir.join(FILE);
        Known::decode_file(&path, Known::read_bytes(fs, &path)?.as_deref())
    }

    fn decode_file(path: &Path, bytes: Option<&[u8]>) -> Result<Known> {
        let Some(bytes) = bytes else { return Ok(Known::default()) };
        Known::decode(bytes)
            .map_err(|error| from_storage("cannot open the process", &StorageError::corruption(path, 0, error.what)))
    }

    fn read_bytes(fs: &dyn FileSystem, path: &Path) -> Result<Option<Vec<u8>>> {
        let failed = |op, error| from_storage("cannot open the process", &StorageError::io(op, path, error));
        if !fs.exists(path).map_err(|error| failed("look for", error))? {
            return Ok(None);
        }
        let file = fs.open(path, OpenMode::Read).map_err(|error| failed("open", error))?;
        let len = file.len().map_err(|error| failed("measure", error))?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(1 << 20)];
        read_exact_at(file.as_ref(), &mut bytes, 0).map_err(|error| failed("read", error))?;
        Ok(Some(bytes))
    }

    /// Writes it down, durably.
    pub(super) fn write(&self, fs: &dyn FileSystem, dir: &Path) -> Result<()> {
        write_file(fs, dir, FILE, &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(FORMAT_VERSION);
        put_varint(&mut out, self.addresses.len() as u64);
        self.addresses.iter().for_each(|address| put_bytes(&mut out, address.as_bytes()));
        put_varint(&mut out, self.peers.len() as u64);
        for (&process, highest) in &self.peers {
            put_varint(&mut out, process);
            put_varint(&mut out, highest.generation);
            put_u64(&mut out, highest.life);
            put_varint(&mut out, highest.voted);
            put_varint(&mut out, highest.held.term);
            put_varint(&mut out, highest.held.index);
        }
        let checksum = crc_fast::crc32_iscsi(&out);
        put_u32(&mut out, checksum);
        out
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Known, DecodeError> {
        if !is_intact(bytes) {
            return Err(DecodeError { what: "peers: checksum" });
        }
        let mut decoder = Decoder::new(&bytes[..bytes.len() - 4]);
        if decoder.take(8, "peers: magic")? != MAGIC {
            return Err(DecodeError { what: "it is not a file of peers" });
        }
        if decoder.u8("peers: format version")? != FORMAT_VERSION {
            return Err(DecodeError { what: "peers: a format that this build does not know; use a newer FerrisDB" });
        }
        let mut known = Known::default();
        for _ in 0..count(&mut decoder, "peers: addresses")? {
            let address = decoder.bytes("peers: address")?.to_vec();
            let address = String::from_utf8(address).map_err(|_| DecodeError { what: "peers: address" })?;
            known.addresses.push(address);
        }
        for _ in 0..count(&mut decoder, "peers: peers")? {
            let process = decoder.varint("peers: process")?;
            let generation = decoder.varint("peers: generation")?;
            let life = decoder.u64("peers: life")?;
            let voted = decoder.varint("peers: voted")?;
            let held = Place { term: decoder.varint("peers: term")?, index: decoder.varint("peers: index")? };
            known.peers.insert(process, Highest { generation, life, voted, held });
        }
        decoder.finish("peers: bytes behind its end")?;
        Ok(known)
    }
}

/// The bytes of the file are what was written.
fn is_intact(bytes: &[u8]) -> bool {
    let body = bytes.len().saturating_sub(4);
    bytes.len() >= 4 && bytes[body..] == crc_fast::crc32_iscsi(&bytes[..body]).to_le_bytes()
}

impl Highest {
    /// What a new life lacks of what there was, if anything.
    fn lacking(&self, said: &Said) -> Option<String> {
        let Said { process, generation, found, .. } = *said;
        if generation < self.generation {
            return Some(format!("process {process} was started {} times before, not {generation}", self.generation));
        }
        if generation == self.generation {
            return Some(format!(
                "process {process} was started twice for the {generation}th time: this is a copy of its directory, or an older image"
            ));
        }
        if found.voted < self.voted {
            return Some(format!(
                "process {process} had voted in term {}, and remembers term {}",
                self.voted, found.voted
            ));
        }
        (found.last < self.held).then(|| {
            format!(
                "process {process} had the log's entry {} of term {}, and has nothing above entry {} of term {}",
                self.held.index, self.held.term, found.last.index, found.last.term
            )
        })
    }
}

/// Keeps what is known, and writes it down.
pub(super) struct Recorder {
    dir: PathBuf,
    state: Mutex<State>,
    bell: Bell,
}

struct State {
    known: Known,
    /// What of it is on the disk.
    written: Known,
    is_dirty: bool,
    waiting: Vec<Reply<()>>,
}

impl Recorder {
    pub(super) fn new(dir: &Path, known: Known) -> Recorder {
        let state = State { written: known.clone(), known, is_dirty: false, waiting: Vec::new() };
        Recorder { dir: dir.to_path_buf(), state: Mutex::new(state), bell: Bell::default() }
    }

    /// Takes note; of a life durably, before anybody hears that it was noted.
    ///
    /// # Errors
    /// What the disk says: it is not noted durably.
    pub(super) async fn note(&self, said: &Said) -> Result<Noted> {
        let (noted, durable) = {
            let mut state = lock(&self.state);
            let noted = state.known.note(said);
            state.is_dirty = true;
            // Also one that was said before: the note of it may be under way, or have failed.
            let must_wait = !matches!(noted, Noted::WentBack(_)) && !state.written.has_life(said);
            let waits = must_wait.then(|| reply(Code::OperationCancelled));
            let durable = waits.map(|(answer, durable)| {
                state.waiting.push(answer);
                durable
            });
            (noted, durable)
        };
        if let Some(durable) = durable {
            self.bell.ring();
            durable.await?;
        }
        Ok(noted)
    }

    /// Where to look for the cluster, if the log cannot say.
    pub(super) fn addresses(&self) -> Vec<String> {
        lock(&self.state).known.addresses.clone()
    }

    /// These processes were reached.
    pub(super) fn set_addresses(&self, addresses: Vec<String>) {
        let mut state = lock(&self.state);
        if state.known.addresses != addresses {
            state.known.addresses = addresses;
            state.is_dirty = true;
        }
    }

    /// All that is known.
    pub(super) fn known(&self) -> Known {
        lock(&self.state).known.clone()
    }

    /// Writes what is new, until it is dropped.
    pub(super) async fn run(self: Arc<Recorder>, jobs: JobRuntime) {
        loop {
            select(std::pin::pin!(self.bell.rung()), jobs.sleep(WRITE_EVERY)).await;
            let (known, waiting) = {
                let mut state = lock(&self.state);
                let waiting = std::mem::take(&mut state.waiting);
                (std::mem::take(&mut state.is_dirty).then(|| state.known.clone()), waiting)
            };
            let mut written = Ok(());
            if let Some(known) = known {
                written = known.write(jobs.env().fs.as_ref(), &self.dir);
                match &written {
                    Ok(()) => lock(&self.state).written = known,
                    Err(_) => lock(&self.state).is_dirty = true,
                }
            }
            waiting.into_iter().for_each(|answer| answer.send(written.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_storage::fs::sim::SimFileSystem;

    fn place(term: u64, index: u64) -> Place {
        Place { term, index }
    }

    fn said(generation: u64, life: u64, found: (u64, Place), now: (u64, Place)) -> Said {
        let position = |(voted, held): (u64, Place)| Position { voted, held, last: held };
        Said { process: 2, generation, life, found: position(found), now: position(now) }
    }

    /// A life goes on, the next one begins with what the one before had.
    #[test]
    fn a_process_that_kept_everything_is_welcome() {
        let mut known = Known::default();
        let nothing = (0, place(0, 0));
        assert_eq!(known.note(&said(1, 11, nothing, nothing)), Noted::NewLife);
        assert_eq!(known.note(&said(1, 11, nothing, (2, place(1, 9)))), Noted::Progress);
        // Said before, heard later: nothing goes down.
        assert_eq!(known.note(&said(1, 11, nothing, (1, place(1, 3)))), Noted::Progress);
        let kept = (2, place(1, 9));
        assert_eq!(known.note(&said(2, 12, kept, kept)), Noted::NewLife);
        let more = (5, place(4, 20));
        assert_eq!(known.note(&said(4, 13, more, more)), Noted::NewLife, "a life that nobody heard of lay in between");
    }

    /// Each thing that can go back is seen to have gone back.
    #[test]
    fn what_went_back_is_recognised() {
        let had = (7, place(6, 100));
        let less = [
            (said(3, 30, had, had), "started 4 times"),
            (said(4, 41, had, had), "a copy of its directory"),
            (said(5, 50, (6, place(6, 100)), had), "voted in term 7"),
            (said(5, 50, (7, place(6, 99)), had), "entry 100 of term 6"),
            (said(5, 50, (7, place(5, 200)), had), "entry 100 of term 6"),
        ];
        for (said_now, what) in less {
            let mut known = Known::default();
            known.note(&said(4, 40, had, had));
            let before = known.clone();
            match known.note(&said_now) {
                Noted::WentBack(lacks) => assert!(lacks.contains(what), "{lacks}"),
                other => panic!("{what}: {other:?}"),
            }
            assert_eq!(known, before, "it is not noted");
        }
    }

    /// What is written is read; any other byte anywhere is found.
    #[test]
    fn the_file_keeps_it() {
        let (fs, dir) = (SimFileSystem::new(), Path::new("/p"));
        fs.create_dir_all(dir).unwrap();
        assert_eq!(Known::read(&fs, dir), Ok(Known::default()));
        let mut known = Known { addresses: vec!["h:1".to_owned()], ..Known::default() };
        known.note(&said(300, 5, (0, place(0, 0)), (2, place(1, 9))));
        known.write(&fs, dir).unwrap();
        assert_eq!(Known::read(&fs, dir), Ok(known.clone()));
        let bytes = known.encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(Known::decode(&damaged).is_err(), "byte {at}");
            assert!(Known::decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }
}
