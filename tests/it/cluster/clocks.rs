//! Nodes whose clocks differ: what expires does so when it should, wherever it goes, and the difference is shown. The clocks are moved by
//! Debian's faketime; the monotonic ones are not, so that timers and leases are as they are.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In, Received};
use crate::operate::{ctl, ctl_json};
use crate::wait;
use berth::clock::{self, Time};
use berth::mqtt::QoS;
use berth::mqtt::client::AckKind;
use serde_json::Value;

const QUICK: &[(&str, &str)] = &[
    ("cluster.lease", "4s"),
    ("cluster.stale_after", "2s"),
    ("cluster.suback_wait", "3s"),
    ("cluster.peer_timeout", "1s"),
];

/// How wrong the clocks are in these tests: as faketime takes it, and in milliseconds.
const WRONG: &[(&str, i64)] = &[("+30s", 30_000), ("-30s", -30_000), ("+1h", 3_600_000), ("-1h", -3_600_000)];

/// How long messages last, seconds.
const LASTS_S: u32 = 20;

/// By how much an interval may be off, seconds: one for rounding, one for the hop.
const OFF_S: u64 = 2;

/// The message expiry interval that came with a message.
fn interval(p: &Received) -> Option<u64> {
    let property = p.properties.iter().find_map(|p| p.strip_prefix("MessageExpiryInterval("))?;
    property.trim_end_matches(')').parse().ok()
}

/// That a message of `seconds` since `published` has the time left that it should.
fn assert_left(p: &Received, seconds: u32, published: Time, what: &str) {
    let Some(left) = interval(p) else { panic!("{what}: no expiry: {p:?}") };
    let passed = clock::now().since_ms(published).div_ceil(1000);
    let least = u64::from(seconds).saturating_sub(passed + OFF_S);
    assert!((least..=u64::from(seconds)).contains(&left), "{what}: {left} s after {passed} of {seconds}");
}

/// Publishes a message that expires, retained; returns when.
fn retain(client: &mut Client, topic: &str, seconds: u32) -> Time {
    let published = clock::now();
    let id = client.send_expiring(topic, b"kept", seconds).unwrap();
    let reason = client.wait_for("PUBACK", |p| match p {
        In::PubAck(of, reason) if *of == id => Some(*reason),
        _ => None,
    });
    assert!(!reason.is_error(), "{reason:?}");
    published
}

/// What is left of a retained message at node `i`.
fn retained_at(cluster: &BerthCluster, i: usize, topic: &str) -> Received {
    let mut client = cluster.connect(i, &Dial::v5(&format!("reads{i}")));
    client.subscribe(&[(topic, QoS::AtLeastOnce)]);
    client.receive()
}

/// Waits until a node has reckoned the cluster's time that is ahead of its clock by so much.
fn wait_time(cluster: &BerthCluster, i: usize, ahead_ms: i64) -> Value {
    cluster.wait_status(i, "the cluster's time", |s| {
        let clock = &s["cluster"]["clock"];
        let off = clock["cluster_time_ahead_ms"].as_i64().map(|ms| ms.abs_diff(ahead_ms));
        clock["cluster_time_known"] == true && off.is_some_and(|off| off < 1_000)
    })
}

#[test]
fn queued_messages_have_their_time_left_wherever_their_session_goes() {
    for (wrong, _) in WRONG {
        let cluster = BerthCluster::with_clocks(&["", wrong], QUICK);
        for (home, publishes) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let what = format!("{wrong}: from node {home}, published at node {publishes}");
            let dial = Dial::v5(&format!("moves{home}{publishes}")).persistent();
            let topic = format!("jobs/{home}/{publishes}");
            let mut client = cluster.connect(home, &dial);
            client.subscribe(&[(&topic, QoS::AtLeastOnce)]);
            let mut publisher = cluster.connect(publishes, &Dial::v5("publisher"));
            // One that the client has had and not acknowledged, one that waits.
            let first = retain(&mut publisher, &topic, LASTS_S);
            assert_left(&client.receive_only(), LASTS_S, first, &what);
            client.disconnect();
            let second = retain(&mut publisher, &topic, LASTS_S);
            for i in [1 - home, home] {
                let mut client = cluster.connect(i, &dial);
                assert!(client.present, "{what}");
                for (at, kind) in [(first, "sent before"), (second, "queued")] {
                    assert_left(&client.receive_only(), LASTS_S, at, &format!("{what}, {kind}, at node {i}"));
                }
                client.disconnect();
            }
        }
    }
}

#[test]
fn what_is_published_beside_a_wrong_clock_has_its_time_left_elsewhere() {
    for (wrong, _) in WRONG {
        let cluster = BerthCluster::with_clocks(&["", wrong], QUICK);
        for (from, to) in [(0, 1), (1, 0)] {
            let mut subscriber = cluster.connect(to, &Dial::v5("subscriber").persistent());
            let topic = format!("news/{from}");
            subscriber.subscribe(&[(&topic, QoS::AtLeastOnce)]);
            let published = retain(&mut cluster.connect(from, &Dial::v5("publisher")), &topic, LASTS_S);
            let came = subscriber.receive_only();
            assert_left(&came, LASTS_S, published, &format!("{wrong}: from {from} to {to}"));
            assert_eq!(interval(&came).map(|left| left + OFF_S >= u64::from(LASTS_S)), Some(true));
            subscriber.ack(AckKind::PubAck, came.packet_id).unwrap();
        }
    }
}

#[test]
fn retained_messages_last_as_long_as_they_should_on_all_nodes() {
    for (wrong, ms) in &WRONG[2..] {
        for at in 0..3 {
            let mut clocks = [""; 3];
            clocks[at] = *wrong;
            let mut cluster = BerthCluster::with_clocks(&clocks, QUICK);
            // Whoever was there first.
            for i in 0..3 {
                wait_time(&cluster, i, if i == at { -ms } else { 0 });
            }
            let mut published = Vec::new();
            for i in 0..3 {
                let mut client = cluster.connect(i, &Dial::v5("publisher"));
                published.push(retain(&mut client, &format!("kept/{i}"), 60));
                retain(&mut client, &format!("short/{i}"), 3);
            }
            let began = clock::now();
            let value = cluster.etcd.ctl(&["get", "/berth/berth/v1/retained/kept/0", "--print-value-only"]);
            let value: Value = serde_json::from_str(&value).unwrap();
            let expected = published[0].plus_ms(60_000).as_millis();
            assert!(
                value["expires"].as_u64().unwrap().abs_diff(expected) < 2_000,
                "{value} is not {expected}"
            );
            let all = |cluster: &BerthCluster, nodes: &[usize]| {
                for (from, since) in published.iter().enumerate() {
                    for i in nodes {
                        let p = retained_at(cluster, *i, &format!("kept/{from}"));
                        assert_left(&p, 60, *since, &format!("{clocks:?}: of node {from} at node {i}"));
                    }
                }
            };
            all(&cluster, &[0, 1, 2]);
            // The leader, whoever it is, takes away what has expired, and not before.
            let short = ["get", "--prefix", "/berth/berth/v1/retained/short/", "--keys-only"];
            wait::until_true("what has expired goes", || cluster.etcd.ctl(&short).is_empty());
            assert!(clock::now().since_ms(began) > 2_000, "{clocks:?}: too early");
            // The wrong clock is the only one that is left, and then another process comes.
            let others: Vec<usize> = (0..3).filter(|i| *i != at).collect();
            others.iter().for_each(|i| cluster.kill(*i));
            wait::until_true("they are gone", || cluster.members().len() == 1);
            wait::until_true("it leads", || cluster.leader() == Some(at));
            all(&cluster, &[at]);
            cluster.restart(others[0]);
            all(&cluster, &[at, others[0]]);
        }
    }
}

#[test]
fn nothing_in_etcd_expires_before_the_clocks_are_measured() {
    for (wrong, ms) in &WRONG[2..] {
        let mut cluster = BerthCluster::with_clocks(&[wrong, "", ""], QUICK);
        wait_time(&cluster, 1, 0);
        let published = retain(&mut cluster.connect(1, &Dial::v5("publisher")), "kept", 120);
        (0..3).for_each(|i| cluster.kill(i));
        // The one with the wrong clock is back first, and leads.
        cluster.restart(0);
        wait::until_true("it leads", || cluster.leader() == Some(0));
        assert!(interval(&retained_at(&cluster, 0, "kept")).is_some_and(|left| left > 0));
        assert_eq!(cluster.status(0)["cluster"]["clock"]["cluster_time_known"], false);
        let text = ctl(cluster.http(0), &["cluster", "status"]).ok();
        assert!(text.contains("the cluster's time is not known yet"), "{text}");
        (1..3).for_each(|i| cluster.restart(i));
        for i in 0..3 {
            wait_time(&cluster, i, if i == 0 { -ms } else { 0 });
            assert_left(&retained_at(&cluster, i, "kept"), 120, published, &format!("{wrong}: at node {i}"));
        }
    }
}

#[test]
fn sessions_of_a_dead_node_end_by_time_whatever_the_leaders_clock_shows() {
    const EXPIRY_S: u32 = 6;
    for (wrong, _) in &WRONG[2..] {
        let mut cluster = BerthCluster::with_clocks(&["", wrong], QUICK);
        cluster.term(0);
        wait::until_true("the one with the wrong clock leads", || cluster.leader() == Some(1));
        cluster.restart(0);
        let dial = Dial::v5("short").persistent().expiry(EXPIRY_S);
        let mut client = cluster.connect(0, &dial);
        client.subscribe(&[("jobs", QoS::AtLeastOnce)]);
        let killed = clock::now();
        cluster.kill(0);
        wait::until_true("the session is over", || cluster.owner("short").is_null());
        let passed = clock::now().since_ms(killed);
        assert!(passed >= u64::from(EXPIRY_S) * 1000, "{wrong}: after {passed} ms");
        let gone =
            cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/custody/n0/", "--print-value-only"]);
        let gone: Value = serde_json::from_str(gone.lines().next().unwrap_or_default()).unwrap();
        assert!(gone["gone"].as_u64().is_some(), "{gone}");
    }
}

#[test]
fn a_wrong_clock_is_shown_and_said_once() {
    let mut cluster = BerthCluster::with_clocks(&["", "+30s", ""], QUICK);
    let line = cluster.broker(1).wait_log(|l| l.contains("the clock of this node differs"));
    for words in ["WARN", "+30.0s", "set it right", "cluster.max_clock_difference"] {
        assert!(line.contains(words), "{words:?} is not in {line}");
    }
    let line = cluster.broker(0).wait_log(|l| l.contains("the clock of a node differs"));
    for words in ["WARN", "+30.0s", "n1"] {
        assert!(line.contains(words), "{words:?} is not in {line}");
    }
    let near = |value: f64, expected: f64| (value - expected).abs() < 1.0;
    for (i, expected) in [(0, 0.0), (1, 30.0), (2, 0.0)] {
        wait::until_true("the metric", || {
            near(cluster.metric(i, "berth_clock_difference_seconds"), expected)
        });
        let status = cluster.wait_status(i, "all clocks are measured", |s| {
            let members = s["cluster"]["members"].as_array();
            members.is_some_and(|m| m.iter().all(|m| m["clock_difference_ms"].is_i64()))
        });
        let members = &status["cluster"]["members"];
        for (m, expected) in [(0, 0.0), (1, 30_000.0), (2, 0.0)] {
            let member = &members[m];
            assert!(
                near(member["clock_difference_ms"].as_f64().unwrap() / 1000.0, expected / 1000.0),
                "{member}"
            );
            assert_eq!(member["clock_apart"], m == 1, "{member}");
            assert!(member["uptime_seconds"].as_u64().unwrap() < 25, "{member}");
        }
        assert_eq!(status["cluster"]["clock"]["limit_ms"], 2_000);
        let text = ctl(cluster.http(i), &["cluster", "status"]).ok();
        assert!(
            text.contains("THE CLOCK OF n1 IS ") && text.contains("s ahead of the cluster's median"),
            "{text}"
        );
        let json = ctl_json(cluster.http(i), &["cluster", "status"]);
        assert_eq!(json["cluster"]["members"][1]["clock_apart"], true);
    }
    // A session elsewhere is shown by the clock there.
    let _client = cluster.connect(1, &Dial::v5("here"));
    let shown = ctl_json(cluster.http(0), &["sessions", "show", "here"]);
    let (as_of, since) = (&shown["session"]["as_of"], &shown["session"]["connection"]["since"]);
    assert!(as_of.as_u64().unwrap() - since.as_u64().unwrap() < 25_000, "{shown}");
    let text = ctl(cluster.http(0), &["sessions", "show", "here"]).ok();
    assert!(text.contains(", since "), "{text}");
    // Set right and restarted.
    cluster.term(1);
    cluster.set_clock(1, "");
    cluster.restart(1);
    wait_time(&cluster, 1, 0);
    wait::until_true("it is right", || {
        (0..3).all(|i| cluster.status(i)["cluster"]["members"][1]["clock_apart"] == false)
    });
    let said = cluster.broker(0).log();
    assert_eq!(said.matches("the clock of a node differs").count(), 1, "{said}");
}
