//! [`Budget`]: memory that many connections share.
//!
//! Each connection has a small allowance of its own, so that idle and lightly used ones never touch the shared counter; what it needs
//! beyond, it reserves in steps.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What a connection may hold without reserving anything.
pub(crate) const ALLOWANCE_BYTES: usize = 16 << 10;
/// Reservations are multiples of this, so that a busy connection does not reserve for each request.
const STEP_BYTES: usize = 16 << 10;

/// A number of bytes that many share.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), max }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// True if others should take no more.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.used() > self.max
    }

    fn reserve(&self, bytes: usize, is_bounded: bool) -> bool {
        let add = |used: usize| {
            let used = used.checked_add(bytes)?;
            (!is_bounded || used <= self.max).then_some(used)
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn release(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "no more is released than was reserved");
    }
}

/// What one connection has reserved of a [`Budget`]. Whoever drops one without setting it to zero leaks the budget.
#[derive(Debug, Default)]
pub(crate) struct Share {
    reserved: usize,
}

impl Share {
    /// Makes the reservation fit `bytes`: true if it does now. A smaller need is always granted.
    pub(crate) fn fit(&mut self, budget: &Budget, bytes: usize) -> bool {
        self.change(budget, bytes, true)
    }

    /// The same for what is there already, whether or not the budget has it.
    pub(crate) fn fit_by_force(&mut self, budget: &Budget, bytes: usize) {
        self.change(budget, bytes, false);
    }

    fn change(&mut self, budget: &Budget, bytes: usize, is_bounded: bool) -> bool {
        let needed = bytes.saturating_sub(ALLOWANCE_BYTES);
        // Within one step of what is reserved nothing changes, so that small swings cost nothing; at zero everything is given back.
        if needed <= self.reserved && (needed > 0 || self.reserved == 0) && self.reserved - needed < 2 * STEP_BYTES {
            return true;
        }
        let wanted = needed.next_multiple_of(STEP_BYTES);
        if wanted > self.reserved {
            if !budget.reserve(wanted - self.reserved, is_bounded) {
                return false;
            }
        } else {
            budget.release(self.reserved - wanted);
        }
        self.reserved = wanted;
        true
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fits the allowance costs nothing, what goes beyond is reserved in steps, all of it is given back, and the bound holds.
    #[test]
    fn a_share_reserves_what_goes_beyond_the_allowance() {
        let budget = Budget::new(64 << 10);
        let (mut one, mut other) = (Share::default(), Share::default());
        assert!(one.fit(&budget, ALLOWANCE_BYTES));
        assert_eq!(budget.used(), 0);
        assert!(one.fit(&budget, ALLOWANCE_BYTES + 40_000));
        assert_eq!(budget.used(), 48 << 10);
        assert!(!other.fit(&budget, ALLOWANCE_BYTES + 17_000), "48 and 32 KiB are more than 64");
        assert!(other.fit(&budget, ALLOWANCE_BYTES + 16_000));
        other.fit_by_force(&budget, ALLOWANCE_BYTES + 100_000);
        assert!(budget.is_exceeded());
        assert!(one.fit(&budget, 0) && other.fit(&budget, 0));
        assert_eq!(budget.used(), 0);
    }
}
