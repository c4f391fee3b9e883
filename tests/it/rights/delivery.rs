//! A deny holds for each message that is delivered, not only for the filter: wildcards, retained messages, shared subscriptions,
//! queues, wills.

use super::{PASSWORD, Rules, subscribed, topics_until};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::QoS::{self, AtLeastOnce, AtMostOnce, ExactlyOnce};
use berth::mqtt::Version;
use berth::mqtt::client::AckKind;
use std::process::{Command, Stdio};

/// Whoever is no root may not read below `secret/`, but may subscribe to everything.
const SECRET: [&str; 3] = [
    "allow: all, topics: ['#', '$SYS/#'], users: [root]",
    "deny: subscribe, topics: 'secret/#'",
    "allow: all, topics: '#'",
];

fn root(broker: &crate::broker::Broker) -> Client {
    Dial::v5("root").user("root", PASSWORD).connect(broker.mqtt)
}

#[test]
fn a_wildcard_does_not_see_what_is_denied() {
    let broker = Rules::new(&SECRET).start();
    let mut publisher = root(&broker);
    publisher.publish_with("secret/kept", b"x", AtLeastOnce, true);
    publisher.publish_with("open/kept", b"x", AtLeastOnce, true);
    let mut denied = 0.0;
    for version in [Version::V31, Version::V311, Version::V5] {
        for (persistent, qos) in [false, true].into_iter().flat_map(|p| [0, 1, 2].map(|q| (p, q))) {
            let qos = QoS::from_bits(qos).unwrap();
            let mut dial = Dial::new(version, &format!("{version:?} {persistent} {qos:?}"));
            if persistent {
                dial = dial.persistent();
            }
            let mut client = subscribed(&dial, &broker, "#", qos);
            assert_eq!(client.receive().topic, "open/kept", "{dial:?}");
            for with in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
                publisher.publish("secret/x", "x", with);
                publisher.publish("open/end", "x", with);
                assert_eq!(topics_until(&mut client, "open/end"), [""; 0], "{dial:?} {with:?}");
            }
            denied += 4.0;
            assert_eq!(broker.metric("berth_acl_denied_total{kind=\"deliver\"}"), denied);
            client.disconnect();
            if persistent {
                dial.clean().connect(broker.mqtt).disconnect();
            }
        }
    }
    // Nothing that was left out stays in the journal.
    wait::until_true("nothing waits", || broker.metric("berth_queued_messages") == 0.0);
    assert_eq!(broker.metric("berth_messages_dropped_total{reason=\"not_allowed\"}"), denied);
}

#[test]
fn other_clients_of_others_see_no_more() {
    let broker = Rules::new(&SECRET).start();
    let port = broker.mqtt.port().to_string();
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        let run = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(["-h", "127.0.0.1", "-p", &port, "-V", version]).args(args);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            command
        };
        let publish = |args: &[&str]| assert!(run("mosquitto_pub", args).status().unwrap().success());
        let listen =
            run("mosquitto_sub", &["-t", "#", "-q", "1", "-C", "1", "-W", "20", "-F", "%t"]).spawn().unwrap();
        let subscriptions = || broker.metric("mqtt_subscriptions_active");
        wait::until_true("mosquitto_sub has subscribed", || subscriptions() == 1.0);
        publish(&["-u", "root", "-P", PASSWORD, "-t", "secret/x", "-q", "2", "-m", "x"]);
        publish(&["-t", "open/x", "-q", "1", "-m", "x"]);
        let output = listen.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "open/x\n", "{version}");
        wait::until_true("mosquitto_sub has left", || subscriptions() == 0.0);
        let refused = run("mosquitto_sub", &["-t", "secret/x", "-W", "2", "-E"]).status().unwrap();
        assert!(refused.code().is_some());
    }
}

#[test]
fn a_shared_subscription_is_served_by_a_member_that_may() {
    let broker = Rules::new(&SECRET).start();
    let mut publisher = root(&broker);
    let filter = "$share/g/#";
    let mut one = subscribed(&Dial::v5("one"), &broker, filter, AtLeastOnce);
    let mut two = subscribed(&Dial::v4("two").persistent(), &broker, filter, AtLeastOnce);
    let mut three =
        subscribed(&Dial::v5("three").user("root", PASSWORD).persistent(), &broker, filter, ExactlyOnce);
    for n in 0..20 {
        let qos = QoS::from_bits(n % 3).unwrap();
        publisher.publish("secret/x", &n.to_string(), qos);
        let got = three.receive();
        assert_eq!((&*got.topic, got.text()), ("secret/x", &*n.to_string()));
    }
    three.disconnect();
    // It is away and still the only one that may have them.
    publisher.publish("secret/x", "queued", AtLeastOnce);
    let mut three = Dial::v5("three").user("root", PASSWORD).persistent().connect(broker.mqtt);
    assert_eq!(three.receive().text(), "queued");
    assert_eq!(three.unsubscribe(&[filter]), [0]);
    // Nobody is left who may: dropped, counted, acknowledged.
    let lost = || broker.metric("berth_messages_dropped_total{reason=\"not_allowed\"}");
    assert_eq!(lost(), 0.0);
    publisher.publish("secret/x", "for nobody", AtLeastOnce);
    assert_eq!(lost(), 1.0);
    for topic in ["open/1", "open/2", "open/3", "open/4"] {
        publisher.publish(topic, "x", AtLeastOnce);
    }
    let mut got = 0;
    for client in [&mut one, &mut two] {
        client.ping();
        client.patience(std::time::Duration::from_millis(200));
        while let Ok(In::Publish(p)) = client.try_recv() {
            assert!(p.topic.starts_with("open/"), "{p:?}");
            client.ack(AckKind::PubAck, p.packet_id).unwrap();
            got += 1;
        }
    }
    assert_eq!(got, 4);
}

#[test]
fn what_a_queue_holds_is_judged_by_the_rules_of_the_day() {
    let all = ["allow: all, topics: '#'"];
    let rules = Rules::new(&all);
    let mut broker = rules.start();
    let dial = Dial::v5("sleeper").persistent().receive_maximum(2);
    let mut sleeper = subscribed(&dial, &broker, "#", ExactlyOnce);
    let mut publisher = root(&broker);
    // Two are sent and not acknowledged, the others wait in the session; after the connection has gone they are in the journal.
    for n in 0..4 {
        publisher.publish("secret/x", &n.to_string(), if n % 2 == 0 { AtLeastOnce } else { ExactlyOnce });
        publisher.publish("open/x", &n.to_string(), AtLeastOnce);
    }
    assert_eq!(sleeper.receive_only().topic, "secret/x");
    drop(sleeper);
    wait::until_true("it is away", || broker.metric("mqtt_connections_active") == 1.0);
    publisher.publish("secret/x", "later", AtLeastOnce);
    publisher.publish("open/x", "later", AtLeastOnce);
    rules.change(&mut broker, &SECRET);
    let mut sleeper = dial.connect(broker.mqtt);
    assert!(sleeper.present);
    publisher.publish("open/end", "", AtLeastOnce);
    assert_eq!(topics_until(&mut sleeper, "open/end"), ["open/x"; 5]);
    wait::until_true("nothing waits", || broker.metric("berth_queued_messages") == 0.0);
    sleeper.disconnect();
    // After a restart as well.
    rules.change(&mut broker, &all);
    publisher.publish("secret/x", "x", AtLeastOnce);
    publisher.publish("open/x", "x", AtLeastOnce);
    rules.write(&SECRET);
    broker.sigkill();
    broker.restart();
    let mut sleeper = dial.connect(broker.mqtt);
    root(&broker).publish("open/end", "", AtLeastOnce);
    assert_eq!(topics_until(&mut sleeper, "open/end"), ["open/x"]);
}

#[test]
fn a_message_is_delivered_at_the_qos_of_its_rule() {
    let rules = Rules::new(&[
        "allow: subscribe, topics: 'zero/#', max_qos: 0",
        "allow: subscribe, topics: 'one/#', max_qos: 1",
        "allow: all, topics: '#'",
    ]);
    let broker = rules.start();
    let dial = Dial::v5("c").persistent();
    let mut client = subscribed(&dial, &broker, "#", ExactlyOnce);
    let mut publisher = Dial::v5("p").connect(broker.mqtt);
    let table = [("zero/x", AtMostOnce), ("one/x", AtLeastOnce), ("two/x", ExactlyOnce)];
    for _ in 0..2 {
        for (topic, expected) in table {
            publisher.publish(topic, "x", ExactlyOnce);
            let got = client.receive();
            assert_eq!((&*got.topic, got.qos), (topic, expected));
        }
        // The same from the queue.
        client.disconnect();
        table.iter().for_each(|(topic, _)| publisher.publish(topic, "x", ExactlyOnce));
        client = dial.connect(broker.mqtt);
        for (topic, expected) in table {
            let got = client.receive();
            assert_eq!((&*got.topic, got.qos), (topic, expected));
        }
    }
    wait::until_true("nothing waits", || broker.metric("berth_queued_messages") == 0.0);
}

#[test]
fn a_will_is_judged_again_when_it_is_due() {
    let rules = Rules::new(&["allow: all, topics: '#'"]);
    let mut broker = rules.start();
    let mut watcher = subscribed(&Dial::v5("watcher"), &broker, "#", AtLeastOnce);
    let dying = Dial::v5("dying").expiry(60).will("bye/dying", "x", 0).connect(broker.mqtt);
    let slow = Dial::v5("slow").expiry(60).will("bye/slow", "x", 5).connect(broker.mqtt);
    let fine = Dial::v4("fine").will("fine/gone", "x", 0).connect(broker.mqtt);
    drop(slow);
    wait::until_true("it is gone", || broker.metric("mqtt_connections_active") == 3.0);
    rules.change(&mut broker, &["deny: publish, topics: 'bye/#'", "allow: all, topics: '#'"]);
    drop(dying);
    wait::until_true("two were denied", || broker.metric("berth_acl_denied_total{kind=\"will\"}") == 2.0);
    drop(fine);
    assert_eq!(topics_until(&mut watcher, "fine/gone"), [""; 0]);
    assert_eq!(broker.metric("berth_wills_published_total"), 1.0);
}

#[test]
fn the_brokers_figures_are_for_those_who_may_read_them() {
    let rules = Rules::new(&[
        "allow: all, topics: '#'",
        "allow: subscribe, topics: '$SYS/broker/uptime', users: [monitor]",
    ]);
    let broker = rules.setup().set("sys.interval", "1s").start();
    let mut plain = Dial::v5("plain").connect(broker.mqtt);
    assert_eq!(plain.subscribe(&[("$SYS/#", AtMostOnce), ("$SYS/broker/uptime", AtMostOnce)]), [0x87, 0x87]);
    let mut monitor = Dial::v5("m").user("monitor", PASSWORD).connect(broker.mqtt);
    assert_eq!(monitor.subscribe(&[("$SYS/broker/uptime", AtMostOnce)]), [0]);
    assert_eq!(monitor.receive().topic, "$SYS/broker/uptime");
}
