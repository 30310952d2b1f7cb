//! What a client can ask of a database, and the frames that carry it.
//!
//! [`api`] has the questions and answers as plain types and the trait [`Endpoint`], which everything that
//! answers them implements: the roles in one process, a connection, and a client's router over many connections.

pub mod answer;
pub mod api;

pub use answer::Answer;
pub use api::Endpoint;
