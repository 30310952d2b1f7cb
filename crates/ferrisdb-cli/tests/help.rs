//! The help texts and error messages, as people see them. After a wanted change: `UPDATE_EXPECT=1 cargo test -p
//! ferrisdb-cli --test help`, and read the difference.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect, expect_file};

/// All but the hidden ones.
const COMMANDS: [&str; 18] = [
    "bench",
    "clear",
    "cluster",
    "completions",
    "demo",
    "explain",
    "export",
    "get",
    "import",
    "inspect",
    "man",
    "range",
    "serve",
    "set",
    "shell",
    "sim",
    "status",
    "verify",
];

/// The commands of `cluster`.
const OF_CLUSTER: [&str; 7] = ["configure", "exclude", "include", "lock", "members", "transfer", "unlock"];

fn ferrisdb(arguments: &[&str]) -> Output {
    // No terminal and no COLUMNS: the width is the fixed one.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
    for variable in ["COLUMNS", "FERRISDB_CONNECT", "FERRISDB_DATA", "FERRISDB_TIMEOUT"] {
        command.env_remove(variable);
    }
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
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
    for command in COMMANDS {
        let help = stdout(&[command, "--help"]);
        expect_file![format!("help/{command}.txt")].assert_eq(&help);
        assert!(help.contains("Example:\n  ferrisdb ") && help.contains("Exit codes:"), "{help}");
    }
}

/// The same for the commands of `cluster`.
#[test]
fn help_texts_of_cluster() {
    for command in OF_CLUSTER {
        let help = stdout(&["cluster", command, "--help"]);
        expect_file![format!("help/cluster-{command}.txt")].assert_eq(&help);
        assert!(help.contains("Example:\n  ferrisdb cluster ") && help.contains("Exit codes:"), "{help}");
    }
}

/// What is wrong in the environment is not blamed on an option that nobody gave.
#[test]
fn wrong_variables_are_named() {
    for (name, value, arguments) in [
        ("FERRISDB_TIMEOUT", "abc", &["get", "a"][..]),
        ("FERRISDB_LOG_FORMAT", "xml", &["serve"]),
        ("FERRISDB_CONNECTIONS_MAX", "many", &["serve"]),
        ("FERRISDB_INSECURE", "maybe", &["serve"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
        let output = command.args(arguments).env(name, value).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(&format!("'{value}' for '{name} in the environment'")), "{error}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
    let command = command.args(["get", "a", "--timeout=soon"]).env("FERRISDB_TIMEOUT", "abc");
    let error = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(error.contains("'soon' for '--timeout <TIME>'"), "{error}");
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
          [possible values: wal, sst, blob, manifest, dir]

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

/// A client command names the database that it did not find, and what to do.
#[test]
fn failures_of_client_commands() {
    check_error(
        &["get", "a"],
        2,
        &expect![[r#"
        error: which database?
          help: give --connect HOST:PORT for a server or --data DIR for a directory, or set FERRISDB_CONNECT or FERRISDB_DATA
    "#]],
    );
    check_error(
        &["get", "a\\n", "--data", "/nonexistent"],
        2,
        &expect![[r#"
        error: invalid value 'a\n' for '<KEY>': `\n` is no escape: write `\xNN` for a byte and `\\` for a backslash

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["get", "a", "--data", "/nonexistent"],
        1,
        &expect![[r#"
        error: there is no database in /nonexistent
          help: check --data; `ferrisdb set`, `shell` and `serve` make a new database there
    "#]],
    );
    check_error(
        &["get", "a", "--data", "/dev/null"],
        1,
        &expect![[r#"
        error: cannot open /dev/null: it is a file, and a database is a directory
          help: give a directory, or a name that nothing has yet
    "#]],
    );
    check_error(
        &["get", "a", "--connect", "127.0.0.1:1"],
        1,
        &expect![[r#"
        error: cannot connect to 127.0.0.1:1: connection_failed (1026): Connection refused (os error 111)
          help: check the address, and that `ferrisdb serve` runs there
    "#]],
    );
    check_error(
        &["get", "a", "--data", "db", "--connect", "localhost:4700"],
        2,
        &expect![[r#"
        error: the argument '--data <DIR>' cannot be used with '--connect <HOST:PORT,...>'

        Usage: ferrisdb get --data <DIR> <KEY>

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["get", "a", "--connect", "localhost"],
        2,
        &expect![[r#"
            error: --connect: `localhost` is not an address: it has no port
              help: write HOST:PORT, such as localhost:4700 or [::1]:4700
        "#]],
    );
    check_error(
        &["clear", "--data", "/nonexistent"],
        2,
        &expect![[r#"
        error: the following required arguments were not provided:
          <KEY>

        Usage: ferrisdb clear --data <DIR> <KEY>

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["range", "--data", "/nonexistent"],
        2,
        &expect![[r#"
        error: which range?
          help: give BEGIN and END, or --prefix PREFIX ("" for all keys)
    "#]],
    );
    check_error(
        &["range", "a", "--data", "/nonexistent"],
        2,
        &expect![[r#"
        error: the range begins at a and has no end
          help: give END too, or --prefix PREFIX for all keys that begin so
    "#]],
    );
    check_error(
        &["set", "k", "--data", "/nonexistent"],
        2,
        &expect![[r#"
        error: which value is k to have?
          help: give VALUE behind the key ("" for an empty one), or --stdin to read it from standard input
    "#]],
    );
    check_error(
        &["range", "b", "a", "--data", "/nonexistent"],
        2,
        &expect![[r#"
            error: the range begins at b and ends before it, at a
              help: swap them: a range has BEGIN in it, and all up to END
        "#]],
    );
    check_error(
        &["explain", "1"],
        2,
        &expect![[r#"
        error: no error has the number or name `1`
          help: `ferrisdb explain` without an argument lists all
    "#]],
    );
    check_error(
        &["serve", "--data", "/nonexistent", "--listen", "0.0.0.0:0"],
        2,
        &expect![[r#"
        error: will not listen on 0.0.0.0:0 (command line): 0.0.0.0:0 can be reached from other machines, and without TLS anybody there could read and write everything
          help: listen on 127.0.0.1 or [::1], or add --insecure if you trust everybody on that network
    "#]],
    );
    check_error(
        &["serve", "--data", "/nonexistent", "--listen", "nowhere"],
        2,
        &expect![[r#"
            error: listen is `nowhere` (command line): it has no port
              help: write HOST:PORT, such as 127.0.0.1:4700; port 0 takes any that is free
        "#]],
    );
    check_error(
        &["serve"],
        2,
        &expect![[r#"
        error: in which directory is the database?
          help: give --data DIR, set FERRISDB_DATA, or write data = "DIR" into the file of --config
    "#]],
    );
}

/// An address that is none is a wrong command line, whoever gives it, and nobody is told to look after a server.
#[test]
fn wrong_addresses() {
    for (address, why) in [
        ("localhost", "no port"),
        (":4700", "no host"),
        ("", "--connect is empty"),
        ("localhost:99999", "not a number from 1 to 65535"),
        ("localhost:4700,other", "`other` is not an address"),
    ] {
        let output = ferrisdb(&["get", "a", "--connect", address]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(why) && error.contains("localhost:4700"), "{error}");
        assert!(!error.contains("ferrisdb serve"), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ferrisdb.toml");
    for (text, what) in [("colour = 1\n", "colour"), ("read_threads = \"many\"\n", "read_threads")] {
        #[expect(clippy::disallowed_methods, reason = "a test writes a file as a person would")]
        std::fs::write(&path, text).unwrap();
        check_code(&["serve", "--data", "db", "--config", path.to_str().unwrap()], 2, what);
    }
    check_code(&["clear", "--range", "b", "a", "--data", "db"], 2, "begins at b");
    check_code(&["explain", "9999"], 2, "`9999`");
}

fn check_code(arguments: &[&str], code: i32, what: &str) {
    let output = ferrisdb(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(what), "{error}");
}

/// What `import` and `export` need to know, and what they do not take.
#[test]
fn failures_of_import_and_export() {
    check_error(
        &["import", "people.xml", "--data", "db"],
        2,
        &expect![[r#"
        error: the name `people.xml` does not say whether it is CSV or NDJSON
          help: give --format csv or --format ndjson, or a name that ends in .csv, .tsv, .ndjson or .jsonl
    "#]],
    );
    check_error(
        &["import", "people.csv", "--data", "db", "--key", "people/"],
        2,
        &expect![[r#"
        error: invalid value 'people/' for '--key <TEMPLATE>': it names no column, so all rows would have one key; write a column's name in braces: {id}

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["import", "people.csv", "--data", "db", "--key-tuple", "people,{id:number}"],
        2,
        &expect![[r#"
        error: invalid value 'people,{id:number}' for '--key-tuple <TEMPLATE>': `number` is no type of a column: int, float, bool and bytes are

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["import", "people.csv", "--data", "db", "--value", "{name}"],
        2,
        &expect![[r#"
        error: --value needs --key or --key-tuple
          help: without them the file has a column `value` and a column `key`
    "#]],
    );
    check_error(
        &["import", "/nonexistent.csv", "--data", "db"],
        1,
        &expect![[r#"
        error: cannot open /nonexistent.csv: No such file or directory (os error 2)
          help: give a file that you may read, or - for standard input
    "#]],
    );
    check_error(
        &["import", "/", "--format", "csv", "--data", "db"],
        1,
        &expect![[r#"
        error: cannot open /: is a directory
          help: give a file that you may read, or - for standard input
    "#]],
    );
    check_error(
        &["import", "people.csv", "--delimiter", "::"],
        2,
        &expect![[r#"
        error: invalid value '::' for '--delimiter <LETTER>': a delimiter is one ASCII letter, and no quote; \t is a tab

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["export", "-", "--resume", "--data", "db"],
        2,
        &expect![[r#"
        error: standard output cannot be resumed
          help: give the file of the export that was interrupted
    "#]],
    );
    check_error(
        &["export", "rows", "--data", "db"],
        2,
        &expect![[r#"
        error: the name `rows` does not say whether it is CSV or NDJSON
          help: give --format csv or --format ndjson, or a name that ends in .csv, .tsv, .ndjson or .jsonl
    "#]],
    );
    check_error(
        &["export", "rows.csv", "--new-snapshot", "--data", "db"],
        2,
        &expect![[r#"
        error: the following required arguments were not provided:
          --resume

        Usage: ferrisdb export --resume --new-snapshot --data <DIR> <FILE>

        For more information, try '--help'.
    "#]],
    );
    check_error(
        &["export", "rows.csv", "--data", "/nonexistent"],
        1,
        &expect![[r#"
        error: there is no database in /nonexistent
          help: check --data; `ferrisdb set`, `shell` and `serve` make a new database there
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
    check_error(
        &["inspect", "sst", "/nonexistent/000001.sst"],
        1,
        &expect![[r#"
        error: cannot look at /nonexistent/000001.sst: No such file or directory (os error 2)
          help: give a file that exists and that you may read
    "#]],
    );
    check_error(
        &["inspect", "wal", "/"],
        1,
        &expect![[r#"
            error: / is a directory, and no file
              help: give a file in it: tables, blob files and manifests are in DIR/storage, segments of the log in DIR/log, or in DIR/raft of a process of a cluster
        "#]],
    );
    check_error(
        &["verify", "/nonexistent"],
        1,
        &expect![[r#"
        error: cannot look at /nonexistent: No such file or directory (os error 2)
          help: give a database's directory that exists and that you may read
    "#]],
    );
    check_error(
        &["verify", "/dev/null"],
        1,
        &expect![[r#"
        error: /dev/null is a file, and no directory
          help: give the directory of a database
    "#]],
    );
}

/// Completions know every command but the hidden ones; so do the manual pages.
#[test]
fn completions_and_manual_pages() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    assert!(stdout(&["man", "--directory", path]).is_empty());
    let mut pages: Vec<String> =
        directory.path().read_dir().unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    pages.retain(|page| !page.contains("help"));
    let mut expected: Vec<String> = COMMANDS.iter().map(|name| format!("ferrisdb-{name}.1")).collect();
    expected.extend(OF_CLUSTER.iter().map(|name| format!("ferrisdb-cluster-{name}.1")));
    expected.push("ferrisdb.1".to_owned());
    expected.sort();
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
