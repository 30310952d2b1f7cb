//! What the engine does with what it should not be given: bad input, damaged directories, refused system calls, callers that close, drop and
//! poll in every order. Only the public API, in one binary so that it is linked once.
//!
//! Every damage ends in one of two ways: the right answer, or an error that names the file or the option, with the data as it was. The
//! tests compare all contents at many versions after each, and open the directory again without the damage.

#![expect(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]
#![expect(clippy::disallowed_methods, reason = "some tests look at the real disk past the engine")]
#![expect(clippy::cast_possible_truncation, reason = "tests cast small numbers")]

mod bad_input;
mod corruption;
mod damaged_files;
mod golden;
mod lifecycle;
mod memory_bound;
mod nonblocking;
mod support;
