//! The messages and calls of `proto/berth/v1/peer.proto`. `berth.v1.rs` is generated from it and committed, so that a
//! build needs no protoc; a test compares (`UPDATE_PROTO=1 cargo test --test it proto` rewrites it).

#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[path = "berth.v1.rs"]
#[rustfmt::skip]
mod generated;

pub use generated::*;
