use super::*;
use crate::mqtt::{QoS, Reason};

fn alone(seed: u64) -> Cluster {
    Cluster::new(1, seed)
}

#[test]
fn clients_talk_to_a_broker_in_virtual_time() {
    let cluster = alone(1);
    let mut sub = SimClient::connect(cluster.open(0), "s", true, 60);
    let mut publisher = SimClient::connect(cluster.open(0), "p", true, 0);
    assert!(cluster.until(|| publisher.seen().len() == 1 && sub.seen().len() == 1));
    assert_eq!(sub.take(), [Got::Connected { present: false, reason: Reason::Success }]);
    let id = sub.subscribe("a/+", QoS::ExactlyOnce);
    assert!(cluster.until(|| !sub.seen().is_empty()));
    assert_eq!(sub.take(), [Got::Subscribed(id, vec![Reason::GrantedQoS2])]);
    let one = publisher.publish("a/b", "1", QoS::AtLeastOnce, false);
    let two = publisher.publish("a/c", "2", QoS::ExactlyOnce, false);
    assert!(cluster.until(|| publisher.seen().contains(&Got::Completed(two))));
    assert!(publisher.seen().contains(&Got::Acked(one, Reason::Success)));
    assert!(cluster.until(|| sub.payloads() == ["1", "2"]));
}

#[test]
fn a_process_dies_with_its_connections_and_comes_back_as_a_new_incarnation() {
    let mut cluster = alone(2);
    let before = cluster.id(0).unwrap();
    let client = SimClient::connect(cluster.open(0), "s", true, 60);
    cluster.settle();
    assert!(!client.wire.closed());
    cluster.crash(0);
    assert!(client.wire.closed() && cluster.open(0).closed());
    cluster.restart(0);
    let after = cluster.id(0).unwrap();
    assert!(after.incarnation > before.incarnation);
    let custody = cluster.store.custody();
    assert!(custody.iter().all(|(_, c)| c.holder == after), "{custody:?}");
    cluster.wipe(0);
    let custody = cluster.store.custody();
    assert!(custody.iter().any(|(of, c)| *of == before && c.holder == after), "{custody:?}");
}

#[test]
fn a_lost_connection_is_noticed() {
    let cluster = alone(3);
    let mut client = SimClient::connect(cluster.open(0), "s", true, 0);
    assert!(cluster.until(|| !client.seen().is_empty()));
    client.wire.lose();
    assert!(cluster.until(|| client.wire.closed()));
    let node = cluster.node(0).unwrap();
    assert!(cluster.until(|| node.broker.metrics.connections_active.get() == 0));
}

fn connected(cluster: &Cluster, no: usize, client_id: &str, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(no), client_id, false, expiry_s);
    assert!(cluster.until(|| !client.seen().is_empty()), "no CONNACK on node {no}");
    let got = client.take();
    assert!(matches!(got[0], Got::Connected { reason: Reason::Success, .. }), "{got:?}");
    client
}

fn subscribed(cluster: &Cluster, client: &mut SimClient, filter: &str) {
    let id = client.subscribe(filter, QoS::ExactlyOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == id))));
}

#[test]
fn a_publish_reaches_the_subscribers_of_all_nodes_once() {
    for seed in seeds(0..10) {
        let cluster = Cluster::new(3, seed);
        cluster.store.latency(5);
        cluster.net.latency(5);
        cluster.advance(2_000);
        let mut subs: Vec<_> =
            (0..3).map(|no| connected(&cluster, no, &format!("s{no}"), 60 * no as u32)).collect();
        subs.iter_mut().for_each(|s| subscribed(&cluster, s, "t/#"));
        let mut publisher = connected(&cluster, 2, "p", 0);
        let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce];
        let ids: Vec<u16> =
            (0..6).map(|n| publisher.publish("t/x", &n.to_string(), qos[n % 2], false)).collect();
        let acked =
            |p: &mut SimClient| ids.iter().all(|id| p.seen().contains(&Got::Acked(*id, Reason::Success)));
        assert!(cluster.until(|| acked(&mut publisher)), "seed {seed}: {:?}", publisher.seen());
        for (no, sub) in subs.iter_mut().enumerate() {
            assert!(
                cluster.until(|| sub.payloads().len() >= 6),
                "seed {seed}, node {no}: {:?}",
                sub.payloads()
            );
            cluster.advance(100);
            assert_eq!(sub.payloads(), ["0", "1", "2", "3", "4", "5"], "seed {seed}, node {no}");
        }
    }
}

#[test]
fn retained_messages_that_wait_for_the_store_count_towards_the_limits() {
    let mut limits = Limits::default();
    limits.broker.retained.messages = 3;
    let cluster = Cluster::with(1, 4, limits);
    let mut publisher = connected(&cluster, 0, "p", 0);
    cluster.cut_from_store(0, true);
    let mut refused = |topic: &str| {
        let id = publisher.publish(topic, "x", QoS::AtLeastOnce, true);
        let mut reason = None;
        let answered = cluster.until(|| {
            let of = |got: &Got| match got {
                Got::Acked(of, reason) if *of == id => Some(*reason),
                _ => None,
            };
            reason = publisher.take().iter().find_map(of);
            reason.is_some()
        });
        assert!(answered, "no answer for {topic}");
        reason == Some(Reason::QuotaExceeded)
    };
    assert_eq!(
        ["t/0", "t/1", "t/2", "t/3", "t/0", "t/4"].map(&mut refused),
        [false, false, false, true, false, true]
    );
    let node = cluster.node(0).unwrap();
    assert_eq!(node.spooled_retained(), 3);
    cluster.cut_from_store(0, false);
    assert!(cluster.until(|| node.spooled_retained() == 0));
    assert!(refused("t/3") && !refused("t/1"));
}
