//! An operator's view of a cluster, from any node.

use super::nodes::BerthCluster;
use crate::client::{Dial, In};
use crate::long_names::{ctl_reading, longest, readable};
use crate::operate::{ctl, ctl_json};
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason};

fn member<'a>(status: &'a serde_json::Value, node: &str) -> &'a serde_json::Value {
    let members = status["cluster"]["members"].as_array().unwrap();
    members.iter().find(|m| m["node"] == node).unwrap_or(&serde_json::Value::Null)
}

#[test]
fn every_node_shows_the_cluster_and_its_sessions() {
    let mut cluster = BerthCluster::start(2);
    let http: Vec<_> = (0..2).map(|i| cluster.broker(i).http).collect();
    let status = cluster.wait_status(0, "links are up, one leads, all is applied", |s| {
        let there = member(s, "n1");
        there["link"]["state"] == "up"
            && there["applied_revision"].as_u64().is_some_and(|r| r > 0)
            && s["cluster"]["leader"].is_string()
            && s["cluster"]["current"] == true
    });
    let view = &status["cluster"];
    assert_eq!(
        (&status["mode"], &view["name"], &view["current"]),
        (&"cluster".into(), &"berth".into(), &true.into())
    );
    assert_eq!(view["waiting"], serde_json::json!([]));
    assert_eq!((&view["etcd"]["reachable"], &view["may_serve"]), (&true.into(), &true.into()));
    assert!(view["lease_for_ms"].as_u64().unwrap() > 0);
    assert!(member(&status, "n0")["link"].is_null());
    let text = ctl(http[0], &["cluster", "status"]).ok();
    for words in ["cluster berth", "leader n", "n1", "(asked)", "held publishes 0", "answers"] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }

    let mut here = cluster.connect(0, &Dial::v5("here").persistent());
    here.subscribe(&[("a/#", QoS::AtLeastOnce)]);
    let mut there = cluster.connect(1, &Dial::v5("there").persistent());
    there.subscribe(&[("a/b", QoS::AtLeastOnce)]);
    let page = ctl_json(http[0], &["sessions", "list", "--cluster"]);
    let lives: Vec<_> = page["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["client_id"].clone(), s["node"].clone()))
        .collect();
    assert_eq!(lives, [("here".into(), "n0".into()), ("there".into(), "n1".into())]);
    assert_eq!(ctl_json(http[0], &["sessions", "list"])["sessions"].as_array().unwrap().len(), 1);
    let shown = ctl_json(http[0], &["sessions", "show", "there"]);
    assert_eq!(shown["session"]["filters"][0]["filter"], "a/b");
    assert!(shown["holder"].as_str().unwrap().starts_with("n1@"), "{shown}");
    let routes = ctl_json(http[0], &["routes", "show", "a/b"]);
    assert_eq!(routes["sessions"][0]["client_id"], "here");
    assert_eq!(
        (&routes["nodes"][0]["node"], &routes["nodes"][0]["persistent"]),
        (&"n1".into(), &true.into())
    );

    let said = ctl(http[0], &["sessions", "kick", "there"]).ok();
    assert_eq!(said, "the connection of there on node n1 is closed; its session stays\n");
    assert_eq!(there.expect_closed(), Some(Reason::AdministrativeAction));
    let said = ctl(http[0], &["cluster", "forget", "n1"]).failed(1);
    assert!(said.contains("node n1 is a live member"), "{said}");
    assert!(ctl(http[0], &["cluster", "forget", "n9"]).failed(1).contains("nothing of a node n9 is known"));
    assert!(ctl(http[0], &["sessions", "show", "nobody"]).failed(1).contains("no session"));
}

#[test]
fn any_node_shows_and_kicks_a_client_identifier_of_65535_bytes() {
    let mut cluster = BerthCluster::start(2);
    let http: Vec<_> = (0..2).map(|i| cluster.broker(i).http).collect();
    let (here, there) = (longest("here"), longest("there"));
    let _here = cluster.connect(0, &Dial::v5(&here).persistent());
    let mut client = cluster.connect(1, &Dial::v5(&there).persistent());
    client.subscribe(&[(&longest("/f"), QoS::AtLeastOnce)]);
    let shown = ctl_json(http[0], &["sessions", "show", &there]);
    assert!(shown["holder"].as_str().unwrap().starts_with("n1@") && shown["client_id"] == *there);
    assert!(shown["session"]["filters"][0]["filter"] == *longest("/f"));
    let table = ctl_reading(http[0], &["sessions", "show", "-"], &there).ok();
    assert!(readable(&table).contains("n1@") && table.contains("(65535 bytes)"), "{table}");
    let page = ctl_json(http[0], &["sessions", "list", "--cluster", "--limit", "1"]);
    assert!(page["sessions"][0]["client_id"] == *here && page["next"] == *here);
    let page = ctl_json(http[0], &["sessions", "list", "--cluster", "--after", &here]);
    assert!(page["sessions"][0]["client_id"] == *there && page["next"].is_null());
    let said = ctl(http[0], &["sessions", "kick", &there]).ok();
    assert!(readable(&said).contains("on node n1 is closed; its session stays"), "{said}");
    assert_eq!(client.expect_closed(), Some(Reason::AdministrativeAction));
    assert!(
        readable(&ctl(http[0], &["sessions", "show", &longest("nobody")]).failed(1)).contains("no session")
    );
    // It moves like any other, and stays the same after both nodes have started again.
    assert!(cluster.connect(0, &Dial::v5(&there).persistent()).present);
    wait::until_true("it is dormant on its new node", || {
        let shown = ctl_json(http[1], &["sessions", "show", &there]);
        shown["session"]["state"] == "dormant" && shown["session"]["node"] == "n0"
    });
    for i in 0..2 {
        cluster.term(i);
        cluster.restart(i);
    }
    let http = cluster.broker(1).http;
    wait::until_true("it is there again", || ctl(http, &["sessions", "show", &there]).code == 0);
    for i in 0..2 {
        readable(&cluster.broker(i).log());
    }
}

#[test]
fn a_drained_node_hands_its_sessions_over() {
    let mut cluster = BerthCluster::with(2, 1, &[("cluster.advertise_mqtt", "none")]);
    let http = cluster.broker(0).http;
    let dial = Dial::v5("moves").persistent().will("will", "x", 0);
    let mut client = cluster.connect(0, &dial);
    client.subscribe(&[("t", QoS::AtLeastOnce)]);
    assert!(ctl(http, &["node", "drain", "--wait"]).ok().contains("has ended"));
    assert_eq!(client.expect_closed(), Some(Reason::ServerMoved));
    assert_eq!(client.server_reference, None, "clients are told no address");
    assert!(cluster.broker(0).wait().success());
    let mut client = cluster.connect(1, &dial);
    assert!(client.present);
    Dial::v5("p").connect(cluster.mqtt(1)).publish("t", "after", QoS::AtLeastOnce);
    assert_eq!(client.receive().text(), "after");
}

#[test]
fn clients_are_told_where_their_sessions_went() {
    let mut cluster = BerthCluster::start(3);
    let (newer, older) = (Dial::v5("newer").persistent(), Dial::v4("older").persistent());
    let mut clients = [&newer, &older].map(|dial| cluster.connect(0, dial));
    for client in &mut clients {
        assert_eq!(client.subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
    }
    cluster.term(0);
    let [mut new, mut old] = clients;
    assert_eq!(new.expect_closed(), Some(Reason::ServerMoved));
    assert_eq!(old.expect_closed(), None, "MQTT 3.1.1 has no DISCONNECT from the server");
    let told = new.server_reference.expect("a server reference");
    let there = (1..3).find(|i| cluster.mqtt(*i).to_string() == told).expect("the address of another node");
    // It is there already.
    assert_eq!(cluster.homes("newer"), [there]);
    let mut new = cluster.connect(there, &newer);
    assert!(new.present);
    let [home] = cluster.homes("older")[..] else { panic!("{:?}", cluster.homes("older")) };
    let mut old = cluster.connect(home, &older);
    assert!(old.present);
    Dial::v5("p").connect(cluster.mqtt(3 - there)).publish("t", "after", QoS::AtLeastOnce);
    assert_eq!([new.receive().text(), old.receive().text()], ["after"; 2]);
}

#[test]
fn a_dead_node_is_shown_and_forgotten() {
    let mut cluster = BerthCluster::with(
        2,
        1,
        &[("cluster.lease", "2s"), ("cluster.stale_after", "1s"), ("cluster.takeover_timeout", "2s")],
    );
    let http = cluster.broker(0).http;
    let mut client = cluster.connect(1, &Dial::v5("lost").persistent());
    client.subscribe(&[("t", QoS::AtLeastOnce)]);
    cluster.kill(1);
    let status = cluster
        .wait_status(0, "n1 is missed", |s| s["cluster"]["waiting"].as_array().is_some_and(|w| w.len() == 1));
    assert!(status["cluster"]["waiting"][0]["incarnation"].as_str().unwrap().starts_with("n1@"));
    let text = ctl(http, &["cluster", "status"]).ok();
    assert!(text.contains("berth ctl cluster forget n1"), "{text}");
    let shown = ctl(http, &["sessions", "show", "lost"]).ok();
    assert!(shown.contains("node n1 is gone"), "{shown}");
    let mut publisher = cluster.connect(0, &Dial::v5("p"));
    let held =
        [QoS::AtLeastOnce, QoS::ExactlyOnce].map(|q| publisher.send_publish("t", b"1", q, false).unwrap());
    wait::until_true("both are held", || cluster.metric(0, "berth_publishes_held") >= 2.0);
    let said = ctl(http, &["cluster", "forget", "n1"]).ok();
    assert!(said.starts_with("forgotten: 1 sessions of node n1"), "{said}");
    let forgotten = clock::now();
    assert_eq!(publisher.recv(), In::PubAck(held[0], Reason::NoMatchingSubscribers));
    assert_eq!(publisher.recv(), In::PubRec(held[1], Reason::NoMatchingSubscribers));
    let took = clock::now().since_ms(forgotten);
    assert!(took < 1_000, "{took} ms");
    wait::until_true("it is gone", || ctl(http, &["sessions", "show", "lost"]).code == 1);
    let client = cluster.connect(0, &Dial::v5("lost").persistent());
    assert!(!client.present);
    cluster.wait_status(0, "nothing waits", |s| s["cluster"]["waiting"] == serde_json::json!([]));
    cluster.restart(1);
    let said = cluster.broker(1).wait_log(|l| l.contains("this node was forgotten while it was away"));
    assert!(said.contains("WARN") && said.contains("sessions=1"), "{said}");
    // It is no such thing from then on.
    cluster.connect(1, &Dial::v5("new").persistent());
    cluster.term(1);
    cluster.restart(1);
    assert!(!cluster.broker(1).log().contains("was forgotten"));
}

#[test]
fn a_connect_that_waits_for_a_dead_node_is_one_line_and_a_dead_node_one_row() {
    let options =
        [("cluster.lease", "2s"), ("cluster.stale_after", "1s"), ("cluster.takeover_timeout", "3s")];
    let mut cluster = BerthCluster::with(2, 1, &options);
    let dial = Dial::v5("waits").persistent();
    drop(cluster.connect(1, &dial));
    cluster.kill(1);
    cluster.restart(1);
    drop(cluster.connect(1, &Dial::v5("other").persistent()));
    cluster.kill(1);
    let rows = |s: &serde_json::Value| s["cluster"]["waiting"].as_array().map_or(0, Vec::len);
    let incarnations = |s: &serde_json::Value| {
        s["cluster"]["waiting"]
            .as_array()
            .into_iter()
            .flatten()
            .fold(0, |sum, row| sum + row["incarnations"].as_array().map_or(0, Vec::len))
    };
    let status = cluster.wait_status(0, "both processes of n1 are missed", |s| incarnations(s) == 2);
    assert_eq!((rows(&status), &status["cluster"]["waiting"][0]["node"]), (1, &"n1".into()));
    let (_, answer) = dial.try_connect(cluster.mqtt(0)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    // What follows the answer in the log is waited for; a second line of the first client would stand before it.
    drop(Dial::v5("after").connect(cluster.mqtt(0)));
    cluster.broker(0).wait_log(|l| l.contains("does not answer"));
    let log = cluster.broker(0).log();
    let lines: Vec<_> =
        log.lines().filter(|l| l.contains("client=waits") || l.contains("client=\"waits\"")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("does not answer"), "{lines:?}");
}

#[test]
fn clients_that_fight_over_an_identifier_are_said_once_with_a_rate() {
    let mut cluster = BerthCluster::start(2);
    let dial = Dial::v5("fought-over").persistent();
    // On the same node and on the other one.
    let _clients: Vec<_> = (0..60).map(|turn| cluster.connect(turn / 2 % 2, &dial)).collect();
    for node in 0..2 {
        cluster.broker(node).wait_log(|l| l.contains("fought-over") && l.contains("per_second="));
        let log = cluster.broker(node).log();
        let lines: Vec<_> = log.lines().filter(|l| l.contains("fought-over")).collect();
        assert!(lines.len() < 30, "{lines:#?}");
        let rate = lines.iter().filter(|l| l.contains("WARN") && l.contains("per_second=")).count();
        assert_eq!(rate, 1, "{lines:#?}");
    }
}

#[test]
fn connects_that_etcd_cannot_be_asked_for_are_counted() {
    let cluster = BerthCluster::with(1, 1, &[("cluster.takeover_timeout", "1s")]);
    let unavailable = "berth_claims_total{outcome=\"unavailable\"}";
    cluster.cut_from_etcd(0, true);
    // Once that is known etcd is not even asked.
    cluster.wait_status(0, "etcd is away", |s| s["cluster"]["etcd"]["reachable"] == false);
    let before = cluster.metric(0, unavailable);
    let (_, answer) = Dial::v5("new").persistent().try_connect(cluster.mqtt(0)).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
    assert_eq!(cluster.metric(0, unavailable), before + 1.0);
}

#[test]
fn a_node_that_serves_without_etcd_is_not_forgotten() {
    let mut cluster = BerthCluster::with(2, 1, &[("cluster.lease", "2s"), ("cluster.stale_after", "1s")]);
    let http = cluster.broker(0).http;
    let mut client = cluster.connect(1, &Dial::v5("stays").persistent());
    client.subscribe(&[("t", QoS::AtLeastOnce)]);
    cluster.cut_from_etcd(1, true);
    wait::until_true("its lease runs out", || cluster.members() == ["n0"]);
    let said = ctl(http, &["cluster", "forget", "n1"]).failed(1);
    assert!(said.contains("not registered in etcd, but it answers this node"), "{said}");
    cluster.connect(0, &Dial::v5("p")).publish("t", "kept", QoS::AtLeastOnce);
    assert_eq!(client.receive().text(), "kept");
}

#[test]
fn a_node_stops_in_time_though_etcd_does_not_answer() {
    let mut cluster = BerthCluster::with(2, 3, &[("shutdown.timeout", "2s")]);
    let client = cluster.connect(1, &Dial::v5("stays").persistent());
    cluster.stall_etcd(1, true);
    let begun = clock::now();
    cluster.term(1);
    let took = clock::now().since_ms(begun);
    assert!(took < 7_000, "{took} ms");
    drop(client);
}
