//! What a client can ask of a database, and the frames that carry it.
//!
//! [`api`] has the questions and answers as plain types and the trait [`Endpoint`], which everything that
//! answers them implements: the roles in one process, a connection, and a client's router over many connections.
//!
//! ```text
//! Endpoint ── Router ── Client ── Connection ══ frames over any AsyncRead + AsyncWrite ══ Server ── Endpoint
//!
//! api, answer   the questions and the trait        frame    length, message, check value; long messages in pieces
//! connection    one connection, many questions     wire     between `api` and the messages of proto/ferrisdb.proto
//! client        connects again, asks again         hello    who are you, and do we understand each other
//! race          several attempts, one wins         router   many servers, each question at the one that can answer it
//! pace          which replica, and when another    pass_on  an endpoint in front of another one
//! server        accepts, answers, bounds           options  every bound and every wait, with its reason
//! runtime       tokio as a `Runtime`               stats    what a server counts
//! afterwards    who is woken, but not yet          later    a connection's answers that are not there yet
//! ```
//!
//! # Time
//! The transport's deadlines are `tokio::time`, not a [`Clock`](ferrisdb_core::Clock) that is handed in: its sockets are tokio's anyway, and what
//! simulates them (`turmoil`) simulates tokio's time with them. No other clock is read here.

#![forbid(unsafe_code)]
#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]

mod afterwards;
pub mod answer;
pub mod api;
pub mod client;
pub mod connection;
mod frame;
mod hello;
mod later;
mod limits;
pub mod options;
pub mod pace;
#[doc(hidden)]
pub mod pass_on;
mod race;
pub mod router;
pub mod runtime;
pub mod server;
pub mod stats;
#[cfg(test)]
mod tests;
mod wire;

pub use answer::Answer;
pub use api::Endpoint;
pub use client::Client;
pub use connection::Connection;
pub use frame::ProtocolError;
pub use hello::{PROTOCOL_MAX, PROTOCOL_MIN};
pub use options::{ClientOptions, ServeOptions};
pub use router::Router;
pub use runtime::TokioRuntime;
pub use server::{Listener, Server, serve};
pub use stats::ServerStats;
