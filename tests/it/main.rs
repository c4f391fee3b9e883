//! The integration tests: one binary, one module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod arbitrary;
mod architecture;
mod bridges;
mod broker;
mod checker;
mod client;
mod clients;
mod cluster;
mod codec;
mod corpus;
mod disk_full;
mod docs;
mod field;
mod fuzz_decode;
mod heard;
mod history;
mod hostile;
mod kill;
mod kill_rumqttc;
mod load;
mod long_names;
mod malformed;
mod operate;
mod operations;
mod oracle;
mod parting;
mod random;
mod recovery;
mod rumqttc_client;
mod sessions;
mod simulation;
mod transcript;
mod tree;
mod wait;
mod wills;
