//! etcd is restored from a backup as `docs/etcd.md` says: what the brokers' journals have is claimed anew.

use super::etcd::Etcd;
use super::node::{connect, description, keys, register};
use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::operate::ctl;
use crate::wait;
use berth::etcd::journals::Entry;
use berth::etcd::member::Membership;
use berth::etcd::older::Known;
use berth::mqtt::{QoS, Reason};
use berth::ports::{StoreKnown, generation_of, registered_at};
use std::time::Duration;

const QUICK: &[(&str, &str)] =
    &[("cluster.lease", "2s"), ("cluster.stale_after", "1s"), ("cluster.takeover_timeout", "2s")];

fn dial(id: &str) -> Dial {
    Dial::v5(id).persistent().expiry(7_200)
}

/// A session with a subscription whose client is away.
fn sleeper(cluster: &BerthCluster, i: usize, id: &str) {
    let mut client = cluster.connect(i, &dial(id));
    assert!(!client.present, "{id}");
    client.subscribe(&[("jobs", QoS::AtLeastOnce)]);
    drop(client);
}

/// The client of a session connects to a node, and goes away again.
fn moves(cluster: &BerthCluster, i: usize, id: &str) {
    let (client, present) = connects(cluster, i, id);
    assert!(present, "{id}");
    drop(client);
}

/// Connects; whether a session was there.
fn connects(cluster: &BerthCluster, i: usize, id: &str) -> (Client, bool) {
    let attempt = || match dial(id).try_connect(cluster.mqtt(i)) {
        Ok((client, In::ConnAck { present, reason: Reason::Success, .. })) => Some((client, present)),
        _ => None,
    };
    wait::until("it is let in", attempt)
}

fn publish(cluster: &BerthCluster, i: usize, texts: &[&str]) {
    let mut publisher = cluster.connect(i, &Dial::v5("publisher"));
    texts.iter().for_each(|text| publisher.publish("jobs", text, QoS::AtLeastOnce));
}

/// The session is there, and its client is sent these messages and no others.
fn has(cluster: &BerthCluster, i: usize, id: &str, texts: &[&str]) {
    let (mut client, present) = connects(cluster, i, id);
    assert!(present, "{id} at n{i}: the session is lost");
    assert_eq!(client.receive_texts(texts.len()), texts, "{id} at n{i}");
    client.ping();
    client.expect_silence();
}

/// What a broker has logged that contains all of these.
fn logged(cluster: &mut BerthCluster, i: usize, words: &[&str]) -> String {
    cluster.broker(i).wait_log(|line| words.iter().all(|word| line.contains(word)))
}

fn restored_key(cluster: &BerthCluster) -> String {
    cluster.etcd.ctl(&["get", "/berth/berth/v1/restored", "--print-value-only"])
}

/// The input of a user: a backup, a client that moves, a new one, messages for both; then everything stops, and etcd is restored.
fn sessions_come_back(mut cluster: BerthCluster, again: bool, crash: bool) {
    sleeper(&cluster, 0, "moved");
    let backup = cluster.etcd.save();
    if again {
        for i in 0..2 {
            cluster.term(i);
            cluster.restart(i);
        }
        cluster.wait_formed();
    }
    // To the node that has it not.
    let to = 1 - cluster.homes("moved")[0];
    moves(&cluster, to, "moved");
    sleeper(&cluster, to, "new");
    publish(&cluster, 1 - to, &["1", "2", "3"]);
    for i in [1 - to, to] {
        if crash { cluster.kill(i) } else { cluster.term(i) }
    }
    cluster.etcd.restore(&backup);
    for i in [1 - to, to] {
        cluster.restart(i);
    }
    cluster.wait_formed();
    logged(&mut cluster, to, &["WARN", "etcd was restored from a backup", "claimed=2", "dropped=0"]);
    for words in [
        ["client=moved", "claimed anew from the journal", "named an older owner"],
        ["client=new", "claimed anew from the journal", "did not have it"],
    ] {
        logged(&mut cluster, to, &words);
    }
    // What is published now is none of what was published before.
    publish(&cluster, 1 - to, &["4"]);
    has(&cluster, 0, "moved", &["1", "2", "3", "4"]);
    has(&cluster, 1, "new", &["1", "2", "3", "4"]);
    assert!(restored_key(&cluster).contains(r#""generation":1,"#), "{}", restored_key(&cluster));
    // And as ever from then on.
    publish(&cluster, to, &["5"]);
    cluster.kill(to);
    cluster.restart(to);
    has(&cluster, 1, "moved", &["5"]);
    has(&cluster, 0, "new", &["5"]);
    assert!(restored_key(&cluster).contains(r#""generation":1,"#), "counted once");
}

#[test]
fn sessions_that_moved_or_were_made_after_the_backup_come_back() {
    sessions_come_back(BerthCluster::with(2, 1, QUICK), false, false);
}

#[test]
fn they_come_back_though_brokers_were_started_again_after_the_backup() {
    sessions_come_back(BerthCluster::with(2, 1, QUICK), true, false);
}

#[test]
fn they_come_back_after_a_crash_of_everything_and_on_three_members_of_etcd() {
    sessions_come_back(BerthCluster::with(2, 3, QUICK), true, true);
}

#[test]
fn an_empty_etcd_is_a_restoration_of_nothing() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 0, "a");
    sleeper(&cluster, 1, "b");
    publish(&cluster, 0, &["1"]);
    (0..2).for_each(|i| cluster.kill(i));
    cluster.etcd.wipe();
    (0..2).for_each(|i| cluster.restart(i));
    cluster.wait_formed();
    has(&cluster, 1, "a", &["1"]);
    has(&cluster, 0, "b", &["1"]);
}

/// Two journals have a session: node 0's, which the backup names, and node 1's, which is younger.
fn two_journals() -> (BerthCluster, std::path::PathBuf) {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 0, "s");
    publish(&cluster, 1, &["old"]);
    let backup = cluster.etcd.save();
    cluster.kill(0);
    wait::until_true("its lease runs out", || cluster.members() == ["n1"]);
    let mut client = cluster.connect(1, &dial("s").clean());
    client.subscribe(&[("anew", QoS::AtLeastOnce)]);
    drop(client);
    cluster.connect(1, &Dial::v5("publisher")).publish("anew", "new", QoS::AtLeastOnce);
    cluster.kill(1);
    cluster.etcd.restore(&backup);
    (cluster, backup)
}

#[test]
fn of_two_journals_the_higher_epoch_wins_over_a_session_that_is_served() {
    let (mut cluster, _) = two_journals();
    cluster.restart(0);
    let (mut served, present) = connects(&cluster, 0, "s");
    assert!(present);
    assert_eq!(served.receive_texts(1), ["old"]);
    cluster.restart(1);
    served.expect_closed();
    let said = logged(&mut cluster, 0, &["session is another node's now", "client=s"]);
    assert!(said.contains("WARN") && said.contains("epoch=2") && said.contains("ours=1"), "{said}");
    has(&cluster, 0, "s", &["new"]);
}

#[test]
fn of_two_journals_the_lower_epoch_loses_when_it_comes_later() {
    let (mut cluster, _) = two_journals();
    cluster.restart(1);
    wait::until_true("it is claimed", || cluster.owner("s")["epoch"] == 2);
    cluster.restart(0);
    has(&cluster, 0, "s", &["new"]);
    assert_eq!(cluster.homes("s"), [0]);
}

#[test]
fn without_its_journal_what_the_backup_names_is_refused_and_the_rest_is_unknown() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 0, "moved");
    let backup = cluster.etcd.save();
    moves(&cluster, 1, "moved");
    sleeper(&cluster, 1, "new");
    publish(&cluster, 0, &["1"]);
    (0..2).for_each(|i| cluster.kill(i));
    cluster.etcd.restore(&backup);
    cluster.restart(0);
    let (_, answer) = dial("moved").try_connect(cluster.mqtt(0)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    let (_, present) = connects(&cluster, 0, "new");
    assert!(!present);
    // Its journal comes back: the first is there, and the other keeps what was made since.
    cluster.restart(1);
    has(&cluster, 0, "moved", &["1"]);
    logged(&mut cluster, 1, &["WARN", "client=new", "is dropped", "ours=1", "owner=n0@"]);
    let (mut new, present) = connects(&cluster, 1, "new");
    assert!(present);
    new.expect_silence();
}

#[test]
fn what_was_forgotten_before_the_backup_stays_forgotten() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 1, "forgotten");
    cluster.kill(1);
    wait::until_true("its lease runs out", || cluster.members() == ["n0"]);
    let http = cluster.broker(0).http;
    wait::until_true("it is forgotten", || ctl(http, &["cluster", "forget", "n1"]).code == 0);
    let marks = |cluster: &BerthCluster| {
        cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/forgotten/", "--keys-only"]).trim().to_owned()
    };
    assert!(marks(&cluster).contains("/forgotten/"), "{}", marks(&cluster));
    let backup = cluster.etcd.save();
    sleeper(&cluster, 0, "later");
    cluster.kill(0);
    cluster.etcd.restore(&backup);
    cluster.restart(0);
    cluster.restart(1);
    let said = logged(&mut cluster, 1, &["this node was forgotten while it was away"]);
    assert!(said.contains("sessions=1"), "{said}");
    wait::until_true("the mark is taken back", || marks(&cluster).is_empty());
    let (_, present) = connects(&cluster, 1, "forgotten");
    assert!(!present);
    let (_, present) = connects(&cluster, 1, "later");
    assert!(present);
    // The mark is in this backup no more, but in the first one: it says nothing of what was made since.
    sleeper(&cluster, 1, "since");
    (0..2).for_each(|i| cluster.kill(i));
    cluster.etcd.restore(&backup);
    (0..2).for_each(|i| cluster.restart(i));
    let (_, present) = connects(&cluster, 0, "since");
    assert!(present);
}

/// Starts both nodes, on which sessions `a` and `b` have a message.
fn both_come_back(cluster: &mut BerthCluster) {
    (0..2).for_each(|i| cluster.restart(i));
    has(cluster, 1, "a", &["1"]);
    has(cluster, 0, "b", &["1"]);
}

#[test]
fn a_restoration_that_takes_back_less_than_has_happened_since_is_noticed() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 0, "a");
    let backup = cluster.etcd.save();
    sleeper(&cluster, 0, "b");
    publish(&cluster, 1, &["1"]);
    (0..2).for_each(|i| cluster.kill(i));
    cluster.etcd.restore(&backup);
    // As when leases run out before any broker is started: the revision is past all that the journals know.
    (0..50).for_each(|n| drop(cluster.etcd.ctl(&["put", &format!("/other/{n}"), "x"])));
    both_come_back(&mut cluster);
}

/// Both processes end, and say that etcd was restored, and how they know.
fn both_stop(cluster: &mut BerthCluster, why: &str) {
    for i in 0..2 {
        let status = cluster.broker(i).wait();
        assert!(!status.success(), "n{i}: {status}");
        let log = cluster.broker(i).log();
        let said = format!("etcd was restored from a backup while this process ran: {why}");
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(&said)), "n{i}: {log}");
    }
}

#[test]
fn a_process_that_runs_through_a_restoration_stops_and_says_why() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 0, "a");
    let backup = cluster.etcd.save();
    sleeper(&cluster, 1, "b");
    publish(&cluster, 0, &["1"]);
    cluster.etcd.restore(&backup);
    both_stop(&mut cluster, "its ");
    both_come_back(&mut cluster);
}

#[test]
fn a_process_that_first_reads_etcd_when_it_has_come_further_again_stops_too() {
    let mut cluster = BerthCluster::with(2, 1, QUICK);
    sleeper(&cluster, 0, "a");
    let backup = cluster.etcd.save();
    sleeper(&cluster, 1, "b");
    publish(&cluster, 0, &["1"]);
    (0..2).for_each(|i| cluster.cut_from_etcd(i, true));
    cluster.etcd.restore(&backup);
    // Nothing that is read from now on is older than what the processes know.
    (0..50).for_each(|n| drop(cluster.etcd.ctl(&["put", &format!("/berth/berth/v1/other/{n}"), "x"])));
    (0..2).for_each(|i| cluster.cut_from_etcd(i, false));
    both_stop(&mut cluster, "its change at revision");
    both_come_back(&mut cluster);
}

#[test]
fn retained_messages_are_as_of_the_backup_but_for_those_that_wait_in_a_journal() {
    let mut cluster = BerthCluster::with(1, 1, QUICK);
    let retain = |cluster: &BerthCluster, topic: &str, text: &str| {
        let mut client = cluster.connect(0, &Dial::v5("publisher"));
        assert!(!client.publish_with(topic, text.as_bytes(), QoS::AtLeastOnce, true).is_error());
    };
    retain(&cluster, "parked", "1");
    retain(&cluster, "written", "1");
    let backup = cluster.etcd.save();
    retain(&cluster, "parked", "2");
    retain(&cluster, "written", "2");
    let mut publisher = cluster.connect(0, &Dial::v5("through"));
    cluster.etcd.kill(0);
    cluster.wait_status(0, "etcd is away", |s| s["cluster"]["etcd"]["reachable"] == false);
    assert!(!publisher.publish_with("parked", b"3", QoS::AtLeastOnce, true).is_error());
    cluster.kill(0);
    cluster.etcd.restore(&backup);
    cluster.restart(0);
    let mut reader = cluster.connect(0, &Dial::v5("reader"));
    reader.patience(Duration::from_secs(10));
    let told = wait::until("what was parked is written", || {
        let mut reader = cluster.connect(0, &Dial::v5("reader"));
        reader.subscribe(&[("parked", QoS::AtLeastOnce)]);
        let text = reader.receive().text().to_owned();
        (text != "1").then_some(text)
    });
    assert_eq!(told, "3");
    let mut reader = cluster.connect(0, &Dial::v5("reader2"));
    reader.subscribe(&[("written", QoS::AtLeastOnce)]);
    assert_eq!(reader.receive().text(), "1");
}

#[test]
fn a_restoration_is_counted_once_however_many_notice_it() {
    let server = Etcd::start(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let etcd = connect(&server).await;
        // Their journals know that etcd had come further than it has.
        let store = StoreKnown { revision: 1_000, ..StoreKnown::default() };
        let known = Known::new(store, &[5, 7]);
        let names = ["a", "b", "c"].map(description);
        let (keys, known) = (&keys(), &known);
        let starts = names.iter().zip(1..).map(|(name, journal)| {
            let etcd = &etcd;
            let holds = vec![5, 7];
            let entry = Entry { known: *known, holds, ..Entry::unstamped(journal) };
            async move { Membership::register(etcd, keys, name, &entry).await.unwrap() }
        });
        let all = futures_util::future::join_all(starts).await;
        let timeline = all[0].store().timeline;
        for member in &all {
            let store = member.store();
            assert!(store.restored && !store.forgotten && store.timeline == timeline, "{store:?}");
            assert_eq!((timeline.generation, generation_of(member.me().incarnation)), (1, 1));
            // The state of earlier processes is in its journal.
            let mut adopted: Vec<_> = member.adopted().iter().map(|of| of.incarnation).collect();
            adopted.sort_unstable();
            assert_eq!(adopted, [5, 7]);
        }
        // Who has a new journal has nothing to compare; who has compared finds nothing new.
        let new = register(&etcd, "d", 9).await.unwrap();
        assert!(!new.store().restored && new.store().timeline == timeline);
        let revision = registered_at(all[0].me().incarnation);
        let compared = StoreKnown { timeline, revision, mark: 0 };
        let known = Known::new(compared, &[5, 7, all[0].me().incarnation]);
        let entry = Entry { known, ..Entry::unstamped(1) };
        let again = Membership::register(&etcd, keys, &names[0], &entry).await.unwrap();
        assert!(!again.store().restored && again.store().timeline == timeline);
        assert!(again.me().incarnation > all[0].me().incarnation);
    });
}
