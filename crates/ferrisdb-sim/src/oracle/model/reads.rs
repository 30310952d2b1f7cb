//! What reads must return, and what they conflict with.

use ferrisdb_core::key::key_after;
use ferrisdb_core::{Bytes, Code, KeyRange, KeySelector, KeyValue};

use super::{Checked, Transaction, due, equal, unexpected};
use crate::oracle::program::{Mode, Observed, RangeQuestion};
use crate::oracle::view::{END, Resolved};

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
        if matches!(observed, Observed::Failed(Code::KeyOutsideLegalRange)) && key.as_ref() >= END {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if key.as_ref() >= END {
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
        if matches!(observed, Observed::Failed(Code::KeyOutsideLegalRange)) && selector.key.as_ref() > END {
            return Ok(());
        }
        if due(&failing, observed)? {
            self.note_misuse(observed);
            return Ok(());
        }
        if selector.key.as_ref() > END {
            return equal("get_key", observed, &Observed::Failed(Code::KeyOutsideLegalRange));
        }
        let key = match self.view(snapshot).resolve(selector) {
            Err(code) => {
                self.note_failed_read(observed);
                return equal("get_key", observed, &Observed::Failed(code));
            }
            Ok(Resolved { key, .. }) => key,
        };
        equal("get_key", observed, &Observed::Key(key.clone()))?;
        self.is_used = true;
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
        let failing = self.failing();
        let invalid = question_errors(question);
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
            return equal("inverted range", observed, &Observed::Rows { rows: Vec::new(), more: false });
        }
        let view = self.view(snapshot);
        let resolve = |selector: &KeySelector| match selector.offset {
            // A plain bound: nothing is touched to find it.
            1 => Ok(Resolved { key: selector.key.clone(), ran_off_front: false, ran_off_end: false }),
            _ => view.resolve(selector),
        };
        let (from, to) = (resolve(&begin), resolve(&end));
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
            high = Bytes::from_static(END);
        }
        let must = KeyRange::new(low.clone(), high.clone());
        // A selector was found by looking at everything up to the key that it found, or up to the end that it ran off.
        let (least, greatest) = ((&from.key).min(&to.key), (&from.key).max(&to.key));
        let low = if off_front { Bytes::new() } else { low.min(least.clone()) };
        let high = if off_end { Bytes::from_static(END) } else { high.max(key_after(greatest)) };
        let is_plain = begin.offset == 1 && end.offset == 1;
        let may = if is_plain { must.clone() } else { KeyRange::new(low, high) };
        (must, may)
    }
}

/// Errors of a question that is wrong in itself.
pub(super) fn question_errors(question: &RangeQuestion) -> Vec<Code> {
    let mut errors = Vec::new();
    if question.begin.key.as_ref() > END || question.end.key.as_ref() > END {
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
