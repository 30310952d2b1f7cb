//! `ferrisdb shell`: a session at a terminal, with editing, completion and history, or with commands from a pipe.
//!
//! The history is in `$XDG_STATE_HOME/ferrisdb/history` (`~/.local/state/ferrisdb/history`), readable by its owner only; a line that begins with a
//! space is not kept.

mod edit;
mod session;
mod words;

use std::env;
use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::hint::HistoryHinter;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::ShellArguments;
use crate::connect::{self, Connected, Missing};
use crate::failure::Failure;
use edit::Editing;
use session::{Next, Session};

/// Lines that are kept.
const HISTORY_LINES: usize = 10_000;

/// Runs a shell on the database that the arguments name.
pub(crate) fn run(arguments: &ShellArguments) -> Result<(), Failure> {
    connect::with(&arguments.connect, Missing::Found, |connected| on(connected, &mut io::stdout().lock()))
}

/// Runs a shell on an open database, until its input ends.
pub(crate) fn on(connected: &Connected, out: &mut dyn Write) -> Result<(), Failure> {
    if io::stdin().is_terminal() { terminal(connected, out) } else { pipe(connected, out) }
}

/// Commands from a pipe: the first one that fails is the end.
fn pipe(connected: &Connected, out: &mut dyn Write) -> Result<(), Failure> {
    let mut session = Session::new(connected, out, false);
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(|error| {
            Failure::failed(format!("cannot read commands from standard input: {error}"), "check what is piped in")
        })?;
        if read == 0 {
            break;
        }
        if session.line(&line).map_err(|failure| failure.about(&format!("line {number}")))? == Next::Exit {
            return Ok(());
        }
    }
    if session.is_in_transaction() {
        return Err(Failure::failed(
            "the input ended within a transaction, which was not committed",
            "end it with commit",
        ));
    }
    Ok(())
}

/// Commands from a person.
fn terminal(connected: &Connected, out: &mut dyn Write) -> Result<(), Failure> {
    let cannot = |error: ReadlineError| Failure::failed(format!("cannot read from the terminal: {error}"), "");
    let config = Config::builder().history_ignore_space(true).completion_type(CompletionType::List);
    let config = config.max_history_size(HISTORY_LINES).map_err(cannot)?.build();
    let mut editor = Editor::<Editing<'_>, FileHistory>::with_config(config).map_err(cannot)?;
    editor.set_helper(Some(Editing { connected, history: HistoryHinter::new() }));
    let history = history_file();
    if let Some(path) = &history {
        // The first time there is none.
        editor.load_history(path).unwrap_or_default();
    }
    writeln!(
        out,
        "FerrisDB {} at {}. `help` lists the commands, Ctrl-D leaves.",
        env!("CARGO_PKG_VERSION"),
        connected.place
    )?;
    // From here on an interrupt does not end the process by itself, also between a line's end and the beginning of its command's work.
    let interrupts = connected.wait(async { signal(SignalKind::interrupt()) });
    let _interrupts = interrupts.map_err(|error| Failure::failed(format!("cannot listen to signals: {error}"), ""))?;
    let mut session = Session::new(connected, out, true);
    let ended = loop {
        let prompt = if session.is_in_transaction() { "ferrisdb*> " } else { "ferrisdb> " };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break Ok(()),
            Err(error) => break Err(cannot(error)),
        };
        if let Err(error) = editor.add_history_entry(line.as_str()) {
            break Err(cannot(error));
        }
        match session.line(line.as_bytes()) {
            Ok(Next::Go) => {}
            Ok(Next::Exit) => break Ok(()),
            Err(Failure::OutputClosed) => break Err(Failure::OutputClosed),
            Err(failure) => eprintln!("{failure}"),
        }
    };
    if let Some(path) = &history
        && let Err(error) = editor.append_history(path)
    {
        eprintln!("The history could not be kept in {}: {error}", path.display());
    }
    ended
}

/// Where the history is, with its directory made. `None` if there is no home for it: then there is no history.
fn history_file() -> Option<PathBuf> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?;
    let directory = state.join("ferrisdb");
    #[expect(clippy::disallowed_methods, reason = "a file of the person's, not of the database")]
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}
