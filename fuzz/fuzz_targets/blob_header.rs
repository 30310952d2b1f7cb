//! The decoder `blob_header`; see `testing/decoders.rs` of the storage crate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferrisdb_storage::testing::decoders::survive("blob_header", bytes));
