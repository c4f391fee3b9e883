//! The integration tests: one binary, one module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod arbitrary;
mod architecture;
mod checker;
mod codec;
mod corpus;
mod docs;
mod fuzz_decode;
mod malformed;
mod oracle;
mod random;
mod transcript;
mod tree;
