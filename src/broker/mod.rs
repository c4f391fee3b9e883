//! The broker: routes messages between sessions.

pub mod ports;
