//! Round trips of the codec over arbitrary packets, and what it does with bytes that are none.

use crate::arbitrary::{self, Block, FORWARDED, FromClient, any_from_client, version};
use berth::clock::Time;
use berth::mqtt::client::{self, ServerPacket};
use berth::mqtt::encode::{self, AckKind, Alias, ConnAck};
use berth::mqtt::message::Parts;
use berth::mqtt::{Message, Packet, Property, QoS, Reason, Version, decode, frame_len};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Checks that `decoded` says what `sent` says.
fn same(sent: &FromClient, decoded: &Packet<'_>, version: Version) {
    match (sent, decoded) {
        (
            FromClient::Connect {
                clean_start,
                keep_alive_s,
                properties,
                client_id,
                will,
                username,
                password,
            },
            Packet::Connect(c),
        ) => {
            assert_eq!((c.version, c.clean_start, c.keep_alive_s), (version, *clean_start, *keep_alive_s));
            assert_eq!(c.client_id, client_id);
            assert_eq!((c.username, c.password), (username.as_deref(), password.as_deref()));
            assert_eq!(c.properties.raw(), properties.raw());
            let expiry = if version.is_v5() || *clean_start { 0 } else { u32::MAX };
            assert_eq!(c.session_expiry_s, u32_of(properties, 0x11).unwrap_or(expiry));
            assert_eq!(c.receive_maximum, u16_of(properties, 0x21).unwrap_or(u16::MAX));
            assert_eq!(c.maximum_packet_size, u32_of(properties, 0x27));
            assert_eq!(c.topic_alias_maximum, u16_of(properties, 0x22).unwrap_or(0));
            assert_eq!(c.request_problem_information, properties.get(0x17) != Some(&[0]));
            assert_eq!(c.request_response_information, properties.get(0x19) == Some(&[1]));
            assert_eq!(c.authentication_method.map(str::as_bytes), properties.get(0x15).map(|p| &p[2..]));
            assert_eq!(c.authentication_data, properties.get(0x16).map(|p| &p[2..]));
            assert_eq!(c.will.is_some(), will.is_some());
            if let (Some(d), Some(s)) = (&c.will, will) {
                assert_eq!(
                    (d.topic, d.payload, d.qos, d.retain),
                    (&s.topic[..], &s.payload[..], s.qos, s.retain)
                );
                assert_eq!(d.delay_s, u32_of(&s.properties, 0x18).unwrap_or(0));
                assert_eq!(d.message_expiry_s, u32_of(&s.properties, 0x02));
                assert_eq!(d.properties.raw(), s.properties.raw());
                assert_eq!(*d.properties.forwardable(), s.properties.only(|id| FORWARDED.contains(&id)));
            }
        }
        (FromClient::Publish(s), Packet::Publish(d)) => {
            assert_eq!((d.topic, d.payload, d.qos), (&s.topic[..], &s.payload[..], s.qos));
            assert_eq!((d.retain, d.dup, d.packet_id), (s.retain, s.dup, s.packet_id));
            assert_eq!(d.topic_alias, u16_of(&s.properties, 0x23));
            assert_eq!(d.message_expiry_s, u32_of(&s.properties, 0x02));
            assert_eq!(d.properties.raw(), s.properties.raw());
            assert_eq!(*d.properties.forwardable(), s.properties.only(|id| FORWARDED.contains(&id)));
        }
        (FromClient::Ack { kind, packet_id, reason, .. }, decoded) => {
            let (decoded_kind, ack) = match decoded {
                Packet::PubAck(ack) => (AckKind::PubAck, ack),
                Packet::PubRec(ack) => (AckKind::PubRec, ack),
                Packet::PubRel(ack) => (AckKind::PubRel, ack),
                Packet::PubComp(ack) => (AckKind::PubComp, ack),
                other => panic!("{other:?}"),
            };
            assert_eq!((decoded_kind, ack.packet_id, ack.reason), (*kind, *packet_id, *reason));
        }
        (FromClient::Subscribe { packet_id, properties, filters }, Packet::Subscribe(d)) => {
            assert_eq!((d.packet_id, d.properties.raw()), (*packet_id, &properties.raw()[..]));
            assert_eq!(d.subscription_id.is_some(), properties.get(0x0B).is_some());
            let decoded: Vec<_> = d.filters().map(|f| (f.filter.to_owned(), f.options)).collect();
            assert_eq!(&decoded, filters);
        }
        (FromClient::Unsubscribe { packet_id, properties, filters }, Packet::Unsubscribe(d)) => {
            assert_eq!((d.packet_id, d.properties.raw()), (*packet_id, &properties.raw()[..]));
            assert_eq!(&d.filters().collect::<Vec<_>>(), filters);
        }
        (FromClient::PingReq, Packet::PingReq) => (),
        (FromClient::Disconnect { reason, properties }, Packet::Disconnect(d)) => {
            assert_eq!(
                (d.reason, d.properties.raw()),
                (reason.unwrap_or(Reason::Success), &properties.raw()[..])
            );
            assert_eq!(d.session_expiry_s, u32_of(properties, 0x11));
        }
        (FromClient::Auth { reason, properties }, Packet::Auth(d)) => {
            assert_eq!((d.reason, d.properties.raw()), (*reason, &properties.raw()[..]));
            assert_eq!(d.method.map(str::as_bytes), properties.get(0x15).map(|p| &p[2..]));
            assert_eq!(d.data, properties.get(0x16).map(|p| &p[2..]));
        }
        _ => panic!("sent {sent:?}, decoded {decoded:?}"),
    }
}

fn u32_of(block: &Block, id: u8) -> Option<u32> {
    block.get(id).map(|v| u32::from_be_bytes(v.try_into().unwrap()))
}

fn u16_of(block: &Block, id: u8) -> Option<u16> {
    block.get(id).map(|v| u16::from_be_bytes(v.try_into().unwrap()))
}

/// Whether a shared subscription asks for no local: the one thing the generator makes that is refused.
fn no_local_share(packet: &FromClient) -> bool {
    let FromClient::Subscribe { filters, .. } = packet else { return false };
    filters.iter().any(|(f, o)| o.no_local && f.starts_with("$share/"))
}

fn states() -> [Option<Version>; 4] {
    [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)]
}

proptest! {
    #[test]
    fn client_packets_round_trip((version, packet) in any_from_client()) {
        prop_assume!(!no_local_share(&packet));
        let frame = packet.encode(version);
        prop_assert_eq!(frame_len(&frame, u32::MAX), Ok(Some(frame.len())));
        let decoded = decode(packet.state(version), &frame);
        prop_assert!(decoded.is_ok(), "{:?} of {:02x?}", decoded, frame);
        same(&packet, &decoded.unwrap(), version);
    }

    #[test]
    fn properties_are_read_and_written_alike(block in arbitrary::connack_block()) {
        let raw = block.raw();
        let mut frame = vec![0, 0];
        arbitrary::varint(&mut frame, raw.len());
        frame.extend_from_slice(&raw);
        let mut packet = vec![0x20];
        arbitrary::varint(&mut packet, frame.len());
        packet.extend_from_slice(&frame);
        let Ok(ServerPacket::ConnAck(ack)) = client::decode(Version::V5, &packet) else {
            panic!("{:?}", client::decode(Version::V5, &packet));
        };
        let mut again = Vec::new();
        ack.properties.iter().for_each(|p| client::put_property(&mut again, &p));
        prop_assert_eq!(again, raw);
        prop_assert_eq!(ack.properties.user_properties().count(), block.0.iter().filter(|p| p.0 == 0x26).count());
    }

    /// Every strict prefix of a frame, and of a stream of frames, wants more bytes; a whole frame does not.
    #[test]
    fn prefixes_are_incomplete((version, packet) in any_from_client()) {
        let frame = packet.encode(version);
        for cut in 0..frame.len() {
            prop_assert_eq!(frame_len(&frame[..cut], u32::MAX), Ok(None));
        }
        let stream = [&frame[..], &frame[..1]].concat();
        prop_assert_eq!(frame_len(&stream, u32::MAX), Ok(Some(frame.len())));
    }

    #[test]
    fn too_large_is_exact((version, packet) in any_from_client()) {
        let frame = packet.encode(version);
        let len = frame.len() as u32;
        prop_assert_eq!(frame_len(&frame, len), Ok(Some(frame.len())));
        // The header alone tells.
        let error = frame_len(&frame[..5.min(frame.len())], len - 1).unwrap_err();
        prop_assert_eq!(error.reason(), Reason::PacketTooLarge);
    }

    /// Decoding never panics, also of a slice that is not one frame.
    #[test]
    fn arbitrary_bytes(bytes in vec(any::<u8>(), 0..60)) {
        for state in states() {
            let _ = frame_len(&bytes, 1000);
            let _ = decode(state, &bytes);
        }
        let _ = client::decode(Version::V311, &bytes);
        let _ = client::decode(Version::V5, &bytes);
    }

    /// Flipped bytes are refused or read, but never read past the frame.
    #[test]
    fn mutated_frames((version, packet) in any_from_client(), flips in vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mut frame = packet.encode(version);
        for (at, byte) in flips {
            let at = at % frame.len();
            frame[at] = byte;
        }
        for state in states() {
            if let Ok(Some(len)) = frame_len(&frame, u32::MAX) {
                prop_assert!(len <= frame.len());
                if let Ok(packet) = decode(state, &frame[..len]) {
                    walk(&packet);
                }
            }
            let _ = decode(state, &frame);
        }
    }

    /// What the broker sends is what the client reads.
    #[test]
    fn server_publishes_round_trip(
        version in version(),
        sent in arbitrary::publish(Version::V5),
        extras in arbitrary::server_extras(),
    ) {
        let mut frame = Vec::new();
        sent.encode_from_server(&mut frame, version, &extras);
        let Ok(ServerPacket::Publish(got)) = client::decode(version, &frame) else {
            panic!("{:?}", client::decode(version, &frame));
        };
        prop_assert_eq!((got.qos, got.retain, got.dup, got.packet_id), (sent.qos, sent.retain, sent.dup, sent.packet_id));
        prop_assert_eq!(got.payload, &sent.payload[..]);
        let message = sent.message();
        if !version.is_v5() {
            prop_assert_eq!((got.topic, got.properties.is_empty()), (message.topic(), true));
            return Ok(());
        }
        let uses = matches!(extras.alias, Some(Alias::Use(_)));
        prop_assert_eq!(got.topic, if uses { "" } else { message.topic() });
        let alias = extras.alias.map(|a| match a { Alias::Set(n) | Alias::Use(n) => n });
        prop_assert_eq!((got.topic_alias, got.message_expiry_s), (alias, extras.message_expiry_s));
        prop_assert_eq!(&*got.properties.forwardable(), message.properties());
        let ids: Vec<u32> = got.properties.iter().filter_map(|p| match p {
            Property::SubscriptionIdentifier(id) => Some(id),
            _ => None,
        }).collect();
        prop_assert_eq!(ids, extras.subscription_ids);
    }

    #[test]
    fn server_packets_round_trip(
        version in version(),
        packet_id in 1..=u16::MAX,
        text in option::of(arbitrary::text()),
        data in option::of(arbitrary::bytes()),
        number in 1..=u16::MAX,
        flag in any::<bool>(),
        user in vec((arbitrary::text(), arbitrary::text()), 0..3),
    ) {
        let user: Vec<(&str, &str)> = user.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        let text = text.as_deref();
        let mut out = Vec::new();
        encode::connack(&mut out, version, &ConnAck {
            session_present: flag,
            session_expiry_s: text.map(|_| 9),
            receive_maximum: Some(number),
            maximum_qos: Some(if flag { QoS::AtLeastOnce } else { QoS::ExactlyOnce }),
            retain_available: Some(flag),
            maximum_packet_size: Some(u32::from(number)),
            assigned_client_id: text,
            topic_alias_maximum: Some(number),
            reason_string: text,
            wildcard_subscription_available: Some(flag),
            subscription_id_available: Some(!flag),
            shared_subscription_available: Some(flag),
            server_keep_alive_s: Some(number),
            response_information: text,
            server_reference: text,
            authentication_method: Some("m"),
            authentication_data: data.as_deref(),
            user_properties: &user,
            ..ConnAck::default()
        });
        let Ok(ServerPacket::ConnAck(got)) = client::decode(version, &out) else {
            panic!("{:?}", client::decode(version, &out));
        };
        prop_assert_eq!((got.session_present, got.reason), (flag && version != Version::V31, Reason::Success));
        if version.is_v5() {
            prop_assert_eq!(got.properties.user_properties().collect::<Vec<_>>(), user);
            let expected = 10 + usize::from(flag) + 5 * usize::from(text.is_some()) + usize::from(data.is_some())
                - 1 + got.properties.user_properties().count();
            prop_assert_eq!(got.properties.iter().count(), expected);
        }

        for kind in [AckKind::PubAck, AckKind::PubRec, AckKind::PubRel, AckKind::PubComp] {
            out.clear();
            encode::ack(&mut out, version, kind, packet_id, Reason::Success, text);
            let got = match client::decode(version, &out).unwrap() {
                ServerPacket::PubAck(a) if kind == AckKind::PubAck => a,
                ServerPacket::PubRec(a) if kind == AckKind::PubRec => a,
                ServerPacket::PubRel(a) if kind == AckKind::PubRel => a,
                ServerPacket::PubComp(a) if kind == AckKind::PubComp => a,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!((got.packet_id, got.reason), (packet_id, Reason::Success));
        }

        out.clear();
        let reasons = [Reason::Success, Reason::GrantedQoS2, Reason::NotAuthorized];
        encode::suback(&mut out, version, packet_id, &reasons);
        let Ok(ServerPacket::SubAck(got)) = client::decode(version, &out) else { panic!() };
        let failure = if version.is_v5() { Reason::NotAuthorized } else { Reason::UnspecifiedError };
        prop_assert_eq!(got.reasons().collect::<Vec<_>>(), [Reason::Success, Reason::GrantedQoS2, failure]);

        out.clear();
        encode::unsuback(&mut out, version, packet_id, &[Reason::NoSubscriptionExisted]);
        let Ok(ServerPacket::UnsubAck(got)) = client::decode(version, &out) else { panic!() };
        prop_assert_eq!((got.packet_id, got.codes.len()), (packet_id, usize::from(version.is_v5())));

        out.clear();
        encode::pingresp(&mut out);
        prop_assert_eq!(client::decode(version, &out), Ok(ServerPacket::PingResp));

        out.clear();
        encode::disconnect(&mut out, Reason::ServerMoved, text, text, None);
        let Ok(ServerPacket::Disconnect(got)) = client::decode(Version::V5, &out) else { panic!() };
        prop_assert_eq!((got.reason, got.properties.iter().count()), (Reason::ServerMoved, 2 * usize::from(text.is_some())));

        out.clear();
        encode::auth(&mut out, Reason::ContinueAuthentication, "m", data.as_deref(), text);
        let Ok(ServerPacket::Auth(got)) = client::decode(Version::V5, &out) else { panic!() };
        prop_assert_eq!((got.method, got.data), (Some("m"), data.as_deref()));
    }
}

/// Reads everything a packet lends.
fn walk(packet: &Packet<'_>) {
    match packet {
        Packet::Connect(c) => assert_eq!(c.properties.iter().count() == 0, c.properties.is_empty()),
        Packet::Publish(p) => {
            let forwarded = p.properties.forwardable();
            assert!(forwarded.len() <= p.properties.raw().len());
        }
        Packet::Subscribe(s) => assert!(s.filters().count() > 0),
        Packet::Unsubscribe(u) => assert!(u.filters().count() > 0),
        _ => (),
    }
}

/// A message of every size keeps its parts.
#[test]
fn message_sizes() {
    for len in [0, 1, 100, 70_000] {
        let payload = vec![7; len];
        let message = Message::new(Parts {
            topic: "a/b",
            payload: &payload,
            properties: &[1, 1],
            qos: QoS::AtLeastOnce,
            retain: true,
            expires_at: Some(Time(5)),
        });
        assert_eq!(
            (message.qos(), message.retain(), message.expires_at()),
            (QoS::AtLeastOnce, true, Some(Time(5)))
        );
        assert_eq!(message.topic(), "a/b");
        assert_eq!(message.topic_wire(), b"\0\x03a/b");
        assert_eq!(message.payload(), &payload);
        assert_eq!(message.properties(), [1, 1]);
        assert!(message.size() >= len + 7);
    }
}
