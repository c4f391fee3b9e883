//! Rules that change while clients are connected.

use super::{PASSWORD, Rules, is_open, subscribed, topics_until};
use crate::client::Dial;
use crate::wait;
use berth::mqtt::QoS::{AtLeastOnce, AtMostOnce};
use berth::mqtt::Reason;

const ALL: [&str; 1] = ["allow: all, topics: '#'"];
const SECRET: [&str; 2] = ["deny: all, topics: 'secret/#', users: [eve]", "allow: all, topics: '#'"];

#[test]
fn changed_rules_hold_at_once_and_end_no_connection() {
    let rules = Rules::new(&ALL);
    let mut broker = rules.start();
    let mut eve =
        subscribed(&Dial::v5("e").user("eve", PASSWORD).persistent(), &broker, "secret/#", AtLeastOnce);
    let mut bob = subscribed(&Dial::v4("b").user("bob", PASSWORD), &broker, "secret/#", AtLeastOnce);
    assert_eq!(eve.subscribe(&[("open/#", AtLeastOnce)]), [1]);
    for round in 0..3 {
        bob.publish("secret/x", "both", AtLeastOnce);
        assert_eq!(eve.receive().text(), "both", "{round}");
        assert_eq!(bob.receive().text(), "both", "{round}");
        assert_eq!(eve.publish_with("secret/x", b"from eve", AtLeastOnce, false), Reason::Success);
        assert_eq!((eve.receive().text(), bob.receive().text()), ("from eve", "from eve"));
        rules.change(&mut broker, &SECRET);
        // The subscription stays, and delivers nothing.
        bob.publish("secret/x", "bob alone", AtLeastOnce);
        assert_eq!(bob.receive().text(), "bob alone");
        assert_eq!(eve.publish_with("secret/x", b"x", AtLeastOnce, false), Reason::NotAuthorized);
        assert_eq!(eve.subscribe(&[("secret/y", AtMostOnce)]), [0x87]);
        bob.publish("open/end", "", AtLeastOnce);
        assert_eq!(topics_until(&mut eve, "open/end"), [""; 0]);
        rules.change(&mut broker, &ALL);
    }
    assert!(is_open(&mut eve) && is_open(&mut bob));
    assert_eq!(broker.metric("mqtt_connections_total"), 2.0);
}

#[test]
fn what_waits_for_room_at_the_client_is_judged_again() {
    let rules = Rules::new(&ALL);
    let mut broker = rules.start();
    let mut eve =
        subscribed(&Dial::v5("e").user("eve", PASSWORD).receive_maximum(1), &broker, "#", AtLeastOnce);
    let mut bob = Dial::v5("b").connect(broker.mqtt);
    bob.publish("open/first", "", AtLeastOnce);
    let first = eve.receive_only();
    for topic in ["secret/1", "open/1", "secret/2", "open/end"] {
        bob.publish(topic, "", AtLeastOnce);
    }
    rules.change(&mut broker, &SECRET);
    eve.ack(berth::mqtt::client::AckKind::PubAck, first.packet_id).unwrap();
    assert_eq!(topics_until(&mut eve, "open/end"), ["open/1"]);
}

/// What is known of a client whose will waits is kept with the will, and rules that change while the broker is away count.
#[test]
fn a_will_is_judged_by_the_rules_of_the_day_after_a_restart() {
    let rules = Rules::new(&ALL);
    let mut broker = rules.start();
    let with_will = |id: &str, user: &str, topic: &str| {
        Dial::v5(id).user(user, PASSWORD).persistent().will(topic, id, 3).connect(broker.mqtt)
    };
    let eve = [with_will("e1", "eve", "secret/e1"), with_will("e2", "eve", "open/e2")];
    let others = [with_will("b1", "bob", "secret/b1"), with_will("b2", "bob", "far/b2")];
    assert!(broker.stop().success());
    drop((eve, others));
    // By user, as it was; by address and listener, as it came.
    rules.write(&[
        "deny: all, topics: 'secret/#', users: [eve]",
        "deny: publish, topics: 'far/#', listeners: [tcp], addresses: [127.0.0.0/8]",
        "allow: all, topics: '#', listeners: [tcp], addresses: [127.0.0.1]",
    ]);
    broker.restart();
    let mut watcher =
        subscribed(&Dial::v5("w").user("root", PASSWORD), &broker, "#", berth::mqtt::QoS::AtMostOnce);
    let mut published = [watcher.receive().topic, watcher.receive().topic];
    published.sort();
    assert_eq!(published, ["open/e2", "secret/b1"]);
    wait::until_true("the others are dropped", || {
        broker.log().matches("will not published: its client may not publish there any more").count() == 2
    });
    assert_eq!(broker.metric("berth_acl_denied_total{kind=\"will\"}"), 2.0);
}

#[test]
fn a_faulty_file_changes_nothing_and_says_where_it_is_wrong() {
    let rules = Rules::new(&SECRET);
    let mut broker = rules.start();
    let mut eve = Dial::v5("e").user("eve", PASSWORD).connect(broker.mqtt);
    let table = [
        ("allow: all", "rule 1 (line 2), topics: missing"),
        ("allow: everything, topics: a", "rule 1 (line 2), allow: expected publish, subscribe or all"),
        ("allow: all, topics: a, user: b", "rule 1 (line 2), user: unknown key"),
    ];
    for (n, (faulty, expected)) in table.into_iter().enumerate() {
        rules.write(&[faulty, "allow: all, topics: '#'"]);
        let line = broker.wait_log(|line| line.contains(expected));
        assert!(line.contains("ERROR") && line.contains("acl.yaml") && line.contains("acl.file"), "{line}");
        assert_eq!(eve.publish_with("secret/x", b"", AtLeastOnce, false), Reason::NotAuthorized);
        let failures = || broker.metric("berth_acl_reload_failures_total");
        wait::until_true("it is counted", || failures() == (n + 1) as f64);
    }
    std::fs::remove_file(&rules.path).unwrap();
    broker.wait_log(|line| line.contains("ERROR") && line.contains("cannot read"));
    assert_eq!(eve.publish_with("secret/x", b"", AtLeastOnce, false), Reason::NotAuthorized);
    rules.change(&mut broker, &ALL);
    let line = broker.wait_log(|line| line.contains("access rules changed"));
    assert!(line.contains("rules=1") && line.contains("added=0") && line.contains("removed=1"), "{line}");
    assert!(!eve.publish_with("secret/x", b"", AtLeastOnce, false).is_error());
}

#[test]
fn a_broker_does_not_start_with_rules_that_it_cannot_read() {
    let rules = Rules::new(&["allow: all"]);
    let mut broker = rules.setup().spawn();
    assert!(!broker.wait().success());
    assert!(broker.log().contains("rule 1 (line 2), topics: missing"), "{}", broker.log());
    std::fs::remove_file(&rules.path).unwrap();
    let mut broker = rules.setup().spawn();
    assert!(!broker.wait().success());
    assert!(broker.log().contains("cannot read") && broker.log().contains("acl.file"), "{}", broker.log());
    let mut broker = rules.setup().set("acl.mosquitto_file", "/tmp/x").spawn();
    assert!(!broker.wait().success());
    assert!(broker.log().contains("acl.mosquitto_file"), "{}", broker.log());
}
