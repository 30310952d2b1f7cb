//! Compaction: which tables are merged, and what of their contents stays.
//!
//! Deciding and doing are apart. [`picker`] looks at the levels and returns a [`CompactionPlan`]; [`retention`] says, entry by
//! entry, what some reader may still see. Neither opens a file, reads a clock or keeps state between calls, so both are tested
//! with tables of cases and against naive models.

pub mod picker;
pub mod plan;
pub mod retention;

pub use picker::{Hints, PickerOptions};
pub use plan::{CompactionPlan, KeySpan, Reason};
pub use retention::{Decision, KeyFilter, Retention};

#[cfg(test)]
mod simulation_tests;
