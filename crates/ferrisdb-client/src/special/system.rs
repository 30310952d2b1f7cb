//! System keys that are not stored but answered by the client, for programs that look for them below `\xff` where FoundationDB has them:
//!
//! ```text
//! \xff/coordinators           how the database is reached
//! \xff/keyServers/<key>       where the keys from here on are: the addresses, with commas between
//! ```
//!
//! They are read as other system keys are (option `read_system_keys`), and add no conflicts. A range has them only if it lies among them: one over all
//! system keys has what is stored. Every storage server has all keys, so that there is one boundary, at the beginning.

use std::sync::Arc;

use ferrisdb_core::{Bytes, KeyRange, KeyValue, Result};

use super::row;
use crate::state::Inner;

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

    pub(super) async fn rows(self, inner: &Arc<Inner>) -> Result<Vec<KeyValue>> {
        Ok(match self {
            SystemModule::Coordinators => {
                vec![row(COORDINATORS.to_vec(), inner.database.endpoint.description().connection_string)]
            }
            SystemModule::KeyServers => {
                let addresses = inner.database.endpoint.addresses_for_key(Bytes::new()).await?;
                vec![row(KEY_SERVERS.to_vec(), addresses.join(","))]
            }
        })
    }
}
