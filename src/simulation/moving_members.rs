//! Sessions that move while somebody else has to do with them: members of a shared subscription, and a client that gives its
//! session up meanwhile.

use super::takeovers::{EXPIRY_S, cluster, cluster_with, connected, expected, resume};
use super::*;
use crate::mqtt::{Property, QoS, Reason, client};
use crate::telemetry::metrics::MoveResult;

const GROUP: &str = "$share/g/t/#";

fn member(cluster: &Cluster, node: usize, client_id: &str, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(node), client_id, true, expiry_s);
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)));
    client.subscribe(GROUP, QoS::AtLeastOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(..)))));
    client
}

fn publisher(cluster: &Cluster, node: usize) -> SimClient {
    let mut client = SimClient::connect(cluster.open(node), "p", true, 0);
    assert!(connected(cluster, &mut client).is_some());
    client
}

fn acked(client: &mut SimClient) -> Vec<u16> {
    let acked = client.seen().iter().filter_map(|g| match g {
        Got::Acked(id, reason) if !reason.is_error() => Some(*id),
        _ => None,
    });
    acked.collect()
}

/// A client with a session at node 0 and a will, which is published when the session ends.
fn with_late_will(cluster: &Cluster) -> SimClient {
    let mut delay = Vec::new();
    client::put_property(&mut delay, &Property::WillDelayInterval(EXPIRY_S));
    let (qos, retain) = (QoS::AtLeastOnce, false);
    let will = client::Will { topic: "wills", payload: b"1", qos, retain, properties: &delay };
    let mut client = SimClient::connect_with_will(cluster.open(0), "s", true, EXPIRY_S, Some(will));
    assert!(connected(cluster, &mut client).is_some());
    client
}

/// What a client has got, sorted, each once.
fn sorted(client: &mut SimClient) -> Vec<String> {
    let mut got = client.payloads();
    got.sort_by_key(|p| p.parse::<usize>().unwrap());
    got.dedup();
    got
}

/// A client at node 2 that sees all wills.
fn witness(cluster: &Cluster) -> SimClient {
    let mut witness = SimClient::connect(cluster.open(2), "witness", true, 0);
    assert!(connected(cluster, &mut witness).is_some());
    witness.subscribe("wills", QoS::AtLeastOnce);
    witness
}

/// The client comes from node 0 to node 1 and is lost once its session is frozen; false if it was there before that showed.
fn begins_to_move(cluster: &Cluster) -> bool {
    let mut resumed = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    let frozen = || cluster.node(0).unwrap().broker.metrics.sessions_frozen.get() > 0;
    assert!(cluster.until(|| frozen() || !resumed.seen().is_empty()));
    let moves = resumed.seen().is_empty();
    if moves {
        resumed.wire.lose();
    }
    moves
}

#[test]
fn a_group_whose_only_member_moved_is_served_by_an_origin_that_does_not_know_it_yet() {
    for seed in seeds(0..40) {
        let cluster = cluster(3, seed);
        cluster.net.latency(2);
        let lagging = cluster.name(if seed % 2 == 0 { 2 } else { 0 });
        let mut publisher = publisher(&cluster, if seed % 2 == 0 { 2 } else { 0 });
        let s = member(&cluster, 0, "s", EXPIRY_S);
        s.wire.lose();
        cluster.advance(1_000);
        cluster.store.lag(&lagging, true);
        let (mut s, present) = resume(&cluster, 1, "s");
        assert!(present, "seed {seed}");
        if seed % 4 < 2 {
            s.wire.lose();
            cluster.settle();
        }
        let ids: Vec<u16> =
            (0..10).map(|n| publisher.publish("t/x", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        cluster.advance(500);
        cluster.store.lag(&lagging, false);
        assert!(cluster.until(|| acked(&mut publisher).len() == ids.len()), "seed {seed}");
        let (mut again, _) = resume(&cluster, 1, "s");
        cluster.advance(5_000);
        let mut got = s.payloads();
        got.extend(again.payloads());
        got.sort_by_key(|p| p.parse::<usize>().unwrap());
        got.dedup();
        assert_eq!(got, expected(0..10), "seed {seed}");
    }
}

#[test]
fn what_a_member_leaves_behind_reaches_one_that_is_just_moving() {
    for ms in 0..40 {
        let what = format!("the member goes {ms} ms after the other has begun to move");
        let cluster = cluster(3, 3_000 + ms);
        cluster.net.latency(3);
        cluster.store.latency(2);
        let mut busy = member(&cluster, 0, "busy", 0);
        busy.silent = true;
        let s = member(&cluster, 0, "s", EXPIRY_S);
        s.wire.lose();
        cluster.advance(1_000);
        let mut publisher = publisher(&cluster, 2);
        let ids: Vec<u16> =
            (0..10).map(|n| publisher.publish("t/x", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        assert!(cluster.until(|| acked(&mut publisher).len() == ids.len()), "{what}");
        assert!(cluster.until(|| busy.payloads().len() == 10), "{what}");
        let mut s = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        cluster.advance(ms);
        busy.wire.lose();
        assert_eq!(connected(&cluster, &mut s), Some((true, Reason::Success)), "{what}");
        cluster.advance(10_000);
        assert_eq!(sorted(&mut s), expected(0..10), "{what}");
    }
}

#[test]
fn a_clean_start_elsewhere_while_the_session_moves_publishes_its_will_once() {
    let mut replaced = 0;
    for ms in 0..30 {
        let what = format!("a clean start {ms} ms after a resume elsewhere");
        let cluster = cluster(3, 4_000 + ms);
        cluster.net.latency(3);
        cluster.store.latency(2);
        let mut witness = witness(&cluster);
        let old = with_late_will(&cluster);
        old.wire.lose();
        cluster.advance(1_000);
        let mut resumed = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        cluster.advance(ms);
        let mut clean = SimClient::connect(cluster.open(2), "s", true, 0);
        assert_eq!(connected(&cluster, &mut clean), Some((false, Reason::Success)), "{what}");
        cluster.advance(20_000);
        // After the clean start it may have come to a session without state.
        let came_back = resumed
            .seen()
            .iter()
            .any(|g| matches!(g, Got::Connected { present: true, reason: Reason::Success }));
        let expected = if came_back { 0 } else { 1 };
        assert_eq!(witness.payloads().len(), expected, "{what}: resumed first: {came_back}");
        replaced += expected;
    }
    assert!(0 < replaced && replaced < 30, "both happened: {replaced}");
}

#[test]
fn a_session_that_is_on_its_way_to_a_node_that_leaves_goes_on_to_another() {
    for ms in 0..40 {
        let what = format!("the node leaves {ms} ms after a client has come");
        let cluster = cluster(3, 5_000 + ms);
        cluster.net.latency(3);
        cluster.store.latency(2);
        let mut publisher = publisher(&cluster, 2);
        let s = member(&cluster, 1, "s", EXPIRY_S);
        s.wire.lose();
        let ids: Vec<u16> =
            (0..10).map(|n| publisher.publish("t/x", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        assert!(cluster.until(|| acked(&mut publisher).len() == ids.len()), "{what}");
        let mut came = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
        cluster.advance(ms);
        let node = cluster.node(0).unwrap().clone();
        node.drain();
        assert_eq!(cluster.sim.wait(node.hand_over(), PATIENCE_MS), Some(0), "{what}");
        assert_eq!(node.broker.sessions(), 0, "{what}");
        let shut = |g: &Got| matches!(g, Got::Disconnected(Reason::ServerShuttingDown));
        assert!(!came.seen().iter().any(shut), "{what}");
        let (mut again, present) = resume(&cluster, 2, "s");
        assert!(present, "{what}");
        cluster.advance(10_000);
        let mut got = came.payloads();
        got.extend(again.payloads());
        got.sort_by_key(|p| p.parse::<usize>().unwrap());
        got.dedup();
        assert_eq!(got, expected(0..10), "{what}");
    }
}

#[test]
fn a_group_whose_member_moved_is_served_also_if_its_old_node_dies_before_the_origin_knows() {
    for seed in seeds(0..40) {
        let limits = Limits::waiting(60_000);
        let mut cluster = cluster_with(3, seed, limits);
        cluster.net.latency(2);
        let lagging = cluster.name(2);
        let mut publisher = publisher(&cluster, 2);
        let s = member(&cluster, 0, "s", EXPIRY_S);
        s.wire.lose();
        cluster.advance(1_000);
        cluster.store.lag(&lagging, true);
        let (mut s, present) = resume(&cluster, 1, "s");
        assert!(present, "seed {seed}");
        let ids: Vec<u16> =
            (0..10).map(|n| publisher.publish("t/x", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        // The old node says that the member has moved, and dies.
        cluster.advance(100);
        cluster.crash(0);
        cluster.advance(3_000);
        cluster.store.lag(&lagging, false);
        assert!(cluster.until(|| acked(&mut publisher).len() == ids.len()), "seed {seed}");
        assert_eq!(sorted(&mut s), expected(0..10), "seed {seed}");
    }
}

#[test]
fn a_member_that_may_not_have_come_takes_nothing_for_its_group() {
    for ms in 0..60 {
        let what = format!("its new node loses etcd {ms} ms after the session is frozen");
        let cluster = cluster(3, 6_000 + ms);
        let mut publisher = publisher(&cluster, 1);
        let s = member(&cluster, 0, "s", EXPIRY_S);
        s.wire.lose();
        cluster.advance(1_000);
        cluster.net.latency(20);
        let came = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        let frozen = || cluster.node(0).unwrap().broker.metrics.sessions_frozen.get() > 0;
        assert!(cluster.until(frozen), "{what}");
        cluster.advance(ms);
        cluster.cut_from_store(1, true);
        let ids: Vec<u16> =
            (0..40).map(|n| publisher.publish("t/x", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        cluster.advance(15_000);
        came.wire.lose();
        cluster.cut_from_store(1, false);
        cluster.advance(1_000);
        let acked = acked(&mut publisher);
        let (mut s, present) = resume(&cluster, 2, "s");
        assert!(present, "{what}");
        cluster.advance(5_000);
        let got = sorted(&mut s);
        let lost: Vec<u16> = ids
            .iter()
            .zip(expected(0..40))
            .filter(|(id, n)| acked.contains(id) && !got.contains(n))
            .map(|(id, _)| *id)
            .collect();
        assert!(lost.is_empty(), "{what}: of {} acknowledged: {lost:?}", acked.len());
    }
}

#[test]
fn a_session_whose_new_owner_did_not_hear_that_it_has_it_ends_there_if_it_is_replaced() {
    let mut unheard = 0;
    for seed in seeds(0..10) {
        let cluster = cluster(3, 7_000 + seed);
        cluster.net.latency(3);
        cluster.store.latency(2);
        let mut witness = witness(&cluster);
        // What the session subscribes to is wanted at the new node already.
        let (mut here, _) = resume(&cluster, 1, "here");
        here.subscribe("t/#", QoS::AtLeastOnce);
        let mut old = with_late_will(&cluster);
        old.subscribe("t/#", QoS::AtLeastOnce);
        cluster.advance(100);
        old.wire.lose();
        cluster.advance(1_000);
        if !begins_to_move(&cluster) {
            continue; // it was faster
        }
        cluster.store.lose_answers(&cluster.name(1), 1);
        let counted = || cluster.store.owner("s").is_some_and(|o| o.session.epoch == 2);
        assert!(cluster.until(counted), "seed {seed}");
        let mut clean = SimClient::connect(cluster.open(2), "s", true, 0);
        assert_eq!(connected(&cluster, &mut clean), Some((false, Reason::Success)), "seed {seed}");
        cluster.advance(20_000);
        // The answer that got lost may have been another.
        unheard += cluster.node(1).unwrap().broker.metrics.moves.of(MoveResult::Lost).get();
        assert_eq!(witness.payloads(), ["1"], "seed {seed}");
        assert!(!clean.wire.closed(), "seed {seed}");
        assert!(cluster.until(|| cluster.store.evictions().is_empty()), "seed {seed}");
    }
    assert!(unheard > 0);
}

#[test]
fn a_pending_session_whose_claim_counted_ends_after_a_restart_if_it_was_replaced() {
    for seed in seeds(0..10) {
        let mut cluster = cluster(3, 8_000 + seed);
        cluster.net.latency(3);
        cluster.store.latency(2);
        let mut witness = witness(&cluster);
        let old = with_late_will(&cluster);
        old.wire.lose();
        cluster.advance(1_000);
        if !begins_to_move(&cluster) {
            continue; // it was faster
        }
        let counted = || cluster.store.owner("s").is_some_and(|o| o.session.epoch == 2);
        assert!(cluster.until(counted), "seed {seed}");
        cluster.crash(1);
        let mut clean = SimClient::connect(cluster.open(2), "s", true, 0);
        assert_eq!(connected(&cluster, &mut clean), Some((false, Reason::Success)), "seed {seed}");
        cluster.restart(1);
        cluster.advance(20_000);
        assert!(witness.payloads().is_empty(), "seed {seed}: its client is connected elsewhere");
        assert!(cluster.until(|| cluster.store.evictions().is_empty()), "seed {seed}");
    }
}
