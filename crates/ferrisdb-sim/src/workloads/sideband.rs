//! Causality through a side channel (FoundationDB's *Sideband*): one client commits and tells another past the database; a transaction that begins
//! after that sees it.
//!
//! Half of the clients go the way that clients go: to whoever they take for the leader. The others ask each server by itself, all of them at once, and apart for writing and for listening. Who goes the way
//! that clients go waits for the answer to a commit while a leader is cut off from the others, and asks it for nothing meanwhile; so does who asks one server after the other. But then nobody would
//! see that a deposed leader still tells read versions, which takes one who commits at its successor and one who listens to it, in the same second.

use std::sync::Mutex;
use std::time::Duration;

use ferrisdb_client::Database;
use ferrisdb_core::{Result, Version};
use futures_util::future::join_all;

use super::{Client, Verdict, Work, Workload, key, lock};

const SPACE: &str = "}side/";
/// For so long each server is asked in one step.
const ROUND: Duration = Duration::from_secs(2);
/// The longest pause between two questions to the same server, in milliseconds.
const PAUSE_MAX: u64 = 100;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Sideband {
    /// The newest of what was acknowledged.
    told: Mutex<Option<(u64, Version)>>,
}

impl Sideband {
    async fn tell(&self, client: &Client, db: &Database) -> Result<()> {
        let id = client.fresh_id();
        let tx = db.create_transaction();
        tx.set(key(SPACE, id), "told");
        client.commit(&tx).await?;
        let version = tx.get_committed_version().expect("it wrote, and has committed");
        let mut told = lock(&self.told);
        if told.is_none_or(|(_, newest)| newest < version) {
            *told = Some((id, version));
        }
        Ok(())
    }

    async fn listen(&self, client: &Client, db: &Database) -> Result<()> {
        let Some((id, version)) = *lock(&self.told) else { return Ok(()) };
        let tx = db.create_transaction();
        let read_version = tx.get_read_version().await?;
        if read_version < version {
            client.violation(format!("it was told of {version} and began at {read_version} after that"));
        }
        if tx.get(key(SPACE, id)).await?.is_none() {
            client.violation(format!("it was told of {id} at {version}, and does not see it at {read_version}"));
        }
        Ok(())
    }

    /// Tells, or listens, through one server alone.
    async fn ask_one(&self, client: &Client, server: usize, tells: bool) {
        let end = client.now() + ROUND;
        while client.now() < end && !client.is_over() {
            client.sleep(Duration::from_millis(1 + client.below(PAUSE_MAX))).await;
            let asked = async {
                let db = client.db_of(server).await?;
                if tells { self.tell(client, &db).await } else { self.listen(client, &db).await }
            };
            // A server that does not answer says nothing that is wrong.
            asked.await.ok();
        }
    }
}

impl Workload for Sideband {
    fn name(&self) -> &'static str {
        "sideband"
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            if client.number % 2 == 1 {
                return match client.below(2) {
                    0 => self.tell(client, &client.db).await,
                    _ => self.listen(client, &client.db).await,
                };
            }
            let of_server = |server| [false, true].map(|tells| self.ask_one(client, server, tells));
            join_all((0..client.servers()).flat_map(of_server)).await;
            Ok(())
        })
    }

    /// Who asks each server by itself has always done it in the end.
    fn is_driven_by(&self, client: &Client) -> bool {
        client.number % 2 == 1
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(async move {
            let Some((id, version)) = *lock(&self.told) else { return Ok(None) };
            let value = db.run(async |tx| tx.get(key(SPACE, id)).await).await?;
            Ok(value.is_none().then(|| format!("{id}, acknowledged at {version}, is not there")))
        })
    }
}
