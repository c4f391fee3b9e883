//! A journal that is a copy of a newer one, beside the process that has it or in its place: it is refused, and nothing is lost.

use super::etcd::Etcd as Server;
use super::node::{connect, description, keys};
use super::nodes::BerthCluster;
use super::peers;
use crate::broker::{Broker, Setup, free_address};
use crate::client::{Dial, In};
use crate::wait;
use berth::clock;
use berth::etcd::journals::{Begun, Entry, look};
use berth::etcd::member::Membership;
use berth::etcd::register::RegisterError;
use berth::mqtt::{QoS, Reason};
use berth::peers::{Answered, PeerServer, Probe};
use berth::ports::{SessionNo, Stamped};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use serde_json::Value;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// What all keys begin with.
const ROOT: &str = "/berth/berth/v1/";

/// How soon a start must be done that waits for nobody, milliseconds.
const START_MS: u64 = 10_000;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const STARTS: TableDefinition<u64, (u64, u64)> = TableDefinition::new("starts");

/// One node with a persistent session that is away.
struct Scene {
    cluster: BerthCluster,
    copies: TempDir,
}

fn session() -> Dial {
    Dial::v5("s").persistent()
}

impl Scene {
    /// With a short lease.
    fn new() -> Scene {
        Scene::with(&[
            ("cluster.lease", "2s"),
            ("cluster.stale_after", "1s"),
            ("cluster.takeover_timeout", "1s"),
        ])
    }

    fn with(options: &[(&str, &str)]) -> Scene {
        Scene::on(BerthCluster::with(1, 1, options))
    }

    fn on(cluster: BerthCluster) -> Scene {
        assert_eq!(cluster.connect(0, &session()).subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
        let scene = Scene { cluster, copies: TempDir::new().unwrap() };
        scene.publish("before");
        scene
    }

    /// Five acknowledged messages.
    fn publish(&self, what: &str) {
        let mut publisher = self.cluster.connect(0, &Dial::v5("pub"));
        (0..5).for_each(|n| publisher.publish("t", &format!("{what} {n}"), QoS::AtLeastOnce));
        publisher.disconnect();
    }

    fn dir(&mut self) -> PathBuf {
        self.cluster.broker(0).dir.clone()
    }

    /// Copies the node's folder in a moment in which nothing is written.
    fn copy(&mut self, name: &str) -> PathBuf {
        let (dir, to) = (self.dir(), self.copies.path().join(name));
        let file = || std::fs::read(dir.join("journal.redb")).unwrap();
        wait::until_true("the journal rests", || {
            let before = file();
            copy_dir(&dir, &to);
            file() == before
        });
        to
    }

    /// Puts a copy in the place of the node's folder, which gets another name.
    fn put(&mut self, copy: &Path) -> PathBuf {
        let (dir, kept) = (self.dir(), self.copies.path().join("kept"));
        copy_dir(&dir, &kept);
        std::fs::copy(copy.join("journal.redb"), dir.join("journal.redb")).unwrap();
        kept
    }

    /// A broker as the node, with this folder, at addresses of its own.
    fn another(&self, dir: &Path) -> Setup {
        Setup::new()
            .dir(dir)
            .set("node.id", "n0")
            .set("cluster.enabled", "true")
            .set("cluster.peer_address", &free_address().to_string())
            .set("cluster.lease", "2s")
            .set("cluster.stale_after", "1s")
            .set("cluster.takeover_timeout", "1s")
            .set("etcd.endpoints", &self.cluster.etcd.endpoint(0))
    }

    /// The only key of this kind, and its value.
    fn key(&self, kind: &str) -> (String, Value) {
        let dump = self.cluster.etcd.ctl(&["get", "--prefix", &format!("{ROOT}{kind}")]);
        let lines: Vec<_> = dump.lines().collect();
        assert_eq!(lines.len(), 2, "{dump}");
        (lines[0].to_owned(), serde_json::from_str(lines[1]).unwrap())
    }

    /// What etcd was told of the node's journal.
    fn told(&self) -> Value {
        self.key("journals/").1
    }

    fn position(&self) -> u64 {
        self.told()["position"].as_u64().unwrap()
    }

    /// Waits until etcd was told more.
    fn wait_told(&self, than: u64) {
        wait::until_true("etcd is told how far the journal has come", || self.position() > than);
    }

    /// The member key, with its lease and revisions.
    fn member(&self) -> String {
        let found = self.cluster.etcd.ctl(&["get", &format!("{ROOT}members/n0"), "-w", "json"]);
        serde_json::from_str::<Value>(&found).unwrap()["kvs"].to_string()
    }

    /// The session has all that was acknowledged, `n` times five messages.
    fn has_all(&self, n: usize) {
        let mut client = self.cluster.connect(0, &session());
        assert!(client.present);
        let texts = client.receive_texts(5 * n);
        let expected: Vec<_> =
            ["before", "after"][..n].iter().flat_map(|w| (0..5).map(move |i| format!("{w} {i}"))).collect();
        assert_eq!(texts, expected);
        client.disconnect();
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn rows<K: redb::Key + 'static, V: redb::Value + 'static>(
    txn: &redb::ReadTransaction,
    table: TableDefinition<K, V>,
    out: &mut Vec<String>,
) where
    for<'a> K::SelfType<'a>: Debug,
    for<'a> V::SelfType<'a>: Debug,
{
    for row in txn.open_table(table).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        out.push(format!("{} {:?} {:?}", table.name(), key.value(), value.value()));
    }
}

/// Every row of the journal in a folder, read from a copy.
fn journal(dir: &Path) -> Vec<String> {
    let aside = TempDir::new().unwrap();
    let path = aside.path().join("journal.redb");
    std::fs::copy(dir.join("journal.redb"), &path).unwrap();
    let db = Database::open(path).unwrap();
    let txn = db.begin_read().unwrap();
    let mut out = Vec::new();
    rows(&txn, META, &mut out);
    rows(&txn, STARTS, &mut out);
    rows(&txn, TableDefinition::<u64, &[u8]>::new("log"), &mut out);
    rows(&txn, TableDefinition::<(u64, SessionNo), ()>::new("settled"), &mut out);
    rows(&txn, TableDefinition::<u64, &[u8]>::new("sessions"), &mut out);
    rows(&txn, TableDefinition::<(u64, &str), &[u8]>::new("subscriptions"), &mut out);
    out
}

/// The broker ends as one that cannot start, and says all of this.
fn refused(mut broker: Broker, words: &[&str]) {
    let status = broker.wait();
    let log = broker.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let said = log.lines().find(|l| l.starts_with("berth: ")).unwrap_or_else(|| panic!("{log}"));
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn a_copy_beside_the_node_is_refused_and_the_node_goes_on() {
    let mut scene = Scene::new();
    let copy = scene.copy("copy");
    scene.publish("after");
    let (rows, member) = (journal(&copy), scene.member());
    let before = scene.told();
    refused(
        scene.another(&copy).spawn(),
        &["process n0@", "still answers other nodes at 127.0.0.1:", "node.id"],
    );
    // Not either if the copy is not behind by what etcd was told, nor with an option that is for copies.
    refused(scene.another(&copy).arg("--set-aside-journal").spawn(), &["still answers other nodes at"]);
    refused(scene.another(&copy).arg("--accept-older-journal").spawn(), &["still answers other nodes at"]);
    assert_eq!(journal(&copy), rows, "the copy is changed");
    assert_eq!(scene.member(), member, "the lease is not the node's any more");
    assert_eq!(scene.told()["stamp"], before["stamp"]);
    assert!(scene.cluster.ready(0));
    scene.has_all(2);
}

#[test]
fn a_node_that_has_lost_its_lease_and_lives_keeps_its_place() {
    let mut scene = Scene::new();
    let copy = scene.copy("copy");
    scene.publish("after");
    scene.cluster.cut_from_etcd(0, true);
    wait::until_true("its lease has run out", || scene.cluster.members().is_empty());
    let rows = journal(&copy);
    refused(scene.another(&copy).spawn(), &["process n0@", "still answers other nodes at 127.0.0.1:"]);
    assert_eq!(journal(&copy), rows);
    scene.cluster.cut_from_etcd(0, false);
    wait::until_true("it is back", || scene.cluster.members() == ["n0"] && scene.cluster.ready(0));
    scene.has_all(2);
}

#[test]
fn a_node_of_the_release_before_keeps_its_place_and_is_followed_by_this_one() {
    // Of this release, unless `BERTH_PREVIOUS_BIN` names another program.
    let mut scene = Scene::on(BerthCluster::of_previous(1));
    let copy = scene.copy("copy");
    scene.publish("after");
    refused(scene.another(&copy).spawn(), &["process n0@", "still answers other nodes at 127.0.0.1:"]);
    assert!(scene.cluster.ready(0));
    scene.cluster.kill(0);
    scene.cluster.restart(0);
    assert_eq!(scene.told()["peer"], scene.key("members/").1["peer"]);
    scene.has_all(2);
}

#[test]
fn a_copy_in_the_place_of_a_node_that_was_killed_is_refused() {
    let mut scene = Scene::new();
    let copy = scene.copy("copy");
    let before = scene.position();
    scene.publish("after");
    // What is younger than one interval is not known to etcd.
    scene.wait_told(before);
    scene.cluster.kill(0);
    in_its_place(scene, &copy);
}

#[test]
fn a_copy_in_the_place_of_a_node_that_was_stopped_is_refused() {
    // A lease in which etcd is told nothing but at the stop.
    let options = [("cluster.lease", "5m"), ("cluster.takeover_timeout", "1s")];
    let mut scene = Scene::with(&options);
    let copy = scene.copy("copy");
    scene.publish("after");
    scene.cluster.term(0);
    assert!(scene.told().get("peer").is_none(), "{}", scene.told());
    in_its_place(scene, &copy);
}

/// The node has ended. A copy in its place is refused, and its own journal goes on with everything.
fn in_its_place(mut scene: Scene, copy: &Path) {
    let (name, told) = scene.key("journals/");
    let kept = scene.put(copy);
    let dir = scene.dir();
    let rows = journal(&dir);
    let path = format!("{:?}", dir.join("journal.redb"));
    scene.cluster.broker(0).respawn();
    let status = scene.cluster.broker(0).wait();
    let log = scene.cluster.broker(0).log();
    assert_eq!(status.code(), Some(1), "{log}");
    let said = log.lines().find(|l| l.starts_with("berth: ")).unwrap_or_else(|| panic!("{log}"));
    let (stamp, position) = (told["stamp"].as_str().unwrap(), told["position"].to_string());
    let process = told["process"].as_str().unwrap();
    let reached = rows.iter().find_map(|row| row.strip_prefix("meta \"position\" ")).unwrap();
    let words =
        [&*path, stamp, &*name, &position, process, reached, "--set-aside-journal", "--accept-older-journal"];
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert_eq!(journal(&dir), rows, "the copy is changed");
    assert_eq!(scene.told(), told);
    std::fs::copy(kept.join("journal.redb"), dir.join("journal.redb")).unwrap();
    scene.cluster.restart(0);
    scene.has_all(2);
}

#[test]
fn the_true_journal_starts_after_a_stop_and_ten_times_after_a_kill() {
    // Whoever waited for a lease or for an answer that never comes would show it.
    let mut scene = Scene::with(&[("cluster.lease", "5m"), ("cluster.takeover_timeout", "1s")]);
    scene.cluster.term(0);
    scene.cluster.restart(0);
    let mut expected = 5;
    for n in 0..10 {
        let mut publisher = scene.cluster.connect(0, &Dial::v5("pub"));
        publisher.publish("t", "more", QoS::AtLeastOnce);
        expected += 1;
        scene.cluster.kill(0);
        let began = clock::now();
        scene.cluster.restart(0);
        let took = clock::now().since_ms(began);
        assert!(took < START_MS, "start {n} took {took} ms");
    }
    assert_eq!(scene.told()["start"], 12);
    let mut client = scene.cluster.connect(0, &session());
    assert!(client.present);
    assert_eq!(client.receive_texts(expected).len(), expected);
}

/// A node that was stopped, and in its place a copy of its journal that is behind.
fn forked() -> (Scene, PathBuf) {
    let mut scene = Scene::new();
    let copy = scene.copy("copy");
    scene.publish("after");
    scene.cluster.term(0);
    (scene, copy)
}

#[test]
fn a_fork_is_set_aside_and_an_empty_journal_begun() {
    let (scene, copy) = forked();
    let rows = journal(&copy);
    let mut broker = scene.another(&copy).arg("--set-aside-journal").start();
    let said = broker.wait_log(|l| l.contains("--set-aside-journal: the journal is set aside"));
    assert!(said.contains("WARN") && said.contains("0x88") && said.contains("cluster forget n0"), "{said}");
    let aside: Vec<_> = std::fs::read_dir(&copy)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("journal.redb.aside-2"))
        .collect();
    assert!(aside.len() == 1 && said.contains(&aside[0]), "{aside:?}: {said}");
    let kept = TempDir::new().unwrap();
    std::fs::copy(copy.join(&aside[0]), kept.path().join("journal.redb")).unwrap();
    assert_eq!(journal(kept.path()), rows, "what was set aside is changed");
    // As with a lost disk: refused until it is given up.
    let (_, answer) = session().try_connect(broker.mqtt).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    let old = scene.cluster.etcd.ctl(&["get", "--prefix", "--keys-only", &format!("{ROOT}journals/")]);
    assert_eq!(old.split_whitespace().count(), 2, "{old}");
    crate::operate::ctl(broker.http, &["cluster", "forget", "n0"]).ok();
    let client = session().connect(broker.mqtt);
    assert!(!client.present);
    let left = scene.cluster.etcd.ctl(&["get", "--prefix", "--keys-only", &format!("{ROOT}journals/")]);
    assert_eq!(left.split_whitespace().count(), 1, "{left}");
    assert!(broker.stop().success());
    // The new journal is no fork, and says so.
    refused(
        scene.another(&copy).arg("--set-aside-journal").spawn(),
        &["--set-aside-journal is for a journal that is a copy of a newer one", "journal.redb\" is none"],
    );
    scene.another(&copy).start();
}

#[test]
fn a_fork_is_accepted_knowingly_and_other_copies_are_refused_then() {
    let (mut scene, copy) = forked();
    let newer = scene.dir();
    let mut broker = scene.another(&copy).arg("--accept-older-journal").start();
    let said = broker.wait_log(|l| l.contains("goes on with an older journal than etcd knows of"));
    assert!(said.contains("WARN") && said.contains("is lost"), "{said}");
    let mut client = session().connect(broker.mqtt);
    assert!(client.present);
    assert_eq!(client.receive_texts(5).len(), 5);
    client.disconnect();
    assert!(broker.stop().success());
    refused(scene.another(&newer).spawn(), &["has missed a start of it", "its own last stamp is"]);
    scene.another(&copy).start();
}

#[test]
fn options_for_forks_are_refused_where_there_is_none() {
    let (scene, _) = forked();
    let fresh = TempDir::new().unwrap();
    for flag in ["--set-aside-journal", "--accept-older-journal"] {
        let none = format!("{flag} is for a journal that is a copy of a newer one");
        refused(scene.another(fresh.path()).arg(flag).spawn(), &[&none, "Start without the option"]);
        let alone = format!("{flag} is for a node of a cluster (cluster.enabled)");
        refused(Setup::new().arg(flag).spawn(), &[&alone]);
    }
}

/// Takes from a journal what the release before has not in it.
fn make_old(dir: &Path) {
    let db = Database::open(dir.join("journal.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    assert!(txn.delete_table(STARTS).unwrap());
    txn.open_table(META).unwrap().remove("position").unwrap();
    txn.commit().unwrap();
}

#[test]
fn journals_and_records_of_the_release_before_get_stamps() {
    let mut scene = Scene::new();
    scene.cluster.term(0);
    let (key, mut record) = scene.key("custody/");
    assert_eq!(record["stamp"], scene.told()["stamp"]);
    record.as_object_mut().unwrap().remove("stamp");
    scene.cluster.etcd.ctl(&["put", &key, &record.to_string()]);
    scene.cluster.etcd.ctl(&["del", "--prefix", &format!("{ROOT}journals/")]);
    let dir = scene.dir();
    make_old(&dir);
    scene.cluster.restart(0);
    assert_eq!(scene.told()["start"], 1);
    // The journal has stamps, and etcd is new to them.
    scene.cluster.term(0);
    scene.cluster.etcd.ctl(&["del", "--prefix", "/berth/"]);
    scene.cluster.restart(0);
    assert_eq!(scene.told()["start"], 2);
    // A copy from before is none that etcd knows.
    let copy = scene.copy("copy");
    scene.cluster.term(0);
    make_old(&copy);
    refused(scene.another(&copy).spawn(), &["its own last stamp is none, at position 0"]);
}

#[test]
fn an_older_stamp_of_its_own_is_no_fork_and_a_lost_key_hides_none() {
    let mut scene = Scene::new();
    let (key, old) = scene.key("journals/");
    let copy = scene.copy("copy");
    for _ in 0..3 {
        scene.cluster.term(0);
        scene.cluster.restart(0);
    }
    scene.cluster.term(0);
    // As after etcd was restored from a backup.
    scene.cluster.etcd.ctl(&["put", &key, &old.to_string()]);
    scene.cluster.restart(0);
    assert_eq!(scene.told()["start"], 5);
    scene.has_all(1);
    scene.cluster.term(0);
    // Without the key the custody record tells.
    scene.cluster.etcd.ctl(&["del", &key]);
    refused(scene.another(&copy).spawn(), &["has missed a start of it", "/custody/n0/"]);
    scene.cluster.restart(0);
    assert_eq!(scene.told()["start"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_register_with_one_journal_the_second_is_refused() {
    let server = Server::start(1);
    let etcd = connect(&server).await;
    let entry = |stamp, looked_at| {
        let stamped = Stamped { stamp, number: 1 };
        Entry { begun: Some(Begun { stamped, position: 7, looked_at }), ..Entry::unstamped(9) }
    };
    let register = |entry: Entry| {
        let etcd = etcd.clone();
        async move { Membership::register(&etcd, &keys(), &description("a"), &entry).await }
    };
    let node = "a".into();
    let first = register(entry(1, 0)).await.unwrap();
    let looked = look(&etcd, &keys(), &node, 9).await.unwrap();
    let (told, by) = looked.told.unwrap();
    assert_eq!((told.stamp, told.number, told.position, &by), (1, Some(1), 7, first.me()));
    // Both tell of the same process.
    assert_eq!(looked.processes, [(first.me().clone(), "a:7948".to_owned())]);
    first.leave().await;
    let overtaken = register(entry(2, 0)).await.err().unwrap();
    assert!(matches!(&overtaken, RegisterError::Overtaken { by: found, .. } if *found == by), "{overtaken}");
    // One's own attempt that came to nothing is no other process.
    register(entry(1, 0)).await.unwrap().leave().await;
    let now = look(&etcd, &keys(), &node, 9).await.unwrap().revision;
    let third = register(entry(2, now)).await.unwrap();
    // A process that answers keeps its place, whatever was compared.
    let now = look(&etcd, &keys(), &node, 9).await.unwrap().revision;
    let beside = Entry { answers: std::sync::Arc::new(|_, _, _| Box::pin(async { true })), ..entry(3, now) };
    let lives = register(beside).await.err().unwrap();
    assert!(matches!(&lives, RegisterError::Lives { process, .. } if process == third.me()), "{lives}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_at_an_address_is_found_out() {
    let a = peers::Node::start("a", 7, peers::quick()).await;
    let own = PeerServer::bind("127.0.0.1:0").await.unwrap();
    let here = own.address().to_string();
    let probe = Probe::new("test", None, wait::PATIENCE, own.second_handle().unwrap());
    let there = a.address.to_string();
    let process = a.me.clone();
    assert_eq!(probe.ask("a", &there).await, Answered::Process { process, journal: peers::JOURNAL });
    let closed = free_address().to_string();
    for (node, address, expected) in [
        ("b", &*there, "node \"a\" answers here"),
        ("a", &here, "the node is starting"),
        ("a", &closed, "refused"),
        ("a", "no address", "invalid"),
    ] {
        let answered = probe.ask(node, address).await;
        assert!(
            matches!(&answered, Answered::Other(why) if why.contains(expected)),
            "{address}: {answered:?}"
        );
    }
    let elsewhere = Probe::new("other", None, wait::PATIENCE, own.second_handle().unwrap());
    let answered = elsewhere.ask("a", &there).await;
    assert!(matches!(&answered, Answered::Other(why) if why.contains("is of cluster")), "{answered:?}");
    // Somebody who listens and says nothing is waited for no longer than told.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = mute.local_addr().unwrap().to_string();
    let hasty = Probe::new("test", None, Duration::from_millis(50), own.second_handle().unwrap());
    let answered = hasty.ask("a", &mute).await;
    assert!(matches!(&answered, Answered::Other(_)), "{answered:?}");
    // The listener is as before: what comes now is for the node.
    assert_eq!(a.inbox.got.lock().len(), 0);
    assert!(a.inbox.links.lock().is_empty());
}
