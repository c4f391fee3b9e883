//! Rules × what clients do × the code they get, in MQTT 3.1, 3.1.1 and 5.

use super::{PASSWORD, Rules, as_user, is_open, topics_until};
use crate::client::{Dial, In, Will};
use berth::mqtt::QoS::{self, AtLeastOnce, AtMostOnce, ExactlyOnce};
use berth::mqtt::{Reason, Version};

pub const RULES: [&str; 8] = [
    "allow: all, topics: ['#', '$SYS/#'], users: [root]",
    "deny: all, topics: 'secret/#'",
    "allow: all, topics: ['own/%c/#', 'user/%u/#']",
    "deny: publish, topics: 'fresh/#', retain: true",
    "allow: all, topics: ['open/#', 'fresh/#']",
    "allow: all, topics: 'slow/#', max_qos: 1, retain: false",
    "allow: subscribe, topics: 'read/#'",
    "allow: publish, topics: 'write/#'",
];

pub const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// Client, user, topic, QoS, RETAIN, whether it may.
type Publish<'a> = (&'a str, Option<&'a str>, &'a str, QoS, bool, bool);

/// Client, user, filter, QoS asked for, what is granted.
type Subscribe<'a> = (&'a str, Option<&'a str>, &'a str, QoS, Option<u8>);

#[test]
fn a_publish_that_is_denied_is_told_so_and_reaches_nobody() {
    let table: &[Publish<'_>] = &[
        ("c", None, "open/x", ExactlyOnce, true, true),
        ("c", None, "secret/x", AtLeastOnce, false, false),
        ("c", None, "secret/x", ExactlyOnce, false, false),
        ("c", None, "secret/x", AtMostOnce, false, false),
        ("c", None, "secret", AtLeastOnce, true, false),
        ("c", Some("root"), "secret/x", AtLeastOnce, false, true),
        ("c", None, "own/c/x", AtLeastOnce, false, true),
        ("c", None, "own/d/x", AtLeastOnce, false, false),
        ("c", Some("u"), "user/u/x", ExactlyOnce, false, true),
        ("c", Some("v"), "user/u/x", ExactlyOnce, false, false),
        ("c", None, "user/u/x", AtLeastOnce, false, false),
        ("a/b", None, "own/a/b", AtLeastOnce, false, false),
        ("+", None, "own/x/b", AtLeastOnce, false, false),
        ("c", Some("+"), "user/x", AtLeastOnce, false, false),
        ("c", None, "fresh/x", AtLeastOnce, true, false),
        ("c", None, "fresh/x", AtLeastOnce, false, true),
        ("c", None, "slow/x", AtLeastOnce, false, true),
        ("c", None, "slow/x", ExactlyOnce, false, false),
        ("c", None, "slow/x", AtLeastOnce, true, false),
        ("c", None, "read/x", AtLeastOnce, false, false),
        ("c", None, "write/x", AtLeastOnce, false, true),
        ("c", None, "other", AtLeastOnce, false, false),
        ("c", Some("root"), "$SYS/x", AtLeastOnce, false, false),
    ];
    let broker = Rules::new(&RULES).start();
    let mut root = Dial::v5("observer").user("root", PASSWORD).connect(broker.mqtt);
    assert_eq!(root.subscribe(&[("#", ExactlyOnce)]), [2]);
    for version in VERSIONS {
        for (client, user, topic, qos, retain, may) in table {
            let case = format!("{version:?} {client} {user:?} {topic} {qos:?} {retain}");
            let mut dial = Dial::new(version, client);
            dial = as_user(dial, *user);
            let mut client = dial.connect(broker.mqtt);
            let reason = client.publish_with(topic, b"x", *qos, *retain);
            let denied = version.is_v5() && !may && *qos > AtMostOnce;
            assert_eq!(reason, if denied { Reason::NotAuthorized } else { Reason::Success }, "{case}");
            // The connection stays, and what it says next is heard.
            client.publish("open/end", "", AtLeastOnce);
            let expected: &[&str] = if *may { &[topic] } else { &[] };
            assert_eq!(topics_until(&mut root, "open/end"), expected, "{case}");
        }
    }
    let denied = table.iter().filter(|row| !row.5).count() * VERSIONS.len();
    assert_eq!(broker.metric("berth_acl_denied_total{kind=\"publish\"}"), denied as f64);
    assert_eq!(broker.metric("berth_publishes_refused_total{reason=\"not_authorized\"}"), denied as f64);
    let mut late = Dial::v5("late").user("root", PASSWORD).connect(broker.mqtt);
    late.subscribe(&[("#", AtMostOnce)]);
    late.publish("open/end", "", AtMostOnce);
    assert_eq!(topics_until(&mut late, "open/end"), ["open/x"], "what was denied is not retained");
}

#[test]
fn a_subscription_is_granted_lowered_or_refused() {
    let table: &[Subscribe<'_>] = &[
        ("c", None, "open/#", ExactlyOnce, Some(2)),
        ("c", None, "open/+/x", AtLeastOnce, Some(1)),
        ("c", None, "$share/g/open/#", ExactlyOnce, Some(2)),
        ("c", None, "slow/#", ExactlyOnce, Some(1)),
        ("c", None, "slow/x", AtMostOnce, Some(0)),
        ("c", None, "$share/g/slow/x", ExactlyOnce, Some(1)),
        ("c", None, "secret/#", AtLeastOnce, None),
        ("c", None, "secret/a/+", AtLeastOnce, None),
        ("c", None, "$share/g/secret/a", AtLeastOnce, None),
        ("c", None, "#", AtLeastOnce, None),
        ("c", None, "+/x", AtLeastOnce, None),
        ("c", None, "own/c/+", AtLeastOnce, Some(1)),
        ("c", None, "own/+/x", AtLeastOnce, None),
        ("c", Some("u"), "user/u/#", AtLeastOnce, Some(1)),
        ("c", Some("u"), "user/#", AtLeastOnce, None),
        ("+", None, "own/+/x", AtLeastOnce, None),
        ("c", None, "read/a", AtLeastOnce, Some(1)),
        ("c", None, "write/a", AtLeastOnce, None),
        ("c", None, "$SYS/#", AtMostOnce, None),
        ("c", Some("root"), "#", ExactlyOnce, Some(2)),
        ("c", Some("root"), "$SYS/#", AtMostOnce, Some(0)),
    ];
    let broker = Rules::new(&RULES).start();
    for version in VERSIONS {
        for (client, user, filter, qos, granted) in table {
            let mut dial = Dial::new(version, client);
            dial = as_user(dial, *user);
            let mut client = dial.connect(broker.mqtt);
            let refused = if version.is_v5() { 0x87 } else { 0x80 };
            let codes = client.subscribe(&[(filter, *qos), ("open/too", AtMostOnce)]);
            assert_eq!(codes, [granted.unwrap_or(refused), 0], "{version:?} {user:?} {filter}");
        }
    }
    let denied = table.iter().filter(|row| row.4.is_none()).count() * VERSIONS.len();
    assert_eq!(broker.metric("berth_acl_denied_total{kind=\"subscribe\"}"), denied as f64);
}

#[test]
fn a_will_is_judged_at_connect() {
    let table: &[(&str, QoS, bool, bool)] = &[
        ("open/x", AtLeastOnce, true, true),
        ("own/c/gone", ExactlyOnce, false, true),
        ("secret/x", AtMostOnce, false, false),
        ("fresh/x", AtMostOnce, true, false),
        ("slow/x", ExactlyOnce, false, false),
        ("slow/x", AtLeastOnce, false, true),
    ];
    let broker = Rules::new(&RULES).start();
    for version in VERSIONS {
        for (topic, qos, retain, may) in table {
            let mut dial = Dial::new(version, "c");
            dial.will = Some(Will {
                topic: (*topic).to_owned(),
                payload: "bye".to_owned(),
                qos: *qos,
                retain: *retain,
                delay_s: 0,
            });
            let (mut client, answer) = dial.try_connect(broker.mqtt).unwrap();
            let In::ConnAck { reason, .. } = answer else { panic!("{answer:?}") };
            assert_eq!(reason == Reason::Success, *may, "{version:?} {topic} {reason:?}");
            if *may {
                client.disconnect();
            } else {
                assert_eq!(reason, Reason::NotAuthorized, "{version:?} {topic}");
                assert_eq!(client.recv(), In::Closed);
            }
        }
    }
}

#[test]
fn without_rules_everything_stays_as_it_was() {
    let broker = Rules::new(&[]).start();
    let mut client = Dial::v4("c").connect(broker.mqtt);
    assert_eq!(client.subscribe(&[("#", AtMostOnce), ("$SYS/#", AtMostOnce)]), [0, 0]);
    client.publish("secret/x", "x", AtLeastOnce);
    assert!(is_open(&mut client));
    assert_eq!(broker.metric("berth_acl_rules"), 0.0);
}
