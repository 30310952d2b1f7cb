//! A server that is gone in the middle of a long command: it ends, and says whom it has waited for.

use super::{Server, command, told, wait_until};

/// The measuring ends with an error too, and does not wait for a server for ever.
#[test]
fn a_benchmark_names_the_server_that_is_silent() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("db"), &[]);
    let address = server.address.clone();
    let arguments = ["bench", "read-only", "--keys", "100", "--seconds", "3600", "--timeout", "5s"];
    let child = command(&[&arguments[..], &server.place()].concat()).spawn().unwrap();
    wait_until("rows are loaded", || {
        server.ok(&["range", "--prefix", "ferrisdb-bench/", "--limit", "1"]).lines().count() > 2
    });
    server.kill();
    let (code, out, error) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    assert!(error.contains(&format!("{address} has not answered within 5 s")), "{error}");
}
