//! Arbitrary valid packets, both ways and in every version, for property tests.

use berth::mqtt::client;
use berth::mqtt::encode::{self, AckKind, Alias, PublishOut};
use berth::mqtt::message::Parts;
use berth::mqtt::packet::SubscribeOptions;
use berth::mqtt::{Message, QoS, Reason, Version};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

pub fn version() -> impl Strategy<Value = Version> {
    select(&[Version::V31, Version::V311, Version::V5][..])
}

pub fn qos() -> impl Strategy<Value = QoS> {
    select(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][..])
}

/// Any string without U+0000.
pub fn text() -> impl Strategy<Value = String> {
    let char = prop_oneof![3 => prop::char::range('a', 'e'), 1 => any::<char>()];
    vec(char.prop_filter("U+0000", |&c| c != '\0'), 0..6).prop_map(|chars| chars.into_iter().collect())
}

/// A topic name.
pub fn topic() -> impl Strategy<Value = String> {
    text().prop_map(|t| {
        let t = t.replace(['+', '#'], "/");
        if t.is_empty() { "t".to_owned() } else { t }
    })
}

pub fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![9 => vec(any::<u8>(), 0..20), 1 => vec(any::<u8>(), 100..300)]
}

fn packet_id() -> impl Strategy<Value = u16> {
    1..=u16::MAX
}

/// A property block: identifiers and encoded values, made without the code under test.
#[derive(Clone, Debug, Default)]
pub struct Block(pub Vec<(u8, Vec<u8>)>);

impl Block {
    pub fn raw(&self) -> Vec<u8> {
        self.only(|_| true)
    }

    /// The block with only some of its properties.
    pub fn only(&self, keep: impl Fn(u8) -> bool) -> Vec<u8> {
        let mut raw = Vec::new();
        for (id, value) in self.0.iter().filter(|(id, _)| keep(*id)) {
            raw.push(*id);
            raw.extend_from_slice(value);
        }
        raw
    }

    pub fn get(&self, id: u8) -> Option<&[u8]> {
        self.0.iter().find(|p| p.0 == id).map(|p| &p.1[..])
    }

    fn says_text(&self) -> bool {
        self.get(0x01) == Some(&[1])
    }
}

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

fn value(id: u8) -> BoxedStrategy<Vec<u8>> {
    let string = || text().prop_map(|t| prefixed(t.as_bytes()));
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => (0..=1u8).prop_map(|b| vec![b]).boxed(),
        0x02 | 0x11 | 0x18 => any::<u32>().prop_map(|n| n.to_be_bytes().to_vec()).boxed(),
        0x27 => (1..=u32::MAX).prop_map(|n| n.to_be_bytes().to_vec()).boxed(),
        0x13 | 0x22 => any::<u16>().prop_map(|n| n.to_be_bytes().to_vec()).boxed(),
        0x21 | 0x23 => (1..=u16::MAX).prop_map(|n| n.to_be_bytes().to_vec()).boxed(),
        0x0B => prop_oneof![
            (1..=127u8).prop_map(|b| vec![b]),
            (0x80..=0xFFu8, 1..=127u8).prop_map(|(a, b)| vec![a, b]),
            Just(vec![0xFF, 0xFF, 0xFF, 0x7F]),
        ]
        .boxed(),
        0x09 | 0x16 => bytes().prop_map(|b| prefixed(&b)).boxed(),
        0x08 => topic().prop_map(|t| prefixed(t.as_bytes())).boxed(),
        0x26 => (string(), string()).prop_map(|(name, value)| [name, value].concat()).boxed(),
        _ => string().boxed(),
    }
}

/// A block with some of these properties in any order.
fn block(ids: &'static [u8]) -> impl Strategy<Value = Block> {
    subsequence(ids, 0..=ids.len())
        .prop_shuffle()
        .prop_flat_map(|ids| ids.into_iter().map(|id| (Just(id), value(id))).collect::<Vec<_>>())
        .prop_map(|mut block| {
            if !block.iter().any(|p| p.0 == 0x15) {
                block.retain(|p| p.0 != 0x16);
            }
            Block(block)
        })
}

/// A block, empty for MQTT 3.
fn block_of(version: Version, ids: &'static [u8]) -> BoxedStrategy<Block> {
    if version.is_v5() {
        prop_oneof![Just(Block::default()), block(ids)].boxed()
    } else {
        Just(Block::default()).boxed()
    }
}

const CONNECT: &[u8] = &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x26, 0x27];
const WILL: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26, 0x26];
const PUBLISH: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26, 0x26];
pub const CONNACK: &[u8] = &[
    0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x26, 0x27, 0x28, 0x29,
    0x2A,
];
const DISCONNECT: &[u8] = &[0x11, 0x1C, 0x1F, 0x26, 0x26];
const AUTH: &[u8] = &[0x16, 0x1F, 0x26, 0x26];
/// What is passed on.
pub const FORWARDED: &[u8] = &[0x01, 0x03, 0x08, 0x09, 0x26];

/// A packet from a client.
#[derive(Clone, Debug)]
pub enum FromClient {
    Connect {
        clean_start: bool,
        keep_alive_s: u16,
        properties: Block,
        client_id: String,
        will: Option<Will>,
        username: Option<String>,
        password: Option<Vec<u8>>,
    },
    Publish(Publish),
    Ack {
        kind: AckKind,
        packet_id: u16,
        reason: Reason,
        reason_string: Option<String>,
    },
    Subscribe {
        packet_id: u16,
        properties: Block,
        filters: Vec<(String, SubscribeOptions)>,
    },
    Unsubscribe {
        packet_id: u16,
        properties: Block,
        filters: Vec<String>,
    },
    PingReq,
    Disconnect {
        /// Without it the short form.
        reason: Option<Reason>,
        properties: Block,
    },
    Auth {
        reason: Reason,
        properties: Block,
    },
}

#[derive(Clone, Debug)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: QoS,
    pub retain: bool,
    pub properties: Block,
}

#[derive(Clone, Debug)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: QoS,
    pub retain: bool,
    pub dup: bool,
    pub packet_id: u16,
    pub properties: Block,
}

fn will(version: Version) -> impl Strategy<Value = Will> {
    (topic(), bytes(), qos(), any::<bool>(), block_of(version, WILL)).prop_map(
        |(topic, payload, qos, retain, properties)| {
            let payload = if properties.says_text() { vec![b'x'; payload.len()] } else { payload };
            Will { topic, payload, qos, retain, properties }
        },
    )
}

fn connect(version: Version) -> impl Strategy<Value = FromClient> {
    let head = (any::<bool>(), any::<u16>(), block_of(version, CONNECT), text());
    let tail = (option::of(will(version)), option::of(text()), option::of(bytes()));
    (head, tail).prop_map(move |((clean_start, keep_alive_s, properties, id), (will, username, password))| {
        let may_be_empty = version.is_v5() || (version == Version::V311 && clean_start);
        let client_id = if id.is_empty() && !may_be_empty { "c".to_owned() } else { id };
        let password = password.filter(|_| version.is_v5() || username.is_some());
        FromClient::Connect { clean_start, keep_alive_s, properties, client_id, will, username, password }
    })
}

pub fn publish(version: Version) -> impl Strategy<Value = Publish> {
    let head = (topic(), bytes(), qos(), any::<[bool; 3]>(), packet_id());
    (head, block_of(version, PUBLISH)).prop_map(
        |((topic, payload, qos, [retain, dup, no_topic], packet_id), properties)| Publish {
            topic: if no_topic && properties.get(0x23).is_some() { String::new() } else { topic },
            payload: if properties.says_text() { "é".repeat(payload.len()).into_bytes() } else { payload },
            qos,
            retain,
            dup: dup && qos != QoS::AtMostOnce,
            packet_id: if qos == QoS::AtMostOnce { 0 } else { packet_id },
            properties,
        },
    )
}

fn ack(version: Version) -> impl Strategy<Value = FromClient> {
    let kinds = &[AckKind::PubAck, AckKind::PubRec, AckKind::PubRel, AckKind::PubComp][..];
    (select(kinds), packet_id(), any::<bool>(), option::of(text())).prop_map(
        move |(kind, packet_id, fine, reason_string)| {
            let failure = match kind {
                AckKind::PubAck | AckKind::PubRec => Reason::QuotaExceeded,
                AckKind::PubRel | AckKind::PubComp => Reason::PacketIdentifierNotFound,
            };
            let reason = if fine || !version.is_v5() { Reason::Success } else { failure };
            FromClient::Ack {
                kind,
                packet_id,
                reason,
                reason_string: reason_string.filter(|_| version.is_v5()),
            }
        },
    )
}

fn options(version: Version) -> impl Strategy<Value = SubscribeOptions> {
    (0..3u8, 0..4u8, 0..3u8).prop_map(move |(qos, flags, retain_handling)| {
        let bits = if version.is_v5() { qos | flags << 2 | retain_handling << 4 } else { qos };
        SubscribeOptions::from_bits(bits).unwrap()
    })
}

fn subscribe(version: Version) -> impl Strategy<Value = FromClient> {
    (packet_id(), block_of(version, &[0x0B, 0x26, 0x26]), vec((text(), options(version)), 1..5))
        .prop_map(|(packet_id, properties, filters)| FromClient::Subscribe { packet_id, properties, filters })
}

fn unsubscribe(version: Version) -> impl Strategy<Value = FromClient> {
    (packet_id(), block_of(version, &[0x26, 0x26]), vec(text(), 1..5)).prop_map(
        |(packet_id, properties, filters)| FromClient::Unsubscribe { packet_id, properties, filters },
    )
}

fn disconnect(version: Version) -> impl Strategy<Value = FromClient> {
    let reasons = &[Reason::Success, Reason::DisconnectWithWill, Reason::ProtocolError][..];
    (option::of(select(reasons)), block_of(version, DISCONNECT)).prop_map(move |(reason, properties)| {
        let reason = reason.filter(|_| version.is_v5());
        let properties = if reason.is_some() { properties } else { Block::default() };
        FromClient::Disconnect { reason, properties }
    })
}

fn auth() -> impl Strategy<Value = FromClient> {
    let reasons = &[Reason::ContinueAuthentication, Reason::ReAuthenticate][..];
    (select(reasons), text(), block(AUTH)).prop_map(|(reason, method, mut properties)| {
        properties.0.push((0x15, prefixed(method.as_bytes())));
        FromClient::Auth { reason, properties }
    })
}

/// Any packet a client may send.
pub fn from_client(version: Version) -> BoxedStrategy<FromClient> {
    let common = prop_oneof![
        connect(version),
        publish(version).prop_map(FromClient::Publish),
        ack(version),
        subscribe(version),
        unsubscribe(version),
        Just(FromClient::PingReq),
        disconnect(version),
    ];
    if version.is_v5() { prop_oneof![7 => common, 1 => auth()].boxed() } else { common.boxed() }
}

/// Any version with any packet.
pub fn any_from_client() -> impl Strategy<Value = (Version, FromClient)> {
    version().prop_flat_map(|version| (Just(version), from_client(version)))
}

/// The raw properties of a CONNACK.
pub fn connack_block() -> impl Strategy<Value = Block> {
    block(CONNACK)
}

impl FromClient {
    /// The connection's version as the decoder must be told.
    pub fn state(&self, version: Version) -> Option<Version> {
        if matches!(self, FromClient::Connect { .. }) { None } else { Some(version) }
    }

    pub fn encode(&self, version: Version) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            FromClient::Connect {
                clean_start,
                keep_alive_s,
                properties,
                client_id,
                will,
                username,
                password,
            } => {
                let will_properties = will.as_ref().map(|w| w.properties.raw()).unwrap_or_default();
                client::connect(
                    &mut out,
                    &client::Connect {
                        version,
                        bridge: false,
                        clean_start: *clean_start,
                        keep_alive_s: *keep_alive_s,
                        properties: &properties.raw(),
                        client_id,
                        will: will.as_ref().map(|w| client::Will {
                            topic: &w.topic,
                            payload: &w.payload,
                            qos: w.qos,
                            retain: w.retain,
                            properties: &will_properties,
                        }),
                        username: username.as_deref(),
                        password: password.as_deref(),
                    },
                );
            }
            FromClient::Publish(p) => p.encode(&mut out, version),
            FromClient::Ack { kind, packet_id, reason, reason_string } => {
                client::ack(&mut out, version, *kind, *packet_id, *reason, reason_string.as_deref());
            }
            FromClient::Subscribe { packet_id, properties, filters } => {
                let filters: Vec<_> = filters.iter().map(|(f, o)| (f.as_str(), *o)).collect();
                client::subscribe(&mut out, version, *packet_id, &properties.raw(), &filters);
            }
            FromClient::Unsubscribe { packet_id, properties, filters } => {
                let filters: Vec<_> = filters.iter().map(String::as_str).collect();
                client::unsubscribe(&mut out, version, *packet_id, &properties.raw(), &filters);
            }
            FromClient::PingReq => client::pingreq(&mut out),
            FromClient::Disconnect { reason: None, .. } => client::disconnect_plain(&mut out),
            FromClient::Disconnect { reason: Some(reason), properties } => {
                packet(&mut out, 0xE0, *reason, properties);
            }
            FromClient::Auth { reason, properties } => packet(&mut out, 0xF0, *reason, properties),
        }
        out
    }
}

impl Publish {
    pub fn encode(&self, out: &mut Vec<u8>, version: Version) {
        client::publish(
            out,
            version,
            &client::Publish {
                topic: &self.topic,
                payload: &self.payload,
                qos: self.qos,
                retain: self.retain,
                dup: self.dup,
                packet_id: self.packet_id,
                properties: &self.properties.raw(),
            },
        );
    }
}

/// What a server adds to a message when it delivers it.
#[derive(Clone, Debug, Default)]
pub struct ServerExtras {
    pub alias: Option<Alias>,
    pub message_expiry_s: Option<u32>,
    pub subscription_ids: Vec<u32>,
}

pub fn server_extras() -> impl Strategy<Value = ServerExtras> {
    let alias =
        (any::<bool>(), 1..=u16::MAX).prop_map(|(set, n)| if set { Alias::Set(n) } else { Alias::Use(n) });
    (option::of(alias), option::of(any::<u32>()), vec(1..=268_435_455u32, 0..3)).prop_map(
        |(alias, message_expiry_s, subscription_ids)| ServerExtras {
            alias,
            message_expiry_s,
            subscription_ids,
        },
    )
}

impl Publish {
    /// The message that a broker makes of it.
    pub fn message(&self) -> Message {
        Message::new(Parts {
            topic: if self.topic.is_empty() { "t" } else { &self.topic },
            payload: &self.payload,
            properties: &self.properties.only(|id| FORWARDED.contains(&id)),
            qos: self.qos,
            retain: self.retain,
            expires_at: None,
        })
    }

    /// As the broker delivers it, with the publish's own QoS and flags.
    pub fn encode_from_server(&self, out: &mut Vec<u8>, version: Version, extras: &ServerExtras) {
        let delivery = PublishOut {
            version,
            message: &self.message(),
            qos: self.qos,
            retain: self.retain,
            dup: self.dup,
            packet_id: self.packet_id,
            topic_alias: extras.alias,
            message_expiry_s: extras.message_expiry_s,
            subscription_ids: &extras.subscription_ids,
        };
        encode::publish(out, &delivery);
        assert_eq!(encode::publish_len(&delivery), out.len());
        let mut vectored = Vec::new();
        encode::publish_head(&mut vectored, &delivery);
        vectored.extend_from_slice(delivery.message.payload());
        assert_eq!(&vectored, out);
    }
}

/// A packet of reason and properties, by hand.
fn packet(out: &mut Vec<u8>, first: u8, reason: Reason, properties: &Block) {
    let raw = properties.raw();
    let mut body = vec![reason as u8];
    varint(&mut body, raw.len());
    body.extend_from_slice(&raw);
    out.push(first);
    varint(out, body.len());
    out.extend_from_slice(&body);
}

pub fn varint(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
