//! What Home Assistant and zigbee2mqtt do with retained messages, against three nodes; the largest retained messages; and an etcd
//! that takes less than Berth expects.

use super::etcd::Etcd;
use super::nodes::BerthCluster;
use crate::client::Dial;
use crate::field::{PACKETS, field, kept, looked, retain, with_will};
use crate::wait;
use berth::mqtt::{QoS, Reason, Version};

#[test]
fn home_assistant_and_zigbee2mqtt_on_three_nodes() {
    let cluster = BerthCluster::with(3, 1, &[PACKETS]);
    for version in ["3", "5"] {
        field(version, &cluster.addresses());
    }
    for node in 0..3 {
        assert_eq!(
            cluster.get_json(node, "/api/v1/retained?filter=%23")["total"],
            1,
            "only what marks the end"
        );
    }
}

/// No text, so that it is base64 in etcd.
fn binary(n: usize) -> Vec<u8> {
    (0..1 << 20).map(|i| (i * 31 + n) as u8 | 0x80).collect()
}

#[test]
fn the_largest_messages_are_kept_by_all_nodes_and_found_after_a_start() {
    const EACH: usize = 6;
    // As long as etcd takes for them on a busy machine, whose disk it shares: an update that is given up is made again later, behind
    // its acknowledgement, which is another test's business.
    let mut cluster = BerthCluster::with(3, 1, &[PACKETS, ("etcd.timeout", "20s")]);
    std::thread::scope(|scope| {
        for node in 0..3 {
            let to = cluster.mqtt(node);
            scope.spawn(move || {
                let mut client = Dial::v5(&format!("p{node}")).connect(to);
                for n in 0..EACH {
                    let topic = |kind| format!("{kind}/{node}/{n}");
                    client.send_publish(&topic("large"), &binary(n), QoS::AtMostOnce, true).unwrap();
                    assert!(!retain(&mut client, &topic("small"), b"small").is_error());
                    assert!(!retain(&mut client, &topic("acked"), &binary(n + 1)).is_error());
                }
            });
        }
    });
    let wanted = |kind: &str, payload: &dyn Fn(usize) -> Vec<u8>| {
        let all = (0..3).flat_map(|node| (0..EACH).map(move |n| (node, n)));
        all.map(|(node, n)| (format!("{kind}/{node}/{n}"), payload(n))).collect::<Vec<_>>()
    };
    let complete = |cluster: &BerthCluster, node: usize| {
        let found = |kind: &str| looked(cluster.mqtt(node), &format!("{kind}/#"));
        for (kind, payload) in [
            ("acked", &(|n: usize| binary(n + 1)) as &dyn Fn(usize) -> Vec<u8>),
            ("small", &|_| b"small".to_vec()),
        ] {
            let (found, wanted) = (found(kind), wanted(kind, payload));
            let missing = wanted.iter().filter(|w| !found.contains(w)).map(|(topic, _)| topic);
            assert!(
                found == wanted,
                "node {node} lacks or has other values of {:?}",
                missing.collect::<Vec<_>>()
            );
        }
        wait::until_true("those at QoS 0", || found("large") == wanted("large", &binary));
    };
    (0..3).for_each(|node| complete(&cluster, node));
    cluster.kill(2);
    cluster.restart(2);
    cluster.broker(2).wait_ready();
    complete(&cluster, 2);
    // With a long topic the largest is too large for etcd: it is said, and what was there is left, or cleared.
    let topic = format!("{}/x", "t".repeat(24_000));
    let mut client = cluster.connect(0, &Dial::v5("c"));
    assert!(!retain(&mut client, &topic, b"old").is_error());
    assert_eq!(retain(&mut client, &topic, &binary(0)), Reason::QuotaExceeded);
    cluster.broker(0).wait_log(|line| line.contains("request to etcd") && line.contains("1468006"));
    (0..3).for_each(|node| assert_eq!(kept(cluster.mqtt(node), &topic).as_deref(), Some(&b"old"[..])));
    client.send_publish(&topic, &binary(0), QoS::AtMostOnce, true).unwrap();
    for node in 0..3 {
        wait::until_true("it is cleared", || kept(cluster.mqtt(node), &topic).is_none());
    }
}

#[test]
fn what_etcd_refuses_is_refused_or_clears_its_topic() {
    let cluster = BerthCluster::on(Etcd::narrow, 2, &[PACKETS]);
    // More than etcd itself takes, and more than its gRPC does.
    let (large, larger) = (vec![b'x'; 300 << 10], vec![b'x'; 700 << 10]);
    let mut client = cluster.connect(0, &Dial::v5("c").persistent());
    let topics = ["accepted", "refused", "refused twice", "will"];
    topics.iter().for_each(|topic| assert!(!retain(&mut client, topic, b"old").is_error()));
    client.send_publish("accepted", &large, QoS::AtMostOnce, true).unwrap();
    assert_eq!(retain(&mut client, "refused", &large), Reason::QuotaExceeded);
    assert_eq!(client.publish_with("refused twice", &larger, QoS::ExactlyOnce, true), Reason::QuotaExceeded);
    drop(with_will(Version::V5, "w", "will", &"x".repeat(60_000)).connect(cluster.mqtt(1)));
    for node in 0..2 {
        for topic in ["accepted", "will"] {
            wait::until_true("it is cleared", || kept(cluster.mqtt(node), topic).is_none());
        }
        for topic in ["refused", "refused twice"] {
            assert_eq!(
                kept(cluster.mqtt(node), topic).as_deref(),
                Some(&b"old"[..]),
                "{topic} on node {node}"
            );
        }
    }
}
