//! QoS 2 publishes that their publishers repeat, since they do not know what became of them.

use super::publish_tests::{acked, cluster, connect, start_routes, subscribe};
use super::*;
use crate::mqtt::{QoS, Reason};

/// Seeds that every scenario is run with; a failure names the one.
const SEEDS: std::ops::Range<u64> = 0..60;

/// A cluster whose node 1, with a persistent session that wants everything, is gone.
fn without_n1(n: usize, seed: u64) -> Cluster {
    let mut cluster = cluster(n, seed);
    let mut gone = connect(&cluster, 1, "gone", 3_600);
    subscribe(&cluster, &mut gone, "t", QoS::ExactlyOnce);
    cluster.crash(1);
    cluster
}

/// The publisher repeats `m`: it is acknowledged when node 1 is back and has it, once.
fn repeats(cluster: &mut Cluster, seed: u64, publisher: &mut SimClient, id: u16) {
    publisher.publish_again("t", "m", QoS::ExactlyOnce, id);
    cluster.advance(2_000);
    assert!(!acked(publisher, id), "seed {seed}: the other node does not have it");
    cluster.restart(1);
    start_routes(cluster, [1]);
    assert!(cluster.until(|| acked(publisher, id)), "seed {seed}: {:?}", publisher.seen());
    let mut gone = connect(cluster, 1, "gone", 3_600);
    assert!(cluster.until(|| !gone.payloads().is_empty()), "seed {seed}");
    cluster.advance(5_000);
    assert_eq!(gone.payloads(), ["m"], "seed {seed}");
}

#[test]
fn a_publisher_whose_qos_2_publish_waits_for_a_dead_node_comes_back_meanwhile() {
    for seed in seeds(SEEDS) {
        let mut cluster = without_n1(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        subscribe(&cluster, &mut publisher, "mine", QoS::AtLeastOnce);
        let id = publisher.publish("t", "m", QoS::ExactlyOnce, false);
        // Not safe in time: the connection ends.
        assert!(cluster.until(|| publisher.wire.closed()), "seed {seed}: {:?}", publisher.seen());
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        let present = |g: &Got| matches!(g, Got::Connected { present: true, .. });
        assert!(publisher.seen().iter().any(present), "seed {seed}");
        let mut other = connect(&cluster, 0, "other", 0);
        other.publish("mine", "news", QoS::AtMostOnce, false);
        assert!(cluster.until(|| publisher.payloads() == ["news"]), "seed {seed}");
        repeats(&mut cluster, seed, &mut publisher, id);
    }
}

/// After a restart the node knows whose publish it still has to bring to others: a repetition is not answered before they have
/// it, and only that session stays.
#[test]
fn a_publisher_whose_qos_2_publish_waits_for_a_dead_node_comes_back_after_a_restart() {
    for seed in seeds(SEEDS) {
        let mut cluster = without_n1(3, seed);
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        publisher.subscribe_to_others("t", QoS::ExactlyOnce);
        let mut other = connect(&cluster, 0, "other", 3_600);
        subscribe(&cluster, &mut other, "t", QoS::ExactlyOnce);
        let id = publisher.publish("t", "m", QoS::ExactlyOnce, false);
        assert!(cluster.until(|| other.payloads() == ["m"]), "seed {seed}");
        cluster.crash(0);
        cluster.restart(0);
        start_routes(&cluster, [0]);
        let mut elsewhere = SimClient::connect(cluster.open(2), "p", false, 3_600);
        assert!(cluster.until(|| elsewhere.wire.closed()), "seed {seed}");
        let refused = Got::Connected { present: false, reason: Reason::ServerUnavailable };
        assert_eq!(elsewhere.seen(), [refused], "seed {seed}: its publish waits on node 0");
        let resumed = Got::Connected { present: true, reason: Reason::Success };
        let mut moved = connect(&cluster, 2, "other", 3_600);
        assert_eq!(moved.seen().first(), Some(&resumed), "seed {seed}: it has published nothing");
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        assert_eq!(publisher.seen().first(), Some(&resumed), "seed {seed}");
        repeats(&mut cluster, seed, &mut publisher, id);
        assert_eq!(publisher.payloads(), Vec::<String>::new(), "seed {seed}: No Local");
    }
}

/// A client that has forgotten its publish is served as any other.
#[test]
fn a_publisher_that_does_not_repeat_what_waits_for_a_dead_node_is_not_held_up() {
    for seed in seeds(SEEDS) {
        let mut cluster = without_n1(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        publisher.publish("t", "m", QoS::ExactlyOnce, false);
        assert!(cluster.until(|| publisher.wire.closed()), "seed {seed}");
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        let other = publisher.publish("elsewhere", "x", QoS::AtLeastOnce, false);
        assert!(cluster.until(|| acked(&mut publisher, other)), "seed {seed}");
        cluster.advance(60_000);
        assert!(!publisher.wire.closed(), "seed {seed}: {:?}", publisher.seen());
        cluster.restart(1);
        start_routes(&cluster, [1]);
        let mut gone = connect(&cluster, 1, "gone", 3_600);
        assert!(cluster.until(|| gone.payloads() == ["m"]), "seed {seed}");
    }
}

/// An acknowledged retained message is kept, also if its node died before etcd had it and the client only repeated it.
#[test]
fn a_retained_publish_that_is_repeated_after_a_crash_is_retained() {
    let mut early = 0;
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        cluster.store.latency(1_000);
        let id = publisher.publish("kept", "m", QoS::ExactlyOnce, true);
        cluster.advance(seed % 60 * 10);
        early += usize::from(!acked(&mut publisher, id));
        cluster.crash(0);
        cluster.store.latency(1);
        cluster.restart(0);
        start_routes(&cluster, [0]);
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        publisher.publish_again("kept", "m", QoS::ExactlyOnce, id);
        assert!(cluster.until(|| acked(&mut publisher, id)), "seed {seed}: {:?}", publisher.seen());
        for node in 0..2 {
            let mut late = connect(&cluster, node, "late", 0);
            late.subscribe("kept", QoS::AtMostOnce);
            assert!(cluster.until(|| late.payloads() == ["m"]), "seed {seed}, node {node}");
        }
    }
    assert!(early > 0, "etcd was always faster");
}
