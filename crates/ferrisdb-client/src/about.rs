//! What a program can ask about its client and the way to the database, without asking the database for data.

use std::fmt::Write as _;
use std::time::Duration;

use ferrisdb_core::{Code, Error, Result};

use crate::database::Database;
use crate::transaction::Transaction;

impl Database {
    /// How this client is, JSON: `Healthy` says whether it has a way to the database at this moment. It asks nobody.
    pub fn get_client_status(&self) -> String {
        let id = self.description().cluster_id.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String");
            text
        });
        let (is_healthy, protocol) = (self.inner.endpoint.is_reachable(), self.get_server_protocol());
        format!("{{\"Healthy\":{is_healthy},\"ClusterID\":\"{id}\",\"ProtocolVersion\":{protocol}}}")
    }

    /// The version of the protocol that this client and its server speak; both know the same ones, or there would be no connection.
    pub fn get_server_protocol(&self) -> u64 {
        u64::from(ferrisdb_rpc::PROTOCOL_MAX)
    }
}

impl Transaction {
    /// For how long its tags have held it up: not at all, for FerrisDB throttles by priority and not by tag.
    pub fn get_tag_throttled_duration(&self) -> Duration {
        Duration::ZERO
    }

    /// What it has cost, for throttling by tag.
    ///
    /// # Errors
    /// `unsupported_operation`: FerrisDB does not throttle by tag, and keeps no such account.
    pub fn get_total_cost(&self) -> Result<u64> {
        Err(Error::with(Code::UnsupportedOperation, "the cost of a transaction is not counted"))
    }
}
