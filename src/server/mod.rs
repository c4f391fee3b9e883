//! Where sockets are: listeners, the driver of one connection, how it is parted from clients, admin HTTP.

mod connection;
pub mod http;
pub mod parting;
mod socket;
pub mod tcp;
