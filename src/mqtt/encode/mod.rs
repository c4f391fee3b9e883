//! Packets a server sends, to bytes. Every function appends one packet to `out`.
//!
//! Never checks what the session decides (which QoS, which packet identifier, whether the client takes packets of that
//! size); never allocates but by growing `out`. The hottest function of the broker lives in `publish`.

mod connack;
mod publish;

pub use connack::{ConnAck, connack};
pub use publish::{Alias, PublishOut, publish, publish_head, publish_len};

use super::decode::kind;
use super::packet::Version;
use super::property::Property;
use super::reason::Reason;
use super::wire::{put_block, put_packet};

/// Which acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// PUBACK, of a QoS 1 PUBLISH.
    PubAck,
    /// PUBREC, the first answer to a QoS 2 PUBLISH.
    PubRec,
    /// PUBREL, the answer to PUBREC.
    PubRel,
    /// PUBCOMP, the answer to PUBREL.
    PubComp,
}

impl AckKind {
    fn first_byte(self) -> u8 {
        match self {
            AckKind::PubAck => kind::PUBACK << 4,
            AckKind::PubRec => kind::PUBREC << 4,
            AckKind::PubRel => kind::PUBREL << 4 | 0x02,
            AckKind::PubComp => kind::PUBCOMP << 4,
        }
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. MQTT 3 has neither reason nor reason string; in MQTT 5 success without a reason
/// string takes the two byte form (section 3.4.2.1).
#[inline]
pub fn ack(
    out: &mut Vec<u8>,
    version: Version,
    ack: AckKind,
    packet_id: u16,
    reason: Reason,
    reason_string: Option<&str>,
) {
    let [hi, lo] = packet_id.to_be_bytes();
    let first = ack.first_byte();
    match reason_string {
        Some(text) if version.is_v5() => put_packet(out, first, |out| {
            out.extend_from_slice(&[hi, lo, reason as u8]);
            put_block(out, |out| Property::ReasonString(text).put(out));
        }),
        _ if reason != Reason::Success && version.is_v5() => {
            out.extend_from_slice(&[first, 3, hi, lo, reason as u8]);
        }
        _ => out.extend_from_slice(&[first, 2, hi, lo]),
    }
}

/// SUBACK: one reason per topic filter, in the order of the SUBSCRIBE. For MQTT 3 every failure is 0x80.
pub fn suback(out: &mut Vec<u8>, version: Version, packet_id: u16, reasons: &[Reason]) {
    put_packet(out, kind::SUBACK << 4, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        if version.is_v5() {
            out.push(0);
            out.extend(reasons.iter().map(|&reason| reason as u8));
        } else {
            out.extend(reasons.iter().map(|reason| reason.suback_v3()));
        }
    });
}

/// UNSUBACK: one reason per topic filter, in the order of the UNSUBSCRIBE; MQTT 3 has none.
pub fn unsuback(out: &mut Vec<u8>, version: Version, packet_id: u16, reasons: &[Reason]) {
    put_packet(out, kind::UNSUBACK << 4, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        if version.is_v5() {
            out.push(0);
            out.extend(reasons.iter().map(|&reason| reason as u8));
        }
    });
}

/// PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind::PINGRESP << 4, 0]);
}

/// DISCONNECT. MQTT 5 only: a server of MQTT 3 just closes. The session expiry interval (seconds) is for clients;
/// a server must not send it (section 3.14.2.2.2).
pub fn disconnect(
    out: &mut Vec<u8>,
    reason: Reason,
    reason_string: Option<&str>,
    server_reference: Option<&str>,
    session_expiry_s: Option<u32>,
) {
    let properties = reason_string.is_some() || server_reference.is_some() || session_expiry_s.is_some();
    put_packet(out, kind::DISCONNECT << 4, |out| {
        if !properties && reason == Reason::Success {
            return;
        }
        out.push(reason as u8);
        if !properties {
            return;
        }
        put_block(out, |out| {
            let properties = [
                session_expiry_s.map(Property::SessionExpiryInterval),
                server_reference.map(Property::ServerReference),
                reason_string.map(Property::ReasonString),
            ];
            properties.iter().flatten().for_each(|property| property.put(out));
        });
    });
}

/// AUTH (MQTT 5 only). The method is that of CONNECT (section 3.15.2.2.2).
pub fn auth(
    out: &mut Vec<u8>,
    reason: Reason,
    method: &str,
    data: Option<&[u8]>,
    reason_string: Option<&str>,
) {
    put_packet(out, kind::AUTH << 4, |out| {
        out.push(reason as u8);
        put_block(out, |out| {
            let properties = [
                Some(Property::AuthenticationMethod(method)),
                data.map(Property::AuthenticationData),
                reason_string.map(Property::ReasonString),
            ];
            properties.iter().flatten().for_each(|property| property.put(out));
        });
    });
}

#[cfg(test)]
mod tests;
