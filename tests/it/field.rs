//! What Home Assistant and zigbee2mqtt do with retained messages, against one broker (`cluster/field.rs`: against three nodes), and
//! what becomes of messages that a limit forbids to be retained.

use crate::broker::Setup;
use crate::client::{Client, Dial, In, Will};
use crate::clients::paho_script;
use crate::wait;
use berth::mqtt::{QoS, Reason, Version};
use std::net::SocketAddr;

/// Large enough for everything here; the largest retained payload is not touched.
pub const PACKETS: (&str, &str) = ("limits.max_packet_size", "16MiB");

/// Plays every scenario of `field_client.py`.
pub fn field(version: &str, nodes: &[SocketAddr]) {
    let ports: Vec<String> = nodes.iter().map(|node| node.port().to_string()).collect();
    let done = paho_script("field_client.py", &[version, &ports.join(",")]);
    assert_eq!(done.lines().count(), 8, "{done}");
}

/// What a new subscription is sent for `filter`. What is retained on another topic comes to the next one, and marks the end.
pub fn looked(to: SocketAddr, filter: &str) -> Vec<(String, Vec<u8>)> {
    let mut client = Dial::v5("looks").connect(to);
    client.publish_with("end", b"end", QoS::AtLeastOnce, true);
    assert_eq!(client.subscribe(&[(filter, QoS::AtLeastOnce)]), [1]);
    assert_eq!(client.subscribe(&[("end", QoS::AtLeastOnce)]), [1]);
    let mut found = Vec::new();
    loop {
        let p = client.receive();
        if p.topic == "end" {
            found.sort();
            return found;
        }
        // The rest is published just now.
        if p.retain {
            found.push((p.topic, p.payload));
        }
    }
}

/// As [`looked`], for one topic.
pub fn kept(to: SocketAddr, topic: &str) -> Option<Vec<u8>> {
    looked(to, topic).pop().map(|(_, payload)| payload)
}

/// Retains `payload` at QoS 1.
pub fn retain(client: &mut Client, topic: &str, payload: &[u8]) -> Reason {
    client.publish_with(topic, payload, QoS::AtLeastOnce, true)
}

/// A client that leaves a will with RETAIN.
pub fn with_will(version: Version, client_id: &str, topic: &str, payload: &str) -> Dial {
    let (topic, payload) = (topic.to_owned(), payload.to_owned());
    let will = Will { topic, payload, qos: QoS::AtLeastOnce, retain: true, delay_s: 0 };
    Dial { will: Some(will), ..Dial::new(version, client_id) }
}

#[test]
fn home_assistant_and_zigbee2mqtt_by_mqtt_3() {
    field("3", &[Setup::new().set(PACKETS.0, PACKETS.1).start().mqtt]);
}

#[test]
fn home_assistant_and_zigbee2mqtt_by_mqtt_5() {
    field("5", &[Setup::new().set(PACKETS.0, PACKETS.1).start().mqtt]);
}

/// Paho gives up on a CONNACK with a maximum packet size above 268,435,455.
#[test]
fn paho_connects_where_the_largest_packets_are_allowed() {
    let broker = Setup::new().set(PACKETS.0, "268435460").start();
    let port = broker.mqtt.port().to_string();
    for version in ["5", "3"] {
        let done = paho_script("field_client.py", &[version, &port, "availability"]);
        assert_eq!(done.lines().count(), 2, "{done}");
    }
}

#[test]
fn a_cleared_message_does_not_come_back_with_a_restart() {
    let mut broker = Setup::new().set("retained.max_payload", "50KiB").set("log.format", "json").start();
    let mut client = Dial::v5("sensor-7").connect(broker.mqtt);
    for topic in ["accepted", "refused", "will"] {
        assert!(!retain(&mut client, topic, b"old").is_error());
    }
    let large = vec![b'x'; 60_000];
    client.send_publish("accepted", &large, QoS::AtMostOnce, true).unwrap();
    assert_eq!(retain(&mut client, "refused", &large), Reason::QuotaExceeded);
    // Both say who, where, which limit and how large.
    for topic in ["accepted", "refused"] {
        broker.wait_log(|line| {
            let says = |text: &str| line.contains(text);
            says("sensor-7") && says(topic) && says("retained.max_payload") && says("51200") && says("60000")
        });
    }
    for (version, will) in [(Version::V311, "will"), (Version::V31, "will"), (Version::V5, "will")] {
        let (_, answer) =
            with_will(version, "bridge-1", will, &"x".repeat(60_000)).try_connect(broker.mqtt).unwrap();
        let In::ConnAck { reason, properties, .. } = answer else { panic!("{answer:?}") };
        let told = if version.is_v5() { Reason::QuotaExceeded } else { Reason::ServerUnavailable };
        assert_eq!(reason, told);
        let said = |text: &str| properties.iter().any(|p| p.contains(text));
        assert_eq!(said("retained.max_payload") && said("51200") && said("60000"), version.is_v5());
    }
    broker.wait_log(|line| ["bridge-1", "\"will\"", "retained.max_payload"].iter().all(|t| line.contains(t)));
    for restarted in [false, true] {
        if restarted {
            broker.sigkill();
            broker.restart();
        }
        for (topic, left) in
            [("accepted", None), ("refused", Some(b"old".to_vec())), ("will", Some(b"old".to_vec()))]
        {
            assert_eq!(kept(broker.mqtt, topic), left, "{topic}, restarted: {restarted}");
        }
    }
}

#[test]
fn a_journal_in_memory_that_is_full_keeps_what_it_has_or_nothing() {
    let broker = Setup::new()
        .set(PACKETS.0, PACKETS.1)
        .set("storage.type", "memory")
        .set("storage.memory_max", "1MiB")
        .set("publish.timeout", "2s")
        .start();
    let mut client = Dial::v5("c").connect(broker.mqtt);
    assert!(!retain(&mut client, "half", &[b'h'; 600 << 10]).is_error());
    for topic in ["accepted", "refused"] {
        assert!(!retain(&mut client, topic, b"old").is_error());
    }
    let large = [b'x'; 500 << 10];
    assert_eq!(retain(&mut client, "refused", &large), Reason::QuotaExceeded);
    client.send_publish("accepted", &large, QoS::AtMostOnce, true).unwrap();
    wait::until_true("it is cleared", || kept(broker.mqtt, "accepted").is_none());
    assert_eq!(kept(broker.mqtt, "refused").as_deref(), Some(&b"old"[..]));
    assert_eq!(broker.get("/ready").0, 200, "{}", broker.get("/ready").1);
    // And what takes the place of something goes by the difference.
    assert!(!retain(&mut client, "half", &[b'i'; 900 << 10]).is_error());
    assert_eq!(kept(broker.mqtt, "half").map(|p| p.len()), Some(900 << 10));
}

/// The log does not grow with what a client does wrong.
#[test]
fn a_client_whose_messages_are_not_retained_fills_no_log() {
    let broker = Setup::new().set("retained.max_payload", "10").start();
    let mut client = Dial::v5("c").connect(broker.mqtt);
    for n in 0..100 {
        client.send_publish(&format!("t/{n}"), b"eleven byte", QoS::AtMostOnce, true).unwrap();
    }
    assert_eq!(retain(&mut client, "t/a", b"eleven byte"), Reason::QuotaExceeded);
    let refused = || broker.metric("berth_publishes_refused_total{reason=\"quota\"}");
    wait::until_true("all are counted", || refused() == 101.0);
    let about = |l: &&str| l.contains("retained.max_payload=10");
    wait::until_true("the first one is told", || broker.log().lines().any(|l| about(&l)));
    let log = broker.log();
    let lines: Vec<&str> = log.lines().filter(about).collect();
    assert!(lines.len() == 1 && lines[0].contains("client=c") && lines[0].contains("topic=t/0"), "{lines:?}");
}
