//! `ferrisdb status`: what the database says about itself, as a table or as the document itself.
//!
//! Asked once, a database that is not available is a failure with an exit code of its own, after all that was asked for is printed: scripts need not read
//! it. Watched, it is what was to be seen: the watching goes on.

use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use ferrisdb_storage::inspect::{Cell, Sink as _};
use serde_json::Value;

use crate::arguments::{Output, StatusArguments};
use crate::cluster;
use crate::connect::{self, Connected, Missing};
use crate::failure::Failure;
use crate::printer::Printer;

/// Prints the status.
pub(crate) fn status(arguments: &StatusArguments, mut out: impl Write) -> Result<(), Failure> {
    let is_json = arguments.json || arguments.output.output == Output::Json;
    if let Some(pause) = arguments.watch {
        let is_terminal = std::io::stdout().is_terminal();
        return connect::with(&arguments.connect, Missing::Refuse, |connected| {
            watch(connected, pause, is_json, is_terminal, out)
        });
    }
    let document = connect::with(&arguments.connect, Missing::Refuse, ask)?;
    if is_json {
        writeln!(out, "{document:#}")?;
        out.flush()?;
    } else {
        print(&document, out)?;
    }
    match state(&document) {
        State::Available => Ok(()),
        State::Broken(failure) => Err(Failure::Unavailable(format!("the database is broken: {failure}"))),
        State::NotAvailable => {
            let state = text(&document["cluster"]["state"]);
            Err(Failure::Unavailable(format!("the database says that its state is `{state}`")))
        }
    }
}

/// How the database is.
enum State<'a> {
    Available,
    /// It answers reads and commits nothing: why.
    Broken(&'a str),
    NotAvailable,
}

fn state(document: &Value) -> State<'_> {
    let is_available = document["client"]["database_status"]["available"] == true;
    match (is_available, document["cluster"]["failure"].as_str()) {
        (true, _) => State::Available,
        (false, Some(failure)) => State::Broken(failure),
        (false, None) => State::NotAvailable,
    }
}

/// Prints the status again and again, until nobody reads it. A question that fails is printed too: the server may come back.
fn watch(
    connected: &Connected,
    pause: Duration,
    is_json: bool,
    is_terminal: bool,
    mut out: impl Write,
) -> Result<(), Failure> {
    for round in 0_u64.. {
        let asked = ask(connected);
        if is_terminal && !is_json {
            // To the upper left corner, and nothing below it.
            out.write_all(b"\x1b[H\x1b[2J")?;
        } else if round > 0 && !is_json {
            out.write_all(b"\n")?;
        }
        match asked {
            Ok(document) if is_json => writeln!(out, "{document}")?,
            Ok(document) => print(&document, &mut out)?,
            Err(failure) if is_json => writeln!(out, "{}", serde_json::json!({ "error": failure.to_string() }))?,
            Err(failure) => writeln!(out, "{failure}")?,
        }
        out.flush()?;
        connected.wait(async { tokio::time::sleep(pause).await });
    }
    Ok(())
}

/// Asks for the document.
pub(crate) fn ask(connected: &Connected) -> Result<Value, Failure> {
    let text = connected.run(async { Ok(connected.database.status().await?) })?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::failed(format!("the status of {} is not JSON: {error}", connected.place), "report it: this is a bug")
    })
}

/// What people look for first, with the document's own names below it.
pub(crate) fn print(document: &Value, out: impl Write) -> Result<(), Failure> {
    let mut printer = Printer::new(Output::Table, out);
    let told = tell(document, &mut printer);
    printer.finish(None)?;
    Ok(told?)
}

fn tell(document: &Value, printer: &mut Printer<impl Write>) -> ferrisdb_storage::Result<()> {
    let cluster = &document["cluster"];
    let state = match state(document) {
        State::Available => "available".to_owned(),
        State::Broken(failure) => format!("BROKEN: {failure}"),
        State::NotAvailable => "NOT AVAILABLE".to_owned(),
    };
    printer.field("database", state.as_str().into())?;
    printer.field("cluster_id", text(&cluster["cluster_id"]).as_str().into())?;
    let own = &cluster["process"];
    let here = match own["number"].as_u64() {
        None => &cluster["processes"]["0"],
        Some(number) => {
            printer.field("epoch", text(&cluster["generation"]).as_str().into())?;
            printer.field("asked_process", number.into())?;
            &cluster["processes"][number.to_string()]
        }
    };
    let directory = if own.is_null() { &here["directory"] } else { &own["directory"] };
    printer.field("directory", text(directory).as_str().into())?;
    printer.field("address", text(&here["address"]).as_str().into())?;
    for message in cluster["messages"].as_array().into_iter().flatten() {
        printer.field("WARNING", text(&message["description"]).as_str().into())?;
    }
    printer.field("limited_by", text(&cluster["qos"]["performance_limited_by"]["description"]).as_str().into())?;
    if !own.is_null() {
        cluster::tell_members(document, printer)?;
    }
    for section in ["versions", "workload", "qos", "moves", "log", "storage"] {
        let Value::Object(members) = &cluster[section] else { continue };
        // Names of tables live as long as the program; these are few.
        let title = match section {
            "versions" => "versions",
            "workload" => "workload",
            "qos" => "queues_and_limits",
            "moves" => "moves",
            "log" => "log",
            _ => "storage",
        };
        printer.table(title, &["what", "value"])?;
        for (name, value) in members {
            match value {
                Value::Object(parts) if name == "commit_seconds" => {
                    for (part, value) in parts {
                        printer.row(&[Cell::Text(&format!("commit seconds {part}")), Cell::Text(&text(value))])?;
                    }
                }
                Value::Object(_) => {}
                value => printer.row(&[Cell::Text(&name.replace('_', " ")), Cell::Text(&text(value))])?,
            }
        }
    }
    tell_engine(&cluster["storage"]["engine"], printer)?;
    let rpc = &cluster["rpc"];
    if let Value::Object(methods) = &rpc["methods"] {
        printer.table("connections", &["what", "value"])?;
        for name in ["connections_open", "connections_total", "bytes_received", "bytes_sent", "cancelled"] {
            printer.row(&[Cell::Text(&name.replace('_', " ")), Cell::Text(&text(&rpc[name]))])?;
        }
        printer.table("requests", &["method", "at_once", "later", "p50_seconds", "p99_seconds", "errors"])?;
        for (name, method) in methods {
            let errors =
                method["errors"].as_object().map_or(0, |errors| errors.values().filter_map(Value::as_u64).sum());
            let cells = ["inline", "later", "p50_seconds", "p99_seconds"].map(|name| text(&method[name]));
            let [inline, later, p50, p99] = cells.each_ref().map(|cell| Cell::Text(cell));
            printer.row(&[Cell::Text(name), inline, later, p50, p99, Cell::Number(errors)])?;
        }
    }
    Ok(())
}

fn tell_engine(engine: &Value, printer: &mut Printer<impl Write>) -> ferrisdb_storage::Result<()> {
    let Value::Object(members) = engine else { return Ok(()) };
    printer.table("engine", &["what", "value"])?;
    for (name, value) in members {
        match value {
            Value::Object(parts) => {
                for (part, value) in parts {
                    let what = format!("{} {}", name.replace('_', " "), part.replace('_', " "));
                    printer.row(&[Cell::Text(&what), Cell::Text(&text(value))])?;
                }
            }
            Value::Array(_) => {}
            value => printer.row(&[Cell::Text(&name.replace('_', " ")), Cell::Text(&text(value))])?,
        }
    }
    printer.table("levels", &["level", "tables", "bytes", "entries", "tombstones"])?;
    for (level, of_level) in engine["levels"].as_array().into_iter().flatten().enumerate() {
        let cells = ["tables", "bytes", "entries", "tombstones"].map(|name| text(&of_level[name]));
        let [tables, bytes, entries, tombstones] = cells.each_ref().map(|cell| Cell::Text(cell));
        printer.row(&[Cell::Number(level as u64), tables, bytes, entries, tombstones])?;
    }
    Ok(())
}

/// A value without quotes; nothing is a dash.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn printed(document: &Value) -> String {
        let mut out = Vec::new();
        print(document, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A warning and a failure stand at the top; a document without any of the sections is printed too.
    #[test]
    fn what_is_wrong_comes_first() {
        let text = printed(&json!({
            "client": {"database_status": {"available": false}},
            "cluster": {"failure": "no space", "messages": [{"description": "anyone may write"}], "versions": {"last": 7}},
        }));
        assert!(text.starts_with("database                  BROKEN: no space\n"), "{text}");
        assert!(text.contains("WARNING                   anyone may write"), "{text}");
        assert!(text.contains("last  7"), "{text}");
        assert!(printed(&json!({})).contains("NOT AVAILABLE"));
    }
}
