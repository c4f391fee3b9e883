//! The codec beside two others: `mqtt-protocol` (3.1.1) and `mqtt-protocol-core` (3.1.1 and 5.0).
//!
//! Each bench does what a broker does per packet: decoding reads the fields, encoding goes into a buffer that is kept.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use berth::mqtt::encode::{self, AckKind, Alias, PublishOut};
use berth::mqtt::message::Parts;
use berth::mqtt::{Message, Packet, QoS, Reason, Version, client, decode, frame_len};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mqtt::{Decodable, Encodable};
use mqtt_protocol_core::mqtt as core;
use std::hint::black_box;
use std::sync::Arc;

const TOPIC: &str = "plant/7/line/3/temperature";

/// The sizes compared: version, payload bytes, QoS.
const CASES: [(Version, usize, QoS); 6] = [
    (Version::V311, 64, QoS::AtMostOnce),
    (Version::V311, 256, QoS::AtMostOnce),
    (Version::V311, 256, QoS::AtLeastOnce),
    (Version::V5, 64, QoS::AtMostOnce),
    (Version::V5, 256, QoS::AtMostOnce),
    (Version::V5, 256, QoS::AtLeastOnce),
];

fn name(version: Version, payload: usize, qos: QoS) -> String {
    format!("{version:?}/{payload}B/qos{}", qos as u8)
}

fn publish_frame(version: Version, payload: usize, qos: QoS) -> Vec<u8> {
    let mut out = Vec::new();
    let publish = client::Publish {
        topic: TOPIC,
        payload: &vec![b'x'; payload],
        qos,
        retain: false,
        dup: false,
        packet_id: 7,
        properties: &[],
    };
    client::publish(&mut out, version, &publish);
    out
}

fn message(payload: usize, properties: &[u8]) -> Message {
    Message::new(Parts {
        topic: TOPIC,
        payload: &vec![b'x'; payload],
        properties,
        qos: QoS::AtMostOnce,
        retain: false,
        expires_at: None,
    })
}

fn delivery(version: Version, message: &Message, qos: QoS) -> PublishOut<'_> {
    PublishOut {
        version,
        message,
        qos,
        retain: false,
        dup: false,
        packet_id: 7,
        topic_alias: None,
        message_expiry_s: None,
        subscription_ids: &[],
    }
}

fn decode_publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode publish");
    for (version, payload, qos) in CASES {
        let frame = publish_frame(version, payload, qos);
        let name = name(version, payload, qos);
        let body = frame.len() - payload;
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(BenchmarkId::new("berth", &name), |b| {
            b.iter(|| {
                let len = frame_len(black_box(&frame), 1 << 20).unwrap().unwrap();
                match decode(Some(version), &frame[..len]) {
                    Ok(Packet::Publish(p)) => (p.topic.len(), p.payload.len(), p.packet_id),
                    other => unreachable!("{other:?}"),
                }
            });
        });
        // Its decoder wants the body in an Arc: what came from the socket is copied once.
        let header = if frame[1] & 0x80 == 0 { 2 } else { 3 };
        assert!(body > header);
        group.bench_function(BenchmarkId::new("mqtt-protocol-core", &name), |b| {
            b.iter(|| {
                let body: Arc<[u8]> = Arc::from(&black_box(&frame)[header..]);
                if version.is_v5() {
                    let (p, _) = core::packet::v5_0::Publish::parse(frame[0] & 0x0F, body).unwrap();
                    (p.topic_name().len(), p.payload().len(), p.packet_id())
                } else {
                    let (p, _) = core::packet::v3_1_1::Publish::parse(frame[0] & 0x0F, body).unwrap();
                    (p.topic_name().len(), p.payload().len(), p.packet_id())
                }
            });
        });
        if !version.is_v5() {
            group.bench_function(BenchmarkId::new("mqtt-protocol", &name), |b| {
                b.iter(|| {
                    let mut rest = black_box(&frame[..]);
                    mqtt::packet::VariablePacket::decode(&mut rest).unwrap()
                });
            });
        }
    }
    group.finish();
}

fn encode_publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode publish");
    for (version, payload, qos) in CASES {
        let name = name(version, payload, qos);
        let message = message(payload, &[]);
        let delivery = delivery(version, &message, qos);
        group.throughput(Throughput::Bytes(encode::publish_len(&delivery) as u64));
        let mut out = Vec::with_capacity(4096);
        group.bench_function(BenchmarkId::new("berth", &name), |b| {
            b.iter(|| {
                out.clear();
                encode::publish(&mut out, black_box(&delivery));
                out.len()
            });
        });
        // Its packets are built per delivery, then copied out of their buffers.
        let bytes: Arc<[u8]> = Arc::from(vec![b'x'; payload]);
        group.bench_function(BenchmarkId::new("mqtt-protocol-core", &name), |b| {
            b.iter(|| {
                out.clear();
                let payload = core::ArcPayload::new(bytes.clone(), 0, bytes.len());
                let core_qos = if qos == QoS::AtMostOnce {
                    core::packet::Qos::AtMostOnce
                } else {
                    core::packet::Qos::AtLeastOnce
                };
                macro_rules! build {
                    ($module:ident) => {{
                        let builder = core::packet::$module::Publish::builder()
                            .topic_name(black_box(TOPIC))
                            .unwrap()
                            .qos(core_qos)
                            .payload(payload);
                        let builder = if qos == QoS::AtMostOnce { builder } else { builder.packet_id(7u16) };
                        let packet = builder.build().unwrap();
                        packet.to_buffers().iter().for_each(|part| out.extend_from_slice(part));
                    }};
                }
                if version.is_v5() {
                    build!(v5_0);
                } else {
                    build!(v3_1_1);
                }
                out.len()
            });
        });
        if !version.is_v5() {
            let topic = mqtt::TopicName::new(TOPIC).unwrap();
            let id = mqtt::packet::QoSWithPacketIdentifier::new(
                if qos == QoS::AtMostOnce {
                    mqtt::QualityOfService::Level0
                } else {
                    mqtt::QualityOfService::Level1
                },
                7,
            );
            group.bench_function(BenchmarkId::new("mqtt-protocol", &name), |b| {
                b.iter(|| {
                    out.clear();
                    let packet = mqtt::packet::PublishPacketRef::new(&topic, black_box(id), &bytes);
                    packet.encode(&mut out).unwrap();
                    out.len()
                });
            });
        }
    }
    // What MQTT 5 adds to a delivery.
    let user = b"\x03\0\x0Atext/plain\x26\0\x04unit\0\x07celsius";
    let message = message(64, user);
    let full = PublishOut {
        topic_alias: Some(Alias::Use(3)),
        message_expiry_s: Some(60),
        subscription_ids: &[9],
        ..delivery(Version::V5, &message, QoS::AtLeastOnce)
    };
    let mut out = Vec::with_capacity(4096);
    group.throughput(Throughput::Bytes(encode::publish_len(&full) as u64));
    group.bench_function(
        BenchmarkId::new("berth", "V5/64B/qos1, alias, expiry, subscription, properties"),
        |b| {
            b.iter(|| {
                out.clear();
                encode::publish(&mut out, black_box(&full));
                out.len()
            });
        },
    );
    group.finish();
}

/// A stream of acknowledgements, as a connection that receives much sends them.
fn decode_acks(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode mixed acks");
    for version in [Version::V311, Version::V5] {
        let mut stream = Vec::new();
        for id in 1..=64u16 {
            let kind =
                [AckKind::PubAck, AckKind::PubRec, AckKind::PubComp, AckKind::PubAck][usize::from(id % 4)];
            let reason = if id % 16 == 0 && kind == AckKind::PubAck {
                Reason::NoMatchingSubscribers
            } else {
                Reason::Success
            };
            client::ack(&mut stream, version, kind, id, reason, None);
        }
        group.throughput(Throughput::Elements(64));
        group.bench_function(BenchmarkId::new("berth", format!("{version:?} x 64")), |b| {
            b.iter(|| {
                let mut rest = black_box(&stream[..]);
                let mut sum = 0u32;
                while let Ok(Some(len)) = frame_len(rest, 1 << 20) {
                    let (frame, after) = rest.split_at(len);
                    sum += match decode(Some(version), frame) {
                        Ok(Packet::PubAck(a) | Packet::PubRec(a) | Packet::PubComp(a)) => {
                            u32::from(a.packet_id)
                        }
                        other => unreachable!("{other:?}"),
                    };
                    rest = after;
                }
                sum
            });
        });
        group.bench_function(BenchmarkId::new("mqtt-protocol-core", format!("{version:?} x 64")), |b| {
            b.iter(|| {
                let mut rest = black_box(&stream[..]);
                let mut sum = 0u32;
                while let Some((&[first, len], after)) = rest.split_first_chunk::<2>() {
                    let (body, after) = after.split_at(usize::from(len));
                    macro_rules! id {
                        ($packet:ident) => {
                            if version.is_v5() {
                                core::packet::v5_0::$packet::parse(body).unwrap().0.packet_id()
                            } else {
                                core::packet::v3_1_1::$packet::parse(body).unwrap().0.packet_id()
                            }
                        };
                    }
                    sum += u32::from(match first >> 4 {
                        4 => id!(Puback),
                        5 => id!(Pubrec),
                        _ => id!(Pubcomp),
                    });
                    rest = after;
                }
                sum
            });
        });
    }
    group.finish();
}

/// From the decoded packet to the shared message: the one copy of a publish.
fn make_message(c: &mut Criterion) {
    let mut group = c.benchmark_group("make message");
    for payload in [64, 256, 1024, 65_536] {
        let bytes = vec![b'x'; payload];
        group.throughput(Throughput::Bytes(payload as u64));
        group.bench_function(BenchmarkId::new("berth", format!("{payload}B")), |b| {
            b.iter(|| {
                Message::new(Parts {
                    topic: black_box(TOPIC),
                    payload: black_box(&bytes),
                    properties: &[],
                    qos: QoS::AtMostOnce,
                    retain: false,
                    expires_at: None,
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode_publish, encode_publish, decode_acks, make_message);
criterion_main!(benches);
