//! The integration tests, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod arbitrary;
mod codec;
mod corpus;
mod fuzz_decode;
mod malformed;
mod oracle;
