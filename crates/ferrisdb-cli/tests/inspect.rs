//! `inspect` and `verify` on a real directory, whole and damaged, as a script sees them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it damages files as no engine would")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ferrisdb_storage::{Durability, Engine, Options, WriteBatch};
use serde_json::Value;

fn ferrisdb(arguments: &[&str], path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrisdb"));
    command.args(arguments).arg(path).stdin(Stdio::null()).output().unwrap()
}

/// The exit code and what was printed as JSON.
fn json(arguments: &[&str], path: &Path) -> (i32, Value) {
    let output = ferrisdb(&[arguments, &["--output", "json"]].concat(), path);
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.code().unwrap(), value)
}

/// A database with two tables of 100 entries each, a large value in a blob file, and a record in the WAL.
fn database(directory: &Path) -> PathBuf {
    let path = directory.join("db");
    let engine = Engine::open(&path, Options { blob_value_bytes: Some(1000), ..Options::default() }).unwrap();
    for round in 0..2 {
        let mut batch = WriteBatch::new();
        for n in 0..100 {
            batch.put(format!("{round}/{n:03}").as_bytes(), b"value");
        }
        if round == 1 {
            batch.put(b"1/large", &[b'x'; 2000]);
        }
        engine.write(batch, Durability::Buffered).unwrap();
        engine.flush().unwrap();
    }
    let mut batch = WriteBatch::new();
    batch.delete(b"0/000");
    engine.write(batch, Durability::Sync).unwrap();
    engine.close().unwrap();
    path
}

fn file_with(directory: &Path, part: &str) -> PathBuf {
    let mut paths: Vec<PathBuf> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().find(|path| path.to_str().unwrap().contains(part)).unwrap()
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Of a sound database everything can be printed, in both forms, with exit code 0.
#[test]
fn a_sound_database() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());

    let (code, value) = json(&["verify"], &database);
    assert_eq!((code, &value["tables"], &value["entries"]), (0, &2.into(), &201.into()), "{value}");
    assert_eq!(value["problems"].as_array().unwrap().len(), 0);

    let (code, value) = json(&["inspect", "dir"], &database);
    let tables = value["files"].as_array().unwrap().iter().filter(|file| file["kind"] == "table");
    assert_eq!((code, tables.count()), (0, 2), "{value}");

    let (code, value) = json(&["inspect", "sst"], &file_with(&database, ".sst"));
    let entries = value["entries"].clone();
    assert_eq!((code, entries.as_array().map(Vec::len)), (0, Some(100)), "{value}");

    let (code, value) = json(&["inspect", "blob"], &file_with(&database, ".blob"));
    let records = value["records"].as_array().unwrap();
    assert_eq!((code, records.len(), &records[0]["key"]), (0, 1, &"1/large".into()), "{value}");

    let (code, value) = json(&["inspect", "manifest"], &file_with(&database, "MANIFEST"));
    assert_eq!((code, value["tables"].as_array().map(Vec::len)), (0, Some(2)), "{value}");

    let (code, value) = json(&["inspect", "wal"], &file_with(&database.join("wal"), ".wal"));
    let operations = value["operations"].as_array().unwrap();
    assert_eq!((code, operations.last().map(|last| &last["operation"])), (0, Some(&"delete".into())), "{value}");

    let text = ferrisdb(&["inspect", "sst"], &file_with(&database, ".sst")).stdout;
    assert!(String::from_utf8(text).unwrap().contains("0/042"));
}

/// Damage is exit code 3. What could be read is printed all the same, and the JSON says what ended it.
#[test]
fn a_damaged_database() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());
    let table = file_with(&database, ".sst");
    flip(&table, 20);
    let (code, value) = json(&["inspect", "sst"], &table);
    assert_eq!((code, value["blocks"].as_array().map(Vec::len)), (3, Some(0)), "{value}");
    assert!(value["parts"].is_array() && value["error"].as_str().unwrap().contains("checksum"), "{value}");
    let (code, value) = json(&["verify"], &database);
    assert_eq!((code, value["problems"].as_array().map(Vec::len)), (3, Some(1)), "{value}");

    std::fs::remove_file(&table).unwrap();
    let output = ferrisdb(&["verify"], &database);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("corruption: 1 problem in "));
    let (code, value) = json(&["inspect", "dir"], &database);
    assert_eq!(code, 3);
    let missing = value["files"].as_array().unwrap().iter().filter(|file| file["state"] == "missing");
    assert_eq!(missing.count(), 1, "{value}");

    let blob = file_with(&database, ".blob");
    flip(&blob, 60);
    assert_eq!(json(&["inspect", "blob"], &blob).0, 3);

    // A file that is none of ours; the word is said once.
    let output = ferrisdb(&["inspect", "sst"], &directory.path().join("text"));
    assert_eq!(output.status.code(), Some(1));
    std::fs::write(directory.path().join("text"), "root:x:0:0:".repeat(100)).unwrap();
    let output = ferrisdb(&["inspect", "sst"], &directory.path().join("text"));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("corruption in ") && message.matches("corruption").count() == 1, "{message}");
    for kind in ["sst", "blob", "manifest"] {
        let output = ferrisdb(&["inspect", kind], &directory.path().join("text"));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("is it the right file"), "{kind}: {message}");
    }

    let manifest = file_with(&database, "MANIFEST");
    flip(&manifest, 600);
    assert_eq!(json(&["inspect", "manifest"], &manifest).0, 3);
}

/// The log of a database is checked with its tables: a flipped byte anywhere in its records is found, and so is a log that ends too early or is gone.
#[test]
fn a_damaged_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let set = |key: &str, value: &str| {
        let arguments = ["set", key, value, "--data", path.to_str().unwrap()];
        let output = Command::new(env!("CARGO_BIN_EXE_ferrisdb")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    set("a", "1");
    let (code, before) = json(&["verify"], &path);
    assert_eq!((code, &before["log_problems"]), (0, &Value::Array(Vec::new())), "{before}");
    let text = String::from_utf8(ferrisdb(&["verify"], &path).stdout).unwrap();
    assert!(text.contains("\nlog records  ") && text.ends_with("log problems\n  problem\n"), "{text}");

    let log = path.join("log");
    let early = std::fs::read(file_with(&log, ".wal")).unwrap();
    set("b", &"x".repeat(1000));
    let (code, value) = json(&["verify"], &path);
    assert!(code == 0 && value["log_records"].as_u64() > before["log_records"].as_u64(), "{value}");
    assert!(value["log_last_version"].as_u64() > before["log_last_version"].as_u64(), "{value}");

    // A segment begins with a header of its own, in two copies; behind it come the records.
    let segment = file_with(&log, ".wal");
    let whole = std::fs::read(&segment).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let place = whole.windows(100).position(|window| window == [b'x'; 100]).unwrap();
    assert!(place < end);
    for offset in [place, place + 500, place + 999] {
        flip(&segment, offset);
        let (code, value) = json(&["verify"], &path);
        let problems = value["log_problems"].as_array().unwrap();
        assert_eq!((code, problems.len(), value["problems"].as_array().unwrap().len()), (3, 1, 0), "{value}");
        let problem = problems[0]["problem"].as_str().unwrap();
        assert!(problem.contains(".wal") && problem.contains("offset"), "{problem}");
        flip(&segment, offset);
    }
    assert_eq!(json(&["verify"], &path).0, 0);

    // The log of an earlier time, beside the tables of now.
    std::fs::write(&segment, &early).unwrap();
    let (code, value) = json(&["verify"], &path);
    assert_eq!(code, 3, "{value}");
    assert!(value["log_problems"][0]["problem"].as_str().unwrap().contains("the log ends at"), "{value}");
    std::fs::remove_file(&segment).unwrap();
    assert_eq!(json(&["verify"], &path).0, 3, "it is gone");
    std::fs::write(&segment, &whole).unwrap();

    flip(&path.join("cluster"), 20);
    let (code, value) = json(&["verify"], &path);
    assert!(
        code == 3 && value["log_problems"][0]["problem"].as_str().unwrap().contains("cluster file checksum"),
        "{value}"
    );
    flip(&path.join("cluster"), 20);

    // Tables that cannot be read: the log is looked at all the same.
    flip(&file_with(&path.join("storage"), "MANIFEST"), 600);
    flip(&segment, place);
    let (code, value) = json(&["verify"], &path);
    assert_eq!((code, value["log_problems"].as_array().map(Vec::len)), (3, Some(1)), "{value}");
}

/// A directory that is no database is told as such, with what would be one.
#[test]
fn a_directory_that_is_no_database() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("holiday.jpg"), "x").unwrap();
    let output = ferrisdb(&["verify"], directory.path());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("CURRENT is missing, but there is holiday.jpg\n  help: check the path"), "{message}");
}

/// Tables without the file that says which of them are the database are damage, and no wrong path.
#[test]
fn a_database_without_its_head() {
    let directory = tempfile::tempdir().unwrap();
    let engine = database(directory.path());
    let served = directory.path().join("served");
    assert!(ferrisdb(&["set", "a", "1", "--data"], &served).status.success());
    for (path, current) in [(&engine, engine.join("CURRENT")), (&served, served.join("storage/CURRENT"))] {
        std::fs::remove_file(current).unwrap();
        for command in [&["verify"][..], &["inspect", "dir"]] {
            let output = ferrisdb(command, path);
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(3), "{command:?}: {message}");
            assert!(message.starts_with("corruption: ") && message.contains("CURRENT is missing"), "{message}");
            assert!(message.contains("restore the database from a backup"), "{message}");
        }
    }
}

/// A database that is open cannot be verified, and says by whom it is held.
#[test]
fn a_database_that_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = database(directory.path());
    let engine = Engine::open(&path, Options::default()).unwrap();
    let output = ferrisdb(&["verify"], &path);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains(&format!("in use by process {}", std::process::id())), "{message}");
    assert!(message.contains("\n  help: ") && message.contains("--connect"), "{message}");
    engine.close().unwrap();
}
