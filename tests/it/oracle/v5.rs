//! MQTT 5.0 against `mqtt-protocol-core`.

use super::*;
use berth::mqtt::encode::{self, AckKind, Alias};
use berth::mqtt::{QoS, Reason};
use mqtt_protocol_core::mqtt::packet::{Property, v5_0 as theirs};
use std::sync::Arc;

const ORACLE: Oracle = Oracle { version: Version::V5, meaning, lenient: LENIENT, refuses_wrongly };

/// What they accept and we refuse, and the section that makes us right.
const LENIENT: &[Lenient] = &[
    Lenient {
        rule: "remaining length is longer than it must be",
        section: "1.5.5 [MQTT-1.5.5-1] (their decoders are not shown it)",
        example: "c08000",
    },
    Lenient {
        rule: "no local on a shared subscription",
        section: "3.8.3.1 [MQTT-3.8.3-4]",
        example: "8210000100000a2473686172652f672f7404",
    },
    Lenient {
        rule: "property is given more than once",
        section: "3.8.2.1.2 (theirs takes two subscription identifiers in SUBSCRIBE)",
        example: "820b0001040b010b0100016100",
    },
    Lenient {
        rule: "will topic is empty",
        section: "4.7.3 [MQTT-4.7.3-1]",
        example: "101400044d5154540506003c00000163000000000170",
    },
    Lenient {
        rule: "authentication data without authentication method",
        section: "3.1.2.11.10",
        example: "101200044d5154540502003c0416000164000163",
    },
    Lenient {
        rule: "subscription identifier in a client's PUBLISH",
        section: "3.3.4 [MQTT-3.3.4-6] (theirs reads a server's PUBLISH, too)",
        example: "3006000161020b01",
    },
    Lenient {
        rule: "reserved flags of the fixed header",
        section: "2.1.3 [MQTT-2.1.3-1] (their decoders are not shown the flags)",
        example: "41020001",
    },
    Lenient { rule: "DUP set at QoS 0", section: "3.3.1.1 [MQTT-3.3.1-2]", example: "380400016100" },
    Lenient {
        rule: "reserved bit of the connect flags",
        section: "3.1.2.3 [MQTT-3.1.2-3]",
        example: "100e00044d5154540503003c00000163",
    },
    Lenient {
        rule: "will QoS is 3",
        section: "3.1.2.6 [MQTT-3.1.2-12]",
        example: "101500044d515454051e003c0000016300000177000170",
    },
    Lenient {
        rule: "will QoS or will retain without a will",
        section: "3.1.2.6 [MQTT-3.1.2-11], 3.1.2.7 [MQTT-3.1.2-13]",
        example: "100e00044d5154540522003c00000163",
    },
    Lenient { rule: "topic name has wildcards", section: "3.3.2.1 [MQTT-3.3.2-2]", example: "300400012300" },
    Lenient { rule: "topic name contains U+0000", section: "1.5.4 [MQTT-1.5.4-2]", example: "300400010000" },
    Lenient {
        rule: "string contains U+0000",
        section: "1.5.4 [MQTT-1.5.4-2]",
        example: "100e00044d5154540502003c00000100",
    },
    Lenient { rule: "neither topic name nor topic alias", section: "3.3.2.1", example: "3003000000" },
    Lenient {
        rule: "response topic is empty or has wildcards",
        section: "3.3.2.3.5 [MQTT-3.3.2-14], 4.7.3 [MQTT-4.7.3-1]",
        example: "30080001610408000123",
    },
    Lenient { rule: "packet identifier is 0", section: "2.2.1 [MQTT-2.2.1-3]", example: "3206000161000000" },
    Lenient { rule: "property length is missing", section: "2.2.2.1", example: "3003000161" },
    Lenient {
        rule: "payload is not the UTF-8 it says it is",
        section: "3.3.2.3.2 allows the check",
        example: "3007000161020101ff",
    },
    Lenient {
        rule: "will payload is not the UTF-8 it says it is",
        section: "3.1.3.2.3 allows the check",
        example: "101700044d5154540506003c000001630201010001770001ff",
    },
    Lenient {
        rule: "variable byte integer is longer than it must be",
        section: "1.5.5 [MQTT-1.5.5-1]",
        example: "820a0001030b810000016100",
    },
    Lenient {
        rule: "reason code that this packet cannot have",
        section: "3.14.2.1, 3.15.2.1 (their decoders take what servers send, too)",
        example: "e0018d",
    },
    Lenient {
        rule: "AUTH without reason code from a client",
        section: "3.15.2.1: it means success, which servers send (their decoders take what servers send, too)",
        example: "f000",
    },
];

/// MQTT 5 has passwords without user names (3.1.2.9), theirs have not.
fn refuses_wrongly(packet: &Packet<'_>) -> bool {
    matches!(packet, Packet::Connect(c) if c.username.is_none() && c.password.is_some())
}

fn raw(properties: &[Property]) -> Vec<u8> {
    properties.iter().flat_map(Property::to_continuous_buffer).collect()
}

fn raw_of(properties: Option<&Vec<Property>>) -> Vec<u8> {
    raw(properties.map(|p| &p[..]).unwrap_or_default())
}

/// What they make of the frame. Their decoders want the body alone; some look at no flags.
fn meaning(frame: &[u8]) -> Result<Meaning, String> {
    let (first, body) = split(frame);
    macro_rules! parse {
        ($packet:ident) => {{
            let (packet, used) = theirs::$packet::parse(body).map_err(|e| format!("{e:?}"))?;
            if used != body.len() {
                return Err("bytes left".to_owned());
            }
            packet
        }};
    }
    macro_rules! ack {
        ($packet:ident, $name:expr) => {{
            let packet = parse!($packet);
            ack_means($name, packet.packet_id(), packet.reason_code().map_or(0, |r| r as u8))
        }};
    }
    Ok(match first >> 4 {
        1 => {
            let c = parse!(Connect);
            let will = c.will_flag().then(|| {
                (
                    c.will_topic().unwrap(),
                    c.will_payload().unwrap_or_default(),
                    c.will_qos() as u8,
                    c.will_retain(),
                )
            });
            connect_means(
                c.clean_start(),
                c.keep_alive(),
                c.client_id(),
                will,
                c.user_name(),
                c.password(),
                &raw(c.props()),
                &raw(&c.will_props),
            )
        }
        3 => {
            let (p, _) =
                theirs::Publish::parse(first & 0x0F, Arc::from(body)).map_err(|e| format!("{e:?}"))?;
            publish_means(
                (p.dup(), p.qos() as u8, p.retain()),
                p.topic_name(),
                p.packet_id().unwrap_or(0),
                &raw(p.props()),
                p.payload().as_slice(),
            )
        }
        4 => ack!(Puback, "PUBACK"),
        5 => ack!(Pubrec, "PUBREC"),
        6 => ack!(Pubrel, "PUBREL"),
        7 => ack!(Pubcomp, "PUBCOMP"),
        8 => {
            let s = parse!(Subscribe);
            let filters: Vec<_> = s
                .entries()
                .iter()
                .map(|e| (e.topic_filter().to_owned(), e.sub_opts().to_buffer()[0]))
                .collect();
            filters_mean("SUBSCRIBE", s.packet_id(), &raw(s.props()), &filters)
        }
        10 => {
            let u = parse!(Unsubscribe);
            let filters: Vec<_> = u.entries().iter().map(|e| (e.as_str().to_owned(), 0)).collect();
            filters_mean("UNSUBSCRIBE", u.packet_id(), &raw(u.props()), &filters)
        }
        12 => {
            parse!(Pingreq);
            "PINGREQ".to_owned()
        }
        14 => {
            let d = parse!(Disconnect);
            reason_means("DISCONNECT", d.reason_code().map_or(0, |r| r as u8), &raw_of(d.props().as_ref()))
        }
        15 => {
            let a = parse!(Auth);
            reason_means("AUTH", a.reason_code().map_or(0, |r| r as u8), &raw_of(a.props().as_ref()))
        }
        _ => return Err("no packet of a client".to_owned()),
    })
}

/// Whether they read what our server says, and would say it with the same bytes.
macro_rules! same_bytes {
    ($packet:ident, $frame:expr) => {{
        let (_, body) = split($frame);
        let (packet, used) =
            theirs::$packet::parse(body).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
        prop_assert_eq!(used, body.len());
        prop_assert_eq!(&packet.to_continuous_buffer(), $frame);
        packet
    }};
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn valid_packets(packet in packets(Version::V5)) {
        ORACLE.check_valid(&packet.encode(Version::V5)).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn mutated_packets(frame in mutated(Version::V5)) {
        ORACLE.compare(&frame).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn server_publishes(sent in crate::arbitrary::publish(Version::V5), extras in server_extras()) {
        let mut out = Vec::new();
        sent.encode_from_server(&mut out, Version::V5, &extras);
        let (first, body) = split(&out);
        let parsed = theirs::Publish::parse(first & 0x0F, Arc::from(body));
        let (p, _) = parsed.map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
        prop_assert_eq!(&p.to_continuous_buffer(), &out);
        let topic = if sent.topic.is_empty() { "t" } else { &sent.topic };
        prop_assert_eq!(p.topic_name(), if matches!(extras.alias, Some(Alias::Use(_))) { "" } else { topic });
        prop_assert_eq!(p.payload().as_slice(), &sent.payload[..]);
        prop_assert_eq!((p.dup(), p.qos() as u8, p.retain()), (sent.dup, sent.qos as u8, sent.retain));
        let ids = p.props().iter().filter(|p| matches!(p, Property::SubscriptionIdentifier(_))).count();
        prop_assert_eq!(ids, extras.subscription_ids.len());
    }

    #[test]
    fn server_packets(
        id in 1..=u16::MAX,
        number in 1..=u16::MAX,
        flag in any::<bool>(),
        text in crate::arbitrary::text(),
        some in proptest::option::of(crate::arbitrary::text()),
        data in crate::arbitrary::bytes(),
    ) {
        let some = some.as_deref();
        let mut out = Vec::new();
        encode::connack(&mut out, Version::V5, &encode::ConnAck {
            session_present: flag,
            session_expiry_s: some.map(|_| 9),
            receive_maximum: Some(number),
            maximum_qos: Some(QoS::AtLeastOnce),
            retain_available: Some(flag),
            maximum_packet_size: Some(u32::from(number)),
            assigned_client_id: some,
            topic_alias_maximum: Some(number),
            reason_string: some,
            wildcard_subscription_available: Some(flag),
            subscription_id_available: Some(!flag),
            shared_subscription_available: Some(flag),
            server_keep_alive_s: Some(number),
            response_information: some,
            server_reference: some,
            authentication_method: Some(&text),
            authentication_data: Some(&data),
            user_properties: &[(&text, "v"), ("", &text)],
            ..encode::ConnAck::default()
        });
        prop_assert_eq!(same_bytes!(Connack, &out).session_present(), flag);

        for (kind, reason) in [
            (AckKind::PubAck, Reason::NoMatchingSubscribers),
            (AckKind::PubRec, Reason::QuotaExceeded),
            (AckKind::PubRel, Reason::PacketIdentifierNotFound),
            (AckKind::PubComp, Reason::PacketIdentifierNotFound),
        ] {
            for reason in [Reason::Success, reason] {
                out.clear();
                encode::ack(&mut out, Version::V5, kind, id, reason, some);
                let read = match kind {
                    AckKind::PubAck => same_bytes!(Puback, &out).packet_id(),
                    AckKind::PubRec => same_bytes!(Pubrec, &out).packet_id(),
                    AckKind::PubRel => same_bytes!(Pubrel, &out).packet_id(),
                    AckKind::PubComp => same_bytes!(Pubcomp, &out).packet_id(),
                };
                prop_assert_eq!(read, id);
            }
        }

        out.clear();
        encode::suback(&mut out, Version::V5, id, &[Reason::GrantedQoS2, Reason::TopicFilterInvalid]);
        prop_assert_eq!(same_bytes!(Suback, &out).reason_codes().len(), 2);
        out.clear();
        encode::unsuback(&mut out, Version::V5, id, &[Reason::Success, Reason::NoSubscriptionExisted]);
        prop_assert_eq!(same_bytes!(Unsuback, &out).reason_codes().len(), 2);
        out.clear();
        encode::disconnect(&mut out, Reason::ServerMoved, some, Some(&text), None);
        same_bytes!(Disconnect, &out);
        out.clear();
        encode::auth(&mut out, Reason::ContinueAuthentication, &text, Some(&data), some);
        same_bytes!(Auth, &out);
        out.clear();
        encode::pingresp(&mut out);
        same_bytes!(Pingresp, &out);
    }
}

#[test]
fn the_list_is_needed() {
    ORACLE.check_list();
}

#[test]
fn corpus() {
    ORACLE.check_corpus();
}
