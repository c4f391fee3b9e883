//! A session moves to another node, with its queue and in the middle of handshakes.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In, Out, Received, publish_bytes};
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};

/// Nothing but 0x8E comes on a connection that was taken over (G1).
fn told_and_closed(mut old: Client) {
    assert_eq!(old.recv(), In::Disconnect(Reason::SessionTakenOver));
    assert_eq!(old.recv(), In::Closed);
}

/// The session goes on at node `i`; the old connection is told.
fn move_to(cluster: &BerthCluster, i: usize, dial: &Dial, old: Client) -> Client {
    let new = cluster.connect(i, dial);
    assert!(new.present, "{} at node {i}", dial.client_id);
    told_and_closed(old);
    new
}

/// What comes before the answer to a PING, besides.
fn nothing_more(client: &mut Client) {
    client.send(&[0xC0, 0]).unwrap();
    assert_eq!(client.recv(), In::PingResp);
}

fn again(dup: bool, p: &Received) -> (u16, String, QoS, bool) {
    (p.packet_id, p.text().to_owned(), p.qos, dup)
}

#[test]
fn a_session_moves_with_its_queue_and_what_is_in_flight() {
    let cluster = BerthCluster::start(3);
    let dial = Dial::v5("mover").persistent().receive_maximum(20);
    let mut old = cluster.connect(0, &dial);
    assert_eq!(old.subscribe(&[("q/+", QoS::ExactlyOnce)]), [2]);
    let mut publisher = cluster.connect(1, &Dial::v5("publisher"));
    for n in 0..120 {
        let qos = if n % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        publisher.publish("q/x", &n.to_string(), qos);
    }
    let in_flight: Vec<_> = (0..20).map(|_| old.receive_only()).collect();
    let mut new = move_to(&cluster, 2, &dial, old);
    let mut seen: [Vec<u32>; 2] = Default::default();
    for n in 0..120 {
        let p = new.receive();
        match in_flight.get(n) {
            Some(first) => assert_eq!(again(p.dup, &p), again(true, first)),
            None => assert!(!p.dup, "{p:?}"),
        }
        seen[usize::from(p.qos == QoS::ExactlyOnce)].push(p.text().parse().unwrap());
    }
    for (odd, numbers) in seen.iter().enumerate() {
        assert!(numbers.iter().copied().eq((odd as u32..120).step_by(2)), "{numbers:?}");
    }
    nothing_more(&mut new);
}

#[test]
fn a_session_moves_with_more_than_one_answer_of_a_node_may_have() {
    let cluster = BerthCluster::start(2);
    let dial = Dial::v5("mover").persistent();
    let mut old = cluster.connect(0, &dial);
    assert_eq!(old.subscribe(&[("q/+", QoS::AtLeastOnce)]), [1]);
    old.disconnect();
    let mut publisher = cluster.connect(0, &Dial::v5("publisher"));
    let padding = " ".repeat(900 << 10);
    for n in 0..40 {
        publisher.publish("q/x", &format!("{n}{padding}"), QoS::AtLeastOnce);
    }
    let mut new = cluster.connect(1, &dial);
    assert!(new.present);
    for n in 0..40 {
        assert_eq!(new.receive().text().trim_end(), n.to_string());
    }
    nothing_more(&mut new);
}

#[test]
fn a_publisher_moves_at_every_step_of_qos_2() {
    let cluster = BerthCluster::start(3);
    let mut sub = cluster.connect(1, &Dial::v5("sub"));
    assert_eq!(sub.subscribe(&[("in", QoS::ExactlyOnce)]), [2]);
    let dial = Dial::v5("pub").persistent();
    let mut client = cluster.connect(0, &dial);
    for (step, at) in ["PUBLISH", "PUBREC lost", "PUBREC", "PUBREL"].into_iter().zip([1, 2, 0, 1]) {
        let packet_id = 7;
        let out = Out {
            topic: "in",
            payload: step.as_bytes(),
            qos: QoS::ExactlyOnce,
            retain: false,
            dup: false,
            packet_id,
        };
        let recorded =
            |c: &mut Client| assert_eq!(c.recv(), In::PubRec(packet_id, Reason::Success), "{step}");
        client.send(&publish_bytes(Version::V5, &out)).unwrap();
        if step != "PUBLISH" {
            recorded(&mut client);
        }
        if step == "PUBREL" {
            client.ack(AckKind::PubRel, packet_id).unwrap();
            assert!(matches!(client.recv(), In::PubComp(7, _)));
        }
        // What of it the old connection was still told is not looked at here.
        let new = cluster.connect(at, &dial);
        assert!(new.present, "{step}");
        assert_eq!(client.expect_closed(), Some(Reason::SessionTakenOver), "{step}");
        client = new;
        if step.starts_with("PUBLISH") || step == "PUBREC lost" {
            client.send(&publish_bytes(Version::V5, &Out { dup: true, ..out })).unwrap();
            recorded(&mut client);
        }
        client.ack(AckKind::PubRel, packet_id).unwrap();
        assert!(matches!(client.recv(), In::PubComp(7, _)), "{step}");
        assert_eq!(sub.receive().text(), step);
        sub.ping();
        nothing_more(&mut client);
    }
    client.publish("in", "last", QoS::ExactlyOnce);
    assert_eq!(sub.receive().text(), "last", "something came twice");
}

#[test]
fn a_subscriber_moves_at_every_step_of_qos_2() {
    let cluster = BerthCluster::start(3);
    let mut publisher = cluster.connect(1, &Dial::v5("pub"));
    let dial = Dial::v5("sub").persistent();
    let mut client = cluster.connect(0, &dial);
    assert_eq!(client.subscribe(&[("out", QoS::ExactlyOnce)]), [2]);
    for (step, at) in ["PUBLISH", "PUBREC", "PUBCOMP"].into_iter().zip([1, 2, 0]) {
        publisher.publish("out", step, QoS::ExactlyOnce);
        let p = client.receive_only();
        assert_eq!((p.text(), p.dup), (step, false));
        let released = |c: &mut Client| assert_eq!(c.recv(), In::PubRel(p.packet_id), "{step}");
        if step != "PUBLISH" {
            client.ack(AckKind::PubRec, p.packet_id).unwrap();
            released(&mut client);
        }
        if step == "PUBCOMP" {
            client.ack(AckKind::PubComp, p.packet_id).unwrap();
            client.ping();
        }
        client = move_to(&cluster, at, &dial, client);
        if step == "PUBLISH" {
            let resent = client.receive_only();
            assert_eq!(again(resent.dup, &resent), again(true, &p));
            client.ack(AckKind::PubRec, p.packet_id).unwrap();
        }
        if step != "PUBCOMP" {
            released(&mut client);
            client.ack(AckKind::PubComp, p.packet_id).unwrap();
        }
        nothing_more(&mut client);
    }
}
