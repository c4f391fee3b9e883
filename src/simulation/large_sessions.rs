//! Sessions that move though they are larger than what one node may answer another: their state comes in parts.

use super::takeovers::{EXPIRY_S, connected, expected};
use super::*;
use crate::mqtt::{QoS, Reason};
use crate::telemetry::metrics::MoveResult;

/// Bytes of one message.
const LARGE: usize = 900 << 10;

fn cluster(limits: Limits) -> Cluster {
    let cluster = Cluster::with(2, 31, limits);
    assert!(cluster.until(|| (0..2).all(|no| cluster.node(no).is_some_and(|b| b.may_serve().is_ok()))));
    cluster
}

/// A session at node 0 that has subscribed to these; its client is gone.
fn session<'f>(cluster: &Cluster, filters: impl IntoIterator<Item = &'f str>) {
    let mut client = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)));
    for filter in filters {
        let id = client.subscribe(filter, QoS::ExactlyOnce);
        let subscribed = |g: &Got| matches!(g, Got::Subscribed(i, _) if *i == id);
        assert!(cluster.until(|| client.seen().iter().any(subscribed)));
        client.take();
    }
    client.wire.lose();
    cluster.settle();
}

/// Publishes messages of `len` bytes at node 0, which begin with a number.
pub(super) fn publish(cluster: &Cluster, numbers: std::ops::Range<usize>, len: usize) {
    let mut client = SimClient::connect(cluster.open(0), "p", true, 0);
    assert!(connected(cluster, &mut client).is_some());
    for n in numbers {
        let id = client.publish("t/x", &format!("{n}{}", " ".repeat(len)), QoS::AtLeastOnce, false);
        let acked = |g: &Got| matches!(g, Got::Acked(i, reason) if *i == id && !reason.is_error());
        assert!(cluster.until(|| client.seen().iter().any(acked)), "message {n}");
    }
}

/// Goes on at node 1, at the first attempt.
fn resume(cluster: &Cluster) -> SimClient {
    let mut client = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    assert_eq!(connected(cluster, &mut client), Some((true, Reason::Success)));
    client
}

fn numbers(client: &mut SimClient) -> Vec<String> {
    client.payloads().iter().map(|p| p.trim_end().to_owned()).collect()
}

#[test]
fn a_session_with_large_messages_moves() {
    let cluster = cluster(Limits::default());
    session(&cluster, ["t/#"]);
    publish(&cluster, 0..40, LARGE);
    let mut moved = resume(&cluster);
    assert!(cluster.until(|| moved.payloads().len() >= 40));
    assert_eq!(numbers(&mut moved), expected(0..40));
}

/// As long as something comes, it goes on.
#[test]
fn a_session_that_takes_longer_than_a_takeover_may_wait_moves() {
    let mut limits = Limits::default();
    limits.remote.takeover_timeout_ms = 1_000;
    let cluster = cluster(limits);
    session(&cluster, ["t/#"]);
    publish(&cluster, 0..40, LARGE);
    cluster.net.latency(150);
    let began = cluster.sim.now();
    let (mut client, present) = takeovers::resume(&cluster, 1, "s");
    assert!(present);
    assert!(cluster.sim.now().since_ms(began) > 1_000);
    let moves = |result| cluster.node(1).unwrap().broker.metrics.moves.of(result).get();
    assert_eq!((moves(MoveResult::Came), moves(MoveResult::Failed)), (1, 0), "in one go");
    assert!(cluster.until(|| client.payloads().len() >= 40));
    assert_eq!(numbers(&mut client), expected(0..40));
}

#[test]
fn a_message_larger_than_an_answer_of_a_node_moves() {
    let mut limits = Limits::default();
    limits.broker.session.maximum_packet_size = 32 << 20;
    let cluster = cluster(limits);
    session(&cluster, ["t/#"]);
    publish(&cluster, 0..2, 20 << 20);
    let mut moved = resume(&cluster);
    assert!(cluster.until(|| moved.payloads().len() >= 2));
    assert_eq!(numbers(&mut moved), expected(0..2));
}

#[test]
fn a_session_with_more_subscriptions_than_fit_into_an_answer_moves() {
    let cluster = cluster(Limits::default());
    let filters: Vec<String> = (0..300).map(|n| format!("{n}/{}", "f".repeat(60_000))).collect();
    session(&cluster, filters.iter().map(String::as_str).chain(["t/#"]));
    publish(&cluster, 0..1, 0);
    let mut moved = resume(&cluster);
    assert!(cluster.until(|| !moved.payloads().is_empty()));
    let subscriptions = cluster.node(1).unwrap().broker.session("s").unwrap().subscriptions.lock().len();
    assert_eq!(subscriptions, filters.len() + 1);
}

#[test]
fn a_node_that_leaves_hands_over_a_session_with_large_messages() {
    let cluster = cluster(Limits::default());
    session(&cluster, ["t/#"]);
    publish(&cluster, 0..20, LARGE);
    let node = cluster.node(0).unwrap().clone();
    node.drain();
    assert_eq!(cluster.sim.wait(node.hand_over(), PATIENCE_MS), Some(0));
    let mut moved = resume(&cluster);
    assert!(cluster.until(|| moved.payloads().len() >= 20));
    assert_eq!(numbers(&mut moved), expected(0..20));
}
