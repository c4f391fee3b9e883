//! Bytes to the packets a client may send. [`frame_len`] finds the frame, [`decode`] reads it.
//!
//! Strict: what the specifications of MQTT 3.1.1 and 5.0 call malformed or a protocol error, and one packet alone can
//! show, is refused. MQTT 3.1 is read as 3.1.1, but for what its specification allows and 3.1.1 forbids. Never checked
//! here: topic filters, the range of topic aliases, receive maximum, the order of packets (except that CONNECT comes
//! first, and once).

mod connect;
mod error;
mod publish;
mod subscribe;

#[cfg(any(test, feature = "testing"))]
pub(super) use connect::BRIDGE;
pub use error::{Answer, DecodeError};
#[cfg(any(test, feature = "testing"))]
pub(super) use publish::read as read_publish;

use super::packet::{Ack, Auth, Disconnect, Packet, Version};
use super::property::{Place, Properties, Property};
use super::reason::Reason;
use super::wire::{Reader, Varint, varint, varint_len};

/// Packet types (MQTT 5.0 table 2-1), in the upper four bits of the first byte.
pub(super) mod kind {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
    pub const AUTH: u8 = 15;
}

/// The length in bytes of the first frame of `buf`, fixed header included, as soon as its header says it; `None` if the
/// header is not complete. The frame itself need not be.
///
/// # Errors
///
/// An impossible first byte, a remaining length of more than four bytes, and a packet larger than `max_packet_size`
/// bytes: each as soon as the header shows it.
#[inline]
pub fn header_len(buf: &[u8], max_packet_size: u32) -> Result<Option<usize>, DecodeError> {
    let Some((&first, rest)) = buf.split_first() else { return Ok(None) };
    check_first(first)?;
    match varint(rest) {
        Varint::Value { value, len } => {
            // Cannot overflow: `value` has 28 bits.
            let total = value + 1 + len as u32;
            if total > max_packet_size {
                return Err(DecodeError::TooLarge { len: total, max: max_packet_size });
            }
            Ok(Some(total as usize))
        }
        Varint::Incomplete => Ok(None),
        Varint::TooLong => {
            Err(DecodeError::invalid(Reason::MalformedPacket, "remaining length of more than four bytes", 1))
        }
    }
}

/// The length in bytes of the first frame of `buf`, fixed header included, if the whole frame is there; `None` if more
/// bytes are needed. `&buf[..len]` is what [`decode`] wants.
///
/// # Errors
///
/// As [`header_len`].
#[inline]
pub fn frame_len(buf: &[u8], max_packet_size: u32) -> Result<Option<usize>, DecodeError> {
    Ok(header_len(buf, max_packet_size)?.filter(|&len| len <= buf.len()))
}

/// The fixed header's flags (MQTT 5.0 section 2.1.3), as far as no version allows them.
#[inline]
pub(super) fn check_first(first: u8) -> Result<(), DecodeError> {
    let flags = first & 0x0F;
    let fine = match first >> 4 {
        0 => false,
        kind::PUBLISH => flags & 0x06 != 0x06 && flags & 0x0E != 0x08,
        // MQTT 3.1 has DUP on these; `decode` knows the version.
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => flags & !0x08 == 0x02,
        _ => flags == 0,
    };
    if fine { Ok(()) } else { Err(first_error(first)) }
}

#[cold]
fn first_error(first: u8) -> DecodeError {
    let what = match first >> 4 {
        0 => "packet type 0 is reserved",
        kind::PUBLISH if first & 0x06 == 0x06 => "QoS 3",
        kind::PUBLISH => "DUP set at QoS 0",
        _ => "reserved flags of the fixed header",
    };
    DecodeError::invalid(Reason::MalformedPacket, what, 0)
}

/// Whether `buf` can be the beginning of a packet on a connection of `version`: before CONNECT, only that can be.
///
/// # Errors
///
/// It is another packet, as soon as its first byte shows it.
#[inline]
pub fn first_or_later(version: Option<Version>, buf: &[u8]) -> Result<(), DecodeError> {
    match buf.first() {
        Some(first) if version.is_none() && first >> 4 != kind::CONNECT => {
            check_first(*first)?;
            Err(DecodeError::NotMqtt("the first packet is not CONNECT"))
        }
        _ => Ok(()),
    }
}

/// Decodes one frame, as measured by [`frame_len`]. `version` is the connection's; `None` before CONNECT, when only
/// CONNECT is accepted.
///
/// # Errors
///
/// See [`DecodeError`]: whatever breaks a rule that this packet alone can break.
#[inline]
pub fn decode<'a>(version: Option<Version>, frame: &'a [u8]) -> Result<Packet<'a>, DecodeError> {
    let mut r = Reader::new(frame, 0);
    let first = r.u8("empty frame")?;
    check_first(first)?;
    let overlong = fixed_header(&mut r)?;
    let Some(version) = version else {
        if first >> 4 != kind::CONNECT {
            return Err(DecodeError::NotMqtt("the first packet is not CONNECT"));
        }
        return connect::connect(r, overlong).map(|c| Packet::Connect(Box::new(c)));
    };
    if overlong && version.is_v5() {
        return Err(overlong_error());
    }
    if first >> 4 == kind::PUBLISH {
        return publish::publish(version, first, r).map(Packet::Publish);
    }
    other(version, first, r)
}

/// Reads the remaining length; says whether it takes more bytes than needed, which only MQTT 5 forbids.
#[inline]
pub(super) fn fixed_header(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    let at = r.at();
    match r.peek_varint() {
        Varint::Value { value, len } => {
            r.take(len, "remaining length")?;
            if r.remaining() != value as usize {
                return Err(DecodeError::invalid(
                    Reason::MalformedPacket,
                    "remaining length is not the frame's",
                    at,
                ));
            }
            Ok(len != varint_len(value))
        }
        _ => Err(r.malformed("remaining length")),
    }
}

#[cold]
pub(super) fn overlong_error() -> DecodeError {
    DecodeError::invalid(Reason::MalformedPacket, "remaining length is longer than it must be", 1)
}

fn other<'a>(version: Version, first: u8, mut r: Reader<'a>) -> Result<Packet<'a>, DecodeError> {
    if first & 0x0F == 0x0A && version != Version::V31 {
        return Err(first_error(first));
    }
    let packet = match first >> 4 {
        kind::PUBACK => Packet::PubAck(ack(version, PUBACK_REASONS, &mut r)?),
        kind::PUBREC => Packet::PubRec(ack(version, PUBACK_REASONS, &mut r)?),
        kind::PUBREL => Packet::PubRel(ack(version, PUBREL_REASONS, &mut r)?),
        kind::PUBCOMP => Packet::PubComp(ack(version, PUBREL_REASONS, &mut r)?),
        kind::SUBSCRIBE => Packet::Subscribe(subscribe::subscribe(version, &mut r)?),
        kind::UNSUBSCRIBE => Packet::Unsubscribe(subscribe::unsubscribe(version, &mut r)?),
        kind::PINGREQ => Packet::PingReq,
        kind::DISCONNECT => Packet::Disconnect(disconnect(version, CLIENT_DISCONNECT_REASONS, &mut r)?),
        kind::AUTH if version.is_v5() => Packet::Auth(client_auth(&mut r)?),
        kind::AUTH => {
            return Err(DecodeError::invalid(Reason::MalformedPacket, "packet type 15 is reserved", 0));
        }
        kind::CONNECT => {
            return Err(DecodeError::invalid(Reason::ProtocolError, "a second CONNECT", 0));
        }
        _ => {
            return Err(DecodeError::invalid(Reason::ProtocolError, "a packet that only servers send", 0));
        }
    };
    finish(&r)?;
    Ok(packet)
}

/// Nothing may follow the last field.
#[inline]
pub(super) fn finish(r: &Reader<'_>) -> Result<(), DecodeError> {
    if r.is_empty() { Ok(()) } else { Err(r.malformed("bytes after the end of the packet")) }
}

/// A packet identifier, which is never 0 (section 2.2.1).
#[inline]
pub(super) fn packet_id(r: &mut Reader<'_>) -> Result<u16, DecodeError> {
    let start = *r;
    match r.u16("packet identifier is missing")? {
        0 => Err(start.err(Reason::ProtocolError, "packet identifier is 0")),
        id => Ok(id),
    }
}

/// Of PUBACK and PUBREC (sections 3.4.2.1, 3.5.2.1).
pub(super) const PUBACK_REASONS: &[Reason] = &[
    Reason::Success,
    Reason::NoMatchingSubscribers,
    Reason::UnspecifiedError,
    Reason::ImplementationSpecificError,
    Reason::NotAuthorized,
    Reason::TopicNameInvalid,
    Reason::PacketIdentifierInUse,
    Reason::QuotaExceeded,
    Reason::PayloadFormatInvalid,
];

/// Of PUBREL and PUBCOMP (sections 3.6.2.1, 3.7.2.1).
pub(super) const PUBREL_REASONS: &[Reason] = &[Reason::Success, Reason::PacketIdentifierNotFound];

/// Of DISCONNECT, as far as a client may send them (section 3.14.2.1).
const CLIENT_DISCONNECT_REASONS: &[Reason] = &[
    Reason::Success,
    Reason::DisconnectWithWill,
    Reason::UnspecifiedError,
    Reason::MalformedPacket,
    Reason::ProtocolError,
    Reason::ImplementationSpecificError,
    Reason::TopicNameInvalid,
    Reason::ReceiveMaximumExceeded,
    Reason::TopicAliasInvalid,
    Reason::PacketTooLarge,
    Reason::MessageRateTooHigh,
    Reason::QuotaExceeded,
    Reason::AdministrativeAction,
    Reason::PayloadFormatInvalid,
];

/// A reason code out of `allowed`.
pub(super) fn reason(r: &mut Reader<'_>, allowed: &[Reason]) -> Result<Reason, DecodeError> {
    let start = *r;
    let code = r.u8("reason code is missing")?;
    Reason::from_code(code)
        .filter(|reason| allowed.contains(reason))
        .ok_or_else(|| start.err(Reason::ProtocolError, "reason code that this packet cannot have"))
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP: two bytes, or three with a reason, or more with properties.
pub(super) fn ack(version: Version, allowed: &[Reason], r: &mut Reader<'_>) -> Result<Ack, DecodeError> {
    let packet_id = packet_id(r)?;
    if r.is_empty() || !version.is_v5() {
        return Ok(Ack { packet_id, reason: Reason::Success });
    }
    let reason = reason(r, allowed)?;
    if !r.is_empty() {
        Properties::read(r, Place::Ack, |_| ())?;
    }
    Ok(Ack { packet_id, reason })
}

pub(super) fn disconnect<'a>(
    version: Version,
    allowed: &[Reason],
    r: &mut Reader<'a>,
) -> Result<Disconnect<'a>, DecodeError> {
    let mut packet =
        Disconnect { reason: Reason::Success, session_expiry_s: None, properties: Properties::default() };
    if !version.is_v5() || r.is_empty() {
        return Ok(packet);
    }
    packet.reason = reason(r, allowed)?;
    if !r.is_empty() {
        packet.properties = Properties::read(r, Place::Disconnect, |p| {
            if let Property::SessionExpiryInterval(s) = p {
                packet.session_expiry_s = Some(s);
            }
        })?;
    }
    Ok(packet)
}

fn client_auth<'a>(r: &mut Reader<'a>) -> Result<Auth<'a>, DecodeError> {
    let start = *r;
    // Left out, the reason is Success, which only servers may send.
    let packet = auth(&[Reason::ContinueAuthentication, Reason::ReAuthenticate], r)?;
    if packet.reason == Reason::Success {
        return Err(start.err(Reason::ProtocolError, "AUTH without reason code from a client"));
    }
    Ok(packet)
}

/// AUTH (section 3.15). Without a reason code it is Success and has no properties.
pub(super) fn auth<'a>(allowed: &[Reason], r: &mut Reader<'a>) -> Result<Auth<'a>, DecodeError> {
    let mut packet =
        Auth { reason: Reason::Success, method: None, data: None, properties: Properties::default() };
    if r.is_empty() {
        return Ok(packet);
    }
    packet.reason = reason(r, allowed)?;
    let start = *r;
    packet.properties = Properties::read(r, Place::Auth, |p| match p {
        Property::AuthenticationMethod(method) => packet.method = Some(method),
        Property::AuthenticationData(data) => packet.data = Some(data),
        _ => (),
    })?;
    if packet.method.is_none() {
        return Err(start.err(Reason::ProtocolError, "AUTH without authentication method"));
    }
    Ok(packet)
}

#[cfg(test)]
mod tests;
