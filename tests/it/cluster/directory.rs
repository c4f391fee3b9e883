//! Users, rules and bans of a cluster in etcd: changed on one node, in force on all within a second, and as last seen without etcd.

use super::nodes::BerthCluster;
use crate::broker::command;
use crate::client::{Client, Dial, In};
use crate::operate::{Said, ctl, ctl_json};
use crate::wait;
use berth::clock;
use berth::mqtt::QoS::{AtLeastOnce, AtMostOnce};
use berth::mqtt::Reason;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

/// What a change may take to hold on all nodes, milliseconds.
const PROMISED_MS: u64 = 1_000;

/// What looking for it on all nodes may take besides: some looks are checks of passwords, which are slow by design.
const LOOKS_MS: u64 = 2_000;

const ROOT: &str = "/berth/berth/v1";

/// Runs `berth ctl` with a password on standard input.
pub fn ctl_with(http: SocketAddr, args: &[&str], password: &str) -> Said {
    let mut child = command()
        .arg("ctl")
        .args(args)
        .env("BERTH_URL", format!("http://{http}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses its arguments does not read it.
    let _ = writeln!(child.stdin.take().unwrap(), "{password}");
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn with_users(more: &[(&str, &str)]) -> BerthCluster {
    BerthCluster::with(3, 1, &[&[("auth.password.store", "etcd")], more].concat())
}

fn answer(cluster: &BerthCluster, node: usize, dial: &Dial) -> Reason {
    match dial.try_connect(cluster.mqtt(node)).unwrap().1 {
        In::ConnAck { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn user(client: &str, name: &str, password: &str) -> Dial {
    Dial::v5(client).user(name, password)
}

fn add_user(cluster: &BerthCluster, node: usize, name: &str, password: &str, more: &[&str]) {
    ctl_with(cluster.http(node), &[&["users", "add", name], more].concat(), password).ok();
}

/// Every node says so within the time that is promised.
fn soon(cluster: &BerthCluster, what: &str, holds: impl Fn(usize) -> bool) {
    let begun = clock::now();
    for node in 0..cluster.len() {
        wait::until_true(&format!("{what} on n{node}"), || holds(node));
    }
    let took = clock::now().since_ms(begun);
    assert!(took <= PROMISED_MS + LOOKS_MS, "{what} took {took} ms on all nodes");
}

fn closes_with(client: &mut Client, reason: Reason) {
    assert_eq!(client.expect_closed(), Some(reason));
}

#[test]
fn users_are_known_to_all_nodes_and_changes_end_their_connections() {
    let mut cluster = with_users(&[]);
    // There are accounts, though no user: nobody is anonymous.
    for node in 0..3 {
        assert_eq!(answer(&cluster, node, &Dial::v5("x")), Reason::NotAuthorized);
        assert_eq!(answer(&cluster, node, &user("x", "alice", "one")), Reason::BadUserNameOrPassword);
    }
    add_user(&cluster, 0, "alice", "one", &["--group", "ops", "--scram"]);
    soon(&cluster, "alice is let in", |i| {
        answer(&cluster, i, &user(&format!("t{i}"), "alice", "one")) == Reason::Success
    });
    add_user(&cluster, 1, "bob", "two", &[]);
    soon(&cluster, "bob is let in", |i| {
        answer(&cluster, i, &user(&format!("b{i}"), "bob", "two")) == Reason::Success
    });
    let connect = |name: &str, password: &str| -> Vec<Client> {
        (0..3).map(|i| cluster.connect(i, &user(&format!("{name}{i}"), name, password))).collect()
    };
    let (mut alices, mut bobs) = (connect("alice", "one"), connect("bob", "two"));
    let list = ctl_json(cluster.http(2), &["users", "list"]);
    assert_eq!((&list["source"], &list["total"]), (&"etcd".into(), &2.into()), "{list}");
    let shown = ctl(cluster.http(2), &["users", "show", "alice"]).ok();
    assert!(
        shown.contains("ops") && shown.contains("argon2id") && shown.contains("scram     yes"),
        "{shown}"
    );

    // A new password keeps groups and keys, and ends the connections of this user only.
    let said = ctl_with(cluster.http(1), &["users", "passwd", "alice"], "three").ok();
    assert!(said.contains("new password"), "{said}");
    let begun = clock::now();
    alices.iter_mut().for_each(|c| closes_with(c, Reason::NotAuthorized));
    assert!(clock::now().since_ms(begun) <= PROMISED_MS);
    bobs.iter_mut().for_each(Client::ping);
    let shown = ctl(cluster.http(0), &["users", "show", "alice"]).ok();
    assert!(shown.contains("ops") && shown.contains("scram     yes"), "{shown}");
    for i in 0..3 {
        assert_eq!(answer(&cluster, i, &user("y", "alice", "one")), Reason::BadUserNameOrPassword);
        assert_eq!(answer(&cluster, i, &user("y", "alice", "three")), Reason::Success);
    }
    // The same for a user that is removed.
    ctl(cluster.http(2), &["users", "remove", "bob"]).ok();
    let begun = clock::now();
    bobs.iter_mut().for_each(|c| closes_with(c, Reason::NotAuthorized));
    assert!(clock::now().since_ms(begun) <= PROMISED_MS);
    for i in 0..3 {
        assert_eq!(answer(&cluster, i, &user("z", "bob", "two")), Reason::BadUserNameOrPassword);
    }
    for (args, words) in [
        (&["users", "add", "alice"][..], "already"),
        (&["users", "passwd", "bob"], "there is no user"),
        (&["users", "remove", "bob"], "there is no user"),
        (&["users", "show", "bob"], "there is no user"),
        (&["users", "add", "a:b"], "cannot be a user's name"),
        (&["users", "add", "carol", "--group", "a,b"], "cannot be a group's name"),
    ] {
        let said = ctl_with(cluster.http(0), args, "pw");
        assert!(said.code != 0 && said.err.contains(words), "{args:?}: {said:?}");
    }
    // Neither log nor answers have a secret.
    let stored = cluster.etcd.ctl(&["get", "--print-value-only", &format!("{ROOT}/users/alice")]);
    assert!(stored.contains("$argon2id$"), "{stored}");
    let logs: String = (0..3).map(|i| cluster.broker(i).log()).collect();
    assert!(!logs.contains("$argon2id$") && !logs.contains("three"), "{logs}");
    assert!(logs.contains("user change"), "the audit log has it");
}

#[test]
fn rules_stop_delivery_on_all_nodes_and_the_first_is_confirmed_for_all() {
    let cluster = BerthCluster::with(3, 1, &[]);
    let mut subs: Vec<Client> = (0..3)
        .map(|i| {
            let mut client = cluster.connect(i, &Dial::v5(&format!("sub{i}")));
            assert_eq!(client.subscribe(&[("a/#", AtLeastOnce), ("end", AtLeastOnce)]), [1, 1]);
            client
        })
        .collect();
    let mut publisher = cluster.connect(1, &Dial::v5("publisher"));
    publisher.publish("a/x", "before", AtLeastOnce);
    subs.iter_mut().for_each(|c| assert_eq!(c.receive().text(), "before"));
    // Sessions of all nodes would lose something.
    let first = ["acl", "add", "allow", "all", "#", "--client", "publisher"];
    let said = ctl(cluster.http(0), &first).failed(1);
    for who in ["--yes", "sub0", "sub1", "sub2"] {
        assert!(said.contains(who), "{who} in {said}");
    }
    assert!(!said.contains("publisher"), "{said}");
    assert_eq!(ctl(cluster.http(2), &["acl", "list"]).ok().lines().next(), Some("acl/rules (etcd)"));
    ctl(cluster.http(0), &[&first[..], &["--yes"]].concat()).ok();
    ctl(cluster.http(1), &["acl", "add", "allow", "all", "end"]).ok();
    soon(&cluster, "both rules", |i| cluster.metric(i, "berth_acl_rules") == 2.0);
    // They are in no file: a reload leaves them.
    (0..3).for_each(|i| drop(ctl(cluster.http(i), &["reload"]).ok()));
    publisher.publish("a/x", "denied", AtLeastOnce);
    publisher.publish("end", "end", AtLeastOnce);
    subs.iter_mut().for_each(|c| assert_eq!(c.receive().text(), "end", "what is denied is not delivered"));
    // Moving and removing, on another node each.
    ctl(cluster.http(2), &["acl", "add", "deny", "all", "end", "--at", "1"]).ok();
    ctl(cluster.http(0), &["acl", "move", "1", "3"]).ok();
    let rules = |i: usize| {
        let list = ctl_json(cluster.http(i), &["acl", "list"]);
        let rules = list["rules"].as_array().unwrap().clone();
        rules.iter().map(|r| r["rule"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let expected = ["allow all # clients=publisher", "allow all end", "deny all end"];
    soon(&cluster, "the order", |i| rules(i) == expected);
    ctl(cluster.http(1), &["acl", "remove", "3"]).ok();
    ctl(cluster.http(1), &["acl", "remove", "2"]).ok();
    soon(&cluster, "one rule", |i| rules(i) == expected[..1]);
    publisher.publish("end", "denied", AtLeastOnce);
    subs.iter_mut().for_each(Client::ping);
    // Without rules all is as before; nobody was disconnected by any of it.
    ctl(cluster.http(2), &["acl", "remove", "1"]).ok();
    soon(&cluster, "no rule", |i| rules(i).is_empty());
    publisher.publish("a/x", "after", AtLeastOnce);
    subs.iter_mut().for_each(|c| assert_eq!(c.receive().text(), "after"));
    let said = ctl(cluster.http(0), &["acl", "remove", "1"]).failed(1);
    assert!(said.contains("there is no rule 1"), "{said}");
}

#[test]
fn a_ban_closes_the_connection_on_whichever_node_it_is() {
    let mut cluster = BerthCluster::with(3, 1, &[]);
    let mut bad: Vec<Client> = (0..3).map(|i| cluster.connect(i, &Dial::v5(&format!("bad{i}")))).collect();
    let mut good: Vec<Client> = (0..3).map(|i| cluster.connect(i, &Dial::v5(&format!("good{i}")))).collect();
    for (i, client) in bad.iter_mut().enumerate() {
        let name = format!("bad{i}");
        let other = (i + 1) % 3;
        ctl(cluster.http(other), &["bans", "add", "client", &name, "--reason", "noise", "--for", "1h"]).ok();
        let begun = clock::now();
        closes_with(client, Reason::AdministrativeAction);
        assert!(clock::now().since_ms(begun) <= PROMISED_MS, "{name}");
        soon(&cluster, "the ban", |node| answer(&cluster, node, &Dial::v5(&name)) == Reason::Banned);
    }
    good.iter_mut().for_each(Client::ping);
    (0..3).for_each(|i| drop(ctl(cluster.http(i), &["reload"]).ok()));
    let list = ctl(cluster.http(0), &["bans", "list"]).ok();
    assert!(["bad0", "bad1", "bad2", "noise"].iter().all(|word| list.contains(word)), "{list}");
    // It holds over a restart, and ends on all nodes.
    cluster.term(1);
    cluster.restart(1);
    good[1] = cluster.connect(1, &Dial::v5("good1"));
    assert_eq!(answer(&cluster, 1, &Dial::v5("bad0")), Reason::Banned);
    ctl(cluster.http(1), &["bans", "remove", "client", "bad0"]).ok();
    soon(&cluster, "the end of the ban", |node| answer(&cluster, node, &Dial::v5("bad0")) == Reason::Success);
    let said = ctl(cluster.http(2), &["bans", "remove", "client", "bad0"]).failed(1);
    assert!(said.contains("there is no such ban"), "{said}");
    // One for a time passes, and the next order clears it away.
    ctl(cluster.http(2), &["bans", "add", "address", "127.0.0.0/8", "--for", "2s"]).ok();
    good.iter_mut().for_each(|c| closes_with(c, Reason::AdministrativeAction));
    for node in 0..3 {
        wait::until_true("the ban has passed", || answer(&cluster, node, &Dial::v5("g")) == Reason::Success);
    }
    ctl(cluster.http(0), &["bans", "remove", "client", "bad1"]).ok();
    let keys = cluster.etcd.ctl(&["get", "--prefix", &format!("{ROOT}/bans/"), "--keys-only"]);
    assert_eq!(keys.split_whitespace().collect::<Vec<_>>(), [format!("{ROOT}/bans/client/bad2")]);
}

#[test]
fn an_outage_of_etcd_changes_nobodys_rights() {
    let mut cluster = with_users(&[("cluster.takeover_timeout", "2s")]);
    add_user(&cluster, 0, "alice", "one", &[]);
    add_user(&cluster, 0, "bob", "two", &[]);
    ctl(cluster.http(0), &["acl", "add", "allow", "all", "open/#", "--yes"]).ok();
    ctl(cluster.http(0), &["bans", "add", "client", "bad"]).ok();
    soon(&cluster, "all of it", |i| {
        answer(&cluster, i, &user(&format!("first{i}"), "bob", "two")) == Reason::Success
            && answer(&cluster, i, &user("bad", "alice", "one")) == Reason::Banned
            && cluster.metric(i, "berth_acl_rules") == 1.0
    });
    let known = |i: usize| user(&format!("alice{i}"), "alice", "one").persistent();
    let mut clients: Vec<Client> = (0..3).map(|i| cluster.connect(i, &known(i))).collect();
    clients.iter_mut().for_each(|c| assert_eq!(c.subscribe(&[("open/#", AtMostOnce)]), [0]));

    cluster.etcd.kill(0);
    wait::until_true("etcd is missed", || {
        !cluster.status(0)["cluster"]["etcd"]["reachable"].as_bool().unwrap()
    });
    for (i, client) in clients.iter_mut().enumerate() {
        client.ping();
        assert_eq!(client.publish_with("closed", b"", AtLeastOnce, false), Reason::NotAuthorized);
        assert!(!client.publish_with("open/x", b"", AtLeastOnce, false).is_error());
        assert_eq!(answer(&cluster, i, &user("other", "alice", "wrong")), Reason::BadUserNameOrPassword);
        assert_eq!(answer(&cluster, i, &user("bad", "alice", "one")), Reason::Banned);
        assert_eq!(answer(&cluster, i, &Dial::v5("nobody")), Reason::NotAuthorized);
    }
    // Whose session is here needs no etcd.
    drop(clients.remove(0));
    let mut back = cluster.connect(0, &known(0));
    assert!(back.present);
    assert_eq!(back.publish_with("closed", b"", AtLeastOnce, false), Reason::NotAuthorized);
    for (args, password) in [
        (&["users", "passwd", "bob"][..], "pw"),
        (&["acl", "remove", "1"], ""),
        (&["bans", "remove", "client", "bad"], ""),
    ] {
        let said = ctl_with(cluster.http(0), args, password);
        assert!(said.code == 1 && said.err.contains("etcd"), "{args:?}: {said:?}");
    }
    // A node that starts again lets nobody in before it has read etcd.
    cluster.kill(2);
    cluster.broker(2).respawn();
    cluster.broker(2).wait_log(|line| line.contains("is tried again until it succeeds"));
    assert_eq!(cluster.broker(2).try_get("/ready").map(|(status, _)| status), Some(503));
    cluster.etcd.restart(0);
    cluster.etcd.wait_healthy(0);
    cluster.broker(2).wait_ready();
    for i in 0..3 {
        wait::until_true("bob is let in", || {
            answer(&cluster, i, &user(&format!("bob{i}"), "bob", "two")) == Reason::Success
        });
        assert_eq!(answer(&cluster, i, &user("bad", "alice", "one")), Reason::Banned);
        assert_eq!(answer(&cluster, i, &Dial::v5("nobody")), Reason::NotAuthorized);
        let mut client = cluster.connect(i, &user(&format!("again{i}"), "alice", "one"));
        assert_eq!(client.publish_with("closed", b"", AtLeastOnce, false), Reason::NotAuthorized);
    }
    ctl_with(cluster.http(1), &["users", "passwd", "bob"], "new").ok();
    soon(&cluster, "changes go on", |i| answer(&cluster, i, &user("late", "bob", "new")) == Reason::Success);
}

/// What a node says it cannot read.
fn unreadable(cluster: &BerthCluster, node: usize) -> String {
    cluster.status(node)["cluster"]["directory_unreadable"].to_string()
}

#[test]
fn what_cannot_be_read_opens_nothing_and_is_named() {
    let mut cluster = with_users(&[("auth.allow_anonymous", "true")]);
    add_user(&cluster, 0, "alice", "one", &[]);
    ctl(cluster.http(0), &["acl", "add", "allow", "all", "open/#", "--yes"]).ok();
    ctl(cluster.http(0), &["bans", "add", "client", "bad"]).ok();
    soon(&cluster, "all of it", |i| {
        answer(&cluster, i, &user(&format!("t{i}"), "alice", "one")) == Reason::Success
            && answer(&cluster, i, &Dial::v5("bad")) == Reason::Banned
            && cluster.metric(i, "berth_acl_rules") == 1.0
    });
    let mut alice = cluster.connect(1, &user("alice", "alice", "one"));
    let good = cluster.etcd.ctl(&["get", "--print-value-only", &format!("{ROOT}/users/alice")]);
    for (key, value) in [
        ("users/alice", r#"{"v":1,"hash":"hunter2"}"#),
        ("acl/rules", r#"{"v":2}"#),
        ("bans/client/bad", "?"),
        ("users/zoe", "?"),
    ] {
        cluster.etcd.ctl(&["put", &format!("{ROOT}/{key}"), value]);
    }
    closes_with(&mut alice, Reason::NotAuthorized);
    let closed = |cluster: &BerthCluster, i: usize| {
        assert_eq!(answer(cluster, i, &user("a", "alice", "one")), Reason::BadUserNameOrPassword, "n{i}");
        assert_eq!(answer(cluster, i, &Dial::v5("bad")), Reason::Banned, "n{i}");
        let mut client = cluster.connect(i, &Dial::v5(&format!("c{i}")));
        assert_eq!(client.publish_with("closed", b"", AtLeastOnce, false), Reason::NotAuthorized, "n{i}");
        assert!(!client.publish_with("open/x", b"", AtLeastOnce, false).is_error(), "n{i}");
    };
    for i in 0..3 {
        wait::until_true("the keys are named", || {
            let named = unreadable(&cluster, i);
            ["users/alice", "users/zoe", "acl/rules", "bans/client/bad"].iter().all(|key| named.contains(key))
        });
        closed(&cluster, i);
        let log = cluster.broker(i).log();
        for key in ["users/alice", "users/zoe", "acl/rules", "bans/client/bad"] {
            let told = log.lines().filter(|l| l.contains("cannot be read") && l.contains(key)).count();
            assert_eq!(told, 1, "{key} once in {log}");
        }
        assert!(!log.contains("hunter2"), "{log}");
    }
    // The journal has the last ones that could be read; a node without one denies everything.
    cluster.term(1);
    cluster.restart(1);
    closed(&cluster, 1);
    cluster.wipe(2);
    let mut client = cluster.connect(2, &Dial::v5("empty"));
    assert_eq!(client.publish_with("open/x", b"", AtLeastOnce, false), Reason::NotAuthorized);
    let said = ctl(cluster.http(0), &["acl", "remove", "1"]).failed(1);
    assert!(said.contains("acl/rules in etcd cannot be read"), "{said}");
    // A key that is gone does not take the rules away, and the next change writes them again.
    cluster.etcd.ctl(&["put", &format!("{ROOT}/users/alice"), good.trim()]);
    cluster.etcd.ctl(&["del", &format!("{ROOT}/acl/rules")]);
    soon(&cluster, "alice is back", |i| answer(&cluster, i, &user("b", "alice", "one")) == Reason::Success);
    let mut client = cluster.connect(0, &Dial::v5("last"));
    assert_eq!(client.publish_with("closed", b"", AtLeastOnce, false), Reason::NotAuthorized);
    ctl(cluster.http(0), &["acl", "add", "allow", "all", "more/#"]).ok();
    soon(&cluster, "two rules", |i| cluster.metric(i, "berth_acl_rules") == 2.0);
    assert!(!unreadable(&cluster, 0).contains("acl/rules"));
    assert!(!client.publish_with("more/x", b"", AtLeastOnce, false).is_error());
}

#[test]
fn a_restored_etcd_has_the_users_of_its_backup() {
    let mut cluster = BerthCluster::with(
        2,
        1,
        &[("auth.password.store", "etcd"), ("cluster.lease", "2s"), ("cluster.stale_after", "1s")],
    );
    add_user(&cluster, 0, "alice", "one", &[]);
    add_user(&cluster, 0, "bob", "two", &[]);
    let backup = cluster.etcd.save();
    ctl(cluster.http(1), &["users", "remove", "alice"]).ok();
    ctl_with(cluster.http(1), &["users", "passwd", "bob"], "three").ok();
    ctl(cluster.http(1), &["acl", "add", "allow", "all", "open/#", "--yes"]).ok();
    soon(&cluster, "the changes", |i| {
        answer(&cluster, i, &user("b", "bob", "three")) == Reason::Success
            && cluster.metric(i, "berth_acl_rules") == 1.0
    });
    (0..2).for_each(|i| cluster.term(i));
    cluster.etcd.restore(&backup);
    (0..2).for_each(|i| cluster.restart(i));
    // What etcd has counts, but rules that were seen are not given up because a backup has none.
    for i in 0..2 {
        wait::until_true("bob is let in", || {
            answer(&cluster, i, &user(&format!("bob{i}"), "bob", "two")) == Reason::Success
        });
        assert_eq!(answer(&cluster, i, &user("b", "bob", "three")), Reason::BadUserNameOrPassword);
        assert_eq!(answer(&cluster, i, &user(&format!("alice{i}"), "alice", "one")), Reason::Success);
        let mut client = cluster.connect(i, &user(&format!("c{i}"), "bob", "two"));
        assert_eq!(client.publish_with("closed", b"", AtLeastOnce, false), Reason::NotAuthorized);
        assert!(unreadable(&cluster, i).contains("acl/rules"));
    }
}
