//! The [history](crate::history) workload: everything mixed, recorded, and certified in version order at the end.

use std::sync::Arc;

use ferrisdb_client::Database;
use ferrisdb_core::Bytes;

use super::{Client, Verdict, Work, Workload};
use crate::history::workload::{Recorder, client, everything};
use crate::history::{MARKER_PREFIX, certify};

/// Its keys begin with letters, its markers with `\xfe`; what others write lies between.
const OTHERS_FROM: &[u8] = b"}";

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Recorded {
    recorder: Arc<Recorder>,
}

impl Workload for Recorded {
    fn name(&self) -> &'static str {
        "history"
    }

    fn step<'a>(&'a self, of: &'a Client) -> Work<'a, ()> {
        Box::pin(async move {
            client(of.db.clone(), of.runtime(), Arc::clone(&self.recorder), of.random(), 1).await;
            Ok(())
        })
    }

    fn judge<'a>(&'a self, db: &'a Database) -> Work<'a, Verdict> {
        Box::pin(async move {
            let mut end = everything(db).await?;
            let is_ours = |key: &Bytes| key.starts_with(MARKER_PREFIX) || key.as_ref() < OTHERS_FROM;
            end.retain(|row| is_ours(&row.key));
            let certified = certify(&[], &self.recorder.attempts(), &end);
            Ok(certified.err().map(|violation| format!("the history is not strictly serializable: {violation}")))
        })
    }

    fn counted_apart(&self) -> u64 {
        self.recorder.committed()
    }
}
