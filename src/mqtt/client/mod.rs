//! The client's side: packets a client sends, to bytes, and what a server sends, from bytes. For tests, benches and
//! tools; the broker itself never uses it.
//!
//! The encoders write what they are told and check nothing, so that tests can say nonsense.

mod server_packet;

pub use super::encode::{AckKind, ack, auth, disconnect};
pub use server_packet::{ConnAckIn, ServerPacket, SubAck, decode};

use super::decode::{BRIDGE, kind};
use super::packet::{QoS, SubscribeOptions, Version};
use super::wire::{put_binary, put_packet, put_str, put_varint};

/// A CONNECT to send. Property blocks are raw MQTT 5 bytes without length prefix ([`super::Properties::raw`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connect<'a> {
    /// Protocol version.
    pub version: Version,
    /// Says in MQTT 3 that the client is a bridge.
    pub bridge: bool,
    /// Clean start or clean session.
    pub clean_start: bool,
    /// Keep alive, seconds.
    pub keep_alive_s: u16,
    /// Raw properties; MQTT 5 only.
    pub properties: &'a [u8],
    /// Client identifier.
    pub client_id: &'a str,
    /// The will.
    pub will: Option<Will<'a>>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
}

/// The will of a CONNECT to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Will<'a> {
    /// Will topic.
    pub topic: &'a str,
    /// Will payload, at most 65,535 bytes.
    pub payload: &'a [u8],
    /// Will QoS.
    pub qos: QoS,
    /// Will retain.
    pub retain: bool,
    /// Raw will properties; MQTT 5 only.
    pub properties: &'a [u8],
}

/// A PUBLISH to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Publish<'a> {
    /// Topic name; may be empty with a topic alias among the properties.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// QoS.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Packet identifier; not sent at QoS 0.
    pub packet_id: u16,
    /// Raw properties; MQTT 5 only.
    pub properties: &'a [u8],
}

/// CONNECT.
pub fn connect(out: &mut Vec<u8>, p: &Connect<'_>) {
    let mut flags = u8::from(p.clean_start) << 1
        | u8::from(p.password.is_some()) << 6
        | u8::from(p.username.is_some()) << 7;
    if let Some(will) = &p.will {
        flags |= 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    }
    put_packet(out, kind::CONNECT << 4, |out| {
        put_str(out, if p.version == Version::V31 { "MQIsdp" } else { "MQTT" });
        let bridge = if p.bridge && !p.version.is_v5() { BRIDGE } else { 0 };
        out.extend_from_slice(&[p.version.level() | bridge, flags]);
        out.extend_from_slice(&p.keep_alive_s.to_be_bytes());
        put_properties(out, p.version, p.properties);
        put_str(out, p.client_id);
        if let Some(will) = &p.will {
            put_properties(out, p.version, will.properties);
            put_str(out, will.topic);
            put_binary(out, will.payload);
        }
        if let Some(username) = p.username {
            put_str(out, username);
        }
        if let Some(password) = p.password {
            put_binary(out, password);
        }
    });
}

/// PUBLISH from a client.
pub fn publish(out: &mut Vec<u8>, version: Version, p: &Publish<'_>) {
    let first = kind::PUBLISH << 4 | u8::from(p.dup) << 3 | (p.qos as u8) << 1 | u8::from(p.retain);
    put_packet(out, first, |out| {
        put_str(out, p.topic);
        if p.qos != QoS::AtMostOnce {
            out.extend_from_slice(&p.packet_id.to_be_bytes());
        }
        put_properties(out, version, p.properties);
        out.extend_from_slice(p.payload);
    });
}

/// SUBSCRIBE; of the options MQTT 3 gets the QoS.
pub fn subscribe(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: u16,
    properties: &[u8],
    filters: &[(&str, SubscribeOptions)],
) {
    put_packet(out, kind::SUBSCRIBE << 4 | 0x02, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        put_properties(out, version, properties);
        for (filter, options) in filters {
            put_str(out, filter);
            out.push(if version.is_v5() { options.to_bits() } else { options.qos as u8 });
        }
    });
}

/// UNSUBSCRIBE.
pub fn unsubscribe(out: &mut Vec<u8>, version: Version, packet_id: u16, properties: &[u8], filters: &[&str]) {
    put_packet(out, kind::UNSUBSCRIBE << 4 | 0x02, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        put_properties(out, version, properties);
        for filter in filters {
            put_str(out, filter);
        }
    });
}

/// PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind::PINGREQ << 4, 0]);
}

/// DISCONNECT of MQTT 3, or MQTT 5's with success and no properties; for more there is [`disconnect`].
pub fn disconnect_plain(out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind::DISCONNECT << 4, 0]);
}

fn put_properties(out: &mut Vec<u8>, version: Version, raw: &[u8]) {
    if version.is_v5() {
        put_varint(out, u32::try_from(raw.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(raw);
    }
}

/// Appends properties as MQTT 5 bytes: the raw block that the encoders take.
pub fn put_property(out: &mut Vec<u8>, property: &super::Property<'_>) {
    property.put(out);
}
