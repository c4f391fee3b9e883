//! The application message: immutable, shared, in one allocation.

use crate::clock::Time;
use crate::mqtt::QoS;
use std::num::NonZeroU64;
use triomphe::ThinArc;

/// An application message as it travels through the broker. Cloning costs one atomic increment.
///
/// Topic, payload and properties live behind one pointer in one allocation, in the order
/// `topic length (2 bytes, big endian) | topic | payload | properties`.
#[derive(Clone)]
pub struct Message(ThinArc<Header, u8>);

#[derive(Clone, Copy)]
struct Header {
    expires_at: Option<NonZeroU64>,
    payload_len: u32,
    topic_len: u16,
    qos: QoS,
    retain: bool,
}

/// What a [`Message`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// A valid topic name, at most 65,535 bytes.
    pub topic: &'a str,
    /// The payload.
    pub payload: &'a [u8],
    /// Properties passed on unaltered to receivers, as validated MQTT 5 bytes without their length prefix: payload
    /// format, content type, response topic, correlation data, user properties (never expiry, topic alias or
    /// subscription identifier). Empty for MQTT 3.
    pub properties: &'a [u8],
    /// QoS of the publish.
    pub qos: QoS,
    /// RETAIN flag of the publish.
    pub retain: bool,
    /// When the message expires (message expiry interval, MQTT 5.0 section 3.3.2.3.3).
    pub expires_at: Option<Time>,
}

impl Message {
    /// Copies `parts` into one allocation.
    ///
    /// A topic longer than 65,535 bytes is cut at the allocation (the decoder never yields one).
    pub fn new(parts: Parts<'_>) -> Message {
        let topic = &parts.topic.as_bytes()[..parts.topic.len().min(u16::MAX as usize)];
        let topic_len = topic.len() as u16;
        let header = Header {
            expires_at: parts.expires_at.and_then(|t| NonZeroU64::new(t.0)),
            payload_len: parts.payload.len() as u32,
            topic_len,
            qos: parts.qos,
            retain: parts.retain,
        };
        let len = 2 + topic.len() + parts.payload.len() + parts.properties.len();
        // The iterator is a plain fill, so this is one allocation, and each byte is copied once.
        let mut arc = ThinArc::from_header_and_iter(header, (0..len).map(|_| 0));
        arc.with_arc_mut(|arc| {
            // The only owner so far: always there.
            let Some(body) = triomphe::Arc::get_mut(arc) else { return };
            let mut rest = body.slice_mut();
            for part in [&topic_len.to_be_bytes()[..], topic, parts.payload, parts.properties] {
                let (here, after) = rest.split_at_mut(part.len());
                here.copy_from_slice(part);
                rest = after;
            }
        });
        Message(arc)
    }

    fn header(&self) -> &Header {
        &self.0.header.header
    }

    /// `topic length (2 bytes, big endian) | topic | payload | properties`: all bytes of the message.
    pub fn body(&self) -> &[u8] {
        &self.0.slice
    }

    /// `topic length (2 bytes, big endian) | topic`, as a PUBLISH starts.
    pub fn topic_wire(&self) -> &[u8] {
        &self.0.slice[..2 + usize::from(self.header().topic_len)]
    }

    /// The topic name.
    pub fn topic(&self) -> &str {
        // Built from a &str in `new`; an empty name is the honest answer should that ever be broken.
        std::str::from_utf8(&self.topic_wire()[2..]).unwrap_or_default()
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        let start = 2 + usize::from(self.header().topic_len);
        &self.0.slice[start..start + self.header().payload_len as usize]
    }

    /// Properties passed on to receivers; see [`Parts::properties`].
    pub fn properties(&self) -> &[u8] {
        let start = 2 + usize::from(self.header().topic_len) + self.header().payload_len as usize;
        &self.0.slice[start..]
    }

    /// QoS of the publish.
    pub fn qos(&self) -> QoS {
        self.header().qos
    }

    /// RETAIN flag of the publish.
    pub fn retain(&self) -> bool {
        self.header().retain
    }

    /// When the message expires, if it does.
    pub fn expires_at(&self) -> Option<Time> {
        self.header().expires_at.map(|t| Time(t.get()))
    }

    /// Whether the message has expired at `now`.
    pub fn expired(&self, now: Time) -> bool {
        self.header().expires_at.is_some_and(|t| t.get() <= now.0)
    }

    /// Bytes of memory this message takes, headers included: what queue limits by bytes count.
    pub fn size(&self) -> usize {
        self.0.slice.len() + std::mem::size_of::<Header>() + 16
    }

    /// The parts of the message.
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            topic: self.topic(),
            payload: self.payload(),
            properties: self.properties(),
            qos: self.qos(),
            retain: self.retain(),
            expires_at: self.expires_at(),
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic())
            .field("payload_len", &self.payload().len())
            .field("qos", &self.qos())
            .field("retain", &self.retain())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Message) -> bool {
        self.0.slice == other.0.slice
            && self.qos() == other.qos()
            && self.retain() == other.retain()
            && self.expires_at() == other.expires_at()
            && self.header().topic_len == other.header().topic_len
            && self.header().payload_len == other.header().payload_len
    }
}
