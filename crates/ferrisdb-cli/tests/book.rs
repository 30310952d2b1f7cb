//! The commands on the book's pages about the command line and about clusters do what the pages say: all blocks of a page are run, in order, in one empty directory.

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

/// The blocks of shell commands on the page.
fn blocks(page: &'static str) -> Vec<&'static str> {
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("a split has a first part")).collect()
}

/// Runs the blocks of a page, with other addresses, in one shell each.
fn run_page(page: &'static str, blocks_min: usize, addresses: &[(&str, String)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binaries = Path::new(env!("CARGO_BIN_EXE_ferrisdb")).parent().expect("the binary is in a directory");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").expect("there is a PATH"));
    let blocks = blocks(page);
    assert!(blocks.len() >= blocks_min, "the page has {} blocks", blocks.len());
    for (written, _) in addresses {
        assert!(page.contains(written));
    }
    for block in blocks {
        let block = addresses.iter().fold(block.to_owned(), |block, (written, own)| block.replace(written, own));
        let output = Command::new("sh")
            .args(["-e", "-u", "-c", &block])
            .current_dir(directory.path())
            .env("PATH", &path)
            .env_remove("FERRISDB_DATA")
            .env_remove("FERRISDB_CONNECT")
            .stdin(Stdio::null())
            .output()
            .expect("there is a shell");
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            let logs: Vec<String> = directory
                .path()
                .read_dir()
                .expect("it is there")
                .filter_map(|entry| {
                    entry.ok().filter(|entry| entry.path().extension().is_some_and(|name| name == "log"))
                })
                .map(|entry| {
                    format!("{:?}:\n{}", entry.file_name(), std::fs::read_to_string(entry.path()).unwrap_or_default())
                })
                .collect();
            stop_servers(directory.path());
            panic!(
                "{block}\n{}\n{}{}\n{}",
                output.status,
                shown(&output.stdout),
                shown(&output.stderr),
                logs.join("\n")
            );
        }
    }
    directory
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
