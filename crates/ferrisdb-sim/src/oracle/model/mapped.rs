//! What mapped range reads must return: section 11 of the contract, with a reader of tuples of its own.

use ferrisdb_core::{Bytes, Code, KeyRange, KeyValue};

use super::reads::{check_chunk, is_full, question_errors};
use super::{Checked, Transaction, any_meets, due, equal, unexpected};
use crate::oracle::program::{MappedRow, Observed, RangeQuestion};
use crate::oracle::view::{END, Own, Resolved, View};

/// Where the elements of a packed tuple begin and end; `None` if it is none. It knows the types that programs use.
fn elements(packed: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    let mut rest = packed;
    while let Some(&code) = rest.first() {
        let len = match code {
            0x00 => 1,
            0x01 | 0x02 => {
                let mut at = 1;
                loop {
                    match (rest.get(at)?, rest.get(at + 1)) {
                        (0x00, Some(0xFF)) => at += 2,
                        (0x00, _) => break at + 1,
                        _ => at += 1,
                    }
                }
            }
            0x0C..=0x1C => 1 + usize::from(code.abs_diff(0x14)),
            _ => return None,
        };
        if len > rest.len() {
            return None;
        }
        let (element, behind) = rest.split_at(len);
        elements.push(element);
        rest = behind;
    }
    Some(elements)
}

/// The text of a string; programs have none with zeros.
fn text(element: &[u8]) -> Option<&str> {
    match element {
        [0x01 | 0x02, text @ .., 0x00] => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

/// The codes for which a mapper is refused before anything is read.
fn mapper_error(mapper: &[u8]) -> Option<Code> {
    let Some(elements) = elements(mapper) else { return Some(Code::MapperNotTuple) };
    let is_misplaced = elements.iter().rev().skip(1).any(|element| text(element) == Some("{...}"));
    is_misplaced.then_some(Code::MapperBadRangeDescriptor)
}

/// Where an entry leads: to one key, or to all that begin with it.
fn follow(mapper: &[u8], entry: &KeyValue) -> Result<(Bytes, bool), Code> {
    let mut key = Vec::new();
    let mut is_range = false;
    for element in elements(mapper).expect("the mapper was checked") {
        let Some(text) = text(element) else {
            key.extend_from_slice(element);
            continue;
        };
        let single = text.replace("{{", "{").replace("}}", "}");
        let reference = text.strip_suffix("]}").and_then(|text| {
            let number = text.strip_prefix("{K[").map(|number| (true, number));
            number.or(text.strip_prefix("{V[").map(|number| (false, number))).filter(|(_, number)| !number.is_empty())
        });
        if single != text {
            key.push(0x01);
            key.extend_from_slice(single.as_bytes());
            key.push(0x00);
        } else if let Some((of_key, number)) = reference {
            let (source, code) =
                if of_key { (&entry.key, Code::KeyNotTuple) } else { (&entry.value, Code::ValueNotTuple) };
            let source = elements(source).ok_or(code)?;
            let at: usize = number.parse().map_err(|_| Code::MapperBadIndex)?;
            key.extend_from_slice(source.get(at).ok_or(Code::MapperBadIndex)?);
        } else if text == "{...}" {
            is_range = true;
        } else {
            key.extend_from_slice(element);
        }
    }
    Ok((key.into(), is_range))
}

fn mapped_range(key: &Bytes, is_range: bool) -> KeyRange {
    if is_range {
        let KeyRange { begin, end } = KeyRange::prefix(key);
        KeyRange::new(begin, end.min(Bytes::from_static(END)))
    } else {
        KeyRange::single(key)
    }
}

impl Transaction {
    pub(super) fn get_mapped(
        &mut self,
        question: &RangeQuestion,
        mapper: &Bytes,
        snapshot: bool,
        observed: &Observed,
    ) -> Checked {
        let failing = self.failing();
        let mut invalid = question_errors(question, END);
        if snapshot || self.ryw_disabled || question.reverse {
            invalid.push(Code::UnsupportedOperation);
        }
        invalid.extend(mapper_error(mapper));
        if let Observed::Failed(code) = observed
            && invalid.contains(code)
        {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if !invalid.is_empty() {
            return Err(format!("found {observed:?}, expected one of {invalid:?}"));
        }
        self.note_failed_read(observed);
        let begin = question.begin.clone().without_or_equal();
        let end = question.end.clone().without_or_equal();
        if begin.offset >= end.offset && begin.key >= end.key {
            return equal("inverted range", observed, &Observed::Mapped { rows: Vec::new(), more: false });
        }
        let (_, state, _) = self.reads_at.as_ref().expect("programs ask for a read version before they read");
        // It reads what others wrote.
        let view = View { state, own: &[], bypasses_unreadable: false, end: END };
        let place = |selector: &ferrisdb_core::KeySelector| match selector.offset {
            1 => Resolved { key: selector.key.clone(), ran_off_front: false, ran_off_end: false },
            _ => view.resolve(selector).expect("nothing of others is unreadable"),
        };
        let (from, to) = (place(&begin), place(&end));
        let all = view.scan(&from.key, &to.key, false).rows;
        let led: Vec<Result<KeyRange, Code>> =
            all.iter().map(|entry| follow(mapper, entry).map(|(key, is_range)| mapped_range(&key, is_range))).collect();
        let (rows, more) = match observed {
            Observed::Mapped { rows, more } => (rows, *more),
            Observed::Failed(Code::GetMappedRangeReadsYourWrites) => {
                let low = begin.key.min(end.key).min(from.key.clone()).min(to.key.clone());
                // Where a selector led is looked at too.
                let whole = KeyRange::new(if begin.offset == 1 { low } else { Bytes::new() }, Bytes::from_static(END));
                let looked_at: Vec<KeyRange> = led.into_iter().flatten().chain([whole]).collect();
                let is_own = self.has_own_writes_in(&looked_at);
                return if is_own { Ok(()) } else { Err("the transaction has written nothing there".to_owned()) };
            }
            Observed::Failed(found) => {
                let failed = led.iter().position(Result::is_err);
                return match failed.map(|at| (at, &led[at])) {
                    Some((at, Err(code))) if code == found && !is_full(&all[..at], question) => Ok(()),
                    _ => Err(format!("no entry leads to {found:?}")),
                };
            }
            _ => return unexpected(observed),
        };
        let entries: Vec<KeyValue> = rows.iter().map(|row| row.entry.clone()).collect();
        check_chunk(&entries, more, &all, false, question)?;
        for (MappedRow { entry, range, rows }, led) in rows.iter().zip(&led) {
            equal("where an entry leads", &Ok(range.clone()), led)?;
            let there = state.range(range.begin.clone()..range.end.clone());
            let there: Vec<KeyValue> =
                there.map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect();
            equal(&format!("what {entry:?} leads to"), rows, &there)?;
        }
        let (must, may) = Transaction::range_conflicts(&begin, &end, (&from, &to), &entries, more, false);
        let behind: Vec<KeyRange> = rows.iter().map(|row| row.range.clone()).collect();
        if self.has_own_writes_in(&behind) || self.has_own_writes_in(std::slice::from_ref(&must)) {
            return Err("it read over the transaction's own writes".to_owned());
        }
        self.is_used |= !rows.is_empty();
        let must: Vec<KeyRange> = behind.iter().cloned().chain([must]).filter(|range| !range.is_empty()).collect();
        self.read_conflicts.add_all(must, vec![may]);
        Ok(())
    }

    fn has_own_writes_in(&self, ranges: &[KeyRange]) -> bool {
        self.own.iter().any(|own| {
            let written = match own {
                Own::Set(key, _) | Own::Atomic(_, key, _) => KeyRange::single(key),
                Own::Clear(range) | Own::Stamped(range, _) => range.clone(),
            };
            !written.is_empty() && any_meets(ranges, &[written])
        })
    }
}
