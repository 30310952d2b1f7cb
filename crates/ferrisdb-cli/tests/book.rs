//! The commands on the book's pages do what the pages say: all blocks of a page are run, in order, in one directory. Those that are not run are listed with the reason, and each page
//! has as many blocks as that says.

use std::path::Path;
use std::process::{Command, Stdio};

/// The server's address on the page. A port that the machine has not free would be no fault of the page's: the test takes another.
const ADDRESS: &str = "127.0.0.1:47311";
const PAGE: &str = include_str!("../../../docs/command-line.md");

const CLUSTER_PAGE: &str = include_str!("../../../docs/cluster.md");
/// Where the processes on that page listen: at these ports, up to the number of processes.
const CLUSTER_ADDRESSES: [&str; 5] =
    ["127.0.0.1:47321", "127.0.0.1:47322", "127.0.0.1:47323", "127.0.0.1:47324", "127.0.0.1:47325"];

/// An address of this process's own on loopback, with a free port.
fn own_address() -> String {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let free = std::net::TcpListener::bind((std::net::Ipv4Addr::new(127, 64 + b % 64, c, d), 0)).expect("a port");
    free.local_addr().expect("it has an address").to_string()
}

const SIMULATION_PAGE: &str = include_str!("../../../docs/simulation.md");
const README: &str = include_str!("../../../README.md");

/// All pages with blocks of shell commands, how many they have, and who runs them.
const PAGES: [(&str, usize, &str); 6] = [
    (PAGE, 9, "every_command_of_the_page_runs"),
    (CLUSTER_PAGE, 7, "every_command_of_the_page_about_clusters_runs"),
    (SIMULATION_PAGE, 1, "every_command_of_the_page_about_the_simulation_runs"),
    (README, 2, "the demo and the tests, which CI runs; and names of files that a database of the reader's has"),
    (include_str!("../../../docs/scaling.md"), 1, "a benchmark of half an hour, with an optimised build of its own"),
    (include_str!("../../../CONTRIBUTING.md"), 2, "CI itself, and fuzzing, which needs a compiler for C++"),
];

/// The blocks of shell commands on the page.
fn blocks(page: &'static str) -> Vec<&'static str> {
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("a split has a first part")).collect()
}

/// Runs the blocks of a page, with other addresses, in one shell each.
fn run_page(page: &'static str, blocks_min: usize, addresses: &[(&str, String)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    run_blocks(directory.path(), page, &blocks(page), blocks_min, addresses);
    directory
}

/// Runs blocks of a page in a directory.
fn run_blocks(directory: &Path, page: &str, blocks: &[&str], blocks_min: usize, addresses: &[(&str, String)]) {
    let binaries = Path::new(env!("CARGO_BIN_EXE_ferrisdb")).parent().expect("the binary is in a directory");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").expect("there is a PATH"));
    assert!(blocks.len() >= blocks_min, "the page has {} blocks", blocks.len());
    for (written, _) in addresses {
        assert!(page.contains(written));
    }
    for block in blocks {
        let block = addresses.iter().fold((*block).to_owned(), |block, (written, own)| block.replace(written, own));
        let output = Command::new("sh")
            .args(["-e", "-u", "-c", &block])
            .current_dir(directory)
            .env("PATH", &path)
            .env_remove("FERRISDB_DATA")
            .env_remove("FERRISDB_CONNECT")
            .stdin(Stdio::null())
            .output()
            .expect("there is a shell");
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            let logs: Vec<String> = directory
                .read_dir()
                .expect("it is there")
                .filter_map(|entry| {
                    entry.ok().filter(|entry| entry.path().extension().is_some_and(|name| name == "log"))
                })
                .map(|entry| {
                    format!("{:?}:\n{}", entry.file_name(), std::fs::read_to_string(entry.path()).unwrap_or_default())
                })
                .collect();
            stop_servers(directory);
            panic!(
                "{block}\n{}\n{}{}\n{}",
                output.status,
                shown(&output.stdout),
                shown(&output.stderr),
                logs.join("\n")
            );
        }
    }
}

/// Kills the servers that a page has left.
fn stop_servers(directory: &Path) {
    for entry in directory.read_dir().expect("it is there").flatten() {
        if entry.path().extension().is_some_and(|name| name == "pid") {
            let kill = "kill -9 \"$(cat \"$0\")\" 2> /dev/null || true";
            Command::new("sh").args(["-c", kill]).arg(entry.path()).status().expect("there is a shell");
        }
    }
}

#[test]
fn every_command_of_the_page_runs() {
    drop(run_page(PAGE, 6, &[(ADDRESS, own_address())]));
}

#[test]
fn every_command_of_the_page_about_clusters_runs() {
    let addresses = CLUSTER_ADDRESSES.map(|written| (written, own_address()));
    let directory = run_page(CLUSTER_PAGE, 6, &addresses);
    stop_servers(directory.path());
}

/// With a seed or two in place of as many as a machine has time for.
#[test]
fn every_command_of_the_page_about_the_simulation_runs() {
    let fewer = [("--seeds 20", "2"), ("--minutes 60", "1 --seeds 1"), ("--seeds 50", "1")];
    let fewer = fewer.map(|(written, count)| {
        let option = written.split(' ').next().expect("a split has a first part");
        (written, format!("{option} {count}"))
    });
    drop(run_page(SIMULATION_PAGE, 1, &fewer));
}

/// A block that somebody adds is run by one of these tests, or listed with the reason why not.
#[test]
fn every_block_is_run_or_listed() {
    for (page, count, by) in PAGES {
        assert_eq!(blocks(page).len(), count, "{}: {by}", page.lines().next().unwrap_or_default());
    }
}
