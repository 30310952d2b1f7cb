//! Types, codecs and traits that every FerrisDB crate shares.
//!
//! Nothing here does I/O, reads a clock or starts a thread: this crate says what time and randomness look like
//! ([`Clock`], [`Random`]) and leaves it to others to have them, so that a whole cluster can run in a simulator.

#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]

pub mod clock;
pub mod codec;
pub mod random;
pub mod version;

pub use clock::{Clock, ManualClock};
pub use random::{Random, SplitMix64};
pub use version::Version;
