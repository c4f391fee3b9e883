//! A client as the specification wants it, on a [`Wire`]: it acknowledges what comes and remembers what it saw.

use super::Wire;
use crate::mqtt::client::{self, AckKind, ServerPacket};
use crate::mqtt::packet::{RetainHandling, SubscribeOptions};
use crate::mqtt::{Property, QoS, Reason, Version};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Something that a client saw. What QoS 2 shows to be a repetition is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// CONNACK.
    Connected {
        /// Session present.
        present: bool,
        /// The outcome.
        reason: Reason,
    },
    /// SUBACK.
    Subscribed(u16, Vec<Reason>),
    /// UNSUBACK.
    Unsubscribed(u16),
    /// A message.
    Message {
        /// Its topic.
        topic: String,
        /// Its payload, as text.
        payload: String,
        /// QoS of the delivery.
        qos: QoS,
        /// RETAIN.
        retain: bool,
        /// DUP.
        dup: bool,
    },
    /// PUBACK or PUBREC for this packet.
    Acked(u16, Reason),
    /// PUBCOMP for this packet.
    Completed(u16),
    /// DISCONNECT.
    Disconnected(Reason),
}

/// A client as the specification wants it, on a [`Wire`]: it acknowledges what comes and remembers what it saw.
pub struct SimClient {
    /// Client identifier.
    pub client_id: String,
    /// Its connection.
    pub wire: Arc<Wire>,
    /// Messages are left without an answer.
    pub silent: bool,
    receiving: BTreeSet<u16>,
    next_id: u16,
    seen: Vec<Got>,
}

impl SimClient {
    /// A client that has sent CONNECT (MQTT 5): `expiry_s` 0 = the session ends with the connection.
    pub fn connect(wire: Arc<Wire>, client_id: &str, clean_start: bool, expiry_s: u32) -> SimClient {
        SimClient::connect_with_will(wire, client_id, clean_start, expiry_s, None)
    }

    /// As [`SimClient::connect`], with a will.
    pub fn connect_with_will(
        wire: Arc<Wire>,
        client_id: &str,
        clean_start: bool,
        expiry_s: u32,
        will: Option<client::Will<'_>>,
    ) -> SimClient {
        let mut properties = Vec::new();
        client::put_property(&mut properties, &Property::SessionExpiryInterval(expiry_s));
        let connect = client::Connect {
            version: Version::V5,
            bridge: false,
            clean_start,
            keep_alive_s: 0,
            properties: &properties,
            client_id,
            will,
            username: None,
            password: None,
        };
        SimClient::connect_with(wire, &connect)
    }

    /// A client that has sent this CONNECT (MQTT 5).
    pub fn connect_with(wire: Arc<Wire>, connect: &client::Connect<'_>) -> SimClient {
        let mut bytes = Vec::new();
        client::connect(&mut bytes, connect);
        wire.send(&bytes);
        SimClient {
            client_id: connect.client_id.to_owned(),
            wire,
            silent: false,
            receiving: BTreeSet::new(),
            next_id: 0,
            seen: Vec::new(),
        }
    }

    /// Connects again, over another wire: what was received at QoS 2 and not completed is still known.
    pub fn resume(&mut self, wire: Arc<Wire>, expiry_s: u32) {
        let client_id = self.client_id.clone();
        let receiving = std::mem::take(&mut self.receiving);
        let next = SimClient::connect(wire, &client_id, false, expiry_s);
        *self = SimClient { receiving, next_id: self.next_id, silent: self.silent, ..next };
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Sends SUBSCRIBE; its packet identifier.
    pub fn subscribe(&mut self, filter: &str, qos: QoS) -> u16 {
        self.send_subscribe(filter, qos, false, RetainHandling::Send)
    }

    /// As [`SimClient::subscribe`], with a wish about what is retained.
    pub fn subscribe_handling(&mut self, filter: &str, qos: QoS, retain_handling: RetainHandling) -> u16 {
        self.send_subscribe(filter, qos, false, retain_handling)
    }

    /// As [`SimClient::subscribe`], but not to what it publishes itself.
    pub fn subscribe_to_others(&mut self, filter: &str, qos: QoS) -> u16 {
        self.send_subscribe(filter, qos, true, RetainHandling::Send)
    }

    fn send_subscribe(
        &mut self,
        filter: &str,
        qos: QoS,
        no_local: bool,
        retain_handling: RetainHandling,
    ) -> u16 {
        let id = self.id();
        let options = SubscribeOptions { qos, no_local, retain_as_published: false, retain_handling };
        let mut bytes = Vec::new();
        client::subscribe(&mut bytes, Version::V5, id, &[], &[(filter, options)]);
        self.wire.send(&bytes);
        id
    }

    /// Sends UNSUBSCRIBE; its packet identifier.
    pub fn unsubscribe(&mut self, filter: &str) -> u16 {
        let id = self.id();
        let mut bytes = Vec::new();
        client::unsubscribe(&mut bytes, Version::V5, id, &[], &[filter]);
        self.wire.send(&bytes);
        id
    }

    /// A packet identifier for a message that is to be sent later.
    pub fn packet_id(&mut self) -> u16 {
        self.id()
    }

    /// Sends PUBLISH; its packet identifier (0 at QoS 0).
    pub fn publish(&mut self, topic: &str, payload: &str, qos: QoS, retain: bool) -> u16 {
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { self.id() };
        self.send_publish(topic, payload, qos, retain, (packet_id, false));
        packet_id
    }

    /// Sends PUBLISH once more, after a reconnect.
    pub fn publish_again(&mut self, topic: &str, payload: &str, qos: QoS, packet_id: u16) {
        self.send_publish(topic, payload, qos, false, (packet_id, true));
    }

    fn send_publish(
        &self,
        topic: &str,
        payload: &str,
        qos: QoS,
        retain: bool,
        (packet_id, dup): (u16, bool),
    ) {
        let mut bytes = Vec::new();
        let payload = payload.as_bytes();
        let publish = client::Publish { topic, payload, qos, retain, dup, packet_id, properties: &[] };
        client::publish(&mut bytes, Version::V5, &publish);
        self.wire.send(&bytes);
    }

    /// Sends PUBREL once more, after a reconnect.
    pub fn release(&self, packet_id: u16) {
        self.answer(AckKind::PubRel, packet_id);
    }

    /// Sends DISCONNECT.
    pub fn leave(&mut self) {
        let mut bytes = Vec::new();
        client::disconnect_plain(&mut bytes);
        self.wire.send(&bytes);
    }

    /// Hears what has come; everything seen so far.
    pub fn seen(&mut self) -> &[Got] {
        for frame in self.wire.take() {
            match client::decode(Version::V5, &frame) {
                Ok(packet) => self.hear(&packet),
                Err(why) => tracing::error!(client = self.client_id, ?why, "the node sent what it may not"),
            }
        }
        &self.seen
    }

    /// As [`SimClient::seen`], and forgets it.
    pub fn take(&mut self) -> Vec<Got> {
        self.seen();
        std::mem::take(&mut self.seen)
    }

    /// The payloads of the messages seen so far.
    pub fn payloads(&mut self) -> Vec<String> {
        let payload =
            |g: &Got| if let Got::Message { payload, .. } = g { Some(payload.clone()) } else { None };
        self.seen().iter().filter_map(payload).collect()
    }

    fn hear(&mut self, packet: &ServerPacket<'_>) {
        let got = match packet {
            ServerPacket::ConnAck(c) => Got::Connected { present: c.session_present, reason: c.reason },
            ServerPacket::SubAck(s) => Got::Subscribed(s.packet_id, s.reasons().collect()),
            ServerPacket::UnsubAck(s) => Got::Unsubscribed(s.packet_id),
            ServerPacket::Publish(p) => {
                match p.qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => self.answer(AckKind::PubAck, p.packet_id),
                    QoS::ExactlyOnce => {
                        let new = self.receiving.insert(p.packet_id);
                        self.answer(AckKind::PubRec, p.packet_id);
                        if !new {
                            return;
                        }
                    }
                }
                Got::Message {
                    topic: p.topic.to_owned(),
                    payload: String::from_utf8_lossy(p.payload).into_owned(),
                    qos: p.qos,
                    retain: p.retain,
                    dup: p.dup,
                }
            }
            ServerPacket::PubAck(a) => Got::Acked(a.packet_id, a.reason),
            ServerPacket::PubRec(a) => {
                if !a.reason.is_error() {
                    self.answer(AckKind::PubRel, a.packet_id);
                }
                Got::Acked(a.packet_id, a.reason)
            }
            ServerPacket::PubRel(a) => {
                self.receiving.remove(&a.packet_id);
                return self.answer(AckKind::PubComp, a.packet_id);
            }
            ServerPacket::PubComp(a) => Got::Completed(a.packet_id),
            ServerPacket::Disconnect(d) => Got::Disconnected(d.reason),
            ServerPacket::PingResp | ServerPacket::Auth(_) => return,
        };
        self.seen.push(got);
    }

    fn answer(&self, kind: AckKind, id: u16) {
        if self.silent {
            return;
        }
        let mut bytes = Vec::new();
        client::ack(&mut bytes, Version::V5, kind, id, Reason::Success, None);
        self.wire.send(&bytes);
    }
}
