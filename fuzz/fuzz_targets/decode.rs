//! Any bytes in any state of a connection, as one frame after the other.
#![no_main]

#[path = "../../tests/it/fuzz_decode/check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
