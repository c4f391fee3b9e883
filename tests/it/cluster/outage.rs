//! All of etcd away for longer than any lease (G9): who is connected goes on under load, only new claims are refused.

use super::etcd::Etcd;
use super::nodes::BerthCluster;
use super::rolling::{Load, goes_on, nobody_was_disconnected};
use super::will_watch::WillWatch;
use crate::client::{Client, Dial, In};
use crate::{history, wait};
use berth::clock;
use berth::mqtt::{QoS, Reason};

/// How long etcd is away, seconds: longer than the lease. `BERTH_OUTAGE_S` says otherwise.
const OUTAGE_S: u64 = 12;

/// Brokers, and members of etcd.
const NODES: usize = 3;

const OPTIONS: &[(&str, &str)] = &[
    ("cluster.lease", "6s"),
    ("cluster.stale_after", "4s"),
    ("cluster.suback_wait", "5s"),
    ("cluster.takeover_timeout", "2s"),
];

/// Begins (`true`) and ends.
type Fault = fn(&mut Etcd, bool);

/// Publishers and subscribers of QoS 0 on every node.
struct Fleeting {
    publishers: Vec<Client>,
    subscribers: Vec<Client>,
    round: u64,
}

impl Fleeting {
    fn start(cluster: &BerthCluster) -> Fleeting {
        let subscriber = |i| {
            let mut client = cluster.connect(i, &Dial::v5(&format!("fleeting{i}")));
            assert_eq!(client.subscribe(&[("o/#", QoS::AtMostOnce)]), [0]);
            client
        };
        let publisher = |i| cluster.connect(i, &Dial::v5(&format!("publishes{i}")));
        let subscribers = (0..NODES).map(subscriber).collect();
        Fleeting { publishers: (0..NODES).map(publisher).collect(), subscribers, round: 0 }
    }

    /// A message from every node comes to everybody once.
    fn go_round(&mut self) {
        self.round += 1;
        let sent: Vec<String> = (0..NODES).map(|i| format!("{i} {}", self.round)).collect();
        for (publisher, text) in self.publishers.iter_mut().zip(&sent) {
            publisher.publish("o/x", text, QoS::AtMostOnce);
        }
        for sub in &mut self.subscribers {
            let mut texts = sub.receive_texts(NODES);
            texts.sort();
            assert_eq!(texts, sent);
        }
    }
}

/// Somebody new at each node, whose CONNECT is sent.
fn newcomers(cluster: &BerthCluster) -> Vec<Client> {
    let newcomer = |i| {
        let dial = Dial::v5(&format!("new{i}")).persistent();
        let mut client = Client::raw(cluster.mqtt(i), dial.version).unwrap();
        client.send(&dial.bytes()).unwrap();
        client
    };
    (0..NODES).map(newcomer).collect()
}

fn goes_on_without_etcd(what: &str, fault: Fault) {
    let seconds = std::env::var("BERTH_OUTAGE_S").map_or(OUTAGE_S, |s| s.parse().unwrap());
    let mut cluster = BerthCluster::with(NODES, NODES, OPTIONS);
    let custody =
        |c: &BerthCluster| c.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/custody/", "--keys-only"]);
    let before = custody(&cluster);
    let mut fleeting = Fleeting::start(&cluster);
    let mut sub = cluster.connect(1, &Dial::v5("subscribes").persistent());
    let load = Load::staying(&cluster.addresses());
    let history = load.stage.history.clone();
    let watch = WillWatch::start(cluster.mqtt(0), &history);
    let mut events = load.run(|stage| {
        goes_on(stage);
        fleeting.go_round();
        fault(&mut cluster.etcd, true);
        let refused = newcomers(&cluster);
        let end = clock::now().plus_ms(seconds * 1000);
        while clock::now() < end {
            goes_on(stage);
            fleeting.go_round();
        }
        for mut client in refused {
            let answer = client.recv();
            assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
        }
        assert_eq!(sub.subscribe(&[("meanwhile", QoS::AtLeastOnce)]), [1]);
        goes_on(stage);
        fleeting.go_round();
        fault(&mut cluster.etcd, false);
        wait::until_true("new claims work", || {
            let accepted = |answer| matches!(answer, In::ConnAck { reason: Reason::Success, .. });
            newcomers(&cluster).iter_mut().all(|client| accepted(client.recv()))
        });
        cluster.wait_formed();
        assert_eq!(custody(&cluster), before, "an incarnation changed");
        let routes = || cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/routes/"]);
        wait::until_true("the new route is in etcd", || routes().contains("meanwhile"));
        goes_on(stage);
        fleeting.go_round();
    });
    watch.finish(0, &cluster.addresses());
    events.extend(history.take());
    nobody_was_disconnected(&events);
    let report = history::must_hold(&format!("{what} for {seconds} s"), &events);
    assert!(report.acked > 1000 && report.received > 2 * report.acked, "too little load: {report:?}");
    sub.ping();
}

#[test]
fn connected_clients_go_on_while_all_of_etcd_hangs() {
    goes_on_without_etcd("etcd hangs", |etcd, away| {
        (0..NODES).for_each(|i| if away { etcd.stop(i) } else { etcd.cont(i) });
    });
}

#[test]
fn connected_clients_go_on_while_all_of_etcd_is_dead() {
    goes_on_without_etcd("etcd is dead", |etcd, away| {
        (0..NODES).for_each(|i| if away { etcd.kill(i) } else { etcd.restart(i) });
    });
}
