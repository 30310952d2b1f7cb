//! Real processes that are one database: they join, one is killed, and it goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Server, ok, run};

/// Whatever takes longer than this will not come.
const PATIENCE: Duration = Duration::from_secs(120);

fn status(address: &str) -> Value {
    let text = ok(&["status", "--json", "--connect", address]);
    serde_json::from_str(&text).unwrap()
}

/// Looks until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "real processes take real time")]
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        #[expect(clippy::disallowed_methods, reason = "as above")]
        let now = Instant::now();
        assert!(now < end, "{what}: not within {PATIENCE:?}");
        #[expect(clippy::disallowed_methods, reason = "as above")]
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_whole(address: &str, processes: usize, voters: usize) -> bool {
    let cluster = &status(address)["cluster"];
    let known = cluster["processes"].as_object().unwrap();
    let complete = known.values().filter(|process| process["is_complete"] == true).count();
    let own = &cluster["process"];
    complete == processes && own["is_complete"] == true && own["log"]["voters"].as_array().unwrap().len() == voters
}

fn set(address: &str, key: &str, value: &str) {
    ok(&["set", key, value, "--connect", address]);
}

fn get(address: &str, key: &str) -> String {
    ok(&["get", key, "--connect", address]).trim_end().to_owned()
}

/// Any process reads and writes for the whole; the one that leads is killed, the others go on; it comes back and has what it missed.
#[test]
fn three_processes_are_one_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(number.to_string());
    let first = Server::start(&path(1), &["--cluster"]);
    for number in 0..100 {
        set(&first.address, &format!("before/{number}"), &number.to_string());
    }
    let join = first.address.clone();
    let second = Server::start(&path(2), &["--join", &join]);
    let third = Server::start(&path(3), &["--join", &format!("{},{join}", second.address)]);
    let servers = [first, second, third];
    for server in &servers {
        until("three of them are a cluster", || is_whole(&server.address, 3, 3));
    }
    set(&servers[1].address, "k", "1");
    assert_eq!(get(&servers[2].address, "k"), "1", "one process shows what another one was told");
    assert_eq!(get(&servers[2].address, "before/99"), "99", "it was copied");

    let leader = status(&servers[0].address)["cluster"]["leader"].as_u64().unwrap();
    let (mut lost, mut rest) = (None, Vec::new());
    for server in servers {
        let number = status(&server.address)["cluster"]["process"]["number"].as_u64().unwrap();
        if number == leader { lost = Some(server) } else { rest.push(server) }
    }
    let lost = lost.unwrap();
    let address = lost.address.clone();
    let data = lost.data.clone();
    lost.kill();
    set(&rest[0].address, "k", "2");
    assert_eq!(get(&rest[1].address, "k"), "2");

    let again = Server::start(Path::new(&data), &["--listen", &address]);
    until("it has caught up", || {
        let missed = run(&["get", "k", "--connect", &again.address]);
        missed.0 == 0 && missed.1.trim_end() == "2"
    });
    // Of the two others one is enough.
    rest.pop().unwrap().kill();
    set(&again.address, "k", "3");
    assert_eq!(get(&rest[0].address, "k"), "3");
    again.stop();
}

/// A database in one process becomes a cluster where it is, and stays one.
#[test]
fn a_database_becomes_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let alone = Server::start(&path, &[]);
    set(&alone.address, "k", "1");
    let id = status(&alone.address)["cluster"]["cluster_id"].clone();
    let (code, _, error) = run(&[
        "serve",
        "--data",
        directory.path().join("2").to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--join",
        &alone.address,
    ]);
    assert!(code == 1 && error.contains("--cluster"), "{error}");
    let half = directory.path().join("2");
    let (code, _, error) = run(&["serve", "--data", half.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && error.contains("has not joined yet") && error.contains("--join"), "{error}");
    alone.stop();
    let grown = Server::start(&path, &["--cluster"]);
    assert_eq!(get(&grown.address, "k"), "1");
    assert_eq!(status(&grown.address)["cluster"]["cluster_id"], id);
    set(&grown.address, "k", "2");
    grown.kill();
    let grown = Server::start(&path, &[]);
    assert_eq!(get(&grown.address, "k"), "2");
    grown.stop();
    let data = path.to_str().unwrap();
    let (code, _, error) = run(&["get", "k", "--data", data]);
    assert!(code == 1 && error.contains("belongs to a process of a cluster") && error.contains(data), "{error}");

    let other = directory.path().join("other");
    Server::start(&other, &[]).stop();
    let (code, _, error) = run(&["serve", "--data", other.to_str().unwrap(), "--join", "127.0.0.1:1"]);
    assert!(code == 2 && error.contains("holds a database of its own"), "{error}");
}
