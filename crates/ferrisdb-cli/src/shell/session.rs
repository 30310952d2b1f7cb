//! What the shell's commands do, whoever types them.
//!
//! Without `begin`, each command is a transaction of its own, retried until it commits. After `begin`, all commands belong to one, until
//! `commit` or `rollback`; a conflict is told with the keys concerned, and is the end of the transaction.

use std::future::Future;
use std::io::Write;

use ferrisdb::layers::Tuple;
use ferrisdb::{Bytes, Code, KeyRange, KeyValue, RangeOptions, Transaction, TransactionOption, Version, WatchFuture};
use futures_util::future::{Either, select};
use serde_json::json;

use super::words::{tuple_text, words};
use crate::connect::Connected;
use crate::failure::Failure;
use crate::oneshot::prefix_range;
use crate::status;
use crate::stopwatch::Stopwatch;
use crate::text::{escape, hex};

/// Rows of a `getrange` that does not say how many.
const LIMIT_DEFAULT: i32 = 25;

const CONFLICTING_KEYS: &[u8] = b"\xff\xff/transaction/conflicting_keys/";

/// A command: its name, what follows, what it does.
pub(super) struct Help {
    pub(super) name: &'static str,
    pub(super) arguments: &'static str,
    pub(super) what: &'static str,
}

/// All commands, in the order of `help`.
pub(super) const COMMANDS: &[Help] = &[
    Help {
        name: "begin",
        arguments: "",
        what: "begin a transaction: what follows belongs to it until commit or rollback",
    },
    Help { name: "commit", arguments: "", what: "commit it" },
    Help { name: "reset", arguments: "", what: "forget what it read and wrote, and begin it again" },
    Help { name: "rollback", arguments: "", what: "end it without a trace" },
    Help { name: "get", arguments: "KEY", what: "print a key's value" },
    Help { name: "set", arguments: "KEY VALUE", what: "give a key a value" },
    Help { name: "clear", arguments: "KEY", what: "take a key's value" },
    Help { name: "clearrange", arguments: "BEGIN END", what: "take the values of all keys from BEGIN up to END" },
    Help {
        name: "getrange",
        arguments: "BEGIN [END] [LIMIT] [reverse]",
        what: "print the rows from BEGIN up to END (without END: all that begin with BEGIN), 25 unless LIMIT says otherwise",
    },
    Help {
        name: "watch",
        arguments: "KEY",
        what: "wait until a key has another value, for as long as it takes, and print it (Ctrl-C ends the waiting)",
    },
    Help { name: "status", arguments: "[json]", what: "show how the database is" },
    Help { name: "timing", arguments: "on|off", what: "print how long each command took" },
    Help { name: "mode", arguments: "table|json|hex|tuple", what: "how keys and values are printed" },
    Help { name: "help", arguments: "[COMMAND]", what: "this" },
    Help { name: "exit", arguments: "", what: "leave; so does the end of the input" },
];

/// How keys and values are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Table,
    Json,
    Hex,
    Tuple,
}

/// What comes after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Exit,
}

/// A person's, or a script's, work with a database.
pub(super) struct Session<'a> {
    connected: &'a Connected,
    out: &'a mut dyn Write,
    /// Ctrl-C ends a command and not the shell.
    is_terminal: bool,
    transaction: Option<Transaction>,
    mode: Mode,
    is_timed: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(connected: &'a Connected, out: &'a mut dyn Write, is_terminal: bool) -> Session<'a> {
        Session { connected, out, is_terminal, transaction: None, mode: Mode::Table, is_timed: false }
    }

    /// True between `begin` and `commit` or `rollback`.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Runs a line.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<Next, Failure> {
        let words = words(without_backslash(line))
            .map_err(|what| Failure::failed(what, "`help` shows how to write keys and values"))?;
        let Some((name, arguments)) = words.split_first() else { return Ok(Next::Go) };
        // `timing on` is not timed itself.
        let was_timed = self.is_timed;
        let watch = Stopwatch::start();
        let next = self.command(&String::from_utf8_lossy(name).to_ascii_lowercase(), arguments)?;
        if was_timed && self.is_timed && next == Next::Go {
            let milliseconds = watch.elapsed().as_secs_f64() * 1000.0;
            match self.mode {
                Mode::Json => writeln!(self.out, "{}", json!({ "milliseconds": milliseconds }))?,
                _ => writeln!(self.out, "{milliseconds:.3} ms")?,
            }
        }
        self.out.flush()?;
        Ok(next)
    }

    fn command(&mut self, name: &str, arguments: &[Bytes]) -> Result<Next, Failure> {
        match (name, arguments) {
            ("exit" | "quit", []) => return Ok(Next::Exit),
            ("help" | "?", _) => self.help(arguments)?,
            ("begin", []) => self.begin()?,
            ("commit", []) => self.commit()?,
            ("reset", []) => self.open_transaction("reset")?.reset(),
            ("rollback", []) => {
                self.open_transaction("rollback")?;
                self.transaction = None;
            }
            ("get", [key]) => self.get(key)?,
            ("set", [key, value]) => self.write(|tx| tx.set(key, value))?,
            ("clear", [key]) => self.write(|tx| tx.clear(key))?,
            ("clearrange", [begin, end]) => self.write(|tx| tx.clear_range(begin, end))?,
            ("getrange", [begin, rest @ ..]) => self.get_range(begin, rest)?,
            ("watch", [key]) => self.watch(key)?,
            ("status", []) => self.status(self.mode == Mode::Json)?,
            ("status", [how]) if how == "json" => self.status(true)?,
            ("timing", [how]) if how == "on" || how == "off" => self.is_timed = how == "on",
            ("mode", [mode]) => {
                self.mode = match &mode[..] {
                    b"table" => Mode::Table,
                    b"json" => Mode::Json,
                    b"hex" => Mode::Hex,
                    b"tuple" => Mode::Tuple,
                    _ => return Err(usage("mode", &format!("there is no mode `{}`", escape(mode)))),
                }
            }
            _ => return Err(miscounted(name, arguments)),
        }
        Ok(Next::Go)
    }

    fn help(&mut self, arguments: &[Bytes]) -> Result<(), Failure> {
        let wanted = arguments.first();
        let mut found = false;
        for Help { name, arguments, what } in COMMANDS {
            if wanted.is_none_or(|wanted| wanted == name) {
                found = true;
                writeln!(self.out, "  {:<40} {what}", format!("{name} {arguments}"))?;
            }
        }
        match wanted {
            Some(wanted) if !found => return Err(usage(&escape(wanted), "")),
            Some(_) => {}
            None => writeln!(
                self.out,
                "\nKeys and values: \\xNN is a byte, \\\\ a backslash, \"...\" holds spaces, (\"user\", 42) is a packed tuple.\n\
                 A transaction lives for 5 seconds from its first read on."
            )?,
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Failure> {
        if self.transaction.is_some() {
            return Err(Failure::failed("a transaction is under way", "commit or rollback it first"));
        }
        let transaction = self.connected.database.create_transaction();
        transaction.set_option(&TransactionOption::ReportConflictingKeys);
        self.transaction = Some(transaction);
        Ok(())
    }

    fn open_transaction(&self, command: &str) -> Result<Transaction, Failure> {
        let none = || Failure::failed(format!("{command}: no transaction is under way"), "`begin` begins one");
        self.transaction.clone().ok_or_else(none)
    }

    fn commit(&mut self) -> Result<(), Failure> {
        let transaction = self.open_transaction("commit")?;
        self.transaction = None;
        let committed = self.wait(async { Ok(transaction.commit().await) })?;
        let Err(error) = committed else {
            let version = transaction.get_committed_version();
            return self.print_commit(version);
        };
        if error.code() == Code::NotCommitted {
            let keys = RangeOptions::prefix(CONFLICTING_KEYS);
            let chunk = self.wait(async { Ok(transaction.get_range(keys).await) })?;
            // What cannot be told is no reason to hide the conflict.
            for [begin, end] in chunk.unwrap_or_default().rows.as_chunks::<2>().0 {
                let [begin, end] = [begin, end].map(|row| self.show(&row.key[CONFLICTING_KEYS.len()..]));
                writeln!(self.out, "conflict in {begin} .. {end}")?;
            }
        }
        Err(Failure::from(error).about("the transaction is over"))
    }

    fn get(&mut self, key: &Bytes) -> Result<(), Failure> {
        let value = self.read(async |tx| tx.get(key).await)?;
        match (self.mode, value) {
            (Mode::Json, value) => {
                let value = value.map(|value| escape(&value));
                writeln!(self.out, "{}", json!({ "key": escape(key), "value": value }))?;
            }
            (_, Some(value)) => writeln!(self.out, "{}", self.show(&value))?,
            (_, None) => writeln!(self.out, "not found")?,
        }
        Ok(())
    }

    fn get_range(&mut self, begin: &Bytes, rest: &[Bytes]) -> Result<(), Failure> {
        let (rest, is_reverse) = match rest {
            [rest @ .., last] if last == "reverse" => (rest, true),
            rest => (rest, false),
        };
        let (end, limit) = (rest.first(), rest.get(1));
        let range = match end {
            Some(end) => KeyRange::new(begin.clone(), end.clone()),
            None => prefix_range(begin, false),
        };
        let limit = match limit {
            None => LIMIT_DEFAULT,
            Some(limit) => std::str::from_utf8(limit)
                .ok()
                .and_then(|limit| limit.parse::<i32>().ok())
                .filter(|limit| *limit > 0)
                .ok_or_else(|| usage("getrange", &format!("`{}` is no number of rows", escape(limit))))?,
        };
        if let Some(surplus) = rest.get(2) {
            return Err(usage("getrange", &format!("`{}` is one argument too many", escape(surplus))));
        }
        let options = RangeOptions::from(range).limit(limit).reverse(is_reverse);
        let rows = self.read(async |tx| tx.get_ranges(options.clone()).collect().await)?;
        if self.mode == Mode::Json {
            let rows: Vec<_> =
                rows.iter().map(|row| json!({ "key": escape(&row.key), "value": escape(&row.value) })).collect();
            writeln!(self.out, "{}", json!({ "rows": rows }))?;
            return Ok(());
        }
        let is_full = i32::try_from(rows.len()).is_ok_and(|count| count == limit);
        for KeyValue { key, value } in &rows {
            writeln!(self.out, "{} = {}", self.show(key), self.show(value))?;
        }
        match (rows.len(), is_full) {
            (1, false) => writeln!(self.out, "1 row")?,
            (count, false) => writeln!(self.out, "{count} rows")?,
            (count, true) => writeln!(self.out, "{count} rows; there may be more: getrange BEGIN END LIMIT")?,
        }
        Ok(())
    }

    fn watch(&mut self, key: &Bytes) -> Result<(), Failure> {
        if self.transaction.is_some() {
            return Err(Failure::failed(
                "a watch begins to work when its transaction has committed",
                "commit or rollback first, and then watch",
            ));
        }
        let database = self.connected.database.clone();
        let changed: WatchFuture = self.wait(async {
            let transaction = database.create_transaction();
            let watch = transaction.watch(key);
            transaction.commit().await?;
            Ok(watch)
        })?;
        self.wait_for_ever(async { Ok(changed.await?) })?;
        self.get(key)
    }

    fn status(&mut self, is_json: bool) -> Result<(), Failure> {
        let document = status::ask(self.connected)?;
        if is_json {
            writeln!(self.out, "{document}")?;
            return Ok(());
        }
        status::print(&document, &mut *self.out)
    }

    /// A read: in the transaction under way, or in one of its own.
    fn read<T, F, Fut>(&self, read: F) -> Result<T, Failure>
    where
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = ferrisdb::Result<T>>,
    {
        match self.transaction.clone() {
            Some(transaction) => self.wait(async { Ok(read(transaction).await?) }),
            None => self.wait(async { Ok(self.connected.database.run(read).await?) }),
        }
    }

    /// A write: in the transaction under way, or in one of its own.
    fn write(&mut self, write: impl Fn(&Transaction)) -> Result<(), Failure> {
        if let Some(transaction) = &self.transaction {
            write(transaction);
            // Deferred errors now and not with the commit: the person has just typed it.
            transaction.get_approximate_size()?;
            return Ok(());
        }
        let committed = self.wait(async {
            let run = self.connected.database.run(async |tx| {
                write(&tx);
                Ok(tx)
            });
            Ok(run.await?)
        })?;
        self.print_commit(committed.get_committed_version())
    }

    fn print_commit(&mut self, version: Option<Version>) -> Result<(), Failure> {
        match (self.mode, version) {
            (Mode::Json, version) => {
                writeln!(self.out, "{}", json!({ "committed_version": version.map(Version::get) }))?;
            }
            (_, Some(version)) => writeln!(self.out, "committed at version {version}")?,
            (_, None) => writeln!(self.out, "committed; it wrote nothing")?,
        }
        Ok(())
    }

    /// Bytes in the form that was chosen.
    fn show(&self, bytes: &[u8]) -> String {
        match self.mode {
            Mode::Table | Mode::Json => escape(bytes),
            Mode::Hex => hex(bytes),
            Mode::Tuple => match Tuple::unpack(bytes) {
                Ok(tuple) if !bytes.is_empty() => tuple_text(&tuple),
                _ => escape(bytes),
            },
        }
    }

    /// Waits, not longer than the timeout, nor than until Ctrl-C at a terminal.
    fn wait<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        if self.is_terminal { self.connected.run(interruptible(work)) } else { self.connected.run(work) }
    }

    /// Waits until it is done, or until Ctrl-C at a terminal. (Elsewhere a signal ends the process.)
    fn wait_for_ever<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        if self.is_terminal { self.connected.wait(interruptible(work)) } else { self.connected.wait(work) }
    }
}

/// The work, or an error once Ctrl-C was pressed.
async fn interruptible<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let (work, interrupt) = (std::pin::pin!(work), std::pin::pin!(tokio::signal::ctrl_c()));
    match select(work, interrupt).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => Err(Failure::failed("interrupted", "what was asked may have happened")),
    }
}

/// Whoever comes from another database's shell writes `\timing`.
fn without_backslash(line: &[u8]) -> &[u8] {
    match line.trim_ascii_start().strip_prefix(b"\\") {
        Some(rest) if rest.first().is_some_and(|first| *first == b'?' || first.is_ascii_alphabetic()) => rest,
        _ => line,
    }
}

/// That a command has too few arguments, too many, or one that it does not know.
fn miscounted(name: &str, given: &[Bytes]) -> Failure {
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else { return usage(name, "") };
    let taken: Vec<&str> = command.arguments.split_whitespace().collect();
    let what = match (taken.get(given.len()), given.get(taken.len()), given.last()) {
        (Some(missing), ..) if !missing.starts_with('[') => format!("{missing} is missing"),
        (_, Some(surplus), _) => format!("`{}` is one argument too many", escape(surplus)),
        (.., Some(odd)) => format!("`{}` is not what it takes", escape(odd)),
        (.., None) => String::new(),
    };
    usage(name, &what)
}

/// What a command wants.
fn usage(name: &str, what: &str) -> Failure {
    let colon = if what.is_empty() { "" } else { ": " };
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => {
            let what = if what.is_empty() { "it takes other arguments" } else { what };
            Failure::failed(format!("{name}: {what}"), format!("{name} {}", command.arguments).trim_end())
        }
        None => Failure::failed(format!("`{name}` is no command{colon}{what}"), "`help` lists the commands"),
    }
}
