//! etcd's database is full (NOSPACE): what needs writes goes on as in an outage, the rest goes on as ever.

use super::etcd::{self, Etcd};
use super::nodes::BerthCluster;
use super::store::{Node, runtime};
use crate::client::{Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason};
use berth::ports::{Claim, ClaimOutcome, Coordinator, Expected};
use berth::user::SessionUser;

#[test]
fn clients_go_on_with_a_full_database_and_everything_is_made_up_for_when_there_is_room() {
    let cluster = BerthCluster::on(Etcd::small, 2, &[("cluster.takeover_timeout", "1s")]);
    let known = Dial::v5("known").persistent();
    assert!(!cluster.connect(1, &known).subscribe(&[("t/#", QoS::ExactlyOnce)]).is_empty());
    let mut publisher = cluster.connect(0, &Dial::v5("publisher"));
    cluster.etcd.fill();
    // Nobody has noticed yet: a session that is asked for elsewhere is refused there, and not shut out where it is.
    let (_, answer) = known.try_connect(cluster.mqtt(0)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    assert!(cluster.connect(1, &known).present);
    // It is noticed by what is written: the first one is spooled.
    publisher.publish_with("t/kept", b"kept", QoS::AtLeastOnce, true);
    for node in 0..2 {
        let newcomer = Dial::v5("newcomer").persistent();
        let (_, answer) = newcomer.try_connect(cluster.mqtt(node)).unwrap();
        assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
        cluster.wait_status(node, "the status says so", |s| s["cluster"]["etcd"]["writable"] == false);
        assert!(cluster.ready(node), "it serves whom it knows");
    }
    // A session that would have to move stays where it is, and is not shut out there.
    let (_, answer) = known.try_connect(cluster.mqtt(0)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    // A session that is known needs no write, nor do publishes across nodes.
    let mut subscriber = cluster.connect(1, &known);
    assert!(subscriber.present);
    assert_eq!(subscriber.receive().text(), "kept");
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        publisher.publish("t/1", &format!("{qos:?}"), qos);
        assert_eq!(subscriber.receive().text(), format!("{qos:?}"));
    }
    assert_eq!(subscriber.subscribe(&[("new", QoS::AtLeastOnce)]), [1], "SUBACK does not wait");

    cluster.etcd.make_room();
    for node in 0..2 {
        cluster.wait_status(node, "writes go on", |s| s["cluster"]["etcd"]["writable"] == true);
    }
    wait::until_true("the new route is known", || {
        let answer = publisher.publish_with("new", b"routed", QoS::AtLeastOnce, false);
        answer == Reason::Success
    });
    while subscriber.receive().text() != "routed" {}
    wait::until_true("new sessions are made", || {
        let (_, answer) = Dial::v5("newcomer").persistent().try_connect(cluster.mqtt(1)).unwrap();
        matches!(answer, In::ConnAck { reason: Reason::Success, .. })
    });
    wait::until_true("the spooled message is kept by the cluster", || {
        cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/retained/"]).contains("t/kept")
    });
}

#[test]
fn a_node_that_writes_nothing_learns_that_the_database_is_full() {
    let options = [("cluster.lease", "2s"), ("cluster.stale_after", "1s")];
    let cluster = BerthCluster::on(Etcd::small, 2, &options);
    cluster.etcd.fill();
    for node in 0..2 {
        cluster.wait_status(node, "the status says so", |s| s["cluster"]["etcd"]["writable"] == false);
    }
    cluster.etcd.make_room();
    for node in 0..2 {
        cluster.wait_status(node, "writes go on", |s| s["cluster"]["etcd"]["writable"] == true);
    }
}

#[test]
fn a_node_stops_at_once_though_no_session_can_move() {
    let mut cluster = BerthCluster::on(Etcd::small, 2, &[("cluster.takeover_timeout", "1s")]);
    let mut clients: Vec<_> =
        (0..5).map(|n| cluster.connect(1, &Dial::v5(&format!("c{n}")).persistent())).collect();
    clients.iter_mut().for_each(|c| assert_eq!(c.subscribe(&[("t", QoS::AtLeastOnce)]), [1]));
    // What is to be taken back cannot be written either.
    clients[0].unsubscribe(&["t"]);
    let mut publisher = cluster.connect(0, &Dial::v5("p"));
    cluster.etcd.fill();
    // Its claim is begun, and has no outcome before there is room.
    let (_, answer) = Dial::v5("newcomer").persistent().try_connect(cluster.mqtt(1)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    publisher.publish_with("kept", b"kept", QoS::AtLeastOnce, true);
    for node in 0..2 {
        cluster.wait_status(node, "the status says so", |s| s["cluster"]["etcd"]["writable"] == false);
    }
    let begun = clock::now();
    cluster.term(1);
    let ms = clock::now().since_ms(begun);
    assert!(ms < 5_000, "{ms} ms");
    cluster.etcd.make_room();
    cluster.restart(1);
    assert!(cluster.connect(1, &Dial::v5("c1").persistent()).present);
}

#[test]
fn a_session_that_is_on_its_way_when_the_database_becomes_full_arrives() {
    let etcd = Etcd::small();
    runtime().block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let claim = |expected, epoch| Claim {
            client_id: "moves".into(),
            expected,
            epoch,
            expiry_s: 60,
            user: SessionUser::Unknown,
            evict: None,
        };
        let made = a.coordinator.claim(claim(Expected::Absent, 1)).await.unwrap();
        assert!(matches!(made, ClaimOutcome::Granted(_)), "{made:?}");
        let frozen = b.coordinator.owner("moves").await.unwrap().unwrap();
        etcd.fill();
        // By the node that takes it over, and by the one that takes it back.
        for (node, frozen) in [(&b, frozen.clone()), (&a, frozen)] {
            let again = || node.coordinator.claim(claim(Expected::Read(frozen.clone()), 2));
            let claimed = match again().await {
                // It arrives as soon as there is room (docs/etcd.md).
                Err(_) if etcd::refuses_all_when_full() => {
                    etcd.make_room();
                    wait::eventually("the session is claimed", || async { again().await.ok() }).await
                }
                claimed => claimed.unwrap(),
            };
            let found = matches!(&claimed, ClaimOutcome::Found(Some(owner)) if owner.holder == b.me);
            assert!(found || matches!(claimed, ClaimOutcome::Granted(_)) && node.me == b.me, "{claimed:?}");
        }
    });
}
