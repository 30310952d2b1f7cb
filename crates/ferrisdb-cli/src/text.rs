//! Keys and values as text: on the command line, in the shell, and in what is printed.
//!
//! Printable characters in UTF-8 stand for themselves, a backslash is written twice, and `\xNN` is the byte with that hexadecimal number. What is
//! printed can be typed again: [`unescape`] undoes [`escape`] for all bytes, of any length, since it takes every byte but a backslash as it is.
//!
//! Not printable is what would not be seen, or would change how its neighbours look: control and format characters (those that turn the direction
//! of writing among them), spaces other than the ASCII one, characters without a meaning yet, and a combining mark that has no character to stand on.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt as _;

use ferrisdb::Bytes;

/// `bytes` as text that can be typed again.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        // A mark stands on what is before it, if that is shown as itself.
        let mut has_base = false;
        for letter in chunk.valid().chars() {
            has_base = match letter {
                '\\' => {
                    text.push_str("\\\\");
                    false
                }
                letter if is_printable(letter, has_base) => {
                    text.push(letter);
                    true
                }
                letter => {
                    push_bytes(&mut text, letter.encode_utf8(&mut [0; 4]).as_bytes());
                    false
                }
            };
        }
        push_bytes(&mut text, chunk.invalid());
    }
    text
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "\\x{byte:02x}").expect("writing to a String cannot fail");
    }
}

/// The standard library knows what is printable, and says so by escaping the rest for programmers; quotes it escapes for another reason.
fn is_printable(letter: char, has_base: bool) -> bool {
    match letter {
        ' '..='~' => true,
        _ if letter.escape_debug().len() == 1 => true,
        // Within a text it escapes no combining mark but those that cannot be printed anyway.
        _ => has_base && ['a', letter].iter().collect::<String>().escape_debug().count() == 2,
    }
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

    /// Text in any script is shown as itself; what would not be seen, or would change what is around it, as bytes.
    #[test]
    fn printable_characters_stand_for_themselves() {
        for text in ["дом", "café", "cafe\u{301}", "東京", "हिन्दी", "שלום", "🦀", "a'b\"c"] {
            assert_eq!(escape(text.as_bytes()), text);
        }
        for (text, shown) in [
            ("\u{301}a", r"\xcc\x81a"),
            ("\\\u{301}", r"\\\xcc\x81"),
            ("\n\u{301}", r"\x0a\xcc\x81"),
            ("a\u{202e}b", r"a\xe2\x80\xaeb"),
            ("a\u{200b}\u{a0}\u{feff}", r"a\xe2\x80\x8b\xc2\xa0\xef\xbb\xbf"),
            ("\u{e000}\u{378}\u{85}", r"\xee\x80\x80\xcd\xb8\xc2\x85"),
        ] {
            assert_eq!(escape(text.as_bytes()), shown);
            assert_eq!(unescape(shown.as_bytes()).as_deref(), Ok(text.as_bytes()));
        }
        assert_eq!(escape(b"\xd0\xb4\xd0"), "д\\xd0");
        let every: String = (char::MIN..=char::MAX).collect();
        let text = escape(every.as_bytes());
        assert_eq!(unescape(text.as_bytes()).as_deref(), Ok(every.as_bytes()));
        assert!(!text.contains(|letter: char| letter.is_control() || (letter.is_whitespace() && letter != ' ')));
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
