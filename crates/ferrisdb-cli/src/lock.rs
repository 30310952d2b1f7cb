//! `ferrisdb cluster lock` and `unlock`: everybody but whoever knows the lock keeps still, for a migration or a restore.
//!
//! For databases in one process, too: the lock is the database's, whatever serves it.

use std::fmt::Write as _;
use std::io::Write;

use clap::Args;
use ferrisdb_storage::Env;
use ferrisdb_storage::inspect::Sink as _;

use crate::arguments::{ConnectArguments, OutputArguments};
use crate::connect::{self, Missing};
use crate::failure::Failure;
use crate::printer::Printer;

type Id = [u8; 16];

#[derive(Debug, Args)]
pub(crate) struct LockArguments {
    /// Lock it under this id, 32 hexadecimal digits [default: random ones]
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub(crate) id: Option<Id>,

    #[command(flatten)]
    pub(crate) common: CommonArguments,
}

#[derive(Debug, Args)]
pub(crate) struct UnlockArguments {
    /// The id that it was locked under, 32 hexadecimal digits
    #[arg(value_parser = parse_id)]
    pub(crate) id: Id,

    #[command(flatten)]
    pub(crate) common: CommonArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CommonArguments {
    /// Say what would be done, or why it would be refused, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArguments,

    #[command(flatten)]
    pub(crate) output: OutputArguments,
}

fn parse_id(text: &str) -> Result<Id, String> {
    let wrong = || format!("{text:?} is no id: that has 32 hexadecimal digits");
    if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
    Ok(number.to_be_bytes())
}

fn show(id: &Id) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String");
        text
    })
}

/// Locks the database, and prints the id.
pub(crate) fn lock(arguments: &LockArguments, out: impl Write) -> Result<(), Failure> {
    let id = arguments.id.unwrap_or_else(|| Env::real().entropy.unique_bytes());
    change(&arguments.common, id, true, out)
}

/// Unlocks the database.
pub(crate) fn unlock(arguments: &UnlockArguments, out: impl Write) -> Result<(), Failure> {
    change(&arguments.common, arguments.id, false, out)
}

fn change(arguments: &CommonArguments, id: Id, locks: bool, out: impl Write) -> Result<(), Failure> {
    let result = connect::with(&arguments.connect, Missing::Refuse, |connected| {
        connected.run(async {
            let database = &connected.database;
            let now = database.locked_by().await?;
            let is_so = if locks { now == Some(id) } else { now.is_none() };
            if let Some(other) = now.filter(|other| *other != id) {
                let doing = if locks { "locked" } else { "unlocked" };
                return Err(Failure::failed(
                    format!("the database cannot be {doing}: it is locked under the id {}", show(&other)),
                    "whoever has that id may unlock it: `ferrisdb cluster unlock ID`",
                ));
            }
            if is_so {
                return Ok("nothing to do");
            }
            if arguments.dry_run {
                return Ok("would be done");
            }
            if locks {
                database.lock(id).await?
            } else {
                database.unlock(id).await?
            }
            Ok("done")
        })
    })?;
    let mut printer = Printer::new(arguments.output.output, out);
    printer.field("result", result.into())?;
    if locks {
        printer.field("id", show(&id).as_str().into())?;
    }
    Ok(printer.finish(None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_shown() {
        let text = "00ff102030405060708090a0b0c0d0e0";
        assert_eq!(parse_id(text).map(|id| show(&id)), Ok(text.to_owned()));
        for wrong in [
            "",
            "0",
            "00ff102030405060708090a0b0c0d0e",
            "+0ff102030405060708090a0b0c0d0e0",
            "g0ff102030405060708090a0b0c0d0e0",
        ] {
            assert!(parse_id(wrong).is_err(), "{wrong}");
        }
    }
}
