//! What the broker promises about sessions (README, G1 and G3 to G7), against the real process.

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In, Out, publish_bytes};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// G1: after the new CONNACK nothing more is written to the old connection, whatever the versions.
#[test]
fn takeover_ends_the_old_connection() {
    let broker = Broker::start();
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for (round, (old, new)) in VERSIONS.iter().flat_map(|a| VERSIONS.map(|b| (*a, b))).enumerate() {
        let id = format!("taken-{round}");
        let mut before = Dial::new(old, &id).persistent().connect(broker.mqtt);
        before.subscribe(&[("t", QoS::AtLeastOnce)]);
        publisher.publish("t", "before", QoS::AtLeastOnce);
        assert_eq!(before.receive_only().text(), "before");
        let mut after = Dial::new(new, &id).persistent().connect(broker.mqtt);
        // MQTT 3.1 has no session present flag.
        assert!(after.present || new == Version::V31, "{old:?} to {new:?}");
        publisher.publish("t", "after", QoS::AtLeastOnce);
        let told = match before.recv() {
            In::Closed => None,
            In::Disconnect(reason) => Some(reason),
            other => panic!("to the old connection ({old:?} to {new:?}): {other:?}"),
        };
        assert_eq!(told, old.is_v5().then_some(Reason::SessionTakenOver));
        assert_eq!(before.expect_closed(), None);
        let again = after.receive();
        assert_eq!((again.text(), again.dup), ("before", true));
        assert_eq!(after.receive().text(), "after");
        after.disconnect();
        Dial::new(new, &id).connect(broker.mqtt).disconnect();
    }
    assert_eq!(broker.metric("berth_takeovers_total"), 9.0);
}

/// G1 when many come at once: one stays.
#[test]
fn of_many_claims_one_stays() {
    let broker = Broker::start();
    let all: Vec<Client> = std::thread::scope(|scope| {
        let dial = || match Dial::v5("wanted").persistent().try_connect(broker.mqtt).unwrap() {
            (client, In::ConnAck { reason: Reason::Success, .. }) => Some(client),
            (_, In::ConnAck { reason: Reason::ServerUnavailable, .. }) => None,
            (_, other) => panic!("{other:?}"),
        };
        let threads: Vec<_> = (0..24).map(|_| scope.spawn(dial)).collect();
        threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
    });
    let mut staying = Vec::new();
    for mut client in all {
        // Whoever was replaced has been closed; the other one answers.
        let _ = client.send(&[0xC0, 0]);
        match client.recv() {
            In::PingResp => staying.push(client),
            In::Disconnect(reason) => assert_eq!(reason, Reason::SessionTakenOver),
            In::Closed => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(staying.len(), 1);
    let status = broker.get_json("/cluster/status");
    assert_eq!(status["node"]["sessions"], 1);
}

/// G5: by SIGKILL and by SIGTERM, in all versions that can tell.
#[test]
fn session_present_survives_a_restart() {
    let mut broker = Broker::start();
    let kept = [
        Dial::v5("kept-5").persistent(),
        Dial::v4("kept-4").persistent(),
        Dial::v5("hour").clean().expiry(3600),
    ];
    let gone = [Dial::v5("gone-5"), Dial::v4("gone-4")];
    for dial in kept.iter().chain(&gone) {
        let mut client = dial.connect(broker.mqtt);
        assert!(!client.present);
        client.subscribe(&[("t/#", QoS::ExactlyOnce)]);
    }
    Dial::v5("brief").persistent().expiry(1).connect(broker.mqtt).disconnect();
    let mut left = kept[0].connect(broker.mqtt);
    assert!(left.present);
    left.ping();
    for round in 0..4 {
        if round % 2 == 0 {
            broker.sigkill();
        } else {
            assert!(broker.stop().success());
        }
        broker.restart();
        for dial in &gone {
            let mut resuming = dial.clone();
            resuming.clean = false;
            assert!(!resuming.connect(broker.mqtt).present, "{dial:?} in round {round}");
            dial.connect(broker.mqtt); // so that it is not there in the next round
        }
        let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
        publisher.publish("t/1", &round.to_string(), QoS::ExactlyOnce);
        for dial in &kept {
            let mut resuming = dial.clone();
            resuming.clean = false;
            let mut client = resuming.connect(broker.mqtt);
            assert!(client.present, "{dial:?} in round {round}");
            assert_eq!(client.receive().text(), round.to_string(), "{dial:?}");
        }
    }
    wait::until_true("a session of one second expires", || {
        broker.get_json("/cluster/status")["node"]["sessions"] == kept.len()
    });
    assert!(!Dial::v5("brief").persistent().connect(broker.mqtt).present);
    // What was given up is not there after a restart either.
    assert!(!kept[0].clone().clean().expiry(0).connect(broker.mqtt).present);
    broker.sigkill();
    broker.restart();
    assert!(!kept[0].connect(broker.mqtt).present);
}

/// G6: while other subscriptions come and go, and when the broker dies right after SUBACK.
#[test]
fn suback_means_routable() {
    let mut broker = Broker::start();
    let done = AtomicBool::new(false);
    let address = broker.mqtt;
    std::thread::scope(|scope| {
        for n in 0..2 {
            let done = &done;
            scope.spawn(move || {
                let mut churn = Dial::v5(&format!("churn-{n}")).connect(address);
                for i in 0.. {
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                    churn.subscribe(&[(&format!("t/{}/+", i % 50), QoS::AtMostOnce)]);
                }
            });
        }
        let mut publisher = Dial::v5("publisher").connect(address);
        let mut fresh = Dial::v5("fresh").connect(address);
        let mut lasting = Dial::v4("lasting").persistent().connect(address);
        let filters = |i: usize| {
            [format!("t/{i}/x"), format!("t/{i}/+"), format!("t/{i}/#"), format!("$share/g{i}/t/{i}/x")]
        };
        for i in 0..200 {
            let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][i % 3];
            let filter = &filters(i)[i % 4];
            for client in [&mut fresh, &mut lasting] {
                assert_eq!(client.subscribe(&[(filter, qos)]), [qos as u8]);
                publisher.publish(&format!("t/{i}/x"), filter, qos);
                assert_eq!(client.receive().text(), filter);
                client.unsubscribe(&[filter]);
            }
        }
        done.store(true, Ordering::Release);
    });
    for i in 0..5 {
        let filter = format!("kept/{i}");
        let dial = Dial::v5(&format!("killed-{i}")).persistent();
        dial.connect(address).subscribe(&[(&filter, QoS::AtLeastOnce)]);
        broker.sigkill();
        broker.restart();
        Dial::v5("publisher").connect(address).publish(&filter, "x", QoS::AtLeastOnce);
        assert_eq!(dial.connect(address).receive().topic, filter);
    }
}

/// G7: what was acknowledged last is what a new subscription sees, after a SIGKILL too.
#[test]
fn retained_messages_survive_a_restart() {
    let mut broker = Broker::start();
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    let mut expected = Vec::new();
    for i in 0..60usize {
        let (topic, qos) = (format!("r/{i}"), [QoS::AtLeastOnce, QoS::ExactlyOnce][i % 2]);
        for value in ["first", "second"] {
            publisher.publish_with(&topic, value.as_bytes(), qos, true);
        }
        if i % 3 == 0 {
            publisher.publish_with(&topic, b"", qos, true);
        } else {
            expected.push((topic, "second".to_owned()));
        }
    }
    expected.sort();
    for round in 0..3 {
        let mut reader = Dial::v5("reader").connect(broker.mqtt);
        reader.subscribe(&[("r/+", QoS::ExactlyOnce)]);
        let mut seen: Vec<_> = (0..expected.len())
            .map(|_| reader.receive())
            .inspect(|p| assert!(p.retain, "{p:?}"))
            .map(|p| (p.topic.clone(), p.text().to_owned()))
            .collect();
        seen.sort();
        assert_eq!(seen, expected, "round {round}");
        // Nothing else comes: this is next.
        publisher = Dial::v5("publisher").connect(broker.mqtt);
        publisher.publish("r/marker", "", QoS::AtLeastOnce);
        assert_eq!(reader.receive().topic, "r/marker");
        assert_eq!(
            broker.get_json("/cluster/status")["node"]["retained_messages"].as_u64(),
            retained(&broker)
        );
        if round == 1 {
            assert!(broker.stop().success());
        } else {
            broker.sigkill();
        }
        broker.restart();
    }
}

/// The retained messages that `$SYS` does not hold, by the metric: both pages must agree.
fn retained(broker: &Broker) -> Option<u64> {
    Some(broker.metric("berth_retained_messages") as u64)
}

/// G3: a receiver that drops its connection again and again sees the order, and repetitions as such.
#[test]
fn order_holds_across_reconnects() {
    const EACH: usize = 150;
    const WINDOW: usize = 8;
    let broker = Broker::start();
    let dial = Dial::v5("receiver").persistent().receive_maximum(WINDOW as u16);
    let mut receiver = dial.connect(broker.mqtt);
    receiver.subscribe(&[("o/#", QoS::ExactlyOnce)]);
    receiver.disconnect(); // and gone, so that nothing is on the way to it
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for i in 0..EACH {
        publisher.publish("o/1", &i.to_string(), QoS::AtLeastOnce);
        publisher.publish("o/2", &i.to_string(), QoS::ExactlyOnce);
    }
    let (mut seen, mut begun) = ([Vec::new(), Vec::new()], HashSet::new());
    let mut unanswered: Vec<u16> = Vec::new();
    for round in 0.. {
        if seen.iter().all(|s: &Vec<usize>| s.len() == EACH) {
            break;
        }
        let mut client = dial.connect(broker.mqtt);
        assert!(client.present);
        // What was not answered comes first, marked, with its identifiers, in its order.
        for id in std::mem::take(&mut unanswered) {
            let p = client.receive_only();
            assert_eq!((p.packet_id, p.dup), (id, true), "round {round}: {p:?}");
            answer(&mut client, &p, &mut begun, &mut seen);
        }
        for _ in 0..11 {
            if seen.iter().all(|s| s.len() == EACH) {
                break;
            }
            let p = client.receive_only();
            assert!(!p.dup, "round {round}: {p:?}");
            answer(&mut client, &p, &mut begun, &mut seen);
        }
        // As much as may be on its way is taken, but not answered.
        let left = 2 * EACH - seen[0].len() - seen[1].len();
        for _ in 0..left.min(WINDOW) {
            unanswered.push(client.receive_only().packet_id);
        }
    }
    let all: Vec<usize> = (0..EACH).collect();
    assert_eq!(seen, [all.clone(), all]);
}

fn answer(
    client: &mut Client,
    p: &crate::client::Received,
    begun: &mut HashSet<u16>,
    seen: &mut [Vec<usize>; 2],
) {
    let n = p.text().parse().unwrap();
    if p.qos == QoS::AtLeastOnce {
        seen[0].push(n);
        return client.ack(AckKind::PubAck, p.packet_id).unwrap();
    }
    if begun.insert(p.packet_id) {
        seen[1].push(n);
    }
    client.ack(AckKind::PubRec, p.packet_id).unwrap();
    client.wait_for("PUBREL", |i| (*i == In::PubRel(p.packet_id)).then_some(()));
    begun.remove(&p.packet_id);
    client.ack(AckKind::PubComp, p.packet_id).unwrap();
}

/// G4: a QoS 2 publish that is cut off at each of its steps, by a lost connection or a killed broker, arrives once.
#[test]
fn qos_2_arrives_once_wherever_it_is_cut() {
    let mut broker = Setup::new().start();
    let watch = Dial::v5("watch").persistent();
    watch.connect(broker.mqtt).subscribe(&[("once/#", QoS::ExactlyOnce)]);
    let mut expected = Vec::new();
    for version in [Version::V311, Version::V5] {
        for killed in [false, true] {
            for step in 0..4 {
                let text = format!("{version:?}-{killed}-{step}");
                let dial = Dial::new(version, &text).persistent();
                let out = |dup| {
                    let (topic, payload) = ("once/t", text.as_bytes());
                    let out = Out { topic, payload, qos: QoS::ExactlyOnce, retain: false, dup, packet_id: 9 };
                    publish_bytes(version, &out)
                };
                let mut client = dial.connect(broker.mqtt);
                client.send(&out(false)).unwrap();
                let rec = |p: &In| matches!(p, In::PubRec(9, r) if !r.is_error()).then_some(());
                if step > 0 {
                    client.wait_for("PUBREC", rec);
                }
                if step > 1 {
                    client.ack(AckKind::PubRel, 9).unwrap();
                }
                if step > 2 {
                    client.wait_for("PUBCOMP", |p| matches!(p, In::PubComp(9, _)).then_some(()));
                }
                if killed {
                    broker.sigkill();
                    broker.restart();
                }
                drop(client);
                if step < 3 {
                    let mut client = dial.connect(broker.mqtt);
                    assert!(client.present, "{text}");
                    if step < 2 {
                        // As the client does not know whether PUBREC was sent, it begins again.
                        client.send(&out(true)).unwrap();
                        client.wait_for("PUBREC", rec);
                    }
                    client.ack(AckKind::PubRel, 9).unwrap();
                    client.wait_for("PUBCOMP", |p| matches!(p, In::PubComp(9, _)).then_some(()));
                    client.disconnect();
                }
                expected.push(text);
            }
        }
    }
    let mut client = watch.connect(broker.mqtt);
    assert_eq!(client.receive_texts(expected.len()), expected);
    Dial::v5("marker").connect(broker.mqtt).publish("once/marker", "", QoS::ExactlyOnce);
    assert_eq!(client.receive().topic, "once/marker");
}
