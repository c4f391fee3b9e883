//! What is held for a node is released when nobody there is waited for any more: the node is forgotten, or its routes go.

use super::publish_tests::{acked, cluster, connect, start_routes, subscribe};
use super::*;
use crate::mqtt::QoS;
use crate::ports::{Index, IndexEvent};

/// How long it may take, milliseconds.
const SOON_MS: u64 = 1_000;

/// How node 1, which is gone, comes to be waited for no longer.
#[derive(Clone, Copy, Debug)]
enum How {
    Forgotten,
    /// While node 0 could not follow the store: it gets a snapshot.
    ForgottenUnseen,
    /// Its routes are removed.
    Unrouted,
    /// They go on without persistent sessions.
    Transient,
}

fn let_go(cluster: &Cluster, dead: &MemberId, how: How) {
    let index = cluster.node(0).unwrap().cluster.as_ref().unwrap();
    let remote = &index.remote;
    let routes = || remote.routes.all().into_iter().filter(|(of, _)| of == dead).map(|(_, r)| r);
    match how {
        How::Forgotten => cluster.store.forget("n1"),
        How::ForgottenUnseen => {
            let members = remote
                .members
                .live()
                .into_iter()
                .map(|m| IndexEvent::Member { node: m.id.node.clone(), member: Some(m) });
            let custodies = remote.members.custodies().into_iter().filter(|(of, _)| of != dead);
            let custodies = custodies.map(|(of, c)| IndexEvent::Custody { of, custody: Some(c) });
            let mut events: Vec<IndexEvent> = members.chain(custodies).collect();
            for (of, route) in remote.routes.all().into_iter().filter(|(of, _)| of != dead) {
                events.push(IndexEvent::Routes { of, add: vec![route], del: Vec::new() });
            }
            let revision = remote.applied() + 1;
            index.begin_snapshot();
            index.apply(events, None);
            index.end_snapshot(revision);
        }
        How::Unrouted => {
            let del = routes().map(|r| r.filter).collect();
            let event = IndexEvent::Routes { of: dead.clone(), add: Vec::new(), del };
            index.apply(vec![event], Some(remote.applied() + 1));
        }
        How::Transient => {
            let mut add: Vec<_> = routes().collect();
            add.iter_mut().for_each(|r| r.persistent = false);
            let event = IndexEvent::Routes { of: dead.clone(), add, del: Vec::new() };
            index.apply(vec![event], Some(remote.applied() + 1));
        }
    }
}

fn released(how: How, filter: &str, qos: QoS, seed: u64) {
    let what = format!("{how:?}, {filter}, QoS {}, seed {seed}", qos as u8);
    let mut cluster = cluster(3, seed);
    let mut sub = connect(&cluster, 1, "s", 600);
    subscribe(&cluster, &mut sub, filter, QoS::ExactlyOnce);
    let mut other = connect(&cluster, 2, "other", 600);
    subscribe(&cluster, &mut other, "t", QoS::ExactlyOnce);
    let mut publisher = connect(&cluster, 0, "p", 600);
    let dead = cluster.id(1).unwrap();
    let before = publisher.publish("t", "0", qos, false);
    assert!(cluster.until(|| acked(&mut publisher, before)), "{what}");
    cluster.crash(1);
    let gone = || cluster.members().iter().all(|m| &*m.id.node != "n1");
    assert!(cluster.until(gone), "{what}");
    let ids: Vec<u16> = (1..4).map(|n| publisher.publish("t", &n.to_string(), qos, false)).collect();
    cluster.advance(2_000);
    assert!(!ids.iter().any(|id| acked(&mut publisher, *id)), "{what}: held");
    let_go(&cluster, &dead, how);
    cluster.advance(SOON_MS);
    assert!(ids.iter().all(|id| acked(&mut publisher, *id)), "{what}: {:?}", publisher.seen());
    assert_eq!(cluster.node(0).unwrap().broker.metrics.publishes_held.get(), 0, "{what}");
    assert!(cluster.until(|| other.payloads().len() == 4), "{what}");
    assert_eq!(other.payloads(), ["0", "1", "2", "3"], "{what}");
    // The publisher's session is free to move.
    let moved = cluster.sim.now();
    connect(&cluster, 2, "p", 600);
    assert!(cluster.sim.now().since_ms(moved) < SOON_MS, "{what}");
}

#[test]
fn what_is_held_for_a_node_is_released_once_nobody_there_is_waited_for() {
    for how in [How::Forgotten, How::ForgottenUnseen, How::Unrouted, How::Transient] {
        for (n, filter) in ["t", "$share/g/t"].into_iter().enumerate() {
            for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
                released(how, filter, qos, n as u64);
            }
        }
    }
}

#[test]
fn a_route_that_its_last_persistent_session_has_left_soon_holds_nobody() {
    for seed in seeds(0..20) {
        for leaves in [false, true] {
            let what = format!("seed {seed}, unsubscribes: {leaves}");
            let mut cluster = cluster(3, seed);
            let mut sub = connect(&cluster, 1, "s", 600);
            subscribe(&cluster, &mut sub, "t", QoS::AtLeastOnce);
            let mut publisher = connect(&cluster, 0, "p", 0);
            if leaves {
                sub.unsubscribe("t");
            } else {
                sub = connect(&cluster, 2, "s", 600);
            }
            cluster.advance(600);
            cluster.crash(1);
            cluster.store.expire_lease("n1");
            cluster.advance(100);
            let id = publisher.publish("t", "1", QoS::AtLeastOnce, false);
            cluster.advance(SOON_MS);
            assert!(acked(&mut publisher, id), "{what}");
            assert_eq!(sub.payloads(), if leaves { &[][..] } else { &["1"] }, "{what}");
            cluster.restart(1);
            start_routes(&cluster, [1]);
        }
    }
}
