//! What mapped range reads must return: section 11 of the contract, with a reader of tuples of its own.

use ferrisdb_core::{Bytes, Code, KeyRange, KeyValue};

use super::reads::{check_chunk, is_full, question_errors};
use super::{Checked, Transaction, any_meets, equal, unexpected};
use crate::oracle::program::{MappedRow, Observed, RangeQuestion};
use crate::oracle::view::{END, Own, Resolved, View};

/// Where the elements of a packed tuple begin and end; `None` if it is none. It knows all types: programs write few of them, but the bytes of a versionstamp in a key
/// may look like any.
fn elements(packed: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    let mut rest = packed;
    while !rest.is_empty() {
        let (element, behind) = rest.split_at_checked(element_len(rest)?)?;
        elements.push(element);
        rest = behind;
    }
    Some(elements)
}

/// How many bytes the element has that `bytes` begin with; there may be fewer.
fn element_len(bytes: &[u8]) -> Option<usize> {
    let &code = bytes.first()?;
    Some(match code {
        // Nothing, false, true.
        0x00 | 0x26 | 0x27 => 1,
        // Bytes and a string, up to a zero that is not escaped.
        0x01 | 0x02 => {
            let end = (1..bytes.len()).find(|&at| bytes[at] == 0x00 && bytes.get(at + 1) != Some(&0xFF))?;
            let is_escape = |at: usize| bytes[at] == 0xFF && bytes[at - 1] == 0x00;
            let text: Vec<u8> = (1..end).filter(|&at| !is_escape(at)).map(|at| bytes[at]).collect();
            if code == 0x02 {
                String::from_utf8(text).ok()?;
            }
            end + 1
        }
        // A tuple, up to a zero; nothing inside is an escaped zero.
        0x05 => {
            let mut at = 1;
            loop {
                at += match (bytes.get(at)?, bytes.get(at + 1)) {
                    (0x00, Some(0xFF)) => 2,
                    (0x00, _) => break at + 1,
                    _ => element_len(&bytes[at..])?,
                };
            }
        }
        // Whole numbers: the code says how many bytes, or the byte behind it.
        0x0B => 2 + usize::from(!bytes.get(1)?),
        0x0C..=0x1C => 1 + usize::from(code.abs_diff(0x14)),
        0x1D => 2 + usize::from(*bytes.get(1)?),
        // Floating point, a UUID, a versionstamp with its two bytes.
        0x20 => 1 + 4,
        0x21 => 1 + 8,
        0x30 => 1 + 16,
        0x33 => 1 + 12,
        _ => return None,
    })
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
        let mut invalid = question_errors(question, END);
        if snapshot || self.ryw_disabled || question.reverse {
            invalid.push(Code::UnsupportedOperation);
        }
        invalid.extend(mapper_error(mapper));
        let nothing = Observed::Mapped { rows: Vec::new(), more: false };
        let Some((begin, end)) = self.bounds(question, &invalid, &nothing, observed)? else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use ferrisdb_client::layers::Tuple;
    use ferrisdb_core::{Random, SplitMix64};

    use super::*;

    /// Any bytes are a tuple for the model if they are one for the client, of as many elements: a key with a versionstamp in it may have any (that of seed 364 had a 0x20 where an element begins, which is a floating point number).
    #[test]
    fn tuples_are_what_the_client_takes_for_tuples() {
        // All codes that there are, what escapes, some that are none, a letter of two bytes, and lengths.
        const BYTES: [u8; 28] = [
            0x00, 0x00, 0xFF, 0x01, 0x02, 0x05, 0x0B, 0x0C, 0x13, 0x14, 0x15, 0x1C, 0x1D, 0x20, 0x21, 0x26, 0x27, 0x30,
            0x33, 0x03, 0x32, 0xFE, b'a', b'b', 0xC3, 0xA9, 0xFD, 0x04,
        ];
        let mut random = SplitMix64::new(364);
        let mut byte = |of: usize| BYTES[usize::try_from(random.below(of as u64)).expect("an index")];
        let mut tuples = 0;
        for round in 0..300_000 {
            let len = round % 20;
            let packed: Vec<u8> = (0..len).map(|_| byte(BYTES.len())).collect();
            let by_client = Tuple::unpack(&packed).ok().map(|tuple| tuple.elements().len());
            let by_model = elements(&packed).map(|elements| elements.len());
            assert_eq!(by_model, by_client, "{packed:02x?}");
            tuples += u32::from(by_model.is_some());
        }
        assert!(tuples > 20_000, "only {tuples} of them are tuples");
    }
}
