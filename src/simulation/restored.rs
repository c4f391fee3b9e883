//! The store is put back to a backup: what the journals have is claimed anew, the highest epoch wins, and nothing is lost or comes
//! twice.

use super::publish_tests::{acked, cluster, connect, start_routes, subscribe};
use super::*;
use crate::mqtt::{QoS, Reason};
use crate::simulation::cluster::Backup;
use futures_util::FutureExt;

const EXPIRY_S: u32 = 7_200;

/// Connects to a session; whether there was one.
fn back(cluster: &Cluster, no: usize, id: &str) -> (SimClient, bool) {
    let mut client = SimClient::connect(cluster.open(no), id, false, EXPIRY_S);
    match answer(cluster, &mut client) {
        Some(Got::Connected { present, reason: Reason::Success }) => (client, present),
        other => panic!("{id} at n{no}: {other:?}"),
    }
}

fn answer(cluster: &Cluster, client: &mut SimClient) -> Option<Got> {
    let is_answer = |g: &&Got| matches!(g, Got::Connected { .. });
    assert!(cluster.until(|| client.seen().iter().any(|g| is_answer(&g))), "no answer");
    client.seen().iter().find(is_answer).cloned()
}

fn publish(cluster: &Cluster, publisher: &mut SimClient, payload: &str) {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let id = publisher.publish("t", &format!("{payload}-{}", qos as u8), qos, false);
        let held = |no: usize| {
            let remote = cluster.node(no)?.remote()?.clone();
            let reconciled = remote.sessions.when_reconciled().now_or_never().is_some();
            Some(format!(
                "late {}, reconciled {reconciled}, {:?}",
                remote.publishes_deferred(),
                remote.outbox
            ))
        };
        let is_acked = cluster.until(|| acked(publisher, id));
        let nodes: Vec<_> = (0..cluster.len()).map(held).collect();
        assert!(is_acked, "{payload}: {:?}, {nodes:#?}", publisher.seen());
    }
}

/// A session that is dormant, with a subscription.
fn sleeper(cluster: &Cluster, no: usize, id: &str) {
    let mut client = connect(cluster, no, id, EXPIRY_S);
    subscribe(cluster, &mut client, "t", QoS::ExactlyOnce);
    client.wire.lose();
    cluster.advance(1_000);
}

/// Moves a session that is dormant.
fn moves(cluster: &Cluster, no: usize, id: &str) {
    let (client, present) = back(cluster, no, id);
    assert!(present, "{id}");
    client.wire.lose();
    cluster.advance(1_000);
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|name| [format!("{name}-1"), format!("{name}-2")]).collect()
}

/// All nodes die, the store is put back, and these start, in this order.
fn restore(cluster: &mut Cluster, backup: &Backup, order: &[usize]) {
    (0..cluster.len()).for_each(|no| cluster.crash(no));
    cluster.advance(1_000);
    cluster.store.restore(backup);
    for no in order {
        cluster.restart(*no);
        cluster.advance(200);
    }
    start_routes(cluster, order.iter().copied());
}

#[test]
fn sessions_that_moved_or_were_made_after_the_backup_are_there_after_it() {
    for seed in seeds(0..16) {
        // Brokers may have started again since the backup.
        let (again, order) = (seed & 1 == 1, if seed & 2 == 2 { [1, 0] } else { [0, 1] });
        let what = format!("seed {seed}, again: {again}, order: {order:?}");
        let mut cluster = cluster(2, seed);
        sleeper(&cluster, 0, "moved");
        sleeper(&cluster, 0, "stays");
        let backup = cluster.store.backup();
        if again {
            cluster.restart(0);
            cluster.restart(1);
            start_routes(&cluster, [0, 1]);
        }
        moves(&cluster, 1, "moved");
        sleeper(&cluster, 1, "new");
        let mut publisher = connect(&cluster, 0, "p", 0);
        publish(&cluster, &mut publisher, "before");
        restore(&mut cluster, &backup, &order);
        // The numbers of these publishes must be none of before.
        let mut publisher = connect(&cluster, 1, "p2", 0);
        publish(&cluster, &mut publisher, "after");
        for (at, id) in ["moved", "stays", "new"].into_iter().enumerate() {
            let (mut client, present) = back(&cluster, (at + usize::from(seed & 4 == 4)) % 2, id);
            assert!(present, "{what}: {id}");
            let expected = texts(&["before", "after"]);
            assert!(cluster.until(|| client.payloads().len() >= expected.len()), "{what}: {id}");
            cluster.advance(10_000);
            assert_eq!(client.payloads(), expected, "{what}: {id}");
        }
        assert!(cluster.members().iter().all(|m| m.id.incarnation > 1 << 48), "{what}");
    }
}

#[test]
fn it_may_be_restored_again_and_from_before_the_first_time() {
    let mut cluster = cluster(2, 40);
    sleeper(&cluster, 0, "moved");
    let backup = cluster.store.backup();
    for (round, name) in ["a", "b", "c"].into_iter().enumerate() {
        moves(&cluster, (round + 1) % 2, "moved");
        let mut publisher = connect(&cluster, 0, &format!("p{round}"), 0);
        publish(&cluster, &mut publisher, name);
        restore(&mut cluster, &backup, &[round % 2, (round + 1) % 2]);
        let (mut client, present) = back(&cluster, (round + 1) % 2, "moved");
        assert!(present && cluster.until(|| client.payloads().len() == 2), "{name}: {:?}", client.payloads());
        assert_eq!(client.payloads(), texts(&[name]));
        client.wire.lose();
        cluster.advance(1_000);
    }
}

/// A session of a node that is dead is begun anew elsewhere; then the store is put back.
fn two_journals(seed: u64) -> (Cluster, Backup) {
    let mut cluster = cluster(3, seed);
    sleeper(&cluster, 0, "s");
    let mut publisher = connect(&cluster, 2, "p", 0);
    publish(&cluster, &mut publisher, "old");
    let backup = cluster.store.backup();
    cluster.crash(0);
    cluster.advance(20_000);
    let mut new = SimClient::connect(cluster.open(1), "s", true, EXPIRY_S);
    assert!(matches!(answer(&cluster, &mut new), Some(Got::Connected { reason: Reason::Success, .. })));
    subscribe(&cluster, &mut new, "u", QoS::ExactlyOnce);
    new.wire.lose();
    let mut publisher = connect(&cluster, 2, "p2", 0);
    let id = publisher.publish("u", "new", QoS::ExactlyOnce, false);
    assert!(cluster.until(|| acked(&mut publisher, id)));
    (cluster, backup)
}

#[test]
fn of_two_journals_the_higher_epoch_wins() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let (mut cluster, backup) = two_journals(60);
        restore(&mut cluster, &backup, &order);
        let (mut client, present) = back(&cluster, order[0], "s");
        assert!(present && cluster.until(|| !client.payloads().is_empty()), "{order:?}");
        cluster.advance(10_000);
        assert_eq!(client.payloads(), ["new"], "{order:?}");
        let has = |no: &usize| cluster.node(*no).unwrap().broker.session("s").is_some();
        assert_eq!((0..3).filter(has).count(), 1, "{order:?}");
    }
}

#[test]
fn the_higher_epoch_wins_over_a_session_that_is_served() {
    for seed in seeds(80..90) {
        let (mut cluster, backup) = two_journals(seed);
        restore(&mut cluster, &backup, &[0, 2]);
        // What the store names is served.
        let (mut client, present) = back(&cluster, 0, "s");
        assert!(present && cluster.until(|| client.payloads().len() == 2), "seed {seed}");
        assert_eq!(client.payloads(), texts(&["old"]));
        cluster.restart(1);
        start_routes(&cluster, [1]);
        assert!(cluster.until(|| client.wire.closed()), "seed {seed}: one owner");
        let (mut client, present) = back(&cluster, 0, "s");
        assert!(present && cluster.until(|| !client.payloads().is_empty()), "seed {seed}");
        cluster.advance(10_000);
        assert_eq!(client.payloads(), ["new"], "seed {seed}");
    }
}

#[test]
fn what_the_backup_names_waits_for_its_journal_and_what_it_does_not_name_is_unknown() {
    let mut cluster = cluster(2, 100);
    sleeper(&cluster, 0, "moved");
    let backup = cluster.store.backup();
    moves(&cluster, 1, "moved");
    sleeper(&cluster, 1, "new");
    let mut publisher = connect(&cluster, 0, "p", 0);
    publish(&cluster, &mut publisher, "before");
    restore(&mut cluster, &backup, &[0]);
    let mut refused = SimClient::connect(cluster.open(0), "moved", false, EXPIRY_S);
    let answer = answer(&cluster, &mut refused);
    assert!(matches!(answer, Some(Got::Connected { reason: Reason::ServerUnavailable, .. })), "{answer:?}");
    let (unknown, present) = back(&cluster, 0, "new");
    assert!(!present);
    cluster.restart(1);
    start_routes(&cluster, [1]);
    let (mut client, present) = back(&cluster, 0, "moved");
    assert!(present && cluster.until(|| client.payloads().len() == 2));
    assert_eq!(client.payloads(), texts(&["before"]));
    // The one that was made since keeps its place.
    assert!(!unknown.wire.closed());
}

#[test]
fn a_session_without_state_that_the_backup_names_does_not_stand_in_the_way() {
    for at in [0, 1] {
        let mut cluster = cluster(2, 120);
        let fleeting = connect(&cluster, 0, "s", 0);
        let backup = cluster.store.backup();
        fleeting.wire.lose();
        cluster.advance(5_000);
        cluster.restart(at);
        start_routes(&cluster, [at]);
        sleeper(&cluster, at, "s");
        let mut publisher = connect(&cluster, 1 - at, "p", 0);
        publish(&cluster, &mut publisher, "before");
        restore(&mut cluster, &backup, &[0, 1]);
        let (mut client, present) = back(&cluster, 0, "s");
        assert!(present && cluster.until(|| client.payloads().len() >= 2), "at n{at}");
        assert_eq!(client.payloads(), texts(&["before"]), "at n{at}");
    }
}

#[test]
fn a_session_that_was_begun_anew_after_the_backup_wins_over_one_that_has_ended() {
    for order in [[0, 1], [1, 0]] {
        let mut cluster = cluster(2, 160);
        sleeper(&cluster, 0, "s");
        [1, 0, 1, 0].into_iter().for_each(|no| moves(&cluster, no, "s"));
        let backup = cluster.store.backup();
        let ended = SimClient::connect(cluster.open(0), "s", true, 0);
        cluster.advance(1_000);
        ended.wire.lose();
        assert!(cluster.until(|| cluster.store.owner("s").is_none()));
        sleeper(&cluster, 1, "s");
        let mut publisher = connect(&cluster, 0, "p", 0);
        publish(&cluster, &mut publisher, "new");
        restore(&mut cluster, &backup, &order);
        let (mut client, present) = back(&cluster, 0, "s");
        assert!(present && cluster.until(|| client.payloads().len() >= 2), "{order:?}");
        assert_eq!(client.payloads(), texts(&["new"]), "{order:?}");
    }
}

#[test]
fn a_session_that_ended_after_the_backup_is_waited_for_until_it_expires() {
    for again in [false, true] {
        let mut cluster = cluster(2, 180);
        let mut client = connect(&cluster, 0, "s", 60);
        subscribe(&cluster, &mut client, "t", QoS::AtLeastOnce);
        let backup = cluster.store.backup();
        let ended = SimClient::connect(cluster.open(0), "s", true, 0);
        cluster.advance(1_000);
        ended.wire.lose();
        assert!(cluster.until(|| cluster.store.owner("s").is_none()));
        restore(&mut cluster, &backup, &[0, 1]);
        if again {
            cluster.restart(0);
            start_routes(&cluster, [0]);
        }
        for no in [0, 1] {
            let mut refused = SimClient::connect(cluster.open(no), "s", false, 60);
            let answer = answer(&cluster, &mut refused);
            assert!(
                matches!(answer, Some(Got::Connected { reason: Reason::ServerUnavailable, .. })),
                "{answer:?}"
            );
        }
        cluster.advance(65_000);
        assert!(cluster.store.owner("s").is_none(), "again: {again}");
        let (_, present) = back(&cluster, 1, "s");
        assert!(!present);
    }
}

#[test]
fn a_retained_message_that_was_parked_when_the_store_went_outlives_its_restoration() {
    let mut cluster = cluster(2, 140);
    let mut publisher = connect(&cluster, 0, "p", 0);
    let id = publisher.publish("r", "1", QoS::AtLeastOnce, true);
    assert!(cluster.until(|| acked(&mut publisher, id)));
    let backup = cluster.store.backup();
    let id = publisher.publish("r", "2", QoS::AtLeastOnce, true);
    assert!(cluster.until(|| acked(&mut publisher, id)));
    cluster.store.outage(true);
    cluster.advance(3_000);
    let id = publisher.publish("r", "3", QoS::AtLeastOnce, true);
    assert!(cluster.until(|| acked(&mut publisher, id)));
    (0..2).for_each(|no| cluster.crash(no));
    cluster.store.outage(false);
    restore(&mut cluster, &backup, &[1, 0]);
    let mut reader = connect(&cluster, 1, "reader", 0);
    subscribe(&cluster, &mut reader, "r", QoS::AtLeastOnce);
    assert!(cluster.until(|| reader.payloads() == ["3"]), "{:?}", reader.payloads());
    // Without anything spooled it is as of the backup.
    restore(&mut cluster, &backup, &[0, 1]);
    let mut reader = connect(&cluster, 1, "reader2", 0);
    subscribe(&cluster, &mut reader, "r", QoS::AtLeastOnce);
    assert!(cluster.until(|| reader.payloads() == ["1"]), "{:?}", reader.payloads());
}
