//! What became of the commits that clients may still ask about: [`Ids`], the table of commit ids.
//!
//! The table holds, for each client that was heard of lately, the outcomes that it may not know yet. An outcome leaves when the client says that it
//! knows it (its lowest unanswered counter is above), when the client has too many, or when its client has been silent for long.
//! Long is counted in versions, less the jumps that epochs begin with: the time that the log was at work, as every replica sees it. The **id floor**
//! is the version that lies so far back. Who asks for an outcome with a read version below it gets no answer, never a wrong one.
//!
//! # Invariants
//! - The floor never goes down.
//! - `heard` has one entry for each client, and `outcomes` is the number of outcomes of all.
//! - An id that is in the table keeps its first outcome.
//! - `jumps` are ascending, and all end above the floor.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ferrisdb_core::Version;
use ferrisdb_core::codec::{DecodeError, Decoder, put_u64, put_varint};
use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_rpc::api::CommitId;

use super::{Known, UNSORTED};
use crate::log::entry::{Outcome, count, outcome, put_outcome, put_version, version};

/// Versions (at a million a second of work: ten minutes) for which the outcomes of a silent client are kept.
pub const ID_LIFE_VERSIONS: u64 = 600_000_000;
/// Clients in the table; above it the longest silent one leaves. 65,536 clients of some 30 bytes are 2 MiB of encoded state.
const CLIENTS_MAX: usize = 65_536;
/// Outcomes of one client; above it the lowest counters leave.
pub(super) const OUTCOMES_OF_CLIENT_MAX: usize = 4_096;
/// Outcomes of all clients; above it the longest silent client leaves.
const OUTCOMES_MAX: usize = 131_072;
/// Jumps of versions that are remembered; above it the id floor moves up to the oldest.
const JUMPS_MAX: usize = 256;

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ids {
    clients: BTreeMap<u64, Client>,
    /// The clients, the longest silent one first.
    heard: BTreeSet<(Version, u64)>,
    outcomes: usize,
    jumps: VecDeque<Jump>,
    floor: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Client {
    /// The batch that last said something of it.
    heard: Version,
    /// Counters below this are forgotten.
    lowest: u64,
    outcomes: BTreeMap<u64, (Version, Outcome)>,
}

/// An epoch's beginning: no version lies in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jump {
    from: Version,
    to: Version,
}

impl Ids {
    /// What is known about a commit id.
    pub(super) fn known(&self, id: CommitId) -> Known {
        match self.clients.get(&id.client) {
            Some(client) if id.counter < client.lowest => Known::Forgotten,
            Some(client) => match client.outcomes.get(&id.counter) {
                Some(&(version, outcome)) => Known::Outcome(version, outcome),
                None => Known::Nothing,
            },
            None => Known::Nothing,
        }
    }

    /// See [`State::id_floor`](super::State::id_floor).
    pub(super) fn floor(&self) -> Version {
        self.floor
    }

    /// Clients, and outcomes.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.outcomes)
    }

    /// An epoch begins: no version lies between these two.
    pub(super) fn jump(&mut self, from: Version, to: Version) {
        self.jumps.push_back(Jump { from, to });
        if self.jumps.len() > JUMPS_MAX
            && let Some(oldest) = self.jumps.pop_front()
        {
            self.floor = self.floor.max(oldest.to);
        }
    }

    /// What became of a commit, in the batch at this version.
    pub(super) fn note(&mut self, id: CommitId, lowest_unanswered: u64, version: Version, outcome: Outcome) {
        let client = self.clients.entry(id.client).or_default();
        if client.heard != version {
            self.heard.remove(&(client.heard, id.client));
            self.heard.insert((version, id.client));
            client.heard = version;
        }
        client.lowest = client.lowest.max(lowest_unanswered);
        let before = client.outcomes.len();
        if id.counter >= client.lowest {
            client.outcomes.entry(id.counter).or_insert((version, outcome));
        }
        while let Some(first) = client.outcomes.first_entry()
            && *first.key() < client.lowest
        {
            first.remove();
        }
        while client.outcomes.len() > OUTCOMES_OF_CLIENT_MAX
            && let Some((counter, _)) = client.outcomes.pop_first()
        {
            client.lowest = counter + 1;
        }
        self.outcomes = self.outcomes + client.outcomes.len() - before;
    }

    /// Moves the floor up to what the last version makes it, and forgets the clients that were last heard of below it.
    pub(super) fn expire(&mut self, last: Version) {
        let mut left = ID_LIFE_VERSIONS;
        let mut end = last;
        let mut floor = None;
        for jump in self.jumps.iter().rev().filter(|_| !planted(Bug::IdsExpireByRawVersions)) {
            let worked = end.get() - jump.to.get();
            if worked >= left {
                floor = Some(end.get() - left);
                break;
            }
            left -= worked;
            end = jump.from;
        }
        let floor = floor.unwrap_or_else(|| end.get().saturating_sub(left));
        self.floor = self.floor.max(Version::from_u64(floor));
        while self.jumps.front().is_some_and(|jump| jump.to <= self.floor) {
            self.jumps.pop_front();
        }
        while let Some(&(heard, client)) = self.heard.first() {
            let is_silent = heard < self.floor;
            let is_too_much = self.clients.len() > CLIENTS_MAX || self.outcomes > OUTCOMES_MAX;
            if !is_silent && !is_too_much {
                break;
            }
            // Whatever is forgotten for want of room must not be taken for never written.
            self.floor = self.floor.max(heard);
            self.heard.pop_first();
            let forgotten = self.clients.remove(&client).expect("heard has one entry for each client");
            self.outcomes -= forgotten.outcomes.len();
        }
    }

    /// Jumps and clients, as [`State::encode`](super::State::encode) has them; the floor stands before them.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.jumps.len() as u64);
        for jump in &self.jumps {
            put_version(out, jump.from);
            put_version(out, jump.to);
        }
        put_varint(out, self.clients.len() as u64);
        for (&number, client) in &self.clients {
            put_u64(out, number);
            put_version(out, client.heard);
            put_varint(out, client.lowest);
            put_varint(out, client.outcomes.len() as u64);
            for (&counter, &(version, outcome)) in &client.outcomes {
                put_varint(out, counter);
                put_version(out, version);
                put_outcome(out, outcome);
            }
        }
    }

    /// The table with this floor, in a state with this last version.
    pub(super) fn decode(decoder: &mut Decoder<'_>, floor: Version, last: Version) -> Result<Ids, DecodeError> {
        let mut ids = Ids { floor, ..Ids::default() };
        for _ in 0..count(decoder, "log state: jumps")? {
            let jump = Jump { from: version(decoder, "log state: jump")?, to: version(decoder, "log state: jump")? };
            let after = ids.jumps.back().map_or(Version::ZERO, |jump: &Jump| jump.to);
            if jump.from >= jump.to || jump.from < after || jump.to > last {
                return Err(UNSORTED);
            }
            ids.jumps.push_back(jump);
        }
        for _ in 0..count(decoder, "log state: clients")? {
            let number = decoder.u64("log state: client")?;
            if ids.clients.last_key_value().is_some_and(|(&last, _)| last >= number) {
                return Err(UNSORTED);
            }
            let heard = version(decoder, "log state: client heard of")?;
            let lowest = decoder.varint("log state: lowest counter")?;
            let mut client = Client { heard, lowest, outcomes: BTreeMap::new() };
            for _ in 0..count(decoder, "log state: outcomes")? {
                let counter = decoder.varint("log state: counter")?;
                let last = client.outcomes.last_key_value();
                if counter < lowest || last.is_some_and(|(&last, _)| last >= counter) {
                    return Err(UNSORTED);
                }
                let version = version(decoder, "log state: outcome's version")?;
                client.outcomes.insert(counter, (version, outcome(decoder)?));
            }
            ids.outcomes += client.outcomes.len();
            ids.heard.insert((heard, number));
            ids.clients.insert(number, client);
        }
        Ok(ids)
    }

    /// Panics if an invariant does not hold. For tests.
    pub(super) fn check(&self, last: Version) {
        assert!(self.floor <= last);
        assert_eq!(self.heard.len(), self.clients.len());
        assert!(self.clients.iter().all(|(&number, client)| self.heard.contains(&(client.heard, number))));
        assert_eq!(self.outcomes, self.clients.values().map(|client| client.outcomes.len()).sum::<usize>());
        let above_lowest = |client: &Client| client.outcomes.keys().all(|&counter| counter >= client.lowest);
        assert!(self.clients.values().all(above_lowest));
        assert!(self.jumps.len() <= JUMPS_MAX);
        assert!(self.jumps.iter().all(|jump| jump.from < jump.to && jump.to > self.floor && jump.to <= last));
        assert!(self.jumps.iter().zip(self.jumps.iter().skip(1)).all(|(one, next)| one.to <= next.from));
    }
}
