//! Sessions that end, and clean starts, with crashes before the coordination store or the journal has heard of all of it.

use super::takeovers::{EXPIRY_S, cluster, connected, expected, resume};
use super::*;
use crate::mqtt::{QoS, Reason};
use crate::ports::{Change, RecoveredSession, SessionRecord};

/// More changes than any step of these tests makes in the journal.
const CHANGES: usize = 30;

fn connect(cluster: &Cluster, client_id: &str, clean_start: bool, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(0), client_id, clean_start, expiry_s);
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)), "{client_id}");
    client
}

fn subscribe(cluster: &Cluster, client: &mut SimClient, filter: &str) {
    let id = client.subscribe(filter, QoS::AtLeastOnce);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == id))));
}

/// Node 0 dies; what is in its journal.
fn journal(cluster: &mut Cluster) -> Vec<RecoveredSession> {
    cluster.crash(0);
    let (journal, recovered) = cluster.nodes[0].journal.reopen();
    cluster.nodes[0].journal = journal;
    recovered.sessions
}

#[test]
fn a_session_that_expired_during_an_outage_is_over_after_a_crash() {
    let mut cluster = cluster(2, 700);
    let mut client = SimClient::connect(cluster.open(0), "s", false, 1);
    assert_eq!(connected(&cluster, &mut client), Some((false, Reason::Success)));
    client.wire.lose();
    cluster.store.outage(true);
    cluster.advance(5_000);
    assert!(cluster.node(0).unwrap().broker.session("s").is_none(), "it has expired");
    cluster.crash(0);
    cluster.store.outage(false);
    cluster.restart(0);
    for node in [0, 1] {
        let mut client = SimClient::connect(cluster.open(node), "s", false, 0);
        assert_eq!(connected(&cluster, &mut client), Some((false, Reason::Success)), "node {node}");
        client.leave();
        cluster.advance(1_000);
    }
}

#[test]
fn nothing_is_left_of_an_ended_session_once_the_store_has_heard_of_it() {
    let mut cluster = cluster(1, 701);
    let mut client = SimClient::connect(cluster.open(0), "s", false, 1);
    assert_eq!(connected(&cluster, &mut client), Some((false, Reason::Success)));
    client.wire.lose();
    cluster.advance(5_000);
    assert!(cluster.store.owner("s").is_none());
    assert_eq!(journal(&mut cluster), []);
}

/// A client with a persistent session makes a clean start, and its node dies when so many changes are in the journal.
fn dies_at_a_clean_start(changes: usize, expiry_s: u32) {
    let what = format!("{changes} changes, expiry {expiry_s}");
    let mut cluster = cluster(1, 702);
    let mut client = connect(&cluster, "s", false, EXPIRY_S);
    subscribe(&cluster, &mut client, "t/#");
    client.wire.lose();
    cluster.settle();
    cluster.nodes[0].journal.lose_after(changes);
    let mut client = SimClient::connect(cluster.open(0), "s", true, expiry_s);
    cluster.advance(100);
    let told = client.seen().contains(&Got::Connected { present: false, reason: Reason::Success });
    cluster.restart(0);
    let mut client = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
    let Some((present, Reason::Success)) = connected(&cluster, &mut client) else {
        panic!("{what}: the client is locked out: {:?}", client.seen());
    };
    assert!(!(told && present && expiry_s == 0), "{what}: what was forgotten is back");
    let subscribed = !cluster.node(0).unwrap().broker.session("s").unwrap().subscriptions.lock().is_empty();
    assert!(!(told && subscribed), "{what}: what was forgotten is back");
    cluster.advance(5_000);
    assert!(cluster.store.owner("s").is_some() && !client.wire.closed(), "{what}");
}

#[test]
fn a_clean_start_may_be_cut_short_anywhere() {
    for changes in 0..CHANGES {
        dies_at_a_clean_start(changes, EXPIRY_S);
        dies_at_a_clean_start(changes, 0);
    }
}

#[test]
fn an_old_session_that_still_has_a_record_does_not_take_that_of_the_new_one_away() {
    let mut cluster = cluster(1, 703);
    let old = connect(&cluster, "s", false, EXPIRY_S);
    old.wire.lose();
    let old = journal(&mut cluster).remove(0).record;
    cluster.restart(0);
    drop(SimClient::connect(cluster.open(0), "s", true, EXPIRY_S));
    cluster.advance(100);
    let rows = journal(&mut cluster);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].record.epoch, old.epoch);
    // As while its messages are handed on.
    let over = SessionRecord { expiry_s: 0, disconnected_at: Some(cluster.sim.now()), ..old };
    cluster.nodes[0].journal.append(&[Change::Session(&over)]);
    cluster.restart(0);
    cluster.advance(5_000);
    assert!(cluster.store.owner("s").is_some());
    let (_, present) = resume(&cluster, 0, "s");
    assert!(present);
}

/// A member of a shared subscription expires, and its node dies when so many changes are in the journal.
fn dies_while_it_hands_on(changes: usize) {
    let mut cluster = cluster(1, 704);
    let mut first = connect(&cluster, "first", false, 5);
    subscribe(&cluster, &mut first, "$share/g/t/#");
    first.wire.lose();
    let mut publisher = connect(&cluster, "p", true, 0);
    let ids: Vec<u16> =
        (0..10).map(|n| publisher.publish("t/x", &n.to_string(), QoS::AtLeastOnce, false)).collect();
    let acked = |g: &Got| matches!(g, Got::Acked(id, Reason::Success) if ids.contains(id));
    assert!(cluster.until(|| publisher.seen().iter().filter(|g| acked(g)).count() == 10));
    let mut second = connect(&cluster, "second", false, EXPIRY_S);
    subscribe(&cluster, &mut second, "$share/g/t/#");
    cluster.nodes[0].journal.lose_after(changes);
    cluster.advance(10_000);
    cluster.crash(0);
    let before = second.payloads();
    cluster.restart(0);
    let (mut second, _) = resume(&cluster, 0, "second");
    cluster.advance(10_000);
    let mut all = before;
    all.extend(second.payloads());
    all.sort_by_key(|p| p.parse::<usize>().unwrap());
    all.dedup();
    assert_eq!(all, expected(0..10), "{changes} changes");
    assert!(cluster.until(|| cluster.store.owner("first").is_none()), "{changes} changes");
}

#[test]
fn a_crash_while_messages_are_handed_on_loses_none() {
    for changes in 0..CHANGES {
        dies_while_it_hands_on(changes);
    }
}

#[test]
fn records_of_sessions_without_state_go_when_their_node_has_started_again() {
    let mut cluster = cluster(2, 705);
    let clients: Vec<SimClient> = (0..50).map(|n| connect(&cluster, &format!("c{n}"), true, 0)).collect();
    let kept = connect(&cluster, "kept", false, EXPIRY_S);
    assert_eq!(cluster.store.sessions().len(), 51);
    cluster.restart(0);
    let mut back = SimClient::connect(cluster.open(0), "c7", true, 0);
    assert_eq!(connected(&cluster, &mut back), Some((false, Reason::Success)));
    assert!(cluster.until(|| cluster.store.sessions().len() == 2), "{:?}", cluster.store.sessions().len());
    cluster.advance(5_000);
    assert!(cluster.store.owner("c7").is_some() && cluster.store.owner("kept").is_some());
    assert!(!back.wire.closed());
    drop((clients, kept));
}
