//! Real processes that are one database: they join, one is killed, and it goes on.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferrisdb::Database;
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

/// What is so already is said to be so, by every order, meant or not, with exit code 0; and who excludes once more hears of it only when the process may be stopped.
#[test]
fn an_order_that_changes_nothing_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start(&directory.path().join("1"), &["--cluster"]);
    let second = Server::start(&directory.path().join("2"), &["--join", &first.address]);
    until("two of them are a cluster", || is_whole(&first.address, 2, 1));
    let order = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let more = ["--output", "json", "--connect", &first.address];
        let told: Value = serde_json::from_str(&ok(&[&["cluster"], &words[..], &more].concat())).unwrap();
        format!("{}: {}", told["result"].as_str().unwrap(), told["what"].as_str().unwrap())
    };
    let nothing = [
        ("configure replication=3", "replication is 3 already"),
        ("include 2", "process 2 is not excluded"),
        ("transfer 1", "process 1 leads already"),
    ];
    for (words, says) in nothing {
        assert_eq!(order(words), format!("nothing to do: {says}"));
        assert_eq!(order(&format!("{words} --dry-run")), format!("nothing to do: {says}"));
    }
    drop(second);
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

fn three(directory: &Path, more: &[&str]) -> Vec<Server> {
    let path = |number: usize| directory.join(number.to_string());
    let mut servers = vec![Server::start(&path(1), &[&["--cluster"], more].concat())];
    let join = servers[0].address.clone();
    for number in 2..=3 {
        servers.push(Server::start(&path(number), &[&["--join", &join], more].concat()));
    }
    until_complete(3, &join);
    servers
}

/// Waits as a person does; progress is on standard error.
fn until_complete(processes: usize, address: &str) {
    let processes = processes.to_string();
    let (code, out, error) = run(&["cluster", "members", "--until-complete", &processes, "--connect", address]);
    assert_eq!(code, 0, "{out}{error}");
}

fn number(address: &str) -> u64 {
    status(address)["cluster"]["process"]["number"].as_u64().unwrap()
}

/// One is killed for good; a fresh one takes its place, and the dead one is forgotten. Nothing is lost, and the status says how it is all the time.
#[test]
fn a_dead_process_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let mut servers = three(directory.path(), &["--gone-after", "4s"]);
    let address = servers[0].address.clone();
    set(&address, "k", "1");
    let dead = number(&servers[2].address).to_string();
    servers.pop().unwrap().kill();
    let state = || status(&address)["cluster"]["processes"][&dead]["state"].clone();
    until("it is suspected", || state() == "suspected");
    until("it is gone", || state() == "gone");
    // A new leader, if there is one, has to hear the silence for itself.
    let said = format!("Process {dead} is gone, and its vote in the log is missing");
    until("status says so", || run(&["status", "--connect", &address]).1.contains(&said));
    let fresh = Server::start(&directory.path().join("fresh"), &["--join", &address, "--gone-after", "4s"]);
    until("it is forgotten", || state().is_null());
    until_complete(3, &address);
    assert_eq!(get(&fresh.address, "k"), "1");
    let members = ok(&["cluster", "members", "--connect", &fresh.address]);
    assert!(members.contains(&fresh.address) && members.contains("storage log"), "{members}");
}

/// An order that would cost a vote is refused with the reason; with a fourth process the leader itself is drained, and stopped for good.
#[test]
fn a_process_is_excluded() {
    let directory = tempfile::tempdir().unwrap();
    let servers = three(directory.path(), &["--gone-after", "4s"]);
    let address = servers[0].address.clone();
    let exclude = |named: &str, more: &[&str]| {
        run(&[&["cluster", "exclude", named, "--connect", &servers[1].address], more].concat())
    };
    let (code, out, error) = exclude("2", &[]);
    assert!(code == 1 && out.is_empty() && error.starts_with("error: refused: "), "{error}");
    let (code, _, error) = exclude("77", &[]);
    assert!(code == 1 && error.contains("has no process 77"), "{error}");
    // It knows one process only, which does not lead: that one says where the others are.
    let leads = status(&address)["cluster"]["leader"].as_u64().unwrap();
    let follower = servers.iter().find(|server| number(&server.address) != leads).unwrap().address.clone();
    let fourth = Server::start(&directory.path().join("4"), &["--join", &follower, "--gone-after", "4s"]);
    until_complete(4, &address);
    let leader = status(&address)["cluster"]["leader"].as_u64().unwrap();
    let leads = servers.iter().find(|server| number(&server.address) == leader).unwrap().address.clone();
    until("it may be excluded", || {
        let (code, out, _) = exclude(&leads, &["--dry-run", "--output", "json"]);
        code == 0 && out.contains("would be done")
    });
    assert_eq!(status(&address)["cluster"]["excluded"], serde_json::json!([]));
    until("it is drained", || {
        let (code, out, _) = exclude(&leads, &[]);
        code == 0 && (out.contains("stop it for good") || out.contains("nothing to do"))
    });
    set(&fourth.address, "k", "1");
    let mut servers = servers;
    let at = servers.iter().position(|server| server.address == leads).unwrap();
    servers.remove(at).stop();
    until("it is forgotten", || status(&fourth.address)["cluster"]["processes"][leader.to_string()].is_null());
    assert_eq!(get(&servers[0].address, "k"), "1");
    let (code, out, error) = run(&["cluster", "configure", "replication=2", "--connect", &fourth.address]);
    assert!(code == 0 && out.contains("replication is 2"), "{out}{error}");
    let to = number(&fourth.address);
    until("it leads", || {
        run(&["cluster", "transfer", &to.to_string(), "--connect", &servers[0].address]).0 == 0
            && status(&fourth.address)["cluster"]["leader"] == to
    });
}

/// Every command that changes a cluster can be tried: it says what it would do, that there is nothing to do, or why it refuses, and nothing has changed.
#[test]
fn a_dry_run_of_each_command_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let servers = three(directory.path(), &[]);
    let address = servers[0].address.clone();
    let id = "00ff102030405060708090a0b0c0d0e0";
    // Who leads may change by itself; what orders write does not.
    let standing = || {
        let cluster = &status(&address)["cluster"];
        let processes: Vec<&String> = cluster["processes"].as_object().unwrap().keys().collect();
        let shards = &cluster["shards"];
        let parts = [&cluster["excluded"], &cluster["voters"], &shards["replicas"], &cluster["database_lock_state"]];
        format!("{processes:?} {parts:?}")
    };
    let before = standing();
    let table: [(&[&str], i32, &str); 11] = [
        (&["exclude", "2"], 1, "refused: process 2 is one of the log's 3 voters"),
        (&["exclude", "77"], 1, "refused: the cluster has no process 77; its processes are 1, 2, 3"),
        (&["exclude", "nowhere:1"], 1, "no process of the cluster is at nowhere:1"),
        (&["include", "2"], 0, "nothing to do"),
        (&["include", "77"], 1, "refused: the cluster has no process 77"),
        (&["configure", "replication=2"], 0, "would be done"),
        (&["configure", "replication=9"], 1, "refused: replication=9: there can be 1 to 5 copies"),
        (&["transfer"], 0, "would be done"),
        (&["transfer", "77"], 1, "refused: the cluster has no process 77"),
        (&["lock", "--id", id], 0, "would be done"),
        (&["unlock", id], 0, "nothing to do"),
    ];
    for (order, expected, says) in table {
        let command = [&["cluster"], order, &["--dry-run", "--connect", &address]].concat();
        // A process may be suspected for a moment on a machine that is busy, and that is a reason too.
        until(&format!("{order:?} says '{says}'"), || {
            let (code, out, error) = run(&command);
            code == expected && (if expected == 0 { &out } else { &error }).contains(says)
        });
    }
    assert_eq!(standing(), before);
    set(&address, "k", "1");
}

/// Who waits is told how far it is, on standard error.
#[test]
fn waiting_says_how_far_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--cluster"]);
    let mut waiting =
        super::command(&["cluster", "members", "--until-complete", "2", "--connect", &server.address]).spawn().unwrap();
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(waiting.stderr.take().unwrap()), &mut first).unwrap();
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert!(first.contains(" of 2 processes are complete; voters: 1"), "{first}");
}

/// An address of this program's own on loopback: nobody else takes the port before a server does.
fn own_address() -> String {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, 64 + b % 64, c, d), 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Commits one after the other, each of them one more letter, until it is enough: how many were acknowledged.
fn count_up(
    addresses: &str,
    key: &'static str,
    acknowledged: &Arc<AtomicU64>,
    enough: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let (addresses, acknowledged, enough) = (addresses.to_owned(), Arc::clone(acknowledged), Arc::clone(enough));
    #[expect(clippy::disallowed_methods, reason = "a client of real processes lives on a real thread")]
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let database = Database::connect(&addresses).await.unwrap();
            while !enough.load(Ordering::SeqCst) {
                let counted = database.run(async |tx| {
                    let before = tx.get(key).await?.map_or(0, |value| value.len());
                    tx.set(key, vec![b'1'; before + 1]);
                    Ok(())
                });
                counted.await.unwrap();
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        });
    })
}

/// A server without any option has a database; two others join it while clients use it, and they notice nothing but a pause: it is a cluster. Then the first one is killed, and they go on: all that
/// was acknowledged is there, and happened once.
#[test]
fn a_database_that_is_joined_becomes_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(number.to_string());
    let addresses: Vec<String> = (0..3).map(|_| own_address()).collect();
    let start = |number: usize, more: &[&str]| {
        Server::start(&path(number), &[&["--log-level", "error", "--listen", &addresses[number - 1]], more].concat())
    };
    let first = start(1, &[]);
    let id = status(&first.address)["cluster"]["cluster_id"].clone();
    let counts: Vec<(&'static str, Arc<AtomicU64>)> = ["a", "b", "c"].map(|key| (key, Arc::default())).into();
    let (all, enough) = (addresses.join(","), Arc::default());
    let clients: Vec<_> = counts.iter().map(|(key, count)| count_up(&all, key, count, &enough)).collect();
    let goes_on = || {
        let before: Vec<u64> = counts.iter().map(|(_, count)| count.load(Ordering::SeqCst)).collect();
        until("all clients go on", || {
            counts.iter().zip(&before).all(|((_, count), before)| count.load(Ordering::SeqCst) >= before + 5)
        });
    };
    goes_on();
    let second = start(2, &["--join", &first.address]);
    goes_on();
    let third = start(3, &["--join", &first.address]);
    goes_on();
    until_complete(3, &first.address);
    until("three vote", || is_whole(&third.address, 3, 3));
    goes_on();
    for server in [&first, &second, &third] {
        assert_eq!(status(&server.address)["cluster"]["cluster_id"], id);
    }
    first.kill();
    goes_on();
    enough.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());
    for (key, count) in &counts {
        assert_eq!(get(&third.address, key).len() as u64, count.load(Ordering::SeqCst), "{key}");
    }
    set(&second.address, "k", "1");
    // Its directory is one of a cluster, without any option.
    let again = start(1, &[]);
    until("it has caught up", || {
        let missed = run(&["get", "k", "--connect", &again.address]);
        missed.0 == 0 && missed.1.trim_end() == "1"
    });
    assert_eq!(number(&again.address), 1);
    for server in [again, second, third] {
        server.stop();
    }
}

/// A database of one process goes on as a cluster if it is told to; and a process that listens on all addresses can only be joined if it says at which it is reached.
#[test]
fn a_database_becomes_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let alone = Server::start(&path, &["--listen", "0.0.0.0:0", "--insecure"]);
    set(&alone.address, "k", "1");
    let id = status(&alone.address)["cluster"]["cluster_id"].clone();
    let half = directory.path().join("2");
    let join = ["serve", "--data", half.to_str().unwrap(), "--listen", "127.0.0.1:0", "--join", &alone.address];
    let (code, _, error) = run(&join);
    assert!(code == 1 && error.contains("start it with --advertise HOST:PORT"), "{error}");
    assert_eq!(get(&alone.address, "k"), "1", "it goes on as it was");
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
