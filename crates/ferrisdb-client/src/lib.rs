//! FerrisDB's client library: databases, transactions, and the layers on them.

#![cfg_attr(test, expect(clippy::cast_possible_truncation, reason = "tests cast small numbers"))]

pub mod layers;
