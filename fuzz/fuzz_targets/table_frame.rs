//! The decoder `table_frame`; see `testing/decoders.rs` of the storage crate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrisdb_storage::testing::decoders::survive("table_frame", bytes));
