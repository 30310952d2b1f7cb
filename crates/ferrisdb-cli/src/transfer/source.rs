//! A file as rows, and rows as batches.
//!
//! The file is read once, front to back, so that it may be a pipe. Of all bytes before a place between two rows there is a digest; an import that
//! goes on reads the part that was read before again, and compares.
//!
//! # Invariants
//! - Where batches end depends only on the file, the options in `Options`, `batch_rows` and `batch_bytes`: the same batches come again.
//! - `settled + waiting` is all that the parser has been given; `settled` ends where the last batch did.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use csv::ByteRecord;
use ferrisdb::{Bytes, Limits};
use ferrisdb_core::key::USER_END;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::Xxh3;

use super::Format;
use super::position::{Done, Mark};
use super::template::{KeyTemplate, Row, Template, Wrong, type_elsewhere};
use crate::failure::Failure;
use crate::text::{escape, unescape};

/// A row longer than this is taken for a quote that is never closed, or for no text at all.
const ROW_BYTES_MAX: usize = 16 << 20;

/// What is wrong with the last row of a file that was cut off.
const NEVER_CLOSED: &str = "a quote begins in this row and is not closed up to the end of the file";

/// Which rows a file has.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// For errors: its name.
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) delimiter: u8,
    pub(crate) has_header: bool,
    /// `None`: the form of `export`.
    pub(crate) key: Option<KeyTemplate>,
    /// `None`: the whole row.
    pub(crate) value: Option<Template>,
    pub(crate) skip_bad: u64,
    pub(crate) system: bool,
    pub(crate) limits: Limits,
}

/// How rows are cut into batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) rows: u64,
    /// A batch ends with the row that reaches this.
    pub(crate) bytes: u64,
}

/// Rows for one transaction.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) rows: Vec<(Bytes, Bytes)>,
    /// Where it ends.
    pub(crate) end: Mark,
}

/// What comes out of a file.
#[derive(Debug)]
pub(crate) enum Event {
    /// A batch that is missing.
    Batch(Batch),
    /// A row that was left out, and why.
    LeftOut(String),
    /// The file has ended, here.
    End(Mark),
}

/// Gives a reader's bytes on, and keeps them until they are settled.
struct Tee<R> {
    inner: R,
    /// Bytes behind the last batch's end.
    waiting: Vec<u8>,
    settled: u64,
    digest: Xxh3,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.waiting.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

impl<R> Tee<R> {
    /// A batch ends here.
    fn settle(&mut self, offset: u64) {
        let length = usize::try_from(offset - self.settled).expect("what waits is in memory");
        self.digest.update(&self.waiting[..length]);
        self.waiting.drain(..length);
        self.settled = offset;
    }

    fn waiting_from(&self, offset: u64) -> &[u8] {
        let length = usize::try_from(offset - self.settled).expect("what waits is in memory");
        &self.waiting[length..]
    }

    fn digest(&self) -> String {
        format!("{:032x}", self.digest.digest128())
    }
}

type Input = Box<dyn Read + Send>;

enum Parser {
    Csv {
        reader: Box<csv::Reader<Bounded>>,
        record: ByteRecord,
        /// The file ended within a quote of `record`: nobody knows what is missing.
        is_cut: bool,
        /// Where `reader` began.
        base: u64,
    },
    Ndjson {
        reader: Box<BufReader<Tee<Input>>>,
        line: Vec<u8>,
        offset: u64,
    },
}

/// Fails instead of collecting a row without an end.
struct Bounded {
    tee: Tee<Input>,
    /// Where the last row ended.
    row_start: u64,
    /// The file has no more bytes.
    has_ended: bool,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tee.waiting_from(self.row_start).len() > ROW_BYTES_MAX {
            return Err(io::Error::other(format!(
                "a row has more than {ROW_BYTES_MAX} bytes: is a quote never closed?"
            )));
        }
        let length = self.tee.read(buffer)?;
        self.has_ended |= length == 0;
        Ok(length)
    }
}

/// A file being read.
pub(crate) struct Source {
    options: Options,
    columns: Vec<String>,
    parser: Parser,
    lines: u64,
    rows: u64,
    bad: u64,
}

impl Source {
    /// A file from its beginning, or behind `start`, with the columns that it had there.
    ///
    /// # Errors
    /// That it is another file than the one whose part up to `start` was imported; a header without the columns of the templates.
    pub(crate) fn new(
        mut input: Input,
        options: Options,
        start: &Mark,
        columns: Vec<String>,
    ) -> Result<Source, Failure> {
        let mut digest = Xxh3::new();
        let mut left = start.offset;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let length = input.read(&mut buffer[..most]).map_err(|error| unreadable(&options.name, &error))?;
            if length == 0 {
                return Err(changed(
                    &options.name,
                    &format!("it ends before byte {}, up to where it was imported", start.offset),
                ));
            }
            digest.update(&buffer[..length]);
            left -= length as u64;
        }
        let mut tee = Tee { inner: input, waiting: Vec::new(), settled: start.offset, digest };
        if start.offset > 0 && tee.digest() != start.digest {
            return Err(changed(
                &options.name,
                &format!("the {} bytes that were imported are others now", start.offset),
            ));
        }
        let is_fresh = start.offset == 0;
        if is_fresh {
            skip_byte_order_mark(&mut tee).map_err(|error| unreadable(&options.name, &error))?;
        }
        let base = tee.settled;
        let parser = match options.format {
            Format::Ndjson => Parser::Ndjson {
                reader: Box::new(BufReader::with_capacity(1 << 16, tee)),
                line: Vec::new(),
                offset: base,
            },
            Format::Csv => Parser::Csv {
                reader: Box::new(
                    csv::ReaderBuilder::new()
                        .has_headers(false)
                        .flexible(true)
                        .delimiter(options.delimiter)
                        .buffer_capacity(1 << 16)
                        .from_reader(Bounded { tee, row_start: base, has_ended: false }),
                ),
                record: ByteRecord::new(),
                is_cut: false,
                base,
            },
        };
        let mut source = Source { options, columns, parser, lines: start.lines, rows: start.rows, bad: start.bad };
        if is_fresh && source.options.format == Format::Csv && source.options.has_header {
            source.read_header()?;
        }
        Ok(source)
    }

    /// The names of the columns, where the file has some.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    fn read_header(&mut self) -> Result<(), Failure> {
        let Some(line) = self.next_record()? else { return Ok(()) };
        let Parser::Csv { record, is_cut, .. } = &self.parser else { return Ok(()) };
        if *is_cut {
            return Err(Failure::failed(
                format!("{}:{line}: {NEVER_CLOSED}", self.options.name),
                "close the quote in the header",
            ));
        }
        let names =
            record.iter().map(|name| std::str::from_utf8(name).map(str::to_owned)).collect::<Result<Vec<_>, _>>();
        let name = &self.options.name;
        self.columns = names.map_err(|_| {
            Failure::failed(
                format!("{name}:{line}: the header is not UTF-8"),
                "give --no-header if the first row is no header",
            )
        })?;
        let wanted: Vec<&str> = match (&self.options.key, &self.options.value) {
            (None, _) => vec!["key", "value"],
            (Some(key), None) => key.columns(),
            (Some(key), Some(value)) => key.columns().into_iter().chain(value.columns()).collect(),
        };
        for wanted in wanted {
            if !self.columns.iter().any(|column| column == wanted) {
                let is_key = self.options.key.as_ref().is_some_and(|key| key.columns().contains(&wanted));
                let remedy = match (&self.options.key, type_elsewhere(wanted, is_key)) {
                    (None, _) => {
                        "a file that `export` did not write needs --key, such as --key 'people/{id}'".to_owned()
                    }
                    (Some(_), Some(hint)) => hint,
                    (Some(_), None) => {
                        "columns are named as in the header; with --no-header they are {1}, {2}, …".to_owned()
                    }
                };
                let columns = self.columns.join(", ");
                return Err(Failure::failed(
                    format!("{name} has no column `{wanted}`; its columns are {columns}"),
                    remedy,
                ));
            }
        }
        Ok(())
    }

    /// Reads all batches behind `done`, and gives those that are missing on, until `take` says that nobody wants more.
    pub(crate) fn read(mut self, done: &Done, cut: Cut, mut take: impl FnMut(Event) -> bool) -> Result<(), Failure> {
        let mut number = done.next;
        let mut later = done.later.iter().peekable();
        loop {
            let mut rows = Vec::new();
            let mut bytes = 0;
            let has_ended = loop {
                if rows.len() as u64 >= cut.rows || bytes >= cut.bytes {
                    break false;
                }
                let Some(line) = self.next_record()? else { break true };
                match self.row() {
                    Ok((key, value)) => {
                        self.rows += 1;
                        bytes += (key.len() + value.len()) as u64;
                        rows.push((Bytes::from(key), Bytes::from(value)));
                    }
                    Err(wrong) => {
                        let column = wrong.column.map(|column| format!("{column}: ")).unwrap_or_default();
                        let told = format!("{}:{line}: {column}{}", self.options.name, wrong.what);
                        self.bad += 1;
                        if self.bad > self.options.skip_bad {
                            let remedy = match self.options.skip_bad {
                                0 => "mend the row, or let some be left out with --skip-bad N",
                                _ => "that is one bad row more than --skip-bad allows",
                            };
                            return Err(Failure::failed(told, remedy));
                        }
                        if !take(Event::LeftOut(told)) {
                            return Ok(());
                        }
                    }
                }
            };
            let end = self.settle();
            if rows.is_empty() {
                if later.peek().is_some() {
                    return Err(changed(&self.options.name, "it ends before the end of what was imported"));
                }
                take(Event::End(end));
                return Ok(());
            }
            let go_on = match later.next_if(|slot| slot.batch == number) {
                Some(slot) if slot.end.offset == end.offset && slot.end.digest == end.digest => true,
                Some(slot) => {
                    let what = format!("the bytes up to {}, which were imported, are others now", slot.end.offset);
                    return Err(changed(&self.options.name, &what));
                }
                None => take(Event::Batch(Batch { number, rows, end: end.clone() })),
            };
            if !go_on {
                return Ok(());
            }
            number += 1;
            if has_ended {
                if later.peek().is_some() {
                    return Err(changed(&self.options.name, "it ends before the end of what was imported"));
                }
                take(Event::End(end));
                return Ok(());
            }
        }
    }

    /// Reads the next row; its line, or `None` at the end.
    fn next_record(&mut self) -> Result<Option<u64>, Failure> {
        let name = &self.options.name;
        match &mut self.parser {
            Parser::Csv { reader, record, is_cut, base } => {
                let start = *base + reader.position().byte();
                reader.get_mut().row_start = start;
                let has_one =
                    reader.read_byte_record(record).map_err(|error| unreadable(name, &io::Error::from(error)))?;
                let end = *base + reader.position().byte();
                let Bounded { tee, has_ended, .. } = reader.get_ref();
                let bytes = &tee.waiting_from(start)[..usize::try_from(end - start).expect("a row is in memory")];
                // The parser gives what it has at the end of the file, also within a quote.
                *is_cut = has_one && *has_ended && ends_within_a_quote(bytes, self.options.delimiter);
                // Ends of empty lines, and of the row before, if that ended with two characters.
                let blank = bytes
                    .iter()
                    .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                    .filter(|byte| **byte == b'\n')
                    .count();
                let line = self.lines + blank as u64 + 1;
                self.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
                Ok(has_one.then_some(line))
            }
            Parser::Ndjson { reader, line, offset } => loop {
                line.clear();
                let length = Read::by_ref(reader.as_mut())
                    .take(ROW_BYTES_MAX as u64 + 1)
                    .read_until(b'\n', line)
                    .map_err(|error| unreadable(name, &error))?;
                if length == 0 {
                    return Ok(None);
                }
                *offset += length as u64;
                self.lines += 1;
                if line.len() > ROW_BYTES_MAX {
                    return Err(Failure::failed(
                        format!("{name}:{}: the line has more than {ROW_BYTES_MAX} bytes", self.lines),
                        "NDJSON has one object on each line",
                    ));
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(self.lines));
                }
            },
        }
    }

    /// Key and value of the row that was read.
    fn row(&self) -> Result<(Vec<u8>, Vec<u8>), Wrong> {
        let (key, value) = match &self.parser {
            Parser::Csv { is_cut: true, .. } => {
                return Err(Wrong { column: None, what: NEVER_CLOSED.to_owned() });
            }
            Parser::Csv { record, .. } => {
                let columns = &self.columns;
                if self.options.has_header && record.len() != columns.len() {
                    let what = format!("the row has {} columns and the header {}", record.len(), columns.len());
                    let column = record.len().min(columns.len()) + 1;
                    return Err(Wrong { column: Some(format!("column {column}")), what });
                }
                self.pair(&CsvRow { columns, record, has_header: self.options.has_header })?
            }
            Parser::Ndjson { line, .. } => self.pair(&JsonRow::parse(line)?)?,
        };
        let limits = &self.options.limits;
        let fail = |what: String| Err(Wrong { column: None, what });
        if !self.options.system && key.as_slice() >= USER_END {
            return fail(format!("the key {} is a system key; --system allows them", shown(&key)));
        }
        if key.len() > limits.key_bytes_for(&key) {
            let (length, max) = (key.len(), limits.key_bytes_for(&key));
            return fail(format!("the key {} has {length} bytes, and {max} is the limit", shown(&key)));
        }
        if value.len() > limits.value_bytes {
            let (length, max) = (value.len(), limits.value_bytes);
            return fail(format!("the value of {} has {length} bytes, and {max} is the limit", shown(&key)));
        }
        Ok((key, value))
    }

    fn pair(&self, row: &impl WholeRow) -> Result<(Vec<u8>, Vec<u8>), Wrong> {
        let Some(key) = &self.options.key else {
            let part = |name: &str| {
                let wrong = |what: String| Wrong { column: Some(row.describe(name)), what };
                unescape(&row.column(name).map_err(wrong)?).map(Vec::from).map_err(wrong)
            };
            return Ok((part("key")?, part("value")?));
        };
        let value = match &self.options.value {
            Some(template) => template.value(row)?,
            None => row.whole()?,
        };
        Ok((key.key(row)?, value))
    }

    /// Ends a batch.
    fn settle(&mut self) -> Mark {
        let (offset, tee) = match &mut self.parser {
            Parser::Csv { reader, base, .. } => (*base + reader.position().byte(), &mut reader.get_mut().tee),
            Parser::Ndjson { reader, offset, .. } => (*offset, reader.get_mut()),
        };
        tee.settle(offset);
        Mark { offset, lines: self.lines, rows: self.rows, bad: self.bad, digest: tee.digest() }
    }
}

fn skip_byte_order_mark(tee: &mut Tee<Input>) -> io::Result<()> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let mut head = Vec::new();
    tee.by_ref().take(MARK.len() as u64).read_to_end(&mut head)?;
    if head == MARK {
        tee.settle(MARK.len() as u64);
    } else {
        // What was looked at is read again.
        tee.waiting.clear();
        let inner = std::mem::replace(&mut tee.inner, Box::new(io::empty()));
        tee.inner = Box::new(io::Cursor::new(head).chain(inner));
    }
    Ok(())
}

/// True if a quote that begins in these bytes, which begin with a row, does not end in them. A quote begins at a column's beginning, and one that is
/// written twice is one within it.
fn ends_within_a_quote(bytes: &[u8], delimiter: u8) -> bool {
    let (mut is_quoted, mut is_at_start) = (false, true);
    for &byte in bytes {
        if byte == b'"' && (is_quoted || is_at_start) {
            is_quoted = !is_quoted;
            // The second one of two opens it again.
            is_at_start = !is_quoted;
        } else {
            is_at_start = !is_quoted && (byte == delimiter || matches!(byte, b'\r' | b'\n'));
        }
    }
    is_quoted
}

fn shown(key: &[u8]) -> String {
    let text = escape(&key[..key.len().min(100)]);
    if key.len() > 100 { format!("{text}…") } else { text }
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot read {name}: {error}"), "check the file; the import can be started again")
}

fn changed(name: &str, what: &str) -> Failure {
    Failure::failed(
        format!("{name} is not the file whose import was interrupted: {what}"),
        "give the file as it was, another --job NAME, or --restart to forget the position and import all of it",
    )
}

/// A row that can be a value.
trait WholeRow: Row {
    fn whole(&self) -> Result<Vec<u8>, Wrong>;
}

struct CsvRow<'a> {
    columns: &'a [String],
    record: &'a ByteRecord,
    has_header: bool,
}

impl CsvRow<'_> {
    fn index(&self, name: &str) -> Option<usize> {
        if self.has_header {
            self.columns.iter().position(|column| column == name)
        } else {
            name.parse::<usize>().ok()?.checked_sub(1)
        }
    }
}

impl Row for CsvRow<'_> {
    fn column(&self, name: &str) -> Result<Cow<'_, [u8]>, String> {
        // Without a header the form of `export` has its two columns in their order.
        let index = match (self.index(name), name) {
            (None, "key") if !self.has_header => Some(0),
            (None, "value") if !self.has_header => Some(1),
            (index, _) => index,
        };
        let found = index.and_then(|index| self.record.get(index));
        found.map(Cow::Borrowed).ok_or_else(|| format!("the row has {} columns", self.record.len()))
    }

    fn describe(&self, name: &str) -> String {
        match self.index(name) {
            Some(index) if self.has_header => format!("column {} ({name})", index + 1),
            _ => format!("column {name}"),
        }
    }
}

impl WholeRow for CsvRow<'_> {
    /// A JSON object with the columns in their order; without a header, an array.
    fn whole(&self) -> Result<Vec<u8>, Wrong> {
        let (open, close) = if self.has_header { ('{', '}') } else { ('[', ']') };
        let mut text = String::from(open);
        for (index, field) in self.record.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            let name = self.columns.get(index).filter(|_| self.has_header);
            if let Some(name) = name {
                text.push_str(&serde_json::Value::from(name.as_str()).to_string());
                text.push(':');
            }
            let field = std::str::from_utf8(field).map_err(|_| Wrong {
                column: Some(format!(
                    "column {}{}",
                    index + 1,
                    name.map(|name| format!(" ({name})")).unwrap_or_default()
                )),
                what: "it is not UTF-8, so the row cannot be a JSON object; choose the value with --value".to_owned(),
            })?;
            text.push_str(&serde_json::Value::from(field).to_string());
        }
        text.push(close);
        Ok(text.into_bytes())
    }
}

struct JsonRow<'a> {
    line: &'a [u8],
    members: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

impl<'a> JsonRow<'a> {
    fn parse(line: &'a [u8]) -> Result<JsonRow<'a>, Wrong> {
        let line = line.trim_ascii();
        if !line.starts_with(b"{") {
            return Err(Wrong { column: Some("column 1".to_owned()), what: "the line is no JSON object".to_owned() });
        }
        let members = serde_json::from_slice(line).map_err(|error| Wrong {
            column: Some(format!("column {}", error.column())),
            what: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })?;
        Ok(JsonRow { line, members })
    }
}

impl Row for JsonRow<'_> {
    fn column(&self, name: &str) -> Result<Cow<'_, [u8]>, String> {
        let Some(value) = self.members.get(name) else { return Err("the object has no such member".to_owned()) };
        match value.get() {
            "null" => Err("it is null".to_owned()),
            text if text.starts_with('"') => {
                let text: String = serde_json::from_str(text).map_err(|error| error.to_string())?;
                Ok(Cow::Owned(text.into_bytes()))
            }
            other => Ok(Cow::Borrowed(other.as_bytes())),
        }
    }

    fn describe(&self, name: &str) -> String {
        format!("member `{name}`")
    }
}

impl WholeRow for JsonRow<'_> {
    fn whole(&self) -> Result<Vec<u8>, Wrong> {
        Ok(self.line.to_vec())
    }
}
