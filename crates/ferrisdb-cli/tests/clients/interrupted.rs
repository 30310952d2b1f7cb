//! `import` and `export` that are interrupted in the middle: by a kill, by the server's death, by the loss of the snapshot. What is there then, what is
//! said, and that the next attempt makes of it what one without interruption had made.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use ferrisdb::{Code, Database};
use ferrisdb_rpc::Endpoint as _;
use ferrisdb_rpc::api::LeaseRequest;
use serde_json::Value;

use super::held::Held;
use super::transfer::{Files, json, notes, rows};
use super::{Server, command, ok, own_address, run, told, wait_until};

/// Rows of an import: more lines of progress than fit into [`IMPORT_ROOM`], with [`BATCH_ROWS`] rows in each batch.
const IMPORT_ROWS: usize = 60_000;
const BATCH_ROWS: usize = 50;
const IMPORT_ROOM: usize = 2000;

/// Rows of an export: they are read in some forty parts, each of which has a line of progress, and about twenty of them fit into [`EXPORT_ROOM`].
const EXPORT_ROWS: usize = 40_000;
const EXPORT_ROOM: usize = 1000;

/// A server of a new database, which can be started again where it was.
fn served(files: &Files) -> (String, Server) {
    let data = files.path("db");
    let server = Server::start(Path::new(&data), &["--listen", &own_address()]);
    (data, server)
}

/// An import that is interrupted again and again. Whatever is there after an interruption is taken away, and must not come back.
struct Import<'a> {
    files: &'a Files,
    name: String,
    text: String,
    /// What was there, and was taken away.
    gone: BTreeMap<String, String>,
}

impl Import<'_> {
    fn new<'a>(files: &'a Files, format: &str) -> Import<'a> {
        let name = format!("rows.{format}");
        let mut text = String::from(if format == "csv" { "id,name\n" } else { "" });
        for n in 0..IMPORT_ROWS {
            match format {
                "csv" => writeln!(text, "{n},name {n}").unwrap(),
                _ => writeln!(text, "{{\"id\":{n},\"name\":\"name {n}\"}}").unwrap(),
            }
        }
        files.write(&name, &text);
        Import { files, name, text, gone: BTreeMap::new() }
    }

    fn arguments(&self, place: &[&str]) -> Vec<String> {
        let batch_rows = BATCH_ROWS.to_string();
        let path = self.files.path(&self.name);
        let options = ["import", &path, "--key", "row/{id}", "--value", "{name}", "--batch-rows", &batch_rows];
        [&options[..], place].concat().into_iter().map(str::to_owned).collect()
    }

    /// One that is in the middle of its work.
    fn held(&self, place: &[&str]) -> Held {
        let arguments = self.arguments(place);
        let mut held = Held::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), IMPORT_ROOM);
        held.wait_until_it_works();
        held
    }

    /// One that is not interrupted.
    fn run(&self, place: &[&str]) -> (i32, String, String) {
        told(&command(&self.arguments(place).iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap())
    }

    /// Looks at what is there while nothing is at work on it, and takes it away.
    fn take_away(&mut self, place: &[&str]) {
        let (notes, now) = (notes(place), rows(place, "row/", &[]));
        assert!(!now.is_empty() && now.len() + self.gone.len() < IMPORT_ROWS);
        assert_eq!(now.len() % BATCH_ROWS, 0, "batches are whole");
        // Rows and notes agree: each batch whose note is there is there, and no other behind the last of them.
        let noted =
            notes.values().filter_map(|note| serde_json::from_str::<Value>(note).unwrap()["batch"].as_u64()).max();
        let last = now.keys().filter_map(|key| key["row/".len()..].parse::<u64>().ok()).max().unwrap();
        assert_eq!(last / BATCH_ROWS as u64, noted.unwrap());
        ok(&[&["clear", "--prefix", "row/"], place].concat());
        self.add(now);
    }

    fn add(&mut self, rows: BTreeMap<String, String>) {
        for (key, value) in rows {
            assert_eq!(self.gone.insert(key, value), None, "a row was written twice");
        }
    }

    /// After an import that came to its end: every row was there exactly once.
    fn check(mut self, place: &[&str]) {
        self.add(rows(place, "row/", &[]));
        assert_eq!(self.gone.len(), IMPORT_ROWS);
        assert!((0..IMPORT_ROWS).all(|n| self.gone[&format!("row/{n}")] == format!("name {n}")));
        assert!(notes(place).is_empty(), "the position is gone");
    }
}

/// An import that is killed goes on when it is started again, and writes each row once: rows that are taken away meanwhile do not come back.
fn killed(place: &[&str], files: &Files, format: &str) {
    let mut import = Import::new(files, format);
    for _ in 0..3 {
        import.held(place).kill();
        // A server may still be at work on what the killed process had asked for.
        let look = || (notes(place), rows(place, "row/", &[]));
        let mut last = look();
        wait_until("nothing changes any more", || {
            let before = std::mem::replace(&mut last, look());
            before == last
        });
        import.take_away(place);
    }
    // Another file of the same name is refused, also if only the last byte that was read differs.
    let (name, text) = (import.name.clone(), import.text.clone());
    let changed = text.replacen("name 0", "name X", 1);
    files.write(&name, changed);
    let (code, _, error) = import.run(place);
    assert!(code == 1 && error.contains("is not the file whose import was interrupted"), "{error}");
    files.write(&name, &text[..1000]);
    let (code, _, error) = import.run(place);
    assert!(code == 1 && error.contains("it ends before byte"), "{error}");

    files.write(&name, &text);
    let (code, out, error) = import.run(place);
    assert!(code == 0 && out.contains(&format!("rows                      {IMPORT_ROWS}\n")), "{out}{error}");
    import.check(place);
}

#[test]
fn a_killed_import_goes_on_in_a_directory() {
    let files = Files::new();
    let data = files.path("db");
    killed(&["--data", &data], &files, "csv");
}

#[test]
fn a_killed_import_goes_on_at_a_server() {
    let files = Files::new();
    let data = files.path("db");
    let server = Server::start(Path::new(&data), &[]);
    killed(&server.place(), &files, "ndjson");
    server.stop();
}

/// An import whose server is killed says so and ends, with all that it had under way unknown; when the server is there again the same command writes the
/// rest, and no row twice.
#[test]
fn an_import_whose_server_dies_goes_on_later() {
    let files = Files::new();
    let (data, server) = served(&files);
    let address = server.address.clone();
    let place = ["--connect", address.as_str()];
    let mut import = Import::new(&files, "csv");
    let held = import.held(&[&place[..], &["--timeout", "5s"]].concat());
    server.kill();
    let (code, out, error) = held.let_go();
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    assert!(
        error.contains("error: the import stopped behind row ") && error.contains("the same command goes on"),
        "{error}"
    );

    let server = Server::start(Path::new(&data), &["--listen", &address]);
    import.take_away(&place);
    let (code, out, error) = import.run(&place);
    assert!(code == 0 && out.contains(&format!("rows                      {IMPORT_ROWS}\n")), "{out}{error}");
    import.check(&place);
    server.stop();
}

/// An import whose server is killed and is there again in time goes on by itself: it asks what became of the batches whose answers were lost, and writes
/// none of them twice.
#[test]
fn an_import_outlives_its_server() {
    let files = Files::new();
    let (data, server) = served(&files);
    let address = server.address.clone();
    let place = ["--connect", address.as_str()];
    let mut import = Import::new(&files, "csv");
    let held = import.held(&[&place[..], &["--timeout", "100s"]].concat());
    // Nothing of it is at work while its rows are looked at and taken away.
    held.stop();
    let server = server.kill_and_start_again(Path::new(&data));
    import.take_away(&place);
    held.go_on();
    let (code, out, error) = held.let_go();
    assert!(code == 0 && out.contains(&format!("rows                      {IMPORT_ROWS}\n")), "{out}{error}");
    import.check(&place);
    server.stop();
}

/// A server with rows, and what an export of them is.
struct Exported {
    files: Files,
    data: String,
    server: Server,
    whole: Vec<u8>,
    file: String,
}

impl Exported {
    fn new(format: &str) -> Exported {
        let files = Files::new();
        let (data, server) = served(&files);
        let mut lines = String::new();
        for n in 0..EXPORT_ROWS {
            writeln!(lines, "{{\"key\":\"{n:06}\",\"value\":\"{}\"}}", "x".repeat(100)).unwrap();
        }
        let lines = files.write("lines.ndjson", lines);
        server.ok(&["import", &lines, "--progress", "60m"]);
        let name = format!("out.{format}");
        let file = files.path(&name);
        server.ok(&["export", &file, "--progress", "60m"]);
        let whole = files.read(&name);
        let name = format!("again.{format}");
        Exported { file: files.path(&name), files, data, server, whole }
    }

    fn name(&self, ending: &str) -> String {
        format!("{}{ending}", self.file.rsplit('/').next().unwrap())
    }

    /// An export that is in the middle of its work.
    fn held(&self, more: &[&str]) -> Held {
        let mut held = Held::start(&[&["export", &self.file], more, &self.server.place()].concat(), EXPORT_ROOM);
        held.wait_until_it_works();
        held
    }

    fn export(&self, more: &[&str]) -> (i32, String, String) {
        run(&[&["export", &self.file, "--progress", "60m"], more, &self.server.place()].concat())
    }

    /// What an interrupted export has left: a part, and no file.
    fn check_part(&self) {
        let part = self.files.read(&self.name(".part"));
        assert!(!part.is_empty() && part.len() < self.whole.len() && self.whole.starts_with(&part), "{}", part.len());
        assert!(!self.files.exists(&self.name("")));
    }

    /// The file is there, as it was at the snapshot.
    fn check_whole(&self) {
        assert_eq!(self.files.read(&self.name("")), self.whole, "the same snapshot");
        assert!(!self.files.exists(&self.name(".part")) && !self.files.exists(&self.name(".part.is")));
    }
}

/// An export that was killed goes on behind its last whole line, from the same snapshot.
#[test]
fn a_killed_export_goes_on() {
    for format in ["ndjson", "csv"] {
        let exported = Exported::new(format);
        exported.held(&[]).kill();
        exported.check_part();
        // Half a line, whether or not the kill left one.
        let half = exported.files.read(&exported.name(".part")).len() / 2;
        exported.files.write(&exported.name(".part"), &exported.whole[..half]);

        let (code, _, error) = exported.export(&["--resume", "--prefix", "0"]);
        assert!(code == 1 && error.contains("give the options of the export that was interrupted"), "{error}");
        exported.server.ok(&["set", "999999", "new"]);
        let (code, _, error) = exported.export(&["--resume"]);
        assert_eq!((code, error.as_str()), (0, ""));
        exported.check_whole();

        // An export that is killed does not touch the file of an earlier one.
        exported.held(&[]).kill();
        assert_eq!(exported.files.read(&exported.name("")), exported.whole, "the file is what it was");
        exported.server.stop();
    }
}

/// Whoever always says --resume gets the file, wherever the export before it was killed: before there was a part, or a row in it, or a word of what it is.
#[test]
fn resuming_before_the_first_row_begins_from_the_start() {
    let exported = Exported::new("csv");
    for left in [&[][..], &[(".part", "")], &[(".part", ""), (".part.is", "")], &[(".part.is", "{\"clu")]] {
        for (ending, text) in left {
            exported.files.write(&exported.name(ending), text);
        }
        let (code, out, error) = exported.export(&["--resume"]);
        assert_eq!(
            (code, error),
            (0, format!("nothing is in {}.part yet: beginning from the start\n", exported.file)),
            "{out}"
        );
        exported.check_whole();
        exported.files.remove(&exported.name(""));
    }
    exported.server.stop();
}

/// An export whose server is killed and is there again goes on by itself, from the same snapshot: the new server knows of it.
#[test]
fn an_export_outlives_its_server() {
    let mut exported = Exported::new("ndjson");
    let held = exported.held(&[]);
    exported.server = exported.server.kill_and_start_again(Path::new(&exported.data));
    exported.server.ok(&["set", "000000", "new"]);
    exported.server.ok(&["set", "999999", "new"]);
    wait_until("the export is connected again", || {
        json(&[&["status"], &exported.server.place()[..]].concat())["cluster"]["rpc"]["connections_open"] == 2
    });
    let (code, _, error) = held.let_go();
    assert_eq!(code, 0, "{error}");
    exported.check_whole();
    exported.server.stop();
}

/// An export whose server dies says what is there and how it goes on; when the server is there again, `--resume` finds the snapshot.
#[test]
fn an_export_whose_server_dies_is_resumed() {
    let mut exported = Exported::new("csv");
    let held = exported.held(&["--timeout", "5s"]);
    let address = exported.server.address.clone();
    exported.server.kill();
    let (code, out, error) = held.let_go();
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    let part = exported.files.path("again.csv.part");
    let last = error.lines().rev().take(2).collect::<Vec<_>>();
    assert!(last[1].starts_with("error: the export stopped: ") && last[1].contains(&address), "{error}");
    assert!(last[0].contains(&format!("in {part}, and the same command with --resume goes on")), "{error}");
    exported.server = Server::start(Path::new(&exported.data), &["--listen", &address]);
    exported.check_part();
    exported.server.ok(&["set", "999999", "new"]);
    let (code, _, error) = exported.export(&["--resume"]);
    assert_eq!((code, error.as_str()), (0, ""));
    exported.check_whole();
    exported.server.stop();
}

/// An export whose snapshot is lost in the middle ends, keeps what it has, and says so: it can be made anew, or got on with from a new snapshot.
#[test]
fn an_export_that_loses_its_snapshot() {
    let exported = Exported::new("ndjson");
    let held = exported.held(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let is: Value = serde_json::from_slice(&exported.files.read("again.ndjson.part.is")).unwrap();
    runtime.block_on(async {
        let address = &exported.server.address;
        // As if the export had not been heard of for longer than the term of its lease. Their numbers count up.
        let client = ferrisdb_rpc::Client::connect(address, ferrisdb_rpc::ClientOptions::default()).await.unwrap();
        for id in 0..100 {
            drop(client.lease(LeaseRequest::End(id)).await);
        }
        let database = Database::connect(address).await.unwrap();
        // Until nobody can read at that version any more.
        for round in 0_u64.. {
            assert!(round < 100_000, "the version stays readable");
            database
                .run(async |tx| {
                    tx.set("000000", round.to_string());
                    Ok(())
                })
                .await
                .unwrap();
            let reader = database.create_transaction();
            reader.set_read_version(is["version"].as_i64().unwrap());
            match reader.get("000001").await {
                Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                Err(error) if error.code() == Code::TransactionTooOld => break,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let (code, out, error) = held.let_go();
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    let last = error.lines().rev().take(2).collect::<Vec<_>>();
    assert!(last[1].starts_with("error: the export stopped: the snapshot was lost: transaction_too_old"), "{error}");
    assert!(last[0].contains("export again") && last[0].contains("--resume --new-snapshot"), "{error}");
    exported.check_part();

    let (code, _, error) = exported.export(&["--resume"]);
    assert!(code == 1 && error.contains("is not readable any more") && error.contains("--new-snapshot"), "{error}");
    exported.check_part();
    exported.server.ok(&["set", "999999", "new"]);
    assert_eq!(exported.export(&["--resume", "--new-snapshot"]).0, 0);
    let found = exported.files.read("again.ndjson");
    assert!(found.len() > exported.whole.len() && found.starts_with(&exported.whole), "the rest is of now");
    exported.server.stop();
}
