//! The commands on the book's pages do what the pages say: all blocks of a page are run, in order, in one directory. Those that are not run are listed with the reason, and each page
//! has as many blocks as that says.

#![expect(clippy::disallowed_methods, reason = "a test writes and lists files as a person would")]

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

const FIRST_STEPS: &str = include_str!("../../../docs/first-steps.md");

/// The pages' blocks by their kind: how many there are, and who runs them. Pages without blocks are not among them.
const BLOCKS: [(&str, &str, usize, &str); 17] = [
    ("docs/command-line.md", "sh", 10, "every_command_of_the_page_runs"),
    ("docs/command-line.md", "toml", 1, "every_command_of_the_page_runs: the server is started with it"),
    ("docs/cluster.md", "sh", 7, "every_command_of_the_page_about_clusters_runs"),
    ("docs/simulation.md", "sh", 1, "every_command_of_the_page_about_the_simulation_runs"),
    ("docs/simulation.md", "text", 2, "nobody: what a failure and a trace may look like"),
    ("docs/first-steps.md", "toml", 1, "the_dependency_of_the_first_steps_is_there"),
    ("docs/first-steps.md", "rust", 2, "doc tests of the crate ferrisdb"),
    ("docs/data-model.md", "rust", 5, "doc tests of the crate ferrisdb"),
    ("docs/transactions.md", "rust", 5, "doc tests of the crate ferrisdb"),
    ("docs/architecture.md", "text", 3, "nobody: drawings"),
    ("docs/commit-and-read.md", "text", 2, "nobody: drawings"),
    ("docs/scaling.md", "sh", 1, "nobody: a benchmark of half an hour, with an optimised build of its own"),
    ("README.md", "sh", 2, "every_command_of_the_readme_runs"),
    ("README.md", "rust", 1, "doc tests of the crate ferrisdb"),
    ("README.md", "rust,no_run", 1, "the test readme of the crate ferrisdb-storage, in a directory of its own"),
    ("CONTRIBUTING.md", "sh", 2, "nobody here: CI itself, and fuzzing, which needs a compiler for C++"),
    ("CONTRIBUTING.md", "text", 1, "nobody: a commit's message"),
];

/// The blocks of a kind on the page.
fn blocks_of<'a>(page: &'a str, kind: &str) -> Vec<&'a str> {
    let begin = format!("```{kind}\n");
    page.split(&begin).skip(1).map(|rest| rest.split("```").next().expect("a split has a first part")).collect()
}

/// The blocks of shell commands on the page.
fn blocks(page: &'static str) -> Vec<&'static str> {
    blocks_of(page, "sh")
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
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [settings] = blocks_of(PAGE, "toml")[..] else { panic!("the page has one file of settings") };
    std::fs::write(directory.path().join("ferrisdb.toml"), settings).expect("it is written");
    run_blocks(directory.path(), PAGE, &blocks(PAGE), 6, &[(ADDRESS, own_address())]);
}

/// The tests that the reader is told to run are those that are running.
#[test]
fn every_command_of_the_readme_runs() {
    let [build, look] = blocks(README)[..] else { panic!("the page has two blocks") };
    let here =
        [("cargo run --release -- demo", "ferrisdb demo".to_owned()), ("cargo test --workspace", "true".to_owned())];
    let directory = tempfile::tempdir().expect("a temporary directory");
    run_blocks(directory.path(), README, &[build], 1, &here);
    // A table whose number is the database's own.
    run_blocks(directory.path(), README, &["ferrisdb set fruit/apple red --data my.db"], 1, &[]);
    let tables = std::fs::read_dir(directory.path().join("my.db/storage")).expect("the database has one");
    let is_table = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let table = tables.map(|entry| entry.expect("it is listed").path()).find(is_table).expect("closing it flushed");
    let table = format!("my.db/storage/{}", table.file_name().expect("it has a name").display());
    run_blocks(directory.path(), README, &[look], 1, &[("my.db/storage/000123.sst", table)]);
}

/// A program that has this dependency builds as the tests of the page do: what can be wrong here is the path and the name.
#[test]
fn the_dependency_of_the_first_steps_is_there() {
    let [dependency] = blocks_of(FIRST_STEPS, "toml")[..] else { panic!("the page has one dependency") };
    let manifest: toml::Table = dependency.parse().expect("it is TOML");
    let path = manifest["dependencies"]["ferrisdb"]["path"].as_str().expect("it has a path");
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).join("Cargo.toml");
    let found: toml::Table = std::fs::read_to_string(found).expect("it is there").parse().expect("it is TOML");
    assert_eq!(found["package"]["name"].as_str(), Some("ferrisdb"));
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
    // What CI runs, CI runs.
    let ci = "--seeds 300 --require-rare";
    let fewer = [("--seeds 20", "2"), ("--minutes 60", "1 --seeds 1"), ("--seeds 50", "1"), (ci, "1")];
    let fewer = fewer.map(|(written, count)| {
        let option = written.split(' ').next().expect("a split has a first part");
        (written, format!("{option} {count}"))
    });
    drop(run_page(SIMULATION_PAGE, 1, &fewer));
}

/// A block that somebody adds, on whichever page, is run by one of these tests, or listed with the reason why not. Decisions and benchmarks are records, and run by nobody.
#[test]
fn every_block_is_run_or_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in root.join("docs").read_dir().expect("it is there") {
        let name = entry.expect("it is listed").file_name().into_string().expect("it is text");
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    for page in &pages {
        let text = std::fs::read_to_string(root.join(page)).expect("it is text");
        let mut found = std::collections::BTreeMap::<&str, usize>::new();
        // Every other fence begins a block.
        for fence in text.lines().filter_map(|line| line.trim_start().strip_prefix("```")).step_by(2) {
            *found.entry(fence).or_default() += 1;
        }
        let listed = BLOCKS.iter().filter(|(of, ..)| of == page);
        let listed: std::collections::BTreeMap<&str, usize> =
            listed.map(|(_, kind, count, _)| (*kind, *count)).collect();
        assert_eq!(found, listed, "{page}: the blocks that there are, and those that are listed");
    }
    for (page, ..) in BLOCKS {
        assert!(pages.iter().any(|there| there == page), "{page} is listed, and not there");
    }
}
