//! CONNECT (MQTT 5.0, 3.1.1 and 3.1, each section 3.1).

use super::publish::topic_name;
use super::{DecodeError, finish, overlong_error};
use crate::mqtt::packet::{Connect, QoS, Version, Will};
use crate::mqtt::property::{Place, Properties, Property};
use crate::mqtt::reason::Reason;
use crate::mqtt::wire::Reader;

const RESERVED: u8 = 0x01;
const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_QOS: u8 = 0x18;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USERNAME: u8 = 0x80;

/// The bit of the protocol level with which an MQTT 3 client says that it is a bridge. No specification has it.
pub(in crate::mqtt) const BRIDGE: u8 = 0x80;

/// Reads CONNECT from behind its fixed header, whose length was `overlong` or not.
pub(super) fn connect(mut r: Reader<'_>, overlong: bool) -> Result<Connect<'_>, DecodeError> {
    let (version, bridge) = version(&mut r)?;
    let result = if overlong && version.is_v5() { Err(overlong_error()) } else { body(version, bridge, r) };
    result.map_err(|error| match error {
        DecodeError::Invalid { reason, what, at, .. } => {
            DecodeError::Invalid { reason, what, at, connect: Some(version) }
        }
        other => other,
    })
}

/// The version, and whether the client is a bridge.
fn version(r: &mut Reader<'_>) -> Result<(Version, bool), DecodeError> {
    const V31_BRIDGE: u8 = BRIDGE | 3;
    const V311_BRIDGE: u8 = BRIDGE | 4;
    let name = r.binary("protocol name goes beyond the packet")?;
    if name != b"MQTT" && name != b"MQIsdp" {
        return Err(DecodeError::NotMqtt("unknown protocol name"));
    }
    match (name, r.u8("protocol level is missing")?) {
        (b"MQIsdp", level @ (3 | V31_BRIDGE)) => Ok((Version::V31, level != 3)),
        (b"MQTT", level @ (4 | V311_BRIDGE)) => Ok((Version::V311, level != 4)),
        (b"MQTT", 5) => Ok((Version::V5, false)),
        // A version of this protocol that is newer than all we know reads the CONNACK of the newest (section 3.1.2.2).
        (b"MQTT", level @ 6..) if level != V31_BRIDGE => {
            Err(DecodeError::UnsupportedVersion { level, answer: Version::V5 })
        }
        (_, level) => Err(DecodeError::UnsupportedVersion { level, answer: Version::V311 }),
    }
}

fn body(version: Version, bridge: bool, mut r: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    let v5 = version.is_v5();
    let flags_at = r;
    let flags = r.u8("connect flags are missing")?;
    check_flags(version, flags, &flags_at)?;
    let will_qos =
        QoS::from_bits((flags & WILL_QOS) >> 3).ok_or_else(|| flags_at.malformed("will QoS is 3"))?;
    let clean_start = flags & CLEAN_START != 0;
    let mut packet = Connect {
        version,
        bridge,
        clean_start,
        keep_alive_s: r.u16("keep alive is missing")?,
        session_expiry_s: if v5 || clean_start { 0 } else { u32::MAX },
        receive_maximum: u16::MAX,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        authentication_method: None,
        authentication_data: None,
        properties: Properties::default(),
        client_id: "",
        will: None,
        username: None,
        password: None,
    };
    if v5 {
        packet.properties = Properties::read(&mut r, Place::Connect, |p| match p {
            Property::SessionExpiryInterval(s) => packet.session_expiry_s = s,
            Property::ReceiveMaximum(n) => packet.receive_maximum = n,
            Property::MaximumPacketSize(n) => packet.maximum_packet_size = Some(n),
            Property::TopicAliasMaximum(n) => packet.topic_alias_maximum = n,
            Property::RequestResponseInformation(yes) => packet.request_response_information = yes,
            Property::RequestProblemInformation(yes) => packet.request_problem_information = yes,
            Property::AuthenticationMethod(method) => packet.authentication_method = Some(method),
            Property::AuthenticationData(data) => packet.authentication_data = Some(data),
            _ => (),
        })?;
    }
    let client_id_at = r;
    packet.client_id = r.string("client identifier goes beyond the packet")?;
    if flags & WILL != 0 {
        packet.will = Some(will(v5, will_qos, flags & WILL_RETAIN != 0, &mut r)?);
    }
    // In MQTT 3.1 the remaining length takes precedence over these two flags: the strings may be missing.
    let there = |r: &Reader<'_>| version != Version::V31 || !r.is_empty();
    if flags & USERNAME != 0 && there(&r) {
        packet.username = Some(r.string("user name goes beyond the packet")?);
    }
    if flags & PASSWORD != 0 && there(&r) {
        packet.password = Some(r.binary("password goes beyond the packet")?);
    }
    finish(&r)?;
    // Last, so that only a CONNECT with nothing else wrong is answered with return code 2.
    let may_be_empty = v5 || (version == Version::V311 && clean_start);
    if packet.client_id.is_empty() && !may_be_empty {
        return Err(client_id_at.err(Reason::ClientIdentifierNotValid, "client identifier is empty"));
    }
    Ok(packet)
}

fn check_flags(version: Version, flags: u8, at: &Reader<'_>) -> Result<(), DecodeError> {
    // MQTT 3.1 calls bit 0 unused, not zero.
    if flags & RESERVED != 0 && version != Version::V31 {
        return Err(at.malformed("reserved bit of the connect flags"));
    }
    if flags & WILL == 0 && flags & (WILL_QOS | WILL_RETAIN) != 0 {
        return Err(at.malformed("will QoS or will retain without a will"));
    }
    if flags & PASSWORD != 0 && flags & USERNAME == 0 && !version.is_v5() {
        return Err(at.malformed("password without user name"));
    }
    Ok(())
}

fn will<'a>(v5: bool, qos: QoS, retain: bool, r: &mut Reader<'a>) -> Result<Will<'a>, DecodeError> {
    let mut delay_s = 0;
    let mut message_expiry_s = None;
    let mut is_text = false;
    let mut properties = Properties::default();
    if v5 {
        properties = Properties::read(r, Place::Will, |p| match p {
            Property::WillDelayInterval(s) => delay_s = s,
            Property::MessageExpiryInterval(s) => message_expiry_s = Some(s),
            Property::PayloadFormatIndicator(text) => is_text = text,
            _ => (),
        })?;
    }
    let topic_at = *r;
    let topic = topic_name(r)?;
    if topic.is_empty() {
        return Err(topic_at.err(Reason::TopicNameInvalid, "will topic is empty"));
    }
    let payload_at = *r;
    let payload = r.binary("will payload goes beyond the packet")?;
    if is_text && simdutf8::basic::from_utf8(payload).is_err() {
        return Err(
            payload_at.err(Reason::PayloadFormatInvalid, "will payload is not the UTF-8 it says it is")
        );
    }
    Ok(Will { topic, payload, qos, retain, delay_s, message_expiry_s, properties })
}
