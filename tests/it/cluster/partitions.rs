//! Brokers in network namespaces whose packets are dropped: nobody is told that a connection is gone.

use super::etcd::Etcd;
use super::netns::{Network, available};
use super::nodes::{Room, link};
use super::proxy::Proxy;
use super::rolling::{Load, goes_on, nobody_was_disconnected};
use super::will_watch::WillWatch;
use crate::broker::{Broker, Setup, free_address};
use crate::client::{Client, Dial, In};
use crate::{history, wait};
use berth::mqtt::{QoS, Reason};
use std::net::SocketAddr;
use tokio::runtime::Runtime;

/// Brokers on a network of their own, with one etcd member outside of it.
struct Parted {
    brokers: Vec<Broker>,
    network: Network,
    gateway: Proxy,
    etcd: Etcd,
    _runtime: Runtime,
    _room: Room,
}

impl Parted {
    fn start(n: usize) -> Parted {
        let room = Room::take();
        let etcd = Etcd::start(1);
        let network = Network::new(n);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let target = etcd.endpoint(0).trim_start_matches("http://").parse().unwrap();
        let gateway = runtime.block_on(Proxy::listen(network.address(usize::MAX), target));
        let broker = |i: usize| {
            let mut peers = free_address();
            peers.set_ip(network.address(i));
            Setup::new()
                .within(network.namespace(i), network.address(i))
                .set("node.id", &format!("n{i}"))
                .set("auth.allow_anonymous", "true")
                .set("cluster.enabled", "true")
                .set("cluster.peer_address", &peers.to_string())
                .set("cluster.peer_timeout", "1s")
                .set("cluster.lease", "6s")
                .set("cluster.stale_after", "4s")
                .set("cluster.suback_wait", "5s")
                .set("cluster.takeover_timeout", "3s")
                .set("etcd.endpoints", &format!("http://{}", gateway.address()))
                .spawn()
        };
        let mut brokers: Vec<Broker> = (0..n).map(broker).collect();
        brokers.iter_mut().for_each(Broker::wait_ready);
        let cluster = Parted { brokers, network, gateway, etcd, _runtime: runtime, _room: room };
        for (from, to) in (0..n).flat_map(|from| (0..n).map(move |to| (from, to))).filter(|(a, b)| a != b) {
            wait::until_true("all links are up", || cluster.linked(from, to));
        }
        cluster
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.brokers.iter().map(|b| b.mqtt).collect()
    }

    /// Whether node `from` says that its link to node `to` is up.
    fn linked(&self, from: usize, to: usize) -> bool {
        link(&self.brokers[from], to) == "up"
    }

    fn connect(&self, i: usize, dial: &Dial) -> Client {
        dial.connect(self.brokers[i].mqtt)
    }

    fn members(&self) -> usize {
        let keys = self.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/members/", "--keys-only"]);
        keys.lines().filter(|l| !l.is_empty()).count()
    }

    fn isolate_from_etcd(&self, i: usize) {
        self.network.cut_port(i, self.gateway.address().port());
    }

    fn ready(&self, i: usize) -> bool {
        self.brokers[i].try_get("/ready").is_some_and(|(code, _)| code == 200)
    }
}

fn acked(client: &mut Client, id: u16) {
    client.wait_for("PUBACK", |i| match i {
        In::PubAck(acked, Reason::Success | Reason::NoMatchingSubscribers) if *acked == id => Some(()),
        _ => None,
    });
}

#[test]
fn publishes_wait_out_a_partition_between_brokers() {
    if !available() {
        return;
    }
    let cluster = Parted::start(3);
    let mut sub = cluster.connect(1, &Dial::v5("sub").persistent());
    sub.subscribe(&[("t", QoS::AtLeastOnce)]);
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    publisher.publish("t", "before", QoS::AtLeastOnce);
    for parted in ["both ways", "one way"] {
        match parted {
            "both ways" => cluster.network.partition(0, 1),
            _ => cluster.network.cut_one_way(0, 1),
        }
        let ids: Vec<u16> = (0..10)
            .map(|n| {
                publisher
                    .send_publish("t", format!("{parted} {n}").as_bytes(), QoS::AtLeastOnce, false)
                    .unwrap()
            })
            .collect();
        // What need not cross the gap goes on meanwhile, on both of its sides.
        let mut aside = cluster.connect(2, &Dial::v5("aside"));
        aside.publish("t", &format!("{parted} aside"), QoS::AtLeastOnce);
        wait::until_true("the link is down", || !cluster.linked(0, 1));
        publisher.expect_silence();
        cluster.network.heal();
        ids.iter().for_each(|id| acked(&mut publisher, *id));
    }
    let mut texts = sub.receive_texts(1 + 2 * 11);
    assert_eq!(texts.remove(0), "before");
    for parted in ["both ways", "one way"] {
        let of_it: Vec<_> = texts.iter().filter(|t| t.starts_with(parted) && !t.ends_with("aside")).collect();
        assert_eq!(
            of_it,
            (0..10).map(|n| format!("{parted} {n}")).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
        assert_eq!(texts.iter().filter(|t| **t == format!("{parted} aside")).count(), 1);
    }
    sub.ping();
}

#[test]
fn a_node_that_reaches_only_its_peers_goes_on_and_comes_back() {
    if !available() {
        return;
    }
    let cluster = Parted::start(3);
    let mut sub = cluster.connect(1, &Dial::v5("sub").persistent());
    sub.subscribe(&[("t", QoS::AtLeastOnce)]);
    let mut publisher = cluster.connect(0, &Dial::v5("pub").persistent());
    cluster.isolate_from_etcd(0);
    wait::until_true("etcd drops the node", || cluster.members() == 2);
    for n in 0..10 {
        publisher.publish("t", &n.to_string(), QoS::AtLeastOnce);
    }
    assert_eq!(sub.receive_texts(10), (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(cluster.ready(0), "it is fresh by its peers");
    cluster.network.heal();
    wait::until_true("the node is a member again", || cluster.members() == 3);
    publisher.publish("t", "back", QoS::AtLeastOnce);
    assert_eq!(sub.receive_texts(1), ["back"]);
}

#[test]
fn a_node_cut_off_from_everybody_stops_serving_and_comes_back() {
    if !available() {
        return;
    }
    let cluster = Parted::start(3);
    let mut client = cluster.connect(0, &Dial::v5("c").persistent());
    client.subscribe(&[("t", QoS::AtLeastOnce)]);
    cluster.isolate_from_etcd(0);
    cluster.network.partition(0, 1);
    cluster.network.partition(0, 2);
    wait::until_true("it says that it is not ready", || !cluster.ready(0));
    client.expect_closed();
    // What is acknowledged elsewhere meanwhile is there afterwards.
    let mut publisher = cluster.connect(1, &Dial::v5("pub"));
    let id = publisher.send_publish("t", b"meanwhile", QoS::AtLeastOnce, false).unwrap();
    wait::until_true("the link is down", || !cluster.linked(1, 0));
    publisher.expect_silence();
    cluster.network.heal();
    wait::until_true("it is ready again", || cluster.ready(0));
    acked(&mut publisher, id);
    let mut client = cluster.connect(0, &Dial::v5("c").persistent());
    assert!(client.present);
    assert_eq!(client.receive_texts(1), ["meanwhile"]);
}

#[test]
fn nothing_is_lost_while_two_nodes_are_parted_under_load() {
    if !available() {
        return;
    }
    let cluster = Parted::start(3);
    let moving = Dial::v5("moves").persistent();
    let mut old = cluster.connect(1, &moving);
    let load = Load::staying(&cluster.addresses());
    let history = load.stage.history.clone();
    let watch = WillWatch::start(cluster.brokers[2].mqtt, &history);
    let mut events = load.run(|stage| {
        goes_on(stage);
        cluster.network.partition(0, 1);
        wait::until_true("the links are down", || !cluster.linked(0, 1) && !cluster.linked(1, 0));
        // The third node has both.
        goes_on(stage);
        let (_, answer) = moving.try_connect(cluster.brokers[0].mqtt).unwrap();
        assert!(
            matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }),
            "a session behind the gap: {answer:?}"
        );
        old.ping();
        goes_on(stage);
        cluster.network.heal();
        let new = wait::until("the session can move", || match moving.try_connect(cluster.brokers[0].mqtt) {
            Ok((client, In::ConnAck { reason: Reason::Success, .. })) => Some(client),
            _ => None,
        });
        assert!(new.present);
        assert_eq!(old.expect_closed(), Some(Reason::SessionTakenOver));
        goes_on(stage);
    });
    watch.finish(0, &cluster.addresses());
    events.extend(history.take());
    nobody_was_disconnected(&events);
    let report = history::must_hold("parted under load", &events);
    assert!(report.acked > 1000 && report.received > 2 * report.acked, "too little load: {report:?}");
}

#[test]
fn a_node_that_loses_all_peers_but_not_etcd_serves_its_own_clients() {
    if !available() {
        return;
    }
    let cluster = Parted::start(3);
    let subscriber = |i: usize, id: &str| {
        let mut client = cluster.connect(i, &Dial::v5(id).persistent());
        assert_eq!(client.subscribe(&[(id, QoS::AtLeastOnce)]), [1]);
        client
    };
    let (mut near, mut far) = (subscriber(0, "near"), subscriber(1, "far"));
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    cluster.network.partition(0, 1);
    cluster.network.partition(0, 2);
    wait::until_true("the links are down", || !cluster.linked(0, 1) && !cluster.linked(0, 2));
    publisher.publish("near", "x", QoS::AtLeastOnce);
    assert_eq!(near.receive_texts(1), ["x"]);
    let id = publisher.send_publish("far", b"y", QoS::AtLeastOnce, false).unwrap();
    // It may make sessions, and knows by etcd what the others do.
    assert!(!cluster.connect(0, &Dial::v5("new").persistent()).present);
    let mut others = cluster.connect(2, &Dial::v5("others"));
    others.publish("far", "z", QoS::AtLeastOnce);
    assert_eq!(far.receive_texts(1), ["z"]);
    publisher.expect_silence();
    assert!(cluster.ready(0), "etcd tells it what it must know");
    assert_eq!(cluster.members(), 3);
    cluster.network.heal();
    acked(&mut publisher, id);
    assert_eq!(far.receive_texts(1), ["y"]);
    near.expect_silence();
}
