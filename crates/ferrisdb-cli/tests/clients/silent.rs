//! Waiting: a server that is gone in the middle of a long command is told by its name; a watch waits for as long as it takes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

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

/// So is an import told, with the place that it came to; and with what goes on there.
#[test]
fn an_import_names_the_server_that_is_silent_and_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("db"), &[]);
    let address = server.address.clone();
    let arguments = [
        "import",
        "-",
        "--format",
        "csv",
        "--key",
        "row/{id}",
        "--job",
        "rows",
        "--batch-rows",
        "10",
        "--timeout",
        "5s",
    ];
    let mut import = command(&[&arguments[..], &server.place()].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    let rows = |from: u32| (from..from + 20).map(|id| format!("{id}\n")).collect::<String>();
    input.write_all(format!("id\n{}", rows(100)).as_bytes()).unwrap();
    wait_until("a batch is there", || server.ok(&["range", "--prefix", "row/"]).lines().count() > 2);
    server.kill();
    // Its reader may have ended before all of this is taken.
    drop(input.write_all(rows(120).as_bytes()));
    drop(input);
    let (code, out, error) = told(&import.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    let what = format!("0: {address} has not answered within 5 s");
    assert!(error.contains("the import stopped behind row ") && error.contains(&what), "{error}");
    assert!(error.contains("the same command goes on behind the last batch"), "{error}");
}

/// `--timeout` is for answers. A watch has none before the key changes, at a terminal and in a script.
#[test]
fn a_watch_in_a_script_outlasts_the_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("db"), &[]);
    let arguments = [&["shell", "--timeout", "4s"], &server.place()[..]].concat();
    let mut watcher = command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    watcher.stdin.take().unwrap().write_all(b"get a\nwatch a\n").unwrap();
    let mut output = BufReader::new(watcher.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "not found\n");
    #[expect(clippy::disallowed_methods, reason = "the test is about the passing of time")]
    std::thread::sleep(Duration::from_secs(6));
    let mut value = 0;
    while watcher.try_wait().unwrap().is_none() {
        server.ok(&["set", "a", &value.to_string()]);
        value += 1;
        assert!(value < 10_000, "the watch is not told");
    }
    let mut seen = String::new();
    output.read_to_string(&mut seen).unwrap();
    let (code, _, error) = told(&watcher.wait_with_output().unwrap());
    assert!(code == 0 && seen.trim().parse::<i32>().is_ok(), "{seen}{error}");
}
