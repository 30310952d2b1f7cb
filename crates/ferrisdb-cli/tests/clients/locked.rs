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
    }
    // What reads a snapshot is told at once.
    let (code, _, error) = run(&[&["range", "--prefix", ""], &data[..]].concat());
    assert!(code == 1 && error.contains("Database is locked"), "{error}");
    assert_eq!(ok(&["get", "--system", "a"]), "1\n");
    assert_eq!(ok(&["range", "--system", "a", "b"]), "rows\n  key  value\n  a    1\n");
    ok(&["clear", "--system", lock]);
    assert_eq!(ok(&["get", "a"]), "1\n");
}
