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

#[test]
fn a_broker_that_is_stopped_while_etcd_is_away_stops_no_other() {
    let options: Vec<_> = OPTIONS.iter().copied().chain([("publish.timeout", "2m")]).collect();
    let mut cluster = BerthCluster::with(NODES, 1, &options);
    let kept = Dial::v5("kept").persistent();
    assert_eq!(cluster.connect(2, &kept).subscribe(&[("kept", QoS::AtLeastOnce)]), [1]);
    let mut sub = cluster.connect(0, &Dial::v5("near").persistent());
    assert_eq!(sub.subscribe(&[("near", QoS::AtLeastOnce)]), [1]);
    let mut publisher = cluster.connect(1, &Dial::v5("publisher"));
    let mut holds = cluster.connect(1, &Dial::v5("holds"));
    cluster.etcd.kill(0);
    for i in 0..NODES {
        cluster.wait_status(i, "its lease has run out", |s| s["cluster"]["lease_for_ms"] == 0);
    }
    cluster.term(2);
    // Acknowledgements keep the order of the publishes: one that is held holds those behind it.
    let held = holds.send_publish("kept", b"held", QoS::AtLeastOnce, false).unwrap();
    let end = clock::now().plus_ms(10_000);
    while clock::now() < end {
        publisher.publish("near", "near", QoS::AtLeastOnce);
        assert_eq!(sub.receive().text(), "near");
        assert!(cluster.ready(0) && cluster.ready(1));
    }
    holds.expect_silence();
    cluster.etcd.restart(0);
    cluster.restart(2);
    let mut kept = cluster.connect(2, &kept);
    assert!(kept.present);
    assert_eq!(kept.receive().text(), "held");
    holds.wait_for("PUBACK", |i| match i {
        In::PubAck(id, reason) if *id == held => {
            assert!(!reason.is_error(), "{reason:?}");
            Some(())
        }
        _ => None,
    });
}
