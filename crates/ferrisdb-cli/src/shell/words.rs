//! A line of the shell as words, and tuples as text.
//!
//! Words are separated by spaces. `"…"` is a word with spaces in it. A word that begins with `(` is a tuple, packed: `("user", 42)`. Bytes that are not
//! printable are written `\xNN`, a backslash `\\`, in quotes a quote `\"`; a key that begins with a parenthesis is written `\x28…`. A `#` at the
//! beginning of a word begins a comment.
//!
//! ```text
//! (null, true, -7, 1.5, 0x01ffffffffffffffffff, "text", b"bytes\x00", ("nested",), uuid"00112233445566778899aabbccddeeff")
//! ```
//!
//! What [`tuple_text`] prints [`words`] takes again, but for versionstamps and 32-bit floats, which are only shown.

use std::fmt::Write as _;

use ferrisdb::Bytes;
use ferrisdb::layers::tuple::BigInt;
use ferrisdb::layers::{Element, Tuple};

use crate::text::{escape, hex, unescape};

/// Deeper tuples are refused when typed: the parser calls itself.
const DEPTH_MAX: usize = 50;

/// The words of a line.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn words(line: &[u8]) -> Result<Vec<Bytes>, String> {
    let mut scanner = Scanner { rest: line };
    let mut words = Vec::new();
    loop {
        scanner.skip_spaces();
        match scanner.rest.first() {
            None | Some(b'#') => return Ok(words),
            Some(b'(') => {
                let tuple = scanner.tuple(0)?;
                words.push(tuple.pack());
            }
            Some(b'"') => words.push(scanner.quoted()?),
            Some(_) => {
                let end = scanner.rest.iter().position(u8::is_ascii_whitespace).unwrap_or(scanner.rest.len());
                let (word, rest) = scanner.rest.split_at(end);
                words.push(unescape(word)?);
                scanner.rest = rest;
            }
        }
        if scanner.rest.first().is_some_and(|byte| !byte.is_ascii_whitespace()) {
            return Err("a space is missing behind a quote or a tuple".to_owned());
        }
    }
}

/// A tuple as text.
pub(super) fn tuple_text(tuple: &Tuple) -> String {
    let elements: Vec<String> = tuple.elements().iter().map(element_text).collect();
    match &elements[..] {
        [one] => format!("({one},)"),
        elements => format!("({})", elements.join(", ")),
    }
}

fn element_text(element: &Element) -> String {
    match element {
        Element::Null => "null".to_owned(),
        Element::Bytes(bytes) => format!("b\"{}\"", quote(bytes)),
        Element::String(text) => format!("\"{}\"", quote(text.as_bytes())),
        Element::Tuple(tuple) => tuple_text(tuple),
        Element::Int(number) => number.to_string(),
        Element::BigInt(number) => {
            let sign = if number.is_negative() { "-" } else { "" };
            format!("{sign}0x{}", hex(number.magnitude()))
        }
        Element::Float(number) => format!("{number:?}f"),
        Element::Double(number) => format!("{number:?}"),
        Element::Bool(value) => value.to_string(),
        Element::Uuid(bytes) => format!("uuid\"{}\"", hex(bytes)),
        Element::Versionstamp(stamp) => match &stamp.commit {
            Some(commit) => format!("versionstamp\"{}\":{}", commit, stamp.user),
            None => format!("versionstamp:{}", stamp.user),
        },
        other => {
            let mut text = String::new();
            write!(text, "{other:?}").expect("writing to a String cannot fail");
            text
        }
    }
}

fn quote(bytes: &[u8]) -> String {
    escape(bytes).replace('"', "\\\"")
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl Scanner<'_> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// `"…"`, from its first quote on.
    fn quoted(&mut self) -> Result<Bytes, String> {
        let mut inside = Vec::new();
        let mut bytes = self.rest[1..].iter().copied().enumerate();
        while let Some((index, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.rest = &self.rest[index + 2..];
                    return unescape(&inside);
                }
                b'\\' => match bytes.next() {
                    Some((_, b'"')) => inside.push(b'"'),
                    Some((_, next)) => inside.extend([b'\\', next]),
                    None => break,
                },
                _ => inside.push(byte),
            }
        }
        Err("a quote is not closed".to_owned())
    }

    /// `(…)`, from its parenthesis on.
    fn tuple(&mut self, depth: usize) -> Result<Tuple, String> {
        if depth > DEPTH_MAX {
            return Err(format!("the tuple is nested more than {DEPTH_MAX} deep"));
        }
        self.rest = &self.rest[1..];
        let mut tuple = Tuple::new();
        loop {
            self.skip_spaces();
            match self.rest.first() {
                Some(b')') => {
                    self.rest = &self.rest[1..];
                    return Ok(tuple);
                }
                Some(_) => tuple = tuple.with(self.element(depth)?),
                None => return Err("a parenthesis is not closed".to_owned()),
            }
            self.skip_spaces();
            match self.rest.first() {
                Some(b',') => self.rest = &self.rest[1..],
                Some(b')') => {}
                _ => return Err("a comma or a closing parenthesis is missing in the tuple".to_owned()),
            }
        }
    }

    fn element(&mut self, depth: usize) -> Result<Element, String> {
        match self.rest {
            [b'(', ..] => return Ok(Element::Tuple(self.tuple(depth + 1)?)),
            [b'"', ..] => {
                let bytes = self.quoted()?;
                let text = String::from_utf8(bytes.to_vec());
                return text
                    .map(Element::String)
                    .map_err(|_| "a string is not UTF-8: write b\"…\" for bytes".to_owned());
            }
            [b'b', b'"', ..] => {
                self.rest = &self.rest[1..];
                return Ok(Element::Bytes(self.quoted()?));
            }
            [b'u', b'u', b'i', b'd', b'"', ..] => {
                self.rest = &self.rest[4..];
                let digits = self.quoted()?;
                let bytes = std::str::from_utf8(&digits).ok().and_then(from_hex);
                let bytes = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
                return bytes.map(Element::Uuid).ok_or_else(|| "a UUID has 32 hexadecimal digits".to_owned());
            }
            _ => {}
        }
        let end = self.rest.iter().position(|byte| b",)( \t\"".contains(byte)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let word = String::from_utf8_lossy(word).into_owned();
        let element = simple(&word).ok_or_else(|| {
            format!(
                "`{word}` is no element of a tuple: write null, true, 42, 1.5, \"text\", b\"bytes\", uuid\"…\" or (…)"
            )
        })?;
        self.rest = rest;
        Ok(element)
    }
}

/// An element without quotes.
fn simple(word: &str) -> Option<Element> {
    match word {
        "null" => return Some(Element::Null),
        "true" => return Some(Element::Bool(true)),
        "false" => return Some(Element::Bool(false)),
        _ => {}
    }
    let (is_negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word),
    };
    if let Some(digits) = digits.strip_prefix("0x") {
        let even = if digits.len().is_multiple_of(2) { digits.to_owned() } else { format!("0{digits}") };
        return from_hex(&even)
            .filter(|bytes| (1..=255).contains(&bytes.len()))
            .map(|bytes| BigInt::element(is_negative, &bytes));
    }
    if let Ok(number) = word.parse::<i128>() {
        return Some(Element::from(number));
    }
    let is_float = digits.starts_with(|letter: char| letter.is_ascii_digit()) || ["inf", "NaN"].contains(&digits);
    word.parse::<f64>().ok().filter(|_| is_float).map(Element::Double)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                Some(16 * digit(*high)? + digit(*low)?)
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<Vec<Vec<u8>>, String> {
        words(line.as_bytes()).map(|words| words.iter().map(|word| word.to_vec()).collect())
    }

    #[test]
    fn words_are_separated_by_spaces_and_quotes_hold_them() {
        assert_eq!(split("").unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(split("  set  a\\x00 \"b c\\\"\\\\\" # why").unwrap(), [&b"set"[..], b"a\0", b"b c\"\\"]);
        assert_eq!(split("set k \"\"").unwrap()[2], b"");
        assert_eq!(split("set a#b c").unwrap()[1], b"a#b");
        for (line, what) in [
            ("get \"a", "not closed"),
            ("get \"a\\", "not closed"),
            ("get a\\n", "no escape"),
            ("get \"a\"b", "space is missing"),
            ("get (1, 2", "comma or a closing"),
            ("get (1,", "parenthesis is not closed"),
            ("get (1 2)", "comma"),
            ("get (x)", "no element"),
            ("get (\"\\xff\")", "not UTF-8"),
            ("get (uuid\"00\")", "32 hexadecimal"),
        ] {
            let error = split(line).unwrap_err();
            assert!(error.contains(what), "{line}: {error}");
        }
        assert!(split(&"(".repeat(100_000)).unwrap_err().contains("nested"));
    }

    /// A tuple that is shown can be typed again and is the same.
    #[test]
    fn tuples_go_there_and_back() {
        let text = r#"(null, true, false, -7, 0, 9223372036854775807, 1.5, -0.0, 1e300, inf, 0x01ffffffffffffffffff, -0x8000000000000001, "a\"b\\é", b"\xff\x00", ("nested",), (), uuid"00112233445566778899aabbccddeeff")"#;
        let packed = words(text.as_bytes()).unwrap().remove(0);
        let tuple = Tuple::unpack(&packed).unwrap();
        assert_eq!(tuple.elements().len(), 17);
        assert_eq!(tuple_text(&tuple), text);
    }
}
