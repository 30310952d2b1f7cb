//! The line editor's help: completion of commands and of keys that are in the database, hints of what a command takes.

use std::borrow::Cow;

use ferrisdb::RangeOptions;
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hint, Hinter, HistoryHinter};
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::session::COMMANDS;
use crate::connect::Connected;
use crate::oneshot::prefix_range;
use crate::text::{escape, unescape};

/// Keys that are offered at once.
const KEYS_OFFERED: i32 = 20;

/// Commands whose first word after the name is a key.
const TAKES_KEY: [&str; 6] = ["get", "set", "clear", "clearrange", "getrange", "watch"];

pub(super) struct Editing<'a> {
    pub(super) connected: &'a Connected,
    pub(super) history: HistoryHinter,
}

impl Editing<'_> {
    /// The first keys that begin so. Completion is a convenience: what goes wrong is not told.
    fn keys(&self, typed: &str) -> Vec<String> {
        let Ok(prefix) = unescape(typed.as_bytes()) else { return Vec::new() };
        let options = RangeOptions::from(prefix_range(&prefix, false)).limit(KEYS_OFFERED);
        let transaction = self.connected.database.create_transaction();
        let chunk = self.connected.run(async { Ok(transaction.snapshot().get_range(options).await?) });
        let rows = chunk.map(|chunk| chunk.rows).unwrap_or_default();
        // A key with a space, or that looks like a quote or a tuple, is typed in quotes.
        let typed = |key: String| {
            let is_plain = !key.contains(' ') && !key.starts_with(['(', '"', '#']);
            if is_plain { key } else { format!("\"{}\"", key.replace('"', "\\\"")) }
        };
        rows.iter().map(|row| typed(escape(&row.key))).collect()
    }
}

impl Completer for Editing<'_> {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let before = &line[..pos];
        let start = before.rfind(' ').map_or(0, |space| space + 1);
        let typed = &before[start..];
        let mut earlier = before[..start].split_whitespace();
        let candidates = match (earlier.next(), earlier.count()) {
            (None, _) => {
                let names = COMMANDS.iter().map(|command| command.name);
                names.filter(|name| name.starts_with(typed)).map(|name| format!("{name} ")).collect()
            }
            (Some("help"), 0) => COMMANDS.iter().map(|c| c.name.to_owned()).filter(|n| n.starts_with(typed)).collect(),
            (Some(command @ ("mode" | "timing")), 0) => {
                let all = if command == "mode" { &["table", "json", "hex", "tuple"][..] } else { &["on", "off"] };
                all.iter().filter(|one| one.starts_with(typed)).map(|&one| one.to_owned()).collect()
            }
            (Some(command), 0) if TAKES_KEY.contains(&command) => self.keys(typed),
            (Some("getrange" | "clearrange"), 1) => self.keys(typed),
            _ => Vec::new(),
        };
        Ok((start, candidates))
    }
}

/// What may come: the rest of a line from the history, which can be taken, or what the command takes, which cannot.
pub(super) struct Suggestion {
    text: String,
    can_be_taken: bool,
}

impl Hint for Suggestion {
    fn display(&self) -> &str {
        &self.text
    }

    fn completion(&self) -> Option<&str> {
        self.can_be_taken.then_some(&self.text)
    }
}

impl Hinter for Editing<'_> {
    type Hint = Suggestion;

    fn hint(&self, line: &str, pos: usize, context: &Context<'_>) -> Option<Suggestion> {
        if let Some(text) = self.history.hint(line, pos, context) {
            return Some(Suggestion { text, can_be_taken: true });
        }
        arguments_hint(line).filter(|_| pos == line.len()).map(|text| Suggestion { text, can_be_taken: false })
    }
}

/// What is still to be typed after `get ` and the like.
fn arguments_hint(line: &str) -> Option<String> {
    let (name, typed) = line.split_once(' ')?;
    let command = COMMANDS.iter().find(|command| command.name == name)?;
    if !typed.is_empty() && !typed.ends_with(' ') {
        return None;
    }
    let missing: Vec<&str> = command.arguments.split(' ').skip(typed.split_whitespace().count()).collect();
    Some(missing.join(" ")).filter(|text| !text.is_empty())
}

impl Highlighter for Editing<'_> {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[2m{hint}\x1b[0m"))
    }
}

impl Validator for Editing<'_> {}

impl Helper for Editing<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_say_what_is_still_missing() {
        let hint = |line| arguments_hint(line).unwrap_or_default();
        assert_eq!(hint("set "), "KEY VALUE");
        assert_eq!(hint("set a "), "VALUE");
        assert_eq!(hint("set a"), "");
        assert_eq!(hint("set a b "), "");
        assert_eq!(hint("getrange a "), "[END] [LIMIT] [reverse]");
        assert_eq!(hint("nothing "), "");
    }
}
