//! Snapshots that are held for long, with a lease on their version. Some clients change rows all the time; others take a snapshot, keep it for seconds, far beyond the window in which a transaction
//! may read, and read all of it again and again: every time the same bytes, whoever leads meanwhile, wherever the shards go, and whatever is killed.
//!
//! The lease of a snapshot ends before its client ends it only for reasons that the run knows: the coordinator's clock went wrong, or storage servers that had the old versions are gone with
//! them. Anything else that takes it is a violation.

use std::time::Duration;

use ferrisdb_client::{Database, Snapshot, SnapshotOptions};
use ferrisdb_core::{Code, KeyRange, KeyValue, Result};

use super::{Client, Verdict, Work, Workload, key};

const SPACE: &str = "}snapshot/";
const END: &str = "}snapshot0";
const KEYS: u64 = 24;
/// How long a snapshot is held, in milliseconds: longer than a version is readable without a lease, and much less than a lease's term.
const HELD: (u64, u64) = (6_000, 15_000);
/// The longest pause between two readings, in milliseconds.
const PAUSE_MAX: u64 = 1_500;

/// What has happened to the processes of a cluster is known to the run within this time: they say ten times a second how they stand.
const NOTED_WITHIN: Duration = Duration::from_millis(500);

/// What ends leases early without being wrong: counted where it happens.
pub(crate) const MAY_END_LEASES: &str = "events that may end leases";

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Snapshots;

impl Snapshots {
    /// Rows come, change and go.
    async fn change(&self, client: &Client) -> Result<()> {
        let (number, value) = (client.below(KEYS), client.random().to_be_bytes());
        let many = usize::try_from(client.below(40)).expect("small");
        client
            .run(async |tx| {
                match value[0] % 4 {
                    0 => tx.clear(key(SPACE, number)),
                    1 => tx.clear_range(key(SPACE, number), key(SPACE, number + 3)),
                    _ => tx.set(key(SPACE, number), value.repeat(1 + many)),
                }
                Ok(())
            })
            .await
    }

    async fn hold(&self, client: &Client) -> Result<()> {
        let begun = client.now();
        let may_have_ended = client.counted(MAY_END_LEASES);
        let snapshot = client.db.snapshot(SnapshotOptions::default()).await?;
        let first = rows(&snapshot).await?;
        let length = Duration::from_millis(HELD.0 + client.below(HELD.1 - HELD.0));
        let mut readings = 0;
        while client.now() < begun + length && !client.is_over() {
            client.sleep(Duration::from_millis(1 + client.below(PAUSE_MAX))).await;
            match rows(&snapshot).await {
                Ok(again) if again == first => readings += 1,
                Ok(again) => {
                    let (version, age) = (snapshot.version(), client.now() - begun);
                    let differs = first.iter().zip(&again).find(|(one, other)| one != other);
                    client.violation(format!(
                        "a snapshot at {version} is another one after {age:?}: {} rows and {} now, first {differs:?}",
                        first.len(),
                        again.len()
                    ));
                }
                Err(error) if error.code() == Code::TransactionTooOld => {
                    client.count("snapshots: leases that ended early");
                    // Whoever waited for the last one that had the version hears of its end at once, and whoever looks after the cluster with its next look.
                    client.sleep(NOTED_WITHIN).await;
                    if client.counted(MAY_END_LEASES) == may_have_ended {
                        let (version, age) = (snapshot.version(), client.now() - begun);
                        client.violation(format!("a snapshot at {version} is not readable after {age:?}: {error}"));
                    }
                    return Ok(());
                }
                // Nobody could be asked: the snapshot is there all the same.
                Err(_) => {}
            }
        }
        if readings > 0 && client.now() >= begun + length {
            client.count("snapshots: held to the end");
        }
        Ok(())
    }
}

async fn rows(snapshot: &Snapshot) -> Result<Vec<KeyValue>> {
    snapshot.get_ranges(KeyRange::new(SPACE, END)).collect().await
}

impl Workload for Snapshots {
    fn name(&self) -> &'static str {
        "snapshots"
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            // Were all of them to hold one, nothing would change.
            if client.number % 2 == 1 { self.change(client).await } else { self.hold(client).await }
        })
    }

    /// Whoever holds a snapshot has not done anything for long.
    fn is_driven_by(&self, client: &Client) -> bool {
        client.number % 2 == 1
    }

    fn judge<'a>(&'a self, _db: &'a Database) -> Work<'a, Verdict> {
        // What is wrong was said when it was seen.
        Box::pin(async { Ok(None) })
    }
}
