//! PUBLISH to a client (MQTT 5.0 section 3.3): the hottest function of the broker. One reservation, few copies.

use crate::mqtt::decode::kind;
use crate::mqtt::message::Message;
use crate::mqtt::packet::{QoS, Version};
use crate::mqtt::property::id;
use crate::mqtt::wire::{VARINT_MAX, put_varint, varint_len, write_varint};

/// A delivery of a message to one client.
#[derive(Clone, Copy, Debug)]
pub struct PublishOut<'a> {
    /// The client's version. MQTT 3 gets no properties: no alias, expiry or subscription identifier.
    pub version: Version,
    /// The message.
    pub message: &'a Message,
    /// QoS of the delivery.
    pub qos: QoS,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// Whether this is a resend. Not sent at QoS 0.
    pub dup: bool,
    /// Packet identifier; not sent at QoS 0.
    pub packet_id: u16,
    /// Topic alias.
    pub topic_alias: Option<Alias>,
    /// What is left of the message expiry interval, in seconds.
    pub message_expiry_s: Option<u32>,
    /// Identifiers of the subscriptions that matched, each 1 to 268,435,455.
    pub subscription_ids: &'a [u32],
}

/// How a topic alias is used; never 0 and at most the client's topic alias maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// Sent along with the topic name: from now on the alias stands for it.
    Set(u16),
    /// Sent instead of the topic name.
    Use(u16),
}

/// Lengths within a packet, in bytes.
struct Lengths {
    /// The properties without their length prefix.
    properties: usize,
    /// What the fixed header says.
    remaining: usize,
}

impl PublishOut<'_> {
    fn topic_wire(&self) -> &[u8] {
        match self.topic_alias {
            Some(Alias::Use(_)) if self.version.is_v5() => &[0, 0],
            _ => self.message.topic_wire(),
        }
    }

    #[inline]
    fn lengths(&self, topic: usize, payload: usize, forwarded: usize) -> Lengths {
        let mut remaining = topic + payload + if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        if !self.version.is_v5() {
            return Lengths { properties: 0, remaining };
        }
        let mut properties = forwarded;
        if self.topic_alias.is_some() {
            properties += 3;
        }
        if self.message_expiry_s.is_some() {
            properties += 5;
        }
        for &id in self.subscription_ids {
            properties += 1 + varint_len(id);
        }
        remaining += properties + varint_len(properties as u32);
        Lengths { properties, remaining }
    }
}

/// The size on the wire in bytes: to be compared with the client's maximum packet size *before* encoding.
pub fn publish_len(p: &PublishOut<'_>) -> usize {
    let m = p.message;
    let remaining = p.lengths(p.topic_wire().len(), m.payload().len(), m.properties().len()).remaining;
    1 + varint_len(u32::try_from(remaining).unwrap_or(u32::MAX)) + remaining
}

/// Appends the whole PUBLISH. Nothing is appended if [`publish_len`] is more than a packet can be
/// (268,435,460 bytes).
#[inline]
pub fn publish(out: &mut Vec<u8>, p: &PublishOut<'_>) {
    let payload = p.message.payload();
    if head(out, p, payload.len(), payload.len()) {
        out.extend_from_slice(payload);
    }
}

/// Appends everything but the payload, which must follow it on the wire (for vectored writes of large payloads).
pub fn publish_head(out: &mut Vec<u8>, p: &PublishOut<'_>) {
    head(out, p, p.message.payload().len(), 0);
}

#[inline]
fn head(out: &mut Vec<u8>, p: &PublishOut<'_>, payload: usize, reserve: usize) -> bool {
    let topic = p.topic_wire();
    let v5 = p.version.is_v5();
    let forwarded = if v5 { p.message.properties() } else { &[] };
    let Lengths { properties, remaining } = p.lengths(topic.len(), payload, forwarded.len());
    if remaining > VARINT_MAX as usize {
        return false;
    }
    let at_most_once = p.qos == QoS::AtMostOnce;
    let mut length = [0; 4];
    let n = write_varint(&mut length, remaining as u32);
    out.reserve(1 + n + remaining - payload + reserve);
    out.push(
        kind::PUBLISH << 4 | u8::from(p.dup && !at_most_once) << 3 | (p.qos as u8) << 1 | u8::from(p.retain),
    );
    out.extend_from_slice(length.get(..n).unwrap_or_default());
    out.extend_from_slice(topic);
    if !at_most_once {
        out.extend_from_slice(&p.packet_id.to_be_bytes());
    }
    if v5 {
        put_varint(out, properties as u32);
        if properties != forwarded.len() {
            own_properties(out, p);
        }
        out.extend_from_slice(forwarded);
    }
    true
}

/// The properties of this delivery, as against those of the message.
fn own_properties(out: &mut Vec<u8>, p: &PublishOut<'_>) {
    if let Some(Alias::Set(alias) | Alias::Use(alias)) = p.topic_alias {
        let [hi, lo] = alias.to_be_bytes();
        out.extend_from_slice(&[id::TOPIC_ALIAS, hi, lo]);
    }
    if let Some(s) = p.message_expiry_s {
        let [a, b, c, d] = s.to_be_bytes();
        out.extend_from_slice(&[id::MESSAGE_EXPIRY_INTERVAL, a, b, c, d]);
    }
    for &subscription in p.subscription_ids {
        out.push(id::SUBSCRIPTION_IDENTIFIER);
        put_varint(out, subscription);
    }
}
