//! Bytes to packets and back, MQTT 3.1, 3.1.1 and 5.0. No I/O, no tokio, no state between packets.
//!
//! [`decode()`] validates everything the specifications call malformed or a protocol error that one packet alone
//! can show; what depends on earlier packets is the session's business.

#[cfg(any(test, feature = "testing"))]
pub mod client;
pub mod decode;
pub mod encode;
pub mod message;
pub mod packet;
pub mod property;
pub mod reason;
mod wire;

pub use decode::{DecodeError, decode, frame_len};
pub use message::Message;
pub use packet::{Packet, QoS, Version};
pub use property::{Properties, Property};
pub use reason::Reason;
pub use wire::VARINT_MAX;
