//! What must hold for any bytes: shared by the driver beside it and by the fuzz target in `fuzz/`.

use berth::mqtt::decode::DecodeError;
use berth::mqtt::encode::{self, AckKind, PublishOut};
use berth::mqtt::message::Parts;
use berth::mqtt::packet::{Ack, Connect, Publish};
use berth::mqtt::{Message, Packet, Properties, QoS, Version, client, decode, frame_len};
use std::borrow::Cow;

/// The first byte picks the state of the connection, the rest is what the client sends.
pub fn check(data: &[u8]) {
    let Some((&state, mut stream)) = data.split_first() else { return };
    let mut version = match state % 4 {
        0 => None,
        1 => Some(Version::V31),
        2 => Some(Version::V311),
        _ => Some(Version::V5),
    };
    let max = if state & 0x80 == 0 { u32::MAX } else { 64 };
    loop {
        let len = match frame_len(stream, max) {
            Ok(Some(len)) => len,
            Ok(None) => return,
            Err(error) => return refused(version, &error, stream),
        };
        let (frame, rest) = stream.split_at(len);
        assert!(len <= max as usize);
        assert_eq!(frame_len(&frame[..len - 1], max), Ok(None), "a prefix is incomplete");
        if let Some(version) = version {
            let _ = client::decode(version, frame);
        }
        match decode(version, frame) {
            Ok(packet) => accepted(&mut version, &packet, frame),
            Err(error) => return refused(version, &error, frame),
        }
        stream = rest;
    }
}

fn refused(version: Option<Version>, error: &DecodeError, frame: &[u8]) {
    assert!(error.reason().is_error());
    assert!(!error.to_string().is_empty());
    let _ = error.answer(version);
    if let DecodeError::Invalid { at, .. } = error {
        assert!(*at as usize <= frame.len(), "{error} is outside the frame");
    }
}

fn accepted(version: &mut Option<Version>, packet: &Packet<'_>, frame: &[u8]) {
    let mut out = Vec::new();
    if let Packet::Connect(c) = packet {
        assert!(version.is_none(), "a second CONNECT");
        *version = Some(c.version);
        connect(&mut out, c, frame);
        return;
    }
    let Some(version) = *version else { panic!("{packet:?} before CONNECT") };
    match packet {
        Packet::Connect(_) => (),
        Packet::Publish(p) => publish(&mut out, version, p, frame),
        Packet::PubAck(a) => ack(&mut out, version, AckKind::PubAck, *a, packet),
        Packet::PubRec(a) => ack(&mut out, version, AckKind::PubRec, *a, packet),
        Packet::PubRel(a) => ack(&mut out, version, AckKind::PubRel, *a, packet),
        Packet::PubComp(a) => ack(&mut out, version, AckKind::PubComp, *a, packet),
        Packet::Subscribe(s) => {
            let filters: Vec<_> = s.filters().map(|f| (f.filter, f.options)).collect();
            assert!(!filters.is_empty());
            properties(&s.properties);
            client::subscribe(&mut out, version, s.packet_id, s.properties.raw(), &filters);
            same(&out, frame);
        }
        Packet::Unsubscribe(u) => {
            let filters: Vec<_> = u.filters().collect();
            assert!(!filters.is_empty());
            properties(&u.properties);
            client::unsubscribe(&mut out, version, u.packet_id, u.properties.raw(), &filters);
            same(&out, frame);
        }
        Packet::PingReq => {
            client::pingreq(&mut out);
            same(&out, frame);
        }
        Packet::Disconnect(d) => properties(&d.properties),
        Packet::Auth(a) => properties(&a.properties),
    }
}

/// The frame, but for what has two forms: lengths (MQTT 3) and DUP (MQTT 3.1).
fn same(out: &[u8], frame: &[u8]) {
    let body = |f: &[u8]| f[1..].iter().take_while(|&&b| b & 0x80 != 0).count() + 2;
    assert_eq!(out[body(out)..], frame[body(frame)..]);
    let first = if matches!(frame[0] >> 4, 8 | 10) { frame[0] & !0x08 } else { frame[0] };
    assert_eq!(out[0], first);
}

fn connect(out: &mut Vec<u8>, c: &Connect<'_>, frame: &[u8]) {
    properties(&c.properties);
    client::connect(
        out,
        &client::Connect {
            version: c.version,
            bridge: c.bridge,
            clean_start: c.clean_start,
            keep_alive_s: c.keep_alive_s,
            properties: c.properties.raw(),
            client_id: c.client_id,
            will: c.will.as_ref().map(|w| client::Will {
                topic: w.topic,
                payload: w.payload,
                qos: w.qos,
                retain: w.retain,
                properties: w.properties.raw(),
            }),
            username: c.username,
            password: c.password,
        },
    );
    if let Some(will) = &c.will {
        properties(&will.properties);
    }
    // MQTT 3.1 may set flags that say nothing.
    if c.version == Version::V31 {
        let again = decode(None, out);
        assert_eq!(again, Ok(Packet::Connect(Box::new(c.clone()))));
    } else {
        same(out, frame);
    }
}

fn publish(out: &mut Vec<u8>, version: Version, p: &Publish<'_>, frame: &[u8]) {
    properties(&p.properties);
    client::publish(
        out,
        version,
        &client::Publish {
            topic: p.topic,
            payload: p.payload,
            qos: p.qos,
            retain: p.retain,
            dup: p.dup,
            packet_id: p.packet_id,
            properties: p.properties.raw(),
        },
    );
    same(out, frame);
    if p.topic.is_empty() {
        return;
    }
    // On through the broker.
    let message = Message::new(Parts {
        topic: p.topic,
        payload: p.payload,
        properties: &p.properties.forwardable(),
        qos: p.qos,
        retain: p.retain,
        expires_at: None,
    });
    let delivery = PublishOut {
        version,
        message: &message,
        qos: p.qos,
        retain: p.retain,
        dup: p.dup,
        packet_id: p.packet_id,
        topic_alias: None,
        message_expiry_s: p.message_expiry_s,
        subscription_ids: &[],
    };
    out.clear();
    encode::publish(out, &delivery);
    assert_eq!(encode::publish_len(&delivery), out.len());
    let received = client::decode(version, out);
    let Ok(client::ServerPacket::Publish(received)) = received else { panic!("{received:?}") };
    assert_eq!((received.topic, received.payload), (p.topic, p.payload));
    assert_eq!(received.message_expiry_s, p.message_expiry_s);
    assert_eq!((received.qos, received.packet_id), (p.qos, p.packet_id));
    assert_eq!(p.packet_id == 0, p.qos == QoS::AtMostOnce);
    let forwarded = received.properties.forwardable();
    assert!(matches!(forwarded, Cow::Borrowed(_)));
    assert_eq!(forwarded, p.properties.forwardable());
}

fn ack(out: &mut Vec<u8>, version: Version, kind: AckKind, ack: Ack, packet: &Packet<'_>) {
    client::ack(out, version, kind, ack.packet_id, ack.reason, None);
    assert_eq!(decode(Some(version), out).as_ref(), Ok(packet));
}

/// Writing what was read gives the block again.
fn properties(properties: &Properties<'_>) {
    let mut out = Vec::new();
    properties.iter().for_each(|p| client::put_property(&mut out, &p));
    assert_eq!(out, properties.raw());
}
