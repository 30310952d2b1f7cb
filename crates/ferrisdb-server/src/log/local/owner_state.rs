//! The owner state: what the storage server keeps for the log, in the same durable step as the data that it goes with.
//!
//! It says what the entries up to one version amount to, and from where on the WAL holds the ones behind it. So the log may forget what lies before that place,
//! and still knows after a crash who committed what.
//!
//! # Format (version 1)
//! u8 format version, 16 bytes cluster id, u64 WAL position to replay from, then the state
//!
//! The cluster id tells a storage directory that was put beside the wrong log.

use ferrisdb_core::codec::{Decoder, put_u64};
use ferrisdb_core::{Code, Error, Result};
use ferrisdb_storage::wal::WalPosition;

use crate::log::State;

/// What this build writes, and the newest that it reads.
const OWNER_STATE_FORMAT: u8 = 1;

/// An owner state, read.
pub(in crate::log) struct OwnerState {
    pub(in crate::log) replay_from: WalPosition,
    pub(in crate::log) state: State,
}

impl OwnerState {
    /// The bytes to keep.
    pub(super) fn encode(cluster_id: [u8; 16], replay_from: WalPosition, state: &State) -> Vec<u8> {
        let mut bytes = vec![OWNER_STATE_FORMAT];
        bytes.extend_from_slice(&cluster_id);
        put_u64(&mut bytes, replay_from.to_u64());
        state.encode(&mut bytes);
        bytes
    }

    /// What `bytes` say, of the database with this id.
    ///
    /// # Errors
    /// They are damaged, of a newer build, or of another database.
    pub(in crate::log) fn decode(bytes: &[u8], cluster_id: [u8; 16]) -> Result<OwnerState> {
        let broken = |what: &str| {
            let detail =
                format!("the log's state that the storage engine keeps cannot be read: {what}; restore a backup");
            Error::with(Code::IoError, detail)
        };
        let mut decoder = Decoder::new(bytes);
        if decoder.u8("format version").map_err(|error| broken(error.what))? != OWNER_STATE_FORMAT {
            return Err(broken("it has a format version that this build does not know"));
        }
        if decoder.take(16, "cluster id").map_err(|error| broken(error.what))? != cluster_id {
            let detail =
                "the storage directory belongs to another database than the log; put back the one that belongs here";
            return Err(Error::with(Code::IoError, detail));
        }
        let replay_from = decoder.u64("WAL position").map_err(|error| broken(error.what))?;
        let state = State::decode(decoder.rest()).map_err(|error| broken(error.what))?;
        Ok(OwnerState { replay_from: WalPosition::from_u64(replay_from), state })
    }
}
