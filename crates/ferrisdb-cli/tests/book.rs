//! The commands on the book's page about the command line do what the page says: all blocks are run, in order, in one empty directory.

use std::path::Path;
use std::process::{Command, Stdio};

const PAGE: &str = include_str!("../../../docs/command-line.md");

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
    for block in blocks {
        let output = Command::new("sh")
            .args(["-e", "-u", "-c", block])
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
