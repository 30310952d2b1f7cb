//! Watches that must fire. Every other client waits for keys to change, the others change them. In the end every key is changed once more: whoever still
//! waits then is told, or its client never ends, which the run notices.

use ferrisdb_client::Database;
use ferrisdb_core::MutationKind;

use super::{Client, Verdict, Work, Workload, key};

const SPACE: &str = "}watch/";
const KEYS: u64 = 4;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Watches;

impl Workload for Watches {
    fn name(&self) -> &'static str {
        "watches"
    }

    fn step<'a>(&'a self, client: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            let key = key(SPACE, client.below(KEYS));
            // Were all of them to wait, nobody would change anything.
            if client.number % 2 == 1 || client.below(3) == 0 {
                return client
                    .run(async |tx| {
                        tx.atomic_op(&key, 1u64.to_le_bytes(), MutationKind::Add);
                        Ok(())
                    })
                    .await;
            }
            let (before, watch) = client
                .run(async |tx| {
                    let before = tx.get(&key).await?;
                    Ok((before, tx.watch(&key)))
                })
                .await?;
            watch.await?;
            // The counter only goes up: what has changed stays changed.
            let after = client.run(async |tx| tx.get(&key).await).await?;
            if after == before {
                // It may fire without a change; then whoever waits looks again.
                client.count("watches that fired early");
            } else {
                client.count("watches that fired");
            }
            Ok(())
        })
    }

    fn wind_up<'a>(&'a self, db: &'a Database) -> Work<'a, ()> {
        Box::pin(db.run(async |tx| {
            (0..KEYS).for_each(|number| tx.atomic_op(key(SPACE, number), 1u64.to_le_bytes(), MutationKind::Add));
            Ok(())
        }))
    }

    fn judge<'a>(&'a self, _db: &'a Database) -> Work<'a, Verdict> {
        // That the clients have ended is the proof.
        Box::pin(async { Ok(None) })
    }
}
