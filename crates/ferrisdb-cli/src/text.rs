//! Keys and values as text: on the command line, in the shell, and in what is printed.
//!
//! Printable ASCII stands for itself, a backslash is written twice, and `\xNN` is the byte with that hexadecimal number. What is
//! printed can be typed again: [`unescape`] undoes [`escape`] for all bytes, of any length. Typed text may have other bytes than printable
//! ASCII (`café`): they are taken as they are.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt as _;

use ferrisdb::Bytes;

/// `bytes` as text that can be typed again.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            0x20..=0x7E => text.push(char::from(byte)),
            _ => write!(text, "\\x{byte:02x}").expect("writing to a String cannot fail"),
        }
    }
    text
}

/// `bytes` in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// The bytes that `text` stands for.
///
/// # Errors
/// What is wrong with which escape, for people.
pub(crate) fn unescape(text: &[u8]) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest {
            [b'\\', after @ ..] => {
                bytes.push(b'\\');
                rest = after;
            }
            [b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(16 * digit(*high) + digit(*low));
                rest = after;
            }
            _ => {
                let shown = String::from_utf8_lossy(&rest[..rest.len().min(3)]).into_owned();
                return Err(format!("`\\{shown}` is no escape: write `\\xNN` for a byte and `\\\\` for a backslash"));
            }
        }
    }
    Ok(Bytes::from(bytes))
}

fn digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// A key or a value on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Typed(pub(crate) Bytes);

impl Typed {
    /// For clap.
    pub(crate) fn parse(text: OsString) -> Result<Typed, String> {
        unescape(&text.into_vec()).map(Typed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed can be typed again, whatever the bytes and however many.
    #[test]
    fn text_goes_there_and_back() {
        let all: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for bytes in [&all[..], b"", b"\\x41", b"\\", b"plain"] {
            let text = escape(bytes);
            assert!(text.bytes().all(|byte| (0x20..=0x7E).contains(&byte)), "{text}");
            assert_eq!(unescape(text.as_bytes()).as_deref(), Ok(bytes));
        }
        assert_eq!(escape(b"a\\\x00\xff"), r"a\\\x00\xff");
        assert_eq!(hex(b"\x00\xAB"), "00ab");
    }

    #[test]
    fn letters_beyond_ascii_are_taken_as_they_are_and_digits_in_both_cases() {
        assert_eq!(unescape("café".as_bytes()).as_deref(), Ok("café".as_bytes()));
        assert_eq!(unescape(br"\xFf\x0a").as_deref(), Ok(&b"\xff\n"[..]));
    }

    #[test]
    fn what_is_no_escape_is_said() {
        for text in [r"\", r"a\n", r"\x4", r"\xgg", r"\X41"] {
            let error = unescape(text.as_bytes()).unwrap_err();
            assert!(error.contains("is no escape: write `\\xNN`"), "{error}");
        }
        assert!(unescape(br"\n").unwrap_err().starts_with(r"`\n`"));
    }
}
