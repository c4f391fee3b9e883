//! Nodes find each other, agree on a leader, and bring messages to each other's clients.

use super::nodes::BerthCluster;
use crate::broker::{Setup, free_address};
use crate::client::{Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::QoS;

/// How soon there must be a leader, milliseconds.
const LEADER_MS: u64 = 10_000;

#[test]
fn three_nodes_agree_on_a_leader_and_on_another_when_it_dies() {
    let mut cluster = BerthCluster::with(3, 1, &[("cluster.lease", "2s"), ("cluster.stale_after", "1s")]);
    let began = clock::now();
    let first = wait::until("there is a leader", || cluster.leader());
    let took = clock::now().since_ms(began);
    assert!(took < LEADER_MS, "a leader {took} ms after all were ready");
    assert_eq!(cluster.members(), ["n0", "n1", "n2"]);
    let began = clock::now();
    cluster.kill(first);
    let second = wait::until("another leads", || cluster.leader().filter(|l| *l != first));
    assert!(clock::now().since_ms(began) < LEADER_MS, "n{second} leads too late");
    cluster.restart(first);
    wait::until_true("the dead one is back", || cluster.members().len() == 3);
    assert_eq!(cluster.leader(), Some(second), "a leader that lives was replaced");
}

#[test]
fn messages_of_all_qos_reach_subscribers_on_other_nodes_once_and_in_order() {
    let cluster = BerthCluster::start(3);
    let dial = |i: usize| Dial::v5(&format!("sub{i}"));
    let mut subs: Vec<_> = (0..3).map(|i| cluster.connect(i, &dial(i))).collect();
    for sub in &mut subs {
        assert_eq!(sub.subscribe(&[("t/+", QoS::ExactlyOnce)]), [2]);
    }
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    for (qos, name) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().zip(["0", "1", "2"])
    {
        let sent: Vec<String> = (0..20).map(|n| format!("{name} {n}")).collect();
        for text in &sent {
            publisher.publish("t/x", text, qos);
        }
        for (i, sub) in subs.iter_mut().enumerate() {
            assert_eq!(sub.receive_texts(sent.len()), sent, "node {i}, QoS {name}");
        }
    }
    for sub in &mut subs {
        sub.ping(); // whatever came besides would have come before the answer
    }
}

#[test]
fn the_name_of_a_live_node_is_refused() {
    let cluster = BerthCluster::start(1);
    let mut second = Setup::new()
        .set("node.id", "n0")
        .set("cluster.enabled", "true")
        .set("cluster.peer_address", &free_address().to_string())
        .set("etcd.endpoints", &cluster.etcd.endpoint(0))
        .spawn();
    let status = second.wait();
    assert!(!status.success(), "{}", second.log());
    assert!(second.log().contains("node.id") && second.log().contains("n0"), "{}", second.log());
    assert!(cluster.ready(0));
    let mut client = cluster.connect(0, &Dial::v5("still"));
    client.ping();
}

#[test]
fn after_a_crash_its_name_is_free_at_once_for_the_same_node() {
    // If it waited for its own lease, that would show.
    let mut cluster = BerthCluster::with(1, 1, &[("cluster.lease", "5m")]);
    cluster.kill(0);
    let began = clock::now();
    cluster.restart(0);
    assert!(clock::now().since_ms(began) < LEADER_MS, "waited for its own lease");
}

#[test]
fn clusters_with_different_names_share_an_etcd_and_nothing_else() {
    let cluster = BerthCluster::start(1);
    let other = Setup::new()
        .set("node.id", "n0")
        .set("cluster.enabled", "true")
        .set("cluster.name", "other")
        .set("cluster.peer_address", &free_address().to_string())
        .set("etcd.endpoints", &cluster.etcd.endpoint(0))
        .start();
    let mut here = cluster.connect(0, &Dial::v5("c"));
    let mut there = Dial::v5("c").connect(other.mqtt);
    for client in [&mut here, &mut there] {
        assert_eq!(client.subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
    }
    let mut publisher = cluster.connect(0, &Dial::v5("p"));
    publisher.publish("t", "here", QoS::AtLeastOnce);
    assert_eq!(here.receive_texts(1), ["here"]);
    there.send(&[0xC0, 0]).unwrap();
    assert_eq!(there.recv(), In::PingResp);
    assert_eq!(cluster.members(), ["n0"]);
}
