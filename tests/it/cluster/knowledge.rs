//! What the nodes of a cluster know of each other, in virtual time: routes, freshness, SUBACK, retained messages.

use crate::random::Random;
use berth::cluster::{Remote, RemoteCache};
use berth::mqtt::{QoS, Reason};
use berth::node::Limits;
use berth::ports::{Coordinator, Index, IndexEvent, MemberId, Revision, Route};
use berth::simulation::{Cluster, Got, SimClient};
use berth::telemetry::metrics::SubackWait;
use std::collections::BTreeSet;
use std::sync::Arc;

fn cluster(n: usize, seed: u64) -> Cluster {
    let cluster = Cluster::new(n, seed);
    assert!(cluster.until(|| (0..n).all(|no| know_all(&cluster, no, n))));
    cluster
}

fn remote(cluster: &Cluster, no: usize) -> Arc<Remote> {
    cluster.node(no).unwrap().remote().unwrap().clone()
}

fn know_all(cluster: &Cluster, no: usize, n: usize) -> bool {
    let remote = remote(cluster, no);
    remote.members.live().len() == n && remote.is_fresh(cluster.sim.now())
}

fn client(cluster: &Cluster, no: usize, id: &str, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(no), id, true, expiry_s);
    assert!(cluster.until(|| !client.seen().is_empty()));
    assert_eq!(client.take(), [Got::Connected { present: false, reason: Reason::Success }]);
    client
}

fn subscribe(cluster: &Cluster, client: &mut SimClient, filter: &str) {
    let id = client.subscribe(filter, QoS::AtLeastOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == id))));
}

/// The nodes that `no` would send a publish to.
fn nodes(cluster: &Cluster, no: usize, topic: &str) -> BTreeSet<String> {
    let mut cache = RemoteCache::default();
    let remote = remote(cluster, no);
    remote.lookup(topic, &mut cache).nodes.iter().map(|n| n.node.to_string()).collect()
}

#[test]
fn suback_means_that_every_node_routes() {
    let cluster = cluster(3, 1);
    let mut sub = client(&cluster, 0, "s", 60);
    for n in 0..20 {
        subscribe(&cluster, &mut sub, &format!("t/{n}"));
        for other in [1, 2] {
            assert_eq!(nodes(&cluster, other, &format!("t/{n}")), BTreeSet::from(["n0".to_owned()]));
        }
        assert_eq!(nodes(&cluster, 0, &format!("t/{n}")), BTreeSet::new());
    }
    let waits = &cluster.node(0).unwrap().broker.metrics.suback_waits;
    assert_eq!((waits.of(SubackWait::Done).get(), waits.total()), (20, 20));
}

#[test]
fn suback_waits_for_a_node_that_lags_until_that_is_not_current_any_more() {
    let cluster = cluster(2, 2);
    let mut sub = client(&cluster, 0, "s", 60);
    cluster.store.lag("n1", true);
    // Nor does it hear from the other what it misses.
    cluster.net.stall("n0", "n1", true);
    let began = cluster.sim.now();
    let id = sub.subscribe("t", QoS::AtLeastOnce);
    let lagging = remote(&cluster, 1);
    assert!(cluster.until(|| {
        let answered = sub.seen().contains(&Got::Subscribed(id, vec![Reason::GrantedQoS1]));
        let fresh = lagging.is_fresh(cluster.sim.now());
        assert!(!(answered && fresh), "acknowledged while a node that does not route is fresh");
        answered
    }));
    let waited = cluster.sim.now().since_ms(began);
    let limits = Limits::default().remote;
    assert!(waited >= limits.suback_wait_ms && waited < 2 * limits.suback_wait_ms, "{waited}");
    assert_eq!(cluster.node(0).unwrap().broker.metrics.suback_waits.of(SubackWait::TimedOut).get(), 1);
    cluster.store.lag("n1", false);
    cluster.net.stall("n0", "n1", false);
    assert!(cluster.until(|| know_all(&cluster, 1, 2) && nodes(&cluster, 1, "t").contains("n0")));
}

#[test]
fn a_node_whose_watch_lags_learns_of_a_subscription_by_the_other() {
    let cluster = cluster(2, 12);
    let mut sub = client(&cluster, 0, "s", 60);
    cluster.store.lag("n1", true);
    let began = cluster.sim.now();
    let id = sub.subscribe("t", QoS::AtLeastOnce);
    assert!(cluster.until(|| sub.seen().contains(&Got::Subscribed(id, vec![Reason::GrantedQoS1]))));
    assert!(nodes(&cluster, 1, "t").contains("n0"), "acknowledged before it knows");
    let (waited, limits) = (cluster.sim.now().since_ms(began), Limits::default().remote);
    assert!(waited < limits.suback_wait_ms, "{waited}");
    assert_eq!(cluster.node(0).unwrap().broker.metrics.suback_waits.of(SubackWait::Done).get(), 1);
}

#[test]
fn nodes_vouch_for_each_other_while_the_store_is_away() {
    let cluster = cluster(3, 3);
    let mut sub = client(&cluster, 0, "s", 60);
    subscribe(&cluster, &mut sub, "t");
    let mut publisher = client(&cluster, 1, "p", 0);
    cluster.store.outage(true);
    for round in 0..20 {
        cluster.advance(10_000);
        for no in 0..3 {
            assert!(remote(&cluster, no).is_fresh(cluster.sim.now()), "n{no} after {round}0 s");
            assert!(cluster.node(no).unwrap().may_serve().is_ok());
        }
    }
    let id = publisher.publish("t", "through the outage", QoS::AtLeastOnce, false);
    assert!(cluster.until(|| publisher.seen().contains(&Got::Acked(id, Reason::Success))));
    assert!(cluster.until(|| sub.payloads() == ["through the outage"]));
    // A new subscription is served, and counted as one that nobody waited for.
    subscribe(&cluster, &mut sub, "u");
    assert_eq!(cluster.node(0).unwrap().broker.metrics.suback_waits.of(SubackWait::Skipped).get(), 1);
    cluster.store.outage(false);
    assert!(cluster.until(|| [1, 2].iter().all(|no| nodes(&cluster, *no, "u").contains("n0"))));
}

#[test]
fn a_node_cut_off_from_all_closes_its_clients_and_comes_back_by_itself() {
    let cluster = cluster(3, 4);
    let mut sub = client(&cluster, 0, "s", 600);
    subscribe(&cluster, &mut sub, "t");
    sub.take();
    for other in [1, 2] {
        cluster.partition(0, other, true);
    }
    // Its lease is still renewed: it serves.
    cluster.advance(60_000);
    assert!(!sub.wire.closed());
    cluster.cut_from_store(0, true);
    assert!(cluster.until(|| sub.wire.closed()));
    assert_eq!(sub.take(), [Got::Disconnected(Reason::ServerBusy)]);
    let first = cluster.node(0).unwrap();
    assert!(first.may_serve().is_err_and(|why| why.contains("etcd")));
    let mut refused = SimClient::connect(cluster.open(0), "other", true, 0);
    assert!(cluster.until(|| !refused.seen().is_empty()));
    assert_eq!(refused.take(), [Got::Connected { present: false, reason: Reason::ServerUnavailable }]);
    for other in [1, 2] {
        cluster.partition(0, other, false);
    }
    cluster.cut_from_store(0, false);
    assert!(cluster.until(|| first.may_serve().is_ok()));
    assert_eq!(first.broker.metrics.serving_lost.get(), 1);
    assert!(first.broker.session("s").is_some(), "the session was kept");
}

#[test]
fn a_node_that_lags_catches_up_by_another_while_the_store_is_away() {
    let cluster = cluster(2, 5);
    let mut sub = client(&cluster, 0, "s", 60);
    // n1 does not see what is written just before the store goes away.
    cluster.store.lag("n1", true);
    let id = sub.subscribe("t", QoS::AtLeastOnce);
    assert!(cluster.until(|| nodes_of_store(&cluster, 0).contains("t")));
    cluster.store.outage(true);
    assert!(cluster.until(|| sub.seen().contains(&Got::Subscribed(id, vec![Reason::GrantedQoS1]))));
    assert!(cluster.until(|| nodes(&cluster, 1, "t").contains("n0")));
    assert!(cluster.until(|| remote(&cluster, 1).is_fresh(cluster.sim.now())));
    assert!(cluster.node(1).unwrap().broker.metrics.catch_ups.get() >= 1);
}

fn nodes_of_store(cluster: &Cluster, no: usize) -> BTreeSet<String> {
    let id = cluster.id(no).unwrap();
    cluster.store.routes(&id).into_iter().map(|r| r.filter.to_string()).collect()
}

#[test]
fn a_new_subscription_sees_what_was_retained_on_any_node_before() {
    let cluster = cluster(3, 6);
    let mut publisher = client(&cluster, 1, "p", 0);
    for n in 0..30 {
        let id = publisher.publish(&format!("r/{n}"), &n.to_string(), QoS::AtLeastOnce, true);
        assert!(cluster.until(|| publisher.seen().iter().any(|g| matches!(g, Got::Acked(i, _) if *i == id))));
        for expiry_s in [0, 60] {
            let mut sub = client(&cluster, 2, &format!("s{n}-{expiry_s}"), expiry_s);
            subscribe(&cluster, &mut sub, &format!("r/{n}"));
            assert!(cluster.until(|| sub.payloads() == [n.to_string()]));
        }
    }
    let id = publisher.publish("r/0", "", QoS::AtLeastOnce, true);
    assert!(cluster.until(|| publisher.seen().iter().any(|g| matches!(g, Got::Acked(i, _) if *i == id))));
    assert!(cluster.until(|| (0..3).all(|no| cluster.node(no).unwrap().broker.retained_size().0 == 29)));
}

#[test]
fn an_update_parked_while_the_store_is_away_outlives_its_process_but_not_a_newer_one() {
    let mut cluster = cluster(3, 7);
    let mut here = client(&cluster, 0, "p0", 0);
    let mut there = client(&cluster, 1, "p1", 0);
    let acked = |c: &Cluster, p: &mut SimClient, topic: &str, payload: &str| {
        let id = p.publish(topic, payload, QoS::AtLeastOnce, true);
        assert!(c.until(|| p.seen().iter().any(|g| matches!(g, Got::Acked(i, _) if *i == id))), "{topic}");
    };
    acked(&cluster, &mut here, "old", "0");
    acked(&cluster, &mut here, "cleared", "0");
    cluster.cut_from_store(0, true);
    for (topic, payload) in [("old", "late"), ("new", "1"), ("new", "2"), ("cleared", "")] {
        acked(&cluster, &mut here, topic, payload);
    }
    assert_eq!(cluster.node(0).unwrap().spooled_retained(), 3);
    acked(&cluster, &mut there, "old", "newer");
    // A process cannot start without the store.
    cluster.crash(0);
    cluster.cut_from_store(0, false);
    cluster.restart(0);
    let payload = |topic: &str| {
        let record = cluster.store.retained(topic)?;
        Some(String::from_utf8_lossy(record.message.payload()).into_owned())
    };
    assert!(cluster.until(|| cluster.node(0).is_some_and(|b| b.spooled_retained() == 0)));
    assert_eq!(payload("old").as_deref(), Some("newer"));
    assert_eq!(payload("new").as_deref(), Some("2"));
    assert_eq!(payload("cleared"), None);
    assert!(cluster.until(|| (0..3).all(|no| cluster.node(no).unwrap().broker.retained_size().0 == 2)));
}

#[test]
fn a_restarted_node_tells_the_routes_of_its_journal_and_drops_the_older_ones() {
    let mut cluster = cluster(2, 8);
    let mut sub = client(&cluster, 0, "s", 600);
    subscribe(&cluster, &mut sub, "t");
    let old = cluster.id(0).unwrap();
    cluster.crash(0);
    // Gone with its lease, its persistent routes hold.
    assert!(cluster.until(|| remote(&cluster, 1).members.live().len() == 1));
    let mut cache = RemoteCache::default();
    let found = remote(&cluster, 1).lookup("t", &mut cache).nodes.clone();
    assert!(found.len() == 1 && found[0].orphaned && found[0].persistent, "{found:?}");
    cluster.restart(0);
    assert!(cluster.until(|| {
        let found = remote(&cluster, 1).lookup("t", &mut cache).nodes.clone();
        found.len() == 1 && !found[0].orphaned && cluster.store.routes(&old).is_empty()
    }));
}

/// The routes that a node knows, its own too.
fn known(cluster: &Cluster, no: usize) -> Vec<(MemberId, Route)> {
    let mut all = remote(cluster, no).routes.all();
    all.sort_by(|a, b| (&a.0, &a.1.filter).cmp(&(&b.0, &b.1.filter)));
    all
}

#[test]
fn after_random_churn_and_faults_all_nodes_know_what_the_store_has() {
    let mut random = Random::seeded("BERTH_KNOWLEDGE_SEED");
    let mut cluster = cluster(3, random.next());
    let mut clients: Vec<Option<SimClient>> = (0..6).map(|_| None).collect();
    for step in 0..200 {
        match random.below(20) {
            0 => {
                let no = random.index(3);
                cluster.store.lag(&cluster.name(no), random.chance(50));
            }
            1 => cluster.cut_from_store(random.index(3), random.chance(50)),
            2 => cluster.partition(0, 1 + random.index(2), random.chance(50)),
            3 => cluster.store.outage(random.chance(50)),
            4 => {
                // A process cannot start without the store.
                let no = random.index(3);
                cluster.store.outage(false);
                cluster.cut_from_store(no, false);
                cluster.restart(no);
            }
            5 => {
                let no = random.index(3);
                cluster.store.forget_events(&cluster.name(no));
            }
            _ => {
                let at = random.index(clients.len());
                let filter = ["a", "a/+", "b/#", "$share/g/a"][random.index(4)];
                match &mut clients[at] {
                    Some(c) if c.wire.closed() => clients[at] = None,
                    Some(c) if random.chance(30) => {
                        c.unsubscribe(filter);
                    }
                    Some(c) if random.chance(80) => {
                        c.subscribe(filter, QoS::AtLeastOnce);
                    }
                    Some(c) => {
                        let topic = ["a", "b", "c"][random.index(3)];
                        let payload = if random.chance(30) { String::new() } else { step.to_string() };
                        c.publish(topic, &payload, QoS::AtLeastOnce, true);
                    }
                    none => {
                        let id = format!("c{at}");
                        *none = Some(SimClient::connect(cluster.open(random.index(3)), &id, true, 60));
                    }
                }
            }
        }
        cluster.advance(random.below(1_500));
    }
    cluster.store.outage(false);
    for no in 0..3 {
        cluster.store.lag(&cluster.name(no), false);
        cluster.cut_from_store(no, false);
        for other in 0..no {
            cluster.partition(no, other, false);
        }
    }
    let in_store = |cluster: &Cluster| {
        let mut all = Vec::new();
        for (of, _) in cluster.store.custody() {
            all.extend(cluster.store.routes(&of).into_iter().map(|r| (of.clone(), r)));
        }
        all.sort_by(|a: &(MemberId, Route), b| (&a.0, &a.1.filter).cmp(&(&b.0, &b.1.filter)));
        all
    };
    let settled = cluster.until(|| {
        let revision = cluster.store.revision();
        (0..3).all(|no| remote(&cluster, no).applied() == revision && know_all(&cluster, no, 3))
    });
    assert!(settled, "the nodes do not come to know of each other again");
    cluster.advance(10_000);
    assert!(cluster.until(|| (0..3).all(|no| remote(&cluster, no).applied() == cluster.store.revision())));
    let expected = in_store(&cluster);
    for no in 0..3 {
        assert_eq!(known(&cluster, no), expected, "n{no}");
        let node = cluster.node(no).unwrap();
        assert_eq!(node.broker.retained_size(), cluster.node(0).unwrap().broker.retained_size(), "n{no}");
    }
    for topic in ["a", "b", "c"] {
        let revisions: BTreeSet<Revision> =
            (0..3).map(|no| cluster.node(no).unwrap().broker.retained_revision(topic)).collect();
        assert_eq!(revisions.len(), 1, "{topic}");
    }
}

#[test]
fn an_index_that_only_hears_of_itself_serves_alone() {
    let cluster = cluster(1, 9);
    cluster.store.outage(true);
    cluster.advance(600_000);
    let first = cluster.node(0).unwrap();
    assert!(first.may_serve().is_ok());
    // Another node registers: now it needs evidence.
    let node = Arc::from("n9");
    let mut member = cluster.members()[0].clone();
    member.id = MemberId { node: Arc::clone(&node), incarnation: 1_000 };
    first
        .cluster
        .as_ref()
        .unwrap()
        .apply(vec![IndexEvent::Member { node, member: Some(member) }], Some(1_000));
    assert!(!remote(&cluster, 0).is_fresh(cluster.sim.now()));
    assert!(cluster.running(0).unwrap().coordinator.lease_until() < cluster.sim.now());
    assert!(first.may_serve().is_err());
}
