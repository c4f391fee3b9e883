//! Everything that a client may not do × every version × the code on the wire, in one table.

use super::table::{RULES, VERSIONS};
use super::{PASSWORD, Rules, as_user, topics_until};
use crate::client::{Client, Dial, In, Out, Will, publish_bytes, subscribe_bytes};
use crate::wait;
use berth::mqtt::QoS::{self, AtLeastOnce, AtMostOnce, ExactlyOnce};
use berth::mqtt::{Version, frame_len};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};

/// An act of somebody who may not.
#[derive(Debug)]
enum Does {
    Subscribe(&'static [(&'static str, QoS)]),
    /// Topic, QoS, RETAIN.
    Publish(&'static str, QoS, bool),
    /// CONNECT with this will.
    LeaveWill(&'static str, QoS, bool),
    /// CONNECT with the client identifier of somebody else's session, as this user or nobody, with a clean start or not.
    TakeOver(&'static str, Option<&'static str>, bool),
}
use Does::{LeaveWill, Publish, Subscribe, TakeOver};

/// First bytes of answers.
const CONNACK: u8 = 0x20;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const SUBACK: u8 = 0x90;
const PINGRESP: u8 = 0xD0;

/// Sessions of the user `root`: one is connected, one is not, one ends with its connection.
const OWNED: [&str; 3] = ["live", "dormant", "transient"];

/// The act, the first byte of the first answer, and the codes in it in MQTT 3.1, 3.1.1 and 5. MQTT 3 has no code in PUBACK and PUBREC, and
/// at QoS 0 there is no answer: that to PINGREQ is the first. Who is refused at CONNECT is disconnected, others are not.
type Row = (Does, u8, [&'static [u8]; 3]);

fn table() -> Vec<Row> {
    let mut rows: Vec<Row> = vec![
        (Subscribe(&[("secret/#", AtLeastOnce)]), SUBACK, [&[0x80], &[0x80], &[0x87]]),
        (Subscribe(&[("secret/x", AtMostOnce)]), SUBACK, [&[0x80], &[0x80], &[0x87]]),
        (Subscribe(&[("$share/g/secret/x", ExactlyOnce)]), SUBACK, [&[0x80], &[0x80], &[0x87]]),
        (Subscribe(&[("#", ExactlyOnce)]), SUBACK, [&[0x80], &[0x80], &[0x87]]),
        (Subscribe(&[("$SYS/#", AtMostOnce)]), SUBACK, [&[0x80], &[0x80], &[0x87]]),
        // One among others: those are granted, or lowered.
        (
            Subscribe(&[("slow/#", ExactlyOnce), ("write/x", AtMostOnce), ("read/x", ExactlyOnce)]),
            SUBACK,
            [&[1, 0x80, 2], &[1, 0x80, 2], &[1, 0x87, 2]],
        ),
    ];
    for (topic, retain) in
        [("secret/x", false), ("secret/x", true), ("read/x", false), ("fresh/x", true), ("$SYS/x", false)]
    {
        rows.push((Publish(topic, AtMostOnce, retain), PINGRESP, [&[]; 3]));
        rows.push((Publish(topic, AtLeastOnce, retain), PUBACK, [&[], &[], &[0x87]]));
        rows.push((Publish(topic, ExactlyOnce, retain), PUBREC, [&[], &[], &[0x87]]));
    }
    // Allowed, but not at this QoS.
    rows.push((Publish("slow/x", ExactlyOnce, false), PUBREC, [&[], &[], &[0x87]]));
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        rows.push((LeaveWill("secret/x", qos, false), CONNACK, [&[5], &[5], &[0x87]]));
        rows.push((LeaveWill("fresh/x", qos, true), CONNACK, [&[5], &[5], &[0x87]]));
    }
    rows.push((LeaveWill("slow/x", ExactlyOnce, false), CONNACK, [&[5], &[5], &[0x87]]));
    for id in OWNED {
        for user in [Some("eve"), None] {
            rows.push((TakeOver(id, user, false), CONNACK, [&[5], &[5], &[0x87]]));
            rows.push((TakeOver(id, user, true), CONNACK, [&[5], &[5], &[0x87]]));
        }
    }
    rows
}

/// The next packet as it comes; `None` = the broker has closed.
fn next_packet(mut stream: &TcpStream) -> Option<Vec<u8>> {
    let mut packet = Vec::new();
    loop {
        match frame_len(&packet, u32::MAX).unwrap() {
            Some(len) if len == packet.len() => return Some(packet),
            _ => {}
        }
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => packet.push(byte[0]),
            Ok(_) => {
                assert!(packet.is_empty(), "half a packet: {packet:02x?}");
                return None;
            }
            Err(e) => panic!("no packet: {e}"),
        }
    }
}

/// The first byte of a packet and the codes in it.
fn codes(version: Version, packet: &[u8]) -> (u8, Vec<u8>) {
    let varint = |at: usize| 1 + packet[at..].iter().take_while(|b| **b >= 0x80).count();
    let body = 1 + varint(1);
    let codes = match packet[0] {
        CONNACK => &packet[body + 1..body + 2],
        // Success may be left out.
        PUBACK | PUBREC => packet.get(body + 2..body + 3).unwrap_or_default(),
        SUBACK if version.is_v5() => {
            let properties = body + 2;
            assert!(packet[properties] < 0x80);
            &packet[properties + 1 + usize::from(packet[properties])..]
        }
        SUBACK => &packet[body + 2..],
        _ => &[],
    };
    (packet[0], codes.to_vec())
}

/// Does it, then asks for PINGRESP: the first answer, and whether the connection is still there.
fn tried(does: &Does, version: Version, to: SocketAddr) -> ((u8, Vec<u8>), bool) {
    let mut dial = match does {
        TakeOver(id, user, clean) => {
            let dial = as_user(Dial::new(version, id).persistent(), *user);
            if *clean { dial.clean() } else { dial }
        }
        _ => Dial::new(version, "eve").user("eve", PASSWORD),
    };
    if let LeaveWill(topic, qos, retain) = *does {
        let (topic, payload) = (topic.to_owned(), "bye".to_owned());
        dial.will = Some(Will { topic, payload, qos, retain, delay_s: 0 });
    }
    let mut client = Client::raw(to, version).unwrap();
    client.send(&dial.bytes()).unwrap();
    let mut answer = codes(version, &next_packet(client.stream()).unwrap());
    let bytes = match *does {
        Subscribe(filters) => subscribe_bytes(version, 7, filters),
        Publish(topic, qos, retain) => {
            let packet_id = if qos == AtMostOnce { 0 } else { 7 };
            publish_bytes(version, &Out { topic, payload: b"x", qos, retain, dup: false, packet_id })
        }
        _ => return (answer, next_packet(client.stream()).is_some()),
    };
    assert_eq!(answer, (CONNACK, vec![0]), "{does:?}");
    client.send(&[&bytes[..], &[0xC0, 0]].concat()).unwrap();
    answer = codes(version, &next_packet(client.stream()).unwrap());
    let open = answer.0 == PINGRESP || next_packet(client.stream()).is_some_and(|p| p[0] == PINGRESP);
    client.send(&[0xE0, 0]).unwrap();
    assert_eq!(next_packet(client.stream()), None, "after a goodbye");
    (answer, open)
}

#[test]
fn every_refusal_has_its_code_in_every_version_and_does_nothing() {
    let broker = Rules::new(&RULES).setup().set("auth.client_id_theft", "refuse").start();
    let root = |id: &str| Dial::v5(id).user("root", PASSWORD);
    let mut live = root("live").persistent().connect(broker.mqtt);
    let mut transient = root("transient").connect(broker.mqtt);
    for client in [&mut live, &mut transient] {
        assert_eq!(client.subscribe(&[("#", ExactlyOnce)]), [2]);
    }
    let mut dormant = root("dormant").persistent().connect(broker.mqtt);
    dormant.subscribe(&[("open/#", AtLeastOnce)]);
    dormant.disconnect();

    let table = table();
    let mut wrong = Vec::new();
    for (at, version) in VERSIONS.into_iter().enumerate() {
        for (does, first, expected) in &table {
            let (answer, open) = tried(does, version, broker.mqtt);
            if answer != (*first, expected[at].to_vec()) || open == (*first == CONNACK) {
                wrong.push(format!("{version:?} {does:?}: {answer:02x?}, open: {open}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));

    // Nobody got anything, whoever was connected is, and sessions are whose they were.
    live.publish("open/end", "", AtLeastOnce);
    for client in [&mut live, &mut transient] {
        assert_eq!(topics_until(client, "open/end"), [""; 0]);
    }
    let (mut dormant, answer) = root("dormant").persistent().try_connect(broker.mqtt).unwrap();
    assert!(matches!(answer, In::ConnAck { present: true, .. }), "{answer:?}");
    assert_eq!(topics_until(&mut dormant, "open/end"), [""; 0]);
    let mut late = root("late").connect(broker.mqtt);
    late.subscribe(&[("#", AtMostOnce)]);
    late.publish("open/end", "", AtMostOnce);
    assert_eq!(topics_until(&mut late, "open/end"), [""; 0], "what was refused is not retained");
    let all =
        |what: fn(&Does) -> bool| (table.iter().filter(|row| what(&row.0)).count() * VERSIONS.len()) as f64;
    wait::until_true("all is counted", || {
        broker.metric("berth_client_id_thefts_total") == all(|does| matches!(does, TakeOver(..)))
            && broker.metric("berth_acl_denied_total{kind=\"publish\"}")
                == all(|does| matches!(does, Publish(..)))
            && broker.metric("berth_acl_denied_total{kind=\"subscribe\"}")
                == all(|does| matches!(does, Subscribe(..)))
    });
}
