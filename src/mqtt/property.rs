//! MQTT 5 properties (section 2.2.2): one validated raw slice per packet, read again only where somebody asks.
//!
//! Never copies a block, except where a forwarded one has holes.

use super::decode::DecodeError;
use super::reason::Reason;
use super::wire::{Reader, put_binary, put_str, put_varint};
use std::borrow::Cow;

/// A validated property block, without its length prefix.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    raw: &'a [u8],
}

/// One property (MQTT 5.0 table 2-4). Intervals and keep alive are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the specification's
pub enum Property<'a> {
    PayloadFormatIndicator(bool),
    MessageExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(u8),
    RetainAvailable(bool),
    UserProperty(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifierAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

/// Property identifiers (MQTT 5.0 table 2-4).
pub(super) mod id {
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

impl Property<'_> {
    /// Appends the property as it stands on the wire.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        use Property::*;
        match *self {
            PayloadFormatIndicator(v) => out.extend([id::PAYLOAD_FORMAT_INDICATOR, u8::from(v)]),
            MessageExpiryInterval(v) => put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, v),
            ContentType(v) => put_text(out, id::CONTENT_TYPE, v),
            ResponseTopic(v) => put_text(out, id::RESPONSE_TOPIC, v),
            CorrelationData(v) => put_data(out, id::CORRELATION_DATA, v),
            SubscriptionIdentifier(v) => {
                out.push(id::SUBSCRIPTION_IDENTIFIER);
                put_varint(out, v);
            }
            SessionExpiryInterval(v) => put_u32(out, id::SESSION_EXPIRY_INTERVAL, v),
            AssignedClientIdentifier(v) => put_text(out, id::ASSIGNED_CLIENT_IDENTIFIER, v),
            ServerKeepAlive(v) => put_u16(out, id::SERVER_KEEP_ALIVE, v),
            AuthenticationMethod(v) => put_text(out, id::AUTHENTICATION_METHOD, v),
            AuthenticationData(v) => put_data(out, id::AUTHENTICATION_DATA, v),
            RequestProblemInformation(v) => out.extend([id::REQUEST_PROBLEM_INFORMATION, u8::from(v)]),
            WillDelayInterval(v) => put_u32(out, id::WILL_DELAY_INTERVAL, v),
            RequestResponseInformation(v) => out.extend([id::REQUEST_RESPONSE_INFORMATION, u8::from(v)]),
            ResponseInformation(v) => put_text(out, id::RESPONSE_INFORMATION, v),
            ServerReference(v) => put_text(out, id::SERVER_REFERENCE, v),
            ReasonString(v) => put_text(out, id::REASON_STRING, v),
            ReceiveMaximum(v) => put_u16(out, id::RECEIVE_MAXIMUM, v),
            TopicAliasMaximum(v) => put_u16(out, id::TOPIC_ALIAS_MAXIMUM, v),
            TopicAlias(v) => put_u16(out, id::TOPIC_ALIAS, v),
            MaximumQoS(v) => out.extend([id::MAXIMUM_QOS, v]),
            RetainAvailable(v) => out.extend([id::RETAIN_AVAILABLE, u8::from(v)]),
            UserProperty(name, value) => {
                put_text(out, id::USER_PROPERTY, name);
                put_str(out, value);
            }
            MaximumPacketSize(v) => put_u32(out, id::MAXIMUM_PACKET_SIZE, v),
            WildcardSubscriptionAvailable(v) => {
                out.extend([id::WILDCARD_SUBSCRIPTION_AVAILABLE, u8::from(v)]);
            }
            SubscriptionIdentifierAvailable(v) => {
                out.extend([id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, u8::from(v)]);
            }
            SharedSubscriptionAvailable(v) => out.extend([id::SHARED_SUBSCRIPTION_AVAILABLE, u8::from(v)]),
        }
    }
}

fn put_u16(out: &mut Vec<u8>, id: u8, value: u16) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u32(out: &mut Vec<u8>, id: u8, value: u32) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, id: u8, text: &str) {
    out.push(id);
    put_str(out, text);
}

fn put_data(out: &mut Vec<u8>, id: u8, bytes: &[u8]) {
    out.push(id);
    put_binary(out, bytes);
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
pub(super) enum Place {
    Connect,
    Will,
    ConnAck,
    /// PUBLISH from a client.
    Publish,
    /// PUBLISH from the server: may have subscription identifiers, several even.
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
const FORWARDED: u64 = set(&[
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
    pub(super) fn read(
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

    /// The block, without its length prefix.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Whether there is no property.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The properties, in the order sent.
    pub fn iter(&self) -> Iter<'a> {
        Iter { block: Reader::new(self.raw, 0) }
    }

    /// The user properties, in the order sent.
    pub fn user_properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.iter().filter_map(|p| match p {
            Property::UserProperty(name, value) => Some((name, value)),
            _ => None,
        })
    }

    /// Of the properties of a PUBLISH or a will: those passed on to receivers, unaltered and in order (payload format
    /// indicator, content type, response topic, correlation data, user properties). Borrowed unless something in the
    /// middle must go.
    #[inline]
    pub fn forwardable(&self) -> Cow<'a, [u8]> {
        if self.raw.is_empty() {
            return Cow::Borrowed(&[]);
        }
        self.forwardable_of_some()
    }

    fn forwardable_of_some(&self) -> Cow<'a, [u8]> {
        let mut kept = Cow::Borrowed(&[][..]);
        let (mut start, mut end) = (0, 0); // the run of kept properties that is not yet in `kept`
        let mut block = Reader::new(self.raw, 0);
        while let Some(id) = self.raw.get(block.at()) {
            let at = block.at();
            if next(&mut block).is_none() {
                break;
            }
            if FORWARDED & (1u64 << (id & 63)) != 0 {
                if end != at {
                    append(&mut kept, self.raw.get(start..end).unwrap_or_default());
                    start = at;
                }
                end = block.at();
            }
        }
        append(&mut kept, self.raw.get(start..end).unwrap_or_default());
        kept
    }
}

fn append<'a>(kept: &mut Cow<'a, [u8]>, run: &'a [u8]) {
    if kept.is_empty() {
        *kept = Cow::Borrowed(run);
    } else if !run.is_empty() {
        kept.to_mut().extend_from_slice(run);
    }
}

impl std::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The properties of a block, in the order sent.
#[derive(Clone)]
pub struct Iter<'a> {
    block: Reader<'a>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        next(&mut self.block)
    }
}

/// The next property of a block that was validated when it was read.
fn next<'a>(block: &mut Reader<'a>) -> Option<Property<'a>> {
    let id = block.u8("").ok()?;
    property(id, block).ok()
}

/// Reads the value of property `id`.
fn property<'a>(id: u8, r: &mut Reader<'a>) -> Result<Property<'a>, DecodeError> {
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
