//! Berth: an MQTT 3.1, 3.1.1 and 5.0 broker.
//!
//! Layers point down only: `mqtt <- topic <- {session, ports} <- broker <- cluster <- node <- server <- app <- main`; `storage`, `etcd`, `peers`,
//! `auth` and `tls` are the outside: they stand on `ports` and know nothing of `broker`. `config`, `telemetry`, `host`, `names`, `readings`,
//! `secret_file`, `queue_policy`, `user`, `yaml`, `backoff`, `hashing` and `clock` are leaves, and `sync` nearly one. See `ARCHITECTURE.md`.
//!
//! The feature `testing` adds what only tests, benchmarks and fuzzing need: a cluster in memory with virtual time
//! (`simulation`), and the client's half of the codec (`mqtt::client`). No shipped program has it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

// Some files of `tests/it` are compiled into the unit tests as well; there they say `berth`.
#[cfg(test)]
extern crate self as berth;

pub mod app;
pub mod auth;
pub mod backoff;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
#[doc(hidden)]
pub mod ctl;
pub mod etcd;
pub mod hashing;
pub mod host;
pub mod mqtt;
pub mod names;
pub mod node;
pub mod peers;
pub mod ports;
pub mod queue_policy;
pub mod readings;
pub mod secret_file;
pub mod server;
pub mod session;
#[cfg(any(test, feature = "testing"))]
pub mod simulation;
pub mod storage;
pub mod sync;
pub mod telemetry;
pub mod tls;
pub mod topic;
pub mod user;
pub mod yaml;
