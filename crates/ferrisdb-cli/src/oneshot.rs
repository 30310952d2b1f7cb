//! `ferrisdb get`, `set`, `clear` and `range`: one transaction each.

use std::io::{Read as _, Write};

use ferrisdb::{Bytes, KeyRange, KeyValue, RangeOptions, SnapshotOptions, Transaction, TransactionOption, Version};
use ferrisdb_core::key::{SYSTEM_END, USER_END};
use ferrisdb_storage::inspect::{Cell, Sink as _};

use crate::arguments::{ClearArguments, GetArguments, Output, RangeArguments, RangeOfKeys, SetArguments};
use crate::connect::{self, Connected, Missing};
use crate::failure::Failure;
use crate::printer::Printer;
use crate::text::escape;

/// Prints a key's value; exit code 4 if it has none.
pub(crate) fn get(arguments: &GetArguments, mut out: impl Write) -> Result<(), Failure> {
    let key = &arguments.key.0;
    let value = connect::with(&arguments.connect, Missing::Refuse, |connected| {
        connected.run(async {
            Ok(connected
                .database
                .run(async |tx| {
                    allow_system_keys(&tx, arguments.system);
                    tx.get(key).await
                })
                .await?)
        })
    })?;
    match (&value, arguments.output.output, arguments.raw) {
        (Some(value), _, true) => out.write_all(value)?,
        (Some(value), Output::Table, false) => writeln!(out, "{}", escape(value))?,
        (_, Output::Json, false) => {
            let text = value.as_ref().map(|value| escape(value));
            let mut printer = Printer::new(Output::Json, &mut out);
            printer.field("key", escape(key).as_str().into())?;
            printer.field("value", text.as_deref().into())?;
            printer.finish(None)?;
        }
        (None, ..) => {}
    }
    out.flush()?;
    match value {
        Some(_) => Ok(()),
        None => Err(Failure::NotFound(format!("{} has no value", escape(key)))),
    }
}

/// Gives a key a value.
pub(crate) fn set(arguments: &SetArguments, out: impl Write) -> Result<(), Failure> {
    let value = match &arguments.value {
        Some(value) => value.0.clone(),
        None if !arguments.stdin => {
            let key = escape(&arguments.key.0);
            return Err(Failure::usage(
                format!("which value is {key} to have?"),
                "give VALUE behind the key (\"\" for an empty one), or --stdin to read it from standard input",
            ));
        }
        None => {
            let mut value = Vec::new();
            std::io::stdin().lock().read_to_end(&mut value).map_err(|error| {
                Failure::failed(format!("cannot read the value from standard input: {error}"), "check what is piped in")
            })?;
            Bytes::from(value)
        }
    };
    connect::with(&arguments.connect, Missing::Found, |connected| {
        let version = commit(connected, arguments.system, |tx| tx.set(&arguments.key.0, &value))?;
        print_commit(arguments.output.output, version, out)
    })
}

/// Takes the value of a key, or of all keys in a range.
pub(crate) fn clear(arguments: &ClearArguments, mut out: impl Write) -> Result<(), Failure> {
    let range = match (&arguments.key, &arguments.range, &arguments.prefix) {
        (Some(key), ..) => KeyRange::single(&key.0),
        (None, Some(ends), _) if ends.len() == 2 => checked_range(ends[0].0.clone(), ends[1].0.clone())?,
        (None, None, Some(prefix)) => prefix_range(&prefix.0, arguments.system),
        (None, None, None) if arguments.all => prefix_range(b"", arguments.system),
        _ => {
            let remedy = "give KEY, --range BEGIN END, --prefix PREFIX or --all";
            return Err(Failure::usage("what is to be cleared?", remedy));
        }
    };
    // An unset variable of a script's is an empty prefix.
    if !arguments.all && range.begin.is_empty() && &range.end[..] >= USER_END {
        return Err(Failure::usage(
            "these are all keys of the database: the prefix is empty, or the range has no bounds",
            "name the keys that are meant (is a variable of the script not set?), or give --all to clear the whole database",
        ));
    }
    connect::with(&arguments.connect, Missing::Refuse, |connected| {
        let version = commit(connected, arguments.system, |tx| match &arguments.key {
            Some(key) => tx.clear(&key.0),
            None => tx.clear_range(&range.begin, &range.end),
        })?;
        if version.is_none() && arguments.output.output == Output::Table {
            let why = match &arguments.key {
                Some(key) => format!("no key is as long as this one, {} bytes", key.0.len()),
                None => "no key lies in this range".to_owned(),
            };
            return Ok(writeln!(out, "nothing to do: {why}")?);
        }
        print_commit(arguments.output.output, version, out)
    })
}

/// Prints the keys and values of a range, as they come.
pub(crate) fn range(arguments: &RangeArguments, out: impl Write) -> Result<(), Failure> {
    let range = range_of(&arguments.keys, arguments.system)?;
    connect::with(&arguments.connect, Missing::Refuse, |connected| {
        let mut printer = Printer::new(arguments.output.output, out);
        let read = print_range(connected, arguments, range, &mut printer);
        let error = read.as_ref().err().filter(|failure| !matches!(failure, Failure::OutputClosed));
        printer.finish(error.map(ToString::to_string).as_deref())?;
        read
    })
}

fn print_range(
    connected: &Connected,
    arguments: &RangeArguments,
    range: KeyRange,
    printer: &mut Printer<impl Write>,
) -> Result<(), Failure> {
    let limit = i32::try_from(arguments.limit).unwrap_or(i32::MAX);
    let is_special = range.begin.starts_with(SYSTEM_END);
    let mut next = Some(RangeOptions::from(range).limit(limit).reverse(arguments.reverse));
    // The head of the table comes with the first answer: an error has none.
    let mut is_open = None;
    let mut print = |rows: Vec<KeyValue>| {
        let mut open = is_open.unwrap_or_else(|| printer.table("rows", &["key", "value"]).is_ok());
        for KeyValue { key, value } in rows {
            let (key, value) = (escape(&key), escape(&value));
            open = open && printer.row(&[Cell::Text(&key), Cell::Text(&value)]).is_ok();
        }
        // The printer remembers why it is not; nobody needs further rows.
        is_open = Some(open);
        open
    };
    if is_special {
        // Snapshots have stored keys only.
        let tx = connected.database.create_transaction();
        while let Some(options) = next {
            let chunk = connected.run(async { Ok(tx.get_range(options.clone()).await?) })?;
            next = options.after(&chunk);
            if !print(chunk.rows) {
                break;
            }
        }
        return Ok(());
    }
    // A snapshot stays readable for as long as printing takes; a transaction would be too old after five seconds.
    let options = SnapshotOptions {
        read_system_keys: arguments.system,
        lock_aware: arguments.system,
        ..SnapshotOptions::default()
    };
    let snapshot = connected.run(async { Ok(connected.database.snapshot(options).await?) })?;
    while let Some(options) = next {
        let chunk = connected.run(async { Ok(snapshot.get_range(options.clone()).await?) })?;
        next = options.after(&chunk);
        if !print(chunk.rows) {
            break;
        }
    }
    Ok(())
}

/// Runs a transaction that writes, and returns its version.
fn commit(connected: &Connected, system: bool, write: impl Fn(&Transaction)) -> Result<Option<Version>, Failure> {
    connected.run(async {
        let committed = connected.database.run(async |tx| {
            allow_system_keys(&tx, system);
            write(&tx);
            Ok(tx)
        });
        Ok(committed.await?.get_committed_version())
    })
}

fn print_commit(output: Output, version: Option<Version>, mut out: impl Write) -> Result<(), Failure> {
    let version = version.map(Version::get);
    match (output, version) {
        (Output::Table, Some(version)) => writeln!(out, "committed at version {version}")?,
        (Output::Table, None) => writeln!(out, "nothing to do")?,
        (Output::Json, version) => writeln!(out, "{}", serde_json::json!({ "committed_version": version }))?,
    }
    Ok(out.flush()?)
}

/// Whoever works on system keys may do so while the database is locked: the lock is one of them.
fn allow_system_keys(tx: &Transaction, system: bool) {
    if system {
        tx.set_option(&TransactionOption::LockAware);
        tx.set_option(&TransactionOption::AccessSystemKeys);
    }
}

/// The range that is meant: `BEGIN END`, or all keys with a prefix.
fn range_of(keys: &RangeOfKeys, system: bool) -> Result<KeyRange, Failure> {
    match (&keys.begin, &keys.end, &keys.prefix) {
        (_, _, Some(prefix)) => Ok(prefix_range(&prefix.0, system)),
        (Some(begin), Some(end), None) => checked_range(begin.0.clone(), end.0.clone()),
        (Some(begin), None, None) => Err(Failure::usage(
            format!("the range begins at {} and has no end", escape(&begin.0)),
            "give END too, or --prefix PREFIX for all keys that begin so",
        )),
        _ => Err(Failure::usage("which range?", "give BEGIN and END, or --prefix PREFIX (\"\" for all keys)")),
    }
}

pub(crate) fn checked_range(begin: Bytes, end: Bytes) -> Result<KeyRange, Failure> {
    if begin > end {
        let what = format!("the range begins at {} and ends before it, at {}", escape(&begin), escape(&end));
        return Err(Failure::usage(what, "swap them: a range has BEGIN in it, and all up to END"));
    }
    Ok(KeyRange { begin, end })
}

/// All keys with a prefix, within what may be read.
pub(crate) fn prefix_range(prefix: &[u8], system: bool) -> KeyRange {
    let mut range = KeyRange::prefix(prefix);
    if !system && !prefix.starts_with(b"\xff") {
        range.end = range.end.min(Bytes::from_static(USER_END));
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty prefix means all of the user's keys, and with system keys those too.
    #[test]
    fn a_prefix_stays_within_what_may_be_read() {
        assert_eq!(prefix_range(b"", false), KeyRange::new(&b""[..], &b"\xff"[..]));
        assert_eq!(prefix_range(b"", true), KeyRange::new(&b""[..], &b"\xff\xff"[..]));
        assert_eq!(prefix_range(b"a", false), KeyRange::new(&b"a"[..], &b"b"[..]));
        assert_eq!(prefix_range(b"\xff/conf", false), KeyRange::new(&b"\xff/conf"[..], &b"\xff/cong"[..]));
    }

    #[test]
    fn an_inverted_range_is_refused_with_both_ends() {
        let failure = checked_range(Bytes::from_static(b"b"), Bytes::from_static(b"a")).unwrap_err().to_string();
        assert!(failure.contains("begins at b") && failure.contains("at a"), "{failure}");
    }
}
