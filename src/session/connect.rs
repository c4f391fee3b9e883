//! What a CONNECT asks for, and what the server grants (MQTT 5.0 sections 3.1 and 3.2).

use super::Limits;
use super::actions::{Failure, Token};
use super::lifecycle::Will;
use super::limits::ANNOUNCED_PACKET_MAX;
use crate::clock::Time;
use crate::mqtt::encode::ConnAck;
use crate::mqtt::message::Parts;
use crate::mqtt::packet::Connect;
use crate::mqtt::{Message, QoS, Reason, Version};
use crate::queue_policy::{QUEUE_POLICY_PROPERTY, QueuePolicy};
use crate::topic::validate_name;
use crate::user::SessionUser;
use std::collections::VecDeque;
use std::sync::Arc;

/// What was agreed at CONNECT.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Protocol version.
    pub version: Version,
    /// Whether the client said that it is a bridge.
    pub bridge: bool,
    /// Client identifier; assigned if the client sent none.
    pub client_id: Arc<str>,
    /// Whether the client identifier was assigned by us.
    pub assigned: bool,
    /// Clean start.
    pub clean_start: bool,
    /// Keep alive in force, seconds; 0 = off.
    pub keep_alive_s: u16,
    /// Whether the keep alive differs from what the client asked for.
    pub keep_alive_imposed: bool,
    /// Session expiry interval granted, seconds.
    pub expiry_s: u32,
    /// Whether the expiry differs from what the client asked for.
    pub expiry_capped: bool,
    /// Messages in flight to the client.
    pub send_quota: u16,
    /// Largest packet the client accepts, bytes.
    pub maximum_packet_size: u32,
    /// Topic aliases we may use.
    pub topic_alias_maximum: u16,
    /// Whether reason strings are welcome.
    pub problem_information: bool,
    /// The user, once it is known who the client is.
    pub user: SessionUser,
    /// Which messages are dropped when its queue is full; `None` = as the broker does by default.
    pub queue_policy: Option<QueuePolicy>,
    /// The will.
    pub will: Option<Will>,
    /// The server's limits.
    pub limits: Limits,
}

impl Settings {
    /// Checks a CONNECT against the server's limits. `assign` makes a client identifier if the client sent none.
    ///
    /// # Errors
    /// The reason for CONNACK: 0x85 for an empty identifier of an MQTT 3 client that wants a persistent session, 0x9B for a will above the maximum QoS, 0x90 for one whose topic has
    /// too many levels, 0x83 for a queue policy that there is not.
    pub fn negotiate(
        c: &Connect<'_>,
        limits: Limits,
        assign: impl FnOnce() -> Arc<str>,
    ) -> Result<Settings, Failure> {
        let assigned = c.client_id.is_empty();
        if assigned && (c.version == Version::V31 || (c.version == Version::V311 && !c.clean_start)) {
            return Err(Reason::ClientIdentifierNotValid.into());
        }
        if c.will.as_ref().is_some_and(|w| w.qos > limits.maximum_qos) {
            return Err(Reason::QoSNotSupported.into());
        }
        if c.will.as_ref().is_some_and(|w| validate_name(w.topic).is_err()) {
            return Err(Reason::TopicNameInvalid.into());
        }
        // A server keep alive can only be told to MQTT 5 clients.
        let granted = limits.keep_alive_s(c.keep_alive_s);
        let imposed = c.version.is_v5() && granted != c.keep_alive_s;
        let expiry_s = c.session_expiry_s.min(limits.max_session_expiry_s);
        Ok(Settings {
            version: c.version,
            bridge: c.bridge,
            client_id: if assigned { assign() } else { Arc::from(c.client_id) },
            assigned,
            clean_start: c.clean_start,
            keep_alive_s: if imposed { granted } else { c.keep_alive_s },
            keep_alive_imposed: imposed,
            expiry_s,
            expiry_capped: expiry_s != c.session_expiry_s,
            send_quota: c.receive_maximum.min(limits.max_inflight).max(1),
            maximum_packet_size: c.maximum_packet_size.unwrap_or(u32::MAX),
            topic_alias_maximum: c.topic_alias_maximum,
            problem_information: c.request_problem_information,
            user: SessionUser::Unknown,
            queue_policy: queue_policy(c)?,
            will: c.will.as_ref().map(|w| Will {
                message: Message::new(Parts {
                    topic: w.topic,
                    payload: w.payload,
                    properties: &w.properties.forwardable(),
                    qos: w.qos,
                    retain: w.retain,
                    expires_at: None,
                }),
                delay_s: w.delay_s,
                message_expiry_s: w.message_expiry_s,
                author: None,
            }),
            limits,
        })
    }

    /// The keep alive that the client is held to, seconds; 0 = none. MQTT 3 clients cannot be told of the server's limit, and
    /// are held to it all the same.
    pub fn silence_s(&self) -> u16 {
        self.limits.keep_alive_s(self.keep_alive_s)
    }

    /// The CONNACK that grants these settings.
    pub fn connack(&self, session_present: bool) -> ConnAck<'_> {
        ConnAck {
            session_present,
            reason: Reason::Success,
            session_expiry_s: self.expiry_capped.then_some(self.expiry_s),
            receive_maximum: Some(self.limits.receive_maximum),
            maximum_qos: (self.limits.maximum_qos < QoS::ExactlyOnce).then_some(self.limits.maximum_qos),
            maximum_packet_size: Some(self.limits.maximum_packet_size.min(ANNOUNCED_PACKET_MAX)),
            assigned_client_id: self.assigned.then_some(&*self.client_id),
            topic_alias_maximum: Some(self.limits.topic_alias_maximum),
            server_keep_alive_s: self.keep_alive_imposed.then_some(self.keep_alive_s),
            ..ConnAck::default()
        }
    }
}

/// The queue policy that a CONNECT asks for: the last one, if it names several.
fn queue_policy(c: &Connect<'_>) -> Result<Option<QueuePolicy>, Failure> {
    let asked = c.properties.user_properties().filter(|(name, _)| *name == QUEUE_POLICY_PROPERTY);
    let Some((_, value)) = asked.last() else { return Ok(None) };
    let unknown = || {
        let [new, oldest] = QueuePolicy::ALL.map(QueuePolicy::name);
        let why = format!("the user property {QUEUE_POLICY_PROPERTY} must be {new} or {oldest}");
        Failure::new(Reason::ImplementationSpecificError, why)
    };
    QueuePolicy::of(value).map(Some).ok_or_else(unknown)
}

/// Requests of this connection whose answer is outstanding, oldest first.
#[derive(Debug, Default)]
pub struct Pending {
    pub(super) requests: VecDeque<(Token, Request)>,
}

/// What an outstanding token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// SUBACK with this packet identifier.
    SubAck(u16),
    /// UNSUBACK with this packet identifier.
    UnsubAck(u16),
    /// PUBCOMP with this packet identifier.
    PubComp(u16),
    /// The QoS 2 PUBLISH with this packet identifier.
    Publish(u16),
    /// PUBREL with this packet identifier.
    PubRel(u16),
}

impl Pending {
    pub(super) fn push(&mut self, token: Token, request: Request) {
        self.requests.push_back((token, request));
    }

    /// Takes the request of `token`. Answers come nearly in order, so this looks from the front.
    pub(super) fn take(&mut self, token: Token) -> Option<Request> {
        let at = self.requests.iter().position(|(t, _)| *t == token)?;
        self.requests.remove(at).map(|(_, r)| r)
    }
}

/// When a message that may live `expiry_s` from `now` on expires.
pub(super) fn expires_at(expiry_s: Option<u32>, now: Time) -> Option<Time> {
    expiry_s.map(|s| now.plus_secs(u64::from(s)))
}
