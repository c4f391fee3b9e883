//! What the journals of nodes have left of sessions that went, or did not come after all: nothing, before the next start too.

use super::large_sessions::publish;
use super::takeovers::{EXPIRY_S, cluster, connected, expected, resume};
use super::*;
use crate::mqtt::{QoS, Reason};

/// A client with a session at node 0 that has subscribed.
fn subscriber(cluster: &Cluster) -> SimClient {
    let mut client = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)));
    client.subscribe("t/#", QoS::ExactlyOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(..)))));
    client
}

/// The client comes to node 1; its session is frozen at node 0.
fn comes_to_the_other(cluster: &Cluster) {
    let _client = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    assert!(cluster.until(|| cluster.node(0).unwrap().broker.metrics.sessions_frozen.get() > 0));
}

fn numbers(client: &mut SimClient) -> Vec<String> {
    client.payloads().iter().map(|p| p.trim_end().to_owned()).collect()
}

#[test]
fn nothing_is_left_of_a_session_that_left() {
    let cluster = cluster(2, 61);
    let mut sub = subscriber(&cluster);
    sub.silent = true;
    publish(&cluster, 0..20, 0);
    assert!(cluster.until(|| sub.payloads().len() == 20));
    sub.wire.lose();
    publish(&cluster, 20..700, 0);
    let (mut moved, present) = resume(&cluster, 1, "s");
    assert!(present && cluster.until(|| moved.payloads().len() >= 700));
    cluster.advance(20_000);
    assert_eq!(cluster.journal(0).ended(), (1, 0));
}

#[test]
fn nothing_is_left_of_a_session_whose_parts_did_not_all_come() {
    let cluster = cluster(2, 62);
    subscriber(&cluster).wire.lose();
    publish(&cluster, 0..40, 900 << 10);
    cluster.net.latency(150);
    comes_to_the_other(&cluster);
    cluster.advance(1_000);
    cluster.partition(0, 1, true);
    cluster.advance(1_000);
    let (ended, left) = cluster.journal(1).ended();
    assert!(ended > 0 && left == 0, "{left}");
    cluster.partition(0, 1, false);
    let (mut moved, present) = resume(&cluster, 1, "s");
    assert!(present && cluster.until(|| moved.payloads().len() >= 40));
    assert_eq!(numbers(&mut moved), expected(0..40));
}

#[test]
fn nothing_is_left_of_a_session_whose_routes_could_not_be_published() {
    let cluster = cluster(2, 63);
    let mut sub = subscriber(&cluster);
    sub.silent = true;
    publish(&cluster, 0..20, 0);
    assert!(cluster.until(|| sub.payloads().len() == 20));
    sub.wire.lose();
    publish(&cluster, 20..120, 0);
    cluster.net.latency(20);
    comes_to_the_other(&cluster);
    cluster.cut_from_store(1, true);
    cluster.advance(30_000);
    let (ended, left) = cluster.journal(1).ended();
    assert!(ended > 0 && left == 0, "{left}");
    cluster.cut_from_store(1, false);
    let (mut moved, present) = resume(&cluster, 1, "s");
    assert!(present && cluster.until(|| moved.payloads().len() >= 120));
    assert_eq!(numbers(&mut moved), expected(0..120));
}
