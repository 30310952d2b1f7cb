//! Prints what an inspection or a command found: as aligned tables for people, or as one JSON object for programs.
//!
//! Both forms are written as the rows come, so that a file of any length can be printed. Columns are aligned by the widest
//! of the first [`ROWS_MEASURED`] rows; a wider cell that comes later pushes its line to the right.
//!
//! The JSON object has a member per field and, per table, an array of objects, one on a line. Bytes are printed as in the
//! table (`\xNN` for what is not printable ASCII). If an error ends the inspection, the object is closed with a
//! member `error`, so that what was found before it can be parsed.

use std::io::{self, Write};
use std::mem;

use ferrisdb_storage::inspect::{Cell, Sink};

use crate::arguments::Output;

/// Enough for the widths of numbers and keys to settle; a few hundred kilobytes at most.
const ROWS_MEASURED: usize = 1000;

/// A [`Sink`] that prints.
///
/// # Concurrency
/// One thread, like the standard output that it holds.
pub(crate) struct Printer<W: Write> {
    out: W,
    form: Form,
    columns: &'static [&'static str],
    /// The first error while printing; nothing is printed after it.
    failed: Option<io::Error>,
}

/// Where we are in the output.
enum Form {
    /// Rows of the current table wait until there are enough of them to measure.
    Table { waiting: Vec<Vec<String>>, widths: Vec<usize>, printed_anything: bool },
    /// `in_array`: the current table's array is open; `first`: no member of the innermost open bracket was printed.
    Json { in_array: bool, first: bool },
}

impl<W: Write> Printer<W> {
    /// A printer of nothing so far.
    pub(crate) fn new(output: Output, mut out: W) -> Printer<W> {
        let mut failed = None;
        let form = match output {
            Output::Table => Form::Table { waiting: Vec::new(), widths: Vec::new(), printed_anything: false },
            Output::Json => {
                failed = out.write_all(b"{").err();
                Form::Json { in_array: false, first: true }
            }
        };
        Printer { out, form, columns: &[], failed }
    }

    /// True if the output has taken something not.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// A field with a time, to a tenth of a second. (An inspection counts only whole things.)
    pub(crate) fn seconds(&mut self, name: &'static str, seconds: f64) -> ferrisdb_storage::Result<()> {
        let printed = self.try_told_field(name, &format!("{seconds:.1}"), &format!("{seconds:.1}"));
        self.keep(printed)
    }

    /// Ends the output. `error` is what ended the inspection early, if anything did.
    pub(crate) fn finish(mut self, error: Option<&str>) -> io::Result<()> {
        self.end_table()?;
        if let Form::Json { first, .. } = &self.form {
            if let Some(error) = error {
                let comma = if *first { "" } else { "," };
                write!(self.out, "{comma}\n\"error\":{}", json_text(error))?;
            }
            self.out.write_all(b"\n}\n")?;
        }
        match self.failed {
            Some(failed) => Err(failed),
            None => self.out.flush(),
        }
    }

    /// Prints what waits and closes the current table.
    fn end_table(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Table { .. } => self.print_waiting(),
            Form::Json { in_array, first } => {
                if mem::take(in_array) {
                    *first = false;
                    self.out.write_all(b"]")?;
                }
                Ok(())
            }
        }
    }

    fn print_waiting(&mut self) -> io::Result<()> {
        let Form::Table { waiting, widths, .. } = &mut self.form else { return Ok(()) };
        let rows = mem::take(waiting);
        if widths.is_empty() && !rows.is_empty() {
            *widths = (0..self.columns.len())
                .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
                .collect();
        }
        for row in rows {
            print_row(&mut self.out, &row, widths)?;
        }
        Ok(())
    }

    fn try_field(&mut self, name: &str, value: Cell<'_>) -> io::Result<()> {
        self.try_told_field(name, &value.to_string(), &json(value))
    }

    /// A field whose value was made text for people, and for programs, before.
    fn try_told_field(&mut self, name: &str, value: &str, json: &str) -> io::Result<()> {
        self.end_table()?;
        let follows_table = !mem::take(&mut self.columns).is_empty();
        match &mut self.form {
            Form::Table { printed_anything, .. } => {
                *printed_anything = true;
                if follows_table {
                    writeln!(self.out)?;
                }
                writeln!(self.out, "{:<24}  {value}", name.replace('_', " "))
            }
            Form::Json { first, .. } => {
                let comma = if mem::take(first) { "" } else { "," };
                write!(self.out, "{comma}\n\"{name}\":{json}")
            }
        }
    }

    fn try_table(&mut self, name: &str, columns: &'static [&'static str]) -> io::Result<()> {
        self.end_table()?;
        self.columns = columns;
        match &mut self.form {
            Form::Table { waiting, widths, printed_anything } => {
                if mem::replace(printed_anything, true) {
                    writeln!(self.out)?;
                }
                writeln!(self.out, "{}", name.replace('_', " "))?;
                widths.clear();
                waiting.push(columns.iter().map(|column| column.replace('_', " ")).collect());
                Ok(())
            }
            Form::Json { in_array, first } => {
                let comma = if *first { "" } else { "," };
                (*in_array, *first) = (true, true);
                write!(self.out, "{comma}\n\"{name}\":[")
            }
        }
    }

    fn try_row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        assert_eq!(cells.len(), self.columns.len(), "a row has a cell for each column");
        match &mut self.form {
            Form::Table { waiting, widths, .. } => {
                let row: Vec<String> = cells.iter().map(Cell::to_string).collect();
                if !widths.is_empty() {
                    return print_row(&mut self.out, &row, widths);
                }
                waiting.push(row);
                if waiting.len() > ROWS_MEASURED { self.print_waiting() } else { Ok(()) }
            }
            Form::Json { first, .. } => {
                let comma = if mem::take(first) { "" } else { "," };
                let members: Vec<String> = self
                    .columns
                    .iter()
                    .zip(cells)
                    .map(|(column, cell)| format!("\"{column}\":{}", json(*cell)))
                    .collect();
                write!(self.out, "{comma}\n{{{}}}", members.join(","))
            }
        }
    }

    /// Remembers the first error and prints nothing after it. The inspection is told, in the only words that it knows, so
    /// that it stops.
    fn keep(&mut self, printed: io::Result<()>) -> ferrisdb_storage::Result<()> {
        printed.map_err(|error| {
            let told = ferrisdb_storage::Error::io("write", "standard output", io::Error::from(error.kind()));
            self.failed.get_or_insert(error);
            told
        })
    }
}

impl<W: Write> Sink for Printer<W> {
    fn field(&mut self, name: &'static str, value: Cell<'_>) -> ferrisdb_storage::Result<()> {
        let printed = self.try_field(name, value);
        self.keep(printed)
    }

    fn table(&mut self, name: &'static str, columns: &'static [&'static str]) -> ferrisdb_storage::Result<()> {
        let printed = self.try_table(name, columns);
        self.keep(printed)
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> ferrisdb_storage::Result<()> {
        let printed = self.try_row(cells);
        self.keep(printed)
    }
}

/// A line of a table: two spaces before each column, none at the end.
fn print_row(out: &mut dyn Write, row: &[String], widths: &[usize]) -> io::Result<()> {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line.push_str("  ");
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
    }
    writeln!(out, "{}", line.trim_end())
}

/// A cell as JSON.
fn json(cell: Cell<'_>) -> String {
    match cell {
        Cell::Absent => "null".to_string(),
        Cell::Flag(flag) => flag.to_string(),
        Cell::Number(number) => number.to_string(),
        Cell::Text(text) => json_text(text),
        Cell::Bytes(_) => json_text(&cell.to_string()),
    }
}

/// A text as JSON.
fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn printed(
        output: Output,
        error: Option<&str>,
        tell: impl FnOnce(&mut dyn Sink) -> ferrisdb_storage::Result<()>,
    ) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(output, &mut out);
        tell(&mut printer).unwrap();
        printer.finish(error).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sample(sink: &mut dyn Sink) -> ferrisdb_storage::Result<()> {
        sink.field("file", "000007.wal".into())?;
        sink.field("format_version", 1_u64.into())?;
        sink.table("records", &["offset", "whole", "first_key"])?;
        sink.row(&[0_u64.into(), Cell::Flag(true), b"user/\x00".as_slice().into()])?;
        sink.row(&[32_768_u64.into(), Cell::Flag(false), Cell::Absent])?;
        sink.table("holes", &["offset"])
    }

    fn check(output: Output, expected: &Expect) {
        expected.assert_eq(&printed(output, Some("it ends in the middle of a record"), sample));
    }

    /// Columns are aligned, names lose their underscores, and a table without rows still has its head.
    #[test]
    fn a_table_is_for_people() {
        check(
            Output::Table,
            &expect![[r"
                file                      000007.wal
                format version            1

                records
                  offset  whole  first key
                  0       yes    user/\x00
                  32768   no     -

                holes
                  offset
            "]],
        );
    }

    /// The JSON form parses, whatever ended the inspection, and has the error in it.
    #[test]
    fn json_is_for_programs() {
        check(
            Output::Json,
            &expect![[r#"
                {
                "file":"000007.wal",
                "format_version":1,
                "records":[
                {"offset":0,"whole":true,"first_key":"user/\\x00"},
                {"offset":32768,"whole":false,"first_key":null}],
                "holes":[],
                "error":"it ends in the middle of a record"
                }
            "#]],
        );
        for tell in [sample, |_: &mut dyn Sink| Ok(())] {
            for error in [None, Some("\"quoted\"\n")] {
                let text = printed(Output::Json, error, tell);
                let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                assert_eq!(value.get("error").and_then(|error| error.as_str()), error);
            }
        }
    }

    /// More rows than are measured come out in order, and a cell wider than all measured ones is not cut.
    #[test]
    fn a_long_table_is_printed_as_it_comes() {
        let text = printed(Output::Table, None, |sink| {
            sink.table("numbers", &["number"])?;
            (0..3 * ROWS_MEASURED as u64).try_for_each(|number| sink.row(&[(number * number).into()]))
        });
        let numbers: Vec<u64> = text.lines().skip(2).map(|line| line.trim().parse().unwrap()).collect();
        assert_eq!(numbers.len(), 3 * ROWS_MEASURED);
        assert!(numbers.is_sorted());
    }

    /// When the output takes no more, the inspection is told at once and the cause is kept.
    #[test]
    fn a_full_output_stops_the_inspection() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut printer = Printer::new(Output::Table, Full);
        assert!(printer.field("file", "x".into()).is_err());
        assert_eq!(printer.finish(None).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
