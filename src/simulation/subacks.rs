//! How long SUBACK waits for a node that is gone.

use super::publish_tests::{acked, cluster, connect, subscribe};
use super::*;
use crate::mqtt::QoS;

const SEEDS: std::ops::Range<u64> = 0..20;

/// A lease lives so long without a sign of its process, milliseconds.
const LEASE_MS: u64 = 10_000;

#[test]
fn suback_comes_when_the_key_of_a_dead_node_goes_and_only_the_first_waits() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(3, seed);
        let mut client = connect(&cluster, 0, "s", 60);
        let killed = cluster.sim.now();
        cluster.crash(1);
        cluster.advance(6_000);
        for no in 0..5 {
            subscribe(&cluster, &mut client, &format!("new/{no}"), QoS::AtLeastOnce);
            let after = cluster.sim.now().since_ms(killed);
            assert!(
                (LEASE_MS - 500..LEASE_MS + 500).contains(&after),
                "seed {seed}: SUBACK {no} at {after} ms"
            );
        }
    }
}

#[test]
fn who_acknowledges_after_suback_knows_the_subscription_even_without_lease_and_links() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(3, seed);
        let mut sub = connect(&cluster, 0, "s", 60);
        let mut publisher = connect(&cluster, 1, "p", 60);
        // Links first, etcd some time later: until then it is fresh by what etcd shows.
        cluster.partition(0, 1, true);
        cluster.partition(1, 2, true);
        cluster.advance(seed * 400);
        cluster.cut_from_store(1, true);
        cluster.advance(seed * 317 % 6_000);
        let id = sub.subscribe("t", QoS::AtLeastOnce);
        let subscribed =
            |s: &mut SimClient| s.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == id));
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for no in 0..100_u64 {
            let list = if subscribed(&mut sub) { &mut after } else { &mut before };
            list.push((no, publisher.publish("t", &no.to_string(), QoS::AtLeastOnce, false)));
            cluster.advance(150);
        }
        assert!(subscribed(&mut sub), "seed {seed}");
        let said: Vec<_> =
            after.iter().filter(|(_, id)| acked(&mut publisher, *id)).map(|(no, _)| *no).collect();
        assert!(
            said.is_empty(),
            "seed {seed}: {said:?} acknowledged by a node that cannot know of the subscription"
        );
    }
}
