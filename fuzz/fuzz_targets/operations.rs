//! An engine on a simulated disk against a map.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrisdb_storage::testing::operations::run(bytes));
