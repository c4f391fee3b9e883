//! Queues that are full: whose messages are dropped is for the session's client to say.

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In};
use crate::cluster::nodes::BerthCluster;
use crate::wait;
use berth::mqtt::{QoS, Reason, Version};
use std::process::Command;

const PROPERTY: &str = "berth-queue-policy";

/// A persistent session that has subscribed and is offline.
fn offline(client: Client, topic: &str) {
    let mut client = client;
    assert_eq!(client.subscribe(&[(topic, QoS::AtLeastOnce)]), [1]);
    client.disconnect();
}

fn publish(broker: &Broker, topic: &str, numbers: std::ops::RangeInclusive<u32>) {
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    numbers.for_each(|n| publisher.publish(topic, &n.to_string(), QoS::AtLeastOnce));
    publisher.disconnect();
}

fn numbers(client: &mut Client, n: usize) -> Vec<u32> {
    let got = client.receive_texts(n).iter().map(|text| text.parse().unwrap()).collect();
    client.expect_silence();
    got
}

fn dropped(broker: &Broker, reason: &str) -> f64 {
    broker.metric(&format!("berth_messages_dropped_total{{reason=\"{reason}\"}}"))
}

#[test]
fn the_client_chooses_and_the_choice_outlives_the_broker() {
    let mut broker = Setup::new().set("session.max_queued_messages", "5").start();
    let choosing = |id: &str, policy: &str| Dial::v5(id).persistent().property(PROPERTY, policy);
    offline(choosing("oldest", "drop_oldest").connect(broker.mqtt), "t");
    offline(choosing("newest", "drop_new").connect(broker.mqtt), "t");
    offline(Dial::v4("default").persistent().connect(broker.mqtt), "t");
    publish(&broker, "t", 1..=7);
    assert_eq!((dropped(&broker, "displaced"), dropped(&broker, "queue_full")), (2.0, 4.0));
    broker.stop();
    broker.restart();
    publish(&broker, "t", 8..=9);
    assert_eq!((dropped(&broker, "displaced"), dropped(&broker, "queue_full")), (2.0, 4.0));
    broker.sigkill();
    broker.restart();
    let mut oldest = Dial::v5("oldest").persistent().connect(broker.mqtt);
    assert_eq!(numbers(&mut oldest, 5), [5, 6, 7, 8, 9]);
    for dial in [Dial::v5("newest"), Dial::v4("default")] {
        assert_eq!(numbers(&mut dial.persistent().connect(broker.mqtt), 5), [1, 2, 3, 4, 5]);
    }
    wait::until_true("nothing is left of what gave way", || broker.metric("berth_queued_messages") == 0.0);
    // Its last CONNECT did not choose.
    oldest.disconnect();
    publish(&broker, "t", 11..=17);
    assert_eq!(numbers(&mut Dial::v5("oldest").persistent().connect(broker.mqtt), 5), [11, 12, 13, 14, 15]);
    let log = broker.log();
    assert!(log.contains("berth::losses") && log.contains("session.max_queued_messages=5"), "{log}");
}

#[test]
fn the_broker_has_a_default_and_what_is_on_its_way_stays() {
    let broker = Setup::new()
        .set("session.max_queued_messages", "4")
        .set("session.mailbox_messages", "1")
        .set("session.queue_policy", "drop_oldest")
        .start();
    for version in [Version::V311, Version::V5] {
        let dial = Dial::new(version, "slow").persistent().receive_maximum(2);
        let mut slow = dial.connect(broker.mqtt);
        slow.subscribe(&[("t", QoS::ExactlyOnce)]);
        let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
        (1..=300).for_each(|n| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce));
        // Two are in flight for MQTT 5; whatever was handed to the session comes, then the newest.
        let mut got: Vec<u32> = Vec::new();
        while got.last() != Some(&300) {
            got.push(slow.receive().text().parse().unwrap());
        }
        slow.expect_silence();
        assert!(got.starts_with(&[1, 2]) && got.ends_with(&[297, 298, 299, 300]), "{got:?}");
        assert!(got.is_sorted(), "{got:?}");
        slow.disconnect();
        Dial::new(version, "slow").connect(broker.mqtt).disconnect();
    }
    assert_eq!(dropped(&broker, "queue_full"), 0.0);
}

#[test]
fn a_policy_that_there_is_not_is_refused_in_words() {
    let broker = Broker::start();
    let (_, answer) = Dial::v5("c").property(PROPERTY, "drop_all").try_connect(broker.mqtt).unwrap();
    let In::ConnAck { reason, properties, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(reason, Reason::ImplementationSpecificError);
    let said = format!("{properties:?}");
    assert!(said.contains("berth-queue-policy must be drop_new or drop_oldest"), "{said}");
}

#[test]
fn mosquitto_sub_chooses() {
    let broker = Setup::new().set("session.max_queued_messages", "3").start();
    let port = broker.mqtt.port().to_string();
    let subscribe = |rest: &[&str]| {
        let args =
            ["-h", "127.0.0.1", "-p", &port, "-V", "5", "-i", "m", "-c", "-x", "3600", "-q", "1", "-t", "t"];
        let choice = ["-D", "connect", "user-property", PROPERTY, "drop_oldest"];
        let output = Command::new("mosquitto_sub").args(args).args(choice).args(rest).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    subscribe(&["-E"]);
    // It leaves without waiting until the broker has seen that.
    wait::until_true("it is gone", || broker.metric("berth_sessions{state=\"dormant\"}") == 1.0);
    publish(&broker, "t", 1..=8);
    assert_eq!(subscribe(&["-C", "3", "-W", "20"]), "6\n7\n8\n");
}

#[test]
fn a_session_that_moves_takes_its_policy_along() {
    let mut cluster = BerthCluster::with(2, 1, &[("session.max_queued_messages", "4")]);
    let dial = Dial::v5("roamer").persistent().property(PROPERTY, "drop_oldest");
    offline(cluster.connect(0, &dial), "t");
    offline(cluster.connect(0, &Dial::v4("other").persistent()), "t");
    cluster.term(0);
    let mut publisher = cluster.connect(1, &Dial::v5("publisher"));
    wait::until_true("both are here", || cluster.homes("roamer") == [1] && cluster.homes("other") == [1]);
    (1..=9).for_each(|n: u32| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce));
    assert_eq!(cluster.metric(1, "berth_messages_dropped_total{reason=\"displaced\"}"), 5.0);
    assert_eq!(numbers(&mut cluster.connect(1, &dial), 4), [6, 7, 8, 9]);
    assert_eq!(numbers(&mut cluster.connect(1, &Dial::v4("other").persistent()), 4), [1, 2, 3, 4]);
}
