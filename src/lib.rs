//! Berth: an MQTT 3.1.1 and 5.0 broker.
//!
//! Layers point down only: `mqtt <- topic <- session <- broker <- {storage, cluster, auth} <- server <- app <- main`.
//! `config`, `telemetry` and `clock` are leaves. See `ARCHITECTURE.md`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod broker;
pub mod clock;
pub mod mqtt;
pub mod session;
pub mod storage;
pub mod topic;
