//! Layers: ways to make keys, on top of plain byte strings. They use only what every user of the library can use.
//!
//! [`mod@tuple`] packs typed elements into keys that sort as the elements do, [`subspace`] puts a prefix before them,
//! [`directory`] gives out short prefixes by name. All are byte for byte FoundationDB's, so that programs in other languages read the same keys.

pub mod directory;
pub mod subspace;
pub mod tuple;

pub use directory::{CreateOptions, Directory, DirectoryLayer};
pub use subspace::Subspace;
pub use tuple::{Element, Tuple};
