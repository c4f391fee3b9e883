//! etcd away for longer than any lease (G9): who is connected goes on, only new claims are refused.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason};

const ALL: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// Publishers and subscribers of every QoS on every node.
struct Traffic {
    publishers: Vec<Client>,
    subscribers: Vec<Client>,
    round: u64,
}

impl Traffic {
    fn start(cluster: &BerthCluster) -> Traffic {
        let nodes = 0..cluster.len();
        let publisher = |i| cluster.connect(i, &Dial::v5(&format!("pub{i}")).persistent());
        let publishers = nodes.clone().map(publisher).collect();
        let mut subscribers = Vec::new();
        for (i, qos) in nodes.flat_map(|i| ALL.map(|qos| (i, qos))) {
            let dial = Dial::v5(&format!("sub{i}-{}", qos as u8));
            let dial = if qos == QoS::AtMostOnce { dial } else { dial.persistent() };
            let mut sub = cluster.connect(i, &dial);
            assert_eq!(sub.subscribe(&[("o/#", qos)]), [qos as u8]);
            subscribers.push(sub);
        }
        Traffic { publishers, subscribers, round: 0 }
    }

    /// A message of every QoS from every node, acknowledged, and received once by everybody.
    fn go_round(&mut self) {
        self.round += 1;
        let mut sent = Vec::new();
        for (i, publisher) in self.publishers.iter_mut().enumerate() {
            for qos in ALL {
                let text = format!("{i} {} {}", qos as u8, self.round);
                publisher.publish("o/x", &text, qos);
                sent.push(text);
            }
        }
        sent.sort();
        for sub in &mut self.subscribers {
            let mut texts = sub.receive_texts(sent.len());
            texts.sort();
            assert_eq!(texts, sent);
        }
    }
}

#[test]
fn connected_clients_go_on_while_etcd_hangs() {
    let seconds = std::env::var("BERTH_OUTAGE_S").map_or(6, |s| s.parse().unwrap());
    let options = [
        ("cluster.lease", "3s"),
        ("cluster.stale_after", "2s"),
        ("cluster.suback_wait", "3s"),
        ("cluster.takeover_timeout", "2s"),
    ];
    let cluster = BerthCluster::with(3, 1, &options);
    let before = cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/custody/", "--keys-only"]);
    let mut traffic = Traffic::start(&cluster);
    traffic.go_round();
    cluster.etcd.stop(0);
    let end = clock::now().plus_ms(seconds * 1000);
    while clock::now() < end {
        traffic.go_round();
    }
    let (_refused, answer) = Dial::v5("new").persistent().try_connect(cluster.mqtt(1)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    assert_eq!(traffic.subscribers[4].subscribe(&[("meanwhile", QoS::AtLeastOnce)]), [1]);
    traffic.go_round();
    cluster.etcd.cont(0);
    let claimed = || match Dial::v5("new").persistent().try_connect(cluster.mqtt(1)) {
        Ok((client, In::ConnAck { reason: Reason::Success, .. })) => Some(client),
        _ => None,
    };
    wait::until("a new claim works", claimed).ping();
    wait::until_true("all are members again", || cluster.members().len() == 3);
    let after = cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/custody/", "--keys-only"]);
    assert_eq!(after, before, "an incarnation changed");
    let routes = || cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/routes/"]);
    wait::until_true("the new route is in etcd", || routes().contains("meanwhile"));
    traffic.go_round();
}
