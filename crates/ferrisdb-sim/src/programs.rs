//! What runs on the hosts of a simulation: a [database](one_process) in one process. Whatever else serves clients goes beside it.

use std::future::{pending, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::Error;
use ferrisdb_rpc::{Endpoint, ServeOptions};
use ferrisdb_server::{Node, NodeOptions};
use ferrisdb_storage::fs::sim::{CrashMode, SimFileSystem};
use ferrisdb_storage::inspect::{Cell, Sink};
use ferrisdb_storage::{Env, inspect};

use crate::world::{DIRECTORY, Doors, Ended, Process};

/// Where servers listen.
pub const PORT: u16 = 4500;
/// How often somebody looks whether the database still commits.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A whole database in one process, which ends when it commits nothing any more: whoever runs it has to look at the disk then, and start it again.
pub fn one_process(options: NodeOptions) -> impl Process {
    move |doors: Doors| serve_node(doors, options.clone())
}

async fn serve_node(doors: Doors, options: NodeOptions) -> Ended {
    let said = |error: Error| error.to_string();
    let node = Arc::new(Node::open(doors.env.clone(), &doors.directory, options).map_err(said)?);
    doors.catch_up().await;
    let listener = doors.network.listen(PORT).await.map_err(|error| error.to_string())?;
    let endpoint: Arc<dyn Endpoint> = Arc::<Node>::clone(&node);
    let mut serving = pin!(ferrisdb_rpc::serve(listener, endpoint, ServeOptions::default(), pending()));
    let mut failing = pin!(async {
        loop {
            if let Some(failure) = node.failure() {
                break failure;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    poll_fn(|context| match failing.as_mut().poll(context) {
        Poll::Ready(failure) => Poll::Ready(Err(failure.to_string())),
        Poll::Pending => serving.as_mut().poll(context).map(Ok),
    })
    .await
}

/// Checks what [`one_process`] has on its disk, as `ferrisdb verify` does: every checksum, the order of keys, the manifest, the log.
///
/// # Errors
/// The first problem.
pub fn verify(files: &SimFileSystem) -> Result<(), String> {
    let copy = || Env::sim(files.fork_crashed(CrashMode::NothingLost));
    let report = Node::verify_log(copy(), DIRECTORY).map_err(|error| format!("the log: {error}"))?;
    if let Some(problem) = report.problems.first() {
        return Err(format!("the log: {problem}"));
    }
    let mut rows = Rows::default();
    let problems = inspect::verify(&copy(), &Path::new(DIRECTORY).join("storage"), &mut rows);
    match problems {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("the tables: {}", rows.0.join("; "))),
        Err(error) => Err(format!("the tables: {error}")),
    }
}

/// Keeps the rows of an inspection.
#[derive(Default)]
struct Rows(Vec<String>);

impl Sink for Rows {
    fn field(&mut self, _name: &'static str, _value: Cell<'_>) -> ferrisdb_storage::Result<()> {
        Ok(())
    }

    fn table(&mut self, _name: &'static str, _columns: &'static [&'static str]) -> ferrisdb_storage::Result<()> {
        Ok(())
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> ferrisdb_storage::Result<()> {
        let words: Vec<String> = cells.iter().map(ToString::to_string).collect();
        self.0.push(words.join(" "));
        Ok(())
    }
}
