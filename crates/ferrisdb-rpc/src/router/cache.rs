//! [`LocationCache`]: which part of the keys is where, as a client was told some time ago.
//!
//! What is here may have become wrong since: data moves. It is a guess at whom to ask, and who is asked refuses what it does not hold.
//! Each part is forgotten a while after it was told, so that a client hears of replicas that came, too, and the cache holds what is used.
//!
//! Deterministic: time is a parameter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::KeyRange;
use ferrisdb_core::key::SYSTEM_END;

use crate::api::Locations;

/// So many parts are remembered; with more all are forgotten, and those that are used are told again.
const PARTS_MAX: usize = 100_000;

/// Parts without overlaps; `H` says who holds one.
#[derive(Debug)]
pub(super) struct LocationCache<H> {
    parts: BTreeMap<Bytes, Part<H>>,
}

#[derive(Debug)]
struct Part<H> {
    end: Bytes,
    holders: Arc<[H]>,
    until: Duration,
}

impl<H> Default for LocationCache<H> {
    fn default() -> LocationCache<H> {
        LocationCache { parts: BTreeMap::new() }
    }
}

impl<H> LocationCache<H> {
    /// Takes over what was told about everything from a key on. `holder` makes a holder of an address.
    pub(super) fn learn(&mut self, told: &Locations, until: Duration, mut holder: impl FnMut(&str) -> H) {
        let begins = told.locations.iter().map(|location| &location.begin);
        let ends = begins.skip(1).cloned().map(Some).chain([(!told.more).then(|| Bytes::from_static(SYSTEM_END))]);
        for (location, end) in told.locations.iter().zip(ends) {
            // Of the last one it was not said how far it goes.
            let Some(end) = end else { continue };
            let range = KeyRange { begin: location.begin.clone(), end };
            if range.is_empty() {
                continue;
            }
            self.forget(&range);
            let holders = location.addresses.iter().map(|address| holder(address)).collect();
            self.parts.insert(range.begin, Part { end: range.end, holders, until });
        }
        if self.parts.len() > PARTS_MAX {
            self.parts.clear();
        }
    }

    /// Forgets every part that has to do with a range.
    pub(super) fn forget(&mut self, range: &KeyRange) {
        let last = self.parts.range(..range.end.clone()).rev();
        let outdated = last.take_while(|(_, part)| part.end > range.begin).map(|(begin, _)| begin.clone());
        for begin in outdated.collect::<Vec<_>>() {
            self.parts.remove(&begin);
        }
    }

    /// The part that has a key, and who holds it.
    pub(super) fn of_key(&self, key: &[u8], now: Duration) -> Option<(KeyRange, &Arc<[H]>)> {
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let (begin, part) = self.parts.range::<[u8], _>(upto).next_back()?;
        Part::current(begin, part, now).filter(|(range, _)| key < &range.end[..])
    }

    /// The part that has the keys right below one.
    pub(super) fn below(&self, key: &[u8], now: Duration) -> Option<(KeyRange, &Arc<[H]>)> {
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Excluded(key));
        let (begin, part) = self.parts.range::<[u8], _>(upto).next_back()?;
        Part::current(begin, part, now).filter(|(range, _)| key <= &range.end[..])
    }

    /// How many parts are known.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }
}

impl<H> Part<H> {
    fn current<'a>(begin: &Bytes, part: &'a Part<H>, now: Duration) -> Option<(KeyRange, &'a Arc<[H]>)> {
        (now < part.until).then(|| (KeyRange { begin: begin.clone(), end: part.end.clone() }, &part.holders))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Location;

    fn told(parts: &[(&'static str, &str)], more: bool) -> Locations {
        let locations = parts.iter().map(|&(begin, holders)| {
            let addresses = holders.chars().map(String::from).collect();
            Location { begin: begin.into(), addresses }
        });
        Locations { locations: locations.collect(), more, coordinator: None }
    }

    fn learn(cache: &mut LocationCache<String>, parts: &[(&'static str, &str)], more: bool) {
        cache.learn(&told(parts, more), Duration::from_secs(10), str::to_owned);
    }

    /// Part and holders, as `begin-end:holders`.
    fn of(found: Option<(KeyRange, &Arc<[String]>)>) -> String {
        found.map_or("?".to_owned(), |(range, holders)| {
            let text = |key: &Bytes| ferrisdb_core::key::printable(key);
            format!("{}-{}:{}", text(&range.begin), text(&range.end), holders.concat())
        })
    }

    /// What was told last counts, whatever it cuts through, and the last of a part of an answer is not taken for what it is not.
    #[test]
    fn what_was_told_last_counts() {
        let (mut cache, now) = (LocationCache::default(), Duration::ZERO);
        assert_eq!(of(cache.of_key(b"k", now)), "?");
        learn(&mut cache, &[("", "ab"), ("g", "bc"), ("p", "ca")], false);
        assert_eq!(of(cache.of_key(b"", now)), "-g:ab");
        assert_eq!(of(cache.of_key(b"g", now)), "g-p:bc");
        assert_eq!(of(cache.below(b"g", now)), "-g:ab");
        assert_eq!(of(cache.below(b"ga", now)), "g-p:bc");
        assert_eq!(of(cache.below(b"\xff\xff", now)), "p-\\xff\\xff:ca");
        assert_eq!(of(cache.below(b"", now)), "?");
        // A shard was split and a half of it has moved; how far the one behind it goes was not said.
        learn(&mut cache, &[("g", "d"), ("k", "bc"), ("p", "xy")], true);
        assert_eq!(of(cache.of_key(b"h", now)), "g-k:d");
        assert_eq!(of(cache.of_key(b"k", now)), "k-p:bc");
        assert_eq!(of(cache.of_key(b"q", now)), "p-\\xff\\xff:ca");
        // Two were merged, and what is known of the third cannot be true any more.
        learn(&mut cache, &[("c", "e"), ("q", "f")], false);
        assert_eq!(of(cache.of_key(b"a", now)), "?");
        assert_eq!(of(cache.of_key(b"c", now)), "c-q:e");
        assert_eq!(of(cache.of_key(b"z", now)), "q-\\xff\\xff:f");
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn what_is_old_or_wrong_is_forgotten() {
        let mut cache = LocationCache::default();
        learn(&mut cache, &[("", "a"), ("g", "b")], false);
        assert_eq!(of(cache.of_key(b"a", Duration::from_millis(9_999))), "-g:a");
        assert_eq!(of(cache.of_key(b"a", Duration::from_secs(10))), "?");
        assert_eq!(of(cache.below(b"b", Duration::from_secs(10))), "?");
        cache.forget(&KeyRange::new("b", "c"));
        assert_eq!((of(cache.of_key(b"a", Duration::ZERO)), cache.len()), ("?".to_owned(), 1));
        let many: Vec<_> = (0..=PARTS_MAX).map(|number| format!("{number:08}")).collect();
        let locations = many.into_iter().map(|begin| Location { begin: begin.into(), addresses: Vec::new() }).collect();
        let told = Locations { locations, more: false, coordinator: None };
        cache.learn(&told, Duration::MAX, str::to_owned);
        assert_eq!(cache.len(), 0, "it has a bound");
    }
}
