//! Where sockets are.

pub mod http;
