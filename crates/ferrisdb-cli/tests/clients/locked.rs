//! Commands on a database that is locked.

use super::{ok, run};

/// Who waits for the unlock in vain is told why; `--system` is for those who know, and gets out of it.
#[test]
fn a_locked_database_is_told_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let data = ["--data", path.to_str().unwrap()];
    let ok = |arguments: &[&str]| ok(&[arguments, &data].concat());
    let lock = r"\xff/dbLocked";
    ok(&["set", "a", "1"]);
    // The versionstamp, and the id behind it.
    ok(&["set", "--system", lock, "0123456789an administrator"]);
    for command in [&["get", "a"][..], &["set", "a", "2"]] {
        let (code, out, error) = run(&[command, &["--timeout", "500ms"], &data].concat());
        assert_eq!((code, out.as_str()), (1, ""), "{command:?}");
        assert!(error.contains("is locked, under the id 616e2061646d696e6973747261746f72"), "{command:?}: {error}");
        assert!(error.contains("`ferrisdb cluster unlock ID`"), "{command:?}: {error}");
    }
    // What reads a snapshot is told at once.
    let (code, _, error) = run(&[&["range", "--prefix", ""], &data[..]].concat());
    assert!(code == 1 && error.contains("Database is locked"), "{error}");
    assert_eq!(ok(&["get", "--system", "a"]), "1\n");
    assert_eq!(ok(&["range", "--system", "a", "b"]), "rows\n  key  value\n  a    1\n");
    ok(&["clear", "--system", lock]);
    assert_eq!(ok(&["get", "a"]), "1\n");
}

/// The commands: the id is told, another one does not open, and a dry run changes nothing.
#[test]
fn the_commands_lock_and_unlock() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let data = ["--data", path.to_str().unwrap()];
    let id = "00ff102030405060708090a0b0c0d0e0";
    let command = |arguments: &[&str]| ok(&[&["cluster"], arguments, &data].concat());
    ok(&[&["set", "a", "1"], &data[..]].concat());
    assert!(command(&["lock", "--id", id, "--dry-run"]).contains("would be done"));
    assert_eq!(ok(&[&["get", "a"], &data[..]].concat()), "1\n");
    let told = command(&["lock", "--id", id]);
    assert!(told.contains("done") && told.contains(id), "{told}");
    assert!(command(&["lock", "--id", id]).contains("nothing to do"));
    let (code, _, error) = run(&[&["get", "a", "--timeout", "500ms"], &data[..]].concat());
    assert!(code == 1 && error.contains(id), "{error}");
    for refused in [&["lock"][..], &["unlock", "11ff102030405060708090a0b0c0d0e0"]] {
        let (code, _, error) = run(&[&["cluster"], refused, &data].concat());
        assert!(code == 1 && error.contains(id), "{refused:?}: {error}");
    }
    let (code, ..) = run(&[&["cluster", "unlock", "7"], &data[..]].concat());
    assert_eq!(code, 2, "that is no id");
    assert!(command(&["unlock", id]).contains("done"));
    assert!(command(&["unlock", id]).contains("nothing to do"));
    assert_eq!(ok(&[&["get", "a"], &data[..]].concat()), "1\n");
}
