use super::*;
use crate::mqtt::message::{Message, Parts};
use crate::mqtt::packet::QoS;

fn message<'a>(topic: &'a str, payload: &'a [u8], properties: &'a [u8]) -> Message {
    Message::new(Parts { topic, payload, properties, qos: QoS::AtMostOnce, retain: false, expires_at: None })
}

fn out<'a>(version: Version, message: &'a Message) -> PublishOut<'a> {
    PublishOut {
        version,
        message,
        qos: QoS::AtMostOnce,
        retain: false,
        dup: false,
        packet_id: 0,
        topic_alias: None,
        message_expiry_s: None,
        subscription_ids: &[],
    }
}

fn encoded(p: &PublishOut<'_>) -> Vec<u8> {
    let mut bytes = vec![];
    publish(&mut bytes, p);
    assert_eq!(publish_len(p), bytes.len());
    let mut head = vec![];
    publish_head(&mut head, p);
    head.extend_from_slice(p.message.payload());
    assert_eq!(head, bytes);
    bytes
}

#[test]
fn publishes_byte_by_byte() {
    let m = message("a/b", b"hi", &[1, 1]);
    assert_eq!(encoded(&out(Version::V311, &m)), b"\x30\x07\0\x03a/bhi");
    assert_eq!(encoded(&out(Version::V5, &m)), b"\x30\x0A\0\x03a/b\x02\x01\x01hi");
    let full = PublishOut {
        qos: QoS::AtLeastOnce,
        retain: true,
        dup: true,
        packet_id: 0x0102,
        topic_alias: Some(Alias::Set(9)),
        message_expiry_s: Some(7),
        subscription_ids: &[1, 128],
        ..out(Version::V5, &m)
    };
    assert_eq!(
        encoded(&full),
        b"\x3B\x19\0\x03a/b\x01\x02\x0F\x23\0\x09\x02\0\0\0\x07\x0B\x01\x0B\x80\x01\x01\x01hi"
    );
    assert_eq!(
        encoded(&PublishOut { topic_alias: Some(Alias::Use(9)), ..full })[..5],
        b"\x3B\x16\0\0\x01"[..]
    );
    // MQTT 3 gets none of that; DUP is not sent at QoS 0.
    let v3 = PublishOut { version: Version::V311, topic_alias: Some(Alias::Use(9)), ..full };
    assert_eq!(encoded(&v3), b"\x3B\x09\0\x03a/b\x01\x02hi");
    assert_eq!(encoded(&PublishOut { qos: QoS::AtMostOnce, ..v3 }), b"\x31\x07\0\x03a/bhi");
}

#[test]
fn publish_lengths_at_every_varint_boundary() {
    for payload in [0usize, 122, 123, 16_378, 16_379, 2_097_146, 2_097_147] {
        let payload = vec![0x55; payload];
        let m = message("abc", &payload, &[]);
        let bytes = encoded(&out(Version::V311, &m));
        assert_eq!(crate::mqtt::frame_len(&bytes, u32::MAX), Ok(Some(bytes.len())));
    }
}

#[test]
fn connacks() {
    let p = ConnAck { session_present: true, ..ConnAck::default() };
    let cases: [(Version, ConnAck<'_>, &[u8]); 6] = [
        (Version::V31, p.clone(), b"\x20\x02\0\0"),
        (Version::V311, p.clone(), b"\x20\x02\x01\0"),
        (Version::V5, p.clone(), b"\x20\x03\x01\0\0"),
        // A refusal never says session present.
        (Version::V311, ConnAck { reason: Reason::NotAuthorized, ..p.clone() }, b"\x20\x02\0\x05"),
        (Version::V5, ConnAck { reason: Reason::NotAuthorized, ..p.clone() }, b"\x20\x03\0\x87\0"),
        (
            Version::V5,
            ConnAck {
                maximum_qos: Some(QoS::ExactlyOnce),
                receive_maximum: Some(5),
                assigned_client_id: Some("x"),
                ..ConnAck::default()
            },
            b"\x20\x0A\0\0\x07\x21\0\x05\x12\0\x01x",
        ),
    ];
    for (version, p, expected) in cases {
        let mut bytes = vec![];
        connack(&mut bytes, version, &p);
        assert_eq!(bytes, expected);
    }
}

#[test]
fn acks_take_the_short_form_where_they_may() {
    type Case = (Version, AckKind, Reason, Option<&'static str>, &'static [u8]);
    let cases: [Case; 6] = [
        (Version::V311, AckKind::PubAck, Reason::QuotaExceeded, Some("no"), b"\x40\x02\x01\x02"),
        (Version::V5, AckKind::PubAck, Reason::Success, None, b"\x40\x02\x01\x02"),
        (Version::V5, AckKind::PubRec, Reason::QuotaExceeded, None, b"\x50\x03\x01\x02\x97"),
        (Version::V5, AckKind::PubRel, Reason::Success, None, b"\x62\x02\x01\x02"),
        (Version::V5, AckKind::PubComp, Reason::PacketIdentifierNotFound, None, b"\x70\x03\x01\x02\x92"),
        (Version::V5, AckKind::PubAck, Reason::Success, Some("k"), b"\x40\x08\x01\x02\0\x04\x1F\0\x01k"),
    ];
    for (version, kind, reason, text, expected) in cases {
        let mut bytes = vec![];
        ack(&mut bytes, version, kind, 0x0102, reason, text);
        assert_eq!(bytes, expected);
    }
}

#[test]
fn the_rest() {
    let reasons = [Reason::GrantedQoS1, Reason::NotAuthorized];
    let mut bytes = vec![];
    suback(&mut bytes, Version::V311, 1, &reasons);
    suback(&mut bytes, Version::V5, 1, &reasons);
    unsuback(&mut bytes, Version::V311, 1, &reasons);
    unsuback(&mut bytes, Version::V5, 1, &[Reason::Success, Reason::NoSubscriptionExisted]);
    pingresp(&mut bytes);
    disconnect(&mut bytes, Reason::Success, None, None, None);
    disconnect(&mut bytes, Reason::ServerMoved, None, None, None);
    disconnect(&mut bytes, Reason::ServerMoved, None, Some("x"), None);
    auth(&mut bytes, Reason::ContinueAuthentication, "m", Some(&[9]), None);
    let expected: &[&[u8]] = &[
        b"\x90\x04\0\x01\x01\x80",
        b"\x90\x05\0\x01\0\x01\x87",
        b"\xB0\x02\0\x01",
        b"\xB0\x05\0\x01\0\0\x11",
        b"\xD0\0",
        b"\xE0\0",
        b"\xE0\x01\x9D",
        b"\xE0\x06\x9D\x04\x1C\0\x01x",
        b"\xF0\x0A\x18\x08\x15\0\x01m\x16\0\x01\x09",
    ];
    assert_eq!(bytes, expected.concat());
}
