//! Compaction: which tables are merged, and what of their contents stays.
//!
//! Deciding and doing are apart. [`picker`] looks at the levels and returns a [`CompactionPlan`]; [`retention`] says, entry by
//! entry, what some reader may still see. Neither opens a file, reads a clock or keeps state between calls, so both are tested
//! with tables of cases and against naive models.
