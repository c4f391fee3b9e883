//! A session that stays frozen, since the store is away: what is published for it meanwhile is bounded where it waits.

use super::takeovers::{EXPIRY_S, cluster_with, connected, resume};
use super::*;
use crate::mqtt::{QoS, Reason};
use std::collections::BTreeSet;

/// A publisher, and which of its numbers were acknowledged.
struct Publisher {
    client: SimClient,
    node: usize,
    sent: Vec<(u16, usize)>,
    acked: BTreeSet<usize>,
}

impl Publisher {
    fn connect(cluster: &Cluster, node: usize) -> Publisher {
        let mut client = SimClient::connect(cluster.open(node), &format!("p{node}"), false, EXPIRY_S);
        assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)));
        client.take();
        Publisher { client, node, sent: Vec::new(), acked: BTreeSet::new() }
    }

    fn publish(&mut self, n: usize) {
        let payload = format!("{}:{n}", self.node);
        self.sent.push((self.client.publish("t/x", &payload, QoS::AtLeastOnce, false), n));
    }

    /// Whether everything it sent was answered.
    fn hear(&mut self) -> bool {
        for got in self.client.take() {
            let Got::Acked(id, reason) = got else { continue };
            let at = self.sent.iter().position(|(sent, _)| *sent == id).unwrap();
            let (_, n) = self.sent.remove(at);
            if !reason.is_error() {
                self.acked.insert(n);
            }
        }
        self.sent.is_empty()
    }
}

#[test]
fn what_waits_for_a_session_that_stays_frozen_goes_with_its_publishers_patience() {
    for seed in seeds(700..720) {
        let mut limits = Limits::waiting(1_000);
        limits.remote.held_publishes = 20;
        let cluster = cluster_with(3, seed, limits);
        let mut first = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
        assert_eq!(connected(&cluster, &mut first), Some((false, Reason::Success)));
        first.subscribe("t/#", QoS::AtLeastOnce);
        assert!(cluster.until(|| first.seen().iter().any(|g| matches!(g, Got::Subscribed(..)))));
        let mut publishers = [0, 2].map(|no| Publisher::connect(&cluster, no));
        cluster.net.latency(20);
        cluster.store.latency(100);
        let mut second = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        assert!(cluster.until(|| cluster.node(0).unwrap().broker.metrics.sessions_frozen.get() > 0));
        (0..3).for_each(|no| cluster.cut_from_store(no, true));
        let remote = cluster.node(0).unwrap().remote().unwrap().clone();
        let handle = cluster.node(0).unwrap().broker.session("s").unwrap();
        let mut most = (0, 0);
        for n in 0..600 {
            publishers.iter_mut().for_each(|p| p.publish(n));
            cluster.advance(100);
            publishers.iter_mut().for_each(|p| {
                p.hear();
            });
            most = (most.0.max(remote.publishes_deferred()), most.1.max(handle.mailbox.expected_len()));
        }
        assert!(handle.mailbox.frozen(|_| ()).is_some(), "seed {seed}");
        assert!(most.0 > 0 && most.0 <= 100 && most.1 <= 100, "seed {seed}: {most:?}");
        let given_up = |no: usize| cluster.node(no).unwrap().broker.metrics.publishes_given_up.get();
        assert!(given_up(0) > 300 && given_up(2) > 300, "seed {seed}: {} {}", given_up(0), given_up(2));
        (0..3).for_each(|no| cluster.cut_from_store(no, false));
        let (mut last, present) = resume(&cluster, 2, "s");
        assert!(present, "seed {seed}");
        for n in 600..610 {
            publishers.iter_mut().for_each(|p| p.publish(n));
            cluster.advance(100);
        }
        assert!(cluster.until(|| publishers.iter_mut().all(Publisher::hear)), "seed {seed}");
        assert!(publishers.iter().all(|p| p.acked.contains(&609)), "seed {seed}");
        cluster.advance(5_000);
        let mut got = first.payloads();
        got.extend(second.payloads());
        got.extend(last.payloads());
        let mut known = BTreeSet::new();
        got.retain(|p| known.insert(p.clone()));
        for p in &publishers {
            let prefix = format!("{}:", p.node);
            let own: Vec<usize> = got.iter().filter_map(|g| g.strip_prefix(&prefix)?.parse().ok()).collect();
            assert!(own.is_sorted(), "seed {seed}: publisher {}: {own:?}", p.node);
            let missing: Vec<_> = p.acked.iter().filter(|n| !own.contains(n)).collect();
            assert!(missing.is_empty(), "seed {seed}: publisher {}: {missing:?}", p.node);
        }
        assert_eq!((remote.publishes_deferred(), handle.mailbox.expected_len()), (0, 0), "seed {seed}");
    }
}
