//! The commands on the book's page about the command line do what the page says: all blocks are run, in order, in one empty directory.

use std::path::Path;
use std::process::{Command, Stdio};

/// The server's address on the page. A port that the machine has not free would be no fault of the page's: the test takes another.
const ADDRESS: &str = "127.0.0.1:47311";
const PAGE: &str = include_str!("../../../docs/command-line.md");

/// An address of this process's own on loopback, with a free port.
fn own_address() -> String {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let free = std::net::TcpListener::bind((std::net::Ipv4Addr::new(127, 64 + b % 64, c, d), 0)).expect("a port");
    free.local_addr().expect("it has an address").to_string()
}

/// The blocks of shell commands on the page.
fn blocks() -> Vec<&'static str> {
    PAGE.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("a split has a first part")).collect()
}

#[test]
fn every_command_of_the_page_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binaries = Path::new(env!("CARGO_BIN_EXE_ferrisdb")).parent().expect("the binary is in a directory");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").expect("there is a PATH"));
    let blocks = blocks();
    assert!(blocks.len() >= 6, "the page has {} blocks", blocks.len());
    let address = own_address();
    assert!(PAGE.contains(ADDRESS));
    for block in blocks {
        let block = block.replace(ADDRESS, &address);
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
        assert!(
            output.status.success(),
            "{block}\n{}\n{}{}",
            output.status,
            shown(&output.stdout),
            shown(&output.stderr)
        );
    }
}
