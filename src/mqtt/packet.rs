//! Control packets as the decoder yields them: borrowed from the frame, already validated.

use super::property::Properties;
use super::reason::Reason;

/// Protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// MQTT 3.1 (protocol name `MQIsdp`, level 3).
    V31,
    /// MQTT 3.1.1 (level 4).
    V311,
    /// MQTT 5.0 (level 5).
    V5,
}

impl Version {
    /// Whether this is MQTT 5.
    pub fn is_v5(self) -> bool {
        self == Version::V5
    }

    /// The version as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Version::V31 => "3.1",
            Version::V311 => "3.1.1",
            Version::V5 => "5.0",
        }
    }

    /// The protocol level of CONNECT.
    pub fn level(self) -> u8 {
        match self {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        }
    }
}

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of two bits; `None` for 3.
    pub fn from_bits(bits: u8) -> Option<QoS> {
        match bits {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}

/// A packet a client may send. Everything is borrowed from the frame.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names are the specification's
pub enum Packet<'a> {
    Connect(Box<Connect<'a>>),
    Publish(Publish<'a>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    PingReq,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// CONNECT (MQTT 5.0 section 3.1, MQTT 3.1.1 section 3.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    /// Protocol version.
    pub version: Version,
    /// Whether the client says that it is a bridge: the highest bit of the protocol level of MQTT 3, as mosquitto sends it.
    pub bridge: bool,
    /// Clean start (5.0) or clean session (3.1.1).
    pub clean_start: bool,
    /// Keep alive, seconds; 0 = off.
    pub keep_alive_s: u16,
    /// Session expiry interval, seconds: 5.0's property (0 if absent); for MQTT 3, 0 if clean session else `u32::MAX`.
    pub session_expiry_s: u32,
    /// Receive maximum; 65,535 if absent.
    pub receive_maximum: u16,
    /// Maximum packet size the client accepts, bytes.
    pub maximum_packet_size: Option<u32>,
    /// Topic alias maximum; 0 if absent.
    pub topic_alias_maximum: u16,
    /// Request response information.
    pub request_response_information: bool,
    /// Request problem information; true if absent.
    pub request_problem_information: bool,
    /// Authentication method of enhanced authentication.
    pub authentication_method: Option<&'a str>,
    /// Authentication data of enhanced authentication.
    pub authentication_data: Option<&'a [u8]>,
    /// All CONNECT properties (user properties among them).
    pub properties: Properties<'a>,
    /// Client identifier; may be empty.
    pub client_id: &'a str,
    /// The will, if any.
    pub will: Option<Will<'a>>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
}

/// The will of a CONNECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Will<'a> {
    /// Will topic: a valid topic name.
    pub topic: &'a str,
    /// Will payload.
    pub payload: &'a [u8],
    /// Will QoS.
    pub qos: QoS,
    /// Will retain.
    pub retain: bool,
    /// Will delay interval, seconds.
    pub delay_s: u32,
    /// Message expiry interval, seconds.
    pub message_expiry_s: Option<u32>,
    /// All will properties, will delay and message expiry among them.
    pub properties: Properties<'a>,
}

/// PUBLISH (MQTT 5.0 section 3.3).
#[derive(Clone, Debug, PartialEq)]
pub struct Publish<'a> {
    /// DUP flag.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic name, valid; empty only with a topic alias.
    pub topic: &'a str,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// Topic alias, never 0.
    pub topic_alias: Option<u16>,
    /// Message expiry interval, seconds.
    pub message_expiry_s: Option<u32>,
    /// All properties. Use [`Properties::forwardable`] for what is passed on.
    pub properties: Properties<'a>,
    /// Payload.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Packet identifier, never 0.
    pub packet_id: u16,
    /// Reason; `Success` if left out or MQTT 3.
    pub reason: Reason,
}

/// SUBSCRIBE. The entries were validated; iterate them with [`Subscribe::filters`] (in `decode`).
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe<'a> {
    /// Packet identifier, never 0.
    pub packet_id: u16,
    /// Subscription identifier, 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// All properties.
    pub properties: Properties<'a>,
    /// The payload: validated, at least one entry.
    pub(super) entries: &'a [u8],
}

/// One entry of a SUBSCRIBE. The filter is valid UTF-8 but *not* yet checked as a topic filter: the session does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeFilter<'a> {
    /// The topic filter as sent, `$share/…` included.
    pub filter: &'a str,
    /// Subscription options.
    pub options: SubscribeOptions,
}

/// Subscription options (MQTT 5.0 section 3.8.3.1). MQTT 3 has only `qos`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscribeOptions {
    /// Maximum QoS.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Retain Handling.
    pub retain_handling: RetainHandling,
}

/// Retain Handling of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// Send retained messages at each subscribe.
    Send = 0,
    /// Send them only if the subscription is new.
    SendIfNew = 1,
    /// Send none.
    DoNotSend = 2,
}

impl SubscribeOptions {
    /// The options byte of MQTT 5.0 section 3.8.3.1.
    pub fn to_bits(self) -> u8 {
        self.qos as u8
            | u8::from(self.no_local) << 2
            | u8::from(self.retain_as_published) << 3
            | (self.retain_handling as u8) << 4
    }

    /// From the options byte; `None` if a reserved value is used.
    pub fn from_bits(bits: u8) -> Option<SubscribeOptions> {
        if bits & 0xC0 != 0 {
            return None;
        }
        Some(SubscribeOptions {
            qos: QoS::from_bits(bits & 3)?,
            no_local: bits & 4 != 0,
            retain_as_published: bits & 8 != 0,
            retain_handling: match bits >> 4 & 3 {
                0 => RetainHandling::Send,
                1 => RetainHandling::SendIfNew,
                2 => RetainHandling::DoNotSend,
                _ => return None,
            },
        })
    }
}

/// UNSUBSCRIBE. Iterate the filters with [`Unsubscribe::filters`] (in `decode`).
#[derive(Clone, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    /// Packet identifier, never 0.
    pub packet_id: u16,
    /// All properties.
    pub properties: Properties<'a>,
    /// The payload: validated, at least one filter.
    pub(super) entries: &'a [u8],
}

/// DISCONNECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Disconnect<'a> {
    /// Reason; `Success` if left out or MQTT 3.
    pub reason: Reason,
    /// Session expiry interval, seconds.
    pub session_expiry_s: Option<u32>,
    /// All properties.
    pub properties: Properties<'a>,
}

/// AUTH (MQTT 5.0 section 3.15).
#[derive(Clone, Debug, PartialEq)]
pub struct Auth<'a> {
    /// Reason.
    pub reason: Reason,
    /// Authentication method.
    pub method: Option<&'a str>,
    /// Authentication data.
    pub data: Option<&'a [u8]>,
    /// All properties.
    pub properties: Properties<'a>,
}
