//! Takeovers between whose nodes the link breaks: they come to an end as soon as it is back, and neither node believes what it had.

use super::roamers::{Listener, Sender};
use super::takeovers::{EXPIRY_S, cluster, connected};
use super::*;
use crate::mqtt::client::{self, Will};
use crate::mqtt::{Property, QoS, Reason};

/// A client with a session at node 0 and a will, which is published a second after it is lost.
fn with_will(cluster: &Cluster) -> SimClient {
    let mut delay = Vec::new();
    client::put_property(&mut delay, &Property::WillDelayInterval(1));
    let will =
        Will { topic: "will/s", payload: b"lost", qos: QoS::AtLeastOnce, retain: false, properties: &delay };
    let mut client = SimClient::connect_with_will(cluster.open(0), "s", false, EXPIRY_S, Some(will));
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)));
    subscribe(cluster, &mut client, "t/#");
    client
}

/// A client at node 2 that hears of wills.
fn observer(cluster: &Cluster) -> SimClient {
    let mut observer = SimClient::connect(cluster.open(2), "o", true, 0);
    assert!(connected(cluster, &mut observer).is_some());
    subscribe(cluster, &mut observer, "will/#");
    observer
}

fn subscribe(cluster: &Cluster, client: &mut SimClient, filter: &str) {
    client.subscribe(filter, QoS::ExactlyOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(..)))));
}

/// The client comes to node 1; its session is frozen at node 0, and the answer is on its way.
fn comes_to_the_other(cluster: &Cluster, expiry_s: u32) -> SimClient {
    cluster.net.latency(20);
    let client = SimClient::connect(cluster.open(1), "s", false, expiry_s);
    let frozen = || cluster.node(0).unwrap().broker.metrics.sessions_frozen.get() > 0;
    assert!(cluster.until(frozen));
    client
}

#[test]
fn a_session_that_ended_at_its_new_owner_does_not_come_back_at_the_old_one() {
    let cluster = cluster(3, 41);
    let mut observer = observer(&cluster);
    let _old = with_will(&cluster);
    let mut client = comes_to_the_other(&cluster, 0);
    // Node 1 gets all of the state, but cannot claim the session yet.
    cluster.cut_from_store(1, true);
    cluster.advance(100);
    cluster.partition(0, 1, true);
    cluster.cut_from_store(0, true);
    cluster.cut_from_store(1, false);
    assert_eq!(connected(&cluster, &mut client), Some((true, Reason::Success)));
    client.leave();
    assert!(cluster.until(|| cluster.store.owner("s").is_none()));
    cluster.partition(0, 1, false);
    cluster.cut_from_store(0, false);
    cluster.advance(20_000);
    assert!(cluster.node(0).unwrap().broker.session("s").is_none());
    assert_eq!(cluster.store.owner("s"), None);
    assert_eq!(observer.payloads(), [""; 0]);
}

#[test]
fn a_link_that_breaks_for_a_moment_does_not_hold_a_session_up_for_long() {
    let cluster = cluster(3, 42);
    let _old = with_will(&cluster);
    let mut client = comes_to_the_other(&cluster, EXPIRY_S);
    let (new, old) = (cluster.name(1), cluster.name(0));
    cluster.net.part_one_way(&new, &old, true);
    cluster.advance(300);
    cluster.net.part_one_way(&new, &old, false);
    let healed = cluster.sim.now();
    assert_eq!(connected(&cluster, &mut client), Some((true, Reason::Success)));
    let ms = cluster.sim.now().since_ms(healed);
    assert!(ms < 2_000, "{ms} ms");
}

#[test]
fn a_client_keeps_its_connection_while_its_session_cannot_be_given_away() {
    let cluster = cluster(3, 43);
    let old = with_will(&cluster);
    let (to, from) = (cluster.name(1), cluster.name(0));
    cluster.net.part_one_way(&from, &to, true);
    cluster.settle();
    let mut client = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    cluster.advance(2_000);
    assert!(!old.wire.closed());
    cluster.net.part_one_way(&from, &to, false);
    assert_eq!(connected(&cluster, &mut client), Some((true, Reason::Success)));
    assert!(cluster.until(|| old.wire.closed()));
}

#[test]
fn no_deadline_of_a_session_passes_while_it_is_on_its_way() {
    for connected_still in [true, false] {
        let what = format!("connected still: {connected_still}");
        let cluster = cluster(3, 44);
        let mut observer = observer(&cluster);
        let old = with_will(&cluster);
        if !connected_still {
            old.wire.lose();
            cluster.advance(500);
        }
        let mut client = comes_to_the_other(&cluster, EXPIRY_S);
        cluster.cut_from_store(1, true);
        cluster.advance(3_000);
        cluster.cut_from_store(1, false);
        assert_eq!(connected(&cluster, &mut client), Some((true, Reason::Success)), "{what}");
        cluster.advance(20_000);
        assert_eq!(observer.payloads(), [""; 0], "{what}");
    }
}

#[test]
fn no_session_expires_while_it_is_on_its_way() {
    let cluster = cluster(3, 45);
    let mut old = SimClient::connect(cluster.open(0), "s", false, 2);
    assert_eq!(connected(&cluster, &mut old), Some((false, Reason::Success)));
    subscribe(&cluster, &mut old, "t/#");
    old.wire.lose();
    cluster.advance(1_000);
    let mut client = comes_to_the_other(&cluster, 2);
    cluster.cut_from_store(1, true);
    cluster.advance(3_000);
    cluster.cut_from_store(1, false);
    assert_eq!(connected(&cluster, &mut client), Some((true, Reason::Success)));
    client.wire.lose();
    assert!(cluster.until(|| cluster.store.owner("s").is_none()));
}

#[test]
fn no_deadline_passes_while_a_client_waits_for_its_node_to_be_current() {
    for connected_still in [true, false] {
        let what = format!("connected still: {connected_still}");
        let cluster = cluster(3, 46);
        let mut observer = observer(&cluster);
        let old = with_will(&cluster);
        let alone = |alone: bool| {
            [1, 2].iter().for_each(|no| cluster.partition(0, *no, alone));
            cluster.cut_from_store(0, alone);
        };
        alone(true);
        cluster.advance(5_500);
        if !connected_still {
            old.wire.lose();
            cluster.advance(500);
        }
        let mut client = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
        cluster.advance(3_000);
        assert!(client.seen().is_empty(), "{what}");
        alone(false);
        assert_eq!(connected(&cluster, &mut client), Some((true, Reason::Success)), "{what}");
        cluster.advance(20_000);
        assert_eq!(observer.payloads(), [""; 0], "{what}");
        assert!(!client.wire.closed(), "{what}");
    }
}

/// The one message of `p` is acknowledged, and `s` has had it once.
fn comes_once(cluster: &Cluster, p: &mut Sender, s: &mut Listener) {
    assert!(cluster.until(|| {
        s.tend(cluster);
        p.tend(cluster, "t/1");
        p.open.is_empty()
    }));
    cluster.advance(1_000);
    s.tend(cluster);
    assert_eq!(s.got, ["0:0000"]);
}

/// What it had asked before it was away comes again as it was matched then, though all others know by now where the session is.
#[test]
fn a_publish_of_a_node_that_was_away_finds_a_session_that_moved_meanwhile() {
    let cluster = cluster(3, 43);
    let mut s = Listener::new(&cluster, "s", 2, "t/#", QoS::ExactlyOnce);
    let mut p = Sender::new(&cluster, 0, 1, QoS::ExactlyOnce);
    let away = cluster.name(1);
    cluster.net.stall(&away, &cluster.name(2), true);
    p.publish("t/1");
    cluster.advance(100);
    let part = |parted| {
        cluster.partition(1, 0, parted);
        cluster.partition(1, 2, parted);
        cluster.cut_from_store(1, parted);
    };
    part(true);
    cluster.net.stall(&away, &cluster.name(2), false);
    let is_registered = || cluster.members().iter().any(|m| m.id.node == away);
    assert!(cluster.until(|| !is_registered()));
    s.resident.go(&cluster, 0);
    assert!(cluster.until(|| {
        s.hear();
        s.resident.connected
    }));
    // All that count have applied the move, and nobody remembers any more that the session was there.
    let is_forgotten = || cluster.node(2).unwrap().broker.metrics.sessions_departed.get() == 0;
    assert!(cluster.until(is_forgotten));
    cluster.advance(20_000);
    // It is back before it hears of anything.
    cluster.store.lag(&away, true);
    part(false);
    cluster.advance(2_000);
    cluster.store.lag(&away, false);
    comes_once(&cluster, &mut p, &mut s);
}

/// Its old node dies before it has written what was published there: then nobody has been told that it is safe.
#[test]
fn a_publish_that_is_repeated_at_another_node_is_acknowledged_once_it_is_durable_at_the_first() {
    let cluster = cluster(3, 44);
    let mut s = Listener::new(&cluster, "s", 0, "t/#", QoS::ExactlyOnce);
    let mut p = Sender::new(&cluster, 0, 0, QoS::ExactlyOnce);
    cluster.journal(0).stall(true);
    p.publish("t/1");
    cluster.advance(10);
    p.resident.go(&cluster, 1);
    for _ in 0..300 {
        cluster.advance(10);
        p.tend(&cluster, "t/1");
        assert!(p.open.iter().all(|(_, _, received)| !received), "its message can still be lost");
    }
    cluster.journal(0).stall(false);
    comes_once(&cluster, &mut p, &mut s);
}
