//! Three nodes: a deny holds for messages that come from other nodes, a shared subscription finds the member that may, on whichever
//! node it is, and rules that change end no connection.

use super::{PASSWORD, Rules, accounts, is_open, topics_until};
use crate::client::{Client, Dial, In};
use crate::cluster::nodes::BerthCluster;
use crate::operate::ctl_json;
use crate::wait;
use berth::mqtt::QoS::{self, AtLeastOnce, AtMostOnce, ExactlyOnce};
use berth::mqtt::Reason;

const SECRET: [&str; 3] = [
    "allow: all, topics: '#', users: [root]",
    "deny: subscribe, topics: 'secret/#'",
    "allow: all, topics: '#'",
];

const QOS: [QoS; 3] = [AtMostOnce, AtLeastOnce, ExactlyOnce];

fn subscribed(cluster: &BerthCluster, node: usize, dial: &Dial, filter: &str) -> Client {
    let mut client = cluster.connect(node, dial);
    assert_eq!(client.subscribe(&[(filter, ExactlyOnce)]), [2]);
    client
}

fn denied(cluster: &BerthCluster) -> f64 {
    (0..3).map(|i| cluster.metric(i, "berth_messages_dropped_total{reason=\"not_allowed\"}")).sum()
}

#[test]
fn what_is_denied_is_denied_on_every_node() {
    let rules = Rules::new(&SECRET);
    let accounts = accounts(rules.dir.path());
    let mut options: Vec<(&str, &str)> = accounts.iter().map(|(key, value)| (*key, &**value)).collect();
    options.push(("acl.file", rules.path.to_str().unwrap()));
    let mut cluster = BerthCluster::with(3, 1, &options);
    let mut root = cluster.connect(0, &Dial::v5("root").user("root", PASSWORD));
    root.publish_with("secret/kept", b"", AtLeastOnce, true);

    // Messages of other nodes, live and queued.
    let dials = [0, 1, 2].map(|i| Dial::v5(&format!("plain {i}")).persistent());
    let mut plain: Vec<Client> = (0..3).map(|i| subscribed(&cluster, i, &dials[i], "#")).collect();
    for qos in QOS {
        root.publish("secret/x", "x", qos);
        root.publish("open/end", "x", qos);
        plain.iter_mut().for_each(|c| assert_eq!(topics_until(c, "open/end"), [""; 0], "{qos:?}"));
    }
    plain.remove(2).disconnect();
    root.publish("secret/x", "x", AtLeastOnce);
    root.publish("open/end", "x", AtLeastOnce);
    // It comes back to another node, and its queue with it.
    let mut moved = cluster.connect(1, &dials[2]);
    assert!(moved.present);
    assert_eq!(topics_until(&mut moved, "open/end"), [""; 0]);
    plain.iter_mut().for_each(|c| assert_eq!(topics_until(c, "open/end"), [""; 0]));

    // A shared subscription: the only member that may is on the last node.
    let group = "$share/g/secret/+";
    let wide = "$share/g/#";
    assert_eq!(plain[0].subscribe(&[(group, AtLeastOnce)]), [0x87]);
    let mut member = subscribed(&cluster, 2, &Dial::v5("member").user("root", PASSWORD).persistent(), wide);
    let mut others: Vec<Client> =
        (0..2).map(|i| subscribed(&cluster, i, &Dial::v5(&format!("other {i}")), wide)).collect();
    for n in 0..12 {
        root.publish("secret/shared", &n.to_string(), QOS[n % 3]);
    }
    // Different QoS may come by different ways.
    let mut got: Vec<usize> = member.receive_texts(12).iter().map(|t| t.parse().unwrap()).collect();
    got.sort_unstable();
    assert_eq!(got, (0..12).collect::<Vec<_>>());

    // Nobody may: the publish is acknowledged, the message dropped and counted, and nobody hands it on for ever.
    member.unsubscribe(&[wide]);
    let before = denied(&cluster);
    for qos in QOS {
        root.publish("secret/nobody", "x", qos);
    }
    wait::until_true("it is counted", || denied(&cluster) >= before + 3.0 + 9.0);
    root.publish("open/last", "x", AtLeastOnce);
    for client in &mut others {
        client.ping();
    }
    let shared: usize =
        others.iter_mut().map(|c| taken(c).into_iter().inspect(|t| assert_eq!(t, "open/last")).count()).sum();
    assert_eq!(shared, 1);
    let declined = || (0..3).map(|i| cluster.metric(i, "berth_shared_declined_total")).sum::<f64>();
    let held = || (0..3).map(|i| cluster.metric(i, "berth_publishes_held")).sum::<f64>();
    wait::until_true("nothing is held", || held() == 0.0);
    let so_far = declined();
    others[0].ping();
    assert_eq!(declined(), so_far);

    // A client is judged by what its own node knows of it, whichever is asked.
    let args = ["acl", "check", "member", "receive", "secret/x"];
    for node in 0..3 {
        let judged = ctl_json(cluster.http(node), &args);
        assert_eq!(
            (&judged["allowed"], &judged["user"], &judged["node"]),
            (&true.into(), &"root".into(), &"n2".into())
        );
    }

    // Other rules hold on every node within a second or so, and nobody is disconnected.
    let logs = |cluster: &mut BerthCluster| -> usize {
        (0..3).map(|i| cluster.broker(i).log().matches("access rules changed").count()).sum()
    };
    rules.write(&["deny: publish, topics: 'open/#', users: [root]", "allow: all, topics: '#'"]);
    wait::until_true("all nodes have the rules", || logs(&mut cluster) == 3);
    assert_eq!(root.publish_with("open/x", b"", AtLeastOnce, false), Reason::NotAuthorized);
    root.publish("secret/now", "", AtLeastOnce);
    plain.iter_mut().chain([&mut moved]).for_each(|c| {
        while c.receive().topic != "secret/now" {}
        assert!(is_open(c));
    });
}

/// The topics of what has come.
fn taken(client: &mut Client) -> Vec<String> {
    client.patience(std::time::Duration::from_secs(2));
    let mut topics = Vec::new();
    while let Ok(packet) = client.try_recv() {
        if let In::Publish(p) = packet {
            topics.push(p.topic);
        }
    }
    topics
}
