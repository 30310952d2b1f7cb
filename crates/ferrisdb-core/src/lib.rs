//! Types, codecs and traits that every FerrisDB crate shares.
//!
//! Nothing here does I/O, reads a clock or starts a thread: this crate says what time, tasks and randomness look like
//! ([`Clock`], [`Random`], [`Runtime`]) and leaves it to others to have them, so that a whole cluster can run in a simulator.
//!
//! ```text
//! code, error      error codes and what they promise        key, selector    ranges of keys, and places between them
//! version          the number that orders writes            mutation         what a transaction changes, atomic operations
//! versionstamp     ten bytes that a commit fills in         limits           how large things may be
//! clock, random, runtime   the doors                        codec            bytes of files and frames
//! ```

#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]

pub mod clock;
pub mod code;
pub mod codec;
pub mod error;
pub mod key;
pub mod limits;
pub mod mutation;
#[doc(hidden)]
pub mod planted;
pub mod random;
pub mod rare;
pub mod runtime;
pub mod selector;
pub mod version;
pub mod versionstamp;

pub use bytes::Bytes;
pub use clock::{Clock, ManualClock};
pub use code::Code;
pub use error::{Error, Result};
pub use key::{KeyRange, KeyValue};
pub use limits::Limits;
pub use mutation::{Mutation, MutationKind};
pub use random::{Random, SplitMix64, Zipf};
pub use runtime::Runtime;
pub use selector::KeySelector;
pub use version::Version;
pub use versionstamp::Versionstamp;
