//! The process that `demo` kills: commits numbered records, one after the other, for ever.
//!
//! Before each transaction it prints `begin N`, and `ack N` once the commit has returned, which means that the record is durable. Each line goes
//! into the pipe in one write, so whatever was said before the kill can be read after it. A transaction holds the record and the
//! key `last`, which names the record: after a crash both must agree, or the transaction was not atomic.

use std::io::{self, Write};

use ferrisdb::Transaction;
use ferrisdb_core::{Random, SplitMix64};

use crate::arguments::DemoChildArguments;
use crate::failure::Failure;

/// Where the number of the last record stands.
pub(super) const LAST_KEY: &[u8] = b"last";

/// Records are 2 to 4 KiB: several WAL records fit into a block, and some cross one.
const RECORD_BYTES_MIN: u64 = 2048;

/// Writes until it is killed, or until nobody listens.
pub(crate) fn run(arguments: &DemoChildArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let connected = super::open(&arguments.directory)?;
    for number in arguments.first.. {
        say(out, "begin", number)?;
        let write = async |tx: Transaction| {
            tx.set(record_key(number), record_value(number));
            tx.set(LAST_KEY, number.to_be_bytes());
            Ok(())
        };
        connected.run(async { Ok(connected.database.run(write).await?) })?;
        say(out, "ack", number)?;
    }
    Ok(())
}

fn say(out: &mut dyn Write, what: &str, number: u64) -> io::Result<()> {
    out.write_all(format!("{what} {number}\n").as_bytes())?;
    out.flush()
}

/// The key of a record: byte order is number order.
pub(super) fn record_key(number: u64) -> Vec<u8> {
    format!("log/{number:016}").into_bytes()
}

/// The value of a record follows from its number.
pub(super) fn record_value(number: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(number);
    let words = (RECORD_BYTES_MIN + random.below(RECORD_BYTES_MIN)) / 8;
    (0..words).flat_map(|_| random.next_u64().to_be_bytes()).collect()
}
