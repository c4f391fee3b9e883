//! MQTT 3.1.1 against `mqtt-protocol`.

use super::*;
use mqtt::control::variable_header::ConnectReturnCode;
use mqtt::control::variable_header::protocol_level::ProtocolLevel;
use mqtt::packet::suback::SubscribeReturnCode;
use mqtt::packet::{EncodablePacket, PublishPacket, QoSWithPacketIdentifier, VariablePacket};
use mqtt::{Decodable, TopicFilter};

const ORACLE: Oracle = Oracle { version: Version::V311, meaning, lenient: LENIENT, refuses_wrongly };

/// What they accept and we refuse, and the section that makes us right.
const LENIENT: &[Lenient] = &[
    Lenient {
        rule: "password without user name",
        section: "3.1.2.9 [MQTT-3.1.2-22]",
        example: "101000044d5154540442003c000163000170",
    },
    Lenient {
        rule: "will QoS is 3",
        section: "3.1.2.6 [MQTT-3.1.2-14]",
        example: "101300044d515454041e003c000163000177000170",
    },
    Lenient {
        rule: "client identifier goes beyond the packet",
        section: "1.5.3 (theirs takes a string that is cut short)",
        example: "100e00044d5154540402003c00056162",
    },
    Lenient {
        rule: "will payload goes beyond the packet",
        section: "3.1.3.3",
        example: "101400044d5154540406003c00016300017700056162",
    },
    Lenient {
        rule: "user name goes beyond the packet",
        section: "1.5.3",
        example: "101100044d5154540482003c00016300056162",
    },
    Lenient {
        rule: "password goes beyond the packet",
        section: "3.1.3.5",
        example: "101400044d51545404c2003c00016300017500056162",
    },
    Lenient { rule: "topic name goes beyond the packet", section: "1.5.3", example: "300400056162" },
    Lenient { rule: "topic filter goes beyond the packet", section: "1.5.3", example: "a206000100056162" },
    Lenient {
        rule: "client identifier is empty",
        section: "3.1.3.1 [MQTT-3.1.3-8] (left to the caller)",
        example: "100c00044d5154540400003c0000",
    },
    Lenient {
        rule: "not an MQTT client: unknown protocol name",
        section: "3.1.2.1 [MQTT-3.1.2-1] (left to the caller)",
        example: "100d00044d5154580402003c000163",
    },
    Lenient {
        rule: "string contains U+0000",
        section: "1.5.3 [MQTT-1.5.3-2]",
        example: "100d00044d5154540402003c000100",
    },
    Lenient { rule: "topic name contains U+0000", section: "1.5.3 [MQTT-1.5.3-2]", example: "3003000100" },
    Lenient {
        rule: "will QoS or will retain without a will",
        section: "3.1.2.6 [MQTT-3.1.2-13], 3.1.2.7 [MQTT-3.1.2-15]",
        example: "100d00044d5154540422003c000163",
    },
    Lenient { rule: "DUP set at QoS 0", section: "3.3.1.1 [MQTT-3.3.1-2]", example: "3803000161" },
    Lenient { rule: "packet identifier is 0", section: "2.3.1 [MQTT-2.3.1-1]", example: "40020000" },
    Lenient {
        rule: "SUBSCRIBE without a topic filter",
        section: "3.8.3 [MQTT-3.8.3-3]",
        example: "82020001",
    },
    Lenient {
        rule: "UNSUBSCRIBE without a topic filter",
        section: "3.10.3 [MQTT-3.10.3-2]",
        example: "a2020001",
    },
];

/// They want passwords to be text (binary in section 3.1.3.5), do not know bridges, which say so in the protocol level, and check topic
/// filters, which our decoder leaves to the session.
fn refuses_wrongly(packet: &Packet<'_>) -> bool {
    match packet {
        Packet::Connect(c) => c.bridge || c.password.is_some_and(|p| std::str::from_utf8(p).is_err()),
        Packet::Subscribe(s) => s.filters().any(|f| TopicFilter::new(f.filter).is_err()),
        Packet::Unsubscribe(u) => u.filters().any(|f| TopicFilter::new(f).is_err()),
        _ => false,
    }
}

fn read(frame: &[u8]) -> Result<VariablePacket, String> {
    let mut rest = frame;
    let packet = VariablePacket::decode(&mut rest).map_err(|e| e.to_string())?;
    if rest.is_empty() { Ok(packet) } else { Err("bytes left".to_owned()) }
}

fn qos_and_id(qos: QoSWithPacketIdentifier) -> (u8, u16) {
    let (qos, id) = qos.split();
    (qos as u8, id.unwrap_or(0))
}

/// Their own `dup` looks at a bit that is never set.
fn dup(p: &PublishPacket) -> bool {
    p.fixed_header().packet_type.flags() & 0x08 != 0
}

fn meaning(frame: &[u8]) -> Result<Meaning, String> {
    Ok(match read(frame)? {
        // Their type takes every level.
        VariablePacket::ConnectPacket(c) if c.protocol_level() != ProtocolLevel::Version311 => {
            return Err("another version".to_owned());
        }
        VariablePacket::ConnectPacket(c) => connect_means(
            c.clean_session(),
            c.keep_alive(),
            c.client_identifier(),
            c.will().map(|(topic, payload)| (topic, payload, c.will_qos(), c.will_retain())),
            c.user_name(),
            c.password().map(str::as_bytes),
            &[],
            &[],
        ),
        VariablePacket::PublishPacket(p) => {
            let (qos, id) = qos_and_id(p.qos());
            publish_means((dup(&p), qos, p.retain()), p.topic_name(), id, &[], p.payload())
        }
        VariablePacket::PubackPacket(a) => ack_means("PUBACK", a.packet_identifier(), 0),
        VariablePacket::PubrecPacket(a) => ack_means("PUBREC", a.packet_identifier(), 0),
        VariablePacket::PubrelPacket(a) => ack_means("PUBREL", a.packet_identifier(), 0),
        VariablePacket::PubcompPacket(a) => ack_means("PUBCOMP", a.packet_identifier(), 0),
        VariablePacket::SubscribePacket(s) => {
            let filters: Vec<_> = s.subscribes().iter().map(|(f, q)| (f.to_string(), *q as u8)).collect();
            filters_mean("SUBSCRIBE", s.packet_identifier(), &[], &filters)
        }
        VariablePacket::UnsubscribePacket(u) => {
            let filters: Vec<_> = u.subscribes().iter().map(|f| (f.to_string(), 0)).collect();
            filters_mean("UNSUBSCRIBE", u.packet_identifier(), &[], &filters)
        }
        VariablePacket::PingreqPacket(_) => "PINGREQ".to_owned(),
        VariablePacket::DisconnectPacket(_) => reason_means("DISCONNECT", 0, &[]),
        _ => return Err("no packet of a client".to_owned()),
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn valid_packets(packet in packets(Version::V311)) {
        ORACLE.check_valid(&packet.encode(Version::V311)).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn mutated_packets(frame in mutated(Version::V311)) {
        ORACLE.compare(&frame).map_err(TestCaseError::fail)?;
    }

    /// They read what our server says.
    #[test]
    fn server_packets(sent in crate::arbitrary::publish(Version::V311), id in 1..=u16::MAX, flag in any::<bool>()) {
        use berth::mqtt::Reason;
        use berth::mqtt::encode;
        let mut out = Vec::new();
        sent.encode_from_server(&mut out, Version::V311, &ServerExtras::default());
        let VariablePacket::PublishPacket(p) = read(&out).map_err(TestCaseError::fail)? else { panic!() };
        prop_assert_eq!((p.topic_name(), p.payload()), (&sent.topic[..], &sent.payload[..]));
        prop_assert_eq!(qos_and_id(p.qos()), (sent.qos as u8, sent.packet_id));
        prop_assert_eq!((dup(&p), p.retain()), (sent.dup, sent.retain));

        for (reason, code) in [
            (Reason::Success, ConnectReturnCode::ConnectionAccepted),
            (Reason::UnsupportedProtocolVersion, ConnectReturnCode::UnacceptableProtocolVersion),
            (Reason::ClientIdentifierNotValid, ConnectReturnCode::IdentifierRejected),
            (Reason::ServerBusy, ConnectReturnCode::ServiceUnavailable),
            (Reason::BadUserNameOrPassword, ConnectReturnCode::BadUserNameOrPassword),
            (Reason::NotAuthorized, ConnectReturnCode::NotAuthorized),
        ] {
            out.clear();
            let ack = encode::ConnAck { session_present: flag, reason, ..encode::ConnAck::default() };
            encode::connack(&mut out, Version::V311, &ack);
            let VariablePacket::ConnackPacket(c) = read(&out).map_err(TestCaseError::fail)? else { panic!() };
            prop_assert_eq!(c.connect_return_code(), code);
            prop_assert_eq!(c.connack_flags().session_present, flag && reason == Reason::Success);
        }

        out.clear();
        let reasons = [Reason::Success, Reason::GrantedQoS1, Reason::GrantedQoS2, Reason::TopicFilterInvalid];
        encode::suback(&mut out, Version::V311, id, &reasons);
        let VariablePacket::SubackPacket(s) = read(&out).map_err(TestCaseError::fail)? else { panic!() };
        use SubscribeReturnCode::*;
        prop_assert_eq!(s.packet_identifier(), id);
        prop_assert_eq!(s.subscribes(), [MaximumQoSLevel0, MaximumQoSLevel1, MaximumQoSLevel2, Failure]);

        out.clear();
        encode::unsuback(&mut out, Version::V311, id, &reasons);
        let VariablePacket::UnsubackPacket(u) = read(&out).map_err(TestCaseError::fail)? else { panic!() };
        prop_assert_eq!(u.packet_identifier(), id);
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
