//! Causality through a side channel (FoundationDB's *Sideband*): one client commits and tells another past the database; a transaction that begins
//! after that sees it.

use std::sync::Mutex;

use ferrisdb_client::Database;
use ferrisdb_core::Version;

use super::{Client, Verdict, Work, Workload, key, lock};

const SPACE: &str = "}side/";

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Sideband {
    /// What was acknowledged last.
    told: Mutex<Option<(u64, Version)>>,
}

impl Workload for Sideband {
    fn name(&self) -> &'static str {
        "sideband"
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            if client.below(2) == 0 {
                let id = client.fresh_id();
                let tx = client.db.create_transaction();
                tx.set(key(SPACE, id), "told");
                client.commit(&tx).await?;
                let version = tx.get_committed_version().expect("it wrote, and has committed");
                *lock(&self.told) = Some((id, version));
                return Ok(());
            }
            let Some((id, version)) = *lock(&self.told) else { return Ok(()) };
            let tx = client.db.create_transaction();
            let read_version = tx.get_read_version().await?;
            if read_version < version {
                client.violation(format!("it was told of {version} and began at {read_version} after that"));
            }
            if tx.get(key(SPACE, id)).await?.is_none() {
                client.violation(format!("it was told of {id} at {version}, and does not see it at {read_version}"));
            }
            Ok(())
        })
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(async move {
            let Some((id, version)) = *lock(&self.told) else { return Ok(None) };
            let value = db.run(async |tx| tx.get(key(SPACE, id)).await).await?;
            Ok(value.is_none().then(|| format!("{id}, acknowledged at {version}, is not there")))
        })
    }
}
