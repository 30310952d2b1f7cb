//! A database whose disk has failed, as people and scripts see it who ask over the network: the server is in this process, and its disk is simulated.

use std::io::{BufRead as _, BufReader};
use std::sync::Arc;

use ferrisdb::{Database, NodeOptions};
use ferrisdb_storage::Env;
use ferrisdb_storage::fs::sim::{DiskError, Injection, OpKind, SimFileSystem, Verdict};
use serde_json::Value;

use super::served::served;
use super::{command, ok, run};

/// A script sees by the exit code that the database is broken; all that it asked for is printed nevertheless, and the watching goes on.
#[test]
fn the_status_of_a_broken_database_has_an_exit_code() {
    let disk = Arc::new(SimFileSystem::new());
    let env = Env { fs: Arc::<SimFileSystem>::clone(&disk), ..Env::real() };
    let database = Database::open_with(env, "/db", NodeOptions::default()).unwrap();
    served(&database, |address| {
        let place = ["--connect", address];
        let status = |arguments: &[&str]| run(&[&["status"], arguments, &place].concat());
        ok(&[&["set", "a", "1"], &place[..]].concat());
        for arguments in [&[][..], &["--json"], &["--output", "json"]] {
            assert_eq!(status(arguments).0, 0);
        }

        disk.inject(Injection::new(&[OpKind::Sync], Verdict::Fail(DiskError::Io)).path("/db/log").once());
        assert_eq!(run(&[&["set", "a", "2"], &place[..]].concat()).0, 1);
        assert_eq!(ok(&[&["get", "a"], &place[..]].concat()), "1\n", "reads go on");

        let (code, out, error) = status(&[]);
        assert_eq!(code, 5, "{error}");
        assert!(out.starts_with("database                  BROKEN: ") && out.contains("levels\n"), "{out}");
        assert!(error.starts_with("not available: the database is broken: ") && error.contains("/db/log"), "{error}");
        for arguments in [&["--json"][..], &["--output", "json"]] {
            let (code, out, _) = status(arguments);
            let document: Value = serde_json::from_str(&out).unwrap();
            assert_eq!((code, &document["cluster"]["state"]), (5, &"broken".into()));
        }

        // Watched, until nobody reads it any more: that is no failure.
        for (arguments, broken) in [(&["--json"][..], "\"state\":\"broken\""), (&[], "BROKEN: ")] {
            let watch = [&["status", "--watch", "10ms"], arguments, &place].concat();
            let mut child = command(&watch).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert_eq!(lines.filter(|line| line.contains(broken)).take(3).count(), 3);
            assert!(child.wait().unwrap().success());
        }
    });
}
