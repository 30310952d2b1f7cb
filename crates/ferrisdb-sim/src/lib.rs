//! Tools that prove things about a database by running it.
//!
//! [`history`] certifies that a recorded run was strictly serializable; [`oracle`] compares every call of the API with a simple model.

pub mod history;
pub mod oracle;
