use super::*;
use crate::mqtt::client;
use crate::mqtt::packet::{QoS, RetainHandling};

const MAX: u32 = 268_435_460;

/// Bytes from hex and text: `30 05 'abc` is 0x30 0x05 "abc".
fn bytes(spec: &str) -> Vec<u8> {
    spec.split_whitespace()
        .flat_map(|word| match word.strip_prefix('\'') {
            Some(text) => text.as_bytes().to_vec(),
            None => {
                (0..word.len()).step_by(2).map(|i| u8::from_str_radix(&word[i..i + 2], 16).unwrap()).collect()
            }
        })
        .collect()
}

/// A frame: first byte and body. Leaked, so that packets can be taken out of one expression.
fn frame(first: u8, body: &str) -> &'static [u8] {
    let mut out = Vec::new();
    crate::mqtt::wire::put_packet(&mut out, first, |out| out.extend(bytes(body)));
    out.leak()
}

fn refused(version: Option<Version>, frame: &[u8]) -> u8 {
    match frame_len(frame, MAX) {
        Ok(Some(len)) => assert_eq!(len, frame.len()),
        Ok(None) => panic!("incomplete: {frame:02x?}"),
        Err(error) => return error.reason() as u8,
    }
    match decode(version, frame) {
        Ok(packet) => panic!("accepted {frame:02x?} as {packet:?}"),
        Err(error) => error.reason() as u8,
    }
}

const V31: Option<Version> = Some(Version::V31);
const V311: Option<Version> = Some(Version::V311);
const V5: Option<Version> = Some(Version::V5);

#[test]
fn frames_are_measured_early() {
    for buf in [&[][..], &[0x30], &[0x30, 0x80], &[0x30, 0xFF, 0xFF, 0xFF], &[0x30, 2, 0]] {
        assert_eq!(frame_len(buf, MAX), Ok(None), "{buf:02x?}");
    }
    assert_eq!(frame_len(&[0xC0, 0, 0xC0], MAX), Ok(Some(2)));
    assert_eq!(header_len(&[0x30, 0xFF, 0x7F], MAX), Ok(Some(3 + 16_383)));
    assert_eq!(header_len(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], MAX), Ok(Some(5 + 268_435_455)));
    // Too large is known from the header alone, and exact.
    assert_eq!(frame_len(&[0x30, 100], 102), Ok(None));
    assert_eq!(frame_len(&[0x30, 100], 101), Err(DecodeError::TooLarge { len: 102, max: 101 }));
    // Bad from the first byte on.
    for first in 0..=255u8 {
        let fine = match first {
            0x30..=0x35 | 0x3A..=0x3D => true,
            0x62 | 0x6A | 0x82 | 0x8A | 0xA2 | 0xAA => true,
            _ => first & 0x0F == 0 && first != 0x00 && !matches!(first, 0x60 | 0x80 | 0xA0 | 0x30),
        };
        assert_eq!(frame_len(&[first], MAX).is_ok(), fine, "{first:02x}");
    }
    let error = frame_len(&[0x30, 0x80, 0x80, 0x80, 0x80], MAX).unwrap_err();
    assert_eq!(error.reason(), Reason::MalformedPacket);
}

#[test]
fn connect_of_every_version() {
    let v31 = frame(0x10, "0006 'MQIsdp 03 02 003C 0001 'a");
    let Ok(Packet::Connect(c)) = decode(None, v31) else { panic!() };
    assert_eq!((c.version, c.clean_start, c.keep_alive_s, c.client_id), (Version::V31, true, 60, "a"));

    let v311 = frame(0x10, "0004 'MQTT 04 EC 0000 0001 'a 0001 'w 0002 'hi 0001 'u 0002 0001");
    let Ok(Packet::Connect(c)) = decode(None, v311) else { panic!() };
    assert_eq!((c.clean_start, c.session_expiry_s), (false, u32::MAX));
    let will = c.will.unwrap();
    assert_eq!((will.topic, will.payload, will.qos, will.retain), ("w", &b"hi"[..], QoS::AtLeastOnce, true));
    assert_eq!((c.username, c.password), (Some("u"), Some(&[0, 1][..])));

    let v5 = frame(
        0x10,
        "0004 'MQTT 05 06 003C 1B 1100000E10 210007 2700010000 220009 1901 1700 26 0001 'k 0001 'v 0000 \
         05 180000000A 0001 'w 0000",
    );
    let Ok(Packet::Connect(c)) = decode(None, v5) else { panic!("{:?}", decode(None, v5)) };
    assert_eq!((c.session_expiry_s, c.receive_maximum, c.maximum_packet_size), (3600, 7, Some(65_536)));
    assert_eq!((c.topic_alias_maximum, c.client_id), (9, ""));
    assert!(c.request_response_information && !c.request_problem_information);
    assert_eq!(c.properties.user_properties().collect::<Vec<_>>(), [("k", "v")]);
    assert_eq!(c.will.unwrap().delay_s, 10);
    // MQTT 3.1 gives the remaining length precedence over the user name flag.
    let Ok(Packet::Connect(c)) = decode(None, frame(0x10, "0006 'MQIsdp 03 C2 003C 0001 'a")) else {
        panic!()
    };
    assert_eq!((c.username, c.password), (None, None));
}

#[test]
fn refused_connects_say_how_to_answer() {
    use Answer::*;
    let cases = [
        (Close, 0x82, "0004 'MQTX 04 02 0000 0001 'a"),
        (Close, 0x82, "0006 'MQTT31 04 02 0000 0001 'a"),
        (ConnAck(Version::V311), 0x84, "0004 'MQTT 03 02 0000 0001 'a"),
        (ConnAck(Version::V5), 0x84, "0004 'MQTT 06 02 0000 0001 'a"),
        (ConnAck(Version::V5), 0x84, "0004 'MQTT 85 02 0000 0001 'a"),
        (ConnAck(Version::V311), 0x84, "0004 'MQTT 83 02 0000 0001 'a"),
        (ConnAck(Version::V311), 0x84, "0006 'MQIsdp 84 02 0000 0001 'a"),
        (ConnAck(Version::V311), 0x84, "0006 'MQIsdp 04 02 0000 0001 'a"),
        (Close, 0x81, "0004 'MQTT"),
        (Close, 0x81, "0004 'MQTT 04 03 0000 0001 'a"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 03 0000 00 0001 'a"),
        (ConnAck(Version::V311), 0x85, "0004 'MQTT 04 00 0000 0000"),
        (ConnAck(Version::V31), 0x85, "0006 'MQIsdp 03 02 0000 0000"),
        (Close, 0x81, "0004 'MQTT 04 42 0000 0001 'a 0001 'p"),
        (Close, 0x81, "0004 'MQTT 04 0A 0000 0001 'a"),
        (Close, 0x81, "0004 'MQTT 04 22 0000 0001 'a"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 1E 0000 00 0001 'a 00 0001 'w 0000"),
        (ConnAck(Version::V5), 0x90, "0004 'MQTT 05 06 0000 00 0001 'a 00 0001 '# 0000"),
        (ConnAck(Version::V5), 0x90, "0004 'MQTT 05 06 0000 00 0001 'a 00 0000 0000"),
        (ConnAck(Version::V5), 0x99, "0004 'MQTT 05 06 0000 00 0001 'a 02 0101 0001 'w 0001 FF"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 02 0000 00 0001 'a 00"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 82 0000 00 0001 'a"),
        (ConnAck(Version::V5), 0x82, "0004 'MQTT 05 02 0000 03 210000 0001 'a"),
        (ConnAck(Version::V5), 0x82, "0004 'MQTT 05 02 0000 05 2700000000 0001 'a"),
        (ConnAck(Version::V5), 0x82, "0004 'MQTT 05 02 0000 02 1702 0001 'a"),
        (ConnAck(Version::V5), 0x82, "0004 'MQTT 05 02 0000 06 210001 210001 0001 'a"),
        (ConnAck(Version::V5), 0x82, "0004 'MQTT 05 02 0000 03 160000 0001 'a"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 02 0000 03 230001 0001 'a"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 02 0000 01 7F 0001 'a"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 02 0000 02 2100 0001 'a"),
        (ConnAck(Version::V5), 0x81, "0004 'MQTT 05 02 0000 00 0001 00"),
    ];
    for (answer, reason, body) in cases {
        let frame = frame(0x10, body);
        assert_eq!(refused(None, frame), reason, "{body}");
        assert_eq!(decode(None, frame).unwrap_err().answer(None), answer, "{body}");
    }
    assert_eq!(refused(None, &[0xC0, 0]), 0x82);
    let second = frame(0x10, "0004 'MQTT 04 02 0000 0001 'a");
    for version in [V31, V311, V5] {
        assert_eq!(refused(version, second), 0x82);
    }
}

#[test]
fn publishes() {
    let v3 = frame(0x3B, "0003 'a/b 0007 'payload");
    let Ok(Packet::Publish(p)) = decode(V311, v3) else { panic!() };
    assert!(p.dup && p.retain);
    assert_eq!((p.qos, p.topic, p.packet_id, p.payload), (QoS::AtLeastOnce, "a/b", 7, &b"payload"[..]));
    let v5 = frame(0x30, "0000 0B 230005 0200000009 0101 00");
    assert_eq!(refused(V5, v5), 0x81, "the property block is too short for its last property");
    let v5 = frame(0x30, "0000 0A 230005 0200000009 0101 00");
    let Ok(Packet::Publish(p)) = decode(V5, v5) else { panic!() };
    assert_eq!((p.topic, p.topic_alias, p.message_expiry_s, p.payload), ("", Some(5), Some(9), &[0][..]));
    assert_eq!(&*p.properties.forwardable(), &[1, 1]);
}

#[test]
fn refused_publishes() {
    let cases = [
        (V311, 0x36, 0x81, "0001 'a 0001"),
        (V311, 0x38, 0x81, "0001 'a"),
        (V311, 0x30, 0x90, "0001 '#"),
        (V5, 0x30, 0x90, "0003 'a/+ 00"),
        (V311, 0x30, 0x90, "0000"),
        (V5, 0x30, 0x82, "0000 00"),
        (V5, 0x30, 0x81, "0001 00 00"),
        (V5, 0x30, 0x81, "0003 EDA080 00"),
        (V5, 0x32, 0x82, "0001 'a 0000 00"),
        (V5, 0x32, 0x81, "0001 'a 00"),
        (V5, 0x30, 0x81, "0002 'a"),
        (V5, 0x30, 0x81, "0001 'a"),
        (V5, 0x30, 0x94, "0001 'a 03 230000"),
        (V5, 0x30, 0x82, "0001 'a 06 230001 230001"),
        (V5, 0x30, 0x82, "0001 'a 02 0B01"),
        (V5, 0x30, 0x82, "0001 'a 02 0102"),
        (V5, 0x30, 0x99, "0001 'a 02 0101 FF"),
        (V5, 0x30, 0x82, "0001 'a 04 08 0001 '#"),
        (V5, 0x30, 0x82, "0001 'a 03 08 0000"),
        (V5, 0x30, 0x81, "0001 'a 05 1100000001"),
        (V5, 0x30, 0x81, "0001 'a 8000"),
        (V5, 0x30, 0x81, "0001 'a 8080808001"),
        (V5, 0x30, 0x81, "0001 'a 05 0101"),
    ];
    for (version, first, reason, body) in cases {
        assert_eq!(refused(version, frame(first, body)), reason, "{first:02x} {body}");
    }
    // A remaining length longer than needed: forbidden only by MQTT 5 (section 1.5.5).
    let overlong = [0x30, 0x84, 0x00, 0, 1, b'a', 0];
    assert_eq!(refused(V5, &overlong), 0x81);
    assert!(decode(V311, &overlong).is_ok());
}

#[test]
fn bridges_say_so_in_the_protocol_level() {
    for (version, says, expected) in
        [(V31, true, true), (V311, true, true), (V31, false, false), (V311, false, false), (V5, true, false)]
    {
        let mut out = Vec::new();
        let connect = client::Connect {
            version: version.unwrap(),
            bridge: says,
            clean_start: true,
            keep_alive_s: 0,
            properties: &[],
            client_id: "b",
            will: None,
            username: None,
            password: None,
        };
        client::connect(&mut out, &connect);
        let Ok(Packet::Connect(c)) = decode(None, &out) else { panic!("{version:?}") };
        assert_eq!((Some(c.version), c.bridge), (version, expected));
    }
}

#[test]
fn subscribes() {
    let v5 = frame(0x82, "0001 02 0B07 0003 'a/b 2E 0001 '# 00");
    let Ok(Packet::Subscribe(s)) = decode(V5, v5) else { panic!() };
    assert_eq!((s.packet_id, s.subscription_id), (1, Some(7)));
    let filters: Vec<_> = s.filters().collect();
    assert_eq!(filters.len(), 2);
    assert_eq!(filters[0].filter, "a/b");
    let o = filters[0].options;
    assert_eq!((o.qos, o.no_local, o.retain_as_published), (QoS::ExactlyOnce, true, true));
    assert_eq!(o.retain_handling, RetainHandling::DoNotSend);
    let Ok(Packet::Unsubscribe(u)) = decode(V311, frame(0xA2, "0001 0001 'a 0000")) else { panic!() };
    assert_eq!(u.filters().collect::<Vec<_>>(), ["a", ""]);
    // DUP is MQTT 3.1's alone.
    assert!(decode(V31, frame(0x8A, "0001 0001 'a 01")).is_ok());
    assert_eq!(refused(V311, frame(0x8A, "0001 0001 'a 01")), 0x81);
    assert_eq!(refused(V5, frame(0xAA, "0001 00 0001 'a")), 0x81);
    let cases = [
        (V311, 0x82, 0x82, "0001"),
        (V5, 0x82, 0x82, "0001 00"),
        (V311, 0x82, 0x82, "0000 0001 'a 00"),
        (V311, 0x82, 0x81, "0001 0001 'a 03"),
        (V311, 0x82, 0x81, "0001 0001 'a 04"),
        (V311, 0x82, 0x81, "0001 0001 'a"),
        (V311, 0x82, 0x81, "0001 0002 'a"),
        (V5, 0x82, 0x81, "0001 00 0001 'a 40"),
        (V5, 0x82, 0x82, "0001 00 0001 'a 03"),
        (V5, 0x82, 0x82, "0001 00 0001 'a 30"),
        (V5, 0x82, 0x82, "0001 00 000A '$share/g/t 04"),
        (V5, 0x82, 0x82, "0001 02 0B00 0001 'a 00"),
        (V5, 0x82, 0x82, "0001 04 0B01 0B02 0001 'a 00"),
        (V5, 0x82, 0x81, "0001 03 0B8100 0001 'a 00"),
        (V5, 0x82, 0x81, "0001 00 0001 00 00"),
        (V311, 0xA2, 0x82, "0001"),
        (V5, 0xA2, 0x82, "0001 00"),
        (V5, 0xA2, 0x81, "0001 00 0002 'a"),
        (V5, 0xA2, 0x81, "0001 02 0B01 0001 'a"),
    ];
    for (version, first, reason, body) in cases {
        assert_eq!(refused(version, frame(first, body)), reason, "{first:02x} {body}");
    }
}

#[test]
fn acks_and_the_rest() {
    let success = Ack { packet_id: 7, reason: Reason::Success };
    assert_eq!(decode(V311, frame(0x40, "0007")), Ok(Packet::PubAck(success)));
    assert_eq!(decode(V5, frame(0x40, "0007")), Ok(Packet::PubAck(success)));
    assert_eq!(decode(V5, frame(0x62, "0007 00")), Ok(Packet::PubRel(success)));
    assert_eq!(decode(V5, frame(0x70, "0007 00 00")), Ok(Packet::PubComp(success)));
    let quota = Ack { packet_id: 7, reason: Reason::QuotaExceeded };
    assert_eq!(decode(V5, frame(0x50, "0007 97 08 1F0005 'sorry")), Ok(Packet::PubRec(quota)));
    assert_eq!(decode(V31, frame(0x6A, "0007")), Ok(Packet::PubRel(success)));
    assert_eq!(decode(V311, &[0xC0, 0]), Ok(Packet::PingReq));
    let Ok(Packet::Disconnect(d)) = decode(V5, frame(0xE0, "04 05 1100000005")) else { panic!() };
    assert_eq!((d.reason, d.session_expiry_s), (Reason::DisconnectWithWill, Some(5)));
    assert!(decode(V5, frame(0xE0, "")).is_ok() && decode(V311, frame(0xE0, "")).is_ok());
    let Ok(Packet::Auth(a)) = decode(V5, frame(0xF0, "19 08 150001 'm 160001 FF")) else { panic!() };
    assert_eq!((a.reason, a.method, a.data), (Reason::ReAuthenticate, Some("m"), Some(&[0xFF][..])));
    let cases = [
        (V311, 0x40, 0x82, "0000"),
        (V311, 0x40, 0x81, "00"),
        (V311, 0x40, 0x81, "0007 00"),
        (V5, 0x40, 0x82, "0007 01"),
        (V5, 0x40, 0x82, "0007 92"),
        (V5, 0x62, 0x82, "0007 10"),
        (V5, 0x40, 0x81, "0007 00 01"),
        (V5, 0x40, 0x81, "0007 00 00 00"),
        (V5, 0x40, 0x81, "0007 00 02 2100"),
        (V311, 0x6A, 0x81, "0007"),
        (V311, 0x41, 0x81, "0007"),
        (V311, 0xC0, 0x81, "00"),
        (V311, 0xE0, 0x81, "00"),
        (V5, 0xE0, 0x82, "8D"),
        (V5, 0xE0, 0x82, "01"),
        (V5, 0xE0, 0x81, "00 05 2100000001"),
        (V311, 0xF0, 0x81, ""),
        (V5, 0xF0, 0x82, ""),
        (V5, 0xF0, 0x82, "00 04 150001 'm"),
        (V5, 0xF0, 0x82, "18 00"),
        (V5, 0xF0, 0x82, "18 04 160001 'd"),
        (V5, 0x20, 0x82, "00 00 00"),
        (V311, 0x90, 0x82, "0001 00"),
        (V311, 0xB0, 0x82, "0001"),
        (V311, 0xD0, 0x82, ""),
        (V311, 0x00, 0x81, ""),
    ];
    for (version, first, reason, body) in cases {
        assert_eq!(refused(version, frame(first, body)), reason, "{first:02x} {body}");
    }
}

#[test]
fn errors_name_what_and_where() {
    let error = decode(V5, frame(0x30, "0001 'a 05 230001 0102")).unwrap_err();
    assert_eq!(error.to_string(), "payload format indicator is neither 0 nor 1 (byte 10)");
    assert_eq!(error.answer(V5), Answer::Disconnect);
    assert_eq!(error.answer(V311), Answer::Close);
}
