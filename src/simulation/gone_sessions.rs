//! Sessions of a node that is gone: they expire by what the store says, and the node agrees when it is back.

use super::publish_tests::{acked, cluster, connect, subscribe};
use super::*;
use crate::mqtt::client::Will;
use crate::mqtt::{QoS, Reason};

const EXPIRY_S: u32 = 15;

/// A client at node 1 with a subscription, a will and a message in its queue; then the node dies.
fn dies(cluster: &mut Cluster) {
    let will =
        Will { topic: "wills", payload: b"gone", qos: QoS::AtLeastOnce, retain: false, properties: &[] };
    let mut old = SimClient::connect_with_will(cluster.open(1), "s", true, EXPIRY_S, Some(will));
    let connected = |g: &Got| matches!(g, Got::Connected { reason: Reason::Success, .. });
    assert!(cluster.until(|| old.seen().iter().any(connected)));
    subscribe(cluster, &mut old, "t", QoS::AtLeastOnce);
    old.silent = true;
    let mut publisher = connect(cluster, 0, "p", 0);
    let id = publisher.publish("t", "old", QoS::AtLeastOnce, false);
    assert!(cluster.until(|| acked(&mut publisher, id)));
    cluster.crash(1);
    cluster.advance(20_000);
    cluster.store.expire_session("s");
}

fn present(cluster: &Cluster, client: &mut SimClient) -> bool {
    let mut present = None;
    let answered = cluster.until(|| {
        let of = |g: &Got| match g {
            Got::Connected { present, reason: Reason::Success } => Some(*present),
            _ => None,
        };
        present = client.seen().iter().find_map(of);
        present.is_some()
    });
    assert!(answered, "{:?}", client.seen());
    present.unwrap()
}

#[test]
fn a_session_that_expired_while_its_node_was_gone_is_over() {
    let mut cluster = cluster(3, 900);
    let mut watcher = connect(&cluster, 2, "w", 0);
    subscribe(&cluster, &mut watcher, "wills", QoS::AtLeastOnce);
    dies(&mut cluster);
    cluster.restart(1);
    assert!(cluster.until(|| watcher.payloads() == ["gone"]), "its will is due");
    assert!(cluster.until(|| cluster.store.evictions().is_empty()));
    assert!(cluster.node(1).unwrap().broker.session("s").is_none());
    let mut back = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    assert!(!present(&cluster, &mut back));
    cluster.advance(60_000);
    assert_eq!((back.payloads().len(), watcher.payloads().len()), (0, 1));
}

#[test]
fn a_session_that_was_begun_anew_elsewhere_gets_nothing_of_one_that_expired() {
    for at in [0, 2] {
        let mut cluster = cluster(3, 910);
        let mut watcher = connect(&cluster, 2, "w", 0);
        subscribe(&cluster, &mut watcher, "wills", QoS::AtLeastOnce);
        dies(&mut cluster);
        let mut new = SimClient::connect(cluster.open(at), "s", false, EXPIRY_S);
        assert!(!present(&cluster, &mut new));
        subscribe(&cluster, &mut new, "t", QoS::AtLeastOnce);
        cluster.restart(1);
        assert!(cluster.until(|| cluster.store.evictions().is_empty()));
        cluster.advance(5_000);
        assert!(cluster.node(1).unwrap().broker.session("s").is_none() && !new.wire.closed());
        let mut publisher = connect(&cluster, 1, "p2", 0);
        let id = publisher.publish("t", "new", QoS::AtLeastOnce, false);
        assert!(cluster.until(|| acked(&mut publisher, id) && !new.payloads().is_empty()));
        // It moves to the node that had the old one.
        new.resume(cluster.open(1), EXPIRY_S);
        assert!(present(&cluster, &mut new));
        cluster.advance(60_000);
        assert!(!new.wire.closed() && watcher.payloads().is_empty(), "{:?}", watcher.payloads());
        assert!(!new.payloads().contains(&"old".to_owned()));
    }
}

#[test]
fn the_store_knows_how_long_a_session_lasts_before_its_client_may_rely_on_it() {
    let cluster = cluster(2, 920);
    let expiry = || cluster.store.owner("s").map(|o| o.session.expiry_s);
    let mut client = connect(&cluster, 0, "s", EXPIRY_S);
    assert_eq!(expiry(), Some(EXPIRY_S));
    for expiry_s in [600, 30, 7_200] {
        client.resume(cluster.open(0), expiry_s);
        assert!(present(&cluster, &mut client));
        assert!(expiry().unwrap() >= expiry_s, "{expiry_s}: {:?}", expiry());
        cluster.advance(1_000);
        assert_eq!(expiry(), Some(expiry_s));
    }
    // DISCONNECT that says how long from now on.
    client.wire.send(&[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 90]);
    assert!(cluster.until(|| expiry() == Some(90)));
    let mut client = SimClient::connect(cluster.open(1), "s", false, 120);
    assert!(present(&cluster, &mut client));
    cluster.advance(1_000);
    assert_eq!(expiry(), Some(120), "also where it has moved");
}
