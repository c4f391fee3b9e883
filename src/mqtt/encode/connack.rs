//! CONNACK (MQTT 5.0 section 3.2).

use crate::mqtt::decode::kind;
use crate::mqtt::packet::{QoS, Version};
use crate::mqtt::property::Property;
use crate::mqtt::reason::Reason;
use crate::mqtt::wire::{put_block, put_packet};

/// What a CONNACK says. A field left `None` is not sent, and then means what section 3.2.2.3 says of its absence;
/// MQTT 3 has only the first two.
#[derive(Clone, Debug)]
pub struct ConnAck<'a> {
    /// Whether the session existed. Sent as false with any reason but success (section 3.2.2.1.1).
    pub session_present: bool,
    /// The outcome; MQTT 3 gets [`Reason::connack_v3`].
    pub reason: Reason,
    /// Session expiry interval in seconds, if not what the client asked for.
    pub session_expiry_s: Option<u32>,
    /// How many QoS 1 and 2 publishes the server takes at once; never 0.
    pub receive_maximum: Option<u16>,
    /// The highest QoS the server takes, if not 2.
    pub maximum_qos: Option<QoS>,
    /// Whether retained messages are supported.
    pub retain_available: Option<bool>,
    /// The largest packet the server takes, in bytes; never 0.
    pub maximum_packet_size: Option<u32>,
    /// The client identifier the server chose.
    pub assigned_client_id: Option<&'a str>,
    /// The highest topic alias the server takes.
    pub topic_alias_maximum: Option<u16>,
    /// For humans.
    pub reason_string: Option<&'a str>,
    /// Whether wildcard subscriptions are supported.
    pub wildcard_subscription_available: Option<bool>,
    /// Whether subscription identifiers are supported.
    pub subscription_id_available: Option<bool>,
    /// Whether shared subscriptions are supported.
    pub shared_subscription_available: Option<bool>,
    /// The keep alive to use instead of the client's, in seconds.
    pub server_keep_alive_s: Option<u16>,
    /// Basis of response topics.
    pub response_information: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// Authentication method.
    pub authentication_method: Option<&'a str>,
    /// Authentication data.
    pub authentication_data: Option<&'a [u8]>,
    /// User properties.
    pub user_properties: &'a [(&'a str, &'a str)],
}

impl Default for ConnAck<'_> {
    fn default() -> Self {
        ConnAck {
            session_present: false,
            reason: Reason::Success,
            session_expiry_s: None,
            receive_maximum: None,
            maximum_qos: None,
            retain_available: None,
            maximum_packet_size: None,
            assigned_client_id: None,
            topic_alias_maximum: None,
            reason_string: None,
            wildcard_subscription_available: None,
            subscription_id_available: None,
            shared_subscription_available: None,
            server_keep_alive_s: None,
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
            user_properties: &[],
        }
    }
}

/// CONNACK. MQTT 3.1 has no session present flag: it is sent as 0.
pub fn connack(out: &mut Vec<u8>, version: Version, p: &ConnAck<'_>) {
    let session_present = u8::from(p.session_present && p.reason == Reason::Success);
    match version {
        Version::V31 => out.extend_from_slice(&[kind::CONNACK << 4, 2, 0, p.reason.connack_v3()]),
        Version::V311 => {
            out.extend_from_slice(&[kind::CONNACK << 4, 2, session_present, p.reason.connack_v3()]);
        }
        Version::V5 => put_packet(out, kind::CONNACK << 4, |out| {
            out.extend_from_slice(&[session_present, p.reason as u8]);
            put_block(out, |out| properties(out, p));
        }),
    }
}

fn properties(out: &mut Vec<u8>, p: &ConnAck<'_>) {
    // Only 0 and 1 can be said of the maximum QoS: 2 is its absence (section 3.2.2.3.4).
    let maximum_qos = p.maximum_qos.filter(|&qos| qos != QoS::ExactlyOnce).map(|qos| qos as u8);
    let single = [
        p.session_expiry_s.map(Property::SessionExpiryInterval),
        p.receive_maximum.map(Property::ReceiveMaximum),
        maximum_qos.map(Property::MaximumQoS),
        p.retain_available.map(Property::RetainAvailable),
        p.maximum_packet_size.map(Property::MaximumPacketSize),
        p.assigned_client_id.map(Property::AssignedClientIdentifier),
        p.topic_alias_maximum.map(Property::TopicAliasMaximum),
        p.reason_string.map(Property::ReasonString),
        p.wildcard_subscription_available.map(Property::WildcardSubscriptionAvailable),
        p.subscription_id_available.map(Property::SubscriptionIdentifierAvailable),
        p.shared_subscription_available.map(Property::SharedSubscriptionAvailable),
        p.server_keep_alive_s.map(Property::ServerKeepAlive),
        p.response_information.map(Property::ResponseInformation),
        p.server_reference.map(Property::ServerReference),
        p.authentication_method.map(Property::AuthenticationMethod),
        p.authentication_data.map(Property::AuthenticationData),
    ];
    for property in single.iter().flatten() {
        property.put(out);
    }
    for (name, value) in p.user_properties {
        Property::UserProperty(name, value).put(out);
    }
}
