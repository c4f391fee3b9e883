//! PUBLISH (MQTT 5.0 section 3.3), from either side.

use super::{DecodeError, packet_id};
use crate::mqtt::packet::{Publish, QoS, Version};
use crate::mqtt::property::{Place, Properties, Property};
use crate::mqtt::reason::Reason;
use crate::mqtt::wire::Reader;

/// PUBLISH from a client; `first` was checked.
#[inline]
pub(super) fn publish<'a>(version: Version, first: u8, r: Reader<'a>) -> Result<Publish<'a>, DecodeError> {
    read(version, first, r, Place::Publish)
}

#[inline]
pub(in crate::mqtt) fn read<'a>(
    version: Version,
    first: u8,
    mut r: Reader<'a>,
    place: Place,
) -> Result<Publish<'a>, DecodeError> {
    let start = r;
    let topic = topic_name(&mut r)?;
    let qos = match first & 0x06 {
        0x00 => QoS::AtMostOnce,
        0x02 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    };
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { packet_id(&mut r)? };
    let mut packet = Publish {
        dup: first & 0x08 != 0,
        qos,
        retain: first & 0x01 != 0,
        topic,
        packet_id,
        topic_alias: None,
        message_expiry_s: None,
        properties: Properties::default(),
        payload: &[],
    };
    let mut is_text = false;
    if version.is_v5() {
        packet.properties = Properties::read(&mut r, place, |p| match p {
            Property::TopicAlias(alias) => packet.topic_alias = Some(alias),
            Property::MessageExpiryInterval(s) => packet.message_expiry_s = Some(s),
            Property::PayloadFormatIndicator(text) => is_text = text,
            _ => (),
        })?;
    }
    if topic.is_empty() && packet.topic_alias.is_none() {
        return Err(if version.is_v5() {
            start.err(Reason::ProtocolError, "neither topic name nor topic alias")
        } else {
            start.err(Reason::TopicNameInvalid, "topic name is empty")
        });
    }
    let payload = r;
    packet.payload = r.rest();
    if is_text && simdutf8::basic::from_utf8(packet.payload).is_err() {
        return Err(payload.err(Reason::PayloadFormatInvalid, "payload is not the UTF-8 it says it is"));
    }
    Ok(packet)
}

/// A topic name: a string without wildcards (section 4.7.1); perhaps empty.
#[inline]
pub(super) fn topic_name<'a>(r: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let start = *r;
    let bytes = r.binary("topic name goes beyond the packet")?;
    let Ok(topic) = simdutf8::basic::from_utf8(bytes) else {
        return Err(start.malformed("topic name is not well-formed UTF-8"));
    };
    if memchr::memchr3(0, b'+', b'#', bytes).is_some() {
        return Err(if bytes.contains(&0) {
            start.malformed("topic name contains U+0000")
        } else {
            start.err(Reason::TopicNameInvalid, "topic name has wildcards")
        });
    }
    Ok(topic)
}
