//! The engine.
pub(crate) mod visibility;
