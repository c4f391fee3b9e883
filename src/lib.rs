//! Berth: an MQTT 3.1, 3.1.1 and 5.0 broker.
//!
//! Layers point down only: `mqtt <- topic <- session <- broker <- {storage, cluster, auth, tls} <- server <- app <- main`.
//! `config`, `telemetry`, `host`, `names`, `readings`, `secret_file` and `clock` are leaves. See `ARCHITECTURE.md`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

// Some files of `tests/it` are compiled into the unit tests as well; there they say `berth`.
#[cfg(test)]
extern crate self as berth;

pub mod app;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
#[doc(hidden)]
pub mod ctl;
pub mod host;
pub mod mqtt;
pub mod names;
pub mod readings;
pub mod secret_file;
pub mod server;
pub mod session;
#[doc(hidden)]
pub mod simulation;
pub mod storage;
pub mod telemetry;
pub mod tls;
pub mod topic;
