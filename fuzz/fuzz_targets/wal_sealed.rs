//! The decoder `wal_sealed`; see `testing/decoders.rs` of the storage crate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrisdb_storage::testing::decoders::survive("wal_sealed", bytes));
