//! Options by their numbers, defaults of the database, and transactions whose time is over.

use ferrisdb_core::Code;

use super::writes::SIZE_LIMIT_MIN;
use super::{Checked, Model, Phase, Transaction, WatchState, equal, unexpected};
use crate::oracle::program::{Observed, Step};

/// What transactions begin with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) snapshot_ryw: i32,
    pub(super) retry_limit: i32,
    pub(super) size_limit: Option<usize>,
}

/// The largest limit that a transaction may be given.
const SIZE_LIMIT_MAX: usize = 10_000_000;
const TAGS_MAX: u8 = 5;

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults { snapshot_ryw: 1, retry_limit: -1, size_limit: None }
    }
}

impl Defaults {
    /// Holds for transactions that are made or reset from now on. What is wrong is told at once.
    pub(super) fn set(&mut self, number: i32, value: Option<i64>, observed: &Observed) -> Checked {
        let size =
            |value: i64| usize::try_from(value).ok().filter(|size| (SIZE_LIMIT_MIN..=SIZE_LIMIT_MAX).contains(size));
        let is_legal = match (number, value) {
            (26, None) => {
                self.snapshot_ryw += 1;
                true
            }
            (27, None) => {
                self.snapshot_ryw -= 1;
                true
            }
            (501, Some(limit)) if limit >= -1 => {
                self.retry_limit = i32::try_from(limit).expect("programs have small limits");
                true
            }
            (503, Some(bytes)) if size(bytes).is_some() => {
                self.size_limit = size(bytes);
                true
            }
            _ => false,
        };
        let expected = if is_legal { Observed::Done } else { Observed::Failed(Code::InvalidOptionValue) };
        equal("a default of the database", observed, &expected)
    }
}

impl Model {
    /// A default that would hinder the database's own transactions, and what undoes it.
    pub fn hindering_default(&self) -> Option<(i32, i64)> {
        match self.defaults {
            Defaults { retry_limit, .. } if retry_limit != -1 => Some((501, -1)),
            Defaults { size_limit: Some(bytes), .. } if bytes < SIZE_LIMIT_MAX => Some((503, 10_000_000)),
            _ => None,
        }
    }

    /// Section 8: whatever was under way ends with what it is, or with the timeout; whatever comes after it fails, until a reset.
    pub(super) fn expire(&mut self, slot: usize, meanwhile: Option<&Step>, observed: &Observed) -> Checked {
        let Observed::Expired(told) = observed else { return unexpected(observed) };
        let is_timeout = |told: &Observed| *told == Observed::Failed(Code::TransactionTimedOut);
        match (meanwhile, told.as_deref()) {
            (None, None) => {}
            (Some(_), Some(told)) if is_timeout(told) && self.of(slot).poison.is_none() => {}
            (Some(step), Some(told)) => self.check_step(step, told)?,
            _ => return unexpected(observed),
        }
        self.time_is_over(slot);
        Ok(())
    }

    pub(super) fn time_is_over(&mut self, slot: usize) {
        self.end_watches(slot, WatchState::Dead);
        let transaction = self.of(slot);
        let poison = *transaction.poison.get_or_insert(Code::TransactionTimedOut);
        transaction.phase = Phase::Failed(poison);
    }
}

impl Transaction {
    /// An unknown number is told at once, a wrong value with the next call that tells anything.
    pub(super) fn option_by_number(&mut self, number: i32, value: Option<&[u8]>, observed: &Observed) -> Checked {
        let is_number = value.is_some_and(|value| value.len() == 8);
        let len = value.map_or(0, <[u8]>::len);
        let effect = match number {
            7 | 9999 => return equal("an option that is none", observed, &Observed::Failed(Code::InvalidOption)),
            405 | 1103 | 4001 if is_number => Ok(()),
            502 if is_number && value.and_then(|value| value.last()) == Some(&0) => Ok(()),
            401 | 402 | 2000 => Ok(()),
            403 if len <= 100 => {
                self.has_identifier = true;
                Ok(())
            }
            404 if self.has_identifier => Ok(()),
            404 => Err(Code::ClientInvalidOperation),
            800 | 801 if len > 255 => Err(Code::TagTooLong),
            800 | 801 if self.tags == TAGS_MAX => Err(Code::TooManyTags),
            800 | 801 => {
                self.tags += 1;
                Ok(())
            }
            504 if (16..=255).contains(&len) => Ok(()),
            900 if len == 33 => Ok(()),
            405 | 1103 | 4001 | 502 | 403 | 504 | 900 | 500 | 501 => Err(Code::InvalidOptionValue),
            // The rest takes no value.
            _ if value.is_none() => Ok(()),
            _ => Err(Code::InvalidOptionValue),
        };
        if let Err(code) = effect {
            self.defer(code);
        }
        equal("an option by its number", observed, &Observed::Done)
    }
}
