//! What reads must return, and what they conflict with.

use ferrisdb_core::key::key_after;
use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, KeyValue};

use super::{Checked, Transaction, due, equal, unexpected};
use crate::oracle::program::{Mode, Observed, RangeQuestion};
use crate::oracle::view::{FOG, METADATA_VERSION, Resolved, Scan};

/// What a row counts beside its key and value.
const ROW_OVERHEAD: usize = 8;

impl Transaction {
    pub(super) fn get(&mut self, key: &Bytes, snapshot: bool, observed: &Observed) -> Checked {
        let failing = self.failing();
        if self.is_locked_out {
            // What own writes decide alone needs no version of a locked database.
            let own = self.own_view();
            let is_own = match (own.get(key), observed) {
                (Err(code), Observed::Failed(found)) => code == *found,
                (Ok(value), Observed::Value(found)) => {
                    value == *found && own.depends_on(&KeyRange::single(key)).is_empty()
                }
                _ => false,
            };
            if is_own {
                return Ok(());
            }
        }
        let is_outside = key.as_ref() >= self.read_end() && key != METADATA_VERSION;
        if matches!(observed, Observed::Failed(Code::KeyOutsideLegalRange)) && is_outside {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if is_outside {
            return equal("get", observed, &Observed::Failed(Code::KeyOutsideLegalRange));
        }
        let expected = match self.view(snapshot).get(key) {
            Ok(value) => Observed::Value(value),
            Err(code) => Observed::Failed(code),
        };
        equal("get", observed, &expected)?;
        self.is_used |= matches!(expected, Observed::Value(_));
        self.note_failed_read(observed);
        if matches!(expected, Observed::Value(_)) && !snapshot {
            let conflicts = self.view(false).depends_on(&KeyRange::single(key));
            self.read_conflicts.add_all(conflicts, Vec::new());
        }
        Ok(())
    }

    pub(super) fn get_key(&mut self, selector: &KeySelector, snapshot: bool, observed: &Observed) -> Checked {
        let failing = self.failing();
        if matches!(observed, Observed::Failed(Code::KeyOutsideLegalRange)) && selector.key.as_ref() > self.read_end() {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if selector.key.as_ref() > self.read_end() {
            return equal("get_key", observed, &Observed::Failed(Code::KeyOutsideLegalRange));
        }
        let key = match self.view(snapshot).resolve(selector) {
            Err(code) => {
                self.note_failed_read(observed);
                return equal("get_key", observed, &Observed::Failed(code));
            }
            Ok(Resolved { key, .. }) => key,
        };
        self.is_used = true;
        if key.as_ref() > FOG {
            self.note_fog(snapshot);
            self.note_failed_read(observed);
            return self.check_fog("get_key", observed);
        }
        equal("get_key", observed, &Observed::Key(key.clone()))?;
        if !snapshot {
            let start = if selector.or_equal { key_after(&selector.key) } else { selector.key.clone() };
            let range =
                if selector.offset <= 0 { KeyRange::new(key, start) } else { KeyRange::new(start, key_after(&key)) };
            let conflicts = self.view(false).depends_on(&range);
            self.read_conflicts.add_all(conflicts, Vec::new());
        }
        Ok(())
    }

    pub(super) fn get_range(&mut self, question: &RangeQuestion, snapshot: bool, observed: &Observed) -> Checked {
        let invalid = question_errors(question, self.read_end());
        let nothing = Observed::Rows { rows: Vec::new(), more: false };
        let Some((begin, end)) = self.bounds(question, &invalid, &nothing, observed)? else { return Ok(()) };
        let view = self.view(snapshot);
        let resolve = |selector: &KeySelector| match selector.offset {
            // A plain bound: nothing is touched to find it.
            1 => Ok(Resolved { key: selector.key.clone(), ran_off_front: false, ran_off_end: false }),
            _ => view.resolve(selector),
        };
        let (from, to) = (resolve(&begin), resolve(&end));
        let is_foggy = |place: &Result<Resolved, Code>| place.as_ref().is_ok_and(|place| place.key.as_ref() > FOG);
        if is_foggy(&from) || is_foggy(&to) {
            let scan = match &from {
                Ok(from) => view.scan(&from.key, &Bytes::from_static(FOG), question.reverse),
                // It fails, or fails not: what is unreadable may be behind what it met first.
                Err(_) => Scan { rows: Vec::new(), is_cut_by_unreadable: true },
            };
            self.note_fog(snapshot);
            return self.check_foggy_rows(&scan, observed);
        }
        let (rows, more) = match observed {
            Observed::Rows { rows, more } => (rows, *more),
            Observed::Failed(Code::AccessedUnreadable) => {
                let (Ok(from), Ok(to)) = (&from, &to) else { return Ok(()) };
                let scan = view.scan(&from.key, &to.key, question.reverse);
                let is_reached = scan.is_cut_by_unreadable && !is_full(&scan.rows, question);
                return if is_reached { Ok(()) } else { Err("nothing unreadable was reached".to_owned()) };
            }
            _ => return unexpected(observed),
        };
        let (Ok(from), Ok(to)) = (from, to) else {
            // Where an end is hidden behind something unreadable, rows may have been found before it mattered.
            return if rows.is_empty() && !more { Err("a bound is unreadable".to_owned()) } else { Ok(()) };
        };
        let scan = view.scan(&from.key, &to.key, question.reverse);
        check_chunk(rows, more, &scan.rows, scan.is_cut_by_unreadable, question)?;
        self.is_used |= !rows.is_empty();
        if !snapshot {
            self.add_range_conflicts(&begin, &end, (&from, &to), rows, more, question.reverse);
        }
        Ok(())
    }

    /// Between which selectors a range read looks for rows; `None` if it rightly looks for none: the question is wrong in itself (`invalid`), the transaction
    /// fails all calls, or the range is inverted and has found `nothing`.
    pub(super) fn bounds(
        &mut self,
        question: &RangeQuestion,
        invalid: &[Code],
        nothing: &Observed,
        observed: &Observed,
    ) -> Result<Option<(KeySelector, KeySelector)>, String> {
        if let Observed::Failed(code) = observed
            && invalid.contains(code)
        {
            return Ok(None);
        }
        if due(&self.failing(), observed)? {
            self.note_misuse(observed);
            return Ok(None);
        }
        if !invalid.is_empty() {
            return Err(format!("found {observed:?}, expected one of {invalid:?}"));
        }
        self.note_failed_read(observed);
        let begin = question.begin.clone().without_or_equal();
        let end = question.end.clone().without_or_equal();
        if begin.offset >= end.offset && begin.key >= end.key {
            return equal("inverted range", observed, nothing).map(|()| None);
        }
        Ok(Some((begin, end)))
    }

    /// Of what is found in the fog only that it is there.
    fn check_fog(&self, what: &str, observed: &Observed) -> Checked {
        match observed {
            Observed::Key(key) if key.as_ref() >= FOG => Ok(()),
            // The metadata version is there too.
            Observed::Failed(Code::AccessedUnreadable) if self.own_view().has_unreadable() => Ok(()),
            _ => Err(format!("{what}: found {observed:?}, expected something behind the programs' keys")),
        }
    }

    /// Rows of which some are in the fog: those before it are known.
    fn check_foggy_rows(&self, known: &Scan, observed: &Observed) -> Checked {
        let rows = match observed {
            Observed::Rows { rows, .. } => rows,
            _ => return self.check_fog("rows", observed),
        };
        let found: Vec<&KeyValue> = rows.iter().filter(|row| row.key.as_ref() < FOG).collect();
        let is_right =
            known.rows.len() >= found.len() && found.iter().zip(&known.rows).all(|(found, row)| *found == row);
        if is_right { Ok(()) } else { Err(format!("rows {found:?} are not the beginning of {:?}", known.rows)) }
    }

    /// All rows between two keys, one by one, up to a limit.
    pub(super) fn stream(&mut self, question: &RangeQuestion, snapshot: bool, observed: &Observed) -> Checked {
        let failing = self.failing();
        let (begin, end) = (&question.begin.key, &question.end.key);
        let is_outside = begin.as_ref() > self.read_end() || end.as_ref() > self.read_end();
        if is_outside && *observed == Observed::Failed(Code::KeyOutsideLegalRange) {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if is_outside {
            return equal("a stream", observed, &Observed::Failed(Code::KeyOutsideLegalRange));
        }
        self.note_failed_read(observed);
        let limit = usize::try_from(question.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let Scan { rows: all, is_cut_by_unreadable } = self.view(snapshot).scan(begin, end, question.reverse);
        let whole = KeyRange::new(begin.clone(), end.clone());
        if begin < end && is_cut_by_unreadable && all.len() < limit {
            if !snapshot {
                self.read_conflicts.may.push(whole);
            }
            return equal("a stream over what is unreadable", observed, &Observed::Failed(Code::AccessedUnreadable));
        }
        let expected = &all[..all.len().min(limit)];
        equal("a stream", observed, &Observed::Rows { rows: expected.to_vec(), more: false })?;
        self.is_used |= !expected.is_empty();
        if snapshot || whole.is_empty() {
            return Ok(());
        }
        let read = match expected.last() {
            Some(last) if expected.len() == limit && question.reverse => KeyRange::new(last.key.clone(), end.clone()),
            Some(last) if expected.len() == limit => KeyRange::new(begin.clone(), key_after(&last.key)),
            _ => whole.clone(),
        };
        // Whoever is stopped by the limit at the last row of all may have looked behind it.
        let may = if expected.len() == all.len() { whole } else { read.clone() };
        let view = self.view(false);
        let (must, may) = (view.depends_on(&read), view.depends_on(&may));
        self.read_conflicts.add_all(must, may);
        Ok(())
    }

    /// Section 5: what a range read adds.
    fn add_range_conflicts(
        &mut self,
        begin: &KeySelector,
        end: &KeySelector,
        places: (&Resolved, &Resolved),
        rows: &[KeyValue],
        more: bool,
        reverse: bool,
    ) {
        let (must, may) = Transaction::range_conflicts(begin, end, places, rows, more, reverse);
        let view = self.view(false);
        let (must, may) = (view.depends_on(&must), view.depends_on(&may));
        self.read_conflicts.add_all(must, may);
    }

    /// What a range read must conflict with, and what it may, as far as own writes do not hide it.
    pub(super) fn range_conflicts(
        begin: &KeySelector,
        end: &KeySelector,
        (from, to): (&Resolved, &Resolved),
        rows: &[KeyValue],
        more: bool,
        reverse: bool,
    ) -> (KeyRange, KeyRange) {
        let in_order = begin.key < end.key;
        let (mut low, mut high) =
            if in_order { (begin.key.clone(), end.key.clone()) } else { (end.key.clone(), begin.key.clone()) };
        if in_order && more && !reverse && end.offset > 0 {
            high = low.clone();
        }
        if in_order && more && reverse && begin.offset <= 0 {
            low = high.clone();
        }
        if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
            let (least, greatest) = if reverse { (last, first) } else { (first, last) };
            if reverse || begin.offset <= 0 {
                low = low.min(least.key.clone());
            }
            if (!reverse || end.offset > 0) && high <= greatest.key {
                high = key_after(&greatest.key);
            }
            if more && reverse && begin.offset <= 1 && in_order {
                // Nothing below the last row was looked at.
                low = low.max(least.key.clone());
            }
        }
        // Who ran off an end has seen that nothing is there, unless the chunk ended before that mattered.
        let off_front = from.ran_off_front || to.ran_off_front;
        let off_end = from.ran_off_end || to.ran_off_end;
        if off_front && begin.offset <= 0 && !(reverse && more) {
            low = Bytes::new();
        }
        if off_end && end.offset > 0 && (reverse || !more) {
            // The greatest key that may be read: a selector may name one behind it.
            high = if to.ran_off_end { to.key.clone() } else { from.key.clone() };
        }
        let must = KeyRange::new(low.clone(), high.clone());
        // A selector was found by looking at everything up to the key that it found, or up to the end that it ran off.
        let (least, greatest) = ((&from.key).min(&to.key), (&from.key).max(&to.key));
        let low = if off_front { Bytes::new() } else { low.min(least.clone()) };
        let high = if off_end { greatest.clone() } else { high.max(key_after(greatest)) };
        let is_plain = begin.offset == 1 && end.offset == 1;
        let may = if is_plain { must.clone() } else { KeyRange::new(low, high) };
        (must, may)
    }
}

/// Errors of a question that is wrong in itself.
pub(super) fn question_errors(question: &RangeQuestion, legal_end: &[u8]) -> Vec<Code> {
    let mut errors = Vec::new();
    if question.begin.key.as_ref() > legal_end || question.end.key.as_ref() > legal_end {
        errors.push(Code::KeyOutsideLegalRange);
    }
    if question.mode == Mode::Exact && question.limit == 0 && question.target_bytes == 0 {
        errors.push(Code::ExactModeWithoutLimits);
    }
    if matches!(question.mode, Mode::Iterator(iteration) if iteration <= 0) {
        errors.push(Code::ClientInvalidOperation);
    }
    errors
}

/// Bytes after which a chunk ends: section 4.
fn target_bytes(question: &RangeQuestion) -> Option<usize> {
    const ITERATOR: [usize; 10] = [4096, 6144, 9216, 13_824, 20_736, 31_104, 46_656, 69_984, 80_000, 120_000];
    let of_mode = match question.mode {
        Mode::Exact => None,
        Mode::Small => Some(256),
        Mode::Medium => Some(1000),
        Mode::Large => Some(4096),
        Mode::Serial | Mode::WantAll => Some(120_000),
        Mode::Iterator(iteration) => {
            let index = usize::try_from(iteration - 1).expect("checked to be positive");
            Some(ITERATOR[index.min(ITERATOR.len() - 1)])
        }
    };
    let given = usize::try_from(question.target_bytes).ok().filter(|&bytes| bytes > 0);
    of_mode.into_iter().chain(given).min()
}

fn cost(row: &KeyValue) -> usize {
    ROW_OVERHEAD + row.key.len() + row.value.len()
}

/// True if a chunk of these rows is complete by its limits.
pub(super) fn is_full(rows: &[KeyValue], question: &RangeQuestion) -> bool {
    let limit = usize::try_from(question.limit).expect("programs have no negative limits");
    let bytes: usize = rows.iter().map(cost).sum();
    (limit > 0 && rows.len() >= limit)
        || target_bytes(question).is_some_and(|target| !rows.is_empty() && bytes >= target)
}

/// A chunk is the beginning of what there is; it ends at a limit or early, never late; `more` is false only at the end.
pub(super) fn check_chunk(
    rows: &[KeyValue],
    more: bool,
    all: &[KeyValue],
    is_cut_by_unreadable: bool,
    question: &RangeQuestion,
) -> Checked {
    let show = |rows: &[KeyValue]| {
        let rows: Vec<_> = rows.iter().map(|row| (&row.key, &row.value[..row.value.len().min(12)])).collect();
        format!("{rows:?}")
    };
    if all.get(..rows.len()) != Some(rows) {
        return Err(format!("rows {} are not the beginning of {}", show(rows), show(all)));
    }
    if let Some((_, before)) = rows.split_last()
        && is_full(before, question)
    {
        return Err(format!("{} rows, although fewer had reached the limit", rows.len()));
    }
    if rows.is_empty() && !all.is_empty() {
        return Err("no row, although there is one".to_owned());
    }
    if !more && (rows.len() < all.len() || is_cut_by_unreadable) {
        return Err(format!("no more rows, after {} of {}", rows.len(), show(all)));
    }
    Ok(())
}
