//! Nodes that die, hang, lose their disk or their connections, and what their clients see of it.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason};
use std::io::ErrorKind;

/// Begins (`true`) and ends.
type Fault = fn(&BerthCluster, bool);

/// Short times, so that what has to run out does so soon.
const QUICK: &[(&str, &str)] = &[
    ("cluster.lease", "6s"),
    ("cluster.stale_after", "4s"),
    ("cluster.suback_wait", "5s"),
    ("cluster.takeover_timeout", "3s"),
    ("cluster.peer_timeout", "1s"),
];

fn subscriber(cluster: &BerthCluster, i: usize, id: &str) -> Client {
    let mut client = cluster.connect(i, &Dial::v5(id).persistent());
    assert_eq!(client.subscribe(&[("t/#", QoS::ExactlyOnce)]), [2]);
    client
}

/// Publishes without waiting; the packet's identifier.
fn send(client: &mut Client, text: &str) -> u16 {
    client.send_publish("t/x", text.as_bytes(), QoS::AtLeastOnce, false).unwrap()
}

fn acked(client: &mut Client, id: u16) {
    client.wait_for("PUBACK", |i| match i {
        In::PubAck(acked, reason) if *acked == id => {
            assert!(!reason.is_error(), "{reason:?}");
            Some(())
        }
        _ => None,
    });
}

/// A client with a persistent session that goes to the next node when its connection is closed.
struct Follower {
    client: Client,
    id: &'static str,
    home: usize,
}

impl Follower {
    /// The next `n` different messages at QoS 1.
    fn texts(&mut self, cluster: &BerthCluster, n: usize) -> Vec<String> {
        let mut got: Vec<String> = Vec::new();
        while got.len() < n {
            match self.client.try_recv() {
                Ok(In::Publish(p)) => {
                    assert_eq!(p.qos, QoS::AtLeastOnce);
                    // What is not acknowledged comes again, if the connection is gone.
                    let _ = self.client.ack(AckKind::PubAck, p.packet_id);
                    if !got.iter().any(|t| t == p.text()) {
                        got.push(p.text().to_owned());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("nothing comes after {got:?}"),
                Ok(In::Disconnect(_) | In::Closed) | Err(_) => self.go_on(cluster),
                Ok(other) => panic!("{other:?}"),
            }
        }
        got
    }

    fn go_on(&mut self, cluster: &BerthCluster) {
        self.home = (self.home + 1) % cluster.len();
        self.client = cluster.connect(self.home, &Dial::v5(self.id).persistent());
        assert!(self.client.present, "the session is gone on node {}", self.home);
    }
}

#[test]
fn the_sessions_of_a_killed_node_are_found_on_any_node_once_it_is_back() {
    let mut cluster = BerthCluster::with(3, 1, QUICK);
    let subs = ["s0", "s1"];
    subs.iter().for_each(|id| subscriber(&cluster, 1, id).disconnect());
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    publisher.publish("t/x", "before", QoS::AtLeastOnce);
    cluster.kill(1);
    let id = send(&mut publisher, "while it is dead");
    wait::until_true("its lease has run out", || cluster.members() == ["n0", "n2"]);
    publisher.expect_silence();
    cluster.restart(1);
    acked(&mut publisher, id);
    publisher.publish("t/x", "after", QoS::AtLeastOnce);
    for (id, node) in subs.iter().zip([2, 0]) {
        let mut client = cluster.connect(node, &Dial::v5(id).persistent());
        assert!(client.present, "{id} on node {node}");
        assert_eq!(client.receive_texts(3), ["before", "while it is dead", "after"]);
    }
}

#[test]
fn without_its_disk_a_node_does_not_pretend_that_there_was_no_session() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    subscriber(&cluster, 1, "s").disconnect();
    cluster.wipe(1);
    for node in 0..2 {
        let (_, answer) = Dial::v5("s").persistent().try_connect(cluster.mqtt(node)).unwrap();
        let In::ConnAck { present: false, reason: Reason::ServerUnavailable, .. } = answer else {
            panic!("node {node}: {answer:?}")
        };
    }
    // Whoever wants a new session has nothing to lose.
    let client = cluster.connect(0, &Dial::v5("s").clean());
    assert!(!client.present);
}

#[test]
fn a_node_that_hangs_beyond_its_lease_comes_back_as_the_same_process() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    let mut sub = Follower { client: subscriber(&cluster, 1, "s"), id: "s", home: 1 };
    let custody =
        |c: &BerthCluster| c.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/custody/", "--keys-only"]);
    let (before, process) = (custody(&cluster), cluster.broker(1).pid());
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    cluster.stop(1);
    let id = send(&mut publisher, "while it hangs");
    wait::until_true("its lease has run out", || cluster.members() == ["n0"]);
    publisher.expect_silence();
    cluster.cont(1);
    acked(&mut publisher, id);
    wait::until_true("it is a member again", || cluster.members().len() == 2 && cluster.ready(1));
    publisher.publish("t/x", "after", QoS::AtLeastOnce);
    // It may have closed its clients meanwhile; their sessions are there.
    assert_eq!(sub.texts(&cluster, 2), ["while it hangs", "after"]);
    assert_eq!(custody(&cluster), before, "an incarnation changed");
    assert_eq!(cluster.broker(1).pid(), process);
}

#[test]
fn publishes_wait_for_links_that_are_cut_or_stalled() {
    let cluster = BerthCluster::with(2, 1, QUICK);
    let mut sub = subscriber(&cluster, 1, "s");
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    let faults: [(&str, Fault); 2] =
        [("cut", |c, on| c.cut_links_to(1, on)), ("stalled", |c, on| c.stall_links_to(1, on))];
    for (what, fault) in faults {
        fault(&cluster, true);
        let texts: Vec<String> = (0..5).map(|n| format!("{what} {n}")).collect();
        let ids: Vec<u16> = texts.iter().map(|t| send(&mut publisher, t)).collect();
        wait::until_true("the link is down", || !cluster.linked(0, 1));
        publisher.expect_silence();
        fault(&cluster, false);
        ids.iter().for_each(|id| acked(&mut publisher, *id));
        assert_eq!(sub.receive_texts(texts.len()), texts);
    }
    sub.ping();
}

#[test]
fn a_node_that_loses_etcd_alone_stays_useful() {
    // That etcd hangs is noticed within this time; it must be well below the lease for the node to go on by its peers.
    let options = [QUICK, &[("etcd.timeout", "500ms")]].concat();
    let cluster = BerthCluster::with(2, 1, &options);
    let mut sub = subscriber(&cluster, 1, "s");
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    let faults: [(&str, Fault); 2] =
        [("cut", |c, on| c.cut_from_etcd(0, on)), ("stalled", |c, on| c.stall_etcd(0, on))];
    for (what, fault) in faults {
        fault(&cluster, true);
        wait::until_true("etcd drops the node", || cluster.members() == ["n1"]);
        for n in 0..5 {
            publisher.publish("t/x", &format!("{what} {n}"), QoS::AtLeastOnce);
        }
        assert_eq!(sub.receive_texts(5), (0..5).map(|n| format!("{what} {n}")).collect::<Vec<_>>());
        assert!(cluster.ready(0), "it is fresh by its peer");
        fault(&cluster, false);
        wait::until_true("the node is a member again", || cluster.members().len() == cluster.len());
    }
    let status = cluster.wait_status(0, "it says so", |s| s["node"]["ready"] == true);
    assert_eq!(status["node"]["id"], "n0");
}

#[test]
fn a_rolling_restart_loses_nothing() {
    let mut cluster = BerthCluster::with(3, 1, QUICK);
    let mut sub = Follower { client: subscriber(&cluster, 0, "s"), id: "s", home: 0 };
    let mut sent = Vec::new();
    for i in 0..3 {
        let mut publisher = cluster.connect((i + 1) % 3, &Dial::v5("pub"));
        let mut publish = |text: String| {
            publisher.publish("t/x", &text, QoS::AtLeastOnce);
            sent.push(text);
        };
        publish(format!("before {i}"));
        cluster.term(i);
        publish(format!("while {i} is away"));
        cluster.restart(i);
        publish(format!("after {i}"));
    }
    assert_eq!(sub.texts(&cluster, sent.len()), sent);
}

#[test]
fn suback_comes_when_the_key_of_a_dead_node_goes_and_only_the_first_waits() {
    let options = [("cluster.lease", "4s"), ("cluster.stale_after", "2s"), ("cluster.suback_wait", "60s")];
    let mut cluster = BerthCluster::with(3, 1, &options);
    let mut client = cluster.connect(0, &Dial::v5("subscribes").persistent());
    cluster.kill(1);
    let killed = clock::now();
    for n in 0..5 {
        assert_eq!(client.subscribe(&[(&format!("new/{n}"), QoS::AtLeastOnce)]), [1]);
        assert_eq!(cluster.members(), ["n0", "n2"], "SUBACK {n} came while the dead node may be alive");
    }
    let ms = clock::now().since_ms(killed);
    assert!(ms < 12_000, "{ms} ms");
}
