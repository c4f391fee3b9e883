//! The lease of a live broker is revoked: it registers again as the same process, and its clients lose nothing.

use super::nodes::BerthCluster;
use super::rolling::{Load, goes_on, nobody_was_disconnected};
use super::will_watch::WillWatch;
use crate::client::Dial;
use crate::history;
use crate::wait;
use berth::mqtt::QoS;
use serde_json::Value;

/// The create-revision and the lease of a node's member key, if it is there.
fn registration(cluster: &BerthCluster, i: usize) -> Option<(u64, u64)> {
    let key = format!("/berth/berth/v1/members/n{i}");
    let found: Value = serde_json::from_str(&cluster.etcd.ctl(&["get", &key, "-w", "json"])).unwrap();
    let kv = found["kvs"].get(0)?;
    Some((kv["create_revision"].as_u64()?, kv["lease"].as_u64()?))
}

#[test]
fn a_broker_whose_lease_is_revoked_registers_again_and_loses_nothing() {
    let mut cluster = BerthCluster::start(3);
    let custody =
        |c: &BerthCluster| c.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/custody/", "--keys-only"]);
    let before = custody(&cluster);
    let processes: Vec<u32> = (0..3).map(|i| cluster.broker(i).pid()).collect();
    // A session without a connection, and one that only listens, on each node.
    let dial = |kind: &str, i: usize| Dial::v5(&format!("{kind}{i}")).persistent();
    let mut listening = Vec::new();
    for i in 0..3 {
        for kind in ["dormant", "listening"] {
            let mut client = cluster.connect(i, &dial(kind, i));
            assert_eq!(client.subscribe(&[("news/#", QoS::AtLeastOnce)]), [1]);
            listening.push(client);
        }
        listening.swap_remove(i).disconnect();
    }
    let load = Load::staying(&cluster.addresses());
    let history = load.stage.history.clone();
    let watch = WillWatch::start(cluster.mqtt(0), &history);
    let mut events = load.run(|stage| {
        goes_on(stage);
        for i in 0..3 {
            let (created, lease) = registration(&cluster, i).expect("it is registered");
            cluster.etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
            // What needs etcd, at the node itself and at another one, is done as soon as it is registered again.
            for at in [i, (i + 1) % 3] {
                let mut new = cluster.connect(at, &Dial::v5(&format!("new {i} {at}")).persistent());
                assert_eq!(new.subscribe(&[(&*format!("new/{i}/{at}"), QoS::AtLeastOnce)]), [1]);
                let mut publisher = cluster.connect((at + 1) % 3, &Dial::v5("publisher"));
                publisher.publish(&format!("new/{i}/{at}"), "x", QoS::AtLeastOnce);
                assert_eq!(new.receive().text(), "x");
                publisher.publish("news/x", &format!("{i} {at}"), QoS::AtLeastOnce);
            }
            wait::until_true("it is registered again", || {
                registration(&cluster, i).is_some_and(|(c, l)| c > created && l != lease)
            });
            wait::until_true("it is ready", || cluster.ready(i));
            goes_on(stage);
        }
    });
    watch.finish(0, &cluster.addresses());
    events.extend(history.take());
    nobody_was_disconnected(&events);
    let report = history::must_hold("leases revoked", &events);
    assert!(report.acked > 0 && report.received > report.acked, "too little load: {report:?}");
    assert_eq!(custody(&cluster), before, "an incarnation changed");
    assert_eq!((0..3).map(|i| cluster.broker(i).pid()).collect::<Vec<_>>(), processes);
    wait::until_true("one leads", || cluster.status(0)["cluster"]["leader"].is_string());
    let news: Vec<String> = (0..3).flat_map(|i| [i, (i + 1) % 3].map(|at| format!("{i} {at}"))).collect();
    for (i, client) in listening.iter_mut().enumerate() {
        // On the connection that it had all the time.
        assert_eq!(client.receive_texts(news.len()), news, "listening, node {i}");
        client.ping();
        let mut dormant = cluster.connect((i + 1) % 3, &dial("dormant", i));
        assert!(dormant.present);
        assert_eq!(dormant.receive_texts(news.len()), news, "dormant, node {i}");
    }
}
