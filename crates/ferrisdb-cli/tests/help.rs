//! The help texts and error messages, as people see them. After a wanted change: `UPDATE_EXPECT=1 cargo test -p
//! ferrisdb-cli --test help`, and read the difference.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect, expect_file};

fn ferrisdb(arguments: &[&str]) -> Output {
    // No terminal and no COLUMNS: the width is the fixed one.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
    command
        .args(arguments)
        .env_remove("COLUMNS")
        .env_remove("FERRISDB_CONNECT")
        .env_remove("FERRISDB_DATA")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = ferrisdb(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

/// Each command's help, with an example and the exit codes.
#[test]
fn help_texts() {
    expect_file!["help/ferrisdb.txt"].assert_eq(&stdout(&["--help"]));
    expect_file!["help/demo.txt"].assert_eq(&stdout(&["demo", "--help"]));
    expect_file!["help/bench.txt"].assert_eq(&stdout(&["bench", "--help"]));
    expect_file!["help/inspect.txt"].assert_eq(&stdout(&["inspect", "--help"]));
    expect_file!["help/verify.txt"].assert_eq(&stdout(&["verify", "--help"]));
    expect_file!["help/completions.txt"].assert_eq(&stdout(&["completions", "--help"]));
    expect_file!["help/man.txt"].assert_eq(&stdout(&["man", "--help"]));
    for command in ["demo", "bench", "inspect", "verify", "completions", "man"] {
        let help = stdout(&[command, "--help"]);
        assert!(help.contains("Example:\n  ferrisdb ") && help.contains("Exit codes:"), "{help}");
    }
}

fn check_error(arguments: &[&str], code: i32, expected: &Expect) {
    let output = ferrisdb(arguments);
    expected.assert_eq(&String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert!(output.stdout.is_empty(), "errors go to standard error only");
}

/// A wrong command line is exit code 2 and says what would be right.
#[test]
fn usage_errors() {
    check_error(
        &["verify"],
        2,
        &expect![[r#"
        error: the following required arguments were not provided:
          <PATH>

        Usage: ferrisdb verify <PATH>

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["inspect", "table", "x.sst"],
        2,
        &expect![[r#"
        error: invalid value 'table' for '<WHAT>'
          [possible values: wal, sst, manifest, dir]

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["verify", "db", "--output", "xml"],
        2,
        &expect![[r#"
        error: invalid value 'xml' for '--output <OUTPUT>'
          [possible values: table, json]

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["demmo"],
        2,
        &expect![[r#"
            error: unrecognized subcommand 'demmo'

              tip: a similar subcommand exists: 'demo'

            Usage: ferrisdb <COMMAND>

            For more information, try '--help'.
        "#]],
    );
}

/// What fails says what, with which value, and what to do, and is exit code 1.
#[test]
fn failures() {
    check_error(
        &["man", "--directory", "/nonexistent/man1"],
        1,
        &expect![[r#"
        error: cannot write manual pages into /nonexistent/man1: No such file or directory (os error 2)
          help: give an existing directory that you may write to
    "#]],
    );
}

/// The engine's commands say which path was wrong.
#[test]
fn failures_with_an_engine() {
    check_error(
        &["demo", "--directory", "/nonexistent"],
        1,
        &expect![[r#"
        error: cannot make a temporary directory in /nonexistent: entity not found
          help: choose a directory that you may write to: ferrisdb demo --directory DIR
    "#]],
    );
    for arguments in [["inspect", "sst", "/nonexistent/000001.sst"].as_slice(), &["verify", "/nonexistent"]] {
        let output = ferrisdb(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.starts_with("error: ") && message.contains("/nonexistent"), "{message}");
    }
}

/// Completions know every command but the hidden one; so do the manual pages.
#[test]
fn completions_and_manual_pages() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    assert!(stdout(&["man", "--directory", path]).is_empty());
    let mut pages: Vec<String> =
        directory.path().read_dir().unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    pages.retain(|page| !page.contains("help"));
    let expected =
        ["-bench", "-completions", "-demo", "-inspect", "-man", "-verify", ""].map(|name| format!("ferrisdb{name}.1"));
    assert_eq!(pages, expected);

    let page = stdout(&["man"]);
    assert!(page.contains(".TH ferrisdb 1") && page.contains("Exit codes"), "{page}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("inspect") && script.contains("verify"), "{shell}");
    }
}

/// Nobody reads to the end: that is no error.
#[test]
fn a_closed_output_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
    let output = command.args(["completions", "bash"]).stdin(Stdio::null()).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
