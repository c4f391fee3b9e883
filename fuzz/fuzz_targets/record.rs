//! Arbitrary bytes as rows of the journal: decoding never panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|row: &[u8]| berth::storage::fuzz_decode(row));
