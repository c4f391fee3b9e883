//! Messages that a limit forbids to be retained, on several nodes: what is accepted replaces, what is refused does not, and all
//! nodes agree, also after an outage of the coordination store or a restart.

use super::*;
use crate::mqtt::client::Will;
use crate::mqtt::{QoS, Reason};

/// The payload that is retained everywhere at first, and one that no limit here allows.
const OLD: &str = "old";
const LARGE: &str = "eleven byte";

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.broker.retained.payload = LARGE.len() - 1;
    limits
}

/// The answer to its CONNECT.
fn answer(cluster: &Cluster, client: &mut SimClient) -> Reason {
    let mut reason = None;
    let answered = cluster.until(|| {
        let of = |g: &Got| if let Got::Connected { reason, .. } = g { Some(*reason) } else { None };
        reason = client.seen().iter().find_map(of);
        reason.is_some()
    });
    assert!(answered, "no CONNACK");
    reason.unwrap()
}

fn connect(cluster: &Cluster, no: usize, client_id: &str) -> SimClient {
    let mut client = SimClient::connect(cluster.open(no), client_id, true, 0);
    assert_eq!(answer(cluster, &mut client), Reason::Success);
    client
}

/// Connects with a will that is to be retained; the session outlives the connection.
fn leaves(cluster: &Cluster, no: usize, client_id: &str, topic: &str, payload: &str) -> (SimClient, Reason) {
    let payload = payload.as_bytes();
    let will = Will { topic, payload, qos: QoS::AtMostOnce, retain: true, properties: &[] };
    let mut client = SimClient::connect_with_will(cluster.open(no), client_id, true, 60, Some(will));
    let reason = answer(cluster, &mut client);
    (client, reason)
}

/// Publishes with RETAIN; the answer.
fn retain(cluster: &Cluster, client: &mut SimClient, topic: &str, payload: &str, qos: QoS) -> Reason {
    let id = client.publish(topic, payload, qos, true);
    if qos == QoS::AtMostOnce {
        cluster.settle();
        return Reason::Success;
    }
    let mut reason = None;
    let answered = cluster.until(|| {
        let of = |g: &Got| match g {
            Got::Acked(of, reason) if *of == id => Some(*reason),
            _ => None,
        };
        reason = client.seen().iter().find_map(of);
        reason.is_some()
    });
    assert!(answered, "no answer for {topic}");
    reason.unwrap()
}

/// Whether the store and all nodes have as many retained messages, and this one of a topic.
fn has(cluster: &Cluster, topic: &str, payload: Option<&str>) -> bool {
    let stored = cluster.store.retained(topic).map(|r| r.message.payload().to_vec());
    let brokers = (0..cluster.nodes.len()).filter_map(|no| cluster.node(no));
    let known = |b: &Arc<node::Node>| {
        let found = b.retained_of(topic, 1, START).unwrap().messages.pop();
        found.and_then(|m| m.payload)
    };
    stored.as_deref() == payload.map(str::as_bytes)
        && brokers.into_iter().all(|b| known(b).as_deref() == payload)
}

#[test]
fn what_is_accepted_replaces_on_every_node_and_what_is_refused_on_none() {
    let cluster = Cluster::with(3, 800, limits());
    let mut clients = [0, 1, 2].map(|no| connect(&cluster, no, &format!("p{no}")));
    for topic in ["accepted", "refused"] {
        let reason = retain(&cluster, &mut clients[0], topic, OLD, QoS::AtLeastOnce);
        assert!(!reason.is_error(), "{reason:?}");
        assert!(cluster.until(|| has(&cluster, topic, Some(OLD))));
    }
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        assert_eq!(retain(&cluster, &mut clients[1], "refused", LARGE, qos), Reason::QuotaExceeded);
    }
    retain(&cluster, &mut clients[1], "accepted", LARGE, QoS::AtMostOnce);
    assert!(cluster.until(|| has(&cluster, "accepted", None)));
    assert!(has(&cluster, "refused", Some(OLD)));
    // What comes after it is retained again.
    retain(&cluster, &mut clients[2], "accepted", "new", QoS::AtMostOnce);
    assert!(cluster.until(|| has(&cluster, "accepted", Some("new"))));
}

#[test]
fn without_the_store_it_is_cleared_later_also_by_the_next_process() {
    for restarted in [false, true] {
        let mut cluster = Cluster::with(2, 801, limits());
        let mut clients = [0, 1].map(|no| connect(&cluster, no, &format!("p{no}")));
        for topic in ["accepted", "refused", "newer"] {
            retain(&cluster, &mut clients[0], topic, OLD, QoS::AtLeastOnce);
            assert!(cluster.until(|| has(&cluster, topic, Some(OLD))));
        }
        cluster.cut_from_store(0, true);
        cluster.advance(1_000);
        retain(&cluster, &mut clients[0], "accepted", LARGE, QoS::AtMostOnce);
        retain(&cluster, &mut clients[0], "newer", LARGE, QoS::AtMostOnce);
        let reason = retain(&cluster, &mut clients[0], "refused", LARGE, QoS::AtLeastOnce);
        assert_eq!(reason, Reason::QuotaExceeded);
        assert_eq!(cluster.node(0).unwrap().spooled_retained(), 2);
        let reason = retain(&cluster, &mut clients[1], "newer", "new", QoS::AtLeastOnce);
        assert!(!reason.is_error(), "{reason:?}");
        if restarted {
            cluster.crash(0);
        }
        cluster.cut_from_store(0, false);
        if restarted {
            cluster.restart(0);
        }
        assert!(cluster.until(|| has(&cluster, "accepted", None)), "restarted: {restarted}");
        assert!(cluster.until(|| cluster.node(0).unwrap().spooled_retained() == 0));
        assert!(has(&cluster, "refused", Some(OLD)) && has(&cluster, "newer", Some("new")));
    }
}

#[test]
fn a_topic_can_be_cleared_whatever_the_limits_are() {
    let mut cluster = Cluster::with(2, 802, limits());
    let topics = ["a", "b", "c"];
    let mut client = connect(&cluster, 0, "p");
    for topic in topics {
        retain(&cluster, &mut client, topic, OLD, QoS::AtLeastOnce);
    }
    assert!(cluster.until(|| topics.iter().all(|topic| has(&cluster, topic, Some(OLD)))));
    cluster.limits.broker.retained.messages = 0;
    (0..2).for_each(|no| cluster.restart(no));
    let mut client = connect(&cluster, 0, "p");
    assert!(cluster.until(|| topics.iter().all(|topic| has(&cluster, topic, Some(OLD)))));
    retain(&cluster, &mut client, "a", "", QoS::AtMostOnce);
    assert!(cluster.until(|| has(&cluster, "a", None)));
    let reason = retain(&cluster, &mut client, "b", "", QoS::AtLeastOnce);
    assert!(!reason.is_error(), "{reason:?}");
    assert!(cluster.until(|| has(&cluster, "b", None)));
    // Nothing may be retained any more: it is replaced by nothing.
    retain(&cluster, &mut client, "c", "new", QoS::AtMostOnce);
    assert!(cluster.until(|| has(&cluster, "c", None)));
}

#[test]
fn a_will_that_cannot_be_retained_when_it_is_due_clears() {
    let mut cluster = Cluster::with(2, 803, limits());
    let mut client = connect(&cluster, 0, "p");
    for topic in ["here", "next process"] {
        retain(&cluster, &mut client, topic, OLD, QoS::AtLeastOnce);
        assert!(cluster.until(|| has(&cluster, topic, Some(OLD))));
    }
    let (_, reason) = leaves(&cluster, 1, "never", "here", LARGE);
    assert_eq!(reason, Reason::QuotaExceeded);
    let (left, reason) = leaves(&cluster, 1, "w", "next process", "12345678");
    assert_eq!(reason, Reason::Success);
    // A session without a connection, whose will the next process publishes, under other limits.
    cluster.limits.broker.retained.payload = 5;
    cluster.restart(1);
    assert!(left.wire.closed());
    assert!(cluster.until(|| has(&cluster, "next process", None)));
    assert!(has(&cluster, "here", Some(OLD)));
    cluster.limits.broker.retained.payload = 8;
    cluster.limits.broker.retained.bytes = 2 * 34 + "here".len() + OLD.len() + "w".len() + "12345678".len();
    cluster.restart(0);
    let (left, reason) = leaves(&cluster, 0, "w2", "w", "12345678");
    assert_eq!(reason, Reason::Success, "it could be retained");
    let mut client = connect(&cluster, 0, "p");
    let reason = retain(&cluster, &mut client, "w", OLD, QoS::AtLeastOnce);
    assert!(!reason.is_error(), "{reason:?}");
    assert!(cluster.until(|| has(&cluster, "w", Some(OLD))));
    // Others take the room meanwhile.
    let reason = retain(&cluster, &mut client, "here", "12345678", QoS::AtLeastOnce);
    assert!(!reason.is_error(), "{reason:?}");
    assert!(cluster.until(|| has(&cluster, "here", Some("12345678"))));
    left.wire.lose();
    assert!(cluster.until(|| has(&cluster, "w", None)));
    assert!(has(&cluster, "here", Some("12345678")));
}
