//! What runs on the hosts of a simulation: a [database](one_process) in one process. Whatever else serves clients goes beside it.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::Error;
use ferrisdb_rpc::{Endpoint, ServeOptions};
use ferrisdb_server::{Node, NodeOptions};

use crate::world::{Doors, Ended, Process};

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
