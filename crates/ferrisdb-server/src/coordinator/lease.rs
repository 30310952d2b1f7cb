//! Leases on versions: [`Leases`], the coordinator's table of who keeps which version readable until when.
//!
//! What must survive a restart (which lease on which version) is in the log; the terms are measured here, by a monotonic clock, and a new
//! coordinator lets every lease run its full term again.
//!
//! Each different leased version costs storage, for as long as it is leased: every key written since keeps one more value. So leases share
//! versions where nobody can tell, and past a number of different versions also where somebody can: then a new lease gets the version of the newest
//! one, up to a minute old.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ferrisdb_core::rare::{Rare, reached};
use ferrisdb_core::{Code, Error, Result, Version};
use ferrisdb_rpc::api::{Lease, LeaseRequest};

use crate::log::{Entry, LeaseChange};

/// How leases are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOptions {
    /// For how long a lease holds unless renewed. Default: 60 s.
    pub term: Duration,
    /// For how long one lease can be held at all. Default: 1 h.
    pub life: Duration,
    /// Different leased versions from which on new leases share the newest one's. Default: 64.
    pub versions: usize,
    /// How old a version may be that is shared for that reason. Default: 60 s.
    pub share_age: Duration,
    /// Leases at most. Default: 10,000.
    pub leases: usize,
}

impl Default for LeaseOptions {
    fn default() -> LeaseOptions {
        LeaseOptions {
            term: Duration::from_secs(60),
            life: Duration::from_secs(3600),
            versions: 64,
            share_age: Duration::from_secs(60),
            leases: 10_000,
        }
    }
}

#[derive(Debug, Clone)]
struct Held {
    version: Version,
    /// It ends here however often it is renewed.
    ends_at: Duration,
    expires_at: Duration,
}

/// The table.
#[derive(Debug)]
pub struct Leases {
    options: LeaseOptions,
    held: BTreeMap<u64, Held>,
    next_id: u64,
    /// How many leases hold each version, and when the version was first leased.
    versions: BTreeMap<Version, (usize, Duration)>,
    /// What the batches carry; made anew when it changes.
    list: Arc<[Version]>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// The answer, or the answer once `entry` is durable.
    pub lease: Lease,
    /// What has to be written down.
    pub entry: Option<Entry>,
}

impl Leases {
    /// The leases that the log knows, each with its full term from `now` on.
    pub fn new(options: LeaseOptions, recovered: &BTreeMap<u64, Version>, next_id: u64, now: Duration) -> Leases {
        let list = Arc::default();
        let mut leases = Leases { options, held: BTreeMap::new(), next_id, versions: BTreeMap::new(), list };
        for (&id, &version) in recovered {
            leases.hold(id, version, now);
        }
        leases.renew_list();
        leases
    }

    /// The leased versions, ascending.
    pub fn versions(&self) -> Arc<[Version]> {
        Arc::clone(&self.list)
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Does what is asked. `readable` are the oldest and the newest version that can be leased, and `changed` is the newest version at which
    /// anything may have changed.
    ///
    /// # Errors
    /// As [`Endpoint::lease`](ferrisdb_rpc::Endpoint::lease).
    pub fn ask(
        &mut self,
        request: LeaseRequest,
        readable: (Version, Version),
        changed: Version,
        now: Duration,
    ) -> Result<LeaseAnswer> {
        match request {
            LeaseRequest::Grant(version) => {
                let version = self.choose(version, readable, changed, now)?;
                if self.held.len() >= self.options.leases {
                    return Err(self.too_many("leases", self.options.leases));
                }
                let id = self.next_id;
                self.next_id += 1;
                self.hold(id, version, now);
                self.renew_list();
                let entry = Some(Entry::Lease(LeaseChange::Grant { id, version }));
                Ok(LeaseAnswer { lease: Lease { id, version, term_ms: millis(self.options.term) }, entry })
            }
            LeaseRequest::Renew(id) => {
                let term = self.options.term;
                let Some(held) = self.held.get_mut(&id).filter(|held| held.expires_at > now) else {
                    let detail = format!("lease {id} has expired: begin a new snapshot");
                    return Err(Error::with(Code::TransactionTooOld, detail));
                };
                held.expires_at = (now + term).min(held.ends_at);
                let term_ms = millis(held.expires_at - now);
                Ok(LeaseAnswer { lease: Lease { id, version: held.version, term_ms }, entry: None })
            }
            LeaseRequest::End(id) => {
                let version = self.held.get(&id).map_or(Version::ZERO, |held| held.version);
                let entry = self.release(id).then_some(Entry::Lease(LeaseChange::End { id }));
                self.renew_list();
                Ok(LeaseAnswer { lease: Lease { id, version, term_ms: 0 }, entry })
            }
        }
    }

    /// Ends the leases whose term is over, and says what to write down.
    pub fn expire(&mut self, now: Duration) -> Vec<Entry> {
        let over = self.held.iter().filter(|(_, held)| held.expires_at <= now).map(|(&id, _)| id);
        let over: Vec<u64> = over.collect();
        for &id in &over {
            reached(Rare::LeaseExpired);
            self.release(id);
        }
        if !over.is_empty() {
            self.renew_list();
        }
        over.into_iter().map(|id| Entry::Lease(LeaseChange::End { id })).collect()
    }

    /// Takes back a grant that could not be written down.
    pub fn take_back(&mut self, id: u64) {
        self.release(id);
        self.renew_list();
    }

    /// When the next one expires unless renewed.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.held.values().map(|held| held.expires_at).min()
    }

    fn choose(
        &self,
        wanted: Option<Version>,
        (oldest, newest): (Version, Version),
        changed: Version,
        now: Duration,
    ) -> Result<Version> {
        let is_leased = |version| self.versions.contains_key(&version);
        match wanted {
            Some(version) if version > newest => Err(Error::new(Code::FutureVersion)),
            Some(version) if version < oldest && !is_leased(version) => {
                let detail = format!("version {version} is not readable any more: {oldest} is the oldest that is");
                Err(Error::with(Code::TransactionTooOld, detail))
            }
            Some(version) if self.versions.len() >= self.options.versions && !is_leased(version) => {
                Err(self.too_many("different leased versions", self.options.versions))
            }
            Some(version) => Ok(version),
            None => match self.versions.last_key_value() {
                // Nothing has changed since: nobody can tell the two apart.
                Some((&shared, _)) if shared >= changed => Ok(shared),
                Some((&shared, &(_, since))) if self.versions.len() >= self.options.versions => {
                    if now.saturating_sub(since) <= self.options.share_age {
                        Ok(shared)
                    } else {
                        Err(self.too_many("different leased versions", self.options.versions))
                    }
                }
                _ if newest < oldest => Err(Error::with(Code::TransactionTooOld, "the log is catching up: try again")),
                _ => Ok(newest),
            },
        }
    }

    fn too_many(&self, what: &str, limit: usize) -> Error {
        let detail = format!("there are {limit} {what} already: end some snapshots, or try again later");
        Error::with(Code::GrvProxyMemoryLimitExceeded, detail)
    }

    fn hold(&mut self, id: u64, version: Version, now: Duration) {
        let (ends_at, expires_at) = (now + self.options.life, now + self.options.term.min(self.options.life));
        self.held.insert(id, Held { version, ends_at, expires_at });
        self.versions.entry(version).or_insert((0, now)).0 += 1;
    }

    fn release(&mut self, id: u64) -> bool {
        let Some(held) = self.held.remove(&id) else { return false };
        if let Some((holders, _)) = self.versions.get_mut(&held.version) {
            *holders -= 1;
            if *holders == 0 {
                self.versions.remove(&held.version);
            }
        }
        true
    }

    fn renew_list(&mut self) {
        if !self.versions.keys().eq(self.list.iter()) {
            self.list = self.versions.keys().copied().collect::<BTreeSet<_>>().into_iter().collect();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(number: u64) -> Version {
        Version::from_u64(number)
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn new(options: LeaseOptions) -> Leases {
        Leases::new(options, &BTreeMap::new(), 1, s(0))
    }

    #[test]
    fn a_lease_is_shared_only_while_nothing_changes() {
        let mut leases = new(LeaseOptions::default());
        let grant = LeaseRequest::Grant(None);
        let mut ask = |newest, changed| leases.ask(grant, (v(1), v(newest)), v(changed), s(0)).map(|a| a.lease.version);
        assert_eq!(ask(10, 7), Ok(v(10)));
        assert_eq!(ask(15, 7), Ok(v(10)), "empty batches change nothing");
        assert_eq!(ask(20, 18), Ok(v(20)), "a write that the other does not see");
        assert_eq!(*leases.versions(), [v(10), v(20)]);
    }

    #[test]
    fn a_lease_ends_with_its_term_and_its_life() {
        let mut leases = new(LeaseOptions { life: s(100), ..LeaseOptions::default() });
        let id = leases.ask(LeaseRequest::Grant(None), (v(1), v(9)), v(9), s(0)).expect("granted").lease.id;
        assert!(leases.expire(s(59)).is_empty());
        let renewed = leases.ask(LeaseRequest::Renew(id), (v(1), v(9)), v(9), s(59)).expect("renewed").lease;
        assert_eq!(renewed.term_ms, 41_000, "its life ends before another term");
        assert_eq!(leases.expire(s(100)), [Entry::Lease(LeaseChange::End { id })]);
        let error = leases.ask(LeaseRequest::Renew(id), (v(1), v(9)), v(9), s(100)).expect_err("it has ended");
        assert_eq!(error.code(), Code::TransactionTooOld);
        assert!(leases.versions().is_empty());
        assert_eq!(leases.ask(LeaseRequest::End(id), (v(1), v(9)), v(9), s(100)).expect("no error").entry, None);
    }

    #[test]
    fn different_versions_are_bounded() {
        let mut leases = new(LeaseOptions { versions: 2, ..LeaseOptions::default() });
        let mut ask = |wanted: Option<u64>, newest, now| {
            let answer = leases.ask(LeaseRequest::Grant(wanted.map(v)), (v(5), v(newest)), v(newest), s(now));
            answer.map(|answer| answer.lease.version).map_err(|error| error.code())
        };
        assert_eq!(ask(Some(4), 10, 0), Err(Code::TransactionTooOld));
        assert_eq!(ask(Some(11), 10, 0), Err(Code::FutureVersion));
        assert_eq!(ask(None, 10, 0), Ok(v(10)));
        assert_eq!(ask(None, 20, 1), Ok(v(20)));
        assert_eq!(ask(None, 30, 50), Ok(v(20)), "shared with the newest");
        assert_eq!(ask(None, 30, 62), Err(Code::GrvProxyMemoryLimitExceeded), "which is too old for that now");
        assert_eq!(ask(Some(10), 30, 62), Ok(v(10)), "one that is leased costs nothing more");
    }
}
