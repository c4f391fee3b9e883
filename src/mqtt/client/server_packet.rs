//! What a server sends, decoded with the same strictness as [`crate::mqtt::decode`].

use crate::mqtt::decode::{
    self, DecodeError, PUBACK_REASONS, PUBREL_REASONS, finish, fixed_header, kind, packet_id, read_publish,
};
use crate::mqtt::packet::{Ack, Auth, Disconnect, Publish, Version};
use crate::mqtt::property::{Place, Properties};
use crate::mqtt::reason::Reason;
use crate::mqtt::wire::Reader;

/// A packet a server may send. Everything is borrowed from the frame.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names are the specification's
pub enum ServerPacket<'a> {
    ConnAck(ConnAckIn<'a>),
    Publish(Publish<'a>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    SubAck(SubAck<'a>),
    UnsubAck(SubAck<'a>),
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// CONNACK as received.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnAckIn<'a> {
    /// Session present flag.
    pub session_present: bool,
    /// The outcome; for MQTT 3 by [`Reason::from_connack_v3`].
    pub reason: Reason,
    /// All properties.
    pub properties: Properties<'a>,
}

/// SUBACK or UNSUBACK as received.
#[derive(Clone, Debug, PartialEq)]
pub struct SubAck<'a> {
    /// Packet identifier.
    pub packet_id: u16,
    /// All properties.
    pub properties: Properties<'a>,
    /// The reason codes as sent: at least one, except in an UNSUBACK of MQTT 3, which has none.
    pub codes: &'a [u8],
}

impl SubAck<'_> {
    /// The reasons, in the order of the request. 0x80 is [`Reason::UnspecifiedError`] in every version.
    pub fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.codes.iter().filter_map(|&code| Reason::from_code(code))
    }
}

/// Section 3.2.2.2.
const CONNACK_REASONS: &[Reason] = &[
    Reason::Success,
    Reason::UnspecifiedError,
    Reason::MalformedPacket,
    Reason::ProtocolError,
    Reason::ImplementationSpecificError,
    Reason::UnsupportedProtocolVersion,
    Reason::ClientIdentifierNotValid,
    Reason::BadUserNameOrPassword,
    Reason::NotAuthorized,
    Reason::ServerUnavailable,
    Reason::ServerBusy,
    Reason::Banned,
    Reason::BadAuthenticationMethod,
    Reason::TopicNameInvalid,
    Reason::PacketTooLarge,
    Reason::QuotaExceeded,
    Reason::PayloadFormatInvalid,
    Reason::RetainNotSupported,
    Reason::QoSNotSupported,
    Reason::UseAnotherServer,
    Reason::ServerMoved,
    Reason::ConnectionRateExceeded,
];

/// Section 3.9.3.
const SUBACK_REASONS: &[Reason] = &[
    Reason::Success,
    Reason::GrantedQoS1,
    Reason::GrantedQoS2,
    Reason::UnspecifiedError,
    Reason::ImplementationSpecificError,
    Reason::NotAuthorized,
    Reason::TopicFilterInvalid,
    Reason::PacketIdentifierInUse,
    Reason::QuotaExceeded,
    Reason::SharedSubscriptionsNotSupported,
    Reason::SubscriptionIdentifiersNotSupported,
    Reason::WildcardSubscriptionsNotSupported,
];

/// MQTT 3.1.1 section 3.9.3.
const SUBACK_REASONS_V3: &[Reason] =
    &[Reason::Success, Reason::GrantedQoS1, Reason::GrantedQoS2, Reason::UnspecifiedError];

/// Section 3.11.3.
const UNSUBACK_REASONS: &[Reason] = &[
    Reason::Success,
    Reason::NoSubscriptionExisted,
    Reason::UnspecifiedError,
    Reason::ImplementationSpecificError,
    Reason::NotAuthorized,
    Reason::TopicFilterInvalid,
    Reason::PacketIdentifierInUse,
];

/// Section 3.14.2.1, as far as a server may send them.
const DISCONNECT_REASONS: &[Reason] = &[
    Reason::Success,
    Reason::UnspecifiedError,
    Reason::MalformedPacket,
    Reason::ProtocolError,
    Reason::ImplementationSpecificError,
    Reason::NotAuthorized,
    Reason::ServerBusy,
    Reason::ServerShuttingDown,
    Reason::KeepAliveTimeout,
    Reason::SessionTakenOver,
    Reason::TopicFilterInvalid,
    Reason::TopicNameInvalid,
    Reason::ReceiveMaximumExceeded,
    Reason::TopicAliasInvalid,
    Reason::PacketTooLarge,
    Reason::MessageRateTooHigh,
    Reason::QuotaExceeded,
    Reason::AdministrativeAction,
    Reason::PayloadFormatInvalid,
    Reason::RetainNotSupported,
    Reason::QoSNotSupported,
    Reason::UseAnotherServer,
    Reason::ServerMoved,
    Reason::SharedSubscriptionsNotSupported,
    Reason::ConnectionRateExceeded,
    Reason::MaximumConnectTime,
    Reason::SubscriptionIdentifiersNotSupported,
    Reason::WildcardSubscriptionsNotSupported,
];

/// Decodes one frame from a server, as measured by [`crate::mqtt::frame_len`].
///
/// # Errors
///
/// Whatever the specification forbids a server to send, as far as this packet alone shows it.
pub fn decode(version: Version, frame: &[u8]) -> Result<ServerPacket<'_>, DecodeError> {
    let mut r = Reader::new(frame, 0);
    let first = r.u8("empty frame")?;
    decode::check_first(first)?;
    if fixed_header(&mut r)? && version.is_v5() {
        return Err(decode::overlong_error());
    }
    let r = &mut r;
    let packet = match first >> 4 {
        kind::CONNACK => ServerPacket::ConnAck(connack(version, r)?),
        kind::PUBLISH => {
            return read_publish(version, first, *r, Place::PublishOut).map(ServerPacket::Publish);
        }
        kind::PUBACK => ServerPacket::PubAck(decode::ack(version, PUBACK_REASONS, r)?),
        kind::PUBREC => ServerPacket::PubRec(decode::ack(version, PUBACK_REASONS, r)?),
        kind::PUBREL if first & 0x08 == 0 || version == Version::V31 => {
            ServerPacket::PubRel(decode::ack(version, PUBREL_REASONS, r)?)
        }
        kind::PUBCOMP => ServerPacket::PubComp(decode::ack(version, PUBREL_REASONS, r)?),
        kind::SUBACK => ServerPacket::SubAck(suback(
            version,
            r,
            if version.is_v5() { SUBACK_REASONS } else { SUBACK_REASONS_V3 },
        )?),
        kind::UNSUBACK if version.is_v5() => ServerPacket::UnsubAck(suback(version, r, UNSUBACK_REASONS)?),
        kind::UNSUBACK => {
            let packet_id = packet_id(r)?;
            ServerPacket::UnsubAck(SubAck { packet_id, properties: Properties::default(), codes: &[] })
        }
        kind::PINGRESP => ServerPacket::PingResp,
        kind::DISCONNECT if version.is_v5() => {
            let packet = decode::disconnect(version, DISCONNECT_REASONS, r)?;
            if packet.session_expiry_s.is_some() {
                return Err(r.err(Reason::ProtocolError, "session expiry interval in a server's DISCONNECT"));
            }
            ServerPacket::Disconnect(packet)
        }
        kind::AUTH if version.is_v5() => {
            ServerPacket::Auth(decode::auth(&[Reason::Success, Reason::ContinueAuthentication], r)?)
        }
        _ => {
            return Err(DecodeError::invalid(Reason::ProtocolError, "a packet that a server never sends", 0));
        }
    };
    finish(r)?;
    Ok(packet)
}

fn connack<'a>(version: Version, r: &mut Reader<'a>) -> Result<ConnAckIn<'a>, DecodeError> {
    let flags_at = *r;
    let flags = r.u8("connack flags are missing")?;
    if flags > 1 {
        return Err(flags_at.malformed("reserved connack flags"));
    }
    let session_present = flags == 1;
    let code_at = *r;
    let (reason, properties) = if version.is_v5() {
        let reason = decode::reason(r, CONNACK_REASONS)?;
        (reason, Properties::read(r, Place::ConnAck, |_| ())?)
    } else {
        let code = r.u8("connack return code is missing")?;
        let reason = Reason::from_connack_v3(code)
            .ok_or_else(|| code_at.err(Reason::ProtocolError, "unknown return code"))?;
        (reason, Properties::default())
    };
    if session_present && reason != Reason::Success {
        return Err(flags_at.err(Reason::ProtocolError, "session present in a refusal"));
    }
    Ok(ConnAckIn { session_present, reason, properties })
}

fn suback<'a>(version: Version, r: &mut Reader<'a>, allowed: &[Reason]) -> Result<SubAck<'a>, DecodeError> {
    let packet_id = packet_id(r)?;
    let mut properties = Properties::default();
    if version.is_v5() {
        properties = Properties::read(r, Place::Ack, |_| ())?;
    }
    if r.is_empty() {
        return Err(r.err(Reason::ProtocolError, "no reason code"));
    }
    let mut check = *r;
    while !check.is_empty() {
        decode::reason(&mut check, allowed)?;
    }
    Ok(SubAck { packet_id, properties, codes: r.rest() })
}
