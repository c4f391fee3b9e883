//! What users see of retained messages while they subscribe, and of the wills and sessions of a node that is gone.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::random::Random;
use crate::wait;
use berth::mqtt::{QoS, Reason};
use std::time::Duration;

/// Rounds of one client that says "online" while another subscribes.
const ROUNDS: usize = 200;

/// Within how many microseconds of each other they do.
const APART_US: u64 = 8_000;

/// How long the sessions of this test last after the end of their node, seconds.
const EXPIRY_S: u32 = 3;

const QUICK: &[(&str, &str)] = &[("cluster.lease", "2s"), ("cluster.stale_after", "1s")];

/// What a client is sent of a topic until `new` comes, and then up to a mark.
fn told(client: &mut Client, topic: &str, new: &str) -> Vec<String> {
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != new) {
        let p = client.receive();
        if p.topic == topic {
            told.push(p.text().to_owned());
        }
    }
    client.subscribe(&[("mark", QoS::AtLeastOnce)]);
    loop {
        let p = client.receive();
        match p.topic.as_str() {
            "mark" => return told,
            of if of == topic => told.push(p.text().to_owned()),
            _ => {}
        }
    }
}

#[test]
fn subscriptions_that_overlap_retained_publishes_end_with_them() {
    let cluster = BerthCluster::start(2);
    let mut random = Random::seeded("BERTH_OVERLAP_SEED");
    let mut publisher = cluster.connect(0, &Dial::v5("device"));
    publisher.publish_with("mark", b"mark", QoS::AtLeastOnce, true);
    for round in 0..ROUNDS {
        let topic = format!("state/{round}");
        publisher.publish_with(&topic, b"offline", QoS::AtLeastOnce, true);
        let at = random.index(2);
        let mut subscriber = cluster.connect(at, &Dial::v5(&format!("watches{round}")));
        let (publishes_at, subscribes_at) = (random.below(APART_US), random.below(APART_US));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(publishes_at));
                publisher.publish_with(&topic, b"online", QoS::AtLeastOnce, true);
            });
            std::thread::sleep(Duration::from_micros(subscribes_at));
            assert_eq!(subscriber.subscribe(&[(&topic, QoS::AtLeastOnce)]), [1]);
        });
        let told = told(&mut subscriber, &topic, "online");
        let expected = [&["online"][..], &["offline", "online"]];
        assert!(expected.iter().any(|e| *e == told), "round {round}, at node {at}: {told:?}");
    }
}

#[test]
fn the_will_of_a_dead_node_does_not_follow_what_its_device_says() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    let mut dial = Dial::v5("device").expiry(600).will("state", "offline", 0);
    dial.will.as_mut().unwrap().retain = true;
    let device = cluster.connect(1, &dial);
    let mut watcher = cluster.connect(0, &Dial::v5("watcher"));
    watcher.subscribe(&[("state", QoS::AtLeastOnce)]);
    cluster.kill(1);
    drop(device);
    let (mut device, _) = connects(&cluster, 0, &Dial::v5("device"));
    device.publish_with("state", b"online", QoS::AtLeastOnce, true);
    cluster.restart(1);
    wait::until_true("the node is back", || cluster.ready(1));
    let noted = || cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/evictions/"]).is_empty();
    wait::until_true("it has taken note of the eviction", noted);
    device.publish_with("state", b"still online", QoS::AtLeastOnce, true);
    assert_eq!(watcher.receive_texts(2), ["online", "still online"]);
}

#[test]
fn sessions_of_a_dead_node_expire() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    let dial = |id: &str, s| Dial::v5(id).persistent().expiry(s);
    let mut short = cluster.connect(1, &dial("short", EXPIRY_S));
    short.subscribe(&[("jobs", QoS::AtLeastOnce)]);
    // It says goodbye, and that it will be back for longer than it said first.
    let mut longer = cluster.connect(1, &dial("longer", EXPIRY_S));
    longer.send(&[0xE0, 7, 0, 5, 0x11, 0, 0, 0x0E, 0x10]).unwrap();
    longer.expect_closed();
    let told = || record_of(&cluster, "longer").contains(r#""expiry":3600"#);
    wait::until_true("etcd knows how long it lasts", told);
    drop(short);
    drop(longer);
    cluster.kill(1);
    wait::until_true("the session is over", || record_of(&cluster, "short").is_empty());
    assert!(!record_of(&cluster, "longer").is_empty());
    let (_short, present) = connects(&cluster, 0, &dial("short", EXPIRY_S));
    assert!(!present, "its state was in the dead node's journal");
    // The other one lasts, and is found when its node is back; the first one's journal has nothing to say.
    cluster.restart(1);
    wait::until_true("the node is back", || cluster.ready(1));
    let (_longer, present) = connects(&cluster, 0, &dial("longer", 3_600));
    assert!(present);
    let noted = || cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/evictions/"]).is_empty();
    wait::until_true("the node has taken note", noted);
    let (_, present) = connects(&cluster, 1, &dial("short", EXPIRY_S));
    assert!(present, "the new session");
}

#[test]
fn routes_of_a_dead_node_whose_sessions_have_expired_hold_nobody() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    let mut gone = cluster.connect(1, &Dial::v5("gone").persistent().expiry(EXPIRY_S));
    gone.subscribe(&[("jobs", QoS::AtLeastOnce)]);
    cluster.kill(1);
    let mut publisher = cluster.connect(0, &Dial::v5("publisher"));
    // It waits for the dead node, and then for nobody.
    let reason = publisher.publish_with("jobs", b"1", QoS::AtLeastOnce, false);
    assert!(!reason.is_error(), "{reason:?}");
    assert!(record_of(&cluster, "gone").is_empty());
    let reason = publisher.publish_with("jobs", b"2", QoS::AtLeastOnce, false);
    assert!(!reason.is_error(), "{reason:?}");
}

fn record_of(cluster: &BerthCluster, id: &str) -> String {
    cluster.etcd.ctl(&["get", &format!("/berth/berth/v1/sessions/{id}"), "--print-value-only"])
}

/// Connects; whether a session was there.
fn connects(cluster: &BerthCluster, i: usize, dial: &Dial) -> (Client, bool) {
    let attempt = || match dial.try_connect(cluster.mqtt(i)) {
        Ok((client, In::ConnAck { present, reason: Reason::Success, .. })) => Some((client, present)),
        _ => None,
    };
    wait::until("it is let in", attempt)
}
