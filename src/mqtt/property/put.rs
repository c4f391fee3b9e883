//! Properties to bytes.

use super::{Property, id};
use crate::mqtt::wire::{put_binary, put_str, put_varint};

impl Property<'_> {
    /// Appends the property as it stands on the wire.
    pub(in crate::mqtt) fn put(&self, out: &mut Vec<u8>) {
        use Property::*;
        match *self {
            PayloadFormatIndicator(v) => out.extend([id::PAYLOAD_FORMAT_INDICATOR, u8::from(v)]),
            MessageExpiryInterval(v) => put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, v),
            ContentType(v) => put_text(out, id::CONTENT_TYPE, v),
            ResponseTopic(v) => put_text(out, id::RESPONSE_TOPIC, v),
            CorrelationData(v) => put_data(out, id::CORRELATION_DATA, v),
            SubscriptionIdentifier(v) => {
                out.push(id::SUBSCRIPTION_IDENTIFIER);
                put_varint(out, v);
            }
            SessionExpiryInterval(v) => put_u32(out, id::SESSION_EXPIRY_INTERVAL, v),
            AssignedClientIdentifier(v) => put_text(out, id::ASSIGNED_CLIENT_IDENTIFIER, v),
            ServerKeepAlive(v) => put_u16(out, id::SERVER_KEEP_ALIVE, v),
            AuthenticationMethod(v) => put_text(out, id::AUTHENTICATION_METHOD, v),
            AuthenticationData(v) => put_data(out, id::AUTHENTICATION_DATA, v),
            RequestProblemInformation(v) => out.extend([id::REQUEST_PROBLEM_INFORMATION, u8::from(v)]),
            WillDelayInterval(v) => put_u32(out, id::WILL_DELAY_INTERVAL, v),
            RequestResponseInformation(v) => out.extend([id::REQUEST_RESPONSE_INFORMATION, u8::from(v)]),
            ResponseInformation(v) => put_text(out, id::RESPONSE_INFORMATION, v),
            ServerReference(v) => put_text(out, id::SERVER_REFERENCE, v),
            ReasonString(v) => put_text(out, id::REASON_STRING, v),
            ReceiveMaximum(v) => put_u16(out, id::RECEIVE_MAXIMUM, v),
            TopicAliasMaximum(v) => put_u16(out, id::TOPIC_ALIAS_MAXIMUM, v),
            TopicAlias(v) => put_u16(out, id::TOPIC_ALIAS, v),
            MaximumQoS(v) => out.extend([id::MAXIMUM_QOS, v]),
            RetainAvailable(v) => out.extend([id::RETAIN_AVAILABLE, u8::from(v)]),
            UserProperty(name, value) => {
                put_text(out, id::USER_PROPERTY, name);
                put_str(out, value);
            }
            MaximumPacketSize(v) => put_u32(out, id::MAXIMUM_PACKET_SIZE, v),
            WildcardSubscriptionAvailable(v) => {
                out.extend([id::WILDCARD_SUBSCRIPTION_AVAILABLE, u8::from(v)]);
            }
            SubscriptionIdentifierAvailable(v) => {
                out.extend([id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, u8::from(v)]);
            }
            SharedSubscriptionAvailable(v) => out.extend([id::SHARED_SUBSCRIPTION_AVAILABLE, u8::from(v)]),
        }
    }
}

fn put_u16(out: &mut Vec<u8>, id: u8, value: u16) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u32(out: &mut Vec<u8>, id: u8, value: u32) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, id: u8, text: &str) {
    out.push(id);
    put_str(out, text);
}

fn put_data(out: &mut Vec<u8>, id: u8, bytes: &[u8]) {
    out.push(id);
    put_binary(out, bytes);
}
