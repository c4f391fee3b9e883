//! Retained messages in etcd: coalescing, the last writer, and updates that were spooled.

use super::store::{Node, setup};
use crate::wait::{PATIENCE, becomes_true};
use berth::mqtt::message::Parts;
use berth::mqtt::{Message, QoS};
use berth::ports::{Coordinator, MessageId, Retain, RetainOutcome};
use futures_util::future::join_all;

fn update(node: &Node, topic: &str, payload: Option<&str>, seq: u64, known: u64) -> Retain {
    let message = payload.map(|payload| {
        Message::new(Parts {
            topic,
            payload: payload.as_bytes(),
            properties: &[],
            qos: QoS::AtLeastOnce,
            retain: true,
            expires_at: None,
        })
    });
    let id = MessageId { origin: node.me.incarnation, seq };
    Retain { topic: topic.into(), message, id, known, since: known, kept: false }
}

fn payload(node: &Node, topic: &str) -> Option<String> {
    let content = node.index.content();
    content.retained.get(topic).map(|r| String::from_utf8(r.message.payload().to_vec()).unwrap())
}

fn written(outcome: RetainOutcome) -> u64 {
    match outcome {
        RetainOutcome::Written(revision) => revision,
        other => panic!("{other:?}"),
    }
}

async fn within_patience<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("done in time")
}

#[test]
fn updates_of_a_topic_coalesce_and_the_last_wins() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let before = a.coordinator.read_revision().await.unwrap();
        let updates = (1..=1000).map(|i| a.coordinator.retain(update(&a, "t", Some(&i.to_string()), i, 0)));
        let outcomes = join_all(updates.collect::<Vec<_>>()).await;
        let last = outcomes.into_iter().map(written).max().unwrap();
        assert!(last - before < 100, "{} writes", last - before);
        a.coordinator.applies(last).await;
        assert_eq!(payload(&a, "t").as_deref(), Some("1000"));
        // Without knowing its own writes yet.
        written(a.coordinator.retain(update(&a, "t", None, 1001, 0)).await);
        let last = written(a.coordinator.retain(update(&a, "t", Some("new"), 1002, last)).await);
        a.coordinator.applies(last).await;
        assert_eq!(payload(&a, "t").as_deref(), Some("new"));
    });
}

#[test]
fn ten_thousand_topics_share_proposals() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let topics: Vec<String> = (0..10_000).map(|i| format!("many/{i}")).collect();
        let proposals = a.metrics.etcd_proposals.get();
        let updates =
            topics.iter().zip(1..).map(|(t, i)| a.coordinator.retain(update(&a, t, Some("x"), i, 0)));
        let last = join_all(updates.collect::<Vec<_>>()).await.into_iter().map(written).max().unwrap();
        assert!(a.metrics.etcd_proposals.get() - proposals < 500);
        a.coordinator.applies(last).await;
        assert_eq!(a.index.content().retained.len(), 10_000);
        a.equals_snapshot().await;
    });
}

#[test]
fn all_nodes_agree_on_the_last_of_competing_updates() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let mut latest = (0, String::new());
        for i in 1..=50 {
            let (x, y) = (format!("a{i}"), format!("b{i}"));
            let by_a = a.coordinator.retain(update(&a, "t", Some(&x), i, 0));
            let by_b = b.coordinator.retain(update(&b, "t", Some(&y), i, 0));
            let (by_a, by_b) = futures_util::future::join(by_a, by_b).await;
            latest = latest.max((written(by_a), x)).max((written(by_b), y));
        }
        a.coordinator.applies(latest.0).await;
        b.coordinator.applies(latest.0).await;
        assert_eq!(payload(&a, "t"), Some(latest.1));
        assert_eq!(payload(&a, "t"), payload(&b, "t"));
    });
}

#[test]
fn what_was_parked_does_not_overwrite_a_newer_message() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let mut known = std::collections::BTreeMap::new();
        for topic in ["changed", "cleared", "same"] {
            known.insert(topic, written(a.coordinator.retain(update(&a, topic, Some("first"), 1, 0)).await));
        }
        // Accepted by an earlier start of b, which was cut off: it knew these revisions.
        let spooled = |topic: &str, payload, known| {
            let mut spooled = update(&b, topic, payload, 9, known);
            spooled.id.origin = 3;
            spooled
        };
        written(a.coordinator.retain(update(&a, "changed", Some("second"), 2, known["changed"])).await);
        written(a.coordinator.retain(update(&a, "cleared", None, 3, known["cleared"])).await);
        let late = |topic: &str| b.coordinator.retain(spooled(topic, Some("late"), known[topic]));
        assert_eq!(late("changed").await, RetainOutcome::Overtaken);
        assert_eq!(late("cleared").await, RetainOutcome::Overtaken);
        let revision = written(late("same").await);
        let last = written(b.coordinator.retain(spooled("none", Some("late"), 0)).await).max(revision);
        // A later one of the same start over its own, whatever it knew.
        let mut over = spooled("same", Some("later"), known["same"]);
        over.id.seq = 10;
        let last = written(b.coordinator.retain(over).await).max(last);
        a.coordinator.applies(last).await;
        assert_eq!(payload(&a, "changed").as_deref(), Some("second"));
        assert_eq!(payload(&a, "cleared"), None);
        assert_eq!(payload(&a, "same").as_deref(), Some("later"));
        assert_eq!(payload(&a, "none").as_deref(), Some("late"));
    });
}

#[test]
fn an_update_that_is_much_larger_in_json_or_that_etcd_refuses_does_not_stop_its_topic() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        // Six times as long when it is escaped, and more than etcd takes; the largest that is configured fits in base64.
        let control = "\u{1}".repeat(1 << 20);
        let large = update(&a, "t", Some(&control), 1, 0);
        a.coordinator.takes(large.message.as_ref().unwrap()).unwrap();
        let revision = written(within_patience(a.coordinator.retain(large)).await);
        a.coordinator.applies(revision).await;
        assert_eq!(payload(&a, "t"), Some(control));
        let huge = update(&a, "t", Some(&"x".repeat(3 << 20)), 2, revision);
        assert!(a.coordinator.takes(huge.message.as_ref().unwrap()).is_err());
        assert_eq!(within_patience(a.coordinator.retain(huge)).await, RetainOutcome::Refused);
        let small = a.coordinator.retain(update(&a, "t", Some("small"), 3, revision));
        let revision = written(within_patience(small).await);
        a.coordinator.applies(revision).await;
        assert_eq!(payload(&a, "t").as_deref(), Some("small"));
        assert!(a.coordinator.reachable());
    });
}

#[test]
fn while_etcd_is_away_kept_updates_of_a_topic_do_not_pile_up() {
    let (mut etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        etcd.kill(0);
        let kept = |i: u64| Retain { kept: true, ..update(&a, "t", Some(&i.to_string()), i, 0) };
        let mut waits: Vec<_> = (1..=1000).map(|i| tokio::spawn(a.coordinator.retain(kept(i)))).collect();
        let last = waits.pop().unwrap();
        becomes_true("all between the first and the last are replaced", || {
            waits.iter().filter(|wait| wait.is_finished()).count() >= 998
        })
        .await;
        etcd.restart(0);
        etcd.wait_healthy(0);
        a.coordinator.applies(written(within_patience(last).await.unwrap())).await;
        assert_eq!(payload(&a, "t").as_deref(), Some("1000"));
    });
}

#[test]
fn while_etcd_is_away_updates_wait_and_then_the_last_is_written() {
    let (mut etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let known = written(a.coordinator.retain(update(&a, "t", Some("0"), 1, 0)).await);
        etcd.kill(0);
        let waits: Vec<_> = (1..=20)
            .map(|i| a.coordinator.retain(update(&a, "t", Some(&i.to_string()), 1 + i, known)))
            .map(tokio::spawn)
            .collect();
        becomes_true("etcd is missed", || !a.coordinator.reachable()).await;
        assert!(waits.iter().all(|wait| !wait.is_finished()));
        etcd.restart(0);
        etcd.wait_healthy(0);
        let mut last = 0;
        for wait in waits {
            last = last.max(written(wait.await.unwrap()));
        }
        a.coordinator.applies(last).await;
        assert_eq!(payload(&a, "t").as_deref(), Some("20"));
        a.equals_snapshot().await;
    });
}
