//! The module `\xff\xff/tracing/`: which trace a transaction belongs to.

use ferrisdb_core::{KeyValue, Result};

use super::{TRACING, failure, row};
use crate::state::{Inner, State};

/// Numbers by which a transaction can be found in traces. Chosen at random when somebody first looks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tracing {
    /// Zero: not traced.
    token: Option<u64>,
    transaction_id: Option<u64>,
}

const TOKEN: &[u8] = b"token";
const TRANSACTION_ID: &[u8] = b"transaction_id";

pub(super) fn rows(inner: &Inner, state: &mut State) -> Vec<KeyValue> {
    let random = || inner.runtime().random().max(1);
    let token = *state.tracing.token.get_or_insert_with(random);
    let id = *state.tracing.transaction_id.get_or_insert_with(random);
    vec![row([TRACING, TOKEN].concat(), token.to_string()), row([TRACING, TRANSACTION_ID].concat(), id.to_string())]
}

pub(super) fn set(inner: &Inner, state: &mut State, name: &[u8], value: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    match name {
        TOKEN => match text {
            "true" => state.tracing.token = Some(inner.runtime().random().max(1)),
            "false" => state.tracing.token = Some(0),
            _ => return Err(failure(state, "tracing", "a token is set to true or false")),
        },
        TRANSACTION_ID => match text.parse() {
            Ok(id) => state.tracing.transaction_id = Some(id),
            Err(_) => return Err(failure(state, "tracing", "a transaction id is a number of 64 bits")),
        },
        _ => return Err(failure(state, "tracing", "only token and transaction_id can be set")),
    }
    Ok(())
}
