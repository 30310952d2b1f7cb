//! Layers: ways to make keys, on top of plain byte strings. They use only what every user of the library can use.
//!
//! [`tuple`] packs typed elements into keys that sort as the elements do, [`subspace`] puts a prefix before them. Both are byte for byte
//! FoundationDB's, so that programs in other languages read the same keys.

pub mod subspace;
pub mod tuple;

pub use subspace::Subspace;
pub use tuple::{Element, Tuple};
