//! Retained messages of whole brokers (G7): set, cleared and expired from any node, all nodes and etcd have the same; what was
//! spooled on a node that was cut off from etcd does not overwrite what came later.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::{QoS, Reason};
use std::collections::BTreeMap;

/// Topics in all, and how many publishes of a client are under way at a time.
const TOPICS: usize = 10_000;
const WINDOW: usize = 500;

/// What is retained, by topic.
type Kept = BTreeMap<String, String>;

/// What is done to a topic.
#[derive(Clone, Copy, Debug)]
enum Update {
    Set(usize, &'static str),
    Expiring(usize, &'static str),
    Clear(usize),
}

/// Publishes all and waits for the acknowledgements.
fn update(client: &mut Client, updates: &[Update]) {
    for window in updates.chunks(WINDOW) {
        for u in window {
            let sent = match *u {
                Update::Set(n, text) => send(client, n, text),
                Update::Expiring(n, text) => client.send_expiring(&topic(n), text.as_bytes(), 1),
                Update::Clear(n) => send(client, n, ""),
            };
            sent.unwrap();
        }
        for _ in window {
            let answer = client.recv();
            let In::PubAck(_, Reason::Success | Reason::NoMatchingSubscribers) = answer else {
                panic!("{answer:?}")
            };
        }
    }
}

fn send(client: &mut Client, n: usize, text: &str) -> std::io::Result<u16> {
    client.send_publish(&topic(n), text.as_bytes(), QoS::AtLeastOnce, true)
}

fn topic(n: usize) -> String {
    format!("r/{}/{n}", n % 10)
}

/// What a new subscription on a node is sent. What is retained on another topic comes to the next one, and marks the end.
fn looked(cluster: &BerthCluster, i: usize) -> Kept {
    let mut client = cluster.connect(i, &Dial::v5(&format!("looks{i}")));
    client.publish_with("end", b"end", QoS::AtLeastOnce, true);
    assert_eq!(client.subscribe(&[("r/#", QoS::AtLeastOnce)]), [1]);
    assert_eq!(client.subscribe(&[("end", QoS::AtLeastOnce)]), [1]);
    let mut found = Kept::new();
    loop {
        let p = client.receive();
        if p.topic == "end" {
            return found;
        }
        assert!(p.retain, "{p:?}");
        let before = found.insert(p.topic.clone(), p.text().to_owned());
        assert_eq!(before, None, "{} twice", p.topic);
    }
}

/// How many messages a node counts as retained.
fn total(cluster: &BerthCluster, i: usize) -> usize {
    let page = cluster.get_json(i, "/api/v1/retained?filter=r/%23&limit=1");
    page["total"].as_u64().unwrap() as usize
}

/// What etcd has.
fn stored(cluster: &BerthCluster) -> Kept {
    let prefix = "/berth/berth/v1/retained/";
    let text = cluster.etcd.ctl(&["get", "--prefix", &format!("{prefix}r/")]);
    let lines: Vec<&str> = text.lines().collect();
    let entry = |pair: &[&str]| {
        let value: serde_json::Value = serde_json::from_str(pair[1]).unwrap();
        (pair[0].trim_start_matches(prefix).to_owned(), value["text"].as_str().unwrap().to_owned())
    };
    lines.chunks(2).map(entry).collect()
}

#[test]
fn ten_thousand_topics_are_set_cleared_and_expire_from_any_node() {
    let cluster = BerthCluster::start(3);
    let expires = |n: usize| n / 3 % 5 == 1;
    let each = |i: usize| (0..TOPICS).filter(move |n| n % 3 == i);
    // Those that expire first, so that their time passes during the rest.
    let first = |i: usize| {
        let (short, long): (Vec<usize>, Vec<usize>) = each(i).partition(|n| expires(*n));
        let short = short.into_iter().map(|n| Update::Expiring(n, "short"));
        short.chain(long.into_iter().map(|n| Update::Set(n, "first"))).collect::<Vec<_>>()
    };
    let second = |i: usize| {
        let others = each((i + 1) % 3);
        let change = |n: usize| match n / 3 % 5 {
            0 => Some(Update::Clear(n)),
            2 => Some(Update::Set(n, "second")),
            3 => Some(Update::Expiring(n, "shortened")),
            _ => None,
        };
        others.filter_map(change).collect::<Vec<_>>()
    };
    let publish = |updates: [Vec<Update>; 3]| {
        std::thread::scope(|scope| {
            for (i, updates) in updates.into_iter().enumerate() {
                let to = cluster.mqtt(i);
                scope.spawn(move || {
                    update(&mut Dial::v5(&format!("pub{i}")).connect(to), &updates);
                });
            }
        });
    };
    publish([0, 1, 2].map(first));
    publish([0, 1, 2].map(second));
    let kept = |n: usize| match n / 3 % 5 {
        2 => Some((topic(n), "second".to_owned())),
        4 => Some((topic(n), "first".to_owned())),
        _ => None,
    };
    let kept: Kept = (0..TOPICS).filter_map(kept).collect();
    for i in 0..3 {
        wait::until_true("what expires is gone", || total(&cluster, i) == kept.len());
        assert!(looked(&cluster, i) == kept, "a new subscription on node {i}");
    }
    wait::until_true("the leader has removed what has expired", || stored(&cluster).len() == kept.len());
    assert!(stored(&cluster) == kept, "etcd has other messages");
    for i in 0..3 {
        assert!(looked(&cluster, i) == kept, "a new subscription on node {i}, after they were removed");
    }
}

#[test]
fn what_was_parked_on_a_node_without_etcd_does_not_overwrite_newer_messages() {
    let options = [
        ("cluster.lease", "3s"),
        ("cluster.stale_after", "2s"),
        ("cluster.suback_wait", "3s"),
        ("etcd.timeout", "500ms"),
    ];
    let mut cluster = BerthCluster::with(3, 1, &options);
    for killed in [false, true] {
        let say = |client: &mut Client, n: usize, text: &str| {
            let reason = client.publish_with(&topic(n), text.as_bytes(), QoS::AtLeastOnce, true);
            assert!(!reason.is_error(), "{reason:?}");
        };
        let mut near = cluster.connect(1, &Dial::v5("near"));
        for n in 0..4 {
            say(&mut near, n, if n == 3 { "" } else { "first" });
        }
        let first: Kept = (0..3).map(|n| (topic(n), "first".to_owned())).collect();
        wait::until_true("the node has the first", || looked(&cluster, 0) == first);
        let mut cut_off = cluster.connect(0, &Dial::v5("cut off"));
        cluster.cut_from_etcd(0, true);
        wait::until_true("the node misses etcd", || {
            cluster.status(0)["cluster"]["etcd"]["reachable"] == false
        });
        (0..4).for_each(|n| say(&mut cut_off, n, "late"));
        drop(cut_off);
        say(&mut near, 0, "second");
        say(&mut near, 1, "");
        let overtaken = || cluster.metric(0, "berth_cluster_retained_overtaken_total");
        let before = overtaken();
        if killed {
            cluster.kill(0);
            cluster.cut_from_etcd(0, false);
            cluster.restart(0);
        } else {
            cluster.cut_from_etcd(0, false);
        }
        let kept = [(0, "second"), (2, "late"), (3, "late")];
        let kept: Kept = kept.map(|(n, text)| (topic(n), text.to_owned())).into();
        let of = if killed { 0.0 } else { before };
        wait::until_true("those that came too late are dropped", || {
            cluster.metric(0, "berth_cluster_retained_overtaken_total") == of + 2.0
        });
        wait::until_true("etcd has the others", || stored(&cluster) == kept);
        for i in 0..3 {
            assert_eq!(looked(&cluster, i), kept, "node {i}, killed: {killed}");
        }
    }
}

#[test]
fn nodes_that_compete_for_topics_agree_with_etcd() {
    const CONTESTED: usize = 100;
    let cluster = BerthCluster::start(3);
    for round in [["0 a", "1 a", "2 a"], ["0 b", "", "2 b"], ["", "1 c", ""]] {
        std::thread::scope(|scope| {
            for (i, text) in round.into_iter().enumerate() {
                let to = cluster.mqtt(i);
                // Each begins elsewhere.
                let topics = (0..CONTESTED).map(move |n| (n + i * CONTESTED / 3) % CONTESTED);
                let updates: Vec<Update> = topics.map(|n| Update::Set(n, text)).collect();
                scope.spawn(move || update(&mut Dial::v5(&format!("pub{i}")).connect(to), &updates));
            }
        });
        let kept = stored(&cluster);
        for i in 0..3 {
            assert_eq!(looked(&cluster, i), kept, "node {i}");
        }
    }
}
