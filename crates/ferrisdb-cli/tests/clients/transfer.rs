//! `import` and `export`, on a directory and at a server: what is there afterwards. What happens to those that are interrupted is in `interrupted`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use expect_test::{Expect, expect};
use ferrisdb_core::{Random as _, SplitMix64};
use serde_json::Value;

use super::{Server, command, ok, run, told, without_founding};

/// A directory for files, and the place of a database in it.
pub(crate) struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Files {
        Files { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    #[expect(clippy::disallowed_methods, reason = "files of the test's own")]
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    #[expect(clippy::disallowed_methods, reason = "files of the test's own")]
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "files of the test's own")]
    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.directory.path().join(name).exists()
    }
}

/// The database's rows, as printed.
pub(crate) fn rows(place: &[&str], prefix: &str, more: &[&str]) -> BTreeMap<String, String> {
    let text = ok(&[&["range", "--prefix", prefix, "--output", "json"], more, place].concat());
    let value: Value = serde_json::from_str(&text).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    value["rows"].as_array().unwrap().iter().map(|row| (text(&row["key"]), text(&row["value"]))).collect()
}

pub(crate) fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(&[arguments, &["--output", "json"]].concat())).unwrap()
}

fn check(place: &[&str], expected: &Expect) {
    let mut text = String::new();
    for (key, value) in rows(place, "", &[]) {
        writeln!(text, "{key} = {value}").unwrap();
    }
    expected.assert_eq(&text);
}

/// What is noted about imports.
pub(crate) fn notes(place: &[&str]) -> BTreeMap<String, String> {
    rows(place, r"\xff\x02/ferrisdb/import/", &["--system"])
}

const PEOPLE: &str = "id,name,note\r\n7,Ada,\"one, \"\"two\"\"\"\r\n\r\n8,Grace,\"two\nlines\"\r\n9,Zoë,\r\n";

/// Keys and values are made of columns, of CSV and of NDJSON, with and without a header.
#[test]
fn templates_over_columns() {
    let files = Files::new();
    let people = files.write("people.csv", format!("\u{feff}{PEOPLE}"));
    let data = files.path("db");
    let place = ["--data", data.as_str()];
    let import = |arguments: &[&str]| json(&[&["import"], arguments, &place].concat());

    let told = import(&[&people, "--key", "people/{id}"]);
    assert_eq!(
        (&told["rows"], &told["rows_left_out"], &told["rows_of_earlier_attempts"]),
        (&3.into(), &0.into(), &0.into())
    );
    assert!(told["seconds"].is_number(), "{told}");
    import(&[&people, "--key", r"n/{name}\x00", "--value", "{id}/{{{note}}}"]);
    import(&[&people, "--key-tuple", "t,{id:int}", "--value", "{name}"]);
    let plain = files.write("plain.tsv", "1\ta\n2\tb");
    import(&[&plain, "--key", "v/{1}", "--no-header"]);
    import(&[&plain, "--key", "v/{1}/2", "--value", "{2}", "--no-header"]);
    let lines = files.write("people.ndjson", "{\"id\": 1, \"name\": \"A\\u0000\", \"big\": 123456789012345678901234567890}\n\n {\"id\": \"x\", \"name\": [1, 2]}");
    import(&[&lines, "--key", "w/{id}"]);
    import(&[&lines, "--key", "x/{id}", "--value", "{name}"]);
    check(
        &place,
        &expect![[r#"
            \x02t\x00\x15\x07 = Ada
            \x02t\x00\x15\x08 = Grace
            \x02t\x00\x15\x09 = Zoë
            n/Ada\x00 = 7/{one, "two"}
            n/Grace\x00 = 8/{two\x0alines}
            n/Zoë\x00 = 9/{}
            people/7 = {"id":"7","name":"Ada","note":"one, \\"two\\""}
            people/8 = {"id":"8","name":"Grace","note":"two\\nlines"}
            people/9 = {"id":"9","name":"Zoë","note":""}
            v/1 = ["1","a"]
            v/1/2 = a
            v/2 = ["2","b"]
            v/2/2 = b
            w/1 = {"id": 1, "name": "A\\u0000", "big": 123456789012345678901234567890}
            w/x = {"id": "x", "name": [1, 2]}
            x/1 = A\x00
            x/x = [1, 2]
        "#]],
    );
    assert!(notes(&place).is_empty());
}

/// Who gives a column a type where none is taken is told where they are.
#[test]
fn types_belong_to_tuples() {
    let files = Files::new();
    let data = files.path("db");
    let place = ["--data", data.as_str()];
    let table = files.write("typed.csv", "id,name\n1,a\n");
    // Each of its own: what was interrupted goes on with its own options alone, and lines have no header that tells before anything begins.
    let [lines, more] = ["typed.ndjson", "more.ndjson"].map(|name| files.write(name, "{\"id\":1,\"name\":\"a\"}\n"));
    let of_key = "--key takes columns as they are; types are in --key-tuple, such as --key-tuple 'people,{id:int}'";
    for (file, arguments, hint) in [
        (&table, &["--key", "n/{id:int}"][..], of_key),
        (&lines, &["--key", "{id:int}"], of_key),
        (&table, &["--key", "{id}", "--value", "{name:bytes}"], "--value takes columns as they are: {name}"),
        (&more, &["--key", "{id}", "--value", "{id:int}"], "--value takes columns as they are: {id}"),
        // No type at all.
        (&table, &["--key", "{id:integer}"], "columns are named as in the header"),
    ] {
        let (code, out, error) = run(&[&["import", file], arguments, &place].concat());
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        assert!(error.contains(hint), "{arguments:?}: {error}");
    }
    // A column may have such a name.
    let odd = files.write("odd.csv", "id:int\n7\n");
    ok(&[&["import", &odd, "--key", "odd/{id:int}"], &place[..]].concat());
    assert!(rows(&place, "odd/", &[]).contains_key("odd/7"));
}

/// A bad row ends the import with its line and column; what comes before its batch is there, and the mended file goes on behind that. Some may be left out.
#[test]
fn bad_rows() {
    let files = Files::new();
    let data = files.path("db");
    let place = ["--data", data.as_str()];
    let mut seen = String::new();
    for (name, text, arguments) in [
        ("short.csv", "id,name\r\n1,a\r\n\r\n2\r\n", &["--key", "{id}"][..]),
        ("empty.csv", "id,name\n\"1\n\",a\n,b\n", &["--key", "{id}"]),
        ("word.csv", "id,name\nx,a\n", &["--key-tuple", "{id:int}"]),
        ("column.csv", "id,name\n1,a\n", &["--key", "{ident}"]),
        ("columns.csv", "id,name\n1,a\n", &[]),
        ("system.csv", "id,name\n1,a\n", &["--key", "\\xff{id}"]),
        ("bytes.csv", "id,name\n1,a\n2,\u{1}\n", &["--key", "{id}", "--value", "{name}{name}{nam}"]),
        ("quote.csv", "id,name\n1,a\n2,\"unclosed", &["--key", "{id}"]),
        ("lines.csv", "id,name\n1,\"\"\"a\"\n2,\"b\"\"\n3,c\n\n", &["--key", "{id}"]),
        ("header.csv", "id,\"name\n1,a\n", &["--key", "{id}"]),
        ("cut.ndjson", "{\"id\":1}\n{\"id\":2,\n", &["--key", "{id}"]),
        ("member.ndjson", "{\"id\":1}\n{\"ident\":2}\n", &["--key", "{id}"]),
        ("null.ndjson", "{\"id\":null}\n", &["--key", "{id}"]),
        ("array.ndjson", "[1]\n", &["--key", "{id}"]),
        ("escape.ndjson", "{\"key\":\"\\\\n\",\"value\":\"\"}\n", &[]),
    ] {
        let path = files.write(name, text);
        let (code, out, error) = run(&[&["import", &path], arguments, &place].concat());
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        writeln!(seen, "{}", without_founding(&error).lines().next().unwrap().replace(&files.path(""), "")).unwrap();
    }
    let large = format!("id,name\n1,{}\n", "x".repeat(100_001));
    let (_, _, error) = run(&["import", &files.write("large.csv", large), "--key", "{id}", "--data", &data]);
    seen += &error.replace(&files.path(""), "");
    expect![[r#"
        error: short.csv:4: column 2: the row has 1 columns and the header 2
        error: empty.csv:4: column 1 (id): it is empty, and the key is made of it
        error: word.csv:2: column 1 (id): `x` is not a 64-bit integer
        error: column.csv has no column `ident`; its columns are id, name
        error: columns.csv has no column `key`; its columns are id, name
        error: system.csv:2: the key \xff1 is a system key; --system allows them
        error: bytes.csv has no column `nam`; its columns are id, name
        error: quote.csv:3: a quote begins in this row and is not closed up to the end of the file
        error: lines.csv:3: a quote begins in this row and is not closed up to the end of the file
        error: header.csv:1: a quote begins in this row and is not closed up to the end of the file
        error: cut.ndjson:2: column 8: EOF while parsing a value
        error: member.ndjson:2: member `id`: the object has no such member
        error: null.ndjson:1: member `id`: it is null
        error: array.ndjson:1: column 1: the line is no JSON object
        error: escape.ndjson:1: member `key`: `\n` is no escape: write `\xNN` for a byte and `\\` for a backslash
        error: large.csv:2: the value of 1 has 100021 bytes, and 100000 is the limit
          help: mend the row, or let some be left out with --skip-bad N; the same command goes on behind the last batch that is there
    "#]].assert_eq(&seen);

    // Quotes that are whole, up to the last byte of a file without an end of line.
    let path = files.write("whole.csv", "id,name\nwhole1,\"a,\"\"\"\nwhole2,b\"\nwhole3,\"\"\"c\"\"\"");
    assert_eq!(run(&["import", &path, "--key", "{id}", "--data", &data]).0, 0);
    assert_eq!(rows(&place, "whole", &[]).len(), 3);

    // Two rows in a batch: the first batch is there, the second is not.
    let path = files.write("some.csv", "id\nsome1\nsome2\nsome3\n\nsome5\n\"\"\nsome7\n");
    let arguments = ["import", &path, "--key", "{id}", "--batch-rows", "2", "--data", &data];
    let (code, _, error) = run(&arguments);
    assert!(code == 1 && error.contains("some.csv:7: column 1 (id): it is empty"), "{error}");
    assert_eq!(rows(&place, "some", &[]).len(), 4);
    let (code, _, error) = run(&[&arguments[..], &["--skip-bad", "1", "--value", "x"]].concat());
    assert!(code == 1 && error.contains("had other options: --format csv --key '{id}'"), "{error}");
    let (code, out, error) = told(&command(&[&arguments[..], &["--skip-bad", "1"]].concat()).output().unwrap());
    assert!(code == 0 && out.contains("rows left out             1\n"), "{out}{error}");
    assert!(out.contains("rows                      5\n") && out.contains("rows of earlier attempts  4\n"), "{out}");
    assert!(error.contains("left out: ") && error.contains("some.csv:7: column 1 (id)"), "{error}");
    assert_eq!(rows(&place, "some", &[]).len(), 5);

    // Mended instead: the part that was read is the same.
    let path = files.write("mend.csv", "id\nmend1\nmend2\n\"\"\n");
    let arguments = ["import", &path, "--key", "{id}", "--batch-rows", "2", "--data", &data];
    assert_eq!(run(&arguments).0, 1);
    files.write("mend.csv", "id\nmend1\nmend2\nmend3\n");
    assert_eq!(run(&arguments).0, 0);
    assert_eq!(rows(&place, "mend", &[]).len(), 3);
}

/// The later of two rows with one key remains, wherever the batches' ends are.
#[test]
fn the_later_row_remains() {
    let files = Files::new();
    let mut text = String::from("id,n\n");
    for n in 0..400 {
        writeln!(text, "{},{n}", n % 7).unwrap();
    }
    let path = files.write("rows.csv", text);
    for batch_rows in ["1", "3", "1000"] {
        let data = files.path(&format!("db{batch_rows}"));
        ok(&["import", &path, "--key", "{id}", "--value", "{n}", "--batch-rows", batch_rows, "--data", &data]);
        let found: Vec<u64> = rows(&["--data", &data], "", &[]).values().map(|n| n.parse().unwrap()).collect();
        assert_eq!(found, [399, 393, 394, 395, 396, 397, 398]);
    }
}

/// Standard input has no position, unless a job has a name; then what was read before is skipped, and compared. `--restart` forgets.
#[test]
fn standard_input_with_a_name() {
    let files = Files::new();
    let data = files.path("db");
    let import = |text: &str, more: &[&str]| {
        let arguments = ["import", "-", "--format", "csv", "--key", "{id}", "--batch-rows", "1", "--data", &data];
        let mut child = command(&[&arguments[..], more].concat()).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        told(&child.wait_with_output().unwrap())
    };
    let (code, _, error) = import("id\n1\n\"\"\n", &[]);
    assert!(code == 1 && error.contains("standard input:3: ") && !error.contains("the same command"), "{error}");
    assert!(notes(&["--data", &data]).is_empty());
    let (code, _, error) = import("id\n1\n\"\"\n", &["--job", "nightly"]);
    assert!(code == 1 && error.contains("the same command goes on"), "{error}");
    assert_eq!(notes(&["--data", &data]).len(), 2);
    let (code, _, error) = import("id\n2\n3\n", &["--job", "nightly"]);
    assert!(code == 1 && error.contains("the 5 bytes that were imported are others now"), "{error}");
    assert_eq!(import("id\n1\n3\n", &["--job", "nightly"]).0, 0);
    assert_eq!(import("id\n1\n\"\"\n", &["--job", "nightly"]).0, 1);
    assert_eq!(import("id\n4\n5\n", &["--job", "nightly", "--restart"]).0, 0);
    assert_eq!(rows(&["--data", &data], "", &[]).len(), 4);
}

/// What `export` writes, `import` restores: every byte, in both formats, through files and pipes, from a directory and from a server.
#[test]
fn there_and_back() {
    let files = Files::new();
    let first = files.path("first");
    let seed = 0x7e57_u64;
    let mut random = SplitMix64::new(seed);
    let mut bytes = |max: u64| -> String {
        (0..random.below(max)).fold(String::new(), |text, _| format!("{text}\\\\x{:02x}", random.below(256)))
    };
    // Keys below \xff, a few of them long; the form of `export` is also a way to write them.
    let mut lines = String::from(
        "{\"key\":\"\",\"value\":\"the empty key\"}\n{\"key\":\"plain, \\\"quoted\\\"\",\"value\":\"é\"}\n",
    );
    for n in 0..300 {
        let most = if n % 50 == 0 { 2000 } else { 30 };
        writeln!(lines, "{{\"key\":\"k{}\",\"value\":\"{}\"}}", bytes(most), bytes(most)).unwrap();
    }
    let lines = files.write("random.ndjson", lines);
    ok(&["import", &lines, "--data", &first]);
    let whole = rows(&["--data", &first], "", &[]);
    assert!(whole.len() > 250, "seed {seed}");

    let mut exports = Vec::new();
    for format in ["ndjson", "csv"] {
        let file = files.path(&format!("all.{format}"));
        let told = json(&["export", &file, "--data", &first]);
        assert_eq!(told["rows"], whole.len());
        assert!(!files.exists(&format!("all.{format}.part")) && !files.exists(&format!("all.{format}.part.is")));
        let copy = files.path(format);
        ok(&["import", &file, "--data", &copy]);
        assert_eq!(rows(&["--data", &copy], "", &[]), whole, "seed {seed}");
        exports.push(files.read(&format!("all.{format}")));
    }

    // From a server, through a pipe.
    let data = files.path("served");
    let server = Server::start(Path::new(&data), &[]);
    let address = server.address.clone();
    ok(&["import", &files.path("all.csv"), "--connect", &address]);
    let text = command(&["export", "--connect", &address]).output().unwrap().stdout;
    assert_eq!(text, exports[0]);
    assert_eq!(command(&["export", "--format", "csv", "--connect", &address]).output().unwrap().stdout, exports[1]);
    let last = files.path("last");
    let mut child =
        command(&["import", "-", "--format", "ndjson", "--data", &last]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(rows(&["--data", &last], "", &[]), whole);
    let part = ok(&["export", "--prefix", "plain", "--connect", &address]);
    assert_eq!(part, "{\"key\":\"plain, \\\"quoted\\\"\",\"value\":\"é\"}\n");
    assert_eq!(
        ok(&["export", "--range", "", r"\x01", "--format", "csv", "--connect", &address]),
        "key,value\n,the empty key\n"
    );
    server.stop();
}

/// Where standard error is no terminal, progress is a line now and then, for programs a JSON object.
#[test]
fn progress_is_told() {
    let files = Files::new();
    let data = files.path("db");
    let path = files.write("rows.ndjson", "{\"id\":1}\n{\"id\":2}\n");
    let arguments = ["import", &path, "--key", "{id}", "--batch-rows", "1", "--progress", "0", "--data", &data];
    let (code, _, error) = run(&[&arguments[..], &["--output", "json"]].concat());
    assert_eq!(code, 0);
    let last: Value = serde_json::from_str(error.lines().last().unwrap()).unwrap();
    assert_eq!((&last["progress"], &last["total_bytes"]), (&"import".into(), &18.into()), "{error}");
    assert_eq!((&last["rows"], &last["bytes"]), (&2.into(), &18.into()), "{error}");
}
