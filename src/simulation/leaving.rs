//! A node that stops while the store is away: the others go on without its word (`docs/decisions/0020-leaving-without-etcd.md`).

use super::publish_tests::{acked, connect, start_routes, subscribe};
use super::*;
use crate::mqtt::QoS;

const SEEDS: std::ops::Range<u64> = 0..20;

/// A lease, and then some.
const LONG_MS: u64 = 15_000;

fn cluster(seed: u64) -> Cluster {
    let limits = Limits::waiting(300_000);
    let cluster = Cluster::with(3, seed, limits);
    cluster.net.latency(20);
    start_routes(&cluster, 0..3);
    cluster
}

fn serves(cluster: &Cluster, no: usize) -> bool {
    let node = cluster.node(no).unwrap();
    let remote = node.remote().unwrap();
    node.may_serve().is_ok() && remote.is_fresh(cluster.sim.now())
}

#[test]
fn the_others_go_on_and_hold_what_its_persistent_sessions_need() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(seed);
        let mut near = connect(&cluster, 0, "near", 600);
        subscribe(&cluster, &mut near, "near", QoS::AtLeastOnce);
        let mut kept = connect(&cluster, 2, "kept", 600);
        subscribe(&cluster, &mut kept, "kept", QoS::AtLeastOnce);
        let mut gone = connect(&cluster, 2, "gone", 0);
        subscribe(&cluster, &mut gone, "gone", QoS::AtLeastOnce);
        let mut publisher = connect(&cluster, 1, "p", 600);
        // Acknowledgements keep the order of the publishes: one that is held holds those behind it.
        let mut holds = connect(&cluster, 1, "holds", 600);
        cluster.store.outage(true);
        cluster.advance(LONG_MS);
        cluster.stop(2);
        let held = holds.publish("kept", "held", QoS::AtLeastOnce, false);
        for round in 0..20 {
            cluster.advance(3_000);
            assert!(serves(&cluster, 0) && serves(&cluster, 1), "seed {seed}, round {round}");
            for topic in ["near", "gone"] {
                let id = publisher.publish(topic, "x", QoS::AtLeastOnce, false);
                cluster.advance(500);
                assert!(acked(&mut publisher, id), "seed {seed}, round {round}: {topic}");
            }
        }
        assert!(!acked(&mut holds, held), "seed {seed}: nobody has it");
        cluster.store.outage(false);
        cluster.restart(2);
        start_routes(&cluster, [2]);
        assert!(cluster.until(|| acked(&mut holds, held)), "seed {seed}");
        let mut kept = connect(&cluster, 2, "kept", 600);
        assert!(cluster.until(|| kept.payloads() == ["held"]), "seed {seed}: {:?}", kept.seen());
    }
}

#[test]
fn a_crash_holds_the_others_as_ever() {
    let mut cluster = cluster(1);
    cluster.store.outage(true);
    cluster.advance(LONG_MS);
    assert!(serves(&cluster, 0) && serves(&cluster, 1));
    cluster.crash(2);
    cluster.advance(10_000);
    assert!(!serves(&cluster, 0) && !serves(&cluster, 1));
}

#[test]
fn who_has_not_heard_it_holds() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(seed);
        cluster.store.outage(true);
        cluster.advance(LONG_MS);
        cluster.partition(0, 2, true);
        cluster.stop(2);
        cluster.partition(0, 2, false);
        cluster.advance(10_000);
        assert!(serves(&cluster, 1), "seed {seed}: it has heard it");
        assert!(!serves(&cluster, 0), "seed {seed}: it has not");
        cluster.store.outage(false);
        assert!(cluster.until(|| serves(&cluster, 0)), "seed {seed}");
    }
}

#[test]
fn what_only_the_one_that_leaves_knew_is_known_before_the_others_go_on() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(seed);
        let mut late = connect(&cluster, 2, "late", 600);
        let mut publisher = connect(&cluster, 0, "p", 600);
        cluster.store.lag("n0", true);
        cluster.store.lag("n1", true);
        let id = late.subscribe("late", QoS::AtLeastOnce);
        cluster.advance(200);
        cluster.store.outage(true);
        // Nobody can be waited for without the store: this is counted.
        assert!(cluster.until(|| late.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == id))));
        cluster.stop(2);
        let held = publisher.publish("late", "held", QoS::AtLeastOnce, false);
        cluster.advance(LONG_MS);
        assert!(serves(&cluster, 0) && serves(&cluster, 1), "seed {seed}");
        assert!(
            !acked(&mut publisher, held),
            "seed {seed}: acknowledged without the session that is to have it"
        );
        cluster.store.lag("n0", false);
        cluster.store.lag("n1", false);
        cluster.store.outage(false);
        cluster.restart(2);
        start_routes(&cluster, [2]);
        let mut late = connect(&cluster, 2, "late", 600);
        assert!(cluster.until(|| late.payloads() == ["held"]), "seed {seed}: {:?}", late.seen());
    }
}
