//! Brokers in network namespaces whose packets are dropped: nobody is told that a connection is gone.

use super::etcd::Etcd;
use super::netns::{Network, available};
use super::proxy::Proxy;
use crate::broker::{Broker, Setup, free_address};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::{QoS, Reason};
use tokio::runtime::Runtime;

/// Brokers on a network of their own, with one etcd member outside of it.
struct Parted {
    brokers: Vec<Broker>,
    network: Network,
    gateway: Proxy,
    etcd: Etcd,
    _runtime: Runtime,
}

impl Parted {
    fn start(n: usize) -> Parted {
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
                .set("cluster.lease", "3s")
                .set("cluster.stale_after", "2s")
                .set("etcd.endpoints", &format!("http://{}", gateway.address()))
                .spawn()
        };
        let mut brokers: Vec<Broker> = (0..n).map(broker).collect();
        brokers.iter_mut().for_each(Broker::wait_ready);
        Parted { brokers, network, gateway, etcd, _runtime: runtime }
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
    assert!(cluster.ready(0), "it is current by its peers");
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
    cluster.network.heal();
    wait::until_true("it is ready again", || cluster.ready(0));
    acked(&mut publisher, id);
    let mut client = cluster.connect(0, &Dial::v5("c").persistent());
    assert!(client.present);
    assert_eq!(client.receive_texts(1), ["meanwhile"]);
}
