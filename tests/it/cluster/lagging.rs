//! A node that publishes hears nothing of etcd any more, while others subscribe and sessions move.

use super::nodes::BerthCluster;
use super::trap::{Trap, Way};
use super::witness::{Owed, Witness};
use crate::client::{Dial, subscribe_bytes};
use crate::history;
use crate::load::{Publisher, Stage};
use crate::wait::{self, PATIENCE};
use berth::mqtt::{QoS, Version};

/// Short times, so that the node is dropped soon; that etcd hangs is noticed well before.
const OPTIONS: &[(&str, &str)] = &[
    ("cluster.lease", "3s"),
    ("cluster.stale_after", "2s"),
    ("cluster.suback_wait", "3s"),
    ("etcd.timeout", "500ms"),
];

/// Rounds before the fault, at least after etcd has dropped the node, and after the fault.
const CALM: usize = 3;

/// Topics of the publisher: one for each round.
const TOPICS: usize = 200;

/// The publisher's node.
const ORIGIN: usize = 0;

/// Runs rounds before, during and after a fault, which runs some itself.
fn knows_of_every_subscription_and_move(what: &str, fault: impl FnOnce(&BerthCluster, &mut dyn FnMut())) {
    let cluster = BerthCluster::with(3, 1, OPTIONS);
    let stage = Stage::new(cluster.mqtt(ORIGIN));
    let history = &stage.history;
    let mut publisher = Publisher::new(Dial::v5("p").persistent(), 4, &stage);
    publisher.topics = TOPICS as u64;
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let stops = stage.stops();
        let publishing = scope.spawn(move || publisher.run());
        let grows = || assert!(history.wait_len(history.len() + 1, PATIENCE), "nothing is published");
        grows();
        // A round: a session for a topic that nobody had, which moves at once to a node that has not had it either.
        let mut round = || {
            let k = all.len();
            assert!(k < TOPICS);
            let (here, there) = (1 + k % 2, 2 - k % 2);
            let dial = Dial::v5(&format!("s{k}")).persistent().receive_maximum(20);
            let topic = format!("load/p/{k}");
            let (mut witness, mut conn) = Witness::start(dial, &topic, cluster.mqtt(here), history);
            witness.read(&mut conn, 1);
            let mut conn = witness.go(cluster.mqtt(there), conn);
            witness.read(&mut conn, 1);
            all.push((witness, conn));
        };
        let mut calm = || (0..CALM).for_each(|_| round());
        calm();
        fault(&cluster, &mut calm);
        calm();
        drop(stops);
        publishing.join().unwrap();
    });
    let mut events = history.take();
    let owed = Owed::new(&events);
    let rounds = all.len();
    for (mut witness, conn) in all {
        witness.finish(conn, &owed);
    }
    events.extend(history.take());
    let report = history::must_hold(what, &events);
    assert!(rounds >= 4 * CALM && report.received > 2 * rounds, "too little load");
}

#[test]
fn an_origin_without_etcd_knows_of_every_subscription_and_move() {
    knows_of_every_subscription_and_move("origin without etcd", |cluster, calm| {
        cluster.stall_etcd(ORIGIN, true);
        while cluster.members() != ["n1", "n2"] {
            calm();
        }
        calm();
        let caught_up = cluster.metric(ORIGIN, "berth_cluster_catch_ups_total");
        assert!(caught_up > 0.0, "it has missed nothing");
        cluster.stall_etcd(ORIGIN, false);
        while cluster.members().len() < cluster.len() {
            calm();
        }
    });
}

#[test]
fn an_origin_whose_watch_alone_is_silent_knows_of_every_subscription_and_move() {
    knows_of_every_subscription_and_move("origin with a silent watch", |cluster, calm| {
        cluster.trap_etcd(ORIGIN, &Trap::at(Way::Back, "sprung/by/this"));
        let mut springs = cluster.connect(1, &Dial::v5("springs"));
        let subscribe = subscribe_bytes(Version::V5, 1, &[("sprung/by/this", QoS::AtLeastOnce)]);
        springs.send(&subscribe).unwrap();
        cluster.wait_caught(ORIGIN, "the watch is held");
        let before = cluster.metric(ORIGIN, "berth_etcd_watch_restarts_total");
        // Its lease goes on, and so do its claims.
        calm();
        cluster.connect(ORIGIN, &Dial::v5("claims").persistent()).ping();
        wait::until_true("the silence is noticed", || {
            cluster.metric(ORIGIN, "berth_etcd_watch_restarts_total") > before
        });
        assert_eq!(cluster.members().len(), cluster.len());
        calm();
        cluster.release();
    });
}
