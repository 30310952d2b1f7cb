//! The beat of a process: once a second it tells the voters of the log that it is there, who it is, what it has, and how it is; and hears whether it may go on.
//!
//! A process that starts again is **introduced** by its first beats: until so many voters have answered that they are a majority with it, its replica of the log takes no part. Any voter that knows that it had
//! more says so (see known.rs), then or later: then the process ends this life and [begins again](super::rejoin) as a new one. Whoever was forgotten begins again: each process whose
//! metadata says so says it, for a number is never given again. The leader also says what else the process is to the cluster: whoever lost its tag asks for a new one.
//!
//! A process may know the wrong voters, and take for the leader who leads no more: one that was cut off and forgotten meanwhile, above all, for nobody sends it the log. So as long as nobody who leads
//! answers, it tells everybody it knows of.
//!
//! # Format (numbers are varints unless said otherwise)
//! ```text
//! beat    process, instance (16 bytes), tag, generation, u64 life,
//!         found: voted term, last: term, index; now: voted term, held: term, index,
//!         load: applied, flushed version, applied entry, copied rows, bytes, of bytes, bytes of the log, bytes free for it, bytes of its disk,
//!               u8 flags: 1 serves, 2 stalled, 4 broken, 8 log waits for space, 16 storage does, 32 storage is damaged, 64 log has little space
//! answer  process that answers, u8 0 welcome, 1 went back then bytes: what it lacks,
//!         u8 what it is to the cluster (0 the asked cannot say; who does not lead says at most that it is forgotten), bytes: what the leader sees, as JSON,
//!         bytes a second that it may fetch (0: the asked does not lead)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferrisdb_core::codec::{DecodeError, Decoder, put_bytes, put_u64, put_varint};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::{Bytes, Clock, Code, Error, Result, Runtime, Version};
use futures_util::future::{Either, join_all, select};

use super::known::{Noted, Said};
use super::lines::Line;
use super::members::Load;
use super::messages::{Joined, Message, invalid, take_tag};
use super::metadata::Registry;
use super::rejoin::Again;
use super::{Shared, spread, status};
use crate::log::Tag;
use crate::log::replicated::{Place, Position, ProcessId};
use crate::signal::lock;

/// A process is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) instance: [u8; 16],
    pub(super) tag: Tag,
    pub(super) said: Said,
    pub(super) load: Load,
}

/// What a process is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Registration {
    /// Whoever was asked cannot say: it does not lead, or has not heard of it yet.
    Unknown,
    /// It belongs to it.
    Member,
    /// It belongs to it, and its tag was taken: what it has stored is worth nothing.
    WithoutTag,
    /// It is to hold nothing.
    Excluded,
    /// It does not belong to it any more, and never will: also who does not lead can tell.
    Forgotten,
}

/// The answer to a beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heard {
    /// Who answers.
    pub(super) process: ProcessId,
    /// What the asker lacks of what it had, if its disk went back.
    pub(super) lacks: Option<String>,
    pub(super) registration: Registration,
    /// What the leader sees. Empty from others.
    pub(super) view: String,
    /// Bytes a second that the storage server may fetch of what moves to it; 0: whoever answers cannot say.
    pub(super) fetch_rate: u64,
}

impl Beat {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let Said { process, generation, life, found, now } = self.said;
        put_varint(out, process);
        out.extend_from_slice(&self.instance);
        put_varint(out, u64::from(self.tag.0));
        put_varint(out, generation);
        put_u64(out, life);
        for (voted, place) in [(found.voted, found.last), (now.voted, now.held)] {
            [voted, place.term, place.index].into_iter().for_each(|number| put_varint(out, number));
        }
        let load = &self.load;
        let numbers = [
            load.applied.get(),
            load.flushed.get(),
            load.log_applied,
            load.filled_rows,
            load.filled_bytes,
            load.filling_bytes,
            load.log_bytes,
            load.free_bytes,
            load.disk_bytes,
        ];
        numbers.into_iter().for_each(|number| put_varint(out, number));
        let flags = [
            load.serves,
            load.is_stalled,
            load.is_broken,
            load.log_is_full,
            load.is_full,
            load.is_damaged,
            load.log_is_low,
        ];
        out.push(flags.into_iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(flag)));
    }

    pub(super) fn decode(decoder: &mut Decoder<'_>) -> std::result::Result<Beat, DecodeError> {
        let process = decoder.varint("beat: process")?;
        let instance = decoder.take(16, "beat: instance")?.try_into().expect("sixteen bytes were taken");
        let tag = take_tag(decoder)?;
        let generation = decoder.varint("beat: generation")?;
        let life = decoder.u64("beat: life")?;
        let mut number = |what| decoder.varint(what);
        let mut position = || -> std::result::Result<(u64, Place), DecodeError> {
            let voted = number("beat: term")?;
            Ok((voted, Place { term: number("beat: term of an entry")?, index: number("beat: entry")? }))
        };
        let ((voted, last), (voted_now, held)) = (position()?, position()?);
        let found = Position { voted, last, held: Place::default() };
        let now = Position { voted: voted_now, held, last: Place::default() };
        let mut version = || {
            let number = decoder.varint("beat: version")?;
            Version::new(number).ok_or(DecodeError { what: "beat: version" })
        };
        let (applied, flushed) = (version()?, version()?);
        let [log_applied, filled_rows, filled_bytes, filling_bytes, log_bytes, free_bytes, disk_bytes] = [
            decoder.varint("beat: applied entry")?,
            decoder.varint("beat: copied rows")?,
            decoder.varint("beat: copied bytes")?,
            decoder.varint("beat: bytes to copy")?,
            decoder.varint("beat: bytes of the log")?,
            decoder.varint("beat: free bytes")?,
            decoder.varint("beat: bytes of a disk")?,
        ];
        let flags = decoder.u8("beat: flags")?;
        if flags > 127 {
            return Err(DecodeError { what: "beat: flags" });
        }
        let load = Load {
            applied,
            flushed,
            log_applied,
            serves: flags & 1 > 0,
            is_stalled: flags & 2 > 0,
            is_broken: flags & 4 > 0,
            log_is_full: flags & 8 > 0,
            is_full: flags & 16 > 0,
            is_damaged: flags & 32 > 0,
            log_is_low: flags & 64 > 0,
            filled_rows,
            filled_bytes,
            filling_bytes,
            log_bytes,
            free_bytes,
            disk_bytes,
        };
        Ok(Beat { instance, tag, said: Said { process, generation, life, found, now }, load })
    }
}

impl Heard {
    /// From a process that has nothing to object, and nothing to tell.
    fn from(process: ProcessId) -> Heard {
        let (registration, view) = (Registration::Unknown, String::new());
        Heard { process, lacks: None, registration, view, fetch_rate: 0 }
    }

    fn is_of_leader(&self) -> bool {
        !self.view.is_empty()
    }

    fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        put_varint(&mut out, self.process);
        match &self.lacks {
            None => out.push(0),
            Some(lacks) => {
                out.push(1);
                put_bytes(&mut out, lacks.as_bytes());
            }
        }
        out.push(match self.registration {
            Registration::Unknown => 0,
            Registration::Member => 1,
            Registration::WithoutTag => 2,
            Registration::Excluded => 3,
            Registration::Forgotten => 4,
        });
        put_bytes(&mut out, self.view.as_bytes());
        put_varint(&mut out, self.fetch_rate);
        out.into()
    }

    fn decode(bytes: &[u8]) -> Result<Heard> {
        let mut decoder = Decoder::new(bytes);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut read = || {
            let process = decoder.varint("beat: process")?;
            let lacks = match decoder.u8("beat: welcome")? {
                0 => None,
                _ => Some(text(decoder.bytes("beat: what is lacking")?)),
            };
            let registration = match decoder.u8("beat: registration")? {
                0 => Registration::Unknown,
                1 => Registration::Member,
                2 => Registration::WithoutTag,
                3 => Registration::Excluded,
                4 => Registration::Forgotten,
                _ => return Err(DecodeError { what: "beat: an unknown registration" }),
            };
            let view = text(decoder.bytes("beat: view")?);
            let fetch_rate = decoder.varint("beat: rate")?;
            Ok(Heard { process, lacks, registration, view, fetch_rate })
        };
        read().map_err(invalid)
    }
}

impl Registry {
    /// What the process of a beat is to the cluster, by this registry. Only a leader's is the newest one. But numbers only grow, and none is given twice: who is forgotten by an older one stays
    /// forgotten.
    pub(super) fn registration(&self, beat: &Beat) -> Registration {
        let process = beat.said.process;
        match self.processes.get(&process) {
            Some(known) if known.instance == beat.instance => {
                if self.excluded.contains(&process) {
                    Registration::Excluded
                } else if self.storage_of(process).is_none_or(|(tag, _)| tag != beat.tag) {
                    Registration::WithoutTag
                } else {
                    Registration::Member
                }
            }
            None if process > self.used.0 => Registration::Unknown,
            _ => Registration::Forgotten,
        }
    }
}

/// Answers a beat.
pub(super) async fn answer(shared: &Arc<Shared>, beat: Beat) -> Result<Bytes> {
    Ok(hear(shared, beat).await?.encode())
}

async fn hear(shared: &Arc<Shared>, beat: Beat) -> Result<Heard> {
    let here = shared.identity.process;
    let process = beat.said.process;
    if process != here
        && let Noted::WentBack(lacks) = shared.recorder.note(&beat.said).await?
    {
        return Ok(Heard { lacks: Some(lacks), ..Heard::from(here) });
    }
    let mut heard = Heard::from(here);
    if shared.registry().is_ok_and(|registry| registry.registration(&beat) == Registration::Forgotten) {
        // Who leads may be somebody whom the asker never heard of, and does not ask.
        heard.registration = Registration::Forgotten;
    }
    if let Some(coordinator) = shared.leading.coordinator() {
        let registry = shared.registry()?;
        heard.registration = registry.registration(&beat);
        if heard.registration != Registration::Forgotten {
            let appended = coordinator.appended_bytes();
            shared.leading.with_detector(|detector| detector.heard(shared.jobs.now(), process, beat.load, appended));
        }
        heard.view = status::view(shared, &registry);
        heard.fetch_rate = spread::fetch_rate(shared, &coordinator);
    }
    Ok(heard)
}

/// Tells the voters that this process is there, and does what it hears, until the process stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut welcomed = BTreeSet::new();
    let mut is_led = false;
    loop {
        if let Ok(answers) = beat_once(&shared, is_led).await {
            is_led = answers.iter().any(Heard::is_of_leader);
            for heard in answers {
                if heard.lacks.is_none() {
                    welcomed.insert(heard.process);
                }
                take_heard(&shared, heard).await;
            }
            // One that knows better outweighs any number that do not.
            let is_over = lock(&shared.again).is_some();
            if !shared.log.is_introduced() && !is_over && is_enough(&shared, &welcomed).await {
                shared.log.introduced();
            }
        }
        let pause = if shared.log.is_introduced() { shared.options.members.beat_interval } else { super::LOOK };
        shared.jobs.sleep(pause).await;
    }
}

/// True if with so many voters this process is a majority; one that is no voter, as far as it knows, needs a majority of the others.
async fn is_enough(shared: &Shared, welcomed: &BTreeSet<ProcessId>) -> bool {
    let Ok((voters, _)) = shared.log.members().await else { return false };
    is_enough_of(&voters, shared.identity.process, welcomed)
}

fn is_enough_of(voters: &BTreeSet<ProcessId>, here: ProcessId, welcomed: &BTreeSet<ProcessId>) -> bool {
    if voters.is_empty() {
        // It has no configuration (any more): what it says of itself says nothing.
        return welcomed.iter().any(|&process| process != here);
    }
    let have = voters.iter().filter(|&&voter| voter == here || welcomed.contains(&voter)).count();
    have > voters.len() / 2
}

/// Beats once, to all voters at once; to everybody it knows of, unless somebody who leads (`is_led`) answered last time.
async fn beat_once(shared: &Arc<Shared>, is_led: bool) -> Result<Vec<Heard>> {
    let here = shared.identity.process;
    let (voters, peers) = shared.log.members().await?;
    let registry = shared.registry()?;
    let said = Said {
        process: here,
        generation: shared.identity.generation,
        life: shared.life,
        found: shared.found,
        now: shared.log.position(),
    };
    let beat = Beat { instance: shared.identity.instance, tag: shared.identity.tag, said, load: load(shared) };
    let addresses: BTreeMap<ProcessId, String> = peers
        .iter()
        .map(|(&process, peer)| (process, peer.address.clone()))
        .chain(registry.processes.iter().map(|(&process, known)| (process, known.peer.address.clone())))
        .collect();
    if !addresses.is_empty() {
        shared.recorder.set_addresses(addresses.values().cloned().collect());
    }
    let mut targets: BTreeSet<String> =
        voters.iter().filter(|&&voter| voter != here).filter_map(|voter| addresses.get(voter).cloned()).collect();
    if voters.is_empty() || !is_led {
        // What its replica of the log says of a leader is no answer: it is the vote it noted last, and it notes no other if it is a learner, or if nobody stands for election.
        targets.extend(shared.recorder.addresses());
    }
    targets.remove(&shared.here.address);
    let message = Message::Beat(beat.clone()).encode();
    let asking = targets.into_iter().map(|address| ask(shared, address, message.clone()));
    let mut answers: Vec<Heard> = join_all(asking).await.into_iter().flatten().collect();
    answers.push(hear(shared, beat).await?);
    Ok(answers)
}

async fn ask(shared: &Shared, address: String, message: Bytes) -> Result<Heard> {
    let asking = async { shared.lines.to(Line::Questions, &address).await?.message(message).await };
    let deadline = shared.jobs.sleep(shared.options.members.beat_interval);
    match select(std::pin::pin!(asking), deadline).await {
        Either::Left((answered, _)) => Heard::decode(&answered?),
        Either::Right(_) => Err(Error::with(Code::ConnectionFailed, format!("{address} did not answer in time"))),
    }
}

fn load(shared: &Shared) -> Load {
    let (filled_rows, filled_bytes, filling_bytes) = shared.copied.numbers();
    let is_damaged = shared.storage.damage().is_some();
    let extent = shared.log.extent();
    Load {
        applied: shared.storage.applied_version(),
        flushed: shared.storage.flushed_version(),
        log_applied: shared.log.view().applied.unwrap_or_default(),
        serves: shared.has_begun.load(Ordering::SeqCst),
        is_stalled: shared.storage.is_stalled(),
        is_broken: shared.failure().is_some() || is_damaged,
        log_is_full: shared.log.waits_for_space(),
        log_is_low: extent.is_low,
        is_full: shared.storage_takes_nothing(),
        is_damaged,
        filled_rows,
        filled_bytes,
        filling_bytes,
        log_bytes: extent.bytes,
        free_bytes: extent.free_bytes,
        disk_bytes: extent.disk_bytes,
    }
}

/// Does what was heard.
async fn take_heard(shared: &Arc<Shared>, heard: Heard) {
    let here = shared.identity.process;
    if let Some(lacks) = heard.lacks {
        let why = format!("the disk of process {here} went back to an earlier state: {lacks}");
        return shared.begin_again(Again::AsNew(why));
    }
    if heard.fetch_rate > 0 {
        shared.fetch_rate.store(heard.fetch_rate, Ordering::Relaxed);
    }
    if !heard.view.is_empty() {
        *lock(&shared.view) = Some((shared.jobs.now(), heard.view));
    }
    match heard.registration {
        Registration::Forgotten => {
            shared.begin_again(Again::AsNew(format!("process {here} was gone, or excluded, and forgotten")));
        }
        // Not on a disk that has failed: that is for whoever starts the process again to decide. Its replica of the log votes on. One that only gave back what nobody wrote does
        // what it is told, and checksums stand behind what it gives back.
        Registration::WithoutTag if shared.failure().is_some() && shared.storage.damage().is_none() => {
            shared.stop_serving();
        }
        Registration::WithoutTag if !planted(Bug::DroppedTagServes) => {
            let message = Message::Join { instance: shared.identity.instance, peer: shared.here.clone() }.encode();
            let joined = shared.at_coordinator(|endpoint| endpoint.message(message.clone())).await;
            if let Ok(joined) = joined.and_then(|joined| Joined::decode(&joined))
                && joined.tag != shared.identity.tag
            {
                shared.begin_again(Again::WithTag(joined.tag));
            }
        }
        _ => {}
    }
}

/// A moment that is old enough to say so.
pub(super) const VIEW_OLD: Duration = Duration::from_secs(5);

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn example() -> Beat {
        let place = |term, index| Place { term, index };
        let found = Position { voted: 1, last: place(2, 3), held: Place::default() };
        let now = Position { voted: 4, held: place(5, 6), last: Place::default() };
        let said = Said { process: 2, generation: 9, life: 5, found, now };
        let version = Version::from_u64;
        let load = Load {
            applied: version(7),
            flushed: version(8),
            log_applied: 10,
            serves: true,
            is_stalled: false,
            is_broken: true,
            log_is_full: true,
            is_full: false,
            is_damaged: false,
            log_is_low: false,
            filled_rows: 100,
            filled_bytes: 11,
            filling_bytes: 12,
            log_bytes: 13,
            free_bytes: 14,
            disk_bytes: 15,
        };
        Beat { instance: [3; 16], tag: Tag(3), said, load }
    }

    /// A replica that lost its configuration with its disk, and knows no voters, is not introduced by its own word.
    #[test]
    fn nobody_introduces_itself() {
        let enough = |voters: &[ProcessId], welcomed: &[ProcessId]| {
            is_enough_of(&voters.iter().copied().collect(), 3, &welcomed.iter().copied().collect())
        };
        assert!(!enough(&[], &[3]));
        assert!(enough(&[], &[3, 1]));
        assert!(enough(&[3], &[3]), "alone it has nobody to ask");
        assert!(!enough(&[1, 2, 3], &[3]) && enough(&[1, 2, 3], &[1]));
        assert!(!enough(&[1, 2, 4], &[3, 1]), "no voter itself");
    }

    #[test]
    fn answers_are_read() {
        for (lacks, registration) in [
            (None, Registration::Member),
            (None, Registration::Excluded),
            (None, Registration::WithoutTag),
            (Some("an entry".to_owned()), Registration::Unknown),
            (None, Registration::Forgotten),
        ] {
            let heard = Heard { process: 300, lacks, registration, view: "{}".to_owned(), fetch_rate: 1 << 25 };
            let bytes = heard.encode();
            assert_eq!(Heard::decode(&bytes), Ok(heard));
            for len in 0..bytes.len() {
                assert!(Heard::decode(&bytes[..len]).is_err(), "{len} bytes");
            }
        }
    }
}
