//! `$SYS/cluster`, on real nodes.

use super::nodes::BerthCluster;
use crate::broker::Setup;
use crate::client::{Client, Dial};
use crate::wait;
use berth::clock;
use berth::mqtt::QoS;
use std::collections::BTreeMap;

fn watcher(cluster: &BerthCluster, i: usize) -> Client {
    let mut client = cluster.connect(i, &Dial::v5(&format!("watcher {i}")));
    client.subscribe(&[("$SYS/cluster/#", QoS::AtMostOnce)]);
    client
}

/// Reads until the newest values are these.
fn shows(client: &mut Client, expected: &[(&str, &str)]) {
    let (mut values, deadline) = (BTreeMap::new(), wait::deadline());
    while expected.iter().any(|(topic, value)| values.get(*topic).is_none_or(|v| v != value)) {
        assert!(clock::now() < deadline, "{values:?}, not {expected:?}");
        let got = client.receive_only();
        let topic = got.topic.strip_prefix("$SYS/cluster/").expect("nothing else was subscribed to");
        values.insert(topic.to_owned(), got.text().to_owned());
    }
}

#[test]
fn the_figures_of_the_cluster_are_seen_on_every_node_also_after_its_leader_died() {
    let options = [("sys.interval", "1s"), ("cluster.lease", "2s"), ("cluster.stale_after", "1s")];
    let mut cluster = BerthCluster::with(3, 1, &options);
    let mut watchers: Vec<_> = (0..3).map(|i| watcher(&cluster, i)).collect();
    let leader = wait::until("one leads", || cluster.leader());
    let mut publisher = cluster.connect((leader + 1) % 3, &Dial::v5("p"));
    publisher.publish_with("kept", b"x", QoS::AtLeastOnce, true);
    let name = format!("n{leader}");
    let expected = [
        ("leader", &*name),
        ("nodes", "3"),
        ("nodes/missing", "0"),
        ("clients/connected", "4"),
        ("clients/total", "4"),
        ("subscriptions/count", "3"),
        ("retained messages/count", "1"),
        ("publish/messages/received", "1"),
        ("publish/messages/dropped", "0"),
        ("messages/queued", "0"),
    ];
    watchers.iter_mut().for_each(|w| shows(w, &expected));
    cluster.kill(leader);
    watchers.remove(leader);
    let next = wait::until("another one leads", || cluster.leader().filter(|l| *l != leader));
    let name = format!("n{next}");
    let expected = [("leader", &*name), ("nodes", "2"), ("nodes/missing", "0"), ("clients/connected", "3")];
    watchers.iter_mut().for_each(|w| shows(w, &expected));
}

#[test]
fn a_broker_alone_shows_no_cluster() {
    let broker = Setup::new().set("sys.interval", "1s").start();
    let mut client = Dial::v5("watcher").connect(broker.mqtt);
    client.subscribe(&[("$SYS/#", QoS::AtMostOnce)]);
    let mut uptimes = 0;
    while uptimes < 3 {
        let topic = client.receive_only().topic;
        assert!(topic.starts_with("$SYS/broker/"), "{topic}");
        uptimes += usize::from(topic == "$SYS/broker/uptime");
    }
}
