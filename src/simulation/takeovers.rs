//! Sessions that move between brokers of a cluster in virtual time, with crashes at every moment of the way.

use super::*;
use crate::mqtt::{QoS, Reason};

pub(super) const EXPIRY_S: u32 = 3_600;

pub(super) fn cluster(n: usize, seed: u64) -> Cluster {
    cluster_with(n, seed, Limits::default())
}

pub(super) fn cluster_with(n: usize, seed: u64, limits: Limits) -> Cluster {
    let cluster = Cluster::with(n, seed, limits);
    assert!(
        cluster.until(|| (0..n).all(|no| cluster.node(no).is_some_and(|b| b.may_serve().is_ok()))),
        "seed {seed}"
    );
    cluster
}

/// The outcome of a client's CONNECT.
pub(super) fn connected(cluster: &Cluster, client: &mut SimClient) -> Option<(bool, Reason)> {
    let outcome = |client: &mut SimClient| {
        client.seen().iter().find_map(|g| match g {
            Got::Connected { present, reason } => Some((*present, *reason)),
            _ => None,
        })
    };
    let _ = cluster.until(|| outcome(client).is_some() || client.wire.closed());
    outcome(client)
}

/// Connects until it succeeds; whether the session was there.
pub(super) fn resume(cluster: &Cluster, node: usize, client_id: &str) -> (SimClient, bool) {
    for _ in 0..20 {
        let mut client = SimClient::connect(cluster.open(node), client_id, false, EXPIRY_S);
        match connected(cluster, &mut client) {
            Some((present, Reason::Success)) => return (client, present),
            _ => cluster.advance(1_000),
        }
    }
    panic!("{client_id} cannot connect to node {node}");
}

fn subscriber(cluster: &Cluster, node: usize, client_id: &str, filter: &str) -> SimClient {
    let mut client = SimClient::connect(cluster.open(node), client_id, false, EXPIRY_S);
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)));
    client.subscribe(filter, QoS::ExactlyOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(..)))));
    client
}

/// Publishes `from..to` and waits until all are acknowledged.
fn publish(cluster: &Cluster, publisher: &mut SimClient, numbers: std::ops::Range<usize>, qos: QoS) {
    let ids: Vec<u16> = numbers.map(|n| publisher.publish("t/x", &n.to_string(), qos, false)).collect();
    let acked = |client: &mut SimClient, id: u16| {
        client.seen().iter().any(|g| match g {
            Got::Acked(i, reason) => *i == id && !reason.is_error() && qos == QoS::AtLeastOnce,
            Got::Completed(i) => *i == id,
            _ => false,
        })
    };
    assert!(cluster.until(|| ids.iter().all(|id| acked(publisher, *id))), "publishes are not acknowledged");
    publisher.take();
}

pub(super) fn expected(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

/// The payloads in the order of their first arrival.
fn firsts(mut client: SimClient, before: Vec<String>) -> Vec<String> {
    let mut all = before;
    all.extend(client.payloads());
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|p| seen.insert(p.clone()));
    all
}

#[test]
fn a_session_moves_with_its_queue_and_what_is_in_flight() {
    let cluster = cluster(3, 11);
    let mut publisher = SimClient::connect(cluster.open(2), "p", true, 0);
    assert!(connected(&cluster, &mut publisher).is_some());
    let mut sub = subscriber(&cluster, 0, "s", "t/#");
    sub.silent = true;
    publish(&cluster, &mut publisher, 0..20, QoS::AtLeastOnce);
    assert!(cluster.until(|| sub.payloads().len() == 20));
    sub.wire.lose();
    publish(&cluster, &mut publisher, 20..120, QoS::AtLeastOnce);
    let before = cluster.sim.now();
    let (mut moved, present) = resume(&cluster, 1, "s");
    assert!(present);
    assert!(cluster.until(|| moved.payloads().len() >= 120));
    assert_eq!(moved.payloads(), expected(0..120));
    assert!(cluster.sim.now().since_ms(before) < 200, "{}", cluster.sim.now().since_ms(before));
    assert!(cluster.node(0).unwrap().broker.session("s").is_none());
    let owner = cluster.store.owner("s").unwrap();
    assert_eq!((owner.session.owner, owner.session.epoch), (cluster.id(1).unwrap(), 2));
    publish(&cluster, &mut publisher, 120..130, QoS::ExactlyOnce);
    assert!(cluster.until(|| moved.payloads().len() >= 130));
    assert_eq!(moved.payloads(), expected(0..130));
}

#[test]
fn the_old_connection_is_closed_and_hears_why() {
    let cluster = cluster(2, 12);
    let mut old = subscriber(&cluster, 0, "s", "t/#");
    let (_new, present) = resume(&cluster, 1, "s");
    assert!(present);
    assert!(cluster.until(|| old.wire.closed()));
    assert_eq!(old.take().last(), Some(&Got::Disconnected(Reason::SessionTakenOver)));
}

#[test]
fn a_transient_session_is_replaced_and_its_connection_closed_first() {
    let cluster = cluster(2, 13);
    let mut old = SimClient::connect(cluster.open(0), "s", true, 0);
    assert!(connected(&cluster, &mut old).is_some());
    let mut new = SimClient::connect(cluster.open(1), "s", false, 0);
    assert_eq!(connected(&cluster, &mut new), Some((false, Reason::Success)));
    assert!(old.wire.closed());
    assert!(cluster.until(|| cluster.store.evictions().is_empty()));
}

#[test]
fn of_two_that_come_at_once_one_wins_and_the_session_is_whole() {
    for seed in seeds(100..120) {
        let cluster = cluster(3, seed);
        cluster.net.latency(3);
        let mut publisher = SimClient::connect(cluster.open(2), "p", true, 0);
        assert!(connected(&cluster, &mut publisher).is_some(), "seed {seed}");
        let sub = subscriber(&cluster, 0, "s", "t/#");
        sub.wire.lose();
        publish(&cluster, &mut publisher, 0..30, QoS::AtLeastOnce);
        let mut one = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        let mut two = SimClient::connect(cluster.open(2), "s", false, EXPIRY_S);
        let outcomes = (connected(&cluster, &mut one), connected(&cluster, &mut two));
        for (present, reason) in [outcomes.0, outcomes.1].into_iter().flatten() {
            assert!(present || reason != Reason::Success, "seed {seed}: {outcomes:?}");
        }
        assert!(cluster.until(|| one.wire.closed() != two.wire.closed()), "seed {seed}: {outcomes:?}");
        let (last, present) = resume(&cluster, 0, "s");
        assert!(present, "seed {seed}");
        let mut before = one.payloads();
        before.extend(two.payloads());
        cluster.advance(1_000);
        let mut got = firsts(last, before);
        got.sort_by_key(|p| p.parse::<usize>().unwrap());
        assert_eq!(got, expected(0..30), "seed {seed}");
    }
}

#[test]
fn a_dead_owner_refuses_a_resume_and_has_everything_when_it_is_back() {
    let mut cluster = cluster(3, 14);
    let mut publisher = SimClient::connect(cluster.open(2), "p", true, 0);
    assert!(connected(&cluster, &mut publisher).is_some());
    let sub = subscriber(&cluster, 0, "s", "t/#");
    sub.wire.lose();
    publish(&cluster, &mut publisher, 0..10, QoS::AtLeastOnce);
    cluster.crash(0);
    let mut refused = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    assert_eq!(connected(&cluster, &mut refused), Some((false, Reason::ServerUnavailable)));
    let mut waits = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    cluster.advance(2_000);
    cluster.restart(0);
    assert_eq!(connected(&cluster, &mut waits), Some((true, Reason::Success)));
    assert!(cluster.until(|| waits.payloads().len() >= 10));
    assert_eq!(waits.payloads(), expected(0..10));
}

#[test]
fn a_clean_start_goes_over_a_dead_owners_head_and_it_learns_of_it() {
    let mut cluster = cluster(2, 15);
    let sub = subscriber(&cluster, 0, "s", "t/#");
    sub.wire.lose();
    cluster.settle();
    cluster.crash(0);
    let mut new = SimClient::connect(cluster.open(1), "s", true, EXPIRY_S);
    assert_eq!(connected(&cluster, &mut new), Some((false, Reason::Success)));
    assert_eq!(cluster.store.evictions().len(), 1);
    cluster.restart(0);
    assert!(cluster.until(|| cluster.store.evictions().is_empty()));
    assert!(cluster.until(|| cluster.node(0).unwrap().broker.session("s").is_none()));
    assert!(!new.wire.closed());
    let (_, present) = resume(&cluster, 0, "s");
    assert!(present);
}

/// `victim` dies `ms` after a client has come to node 1, and is started again; the client must find all it was owed.
fn dies_on_the_way(seed: u64, victim: usize, ms: u64) {
    let mut cluster = cluster(3, seed);
    cluster.net.latency(2);
    cluster.store.latency(2);
    let mut publisher = SimClient::connect(cluster.open(2), "p", true, 0);
    assert!(connected(&cluster, &mut publisher).is_some());
    let sub = subscriber(&cluster, 0, "s", "t/#");
    sub.wire.lose();
    publish(&cluster, &mut publisher, 0..150, QoS::AtLeastOnce);
    let mut first = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    cluster.advance(ms);
    cluster.crash(victim);
    let before = first.payloads();
    cluster.advance(500);
    cluster.restart(victim);
    let (last, present) = resume(&cluster, 2, "s");
    let what = format!("seed {seed}: node {victim} dies after {ms} ms");
    assert!(present, "{what}");
    let mut before = before;
    before.extend(first.payloads());
    cluster.advance(2_000);
    let mut got = firsts(last, before);
    got.sort_by_key(|p| p.parse::<usize>().unwrap());
    assert_eq!(got, expected(0..150), "{what}");
    let here = |no: usize| cluster.node(no).unwrap().broker.session("s").is_some_and(|h| h.mailbox.present());
    // The client's older connection may have waited for the owner as well, and may be served last: one of them has it.
    let owners = || [0, 1, 2].map(here).iter().filter(|has| **has).count();
    assert!(cluster.until(|| owners() == 1), "{what}: {:?}", [0, 1, 2].map(here));
}

#[test]
fn the_old_owner_may_die_at_any_moment() {
    for ms in 0..40 {
        dies_on_the_way(1_000 + ms, 0, ms);
    }
}

#[test]
fn the_new_owner_may_die_at_any_moment() {
    for ms in 0..40 {
        dies_on_the_way(2_000 + ms, 1, ms);
    }
}

#[test]
fn order_holds_while_a_session_moves_under_load() {
    for seed in seeds(200..210) {
        let cluster = cluster(3, seed);
        cluster.net.latency(2);
        cluster.store.latency(1);
        let mut publishers: Vec<SimClient> =
            (0..3).map(|no| SimClient::connect(cluster.open(no), &format!("p{no}"), true, 0)).collect();
        publishers.iter_mut().for_each(|p| assert!(connected(&cluster, p).is_some()));
        let mut client = subscriber(&cluster, 0, "s", "t/#");
        let mut got = Vec::new();
        for n in 0..60 {
            for (no, p) in publishers.iter_mut().enumerate() {
                p.publish("t/x", &format!("{no}:{n}"), QoS::AtLeastOnce, false);
            }
            cluster.advance(1);
            if n % 20 == 10 {
                got.extend(client.payloads());
                client = SimClient::connect(cluster.open((n / 20 + 1) % 3), "s", false, EXPIRY_S);
            }
        }
        cluster.advance(20_000);
        let got = firsts(client, got);
        for no in 0..3 {
            let own: Vec<usize> = got
                .iter()
                .filter_map(|p| p.strip_prefix(&format!("{no}:")).and_then(|n| n.parse().ok()))
                .collect();
            assert_eq!(own, (0..60).collect::<Vec<_>>(), "seed {seed}: publisher {no}");
        }
    }
}

#[test]
fn a_node_that_leaves_hands_its_sessions_over() {
    let cluster = cluster(3, 16);
    let mut online = subscriber(&cluster, 0, "online", "t/#");
    let offline = subscriber(&cluster, 0, "offline", "t/#");
    offline.wire.lose();
    let mut publisher = SimClient::connect(cluster.open(2), "p", true, 0);
    assert!(connected(&cluster, &mut publisher).is_some());
    publish(&cluster, &mut publisher, 0..5, QoS::AtLeastOnce);
    let node = cluster.node(0).unwrap().clone();
    node.drain();
    let left = cluster.sim.wait(node.hand_over(), PATIENCE_MS);
    assert_eq!(left, Some(0));
    assert!(online.take().contains(&Got::Disconnected(Reason::ServerMoved)));
    assert_eq!(node.broker.sessions(), 0);
    for id in ["online", "offline"] {
        let (mut client, present) = resume(&cluster, 1, id);
        assert!(present, "{id}");
        if id == "offline" {
            assert!(cluster.until(|| client.payloads().len() >= 5));
            assert_eq!(client.payloads(), expected(0..5));
        }
    }
}

/// Order holds per QoS also where a publisher uses two on one topic, and publishes where the session goes to.
#[test]
fn order_holds_for_each_qos_while_a_session_moves() {
    for seed in seeds(300..360) {
        let cluster = cluster(3, seed);
        cluster.net.latency(2);
        cluster.store.latency(1);
        let mut publishers: Vec<SimClient> = (0..3)
            .map(|no| SimClient::connect(cluster.open(no), &format!("p{no}"), false, EXPIRY_S))
            .collect();
        publishers.iter_mut().for_each(|p| assert!(connected(&cluster, p).is_some()));
        let first = subscriber(&cluster, 2, "s", "t/#");
        first.wire.lose();
        cluster.advance(seed % 7);
        let mut client = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
        for n in 0..30 {
            for (no, p) in publishers.iter_mut().enumerate() {
                let qos = if n % 2 == 0 { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
                p.publish("t/x", &format!("{no}:{}:{n}", qos as u8), qos, false);
            }
            if n % 3 == seed % 3 {
                cluster.advance(1);
            }
        }
        cluster.advance(20_000);
        let mut got = client.payloads();
        let mut seen = std::collections::BTreeSet::new();
        got.retain(|p| seen.insert(p.clone()));
        for no in 0..3 {
            for qos in [1, 2] {
                let own: Vec<usize> = got
                    .iter()
                    .filter_map(|p| p.strip_prefix(&format!("{no}:{qos}:")).and_then(|n| n.parse().ok()))
                    .collect();
                let all: Vec<usize> = (0..30).filter(|n| n % 2 == 2 - qos).collect();
                assert_eq!(own, all, "seed {seed}: publisher {no}, QoS {qos}: {got:?}");
            }
        }
    }
}
