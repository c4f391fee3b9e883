//! Where sockets are: listeners, what comes before MQTT, the driver of one connection, how it is parted from clients, admin HTTP.

mod arrival;
mod connection;
pub mod crowd;
#[cfg(test)]
mod fuzz_tests;
pub mod http;
pub mod listener;
mod notices;
pub mod parting;
mod proxy;
mod rates;
mod transport;
