//! What a client was sent, as values of its own.

use super::{In, Received};
use berth::mqtt::Properties;
use berth::mqtt::client::ServerPacket;

fn texts(properties: Properties<'_>) -> Vec<String> {
    properties.iter().map(|p| format!("{p:?}")).collect()
}

/// What came, without the bytes it came in.
pub(super) fn owned(packet: ServerPacket<'_>) -> In {
    match packet {
        ServerPacket::ConnAck(c) => {
            In::ConnAck { present: c.session_present, reason: c.reason, properties: texts(c.properties) }
        }
        ServerPacket::Publish(p) => In::Publish(Received {
            topic: p.topic.to_owned(),
            payload: p.payload.to_vec(),
            qos: p.qos,
            retain: p.retain,
            dup: p.dup,
            packet_id: p.packet_id,
            properties: texts(p.properties),
        }),
        ServerPacket::PubAck(a) => In::PubAck(a.packet_id, a.reason),
        ServerPacket::PubRec(a) => In::PubRec(a.packet_id, a.reason),
        ServerPacket::PubRel(a) => In::PubRel(a.packet_id),
        ServerPacket::PubComp(a) => In::PubComp(a.packet_id, a.reason),
        ServerPacket::SubAck(s) => In::SubAck(s.packet_id, s.codes.to_vec()),
        ServerPacket::UnsubAck(s) => In::UnsubAck(s.packet_id, s.codes.to_vec()),
        ServerPacket::PingResp => In::PingResp,
        ServerPacket::Disconnect(d) => In::Disconnect(d.reason),
        ServerPacket::Auth(a) => In::Auth(a.reason, a.data.unwrap_or_default().to_vec()),
    }
}
