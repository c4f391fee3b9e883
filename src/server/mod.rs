//! Where sockets are: listeners, the driver of one connection, admin HTTP.

mod connection;
pub mod http;
pub mod tcp;
