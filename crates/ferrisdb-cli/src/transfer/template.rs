//! Templates: keys and values made of a row's columns, such as `people/{id}`.
//!
//! `{name}` is the column's bytes as they are, `{{` and `}}` are braces, and the rest is typed as everywhere on the command line (`\xNN`, `\\`).
//! A tuple's template is a list of such, divided by commas, each of which is a string in the tuple; `{id:int}`, `{id:float}`, `{id:bool}` and `{id:bytes}` alone
//! are elements of these types. `\x2c` is a comma that divides nothing.

use std::borrow::Cow;

use ferrisdb::Bytes;
use ferrisdb::layers::{Element, Tuple};

use crate::text::unescape;

/// A row of a file.
pub(crate) trait Row {
    /// A column's bytes; the error says what is wrong with it.
    fn column(&self, name: &str) -> Result<Cow<'_, [u8]>, String>;

    /// For errors: which column that is.
    fn describe(&self, name: &str) -> String;
}

/// What is wrong in a row, and in which column.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) column: Option<String>,
    pub(crate) what: String,
}

/// Bytes made of columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// As it was typed.
    pub(crate) text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Bytes),
    Column { name: String, kind: Option<Kind> },
}

/// The type of an element of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Float,
    Bool,
    Bytes,
}

impl Kind {
    fn named(name: &str) -> Option<Kind> {
        Some(match name {
            "int" => Kind::Int,
            "float" => Kind::Float,
            "bool" => Kind::Bool,
            "bytes" => Kind::Bytes,
            _ => return None,
        })
    }
}

impl Template {
    /// For clap.
    pub(crate) fn parse(text: &str) -> Result<Template, String> {
        Template::parse_parts(text, false)
    }

    fn parse_parts(text: &str, is_typed: bool) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                literal.push(letter);
                rest = after;
            } else if letter == '{' {
                let (name, after) = rest[1..]
                    .split_once('}')
                    .ok_or_else(|| format!("`{rest}` has no closing brace; a brace itself is written {{{{"))?;
                parts.push(Part::Literal(unescape(literal.as_bytes())?));
                literal.clear();
                parts.push(column(name, is_typed)?);
                rest = after;
            } else if letter == '}' {
                return Err("a closing brace without an opening one; a brace itself is written }}".to_owned());
            } else {
                literal.push(letter);
                rest = &rest[letter.len_utf8()..];
            }
        }
        parts.push(Part::Literal(unescape(literal.as_bytes())?));
        parts.retain(|part| !matches!(part, Part::Literal(bytes) if bytes.is_empty()));
        Ok(Template { text: text.to_owned(), parts })
    }

    /// The columns that it names.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Column { name, .. } => Some(name.as_str()),
        })
    }

    /// The bytes for a row. A column without a byte is refused if `is_key`: rows would overwrite each other.
    fn fill(&self, row: &impl Row, is_key: bool, out: &mut Vec<u8>) -> Result<(), Wrong> {
        for part in &self.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Column { name, .. } => out.extend_from_slice(&asked(row, name, is_key)?),
            }
        }
        Ok(())
    }

    /// The value for a row.
    pub(crate) fn value(&self, row: &impl Row) -> Result<Vec<u8>, Wrong> {
        let mut out = Vec::new();
        self.fill(row, false, &mut out)?;
        Ok(out)
    }
}

/// What stands in braces: a column's name, and in a tuple's template its type behind a colon.
fn column(text: &str, is_typed: bool) -> Result<Part, String> {
    let (name, kind) = match text.rsplit_once(':') {
        Some((name, kind)) if is_typed => {
            let no_kind = || format!("`{kind}` is no type of a column: int, float, bool and bytes are");
            (name, Some(Kind::named(kind).ok_or_else(no_kind)?))
        }
        _ => (text, None),
    };
    if name.is_empty() {
        return Err("{} names no column; a brace itself is written {{ or }}".to_owned());
    }
    Ok(Part::Column { name: name.to_owned(), kind })
}

fn asked<'a>(row: &'a impl Row, name: &str, is_key: bool) -> Result<Cow<'a, [u8]>, Wrong> {
    let wrong = |what: String| Wrong { column: Some(row.describe(name)), what };
    match row.column(name) {
        Ok(bytes) if is_key && bytes.is_empty() => Err(wrong("it is empty, and the key is made of it".to_owned())),
        found => found.map_err(|what| {
            wrong(match type_elsewhere(name, is_key) {
                Some(hint) => format!("{what}; {hint}"),
                None => what,
            })
        }),
    }
}

/// What to say to somebody who gave a column a type where none is taken; `None` if the name has no type's ending.
///
/// It is said only once there turned out to be no such column: `id:int` may be a column's name.
pub(crate) fn type_elsewhere(name: &str, is_key: bool) -> Option<String> {
    let (column, kind) = name.rsplit_once(':')?;
    Kind::named(kind)?;
    Some(if is_key {
        format!("--key takes columns as they are; types are in --key-tuple, such as --key-tuple 'people,{{{name}}}'")
    } else {
        format!("--value takes columns as they are: {{{column}}}")
    })
}

/// What is wrong with a key's template without a column.
const NO_COLUMN: &str = "it names no column, so all rows would have one key; write a column's name in braces: {id}";

/// How the key of a row is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyTemplate {
    Bytes(Template),
    Tuple { text: String, elements: Vec<Template> },
}

impl KeyTemplate {
    /// For clap: `--key`.
    pub(crate) fn parse(text: &str) -> Result<KeyTemplate, String> {
        let template = Template::parse(text)?;
        if template.columns().next().is_none() {
            return Err(NO_COLUMN.to_owned());
        }
        Ok(KeyTemplate::Bytes(template))
    }

    /// For clap: `--key-tuple`.
    pub(crate) fn parse_tuple(text: &str) -> Result<KeyTemplate, String> {
        let elements =
            text.split(',').map(|element| Template::parse_parts(element, true)).collect::<Result<Vec<_>, _>>()?;
        for element in &elements {
            let is_typed = |part: &Part| matches!(part, Part::Column { kind: Some(_), .. });
            if element.parts.len() > 1 && element.parts.iter().any(is_typed) {
                return Err("a column with a type is an element of its own, with commas around it".to_owned());
            }
        }
        if elements.iter().flat_map(Template::columns).next().is_none() {
            return Err(NO_COLUMN.to_owned());
        }
        Ok(KeyTemplate::Tuple { text: text.to_owned(), elements })
    }

    /// The columns that it names.
    pub(crate) fn columns(&self) -> Vec<&str> {
        match self {
            KeyTemplate::Bytes(template) => template.columns().collect(),
            KeyTemplate::Tuple { elements, .. } => elements.iter().flat_map(Template::columns).collect(),
        }
    }

    /// The option that it came from.
    pub(crate) fn option(&self) -> String {
        match self {
            KeyTemplate::Bytes(template) => format!("--key '{}'", template.text),
            KeyTemplate::Tuple { text, .. } => format!("--key-tuple '{text}'"),
        }
    }

    /// The key of a row.
    pub(crate) fn key(&self, row: &impl Row) -> Result<Vec<u8>, Wrong> {
        let mut out = Vec::new();
        match self {
            KeyTemplate::Bytes(template) => template.fill(row, true, &mut out)?,
            KeyTemplate::Tuple { elements, .. } => {
                let mut tuple = Tuple::new();
                for template in elements {
                    tuple = tuple.with(element(template, row)?);
                }
                tuple.pack_into(&mut out);
            }
        }
        Ok(out)
    }
}

fn element(template: &Template, row: &impl Row) -> Result<Element, Wrong> {
    if let [Part::Column { name, kind: Some(kind) }] = template.parts.as_slice() {
        let bytes = asked(row, name, true)?;
        let text = || std::str::from_utf8(&bytes).ok().map(str::trim);
        let parsed = match kind {
            Kind::Int => text().and_then(|text| text.parse().ok()).map(Element::Int),
            Kind::Float => text().and_then(|text| text.parse().ok()).map(Element::Double),
            Kind::Bool => text().and_then(|text| text.parse().ok()).map(Element::Bool),
            Kind::Bytes => Some(Element::Bytes(Bytes::copy_from_slice(&bytes))),
        };
        return parsed.ok_or_else(|| {
            let kind = match kind {
                Kind::Int => "a 64-bit integer",
                Kind::Float => "a number",
                Kind::Bool | Kind::Bytes => "true or false",
            };
            let shown = crate::text::escape(&bytes[..bytes.len().min(100)]);
            Wrong { column: Some(row.describe(name)), what: format!("`{shown}` is not {kind}") }
        });
    }
    let mut bytes = Vec::new();
    template.fill(row, true, &mut bytes)?;
    // What is no text cannot be a string of a tuple.
    String::from_utf8(bytes).map(Element::String).map_err(|_| Wrong {
        column: template.columns().next().map(|name| row.describe(name)),
        what: "it is not UTF-8; {…:bytes} takes any bytes".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pairs(&'static [(&'static str, &'static str)]);

    impl Row for Pairs {
        fn column(&self, name: &str) -> Result<Cow<'_, [u8]>, String> {
            let found = self.0.iter().find(|(column, _)| *column == name);
            found.map(|(_, value)| value.as_bytes().into()).ok_or_else(|| "there is none".to_owned())
        }
        fn describe(&self, name: &str) -> String {
            name.to_owned()
        }
    }

    const ROW: Pairs = Pairs(&[("id", "7"), ("name", "Ada"), ("empty", "")]);

    fn key(template: &str) -> Result<Vec<u8>, String> {
        KeyTemplate::parse(template)?.key(&ROW).map_err(|wrong| wrong.what)
    }

    fn tuple(template: &str) -> Result<Tuple, String> {
        let key = KeyTemplate::parse_tuple(template)?.key(&ROW).map_err(|wrong| wrong.what)?;
        Ok(Tuple::unpack(&key).unwrap())
    }

    #[test]
    fn templates_have_columns_escapes_and_braces() {
        assert_eq!(key("people/{id}").unwrap(), b"people/7");
        assert_eq!(key(r"{name}\x00{{{id}}}\\").unwrap(), b"Ada\x00{7}\\");
        assert_eq!(Template::parse("").unwrap().value(&ROW).unwrap(), b"");
        for (template, error) in [
            ("people/", "names no column"),
            ("{id", "no closing brace"),
            ("id}", "without an opening"),
            ("{}{id}", "names no column"),
            (r"\n{id}", "is no escape"),
            ("{nothing}", "there is none"),
            ("{empty}/{id}", "it is empty"),
        ] {
            assert!(key(template).unwrap_err().contains(error), "{template}: {:?}", key(template));
        }
    }

    #[test]
    fn tuples_have_types() {
        assert_eq!(tuple("people,{id}").unwrap(), Tuple::new().with("people").with("7"));
        assert_eq!(
            tuple("people,{id:int},{name:bytes}").unwrap(),
            Tuple::new().with("people").with(7i64).with(Element::Bytes(Bytes::from_static(b"Ada")))
        );
        assert_eq!(tuple(r"a\x2cb,n-{id},{id:float}").unwrap(), Tuple::new().with("a,b").with("n-7").with(7f64));
        for (template, error) in [
            ("people", "names no column"),
            ("n{id:int}", "an element of its own"),
            ("{id:integer}", "no type of a column"),
            ("{name:int}", "`Ada` is not a 64-bit integer"),
            ("{id:bool}", "not true or false"),
        ] {
            assert!(tuple(template).unwrap_err().contains(error), "{template}");
        }
    }
}
