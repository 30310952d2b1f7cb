//! Tools that prove things about a database by running it.
//!
//! [`history`] certifies that a recorded run was strictly serializable.

pub mod history;
