//! A database served by this process, for the commands that a test runs: one that is in memory, or has a disk that the test can spoil.

use std::sync::Arc;

use ferrisdb::Database;

/// Serves a database for as long as `work` runs, which gets the address.
pub(crate) fn served(database: &Database, work: impl FnOnce(&str)) {
    let endpoint = Arc::clone(database.node().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let options = ferrisdb_rpc::ServeOptions::default();
                ferrisdb_rpc::serve(listener, endpoint, options, async { drop(stopped.await) }).await;
            });
        });
        // It is dropped after a panic too, so that the thread ends.
        let _stop = stop;
        work(&address);
    });
}
