//! `$SYS/cluster`: every node shows what the leader adds up.

use super::*;
use crate::mqtt::{QoS, Reason};
use crate::node::publish_cluster;
use std::collections::BTreeMap;

const INTERVAL_MS: u64 = 1_000;

/// Values by topic below `$SYS/cluster/`.
type Values = BTreeMap<String, String>;

fn publishes_figures(cluster: &Cluster, no: usize) {
    let node = cluster.running(no).unwrap();
    node.process.spawn(Box::pin(publish_cluster(node.node.clone(), INTERVAL_MS)));
}

fn connected(cluster: &Cluster, no: usize, client_id: &str, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(no), client_id, false, expiry_s);
    let reason = Reason::Success;
    assert!(cluster.until(|| client.seen().contains(&Got::Connected { present: false, reason })));
    client
}

fn subscribed(cluster: &Cluster, client: &mut SimClient, filter: &str) {
    let id = client.subscribe(filter, QoS::AtLeastOnce);
    let done = Got::Subscribed(id, vec![Reason::GrantedQoS1]);
    assert!(cluster.until(|| client.seen().contains(&done)));
}

/// Three nodes, the first of which leads, and a subscriber to `$SYS/cluster` on each.
fn three(seed: u64) -> (Cluster, Vec<SimClient>) {
    let cluster = Cluster::new(3, seed);
    cluster.store.latency(5);
    cluster.net.latency(5);
    cluster.advance(2_000);
    let mut watchers = Vec::new();
    for no in 0..3 {
        publishes_figures(&cluster, no);
        watchers.push(watcher(&cluster, no));
    }
    (cluster, watchers)
}

fn watcher(cluster: &Cluster, no: usize) -> SimClient {
    let mut client = connected(cluster, no, &format!("watcher {no} {}", cluster.sim.now().0), 0);
    subscribed(cluster, &mut client, "$SYS/cluster/#");
    client
}

/// The newest values that a client got.
fn values(client: &mut SimClient) -> Values {
    let mut values = Values::new();
    for got in client.seen() {
        if let Got::Message { topic, payload, .. } = got {
            let topic = topic.strip_prefix("$SYS/cluster/").expect("nothing else was subscribed to");
            values.insert(topic.to_owned(), payload.clone());
        }
    }
    values
}

fn number(values: &Values, topic: &str) -> u64 {
    values.get(topic).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Waits until a client has these values.
fn shows(cluster: &Cluster, seed: u64, client: &mut SimClient, expected: &[(&str, &str)]) {
    let all = |v: &Values| expected.iter().all(|(topic, value)| v.get(*topic).is_some_and(|v| v == value));
    let shown = cluster.until(|| all(&values(client)));
    let got = values(client);
    assert!(shown, "seed {seed}, {}: {got:?}, not {expected:?}", client.client_id);
}

/// What all running brokers count.
fn sum(cluster: &Cluster, figure: impl Fn(&Metrics) -> u64) -> u64 {
    (0..3).filter_map(|no| cluster.node(no)).map(|b| figure(&b.broker.metrics)).sum()
}

#[test]
fn every_node_shows_the_sums_over_all() {
    for seed in seeds(0..10) {
        let (cluster, mut watchers) = three(seed);
        let mut away = connected(&cluster, 1, "away", 3_600);
        subscribed(&cluster, &mut away, "q/#");
        away.leave();
        let mut publisher = connected(&cluster, 2, "p", 0);
        for n in 0..4 {
            publisher.publish("q/x", &n.to_string(), QoS::AtLeastOnce, false);
        }
        for topic in ["r/1", "r/2", "r/3"] {
            publisher.publish(topic, "kept", QoS::AtLeastOnce, true);
        }
        let acked = |p: &mut SimClient| p.seen().iter().filter(|g| matches!(g, Got::Acked(..))).count();
        assert!(cluster.until(|| acked(&mut publisher) == 7), "seed {seed}: {:?}", publisher.seen());
        publisher.publish("q/x", "dropped: nobody is connected", QoS::AtMostOnce, false);
        assert!(cluster.until(|| sum(&cluster, |m| m.messages_dropped.total()) == 1), "seed {seed}");
        let sent = sum(&cluster, |m| m.messages_sent.total());
        let expected = [
            ("leader", "n0"),
            ("nodes", "3"),
            ("nodes/missing", "0"),
            ("clients/connected", "4"),
            ("clients/total", "5"),
            ("subscriptions/count", "4"),
            ("retained messages/count", "3"),
            ("publish/messages/received", "8"),
            ("publish/messages/dropped", "1"),
            ("messages/queued", "4"),
        ];
        for client in &mut watchers {
            shows(&cluster, seed, client, &expected);
            // The figures themselves are sent as well.
            assert!(cluster.until(|| number(&values(client), "publish/messages/sent") >= sent));
            let most = sum(&cluster, |m| m.messages_sent.total());
            assert!(number(&values(client), "publish/messages/sent") <= most, "seed {seed}");
            assert_eq!(values(client).len(), expected.len() + 1);
        }
    }
}

#[test]
fn who_does_not_answer_is_missing_and_who_cannot_ask_keeps_what_it_has() {
    for seed in seeds(0..5) {
        let (cluster, mut watchers) = three(seed);
        let whole = [("nodes", "3"), ("nodes/missing", "0"), ("clients/connected", "3")];
        let parted = [("nodes", "3"), ("nodes/missing", "1"), ("clients/connected", "2")];
        watchers.iter_mut().for_each(|w| shows(&cluster, seed, w, &whole));
        cluster.partition(0, 2, true);
        watchers[..2].iter_mut().for_each(|w| shows(&cluster, seed, w, &parted));
        watchers[2].take();
        cluster.advance(10 * INTERVAL_MS);
        assert_eq!(values(&mut watchers[2]), Values::new(), "seed {seed}");
        let mut late = watcher(&cluster, 2);
        shows(&cluster, seed, &mut late, &whole);
        cluster.partition(0, 2, false);
        let whole = [("nodes", "3"), ("nodes/missing", "0"), ("clients/connected", "4")];
        watchers.iter_mut().for_each(|w| shows(&cluster, seed, w, &whole));
    }
}

#[test]
fn the_next_leader_adds_up_after_the_first_one_died() {
    for seed in seeds(0..5) {
        let (mut cluster, mut watchers) = three(seed);
        let first = [("leader", "n0"), ("nodes", "3"), ("clients/connected", "3")];
        watchers.iter_mut().for_each(|w| shows(&cluster, seed, w, &first));
        cluster.crash(0);
        let next = [("leader", "n1"), ("nodes", "2"), ("nodes/missing", "0"), ("clients/connected", "2")];
        watchers[1..].iter_mut().for_each(|w| shows(&cluster, seed, w, &next));
        cluster.restart(0);
        publishes_figures(&cluster, 0);
        watchers[0] = watcher(&cluster, 0);
        let back = [("leader", "n1"), ("nodes", "3"), ("nodes/missing", "0"), ("clients/connected", "3")];
        watchers.iter_mut().for_each(|w| shows(&cluster, seed, w, &back));
    }
}

#[test]
fn none_of_it_is_written_to_the_store() {
    let (cluster, mut watchers) = three(1);
    watchers.iter_mut().for_each(|w| shows(&cluster, 1, w, &[("nodes", "3")]));
    cluster.settle();
    let before = cluster.store.revision();
    watchers.iter_mut().for_each(|w| drop(w.take()));
    watchers.iter_mut().for_each(|w| shows(&cluster, 1, w, &[("nodes", "3")]));
    assert_eq!(cluster.store.revision(), before);
}
