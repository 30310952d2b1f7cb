//! System keys that are not stored but answered by the client, for programs that look for them below `\xff` where FoundationDB has them:
//!
//! ```text
//! \xff/coordinators           how the database is reached
//! \xff/keyServers/<key>       where the keys from here on are: the addresses, with commas between
//! ```
//!
//! They are read as other system keys are (option `read_system_keys`), and add no conflicts. A range has them only if it lies among them: one over all
//! system keys has what is stored.
//!
//! There is a `keyServers` key for each shard, which says where the shard begins; a database in one process is one shard, and so has one, at the beginning. What is there
//! is of the moment in which it is asked for, of no version: shards are split, merged and moved meanwhile.

use std::sync::Arc;

use ferrisdb_core::key::{SYSTEM_END, key_after};
use ferrisdb_core::{Bytes, KeyRange, KeySelector, KeyValue, Result};
use ferrisdb_rpc::api::LocationsRequest;

use super::row;
use crate::range::RangeOptions;
use crate::state::Inner;
use crate::view::Budget;

const COORDINATORS: &[u8] = b"\xff/coordinators";
const KEY_SERVERS: &[u8] = b"\xff/keyServers/";

/// One of them, or a range among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SystemModule {
    Coordinators,
    KeyServers,
}

impl SystemModule {
    pub(super) fn of(key: &[u8]) -> Option<SystemModule> {
        match key {
            COORDINATORS => Some(SystemModule::Coordinators),
            _ if key.starts_with(KEY_SERVERS) => Some(SystemModule::KeyServers),
            _ => None,
        }
    }

    /// True if a range that begins here ends here too.
    pub(super) fn has_end(self, end: &[u8]) -> bool {
        self == SystemModule::KeyServers && *end <= *KeyRange::prefix(KEY_SERVERS).end
    }

    /// Its keys and values in a range of its keys, in order; of `enough` that are at or above the range's begin the last ones may be missing.
    pub(super) async fn rows(self, inner: &Arc<Inner>, part: &Part) -> Result<Vec<KeyValue>> {
        let endpoint = &inner.database.endpoint;
        if self == SystemModule::Coordinators {
            return Ok(vec![row(COORDINATORS.to_vec(), endpoint.description().connection_string)]);
        }
        let mut rows: Vec<KeyValue> = Vec::new();
        let mut rest = part.range.clone();
        loop {
            let found = endpoint.locations(LocationsRequest { range: rest.clone(), limit: 0 }).await?;
            let Some(last) = found.locations.last().map(|last| last.begin.clone()) else { break };
            for location in found.locations {
                // The first shard may begin before the range, and of two answers the second one's first is the first one's last.
                if location.begin >= rest.begin {
                    rows.push(row([KEY_SERVERS, &location.begin].concat(), location.addresses.join(",")));
                }
            }
            if !found.more || part.enough.is_some_and(|enough| rows.len() >= enough) {
                break;
            }
            rest.begin = key_after(&last);
        }
        Ok(rows)
    }
}

/// What of a module is wanted.
pub(super) struct Part {
    /// Keys, without what all keys of the module begin with.
    range: KeyRange,
    /// From the range's begin on; `None`: all.
    enough: Option<usize>,
}

impl Part {
    /// One key.
    pub(super) fn of_key(key: &[u8]) -> Part {
        let key = key.strip_prefix(KEY_SERVERS).unwrap_or_default();
        Part { range: KeyRange::single(key), enough: None }
    }

    /// What decides which rows of a range there are: from its begin, unless rows before it count, to its end, unless rows behind it do.
    pub(super) fn of_range(options: &RangeOptions, budget: &Budget) -> Part {
        let RangeOptions { begin, end, reverse, .. } = options;
        let (begin, end) = (begin.clone().without_or_equal(), end.clone().without_or_equal());
        let inside = |selector: &KeySelector| selector.key.strip_prefix(KEY_SERVERS).map(Bytes::copy_from_slice);
        let from = inside(&begin).filter(|_| begin.offset > 0).unwrap_or_default();
        let to = inside(&end).filter(|_| end.offset <= 1).unwrap_or(Bytes::from_static(SYSTEM_END));
        // One more says that there is more.
        let is_plain = !reverse && begin.offset == 1;
        let enough = budget.rows.filter(|_| is_plain).and_then(|rows| usize::try_from(rows).ok()?.checked_add(1));
        Part { range: KeyRange { begin: from, end: to }, enough }
    }
}
