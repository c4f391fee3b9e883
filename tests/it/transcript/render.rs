//! What a client sees, from bytes to words. Two packets that differ in a byte differ in words.

use super::words::{show_bytes, show_hex, show_property, show_text};
use super::world::Seen;
use berth::mqtt::client::{self, AckKind, ServerPacket};
use berth::mqtt::packet::{Ack, Publish};
use berth::mqtt::{Properties, Property, QoS, Reason, Version};
use berth::node::Limits;

/// One line for what a client has seen.
pub fn seen(version: Version, seen: &Seen, limits: &Limits) -> String {
    match seen {
        Seen::Closed => "CLOSED".to_owned(),
        Seen::Frame(frame) => match client::decode(version, frame) {
            Ok(packet) => words(version, frame, &packet, limits).join(" "),
            Err(e) => format!("INVALID {} # {e}", show_hex(frame)),
        },
    }
}

fn words(version: Version, frame: &[u8], packet: &ServerPacket<'_>, limits: &Limits) -> Vec<String> {
    match packet {
        ServerPacket::ConnAck(c) => {
            let mut words = vec!["CONNACK".to_owned()];
            match (version, c.reason) {
                (_, Reason::Success) => words.push(format!("present={}", u8::from(c.session_present))),
                (Version::V5, reason) => words.push(format!("reason={reason:?}")),
                (_, reason) => words.push(format!("code={}", reason.connack_v3())),
            }
            let announced = if version.is_v5() && c.reason == Reason::Success {
                let s = &limits.broker.session;
                vec![
                    Property::ReceiveMaximum(s.receive_maximum),
                    Property::MaximumPacketSize(s.maximum_packet_size),
                    Property::TopicAliasMaximum(s.topic_alias_maximum),
                ]
            } else {
                Vec::new()
            };
            let defaults = Limits::default().broker.session == limits.broker.session;
            if defaults && announced.iter().all(|a| c.properties.iter().any(|p| p == *a)) {
                words.extend(
                    c.properties.iter().filter(|p| !announced.contains(p)).map(|p| show_property(&p)),
                );
            } else {
                words.extend(properties(&c.properties));
            }
            words
        }
        ServerPacket::Publish(p) => publish(p),
        ServerPacket::PubAck(a) => ack(version, frame, "PUBACK", AckKind::PubAck, a),
        ServerPacket::PubRec(a) => ack(version, frame, "PUBREC", AckKind::PubRec, a),
        ServerPacket::PubRel(a) => ack(version, frame, "PUBREL", AckKind::PubRel, a),
        ServerPacket::PubComp(a) => ack(version, frame, "PUBCOMP", AckKind::PubComp, a),
        ServerPacket::SubAck(s) => {
            let mut words = vec!["SUBACK".to_owned(), format!("id={}", s.packet_id)];
            words.extend(s.reasons().map(|r| match r {
                Reason::Success => "QoS0".to_owned(),
                Reason::GrantedQoS1 => "QoS1".to_owned(),
                Reason::GrantedQoS2 => "QoS2".to_owned(),
                _ if !version.is_v5() => "0x80".to_owned(),
                r => format!("{r:?}"),
            }));
            words.extend(properties(&s.properties));
            words
        }
        ServerPacket::UnsubAck(s) => {
            let mut words = vec!["UNSUBACK".to_owned(), format!("id={}", s.packet_id)];
            words.extend(s.reasons().map(|r| format!("{r:?}")));
            words.extend(properties(&s.properties));
            words
        }
        ServerPacket::PingResp => vec!["PINGRESP".to_owned()],
        ServerPacket::Disconnect(d) => {
            let mut words = vec!["DISCONNECT".to_owned(), format!("reason={:?}", d.reason)];
            words.extend(properties(&d.properties));
            words
        }
        ServerPacket::Auth(a) => {
            let mut words = vec!["AUTH".to_owned(), format!("reason={:?}", a.reason)];
            words.extend(properties(&a.properties));
            words
        }
    }
}

fn publish(p: &Publish<'_>) -> Vec<String> {
    let mut words = vec!["PUBLISH".to_owned(), format!("t={}", show_text(p.topic))];
    if p.qos > QoS::AtMostOnce {
        words.push(format!("qos={}", p.qos as u8));
        words.push(format!("id={}", p.packet_id));
    }
    words.extend(p.dup.then(|| "dup".to_owned()));
    words.extend(p.retain.then(|| "retain".to_owned()));
    if !p.payload.is_empty() {
        words.push(format!("payload={}", show_bytes(p.payload)));
    }
    words.extend(properties(&p.properties));
    words
}

fn ack(version: Version, frame: &[u8], name: &str, kind: AckKind, a: &Ack) -> Vec<String> {
    let mut words = vec![name.to_owned(), format!("id={}", a.packet_id)];
    if a.reason != Reason::Success {
        words.push(format!("reason={:?}", a.reason));
    }
    let why = reason_string(frame).filter(|_| version.is_v5());
    let mut shortest = Vec::new();
    client::ack(&mut shortest, version, kind, a.packet_id, a.reason, why);
    if shortest != frame {
        words.push(format!("frame={}", show_hex(frame)));
    } else if let Some(why) = why {
        words.push(format!("why={}", show_text(why)));
    }
    words
}

/// What may be the reason string at the end of an acknowledgement.
fn reason_string(frame: &[u8]) -> Option<&str> {
    let property = |at: usize| {
        let (id, rest) = frame[at..].split_first()?;
        let (len, text) = rest.split_first_chunk::<2>()?;
        let fits = *id == 0x1F && usize::from(u16::from_be_bytes(*len)) == text.len();
        fits.then(|| std::str::from_utf8(text).ok())?
    };
    (0..frame.len()).find_map(property)
}

fn properties(p: &Properties<'_>) -> Vec<String> {
    p.iter().map(|p| show_property(&p)).collect()
}
