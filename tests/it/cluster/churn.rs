//! What the nodes know of each other's subscriptions is right, and what a fresh node learns from a snapshot, after clients came,
//! subscribed, moved and went at random, and through faults of etcd.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In, subscribe_bytes};
use crate::random::Random;
use crate::wait;
use berth::mqtt::QoS;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Brokers at first.
const NODES: usize = 3;

/// Names of a level of the topics: they have two.
const LEVELS: [&str; 4] = ["a", "b", "c", "d"];

/// One client: where it is and what it subscribes to.
struct Subscriber {
    client: Client,
    dial: Dial,
    node: usize,
    filters: BTreeSet<String>,
}

/// Where a topic goes: nodes, with whether a persistent session wants it there; and by shared subscription how many members are
/// on each node.
#[derive(Debug, Default, PartialEq)]
struct Targets {
    nodes: BTreeMap<String, bool>,
    groups: BTreeMap<String, BTreeMap<String, u64>>,
}

struct Churn {
    random: Random,
    subscribers: Vec<Subscriber>,
}

fn topics() -> impl Iterator<Item = String> {
    LEVELS.iter().flat_map(|x| LEVELS.iter().map(move |y| format!("{x}/{y}")))
}

/// Whether a filter of [`Churn::filter`] matches a topic; written apart from the broker's.
fn matches(filter: &str, topic: &str) -> bool {
    let (filter, topic) = (filter.split_once('/').unwrap(), topic.split_once('/').unwrap());
    let level = |of: &str, name: &str| of == "+" || of == name;
    level(filter.0, topic.0) && (filter.1 == "#" || level(filter.1, topic.1))
}

impl Churn {
    fn start(cluster: &BerthCluster, clients: usize) -> Churn {
        let subscriber = |n: usize| {
            let dial = Dial::v5(&format!("c{n}"));
            let dial = if n.is_multiple_of(2) { dial.persistent() } else { dial };
            let node = n % NODES;
            Subscriber { client: cluster.connect(node, &dial), dial, node, filters: BTreeSet::new() }
        };
        Churn {
            random: Random::seeded("BERTH_CHURN_SEED"),
            subscribers: (0..clients).map(subscriber).collect(),
        }
    }

    fn filter(&mut self) -> String {
        let mut level = |wild: &[&'static str]| {
            let n = self.random.index(LEVELS.len() + wild.len());
            LEVELS.get(n).copied().unwrap_or_else(|| wild[n - LEVELS.len()])
        };
        let filter = format!("{}/{}", level(&["+"]), level(&["+", "#"]));
        if self.random.chance(25) { format!("$share/g{}/{filter}", self.random.below(2)) } else { filter }
    }

    /// Subscriptions that come and go, of the clients on these nodes.
    fn subscribe(&mut self, steps: usize, nodes: &[usize]) {
        for _ in 0..steps {
            let n = self.random.index(self.subscribers.len());
            let filter = self.filter();
            let goes = self.random.chance(45);
            let s = &mut self.subscribers[n];
            if !nodes.contains(&s.node) {
                continue;
            }
            let first = s.filters.iter().next().cloned();
            match first.filter(|_| goes) {
                Some(filter) => {
                    assert_eq!(s.client.unsubscribe(&[&filter]), [0]);
                    s.filters.remove(&filter);
                }
                None => {
                    assert_eq!(s.client.subscribe(&[(&filter, QoS::AtLeastOnce)]), [1]);
                    s.filters.insert(filter);
                }
            }
        }
    }

    /// Subscribes without waiting, the first one to a filter that nobody had.
    fn begin_subscribing(&mut self, nodes: &[usize], new: &str) -> Vec<usize> {
        let all: Vec<usize> = (0..self.subscribers.len()).collect();
        let mut begun = Vec::new();
        for n in all {
            let filter = if begun.is_empty() { new.to_owned() } else { self.filter() };
            let s = &mut self.subscribers[n];
            if nodes.contains(&s.node) {
                let id = s.client.packet_id();
                s.client.send(&subscribe_bytes(s.dial.version, id, &[(&filter, QoS::AtLeastOnce)])).unwrap();
                s.filters.insert(filter);
                begun.push(n);
            }
        }
        begun
    }

    /// Clients move, with their sessions or without, and others go for good.
    fn wander(&mut self, cluster: &BerthCluster, steps: usize) {
        for _ in 0..steps {
            let n = self.random.index(self.subscribers.len());
            let (node, clean, politely) =
                (self.random.index(NODES), self.random.chance(30), self.random.chance(50));
            let s = &mut self.subscribers[n];
            let dial = if clean { s.dial.clone().clean() } else { s.dial.clone() };
            if politely {
                s.client.send(&[0xE0, 0]).unwrap();
                s.client.expect_closed();
            }
            let new = cluster.connect(node, &dial);
            if !new.present {
                s.filters.clear();
            }
            assert_eq!(new.present, s.dial.expiry_s > 0 && !clean, "{}", s.dial.client_id);
            (s.client, s.node) = (new, node);
        }
    }

    /// Where `topic` goes by what the clients were told.
    fn expected(&self, topic: &str) -> Targets {
        let mut targets = Targets::default();
        for s in &self.subscribers {
            let node = format!("n{}", s.node);
            for filter in &s.filters {
                match filter.strip_prefix("$share/") {
                    None if matches(filter, topic) => {
                        *targets.nodes.entry(node.clone()).or_default() |= s.dial.expiry_s > 0;
                    }
                    Some(shared) if matches(shared.split_once('/').unwrap().1, topic) => {
                        *targets
                            .groups
                            .entry(filter.clone())
                            .or_default()
                            .entry(node.clone())
                            .or_default() += 1;
                    }
                    _ => {}
                }
            }
        }
        targets
    }

    /// Waits until every node knows where every topic goes, and has the sessions that it should have.
    fn agreed(&self, cluster: &BerthCluster, nodes: &[usize], when: &str) {
        let expected: Vec<(String, Targets)> = topics().map(|t| (t.clone(), self.expected(&t))).collect();
        for i in nodes {
            for (topic, expected) in &expected {
                let mut last = Targets::default();
                let agreed = || {
                    last = known(cluster, *i, topic);
                    last == *expected
                };
                let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    wait::until_true("a node knows where a topic goes", agreed);
                }));
                assert!(found.is_ok(), "{when}: node {i} has {topic} go to {last:?}, not to {expected:?}");
            }
            let here = |s: &&Subscriber| s.node == *i;
            let sessions: BTreeSet<_> =
                self.subscribers.iter().filter(here).map(|s| s.dial.client_id.clone()).collect();
            wait::until_true("a node has its sessions and no others", || {
                let page = cluster.get_json(*i, "/api/v1/sessions?limit=1000");
                let ids = page["sessions"].as_array().unwrap().iter();
                ids.map(|s| s["client_id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>() == sessions
            });
        }
    }
}

/// Where a node would send a message to `topic`.
fn known(cluster: &BerthCluster, i: usize, topic: &str) -> Targets {
    let page = cluster.get_json(i, &format!("/api/v1/routes?topic={topic}"));
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let list = |v: &Value| v.as_array().unwrap().clone();
    let mut targets = Targets::default();
    for session in list(&page["sessions"]) {
        *targets.nodes.entry(text(&page["node"])).or_default() |= session["persistent"] == true;
    }
    for node in list(&page["nodes"]) {
        assert_eq!(node["orphaned"], false, "{page}");
        targets.nodes.insert(text(&node["node"]), node["persistent"] == true);
    }
    for group in list(&page["groups"]) {
        let shares = list(&group["nodes"]);
        let shares = shares.iter().map(|s| (text(&s["node"]), s["weight"].as_u64().unwrap())).collect();
        targets.groups.insert(text(&group["name"]), shares);
    }
    targets
}

#[test]
fn all_nodes_and_a_fresh_one_know_the_same_subscriptions_after_churn_and_faults() {
    const STEPS: usize = 60;
    let mut cluster = BerthCluster::with(NODES, 3, &[("etcd.timeout", "500ms")]);
    let mut churn = Churn::start(&cluster, 12);
    let all: Vec<usize> = (0..NODES).collect();
    churn.subscribe(STEPS, &all);
    churn.wander(&cluster, STEPS / 4);
    churn.agreed(&cluster, &all, "before any fault");
    for fault in ["a member is killed", "a member hangs", "there is no quorum"] {
        println!("{fault}");
        let one = churn.random.index(3);
        let two = (one + 1) % 3;
        match fault {
            "a member is killed" => cluster.etcd.kill(one),
            "a member hangs" => cluster.etcd.stop(one),
            _ => {
                cluster.etcd.kill(one);
                cluster.etcd.stop(two);
                wait::until_true("etcd is missed", || {
                    all.iter().all(|i| cluster.status(*i)["cluster"]["etcd"]["reachable"] == false)
                });
            }
        }
        churn.subscribe(STEPS / 2, &all);
        if fault != "there is no quorum" {
            churn.wander(&cluster, STEPS / 10);
            churn.agreed(&cluster, &all, fault);
        }
        match fault {
            "a member is killed" => cluster.etcd.restart(one),
            "a member hangs" => cluster.etcd.cont(one),
            _ => {
                cluster.etcd.cont(two);
                cluster.etcd.restart(one);
            }
        }
        (0..3).for_each(|m| cluster.etcd.wait_healthy(m));
        churn.agreed(&cluster, &all, &format!("after {fault}"));
    }
    // A node sleeps, and when it wakes the events that it has missed are gone.
    let behind = churn.random.index(NODES);
    let others: Vec<usize> = all.iter().copied().filter(|i| *i != behind).collect();
    cluster.stop(behind);
    cluster.cut_from_etcd(behind, true);
    let new = "while/a/node/slept";
    let begun = churn.begin_subscribing(&others, new);
    assert!(!begun.is_empty(), "nobody is on {others:?}");
    wait::until_true("a route is written", || {
        cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/routes/", "--print-value-only"]).contains(new)
    });
    let status: Value = serde_json::from_str(&cluster.etcd.ctl(&["get", "x", "-w", "json"])).unwrap();
    cluster.etcd.ctl(&["compact", &status["header"]["revision"].to_string()]);
    cluster.cut_from_etcd(behind, false);
    cluster.cont(behind);
    for n in begun {
        let codes = churn.subscribers[n].client.wait_for("SUBACK", |p| match p {
            In::SubAck(_, codes) => Some(codes.clone()),
            _ => None,
        });
        assert_eq!(codes, [1]);
    }
    // By a snapshot, or by what the others tell.
    churn.agreed(&cluster, &all, "after a compaction");
    churn.subscribe(STEPS / 2, &all);
    let fresh = cluster.join();
    churn.agreed(&cluster, &[0, 1, 2, fresh], "with a fresh node");
}
