//! The rules of property blocks: what may stand where, how often, with which values (MQTT 5.0 section 2.2.2).

use super::{Properties, Property};
use crate::mqtt::decode::DecodeError;
use crate::mqtt::reason::Reason;
use crate::mqtt::wire::Reader;

/// Property identifiers (MQTT 5.0 table 2-4).
pub(in crate::mqtt) mod id {
    pub const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// A set of property identifiers.
const fn set(ids: &[u8]) -> u64 {
    let mut bits = 0;
    let mut i = 0;
    while i < ids.len() {
        bits |= 1 << ids[i];
        i += 1;
    }
    bits
}

/// Where a property block stands: which properties it may have (MQTT 5.0 table 2-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Place {
    Connect,
    Will,
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "only a client reads one"))]
    ConnAck,
    /// PUBLISH from a client.
    Publish,
    /// PUBLISH from the server: may have subscription identifiers, several even.
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "only a client reads one"))]
    PublishOut,
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK.
    Ack,
    Subscribe,
    Unsubscribe,
    Disconnect,
    Auth,
}

impl Place {
    const fn allowed(self) -> u64 {
        use id::*;
        match self {
            Place::Connect => set(&[
                SESSION_EXPIRY_INTERVAL,
                AUTHENTICATION_METHOD,
                AUTHENTICATION_DATA,
                REQUEST_PROBLEM_INFORMATION,
                REQUEST_RESPONSE_INFORMATION,
                RECEIVE_MAXIMUM,
                TOPIC_ALIAS_MAXIMUM,
                USER_PROPERTY,
                MAXIMUM_PACKET_SIZE,
            ]),
            Place::Will => FORWARDED | set(&[MESSAGE_EXPIRY_INTERVAL, WILL_DELAY_INTERVAL]),
            Place::ConnAck => set(&[
                SESSION_EXPIRY_INTERVAL,
                ASSIGNED_CLIENT_IDENTIFIER,
                SERVER_KEEP_ALIVE,
                AUTHENTICATION_METHOD,
                AUTHENTICATION_DATA,
                RESPONSE_INFORMATION,
                SERVER_REFERENCE,
                REASON_STRING,
                RECEIVE_MAXIMUM,
                TOPIC_ALIAS_MAXIMUM,
                MAXIMUM_QOS,
                RETAIN_AVAILABLE,
                USER_PROPERTY,
                MAXIMUM_PACKET_SIZE,
                WILDCARD_SUBSCRIPTION_AVAILABLE,
                SUBSCRIPTION_IDENTIFIER_AVAILABLE,
                SHARED_SUBSCRIPTION_AVAILABLE,
            ]),
            Place::Publish | Place::PublishOut => {
                FORWARDED | set(&[MESSAGE_EXPIRY_INTERVAL, SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS])
            }
            Place::Ack => set(&[REASON_STRING, USER_PROPERTY]),
            Place::Subscribe => set(&[SUBSCRIPTION_IDENTIFIER, USER_PROPERTY]),
            Place::Unsubscribe => set(&[USER_PROPERTY]),
            Place::Disconnect => {
                set(&[SESSION_EXPIRY_INTERVAL, SERVER_REFERENCE, REASON_STRING, USER_PROPERTY])
            }
            Place::Auth => set(&[AUTHENTICATION_METHOD, AUTHENTICATION_DATA, REASON_STRING, USER_PROPERTY]),
        }
    }

    const fn repeatable(self) -> u64 {
        match self {
            Place::PublishOut => set(&[id::USER_PROPERTY, id::SUBSCRIPTION_IDENTIFIER]),
            _ => set(&[id::USER_PROPERTY]),
        }
    }
}

/// What a broker passes on unaltered (sections 3.3.2.3 and 3.1.3.2).
pub(super) const FORWARDED: u64 = set(&[
    id::PAYLOAD_FORMAT_INDICATOR,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
]);

impl<'a> Properties<'a> {
    /// Reads the length prefix and the block, checks it against the rules of `place`, and shows each property to
    /// `visit`.
    #[inline]
    pub(in crate::mqtt) fn read(
        r: &mut Reader<'a>,
        place: Place,
        visit: impl FnMut(Property<'a>),
    ) -> Result<Properties<'a>, DecodeError> {
        let len = r.varint("property length is missing")? as usize;
        if len == 0 {
            return Ok(Properties::default());
        }
        Self::read_block(r, len, place, visit)
    }

    fn read_block(
        r: &mut Reader<'a>,
        len: usize,
        place: Place,
        mut visit: impl FnMut(Property<'a>),
    ) -> Result<Properties<'a>, DecodeError> {
        let start = *r;
        let raw = r.take(len, "property length goes beyond the packet")?;
        // Positions in errors count from the frame's start, and no property may reach beyond its block.
        let mut block = start.until(r.at());
        let allowed = place.allowed();
        let repeatable = place.repeatable();
        let mut seen = 0u64;
        while !block.is_empty() {
            let here = block;
            let id = block.u8("property identifier is missing")?;
            let bit = if id < 64 { 1u64 << id } else { 0 };
            if allowed & bit == 0 {
                return Err(here.malformed("property is unknown or not allowed in this packet"));
            }
            if seen & bit & !repeatable != 0 {
                return Err(here.err(Reason::ProtocolError, "property is given more than once"));
            }
            if id == id::SUBSCRIPTION_IDENTIFIER && place == Place::Publish {
                return Err(here.err(Reason::ProtocolError, "subscription identifier in a client's PUBLISH"));
            }
            seen |= bit;
            visit(property(id, &mut block)?);
        }
        if seen & set(&[id::AUTHENTICATION_DATA, id::AUTHENTICATION_METHOD])
            == set(&[id::AUTHENTICATION_DATA])
        {
            return Err(start.err(Reason::ProtocolError, "authentication data without authentication method"));
        }
        Ok(Properties { raw })
    }
}

/// Reads the value of property `id`.
pub(super) fn property<'a>(id: u8, r: &mut Reader<'a>) -> Result<Property<'a>, DecodeError> {
    use Property::*;
    const CUT: &str = "property value goes beyond the property length";
    let here = *r;
    let illegal = |what| here.err(Reason::ProtocolError, what);
    let boolean = |r: &mut Reader<'a>, what| match r.u8(CUT)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(illegal(what)),
    };
    Ok(match id {
        id::PAYLOAD_FORMAT_INDICATOR => {
            PayloadFormatIndicator(boolean(r, "payload format indicator is neither 0 nor 1")?)
        }
        id::MESSAGE_EXPIRY_INTERVAL => MessageExpiryInterval(r.u32(CUT)?),
        id::CONTENT_TYPE => ContentType(r.string(CUT)?),
        id::RESPONSE_TOPIC => {
            let topic = r.string(CUT)?;
            if topic.is_empty() || memchr::memchr2(b'+', b'#', topic.as_bytes()).is_some() {
                return Err(illegal("response topic is empty or has wildcards"));
            }
            ResponseTopic(topic)
        }
        id::CORRELATION_DATA => CorrelationData(r.binary(CUT)?),
        id::SUBSCRIPTION_IDENTIFIER => match r.varint(CUT)? {
            0 => return Err(illegal("subscription identifier is 0")),
            n => SubscriptionIdentifier(n),
        },
        id::SESSION_EXPIRY_INTERVAL => SessionExpiryInterval(r.u32(CUT)?),
        id::ASSIGNED_CLIENT_IDENTIFIER => AssignedClientIdentifier(r.string(CUT)?),
        id::SERVER_KEEP_ALIVE => ServerKeepAlive(r.u16(CUT)?),
        id::AUTHENTICATION_METHOD => AuthenticationMethod(r.string(CUT)?),
        id::AUTHENTICATION_DATA => AuthenticationData(r.binary(CUT)?),
        id::REQUEST_PROBLEM_INFORMATION => {
            RequestProblemInformation(boolean(r, "request problem information is neither 0 nor 1")?)
        }
        id::WILL_DELAY_INTERVAL => WillDelayInterval(r.u32(CUT)?),
        id::REQUEST_RESPONSE_INFORMATION => {
            RequestResponseInformation(boolean(r, "request response information is neither 0 nor 1")?)
        }
        id::RESPONSE_INFORMATION => ResponseInformation(r.string(CUT)?),
        id::SERVER_REFERENCE => ServerReference(r.string(CUT)?),
        id::REASON_STRING => ReasonString(r.string(CUT)?),
        id::RECEIVE_MAXIMUM => match r.u16(CUT)? {
            0 => return Err(illegal("receive maximum is 0")),
            n => ReceiveMaximum(n),
        },
        id::TOPIC_ALIAS_MAXIMUM => TopicAliasMaximum(r.u16(CUT)?),
        id::TOPIC_ALIAS => match r.u16(CUT)? {
            0 => return Err(here.err(Reason::TopicAliasInvalid, "topic alias is 0")),
            n => TopicAlias(n),
        },
        id::MAXIMUM_QOS => match r.u8(CUT)? {
            n @ (0 | 1) => MaximumQoS(n),
            _ => return Err(illegal("maximum QoS is neither 0 nor 1")),
        },
        id::RETAIN_AVAILABLE => RetainAvailable(boolean(r, "retain available is neither 0 nor 1")?),
        id::USER_PROPERTY => UserProperty(r.string(CUT)?, r.string(CUT)?),
        id::MAXIMUM_PACKET_SIZE => match r.u32(CUT)? {
            0 => return Err(illegal("maximum packet size is 0")),
            n => MaximumPacketSize(n),
        },
        id::WILDCARD_SUBSCRIPTION_AVAILABLE => {
            WildcardSubscriptionAvailable(boolean(r, "wildcard subscription available is neither 0 nor 1")?)
        }
        id::SUBSCRIPTION_IDENTIFIER_AVAILABLE => SubscriptionIdentifierAvailable(boolean(
            r,
            "subscription identifier available is neither 0 nor 1",
        )?),
        id::SHARED_SUBSCRIPTION_AVAILABLE => {
            SharedSubscriptionAvailable(boolean(r, "shared subscription available is neither 0 nor 1")?)
        }
        _ => return Err(here.malformed("property is unknown")),
    })
}
